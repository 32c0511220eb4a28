//! What stands in front of `faulthandler` in CPython 3.13.0, which takes the innermost frame for one that runs code and crashes
//! where it is one of the interpreter's own: while what a coroutine or a generator leaves behind is destroyed, as it returns
//! (python/cpython#123967, mended in 3.13.1).
//!
//! The handler of the watchdog's signal is [`shows_code`] there. It lets `faulthandler` see the frame before, for as long as that
//! looks: in the thread whose frames they are, which goes on with its own when the handler has returned.
#![cfg(Py_3_13)]

use std::os::raw::c_int;
use std::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use pyo3::ffi;
use pyo3::prelude::*;
use tideloop_sys::thread;

use super::frames::{self, Raw};

/// The address of `faulthandler`'s own handler, and in which word of a thread's state its innermost frame is.
static HANDLER: AtomicUsize = AtomicUsize::new(0);
static FIELD: AtomicUsize = AtomicUsize::new(0);

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
        let handler = HANDLER.load(Ordering::Relaxed);
        std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal);
        compiler_fence(Ordering::SeqCst);
        field.write_volatile(innermost);
    }
}

/// Makes it safe to send a thread this signal, which `faulthandler` handles; whether it is.
pub fn is_safe(py: Python<'_>, signal: i32) -> bool {
    let version = py.version_info();
    if (version.major, version.minor, version.patch) != (3, 13, 0) {
        return true;
    }
    let ours = shows_code as extern "C" fn(c_int) as usize;
    let Some(handler) = thread::handler_of(signal) else {
        return false;
    };
    if handler == ours {
        return true;
    }
    let Some(field) = frames::field(py) else {
        return false;
    };
    FIELD.store(field, Ordering::Relaxed);
    HANDLER.store(handler, Ordering::Relaxed);
    // SAFETY: it calls the handler that it is put in the place of, and nothing else that is not allowed in one.
    unsafe { thread::replace_handler(signal, handler, ours) }
}
