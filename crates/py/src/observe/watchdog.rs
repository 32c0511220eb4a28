//! The watchdog: one thread per process that looks at the loops which run, and at what blocks them.
//!
//! **What it may touch.** Atomics, its own locks, `/proc` and one file descriptor; never the GIL and never a Python
//! object. So it sees what happens while C code holds the GIL, it cannot be blocked by what it looks for, and it can be
//! joined by whoever holds the GIL: before a fork, and before the interpreter ends. Nothing of it outlives either.
//!
//! **When it looks.** A loop publishes when what it runs began. The watchdog sleeps for a threshold at most; it
//! finds a step that has begun, and sleeps until that will have run for half of the threshold (a first look at what
//! the kernel says of the thread) and for all of it (a second look, and the stack), then again every 50 ms. So the
//! first stack is taken at the threshold whatever the phase of its sleep, and an idle process is woken ten times a second.
//!
//! **How it gets a stack.** By a signal to that very thread, whose handler is CPython's `faulthandler`: it walks the
//! thread's own frames, in that thread, and writes them to a file in memory, which is read back. That works in a C call
//! that holds the GIL, and with a thread that has let go of it nobody else's frames are looked at. The Python half
//! (`tideloop.watchdog`) chooses a signal that nobody handles; if its handler is another one by the time
//! a signal would be sent, none is sent any more. A signal interrupts a system call, which CPython's own code and
//! `SA_RESTART` begin again; it is only sent to a thread that has blocked its loop for the threshold.
//!
//! **Who tells.** The loop's thread, when the step has ended: it takes what was seen, adds what it knows (the
//! task, its context) and schedules the event as its next callback. Of a step that lasts, or never ends, who asks from
//! outside ([`super::blocks`]) is told.
//!
//! **Locks.** `REGISTRY` for who is watched; a block's own for what was seen of it. The first is held for a signal, so
//! that a run cannot end while its thread is signalled. Neither is held while Python runs, or waited for by anybody who could
//! hold it across a fork: the thread is joined first, and loops take it with the GIL held, as does who forks.

use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tideloop_core::observe::{Cause, Frame, Look, frames};
use tideloop_sys::clock;
use tideloop_sys::thread::{self, Standing, Thread};

use super::{Observed, blocks};
use crate::errors::os_error;
use crate::ffi::probe;

/// Between two looks at a step that goes on blocking, in nanoseconds.
const AGAIN: u64 = 50_000_000;

/// Looks at one block at most.
const LOOKS: usize = 40;

/// How long the thread may take to write its stack, and how long nothing more has to come.
const PATIENCE: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_micros(500);

/// How long a thread has to have run without an answer of the interpreter's loop until that is not at work, and how long
/// to wait for that, since others may have the processor. In nanoseconds.
const UNANSWERED: u64 = 5_000_000;
const WAIT: u64 = 60_000_000;

/// How far two clocks may be apart that tell when a step began, in nanoseconds.
const NEAR: u64 = 500_000;

/// The thread is to end: it waits for nothing any more.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// When the collector began in a loop's thread; 0: it is not at work.
static COLLECTS: AtomicU64 = AtomicU64::new(0);

/// A run of a loop, as the watchdog knows it.
pub struct Watched {
    observed: Arc<Observed>,
    thread: Thread,
    /// Whether something was seen, so that the loop need not take the lock to know that nothing was.
    seen: AtomicBool,
    block: Mutex<Block>,
}

/// What was seen of the step that blocks.
#[derive(Default, Clone)]
pub struct Block {
    /// Its number, from when its stack was asked for.
    pub number: Option<u64>,
    pub began: u64,
    looks: Vec<Look>,
    pub stacks: Vec<Vec<Frame>>,
    interprets: Option<bool>,
}

impl Block {
    pub fn cause(&self) -> Cause {
        let differ = self
            .stacks
            .windows(2)
            .any(|two| two[0].first() != two[1].first());
        Cause::of(&self.looks, self.interprets.or(differ.then_some(true)))
    }
}

/// How stacks are asked for.
struct Asking {
    signal: i32,
    handler: usize,
    file: std::fs::File,
}

#[derive(Default)]
struct Registry {
    watched: Vec<Arc<Watched>>,
    /// In nanoseconds; 0: nobody watches.
    threshold: u64,
    asking: Option<Arc<Asking>>,
    thread: Option<JoinHandle<()>>,
    stopping: bool,
    /// The interpreter ends.
    over: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    watched: Vec::new(),
    threshold: 0,
    asking: None,
    thread: None,
    stopping: false,
    over: false,
});
static CHANGED: Condvar = Condvar::new();
/// The threshold, for the loops to read.
static THRESHOLD: AtomicU64 = AtomicU64::new(0);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether what took so long has blocked its loop.
#[inline]
pub fn is_block(took: u64) -> bool {
    let threshold = THRESHOLD.load(Ordering::Relaxed);
    threshold != 0 && took >= threshold
}

