//! Channel: bounded, strictly in order, between tasks of any loops and threads.
//!
//! Here are the channel and its ends; [`tasks`], [`threads`] and [`selecting`] hold what is done with them.
//!
//! The state is [`tideloop_core::channel`] behind a lock that is held for single steps of it. An item never
//! leaves the channel but in the step of the operation that returns it, and never enters it but in the step
//! of the operation that sends it: see there. So every operation here has the same three parts. It tries as
//! a newcomer; it stands in line, in the same locked section in which trying failed; and told or thrown into,
//! it takes its turn or leaves the line, and then tells who is next ([`serve`]).
//!
//! A handle counts as one sender or receiver until it is closed or dies. Handles may be shared.
//!
//! **Threads.** `blocking_send` and `blocking_recv` are the same operations with a parked thread in the place
//! of a suspended task. A full channel makes its sending thread wait without the GIL, so a burst costs the
//! loop one wake-up and the thread one, not one per item.
//!
//! **Fork.** Whoever was told before a fork does not come in the child, unless the child goes on with the
//! loop: places of such are forgotten at the first use there, and one who comes after all is a newcomer.

pub mod selecting;
pub mod tasks;
pub mod threads;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::channel::{Channel, Received, Refusal, Side};
use tideloop_core::waiters::Ticket;
use tideloop_sys::fork;

use super::waiter::{Parks, Waiter, locked, serve};
use crate::ffi::call;
use crate::ffi::roll::Place;

type Core = Channel<Py<PyAny>, Waiter>;

/// What all handles of a channel share.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct ChannelCore {
    core: Mutex<Core>,
    generation: AtomicU32,
    name: Option<Py<PyString>>,
    place: Place,
}

/// A ticket of one of the two lines, as a ticket of the channel.
fn of_channel(side: Side, ticket: Ticket) -> Ticket {
    // No line has so many places that the highest bit of their numbers is in use.
    let mark = match side {
        Side::Send => MARK,
        Side::Receive => 0,
    };
    Ticket::from_u64(ticket.to_u64() | mark)
}

fn of_line(ticket: Ticket) -> (Side, Ticket) {
    let bits = ticket.to_u64();
    let side = if bits & MARK == 0 {
        Side::Receive
    } else {
        Side::Send
    };
    (side, Ticket::from_u64(bits & !MARK))
}

const MARK: u64 = 1 << 31;

impl Parks for ChannelCore {
    fn grant(&self, _py: Python<'_>) -> Option<(Ticket, Waiter)> {
        let (side, ticket, waiter) = self.enter().next_to_tell()?;
        Some((of_channel(side, ticket), waiter))
    }

    fn take_back(&self, py: Python<'_>, ticket: Ticket) {
        let (side, ticket) = of_line(ticket);
        self.leave(py, side, ticket);
    }
}

impl ChannelCore {
    #[inline(always)]
    fn enter(&self) -> MutexGuard<'_, Core> {
        let mut core = locked(&self.core);
        let generation = fork::generation();
        if self.generation.load(Ordering::Relaxed) != generation {
            self.generation.store(generation, Ordering::Relaxed);
            core.forget_told();
        }
        core
    }

    fn leave(&self, py: Python<'_>, side: Side, ticket: Ticket) {
        let waiter = self.enter().leave(side, ticket);
        if let Some(waiter) = waiter {
            waiter.discard(py);
        }
    }

    /// "channel" or "channel 'name'".
    fn words(&self, py: Python<'_>) -> PyResult<String> {
        match &self.name {
            Some(name) => Ok(format!("channel {}", name.bind(py).repr()?)),
            None => Ok("channel".to_owned()),
        }
    }
}

#[pymethods]
impl ChannelCore {
    /// The name that it was given.
    #[getter]
    fn name(&self, py: Python<'_>) -> Option<Py<PyString>> {
        self.name.as_ref().map(|name| name.clone_ref(py))
    }

    /// What `stats()` of its ends tells.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (stats, capacity) = {
            let core = self.enter();
            (core.stats(), core.capacity())
        };
        let maxsize = if capacity == usize::MAX { 0 } else { capacity };
        py.import(intern!(py, "tideloop.channels"))?
            .getattr(intern!(py, "ChannelStats"))?
            .call1((
                &self.name,
                maxsize,
                stats.len,
                stats.peak,
                stats.sent,
                stats.received,
                stats.senders,
                stats.receivers,
                stats.waiting_senders,
                stats.waiting_receivers,
            ))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(core) = self.core.try_lock() else {
            return Ok(());
        };
        core.items().try_for_each(|item| visit.call(item))?;
        core.waiting()
            .try_for_each(|waiter| waiter.traverse(&visit))
    }

    fn __clear__(&self, py: Python<'_>) {
        let items = locked(&self.core).take_items();
        for item in items {
            drop(item.into_bound(py));
        }
        while let Some((_, _, waiter)) = {
            let mut core = locked(&self.core);
            core.dismiss()
        } {
            waiter.discard(py);
        }
    }
}

