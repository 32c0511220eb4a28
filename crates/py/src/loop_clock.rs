//! The clock of one loop: the system's, or a virtual one.
//!
//! A virtual clock stands still while anything runs. When the loop would sleep until a timer is due it moves
//! the clock there instead, so a program of hours takes what its callbacks take, and twice the same. While
//! the clock is *held*, because a thread works for the loop, the loop waits for the thread as it always would.
//! Only the timers and `time()` follow it: how often a busy loop polls stays a matter of the real clock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tideloop_sys::clock;

/// No virtual clock. As a time it would be five centuries after the start.
const SYSTEM: u64 = u64::MAX;

pub struct LoopClock {
    fixed: AtomicU64,
    holds: AtomicU32,
}

impl Default for LoopClock {
    fn default() -> Self {
        Self {
            fixed: AtomicU64::new(SYSTEM),
            holds: AtomicU32::new(0),
        }
    }
}

impl LoopClock {
    /// What the clock shows, if it is a virtual one.
    #[inline]
    pub fn fixed(&self) -> Option<u64> {
        let fixed = self.fixed.load(Ordering::Relaxed);
        (fixed != SYSTEM).then_some(fixed)
    }

    /// Nanoseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        self.fixed().unwrap_or_else(clock::monotonic_ns)
    }

    /// Makes the clock a virtual one, and sets it.
    pub fn set(&self, now: u64) {
        self.fixed.store(now.min(SYSTEM - 1), Ordering::Relaxed);
    }

    /// Whether a wait for a timer may be passed over: the clock is virtual and nobody holds it.
    pub fn may_jump(&self) -> bool {
        self.fixed().is_some() && self.holds.load(Ordering::Relaxed) == 0
    }

    /// Moves a virtual clock on, never back.
    pub fn jump(&self, to: u64) {
        if let Some(now) = self.fixed() {
            self.set(to.max(now));
        }
    }

    pub fn hold(&self) {
        self.holds.fetch_add(1, Ordering::Relaxed);
    }

    pub fn release(&self) {
        let held = |holds: u32| holds.checked_sub(1);
        // Nobody held it: there is nothing to release.
        self.holds
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, held)
            .ok();
    }
}
