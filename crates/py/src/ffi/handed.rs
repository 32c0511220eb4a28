//! Calls that threads have handed over, without their handles.
//!
//! `call_soon_threadsafe()` returns a handle, and nearly every caller drops it at once. A thread that has the GIL
//! hands over tens of thousands of calls before the loop runs the first; as many handles, each an object of its
//! own, are megabytes that are mapped, written, read back cold and unmapped again. So the loop does not own the
//! handle of such a call. It has a *slot* for the call, which says who has the callback:
//!
//! * [`Slot::Lent`]: the handle, which the caller still keeps. The slot knows where it is and owns nothing.
//! * [`Slot::Call`]: the slot itself. A handle that dies while its call is pending gives callback, context and
//!   arguments to its slot ([`take_over`]), and its memory to the next handle.
//! * [`Slot::Kept`]: the handle again, but the slot owns it: somebody has a weak reference to it.
//! * [`Slot::Empty`]: nobody; the call was cancelled.
//!
//! Slots are run in the order of the ring, which holds one entry without an object for each ([`Entry::handed`]).
//!
//! **Who may touch what.** All of it only with the GIL held. A handle of a pending slot has the flag `HANDED` and the
//! number of its slot, and whatever ends that relation (the slot's turn, cancelling, dying, the loop's stop)
//! clears the flag and changes the slot before other code can run; so a slot never refers to a dead handle.
//! Since 3.14 the interpreter may put the destruction of a handle off, while the C stack is nearly used up: then its
//! slot knows a dead handle, sees that by its count, and takes what it had ([`dying`]). Should the queue be in use when
//! a handle dies, which it is not, since nothing is dropped inside, it is the same.
//!
//! **The collector** does not see a handle whose loop runs (`handle.rs` says why), so what it refers to is reachable,
//! although the loop does not own it. Before a loop stops, [`settle`] turns slots into handles that it owns.

use std::collections::VecDeque;
use std::ptr::{self, NonNull, null_mut};

use pyo3::Borrowed;
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::entry::Entry;
use super::handle::{self, HANDED, HandleObject, INLINE, SHARED, SPILLED};
use super::{refcheck, snapshot};
use crate::event_loop::{LoopCore, Queue};

/// Room that is kept for slots when none is used: about 3 MiB.
const KEPT: usize = 1 << 16;

/// A call whose handle is gone.
struct Stored {
    callback: Py<PyAny>,
    context: Py<PyAny>,
    args: [Option<Py<PyAny>>; INLINE],
    count: u8,
    /// The arguments are one tuple in the first place.
    spilled: bool,
    /// The context is a snapshot.
    shared: bool,
}

/// Who has the callback of a call.
enum Slot {
    Call(Stored),
    Lent(NonNull<HandleObject>),
    Kept(Py<PyAny>),
    Empty,
}

const _: () = assert!(size_of::<Slot>() == 48, "one slot for each pending call");

// SAFETY: what is pointed to is only touched with the GIL held.
unsafe impl Send for Slot {}

/// The slots of a loop, in the order of the ring's entries for them.
#[derive(Default)]
pub struct Handed {
    slots: VecDeque<Slot>,
    /// The number of the first slot.
    first: u64,
}

/// Slots that were taken out of their loop, to be dropped outside of the queue.
#[must_use]
pub struct Removed {
    _slots: VecDeque<Slot>,
}

