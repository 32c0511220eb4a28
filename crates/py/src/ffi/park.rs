//! Waiting and waking: all that the primitives know of futures, tasks and loops.
//!
//! A waiter is a future of the running loop. Whatever a faster future can do directly belongs behind
//! these functions; their callers only know that a future is an object that is pending, done or
//! cancelled, and that a task which is handed a pending one sleeps until it no longer is. A future of ours
//! is read and ended through its fields, any other one through its methods.

use pyo3::exceptions::{PyAttributeError, PyRuntimeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyFloat, PyInt};

use super::layout::{self, FutureObject, TaskObject};
use super::native::{self, Native};
use super::{call, future, methods, operation, task};
use crate::event_loop::{LoopCore, When, seconds_of};

/// What we use of asyncio.
struct Asyncio {
    running_loop: Py<PyAny>,
    /// Where `current_task` is looked up at each call, since it is replaced there together with Task.
    tasks: Py<PyDict>,
    cancelled_error: Py<PyAny>,
    invalid_state: Py<PyAny>,
}

fn asyncio(py: Python<'_>) -> PyResult<&'static Asyncio> {
    static ASYNCIO: PyOnceLock<Asyncio> = PyOnceLock::new();
    ASYNCIO.get_or_try_init(py, || {
        let exceptions = py.import("asyncio.exceptions")?;
        Ok(Asyncio {
            running_loop: py
                .import("asyncio.events")?
                .getattr("_get_running_loop")?
                .unbind(),
            tasks: py.import("asyncio.tasks")?.dict().unbind(),
            cancelled_error: exceptions.getattr("CancelledError")?.unbind(),
            invalid_state: exceptions.getattr("InvalidStateError")?.unbind(),
        })
    })
}

/// `function()`.
#[inline]
fn call0<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: a live callable; returns a new reference, or null with an exception set.
    unsafe {
        Bound::from_owned_ptr_or_err(function.py(), ffi::PyObject_CallNoArgs(function.as_ptr()))
    }
}

/// The loop that runs in this thread; Python's `None` without one.
#[inline]
pub fn current_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    call0(asyncio(py)?.running_loop.bind(py))
}

/// The loop that runs in this thread. Raises RuntimeError without one.
#[inline]
pub fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let current = current_loop(py)?;
    if current.is_none() {
        return Err(PyRuntimeError::new_err("no running event loop"));
    }
    Ok(current)
}

/// Whether a loop runs in this thread right now, so that its futures may be touched here.
#[inline]
pub fn runs_here(event_loop: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = event_loop.py();
    // SAFETY: a live object.
    match unsafe { future::core_of(py, event_loop.as_ptr()) } {
        Some(core) if core.is_running_here() => Ok(true),
        // A loop that is hosted says so too while it takes a step.
        _ => Ok(current_loop(py)?.is(event_loop)),
    }
}

/// The time of the loop that runs in this thread, if saying so takes no Python: if it is one of ours.
#[inline]
pub fn time_at_hand(py: Python<'_>) -> Option<i64> {
    let event_loop = current_loop(py).ok()?;
    // SAFETY: a live object.
    unsafe { future::core_of(py, event_loop.as_ptr()) }.map(|core| core.clock().now() as i64)
}

/// The time of a loop's clock in nanoseconds.
#[inline]
pub fn time_ns(event_loop: &Bound<'_, PyAny>) -> PyResult<i64> {
    let py = event_loop.py();
    // SAFETY: a live object.
    if let Some(core) = unsafe { future::core_of(py, event_loop.as_ptr()) } {
        return Ok(core.clock().now() as i64);
    }
    let seconds: f64 = call::method0(event_loop, intern!(py, "time"))?.extract()?;
    // To the nearest: a timer's own time, in seconds, is that of its deadline again.
    Ok((seconds * 1e9).round() as i64)
}

/// The task that runs in the running loop; Python's `None` without one.
pub fn current_task(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let function = asyncio(py)?
        .tasks
        .bind(py)
        .get_item(intern!(py, "current_task"))?
        .ok_or_else(|| PyAttributeError::new_err("asyncio has no current_task"))?;
    call0(&function)
}

/// A future of exactly our type, and its fields.
#[inline(always)]
fn native_future(future: &Bound<'_, PyAny>) -> Option<(&'static Native, *mut FutureObject)> {
    let native = native::ready(future.py())?;
    (future.get_type_ptr() == native.future.as_ptr().cast())
        .then(|| (native, future.as_ptr().cast()))
}

