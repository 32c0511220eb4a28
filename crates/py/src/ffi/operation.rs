//! Operation: the coroutine that a native coroutine function returns.
//!
//! To a program it is a coroutine: `await` runs it, tasks take it, `send`, `throw` and `close` work,
//! `inspect` sees its state, and it warns when it was never awaited. Inside it is a state machine
//! ([`Coroutine::advance`](super::function::Coroutine)) with three references and a ticket instead of
//! an interpreter frame. As with a coroutine nothing happens before the first step, and an operation
//! that need not wait ends in that step without a future, a callback or a turn of the loop.
//!
//! **Waiting.** A step that returns [`Step::Wait`] hands the future to whoever drives the operation,
//! as `await future` does; the next step gets the outcome. [`Step::Yield`] is a bare `yield`.
//! [`Step::Delegate`] is `await` of anything else: until that has ended, what is sent and thrown goes there.
//! [`Step::Awaits`] is the same for what was begun within the step ([`begin`]), in which it may as well have ended.
//! [`Step::Become`] leaves all that remains to a coroutine of asyncio's.
//!
//! **Looking in.** An operation stands for a coroutine of asyncio's and for those that this one would await; what it
//! shows of them is in [`super::shadows`].
//!
//! **How it ends.** `throw()`, `close()` and the death of a suspended operation all arrive as
//! [`Input::Thrown`], once, so that a waiter always gets to leave its queue.
//!
//! **Returning a value without allocating.** The interpreter takes a coroutine's value out of a
//! StopIteration. One such object is kept and filled again whenever nobody else has it. Its value is
//! dropped when the operation dies that returned it, which for `await queue.get()` is at once. An
//! operation that returned nothing of weight need not die: its function keeps it for its next call, if
//! by then nobody else has it.
//!
//! **The collector is told late.** Most operations that are filled again have ended before anything else happens, and
//! putting each of them into the collector's list and taking it out again would cost more than the operation. So one that is
//! kept is not in any list, and neither is it when it is handed out: its function remembers it
//! ([`FunctionObject::hand_out`]), one for each function. It is put into the list when it has to wait, when its function is
//! called again before it has ended, when it dies, and when a collection begins, which `gc.callbacks` tells. What a collection
//! looks at is therefore the same as if all had been in the list from the start, and an operation that is filled
//! again is young to it, wherever the old one had got to. (One that was frozen by `gc.freeze()` would keep the cycles that it
//! becomes a part of.) A program that empties `gc.callbacks` has at most one operation for each function that a
//! collection does not see until the next call.

use std::marker::PhantomData;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr::{self, null_mut};

use pyo3::Borrowed;
use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple, PyType};
use tideloop_core::waiters::Ticket;

use super::cell::LoopCell;
use super::depth::Level;
use super::function::{FunctionObject, KEPT};
use super::park::{self, Outcome};
use super::{call, depth, guard, refcheck, shadows, task};

/// What happened since the last step.
pub enum Input {
    /// Nothing: this is the first step.
    Start,
    /// What was waited for has come.
    Resumed,
    /// An exception was thrown in, or what was waited for has failed.
    Thrown(PyErr),
}

/// Whether an operation could end in its first step without anything else running.
pub enum AtOnce<'py> {
    /// Nothing was done.
    No,
    /// All was done; the value is None.
    Finish,
    /// All was done, with this value.
    Return(Bound<'py, PyAny>),
}

/// What a step comes to.
pub enum Step<'py> {
    /// Returns a value.
    Return(Bound<'py, PyAny>),
    /// Returns None.
    Finish,
    /// Waits for a future.
    Wait(Bound<'py, PyAny>),
    /// Yields None: to be resumed in the next turn.
    Yield,
    /// Awaits what [`iterator_of`] has given; the next step finds its value in [`Frame::awaited`].
    Delegate(Bound<'py, PyAny>),
    /// Goes on with `await` of what [`begin`] has begun, which has yielded the second one.
    Awaits(Bound<'py, PyAny>, Bound<'py, PyAny>),
    /// Is from now on this coroutine of its template: it ends as that one ends, and shows its frames. With an
    /// exception, the coroutine waits, and this is thrown into it.
    Become(Bound<'py, PyAny>, Option<PyErr>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum State {
    Created,
    Suspended,
    Running,
    Done,
}

/// The bits of [`OperationObject::rest`].
const STATE: u64 = 0b11;
const FINALIZED: u64 = 0b100;
/// What is awaited is an iterator that is driven, not a future that is waited for.
const DELEGATES: u64 = 0b1000;
/// The iterator is a coroutine of the template, which the operation has become.
const BECAME: u64 = 0b1_0000;
/// Somebody has looked at the frames: there is an entry in [`shadows`].
const LOOKED: u64 = 0b10_0000;
/// `python -m asyncio ps`, which reads the memory of another process, takes the coroutine of a task for one of the
/// interpreter's. Where these have the state of their frame (byte 67) an operation says that there is no frame any
/// more, or it would go on to read other fields as one.
const NO_FRAME: u64 = if cfg!(Py_3_15) {
    5 << 24
} else if cfg!(Py_3_14) {
    4 << 24
} else {
    0
};
/// [`OperationObject::rest`] of one that has not begun, and of one that has ended, if there is nothing else to say of it.
const FRESH: u64 = State::Created as u64 | NO_FRAME;
const ENDED: u64 = State::Done as u64 | NO_FRAME;
const _: () = assert!(
    cfg!(not(target_pointer_width = "64")) || std::mem::offset_of!(OperationObject, rest) == 64
);

#[repr(C)]
struct OperationObject {
    head: PyObject,
    weakrefs: *mut PyObject,
    function: *mut FunctionObject,
    /// The arguments; the first one is the receiver.
    kept: [*mut PyObject; KEPT],
    /// The future that is waited for.
    awaited: *mut PyObject,
    /// The state and what else there is to say yes or no to, in one word: there can be one of these objects for each
    /// task that sleeps.
    rest: u64,
    ticket: u64,
}

impl OperationObject {
    #[inline(always)]
    fn state(&self) -> State {
        match self.rest & STATE {
            0 => State::Created,
            1 => State::Suspended,
            2 => State::Running,
            _ => State::Done,
        }
    }

    #[inline(always)]
    fn set_state(&mut self, state: State) {
        self.rest = self.rest & !STATE | state as u64;
    }

    #[inline(always)]
    fn is_finalized(&self) -> bool {
        self.rest & FINALIZED != 0
    }

    /// Whether `awaited` is an iterator that is driven, not a future that is waited for.
    #[inline(always)]
    fn delegates(&self) -> bool {
        self.rest & DELEGATES != 0
    }
}

/// One operation as its state machine sees it.
pub struct Frame<'a, 'py> {
    py: Python<'py>,
    object: *mut OperationObject,
    step: PhantomData<&'a ()>,
}

impl<'py> Frame<'_, 'py> {
    pub fn py(&self) -> Python<'py> {
        self.py
    }

    /// The argument at an index, 0 being the receiver; `None` if it was not given.
    #[inline]
    pub fn argument(&self, index: usize) -> Option<Bound<'py, PyAny>> {
        // SAFETY: the operation is alive during its step; null or an owned reference.
        unsafe { Bound::from_borrowed_ptr_or_opt(self.py, (&(*self.object).kept)[index]) }
    }

    /// The arguments that share the last place ([`super::function::Coroutine::PACKS`]), which is empty then.
    pub fn unpack<const N: usize>(&self) -> PyResult<[Option<Bound<'py, PyAny>>; N]> {
        let Some(packed) = self.replace(KEPT - 1, None) else {
            return Ok([const { None }; N]);
        };
        let packed = packed.cast_into::<PyTuple>()?;
        // SAFETY: the operation is alive during its step, and so is its function; only the address matters.
        let missing = unsafe { (*self.object).function.cast::<PyObject>() };
        Ok(std::array::from_fn(|index| {
            let value = packed.get_item(index).ok();
            value.filter(|value| value.as_ptr() != missing)
        }))
    }

    /// Replaces the argument at an index, which need not have been given.
    #[inline]
    pub fn replace(
        &self,
        index: usize,
        value: Option<Bound<'py, PyAny>>,
    ) -> Option<Bound<'py, PyAny>> {
        let value = value.map_or(null_mut(), Bound::into_ptr);
        // SAFETY: as above; the old reference is handed over, the new one owned by the field.
        unsafe {
            let old = std::mem::replace(&mut (&mut (*self.object).kept)[index], value);
            Bound::from_owned_ptr_or_opt(self.py, old)
        }
    }

    /// The future of the last [`Step::Wait`], or the value of the last [`Step::Delegate`].
    #[inline]
    pub fn awaited(&self) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: as above.
        unsafe { Bound::from_borrowed_ptr_or_opt(self.py, (*self.object).awaited) }
            .ok_or_else(|| PyRuntimeError::new_err("a bug in tideloop: nothing was awaited"))
    }

    /// The place in a queue that was stored last.
    #[inline]
    pub fn ticket(&self) -> Ticket {
        // SAFETY: as above.
        Ticket::from_u64(unsafe { (*self.object).ticket })
    }

    #[inline]
    pub fn set_ticket(&self, ticket: Ticket) {
        // SAFETY: as above.
        unsafe { (*self.object).ticket = ticket.to_u64() }
    }
}

