//! Limiter and ResourceLimits: so many permits at a time, for tasks of any loop and for threads.
//!
//! [`Limits`] decides; here its decisions become steps of operations. The state is in a cell that the GIL guards
//! and that nobody leaves half-way, so an operation may be in any thread, and a release in one wakes a task of
//! another ([`waiter`]). (A mutex would do the same and cost a fifth of an uncontended `async with`.) An
//! operation that finds its permits free takes them and ends in its first step.
//!
//! A [`ClaimCore`] is a limiter with what is wanted of it: `limiter(weight=3)`, `limits(http=1, file=2)`. It keeps no
//! state of its own, so it may be entered any number of times, also at once.

use std::fmt::Write;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::limits::{Limits, Need, Refusal, Surplus, Taken};
use tideloop_core::waiters::Ticket;
use tideloop_sys::clock;

use super::waiter::{self, Parking, Parks, Waiter, serve};
use crate::deadline;
use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::roll::Place;

/// One permit of a limiter that has one resource.
const ONE: [Need; 1] = [Need {
    resource: 0,
    weight: 1,
}];

/// Where acquire() keeps its time limit once it knows the weight, which was there.
const TIMEOUT: usize = 1;
/// Where the timer is kept; before, acquire()'s last two arguments.
const TIMER: usize = 2;

/// The native half of `tideloop.Limiter` and `tideloop.ResourceLimits`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct LimitsCore {
    limits: LoopCell<Limits<Waiter>>,
    /// What errors call it: `Limiter 'db'`.
    title: String,
    name: Option<String>,
    /// Names of the resources; none for a limiter that has but one.
    names: Vec<String>,
    place: Place,
}

impl Parks for LimitsCore {
    fn grant(&self, py: Python<'_>) -> Option<(Ticket, Waiter)> {
        self.limits.with(py, Limits::grant)
    }

    fn take_back(&self, py: Python<'_>, ticket: Ticket) {
        let waiter = self.limits.with(py, |limits| limits.leave(ticket));
        if let Some(waiter) = waiter {
            waiter.discard(py);
        }
    }

    fn expire(&self, py: Python<'_>, ticket: Ticket) -> Option<Waiter> {
        self.limits.with(py, |limits| limits.expire(ticket))
    }
}

/// One of the exceptions that `tideloop.limits` defines.
pub fn error(py: Python<'_>, class: &str, message: String) -> PyErr {
    let made = py
        .import("tideloop.limits")
        .and_then(|module| module.getattr(class))
        .and_then(|class| class.call1((message,)));
    made.map_or_else(|error| error, PyErr::from_value)
}

impl LimitsCore {
    #[inline]
    fn take_at_once(&self, py: Python<'_>, needs: &[Need]) -> bool {
        self.limits.with(py, |limits| limits.try_acquire(needs))
    }

    #[inline]
    fn give_at_once(&self, py: Python<'_>, needs: &[Need]) -> bool {
        self.limits.with(py, |limits| {
            !limits.has_work() && limits.release(needs).is_ok()
        })
    }

    /// "3 permits", "1 permit of 'http'".
    fn permits(&self, need: Need) -> String {
        let mut text = format!(
            "{} permit{}",
            need.weight,
            if need.weight == 1 { "" } else { "s" }
        );
        if let Some(name) = self.names.get(need.resource) {
            write!(text, " of '{name}'").unwrap_or_default();
        }
        text
    }

    fn too_heavy(&self, py: Python<'_>, need: Need) -> PyErr {
        let (capacity, _) = self.limits.with(py, |limits| limits.usage(need.resource));
        let text = format!(
            "{}: {} wanted, but there are {capacity} in all",
            self.title,
            self.permits(need)
        );
        error(py, "WeightError", text)
    }

    fn closed_error(&self, py: Python<'_>) -> PyErr {
        error(py, "LimiterClosed", format!("{} is closed", self.title))
    }

    fn refused(&self, py: Python<'_>, refusal: Refusal) -> PyErr {
        match refusal {
            Refusal::Closed => self.closed_error(py),
            Refusal::TooHeavy(need) => self.too_heavy(py, need),
            Refusal::Full => {
                let limit = self.limits.with(py, |limits| limits.queue_limit());
                error(
                    py,
                    "LimiterFull",
                    format!("{}: {limit} wait already (queue_limit)", self.title),
                )
            }
        }
    }

