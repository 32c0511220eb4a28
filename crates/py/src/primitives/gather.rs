//! `gather(*coros_or_futures, return_exceptions=False)`.
//!
//! The future that it returns is an instance of asyncio's own class; what is native is the loop over
//! the children and the callback that each of them calls when it is done.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::Borrowed;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString};
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::call::{self, Callback, Definition};
use crate::ffi::cell::LoopCell;
use crate::ffi::function::Variadic;
use crate::ffi::park;

/// What this Python's asyncio does about gathering.
struct Stock {
    tasks: Py<PyAny>,
    outer_class: Py<PyAny>,
    cancelled_error: Py<PyAny>,
    /// Where the functions that note who awaits whom are looked up, since they are replaced there
    /// together with Future.
    futures: Py<PyDict>,
    /// Since 3.14: whether that is noted.
    notes_awaiting: bool,
    /// Whether all children are let go when the first of them has failed.
    discards_all: bool,
    /// Since 3.12: children that are done already are counted at once, not by a callback.
    counts_done: bool,
}

impl Stock {
    /// Notes that a task awaits a child.
    fn note<'py>(&self, child: &Bound<'py, PyAny>, task: &Bound<'py, PyAny>) -> PyResult<()> {
        self.tell(intern!(task.py(), "future_add_to_awaited_by"), child, task)
    }

    /// Takes that back.
    fn forget<'py>(&self, child: &Bound<'py, PyAny>, task: &Bound<'py, PyAny>) -> PyResult<()> {
        let name = intern!(task.py(), "future_discard_from_awaited_by");
        self.tell(name, child, task)
    }

    fn tell<'py>(
        &self,
        name: &Bound<'py, PyString>,
        child: &Bound<'py, PyAny>,
        task: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        match self.futures.bind(name.py()).get_item(name)? {
            Some(function) => function.call1((child, task)).map(drop),
            None => Ok(()),
        }
    }
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
            futures: futures.dict().unbind(),
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

static DONE: Definition = Definition::of::<Done>(c"_done_callback");

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
            stock.forget(child, task)?;
        }
        let (Some(outer), Some(children)) = (outer, children) else {
            return retrieve(child);
        };
        if park::is_done(&outer)? {
            return retrieve(child);
        }
        if !self.return_exceptions.load(Ordering::Relaxed)
            && let Some(failure) = failure_of(child)?
        {
            if let (true, Some(task)) = (stock.discards_all, &task) {
                for child in children.iter() {
                    stock.forget(&child, task)?;
                }
            }
            return call::method1(&outer, intern!(py, "set_exception"), &failure).map(drop);
        }
        if finished == self.total.load(Ordering::Relaxed) {
            let results = PyList::empty(py);
            for child in children.iter() {
                results.append(result_of(&child, stock)?)?;
            }
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
    if !park::is_cancelled(child)? {
        call::method0(child, intern!(child.py(), "exception"))?;
    }
    Ok(())
}

/// The exception with which a child has ended, if it has.
fn failure_of<'py>(child: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = child.py();
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
    let known = PyDict::new(py);
    let children = PyList::empty(py);
    let mut done = Vec::new();
    // The loop that the children share: the first one's.
    let mut shared: Option<Bound<'py, PyAny>> = None;
    for value in values {
        let value: &Bound<'py, PyAny> = value;
        if let Some(child) = known.get_item(value)? {
            children.append(child)?;
            continue;
        }
        let child = if call::is_exact_coroutine(value)
            && shared.as_ref().is_none_or(|shared| shared.is(event_loop))
        {
            shared.get_or_insert_with(|| event_loop.clone());
            spawn(event_loop, value)?
        } else {
            ensure_future(value, shared.as_ref(), event_loop, stock)?
        };
        if shared.is_none() {
            shared = Some(call::method0(&child, intern!(py, "get_loop"))?);
        }
        if !child.is(value) {
            // Ours alone: nobody could have kept it from being destroyed.
            child.setattr(intern!(py, "_log_destroy_pending"), false)?;
        }
        let total = &gathering.get().total;
        total.store(total.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        known.set_item(value, &child)?;
        if stock.counts_done && park::is_done(&child)? {
            done.push(child.clone());
        } else {
            if let Some(task) = &task {
                stock.note(&child, task)?;
            }
            call::method1(&child, intern!(py, "add_done_callback"), &callback)?;
        }
        children.append(child)?;
    }
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

/// A task for a coroutine; one that the loop refuses is closed, so that nobody misses its end.
fn spawn<'py>(
    event_loop: &Bound<'py, PyAny>,
    coroutine: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
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