// --- making and dropping -----------------------------------------------------------------------

/// Dead operations kept to be filled again; each is 96 bytes.
const MAX_SPARE: usize = 256;

/// What operations leave for each other.
struct Pool {
    /// Dead operations: whole but for their fields, with a count of 0 and a reference to their class.
    spare: Vec<*mut OperationObject>,
    /// A StopIteration that is filled again and again, if nobody else knows it.
    stop: *mut PyObject,
    /// Whether there is a value in it.
    filled: bool,
}

// SAFETY: the pointers are only touched through a LoopCell, so with the GIL held.
unsafe impl Send for Pool {}

static POOL: LoopCell<Pool> = LoopCell::new(Pool {
    spare: Vec::new(),
    stop: null_mut(),
    filled: false,
});

/// A new operation of a coroutine function; null with an exception set if there is no memory.
///
/// # Safety
///
/// `function` is a live FunctionObject with a coroutine body; `kept` are at most [`KEPT`] live objects, or
/// null, and the first one is an object.
#[inline(always)]
pub unsafe fn new(
    py: Python<'_>,
    function: *mut FunctionObject,
    kept: &[*mut PyObject],
) -> *mut PyObject {
    // SAFETY: what is kept by the function has ended, so its fields are empty.
    unsafe {
        let last: *mut OperationObject = (*function).take_last().cast();
        let reused = !last.is_null() && is_reusable(last) && ffi::Py_REFCNT(last.cast()) == 1;
        let operation = if reused {
            last
        } else {
            let operation = blank(py, function, last);
            if operation.is_null() {
                return null_mut();
            }
            operation
        };
        for (index, &value) in kept.iter().enumerate() {
            (&mut (*operation).kept)[index] = ffi::Py_XNewRef(value);
        }
        (*operation).rest = FRESH;
        if reused {
            (*function).hand_out(operation.cast());
        }
        operation.cast()
    }
}

/// As [`new`], out of the operation that its function has kept, which nobody else has; null, without an
/// exception, if there is none.
///
/// # Safety
///
/// `function` is a live FunctionObject with a coroutine body; `array` holds so many live objects, at least one and at most
/// [`KEPT`].
#[inline(always)]
pub unsafe fn refill(
    function: *mut FunctionObject,
    array: *const *mut PyObject,
    kept: usize,
) -> *mut PyObject {
    // SAFETY: as in `new`.
    unsafe {
        let last: *mut OperationObject = (*function).last().cast();
        // It was reusable when it was kept, and who has got hold of it since then can only have made a weak reference.
        if last.is_null() || !(*last).weakrefs.is_null() || ffi::Py_REFCNT(last.cast()) != 1 {
            return null_mut();
        }
        (*function).take_last();
        let fields = (&raw mut (*last).kept).cast::<*mut PyObject>();
        fields.write(ffi::Py_NewRef(*array));
        for index in 1..kept.min(KEPT) {
            fields.add(index).write(ffi::Py_NewRef(*array.add(index)));
        }
        (*last).rest = FRESH;
        (*function).hand_out(last.cast());
        last.cast()
    }
}

/// Whether an operation can be filled again, if nobody else has it: it has ended, and nobody can tell it
/// from a new one.
///
/// # Safety
///
/// A live operation, or one at the beginning of its dealloc slot.
#[inline(always)]
unsafe fn is_reusable(operation: *mut OperationObject) -> bool {
    // SAFETY: as above. An object is finalized once in its life, and a reused one would live on as such.
    unsafe { (*operation).rest == ENDED && (*operation).weakrefs.is_null() }
}

/// An operation with empty fields; null with an exception set if there is no memory.
///
/// # Safety
///
/// `function` is alive; `last` is an operation that cannot be filled again and is handed over, or null.
#[inline(never)]
unsafe fn blank(
    py: Python<'_>,
    function: *mut FunctionObject,
    last: *mut OperationObject,
) -> *mut OperationObject {
    // SAFETY: spare memory was an operation and is one again with a new count; new memory has the size
    // of one. Every field is written before anything else can see the object, but for the state and the
    // ticket, which are the caller's.
    unsafe {
        ffi::Py_XDECREF(last.cast());
        (*function).show_unseen();
        let object = match POOL.with(py, |pool| pool.spare.pop()) {
            Some(object) => {
                ffi::Py_INCREF(object.cast());
                object
            }
            None => allocate(py),
        };
        if object.is_null() {
            return null_mut();
        }
        (*object).weakrefs = null_mut();
        (*object).function = ffi::Py_NewRef(function.cast()).cast();
        (*object).kept = [null_mut(); KEPT];
        (*object).awaited = null_mut();
        (*object).ticket = u64::MAX;
        (*object).rest = FRESH;
        ffi::PyObject_GC_Track(object.cast());
        refcheck::born(refcheck::Kind::Operation);
        object
    }
}

