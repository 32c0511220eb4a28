//! Waiting and waking: all that the primitives know of futures, tasks and loops.
//!
//! A waiter is a future of the running loop. Whatever a faster future can do directly belongs behind
//! these functions; their callers only know that a future is an object that is pending, done or
//! cancelled, and that a task which is handed a pending one sleeps until it no longer is.

use pyo3::exceptions::{PyAttributeError, PyRuntimeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::call;

/// What we use of asyncio.
struct Asyncio {
    running_loop: Py<PyAny>,
    /// Where `current_task` is looked up at each call, since it is replaced there together with Task.
    tasks: Py<PyDict>,
    cancelled_error: Py<PyAny>,
    invalid_state: Py<PyAny>,
}

fn asyncio(py: Python<'_>) -> PyResult<&'static Asyncio> {
    static ASYNCIO: PyOnceLock<Asyncio> = PyOnceLock::new();
    ASYNCIO.get_or_try_init(py, || {
        let exceptions = py.import("asyncio.exceptions")?;
        Ok(Asyncio {
            running_loop: py
                .import("asyncio.events")?
                .getattr("_get_running_loop")?
                .unbind(),
            tasks: py.import("asyncio.tasks")?.dict().unbind(),
            cancelled_error: exceptions.getattr("CancelledError")?.unbind(),
            invalid_state: exceptions.getattr("InvalidStateError")?.unbind(),
        })
    })
}

/// `function()`.
#[inline]
fn call0<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: a live callable; returns a new reference, or null with an exception set.
    unsafe {
        Bound::from_owned_ptr_or_err(function.py(), ffi::PyObject_CallNoArgs(function.as_ptr()))
    }
}

/// The loop that runs in this thread; Python's `None` without one.
#[inline]
pub fn current_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    call0(asyncio(py)?.running_loop.bind(py))
}

/// The loop that runs in this thread. Raises RuntimeError without one.
#[inline]
pub fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let current = current_loop(py)?;
    if current.is_none() {
        return Err(PyRuntimeError::new_err("no running event loop"));
    }
    Ok(current)
}

/// The task that runs in the running loop; Python's `None` without one.
pub fn current_task(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let function = asyncio(py)?
        .tasks
        .bind(py)
        .get_item(intern!(py, "current_task"))?
        .ok_or_else(|| PyAttributeError::new_err("asyncio has no current_task"))?;
    call0(&function)
}

/// A pending future of a loop.
#[inline]
pub fn new_future<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    call::method0(event_loop, intern!(event_loop.py(), "create_future"))
}

/// Tells the task that gets this future next that it is to sleep until the future is done.
#[inline]
pub fn begin(future: &Bound<'_, PyAny>) -> PyResult<()> {
    future.setattr(intern!(future.py(), "_asyncio_future_blocking"), true)
}

/// Whether [`begin`] was called and no task has seen it yet.
pub fn has_begun(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future
        .getattr(intern!(future.py(), "_asyncio_future_blocking"))?
        .is_truthy()
}

/// How waiting for a future ended.
pub enum Outcome<'py> {
    Result(Bound<'py, PyAny>),
    Failed(PyErr),
    Pending,
}

/// Takes note of how a future ended, as `await` does.
#[inline]
pub fn outcome<'py>(future: &Bound<'py, PyAny>) -> Outcome<'py> {
    let py = future.py();
    match call::method0(future, intern!(py, "result")) {
        Ok(value) => Outcome::Result(value),
        Err(error) => {
            let pending = asyncio(py).is_ok_and(|asyncio| {
                error
                    .matches(py, asyncio.invalid_state.bind(py))
                    .is_ok_and(|is| is)
            }) && is_done(future).is_ok_and(|done| !done);
            if pending {
                call::discard(py, error);
                Outcome::Pending
            } else {
                Outcome::Failed(error)
            }
        }
    }
}

/// Gives a future its result, unless it is done.
#[inline]
pub fn resolve(future: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    if is_done(future)? {
        return Ok(false);
    }
    call::method1(future, intern!(future.py(), "set_result"), value)?;
    Ok(true)
}

#[inline]
pub fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    call::method0(future, intern!(future.py(), "done"))?.is_truthy()
}

#[inline]
pub fn is_cancelled(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    call::method0(future, intern!(future.py(), "cancelled"))?.is_truthy()
}

pub fn cancel(future: &Bound<'_, PyAny>) -> PyResult<()> {
    call::method0(future, intern!(future.py(), "cancel")).map(drop)
}

/// Whether an exception is asyncio's CancelledError.
pub fn is_cancellation(py: Python<'_>, error: &PyErr) -> bool {
    asyncio(py).is_ok_and(|asyncio| {
        error
            .matches(py, asyncio.cancelled_error.bind(py))
            .is_ok_and(|is| is)
    })
}
