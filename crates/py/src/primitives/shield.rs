//! `shield(arg)`.
//!
//! Two futures: the inner one, which goes on whatever happens, and the outer one that the caller awaits. Each
//! has a callback of ours; they are bound to one object that knows both.

use pyo3::exceptions::PyAttributeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::call::{self, Callback, Definition};
use crate::ffi::cell::LoopCell;
use crate::ffi::function::{Method, Rest};
use crate::ffi::park::{self, Seen};

/// What we use of asyncio.
struct Stock {
    shield: Py<PyAny>,
    /// Where functions are looked up at each call, since tests and programs replace them there.
    tasks: Py<PyDict>,
}

fn stock(py: Python<'_>) -> PyResult<&'static Stock> {
    static STOCK: PyOnceLock<Stock> = PyOnceLock::new();
    STOCK.get_or_try_init(py, || {
        Ok(Stock {
            shield: py.import("tideloop.stock")?.getattr("shield")?.unbind(),
            tasks: py.import("asyncio.tasks")?.dict().unbind(),
        })
    })
}

impl Stock {
    /// The result of one of the functions of asyncio.tasks.
    fn call<'py>(&self, name: &str, argument: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let tasks = self.tasks.bind(argument.py());
        tasks
            .get_item(name)?
            .ok_or_else(|| PyAttributeError::new_err(format!("asyncio.tasks has no {name}")))?
            .call1((argument,))
    }
}

/// One shield() under way.
#[pyclass(frozen, module = "tideloop._tideloop")]
pub struct Shielding {
    state: LoopCell<State>,
    /// Whether the exception of an inner future counts as retrieved once nobody waits for it: in some
    /// versions of asyncio.
    retrieves: bool,
}

#[derive(Default)]
struct State {
    inner: Option<Py<PyAny>>,
    outer: Option<Py<PyAny>>,
    /// The callback of the inner future. It is bound to this object, so the cycle is broken when one of the
    /// two futures is done.
    callback: Option<Py<PyAny>>,
    /// Since 3.14: the task that awaits, if there is one.
    task: Option<Py<PyAny>>,
}

/// What a callback works with.
struct Known<'py> {
    inner: Bound<'py, PyAny>,
    outer: Bound<'py, PyAny>,
    callback: Option<Bound<'py, PyAny>>,
    task: Option<Bound<'py, PyAny>>,
}

#[pymethods]
impl Shielding {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state
            .try_with(|state| {
                visit.call(&state.inner)?;
                visit.call(&state.outer)?;
                visit.call(&state.callback)?;
                visit.call(&state.task)
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self.state.with(py, std::mem::take);
        drop(old);
    }
}

impl Shielding {
    /// Both futures; nothing once one of them is done.
    fn known<'py>(&self, py: Python<'py>) -> Option<Known<'py>> {
        let state = self.state.with(py, std::mem::take);
        let bound = |value: Option<Py<PyAny>>| value.map(|value| value.into_bound(py));
        Some(Known {
            inner: bound(state.inner)?,
            outer: bound(state.outer)?,
            callback: bound(state.callback),
            task: bound(state.task),
        })
    }
}

struct InnerDone;

impl Callback for InnerDone {
    type Receiver = Shielding;

    fn call<'py>(shielding: &Bound<'py, Shielding>, inner: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = inner.py();
        let Some(known) = shielding.get().known(py) else {
            return Ok(());
        };
        if let Some(task) = &known.task {
            park::forget_awaiting(inner, task)?;
        }
        let outer = &known.outer;
        let cancelled = park::is_cancelled(inner)?;
        if park::is_cancelled(outer)? {
            if shielding.get().retrieves && !cancelled {
                call::method0(inner, intern!(py, "exception"))?;
            }
            return Ok(());
        }
        if cancelled {
            return park::cancel(outer);
        }
        let exception = call::method0(inner, intern!(py, "exception"))?;
        if exception.is_none() {
            let result = call::method0(inner, intern!(py, "result"))?;
            call::method1(outer, intern!(py, "set_result"), &result).map(drop)
        } else {
            call::method1(outer, intern!(py, "set_exception"), &exception).map(drop)
        }
    }
}

struct OuterDone;

impl Callback for OuterDone {
    type Receiver = Shielding;

    fn call<'py>(shielding: &Bound<'py, Shielding>, outer: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = outer.py();
        let inner_is_done = shielding.get().state.with(py, |state| {
            state.inner.as_ref().map(|inner| inner.bind(py).clone())
        });
        // One that is done is about to call, or has called, the other callback.
        match inner_is_done {
            Some(inner) if !park::is_done(&inner)? => {}
            _ => return Ok(()),
        }
        let Some(known) = shielding.get().known(py) else {
            return Ok(());
        };
        if let Some(callback) = &known.callback {
            park::remove_callback(&known.inner, callback)?;
        }
        match &known.task {
            Some(task) => park::forget_awaiting(&known.inner, task),
            None => Ok(()),
        }
    }
}

static INNER_DONE: Definition = Definition::told::<InnerDone>(c"_inner_done_callback");
static OUTER_DONE: Definition = Definition::told::<OuterDone>(c"_outer_done_callback");

/// The function. `RETRIEVES`: see [`Shielding::retrieves`].
pub struct Shield<const RETRIEVES: bool>;

impl<const RETRIEVES: bool> Method for Shield<RETRIEVES> {
    type Receiver = PyAny;

    fn call<'py>(arg: &Bound<'py, PyAny>, _: &Rest<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let py = arg.py();
        let stock = stock(py)?;
        let inner = if park::look(arg) != Seen::Nothing {
            arg.clone()
        } else if park::current_loop(py)?.is_none() {
            // What becomes of a coroutine then is asyncio's affair, and its warnings count frames.
            return stock.shield.bind(py).call1((arg,));
        } else {
            stock.call("ensure_future", arg)?
        };
        match park::look(&inner) {
            Seen::Nothing => return stock.shield.bind(py).call1((inner,)),
            Seen::Pending => {}
            _ => return Ok(inner),
        }
        let event_loop = call::method0(&inner, intern!(py, "get_loop"))?;
        let outer = park::new_future(&event_loop)?;
        let task = if cfg!(Py_3_14) {
            Some(stock.call("current_task", &event_loop)?).filter(|task| !task.is_none())
        } else {
            None
        };
        if let Some(task) = &task {
            park::note_awaiting(&inner, task)?;
        }
        let shielding = Bound::new(
            py,
            Shielding {
                state: LoopCell::new(State::default()),
                retrieves: RETRIEVES,
            },
        )?;
        let inner_done = call::bound_function(&INNER_DONE, shielding.as_any())?;
        let outer_done = call::bound_function(&OUTER_DONE, shielding.as_any())?;
        shielding.get().state.with(py, |state| {
            *state = State {
                inner: Some(inner.clone().unbind()),
                outer: Some(outer.clone().unbind()),
                callback: Some(inner_done.clone().unbind()),
                task: task.map(Bound::unbind),
            };
        });
        let context = call::copy_context(py)?;
        park::add_callback(&inner, &inner_done, &context)?;
        park::add_callback(&outer, &outer_done, &context)?;
        Ok(outer)
    }
}
