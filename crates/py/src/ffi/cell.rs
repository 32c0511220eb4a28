//! The cell that holds a loop's mutable state.

use std::cell::{Cell, UnsafeCell};

use pyo3::Python;

/// A value that is only reachable while the GIL is held, and by one borrower at a time.
///
/// [`LoopCell::with`] takes a `Python` token, so no two threads are ever inside at once. Its closure
/// must not call into Python, drop Python objects or detach from the interpreter; if one did and came
/// back to the same cell, the flag would turn the overlap into a panic, not into aliasing.
#[derive(Debug)]
pub struct LoopCell<T> {
    borrowed: Cell<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: the value and the flag are only touched through `with` and `try_with`, whose `Python` token
// (or, in `try_with`, the garbage collector's pause) proves that the calling thread holds the GIL; the
// GIL orders all accesses.
unsafe impl<T: Send> Sync for LoopCell<T> {}

impl<T: Default> Default for LoopCell<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

struct Reset<'a>(&'a Cell<bool>);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl<T> LoopCell<T> {
    pub const fn new(value: T) -> Self {
        Self {
            borrowed: Cell::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Runs `f` with the value.
    #[inline]
    pub fn with<R>(&self, _py: Python<'_>, f: impl FnOnce(&mut T) -> R) -> R {
        assert!(
            !self.borrowed.replace(true),
            "a bug in tideloop: re-entered its own state"
        );
        let _reset = Reset(&self.borrowed);
        // SAFETY: the flag was clear, so nobody else is inside, and the token keeps other threads out.
        f(unsafe { &mut *self.value.get() })
    }

    /// Runs `f` with the value, or not at all if it is in use; for the garbage collector, which may
    /// come at any allocation and has no token to give.
    pub fn try_with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.borrowed.replace(true) {
            return None;
        }
        let _reset = Reset(&self.borrowed);
        // SAFETY: the flag was clear; the collector runs with the GIL held.
        Some(f(unsafe { &mut *self.value.get() }))
    }
}