impl Handed {
    #[inline]
    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let index = usize::try_from(number.wrapping_sub(self.first)).ok()?;
        self.slots.get_mut(index)
    }

    #[inline]
    fn pop(&mut self) -> Option<Slot> {
        let slot = self.slots.pop_front()?;
        self.first += 1;
        if self.slots.is_empty() && self.slots.capacity() > KEPT {
            self.slots = VecDeque::new();
        }
        Some(slot)
    }

    /// Makes every handle that somebody keeps the slot's own, too.
    fn keep_all(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Lent(handle) = *slot {
                // SAFETY: a slot that is lent knows a handle that lives, or whose destruction is still to come.
                *slot = unsafe {
                    match dying(handle) {
                        Some(stored) => Slot::Call(stored),
                        None => Slot::Kept(own(handle)),
                    }
                };
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes everything out. The ring's entries for it are to go with it.
    pub fn take_all(&mut self) -> Removed {
        self.keep_all();
        self.first += self.slots.len() as u64;
        Removed {
            _slots: std::mem::take(&mut self.slots),
        }
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for slot in &self.slots {
            match slot {
                Slot::Call(stored) => {
                    visit.call(&stored.callback)?;
                    visit.call(&stored.context)?;
                    stored.args.iter().try_for_each(|arg| visit.call(arg))?;
                }
                Slot::Kept(handle) => visit.call(handle)?,
                Slot::Lent(_) | Slot::Empty => {}
            }
        }
        Ok(())
    }
}

/// A reference to a handle that was lent, which is no longer bound to its slot.
///
/// # Safety
///
/// The handle is alive; the GIL is held.
unsafe fn own(handle: NonNull<HandleObject>) -> Py<PyAny> {
    // SAFETY: passed on to the caller.
    unsafe {
        let object = handle.as_ptr();
        (*object).flags &= !HANDED;
        Bound::from_borrowed_ptr(Python::assume_attached(), object.cast()).unbind()
    }
}

/// What a handle had that is dead, but whose destruction is still to come: since 3.14 the interpreter puts it off
/// while the C stack is nearly used up. It will find an empty handle.
///
/// # Safety
///
/// A slot is lent to it and is replaced by the caller, who keeps the loop alive; the GIL is held.
unsafe fn dying(handle: NonNull<HandleObject>) -> Option<Stored> {
    // SAFETY: passed on to the caller. What the fields own is taken out; the reference to the loop is not its last.
    unsafe {
        let object = handle.as_ptr();
        if ffi::Py_REFCNT(object.cast()) != 0 {
            return None;
        }
        let stored = Stored::of(object);
        (*object).flags &= !(HANDED | SHARED | SPILLED);
        (*object).callback = null_mut();
        (*object).context = null_mut();
        (*object).args = [null_mut(); INLINE];
        ffi::Py_DECREF(ptr::replace(&raw mut (*object).owner, null_mut()));
        Some(stored)
    }
}

/// The loop of a handle.
///
/// # Safety
///
/// `object` is a handle that has its owner still, which is its loop; the GIL is held.
unsafe fn loop_of<'a>(object: *mut HandleObject) -> &'a LoopCore {
    // SAFETY: passed on to the caller. The handle owns a reference to the loop.
    unsafe {
        let py = Python::assume_attached();
        let owner = Borrowed::<PyAny>::from_ptr(py, (*object).owner);
        let core: *const LoopCore = owner.cast_unchecked::<LoopCore>().get();
        &*core
    }
}

/// Hands the call of a new handle over to its loop. `shared`: its context is a snapshot.
#[inline]
pub fn push(core: &LoopCore, handle: &Bound<'_, PyAny>, shared: bool) {
    let object = handle.as_ptr().cast::<HandleObject>();
    // SAFETY: the handle was just made by `handle`, with this loop as its owner, and nobody else knows it.
    unsafe {
        (*object).flags |= if shared { HANDED | SHARED } else { HANDED };
        core.queue(handle.py(), |queue| {
            (*object).number = queue.handed.first + queue.handed.slots.len() as u64;
            let slot = Slot::Lent(NonNull::new_unchecked(object));
            queue.handed.slots.push_back(slot);
            queue.ready.push(Entry::handed());
        });
    }
}

/// What a handle's death has come to.
enum Death {
    /// The slot keeps it: it lives.
    Kept,
    /// The slot has what it had; whether its memory is kept for the next handle.
    Moved(bool),
}

/// Takes over the call of a handle that dies.
///
/// # Safety
///
/// From the dealloc slot of a handle with the flag `HANDED`, which is untracked and must not be touched afterwards.
#[inline]
pub(super) unsafe fn take_over(object: *mut HandleObject) {
    // SAFETY: passed on to the caller. What the fields own becomes the slot's, and nobody looks at them again.
    unsafe {
        let (owner, number) = ((*object).owner, (*object).number);
        let death = loop_of(object).try_queue(|queue| {
            let Queue {
                handed,
                spare_handles,
                ..
            } = queue;
            let slot = handed.slot(number)?;
            if !(*object).weakrefs.is_null() {
                *slot = Slot::Kept(own(NonNull::new_unchecked(object)));
                return Some(Death::Kept);
            }
            *slot = Slot::Call(Stored::of(object));
            Some(Death::Moved(spare_handles.keep(object.cast())))
        });
        let Some(Some(Death::Moved(kept))) = death else {
            return;
        };
        let kind = ffi::Py_TYPE(object.cast());
        if !kept {
            refcheck::bury(object.cast(), refcheck::Kind::Handle);
            ffi::PyObject_GC_Del(object.cast());
        }
        ffi::Py_DECREF(owner);
        ffi::Py_DECREF(kind.cast());
    }
}

/// The call of a handle is cancelled: its slot is empty from now on.
///
/// # Safety
///
/// `object` is a living handle with the flag `HANDED`, which has its owner; the GIL is held.
#[cold]
pub(super) unsafe fn forget(object: *mut HandleObject) {
    // SAFETY: passed on to the caller.
    unsafe {
        (*object).flags &= !HANDED;
        let core = loop_of(object);
        let slot = core.try_queue(|queue| {
            let slot = queue.handed.slot((*object).number)?;
            Some(std::mem::replace(slot, Slot::Empty))
        });
        if let Some(Some(Slot::Kept(handle))) = slot {
            drop(handle.into_bound(Python::assume_attached()));
        }
    }
}

/// Runs the next call, or returns its handle, which is to be run.
#[inline]
pub fn run_next<'py>(
    core: &Bound<'py, LoopCore>,
    debug: bool,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = core.py();
    match core.get().queue(py, |queue| queue.handed.pop()) {
        Some(Slot::Call(stored)) if !debug => stored.run(core).map(|()| None),
        Some(slot) => slot.into_handle(core),
        None => Ok(None),
    }
}

