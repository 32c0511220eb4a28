//! What queues do beyond asyncio's: many items at once, iteration, and standing in line from outside.
//!
//! The functions here serve `python/tideloop/queues.py` and `selection.py`; they are for queues that are not
//! diverted, whose items are ours to move.

use std::sync::atomic::Ordering;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::types::PyList;
use tideloop_core::waiters::Ticket;

use super::queue::{self, Get, Items, Order, QueueCore};
use super::ranked;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::shadows::Within;

/// `async for item in queue`.
pub struct Next;

impl Coroutine for Next {
    type Receiver = QueueCore;

    fn diverted(queue: &Bound<'_, QueueCore>) -> bool {
        Get::diverted(queue)
    }

    #[inline(always)]
    fn at_once<'py>(queue: &Bound<'py, QueueCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        Get::at_once(queue, frame)
    }

    fn advance<'py>(
        queue: &Bound<'py, QueueCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match queue::get(queue, frame, input)? {
            Some(step) => Ok(step),
            None => Err(PyStopAsyncIteration::new_err(())),
        }
    }

    fn inside<'py>(
        queue: &Bound<'py, QueueCore>,
        _: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        Ok(vec![Within::stock("Queue.get", queue.as_any())])
    }
}

/// Puts items while there is room, from an index on; returns the index of the first one that was not put.
///
/// Raises QueueShutDown, and what comparing items raises.
#[pyfunction]
pub fn queue_put_some(
    queue: &Bound<'_, QueueCore>,
    items: &Bound<'_, PyList>,
    start: usize,
) -> PyResult<usize> {
    let py = queue.py();
    let state = queue.get();
    let mut at = start;
    while at < items.len() && (state.is_shut_down() || !state.is_full(py)?) {
        state.put_now(&items.get_item(at)?)?;
        at += 1;
    }
    Ok(at)
}

/// Takes up to `most` items that are there, behind those that `items` has already.
#[pyfunction]
pub fn queue_take_some(
    queue: &Bound<'_, QueueCore>,
    items: &Bound<'_, PyList>,
    most: usize,
) -> PyResult<()> {
    let py = queue.py();
    let state = queue.get();
    while items.len() < most {
        let Some(item) = state.take(py)? else {
            break;
        };
        items.append(item)?;
        state.putters.wake_next(py)?;
    }
    Ok(())
}

/// Puts items back that were taken out, in the order in which they came, so that they are the next ones again.
///
/// There is always room for them, also beyond `maxsize`.
#[pyfunction]
pub fn queue_give_back(queue: &Bound<'_, QueueCore>, items: &Bound<'_, PyList>) -> PyResult<()> {
    let py = queue.py();
    let state = queue.get();
    for index in (0..items.len()).rev() {
        let item = items.get_item(index)?;
        let stored = state
            .state
            .with(py, |state| match (&mut state.items, state.order) {
                (Items::Native(list), Order::Fifo) => {
                    list.push_front(item.clone().unbind());
                    None
                }
                (Items::Native(list), _) => {
                    list.push_back(item.clone().unbind());
                    None
                }
                (Items::Ranked(_), _) => Some(None),
                (Items::Shown(list), order) => Some(Some((list.bind(py).clone(), order))),
            });
        match stored {
            None => {}
            Some(None) => ranked::push(state, &item, true)?,
            Some(Some((list, order))) => queue::return_shown(&list, order, &item)?,
        }
        state.getters.wake_next(py)?;
    }
    Ok(())
}

/// How many items were ever put, how many are there, who waits to get and to put.
#[pyfunction]
pub fn queue_counts(queue: &Bound<'_, QueueCore>) -> PyResult<(i64, usize, usize)> {
    let py = queue.py();
    let state = queue.get();
    Ok((
        state.puts.load(Ordering::Relaxed),
        state.getters.len(py)?,
        state.putters.len(py)?,
    ))
}

/// Lets a future of the running loop stand in the line of getters; returns its ticket.
///
/// Raises RuntimeError if the queue is bound to another loop.
#[pyfunction]
pub fn queue_stand(queue: &Bound<'_, QueueCore>, future: &Bound<'_, PyAny>) -> PyResult<u64> {
    let state = queue.get();
    state.bound.current(queue.as_any())?;
    Ok(state.getters.push(future)?.to_u64())
}

/// Takes a future out of the line again. `woken`: it was the one that was called, and takes nothing.
#[pyfunction]
pub fn queue_leave(
    queue: &Bound<'_, QueueCore>,
    future: &Bound<'_, PyAny>,
    ticket: u64,
    woken: bool,
) -> PyResult<()> {
    let py = queue.py();
    let state = queue.get();
    state.getters.remove(Ticket::from_u64(ticket), future)?;
    if woken && !state.is_empty(py)? {
        state.getters.wake_next(py)?;
    }
    Ok(())
}
