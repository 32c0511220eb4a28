//! What a request costs: numbers and mappings of Python, by unit, to what each window is charged.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyMapping};
use tideloop_core::rate::Costs;

use super::super::limiter::error;
use super::super::waiter::locked;
use super::RatesCore;

/// The unit of a window that does not say what it counts.
const REQUESTS: &str = "requests";

impl RatesCore {
    /// What a request costs in each window.
    pub(super) fn costs(&self, cost: Option<&Bound<'_, PyAny>>) -> PyResult<Costs> {
        let Some(cost) = cost.filter(|cost| !cost.is_none()) else {
            return self.plain.clone().ok_or_else(|| {
                PyValueError::new_err(format!(
                    "{}: cost must say how many {}",
                    self.title,
                    self.known_units()
                ))
            });
        };
        let costs: Costs = if let Ok(named) = cost.cast::<PyMapping>() {
            let mut costs: Vec<u64> = self
                .units
                .iter()
                .map(|unit| (unit == REQUESTS).into())
                .collect();
            for item in named.items()?.iter() {
                let (unit, number): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
                let number = self.number(&unit, &number)?;
                for index in self.windows_of(&unit)? {
                    costs[index] = number;
                }
            }
            costs.into_iter().collect()
        } else {
            let unit = self.plain_unit().ok_or_else(|| {
                PyValueError::new_err(format!(
                    "{}: cost is {cost}; expected a mapping, such as {{'{}': {cost}}}: it counts {}",
                    self.title,
                    self.units[0],
                    self.known_units()
                ))
            })?;
            let number = self.number(intern!(cost.py(), "cost").as_any(), cost)?;
            let of = |other: &String| if other == unit { number } else { 0 };
            self.units.iter().map(of).collect()
        };
        self.check_weight(costs, cost.py())
    }

    fn check_weight(&self, costs: Costs, py: Python<'_>) -> PyResult<Costs> {
        let heavy = {
            let state = locked(&self.state);
            let heavy = state.rates.too_heavy(&costs);
            heavy.map(|index| (index, state.rates.windows()[index].burst()))
        };
        match heavy {
            None => Ok(costs),
            Some((index, burst)) => {
                let (wanted, unit) = (costs.as_slice()[index], &self.units[index]);
                let text = format!(
                    "{}: {wanted} {unit} wanted at once, but its burst is {burst}",
                    self.title
                );
                Err(error(py, "WeightError", text))
            }
        }
    }

    pub(super) fn known_units(&self) -> String {
        let mut units: Vec<&str> = self.units.iter().map(String::as_str).collect();
        units.sort_unstable();
        units.dedup();
        units.join(", ")
    }

    /// The unit that a plain number counts.
    pub(super) fn plain_unit(&self) -> Option<&String> {
        let first = self.units.first()?;
        let requests = self.units.iter().find(|unit| *unit == REQUESTS);
        requests.or_else(|| self.units.iter().all(|unit| unit == first).then_some(first))
    }

    pub(super) fn windows_of(&self, unit: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
        let name: Option<String> = unit.extract().ok();
        let of = |(index, known): (usize, &String)| (Some(known) == name.as_ref()).then_some(index);
        let found: Vec<usize> = self.units.iter().enumerate().filter_map(of).collect();
        if found.is_empty() {
            return Err(PyValueError::new_err(format!(
                "{}: no rate counts {}; it counts {}",
                self.title,
                unit.repr()?,
                self.known_units()
            )));
        }
        Ok(found)
    }

    pub(super) fn number(
        &self,
        what: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let plain = value.is_instance_of::<PyInt>() && !value.is_instance_of::<PyBool>();
        match value.extract::<u64>() {
            Ok(number) if plain && number <= i64::MAX as u64 => Ok(number),
            _ => {
                let text = format!(
                    "{}: {what} must be an int >= 0, not {}",
                    self.title,
                    value.repr()?
                );
                Err(if plain {
                    PyValueError::new_err(text)
                } else {
                    PyTypeError::new_err(text)
                })
            }
        }
    }
}

/// "1 requests, 800 tokens".
pub(super) fn describe(units: &[String], costs: &Costs) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (unit, cost) in units.iter().zip(costs.as_slice()) {
        let part = format!("{cost} {unit}");
        if *cost > 0 && !parts.contains(&part) {
            parts.push(part);
        }
    }
    if parts.is_empty() {
        "nothing".to_owned()
    } else {
        parts.join(", ")
    }
}
