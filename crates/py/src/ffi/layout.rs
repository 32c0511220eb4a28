//! The memory of asyncio's own futures and tasks, which ours share.
//!
//! Our Future and Task derive from `_asyncio.Future` and `_asyncio.Task` and keep their state *in the
//! fields of these types*, so that every method that we do not replace, every attribute, `repr()`, the
//! finalizers, the collector, `asyncio.Task.done(task)`, and a debugger that reads a process from
//! outside find what they expect. What is hot works on the fields directly.
//!
//! The layout is CPython's private matter. It has four shapes from 3.11 to 3.15; [`verify`] compares
//! the one that this extension was built for with real objects, field by field and flag by flag, before
//! anything relies on it. If it differs (another compiler's bit fields, a free-threaded build, a future
//! release), there are no native tasks: loops run asyncio's, which need none of this.

use std::os::raw::c_int;

use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

/// `fut_state`.
pub const PENDING: c_int = 0;
pub const CANCELLED: c_int = 1;
pub const FINISHED: c_int = 2;

/// The fields of `_asyncio.Future`, and the first ones of `_asyncio.Task`.
#[repr(C)]
pub struct FutureObject {
    pub head: PyObject,
    pub owner: *mut PyObject,
    pub callback0: *mut PyObject,
    pub context0: *mut PyObject,
    pub callbacks: *mut PyObject,
    pub exception: *mut PyObject,
    pub exception_traceback: *mut PyObject,
    pub result: *mut PyObject,
    pub source_traceback: *mut PyObject,
    pub cancel_message: *mut PyObject,
    #[cfg(Py_3_13)]
    pub cancelled_error: *mut PyObject,
    #[cfg(Py_3_14)]
    pub awaited_by: *mut PyObject,
    pub state: c_int,
    #[cfg(not(Py_3_13))]
    log_traceback: c_int,
    #[cfg(not(Py_3_13))]
    blocking: c_int,
    #[cfg(not(Py_3_13))]
    pub dict: *mut PyObject,
    #[cfg(not(Py_3_13))]
    pub weakrefs: *mut PyObject,
    #[cfg(not(Py_3_13))]
    pub cancelled_error: *mut PyObject,
    #[cfg(Py_3_14)]
    pub is_task: u8,
    #[cfg(Py_3_14)]
    pub awaited_by_is_set: u8,
    /// Bit fields: see `LOG_TRACEBACK` and its neighbours.
    #[cfg(Py_3_13)]
    flags: u8,
}

/// The fields of `_asyncio.Task`.
#[repr(C)]
pub struct TaskObject {
    pub future: FutureObject,
    #[cfg(Py_3_13)]
    pub cancel_requests: c_int,
    /// Ours, where the alignment of the next field leaves a hole: see [`super::task::place_of`].
    #[cfg(Py_3_13)]
    pub record: u32,
    pub waiter: *mut PyObject,
    pub coro: *mut PyObject,
    pub name: *mut PyObject,
    pub context: *mut PyObject,
    #[cfg(not(Py_3_13))]
    must_cancel: c_int,
    #[cfg(not(Py_3_13))]
    log_destroy_pending: c_int,
    #[cfg(not(Py_3_13))]
    pub cancel_requests: c_int,
    /// Ours, where the alignment of what follows leaves a hole: see [`super::task::place_of`].
    #[cfg(not(Py_3_13))]
    pub record: u32,
    #[cfg(Py_3_14)]
    pub node: Node,
}

/// A member of a doubly linked list: the tasks of a thread (CPython 3.14), or of a loop.
#[repr(C)]
pub struct Node {
    pub next: *mut Node,
    pub previous: *mut Node,
}

#[cfg(Py_3_13)]
const LOG_TRACEBACK: u8 = 1;
#[cfg(Py_3_13)]
const BLOCKING: u8 = 1 << 1;
#[cfg(Py_3_13)]
const MUST_CANCEL: u8 = 1 << 2;
#[cfg(Py_3_13)]
const LOG_DESTROY_PENDING: u8 = 1 << 3;

