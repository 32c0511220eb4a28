//! Event: a flag that tasks wait for.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyBool;
use pyo3::{PyTraverseError, PyVisit};

use super::wait_list::{BoundLoop, WaitList};
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};

/// The native half of `tideloop.Event`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct EventCore {
    value: AtomicBool,
    waiters: WaitList,
    bound: BoundLoop,
}

impl EventCore {
    pub fn is_set(&self) -> bool {
        self.value.load(Ordering::Relaxed)
    }

    pub fn set(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_set() {
            return Ok(());
        }
        self.value.store(true, Ordering::Relaxed);
        self.waiters.notify_all(py, &yes(py))
    }

    pub fn clear(&self) {
        self.value.store(false, Ordering::Relaxed);
    }
}

/// Python's True.
pub fn yes(py: Python<'_>) -> Bound<'_, PyAny> {
    PyBool::new(py, true).to_owned().into_any()
}

/// `value` as Python's bool.
pub fn truth(py: Python<'_>, value: bool) -> Bound<'_, PyAny> {
    PyBool::new(py, value).to_owned().into_any()
}

#[pymethods]
impl EventCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        Self {
            value: AtomicBool::new(false),
            waiters: WaitList::default(),
            bound: BoundLoop::default(),
        }
    }

    /// What repr() says between the brackets.
    fn _state(&self, py: Python<'_>) -> PyResult<String> {
        let word = if self.is_set() { "set" } else { "unset" };
        with_waiters(py, word.to_owned(), &self.waiters)
    }

    /// How many wait.
    fn _waiting(&self, py: Python<'_>) -> PyResult<usize> {
        self.waiters.len(py)
    }

    #[getter(_value)]
    fn value(&self) -> bool {
        self.is_set()
    }

    #[setter(_value)]
    fn set_value(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.value.store(value.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_waiters)]
    fn waiters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.waiters.show(py)
    }

    #[setter(_waiters)]
    fn set_waiters(&self, waiters: &Bound<'_, PyAny>) {
        self.waiters.set(waiters);
    }

    #[getter(_loop)]
    fn bound_loop<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.bound.get(py)
    }

    #[setter(_loop)]
    fn bind_loop(&self, event_loop: &Bound<'_, PyAny>) {
        self.bound.set(event_loop);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.waiters.traverse(&visit)?;
        self.bound.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.waiters.clear(py);
    }
}

/// A state with the number of those who wait, as asyncio's repr() has it.
pub fn with_waiters(py: Python<'_>, state: String, waiters: &WaitList) -> PyResult<String> {
    Ok(match waiters.len(py)? {
        0 => state,
        count => format!("{state}, waiters:{count}"),
    })
}

/// `Event.wait()`.
pub struct Wait;

impl Coroutine for Wait {
    type Receiver = EventCore;

    #[inline(always)]
    fn at_once<'py>(event: &Bound<'py, EventCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        if event.get().is_set() {
            AtOnce::Return(yes(frame.py()))
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        event: &Bound<'py, EventCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        wait(event, frame, input)
    }
}

/// Waits for an event, on behalf of any operation.
pub fn wait<'py>(
    event: &Bound<'py, EventCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Step<'py>> {
    let state = event.get();
    match input {
        Input::Start => {
            if state.is_set() {
                return Ok(Step::Return(yes(frame.py())));
            }
            let future = state.bound.new_future(event.as_any())?;
            frame.set_ticket(state.waiters.push(&future)?);
            Ok(Step::Wait(future))
        }
        Input::Resumed => {
            state.waiters.remove(frame.ticket(), &frame.awaited()?)?;
            Ok(Step::Return(yes(frame.py())))
        }
        Input::Thrown(error) => {
            state.waiters.remove(frame.ticket(), &frame.awaited()?)?;
            Err(error)
        }
    }
}

/// `Event.set()`.
pub struct Set;

impl Method for Set {
    type Receiver = EventCore;

    fn call<'py>(event: &Bound<'py, EventCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = event.py();
        event.get().set(py)?;
        Ok(py.None().into_bound(py))
    }
}

/// `Event.clear()`.
pub struct Clear;

impl Method for Clear {
    type Receiver = EventCore;

    fn call<'py>(event: &Bound<'py, EventCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        event.get().clear();
        Ok(event.py().None().into_bound(event.py()))
    }
}

/// `Event.is_set()`.
pub struct IsSet;

impl Method for IsSet {
    type Receiver = EventCore;

    fn call<'py>(event: &Bound<'py, EventCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(truth(event.py(), event.get().is_set()))
    }
}