/// A future or task of exactly our types or asyncio's C types, which share a layout, and its fields.
#[inline(always)]
fn known_fields(future: &Bound<'_, PyAny>) -> Option<(&'static Native, *mut FutureObject)> {
    let native = native::ready(future.py())?;
    let kind = future.get_type_ptr();
    [
        &native.task,
        &native.stock_task,
        &native.future,
        &native.stock_future,
    ]
    .iter()
    .any(|known| kind == known.as_ptr().cast())
    .then(|| (native, future.as_ptr().cast()))
}

/// How a future or a task has ended.
pub enum Ending<'py> {
    Value(Bound<'py, PyAny>),
    Error(Bound<'py, PyAny>),
    /// With its message, if there is one.
    Cancelled(Option<Bound<'py, PyAny>>),
}

/// How a future or a task that is done has ended; its exception counts as retrieved.
pub fn ending<'py>(future: &Bound<'py, PyAny>) -> PyResult<Ending<'py>> {
    let py = future.py();
    if let Some((native, fields)) = known_fields(future) {
        // SAFETY: a live object whose fields are laid out as verified; references are taken before
        // anything else runs.
        unsafe {
            if (*fields).state == layout::CANCELLED {
                // A task that its coroutine has left by the error has the message in there, and only there.
                if let Some(error) = Bound::from_borrowed_ptr_or_opt(py, (*fields).cancelled_error)
                {
                    return Ok(Ending::Cancelled(message_of(&error)?));
                }
                let message = Bound::from_borrowed_ptr_or_opt(py, (*fields).cancel_message);
                return Ok(Ending::Cancelled(message));
            }
            return Ok(match future::outcome(py, native, fields)? {
                future::Outcome::Result(value) => {
                    Ending::Value(Bound::from_borrowed_ptr(py, value))
                }
                future::Outcome::Error(error) => Ending::Error(error),
            });
        }
    }
    if is_cancelled(future)? {
        return Ok(Ending::Cancelled(
            match call::method0(future, intern!(py, "result")) {
                Err(error) => message_of(&error.into_value(py).into_bound(py).into_any())?,
                Ok(_) => None,
            },
        ));
    }
    Ok(match call::method0(future, intern!(py, "result")) {
        Ok(value) => Ending::Value(value),
        Err(error) => Ending::Error(error.into_value(py).into_bound(py).into_any()),
    })
}

/// The message of a CancelledError.
fn message_of<'py>(error: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let arguments = error.getattr(intern!(error.py(), "args"))?;
    Ok(arguments.cast_into::<pyo3::types::PyTuple>()?.iter().next())
}

/// A pending future of a loop.
#[inline]
pub fn new_future<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    // SAFETY: a live object.
    let core = unsafe { future::core_of(py, event_loop.as_ptr()) };
    if let (Some(native), Some(core)) = (native::ready(py), core)
        && core.makes_futures(py)?
    {
        // SAFETY: an object with a core is a loop of ours.
        let core = unsafe { event_loop.cast_unchecked::<LoopCore>() };
        return future::new(py, native, core);
    }
    call::method0(event_loop, intern!(event_loop.py(), "create_future"))
}

/// Whether a loop is ours and nobody has replaced its create_task(), neither in its class nor on itself.
pub fn creates_tasks_itself(event_loop: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = event_loop.py();
    let Ok(core) = event_loop.cast::<LoopCore>() else {
        return Ok(false);
    };
    let name = intern!(py, "create_task");
    let own = py
        .get_type::<LoopCore>()
        .getattr(name)?
        .call_method1(intern!(py, "__get__"), (core,))?;
    core.getattr(name)?.eq(own)
}

/// Whether create_task() of a loop makes a task of ours, and nothing more.
#[inline]
pub fn spawns(event_loop: &Bound<'_, PyAny>) -> bool {
    let py = event_loop.py();
    // SAFETY: a live object.
    match unsafe { future::core_of(py, event_loop.as_ptr()) } {
        Some(core) => core.makes_tasks(py).unwrap_or(false),
        None => false,
    }
}

