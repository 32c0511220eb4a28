//! TaskHandle: what a group keeps of one of its tasks.
//!
//! A handle outlives its task: the done callback takes the result out and lets the task go, so that a
//! group of a million tasks holds a million results and not a million tasks.
//!
//! **The collector.** Most handles never refer to anything that could lead back to them: while its task runs a
//! handle knows the group weakly and its task by its address, and many results are None or numbers. So a
//! handle is hidden from the garbage collector from the beginning, and shown when it gets something that might
//! be part of a cycle; a group of a hundred thousand tasks costs the collector nothing.
//!
//! What is awaited (`wait()`, `await handle`) is Python, in `tideloop.groups`; what happens once per
//! task, whether anybody waits or not, is here.

use std::num::NonZeroUsize;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple, PyType, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};

use super::group::GroupCore;
use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::park::{self, Ending};

/// What Python brings to the groups.
struct Helpers {
    outcome: Py<PyAny>,
    wait: Py<PyAny>,
    finish: Py<PyAny>,
    invalid_state: Py<PyAny>,
    cancelled_error: Py<PyAny>,
}

fn helpers(py: Python<'_>) -> PyResult<&'static Helpers> {
    static HELPERS: PyOnceLock<Helpers> = PyOnceLock::new();
    HELPERS.get_or_try_init(py, || {
        let groups = py.import("tideloop.groups")?;
        let exceptions = py.import("asyncio.exceptions")?;
        Ok(Helpers {
            outcome: groups.getattr("Outcome")?.unbind(),
            wait: groups.getattr("_wait")?.unbind(),
            finish: groups.getattr("_wait_for_result")?.unbind(),
            invalid_state: exceptions.getattr("InvalidStateError")?.unbind(),
            cancelled_error: exceptions.getattr("CancelledError")?.unbind(),
        })
    })
}

/// What has become of a task.
pub enum End {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
    /// With its message. The exception is only made for who asks: few do, in a storm of cancellations.
    Cancelled(Option<Py<PyAny>>),
}

enum Phase {
    /// Held back by the group's limit: what is to be called, and where.
    Waiting(Option<Box<Start>>),
    /// There is a task, which its group finds by this address; none for the moment in which it is made.
    Running(Option<NonZeroUsize>),
    Ended(End),
}

/// What there is to tell a program: a value, an exception, or neither.
type ValueOrError<'py> = (Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);

/// A call that is to be made later.
pub struct Start {
    pub function: Py<PyAny>,
    pub arguments: Py<PyTuple>,
    pub timeout: Option<Py<PyAny>>,
    pub context: Py<PyAny>,
}

struct State {
    group: Option<Py<PyWeakrefReference>>,
    phase: Phase,
    extras: Option<Box<Extras>>,
}

/// What few handles have.
#[derive(Default)]
struct Extras {
    key: Option<Py<PyAny>>,
    name: Option<Py<PyAny>>,
    waiters: Option<Py<PyList>>,
    /// What the task is to be cancelled with as soon as it is made.
    early: Option<Py<PyAny>>,
}

/// One task of a group. Made by `Group.spawn()`; keeps the result after the task is gone.
#[pyclass(frozen, weakref, module = "tideloop")]
pub struct TaskHandle {
    state: LoopCell<State>,
}

impl TaskHandle {
    /// One that has no task yet.
    pub fn new<'py>(
        py: Python<'py>,
        group: Py<PyWeakrefReference>,
        key: Option<Py<PyAny>>,
        name: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let extras = (key.is_some() || name.is_some()).then(|| {
            Box::new(Extras {
                key,
                name,
                waiters: None,
                early: None,
            })
        });
        let plain = extras.is_none();
        let made = Bound::new(
            py,
            Self {
                state: LoopCell::new(State {
                    group: Some(group),
                    phase: Phase::Waiting(None),
                    extras,
                }),
            },
        )?;
        if plain {
            call::hide_from_collector(made.as_any());
        }
        Ok(made)
    }

    /// Keeps what is to be called once there is room.
    pub fn hold(slf: &Bound<'_, Self>, start: Start) {
        let phase = Phase::Waiting(Some(Box::new(start)));
        slf.get().set_phase(slf.py(), phase);
        call::show_to_collector(slf.as_any());
    }

    /// Takes what is to be called.
    pub fn take_start(&self, py: Python<'_>) -> Option<Box<Start>> {
        self.state.with(py, |state| match &mut state.phase {
            Phase::Waiting(start) => start.take(),
            _ => None,
        })
    }

    /// There is a task.
    pub fn run(&self, py: Python<'_>, task: &Bound<'_, PyAny>) {
        let address = NonZeroUsize::new(task.as_ptr().addr());
        self.set_phase(py, Phase::Running(address));
    }

    /// The name of the task, if the group gave one.
    pub fn task_name<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.with(py, |state| {
            let name = state.extras.as_ref()?.name.as_ref()?;
            Some(name.bind(py).clone())
        })
    }

    fn set_phase(&self, py: Python<'_>, phase: Phase) {
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.phase, phase));
        let_go(py, old);
    }

    /// Where the group finds the task, if there is one.
    pub fn address(&self, py: Python<'_>) -> Option<usize> {
        self.state.with(py, |state| match &state.phase {
            Phase::Running(address) => address.map(NonZeroUsize::get),
            _ => None,
        })
    }

    /// The task, if there is one.
    fn live_task<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let address = self.address(py)?;
        self.group(py)?.get().task_at(py, address)
    }

    fn group<'py>(&self, py: Python<'py>) -> Option<Bound<'py, GroupCore>> {
        let group = self.state.with(py, |state| {
            state.group.as_ref().map(|group| group.bind(py).clone())
        });
        group?.upgrade_as().ok()?
    }

    /// What the task is to be cancelled with, now that it is made.
    pub fn take_early<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let early = self
            .state
            .with(py, |state| state.extras.as_mut()?.early.take());
        early.map(|early| early.into_bound(py))
    }

    fn ended(&self, py: Python<'_>) -> bool {
        self.state
            .with(py, |state| matches!(state.phase, Phase::Ended(_)))
    }

    /// How it has ended, if it has.
    fn end<'py>(&self, py: Python<'py>) -> Option<Ending<'py>> {
        self.state.with(py, |state| match &state.phase {
            Phase::Ended(End::Value(value)) => Some(Ending::Value(value.bind(py).clone())),
            Phase::Ended(End::Error(error)) => Some(Ending::Error(error.bind(py).clone())),
            Phase::Ended(End::Cancelled(message)) => Some(Ending::Cancelled(
                message.as_ref().map(|message| message.bind(py).clone()),
            )),
            _ => None,
        })
    }

    /// Value or exception, that of a cancellation included; neither if the task has not ended.
    fn result_or_error<'py>(slf: &Bound<'py, Self>) -> PyResult<ValueOrError<'py>> {
        let py = slf.py();
        Ok(match slf.get().end(py) {
            None => (None, None),
            Some(Ending::Value(value)) => (Some(value), None),
            Some(Ending::Error(error)) => (None, Some(error)),
            Some(Ending::Cancelled(message)) => {
                let class = helpers(py)?.cancelled_error.bind(py);
                let error = match message.filter(|message| !message.is_none()) {
                    Some(message) => class.call1((message,))?,
                    None => class.call0()?,
                };
                // The same one from now on, so that outcomes are equal to themselves.
                let phase = Phase::Ended(End::Error(error.clone().unbind()));
                slf.get().set_phase(py, phase);
                call::show_to_collector(slf.as_any());
                (None, Some(error))
            }
        })
    }

    /// Takes note of the end and tells who waits for it; the group is told by the caller.
    pub fn conclude(slf: &Bound<'_, Self>, end: End) -> PyResult<()> {
        let py = slf.py();
        let cyclic = match &end {
            End::Value(value) => call::is_collected(value.bind(py)),
            End::Error(_) => true,
            End::Cancelled(message) => message.is_some(),
        };
        let (old, group, waiters) = slf.get().state.with(py, |state| {
            let waiters = state
                .extras
                .as_ref()
                .and_then(|extras| extras.waiters.as_ref());
            (
                std::mem::replace(&mut state.phase, Phase::Ended(end)),
                state.group.take(),
                waiters.map(|waiters| waiters.bind(py).clone()),
            )
        });
        let_go(py, old);
        drop(group.map(|group| group.into_bound(py)));
        if cyclic {
            call::show_to_collector(slf.as_any());
        }
        if let Some(waiters) = waiters {
            wake_all(&waiters)?;
        }
        Ok(())
    }
}

