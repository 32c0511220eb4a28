//! What comes in: from the transport below through the session to the application's protocol.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{RECORD, TlsCore, is_again, is_tls};
use crate::ffi::call;
use crate::ffi::openssl::Outcome;
use crate::streams;

/// What was decrypted, in pieces, and how it ended.
#[derive(Default)]
struct Decrypted<'py> {
    first: Option<Bound<'py, PyBytes>>,
    more: Vec<Bound<'py, PyBytes>>,
    /// The peer has said its farewell.
    ended: bool,
    failed: Option<PyErr>,
}

impl<'py> Decrypted<'py> {
    fn push(&mut self, piece: Bound<'py, PyBytes>) {
        match self.first {
            None => self.first = Some(piece),
            Some(_) => self.more.push(piece),
        }
    }

    /// All of it in one piece.
    fn take(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let first = self.first.take();
        match (first, self.more.is_empty()) {
            (Some(first), false) => {
                let mut pieces = vec![first];
                pieces.append(&mut self.more);
                let joined = PyBytes::new(py, b"").call_method1(intern!(py, "join"), (pieces,))?;
                Ok(Some(joined.cast_into()?))
            }
            (first, _) => Ok(first),
        }
    }
}

impl TlsCore {
    /// What the transport below has received.
    pub fn received(slf: &Bound<'_, Self>, bytes: &Bound<'_, PyBytes>) -> PyResult<()> {
        let py = slf.py();
        let core = slf.get();
        match core.direct(py) {
            Some(direct) => direct.feed(py, bytes.as_bytes())?,
            None => {
                let incoming = core.shown(py, |state| &state.incoming).into_bound(py);
                call::method1(&incoming, intern!(py, "write"), bytes.as_any())?;
            }
        }
        if !core.with(py, |state| state.reads_plainly()) {
            return call::method0(slf.as_any(), intern!(py, "_go_on")).map(drop);
        }
        match Self::read(slf, true).and_then(|()| Self::after_reading(slf)) {
            Ok(()) => Ok(()),
            Err(error) => Self::failed(slf, error),
        }
    }

    /// Decrypts all that has come and delivers it; errors are raised after that.
    ///
    /// `fresh`: something has just come, so that reading may end when all of it was taken. Otherwise it ends when
    /// the library says so, which is where it tells of an end of the stream.
    pub(super) fn read(slf: &Bound<'_, Self>, fresh: bool) -> PyResult<()> {
        let py = slf.py();
        let core = slf.get();
        let paused = core.with(py, |state| state.ssl_writing_paused);
        let before = if paused { core.unsent(py)? } else { 0 };
        let mut decrypted = Decrypted::default();
        match core.direct(py) {
            Some(direct) => loop {
                let (piece, outcome) = direct.decrypt(py)?;
                if !piece.as_bytes().is_empty() {
                    decrypted.push(piece);
                }
                match outcome {
                    Outcome::Full => {}
                    Outcome::Done if fresh || decrypted.first.is_none() => break,
                    Outcome::Done | Outcome::Unusual => {
                        core.read_by_method(py, false, &mut decrypted)?;
                        break;
                    }
                }
            },
            None => core.read_by_method(py, fresh, &mut decrypted)?,
        }
        if paused {
            let answered = core.unsent(py)?.saturating_sub(before);
            core.with(py, |state| state.answers += answered);
        }
        if let Some(data) = decrypted.take(py)? {
            core.deliver(&data)?;
        }
        if decrypted.ended || decrypted.failed.is_some() {
            let failed = decrypted.failed.map(|error| error.into_value(py));
            slf.call_method1(intern!(py, "_finish_read"), (decrypted.ended, failed))?;
        }
        Ok(())
    }

    /// The same by Python's methods.
    fn read_by_method<'py>(
        &self,
        py: Python<'py>,
        fresh: bool,
        decrypted: &mut Decrypted<'py>,
    ) -> PyResult<()> {
        let session = self.session(py);
        let incoming = self.shown(py, |state| &state.incoming).into_bound(py);
        // Never less than what is inside: bytes that are too long are cut, but ones that are too short cost a call.
        let mut room = match fresh {
            true => waiting(&incoming)?.clamp(1, RECORD),
            false => RECORD,
        };
        loop {
            let wanted = room.into_pyobject(py)?;
            match call::method1(&session, intern!(py, "read"), wanted.as_any()) {
                Ok(record) => {
                    let record = record.cast_into::<PyBytes>()?;
                    let len = record.as_bytes().len();
                    if len == 0 {
                        decrypted.ended = true;
                        return Ok(());
                    }
                    decrypted.push(record);
                    // Less than asked for is the end of a record, and nothing else has come.
                    if fresh && len < room && waiting(&incoming)? == 0 {
                        return Ok(());
                    }
                    room = RECORD;
                }
                Err(error) if is_again(py, &error)? => return Ok(()),
                Err(error) if is_tls(py, &error)? => {
                    decrypted.failed = Some(error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn deliver(&self, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let py = data.py();
        let protocol = self.shown(py, |state| &state.protocol).into_bound(py);
        streams::fed(&protocol, data).unwrap_or_else(|| {
            call::method1(&protocol, intern!(py, "data_received"), data.as_any()).map(drop)
        })
    }

    /// What asyncio does when it has read: answers go out, and reading may be paused.
    fn after_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let core = slf.get();
        match core.with(py, |state| state.backlog != 0) {
            true => call::method0(slf.as_any(), intern!(py, "_do_write")).map(drop)?,
            false => Self::process_outgoing(slf)?,
        }
        let (mut asks, direct) = core.with(py, |state| {
            let asks = state.ssl_reading_paused || state.answers > 0 || state.heedful;
            (asks, state.direct.clone())
        });
        asks = asks
            || match direct {
                Some(direct) => direct.waiting(py) > 0,
                None => waiting(core.shown(py, |state| &state.incoming).bind(py))? > 0,
            };
        match asks {
            true => call::method0(slf.as_any(), intern!(py, "_control_ssl_reading")).map(drop),
            false => Ok(()),
        }
    }

    /// Bytes that are encrypted and not sent.
    fn unsent(&self, py: Python<'_>) -> PyResult<usize> {
        waiting(self.shown(py, |state| &state.outgoing).bind(py))
    }
}

/// Bytes in a memory buffer.
fn waiting(buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
    buffer.getattr(intern!(buffer.py(), "pending"))?.extract()
}
