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

const GAUGES: [(&str, &str, Read); 6] = [
    (
        "tideloop_eventloop_running",
        "Whether the loop runs.",
        |observed, _| f64::from(u8::from(observed.known.is_running())),
    ),
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

const HISTOGRAMS: [(&str, &str, Pick); 3] = [
    (
        "tideloop_eventloop_step_seconds",
        "How long steps took.",
        |observed| &observed.instrument.steps,
    ),
    (
        "tideloop_eventloop_ready_delay_seconds",
        "How long what was ready waited behind others.",
        |observed| &observed.instrument.ready_delays,
    ),
    (
        "tideloop_eventloop_timer_lateness_seconds",
        "How late timers fired.",
        |observed| &observed.instrument.lateness,
    ),
];

/// All of it, with what the collector has found at the end.
pub fn metrics(collected: Option<Collected>) -> Vec<u8> {
    let now = clock::monotonic_ns();
    let loops: Vec<(String, Arc<Observed>)> = known::loops()
        .into_iter()
        .map(|observed| (observed.known.id.to_string(), observed))
        .collect();
    let mut out = Exposition::default();
    for (kind, rows) in [("counter", &COUNTERS[..]), ("gauge", &GAUGES[..])] {
        for (name, help, read) in rows {
            out.family(name, kind, help);
            for (id, observed) in &loops {
                out.sample(name, &[("loop", id)], read(observed, now));
            }
        }
    }
    time(&mut out, &loops, now);
    for (name, help, pick) in HISTOGRAMS {
        out.family(name, "histogram", help);
        for (id, observed) in &loops {
            out.histogram(name, &[("loop", id)], &pick(observed).read());
        }
    }
    let mut text = out.into_text().into_bytes();
    if let Some(Ok(found)) = collected.map(|collected| collected.found) {
        text.extend_from_slice(&found);
    }
    text
}

fn time(out: &mut Exposition, loops: &[(String, Arc<Observed>)], now: u64) {
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
