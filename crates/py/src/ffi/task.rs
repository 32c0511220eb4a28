//! Task: asyncio's, run by the loop itself.
//!
//! The type derives from `_asyncio.Task` and keeps its state in that type's fields (see
//! [`super::layout`]), so everything that is not below is asyncio's own code.
//!
//! **On a loop of ours** a task is an entry of the ready ring: [`Entry::step`] when it is new or has
//! yielded None, [`Entry::wake`] when the future that it awaits is done. Between these it hangs on that
//! future: as its first callback the future holds the object `wake`, and in the place of that callback's
//! context a reference to the task. Nothing is allocated to wait or to be woken.
//! **On any other loop** it schedules itself by `loop.call_soon`, with bound builtins as callbacks, as
//! asyncio's task does.
//!
//! **Who owns a task.** The ring entry, or the future it waits for, or whoever keeps it; nothing else, as
//! in asyncio. A pending task that nobody owns is destroyed and reported.
//!
//! **Re-entrancy.** A step runs the coroutine, which may do anything: cancel the task, drop the last
//! reference to it (the ring's entry was moved to our stack, so it lives), end the future it is about to
//! await. After every call out the fields are read again; a field is emptied before its reference is
//! dropped.
//!
//! **Garbage collection.** A task that is in the ring of a running loop is reachable from the stack of that
//! loop's thread, so it cannot be garbage and is not shown to the collector, which saves it most of the
//! tasks that there are. It is shown when it hangs itself on a future, when it ends while somebody keeps
//! it, and when the loop stops (`LoopCore::_run`). Nor is it shown while it sleeps: the future that it hangs on
//! then is one that a timer of the loop has ([`future::hide_sleeper`]).
//!
//! A task's own context is hidden with it ([`super::hidden`]) and shown with it, but for one that is empty when
//! the task has ended. Its coroutine is hidden before its first step, while it sleeps itself (not in another
//! coroutine), and when it has ended, since it refers to nothing then.
//!
//! **Which tasks there are.** `asyncio.all_tasks` must find them. Since 3.14 asyncio keeps a linked list
//! per thread through the tasks themselves, and so do we. Before, it has a WeakSet, whose cost is that of
//! three small tasks; there a task of ours hangs in a list of its loop, which the set that `all_tasks`
//! reads includes (`tideloop.loop.tasks`).

use std::os::raw::{c_int, c_void};
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::Borrowed;
use pyo3::exceptions::{
    PyKeyboardInterrupt, PyRecursionError, PyRuntimeError, PySystemExit, PyTypeError,
};
use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use super::current::{self, Current};
use super::entry::Entry;
use super::future::{self, Outcome, core_of, slot};
use super::layout::{CANCELLED, FutureObject, Node, PENDING, TaskObject};
use super::native::{Native, native};
use super::{ahead, call, depth, guard, hidden, operation, refcheck};
use crate::event_loop::LoopCore;
use tideloop_core::observe::book::{End, Place};

/// asyncio's fields, and before 3.14 the place in the loop's list.
#[repr(C)]
pub struct Task {
    base: TaskObject,
    #[cfg(not(Py_3_14))]
    node: Node,
}

/// The place of a task in the list of its loop or thread.
///
/// # Safety
///
/// `task` is a task of ours.
#[inline(always)]
unsafe fn node_of(task: *mut Task) -> *mut Node {
    // SAFETY: passed on to the caller.
    unsafe {
        #[cfg(Py_3_14)]
        return &raw mut (*task).base.node;
        #[cfg(not(Py_3_14))]
        return &raw mut (*task).node;
    }
}

/// Takes a task out of the list that it is in, if any.
///
/// # Safety
///
/// `node` is that of a live task; the GIL, which orders all changes of the lists, is held.
#[inline(always)]
pub unsafe fn unlink(node: *mut Node) {
    // SAFETY: neighbours of a linked node are alive: tasks leave before they die, and the head belongs
    // to the thread's state (3.14) or to the loop, which its tasks own.
    unsafe {
        if !(*node).next.is_null() {
            (*(*node).previous).next = (*node).next;
            (*(*node).next).previous = (*node).previous;
            (*node).next = null_mut();
            (*node).previous = null_mut();
        }
    }
}

/// # Safety
///
/// `head` is that of a list whose thread or loop is alive; `node` is in no list.
#[inline(always)]
unsafe fn link(head: *mut Node, node: *mut Node) {
    // SAFETY: as in `unlink`.
    unsafe {
        let last = (*head).previous;
        (*node).previous = last;
        (*node).next = head;
        (*last).next = node;
        (*head).previous = node;
    }
}

// --- creation ----------------------------------------------------------------------------------

/// The number of the last task that was not given a name.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The name of a task that was given none: its number, which get_name() spells out.
fn numbered(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // The GIL orders these; an atomic addition would cost a tenth of what we do for a task.
    let number = NUMBER.load(Ordering::Relaxed) + 1;
    NUMBER.store(number, Ordering::Relaxed);
    // SAFETY: returns a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyLong_FromUnsignedLongLong(number)) }
}

/// What `name=` was given, as str.
fn name_of<'py>(name: Option<&Bound<'py, PyAny>>, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
    match name {
        None => numbered(py),
        Some(name) if name.is_none() => numbered(py),
        Some(name) if name.is_exact_instance_of::<PyString>() => Ok(name.clone()),
        Some(name) => Ok(name.str()?.into_any()),
    }
}

/// # Errors
///
/// TypeError if asyncio does not take the object for a coroutine.
#[inline]
fn expect_coroutine(native: &Native, coro: &Bound<'_, PyAny>) -> PyResult<()> {
    // SAFETY: a live object.
    if unsafe { ffi::PyCoro_CheckExact(coro.as_ptr()) } != 0
        || operation::is_operation(coro)
        || native
            .is_coroutine
            .bind(coro.py())
            .call1((coro,))?
            .is_truthy()?
    {
        return Ok(());
    }
    Err(PyTypeError::new_err(format!(
        "a coroutine was expected, got {}",
        coro.repr()?
    )))
}

/// The context that a task runs in: the given one, or a copy of the current one.
///
/// # Errors
///
/// TypeError for anything but a context, from 3.15 on; older Pythons find out in the first step.
#[inline]
fn context_of<'py>(
    given: Option<Bound<'py, PyAny>>,
    py: Python<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let Some(context) = given else {
        return call::copy_context(py);
    };
    // SAFETY: a live object; only its type is looked at.
    if cfg!(Py_3_15) && unsafe { ffi::PyContext_CheckExact(context.as_ptr()) } == 0 {
        return Err(PyTypeError::new_err(format!(
            "a contextvars.Context was expected, got {}",
            context.get_type().name()?
        )));
    }
    Ok(context)
}

/// Makes a task of a loop that is ours and not in debug mode, and schedules its first step.
#[inline]
pub fn spawn<'py>(
    core: &Bound<'py, LoopCore>,
    native: &Native,
    coro: &Bound<'py, PyAny>,
    name: Option<&Bound<'py, PyAny>>,
    context: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = core.py();
    expect_coroutine(native, coro)?;
    let name = name_of(name, py)?;
    let given = context.filter(|context| !context.is_none());
    let context = context_of(given.cloned(), py)?;
    // SAFETY: the type has Task's size; every field behind the head is written before anything else
    // can see the object.
    unsafe {
        let class = native.task.as_ptr().cast();
        let mut task: *mut Task = core
            .get()
            .queue(py, |queue| queue.spare_tasks.take(class))
            .cast();
        if task.is_null() {
            task = ffi::PyObject_GC_New::<Task>(class);
        }
        if task.is_null() {
            return Err(PyErr::fetch(py));
        }
        future::initialise(task.cast(), ffi::Py_NewRef(core.as_ptr()));
        let base = &mut (*task).base;
        base.waiter = null_mut();
        base.coro = ffi::Py_NewRef(coro.as_ptr());
        base.name = name.into_ptr();
        base.context = context.into_ptr();
        base.cancel_requests = 0;
        base.record = 0;
        base.set_must_cancel(false);
        base.set_logs_destroyed(true);
        #[cfg(Py_3_14)]
        {
            base.future.is_task = 1;
        }
        *node_of(task) = Node {
            next: null_mut(),
            previous: null_mut(),
        };
        let object = Bound::from_owned_ptr(py, task.cast());
        register(py, native, Some(core.get()), task)?;
        if core.get().is_running() {
            if given.is_none() {
                hidden::hide((*task).base.context);
            }
            if can_be_hidden(coro) {
                hidden::hide(coro.as_ptr());
            }
        } else {
            ffi::PyObject_GC_Track(task.cast());
        }
        if core.get().register().is_some() {
            note(core.get(), &object, coro);
        }
        core.get()
            .push_entry(py, Entry::step(object.clone().unbind()));
        Ok(object)
    }
}

