//! Traces that are written to files by themselves: when a loop is blocked, and when a signal comes.
//!
//! **Who writes.** A thread of its own, which never takes the GIL and has nothing of Python's: a trace of 65,536 events is
//! some 10 MB of JSON and takes tens of milliseconds, for which neither a loop nor the watchdog has time; and it is wanted most while
//! the program does nothing any more. It sleeps until its bell is rung (`tideloop_sys::bell`): by the watchdog, when it has seen a
//! block; by the loop, when that has ended, so that the same file is written anew, with its end; by the signal.
//! **When it is not there.** It is joined before a fork and before the interpreter ends, by whoever holds the GIL, as the
//! watchdog is; what it was told by then is written.
//!
//! **Locks.** `STATE`, which nobody holds while a file is written.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use pyo3::prelude::*;
use tideloop_sys::bell::{self, Bell};
use tideloop_sys::clock;

use super::recorder::chrome_trace;
use super::{Observed, known};
use crate::errors::os_error;

/// A block that begins so soon after another one was dumped is not, in nanoseconds.
const REST: u64 = 1_000_000_000;

/// Blocks of different loops that are under way at one time and get the file that was begun for them.
const LOOPS: usize = 16;

#[derive(Clone)]
struct Plan {
    folder: PathBuf,
    on_block: bool,
    signal: Option<i32>,
    seconds: Option<f64>,
    /// Files kept.
    most: usize,
}

/// What a file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Block(u64),
    Signal(u64),
}

struct State {
    plan: Option<Plan>,
    jobs: VecDeque<(Job, Vec<Arc<Observed>>)>,
    thread: Option<(JoinHandle<()>, Arc<Bell>)>,
    stopping: bool,
    /// A fork is under way: nobody starts the thread until it is over.
    forking: bool,
    /// The blocks whose files were begun last, and when the last one was.
    last: VecDeque<u64>,
    at: u64,
    signals: u64,
    files: VecDeque<PathBuf>,
}

static STATE: Mutex<State> = Mutex::new(State {
    plan: None,
    jobs: VecDeque::new(),
    thread: None,
    stopping: false,
    forking: false,
    last: VecDeque::new(),
    at: 0,
    signals: 0,
    files: VecDeque::new(),
});
/// Whether blocks are dumped, for those who would else take the lock for nothing.
static ON_BLOCK: AtomicBool = AtomicBool::new(false);

fn locked() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block was seen, or has ended.
pub fn of_block(number: u64) {
    if !ON_BLOCK.load(Ordering::Relaxed) {
        return;
    }
    // Those that there are now: the process may be about to end.
    let loops = known::loops();
    let mut state = locked();
    if !state.last.contains(&number) {
        let now = clock::monotonic_ns();
        if state.at != 0 && now.saturating_sub(state.at) < REST {
            return;
        }
        state.at = now;
        state.last.push_back(number);
        if state.last.len() > LOOPS {
            state.last.pop_front();
        }
    }
    let job = Job::Block(number);
    if !state.jobs.iter().any(|(other, _)| *other == job) {
        state.jobs.push_back((job, loops));
    }
    if let Some((_, bell)) = &state.thread {
        bell.ring();
    }
}

fn work(bell: &Bell) {
    loop {
        let waited = bell.wait();
        let mut state = locked();
        if bell::was_signalled() {
            state.signals += 1;
            let number = state.signals;
            state.jobs.push_back((Job::Signal(number), known::loops()));
        }
        let jobs = std::mem::take(&mut state.jobs);
        let (plan, stopping) = (state.plan.clone(), state.stopping);
        drop(state);
        for (job, mut loops) in jobs {
            loops.retain(|observed| observed.recorder.is_some());
            if let Some(plan) = &plan
                && !loops.is_empty()
            {
                dump(plan, job, &loops);
            }
        }
        if stopping || waited.is_err() {
            return;
        }
    }
}

fn dump(plan: &Plan, job: Job, loops: &[Arc<Observed>]) {
    let process = std::process::id();
    let name = match job {
        Job::Block(number) => format!("trace-{process}-block-{number}.json"),
        Job::Signal(number) => format!("trace-{process}-signal-{number}.json"),
    };
    let path = plan.folder.join(name);
    match write(&path, &chrome_trace(loops, plan.seconds)) {
        Ok(()) => keep(path, plan.most),
        Err(error) => {
            // There is nobody else to tell: Python may be what does not go on.
            let text = format!("tideloop: {} cannot be written: {error}\n", path.display());
            std::io::stderr()
                .write_all(text.as_bytes())
                .unwrap_or_default();
        }
    }
}