#[cold]
fn allocate(py: Python<'_>) -> *mut OperationObject {
    match kind(py) {
        // SAFETY: the type is ours, with the size of the object.
        Ok(kind) => unsafe { ffi::PyObject_GC_New::<OperationObject>(kind.as_ptr().cast()) },
        Err(error) => {
            error.restore(py);
            null_mut()
        }
    }
}

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    let operation = object.cast::<OperationObject>();
    // SAFETY: called once the last reference is gone. One that is whole, with empty fields, is kept by its
    // function for the next call.
    unsafe {
        let py = Python::assume_attached();
        refcheck::dying(object);
        if refcheck::ON || !is_reusable(operation) || !(*(*operation).function).wants_last() {
            return die(operation);
        }
        ffi::Py_INCREF(object);
        (*(*operation).function).keep_last(object);
        if POOL.with(py, |pool| pool.filled) {
            empty_stop_iteration(py);
        }
    }
}

/// The end of an operation that its function does not keep. One that has not ended has others, as in
/// `wait_for(wait_for(...))`, which may be more than the stack has room for ([`super::depth`]).
///
/// # Safety
///
/// The dealloc slot of an operation.
#[inline(never)]
unsafe fn die(operation: *mut OperationObject) {
    // SAFETY: passed on to the caller. One that has to wait is no longer its function's.
    unsafe {
        (*(*operation).function).show(operation.cast());
        if (*operation).state() == State::Done {
            die_now(operation.cast());
        } else if depth::is_deep() {
            depth::put_off(operation.cast(), die_now);
        } else {
            depth::nested(operation.cast(), die_now);
        }
    }
}

/// # Safety
///
/// See [`die`].
unsafe fn die_now(object: *mut PyObject) {
    let operation = object.cast::<OperationObject>();
    // SAFETY: as above. An operation that has not ended gets to leave its queue, or to warn, while it is
    // still whole; that may revive it.
    unsafe {
        let py = Python::assume_attached();
        let ended = (*operation).state() == State::Done;
        if !ended && ffi::PyObject_CallFinalizerFromDealloc(object) < 0 {
            return;
        }
        ffi::PyObject_GC_UnTrack(object.cast());
        if !(*operation).weakrefs.is_null() {
            ffi::PyObject_ClearWeakRefs(object);
        }
        if !ended {
            release(operation);
        }
        if (*operation).rest & LOOKED != 0 {
            shadows::forget(py, operation as usize);
        }
        let function = ptr::replace(&raw mut (*operation).function, null_mut());
        ffi::Py_XDECREF(function.cast());
        // An object is finalized once in its life, and a reused one would live on as such.
        let reusable = ended && !(*operation).is_finalized();
        let (kept, filled) = POOL.with(py, |pool| {
            let room = reusable && !refcheck::ON && pool.spare.len() < MAX_SPARE;
            if room {
                pool.spare.push(operation);
            }
            (room, pool.filled)
        });
        if !kept {
            let kind = ffi::Py_TYPE(object);
            refcheck::bury(object, refcheck::Kind::Operation);
            ffi::PyObject_GC_Del(object.cast());
            ffi::Py_DECREF(kind.cast());
        }
        if filled {
            empty_stop_iteration(py);
        }
    }
}

/// Drops what an operation holds, except its function, which names it.
///
/// # Safety
///
/// A live operation with the GIL held; its state says that it needs none of these any more.
#[inline(always)]
unsafe fn release(operation: *mut OperationObject) {
    // SAFETY: each reference is taken out before it is dropped.
    unsafe {
        let awaited = ptr::replace(&raw mut (*operation).awaited, null_mut());
        release_kept(operation);
        ffi::Py_XDECREF(awaited);
    }
}

/// As [`release`], for one that awaits nothing.
///
/// # Safety
///
/// As [`release`].
#[inline(always)]
unsafe fn release_kept(operation: *mut OperationObject) {
    // SAFETY: as above.
    unsafe {
        for field in &mut (*operation).kept {
            let value = std::mem::replace(field, null_mut());
            if !value.is_null() {
                ffi::Py_DECREF(value);
            }
        }
        if (*operation).rest & LOOKED != 0 {
            (*operation).rest &= !LOOKED;
            shadows::forget(Python::assume_attached(), operation as usize);
        }
    }
}

unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    let operation = object.cast::<OperationObject>();
    // SAFETY: called by the collector for garbage, after the finalizer has run.
    unsafe {
        (*operation).set_state(State::Done);
        release(operation);
    }
    0
}

pub unsafe extern "C" fn traverse(
    object: *mut PyObject,
    visit: ffi::visitproc,
    argument: *mut c_void,
) -> c_int {
    let operation = object.cast::<OperationObject>();
    // SAFETY: a live operation; `visit` is the collector's.
    unsafe {
        let kept = (*operation).kept;
        let fields = [
            ffi::Py_TYPE(object).cast(),
            (*operation).function.cast(),
            kept[0],
            kept[1],
            kept[2],
            (*operation).awaited,
        ];
        for field in fields {
            if !field.is_null() {
                let result = visit(field, argument);
                if result != 0 {
                    return result;
                }
            }
        }
        if (*operation).rest & LOOKED != 0 {
            return shadows::traverse(operation as usize, |object| visit(object, argument));
        }
    }
    0
}

/// A dying operation: one that never ran warns, a suspended one is closed.
unsafe extern "C" fn finalize(object: *mut PyObject) {
    let operation = object.cast::<OperationObject>();
    // SAFETY: a live operation with the GIL held; an exception that is under way is put back.
    unsafe {
        (*operation).rest |= FINALIZED;
        let state = (*operation).state();
        if !matches!(state, State::Created | State::Suspended) {
            return;
        }
        let under_way = call::set_aside();
        let result = guard(|py| {
            let this = Bound::from_borrowed_ptr(py, object);
            if state == State::Suspended {
                return close(&this);
            }
            py.import(intern!(py, "warnings"))?
                .call_method1(intern!(py, "_warn_unawaited_coroutine"), (&this,))
        });
        if result.is_null() {
            ffi::PyErr_WriteUnraisable(object);
        } else {
            ffi::Py_DECREF(result);
        }
        call::put_back(under_way);
    }
}

// --- stepping ----------------------------------------------------------------------------------

/// What drives an operation on.
enum Drive<'py> {
    Send(Option<Bound<'py, PyAny>>),
    Throw(PyErr),
}

