//! TaskGroup: the tasks of a block.
//!
//! What every block does is native: entering, `create_task()`, the callback that takes a task which has
//! not failed out of the group, and leaving while all is well. Everything else is asyncio's own method of
//! this Python version, which finds its attributes here: a task or a block that has failed, a loop of
//! somebody else, a task factory, a subclass with its own `_on_task_done`.
//!
//! **Leaving.** If something goes wrong while a block waits for its tasks, asyncio's `__aexit__` is started
//! then, which is late, but it finds what it would have left itself: until then it would have done nothing but wait.
//! If it is a cancellation that came, asyncio's code is brought to where it waits, and the cancellation is thrown
//! into it there.

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
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::park::{self, Seen};
use crate::ffi::shadows::Within;
use crate::primitives::event::yes;

/// asyncio's own.
struct Stock {
    on_task_done: Py<PyAny>,
    exit: Py<PyAny>,
    /// Whether leaving a group lets go of its parent and of errors, as patch releases of 3.13 began to do.
    lets_go: bool,
    /// Whether a group can be cancelled before it is entered, as from 3.15 on.
    cancels_on_enter: bool,
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
            cancels_on_enter: class.hasattr("cancel")?,
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
        if stock(py)?.cancels_on_enter
            && group
                .getattr(intern!(py, "_cancel_on_enter"))?
                .is_truthy()?
        {
            call::method0(group, intern!(py, "cancel"))?;
        }
        Ok(Step::Return(group.as_any().clone()))
    }
}

/// `async with TaskGroup():`, its end. Its arguments are the group, the type of an exception, and the exception.
///
/// From 3.15 on a group suppresses what it does not raise.
pub struct Exit<const SUPPRESSES: bool>;

const KIND: usize = 1;
const ERROR: usize = 2;

impl<const SUPPRESSES: bool> Coroutine for Exit<SUPPRESSES> {
    type Receiver = TaskGroupCore;

    fn advance<'py>(
        group: &Bound<'py, TaskGroupCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let core = group.get();
        match input {
            Input::Start => {
                let error = frame.argument(ERROR).filter(|error| !error.is_none());
                let kind = frame.argument(KIND).filter(|kind| !kind.is_none());
                if error.is_some() || kind.is_some() || !is_well(group)? {
                    return Ok(Step::Become(stock_exit(group, kind, error)?, None));
                }
                core.exiting.store(true, Ordering::Relaxed);
            }
            Input::Resumed => {
                core.set_completed(py.None().into_bound(py));
                if !is_well(group)? {
                    return Ok(Step::Become(stock_exit(group, None, None)?, None));
                }
            }
            Input::Thrown(error) if park::is_cancellation(py, &error) => {
                let coroutine = waiting_exit(group)?;
                return Ok(Step::Become(coroutine, Some(error)));
            }
            Input::Thrown(error) => {
                let_go(group)?;
                return Err(error);
            }
        }
        match wait_for_tasks(group)? {
            Some(step) => Ok(step),
            None if SUPPRESSES => Ok(Step::Return(yes(py))),
            None => Ok(Step::Finish),
        }
    }

    fn inside<'py>(
        group: &Bound<'py, TaskGroupCore>,
        _: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        Ok(vec![Within::stock("TaskGroup._aexit", group.as_any())])
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

/// Waits for tasks, if there are any; else the group is left.
fn wait_for_tasks<'py>(group: &Bound<'py, TaskGroupCore>) -> PyResult<Option<Step<'py>>> {
    let py = group.py();
    let core = group.get();
    let tasks = core.get(py, |state| &state.tasks);
    if !tasks.is_some_and(|tasks| tasks.is_truthy().unwrap_or(false)) {
        let_go(group)?;
        return Ok(None);
    }
    if core.get(py, |state| &state.completed).is_some() {
        // Somebody else's; asyncio's code knows what becomes of it.
        return Ok(Some(Step::Become(stock_exit(group, None, None)?, None)));
    }
    let event_loop = core.event_loop(py).into_bound(py);
    let completed = park::new_future(&event_loop)?;
    core.set_completed(completed.clone());
    Ok(Some(Step::Wait(completed)))
}

/// asyncio's own code for the end of a group, with an exception or without.
fn stock_exit<'py>(
    group: &Bound<'py, TaskGroupCore>,
    kind: Option<Bound<'py, PyAny>>,
    error: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = group.py();
    let exit = stock(py)?.exit.bind(py);
    exit.call1((group, kind, error, py.None()))
}

/// The same, where it waits for the tasks. That it does, even if there are none any more, is seen to by something in
/// their set that is no task, since nothing else runs meanwhile.
fn waiting_exit<'py>(group: &Bound<'py, TaskGroupCore>) -> PyResult<Bound<'py, PyAny>> {
    let py = group.py();
    let tasks = group.get().tasks(py).into_bound(py);
    // What was waited for may have been cancelled. asyncio's code makes another one.
    group.get().set_completed(py.None().into_bound(py));
    let coroutine = stock_exit(group, None, None)?;
    let stand_in = coroutine.clone();
    call::method1(&tasks, intern!(py, "add"), &stand_in)?;
    let awaited = call::method1(&coroutine, intern!(py, "send"), &py.None().into_bound(py));
    call::method1(&tasks, intern!(py, "discard"), &stand_in)?;
    // No task will see that future.
    park::take_back(&awaited?)?;
    Ok(coroutine)
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
