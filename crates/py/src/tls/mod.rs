//! TLS: the native half of `TlsProtocol` and of the transport that it gives to the application.
//!
//! The protocol is asyncio's `SSLProtocol`: its states, its handshake, its shutdown, its flow control. What is here is
//! the one path that every packet of an established connection takes, with nothing of all that in the way: encrypted
//! bytes come from the transport below and go into one of the session's memory buffers, what they decrypt to goes to
//! the application's protocol, and what it writes comes out of the other buffer and goes below. Whenever anything is out
//! of the ordinary ([`Plain`] says what is ordinary), asyncio's code runs instead, on the same state.
//!
//! * **One state.** asyncio's private names (`_state`, `_ssl_writing_paused`, …) are properties that show the fields of
//!   [`TlsCore`], so that both halves see what either of them has changed.
//! * **Two ways to OpenSSL**, by the same steps: Python's own methods (`read`, `write` of the session, `read`, `write` of
//!   its buffers), and OpenSSL's functions where [`crate::ffi::openssl`] can vouch for it. What is not a plain success
//!   or the plain lack of more goes through the former always, so that errors are Python's.
//! * **Re-entrancy.** The state is in a cell that is never held across a call. The application's protocol may do
//!   anything to the connection while it is told of data; what follows looks again.

mod reading;
pub mod transport;
mod writing;

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::openssl::{self, Session};

/// Bytes of data in the largest record of TLS.
const RECORD: usize = 16 * 1024;

/// What is said when a connection fails in the middle.
const FAILED: &str = "Fatal error on SSL protocol";

#[derive(Default)]
struct State {
    /// asyncio's state of the connection, and whether it is WRAPPED: established and not closing.
    state: Option<Py<PyAny>>,
    wrapped: bool,
    /// The `SSLObject`, what of it has the methods that are called, and its buffers.
    object: Option<Py<PyAny>>,
    session: Option<Py<PyAny>>,
    incoming: Option<Py<PyAny>>,
    outgoing: Option<Py<PyAny>>,
    /// The same for OpenSSL's own functions, if they are called.
    direct: Option<Arc<Session>>,
    /// The application's protocol, and whether it brings its own receive buffers.
    protocol: Option<Py<PyAny>>,
    buffered: bool,
    /// The transport below.
    transport: Option<Py<PyAny>>,
    /// Bytes that the application has written and that are not encrypted yet.
    backlog: i64,
    /// The application does not read.
    app_reading_paused: bool,
    /// The application was told not to write.
    app_writing_paused: bool,
    /// The transport below does not read, or takes no more.
    ssl_reading_paused: bool,
    ssl_writing_paused: bool,
    /// Bytes that the TLS library has answered by itself since the transport below takes no more.
    answers: usize,
    /// A mark of zero makes asyncio pause when nothing is buffered: its code decides after each step.
    heedful: bool,
}

impl State {
    /// Whether what comes can be decrypted and delivered without asking asyncio's code.
    fn reads_plainly(&self) -> bool {
        self.wrapped && !self.app_reading_paused && !self.buffered && self.protocol.is_some()
    }

    /// Whether what is written can be encrypted and sent without asking asyncio's code.
    fn writes_plainly(&self) -> bool {
        self.wrapped && !self.ssl_writing_paused && self.backlog == 0
    }
}

/// What one TLS connection consists of, as far as it is native.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct TlsCore {
    state: LoopCell<State>,
}

impl TlsCore {
    fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut State) -> R) -> R {
        self.state.with(py, f)
    }

    /// One of the objects, as Python sees it.
    fn shown(&self, py: Python<'_>, field: impl FnOnce(&State) -> &Option<Py<PyAny>>) -> Py<PyAny> {
        self.with(py, |state| {
            field(state).as_ref().map(|object| object.clone_ref(py))
        })
        .unwrap_or_else(|| py.None())
    }

    /// Puts an object in the place of another, which is let go of outside of the cell.
    fn put(
        &self,
        value: Bound<'_, PyAny>,
        field: impl FnOnce(&mut State) -> &mut Option<Py<PyAny>>,
    ) {
        let py = value.py();
        let value = (!value.is_none()).then(|| value.unbind());
        let before = self.with(py, |state| std::mem::replace(field(state), value));
        drop(before.map(|object| object.into_bound(py)));
    }

    /// OpenSSL's own functions, if they are called here.
    fn direct(&self, py: Python<'_>) -> Option<Arc<Session>> {
        self.with(py, |state| state.direct.clone())
    }

    fn session<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.shown(py, |state| &state.session).into_bound(py)
    }

    /// Ends the connection for an error, as asyncio does; what is no `Exception` goes on.
    fn failed(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        if !error.is_instance_of::<pyo3::exceptions::PyException>(py) {
            return Err(error);
        }
        let error = error.into_value(py).into_bound(py).into_any();
        let message = intern!(py, FAILED);
        call::method(
            slf.as_any(),
            intern!(py, "_fatal_error"),
            [&error, message.as_any()],
        )
        .map(drop)
    }
}