/// `event_loop.create_task(coro, name=name, context=context)` of a loop that [`spawns`].
#[inline]
pub fn spawn<'py>(
    event_loop: &Bound<'py, PyAny>,
    coro: &Bound<'py, PyAny>,
    name: Option<Bound<'py, PyAny>>,
    context: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let native = native::native(event_loop.py())?;
    let core = event_loop.cast::<LoopCore>()?;
    task::spawn(core, native, coro, name.as_ref(), context.as_ref())
}

/// `event_loop.create_task(coroutine, ...)` with what is given.
pub fn create_task<'py>(
    event_loop: &Bound<'py, PyAny>,
    coroutine: &Bound<'py, PyAny>,
    name: Option<Bound<'py, PyAny>>,
    context: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let method = intern!(py, "create_task");
    if name.is_none() && context.is_none() {
        return call::method1(event_loop, method, coroutine);
    }
    let keywords = PyDict::new(py);
    if let Some(name) = name {
        keywords.set_item(intern!(py, "name"), name)?;
    }
    if let Some(context) = context {
        keywords.set_item(intern!(py, "context"), context)?;
    }
    event_loop.call_method(method, (coroutine,), Some(&keywords))
}

/// A loop of ours that runs with its own clock and timers, and does not have to show them.
#[inline]
fn with_own_timers<'a, 'py>(event_loop: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, LoopCore>> {
    let core = event_loop.cast::<LoopCore>().ok()?;
    let state = core.get();
    (state.is_running() && !state.debug() && state.has_own_timers(event_loop.py(), event_loop))
        .then_some(core)
}

/// A number of seconds that is a float or an int, and no instance of a class derived from these.
#[inline]
fn exact_seconds(seconds: &Bound<'_, PyAny>) -> Option<f64> {
    if let Ok(seconds) = seconds.cast_exact::<PyFloat>() {
        return Some(seconds.value());
    }
    // What does not fit in a float is for whoever words the error.
    let seconds = seconds.cast_exact::<PyInt>().ok()?;
    seconds.extract::<i32>().ok().map(f64::from)
}

/// `loop.time() + delay`.
pub fn deadline<'py>(
    event_loop: &Bound<'py, PyAny>,
    delay: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    if let (Some(core), Some(delay)) = (with_own_timers(event_loop), exact_seconds(delay)) {
        return Ok(PyFloat::new(py, seconds_of(core.get().clock().now()) + delay).into_any());
    }
    call::method0(event_loop, intern!(py, "time"))?.add(delay)
}

/// Has `callback(argument)` called at a time on the loop's clock, in the next turn if that has come. The
/// callback only touches futures and tasks; see [`call::schedule`].
pub fn call_at<'py>(
    event_loop: &Bound<'py, PyAny>,
    when: &Bound<'py, PyAny>,
    callback: &Bound<'py, PyAny>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    if let Some(core) = with_own_timers(event_loop)
        && let Some(seconds) = exact_seconds(when)
        && let Some(when) = When::ahead(core.get().clock(), seconds)
    {
        return methods::call_at_natively(core, when, callback, argument);
    }
    let now = call::method0(event_loop, intern!(py, "time"))?;
    if when.le(now)? {
        call::schedule(event_loop, intern!(py, "call_soon"), [callback, argument])
    } else {
        call::schedule(
            event_loop,
            intern!(py, "call_at"),
            [when, callback, argument],
        )
    }
}

/// How often a task was asked to cancel itself: `task.cancelling()`.
pub fn cancelling<'py>(task: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = task.py();
    if let Some(native) = native::ready(py)
        && task.get_type_ptr() == native.task.as_ptr().cast()
    {
        // SAFETY: a live task of ours.
        let count = unsafe { (*task.as_ptr().cast::<TaskObject>()).cancel_requests };
        return Ok(count.into_pyobject(py)?.into_any());
    }
    call::method0(task, intern!(py, "cancelling"))
}

/// Takes the mark off a task by which it would be cancelled at its next await; its count of requests stays.
/// Raises AttributeError for tasks of other types that do not let go of it.
pub fn forgive(task: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = task.py();
    if let Some(native) = native::ready(py) {
        let is = |kind: *mut pyo3::ffi::PyObject| {
            // SAFETY: two live objects, the second one a type.
            unsafe { pyo3::ffi::PyObject_TypeCheck(task.as_ptr(), kind.cast()) != 0 }
        };
        if is(native.task.as_ptr()) || is(native.stock_task.as_ptr()) {
            // SAFETY: a live task whose fields are laid out as verified.
            unsafe { (*task.as_ptr().cast::<TaskObject>()).set_must_cancel(false) };
            return Ok(());
        }
    }
    task.setattr(intern!(py, "_must_cancel"), false)
}

