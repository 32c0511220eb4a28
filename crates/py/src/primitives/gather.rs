//! `gather(*coros_or_futures, return_exceptions=False)`.
//!
//! The future that it returns is an instance of asyncio's own class; what is native is the loop over
//! the children and the callback that each of them calls when it is done.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::Borrowed;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::call::{self, Callback, Definition};
use crate::ffi::cell::LoopCell;
use crate::ffi::function::Variadic;
use crate::ffi::operation::is_operation;
use crate::ffi::park::{self, Seen};

/// What this Python's asyncio does about gathering.
struct Stock {
    tasks: Py<PyAny>,
    outer_class: Py<PyAny>,
    cancelled_error: Py<PyAny>,
    /// Since 3.14: whether that is noted.
    notes_awaiting: bool,
    /// Whether all children are let go when the first of them has failed.
    discards_all: bool,
    /// Since 3.12: children that are done already are counted at once, not by a callback.
    counts_done: bool,
}

fn stock(py: Python<'_>) -> PyResult<&'static Stock> {
    static STOCK: PyOnceLock<Stock> = PyOnceLock::new();
    STOCK.get_or_try_init(py, || {
        let tasks = py.import("asyncio.tasks")?;
        let futures = py.import("asyncio.futures")?;
        Ok(Stock {
            outer_class: tasks.getattr("_GatheringFuture")?.unbind(),
            cancelled_error: py
                .import("asyncio.exceptions")?
                .getattr("CancelledError")?
                .unbind(),
            notes_awaiting: futures.hasattr("future_add_to_awaited_by")?,
            discards_all: tasks.hasattr("_discard_awaited_by")?,
            counts_done: py.version_info() >= (3, 12),
            tasks: tasks.into_any().unbind(),
        })
    })
}

/// One gather() under way: what the callback of its children is bound to.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct Gathering {
    state: LoopCell<State>,
    finished: AtomicUsize,
    total: AtomicUsize,
    return_exceptions: AtomicBool,
}

#[derive(Default)]
struct State {
    outer: Option<Py<PyAny>>,
    children: Option<Py<PyList>>,
    task: Option<Py<PyAny>>,
}

#[pymethods]
impl Gathering {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .try_with(|state| {
                visit.call(&state.outer)?;
                visit.call(&state.children)?;
                visit.call(&state.task)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}

struct Done;

impl Callback for Done {
    type Receiver = Gathering;

    fn call<'py>(gathering: &Bound<'py, Gathering>, child: &Bound<'py, PyAny>) -> PyResult<()> {
        gathering.get().child_done(child)
    }
}

static DONE: Definition = Definition::told::<Done>(c"_done_callback");

impl Gathering {
    fn child_done<'py>(&self, child: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = child.py();
        let stock = stock(py)?;
        let finished = self.finished.load(Ordering::Relaxed) + 1;
        self.finished.store(finished, Ordering::Relaxed);
        let (outer, children, task) = self.state.with(py, |state| {
            (
                state.outer.as_ref().map(|outer| outer.bind(py).clone()),
                state.children.as_ref().map(|all| all.bind(py).clone()),
                state.task.as_ref().map(|task| task.bind(py).clone()),
            )
        });
        if let Some(task) = &task {
            park::forget_awaiting(child, task)?;
        }
        let (Some(outer), Some(children)) = (outer, children) else {
            return retrieve(child);
        };
        if park::is_done_as_made(&outer)? {
            return retrieve(child);
        }
        if !self.return_exceptions.load(Ordering::Relaxed)
            && let Some(failure) = failure_of(child)?
        {
            if let (true, Some(task)) = (stock.discards_all, &task) {
                for child in children.iter() {
                    park::forget_awaiting(&child, task)?;
                }
            }
            return call::method1(&outer, intern!(py, "set_exception"), &failure).map(drop);
        }
        if finished == self.total.load(Ordering::Relaxed) {
            let mut results = Vec::with_capacity(children.len());
            for child in children.iter() {
                results.push(match park::result_of(&child) {
                    Some(result) => result,
                    None => result_of(&child, stock)?,
                });
            }
            let results = PyList::new(py, results)?;
            if outer
                .getattr(intern!(py, "_cancel_requested"))?
                .is_truthy()?
            {
                // asyncio's words are those of the last child, whichever was done last.
                let last = children.get_item(children.len() - 1)?;
                let error = call::method0(&last, intern!(py, "_make_cancelled_error"))?;
                call::method1(&outer, intern!(py, "set_exception"), &error)?;
            } else {
                call::method1(&outer, intern!(py, "set_result"), results.as_any())?;
            }
        }
        Ok(())
    }
}

