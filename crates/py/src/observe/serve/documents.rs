//! The documents, in JSON: what is known of loops, of blocks, and what the collector has found. Times are seconds.

use std::sync::atomic::Ordering::Relaxed;

use tideloop_core::histogram::Histogram;
use tideloop_core::json::Json;
use tideloop_core::observe::Frame;
use tideloop_sys::clock;

use super::Shared;
use super::collector::{self, Kind};
use crate::observe::blocks::{self, Told};
use crate::observe::{Observed, Slow, known, level, watchdog};

/// All loops, and what process they are in.
pub fn loops(shared: &Shared) -> String {
    let now = clock::monotonic_ns();
    let mut json = Json::new();
    json.object(|json| {
        json.key("version").integer(1);
        json.key("pid").integer(std::process::id().into());
        json.key("python").string(&shared.python);
        json.key("tideloop").string(&shared.tideloop);
        json.key("uptime").seconds(now - shared.started);
        json.key("program").string(&shared.program);
        json.key("loops").array(|json| {
            for observed in known::loops() {
                json.object(|json| one_loop(json, &observed, now));
            }
        });
    });
    json.into_text()
}

fn one_loop(json: &mut Json, observed: &Observed, now: u64) {
    let known = &observed.known;
    json.key("id").integer(known.id);
    json.key("name").string(&known.name());
    json.key("level")
        .integer(level::depth(observed.level).into());
    json.key("running").bool(known.is_running());
    json.key("blocked_for");
    seconds_or_null(json, watchdog::blocked_for(observed, now));
    json.key("attached").bool(known.attached);
    if known.attached {
        json.key("metrics").null();
        let lag = observed.instrument.lateness.read();
        json.key("lag").object(|json| histogram(json, &lag));
    } else {
        json.key("metrics")
            .object(|json| metrics(json, observed, now));
    }
    json.key("slowest").array(|json| {
        for step in observed.slowest.read() {
            json.object(|json| slow(json, &step));
        }
    });
}

fn metrics(json: &mut Json, observed: &Observed, now: u64) {
    let instrument = &observed.instrument;
    let (steps, polls) = instrument.counts();
    let spent = instrument.spent(now);
    let [second, ten_seconds, minute] = instrument.load(now).over;
    let (ready, timers, descriptors) = instrument.gauges();
    json.key("steps").integer(steps);
    json.key("polls").integer(polls);
    json.key("spent").object(|json| {
        json.key("callbacks").seconds(spent.callbacks);
        json.key("internal").seconds(spent.internal);
        json.key("idle").seconds(spent.idle);
    });
    json.key("utilization").object(|json| {
        json.key("second").number(second);
        json.key("ten_seconds").number(ten_seconds);
        json.key("minute").number(minute);
    });
    json.key("ready").integer(ready as u64);
    json.key("timers").integer(timers as u64);
    json.key("descriptors").integer(descriptors as u64);
    json.key("transports")
        .integer(observed.known.transports.load(Relaxed) as u64);
    json.key("executor_queue")
        .integer(observed.known.executor_queue.load(Relaxed) as u64);
    for (name, shared) in [
        ("step_seconds", &instrument.steps),
        ("ready_delay", &instrument.ready_delays),
        ("timer_lateness", &instrument.lateness),
    ] {
        json.key(name)
            .object(|json| histogram(json, &shared.read()));
    }
}

fn histogram(json: &mut Json, histogram: &Histogram) {
    json.key("count").integer(histogram.count());
    json.key("total").number(histogram.sum() as f64 / 1e9);
    json.key("longest").seconds(histogram.max().unwrap_or(0));
    for (name, q) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)] {
        json.key(name).seconds(histogram.quantile(q).unwrap_or(0));
    }
    // For who wants to know of the time between two questions.
    json.key("zeros").integer(histogram.zeros());
    json.key("buckets").array(|json| {
        for (index, count) in histogram.buckets() {
            json.array(|json| {
                json.number(index.into());
                json.integer(count);
            });
        }
    });
}

fn slow(json: &mut Json, step: &Slow) {
    json.key("seconds").seconds(step.took);
    json.key("coroutine").string(&step.what);
    json.key("file").string(&step.file);
    json.key("line").integer(step.line.into());
    json.key("task").text_or_null(&step.task);
}

/// The blocks that have ended after so many had, and those that last; and how many have ended by now. The oldest first.
pub fn blocks(seen: u64) -> (String, u64) {
    // In this order, so that one which ends meanwhile is not missed.
    let lasting = blocks::lasting();
    let (ended, count) = blocks::ended_after(seen);
    let mut json = Json::new();
    json.object(|json| {
        json.key("blocks").array(|json| {
            for block in &ended {
                json.object(|json| one_block(json, block));
            }
            let has_ended = |id: u64| ended.iter().any(|block| block.id == id);
            for block in lasting.iter().filter(|block| !has_ended(block.id)) {
                json.object(|json| one_block(json, block));
            }
        });
    });
    (json.into_text(), count)
}

fn one_block(json: &mut Json, block: &Told) {
    json.key("id").integer(block.id);
    json.key("at").number(block.at);
    json.key("loop").integer(block.of_loop);
    json.key("duration").seconds(block.took);
    json.key("cause").string(block.cause.name());
    json.key("ended").bool(block.ended);
    json.key("task").text_or_null(&block.who.task);
    json.key("what").string(&block.who.what);
    json.key("file").string(&block.who.file);
    json.key("line").integer(block.who.line.into());
    json.key("captured");
    seconds_or_null(json, block.captured);
    let first = block.stacks.first().map_or(&[][..], Vec::as_slice);
    json.key("stack").array(|json| frames(json, first));
    json.key("stacks").array(|json| {
        for stack in &block.stacks {
            json.array(|json| frames(json, stack));
        }
    });
}

fn seconds_or_null(json: &mut Json, nanoseconds: Option<u64>) {
    match nanoseconds {
        Some(nanoseconds) => json.seconds(nanoseconds),
        None => json.null(),
    }
}

fn frames(json: &mut Json, frames: &[Frame]) {
    for frame in frames {
        json.array(|json| {
            json.string(&frame.file);
            json.integer(frame.line.into());
            json.string(&frame.function);
        });
    }
}

/// What the collector has found last of tasks or gauges, and how old that is; null: it has found nothing yet.
pub fn collected(kind: Kind) -> String {
    let nothing: &str = match kind {
        Kind::Tasks => r#""loops":[]"#,
        _ => r#""gauges":[]"#,
    };
    let Some(latest) = collector::latest(kind) else {
        return format!(r#"{{"age":null,{nothing}}}"#);
    };
    let age = clock::monotonic_ns().saturating_sub(latest.made) as f64 / 1e9;
    let found = latest.found.map(|body| {
        let body = String::from_utf8_lossy(&body);
        body.strip_prefix('{').map(str::to_owned)
    });
    match found {
        Ok(Some(rest)) => format!(r#"{{"age":{age},{rest}"#),
        Ok(None) => format!(r#"{{"age":{age},"error":"expected an object",{nothing}}}"#),
        Err(words) => {
            let mut json = Json::new();
            json.string(&words);
            format!(r#"{{"age":{age},"error":{},{nothing}}}"#, json.into_text())
        }
    }
}