/// What came out of a step.
enum Moved<'py> {
    Yielded(Bound<'py, PyAny>),
    Returned(Option<Bound<'py, PyAny>>),
}

/// Takes a step.
///
/// # Safety
///
/// `operation` is alive for as long as the call lasts.
#[inline(always)]
unsafe fn drive<'py>(
    py: Python<'py>,
    operation: *mut OperationObject,
    drive: Drive<'py>,
) -> PyResult<Moved<'py>> {
    // SAFETY: a live operation, which its caller holds; references are taken out of it before they
    // are dropped, and its state is consistent whenever other code can run.
    unsafe {
        refcheck::alive(operation.cast(), "an operation at its step");
        (*(*operation).function).show(operation.cast());
        let input = match ((*operation).state(), drive) {
            (State::Created, Drive::Send(None)) => Input::Start,
            (State::Created, Drive::Send(Some(_))) => {
                return Err(PyTypeError::new_err(
                    "can't send non-None value to a just-started coroutine",
                ));
            }
            (State::Created, Drive::Throw(error)) => {
                (*operation).set_state(State::Done);
                release(operation);
                return Err(contained(py, error));
            }
            (State::Suspended, drive) if (*operation).delegates() => {
                match pass_on(py, operation, drive) {
                    Passed::Yielded(value) => return Ok(Moved::Yielded(value)),
                    Passed::Ended(input) => input,
                    Passed::Over(result) => return over(py, operation, result),
                }
            }
            (State::Suspended, Drive::Throw(error)) => Input::Thrown(error),
            (State::Suspended, Drive::Send(_)) => {
                match Bound::from_borrowed_ptr_or_opt(py, (*operation).awaited) {
                    None => Input::Resumed,
                    Some(future) => match park::outcome(&future) {
                        Outcome::Ended => Input::Resumed,
                        Outcome::Failed(error) => Input::Thrown(error),
                        Outcome::Pending if !park::has_begun(&future)? => {
                            park::begin(&future)?;
                            return Ok(Moved::Yielded(future));
                        }
                        Outcome::Pending => {
                            Input::Thrown(PyRuntimeError::new_err("await wasn't used with future"))
                        }
                    },
                }
            }
            (State::Running, _) => {
                return Err(PyValueError::new_err("coroutine already executing"));
            }
            (State::Done, _) => {
                return Err(PyRuntimeError::new_err(
                    "cannot reuse already awaited coroutine",
                ));
            }
        };
        (*operation).set_state(State::Running);
        // The operation keeps it, which runs and so is not released meanwhile.
        let receiver = Borrowed::from_ptr(py, (*operation).kept[0]);
        let frame = Frame {
            py,
            object: operation,
            step: PhantomData,
        };
        let mut step = (*(*operation).function).advance(&receiver, &frame, input);
        while let Ok(Step::Delegate(_) | Step::Become(..)) = step {
            let (iterator, how, first) = match step {
                Ok(Step::Delegate(iterator)) => (iterator, DELEGATES, Drive::Send(None)),
                Ok(Step::Become(it, None)) => (it, DELEGATES | BECAME, Drive::Send(None)),
                Ok(Step::Become(it, Some(e))) => (it, DELEGATES | BECAME, Drive::Throw(e)),
                _ => break,
            };
            let old = ptr::replace(&raw mut (*operation).awaited, iterator.into_ptr());
            (*operation).rest |= how;
            ffi::Py_XDECREF(old);
            step = match pass_on(py, operation, first) {
                Passed::Yielded(value) => return Ok(Moved::Yielded(value)),
                Passed::Over(result) => return over(py, operation, result),
                Passed::Ended(input) => {
                    let receiver = Bound::from_borrowed_ptr(py, (*operation).kept[0]);
                    (*(*operation).function).advance(&receiver, &frame, input)
                }
            };
        }
        match step {
            Ok(Step::Delegate(_) | Step::Become(..)) => Ok(Moved::Returned(None)),
            Ok(Step::Return(value)) => {
                end(operation);
                Ok(Moved::Returned(Some(value)))
            }
            Ok(Step::Finish) => {
                end(operation);
                Ok(Moved::Returned(None))
            }
            Ok(Step::Yield) => {
                (*operation).set_state(State::Suspended);
                let old = ptr::replace(&raw mut (*operation).awaited, null_mut());
                ffi::Py_XDECREF(old);
                Ok(Moved::Yielded(py.None().into_bound(py)))
            }
            Ok(Step::Awaits(iterator, yielded)) => {
                let old = ptr::replace(&raw mut (*operation).awaited, iterator.into_ptr());
                (*operation).rest |= DELEGATES;
                (*operation).set_state(State::Suspended);
                ffi::Py_XDECREF(old);
                Ok(Moved::Yielded(yielded))
            }
            Ok(Step::Wait(future)) => {
                (*operation).set_state(State::Suspended);
                let new = future.clone().into_ptr();
                let old = ptr::replace(&raw mut (*operation).awaited, new);
                ffi::Py_XDECREF(old);
                park::begin(&future)?;
                Ok(Moved::Yielded(future))
            }
            Err(error) => {
                end(operation);
                Err(contained(py, error))
            }
        }
    }
}

/// The end of an operation that has become a coroutine, which has ended with this.
///
/// # Safety
///
/// A live operation.
#[cold]
unsafe fn over<'py>(
    py: Python<'py>,
    operation: *mut OperationObject,
    result: PyResult<Bound<'py, PyAny>>,
) -> PyResult<Moved<'py>> {
    // SAFETY: as above.
    unsafe { end(operation) };
    match result {
        Ok(value) => Ok(Moved::Returned(Some(value))),
        Err(error) => Err(contained(py, error)),
    }
}

/// What a coroutine raises that ends with this exception: a StopIteration would pass for its value.
#[cold]
fn contained(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyStopIteration>(py) {
        return error;
    }
    let stop = error.into_value(py).into_bound(py).into_any();
    let raised = PyRuntimeError::new_err("coroutine raised StopIteration").into_value(py);
    let raised = raised.into_bound(py).into_any();
    for name in [intern!(py, "__cause__"), intern!(py, "__context__")] {
        if let Err(failure) = raised.setattr(name, &stop) {
            return failure;
        }
    }
    PyErr::from_value(raised)
}

/// What came of driving what an operation delegates to.
enum Passed<'py> {
    Yielded(Bound<'py, PyAny>),
    /// It has ended, and the operation goes on with this.
    Ended(Input),
    /// It has ended, and the operation, which had become it, ends as it has.
    Over(PyResult<Bound<'py, PyAny>>),
}

/// Drives what an operation delegates to. The operation is running meanwhile, and afterwards unless a value was
/// yielded.
///
/// # Safety
///
/// A live operation that delegates.
unsafe fn pass_on<'py>(
    py: Python<'py>,
    operation: *mut OperationObject,
    drive: Drive<'py>,
) -> Passed<'py> {
    // SAFETY: as above; the iterator is held while it runs. A reference is taken out before it is dropped.
    unsafe {
        (*operation).set_state(State::Running);
        let iterator = Bound::<PyAny>::from_borrowed_ptr(py, (*operation).awaited);
        let mut result = null_mut();
        let status = Level::enter(py).and_then(|_level| match drive {
            Drive::Send(value) => {
                let value = value.unwrap_or_else(|| py.None().into_bound(py));
                Ok(ffi::PyIter_Send(
                    iterator.as_ptr(),
                    value.as_ptr(),
                    &mut result,
                ))
            }
            Drive::Throw(error) => throw_into(&iterator, error, &mut result),
        });
        let ended = match status {
            Ok(ffi::PySendResult::PYGEN_NEXT) => {
                (*operation).set_state(State::Suspended);
                return Passed::Yielded(Bound::from_owned_ptr(py, result));
            }
            Ok(ffi::PySendResult::PYGEN_RETURN) => Input::Resumed,
            Ok(ffi::PySendResult::PYGEN_ERROR) => Input::Thrown(PyErr::fetch(py)),
            Err(error) => Input::Thrown(error),
        };
        let became = (*operation).rest & BECAME != 0;
        (*operation).rest &= !(DELEGATES | BECAME);
        if became {
            return Passed::Over(match ended {
                Input::Thrown(error) => Err(error),
                _ => Ok(Bound::from_owned_ptr(py, result)),
            });
        }
        let old = ptr::replace(&raw mut (*operation).awaited, result);
        ffi::Py_XDECREF(old);
        Passed::Ended(ended)
    }
}