/// Gives every waiting future in a list None.
pub fn wake_all(waiters: &Bound<'_, PyList>) -> PyResult<()> {
    let none = waiters.py().None().into_bound(waiters.py());
    for waiter in waiters.iter() {
        park::resolve(&waiter, &none)?;
    }
    Ok(())
}

/// Drops what a handle held, now: done callbacks do not come through PyO3's own calls.
fn let_go(py: Python<'_>, phase: Phase) {
    match phase {
        Phase::Ended(End::Value(object) | End::Error(object)) => drop(object.into_bound(py)),
        Phase::Ended(End::Cancelled(message)) => {
            drop(message.map(|message| message.into_bound(py)));
        }
        Phase::Waiting(Some(start)) => {
            drop(start.function.into_bound(py));
            drop(start.arguments.into_bound(py));
            drop(start.timeout.map(|timeout| timeout.into_bound(py)));
            drop(start.context.into_bound(py));
        }
        Phase::Waiting(None) | Phase::Running(_) => {}
    }
}

/// The task of a handle has ended: keeps its result and tells the group.
pub fn finish<'py>(
    group: &Bound<'py, GroupCore>,
    handle: &Bound<'py, TaskHandle>,
    task: &Bound<'py, PyAny>,
) -> PyResult<()> {
    group.get().stops_awaiting(task)?;
    let ending = park::ending(task)?;
    let end = match &ending {
        Ending::Value(value) => End::Value(value.clone().unbind()),
        Ending::Error(error) => End::Error(error.clone().unbind()),
        Ending::Cancelled(message) => {
            End::Cancelled(message.as_ref().map(|message| message.clone().unbind()))
        }
    };
    let told = TaskHandle::conclude(handle, end);
    group.get().task_ended(group, handle, &ending, true)?;
    told
}

