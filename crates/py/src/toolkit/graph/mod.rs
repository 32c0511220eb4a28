//! GraphRunCore: the native half of a run of a `tideloop.Graph`, which is what happens once per node.
//!
//! **In which task a node runs.** A node's coroutine may ask for its task, limit itself in time, be cancelled; so it has to
//! run in a task from its first step on, and that has to be its own task if it waits. A task for each node costs more than all
//! else that is done for one, though, and most nodes of a large graph return without waiting. So nodes are run by
//! *carriers*: tasks of the loop whose coroutine ([`Carry`]) takes ready nodes one after another and takes the first step of
//! each. A node that waits has the carrier, and so the task, for itself from then on, until its end; others go on with
//! what is ready. A carrier takes another node only if the one before has left no trace on its task or its context
//! ([`Imprint`](crate::ffi::imprint::Imprint): nobody keeps a reference to the task or its context, it was not cancelled, has no callback, no variable was set, …).
//! So a node cannot tell its task from one that is only its own, but for this: a weak reference to the task outlives the
//! node, a reference that takes the place of one from before the node is not noticed, the task's name is that of the
//! node only once it waits, and the task returns None.
//!
//! **How many carriers.** Those that were scheduled and have not begun are `starting`. When a node waits, or ends after it
//! has waited, there have to be as many of them as may run: at first one, twice as many for each node that waits, half as
//! many when one finds nothing to do. So nodes that do not wait cost no tasks, and of those that do a hundred thousand have begun within
//! twenty turns. A carrier stops after half a millisecond, or so many nodes, so that the loop gets its turn.
//!
//! **Order.** A node that has ended is entered here before anything else is started; the parent of the run, which waits
//! in Python, is told once the last carrier's task is done: then nothing of the run is left.
//!
//! **Who cancels.** `_abort()` skips what was not started and cancels the tasks of the nodes that wait; a node that is in
//! its first step is cancelled when that is over. A carrier that is cancelled before its first step never was: its done
//! callback sees to it that another one comes.

mod carriers;
mod plan;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::graph::{Cycle, Joined, Progress, Refused, State as Stage};

pub use carriers::Carry;
use carriers::DONE;
pub use plan::GraphPlan;
use plan::{Call, Described};

use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::park;

/// A time that has not come.
const NEVER: i64 = i64::MIN;

/// What happens when a node fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum OnError {
    #[default]
    FailFast,
    SkipDownstream,
    Continue,
}

/// A node of a run.
#[derive(Debug)]
struct Slot {
    call: Call,
    value: Option<Py<PyAny>>,
    error: Option<Py<PyAny>>,
    /// While it waits.
    task: Option<Py<PyAny>>,
    ready: i64,
    started: i64,
    ended: i64,
    /// Its place among those that have ended; NEVER before.
    turn: i64,
}

impl Slot {
    fn new(call: Call) -> Self {
        Self {
            call,
            value: None,
            error: None,
            task: None,
            ready: NEVER,
            started: NEVER,
            ended: NEVER,
            turn: NEVER,
        }
    }

    /// What it passes on.
    fn result(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let result = self.value.as_ref().or(self.error.as_ref());
        result.map(|result| result.clone_ref(py))
    }
}

#[derive(Default)]
struct State {
    event_loop: Option<Py<PyAny>>,
    parent: Option<Py<PyAny>>,
    /// What carriers run in copies of.
    context: Option<Py<PyAny>>,
    /// The done callback that all carriers share.
    callback: Option<Py<PyAny>>,
    /// The future to be told when no carrier is left.
    idle: Option<Py<PyAny>>,
    progress: Option<Progress>,
    slots: Vec<Slot>,
    on_error: OnError,
    limit: Option<usize>,
    /// Whether the loop is one of ours, whose create_task() is its own.
    direct: bool,
    /// Nodes that were started and have not ended.
    running: usize,
    /// Tasks of carriers that are not done.
    alive: usize,
    starting: usize,
    /// Carriers that have taken their last step, and whose tasks have not told yet.
    leaving: usize,
    /// How many carriers may be starting.
    burst: usize,
    /// Whether a carrier takes nodes right now.
    active: bool,
    spawning: bool,
    aborted: Option<Py<PyAny>>,
    failures: Vec<Py<PyAny>>,
    fatal: Option<Py<PyAny>>,
    succeeded: usize,
    failed: usize,
    cancelled: usize,
    skipped: usize,
    /// How many nodes have ended.
    ends: i64,
}