/// A handle: what senders and receivers have in common.
struct End {
    channel: Py<ChannelCore>,
    closed: AtomicBool,
    side: Side,
}

impl End {
    fn new(channel: Py<ChannelCore>, side: Side) -> Self {
        Self {
            channel,
            closed: AtomicBool::new(false),
            side,
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Refuses what is done with a closed handle.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_closed() {
            return Err(closed(py, self.channel.get(), Closed::Handle(self.side)));
        }
        Ok(())
    }

    fn clone_end(&self, py: Python<'_>) -> PyResult<Self> {
        self.check(py)?;
        self.channel.get().enter().open(self.side);
        Ok(Self::new(self.channel.clone_ref(py), self.side))
    }

    fn close(&self, py: Python<'_>) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let left = self.channel.get().enter().close(self.side);
        serve(self.channel.bind(py));
        for item in left {
            drop(item.into_bound(py));
        }
    }

    /// When the last reference to a handle is gone.
    fn die(&self) {
        if !self.is_closed() {
            // Not at the very end of the interpreter.
            Python::try_attach(|py| call::undisturbed(py, || self.close(py)));
        }
    }

    fn words(&self, py: Python<'_>) -> PyResult<String> {
        let channel = self.channel.get();
        let (stats, capacity) = {
            let core = channel.enter();
            (core.stats(), core.capacity())
        };
        let limit = if capacity == usize::MAX {
            String::new()
        } else {
            format!("/{capacity}")
        };
        let closed = if self.is_closed() { "closed, " } else { "" };
        Ok(format!(
            "{}: {closed}{}{limit} items, {} senders ({} waiting), {} receivers ({} waiting)",
            channel.words(py)?,
            stats.len,
            stats.senders,
            stats.waiting_senders,
            stats.receivers,
            stats.waiting_receivers
        ))
    }

    /// As `tideloop.ChannelStats` has them, without the name and maxsize.
    fn stats(&self) -> (usize, usize, u64, u64, usize, usize, usize, usize) {
        let stats = self.channel.get().enter().stats();
        (
            stats.len,
            stats.peak,
            stats.sent,
            stats.received,
            stats.senders,
            stats.receivers,
            stats.waiting_senders,
            stats.waiting_receivers,
        )
    }
}

/// Why ChannelClosed is raised.
enum Closed {
    /// This handle is.
    Handle(Side),
    /// The other side is.
    Other(Side),
}

#[cold]
fn closed(py: Python<'_>, channel: &ChannelCore, why: Closed) -> PyErr {
    let (subject, side) = match why {
        Closed::Handle(side) => ("this", side),
        Closed::Other(side) => ("every", side),
    };
    let side = match side {
        Side::Send => "sender",
        Side::Receive => "receiver",
    };
    let made = || -> PyResult<PyErr> {
        let class = py
            .import(intern!(py, "tideloop.channels"))?
            .getattr(intern!(py, "ChannelClosed"))?
            .cast_into::<PyType>()?;
        let words = format!("{subject} {side} of the {} is closed", channel.words(py)?);
        Ok(PyErr::from_type(class, (words,)))
    };
    made().unwrap_or_else(|error| error)
}

/// asyncio's exception for an operation that would have to wait.
#[cold]
fn would_wait(py: Python<'_>, channel: &ChannelCore, name: &str, state: &str) -> PyErr {
    let made = || -> PyResult<PyErr> {
        let class = py
            .import(intern!(py, "asyncio"))?
            .getattr(name)?
            .cast_into::<PyType>()?;
        let words = format!("the {} is {state}", channel.words(py)?);
        Ok(PyErr::from_type(class, (words,)))
    };
    made().unwrap_or_else(|error| error)
}

#[cold]
fn nothing_to_send() -> PyErr {
    PyRuntimeError::new_err("a bug in tideloop: nothing to send")
}

/// Makes a channel's first two handles. `limit` is the number of items it holds; 0 for any number.
#[pyfunction]
#[pyo3(signature = (sender, receiver, limit, name))]
pub fn open_channel<'py>(
    py: Python<'py>,
    sender: &Bound<'py, PyType>,
    receiver: &Bound<'py, PyType>,
    limit: usize,
    name: Option<Py<PyString>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let capacity = if limit == 0 { usize::MAX } else { limit };
    let channel = Bound::new(
        py,
        ChannelCore {
            core: Mutex::new(Channel::new(capacity)),
            generation: AtomicU32::new(fork::generation()),
            name,
            place: Place::default(),
        },
    )?;
    channel.get().place.enlist(channel.as_any());
    Ok((sender.call1((&channel,))?, receiver.call1((&channel,))?))
}

