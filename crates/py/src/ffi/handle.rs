//! Handle and TimerHandle: one scheduled callback each, as raw types.
//!
//! A loop makes one of these for everything it runs, so their cost is the loop's cost: allocation
//! without a constructor call, up to three arguments inline instead of in a tuple, and a vectorcall
//! straight from where the arguments lie.
//!
//! **What a handle owns, and until when.** Callback, arguments, context and loop. A handle that has
//! run or was cancelled owns none of them any more: an application that keeps such a handle keeps
//! nothing else alive. Running *takes* callback and arguments out before the call, so that a callback
//! may cancel its own handle, or drop the last reference to it, without pulling the arguments from
//! under the call. A `PERSISTENT` handle (of add_reader, add_writer, add_signal_handler) runs again
//! and again, so running it borrows instead of taking.
//!
//! **Garbage collection.** Handles are containers, but tracking each one costs more than running it.
//! A handle made while its loop runs is not tracked: its loop is on the stack of a live thread, the
//! handle is reachable from the loop, so it cannot be garbage; and once it has run it owns nothing.
//! When the loop stops, it tracks whatever is still pending ([`track`]); handles made while it does
//! not run are tracked at once. So a loop that is dropped with work in it is collected with it.
//!
//! The handle of a call that a thread has handed over is not owned by the loop while that runs: see [`super::handed`].
//!
//! **Contexts.** A handle that was given none shares one with others ([`super::snapshot`]). It gets a context of its
//! own ([`own_context`]) before that is shown to anybody, and runs in one that nobody shares.
//!
//! **Identity.** `type(h)` is ours, `h.__class__` is asyncio's Handle or TimerHandle, so that
//! `isinstance` holds without carrying the slots of asyncio's Python class.

use std::os::raw::{c_char, c_int, c_void};
use std::ptr::{self, null_mut};

use pyo3::Borrowed;
use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use super::spare::{self, Spare};
use super::{ahead, call, depth, future, guard, handed, refcheck, snapshot};
use crate::event_loop::LoopCore;

/// Arguments stored in the handle itself; more are stored as one tuple.
pub const INLINE: usize = 3;

const CANCELLED: u8 = 1;
const PERSISTENT: u8 = 1 << 1;
/// A timer that is in its loop's timers.
const SCHEDULED: u8 = 1 << 2;
/// The arguments are one tuple in `args[0]`.
pub(super) const SPILLED: u8 = 1 << 3;
/// Made by call_soon_threadsafe: another thread that cancels it while it runs waits for its end.
const THREAD_SAFE: u8 = 1 << 4;
/// A thread-safe handle whose callback is being called.
const RUNNING: u8 = 1 << 5;
/// The context is a snapshot, which is copied before anybody sees it.
pub(super) const SHARED: u8 = 1 << 6;
/// A slot of the loop knows the handle, without owning it.
pub(super) const HANDED: u8 = 1 << 7;

#[repr(C)]
pub(super) struct HandleObject {
    head: PyObject,
    pub(super) weakrefs: *mut PyObject,
    pub(super) callback: *mut PyObject,
    pub(super) owner: *mut PyObject,
    pub(super) context: *mut PyObject,
    source_traceback: *mut PyObject,
    /// What repr() said before the handle was cancelled, in debug mode.
    description: *mut PyObject,
    /// That of its slot, while it is `HANDED`.
    pub(super) number: u64,
    pub(super) args: [*mut PyObject; INLINE],
    pub(super) count: u8,
    pub(super) flags: u8,
    /// Seconds on the loop's clock. Only timers use it.
    when: f64,
}

/// The two types, made once per process.
pub struct Types {
    handle: Py<PyType>,
    timer: Py<PyType>,
    asyncio_handle: Py<PyAny>,
    asyncio_timer: Py<PyAny>,
    /// Since Python 3.14 asyncio has a class of its own for the handles of call_soon_threadsafe.
    asyncio_thread_safe: Option<Py<PyAny>>,
}

impl Types {
    pub fn handle<'py>(&self, py: Python<'py>) -> &Bound<'py, PyType> {
        self.handle.bind(py)
    }

    pub fn timer<'py>(&self, py: Python<'py>) -> &Bound<'py, PyType> {
        self.timer.bind(py)
    }
}

impl Types {
    /// The memory of a dead handle of this kind.
    #[inline(always)]
    pub fn out_of(&self, kind: Kind, spare: &mut Spare) -> SpareHandle {
        let class = match kind {
            Kind::Handle => &self.handle,
            Kind::Timer => &self.timer,
        };
        // SAFETY: the queue, whose lists these are, is only reached with the GIL held.
        let memory = unsafe { spare.take(class.as_ptr().cast()) };
        if memory.is_null() {
            SpareHandle::None
        } else {
            SpareHandle::Memory(memory)
        }
    }
}

static TYPES: PyOnceLock<Types> = PyOnceLock::new();