/// All of it or nothing: whoever finds the file can read it.
fn write(path: &Path, document: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, document)?;
    std::fs::rename(&part, path)
}

/// Removes the oldest ones of what was written.
fn keep(path: PathBuf, most: usize) {
    let mut gone = Vec::new();
    let mut state = locked();
    if !state.files.contains(&path) {
        state.files.push_back(path);
    }
    while state.files.len() > most {
        gone.extend(state.files.pop_front());
    }
    drop(state);
    for path in gone {
        // Somebody may have taken it away.
        std::fs::remove_file(path).unwrap_or_default();
    }
}

fn start(state: &mut State) -> std::io::Result<()> {
    if state.thread.is_some() || state.plan.is_none() || state.forking {
        return Ok(());
    }
    state.stopping = false;
    let bell = bell::bell()?;
    let of_thread = Arc::clone(&bell);
    let builder = std::thread::Builder::new().name("tideloop-dump".to_owned());
    let thread = builder.spawn(move || work(&of_thread))?;
    if !state.jobs.is_empty() {
        bell.ring();
    }
    state.thread = Some((thread, bell));
    Ok(())
}

/// Ends the thread, which writes what it was told to before, and waits for that.
fn stop(py: Python<'_>, forks: bool) {
    let thread = {
        let mut state = locked();
        state.stopping = true;
        state.forking = forks;
        if let Some((_, bell)) = &state.thread {
            bell.ring();
        }
        state.thread.take()
    };
    if let Some((thread, _)) = thread {
        // It cannot have panicked in a way that matters here.
        match forks {
            // Others would start again what was stopped for the fork; the thread never takes the GIL.
            true => drop(thread.join()),
            false => py.detach(|| drop(thread.join())),
        }
    }
}

/// Dumps traces into this folder from now on, and no longer anywhere else: of the last so many seconds, or all that there is,
/// `most` files; of blocks, and when this signal comes.
///
/// Raises OSError if the signal cannot be handled, or there can be no thread.
#[pyfunction]
#[pyo3(signature = (folder, on_block, signal, seconds, most))]
pub fn dumps_begin(
    py: Python<'_>,
    folder: PathBuf,
    on_block: bool,
    signal: Option<i32>,
    seconds: Option<f64>,
    most: usize,
) -> PyResult<()> {
    dumps_stop(py, true);
    let mut state = locked();
    state.plan = Some(Plan {
        folder,
        on_block,
        signal,
        seconds,
        most,
    });
    let started = start(&mut state).and_then(|()| signal.map_or(Ok(()), bell::rung_by));
    drop(state);
    match started {
        Ok(()) => {
            ON_BLOCK.store(on_block, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => {
            dumps_stop(py, true);
            Err(os_error(error))
        }
    }
}

/// Starts the thread if it should run and does not: it was stopped for a fork, which `is_over` says is over.
#[pyfunction]
pub fn dumps_resume(is_over: bool) {
    let mut state = locked();
    state.forking &= !is_over;
    if start(&mut state).is_ok()
        && let Some(plan) = &state.plan
    {
        ON_BLOCK.store(plan.on_block, Ordering::Relaxed);
    }
}

/// Stops the thread when it has written what it was told to, and waits until it has ended; `over`: for good.
#[pyfunction]
pub fn dumps_stop(py: Python<'_>, over: bool) {
    stop(py, !over);
    if over {
        ON_BLOCK.store(false, Ordering::Relaxed);
        let mut state = locked();
        if let Some(signal) = state.plan.take().and_then(|plan| plan.signal) {
            bell::no_longer_rung_by(signal);
        }
        state.jobs.clear();
    }
}

/// In a forked child, whose thread and bell were the parent's: both are made anew by the next loop that runs.
#[pyfunction]
pub fn dumps_forked() {
    bell::forked();
    ON_BLOCK.store(false, Ordering::Relaxed);
    let mut state = locked();
    state.jobs.clear();
    // Those are the parent's, too.
    state.files.clear();
    state.last.clear();
    state.at = 0;
    state.forking = false;
}
