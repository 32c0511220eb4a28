//! The watchdog: one thread per process that looks at the loops which run, and at what blocks them.
//!
//! **What it may touch.** Atomics, its own locks, `/proc` and one file descriptor; never the GIL and never a Python
//! object. So it sees what happens while C code holds the GIL, it cannot be blocked by what it looks for, and it can be
//! joined by whoever holds the GIL: before a fork, and before the interpreter ends. Nothing of it outlives either.
//!
//! **When it looks.** A loop publishes when what it runs began. The watchdog sleeps for a threshold at most; it
//! finds a step that has begun, and sleeps until that will have run for the threshold: a look at what the kernel says of the thread,
//! and the stack; then again every 50 ms. So the first stack is taken at the threshold whatever the phase of its sleep, and a process
//! is woken ten times a second. Of loops that have had long steps of late there is a look before, at half of the threshold, so that
//! more of a step is known when it has just become a block ([`round`]).
//! In a look it waits for nothing: what it has asked a thread is looked for every half a millisecond at first, and then with
//! the next look, so that a thread without a processor keeps it from no other loop. The last look is the loop's
//! own, when the step has ended.
//!
//! **How it gets a stack.** By a signal to that very thread, whose handler is CPython's `faulthandler`: it walks the
//! thread's own frames, in that thread, and writes them to a file in memory, which is read back. That works in a C call
//! that holds the GIL, and with a thread that has let go of it nobody else's frames are looked at. The Python half
//! (`tideloop.watchdog`) chooses a signal that nobody handles; if its handler is another one by the time
//! a signal would be sent, none is sent any more, nor to a thread that blocks it. A signal interrupts a system call, which CPython's own code and
//! `SA_RESTART` begin again; it is only sent to a thread that has blocked its loop for the threshold.
//!
//! A thread that gets no processor writes when it gets one, before it does anything else: so what the watchdog has asked for
//! and did not get is there, in its file, when the step has ended, and the loop takes it from there. It says where the
//! thread was all the time. There is one file: who was asked and has not answered keeps others from being asked.
//!
//! **Python or C** is found by a call that is left pending for the interpreter: its loop makes it within microseconds, a
//! C function never does. A question is answered, or the thread has run for 5 ms without an answer; each look asks one.
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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tideloop_core::observe::{Cause, Evidence, Frame, Look, Round, frames, round};
use tideloop_sys::clock;
use tideloop_sys::thread::{self, Thread};

use super::{Observed, blocks, dumps, recorder};
use crate::errors::os_error;
use crate::ffi::{dumping, probe};

/// Between two looks at a step that goes on blocking, in nanoseconds.
const AGAIN: u64 = 50_000_000;

/// Looks at one block at most.
const LOOKS: usize = 22;

/// For how long after a look what was asked is looked for, and how often, in nanoseconds.
const PATIENCE: u64 = 20_000_000;
const PAUSE: u64 = 500_000;

/// How long a thread has to have run without an answer of the interpreter's loop until that is not at work, in nanoseconds.
const UNANSWERED: u64 = 5_000_000;

/// How far two clocks may be apart that tell when a step began, in nanoseconds.
const NEAR: u64 = 500_000;

/// When the collector began in a loop's thread; 0: it is not at work.
static COLLECTS: AtomicU64 = AtomicU64::new(0);

/// A run of a loop, as the watchdog knows it.
pub struct Watched {
    observed: Arc<Observed>,
    thread: Thread,
    /// Whether something was seen, so that the loop need not take the lock to know that nothing was.
    seen: AtomicBool,
    /// Until when a step of this loop may well be long; written by the watchdog alone.
    wary: AtomicU64,
    block: Mutex<Block>,
}

/// What was seen of the step that blocks.
#[derive(Default, Clone)]
pub struct Block {
    /// Its number, from when its stack was asked for.
    pub number: Option<u64>,
    pub began: u64,
    looks: Vec<Look>,
    end: Option<Look>,
    /// When the next look is due; 0: now.
    due: u64,
    pub stacks: Vec<Vec<Frame>>,
    /// Its stack is wanted, and could not be asked for or written: somebody else was being asked, or the thread was met at a bad moment.
    unasked: bool,
    /// How long it had lasted when the first of them was there, in nanoseconds.
    pub captured: Option<u64>,
    /// What the interpreter's loop was asked: the number of that, and how long the thread had run.
    question: Option<(u64, u64)>,
    /// How often it has answered, and how often it did not.
    answers: (u32, u32),
}