/// Turns every slot into a handle of the ring, tracked by the collector: the loop stops.
pub fn settle(core: &Bound<'_, LoopCore>) {
    let py = core.py();
    let state = core.get();
    let taken = state.queue(py, |queue| {
        queue.handed.keep_all();
        (!queue.handed.slots.is_empty()).then(|| (queue.ready.take_all(), queue.handed.take_all()))
    });
    let Some((ready, mut slots)) = taken else {
        return;
    };
    let mut entries = Vec::with_capacity(ready.len());
    for entry in ready {
        if !entry.is_handed() {
            entries.push(entry);
            continue;
        }
        let slot = slots._slots.pop_front();
        match slot.map(|slot| slot.into_handle(core)) {
            Some(Ok(Some(handle))) => entries.push(Entry::handle(handle.unbind())),
            Some(Err(error)) => error.write_unraisable(py, Some(core)),
            Some(Ok(None)) | None => {}
        }
    }
    state.queue(py, |queue| {
        entries.extend(queue.ready.take_all());
        entries
            .into_iter()
            .for_each(|entry| queue.ready.push(entry));
    });
}

impl Slot {
    /// The handle of a call that was not cancelled.
    fn into_handle<'py>(self, core: &Bound<'py, LoopCore>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = core.py();
        match self {
            Self::Call(stored) => stored.into_handle(core).map(Some),
            Self::Lent(handle) => {
                // SAFETY: as below, or its destruction is still to come; the caller has the loop.
                if let Some(stored) = unsafe { dying(handle) } {
                    return stored.into_handle(core).map(Some);
                }
                refcheck::alive(handle.as_ptr().cast(), "a handle that was lent");
                // SAFETY: a slot that is lent knows a living handle.
                Ok(Some(unsafe { own(handle) }.into_bound(py)))
            }
            Self::Kept(handle) => {
                let handle = handle.into_bound(py);
                // SAFETY: a slot keeps handles of ours.
                unsafe { (*handle.as_ptr().cast::<HandleObject>()).flags &= !HANDED };
                Ok(Some(handle))
            }
            Self::Empty => Ok(None),
        }
    }
}