/// Gives a future made by [`new_future`] None once `delay` seconds have passed, without a handle. False:
/// the loop is not one of ours, or in debug mode, where timers are shown.
#[inline]
pub fn wake_later(event_loop: &Bound<'_, PyAny>, delay: f64, future: &Bound<'_, PyAny>) -> bool {
    let py = event_loop.py();
    // SAFETY: a live object.
    match unsafe { future::core_of(py, event_loop.as_ptr()) } {
        Some(core)
            if core.accepts_natively()
                && core.has_own_timers(py, event_loop)
                && native_future(future).is_some() =>
        {
            core.push_sleeper(py, delay, future.clone().unbind());
            true
        }
        _ => false,
    }
}

/// Ends a wait begun by [`wake_later`] before its time.
pub fn stop_waking(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    let Some((_, ours)) = native_future(future) else {
        return Ok(());
    };
    // SAFETY: a live future of ours, whose loop is alive as long as it is.
    unsafe {
        if (*ours).state == layout::FINISHED {
            return Ok(());
        }
        let core = future::core_of(py, (*ours).owner);
        if core.is_some_and(LoopCore::is_closed) {
            // It has let go of its timers, and would refuse to wake whoever waited.
            return Ok(());
        }
        if (*ours).state == layout::PENDING {
            cancel(future)?;
        }
        if let Some(core) = core {
            core.timer_cancelled(py);
        }
    }
    Ok(())
}

/// Tells the task that gets this future next that it is to sleep until the future is done.
#[inline]
pub fn begin(future: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        unsafe { (*ours).set_blocking(true) };
        return Ok(());
    }
    future.setattr(intern!(future.py(), "_asyncio_future_blocking"), true)
}

/// Takes back what [`begin`] has noted, if no task has seen it.
pub fn take_back(future: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        unsafe { (*ours).set_blocking(false) };
        return Ok(());
    }
    future.setattr(intern!(future.py(), "_asyncio_future_blocking"), false)
}

/// Whether [`begin`] was called and no task has seen it yet.
pub fn has_begun(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        return Ok(unsafe { (*ours).is_blocking() });
    }
    future
        .getattr(intern!(future.py(), "_asyncio_future_blocking"))?
        .is_truthy()
}

/// How waiting for a future ended.
pub enum Outcome {
    Ended,
    Failed(PyErr),
    Pending,
}

/// Takes note of how a future ended, as `await` does.
#[inline]
pub fn outcome(future: &Bound<'_, PyAny>) -> Outcome {
    let py = future.py();
    if let Some((native, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        unsafe {
            if (*ours).state == layout::PENDING {
                return Outcome::Pending;
            }
            return match future::outcome(py, native, ours) {
                Ok(future::Outcome::Result(_)) => Outcome::Ended,
                Ok(future::Outcome::Error(error)) => Outcome::Failed(PyErr::from_value(error)),
                Err(error) => Outcome::Failed(error),
            };
        }
    }
    match call::method0(future, intern!(py, "result")) {
        Ok(_) => Outcome::Ended,
        Err(error) => {
            let pending = asyncio(py).is_ok_and(|asyncio| {
                error
                    .matches(py, asyncio.invalid_state.bind(py))
                    .is_ok_and(|is| is)
            }) && is_done(future).is_ok_and(|done| !done);
            if pending {
                call::discard(py, error);
                Outcome::Pending
            } else {
                Outcome::Failed(error)
            }
        }
    }
}

/// Gives a future its result, unless it is done.
#[inline]
pub fn resolve(future: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some((native, ours)) = native_future(future) {
        // SAFETY: a live future of ours, which is pending when its result is set.
        unsafe {
            if (*ours).state != layout::PENDING {
                return Ok(false);
            }
            if !future::set_result(future.py(), native, ours, value.clone().into_ptr()) {
                return Err(PyErr::fetch(future.py()));
            }
        }
        return Ok(true);
    }
    if is_done(future)? {
        return Ok(false);
    }
    call::method1(future, intern!(future.py(), "set_result"), value)?;
    Ok(true)
}

#[inline]
pub fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some((_, fields)) = known_fields(future) {
        // SAFETY: a live object whose fields are laid out as verified.
        return Ok(unsafe { (*fields).state != layout::PENDING });
    }
    call::method0(future, intern!(future.py(), "done"))?.is_truthy()
}

