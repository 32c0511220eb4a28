//! RateLimiter: so much per time, for tasks of any loop.
//!
//! [`Rates`] decides whom the windows admit; here its decisions become steps of operations, and its times become
//! timers. The state is behind a lock that is held while nothing else runs, so any thread may use a limiter; who
//! waits is parked in a [`Waiter`].
//!
//! `costs`: what a request costs, by unit. `alarms`: when somebody looks. `tasks`: operations. `charge`: what was taken.

mod alarms;
mod charge;
mod costs;
mod tasks;

use std::sync::Mutex;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::rate::{Costs, Left, Rates, Window};
use tideloop_core::waiters::Ticket;

use super::limiter::rank;
use super::waiter::{Parks, Waiter, locked};
use crate::ffi::roll::Place;
use alarms::{Alarms, Here, go_on_with};
use charge::{Booking, charge};
use costs::describe;
use tasks::take;

pub use charge::Charge;
pub use tasks::{Acquire, Enter, EnterClaim, Exit};

/// Somebody in line, and the address of its loop.
struct InLine {
    waiter: Waiter,
    address: usize,
}

struct State {
    rates: Rates<InLine>,
    alarms: Alarms,
}

/// The native half of `tideloop.RateLimiter`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct RatesCore {
    state: Mutex<State>,
    title: String,
    name: Option<String>,
    /// What each window counts.
    units: Box<[String]>,
    /// What a request costs that does not say; `None`: it has to say.
    plain: Option<Costs>,
    place: Place,
}

impl Parks for RatesCore {
    fn grant(&self, _py: Python<'_>) -> Option<(Ticket, Waiter)> {
        let mut state = locked(&self.state);
        let (ticket, InLine { waiter, address }) = state.rates.admit()?;
        state.alarms.left(address);
        Some((ticket, waiter))
    }

    fn take_back(&self, py: Python<'_>, ticket: Ticket) {
        let left = {
            let mut state = locked(&self.state);
            let left = state.rates.leave(ticket);
            if let Left::Waiting(InLine { address, .. }) = &left {
                state.alarms.left(*address);
            }
            left
        };
        if let Left::Waiting(InLine { waiter, .. }) = left {
            waiter.discard(py);
        }
    }

    /// Those behind come earlier, which their loops' timers do not know yet.
    fn returned(owner: &Bound<'_, Self>) {
        alarms::changed(owner);
    }
}

#[pymethods]
impl RatesCore {
    /// Each of `rates` is a limit, the seconds that it is for, a burst and a unit.
    #[new]
    #[pyo3(signature = (rates, name))]
    fn new(rates: Vec<(f64, f64, u64, String)>, name: Option<String>) -> PyResult<Self> {
        let title = match &name {
            Some(name) => format!("RateLimiter '{name}'"),
            None => "RateLimiter".to_owned(),
        };
        let mut windows = Vec::with_capacity(rates.len());
        for (limit, per, burst, unit) in &rates {
            windows.push(Window::new(*limit, *per, *burst).ok_or_else(|| {
                PyValueError::new_err(format!(
                    "{title}: {limit} {unit} per {per} s with a burst of {burst} is no rate that can be kept: all must \
                     be positive, and the burst be earned in ten years"
                ))
            })?);
        }
        if windows.is_empty() {
            return Err(PyValueError::new_err(format!(
                "{title} needs at least one rate, such as rate(100, per=1)"
            )));
        }
        let units: Box<[String]> = rates.into_iter().map(|(_, _, _, unit)| unit).collect();
        let mut core = Self {
            state: Mutex::new(State {
                rates: Rates::new(windows),
                alarms: Alarms::default(),
            }),
            title,
            name,
            units,
            plain: None,
            place: Place::default(),
        };
        let plain = core.plain_unit().cloned();
        core.plain = plain.map(|unit| {
            core.units
                .iter()
                .map(|other| u64::from(*other == unit))
                .collect()
        });
        Ok(core)
    }

    /// The roll for `tideloop.observe.gauges()`; a limiter that is a part of something else is made without.
    #[pyo3(signature = (*_args, **_kwargs))]
    fn __init__(
        slf: &Bound<'_, Self>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) {
        slf.get().place.enlist(slf.as_any());
    }

    /// The name that it was given.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How many wait.
    #[getter]
    fn waiting(&self) -> usize {
        locked(&self.state).rates.len()
    }

