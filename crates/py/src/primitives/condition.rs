//! Condition: tasks that wait under a lock until another one tells them to look again.
//!
//! The lock is a native one that nothing overrides; with any other the stock methods serve the instance.
//! Waiting is two waits in a row, for the notification and for the lock, and the lock is taken again
//! however the first one ends. What is to be raised afterwards is kept by the operation meanwhile: None
//! after a notification, else a tuple of the exception that ended the first wait, or None, and of the
//! last cancellation that came while the lock was awaited, or None.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};

use super::event::{truth, with_waiters, yes};
use super::lock::{self, LockCore};
use super::wait_list::{BoundLoop, WaitList};
use crate::ffi::cell::LoopCell;
use crate::ffi::function::{Coroutine, Method, Rest};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::shadows::Within;

/// The native half of `tideloop.Condition`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct ConditionCore {
    lock: LoopCell<Option<Py<PyAny>>>,
    diverted: AtomicBool,
    waiters: WaitList,
    bound: BoundLoop,
}

impl ConditionCore {
    pub fn is_diverted(&self) -> bool {
        self.diverted.load(Ordering::Relaxed)
    }

    /// The lock, which is native unless the condition is diverted.
    pub fn lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, LockCore>> {
        let lock = self
            .lock
            .with(py, |lock| lock.as_ref().map(|lock| lock.bind(py).clone()));
        let lock = lock.ok_or_else(|| PyValueError::new_err("the condition has no lock yet"))?;
        Ok(lock.cast_into::<LockCore>()?)
    }

    /// Tells up to so many waiters.
    fn tell(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        let value = truth(py, false);
        for _ in 0..count {
            if !self.waiters.notify(py, &value)? {
                break;
            }
        }
        Ok(())
    }

    /// Tells everybody who waits now. Raises RuntimeError if the lock is free.
    pub fn notify_all(&self, py: Python<'_>) -> PyResult<()> {
        self.check_locked(py, "cannot notify on un-acquired lock")?;
        self.tell(py, self.waiters.len(py)?)
    }

    fn check_locked(&self, py: Python<'_>, otherwise: &'static str) -> PyResult<()> {
        if self.lock(py)?.get().is_locked() {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(otherwise))
    }
}

#[pymethods]
impl ConditionCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>) -> Self {
        Self {
            lock: LoopCell::new(None),
            diverted: AtomicBool::new(false),
            waiters: WaitList::default(),
            bound: BoundLoop::default(),
        }
    }

    /// From now on the stock methods serve this instance.
    fn _divert(&self) {
        self.diverted.store(true, Ordering::Relaxed);
    }

    /// What repr() says between the brackets.
    fn _state(&self, py: Python<'_>, locked: bool) -> PyResult<String> {
        let word = if locked { "locked" } else { "unlocked" };
        with_waiters(py, word.to_owned(), &self.waiters)
    }

    /// How many wait to be notified.
    fn _waiting(&self, py: Python<'_>) -> PyResult<usize> {
        self.waiters.len(py)
    }

    #[getter(_lock)]
    fn stored_lock(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.lock
            .with(py, |lock| lock.as_ref().map(|lock| lock.clone_ref(py)))
    }

    #[setter(_lock)]
    fn store_lock(&self, lock: Bound<'_, PyAny>) {
        let py = lock.py();
        if !lock::is_plain(&lock) {
            self._divert();
        }
        let old = self.lock.with(py, |place| place.replace(lock.unbind()));
        drop(old.map(|old| old.into_bound(py)));
    }

    #[getter(_waiters)]
    fn waiters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.waiters.show(py)
    }

    #[setter(_waiters)]
    fn set_waiters(&self, waiters: &Bound<'_, PyAny>) {
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
        self.lock
            .try_with(|lock| lock.as_ref().map_or(Ok(()), |lock| visit.call(lock)))
            .unwrap_or(Ok(()))?;
        self.waiters.traverse(&visit)?;
        self.bound.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.lock.with(py, Option::take);
        drop(old.map(|old| old.into_bound(py)));
        self.waiters.clear(py);
    }
}

/// What differs between Pythons, as the code of the stock method says.
struct Rules {
    /// The future is made before the lock is released, so that nothing is released if that fails.
    future_first: bool,
    /// A cancellation while the lock is awaited is raised again; older ones raise a new one.
    same_error: bool,
    /// Who leaves with an exception passes a notification on.
    notifies_another: bool,
    cancelled_error: Py<PyAny>,
}

