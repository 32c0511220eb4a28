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

use std::marker::PhantomData;

use pyo3::exceptions::{PyBlockingIOError, PyInterruptedError, PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyInt, PyMemoryView, PyString, PyTuple, PyType};
use tideloop_core::room::MAX_ROOM;
use tideloop_core::waiters::Ticket;
use tideloop_sys::socket::{self, RawSource, would_block};

use crate::errors::os_error;
use crate::event_loop::LoopCore;
use crate::ffi::buffer::Bytes;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{self, Frame, Input, Step};
use crate::ffi::{self, call, park};
use crate::reactor::{Side, Slot};

const SOCKET: usize = 1;
const GIVEN: usize = 2;

/// One try.
pub enum Tried<'py> {
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

/// Waits until a side of the socket is ready. `again`: it was said to be ready, and was not.
fn wait<'py>(
    event_loop: &Bound<'py, LoopCore>,
    sock: &Bound<'py, PyAny>,
    side: Side,
    again: bool,
) -> PyResult<Step<'py>> {
    let py = sock.py();
    let number = call::method0(sock, intern!(py, "fileno"))?;
    let source = crate::reactor::source_from(&number)?;
    let future = park::new_future(event_loop.as_any())?;
    let reactor = event_loop.get().reactor();
    match reactor.set_waiter(sock, source, side, &future, again)? {
        Slot::Callback(replaced) => {
            replaced.bind(py).call_method0(intern!(py, "cancel"))?;
        }
        Slot::Once(replaced) => drop(replaced.into_bound(py)),
        Slot::Nobody => {}
    }
    Ok(Step::Wait(future))
}

/// Takes the waiter of an operation that is thrown into out again.
fn leave(
    event_loop: &Bound<'_, LoopCore>,
    sock: &Bound<'_, PyAny>,
    side: Side,
    frame: &Frame<'_, '_>,
) -> PyResult<()> {
    let reactor = event_loop.get().reactor();
    reactor.remove_waiter(sock.py(), source_of(sock), side, &frame.awaited()?);
    Ok(())
}

fn socket_of<'py>(frame: &Frame<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    frame
        .argument(SOCKET)
        .ok_or_else(|| PyValueError::new_err("a bug in tideloop: no socket"))
}

/// What an operation tries, and which side it waits for.
pub trait Attempt {
    const SIDE: Side;

    /// Whether there are arguments behind the first one, which then share its place.
    const PACKS: bool = false;

    fn attempt<'py>(
        event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>>;
}

/// The operation that tries until it need not wait.
pub struct Trying<A>(PhantomData<A>);

impl<A: Attempt> Coroutine for Trying<A> {
    type Receiver = LoopCore;

    const PACKS: bool = A::PACKS;

    fn advance<'py>(
        event_loop: &Bound<'py, LoopCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let sock = socket_of(frame)?;
        let again = match input {
            Input::Start => {
                check(event_loop.get(), &sock)?;
                false
            }
            Input::Resumed => true,
            Input::Thrown(error) => {
                leave(event_loop, &sock, A::SIDE, frame)?;
                return Err(error);
            }
        };
        match A::attempt(event_loop, &sock, frame)? {
            Tried::Done(value) => Ok(Step::Return(value)),
            Tried::WouldBlock => wait(event_loop, &sock, A::SIDE, again),
        }
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

/// As [`by_method`], with two arguments that share a place, which they get back if they are needed again.
fn by_method_packed<'py>(
    sock: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    frame: &Frame<'_, 'py>,
    first: Bound<'py, PyAny>,
    second: Bound<'py, PyAny>,
) -> PyResult<Tried<'py>> {
    let py = frame.py();
    let result = tried(py, call::method(sock, name, [&first, &second]))?;
    if matches!(result, Tried::WouldBlock) {
        let packed = PyTuple::new(py, [first, second])?.into_any();
        drop(frame.replace(GIVEN, Some(packed)));
    }
    Ok(result)
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

/// `loop.sock_recvfrom_into(sock, buf, nbytes=0)`.
pub struct RecvFromInto;

impl Attempt for RecvFromInto {
    const SIDE: Side = Side::Reader;
    const PACKS: bool = true;

    fn attempt<'py>(
        _event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>> {
        let py = frame.py();
        let [buffer, count] = frame.unpack()?;
        let buffer = buffer.unwrap_or_else(|| py.None().into_bound(py));
        let count = match count {
            Some(count) if count.is_truthy()? => count,
            _ => buffer.len()?.into_pyobject(py)?.into_any(),
        };
        by_method_packed(sock, intern!(py, "recvfrom_into"), frame, buffer, count)
    }
}

