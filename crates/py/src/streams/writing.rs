//! The writer: `write` and `drain`.
//!
//! What a drain looks at lies in two objects. The [`FlowCore`] of a protocol knows whether it was told to
//! pause and whether its connection is lost, and, for what comes from there, its reader. The [`WriterCore`] of a writer knows its transport, its
//! protocol and its reader, and by them what is native in these; it is in the writer's slot `_core`.
//! asyncio's private names show them, as those of the reader do.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyAttributeError, PyConnectionResetError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::waiters::Ticket;

use super::{CLASSES, ReaderCore, core_of};
use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::piece::attributes;
use crate::ffi::shadows::Within;
use crate::transport::StreamTransport;

/// What a stream protocol was told of the other direction.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct FlowCore {
    paused: AtomicBool,
    lost: AtomicBool,
    /// The program has put something of its own in the place of this protocol's `data_received`.
    replaced: AtomicBool,
    fed: LoopCell<Fed>,
}

/// Who is fed by a protocol.
#[derive(Default)]
struct Fed {
    /// asyncio's weak reference to the reader.
    reference: Option<Py<PyAny>>,
    /// Another one to that reader's core, if it is one of ours, which lives as long as the reader.
    core: Option<Py<PyWeakrefReference>>,
}

impl FlowCore {
    fn is_free(&self) -> bool {
        !self.paused.load(Ordering::Relaxed) && !self.lost.load(Ordering::Relaxed)
    }

    /// Gives received bytes to the reader. Nothing: the program or asyncio's code is to be asked.
    #[inline]
    pub fn feed(&self, bytes: &Bound<'_, PyBytes>) -> Option<PyResult<()>> {
        if self.replaced.load(Ordering::Relaxed) {
            return None;
        }
        let py = bytes.py();
        // Taken in the cell: an upgrade runs nothing.
        let core = self
            .fed
            .with(py, |fed| Some(fed.core.as_ref()?.bind(py).upgrade()))?;
        let Some(core) = core else {
            // Its owner has dropped the reader.
            return Some(Ok(()));
        };
        let core = core.cast_exact::<ReaderCore>().ok()?.get();
        let asks = core
            .state
            .with(py, |state| state.diverted || state.replaced);
        (!asks).then(|| core.feed_bytes(bytes))
    }
}

#[pymethods]
impl FlowCore {
    #[new]
    fn new() -> Self {
        Self {
            paused: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            fed: LoopCell::default(),
        }
    }

    /// `data_received` of this protocol may be the program's.
    fn replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// asyncio's weak reference to the reader, or None.
    #[getter]
    fn reader(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.fed.with(py, |fed| {
            fed.reference
                .as_ref()
                .map(|reference| reference.clone_ref(py))
        })
    }

    #[setter]
    fn set_reader(&self, py: Python<'_>, reference: Option<Bound<'_, PyAny>>) {
        let reader = reference
            .as_ref()
            .and_then(|reference| reference.cast::<PyWeakrefReference>().ok()?.upgrade());
        let core = reader.and_then(|reader| core_of(&reader));
        let new = Fed {
            core: core.and_then(|core| Some(PyWeakrefReference::new(core.as_any()).ok()?.unbind())),
            reference: reference.map(Bound::unbind),
        };
        let old = self.fed.with(py, |fed| std::mem::replace(fed, new));
        drop(old);
    }

    #[getter]
    fn paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_paused(&self, paused: &Bound<'_, PyAny>) -> PyResult<()> {
        self.paused.store(paused.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter]
    fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_lost(&self, lost: &Bound<'_, PyAny>) -> PyResult<()> {
        self.lost.store(lost.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.fed.try_with(|fed| {
            visit.call(&fed.reference)?;
            visit.call(&fed.core)
        });
        visited.unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.fed.with(py, std::mem::take));
    }
}

#[derive(Default)]
struct Ends {
    transport: Option<Py<PyAny>>,
    protocol: Option<Py<PyAny>>,
    reader: Option<Py<PyAny>>,
    /// What is native in them.
    native: Option<Py<StreamTransport>>,
    flow: Option<Py<FlowCore>>,
    unread: Option<Py<ReaderCore>>,
}

/// What a stream writer consists of.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct WriterCore {
    ends: LoopCell<Ends>,
}

impl WriterCore {
    fn get(
        &self,
        py: Python<'_>,
        field: impl FnOnce(&Ends) -> &Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        self.ends
            .with(py, |ends| {
                field(ends).as_ref().map(|value| value.clone_ref(py))
            })
            .ok_or_else(|| PyAttributeError::new_err("the stream writer has no such end yet"))
    }
}

#[pymethods]
impl WriterCore {
    #[new]
    fn new() -> Self {
        Self {
            ends: LoopCell::new(Ends::default()),
        }
    }

