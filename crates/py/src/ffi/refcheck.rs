//! Checks of references, in a build with the feature `refcheck` (`make refcheck`); of any other build they
//! are no part.
//!
//! A wrong count does its harm late and elsewhere, since freed memory goes on looking like the object
//! that it was, and ours is even kept for the next one. In such a build
//!
//! * nothing that dies is kept for reuse, and its fields are overwritten ([`bury`]);
//! * what enters and leaves the ring, takes a step or ends has a count, a class that is alive and fields
//!   that were not overwritten ([`alive`]), and entries have the class that their tag says ([`entry`]);
//! * what is destroyed has a count of nought ([`dying`]), so nobody destroys an object that is in use;
//! * operations and handles are counted ([`born`]), which tests compare with the references that instances
//!   hold to their classes: `tideloop._tideloop.live_natives()`.
//!
//! A check that fails says what it looked at and ends the process.

use pyo3::ffi::PyObject;

/// Whether this is such a build.
pub const ON: bool = cfg!(feature = "refcheck");

/// Kinds of objects that are made and destroyed by us alone, and the others.
#[derive(Clone, Copy)]
pub enum Kind {
    Operation,
    Handle,
    Future,
}

#[cfg(not(feature = "refcheck"))]
mod checks {
    use super::{Kind, PyObject};

    #[inline(always)]
    pub fn alive(_: *mut PyObject, _: &str) {}
    #[inline(always)]
    pub fn entry(_: *mut PyObject, _: bool, _: bool) {}
    #[inline(always)]
    pub fn dying(_: *mut PyObject) {}
    #[inline(always)]
    pub fn bury(_: *mut PyObject, _: Kind) {}
    #[inline(always)]
    pub fn born(_: Kind) {}
}

#[cfg(feature = "refcheck")]
mod checks {
    use std::sync::atomic::{AtomicI64, Ordering};

    use pyo3::ffi;
    use pyo3::prelude::*;

    use super::{Kind, PyObject};
    use crate::ffi::{handle, native};

    /// What the fields of a dead object are overwritten with.
    const BURIED: u8 = 0xDB;

    static LIVE: [AtomicI64; 2] = [AtomicI64::new(0), AtomicI64::new(0)];

    /// How many operations and handles there are.
    pub fn live() -> (i64, i64) {
        (
            LIVE[0].load(Ordering::Relaxed),
            LIVE[1].load(Ordering::Relaxed),
        )
    }

    fn refuse(object: *mut PyObject, what: &str, why: &str) -> ! {
        eprintln!("tideloop: reference check: {what} at {object:p}: {why}");
        std::process::abort()
    }

    /// Whether the first two fields behind the head were overwritten.
    fn is_buried(object: *mut PyObject) -> bool {
        // SAFETY: callers pass objects of ours, whose memory is longer than this; if it was freed since then,
        // the interpreter's allocator still maps it, or this check ends the process in its own way.
        unsafe {
            let field = object.add(1).cast::<u64>();
            field.read_unaligned() == u64::from_ne_bytes([BURIED; 8])
                && field.add(1).read_unaligned() == u64::from_ne_bytes([BURIED; 8])
        }
    }

    pub fn alive(object: *mut PyObject, what: &str) {
        if object.is_null() {
            refuse(object, what, "a null pointer");
        }
        // SAFETY: as above; a class is looked at after the object was found to be one.
        unsafe {
            if is_buried(object) {
                refuse(object, what, "it is dead");
            }
            let count = ffi::Py_REFCNT(object);
            if !(1..1 << 40).contains(&count) {
                refuse(object, what, &format!("its count is {count}"));
            }
            let kind = ffi::Py_TYPE(object);
            if kind.is_null() || ffi::Py_REFCNT(kind.cast()) < 1 {
                refuse(object, what, "its class is dead");
            }
        }
    }

    pub fn entry(object: *mut PyObject, is_handle: bool, is_task: bool) {
        alive(object, "an entry of the ring");
        // SAFETY: it was just found to be alive, and the ring is only touched with the GIL held.
        unsafe {
            let py = Python::assume_attached();
            let fits = if is_handle {
                handle::is_handle(&Bound::from_borrowed_ptr(py, object))
            } else {
                native::ready(py).is_some_and(|native| {
                    if is_task {
                        native.is_task(object)
                    } else {
                        native.is_future(object)
                    }
                })
            };
            if !fits {
                refuse(object, "an entry of the ring", "its tag says another class");
            }
        }
    }

    pub fn dying(object: *mut PyObject) {
        // SAFETY: called from a dealloc slot.
        unsafe {
            if is_buried(object) {
                refuse(object, "an object that is destroyed", "it is dead already");
            }
            let count = ffi::Py_REFCNT(object);
            if count != 0 {
                refuse(
                    object,
                    "an object that is destroyed",
                    &format!("its count is {count}"),
                );
            }
        }
    }

    fn counter(kind: Kind) -> Option<&'static AtomicI64> {
        match kind {
            Kind::Operation => Some(&LIVE[0]),
            Kind::Handle => Some(&LIVE[1]),
            Kind::Future => None,
        }
    }

    pub fn bury(object: *mut PyObject, kind: Kind) {
        if let Some(counter) = counter(kind) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
        // SAFETY: the end of a dealloc slot: the memory is an instance's, with the size that its class says,
        // and its fields own nothing any more.
        unsafe {
            let size = (*ffi::Py_TYPE(object)).tp_basicsize as usize;
            let head = size_of::<PyObject>();
            std::ptr::write_bytes(object.add(1).cast::<u8>(), BURIED, size - head);
        }
    }

    pub fn born(kind: Kind) {
        if let Some(counter) = counter(kind) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A check that must fail, for its test: a handle that was destroyed.
    pub fn fail(py: Python<'_>) -> PyResult<()> {
        let handle = py.get_type::<PyAny>().call0()?;
        let memory = vec![BURIED; 256].leak().as_mut_ptr().cast::<PyObject>();
        // SAFETY: the memory is longer than the head, and nobody else has it.
        unsafe { std::ptr::copy_nonoverlapping(handle.as_ptr(), memory, 1) };
        alive(memory, "a dead object");
        Ok(())
    }
}

pub use checks::*;
