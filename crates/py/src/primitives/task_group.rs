//! TaskGroup: the tasks of a block.
//!
//! What every block does is native: entering, `create_task()`, the callback that takes a task which has
//! not failed out of the group, and leaving while all is well. Everything else is asyncio's own method of
//! this Python version, which finds its attributes here: a task or a block that has failed, a loop of
//! somebody else, a task factory, a subclass with its own `_on_task_done`.
//!
//! **Leaving.** If something goes wrong while a block waits for its tasks, asyncio's `__aexit__` is started
//! then, with what the block would have been left with had it happened before: the wait was interrupted
//! by a cancellation, or, if the group is being aborted already, by nothing that matters. That it comes
//! late makes no difference in the versions of `__aexit__` that are replaced, since they look at
//! cancellations after the wait.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PySet, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::function::{self, Coroutine, Method, Rest};
use crate::ffi::operation::{self, Frame, Input, Step};
use crate::ffi::park::{self, Seen};
use crate::primitives::event::yes;

/// asyncio's own.
struct Stock {
    on_task_done: Py<PyAny>,
    exit: Py<PyAny>,
    /// Whether leaving a group lets go of its parent and of errors, as patch releases of 3.13 began to do.
    lets_go: bool,
    tasks: Py<PyDict>,
}

fn stock(py: Python<'_>) -> PyResult<&'static Stock> {
    static STOCK: PyOnceLock<Stock> = PyOnceLock::new();
    STOCK.get_or_try_init(py, || {
        let class = py.import("tideloop.stock")?.getattr("TaskGroup")?;
        Ok(Stock {
            on_task_done: class.getattr("_on_task_done")?.unbind(),
            exit: class.getattr("__aexit__")?.unbind(),
            lets_go: class.hasattr("_aexit")?,
            tasks: py.import("asyncio.tasks")?.dict().unbind(),
        })
    })
}

/// The native half of `tideloop.TaskGroup`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct TaskGroupCore {
    entered: AtomicBool,
    exiting: AtomicBool,
    aborting: AtomicBool,
    /// Whether the loop makes its tasks natively and nobody has overridden what is done with them.
    direct: AtomicBool,
    state: LoopCell<State>,
}

#[derive(Default)]
struct State {
    event_loop: Option<Py<PyAny>>,
    parent: Option<Py<PyAny>>,
    tasks: Option<Py<PyAny>>,
    completed: Option<Py<PyAny>>,
    /// The callback that was added to the tasks, and its context; kept while there are tasks.
    callback: Option<(Py<PyAny>, Py<PyAny>)>,
}

/// An attribute that was bound to None.
fn or_none(py: Python<'_>, value: Option<Bound<'_, PyAny>>) -> Py<PyAny> {
    value.map_or_else(|| py.None(), Bound::unbind)
}

fn some(value: Bound<'_, PyAny>) -> Option<Py<PyAny>> {
    (!value.is_none()).then(|| value.unbind())
}

impl TaskGroupCore {
    /// One of the attributes.
    fn get<'py>(
        &self,
        py: Python<'py>,
        field: impl FnOnce(&State) -> &Option<Py<PyAny>>,
    ) -> Option<Bound<'py, PyAny>> {
        self.state.with(py, |state| {
            field(state).as_ref().map(|value| value.bind(py).clone())
        })
    }

    fn set(
        &self,
        value: Bound<'_, PyAny>,
        field: impl FnOnce(&mut State) -> &mut Option<Py<PyAny>>,
    ) {
        let py = value.py();
        let value = some(value);
        let old = self
            .state
            .with(py, |state| std::mem::replace(field(state), value));
        drop(old.map(|old| old.into_bound(py)));
    }

    /// Whether create_task() can be native now.
    fn is_open(&self, py: Python<'_>) -> bool {
        self.direct.load(Ordering::Relaxed)
            && self.entered.load(Ordering::Relaxed)
            && !self.exiting.load(Ordering::Relaxed)
            && !self.aborting.load(Ordering::Relaxed)
            && self
                .state
                .with(py, |state| {
                    state.event_loop.as_ref().map(|it| it.bind(py).clone())
                })
                .is_some_and(|event_loop| park::spawns(&event_loop))
    }

    /// Lets go of the callback once nobody has it.
    fn forget_callback(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| state.callback.take());
        drop(old.map(|(callback, context)| (callback.into_bound(py), context.into_bound(py))));
    }
}

