//! The datagram transport: UDP and UNIX datagram sockets.
//!
//! A translator, like the stream transport: the state machine in `tideloop_core::datagram` decides, the
//! functions in `tideloop_sys::datagram` move datagrams, the protocol is told.
//!
//! * The Python socket that was handed to us stays the descriptor's owner, and is asked before each use.
//! * What waits is received in batches and delivered one by one. The protocol may do anything in
//!   between: when it pauses, the rest is held for later; when it closes, the rest is dropped, as the
//!   kernel would have dropped it; when it raises, the next one is delivered all the same.
//! * A datagram is sent at once if none is queued. Those that are sent while a batch is delivered leave
//!   together, after at most 50 µs and the callback that is running. Numeric addresses are read here; whatever else an
//!   address may be goes through the Python socket's own `sendto`, so that it means what it means there.
//! * Errors of single datagrams are told to the protocol (error_received) and end nothing.

mod origins;
mod receiving;
mod sending;

use std::io;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pyo3::{PyTraverseError, PyVisit, intern};
use tideloop_core::batch::Batch;
use tideloop_core::datagram::{CloseStep, Endpoint, Resumed};
use tideloop_core::registry::Key;
use tideloop_sys::datagram::Name;
use tideloop_sys::selector::{Event, Interest};
use tideloop_sys::socket::{Address, RawSource};

use self::origins::Origins;
use self::sending::Corked;
use crate::address::Family;
use crate::errors::{ends_the_loop, os_error};
use crate::event_loop::LoopCore;
use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::owner::{self, Owner, Owns};
use crate::reactor::Target;
use crate::transport::{Payload, release_waiter};

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;

/// Where a datagram goes.
enum Destination {
    /// To the peer that the socket is connected to.
    Peer,
    Name(Name),
    /// Wherever the Python socket says that this is.
    Python(Py<PyAny>),
}

struct Outgoing {
    bytes: Py<PyBytes>,
    to: Destination,
}

struct Incoming {
    bytes: Py<PyBytes>,
    from: Option<Address>,
}

struct State {
    machine: Endpoint<Outgoing, Incoming>,
    /// None before the transport has adopted its socket, and after it has closed it.
    socket: Option<Owner>,
    key: Option<Key>,
    protocol: Option<Py<PyAny>>,
    origins: Origins,
    corked: Corked,
    batch: Batch,
    /// Whether the socket was asked for.
    shown: bool,
}

impl Owns for State {
    /// The owner's, and that of what get_extra_info("socket") shows.
    const REFERENCES: isize = 2;

    fn owner(&mut self) -> (Option<&mut Owner>, bool) {
        (self.socket.as_mut(), self.shown)
    }
}

/// A datagram endpoint: the link between a protocol and a datagram socket.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct DatagramTransport {
    core: Py<LoopCore>,
    context: Py<PyAny>,
    extra: Py<PyDict>,
    family: Family,
    /// The only address that datagrams go to, if there is one.
    address: Option<Py<PyAny>>,
    /// The system knows the peer: datagrams carry no address.
    connected: bool,
    sends_empty: bool,
    state: LoopCell<State>,
}