#[inline]
pub fn is_cancelled(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some((_, ours)) = native_future(future) {
        // SAFETY: a live future of ours.
        return Ok(unsafe { (*ours).state == layout::CANCELLED });
    }
    call::method0(future, intern!(future.py(), "cancelled"))?.is_truthy()
}

pub fn cancel(future: &Bound<'_, PyAny>) -> PyResult<()> {
    call::method0(future, intern!(future.py(), "cancel")).map(drop)
}

/// Whether an object is a future or task of exactly our types.
#[inline(always)]
fn ours(future: &Bound<'_, PyAny>) -> Option<(&'static Native, *mut FutureObject)> {
    let native = native::ready(future.py())?;
    let kind = future.get_type_ptr();
    (kind == native.future.as_ptr().cast() || kind == native.task.as_ptr().cast())
        .then(|| (native, future.as_ptr().cast()))
}

/// What a glance at a future tells: nothing, if it is not of our types or asyncio's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Nothing,
    Pending,
    Ended,
    Cancelled,
    Failed,
}

/// Looks at a future without marking its exception as retrieved.
#[inline]
pub fn look(future: &Bound<'_, PyAny>) -> Seen {
    match native::ready(future.py()) {
        Some(native) if native.is_future(future.as_ptr()) => {
            let raw = future.as_ptr().cast::<FutureObject>();
            // SAFETY: an object of one of the four types has these fields.
            unsafe {
                match (*raw).state {
                    layout::PENDING => Seen::Pending,
                    layout::CANCELLED => Seen::Cancelled,
                    _ if (*raw).exception.is_null() => Seen::Ended,
                    _ => Seen::Failed,
                }
            }
        }
        _ => Seen::Nothing,
    }
}

/// The result of a future that [has ended](Seen::Ended), without a call. None: it has not, or it is not of our
/// types or asyncio's.
#[inline]
pub fn result_of<'py>(future: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    if look(future) != Seen::Ended {
        return None;
    }
    // SAFETY: an object of one of the four types that has ended has a result.
    unsafe {
        let raw = future.as_ptr().cast::<FutureObject>();
        Bound::from_borrowed_ptr_or_opt(future.py(), (*raw).result)
    }
}

/// Whether a future is done whose class derives from asyncio's and overrides neither `done()` nor its state.
#[inline]
pub fn is_done_as_made(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some(native) = native::ready(future.py()) {
        // SAFETY: a live object, whose class is asked before it is taken for a future.
        unsafe {
            let stock = native.stock_future.as_ptr().cast();
            if ffi::PyObject_TypeCheck(future.as_ptr(), stock) != 0 {
                let raw = future.as_ptr().cast::<FutureObject>();
                return Ok((*raw).state != layout::PENDING);
            }
        }
    }
    is_done(future)
}

/// Nobody could have kept this task from being destroyed: `task._log_destroy_pending = False`.
pub fn do_not_miss(task: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = task.py();
    if let Some(native) = native::ready(py)
        && task.get_type_ptr() == native.task.as_ptr().cast()
    {
        // SAFETY: a live task of ours.
        unsafe { (*task.as_ptr().cast::<TaskObject>()).set_logs_destroyed(false) };
        return Ok(());
    }
    task.setattr(intern!(py, "_log_destroy_pending"), false)
}

/// Whether an object is equal to nothing but itself, as coroutines, tasks and futures are.
#[inline]
pub fn is_unique(object: &Bound<'_, PyAny>) -> bool {
    call::is_exact_coroutine(object)
        || operation::is_operation(object)
        || look(object) != Seen::Nothing
}

/// `future.add_done_callback(callback)`, with a context that was copied before, where nothing is lost by
/// sharing it.
#[inline]
pub fn add_callback(
    future: &Bound<'_, PyAny>,
    callback: &Bound<'_, PyAny>,
    context: &Bound<'_, PyAny>,
) -> PyResult<()> {
    if add_first_callback(future, callback, context) {
        return Ok(());
    }
    let name = intern!(future.py(), "add_done_callback");
    call::method1(future, name, callback).map(drop)
}

