//! A listening socket: accepts connections and makes transports of them.
//!
//! One readiness event accepts at most `backlog` connections, so that a storm of them cannot hold the
//! loop. When the process is out of descriptors or memory the listener says so, stops for a second
//! and tries again, as asyncio does; connections wait in the kernel's queue meanwhile. It does the same
//! about every other error that would come again at once. One that concerned a single connection is
//! reported, and the next connection is accepted.

use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{PyTraverseError, PyVisit, intern};
use tideloop_core::registry::Key;
use tideloop_sys::selector::Interest;
use tideloop_sys::socket::{self, RawSource, Socket, would_block};

use crate::errors::{ends_the_loop, os_error};
use crate::event_loop::LoopCore;
use crate::ffi::cell::LoopCell;
use crate::ffi::owner::Owner;
use crate::ffi::{accept_on, call};
use crate::reactor::{Target, source_from};
use crate::transport::StreamTransport;

/// Accepts connections for a server.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct Listener {
    core: Py<LoopCore>,
    /// Kept so that the descriptor stays open as long as it is watched.
    sock: Py<PyAny>,
    source: RawSource,
    backlog: usize,
    factory: Py<PyAny>,
    transport: Py<PyAny>,
    server: Option<Py<PyAny>>,
    context: Py<PyAny>,
    key: LoopCell<Option<Key>>,
}

impl Listener {
    /// Readiness, from the turn.
    pub fn deliver(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        for _ in 0..state.backlog {
            // A callback of an earlier connection may have closed the server.
            if !state.is_listening(py) {
                return Ok(());
            }
            match accept_on(py, &state.sock, state.source) {
                Ok(socket) => Self::connect(slf, socket)?,
                Err(error)
                    if would_block(&error)
                        || error.kind() == std::io::ErrorKind::ConnectionAborted =>
                {
                    return Ok(());
                }
                Err(error) => {
                    let goes_on = socket::concerns_one_connection(&error);
                    let message = match socket::out_of_resources(&error) {
                        true => intern!(py, "socket.accept() out of system resource"),
                        false => intern!(py, "socket.accept() failed"),
                    };
                    if !goes_on {
                        Self::pause(slf, py)?;
                    }
                    state.core.bind(py).call_method1(
                        intern!(py, "_accept_failed"),
                        (
                            message,
                            os_error(error).into_value(py),
                            &state.sock,
                            (!goes_on).then_some(slf),
                        ),
                    )?;
                    if !goes_on {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn is_listening(&self, py: Python<'_>) -> bool {
        let key = self.key.with(py, |key| *key);
        key.is_some_and(|key| self.core.get().reactor().is_registered(py, key))
    }

    fn connect(slf: &Bound<'_, Self>, socket: Socket) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let made = call::in_context(state.context.bind(py), |py| {
            let protocol = state.factory.bind(py).call0()?;
            let transport = state.transport.bind(py).call1((
                &state.core,
                protocol,
                py.None(),
                state.server.as_ref().map(|server| server.clone_ref(py)),
            ))?;
            let transport = transport.cast_into::<StreamTransport>()?;
            // Before the connection starts: a factory may have closed the server, which then takes none.
            state.tell_server(py, intern!(py, "_attach_to_server"), &transport)?;
            let started = StreamTransport::start(&transport, Owner::native(socket), None);
            if started.is_err() {
                state.tell_server(py, intern!(py, "_detach_from_server"), &transport)?;
            }
            started
        });
        let core = state.core.bind(py);
        match made {
            Ok(()) => Ok(()),
            Err(error) if ends_the_loop(py, &error) => Err(error),
            Err(error) => core
                .call_method1(intern!(py, "_connection_refused"), (error.into_value(py),))
                .map(drop),
        }
    }

    fn tell_server(
        &self,
        py: Python<'_>,
        method: &Bound<'_, PyString>,
        transport: &Bound<'_, StreamTransport>,
    ) -> PyResult<()> {
        match &self.server {
            Some(server) => self
                .core
                .bind(py)
                .call_method1(method, (server, transport))
                .map(drop),
            None => Ok(()),
        }
    }

    fn pause(slf: &Bound<'_, Self>, py: Python<'_>) -> PyResult<()> {
        let key = slf.get().key.with(py, |key| *key);
        match key {
            Some(key) => slf
                .get()
                .core
                .get()
                .reactor()
                .set_interest(py, key, Interest::NONE),
            None => Ok(()),
        }
    }
}

#[pymethods]
impl Listener {
    #[new]
    #[pyo3(signature = (r#loop, sock, backlog, factory, transport, server = None))]
    fn new<'py>(
        r#loop: &Bound<'py, LoopCore>,
        sock: &Bound<'py, PyAny>,
        backlog: usize,
        factory: &Bound<'py, PyAny>,
        transport: &Bound<'py, PyAny>,
        server: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        Ok(Self {
            core: r#loop.clone().unbind(),
            source: source_from(sock)?,
            sock: sock.clone().unbind(),
            backlog: backlog.max(1),
            factory: factory.clone().unbind(),
            transport: transport.clone().unbind(),
            server: server.map(Bound::unbind),
            context: call::copy_context(r#loop.py())?.unbind(),
            key: LoopCell::new(None),
        })
    }

    /// Begin to accept.
    fn start(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let reactor = state.core.get().reactor();
        let key = reactor.register(py, state.source, Target::Listener(slf.clone().unbind()))?;
        state.key.with(py, |slot| *slot = Some(key));
        reactor.set_interest(py, key, Interest::READ)
    }

    /// Accept again after a pause. Does nothing if the server was closed meanwhile.
    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        let key = self.key.with(py, |key| *key);
        match key {
            Some(key) if !self.core.get().is_closed() => {
                self.core
                    .get()
                    .reactor()
                    .set_interest(py, key, Interest::READ)
            }
            _ => Ok(()),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.core)?;
        visit.call(&self.sock)?;
        visit.call(&self.factory)?;
        visit.call(&self.transport)?;
        visit.call(&self.server)?;
        visit.call(&self.context)
    }

    fn __clear__(&self) {}
}