    fn timed_out(&self, timeout: Option<f64>) -> PyErr {
        let mut text = format!("{}: no permit", self.title);
        if let Some(timeout) = timeout {
            write!(text, " within {timeout} s").unwrap_or_default();
        }
        PyTimeoutError::new_err(text)
    }

    fn surplus(&self, surplus: Surplus) -> PyErr {
        PyValueError::new_err(format!(
            "{}: {} released, but {} in use",
            self.title,
            self.permits(surplus.need),
            match surplus.held {
                1 => "1 is".to_owned(),
                held => format!("{held} are"),
            }
        ))
    }

    /// What became of a waiter, as its operation or thread is to hear it.
    fn settled(&self, py: Python<'_>, taken: Taken, timeout: Option<f64>) -> PyResult<()> {
        match taken {
            Taken::Granted => Ok(()),
            Taken::Expired => Err(self.timed_out(timeout)),
            Taken::Closed => Err(self.closed_error(py)),
            Taken::TooHeavy(need) => Err(self.too_heavy(py, need)),
            Taken::Nothing => Err(PyRuntimeError::new_err(format!(
                "{}: the wait was broken off, its event loop was closed or is another process's",
                self.title
            ))),
        }
    }

    fn weight(&self, weight: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        let Some(weight) = weight else {
            return Ok(1);
        };
        positive(&self.title, "weight", weight)
    }
}

/// A whole number from 1 on.
fn positive(title: &str, what: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let wrong = |class: fn(String) -> PyErr, value: String| {
        class(format!("{title}: {what} must be an int >= 1, not {value}"))
    };
    if !value.is_instance_of::<PyInt>() || value.is_instance_of::<PyBool>() {
        return Err(wrong(
            PyTypeError::new_err,
            value.repr()?.to_string_lossy().into_owned(),
        ));
    }
    match value.extract::<u64>() {
        Ok(value) if value > 0 && value <= i64::MAX as u64 => Ok(value),
        _ => Err(wrong(
            PyValueError::new_err,
            value.repr()?.to_string_lossy().into_owned(),
        )),
    }
}

/// A time limit in seconds.
fn seconds(title: &str, timeout: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if timeout.is_none() {
        return Ok(None);
    }
    match timeout.extract::<f64>() {
        Ok(seconds) if !seconds.is_nan() => Ok(Some(seconds)),
        Ok(_) => Err(PyValueError::new_err(format!(
            "{title}: timeout must be a number of seconds or None, not nan"
        ))),
        Err(_) => Err(PyTypeError::new_err(format!(
            "{title}: timeout must be a number of seconds or None, not {}",
            timeout.repr()?
        ))),
    }
}

/// The time of a loop's clock in nanoseconds.
fn now(event_loop: &Bound<'_, PyAny>) -> PyResult<u64> {
    let time: f64 = call::method0(event_loop, intern!(event_loop.py(), "time"))?.extract()?;
    Ok((time * 1e9) as u64)
}

// --- operations --------------------------------------------------------------------------------

/// Begins to acquire; nothing to return is the end of it.
fn start<'py>(
    owner: &Bound<'py, LimitsCore>,
    frame: &Frame<'_, 'py>,
    needs: &[Need],
    priority: i64,
    timeout: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<Step<'py>>> {
    let py = frame.py();
    let core = owner.get();
    let limit = match timeout {
        Some(timeout) => seconds(&core.title, timeout)?,
        None => None,
    };
    if core.take_at_once(owner.py(), needs) {
        return Ok(None);
    }
    let refusal = core.limits.with(owner.py(), |limits| limits.refusal(needs));
    if let Some(refusal) = refusal {
        return Err(core.refused(py, refusal));
    }
    let event_loop = park::running_loop(py)?;
    let (waiter, future) = Waiter::new(&event_loop)?;
    deadline::limit(&future, owner.as_any())?;
    let since = now(&event_loop)?;
    // Making these ran other code: permits may have come home, or somebody may have closed the limiter.
    let queued = core.limits.with(py, |limits| {
        if limits.try_acquire(needs) {
            Err((waiter, None))
        } else if let Some(refusal) = limits.refusal(needs) {
            Err((waiter, Some(refusal)))
        } else {
            Ok(limits.push(needs, priority, since, waiter))
        }
    });
    let ticket = match queued {
        Ok(ticket) => ticket,
        Err((waiter, refusal)) => {
            waiter.discard(py);
            return match refusal {
                None => Ok(None),
                Some(refusal) => Err(core.refused(py, refusal)),
            };
        }
    };
    frame.set_ticket(ticket);
    // It may go before some who wait already, and need less than these.
    serve(owner);
    if let Some(limit) = limit {
        let timer = (limit.max(0.0))
            .into_pyobject(py)
            .map_err(PyErr::from)
            .and_then(|delay| waiter::expire_later(owner, &event_loop, delay.as_any(), ticket));
        match timer {
            Ok(timer) => drop(frame.replace(TIMER, Some(timer))),
            Err(error) => {
                give_up(owner, ticket);
                return Err(error);
            }
        }
    }
    Ok(Some(Step::Wait(future)))
}