/// One of the names in asyncio.sslproto.
fn known<'py>(
    py: Python<'py>,
    cell: &'static PyOnceLock<Py<PyAny>>,
    find: impl FnOnce(&Bound<'py, PyModule>) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<&'py Bound<'py, PyAny>> {
    let found = cell.get_or_try_init(py, || {
        find(&py.import("asyncio.sslproto")?).map(Bound::unbind)
    })?;
    Ok(found.bind(py))
}

/// Whether an error says no more than that something has to come first.
fn is_again(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    static AGAIN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let again = known(py, &AGAIN, |module| module.getattr("SSLAgainErrors"))?;
    Ok(error.matches(py, again)?)
}

/// Whether an error is one of TLS.
fn is_tls(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    static ERROR: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = known(py, &ERROR, |module| {
        module.getattr("ssl")?.getattr("SSLError")
    })?;
    Ok(error.matches(py, class)?)
}

/// Why connections cannot be driven by OpenSSL's own functions in this process; None if they can.
#[pyfunction]
pub fn tls_not_direct(py: Python<'_>) -> PyResult<Option<String>> {
    openssl::why_not(py)
}

#[pymethods]
impl TlsCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            state: LoopCell::new(State::default()),
        }
    }

    /// Name what has the methods of the session, once it is known; and call OpenSSL's own functions from now on,
    /// if that is asked for and possible: the connection must be established. Whether they are called.
    fn _drive(&self, session: Bound<'_, PyAny>, directly: bool) -> PyResult<bool> {
        let py = session.py();
        let found = match directly {
            true => {
                let incoming = self.shown(py, |state| &state.incoming);
                let outgoing = self.shown(py, |state| &state.outgoing);
                Session::of(&session, incoming.bind(py), outgoing.bind(py))?
            }
            false => None,
        };
        let direct = found.is_some();
        self.put(session, |state| &mut state.session);
        self.put_direct(py, found);
        Ok(direct)
    }

    /// Call Python's methods from now on: the program is given the session.
    fn _drive_no_longer(&self, py: Python<'_>) {
        self.put_direct(py, None);
    }

    #[getter]
    fn _is_direct(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.direct.is_some())
    }

    #[getter(_state)]
    fn shown_state(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, |state| &state.state)
    }

    #[setter(_state)]
    fn put_state(&self, value: Bound<'_, PyAny>) -> PyResult<()> {
        static WRAPPED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = value.py();
        let wrapped = value.is(known(py, &WRAPPED, |module| {
            module.getattr("SSLProtocolState")?.getattr("WRAPPED")
        })?);
        self.put(value, |state| &mut state.state);
        self.with(py, |state| state.wrapped = wrapped);
        Ok(())
    }

    #[getter(_sslobj)]
    fn shown_object(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, |state| &state.object)
    }

    #[setter(_sslobj)]
    fn put_object(&self, value: Bound<'_, PyAny>) {
        let py = value.py();
        self.put_direct(py, None);
        self.put(value.clone(), |state| &mut state.session);
        self.put(value, |state| &mut state.object);
    }

    #[getter(_incoming)]
    fn shown_incoming(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, |state| &state.incoming)
    }

    #[setter(_incoming)]
    fn put_incoming(&self, value: Bound<'_, PyAny>) {
        self.put_direct(value.py(), None);
        self.put(value, |state| &mut state.incoming);
    }

    #[getter(_outgoing)]
    fn shown_outgoing(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, |state| &state.outgoing)
    }

    #[setter(_outgoing)]
    fn put_outgoing(&self, value: Bound<'_, PyAny>) {
        self.put_direct(value.py(), None);
        self.put(value, |state| &mut state.outgoing);
    }

    #[getter(_app_protocol)]
    fn shown_protocol(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, |state| &state.protocol)
    }

    #[setter(_app_protocol)]
    fn put_protocol(&self, value: Bound<'_, PyAny>) {
        self.put(value, |state| &mut state.protocol);
    }

    #[getter(_transport)]
    fn shown_transport(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, |state| &state.transport)
    }

    #[setter(_transport)]
    fn put_transport(&self, value: Bound<'_, PyAny>) {
        self.put(value, |state| &mut state.transport);
    }

    #[getter(_app_protocol_is_buffer)]
    fn is_buffered(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.buffered)
    }

    #[setter(_app_protocol_is_buffer)]
    fn put_buffered(&self, py: Python<'_>, value: bool) {
        self.with(py, |state| state.buffered = value);
    }

    #[getter(_write_buffer_size)]
    fn backlog(&self, py: Python<'_>) -> i64 {
        self.with(py, |state| state.backlog)
    }

    #[setter(_write_buffer_size)]
    fn put_backlog(&self, py: Python<'_>, value: i64) {
        self.with(py, |state| state.backlog = value);
    }

    #[getter(_app_reading_paused)]
    fn app_reading_paused(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.app_reading_paused)
    }

    #[setter(_app_reading_paused)]
    fn put_app_reading_paused(&self, py: Python<'_>, value: bool) {
        self.with(py, |state| state.app_reading_paused = value);
    }

    #[getter(_app_writing_paused)]
    fn app_writing_paused(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.app_writing_paused)
    }

    #[setter(_app_writing_paused)]
    fn put_app_writing_paused(&self, py: Python<'_>, value: bool) {
        self.with(py, |state| state.app_writing_paused = value);
    }

    #[getter(_ssl_reading_paused)]
    fn ssl_reading_paused(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.ssl_reading_paused)
    }

    #[setter(_ssl_reading_paused)]
    fn put_ssl_reading_paused(&self, py: Python<'_>, value: bool) {
        self.with(py, |state| state.ssl_reading_paused = value);
    }

    #[getter(_ssl_writing_paused)]
    fn ssl_writing_paused(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.ssl_writing_paused)
    }

    #[setter(_ssl_writing_paused)]
    fn put_ssl_writing_paused(&self, py: Python<'_>, value: bool) {
        self.with(py, |state| state.ssl_writing_paused = value);
    }

    #[getter(_answers)]
    fn answers(&self, py: Python<'_>) -> usize {
        self.with(py, |state| state.answers)
    }

    #[setter(_answers)]
    fn put_answers(&self, py: Python<'_>, value: usize) {
        self.with(py, |state| state.answers = value);
    }

    #[getter(_heedful)]
    fn is_heedful(&self, py: Python<'_>) -> bool {
        self.with(py, |state| state.heedful)
    }

    #[setter(_heedful)]
    fn put_heedful(&self, py: Python<'_>, value: bool) {
        self.with(py, |state| state.heedful = value);
    }

    /// asyncio's: decrypt all that has come and deliver it. What comes before an error is delivered before it is
    /// raised.
    #[pyo3(name = "_do_read__copied")]
    fn py_read(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::read(slf, false)
    }

    /// asyncio's: send what is encrypted, unless the transport below takes no more.
    #[pyo3(name = "_process_outgoing")]
    fn py_process_outgoing(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::process_outgoing(slf)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.state.try_with(|state| {
            for object in [
                &state.state,
                &state.object,
                &state.session,
                &state.incoming,
                &state.outgoing,
                &state.protocol,
                &state.transport,
            ] {
                visit.call(object)?;
            }
            for owner in state.direct.iter().flat_map(|direct| direct.owners()) {
                visit.call(owner)?;
            }
            Ok(())
        });
        visited.unwrap_or(Ok(()))
    }

    fn __clear__(&self) {
        Python::attach(|py| drop(self.with(py, std::mem::take)));
    }
}

impl TlsCore {
    fn put_direct(&self, py: Python<'_>, direct: Option<Session>) {
        let direct = direct.map(Arc::new);
        drop(self.with(py, |state| std::mem::replace(&mut state.direct, direct)));
    }
}
