//! The turn: poll, deliver, due timers, then everything that was ready.
//!
//! One turn is asyncio's: I/O is collected and delivered, timers that are due join the ready ring,
//! and then exactly those callbacks run that were ready at this point. What they schedule runs in
//! the next turn.
//!
//! **The GIL.** A poll that cannot block keeps it: giving it up with another thread waiting costs up
//! to a whole switch interval (5 ms), every turn. Before the loop really sleeps it has already polled
//! once without waiting, so a busy server never gives the GIL away between requests, and the
//! interpreter's own switching, which works inside callbacks, is what keeps it fair.
//!
//! **Held writes.** What a callback writes leaves when it has returned ([`crate::held`]): behind each entry of
//! the ring and each delivery, before a sleep (a signal's handler or a finalizer may have written) and, if an
//! exception ends the loop, on the way out.
//!
//! **Observing.** A [`Watch`] is told of each step, poll and wait ([`crate::observe`]), and has the clock for what
//! need not be exact. A step that is timed sends what it has written first, so that this is part of it, and
//! is asked who it was before it is let go of. A run is compiled once for each [`level`]: what a level does not need
//! costs it no instruction.
//!
//! **Waking.** `call_soon_threadsafe` pushes to the ring while holding the GIL and writes to the
//! selector only if `sleeping` is set. The loop checks the ring and sets `sleeping` without letting
//! go of the GIL in between, so a wake-up can be neither lost nor doubled.

use pyo3::prelude::*;
use tideloop_core::observe::ring::Kind;
use tideloop_core::timeout::wait_ns;
use tideloop_core::turn::PollPolicy;
use tideloop_sys::clock;

use crate::datagram::DatagramTransport;
use crate::errors::os_error;
use crate::event_loop::LoopCore;
use crate::ffi::current::Current;
use crate::ffi::entry::{Entry, Run};
use crate::ffi::{ahead, call, future, handed, handle, native, park, task, told};
use crate::held;
use crate::listener::Listener;
use crate::observe::{Watch, Who, level};
use crate::reactor::{Batch, Delivery, Slot};
use crate::transport::StreamTransport;

/// Runs turns until the loop is told to stop, or an exception ends it.
pub fn run(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    // What the last callback has written leaves also if it has ended the loop.
    match level::of(core.get()) {
        level::OFF => run_turns::<{ level::OFF }>(core),
        level::TASKS => run_turns::<{ level::TASKS }>(core),
        level::TRACE => run_turns::<{ level::TRACE }>(core),
        _ => run_turns::<{ level::COUNTS }>(core),
    }
    .and(held::release(core))
}

fn run_turns<const LEVEL: u8>(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    let mut batch = Batch::default();
    let mut policy = PollPolicy::default();
    let mut watch = Watch::new(core.get());
    let mut current = current_of(core)?;
    loop {
        turn::<LEVEL>(
            core,
            &mut batch,
            &mut policy,
            &mut watch,
            &mut current,
            true,
        )?;
        if core.get().is_stopping() {
            return Ok(());
        }
    }
}

/// Polls, and runs turns without sleeping while callbacks are ready and another poll is not due: a guest's
/// host does the waiting, and is asked as often as the selector.
pub fn run_ready(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    match level::of(core.get()) {
        level::OFF => run_ready_turns::<{ level::OFF }>(core),
        level::TASKS => run_ready_turns::<{ level::TASKS }>(core),
        level::TRACE => run_ready_turns::<{ level::TRACE }>(core),
        _ => run_ready_turns::<{ level::COUNTS }>(core),
    }
    .and(held::release(core))
}

fn run_ready_turns<const LEVEL: u8>(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    let mut batch = Batch::default();
    let mut policy = PollPolicy::default();
    let mut watch = Watch::new(core.get());
    let mut current = current_of(core)?;
    let state = core.get();
    loop {
        turn::<LEVEL>(
            core,
            &mut batch,
            &mut policy,
            &mut watch,
            &mut current,
            false,
        )?;
        let idle = state.queue(core.py(), |queue| queue.ready.is_empty());
        if idle {
            // The host is about to wait.
            return settle_down(core);
        }
        if state.is_stopping() || !policy.may_skip(watch.now::<LEVEL>()) {
            return Ok(());
        }
    }
}

