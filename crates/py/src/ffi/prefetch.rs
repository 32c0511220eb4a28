//! Memory that the loop is about to look at.
//!
//! Between two deliveries lies a system call or two, which leaves little of the nearest cache as it was, and with many
//! connections the next one is in none of them. Which one that is, the loop knows: it asks the processor to fetch it
//! while the present one is served.

use pyo3::Py;
use pyo3::ffi::PyObject;

/// Bytes that caches fetch at once, on what is asked here.
const LINE: usize = 64;

/// Has the processor fetch what is at an address, if anything is; a hint.
#[inline(always)]
fn line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program could notice, and no address is wrong for it.
        #[allow(unused_unsafe)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(address.cast())
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Has the processor fetch the beginning of a value.
#[inline(always)]
pub fn place<T>(value: &T) {
    line(std::ptr::from_ref(value).cast());
}

/// Has the processor fetch a Python object of a class of ours.
#[inline(always)]
pub fn object<T>(object: &Py<T>) {
    let start = object.as_ptr().cast::<u8>();
    for offset in (0..size_of::<PyObject>() + size_of::<T>()).step_by(LINE) {
        line(start.wrapping_add(offset));
    }
}