impl State {
    /// How many carriers are to be scheduled.
    fn missing_carriers(&self) -> usize {
        // Without a context the parent has gone, and nobody waits for what would be begun.
        if self.active || self.aborted.is_some() || self.context.is_none() {
            return 0;
        }
        let ready = self.progress.as_ref().map_or(0, Progress::ready);
        let room = self
            .limit
            .map_or(ready, |limit| limit.saturating_sub(self.running));
        ready
            .min(room)
            .min(self.burst)
            .saturating_sub(self.starting)
    }
}

/// The native half of `tideloop.GraphRun`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct GraphRunCore {
    state: LoopCell<State>,
}

impl GraphRunCore {
    fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let event_loop = self.state.with(py, |state| {
            state.event_loop.as_ref().map(|it| it.bind(py).clone())
        });
        event_loop.ok_or_else(|| PyRuntimeError::new_err("the run of the graph was collected"))
    }

    fn now(run: &Bound<'_, Self>) -> PyResult<i64> {
        park::time_ns(&run.get().event_loop(run.py())?)
    }
}

impl State {
    /// Takes note of a node's end; returns its task, for the caller to drop.
    #[must_use]
    fn end(&mut self, node: u32, now: i64) -> Option<Py<PyAny>> {
        self.ends += 1;
        let slot = &mut self.slots[node as usize];
        slot.ended = now;
        slot.turn = self.ends;
        slot.task.take()
    }

    /// What depends on a node may run.
    fn go_on(&mut self, node: u32, now: i64) {
        let slots = &mut self.slots;
        if let Some(progress) = &mut self.progress {
            progress.done(node, |next| slots[next as usize].ready = now);
        }
    }
}

/// What Python is told of a node: the word for its state, its value, its exception, and its times.
type Told<'py> = (
    &'static str,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

/// The word for a node's state.
fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "waiting",
        Stage::Ready => "ready",
        Stage::Running => "running",
        Stage::Done => "done",
        Stage::Failed => "failed",
        Stage::Skipped => "skipped",
        Stage::LeftOut => "left out",
    }
}

