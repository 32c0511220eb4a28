//! The loop's native half: what is scheduled, what is watched, and in which phase the loop is.
//!
//! The Python half (`tideloop.loop`) subclasses this and asyncio's own selector loop, in this order:
//! what is defined here replaces asyncio's engine, everything else is asyncio's.

use std::sync::Arc;
#[cfg(Py_3_14)]
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::ready::Ready;
use tideloop_core::room::MAX_ROOM;
use tideloop_core::timeout::Slack;
use tideloop_core::timers::{Timers, deadline_ns};
use tideloop_sys::precision::PreciseTimers;
use tideloop_sys::selector::Backend;

use crate::errors::os_error;
use crate::ffi::cell::LoopCell;
use crate::ffi::classes::classes;
use crate::ffi::entry::{Entry, Run};
use crate::ffi::handed::Handed;
use crate::ffi::layout::Node;
use crate::ffi::recent::{Filled, Recent};
use crate::ffi::snapshot::Snapshots;
use crate::ffi::spare::{Running, Spare};
#[cfg(not(Py_3_14))]
use crate::ffi::task::TaskList;
use crate::ffi::{call, future, handed, handle, native};
use crate::handoff::Handoff;
use crate::held::Held;
use crate::loop_clock::LoopClock;
use crate::observe::tasks::{self, Register};
use crate::observe::{self, Observed, level};
use crate::reactor::{Reactor, Side, Slot, Target, source_from};
use crate::turn;
use tideloop_core::observe::book::End;

/// Where the loop is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Idle,
    Running,
    /// A guest between two steps: its host waits for it, so whatever is scheduled ends that wait.
    Hosted,
    Closed,
}

/// What is to run, now and later.
#[derive(Default)]
pub struct Queue {
    pub ready: Ready<Entry>,
    pub timers: Timers<Entry>,
    /// Handles that have run and that nobody else knows, to be filled again.
    pub used: Vec<Py<PyAny>>,
    pub used_timers: Vec<Py<PyAny>>,
    pub spare_handles: Spare,
    pub spare_timers: Spare,
    pub spare_tasks: Spare,
    pub spare_futures: Spare,
    /// Calls of other threads, for which the ring has an entry each.
    pub handed: Handed,
    pub snapshots: Snapshots,
    /// The tuple `("context",)` that was last seen as the keywords of a call: asyncio's tasks always
    /// pass the same one, and a pointer is compared faster than a string.
    pub context_names: Option<Py<PyAny>>,
}

/// Used handles kept at most: about 140 KiB per loop.
pub const MAX_USED: usize = 1024;

/// A time on the loop's clock, as asyncio gives it and as the timers keep it.
#[derive(Debug, Clone, Copy)]
pub struct When {
    pub seconds: f64,
    pub deadline: u64,
    pub slack: Slack,
}

impl Queue {
    /// What the next handle of a call is made of. The classes are those of the two lists.
    #[inline]
    pub fn spare_handle(&mut self, types: &handle::Types) -> handle::SpareHandle {
        match self.used.pop() {
            Some(used) => handle::SpareHandle::Used(used),
            None => types.out_of(handle::Kind::Handle, &mut self.spare_handles),
        }
    }

    /// As [`Queue::spare_handle`], for timers.
    #[inline]
    pub fn spare_timer(&mut self, types: &handle::Types) -> handle::SpareHandle {
        match self.used_timers.pop() {
            Some(used) => handle::SpareHandle::Used(used),
            None => types.out_of(handle::Kind::Timer, &mut self.spare_timers),
        }
    }
}

impl When {
    pub fn at(clock: &LoopClock, seconds: f64) -> Self {
        Self::new(clock.now(), seconds)
    }

    /// As [`When::at`]; None if that time has come.
    pub fn ahead(clock: &LoopClock, seconds: f64) -> Option<Self> {
        let now = clock.now();
        // What is no number has not come, as asyncio compares it.
        let has_come = seconds <= seconds_of(now);
        (!has_come).then(|| Self::new(now, seconds))
    }

    /// So many seconds from now.
    pub fn after(clock: &LoopClock, delay: f64) -> Self {
        let now = clock.now();
        Self::new(now, seconds_of(now) + delay)
    }

