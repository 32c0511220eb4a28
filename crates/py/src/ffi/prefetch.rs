//! Memory that the loop is about to look at.
//!
//! Between two deliveries lies a system call or two, which leaves little of the nearest cache as it was, and with many
//! connections the next one is in none of them. Which one that is, the loop knows: it asks the processor to fetch it
//! while the present one is served.

use pyo3::Py;
use pyo3::ffi::PyObject;

/// Bytes that caches fetch at once, on what is asked here.
const LINE: usize = 64;

/// Has the processor fetch the line of memory around an address, if anything is there; a hint.
#[inline(always)]
pub fn line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: this is a hint to the processor, which does not mind what the address is.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
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
