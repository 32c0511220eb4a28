//! Future: asyncio's, with what is hot on the fields themselves.
//!
//! The type derives from `_asyncio.Future` and adds no field (see [`super::layout`]). What is replaced:
//!
//! * `await`: the future is its own iterator, as a slot and not as methods, so that nobody mistakes it
//!   for an iterator; `future.__await__()` and `iter(future)` still give asyncio's FutureIter.
//! * the end of a future ([`finish`]): the callback that a task of one of our loops left is the object
//!   `wake` with the task in the place of its context, and waking it means to move that reference to
//!   the ready ring. Every other callback goes through `call_soon`, as asyncio's does. If asyncio's own
//!   code ends the future, it calls `loop.call_soon(wake, future, context=task)`, which does the same.
//! * creation and destruction.
//!
//! **Who may touch what.** A future belongs to its loop's thread; the GIL orders everything else. Every
//! function here leaves the fields consistent before it calls anything that may run other code
//! (callbacks of another loop's `call_soon`, the drop of a result), and reads them again afterwards.

use std::os::raw::{c_char, c_int, c_void};
use std::ptr::{self, null_mut};

use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use super::entry::Entry;
use super::layout::{CANCELLED, FINISHED, FutureObject, PENDING};
use super::native::{Native, native};
use super::spare::Spare;
use super::{depth, handle, hidden, refcheck, task, told};
use crate::event_loop::{LoopCore, Queue};

/// Makes a future of a loop that is not in debug mode.
#[inline]
pub fn new<'py>(
    py: Python<'py>,
    native: &Native,
    core: &Bound<'py, LoopCore>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the type has FutureObject's size; every field behind the head is written before anything
    // else can see the object.
    unsafe {
        let class = native.future.as_ptr().cast();
        let mut object: *mut FutureObject = core
            .get()
            .queue(py, |queue| queue.spare_futures.take(class))
            .cast();
        if object.is_null() {
            object = ffi::PyObject_GC_New::<FutureObject>(class);
        }
        if object.is_null() {
            return Err(PyErr::fetch(py));
        }
        initialise(object, ffi::Py_NewRef(core.as_ptr()));
        ffi::PyObject_GC_Track(object.cast());
        Ok(Bound::from_owned_ptr(py, object.cast()))
    }
}

/// Writes every field of a new future; the reference to its loop becomes the future's.
///
/// # Safety
///
/// `object` is freshly allocated memory of a future whose head is valid.
#[inline(always)]
pub unsafe fn initialise(object: *mut FutureObject, owner: *mut PyObject) {
    // SAFETY: as above: there is nothing in the fields that would have to be released.
    unsafe {
        let future = &mut *object;
        future.owner = owner;
        future.callback0 = null_mut();
        future.context0 = null_mut();
        future.callbacks = null_mut();
        future.exception = null_mut();
        future.exception_traceback = null_mut();
        future.result = null_mut();
        future.source_traceback = null_mut();
        future.cancel_message = null_mut();
        future.cancelled_error = null_mut();
        future.state = PENDING;
        future.clear_flags();
        #[cfg(not(Py_3_13))]
        {
            future.dict = null_mut();
            future.weakrefs = null_mut();
        }
        #[cfg(Py_3_14)]
        {
            future.awaited_by = null_mut();
            future.is_task = 0;
            future.awaited_by_is_set = 0;
        }
    }
}

/// The native half of a loop, if the loop is ours and schedules natively.
///
/// # Safety
///
/// `owner` is a live object that stays alive for `'a`.
#[inline(always)]
pub unsafe fn core_of<'a>(py: Python<'a>, owner: *mut PyObject) -> Option<&'a LoopCore> {
    // SAFETY: passed on to the caller.
    unsafe {
        let core = any_core_of(py, owner)?;
        let owner = pyo3::Borrowed::<PyAny>::from_ptr(py, owner);
        core.schedules_natively(py, &owner).then_some(core)
    }
}

/// The native half of a loop, if the loop is ours.
///
/// # Safety
///
/// As [`core_of`].
#[inline(always)]
pub unsafe fn any_core_of<'a>(py: Python<'a>, owner: *mut PyObject) -> Option<&'a LoopCore> {
    // SAFETY: passed on to the caller. An object whose type derives from LoopCore is one.
    unsafe {
        let owner = pyo3::Borrowed::<PyAny>::from_ptr(py, owner);
        let class = owner.get_type_ptr();
        let core = if LOOP_TYPE
            .get(py)
            .is_some_and(|known| ptr::eq(known.as_ptr().cast(), class))
        {
            owner.cast_unchecked::<LoopCore>()
        } else {
            owner.cast::<LoopCore>().ok()?
        };
        // What is inside of the borrowed object lives as long as it does.
        Some(&*ptr::from_ref(core.get()))
    }
}