/// A flag, wherever this Python keeps it.
macro_rules! flag {
    ($get:ident, $set:ident, $object:ty, ($($old:tt)+), ($($new:tt)+), $bit:ident) => {
        impl $object {
            #[inline(always)]
            pub fn $get(&self) -> bool {
                #[cfg(Py_3_13)]
                return self.$($new)+ & $bit != 0;
                #[cfg(not(Py_3_13))]
                return self.$($old)+ != 0;
            }

            #[inline(always)]
            pub fn $set(&mut self, on: bool) {
                #[cfg(Py_3_13)]
                {
                    self.$($new)+ = self.$($new)+ & !$bit | if on { $bit } else { 0 };
                }
                #[cfg(not(Py_3_13))]
                {
                    self.$($old)+ = on.into();
                }
            }
        }
    };
}

flag!(
    logs_traceback,
    set_logs_traceback,
    FutureObject,
    (log_traceback),
    (flags),
    LOG_TRACEBACK
);
flag!(
    is_blocking,
    set_blocking,
    FutureObject,
    (blocking),
    (flags),
    BLOCKING
);
flag!(
    must_cancel,
    set_must_cancel,
    TaskObject,
    (must_cancel),
    (future.flags),
    MUST_CANCEL
);
flag!(
    logs_destroyed,
    set_logs_destroyed,
    TaskObject,
    (log_destroy_pending),
    (future.flags),
    LOG_DESTROY_PENDING
);

impl FutureObject {
    /// Clears every flag at once; for a new object.
    #[inline(always)]
    pub fn clear_flags(&mut self) {
        #[cfg(Py_3_13)]
        {
            self.flags = 0;
        }
        #[cfg(not(Py_3_13))]
        {
            self.log_traceback = 0;
            self.blocking = 0;
        }
    }
}

/// Why there are no native tasks, or nothing.
pub type Verdict = Result<(), String>;

fn check(holds: bool, what: &str) -> Result<(), PyErr> {
    if holds {
        return Ok(());
    }
    Err(pyo3::exceptions::PyAssertionError::new_err(format!(
        "asyncio keeps {what} elsewhere than this build of tideloop expects"
    )))
}

/// Compares the layout with real objects of asyncio's types.
pub fn verify(py: Python<'_>, future: &Bound<'_, PyType>, task: &Bound<'_, PyType>) -> Verdict {
    let sizes = || -> PyResult<()> {
        let size = |class: &Bound<'_, PyType>| -> PyResult<usize> {
            class.getattr("__basicsize__")?.extract()
        };
        check(
            size(future)? == size_of::<FutureObject>(),
            "the fields of a future",
        )?;
        check(
            size(task)? == size_of::<TaskObject>(),
            "the fields of a task",
        )
    };
    sizes()
        .and_then(|()| verify_future(py, future))
        .and_then(|()| verify_task(py, task))
        .map_err(|error| error.value(py).to_string())
}

/// A loop that records what is scheduled, and objects with an identity.
const PROBE: &std::ffi::CStr = c"
class Loop:
    scheduled = None
    def get_debug(self): return False
    def call_soon(self, callback, *args, context=None): self.scheduled = callback, context
    def call_exception_handler(self, context): pass
class Mark(Exception): pass
async def body(): await awaited
";

fn probes(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let names = PyDict::new(py);
    py.run(PROBE, Some(&names), None)?;
    Ok(names)
}

fn named<'py>(names: &Bound<'py, PyDict>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    names.as_any().get_item(name)
}