/// The calling thread runs a loop from now on.
pub fn enters(observed: &Arc<Observed>) -> Option<Arc<Watched>> {
    if THRESHOLD.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let watched = Arc::new(Watched {
        observed: Arc::clone(observed),
        thread: Thread::current(),
        seen: AtomicBool::new(false),
        block: Mutex::new(Block::default()),
    });
    let mut registry = locked(&REGISTRY);
    registry.watched.push(Arc::clone(&watched));
    start(&mut registry);
    CHANGED.notify_one();
    Some(watched)
}

/// The run is over.
pub fn leaves(watched: &Arc<Watched>) {
    locked(&REGISTRY)
        .watched
        .retain(|other| !Arc::ptr_eq(other, watched));
}

/// What was seen of the steps that block their loops now.
pub fn lasting() -> Vec<(Arc<Observed>, Block)> {
    let watched = locked(&REGISTRY).watched.clone();
    let blocks = watched.iter().filter_map(|each| {
        if !each.seen.load(Ordering::Relaxed) {
            return None;
        }
        let block = locked(&each.block).clone();
        let lasts = each.observed.instrument.began() == Some(block.began);
        lasts.then(|| (Arc::clone(&each.observed), block))
    });
    blocks.collect()
}

/// For how long what runs has blocked its loop; None: it has not.
pub fn blocked_for(observed: &Observed, now: u64) -> Option<u64> {
    let ran = now.saturating_sub(observed.instrument.began()?);
    is_block(ran).then_some(ran)
}

/// Starts the thread if it should run and does not: it was stopped for a fork.
pub fn keeps_watch() {
    start(&mut locked(&REGISTRY));
}

impl Watched {
    /// What was seen of the step that began at `began`, or after it, and has just ended.
    pub fn take(&self, began: u64) -> Option<Block> {
        self.seen
            .swap(false, Ordering::Relaxed)
            .then(|| std::mem::take(&mut *locked(&self.block)))
            .filter(|block| block.began + NEAR >= began)
    }
}

fn start(registry: &mut Registry) {
    if registry.thread.is_some()
        || registry.threshold == 0
        || registry.over
        || registry.watched.is_empty()
    {
        return;
    }
    registry.stopping = false;
    LEAVING.store(false, Ordering::Relaxed);
    let builder = std::thread::Builder::new().name("tideloop-watch".to_owned());
    // Without a thread, as in a process that may have no more, nothing is watched.
    registry.thread = builder.spawn(watch).ok();
}

