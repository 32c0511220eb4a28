//! Memory of dead tasks and futures, kept by their loop for the next ones.
//!
//! Making and freeing an object of a type with garbage collection costs a third of a small task. What is
//! in here is memory, not objects: nothing refers to it, the collector does not know it, and its fields
//! own nothing. Only memory of objects that were never finalized is kept, since the mark that they were
//! stays in the collector's header.

use std::cell::Cell;
use std::ptr;

use pyo3::ffi::{self, PyObject, PyTypeObject};

use super::refcheck;
use crate::event_loop::{LoopCore, Queue};

/// At most about 100 KiB of each kind per loop.
const MAX: usize = 512;

/// The memory of dead instances of one type.
#[derive(Default)]
pub struct Spare(Vec<*mut PyObject>);

// SAFETY: the pointers are owned by the list, which is only touched with the GIL held.
unsafe impl Send for Spare {}

impl Spare {
    /// Makes a new instance out of spare memory, with a count of one and every field to be written;
    /// null: there is none.
    ///
    /// # Safety
    ///
    /// The GIL is held; `class` is the type whose instances this list keeps.
    #[inline(always)]
    pub unsafe fn take(&mut self, class: *mut PyTypeObject) -> *mut PyObject {
        match self.0.pop() {
            // SAFETY: memory of an instance of this type, which nobody else knows.
            Some(memory) => unsafe { ffi::PyObject_Init(memory, class) },
            None => std::ptr::null_mut(),
        }
    }

    /// Keeps the memory of a dead instance. False: there is enough.
    ///
    /// # Safety
    ///
    /// The GIL is held; the object is at the end of its dealloc slot: untracked, never finalized, its
    /// fields own nothing but its loop.
    #[inline(always)]
    pub unsafe fn keep(&mut self, memory: *mut PyObject) -> bool {
        if refcheck::ON || self.0.len() >= MAX {
            return false;
        }
        self.0.push(memory);
        true
    }
}

thread_local! {
    /// The loop that this thread runs; null: none.
    static RUNNING: Cell<*const LoopCore> = const { Cell::new(ptr::null()) };
}

/// While this is alive, objects that die in this thread and do not know their loop leave their memory to
/// this one.
pub struct Running<'a> {
    _core: &'a LoopCore,
    before: *const LoopCore,
}

impl<'a> Running<'a> {
    pub fn new(core: &'a LoopCore) -> Self {
        Self {
            before: RUNNING.replace(core),
            _core: core,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        RUNNING.set(self.before);
    }
}

/// Gives the memory of a dead object to the loop that this thread runs. False: it runs none, or that has
/// enough.
///
/// # Safety
///
/// As [`Spare::keep`].
#[inline(always)]
pub unsafe fn leave_to_running(
    memory: *mut PyObject,
    spare: impl FnOnce(&mut Queue) -> &mut Spare,
) -> bool {
    let core = RUNNING.get();
    // SAFETY: the pointer is that of a loop which `Running` borrows, so it is alive; the rest is passed on
    // to the caller.
    unsafe {
        !core.is_null()
            && (*core)
                .try_queue(|queue| spare(queue).keep(memory))
                .unwrap_or(false)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        for memory in self.0.drain(..) {
            // SAFETY: the loop dies with the GIL held; the memory was an instance's, and its head still
            // says of which type, which lives as long as the process.
            unsafe { ffi::PyObject_GC_Del(memory.cast()) };
        }
    }
}