/// The types, made on first use.
#[inline(always)]
pub fn types(py: Python<'_>) -> PyResult<&'static Types> {
    match TYPES.get(py) {
        Some(types) => Ok(types),
        None => make_types(py),
    }
}

#[cold]
fn make_types(py: Python<'_>) -> PyResult<&'static Types> {
    TYPES.get_or_try_init(py, || {
        let events = py.import("asyncio.events")?;
        Ok(Types {
            handle: make_type(py, Kind::Handle)?,
            timer: make_type(py, Kind::Timer)?,
            asyncio_handle: events.getattr("Handle")?.unbind(),
            asyncio_timer: events.getattr("TimerHandle")?.unbind(),
            asyncio_thread_safe: events.getattr_opt("_ThreadSafeHandle")?.map(Bound::unbind),
        })
    })
}

/// What a new handle is made of.
pub struct Spec<'a, 'py> {
    pub callback: &'a Bound<'py, PyAny>,
    /// Borrowed references, alive during the call.
    pub args: &'a [*mut PyObject],
    pub owner: &'a Bound<'py, PyAny>,
    pub context: Bound<'py, PyAny>,
    pub source_traceback: Option<Bound<'py, PyAny>>,
    /// Seconds, for a timer.
    pub when: Option<f64>,
    pub persistent: bool,
    pub track: bool,
}

/// Makes a handle.
pub fn new<'py>(py: Python<'py>, spec: Spec<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    let types = types(py)?;
    let kind = match spec.when {
        None => &types.handle,
        Some(_) => &types.timer,
    };
    let handle = allocate(py, kind)?;
    let object = handle.as_ptr().cast::<HandleObject>();
    // SAFETY: a handle that nobody else has seen; the caller's arguments are alive.
    unsafe {
        fill(
            py,
            object,
            spec.callback.as_ptr(),
            spec.args,
            spec.owner.as_ptr(),
            spec.context,
        )?;
        (*object).source_traceback = spec.source_traceback.map_or(null_mut(), Bound::into_ptr);
        (*object).when = spec.when.unwrap_or(0.0);
        if spec.persistent {
            (*object).flags |= PERSISTENT;
        }
        if spec.track {
            ffi::PyObject_GC_Track(object.cast());
        }
    }
    Ok(handle)
}

/// Makes the handle of a call on a running loop, out of a used one if there is one.
///
/// # Safety
///
/// Callback, arguments and owner are live objects; the used one is of this kind.
#[inline(always)]
pub unsafe fn reuse_or_new<'py>(
    py: Python<'py>,
    spare: SpareHandle,
    call: Call<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: a handle that nobody else has; the caller vouches for the rest.
    unsafe {
        let handle = match spare {
            SpareHandle::Used(handle) => handle.into_bound(py),
            SpareHandle::Memory(memory) => blank(py, memory.cast()),
            SpareHandle::None if call.when.is_some() => allocate(py, &types(py)?.timer)?,
            SpareHandle::None => allocate(py, &types(py)?.handle)?,
        };
        let object = handle.as_ptr().cast::<HandleObject>();
        (*object).when = call.when.unwrap_or(0.0);
        fill(
            py,
            object,
            call.callback,
            call.args,
            call.owner,
            call.context,
        )?;
        if call.shared {
            (*object).flags |= SHARED;
        }
        Ok(handle)
    }
}

/// The handle of a call with one argument, on a running loop, out of what its queue keeps for handles.
pub fn of_call<'py>(
    spare: SpareHandle,
    owner: &Bound<'py, LoopCore>,
    callback: &Bound<'py, PyAny>,
    argument: &Bound<'py, PyAny>,
    context: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let call = Call {
        callback: callback.as_ptr(),
        args: &[argument.as_ptr()],
        owner: owner.as_ptr(),
        context,
        shared: false,
        when: None,
    };
    // SAFETY: live objects; the queue keeps handles of this kind only.
    unsafe { reuse_or_new(owner.py(), spare, call) }
}

/// One call of call_soon() or call_later(), its references borrowed from the interpreter.
pub struct Call<'a, 'py> {
    pub callback: *mut PyObject,
    pub args: &'a [*mut PyObject],
    pub owner: *mut PyObject,
    pub context: Bound<'py, PyAny>,
    /// The context is a snapshot.
    pub shared: bool,
    /// Seconds, for a timer.
    pub when: Option<f64>,
}

/// What a new handle can be made of.
pub enum SpareHandle {
    /// One that has run.
    Used(Py<PyAny>),
    /// The memory of a dead one.
    Memory(*mut PyObject),
    None,
}

/// Makes a handle one that other threads may cancel at any time, where asyncio promises that.
pub fn make_thread_safe(handle: &Bound<'_, PyAny>) -> PyResult<()> {
    if types(handle.py())?.asyncio_thread_safe.is_some() {
        // SAFETY: the handle was just made by this module.
        unsafe { (*handle.as_ptr().cast::<HandleObject>()).flags |= THREAD_SAFE };
    }
    Ok(())
}

/// Gives a handle whose context is a snapshot a copy of its own.
///
/// # Safety
///
/// `object` is a live handle, which the caller keeps alive, and the GIL is held.
#[inline]
unsafe fn own_context(py: Python<'_>, object: *mut HandleObject) -> PyResult<()> {
    // SAFETY: passed on to the caller. Making a copy may run other code, so the flag is looked at again.
    unsafe {
        if (*object).flags & SHARED == 0 {
            return Ok(());
        }
        let copy = snapshot::copy(&Bound::from_borrowed_ptr(py, (*object).context))?;
        if (*object).flags & SHARED != 0 {
            (*object).flags &= !SHARED;
            let shared = ptr::replace(&raw mut (*object).context, copy.into_ptr());
            ffi::Py_DECREF(shared);
        }
        Ok(())
    }
}

