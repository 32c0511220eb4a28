//! What one loop publishes about itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::averages::{Averages, Load};
use super::counts::{SharedHistogram, add};

/// Written all the time, so on cache lines of its own: readers of anything else do not slow the loop down.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Hot {
    /// When what runs now began, or was timed last; 0: nothing runs.
    began: AtomicU64,
    /// When the loop began to wait; 0: it does not.
    waits: AtomicU64,
    callbacks: AtomicU64,
    internal: AtomicU64,
    idle: AtomicU64,
    steps: AtomicU64,
    polls: AtomicU64,
}

/// Where the time of a loop went, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Steps of tasks, callbacks, protocols.
    pub callbacks: u64,
    /// System calls and bookkeeping.
    pub internal: u64,
    /// Waiting for something to happen.
    pub idle: u64,
}

impl Spent {
    /// In which the loop did not wait.
    #[must_use]
    pub fn busy(&self) -> u64 {
        self.callbacks.wrapping_add(self.internal)
    }
}

/// Counts, histograms and gauges of one loop; see the module.
#[derive(Debug, Default)]
pub struct Instrument {
    hot: Hot,
    averages: Averages,
    ready: AtomicUsize,
    timers: AtomicUsize,
    descriptors: AtomicUsize,
    /// How long each step took.
    pub steps: SharedHistogram,
    /// How long what was ready waited behind others.
    pub ready_delays: SharedHistogram,
    /// How late timers fired.
    pub lateness: SharedHistogram,
}

impl Instrument {
    #[inline]
    pub(super) fn runs_since(&self, now: u64) {
        self.hot.began.store(now, Relaxed);
    }

    #[inline]
    pub(super) fn runs_nothing(&self) {
        self.hot.began.store(0, Relaxed);
    }

    pub(super) fn waits_since(&self, now: u64) {
        self.hot.waits.store(now, Relaxed);
    }

    #[inline]
    pub(super) fn add_steps(&self, count: u64, took: u64) {
        add(&self.hot.steps, count);
        add(&self.hot.callbacks, took);
    }

    #[inline]
    pub(super) fn add_internal(&self, took: u64) {
        add(&self.hot.internal, took);
    }

    pub(super) fn add_idle(&self, took: u64) {
        add(&self.hot.idle, took);
        self.hot.waits.store(0, Relaxed);
    }

    /// Whether the averages were brought up to date, as they are now and then.
    #[inline]
    pub(super) fn polled(&self, now: u64) -> bool {
        add(&self.hot.polls, 1);
        self.averages.update(now, self.counted().busy())
    }

    /// How much there was when the loop has polled last. By the loop's thread only.
    #[inline]
    pub fn gauge(&self, ready: usize, timers: usize, descriptors: usize) {
        self.ready.store(ready, Relaxed);
        self.timers.store(timers, Relaxed);
        self.descriptors.store(descriptors, Relaxed);
    }

    /// What was ready, the timers and the descriptors when the loop has polled last.
    #[must_use]
    pub fn gauges(&self) -> (usize, usize, usize) {
        (
            self.ready.load(Relaxed),
            self.timers.load(Relaxed),
            self.descriptors.load(Relaxed),
        )
    }

    /// How many steps have ended, and how many polls. Of steps that are timed together those are counted that are known.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.hot.steps.load(Relaxed), self.hot.polls.load(Relaxed))
    }

    fn counted(&self) -> Spent {
        Spent {
            callbacks: self.hot.callbacks.load(Relaxed),
            internal: self.hot.internal.load(Relaxed),
            idle: self.hot.idle.load(Relaxed),
        }
    }

    /// Where the time went until `now`, what runs or waits at the moment included.
    #[must_use]
    pub fn spent(&self, now: u64) -> Spent {
        let mut spent = self.counted();
        if let Some(began) = self.began() {
            spent.callbacks += now.saturating_sub(began);
        }
        match self.hot.waits.load(Relaxed) {
            0 => {}
            waits => spent.idle += now.saturating_sub(waits),
        }
        spent
    }

    /// Since when the loop runs what it runs, a step or a handful of short ones; None: it waits, or does not run.
    #[inline]
    #[must_use]
    pub fn began(&self) -> Option<u64> {
        Some(self.hot.began.load(Relaxed)).filter(|&began| began != 0)
    }

    /// How busy the loop was until `now`.
    #[must_use]
    pub fn load(&self, now: u64) -> Load {
        self.averages.read().until(now, self.spent(now).busy())
    }
}
