//! `timeout(delay)`, `timeout_at(when)` and the context manager they return.
//!
//! Entering and leaving in time is native. What happens once the time is up differs between Python
//! versions (which exceptions become TimeoutError, and how deep), so there the stock method decides.

use pyo3::exceptions::{PyAssertionError, PyRuntimeError, PyStopIteration};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::{handle, park};

/// asyncio's names for the phases of a timeout, and its class.
struct Stock {
    created: Py<PyAny>,
    entered: Py<PyAny>,
    expiring: Py<PyAny>,
    exited: Py<PyAny>,
    exit: Py<PyAny>,
    on_timeout: Py<PyAny>,
}

fn stock(py: Python<'_>) -> PyResult<&'static Stock> {
    static STOCK: PyOnceLock<Stock> = PyOnceLock::new();
    STOCK.get_or_try_init(py, || {
        let phases = py.import("asyncio.timeouts")?.getattr("_State")?;
        let class = py.import("tideloop.stock")?.getattr("Timeout")?;
        Ok(Stock {
            created: phases.getattr("CREATED")?.unbind(),
            entered: phases.getattr("ENTERED")?.unbind(),
            expiring: phases.getattr("EXPIRING")?.unbind(),
            exited: phases.getattr("EXITED")?.unbind(),
            exit: class.getattr("__aexit__")?.unbind(),
            on_timeout: wrap_pyfunction!(_on_timeout, py)?.into_any().unbind(),
        })
    })
}

struct State {
    phase: Py<PyAny>,
    when: Py<PyAny>,
    handler: Option<Py<PyAny>>,
    task: Option<Py<PyAny>>,
    cancelling: Option<Py<PyAny>>,
}

/// The native half of `tideloop.Timeout`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct TimeoutCore {
    state: LoopCell<State>,
}

/// `None` as an attribute's value.
fn or_none(py: Python<'_>, value: Option<Py<PyAny>>) -> Py<PyAny> {
    value.unwrap_or_else(|| py.None())
}

fn some(value: Bound<'_, PyAny>) -> Option<Py<PyAny>> {
    (!value.is_none()).then(|| value.unbind())
}

impl TimeoutCore {
    fn phase<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.state.with(py, |state| state.phase.bind(py).clone())
    }

    fn set_phase(&self, py: Python<'_>, phase: &Py<PyAny>) {
        let phase = phase.clone_ref(py);
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.phase, phase));
        drop(old.into_bound(py));
    }

    fn set_when(&self, when: Bound<'_, PyAny>) {
        let py = when.py();
        let when = when.unbind();
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.when, when));
        drop(old.into_bound(py));
    }

    fn set_handler(&self, py: Python<'_>, handler: Option<Py<PyAny>>) {
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.handler, handler));
        drop(old.map(|old| old.into_bound(py)));
    }
}

#[pymethods]
impl TimeoutCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "(when)")]
    fn new(
        py: Python<'_>,
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> PyResult<Self> {
        Ok(Self {
            state: LoopCell::new(State {
                phase: stock(py)?.created.clone_ref(py),
                when: py.None(),
                handler: None,
                task: None,
                cancelling: None,
            }),
        })
    }

    /// Schedule a timeout that will trigger at a given loop time; never if that is None.
    #[pyo3(signature = (when))]
    fn __init__(&self, py: Python<'_>, when: Py<PyAny>) -> PyResult<()> {
        let new = State {
            phase: stock(py)?.created.clone_ref(py),
            when,
            handler: None,
            task: None,
            cancelling: None,
        };
        let old = self.state.with(py, |state| std::mem::replace(state, new));
        drop(old);
        Ok(())
    }

    #[getter(_state)]
    fn stored_phase<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.phase(py)
    }

    #[setter(_state)]
    fn store_phase(&self, py: Python<'_>, phase: Py<PyAny>) {
        self.set_phase(py, &phase);
    }

    #[getter(_when)]
    fn stored_when(&self, py: Python<'_>) -> Py<PyAny> {
        self.state.with(py, |state| state.when.clone_ref(py))
    }

    #[setter(_when)]
    fn store_when(&self, when: Bound<'_, PyAny>) {
        self.set_when(when);
    }

    #[getter(_timeout_handler)]
    fn stored_handler(&self, py: Python<'_>) -> Py<PyAny> {
        let handler = self.state.with(py, |state| {
            state.handler.as_ref().map(|handler| handler.clone_ref(py))
        });
        or_none(py, handler)
    }

    #[setter(_timeout_handler)]
    fn store_handler(&self, handler: Bound<'_, PyAny>) {
        let py = handler.py();
        self.set_handler(py, some(handler));
    }

    #[getter(_task)]
    fn stored_task(&self, py: Python<'_>) -> Py<PyAny> {
        let task = self.state.with(py, |state| {
            state.task.as_ref().map(|task| task.clone_ref(py))
        });
        or_none(py, task)
    }

    #[setter(_task)]
    fn store_task(&self, task: Bound<'_, PyAny>) {
        let py = task.py();
        let task = some(task);
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.task, task));
        drop(old.map(|old| old.into_bound(py)));
    }

    #[getter(_cancelling)]
    fn stored_cancelling(&self, py: Python<'_>) -> Py<PyAny> {
        let count = self.state.with(py, |state| {
            state.cancelling.as_ref().map(|count| count.clone_ref(py))
        });
        or_none(py, count)
    }

    #[setter(_cancelling)]
    fn store_cancelling(&self, count: Bound<'_, PyAny>) {
        let py = count.py();
        let count = some(count);
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.cancelling, count));
        drop(old.map(|old| old.into_bound(py)));
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .try_with(|state| {
                visit.call(&state.phase)?;
                visit.call(&state.when)?;
                visit.call(&state.handler)?;
                visit.call(&state.task)?;
                visit.call(&state.cancelling)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| {
            (
                state.handler.take(),
                state.task.take(),
                state.cancelling.take(),
            )
        });
        drop(old);
    }
}

