//! Arrival: that those who were told of a grant in the thread of their loop come for it.
//!
//! A task that is woken takes its grant in the loop's next turn. If the loop is stopped before and then
//! closed, that turn never comes; and as long as somebody keeps the task, its coroutine is not closed
//! either, which would give the grant back. So the grants of a turn are noted in a callback of the loop, the
//! *watch*, which costs one `call_soon` in a turn and one entry per grant. A watch that is dropped
//! before it ran was dropped by a loop that closed, or died: what it has noted goes back and on to others.
//!
//! **When a note is struck off.** A watch may run in the very turn in which a grant is noted. It then
//! schedules itself again, behind the wake-up, and strikes the note off when it runs for the second time: by
//! then the task has run. Nothing depends on whether it did come, so a coroutine that somebody drives by hand
//! and forgets does not keep a watch going. A note that is void, since the grant was taken, is harmless.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::waiters::Ticket;

use super::waiter::locked;
use crate::ffi::call;

/// A grant whose waiter was told.
pub struct Note {
    pub owner: Py<PyAny>,
    pub ticket: Ticket,
    pub take_back: fn(&Bound<'_, PyAny>, Ticket),
}

#[derive(Default)]
struct Notes {
    /// Since the watch ran last.
    fresh: Vec<Note>,
    /// Before; their wake-ups are in front of the watch.
    waking: Vec<Note>,
}

type Shared = Arc<Mutex<Notes>>;

/// The watches that are scheduled, by the address of their loop, which each of them holds.
static WATCHES: Mutex<BTreeMap<usize, Shared>> = Mutex::new(BTreeMap::new());

/// Notes a grant whose waiter was told just now, in the thread that runs its loop.
pub fn expect(event_loop: &Bound<'_, PyAny>, note: Note) {
    let py = event_loop.py();
    let address = event_loop.as_ptr().addr();
    let notes = {
        let mut watches = locked(&WATCHES);
        if let Some(notes) = watches.get(&address) {
            locked(notes).fresh.push(note);
            return;
        }
        let notes = Shared::default();
        locked(&notes).fresh.push(note);
        watches.insert(address, notes.clone());
        notes
    };
    let event_loop = event_loop.clone();
    let watch = Watch {
        event_loop: event_loop.clone().unbind(),
        notes,
    };
    let scheduled = Bound::new(py, watch).and_then(|watch| schedule(&event_loop, &watch));
    if let Err(error) = scheduled {
        // The waiter was told all the same, and most loops run on.
        error.write_unraisable(py, Some(&event_loop));
    }
}

fn schedule(event_loop: &Bound<'_, PyAny>, watch: &Bound<'_, Watch>) -> PyResult<()> {
    let name = intern!(event_loop.py(), "call_soon");
    call::schedule(event_loop, name, [watch.as_any()]).map(drop)
}

/// A scheduled callback that waits until those who were told have come.
#[pyclass(frozen, module = "tideloop._tideloop", name = "_Watch")]
pub struct Watch {
    event_loop: Py<PyAny>,
    notes: Shared,
}

impl Watch {
    /// Nothing is noted any more. What was.
    fn end(&self) -> Notes {
        let address = self.event_loop.as_ptr().addr();
        let mut watches = locked(&WATCHES);
        if watches
            .get(&address)
            .is_some_and(|notes| Arc::ptr_eq(notes, &self.notes))
        {
            watches.remove(&address);
        }
        std::mem::take(&mut *locked(&self.notes))
    }

    fn give_back(&self, py: Python<'_>) {
        let Notes { fresh, waking } = self.end();
        if fresh.is_empty() && waking.is_empty() {
            return;
        }
        call::undisturbed(py, || {
            for note in waking.into_iter().chain(fresh) {
                (note.take_back)(&note.owner.into_bound(py), note.ticket);
            }
        });
    }
}

#[pymethods]
impl Watch {
    fn __call__(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let (come, idle) = {
            let mut notes = locked(&this.notes);
            let fresh = std::mem::take(&mut notes.fresh);
            let idle = fresh.is_empty();
            (std::mem::replace(&mut notes.waking, fresh), idle)
        };
        for note in come {
            drop(note.owner.into_bound(py));
        }
        // Dropping them may have run other code, which is noted as well.
        if idle && locked(&this.notes).fresh.is_empty() {
            this.end();
            return Ok(());
        }
        schedule(this.event_loop.bind(py), slf)
    }

    fn __repr__(&self) -> String {
        let notes = locked(&self.notes);
        format!("<wake-ups of {}>", notes.fresh.len() + notes.waking.len())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        let Ok(notes) = self.notes.try_lock() else {
            return Ok(());
        };
        let mut all = notes.fresh.iter().chain(&notes.waking);
        all.try_for_each(|note| visit.call(&note.owner))
    }

    fn __clear__(&self, py: Python<'_>) {
        self.give_back(py);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Not at the very end of the interpreter, when nobody waits any more.
        Python::try_attach(|py| self.give_back(py));
    }
}
