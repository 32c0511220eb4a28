//! One copy of a context for all calls that would copy the same.
//!
//! A call that is scheduled runs in a copy of its caller's context, made when it is scheduled. A copy is a new
//! object over the same mapping, which never changes: setting a variable puts another mapping in its place. So
//! what is scheduled while no variable is set would be as many copies that are all alike; twenty thousand timers would have
//! twenty thousand of them, made, kept, found again in memory and destroyed. Where many are pending already they get one
//! copy instead, the *snapshot*, which is never entered while it is shared. A call is run in a context over the same mapping
//! that nobody else knows:
//!
//! * the one that the call before has left as it was: the same mapping, and no token or anybody else who knows it;
//! * or the snapshot itself, if no other call shares it any more;
//! * or a copy of the snapshot.
//!
//! Nobody can tell: a context is seen by who was given it (a handle that is asked for its own gets a copy first,
//! [`super::handle`]), by a token of one of its variables, and by what runs in it, which cannot get hold of it but by
//! a token. A context that is known to anybody is not used again, so a token is of its own call only.
//!
//! Two words are private to CPython: where a thread's state has its current context, and where a context has its
//! mapping. [`layout`] finds the first and verifies the second with real objects, once per process; where it
//! cannot, each call has a copy of its own.
//!
//! **Who keeps what alive.** Snapshots keep the values of their variables. The loop lets go of its own when it
//! has looked at its selector and nothing is handed over, before it sleeps, and when it stops
//! ([`Snapshots::take`]), so nothing outlives the calls that need it by more than some turns.

use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::call;
use crate::event_loop::{LoopCore, Queue};

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
#[inline]
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
#[inline]
pub fn variables(py: Python<'_>) -> Option<*mut PyObject> {
    // SAFETY: the word of this thread's state that holds its current context, or null; the layout was verified.
    unsafe {
        let state = ffi::PyThreadState_Get().cast::<*mut PyObject>();
        let context = state.add(layout(py)?).read();
        (!context.is_null()).then(|| variables_of(context))
    }
}

/// What a loop keeps for the contexts of calls.
#[derive(Default)]
pub struct Snapshots {
    /// That of the calls that were scheduled last. It is never entered.
    last: Option<Py<PyAny>>,
    /// A context that nobody else knows, in which a call has run and which that has left as it was.
    entered: Option<Py<PyAny>>,
}

/// What was taken out of a loop, to be dropped outside of its cell.
#[must_use]
pub struct Removed(Option<Py<PyAny>>, Option<Py<PyAny>>);

impl Removed {
    pub fn discard(self, py: Python<'_>) {
        drop(self.0.map(|context| context.into_bound(py)));
        drop(self.1.map(|context| context.into_bound(py)));
    }
}

/// Where the context of a call whose context is a snapshot comes from.
enum Found {
    /// It has the same mapping, and nobody else knows it.
    Entered(Py<PyAny>),
    /// It is the snapshot, which nobody else shares.
    Itself(Option<Py<PyAny>>),
    Nothing,
}

impl Snapshots {
    /// The snapshot of the calling thread's context, if it is the last one.
    #[inline]
    fn current<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let last = self.last.as_ref()?;
        let variables = variables(py)?;
        // SAFETY: a live context; the layout was verified, since the variables of the current one are known.
        let same = unsafe { variables_of(last.as_ptr()) } == variables;
        same.then(|| last.bind(py).clone())
    }

    #[inline]
    pub fn is_some(&self) -> bool {
        self.last.is_some() || self.entered.is_some()
    }

    /// Lets go of all.
    pub fn take(&mut self) -> Removed {
        Removed(self.last.take(), self.entered.take())
    }

    /// What a call can run in. Its own reference to the snapshot is the caller's.
    #[inline]
    fn find(&mut self, snapshot: *mut PyObject) -> Found {
        // SAFETY: live contexts; there are snapshots, so the layout was verified.
        unsafe {
            if let Some(entered) = self
                .entered
                .take_if(|entered| variables_of(entered.as_ptr()) == variables_of(snapshot))
            {
                return Found::Entered(entered);
            }
            let is_last = self
                .last
                .as_ref()
                .is_some_and(|last| last.as_ptr() == snapshot);
            if ffi::Py_REFCNT(snapshot) == 1 + ffi::Py_ssize_t::from(is_last) {
                return Found::Itself(if is_last { self.last.take() } else { None });
            }
            Found::Nothing
        }
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.last)?;
        visit.call(&self.entered)
    }
}