#[pymethods]
impl TaskGroupCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs), text_signature = "()")]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            entered: AtomicBool::new(false),
            exiting: AtomicBool::new(false),
            aborting: AtomicBool::new(false),
            direct: AtomicBool::new(false),
            state: LoopCell::new(State::default()),
        }
    }

    #[getter(_entered)]
    fn is_entered(&self) -> bool {
        self.entered.load(Ordering::Relaxed)
    }

    #[setter(_entered)]
    fn set_entered(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.entered.store(value.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_exiting)]
    fn is_exiting(&self) -> bool {
        self.exiting.load(Ordering::Relaxed)
    }

    #[setter(_exiting)]
    fn set_exiting(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.exiting.store(value.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_aborting)]
    fn is_aborting(&self) -> bool {
        self.aborting.load(Ordering::Relaxed)
    }

    #[setter(_aborting)]
    fn set_aborting(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.aborting.store(value.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_loop)]
    fn event_loop(&self, py: Python<'_>) -> Py<PyAny> {
        or_none(py, self.get(py, |state| &state.event_loop))
    }

    #[setter(_loop)]
    fn set_event_loop<'py>(slf: &Bound<'py, Self>, event_loop: Bound<'py, PyAny>) -> PyResult<()> {
        let direct = park::creates_tasks_itself(&event_loop)? && {
            let done = slf.get_type().getattr(intern!(slf.py(), "_on_task_done"))?;
            function::is_native(&done)
        };
        slf.get().direct.store(direct, Ordering::Relaxed);
        slf.get().set(event_loop, |state| &mut state.event_loop);
        Ok(())
    }

    #[getter(_parent_task)]
    fn parent_task(&self, py: Python<'_>) -> Py<PyAny> {
        or_none(py, self.get(py, |state| &state.parent))
    }

    #[setter(_parent_task)]
    fn set_parent_task(&self, task: Bound<'_, PyAny>) {
        self.set(task, |state| &mut state.parent);
    }

    #[getter(_tasks)]
    fn tasks(&self, py: Python<'_>) -> Py<PyAny> {
        or_none(py, self.get(py, |state| &state.tasks))
    }

    #[setter(_tasks)]
    fn set_tasks(&self, tasks: Bound<'_, PyAny>) {
        self.set(tasks, |state| &mut state.tasks);
    }

    #[getter(_on_completed_fut)]
    fn completed(&self, py: Python<'_>) -> Py<PyAny> {
        or_none(py, self.get(py, |state| &state.completed))
    }

    #[setter(_on_completed_fut)]
    fn set_completed(&self, future: Bound<'_, PyAny>) {
        self.set(future, |state| &mut state.completed);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .try_with(|state| {
                visit.call(&state.event_loop)?;
                visit.call(&state.parent)?;
                visit.call(&state.tasks)?;
                visit.call(&state.completed)?;
                match &state.callback {
                    Some((callback, context)) => {
                        visit.call(callback)?;
                        visit.call(context)
                    }
                    None => Ok(()),
                }
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}

/// `TaskGroup.create_task(coro, *, name=None, context=None)`.
pub struct CreateTask;

impl Method for CreateTask {
    type Receiver = TaskGroupCore;

    const ASK_ALWAYS: bool = true;
    const KEYWORDS: bool = true;

    fn diverted(group: &Bound<'_, TaskGroupCore>) -> bool {
        !group.get().is_open(group.py())
    }

    fn call<'py>(
        group: &Bound<'py, TaskGroupCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = group.py();
        let core = group.get();
        let (event_loop, tasks, parent) = core.state.with(py, |state| {
            (
                state.event_loop.as_ref().map(|e| e.bind(py).clone()),
                state.tasks.as_ref().map(|t| t.bind(py).clone()),
                state.parent.as_ref().map(|p| p.bind(py).clone()),
            )
        });
        let (Some(event_loop), Some(coro)) = (event_loop, rest.get(0)) else {
            return Err(PyRuntimeError::new_err(
                "a bug in tideloop: a task group without a loop",
            ));
        };
        let task = park::spawn(&event_loop, &coro, rest.get(1), rest.get(2))?;
        let (callback, context) = callback_of(group)?;
        match &tasks {
            Some(tasks) if let Ok(tasks) = tasks.cast_exact::<PySet>() => tasks.add(&task)?,
            _ => {
                call::method1(
                    &tasks.unwrap_or_else(|| py.None().into_bound(py)),
                    intern!(py, "add"),
                    &task,
                )?;
            }
        }
        park::add_callback(&task, &callback, &context)?;
        if let Some(parent) = &parent {
            park::note_awaiting(&task, parent)?;
        }
        Ok(task)
    }
}

/// The bound method `_on_task_done` and the context that it is called in if a task fails.
fn callback_of<'py>(
    group: &Bound<'py, TaskGroupCore>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let py = group.py();
    let core = group.get();
    let known = core.state.with(py, |state| {
        state
            .callback
            .as_ref()
            .map(|(callback, context)| (callback.bind(py).clone(), context.bind(py).clone()))
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let callback = group.getattr(intern!(py, "_on_task_done"))?;
    let context = call::copy_context(py)?;
    core.state.with(py, |state| {
        state.callback = Some((callback.clone().unbind(), context.clone().unbind()));
    });
    Ok((callback, context))
}

/// `TaskGroup._on_task_done(task)`.
pub struct OnTaskDone;

impl Method for OnTaskDone {
    type Receiver = TaskGroupCore;

    fn call<'py>(
        group: &Bound<'py, TaskGroupCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = group.py();
        let core = group.get();
        let none = || py.None().into_bound(py);
        let task = rest.get(0).unwrap_or_else(none);
        let tasks = core.get(py, |state| &state.tasks).unwrap_or_else(none);
        if matches!(park::look(&task), Seen::Ended | Seen::Cancelled)
            && let Ok(tasks) = tasks.cast_exact::<PySet>()
        {
            tasks.discard(&task)?;
            let (completed, parent) = core.state.with(py, |state| {
                (
                    state.completed.as_ref().map(|c| c.bind(py).clone()),
                    state.parent.as_ref().map(|p| p.bind(py).clone()),
                )
            });
            if tasks.is_empty() {
                core.forget_callback(py);
                if let Some(completed) = completed {
                    park::resolve(&completed, &yes(py))?;
                }
            }
            if let Some(parent) = &parent {
                park::forget_awaiting(&task, parent)?;
            }
            return Ok(none());
        }
        let result = stock(py)?.on_task_done.bind(py).call1((group, &task));
        if !tasks.is_truthy()? {
            core.forget_callback(py);
        }
        result
    }
}

/// `async with TaskGroup():`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = TaskGroupCore;

    fn advance<'py>(
        group: &Bound<'py, TaskGroupCore>,
        frame: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let core = group.get();
        if core.is_entered() {
            let message = format!("TaskGroup {} has already been entered", group.repr()?);
            return Err(PyRuntimeError::new_err(message));
        }
        let parent = match core.get(py, |state| &state.event_loop) {
            None => {
                TaskGroupCore::set_event_loop(group, park::running_loop(py)?)?;
                park::current_task(py)?
            }
            Some(event_loop) => stock(py)?
                .tasks
                .bind(py)
                .as_any()
                .get_item(intern!(py, "current_task"))?
                .call1((event_loop,))?,
        };
        core.set_parent_task(parent.clone());
        if parent.is_none() {
            let message = format!(
                "TaskGroup {} cannot determine the parent task",
                group.repr()?
            );
            return Err(PyRuntimeError::new_err(message));
        }
        core.entered.store(true, Ordering::Relaxed);
        Ok(Step::Return(group.as_any().clone()))
    }
}

