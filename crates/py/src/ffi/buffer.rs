//! Bytes that belong to Python objects, for as long as a system call takes.

use std::io;
use std::mem::MaybeUninit;
use std::os::raw::c_int;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// The contiguous bytes of an object, held for reading or writing until dropped.
///
/// While it is held the exporter may not move or resize the memory. It is dropped with the GIL held,
/// since it does not leave the thread that made it.
pub struct Bytes {
    view: ffi::Py_buffer,
}

impl Bytes {
    /// The bytes of an object that has some; BufferError or TypeError as Python says it.
    pub fn readable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::acquire(object, ffi::PyBUF_SIMPLE)
    }

    /// The bytes of an object that lets itself be written to.
    pub fn writable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::acquire(object, ffi::PyBUF_WRITABLE)
    }

    fn acquire(object: &Bound<'_, PyAny>, flags: c_int) -> PyResult<Self> {
        let mut view = MaybeUninit::<ffi::Py_buffer>::uninit();
        // SAFETY: `view` is filled in by the call, or the call fails with an exception set.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), flags) } < 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self {
            // SAFETY: PyObject_GetBuffer has succeeded, so the view is initialised.
            view: unsafe { view.assume_init() },
        })
    }

    pub fn len(&self) -> usize {
        self.view.len as usize
    }

    pub fn as_slice(&self) -> &[u8] {
        if self.view.len == 0 {
            return &[];
        }
        // SAFETY: the view covers `len` contiguous bytes that stay in place while it is held. Other
        // code could change them only with the GIL, which this thread holds.
        unsafe { std::slice::from_raw_parts(self.view.buf.cast::<u8>(), self.len()) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.view.len == 0 || self.view.readonly != 0 {
            return &mut [];
        }
        // SAFETY: as above, and the view is writable.
        unsafe { std::slice::from_raw_parts_mut(self.view.buf.cast::<u8>(), self.len()) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: the view was acquired and is released once.
        unsafe { ffi::PyBuffer_Release(&mut self.view) };
    }
}

libpython! {
    fn _PyBytes_Resize(bytes: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> c_int;
}

/// The bytes that `fill` writes to the front of `room` bytes of memory, in an object of their size.
///
/// `fill` returns how many it has written. The outer error is MemoryError.
pub fn filled(
    py: Python<'_>,
    room: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
) -> PyResult<io::Result<Py<PyBytes>>> {
    // SAFETY: a new bytes object of `room` bytes, or null with MemoryError set. Nobody else knows it, so it may
    // be written to; what is left unwritten is cut off before anybody can read it. A failing resize has let go
    // of the object and set an exception.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(std::ptr::null(), room as ffi::Py_ssize_t);
        let object = Bound::from_owned_ptr_or_err(py, object)?;
        let start = ffi::PyBytes_AsString(object.as_ptr()).cast::<MaybeUninit<u8>>();
        let len = match fill(std::slice::from_raw_parts_mut(start, room)) {
            Ok(len) => len.min(room),
            Err(error) => return Ok(Err(error)),
        };
        let mut object = object.into_ptr();
        if len < room && _PyBytes_Resize(&mut object, len as ffi::Py_ssize_t) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(Ok(Bound::from_owned_ptr(py, object)
            .cast_into_unchecked()
            .unbind()))
    }
}