/// Fewer calls than this each get a copy of their own: the interpreter uses the memory of as many dead contexts again.
const FEW: usize = 128;

/// The context of a call that is scheduled now, while so many others are pending; whether it is shared.
#[inline]
pub fn share<'py>(
    core: &LoopCore,
    py: Python<'py>,
    pending: impl FnOnce(&Queue) -> usize,
) -> PyResult<(Bound<'py, PyAny>, bool)> {
    if core.queue(py, |queue| pending(queue)) < FEW {
        return Ok((call::copy_context(py)?, false));
    }
    share_always(core, py)
}

/// As [`share`], of a thread's call: a snapshot, or where contexts cannot be told from each other, a copy.
pub fn share_always<'py>(core: &LoopCore, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, bool)> {
    match core.queue(py, |queue| queue.snapshots.current(py)) {
        Some(snapshot) => Ok((snapshot, true)),
        None => new(core, py),
    }
}

#[inline(never)]
fn new<'py>(core: &LoopCore, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, bool)> {
    let copy = call::copy_context(py)?;
    if layout(py).is_none() {
        return Ok((copy, false));
    }
    let last = copy.clone().unbind();
    let before = core.queue(py, |queue| queue.snapshots.last.replace(last));
    drop(before.map(|before| before.into_bound(py)));
    Ok((copy, true))
}

/// A copy of a snapshot.
pub fn copy<'py>(snapshot: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: a live context; returns a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(snapshot.py(), ffi::PyContext_Copy(snapshot.as_ptr())) }
}

/// A context that a call runs in, and what its variables were kept in before.
pub struct Loan<'py> {
    pub context: Bound<'py, PyAny>,
    variables: Option<Bound<'py, PyAny>>,
}

/// A context to run a call in whose context is a snapshot. The caller has one reference to that, for the call, and gives
/// it to [`take_back`] if all went well.
#[inline]
pub fn lend<'py>(core: &LoopCore, snapshot: &Bound<'py, PyAny>) -> PyResult<Loan<'py>> {
    let py = snapshot.py();
    // SAFETY: a live context; it is a snapshot, so the layout was verified: a context has its mapping as long as it lives.
    let variables = unsafe { Bound::from_borrowed_ptr_or_opt(py, variables_of(snapshot.as_ptr())) };
    let context = match core.queue(py, |queue| queue.snapshots.find(snapshot.as_ptr())) {
        Found::Entered(entered) => entered.into_bound(py),
        Found::Itself(last) => {
            drop(last.map(|last| last.into_bound(py)));
            snapshot.clone()
        }
        Found::Nothing => copy(snapshot)?,
    };
    Ok(Loan { context, variables })
}

/// Takes back what [`lend`] has lent, if it can be lent again, and the call's reference to its snapshot.
#[inline]
pub fn take_back<'py>(core: &LoopCore, snapshot: Bound<'py, PyAny>, loan: Loan<'py>) {
    let py = snapshot.py();
    drop(snapshot);
    let Loan { context, variables } = loan;
    // SAFETY: a live context; there are snapshots, so the layout was verified.
    let unchanged = unsafe {
        ffi::Py_REFCNT(context.as_ptr()) == 1
            && variables.is_some_and(|before| before.as_ptr() == variables_of(context.as_ptr()))
    };
    // A loop that does not run lets go of what it keeps when it runs next, which may be never.
    if unchanged && core.is_running() {
        let context = context.unbind();
        let surplus = core.queue(py, |queue| queue.snapshots.entered.replace(context));
        drop(surplus.map(|surplus| surplus.into_bound(py)));
    }
}
