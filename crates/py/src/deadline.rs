//! Deadlines that a task has inherited, and how its waits end at them.
//!
//! `tideloop.deadline()` cancels the task that enters it. Tasks that are made inside see the deadline in
//! their context, and have no timer for it: most never wait that long. So each of them sets one when it is
//! about to wait for a primitive, and takes it off when it goes on. That is Python's (`deadlines.py`), which
//! fails the future with DeadlineExceeded; to the operation this is what a cancellation is, so it leaves the line
//! in the same way.
//!
//! Who never sets a deadline pays for none: until the first one there is nobody to ask.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// Called with a future that a task is about to wait on, and with what it waits for.
static SET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Has a function called with each future that a task is about to wait on, and what it waits for. The first
/// one stays.
#[pyfunction]
pub fn limit_waits(py: Python<'_>, function: Py<PyAny>) {
    let _first = SET.get_or_init(py, || function);
}

/// Before a task of the running loop waits on a future for `owner`. It runs Python.
#[inline]
pub fn limit(future: &Bound<'_, PyAny>, owner: &Bound<'_, PyAny>) -> PyResult<()> {
    match SET.get(future.py()) {
        None => Ok(()),
        Some(function) => function.bind(future.py()).call1((future, owner)).map(drop),
    }
}