    fn new(now: u64, seconds: f64) -> Self {
        let deadline = deadline_ns(seconds);
        Self {
            seconds,
            deadline,
            slack: Slack::of(deadline.saturating_sub(now)),
        }
    }
}

/// Nanoseconds as Python's float seconds.
pub fn seconds_of(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The native half of the event loop.
#[pyclass(frozen, subclass, module = "tideloop._tideloop")]
pub struct LoopCore {
    queue: LoopCell<Queue>,
    reactor: Reactor,
    received: LoopCell<Vec<u8>>,
    recent: LoopCell<Recent>,
    task_factory: LoopCell<Option<Py<PyAny>>>,
    phase: AtomicU8,
    stopping: AtomicBool,
    debug: AtomicBool,
    sleeping: AtomicBool,
    native_tasks: bool,
    /// Whether call_soon is ours, or was overridden: see [`LoopCore::schedules_natively`].
    own_call_soon: AtomicU8,
    /// The same of what has to do with time: see [`LoopCore::has_own_timers`].
    own_timers: AtomicU8,
    /// Where all_tasks() finds the tasks of the thread that runs this loop (3.14); null: not known.
    #[cfg(Py_3_14)]
    thread_tasks: AtomicPtr<Node>,
    #[cfg(not(Py_3_14))]
    tasks: LoopCell<TaskList>,
    handoff: Handoff,
    clock: LoopClock,
    held: Held,
    /// None: nobody observes this loop.
    observed: Option<Arc<Observed>>,
    /// None: it counts nothing of single tasks.
    register: Option<Box<Register>>,
    selector_name: &'static str,
}

impl LoopCore {
    /// Whether tasks may put themselves on this loop's ring: not if a subclass overrides call_soon(),
    /// since it wants to see every call.
    #[inline]
    pub fn schedules_natively(&self, py: Python<'_>, owner: &Bound<'_, PyAny>) -> bool {
        match self.own_call_soon.load(Ordering::Relaxed) {
            1 => true,
            2 => false,
            _ => Self::ask_for(&["call_soon"], &self.own_call_soon, py, owner),
        }
    }

    /// Whether timers may be made and asked for without the methods that do so, and the clock read: not if
    /// a subclass overrides one of them.
    #[inline]
    pub fn has_own_timers(&self, py: Python<'_>, owner: &Bound<'_, PyAny>) -> bool {
        const NAMES: [&str; 4] = ["time", "call_at", "call_later", "call_soon"];
        match self.own_timers.load(Ordering::Relaxed) {
            1 => true,
            2 => false,
            _ => Self::ask_for(&NAMES, &self.own_timers, py, owner),
        }
    }

    /// Whether the methods of these names are ours, which the cell remembers.
    #[cold]
    fn ask_for(names: &[&str], cell: &AtomicU8, py: Python<'_>, owner: &Bound<'_, PyAny>) -> bool {
        // The first to ask may be a future that dies while an exception unwinds the stack.
        let own = call::undisturbed(py, || {
            names.iter().all(|&name| {
                match (
                    owner.get_type().getattr(name),
                    py.get_type::<Self>().getattr(name),
                ) {
                    (Ok(theirs), Ok(ours)) => theirs.is(&ours),
                    _ => false,
                }
            })
        });
        cell.store(if own { 1 } else { 2 }, Ordering::Relaxed);
        own
    }

    /// Whether a task may be put on the ring without asking call_soon(), which refuses on a closed loop
    /// and checks the thread in debug mode.
    #[inline]
    pub fn accepts_natively(&self) -> bool {
        !self.debug() && !self.is_closed()
    }

    /// Whether create_task() and create_future() make tasks and futures of ours.
    #[inline]
    pub fn has_native_tasks(&self) -> bool {
        self.native_tasks
    }

    /// Whether create_future() of this loop would make a future of ours, and nothing more.
    #[inline]
    pub fn makes_futures(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.native_tasks && !self.debug() && classes(py)?.future(py)?.is_none())
    }

    /// Whether create_task() of this loop would make a task of ours, and nothing more.
    #[inline]
    pub fn makes_tasks(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.native_tasks
            && self.accepts_natively()
            && self.task_factory(py, Option::is_none)
            && classes(py)?.task(py)?.is_none())
    }

    /// The list that a new task of this loop joins, if it is known.
    #[cfg(Py_3_14)]
    #[inline]
    pub fn tasks_head(&self, _py: Python<'_>) -> Option<*mut Node> {
        let head = self.thread_tasks.load(Ordering::Relaxed);
        (!head.is_null()).then_some(head)
    }

    /// The list that a new task of this loop joins.
    #[cfg(not(Py_3_14))]
    #[inline]
    pub fn tasks_head(&self, py: Python<'_>) -> Option<*mut Node> {
        Some(self.tasks.with(py, TaskList::head))
    }

    /// The thread that runs this loop has its tasks here, until the run ends.
    #[cfg(Py_3_14)]
    pub fn set_tasks_head(&self, _py: Python<'_>, head: *mut Node) {
        self.thread_tasks.store(head, Ordering::Relaxed);
    }

    /// Whether the loop is run by this thread.
    #[inline]
    pub fn is_running_here(&self) -> bool {
        self.is_running() && self.handoff.is_runner()
    }

    #[inline]
    pub fn push_entry(&self, py: Python<'_>, entry: Entry) {
        self.queue.with(py, |queue| queue.ready.push(entry));
        if self.is_hosted() {
            self.wake_host(py);
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    #[inline]
    pub fn is_running(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Running as u8
    }

    #[inline]
    fn is_hosted(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Hosted as u8
    }

    #[inline]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn debug(&self) -> bool {
        self.debug.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn queue<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Queue) -> R) -> R {
        self.queue.with(py, f)
    }

    /// As [`LoopCore::queue`], for the destruction of objects, which may come at any time; None: in use.
    #[inline]
    pub fn try_queue<R>(&self, f: impl FnOnce(&mut Queue) -> R) -> Option<R> {
        self.queue.try_with(f)
    }

    pub fn task_factory<R>(&self, py: Python<'_>, f: impl FnOnce(&Option<Py<PyAny>>) -> R) -> R {
        self.task_factory.with(py, |factory| f(factory))
    }

    pub fn handoff(&self) -> &Handoff {
        &self.handoff
    }

    #[inline]
    pub fn clock(&self) -> &LoopClock {
        &self.clock
    }

    /// What the running callback has written and not sent.
    #[inline]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// What is counted of single tasks.
    #[inline(always)]
    pub fn register(&self) -> Option<&Register> {
        self.register.as_deref()
    }

    #[inline]
    pub fn observed(&self) -> Option<&Arc<Observed>> {
        self.observed.as_ref()
    }

    /// Handles in the ready ring, timers, and registered descriptors.
    pub fn counts(&self, py: Python<'_>) -> (usize, usize, usize) {
        let (ready, timers) = self
            .queue
            .with(py, |queue| (queue.ready.len(), queue.timers.len()));
        (ready, timers, self.reactor.len(py))
    }

    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Lends the receive buffer: what is small is copied out of it into bytes of the exact size.
    pub fn received<R>(&self, py: Python<'_>, f: impl FnOnce(&mut [u8]) -> R) -> R {
        self.received.with(py, |buffer| {
            if buffer.is_empty() {
                buffer.resize(MAX_ROOM, 0);
            }
            f(buffer)
        })
    }

    /// An object with bytes that were received.
    #[inline]
    pub fn bytes<'py>(&self, py: Python<'py>, bytes: &[u8]) -> Filled<'py> {
        self.recent.with(py, |recent| recent.filled(py, bytes))
    }

    #[inline]
    pub fn push_ready(&self, py: Python<'_>, handle: Py<PyAny>) {
        self.push_entry(py, Entry::handle(handle));
    }

    pub fn push_timer(&self, py: Python<'_>, when: When, timer: Py<PyAny>) {
        handle::set_scheduled(&timer, true);
        self.queue.with(py, |queue| {
            queue
                .timers
                .insert(when.deadline, when.slack, Entry::handle(timer))
        });
        if self.is_hosted() {
            self.wake_host(py);
        }
    }

    /// The host's own code has scheduled something between two steps.
    #[cold]
    fn wake_host(&self, py: Python<'_>) {
        if let Err(error) = self.wake(py) {
            error.write_unraisable(py, None);
        }
    }

    /// Becomes the guest of another loop: from now on turns are run one by one.
    pub fn begin_hosted(&self) -> PyResult<()> {
        self.check_can_run()?;
        self.set_phase(Phase::Hosted);
        self.set_sleeping(true);
        self.handoff.set_runner(true);
        if let Some(observed) = &self.observed {
            observed.known.starts();
        }
        Ok(())
    }

    /// Runs `turns` of a guest, and says whether the loop was told to stop.
    pub fn hosted_turns(&self, turns: impl FnOnce() -> PyResult<()>) -> PyResult<bool> {
        if !self.is_hosted() {
            return Err(PyRuntimeError::new_err(
                "This event loop is not a guest between two steps",
            ));
        }
        self.set_phase(Phase::Running);
        self.set_sleeping(false);
        let running = Running::new(self);
        let result = turns();
        drop(running);
        if let Some(register) = self.register() {
            register.rests();
        }
        // The host waits from here on, or soon.
        self.set_phase(Phase::Hosted);
        self.set_sleeping(true);
        result.map(|()| self.stopping.swap(false, Ordering::Relaxed))
    }

    /// Is a guest no longer.
    pub fn end_hosted(slf: &Bound<'_, Self>) {
        if slf.get().is_hosted() {
            if let Some(observed) = &slf.get().observed {
                observed.known.stops();
            }
            Self::end_run(slf);
        }
    }

    /// Lets go of the context that calls of other threads have shared.
    pub fn discard_snapshot(&self, py: Python<'_>) {
        let removed = self.queue.with(py, |queue| queue.snapshots.take());
        removed.discard(py);
    }

    fn check_can_run(&self) -> PyResult<()> {
        if self.is_closed() {
            return Err(call::closed_error());
        }
        if self.is_running() || self.is_hosted() {
            return Err(PyRuntimeError::new_err(
                "This event loop is already running",
            ));
        }
        Ok(())
    }

    fn end_run(slf: &Bound<'_, Self>) {
        let (py, state) = (slf.py(), slf.get());
        state.handoff.set_runner(false);
        #[cfg(Py_3_14)]
        state
            .thread_tasks
            .store(std::ptr::null_mut(), Ordering::Relaxed);
        state.set_phase(Phase::Idle);
        state.set_sleeping(false);
        state.stopping.store(false, Ordering::Relaxed);
        if let Some(register) = state.register() {
            register.rests();
        }
        handed::settle(slf);
        state.discard_snapshot(py);
        // From here on nothing on the stack keeps the loop alive: the collector must see its work. Timers
        // that were cancelled are none: how many still lie about depends on the clock.
        let stale = state.queue.with(py, |queue| {
            let stale = queue.timers.sweep(Entry::is_stale);
            queue.ready.iter().for_each(Entry::show);
            queue.timers.iter().for_each(Entry::show);
            stale
        });
        for timer in stale {
            state.discard_timer(py, timer);
        }
    }

    /// A timer that is in the timers was cancelled.
    pub fn timer_cancelled(&self, py: Python<'_>) {
        let (newest, swept) = self.queue.with(py, |queue| {
            if let Some(newest) = queue.timers.pop_newest_stale(Entry::is_stale) {
                return (Some(newest), Vec::new());
            }
            if queue.timers.note_cancelled() {
                (None, queue.timers.sweep(Entry::is_stale))
            } else {
                (None, Vec::new())
            }
        });
        if let Some(timer) = newest {
            self.discard_timer(py, timer);
        }
        for timer in swept {
            self.discard_timer(py, timer);
        }
    }

    /// Lets go of a stale timer.
    #[inline]
    pub fn discard_timer(&self, py: Python<'_>, timer: Entry) {
        if let Run::Handle(timer) = timer.take(py) {
            handle::set_scheduled(timer.as_unbound(), false);
            self.recycle(py, timer);
        }
    }

    /// Gives a future of ours None once `delay` seconds have passed, unless it is done by then. Whoever ends
    /// it before says so by [`LoopCore::timer_cancelled`].
    #[inline]
    pub fn push_sleeper(&self, py: Python<'_>, delay: f64, future: Py<PyAny>) {
        let when = When::after(&self.clock, delay);
        if self.is_running() {
            future::hide_from_collector(&future);
        }
        let entry = Entry::sleeper(future);
        self.queue.with(py, |queue| {
            queue.timers.insert(when.deadline, when.slack, entry)
        });
        if self.is_hosted() {
            self.wake_host(py);
        }
    }

    /// Keeps a handle that nobody else knows for the next call, or lets go of it.
    #[inline]
    pub fn recycle(&self, py: Python<'_>, handle: Bound<'_, PyAny>) {
        let Some(kind) = handle::reusable(&handle) else {
            return;
        };
        let handle = handle.unbind();
        let spare = self.queue.with(py, |queue| {
            let list = match kind {
                handle::Kind::Handle => &mut queue.used,
                handle::Kind::Timer => &mut queue.used_timers,
            };
            if list.len() < MAX_USED {
                list.push(handle);
                return None;
            }
            Some(handle)
        });
        drop(spare.map(|handle| handle.into_bound(py)));
    }

    /// Wakes the loop if it sleeps. A loop that does not sleep looks at its queue before it does.
    pub fn wake(&self, py: Python<'_>) -> PyResult<()> {
        // Looked at first: the loop's thread reads it too, and an exchange would take it away each time.
        if self.is_sleeping() && self.sleeping.swap(false, Ordering::AcqRel) {
            self.reactor.wake(py)?;
        }
        Ok(())
    }

    /// Whether the loop waits, or is about to: no callback of its own is running.
    #[inline]
    pub fn is_sleeping(&self) -> bool {
        self.sleeping.load(Ordering::Relaxed)
    }

    pub fn set_sleeping(&self, sleeping: bool) {
        self.sleeping.store(sleeping, Ordering::Release);
    }

    /// Runs a bound method or another callable in the next turn.
    pub fn schedule<'py>(
        slf: &Bound<'py, Self>,
        callback: &Bound<'py, PyAny>,
        argument: &Bound<'py, PyAny>,
        context: Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get();
        let handle = if state.is_running() {
            let types = handle::types(py)?;
            let spare = state.queue(py, |queue| queue.spare_handle(types));
            handle::of_call(spare, slf, callback, argument, context)?
        } else {
            handle::new(
                py,
                handle::Spec {
                    callback,
                    args: &[argument.as_ptr()],
                    owner: slf.as_any(),
                    context,
                    source_traceback: None,
                    when: None,
                    persistent: false,
                    track: true,
                },
            )?
        };
        state.push_ready(py, handle.unbind());
        Ok(())
    }

    fn persistent_handle<'py>(
        slf: &Bound<'py, Self>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let context = match context {
            Some(context) => context,
            None => call::copy_context(py)?,
        };
        let pointers: Vec<_> = args.iter_borrowed().map(|item| item.as_ptr()).collect();
        handle::new(
            py,
            handle::Spec {
                callback,
                args: &pointers,
                owner: slf.as_any(),
                context,
                source_traceback: None,
                when: None,
                persistent: true,
                track: true,
            },
        )
    }

    fn add_callback<'py>(
        slf: &Bound<'py, Self>,
        side: Side,
        file: &Bound<'py, PyAny>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let state = slf.get();
        if state.is_closed() {
            return Err(call::closed_error());
        }
        let source = source_from(file)?;
        let handle = Self::persistent_handle(slf, callback, args, context)?;
        let kept = file
            .extract::<i64>()
            .is_err()
            .then(|| file.clone().unbind());
        let replaced = state.reactor.set_callback(
            py,
            source,
            side,
            Slot::Callback(handle.clone().unbind()),
            kept,
        )?;
        if let Slot::Callback(replaced) = replaced {
            replaced.bind(py).call_method0("cancel")?;
        }
        Ok(handle)
    }

    fn remove_callback(
        &self,
        py: Python<'_>,
        side: Side,
        file: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        if self.is_closed() {
            return Ok(false);
        }
        let source = match source_from(file) {
            Ok(source) => source,
            // A closed file no longer knows its descriptor; we may.
            Err(error) => match self.reactor.source_of(py, file) {
                Some(source) => source,
                None => return Err(error),
            },
        };
        let removed = self.reactor.remove_callback(py, source, side);
        for object in removed.objects {
            let object = object.into_bound(py);
            if handle::is_handle(&object) {
                object.call_method0("cancel")?;
            }
        }
        Ok(removed.waited)
    }
}

