//! The writer: `write` and `drain`.

use pyo3::exceptions::{PyConnectionResetError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};
use tideloop_core::waiters::Ticket;

use super::{CLASSES, core_of};
use crate::ffi::call;
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::piece::attributes;
use crate::transport::StreamTransport;

fn attribute<'py>(
    attributes: &Bound<'py, PyDict>,
    name: &Bound<'py, PyString>,
) -> Option<Bound<'py, PyAny>> {
    attributes.get_item(name).ok()?
}

/// Whether an attribute is exactly False.
fn is_false(attributes: &Bound<'_, PyDict>, name: &Bound<'_, PyString>) -> bool {
    attribute(attributes, name).is_some_and(|value| value.is(PyBool::new(value.py(), false)))
}

/// `StreamWriter.write(data)`.
pub struct Write;

impl Method for Write {
    type Receiver = PyAny;

    fn call<'py>(writer: &Bound<'py, PyAny>, rest: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = writer.py();
        let data = rest
            .get(0)
            .ok_or_else(|| PyValueError::new_err("a bug in tideloop: nothing to write"))?;
        let transport = writer.getattr(intern!(py, "_transport"))?;
        call::method1(&transport, intern!(py, "write"), &data)?;
        Ok(py.None().into_bound(py))
    }
}

/// What a drain waits for.
const CLOSING: u64 = 0;
const PAUSED: u64 = 1;

/// `StreamWriter.drain()`.
pub struct Drain;

/// Whether a protocol is a stream protocol of ours, and not of a class with its own `_drain_helper`.
fn is_ours(protocol: &Bound<'_, PyAny>) -> bool {
    CLASSES
        .get(protocol.py())
        .is_some_and(|classes| protocol.get_type_ptr() == classes.protocol.as_ptr().cast())
}

impl Coroutine for Drain {
    type Receiver = PyAny;

    const ASK_ALWAYS: bool = true;

    fn diverted(writer: &Bound<'_, PyAny>) -> bool {
        let protocol = attributes(writer)
            .and_then(|writer| attribute(&writer, intern!(writer.py(), "_protocol")));
        !protocol.is_some_and(|protocol| is_ours(&protocol))
    }

    #[inline]
    fn at_once<'py>(writer: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        match is_free(writer, frame.py()) {
            Some(true) => AtOnce::Finish,
            _ => AtOnce::No,
        }
    }

    fn advance<'py>(
        writer: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let protocol = writer.getattr(intern!(py, "_protocol"))?;
        match input {
            Input::Start => {
                let reader = writer.getattr(intern!(py, "_reader"))?;
                if !reader.is_none() {
                    let exception = call::method0(&reader, intern!(py, "exception"))?;
                    if !exception.is_none() {
                        return Err(PyErr::from_value(exception));
                    }
                }
                let transport = writer.getattr(intern!(py, "_transport"))?;
                if call::method0(&transport, intern!(py, "is_closing"))?.is_truthy()? {
                    // So that connection_lost() comes even to those who write and drain in a loop.
                    frame.set_ticket(Ticket::from_u64(CLOSING));
                    return Ok(Step::Yield);
                }
                wait_for(&protocol, frame)
            }
            Input::Resumed if frame.ticket().to_u64() == CLOSING => wait_for(&protocol, frame),
            Input::Resumed => leave(&protocol, frame).map(|()| Step::Finish),
            Input::Thrown(error) => {
                if frame.ticket().to_u64() == PAUSED {
                    leave(&protocol, frame)?;
                }
                Err(error)
            }
        }
    }
}

/// Whether there is nothing to wait for and nothing to raise; nothing if that is not so simple to say.
#[inline]
fn is_free(writer: &Bound<'_, PyAny>, py: Python<'_>) -> Option<bool> {
    let writer = attributes(writer)?;
    let reader = attribute(&writer, intern!(py, "_reader"))?;
    let core = core_of(&reader)?;
    if core.get().state.with(py, |state| state.exception.is_some()) {
        return None;
    }
    let transport = attribute(&writer, intern!(py, "_transport"))?;
    if transport.cast::<StreamTransport>().ok()?.get().is_closing(py) {
        return None;
    }
    let protocol = attribute(&writer, intern!(py, "_protocol"))?;
    let protocol = attributes(&protocol)?;
    let lost = intern!(py, "_connection_lost");
    Some(is_false(&protocol, lost) && is_false(&protocol, intern!(py, "_paused")))
}

/// What `_drain_helper` does until it waits.
fn wait_for<'py>(
    protocol: &Bound<'py, PyAny>,
    frame: &Frame<'_, 'py>,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    if protocol
        .getattr(intern!(py, "_connection_lost"))?
        .is_truthy()?
    {
        return Err(PyConnectionResetError::new_err("Connection lost"));
    }
    if !protocol.getattr(intern!(py, "_paused"))?.is_truthy()? {
        return Ok(Step::Finish);
    }
    let event_loop = protocol.getattr(intern!(py, "_loop"))?;
    let future = park::new_future(&event_loop)?;
    let waiters = protocol.getattr(intern!(py, "_drain_waiters"))?;
    call::method1(&waiters, intern!(py, "append"), &future)?;
    frame.set_ticket(Ticket::from_u64(PAUSED));
    Ok(Step::Wait(future))
}

/// What `_drain_helper` does once it waits no more.
fn leave<'py>(protocol: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> PyResult<()> {
    let py = frame.py();
    let waiters = protocol.getattr(intern!(py, "_drain_waiters"))?;
    call::method1(&waiters, intern!(py, "remove"), &frame.awaited()?).map(drop)
}