/// Whether a handle that has run or was cancelled can be filled again, and as what: nobody else knows it,
/// and it is as it was made.
#[inline]
pub fn reusable(handle: &Bound<'_, PyAny>) -> Option<Kind> {
    let object = handle.as_ptr().cast::<HandleObject>();
    // SAFETY: the queues only hold objects made by this module.
    unsafe {
        if ffi::Py_REFCNT(handle.as_ptr()) != 1
            || (*object).flags & !(SPILLED | CANCELLED) != 0
            || !(*object).callback.is_null()
            || !(*object).owner.is_null()
            || !(*object).weakrefs.is_null()
            || !(*object).source_traceback.is_null()
            || !(*object).description.is_null()
            || ffi::PyObject_GC_IsTracked(handle.as_ptr()) != 0
        {
            return None;
        }
        let types = types(handle.py()).ok()?;
        let class = handle.get_type_ptr();
        if class == types.handle.as_ptr().cast() {
            Some(Kind::Handle)
        } else if class == types.timer.as_ptr().cast() {
            Some(Kind::Timer)
        } else {
            None
        }
    }
}

/// An empty, untracked handle.
fn allocate<'py>(py: Python<'py>, kind: &Py<PyType>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the type is one of ours, with HandleObject's size; every field behind the head is
    // written before anything else can see the object.
    unsafe {
        let object = ffi::PyObject_GC_New::<HandleObject>(kind.as_ptr().cast());
        if object.is_null() {
            return Err(PyErr::fetch(py));
        }
        Ok(blank(py, object))
    }
}

/// Writes every field of a new handle.
///
/// # Safety
///
/// `object` is memory of a handle with a valid head and a count of one.
#[inline(always)]
unsafe fn blank(py: Python<'_>, object: *mut HandleObject) -> Bound<'_, PyAny> {
    // SAFETY: as above.
    unsafe {
        (*object).weakrefs = null_mut();
        (*object).callback = null_mut();
        (*object).owner = null_mut();
        (*object).context = null_mut();
        (*object).source_traceback = null_mut();
        (*object).description = null_mut();
        (*object).number = 0;
        (*object).args = [null_mut(); INLINE];
        (*object).count = 0;
        (*object).flags = 0;
        (*object).when = 0.0;
        refcheck::born(refcheck::Kind::Handle);
        Bound::from_owned_ptr(py, object.cast())
    }
}

/// Gives an empty handle its call.
///
/// # Safety
///
/// `object` is an empty handle that nobody else knows, and every argument is a live object.
#[inline(always)]
unsafe fn fill<'py>(
    py: Python<'py>,
    object: *mut HandleObject,
    callback: *mut PyObject,
    args: &[*mut PyObject],
    owner: *mut PyObject,
    context: Bound<'py, PyAny>,
) -> PyResult<()> {
    // SAFETY: as above; the handle takes its own references.
    unsafe {
        if args.len() <= INLINE {
            for (index, &argument) in args.iter().enumerate() {
                (*object).args[index] = ffi::Py_NewRef(argument);
            }
            (*object).count = args.len() as u8;
            (*object).flags = 0;
        } else {
            (*object).args[0] = tuple_of(py, args)?.into_ptr();
            (*object).count = 1;
            (*object).flags = SPILLED;
        }
        (*object).callback = ffi::Py_NewRef(callback);
        (*object).owner = ffi::Py_NewRef(owner);
        (*object).context = context.into_ptr();
    }
    Ok(())
}

/// Whether an object is a handle of ours.
pub fn is_handle(object: &Bound<'_, PyAny>) -> bool {
    types(object.py()).is_ok_and(|types| {
        let kind = object.get_type_ptr();
        kind == types.handle.as_ptr().cast() || kind == types.timer.as_ptr().cast()
    })
}

#[inline]
fn raw(handle: &Py<PyAny>) -> *mut HandleObject {
    handle.as_ptr().cast()
}

/// Whether a handle was cancelled. The object must be a handle made by [`new`].
#[inline]
pub fn is_cancelled(handle: &Py<PyAny>) -> bool {
    // SAFETY: the queues and the registry only hold objects made by `new`.
    unsafe { (*raw(handle)).flags & CANCELLED != 0 }
}

/// Notes that a timer is in its loop's timers, or no longer is.
#[inline]
pub fn set_scheduled(handle: &Py<PyAny>, scheduled: bool) {
    // SAFETY: as above.
    unsafe {
        if scheduled {
            (*raw(handle)).flags |= SCHEDULED;
        } else {
            (*raw(handle)).flags &= !SCHEDULED;
        }
    }
}

/// Shows a pending object to the garbage collector, unless it already is.
pub fn track(handle: &Py<PyAny>) {
    let object = handle.as_ptr();
    // SAFETY: the object is a fully built instance of a GC type.
    unsafe {
        if ffi::PyObject_GC_IsTracked(object) == 0 {
            ffi::PyObject_GC_Track(object.cast());
        }
    }
}

/// As [`track`], for a handle of [`new`] or [`reuse_or_new`], with what it hides.
pub fn track_pending(handle: &Py<PyAny>) {
    // SAFETY: the caller has such a handle; the GIL is held where the rings are looked at.
    unsafe { show_sleeper(Python::assume_attached(), raw(handle)) };
    track(handle);
}

