//! Streams: the native half of `StreamReader`, `StreamReaderProtocol` and `StreamWriter`.
//!
//! asyncio's streams are three Python objects over a transport. `asyncio.open_connection` and
//! `asyncio.start_server` make the stock ones, by names in asyncio's own module, and we replace nothing
//! there. Instead the objects become ours where they meet a transport of ours: a protocol of exactly the
//! stock class, with a reader of exactly the stock class that has not been used yet, changes its class to
//! our subclass ([`attach`], `tideloop.loop.streams`), and so does its reader. From then on
//!
//! * the reader's state is a [`ReaderCore`], which its dictionary holds as `_core`. asyncio's private
//!   names (`_buffer`, `_eof`, `_waiter`, …) are properties that show it, so that asyncio's own code, and
//!   whoever looks there, sees what it knows. Whoever looks at `_buffer` gets the bytearray that would be
//!   there, and the bytes are in it from then on.
//! * the transport gives what it has received to that core, without a Python call ([`fed`]), and a read
//!   that finds enough there ends in its first step, without a future. It finds the core by the protocol's
//!   [`FlowCore`], which knows the reader, and which is told when a program puts something of its own in the place of
//!   `data_received` or `feed_data` on one object (`Replaceable` in `tideloop.loop.streams`).
//!
//! Subclasses of the stock classes keep asyncio's code: nobody knows which of its methods they override.
//!
//! **Who holds whom.** Reader to core, strongly; protocol to reader, weakly, as in asyncio. A reader that
//! its owner has dropped therefore takes its core along, and what arrives then is dropped as it is there.
//! The core holds the loop, the transport and at most one waiting future; it takes part in collection.
//!
//! **Re-entrancy.** The state is in a cell that is never held across a Python call. Feeding takes the
//! waiting future out, lets go of the cell, and ends the future then; a read looks at everything again
//! when it goes on.

pub mod feeding;
pub mod messages;
pub mod reading;
pub mod writing;

pub use self::writing::{FlowCore, flow_of, is_ours};

use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyType};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::inbox::{Inbox, Scan, Taken, scan};

use crate::ffi::buffer::Bytes;
use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::piece::{Piece, attributes};
use crate::ffi::slot::Slot;

/// Unread bytes.
enum Buffer {
    Native(Inbox<Piece>),
    /// In a bytearray that a program has got hold of, or in whatever it has put there.
    Shown(Py<PyAny>),
}

struct State {
    buffer: Buffer,
    limit: usize,
    eof: bool,
    /// The reader has told its transport to pause.
    paused: bool,
    /// asyncio's code serves this reader.
    diverted: bool,
    /// The program has put something of its own in the place of this reader's `feed_data`.
    replaced: bool,
    waiter: Option<Py<PyAny>>,
    exception: Option<Py<PyAny>>,
    transport: Option<Py<PyAny>>,
    event_loop: Option<Py<PyAny>>,
}

/// What a stream reader consists of.
#[pyclass(frozen, weakref, module = "tideloop._tideloop")]
pub struct ReaderCore {
    state: LoopCell<State>,
}

/// The core of a reader; nothing if it is another kind of object.
#[inline]
fn core_of<'py>(reader: &Bound<'py, PyAny>) -> Option<Bound<'py, ReaderCore>> {
    let core = attributes(reader)?
        .get_item(intern!(reader.py(), "_core"))
        .ok()??;
    core.cast_into_exact::<ReaderCore>().ok()
}

/// Whether asyncio's code is to serve what may not be a reader of ours.
fn is_diverted(reader: &Bound<'_, PyAny>) -> bool {
    core_of(reader).is_none_or(|core| core.get().state.with(reader.py(), |state| state.diverted))
}

fn known_core<'py>(reader: &Bound<'py, PyAny>) -> PyResult<Bound<'py, ReaderCore>> {
    core_of(reader).ok_or_else(|| {
        PyAttributeError::new_err("the stream reader has no state: its __init__() was not called")
    })
}

