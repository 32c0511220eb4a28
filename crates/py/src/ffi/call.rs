//! Calls into Python on hot paths: vectorcall, inside a given context, without tuples.

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

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

/// `object.name(a, b, c, d)`.
#[inline]
pub fn method4<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    arguments: [&Bound<'py, PyAny>; 4],
) -> PyResult<Bound<'py, PyAny>> {
    let [a, b, c, d] = arguments.map(Bound::as_ptr);
    let arguments = [object.as_ptr(), a, b, c, d];
    // SAFETY: `arguments` holds borrowed references that outlive the call.
    unsafe {
        Bound::from_owned_ptr_or_err(
            object.py(),
            ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                arguments.as_ptr(),
                arguments.len(),
                std::ptr::null_mut(),
            ),
        )
    }
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
