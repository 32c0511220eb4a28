//! Channel: bounded, strictly in order, between tasks of any loops and threads.
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

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration, PyTimeoutError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::channel::{Channel, Received, Refusal, Side};
use tideloop_core::waiters::Ticket;
use tideloop_sys::fork;

use super::waiter::{Parking, Parks, Waiter, locked, serve};
use crate::ffi::call;
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;

type Core = Channel<Py<PyAny>, Waiter>;

/// What all handles of a channel share.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct ChannelCore {
    core: Mutex<Core>,
    generation: AtomicU32,
    name: Option<Py<PyString>>,
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
    fn grant(&self) -> Option<(Ticket, Waiter)> {
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
        },
    )?;
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

// --- in tasks ----------------------------------------------------------------------------------

/// What a newcomer does that could not go on: it makes a future, and looks once more, since making one may
/// run any code.
fn stand<'py, R>(
    channel: &Bound<'py, ChannelCore>,
    frame: &Frame<'_, 'py>,
    side: Side,
    again: impl FnOnce(&mut Core) -> Option<R>,
) -> PyResult<Result<R, Bound<'py, PyAny>>> {
    let py = frame.py();
    let (waiter, future) = Waiter::new(py)?;
    let spare = {
        let mut core = channel.get().enter();
        match again(&mut core) {
            Some(outcome) => Ok((outcome, waiter)),
            None => Err(core.wait(side, waiter)),
        }
    };
    match spare {
        Ok((outcome, waiter)) => {
            waiter.discard(py);
            Ok(Ok(outcome))
        }
        Err(ticket) => {
            frame.set_ticket(ticket);
            // Behind others who were told it may be this one's turn, too.
            serve(channel);
            Ok(Err(future))
        }
    }
}

/// What one does that was thrown into: it leaves the line, and tells the next one.
fn leave(channel: &Bound<'_, ChannelCore>, side: Side, ticket: Ticket) {
    channel.get().leave(channel.py(), side, ticket);
    serve(channel);
}

/// `Sender.send(item)`.
pub struct Send;

impl Coroutine for Send {
    type Receiver = SenderCore;

    #[inline(always)]
    fn at_once<'py>(sender: &Bound<'py, SenderCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let end = &sender.get().end;
        let mut core = end.channel.get().enter();
        if end.is_closed() || !core.all_told() {
            return AtOnce::No;
        }
        let Some(item) = frame.replace(1, None) else {
            return AtOnce::No;
        };
        match core.send(item.unbind()) {
            Ok(()) => AtOnce::Finish,
            Err(Refusal::Full(item) | Refusal::Closed(item)) => {
                // The place was just emptied, so nothing is dropped under the lock.
                let _empty = frame.replace(1, Some(item.into_bound(frame.py())));
                AtOnce::No
            }
        }
    }

    fn advance<'py>(
        sender: &Bound<'py, SenderCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let end = &sender.get().end;
        let channel = end.channel.bind(py);
        let told = match input {
            Input::Thrown(error) => {
                leave(channel, Side::Send, frame.ticket());
                return Err(error);
            }
            Input::Start => {
                end.check(py)?;
                None
            }
            Input::Resumed => Some(frame.ticket()),
        };
        let item = frame.argument(1).ok_or_else(nothing_to_send)?.unbind();
        let first = {
            let mut core = channel.get().enter();
            match told {
                Some(ticket) => core.send_when_told(ticket, item),
                None => core.send(item),
            }
        };
        let outcome = match first {
            Err(Refusal::Full(item)) => {
                let mut refused = Some(item);
                let stood = stand(channel, frame, Side::Send, |core| {
                    let outcome = core.send(refused.take()?);
                    match outcome {
                        Err(Refusal::Full(item)) => {
                            refused = Some(item);
                            None
                        }
                        outcome => Some(outcome),
                    }
                });
                drop(refused.map(|item| item.into_bound(py)));
                match stood? {
                    Ok(outcome) => outcome,
                    Err(future) => return Ok(Step::Wait(future)),
                }
            }
            outcome => outcome,
        };
        serve(channel);
        match outcome {
            Ok(()) => Ok(Step::Finish),
            Err(Refusal::Full(item) | Refusal::Closed(item)) => {
                drop(item.into_bound(py));
                Err(closed(py, channel.get(), Closed::Other(Side::Receive)))
            }
        }
    }
}

fn receive_at_once<'py>(
    receiver: &Bound<'py, ReceiverCore>,
    frame: &Frame<'_, 'py>,
) -> AtOnce<'py> {
    let end = &receiver.get().end;
    let mut core = end.channel.get().enter();
    if end.is_closed() || !core.all_told() {
        return AtOnce::No;
    }
    match core.receive() {
        Received::Item(item) => AtOnce::Return(item.into_bound(frame.py())),
        Received::Empty | Received::Ended => AtOnce::No,
    }
}

