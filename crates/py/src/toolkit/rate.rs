//! RateLimiter: so much per time, for tasks of any loop.
//!
//! [`Rates`] decides whom the windows admit; here its decisions become steps of operations, and its times become
//! timers. The state is behind a lock that is held while nothing else runs, so any thread may use a limiter; who
//! waits is parked in a [`Waiter`].
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

use std::sync::Mutex;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyMapping};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::rate::{Costs, Left, Rates, Window};
use tideloop_core::waiters::Ticket;

use super::limiter::{error, rank};
use super::waiter::{Parks, Waiter, locked, serve};
use crate::ffi::call;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::park;

/// The unit of a window that does not say what it counts.
const REQUESTS: &str = "requests";

/// An alarm that has rung and found nothing is not set again for less than this.
const PATIENCE_NS: i64 = 1_000;

/// Somebody in line, and the address of its loop.
struct InLine {
    waiter: Waiter,
    address: usize,
}

/// The timer of one loop.
struct Alarm {
    /// The address of the loop, which is this one's for as long as the alarm holds it.
    address: usize,
    event_loop: Py<PyAny>,
    ring: Py<Ring>,
    /// What it is set for; `i64::MAX` if it is not.
    when: i64,
    timer: Option<Py<PyAny>>,
    waiting: usize,
}

#[derive(Default)]
struct Alarms {
    all: Vec<Alarm>,
    rung: u64,
}

impl Alarms {
    fn of(&mut self, address: usize) -> Option<&mut Alarm> {
        self.all.iter_mut().find(|alarm| alarm.address == address)
    }

    fn left(&mut self, address: usize) {
        if let Some(alarm) = self.of(address) {
            alarm.waiting = alarm.waiting.saturating_sub(1);
        }
    }
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
}

impl Parks for RatesCore {
    fn grant(&self) -> Option<(Ticket, Waiter)> {
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
}

impl RatesCore {
    /// What a request costs in each window.
    fn costs(&self, cost: Option<&Bound<'_, PyAny>>) -> PyResult<Costs> {
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

    fn known_units(&self) -> String {
        let mut units: Vec<&str> = self.units.iter().map(String::as_str).collect();
        units.sort_unstable();
        units.dedup();
        units.join(", ")
    }

    /// The unit that a plain number counts.
    fn plain_unit(&self) -> Option<&String> {
        let first = self.units.first()?;
        let requests = self.units.iter().find(|unit| *unit == REQUESTS);
        requests.or_else(|| self.units.iter().all(|unit| unit == first).then_some(first))
    }

    fn windows_of(&self, unit: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
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

    fn number(&self, what: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<u64> {
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

// --- time --------------------------------------------------------------------------------------

/// The loop that runs here, if one does, and what time it is.
struct Here<'py> {
    event_loop: Option<Bound<'py, PyAny>>,
    now: i64,
}

impl<'py> Here<'py> {
    fn find(py: Python<'py>) -> PyResult<Self> {
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
fn go_on_with<'py>(owner: &Bound<'py, RatesCore>, here: &Here<'py>) -> PyResult<()> {
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
struct Ring {
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

// --- operations --------------------------------------------------------------------------------

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
    let address = event_loop.as_ptr() as usize;
    let mut spare = None;
    if locked(&core.state).alarms.of(address).is_none() {
        spare = Some(Alarm {
            address,
            event_loop: event_loop.unbind(),
            ring: Py::new(
                py,
                Ring {
                    owner: owner.clone().unbind(),
                },
            )?,
            when: i64::MAX,
            timer: None,
            waiting: 0,
        });
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
fn take(core: &RatesCore, now: i64, costs: &Costs) -> Option<u64> {
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

/// What could be admitted earlier now is.
fn changed(owner: &Bound<'_, RatesCore>) {
    let here = Here::find(owner.py());
    if let Err(error) = here.and_then(|here| go_on_with(owner, &here)) {
        error.write_unraisable(owner.py(), Some(owner.as_any()));
    }
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

// --- classes -----------------------------------------------------------------------------------

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

/// "1 requests, 800 tokens".
fn describe(units: &[String], costs: &Costs) -> String {
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

/// How a charge is known to the core.
#[derive(Clone, Copy)]
enum Booking {
    Charged(u64),
    /// A reservation behind others, to be charged when its time comes.
    InLine(Ticket),
    Cancelled,
}

/// What an admission was charged; what `acquire()`, `try_acquire()` and `reserve()` return.
#[pyclass(frozen, module = "tideloop", name = "Charge")]
pub struct Charge {
    rates: Py<RatesCore>,
    booked: Mutex<(Booking, Costs)>,
    wait: f64,
}

fn charge<'py>(
    owner: &Bound<'py, RatesCore>,
    costs: Costs,
    booking: Booking,
    wait: i64,
) -> PyResult<Bound<'py, PyAny>> {
    let charge = Charge {
        rates: owner.clone().unbind(),
        booked: Mutex::new((booking, costs)),
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
                        state.rates.settle(number, index, costs[index], real);
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
            let mut state = locked(&owner.get().state);
            state.rates.observe(here.now);
            match booked.0 {
                Booking::Charged(number) => state.rates.cancel(number, &booked.1),
                // A reservation has no waiter.
                Booking::InLine(ticket) => drop(state.rates.leave(ticket)),
                Booking::Cancelled => {}
            }
            booked.0 = Booking::Cancelled;
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
