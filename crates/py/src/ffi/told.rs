//! Told: callbacks of futures that need neither a handle nor a context to be called.
//!
//! `wait()` and a task group add the same callback to thousands of tasks. asyncio copies the current
//! context for each, and schedules a handle for each when the tasks end. Our callbacks only count, take
//! a task out of a set and end a future, so nobody can see in which context they run; *when* they run can
//! be seen. Such a callback is marked, and when a future of ours ends whose first callback it is, the
//! future itself goes to the ready ring, to the place that the handle would have had, with the callback
//! in the field of its context, which a future that is done has no other use for.
//!
//! **What is marked.** A builtin made by [`call::Definition::told`], and a bound method of a function made
//! by [`Entry::told`](super::function::Entry::told). Whoever else ends or reads the future finds an
//! ordinary callback with an ordinary context: asyncio's own code, a loop that is not ours, one in debug
//! mode, and one whose `call_soon` was overridden.
//!
//! **A future that has failed** takes the ordinary way: what is done about a failure may run code of the
//! program, which may look at its context.

use std::ptr::{self, null_mut};

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;

use super::entry::Entry;
use super::future::{core_of, is_exact};
use super::layout::{FutureObject, PENDING};
use super::native::Native;
use super::{call, function};
use crate::event_loop::LoopCore;

/// Puts a future that has just ended on the ring of its loop, if its first callback is one that is told.
/// Takes over the reference to the callback's context then. False: nothing was done.
///
/// # Safety
///
/// `future` and `callback` are alive during the call; the fields `callback0` and `context0` are empty.
#[inline(always)]
pub unsafe fn later(
    py: Python<'_>,
    native: &Native,
    future: *mut FutureObject,
    callback: *mut PyObject,
    context: *mut PyObject,
) -> bool {
    // SAFETY: passed on to the caller. The context is dropped last: that may run any code.
    unsafe {
        if callback == native.wake.as_ptr()
            || !(*future).exception.is_null()
            || !is_exact(future.cast())
            || !(call::is_told(callback) || function::is_told(py, callback))
        {
            return false;
        }
        match core_of(py, (*future).owner) {
            Some(core) if core.accepts_natively() => {
                (*future).context0 = ffi::Py_NewRef(callback);
                let this = Bound::from_borrowed_ptr(py, future.cast()).unbind();
                core.push_entry(py, Entry::told(this));
                ffi::Py_XDECREF(context);
                true
            }
            _ => false,
        }
    }
}

/// Calls what a future keeps since [`later`].
///
/// # Errors
///
/// Only KeyboardInterrupt and SystemExit; every other exception goes to the loop's exception handler.
#[inline]
pub fn tell<'py>(core: &Bound<'py, LoopCore>, future: &Bound<'py, PyAny>) -> PyResult<()> {
    let py = core.py();
    let raw = future.as_ptr().cast::<FutureObject>();
    // SAFETY: entries of this kind hold futures of ours. One that was initialised again since then has lost
    // its callback, or has another one with a context.
    let (callback, told) = unsafe {
        if (*raw).state == PENDING || !(*raw).callback0.is_null() || (*raw).context0.is_null() {
            return Ok(());
        }
        let callback = ptr::replace(&raw mut (*raw).context0, null_mut());
        let callback = Bound::<PyAny>::from_owned_ptr(py, callback);
        let result = ffi::PyObject_CallOneArg(callback.as_ptr(), future.as_ptr());
        (callback, Bound::<PyAny>::from_owned_ptr_or_err(py, result))
    };
    match told {
        Ok(_) => Ok(()),
        Err(error) => report(core, &callback, future, error),
    }
}

#[cold]
fn report<'py>(
    core: &Bound<'py, LoopCore>,
    callback: &Bound<'py, PyAny>,
    future: &Bound<'py, PyAny>,
    error: PyErr,
) -> PyResult<()> {
    let py = core.py();
    if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) {
        return Err(error);
    }
    core.call_method1(
        intern!(py, "_told_failed"),
        (callback, future, error.into_value(py)),
    )
    .map(drop)
}