/// Adds a callback to a pending future of ours that has none. False: it is not one.
#[inline]
pub fn add_first_callback(
    future: &Bound<'_, PyAny>,
    callback: &Bound<'_, PyAny>,
    context: &Bound<'_, PyAny>,
) -> bool {
    let Some((_, ours)) = ours(future) else {
        return false;
    };
    // SAFETY: a live future of ours; the references are moved into empty fields.
    unsafe {
        let free = (*ours).state == layout::PENDING
            && (*ours).callback0.is_null()
            && (*ours).callbacks.is_null();
        if free {
            (*ours).callback0 = callback.clone().into_ptr();
            (*ours).context0 = context.clone().into_ptr();
        }
        free
    }
}

/// `future.remove_done_callback(callback)`.
#[inline]
pub fn remove_callback(future: &Bound<'_, PyAny>, callback: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Some((_, ours)) = ours(future) {
        // SAFETY: a live future of ours. One that is done has no callbacks.
        if unsafe { (*ours).state != layout::PENDING } {
            return Ok(());
        }
    }
    let name = intern!(future.py(), "remove_done_callback");
    call::method1(future, name, callback).map(drop)
}

/// Notes that a task awaits a future, which asyncio's call graphs show (since 3.14).
#[inline]
pub fn note_awaiting<'py>(future: &Bound<'py, PyAny>, task: &Bound<'py, PyAny>) -> PyResult<()> {
    #[cfg(Py_3_14)]
    {
        if let Some(native) = native::ready(future.py())
            && native.is_future(future.as_ptr())
            && native.is_future(task.as_ptr())
        {
            let raw = future.as_ptr().cast::<FutureObject>();
            // SAFETY: an object of one of the four types has these fields.
            unsafe {
                if (*raw).awaited_by.is_null() {
                    (*raw).awaited_by = task.clone().into_ptr();
                    return Ok(());
                }
            }
        }
        let name = intern!(future.py(), "future_add_to_awaited_by");
        tell_of_awaiting(name, future, task)
    }
    #[cfg(not(Py_3_14))]
    {
        let _ = (future, task);
        Ok(())
    }
}

/// Takes back what [`note_awaiting`] has noted.
#[inline]
pub fn forget_awaiting<'py>(future: &Bound<'py, PyAny>, task: &Bound<'py, PyAny>) -> PyResult<()> {
    #[cfg(Py_3_14)]
    {
        if let Some(native) = native::ready(future.py())
            && native.is_future(future.as_ptr())
        {
            let raw = future.as_ptr().cast::<FutureObject>();
            // SAFETY: an object of one of the four types has these fields; the reference is taken out
            // before it is dropped.
            unsafe {
                if (*raw).awaited_by.is_null() {
                    return Ok(());
                }
                if (*raw).awaited_by == task.as_ptr() && (*raw).awaited_by_is_set == 0 {
                    ffi::Py_DECREF(std::ptr::replace(
                        &raw mut (*raw).awaited_by,
                        std::ptr::null_mut(),
                    ));
                    return Ok(());
                }
            }
        }
        let name = intern!(future.py(), "future_discard_from_awaited_by");
        tell_of_awaiting(name, future, task)
    }
    #[cfg(not(Py_3_14))]
    {
        let _ = (future, task);
        Ok(())
    }
}

/// Calls one of asyncio's functions that note who awaits whom, where it is now: it is replaced there together
/// with Future.
#[cfg(Py_3_14)]
fn tell_of_awaiting<'py>(
    name: &Bound<'py, pyo3::types::PyString>,
    future: &Bound<'py, PyAny>,
    task: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let py = future.py();
    static FUTURES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let futures = FUTURES.get_or_try_init(py, || -> PyResult<Py<PyDict>> {
        Ok(py.import("asyncio.futures")?.dict().unbind())
    })?;
    match futures.bind(py).get_item(name)? {
        Some(function) => function.call1((future, task)).map(drop),
        None => Ok(()),
    }
}

/// Whether an exception is asyncio's CancelledError.
pub fn is_cancellation(py: Python<'_>, error: &PyErr) -> bool {
    asyncio(py).is_ok_and(|asyncio| {
        error
            .matches(py, asyncio.cancelled_error.bind(py))
            .is_ok_and(|is| is)
    })
}

/// Whether an object is an instance of asyncio's CancelledError.
pub fn is_cancelled_error(object: &Bound<'_, PyAny>) -> bool {
    let py = object.py();
    asyncio(py).is_ok_and(|asyncio| {
        object
            .is_instance(asyncio.cancelled_error.bind(py))
            .is_ok_and(|is| is)
    })
}