#[pymethods]
impl LoopCore {
    #[new]
    #[pyo3(signature = (*_args, selector = None, tasks = None, observe = 1, **_kwargs))]
    fn new(
        _args: &Bound<'_, PyTuple>,
        selector: Option<&str>,
        tasks: Option<&str>,
        observe: u8,
        _kwargs: Option<&Bound<'_, PyDict>>,
        py: Python<'_>,
    ) -> PyResult<Self> {
        let backend = match selector {
            None | Some("default") => Backend::Default,
            Some("polling") => Backend::Portable,
            Some(other) => {
                return Err(PyValueError::new_err(format!(
                    "selector is {other:?}; expected 'default' or 'polling'"
                )));
            }
        };
        let native_tasks = match tasks {
            None => native::verdict(py)?.is_ok(),
            Some("native") => native::native(py).map(|_| true)?,
            Some("stock") => false,
            Some(other) => {
                return Err(PyValueError::new_err(format!(
                    "tasks is {other:?}; expected 'native' or 'stock'"
                )));
            }
        };
        let reactor = Reactor::new(backend).map_err(os_error)?;
        let selector_name = reactor.selector(py)?.name();
        Ok(Self {
            queue: LoopCell::new(Queue::default()),
            reactor,
            received: LoopCell::new(Vec::new()),
            recent: LoopCell::new(Recent::default()),
            task_factory: LoopCell::new(None),
            phase: AtomicU8::new(Phase::Idle as u8),
            stopping: AtomicBool::new(false),
            debug: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            native_tasks,
            own_call_soon: AtomicU8::new(0),
            own_timers: AtomicU8::new(0),
            #[cfg(Py_3_14)]
            thread_tasks: AtomicPtr::new(std::ptr::null_mut()),
            #[cfg(not(Py_3_14))]
            tasks: LoopCell::new(TaskList::default()),
            handoff: Handoff::default(),
            clock: LoopClock::default(),
            held: Held::default(),
            observed: (observe > level::OFF).then(|| observe::join(observe)),
            register: (observe >= level::TASKS).then(Box::default),
            selector_name,
        })
    }

