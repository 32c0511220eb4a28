//! The transport that the application writes to: asyncio's, with native ways to write.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView, PyTuple};

use super::TlsCore;
use crate::ffi::call;
use crate::ffi::function::{Method, Rest};

/// The native half of the connection below an application's transport, if it is one of ours.
fn core<'py>(transport: &Bound<'py, PyAny>) -> Option<Bound<'py, TlsCore>> {
    let protocol = transport
        .getattr(intern!(transport.py(), "_ssl_protocol"))
        .ok()?;
    protocol.cast_into::<TlsCore>().ok()
}

/// Calls a method of asyncio's transport.
fn stock<'py>(
    cell: &'static PyOnceLock<Py<PyAny>>,
    name: &str,
    transport: &Bound<'py, PyAny>,
    argument: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let method = super::known(transport.py(), cell, |module| {
        module.getattr("_SSLProtocolTransport")?.getattr(name)
    })?;
    match argument {
        Some(argument) => method.call1((transport, argument)),
        None => method.call1((transport,)),
    }
}

/// `transport.write(data)`.
pub struct Write;

impl Method for Write {
    type Receiver = PyAny;

    fn call<'py>(
        transport: &Bound<'py, PyAny>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static WRITE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = transport.py();
        let data = rest.get(0);
        if let Some(data) = &data
            && (data.is_instance_of::<PyBytes>()
                || data.is_instance_of::<PyByteArray>()
                || data.is_instance_of::<PyMemoryView>())
            && let Some(core) = core(transport)
            && (!data.is_truthy()? || TlsCore::write(&core, data)?)
        {
            return Ok(py.None().into_bound(py));
        }
        stock(&WRITE, "write", transport, data.as_ref())
    }
}

/// `transport.writelines(list_of_data)`: the pieces are encrypted as one.
pub struct WriteLines;

impl Method for WriteLines {
    type Receiver = PyAny;

    fn call<'py>(
        transport: &Bound<'py, PyAny>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static WRITELINES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = transport.py();
        let pieces = rest.get(0);
        if let Some(pieces) = &pieces
            && (pieces.is_instance_of::<PyList>() || pieces.is_instance_of::<PyTuple>())
            && let Some(core) = core(transport)
        {
            let joined = PyBytes::new(py, b"").call_method1(intern!(py, "join"), (pieces,));
            match joined {
                Ok(joined) if joined.is_truthy()? => {
                    if TlsCore::write(&core, &joined)? {
                        return Ok(py.None().into_bound(py));
                    }
                }
                Ok(_) => {}
                // Said in asyncio's words.
                Err(error) => call::discard(py, error),
            }
        }
        stock(&WRITELINES, "writelines", transport, pieces.as_ref())
    }
}
