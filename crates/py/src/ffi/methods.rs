//! The loop's hot methods, as METH_FASTCALL functions on the PyO3 class.
//!
//! PyO3 would collect `*args` in a tuple and keywords in a dictionary, which costs as much as all the
//! rest of `call_soon`. These functions take the interpreter's argument array as it is. They are put
//! on the class as method descriptors, which check the type of `self` before the function runs.

use pyo3::Borrowed;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple, PyType};

use super::classes::classes;
use super::handle::{self, Call};
use super::native::{self, Native};
use super::task::{self, WakeCall};
use super::{call, depth, future, guard, handed, snapshot};
use crate::event_loop::{LoopCore, When, seconds_of};
use crate::loop_clock::LoopClock;
use crate::observe::tasks;

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

/// A METH_FASTCALL | METH_KEYWORDS function.
pub(super) type FastCall = unsafe extern "C" fn(
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

struct Table([ffi::PyMethodDef; 7]);

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
    method(
        c"create_task",
        create_task,
        c"create_task($self, coro, /, **kwargs)\n--\n\n\
          Schedule a coroutine as a Task and return it. Keep a reference: the loop does not.\n\n\
          kwargs: name and context, and whatever else the task factory takes.\n\
          Raises RuntimeError if the loop is closed.",
    ),
    method(
        c"create_future",
        create_future,
        c"create_future($self, /)\n--\n\nCreate a Future that belongs to this loop.",
    ),
    ffi::PyMethodDef {
        ml_name: c"time".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunction: time },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: c"time($self, /)\n--\n\n\
            The time of the loop's clock, in seconds: that of time.monotonic(), unless the clock is virtual."
            .as_ptr(),
    },
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
            let value = unsafe { Bound::from_borrowed_ptr(py, *array.add(count as usize + index)) };
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
            let (&first, others) = rest
                .split_first()
                .ok_or_else(|| missing(name, "callback"))?;
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

/// `call_soon(callback, *args)` and `call_soon(callback, *args, context=context)` on a running loop:
/// what every task step and wake-up of asyncio sends. None: anything else, which takes [`parse`] and
/// [`schedule`].
///
/// # Safety
///
/// The arguments are those of a METH_FASTCALL | METH_KEYWORDS call of a LoopCore method under way.
#[inline(always)]
unsafe fn call_soon_fast<'py>(
    py: Python<'py>,
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: as above; `names` is a tuple whose values follow the positional arguments.
    unsafe {
        let core = Borrowed::<PyAny>::from_ptr(py, object).cast_unchecked::<LoopCore>();
        let state = core.get();
        if count < 1 || !state.is_running() || state.debug() {
            return Ok(None);
        }
        let types = handle::types(py)?;
        let mut context = ffi::Py_None();
        if !names.is_null() {
            let known = state.queue(py, |queue| {
                queue.context_names.as_ref().map(|names| names.as_ptr())
            });
            if known != Some(names) {
                if ffi::PyTuple_GET_SIZE(names) != 1
                    || !is_context(py, ffi::PyTuple_GET_ITEM(names, 0))
                {
                    return Ok(None);
                }
                let names = Bound::from_borrowed_ptr(py, names).unbind();
                drop(state.queue(py, |queue| queue.context_names.replace(names)));
            }
            context = *array.add(count as usize);
            if native::ready(py).is_some_and(|native| *array == native.wake.as_ptr()) {
                return Ok(None);
            }
        }
        let (context, shared) = if context == ffi::Py_None() {
            snapshot::share(state, py, |queue| queue.ready.len())?
        } else {
            (Bound::from_borrowed_ptr(py, context), false)
        };
        let handle = plain_handle(&core, types, array, count, (context, shared))?;
        state.push_ready(py, handle.clone().unbind());
        Ok(Some(handle))
    }
}

/// The handle of a call on a running loop.
///
/// # Safety
///
/// `array` holds the callback and its arguments, `count` live objects.
#[inline(always)]
unsafe fn plain_handle<'py>(
    core: &Bound<'py, LoopCore>,
    types: &handle::Types,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    (context, shared): (Bound<'py, PyAny>, bool),
) -> PyResult<Bound<'py, PyAny>> {
    let py = core.py();
    let used = core.get().queue(py, |queue| queue.spare_handle(types));
    // SAFETY: passed on to the caller; what the queue keeps of handles is a handle.
    unsafe {
        let call = Call {
            callback: *array,
            args: std::slice::from_raw_parts(array.add(1), count as usize - 1),
            owner: core.as_ptr(),
            context,
            shared,
            when: None,
        };
        handle::reuse_or_new(py, used, call)
    }
}