    /// Whether the loop was closed.
    pub fn is_closed(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == Phase::Closed as u8
    }

    /// Whether debug mode is on.
    fn get_debug(&self) -> bool {
        self.debug()
    }

    /// Stop the loop at the end of this turn; what is scheduled by then still runs.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The name of the selector in use: 'epoll' or 'polling'.
    #[getter]
    fn selector_name(&self) -> &'static str {
        self.selector_name
    }

    /// Whose tasks and futures create_task() and create_future() make: 'native' or 'stock'.
    #[getter]
    fn task_kind(&self) -> &'static str {
        if self.native_tasks { "native" } else { "stock" }
    }

    /// The tasks of ours that are not done, on Pythons whose asyncio does not list them itself.
    fn _native_tasks<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyAny>> {
        #[cfg(Py_3_14)]
        {
            let _ = py;
            Vec::new()
        }
        #[cfg(not(Py_3_14))]
        self.tasks.with(py, |list| list.tasks(py))
    }

    /// Wake the loop if it sleeps; from any thread.
    fn _wake_up(&self, py: Python<'_>) -> PyResult<()> {
        self.wake(py)
    }

    /// asyncio's name for what set_task_factory() has set.
    #[getter]
    fn _task_factory(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.task_factory(py, |factory| factory.as_ref().map(|f| f.clone_ref(py)))
    }

    #[setter(_task_factory)]
    fn set_task_factory_slot(&self, py: Python<'_>, factory: Option<Py<PyAny>>) {
        drop(
            self.task_factory
                .with(py, |slot| std::mem::replace(slot, factory)),
        );
    }

    fn _set_debug(&self, enabled: bool) {
        self.debug.store(enabled, Ordering::Relaxed);
    }

    /// Run turns until stop() is called.
    fn _run(slf: &Bound<'_, Self>) -> PyResult<()> {
        let state = slf.get();
        future::know_loop_type(&slf.get_type());
        state.check_can_run()?;
        state.set_phase(Phase::Running);
        let running = Running::new(state);
        state.handoff.set_runner(true);
        let precise = PreciseTimers::new();
        let result = turn::run(slf);
        drop((precise, running));
        Self::end_run(slf);
        result
    }

    /// Make the clock a virtual one, which shows this many seconds until a wait is passed over.
    fn _set_clock(&self, seconds: f64) {
        self.clock.set(deadline_ns(seconds));
    }

    /// Hold a virtual clock: waits are real ones until it is released.
    fn _hold_clock(&self) {
        self.clock.hold();
    }

    fn _release_clock(&self) {
        self.clock.release();
    }

    /// Let go of everything: scheduled calls are cancelled, nothing is watched any more.
    fn _shutdown(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_running() || self.is_hosted() {
            return Err(PyRuntimeError::new_err("Cannot close a running event loop"));
        }
        self.set_phase(Phase::Closed);
        if let Some(observed) = &self.observed {
            observed.known.closes();
        }
        let targets = self.reactor.close(py);
        let (ready, timers) = self.queue.with(py, |queue| {
            (queue.ready.take_all(), queue.timers.take_all())
        });
        for entry in ready {
            // A task that waited for its next step is let go of, as a handle's task would be.
            if let Some(handle) = entry.object().filter(|_| entry.is_handle()) {
                handle.bind(py).call_method0("cancel")?;
            }
        }
        for timer in timers {
            if let Run::Handle(timer) = timer.take(py) {
                handle::set_scheduled(timer.as_unbound(), false);
                timer.call_method0("cancel")?;
            }
        }
        drop(targets);
        drop(self.recent.with(py, std::mem::take));
        drop(self.received.with(py, std::mem::take));
        Ok(())
    }

    /// context: the one to run the callback in, from Python 3.15 on; None copies the current one.
    #[pyo3(signature = (fd, callback, *args, context = None))]
    fn _add_reader<'py>(
        slf: &Bound<'py, Self>,
        fd: &Bound<'py, PyAny>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::add_callback(slf, Side::Reader, fd, callback, args, context)
    }

    /// context: the one to run the callback in, from Python 3.15 on; None copies the current one.
    #[pyo3(signature = (fd, callback, *args, context = None))]
    fn _add_writer<'py>(
        slf: &Bound<'py, Self>,
        fd: &Bound<'py, PyAny>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::add_callback(slf, Side::Writer, fd, callback, args, context)
    }

    fn _remove_reader(&self, py: Python<'_>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.remove_callback(py, Side::Reader, fd)
    }

    fn _remove_writer(&self, py: Python<'_>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.remove_callback(py, Side::Writer, fd)
    }

    /// Raise RuntimeError if a transport owns the descriptor.
    fn _ensure_fd_no_transport(&self, py: Python<'_>, fd: &Bound<'_, PyAny>) -> PyResult<()> {
        let source = source_from(fd)?;
        if let Some(transport) = self.reactor.transport_of(py, source) {
            return Err(PyRuntimeError::new_err(format!(
                "File descriptor {} is used by transport {}",
                fd.repr()?,
                transport.bind(py).repr()?
            )));
        }
        Ok(())
    }

    /// Whether a descriptor is watched for reading and for writing.
    fn _interest(&self, py: Python<'_>, fd: &Bound<'_, PyAny>) -> PyResult<(bool, bool)> {
        let interest = self.reactor.interest_of(py, source_from(fd)?);
        Ok((interest.read, interest.write))
    }

    /// Handles in the ready ring, timers, and registered descriptors.
    fn _counts(&self, py: Python<'_>) -> (usize, usize, usize) {
        self.counts(py)
    }

    /// Whether the loop counts.
    fn _is_observed(&self) -> bool {
        self.observed.is_some()
    }

    /// Whether it records what it does.
    fn _is_traced(&self) -> bool {
        self.observed
            .as_ref()
            .is_some_and(|observed| observed.recorder.is_some())
    }

    /// What it did in the last so many seconds as Chrome trace JSON; None: it is not traced.
    fn _trace<'py>(&self, py: Python<'py>, seconds: Option<f64>) -> Option<Bound<'py, PyBytes>> {
        let observed = self.observed.as_ref()?;
        observed.recorder.as_ref()?;
        let loops = [Arc::clone(observed)];
        let trace = py.detach(|| observe::recorder::chrome_trace(&loops, seconds));
        Some(PyBytes::new(py, &trace))
    }

    /// Whether it counts what single tasks do.
    fn _counts_tasks(&self) -> bool {
        self.register.is_some()
    }

    /// Count what a task of asyncio's own, made of this, does from now on, or has done. Whether it has failed by now.
    fn _task_begins(&self, task: &Bound<'_, PyAny>, coro: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(tasks::begins_stock(self, task, coro)? == Some(End::Failed))
    }

    /// The number of the task that was made last.
    fn _last_task(&self, py: Python<'_>) -> u64 {
        self.register().map_or(0, |register| register.last(py))
    }

    /// The time, and what is known of each of these tasks.
    fn _task_records<'py>(
        &self,
        py: Python<'py>,
        tasks: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        tasks::records(self, &tasks, py).into_pyobject(py)
    }

    /// What tells each of these tasks from all others that there are or were; None: it is not known.
    fn _task_numbers(&self, py: Python<'_>, tasks: Vec<Bound<'_, PyAny>>) -> Vec<Option<u64>> {
        tasks::numbers(self, &tasks, py)
    }

    /// These are all of its tasks up to this number: what is kept of others, which have been destroyed, is forgotten.
    fn _forget_other_tasks(&self, py: Python<'_>, tasks: Vec<Bound<'_, PyAny>>, up_to: u64) {
        tasks::forget_others(self, &tasks, up_to, py);
    }

    /// The functions of the tasks that there were: what tells each apart, None for all others, and its counts.
    fn _task_functions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        tasks::functions(self, py)
            .into_pyobject(py)
            .map(Bound::into_any)
    }

    /// What the loop has counted, and how many transports it has; None: it is not observed.
    fn _metrics<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let Some(observed) = &self.observed else {
            return Ok(None);
        };
        let metrics = observe::metrics(py, observed).into_pyobject(py)?;
        let transports = self.reactor.transports(py).into_pyobject(py)?;
        PyTuple::new(py, [metrics.into_any(), transports.into_any()]).map(Some)
    }

    /// Its number among the loops of this process, for who asks from outside; 0: it is not observed.
    fn _number(&self) -> u64 {
        self.observed
            .as_ref()
            .map_or(0, |observed| observed.known.id)
    }

    /// Who asks from outside is told that the loop runs in a thread of this name.
    fn _runs_in(&self, name: &str) {
        if let Some(observed) = &self.observed {
            observed.known.set_name(name);
        }
    }

    /// Who asks from outside is told of so many calls that wait for a thread, and of the transports.
    fn _publish(&self, py: Python<'_>, executor_queue: usize) {
        if let Some(observed) = &self.observed {
            let known = &observed.known;
            known
                .executor_queue
                .store(executor_queue, Ordering::Relaxed);
            let transports = self.reactor.transports(py);
            known.transports.store(transports, Ordering::Relaxed);
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.queue.try_with(|queue| {
            queue
                .ready
                .iter()
                .chain(queue.timers.iter())
                .filter_map(Entry::object)
                .try_for_each(|object| visit.call(&*object))?;
            queue.handed.traverse(&visit)?;
            queue.snapshots.traverse(&visit)
        });
        visited.unwrap_or(Ok(()))?;
        self.task_factory
            .try_with(|factory| visit.call(&*factory))
            .unwrap_or(Ok(()))?;
        self.held.traverse(&visit)?;
        self.reactor.traverse(&visit)
    }

    fn __clear__(&self) {
        Python::attach(|py| {
            let targets: Vec<Target> = self.reactor.close(py);
            let (ready, timers, handed, last) = self.queue.with(py, |queue| {
                let (ready, timers) = (queue.ready.take_all(), queue.timers.take_all());
                let (handed, last) = (queue.handed.take_all(), queue.snapshots.take());
                (ready, timers, handed, last)
            });
            let factory = self.task_factory.with(py, Option::take);
            self.set_phase(Phase::Closed);
            drop((targets, ready, timers, handed, last, factory));
        });
    }
}
