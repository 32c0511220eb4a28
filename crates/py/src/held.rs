//! What the running callback has written, and when it leaves.
//!
//! A stream transport that holds bytes back joins its loop's list; the turn lets all of them send when the
//! callback has returned, before anything else runs and before the loop sleeps or ends. So the order in which
//! things happen stays what it would be if each write were sent at once, and two writes cost one system call.
//!
//! A process that forks within a callback has what is held twice; only the parent sends it.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use tideloop_sys::clock::{self, CoarseClock};
use tideloop_sys::fork;

use crate::event_loop::LoopCore;
use crate::ffi::cell::LoopCell;
use crate::transport::StreamTransport;

#[derive(Default)]
struct List {
    transports: Vec<Py<StreamTransport>>,
    /// The process in which the first one joined.
    generation: u32,
}

/// The transports of one loop that hold bytes back.
pub struct Held {
    /// Whether there are any: what each callback of a loop asks.
    any: AtomicBool,
    list: LoopCell<List>,
    clock: LoopCell<CoarseClock>,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            any: AtomicBool::new(false),
            list: LoopCell::new(List::default()),
            clock: LoopCell::new(CoarseClock::default()),
        }
    }
}

impl Held {
    /// Adds a transport that has begun to hold.
    pub fn join(&self, transport: &Bound<'_, StreamTransport>) {
        let py = transport.py();
        self.list.with(py, |list| {
            if list.transports.is_empty() {
                list.generation = fork::generation();
            }
            list.transports.push(transport.clone().unbind());
        });
        self.any.store(true, Ordering::Relaxed);
    }

    /// About the time, for [`tideloop_core::hold`].
    #[inline]
    pub fn now(&self, py: Python<'_>) -> u64 {
        self.clock.with(py, |clock| {
            let now = clock.now();
            if !clock.is_old(now) {
                return now;
            }
            let now = clock::monotonic_ns();
            clock.set(now);
            now
        })
    }

    /// Whether what is held is another process's, the parent's.
    fn is_inherited(&self, py: Python<'_>) -> bool {
        self.list.with(py, |list| {
            !list.transports.is_empty() && list.generation != fork::generation()
        })
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.list.try_with(|list| {
            list.transports
                .iter()
                .try_for_each(|transport| visit.call(transport))
        });
        visited.unwrap_or(Ok(()))
    }
}

/// The time, if what is written now may be held: a callback of this loop is running, and its end will let it go.
#[inline]
pub fn may_hold(py: Python<'_>, core: &LoopCore) -> Option<u64> {
    (core.is_running() && !core.is_sleeping()).then(|| core.held().now(py))
}

/// In a forked child: lets go of what only the parent sends, so that the child can write for itself.
#[inline]
pub fn forget_inherited(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    let held = core.get().held();
    match held.any.load(Ordering::Relaxed) && held.is_inherited(core.py()) {
        true => release_all(core),
        false => Ok(()),
    }
}

/// Lets everything go that the callback has written. Does not stop at an error that ends the loop: it is
/// returned when all is sent.
#[inline]
pub fn release(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    if !core.get().held().any.load(Ordering::Relaxed) {
        return Ok(());
    }
    release_all(core)
}

fn release_all(core: &Bound<'_, LoopCore>) -> PyResult<()> {
    let py = core.py();
    let held = core.get().held();
    let mut result = Ok(());
    // What is told of a failed or a short send may write more.
    while held.any.load(Ordering::Relaxed) {
        // No exchange, which would cost as much as all the rest: the GIL is held.
        held.any.store(false, Ordering::Relaxed);
        let (inherited, only) = held.list.with(py, |list| {
            let only = match list.transports.len() {
                1 => list.transports.pop(),
                _ => None,
            };
            (list.generation != fork::generation(), only)
        });
        if let Some(transport) = only {
            result = result.and(let_go(&transport.into_bound(py), inherited));
            continue;
        }
        let mut transports = held
            .list
            .with(py, |list| std::mem::take(&mut list.transports));
        for transport in &transports {
            result = result.and(let_go(transport.bind(py), inherited));
        }
        transports.clear();
        // The room is used again.
        held.list.with(py, |list| {
            if list.transports.is_empty() {
                std::mem::swap(&mut list.transports, &mut transports);
            }
        });
    }
    result
}

fn let_go(transport: &Bound<'_, StreamTransport>, inherited: bool) -> PyResult<()> {
    match inherited {
        true => StreamTransport::forget_held(transport),
        false => StreamTransport::send_held(transport),
    }
}
