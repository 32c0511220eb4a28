//! Whoever waits for a primitive of the toolkit, and how it is told.
//!
//! A primitive's core keeps a [`Waiter`] in its queue and knows it by its [`Ticket`]. There are two
//! kinds: a task, parked on a future of the loop that it runs on, and a thread, parked on a condition
//! variable. What follows holds for every primitive; a primitive says its part by [`Parks`].
//!
//! **Grant and delivery.** The core makes a grant: it takes the waiter out, keeps the place that the
//! ticket names, and what was granted (permits, an item) belongs to that place from then on. Delivery,
//! here, tells the waiter. It ends in one of three ways, each of which names the ticket to the core, and the
//! first to do so is the only one that finds anything there:
//!
//! * the operation resumes and takes what its ticket stands for;
//! * the operation is thrown into (its task is cancelled, its coroutine closed): it gives the grant back,
//!   also if it was told in the same turn;
//! * the waiter cannot be told any more, or its loop closes in the turn in which it was told: [`serve`], a lost
//!   [`Delivery`] or a lost [`arrival::Watch`] gives the grant back.
//!
//! So a grant is never lost and never used twice, whoever comes first.
//!
//! **Who may tell whom.** A future belongs to its loop's thread. In the thread that runs the loop it is given
//! its result directly. From anywhere else it goes through `loop.call_soon_threadsafe`: the first letter for
//! a loop schedules a `Delivery`, later ones join it until it runs, so a burst of wake-ups costs one. A
//! delivery that is dropped before it ran was dropped by a loop that closed: its grants go back and on to
//! the next waiters.
//!
//! **Dead waiters.** A closed loop tells nobody. Nor does, in a forked child, a loop that the parent ran: its
//! waiters are dead in the child, unless the child itself is running that loop. The task that died waiting may
//! still be known to somebody; when it ends, it finds that its ticket is void.
//!
//! **Locks.** The core's lock, the lock of the table of deliveries and that of one delivery are each held for
//! a few instructions, with the GIL, and never while Python runs. A table's is taken before that of an entry;
//! neither is ever taken under a core's lock, since telling happens after the core has handed the waiter out.

#![allow(dead_code, reason = "each primitive uses its part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::{PyClass, PyTraverseError, PyVisit};
use tideloop_core::bursts::{Burst, Bursts};
use tideloop_core::parking;
pub use tideloop_core::sync::locked;
use tideloop_core::waiters::Ticket;
use tideloop_sys::fork;

use super::arrival::{self, Note};
use crate::ffi::call;
use crate::ffi::park;

/// A primitive, as those see it who tell its waiters.
///
/// None of these calls Python or drops a Python object while it holds the core's lock.
pub trait Parks: PyClass<Frozen = True> + Sync {
    /// Makes the next grant, if one can be made: the waiter is out of the queue, its place is kept.
    fn grant(&self, py: Python<'_>) -> Option<(Ticket, Waiter)>;

    /// Takes back a grant that did not reach its waiter. Nothing happens if the ticket is void.
    fn take_back(&self, py: Python<'_>, ticket: Ticket);

    /// Ends the wait of somebody whose time is up, unless it has been granted: the waiter is out of the
    /// queue, and its operation learns from its place why it was told.
    fn expire(&self, _py: Python<'_>, _ticket: Ticket) -> Option<Waiter> {
        None
    }

    /// Serves those who wait, after a grant has come back.
    fn returned(owner: &Bound<'_, Self>) {
        serve(owner);
    }
}

/// Somebody who waits.
pub enum Waiter {
    Task(Parked),
    Thread(Arc<Parking>),
}

/// A task that waits, through a future of its loop.
pub struct Parked {
    future: Py<PyAny>,
    event_loop: Py<PyAny>,
    generation: u32,
}

impl Waiter {
    /// A waiter of the loop that runs in this thread ([`park::running_loop`]), and the future for `Step::Wait`.
    #[inline]
    pub fn new<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<(Self, Bound<'py, PyAny>)> {
        let future = park::new_future(event_loop)?;
        let waiter = Self::Task(Parked {
            future: future.clone().unbind(),
            event_loop: event_loop.clone().unbind(),
            generation: fork::generation(),
        });
        Ok((waiter, future))
    }

    /// A waiter on a future of the loop that runs in this thread, which others may wait on as well.
    ///
    /// Raises RuntimeError if no loop runs here.
    pub fn on(future: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self::Task(Parked {
            event_loop: park::running_loop(future.py())?.unbind(),
            future: future.clone().unbind(),
            generation: fork::generation(),
        }))
    }

    /// Tells the waiter that its place has something for it. False: it can never be told.
    ///
    /// Also tells it if it is cancelled already; then its operation will run, and clean up.
    pub fn wake<P: Parks>(self, owner: &Bound<'_, P>, ticket: Ticket) -> bool {
        match self {
            Self::Task(parked) => parked.wake(owner, ticket),
            Self::Thread(parking) => parking.wake(),
        }
    }

    /// Drops it now; a `Py` that is dropped outside of a call of PyO3's may live on for a while.
    pub fn discard(self, py: Python<'_>) {
        if let Self::Task(parked) = self {
            drop(parked.future.into_bound(py));
            drop(parked.event_loop.into_bound(py));
        }
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Task(parked) => {
                visit.call(&parked.future)?;
                visit.call(&parked.event_loop)
            }
            Self::Thread(_) => Ok(()),
        }
    }
}

