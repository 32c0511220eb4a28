//! Where in the program something is made: the code of the frame that runs, and how far it has come.

use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;

/// Frames that are looked at before it is given up.
pub const DEPTH: usize = 8;

/// A place in a program.
pub struct Site<'py> {
    pub code: Bound<'py, PyAny>,
    /// As `frame.f_lasti`.
    pub instruction: i32,
}

/// The innermost frame of this thread whose code is not `passed` over; None: there is none near.
pub fn innermost<'py>(
    py: Python<'py>,
    mut passed: impl FnMut(&Bound<'py, PyAny>) -> bool,
) -> Option<Site<'py>> {
    #[cfg(Py_3_13)]
    if let Some(field) = super::frames::field(py) {
        for frame in super::frames::running(py, field).take(DEPTH) {
            let Some(code) = frame.code(py) else {
                continue;
            };
            if !passed(&code) {
                let instruction = frame.instruction();
                return Some(Site { code, instruction });
            }
        }
        return None;
    }
    // SAFETY: the frame that runs is borrowed from the thread's state, or null; every other reference is new.
    unsafe {
        let frame = ffi::PyEval_GetFrame();
        let mut frame: Bound<'py, PyAny> = Bound::from_borrowed_ptr_or_opt(py, frame.cast())?;
        for _ in 0..DEPTH {
            let raw = frame.as_ptr().cast::<ffi::PyFrameObject>();
            let code = Bound::from_owned_ptr_or_opt(py, ffi::PyFrame_GetCode(raw).cast())?;
            if !passed(&code) {
                let instruction = ffi::PyFrame_GetLasti(raw);
                return Some(Site { code, instruction });
            }
            frame = Bound::from_owned_ptr_or_opt(py, ffi::PyFrame_GetBack(raw).cast())?;
        }
        None
    }
}

/// The line of a place; 0: not known.
pub fn line(code: &Bound<'_, PyAny>, instruction: i32) -> u32 {
    // SAFETY: `innermost` returns codes.
    let line = unsafe { ffi::PyCode_Addr2Line(code.as_ptr().cast(), instruction) };
    u32::try_from(line).unwrap_or(0)
}

/// What a builtin or the wrapper of a task's step is bound to.
#[inline]
pub fn receiver<'py>(callable: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let object = callable.as_ptr();
    // SAFETY: a live object of the type that each branch asks for; what it is bound to is borrowed from it, or null.
    let found: *mut PyObject = unsafe {
        if ffi::PyCFunction_CheckExact(object) != 0 {
            // A step is `task_step`, `task_throw` or `task_wakeup`, asyncio's or ours; `task.cancel` is none.
            let definition = (*object.cast::<ffi::PyCFunctionObject>()).m_ml;
            let name = std::ffi::CStr::from_ptr((*definition).ml_name);
            if !name.to_bytes().starts_with(b"task_") {
                return None;
            }
            ffi::PyCFunction_GetSelf(object)
        } else if ffi::Py_TYPE(object) == &raw mut ffi::PyFunction_Type {
            // Most callbacks are.
            return None;
        } else if is_wrapper(&*ffi::Py_TYPE(object)) {
            return callable.getattr(intern!(callable.py(), "__self__")).ok();
        } else {
            return None;
        }
    };
    // SAFETY: as above.
    unsafe { Bound::from_borrowed_ptr_or_opt(callable.py(), found) }
}

/// Whether it is the class of what a task of asyncio's own is stepped by, which cannot be had by name.
fn is_wrapper(class: &ffi::PyTypeObject) -> bool {
    // SAFETY: a type's name is a string that lives as long as the type.
    let name = unsafe { std::ffi::CStr::from_ptr(class.tp_name) };
    name.to_bytes().ends_with(b"TaskStepMethWrapper")
}

/// Whether frames are found without objects in this interpreter (`frames`). Where they are not, places are the same and cost
/// more.
#[cfg(Py_3_13)]
#[pyfunction]
pub fn frames_are_found(py: Python<'_>) -> bool {
    super::frames::field(py).is_some()
}

/// As of 3.13 they may be.
#[cfg(not(Py_3_13))]
#[pyfunction]
pub fn frames_are_found() -> bool {
    false
}
