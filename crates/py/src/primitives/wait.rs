//! `wait(fs, *, timeout=None, return_when=ALL_COMPLETED)`.
//!
//! One callback is added to all of the futures; it counts them, and ends the future that the caller
//! sleeps on once enough of them are done. When the caller goes on, only futures that are still pending
//! have a callback to be taken back.

use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::exceptions::{PyAssertionError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyFrozenSet, PyList, PySet, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::ahead;
use crate::ffi::call::{self, Callback, Definition};
use crate::ffi::cell::LoopCell;
use crate::ffi::function::Coroutine;
use crate::ffi::operation::{Frame, Input, Step};
use crate::ffi::park::{self, Seen};
use crate::ffi::shadows::Within;

/// asyncio's judgement of objects that are not plainly futures.
struct Stock {
    is_future: Py<PyAny>,
    is_coroutine: Py<PyAny>,
}

fn stock(py: Python<'_>) -> PyResult<&'static Stock> {
    static STOCK: PyOnceLock<Stock> = PyOnceLock::new();
    STOCK.get_or_try_init(py, || {
        Ok(Stock {
            is_future: py.import("asyncio.futures")?.getattr("isfuture")?.unbind(),
            is_coroutine: py
                .import("asyncio.coroutines")?
                .getattr("iscoroutine")?
                .unbind(),
        })
    })
}

/// Which of the futures end the wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    First,
    FirstFailed,
    All,
}

impl Until {
    fn named(name: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(name) = name else {
            return Ok(Self::All);
        };
        let known = [
            ("FIRST_COMPLETED", Self::First),
            ("FIRST_EXCEPTION", Self::FirstFailed),
            ("ALL_COMPLETED", Self::All),
        ];
        for (known, until) in known {
            if name.eq(PyString::intern(name.py(), known))? {
                return Ok(until);
            }
        }
        let message = format!("Invalid return_when value: {}", name.str()?);
        Err(PyValueError::new_err(message))
    }
}

/// One wait() under way: what the callback of its futures is bound to.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct Waiting {
    state: LoopCell<State>,
    left: AtomicUsize,
    until: Until,
}

#[derive(Default)]
struct State {
    /// What the caller sleeps on.
    waiter: Option<Py<PyAny>>,
    timer: Option<Py<PyAny>>,
    /// The caller.
    task: Option<Py<PyAny>>,
}

#[pymethods]
impl Waiting {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .try_with(|state| {
                visit.call(&state.waiter)?;
                visit.call(&state.timer)?;
                visit.call(&state.task)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}

struct Completed;

impl Callback for Completed {
    type Receiver = Waiting;

    fn call<'py>(waiting: &Bound<'py, Waiting>, future: &Bound<'py, PyAny>) -> PyResult<()> {
        waiting.get().completed(future)
    }
}

static COMPLETED: Definition = Definition::told::<Completed>(c"_on_completion");

impl Waiting {
    fn completed<'py>(&self, future: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = future.py();
        let left = self.left.load(Ordering::Relaxed).saturating_sub(1);
        self.left.store(left, Ordering::Relaxed);
        let enough = left == 0
            || match self.until {
                Until::All => false,
                Until::First => true,
                Until::FirstFailed => has_failed(future)?,
            };
        if enough {
            self.cancel_timer(py)?;
            let waiter = self.state.with(py, |state| {
                state.waiter.as_ref().map(|w| w.bind(py).clone())
            });
            if let Some(waiter) = waiter {
                park::resolve(&waiter, &py.None().into_bound(py))?;
            }
        }
        match self.task(py) {
            Some(task) => park::forget_awaiting(future, &task),
            None => Ok(()),
        }
    }

