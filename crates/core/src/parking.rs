//! Where a thread waits to be told something, once.
//!
//! The flag is what counts: whoever is told before it waits does not wait at all, and a wake-up without it is none.

use std::time::Duration;

use crate::sync::{Condvar, Mutex, locked, wait_for};

#[derive(Debug)]
pub struct Parking {
    told: Mutex<bool>,
    changed: Condvar,
}

impl Default for Parking {
    fn default() -> Self {
        Self {
            told: Mutex::new(false),
            changed: Condvar::new(),
        }
    }
}

impl Parking {
    /// Tells the thread that waits here, or will.
    pub fn wake(&self) {
        *locked(&self.told) = true;
        self.changed.notify_one();
    }

    /// Blocks until it is told, or so long. Whether it was told.
    pub fn wait(&self, limit: Duration) -> bool {
        wait_for(&self.changed, locked(&self.told), limit)
    }
}