#[pymethods]
impl GraphRunCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            state: LoopCell::new(State::default()),
        }
    }

    /// The run begins, now on the loop's clock, in nanoseconds. `targets`: numbers of the nodes that are asked for, or None for all; `given`: values by number;
    /// `weights`: other estimates, by number.
    #[expect(clippy::too_many_arguments, reason = "once per run, by one caller")]
    fn _begin_with(
        slf: &Bound<'_, Self>,
        event_loop: Py<PyAny>,
        parent: Py<PyAny>,
        plan: &Bound<'_, GraphPlan>,
        on_error: &str,
        limit: Option<usize>,
        targets: Option<Vec<u32>>,
        given: &Bound<'_, PyDict>,
        weights: Vec<(u32, f64)>,
    ) -> PyResult<i64> {
        let py = slf.py();
        let callback = call::bound_function(&DONE, slf.as_any())?;
        let direct = park::creates_tasks_itself(event_loop.bind(py))?;
        let now = park::time_ns(event_loop.bind(py))?;
        let shared = plan.get();
        let mut slots: Vec<Slot> = (shared.calls.iter())
            .map(|call| Slot::new(call.clone_ref(py)))
            .collect();
        let mut numbers = Vec::with_capacity(given.len());
        for (number, value) in given.iter() {
            let number: u32 = number.extract()?;
            if let Some(slot) = slots.get_mut(number as usize) {
                slot.value = Some(value.unbind());
                numbers.push(number);
            }
        }
        let mut plan = shared.plan.clone();
        if !weights.is_empty() {
            let count = plan.len();
            plan.weigh_anew(weights.into_iter().filter(|(number, _)| *number < count));
        }
        // Without targets all nodes but inputs are asked for: an input that nothing needs needs no value.
        let has_inputs = slots.iter().any(|slot| slot.call.function.is_none());
        let targets = targets.or_else(|| {
            let calls = (0..).zip(&slots);
            let wanted = calls.filter(|(_, slot)| slot.call.function.is_some());
            has_inputs.then(|| wanted.map(|(node, _)| node).collect())
        });
        let needed = targets.map(|targets| {
            let has_value = |node: u32| slots[node as usize].value.is_some();
            let targets = targets.into_iter().filter(|node| *node < plan.len());
            plan.needed(targets, has_value)
        });
        let progress = Progress::new(plan, needed.as_deref(), &numbers);
        for (slot, node) in slots.iter_mut().zip(0..) {
            if progress.state(node) == Stage::Ready {
                slot.ready = now;
            }
        }
        let new = State {
            event_loop: Some(event_loop),
            parent: Some(parent),
            context: Some(call::copy_context(py)?.unbind()),
            callback: Some(callback.unbind()),
            progress: Some(progress),
            slots,
            on_error: match on_error {
                "continue" => OnError::Continue,
                "skip_downstream" => OnError::SkipDownstream,
                _ => OnError::FailFast,
            },
            limit,
            direct,
            burst: 1,
            ..State::default()
        };
        let old = slf
            .get()
            .state
            .with(py, |state| std::mem::replace(state, new));
        drop(old);
        Ok(now)
    }

    /// Numbers of the nodes that will run and have no function, so that their values are missing.
    fn _without_value(&self, py: Python<'_>) -> Vec<u32> {
        self.state.with(py, |state| {
            let Some(progress) = &state.progress else {
                return Vec::new();
            };
            let nodes = (0..progress.plan().len()).zip(&state.slots);
            nodes
                .filter(|(node, slot)| {
                    slot.call.function.is_none()
                        && matches!(progress.state(*node), Stage::Ready | Stage::Waiting)
                })
                .map(|(node, _)| node)
                .collect()
        })
    }

    /// Start what is ready.
    fn _begin(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::spawn(slf)
    }

    /// Adds a node while it runs: its number.
    fn _add(slf: &Bound<'_, Self>, node: &Bound<'_, PyAny>) -> PyResult<u32> {
        let py = slf.py();
        let count = slf.get().state.with(py, |state| state.slots.len());
        let described = Described::read(node, count)?;
        let now = Self::now(slf)?;
        let added = slf.get().state.with(py, |state| {
            let progress = state.progress.as_mut()?;
            let (dependencies, weight) = (&described.dependencies, described.weight);
            let (number, stage) = progress.add(dependencies, weight, described.priority);
            let mut slot = Slot::new(described.call);
            slot.ready = if stage == Stage::Ready { now } else { NEVER };
            state.skipped += usize::from(stage == Stage::Skipped);
            state.slots.push(slot);
            Some(number)
        });
        let Some(number) = added else {
            return Err(PyRuntimeError::new_err(
                "the run of the graph was collected",
            ));
        };
        Self::spawn(slf)?;
        Ok(number)
    }

    /// Adds an edge while it runs: None, the word for the state of its second node, which has been started, or the
    /// numbers of the nodes of a cycle.
    fn _join<'py>(
        slf: &Bound<'py, Self>,
        first: u32,
        second: u32,
    ) -> PyResult<(Option<&'static str>, Option<Vec<u32>>)> {
        let py = slf.py();
        slf.get().state.with(py, |state| {
            let count = state.slots.len() as u32;
            let Some(progress) = state
                .progress
                .as_mut()
                .filter(|_| first < count && second < count)
            else {
                return Ok((Some("collected"), None));
            };
            match progress.join(first, second) {
                Ok(Joined::Known) => Ok((None, None)),
                Ok(Joined::Added(skipped)) => {
                    state.skipped += skipped.len();
                    Ok((None, None))
                }
                Err(Refused::Late(stage)) => Ok((Some(word(stage)), None)),
                Err(Refused::Cycle(Cycle(path))) => Ok((None, Some(path))),
            }
        })
    }

    /// Skip what was not started, cancel what runs.
    #[pyo3(signature = (msg=None))]
    fn _abort<'py>(slf: &Bound<'py, Self>, msg: Option<Bound<'py, PyAny>>) -> PyResult<()> {
        Self::abort(slf, msg)
    }

    /// The parent has left; it is not kept alive by whoever keeps the run.
    fn _close(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| {
            (
                state.parent.take(),
                state.context.take(),
                state.idle.take(),
                state.callback.take(),
            )
        });
        drop(old);
    }

    /// A node that had to be let in runs only from now on.
    fn _started(slf: &Bound<'_, Self>, node: u32) -> PyResult<()> {
        let now = Self::now(slf)?;
        slf.get().state.with(slf.py(), |state| {
            if let Some(slot) = state.slots.get_mut(node as usize) {
                slot.started = now;
            }
        });
        Ok(())
    }

    /// How urgent a node is to a limiter: by its priority, then by the longest way from it to the end.
    fn _rank(&self, py: Python<'_>, node: u32) -> i64 {
        self.state.with(py, |state| {
            let progress = state.progress.as_ref();
            let Some(progress) = progress.filter(|it| node < it.plan().len()) else {
                return 0;
            };
            let plan = progress.plan();
            // In milliseconds, of 32 bits, which a float does not overflow but ends at.
            let longest = (plan.longest(node) * 1e3) as u32;
            i64::from(plan.priority(node)) << 32 | i64::from(longest)
        })
    }

    /// How a node is: the word for its state, its value, its exception, and when it was ready, started and ended, in
    /// nanoseconds of the loop's clock.
    fn _node<'py>(&self, py: Python<'py>, node: u32) -> Told<'py> {
        self.state.with(py, |state| {
            let (Some(slot), Some(progress)) =
                (state.slots.get(node as usize), state.progress.as_ref())
            else {
                return ("unknown", None, None, None, None, None);
            };
            let time = |time: i64| (time != NEVER).then_some(time);
            (
                word(progress.state(node)),
                slot.value.as_ref().map(|it| it.bind(py).clone()),
                slot.error.as_ref().map(|it| it.bind(py).clone()),
                time(slot.ready),
                time(slot.started),
                time(slot.ended),
            )
        })
    }

    /// How many nodes there are, are ready, run, and have succeeded, failed, been cancelled and been skipped.
    fn _counts_by_state(
        &self,
        py: Python<'_>,
    ) -> (usize, usize, usize, usize, usize, usize, usize) {
        self.state.with(py, |state| {
            (
                state.slots.len(),
                state.progress.as_ref().map_or(0, Progress::ready),
                state.running,
                state.succeeded,
                state.failed,
                state.cancelled,
                state.skipped,
            )
        })
    }

    /// Numbers of the nodes that the run was waiting for, in their order.
    fn _chain(&self, py: Python<'_>) -> Vec<u32> {
        self.state.with(py, |state| {
            let Some(progress) = &state.progress else {
                return Vec::new();
            };
            // By their order: the clock may say the same of several.
            let end = |node: u32| {
                let slot = state.slots.get(node as usize)?;
                (slot.turn != NEVER).then_some(slot.turn)
            };
            progress.plan().chain(end)
        })
    }

    /// Numbers of what a node depends on in this run.
    fn _dependencies(&self, py: Python<'_>, node: u32) -> Vec<u32> {
        self.state.with(py, |state| {
            let progress = state.progress.as_ref();
            let progress = progress.filter(|progress| node < progress.plan().len());
            progress.map_or_else(Vec::new, |it| it.plan().dependencies(node).to_vec())
        })
    }

    /// What has failed, in the order in which it did.
    #[getter]
    fn _failures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let failures: Vec<_> = self.state.with(py, |state| {
            let failures = state.failures.iter();
            failures.map(|failure| failure.bind(py).clone()).collect()
        });
        PyList::new(py, failures)
    }

    /// What must be raised bare, if anything.
    #[getter]
    fn _fatal<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.with(py, |state| {
            state.fatal.as_ref().map(|fatal| fatal.bind(py).clone())
        })
    }

    /// Tasks of the run that are not done.
    #[getter]
    fn _alive(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.alive)
    }

    #[getter]
    fn _aborted(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.aborted.is_some())
    }

    #[setter(_idle)]
    fn set_idle(&self, py: Python<'_>, idle: Option<Py<PyAny>>) {
        let old = self
            .state
            .with(py, |state| std::mem::replace(&mut state.idle, idle));
        drop(old);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .try_with(|state| {
                visit.call(&state.event_loop)?;
                visit.call(&state.parent)?;
                visit.call(&state.context)?;
                visit.call(&state.callback)?;
                visit.call(&state.idle)?;
                visit.call(&state.aborted)?;
                visit.call(&state.fatal)?;
                state.failures.iter().try_for_each(|it| visit.call(it))?;
                state.slots.iter().try_for_each(|slot| {
                    slot.call.traverse(&visit)?;
                    visit.call(&slot.value)?;
                    visit.call(&slot.error)?;
                    visit.call(&slot.task)
                })
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}
