//! The stream transport: one connection, over any socket that carries a stream.
//!
//! A translator between three parties. The state machine in `tideloop_core::stream` decides; the
//! socket in `tideloop_sys` moves bytes; the protocol, in Python, is told. Each Python call below is
//! an input of the machine, each step it returns becomes a system call or a Python call.
//!
//! * A descriptor is closed by its one owner ([`crate::ffi::owner`]): us, or the Python socket that was
//!   handed to us.
//! * Protocol methods run in the context in which the connection was made.
//! * One receive per event: a connection that never runs dry cannot keep the others waiting.
//! * What a callback of the loop writes is held and leaves by one system call, when the callback has returned
//!   ([`crate::held`]) or before anything that could tell the difference: [`StreamTransport::release_held`] stands
//!   at the head of whatever closes, ends, hands over, looks at or counts what was written. What is written from
//!   elsewhere, and what is large, leaves at once.
//! * What does not leave at once is kept by reference if it is `bytes`, and as a snapshot if the caller could
//!   change it afterwards.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use pyo3::exceptions::{PyConnectionError, PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit, intern};
use tideloop_core::flow::Signal;
use tideloop_core::registry::Key;
use tideloop_core::room::Room;
use tideloop_core::stream::{CloseStep, Drained, EofStep, Stream, WriteStep};
use tideloop_sys::selector::{Event, Interest};
use tideloop_sys::socket::{self, Address, RawSource, would_block};

use crate::address;
use crate::errors::{ends_the_loop, os_error};
use crate::event_loop::LoopCore;
use crate::ffi::buffer::{self, Bytes};
use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::owner::{self, Owner, Owns, View, is_still};
use crate::held;
use crate::reactor::Target;
use crate::streams::{self, FlowCore};
use crate::tls::TlsCore;

/// Queued pieces sent by one system call.
const MAX_SLICES: usize = 64;

/// Pieces of so many bytes together are joined, not listed: up to a few KiB the system needs longer to take a list in than
/// the copy takes.
const MAX_JOINED: usize = 4 * 1024;

/// The largest snapshot that is made only to hold bytes back.
const MAX_COPIED: usize = 16 * 1024;

/// What is said of a connection that could not be written to.
const WRITE_FAILED: &str = "Fatal write error on socket transport";

/// Bytes that wait to be sent, and how many of them already were.
struct Chunk {
    bytes: Py<PyBytes>,
    start: usize,
}

struct Connection {
    machine: Stream,
    /// None before the transport has adopted its socket, and after it has closed it.
    socket: Option<Owner>,
    key: Option<Key>,
    protocol: Option<Py<PyAny>>,
    /// Of a stream protocol of ours: by which its reader is found.
    flow: Option<Py<FlowCore>>,
    intake: Intake,
    room: Room,
    queue: VecDeque<Chunk>,
    server: Option<Py<PyAny>>,
    /// A future that waits until everything is sent and the socket takes more.
    writable: Option<Py<PyAny>>,
    /// Somebody else sends on the descriptor: writes would get in between.
    lent: bool,
    /// Whether the socket was asked for.
    shown: bool,
    /// The view that get_extra_info("socket") shows, once somebody has asked.
    view: Option<View>,
    local: Option<Address>,
    peer: Option<Address>,
}

impl Owns for Connection {
    /// The owner's.
    const REFERENCES: isize = 1;

    fn owner(&mut self) -> (Option<&mut Owner>, bool) {
        (self.socket.as_mut(), self.shown)
    }
}

impl Connection {
    /// Puts these behind what is queued, from `start` on.
    #[inline]
    fn keep(&mut self, py: Python<'_>, pieces: &[Payload<'_, '_>], mut start: usize) {
        for piece in pieces {
            let len = piece.as_slice().len();
            if start < len {
                self.queue.push_back(piece.rest(py, start));
            }
            start = start.saturating_sub(len);
        }
    }

    /// Whether the descriptor is seen to be ours still; if not, it is to be asked who has it.
    #[inline]
    fn is_certain(&self) -> bool {
        self.socket.as_ref().is_some_and(|owner| {
            let shown = self.view.as_ref();
            owner.is_certain(self.shown)
                && shown.is_none_or(|view| view.is_certain(owner.socket().raw()))
        })
    }
}

/// A connection between a protocol and a stream socket.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct StreamTransport {
    core: Py<LoopCore>,
    context: Py<PyAny>,
    extra: Py<PyDict>,
    connection: LoopCell<Connection>,
}

/// How a protocol takes what has come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Intake {
    /// data_received()
    Data,
    /// It brings its own receive buffers.
    Buffered,
    /// It is the native half of a TLS connection.
    Tls,
}

impl Intake {
    fn of(protocol: &Bound<'_, PyAny>) -> PyResult<Self> {
        if protocol.is_instance_of::<TlsCore>() {
            return Ok(Self::Tls);
        }
        match is_buffered(protocol)? {
            true => Ok(Self::Buffered),
            false => Ok(Self::Data),
        }
    }

    /// What is said of a protocol that fails.
    fn failed(self) -> &'static str {
        match self {
            Self::Data => "Fatal error: protocol.data_received() call failed.",
            Self::Buffered | Self::Tls => "Fatal error: protocol.buffer_updated() call failed.",
        }
    }
}

/// What one readiness event brought.
enum Received {
    Nothing,
    /// Not yet: the protocol has to be asked for a buffer.
    Asking,
    Data(Py<PyAny>, Py<PyBytes>),
    /// Of a stream protocol of ours.
    Fed(Py<FlowCore>, Py<PyBytes>),
    Eof(Py<PyAny>),
    Failed(PyErr),
}

/// What became of a piece that was offered at once.
enum Quick {
    /// It was not: it takes more than that.
    No,
    Sent(Chunk),
    SentAll(VecDeque<Chunk>),
    /// So much of it was taken.
    Short(usize),
    Failed(io::Error),
}

