//! Barrier: so many tasks wait for each other.
//!
//! One operation runs what asyncio's `wait` does in four coroutines: it takes the lock of the barrier's
//! condition, waits until those of the last round have left, counts itself, waits until all are here, and
//! lets the lock go however that ends. Its phases are told by argument 1: absent while the lock is awaited,
//! None while the barrier drains, then the number that it will return. `reset` and `abort` are asyncio's code.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::condition::{self, ConditionCore, in_context_of};
use super::lock;
use super::wait_list::BoundLoop;
use crate::ffi::cell::LoopCell;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::shadows::Within;

/// asyncio's `_BarrierState`, by its values.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Filling,
    Draining,
    Resetting,
    Broken,
}

const PHASES: [(Phase, &str); 4] = [
    (Phase::Filling, "FILLING"),
    (Phase::Draining, "DRAINING"),
    (Phase::Resetting, "RESETTING"),
    (Phase::Broken, "BROKEN"),
];

struct Stock {
    /// The members of `_BarrierState`, in the order of [`PHASES`].
    phases: [Py<PyAny>; 4],
    broken: Py<PyAny>,
}

fn stock(py: Python<'_>) -> PyResult<&'static Stock> {
    static STOCK: PyOnceLock<Stock> = PyOnceLock::new();
    STOCK.get_or_try_init(py, || {
        let phases = py.import("asyncio.locks")?.getattr("_BarrierState")?;
        let member = |index: usize| Ok::<_, PyErr>(phases.getattr(PHASES[index].1)?.unbind());
        Ok(Stock {
            phases: [member(0)?, member(1)?, member(2)?, member(3)?],
            broken: py
                .import("asyncio.exceptions")?
                .getattr("BrokenBarrierError")?
                .unbind(),
        })
    })
}

/// The native half of `tideloop.Barrier`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct BarrierCore {
    condition: LoopCell<Option<Py<PyAny>>>,
    /// Whether a subclass overrides what the stock class calls on itself.
    overridden: AtomicBool,
    /// Whether the condition is a native one, that nothing overrides.
    plain: AtomicBool,
    parties: LoopCell<Option<Py<PyAny>>>,
    /// The same as a number.
    limit: AtomicI64,
    count: AtomicI64,
    phase: AtomicU8,
    bound: BoundLoop,
}

impl BarrierCore {
    fn phase(&self) -> Phase {
        let index = usize::from(self.phase.load(Ordering::Relaxed));
        PHASES.get(index).map_or(Phase::Broken, |&(phase, _)| phase)
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn count(&self) -> i64 {
        self.count.load(Ordering::Relaxed)
    }

    fn add(&self, change: i64) {
        // The GIL orders these.
        self.count.store(self.count() + change, Ordering::Relaxed);
    }

    fn condition<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, ConditionCore>> {
        let condition = self.condition.with(py, |condition| {
            condition
                .as_ref()
                .map(|condition| condition.bind(py).clone())
        });
        let condition =
            condition.ok_or_else(|| PyValueError::new_err("the barrier has no condition yet"))?;
        Ok(condition.cast_into::<ConditionCore>()?)
    }

    /// Whether a task that comes has to wait until the last round is over.
    fn is_blocked(&self) -> bool {
        matches!(self.phase(), Phase::Draining | Phase::Resetting)
    }

    fn broken(&self, py: Python<'_>, message: &'static str) -> PyErr {
        match stock(py).and_then(|stock| stock.broken.bind(py).call1((message,))) {
            Ok(error) => PyErr::from_value(error),
            Err(error) => error,
        }
    }

    /// The last one that leaves lets the next ones in.
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        self.add(-1);
        if self.count() != 0 {
            return Ok(());
        }
        if self.is_blocked() {
            self.set_phase(Phase::Filling);
        }
        self.condition(py)?.get().notify_all(py)
    }
}