/// Goes on after a wait.
fn go_on<'py>(
    owner: &Bound<'py, LimitsCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
    timeout: Option<&Bound<'py, PyAny>>,
) -> PyResult<()> {
    let py = frame.py();
    let core = owner.get();
    let ticket = frame.ticket();
    let timer = frame.replace(TIMER, None);
    if let Input::Thrown(error) = input {
        give_up(owner, ticket);
        if let Some(timer) = timer {
            call::method0(&timer, intern!(py, "cancel"))?;
        }
        return Err(error);
    }
    let taken = match park::running_loop(py).and_then(|event_loop| now(&event_loop)) {
        Ok(now) => core.limits.with(py, |limits| limits.take(ticket, now)),
        Err(error) => {
            give_up(owner, ticket);
            return Err(error);
        }
    };
    if taken == Taken::Nothing {
        // Told by somebody else, through its future.
        give_up(owner, ticket);
    }
    if let Some(timer) = timer
        && let Err(error) = call::method0(&timer, intern!(py, "cancel"))
    {
        error.write_unraisable(py, Some(&timer));
    }
    let limit = timeout.and_then(|timeout| timeout.extract().ok());
    core.settled(py, taken, limit)
}

/// A waiter leaves; what it was granted goes to the next.
fn give_up(owner: &Bound<'_, LimitsCore>, ticket: Ticket) {
    owner.get().take_back(owner.py(), ticket);
    serve(owner);
}

fn release(owner: &Bound<'_, LimitsCore>, needs: &[Need]) -> PyResult<()> {
    let core = owner.get();
    let released = core.limits.with(owner.py(), |limits| limits.release(needs));
    released.map_err(|surplus| core.surplus(surplus))?;
    serve(owner);
    Ok(())
}

/// What `weight` is if saying so takes no Python.
#[inline]
fn plain_weight(weight: Option<&Bound<'_, PyAny>>) -> Option<u64> {
    match weight {
        None => Some(1),
        Some(weight) => weight
            .cast_exact::<PyInt>()
            .ok()?
            .extract()
            .ok()
            .filter(|&weight| weight > 0),
    }
}

/// `await limiter.acquire(weight, priority, timeout)`.
pub struct Acquire;

impl Coroutine for Acquire {
    type Receiver = LimitsCore;
    const PACKS: bool = true;

    #[inline(always)]
    fn at_once<'py>(owner: &Bound<'py, LimitsCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        if frame.argument(TIMER).is_some() {
            return AtOnce::No;
        }
        match plain_weight(frame.argument(1).as_ref()) {
            Some(weight)
                if owner.get().take_at_once(
                    frame.py(),
                    &[Need {
                        resource: 0,
                        weight,
                    }],
                ) =>
            {
                AtOnce::Finish
            }
            _ => AtOnce::No,
        }
    }

    fn advance<'py>(
        owner: &Bound<'py, LimitsCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        if !matches!(input, Input::Start) {
            go_on(owner, frame, input, frame.argument(TIMEOUT).as_ref())?;
            return Ok(Step::Finish);
        }
        let weight = owner.get().weight(frame.argument(1).as_ref())?;
        let [priority, timeout] = frame.unpack()?;
        let priority = match priority {
            Some(priority) => rank(&owner.get().title, &priority)?,
            None => 0,
        };
        drop(frame.replace(TIMEOUT, timeout.clone()));
        let needs = [Need {
            resource: 0,
            weight,
        }];
        let step = start(owner, frame, &needs, priority, timeout.as_ref())?;
        Ok(step.unwrap_or(Step::Finish))
    }
}