impl DatagramTransport {
    #[inline]
    fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut State) -> R) -> R {
        self.state.with(py, f)
    }

    fn core<'py>(&self, py: Python<'py>) -> &Bound<'py, LoopCore> {
        self.core.bind(py)
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.with(py, |state| state.protocol.as_ref().map(|p| p.clone_ref(py)))
            .map(|protocol| protocol.into_bound(py))
    }

    /// Readiness, from the turn. As in asyncio the protocol hears of it after the callbacks that were
    /// scheduled before: they may be about to prepare for what has arrived. Where there are none it is its turn.
    pub fn deliver(slf: &Bound<'_, Self>, event: Event, alone: bool) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let core = this.core.get();
        if alone && !core.debug() {
            let told = call::in_context(this.context.bind(py), |_| {
                Self::on_ready(slf, event.readable, event.writable)
            });
            return match told {
                Err(error) if !ends_the_loop(py, &error) => {
                    Self::report(slf, error, "Exception in callback of a datagram transport")
                }
                told => told,
            };
        }
        let ready = slf.getattr(intern!(py, "_ready"))?;
        let flags = (u8::from(event.readable) * READABLE) | (u8::from(event.writable) * WRITABLE);
        let flags = flags.into_pyobject(py)?;
        let context = this.context.bind(py).clone();
        LoopCore::schedule(this.core(py), &ready, flags.as_any(), context)
    }

    fn on_ready(slf: &Bound<'_, Self>, readable: bool, writable: bool) -> PyResult<()> {
        let py = slf.py();
        if let Err(error) = slf.get().check_owner(py) {
            let message = "Fatal read error on datagram transport";
            return Self::fail(slf, os_error(error), message);
        }
        if readable {
            Self::on_readable(slf)?;
        }
        if writable {
            Self::on_writable(slf)?;
        }
        Ok(())
    }

    // --- the end --------------------------------------------------------------------------------

    /// Reports an error that ends the endpoint, and ends it.
    fn fail(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        let py = slf.py();
        if ends_the_loop(py, &error) {
            return Err(error);
        }
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
        let sent = Self::uncork(slf);
        let step = slf.get().with(slf.py(), |state| state.machine.abort());
        Self::after_close(slf, step, error).and(sent)
    }

    fn after_close(slf: &Bound<'_, Self>, step: CloseStep, error: Option<PyErr>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        drop(this.with(py, |state| state.machine.leftover()));
        this.update_interest(py)?;
        match step {
            CloseStep::Finish => Self::schedule_lost(slf, error),
            CloseStep::Nothing => Ok(()),
        }
    }

    fn schedule_lost(slf: &Bound<'_, Self>, error: Option<PyErr>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        if this.core.get().is_closed() {
            // Nothing will run any more; the descriptor must not stay open for that.
            this.release(py);
            return Ok(());
        }
        let error = match error {
            Some(error) => error.into_value(py).into_bound(py).into_any(),
            None => py.None().into_bound(py),
        };
        let lost = slf.getattr(intern!(py, "_call_connection_lost"))?;
        let context = this.context.bind(py).clone();
        LoopCore::schedule(this.core(py), &lost, &error, context)
    }

    /// Closes the descriptor and drops everything that the endpoint owned.
    fn release(&self, py: Python<'_>) {
        let (socket, key, owned) = self.with(py, |state| {
            // Without a socket the endpoint is lost, whatever it was before.
            let _already = state.machine.abort();
            let owned = (
                state.protocol.take(),
                state.machine.leftover(),
                std::mem::take(&mut state.origins),
                std::mem::take(&mut state.corked),
            );
            (state.socket.take(), state.key.take(), owned)
        });
        if let Some(key) = key {
            // Out of the selector first: the number may be another's as soon as it is closed.
            drop(self.core.get().reactor().unregister(py, key));
        }
        if let Some(owner) = socket {
            // A close that fails has closed nonetheless; there is nobody left to tell.
            owner.close(py).ok();
        }
        drop(owned);
    }

    // --- the descriptor -------------------------------------------------------------------------

    fn python_socket(&self, py: Python<'_>) -> Option<(Py<PyAny>, RawSource)> {
        self.with(py, |state| state.socket.as_ref()?.python_socket(py))
    }

    /// Fails if somebody has closed our descriptor: its number may be another socket's by now.
    #[inline]
    fn check_owner(&self, py: Python<'_>) -> io::Result<()> {
        owner::check(py, &self.state)
    }

    /// Brings the selector in line with what the machine wants.
    fn update_interest(&self, py: Python<'_>) -> PyResult<()> {
        let (key, interest) = self.with(py, |state| {
            let interest = Interest {
                read: state.machine.wants_read(),
                write: state.machine.wants_write(),
            };
            (state.key, interest)
        });
        match key {
            Some(key) if !self.core.get().is_closed() => {
                self.core.get().reactor().set_interest(py, key, interest)
            }
            _ => Ok(()),
        }
    }
}