impl Stored {
    /// Takes what a handle has.
    ///
    /// # Safety
    ///
    /// `object` is a handle that has its callback and its context; nobody uses its fields again.
    #[inline]
    unsafe fn of(object: *mut HandleObject) -> Self {
        // SAFETY: passed on to the caller: each field owns a reference or, among the arguments, is null.
        unsafe {
            let py = Python::assume_attached();
            let take = |field: *mut PyObject| Bound::from_owned_ptr_or_opt(py, field);
            Self {
                callback: Bound::from_owned_ptr(py, (*object).callback).unbind(),
                context: Bound::from_owned_ptr(py, (*object).context).unbind(),
                args: (*object).args.map(|arg| take(arg).map(Bound::unbind)),
                count: (*object).count,
                spilled: (*object).flags & SPILLED != 0,
                shared: (*object).flags & SHARED != 0,
            }
        }
    }

    /// A handle for the call, which nobody had kept.
    #[cold]
    fn into_handle<'py>(self, core: &Bound<'py, LoopCore>) -> PyResult<Bound<'py, PyAny>> {
        let py = core.py();
        let callback = self.callback.into_bound(py);
        let args = self.args.map(|arg| arg.map(|arg| arg.into_bound(py)));
        let pointers = args.each_ref().map(|arg| match arg {
            Some(arg) => arg.as_ptr(),
            None => null_mut(),
        });
        let handle = handle::new(
            py,
            handle::Spec {
                callback: &callback,
                args: &pointers[..usize::from(self.count)],
                owner: core.as_any(),
                context: self.context.into_bound(py),
                source_traceback: None,
                when: None,
                persistent: false,
                track: !core.get().is_running(),
            },
        )?;
        let spilled = if self.spilled { SPILLED } else { 0 };
        let shared = if self.shared { SHARED } else { 0 };
        // SAFETY: the handle was just made, with the same arguments; nobody else knows it.
        unsafe { (*handle.as_ptr().cast::<HandleObject>()).flags |= spilled | shared };
        handle::make_thread_safe(&handle)?;
        Ok(handle)
    }

    /// Runs the call. Errors as of [`handle::run`].
    #[inline]
    fn run(self, core: &Bound<'_, LoopCore>) -> PyResult<()> {
        let py = core.py();
        let state = core.get();
        let callback = self.callback.into_bound(py);
        let context = self.context.into_bound(py);
        let args = self.args.map(|arg| arg.map(|arg| arg.into_bound(py)));
        let shared = self.shared;
        let (mut done, mut ran_in) = (None, None);
        let lent = match shared {
            true => snapshot::lend(state, &context).map(Some),
            false => Ok(None),
        };
        let outcome = lent.and_then(|loan| {
            let entered = loan.as_ref().map_or(&context, |loan| &loan.context);
            let mut stack = [null_mut(); INLINE + 1];
            for (place, arg) in stack[1..].iter_mut().zip(&args) {
                *place = arg.as_ref().map_or(null_mut(), Bound::as_ptr);
            }
            let call = handle::Invocation {
                callback: callback.as_ptr(),
                context: entered.as_ptr(),
                count: usize::from(self.count),
                spilled: self.spilled,
            };
            // SAFETY: what is called, and with what, is owned by this frame.
            let result = unsafe { handle::invoke(py, &call, &mut stack) };
            match (&result, loan) {
                (Ok(()), Some(loan)) => done = Some(loan),
                (Err(_), Some(loan)) => ran_in = Some(loan.context),
                _ => {}
            }
            result
        });
        let Err(error) = outcome else {
            if let Some(loan) = done {
                snapshot::take_back(state, context, loan);
            }
            return Ok(());
        };
        // For the report: the handle that the call would have had, with the context that it ran in.
        let shared = shared && ran_in.is_none();
        let stored = Self {
            callback: callback.unbind(),
            context: ran_in.unwrap_or(context).unbind(),
            args: args.map(|arg| arg.map(Bound::unbind)),
            shared,
            ..self
        };
        match stored.into_handle(core) {
            Ok(handle) => handle::report(&handle, Some(core.as_any()), error),
            Err(failed) => Err(failed),
        }
    }
}
