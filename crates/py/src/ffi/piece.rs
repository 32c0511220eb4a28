//! Bytes objects that are read without a token.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A reference to a bytes object, as something that has bytes.
///
/// It is given back as a `Bound` before it is dropped, since it may live outside of PyO3's calls.
#[derive(Debug)]
pub struct Piece(Py<PyBytes>);

impl Piece {
    pub fn new(bytes: Bound<'_, PyBytes>) -> Self {
        Self(bytes.unbind())
    }

    pub fn into_bound(self, py: Python<'_>) -> Bound<'_, PyBytes> {
        self.0.into_bound(py)
    }
}

impl AsRef<[u8]> for Piece {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: a bytes object that two know never changes ([`super::recent`] fills those that nobody else
        // knows), and it lives as long as this reference to it. Only its
        // memory is read, for which no token is needed.
        unsafe {
            let object = self.0.as_ptr();
            let start = pyo3::ffi::PyBytes_AsString(object).cast::<u8>();
            let len = pyo3::ffi::Py_SIZE(object) as usize;
            std::slice::from_raw_parts(start, len)
        }
    }
}

/// The dictionary of an object's own attributes, for objects of Python classes.
#[inline]
pub fn attributes<'py>(object: &Bound<'py, PyAny>) -> Option<Bound<'py, pyo3::types::PyDict>> {
    let py = object.py();
    // SAFETY: a live object; a new reference, or null with an exception set, which is cleared.
    unsafe {
        let dict = pyo3::ffi::PyObject_GenericGetDict(object.as_ptr(), std::ptr::null_mut());
        if dict.is_null() {
            pyo3::ffi::PyErr_Clear();
            return None;
        }
        Some(Bound::from_owned_ptr(py, dict).cast_into_unchecked())
    }
}
