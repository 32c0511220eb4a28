//! Bytes objects for what is received, filled again once nobody else knows them.
//!
//! A message of more than some 480 bytes is too large for Python's own allocator, and more than glibc keeps at hand
//! from about a KiB on: making and freeing its object costs as many instructions as all the rest that a loop does for
//! an echo. So a loop keeps a reference to the objects that it made last. When the next message comes and such an
//! object has no other reference, nobody can tell that it is the same one: it is given the new length and the new
//! bytes, and its hash is forgotten.
//!
//! **Why nobody sees it change.** Whoever reads a bytes object has a reference to it: a frame for its variables and
//! arguments, a memoryview or a buffer for what it exports, [`super::piece::Piece`] for what lies in an inbox, a
//! transport for what it still has to send. With one reference, ours, there is none of them. The count is looked at
//! with the GIL held, and nothing else runs until the bytes are in place. Where counts are divided among threads
//! (a build without the GIL) and where references are checked (`refcheck`), no object is used twice.
//!
//! **Which one.** The one that was used last, while it is free: it is in the processor's cache. If it is still in
//! use, the next of a ring of [`SLOTS`]; that one is replaced if it is in use as well. Where many messages come before
//! the first of them is let go of (a poll finds a hundred connections, and what it wakes runs behind it), the ring has
//! one for each, and once all are free it begins from the first one again: as few as are needed are in use.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::refcheck;

/// What is smaller comes from Python's own allocator, bytes.
const SMALLEST: usize = 480;

/// For what is larger the copy costs more than the allocation, bytes.
const LARGEST: usize = 16 * 1024;

/// So many objects are remembered at most: as many as one poll can find.
const SLOTS: usize = 256;

/// And so many bytes.
const MOST: usize = 1024 * 1024;

const REUSES: bool = !refcheck::ON && !cfg!(Py_GIL_DISABLED);

struct Slot {
    bytes: Py<PyBytes>,
    /// With what length it was made.
    room: usize,
}

/// The bytes objects that a loop has made last.
#[derive(Default)]
pub struct Recent {
    slots: Vec<Slot>,
    /// The one that was used last.
    last: usize,
    /// The room of all.
    room: usize,
}

/// Bytes, and an object that is remembered no more, to be dropped by the caller.
pub type Filled<'py> = (Bound<'py, PyBytes>, Option<Py<PyBytes>>);

impl Recent {
    /// An object with these bytes.
    #[inline]
    pub fn filled<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> Filled<'py> {
        if !REUSES || !(SMALLEST..=LARGEST).contains(&bytes.len()) {
            return (PyBytes::new(py, bytes), None);
        }
        if self.is_free(py, self.last) {
            if self.is_free(py, 0) {
                self.last = 0;
            }
            return self.refill(py, bytes);
        }
        let next = self.last + 1;
        if next < self.slots.len() {
            self.last = next;
        } else if self.slots.len() < SLOTS && self.room + bytes.len() <= MOST {
            let made = Slot::new(py, bytes);
            let object = made.bytes.bind(py).clone();
            self.last = self.slots.len();
            self.room += made.room;
            self.slots.push(made);
            return (object, None);
        } else {
            self.last = 0;
        }
        match self.is_free(py, self.last) {
            true => self.refill(py, bytes),
            false => self.replace(py, bytes),
        }
    }

    /// Whether nobody but us knows this one.
    #[inline]
    fn is_free(&self, py: Python<'_>, index: usize) -> bool {
        self.slots.get(index).is_some_and(|slot| slot.is_free(py))
    }

    /// Fills the free object that `last` says, or puts one in its place that fits.
    #[inline]
    fn refill<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> Filled<'py> {
        match self.slots.get(self.last) {
            Some(slot) if slot.fits(bytes.len()) => (slot.fill(py, bytes), None),
            _ => self.replace(py, bytes),
        }
    }

    /// Puts a new object in the place of the one that `last` says, unless all would be too large then.
    fn replace<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> Filled<'py> {
        let Some(slot) = self.slots.get_mut(self.last) else {
            return (PyBytes::new(py, bytes), None);
        };
        let room = self.room - slot.room + bytes.len();
        if room > MOST {
            return (PyBytes::new(py, bytes), None);
        }
        self.room = room;
        let made = Slot::new(py, bytes);
        let object = made.bytes.bind(py).clone();
        (object, Some(std::mem::replace(slot, made).bytes))
    }
}

impl Slot {
    fn new(py: Python<'_>, bytes: &[u8]) -> Self {
        Self {
            bytes: PyBytes::new(py, bytes).unbind(),
            room: bytes.len(),
        }
    }

    /// Whether nobody but us knows it.
    #[inline]
    fn is_free(&self, _py: Python<'_>) -> bool {
        // SAFETY: a live object, and the GIL is held.
        unsafe { ffi::Py_REFCNT(self.bytes.as_ptr()) == 1 }
    }

    /// Whether so many bytes fit, and do not waste more than a quarter of the room: whoever keeps them keeps it.
    #[inline]
    fn fits(&self, len: usize) -> bool {
        len <= self.room && self.room - len <= self.room / 4
    }

    /// Gives it these bytes. It is free, and they fit.
    #[inline]
    fn fill<'py>(&self, py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyBytes> {
        let object = self.bytes.as_ptr().cast::<ffi::PyBytesObject>();
        // SAFETY: an exact bytes object that was made with room for `room` bytes and the zero behind them, of which
        // there are at most as many here; nobody else has a reference to it, and the GIL is held.
        unsafe {
            let start = (&raw mut (*object).ob_sval).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
            *start.add(bytes.len()) = 0;
            (*object).ob_base.ob_size = bytes.len() as ffi::Py_ssize_t;
            #[allow(
                deprecated,
                reason = "the field of the hash is there as long as CPython caches it"
            )]
            {
                (*object).ob_shash = -1;
            }
        }
        self.bytes.bind(py).clone()
    }
}
