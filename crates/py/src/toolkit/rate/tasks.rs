//! What tasks await of a RateLimiter: `acquire()`, and the two ends of `async with`.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tideloop_core::rate::Costs;
use tideloop_core::waiters::Ticket;

use super::super::limiter::rank;
use super::super::waiter::{Parks, Waiter, locked};
use super::alarms::{Alarm, Here, changed, go_on_with};
use super::charge::{Booking, charge};
use super::{InLine, RateClaimCore, RatesCore, State};
use crate::deadline;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::park;

/// Begins to acquire: the number of the charge, or what to wait for.
fn start<'py>(
    owner: &Bound<'py, RatesCore>,
    frame: &Frame<'_, 'py>,
    costs: &Costs,
    priority: i64,
) -> PyResult<Result<u64, Step<'py>>> {
    let py = frame.py();
    let event_loop = park::running_loop(py)?;
    let here = Here {
        now: park::time_ns(&event_loop)?,
        event_loop: Some(event_loop.clone()),
    };
    let core = owner.get();
    if let Some(number) = take(core, here.now, costs) {
        return Ok(Ok(number));
    }
    let (waiter, future) = Waiter::new(&event_loop)?;
    deadline::limit(&future, owner.as_any())?;
    let address = event_loop.as_ptr() as usize;
    let mut spare = None;
    if locked(&core.state).alarms.of(address).is_none() {
        spare = Some(Alarm::new(owner, event_loop)?);
    }
    let ticket = {
        let mut state = locked(&core.state);
        let State { rates, alarms } = &mut *state;
        if alarms.of(address).is_none() {
            alarms.all.extend(spare.take());
        }
        if let Some(alarm) = alarms.of(address) {
            alarm.waiting += 1;
        }
        rates.push(costs.clone(), priority, InLine { waiter, address })
    };
    drop(spare);
    frame.set_ticket(ticket);
    // Making the waiter ran other code, so that it may be its turn by now; or nobody has looked for a while.
    if let Err(error) = go_on_with(owner, &here) {
        give_up(owner, ticket);
        return Err(error);
    }
    Ok(Err(Step::Wait(future)))
}

/// Takes what it costs if the windows and those in line allow it.
pub(super) fn take(core: &RatesCore, now: i64, costs: &Costs) -> Option<u64> {
    let mut state = locked(&core.state);
    state.rates.observe(now);
    state.rates.try_take(costs)
}

/// Goes on after a wait: the number of the charge.
fn resume(
    owner: &Bound<'_, RatesCore>,
    frame: &Frame<'_, '_>,
    input: Input,
) -> PyResult<(u64, Costs)> {
    let core = owner.get();
    let ticket = frame.ticket();
    if let Input::Thrown(error) = input {
        give_up(owner, ticket);
        return Err(error);
    }
    let taken = locked(&core.state).rates.take(ticket);
    taken.ok_or_else(|| {
        give_up(owner, ticket);
        PyRuntimeError::new_err(format!(
            "{}: the wait was broken off, its event loop was closed or is another process's",
            core.title
        ))
    })
}

/// A waiter leaves; those behind it come earlier.
fn give_up(owner: &Bound<'_, RatesCore>, ticket: Ticket) {
    owner.get().take_back(owner.py(), ticket);
    changed(owner);
}

/// `await rates.acquire(cost, priority)`.
pub struct Acquire;

impl Coroutine for Acquire {
    type Receiver = RatesCore;

    fn advance<'py>(
        owner: &Bound<'py, RatesCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let (number, costs) = if matches!(input, Input::Start) {
            let costs = owner.get().costs(frame.argument(1).as_ref())?;
            let priority = match frame.argument(2) {
                Some(priority) => rank(&owner.get().title, &priority)?,
                None => 0,
            };
            match start(owner, frame, &costs, priority)? {
                Ok(number) => (number, costs),
                Err(step) => return Ok(step),
            }
        } else {
            // What was asked for at the beginning, whatever has become of a mapping since.
            resume(owner, frame, input)?
        };
        Ok(Step::Return(charge(
            owner,
            costs,
            Booking::Charged(number),
            0,
        )?))
    }
}

/// `async with rates:`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = RatesCore;

    fn advance<'py>(
        owner: &Bound<'py, RatesCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        if matches!(input, Input::Start) {
            let costs = match &owner.get().plain {
                Some(costs) => costs,
                None => &owner.get().costs(None)?,
            };
            return Ok(match start(owner, frame, costs, 0)? {
                Ok(_) => Step::Finish,
                Err(step) => step,
            });
        }
        resume(owner, frame, input)?;
        Ok(Step::Finish)
    }
}

/// `async with rates:`, its end, and that of `async with rates(...)`.
pub struct Exit;

impl Coroutine for Exit {
    type Receiver = PyAny;

    fn advance<'py>(_: &Bound<'py, PyAny>, _: &Frame<'_, 'py>, _: Input) -> PyResult<Step<'py>> {
        Ok(Step::Finish)
    }
}

/// `async with rates(...)`, its beginning.
pub struct EnterClaim;

impl Coroutine for EnterClaim {
    type Receiver = RateClaimCore;

    fn advance<'py>(
        claim: &Bound<'py, RateClaimCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let claim = claim.get();
        let owner = claim.rates.bind(frame.py());
        let number = if matches!(input, Input::Start) {
            match start(owner, frame, &claim.costs, claim.priority)? {
                Ok(number) => number,
                Err(step) => return Ok(step),
            }
        } else {
            resume(owner, frame, input)?.0
        };
        let costs = claim.costs.clone();
        Ok(Step::Return(charge(
            owner,
            costs,
            Booking::Charged(number),
            0,
        )?))
    }
}
