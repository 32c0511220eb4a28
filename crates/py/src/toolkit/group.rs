//! GroupCore: the native half of `tideloop.Group`, which is what happens once per task.
//!
//! Spawning makes a handle and a task of the loop; the task's done callback (`task_handle`) takes the
//! result and comes back here. Entering and leaving the block, cancelling and the report of errors
//! happen once per group and are Python's (`tideloop.groups`), which is told of every task that has
//! failed by `_failed(error)`.
//!
//! **Owners.** The group owns its running tasks and their handles; a handle only knows where to find its task
//! here. So it refers to nothing that could lead back to it, and the collector need not look at it before it
//! has a result that might (`task_handle`).
//!
//! **Order.** A handle is in the group's list before its function is called, since a call may spawn, and
//! an eager task may end within it. Tasks that the limit held back are started by one place only
//! (`start_waiting`, guarded against itself), so that eager ones which end at once do not nest.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};

use super::task_handle::{self, End, Start, TaskHandle};
use crate::ffi::call::{self, Callback, Definition};
use crate::ffi::cell::LoopCell;
use crate::ffi::park::{self, Ending};
use crate::ffi::roll::Place;

/// What is needed to make tasks.
struct Helpers {
    /// `_prepared(group, fn, args, timeout)`: the coroutine of a task with a limiter or a time limit.
    prepared: Py<PyAny>,
    /// `_coroutine_of(made, fn)`: for a function that returned another awaitable.
    coroutine_of: Py<PyAny>,
}

fn helpers(py: Python<'_>) -> PyResult<&'static Helpers> {
    static HELPERS: PyOnceLock<Helpers> = PyOnceLock::new();
    HELPERS.get_or_try_init(py, || {
        let groups = py.import("tideloop.groups")?;
        Ok(Helpers {
            prepared: groups.getattr("_prepared")?.unbind(),
            coroutine_of: groups.getattr("_coroutine_of")?.unbind(),
        })
    })
}

#[derive(Default)]
struct State {
    event_loop: Option<Py<PyAny>>,
    parent: Option<Py<PyAny>>,
    name: Option<Py<PyAny>>,
    handles: Option<Py<PyList>>,
    done: Option<Py<PyList>>,
    waiting: VecDeque<Py<TaskHandle>>,
    /// The running tasks by their addresses.
    tasks: HashMap<usize, Member, BuildHasherDefault<AddressHasher>>,
    /// The done callback that all tasks share: one object for each would be a third of what a task costs.
    callback: Option<Py<PyAny>>,
    /// Where handles find the group.
    weak: Option<Py<PyWeakrefReference>>,
    /// Futures to be told of the next task that ends.
    watchers: Option<Py<PyList>>,
    /// The future to be told when no task is left.
    idle: Option<Py<PyAny>>,
    limit: Option<usize>,
    /// Whether a task's call must be let in or limited in time by Python.
    limited: bool,
    /// Whether the loop is one of ours, whose create_task() is its own.
    direct: bool,
    running: usize,
    cancelled: usize,
    /// What all tasks were cancelled with: those as well that were being made then.
    aborted: Option<Py<PyAny>>,
    accepts: bool,
    starting: bool,
}

/// A task that runs.
struct Member {
    handle: Py<TaskHandle>,
    task: Py<PyAny>,
}

/// Addresses are multiples of 16 and mostly rise from task to task: so do their places in the map, which keeps
/// neighbours in one cache line. What tells those in one place apart are the upper bits, which are mixed.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8 | u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn write_usize(&mut self, address: usize) {
        let address = address as u64;
        let mixed = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = (address >> 4) ^ (mixed & (0x7f << 57));
    }
}

struct Done;

impl Callback for Done {
    type Receiver = GroupCore;

    fn call<'py>(group: &Bound<'py, GroupCore>, task: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = group.py();
        match group.get().remove(py, task) {
            Some(handle) => task_handle::finish(group, &handle, task),
            None => Ok(()),
        }
    }
}

static DONE: Definition = Definition::told::<Done>(c"_task_done");

/// The native half of `tideloop.Group`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct GroupCore {
    state: LoopCell<State>,
    place: Place,
}

/// A call as it is made.
struct Call<'a, 'py> {
    function: &'a Bound<'py, PyAny>,
    arguments: &'a Bound<'py, PyTuple>,
    timeout: Option<&'a Bound<'py, PyAny>>,
    context: Option<&'a Bound<'py, PyAny>>,
}

