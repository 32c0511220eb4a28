//! Methods of our classes that are called for every message, taken as the interpreter calls them.
//!
//! PyO3 sorts any arguments into parameters, which costs a third as much as what a write does. The usual call (by position,
//! no more than there are parameters) needs no sorting. So these functions stand in front of the methods that
//! PyO3 has made, with their words, and leave every other call to them: keywords, too few arguments, too many.

use std::ffi::CString;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{Borrowed, PyTypeInfo};

use super::methods::FastCall;
use super::{attached, guard};
use crate::datagram::DatagramTransport;
use crate::transport::StreamTransport;

/// The method that PyO3 has made, behind the one that stands in front of it.
struct Behind(PyOnceLock<Py<PyAny>>);

static WRITE: Behind = Behind(PyOnceLock::new());
static SENDTO: Behind = Behind(PyOnceLock::new());

/// Puts the methods in front.
pub fn install(py: Python<'_>) -> PyResult<()> {
    WRITE.install::<StreamTransport>(py, "write", write)?;
    SENDTO.install::<DatagramTransport>(py, "sendto", sendto)
}

impl Behind {
    fn install<T: PyTypeInfo>(
        &self,
        py: Python<'_>,
        name: &str,
        function: FastCall,
    ) -> PyResult<()> {
        let class = py.get_type::<T>();
        let behind = class
            .getattr(intern!(py, "__dict__"))?
            .get_item(name)?
            .unbind();
        let said = |attribute| -> PyResult<String> {
            let value = behind.bind(py).getattr(attribute)?;
            value
                .extract::<Option<String>>()
                .map(Option::unwrap_or_default)
        };
        // As the interpreter finds it in the words of a method: the signature, and what follows.
        let words = format!(
            "{name}{}\n--\n\n{}",
            said("__text_signature__")?,
            said("__doc__")?
        );
        // The class lives as long as the process, and its methods do.
        let definition = Box::leak(Box::new(ffi::PyMethodDef {
            ml_name: CString::new(name)?.into_raw(),
            ml_meth: ffi::PyMethodDefPointer {
                PyCFunctionFastWithKeywords: function,
            },
            ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
            ml_doc: CString::new(words)?.into_raw(),
        }));
        // SAFETY: the definition is never freed; the class is a live type.
        let descriptor = unsafe {
            Bound::from_owned_ptr_or_err(
                py,
                ffi::PyDescr_NewMethod(class.as_ptr().cast(), definition),
            )?
        };
        self.0.get_or_init(py, || behind);
        class.setattr(name, descriptor)
    }

    /// Any other call.
    ///
    /// # Safety
    ///
    /// The arguments are those of a METH_FASTCALL | METH_KEYWORDS call under way.
    #[cold]
    unsafe fn call(
        &self,
        this: *mut PyObject,
        array: *const *mut PyObject,
        count: Py_ssize_t,
        names: *mut PyObject,
    ) -> *mut PyObject {
        // SAFETY: `array` holds `count` arguments and then one for each of the names; all outlive the call.
        unsafe {
            guard(|py| {
                let behind = self.0.get(py).ok_or_else(|| {
                    PyRuntimeError::new_err("a bug in tideloop: no method behind")
                })?;
                let keywords = match names.is_null() {
                    true => 0,
                    false => ffi::PyTuple_GET_SIZE(names),
                };
                let mut arguments = vec![this];
                arguments.extend((0..count + keywords).map(|index| *array.offset(index)));
                let result = ffi::PyObject_Vectorcall(
                    behind.as_ptr(),
                    arguments.as_ptr(),
                    count as usize + 1,
                    names,
                );
                Bound::from_owned_ptr_or_err(py, result)
            })
        }
    }
}

/// A receiver or an argument of a call under way.
///
/// # Safety
///
/// It is of this class.
#[inline(always)]
unsafe fn borrowed<'a, 'py, T>(py: Python<'py>, object: *mut PyObject) -> Borrowed<'a, 'py, T> {
    // SAFETY: the caller of the method has a reference, and vouches for the class.
    unsafe { Borrowed::<PyAny>::from_ptr(py, object).cast_unchecked() }
}

/// `StreamTransport.write(data)`.
unsafe extern "C" fn write(
    this: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: the interpreter's call: there are `count` arguments, and the descriptor has checked the receiver's class.
    unsafe {
        if count != 1 || !names.is_null() {
            return WRITE.call(this, array, count, names);
        }
        guard(|py| {
            attached(py, |py| {
                let transport = borrowed::<StreamTransport>(py, this);
                StreamTransport::write(&transport, &borrowed::<PyAny>(py, *array))
            })?;
            Ok(py.None().into_bound(py))
        })
    }
}

/// `DatagramTransport.sendto(data, addr=None)`.
unsafe extern "C" fn sendto(
    this: *mut PyObject,
    array: *const *mut PyObject,
    count: Py_ssize_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: as above.
    unsafe {
        if !(1..=2).contains(&count) || !names.is_null() {
            return SENDTO.call(this, array, count, names);
        }
        guard(|py| {
            attached(py, |py| {
                let transport = borrowed::<DatagramTransport>(py, this);
                let data = borrowed::<PyAny>(py, *array);
                let address = match count {
                    2 => Some(borrowed::<PyAny>(py, *array.add(1))),
                    _ => None,
                };
                let address = address.as_deref().filter(|address| !address.is_none());
                DatagramTransport::sendto(&transport, &data, address)
            })?;
            Ok(py.None().into_bound(py))
        })
    }
}