impl StreamTransport {
    #[inline]
    fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Connection) -> R) -> R {
        self.connection.with(py, f)
    }

    fn core<'py>(&self, py: Python<'py>) -> &Bound<'py, LoopCore> {
        self.core.bind(py)
    }

    /// Takes a socket over, tells the protocol, and begins to read in the turn after that.
    pub fn start<'py>(
        slf: &Bound<'py, Self>,
        owner: Owner,
        waiter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        // Fails on what is not TCP, where there is nothing to set.
        let socket = owner.socket();
        socket.set_nodelay().ok();
        let source = socket.raw();
        let (local, peer) = (socket.local_address(), socket.peer_address());
        let core = state.core(py);
        if core.get().is_closed() {
            return Err(call::closed_error());
        }
        // Looked up before anything is registered: a factory may have returned what is no protocol.
        let made = state
            .protocol(py)
            .map(|protocol| protocol.getattr(intern!(py, "connection_made")))
            .transpose()?;
        let begin = slf.getattr(intern!(py, "_begin"))?;
        let refused = state.with(py, |connection| {
            if connection.socket.is_some() || connection.machine.is_closing() {
                return Some(owner);
            }
            connection.socket = Some(owner);
            connection.local = local;
            connection.peer = peer;
            None
        });
        if refused.is_some() {
            return Err(PyRuntimeError::new_err(
                "the transport has a socket already",
            ));
        }
        let key =
            core.get()
                .reactor()
                .register(py, source, Target::Stream(slf.clone().unbind()))?;
        state.with(py, |connection| connection.key = Some(key));
        let context = state.context.bind(py);
        if let Some(made) = made {
            LoopCore::schedule(core, &made, slf.as_any(), context.clone())?;
        }
        let none = py.None().into_bound(py);
        LoopCore::schedule(core, &begin, waiter.unwrap_or(&none), context.clone())
    }

    /// Readiness, from the turn.
    pub fn deliver(slf: &Bound<'_, Self>, event: Event) -> PyResult<()> {
        if let Err(error) = slf.get().check_owner(slf.py()) {
            return Self::fail(slf, os_error(error), "Fatal read error on socket transport");
        }
        if event.readable {
            Self::on_readable(slf)?;
        }
        if event.writable {
            Self::on_writable(slf)?;
        }
        Ok(())
    }

    fn on_readable(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let core = state.core(py).get();
        let mut surplus = None;
        let mut intake = Intake::Data;
        let received = state.with(py, |connection| {
            intake = connection.intake;
            if !connection.machine.wants_read() {
                return Received::Nothing;
            }
            if intake == Intake::Buffered {
                return Received::Asking;
            }
            let (Some(socket), Some(protocol)) = (&connection.socket, &connection.protocol) else {
                return Received::Nothing;
            };
            let socket = socket.socket();
            let received = match connection.room.next() {
                None => core.received(py, |buffer| {
                    let len = socket.recv(buffer)?;
                    let (bytes, unused) = core.bytes(py, &buffer[..len]);
                    surplus = unused;
                    Ok(bytes.unbind())
                }),
                Some(room) => match buffer::filled(py, room, |room| socket.recv_uninit(room)) {
                    Ok(received) => received,
                    Err(error) => return Received::Failed(error),
                },
            };
            match received {
                Ok(bytes) => {
                    let len = bytes.as_bytes(py).len();
                    connection.room.received(len);
                    match (len, &connection.flow) {
                        (0, _) => Received::Eof(protocol.clone_ref(py)),
                        // A program may have given it another class meanwhile.
                        (_, Some(flow)) if streams::is_ours(protocol.bind(py)) => {
                            Received::Fed(flow.clone_ref(py), bytes)
                        }
                        _ => Received::Data(protocol.clone_ref(py), bytes),
                    }
                }
                Err(error) if would_block(&error) => Received::Nothing,
                Err(error) => Received::Failed(os_error(error)),
            }
        });
        if let Some(unused) = surplus {
            drop(unused.into_bound(py));
        }
        match received {
            Received::Nothing => Ok(()),
            Received::Asking => Self::on_readable_buffered(slf),
            Received::Data(protocol, bytes) => {
                let (protocol, bytes) = (protocol.into_bound(py), bytes.into_bound(py));
                let context = state.context.bind(py);
                let told = match intake {
                    Intake::Tls => call::in_context(context, |_| {
                        TlsCore::received(protocol.cast::<TlsCore>()?, &bytes)
                    }),
                    _ => state.data_received(&protocol, &bytes),
                };
                match told {
                    Ok(()) => Ok(()),
                    Err(error) => Self::fail(slf, error, intake.failed()),
                }
            }
            Received::Fed(flow, bytes) => {
                let (flow, bytes) = (flow.into_bound(py), bytes.into_bound(py));
                let told = match (flow.get().feed(&bytes), state.protocol(py)) {
                    (Some(told), _) => told,
                    (None, Some(protocol)) => state.data_received(&protocol, &bytes),
                    (None, None) => Ok(()),
                };
                match told {
                    Ok(()) => Ok(()),
                    Err(error) => Self::fail(slf, error, intake.failed()),
                }
            }
            Received::Eof(protocol) => Self::on_eof(slf, &protocol.into_bound(py)),
            Received::Failed(error) => {
                Self::fail(slf, error, "Fatal read error on socket transport")
            }
        }
    }

    fn data_received<'py>(
        &self,
        protocol: &Bound<'py, PyAny>,
        bytes: &Bound<'py, PyBytes>,
    ) -> PyResult<()> {
        call::in_context(self.context.bind(protocol.py()), |py| {
            call::method1(protocol, intern!(py, "data_received"), bytes.as_any()).map(drop)
        })
    }

    fn on_readable_buffered(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let Some(protocol) = state.with(py, |connection| {
            let protocol = connection.protocol.as_ref()?;
            connection
                .machine
                .wants_read()
                .then(|| protocol.clone_ref(py))
        }) else {
            return Ok(());
        };
        let protocol = protocol.into_bound(py);
        let context = state.context.bind(py);
        let buffer = call::in_context(context, |py| {
            let hint = (-1_i32).into_pyobject(py)?;
            let object = call::method1(&protocol, intern!(py, "get_buffer"), hint.as_any())?;
            let buffer = Bytes::writable(&object)?;
            if buffer.len() == 0 {
                return Err(PyRuntimeError::new_err(
                    "get_buffer() returned an empty buffer",
                ));
            }
            Ok(buffer)
        });
        let mut buffer = match buffer {
            Ok(buffer) => buffer,
            Err(error) => {
                return Self::fail(
                    slf,
                    error,
                    "Fatal error: protocol.get_buffer() call failed.",
                );
            }
        };
        // get_buffer() may have closed or paused the transport.
        let received = state.with(py, |connection| match &connection.socket {
            Some(socket) if connection.machine.wants_read() => {
                Some(socket.socket().recv(buffer.as_mut_slice()))
            }
            _ => None,
        });
        drop(buffer);
        match received {
            None => Ok(()),
            Some(Ok(0)) => Self::on_eof(slf, &protocol),
            Some(Ok(len)) => {
                let told = call::in_context(context, |py| {
                    let len = len.into_pyobject(py)?;
                    call::method1(&protocol, intern!(py, "buffer_updated"), len.as_any())
                });
                match told {
                    Ok(_) => Ok(()),
                    Err(error) => Self::fail(slf, error, Intake::Buffered.failed()),
                }
            }
            Some(Err(error)) if would_block(&error) => Ok(()),
            Some(Err(error)) => {
                Self::fail(slf, os_error(error), "Fatal read error on socket transport")
            }
        }
    }

    fn on_eof(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        state.with(py, |connection| connection.machine.peer_eof());
        Self::update_interest(slf)?;
        let keep_open = call::in_context(state.context.bind(py), |py| {
            call::method0(protocol, intern!(py, "eof_received"))?.is_truthy()
        });
        match keep_open {
            Ok(true) => Ok(()),
            Ok(false) => Self::close(slf),
            Err(error) => Self::fail(
                slf,
                error,
                "Fatal error: protocol.eof_received() call failed.",
            ),
        }
    }

    fn on_writable(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let writable = state.with(py, |connection| match connection.queue.is_empty() {
            true => connection.writable.take(),
            false => None,
        });
        if let Some(writable) = writable {
            Self::update_interest(slf)?;
            return release_waiter(&writable.into_bound(py), None);
        }
        if state.with(py, |connection| connection.machine.is_holding()) {
            // Written by the callback that is running: it ends soon.
            return Ok(());
        }
        match state.offer(py, &[], 0) {
            Ok(offer) => {
                let told = match state.consume(py, offer.taken) {
                    Signal::Nothing => Ok(()),
                    signal => {
                        state.with(py, |connection| connection.machine.tells());
                        let told =
                            call::in_context(state.context.bind(py), |_| Self::tell(slf, signal));
                        state.with(py, |connection| connection.machine.told());
                        told
                    }
                };
                // What ends the loop does not end the connection.
                let after = Self::after_send(slf);
                told.and(after)
            }
            Err(error) => Self::fail(slf, os_error(error), WRITE_FAILED),
        }
    }

    /// The callback is over: sends what it has written, as [`StreamTransport::release_held`] does.
    ///
    /// The rule is one piece or a few small ones, which the socket takes at once.
    pub fn send_held(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let quick = state.with(py, |connection| {
            // What is held is all that is queued.
            let len = connection.machine.queued_bytes();
            let count = connection.queue.len();
            if (count > 1 && len > MAX_JOINED) || !connection.is_certain() {
                return Quick::No;
            }
            let (machine, queue) = (&mut connection.machine, &mut connection.queue);
            let Some(owner) = &connection.socket else {
                return Quick::No;
            };
            if machine.awaits_drain() || !machine.release() {
                return Quick::No;
            }
            let sent = match queue.make_contiguous() {
                [only] => owner.socket().send(&only.bytes.as_bytes(py)[only.start..]),
                // The room for what is received is free now, and in the processor's cache.
                pieces => state.core.get().received(py, |room| {
                    let len = join(py, pieces, room);
                    owner.socket().send(&room[..len])
                }),
            };
            match sent {
                Ok(sent) if sent == len => {
                    // What was held could not have paused the protocol.
                    let _nobody_waits = machine.sent(len);
                    match count {
                        1 => queue.pop_front().map_or(Quick::No, Quick::Sent),
                        _ => Quick::SentAll(std::mem::take(queue)),
                    }
                }
                Ok(sent) => Quick::Short(sent),
                Err(error) if would_block(&error) => Quick::Short(0),
                Err(error) => Quick::Failed(error),
            }
        });
        match quick {
            Quick::Sent(chunk) => {
                drop(chunk.bytes.into_bound(py));
                Ok(())
            }
            Quick::SentAll(done) => {
                state.drop_sent(py, done);
                Ok(())
            }
            Quick::No => Self::release_held(slf),
            Quick::Short(sent) => {
                let _nobody_waits = state.consume(py, sent);
                Self::after_send(slf)
            }
            Quick::Failed(error) => Self::fail(slf, os_error(error), WRITE_FAILED),
        }
    }

    /// Sends what is held back, if anything is.
    pub fn release_held(slf: &Bound<'_, Self>) -> PyResult<()> {
        let state = slf.get();
        if !state.with(slf.py(), |connection| connection.machine.is_holding()) {
            return Ok(());
        }
        held::forget_inherited(state.core(slf.py()))?;
        match state.with(slf.py(), |connection| connection.machine.release()) {
            true => Self::send_queue(slf, &[]),
            false => Ok(()),
        }
    }

    /// Drops what is held back: it is another process's to send.
    pub fn forget_held(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let held = state.with(py, |connection| match connection.machine.release() {
            true => connection.machine.queued_bytes(),
            false => 0,
        });
        // Nothing that is held could have paused the protocol.
        let _nobody_waits = state.consume(py, held);
        Self::after_send(slf)
    }

    /// Sends what is queued and these behind it; what the socket does not take waits for it.
    fn send_queue(slf: &Bound<'_, Self>, pieces: &[Payload<'_, '_>]) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        if let Err(error) = state.check_descriptor(py) {
            return Self::fail(slf, os_error(error), WRITE_FAILED);
        }
        let mut start = 0;
        loop {
            let offer = match state.offer(py, pieces, start) {
                Ok(offer) => offer,
                Err(error) => return Self::fail(slf, os_error(error), WRITE_FAILED),
            };
            let queued = offer.taken.min(offer.queued);
            if queued > 0 {
                // Nothing that was held could have paused the protocol.
                let _nobody_waits = state.consume(py, queued);
            }
            start += offer.taken - queued;
            if !offer.goes_on() {
                break;
            }
        }
        if start < total(pieces) {
            return Self::queue(slf, pieces, start);
        }
        let idle = state.with(py, |connection| {
            let machine = &connection.machine;
            machine.queued_bytes() == 0 && !machine.awaits_drain()
        });
        if idle { Ok(()) } else { Self::after_send(slf) }
    }

    /// Keeps what is left of these from `start` on until the socket takes it.
    fn queue(slf: &Bound<'_, Self>, pieces: &[Payload<'_, '_>], start: usize) -> PyResult<()> {
        let py = slf.py();
        let signal = slf.get().with(py, |connection| {
            connection.keep(py, pieces, start);
            connection.machine.queued(total(pieces) - start)
        });
        Self::update_interest(slf)?;
        Self::tell(slf, signal)
    }

    /// Offers the socket what is queued and these behind it, from `start` on, by one system call.
    fn offer(&self, py: Python<'_>, pieces: &[Payload<'_, '_>], start: usize) -> io::Result<Offer> {
        self.with(py, |connection| {
            let mut offer = Offer::default();
            let Some(owner) = &connection.socket else {
                return Ok(offer);
            };
            let socket = owner.socket();
            let sent = match (connection.queue.as_slices(), pieces) {
                // The rule, and not worth a list.
                (([only], []), []) => {
                    let bytes = &only.bytes.as_bytes(py)[only.start..];
                    (offer.queued, offer.offered) = (bytes.len(), bytes.len());
                    socket.send(bytes)
                }
                (([], []), [only]) => {
                    let bytes = only.as_slice().get(start..).unwrap_or_default();
                    offer.offered = bytes.len();
                    socket.send(bytes)
                }
                _ => {
                    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                    let count = offer.gather(py, &mut slices, &connection.queue, pieces, start);
                    match count {
                        0 => Ok(0),
                        _ => socket.send_vectored(&slices[..count]),
                    }
                }
            };
            match sent {
                Ok(taken) => offer.taken = taken,
                Err(error) if would_block(&error) => {}
                Err(error) => return Err(error),
            }
            Ok(offer)
        })
    }

    /// What follows once the protocol knows that bytes went out.
    fn after_send(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let step = state.with(py, |connection| connection.machine.drained());
        Self::update_interest(slf)?;
        match step {
            Drained::Nothing => Ok(()),
            Drained::ShutdownWrite => {
                state.shutdown_write(py);
                Ok(())
            }
            Drained::Finish => Self::schedule_lost(slf, None),
        }
    }

    /// Drops what was sent from the head of the queue.
    fn consume(&self, py: Python<'_>, sent: usize) -> Signal {
        let (done, signal) = self.with(py, |connection| {
            let signal = connection.machine.sent(sent);
            let queue = &mut connection.queue;
            if connection.machine.queued_bytes() == 0 {
                return (std::mem::take(queue), signal);
            }
            let (mut left, mut gone) = (sent, 0);
            for chunk in queue.iter_mut() {
                let len = chunk.bytes.as_bytes(py).len() - chunk.start;
                if left < len {
                    chunk.start += left;
                    break;
                }
                left -= len;
                gone += 1;
            }
            (queue.drain(..gone).collect(), signal)
        });
        self.drop_sent(py, done);
        signal
    }

    /// Drops what is sent, and keeps the room for what comes next.
    fn drop_sent(&self, py: Python<'_>, mut done: VecDeque<Chunk>) {
        done.clear();
        if done.capacity() <= MAX_SLICES {
            self.with(py, |connection| {
                if connection.queue.capacity() == 0 {
                    connection.queue = done;
                }
            });
        }
    }

    /// Tells the protocol to pause or go on; it cannot fail the connection.
    fn tell(slf: &Bound<'_, Self>, signal: Signal) -> PyResult<()> {
        let py = slf.py();
        let name = match signal {
            Signal::Nothing => return Ok(()),
            Signal::PauseWriting => intern!(py, "pause_writing"),
            Signal::ResumeWriting => intern!(py, "resume_writing"),
        };
        let Some(protocol) = slf.get().protocol(py) else {
            return Ok(());
        };
        match call::method0(&protocol, name) {
            Ok(_) => Ok(()),
            Err(error) if ends_the_loop(py, &error) => Err(error),
            Err(error) => Self::report(slf, error, &format!("protocol.{name}() failed")),
        }
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.with(py, |connection| {
            connection.protocol.as_ref().map(|p| p.clone_ref(py))
        })
        .map(|protocol| protocol.into_bound(py))
    }

    fn shutdown_write(&self, py: Python<'_>) {
        self.with(py, |connection| {
            if let Some(socket) = &connection.socket {
                // A peer that is gone already makes this fail; reading will say so.
                socket.socket().shutdown_write().ok();
            }
        });
    }

    /// Brings the selector in line with what the machine wants. A connection that cannot be watched
    /// any more is lost.
    fn update_interest(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf.get().watch(slf.py()) {
            Ok(()) => Ok(()),
            Err(error) => Self::fail(slf, error, "Fatal error on socket transport"),
        }
    }

    fn watch(&self, py: Python<'_>) -> PyResult<()> {
        let (key, interest) = self.with(py, |connection| {
            let machine = &connection.machine;
            let interest = Interest {
                read: machine.wants_read(),
                write: machine.wants_write() || connection.writable.is_some(),
            };
            (connection.key, interest)
        });
        match key {
            Some(key) if !self.core.get().is_closed() => {
                self.core.get().reactor().set_interest(py, key, interest)
            }
            _ => Ok(()),
        }
    }

    /// Reports an error that ends the connection, and ends it.
    fn fail(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        let py = slf.py();
        if ends_the_loop(py, &error) {
            return Err(error);
        }
        // If what was written before fails as well, that came first.
        Self::release_held(slf)?;
        // A peer that goes away is no fault of the program: said in debug mode only, as in asyncio.
        let quiet = error.is_instance_of::<PyOSError>(py);
        if !quiet || slf.get().core.get().debug() {
            Self::report(slf, error.clone_ref(py), message)?;
        }
        Self::force_close(slf, Some(error))
    }

    fn report(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        let py = slf.py();
        slf.get().core(py).call_method1(
            intern!(py, "_transport_failed"),
            (slf, slf.get().protocol(py), message, error.into_value(py)),
        )?;
        Ok(())
    }

    fn force_close(slf: &Bound<'_, Self>, error: Option<PyErr>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let released = Self::release_held(slf);
        let (step, dropped) = state.with(py, |connection| {
            let step = connection.machine.abort();
            let dropped = match step {
                CloseStep::Finish => std::mem::take(&mut connection.queue),
                CloseStep::Nothing => VecDeque::new(),
            };
            (step, dropped)
        });
        drop(dropped);
        // Fails only for a descriptor that somebody has closed; that must not keep connection_lost away.
        state.watch(py).ok();
        let closed = match step {
            CloseStep::Finish => Self::schedule_lost(slf, error),
            CloseStep::Nothing => Ok(()),
        };
        released.and(closed)
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let released = Self::release_held(slf);
        let step = state.with(py, |connection| connection.machine.close());
        Self::update_interest(slf)?;
        let closed = match step {
            CloseStep::Finish => Self::schedule_lost(slf, None),
            CloseStep::Nothing => Ok(()),
        };
        released.and(closed)
    }

    fn schedule_lost(slf: &Bound<'_, Self>, error: Option<PyErr>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let error = match error {
            Some(error) => error.into_value(py).into_bound(py).into_any(),
            None => py.None().into_bound(py),
        };
        let lost = slf.getattr(intern!(py, "_call_connection_lost"))?;
        if state.core.get().is_closed() {
            // Nothing will run any more; the descriptor must not stay open for that.
            drop(state.release(py));
            return Ok(());
        }
        let context = state.context.bind(py).clone();
        LoopCore::schedule(state.core(py), &lost, &error, context)
    }

    /// Closes the descriptor and takes out everything that the connection owned.
    fn release<'py>(&self, py: Python<'py>) -> Released<'py> {
        let (socket, key, released) = self.with(py, |connection| {
            let released = Released {
                _protocol: connection.protocol.take().map(|p| p.into_bound(py)),
                _flow: connection.flow.take().map(|f| f.into_bound(py)),
                server: connection.server.take().map(|s| s.into_bound(py)),
                view: connection.view.take().map(|v| v.into_socket(py)),
                writable: connection.writable.take().map(|w| w.into_bound(py)),
                _queue: std::mem::take(&mut connection.queue),
            };
            (connection.socket.take(), connection.key.take(), released)
        });
        if let Some(key) = key {
            // Out of the selector first: the number may be another's as soon as it is closed.
            drop(self.core.get().reactor().unregister(py, key));
        }
        let mut ours = true;
        if let (Some(view), Some(owner)) = (&released.view, &socket) {
            ours = is_still(view, owner.socket().raw());
            // Fails only if somebody has put something else in its place, and then it owns nothing.
            view.call_method0(intern!(py, "detach")).ok();
        }
        if let Some(writable) = &released.writable {
            let gone = PyConnectionError::new_err("Connection is closed by peer");
            // Fails only if the waiter's loop is closed, and then nobody waits.
            release_waiter(writable, Some(gone)).ok();
        }
        match socket {
            // A close that fails has closed nonetheless; there is nobody left to tell.
            Some(owner) if ours => drop(owner.close(py).ok()),
            Some(owner) => owner.give_up(py),
            None => {}
        }
        released
    }

    fn python_socket(&self, py: Python<'_>) -> Option<(Py<PyAny>, RawSource)> {
        self.with(py, |connection| {
            connection
                .socket
                .as_ref()
                .and_then(|owner| owner.python_socket(py))
        })
    }

    /// Fails if somebody has closed our descriptor: its number may be another connection's by now.
    #[inline]
    fn check_owner(&self, py: Python<'_>) -> io::Result<()> {
        owner::check(py, &self.connection)
    }

    /// Fails if somebody has closed our descriptor by way of the socket that we have shown.
    fn check_view(&self, py: Python<'_>) -> io::Result<()> {
        let shown = self.with(py, |connection| {
            let view = connection.view.as_ref()?;
            let source = connection.socket.as_ref()?.socket().raw();
            (!view.is_certain(source)).then(|| (view.socket().clone_ref(py), source))
        });
        match shown {
            Some((view, source)) if !is_still(view.bind(py), source) => {
                Err(socket::closed_underneath())
            }
            _ => Ok(()),
        }
    }

    /// Fails if our descriptor is not ours any more.
    fn check_descriptor(&self, py: Python<'_>) -> io::Result<()> {
        self.check_owner(py).and_then(|()| self.check_view(py))
    }

    /// A Python socket on our descriptor, which it does not own.
    fn view<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if let Some(view) = self.with(py, |connection| {
            let view = connection.view.as_ref()?;
            Some(view.socket().clone_ref(py))
        }) {
            return Ok(Some(view.into_bound(py)));
        }
        if let Some((sock, _)) = self.python_socket(py) {
            return Ok(Some(sock.into_bound(py)));
        }
        let Some(source) = self.with(py, |connection| {
            connection.socket.as_ref().map(|owner| owner.socket().raw())
        }) else {
            return Ok(None);
        };
        let arguments = PyDict::new(py);
        arguments.set_item(intern!(py, "fileno"), source)?;
        let view = py
            .import(intern!(py, "socket"))?
            .getattr(intern!(py, "socket"))?
            .call((), Some(&arguments))?;
        let shown = View::new(view.clone(), source);
        self.with(py, |connection| {
            connection.view = Some(shown);
        });
        Ok(Some(view))
    }

    /// What get_extra_info() knows by this name.
    /// [`Self::view`], or a closed socket once the connection is lost.
    fn view_or_closed<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let view = self.view(py)?;
        if view.is_some() || !self.with(py, |connection| connection.machine.is_lost()) {
            return Ok(view);
        }
        let name = intern!(py, "socket");
        let closed = py.import(name)?.getattr(name)?.call0()?;
        call::method0(&closed, intern!(py, "close"))?;
        Ok(Some(closed))
    }

    fn extra_info<'py>(slf: &Bound<'py, Self>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (py, this) = (slf.py(), slf.get());
        if let Some(value) = this.extra.bind(py).get_item(name)? {
            return Ok(Some(value));
        }
        let found = match name {
            "socket" => match this.view_or_closed(py)? {
                Some(view) => {
                    let shown = py
                        .import(intern!(py, "tideloop.loop.shown"))?
                        .getattr(intern!(py, "ShownSocket"))?
                        .call1((view, PyWeakrefReference::new(slf)?))?;
                    this.extra.bind(py).set_item(name, &shown)?;
                    this.with(py, |connection| connection.shown = true);
                    Some(shown)
                }
                None => None,
            },
            "sockname" => {
                let address = this.with(py, |connection| connection.local.clone());
                this.address(py, address, "getsockname")?
            }
            "peername" => {
                let address = this.with(py, |connection| connection.peer.clone());
                this.address(py, address, "getpeername")?
            }
            _ => None,
        };
        Ok(found)
    }

    fn address<'py>(
        &self,
        py: Python<'py>,
        address: Option<Address>,
        method: &str,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(address) = address else {
            return Ok(None);
        };
        if let Some(told) = address::to_python(py, &address)? {
            return Ok(Some(told));
        }
        match self.view(py)? {
            Some(view) => view.call_method0(method).map(Some),
            None => Ok(None),
        }
    }

    /// Writes these as one: to be held until the callback ends, or sent at once as far as can be.
    pub fn send(slf: &Bound<'_, Self>, pieces: &[Payload<'_, '_>]) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let core = state.core(py);
        held::forget_inherited(core)?;
        let copied: usize = pieces.iter().map(Payload::copied).sum();
        let hold = match copied <= MAX_COPIED {
            true => held::may_hold(py, core.get()),
            false => None,
        };
        let len = total(pieces);
        let step = state.with(py, |connection| match connection.lent {
            true => None,
            false => {
                // Who has the socket himself finds sent what was written.
                let shared = connection
                    .socket
                    .as_ref()
                    .is_some_and(|owner| owner.is_shared(py, connection.shown));
                let step = connection.machine.write(len, hold.filter(|_| !shared));
                if let WriteStep::Hold { .. } = step {
                    connection.keep(py, pieces, 0);
                }
                Some(step)
            }
        });
        match step {
            Some(WriteStep::Hold { first }) => {
                if first {
                    core.get().held().join(slf);
                }
                Ok(())
            }
            Some(WriteStep::SendNow) => Self::send_queue(slf, pieces),
            Some(WriteStep::Queue) => match state.check_descriptor(py) {
                Ok(()) => Self::queue(slf, pieces, 0),
                Err(error) => Self::fail(slf, os_error(error), WRITE_FAILED),
            },
            Some(WriteStep::Nothing) => Ok(()),
            Some(WriteStep::AfterEof) => Err(PyRuntimeError::new_err(
                "Cannot call write() after write_eof()",
            )),
            Some(WriteStep::Dropped { warn: false }) => Ok(()),
            Some(WriteStep::Dropped { warn: true }) => core
                .call_method0(intern!(py, "_warn_dropped_write"))
                .map(drop),
            None => Err(PyRuntimeError::new_err(
                "unable to write; sendfile is in progress",
            )),
        }
    }
}