/// Throws an exception into what an operation delegates to, as `await` does: GeneratorExit closes it. Errors are
/// those that are to be raised where it is awaited.
///
/// # Safety
///
/// `result` is null; it gets a new reference if a value was yielded or returned.
unsafe fn throw_into<'py>(
    iterator: &Bound<'py, PyAny>,
    error: PyErr,
    result: &mut *mut PyObject,
) -> PyResult<ffi::PySendResult> {
    let py = iterator.py();
    if error.is_instance_of::<pyo3::exceptions::PyGeneratorExit>(py) {
        if iterator.hasattr(intern!(py, "close"))? {
            call::method0(iterator, intern!(py, "close"))?;
        }
        return Err(error);
    }
    if !iterator.hasattr(intern!(py, "throw"))? {
        return Err(error);
    }
    let error = error.into_value(py).into_bound(py).into_any();
    // SAFETY: passed on to the caller; the iterator is alive.
    Ok(unsafe { task::throw(py, iterator.as_ptr(), error, result) })
}

/// Whether [`iterator_of`] knows the type of an object: a coroutine, a task or a future, as they mostly are.
pub fn has_iterator(object: &Bound<'_, PyAny>) -> bool {
    call::is_exact_coroutine(object)
        || is_operation(object)
        || park::look(object) != park::Seen::Nothing
}

/// What `await object` steps through, of an object that [`has_iterator`].
///
/// # Errors
///
/// RuntimeError for a coroutine that is being awaited, TypeError for an object that has none.
pub fn iterator_of<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    if call::is_exact_coroutine(object) {
        if object.getattr(intern!(py, "cr_await"))?.is_none() {
            return Ok(object.clone());
        }
        let message = "coroutine is being awaited already";
        return Err(PyRuntimeError::new_err(message));
    }
    // SAFETY: a live object; the slot is its type's and returns a new reference, or null with an exception.
    unsafe {
        let slots = (*ffi::Py_TYPE(object.as_ptr())).tp_as_async;
        match slots.as_ref().and_then(|slots| slots.am_await) {
            Some(am_await) => Bound::from_owned_ptr_or_err(py, am_await(object.as_ptr())),
            None if is_marked_generator(object) => Ok(object.clone()),
            None => Err(PyTypeError::new_err("an awaitable is required")),
        }
    }
}

/// Whether `await object` means something.
pub fn is_awaitable(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object, whose type is alive as well.
    unsafe {
        let slots = (*ffi::Py_TYPE(object.as_ptr())).tp_as_async;
        slots.as_ref().is_some_and(|slots| slots.am_await.is_some()) || is_marked_generator(object)
    }
}

/// Whether it is a generator of a function that `types.coroutine()` has marked: `await` takes it as it is.
fn is_marked_generator(object: &Bound<'_, PyAny>) -> bool {
    /// `inspect.CO_ITERABLE_COROUTINE`
    const ITERABLE_COROUTINE: u32 = 0x100;
    let py = object.py();
    // SAFETY: a live object.
    if unsafe { ffi::PyGen_CheckExact(object.as_ptr()) } == 0 {
        return false;
    }
    let code = object.getattr(intern!(py, "gi_code"));
    let flags = code.and_then(|code| code.getattr(intern!(py, "co_flags"))?.extract::<u32>());
    flags.is_ok_and(|flags| flags & ITERABLE_COROUTINE != 0)
}

/// What came of [`begin`].
pub enum Begun<'py> {
    /// It waits, and has yielded this: for [`Step::Awaits`].
    Waits(Bound<'py, PyAny>),
    Returned(Bound<'py, PyAny>),
}

/// Takes the first step of what [`iterator_of`] has given, within a step of an operation.
pub fn begin<'py>(iterator: &Bound<'py, PyAny>) -> PyResult<Begun<'py>> {
    let py = iterator.py();
    let mut result = null_mut();
    let _level = Level::enter(py)?;
    // SAFETY: a live iterator; the result is a new reference unless there is an error.
    unsafe {
        match ffi::PyIter_Send(iterator.as_ptr(), ffi::Py_None(), &mut result) {
            ffi::PySendResult::PYGEN_NEXT => Ok(Begun::Waits(Bound::from_owned_ptr(py, result))),
            ffi::PySendResult::PYGEN_RETURN => {
                Ok(Begun::Returned(Bound::from_owned_ptr(py, result)))
            }
            ffi::PySendResult::PYGEN_ERROR => Err(PyErr::fetch(py)),
        }
    }
}

/// # Safety
///
/// A live operation that has taken its last step.
#[inline(always)]
unsafe fn end(operation: *mut OperationObject) {
    // SAFETY: as above. The next call of its function finds it with no place in any queue.
    unsafe {
        (*operation).set_state(State::Done);
        (*operation).ticket = u64::MAX;
        release(operation);
    }
}

/// `coroutine.close()`.
fn close<'py>(this: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = this.py();
    let operation = this.as_ptr().cast::<OperationObject>();
    // SAFETY: `this` is an operation, alive during the call.
    unsafe {
        match (*operation).state() {
            State::Done => return Ok(py.None().into_bound(py)),
            State::Created => {
                end(operation);
                return Ok(py.None().into_bound(py));
            }
            State::Suspended | State::Running => {}
        }
        // Made here: PyO3 refuses to make one later if the interpreter is going down.
        let exit = PyErr::from_value(py.get_type::<pyo3::exceptions::PyGeneratorExit>().call0()?);
        match drive(py, operation, Drive::Throw(exit)) {
            Ok(Moved::Yielded(_)) => {
                Err(PyRuntimeError::new_err("coroutine ignored GeneratorExit"))
            }
            Ok(Moved::Returned(_)) => Ok(py.None().into_bound(py)),
            Err(error)
                if error.is_instance_of::<pyo3::exceptions::PyGeneratorExit>(py)
                    || error.is_instance_of::<PyStopIteration>(py) =>
            {
                super::call::discard(py, error);
                Ok(py.None().into_bound(py))
            }
            Err(error) => Err(error),
        }
    }
}

