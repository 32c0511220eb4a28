//! The roll: which objects of the toolkit there are, for `tideloop.observe.gauges()`.
//!
//! **Two lists.** What is made natively has a [`Place`]: its address stands in the first list from [`Place::enlist`] on
//! until the place is dropped with the object. That costs a few instructions at either end, which is what a queue that is
//! made for each request can afford. What is made in Python and made often derives from [`Enlisted`](self), a raw type that has
//! nothing but such a place. Anything else joins the second list by a weak reference without a
//! callback ([`enlist`]); those of the dead are swept out whenever the list has doubled.
//!
//! **Why an address in the first list is that of an object.** The place is a field of it, so it leaves the list before the
//! memory is freed. Between the two the object may be about to die: then its count is 0, and it is passed over, as a
//! weak reference would be dead. A count above 0 is that of an object which lives, or which its own
//! finalizer may yet revive, which is what a new reference does.
//!
//! Both lists are touched with the GIL held, and nothing that runs meanwhile drops a Python object.

use std::os::raw::{c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyType, PyWeakrefMethods, PyWeakrefReference};

use super::cell::LoopCell;
use super::guard;

/// Weak references that are kept before any is swept out.
const FEW: usize = 64;

struct Native(Vec<*mut PyObject>);

// SAFETY: addresses, which are only followed with the GIL held.
unsafe impl Send for Native {}

struct Roll {
    native: Native,
    free: Vec<u32>,
    weak: Vec<Py<PyWeakrefReference>>,
    sweep_at: usize,
}

static ROLL: LoopCell<Roll> = LoopCell::new(Roll {
    native: Native(Vec::new()),
    free: Vec::new(),
    weak: Vec::new(),
    sweep_at: FEW,
});

/// Where an object stands in the roll, numbered from 1: a field of it. 0: nowhere.
#[derive(Default)]
pub struct Place(AtomicU32);

impl Place {
    /// Enters the object that has this place. Once is enough.
    #[inline]
    pub fn enlist(&self, object: &Bound<'_, PyAny>) {
        if self.0.load(Ordering::Relaxed) != 0 {
            return;
        }
        let pointer = object.as_ptr();
        let number = ROLL.with(object.py(), |roll| match roll.free.pop() {
            Some(number) => {
                roll.native.0[number as usize - 1] = pointer;
                number
            }
            // Four thousand million of them: nobody reads that list.
            None => match u32::try_from(roll.native.0.len() + 1) {
                Ok(number) => {
                    roll.native.0.push(pointer);
                    number
                }
                Err(_) => 0,
            },
        });
        self.0.store(number, Ordering::Relaxed);
    }
}

impl Drop for Place {
    #[inline]
    fn drop(&mut self) {
        let number = *self.0.get_mut();
        if number == 0 {
            return;
        }
        // SAFETY: a place is a field of a Python object, and these are destroyed with the GIL held.
        let py = unsafe { Python::assume_attached() };
        ROLL.with(py, |roll| {
            roll.native.0[number as usize - 1] = null_mut();
            roll.free.push(number);
        });
    }
}

/// An instance of `Enlisted`, whose memory is filled with zeros when it is made: a place that is nowhere.
#[repr(C)]
struct EnlistedObject {
    head: PyObject,
    place: Place,
}

/// The class, which is never destroyed; null: it has not been made.
static ENLISTED: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(null_mut());

/// Classes that are looked at for one that derives from it.
const DEPTH: usize = 8;

/// The place of an instance of a class that derives from `Enlisted`.
#[inline]
fn place_of<'a>(object: &'a Bound<'_, PyAny>) -> Option<&'a Place> {
    let wanted = ENLISTED.load(Ordering::Relaxed);
    // SAFETY: a live object, whose class has its bases; the one that is looked for says how the object begins.
    unsafe {
        let mut class = ffi::Py_TYPE(object.as_ptr());
        for _ in 0..DEPTH {
            if class.is_null() {
                return None;
            }
            if class == wanted {
                return Some(&(*object.as_ptr().cast::<EnlistedObject>()).place);
            }
            class = (*class).tp_base;
        }
        None
    }
}

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: the interpreter calls this once, when the last reference is gone and what a derived class has added was
    // let go of. The class of an object of a class on the heap is owned by it.
    unsafe {
        let class = ffi::Py_TYPE(object);
        std::ptr::drop_in_place(&raw mut (*object.cast::<EnlistedObject>()).place);
        if let Some(free) = (*class).tp_free {
            free(object.cast());
        }
        ffi::Py_DECREF(class.cast());
    }
}