/// Puts what is left of these side by side; how much that is.
fn join(py: Python<'_>, pieces: &[Chunk], room: &mut [u8]) -> usize {
    let mut end = 0;
    for piece in pieces {
        let bytes = &piece.bytes.as_bytes(py)[piece.start..];
        room[end..end + bytes.len()].copy_from_slice(bytes);
        end += bytes.len();
    }
    end
}

fn total(pieces: &[Payload<'_, '_>]) -> usize {
    pieces.iter().map(|piece| piece.as_slice().len()).sum()
}

/// What one system call was offered, bytes.
#[derive(Default)]
struct Offer {
    /// Of the queue.
    queued: usize,
    offered: usize,
    taken: usize,
    /// There was more than one system call takes.
    more: bool,
}

impl Offer {
    /// Fills `slices` with what is queued and the pieces behind it, from `start` on; how many are filled.
    fn gather<'a>(
        &mut self,
        py: Python<'a>,
        slices: &mut [IoSlice<'a>; MAX_SLICES],
        queue: &'a VecDeque<Chunk>,
        pieces: &'a [Payload<'_, '_>],
        mut start: usize,
    ) -> usize {
        let mut count = 0;
        for (slot, chunk) in slices.iter_mut().zip(queue) {
            *slot = IoSlice::new(&chunk.bytes.as_bytes(py)[chunk.start..]);
            self.queued += slot.len();
            count += 1;
        }
        self.offered = self.queued;
        self.more = count < queue.len();
        for piece in pieces {
            let bytes = piece.as_slice();
            if let Some(left) = bytes.get(start..).filter(|left| !left.is_empty()) {
                let Some(slot) = slices.get_mut(count).filter(|_| !self.more) else {
                    self.more = true;
                    break;
                };
                *slot = IoSlice::new(left);
                self.offered += left.len();
                count += 1;
            }
            start = start.saturating_sub(bytes.len());
        }
        count
    }

