//! What comes into a reader: data, its end, an error.

use pyo3::exceptions::{PyAssertionError, PyNotImplementedError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use tideloop_core::inbox::Surplus;

use super::{Buffer, ReaderCore, is_diverted, known_core};
use crate::ffi::call;
use crate::ffi::function::{Method, Rest};
use crate::ffi::park;
use crate::ffi::piece::Piece;
use crate::primitives::event::truth;

/// What became of bytes that came.
enum Taken<'py> {
    /// The end had come before.
    Refused,
    Nothing,
    In {
        /// To be dropped.
        surplus: Surplus<Piece>,
        len: usize,
        limit: usize,
        waiter: Option<Py<PyAny>>,
    },
    /// They are to be put in this.
    Shown(Bound<'py, PyAny>),
}

fn after_eof() -> PyErr {
    PyAssertionError::new_err("feed_data after feed_eof")
}

impl ReaderCore {
    /// `feed_data(data)`.
    pub fn feed(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(bytes) = data.cast_exact::<PyBytes>() {
            return self.feed_bytes(bytes);
        }
        if self.state.with(data.py(), |state| state.eof) {
            return Err(after_eof());
        }
        match data.is_truthy()? {
            true => self.feed_bytes(&collected(data)?),
            false => Ok(()),
        }
    }

    /// `feed_data(data)`, for bytes.
    pub fn feed_bytes(&self, bytes: &Bound<'_, PyBytes>) -> PyResult<()> {
        let py = bytes.py();
        let taken = self.state.with(py, |state| {
            if state.eof {
                return Taken::Refused;
            }
            if bytes.as_bytes().is_empty() {
                return Taken::Nothing;
            }
            match &mut state.buffer {
                Buffer::Native(inbox) => Taken::In {
                    surplus: inbox.push(Piece::new(bytes.clone())),
                    len: inbox.len(),
                    limit: state.limit,
                    waiter: state.waiter.take(),
                },
                Buffer::Shown(buffer) => Taken::Shown(buffer.bind(py).clone()),
            }
        });
        match taken {
            Taken::Refused => Err(after_eof()),
            Taken::Nothing => Ok(()),
            Taken::In {
                surplus: [first, second],
                len,
                limit,
                waiter,
            } => {
                if let Some(piece) = first {
                    drop(piece.into_bound(py));
                }
                if let Some(piece) = second {
                    drop(piece.into_bound(py));
                }
                if let Some(waiter) = waiter {
                    park::resolve(&waiter.into_bound(py), &py.None().into_bound(py))?;
                }
                match len > limit.saturating_mul(2) {
                    true => self.pause_unless_paused(py),
                    false => Ok(()),
                }
            }
            Taken::Shown(buffer) => {
                call::method1(&buffer, intern!(py, "extend"), bytes)?;
                let len = buffer.len()?;
                self.wake(py)?;
                match len > self.limit(py).saturating_mul(2) {
                    true => self.pause_unless_paused(py),
                    false => Ok(()),
                }
            }
        }
    }

    /// More is unread than twice the limit.
    #[cold]
    fn pause_unless_paused(&self, py: Python<'_>) -> PyResult<()> {
        let transport = self.state.with(py, |state| {
            let transport = state.transport.as_ref().filter(|_| !state.paused)?;
            Some(transport.bind(py).clone())
        });
        transport.map_or(Ok(()), |transport| self.pause(&transport))
    }

    #[cold]
    fn pause(&self, transport: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = transport.py();
        match call::method0(transport, intern!(py, "pause_reading")) {
            Ok(_) => {
                self.state.with(py, |state| state.paused = true);
                Ok(())
            }
            // It cannot be paused: everything has to be buffered.
            Err(error) if error.is_instance_of::<PyNotImplementedError>(py) => {
                call::discard(py, error);
                self.put(py, None, |state| &mut state.transport);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Lets whoever waits look again.
    #[inline]
    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let Some(waiter) = self.state.with(py, |state| state.waiter.take()) else {
            return Ok(());
        };
        park::resolve(&waiter.into_bound(py), &py.None().into_bound(py)).map(drop)
    }

    /// `feed_eof()`.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        self.state.with(py, |state| state.eof = true);
        self.wake(py)
    }

    /// `set_exception(exc)`.
    fn fail(&self, exception: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = exception.py();
        self.put(
            py,
            (!exception.is_none()).then(|| exception.clone()),
            |state| &mut state.exception,
        );
        let Some(waiter) = self.state.with(py, |state| state.waiter.take()) else {
            return Ok(());
        };
        let waiter = waiter.into_bound(py);
        if park::is_cancelled(&waiter)? {
            return Ok(());
        }
        call::method1(&waiter, intern!(py, "set_exception"), exception).map(drop)
    }
}

/// What bytearray.extend() would append.
#[cold]
fn collected<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = data.py();
    let bytes = PyByteArray::new(py, &[]);
    call::method1(&bytes, intern!(py, "extend"), data)?;
    Ok(PyBytes::new(py, &bytes.to_vec()))
}

fn given<'py>(rest: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    rest.get(0)
        .ok_or_else(|| PyValueError::new_err("a bug in tideloop: an argument is missing"))
}