fn rules(py: Python<'_>) -> PyResult<&'static Rules> {
    static RULES: PyOnceLock<Rules> = PyOnceLock::new();
    RULES.get_or_try_init(py, || {
        let class = py.import("tideloop.stock")?.getattr("Condition")?;
        let code = class.getattr("wait")?.getattr("__code__")?;
        // In the order of their first use.
        let names: Vec<String> = code.getattr("co_names")?.extract()?;
        let place = |name: &str| names.iter().position(|known| known == name);
        let locals: Vec<String> = code.getattr("co_varnames")?.extract()?;
        Ok(Rules {
            future_first: place("create_future") < place("release"),
            same_error: locals.iter().any(|name| name == "err"),
            notifies_another: place("_notify").is_some(),
            cancelled_error: py
                .import("asyncio.exceptions")?
                .getattr("CancelledError")?
                .unbind(),
        })
    })
}

/// Where an operation keeps what is to be raised once it has the lock again; empty while it waits to be told.
const PENDING: usize = 2;

/// Waits to be told, on behalf of any operation whose argument 2 is free.
pub fn wait<'py>(
    condition: &Bound<'py, ConditionCore>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let state = condition.get();
    if frame.argument(PENDING).is_some() {
        return with_lock(condition, frame, input);
    }
    let error = match input {
        Input::Start => {
            state.check_locked(py, "cannot wait on un-acquired lock")?;
            let lock = state.lock(py)?;
            let future = if rules(py)?.future_first {
                let future = state.bound.new_future(condition.as_any())?;
                lock.get().release(py)?;
                Ok(future)
            } else {
                lock.get().release(py)?;
                state.bound.new_future(condition.as_any())
            };
            match future {
                Ok(future) => {
                    frame.set_ticket(state.waiters.push(&future)?);
                    return Ok(Step::Wait(future));
                }
                Err(error) => Some(error),
            }
        }
        Input::Resumed => {
            state.waiters.remove(frame.ticket(), &frame.awaited()?)?;
            None
        }
        Input::Thrown(error) => {
            state.waiters.remove(frame.ticket(), &frame.awaited()?)?;
            Some(error)
        }
    };
    let pending = match error {
        None => py.None().into_bound(py),
        Some(error) => pair(
            py,
            Some(error.into_value(py).into_bound(py).into_any()),
            None,
        )?,
    };
    drop(frame.replace(PENDING, Some(pending)));
    with_lock(condition, frame, Input::Start)
}

fn pair<'py>(
    py: Python<'py>,
    first: Option<Bound<'py, PyAny>>,
    second: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyTuple::new(py, [first, second])?.into_any())
}

/// The exceptions that are to be raised: that of the first wait, and that of the wait for the lock.
type Errors<'py> = (Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);

fn errors<'py>(pending: &Bound<'py, PyAny>) -> PyResult<Errors<'py>> {
    if pending.is_none() {
        Ok((None, None))
    } else {
        pending.extract()
    }
}

/// The second half of waiting: takes the lock, and goes on trying if that is cancelled.
fn with_lock<'py>(
    condition: &Bound<'py, ConditionCore>,
    frame: &Frame<'_, 'py>,
    mut input: Input,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let lock = condition.get().lock(py)?;
    loop {
        match lock::acquire(&lock, frame, input) {
            Ok(Some(step)) => return Ok(step),
            Ok(None) => break,
            Err(error) if park::is_cancellation(py, &error) => {
                let error = error.into_value(py).into_bound(py).into_any();
                if let Some(pending) = frame.replace(PENDING, None) {
                    let (first, _) = errors(&pending)?;
                    drop(frame.replace(PENDING, Some(pair(py, first, Some(error))?)));
                }
                input = Input::Start;
            }
            Err(error) => {
                let first = match frame.replace(PENDING, None) {
                    Some(pending) => errors(&pending)?.0,
                    None => None,
                };
                let error = error.into_value(py).into_bound(py).into_any();
                return fail(condition, error, first);
            }
        }
    }
    let Some(pending) = frame.replace(PENDING, None) else {
        return Ok(Step::Return(yes(py)));
    };
    match errors(&pending)? {
        (None, None) => Ok(Step::Return(yes(py))),
        (Some(first), None) => fail(condition, first, None),
        (first, Some(error)) => {
            let rules = rules(py)?;
            let error = if rules.same_error {
                error
            } else {
                rules.cancelled_error.bind(py).call0()?
            };
            fail(condition, error, first)
        }
    }
}

/// Leaves with an exception, in the context of another one.
fn fail<'py>(
    condition: &Bound<'py, ConditionCore>,
    error: Bound<'py, PyAny>,
    context: Option<Bound<'py, PyAny>>,
) -> PyResult<Step<'py>> {
    let py = condition.py();
    in_context_of(&error, context)?;
    if rules(py)?.notifies_another {
        condition.get().tell(py, 1)?;
    }
    Err(PyErr::from_value(error))
}

/// As `raise` in a `finally` block does it, unless the exception has a context.
pub fn in_context_of<'py>(
    error: &Bound<'py, PyAny>,
    context: Option<Bound<'py, PyAny>>,
) -> PyResult<()> {
    let name = intern!(error.py(), "__context__");
    match context {
        Some(context) if !context.is(error) && error.getattr(name)?.is_none() => {
            error.setattr(name, context)
        }
        _ => Ok(()),
    }
}

/// What `Condition.wait()` is waiting in: once it is told, in taking the lock again.
fn inside_wait<'py>(
    condition: &Bound<'py, ConditionCore>,
    frame: &Frame<'_, 'py>,
) -> PyResult<Option<Within<'py>>> {
    if frame.argument(PENDING).is_none() {
        return Ok(None);
    }
    let lock = condition.get().lock(condition.py())?;
    Ok(Some(Within::stock("Lock.acquire", lock.as_any())))
}

