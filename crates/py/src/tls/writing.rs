//! What goes out: from the application through the session to the transport below.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PySlice};

use super::{RECORD, TlsCore, is_again};
use crate::ffi::call;
use crate::transport::{Payload, StreamTransport};

impl TlsCore {
    /// Encrypts and sends what the application has written. False if asyncio's code has to do it, and nothing was
    /// taken.
    pub(super) fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<bool> {
        if !slf.get().with(slf.py(), |state| state.writes_plainly()) {
            return Ok(false);
        }
        // What has no contiguous bytes is refused in asyncio's words.
        let Ok(payload) = Payload::of(data) else {
            return Ok(false);
        };
        let written = Self::encrypt(slf, data, payload).and_then(|()| Self::process_outgoing(slf));
        match written {
            Ok(()) => Ok(true),
            Err(error) => Self::failed(slf, error).map(|()| true),
        }
    }

    /// Encrypts these. What the library does not take now waits, as in asyncio.
    fn encrypt(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        payload: Payload<'_, '_>,
    ) -> PyResult<()> {
        let py = slf.py();
        let core = slf.get();
        let len = payload.as_slice().len();
        let mut taken = match core.direct(py) {
            Some(direct) => direct.encrypt(py, payload.as_slice()),
            None => 0,
        };
        if taken == len {
            return Ok(());
        }
        let session = core.session(py);
        let write = intern!(py, "write");
        let rest = match taken == 0 && len <= RECORD {
            true => Rest::Whole(data),
            false => Rest::View(PyMemoryView::from(data)?),
        };
        while taken < len {
            let written = rest
                .at(taken, len)
                .and_then(|piece| call::method1(&session, write, &piece))
                .and_then(|count| count.extract::<usize>());
            match written {
                Ok(count) => taken += count.min(len - taken),
                Err(error) if is_again(py, &error)? => {
                    let left = PyBytes::new(py, &payload.as_slice()[taken..]);
                    slf.getattr(intern!(py, "_write_backlog"))?
                        .call_method1(intern!(py, "append"), (left,))?;
                    core.with(py, |state| state.backlog += (len - taken) as i64);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what is encrypted, unless the transport below takes no more; the application may be told to pause or
    /// to go on.
    pub(super) fn process_outgoing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let core = slf.get();
        let paused = core.with(py, |state| state.ssl_writing_paused);
        if !paused {
            let data = match core.direct(py) {
                Some(direct) => direct.drain(py)?,
                None => {
                    let outgoing = core.shown(py, |state| &state.outgoing).into_bound(py);
                    let data =
                        call::method0(&outgoing, intern!(py, "read"))?.cast_into::<PyBytes>()?;
                    (!data.as_bytes().is_empty()).then_some(data)
                }
            };
            if let Some(data) = data {
                core.send(&data)?;
            }
        }
        let asks = core.with(py, |state| {
            paused || state.backlog != 0 || state.app_writing_paused || state.heedful
        });
        match asks {
            true => call::method0(slf.as_any(), intern!(py, "_control_app_writing")).map(drop),
            false => Ok(()),
        }
    }

    fn send(&self, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let py = data.py();
        let transport = self.shown(py, |state| &state.transport).into_bound(py);
        match transport.cast::<StreamTransport>() {
            Ok(transport) => StreamTransport::send(transport, &[Payload::Immutable(data)]),
            Err(_) => call::method1(&transport, intern!(py, "write"), data.as_any()).map(drop),
        }
    }
}

/// What is left to be encrypted by Python's method, which takes a record at a time.
enum Rest<'a, 'py> {
    Whole(&'a Bound<'py, PyAny>),
    View(Bound<'py, PyMemoryView>),
}

impl<'py> Rest<'_, 'py> {
    fn at(&self, start: usize, len: usize) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Whole(data) if start == 0 => Ok((*data).clone()),
            Self::Whole(data) => slice(&PyMemoryView::from(data)?, start, len),
            Self::View(view) => slice(view, start, len),
        }
    }
}

/// At most a record of these bytes, without a copy.
fn slice<'py>(
    view: &Bound<'py, PyMemoryView>,
    start: usize,
    len: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let py = view.py();
    let end = len.min(start + RECORD);
    let bytes = view.call_method1(intern!(py, "cast"), (intern!(py, "B"),))?;
    bytes.get_item(PySlice::new(py, start as isize, end as isize, 1))
}