/// `call_soon_threadsafe(callback, *args)` on a running loop. None: anything else.
///
/// # Safety
///
/// As [`call_soon_fast`].
#[inline(always)]
unsafe fn hand_over<'py>(
    py: Python<'py>,
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: as above.
    unsafe {
        let core = Borrowed::<PyAny>::from_ptr(py, object).cast_unchecked::<LoopCore>();
        let state = core.get();
        if count < 1 || !names.is_null() || !state.is_running() || state.debug() {
            return Ok(None);
        }
        let types = handle::types(py)?;
        let (context, shared) = snapshot::share_always(state, py)?;
        let handle = plain_handle(&core, types, array, count, (context, shared))?;
        handle::make_thread_safe(&handle)?;
        handed::push(state, &handle, shared);
        state.wake(py)?;
        Ok(Some(handle))
    }
}

/// `call_later(seconds, callback, *args)` and `call_at(seconds, ...)` on a running loop, as sleep() and timeout()
/// call them. None: anything else.
///
/// # Safety
///
/// As [`call_soon_fast`].
#[inline(always)]
unsafe fn timer_fast<'py>(
    py: Python<'py>,
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
    when: impl FnOnce(&LoopClock, f64) -> When,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: passed on to the caller.
    unsafe {
        let core = Borrowed::<PyAny>::from_ptr(py, object).cast_unchecked::<LoopCore>();
        let state = core.get();
        if count < 2 || !names.is_null() || !state.is_running() || state.debug() {
            return Ok(None);
        }
        let delay = if ffi::PyFloat_CheckExact(*array) != 0 {
            ffi::PyFloat_AS_DOUBLE(*array)
        } else if ffi::PyLong_CheckExact(*array) != 0 {
            let delay = ffi::PyLong_AsDouble(*array);
            if delay == -1.0 && !ffi::PyErr_Occurred().is_null() {
                return Err(PyErr::fetch(py));
            }
            delay
        } else {
            return Ok(None);
        };
        let callback = *array.add(1);
        let args = std::slice::from_raw_parts(array.add(2), count as usize - 2);
        // asyncio.sleep() needs no context for what its timer does to a future.
        let sleeper = future::sleeper_of(py, callback, args);
        let context = match sleeper {
            Some(_) => (call::callback_context(py)?, false),
            None => snapshot::share(state, py, |queue| queue.timers.len())?,
        };
        let timer = push_timer(&core, when(state.clock(), delay), callback, args, context)?;
        if let Some((_, future)) = sleeper {
            future::hide_sleeper(object, future);
        }
        Ok(Some(timer))
    }
}

/// Makes the timer of a call on a running loop that is not in debug mode, and hands it to the loop.
///
/// # Safety
///
/// The callback and its arguments are live objects.
#[inline(always)]
unsafe fn push_timer<'py>(
    core: &Bound<'py, LoopCore>,
    when: When,
    callback: *mut PyObject,
    args: &[*mut PyObject],
    (context, shared): (Bound<'py, PyAny>, bool),
) -> PyResult<Bound<'py, PyAny>> {
    let py = core.py();
    let state = core.get();
    let types = handle::types(py)?;
    let used = state.queue(py, |queue| queue.spare_timer(types));
    let call = Call {
        callback,
        args,
        owner: core.as_ptr(),
        context,
        shared,
        when: Some(when.seconds),
    };
    // SAFETY: passed on to the caller; what the queue keeps of timers is a timer.
    let timer = unsafe { handle::reuse_or_new(py, used, call)? };
    state.push_timer(py, when, timer.clone().unbind());
    Ok(timer)
}

/// `loop.call_at(when, callback, argument)` in that of [`call::callback_context`], on a running loop that is
/// not in debug mode.
pub fn call_at_natively<'py>(
    core: &Bound<'py, LoopCore>,
    when: When,
    callback: &Bound<'py, PyAny>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let context = (call::callback_context(core.py())?, false);
    // SAFETY: live objects.
    unsafe { push_timer(core, when, callback.as_ptr(), &[argument.as_ptr()], context) }
}