/// What `Condition.wait_for()` is waiting in.
pub fn inside_wait_for<'py>(
    condition: &Bound<'py, ConditionCore>,
    frame: &Frame<'_, 'py>,
) -> PyResult<Vec<Within<'py>>> {
    let mut within = vec![Within::stock("Condition.wait", condition.as_any())];
    within.extend(inside_wait(condition, frame)?);
    Ok(within)
}

/// `Condition.wait()`.
pub struct Wait;

impl Coroutine for Wait {
    type Receiver = ConditionCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(condition: &Bound<'_, ConditionCore>) -> bool {
        condition.get().is_diverted()
    }

    fn advance<'py>(
        condition: &Bound<'py, ConditionCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        wait(condition, frame, input)
    }

    fn inside<'py>(
        condition: &Bound<'py, ConditionCore>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        Ok(inside_wait(condition, frame)?.into_iter().collect())
    }
}

/// `Condition.wait_for(predicate)`.
pub struct WaitFor;

impl Coroutine for WaitFor {
    type Receiver = ConditionCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(condition: &Bound<'_, ConditionCore>) -> bool {
        condition.get().is_diverted()
    }

    fn advance<'py>(
        condition: &Bound<'py, ConditionCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let predicate = frame
            .argument(1)
            .ok_or_else(|| PyValueError::new_err("a bug in tideloop: nothing to ask"))?;
        if !matches!(input, Input::Start) {
            match wait(condition, frame, input)? {
                Step::Return(_) => {}
                step => return Ok(step),
            }
        }
        loop {
            let result = predicate.call0()?;
            if result.is_truthy()? {
                return Ok(Step::Return(result));
            }
            match wait(condition, frame, Input::Start)? {
                Step::Return(_) => {}
                step => return Ok(step),
            }
        }
    }

    fn inside<'py>(
        condition: &Bound<'py, ConditionCore>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        inside_wait_for(condition, frame)
    }
}

/// `Condition.notify(n=1)`.
pub struct Notify;

impl Method for Notify {
    type Receiver = ConditionCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(condition: &Bound<'_, ConditionCore>) -> bool {
        condition.get().is_diverted()
    }

    fn call<'py>(
        condition: &Bound<'py, ConditionCore>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = condition.py();
        let state = condition.get();
        state.check_locked(py, "cannot notify on un-acquired lock")?;
        match rest.get(0) {
            None => state.tell(py, 1)?,
            Some(most) => {
                // asyncio compares the number of those told with it, before each waiter.
                let value = truth(py, false);
                let mut told = 0;
                while !state.waiters.is_empty(py)? && most.gt(told)? {
                    if !state.waiters.notify(py, &value)? {
                        break;
                    }
                    told += 1;
                }
            }
        }
        Ok(py.None().into_bound(py))
    }
}

/// `Condition.notify_all()`.
pub struct NotifyAll;

impl Method for NotifyAll {
    type Receiver = ConditionCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(condition: &Bound<'_, ConditionCore>) -> bool {
        condition.get().is_diverted()
    }

    fn call<'py>(
        condition: &Bound<'py, ConditionCore>,
        _: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = condition.py();
        condition.get().notify_all(py)?;
        Ok(py.None().into_bound(py))
    }
}

/// `async with condition:`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = ConditionCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(condition: &Bound<'_, ConditionCore>) -> bool {
        condition.get().is_diverted()
    }

    #[inline(always)]
    fn at_once<'py>(condition: &Bound<'py, ConditionCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let py = frame.py();
        match condition.get().lock(py) {
            Ok(lock) if lock.get().take_at_once(py) => AtOnce::Finish,
            _ => AtOnce::No,
        }
    }

    fn advance<'py>(
        condition: &Bound<'py, ConditionCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let lock = condition.get().lock(frame.py())?;
        Ok(lock::acquire(&lock, frame, input)?.unwrap_or(Step::Finish))
    }

    fn inside<'py>(
        condition: &Bound<'py, ConditionCore>,
        _: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        let lock = condition.get().lock(condition.py())?;
        Ok(vec![Within::stock("Lock.acquire", lock.as_any())])
    }
}

/// `async with condition:`, its end.
pub struct Exit;

impl Coroutine for Exit {
    type Receiver = ConditionCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(condition: &Bound<'_, ConditionCore>) -> bool {
        condition.get().is_diverted()
    }

    fn advance<'py>(
        condition: &Bound<'py, ConditionCore>,
        frame: &Frame<'_, 'py>,
        _: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        condition.get().lock(py)?.get().release(py)?;
        Ok(Step::Finish)
    }
}

/// Whether a condition is of the very class, with a native lock.
pub fn is_plain(condition: &Bound<'_, PyAny>) -> bool {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = condition.py();
    lock::is_of_class(&CLASS, condition, "Condition")
        && condition.cast::<ConditionCore>().is_ok_and(|condition| {
            !condition.get().is_diverted() && condition.get().lock(py).is_ok()
        })
}
