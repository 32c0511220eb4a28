//! Ahead: memory that the next entries of the ring need is fetched while the present one runs.
//!
//! A task that goes on touches itself, its coroutine, its context and the future that it has awaited: a dozen lines of
//! memory, in four places. With thousands of tasks these are not in the caches near to the processor, and it could only ask
//! for most of them one after the other, since a pointer has to be there before what it points to can be asked
//! for. So the loop asks early, in two steps: for the object of an entry some entries before it is run, and, when that
//! is there, for what the object refers to.
//!
//! The processor is only told where it will be looked: no access, no fault, and nothing that a program could see. An
//! address is read out of an object only while the ring, or the timers, own that.

use std::mem::offset_of;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::entry::Entry;
use super::layout::{FutureObject, TaskObject};
use super::prefetch;
use tideloop_core::ready::Ready;
use tideloop_core::timers::Timers;

/// Of fewer objects than this is not thought: as many fit into the second cache, with what they refer to, and asking for
/// them costs more than it saves.
pub const MANY: usize = 1024;

/// So many entries before it is run an object is asked for.
const RUN: usize = 3;

/// As [`RUN`], for objects that are only looked at, one after the other.
const LOOK: usize = 8;

/// Called when an entry was taken from the ring.
#[inline(never)]
pub fn ring(ready: &Ready<Entry>) {
    if let Some(later) = ready.after(RUN - 1) {
        later.ask();
    }
    if let Some(next) = ready.after(0) {
        next.ask_further();
    }
}

/// Called when a timer was taken to be run soon.
#[inline(never)]
pub fn timers(timers: &Timers<Entry>) {
    for later in timers.after(LOOK) {
        later.ask();
    }
    for next in timers.after(LOOK / 2) {
        next.ask_further();
    }
}

/// What the collector keeps in front of an object.
const HEADER: isize = -16;

/// Asks for the line of memory at a place of an object.
#[inline(always)]
fn line(object: *const PyObject, offset: isize) {
    prefetch::line(object.cast::<u8>().wrapping_offset(offset));
}

/// A future, or a handle, which is as long.
#[inline(always)]
pub fn future(object: *const PyObject) {
    line(object, HEADER);
    line(object, HEADER + 64);
    line(object, offset_of!(FutureObject, state) as isize);
}

/// A task.
#[inline(always)]
pub fn task(object: *const PyObject) {
    future(object);
    line(object, offset_of!(TaskObject, context) as isize);
    line(object, size_of::<TaskObject>() as isize - 8);
}

/// A context.
#[inline(always)]
pub fn context(object: *const PyObject) {
    line(object, HEADER);
    line(object, 40);
}

/// A coroutine with the beginning of its frame.
#[inline(always)]
pub fn coroutine(object: *const PyObject) {
    line(object, HEADER);
    line(object, HEADER + 64);
    line(object, HEADER + 128);
    line(object, HEADER + 192);
}

/// Of a list of futures that is walked through, the one that is next after some others.
#[inline(always)]
pub fn member(list: &Bound<'_, PyList>, index: usize) {
    if list.len() >= MANY && index + LOOK < list.len() {
        // SAFETY: the index is within the list.
        future(unsafe { ffi::PyList_GET_ITEM(list.as_ptr(), (index + LOOK) as ffi::Py_ssize_t) });
    }
}