/// The next item; `None` at the end.
fn receive<'py>(
    receiver: &Bound<'py, ReceiverCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Option<Step<'py>>> {
    let py = frame.py();
    let end = &receiver.get().end;
    let channel = end.channel.bind(py);
    let told = match input {
        Input::Thrown(error) => {
            leave(channel, Side::Receive, frame.ticket());
            return Err(error);
        }
        Input::Start => {
            end.check(py)?;
            None
        }
        Input::Resumed => Some(frame.ticket()),
    };
    let first = {
        let mut core = channel.get().enter();
        match told {
            Some(ticket) => core.receive_when_told(ticket),
            None => core.receive(),
        }
    };
    let outcome = match first {
        Received::Empty => {
            let stood = stand(channel, frame, Side::Receive, |core| match core.receive() {
                Received::Empty => None,
                outcome => Some(outcome),
            });
            match stood? {
                Ok(outcome) => outcome,
                Err(future) => return Ok(Some(Step::Wait(future))),
            }
        }
        outcome => outcome,
    };
    // Owned by a `Bound` before anything else runs.
    let item = match outcome {
        Received::Item(item) => Some(item.into_bound(py)),
        Received::Empty | Received::Ended => None,
    };
    serve(channel);
    Ok(item.map(Step::Return))
}

/// `Receiver.recv()`.
pub struct Receive;

impl Coroutine for Receive {
    type Receiver = ReceiverCore;

    #[inline(always)]
    fn at_once<'py>(receiver: &Bound<'py, ReceiverCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        receive_at_once(receiver, frame)
    }

    fn advance<'py>(
        receiver: &Bound<'py, ReceiverCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match receive(receiver, frame, input)? {
            Some(step) => Ok(step),
            None => Err(ended(frame.py(), receiver)),
        }
    }
}

/// `async for item in receiver`.
pub struct Next;

impl Coroutine for Next {
    type Receiver = ReceiverCore;

    #[inline(always)]
    fn at_once<'py>(receiver: &Bound<'py, ReceiverCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        receive_at_once(receiver, frame)
    }

    fn advance<'py>(
        receiver: &Bound<'py, ReceiverCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match receive(receiver, frame, input)? {
            Some(step) => Ok(step),
            None => Err(PyStopAsyncIteration::new_err(())),
        }
    }
}

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

// --- at once -----------------------------------------------------------------------------------

/// `Sender.try_send(item)`.
pub struct TrySend;

impl Method for TrySend {
    type Receiver = SenderCore;

    fn call<'py>(
        sender: &Bound<'py, SenderCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = sender.py();
        let end = &sender.get().end;
        end.check(py)?;
        let item = rest.get(0).ok_or_else(nothing_to_send)?.unbind();
        let channel = end.channel.bind(py);
        let outcome = channel.get().enter().send(item);
        match outcome {
            Ok(()) => {
                serve(channel);
                Ok(py.None().into_bound(py))
            }
            Err(Refusal::Full(item)) => {
                drop(item.into_bound(py));
                Err(would_wait(py, channel.get(), "QueueFull", "full"))
            }
            Err(Refusal::Closed(item)) => {
                drop(item.into_bound(py));
                Err(closed(py, channel.get(), Closed::Other(Side::Receive)))
            }
        }
    }
}

/// `Receiver.try_recv()`.
pub struct TryReceive;

impl Method for TryReceive {
    type Receiver = ReceiverCore;

    fn call<'py>(
        receiver: &Bound<'py, ReceiverCore>,
        _: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = receiver.py();
        let end = &receiver.get().end;
        end.check(py)?;
        let channel = end.channel.bind(py);
        let outcome = channel.get().enter().receive();
        match outcome {
            Received::Item(item) => {
                let item = item.into_bound(py);
                serve(channel);
                Ok(item)
            }
            Received::Empty => Err(would_wait(py, channel.get(), "QueueEmpty", "empty")),
            Received::Ended => Err(ended(py, receiver)),
        }
    }
}

// --- in threads --------------------------------------------------------------------------------

/// The time limit of a blocking operation, in a thread that may block.
fn may_block<'py>(
    py: Python<'py>,
    what: &str,
    timeout: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<Duration>> {
    if !park::current_loop(py)?.is_none() {
        return Err(PyRuntimeError::new_err(format!(
            "{what}() would block the event loop that runs in this thread; await {}() there",
            what.trim_start_matches("blocking_")
        )));
    }
    let Some(timeout) = timeout.filter(|timeout| !timeout.is_none()) else {
        return Ok(None);
    };
    let seconds: f64 = timeout.extract()?;
    if seconds.is_nan() {
        return Err(PyValueError::new_err(format!(
            "{what}(timeout=nan): expected a number of seconds"
        )));
    }
    // What is too long for a Duration is no limit.
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).ok())
}

/// Waits in line until told. After an error the line has been left.
fn block(
    channel: &Bound<'_, ChannelCore>,
    side: Side,
    ticket: Ticket,
    parking: &Parking,
    limit: Option<Duration>,
) -> PyResult<()> {
    let py = channel.py();
    let waited = parking.wait(py, limit);
    if let Ok(true) = waited {
        return Ok(());
    }
    leave(channel, side, ticket);
    waited?;
    let what = match side {
        Side::Send => "no room in",
        Side::Receive => "no item in",
    };
    Err(PyTimeoutError::new_err(format!(
        "{what} the {} in time",
        channel.get().words(py)?
    )))
}

