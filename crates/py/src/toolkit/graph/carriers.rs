//! Carriers: the tasks that nodes of a graph run in. The head of the folder explains them.

use pyo3::exceptions::{PyGeneratorExit, PyKeyboardInterrupt, PyRuntimeError, PySystemExit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tideloop_core::waiters::Ticket;

use super::{GraphRunCore, OnError};
use crate::ffi::call::{self, Callback, Definition};
use crate::ffi::function::Coroutine;
use crate::ffi::imprint::Imprint;
use crate::ffi::operation::{self, Begun, Frame, Input, Step};
use crate::ffi::park::{self, Ending};
use crate::ffi::snapshot;

/// Nanoseconds after which a carrier lets the loop have its turn.
const QUANTUM: i64 = 500_000;
/// Nodes after which it does, also if the clock stands still.
const MOST: u32 = 1024;
/// Carriers that are scheduled at once.
const MOST_STARTING: usize = 4096;

/// The coroutine of a carrier.
pub struct Carry;

impl Coroutine for Carry {
    type Receiver = GraphRunCore;
    const KEEPS: usize = 1;

    fn advance<'py>(
        run: &Bound<'py, GraphRunCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        // An eager task that was made within spawn() has begun nothing: it does in its loop's next turn, as others do.
        let begun = frame.ticket().to_u64() != u64::MAX;
        let outcome = match input {
            Input::Start if run.get().state.with(py, |state| state.spawning) => {
                return Ok(Step::Yield);
            }
            Input::Start => return carry(run, frame),
            Input::Resumed if !begun => return carry(run, frame),
            Input::Thrown(error) if !begun => return Err(error),
            Input::Resumed => Ok(frame.awaited()?),
            // Nobody is to run any more: the loop has gone, or the task is garbage.
            Input::Thrown(error)
                if error.is_instance_of::<PyGeneratorExit>(py) && !in_own_task(run, frame) =>
            {
                return Err(error);
            }
            Input::Thrown(error) => Err(error),
        };
        let node = frame.ticket().to_u64() as u32;
        let now = GraphRunCore::now(run)?;
        let ended = GraphRunCore::ended(run, node, outcome, now);
        GraphRunCore::leave(run)?;
        ended.map(|()| Step::Finish)
    }
}

/// Whether the task of the node runs: then the node has raised, and nobody closes it.
fn in_own_task(run: &Bound<'_, GraphRunCore>, frame: &Frame<'_, '_>) -> bool {
    let py = frame.py();
    let node = frame.ticket().to_u64() as u32;
    let own = run.get().state.with(py, |state| {
        let slot = state.slots.get(node as usize)?;
        slot.task.as_ref().map(|task| task.bind(py).clone())
    });
    own.is_some_and(|own| park::current_task(py).is_ok_and(|task| task.is(&own)))
}

/// Takes ready nodes until one of them waits.
fn carry<'py>(run: &Bound<'py, GraphRunCore>, frame: &Frame<'_, 'py>) -> PyResult<Step<'py>> {
    let py = frame.py();
    let nested = run.get().state.with(py, |state| {
        state.starting = state.starting.saturating_sub(1);
        std::mem::replace(&mut state.active, true)
    });
    let waits = carry_on(run, py);
    run.get().state.with(py, |state| state.active = nested);
    match waits {
        Ok(Some((node, iterator, yielded))) => {
            frame.set_ticket(Ticket::from_u64(u64::from(node)));
            GraphRunCore::waits(run, node)?;
            Ok(Step::Awaits(iterator, yielded))
        }
        Ok(None) => GraphRunCore::leave(run).map(|()| Step::Finish),
        Err(error) => GraphRunCore::leave(run).and(Err(error)),
    }
}

/// A node that waits, what it steps through, and what that has yielded.
type Waits<'py> = (u32, Bound<'py, PyAny>, Bound<'py, PyAny>);

fn carry_on<'py>(run: &Bound<'py, GraphRunCore>, py: Python<'py>) -> PyResult<Option<Waits<'py>>> {
    let imprint = Imprint::take(py)?;
    let began = GraphRunCore::now(run)?;
    let mut now = began;
    let mut arguments = Vec::new();
    for count in 1.. {
        let Some(job) = GraphRunCore::take(run, now, &mut arguments) else {
            if count == 1 {
                let state = &run.get().state;
                state.with(py, |state| state.burst = (state.burst / 2).max(1));
            }
            break;
        };
        let made = call::vector(&job.function, &arguments, job.keywords.as_ref());
        arguments.clear();
        let outcome = match made {
            Ok(made) if operation::is_awaitable(&made) => {
                let begun = operation::iterator_of(&made).and_then(|iterator| {
                    let begun = operation::begin(&iterator)?;
                    Ok((iterator, begun))
                });
                match begun {
                    Ok((iterator, Begun::Waits(yielded))) => {
                        return Ok(Some((job.node, iterator, yielded)));
                    }
                    Ok((_, Begun::Returned(value))) => Ok(value),
                    Err(error) => Err(error),
                }
            }
            other => other,
        };
        drop(job.function);
        now = GraphRunCore::now(run)?;
        GraphRunCore::ended(run, job.node, outcome, now)?;
        let clean = imprint.as_ref().is_some_and(Imprint::holds);
        if !clean || count >= MOST || now - began > QUANTUM {
            break;
        }
    }
    Ok(None)
}