#[pymethods]
impl DatagramTransport {
    #[new]
    #[pyo3(signature = (r#loop, protocol, extra, *, family, address, header, sends_empty))]
    fn new<'py>(
        r#loop: &Bound<'py, LoopCore>,
        protocol: &Bound<'py, PyAny>,
        extra: &Bound<'py, PyDict>,
        family: &str,
        address: Option<Bound<'py, PyAny>>,
        header: usize,
        sends_empty: bool,
    ) -> PyResult<Self> {
        let py = r#loop.py();
        let family = match family {
            "inet" => Family::Inet,
            "inet6" => Family::Inet6,
            "unix" => Family::Unix,
            other => {
                return Err(PyValueError::new_err(format!(
                    "family is {other:?}; expected 'inet', 'inet6' or 'unix'"
                )));
            }
        };
        let connected = match extra.get_item("peername")? {
            Some(peer) => peer.is_truthy()?,
            None => false,
        };
        // asyncio takes an empty address for none.
        let address = match address {
            Some(address) if address.is_truthy()? => Some(address.unbind()),
            _ => None,
        };
        Ok(Self {
            core: r#loop.clone().unbind(),
            context: call::copy_context(py)?.unbind(),
            extra: extra.copy()?.unbind(),
            family,
            connected,
            sends_empty,
            state: LoopCell::new(State {
                machine: Endpoint::new(address.is_some(), header),
                socket: None,
                key: None,
                protocol: Some(protocol.clone().unbind()),
                origins: Origins::default(),
                corked: Corked::default(),
                batch: Batch::default(),
                shown: false,
            }),
            address,
        })
    }

    /// Start on a non-blocking Python socket, which the transport closes in the end.
    #[pyo3(signature = (sock, waiter = None))]
    fn _adopt<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        waiter: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let core = this.core(py);
        if core.get().is_closed() {
            return Err(call::closed_error());
        }
        let owner = Owner::python(sock)?;
        let source = owner.socket().raw();
        // Looked up before anything is registered: a factory may have returned what is no protocol.
        let made = this
            .protocol(py)
            .map(|protocol| protocol.getattr(intern!(py, "connection_made")))
            .transpose()?;
        let begin = slf.getattr(intern!(py, "_begin"))?;
        let refused = this.with(py, |state| {
            if state.socket.is_some() || state.machine.is_closing() {
                return Some(owner);
            }
            state.socket = Some(owner);
            None
        });
        if refused.is_some() {
            return Err(PyRuntimeError::new_err(
                "the transport has a socket already",
            ));
        }
        let target = Target::Datagram(slf.clone().unbind());
        let key = core.get().reactor().register(py, source, target)?;
        this.with(py, |state| state.key = Some(key));
        let context = this.context.bind(py);
        if let Some(made) = made {
            LoopCore::schedule(core, &made, slf.as_any(), context.clone())?;
        }
        let none = py.None().into_bound(py);
        LoopCore::schedule(core, &begin, waiter.unwrap_or(&none), context.clone())
    }

    /// connection_made has run: receive from now on, and release whoever waits for the endpoint.
    fn _begin(slf: &Bound<'_, Self>, waiter: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        this.with(py, |state| state.machine.start());
        this.update_interest(py)?;
        if waiter.is_none() {
            return Ok(());
        }
        release_waiter(waiter, None)
    }

    /// The descriptor was found ready, for reading (1), writing (2) or both.
    fn _ready(slf: &Bound<'_, Self>, flags: u8) -> PyResult<()> {
        Self::on_ready(slf, flags & READABLE != 0, flags & WRITABLE != 0)
    }

    /// Deliver what was held back by a pause or an interruption.
    fn _deliver_held(slf: &Bound<'_, Self>, _unused: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::deliver_arrived(slf)
    }

    fn _call_connection_lost<'py>(
        slf: &Bound<'py, Self>,
        error: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let told = match this.protocol(py) {
            Some(protocol) => {
                call::method1(&protocol, intern!(py, "connection_lost"), error).map(drop)
            }
            None => Ok(()),
        };
        this.release(py);
        told
    }

    #[pyo3(signature = (exc))]
    fn _force_close(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        let error = (!exc.is_none()).then(|| PyErr::from_value(exc.clone()));
        Self::force_close(slf, error)
    }

    /// Close the descriptor of a transport that nobody closed. True if there was one.
    fn _abandon(&self, py: Python<'_>) -> bool {
        let open = self.with(py, |state| state.socket.is_some());
        if open {
            self.release(py);
        }
        open
    }

    /// What repr() shows: descriptor, and the state of both directions.
    fn _describe(&self, py: Python<'_>) -> (Option<i64>, bool, bool, bool, usize) {
        self.with(py, |state| {
            let machine = &state.machine;
            (
                state
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

    /// asyncio's name for the Python socket; None once it is closed.
    #[getter]
    fn _sock(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.with(py, |state| state.shown = true);
        self.python_socket(py).map(|(sock, _)| sock)
    }

    /// Whether the protocol was told pause_writing() and not yet resume_writing().
    #[getter]
    fn _protocol_paused(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.machine.is_write_paused())
    }

    /// Information about the endpoint: 'socket', 'sockname', 'peername'; default for anything else.
    #[pyo3(signature = (name, default = None))]
    fn get_extra_info<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if name == "socket" {
            self.with(py, |state| state.shown = true);
        }
        Ok(self.extra.bind(py).get_item(name)?.or(default))
    }

    /// Replace the protocol; the new one gets what comes from now on.
    fn set_protocol(&self, py: Python<'_>, protocol: &Bound<'_, PyAny>) {
        let old = self.with(py, |state| {
            state.protocol.replace(protocol.clone().unbind())
        });
        drop(old);
    }

    /// The current protocol; None once the endpoint is lost.
    fn get_protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol(py)
    }

    /// Whether the transport is closing or closed.
    fn is_closing(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.machine.is_closing())
    }

    /// Whether datagrams are being received.
    fn is_reading(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.machine.is_reading())
    }

    /// Stop calling datagram_received() until resume_reading(). Does nothing if paused or closing.
    fn pause_reading(&self, py: Python<'_>) -> PyResult<()> {
        if self.with(py, |state| state.machine.pause_reading()) {
            self.update_interest(py)?;
        }
        Ok(())
    }

    /// Receive again. Does nothing if not paused, or closing.
    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        match this.with(py, |state| state.machine.resume_reading()) {
            Resumed::Nothing => Ok(()),
            Resumed::Reading => this.update_interest(py),
            Resumed::Held if this.core.get().is_closed() => Ok(()),
            Resumed::Held => Self::schedule_held(slf),
        }
    }

    /// Send a datagram: at once if the socket takes it, else as soon as it does.
    ///
    /// data: bytes, bytearray or a contiguous memoryview; mutable data may be changed afterwards.
    /// addr: where to; None for an endpoint with a remote address. Raises TypeError for other data and
    /// ValueError for an address that is not the endpoint's own. Never blocks, except to look up a name
    /// that is no numeric address. Errors of the system are told to protocol.error_received().
    #[pyo3(signature = (data, addr = None))]
    pub fn sendto<'py>(
        slf: &Bound<'py, Self>,
        data: &Bound<'py, PyAny>,
        addr: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let payload = Payload::of(data)?;
        let bytes = payload.as_slice();
        if bytes.is_empty() && !this.sends_empty {
            return Ok(());
        }
        let addr = match &this.address {
            Some(fixed) => {
                let fixed = fixed.bind(py);
                if let Some(addr) = addr
                    && !addr.is(fixed)
                    && !addr.eq(fixed)?
                {
                    return Err(PyValueError::new_err(format!(
                        "Invalid address: must be None or {}",
                        fixed.str()?
                    )));
                }
                Some(fixed)
            }
            None => addr,
        };
        Self::send(slf, data, &payload, addr)
    }

    /// Bytes that wait to be sent, from Python 3.13 on with eight for each datagram's header.
    fn get_write_buffer_size(&self, py: Python<'_>) -> usize {
        self.with(py, |state| state.machine.queued_bytes())
    }

    /// The (low, high) water marks, bytes.
    fn get_write_buffer_limits(&self, py: Python<'_>) -> (usize, usize) {
        self.with(py, |state| state.machine.limits())
    }

    /// Set the water marks, bytes: above high the protocol is told pause_writing(), at or below low
    /// resume_writing(). Raises ValueError unless high >= low >= 0.
    #[pyo3(signature = (high = None, low = None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<i64>,
        low: Option<i64>,
    ) -> PyResult<()> {
        let signal = slf
            .get()
            .with(slf.py(), |state| state.machine.set_limits(high, low))
            .map_err(|limits| PyValueError::new_err(limits.to_string()))?;
        Self::tell(slf, signal)
    }

    /// Close once what is queued is sent; nothing more is received, connection_lost(None) follows.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let sent = Self::uncork(slf);
        let step = slf.get().with(slf.py(), |state| state.machine.close());
        Self::after_close(slf, step, None).and(sent)
    }

    /// Close at once; what is queued is dropped and connection_lost(None) follows.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::force_close(slf, None)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.context)?;
        visit.call(&self.extra)?;
        visit.call(&self.address)?;
        let visited = self.state.try_with(|state| {
            for outgoing in state.machine.waiting().chain(state.corked.iter()) {
                visit.call(&outgoing.bytes)?;
                if let Destination::Python(address) = &outgoing.to {
                    visit.call(address)?;
                }
            }
            visit.call(&state.protocol)
        });
        visited.unwrap_or(Ok(()))
    }

    fn __clear__(&self) {
        Python::attach(|py| self.release(py));
    }
}
