//! `__slots__` of Python classes, read where they are.
//!
//! A look-up in an object's dictionary costs as much as a short native method. What such a method looks at with each
//! call is therefore in a slot of the object's class, at an offset that the class's descriptor of it knows.

use std::ffi::c_int;

use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::prelude::*;
use pyo3::types::PyType;

/// `PyMemberDescrObject`, up to its last field.
#[repr(C)]
struct MemberDescriptor {
    head: PyObject,
    class: *mut ffi::PyTypeObject,
    name: *mut PyObject,
    qualname: *mut PyObject,
    member: *mut ffi::PyMemberDef,
}

/// A slot of one class.
pub struct Slot {
    class: Py<PyType>,
    offset: Py_ssize_t,
}

impl Slot {
    /// The slot of this name that the class itself has; None: it has none that holds an object.
    pub fn of(class: &Bound<'_, PyType>, name: &str) -> PyResult<Option<Self>> {
        const OBJECT: c_int = 16; // Py_T_OBJECT_EX
        let found = class
            .getattr(pyo3::intern!(class.py(), "__dict__"))?
            .get_item(name)?;
        // SAFETY: the type is compared before the object is read as what an instance of it is.
        let offset = unsafe {
            if ffi::Py_TYPE(found.as_ptr()) != &raw mut ffi::PyMemberDescr_Type {
                return Ok(None);
            }
            let descriptor = &*found.as_ptr().cast::<MemberDescriptor>();
            if descriptor.class != class.as_ptr().cast() || (*descriptor.member).type_code != OBJECT
            {
                return Ok(None);
            }
            (*descriptor.member).offset
        };
        Ok(Some(Self {
            class: class.clone().unbind(),
            offset,
        }))
    }

    /// What an object has in the slot, if it is of the very class and has anything there.
    #[inline]
    pub fn get<'py>(&self, object: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        if object.get_type_ptr() != self.class.as_ptr().cast() {
            return None;
        }
        // SAFETY: an instance of the class, which has a reference or null at this offset.
        unsafe {
            let place = object.as_ptr().byte_offset(self.offset);
            Bound::from_borrowed_ptr_or_opt(object.py(), *place.cast::<*mut PyObject>())
        }
    }
}