// --- observing ---------------------------------------------------------------------------------

/// Where the loop keeps what it counts of this task ([`crate::observe::tasks`]); None: nowhere, or it is none of ours.
///
/// The number stands in the hole that alignment leaves between two of asyncio's own fields, whose size `layout::verify`
/// has compared: asyncio's code never writes there, and a loop that counts nothing of tasks pays no byte for it.
#[inline(always)]
pub fn place_of(task: &Bound<'_, PyAny>) -> Option<Place> {
    let native = super::native::ready(task.py())?;
    if native.is_task(task.as_ptr()) {
        place_of_entry(task)
    } else {
        None
    }
}

/// As [`place_of`], of an entry of the ring.
#[inline(always)]
pub fn place_of_entry(task: &Bound<'_, PyAny>) -> Option<Place> {
    // SAFETY: entries of the ring hold tasks of ours.
    unsafe { Place::new((*task.as_ptr().cast::<Task>()).base.record) }
}

/// Has the loop count what this task, which it knows nothing of, does.
///
/// # Safety
///
/// `task` is a task of ours.
#[inline]
unsafe fn note(core: &LoopCore, task: &Bound<'_, PyAny>, coro: &Bound<'_, PyAny>) {
    let place = crate::observe::tasks::begins(core, task, coro);
    // SAFETY: passed on to the caller.
    unsafe { (*task.as_ptr().cast::<Task>()).base.record = place.map_or(0, Place::get) };
}

/// What is known of a task that is over, or another one from now on, is known no longer.
///
/// # Safety
///
/// `task` is a task of ours whose loop is alive, or null.
#[cold]
unsafe fn forget(py: Python<'_>, task: *mut Task) {
    // SAFETY: passed on to the caller.
    unsafe {
        let place = Place::new(ptr::replace(&raw mut (*task).base.record, 0));
        let owner = (*task).base.future.owner;
        if let Some(place) = place
            && !owner.is_null()
            && let Some(register) = future::any_core_of(py, owner).and_then(|core| core.register())
        {
            register.ended(py, place, End::Dropped);
        }
    }
}

/// A step of a task of ours has ended and the task with it: how; and its record is free to go.
#[inline]
pub fn take_ended(task: &Bound<'_, PyAny>) -> Option<End> {
    let task = task.as_ptr().cast::<Task>();
    // SAFETY: entries of the ring hold tasks of ours; the caller keeps this one alive.
    unsafe {
        let future = &(*task).base.future;
        let end = match future.state {
            PENDING => return None,
            CANCELLED => End::Cancelled,
            _ if future.exception.is_null() => End::Ok,
            _ => End::Failed,
        };
        (*task).base.record = 0;
        Some(end)
    }
}

/// Whether an object is a coroutine of which is known that it refers to nothing once it has ended.
#[inline(always)]
fn can_be_hidden(coro: &Bound<'_, PyAny>) -> bool {
    call::is_exact_coroutine(coro) || operation::is_operation(coro)
}

/// Puts a task where all_tasks() finds it.
///
/// # Safety
///
/// `task` is alive and in no list.
#[inline]
unsafe fn register(
    py: Python<'_>,
    native: &Native,
    core: Option<&LoopCore>,
    task: *mut Task,
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        if let Some(head) = core.and_then(|core| core.tasks_head(py)) {
            link(head, node_of(task));
            return Ok(());
        }
        native
            .register_task
            .bind(py)
            .call1((Bound::from_borrowed_ptr(py, task.cast()),))?;
        #[cfg(Py_3_14)]
        if let Some(core) = core
            && core.is_running_here()
        {
            // The task is the last one in the list of this thread, so the head is what comes next.
            core.set_tasks_head(py, (*node_of(task)).next);
        }
        Ok(())
    }
}

/// The list of a loop's tasks: a ring through the tasks, with its head in a box, so that it never moves.
#[cfg(not(Py_3_14))]
pub struct TaskList(Box<Node>);

// SAFETY: the list is only touched with the GIL held: it lives in a loop's cell, and tasks leave it
// when they end or die.
#[cfg(not(Py_3_14))]
unsafe impl Send for TaskList {}

#[cfg(not(Py_3_14))]
impl Default for TaskList {
    fn default() -> Self {
        let mut head = Box::new(Node {
            next: null_mut(),
            previous: null_mut(),
        });
        let address: *mut Node = &raw mut *head;
        (head.next, head.previous) = (address, address);
        Self(head)
    }
}

#[cfg(not(Py_3_14))]
impl TaskList {
    pub fn head(&mut self) -> *mut Node {
        &raw mut *self.0
    }

    /// The tasks in the list, oldest first.
    pub fn tasks<'py>(&mut self, py: Python<'py>) -> Vec<Bound<'py, PyAny>> {
        let head = self.head();
        let mut tasks = Vec::new();
        // SAFETY: every node but the head is inside of a live task; nothing else runs in between.
        unsafe {
            let mut node = (*head).next;
            while node != head {
                let task = node
                    .byte_sub(std::mem::offset_of!(Task, node))
                    .cast::<PyObject>();
                tasks.push(Bound::from_borrowed_ptr(py, task));
                node = (*node).next;
            }
        }
        tasks
    }
}

/// `Task.__init__`.
unsafe extern "C" fn init(
    object: *mut PyObject,
    args: *mut PyObject,
    keywords: *mut PyObject,
) -> c_int {
    // SAFETY: called by the interpreter with a live object of this type, a tuple, and a dict or null.
    let made = unsafe {
        guard(|py| {
            super::attached(py, |py| {
                let args = Bound::from_borrowed_ptr(py, args).cast_into_unchecked::<PyTuple>();
                let keywords = Bound::from_borrowed_ptr_or_opt(py, keywords)
                    .map(|keywords| keywords.cast_into_unchecked::<PyDict>());
                construct(py, object.cast(), &args, keywords.as_ref())
            })?;
            Ok(py.None().into_bound(py))
        })
    };
    if made.is_null() {
        return -1;
    }
    // SAFETY: an owned reference.
    unsafe { ffi::Py_DECREF(made) };
    0
}

/// What `Task(...)` was called with.
#[derive(Default)]
struct Given<'py> {
    coro: Option<Bound<'py, PyAny>>,
    owner: Option<Bound<'py, PyAny>>,
    name: Option<Bound<'py, PyAny>>,
    context: Option<Bound<'py, PyAny>>,
    eager: bool,
}

