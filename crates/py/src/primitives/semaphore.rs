//! Semaphore and BoundedSemaphore: so many tasks at a time, in the order in which they came.
//!
//! A release with somebody waiting gives the permit away at once (the value stays down and the first
//! waiter is told), so nobody who comes later can take it. A waiter that was told and then cancelled
//! returns it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};

use super::event::{truth, with_waiters, yes};
use super::tally::Tally;
use super::wait_list::{BoundLoop, WaitList};
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::shadows::Within;

/// The native half of `tideloop.Semaphore` and `tideloop.BoundedSemaphore`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct SemaphoreCore {
    value: AtomicI64,
    /// What the value must not exceed; `i64::MAX` for no bound.
    bound_value: AtomicI64,
    waited: AtomicBool,
    diverted: AtomicBool,
    waiters: WaitList,
    bound: BoundLoop,
    tally: Tally,
}

impl SemaphoreCore {
    fn value(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }

    fn add(&self, change: i64) {
        // The GIL orders these; an atomic read-modify-write would cost as much as all the rest.
        self.value.store(self.value() + change, Ordering::Relaxed);
    }

    fn is_diverted(&self) -> bool {
        self.diverted.load(Ordering::Relaxed)
    }

    /// Takes a permit, if that needs no look at the waiters.
    #[inline(always)]
    fn take_at_once(&self, py: Python<'_>) -> bool {
        let free = self.value() > 0 && self.waiters.is_vacant(py);
        if free {
            self.add(-1);
            self.tally.acquired();
        }
        free
    }

    fn is_locked(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.value() == 0 || self.waiters.has_live(py)?)
    }

    /// Gives a permit to the first waiter that is not done.
    fn wake_next(&self, py: Python<'_>) -> PyResult<bool> {
        if self.waiters.is_empty(py)? {
            return Ok(false);
        }
        self.add(-1);
        let woken = self.waiters.notify(py, &yes(py));
        if !matches!(woken, Ok(true)) {
            self.add(1);
        }
        woken
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        if self.value() >= self.bound_value.load(Ordering::Relaxed) {
            return Err(PyValueError::new_err(
                "BoundedSemaphore released too many times",
            ));
        }
        self.add(1);
        self.wake_next(py).map(drop)
    }

    /// What a waiter does last: permits that came in meanwhile go to those behind it.
    fn pass_on(&self, py: Python<'_>) -> PyResult<()> {
        if passes_on_all(py)? {
            while self.value() > 0 && self.wake_next(py)? {}
        } else if self.value() > 0 {
            self.wake_next(py)?;
        }
        Ok(())
    }
}

/// Whether this Python's semaphore wakes as many as it can when a waiter leaves, in whatever way;
/// older ones wake one, and none if the waiter was cancelled before it was its turn.
fn passes_on_all(py: Python<'_>) -> PyResult<bool> {
    static ALL: PyOnceLock<bool> = PyOnceLock::new();
    ALL.get_or_try_init(py, || {
        // In those versions _wake_up_next() tells whether it woke somebody.
        let stock = py
            .import(intern!(py, "tideloop.stock"))?
            .getattr(intern!(py, "Semaphore"))?;
        let said = stock.call0()?.call_method0(intern!(py, "_wake_up_next"))?;
        Ok(!said.is_none())
    })
    .copied()
}

#[pymethods]
impl SemaphoreCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        Self {
            value: AtomicI64::new(1),
            bound_value: AtomicI64::new(i64::MAX),
            waited: AtomicBool::new(false),
            diverted: AtomicBool::new(false),
            waiters: WaitList::default(),
            bound: BoundLoop::default(),
            tally: Tally::default(),
        }
    }

    /// From now on the stock methods serve this instance.
    fn _divert(&self) {
        self.diverted.store(true, Ordering::Relaxed);
    }

    /// What repr() says between the brackets.
    fn _state(&self, py: Python<'_>, locked: bool) -> PyResult<String> {
        let word = if locked {
            "locked".to_owned()
        } else {
            format!("unlocked, value:{}", self.value())
        };
        with_waiters(py, word, &self.waiters)
    }

    /// Waiting, acquired, waited, gave up.
    fn _tally(&self, py: Python<'_>) -> PyResult<(usize, u64, u64, u64)> {
        let (acquired, waited, gave_up) = self.tally.counts();
        Ok((self.waiters.len(py)?, acquired, waited, gave_up))
    }

    #[getter(_value)]
    fn value_now(&self) -> i64 {
        self.value()
    }

    #[setter(_value)]
    fn set_value(&self, value: i64) {
        self.value.store(value, Ordering::Relaxed);
    }

    #[getter(_bound_value)]
    fn bound_value(&self) -> i64 {
        self.bound_value.load(Ordering::Relaxed)
    }

    #[setter(_bound_value)]
    fn set_bound_value(&self, value: i64) {
        self.bound_value.store(value, Ordering::Relaxed);
    }

    #[getter(_waiters)]
    fn waiters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if !self.waited.load(Ordering::Relaxed) {
            return Ok(py.None().into_bound(py));
        }
        self.waiters.show(py)
    }

    #[setter(_waiters)]
    fn set_waiters(&self, waiters: &Bound<'_, PyAny>) {
        self.waited.store(!waiters.is_none(), Ordering::Relaxed);
        self.waiters.set(waiters);
    }

    #[getter(_loop)]
    fn bound_loop<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.bound.get(py)
    }

    #[setter(_loop)]
    fn bind_loop(&self, event_loop: &Bound<'_, PyAny>) {
        self.bound.set(event_loop);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.waiters.traverse(&visit)?;
        self.bound.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.waiters.clear(py);
    }
}

