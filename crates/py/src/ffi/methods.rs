//! The loop's hot methods, as METH_FASTCALL functions on the PyO3 class.
//!
//! PyO3 would collect `*args` in a tuple and keywords in a dictionary, which costs as much as all the
//! rest of `call_soon`. These functions take the interpreter's argument array as it is. They are put
//! on the class as method descriptors, which check the type of `self` before the function runs.

use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{self, PyObject, Py_ssize_t};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple, PyType};
use pyo3::intern;

use super::{call, guard, handle};
use crate::event_loop::{LoopCore, When};

/// Puts the methods on the class.
pub fn install(class: &Bound<'_, PyType>) -> PyResult<()> {
    for definition in &METHODS.0 {
        // SAFETY: the definition is static; the class is a live type.
        let descriptor = unsafe {
            let pointer = std::ptr::from_ref(definition).cast_mut();
            Bound::from_owned_ptr_or_err(
                class.py(),
                ffi::PyDescr_NewMethod(class.as_ptr().cast(), pointer),
            )?
        };
        let name: Bound<'_, PyAny> = descriptor.getattr(intern!(class.py(), "__name__"))?;
        class.setattr(name.cast::<PyString>()?, descriptor)?;
    }
    Ok(())
}

type FastCall = unsafe extern "C" fn(
    *mut PyObject,
    *const *mut PyObject,
    Py_ssize_t,
    *mut PyObject,
) -> *mut PyObject;

const fn method(
    name: &'static std::ffi::CStr,
    function: FastCall,
    doc: &'static std::ffi::CStr,
) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFastWithKeywords: function,
        },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: doc.as_ptr(),
    }
}

struct Table([ffi::PyMethodDef; 4]);

// SAFETY: the table is constant; CPython only reads it.
unsafe impl Sync for Table {}

static METHODS: Table = Table([
    method(
        c"call_soon",
        call_soon,
        c"call_soon($self, callback, /, *args, context=None)\n--\n\n\
          Run callback(*args) in the next turn of the loop, after what is scheduled already.\n\n\
          context: the contextvars.Context to run in; a copy of the current one by default.\n\
          Returns a Handle, by which the call can be cancelled.\n\
          Raises RuntimeError if the loop is closed. Not thread-safe.",
    ),
    method(
        c"call_soon_threadsafe",
        call_soon_threadsafe,
        c"call_soon_threadsafe($self, callback, /, *args, context=None)\n--\n\n\
          Like call_soon(), from any thread and from signal handlers; wakes the loop if it sleeps.",
    ),
    method(
        c"call_later",
        call_later,
        c"call_later($self, delay, callback, /, *args, context=None)\n--\n\n\
          Run callback(*args) once delay seconds have passed, never earlier.\n\n\
          Calls with the same deadline run in the order in which they were scheduled.\n\
          Returns a TimerHandle. Raises RuntimeError if the loop is closed. Not thread-safe.",
    ),
    method(
        c"call_at",
        call_at,
        c"call_at($self, when, callback, /, *args, context=None)\n--\n\n\
          Run callback(*args) once loop.time() has reached when, never earlier.\n\n\
          Returns a TimerHandle. Raises RuntimeError if the loop is closed. Not thread-safe.",
    ),
]);

/// The arguments of one call, borrowed from the interpreter's array.
struct Arguments<'a, 'py> {
    /// A leading number of seconds, for the timers.
    time: Option<Bound<'py, PyAny>>,
    callback: Bound<'py, PyAny>,
    rest: &'a [*mut PyObject],
    context: Option<Bound<'py, PyAny>>,
}