fn parse<'py>(
    args: &Bound<'py, PyTuple>,
    keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<Given<'py>> {
    let mut given = Given::default();
    if args.len() > 1 {
        return Err(PyTypeError::new_err(format!(
            "Task() takes exactly 1 positional argument ({} given)",
            args.len()
        )));
    }
    if !args.is_empty() {
        given.coro = Some(args.get_item(0)?);
    }
    for (key, value) in keywords.into_iter().flatten() {
        match key.cast::<PyString>()?.to_str()? {
            "coro" if given.coro.is_none() => given.coro = Some(value),
            "loop" => given.owner = Some(value).filter(|owner| !owner.is_none()),
            "name" => given.name = Some(value).filter(|name| !name.is_none()),
            "context" => given.context = Some(value).filter(|context| !context.is_none()),
            "eager_start" if cfg!(Py_3_12) => given.eager = value.is_truthy()?,
            other => {
                return Err(PyTypeError::new_err(format!(
                    "Task() got an unexpected keyword argument '{other}'"
                )));
            }
        }
    }
    Ok(given)
}

/// Fills a task made by its type; a filled one is filled anew.
///
/// # Safety
///
/// `task` is a live object of our type, zeroed or filled.
unsafe fn construct(
    py: Python<'_>,
    task: *mut Task,
    args: &Bound<'_, PyTuple>,
    keywords: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    let native = native(py)?;
    let given = parse(args, keywords)?;
    if given.eager {
        depth::room(c" while starting a task eagerly")?;
    }
    let Some(coro) = given.coro else {
        return Err(PyTypeError::new_err(
            "Task() missing required argument 'coro' (pos 1)",
        ));
    };
    let owner = given.owner.unwrap_or_else(|| py.None().into_bound(py));
    let for_future = PyDict::new(py);
    for_future.set_item(intern!(py, "loop"), &owner)?;
    // SAFETY: passed on to the caller. asyncio's own initialisation of a future, which finds the loop,
    // takes the source traceback in debug mode and empties what was there; then the fields of a task,
    // each replaced before its old content is dropped.
    unsafe {
        if (*task).base.record != 0 {
            forget(py, task);
        }
        let stock = &*native.stock_future.as_ptr().cast::<ffi::PyTypeObject>();
        let no_args = PyTuple::empty(py);
        let Some(init_future) = stock.tp_init else {
            return Err(PyRuntimeError::new_err(
                "asyncio.Future cannot be initialised",
            ));
        };
        if init_future(task.cast(), no_args.as_ptr(), for_future.as_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
        #[cfg(Py_3_14)]
        {
            (*task).base.future.is_task = 1;
        }
        if let Err(error) = expect_coroutine(native, &coro) {
            (*task).base.set_logs_destroyed(false);
            return Err(error);
        }
        let context = match context_of(given.context, py) {
            Ok(context) => context,
            Err(error) => {
                (*task).base.set_logs_destroyed(false);
                return Err(error);
            }
        };
        let name = name_of(given.name.as_ref(), py)?;
        show_owned(task);
        let set = |field: *mut *mut PyObject, value: *mut PyObject| {
            ffi::Py_XDECREF(ptr::replace(field, value));
        };
        set(&raw mut (*task).base.context, context.into_ptr());
        set(&raw mut (*task).base.waiter, null_mut());
        set(&raw mut (*task).base.name, name.into_ptr());
        set(&raw mut (*task).base.coro, ffi::Py_NewRef(coro.as_ptr()));
        (*task).base.set_must_cancel(false);
        (*task).base.set_logs_destroyed(true);
        (*task).base.cancel_requests = 0;
        let owner = (*task).base.future.owner;
        let core = core_of(py, owner);
        if given.eager {
            let running = Bound::from_borrowed_ptr(py, owner).call_method0("is_running")?;
            if running.is_truthy()? {
                start_eagerly(py, native, task)?;
                note_known(py, task, &coro);
                return end_known(py, task);
            }
        }
        step_soon(py, task, core)?;
        if (*node_of(task)).next.is_null() {
            register(py, native, core, task)?;
        }
        note_known(py, task, &coro);
        Ok(())
    }
}

/// Has the task's loop count what it does, if that is one of ours which does so.
///
/// # Safety
///
/// `task` is alive and filled.
unsafe fn note_known(py: Python<'_>, task: *mut Task, coro: &Bound<'_, PyAny>) {
    // SAFETY: passed on to the caller.
    unsafe {
        if let Some(core) = future::any_core_of(py, (*task).base.future.owner)
            && core.register().is_some()
        {
            note(core, &Bound::from_borrowed_ptr(py, task.cast()), coro);
        }
    }
}

/// Has the task's loop, if it counts it, book that the task has ended in its first step, inside of another one's, if it has.
///
/// # Safety
///
/// `task` is alive and filled.
unsafe fn end_known(py: Python<'_>, task: *mut Task) -> PyResult<()> {
    // SAFETY: passed on to the caller, who keeps the task and so its loop alive.
    unsafe {
        let object = Bound::from_borrowed_ptr(py, task.cast());
        let owner = Bound::from_borrowed_ptr(py, (*task).base.future.owner);
        let Some(place) = place_of_entry(&object) else {
            return Ok(());
        };
        let core = future::any_core_of(py, owner.as_ptr());
        if let Some(register) = core.and_then(|core| core.register())
            && let Some(end) = take_ended(&object)
        {
            register.ended(py, place, end);
            if end == End::Failed {
                owner.call_method1(intern!(py, "_task_failed"), (object,))?;
            }
        }
        Ok(())
    }
}

/// Schedules the next step.
///
/// # Safety
///
/// `task` is alive; `core` is that of its loop.
#[inline]
unsafe fn step_soon(py: Python<'_>, task: *mut Task, core: Option<&LoopCore>) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        match core {
            Some(core) if core.accepts_natively() => {
                let object = Bound::from_borrowed_ptr(py, task.cast()).unbind();
                core.push_entry(py, Entry::step(object));
                Ok(())
            }
            _ => {
                show_to_collector(task);
                let step = bound(py, &STEP, task)?;
                call_soon(py, task, &step, None)
            }
        }
    }
}

/// `loop.call_soon(callback[, argument], context=the task's)`.
///
/// # Safety
///
/// `task` is alive.
unsafe fn call_soon(
    py: Python<'_>,
    task: *mut Task,
    callback: &Bound<'_, PyAny>,
    argument: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    // SAFETY: the loop and the context are kept alive during the call, whatever it does to the task.
    unsafe {
        let owner = Bound::from_borrowed_ptr(py, (*task).base.future.owner);
        let context = Bound::from_borrowed_ptr(py, (*task).base.context);
        let with = PyDict::new(py);
        with.set_item(intern!(py, "context"), context)?;
        let name = intern!(py, "call_soon");
        match argument {
            Some(argument) => owner.call_method(name, (callback, argument), Some(&with))?,
            None => owner.call_method(name, (callback,), Some(&with))?,
        };
        Ok(())
    }
}

/// Runs the first step now, inside of the task that runs.
///
/// # Safety
///
/// `task` is alive and its loop runs in this thread.
unsafe fn start_eagerly(py: Python<'_>, native: &Native, task: *mut Task) -> PyResult<()> {
    // SAFETY: passed on to the caller, who keeps the task alive.
    unsafe {
        let object = Bound::from_borrowed_ptr(py, task.cast());
        let owner = Bound::from_borrowed_ptr(py, (*task).base.future.owner);
        let context = Bound::from_borrowed_ptr(py, (*task).base.context);
        let before = current::swap(py, native, owner.as_ptr(), task.cast())?;
        let register_now = if cfg!(Py_3_14) {
            Some(&native.register_task)
        } else {
            native.register_eager_task.as_ref()
        };
        if let Some(register) = register_now {
            register.bind(py).call1((&object,))?;
        }
        let stepped = call::in_context(&context, |py| step(py, native, task, None));
        if let Some(unregister) = native
            .unregister_eager_task
            .as_ref()
            .filter(|_| !cfg!(Py_3_14))
        {
            unregister.bind(py).call1((&object,))?;
        }
        current::swap(py, native, owner.as_ptr(), before.as_ptr())?;
        if (*task).base.future.state == PENDING {
            if !cfg!(Py_3_14) {
                register(py, native, core_of(py, owner.as_ptr()), task)?;
            }
        } else {
            ffi::Py_XDECREF(ptr::replace(&raw mut (*task).base.coro, null_mut()));
        }
        stepped
    }
}