fn watch() {
    let mut registry = locked(&REGISTRY);
    while !registry.stopping {
        if registry.watched.is_empty() || registry.threshold == 0 {
            registry = CHANGED
                .wait(registry)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let (threshold, asking) = (registry.threshold, registry.asking.clone());
        let watched = registry.watched.clone();
        drop(registry);
        let mut wake = clock::monotonic_ns() + threshold;
        for each in &watched {
            wake = wake.min(look(each, threshold, asking.as_deref()));
        }
        drop(watched);
        registry = locked(&REGISTRY);
        if registry.stopping {
            break;
        }
        let wait = wake.saturating_sub(clock::monotonic_ns()).max(100_000);
        registry = CHANGED
            .wait_timeout(registry, Duration::from_nanos(wait))
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

/// Looks at one loop, and says when to look again.
fn look(watched: &Arc<Watched>, threshold: u64, asking: Option<&Asking>) -> u64 {
    let now = clock::monotonic_ns();
    let Some(began) = watched.observed.instrument.began() else {
        return now + threshold;
    };
    let ran = now.saturating_sub(began);
    if ran < threshold / 2 {
        return began + threshold / 2;
    }
    {
        let mut block = locked(&watched.block);
        if block.began != began {
            *block = Block {
                began,
                ..Block::default()
            };
            watched.seen.store(false, Ordering::Relaxed);
        }
        if block.looks.len() >= LOOKS {
            return now + threshold;
        }
        block.looks.extend(looks_like(watched.thread, now));
    }
    if ran < threshold {
        return began + threshold;
    }
    let is_first = !watched.seen.swap(true, Ordering::Relaxed);
    if is_first {
        let number = blocks::number();
        note(watched, began, |block| block.number = Some(number));
    }
    let stack = asking.and_then(|asking| asking.stack(watched, began));
    note(watched, began, |block| block.stacks.extend(stack));
    if is_first && watched.thread.is_main() {
        let interprets = interprets(watched.thread, began);
        note(watched, began, |block| block.interprets = interprets);
    }
    let now = clock::monotonic_ns();
    let look = looks_like(watched.thread, now);
    note(watched, began, |block| block.looks.extend(look));
    now + AGAIN
}

/// Adds what was seen to the block that began then, unless the step has ended and its block was taken meanwhile.
fn note(watched: &Watched, began: u64, add: impl FnOnce(&mut Block)) {
    let mut block = locked(&watched.block);
    if block.began == began && watched.observed.instrument.began() == Some(began) {
        add(&mut block);
    }
}

fn looks_like(thread: Thread, now: u64) -> Option<Look> {
    let standing = thread.standing()?;
    Some(Look {
        at: now,
        ran: standing.ran,
        waited: standing.waited,
        slices: standing.slices,
        runnable: standing.runnable,
        in_lock: standing.call.is_some_and(thread::is_lock_wait),
        in_gc: COLLECTS.load(Ordering::Relaxed) != 0,
    })
}

/// Whether the interpreter's loop is at work in the main thread; None: that sleeps, or got no processor.
///
/// Before 3.13 the interpreter only looks at what is pending when the main thread itself has said that something is.
fn interprets(thread: Thread, question: u64) -> Option<bool> {
    if cfg!(not(Py_3_13)) {
        return None;
    }
    let ran = |standing: Standing| standing.ran;
    let before = thread.standing().map(ran)?;
    if !probe::ask(question) {
        return None;
    }
    let asked = clock::monotonic_ns();
    while clock::monotonic_ns() - asked < WAIT && !LEAVING.load(Ordering::Relaxed) {
        std::thread::sleep(PAUSE);
        if probe::is_answered(question) {
            return Some(true);
        }
        if thread.standing().map(ran)?.saturating_sub(before) > UNANSWERED {
            return Some(false);
        }
    }
    None
}

impl Asking {
    /// The stack of a thread that still runs what it ran at `began`.
    fn stack(&self, watched: &Arc<Watched>, began: u64) -> Option<Vec<Frame>> {
        self.file.set_len(0).ok()?;
        {
            let registry = locked(&REGISTRY);
            let runs = registry
                .watched
                .iter()
                .any(|other| Arc::ptr_eq(other, watched))
                && watched.observed.instrument.began() == Some(began);
            if !runs || registry.stopping || thread::handler_of(self.signal) != Some(self.handler) {
                return None;
            }
            probe::signal(&registry, watched.thread, self.signal).ok()?;
        }
        let asked = clock::monotonic_ns();
        let mut size = 0;
        while clock::monotonic_ns() - asked < PATIENCE.as_nanos() as u64 {
            std::thread::sleep(PAUSE);
            let grown = self.file.metadata().ok()?.len();
            if grown > 0 && grown == size {
                break;
            }
            size = grown;
        }
        let mut file = &self.file;
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0)).ok()?;
        file.read_to_end(&mut text).ok()?;
        Some(frames(&String::from_utf8_lossy(&text))).filter(|frames| !frames.is_empty())
    }
}

/// Sets from which time on a step blocks its loop, in nanoseconds; 0: nobody watches.
#[pyfunction]
pub fn watchdog_threshold(nanoseconds: u64) {
    let mut registry = locked(&REGISTRY);
    registry.threshold = nanoseconds;
    THRESHOLD.store(nanoseconds, Ordering::Relaxed);
    start(&mut registry);
    CHANGED.notify_one();
}

/// Says by which signal a thread is made to write its stack, to which file.
///
/// Raises ValueError if the signal has no handler, and OSError if the descriptor cannot be duplicated.
#[pyfunction]
pub fn watchdog_asks(signal: i32, descriptor: i32) -> PyResult<()> {
    let handler = thread::handler_of(signal)
        .filter(|&handler| handler > 1)
        .ok_or_else(|| PyValueError::new_err(format!("signal {signal} has no handler")))?;
    let file = thread::file_of(descriptor).map_err(os_error)?;
    locked(&REGISTRY).asking = Some(Arc::new(Asking {
        signal,
        handler,
        file,
    }));
    Ok(())
}

/// What handles a signal: 0 if nothing does.
#[pyfunction]
pub fn signal_handler(signal: i32) -> Option<usize> {
    thread::handler_of(signal)
}

/// Stops the thread and waits until it has ended; `over`: for good.
#[pyfunction]
pub fn watchdog_stop(over: bool) {
    let thread = {
        let mut registry = locked(&REGISTRY);
        registry.stopping = true;
        LEAVING.store(true, Ordering::Relaxed);
        registry.over |= over;
        CHANGED.notify_all();
        registry.thread.take()
    };
    if let Some(thread) = thread {
        // It cannot have panicked in a way that matters here.
        drop(thread.join());
    }
}

/// In a forked child: the parent's loops are not run here.
#[pyfunction]
pub fn watchdog_forked() {
    locked(&REGISTRY).watched.clear();
}

/// What `gc.callbacks` has: the collector begins, or is done.
#[pyfunction]
pub fn watchdog_collects(phase: &str, _info: &Bound<'_, PyAny>) {
    let since = match phase {
        "start" => clock::monotonic_ns(),
        _ => 0,
    };
    COLLECTS.store(since, Ordering::Relaxed);
}
