//! `checkpoint(every)`: a place in a computation where others may have their turn, if it is time.
//!
//! It stands in the innermost loops of programs, so what counts is what it costs when it is not time: one reading of
//! the clock, and an awaitable that has ended and is always the same. The time of the last turn belongs to the thread,
//! as its loop does: were it the process's, of two threads that compute each would take the other's turns for its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use tideloop_sys::clock;

thread_local! {
    /// When others have last had their turn, in nanoseconds of the monotonic clock.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// It was not time, and nothing happens.
const PASSES: u8 = 0;
/// It is about to yield.
const YIELDS: u8 = 1;
/// Others have their turn.
const WAITS: u8 = 2;

/// What `checkpoint()` returns, to be awaited once.
#[pyclass(frozen, module = "tideloop")]
pub struct Checkpoint {
    state: AtomicU8,
}

#[pymethods]
impl Checkpoint {
    fn __await__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    /// Yields None once if it was time, which a task takes for a turn of its loop.
    fn __next__(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        match self.state.load(Ordering::Relaxed) {
            YIELDS => {
                self.state.store(WAITS, Ordering::Relaxed);
                Some(py.None())
            }
            WAITS => {
                // Now, not before: what the others have taken is not this computation's.
                LAST.set(clock::monotonic_ns());
                self.state.store(PASSES, Ordering::Relaxed);
                None
            }
            _ => None,
        }
    }
}

/// Let others have their turn if the last one was `every` seconds ago: ``await tideloop.checkpoint()``.
///
/// For loops that compute, the innermost ones, too. The time is that of the system's clock, not loop.time(), and is
/// shared by all computations of a thread: each goes on for `every` seconds at a time. Where it yields it can be
/// cancelled; 0 yields each time. Raises ValueError for less than 0.
#[pyfunction]
#[pyo3(signature = (every = 0.001))]
pub fn checkpoint(py: Python<'_>, every: f64) -> PyResult<Py<Checkpoint>> {
    static PASSED: PyOnceLock<Py<Checkpoint>> = PyOnceLock::new();

    // Also false for "not a number".
    let given = every >= 0.0;
    if !given {
        return Err(PyValueError::new_err(format!(
            "every must be a number of seconds of at least 0, not {every:?}"
        )));
    }
    let passed = clock::monotonic_ns().saturating_sub(LAST.get());
    if (passed as f64) < every * 1e9 {
        return PASSED
            .get_or_try_init(py, || made(py, PASSES))
            .map(|one| one.clone_ref(py));
    }
    made(py, YIELDS)
}

fn made(py: Python<'_>, state: u8) -> PyResult<Py<Checkpoint>> {
    Py::new(
        py,
        Checkpoint {
            state: AtomicU8::new(state),
        },
    )
}
