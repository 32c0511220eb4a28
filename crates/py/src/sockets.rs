//! `sock_recv` and its kin: operations of the loop on Python's own sockets.
//!
//! Each tries first. What would block waits for the descriptor's side ([`crate::reactor::Slot::Once`]) and
//! tries again; the watch stays in the selector when the operation is over, so that the next one on that
//! socket costs no system call more than its own. The socket is the application's: it may close it at any
//! time, and its number may be another's then. So the number is asked of the socket before each use, and
//! a watch is taken for its own only if that very object has waited there before.
//!
//! A stream socket of exactly Python's class is received from and sent to directly, through the loop's
//! buffer; any other object, a datagram socket's addresses and an `accept()` go through its own methods.
//!
//! **Cancellation** at any await takes the waiter out; nothing was received by then, and nothing is lost.

use pyo3::exceptions::{PyBlockingIOError, PyInterruptedError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyInt, PyMemoryView, PyString, PyType};
use tideloop_core::room::MAX_ROOM;
use tideloop_core::waiters::Ticket;
use tideloop_sys::socket::{self, RawSource, would_block};

use crate::errors::os_error;
use crate::event_loop::LoopCore;
use crate::ffi::buffer::Bytes;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::{self, call, park};
use crate::reactor::{Side, Slot};

const SOCKET: usize = 1;
const GIVEN: usize = 2;

/// One try.
enum Tried<'py> {
    Done(Bound<'py, PyAny>),
    WouldBlock,
}

/// Python's `socket.socket`.
fn is_plain(sock: &Bound<'_, PyAny>) -> bool {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = sock.py();
    let class = CLASS.get_or_try_init(py, || -> PyResult<_> {
        let class = py.import("socket")?.getattr("socket")?;
        Ok(class.cast_into::<PyType>()?.unbind())
    });
    class.is_ok_and(|class| sock.get_type_ptr() == class.as_ptr().cast())
}

/// The descriptor of a socket; None if it is closed, or does not say.
#[inline]
fn source_of(sock: &Bound<'_, PyAny>) -> Option<RawSource> {
    let number = call::method0(sock, intern!(sock.py(), "fileno")).ok()?;
    let number: i64 = number.extract().ok()?;
    if number < 0 {
        return None;
    }
    RawSource::try_from(number).ok()
}

/// The descriptor of a socket that can be used directly.
#[inline]
fn direct(sock: &Bound<'_, PyAny>) -> Option<RawSource> {
    (socket::DIRECT && is_plain(sock))
        .then(|| source_of(sock))
        .flatten()
}

/// What asyncio checks before it begins.
fn check(core: &LoopCore, sock: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = sock.py();
    if !is_plain(sock) {
        py.import(intern!(py, "asyncio.base_events"))?
            .getattr(intern!(py, "_check_ssl_socket"))?
            .call1((sock,))?;
    }
    if core.debug() && !call::method0(sock, intern!(py, "gettimeout"))?.eq(0)? {
        return Err(PyValueError::new_err("the socket must be non-blocking"));
    }
    Ok(())
}

/// Waits until a side of the socket is ready.
fn wait<'py>(
    event_loop: &Bound<'py, LoopCore>,
    sock: &Bound<'py, PyAny>,
    side: Side,
) -> PyResult<Step<'py>> {
    let py = sock.py();
    let number = call::method0(sock, intern!(py, "fileno"))?;
    let source = crate::reactor::source_from(&number)?;
    let future = park::new_future(event_loop.as_any())?;
    let reactor = event_loop.get().reactor();
    match reactor.set_waiter(sock, source, side, &future)? {
        Slot::Callback(replaced) => {
            replaced.bind(py).call_method0(intern!(py, "cancel"))?;
        }
        Slot::Once(replaced) => drop(replaced.into_bound(py)),
        Slot::Nobody => {}
    }
    Ok(Step::Wait(future))
}

/// An operation: what it tries, and which side it waits for.
trait Attempt {
    const SIDE: Side;

    fn attempt<'py>(
        event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>>;
}

fn advance<'py, A: Attempt>(
    event_loop: &Bound<'py, LoopCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let sock = frame
        .argument(SOCKET)
        .ok_or_else(|| PyValueError::new_err("a bug in tideloop: no socket"))?;
    match input {
        Input::Start => check(event_loop.get(), &sock)?,
        Input::Resumed => {}
        Input::Thrown(error) => {
            let source = source_of(&sock);
            let reactor = event_loop.get().reactor();
            reactor.remove_waiter(py, source, A::SIDE, &frame.awaited()?);
            return Err(error);
        }
    }
    match A::attempt(event_loop, &sock, frame)? {
        Tried::Done(value) => Ok(Step::Return(value)),
        Tried::WouldBlock => wait(event_loop, &sock, A::SIDE),
    }
}

fn given<'py>(frame: &Frame<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    frame
        .argument(GIVEN)
        .ok_or_else(|| PyValueError::new_err("a bug in tideloop: an argument is missing"))
}

/// What a call of a socket's own method comes to.
fn tried<'py>(py: Python<'py>, result: PyResult<Bound<'py, PyAny>>) -> PyResult<Tried<'py>> {
    match result {
        Ok(value) => Ok(Tried::Done(value)),
        Err(error)
            if error.is_instance_of::<PyBlockingIOError>(py)
                || error.is_instance_of::<PyInterruptedError>(py) =>
        {
            call::discard(py, error);
            Ok(Tried::WouldBlock)
        }
        Err(error) => Err(error),
    }
}

fn by_method<'py>(
    sock: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    frame: &Frame<'_, 'py>,
) -> PyResult<Tried<'py>> {
    let result = call::method1(sock, name, &given(frame)?);
    tried(frame.py(), result)
}

