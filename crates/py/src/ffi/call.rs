//! Calls into Python on hot paths: vectorcall, inside a given context, without tuples.

use std::cell::OnceCell;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

use crate::event_loop::LoopCore;

/// A copy of the current context.
pub fn copy_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: returns a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }
}

/// Runs `f` inside a context.
pub fn in_context<'py, R>(
    context: &Bound<'py, PyAny>,
    f: impl FnOnce(Python<'py>) -> PyResult<R>,
) -> PyResult<R> {
    let py = context.py();
    // SAFETY: `context` is a context object; PyContext_Enter checks that and fails cleanly.
    if unsafe { ffi::PyContext_Enter(context.as_ptr()) } < 0 {
        return Err(PyErr::fetch(py));
    }
    let result = f(py);
    // SAFETY: entered above. No exception is set: `f` has turned it into its result.
    if unsafe { ffi::PyContext_Exit(context.as_ptr()) } < 0 {
        return Err(PyErr::fetch(py));
    }
    result
}

/// `object.name()`.
pub fn method0<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    let arguments = [object.as_ptr()];
    // SAFETY: `arguments` holds one borrowed reference that outlives the call.
    unsafe {
        Bound::from_owned_ptr_or_err(
            object.py(),
            ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                arguments.as_ptr(),
                1,
                std::ptr::null_mut(),
            ),
        )
    }
}

/// `object.name(argument)`.
#[inline]
pub fn method1<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let arguments = [object.as_ptr(), argument.as_ptr()];
    // SAFETY: `arguments` holds two borrowed references that outlive the call.
    unsafe {
        Bound::from_owned_ptr_or_err(
            object.py(),
            ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                arguments.as_ptr(),
                2,
                std::ptr::null_mut(),
            ),
        )
    }
}

/// `object.name(*arguments)`, for up to six arguments.
#[inline]
pub fn method<'py, const N: usize>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    arguments: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    const { assert!(N <= 6, "six arguments fit") };
    let mut array = [std::ptr::null_mut(); 7];
    array[0] = object.as_ptr();
    for (slot, argument) in array[1..].iter_mut().zip(arguments) {
        *slot = argument.as_ptr();
    }
    // SAFETY: the array holds borrowed references that outlive the call.
    unsafe {
        Bound::from_owned_ptr_or_err(
            object.py(),
            ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                array.as_ptr(),
                N + 1,
                std::ptr::null_mut(),
            ),
        )
    }
}

/// `event_loop.name(*arguments)`; on a loop of ours in a context of this thread that is there for nothing else.
///
/// For callbacks that only touch futures and tasks, whose own callbacks bring their contexts along: a
/// copy of the current context for each of them would be the larger part of their cost.
pub fn schedule<'py, const N: usize>(
    event_loop: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    arguments: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    const { assert!(N <= 5, "five arguments and the context fit") };
    thread_local! {
        // Of this thread, since a context can only be entered once at a time.
        static CONTEXT: OnceCell<Py<PyAny>> = const { OnceCell::new() };
    }
    static KEYWORDS: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let py = event_loop.py();
    if event_loop.cast::<LoopCore>().is_err() {
        // Any other loop may not know the keyword here, and asyncio does not use it either.
        return method(event_loop, name, arguments);
    }
    let keywords = KEYWORDS.get_or_try_init(py, || -> PyResult<Py<PyTuple>> {
        Ok(PyTuple::new(py, ["context"])?.unbind())
    })?;
    let context = CONTEXT.with(|context| -> PyResult<Bound<'py, PyAny>> {
        if let Some(context) = context.get() {
            return Ok(context.bind(py).clone());
        }
        // SAFETY: returns a new reference, or null with an exception set.
        let new = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_New())? };
        Ok(context.get_or_init(|| new.unbind()).bind(py).clone())
    })?;
    let mut array = [std::ptr::null_mut(); 7];
    array[0] = event_loop.as_ptr();
    for (slot, argument) in array[1..].iter_mut().zip(arguments) {
        *slot = argument.as_ptr();
    }
    array[N + 1] = context.as_ptr();
    // SAFETY: the array holds borrowed references that outlive the call; the last one is the keyword's.
    unsafe {
        Bound::from_owned_ptr_or_err(
            py,
            ffi::PyObject_VectorcallMethod(name.as_ptr(), array.as_ptr(), N + 1, keywords.as_ptr()),
        )
    }
}

/// A builtin function of one argument, with an object as what it is bound to.
///
/// The definition is that of a METH_O function.
pub fn bound_function<'py>(
    definition: &'static Definition,
    bound_to: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let pointer = std::ptr::from_ref(&definition.0).cast_mut();
    // SAFETY: the definition is static and never written to; the object is alive.
    unsafe {
        Bound::from_owned_ptr_or_err(
            bound_to.py(),
            ffi::PyCFunction_NewEx(pointer, bound_to.as_ptr(), std::ptr::null_mut()),
        )
    }
}