/// The type of the first loop that was made, mostly `tideloop.EventLoop`: compared faster than asked for
/// its bases. It is kept alive, so that no other type can take its address.
static LOOP_TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// A loop of this type was made.
pub fn know_loop_type(class: &Bound<'_, PyType>) {
    LOOP_TYPE.get_or_init(class.py(), || class.clone().unbind());
}

// --- ending ------------------------------------------------------------------------------------

/// Ends a future: sets its state and schedules its callbacks. The result's reference becomes the
/// future's. False: an exception is set.
///
/// # Safety
///
/// `future` is alive during the call and pending; `result` is an owned reference.
#[inline]
pub unsafe fn set_result(
    py: Python<'_>,
    native: &Native,
    future: *mut FutureObject,
    result: *mut PyObject,
) -> bool {
    // SAFETY: passed on to the caller. A pending future has no result.
    unsafe {
        (*future).result = result;
        (*future).state = FINISHED;
        finish(py, native, future)
    }
}

/// Ends a future with an exception, whose reference becomes the future's.
///
/// # Safety
///
/// As [`set_result`]; `error` is an exception instance.
pub unsafe fn set_exception(
    py: Python<'_>,
    native: &Native,
    future: *mut FutureObject,
    error: *mut PyObject,
) -> bool {
    // SAFETY: passed on to the caller.
    unsafe {
        (*future).exception = error;
        (*future).exception_traceback = ffi::PyException_GetTraceback(error);
        (*future).state = FINISHED;
        if !finish(py, native, future) {
            return false;
        }
        (*future).set_logs_traceback(true);
        true
    }
}

/// The time of a sleeper has come.
///
/// # Errors
///
/// What the loop's exception handler raises of KeyboardInterrupt and SystemExit.
pub fn wake(core: &Bound<'_, LoopCore>, sleeper: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = core.py();
    let native = native(py)?;
    let future = sleeper.as_ptr().cast::<FutureObject>();
    // SAFETY: sleepers are futures of ours, and the caller's reference keeps this one alive.
    unsafe {
        if (*future).state != PENDING
            || set_result(py, native, future, ffi::Py_NewRef(ffi::Py_None()))
        {
            return Ok(());
        }
    }
    // A callback that somebody else has added could not be scheduled.
    let error = PyErr::fetch(py).into_value(py);
    core.call_method1(intern!(py, "_step_failed"), (sleeper, error))
        .map(drop)
}

/// What the timer of asyncio.sleep() calls: `_set_result_unless_cancelled(future, result)`. It touches
/// nothing but the future, so a future of ours needs neither the call of a Python function nor a context
/// for it. False: that is not what this call is.
///
/// # Safety
///
/// The callback and its arguments are alive during the call.
#[inline(always)]
pub unsafe fn wake_sleeper(
    py: Python<'_>,
    callback: *mut PyObject,
    arguments: &[*mut PyObject],
) -> bool {
    // SAFETY: passed on to the caller; the type says that it is a future.
    unsafe {
        let Some((native, future)) = sleeper_of(py, callback, arguments) else {
            return false;
        };
        if (*future).state != PENDING
            || !(*future).callbacks.is_null()
            || (*future).callback0 != native.wake.as_ptr()
        {
            return false;
        }
        // A task waits and nobody else: waking it cannot fail on a loop that runs handles.
        set_result(py, native, future, ffi::Py_NewRef(arguments[1]))
    }
}

/// The future that a call ends, if the call is that of asyncio.sleep()'s timer and the future one of ours.
///
/// # Safety
///
/// The callback and its arguments are alive during the call.
#[inline(always)]
pub unsafe fn sleeper_of(
    py: Python<'_>,
    callback: *mut PyObject,
    arguments: &[*mut PyObject],
) -> Option<(&'static Native, *mut FutureObject)> {
    let native = super::native::ready(py)?;
    // SAFETY: passed on to the caller.
    let sleeps = callback == native.set_unless_cancelled.as_ptr()
        && arguments.len() == 2
        && unsafe { ffi::Py_TYPE(arguments[0]) } == native.future.as_ptr().cast();
    sleeps.then(|| (native, arguments[0].cast()))
}

/// Hides a future that a timer of its running loop will end, unless that timer is cancelled, and with it the
/// task that is going to wait for it: the loop has the timer, so neither can be garbage. [`show_sleeper`] is
/// called when the timer is cancelled and when the loop stops; a future that ends is shown then, or by the task that
/// it wakes.
///
/// # Safety
///
/// A live future of exactly our type; `core` is that of the loop which has the timer, and runs.
#[inline(always)]
pub unsafe fn hide_sleeper(core: *mut PyObject, future: *mut FutureObject) {
    // SAFETY: passed on to the caller; a live future is tracked, or hidden already.
    unsafe {
        if (*future).owner == core && (*future).state == PENDING {
            hidden::hide(future.cast());
        }
    }
}