/// `loop.sock_recv(sock, n)`.
pub struct Recv;

impl Attempt for Recv {
    const SIDE: Side = Side::Reader;

    fn attempt<'py>(
        event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>> {
        let py = frame.py();
        let wanted = given(frame)?;
        let count = match wanted.cast_exact::<PyInt>() {
            Ok(wanted) => wanted.extract::<usize>().ok(),
            Err(_) => None,
        };
        let (Some(count @ 1..=MAX_ROOM), Some(source)) = (count, direct(sock)) else {
            return by_method(sock, intern!(py, "recv"), frame);
        };
        let received = event_loop.get().received(py, |buffer| {
            ffi::receive_on(py, source, &mut buffer[..count])
                .map(|len| PyBytes::new(py, &buffer[..len]).into_any())
        });
        match received {
            Ok(bytes) => Ok(Tried::Done(bytes)),
            Err(error) if would_block(&error) => Ok(Tried::WouldBlock),
            Err(error) => Err(os_error(error)),
        }
    }
}

impl Coroutine for Recv {
    type Receiver = LoopCore;

    fn advance<'py>(
        event_loop: &Bound<'py, LoopCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        advance::<Self>(event_loop, frame, input)
    }
}

/// `loop.sock_recv_into(sock, buf)`.
pub struct RecvInto;

impl Attempt for RecvInto {
    const SIDE: Side = Side::Reader;

    fn attempt<'py>(
        _event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>> {
        by_method(sock, intern!(frame.py(), "recv_into"), frame)
    }
}

impl Coroutine for RecvInto {
    type Receiver = LoopCore;

    fn advance<'py>(
        event_loop: &Bound<'py, LoopCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        advance::<Self>(event_loop, frame, input)
    }
}

/// `loop.sock_recvfrom(sock, bufsize)`.
pub struct RecvFrom;

impl Attempt for RecvFrom {
    const SIDE: Side = Side::Reader;

    fn attempt<'py>(
        _event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>> {
        by_method(sock, intern!(frame.py(), "recvfrom"), frame)
    }
}

impl Coroutine for RecvFrom {
    type Receiver = LoopCore;

    fn advance<'py>(
        event_loop: &Bound<'py, LoopCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        advance::<Self>(event_loop, frame, input)
    }
}

/// `loop.sock_sendall(sock, data)`. Its ticket is how much was sent.
pub struct SendAll;

impl Attempt for SendAll {
    const SIDE: Side = Side::Writer;

    fn attempt<'py>(
        _event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>> {
        let py = frame.py();
        let data = given(frame)?;
        // No ticket, before the first try, is all ones.
        let first = frame.ticket().to_u64() == u64::MAX;
        let start = if first {
            0
        } else {
            frame.ticket().to_u64() as usize
        };
        let Some(source) = direct(sock) else {
            return Self::by_method(sock, &data, frame, start);
        };
        let bytes = Bytes::readable(&data)?;
        let left = bytes.as_slice().get(start..).unwrap_or_default();
        let sent = match ffi::send_on(py, source, left) {
            Ok(sent) if sent == left.len() => return Ok(Tried::Done(py.None().into_bound(py))),
            Ok(sent) => sent,
            Err(error) if would_block(&error) => 0,
            Err(error) => return Err(os_error(error)),
        };
        frame.set_ticket(Ticket::from_u64((start + sent) as u64));
        if first {
            // Held until all is sent: what can be resized would change under us.
            let view = PyMemoryView::from(&data)?;
            drop(frame.replace(GIVEN, Some(view.into_any())));
        }
        Ok(Tried::WouldBlock)
    }
}

impl SendAll {
    /// By the socket's own `send()`.
    fn by_method<'py>(
        sock: &Bound<'py, PyAny>,
        data: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        start: usize,
    ) -> PyResult<Tried<'py>> {
        let py = frame.py();
        let first = frame.ticket().to_u64() == u64::MAX;
        let piece = if first {
            data.clone()
        } else {
            data.get_item(pyo3::types::PySlice::new(
                py,
                isize::try_from(start).unwrap_or(isize::MAX),
                isize::MAX,
                1,
            ))?
        };
        let sent = match tried(py, call::method1(sock, intern!(py, "send"), &piece))? {
            Tried::Done(sent) => sent.extract::<usize>()?,
            Tried::WouldBlock => 0,
        };
        if start + sent == data.len()? {
            return Ok(Tried::Done(py.None().into_bound(py)));
        }
        frame.set_ticket(Ticket::from_u64((start + sent) as u64));
        if first {
            let view = PyMemoryView::from(data)?;
            drop(frame.replace(GIVEN, Some(view.into_any())));
        }
        Ok(Tried::WouldBlock)
    }
}

impl Coroutine for SendAll {
    type Receiver = LoopCore;

    fn advance<'py>(
        event_loop: &Bound<'py, LoopCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        advance::<Self>(event_loop, frame, input)
    }
}

/// `loop.sock_accept(sock)`.
pub struct Accept;

impl Attempt for Accept {
    const SIDE: Side = Side::Reader;

    fn attempt<'py>(
        _event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>> {
        let py = frame.py();
        let accepted = tried(py, call::method0(sock, intern!(py, "accept")))?;
        if let Tried::Done(pair) = &accepted {
            pair.get_item(0)?
                .call_method1(intern!(py, "setblocking"), (false,))?;
        }
        Ok(accepted)
    }
}

impl Coroutine for Accept {
    type Receiver = LoopCore;

    fn advance<'py>(
        event_loop: &Bound<'py, LoopCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        advance::<Self>(event_loop, frame, input)
    }
}
