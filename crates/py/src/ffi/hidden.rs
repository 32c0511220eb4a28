//! Hidden: objects that the collector need not look at, since a task on the ring owns them.
//!
//! A collection costs what it looks at, and a program that starts ten thousand tasks has ten thousand
//! coroutines and as many contexts, which the collector walks through again and again while it finds nothing:
//! the tasks that own them are on the ring of a running loop, so nothing of this can be garbage. They are
//! therefore taken out of the collector's lists with their task, and put back with it.
//!
//! **How.** Not by untracking: the destructors of coroutines and contexts take the object out of its list
//! without asking whether it is in one. A hidden object is in a list of its own, a ring of one. For the
//! interpreter it is tracked, it can be untracked and destroyed at any time, and to a collection it is an
//! object of another generation: nothing that it refers to is taken for garbage.
//!
//! **Who may hide what.** The owner has to be reachable, or to be destroyed, for as long as the object is
//! hidden, and shows it before it lets go of it while somebody else has it, too. Forgetting that costs a cycle
//! that is not found, never memory that is freed too early.
//!
//! **The price** is the collector's header: two words in front of an object, its neighbours, the second with a
//! flag in its lowest bit. [`verify`] looks at an object's header in each of its states; where they are not as
//! expected nothing is ever hidden.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::ffi::{self, PyObject};

/// Whether the headers are as expected.
static USABLE: AtomicBool = AtomicBool::new(false);

/// The two words in front of an object that the collector knows: its neighbours in a list.
///
/// # Safety
///
/// A live object of a type with garbage collection, and headers that were verified, or are being so.
#[inline(always)]
unsafe fn header(object: *mut PyObject) -> *mut [usize; 2] {
    // SAFETY: as above.
    unsafe { object.cast::<[usize; 2]>().sub(1) }
}

/// Takes an object out of the collector's sight. One that is not tracked stays so.
///
/// # Safety
///
/// A live object of a type with garbage collection; see the head of this file for who may hide what.
#[inline(always)]
pub unsafe fn hide(object: *mut PyObject) {
    if !USABLE.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: an untracked object has no neighbours, and its flag is kept.
    unsafe {
        let header = header(object);
        if (*header)[0] == 0 {
            return;
        }
        ffi::PyObject_GC_UnTrack(object.cast());
        (*header)[1] |= header as usize;
        (*header)[0] = header as usize;
    }
}

/// Whether an object is hidden.
///
/// # Safety
///
/// A live object of a type with garbage collection.
#[inline(always)]
pub unsafe fn is_hidden(object: *mut PyObject) -> bool {
    // SAFETY: as above; objects of such types have a header.
    unsafe {
        let header = header(object);
        USABLE.load(Ordering::Relaxed) && (*header)[0] == header as usize
    }
}

/// Shows an object to the collector, if it is hidden.
///
/// # Safety
///
/// As [`is_hidden`].
#[inline(always)]
pub unsafe fn show(object: *mut PyObject) {
    // SAFETY: passed on to the caller. A hidden object is one that is tracked, in a list of its own.
    unsafe {
        if is_hidden(object) {
            ffi::PyObject_GC_UnTrack(object.cast());
            ffi::PyObject_GC_Track(object.cast());
        }
    }
}

/// Finds out whether objects can be hidden.
pub fn verify(_py: pyo3::Python<'_>) {
    // SAFETY: contexts are of a type with garbage collection, and this one is nobody else's. A build without
    // the GIL has no headers, and is not asked.
    let usable = !cfg!(Py_GIL_DISABLED)
        && unsafe {
            let probe = ffi::PyContext_New();
            if probe.is_null() {
                ffi::PyErr_Clear();
                return;
            }
            let header = header(probe);
            let is_tracked = || ffi::PyObject_GC_IsTracked(probe) != 0;
            let linked = is_tracked() && (*header)[0] != 0 && (*header)[1] & 1 == 0;
            ffi::PyObject_GC_UnTrack(probe.cast());
            let alone = !is_tracked() && *header == [0, 0];
            if linked && alone {
                *header = [header as usize; 2];
            }
            let hidden = is_tracked();
            ffi::PyObject_GC_UnTrack(probe.cast());
            let alone_again = !is_tracked() && *header == [0, 0];
            ffi::PyObject_GC_Track(probe.cast());
            ffi::Py_DECREF(probe);
            linked && alone && hidden && alone_again
        };
    USABLE.store(usable, Ordering::Relaxed);
}
