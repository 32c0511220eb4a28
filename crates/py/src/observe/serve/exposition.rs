//! What Prometheus is told.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tideloop_core::observe::SharedHistogram;
use tideloop_core::prometheus::Exposition;
use tideloop_sys::clock;

use super::collector::Collected;
use crate::observe::{Observed, known};

type Read = fn(&Observed, u64) -> f64;

const COUNTERS: [(&str, &str, Read); 2] = [
    (
        "tideloop_eventloop_steps_total",
        "Steps of tasks, callbacks and deliveries that have run.",
        |observed, _| observed.instrument.counts().0 as f64,
    ),
    (
        "tideloop_eventloop_polls_total",
        "Questions to the selector.",
        |observed, _| observed.instrument.counts().1 as f64,
    ),
];

/// Of loops that are not ours, too.
const OF_ALL: [(&str, &str, Read); 1] = [(
    "tideloop_eventloop_running",
    "Whether the loop runs.",
    |observed, _| f64::from(u8::from(observed.known.is_running())),
)];

const GAUGES: [(&str, &str, Read); 5] = [
    (
        "tideloop_eventloop_ready",
        "Callbacks and steps that are ready to run.",
        |observed, _| observed.instrument.gauges().0 as f64,
    ),
    (
        "tideloop_eventloop_timers",
        "Timers that are set.",
        |observed, _| observed.instrument.gauges().1 as f64,
    ),
    (
        "tideloop_eventloop_descriptors",
        "Watched file descriptors.",
        |observed, _| observed.instrument.gauges().2 as f64,
    ),
    (
        "tideloop_eventloop_transports",
        "Open connections and datagram endpoints, as last collected.",
        |observed, _| observed.known.transports.load(Relaxed) as f64,
    ),
    (
        "tideloop_executor_queue",
        "Calls that wait for a thread of the default executor, as last collected.",
        |observed, _| observed.known.executor_queue.load(Relaxed) as f64,
    ),
];

type Pick = fn(&Observed) -> &SharedHistogram;

type Family = (&'static str, &'static str, Pick);

const STEPS: Family = (
    "tideloop_eventloop_step_seconds",
    "How long steps took.",
    |observed| &observed.instrument.steps,
);
const DELAYS: Family = (
    "tideloop_eventloop_ready_delay_seconds",
    "How long what was ready waited behind others.",
    |observed| &observed.instrument.ready_delays,
);
/// Of loops that are not ours, too.
const LATENESS: Family = (
    "tideloop_eventloop_timer_lateness_seconds",
    "How late timers fired.",
    |observed| &observed.instrument.lateness,
);

type Loop = (String, Arc<Observed>);

/// All of it, with what the collector has found at the end.
pub fn metrics(collected: Option<Collected>) -> Vec<u8> {
    let now = clock::monotonic_ns();
    let numbered = known::loops()
        .into_iter()
        .map(|observed| (observed.known.id.to_string(), observed));
    // Of those that are not ours there is little.
    let (attached, ours): (Vec<Loop>, Vec<Loop>) =
        numbered.partition(|(_, observed)| observed.known.attached);
    let all: Vec<Loop> = ours.iter().chain(&attached).cloned().collect();
    let mut out = Exposition::default();
    for (kind, rows, loops) in [
        ("gauge", &OF_ALL[..], &all),
        ("counter", &COUNTERS[..], &ours),
        ("gauge", &GAUGES[..], &ours),
    ] {
        for (name, help, read) in rows {
            out.family(name, kind, help);
            for (id, observed) in loops {
                out.sample(name, &[("loop", id)], read(observed, now));
            }
        }
    }
    time(&mut out, &ours, now);
    blocked(&mut out, &all);
    for ((name, help, pick), loops) in [(STEPS, &ours), (DELAYS, &ours), (LATENESS, &all)] {
        out.family(name, "histogram", help);
        for (id, observed) in loops {
            out.histogram(name, &[("loop", id)], &pick(observed).read());
        }
    }
    let mut text = out.into_text().into_bytes();
    if let Some(Ok(found)) = collected.map(|collected| collected.found) {
        text.extend_from_slice(&found);
    }
    text
}

fn time(out: &mut Exposition, loops: &[Loop], now: u64) {
    let name = "tideloop_eventloop_time_seconds_total";
    out.family(name, "counter", "Where the time of the loop went.");
    for (id, observed) in loops {
        let spent = observed.instrument.spent(now);
        for (state, nanoseconds) in [
            ("callbacks", spent.callbacks),
            ("internal", spent.internal),
            ("idle", spent.idle),
        ] {
            out.sample(
                name,
                &[("loop", id), ("state", state)],
                nanoseconds as f64 / 1e9,
            );
        }
    }
    let name = "tideloop_eventloop_utilization_ratio";
    out.family(name, "gauge", "How busy the loop was of late, 0 to 1.");
    for (id, observed) in loops {
        let over = observed.instrument.load(now).over;
        for (window, value) in ["1s", "10s", "60s"].into_iter().zip(over) {
            out.sample(name, &[("loop", id), ("window", window)], value);
        }
    }
}

fn blocked(out: &mut Exposition, loops: &[Loop]) {
    let (count, seconds) = (
        "tideloop_eventloop_blocked_total",
        "tideloop_eventloop_blocked_seconds_total",
    );
    for (name, help) in [
        (count, "Steps that have blocked the loop."),
        (seconds, "How long steps have blocked the loop."),
    ] {
        out.family(name, "counter", help);
        for (id, observed) in loops {
            for (cause, times, nanoseconds) in observed.known.blocked() {
                let value = if name == count {
                    times as f64
                } else {
                    nanoseconds as f64 / 1e9
                };
                out.sample(name, &[("loop", id), ("cause", cause.name())], value);
            }
        }
    }
}
