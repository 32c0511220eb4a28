//! What happened to a lock or semaphore so far, for `stats()`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts, ordered by the GIL: an atomic addition would cost as much as all the rest of an acquisition.
#[derive(Debug, Default)]
pub struct Tally {
    acquired: AtomicU64,
    waited: AtomicU64,
    gave_up: AtomicU64,
}

#[inline(always)]
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Tally {
    /// Somebody got in at once.
    #[inline(always)]
    pub fn acquired(&self) {
        count(&self.acquired);
    }

    /// Somebody got in who had to wait.
    pub fn waited(&self) {
        count(&self.acquired);
        count(&self.waited);
    }

    /// Somebody who waited was cancelled.
    pub fn gave_up(&self) {
        count(&self.gave_up);
    }

    /// The counts in this order.
    pub fn counts(&self) -> (u64, u64, u64) {
        (
            self.acquired.load(Ordering::Relaxed),
            self.waited.load(Ordering::Relaxed),
            self.gave_up.load(Ordering::Relaxed),
        )
    }
}