/// Marks a child's exception as seen.
fn retrieve(child: &Bound<'_, PyAny>) -> PyResult<()> {
    if matches!(park::look(child), Seen::Ended | Seen::Cancelled) {
        return Ok(());
    }
    if !park::is_cancelled(child)? {
        call::method0(child, intern!(child.py(), "exception"))?;
    }
    Ok(())
}

/// The exception with which a child has ended, if it has.
fn failure_of<'py>(child: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = child.py();
    if park::look(child) == Seen::Ended {
        return Ok(None);
    }
    if park::is_cancelled(child)? {
        return call::method0(child, intern!(py, "_make_cancelled_error")).map(Some);
    }
    let exception = call::method0(child, intern!(py, "exception"))?;
    Ok((!exception.is_none()).then_some(exception))
}

/// A child's entry in the list of results.
fn result_of<'py>(child: &Bound<'py, PyAny>, stock: &Stock) -> PyResult<Bound<'py, PyAny>> {
    let py = child.py();
    if park::is_cancelled(child)? {
        let message = child.getattr(intern!(py, "_cancel_message"))?;
        let class = stock.cancelled_error.bind(py);
        return if message.is_none() {
            class.call1(("",))
        } else {
            class.call1((message,))
        };
    }
    let exception = call::method0(child, intern!(py, "exception"))?;
    if !exception.is_none() {
        return Ok(exception);
    }
    call::method0(child, intern!(py, "result"))
}

/// The function.
pub struct Gather;

impl Variadic for Gather {
    const KEYWORD: &'static str = "return_exceptions";

    fn call<'py>(
        py: Python<'py>,
        values: &[Borrowed<'_, 'py, PyAny>],
        return_exceptions: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let event_loop = park::current_loop(py)?;
        // Nothing to gather, or no loop that runs: nothing that has to be fast.
        if values.is_empty() || event_loop.is_none() {
            return Ok(None);
        }
        let return_exceptions = match return_exceptions {
            Some(value) => value.is_truthy()?,
            None => false,
        };
        gather(&event_loop, values, return_exceptions).map(Some)
    }
}

fn gather<'py>(
    event_loop: &Bound<'py, PyAny>,
    values: &[Borrowed<'_, 'py, PyAny>],
    return_exceptions: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let stock = stock(py)?;
    let task = if stock.notes_awaiting {
        Some(park::current_task(py)?).filter(|task| !task.is_none())
    } else {
        None
    };
    let gathering = Bound::new(
        py,
        Gathering {
            state: LoopCell::new(State::default()),
            finished: AtomicUsize::new(0),
            total: AtomicUsize::new(0),
            return_exceptions: AtomicBool::new(return_exceptions),
        },
    )?;
    gathering.get().state.with(py, |state| {
        state.task = task.as_ref().map(|task| task.clone().unbind());
    });
    let callback = call::bound_function(&DONE, gathering.as_any())?;
    let mut known = Known::of(py, values);
    let context = call::copy_context(py)?;
    let mut children = Vec::with_capacity(values.len());
    let mut done = Vec::new();
    // The loop that the children share: the first one's.
    let mut shared: Option<Bound<'py, PyAny>> = None;
    let mut total = 0;
    let itself = park::creates_tasks_itself(event_loop)?;
    for value in values {
        let value: &Bound<'py, PyAny> = value;
        if let Some(child) = known.get(value, &children)? {
            children.push(child);
            continue;
        }
        let child =
            if is_coroutine(value) && shared.as_ref().is_none_or(|shared| shared.is(event_loop)) {
                shared.get_or_insert_with(|| event_loop.clone());
                spawn(event_loop, value, itself)?
            } else {
                ensure_future(value, shared.as_ref(), event_loop, stock)?
            };
        if shared.is_none() {
            shared = Some(call::method0(&child, intern!(py, "get_loop"))?);
        }
        if !child.is(value) {
            park::do_not_miss(&child)?;
        }
        total += 1;
        gathering.get().total.store(total, Ordering::Relaxed);
        known.insert(value, &child, children.len())?;
        if stock.counts_done && is_done(&child)? {
            done.push(child.clone());
        } else {
            if let Some(task) = &task {
                park::note_awaiting(&child, task)?;
            }
            park::add_callback(&child, &callback, &context)?;
        }
        children.push(child);
    }
    let children = PyList::new(py, children)?;
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "loop"), shared.as_ref().unwrap_or(event_loop))?;
    let outer = stock
        .outer_class
        .bind(py)
        .call((&children,), Some(&keywords))?;
    gathering.get().state.with(py, |state| {
        state.outer = Some(outer.clone().unbind());
        state.children = Some(children.clone().unbind());
    });
    for child in done {
        gathering.get().child_done(&child)?;
    }
    Ok(outer)
}

