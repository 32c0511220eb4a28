//! Rust's errors as Python's: the one conversion.

use std::io;

use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PySystemExit};
use pyo3::prelude::*;

/// An operating system error as the `OSError` that Python itself would raise: `errno` is set, and
/// the subclass (ConnectionResetError, …) follows from it.
pub fn os_error(error: io::Error) -> PyErr {
    match error.raw_os_error() {
        #[cfg(windows)]
        Some(code) => PyOSError::new_err((0, message(&error), Option::<String>::None, code)),
        #[cfg(not(windows))]
        Some(code) => PyOSError::new_err((code, message(&error))),
        None => PyOSError::new_err(error.to_string()),
    }
}

/// The system's words for an error, without the number that Rust appends.
fn message(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Whether an exception must leave the loop at once instead of going to the exception handler.
pub fn ends_the_loop(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py)
}
