//! Lock: one task at a time, in the order in which they came.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeError;
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

/// The native half of `tideloop.Lock`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct LockCore {
    locked: AtomicBool,
    /// Whether anybody ever waited: asyncio has no deque before.
    waited: AtomicBool,
    diverted: AtomicBool,
    waiters: WaitList,
    bound: BoundLoop,
    tally: Tally,
}

impl LockCore {
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }

    /// Takes the lock, if that needs no look at the waiters.
    #[inline(always)]
    pub fn take_at_once(&self, py: Python<'_>) -> bool {
        let free = !self.is_locked() && self.waiters.is_vacant(py);
        if free {
            self.locked.store(true, Ordering::Relaxed);
            self.tally.acquired();
        }
        free
    }

    fn is_diverted(&self) -> bool {
        self.diverted.load(Ordering::Relaxed)
    }

    pub fn release(&self, py: Python<'_>) -> PyResult<()> {
        if !self.is_locked() {
            return Err(PyRuntimeError::new_err("Lock is not acquired."));
        }
        self.locked.store(false, Ordering::Relaxed);
        self.waiters.notify_first(py, &yes(py))
    }
}

#[pymethods]
impl LockCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, pyo3::types::PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> Self {
        Self {
            locked: AtomicBool::new(false),
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
    fn _state(&self, py: Python<'_>) -> PyResult<String> {
        let word = if self.is_locked() {
            "locked"
        } else {
            "unlocked"
        };
        with_waiters(py, word.to_owned(), &self.waiters)
    }

    /// Waiting, acquired, waited, gave up.
    fn _tally(&self, py: Python<'_>) -> PyResult<(usize, u64, u64, u64)> {
        let (acquired, waited, gave_up) = self.tally.counts();
        Ok((self.waiters.len(py)?, acquired, waited, gave_up))
    }

    #[getter(_locked)]
    fn locked(&self) -> bool {
        self.is_locked()
    }

    #[setter(_locked)]
    fn set_locked(&self, locked: &Bound<'_, PyAny>) -> PyResult<()> {
        self.locked.store(locked.is_truthy()?, Ordering::Relaxed);
        Ok(())
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

/// Takes the lock, on behalf of any operation. None: it has it.
pub fn acquire<'py>(
    lock: &Bound<'py, LockCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Option<Step<'py>>> {
    let py = frame.py();
    let state = lock.get();
    match input {
        Input::Start => {
            if !state.is_locked() && !state.waiters.has_live(py)? {
                state.locked.store(true, Ordering::Relaxed);
                state.tally.acquired();
                return Ok(None);
            }
            state.waited.store(true, Ordering::Relaxed);
            let future = state.bound.new_future(lock.as_any())?;
            frame.set_ticket(state.waiters.push(&future)?);
            Ok(Some(Step::Wait(future)))
        }
        Input::Resumed => {
            state.waiters.remove(frame.ticket(), &frame.awaited()?)?;
            state.locked.store(true, Ordering::Relaxed);
            state.tally.waited();
            Ok(None)
        }
        Input::Thrown(error) => {
            state.tally.gave_up();
            state.waiters.remove(frame.ticket(), &frame.awaited()?)?;
            // Woken and cancelled at once: the turn goes to the next one.
            if park::is_cancellation(py, &error) && !state.is_locked() {
                state.waiters.notify_first(py, &yes(py))?;
            }
            Err(error)
        }
    }
}

/// Whether a lock is of the very class, and nothing overrides it.
pub fn is_plain(lock: &Bound<'_, PyAny>) -> bool {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    is_of_class(&CLASS, lock, "Lock")
        && lock
            .cast::<LockCore>()
            .is_ok_and(|lock| !lock.get().is_diverted())
}

/// Whether an object's class is the one of this name in `tideloop.sync`, which the cell remembers.
pub fn is_of_class(cell: &PyOnceLock<Py<PyAny>>, object: &Bound<'_, PyAny>, name: &str) -> bool {
    let py = object.py();
    let find =
        || -> PyResult<Py<PyAny>> { Ok(py.import("tideloop.sync")?.getattr(name)?.unbind()) };
    cell.get_or_try_init(py, find)
        .is_ok_and(|class| object.get_type().is(class))
}

/// `Lock.acquire()`.
pub struct Acquire;

impl Coroutine for Acquire {
    type Receiver = LockCore;

    fn diverted(lock: &Bound<'_, LockCore>) -> bool {
        lock.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(lock: &Bound<'py, LockCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        if lock.get().take_at_once(frame.py()) {
            AtOnce::Return(yes(frame.py()))
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        lock: &Bound<'py, LockCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        Ok(acquire(lock, frame, input)?.unwrap_or_else(|| Step::Return(yes(frame.py()))))
    }
}

/// `async with lock:`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = LockCore;

    fn diverted(lock: &Bound<'_, LockCore>) -> bool {
        lock.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(lock: &Bound<'py, LockCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        if lock.get().take_at_once(frame.py()) {
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        lock: &Bound<'py, LockCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        Ok(acquire(lock, frame, input)?.unwrap_or(Step::Finish))
    }

    fn inside<'py>(lock: &Bound<'py, LockCore>, _: &Frame<'_, 'py>) -> PyResult<Vec<Within<'py>>> {
        Ok(vec![Within::stock("Lock.acquire", lock.as_any())])
    }
}

/// `async with lock:`, its end.
pub struct Exit;

impl Coroutine for Exit {
    type Receiver = LockCore;
    const KEEPS: usize = 1;

    fn diverted(lock: &Bound<'_, LockCore>) -> bool {
        lock.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(lock: &Bound<'py, LockCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let state = lock.get();
        if state.is_locked() && state.waiters.is_vacant(frame.py()) {
            state.locked.store(false, Ordering::Relaxed);
            AtOnce::Finish
        } else {
            AtOnce::No
        }
    }

    fn advance<'py>(
        lock: &Bound<'py, LockCore>,
        frame: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        lock.get().release(frame.py())?;
        Ok(Step::Finish)
    }
}

/// `Lock.release()`.
pub struct Release;

impl Method for Release {
    type Receiver = LockCore;

    fn diverted(lock: &Bound<'_, LockCore>) -> bool {
        lock.get().is_diverted()
    }

    fn call<'py>(lock: &Bound<'py, LockCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = lock.py();
        lock.get().release(py)?;
        Ok(py.None().into_bound(py))
    }
}

/// `Lock.locked()`.
pub struct Locked;

impl Method for Locked {
    type Receiver = LockCore;

    fn call<'py>(lock: &Bound<'py, LockCore>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(truth(lock.py(), lock.get().is_locked()))
    }
}