/// Splits the interpreter's argument array.
///
/// # Safety
///
/// `array`, `count` and `names` are those of a METH_FASTCALL | METH_KEYWORDS call under way.
#[inline]
unsafe fn parse<'a, 'py>(
    py: Python<'py>,
    name: &str,
    time_name: Option<&str>,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> PyResult<Arguments<'a, 'py>> {
    let positional: &[*mut PyObject] = if count == 0 {
        &[]
    } else {
        // SAFETY: the interpreter passes `count` positional arguments, alive during the call.
        unsafe { std::slice::from_raw_parts(array, count as usize) }
    };
    let mut time = None;
    let mut callback = None;
    let mut context = None;
    if !names.is_null() {
        // SAFETY: a tuple of str whose values follow the positional arguments.
        let names = unsafe { Bound::from_borrowed_ptr(py, names).cast_into_unchecked::<PyTuple>() };
        for (index, keyword) in names.iter().enumerate() {
            // SAFETY: as above.
            let value =
                unsafe { Bound::from_borrowed_ptr(py, *array.add(count as usize + index)) };
            let keyword = keyword.cast_into::<PyString>()?;
            let slot = match keyword.to_str()? {
                "context" => &mut context,
                "callback" => &mut callback,
                other if Some(other) == time_name => &mut time,
                other => {
                    return Err(PyTypeError::new_err(format!(
                        "{name}() got an unexpected keyword argument '{other}'"
                    )));
                }
            };
            *slot = Some(value);
        }
    }
    let mut rest = positional;
    if let Some(time_name) = time_name
        && time.is_none()
    {
        let (&first, others) = rest.split_first().ok_or_else(|| missing(name, time_name))?;
        // SAFETY: a live argument.
        time = Some(unsafe { Bound::from_borrowed_ptr(py, first) });
        rest = others;
    }
    let callback = match callback {
        Some(callback) => callback,
        None => {
            let (&first, others) = rest.split_first().ok_or_else(|| missing(name, "callback"))?;
            rest = others;
            // SAFETY: a live argument.
            unsafe { Bound::from_borrowed_ptr(py, first) }
        }
    };
    Ok(Arguments {
        time,
        callback,
        rest,
        context: context.filter(|context| !context.is_none()),
    })
}

#[cold]
fn missing(name: &str, argument: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "{name}() missing 1 required positional argument: '{argument}'"
    ))
}

/// Borrows `self`, which the method descriptor has checked.
///
/// # Safety
///
/// `object` is an instance of LoopCore, alive during the call.
#[inline]
unsafe fn receiver<'py>(py: Python<'py>, object: *mut PyObject) -> Bound<'py, LoopCore> {
    // SAFETY: passed on to the caller.
    unsafe { Bound::from_borrowed_ptr(py, object).cast_into_unchecked() }
}

/// Makes the handle of one call and hands it to the loop.
fn schedule<'py>(
    core: &Bound<'py, LoopCore>,
    name: &str,
    when: Option<When>,
    arguments: Arguments<'_, 'py>,
    thread_safe: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = core.py();
    let state = core.get();
    if state.is_closed() {
        return Err(call::closed_error());
    }
    let source_traceback = if state.debug() {
        let name = PyString::new(py, name);
        let checks = (&arguments.callback, name, thread_safe);
        Some(core.call_method1(intern!(py, "_check_scheduling"), checks)?)
    } else {
        None
    };
    let context = match arguments.context {
        Some(context) => context,
        None => call::copy_context(py)?,
    };
    let handle = handle::new(
        py,
        handle::Spec {
            callback: &arguments.callback,
            args: arguments.rest,
            owner: core.as_any(),
            context,
            source_traceback,
            when: when.map(|when| when.seconds),
            persistent: false,
            track: !state.is_running(),
        },
    )?;
    match when {
        None => state.push_ready(py, handle.clone().unbind()),
        Some(when) => state.push_timer(py, when, handle.clone().unbind()),
    }
    if thread_safe {
        state.wake(py)?;
    }
    Ok(handle)
}

unsafe extern "C" fn call_soon(
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by the interpreter as a fast method of LoopCore.
    unsafe {
        guard(|py| {
            let arguments = parse(py, "call_soon", None, array, count, names)?;
            schedule(&receiver(py, object), "call_soon", None, arguments, false)
        })
    }
}

unsafe extern "C" fn call_soon_threadsafe(
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    const NAME: &str = "call_soon_threadsafe";
    // SAFETY: called by the interpreter as a fast method of LoopCore.
    unsafe {
        guard(|py| {
            let arguments = parse(py, NAME, None, array, count, names)?;
            schedule(&receiver(py, object), NAME, None, arguments, true)
        })
    }
}

unsafe extern "C" fn call_later(
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by the interpreter as a fast method of LoopCore.
    unsafe {
        guard(|py| {
            let arguments = parse(py, "call_later", Some("delay"), array, count, names)?;
            let core = receiver(py, object);
            let delay = seconds(&arguments, "delay must not be None")?;
            let when = When::after(&core, delay)?;
            schedule(&core, "call_later", Some(when), arguments, false)
        })
    }
}

unsafe extern "C" fn call_at(
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by the interpreter as a fast method of LoopCore.
    unsafe {
        guard(|py| {
            let arguments = parse(py, "call_at", Some("when"), array, count, names)?;
            let when = When::at(seconds(&arguments, "when cannot be None")?);
            schedule(&receiver(py, object), "call_at", Some(when), arguments, false)
        })
    }
}

/// The leading number of seconds.
fn seconds(arguments: &Arguments<'_, '_>, if_none: &'static str) -> PyResult<f64> {
    match &arguments.time {
        Some(time) if !time.is_none() => time.extract(),
        _ => Err(PyTypeError::new_err(if_none)),
    }
}
