//! A heartbeat of a loop that is not ours: its lag, and the watchdog's eye on it (`tideloop.observe.attach()`).
//!
//! A timer of the loop calls [`Pulse::beat`] again and again. How late it comes is the loop's lag; and what the watchdog
//! takes for the beginning of a step is the moment at which the next beat is due, so a loop that is late by the threshold
//! is blocked, and is looked at while it still is. Between two runs of the loop nothing beats, so the pulse has to be told
//! of the end of a run ([`Pulse::pause`]).
//!
//! Who looks from outside finds the loop among [ours](super::known), with its lag and its blocks and nothing else.
//!
//! Everything is called in the loop's thread but [`Pulse::lag`]; the cell that it shares with the others holds no Python object.

use std::sync::Arc;

use pyo3::prelude::*;
use tideloop_core::observe::{Meter, Timed};
use tideloop_sys::clock;

use super::watchdog::{self, Watched};
use super::who::Described;
use super::{Counted, Observed, blocks, counted, known};
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
    /// When the next beat is due; 0: the loop does not run.
    due: u64,
}

/// The heartbeat of a loop.
#[pyclass(frozen, module = "tideloop._tideloop", name = "_Pulse")]
pub struct Pulse {
    observed: Arc<Observed>,
    state: LoopCell<State>,
    /// Nanoseconds from one beat to the next.
    interval: u64,
}

impl Pulse {
    /// Whatever runs when the next beat is due blocks the loop from then on; says when that is.
    fn starts(&self) -> u64 {
        let due = clock::monotonic_ns().saturating_add(self.interval);
        Meter::new(true).starts(&self.observed.instrument, due);
        due
    }
}

#[pymethods]
impl Pulse {
    /// `interval`: nanoseconds from one beat to the next.
    #[new]
    fn new(interval: u64) -> Self {
        Self {
            observed: known::attach(),
            state: LoopCell::new(State::default()),
            interval,
        }
    }

    /// The loop runs, in this thread of this name, from now on.
    fn begin(&self, py: Python<'_>, thread: &str) {
        let known = &self.observed.known;
        known.set_name(thread);
        let due = self.starts();
        let watched = watchdog::enters(&self.observed);
        let before = self.state.with(py, |state| {
            let was = std::mem::replace(&mut state.due, due);
            if was == 0 {
                known.starts();
            }
            std::mem::replace(&mut state.watched, watched)
        });
        if let Some(before) = before {
            watchdog::leaves(&before);
        }
    }

    /// The timer for the next beat has come. What has blocked the loop meanwhile, if something has.
    fn beat(&self, py: Python<'_>) -> Option<Ended> {
        let now = clock::monotonic_ns();
        let (due, watched) = self
            .state
            .with(py, |state| (state.due, state.watched.clone()));
        if due == 0 {
            return None;
        }
        let late = now.saturating_sub(due);
        let next = self.starts();
        self.state.with(py, |state| state.due = next);
        self.observed.instrument.lateness.add(late, 1);
        if watched.is_some() {
            watchdog::keeps_watch();
        }
        if !watchdog::is_block(late) {
            return None;
        }
        let block = watched?.take(due, late).unwrap_or_default();
        let cause = block.cause(late).name();
        let stacks = block.stacks.iter().map(|frames| {
            let rows = frames.iter();
            rows.map(|frame| (frame.file.clone(), frame.line, frame.function.clone()))
                .collect()
        });
        let ended = (late, cause, stacks.collect(), block.captured);
        let innermost = block.stacks.first().and_then(|frames| frames.first());
        let who = innermost.map(|frame| Described {
            what: frame.function.clone(),
            file: frame.file.clone(),
            line: frame.line,
            task: String::new(),
        });
        blocks::keep(&self.observed, late, who.unwrap_or_default(), block);
        Some(ended)
    }

    /// The loop runs no longer, or nobody watches.
    fn pause(&self, py: Python<'_>) {
        let now = clock::monotonic_ns();
        let mut meter = Meter::new(true);
        meter.starts(&self.observed.instrument, now);
        let _nothing: Timed = meter.pauses(&self.observed.instrument, now);
        let watched = self.state.with(py, |state| {
            if std::mem::take(&mut state.due) != 0 {
                self.observed.known.stops();
            }
            state.watched.take()
        });
        if let Some(watched) = watched {
            watchdog::leaves(&watched);
        }
    }

    /// The loop is observed no longer.
    fn close(&self) {
        self.observed.known.closes();
    }

    /// The loop's number among those of this process.
    fn number(&self) -> u64 {
        self.observed.known.id
    }

    /// For how many nanoseconds the loop has been blocked; None: it is not.
    fn blocked_for(&self) -> Option<u64> {
        watchdog::blocked_for(&self.observed, clock::monotonic_ns())
    }

    /// The name of the thread that runs the loop, or ran it last.
    fn name(&self) -> String {
        self.observed.known.name()
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