// --- running -----------------------------------------------------------------------------------

/// Asks for the memory of what a task's next step touches beside the task ([`ahead`]).
///
/// # Safety
///
/// A live task of ours.
#[inline(always)]
pub unsafe fn ask_further(object: *mut PyObject) {
    // SAFETY: passed on to the caller. A field that is null is asked for in vain.
    unsafe {
        let base = &(*object.cast::<Task>()).base;
        ahead::coroutine(base.coro);
        ahead::context(base.context);
        if !base.waiter.is_null() {
            ahead::future(base.waiter);
        }
    }
}

/// Runs one entry of the ring: a step, or (`woken`) a step after the future that the task awaited.
///
/// # Errors
///
/// Only KeyboardInterrupt and SystemExit; every other exception goes to the loop's exception handler.
#[inline]
pub fn run<'py>(
    core: &Bound<'py, LoopCore>,
    current: &mut Current<'py>,
    object: &Bound<'py, PyAny>,
    woken: bool,
) -> PyResult<()> {
    let py = core.py();
    let native = native(py)?;
    let task = object.as_ptr().cast::<Task>();
    refcheck::alive(object.as_ptr(), "a task to be run");
    // SAFETY: entries of the ring hold tasks of ours, and the caller's reference keeps this one alive.
    unsafe {
        let context = (*task).base.context;
        ffi::Py_INCREF(context);
        let result = if ffi::PyContext_Enter(context) < 0 {
            Err(PyErr::fetch(py))
        } else {
            let stepped = current.enter(object.as_ptr()).and_then(|()| {
                if woken {
                    wake_up(py, native, task)
                } else {
                    step(py, native, task, None)
                }
            });
            if ffi::PyContext_Exit(context) < 0 {
                Err(PyErr::fetch(py))
            } else {
                stepped
            }
        };
        ffi::Py_DECREF(context);
        match result {
            Ok(()) => Ok(()),
            Err(error) => report(core, object, error),
        }
    }
}

#[cold]
fn report(core: &Bound<'_, LoopCore>, task: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    let py = core.py();
    if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) {
        return Err(error);
    }
    let name = intern!(py, "_step_failed");
    core.call_method1(name, (task, error.into_value(py)))
        .map(drop)
}

/// Goes on after the future that the task awaits.
///
/// # Safety
///
/// `task` is alive during the call, entered, and its context is the current one.
#[inline]
unsafe fn wake_up(py: Python<'_>, native: &Native, task: *mut Task) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        let awaited = (*task).base.waiter;
        if awaited.is_null() {
            return step(py, native, task, None);
        }
        let awaited = Bound::from_borrowed_ptr(py, awaited);
        resume(py, native, task, &awaited)
    }
}

/// Goes on with what a future ended with.
///
/// # Safety
///
/// As [`wake_up`].
#[inline]
unsafe fn resume(
    py: Python<'_>,
    native: &Native,
    task: *mut Task,
    awaited: &Bound<'_, PyAny>,
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        if native.is_future(awaited.as_ptr()) {
            let future = awaited.as_ptr().cast::<FutureObject>();
            // From here on it may be anybody's: see `future::hide_sleeper`.
            hidden::show(awaited.as_ptr());
            #[cfg(Py_3_14)]
            if (*future).awaited_by == task.cast() && (*future).awaited_by_is_set == 0 {
                ffi::Py_DECREF(ptr::replace(&raw mut (*future).awaited_by, null_mut()));
            } else {
                call_awaited_by(py, native.discard_awaited_by.as_ref(), awaited, task)?;
            }
            return match future::outcome(py, native, future) {
                Ok(Outcome::Result(_)) => step(py, native, task, None),
                Ok(Outcome::Error(error)) => step(py, native, task, Some(error)),
                Err(error) => step(
                    py,
                    native,
                    task,
                    Some(error.into_value(py).into_bound(py).into_any()),
                ),
            };
        }
        call_awaited_by(py, native.discard_awaited_by.as_ref(), awaited, task)?;
        match awaited.call_method0(intern!(py, "result")) {
            Ok(_) => step(py, native, task, None),
            Err(error) => step(
                py,
                native,
                task,
                Some(error.into_value(py).into_bound(py).into_any()),
            ),
        }
    }
}

/// Tells asyncio (3.14) that a future is, or no longer is, awaited by a task.
///
/// # Safety
///
/// `task` is alive.
unsafe fn call_awaited_by(
    py: Python<'_>,
    function: Option<&Py<PyAny>>,
    awaited: &Bound<'_, PyAny>,
    task: *mut Task,
) -> PyResult<()> {
    if let Some(function) = function {
        // SAFETY: passed on to the caller.
        let task = unsafe { Bound::from_borrowed_ptr(py, task.cast()) };
        function.bind(py).call1((awaited, task))?;
    }
    Ok(())
}

/// One step: sends None to the coroutine, or throws an exception into it, and does what it asks for.
///
/// # Errors
///
/// KeyboardInterrupt and SystemExit that the coroutine ended with, and what went wrong around it.
///
/// # Safety
///
/// As [`wake_up`].
#[inline]
unsafe fn step(
    py: Python<'_>,
    native: &Native,
    task: *mut Task,
    error: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    // SAFETY: passed on to the caller. `result` is an owned reference wherever it is not null.
    unsafe {
        if (*task).base.future.state != PENDING {
            return Err(already_done(py, native, task, error));
        }
        let mut error = error;
        if (*task).base.must_cancel() {
            let is_cancel = error.as_ref().is_some_and(|error| {
                ffi::PyErr_GivenExceptionMatches(error.as_ptr(), native.cancelled_error.as_ptr())
                    != 0
            });
            if !is_cancel {
                error = Some(future::cancelled_error(py, native, task.cast())?);
            }
            (*task).base.set_must_cancel(false);
        }
        let awaited = ptr::replace(&raw mut (*task).base.waiter, null_mut());
        if !awaited.is_null() {
            ffi::Py_DECREF(awaited);
        }
        let coro = (*task).base.coro;
        if coro.is_null() {
            return Err(PyRuntimeError::new_err("uninitialized Task object"));
        }
        show_coroutine(coro);
        let mut result = null_mut();
        let status = match error {
            None => ffi::PyIter_Send(coro, ffi::Py_None(), &mut result),
            Some(error) => throw(py, coro, error, &mut result),
        };
        match status {
            ffi::PySendResult::PYGEN_NEXT => handle_yield(py, native, task, result),
            ffi::PySendResult::PYGEN_RETURN => {
                if (*task).base.must_cancel() {
                    // Cancelled right before the coroutine ended.
                    (*task).base.set_must_cancel(false);
                    ffi::Py_DECREF(result);
                    let message =
                        Bound::from_borrowed_ptr_or_opt(py, (*task).base.future.cancel_message);
                    let message = message.as_ref().map_or(null_mut(), Bound::as_ptr);
                    return future::cancel(py, native, task.cast(), message).map(drop);
                }
                if ffi::Py_REFCNT(task.cast()) > 2 || !(*task).base.future.callback0.is_null() {
                    // Somebody keeps it, beside our caller and the record of the running task, or is going
                    // to get it: with its result it may be part of a cycle.
                    show_ended(task);
                }
                if future::set_result(py, native, task.cast(), result) {
                    ended(py, task);
                    Ok(())
                } else {
                    Err(PyErr::fetch(py))
                }
            }
            ffi::PySendResult::PYGEN_ERROR => failed(py, native, task),
        }
    }
}