/// Where one look at the buffer leads.
enum Look<'py, T> {
    Native(T),
    Shown(Bound<'py, PyAny>),
}

impl ReaderCore {
    /// Runs `f` with the bytes, or hands over the object that they are in.
    fn look<'py, T>(
        &self,
        py: Python<'py>,
        f: impl FnOnce(&mut Inbox<Piece>) -> T,
    ) -> Look<'py, T> {
        self.state.with(py, |state| match &mut state.buffer {
            Buffer::Native(inbox) => Look::Native(f(inbox)),
            Buffer::Shown(buffer) => Look::Shown(buffer.bind(py).clone()),
        })
    }

    fn len(&self, py: Python<'_>) -> PyResult<usize> {
        match self.look(py, |inbox| inbox.len()) {
            Look::Native(len) => Ok(len),
            Look::Shown(buffer) => buffer.len(),
        }
    }

    /// Takes the first bytes, at most `count`.
    fn take<'py>(&self, py: Python<'py>, count: usize) -> PyResult<Bound<'py, PyAny>> {
        match self.look(py, |inbox| cut(py, inbox, count)) {
            Look::Native(taken) => Ok(whole(py, taken)),
            Look::Shown(buffer) => {
                let bytes = Bytes::readable(&buffer)?;
                let count = count.min(bytes.len());
                let taken = PyBytes::new(py, &bytes.as_slice()[..count]);
                // Released first: a bytearray whose bytes are being looked at cannot shrink.
                drop(bytes);
                remove(&buffer, count)?;
                Ok(taken.into_any())
            }
        }
    }

    /// Lets go of the first `count` bytes.
    fn skip(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        match self.look(py, |inbox| inbox.skip(count)) {
            Look::Native(surplus) => {
                drop(surplus.map(|piece| piece.into_bound(py)));
                Ok(())
            }
            Look::Shown(buffer) => remove(&buffer, count),
        }
    }

    /// Looks for a separator, within the limit.
    fn scan(&self, py: Python<'_>, separators: &[&[u8]], offset: usize) -> PyResult<Scan> {
        let (look, limit) = self.state.with(py, |state| {
            let look = match &state.buffer {
                Buffer::Native(inbox) => {
                    Look::Native(scan(inbox.as_slice(), separators, offset, state.limit))
                }
                Buffer::Shown(buffer) => Look::Shown(buffer.bind(py).clone()),
            };
            (look, state.limit)
        });
        match look {
            Look::Native(found) => Ok(found),
            Look::Shown(buffer) => {
                let bytes = Bytes::readable(&buffer)?;
                Ok(scan(bytes.as_slice(), separators, offset, limit))
            }
        }
    }

    /// Raises what set_exception() was given.
    #[inline]
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let exception = self.state.with(py, |state| {
            state
                .exception
                .as_ref()
                .map(|exception| exception.bind(py).clone())
        });
        exception.map_or(Ok(()), |exception| Err(PyErr::from_value(exception)))
    }

    /// Lets the transport go on once no more than the limit is left.
    #[inline]
    fn maybe_resume(&self, py: Python<'_>) -> PyResult<()> {
        let (paused, limit) = self.state.with(py, |state| (state.paused, state.limit));
        if paused && self.len(py)? <= limit {
            return self.resume(py);
        }
        Ok(())
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        let transport = self.state.with(py, |state| {
            state.paused = false;
            state
                .transport
                .as_ref()
                .map(|transport| transport.bind(py).clone())
        });
        match transport {
            Some(transport) => call::method0(&transport, intern!(py, "resume_reading")).map(drop),
            None => Err(PyAttributeError::new_err(
                "'NoneType' object has no attribute 'resume_reading'",
            )),
        }
    }
}

type Cut<'py> = Taken<Piece, Bound<'py, PyBytes>>;

/// Takes bytes out, inside of the cell.
#[inline]
fn cut<'py>(py: Python<'py>, inbox: &mut Inbox<Piece>, count: usize) -> Cut<'py> {
    inbox.take(count, |bytes| PyBytes::new(py, bytes))
}