/// As [`hide_sleeper`], for a future of the loop that has itself among its timers.
#[inline(always)]
pub fn hide_from_collector(sleeper: &Py<PyAny>) {
    let future = sleeper.as_ptr().cast::<FutureObject>();
    // SAFETY: sleepers are futures of ours, and of the loop that has them.
    unsafe { hide_sleeper((*future).owner, future) };
}

/// Shows a future that was hidden, and the task that waits for it.
///
/// # Safety
///
/// A live future of exactly our type, and the GIL is held.
pub unsafe fn show_sleeper(py: Python<'_>, future: *mut FutureObject) {
    // SAFETY: passed on to the caller. What stands beside `wake` is a task of ours.
    unsafe {
        // Not only if it is hidden: an incremental collector may have found it, and not the task, which it cannot see.
        hidden::show(future.cast());
        let wake = super::native::ready(py).map_or(null_mut(), |native| native.wake.as_ptr());
        if !wake.is_null() && (*future).callback0 == wake {
            task::show((*future).context0);
        }
    }
}

/// Cancels a future: None if it was done already. `message` is borrowed, or null.
///
/// # Safety
///
/// `future` is alive during the call.
pub unsafe fn cancel(
    py: Python<'_>,
    native: &Native,
    future: *mut FutureObject,
    message: *mut PyObject,
) -> PyResult<bool> {
    // SAFETY: passed on to the caller; the old message is dropped after the state is consistent.
    unsafe {
        (*future).set_logs_traceback(false);
        if (*future).state != PENDING {
            return Ok(false);
        }
        (*future).state = CANCELLED;
        let before = ptr::replace(&raw mut (*future).cancel_message, ffi::Py_XNewRef(message));
        ffi::Py_XDECREF(before);
        if finish(py, native, future) {
            Ok(true)
        } else {
            Err(PyErr::fetch(py))
        }
    }
}

/// Schedules the callbacks of a future whose state was just set. False: an exception is set, and the
/// callbacks that were left are gone, as in asyncio.
///
/// # Safety
///
/// `future` is alive during the call.
#[inline]
unsafe fn finish(py: Python<'_>, native: &Native, future: *mut FutureObject) -> bool {
    refcheck::alive(future.cast(), "a future that ends");
    // SAFETY: passed on to the caller. Fields are taken out before other code can run.
    unsafe {
        if (*future).callback0 != native.wake.as_ptr() || !(*future).callbacks.is_null() {
            // Else it is shown when the task that it wakes goes on: so many may end at once.
            hidden::show(future.cast());
        }
        #[cfg(Py_3_14)]
        if (*future).is_task != 0 {
            task::unlink(&raw mut (*future.cast::<super::layout::TaskObject>()).node);
        }
        let callback = ptr::replace(&raw mut (*future).callback0, null_mut());
        if !callback.is_null() {
            let context = ptr::replace(&raw mut (*future).context0, null_mut());
            let scheduled = told::later(py, native, future, callback, context)
                || schedule(py, native, future, callback, context);
            ffi::Py_DECREF(callback);
            if !scheduled {
                ffi::Py_XDECREF(ptr::replace(&raw mut (*future).callbacks, null_mut()));
                return false;
            }
        }
        if (*future).callbacks.is_null() {
            return true;
        }
        let callbacks = ptr::replace(&raw mut (*future).callbacks, null_mut());
        let mut scheduled = true;
        let mut index = 0;
        while scheduled && index < ffi::PyList_GET_SIZE(callbacks) {
            let pair = ffi::PyList_GET_ITEM(callbacks, index);
            let callback = ffi::PyTuple_GET_ITEM(pair, 0);
            let context = ffi::Py_NewRef(ffi::PyTuple_GET_ITEM(pair, 1));
            scheduled = schedule(py, native, future, callback, context);
            index += 1;
        }
        ffi::Py_DECREF(callbacks);
        scheduled
    }
}

