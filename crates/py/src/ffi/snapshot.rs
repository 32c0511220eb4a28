//! One copy of a context for all calls that would copy the same.
//!
//! A call that is scheduled runs in a copy of its caller's context, made when it is scheduled. A copy is a new
//! object over the same mapping, which never changes: setting a variable puts another mapping in its place. So
//! what a thread hands over while it sets no variable would be as many copies that are all alike, and threads
//! can hand over far more calls than a loop has run. They get one copy instead, the *snapshot*, which is never
//! entered. Its call is run in a copy of the snapshot, made when its turn has come, and used for the next one if
//! the callback has left it as it was: the same mapping, and no token or anybody else who knows it.
//!
//! Two words are private to CPython: where a thread's state has its current context, and where a context has its
//! mapping. [`layout`] finds the first and verifies the second with real objects, once per process; where it
//! cannot, each call has a copy of its own.
//!
//! **Who keeps what alive.** The snapshot keeps the values of its variables. The loop lets go of it when it
//! has looked at its selector and nothing is handed over, and when it stops ([`Snapshots::take`]), so nothing outlives the calls that need it by more than some turns.

use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::call;
use crate::event_loop::LoopCore;

/// The fields of a context.
#[repr(C)]
struct ContextObject {
    head: PyObject,
    previous: *mut PyObject,
    variables: *mut PyObject,
    weakrefs: *mut PyObject,
    entered: std::os::raw::c_int,
}

/// Where the search for the current context gives up, in bytes. It lies within the first 200.
const REACH: usize = 1024;

/// How far into a thread's state its current context is, in words; None: not to be relied on.
fn layout(py: Python<'_>) -> Option<usize> {
    /// 0: not looked for; 1: not to be relied on; else the words and 2.
    static LAYOUT: AtomicUsize = AtomicUsize::new(0);
    match LAYOUT.load(Ordering::Relaxed) {
        0 => {
            // Without a lock: a collection in the middle may bring another one here. To look twice does no harm.
            let found = find(py).unwrap_or(None).map_or(1, |words| words + 2);
            LAYOUT.store(found, Ordering::Relaxed);
            found.checked_sub(2)
        }
        known => known.checked_sub(2),
    }
}

/// The mapping of a context, borrowed. The layout was verified.
unsafe fn variables_of(context: *mut PyObject) -> *mut PyObject {
    // SAFETY: the caller has a live context, and knows that its fields are these.
    unsafe { (*context.cast::<ContextObject>()).variables }
}

fn find(py: Python<'_>) -> PyResult<Option<usize>> {
    let contextvars = py.import("contextvars")?;
    let variable = contextvars.getattr("ContextVar")?.call1(("tideloop",))?;
    let first = contextvars.getattr("Context")?.call0()?;
    let size: usize = first.get_type().getattr("__basicsize__")?.extract()?;
    if size != size_of::<ContextObject>() {
        return Ok(None);
    }
    first.call_method1("run", (variable.getattr("set")?, 1))?;
    let second = first.call_method0("copy")?;
    // SAFETY: live contexts of the size of the fields that are read; pointers are compared only. The thread's
    // state is that of this thread, which holds the GIL; its words are compared and not followed, and the search
    // ends at the field, which entering a context has just written.
    unsafe {
        let shared = variables_of(first.as_ptr());
        let alike = variables_of(second.as_ptr()) == shared;
        second.call_method1("run", (variable.getattr("set")?, 2))?;
        let changed = variables_of(second.as_ptr()) != shared;
        if shared.is_null() || !alike || !changed || variables_of(first.as_ptr()) != shared {
            return Ok(None);
        }
        let state = ffi::PyThreadState_Get().cast::<*mut PyObject>();
        let entered = |context: &Bound<'_, PyAny>| {
            call::in_context(context, |_| {
                let word = |index: &usize| state.add(*index).read_volatile() == context.as_ptr();
                Ok((0..REACH / size_of::<*mut PyObject>()).find(word))
            })
        };
        let (found, again) = (entered(&first)?, entered(&second)?);
        Ok(found.filter(|_| found == again))
    }
}