/// Raises StopIteration(value).
///
/// # Safety
///
/// The GIL is held and no exception is set; `value` is a reference that is handed over.
#[inline(never)]
unsafe fn raise_stop_iteration(py: Python<'_>, value: *mut PyObject) {
    // SAFETY: the spare is a StopIteration of ours. If only we know it, it can be filled again.
    unsafe {
        let spare = POOL.with(py, |pool| {
            pool.filled = value != ffi::Py_True();
            pool.stop
        });
        if !spare.is_null() && is_pristine(spare) {
            let field = &raw mut (*spare.cast::<ffi::PyStopIterationObject>()).value;
            let old = ptr::replace(field, value);
            set_raised(ffi::Py_NewRef(spare));
            ffi::Py_XDECREF(old);
            return;
        }
        match py.get_type::<PyStopIteration>().call0() {
            Ok(stop) => {
                let field = &raw mut (*stop.as_ptr().cast::<ffi::PyStopIterationObject>()).value;
                let old = ptr::replace(field, value);
                let surplus =
                    POOL.with(py, |pool| std::mem::replace(&mut pool.stop, stop.as_ptr()));
                ffi::Py_INCREF(stop.as_ptr());
                set_raised(stop.into_ptr());
                ffi::Py_XDECREF(old);
                ffi::Py_XDECREF(surplus);
            }
            Err(error) => {
                ffi::Py_DECREF(value);
                error.restore(py);
            }
        }
    }
}

/// Makes an exception the current one, without chaining it to one that is being handled.
///
/// # Safety
///
/// The GIL is held; `exception` is a reference to an exception that is handed over.
unsafe fn set_raised(exception: *mut PyObject) {
    // SAFETY: an exception instance, whose reference is handed over.
    unsafe {
        #[cfg(Py_3_12)]
        ffi::PyErr_SetRaisedException(exception);
        #[cfg(not(Py_3_12))]
        {
            let kind = ffi::Py_NewRef(ffi::Py_TYPE(exception).cast());
            ffi::PyErr_Restore(kind, exception, null_mut());
        }
    }
}

/// Whether nobody else knows a StopIteration, and nobody has left anything in it but its value.
///
/// # Safety
///
/// `stop` is a live StopIteration.
unsafe fn is_pristine(stop: *mut PyObject) -> bool {
    let fields = stop.cast::<ffi::PyStopIterationObject>();
    // SAFETY: as above.
    unsafe {
        ffi::Py_REFCNT(stop) == 1
            && (*fields).traceback.is_null()
            && (*fields).context.is_null()
            && (*fields).cause.is_null()
            && (*fields).dict.is_null()
    }
}

/// Lets go of the value that was returned last, once the interpreter has taken it.
fn empty_stop_iteration(py: Python<'_>) {
    let value = POOL.with(py, |pool| {
        // SAFETY: a StopIteration; if nobody else knows it, nobody needs its value.
        unsafe {
            if pool.stop.is_null() || ffi::Py_REFCNT(pool.stop) != 1 {
                return null_mut();
            }
            pool.filled = false;
            let field = &raw mut (*pool.stop.cast::<ffi::PyStopIterationObject>()).value;
            ptr::replace(field, ffi::Py_NewRef(ffi::Py_None()))
        }
    });
    // SAFETY: the reference that was in the field, or null.
    unsafe { ffi::Py_XDECREF(value) };
}

/// Ends an operation that has not begun, if that needs nothing but itself: its value as a new reference.
/// Null: nothing was done.
///
/// # Safety
///
/// A live operation that its caller holds.
#[inline(always)]
unsafe fn end_at_once(py: Python<'_>, operation: *mut OperationObject) -> *mut PyObject {
    // SAFETY: as above. No Python code runs before the operation has ended, so its state need not
    // say that it is running. One that has not begun awaits nothing, and nobody has looked at its frames.
    unsafe {
        if (*operation).rest != FRESH {
            return null_mut();
        }
        let receiver = Borrowed::from_ptr(py, (*operation).kept[0]);
        let frame = Frame {
            py,
            object: operation,
            step: PhantomData,
        };
        let value = (*(*operation).function).at_once(&receiver, &frame);
        if value.is_null() {
            return null_mut();
        }
        (*operation).rest = ENDED;
        // Mostly there is the receiver and nothing else.
        let receiver = ptr::replace(&raw mut (*operation).kept[0], null_mut());
        ffi::Py_DECREF(receiver);
        if !(*operation).kept[1].is_null() || !(*operation).kept[2].is_null() {
            release_kept(operation);
        }
        value
    }
}

unsafe extern "C" fn iternext(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter with a live operation.
    unsafe {
        let py = Python::assume_attached();
        let value = end_at_once(py, object.cast());
        if value.is_null() {
            return iterate(py, object);
        }
        finish_iteration(py, object, value)
    }
}

/// As [`iternext`], if the operation cannot end at once. Apart from it, so that it needs few registers.
///
/// # Safety
///
/// As [`iternext`].
#[inline(never)]
unsafe fn iterate(py: Python<'_>, object: *mut PyObject) -> *mut PyObject {
    // SAFETY: passed on to the caller. Null without an exception is the end with None; `guard` cannot say
    // that, so it is told by a flag.
    unsafe {
        let mut ended = false;
        let result = guard(|py| match drive(py, object.cast(), Drive::Send(None))? {
            Moved::Yielded(value) => Ok(value),
            Moved::Returned(value) => {
                ended = true;
                Ok(value.unwrap_or_else(|| py.None().into_bound(py)))
            }
        });
        if !ended || result.is_null() {
            return result;
        }
        finish_iteration(py, object, result)
    }
}

/// Ends an iteration with a value, whose reference is handed over.
///
/// # Safety
///
/// A live operation that has ended, and that its caller holds.
#[inline(always)]
unsafe fn finish_iteration(
    py: Python<'_>,
    operation: *mut PyObject,
    value: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: as above.
    unsafe {
        if value == ffi::Py_None() {
            // Immortal, or at least never the last one.
            #[cfg(not(Py_3_12))]
            ffi::Py_DECREF(value);
        } else {
            raise_stop_iteration(py, value);
            if value != ffi::Py_True() {
                // The value is let go of when the operation dies.
                return null_mut();
            }
        }
        // Kept right away, which spares it its death.
        let operation = operation.cast::<OperationObject>();
        if !refcheck::ON && is_reusable(operation) && (*(*operation).function).wants_last() {
            ffi::Py_INCREF(operation.cast());
            (*(*operation).function).keep_last(operation.cast());
        }
        null_mut()
    }
}

unsafe extern "C" fn am_send(
    object: *mut PyObject,
    value: *mut PyObject,
    result: *mut *mut PyObject,
) -> ffi::PySendResult {
    // SAFETY: called by the interpreter with a live operation and a value.
    unsafe {
        let py = Python::assume_attached();
        if value == ffi::Py_None() {
            *result = end_at_once(py, object.cast());
            if !(*result).is_null() {
                return ffi::PySendResult::PYGEN_RETURN;
            }
        }
        send_on(py, object, value, result)
    }
}