/// Schedules one callback; takes over the reference to its context. False: an exception is set.
///
/// # Safety
///
/// `future` and `callback` are alive during the call.
#[inline]
unsafe fn schedule(
    py: Python<'_>,
    native: &Native,
    future: *mut FutureObject,
    callback: *mut PyObject,
    context: *mut PyObject,
) -> bool {
    // SAFETY: passed on to the caller. `wake` is only ever stored together with one of our tasks.
    unsafe {
        let owner = (*future).owner;
        if let Some(core) = core_of(py, owner)
            && core.accepts_natively()
        {
            if callback == native.wake.as_ptr() {
                let task = Bound::from_owned_ptr(py, context).unbind();
                core.push_entry(py, Entry::wake(task));
                return true;
            }
            if core.is_running() && !context.is_null() {
                return call_soon(py, core, future, callback, context);
            }
        }
        let arguments = [owner, callback, future.cast(), context];
        let handle = ffi::PyObject_VectorcallMethod(
            intern!(py, "call_soon").as_ptr(),
            arguments.as_ptr(),
            3,
            native.context_names.as_ptr(),
        );
        ffi::Py_XDECREF(context);
        if handle.is_null() {
            return false;
        }
        ffi::Py_DECREF(handle);
        true
    }
}

/// What `call_soon(callback, future, context=context)` of a running loop of ours would do; takes over the
/// reference to the context. False: an exception is set.
///
/// # Safety
///
/// As [`schedule`].
#[inline]
unsafe fn call_soon(
    py: Python<'_>,
    core: &LoopCore,
    future: *mut FutureObject,
    callback: *mut PyObject,
    context: *mut PyObject,
) -> bool {
    // SAFETY: passed on to the caller.
    unsafe {
        let context = Bound::from_owned_ptr(py, context);
        let made = handle::types(py).and_then(|types| {
            let spare = core.queue(py, |queue| queue.spare_handle(types));
            let call = handle::Call {
                callback,
                args: &[future.cast()],
                owner: (*future).owner,
                context,
                shared: false,
                when: None,
            };
            handle::reuse_or_new(py, spare, call)
        });
        match made {
            Ok(handle) => {
                core.push_ready(py, handle.unbind());
                true
            }
            Err(error) => {
                error.restore(py);
                false
            }
        }
    }
}

/// The CancelledError of a cancelled future: the one that it ended with, or a new one.
///
/// # Safety
///
/// `future` is alive during the call.
pub unsafe fn cancelled_error<'py>(
    py: Python<'py>,
    native: &Native,
    future: *mut FutureObject,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: passed on to the caller.
    unsafe {
        let error = ptr::replace(&raw mut (*future).cancelled_error, null_mut());
        if !error.is_null() {
            return Ok(Bound::from_owned_ptr(py, error));
        }
        let message = (*future).cancel_message;
        let class = native.cancelled_error.as_ptr();
        let error = if message.is_null() || message == ffi::Py_None() {
            ffi::PyObject_CallNoArgs(class)
        } else {
            ffi::PyObject_CallOneArg(class, message)
        };
        Bound::from_owned_ptr_or_err(py, error)
    }
}

/// How a future ended, for whoever awaits it.
pub enum Outcome<'py> {
    /// A borrowed result, alive as long as the future does.
    Result(*mut PyObject),
    Error(Bound<'py, PyAny>),
}

/// What a future ended with; reading it marks an exception as retrieved.
///
/// # Safety
///
/// `future` is alive during the call.
#[inline]
pub unsafe fn outcome<'py>(
    py: Python<'py>,
    native: &Native,
    future: *mut FutureObject,
) -> PyResult<Outcome<'py>> {
    // SAFETY: passed on to the caller.
    unsafe {
        match (*future).state {
            FINISHED => {
                (*future).set_logs_traceback(false);
                let error = (*future).exception;
                if error.is_null() {
                    return Ok(Outcome::Result((*future).result));
                }
                let error = Bound::from_borrowed_ptr(py, error);
                let traceback = ptr::replace(&raw mut (*future).exception_traceback, null_mut());
                let shown = if traceback.is_null() {
                    ffi::Py_None()
                } else {
                    traceback
                };
                let set = ffi::PyException_SetTraceback(error.as_ptr(), shown);
                ffi::Py_XDECREF(traceback);
                if set < 0 {
                    return Err(PyErr::fetch(py));
                }
                Ok(Outcome::Error(error))
            }
            CANCELLED => Ok(Outcome::Error(cancelled_error(py, native, future)?)),
            _ => {
                let class = native.invalid_state_error.bind(py);
                Ok(Outcome::Error(class.call1(("Result is not set.",))?))
            }
        }
    }
}

// --- slots -------------------------------------------------------------------------------------

/// `await future` starts here.
pub unsafe extern "C" fn am_await(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter with a live object.
    unsafe { ffi::Py_NewRef(object) }
}

/// One step of `await future`: the future itself while it is pending, then its result.
pub unsafe extern "C" fn iternext(object: *mut PyObject) -> *mut PyObject {
    let mut result = null_mut();
    // SAFETY: called by the interpreter with a live object of this type.
    unsafe {
        match am_send(object, ffi::Py_None(), &mut result) {
            ffi::PySendResult::PYGEN_NEXT => result,
            ffi::PySendResult::PYGEN_ERROR => null_mut(),
            ffi::PySendResult::PYGEN_RETURN => {
                if result != ffi::Py_None() {
                    raise_stop_iteration(result);
                }
                ffi::Py_DECREF(result);
                null_mut()
            }
        }
    }
}