/// `object.__getstate__`, which copies and pickles objects of any size if it is called by itself: the place is not copied.
unsafe extern "C" fn getstate(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter with a live object.
    unsafe {
        guard(|py| {
            let object = Bound::from_borrowed_ptr(py, object);
            py.get_type::<PyAny>()
                .call_method1(intern!(py, "__getstate__"), (object,))
        })
    }
}

struct Methods([ffi::PyMethodDef; 2]);

// SAFETY: definitions are constant; CPython only reads them.
unsafe impl Sync for Methods {}

static METHODS: Methods = Methods([
    ffi::PyMethodDef {
        ml_name: c"__getstate__".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: getstate,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: std::ptr::null(),
    },
    ffi::PyMethodDef::zeroed(),
]);

static FUNCTIONS: Methods = Methods([
    ffi::PyMethodDef {
        ml_name: c"enlist".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: enlist_function,
        },
        ml_flags: ffi::METH_O,
        ml_doc: c"enlist(object, /)\n--\n\nEnter an object that `tideloop.observe.gauges()` is to ask, for as long as it lives."
            .as_ptr(),
    },
    ffi::PyMethodDef::zeroed(),
]);

/// Adds the class and the function to the module.
pub fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let slot = |slot: c_int, pfunc: *mut c_void| ffi::PyType_Slot { slot, pfunc };
    let mut slots = [
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_methods, METHODS.0.as_ptr() as *mut c_void),
        slot(
            ffi::Py_tp_doc,
            c"What `enlist()` enters at little cost.".as_ptr() as *mut c_void,
        ),
        slot(0, null_mut()),
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"tideloop._tideloop.Enlisted".as_ptr().cast::<c_char>(),
        basicsize: size_of::<EnlistedObject>() as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_BASETYPE | ffi::Py_TPFLAGS_IMMUTABLETYPE)
            as u32,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec and what it points to outlive the call; name, docs and tables are static. The functions are a
    // table that ends.
    unsafe {
        let class = Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&mut spec))?
            .cast_into_unchecked::<PyType>();
        module.add("Enlisted", &class)?;
        ENLISTED.store(class.into_ptr().cast(), Ordering::Relaxed);
        let functions = FUNCTIONS.0.as_ptr().cast_mut();
        if ffi::PyModule_AddFunctions(module.as_ptr(), functions) != 0 {
            return Err(PyErr::fetch(py));
        }
        // Names it among those that the module exports, too.
        module.add("enlist", module.getattr("enlist")?)
    }
}

unsafe extern "C" fn enlist_function(_: *mut PyObject, object: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by the interpreter with a live object.
    unsafe {
        guard(|py| {
            enlist(&Bound::from_borrowed_ptr(py, object))?;
            Ok(py.None().into_bound(py))
        })
    }
}

#[inline]
fn enlist(object: &Bound<'_, PyAny>) -> PyResult<()> {
    match place_of(object) {
        Some(place) => {
            place.enlist(object);
            Ok(())
        }
        None => enlist_weakly(object),
    }
}

#[cold]
fn enlist_weakly(object: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = object.py();
    let weak = PyWeakrefReference::new(object)?.unbind();
    let crowd = ROLL.with(py, |roll| {
        roll.weak.push(weak);
        (roll.weak.len() >= roll.sweep_at).then(|| std::mem::take(&mut roll.weak))
    });
    if let Some(mut crowd) = crowd {
        crowd.retain(|weak| weak.bind(py).upgrade().is_some());
        ROLL.with(py, |roll| {
            // What has joined meanwhile comes behind.
            crowd.append(&mut roll.weak);
            roll.sweep_at = FEW.max(crowd.len() * 2);
            roll.weak = crowd;
        });
    }
    Ok(())
}

/// All objects that were entered and live, in no particular order.
#[pyfunction]
pub fn enlisted(py: Python<'_>) -> Vec<Bound<'_, PyAny>> {
    let (mut found, weak) = ROLL.with(py, |roll| {
        let native = roll.native.0.iter();
        let living = native.filter(|object| {
            // SAFETY: see the head: what is in the list is memory of an object.
            !object.is_null() && unsafe { ffi::Py_REFCNT(**object) } > 0
        });
        // SAFETY: as above, of an object that lives.
        let found = living.map(|&object| unsafe { Bound::from_borrowed_ptr(py, object) });
        let weak: Vec<_> = roll.weak.iter().map(|weak| weak.clone_ref(py)).collect();
        (found.collect::<Vec<_>>(), weak)
    });
    found.extend(weak.iter().filter_map(|weak| weak.bind(py).upgrade()));
    found
}