/// As asyncio's method of this name, which is what a waiting loop shows in debug mode.
#[pyfunction]
fn _on_timeout(timeout: &Bound<'_, TimeoutCore>) -> PyResult<()> {
    let py = timeout.py();
    let core = timeout.get();
    if !core.phase(py).is(&stock(py)?.entered) {
        return Err(PyAssertionError::new_err(()));
    }
    let task = core.stored_task(py);
    call::method0(task.bind(py), intern!(py, "cancel"))?;
    core.set_phase(py, &stock(py)?.expiring);
    core.set_handler(py, None);
    Ok(())
}

/// `async with timeout(...):`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = TimeoutCore;

    fn advance<'py>(
        timeout: &Bound<'py, TimeoutCore>,
        frame: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let core = timeout.get();
        let stock = stock(py)?;
        if !core.phase(py).is(&stock.created) {
            return Err(PyRuntimeError::new_err("Timeout has already been entered"));
        }
        let task = park::current_task(py)?;
        if task.is_none() {
            return Err(PyRuntimeError::new_err(
                "Timeout should be used inside a task",
            ));
        }
        core.set_phase(py, &stock.entered);
        let cancelling = park::cancelling(&task)?.unbind();
        let (when, old) = core.state.with(py, |state| {
            let old = (
                state.task.replace(task.unbind()),
                state.cancelling.replace(cancelling),
            );
            (state.when.bind(py).clone(), old)
        });
        drop(old.0.map(|old| old.into_bound(py)));
        drop(old.1.map(|old| old.into_bound(py)));
        if !when.is_none() {
            let event_loop = park::running_loop(py)?;
            let on_timeout = stock.on_timeout.bind(py);
            let handler = park::call_at(&event_loop, &when, on_timeout, timeout.as_any())?;
            core.set_handler(py, Some(handler.unbind()));
        }
        Ok(Step::Return(timeout.as_any().clone()))
    }
}

/// `async with timeout(...):`, its end.
pub struct Exit;

impl Coroutine for Exit {
    type Receiver = TimeoutCore;

    fn advance<'py>(
        timeout: &Bound<'py, TimeoutCore>,
        frame: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let core = timeout.get();
        let stock = stock(py)?;
        if core.phase(py).is(&stock.entered) {
            let handler = core.state.with(py, |state| state.handler.take());
            if let Some(handler) = handler.map(|handler| handler.into_bound(py)) {
                handle::cancel_any(&handler)?;
            }
            core.set_phase(py, &stock.exited);
            return Ok(Step::Finish);
        }
        let given = |index| {
            frame
                .argument(index)
                .unwrap_or_else(|| py.None().into_bound(py))
        };
        let stock_exit = stock
            .exit
            .bind(py)
            .call1((timeout, given(1), given(2), py.None()))?;
        // It never waits.
        match call::method1(&stock_exit, intern!(py, "send"), &py.None().into_bound(py)) {
            Err(error) if error.is_instance_of::<PyStopIteration>(py) => {
                let value = error.value(py).getattr(intern!(py, "value"))?;
                call::discard(py, error);
                Ok(Step::Return(value))
            }
            Err(error) => Err(error),
            Ok(_) => Err(PyRuntimeError::new_err("leaving a timeout cannot wait")),
        }
    }
}

fn new_timeout<'py>(when: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = when.py();
    let class = CLASS
        .get_or_try_init(py, || -> PyResult<Py<PyType>> {
            let class = py.import("tideloop.timeouts")?.getattr("Timeout")?;
            Ok(class.cast_into::<PyType>()?.unbind())
        })?
        .bind(py);
    match call::bare_instance(class, &py.get_type::<TimeoutCore>())? {
        Some(timeout) => {
            timeout.cast::<TimeoutCore>()?.get().set_when(when);
            Ok(timeout)
        }
        None => class.call1((when,)),
    }
}

/// `timeout(delay)`.
pub struct After;

impl Method for After {
    type Receiver = PyAny;

    fn call<'py>(delay: &Bound<'py, PyAny>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        after(delay)
    }
}

/// A timeout of so many seconds, or None, from now on.
pub fn after<'py>(delay: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = delay.py();
    let event_loop = park::running_loop(py)?;
    if delay.is_none() {
        return new_timeout(delay.clone());
    }
    new_timeout(park::deadline(&event_loop, delay)?)
}

/// `timeout_at(when)`.
pub struct At;

impl Method for At {
    type Receiver = PyAny;

    fn call<'py>(when: &Bound<'py, PyAny>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        new_timeout(when.clone())
    }
}