/// Whether a keyword is `context`: the interned string, or another one like that of asyncio's tasks.
///
/// # Safety
///
/// `keyword` is a live str.
#[inline(always)]
unsafe fn is_context(py: Python<'_>, keyword: *mut PyObject) -> bool {
    // SAFETY: passed on to the caller.
    keyword == intern!(py, "context").as_ptr()
        || unsafe { Borrowed::<PyAny>::from_ptr(py, keyword).cast_unchecked::<PyString>() }
            .to_str()
            .is_ok_and(|keyword| keyword == "context")
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
        handle::make_thread_safe(&handle)?;
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
            if let Some(handle) = call_soon_fast(py, object, array, count, names)? {
                return Ok(handle);
            }
            let mut arguments = parse(py, "call_soon", None, array, count, names)?;
            let core = receiver(py, object);
            if let Some(context) = &arguments.context
                && let Some(wake) =
                    task::wake_from_call(&core, arguments.callback.as_ptr(), context.as_ptr())?
            {
                match wake {
                    WakeCall::Scheduled => return Ok(py.None().into_bound(py)),
                    WakeCall::Callback(callback, context) => {
                        arguments.callback = callback;
                        arguments.context = Some(context);
                    }
                }
            }
            schedule(&core, "call_soon", None, arguments, false)
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
            if let Some(handle) = hand_over(py, object, array, count, names)? {
                return Ok(handle);
            }
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
            if let Some(timer) = timer_fast(py, object, array, count, names, When::after)? {
                return Ok(timer);
            }
            let arguments = parse(py, "call_later", Some("delay"), array, count, names)?;
            let core = receiver(py, object);
            let delay = seconds(&arguments, "delay must not be None")?;
            let when = When::after(core.get().clock(), delay);
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
            if let Some(timer) = timer_fast(py, object, array, count, names, When::at)? {
                return Ok(timer);
            }
            let arguments = parse(py, "call_at", Some("when"), array, count, names)?;
            let core = receiver(py, object);
            let when = When::at(
                core.get().clock(),
                seconds(&arguments, "when cannot be None")?,
            );
            schedule(&core, "call_at", Some(when), arguments, false)
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

unsafe extern "C" fn create_task(
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by the interpreter as a fast method of LoopCore; `array` holds `count`
    // positional arguments and then the values of the keywords, alive during the call.
    unsafe {
        guard(|py| {
            let core = receiver(py, object);
            let state = core.get();
            if count == 1 && !state.debug() && !state.is_closed() {
                let has_factory = state.task_factory(py, |factory| factory.is_some());
                if !has_factory {
                    let classes = classes(py)?;
                    let replaced = classes.task(py)?;
                    if replaced.is_none() && state.has_native_tasks() {
                        if let Some(made) = spawn(&core, native::native(py)?, array, names)? {
                            return Ok(made);
                        }
                    } else if names.is_null() {
                        let class = replaced.unwrap_or_else(|| classes.stock_task.bind(py).clone());
                        let arguments = [*array, object];
                        let made = Bound::from_owned_ptr_or_err(
                            py,
                            ffi::PyObject_Vectorcall(
                                class.as_ptr(),
                                arguments.as_ptr(),
                                1,
                                classes.only_loop.as_ptr(),
                            ),
                        )?;
                        if state.register().is_some() {
                            tasks::begins_stock(
                                state,
                                &made,
                                &Bound::from_borrowed_ptr(py, *array),
                            )?;
                        }
                        return Ok(made);
                    }
                }
            }
            // A factory, debug mode, a replaced class: as this Python's asyncio does it. A task that is eager runs at once, and
            // may create another one.
            depth::room(c" while creating a task")?;
            let slow = core.getattr(intern!(py, "_create_task"))?;
            Bound::from_owned_ptr_or_err(
                py,
                ffi::PyObject_Vectorcall(slow.as_ptr(), array, count as usize, names),
            )
        })
    }
}

/// A native task of `create_task(coro, name=, context=)`; None for any other keyword.
///
/// # Safety
///
/// `array` holds the coroutine and then the values of the keywords, alive during the call.
unsafe fn spawn<'py>(
    core: &Bound<'py, LoopCore>,
    native: &Native,
    array: *const *mut PyObject,
    names: *mut PyObject,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = core.py();
    // SAFETY: as above.
    unsafe {
        let coro = Bound::from_borrowed_ptr(py, *array);
        let (mut name, mut context) = (None, None);
        if !names.is_null() {
            for index in 0..ffi::PyTuple_GET_SIZE(names) {
                let keyword = ffi::PyTuple_GET_ITEM(names, index);
                let value = Bound::from_borrowed_ptr(py, *array.add(1 + index as usize));
                if keyword == intern!(py, "name").as_ptr() {
                    name = Some(value);
                } else if is_context(py, keyword) {
                    context = Some(value);
                } else {
                    return Ok(None);
                }
            }
        }
        task::spawn(core, native, &coro, name.as_ref(), context.as_ref()).map(Some)
    }
}

unsafe extern "C" fn time(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter as a method of LoopCore, which the descriptor has checked.
    unsafe {
        let py = Python::assume_attached();
        let core = Borrowed::<PyAny>::from_ptr(py, object).cast_unchecked::<LoopCore>();
        ffi::PyFloat_FromDouble(seconds_of(core.get().clock().now()))
    }
}

unsafe extern "C" fn create_future(
    object: *mut PyObject,
    _: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by the interpreter as a fast method of LoopCore.
    unsafe {
        guard(|py| {
            if count != 0 || !names.is_null() {
                return Err(PyTypeError::new_err("create_future() takes no arguments"));
            }
            let classes = classes(py)?;
            let core = receiver(py, object);
            let state = core.get();
            let class = match classes.future(py)? {
                Some(replaced) => replaced,
                None if !state.has_native_tasks() => classes.stock_future.bind(py).clone(),
                None if !state.debug() => return future::new(py, native::native(py)?, &core),
                None => native::native(py)?.future.bind(py).clone().into_any(),
            };
            Bound::from_owned_ptr_or_err(
                py,
                ffi::PyObject_Vectorcall(
                    class.as_ptr(),
                    &raw const object,
                    0,
                    classes.only_loop.as_ptr(),
                ),
            )
        })
    }
}