    fn task<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.with(py, |state| {
            state.task.as_ref().map(|task| task.bind(py).clone())
        })
    }

    fn cancel_timer(&self, py: Python<'_>) -> PyResult<()> {
        match self.state.with(py, |state| state.timer.take()) {
            Some(timer) => call::method0(&timer.into_bound(py), intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }
}

/// Whether a future that is done has ended with an exception, which counts as retrieved then.
fn has_failed(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    match park::look(future) {
        Seen::Cancelled | Seen::Ended => return Ok(false),
        _ if park::is_cancelled(future)? => return Ok(false),
        _ => {}
    }
    Ok(!call::method0(future, intern!(future.py(), "exception"))?.is_none())
}

/// The coroutine.
///
/// Its arguments are the futures, as a set of ours once it has begun, the timeout and return_when. The latter
/// is replaced by the callback, the timeout by a list of what is in the set.
pub struct Wait;

const TIMEOUT: usize = 1;
const RETURN_WHEN: usize = 2;
const MEMBERS: usize = TIMEOUT;
const CALLBACK: usize = RETURN_WHEN;

impl Coroutine for Wait {
    type Receiver = PyAny;

    const KEYWORDS: bool = true;

    fn advance<'py>(
        futures: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match input {
            Input::Start => begin(futures, frame),
            Input::Resumed => {
                // begin() has put a set there.
                let futures = futures.cast::<PySet>()?;
                let all_done = leave(frame)?;
                result(futures, all_done).map(Step::Return)
            }
            Input::Thrown(error) => {
                leave(frame)?;
                Err(error)
            }
        }
    }

    fn inside<'py>(futures: &Bound<'py, PyAny>, _: &Frame<'_, 'py>) -> PyResult<Vec<Within<'py>>> {
        Ok(vec![Within::new("asyncio.tasks", "_wait", futures)])
    }
}

fn begin<'py>(given: &Bound<'py, PyAny>, frame: &Frame<'_, 'py>) -> PyResult<Step<'py>> {
    let py = frame.py();
    if !is_plain_collection(given) && is_one_awaitable(given)? {
        let name = given.get_type().name()?;
        let message = format!("expect a list of futures, not {name}");
        return Err(PyTypeError::new_err(message));
    }
    if !given.is_truthy()? {
        return Err(PyValueError::new_err("Set of Tasks/Futures is empty."));
    }
    let until = Until::named(frame.argument(RETURN_WHEN).as_ref())?;
    let futures = set_of(given)?;
    let members = members(&futures)?;
    for (index, future) in members.iter().enumerate() {
        ahead::member(&members, index);
        if park::look(&future) == Seen::Nothing
            && stock(py)?
                .is_coroutine
                .bind(py)
                .call1((&future,))?
                .is_truthy()?
        {
            let message = "Passing coroutines is forbidden, use tasks explicitly.";
            return Err(PyTypeError::new_err(message));
        }
    }
    let event_loop = park::running_loop(py)?;
    if futures.is_empty() {
        // An iterable that is true and yields nothing.
        return Err(PyAssertionError::new_err("Set of Futures is empty."));
    }
    let waiter = park::new_future(&event_loop)?;
    let timer = match frame.argument(TIMEOUT).filter(|timeout| !timeout.is_none()) {
        Some(timeout) => {
            let name = intern!(py, "call_later");
            let callback = release_waiter(py)?.bind(py);
            Some(call::schedule(
                &event_loop,
                name,
                [&timeout, callback, &waiter],
            )?)
        }
        None => None,
    };
    let task = if cfg!(Py_3_14) {
        Some(park::current_task(py)?).filter(|task| !task.is_none())
    } else {
        None
    };
    let waiting = Bound::new(
        py,
        Waiting {
            state: LoopCell::new(State {
                waiter: Some(waiter.clone().unbind()),
                timer: timer.map(Bound::unbind),
                task: task.as_ref().map(|task| task.clone().unbind()),
            }),
            left: AtomicUsize::new(futures.len()),
            until,
        },
    )?;
    let callback = call::bound_function(&COMPLETED, waiting.as_any())?;
    let context = call::copy_context(py)?;
    for (index, future) in members.iter().enumerate() {
        ahead::member(&members, index);
        park::add_callback(&future, &callback, &context)?;
        if let Some(task) = &task {
            park::note_awaiting(&future, task)?;
        }
    }
    drop(frame.replace(0, Some(futures.into_any())));
    drop(frame.replace(MEMBERS, Some(members.into_any())));
    drop(frame.replace(CALLBACK, Some(callback)));
    Ok(Step::Wait(waiter))
}