/// What the variables of the current context are kept in, borrowed: the same one again, while somebody keeps it,
/// only if no variable was set. Nothing where that cannot be told.
pub fn variables(py: Python<'_>) -> Option<*mut PyObject> {
    // SAFETY: the word of this thread's state that holds its current context, or null; the layout was verified.
    unsafe {
        let state = ffi::PyThreadState_Get().cast::<*mut PyObject>();
        let context = state.add(layout(py)?).read();
        (!context.is_null()).then(|| variables_of(context))
    }
}

/// The context of the calls that are handed over next.
pub struct Last {
    snapshot: Py<PyAny>,
    /// A copy in which a call has run and which is as the snapshot still.
    entered: Option<Py<PyAny>>,
}

/// The last snapshot of a loop.
#[derive(Default)]
pub struct Snapshots(Option<Last>);

impl Last {
    pub fn discard(self, py: Python<'_>) {
        drop(self.snapshot.into_bound(py));
        drop(self.entered.map(|entered| entered.into_bound(py)));
    }
}

impl Snapshots {
    /// The snapshot of the calling thread's context, if it is the last one.
    #[inline]
    pub fn current<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let last = self.0.as_ref()?;
        // SAFETY: there is a snapshot, so the layout was verified: the word is this thread's current context, or null.
        unsafe {
            let state = ffi::PyThreadState_Get().cast::<*mut PyObject>();
            let context = state.add(layout(py)?).read();
            let snapshot = last.snapshot.as_ptr();
            let same = !context.is_null() && variables_of(context) == variables_of(snapshot);
            same.then(|| last.snapshot.bind(py).clone())
        }
    }

    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Lets go of the snapshot: the caller drops what comes back, outside of the cell.
    #[must_use]
    pub fn take(&mut self) -> Option<Last> {
        self.0.take()
    }

    /// A copy that was left as it was.
    fn entered(&mut self, snapshot: *mut PyObject) -> Option<Py<PyAny>> {
        match &mut self.0 {
            Some(last) if last.snapshot.as_ptr() == snapshot => last.entered.take(),
            _ => None,
        }
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(last) = &self.0 {
            visit.call(&last.snapshot)?;
            visit.call(&last.entered)?;
        }
        Ok(())
    }
}

/// Makes a new snapshot of the current context, or where that cannot be told from others, a copy: whether it is shared.
#[cold]
pub fn new<'py>(core: &LoopCore, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, bool)> {
    let copy = call::copy_context(py)?;
    if layout(py).is_none() {
        return Ok((copy, false));
    }
    let last = Last {
        snapshot: copy.clone().unbind(),
        entered: None,
    };
    let before = core.queue(py, |queue| queue.snapshots.0.replace(last));
    if let Some(before) = before {
        before.discard(py);
    }
    Ok((copy, true))
}

/// A copy of a snapshot.
pub fn copy<'py>(snapshot: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: a live context; returns a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(snapshot.py(), ffi::PyContext_Copy(snapshot.as_ptr())) }
}

/// A copy of a snapshot to run a call in.
#[inline]
pub fn lend<'py>(core: &LoopCore, snapshot: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = snapshot.py();
    match core.queue(py, |queue| queue.snapshots.entered(snapshot.as_ptr())) {
        Some(entered) => Ok(entered.into_bound(py)),
        None => copy(snapshot),
    }
}

/// Takes back what [`lend`] has lent, if it can be lent again.
#[inline]
pub fn take_back(core: &LoopCore, snapshot: &Bound<'_, PyAny>, entered: Bound<'_, PyAny>) {
    let py = snapshot.py();
    // SAFETY: two live contexts; there are snapshots, so the layout was verified.
    let unchanged = unsafe {
        ffi::Py_REFCNT(entered.as_ptr()) == 1
            && variables_of(entered.as_ptr()) == variables_of(snapshot.as_ptr())
    };
    if !unchanged {
        return;
    }
    let entered = entered.unbind();
    let surplus = core.queue(py, |queue| match &mut queue.snapshots.0 {
        Some(last) if last.snapshot.is(snapshot) => last.entered.replace(entered),
        _ => Some(entered),
    });
    drop(surplus.map(|surplus| surplus.into_bound(py)));
}
