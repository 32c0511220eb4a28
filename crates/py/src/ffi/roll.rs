//! The roll: which objects of the toolkit there are, for `tideloop.observe.gauges()`.
//!
//! **Two lists.** What is made natively has a [`Place`]: its address stands in the first list from [`Place::enlist`] on
//! until the place is dropped with the object. That costs a few instructions at either end, which is what a queue that is
//! made for each request can afford. What is made in Python joins the second one by a weak reference without a
//! callback ([`enlist`]); those of the dead are swept out whenever the list has doubled.
//!
//! **Why an address in the first list is that of an object.** The place is a field of it, so it leaves the list before the
//! memory is freed. Between the two the object may be about to die: then its count is 0, and it is passed over, as a
//! weak reference would be dead. A count above 0 is that of an object which lives, or which its own
//! finalizer may yet revive, which is what a new reference does.
//!
//! Both lists are touched with the GIL held, and nothing that runs meanwhile drops a Python object.

use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use super::cell::LoopCell;

/// Weak references that are kept before any is swept out.
const FEW: usize = 64;

const NOWHERE: u32 = u32::MAX;

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

/// Where an object stands in the roll: a field of it.
pub struct Place(AtomicU32);

impl Default for Place {
    fn default() -> Self {
        Self(AtomicU32::new(NOWHERE))
    }
}

impl Place {
    /// Enters the object that has this place. Once is enough.
    #[inline]
    pub fn enlist(&self, object: &Bound<'_, PyAny>) {
        if self.0.load(Ordering::Relaxed) != NOWHERE {
            return;
        }
        let pointer = object.as_ptr();
        let index = ROLL.with(object.py(), |roll| {
            if let Some(index) = roll.free.pop() {
                roll.native.0[index as usize] = pointer;
                return index;
            }
            match u32::try_from(roll.native.0.len()) {
                Ok(index) if index != NOWHERE => {
                    roll.native.0.push(pointer);
                    index
                }
                // Four thousand million of them: nobody reads that list.
                _ => NOWHERE,
            }
        });
        self.0.store(index, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let index = *self.0.get_mut();
        if index == NOWHERE {
            return;
        }
        // SAFETY: a place is a field of a Python object, and these are destroyed with the GIL held.
        let py = unsafe { Python::assume_attached() };
        ROLL.with(py, |roll| {
            roll.native.0[index as usize] = std::ptr::null_mut();
            roll.free.push(index);
        });
    }
}

/// Enter an object that `tideloop.observe.gauges()` is to ask, for as long as it lives.
#[pyfunction]
pub fn enlist(object: &Bound<'_, PyAny>) -> PyResult<()> {
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
