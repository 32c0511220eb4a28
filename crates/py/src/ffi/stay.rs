//! Stay: what a daemon thread does that is inside of us when the interpreter ends.
//!
//! Before 3.14 such a thread, when it asks for the GIL again, is ended by the system's own unwinding
//! (`pthread_exit`). That would pass through our frames and drop what they own, without the GIL; or end the process,
//! since nobody may stop it on its way. Since 3.14 the interpreter lets such a thread hang for ever instead, as
//! nothing else is safe. So do we: around a call in which the GIL can be given away a [`Stay`] is the innermost value,
//! which is dropped by unwinding only.

/// See the head of this file.
pub struct Stay;

impl Drop for Stay {
    fn drop(&mut self) {
        // A panic of ours passes as well; it is no end of the thread.
        if std::thread::panicking() {
            return;
        }
        loop {
            std::thread::park();
        }
    }
}

/// Makes a call in which the GIL may be given away.
#[inline(always)]
pub fn stay<T>(call: impl FnOnce() -> T) -> T {
    if cfg!(Py_3_14) {
        return call();
    }
    let stay = Stay;
    let result = call();
    std::mem::forget(stay);
    result
}
