//! CPython below PyO3: raw types, raw methods and the cell that guards the loop's state.
//!
//! Everything here rests on three facts.
//!
//! 1. **The GIL is held** wherever one of these functions runs. Raw slots and methods are only called
//!    by the interpreter, which holds it; the rest take a `Python<'_>` token. The module does not
//!    declare itself free-threading-safe, so importing it into a free-threaded build turns the GIL on.
//! 2. **A reference is owned by exactly one field or variable.** A field that is taken out is set to
//!    null before anything else can run; a reference is dropped only after the object it was taken
//!    from is consistent again, because dropping may run arbitrary code.
//! 3. **No unwinding leaves an `extern "C"` function.** [`guard`] turns a panic, which would be a bug
//!    of ours, into an exception instead of an abort.

#[macro_use]
mod libpython;

pub mod ahead;
pub mod buffer;
pub mod call;
pub mod cell;
pub mod classes;
pub mod current;
pub mod depth;
pub mod direct;
pub mod dumping;
pub mod entry;
pub mod frames;
pub mod function;
pub mod future;
pub mod handed;
pub mod handle;
pub mod hidden;
pub mod imprint;
pub mod layout;
pub mod methods;
pub mod native;
pub mod openssl;
pub mod operation;
pub mod origin;
pub mod owner;
pub mod park;
pub mod piece;
pub mod prefetch;
pub mod probe;
pub mod recent;
pub mod refcheck;
pub mod roll;
pub mod shadows;
pub mod site;
pub mod slot;
pub mod snapshot;
pub mod spare;
pub mod task;
pub mod told;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PySystemError;
use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use tideloop_sys::socket::{self, RawSource, Socket};

/// Accepts a connection on a Python socket that its caller keeps alive and has not closed.
pub fn accept_on(_py: Python<'_>, _sock: &Py<PyAny>, source: RawSource) -> io::Result<Socket> {
    // SAFETY: a Python socket closes its descriptor only when told to, which takes the GIL that we
    // hold. If it was told before, the system refuses the number (EBADF) or it names another open
    // descriptor of this process, on which accept fails or does nothing harmful to memory.
    unsafe { socket::accept(source) }
}

/// Receives on the descriptor that a Python socket has just told.
#[inline]
pub fn receive_on(_py: Python<'_>, source: RawSource, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: as in `accept_on`. A number that is not open is refused.
    unsafe { socket::recv_on(source, buffer) }
}

/// Sends on the descriptor that a Python socket has just told.
#[inline]
pub fn send_on(_py: Python<'_>, source: RawSource, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: as in `accept_on`. A number that is not open is refused.
    unsafe { socket::send_on(source, bytes) }
}

/// Runs the body of an `extern "C"` function that returns a new reference, or null with an exception
/// set.
///
/// # Safety
///
/// The GIL is held.
#[inline]
unsafe fn guard(
    body: impl for<'py> FnOnce(Python<'py>) -> PyResult<Bound<'py, PyAny>>,
) -> *mut PyObject {
    // SAFETY: the caller holds the GIL.
    let py = unsafe { Python::assume_attached() };
    match catch_unwind(AssertUnwindSafe(|| body(py))) {
        Ok(Ok(object)) => object.into_ptr(),
        Ok(Err(error)) => {
            error.restore(py);
            std::ptr::null_mut()
        }
        Err(_) => {
            PySystemError::new_err("a bug in tideloop: the native code panicked").restore(py);
            std::ptr::null_mut()
        }
    }
}

/// Runs the body with PyO3 told that the GIL is held: where it does not know, it postpones the drop of what an error
/// holds. While the interpreter ends it cannot be told, and need not be.
fn attached<R>(py: Python<'_>, body: impl FnOnce(Python<'_>) -> R) -> R {
    let mut body = Some(body);
    let done = Python::try_attach(|py| body.take().map(|body| body(py)));
    match (done.flatten(), body) {
        (Some(result), _) => result,
        (None, Some(body)) => body(py),
        (None, None) => unreachable!("a body that was taken has run"),
    }
}