/// The children by what they were made of, which is given more than once sometimes.
enum Known<'py> {
    /// Of objects that are equal to nothing but themselves: where each of them stands.
    Unique(HashMap<usize, usize>),
    Equal(Bound<'py, PyDict>),
}

impl<'py> Known<'py> {
    fn of(py: Python<'py>, values: &[Borrowed<'_, 'py, PyAny>]) -> Self {
        if values.iter().all(|value| park::is_unique(value)) {
            Self::Unique(HashMap::with_capacity(values.len()))
        } else {
            Self::Equal(PyDict::new(py))
        }
    }

    fn get(
        &self,
        value: &Bound<'py, PyAny>,
        children: &[Bound<'py, PyAny>],
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self {
            Self::Unique(places) => {
                let place = places.get(&value.as_ptr().addr());
                Ok(place.and_then(|&place| children.get(place)).cloned())
            }
            Self::Equal(children) => children.get_item(value),
        }
    }

    fn insert(
        &mut self,
        value: &Bound<'py, PyAny>,
        child: &Bound<'py, PyAny>,
        place: usize,
    ) -> PyResult<()> {
        match self {
            Self::Unique(places) => {
                places.insert(value.as_ptr().addr(), place);
                Ok(())
            }
            Self::Equal(children) => children.set_item(value, child),
        }
    }
}

fn is_coroutine(value: &Bound<'_, PyAny>) -> bool {
    call::is_exact_coroutine(value) || is_operation(value)
}

fn is_done(child: &Bound<'_, PyAny>) -> PyResult<bool> {
    match park::look(child) {
        Seen::Nothing => park::is_done(child),
        seen => Ok(seen != Seen::Pending),
    }
}

/// A task for a coroutine, without a call if the loop creates tasks itself; one that the loop refuses is closed, so that nobody misses its end.
fn spawn<'py>(
    event_loop: &Bound<'py, PyAny>,
    coroutine: &Bound<'py, PyAny>,
    itself: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    if itself && park::spawns(event_loop) {
        return park::spawn(event_loop, coroutine, None, None);
    }
    call::method1(event_loop, intern!(py, "create_task"), coroutine).map_err(|error| {
        if error.is_instance_of::<PyRuntimeError>(py)
            && let Err(other) = call::method0(coroutine, intern!(py, "close"))
        {
            call::discard(py, error);
            return other;
        }
        error
    })
}

/// `asyncio.ensure_future(value, loop=...)`, with the loop as this Python's gather() passes it.
fn ensure_future<'py>(
    value: &Bound<'py, PyAny>,
    shared: Option<&Bound<'py, PyAny>>,
    event_loop: &Bound<'py, PyAny>,
    stock: &Stock,
) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    let keywords = PyDict::new(py);
    // Since 3.14 the running loop is the one that counts; before it is the first child's.
    let given = if stock.notes_awaiting {
        Some(event_loop)
    } else {
        shared
    };
    keywords.set_item(intern!(py, "loop"), given)?;
    stock
        .tasks
        .bind(py)
        .getattr(intern!(py, "ensure_future"))?
        .call((value,), Some(&keywords))
}