/// Before 3.14: a task that is done leaves the list of its loop.
///
/// # Safety
///
/// `task` is alive.
#[inline(always)]
unsafe fn ended(_py: Python<'_>, _task: *mut Task) {
    #[cfg(not(Py_3_14))]
    // SAFETY: passed on to the caller.
    unsafe {
        unlink(node_of(_task));
    }
}

#[cold]
unsafe fn already_done(
    py: Python<'_>,
    native: &Native,
    task: *mut Task,
    error: Option<Bound<'_, PyAny>>,
) -> PyErr {
    // SAFETY: the caller's task is alive.
    let task = unsafe { Bound::from_borrowed_ptr(py, task.cast()) };
    let name = if cfg!(Py_3_12) { "__step()" } else { "_step()" };
    let message = (|| -> PyResult<String> {
        let error = error.map_or_else(
            || Ok("None".to_owned()),
            |error| error.repr().map(|r| r.to_string()),
        )?;
        Ok(format!("{name}: already done: {} {error}", task.repr()?))
    })();
    match message.and_then(|message| native.invalid_state_error.bind(py).call1((message,))) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// `coro.throw(error)`.
///
/// # Safety
///
/// `coro` is kept alive by its caller; `result` is null.
pub unsafe fn throw(
    py: Python<'_>,
    coro: *mut PyObject,
    error: Bound<'_, PyAny>,
    result: &mut *mut PyObject,
) -> ffi::PySendResult {
    let arguments = [coro, error.as_ptr()];
    // SAFETY: the arguments are alive during the call; the task keeps its coroutine.
    unsafe {
        if operation::is_operation(&Borrowed::from_ptr(py, coro)) {
            return operation::throw(coro, error, result);
        }
        *result = ffi::PyObject_VectorcallMethod(
            intern!(py, "throw").as_ptr(),
            arguments.as_ptr(),
            2,
            null_mut(),
        );
        if !(*result).is_null() {
            return ffi::PySendResult::PYGEN_NEXT;
        }
        if ffi::PyErr_ExceptionMatches(ffi::PyExc_StopIteration) == 0 {
            return ffi::PySendResult::PYGEN_ERROR;
        }
        let stop = call::take_raised(py);
        match stop.getattr(intern!(py, "value")) {
            Ok(value) => {
                *result = value.into_ptr();
                ffi::PySendResult::PYGEN_RETURN
            }
            Err(error) => {
                error.restore(py);
                ffi::PySendResult::PYGEN_ERROR
            }
        }
    }
}

/// Ends a task whose coroutine has raised; the exception is set.
///
/// # Safety
///
/// As [`step`].
#[cold]
unsafe fn failed(py: Python<'_>, native: &Native, task: *mut Task) -> PyResult<()> {
    let error = call::take_raised(py);
    // SAFETY: passed on to the caller; references are moved into empty fields.
    unsafe {
        let future = task.cast::<FutureObject>();
        if ffi::PyErr_GivenExceptionMatches(error.as_ptr(), native.cancelled_error.as_ptr()) != 0 {
            show_ended(task);
            let before = ptr::replace(&raw mut (*future).cancelled_error, error.into_ptr());
            ffi::Py_XDECREF(before);
            let cancelled = future::cancel(py, native, future, null_mut());
            ended(py, task);
            return cancelled.map(drop);
        }
        // A coroutine that could not be run, since it runs elsewhere, has not ended.
        show_to_collector(task);
        let set = future::set_exception(py, native, future, error.clone().into_ptr());
        ended(py, task);
        if !set {
            return Err(PyErr::fetch(py));
        }
        if error.is_instance_of::<PyKeyboardInterrupt>() || error.is_instance_of::<PySystemExit>() {
            return Err(PyErr::from_value(error));
        }
        Ok(())
    }
}

/// Does what a coroutine that has yielded asks for. `result` is an owned reference.
///
/// # Safety
///
/// As [`step`].
#[inline]
unsafe fn handle_yield(
    py: Python<'_>,
    native: &Native,
    task: *mut Task,
    result: *mut PyObject,
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        if result == ffi::Py_None() {
            // A bare yield: let the others run once. None is immortal or at least never the last.
            ffi::Py_DECREF(result);
            return step_soon(py, task, core_of(py, (*task).base.future.owner));
        }
        let result = Bound::from_owned_ptr(py, result);
        if native.is_future(result.as_ptr()) && result.as_ptr() != task.cast() {
            return park(py, native, task, result);
        }
        handle_other(py, native, task, result)
    }
}

/// Waits for one of the four types of futures that we know.
///
/// # Safety
///
/// As [`step`].
#[inline]
unsafe fn park(
    py: Python<'_>,
    native: &Native,
    task: *mut Task,
    awaited: Bound<'_, PyAny>,
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        let future = awaited.as_ptr().cast::<FutureObject>();
        let owner = (*task).base.future.owner;
        if (*future).owner != owner {
            return complain(py, task, Complaint::OtherLoop, &awaited);
        }
        if !(*future).is_blocking() {
            return complain(py, task, Complaint::NotAwaited, &awaited);
        }
        #[cfg(Py_3_14)]
        if (*future).awaited_by.is_null() {
            (*future).awaited_by = ffi::Py_NewRef(task.cast());
        } else {
            call_awaited_by(py, native.add_awaited_by.as_ref(), &awaited, task)?;
        }
        (*future).set_blocking(false);
        let core = core_of(py, owner);
        let hangs_alone = core.is_some()
            && (*future).state == PENDING
            && (*future).callback0.is_null()
            && (*future).callbacks.is_null();
        if !(hangs_alone && hidden::is_hidden(future.cast())) {
            show_to_collector(task);
        } else if ffi::PyObject_GC_IsTracked(task.cast()) == 0
            && awaits((*task).base.coro, &awaited)
        {
            hidden::hide((*task).base.coro);
        }
        if hangs_alone {
            (*future).callback0 = ffi::Py_NewRef(native.wake.as_ptr());
            (*future).context0 = ffi::Py_NewRef(task.cast());
        } else {
            hang_on(py, native, task, &awaited, core)?;
        }
        (*task).base.waiter = awaited.into_ptr();
        cancel_awaited(py, task)
    }
}

/// Makes a task visible to the garbage collector, if it is not yet.
///
/// # Safety
///
/// `task` is alive and filled.
#[inline(always)]
unsafe fn show_to_collector(task: *mut Task) {
    // SAFETY: passed on to the caller.
    unsafe {
        if ffi::PyObject_GC_IsTracked(task.cast()) == 0 {
            show_coroutine((*task).base.coro);
            ffi::PyObject_GC_Track(task.cast());
            show_context(task);
        }
    }
}

/// As [`show_to_collector`], for a task on the ring of a loop that stops, or one whose timer was cancelled.
///
/// # Safety
///
/// A live task of ours, and the GIL is held.
pub unsafe fn show(task: *mut PyObject) {
    // SAFETY: passed on to the caller; futures of the four types are collected.
    unsafe {
        show_to_collector(task.cast());
        let awaited = (*task.cast::<Task>()).base.waiter;
        if !awaited.is_null()
            && super::native::ready(Python::assume_attached())
                .is_some_and(|native| native.is_future(awaited))
        {
            hidden::show(awaited);
        }
    }
}

/// Shows what is hidden with a task.
///
/// # Safety
///
/// `task` is alive; its fields are filled or null.
#[inline]
unsafe fn show_owned(task: *mut Task) {
    // SAFETY: passed on to the caller.
    unsafe {
        show_coroutine((*task).base.coro);
        show_context(task);
    }
}

/// Shows the context of a task.
///
/// # Safety
///
/// As [`show_owned`].
#[inline(always)]
unsafe fn show_context(task: *mut Task) {
    // SAFETY: passed on to the caller. Before 3.15 what was given as context may be anything.
    unsafe {
        let context = (*task).base.context;
        if !context.is_null() && ffi::PyContext_CheckExact(context) != 0 {
            hidden::show(context);
        }
    }
}

