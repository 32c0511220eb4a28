//! What comes into a reader: data, its end, an error.

use pyo3::exceptions::{PyAssertionError, PyNotImplementedError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};

use super::{Buffer, ReaderCore, is_diverted, known_core};
use crate::ffi::call;
use crate::ffi::function::{Method, Rest};
use crate::ffi::park;
use crate::ffi::piece::Piece;
use crate::primitives::event::truth;

impl ReaderCore {
    /// `feed_data(data)`.
    pub fn feed(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = data.py();
        if self.state.with(py, |state| state.eof) {
            return Err(PyAssertionError::new_err("feed_data after feed_eof"));
        }
        let bytes = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => bytes.clone(),
            Err(_) if !data.is_truthy()? => return Ok(()),
            Err(_) => collected(data)?,
        };
        if bytes.as_bytes().is_empty() {
            return Ok(());
        }
        let piece = Piece::new(bytes.clone());
        let (unused, surplus, len, shown) = self.state.with(py, |state| match &mut state.buffer {
            Buffer::Native(inbox) => {
                let surplus = inbox.push(piece);
                (None, surplus, inbox.len(), None)
            }
            Buffer::Shown(buffer) => (Some(piece), [None, None], 0, Some(buffer.bind(py).clone())),
        });
        for piece in surplus.into_iter().chain([unused]).flatten() {
            drop(piece.into_bound(py));
        }
        let len = match shown {
            None => len,
            Some(buffer) => {
                call::method1(&buffer, intern!(py, "extend"), &bytes)?;
                buffer.len()?
            }
        };
        self.wake(py)?;
        let transport = self.state.with(py, |state| {
            let full = !state.paused && len > state.limit.saturating_mul(2);
            let transport = state.transport.as_ref().filter(|_| full)?;
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