impl Parked {
    fn wake<P: Parks>(self, owner: &Bound<'_, P>, ticket: Ticket) -> bool {
        let py = owner.py();
        let future = self.future.into_bound(py);
        let event_loop = self.event_loop.into_bound(py);
        if self.generation != fork::generation() {
            // A child that was forked by a loop's callback is not in that loop, though it looks so from the
            // loop's own state; asyncio knows.
            let here = park::current_loop(py).is_ok_and(|current| current.is(&event_loop));
            return here && tell(&future);
        }
        if park::runs_here(&event_loop).unwrap_or(false) {
            let told = tell(&future);
            if told {
                let note = Note {
                    owner: owner.clone().into_any().unbind(),
                    ticket,
                    take_back: take_back::<P>,
                };
                arrival::expect(&event_loop, note);
            }
            return told;
        }
        if is_closed(&event_loop) {
            return false;
        }
        let letter = Letter {
            future: future.unbind(),
            note: Note {
                owner: owner.clone().into_any().unbind(),
                ticket,
                take_back: take_back::<P>,
            },
        };
        post(&event_loop, letter);
        true
    }
}

/// Gives a future its result in the thread of its loop. False: the loop refused to run what waits for it.
fn tell(future: &Bound<'_, PyAny>) -> bool {
    let py = future.py();
    match park::resolve(future, &py.None().into_bound(py)) {
        Ok(_) => true,
        Err(error) => {
            error.write_unraisable(py, Some(future));
            false
        }
    }
}

fn is_closed(event_loop: &Bound<'_, PyAny>) -> bool {
    let py = event_loop.py();
    match call::method0(event_loop, intern!(py, "is_closed")).and_then(|closed| closed.is_truthy())
    {
        Ok(closed) => closed,
        // A loop that cannot say so is asked to run something, and refuses or not.
        Err(error) => {
            call::discard(py, error);
            false
        }
    }
}

/// Tells everybody whom the primitive can serve now. To be called after every change that may allow a grant,
/// without any lock.
#[inline]
pub fn serve<P: Parks>(owner: &Bound<'_, P>) {
    // One at a time: the next grant is made when this one has been told, and none is under way if telling
    // runs other code.
    while let Some((ticket, waiter)) = owner.get().grant(owner.py()) {
        if !waiter.wake(owner, ticket) {
            owner.get().take_back(owner.py(), ticket);
        }
    }
}

/// What [`Letter`]s remember of the primitive's class.
fn take_back<P: Parks>(owner: &Bound<'_, PyAny>, ticket: Ticket) {
    if let Ok(owner) = owner.cast::<P>() {
        owner.get().take_back(owner.py(), ticket);
        P::returned(owner);
    }
}

// --- from other threads ------------------------------------------------------------------------

/// Word to one waiter, on its way to another loop.
struct Letter {
    future: Py<PyAny>,
    note: Note,
}

impl Letter {
    fn lose(self, py: Python<'_>) {
        (self.note.take_back)(&self.note.owner.into_bound(py), self.note.ticket);
        drop(self.future.into_bound(py));
    }
}

/// The deliveries that are scheduled, by the address of their loop. Each holds a letter, whose future holds
/// its loop, so the address is that loop's for as long as the burst is open.
static SCHEDULED: Bursts<Letter> = Bursts::new();

/// Sends a letter to a loop that does not run in this thread. If the loop refuses, the letter is lost.
fn post(event_loop: &Bound<'_, PyAny>, letter: Letter) {
    let py = event_loop.py();
    let address = event_loop.as_ptr() as usize;
    let Some(burst) = SCHEDULED.post(address, letter) else {
        return;
    };
    let delivery = Delivery { burst };
    let sent = Bound::new(py, delivery).and_then(|delivery| {
        let method = intern!(py, "call_soon_threadsafe");
        let sent = call::method1(event_loop, method, delivery.as_any());
        if sent.is_err() {
            // Our letter goes back like those that have joined it.
            delivery.get().give_up(py);
        }
        sent
    });
    match sent {
        Err(error) if !error.is_instance_of::<PyRuntimeError>(py) => {
            error.write_unraisable(py, Some(event_loop));
        }
        Err(error) => call::discard(py, error),
        Ok(_) => {}
    }
}

