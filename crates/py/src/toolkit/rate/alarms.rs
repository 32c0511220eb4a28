//! When somebody looks whose time has come: one timer per loop that has waiters.
//!
//! **Timers.** Each loop with waiters has one timer, an [`Alarm`], set for when the first of *all* waiters is to be
//! admitted: the first may belong to a loop that is stopped, and must not hold up the others. Whichever rings first
//! admits everybody whose time has come, in any loop, and sets itself anew. Times mostly move away, so an alarm that
//! rings early finds nothing to do and is set anew; when they come closer (somebody gave up, or gave something back) the
//! alarms that are late are set anew: that of this thread's loop directly, another one by
//! `call_soon_threadsafe`. An alarm without waiters is not set again.
//!
//! **Clocks.** Time is the loop's, read once per call. A thread without a loop reads the system's monotonic clock, which
//! is the one behind the loops' own. A loop that shows it in milliseconds may ring early; nobody is admitted
//! early, and the alarm is set again for a little later.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyFloat;
use pyo3::{PyTraverseError, PyVisit};

use super::super::waiter::{locked, serve};
use super::RatesCore;
use crate::ffi::{call, park};

/// An alarm that has rung and found nothing is not set again for less than this.
const PATIENCE_NS: i64 = 1_000;

/// The timer of one loop.
pub(super) struct Alarm {
    /// The address of the loop, which is this one's for as long as the alarm holds it.
    pub(super) address: usize,
    pub(super) event_loop: Py<PyAny>,
    pub(super) ring: Py<Ring>,
    /// What it is set for; `i64::MAX` if it is not.
    when: i64,
    pub(super) timer: Option<Py<PyAny>>,
    pub(super) waiting: usize,
}

impl Alarm {
    /// A timer that is not set yet.
    pub(super) fn new(
        owner: &Bound<'_, RatesCore>,
        event_loop: Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let ring = Ring {
            owner: owner.clone().unbind(),
        };
        Ok(Self {
            address: event_loop.as_ptr() as usize,
            ring: Py::new(event_loop.py(), ring)?,
            event_loop: event_loop.unbind(),
            when: i64::MAX,
            timer: None,
            waiting: 0,
        })
    }
}

#[derive(Default)]
pub(super) struct Alarms {
    pub(super) all: Vec<Alarm>,
    pub(super) rung: u64,
}

impl Alarms {
    pub(super) fn of(&mut self, address: usize) -> Option<&mut Alarm> {
        self.all.iter_mut().find(|alarm| alarm.address == address)
    }

    pub(super) fn left(&mut self, address: usize) {
        if let Some(alarm) = self.of(address) {
            alarm.waiting = alarm.waiting.saturating_sub(1);
        }
    }
}

/// The loop that runs here, if one does, and what time it is.
pub(super) struct Here<'py> {
    pub(super) event_loop: Option<Bound<'py, PyAny>>,
    pub(super) now: i64,
}

impl<'py> Here<'py> {
    pub(super) fn find(py: Python<'py>) -> PyResult<Self> {
        let event_loop = Some(park::current_loop(py)?).filter(|current| !current.is_none());
        let now = match &event_loop {
            Some(event_loop) => park::time_ns(event_loop)?,
            None => tideloop_sys::clock::monotonic_ns() as i64,
        };
        Ok(Self { event_loop, now })
    }

    fn is(&self, event_loop: &Bound<'py, PyAny>) -> bool {
        self.event_loop
            .as_ref()
            .is_some_and(|here| here.is(event_loop))
    }
}

/// Admits whose time has come and sets the alarms for whose has not. After every change, without a lock.
pub(super) fn go_on_with<'py>(owner: &Bound<'py, RatesCore>, here: &Here<'py>) -> PyResult<()> {
    {
        let mut state = locked(&owner.get().state);
        state.rates.observe(here.now);
        if state.rates.is_empty() {
            return Ok(());
        }
    }
    serve(owner);
    set_alarms(owner, here)
}