/// Shows the future that a timer of asyncio.sleep() will not end, or not while its loop runs, and who waits.
///
/// # Safety
///
/// `object` is a live handle and the GIL is held.
#[inline]
unsafe fn show_sleeper(py: Python<'_>, object: *mut HandleObject) {
    // SAFETY: passed on to the caller; a handle that still has its callback has as many arguments as it counts,
    // unless it has spilled them.
    unsafe {
        let count = usize::from((*object).count).min(INLINE);
        let args = (*object).args;
        if (*object).flags & SPILLED == 0
            && let Some((_, future)) = future::sleeper_of(py, (*object).callback, &args[..count])
        {
            future::show_sleeper(py, future);
        }
    }
}

/// What a handle is going to call; None if it has run or was cancelled.
pub fn callback<'py>(handle: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let object = handle.as_ptr().cast::<HandleObject>();
    // SAFETY: `handle` was made by `new` and is alive; the field is null or owns a reference.
    unsafe { Bound::from_borrowed_ptr_or_opt(handle.py(), (*object).callback) }
}

/// Asks for the memory of what running a handle touches beside the handle ([`ahead`]).
///
/// # Safety
///
/// A live handle.
#[inline(always)]
pub unsafe fn ask_further(object: *mut PyObject) {
    // SAFETY: passed on to the caller. A field that is null is asked for in vain.
    unsafe {
        let object = &*object.cast::<HandleObject>();
        ahead::context(object.context);
        if object.count > 0 {
            ahead::future(object.args[0]);
        }
    }
}

/// Runs a handle's callback in its context, unless it was cancelled.
///
/// # Errors
///
/// Only SystemExit and KeyboardInterrupt, or what the loop's exception handler itself raises of
/// these. Every other exception goes to the loop's exception handler.
pub fn run(handle: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = handle.py();
    let object = handle.as_ptr().cast::<HandleObject>();
    refcheck::alive(handle.as_ptr(), "a handle to be run");
    // SAFETY: `handle` was made by `new` and is alive during the call. Fields are read and replaced
    // without running other code in between; what is taken out is owned by this frame and dropped
    // at its end.
    unsafe {
        if (*object).flags & HANDED != 0 {
            // Run by somebody else than its loop, which has nothing left to run then.
            handed::forget(object);
        }
        // Kept: a callback that cancels its own handle makes that let go of the loop, which is still to be told of an
        // exception and of the end, and gets its context back.
        let owner = Bound::from_borrowed_ptr_or_opt(py, (*object).owner);
        let mut loan = None;
        if (*object).flags & (CANCELLED | SHARED) == SHARED {
            // Not a Bound: whether anybody else has a reference is looked at.
            let context = Borrowed::from_ptr(py, (*object).context);
            let lent = match future::any_core_of(py, (*object).owner) {
                Some(core) => snapshot::lend(core, &context).map(|lent| loan = Some((core, lent))),
                None => own_context(py, object),
            };
            if let Err(error) = lent {
                return report(handle, owner.as_ref(), error);
            }
        }
        let flags = (*object).flags;
        if flags & CANCELLED != 0 || (*object).callback.is_null() {
            return Ok(());
        }
        let callback = (*object).callback;
        let context = (*object).context;
        let mut stack = [null_mut::<PyObject>(); INLINE + 1];
        stack[1..].copy_from_slice(&(*object).args);
        if flags & PERSISTENT != 0 {
            ffi::Py_INCREF(callback);
            ffi::Py_INCREF(context);
            for &argument in &stack[1..] {
                ffi::Py_XINCREF(argument);
            }
        } else {
            (*object).callback = null_mut();
            (*object).context = null_mut();
            (*object).args = [null_mut(); INLINE];
        }
        let count = usize::from((*object).count);
        if flags & THREAD_SAFE != 0 {
            (*object).flags |= RUNNING;
        }

        let entered = loan
            .as_ref()
            .map_or(context, |(_, loan)| loan.context.as_ptr());
        (*object).flags &= !SHARED;
        let call = Invocation {
            callback,
            context: entered,
            count,
            spilled: flags & SPILLED != 0,
        };
        let outcome = if let Err(error) = invoke(py, &call, &mut stack) {
            if (*object).context.is_null() {
                // For the report, and for whoever keeps it: the handle shows what it ran, and if it was cancelled
                // meanwhile, where.
                (*object).context = ffi::Py_NewRef(entered);
            }
            if flags & PERSISTENT == 0 && (*object).flags & CANCELLED == 0 {
                (*object).callback = ffi::Py_NewRef(callback);
                for (slot, &argument) in (*object).args.iter_mut().zip(&stack[1..]) {
                    *slot = ffi::Py_XNewRef(argument);
                }
                // An interrupt may have come before the callback did anything.
                show_sleeper(py, object);
            }
            if ffi::PyObject_GC_IsTracked(object.cast()) == 0 {
                ffi::PyObject_GC_Track(object.cast());
            }
            report(handle, owner.as_ref(), error)
        } else {
            Ok(())
        };
        if flags & THREAD_SAFE != 0 {
            (*object).flags &= !RUNNING;
            if let Some(core) = owner
                .as_ref()
                .and_then(|owner| owner.cast::<LoopCore>().ok())
            {
                core.get().handoff().finished();
            }
        }
        let context = Bound::from_owned_ptr(py, context);
        match loan {
            Some((core, loan)) if outcome.is_ok() => snapshot::take_back(core, context, loan),
            _ => drop(context),
        }
        if flags & PERSISTENT == 0 {
            let owner = std::mem::replace(&mut (*object).owner, null_mut());
            ffi::Py_XDECREF(owner);
        }
        ffi::Py_DECREF(callback);
        for &argument in &stack[1..] {
            ffi::Py_XDECREF(argument);
        }
        outcome
    }
}

