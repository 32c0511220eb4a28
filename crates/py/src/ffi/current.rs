//! Which task runs: asyncio's own record of it, written the fast way.
//!
//! `asyncio.current_task()`, `timeout()` and anyio ask asyncio, and stock tasks may run inside of ours,
//! so the record must be asyncio's. Up to 3.13 it is the dictionary `_asyncio._current_tasks`; since
//! 3.14 it is a field of the thread's state, which `_asyncio._swap_current_task` reads and writes.
//!
//! **Lazily left.** A step writes its task into the record and leaves it there; the next step of the
//! same turn overwrites it, and what is not a step (a handle, the end of the turn) clears it first.
//!
//! **The field of 3.14.** A call of the builtin costs as much as a small task. While a loop runs, its
//! thread's state does not move, so [`Current`] looks for the field once per run: it swaps two objects of
//! its own in through the builtin, and takes the first word of the thread's state that follows both. If there
//! is none, the builtin goes on doing it.

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::native::Native;

/// The record of one running loop, in the thread that runs it.
pub struct Current<'py> {
    py: Python<'py>,
    owner: Bound<'py, PyAny>,
    #[cfg(Py_3_14)]
    native: Option<&'static Native>,
    entered: bool,
    #[cfg(Py_3_14)]
    field: Option<std::ptr::NonNull<*mut PyObject>>,
    #[cfg(not(Py_3_14))]
    tasks: Option<Bound<'py, PyAny>>,
}

impl<'py> Current<'py> {
    /// For the loop that starts to run in this thread, and is its running loop.
    pub fn new(owner: &Bound<'py, PyAny>, native: Option<&'static Native>) -> PyResult<Self> {
        let py = owner.py();
        Ok(Self {
            py,
            owner: owner.clone(),
            #[cfg(Py_3_14)]
            native,
            entered: false,
            #[cfg(Py_3_14)]
            field: match native {
                // Where asyncio does not know the running loop (its Python half may stand in for the C
                // half), it is asyncio that has to say so, when a task is to run.
                Some(native) => find_field(py, native, owner).unwrap_or(None),
                None => None,
            },
            #[cfg(not(Py_3_14))]
            tasks: match native {
                Some(_) => Some(py.import("_asyncio")?.getattr("_current_tasks")?),
                None => None,
            },
        })
    }

    /// Records a task as the one that runs.
    ///
    /// # Safety
    ///
    /// `task` is alive; this is called in the thread and during the run that `new` was called for.
    #[inline(always)]
    pub unsafe fn enter(&mut self, task: *mut PyObject) -> PyResult<()> {
        self.entered = true;
        // SAFETY: passed on to the caller.
        unsafe { self.record(task) }
    }

    /// Records that no task runs.
    #[inline(always)]
    pub fn leave(&mut self) {
        if self.entered {
            self.entered = false;
            // SAFETY: None is alive.
            if let Err(error) = unsafe { self.record(ffi::Py_None()) } {
                error.write_unraisable(self.py, Some(&self.owner));
            }
        }
    }

    #[cfg(Py_3_14)]
    #[inline(always)]
    unsafe fn record(&mut self, task: *mut PyObject) -> PyResult<()> {
        // SAFETY: the field belongs to this thread's state, holds an owned reference or null, and is
        // consistent before the old task is dropped.
        unsafe {
            if let Some(field) = self.field {
                let new = if task == ffi::Py_None() {
                    std::ptr::null_mut()
                } else {
                    ffi::Py_NewRef(task)
                };
                let old = std::ptr::replace(field.as_ptr(), new);
                ffi::Py_XDECREF(old);
                return Ok(());
            }
            match self.native {
                Some(native) => swap(self.py, native, self.owner.as_ptr(), task).map(drop),
                None => Ok(()),
            }
        }
    }

    #[cfg(not(Py_3_14))]
    #[inline(always)]
    unsafe fn record(&mut self, task: *mut PyObject) -> PyResult<()> {
        let Some(tasks) = &self.tasks else {
            return Ok(());
        };
        // SAFETY: asyncio's dictionary; key and value are alive.
        let result = unsafe {
            if task != ffi::Py_None() {
                ffi::PyDict_SetItem(tasks.as_ptr(), self.owner.as_ptr(), task)
            } else if ffi::PyDict_Contains(tasks.as_ptr(), self.owner.as_ptr()) == 1 {
                ffi::PyDict_DelItem(tasks.as_ptr(), self.owner.as_ptr())
            } else {
                0
            }
        };
        if result < 0 {
            return Err(PyErr::fetch(self.py));
        }
        Ok(())
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Records a task, or None, as the one that runs on a loop; returns the one before, or None.
///
/// # Safety
///
/// `owner` and `task` are alive.
pub unsafe fn swap<'py>(
    py: Python<'py>,
    native: &Native,
    owner: *mut PyObject,
    task: *mut PyObject,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(swap) = &native.swap_current_task {
        let arguments = [owner, task];
        // SAFETY: the arguments are alive during the call.
        return unsafe {
            Bound::from_owned_ptr_or_err(
                py,
                ffi::PyObject_Vectorcall(
                    swap.as_ptr(),
                    arguments.as_ptr(),
                    2,
                    std::ptr::null_mut(),
                ),
            )
        };
    }
    // Python 3.11, which has no eager tasks.
    let tasks = py.import("_asyncio")?.getattr("_current_tasks")?;
    // SAFETY: as above.
    let (owner, task) = unsafe {
        (
            Bound::from_borrowed_ptr(py, owner),
            Bound::from_borrowed_ptr(py, task),
        )
    };
    let before = tasks.call_method1("pop", (&owner, py.None()))?;
    if !task.is_none() {
        tasks.set_item(owner, task)?;
    }
    Ok(before)
}

/// Where the search gives up, in bytes. The field of 3.14 and 3.15 lies about 900 into the state.
#[cfg(Py_3_14)]
const REACH: usize = 4096;

/// The field of this thread's state that holds the running task.
#[cfg(Py_3_14)]
fn find_field(
    py: Python<'_>,
    native: &Native,
    owner: &Bound<'_, PyAny>,
) -> PyResult<Option<std::ptr::NonNull<*mut PyObject>>> {
    // SAFETY: the GIL is held, so this thread has a state. Its words are read in order, compared, and not
    // followed; the search ends at the field, so it does not leave the state.
    unsafe {
        let state = ffi::PyThreadState_Get().cast::<*mut PyObject>();
        let first = Bound::from_owned_ptr_or_err(py, ffi::PyList_New(0))?;
        let second = Bound::from_owned_ptr_or_err(py, ffi::PyList_New(0))?;
        let before = swap(py, native, owner.as_ptr(), first.as_ptr())?;
        let mut found = None;
        for index in 0..REACH / size_of::<*mut PyObject>() {
            let word = state.add(index);
            if std::ptr::read_volatile(word) == first.as_ptr() {
                swap(py, native, owner.as_ptr(), second.as_ptr())?;
                if std::ptr::read_volatile(word) == second.as_ptr() {
                    found = std::ptr::NonNull::new(word);
                    break;
                }
                swap(py, native, owner.as_ptr(), first.as_ptr())?;
            }
        }
        swap(py, native, owner.as_ptr(), before.as_ptr())?;
        Ok(found)
    }
}