/// A priority.
pub fn rank(title: &str, priority: &Bound<'_, PyAny>) -> PyResult<i64> {
    priority.extract().map_err(|_| {
        let shown = priority.repr().map_or_else(
            |_| "that".to_owned(),
            |shown| shown.to_string_lossy().into_owned(),
        );
        PyTypeError::new_err(format!(
            "{title}: priority must be an int of 64 bits, not {shown}"
        ))
    })
}

/// `async with limiter:`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = LimitsCore;

    #[inline(always)]
    fn at_once<'py>(owner: &Bound<'py, LimitsCore>, _: &Frame<'_, 'py>) -> AtOnce<'py> {
        if owner
            .get()
            .limits
            .with(owner.py(), |limits| limits.try_acquire_one(1))
        {
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        owner: &Bound<'py, LimitsCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        if matches!(input, Input::Start) {
            let step = start(owner, frame, &ONE, 0, None)?;
            return Ok(step.unwrap_or(Step::Finish));
        }
        go_on(owner, frame, input, None)?;
        Ok(Step::Finish)
    }
}

/// `async with limiter:`, its end.
pub struct Exit;

impl Coroutine for Exit {
    type Receiver = LimitsCore;
    const KEEPS: usize = 1;

    #[inline(always)]
    fn at_once<'py>(owner: &Bound<'py, LimitsCore>, _: &Frame<'_, 'py>) -> AtOnce<'py> {
        if owner
            .get()
            .limits
            .with(owner.py(), |limits| limits.release_one_at_rest(1))
        {
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        owner: &Bound<'py, LimitsCore>,
        _: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        release(owner, &ONE)?;
        Ok(Step::Finish)
    }
}

/// `async with limiter(...):`, its beginning.
pub struct EnterClaim;

impl Coroutine for EnterClaim {
    type Receiver = ClaimCore;

    #[inline(always)]
    fn at_once<'py>(claim: &Bound<'py, ClaimCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let claim = claim.get();
        if claim
            .limits
            .bind(frame.py())
            .get()
            .take_at_once(frame.py(), &claim.needs)
        {
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        claim: &Bound<'py, ClaimCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let claim = claim.get();
        let owner = claim.limits.bind(py);
        let timeout = claim.timeout.as_ref().map(|timeout| timeout.bind(py));
        if matches!(input, Input::Start) {
            let step = start(owner, frame, &claim.needs, claim.priority, timeout)?;
            return Ok(step.unwrap_or(Step::Finish));
        }
        go_on(owner, frame, input, timeout)?;
        Ok(Step::Finish)
    }
}

/// `async with limiter(...):`, its end.
pub struct ExitClaim;

impl Coroutine for ExitClaim {
    type Receiver = ClaimCore;
    const KEEPS: usize = 1;

    #[inline(always)]
    fn at_once<'py>(claim: &Bound<'py, ClaimCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let claim = claim.get();
        if claim
            .limits
            .bind(frame.py())
            .get()
            .give_at_once(frame.py(), &claim.needs)
        {
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        claim: &Bound<'py, ClaimCore>,
        frame: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        let claim = claim.get();
        release(claim.limits.bind(frame.py()), &claim.needs)?;
        Ok(Step::Finish)
    }
}

/// `limiter.release(weight)`.
pub struct Release;

impl Method for Release {
    type Receiver = LimitsCore;

    fn call<'py>(
        owner: &Bound<'py, LimitsCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let weight = owner.get().weight(rest.get(0).as_ref())?;
        release(
            owner,
            &[Need {
                resource: 0,
                weight,
            }],
        )?;
        Ok(owner.py().None().into_bound(owner.py()))
    }
}

/// `limiter.try_acquire(weight)`.
pub struct TryAcquire;

impl Method for TryAcquire {
    type Receiver = LimitsCore;

    fn call<'py>(
        owner: &Bound<'py, LimitsCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let weight = owner.get().weight(rest.get(0).as_ref())?;
        let needs = [Need {
            resource: 0,
            weight,
        }];
        let taken = try_acquire(owner, &needs)?;
        Ok(PyBool::new(owner.py(), taken).to_owned().into_any())
    }
}

