//! What only Python knows: its thread takes the GIL, calls `tideloop.observe.collected` and keeps what that returns.
//!
//! A kind is collected when somebody asks for it, once for all who ask meanwhile, and then not again for four times as long
//! as it took, or two seconds: however many look, the loops keep most of the GIL.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pyo3::prelude::*;
use tideloop_sys::clock;
use tideloop_sys::selector::Selector;

use super::locked;

/// What is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What of the loops it takes the GIL to know; nothing is kept of it here.
    Loops,
    Tasks,
    Gauges,
    /// Tasks and gauges, as Prometheus wants them.
    Samples,
}

const KINDS: [Kind; 4] = [Kind::Loops, Kind::Tasks, Kind::Gauges, Kind::Samples];

impl Kind {
    /// The function of `tideloop.observe.collected`.
    fn function(self) -> &'static str {
        match self {
            Self::Loops => "note_loops",
            Self::Tasks => "tasks",
            Self::Gauges => "gauges",
            Self::Samples => "samples",
        }
    }
}

/// What was found, and when.
#[derive(Clone)]
pub struct Collected {
    pub made: u64,
    /// What Python has returned, or the words of its exception.
    pub found: Result<Arc<[u8]>, String>,
}

#[derive(Default)]
struct OfKind {
    wanted: bool,
    begun: u64,
    ended: u64,
    latest: Option<Collected>,
    /// Not again before that.
    rests_until: u64,
}

struct State {
    kinds: [OfKind; KINDS.len()],
    wakes: Option<Arc<dyn Selector>>,
    thread: Option<JoinHandle<()>>,
    runs: bool,
    stopping: bool,
}

const NOTHING: OfKind = OfKind {
    wanted: false,
    begun: 0,
    ended: 0,
    latest: None,
    rests_until: 0,
};

static STATE: Mutex<State> = Mutex::new(State {
    kinds: [NOTHING; KINDS.len()],
    wakes: None,
    thread: None,
    runs: false,
    stopping: false,
});
static CHANGED: Condvar = Condvar::new();

/// How long it may take to come back from Python when it is to end.
const LEAVE: Duration = Duration::from_secs(1);

/// The longest time, in nanoseconds, in which a kind is not collected again.
const LONGEST_REST: u64 = 2_000_000_000;

/// Starts the thread, which wakes the selector whenever it has found something.
pub fn start(wakes: &Arc<dyn Selector>) -> std::io::Result<()> {
    let mut state = locked(&STATE);
    state.wakes = Some(Arc::clone(wakes));
    state.stopping = false;
    if state.runs {
        // One that did not come back in time is taken on again.
        return Ok(());
    }
    let builder = std::thread::Builder::new().name("tideloop-collect".to_owned());
    state.thread = Some(builder.spawn(collect)?);
    state.runs = true;
    Ok(())
}

/// Ends the thread and waits for that, for a second at most. Called without the GIL.
pub fn stop() {
    let mut state = locked(&STATE);
    state.stopping = true;
    state.wakes = None;
    CHANGED.notify_all();
    let (mut state, _) = CHANGED
        .wait_timeout_while(state, LEAVE, |state| state.runs)
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let thread = state.thread.take();
    let ended = !state.runs;
    drop(state);
    if let Some(thread) = thread.filter(|_| ended) {
        // It has nothing left to do, and cannot have panicked in a way that matters here.
        drop(thread.join());
    }
}

/// In a forked child: the thread is not there, and what it has found is the parent's.
pub fn forked() {
    // Held by a thread that was left behind: it is not there to let go of it, and nobody is served then.
    let Ok(mut state) = STATE.try_lock() else {
        return;
    };
    state.kinds = [NOTHING; KINDS.len()];
    state.wakes = None;
    state.thread = None;
    state.runs = false;
    state.stopping = false;
}

/// Asks for a kind to be collected, from now on; returns by what [`since`] knows whether it was.
pub fn ask(kind: Kind) -> u64 {
    let mut state = locked(&STATE);
    let of_kind = &mut state.kinds[kind as usize];
    of_kind.wanted = true;
    let ticket = of_kind.begun + 1;
    CHANGED.notify_all();
    ticket
}

/// Whether what was asked for is there.
pub fn since(kind: Kind, ticket: u64) -> bool {
    locked(&STATE).kinds[kind as usize].ended >= ticket
}

/// What was found last.
pub fn latest(kind: Kind) -> Option<Collected> {
    locked(&STATE).kinds[kind as usize].latest.clone()
}

fn collect() {
    let mut state = locked(&STATE);
    while !state.stopping {
        let now = clock::monotonic_ns();
        let wanted = KINDS
            .into_iter()
            .filter(|&kind| state.kinds[kind as usize].wanted);
        let first = wanted.min_by_key(|&kind| state.kinds[kind as usize].rests_until);
        let Some(kind) = first else {
            state = CHANGED
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            continue;
        };
        let of_kind = &mut state.kinds[kind as usize];
        if of_kind.rests_until > now {
            let rest = Duration::from_nanos(of_kind.rests_until - now);
            state = CHANGED
                .wait_timeout(state, rest)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
            continue;
        }
        of_kind.wanted = false;
        of_kind.begun += 1;
        let begun = of_kind.begun;
        drop(state);
        // None: the interpreter ends, or has.
        let found = Python::try_attach(|py| {
            // How long the GIL was not to be had is no work.
            let began = clock::monotonic_ns();
            (ask_python(py, kind), began)
        });
        let made = clock::monotonic_ns();
        state = locked(&STATE);
        let of_kind = &mut state.kinds[kind as usize];
        of_kind.ended = begun;
        if let Some((found, began)) = found {
            of_kind.rests_until = made + LONGEST_REST.min(4 * (made - began));
            // What was given up because it is to stop is no answer.
            if !state.stopping {
                state.kinds[kind as usize].latest = Some(Collected { made, found });
            }
        }
        if let Some(selector) = &state.wakes {
            // Who waits looks again when its time is over, too.
            selector.wake().ok();
        }
    }
    state.runs = false;
    CHANGED.notify_all();
}

fn ask_python(py: Python<'_>, kind: Kind) -> Result<Arc<[u8]>, String> {
    let call = || -> PyResult<Arc<[u8]>> {
        let module = py.import("tideloop.observe.collected")?;
        let found = module.call_method0(kind.function())?;
        Ok(Arc::from(found.extract::<&[u8]>()?))
    };
    call().map_err(|error| error.to_string())
}