/// Shows the coroutine of a task, before it runs at the latest: the collector ends what is garbage in the order in
/// which it was shown, and a coroutine has to be ended before those that it awaits, which throws into them.
///
/// # Safety
///
/// A live object, or null.
#[inline(always)]
unsafe fn show_coroutine(coro: *mut PyObject) {
    // SAFETY: passed on to the caller. Coroutines that can be hidden are collected.
    unsafe {
        if is_hidden_coroutine(coro) {
            hidden::show(coro);
        }
    }
}

/// Whether a coroutine that has yielded this future awaits it itself, not by way of another coroutine.
///
/// # Safety
///
/// A live object, or null.
unsafe fn awaits(coro: *mut PyObject, future: &Bound<'_, PyAny>) -> bool {
    // SAFETY: passed on to the caller.
    unsafe {
        let py = future.py();
        let Some(coro) = Bound::from_borrowed_ptr_or_opt(py, coro) else {
            return false;
        };
        if operation::is_operation(&coro) {
            return operation::awaits(&coro, future);
        }
        call::is_exact_coroutine(&coro)
            && coro
                .getattr(intern!(py, "cr_await"))
                .is_ok_and(|awaited| awaited.is(future))
    }
}

/// Whether an object is a coroutine that a task may have hidden.
///
/// # Safety
///
/// A live object, or null.
#[inline(always)]
unsafe fn is_hidden_coroutine(coro: *mut PyObject) -> bool {
    // SAFETY: passed on to the caller.
    unsafe {
        let py = Python::assume_attached();
        !coro.is_null() && can_be_hidden(&Borrowed::from_ptr(py, coro))
    }
}

/// Makes a task visible that is about to end. Its coroutine has returned, so that it refers to nothing.
///
/// # Safety
///
/// As [`show_to_collector`].
#[inline(always)]
unsafe fn show_ended(task: *mut Task) {
    // SAFETY: passed on to the caller.
    unsafe {
        if ffi::PyObject_GC_IsTracked(task.cast()) != 0 {
            return;
        }
        if is_hidden_coroutine((*task).base.coro) {
            hidden::hide((*task).base.coro);
        }
        ffi::PyObject_GC_Track(task.cast());
        let context = (*task).base.context;
        if ffi::PyContext_CheckExact(context) != 0 && ffi::PyObject_Size(context) != 0 {
            hidden::show(context);
        }
    }
}

/// Adds a task to the callbacks of a future that has others, or is done, or is not of a loop of ours.
///
/// # Safety
///
/// As [`step`].
unsafe fn hang_on(
    py: Python<'_>,
    native: &Native,
    task: *mut Task,
    awaited: &Bound<'_, PyAny>,
    core: Option<&LoopCore>,
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        let future = awaited.as_ptr().cast::<FutureObject>();
        let object = Bound::from_borrowed_ptr(py, task.cast());
        let (callback, context) = match core {
            Some(core) if (*future).state != PENDING && core.accepts_natively() => {
                core.push_entry(py, Entry::wake(object.unbind()));
                return Ok(());
            }
            Some(_) => (native.wake.bind(py).clone(), object),
            None => {
                let context = Bound::from_borrowed_ptr(py, (*task).base.context);
                (bound(py, &WAKEUP, task)?, context)
            }
        };
        let with = PyDict::new(py);
        with.set_item(intern!(py, "context"), context)?;
        native
            .add_done_callback
            .bind(py)
            .call((awaited, callback), Some(&with))?;
        Ok(())
    }
}

/// A task that was cancelled while it ran passes that on to what it has begun to await.
///
/// # Safety
///
/// As [`step`].
#[inline]
unsafe fn cancel_awaited(py: Python<'_>, task: *mut Task) -> PyResult<()> {
    // SAFETY: passed on to the caller; what is used during the call is kept alive.
    unsafe {
        if !(*task).base.must_cancel() {
            return Ok(());
        }
        let awaited = Bound::from_borrowed_ptr(py, (*task).base.waiter);
        let message = Bound::from_borrowed_ptr_or_opt(py, (*task).base.future.cancel_message)
            .unwrap_or_else(|| py.None().into_bound(py));
        let cancelled = call::method1(&awaited, intern!(py, "cancel"), &message)?;
        if cancelled.is_truthy()? {
            (*task).base.set_must_cancel(false);
        }
        Ok(())
    }
}

/// What is wrong with what a coroutine yielded.
#[derive(Clone, Copy)]
enum Complaint {
    Itself,
    OtherLoop,
    NotAwaited,
    Generator,
    BadYield,
}

/// Waits for a foreign future, or throws into the coroutine what is wrong with its yield.
///
/// # Safety
///
/// As [`step`].
#[cold]
unsafe fn handle_other(
    py: Python<'_>,
    native: &Native,
    task: *mut Task,
    result: Bound<'_, PyAny>,
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        if result.as_ptr() == task.cast() {
            return complain(py, task, Complaint::Itself, &result);
        }
        let blocking_name = intern!(py, "_asyncio_future_blocking");
        let blocking = result.getattr_opt(blocking_name)?;
        let Some(blocking) = blocking.filter(|blocking| !blocking.is_none()) else {
            let generator = result.is_instance(&py.import("types")?.getattr("GeneratorType")?)?;
            let complaint = if generator {
                Complaint::Generator
            } else {
                Complaint::BadYield
            };
            return complain(py, task, complaint, &result);
        };
        let blocking = blocking.is_truthy()?;
        let owner = match result.getattr_opt(intern!(py, "get_loop"))? {
            Some(ask) => ask.call0()?,
            None => result.getattr(intern!(py, "_loop"))?,
        };
        if owner.as_ptr() != (*task).base.future.owner {
            return complain(py, task, Complaint::OtherLoop, &result);
        }
        if !blocking {
            return complain(py, task, Complaint::NotAwaited, &result);
        }
        call_awaited_by(py, native.add_awaited_by.as_ref(), &result, task)?;
        result.setattr(blocking_name, false)?;
        let wakeup = bound(py, &WAKEUP, task)?;
        let with = PyDict::new(py);
        with.set_item(
            intern!(py, "context"),
            Bound::from_borrowed_ptr(py, (*task).base.context),
        )?;
        result.call_method(intern!(py, "add_done_callback"), (wakeup,), Some(&with))?;
        show_to_collector(task);
        let before = ptr::replace(&raw mut (*task).base.waiter, result.into_ptr());
        ffi::Py_XDECREF(before);
        cancel_awaited(py, task)
    }
}

/// Schedules a step that throws RuntimeError.
///
/// # Safety
///
/// As [`step`].
#[cold]
unsafe fn complain(
    py: Python<'_>,
    task: *mut Task,
    complaint: Complaint,
    yielded: &Bound<'_, PyAny>,
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        // It leaves the ring: a handle has it next.
        show_to_collector(task);
        let shown = Bound::from_borrowed_ptr(py, task.cast()).repr()?;
        let message = match complaint {
            Complaint::Itself => format!("Task cannot await on itself: {shown}"),
            Complaint::OtherLoop => format!(
                "Task {shown} got Future {} attached to a different loop",
                yielded.repr()?
            ),
            Complaint::NotAwaited => format!(
                "yield was used instead of yield from in task {shown} with {}",
                yielded.repr()?
            ),
            Complaint::Generator => format!(
                "yield was used instead of yield from for generator in task {shown} with {}",
                yielded.repr()?
            ),
            Complaint::BadYield => format!("Task got bad yield: {}", yielded.repr()?),
        };
        let error = PyRuntimeError::new_err(message)
            .into_value(py)
            .into_bound(py);
        let throw = bound(py, &THROW, task)?;
        call_soon(py, task, &throw, Some(error.as_any()))
    }
}

// --- callbacks ---------------------------------------------------------------------------------

struct Definition(ffi::PyMethodDef);