/// Sets StopIteration(value). The value is put in a tuple if the interpreter would take it apart.
///
/// # Safety
///
/// The GIL is held and `value` is alive.
unsafe fn raise_stop_iteration(value: *mut PyObject) {
    // SAFETY: as above.
    unsafe {
        let class = ffi::PyExc_StopIteration;
        if ffi::PyTuple_Check(value) == 0 && ffi::PyExceptionInstance_Check(value) == 0 {
            ffi::PyErr_SetObject(class, value);
            return;
        }
        let error = ffi::PyObject_CallOneArg(class, value);
        if !error.is_null() {
            ffi::PyErr_SetObject(class, error);
            ffi::Py_DECREF(error);
        }
    }
}

pub unsafe extern "C" fn am_send(
    object: *mut PyObject,
    _: *mut PyObject,
    result: *mut *mut PyObject,
) -> ffi::PySendResult {
    let future = object.cast::<FutureObject>();
    // SAFETY: called by the interpreter, with the GIL held, a live object of this type and a place for
    // the result.
    unsafe {
        if (*future).state == FINISHED && (*future).exception.is_null() {
            (*future).set_logs_traceback(false);
            *result = ffi::Py_NewRef((*future).result);
            return ffi::PySendResult::PYGEN_RETURN;
        }
        if (*future).state == PENDING && !(*future).owner.is_null() && !(*future).is_blocking() {
            (*future).set_blocking(true);
            *result = ffi::Py_NewRef(object);
            return ffi::PySendResult::PYGEN_NEXT;
        }
        *result = null_mut();
        let py = Python::assume_attached();
        let error = match (*future).state {
            PENDING if (*future).owner.is_null() => {
                pyo3::exceptions::PyRuntimeError::new_err("Future object is not initialized.")
            }
            PENDING => pyo3::exceptions::PyRuntimeError::new_err("await wasn't used with future"),
            _ => match native(py).and_then(|native| outcome(py, native, future)) {
                Ok(Outcome::Error(error)) => {
                    // As `raise` does it: what is being handled here becomes the error's context.
                    let class = ffi::Py_TYPE(error.as_ptr());
                    ffi::PyErr_SetObject(class.cast(), error.as_ptr());
                    return ffi::PySendResult::PYGEN_ERROR;
                }
                Ok(Outcome::Result(value)) => {
                    *result = ffi::Py_NewRef(value);
                    return ffi::PySendResult::PYGEN_RETURN;
                }
                Err(error) => error,
            },
        };
        error.restore(py);
        ffi::PySendResult::PYGEN_ERROR
    }
}

/// Clears what every future owns, but not its loop.
///
/// # Safety
///
/// `future` is alive, or being destroyed; each reference is taken out before it is dropped.
#[inline]
pub unsafe fn release(future: *mut FutureObject) {
    // SAFETY: as above.
    unsafe {
        let fields = [
            &raw mut (*future).callback0,
            &raw mut (*future).context0,
            &raw mut (*future).callbacks,
            &raw mut (*future).exception,
            &raw mut (*future).exception_traceback,
            &raw mut (*future).result,
            &raw mut (*future).source_traceback,
            &raw mut (*future).cancel_message,
            &raw mut (*future).cancelled_error,
            #[cfg(Py_3_14)]
            &raw mut (*future).awaited_by,
            #[cfg(not(Py_3_13))]
            &raw mut (*future).dict,
        ];
        for field in fields {
            let reference = ptr::replace(field, null_mut());
            if !reference.is_null() {
                ffi::Py_DECREF(reference);
            }
        }
        #[cfg(Py_3_14)]
        {
            (*future).awaited_by_is_set = 0;
        }
    }
}

/// Finalizes an object of a future's type that is about to be destroyed: reports what must be, clears
/// its weak references and its dictionary. False: somebody has taken it back.
///
/// # Safety
///
/// Called from a dealloc slot, before anything was released.
#[inline]
pub unsafe fn finalise(object: *mut PyObject, has_to_report: bool) -> bool {
    // SAFETY: as above; the memory in front of the object is that of a type with managed weak
    // references and a managed dictionary, as `make_type` has made sure.
    unsafe {
        if has_to_report && ffi::PyObject_CallFinalizerFromDealloc(object) < 0 {
            return false;
        }
        ffi::PyObject_GC_UnTrack(object.cast());
        #[cfg(Py_3_13)]
        {
            let weakrefs = object.cast::<*mut PyObject>().sub(4);
            if !(*weakrefs).is_null() {
                ffi::PyObject_ClearWeakRefs(object);
            }
            let dictionary = object.cast::<*mut PyObject>().sub(3);
            if !(*dictionary).is_null() {
                PyObject_ClearManagedDict(object);
            }
        }
        #[cfg(not(Py_3_13))]
        if !(*object.cast::<FutureObject>()).weakrefs.is_null() {
            ffi::PyObject_ClearWeakRefs(object);
        }
        true
    }
}

