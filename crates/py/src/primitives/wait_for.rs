//! `wait_for(fut, timeout)`, since Python 3.12: `async with timeout(timeout): return await fut`.
//!
//! A time that is up before it begins is another matter, which asyncio's own code deals with, as it does with
//! awaitables of other kinds than coroutines, tasks and futures.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::timeout::{self, TimeoutCore};
use crate::ffi::call;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{self, Frame, Input, Step};

/// The coroutine.
///
/// Its arguments are the awaitable and the time in seconds. The latter is replaced by the timeout that was
/// entered, or by None if asyncio's code does all of it. At the end the places behind the first are those
/// of the arguments that leaving the timeout takes: the type of an exception, and the exception.
pub struct WaitFor;

const TIMEOUT: usize = 1;
const KIND: usize = 1;
const ERROR: usize = 2;

impl Coroutine for WaitFor {
    type Receiver = PyAny;

    fn advance<'py>(
        awaitable: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match input {
            Input::Start => begin(awaitable, frame),
            Input::Resumed => {
                let value = frame.awaited()?;
                if let Some(timeout) = entered(frame) {
                    timeout::Exit::advance(&timeout, frame, Input::Start)?;
                }
                Ok(Step::Return(value))
            }
            Input::Thrown(error) => match entered(frame) {
                Some(timeout) => Err(leave_failed(&timeout, frame, error)),
                None => Err(error),
            },
        }
    }
}

fn begin<'py>(awaitable: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> PyResult<Step<'py>> {
    let py = frame.py();
    let delay = frame
        .argument(TIMEOUT)
        .unwrap_or_else(|| py.None().into_bound(py));
    let is_up = !delay.is_none() && delay.le(0)?;
    if is_up || !operation::has_iterator(awaitable) {
        let coroutine = stock_wait_for(py)?.call1((awaitable, delay))?;
        return Ok(Step::Become(coroutine, None));
    }
    let timeout = timeout::after(&delay)?.cast_into::<TimeoutCore>()?;
    timeout::Enter::advance(&timeout, frame, Input::Start)?;
    drop(frame.replace(TIMEOUT, Some(timeout.clone().into_any())));
    operation::iterator_of(awaitable)
        .map(Step::Delegate)
        .map_err(|error| leave_failed(&timeout, frame, error))
}

/// Takes the timeout that was entered; nothing if asyncio's code did that.
fn entered<'py>(frame: &Frame<'_, 'py>) -> Option<Bound<'py, TimeoutCore>> {
    frame.replace(TIMEOUT, None)?.cast_into().ok()
}

/// What is raised after leaving a timeout with an exception.
fn leave_failed<'py>(
    timeout: &Bound<'py, TimeoutCore>,
    frame: &Frame<'_, 'py>,
    error: PyErr,
) -> PyErr {
    let py = frame.py();
    let error = error.into_value(py).into_bound(py).into_any();
    drop(frame.replace(KIND, Some(error.get_type().into_any())));
    drop(frame.replace(ERROR, Some(error.clone())));
    match timeout::Exit::advance(timeout, frame, Input::Start) {
        Ok(_) => PyErr::from_value(error),
        Err(instead) => {
            // It was raised while the other one was handled, and not whatever the caller is handling.
            let value = instead.value(py);
            let name = intern!(py, "__context__");
            let outer = call::handled(py);
            if !value.is(&error)
                && value.getattr(name).is_ok_and(|context| {
                    context.is_none() || outer.is_some_and(|outer| outer.is(&context))
                })
                && let Err(failure) = value.setattr(name, &error)
            {
                return failure;
            }
            instead
        }
    }
}

/// asyncio's own.
fn stock_wait_for(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static STOCK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let function = STOCK.get_or_try_init(py, || -> PyResult<Py<PyAny>> {
        Ok(py.import("tideloop.stock")?.getattr("wait_for")?.unbind())
    })?;
    Ok(function.bind(py))
}