impl GroupCore {
    fn list<'py>(
        &self,
        py: Python<'py>,
        which: impl FnOnce(&State) -> &Option<Py<PyList>>,
    ) -> Bound<'py, PyList> {
        let found = self.state.with(py, |state| {
            which(state).as_ref().map(|list| list.bind(py).clone())
        });
        found.unwrap_or_else(|| PyList::empty(py))
    }

    /// Makes the task of a handle. Nothing is left behind if that fails.
    fn launch<'py>(
        slf: &Bound<'py, Self>,
        handle: &Bound<'py, TaskHandle>,
        call: &Call<'_, 'py>,
    ) -> PyResult<()> {
        let py = slf.py();
        // Counted before: the function may spawn, and what it spawns finds the place taken.
        slf.get().state.with(py, |state| state.running += 1);
        let begun = Self::begin(slf, handle, call).and_then(|task| {
            let done = park::is_done(&task)?;
            Ok((task, done))
        });
        let (task, done) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                slf.get().state.with(py, |state| state.running -= 1);
                slf.get().check_idle(py)?;
                return Err(error);
            }
        };
        if done {
            // It was eager.
            return task_handle::finish(slf, handle, &task);
        }
        handle.get().run(py, &task);
        if let Err(error) = slf.get().watch(handle, &task) {
            // A task of somebody else's making that cannot be watched: it is not of this group.
            slf.get().state.with(py, |state| state.running -= 1);
            drop(slf.get().remove(py, &task));
            slf.get().check_idle(py)?;
            call::method0(&task, intern!(py, "cancel"))?;
            return Err(error);
        }
        // The group, or the handle, was cancelled while the function was called, or in the first step of an eager task.
        let late = handle.get().take_early(py).or_else(|| {
            slf.get().state.with(py, |state| {
                state.aborted.as_ref().map(|it| it.bind(py).clone())
            })
        });
        if let Some(message) = late {
            call::method1(&task, intern!(py, "cancel"), &message)?;
        }
        Ok(())
    }

    /// The loop that the group runs on; None before it is entered, and once it was collected.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.with(py, |state| {
            state.event_loop.as_ref().map(|it| it.bind(py).clone())
        })
    }

    /// Calls the function, and makes a task of what it returns.
    fn begin<'py>(
        slf: &Bound<'py, Self>,
        handle: &Bound<'py, TaskHandle>,
        call: &Call<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let helpers = helpers(py)?;
        let (event_loop, limited, direct) = slf.get().state.with(py, |state| {
            (
                state.event_loop.as_ref().map(|it| it.bind(py).clone()),
                state.limited,
                state.direct,
            )
        });
        let event_loop =
            event_loop.ok_or_else(|| PyRuntimeError::new_err("the group was collected"))?;
        let coroutine = if limited || call.timeout.is_some() {
            helpers
                .prepared
                .bind(py)
                .call1((slf, call.function, call.arguments, call.timeout))?
        } else {
            let made = match call.context {
                None => call.function.call1(call.arguments)?,
                Some(context) => {
                    call::in_context(context, |_| call.function.call1(call.arguments))?
                }
            };
            if call::is_exact_coroutine(&made) {
                made
            } else {
                helpers.coroutine_of.bind(py).call1((made, call.function))?
            }
        };
        let name = handle.get().task_name(py);
        let made = if direct && park::spawns(&event_loop) {
            park::spawn(&event_loop, &coroutine, name, call.context.cloned())
        } else {
            park::create_task(&event_loop, &coroutine, name, call.context)
        };
        made.or_else(|error| {
            call::method0(&coroutine, intern!(py, "close"))?;
            Err(error)
        })
    }

    /// Has the end of a task told.
    fn watch<'py>(
        &self,
        handle: &Bound<'py, TaskHandle>,
        task: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let py = task.py();
        let kept = Member {
            handle: handle.clone().unbind(),
            task: task.clone().unbind(),
        };
        let (old, callback, parent) = self.state.with(py, |state| {
            (
                state.tasks.insert(task.as_ptr().addr(), kept),
                state.callback.as_ref().map(|it| it.bind(py).clone()),
                state.parent.as_ref().map(|it| it.bind(py).clone()),
            )
        });
        drop(old);
        if let Some(parent) = &parent {
            park::note_awaiting(task, parent)?;
        }
        match callback {
            Some(callback) => call::add_done_callback(task, &callback),
            None => Err(PyRuntimeError::new_err("the group was collected")),
        }
    }

    /// A task is not the group's any more. Its handle, if it was.
    fn remove<'py>(
        &self,
        py: Python<'py>,
        task: &Bound<'py, PyAny>,
    ) -> Option<Bound<'py, TaskHandle>> {
        let address = task.as_ptr().addr();
        let member = self.state.with(py, |state| state.tasks.remove(&address))?;
        drop(member.task.into_bound(py));
        Some(member.handle.into_bound(py))
    }

    /// The running task at an address.
    pub fn task_at<'py>(&self, py: Python<'py>, address: usize) -> Option<Bound<'py, PyAny>> {
        self.state.with(py, |state| {
            let member = state.tasks.get(&address)?;
            Some(member.task.bind(py).clone())
        })
    }

    /// The parent awaits this task no more.
    pub fn stops_awaiting(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = task.py();
        let parent = self.state.with(py, |state| {
            state.parent.as_ref().map(|parent| parent.bind(py).clone())
        });
        parent.map_or(Ok(()), |parent| park::forget_awaiting(task, &parent))
    }

    /// A handle has ended; `ran` tells whether it had a task.
    pub fn task_ended<'py>(
        &self,
        slf: &Bound<'py, Self>,
        handle: &Bound<'py, TaskHandle>,
        ending: &Ending<'py>,
        ran: bool,
    ) -> PyResult<()> {
        let py = slf.py();
        let failure = match ending {
            Ending::Error(error) if !park::is_cancelled_error(error) => Some(error),
            _ => None,
        };
        let cancelled = failure.is_none() && !matches!(ending, Ending::Value(_));
        let (done, watchers) = self.state.with(py, |state| {
            state.running -= usize::from(ran);
            state.cancelled += usize::from(cancelled);
            (
                state.done.as_ref().map(|list| list.bind(py).clone()),
                state.watchers.as_ref().map(|list| list.bind(py).clone()),
            )
        });
        if let Some(done) = done {
            done.append(handle)?;
        }
        // Whatever goes wrong with one of these, the others are due: nobody is to wait for ever.
        let told = match failure {
            Some(error) => call::method1(slf.as_any(), intern!(py, "_failed"), error).map(drop),
            None => Ok(()),
        };
        let started = self.start_waiting(slf);
        let woken = watchers.map_or(Ok(()), |watchers| task_handle::wake_all(&watchers));
        self.check_idle(py)?;
        told.and(started).and(woken)
    }

    /// Starts what waits, as far as the limit allows.
    fn start_waiting(&self, slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let begun = self.state.with(py, |state| {
            let begin = !state.starting && !state.waiting.is_empty();
            state.starting |= begin;
            begin
        });
        if !begun {
            return Ok(());
        }
        let result = self.start_some(slf);
        self.state.with(py, |state| state.starting = false);
        result
    }

    fn start_some<'py>(&self, slf: &Bound<'py, Self>) -> PyResult<()> {
        let py = slf.py();
        loop {
            let next = self.state.with(py, |state| {
                if state.limit.is_some_and(|limit| state.running >= limit) {
                    return None;
                }
                state.waiting.pop_front()
            });
            let Some(handle) = next.map(|next| next.into_bound(py)) else {
                return Ok(());
            };
            let Some(start) = handle.get().take_start(py) else {
                continue;
            };
            let (function, arguments) = (
                start.function.into_bound(py),
                start.arguments.into_bound(py),
            );
            let timeout = start.timeout.map(|timeout| timeout.into_bound(py));
            let context = start.context.into_bound(py);
            let call = Call {
                function: &function,
                arguments: &arguments,
                timeout: timeout.as_ref(),
                context: Some(&context),
            };
            if let Err(error) = Self::launch(slf, &handle, &call) {
                let error = error.into_value(py).into_bound(py).into_any();
                let told = TaskHandle::conclude(&handle, End::Error(error.clone().unbind()));
                self.task_ended(slf, &handle, &Ending::Error(error), false)?;
                told?;
            }
        }
    }

    fn check_idle(&self, py: Python<'_>) -> PyResult<()> {
        let idle = self.state.with(py, |state| {
            let idle = state.running == 0 && state.waiting.is_empty();
            state
                .idle
                .as_ref()
                .filter(|_| idle)
                .map(|idle| idle.bind(py).clone())
        });
        if let Some(idle) = idle {
            park::resolve(&idle, &py.None().into_bound(py))?;
        }
        Ok(())
    }

    /// Cancels a handle that waits for the limit. False if it does not.
    pub fn drop_waiting<'py>(
        &self,
        slf: &Bound<'py, Self>,
        handle: &Bound<'py, TaskHandle>,
        message: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<bool> {
        let py = slf.py();
        let found = self.state.with(py, |state| {
            let place = state.waiting.iter().position(|other| other.is(handle))?;
            state.waiting.remove(place)
        });
        if found.map(|found| found.into_bound(py)).is_none() {
            return Ok(false);
        }
        self.never_start(slf, handle, message)?;
        Ok(true)
    }

    fn never_start<'py>(
        &self,
        slf: &Bound<'py, Self>,
        handle: &Bound<'py, TaskHandle>,
        message: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let kept = message.map(|message| message.clone().unbind());
        let told = TaskHandle::conclude(handle, End::Cancelled(kept));
        self.task_ended(slf, handle, &Ending::Cancelled(message.cloned()), false)?;
        told
    }
}

