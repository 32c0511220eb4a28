//! AIMD: one more per window, and a part less when operations are dropped or take too long.
//!
//! Source: Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer
//! Networks", 1989; as a limit of concurrency in Netflix concurrency-limits, `AIMDLimit`. It knows nothing of queues: for backends
//! that say when they have enough, by refusing or by a time that is known to be too long.
//!
//! Where it deviates, and why:
//!
//! * decisions are made of windows instead of single operations, against noise;
//! * twice the time that is too long takes half of the limit at once, and drops that go on take more and more of it
//!   ([`super::Summary`]): a tenth per round trip leaves a limit of 50 times the capacity behind in 20 s, this in 5 s.

use super::Summary;

/// So many times too long is no chance.
const FAR: f64 = 2.0;

/// What is left then.
const HALF: f64 = 0.5;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aimd {
    /// What it grows by in a window.
    pub step: f64,
    /// What is left of it after drops.
    pub backoff: f64,
    /// Nanoseconds that are too long for the mean of a window.
    pub too_long: f64,
}

impl Default for Aimd {
    fn default() -> Self {
        Self {
            step: 1.0,
            backoff: 0.9,
            too_long: f64::INFINITY,
        }
    }
}

impl Aimd {
    pub fn next(&self, window: &Summary, limit: f64) -> f64 {
        if window.mean > FAR * self.too_long {
            limit * self.backoff.min(HALF)
        } else if window.dropped || window.mean > self.too_long {
            window.backed_off(limit, self.backoff)
        } else {
            limit + self.step
        }
    }
}
