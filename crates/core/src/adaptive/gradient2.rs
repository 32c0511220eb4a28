//! Gradient2: the limit times the ratio of the time without a queue to the time with it.
//!
//! Source: Netflix concurrency-limits, `Gradient2Limit`: `limit * clamp(tolerance * long / short, 0.5, 1) + queue`, smoothed,
//! with the exponential mean of 600 samples as `long`, a tolerance of 1.5 and a queue of 4. On a backend of 20 that
//! slows down beyond, this settles at half as much again as is best, since the long mean contains the queue, 1.5 is
//! the queue that is tolerated, and 4 is a fifth of the limit. Here therefore
//!
//! * the long mean is the baseline of [`super`], which probes keep free of queues,
//! * the tolerance is 1.1, which windows instead of single samples allow,
//! * instead of a constant queue the gradient may exceed 1, by as much as there is room in the tolerance, and then
//!   the limit grows by 1 at least (times the smoothing). So a limit of 20 is not overshot by a constant, and one of 1 is soon left behind,
//! * a gradient below a half is taken as it is, down to a quarter: theirs is clamped to a half and smoothed to nine tenths
//!   per sample, which in a queue of seconds is nine tenths per second,
//! * drops, which theirs does not look at, cut the limit as they do with AIMD.

use super::Summary;

/// A gradient below this is no noise: it is not smoothed.
const STEEP: f64 = 0.5;

/// What is left of a limit at least.
const SHRINK: f64 = 0.25;

/// Most that it grows by.
const GROWTH: f64 = 1.25;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gradient2 {
    /// How many times as long as without a queue operations may take.
    pub tolerance: f64,
    /// Which part of a change is made at once.
    pub smoothing: f64,
    /// What is left of the limit after a window with drops.
    pub backoff: f64,
}

impl Default for Gradient2 {
    fn default() -> Self {
        Self {
            tolerance: 1.1,
            smoothing: 0.7,
            backoff: 0.9,
        }
    }
}

impl Gradient2 {
    pub fn next(&self, window: &Summary, limit: f64) -> f64 {
        if window.dropped {
            return window.backed_off(limit, self.backoff);
        }
        if window.mean <= 0.0 {
            return limit;
        }
        let mean = (window.mean - window.error).max(window.mean / 2.0);
        let gradient = (self.tolerance * window.baseline / mean).clamp(SHRINK, GROWTH);
        if gradient > 1.0 {
            limit + (limit * (gradient - 1.0)).max(1.0) * self.smoothing
        } else if gradient < STEEP {
            limit * gradient
        } else {
            limit + limit * (gradient - 1.0) * self.smoothing
        }
    }
}