/// `Sender.blocking_send(item, timeout=None)`.
pub struct BlockingSend;

impl Method for BlockingSend {
    type Receiver = SenderCore;

    fn call<'py>(
        sender: &Bound<'py, SenderCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = sender.py();
        let end = &sender.get().end;
        let limit = may_block(py, "blocking_send", rest.get(1).as_ref())?;
        end.check(py)?;
        let item = rest.get(0).ok_or_else(nothing_to_send)?;
        let channel = end.channel.bind(py);
        let mut told = None;
        loop {
            let mut parking = None;
            let outcome = {
                let mut core = channel.get().enter();
                let item = item.clone().unbind();
                let outcome = match told.take() {
                    Some(ticket) => core.send_when_told(ticket, item),
                    None => core.send(item),
                };
                if let Err(Refusal::Full(_)) = outcome {
                    let new = Parking::new();
                    let ticket = core.wait(Side::Send, Waiter::Thread(new.clone()));
                    parking = Some((new, ticket));
                }
                outcome
            };
            match outcome {
                Ok(()) => {
                    serve(channel);
                    return Ok(py.None().into_bound(py));
                }
                Err(Refusal::Closed(copy)) => {
                    drop(copy.into_bound(py));
                    serve(channel);
                    return Err(closed(py, channel.get(), Closed::Other(Side::Receive)));
                }
                Err(Refusal::Full(copy)) => drop(copy.into_bound(py)),
            }
            if let Some((parking, ticket)) = parking {
                serve(channel);
                block(channel, Side::Send, ticket, &parking, limit)?;
                told = Some(ticket);
            }
        }
    }
}

/// `Receiver.blocking_recv(timeout=None)`.
pub struct BlockingReceive;

impl Method for BlockingReceive {
    type Receiver = ReceiverCore;

    fn call<'py>(
        receiver: &Bound<'py, ReceiverCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = receiver.py();
        let end = &receiver.get().end;
        let limit = may_block(py, "blocking_recv", rest.get(0).as_ref())?;
        end.check(py)?;
        let channel = end.channel.bind(py);
        let mut told = None;
        loop {
            let mut parking = None;
            let outcome = {
                let mut core = channel.get().enter();
                let outcome = match told.take() {
                    Some(ticket) => core.receive_when_told(ticket),
                    None => core.receive(),
                };
                if let Received::Empty = outcome {
                    let new = Parking::new();
                    let ticket = core.wait(Side::Receive, Waiter::Thread(new.clone()));
                    parking = Some((new, ticket));
                }
                outcome
            };
            match (outcome, parking) {
                (Received::Item(item), _) => {
                    let item = item.into_bound(py);
                    serve(channel);
                    return Ok(item);
                }
                (_, Some((parking, ticket))) => {
                    serve(channel);
                    block(channel, Side::Receive, ticket, &parking, limit)?;
                    told = Some(ticket);
                }
                (_, None) => {
                    serve(channel);
                    return Err(ended(py, receiver));
                }
            }
        }
    }
}

// --- for select() ------------------------------------------------------------------------------

/// Lets a future of the running loop stand in the line of receivers; returns its ticket.
#[pyfunction]
pub fn channel_stand(
    receiver: &Bound<'_, ReceiverCore>,
    future: &Bound<'_, PyAny>,
) -> PyResult<u64> {
    let py = receiver.py();
    let end = &receiver.get().end;
    end.check(py)?;
    let waiter = Waiter::on(future)?;
    let channel = end.channel.bind(py);
    let ticket = channel.get().enter().wait(Side::Receive, waiter);
    // It may be its turn already.
    serve(channel);
    Ok(ticket.to_u64())
}

/// Leaves the line; with an item, in a tuple, if one was kept.
#[pyfunction]
pub fn channel_take<'py>(
    receiver: &Bound<'py, ReceiverCore>,
    ticket: u64,
) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
    let py = receiver.py();
    let channel = receiver.get().end.channel.bind(py);
    let ticket = Ticket::from_u64(ticket);
    let (outcome, waiter) = {
        let mut core = channel.get().enter();
        let outcome = core.receive_when_told(ticket);
        (outcome, core.leave(Side::Receive, ticket))
    };
    let item = match outcome {
        Received::Item(item) => Some((item.into_bound(py),)),
        Received::Empty | Received::Ended => None,
    };
    if let Some(waiter) = waiter {
        waiter.discard(py);
    }
    serve(channel);
    Ok(item)
}

/// Leaves the line without an item.
#[pyfunction]
pub fn channel_leave(receiver: &Bound<'_, ReceiverCore>, ticket: u64) {
    let channel = receiver.get().end.channel.bind(receiver.py());
    leave(channel, Side::Receive, Ticket::from_u64(ticket));
}
