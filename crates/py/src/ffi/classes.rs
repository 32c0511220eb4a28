//! Whether `asyncio.tasks.Task` and `asyncio.futures.Future` are still what they were.
//!
//! Programs and tests replace them there, and asyncio's loops look them up for every task and future, so
//! ours must notice. A look-up costs a tenth of a task; since 3.12 a dictionary can be watched instead.

use pyo3::exceptions::PyAttributeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple};

/// The names of asyncio's modules, and what its classes were when tideloop was imported.
pub struct Classes {
    tasks: Py<PyDict>,
    futures: Py<PyDict>,
    pub stock_task: Py<PyAny>,
    pub stock_future: Py<PyAny>,
    /// `("loop",)`, as the keywords of a vectorcall.
    pub only_loop: Py<PyTuple>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

/// asyncio's classes; the modules are watched from the first call on, where that is possible.
#[inline(always)]
pub fn classes(py: Python<'_>) -> PyResult<&'static Classes> {
    match CLASSES.get(py) {
        Some(classes) => Ok(classes),
        None => CLASSES.get_or_try_init(py, || Classes::new(py)),
    }
}

impl Classes {
    #[cold]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let names = |module: &str| -> PyResult<Bound<'_, PyDict>> { Ok(py.import(module)?.dict()) };
        let (tasks, futures) = (names("asyncio.tasks")?, names("asyncio.futures")?);
        // The C types if there are any: somebody may have replaced the names already.
        let stock = |module: &Bound<'_, PyDict>, name: &str| -> PyResult<Py<PyAny>> {
            match py
                .import("_asyncio")
                .and_then(|module| module.getattr(name))
            {
                Ok(class) => Ok(class.unbind()),
                Err(_) => module.as_any().get_item(name).map(Bound::unbind),
            }
        };
        let (stock_task, stock_future) = (stock(&tasks, "Task")?, stock(&futures, "Future")?);
        #[cfg(Py_3_12)]
        watch::begin(&tasks, &futures, stock_task.as_ptr(), stock_future.as_ptr());
        Ok(Self {
            tasks: tasks.unbind(),
            futures: futures.unbind(),
            stock_task,
            stock_future,
            only_loop: PyTuple::new(py, ["loop"])?.unbind(),
        })
    }

    /// What `asyncio.tasks.Task` was replaced with; None: it is asyncio's own.
    #[inline(always)]
    pub fn task<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        #[cfg(Py_3_12)]
        if watch::TASK_IS_STOCK.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(None);
        }
        replaced(self.tasks.bind(py), intern!(py, "Task"), &self.stock_task)
    }

    /// What `asyncio.futures.Future` was replaced with; None: it is asyncio's own.
    #[inline(always)]
    pub fn future<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        #[cfg(Py_3_12)]
        if watch::FUTURE_IS_STOCK.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(None);
        }
        replaced(
            self.futures.bind(py),
            intern!(py, "Future"),
            &self.stock_future,
        )
    }
}

fn replaced<'py>(
    names: &Bound<'py, PyDict>,
    name: &Bound<'py, PyString>,
    stock: &Py<PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    match names.get_item(name)? {
        Some(class) if class.is(stock) => Ok(None),
        Some(class) => Ok(Some(class)),
        None => Err(PyAttributeError::new_err(format!("asyncio has no {name}"))),
    }
}

#[cfg(Py_3_12)]
mod watch {
    use std::os::raw::c_int;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    use pyo3::ffi::{self, PyObject};
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    pub static TASK_IS_STOCK: AtomicBool = AtomicBool::new(false);
    pub static FUTURE_IS_STOCK: AtomicBool = AtomicBool::new(false);
    static STOCK_TASK: AtomicPtr<PyObject> = AtomicPtr::new(null_mut());
    static STOCK_FUTURE: AtomicPtr<PyObject> = AtomicPtr::new(null_mut());

    type Callback =
        unsafe extern "C" fn(c_int, *mut PyObject, *mut PyObject, *mut PyObject) -> c_int;

    // CPython's watchers of dictionaries, public since 3.12, which PyO3 does not declare.
    libpython! {
        fn PyDict_AddWatcher(callback: Callback) -> c_int;
        fn PyDict_Watch(watcher: c_int, dict: *mut PyObject) -> c_int;
    }

    /// PyDict_EVENT_DELETED; the greater ones concern the dictionary as a whole.
    const DELETED: c_int = 2;

    pub fn begin(
        tasks: &Bound<'_, PyDict>,
        futures: &Bound<'_, PyDict>,
        stock_task: *mut PyObject,
        stock_future: *mut PyObject,
    ) {
        STOCK_TASK.store(stock_task, Ordering::Relaxed);
        STOCK_FUTURE.store(stock_future, Ordering::Relaxed);
        // SAFETY: the GIL is held and the dictionaries are alive. Interpreters have few watchers to give;
        // without one, every call looks the classes up.
        let watched = unsafe {
            let watcher = PyDict_AddWatcher(changed);
            let watched = watcher >= 0
                && PyDict_Watch(watcher, tasks.as_ptr()) == 0
                && PyDict_Watch(watcher, futures.as_ptr()) == 0;
            if !watched {
                ffi::PyErr_Clear();
            }
            watched
        };
        let is = |names: &Bound<'_, PyDict>, name: &str, stock: *mut PyObject| matches!(names.get_item(name), Ok(Some(class)) if class.as_ptr() == stock);
        TASK_IS_STOCK.store(watched && is(tasks, "Task", stock_task), Ordering::Relaxed);
        FUTURE_IS_STOCK.store(
            watched && is(futures, "Future", stock_future),
            Ordering::Relaxed,
        );
    }

    unsafe extern "C" fn changed(
        event: c_int,
        _: *mut PyObject,
        key: *mut PyObject,
        value: *mut PyObject,
    ) -> c_int {
        // SAFETY: called by the interpreter before the change, with the GIL held; key and value are alive
        // or null. Nothing here runs other code.
        unsafe {
            if event > DELETED {
                TASK_IS_STOCK.store(false, Ordering::Relaxed);
                FUTURE_IS_STOCK.store(false, Ordering::Relaxed);
            } else if !key.is_null() && ffi::PyUnicode_Check(key) != 0 {
                // Both modules have both names; in each, only its own class counts.
                if ffi::PyUnicode_CompareWithASCIIString(key, c"Task".as_ptr()) == 0 {
                    let stock = value == STOCK_TASK.load(Ordering::Relaxed);
                    TASK_IS_STOCK.store(stock, Ordering::Relaxed);
                } else if ffi::PyUnicode_CompareWithASCIIString(key, c"Future".as_ptr()) == 0 {
                    let stock = value == STOCK_FUTURE.load(Ordering::Relaxed);
                    FUTURE_IS_STOCK.store(stock, Ordering::Relaxed);
                }
            }
        }
        0
    }
}