/// A scheduled callback that hands letters over in the thread of their loop.
#[pyclass(frozen, module = "tideloop._tideloop", name = "_Delivery")]
pub struct Delivery {
    burst: Burst<Letter>,
}

impl Delivery {
    fn give_up(&self, py: Python<'_>) {
        let letters = SCHEDULED.close(&self.burst);
        if !letters.is_empty() {
            call::undisturbed(py, || {
                for letter in letters {
                    letter.lose(py);
                }
            });
        }
    }
}

#[pymethods]
impl Delivery {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let event_loop = park::current_loop(py)?;
        for letter in SCHEDULED.close(&self.burst) {
            if tell(letter.future.bind(py)) {
                arrival::expect(&event_loop, letter.note);
                drop(letter.future.into_bound(py));
            } else {
                letter.lose(py);
            }
        }
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<wake-ups for {} waiters>", self.burst.len())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.burst.try_each(|letter| {
            visit.call(&letter.future)?;
            visit.call(&letter.note.owner)
        })
    }

    fn __clear__(&self, py: Python<'_>) {
        self.give_up(py);
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Not at the very end of the interpreter, when nobody waits any more.
        Python::try_attach(|py| self.give_up(py));
    }
}

// --- time limits -------------------------------------------------------------------------------

/// Ends a wait when its time is up: schedules that on the loop and returns the handle, to be cancelled
/// when the operation goes on.
pub fn expire_later<'py, P: Parks>(
    owner: &Bound<'py, P>,
    event_loop: &Bound<'py, PyAny>,
    delay: &Bound<'py, PyAny>,
    ticket: Ticket,
) -> PyResult<Bound<'py, PyAny>> {
    let py = owner.py();
    let expiry = Bound::new(
        py,
        Expiry {
            owner: owner.clone().into_any().unbind(),
            ticket,
            expire: expire::<P>,
        },
    )?;
    call::schedule(
        event_loop,
        intern!(py, "call_later"),
        [delay, expiry.as_any()],
    )
}

fn expire<P: Parks>(owner: &Bound<'_, PyAny>, ticket: Ticket) {
    let Ok(owner) = owner.cast::<P>() else {
        return;
    };
    if let Some(waiter) = owner.get().expire(owner.py(), ticket) {
        waiter.wake(owner, ticket);
        // It may have stood in the way of others.
        serve(owner);
    }
}

/// A timer's callback.
#[pyclass(frozen, module = "tideloop._tideloop", name = "_Expiry")]
pub struct Expiry {
    owner: Py<PyAny>,
    ticket: Ticket,
    expire: fn(&Bound<'_, PyAny>, Ticket),
}

#[pymethods]
impl Expiry {
    fn __call__(&self, py: Python<'_>) {
        (self.expire)(self.owner.bind(py), self.ticket);
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "<time limit of a wait for {}>",
            self.owner.bind(py).repr()?
        ))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.owner)
    }
}

// --- threads -----------------------------------------------------------------------------------

/// How long a thread that handles signals waits before it looks for some.
const SIGNALS: Duration = Duration::from_millis(50);

/// Where a blocked thread waits.
#[derive(Debug)]
pub struct Parking {
    place: parking::Parking,
    generation: u32,
}

impl Parking {
    /// For one wait of this thread; the clone in a [`Waiter::Thread`] goes into the core's queue.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            place: parking::Parking::default(),
            generation: fork::generation(),
        })
    }

    fn wake(&self) -> bool {
        // In a forked child the threads of the parent are gone.
        if self.generation != fork::generation() {
            return false;
        }
        self.place.wake();
        true
    }

    /// Blocks this thread, without the GIL, until it is told or `limit` has passed (real time: no loop
    /// belongs to a blocked thread). True: it was told.
    ///
    /// Raises what a signal handler raises. In every case but the first the caller gives its ticket back.
    pub fn wait(&self, py: Python<'_>, limit: Option<Duration>) -> PyResult<bool> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        // Only the main thread has signals to look for, but asking which one this is costs more than looking.
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let slice = left.map_or(SIGNALS, |left| left.min(SIGNALS));
            if py.detach(|| self.place.wait(slice)) {
                return Ok(true);
            }
            call::check_signals(py)?;
            if left.is_some_and(|left| left <= slice) {
                return Ok(false);
            }
        }
    }
}
