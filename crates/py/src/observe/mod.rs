//! Observing a loop: what it does with its time, for whoever asks, in any thread.
//!
//! **Level 0** is on unless `EventLoop(observe=False)` or `TIDELOOP_OBSERVE=0` says otherwise. Its counts and its cost
//! are explained in `tideloop_core::observe`. A [`Watch`] is a run's part of it: the meter, the clock and, if the loop
//! is observed, the [`Observed`] that the meter writes. It lives on the stack of the loop's thread and nobody else
//! touches it; what others read is behind an `Arc` and atomic, so that they need neither the GIL nor the loop.
//!
//! **The clock** is the processor's counter (`tideloop_sys::clock::CoarseClock`), if it runs at one rate on all cores,
//! or else the system's monotonic one. It is set by the real clock after each sleep and every millisecond of a
//! busy loop. Deadlines never use it.
//!
//! **Who was slow.** The longest steps are kept with their names. A name is made up only for a step that joins the
//! table ([`slowest::Slowest::admits`]), so ordinary steps pay for none, and it is made of text, so nothing of the program
//! is kept alive. A task is there to be asked until its step was timed; a handle has forgotten its callback by
//! then, so the callback is kept over a step that will be timed, and only then.
//!
//! **Who blocks, while it does**: [`watchdog`]. **What happened before**: [`recorder`], [`dumps`]. **Who asks from outside**: [`serve`].

mod blocks;
pub mod dumps;
mod known;
pub mod level;
pub mod pulse;
pub mod recorder;
pub mod serve;
mod slowest;
pub mod tasks;
mod watch;
pub mod watchdog;
mod who;

use std::sync::Arc;

use pyo3::prelude::*;
use tideloop_core::histogram::Histogram;
use tideloop_core::observe::Instrument;
use tideloop_sys::clock;

pub use known::{Known, join};
use recorder::Recorder;
pub use slowest::Slow;
use slowest::Slowest;
pub use watch::Watch;
pub use who::Who;

/// What is known of one loop, for any thread.
#[derive(Default)]
pub struct Observed {
    pub instrument: Instrument,
    pub slowest: Slowest,
    pub known: Known,
    /// One of [`level`].
    level: u8,
    /// None: it is not traced.
    pub recorder: Option<Recorder>,
}

impl Observed {
    /// What a loop of this [`level`] has for others to read.
    pub fn new(level: u8) -> Self {
        Self {
            level,
            recorder: (level >= level::TRACE).then(Recorder::default),
            ..Self::default()
        }
    }
}

/// What a histogram counted: count, sum, smallest and largest value, zeros, and its buckets with their counts.
type Counted = (u64, u128, u64, u64, u64, Vec<(i32, u64)>);

/// All that `EventLoop.metrics()` is made of.
type Metrics = (
    (u64, u64, u64),
    [f64; 3],
    (u64, u64),
    [Counted; 3],
    Vec<Slow>,
);

fn counted(histogram: &Histogram) -> Counted {
    (
        histogram.count(),
        histogram.sum(),
        histogram.min().unwrap_or(0),
        histogram.max().unwrap_or(0),
        histogram.zeros(),
        histogram.buckets().collect(),
    )
}

/// What a loop has counted until now.
pub fn metrics(py: Python<'_>, observed: &Arc<Observed>) -> Metrics {
    py.detach(|| {
        let now = clock::monotonic_ns();
        let instrument = &observed.instrument;
        let spent = instrument.spent(now);
        (
            (spent.callbacks, spent.internal, spent.idle),
            instrument.load(now).over,
            instrument.counts(),
            [
                &instrument.steps,
                &instrument.ready_delays,
                &instrument.lateness,
            ]
            .map(|histogram| counted(&histogram.read())),
            observed.slowest.read(),
        )
    })
}