/// As [`am_send`], if the operation cannot end at once.
///
/// # Safety
///
/// As [`am_send`].
#[inline(never)]
unsafe fn send_on(
    _: Python<'_>,
    object: *mut PyObject,
    value: *mut PyObject,
    result: *mut *mut PyObject,
) -> ffi::PySendResult {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut ended = false;
        *result = guard(|py| {
            let value = Some(Bound::from_borrowed_ptr(py, value)).filter(|value| !value.is_none());
            match drive(py, object.cast(), Drive::Send(value))? {
                Moved::Yielded(value) => Ok(value),
                Moved::Returned(value) => {
                    ended = true;
                    Ok(value.unwrap_or_else(|| py.None().into_bound(py)))
                }
            }
        });
        match ((*result).is_null(), ended) {
            (true, _) => ffi::PySendResult::PYGEN_ERROR,
            (false, true) => ffi::PySendResult::PYGEN_RETURN,
            (false, false) => ffi::PySendResult::PYGEN_NEXT,
        }
    }
}

/// `operation.throw(error)`, as a task does it.
///
/// # Safety
///
/// A live operation.
pub unsafe fn throw(
    object: *mut PyObject,
    error: Bound<'_, PyAny>,
    result: &mut *mut PyObject,
) -> ffi::PySendResult {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut ended = false;
        *result = guard(|py| {
            let error = PyErr::from_value(error.clone());
            match drive(py, object.cast(), Drive::Throw(error))? {
                Moved::Yielded(value) => Ok(value),
                Moved::Returned(value) => {
                    ended = true;
                    Ok(value.unwrap_or_else(|| py.None().into_bound(py)))
                }
            }
        });
        match ((*result).is_null(), ended) {
            (true, _) => ffi::PySendResult::PYGEN_ERROR,
            (false, true) => ffi::PySendResult::PYGEN_RETURN,
            (false, false) => ffi::PySendResult::PYGEN_NEXT,
        }
    }
}

unsafe extern "C" fn am_await(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter with a live operation.
    unsafe {
        let operation = object.cast::<OperationObject>();
        if (*operation).state() == State::Suspended && !(*operation).awaited.is_null() {
            return guard(|_| {
                Err(PyRuntimeError::new_err(
                    "coroutine is being awaited already",
                ))
            });
        }
        ffi::Py_NewRef(object)
    }
}

/// What a step came to, as `send()` and `throw()` say it.
fn said<'py>(py: Python<'py>, moved: PyResult<Moved<'py>>) -> PyResult<Bound<'py, PyAny>> {
    match moved? {
        Moved::Yielded(value) => Ok(value),
        Moved::Returned(None) => Err(PyStopIteration::new_err(())),
        Moved::Returned(Some(value)) => {
            let stop = py.get_type::<PyStopIteration>().call1((value,))?;
            Err(PyErr::from_value(stop))
        }
    }
}

unsafe extern "C" fn py_send(object: *mut PyObject, value: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type.
    unsafe {
        guard(|py| {
            let value = Some(Bound::from_borrowed_ptr(py, value)).filter(|value| !value.is_none());
            said(py, drive(py, object.cast(), Drive::Send(value)))
        })
    }
}

unsafe extern "C" fn py_throw(object: *mut PyObject, arguments: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type, with a tuple.
    unsafe {
        guard(|py| {
            let arguments =
                Bound::from_borrowed_ptr(py, arguments).cast_into_unchecked::<PyTuple>();
            let error = thrown(&arguments)?;
            said(py, drive(py, object.cast(), Drive::Throw(error)))
        })
    }
}

/// The exception that `throw(type, value, traceback)` or `throw(exception)` means.
fn thrown(arguments: &Bound<'_, PyTuple>) -> PyResult<PyErr> {
    let py = arguments.py();
    let given = |index: usize| {
        let value = arguments.iter().nth(index);
        value.filter(|value| !value.is_none())
    };
    let what = match arguments.len() {
        1..=3 => arguments.get_item(0)?,
        0 => {
            return Err(PyTypeError::new_err(
                "throw expected at least 1 argument, got 0",
            ));
        }
        count => {
            return Err(PyTypeError::new_err(format!(
                "throw expected at most 3 arguments, got {count}"
            )));
        }
    };
    let base = py.get_type::<pyo3::exceptions::PyBaseException>();
    let exception = if what.is_instance(&base)? {
        if given(1).is_some() {
            return Err(PyTypeError::new_err(
                "instance exception may not have a separate value",
            ));
        }
        what
    } else if let Ok(class) = what.cast::<PyType>()
        && class.is_subclass(&base)?
    {
        match given(1) {
            None => class.call0()?,
            Some(value) if value.is_instance(class)? => value,
            Some(value) => match value.cast_into::<PyTuple>() {
                Ok(values) => class.call1(values)?,
                Err(other) => class.call1((other.into_inner(),))?,
            },
        }
    } else {
        return Err(PyTypeError::new_err(format!(
            "exceptions must be classes or instances deriving from BaseException, not {}",
            what.get_type().name()?
        )));
    };
    if let Some(traceback) = given(2) {
        exception.setattr(intern!(py, "__traceback__"), traceback)?;
    }
    Ok(PyErr::from_value(exception))
}

unsafe extern "C" fn py_close(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type.
    unsafe { guard(|py| close(&Bound::from_borrowed_ptr(py, object))) }
}

unsafe extern "C" fn py_await(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a method of this type.
    unsafe {
        guard(|py| {
            let operation = Bound::from_borrowed_ptr(py, object).unbind();
            Ok(Bound::new(py, Steps { operation })?.into_any())
        })
    }
}

/// What `coroutine.__await__()` returns: an iterator over the steps of an operation.
#[pyclass(frozen, module = "tideloop._tideloop", name = "OperationSteps")]
pub struct Steps {
    operation: Py<PyAny>,
}

#[pymethods]
impl Steps {
    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.send(py, py.None().into_bound(py))
    }

    fn send<'py>(&self, py: Python<'py>, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        super::call::method1(self.operation.bind(py), intern!(py, "send"), &value)
    }

    #[pyo3(signature = (*arguments))]
    fn throw<'py>(
        &self,
        py: Python<'py>,
        arguments: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.operation
            .bind(py)
            .call_method1(intern!(py, "throw"), arguments)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        super::call::method0(self.operation.bind(py), intern!(py, "close")).map(drop)
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        visit.call(&self.operation)
    }
}

unsafe extern "C" fn repr(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: a live operation.
    unsafe {
        guard(|py| {
            let function = (*object.cast::<OperationObject>()).function;
            let qualname = Bound::from_borrowed_ptr(py, (*function).qualname());
            let text = format!("<coroutine object {} at {object:p}>", qualname.str()?);
            Ok(PyString::new(py, &text).into_any())
        })
    }
}

// --- attributes --------------------------------------------------------------------------------

#[derive(Clone, Copy)]
#[repr(usize)]
enum Field {
    Await = 1,
    Running,
    Suspended,
    Frame,
    Code,
    Origin,
    Name,
    Qualname,
    Class,
}

