//! AdaptiveLimiter's native part: the limit that learns. The permits are a Limiter's.

use std::sync::Mutex;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tideloop_core::adaptive::aimd::Aimd;
use tideloop_core::adaptive::gradient2::Gradient2;
use tideloop_core::adaptive::vegas::Vegas;
use tideloop_core::adaptive::{Adaptive, Algorithm, Outcome, Reason};

use super::waiter::locked;

/// Nanoseconds of a loop's seconds.
fn ns(seconds: f64) -> i64 {
    (seconds * 1e9).round() as i64
}

/// The native half of `tideloop.AdaptiveLimiter`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct AdaptiveCore {
    adaptive: Mutex<Adaptive>,
}

#[pymethods]
impl AdaptiveCore {
    /// `parameters` are those of the algorithm, in the order of its dataclass.
    #[new]
    #[pyo3(signature = (algorithm, parameters, min, max, initial, now))]
    fn new(
        algorithm: &str,
        parameters: (f64, f64, f64),
        min: u64,
        max: u64,
        initial: u64,
        now: f64,
    ) -> PyResult<Self> {
        let (a, b, c) = parameters;
        let algorithm = match algorithm {
            "Gradient2" => Algorithm::Gradient2(Gradient2 {
                tolerance: a,
                smoothing: b,
                backoff: c,
            }),
            "Vegas" => Algorithm::Vegas(Vegas {
                alpha: a,
                beta: b,
                backoff: c,
            }),
            "AIMD" => Algorithm::Aimd(Aimd {
                step: a,
                backoff: b,
                too_long: c * 1e9,
            }),
            other => {
                return Err(PyValueError::new_err(format!(
                    "algorithm is {other:?}; expected 'Gradient2', 'Vegas' or 'AIMD'"
                )));
            }
        };
        if min == 0 || min > max {
            return Err(PyValueError::new_err(format!(
                "min is {min} and max {max}; expected 1 <= min <= max"
            )));
        }
        Ok(Self {
            adaptive: Mutex::new(Adaptive::new(algorithm, min, max, initial, ns(now))),
        })
    }

    /// Tell how an operation ended ("ok", "drop", "ignore"); the number that is allowed from now on, if it has changed.
    fn _ended(&self, began: f64, now: f64, in_flight: u64, outcome: &str) -> PyResult<Option<u64>> {
        let outcome = match outcome {
            "ok" => Outcome::Ok,
            "drop" => Outcome::Drop,
            "ignore" => Outcome::Ignore,
            other => {
                return Err(PyValueError::new_err(format!(
                    "outcome is {other:?}; expected 'ok', 'drop' or 'ignore'"
                )));
            }
        };
        let mut adaptive = locked(&self.adaptive);
        let changed = adaptive.ended(ns(began), ns(now), in_flight, outcome);
        Ok(changed.then(|| adaptive.allowed()))
    }

    /// What is allowed, the limit, the baseline in seconds, windows, whether a probe is under way, and the reason.
    fn _look(&self) -> (u64, f64, Option<f64>, u64, bool, &'static str) {
        let adaptive = locked(&self.adaptive);
        let reason = match adaptive.reason() {
            Reason::Start => "start",
            Reason::Grew => "grew",
            Reason::Queued => "queued",
            Reason::Dropped => "dropped",
            Reason::Kept => "kept",
        };
        let baseline = adaptive.baseline().map(|baseline| baseline / 1e9);
        (
            adaptive.allowed(),
            adaptive.limit(),
            baseline,
            adaptive.windows(),
            adaptive.is_probing(),
            reason,
        )
    }
}
