//! Charge: what an admission has cost, for its owner to correct or to give back.

use std::sync::Mutex;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::rate::{Added, Costs};
use tideloop_core::waiters::Ticket;

use super::super::waiter::locked;
use super::RatesCore;
use super::alarms::{Here, go_on_with};
use super::costs::describe;

/// How a charge is known to the core.
#[derive(Clone, Copy)]
pub(super) enum Booking {
    Charged(u64),
    /// A reservation behind others, to be charged when its time comes.
    InLine(Ticket),
    Cancelled,
}

/// What an admission was charged; what `acquire()`, `try_acquire()` and `reserve()` return.
#[pyclass(frozen, module = "tideloop", name = "Charge")]
pub struct Charge {
    rates: Py<RatesCore>,
    booked: Mutex<(Booking, Costs, Added)>,
    wait: f64,
}

pub(super) fn charge<'py>(
    owner: &Bound<'py, RatesCore>,
    costs: Costs,
    booking: Booking,
    wait: i64,
) -> PyResult<Bound<'py, PyAny>> {
    let charge = Charge {
        rates: owner.clone().unbind(),
        booked: Mutex::new((booking, costs, Added::default())),
        wait: wait as f64 / 1e9,
    };
    Ok(Bound::new(owner.py(), charge)?.into_any())
}

#[pymethods]
impl Charge {
    /// Seconds from the reservation on after which its owner may go on; 0.0 if it was admitted at once.
    #[getter]
    fn wait(&self) -> f64 {
        self.wait
    }

    /// What was charged, by unit: after settle() what it really cost.
    #[getter]
    fn cost<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let costs = locked(&self.booked).1.clone();
        let dict = PyDict::new(py);
        for (unit, cost) in self.rates.bind(py).get().units.iter().zip(costs.as_slice()) {
            dict.set_item(unit, cost)?;
        }
        Ok(dict)
    }

    /// Say what it really cost, by unit; what was too much is given back, what was too little is owed.
    #[pyo3(signature = (cost = None, /, **units))]
    fn settle(
        &self,
        py: Python<'_>,
        cost: Option<&Bound<'_, PyAny>>,
        units: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let owner = self.rates.bind(py);
        let core = owner.get();
        let mut real: Vec<(usize, u64)> = Vec::new();
        if let Some(cost) = cost {
            let unit = core.plain_unit().ok_or_else(|| {
                PyValueError::new_err(format!(
                    "{}: settle() must say of what: {}",
                    core.title,
                    core.known_units()
                ))
            })?;
            let number = core.number(intern!(py, "cost").as_any(), cost)?;
            real.extend(
                core.units
                    .iter()
                    .enumerate()
                    .filter(|(_, other)| *other == unit)
                    .map(|(index, _)| (index, number)),
            );
        }
        if let Some(units) = units {
            for (unit, number) in units.iter() {
                let number = core.number(&unit, &number)?;
                real.extend(
                    core.windows_of(&unit)?
                        .into_iter()
                        .map(|index| (index, number)),
                );
            }
        }
        let here = Here::find(py)?;
        // A reservation is admitted when somebody looks: there may be no waiter left, and so no alarm.
        go_on_with(owner, &here)?;
        {
            let mut booked = locked(&self.booked);
            let mut state = locked(&core.state);
            if let Booking::InLine(ticket) = booked.0
                && let Some((number, _)) = state.rates.take(ticket)
            {
                booked.0 = Booking::Charged(number);
            }
            match booked.0 {
                Booking::Charged(number) => {
                    let mut costs: Vec<u64> = booked.1.as_slice().to_vec();
                    for (index, real) in real {
                        let added = &mut booked.2;
                        state.rates.settle(number, added, index, costs[index], real);
                        costs[index] = real;
                    }
                    booked.1 = costs.into_iter().collect();
                }
                Booking::InLine(_) => {
                    return Err(PyRuntimeError::new_err(format!(
                        "{}: the reservation's time has not come, it can be cancelled but not settled",
                        core.title
                    )));
                }
                Booking::Cancelled => {
                    return Err(PyRuntimeError::new_err(format!(
                        "{}: the charge was cancelled",
                        core.title
                    )));
                }
            }
        }
        go_on_with(owner, &here)
    }

    /// Give all of it back: what it was for did not happen. Doing so twice does nothing.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let owner = self.rates.bind(py);
        let here = Here::find(py)?;
        {
            let mut booked = locked(&self.booked);
            let (booking, costs, added) = &mut *booked;
            let mut state = locked(&owner.get().state);
            state.rates.observe(here.now);
            match *booking {
                Booking::Charged(number) => state.rates.cancel(number, added, costs),
                // A reservation has no waiter.
                Booking::InLine(ticket) => drop(state.rates.leave(ticket)),
                Booking::Cancelled => {}
            }
            *booking = Booking::Cancelled;
        }
        go_on_with(owner, &here)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let core = self.rates.bind(py).get();
        let (booking, costs) = {
            let booked = locked(&self.booked);
            (booked.0, booked.1.clone())
        };
        let word = match booking {
            Booking::Charged(_) => "charged",
            Booking::InLine(_) => "reserved",
            Booking::Cancelled => "cancelled",
        };
        format!(
            "<Charge of {}: {}, {word}>",
            core.title,
            describe(&core.units, &costs)
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.rates)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Booking::InLine(ticket) = locked(&self.booked).0 {
            locked(&self.rates.get().state).rates.forget(ticket);
        }
    }
}