/// What is called, and in which context.
pub(super) struct Invocation {
    pub callback: *mut PyObject,
    pub context: *mut PyObject,
    pub count: usize,
    /// The arguments are one tuple.
    pub spilled: bool,
}

/// Calls a callback with what lies on the stack behind the first place, which the callee may write to.
///
/// # Safety
///
/// All pointers are alive during the call, or null behind the last argument.
#[inline(always)]
pub(super) unsafe fn invoke(
    py: Python<'_>,
    call: &Invocation,
    stack: &mut [*mut PyObject; INLINE + 1],
) -> PyResult<()> {
    // SAFETY: passed on to the caller.
    unsafe {
        if future::wake_sleeper(py, call.callback, &stack[1..=call.count.min(INLINE)]) {
            return Ok(());
        }
        if ffi::PyContext_Enter(call.context) < 0 {
            return Err(PyErr::fetch(py));
        }
        let mut result = if call.spilled {
            ffi::PyObject_Call(call.callback, stack[1], null_mut())
        } else {
            ffi::PyObject_Vectorcall(
                call.callback,
                stack.as_ptr().add(1),
                call.count | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                null_mut(),
            )
        };
        if ffi::PyContext_Exit(call.context) < 0 {
            ffi::Py_XDECREF(result);
            result = null_mut();
        }
        if result.is_null() {
            return Err(PyErr::fetch(py));
        }
        ffi::Py_DECREF(result);
        Ok(())
    }
}

/// Tells the loop of a handle that its callback has failed.
#[cold]
pub(super) fn report(
    handle: &Bound<'_, PyAny>,
    owner: Option<&Bound<'_, PyAny>>,
    error: PyErr,
) -> PyResult<()> {
    let py = handle.py();
    if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) {
        return Err(error);
    }
    match owner {
        Some(owner) => owner
            .call_method1(
                intern!(py, "_callback_failed"),
                (handle, error.into_value(py)),
            )
            .map(drop),
        None => Ok(()),
    }
}

/// The loop that a handle belongs to, unless it has let go of it.
///
/// # Safety
///
/// `object` is a live handle.
unsafe fn owner_of<'py>(
    py: Python<'py>,
    object: *mut HandleObject,
) -> Option<Bound<'py, LoopCore>> {
    // SAFETY: the field is null or a live object.
    let owner = unsafe { Bound::from_borrowed_ptr_or_opt(py, (*object).owner) };
    owner?.cast_into::<LoopCore>().ok()
}

/// Waits, without the GIL, until another thread has left the handle's callback.
///
/// # Safety
///
/// `object` is a handle that the caller keeps alive.
#[inline]
unsafe fn await_end_of_run(py: Python<'_>, object: *mut HandleObject) {
    // SAFETY: passed on to the caller; the flag is only read and written with the GIL held, which `wait`
    // lets go of in between.
    let running = || unsafe { (*object).flags } & RUNNING != 0;
    while running() {
        // SAFETY: passed on to the caller.
        match unsafe { owner_of(py, object) } {
            Some(core) if !core.get().handoff().is_runner() => core.get().handoff().wait(py),
            _ => return,
        }
    }
}

/// Cancels a handle: it will not run, and lets go of what it held.
fn cancel(py: Python<'_>, object: *mut HandleObject) {
    // SAFETY: the callers keep the handle alive.
    unsafe { await_end_of_run(py, object) };
    // SAFETY: a live handle; fields are taken out before anything else can run.
    let (scheduled, owned) = unsafe {
        if (*object).flags & CANCELLED != 0 {
            return;
        }
        (*object).flags |= CANCELLED;
        if !(*object).source_traceback.is_null() && (*object).description.is_null() {
            let description = ffi::PyObject_Repr(object.cast());
            if description.is_null() {
                // repr() of an argument failed; the handle is cancelled all the same.
                ffi::PyErr_Clear();
            }
            let before = ptr::replace(&raw mut (*object).description, description);
            ffi::Py_XDECREF(before);
        }
        show_sleeper(py, object);
        let scheduled = (*object).flags & SCHEDULED != 0;
        ((scheduled), take_all(object))
    };
    if scheduled {
        // SAFETY: a live object, which this frame owns.
        let core = owned[1]
            .as_ref()
            .and_then(|owner| unsafe { future::any_core_of(py, owner.as_ptr()) });
        if let Some(core) = core {
            core.timer_cancelled(py);
        }
    }
    for reference in owned.into_iter().flatten() {
        drop(reference.into_bound(py));
    }
}

/// `handle.cancel()`, of any class of handles.
pub fn cancel_any(handle: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = handle.py();
    if is_handle(handle) {
        cancel(py, handle.as_ptr().cast());
        return Ok(());
    }
    call::method0(handle, intern!(py, "cancel")).map(drop)
}

