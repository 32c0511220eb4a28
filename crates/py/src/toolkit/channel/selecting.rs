//! Standing in a channel's line from outside: what `select()` does in several at once.

use pyo3::prelude::*;
use tideloop_core::channel::{Received, Side};
use tideloop_core::waiters::Ticket;

use super::super::waiter::{Waiter, serve};
use super::{ReceiverCore, leave};

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