    /// Whether the socket may take more.
    fn goes_on(&self) -> bool {
        self.more && self.taken == self.offered
    }
}

/// What a closed connection leaves to be told or, outside of the cell, dropped.
struct Released<'py> {
    _protocol: Option<Bound<'py, PyAny>>,
    _flow: Option<Bound<'py, FlowCore>>,
    server: Option<Bound<'py, PyAny>>,
    view: Option<Bound<'py, PyAny>>,
    writable: Option<Bound<'py, PyAny>>,
    _queue: VecDeque<Chunk>,
}

/// Bytes that a protocol writes.
pub enum Payload<'a, 'py> {
    Immutable(&'a Bound<'py, PyBytes>),
    Mutable(Bytes),
}

impl<'a, 'py> Payload<'a, 'py> {
    pub fn of(data: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            return Ok(Self::Immutable(bytes));
        }
        if data.is_instance_of::<PyByteArray>() || data.is_instance_of::<PyMemoryView>() {
            return Ok(Self::Mutable(Bytes::readable(data)?));
        }
        Err(PyTypeError::new_err(format!(
            "data argument must be a bytes-like object, not {}",
            data.get_type().name()?.repr()?
        )))
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Immutable(bytes) => bytes.as_bytes(),
            Self::Mutable(bytes) => bytes.as_slice(),
        }
    }

    /// Bytes that keeping it copies.
    fn copied(&self) -> usize {
        match self {
            Self::Immutable(_) => 0,
            Self::Mutable(bytes) => bytes.len(),
        }
    }

    /// All of it, fit to outlive the call.
    pub fn kept(&self, py: Python<'_>) -> Py<PyBytes> {
        self.rest(py, 0).bytes
    }

    /// What is left from `start` on, fit to outlive the call.
    fn rest(&self, py: Python<'_>, start: usize) -> Chunk {
        match self {
            Self::Immutable(bytes) => Chunk {
                bytes: (*bytes).clone().unbind(),
                start,
            },
            Self::Mutable(bytes) => Chunk {
                bytes: PyBytes::new(py, &bytes.as_slice()[start..]).unbind(),
                start: 0,
            },
        }
    }
}

