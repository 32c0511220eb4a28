//! Sending and receiving as tasks do: `send`, `recv`, `async for`.

use std::marker::PhantomData;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use tideloop_core::channel::{Received, Refusal, Side};
use tideloop_core::waiters::Ticket;

use super::super::waiter::{Waiter, serve};
use super::{
    ChannelCore, Closed, Core, ReceiverCore, SenderCore, Sent, closed, ended, leave,
    nothing_to_send, step_of_receiving, step_of_sending,
};
use crate::deadline;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;

/// Takes a step, and stands in line if it has to wait: then the future for [`Step::Wait`] comes back.
fn step_or_stand<'py, R>(
    channel: &Bound<'py, ChannelCore>,
    end: &Bound<'py, PyAny>,
    frame: &Frame<'_, 'py>,
    side: Side,
    told: Option<Ticket>,
    mut step: impl FnMut(&mut Core, Option<Ticket>) -> Option<R>,
) -> PyResult<Result<R, Bound<'py, PyAny>>> {
    let py = frame.py();
    let outcome = step(&mut channel.get().enter(), told);
    if let Some(outcome) = outcome {
        return Ok(Ok(outcome));
    }
    let (waiter, future) = Waiter::new(&park::running_loop(py)?)?;
    deadline::limit(&future, end)?;
    let stood = {
        let mut core = channel.get().enter();
        // Once more, since making a future may run any code.
        match step(&mut core, None) {
            Some(outcome) => Err((outcome, waiter)),
            None => Ok(core.wait(side, waiter)),
        }
    };
    match stood {
        Ok(ticket) => {
            frame.set_ticket(ticket);
            // Behind others who were told it may be this one's turn, too.
            serve(channel);
            Ok(Err(future))
        }
        Err((outcome, waiter)) => {
            waiter.discard(py);
            Ok(Ok(outcome))
        }
    }
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
        let mut item = Some(frame.argument(1).ok_or_else(nothing_to_send)?.unbind());
        let stood = step_or_stand(
            channel,
            sender.as_any(),
            frame,
            Side::Send,
            told,
            |core, told| step_of_sending(core, told, &mut item),
        );
        drop(item.map(|item| item.into_bound(py)));
        let sent = match stood? {
            Ok(sent) => sent,
            Err(future) => return Ok(Step::Wait(future)),
        };
        serve(channel);
        match sent {
            Sent::Done => Ok(Step::Finish),
            Sent::Closed => Err(closed(py, channel.get(), Closed::Other(Side::Receive))),
        }
    }
}

/// What receiving does at the end of its channel.
pub trait AtEnd {
    fn error(receiver: &Bound<'_, ReceiverCore>) -> PyErr;
}

/// Raises ChannelClosed.
pub struct Refuse;

impl AtEnd for Refuse {
    fn error(receiver: &Bound<'_, ReceiverCore>) -> PyErr {
        ended(receiver.py(), receiver)
    }
}

/// Ends `async for`.
pub struct Stop;

impl AtEnd for Stop {
    fn error(_: &Bound<'_, ReceiverCore>) -> PyErr {
        PyStopAsyncIteration::new_err(())
    }
}

/// `Receiver.recv()` and `Receiver.__anext__()`.
pub struct Receive<E>(PhantomData<E>);

impl<E: AtEnd> Coroutine for Receive<E> {
    type Receiver = ReceiverCore;

    #[inline(always)]
    fn at_once<'py>(receiver: &Bound<'py, ReceiverCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
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

    fn advance<'py>(
        receiver: &Bound<'py, ReceiverCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
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
        let stood = step_or_stand(
            channel,
            receiver.as_any(),
            frame,
            Side::Receive,
            told,
            step_of_receiving,
        )?;
        let item = match stood {
            // Owned by a `Bound` before anything else runs.
            Ok(Received::Item(item)) => Some(item.into_bound(py)),
            Ok(Received::Empty | Received::Ended) => None,
            Err(future) => return Ok(Step::Wait(future)),
        };
        serve(channel);
        item.map(Step::Return).ok_or_else(|| E::error(receiver))
    }
}
