//! The interpreter's own frames, which have no objects until somebody asks for one.
//!
//! `PyEval_GetFrame` makes an object of a frame, and destroying it with the frame costs as much again; done for each
//! task that is made, that is a tenth of the task. From 3.13 on the innermost frame is a field of the thread's state,
//! whose place is found once per process and relied on only if everything agrees ([`find`]): in two functions, of which one calls the
//! other, the field has to be what the object of each frame refers to, and the frame before the second has to be the first.
//! Where anything differs there is no field, and objects are made.
//!
//! A frame is looked at in the thread that runs it, by a call that it has made, so it does not move or end meanwhile.
#![cfg(Py_3_13)]

use std::ptr;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

libpython! {
    fn PyUnstable_InterpreterFrame_GetCode(frame: *mut Raw) -> *mut PyObject;
    fn PyUnstable_InterpreterFrame_GetLasti(frame: *mut Raw) -> std::os::raw::c_int;
}

/// The first fields of `_PyInterpreterFrame`.
#[repr(C)]
pub(super) struct Raw {
    executable: usize,
    pub(super) previous: *mut Raw,
}

impl Raw {
    /// Whether it is one of the interpreter's own, between C and Python, which runs no code.
    pub(super) fn is_between(&self) -> bool {
        let address = self.executable & !TAGS;
        // SAFETY: an address that is only compared.
        address == 0 || address == unsafe { ffi::Py_None() } as usize
    }
}

/// The first fields of a frame's object.
#[repr(C)]
struct Object {
    head: PyObject,
    back: *mut PyObject,
    frame: *mut Raw,
}

/// Bits of a reference in a frame that are none of the address.
const TAGS: usize = 7;

/// How far into the thread's state the field is looked for, in words: it is among the first dozen.
const REACH: usize = 32;

/// A frame of this thread.
pub struct Frame(*mut Raw);

impl Frame {
    /// The address of what it runs, a code mostly; 0: nothing. Nothing is owned by asking.
    #[inline(always)]
    pub fn address(&self) -> usize {
        // SAFETY: a frame that runs.
        unsafe { (*self.0).executable & !TAGS }
    }

    /// Its code; None: it is one of the interpreter's own, between C and Python.
    #[inline]
    pub fn code<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        // SAFETY: a frame that runs. Its executable is an object, which may be tagged, or nothing at the bottom of a stack;
        // the result is a new reference.
        unsafe {
            if self.address() == 0 {
                return None;
            }
            let code =
                Bound::from_owned_ptr_or_opt(py, PyUnstable_InterpreterFrame_GetCode(self.0))?;
            (ffi::PyCode_Check(code.as_ptr()) != 0).then_some(code)
        }
    }

    /// As `frame.f_lasti`.
    #[inline]
    pub fn instruction(&self) -> i32 {
        // SAFETY: a frame that runs a code.
        unsafe { PyUnstable_InterpreterFrame_GetLasti(self.0) }
    }
}

/// The frames of this thread, the innermost first.
#[inline]
pub fn running(_py: Python<'_>, field: usize) -> impl Iterator<Item = Frame> {
    // SAFETY: the GIL is held, so this thread has a state, and `find` has found that the field has the frame.
    let mut next = unsafe { *ffi::PyThreadState_Get().cast::<*mut Raw>().add(field) };
    std::iter::from_fn(move || {
        let frame = ptr::NonNull::new(next)?;
        // SAFETY: a frame that runs.
        next = unsafe { frame.as_ref().previous };
        Some(Frame(frame.as_ptr()))
    })
}

/// In which word of a thread's state its innermost frame is; None: not known.
#[inline]
pub fn field(py: Python<'_>) -> Option<usize> {
    static FIELD: PyOnceLock<Option<usize>> = PyOnceLock::new();
    *FIELD.get_or_init(py, || find(py).unwrap_or(None))
}

const PROBE: &std::ffi::CStr = c"
def outer(look):
    first = look()
    return first, inner(look), look()
def inner(look):
    return look()
";

/// What is to be compared: the words of the state that have the frame, the frame, the ones before it by either account, and
/// whether it has its code where that is looked for.
type Look = (Vec<usize>, usize, usize, usize, bool);

/// Compares the words of this thread's state with the frame that has called this. Nothing is followed but what the frame's
/// object refers to, which is one by its type.
fn look(py: Python<'_>) -> PyResult<Look> {
    // SAFETY: the frame is borrowed from the thread's state; what is before it is a new reference. The state is
    // larger than what is read of it.
    unsafe {
        let frame = ffi::PyEval_GetFrame();
        if frame.is_null() || size_of::<*mut PyObject>() != 8 {
            return Ok((Vec::new(), 0, 0, 0, false));
        }
        let back = Bound::from_owned_ptr_or_opt(py, ffi::PyFrame_GetBack(frame).cast());
        let raw = (*frame.cast::<Object>()).frame;
        let state = ffi::PyThreadState_Get().cast::<*mut Raw>();
        let words = (0..REACH).filter(|&index| ptr::read_volatile(state.add(index)) == raw);
        let before = back.map_or(ptr::null_mut(), |back| {
            (*back.as_ptr().cast::<Object>()).frame
        });
        let code = Bound::from_owned_ptr(py, ffi::PyFrame_GetCode(frame).cast());
        Ok((
            words.collect(),
            raw as usize,
            (*raw).previous as usize,
            before as usize,
            Frame(raw).address() == code.as_ptr() as usize,
        ))
    }
}

fn find(py: Python<'_>) -> PyResult<Option<usize>> {
    let names = PyDict::new(py);
    py.run(PROBE, Some(&names), None)?;
    let function = PyCFunction::new_closure(py, None, None, |args: &Bound<'_, PyTuple>, _| {
        look(args.py())
    })?;
    let found = names.as_any().get_item("outer")?.call1((function,))?;
    let (outer, inner, again): (Look, Look, Look) = found.extract()?;
    // The call of the one by the other is the interpreter's, with nothing in between.
    if !(outer.4 && inner.4 && again.4) {
        return Ok(None);
    }
    if inner.2 != outer.1 || inner.3 != outer.1 || outer.1 == inner.1 || again.1 != outer.1 {
        return Ok(None);
    }
    let mut common = outer
        .0
        .iter()
        .filter(|word| inner.0.contains(word) && again.0.contains(word));
    Ok(match (common.next(), common.next()) {
        (Some(&word), None) => Some(word),
        _ => None,
    })
}