fn current_of<'py>(core: &Bound<'py, LoopCore>) -> PyResult<Current<'py>> {
    let native = native::verdict(core.py())?.as_ref().ok();
    Current::new(core.as_any(), native)
}

fn turn<'py, const LEVEL: u8>(
    core: &Bound<'py, LoopCore>,
    batch: &mut Batch,
    policy: &mut PollPolicy,
    watch: &mut Watch,
    current: &mut Current<'py>,
    may_sleep: bool,
) -> PyResult<()> {
    let py = core.py();
    let state = core.get();
    let (busy, mut timers) = state.queue(py, |queue| {
        (!queue.ready.is_empty(), !queue.timers.is_empty())
    });
    let stopping = state.is_stopping();
    // Timers need the real clock; how long we go without a poll does not.
    let mut now = if timers {
        clock::monotonic_ns()
    } else {
        watch.now::<LEVEL>()
    };
    let mut came = timers;
    let polls = stopping || !busy || !policy.skip(now);
    if polls {
        came = true;
        if LEVEL != level::OFF {
            watch.pauses(core, now);
        }
        if LEVEL == level::TRACE {
            watch.traces(Kind::Poll);
        }
        poll::<LEVEL>(core, batch, watch, busy || stopping || !may_sleep)?;
        if LEVEL != level::OFF {
            watch.polled::<LEVEL>(core);
        }
        // As in asyncio: what one delivery schedules comes behind the others of this poll, and behind what was scheduled before.
        let alone = batch.len() == 1 && state.queue(py, |queue| queue.ready.is_empty());
        for index in 0..batch.len() {
            let (next, after) = (batch.get(index + 1), batch.get(index + 2));
            state.reactor().expect(py, next, after);
            deliver::<LEVEL>(core, batch, index, alone, watch)?;
        }
        if LEVEL != level::OFF {
            watch.delivered_all(core);
        }
        batch.clear();
        timers = state.queue(py, |queue| !queue.timers.is_empty());
        now = watch.after_poll(timers);
        policy.polled(now);
        // A loop that never sleeps lets go of the context of calls that have run as well.
        if state.queue(py, |queue| {
            queue.snapshots.is_some() && queue.handed.is_empty()
        }) {
            state.discard_snapshot(py);
            timers = state.queue(py, |queue| !queue.timers.is_empty());
        }
    }
    if timers {
        fire_due(core, watch, state.clock().fixed().unwrap_or(now));
    }
    let count = state.queue(py, |queue| queue.ready.begin_turn());
    if LEVEL != level::OFF && came {
        watch.turns::<LEVEL>(core, now, count, polls);
    }
    let debug = state.debug();
    for _ in 0..count {
        let next = state.queue(py, |queue| {
            let next = queue.ready.pop();
            if queue.ready.len() >= ahead::MANY {
                ahead::ring(&queue.ready);
            }
            next
        });
        let Some(next) = next else {
            break;
        };
        let due = LEVEL != level::OFF && (watch.is_due() || LEVEL >= level::TASKS);
        match next.take(py) {
            Run::Step(task) => {
                if LEVEL >= level::TASKS {
                    watch.begins(state, &task);
                }
                if LEVEL == level::TRACE {
                    watch.traces_step(state, &task);
                }
                task::run(core, current, &task, false).inspect_err(|_| {
                    if LEVEL >= level::TASKS {
                        watch.broken(core, &task);
                    }
                })?;
                ended::<LEVEL>(core, watch, due, &Who::Task(&task))?;
            }
            Run::Wake(task) => {
                if LEVEL >= level::TASKS {
                    watch.begins(state, &task);
                }
                if LEVEL == level::TRACE {
                    watch.traces_step(state, &task);
                }
                task::run(core, current, &task, true).inspect_err(|_| {
                    if LEVEL >= level::TASKS {
                        watch.broken(core, &task);
                    }
                })?;
                ended::<LEVEL>(core, watch, due, &Who::Task(&task))?;
            }
            Run::Sleeper(sleeper) => {
                if LEVEL == level::TRACE {
                    watch.traces_entry();
                }
                future::wake(core, &sleeper)?;
                ended_telling::<LEVEL>(core, watch, due)?;
            }
            Run::Told(future) => {
                current.leave();
                if LEVEL == level::TRACE {
                    watch.traces_entry();
                }
                told::tell(core, &future)?;
                ended_telling::<LEVEL>(core, watch, due)?;
            }
            Run::Handle(handle) => {
                current.leave();
                run_handle::<LEVEL>(core, watch, due, handle, debug)?;
            }
            Run::Handed => {
                current.leave();
                match handed::run_next(core, debug)? {
                    Some(handle) => run_handle::<LEVEL>(core, watch, due, handle, debug)?,
                    None => ended::<LEVEL>(core, watch, due, &Who::Callback(None))?,
                }
            }
        }
        held::release(core)?;
    }
    current.leave();
    Ok(())
}