/// Takes everything out of a handle: callback, owner, context, arguments.
///
/// # Safety
///
/// `object` is a live handle and the GIL is held.
unsafe fn take_all(object: *mut HandleObject) -> [Option<Py<PyAny>>; 3 + INLINE] {
    // SAFETY: each field holds an owned reference or null, and is null afterwards.
    unsafe {
        let py = Python::assume_attached();
        if (*object).flags & HANDED != 0 {
            handed::forget(object);
        }
        (*object).flags &= !SHARED;
        let take = |field: *mut *mut PyObject| {
            let taken = ptr::replace(field, null_mut());
            Bound::from_owned_ptr_or_opt(py, taken).map(Bound::unbind)
        };
        [
            take(&raw mut (*object).callback),
            take(&raw mut (*object).owner),
            take(&raw mut (*object).context),
            take(&raw mut (*object).args[0]),
            take(&raw mut (*object).args[1]),
            take(&raw mut (*object).args[2]),
        ]
    }
}

/// A tuple of borrowed references.
///
/// # Safety
///
/// Every pointer is a live object.
unsafe fn tuple_of<'py>(py: Python<'py>, items: &[*mut PyObject]) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(
        py,
        items
            .iter()
            // SAFETY: the caller vouches for the pointers.
            .map(|&item| unsafe { Bound::from_borrowed_ptr(py, item) }),
    )
}

// --- slots -------------------------------------------------------------------------------------

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    let handle = object.cast::<HandleObject>();
    // SAFETY: the interpreter calls this once, when the last reference is gone. Untracking comes
    // first, so that the collector does not see a half-dead object.
    unsafe {
        refcheck::dying(object);
        if (*handle).flags & HANDED != 0 {
            return handed::take_over(handle);
        }
        ffi::PyObject_GC_UnTrack(object.cast());
        if !(*handle).weakrefs.is_null() {
            ffi::PyObject_ClearWeakRefs(object);
        }
        if (*handle).callback.is_null() && (*handle).source_traceback.is_null() {
            free(object);
        } else if depth::is_deep() {
            depth::put_off(object, die);
        } else {
            depth::nested(object, die);
        }
    }
}

/// The end of a handle that owns something.
///
/// # Safety
///
/// As [`free`], but for what it owns.
unsafe fn die(object: *mut PyObject) {
    // SAFETY: passed on to the caller.
    unsafe {
        clear(object);
        free(object);
    }
}

/// Gives the memory of a handle back, to the loop that this thread runs or to the interpreter.
///
/// # Safety
///
/// The rest of the dealloc slot: the handle is untracked and owns nothing.
#[inline]
unsafe fn free(object: *mut PyObject) {
    // SAFETY: passed on to the caller.
    unsafe {
        let kind = ffi::Py_TYPE(object);
        let is_timer = TYPES
            .get(Python::assume_attached())
            .is_some_and(|types| ptr::eq(kind, types.timer.as_ptr().cast()));
        let kept = spare::leave_to_running(object, |queue| {
            if is_timer {
                &mut queue.spare_timers
            } else {
                &mut queue.spare_handles
            }
        });
        if !kept {
            refcheck::bury(object, refcheck::Kind::Handle);
            ffi::PyObject_GC_Del(object.cast());
        }
        ffi::Py_DECREF(kind.cast());
    }
}

unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    let handle = object.cast::<HandleObject>();
    // SAFETY: a live handle with the GIL held; each reference is taken out before it is dropped.
    unsafe {
        let py = Python::assume_attached();
        for reference in take_all(handle).into_iter().flatten() {
            drop(reference.into_bound(py));
        }
        for field in [
            &raw mut (*handle).source_traceback,
            &raw mut (*handle).description,
        ] {
            ffi::Py_XDECREF(ptr::replace(field, null_mut()));
        }
    }
    0
}

unsafe extern "C" fn traverse(
    object: *mut PyObject,
    visit: ffi::visitproc,
    argument: *mut c_void,
) -> c_int {
    let handle = object.cast::<HandleObject>();
    // SAFETY: a live handle; `visit` is the collector's, called with references that it owns.
    unsafe {
        let fields = [
            ffi::Py_TYPE(object).cast(),
            (*handle).callback,
            (*handle).owner,
            (*handle).context,
            (*handle).source_traceback,
            (*handle).args[0],
            (*handle).args[1],
            (*handle).args[2],
        ];
        for field in fields {
            if !field.is_null() {
                let result = visit(field, argument);
                if result != 0 {
                    return result;
                }
            }
        }
    }
    0
}

unsafe extern "C" fn repr(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter with the GIL held and a live object.
    unsafe {
        guard(|py| {
            depth::room(c" while getting the repr of a handle")?;
            let handle = Bound::from_borrowed_ptr(py, object);
            py.import(intern!(py, "tideloop.loop.handles"))?
                .call_method1(intern!(py, "describe"), (handle,))
        })
    }
}

unsafe extern "C" fn compare(a: *mut PyObject, b: *mut PyObject, op: c_int) -> *mut PyObject {
    // SAFETY: called by the interpreter with the GIL held and live objects; `a` is a timer.
    unsafe {
        guard(|py| {
            if ffi::Py_TYPE(a) != ffi::Py_TYPE(b) {
                return Ok(py.NotImplemented().into_bound(py));
            }
            let (x, y) = (
                (*a.cast::<HandleObject>()).when,
                (*b.cast::<HandleObject>()).when,
            );
            let holds = match op {
                ffi::Py_LT => x < y,
                ffi::Py_LE => x <= y,
                ffi::Py_GT => x > y,
                ffi::Py_GE => x >= y,
                ffi::Py_EQ => a == b,
                _ => a != b,
            };
            Ok(holds.into_pyobject(py)?.to_owned().into_any())
        })
    }
}