fn try_acquire(owner: &Bound<'_, LimitsCore>, needs: &[Need]) -> PyResult<bool> {
    let core = owner.get();
    if core.take_at_once(owner.py(), needs) {
        return Ok(true);
    }
    let refusal = core.limits.with(owner.py(), |limits| limits.refusal(needs));
    match refusal {
        None | Some(Refusal::Full) => Ok(false),
        Some(refusal) => Err(core.refused(owner.py(), refusal)),
    }
}

/// Blocks this thread until it has its permits.
fn block(
    owner: &Bound<'_, LimitsCore>,
    needs: &[Need],
    priority: i64,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let py = owner.py();
    let core = owner.get();
    let limit = match timeout {
        Some(timeout) => seconds(&core.title, timeout)?,
        None => None,
    };
    if core.take_at_once(owner.py(), needs) {
        return Ok(());
    }
    if !park::current_loop(py)?.is_none() {
        return Err(PyRuntimeError::new_err(format!(
            "{}: a thread that runs an event loop must not block; await acquire() there",
            core.title
        )));
    }
    let parking = Parking::new();
    let waiter = Waiter::Thread(parking.clone());
    let now = clock::monotonic_ns();
    let queued = core.limits.with(py, |limits| match limits.refusal(needs) {
        Some(refusal) => Err(refusal),
        None => Ok(limits.push(needs, priority, now, waiter)),
    });
    let ticket = queued.map_err(|refusal| core.refused(py, refusal))?;
    serve(owner);
    let longest =
        limit.map(|limit| Duration::try_from_secs_f64(limit.max(0.0)).unwrap_or(Duration::MAX));
    let told = match parking.wait(py, longest) {
        Ok(told) => told,
        Err(error) => {
            give_up(owner, ticket);
            return Err(error);
        }
    };
    if !told
        && core
            .limits
            .with(py, |limits| limits.expire(ticket))
            .is_some()
    {
        // It may have stood in the way of others.
        serve(owner);
    }
    let taken = core
        .limits
        .with(py, |limits| limits.take(ticket, clock::monotonic_ns()));
    core.settled(py, taken, limit)
}

// --- classes -----------------------------------------------------------------------------------

#[pymethods]
impl LimitsCore {
    /// `noun` is the name of the class in errors; `capacities` has one entry for each of `names`, or one.
    #[new]
    #[pyo3(signature = (noun, capacities, names, name, queue_limit))]
    fn new(
        noun: &str,
        capacities: Vec<Bound<'_, PyAny>>,
        names: Vec<String>,
        name: Option<String>,
        queue_limit: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let title = match &name {
            Some(name) => format!("{noun} '{name}'"),
            None => noun.to_owned(),
        };
        let mut numbers = Vec::with_capacity(capacities.len());
        for (index, capacity) in capacities.iter().enumerate() {
            let what = match names.get(index) {
                Some(name) => format!("capacity of '{name}'"),
                None => "capacity".to_owned(),
            };
            numbers.push(positive(&title, &what, capacity)?);
        }
        let queue_limit = match queue_limit {
            Some(limit) => limit.extract().map_err(|_| {
                PyValueError::new_err(format!(
                    "{title}: queue_limit must be an int >= 0 or None, not {limit}"
                ))
            })?,
            None => usize::MAX,
        };
        Ok(Self {
            limits: LoopCell::new(Limits::new(numbers, queue_limit)),
            title,
            name,
            names,
            place: Place::default(),
        })
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

    /// Whether close() was called.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        self.limits.with(py, |limits| limits.is_closed())
    }

    /// How many requests wait.
    #[getter]
    fn waiting(&self, py: Python<'_>) -> usize {
        self.limits.with(py, |limits| limits.waiting())
    }

    /// Capacity, permits in use and waiting requests of each resource.
    fn _usage(&self, py: Python<'_>) -> Vec<(u64, u64, usize)> {
        self.limits.with(py, |limits| {
            let usage = |number| {
                let (capacity, in_use) = limits.usage(number);
                (capacity, in_use, limits.waiting_for(number))
            };
            (0..limits.resources()).map(usage).collect()
        })
    }