/// What was taken out, as bytes.
#[inline]
fn whole<'py>(py: Python<'py>, taken: Cut<'py>) -> Bound<'py, PyAny> {
    match taken {
        Taken::Whole(piece) => piece.into_bound(py).into_any(),
        Taken::Part(bytes, surplus) => {
            drop(surplus.map(|piece| piece.into_bound(py)));
            bytes.into_any()
        }
    }
}

/// `del buffer[:count]`.
fn remove(buffer: &Bound<'_, PyAny>, count: usize) -> PyResult<()> {
    let count = isize::try_from(count).unwrap_or(isize::MAX);
    buffer.del_item(pyo3::types::PySlice::new(buffer.py(), 0, count, 1))
}

#[pymethods]
impl ReaderCore {
    #[new]
    fn new(event_loop: Bound<'_, PyAny>, limit: usize) -> Self {
        Self {
            state: LoopCell::new(State {
                buffer: Buffer::Native(Inbox::default()),
                limit,
                eof: false,
                paused: false,
                diverted: false,
                replaced: false,
                waiter: None,
                exception: None,
                transport: None,
                event_loop: Some(event_loop.unbind()),
            }),
        }
    }

    /// From now on asyncio's code serves this reader.
    fn divert(&self, py: Python<'_>) {
        self.state.with(py, |state| state.diverted = true);
    }

    /// `feed_data` of this reader may be the program's.
    fn replaced(&self, py: Python<'_>) {
        self.state.with(py, |state| state.replaced = true);
    }

    /// How many bytes are unread.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.len(py)
    }

    #[getter]
    fn buffer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let shown = PyByteArray::new(py, &[]).into_any();
        let (look, surplus) = self.state.with(py, |state| {
            let inbox = match &mut state.buffer {
                Buffer::Shown(buffer) => return (Look::Shown(buffer.bind(py).clone()), None),
                Buffer::Native(inbox) => std::mem::take(inbox),
            };
            state.buffer = Buffer::Shown(shown.clone().unbind());
            (Look::Native(()), Some(inbox))
        });
        if let Look::Shown(buffer) = look {
            return Ok(buffer);
        }
        if let Some(mut inbox) = surplus {
            let bytes = whole(py, cut(py, &mut inbox, usize::MAX));
            call::method1(&shown, intern!(py, "extend"), &bytes)?;
        }
        Ok(shown)
    }

    #[setter]
    fn set_buffer(&self, py: Python<'_>, buffer: Bound<'_, PyAny>) {
        let new = Buffer::Shown(buffer.unbind());
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.buffer, new));
        if let Buffer::Native(mut inbox) = old {
            drop(inbox.clear().map(|piece| piece.into_bound(py)));
        }
    }

    #[getter]
    fn limit(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.limit)
    }

    #[setter]
    fn set_limit(&self, py: Python<'_>, limit: &Bound<'_, PyAny>) -> PyResult<()> {
        let limit = limit.extract().map_err(|_| {
            let shown = limit
                .repr()
                .map_or_else(|_| "?".to_owned(), |repr| repr.to_string());
            PyTypeError::new_err(format!(
                "the limit of a stream reader is a number of bytes, not {shown}"
            ))
        })?;
        self.state.with(py, |state| state.limit = limit);
        Ok(())
    }

    #[getter]
    fn eof(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.eof)
    }

    #[setter]
    fn set_eof(&self, py: Python<'_>, eof: &Bound<'_, PyAny>) -> PyResult<()> {
        let eof = eof.is_truthy()?;
        self.state.with(py, |state| state.eof = eof);
        Ok(())
    }

    #[getter]
    fn paused(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.paused)
    }

    #[setter]
    fn set_paused(&self, py: Python<'_>, paused: &Bound<'_, PyAny>) -> PyResult<()> {
        let paused = paused.is_truthy()?;
        self.state.with(py, |state| state.paused = paused);
        Ok(())
    }

    #[getter]
    fn waiter(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.shown(py, |state| &state.waiter)
    }

    #[setter]
    fn set_waiter(&self, py: Python<'_>, waiter: Option<Bound<'_, PyAny>>) {
        self.put(py, waiter, |state| &mut state.waiter);
    }

    #[getter]
    fn exception(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.shown(py, |state| &state.exception)
    }

    #[setter]
    fn set_exception(&self, py: Python<'_>, exception: Option<Bound<'_, PyAny>>) {
        self.put(py, exception, |state| &mut state.exception);
    }

    #[getter]
    fn transport(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.shown(py, |state| &state.transport)
    }

    #[setter]
    fn set_transport(&self, py: Python<'_>, transport: Option<Bound<'_, PyAny>>) {
        self.put(py, transport, |state| &mut state.transport);
    }

    #[getter]
    fn event_loop(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.shown(py, |state| &state.event_loop)
    }

    #[setter]
    fn set_event_loop(&self, py: Python<'_>, event_loop: Option<Bound<'_, PyAny>>) {
        self.put(py, event_loop, |state| &mut state.event_loop);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.state.try_with(|state| {
            if let Buffer::Shown(buffer) = &state.buffer {
                visit.call(buffer)?;
            }
            visit.call(&state.waiter)?;
            visit.call(&state.exception)?;
            visit.call(&state.transport)?;
            visit.call(&state.event_loop)
        });
        visited.unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| {
            (
                state.waiter.take(),
                state.exception.take(),
                state.transport.take(),
                state.event_loop.take(),
                match &mut state.buffer {
                    Buffer::Shown(_) => Some(std::mem::replace(
                        &mut state.buffer,
                        Buffer::Native(Inbox::default()),
                    )),
                    Buffer::Native(_) => None,
                },
            )
        });
        drop(old);
    }
}