impl Block {
    /// Why, of a step that took so long, or has until now.
    pub fn cause(&self, took: u64) -> Cause {
        let differ = self
            .stacks
            .windows(2)
            .any(|two| two[0].first() != two[1].first());
        let interprets = match self.answers {
            (0, 0) => differ.then_some(true),
            (python, c) => Some(python >= c),
        };
        Cause::of(&Evidence {
            looks: &self.looks,
            end: self.end,
            took,
            threshold: THRESHOLD.load(Ordering::Relaxed),
            interprets,
        })
    }

    fn add(&mut self, stack: Vec<Frame>) {
        let now = clock::monotonic_ns();
        self.captured.get_or_insert(now.saturating_sub(self.began));
        self.stacks.push(stack);
    }
}

/// How stacks are asked for.
struct Asking {
    signal: i32,
    handler: usize,
    file: std::fs::File,
    request: Mutex<Option<Request>>,
}

/// Who was asked for its stack, and has not been found to have written it.
struct Request {
    watched: Weak<Watched>,
    began: u64,
    /// What the file had when it was looked at last.
    size: u64,
}

#[derive(Default)]
struct Registry {
    watched: Vec<Arc<Watched>>,
    /// In nanoseconds; 0: nobody watches.
    threshold: u64,
    asking: Option<Arc<Asking>>,
    thread: Option<JoinHandle<()>>,
    stopping: bool,
    /// The thread waits until there is something to watch.
    resting: bool,
    /// A fork is under way: nobody starts the thread until it is over.
    forking: bool,
    /// The interpreter ends.
    over: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    watched: Vec::new(),
    threshold: 0,
    asking: None,
    thread: None,
    stopping: false,
    resting: false,
    forking: false,
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
        wary: AtomicU64::new(0),
        block: Mutex::new(Block::default()),
    });
    let mut registry = locked(&REGISTRY);
    registry.watched.push(Arc::clone(&watched));
    start(&mut registry);
    // Otherwise it looks within a threshold anyway.
    if std::mem::take(&mut registry.resting) {
        CHANGED.notify_one();
    }
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
    /// What was seen of the step that began at `began`, or after it, took so long, and has just ended. By the loop's thread.
    pub fn take(&self, began: u64, took: u64) -> Option<Block> {
        if !self.seen.swap(false, Ordering::Relaxed) {
            return None;
        }
        let asking = locked(&REGISTRY).asking.clone();
        let mut block = std::mem::take(&mut *locked(&self.block));
        // A signal is handled before a thread goes on, so what was asked for is there.
        let stack = asking.and_then(|asking| asking.answer(self, block.began, true));
        if let Some(stack) = stack {
            block.add(stack);
        }
        // The last one was written before the step has ended, and is read now.
        block.captured = block.captured.map(|after| after.min(took));
        block.end = looks_like(self.thread, clock::monotonic_ns());
        Some(block).filter(|block| block.began + NEAR >= began)
    }
}

fn start(registry: &mut Registry) {
    if registry.thread.is_some()
        || registry.threshold == 0
        || registry.over
        || registry.forking
        || registry.watched.is_empty()
    {
        return;
    }
    registry.stopping = false;
    let builder = std::thread::Builder::new().name("tideloop-watch".to_owned());
    // Without a thread, as in a process that may have no more, nothing is watched.
    registry.thread = builder.spawn(watch).ok();
}