/// Whether an object is a collection that is neither a future nor a coroutine at a glance.
fn is_plain_collection(object: &Bound<'_, PyAny>) -> bool {
    object.is_exact_instance_of::<PyList>()
        || object.is_exact_instance_of::<PySet>()
        || object.is_exact_instance_of::<PyTuple>()
        || object.is_exact_instance_of::<PyFrozenSet>()
}

fn is_one_awaitable(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    let stock = stock(py)?;
    Ok(stock.is_future.bind(py).call1((object,))?.is_truthy()?
        || stock.is_coroutine.bind(py).call1((object,))?.is_truthy()?)
}

/// `set(iterable)`.
fn set_of<'py>(iterable: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PySet>> {
    let py = iterable.py();
    Ok(py.get_type::<PySet>().call1((iterable,))?.cast_into()?)
}

/// What is in a set, as a list: faster to walk through than a set.
fn members<'py>(futures: &Bound<'py, PySet>) -> PyResult<Bound<'py, PyList>> {
    let py = futures.py();
    Ok(py.get_type::<PyList>().call1((futures,))?.cast_into()?)
}

/// Takes back what was left at the futures and the loop; says whether all futures are seen to be done.
fn leave(frame: &Frame<'_, '_>) -> PyResult<bool> {
    let py = frame.py();
    let (Some(callback), Some(members)) = (frame.argument(CALLBACK), frame.replace(MEMBERS, None))
    else {
        return Ok(false);
    };
    let members = members.cast_into::<PyList>()?;
    let waiting = callback.getattr(intern!(py, "__self__"))?;
    let waiting = waiting.cast::<Waiting>()?.get();
    waiting.cancel_timer(py)?;
    let task = waiting.task(py);
    let mut all_done = true;
    for (index, future) in members.iter().enumerate() {
        ahead::member(&members, index);
        park::remove_callback(&future, &callback)?;
        if let Some(task) = &task {
            park::forget_awaiting(&future, task)?;
        }
        all_done &= !matches!(park::look(&future), Seen::Nothing | Seen::Pending);
    }
    Ok(all_done)
}

/// `(done, pending)`.
fn result<'py>(futures: &Bound<'py, PySet>, all_done: bool) -> PyResult<Bound<'py, PyAny>> {
    let py = futures.py();
    if all_done {
        let pair = (futures, PySet::empty(py)?);
        return Ok(pair.into_pyobject(py)?.into_any());
    }
    let (done, pending) = (PySet::empty(py)?, PySet::empty(py)?);
    for future in futures.iter() {
        let is_done = match park::look(&future) {
            Seen::Nothing => park::is_done(&future)?,
            seen => seen != Seen::Pending,
        };
        if is_done {
            done.add(future)?;
        } else {
            pending.add(future)?;
        }
    }
    Ok((done, pending).into_pyobject(py)?.into_any())
}

/// The timer's callback.
fn release_waiter(py: Python<'_>) -> PyResult<&'static Py<PyAny>> {
    static RELEASE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    RELEASE.get_or_try_init(py, || {
        Ok(wrap_pyfunction!(_release_waiter, py)?.into_any().unbind())
    })
}

/// As asyncio's function of this name, which is what a waiting loop shows in debug mode.
#[pyfunction]
fn _release_waiter(waiter: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = waiter.py();
    park::resolve(waiter, &py.None().into_bound(py)).map(drop)
}
