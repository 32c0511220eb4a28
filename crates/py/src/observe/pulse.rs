//! A heartbeat of a loop that is not ours: its lag, and the watchdog's eye on it (`tideloop.observe.attach()`).
//!
//! A timer of the loop calls [`Pulse::beat`] again and again. How late it comes is the loop's lag; and what the watchdog
//! takes for the beginning of a step is the last beat, so a loop that has not had one for the threshold has been
//! blocked, and is looked at while it still is. Between two runs of the loop nothing beats, so the pulse has to be told
//! of the end of a run ([`Pulse::pause`]).
//!
//! Everything is called in the loop's thread but [`Pulse::lag`]; the cell that it shares with the others holds no Python object.

use std::sync::Arc;

use pyo3::prelude::*;
use tideloop_core::observe::{Meter, Timed};
use tideloop_sys::clock;

use super::watchdog::{self, Watched};
use super::{Counted, Observed, counted};
use crate::ffi::cell::LoopCell;

/// What a beat tells of a block that it ends: how long it took, its cause, stacks of (file, line, function), and how long it
/// had lasted when the first of them was there.
type Ended = (
    u64,
    &'static str,
    Vec<Vec<(String, u32, String)>>,
    Option<u64>,
);

#[derive(Default)]
struct State {
    watched: Option<Arc<Watched>>,
    /// The last beat; 0: the loop does not run.
    last: u64,
}

/// The heartbeat of a loop.
#[pyclass(frozen, module = "tideloop._tideloop", name = "_Pulse")]
pub struct Pulse {
    observed: Arc<Observed>,
    state: LoopCell<State>,
}

impl Pulse {
    /// What runs from now on is the next thing that may block.
    fn starts(&self, now: u64) {
        Meter::new(true).starts(&self.observed.instrument, now);
    }
}

#[pymethods]
impl Pulse {
    #[new]
    fn new() -> Self {
        Self {
            observed: Arc::default(),
            state: LoopCell::new(State::default()),
        }
    }

    /// The loop runs, in this thread, from now on.
    fn begin(&self, py: Python<'_>) {
        let now = clock::monotonic_ns();
        self.starts(now);
        let watched = watchdog::enters(&self.observed);
        let before = self.state.with(py, |state| {
            state.last = now;
            std::mem::replace(&mut state.watched, watched)
        });
        if let Some(before) = before {
            watchdog::leaves(&before);
        }
    }

    /// The timer for the next beat, set `interval` nanoseconds ago, has come. What has blocked the loop meanwhile, if
    /// something has.
    fn beat(&self, py: Python<'_>, interval: u64) -> Option<Ended> {
        let now = clock::monotonic_ns();
        let (last, watched) = self.state.with(py, |state| {
            let last = std::mem::replace(&mut state.last, now);
            (last, state.watched.clone())
        });
        let late = now.saturating_sub(last).saturating_sub(interval);
        self.starts(now);
        if last == 0 {
            return None;
        }
        self.observed.instrument.lateness.add(late, 1);
        if watched.is_some() {
            watchdog::keeps_watch();
        }
        if !watchdog::is_block(late) {
            return None;
        }
        let block = watched?.take(last).unwrap_or_default();
        let cause = block.cause(late).name();
        let stacks = block.stacks.into_iter().map(|frames| {
            let rows = frames.into_iter();
            rows.map(|frame| (frame.file, frame.line, frame.function))
                .collect()
        });
        Some((late, cause, stacks.collect(), block.captured))
    }

    /// The loop runs no longer, or nobody watches.
    fn pause(&self, py: Python<'_>) {
        let now = clock::monotonic_ns();
        let mut meter = Meter::new(true);
        meter.starts(&self.observed.instrument, now);
        let _nothing: Timed = meter.pauses(&self.observed.instrument, now);
        let watched = self.state.with(py, |state| {
            state.last = 0;
            state.watched.take()
        });
        if let Some(watched) = watched {
            watchdog::leaves(&watched);
        }
    }

    /// How late the beats were: as the histograms of `LoopCore._metrics()`.
    fn lag(&self) -> Counted {
        counted(&self.observed.instrument.lateness.read())
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let watched = self.state.try_with(|state| state.watched.take());
        if let Some(watched) = watched.flatten() {
            watchdog::leaves(&watched);
        }
    }
}