#[pymethods]
impl GroupCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            state: LoopCell::new(State::default()),
            place: Place::default(),
        }
    }

    /// The block begins. `limited`: tasks are prepared by Python.
    fn _open(
        slf: &Bound<'_, Self>,
        event_loop: Py<PyAny>,
        parent: Py<PyAny>,
        name: Option<Py<PyAny>>,
        limit: Option<usize>,
        limited: bool,
    ) -> PyResult<()> {
        let py = slf.py();
        let callback = call::bound_function(&DONE, slf.as_any())?;
        let direct = park::creates_tasks_itself(event_loop.bind(py))?;
        let weak = PyWeakrefReference::new(slf.as_any())?;
        let new = State {
            event_loop: Some(event_loop),
            parent: Some(parent),
            name,
            handles: Some(PyList::empty(py).unbind()),
            done: Some(PyList::empty(py).unbind()),
            callback: Some(callback.unbind()),
            weak: Some(weak.unbind()),
            limit,
            limited,
            direct,
            accepts: true,
            ..State::default()
        };
        let old = slf
            .get()
            .state
            .with(py, |state| std::mem::replace(state, new));
        drop(old);
        slf.get().place.enlist(slf.as_any());
        Ok(())
    }

    /// No more tasks from now on.
    fn _shut(&self, py: Python<'_>) {
        self.state.with(py, |state| state.accepts = false);
    }

    /// The parent has left; it is not kept alive by whoever keeps the group.
    fn _forget_parent(&self, py: Python<'_>) {
        let old = self.state.with(py, |state| state.parent.take());
        drop(old);
    }

    /// Run `fn(*args)` as a task of the group.
    ///
    /// `key` is kept in the handle, for whoever looks up results. `timeout` is in seconds from the task's
    /// start; when it is over the task fails with TimeoutError. With a limit that is used up, `fn` is called
    /// later, in the context of this call. Allowed until the group's last task has ended, so for its tasks as
    /// well.
    ///
    /// Raises RuntimeError, without having called `fn`, if the group was not entered, has ended or is being
    /// cancelled, or belongs to another loop; TypeError for a `fn` that is not callable; and what
    /// `fn(*args)` itself raises, if it is called at once.
    #[pyo3(signature = (r#fn, /, *args, key=None, timeout=None))]
    fn spawn<'py>(
        slf: &Bound<'py, Self>,
        r#fn: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        key: Option<Bound<'py, PyAny>>,
        timeout: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        let py = slf.py();
        let this = slf.get();
        let running = park::current_loop(py)?;
        let (accepts, here, lists, name, full) = this.state.with(py, |state| {
            (
                state.accepts,
                state.event_loop.as_ref().is_some_and(|it| it.is(&running)),
                (state.handles.as_ref().zip(state.weak.as_ref()))
                    .map(|(list, weak)| (list.bind(py).clone(), weak.clone_ref(py))),
                state.name.as_ref().map(|name| name.bind(py).clone()),
                state
                    .limit
                    .is_some_and(|limit| state.running >= limit || !state.waiting.is_empty()),
            )
        });
        let Some((handles, weak)) = lists.filter(|_| accepts && here && r#fn.is_callable()) else {
            call::method1(slf.as_any(), intern!(py, "_refuse"), r#fn)?;
            return Err(PyTypeError::new_err("spawn() takes a coroutine function"));
        };
        let key = key.filter(|key| !key.is_none());
        let name = match name {
            None => None,
            Some(name) => {
                let place = match &key {
                    Some(key) => key.str()?.to_string(),
                    None => handles.len().to_string(),
                };
                Some(
                    PyString::new(py, &format!("{name}[{place}]"))
                        .into_any()
                        .unbind(),
                )
            }
        };
        let handle = TaskHandle::new(py, weak, key.map(Bound::unbind), name)?;
        handles.append(&handle)?;
        if full {
            let context = call::copy_context(py)?;
            TaskHandle::hold(
                &handle,
                Start {
                    function: r#fn.clone().unbind(),
                    arguments: args.clone().unbind(),
                    timeout: timeout.map(Bound::unbind),
                    context: context.unbind(),
                },
            );
            let waiting = handle.clone().unbind();
            this.state
                .with(py, |state| state.waiting.push_back(waiting));
            return Ok(handle);
        }
        let call = Call {
            function: r#fn,
            arguments: args,
            timeout: timeout.as_ref(),
            context: None,
        };
        if let Err(error) = Self::launch(slf, &handle, &call) {
            // It is one of the last, unless the call has spawned a lot.
            for place in (0..handles.len()).rev() {
                if handles.get_item(place)?.is(&handle) {
                    handles.del_item(place)?;
                    break;
                }
            }
            return Err(error);
        }
        Ok(handle)
    }

    /// Cancels what waits for the limit, and every task.
    fn _cancel_all(slf: &Bound<'_, Self>, message: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let kept = message.clone().map_or_else(|| py.None(), Bound::unbind);
        let (waiting, old) = this.state.with(py, |state| {
            let waiting = std::mem::take(&mut state.waiting);
            (waiting, state.aborted.replace(kept))
        });
        drop(old.map(|old| old.into_bound(py)));
        // They are out of the line: each of them must end, whatever goes wrong with another.
        let mut ended = Ok(());
        for handle in waiting {
            ended = ended.and(this.never_start(slf, &handle.into_bound(py), message.as_ref()));
        }
        let message = message.unwrap_or_else(|| py.None().into_bound(py));
        let handles = this.list(py, |state| &state.handles);
        let all = handles.iter().collect::<Vec<_>>();
        for handle in all {
            let handle = handle.cast_into::<TaskHandle>()?;
            let address = handle.get().address(py);
            if let Some(task) = address.and_then(|address| this.task_at(py, address)) {
                let cancelled = call::method1(&task, intern!(py, "cancel"), &message);
                ended = ended.and(cancelled.map(drop));
            }
        }
        ended
    }

    #[getter]
    fn _handles<'py>(&self, py: Python<'py>) -> Bound<'py, PyList> {
        self.list(py, |state| &state.handles)
    }

    #[getter]
    fn _done<'py>(&self, py: Python<'py>) -> Bound<'py, PyList> {
        self.list(py, |state| &state.done)
    }

    #[getter]
    fn _running(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.running)
    }

    #[getter]
    fn _cancelled(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.cancelled)
    }

    #[getter]
    fn _waiting(&self, py: Python<'_>) -> usize {
        self.state.with(py, |state| state.waiting.len())
    }

    #[getter]
    fn _watchers<'py>(&self, py: Python<'py>) -> Bound<'py, PyList> {
        let new = PyList::empty(py);
        self.state.with(py, |state| {
            state
                .watchers
                .get_or_insert_with(|| new.clone().unbind())
                .bind(py)
                .clone()
        })
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
                visit.call(&state.name)?;
                visit.call(&state.handles)?;
                visit.call(&state.done)?;
                visit.call(&state.watchers)?;
                visit.call(&state.idle)?;
                visit.call(&state.callback)?;
                visit.call(&state.weak)?;
                visit.call(&state.aborted)?;
                state.waiting.iter().try_for_each(|it| visit.call(it))?;
                state.tasks.values().try_for_each(|member| {
                    visit.call(&member.handle)?;
                    visit.call(&member.task)
                })
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}