fn verify_future(py: Python<'_>, class: &Bound<'_, PyType>) -> PyResult<()> {
    let names = probes(py)?;
    let owner = named(&names, "Loop")?.call0()?;
    let keywords = PyDict::new(py);
    keywords.set_item("loop", &owner)?;
    let make = || class.call((), Some(&keywords));
    let mark = || named(&names, "Mark")?.call0();
    // SAFETY: the sizes agree, so every field read lies inside of the object; the pointers are only
    // compared, never followed.
    let fields = |object: &Bound<'_, PyAny>| unsafe {
        std::ptr::read(object.as_ptr().cast::<FutureObject>())
    };
    let is = |field: *mut PyObject, object: &Bound<'_, PyAny>| field == object.as_ptr();

    let object = make()?;
    let now = fields(&object);
    check(is(now.owner, &owner), "a future's loop")?;
    check(
        now.state == PENDING && !now.is_blocking() && !now.logs_traceback(),
        "a future's state",
    )?;
    object.setattr("_asyncio_future_blocking", true)?;
    let now = fields(&object);
    check(
        now.is_blocking() && !now.logs_traceback(),
        "a future's blocking flag",
    )?;
    object.setattr("_asyncio_future_blocking", false)?;
    check(!fields(&object).is_blocking(), "a future's blocking flag")?;
    let (first, context) = (mark()?, mark()?);
    let with = PyDict::new(py);
    with.set_item("context", &context)?;
    object.call_method("add_done_callback", (&first,), Some(&with))?;
    let now = fields(&object);
    check(is(now.callback0, &first), "a future's first callback")?;
    check(
        is(now.context0, &context),
        "the context of a future's first callback",
    )?;
    check(now.callbacks.is_null(), "a future's callbacks")?;
    object.call_method("add_done_callback", (&first,), Some(&with))?;
    check(!fields(&object).callbacks.is_null(), "a future's callbacks")?;
    let result = mark()?;
    object.call_method1("set_result", (&result,))?;
    let now = fields(&object);
    check(
        now.state == FINISHED && is(now.result, &result),
        "a future's result",
    )?;
    check(
        now.callback0.is_null() && now.callbacks.is_null(),
        "a future's callbacks",
    )?;

    let object = make()?;
    let error = mark()?;
    object.call_method1("set_exception", (&error,))?;
    let now = fields(&object);
    check(
        now.state == FINISHED && is(now.exception, &error),
        "a future's exception",
    )?;
    check(
        now.logs_traceback() && !now.is_blocking(),
        "a future's traceback flag",
    )?;
    object.call_method0("exception")?;
    check(
        !fields(&object).logs_traceback(),
        "a future's traceback flag",
    )?;

    let object = make()?;
    let message = mark()?;
    object.call_method1("cancel", (&message,))?;
    let now = fields(&object);
    check(
        now.state == CANCELLED && is(now.cancel_message, &message),
        "a future's message",
    )?;
    check(now.cancelled_error.is_null(), "a future's cancellation")?;
    check(
        now.source_traceback.is_null(),
        "a future's source traceback",
    )
}

fn verify_task(py: Python<'_>, class: &Bound<'_, PyType>) -> PyResult<()> {
    let names = probes(py)?;
    let owner = named(&names, "Loop")?.call0()?;
    let make = || -> PyResult<Bound<'_, PyAny>> {
        let keywords = PyDict::new(py);
        keywords.set_item("loop", &owner)?;
        keywords.set_item("name", "probe")?;
        let coro = named(&names, "body")?.call0()?;
        let task = class.call((coro,), Some(&keywords))?;
        task.setattr("_log_destroy_pending", false)?;
        Ok(task)
    };
    // SAFETY: as for futures.
    let fields =
        |object: &Bound<'_, PyAny>| unsafe { std::ptr::read(object.as_ptr().cast::<TaskObject>()) };
    let task = make()?;
    let coro = task.call_method0("get_coro")?;
    let now = fields(&task);
    check(
        !now.logs_destroyed() && !now.must_cancel(),
        "a task's flags",
    )?;
    check(now.coro == coro.as_ptr(), "a task's coroutine")?;
    check(
        now.name == task.call_method0("get_name")?.as_ptr(),
        "a task's name",
    )?;
    check(now.waiter.is_null(), "what a task waits for")?;
    let (_, context): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        owner.getattr("scheduled")?.extract()?;
    check(now.context == context.as_ptr(), "a task's context")?;
    #[cfg(Py_3_14)]
    check(
        now.future.is_task == 1 && !now.node.next.is_null(),
        "a task's place in its list",
    )?;
    task.setattr("_log_destroy_pending", true)?;
    let now = fields(&task);
    check(now.logs_destroyed() && !now.must_cancel(), "a task's flags")?;
    task.setattr("_log_destroy_pending", false)?;
    task.call_method0("cancel")?;
    task.call_method0("cancel")?;
    let now = fields(&task);
    check(now.must_cancel() && !now.logs_destroyed(), "a task's flags")?;
    check(
        !now.future.logs_traceback() && !now.future.is_blocking(),
        "a task's flags",
    )?;
    check(now.cancel_requests == 2, "the number of cancellations")?;
    // The step that the loop recorded keeps the task, which keeps the loop.
    owner.setattr("scheduled", py.None())?;
    coro.call_method0("close")?;
    Ok(())
}