// SAFETY: constant; CPython only reads it.
unsafe impl Sync for Definition {}

const fn definition(
    name: &'static std::ffi::CStr,
    function: ffi::PyCFunction,
    flags: c_int,
) -> Definition {
    Definition(ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: function,
        },
        ml_flags: flags,
        ml_doc: ptr::null(),
    })
}

/// A step, as the callback of a loop that is not ours.
static STEP: Definition = definition(c"task_step", py_step, ffi::METH_NOARGS);
/// A step that throws its argument.
static THROW: Definition = definition(c"task_throw", py_throw, ffi::METH_O);
/// The callback of a future that is not ours, or whose loop is not.
static WAKEUP: Definition = definition(c"task_wakeup", py_wakeup, ffi::METH_O);
/// Never called: stands for a wake-up among the callbacks of a future.
static WAKE: Definition = definition(c"task_wakeup", py_wake, ffi::METH_O);

/// A builtin that is bound to a task, which its `__self__` shows.
///
/// # Safety
///
/// `task` is alive.
unsafe fn bound<'py>(
    py: Python<'py>,
    definition: &'static Definition,
    task: *mut Task,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the definition is static; the function takes its own reference to the task.
    unsafe {
        let pointer = ptr::from_ref(&definition.0).cast_mut();
        Bound::from_owned_ptr_or_err(py, ffi::PyCFunction_NewEx(pointer, task.cast(), null_mut()))
    }
}

/// The object that stands for a wake-up; bound to the type so that it is called `Task.task_wakeup`.
pub fn make_wake<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the definition is static.
    unsafe {
        let pointer = ptr::from_ref(&WAKE.0).cast_mut();
        Bound::from_owned_ptr_or_err(
            class.py(),
            ffi::PyCFunction_NewEx(pointer, class.as_ptr(), null_mut()),
        )
    }
}

/// What asyncio's own code does to end a future that one of our tasks awaits:
/// `call_soon(wake, future, context=task)`. None: that is not what this call is.
///
/// # Safety
///
/// The arguments are alive; `core` is the loop's.
#[inline(always)]
pub unsafe fn wake_from_call<'py>(
    core: &Bound<'py, LoopCore>,
    callback: *mut PyObject,
    context: *mut PyObject,
) -> PyResult<Option<WakeCall<'py>>> {
    let py = core.py();
    let Some(native) = super::native::ready(py) else {
        return Ok(None);
    };
    // SAFETY: passed on to the caller.
    unsafe {
        if callback != native.wake.as_ptr() || !native.is_task(context) {
            return Ok(None);
        }
        let object = Bound::from_borrowed_ptr(py, context);
        let state = core.get();
        if state.accepts_natively() {
            state.push_entry(py, Entry::wake(object.unbind()));
            return Ok(Some(WakeCall::Scheduled));
        }
        // A handle has it next, and not the ring.
        show(context);
        let task = context.cast::<Task>();
        let context = Bound::from_borrowed_ptr(py, (*task).base.context);
        Ok(Some(WakeCall::Callback(bound(py, &WAKEUP, task)?, context)))
    }
}

/// How a wake-up goes on.
pub enum WakeCall<'py> {
    /// The task is in the ring.
    Scheduled,
    /// The loop is closed or in debug mode: to be scheduled as this callback in this context.
    Callback(Bound<'py, PyAny>, Bound<'py, PyAny>),
}

/// Runs `body` with the task recorded as the one that runs, as a callback of its loop does.
///
/// # Safety
///
/// `object` is a task of ours, alive during the call.
unsafe fn entered(
    object: *mut PyObject,
    body: impl for<'py> FnOnce(Python<'py>, &'static Native, *mut Task) -> PyResult<()>,
) -> *mut PyObject {
    // SAFETY: passed on to the caller; builtins are called with the GIL held.
    unsafe {
        guard(|py| {
            super::attached(py, |py| {
                let native = native(py)?;
                let task = object.cast::<Task>();
                let object = Bound::from_borrowed_ptr(py, object);
                let owner = Bound::from_borrowed_ptr(py, (*task).base.future.owner);
                native.enter_task.bind(py).call1((&owner, &object))?;
                let stepped = body(py, native, task);
                let left = native.leave_task.bind(py).call1((&owner, &object));
                stepped?;
                left.map(drop)
            })?;
            Ok(py.None().into_bound(py))
        })
    }
}

unsafe extern "C" fn py_step(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: bound to a task of ours.
    unsafe { entered(object, |py, native, task| step(py, native, task, None)) }
}

unsafe extern "C" fn py_throw(object: *mut PyObject, error: *mut PyObject) -> *mut PyObject {
    // SAFETY: bound to a task of ours; the argument is alive during the call.
    unsafe {
        entered(object, |py, native, task| {
            let error = Bound::from_borrowed_ptr(py, error);
            step(py, native, task, Some(error))
        })
    }
}

unsafe extern "C" fn py_wakeup(object: *mut PyObject, awaited: *mut PyObject) -> *mut PyObject {
    // SAFETY: bound to a task of ours; the argument is alive during the call.
    unsafe {
        entered(object, |py, native, task| {
            let awaited = Bound::from_borrowed_ptr(py, awaited);
            resume(py, native, task, &awaited)
        })
    }
}

unsafe extern "C" fn py_wake(_: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter with the GIL held.
    unsafe {
        guard(|_| {
            Err(PyRuntimeError::new_err(
                "a task's wake-up is run by the task's loop, not called",
            ))
        })
    }
}

// --- methods -----------------------------------------------------------------------------------

unsafe extern "C" fn py_cancel(
    object: *mut PyObject,
    array: *const *mut PyObject,
    count: ffi::Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: a method of this type: `object` is a task, kept alive during the call as the arguments are.
    unsafe {
        guard(|py| {
            let message = future::message_of(py, array, count, names)?;
            let message = Bound::from_borrowed_ptr(py, message);
            let cancelled = cancel(py, Bound::from_borrowed_ptr(py, object), &message)?;
            Ok(cancelled.into_pyobject(py)?.to_owned().into_any())
        })
    }
}

/// Cancels what a task waits for, or the task if that cannot be cancelled; false: the task is done.
///
/// Where a task of ours waits for another one, and that for a third, nothing but tasks of ours is asked, so a chain is
/// followed without a call for each. All but the last can be cancelled if that can. Tasks that wait for each other in a
/// ring are an error, as they are in asyncio.
///
/// # Safety
///
/// `object` is a task of ours.
unsafe fn cancel<'py>(
    py: Python<'py>,
    object: Bound<'py, PyAny>,
    message: &Bound<'py, PyAny>,
) -> PyResult<bool> {
    let native = native(py)?;
    // SAFETY: passed on to the caller. Tasks own what they wait for, and no other code runs while the chain is followed;
    // its end is held while others are asked.
    unsafe {
        let mut task = object.as_ptr().cast::<Task>();
        (*task).base.future.set_logs_traceback(false);
        if (*task).base.future.state != PENDING {
            return Ok(false);
        }
        // A ring is found by meeting a task again that was remembered: the one at the last power of two.
        let (mut remembered, mut hops) = (task, 0_usize);
        loop {
            (*task).base.cancel_requests += 1;
            let next = (*task).base.waiter;
            if next.is_null() || !ptr::eq(ffi::Py_TYPE(next), native.task.as_ptr().cast()) {
                break;
            }
            let next = next.cast::<Task>();
            (*next).base.future.set_logs_traceback(false);
            if (*next).base.future.state != PENDING {
                break;
            }
            if next == remembered {
                return Err(PyRecursionError::new_err(
                    "maximum recursion depth exceeded while cancelling tasks that wait for each other",
                ));
            }
            task = next;
            hops += 1;
            if hops.is_power_of_two() {
                remembered = task;
            }
        }
        let _alive = Bound::from_borrowed_ptr(py, task.cast());
        if let Some(awaited) = Bound::from_borrowed_ptr_or_opt(py, (*task).base.waiter)
            && cancel_of(py, native, &awaited, message)?
        {
            return Ok(true);
        }
        (*task).base.set_must_cancel(true);
        let before = ptr::replace(
            &raw mut (*task).base.future.cancel_message,
            message.clone().into_ptr(),
        );
        ffi::Py_XDECREF(before);
        Ok(true)
    }
}

