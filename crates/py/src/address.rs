//! Addresses: the system's as Python's, and Python's as the system's where that needs no look-up.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use tideloop_sys::datagram::Name;
use tideloop_sys::socket::{Address, host_v6};

/// The families whose addresses we read ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Inet,
    Inet6,
    Unix,
}

/// An address as Python's sockets give it; None for a family that only they can tell.
pub fn to_python<'py>(py: Python<'py>, address: &Address) -> PyResult<Option<Bound<'py, PyAny>>> {
    Ok(Some(match address {
        Address::V4(address) => (address.ip().to_string(), address.port())
            .into_pyobject(py)?
            .into_any(),
        Address::V6(address) => (
            host_v6(address.ip()),
            address.port(),
            address.flowinfo(),
            address.scope_id(),
        )
            .into_pyobject(py)?
            .into_any(),
        Address::Unix(name) if name.first() == Some(&0) => PyBytes::new(py, name).into_any(),
        Address::Unix(path) => py
            .import(intern!(py, "os"))?
            .call_method1(intern!(py, "fsdecode"), (PyBytes::new(py, path),))?,
        Address::Other => return Ok(None),
    }))
}

/// A numeric address, or a plain path. None for all that a Python socket must judge: names to look up,
/// unusual types, errors.
pub fn from_python(family: Family, address: &Bound<'_, PyAny>) -> Option<Name> {
    let address = match family {
        Family::Unix => unix(address)?,
        Family::Inet => {
            let parts = address.cast_exact::<PyTuple>().ok()?;
            if parts.len() != 2 {
                return None;
            }
            let (host, port) = host_and_port::<Ipv4Addr>(parts)?;
            Address::V4(SocketAddrV4::new(host, port))
        }
        Family::Inet6 => {
            let parts = address.cast_exact::<PyTuple>().ok()?;
            if !(2..=4).contains(&parts.len()) {
                return None;
            }
            let (host, port) = host_and_port::<Ipv6Addr>(parts)?;
            let number = |index: usize| match parts.get_borrowed_item(index) {
                Ok(item) => item.extract::<u32>().ok(),
                Err(_) => Some(0),
            };
            let (flow, scope) = (number(2)?, number(3)?);
            if flow > 0xf_ffff {
                return None;
            }
            Address::V6(SocketAddrV6::new(host, port, flow, scope))
        }
    };
    Name::new(&address)
}

fn host_and_port<Ip: std::str::FromStr>(parts: &Bound<'_, PyTuple>) -> Option<(Ip, u16)> {
    let host = parts.get_borrowed_item(0).ok()?;
    let port = parts.get_borrowed_item(1).ok()?;
    let host = host.cast_exact::<PyString>().ok()?;
    Some((host.to_str().ok()?.parse().ok()?, port.extract().ok()?))
}

fn unix(path: &Bound<'_, PyAny>) -> Option<Address> {
    let bytes = match path.cast_exact::<PyBytes>() {
        Ok(bytes) => bytes.as_bytes(),
        // Other characters depend on the file system's encoding.
        Err(_) => {
            let text = path.cast_exact::<PyString>().ok()?.to_str().ok()?;
            text.is_ascii().then_some(text.as_bytes())?
        }
    };
    Some(Address::Unix(bytes.to_vec()))
}
