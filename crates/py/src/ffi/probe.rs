//! Asking a blocked thread, from one that never holds the GIL, where it is and whether it interprets.

use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::ffi;
use tideloop_sys::thread::Thread;

/// The numbers of the last question that was asked, and of the last one that the interpreter's loop has answered.
static ASKED: AtomicU64 = AtomicU64::new(0);
static ANSWERED: AtomicU64 = AtomicU64::new(0);

extern "C" fn answer(question: *mut c_void) -> c_int {
    ANSWERED.store(question as u64, Ordering::Relaxed);
    0
}

/// Asks the interpreter's loop in the main thread for a sign of life: the number of the question, which is the last one as
/// long as that was not answered. None: too much is pending already. By the watchdog's thread only.
pub fn ask() -> Option<u64> {
    let last = ASKED.load(Ordering::Relaxed);
    if !is_answered(last) {
        return Some(last);
    }
    let number = last + 1;
    // SAFETY: may be called by any thread without the GIL while there is an interpreter: the watchdog is stopped
    // and joined before that ends. The function touches an atomic alone, and its argument is a number.
    let refused = unsafe { ffi::Py_AddPendingCall(Some(answer), number as *mut c_void) };
    if refused != 0 {
        return None;
    }
    ASKED.store(number, Ordering::Relaxed);
    Some(number)
}

/// Whether this question was answered.
pub fn is_answered(question: u64) -> bool {
    ANSWERED.load(Ordering::Relaxed) >= question
}

/// In a forked child: what is pending there is not relied on.
pub fn forget() {
    ANSWERED.store(ASKED.load(Ordering::Relaxed), Ordering::Relaxed);
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