/// An entry of the ring has run; if it is timed (`due`), what it has written leaves within its time.
#[inline(always)]
fn ended<const LEVEL: u8>(
    core: &Bound<'_, LoopCore>,
    watch: &mut Watch,
    due: bool,
    who: &Who<'_, '_>,
) -> PyResult<()> {
    if due {
        held::release(core)?;
        if LEVEL >= level::TASKS {
            watch.stepped_each(core, who)?;
        } else {
            watch.stepped(core, who);
        }
    }
    Ok(())
}

/// As [`ended`], of an entry with which the loop has told somebody of an end.
#[inline(always)]
fn ended_telling<const LEVEL: u8>(
    core: &Bound<'_, LoopCore>,
    watch: &mut Watch,
    due: bool,
) -> PyResult<()> {
    if LEVEL < level::TASKS {
        return ended::<LEVEL>(core, watch, due, &Who::Callback(None));
    }
    held::release(core)?;
    watch.told_each(core)
}

#[inline]
fn run_handle<'py, const LEVEL: u8>(
    core: &Bound<'py, LoopCore>,
    watch: &mut Watch,
    due: bool,
    handle: Bound<'py, PyAny>,
    debug: bool,
) -> PyResult<()> {
    // A handle that has run has forgotten what it ran.
    let callback = match due || LEVEL == level::TRACE {
        true => handle::callback(&handle),
        false => None,
    };
    if LEVEL >= level::TASKS {
        watch.begins_callback(core.get(), callback.as_ref());
    }
    if LEVEL == level::TRACE {
        watch.traces_call(callback.as_ref());
    }
    if debug {
        core.call_method1("_run_in_debug", (&handle,))?;
    } else {
        handle::run(&handle)?;
        core.get().recycle(core.py(), handle);
    }
    ended::<LEVEL>(core, watch, due, &Who::Callback(callback.as_ref()))
}

/// Fills `batch` with what is ready; sleeps only if there is nothing else to do.
fn poll<const LEVEL: u8>(
    core: &Bound<'_, LoopCore>,
    batch: &mut Batch,
    watch: &mut Watch,
    busy: bool,
) -> PyResult<()> {
    let py = core.py();
    let state = core.get();
    let selector = state.reactor().selector(py)?;
    selector.wait(batch, Some(0)).map_err(os_error)?;
    if busy || !batch.is_empty() {
        if state.reactor().is_overdue(py) {
            confirm(core)?;
        }
        return call::check_signals(py);
    }
    settle_down(core)?;
    let is_virtual = state.clock().fixed().is_some();
    let wake = state.queue(py, |queue| match is_virtual {
        true => queue.timers.next_deadline(),
        false => queue.timers.next_wake(),
    });
    let mut timeout = wake.map(|wake| wait_ns(wake, state.clock().now()));
    if timeout == Some(0) {
        return call::check_signals(py);
    }
    // A signal handler, or code run while a stale timer was dropped, may have scheduled something.
    call::check_signals(py)?;
    held::release(core)?;
    if state.is_stopping() || state.queue(py, |queue| !queue.ready.is_empty()) {
        return Ok(());
    }
    if is_virtual {
        if let Some(wake) = wake
            && state.clock().may_jump()
        {
            state.clock().jump(wake);
            return Ok(());
        }
        timeout = None;
    }
    if LEVEL != level::OFF {
        watch.waits(core);
    }
    if LEVEL == level::TRACE {
        watch.traces(Kind::Wait);
    }
    state.set_sleeping(true);
    let result = py.detach(|| {
        let found = selector.wait(batch, timeout);
        if LEVEL != level::OFF {
            watch.woke();
        }
        if LEVEL == level::TRACE {
            watch.traces(Kind::Poll);
        }
        found
    });
    state.set_sleeping(false);
    result.map_err(os_error)?;
    call::check_signals(py)
}

