//! Vegas: keeps a few operations in the queue behind the limit, and not more.
//!
//! Source: Brakmo and Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global Internet", 1995; as a limit of
//! concurrency in Netflix concurrency-limits, `VegasLimit`. How many operations queue is `limit * (1 - baseline / mean)`.
//! Fewer than `alpha` times the logarithm of the limit: it grows by that logarithm; more than `beta` times: it shrinks
//! by as much.
//!
//! Where it deviates, and why:
//!
//! * their alpha and beta are 3 and 6, of single samples; here they are 1 and 2, of windows, whose mean is less noisy;
//! * far beyond `beta` half of the queue is taken off, and three quarters of the limit if the queue is more than that, so that
//!   a backend that lost most of its capacity is not approached by steps of 1;
//! * drops cut the limit as they do with AIMD (theirs: by a step).

use super::Summary;

/// A queue of so much of the limit is taken off as it is.
const STEEP: f64 = 0.75;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vegas {
    /// Logarithms of the limit that may queue before it stops growing.
    pub alpha: f64,
    /// Those beyond which it shrinks.
    pub beta: f64,
    /// What is left of the limit after a window with drops.
    pub backoff: f64,
}

impl Default for Vegas {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            beta: 2.0,
            backoff: 0.9,
        }
    }
}

impl Vegas {
    pub fn next(&self, window: &Summary, limit: f64) -> f64 {
        if window.dropped {
            return window.backed_off(limit, self.backoff);
        }
        if window.mean <= 0.0 {
            return limit;
        }
        let mean = (window.mean - window.error).max(window.mean / 2.0);
        let queue = limit * (1.0 - window.baseline / mean);
        let step = limit.log10().max(1.0);
        if queue > STEEP * limit {
            limit * (1.0 - STEEP)
        } else if queue > 4.0 * self.beta * step {
            limit - queue / 2.0
        } else if queue > self.beta * step {
            limit - step
        } else if queue < self.alpha * step {
            limit + step
        } else {
            limit
        }
    }
}