    /// Granted, waited, cancelled, expired, refused; then the waits in seconds: sum, p50, p90, p99, longest.
    fn _tally(&self, py: Python<'_>) -> ([u64; 5], [f64; 5]) {
        let tally = self.limits.with(py, |limits| limits.tally().clone());
        let waits = tally.waits.as_deref();
        let quantile = |q| {
            let nanoseconds = waits.and_then(|waits| waits.quantile(q));
            nanoseconds.unwrap_or(0) as f64 / 1e9
        };
        (
            [
                tally.granted,
                tally.waited,
                tally.cancelled,
                tally.expired,
                tally.refused,
            ],
            [
                waits.map_or(0.0, |waits| waits.sum() as f64 / 1e9),
                quantile(0.5),
                quantile(0.9),
                quantile(0.99),
                waits.and_then(|waits| waits.max()).unwrap_or(0) as f64 / 1e9,
            ],
        )
    }

    fn _resize(this: &Bound<'_, Self>, number: usize, capacity: &Bound<'_, PyAny>) -> PyResult<()> {
        let core = this.get();
        let capacity = positive(&core.title, "capacity", capacity)?;
        core.limits
            .with(this.py(), |limits| limits.resize(number, capacity));
        serve(this);
        Ok(())
    }

    /// Refuse whoever waits and whoever comes; permits in use may still be released. Doing so twice does nothing.
    fn close(this: &Bound<'_, Self>) {
        this.get().limits.with(this.py(), Limits::close);
        serve(this);
    }

    #[pyo3(signature = (weight, priority, timeout))]
    fn _block(
        this: &Bound<'_, Self>,
        weight: &Bound<'_, PyAny>,
        priority: i64,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let weight = this.get().weight(Some(weight))?;
        let needs = [Need {
            resource: 0,
            weight,
        }];
        block(this, &needs, priority, Some(timeout))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.limits
            .try_with(|limits| {
                limits
                    .waiters()
                    .try_for_each(|waiter| waiter.traverse(&visit))
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let waiters = self.limits.with(py, Limits::take_waiters);
        for waiter in waiters {
            waiter.discard(py);
        }
    }
}

/// The native half of what `limiter(...)` returns.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct ClaimCore {
    limits: Py<LimitsCore>,
    needs: Box<[Need]>,
    priority: i64,
    timeout: Option<Py<PyAny>>,
}

#[pymethods]
impl ClaimCore {
    /// `wants` pairs the numbers of resources with weights.
    #[new]
    #[pyo3(signature = (limits, wants, priority, timeout))]
    fn new(
        limits: &Bound<'_, LimitsCore>,
        wants: Vec<(usize, Bound<'_, PyAny>)>,
        priority: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let core = limits.get();
        let resources = core.limits.with(limits.py(), |limits| limits.resources());
        let mut needs: Vec<Need> = Vec::with_capacity(wants.len());
        for (resource, weight) in &wants {
            let what = match core.names.get(*resource) {
                Some(name) => format!("weight of '{name}'"),
                None => "weight".to_owned(),
            };
            let need = Need {
                resource: *resource,
                weight: positive(&core.title, &what, weight)?,
            };
            if need.resource >= resources || needs.iter().any(|other| other.resource == *resource) {
                return Err(PyValueError::new_err(format!(
                    "{}: resource {resource} is unknown or named twice",
                    core.title
                )));
            }
            needs.push(need);
        }
        if needs.is_empty() {
            return Err(PyValueError::new_err(format!(
                "{}: nothing is wanted; name at least one resource",
                core.title
            )));
        }
        let priority = rank(&core.title, priority)?;
        seconds(&core.title, timeout)?;
        Ok(Self {
            limits: limits.clone().unbind(),
            needs: needs.into_boxed_slice(),
            priority,
            timeout: (!timeout.is_none()).then(|| timeout.clone().unbind()),
        })
    }

    /// Take the permits if that takes no waiting.
    fn _try(&self, py: Python<'_>) -> PyResult<bool> {
        try_acquire(self.limits.bind(py), &self.needs)
    }

    /// Wait for the permits in this thread.
    fn _block(&self, py: Python<'_>) -> PyResult<()> {
        let timeout = self.timeout.as_ref().map(|timeout| timeout.bind(py));
        block(self.limits.bind(py), &self.needs, self.priority, timeout)
    }

    /// Give the permits back.
    fn _release(&self, py: Python<'_>) -> PyResult<()> {
        release(self.limits.bind(py), &self.needs)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let core = self.limits.bind(py).get();
        let wants: Vec<_> = self.needs.iter().map(|need| core.permits(*need)).collect();
        format!("<{} of {}>", wants.join(", "), core.title)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.limits)?;
        visit.call(&self.timeout)
    }
}