unsafe extern "C" fn hash(object: *mut PyObject) -> ffi::Py_hash_t {
    // SAFETY: called by the interpreter with the GIL held and a live timer. asyncio hashes `when`.
    unsafe {
        let when = ffi::PyFloat_FromDouble((*object.cast::<HandleObject>()).when);
        if when.is_null() {
            return -1;
        }
        let hash = ffi::PyObject_Hash(when);
        ffi::Py_DECREF(when);
        hash
    }
}

// --- methods -----------------------------------------------------------------------------------

unsafe extern "C" fn py_cancel(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type: `object` is a handle.
    unsafe {
        guard(|py| {
            // Kept alive: dropping what it held may drop the last reference to the handle.
            let handle = Bound::from_borrowed_ptr(py, object);
            cancel(py, handle.as_ptr().cast());
            Ok(py.None().into_bound(py))
        })
    }
}

unsafe extern "C" fn py_cancelled(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type: `object` is a handle, which is kept alive while we wait.
    unsafe {
        guard(|py| {
            let handle = Bound::from_borrowed_ptr(py, object);
            let object = handle.as_ptr().cast::<HandleObject>();
            await_end_of_run(py, object);
            let cancelled = (*object).flags & CANCELLED != 0;
            Ok(cancelled.into_pyobject(py)?.to_owned().into_any())
        })
    }
}

unsafe extern "C" fn py_run(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type: `object` is a handle.
    unsafe {
        guard(|py| {
            let handle = Bound::from_borrowed_ptr(py, object);
            run(&handle)?;
            Ok(py.None().into_bound(py))
        })
    }
}

unsafe extern "C" fn py_when(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of the timer type: `object` is a timer.
    unsafe { ffi::PyFloat_FromDouble((*object.cast::<HandleObject>()).when) }
}

unsafe extern "C" fn py_get_context(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type: `object` is a handle.
    unsafe { context_of(object.cast()) }
}

/// A new reference to a handle's context or None, or null with an exception set.
///
/// # Safety
///
/// `object` is a live handle, which the caller keeps alive; the GIL is held.
unsafe fn context_of(object: *mut HandleObject) -> *mut PyObject {
    // SAFETY: passed on to the caller.
    unsafe {
        guard(|py| {
            own_context(py, object)?;
            let context = new_or_none((*object).context);
            Ok(Bound::from_owned_ptr(py, context))
        })
    }
}

// --- attributes, under asyncio's names ----------------------------------------------------------

/// Which attribute a getter serves; smuggled through its closure pointer.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Field {
    Callback = 1,
    Args,
    Loop,
    Context,
    Cancelled,
    Scheduled,
    SourceTraceback,
    Description,
    Class,
}

unsafe extern "C" fn get(object: *mut PyObject, closure: *mut c_void) -> *mut PyObject {
    let handle = object.cast::<HandleObject>();
    let is = |field: Field| closure as usize == field as usize;
    // SAFETY: an attribute of this type: `object` is a handle, the GIL is held.
    unsafe {
        if is(Field::Callback) {
            return new_or_none((*handle).callback);
        }
        if is(Field::Loop) {
            return new_or_none((*handle).owner);
        }
        if is(Field::Context) {
            return context_of(handle);
        }
        if is(Field::SourceTraceback) {
            return new_or_none((*handle).source_traceback);
        }
        if is(Field::Description) {
            return new_or_none((*handle).description);
        }
        let flags = (*handle).flags;
        if is(Field::Cancelled) {
            return ffi::PyBool_FromLong((flags & CANCELLED != 0).into());
        }
        if is(Field::Scheduled) {
            return ffi::PyBool_FromLong((flags & SCHEDULED != 0).into());
        }
        guard(|py| {
            if is(Field::Class) {
                let types = types(py)?;
                let timer = ffi::Py_TYPE(object) == types.timer.as_ptr().cast();
                let class = match &types.asyncio_thread_safe {
                    _ if timer => &types.asyncio_timer,
                    Some(class) if flags & THREAD_SAFE != 0 => class,
                    _ => &types.asyncio_handle,
                };
                return Ok(class.bind(py).clone());
            }
            if (*handle).callback.is_null() {
                return Ok(py.None().into_bound(py));
            }
            if flags & SPILLED != 0 {
                return Ok(Bound::from_borrowed_ptr(py, (*handle).args[0]));
            }
            let (args, count) = ((*handle).args, usize::from((*handle).count));
            Ok(tuple_of(py, &args[..count])?.into_any())
        })
    }
}

/// # Safety
///
/// `object` is null or alive; the GIL is held.
unsafe fn new_or_none(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: None is immortal or at least always alive.
    unsafe {
        ffi::Py_NewRef(if object.is_null() {
            ffi::Py_None()
        } else {
            object
        })
    }
}

// --- type objects ------------------------------------------------------------------------------

const HANDLE_DOC: &std::ffi::CStr =
    c"A scheduled callback, as call_soon, add_reader and the like return it.";
