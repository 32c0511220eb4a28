//! Asking a blocked thread, from one that never holds the GIL, where it is and whether it interprets.

use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::ffi;
use tideloop_sys::thread::Thread;

/// The number of the last question that the interpreter's loop has answered.
static ANSWERED: AtomicU64 = AtomicU64::new(0);

extern "C" fn answer(question: *mut c_void) -> c_int {
    ANSWERED.store(question as u64, Ordering::Relaxed);
    0
}

/// Asks the interpreter's loop in the main thread for a sign of life; false: too much is pending already.
pub fn ask(question: u64) -> bool {
    // SAFETY: may be called by any thread without the GIL while there is an interpreter: the watchdog is stopped
    // and joined before that ends. The function touches an atomic alone, and its argument is a number.
    unsafe { ffi::Py_AddPendingCall(Some(answer), question as *mut c_void) == 0 }
}

/// Whether this question was answered.
pub fn is_answered(question: u64) -> bool {
    ANSWERED.load(Ordering::Relaxed) >= question
}

/// Sends a signal to a thread that runs a loop. `_registered`: proof that it does, for as long as this lasts.
pub fn signal<T>(
    _registered: &std::sync::MutexGuard<'_, T>,
    thread: Thread,
    number: i32,
) -> io::Result<()> {
    // SAFETY: a thread is in the list that the guard is of from the start of a run to its end, and leaves it under
    // the same lock: while the guard lives, it has not ended.
    unsafe { thread.signal(number) }
}