/// What is done before a wait: nothing is kept for calls that may not come, and what was relied on is asked about.
fn settle_down(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    let py = core.py();
    let state = core.get();
    drop_stale(core);
    state.discard_snapshot(py);
    confirm(core)
}

/// Asks about the watches that were relied on, and tells who cannot be watched.
fn confirm(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    let py = core.py();
    for future in core.get().reactor().confirm(py) {
        park::resolve(&future.into_bound(py), &py.None().into_bound(py))?;
    }
    Ok(())
}

/// Cancelled timers at the head would wake the loop for nothing.
pub fn drop_stale(core: &Bound<'_, LoopCore>) {
    let py = core.py();
    while let Some(timer) = core
        .get()
        .queue(py, |queue| queue.timers.pop_stale(Entry::is_stale))
    {
        core.get().discard_timer(py, timer);
    }
}

/// Moves timers that are due to the ready ring, in order.
fn fire_due(core: &Bound<'_, LoopCore>, watch: &Watch, now: u64) {
    let py = core.py();
    let state = core.get();
    loop {
        let stale = state.queue(py, |queue| {
            let many = queue.timers.len() >= ahead::MANY;
            while let Some((late, timer)) = queue.timers.pop_due(now) {
                if timer.is_stale() {
                    queue.timers.forget_cancelled();
                    return Some(timer);
                }
                if let Some(timer) = timer.object().filter(|_| timer.is_handle()) {
                    handle::set_scheduled(&timer, false);
                }
                watch.fired(late);
                queue.ready.push(timer);
                if many {
                    ahead::timers(&queue.timers);
                }
            }
            None
        });
        match stale {
            // Dropped outside of the queue: it may run a weak reference's callback.
            Some(timer) => state.discard_timer(py, timer),
            None => return,
        }
    }
}

/// Tells whoever waits for one descriptor; what that has written leaves.
fn deliver<const LEVEL: u8>(
    core: &Bound<'_, LoopCore>,
    batch: &Batch,
    index: usize,
    alone: bool,
    watch: &mut Watch,
) -> PyResult<()> {
    let py = core.py();
    let state = core.get();
    let Some(event) = batch.get(index) else {
        return Ok(());
    };
    if LEVEL == level::TRACE {
        watch.traces(Kind::Delivery);
    }
    let called = match state.reactor().deliver(py, event) {
        Delivery::Stream(transport) => {
            let transport = transport.into_bound(py);
            StreamTransport::deliver(&transport, event)?;
            Some(transport.into_any())
        }
        Delivery::Datagram(endpoint) => {
            let endpoint = endpoint.into_bound(py);
            DatagramTransport::deliver(&endpoint, event, alone)?;
            Some(endpoint.into_any())
        }
        Delivery::Listener(listener) => {
            Listener::deliver(&listener.into_bound(py))?;
            None
        }
        Delivery::Callbacks(reader, writer) => {
            for due in [reader, writer] {
                match due {
                    Slot::Nobody => {}
                    Slot::Callback(handle) => state.push_ready(py, handle),
                    Slot::Once(future) => {
                        let none = py.None().into_bound(py);
                        park::resolve(&future.into_bound(py), &none)?;
                    }
                }
            }
            None
        }
        Delivery::Nothing => None,
    };
    held::release(core)?;
    if LEVEL != level::OFF {
        watch.delivered(core, called.as_ref());
    }
    if called.is_some() {
        // Letting go of the last reference to a transport may have written to another one.
        drop(called);
        return held::release(core);
    }
    Ok(())
}