impl ReaderCore {
    fn shown(
        &self,
        py: Python<'_>,
        field: impl FnOnce(&State) -> &Option<Py<PyAny>>,
    ) -> Option<Py<PyAny>> {
        self.state.with(py, |state| {
            field(state).as_ref().map(|value| value.clone_ref(py))
        })
    }

    fn put(
        &self,
        py: Python<'_>,
        value: Option<Bound<'_, PyAny>>,
        field: impl FnOnce(&mut State) -> &mut Option<Py<PyAny>>,
    ) {
        let value = value.map(Bound::unbind);
        let old = self
            .state
            .with(py, |state| std::mem::replace(field(state), value));
        drop(old.map(|old| old.into_bound(py)));
    }
}

/// What is defined in Python.
struct Classes {
    stock_protocol: Py<PyType>,
    protocol: Py<PyType>,
    /// Where a writer of ours has its core.
    writer: Option<Slot>,
    attach: Py<PyAny>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

fn classes(py: Python<'_>) -> PyResult<&'static Classes> {
    CLASSES.get_or_try_init(py, || {
        let module = py.import("tideloop.loop.streams")?;
        let class = |name| -> PyResult<Py<PyType>> {
            Ok(module.getattr(name)?.cast_into::<PyType>()?.unbind())
        };
        Ok(Classes {
            stock_protocol: class("StockProtocol")?,
            protocol: class("StreamReaderProtocol")?,
            writer: Slot::of(class("StreamWriter")?.bind(py), "_core")?,
            attach: module.getattr("attach")?.unbind(),
        })
    })
}

/// Makes a stream protocol that is about to get a transport of ours, and its reader, ours.
pub fn attach(protocol: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = protocol.py();
    let classes = classes(py)?;
    if protocol.get_type_ptr() != classes.stock_protocol.as_ptr().cast() {
        return Ok(());
    }
    classes.attach.bind(py).call1((protocol,)).map(drop)
}

/// Gives received bytes to the reader of a stream protocol. Nothing: the protocol is another one, or its
/// reader is, and wants to be asked.
pub fn fed(protocol: &Bound<'_, PyAny>, bytes: &Bound<'_, PyBytes>) -> Option<PyResult<()>> {
    flow_of(protocol)?.get().feed(bytes)
}