#[pymethods]
impl BarrierCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>) -> Self {
        Self {
            condition: LoopCell::new(None),
            overridden: AtomicBool::new(false),
            plain: AtomicBool::new(false),
            parties: LoopCell::new(None),
            limit: AtomicI64::new(0),
            count: AtomicI64::new(0),
            phase: AtomicU8::new(Phase::Filling as u8),
            bound: BoundLoop::default(),
        }
    }

    /// From now on the stock methods serve this instance.
    fn _divert(&self) {
        self.overridden.store(true, Ordering::Relaxed);
    }

    #[getter(_cond)]
    fn stored_condition(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.condition.with(py, |condition| {
            condition.as_ref().map(|condition| condition.clone_ref(py))
        })
    }

    #[setter(_cond)]
    fn store_condition(&self, condition: Bound<'_, PyAny>) {
        let py = condition.py();
        self.plain
            .store(condition::is_plain(&condition), Ordering::Relaxed);
        let old = self
            .condition
            .with(py, |place| place.replace(condition.unbind()));
        drop(old.map(|old| old.into_bound(py)));
    }

    #[getter(_parties)]
    fn parties(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.parties
            .with(py, |parties| parties.as_ref().map(|it| it.clone_ref(py)))
    }

    #[setter(_parties)]
    fn set_parties(&self, parties: Bound<'_, PyAny>) {
        let py = parties.py();
        let limit = parties
            .cast_exact::<PyInt>()
            .ok()
            .and_then(|limit| limit.extract().ok());
        // What is no number of tasks is compared as asyncio compares it.
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
        if limit.is_none() {
            self._divert();
        }
        let old = self
            .parties
            .with(py, |place| place.replace(parties.unbind()));
        drop(old.map(|old| old.into_bound(py)));
    }

    #[getter(_count)]
    fn stored_count(&self) -> i64 {
        self.count()
    }

    #[setter(_count)]
    fn store_count(&self, count: i64) {
        self.count.store(count, Ordering::Relaxed);
    }

    #[getter(_state)]
    fn stored_phase<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(stock(py)?.phases[self.phase() as usize].bind(py).clone())
    }

    #[setter(_state)]
    fn store_phase(&self, phase: &Bound<'_, PyAny>) -> PyResult<()> {
        let stock = stock(phase.py())?;
        for (index, &(known, _)) in PHASES.iter().enumerate() {
            if phase.is(&stock.phases[index]) {
                self.set_phase(known);
                return Ok(());
            }
        }
        Err(PyValueError::new_err(format!(
            "a barrier's _state is one of asyncio.locks._BarrierState, not {}",
            phase.repr()?
        )))
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
        self.condition
            .try_with(|condition| {
                condition
                    .as_ref()
                    .map_or(Ok(()), |condition| visit.call(condition))
            })
            .unwrap_or(Ok(()))?;
        self.parties
            .try_with(|parties| parties.as_ref().map_or(Ok(()), |it| visit.call(it)))
            .unwrap_or(Ok(()))?;
        self.bound.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.condition.with(py, Option::take);
        drop(old.map(|old| old.into_bound(py)));
    }
}

/// Where an operation keeps its phase and its number.
const PLACE: usize = 1;

/// `Barrier.wait()`.
pub struct Wait;

impl Coroutine for Wait {
    type Receiver = BarrierCore;

    const ASK_ALWAYS: bool = true;

    fn diverted(barrier: &Bound<'_, BarrierCore>) -> bool {
        let state = barrier.get();
        state.overridden.load(Ordering::Relaxed) || !state.plain.load(Ordering::Relaxed)
    }

    fn advance<'py>(
        barrier: &Bound<'py, BarrierCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let py = frame.py();
        let condition = barrier.get().condition(py)?;
        let lock = condition.get().lock(py)?;
        let input = match frame.argument(PLACE) {
            Some(_) => Some(input),
            None => {
                if let Some(step) = lock::acquire(&lock, frame, input)? {
                    return Ok(step);
                }
                drop(frame.replace(PLACE, Some(py.None().into_bound(py))));
                None
            }
        };
        // From here on the lock is ours, but while the condition waits.
        let result = match under_lock(barrier, &condition, frame, input) {
            Ok(step @ (Step::Wait(_) | Step::Yield)) => return Ok(step),
            result => result,
        };
        match (result, lock.get().release(py)) {
            (result, Ok(())) => result,
            (Ok(_), Err(error)) => Err(error),
            (Err(first), Err(error)) => {
                let error = error.into_value(py).into_bound(py).into_any();
                let first = first.into_value(py).into_bound(py).into_any();
                in_context_of(&error, Some(first))?;
                Err(PyErr::from_value(error))
            }
        }
    }

    fn inside<'py>(
        barrier: &Bound<'py, BarrierCore>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        let condition = barrier.get().condition(barrier.py())?;
        let Some(place) = frame.argument(PLACE) else {
            let lock = condition.get().lock(barrier.py())?;
            return Ok(vec![
                Within::stock("Condition.__aenter__", condition.as_any()),
                Within::stock("Lock.acquire", lock.as_any()),
            ]);
        };
        let name = if place.is_none() {
            "Barrier._block"
        } else {
            "Barrier._wait"
        };
        let mut within = vec![
            Within::stock(name, barrier.as_any()),
            Within::stock("Condition.wait_for", condition.as_any()),
        ];
        within.extend(condition::inside_wait_for(&condition, frame)?);
        Ok(within)
    }
}