/// `async with TaskGroup():`, its end.
///
/// Its arguments are the group, the type of an exception, and the exception. The last one is replaced by the
/// group once asyncio's own code has taken over.
pub struct Exit;

const KIND: usize = 1;
const ERROR: usize = 2;

impl Coroutine for Exit {
    type Receiver = TaskGroupCore;

    fn advance<'py>(
        group: &Bound<'py, TaskGroupCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let core = group.get();
        let taken_over = frame.argument(ERROR).is_some_and(|last| last.is(group));
        match input {
            Input::Start => {
                let error = frame.argument(ERROR).filter(|error| !error.is_none());
                let kind = frame.argument(KIND).filter(|kind| !kind.is_none());
                if error.is_some() || kind.is_some() || !is_well(group)? {
                    return take_over(group, frame, kind, error);
                }
                core.exiting.store(true, Ordering::Relaxed);
                wait_for_tasks(group, frame)
            }
            Input::Resumed if taken_over => Ok(Step::Return(frame.awaited()?)),
            Input::Thrown(error) if taken_over => Err(error),
            Input::Resumed => {
                core.set_completed(py.None().into_bound(py));
                if is_well(group)? {
                    wait_for_tasks(group, frame)
                } else {
                    take_over(group, frame, None, None)
                }
            }
            Input::Thrown(error) if park::is_cancellation(py, &error) => {
                core.set_completed(py.None().into_bound(py));
                if core.is_aborting() {
                    call::discard(py, error);
                    return take_over(group, frame, None, None);
                }
                let error = error.into_value(py).into_bound(py).into_any();
                let kind = error.get_type().into_any();
                take_over(group, frame, Some(kind), Some(error))
            }
            Input::Thrown(error) => {
                let_go(group)?;
                Err(error)
            }
        }
    }
}