/// What a builtin function is made of.
pub struct Definition(ffi::PyMethodDef);

// SAFETY: definitions are constant; CPython only reads them.
unsafe impl Sync for Definition {}

/// The body of a builtin function of one argument that is bound to a `Receiver`.
pub trait Callback {
    type Receiver: pyo3::PyClass;

    fn call<'py>(
        receiver: &Bound<'py, Self::Receiver>,
        argument: &Bound<'py, PyAny>,
    ) -> PyResult<()>;
}

impl Definition {
    pub const fn of<C: Callback>(name: &'static std::ffi::CStr) -> Self {
        Self(ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer {
                PyCFunction: callback::<C>,
            },
            ml_flags: ffi::METH_O,
            ml_doc: std::ptr::null(),
        })
    }
}

unsafe extern "C" fn callback<C: Callback>(
    object: *mut ffi::PyObject,
    argument: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with live objects; the class of the first one is checked.
    unsafe {
        super::guard(|py| {
            let receiver = Bound::from_borrowed_ptr(py, object);
            let argument = Bound::from_borrowed_ptr(py, argument);
            C::call(receiver.cast::<C::Receiver>()?, &argument)?;
            Ok(py.None().into_bound(py))
        })
    }
}

/// Drops an exception that was dealt with, now. Outside of PyO3's own calls it would otherwise keep
/// its dead until somebody makes one.
pub fn discard(py: Python<'_>, error: PyErr) {
    drop(error.into_value(py).into_bound(py));
}

/// Runs `f`, which may call Python, while an exception may be under way: in the destruction of an object.
pub fn undisturbed<R>(_py: Python<'_>, f: impl FnOnce() -> R) -> R {
    // SAFETY: the GIL is held, as the token shows; what is set aside is put back.
    unsafe {
        let under_way = set_aside();
        let result = f();
        put_back(under_way);
        result
    }
}

/// Whether an object is a coroutine of the interpreter's own.
pub fn is_exact_coroutine(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object.
    unsafe { ffi::PyCoro_CheckExact(object.as_ptr()) != 0 }
}

/// Whether a reference is the only one to its object.
pub fn is_only_reference(_py: Python<'_>, object: &Py<PyAny>) -> bool {
    // SAFETY: a live object, and the GIL is held.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) == 1 }
}

/// Delivers pending signals to their Python handlers, if this is the thread that runs them.
pub fn check_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}

/// What asyncio says of a loop that is closed.
pub fn closed_error() -> PyErr {
    PyRuntimeError::new_err("Event loop is closed")
}

/// Takes the exception that is set, with its traceback.
pub fn take_raised(py: Python<'_>) -> Bound<'_, PyAny> {
    // SAFETY: an exception is set, as callers have made sure; the references are owned.
    unsafe {
        #[cfg(Py_3_12)]
        return Bound::from_owned_ptr(py, ffi::PyErr_GetRaisedException());
        #[cfg(not(Py_3_12))]
        {
            let (mut class, mut value, mut traceback) = (
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            );
            ffi::PyErr_Fetch(&mut class, &mut value, &mut traceback);
            ffi::PyErr_NormalizeException(&mut class, &mut value, &mut traceback);
            if !traceback.is_null() {
                ffi::PyException_SetTraceback(value, traceback);
            }
            ffi::Py_XDECREF(class);
            ffi::Py_XDECREF(traceback);
            Bound::from_owned_ptr(py, value)
        }
    }
}

/// An exception that was under way, put aside while other code runs.
#[cfg(Py_3_12)]
pub type Aside = *mut ffi::PyObject;
#[cfg(not(Py_3_12))]
pub type Aside = [*mut ffi::PyObject; 3];

/// Takes the exception that is set, if any, so that other code can run.
///
/// # Safety
///
/// The GIL is held, and what is returned is put back.
pub unsafe fn set_aside() -> Aside {
    // SAFETY: passed on to the caller.
    unsafe {
        #[cfg(Py_3_12)]
        return ffi::PyErr_GetRaisedException();
        #[cfg(not(Py_3_12))]
        {
            let mut aside = [std::ptr::null_mut(); 3];
            let [class, value, traceback] = &mut aside;
            ffi::PyErr_Fetch(class, value, traceback);
            aside
        }
    }
}

/// Sets an exception again that was set aside.
///
/// # Safety
///
/// The GIL is held; `aside` comes from [`set_aside`] and is put back once.
pub unsafe fn put_back(aside: Aside) {
    // SAFETY: passed on to the caller.
    unsafe {
        #[cfg(Py_3_12)]
        ffi::PyErr_SetRaisedException(aside);
        #[cfg(not(Py_3_12))]
        {
            let [class, value, traceback] = aside;
            ffi::PyErr_Restore(class, value, traceback);
        }
    }
}