/// Sets every alarm that would ring too late.
fn set_alarms<'py>(owner: &Bound<'py, RatesCore>, here: &Here<'py>) -> PyResult<()> {
    let py = owner.py();
    loop {
        // One at a time: setting it calls Python.
        let (event_loop, ring, old, when) = {
            let mut state = locked(&owner.get().state);
            let Some(next) = state.rates.next() else {
                return Ok(());
            };
            let late = state
                .alarms
                .all
                .iter_mut()
                .find(|alarm| alarm.waiting > 0 && alarm.when > next);
            let Some(alarm) = late else {
                return Ok(());
            };
            alarm.when = next;
            let (event_loop, ring) = (alarm.event_loop.clone_ref(py), alarm.ring.clone_ref(py));
            (
                event_loop.into_bound(py),
                ring.into_bound(py),
                alarm.timer.take(),
                next,
            )
        };
        if here.is(&event_loop) {
            if let Some(old) = old {
                call::method0(old.bind(py), intern!(py, "cancel"))?;
            }
            let when = when.max(here.now.saturating_add(PATIENCE_NS));
            let seconds = PyFloat::new(py, when as f64 / 1e9);
            let timer = call::schedule(
                &event_loop,
                intern!(py, "call_at"),
                [seconds.as_any(), ring.as_any()],
            )?;
            keep_timer(owner, &event_loop, timer);
        } else {
            // Its own thread sets it; until then the old timer is as good as none.
            let sent = call::method1(
                &event_loop,
                intern!(py, "call_soon_threadsafe"),
                ring.as_any(),
            );
            if let Err(error) = sent {
                call::discard(py, error);
                drop(remove_alarm(owner, &event_loop));
            }
        }
    }
}

fn keep_timer(
    owner: &Bound<'_, RatesCore>,
    event_loop: &Bound<'_, PyAny>,
    timer: Bound<'_, PyAny>,
) {
    let mut timer = Some(timer.unbind());
    let replaced = {
        let mut state = locked(&owner.get().state);
        match state.alarms.of(event_loop.as_ptr() as usize) {
            Some(alarm) => std::mem::replace(&mut alarm.timer, timer.take()),
            None => None,
        }
    };
    drop((
        replaced.map(|old| old.into_bound(owner.py())),
        timer.map(|new| new.into_bound(owner.py())),
    ));
}

/// Forgets a loop; what comes back is dropped by the caller, outside of the lock.
fn remove_alarm(owner: &Bound<'_, RatesCore>, event_loop: &Bound<'_, PyAny>) -> Option<Alarm> {
    let mut state = locked(&owner.get().state);
    let address = event_loop.as_ptr() as usize;
    let index = state
        .alarms
        .all
        .iter()
        .position(|alarm| alarm.address == address)?;
    Some(state.alarms.all.swap_remove(index))
}

/// The callback of a loop's timer.
#[pyclass(frozen, module = "tideloop._tideloop", name = "_Ring")]
pub(super) struct Ring {
    owner: Py<RatesCore>,
}

#[pymethods]
impl Ring {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let owner = self.owner.bind(py);
        let here = Here::find(py)?;
        let Some(event_loop) = &here.event_loop else {
            return Ok(());
        };
        let (timer, idle) = {
            let mut state = locked(&owner.get().state);
            state.rates.observe(here.now);
            state.alarms.rung += 1;
            match state.alarms.of(event_loop.as_ptr() as usize) {
                Some(alarm) => {
                    alarm.when = i64::MAX;
                    (alarm.timer.take(), alarm.waiting == 0)
                }
                None => (None, false),
            }
        };
        if let Some(timer) = timer {
            // It has just rung, unless another thread has asked for this.
            call::method0(timer.bind(py), intern!(py, "cancel"))?;
        }
        if idle {
            drop(remove_alarm(owner, event_loop));
        }
        go_on_with(owner, &here)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<timer of {}>", self.owner.bind(py).repr()?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.owner)
    }
}

/// What could be admitted earlier now is.
pub(super) fn changed(owner: &Bound<'_, RatesCore>) {
    let here = Here::find(owner.py());
    if let Err(error) = here.and_then(|here| go_on_with(owner, &here)) {
        error.write_unraisable(owner.py(), Some(owner.as_any()));
    }
}