/// `StreamReader.feed_data(data)`.
pub struct FeedData;

impl Method for FeedData {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    fn call<'py>(reader: &Bound<'py, PyAny>, rest: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        known_core(reader)?.get().feed(&given(rest)?)?;
        Ok(reader.py().None().into_bound(reader.py()))
    }
}

/// `StreamReader.feed_eof()`.
pub struct FeedEof;

impl Method for FeedEof {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    fn call<'py>(reader: &Bound<'py, PyAny>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        known_core(reader)?.get().end(reader.py())?;
        Ok(reader.py().None().into_bound(reader.py()))
    }
}

/// `StreamReader.set_exception(exc)`.
pub struct SetException;

impl Method for SetException {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    fn call<'py>(reader: &Bound<'py, PyAny>, rest: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        known_core(reader)?.get().fail(&given(rest)?)?;
        Ok(reader.py().None().into_bound(reader.py()))
    }
}

/// `StreamReader.exception()`.
pub struct Exception;

impl Method for Exception {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    fn call<'py>(reader: &Bound<'py, PyAny>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = reader.py();
        let exception = known_core(reader)?
            .get()
            .shown(py, |state| &state.exception);
        Ok(exception.unwrap_or_else(|| py.None()).into_bound(py))
    }
}

/// `StreamReader.at_eof()`.
pub struct AtEof;

impl Method for AtEof {
    type Receiver = PyAny;

    fn diverted(reader: &Bound<'_, PyAny>) -> bool {
        is_diverted(reader)
    }

    fn call<'py>(reader: &Bound<'py, PyAny>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = reader.py();
        let core = known_core(reader)?;
        let ended = core.get().state.with(py, |state| state.eof) && core.get().len(py)? == 0;
        Ok(truth(py, ended))
    }
}

/// `StreamReaderProtocol.data_received(data)`, for transports that are not ours.
pub struct DataReceived;

impl Method for DataReceived {
    type Receiver = PyAny;

    fn diverted(_: &Bound<'_, PyAny>) -> bool {
        true
    }

    fn call<'py>(
        protocol: &Bound<'py, PyAny>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = protocol.py();
        let data = given(rest)?;
        let fed = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => super::fed(protocol, bytes),
            Err(_) => None,
        };
        match fed {
            Some(result) => result?,
            None => {
                let reader = protocol.getattr(intern!(py, "_stream_reader"))?;
                if !reader.is_none() {
                    call::method1(&reader, intern!(py, "feed_data"), &data)?;
                }
            }
        }
        Ok(py.None().into_bound(py))
    }
}
