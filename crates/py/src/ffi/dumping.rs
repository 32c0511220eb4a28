//! What stands in front of `faulthandler`, which crashes at moments when the frames of a thread do not hang together.
//!
//! **CPython 3.11 and 3.12** tell a thread of a call's frames before these are there: `_PyEval_EvalFrameDefault` begins with
//! publishing a record that it fills in some instructions later. A handler of ours lets `faulthandler` work only if the thread was
//! not in the beginning of that function; else the watchdog asks again. Code that goes from C to Python and back in a narrow loop, as a sort
//! with a key does, is met there once in ten to fifty times.
//!
//! **CPython 3.13.0** takes the innermost frame for one that runs code and crashes
//! where it is one of the interpreter's own: while what a coroutine or a generator leaves behind is destroyed, as it returns
//! (python/cpython#123967, mended in 3.13.1).
//! The handler of the watchdog's signal is [`shows_code`] there. It lets `faulthandler` see the frame before, for as long as that
//! looks: in the thread whose frames they are, which goes on with its own when the handler has returned.

use std::os::raw::c_int;
#[cfg(not(Py_3_13))]
use std::os::raw::c_void;
#[cfg(Py_3_13)]
use std::sync::atomic::compiler_fence;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[cfg(Py_3_13)]
use pyo3::ffi;
use pyo3::prelude::*;
use tideloop_sys::thread;

#[cfg(Py_3_13)]
use super::frames::{self, Raw};

/// The address of `faulthandler`'s own handler.
static HANDLER: AtomicUsize = AtomicUsize::new(0);
/// In which word of a thread's state its innermost frame is.
#[cfg(Py_3_13)]
static FIELD: AtomicUsize = AtomicUsize::new(0);
/// Where `_PyEval_EvalFrameDefault` begins.
#[cfg(not(Py_3_13))]
static ENTRY: AtomicUsize = AtomicUsize::new(0);
static MISSED: AtomicBool = AtomicBool::new(false);

/// Bytes of instructions that are taken for the beginning: some three times of what was found to be.
#[cfg(not(Py_3_13))]
const BEGINNING: usize = 512;

/// Lets `faulthandler` write the stack of this thread.
///
/// # Safety
///
/// In a handler of its signal, while the frames of the thread can be walked.
unsafe fn walk(signal: c_int) {
    // SAFETY: the address is that of a handler, which takes a signal's number.
    unsafe {
        let handler = HANDLER.load(Ordering::Relaxed);
        std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal);
    }
}

#[cfg(not(Py_3_13))]
extern "C" fn waits_for_frame(signal: c_int, _info: *mut c_void, context: *mut c_void) {
    // SAFETY: the kernel has given the context. Outside of the beginning of that function the frames of a thread hang together.
    unsafe {
        let entry = ENTRY.load(Ordering::Relaxed);
        match thread::interrupted_at(context) {
            Some(place) if place.wrapping_sub(entry) >= BEGINNING => walk(signal),
            _ => MISSED.store(true, Ordering::Relaxed),
        }
    }
}

/// Whether a thread was met, since this was asked last, where it could not write its stack: it is to be asked again.
pub fn has_missed() -> bool {
    MISSED.swap(false, Ordering::Relaxed)
}

#[cfg(Py_3_13)]
extern "C" fn shows_code(signal: c_int) {
    // SAFETY: the state is that of the thread that handles the signal, or null; `frames` has found which field has its frame, and a
    // frame that runs refers to the one before. The field is as it was when this returns, so what was interrupted sees no
    // change. The address is that of a handler, which takes a signal's number.
    unsafe {
        let state = ffi::PyGILState_GetThisThreadState();
        if state.is_null() {
            return;
        }
        let field = state.cast::<*mut Raw>().add(FIELD.load(Ordering::Relaxed));
        let innermost = field.read_volatile();
        let mut shown = innermost;
        while let Some(frame) = shown.as_ref().filter(|frame| frame.is_between()) {
            shown = frame.previous;
        }
        field.write_volatile(shown);
        compiler_fence(Ordering::SeqCst);
        walk(signal);
        compiler_fence(Ordering::SeqCst);
        field.write_volatile(innermost);
    }
}

/// Makes it safe to send a thread this signal, which `faulthandler` handles; whether it is.
#[cfg(Py_3_13)]
pub fn is_safe(py: Python<'_>, signal: i32) -> bool {
    let version = py.version_info();
    if (version.major, version.minor, version.patch) != (3, 13, 0) {
        return true;
    }
    let Some(field) = frames::field(py) else {
        return false;
    };
    FIELD.store(field, Ordering::Relaxed);
    stand_in_front(signal, shows_code as extern "C" fn(c_int) as usize)
}

/// Makes it safe to send a thread this signal, which `faulthandler` handles; whether it is.
#[cfg(not(Py_3_13))]
pub fn is_safe(_py: Python<'_>, signal: i32) -> bool {
    // Not everywhere is it known where a thread was, nor where that function begins.
    let Some(entry) = thread::symbol(c"_PyEval_EvalFrameDefault").filter(|_| thread::TELLS_WHERE)
    else {
        return false;
    };
    ENTRY.store(entry, Ordering::Relaxed);
    stand_in_front(
        signal,
        waits_for_frame as extern "C" fn(c_int, *mut c_void, *mut c_void) as usize,
    )
}

/// Puts a handler of ours in the place of `faulthandler`'s; whether it is there.
fn stand_in_front(signal: i32, ours: usize) -> bool {
    let Some(handler) = thread::handler_of(signal) else {
        return false;
    };
    if handler == ours {
        return true;
    }
    HANDLER.store(handler, Ordering::Relaxed);
    // SAFETY: it calls the handler that it is put in the place of, and nothing else that is not allowed in one.
    unsafe { thread::replace_handler(signal, handler, ours) }
}