fn watch() {
    let mut registry = locked(&REGISTRY);
    while !registry.stopping {
        if registry.watched.is_empty() || registry.threshold == 0 {
            registry.resting = true;
            registry = CHANGED
                .wait(registry)
                .unwrap_or_else(PoisonError::into_inner);
            registry.resting = false;
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
        if registry.threshold != threshold {
            // It was told of while nobody listened.
            continue;
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
    let mut wary = watched.wary.load(Ordering::Relaxed);
    let began = watched.observed.instrument.began();
    let round = round(began, now, threshold, &mut wary);
    watched.wary.store(wary, Ordering::Relaxed);
    let began = match round {
        Round::Look(began) => began,
        Round::Until(until) => return until,
    };
    let due = {
        let mut block = locked(&watched.block);
        if block.began != began {
            *block = Block {
                began,
                ..Block::default()
            };
            watched.seen.store(false, Ordering::Relaxed);
        }
        block.due
    };
    let mut waits = listen(watched, began, asking);
    let mut due = due;
    if now >= due {
        due = match now.saturating_sub(began) < threshold {
            true => began + threshold,
            false => now + AGAIN,
        };
        waits |= look_closely(watched, began, threshold, asking, due);
    }
    let asked = due.saturating_sub(AGAIN);
    match waits && now < asked + PATIENCE {
        true => due.min(now + PAUSE),
        false => due,
    }
}

/// A look that is due; the next one is at `due`. Whether something was asked.
fn look_closely(
    watched: &Arc<Watched>,
    began: u64,
    threshold: u64,
    asking: Option<&Asking>,
    due: u64,
) -> bool {
    let now = clock::monotonic_ns();
    let blocks = now.saturating_sub(began) >= threshold;
    let enough = locked(&watched.block).looks.len() >= LOOKS;
    note(watched, began, |block| block.due = due);
    if enough {
        return false;
    }
    let is_asked = blocks && asking.is_some_and(|asking| asking.ask(watched, began));
    let unasked = blocks && !is_asked && asking.is_some_and(Asking::is_busy);
    let look = looks_like(watched.thread, now);
    note(watched, began, |block| {
        block.looks.extend(look);
        block.unasked = unasked;
    });
    if !blocks {
        return false;
    }
    if !watched.seen.swap(true, Ordering::Relaxed) {
        let number = blocks::number();
        note(watched, began, |block| block.number = Some(number));
        dumps::of_block(number);
    }
    // Before 3.13 the interpreter only looks at what is pending when the main thread itself has said that something is.
    if cfg!(Py_3_13)
        && watched.thread.is_main()
        && let Some(look) = look
        && let Some(question) = probe::ask()
    {
        note(watched, began, |block| {
            block.question = Some((question, look.ran));
        });
        return true;
    }
    is_asked || unasked
}

/// Takes what the thread has answered meanwhile. Whether something is still to come.
fn listen(watched: &Arc<Watched>, began: u64, asking: Option<&Asking>) -> bool {
    let stack = asking.and_then(|asking| asking.answer(watched, began, false));
    if let Some(stack) = stack {
        note(watched, began, |block| block.add(stack));
    }
    let has_missed = asking.is_some_and(|asking| asking.has_missed(watched, began));
    let mut unasked = has_missed || locked(&watched.block).unasked;
    if unasked && asking.is_some_and(|asking| asking.ask(watched, began)) {
        unasked = false;
    }
    note(watched, began, |block| block.unasked = unasked);
    let is_asked = unasked || asking.is_some_and(|asking| asking.waits_for(watched, began));
    let question = locked(&watched.block).question;
    let Some((number, had_run)) = question else {
        return is_asked;
    };
    let ran = || watched.thread.standing().map(|standing| standing.ran);
    if probe::is_answered(number) {
        note(watched, began, |block| {
            block.question = None;
            block.answers.0 += 1;
        });
    } else if ran().is_some_and(|ran| ran.saturating_sub(had_run) > UNANSWERED) {
        note(watched, began, |block| {
            block.question = None;
            block.answers.1 += 1;
        });
    } else {
        return true;
    }
    is_asked
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

impl Request {
    /// Whether this is what it is about.
    fn is_of(&self, watched: &Watched, began: u64) -> bool {
        self.began == began && std::ptr::eq(self.watched.as_ptr(), watched)
    }

    /// Whether the step has ended, so that the thread has handled the signal.
    fn is_over(&self) -> bool {
        let watched = self.watched.upgrade();
        watched.is_none_or(|watched| watched.observed.instrument.began() != Some(self.began))
    }
}

impl Asking {
    /// Asks a thread that still runs what it ran at `began` for its stack, unless somebody is being asked.
    fn ask(&self, watched: &Arc<Watched>, began: u64) -> bool {
        let mut request = locked(&self.request);
        if request.as_ref().is_some_and(|before| !before.is_over()) {
            return request
                .as_ref()
                .is_some_and(|before| before.is_of(watched, began));
        }
        *request = None;
        let delivery = watched.thread.delivery(self.signal).unwrap_or_default();
        if delivery.blocked || self.file.set_len(0).is_err() {
            return false;
        }
        let registry = locked(&REGISTRY);
        let runs = registry
            .watched
            .iter()
            .any(|other| Arc::ptr_eq(other, watched))
            && watched.observed.instrument.began() == Some(began);
        if !runs || registry.stopping || thread::handler_of(self.signal) != Some(self.handler) {
            return false;
        }
        // Of somebody who was asked before.
        dumping::has_missed();
        if probe::signal(&registry, watched.thread, self.signal).is_err() {
            return false;
        }
        *request = Some(Request {
            watched: Arc::downgrade(watched),
            began,
            size: 0,
        });
        true
    }

    /// Whether somebody is being asked.
    fn is_busy(&self) -> bool {
        locked(&self.request)
            .as_ref()
            .is_some_and(|request| !request.is_over())
    }

    /// Whether the thread was asked where it could not answer; it may be asked again.
    fn has_missed(&self, watched: &Watched, began: u64) -> bool {
        let mut request = locked(&self.request);
        let missed = request
            .as_ref()
            .is_some_and(|request| request.is_of(watched, began))
            && dumping::has_missed();
        if missed {
            *request = None;
        }
        missed
    }

    /// Whether the thread was asked, and has not answered yet.
    fn waits_for(&self, watched: &Watched, began: u64) -> bool {
        let request = locked(&self.request);
        request
            .as_ref()
            .is_some_and(|request| request.is_of(watched, began))
    }

    /// The stack that the thread was asked for, if it has written it; `is_own`: it is the calling one, and so has.
    fn answer(&self, watched: &Watched, began: u64, is_own: bool) -> Option<Vec<Frame>> {
        let mut request = locked(&self.request);
        let asked = request
            .as_mut()
            .filter(|request| request.is_of(watched, began))?;
        let size = self.file.metadata().ok()?.len();
        let before = std::mem::replace(&mut asked.size, size);
        let is_whole = match watched.thread.delivery(self.signal) {
            // The handler runs with its signal blocked.
            Some(delivery) => !delivery.pending && !delivery.blocked,
            None => size == before,
        };
        if !is_own && (size == 0 || !is_whole) {
            return None;
        }
        *request = None;
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
pub fn watchdog_asks(py: Python<'_>, signal: i32, descriptor: i32) -> PyResult<()> {
    if !dumping::is_safe(py, signal) {
        return Ok(());
    }
    let handler = thread::handler_of(signal)
        .filter(|&handler| handler > 1)
        .ok_or_else(|| PyValueError::new_err(format!("signal {signal} has no handler")))?;
    let file = thread::file_of(descriptor).map_err(os_error)?;
    locked(&REGISTRY).asking = Some(Arc::new(Asking {
        signal,
        handler,
        file,
        request: Mutex::new(None),
    }));
    Ok(())
}

/// What handles a signal: 0 if nothing does.
#[pyfunction]
pub fn signal_handler(signal: i32) -> Option<usize> {
    thread::handler_of(signal)
}

/// Stops the thread and waits until it has ended; `over`: for good, or else for a fork.
#[pyfunction]
pub fn watchdog_stop(over: bool) {
    let thread = {
        let mut registry = locked(&REGISTRY);
        registry.stopping = true;
        registry.over |= over;
        registry.forking = !over;
        CHANGED.notify_all();
        registry.thread.take()
    };
    if let Some(thread) = thread {
        // It cannot have panicked in a way that matters here.
        drop(thread.join());
    }
}

/// In the parent, after a fork: the next loop that waits starts the thread.
#[pyfunction]
pub fn watchdog_resume() {
    locked(&REGISTRY).forking = false;
}

/// In a forked child: the parent's loops are not run here.
#[pyfunction]
pub fn watchdog_forked() {
    let mut registry = locked(&REGISTRY);
    registry.watched.clear();
    registry.forking = false;
    // Its file is the parent's.
    registry.asking = None;
    probe::forget();
}

/// What `gc.callbacks` has: the collector begins, or is done.
#[pyfunction]
pub fn watchdog_collects(phase: &str, _info: &Bound<'_, PyAny>) {
    let begins = phase == "start";
    let since = if begins { clock::monotonic_ns() } else { 0 };
    COLLECTS.store(since, Ordering::Relaxed);
    recorder::collects(begins);
}