/// `async with barrier:`, its beginning.
pub struct Enter;

impl Coroutine for Enter {
    type Receiver = BarrierCore;

    fn diverted(barrier: &Bound<'_, BarrierCore>) -> bool {
        Wait::diverted(barrier)
    }

    fn advance<'py>(
        barrier: &Bound<'py, BarrierCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        Wait::advance(barrier, frame, input)
    }

    fn inside<'py>(
        barrier: &Bound<'py, BarrierCore>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        let mut within = vec![Within::stock("Barrier.wait", barrier.as_any())];
        within.extend(Wait::inside(barrier, frame)?);
        Ok(within)
    }
}

/// What `wait` does with the lock. No input: it was just taken.
fn under_lock<'py>(
    barrier: &Bound<'py, BarrierCore>,
    condition: &Bound<'py, ConditionCore>,
    frame: &Frame<'_, 'py>,
    mut input: Option<Input>,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let state = barrier.get();
    if frame.argument(PLACE).is_none_or(|place| place.is_none()) {
        if let Some(step) = wait_while(condition, frame, input.take(), || state.is_blocked())? {
            return Ok(step);
        }
        if state.phase() == Phase::Broken {
            return Err(state.broken(py, "Barrier aborted"));
        }
        let index = state.count();
        state.add(1);
        drop(frame.replace(PLACE, Some(index.into_pyobject(py)?.into_any())));
        if index + 1 == state.limit.load(Ordering::Relaxed) {
            state.set_phase(Phase::Draining);
            let told = condition.get().notify_all(py);
            return leave(state, frame, told);
        }
    }
    let filled = match wait_while(condition, frame, input, || state.phase() == Phase::Filling) {
        Ok(Some(step)) => return Ok(step),
        Ok(None) if matches!(state.phase(), Phase::Broken | Phase::Resetting) => {
            Err(state.broken(py, "Abort or reset of barrier"))
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    leave(state, frame, filled)
}

/// `condition.wait_for(...)`: waits until something no longer holds. None: it does not.
fn wait_while<'py>(
    condition: &Bound<'py, ConditionCore>,
    frame: &Frame<'_, 'py>,
    input: Option<Input>,
    holds: impl Fn() -> bool,
) -> PyResult<Option<Step<'py>>> {
    if let Some(input) = input {
        match condition::wait(condition, frame, input)? {
            Step::Return(_) => {}
            step => return Ok(Some(step)),
        }
    }
    while holds() {
        match condition::wait(condition, frame, Input::Start)? {
            Step::Return(_) => {}
            step => return Ok(Some(step)),
        }
    }
    Ok(None)
}

/// The end of a wait: with its number, or with an exception.
fn leave<'py>(
    state: &BarrierCore,
    frame: &Frame<'_, 'py>,
    result: PyResult<()>,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let left = state.leave(py);
    match (result, left) {
        (Ok(()), Ok(())) => {
            let index = frame
                .argument(PLACE)
                .ok_or_else(|| PyValueError::new_err("a bug in tideloop: no place"))?;
            Ok(Step::Return(index))
        }
        (Ok(()), Err(error)) | (Err(error), Ok(())) => Err(error),
        (Err(first), Err(error)) => {
            let error = error.into_value(py).into_bound(py).into_any();
            error.setattr(intern!(py, "__context__"), first.into_value(py))?;
            Err(PyErr::from_value(error))
        }
    }
}