#[cfg(Py_3_13)]
libpython! {
    fn PyObject_ClearManagedDict(object: *mut PyObject);
}

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: the interpreter calls this once, when the last reference is gone.
    unsafe { destroy(object, || (), die) }
}

/// Destroys a future or a task by `die`, now or later ([`depth`]); one that has to wait `leaves` its lists before.
///
/// # Safety
///
/// The whole of a dealloc slot.
#[inline(always)]
pub unsafe fn destroy(object: *mut PyObject, leaves: impl FnOnce(), die: unsafe fn(*mut PyObject)) {
    // SAFETY: passed on to the caller.
    unsafe {
        refcheck::dying(object);
        if is_light(object.cast()) {
            die(object);
        } else if depth::is_deep() {
            leaves();
            depth::put_off(object, die);
        } else {
            depth::nested(object, die);
        }
    }
}

/// The end of a future, after which there is none.
///
/// # Safety
///
/// The rest of the dealloc slot.
#[inline(always)]
unsafe fn die(object: *mut PyObject) {
    let future = object.cast::<FutureObject>();
    // SAFETY: passed on to the caller.
    unsafe {
        if !finalise(object, (*future).logs_traceback() || !is_exact(object)) {
            return;
        }
        release(future);
        free(object, |queue| &mut queue.spare_futures);
    }
}

/// Whether a future has ended as most do, with nothing whose destruction would destroy futures again ([`depth`]).
///
/// # Safety
///
/// `future` is alive, or being destroyed.
#[inline(always)]
pub unsafe fn is_light(future: *mut FutureObject) -> bool {
    // SAFETY: passed on to the caller.
    unsafe {
        let is_plain = |object: *mut PyObject| {
            object.is_null() || (*ffi::Py_TYPE(object)).tp_flags & ffi::Py_TPFLAGS_HAVE_GC == 0
        };
        (*future).state != PENDING
            && (*future).exception.is_null()
            && (*future).cancelled_error.is_null()
            && is_plain((*future).cancel_message)
            && is_plain((*future).result)
    }
}

/// Whether an object is exactly one of our two types, not of a Python class derived from them.
///
/// # Safety
///
/// `object` is valid memory of an object.
#[inline(always)]
pub unsafe fn is_exact(object: *mut PyObject) -> bool {
    // SAFETY: the type of a live object is alive. Python classes are mutable, our types are not.
    unsafe { (*ffi::Py_TYPE(object)).tp_flags & ffi::Py_TPFLAGS_IMMUTABLETYPE != 0 }
}

/// Gives the memory of an object back, to its loop or to the interpreter. Its fields own nothing any more
/// but its loop.
///
/// # Safety
///
/// The end of a dealloc slot.
#[inline(always)]
pub unsafe fn free(object: *mut PyObject, spare: impl FnOnce(&mut Queue) -> &mut Spare) {
    // SAFETY: as above; an instance holds a reference to its heap type, and to its loop, which is let go
    // of last.
    unsafe {
        let kind = ffi::Py_TYPE(object);
        let future = object.cast::<FutureObject>();
        let owner = ptr::replace(&raw mut (*future).owner, null_mut());
        let py = Python::assume_attached();
        let kept = !owner.is_null()
            && is_exact(object)
            && ffi::PyObject_GC_IsFinalized(object) == 0
            && core_of(py, owner).is_some_and(|core| {
                core.try_queue(|queue| spare(queue).keep(object))
                    .unwrap_or(false)
            });
        if !kept {
            refcheck::bury(object, refcheck::Kind::Future);
            ffi::PyObject_GC_Del(object.cast());
        }
        ffi::Py_DECREF(kind.cast());
        ffi::Py_XDECREF(owner);
    }
}

// --- methods -----------------------------------------------------------------------------------