    /// Admitted, waited, cancelled, refused, penalties, and how often a timer rang; then the seconds that were waited.
    fn _tally(&self) -> ([u64; 6], f64) {
        let state = locked(&self.state);
        let tally = state.rates.tally();
        (
            [
                tally.admitted,
                tally.waited,
                tally.cancelled,
                tally.refused,
                tally.penalties,
                state.alarms.rung,
            ],
            tally.waited_ns as f64 / 1e9,
        )
    }

    /// What each window would admit now.
    fn _available(this: &Bound<'_, Self>) -> PyResult<Vec<u64>> {
        let here = Here::find(this.py())?;
        let mut state = locked(&this.get().state);
        state.rates.observe(here.now);
        let windows = state.rates.windows().iter();
        Ok(windows.map(|window| window.available(here.now)).collect())
    }

    /// Whether a new one would do the same.
    fn _is_fresh(this: &Bound<'_, Self>) -> PyResult<bool> {
        let here = Here::find(this.py())?;
        let mut state = locked(&this.get().state);
        state.rates.observe(here.now);
        Ok(state.rates.is_fresh())
    }

    #[pyo3(signature = (cost))]
    fn _try_acquire<'py>(
        this: &Bound<'py, Self>,
        cost: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let core = this.get();
        let costs = core.costs(Some(cost))?;
        let here = Here::find(this.py())?;
        go_on_with(this, &here)?;
        match take(core, here.now, &costs) {
            Some(number) => charge(this, costs, Booking::Charged(number), 0).map(Some),
            None => {
                locked(&core.state).rates.refuse();
                Ok(None)
            }
        }
    }

    #[pyo3(signature = (cost, priority))]
    fn _reserve<'py>(
        this: &Bound<'py, Self>,
        cost: &Bound<'py, PyAny>,
        priority: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let core = this.get();
        let costs = core.costs(Some(cost))?;
        let priority = rank(&core.title, priority)?;
        let here = Here::find(this.py())?;
        go_on_with(this, &here)?;
        let (wait, booked) = locked(&core.state).rates.reserve(&costs, priority);
        let booking = match booked {
            Ok(number) => Booking::Charged(number),
            Err(ticket) => Booking::InLine(ticket),
        };
        charge(this, costs, booking, wait)
    }

    #[pyo3(signature = (retry_after))]
    fn _penalise(this: &Bound<'_, Self>, retry_after: f64) -> PyResult<()> {
        let here = Here::find(this.py())?;
        {
            let mut state = locked(&this.get().state);
            state.rates.observe(here.now);
            state.rates.penalise((retry_after * 1e9).ceil() as i64);
        }
        go_on_with(this, &here)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Whoever has the lock is not allocating, so it is free unless another thread has it and waits for
        // this one: then nothing here is garbage.
        let Ok(state) = self.state.try_lock() else {
            return Ok(());
        };
        for alarm in &state.alarms.all {
            visit.call(&alarm.event_loop)?;
            visit.call(&alarm.ring)?;
            visit.call(&alarm.timer)?;
        }
        state
            .rates
            .waiters()
            .try_for_each(|in_line| in_line.waiter.traverse(&visit))
    }

    fn __clear__(&self, py: Python<'_>) {
        let (alarms, waiters) = {
            let mut state = locked(&self.state);
            (
                std::mem::take(&mut state.alarms.all),
                state.rates.take_all(),
            )
        };
        drop(alarms);
        for in_line in waiters {
            in_line.waiter.discard(py);
        }
    }
}

/// The native half of what `rates(...)` returns.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct RateClaimCore {
    rates: Py<RatesCore>,
    costs: Costs,
    priority: i64,
}

#[pymethods]
impl RateClaimCore {
    #[new]
    #[pyo3(signature = (rates, cost, priority))]
    fn new(
        rates: &Bound<'_, RatesCore>,
        cost: &Bound<'_, PyAny>,
        priority: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let core = rates.get();
        Ok(Self {
            costs: core.costs(Some(cost))?,
            priority: rank(&core.title, priority)?,
            rates: rates.clone().unbind(),
        })
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let core = self.rates.bind(py).get();
        format!("<{} of {}>", describe(&core.units, &self.costs), core.title)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.rates)
    }
}