unsafe extern "C" fn get(object: *mut PyObject, closure: *mut c_void) -> *mut PyObject {
    let operation = object.cast::<OperationObject>();
    let is = |field: Field| closure as usize == field as usize;
    // SAFETY: an attribute of this type: `object` is an operation, the GIL is held.
    unsafe {
        let state = (*operation).state();
        let function = (*operation).function;
        if is(Field::Running) {
            return ffi::PyBool_FromLong((state == State::Running).into());
        }
        if is(Field::Suspended) {
            return ffi::PyBool_FromLong((state == State::Suspended).into());
        }
        if is(Field::Class) {
            return ffi::Py_NewRef((&raw mut ffi::PyCoro_Type).cast());
        }
        if is(Field::Name) {
            return ffi::Py_NewRef((*function).name());
        }
        if is(Field::Qualname) {
            return ffi::Py_NewRef((*function).qualname());
        }
        if is(Field::Await) && state == State::Suspended {
            return guard(|py| what_is_awaited(py, operation));
        }
        if is(Field::Code) || (is(Field::Frame) && state != State::Done) {
            return guard(|py| {
                let template = Bound::from_borrowed_ptr(py, (*function).template());
                let code = template.getattr(intern!(py, "__code__"))?;
                if is(Field::Code) {
                    return Ok(code);
                }
                if state == State::Suspended && (*operation).rest & BECAME != 0 {
                    let became = Bound::<PyAny>::from_borrowed_ptr(py, (*operation).awaited);
                    return became.getattr(intern!(py, "cr_frame"));
                }
                (*operation).rest |= LOOKED;
                let kept = (*operation).kept;
                shadows::own(operation as usize, &template, |index| {
                    let value = kept.get(index).copied().unwrap_or(null_mut());
                    Bound::from_borrowed_ptr_or_opt(py, value)
                })
            });
        }
        ffi::Py_NewRef(ffi::Py_None())
    }
}

/// What a suspended operation awaits, as it would be with asyncio.
///
/// # Safety
///
/// A live operation that is suspended.
unsafe fn what_is_awaited<'py>(
    py: Python<'py>,
    operation: *mut OperationObject,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as above; the caller of an attribute holds the operation.
    unsafe {
        let awaited = Bound::from_borrowed_ptr_or_opt(py, (*operation).awaited);
        let awaited = awaited.unwrap_or_else(|| py.None().into_bound(py));
        if (*operation).rest & BECAME != 0 {
            return awaited.getattr(intern!(py, "cr_await"));
        }
        let receiver = Bound::from_borrowed_ptr(py, (*operation).kept[0]);
        let frame = Frame {
            py,
            object: operation,
            step: PhantomData,
        };
        let within = (*(*operation).function).inside(&receiver, &frame)?;
        if within.is_empty() {
            return Ok(awaited);
        }
        (*operation).rest |= LOOKED;
        shadows::inner(operation as usize, &within, awaited)
    }
}

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
struct Methods([ffi::PyMethodDef; 5]);
struct Members([ffi::PyMemberDef; 2]);

// SAFETY: the tables are constant; CPython only reads them.
unsafe impl Sync for Attributes {}
// SAFETY: as above.
unsafe impl Sync for Methods {}
// SAFETY: as above.
unsafe impl Sync for Members {}

static ATTRIBUTES: Attributes = Attributes([
    attribute(c"cr_await", Field::Await),
    attribute(c"cr_running", Field::Running),
    attribute(c"cr_suspended", Field::Suspended),
    attribute(c"cr_frame", Field::Frame),
    attribute(c"cr_code", Field::Code),
    attribute(c"cr_origin", Field::Origin),
    attribute(c"__name__", Field::Name),
    attribute(c"__qualname__", Field::Qualname),
    attribute(c"__class__", Field::Class),
    ffi::PyGetSetDef {
        name: ptr::null(),
        get: None,
        set: None,
        doc: ptr::null(),
        closure: null_mut(),
    },
]);

const fn method(
    name: &'static std::ffi::CStr,
    function: ffi::PyCFunction,
    flags: c_int,
    doc: &'static std::ffi::CStr,
) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: function,
        },
        ml_flags: flags,
        ml_doc: doc.as_ptr(),
    }
}

static METHODS: Methods = Methods([
    method(
        c"send",
        py_send,
        ffi::METH_O,
        c"send($self, value, /)\n--\n\nTake the next step with a value; raises StopIteration at the end.",
    ),
    method(
        c"throw",
        py_throw,
        ffi::METH_VARARGS,
        c"throw(type[, value[, traceback]])\n\nTake the next step with an exception.",
    ),
    method(
        c"close",
        py_close,
        ffi::METH_NOARGS,
        c"close($self, /)\n--\n\nEnd the coroutine where it is.",
    ),
    // Beside the slot, which must return the operation itself, for the interpreter's sake.
    method(
        c"__await__",
        py_await,
        ffi::METH_NOARGS | ffi::METH_COEXIST,
        c"__await__($self, /)\n--\n\nThe steps of the coroutine, as an iterator.",
    ),
    ffi::PyMethodDef::zeroed(),
]);

static MEMBERS: Members = Members([
    ffi::PyMemberDef {
        name: c"__weaklistoffset__".as_ptr(),
        type_code: ffi::Py_T_PYSSIZET,
        offset: std::mem::offset_of!(OperationObject, weakrefs) as Py_ssize_t,
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

static KIND: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// Whether an object is an operation.
#[inline]
pub fn is_operation(object: &Bound<'_, PyAny>) -> bool {
    KIND.get(object.py())
        .is_some_and(|kind| object.get_type_ptr() == kind.as_ptr().cast())
}

/// Whether an operation waits for this future itself.
///
/// # Safety
///
/// `operation` is one.
pub unsafe fn awaits(operation: &Bound<'_, PyAny>, future: &Bound<'_, PyAny>) -> bool {
    let operation = operation.as_ptr().cast::<OperationObject>();
    // SAFETY: passed on to the caller.
    unsafe { (*operation).awaited == future.as_ptr() && !(*operation).delegates() }
}

/// The class of operations.
pub fn kind(py: Python<'_>) -> PyResult<&'static Py<PyType>> {
    KIND.get_or_try_init(py, || make_type(py))
}

fn make_type(py: Python<'_>) -> PyResult<Py<PyType>> {
    let slot = |slot: c_int, pfunc: *mut c_void| ffi::PyType_Slot { slot, pfunc };
    let mut slots = [
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_finalize, finalize as *mut c_void),
        // For `yield from` in a generator-based coroutine, where only exact coroutines need no iter().
        slot(ffi::Py_tp_iter, ffi::PyObject_SelfIter as *mut c_void),
        slot(ffi::Py_tp_iternext, iternext as *mut c_void),
        slot(ffi::Py_am_await, am_await as *mut c_void),
        slot(ffi::Py_am_send, am_send as *mut c_void),
        slot(ffi::Py_tp_repr, repr as *mut c_void),
        slot(ffi::Py_tp_methods, METHODS.0.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_members, MEMBERS.0.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_getset, ATTRIBUTES.0.as_ptr() as *mut c_void),
        slot(0, null_mut()),
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"tideloop._tideloop.Operation".as_ptr().cast::<c_char>(),
        basicsize: size_of::<OperationObject>() as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
            | ffi::Py_TPFLAGS_IMMUTABLETYPE) as u32,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec and what it points to outlive the call; name and tables are static.
    unsafe {
        let object = ffi::PyType_FromSpec(&mut spec);
        Ok(Bound::from_owned_ptr_or_err(py, object)?
            .cast_into_unchecked::<PyType>()
            .unbind())
    }
}