#[pymethods]
impl TaskHandle {
    #[classmethod]
    #[pyo3(signature = (item, /))]
    fn __class_getitem__<'py>(
        class: &Bound<'py, PyType>,
        item: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        class
            .py()
            .import(intern!(class.py(), "types"))?
            .getattr(intern!(class.py(), "GenericAlias"))?
            .call1((class, item))
    }

    /// What was given to spawn() as `key`.
    #[getter]
    fn key(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.state.with(py, |state| {
            Some(state.extras.as_ref()?.key.as_ref()?.clone_ref(py))
        })
    }

    /// The task's name, if the group has one.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.task_name(py)
    }

    /// The task while it is alive; None before the limit has let it start, and after its end.
    #[getter]
    fn task<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.live_task(py)
    }

    /// Whether the task has ended, in whatever way.
    fn done(&self, py: Python<'_>) -> bool {
        self.ended(py)
    }

    /// Whether the task was cancelled.
    fn cancelled(&self, py: Python<'_>) -> bool {
        match self.end(py) {
            Some(Ending::Cancelled(_)) => true,
            Some(Ending::Error(error)) => park::is_cancelled_error(&error),
            _ => false,
        }
    }

    /// How the task has ended. Raises asyncio.InvalidStateError if it has not.
    #[getter]
    fn outcome<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let (value, error) = Self::result_or_error(slf)?;
        if value.is_none() && error.is_none() {
            return Err(unfinished(slf));
        }
        helpers(py)?.outcome.bind(py).call1((value, error))
    }

    /// What the task returned. Raises what it raised, CancelledError included, and
    /// asyncio.InvalidStateError if it has not ended.
    fn result<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        match Self::result_or_error(slf)? {
            (Some(value), _) => Ok(value),
            (_, Some(error)) => Err(PyErr::from_value(error)),
            _ => Err(unfinished(slf)),
        }
    }

    /// What the task raised; None if it returned. Raises CancelledError if it was cancelled, and
    /// asyncio.InvalidStateError if it has not ended.
    fn exception<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match Self::result_or_error(slf)? {
            (Some(_), _) => Ok(None),
            (_, Some(error)) => {
                if park::is_cancelled_error(&error) {
                    return Err(PyErr::from_value(error));
                }
                Ok(Some(error))
            }
            _ => Err(unfinished(slf)),
        }
    }

    /// Cancel this task alone; False if it is done. One that has not started never will.
    ///
    /// A task that is cancelled is no failure: its group goes on.
    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Bound<'_, PyAny>>) -> PyResult<bool> {
        let py = slf.py();
        if slf.get().ended(py) {
            return Ok(false);
        }
        if let Some(task) = slf.get().live_task(py) {
            let keywords = PyDict::new(py);
            keywords.set_item(intern!(py, "msg"), msg)?;
            return task
                .call_method(intern!(py, "cancel"), (), Some(&keywords))?
                .is_truthy();
        }
        let Some(group) = slf.get().group(py) else {
            return Err(PyRuntimeError::new_err(
                "the group of this task was collected",
            ));
        };
        if group.get().drop_waiting(&group, slf, msg.as_ref())? {
            return Ok(true);
        }
        // Its function is being called, or its first step is under way: it is cancelled right after that.
        let kept = msg.map_or_else(|| py.None(), Bound::unbind);
        call::show_to_collector(slf.as_any());
        let (made, old) = slf.get().state.with(py, |state| {
            if !matches!(state.phase, Phase::Waiting(None)) {
                return (false, Some(kept));
            }
            let extras = state.extras.get_or_insert_default();
            (true, extras.early.replace(kept))
        });
        drop(old.map(|old| old.into_bound(py)));
        Ok(made)
    }

    /// The loop of the task's group, to which it belongs.
    #[getter]
    fn _loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.group(py)?.get().event_loop(py)
    }

    /// Wait until the task has ended. Its exception is not raised but in the outcome.
    ///
    /// Cancelling the waiter leaves the task alone. Raises RuntimeError when the task waits for itself.
    fn wait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        helpers(slf.py())?.wait.bind(slf.py()).call1((slf,))
    }

    /// Wait for the task, then `result()`.
    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let coroutine = helpers(py)?.finish.bind(py).call1((slf,))?;
        call::method0(&coroutine, intern!(py, "__await__"))
    }

    /// The futures of those who wait.
    #[getter]
    fn _waiters<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyList> {
        let py = slf.py();
        let new = PyList::empty(py);
        call::show_to_collector(slf.as_any());
        slf.get().state.with(py, |state| {
            state
                .extras
                .get_or_insert_default()
                .waiters
                .get_or_insert_with(|| new.clone().unbind())
                .bind(py)
                .clone()
        })
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let this = slf.get();
        let mut words = String::from("<tideloop.TaskHandle");
        if let Some(name) = this.task_name(py) {
            words += &format!(" {}", name.repr()?);
        }
        if let Some(key) = this.key(py) {
            words += &format!(" key={}", key.bind(py).repr()?);
        }
        words += match Self::result_or_error(slf)? {
            (Some(value), _) => format!(" ended result={}", value.repr()?),
            (_, Some(error)) => format!(" ended exception={}", error.repr()?),
            _ if this.live_task(py).is_some() => " running".to_owned(),
            _ => " waiting".to_owned(),
        }
        .as_str();
        Ok(words + ">")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .try_with(|state| {
                visit.call(&state.group)?;
                if let Some(extras) = &state.extras {
                    visit.call(&extras.key)?;
                    visit.call(&extras.name)?;
                    visit.call(&extras.waiters)?;
                    visit.call(&extras.early)?;
                }
                match &state.phase {
                    Phase::Waiting(Some(start)) => {
                        visit.call(&start.function)?;
                        visit.call(&start.arguments)?;
                        visit.call(&start.timeout)?;
                        visit.call(&start.context)
                    }
                    Phase::Ended(End::Value(object) | End::Error(object)) => visit.call(object),
                    Phase::Ended(End::Cancelled(message)) => visit.call(message),
                    Phase::Waiting(None) | Phase::Running(_) => Ok(()),
                }
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| {
            (
                state.group.take(),
                state.extras.take(),
                std::mem::replace(&mut state.phase, Phase::Running(None)),
            )
        });
        drop(old);
    }
}

fn unfinished(handle: &Bound<'_, TaskHandle>) -> PyErr {
    let py = handle.py();
    let made = helpers(py).and_then(|helpers| {
        let words = format!("{} has not ended", handle.repr()?);
        helpers.invalid_state.bind(py).call1((words,))
    });
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