/// Ends a future's wait, unless it was cancelled meanwhile.
pub fn release_waiter(waiter: &Bound<'_, PyAny>, error: Option<PyErr>) -> PyResult<()> {
    let py = waiter.py();
    if waiter.call_method0(intern!(py, "done"))?.is_truthy()? {
        return Ok(());
    }
    match error {
        None => waiter.call_method1(intern!(py, "set_result"), (py.None(),))?,
        Some(error) => {
            waiter.call_method1(intern!(py, "set_exception"), (error.into_value(py),))?
        }
    };
    Ok(())
}

/// Whether a protocol brings its own receive buffers.
fn is_buffered(protocol: &Bound<'_, PyAny>) -> PyResult<bool> {
    static BUFFERED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = protocol.py();
    let class = BUFFERED.get_or_try_init(py, || {
        py.import("asyncio.protocols")?
            .getattr("BufferedProtocol")
            .map(Bound::unbind)
    })?;
    protocol.is_instance(class.bind(py))
}

#[pymethods]
impl StreamTransport {
    /// asyncio's loops look for this before they upgrade a connection.
    #[classattr]
    fn _start_tls_compatible() -> bool {
        true
    }

    #[new]
    #[pyo3(signature = (r#loop, protocol, extra = None, server = None))]
    fn new<'py>(
        r#loop: &Bound<'py, LoopCore>,
        protocol: &Bound<'py, PyAny>,
        extra: Option<&Bound<'py, PyDict>>,
        server: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let py = r#loop.py();
        streams::attach(protocol)?;
        Ok(Self {
            core: r#loop.clone().unbind(),
            context: call::copy_context(py)?.unbind(),
            extra: match extra {
                Some(extra) => extra.copy()?.unbind(),
                None => PyDict::new(py).unbind(),
            },
            connection: LoopCell::new(Connection {
                machine: Stream::default(),
                socket: None,
                key: None,
                intake: Intake::of(protocol)?,
                flow: streams::flow_of(protocol).map(Bound::unbind),
                room: Room::default(),
                protocol: Some(protocol.clone().unbind()),
                queue: VecDeque::new(),
                server: server.map(Bound::unbind),
                writable: None,
                lent: false,
                shown: false,
                view: None,
                local: None,
                peer: None,
            }),
        })
    }

    /// loop.sendfile() lets the kernel send the file, where it can.
    #[classattr]
    fn _sendfile_compatible(py: Python<'_>) -> PyResult<Py<PyAny>> {
        let modes = py.import("asyncio.constants")?.getattr("_SendfileMode")?;
        Ok(modes.getattr("TRY_NATIVE")?.unbind())
    }

    /// Refuse writes while somebody else sends on the descriptor, or take them again. Raises
    /// RuntimeError if they are refused already: two senders would get in between each other.
    fn _hold_writes(slf: &Bound<'_, Self>, held: bool) -> PyResult<()> {
        Self::release_held(slf)?;
        let before = slf.get().with(slf.py(), |connection| {
            std::mem::replace(&mut connection.lent, held)
        });
        match before && held {
            true => Err(PyRuntimeError::new_err("sendfile is in progress already")),
            false => Ok(()),
        }
    }

    /// Release a future once everything is sent and the socket takes more; ConnectionError if the
    /// connection ends before.
    fn _when_writable(slf: &Bound<'_, Self>, waiter: &Bound<'_, PyAny>) -> PyResult<()> {
        let before = slf.get().with(slf.py(), |connection| {
            connection.socket.as_ref()?;
            Some(connection.writable.replace(waiter.clone().unbind()))
        });
        if before.is_none() {
            let gone = PyConnectionError::new_err("Connection is closed by peer");
            return release_waiter(waiter, Some(gone));
        }
        drop(before);
        Self::update_interest(slf)
    }

    /// Whether the protocol was told pause_writing() and not yet resume_writing().
    #[getter]
    fn _protocol_paused(&self, py: Python<'_>) -> bool {
        self.with(py, |connection| connection.machine.is_write_paused())
    }

    /// asyncio's transports answer to this class (a Transport with flow control), and so do we.
    #[getter]
    fn __class__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let class = CLASS.get_or_try_init(py, || {
            py.import("asyncio.transports")?
                .getattr("_FlowControlMixin")
                .map(Bound::unbind)
        })?;
        Ok(class.bind(py).clone())
    }

    /// Start on a connected, non-blocking Python socket, which the transport closes in the end.
    #[pyo3(signature = (sock, waiter = None))]
    fn _adopt<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        waiter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        Self::start(slf, Owner::python(sock)?, waiter)
    }

    /// connection_made has run: read from now on, and release whoever waits for the connection.
    fn _begin(slf: &Bound<'_, Self>, waiter: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        state.with(py, |connection| connection.machine.start());
        Self::update_interest(slf)?;
        if waiter.is_none() {
            return Ok(());
        }
        release_waiter(waiter, None)
    }

    fn _call_connection_lost<'py>(
        slf: &Bound<'py, Self>,
        error: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let told = match state.protocol(py) {
            Some(protocol) => {
                call::method1(&protocol, intern!(py, "connection_lost"), error).map(drop)
            }
            None => Ok(()),
        };
        let released = state.release(py);
        let detached = match &released.server {
            Some(server) => state
                .core(py)
                .call_method1(intern!(py, "_detach_from_server"), (server, slf))
                .map(drop),
            None => Ok(()),
        };
        drop(released);
        told.and(detached)
    }

    #[pyo3(signature = (exc))]
    fn _force_close(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        let error = (!exc.is_none()).then(|| PyErr::from_value(exc.clone()));
        Self::force_close(slf, error)
    }

    /// Close the descriptor of a transport that nobody closed. True if there was one.
    fn _abandon(&self, py: Python<'_>) -> bool {
        let open = self.with(py, |connection| connection.socket.is_some());
        if open {
            drop(self.release(py));
        }
        open
    }

    /// The descriptor, for somebody who sends on it at once. Raises ConnectionError if the connection is
    /// gone, OSError (EBADF) if the application has closed the socket: the number may be another's.
    fn _sending_fd(&self, py: Python<'_>) -> PyResult<i64> {
        self.check_descriptor(py).map_err(os_error)?;
        let raw = self.with(py, |connection| {
            connection
                .socket
                .as_ref()
                .map(|owner| owner.socket().raw() as i64)
        });
        raw.ok_or_else(|| PyConnectionError::new_err("Connection is closed by peer"))
    }

    /// What repr() shows: descriptor, and the state of both directions.
    fn _describe(&self, py: Python<'_>) -> (Option<i64>, bool, bool, bool, usize) {
        self.with(py, |connection| {
            let machine = &connection.machine;
            (
                connection
                    .socket
                    .as_ref()
                    .map(|owner| owner.socket().raw() as i64),
                machine.is_closing(),
                machine.wants_read(),
                machine.wants_write(),
                machine.queued_bytes(),
            )
        })
    }

    #[getter]
    fn _loop<'py>(&self, py: Python<'py>) -> Bound<'py, LoopCore> {
        self.core(py).clone()
    }

    /// Information about the connection: 'socket', 'sockname', 'peername', and what the creator of
    /// the transport has added; default for anything else.
    #[pyo3(signature = (name, default = None))]
    fn get_extra_info<'py>(
        slf: &Bound<'py, Self>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if name == "socket" {
            // It may be shut down, or sent on.
            Self::release_held(slf)?;
        }
        Self::extra_info(slf, name).map(|found| found.or(default))
    }

    /// Replace the protocol; the new one gets what comes from now on.
    fn set_protocol(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let intake = Intake::of(protocol)?;
        // The old one is told how its own bytes fare.
        Self::release_held(slf)?;
        let flow = streams::flow_of(protocol).map(Bound::unbind);
        let old = slf.get().with(slf.py(), |connection| {
            connection.intake = intake;
            let flow = std::mem::replace(&mut connection.flow, flow);
            (connection.protocol.replace(protocol.clone().unbind()), flow)
        });
        drop(old);
        Ok(())
    }

    /// The current protocol; None once the connection is lost.
    fn get_protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol(py)
    }

    /// Whether the transport is closing or closed.
    pub fn is_closing(&self, py: Python<'_>) -> bool {
        self.with(py, |connection| connection.machine.is_closing())
    }

    /// Whether data is being received.
    fn is_reading(&self, py: Python<'_>) -> bool {
        self.with(py, |connection| connection.machine.is_reading())
    }

    /// Stop calling data_received() until resume_reading(). Does nothing if paused or closing.
    fn pause_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf
            .get()
            .with(slf.py(), |connection| connection.machine.pause_reading())
        {
            true => Self::update_interest(slf),
            false => Ok(()),
        }
    }

    /// Receive again. Does nothing if not paused, or closing.
    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf
            .get()
            .with(slf.py(), |connection| connection.machine.resume_reading())
        {
            true => Self::update_interest(slf),
            false => Ok(()),
        }
    }

    /// Write bytes. What a callback of the loop writes leaves when it returns, by one system call, or before once
    /// it is more than 64 KiB or the callback goes on writing for more than 50 us; other calls send at once. What
    /// the socket does not take is queued.
    ///
    /// data: bytes, bytearray or a contiguous memoryview; mutable data may be changed afterwards.
    /// Raises TypeError for anything else, RuntimeError after write_eof(). Never blocks; data for a
    /// connection that is lost is dropped.
    pub fn write<'py>(slf: &Bound<'py, Self>, data: &Bound<'py, PyAny>) -> PyResult<()> {
        Self::send(slf, &[Payload::of(data)?])
    }

    /// Write several pieces as one, without joining them.
    fn writelines<'py>(slf: &Bound<'py, Self>, list_of_data: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let items = match list_of_data.try_iter() {
            Ok(items) => items.collect::<PyResult<Vec<_>>>()?,
            Err(_) => Vec::new(),
        };
        if !items.is_empty()
            && let Ok(pieces) = items.iter().map(Payload::of).collect::<PyResult<Vec<_>>>()
        {
            return Self::send(slf, &pieces);
        }
        // Nothing, or what join() knows better or has the words for.
        let empty = PyBytes::new(py, b"");
        let joined = match items.is_empty() {
            true => empty.call_method1(intern!(py, "join"), (list_of_data,))?,
            false => empty.call_method1(intern!(py, "join"), (items,))?,
        };
        Self::send(slf, &[Payload::of(&joined)?])
    }

    /// Close the write side once what is queued is sent; receiving goes on.
    fn write_eof(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let released = Self::release_held(slf);
        let step = slf
            .get()
            .with(py, |connection| connection.machine.write_eof());
        if step == EofStep::ShutdownWrite {
            slf.get().shutdown_write(py);
        }
        released
    }

    /// True: a stream socket can be closed in one direction.
    fn can_write_eof(&self) -> bool {
        true
    }

    /// Bytes that wait to be sent.
    fn get_write_buffer_size(slf: &Bound<'_, Self>) -> PyResult<usize> {
        Self::release_held(slf)?;
        let state = slf.get();
        Ok(state.with(slf.py(), |connection| connection.machine.queued_bytes()))
    }

    /// The (low, high) water marks, bytes.
    fn get_write_buffer_limits(&self, py: Python<'_>) -> (usize, usize) {
        self.with(py, |connection| connection.machine.limits())
    }

    /// Set the water marks, bytes: above high the protocol is told pause_writing(), at or below low
    /// resume_writing(). Raises ValueError unless high >= low >= 0.
    #[pyo3(signature = (high = None, low = None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<i64>,
        low: Option<i64>,
    ) -> PyResult<()> {
        Self::release_held(slf)?;
        let signal = slf
            .get()
            .with(slf.py(), |connection| {
                connection.machine.set_limits(high, low)
            })
            .map_err(|limits| PyValueError::new_err(limits.to_string()))?;
        Self::tell(slf, signal)
    }

    /// Close once what is queued is sent; connection_lost(None) follows.
    #[pyo3(name = "close")]
    fn py_close(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::close(slf)
    }

    /// Close at once; what is queued is dropped and connection_lost(None) follows.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::force_close(slf, None)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.context)?;
        visit.call(&self.extra)?;
        let visited = self.connection.try_with(|connection| {
            visit.call(&connection.protocol)?;
            visit.call(&connection.flow)?;
            visit.call(&connection.server)?;
            visit.call(&connection.writable)?;
            for chunk in &connection.queue {
                visit.call(&chunk.bytes)?;
            }
            visit.call(connection.view.as_ref().map(View::socket))
        });
        visited.unwrap_or(Ok(()))
    }

    fn __clear__(&self) {
        Python::attach(|py| drop(self.release(py)));
    }
}