/// `awaited.cancel(message)`.
///
/// # Safety
///
/// `awaited` is what a task waits for.
unsafe fn cancel_of<'py>(
    py: Python<'py>,
    native: &Native,
    awaited: &Bound<'py, PyAny>,
    message: &Bound<'py, PyAny>,
) -> PyResult<bool> {
    // SAFETY: a future of exactly our type has FutureObject's layout.
    unsafe {
        if ptr::eq(
            ffi::Py_TYPE(awaited.as_ptr()),
            native.future.as_ptr().cast(),
        ) {
            return future::cancel(py, native, awaited.as_ptr().cast(), message.as_ptr());
        }
    }
    depth::room(c" while cancelling what a task waits for")?;
    call::method1(awaited, intern!(py, "cancel"), message)?.is_truthy()
}

/// As asyncio's: whoever gets the context may put into it what he likes.
#[cfg(Py_3_12)]
unsafe extern "C" fn py_context(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    let task = object.cast::<Task>();
    // SAFETY: a method of this type: `object` is a task.
    unsafe {
        guard(|py| {
            show_owned(task);
            let context = Bound::from_borrowed_ptr_or_opt(py, (*task).base.context);
            Ok(context.unwrap_or_else(|| py.None().into_bound(py)))
        })
    }
}

/// Before 3.12 asyncio's own get_name() does not know numbers.
#[cfg(not(Py_3_12))]
unsafe extern "C" fn py_name(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    let task = object.cast::<Task>();
    // SAFETY: a method of this type: `object` is a task; the name is replaced by its spelling.
    unsafe {
        guard(|py| {
            let Some(name) = Bound::from_borrowed_ptr_or_opt(py, (*task).base.name) else {
                return Ok(py.None().into_bound(py));
            };
            if ffi::PyLong_CheckExact(name.as_ptr()) == 0 {
                return Ok(name);
            }
            let spelled = PyString::new(py, &format!("Task-{}", name.str()?)).into_any();
            let field = &raw mut (*task).base.name;
            ffi::Py_XDECREF(ptr::replace(field, spelled.clone().into_ptr()));
            Ok(spelled)
        })
    }
}

// --- the type ----------------------------------------------------------------------------------

unsafe extern "C" fn repr(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: a slot of a type that derives from asyncio.Task.
    unsafe { future::repr_of(object, |native| &native.stock_task) }
}

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: the interpreter calls this once, when the last reference is gone.
    unsafe { future::destroy(object, || unlink(node_of(object.cast())), die) }
}

/// The end of a task, after which there is none.
///
/// # Safety
///
/// The rest of the dealloc slot.
#[inline(always)]
unsafe fn die(object: *mut PyObject) {
    let task = object.cast::<Task>();
    // SAFETY: passed on to the caller.
    unsafe {
        let future = &(*task).base.future;
        let has_to_report = future.state == PENDING && (*task).base.logs_destroyed()
            || future.logs_traceback()
            || !future::is_exact(object);
        if !future::finalise(object, has_to_report) {
            return;
        }
        if (*task).base.record != 0 {
            forget(Python::assume_attached(), task);
        }
        unlink(node_of(task));
        leave_owned(task);
        release(task);
        future::free(object, |queue| &mut queue.spare_tasks);
    }
}

/// Shows what a dying task has hidden and others have, too.
///
/// # Safety
///
/// `task` is being destroyed.
#[inline(always)]
unsafe fn leave_owned(task: *mut Task) {
    // SAFETY: passed on to the caller; as in `show_owned`.
    unsafe {
        let (coro, context) = ((*task).base.coro, (*task).base.context);
        let shared = |object: *mut PyObject| !object.is_null() && ffi::Py_REFCNT(object) > 1;
        if shared(coro) || shared(context) {
            show_owned(task);
        }
    }
}

/// Clears everything that a task owns but its loop.
///
/// # Safety
///
/// `task` is alive, or being destroyed, and in no list that its loop's death would end.
unsafe fn release(task: *mut Task) {
    // SAFETY: each reference is taken out before it is dropped.
    unsafe {
        future::release(task.cast());
        let base = &raw mut (*task).base;
        let fields = [
            &raw mut (*base).coro,
            &raw mut (*base).context,
            &raw mut (*base).name,
            &raw mut (*base).waiter,
        ];
        for field in fields {
            ffi::Py_XDECREF(ptr::replace(field, null_mut()));
        }
    }
}

unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    // SAFETY: called by the collector with a live object. Before 3.14 the list's head is in the loop,
    // which the task is about to let go of.
    unsafe {
        if (*object.cast::<Task>()).base.record != 0 {
            forget(Python::assume_attached(), object.cast());
        }
        #[cfg(not(Py_3_14))]
        unlink(node_of(object.cast()));
        show_owned(object.cast());
        if let Ok(native) = native(Python::assume_attached())
            && let Some(clear) = (*native.stock_task.as_ptr().cast::<ffi::PyTypeObject>()).tp_clear
        {
            return clear(object);
        }
        0
    }
}

const DOC: &std::ffi::CStr = c"Task(coro, *, loop=None, name=None, context=None, eager_start=False)\n--\n\n\
    A coroutine that runs on an event loop: asyncio.Task, native. eager_start: Python 3.12 and later.";

struct Methods<const N: usize>([ffi::PyMethodDef; N]);

// SAFETY: the table is constant; CPython only reads it.
unsafe impl<const N: usize> Sync for Methods<N> {}

const CANCEL: ffi::PyMethodDef = ffi::PyMethodDef {
    ml_name: c"cancel".as_ptr(),
    ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: py_cancel },
    ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
    ml_doc: c"cancel($self, /, msg=None)\n--\n\n\
        Ask the task to cancel itself: CancelledError(msg) is thrown into its coroutine at its next step.\n\n\
        Returns False if the task is done already."
        .as_ptr(),
};

#[cfg(Py_3_12)]
static METHODS: Methods<3> = Methods([
    CANCEL,
    ffi::PyMethodDef {
        ml_name: c"get_context".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: py_context,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: c"get_context($self, /)\n--\n\nThe context that the task runs in.".as_ptr(),
    },
    ffi::PyMethodDef::zeroed(),
]);

#[cfg(not(Py_3_12))]
static METHODS: Methods<3> = Methods([
    CANCEL,
    ffi::PyMethodDef {
        ml_name: c"get_name".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: py_name,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: c"get_name($self, /)\n--\n\nThe task's name.".as_ptr(),
    },
    ffi::PyMethodDef::zeroed(),
]);

pub fn make_type<'py>(
    base: &Bound<'py, PyType>,
    future: &Bound<'py, PyType>,
) -> PyResult<Bound<'py, PyType>> {
    let collector = future::collector_of(base)?;
    let mut slots = [
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, future::traverse_slot(&collector)),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_init, init as *mut c_void),
        slot(ffi::Py_tp_repr, repr as *mut c_void),
        slot(ffi::Py_am_await, future::am_await as *mut c_void),
        slot(ffi::Py_am_send, future::am_send as *mut c_void),
        slot(ffi::Py_tp_iternext, future::iternext as *mut c_void),
        slot(ffi::Py_tp_doc, DOC.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_methods, METHODS.0.as_ptr() as *mut c_void),
        slot(0, null_mut()),
    ];
    future::derive(
        &[base, future],
        c"tideloop._tideloop.Task",
        size_of::<Task>(),
        &mut slots,
    )
}
