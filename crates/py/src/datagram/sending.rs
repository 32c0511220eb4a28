//! Sending: at once, together at the end of a batch, or as soon as the socket takes more.

use pyo3::exceptions::{PyBlockingIOError, PyInterruptedError, PyOSError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tideloop_core::datagram::{Drained, SendStep};
use tideloop_core::flow::Signal;
use tideloop_core::hold::Hold;
use tideloop_sys::datagram::{self, BATCH, Parcel};
use tideloop_sys::socket::{self, would_block};

use super::{DatagramTransport, Destination, Outgoing};
use crate::address;
use crate::errors::{ends_the_loop, os_error};
use crate::ffi::call;
use crate::transport::Payload;

/// Batches sent per event: an endpoint with much to send cannot keep the others waiting.
const FLUSH_BATCHES: usize = 8;

/// The largest datagram that is held back: what a call of its own costs is nothing beside a larger one.
const MAX_HELD: usize = 4096;

/// What came of sending one datagram.
enum Attempt {
    Sent,
    Later,
    /// This datagram failed.
    Failed(PyErr),
    /// It could never have been sent.
    Fatal(PyErr),
}

/// Datagrams that are held back while a batch is delivered, to leave by one system call.
///
/// A server answers a batch with a batch. One is held only while more of the batch is about to be delivered
/// and nothing is queued, so that the order stays, and no longer than [`tideloop_core::hold`] says and the callback
/// that is running. Whatever could tell that it has not left yet (close, abort, a datagram of another kind) lets it
/// go first.
#[derive(Default)]
pub struct Corked {
    /// A batch is being delivered.
    delivering: bool,
    held: Vec<Outgoing>,
    hold: Hold,
}

impl Corked {
    pub fn begin(&mut self) {
        self.delivering = true;
    }

    pub fn end(&mut self) {
        self.delivering = false;
    }

    /// Whether something is held and has been for too long.
    pub fn is_due(&self, now: impl FnOnce() -> u64) -> bool {
        self.hold.is_on() && self.hold.is_due(now())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Outgoing> {
        self.held.iter()
    }

    fn hold(&mut self, outgoing: Outgoing, now: impl FnOnce() -> u64) {
        if !self.hold.is_on() {
            self.hold.begin(now());
        }
        self.held.push(outgoing);
    }

    fn take(&mut self) -> Vec<Outgoing> {
        self.hold.end();
        std::mem::take(&mut self.held)
    }
}

/// What to do with a datagram.
enum Route {
    Step(SendStep),
    /// Hold it back; `last`: and let all go.
    Hold {
        last: bool,
    },
}

impl Outgoing {
    /// What the system takes; None if only a Python socket can send it.
    fn parcel<'a>(&'a self, py: Python<'a>) -> Option<Parcel<'a>> {
        let name = match &self.to {
            Destination::Peer => None,
            Destination::Name(name) => Some(name),
            Destination::Python(_) => return None,
        };
        Some((self.bytes.as_bytes(py), name))
    }
}

impl DatagramTransport {
    /// Sends a datagram that the protocol's owner has asked for. `data` is what `payload` was made of.
    pub(super) fn send(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        payload: &Payload<'_, '_>,
        addr: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let bytes = payload.as_slice();
        let to = this.destination(py, addr);
        let may_hold = bytes.len() <= MAX_HELD && !matches!(to, Destination::Python(_));
        let step = match this.route(py, may_hold) {
            Route::Hold { last } => {
                let bytes = payload.kept(py);
                let now = || this.core.get().held().now(py);
                this.with(py, |state| state.corked.hold(Outgoing { bytes, to }, now));
                return if last { Self::uncork(slf) } else { Ok(()) };
            }
            Route::Step(step) => {
                Self::uncork(slf)?;
                // What was held back may be queued now.
                match step {
                    SendStep::SendNow => this.with(py, |state| state.machine.send()),
                    other => other,
                }
            }
        };
        if let SendStep::Dropped { warn } = step {
            return this.warn_dropped(py, warn);
        }
        if matches!(step, SendStep::SendNow | SendStep::NowOrNever) {
            match this.attempt(py, data, bytes, &to) {
                Attempt::Sent => return Ok(()),
                Attempt::Later => {}
                Attempt::Failed(error) => return Self::error_received(slf, error),
                Attempt::Fatal(error) => {
                    let message = "Fatal write error on datagram transport";
                    return Self::fail(slf, error, message);
                }
            }
        }
        let bytes = payload.kept(py);
        Self::queue(slf, vec![Outgoing { bytes, to }])
    }

    fn route(&self, py: Python<'_>, may_hold: bool) -> Route {
        self.with(py, |state| {
            if state.socket.is_none() {
                return Route::Step(state.machine.drop_one());
            }
            let step = state.machine.send();
            if step != SendStep::SendNow || !may_hold || !state.corked.delivering {
                return Route::Step(step);
            }
            let held = state.corked.held.len();
            let more = state.machine.has_deliverable() && held + 1 < BATCH;
            match more || held > 0 {
                true => Route::Hold { last: !more },
                false => Route::Step(step),
            }
        })
    }

    /// Queues datagrams that cannot be sent now.
    fn queue(slf: &Bound<'_, Self>, datagrams: Vec<Outgoing>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let mut datagrams = datagrams.into_iter();
        let pause = this.with(py, |state| {
            let mut pause = Signal::Nothing;
            // Looking at an address may have run anything, even an abort(): then they are lost.
            while !state.machine.is_lost()
                && let Some(outgoing) = datagrams.next()
            {
                let len = outgoing.bytes.as_bytes(py).len();
                match state.machine.queue(outgoing, len) {
                    Signal::Nothing => {}
                    signal => pause = signal,
                }
            }
            pause
        });
        this.update_interest(py)?;
        Self::tell(slf, pause)
    }

    /// Sends what is held back.
    pub(super) fn uncork(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let mut held = this.with(py, |state| state.corked.take());
        if held.is_empty() {
            return Ok(());
        }
        let (done, errors) = this.send_held(py, &held);
        let rest = held.split_off(done);
        held.clear();
        // The room is used again, if no error's telling has filled another.
        this.with(py, |state| {
            if state.corked.held.is_empty() {
                std::mem::swap(&mut state.corked.held, &mut held);
            }
        });
        let mut told = match rest.is_empty() {
            true => Ok(()),
            false => Self::queue(slf, rest),
        };
        for error in errors {
            told = told.and(Self::tell_error(slf, os_error(error)));
        }
        told
    }

    /// How many of the datagrams need no further care: they went, or failed as the errors say.
    fn send_held(&self, py: Python<'_>, held: &[Outgoing]) -> (usize, Vec<std::io::Error>) {
        if self.check_owner(py).is_err() {
            let closed = held.iter().map(|_| socket::closed_underneath());
            return (held.len(), closed.collect());
        }
        let mut errors = Vec::new();
        let mut done = 0;
        self.with(py, |state| {
            let Some(owner) = &state.socket else {
                return;
            };
            let mut parcels: Vec<Parcel<'_>> = Vec::with_capacity(held.len());
            parcels.extend(held.iter().map_while(|outgoing| outgoing.parcel(py)));
            while done < parcels.len() {
                match datagram::send(owner.socket(), &parcels[done..]) {
                    Ok(sent) => done += sent,
                    Err(error) if would_block(&error) => return,
                    Err(error) => {
                        errors.push(error);
                        done += 1;
                    }
                }
            }
        });
        (done, errors)
    }

    fn destination(&self, py: Python<'_>, address: Option<&Bound<'_, PyAny>>) -> Destination {
        if self.connected {
            return Destination::Peer;
        }
        let Some(address) = address else {
            // Python's socket has the words for what is wrong with that.
            return Destination::Python(py.None());
        };
        let known = self.with(py, |state| state.origins.name_of(address));
        match known.or_else(|| address::from_python(self.family, address)) {
            Some(name) => Destination::Name(name),
            None => Destination::Python(address.clone().unbind()),
        }
    }

    /// Tries to send one datagram now. `object` is what `bytes` belong to.
    fn attempt(
        &self,
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        bytes: &[u8],
        to: &Destination,
    ) -> Attempt {
        if let Err(error) = self.check_owner(py) {
            return Attempt::Failed(os_error(error));
        }
        let name = match to {
            Destination::Peer => None,
            Destination::Name(name) => Some(name),
            Destination::Python(address) => {
                return self.attempt_in_python(py, object, address.bind(py));
            }
        };
        let sent = self.with(py, |state| {
            let owner = state.socket.as_ref()?;
            Some(datagram::send_one(owner.socket(), bytes, name))
        });
        match sent {
            Some(Ok(())) => Attempt::Sent,
            Some(Err(error)) if would_block(&error) => Attempt::Later,
            Some(Err(error)) => Attempt::Failed(os_error(error)),
            None => Attempt::Failed(os_error(socket::closed_underneath())),
        }
    }

    fn attempt_in_python(
        &self,
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        address: &Bound<'_, PyAny>,
    ) -> Attempt {
        let Some((sock, _)) = self.python_socket(py) else {
            return Attempt::Failed(os_error(socket::closed_underneath()));
        };
        match call::method(sock.bind(py), intern!(py, "sendto"), [object, address]) {
            Ok(_) => Attempt::Sent,
            Err(error)
                if error.is_instance_of::<PyBlockingIOError>(py)
                    || error.is_instance_of::<PyInterruptedError>(py) =>
            {
                Attempt::Later
            }
            Err(error) if error.is_instance_of::<PyOSError>(py) => Attempt::Failed(error),
            Err(error) => Attempt::Fatal(error),
        }
    }

    pub(super) fn on_writable(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let told = Self::flush(slf);
        let signal = this.with(py, |state| state.machine.relieved());
        let told = told.and_then(|()| Self::tell(slf, signal));
        let step = this.with(py, |state| state.machine.drained());
        this.update_interest(py)?;
        match step {
            Drained::Nothing => told,
            Drained::Finish => Self::schedule_lost(slf, None).and(told),
        }
    }

    /// Sends queued datagrams until the socket takes no more, or one fails.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        for _ in 0..FLUSH_BATCHES {
            if let Some((bytes, address)) = this.head_for_python(py) {
                let (bytes, address) = (bytes.into_bound(py), address.into_bound(py));
                match this.attempt_in_python(py, bytes.as_any(), &address) {
                    Attempt::Sent => this.forget(py, 1),
                    Attempt::Later => return Ok(()),
                    Attempt::Failed(error) => {
                        this.forget(py, 1);
                        return Self::tell_error(slf, error);
                    }
                    Attempt::Fatal(error) => {
                        let message = "Fatal write error on datagram transport";
                        return Self::fail(slf, error, message);
                    }
                }
                continue;
            }
            let (tried, sent) = this.with(py, |state| {
                let waiting = state.machine.waiting().take(BATCH);
                let parcels: Vec<Parcel<'_>> = waiting.map_while(|o| o.parcel(py)).collect();
                let sent = match &state.socket {
                    Some(owner) if !parcels.is_empty() => datagram::send(owner.socket(), &parcels),
                    _ => Ok(0),
                };
                (parcels.len(), sent)
            });
            match sent {
                Ok(sent) => {
                    this.forget(py, sent);
                    if sent < tried || tried == 0 {
                        return Ok(());
                    }
                }
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) => {
                    this.forget(py, 1);
                    return Self::tell_error(slf, os_error(error));
                }
            }
        }
        Ok(())
    }

    /// The first queued datagram, if only a Python socket can send it.
    fn head_for_python(&self, py: Python<'_>) -> Option<(Py<PyBytes>, Py<PyAny>)> {
        self.with(py, |state| match state.machine.waiting().next()? {
            Outgoing {
                bytes,
                to: Destination::Python(address),
            } => Some((bytes.clone_ref(py), address.clone_ref(py))),
            _ => None,
        })
    }

    /// Drops datagrams from the head of the queue.
    fn forget(&self, py: Python<'_>, count: usize) {
        drop(self.with(py, |state| state.machine.sent(count)));
    }

    /// Tells the protocol to pause or go on; it cannot fail the endpoint.
    pub(super) fn tell(slf: &Bound<'_, Self>, signal: Signal) -> PyResult<()> {
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

    fn warn_dropped(&self, py: Python<'_>, warn: bool) -> PyResult<()> {
        if warn {
            self.core(py)
                .call_method0(intern!(py, "_warn_dropped_write"))?;
        }
        Ok(())
    }
}