/// Whether nothing has failed in a group and nobody has cancelled its parent on its behalf.
fn is_well(group: &Bound<'_, TaskGroupCore>) -> PyResult<bool> {
    let py = group.py();
    Ok(!group
        .getattr(intern!(py, "_parent_cancel_requested"))?
        .is_truthy()?
        && !group.getattr(intern!(py, "_errors"))?.is_truthy()?
        && group.getattr(intern!(py, "_base_error"))?.is_none())
}

fn wait_for_tasks<'py>(
    group: &Bound<'py, TaskGroupCore>,
    frame: &Frame<'_, 'py>,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let core = group.get();
    let tasks = core.get(py, |state| &state.tasks);
    if !tasks.is_some_and(|tasks| tasks.is_truthy().unwrap_or(false)) {
        let_go(group)?;
        return Ok(Step::Finish);
    }
    if core.get(py, |state| &state.completed).is_some() {
        // Somebody else's; asyncio's code knows what becomes of it.
        return take_over(group, frame, None, None);
    }
    let event_loop = core.event_loop(py).into_bound(py);
    let completed = park::new_future(&event_loop)?;
    core.set_completed(completed.clone());
    Ok(Step::Wait(completed))
}

/// Hands a group that is being left over to asyncio's own code, with an exception or without.
fn take_over<'py>(
    group: &Bound<'py, TaskGroupCore>,
    frame: &Frame<'_, 'py>,
    kind: Option<Bound<'py, PyAny>>,
    error: Option<Bound<'py, PyAny>>,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let coroutine = stock(py)?
        .exit
        .bind(py)
        .call1((group, kind, error, py.None()))?;
    drop(frame.replace(KIND, None));
    drop(frame.replace(ERROR, Some(group.as_any().clone())));
    operation::iterator_of(&coroutine).map(Step::Delegate)
}

/// What a group lets go of when it is left, where asyncio's does.
fn let_go(group: &Bound<'_, TaskGroupCore>) -> PyResult<()> {
    let py = group.py();
    if stock(py)?.lets_go {
        group.get().set_parent_task(py.None().into_bound(py));
        group.setattr(intern!(py, "_errors"), py.None())?;
        group.setattr(intern!(py, "_base_error"), py.None())?;
    }
    Ok(())
}