fn acquire<'py>(
    semaphore: &Bound<'py, SemaphoreCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Option<Step<'py>>> {
    let py = frame.py();
    let state = semaphore.get();
    match input {
        Input::Start => {
            if !state.is_locked(py)? {
                state.add(-1);
                state.tally.acquired();
                return Ok(None);
            }
            state.waited.store(true, Ordering::Relaxed);
            let future = state.bound.new_future(semaphore.as_any())?;
            frame.set_ticket(state.waiters.push(&future)?);
            Ok(Some(Step::Wait(future)))
        }
        Input::Resumed => {
            state.waiters.remove(frame.ticket(), &frame.awaited()?)?;
            state.tally.waited();
            state.pass_on(py)?;
            Ok(None)
        }
        Input::Thrown(error) => {
            state.tally.gave_up();
            let future = frame.awaited()?;
            state.waiters.remove(frame.ticket(), &future)?;
            let cancelled = park::is_cancellation(py, &error);
            let told = park::is_done(&future)? && !park::is_cancelled(&future)?;
            if passes_on_all(py)? {
                if cancelled && told {
                    state.add(1);
                }
                state.pass_on(py)?;
            } else if cancelled && !park::is_cancelled(&future)? {
                state.add(1);
                state.wake_next(py)?;
            }
            Err(error)
        }
    }
}

/// `Semaphore.acquire()`.
pub struct Acquire;

impl Coroutine for Acquire {
    type Receiver = SemaphoreCore;

    fn diverted(semaphore: &Bound<'_, SemaphoreCore>) -> bool {
        semaphore.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(semaphore: &Bound<'py, SemaphoreCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        if semaphore.get().take_at_once(frame.py()) {
            AtOnce::Return(yes(frame.py()))
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        semaphore: &Bound<'py, SemaphoreCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        Ok(acquire(semaphore, frame, input)?.unwrap_or_else(|| Step::Return(yes(frame.py()))))
    }
}

/// `async with semaphore:`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = SemaphoreCore;

    fn diverted(semaphore: &Bound<'_, SemaphoreCore>) -> bool {
        semaphore.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(semaphore: &Bound<'py, SemaphoreCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        if semaphore.get().take_at_once(frame.py()) {
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        semaphore: &Bound<'py, SemaphoreCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        Ok(acquire(semaphore, frame, input)?.unwrap_or(Step::Finish))
    }

    fn inside<'py>(
        semaphore: &Bound<'py, SemaphoreCore>,
        _: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        Ok(vec![Within::stock("Semaphore.acquire", semaphore.as_any())])
    }
}

/// `async with semaphore:`, its end.
pub struct Exit;

impl Coroutine for Exit {
    type Receiver = SemaphoreCore;
    const KEEPS: usize = 1;

    fn diverted(semaphore: &Bound<'_, SemaphoreCore>) -> bool {
        semaphore.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(semaphore: &Bound<'py, SemaphoreCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let state = semaphore.get();
        if state.waiters.is_vacant(frame.py())
            && state.value() < state.bound_value.load(Ordering::Relaxed)
        {
            state.add(1);
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        semaphore: &Bound<'py, SemaphoreCore>,
        frame: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        semaphore.get().release(frame.py())?;
        Ok(Step::Finish)
    }
}

/// `Semaphore.release()`.
pub struct Release;

impl Method for Release {
    type Receiver = SemaphoreCore;

    fn diverted(semaphore: &Bound<'_, SemaphoreCore>) -> bool {
        semaphore.get().is_diverted()
    }

    fn call<'py>(
        semaphore: &Bound<'py, SemaphoreCore>,
        _: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = semaphore.py();
        semaphore.get().release(py)?;
        Ok(py.None().into_bound(py))
    }
}

/// `Semaphore.locked()`.
pub struct Locked;

impl Method for Locked {
    type Receiver = SemaphoreCore;

    fn diverted(semaphore: &Bound<'_, SemaphoreCore>) -> bool {
        semaphore.get().is_diverted()
    }

    fn call<'py>(
        semaphore: &Bound<'py, SemaphoreCore>,
        _: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = semaphore.py();
        Ok(truth(py, semaphore.get().is_locked(py)?))
    }
}
