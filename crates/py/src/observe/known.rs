//! The loops that are observed, for who asks from outside: which there are, and what is told of one besides what it
//! counts.
//!
//! Nothing here is Python's: it is read, and may be dropped, by a thread that never takes the GIL.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tideloop_core::observe::Cause;

use super::{Observed, level};

/// What one loop is, and was at some moment.
#[derive(Default)]
pub struct Known {
    /// Its number among the loops of this process.
    pub id: u64,
    /// It is not ours (`tideloop.observe.attach()`): of its figures there are the lateness of its timers and its blocks.
    pub attached: bool,
    /// The name of the thread that runs it, or ran it last.
    name: Mutex<String>,
    /// Runs that are under way, of which there is one at most; a guest's lasts from its beginning to its end.
    runs: AtomicUsize,
    closed: AtomicBool,
    /// Of these it takes the GIL to know; what somebody found who had it.
    pub transports: AtomicUsize,
    pub executor_queue: AtomicUsize,
    /// How often the loop was blocked, and for how many nanoseconds, by cause.
    blocked: [(AtomicU64, AtomicU64); Cause::ALL.len()],
}

static LOOPS: Mutex<Vec<Weak<Observed>>> = Mutex::new(Vec::new());
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A loop is made, to be observed at this [`level`](super::level).
pub fn join(level: u8) -> Arc<Observed> {
    list(level, false)
}

/// A loop that is not ours is observed from now on.
pub fn attach() -> Arc<Observed> {
    list(level::COUNTS, true)
}

fn list(level: u8, attached: bool) -> Arc<Observed> {
    let observed = Arc::new(Observed {
        known: Known {
            id: NUMBER.fetch_add(1, Relaxed) + 1,
            attached,
            ..Known::default()
        },
        ..Observed::new(level)
    });
    let mut loops = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    loops.retain(|known| known.strong_count() > 0);
    loops.push(Arc::downgrade(&observed));
    observed
}

/// The loops that are not closed, the oldest first.
pub fn loops() -> Vec<Arc<Observed>> {
    let loops = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    let living = loops.iter().filter_map(Weak::upgrade);
    living
        .filter(|observed| !observed.known.closed.load(Relaxed))
        .collect()
}

impl Known {
    pub fn name(&self) -> String {
        let name = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        name.clone()
    }

    pub fn set_name(&self, name: &str) {
        let mut known = self.name.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != name {
            name.clone_into(&mut known);
        }
    }

    pub fn starts(&self) {
        self.runs.fetch_add(1, Relaxed);
    }

    pub fn stops(&self) {
        self.runs.fetch_sub(1, Relaxed);
    }

    pub fn is_running(&self) -> bool {
        self.runs.load(Relaxed) != 0
    }

    /// The loop is closed, and spoken of no more.
    pub fn closes(&self) {
        self.closed.store(true, Relaxed);
    }

    pub fn was_blocked(&self, cause: Cause, took: u64) {
        let (count, total) = &self.blocked[cause as usize];
        count.fetch_add(1, Relaxed);
        total.fetch_add(took, Relaxed);
    }

    /// How often the loop was blocked, and for how many nanoseconds, by cause.
    pub fn blocked(&self) -> impl Iterator<Item = (Cause, u64, u64)> + '_ {
        let counted = self.blocked.iter();
        let read = counted.map(|(count, total)| (count.load(Relaxed), total.load(Relaxed)));
        Cause::ALL
            .into_iter()
            .zip(read)
            .map(|(cause, (count, total))| (cause, count, total))
    }
}
