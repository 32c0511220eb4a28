//! What tasks and futures need of asyncio, looked up once.

use std::ptr;

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{self, PyObject, PyTypeObject};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use super::{future, hidden, layout, task};

/// asyncio's types and functions, and the two types that we derive from them.
pub struct Native {
    /// `_asyncio.Future` and `_asyncio.Task`.
    pub stock_future: Py<PyType>,
    pub stock_task: Py<PyType>,
    /// Ours.
    pub future: Py<PyType>,
    pub task: Py<PyType>,
    /// The callback of a future that a task of a native loop awaits; its context is the task.
    pub wake: Py<PyAny>,
    pub cancelled_error: Py<PyAny>,
    pub invalid_state_error: Py<PyAny>,
    pub is_coroutine: Py<PyAny>,
    /// The callback of sleep()'s timer: sets a future's result if it is not done.
    pub set_unless_cancelled: Py<PyAny>,
    /// `("context",)`, as the keywords of a vectorcall.
    pub context_names: Py<PyTuple>,
    pub add_done_callback: Py<PyAny>,
    pub register_task: Py<PyAny>,
    pub enter_task: Py<PyAny>,
    pub leave_task: Py<PyAny>,
    /// Since 3.12.
    pub swap_current_task: Option<Py<PyAny>>,
    pub register_eager_task: Option<Py<PyAny>>,
    pub unregister_eager_task: Option<Py<PyAny>>,
    /// Since 3.14.
    pub add_awaited_by: Option<Py<PyAny>>,
    pub discard_awaited_by: Option<Py<PyAny>>,
}

static NATIVE: PyOnceLock<Result<Native, String>> = PyOnceLock::new();

/// The native types, or why there are none here.
pub fn verdict(py: Python<'_>) -> PyResult<&'static Result<Native, String>> {
    NATIVE.get_or_try_init(py, || {
        let module = match py.import("_asyncio") {
            Ok(module) => module,
            Err(_) => return Ok(Err("this Python's asyncio has no C types".to_owned())),
        };
        let class = |name: &str| -> PyResult<Bound<'_, PyType>> {
            Ok(module.getattr(name)?.cast_into::<PyType>()?)
        };
        let (stock_future, stock_task) = (class("Future")?, class("Task")?);
        if let Err(why) = layout::verify(py, &stock_future, &stock_task) {
            return Ok(Err(why));
        }
        hidden::verify(py);
        let optional = |name: &str| -> PyResult<Option<Py<PyAny>>> {
            Ok(module.getattr_opt(name)?.map(Bound::unbind))
        };
        let exceptions = py.import("asyncio.exceptions")?;
        let future = future::make_type(&stock_future)?;
        let task = task::make_type(&stock_task, &future)?;
        Ok(Ok(Native {
            wake: task::make_wake(&task)?.unbind(),
            future: future.unbind(),
            task: task.unbind(),
            cancelled_error: exceptions.getattr("CancelledError")?.unbind(),
            invalid_state_error: exceptions.getattr("InvalidStateError")?.unbind(),
            is_coroutine: py
                .import("asyncio.coroutines")?
                .getattr("iscoroutine")?
                .unbind(),
            context_names: PyTuple::new(py, ["context"])?.unbind(),
            add_done_callback: stock_future.getattr("add_done_callback")?.unbind(),
            set_unless_cancelled: py
                .import("asyncio.futures")?
                .getattr("_set_result_unless_cancelled")?
                .unbind(),
            stock_future: stock_future.unbind(),
            stock_task: stock_task.unbind(),
            register_task: module.getattr("_register_task")?.unbind(),
            enter_task: module.getattr("_enter_task")?.unbind(),
            leave_task: module.getattr("_leave_task")?.unbind(),
            swap_current_task: optional("_swap_current_task")?,
            register_eager_task: optional("_register_eager_task")?,
            unregister_eager_task: optional("_unregister_eager_task")?,
            add_awaited_by: optional("future_add_to_awaited_by")?,
            discard_awaited_by: optional("future_discard_from_awaited_by")?,
        }))
    })
}

/// The native types.
///
/// # Errors
///
/// RuntimeError if this Python's tasks are not laid out as expected.
#[inline]
pub fn native(py: Python<'_>) -> PyResult<&'static Native> {
    match NATIVE.get(py) {
        Some(Ok(native)) => Ok(native),
        _ => first(py),
    }
}

/// The native types, if they were needed before and are there.
#[inline(always)]
pub fn ready(py: Python<'_>) -> Option<&'static Native> {
    NATIVE.get(py).and_then(|native| native.as_ref().ok())
}

#[cold]
fn first(py: Python<'_>) -> PyResult<&'static Native> {
    verdict(py)?.as_ref().map_err(|why| {
        PyRuntimeError::new_err(format!("there are no native tasks on this Python: {why}"))
    })
}

impl Native {
    /// Whether an object has the layout of a future and no overridden methods: one of the four types.
    #[inline(always)]
    pub fn is_future(&self, object: *mut PyObject) -> bool {
        // SAFETY: a live object.
        let kind = unsafe { ffi::Py_TYPE(object) };
        let is = |class: &Py<PyType>| ptr::eq(kind, class.as_ptr().cast::<PyTypeObject>());
        is(&self.future) || is(&self.task) || is(&self.stock_future) || is(&self.stock_task)
    }

    /// Whether an object is one of our tasks, or of a class derived from them.
    #[inline(always)]
    pub fn is_task(&self, object: *mut PyObject) -> bool {
        // SAFETY: a live object and a live type.
        unsafe { ffi::PyObject_TypeCheck(object, self.task.as_ptr().cast()) != 0 }
    }
}