unsafe extern "C" fn py_set_result(object: *mut PyObject, result: *mut PyObject) -> *mut PyObject {
    let future = object.cast::<FutureObject>();
    // SAFETY: a method of this type: `object` is a future, alive during the call.
    unsafe {
        let py = Python::assume_attached();
        let Ok(native) = native(py) else {
            return null_mut();
        };
        if (*future).owner.is_null() || (*future).state != PENDING {
            let (class, message) = if (*future).owner.is_null() {
                (
                    ffi::PyExc_RuntimeError,
                    c"Future object is not initialized.",
                )
            } else {
                (native.invalid_state_error.as_ptr(), c"invalid state")
            };
            ffi::PyErr_SetString(class, message.as_ptr());
            return null_mut();
        }
        if set_result(py, native, future, ffi::Py_NewRef(result)) {
            ffi::Py_NewRef(ffi::Py_None())
        } else {
            null_mut()
        }
    }
}

/// The one argument of `cancel(msg=None)`, borrowed.
///
/// # Safety
///
/// The arguments are those of a METH_FASTCALL | METH_KEYWORDS call under way.
pub unsafe fn message_of(
    py: Python<'_>,
    array: *const *mut PyObject,
    count: ffi::Py_ssize_t,
    names: *mut PyObject,
) -> PyResult<*mut PyObject> {
    // SAFETY: `array` holds `count` positional arguments and then the values of the keywords.
    unsafe {
        let keywords = if names.is_null() {
            0
        } else {
            ffi::PyTuple_GET_SIZE(names)
        };
        match (count, keywords) {
            (0, 0) => Ok(ffi::Py_None()),
            (1, 0) => Ok(*array),
            (0, 1) => {
                let name = Bound::from_borrowed_ptr(py, ffi::PyTuple_GET_ITEM(names, 0));
                if name.eq("msg")? {
                    return Ok(*array);
                }
                Err(pyo3::exceptions::PyTypeError::new_err(format!(
                    "cancel() got an unexpected keyword argument '{name}'"
                )))
            }
            (given, more) => Err(pyo3::exceptions::PyTypeError::new_err(format!(
                "cancel() takes at most 1 argument ({} given)",
                given + more
            ))),
        }
    }
}

unsafe extern "C" fn py_cancel(
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: ffi::Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    let future = object.cast::<FutureObject>();
    // SAFETY: a method of this type: `object` is a future, alive during the call.
    unsafe {
        super::guard(|py| {
            let message = message_of(py, array, count, names)?;
            if (*future).owner.is_null() {
                return Err(pyo3::exceptions::PyRuntimeError::new_err(
                    "Future object is not initialized.",
                ));
            }
            let cancelled = cancel(py, native(py)?, future, message)?;
            Ok(cancelled.into_pyobject(py)?.to_owned().into_any())
        })
    }
}

/// asyncio's `repr()`, which asks what the future refers to for theirs.
///
/// # Safety
///
/// `object` is a live instance of the stock class.
pub unsafe fn repr_of(object: *mut PyObject, stock: fn(&Native) -> &Py<PyType>) -> *mut PyObject {
    // SAFETY: passed on to the caller; the slot is that of a class which the object's derives from.
    unsafe {
        super::guard(|py| {
            depth::room(c" while getting the repr of a future")?;
            let class = stock(native(py)?).as_ptr().cast::<ffi::PyTypeObject>();
            let repr = (*class).tp_repr.unwrap_or(ffi::PyObject_Repr);
            Bound::from_owned_ptr_or_err(py, repr(object))
        })
    }
}

unsafe extern "C" fn repr(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: a slot of a type that derives from asyncio.Future.
    unsafe { repr_of(object, |native| &native.stock_future) }
}

// --- the type ----------------------------------------------------------------------------------

const DOC: &std::ffi::CStr = c"Future(*, loop=None)\n--\n\n\
    A result that is not there yet: asyncio.Future, native.";

struct Methods([ffi::PyMethodDef; 3]);

// SAFETY: the table is constant; CPython only reads it.
unsafe impl Sync for Methods {}

static METHODS: Methods = Methods([
    ffi::PyMethodDef {
        ml_name: c"set_result".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunction: py_set_result },
        ml_flags: ffi::METH_O,
        ml_doc: c"set_result($self, result, /)\n--\n\n\
            Mark the future done and set its result. Raises InvalidStateError if it is done already."
            .as_ptr(),
    },
    ffi::PyMethodDef {
        ml_name: c"cancel".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: py_cancel },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: c"cancel($self, /, msg=None)\n--\n\n\
            Cancel the future and schedule its callbacks. Returns False if it is done already."
            .as_ptr(),
    },
    ffi::PyMethodDef::zeroed(),
]);

/// asyncio's own collector slots of a type, which ours extend.
pub struct Collector {
    #[cfg(Py_3_12)]
    pub traverse: ffi::traverseproc,
    pub clear: ffi::inquiry,
}