    #[getter]
    fn transport(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, |ends| &ends.transport)
    }

    #[setter]
    fn set_transport(&self, transport: Bound<'_, PyAny>) {
        let py = transport.py();
        let native = transport.cast::<StreamTransport>().ok().cloned();
        let new = (Some(transport.unbind()), native.map(Bound::unbind));
        let old = self.ends.with(py, |ends| {
            (
                std::mem::replace(&mut ends.transport, new.0),
                std::mem::replace(&mut ends.native, new.1),
            )
        });
        drop(old);
    }

    #[getter]
    fn protocol(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, |ends| &ends.protocol)
    }

    #[setter]
    fn set_protocol(&self, protocol: Bound<'_, PyAny>) {
        let py = protocol.py();
        let flow = flow_of(&protocol);
        let new = (Some(protocol.unbind()), flow.map(Bound::unbind));
        let old = self.ends.with(py, |ends| {
            (
                std::mem::replace(&mut ends.protocol, new.0),
                std::mem::replace(&mut ends.flow, new.1),
            )
        });
        drop(old);
    }

    #[getter]
    fn reader(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, |ends| &ends.reader)
    }

    #[setter]
    fn set_reader(&self, reader: Bound<'_, PyAny>) {
        let py = reader.py();
        let unread = core_of(&reader);
        let new = (Some(reader.unbind()), unread.map(Bound::unbind));
        let old = self.ends.with(py, |ends| {
            (
                std::mem::replace(&mut ends.reader, new.0),
                std::mem::replace(&mut ends.unread, new.1),
            )
        });
        drop(old);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.ends.try_with(|ends| {
            visit.call(&ends.transport)?;
            visit.call(&ends.protocol)?;
            visit.call(&ends.reader)?;
            visit.call(&ends.native)?;
            visit.call(&ends.flow)?;
            visit.call(&ends.unread)
        });
        visited.unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.ends.with(py, std::mem::take));
    }
}

/// The core of a writer; nothing if it is another kind of object.
#[inline]
fn writer_core<'py>(writer: &Bound<'py, PyAny>) -> Option<Bound<'py, WriterCore>> {
    let slot = CLASSES.get(writer.py())?.writer.as_ref()?;
    let core = match slot.get(writer) {
        Some(core) => core,
        None => core_of_subclass(writer)?,
    };
    core.cast_into_exact::<WriterCore>().ok()
}

#[cold]
fn core_of_subclass<'py>(writer: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = writer.py();
    writer
        .getattr(intern!(py, "_core"))
        .map_err(|error| call::discard(py, error))
        .ok()
}

/// `StreamWriter.write(data)`.
pub struct Write;

impl Method for Write {
    type Receiver = PyAny;

    fn diverted(writer: &Bound<'_, PyAny>) -> bool {
        writer_core(writer).is_none()
    }

    fn call<'py>(writer: &Bound<'py, PyAny>, rest: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = writer.py();
        let data = rest
            .get(0)
            .ok_or_else(|| PyValueError::new_err("a bug in tideloop: nothing to write"))?;
        // A subclass may have another `_transport`.
        let exact = CLASSES
            .get(py)
            .and_then(|classes| classes.writer.as_ref()?.get(writer))
            .and_then(|core| core.cast_into_exact::<WriterCore>().ok());
        let transport = match exact {
            Some(core) => core.get().transport(py)?.into_bound(py),
            None => writer.getattr(intern!(py, "_transport"))?,
        };
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
#[inline]
pub fn is_ours(protocol: &Bound<'_, PyAny>) -> bool {
    CLASSES
        .get(protocol.py())
        .is_some_and(|classes| protocol.get_type_ptr() == classes.protocol.as_ptr().cast())
}

impl Coroutine for Drain {
    type Receiver = PyAny;

    // A protocol of another class may have another `_drain_helper`.
    const ASK_ALWAYS: bool = true;

    #[inline]
    fn diverted(writer: &Bound<'_, PyAny>) -> bool {
        let ours = writer_core(writer).map(|core| {
            core.get()
                .ends
                .with(writer.py(), |ends| ends.flow.is_some())
        });
        ours != Some(true)
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

    fn inside<'py>(
        writer: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        if frame.ticket().to_u64() == CLOSING {
            let delay = 0i32.into_pyobject(frame.py())?.into_any();
            return Ok(vec![Within::stock("sleep", &delay)]);
        }
        let protocol = writer.getattr(intern!(frame.py(), "_protocol"))?;
        let name = "FlowControlMixin._drain_helper";
        Ok(vec![Within::new("asyncio.streams", name, &protocol)])
    }
}

/// Whether there is nothing to wait for and nothing to raise; nothing if that is not so simple to say.
#[inline]
fn is_free(writer: &Bound<'_, PyAny>, py: Python<'_>) -> Option<bool> {
    let core = writer_core(writer)?;
    core.get().ends.with(py, |ends| {
        let unread = ends.unread.as_ref()?.get();
        let closing = ends.native.as_ref()?.get().is_closing(py);
        let failed = unread.state.with(py, |state| state.exception.is_some());
        Some(!failed && !closing && ends.flow.as_ref()?.get().is_free())
    })
}

/// What `_drain_helper` does until it waits.
fn wait_for<'py>(protocol: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> PyResult<Step<'py>> {
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

/// `StreamReaderProtocol._drain_helper()`, for writers that are asyncio's.
pub struct DrainHelper;

/// The core of a stream protocol of ours.
pub fn flow_of<'py>(protocol: &Bound<'py, PyAny>) -> Option<Bound<'py, FlowCore>> {
    if !is_ours(protocol) {
        return None;
    }
    let flow = attributes(protocol)?
        .get_item(intern!(protocol.py(), "_flow"))
        .ok()??;
    flow.cast_into::<FlowCore>().ok()
}

impl Coroutine for DrainHelper {
    type Receiver = PyAny;

    fn diverted(protocol: &Bound<'_, PyAny>) -> bool {
        !is_ours(protocol)
    }

    #[inline]
    fn at_once<'py>(protocol: &Bound<'py, PyAny>, _: &Frame<'_, 'py>) -> AtOnce<'py> {
        match flow_of(protocol) {
            Some(flow) if flow.get().is_free() => AtOnce::Finish,
            _ => AtOnce::No,
        }
    }

    fn advance<'py>(
        protocol: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match input {
            Input::Start => wait_for(protocol, frame),
            Input::Resumed => leave(protocol, frame).map(|()| Step::Finish),
            Input::Thrown(error) => {
                leave(protocol, frame)?;
                Err(error)
            }
        }
    }
}
