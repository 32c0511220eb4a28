//! The longest steps of a loop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

/// Steps kept.
const KEPT: usize = 16;

/// Shorter steps are nothing to speak of, in nanoseconds.
const FLOOR: u64 = 200_000;

/// A step that took long.
#[derive(Clone, IntoPyObject, IntoPyObjectRef)]
pub struct Slow {
    /// In nanoseconds.
    pub took: u64,
    /// When it ended, on the loop's clock for durations.
    pub ended: u64,
    /// What ran: the name of a function, or of a protocol's class.
    pub what: String,
    pub file: String,
    /// Where it was when the step ended, or where it begins; 0: not known.
    pub line: u32,
    /// The name of the task; empty: it was none.
    pub task: String,
    /// So many short steps were timed with it, so that it is one of these.
    pub among: u32,
}

/// The longest steps, by one writer for any reader.
pub struct Slowest {
    /// What a step has to exceed to join.
    floor: AtomicU64,
    kept: Mutex<Vec<Slow>>,
}

impl Default for Slowest {
    fn default() -> Self {
        Self {
            floor: AtomicU64::new(FLOOR),
            kept: Mutex::new(Vec::new()),
        }
    }
}

impl Slowest {
    /// Whether a step that took so long joins.
    #[inline]
    pub fn admits(&self, took: u64) -> bool {
        took > self.floor.load(Ordering::Relaxed)
    }

    pub fn add(&self, slow: Slow) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.partition_point(|other| other.took >= slow.took);
        kept.insert(place, slow);
        kept.truncate(KEPT);
        if let (KEPT, Some(last)) = (kept.len(), kept.last()) {
            self.floor.store(last.took, Ordering::Relaxed);
        }
    }

    /// The longest first.
    pub fn read(&self) -> Vec<Slow> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
