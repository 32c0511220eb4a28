//! What stands behind something that runs: the code of a coroutine or a function, by which it is known again.

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCode, PyString, PyType};

use super::layout::TaskObject;

libpython! {
    fn PyMethod_Function(method: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

/// What a task, or a callback, is known by: the same object for all that run the same code. It need not be a code object.
pub struct Origin<'py>(Bound<'py, PyAny>);

impl<'py> Origin<'py> {
    /// Stays the same as long as somebody owns the object.
    #[inline(always)]
    pub fn key(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// The first line of a code.
    pub fn line(&self) -> Option<u32> {
        let line = self.0.getattr(intern!(self.0.py(), "co_firstlineno"));
        line.ok()?.extract().ok()
    }

    pub fn keep(self) -> Py<PyAny> {
        self.0.unbind()
    }

    pub fn into_bound(self) -> Bound<'py, PyAny> {
        self.0
    }
}

/// The qualified name, of which there is one object for all that are equal, or else the type.
fn by_name<'py>(object: &Bound<'py, PyAny>) -> Origin<'py> {
    let py = object.py();
    let name = object.getattr(intern!(py, "__qualname__"));
    match name.as_ref().map(|name| name.extract::<&str>()) {
        Ok(Ok(name)) => Origin(PyString::intern(py, name).into_any()),
        _ => Origin(object.get_type().into_any()),
    }
}

/// The coroutine function's code, or else the name or type of what a task of ours runs; None: it runs nothing any more.
#[inline]
pub fn of_task<'py>(task: &Bound<'py, PyAny>) -> Option<Origin<'py>> {
    let py = task.py();
    // SAFETY: entries of the ring that are steps are tasks of ours, whose fields are laid out as verified; the
    // coroutine is null or owned by the task.
    let coro = unsafe {
        let coro = (*task.as_ptr().cast::<TaskObject>()).coro;
        Bound::from_borrowed_ptr_or_opt(py, coro)?
    };
    if let Some(code) = code_of_coroutine(&coro) {
        return Some(code);
    }
    match coro.getattr(intern!(py, "gi_code")) {
        Ok(code) if code.is_instance_of::<PyCode>() => Some(Origin(code)),
        _ => Some(by_name(&coro)),
    }
}

/// The code of a coroutine of exactly the interpreter's type, or what else its class calls so.
///
/// Since 3.12 a function tells it, which takes coroutines as well: their fields are those of generators.
#[cfg(all(Py_3_12, not(py_sys_config = "Py_DEBUG")))]
#[inline]
pub fn code_of_coroutine<'py>(coro: &Bound<'py, PyAny>) -> Option<Origin<'py>> {
    libpython! {
        fn PyGen_GetCode(generator: *mut ffi::PyObject) -> *mut ffi::PyObject;
    }
    // SAFETY: exactly a coroutine, whose head is that of a generator (_PyGenObject_HEAD), which is all that the function
    // reads; its check of the type is an assertion of debug builds. The reference is new.
    unsafe {
        if ffi::Py_TYPE(coro.as_ptr()) != &raw mut ffi::PyCoro_Type {
            return None;
        }
        Bound::from_owned_ptr_or_opt(coro.py(), PyGen_GetCode(coro.as_ptr())).map(Origin)
    }
}

#[cfg(not(all(Py_3_12, not(py_sys_config = "Py_DEBUG"))))]
pub fn code_of_coroutine<'py>(coro: &Bound<'py, PyAny>) -> Option<Origin<'py>> {
    coro.getattr(pyo3::intern!(coro.py(), "cr_code"))
        .ok()
        .map(Origin)
}

/// What tells a method of a builtin apart without its name, which the interpreter makes anew for whoever asks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method {
    definition: usize,
    name: usize,
    class: usize,
}

impl Method {
    /// For tables: where it may be found.
    #[inline(always)]
    pub fn spread(self) -> usize {
        (self.definition >> 3) ^ (self.class >> 5)
    }
}

/// Of a builtin that is bound to an object, with that object's class, which has to be kept for the method to stay the same.
///
/// The name of such a builtin is that of the class and its own. That of one bound to a class or a module is made otherwise; so
/// these, and those of other types, are not told.
#[inline]
pub fn method_of_builtin<'py>(
    callable: &Bound<'py, PyAny>,
) -> Option<(Method, Bound<'py, PyType>)> {
    let object = callable.as_ptr();
    // SAFETY: exactly a builtin, which has a definition for as long as it lives; what it is bound to is borrowed from it, or
    // null. None of it is read later, but compared.
    let (method, receiver) = unsafe {
        if ffi::PyCFunction_CheckExact(object) == 0 {
            return None;
        }
        let definition = (*object.cast::<ffi::PyCFunctionObject>()).m_ml;
        let receiver = ffi::PyCFunction_GetSelf(object);
        let receiver = Bound::from_borrowed_ptr_or_opt(callable.py(), receiver)?;
        if ffi::PyType_Check(receiver.as_ptr()) != 0 || ffi::PyModule_Check(receiver.as_ptr()) != 0
        {
            return None;
        }
        let method = Method {
            definition: definition as usize,
            name: (*definition).ml_name as usize,
            class: 0,
        };
        (method, receiver)
    };
    let class = receiver.get_type();
    let address = class.as_ptr() as usize;
    Some((
        Method {
            class: address,
            ..method
        },
        class,
    ))
}

/// What a `functools.partial` calls; None: it is none.
#[inline]
pub fn in_partial<'py>(callable: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    static PARTIAL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = callable.py();
    let partial = PARTIAL.import(py, "functools", "partial").ok()?;
    match callable.get_type_ptr() == partial.as_type_ptr() {
        true => callable.getattr(intern!(py, "func")).ok(),
        false => None,
    }
}

/// The code of a function or a bound method, or else the name or type of the callable.
#[inline]
pub fn of_callable<'py>(callable: &Bound<'py, PyAny>) -> Origin<'py> {
    static METHOD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = callable.py();
    let method = METHOD
        .import(py, "types", "MethodType")
        .map_or(std::ptr::null_mut(), |method| method.as_ptr());
    // SAFETY: types are asked before fields are read; what is read is borrowed from a live object.
    unsafe {
        let mut object = callable.as_ptr();
        if ffi::Py_TYPE(object).cast() == method {
            object = PyMethod_Function(object);
        }
        if ffi::Py_TYPE(object) == &raw mut ffi::PyFunction_Type {
            let code = ffi::PyFunction_GetCode(object);
            if let Some(code) = Bound::from_borrowed_ptr_or_opt(py, code) {
                return Origin(code);
            }
        }
    }
    by_name(callable)
}