/// `loop.sock_sendto(sock, data, address)`.
pub struct SendTo;

impl Attempt for SendTo {
    const SIDE: Side = Side::Writer;
    const PACKS: bool = true;

    fn attempt<'py>(
        _event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Tried<'py>> {
        let py = frame.py();
        let given = frame.unpack::<2>()?;
        let [data, address] = given.map(|given| given.unwrap_or_else(|| py.None().into_bound(py)));
        by_method_packed(sock, intern!(py, "sendto"), frame, data, address)
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

/// `loop.sock_connect(sock, address)`. Its ticket is its stage.
pub struct Connect;

impl Connect {
    /// The address is being looked up.
    const RESOLVING: u64 = 0;
    /// The system is connecting.
    const CONNECTING: u64 = 1;

    /// Addresses of these families may be names, which asyncio has looked up.
    fn resolve<'py>(
        event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Option<Step<'py>>> {
        let py = sock.py();
        let family = sock.getattr(intern!(py, "family"))?;
        let number: i32 = family.extract()?;
        if !socket::is_ip_family(number) {
            return Ok(None);
        }
        let how = PyDict::new(py);
        how.set_item(intern!(py, "family"), family)?;
        for name in [intern!(py, "type"), intern!(py, "proto")] {
            how.set_item(name, sock.getattr(name)?)?;
        }
        how.set_item(intern!(py, "loop"), event_loop)?;
        let resolving = event_loop.call_method(
            intern!(py, "_ensure_resolved"),
            (given(frame)?,),
            Some(&how),
        )?;
        frame.set_ticket(Ticket::from_u64(Self::RESOLVING));
        Ok(Some(Step::Delegate(operation::iterator_of(&resolving)?)))
    }

    fn begin<'py>(
        event_loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Step<'py>> {
        match by_method(sock, intern!(frame.py(), "connect"), frame)? {
            Tried::Done(_) => Ok(Step::Finish),
            Tried::WouldBlock => {
                frame.set_ticket(Ticket::from_u64(Self::CONNECTING));
                wait(event_loop, sock, Side::Writer, false)
            }
        }
    }

    /// What the system says when it has connected, or has not.
    fn end<'py>(sock: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> PyResult<Option<Step<'py>>> {
        let py = sock.py();
        let constants = py.import(intern!(py, "socket"))?;
        let which = (
            constants.getattr(intern!(py, "SOL_SOCKET"))?,
            constants.getattr(intern!(py, "SO_ERROR"))?,
        );
        let told = sock.call_method1(intern!(py, "getsockopt"), which);
        let Tried::Done(code) = tried(py, told)? else {
            return Ok(None);
        };
        let code: i32 = code.extract()?;
        if code == 0 {
            return Ok(Some(Step::Finish));
        }
        let failed = format!("Connect call failed {}", given(frame)?.str()?);
        Err(PyOSError::new_err((code, failed)))
    }
}

impl Coroutine for Connect {
    type Receiver = LoopCore;

    fn advance<'py>(
        event_loop: &Bound<'py, LoopCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let sock = socket_of(frame)?;
        let connecting = frame.ticket().to_u64() == Self::CONNECTING;
        match input {
            Input::Start => {
                check(event_loop.get(), &sock)?;
                match Self::resolve(event_loop, &sock, frame)? {
                    Some(step) => Ok(step),
                    None => Self::begin(event_loop, &sock, frame),
                }
            }
            Input::Resumed if connecting => {
                let ended = Self::end(&sock, frame);
                if let Ok(None) = ended {
                    return wait(event_loop, &sock, Side::Writer, true);
                }
                // A connection is made once: a watch that stayed would only report that it can be written to.
                if let Some(source) = source_of(&sock) {
                    let left = event_loop
                        .get()
                        .reactor()
                        .end_watch(py, source, Side::Writer);
                    drop(left);
                }
                ended.map(|step| step.unwrap_or(Step::Finish))
            }
            Input::Resumed => {
                let address = frame.awaited()?.get_item(0)?.get_item(4)?;
                drop(frame.replace(GIVEN, Some(address)));
                Self::begin(event_loop, &sock, frame)
            }
            Input::Thrown(error) => {
                if connecting {
                    leave(event_loop, &sock, Side::Writer, frame)?;
                    if let Some(source) = source_of(&sock) {
                        drop(
                            event_loop
                                .get()
                                .reactor()
                                .end_watch(py, source, Side::Writer),
                        );
                    }
                }
                Err(error)
            }
        }
    }
}