/// Reads the collector slots of a type.
pub fn collector_of(class: &Bound<'_, PyType>) -> PyResult<Collector> {
    // SAFETY: a live type; the fields are those of a type object of this Python.
    let (traverse, clear) = unsafe {
        let class = &*class.as_ptr().cast::<ffi::PyTypeObject>();
        (class.tp_traverse, class.tp_clear)
    };
    match (traverse, clear) {
        (Some(_traverse), Some(clear)) => Ok(Collector {
            #[cfg(Py_3_12)]
            traverse: _traverse,
            clear,
        }),
        _ => Err(pyo3::exceptions::PySystemError::new_err(
            "asyncio's futures do not take part in garbage collection",
        )),
    }
}

/// The traverse slot of a type that derives from asyncio's.
#[cfg(Py_3_12)]
pub fn traverse_slot(collector: &Collector) -> *mut c_void {
    collector.traverse as *mut c_void
}

/// In 3.11 asyncio's types are static, so their slot does not visit the type, which ours must.
#[cfg(not(Py_3_12))]
pub fn traverse_slot(_: &Collector) -> *mut c_void {
    unsafe extern "C" fn traverse(
        object: *mut PyObject,
        visit: ffi::visitproc,
        argument: *mut c_void,
    ) -> c_int {
        // SAFETY: called by the collector with a live object of one of our types, or of a Python class
        // derived from them, whose own slot has visited that class. asyncio's type is the first static
        // one on the way up.
        unsafe {
            let mut class = ffi::Py_TYPE(object);
            if (*class).tp_flags & ffi::Py_TPFLAGS_IMMUTABLETYPE != 0 {
                let result = visit(class.cast(), argument);
                if result != 0 {
                    return result;
                }
            }
            while (*class).tp_flags & ffi::Py_TPFLAGS_HEAPTYPE != 0 {
                class = (*class).tp_base;
            }
            match (*class).tp_traverse {
                Some(traverse) => traverse(object, visit, argument),
                None => 0,
            }
        }
    }
    traverse as *mut c_void
}

/// Makes a type that derives from one of asyncio's, the first of `bases`, and hides the iterator's method that its slot made.
pub fn derive<'py>(
    bases: &[&Bound<'py, PyType>],
    name: &'static std::ffi::CStr,
    size: usize,
    slots: &mut [ffi::PyType_Slot],
) -> PyResult<Bound<'py, PyType>> {
    let base = bases[0];
    let py = base.py();
    let bases = pyo3::types::PyTuple::new(py, bases)?;
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr().cast::<c_char>(),
        basicsize: size as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_BASETYPE
            | ffi::Py_TPFLAGS_IMMUTABLETYPE) as u32,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec and what it points to outlive the call; names, docs and tables are static. The
    // dictionary is that of a type which nobody else has seen.
    unsafe {
        let object = ffi::PyType_FromSpecWithBases(&mut spec, bases.as_ptr());
        let class = Bound::from_owned_ptr_or_err(py, object)?.cast_into_unchecked::<PyType>();
        let raw = object.cast::<ffi::PyTypeObject>();
        for name in [c"__next__", c"__await__"] {
            if ffi::PyDict_DelItemString((*raw).tp_dict, name.as_ptr()) < 0 {
                return Err(PyErr::fetch(py));
            }
        }
        ffi::PyType_Modified(raw);
        #[cfg(Py_3_13)]
        {
            let preheader = (*base.as_ptr().cast::<ffi::PyTypeObject>()).tp_flags & PREHEADER;
            if preheader != PREHEADER || (*raw).tp_flags & PREHEADER != PREHEADER {
                return Err(pyo3::exceptions::PySystemError::new_err(
                    "asyncio's futures keep weak references elsewhere than expected",
                ));
            }
        }
        Ok(class)
    }
}

/// Managed weak references and a managed dictionary, in the words in front of the object.
#[cfg(Py_3_13)]
const PREHEADER: std::os::raw::c_ulong = 1 << 3 | 1 << 4;

pub const fn slot(slot: c_int, pfunc: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot { slot, pfunc }
}

pub fn make_type<'py>(base: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyType>> {
    let collector = collector_of(base)?;
    let mut slots = [
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse_slot(&collector)),
        slot(ffi::Py_tp_clear, collector.clear as *mut c_void),
        slot(ffi::Py_tp_repr, repr as *mut c_void),
        slot(ffi::Py_am_await, am_await as *mut c_void),
        slot(ffi::Py_am_send, am_send as *mut c_void),
        slot(ffi::Py_tp_iternext, iternext as *mut c_void),
        slot(ffi::Py_tp_doc, DOC.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_methods, METHODS.0.as_ptr() as *mut c_void),
        slot(0, null_mut()),
    ];
    derive(
        &[base],
        c"tideloop._tideloop.Future",
        size_of::<FutureObject>(),
        &mut slots,
    )
}
