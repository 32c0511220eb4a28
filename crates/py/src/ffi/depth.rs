//! Depth: what calls itself by way of the program's objects, and how far it may.
//!
//! How deeply objects are nested is the program's affair: operations await operations, tasks wait for tasks, a future has
//! a future as its result. Three kinds of native code follow such chains, and each level costs some hundred bytes of a
//! stack that may be small ([`tideloop_sys::stack`]).
//!
//! * **Driving** an operation drives what it awaits. A [`Level`] counts that, as the interpreter counts the calls of
//!   functions, and is refused with a RecursionError where the stack ends.
//! * **Calls** that come back to us by way of Python, as the first step of an eager task or a cancellation that is passed on,
//!   ask [`room`] first.
//! * **Destroying** an object destroys what only it had. That cannot be refused, but it can be put off: an object that dies
//!   within too many others is kept, dead, until the outermost of these is gone ([`is_deep`], [`put_off`], [`nested`]). What
//!   waits is untracked and in no list of ours; its count is 0, so nobody can get it by a weak reference.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use pyo3::exceptions::PyRecursionError;
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use tideloop_sys::stack;

/// As many levels are let be, whatever the interpreter's limit.
const MAX_LEVELS: u32 = 5000;

/// How many objects are destroyed by each other's destruction before the next one has to wait.
const MAX_NESTED: u32 = 40;

/// An object whose destruction was put off.
struct Late {
    object: *mut PyObject,
    body: unsafe fn(*mut PyObject),
    /// Whether the collector knew it.
    tracked: bool,
}

thread_local! {
    /// How many operations drive each other.
    static LEVELS: Cell<u32> = const { Cell::new(0) };
    /// How many destructions are under way, each within the one before, and whether any was put off.
    static DYING: Cell<(u32, bool)> = const { Cell::new((0, false)) };
    static LATE: RefCell<Vec<Late>> = const { RefCell::new(Vec::new()) };
}

/// One operation that drives what it delegates to, which may be an operation that delegates, too, and so on. asyncio's
/// coroutines would be counted by the interpreter as any function is.
pub struct Level(());

impl Level {
    /// # Errors
    ///
    /// RecursionError if there are too many.
    pub fn enter(py: Python<'_>) -> PyResult<Self> {
        let levels = LEVELS.get();
        // SAFETY: the token says that the GIL is held.
        unsafe {
            if levels > 100 {
                let limit = u32::try_from(ffi::Py_GetRecursionLimit()).unwrap_or(MAX_LEVELS);
                if levels >= limit.min(MAX_LEVELS) {
                    let message = "maximum recursion depth exceeded in a coroutine";
                    return Err(PyRecursionError::new_err(message));
                }
            }
            room(c" in a coroutine")?;
            if ffi::Py_EnterRecursiveCall(c" in a coroutine".as_ptr()) != 0 {
                return Err(PyErr::fetch(py));
            }
        }
        LEVELS.set(levels + 1);
        Ok(Self(()))
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        LEVELS.set(LEVELS.get() - 1);
        // SAFETY: it was entered in this thread.
        unsafe { ffi::Py_LeaveRecursiveCall() }
    }
}

/// # Errors
///
/// RecursionError if this thread's stack has little room left for what is to be called; `place` says for what.
#[inline]
pub fn room(place: &CStr) -> PyResult<()> {
    if stack::is_low() {
        return Err(no_room(place));
    }
    Ok(())
}

#[cold]
fn no_room(place: &CStr) -> PyErr {
    let place = place.to_string_lossy();
    PyRecursionError::new_err(format!(
        "maximum recursion depth exceeded{place}: the thread's stack is nearly full"
    ))
}

/// Whether an object that dies now had better die later.
#[inline]
pub fn is_deep() -> bool {
    let (nested, _) = DYING.get();
    nested >= MAX_NESTED || (nested > 0 && stack::is_low())
}

/// Keeps an object until the outermost destruction is over, and destroys it then by `body`.
///
/// # Safety
///
/// Called from the object's dealloc slot, which returns afterwards, while [`is_deep`]; the object is in no list that
/// somebody could find it in. `body` is the rest of that slot.
#[cold]
pub unsafe fn put_off(object: *mut PyObject, body: unsafe fn(*mut PyObject)) {
    // SAFETY: passed on to the caller: nobody but us has the object any more.
    unsafe {
        let tracked = ffi::PyObject_GC_IsTracked(object) != 0;
        let late = Late {
            object,
            body,
            tracked,
        };
        ffi::PyObject_GC_UnTrack(object.cast());
        let kept = LATE.try_with(|all| all.borrow_mut().push(late)).is_ok();
        if kept {
            DYING.set((DYING.get().0, true));
            return;
        }
        // The thread has ended, as far as Rust is concerned: nobody would come back for it.
        if tracked {
            ffi::PyObject_GC_Track(object.cast());
        }
        body(object);
    }
}

/// Destroys an object within the destructions that are under way, and what was put off if it is the outermost one.
///
/// # Safety
///
/// Called from the object's dealloc slot; `body` is the rest of that.
#[inline]
pub unsafe fn nested(object: *mut PyObject, body: unsafe fn(*mut PyObject)) {
    let (before, _) = DYING.get();
    DYING.set((before + 1, DYING.get().1));
    // SAFETY: passed on to the caller.
    unsafe { body(object) };
    let (_, late) = DYING.get();
    if before == 0 && late {
        catch_up();
    }
    DYING.set((before, DYING.get().1));
}

/// Destroys what was put off; that may put off more.
#[cold]
fn catch_up() {
    while let Some(late) = LATE.try_with(|all| all.borrow_mut().pop()).ok().flatten() {
        // SAFETY: it was kept for this by `put_off`, whose caller vouches for the body; nothing is borrowed meanwhile.
        unsafe {
            if late.tracked {
                ffi::PyObject_GC_Track(late.object.cast());
            }
            (late.body)(late.object);
        }
    }
    DYING.set((DYING.get().0, false));
}
