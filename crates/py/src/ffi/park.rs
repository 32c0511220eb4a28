//! Waiting and waking: all that the primitives know of futures, tasks and loops.
//!
//! A waiter is a future of the running loop. Whatever a faster future can do directly belongs behind
//! these functions; their callers only know that a future is an object that is pending, done or
//! cancelled, and that a task which is handed a pending one sleeps until it no longer is. A future of ours
//! is read and ended through its fields, any other one through its methods.

use pyo3::exceptions::{PyAttributeError, PyRuntimeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::layout::{self, FutureObject};
use super::native::{self, Native};
use super::{call, future};
use crate::event_loop::LoopCore;

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

/// Whether a loop runs in this thread right now, so that its futures may be touched here.
#[inline]
pub fn runs_here(event_loop: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = event_loop.py();
    // SAFETY: a live object.
    match unsafe { future::core_of(py, event_loop.as_ptr()) } {
        Some(core) if core.is_running_here() => Ok(true),
        // A loop that is hosted says so too while it takes a step.
        _ => Ok(current_loop(py)?.is(event_loop)),
    }
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

/// A future of exactly our type, and its fields.
#[inline(always)]
fn native_future(future: &Bound<'_, PyAny>) -> Option<(&'static Native, *mut FutureObject)> {
    let native = native::ready(future.py())?;
    (future.get_type_ptr() == native.future.as_ptr().cast())
        .then(|| (native, future.as_ptr().cast()))
}

/// A pending future of a loop.
#[inline]
pub fn new_future<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    // SAFETY: a live object.
    let core = unsafe { future::core_of(py, event_loop.as_ptr()) };
    if let (Some(native), Some(core)) = (native::ready(py), core)
        && core.makes_futures(py)?
    {
        // SAFETY: an object with a core is a loop of ours.
        let core = unsafe { event_loop.cast_unchecked::<LoopCore>() };
        return future::new(py, native, core);
    }
    call::method0(event_loop, intern!(event_loop.py(), "create_future"))
}

/// Gives a future made by [`new_future`] None once `delay` seconds have passed, without a handle. False:
/// the loop is not one of ours, or in debug mode, where timers are shown.
#[inline]
pub fn wake_later(event_loop: &Bound<'_, PyAny>, delay: f64, future: &Bound<'_, PyAny>) -> bool {
    let py = event_loop.py();
    // SAFETY: a live object.
    match unsafe { future::core_of(py, event_loop.as_ptr()) } {
        Some(core) if core.accepts_natively() && native_future(future).is_some() => {
            core.push_sleeper(py, delay, future.clone().unbind());
            true
        }
        _ => false,
    }
}

/// Ends a wait begun by [`wake_later`] before its time.
pub fn stop_waking(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    let Some((_, ours)) = native_future(future) else {
        return Ok(());
    };
    // SAFETY: a live future of ours, whose loop is alive as long as it is.
    unsafe {
        if (*ours).state == layout::FINISHED {
            return Ok(());
        }
        if (*ours).state == layout::PENDING {
            cancel(future)?;
        }
        if let Some(core) = future::core_of(py, (*ours).owner) {
            core.timer_cancelled(py);
        }
    }
    Ok(())
}

/// Tells the task that gets this future next that it is to sleep until the future is done.
#[inline]
pub fn begin(future: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        unsafe { (*ours).set_blocking(true) };
        return Ok(());
    }
    future.setattr(intern!(future.py(), "_asyncio_future_blocking"), true)
}

/// Whether [`begin`] was called and no task has seen it yet.
pub fn has_begun(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        return Ok(unsafe { (*ours).is_blocking() });
    }
    future
        .getattr(intern!(future.py(), "_asyncio_future_blocking"))?
        .is_truthy()
}

/// How waiting for a future ended.
pub enum Outcome {
    Ended,
    Failed(PyErr),
    Pending,
}

/// Takes note of how a future ended, as `await` does.
#[inline]
pub fn outcome(future: &Bound<'_, PyAny>) -> Outcome {
    let py = future.py();
    if let Some((native, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        unsafe {
            if (*ours).state == layout::PENDING {
                return Outcome::Pending;
            }
            return match future::outcome(py, native, ours) {
                Ok(future::Outcome::Result(_)) => Outcome::Ended,
                Ok(future::Outcome::Error(error)) => Outcome::Failed(PyErr::from_value(error)),
                Err(error) => Outcome::Failed(error),
            };
        }
    }
    match call::method0(future, intern!(py, "result")) {
        Ok(_) => Outcome::Ended,
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
    if let Some((native, ours)) = native_future(future) {
        // SAFETY: a live future of ours, which is pending when its result is set.
        unsafe {
            if (*ours).state != layout::PENDING {
                return Ok(false);
            }
            if !future::set_result(future.py(), native, ours, value.clone().into_ptr()) {
                return Err(PyErr::fetch(future.py()));
            }
        }
        return Ok(true);
    }
    if is_done(future)? {
        return Ok(false);
    }
    call::method1(future, intern!(future.py(), "set_result"), value)?;
    Ok(true)
}

#[inline]
pub fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        return Ok(unsafe { (*ours).state != layout::PENDING });
    }
    call::method0(future, intern!(future.py(), "done"))?.is_truthy()
}

#[inline]
pub fn is_cancelled(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        return Ok(unsafe { (*ours).state == layout::CANCELLED });
    }
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
