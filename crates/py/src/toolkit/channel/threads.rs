//! Sending and receiving without a task: at once, or blocking a thread.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use tideloop_core::channel::{Received, Side};
use tideloop_core::waiters::Ticket;

use super::super::waiter::{Parking, Waiter, serve};
use super::{
    ChannelCore, Closed, Core, ReceiverCore, SenderCore, Sent, closed, ended, leave,
    nothing_to_send, step_of_receiving, step_of_sending, would_wait,
};
use crate::ffi::function::{Method, Rest};
use crate::ffi::park;

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
        let channel = end.channel.bind(py);
        let mut item = Some(rest.get(0).ok_or_else(nothing_to_send)?.unbind());
        let outcome = step_of_sending(&mut channel.get().enter(), None, &mut item);
        drop(item.map(|item| item.into_bound(py)));
        match outcome {
            Some(sent) => finish_sending(channel, sent),
            None => Err(would_wait(py, channel.get(), "QueueFull", "full")),
        }
    }
}

fn finish_sending<'py>(
    channel: &Bound<'py, ChannelCore>,
    sent: Sent,
) -> PyResult<Bound<'py, PyAny>> {
    let py = channel.py();
    serve(channel);
    match sent {
        Sent::Done => Ok(py.None().into_bound(py)),
        Sent::Closed => Err(closed(py, channel.get(), Closed::Other(Side::Receive))),
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
        let outcome = step_of_receiving(&mut channel.get().enter(), None);
        match outcome {
            Some(received) => finish_receiving(receiver, received),
            None => Err(would_wait(py, channel.get(), "QueueEmpty", "empty")),
        }
    }
}

fn finish_receiving<'py>(
    receiver: &Bound<'py, ReceiverCore>,
    received: Received<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = receiver.py();
    let item = match received {
        Received::Item(item) => Some(item.into_bound(py)),
        Received::Empty | Received::Ended => None,
    };
    serve(receiver.get().end.channel.bind(py));
    item.ok_or_else(|| ended(py, receiver))
}

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

/// Takes a step, blocking this thread in line as long as it has to wait.
///
/// Raises TimeoutError, and what a signal handler raises; the line has been left then.
fn block<R>(
    channel: &Bound<'_, ChannelCore>,
    side: Side,
    limit: Option<Duration>,
    mut step: impl FnMut(&mut Core, Option<Ticket>) -> Option<R>,
) -> PyResult<R> {
    let py = channel.py();
    let mut told = None;
    let mut until = None;
    loop {
        let (parking, ticket) = {
            let mut core = channel.get().enter();
            if let Some(outcome) = step(&mut core, told) {
                return Ok(outcome);
            }
            let parking = Parking::new();
            let ticket = core.wait(side, Waiter::Thread(parking.clone()));
            (parking, ticket)
        };
        serve(channel);
        let left = limit.map(|limit| {
            let now = Instant::now();
            let until = *until.get_or_insert_with(|| now.checked_add(limit));
            until.map_or(limit, |until| until.saturating_duration_since(now))
        });
        let waited = parking.wait(py, left);
        if let Ok(true) = waited {
            told = Some(ticket);
            continue;
        }
        leave(channel, side, ticket);
        waited?;
        let what = match side {
            Side::Send => "no room in",
            Side::Receive => "no item in",
        };
        let words = channel.get().words(py)?;
        return Err(PyTimeoutError::new_err(format!(
            "{what} the {words} in time"
        )));
    }
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
        let channel = end.channel.bind(py);
        let mut item = Some(rest.get(0).ok_or_else(nothing_to_send)?.unbind());
        let sent = block(channel, Side::Send, limit, |core, told| {
            step_of_sending(core, told, &mut item)
        });
        drop(item.map(|item| item.into_bound(py)));
        finish_sending(channel, sent?)
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
        let received = block(
            end.channel.bind(py),
            Side::Receive,
            limit,
            step_of_receiving,
        )?;
        finish_receiving(receiver, received)
    }
}