/// What a carrier is to run next.
struct Job<'py> {
    node: u32,
    function: Bound<'py, PyAny>,
    keywords: Option<Bound<'py, PyTuple>>,
}

struct Done;

impl Callback for Done {
    type Receiver = GraphRunCore;

    fn call<'py>(run: &Bound<'py, GraphRunCore>, task: &Bound<'py, PyAny>) -> PyResult<()> {
        GraphRunCore::carrier_done(run, task)
    }
}

pub(super) static DONE: Definition = Definition::told::<Done>(c"_carrier_done");

impl GraphRunCore {
    /// Takes a node to run; its arguments go into a list.
    fn take<'py>(
        run: &Bound<'py, Self>,
        now: i64,
        arguments: &mut Vec<Bound<'py, PyAny>>,
    ) -> Option<Job<'py>> {
        let py = run.py();
        run.get().state.with(py, |state| {
            if state.limit.is_some_and(|limit| state.running >= limit) {
                return None;
            }
            let node = state.progress.as_mut()?.take()?;
            state.running += 1;
            let slots = &mut state.slots;
            for &argument in &slots[node as usize].call.arguments {
                // Whatever a node depends on has ended.
                let result = slots[argument as usize].result(py);
                arguments.push(result.unwrap_or_else(|| py.None()).into_bound(py));
            }
            let slot = &mut slots[node as usize];
            slot.started = now;
            let call = &slot.call;
            let function = call.function.as_ref();
            Some(Job {
                node,
                function: function
                    .map_or_else(|| py.None(), |it| it.clone_ref(py))
                    .into_bound(py),
                keywords: call.keywords.as_ref().map(|it| it.bind(py).clone()),
            })
        })
    }

    /// A node waits: the carrier's task is its own from now on.
    fn waits(run: &Bound<'_, Self>, node: u32) -> PyResult<()> {
        let py = run.py();
        let task = park::current_task(py)?;
        let kept = task.clone().unbind();
        let (name, aborted) = run.get().state.with(py, |state| {
            state.burst = (state.burst * 2).min(MOST_STARTING);
            let slot = &mut state.slots[node as usize];
            slot.task = Some(kept);
            (
                slot.call.name.bind(py).clone(),
                state.aborted.as_ref().map(|it| it.bind(py).clone()),
            )
        });
        let named = call::method1(&task, intern!(py, "set_name"), &name).map(drop);
        if let Some(message) = aborted {
            // In its first step the run was given up.
            call::method1(&task, intern!(py, "cancel"), &message)?;
        }
        named.and(Self::spawn(run))
    }

    /// A node has ended.
    fn ended<'py>(
        run: &Bound<'py, Self>,
        node: u32,
        outcome: PyResult<Bound<'py, PyAny>>,
        now: i64,
    ) -> PyResult<()> {
        let py = run.py();
        let error = match outcome {
            Ok(value) => {
                let value = value.unbind();
                let task = run.get().state.with(py, |state| {
                    state.succeeded += 1;
                    state.running -= 1;
                    let task = state.end(node, now);
                    state.slots[node as usize].value = Some(value);
                    state.go_on(node, now);
                    task
                });
                drop(task.map(|task| task.into_bound(py)));
                return Ok(());
            }
            Err(error) => error,
        };
        let fatal = error.is_instance_of::<PyKeyboardInterrupt>(py)
            || error.is_instance_of::<PySystemExit>(py);
        let error = error.into_value(py).into_bound(py).into_any();
        let cancelled = park::is_cancelled_error(&error);
        let kept = error.clone().unbind();
        let (task, stops) = run.get().state.with(py, |state| {
            state.running -= 1;
            let task = state.end(node, now);
            let slot = &mut state.slots[node as usize];
            slot.error = Some(kept.clone_ref(py));
            if cancelled {
                state.cancelled += 1;
            } else {
                state.failed += 1;
                state.failures.push(kept.clone_ref(py));
            }
            if fatal && state.fatal.is_none() {
                state.fatal = Some(kept.clone_ref(py));
            }
            if state.on_error == OnError::Continue {
                state.go_on(node, now);
            } else if let Some(progress) = &mut state.progress {
                state.skipped += progress.failed(node).len();
            }
            (
                task,
                fatal || (!cancelled && state.on_error == OnError::FailFast),
            )
        });
        drop(kept.into_bound(py));
        drop(task.map(|task| task.into_bound(py)));
        if stops {
            Self::abort(run, None)?;
        }
        if fatal {
            return Err(PyErr::from_value(error));
        }
        Ok(())
    }

    /// The last step of a carrier.
    fn leave(run: &Bound<'_, Self>) -> PyResult<()> {
        run.get().state.with(run.py(), |state| state.leaving += 1);
        Self::spawn(run)
    }

    /// Schedules as many carriers as there have to be.
    pub(super) fn spawn(run: &Bound<'_, Self>) -> PyResult<()> {
        let py = run.py();
        let wanted = run.get().state.with(py, |state| {
            let wanted = !state.spawning && state.missing_carriers() > 0;
            state.spawning |= wanted;
            wanted
        });
        if !wanted {
            return Ok(());
        }
        let result = Self::spawn_some(run);
        run.get().state.with(py, |state| state.spawning = false);
        result
    }

    fn spawn_some(run: &Bound<'_, Self>) -> PyResult<()> {
        let py = run.py();
        let event_loop = run.get().event_loop(py)?;
        let direct = run.get().state.with(py, |state| state.direct);
        // Counted before: an eager task takes its first step as it is made, and waits for its turn in it.
        while run.get().state.with(py, |state| {
            let wanted = state.missing_carriers() > 0;
            state.starting += usize::from(wanted);
            state.alive += usize::from(wanted);
            wanted
        }) {
            let made = Self::make_carrier(run, &event_loop, direct);
            if let Err(error) = made {
                run.get().state.with(py, |state| {
                    state.starting = state.starting.saturating_sub(1);
                    state.alive -= 1;
                });
                return Err(error);
            }
        }
        Ok(())
    }

    fn make_carrier<'py>(
        run: &Bound<'py, Self>,
        event_loop: &Bound<'py, PyAny>,
        direct: bool,
    ) -> PyResult<()> {
        let py = run.py();
        let (context, callback, parent) = run.get().state.with(py, |state| {
            let bound = |object: &Option<Py<PyAny>>| object.as_ref().map(|it| it.bind(py).clone());
            (
                bound(&state.context),
                bound(&state.callback),
                bound(&state.parent),
            )
        });
        let (Some(context), Some(callback)) = (context, callback) else {
            return Err(PyRuntimeError::new_err(
                "the run of the graph was collected",
            ));
        };
        let context = snapshot::copy(&context)?;
        let coroutine = call::method0(run.as_any(), intern!(py, "_carry"))?;
        let made = if direct && park::spawns(event_loop) {
            park::spawn(event_loop, &coroutine, None, Some(context))
        } else {
            park::create_task(event_loop, &coroutine, None, Some(&context))
        };
        let task = match made {
            Ok(task) => task,
            Err(error) => {
                call::method0(&coroutine, intern!(py, "close"))?;
                return Err(error);
            }
        };
        if park::is_done(&task)? {
            // It was eager.
            return Self::carrier_done(run, &task);
        }
        if let Some(parent) = parent {
            park::note_awaiting(&task, &parent)?;
        }
        call::add_done_callback(&task, &callback)
    }

    /// The task of a carrier is done.
    fn carrier_done<'py>(run: &Bound<'py, Self>, task: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = run.py();
        let parent = run.get().state.with(py, |state| {
            state.alive = state.alive.saturating_sub(1);
            if state.leaving > 0 {
                state.leaving -= 1;
            } else {
                // It was cancelled before its first step.
                state.starting = state.starting.saturating_sub(1);
            }
            state.parent.as_ref().map(|parent| parent.bind(py).clone())
        });
        if let Some(parent) = parent {
            park::forget_awaiting(task, &parent)?;
        }
        let ended = match park::ending(task)? {
            Ending::Error(error) if !park::is_cancelled_error(&error) => {
                // What a node raises is kept with the node: this cannot go on.
                let kept = error.unbind();
                let surplus = run.get().state.with(py, |state| match &mut state.fatal {
                    None => {
                        state.fatal = Some(kept);
                        None
                    }
                    Some(_) => Some(kept),
                });
                drop(surplus.map(|surplus| surplus.into_bound(py)));
                Self::abort(run, None)
            }
            _ => Self::spawn(run),
        };
        let idle = run.get().state.with(py, |state| {
            let idle = state.idle.as_ref().filter(|_| state.alive == 0);
            idle.map(|idle| idle.bind(py).clone())
        });
        if let Some(idle) = idle {
            park::resolve(&idle, &py.None().into_bound(py))?;
        }
        ended
    }

    /// Skips what was not started and cancels what waits.
    pub(super) fn abort<'py>(
        run: &Bound<'py, Self>,
        message: Option<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let py = run.py();
        let message = message.unwrap_or_else(|| py.None().into_bound(py));
        let kept = message.clone().unbind();
        let tasks = run.get().state.with(py, |state| {
            if state.aborted.is_some() {
                return Err(kept);
            }
            state.aborted = Some(kept);
            if let Some(progress) = &mut state.progress {
                state.skipped += progress.stop().len();
            }
            let tasks = state.slots.iter().filter_map(|slot| slot.task.as_ref());
            Ok(tasks.map(|task| task.bind(py).clone()).collect::<Vec<_>>())
        });
        let tasks = match tasks {
            Ok(tasks) => tasks,
            Err(surplus) => {
                drop(surplus.into_bound(py));
                return Ok(());
            }
        };
        // Each of them must be cancelled, whatever goes wrong with another.
        let mut result = Ok(());
        for task in tasks {
            let cancelled = call::method1(&task, intern!(py, "cancel"), &message);
            result = result.and(cancelled.map(drop));
        }
        result
    }
}