/// The native half of `tideloop.Sender`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct SenderCore {
    end: End,
}

/// The native half of `tideloop.Receiver`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct ReceiverCore {
    end: End,
}

/// The methods of a handle; PyO3 takes no generic classes.
macro_rules! handle {
    ($class:ident, $side:expr) => {
        #[pymethods]
        impl $class {
            #[new]
            fn new(origin: &Bound<'_, PyAny>) -> PyResult<Self> {
                let py = origin.py();
                if let Ok(handle) = origin.cast::<Self>() {
                    let end = handle.get().end.clone_end(py)?;
                    return Ok(Self { end });
                }
                let channel = origin.cast::<ChannelCore>()?.clone().unbind();
                let end = End::new(channel, $side);
                Ok(Self { end })
            }

            #[getter]
            fn name(&self, py: Python<'_>) -> Option<Py<PyString>> {
                let name = &self.end.channel.get().name;
                name.as_ref().map(|name| name.clone_ref(py))
            }

            #[getter]
            fn maxsize(&self) -> usize {
                let capacity = self.end.channel.get().enter().capacity();
                if capacity == usize::MAX { 0 } else { capacity }
            }

            #[getter]
            fn closed(&self) -> bool {
                self.end.is_closed()
            }

            fn _stats(&self) -> (usize, usize, u64, u64, usize, usize, usize, usize) {
                self.end.stats()
            }

            fn _words(&self, py: Python<'_>) -> PyResult<String> {
                self.end.words(py)
            }

            fn close(&self, py: Python<'_>) {
                self.end.close(py);
            }

            fn __len__(&self) -> usize {
                self.end.channel.get().enter().len()
            }

            fn __bool__(&self) -> bool {
                true
            }

            fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
                visit.call(&self.end.channel)
            }
        }

        impl Drop for $class {
            fn drop(&mut self) {
                self.end.die();
            }
        }
    };
}

handle!(SenderCore, Side::Send);
handle!(ReceiverCore, Side::Receive);

#[cold]
fn ended(py: Python<'_>, receiver: &Bound<'_, ReceiverCore>) -> PyErr {
    let end = &receiver.get().end;
    let why = if end.is_closed() {
        Closed::Handle(Side::Receive)
    } else {
        Closed::Other(Side::Send)
    };
    closed(py, end.channel.get(), why)
}

// --- one step ----------------------------------------------------------------------------------

/// What one step of sending comes to; `None`: it has to wait, and the item is still in its place.
///
/// `told`: this is one who stood in line and was told. Otherwise it is a newcomer.
#[inline]
fn step_of_sending(
    core: &mut Core,
    told: Option<Ticket>,
    item: &mut Option<Py<PyAny>>,
) -> Option<Sent> {
    let outcome = match told {
        Some(ticket) => core.send_when_told(ticket, item.take()?),
        None => core.send(item.take()?),
    };
    match outcome {
        Ok(()) => Some(Sent::Done),
        Err(Refusal::Closed(back)) => {
            *item = Some(back);
            Some(Sent::Closed)
        }
        Err(Refusal::Full(back)) => {
            *item = Some(back);
            None
        }
    }
}

/// What sending comes to in the end.
enum Sent {
    Done,
    /// Nobody is left to receive.
    Closed,
}

/// What one step of receiving comes to, or `None`: it has to wait.
#[inline]
fn step_of_receiving(core: &mut Core, told: Option<Ticket>) -> Option<Received<Py<PyAny>>> {
    let outcome = match told {
        Some(ticket) => core.receive_when_told(ticket),
        None => core.receive(),
    };
    match outcome {
        Received::Empty => None,
        outcome => Some(outcome),
    }
}

/// Leaves a line, and tells who is next.
fn leave(channel: &Bound<'_, ChannelCore>, side: Side, ticket: Ticket) {
    channel.get().leave(channel.py(), side, ticket);
    serve(channel);
}
