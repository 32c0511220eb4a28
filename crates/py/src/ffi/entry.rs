//! What waits in the ready ring or among the timers: a handle, a task that put itself there, a future
//! that a sleep waits for, one whose listener is to be told that it is done, or a call of another thread.
//!
//! An entry is one pointer. Objects are aligned to 8 bytes at least, so the three lowest bits tell what
//! it is; a task needs no handle, no bound method and no tuple to be run. An entry owns one reference, but for
//! that of a thread's call, whose pointer is null: such calls lie in a queue of their own, in the same order.

use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::layout::{FutureObject, PENDING};
use super::{future, handle, refcheck, task};

const KIND: usize = 0b111;
const HANDLE: usize = 0;
const STEP: usize = 1;
const WAKE: usize = 2;
const SLEEPER: usize = 3;
const TOLD: usize = 4;
const HANDED: usize = 5;

/// One thing to run.
pub struct Entry(NonZeroUsize);

/// An entry taken apart; it owns its object.
pub enum Run<'py> {
    /// A handle made by [`super::handle::new`].
    Handle(Bound<'py, PyAny>),
    /// A task of ours, to be sent None.
    Step(Bound<'py, PyAny>),
    /// A task of ours whose future is done.
    Wake(Bound<'py, PyAny>),
    /// A future of ours, to be given None unless it is done.
    Sleeper(Bound<'py, PyAny>),
    /// A future of ours that is done and keeps who is to be told so.
    Told(Bound<'py, PyAny>),
    /// The next call that a thread has handed over.
    Handed,
}

impl Entry {
    #[inline(always)]
    fn new(object: *mut PyObject, kind: usize) -> Self {
        debug_assert_eq!(object as usize & KIND, 0);
        refcheck::entry(object, kind == HANDLE, kind == STEP || kind == WAKE);
        // SAFETY: an object's address is not null.
        Self(unsafe { NonZeroUsize::new_unchecked(object as usize | kind) })
    }

    /// A handle made by [`super::handle::new`].
    #[inline(always)]
    pub fn handle(handle: Py<PyAny>) -> Self {
        Self::new(handle.into_ptr(), HANDLE)
    }

    /// The next step of a task of ours.
    #[inline(always)]
    pub fn step(task: Py<PyAny>) -> Self {
        Self::new(task.into_ptr(), STEP)
    }

    /// The step of a task of ours whose future is done.
    #[inline(always)]
    pub fn wake(task: Py<PyAny>) -> Self {
        Self::new(task.into_ptr(), WAKE)
    }

    /// A future of ours whose time to be given None will come.
    #[inline(always)]
    pub fn sleeper(future: Py<PyAny>) -> Self {
        Self::new(future.into_ptr(), SLEEPER)
    }

    /// A future of ours that is done and keeps who is to be told so; see [`super::told`].
    #[inline(always)]
    pub fn told(future: Py<PyAny>) -> Self {
        Self::new(future.into_ptr(), TOLD)
    }

    /// The next call that a thread has handed over; [`super::handed`] has it.
    #[inline(always)]
    pub fn handed() -> Self {
        Self(const { NonZeroUsize::new(HANDED).unwrap() })
    }

    /// Whether running it would do nothing: a cancelled handle, a future that is done.
    #[inline]
    pub fn is_stale(&self) -> bool {
        match self.0.get() & KIND {
            HANDLE => self
                .object()
                .is_some_and(|handle| handle::is_cancelled(&handle)),
            // SAFETY: a sleeper is a future of ours, kept alive by the entry.
            SLEEPER => unsafe { (*self.pointer().cast::<FutureObject>()).state != PENDING },
            _ => false,
        }
    }

    #[inline(always)]
    fn pointer(&self) -> *mut PyObject {
        (self.0.get() & !KIND) as *mut PyObject
    }

    /// Whether it is a handle.
    pub fn is_handle(&self) -> bool {
        self.0.get() & KIND == HANDLE
    }

    /// Shows the collector what is pending in the ring, or among the timers, of a loop that stops.
    pub fn show(&self) {
        match self.0.get() & KIND {
            // SAFETY: these are tasks of ours, kept alive by the entry, and rings are looked at with the GIL held.
            STEP | WAKE => unsafe { task::show(self.pointer()) },
            // SAFETY: as above, of futures of ours.
            SLEEPER => unsafe {
                future::show_sleeper(Python::assume_attached(), self.pointer().cast());
            },
            kind => match self.object() {
                Some(handle) if kind == HANDLE => handle::track_pending(&handle),
                Some(object) => handle::track(&object),
                None => {}
            },
        }
    }

    /// Whether it stands for a call that a thread has handed over.
    pub fn is_handed(&self) -> bool {
        self.0.get() == HANDED
    }

    /// The object, which the entry goes on owning; None: it has none.
    pub fn object(&self) -> Option<ManuallyDrop<Py<PyAny>>> {
        if self.is_handed() {
            return None;
        }
        // SAFETY: the entry owns a reference, so the pointer is alive; ManuallyDrop keeps its count.
        unsafe {
            let py = Python::assume_attached();
            let object = Bound::from_owned_ptr(py, self.pointer()).unbind();
            Some(ManuallyDrop::new(object))
        }
    }

    /// Takes the entry apart.
    #[inline(always)]
    pub fn take(self, py: Python<'_>) -> Run<'_> {
        let entry = ManuallyDrop::new(self);
        if entry.is_handed() {
            return Run::Handed;
        }
        refcheck::alive(entry.pointer(), "an entry that leaves the ring");
        // SAFETY: the reference that the entry owned becomes the variant's.
        let object = unsafe { Bound::from_owned_ptr(py, entry.pointer()) };
        match entry.0.get() & KIND {
            HANDLE => Run::Handle(object),
            STEP => Run::Step(object),
            WAKE => Run::Wake(object),
            TOLD => Run::Told(object),
            _ => Run::Sleeper(object),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.is_handed() {
            return;
        }
        refcheck::alive(self.pointer(), "an entry that is dropped");
        // SAFETY: the entry owns the reference; rings are emptied by code that holds the GIL.
        unsafe { ffi::Py_DECREF(self.pointer()) };
    }
}
