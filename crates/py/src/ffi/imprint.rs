//! Imprint: what a task looks like, to tell later whether somebody has left a trace on it.
//!
//! Who runs several pieces of a program in one task, one after another, must not let them notice each other. What one
//! piece can leave to the next one by way of the task: a reference to it that somebody keeps (who may cancel it later,
//! or wait for it) or to its context, a cancellation, a callback for its end, a name, an attribute, a variable. All of that
//! but weak references and, since Python 3.13, attributes, is in fields that [`layout`](super::layout) knows.

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::layout::TaskObject;
use super::{native, park, snapshot};

/// The state of a task of exactly our type or asyncio's, between two calls in one of its steps.
pub struct Imprint<'py> {
    task: Bound<'py, PyAny>,
    seen: Seen,
    /// The name and the variables: kept, so that nothing else comes to be where they are.
    _kept: [Option<Bound<'py, PyAny>>; 2],
}

#[derive(PartialEq, Eq)]
struct Seen {
    references: isize,
    callback: *mut PyObject,
    callbacks: *mut PyObject,
    name: *mut PyObject,
    #[cfg(not(Py_3_13))]
    attributes: *mut PyObject,
    cancel_requests: i32,
    must_cancel: bool,
    variables: *mut PyObject,
    /// To the task's context, which `task.get_context()` gives away.
    context_references: isize,
}

impl<'py> Imprint<'py> {
    /// Of the task that runs; nothing if it cannot be told how it is.
    pub fn take(py: Python<'py>) -> PyResult<Option<Self>> {
        let task = park::current_task(py)?;
        let Ok(native) = native::verdict(py)? else {
            return Ok(None);
        };
        let kind = task.get_type_ptr();
        let known = [&native.task, &native.stock_task];
        if !known.iter().any(|known| kind == known.as_ptr().cast()) {
            return Ok(None);
        }
        Ok(look(&task).map(|seen| {
            // SAFETY: the name of a live task and the mapping of the current context, each null or alive: nothing has
            // run since they were looked at.
            let kept = [seen.name, seen.variables]
                .map(|it| unsafe { Bound::from_borrowed_ptr_or_opt(py, it) });
            Self {
                task,
                seen,
                _kept: kept,
            }
        }))
    }

    /// Whether nobody has left a trace.
    #[inline]
    pub fn holds(&self) -> bool {
        look(&self.task).is_some_and(|seen| seen == self.seen)
    }
}

#[inline]
fn look(task: &Bound<'_, PyAny>) -> Option<Seen> {
    let variables = snapshot::variables(task.py())?;
    let fields = task.as_ptr().cast::<TaskObject>();
    // SAFETY: a live task of one of the two types, whose fields are laid out as verified. It is in a step, so it has a
    // context, which is alive; the other pointers are compared only.
    unsafe {
        Some(Seen {
            references: ffi::Py_REFCNT(task.as_ptr()) as isize,
            callback: (*fields).future.callback0,
            callbacks: (*fields).future.callbacks,
            name: (*fields).name,
            #[cfg(not(Py_3_13))]
            attributes: (*fields).future.dict,
            cancel_requests: (*fields).cancel_requests,
            must_cancel: (*fields).must_cancel(),
            variables,
            context_references: ffi::Py_REFCNT((*fields).context) as isize,
        })
    }
}
