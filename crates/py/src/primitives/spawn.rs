//! `create_task(coro)`.

use pyo3::intern;
use pyo3::prelude::*;

use crate::ffi::call;
use crate::ffi::function::{Method, Rest};
use crate::ffi::park;

/// The function; with a name, a context or any other keyword the template serves.
pub struct CreateTask;

impl Method for CreateTask {
    type Receiver = PyAny;

    fn call<'py>(coro: &Bound<'py, PyAny>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let event_loop = park::running_loop(coro.py())?;
        call::method1(&event_loop, intern!(coro.py(), "create_task"), coro)
    }
}