const TIMER_DOC: &std::ffi::CStr =
    c"A callback scheduled for a time, as call_later and call_at return it.";

const fn method(
    name: &'static std::ffi::CStr,
    function: ffi::PyCFunction,
    doc: &'static std::ffi::CStr,
) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: function,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: doc.as_ptr(),
    }
}

struct Table<const N: usize>([ffi::PyMethodDef; N]);

// SAFETY: the tables are constant; CPython only reads them.
unsafe impl<const N: usize> Sync for Table<N> {}

const CANCEL: ffi::PyMethodDef = method(
    c"cancel",
    py_cancel,
    c"cancel($self, /)\n--\n\nCancel the callback. Does nothing if it has run or was cancelled.",
);
const IS_CANCELLED: ffi::PyMethodDef = method(
    c"cancelled",
    py_cancelled,
    c"cancelled($self, /)\n--\n\nWhether the callback was cancelled.",
);
const GET_CONTEXT: ffi::PyMethodDef = method(
    c"get_context",
    py_get_context,
    c"get_context($self, /)\n--\n\nThe context in which the callback runs; None once it has run.",
);
const RUN: ffi::PyMethodDef = method(
    c"_run",
    py_run,
    c"_run($self, /)\n--\n\nRun the callback now. For the event loop.",
);
const WHEN: ffi::PyMethodDef = method(
    c"when",
    py_when,
    c"when($self, /)\n--\n\nThe scheduled time, in seconds on the clock of loop.time().",
);
const END: ffi::PyMethodDef = ffi::PyMethodDef::zeroed();

static HANDLE_METHODS: Table<5> = Table([CANCEL, IS_CANCELLED, GET_CONTEXT, RUN, END]);
static TIMER_METHODS: Table<6> = Table([CANCEL, IS_CANCELLED, GET_CONTEXT, RUN, WHEN, END]);

const fn attribute(name: &'static std::ffi::CStr, field: Field) -> ffi::PyGetSetDef {
    ffi::PyGetSetDef {
        name: name.as_ptr(),
        get: Some(get),
        set: None,
        doc: ptr::null(),
        closure: ptr::without_provenance_mut(field as usize),
    }
}

struct Attributes([ffi::PyGetSetDef; 10]);

// SAFETY: as the method tables.
unsafe impl Sync for Attributes {}

static ATTRIBUTES: Attributes = Attributes([
    attribute(c"_callback", Field::Callback),
    attribute(c"_args", Field::Args),
    attribute(c"_loop", Field::Loop),
    attribute(c"_context", Field::Context),
    attribute(c"_cancelled", Field::Cancelled),
    attribute(c"_scheduled", Field::Scheduled),
    attribute(c"_source_traceback", Field::SourceTraceback),
    attribute(c"_repr", Field::Description),
    attribute(c"__class__", Field::Class),
    ffi::PyGetSetDef {
        name: ptr::null(),
        get: None,
        set: None,
        doc: ptr::null(),
        closure: null_mut(),
    },
]);

struct Members([ffi::PyMemberDef; 2]);

// SAFETY: as the method tables.
unsafe impl Sync for Members {}

static MEMBERS: Members = Members([
    ffi::PyMemberDef {
        name: c"__weaklistoffset__".as_ptr(),
        type_code: ffi::Py_T_PYSSIZET,
        offset: std::mem::offset_of!(HandleObject, weakrefs) as ffi::Py_ssize_t,
        flags: ffi::Py_READONLY,
        doc: ptr::null(),
    },
    ffi::PyMemberDef {
        name: ptr::null(),
        type_code: 0,
        offset: 0,
        flags: 0,
        doc: ptr::null(),
    },
]);

/// Which of the two types.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Handle,
    Timer,
}

fn make_type(py: Python<'_>, kind: Kind) -> PyResult<Py<PyType>> {
    let (name, doc, methods) = match kind {
        Kind::Handle => (
            c"tideloop._tideloop.Handle",
            HANDLE_DOC,
            HANDLE_METHODS.0.as_ptr(),
        ),
        Kind::Timer => (
            c"tideloop._tideloop.TimerHandle",
            TIMER_DOC,
            TIMER_METHODS.0.as_ptr(),
        ),
    };
    let slot = |slot: c_int, pfunc: *mut c_void| ffi::PyType_Slot { slot, pfunc };
    let mut slots = vec![
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_repr, repr as *mut c_void),
        slot(ffi::Py_tp_doc, doc.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_methods, methods as *mut c_void),
        slot(ffi::Py_tp_getset, ATTRIBUTES.0.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_members, MEMBERS.0.as_ptr() as *mut c_void),
    ];
    if kind == Kind::Timer {
        slots.push(slot(ffi::Py_tp_richcompare, compare as *mut c_void));
        slots.push(slot(ffi::Py_tp_hash, hash as *mut c_void));
    }
    slots.push(slot(0, null_mut()));
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr().cast::<c_char>(),
        basicsize: size_of::<HandleObject>() as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
            | ffi::Py_TPFLAGS_IMMUTABLETYPE) as u32,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec and what it points to outlive the call; name, docs and tables are static.
    unsafe {
        let object = ffi::PyType_FromSpec(&mut spec);
        Ok(Bound::from_owned_ptr_or_err(py, object)?
            .cast_into_unchecked::<PyType>()
            .unbind())
    }
}
