//! Shadows: the frames of asyncio's functions that an operation stands for, for those who look.
//!
//! Debuggers, `Task.get_stack()` and asyncio's call graphs walk from a coroutine to what it awaits (`cr_await`), and
//! note the frame of each (`cr_frame`). An operation has no frame, and what asyncio does in two or three coroutines
//! (`wait` in `_wait`, `Barrier.wait` in `_wait`, `Condition.wait_for` and `Condition.wait`) it does in one. So
//! whoever looks gets *shadows*: coroutines of asyncio's functions that are called and never begin, one for the
//! operation itself and one for each function that would be waiting inside of it now
//! ([`Coroutine::inside`](super::function::Coroutine::inside)). Their frames have the right code and stand at its
//! first line.
//!
//! Nothing is made before somebody looks. What was made is kept until the operation ends, since a frame knows its
//! coroutine (`f_generator`) only for as long as this lives, and is made anew when the operation has moved on to
//! another function. It is kept beside the operation, in a table by address, of which the operation says by one bit
//! that it is in there: there can be one operation for each task that sleeps, and hardly ever a look at any. The
//! entry leaves the table before the operation can be used for another call. What it refers to is the
//! operation's: that visits it on behalf of the garbage collector, and lets go of it.

use std::collections::BTreeMap;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit, ffi};

use super::call;
use super::cell::LoopCell;

/// A function of asyncio's that would be waiting inside of an operation, and its first argument.
pub struct Within<'py> {
    module: &'static str,
    qualname: &'static str,
    first: Bound<'py, PyAny>,
}

impl<'py> Within<'py> {
    pub fn new(module: &'static str, qualname: &'static str, first: &Bound<'py, PyAny>) -> Self {
        Self {
            module,
            qualname,
            first: first.clone(),
        }
    }

    /// A method of one of the classes in `tideloop.stock`.
    pub fn stock(qualname: &'static str, receiver: &Bound<'py, PyAny>) -> Self {
        Self::new("tideloop.stock", qualname, receiver)
    }

    /// The function; nothing if this Python has no such coroutine function.
    fn function(&self) -> PyResult<Option<Bound<'py, PyAny>>> {
        const CO_COROUTINE: u32 = 0x80;
        let py = self.first.py();
        let mut found = py.import(self.module)?.into_any();
        for name in self.qualname.split('.') {
            match found.getattr_opt(PyString::intern(py, name))? {
                Some(next) => found = next,
                None => return Ok(None),
            }
        }
        let Some(code) = found.getattr_opt(intern!(py, "__code__"))? else {
            return Ok(None);
        };
        let flags: u32 = code.getattr(intern!(py, "co_flags"))?.extract()?;
        Ok((flags & CO_COROUTINE != 0).then_some(found))
    }
}

/// A coroutine that never begins, and that nobody misses when it goes.
struct Shadow(Option<Py<PyAny>>);

impl Shadow {
    /// Of a coroutine function, with these first arguments; the other ones are None.
    fn of<'py>(
        function: &Bound<'py, PyAny>,
        given: impl Fn(usize) -> Option<Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let py = function.py();
        let code = function.getattr(intern!(py, "__code__"))?;
        let count: usize = code.getattr(intern!(py, "co_argcount"))?.extract()?;
        let values: Vec<_> = (0..count).map(given).collect();
        let coroutine = function.call1(PyTuple::new(py, values)?)?;
        Ok(Self(Some(coroutine.unbind())))
    }

    fn attribute<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match &self.0 {
            Some(coroutine) => coroutine.bind(py).getattr(name),
            None => Ok(py.None().into_bound(py)),
        }
    }

    fn is_of(&self, function: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = function.py();
        let code = function.getattr(intern!(py, "__code__"))?;
        Ok(self.attribute(py, intern!(py, "cr_code"))?.is(&code))
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        let Some(coroutine) = self.0.take() else {
            return;
        };
        // Without an interpreter nobody hears a warning.
        Python::try_attach(|py| {
            call::undisturbed(py, || {
                let coroutine = coroutine.into_bound(py);
                // Closing a coroutine that has not begun runs no code of anybody.
                if let Err(error) = call::method0(&coroutine, intern!(py, "close")) {
                    error.write_unraisable(py, Some(&coroutine));
                }
            });
        });
    }
}

/// What `cr_await` shows where asyncio would await a coroutine of its own.
#[pyclass(frozen, module = "tideloop._tideloop", name = "OperationFrame")]
pub struct Inner {
    shadow: Shadow,
    next: Py<PyAny>,
}

#[pymethods]
impl Inner {
    #[getter]
    fn cr_await(&self, py: Python<'_>) -> Py<PyAny> {
        self.next.clone_ref(py)
    }

    #[getter]
    fn cr_frame<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shadow.attribute(py, intern!(py, "cr_frame"))
    }

    #[getter]
    fn cr_code<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shadow.attribute(py, intern!(py, "cr_code"))
    }

    #[getter]
    fn cr_running(&self) -> bool {
        false
    }

    #[getter]
    fn cr_suspended(&self) -> bool {
        true
    }

    #[getter]
    fn __name__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shadow.attribute(py, intern!(py, "__name__"))
    }

    #[getter]
    fn __qualname__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shadow.attribute(py, intern!(py, "__qualname__"))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<frame of {}>", self.__qualname__(py)?.str()?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.shadow.0)?;
        visit.call(&self.next)
    }
}

/// What was made for one operation.
#[derive(Default)]
struct Looks {
    own: Option<Shadow>,
    inner: Option<Py<Inner>>,
}

/// By the addresses of operations that are alive.
static LOOKS: LoopCell<BTreeMap<usize, Looks>> = LoopCell::new(BTreeMap::new());

/// The frame of an operation itself.
pub fn own<'py>(
    operation: usize,
    template: &Bound<'py, PyAny>,
    given: impl Fn(usize) -> Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = template.py();
    let known = LOOKS.with(py, |looks| {
        let own = looks.get(&operation)?.own.as_ref()?;
        Some(own.0.as_ref()?.bind(py).clone())
    });
    let coroutine = match known {
        Some(coroutine) => coroutine,
        None => {
            let shadow = Shadow::of(template, given)?;
            let coroutine = shadow.0.as_ref().map(|it| it.bind(py).clone());
            let old = LOOKS.with(py, |looks| {
                looks.entry(operation).or_default().own.replace(shadow)
            });
            drop(old);
            coroutine.unwrap_or_else(|| py.None().into_bound(py))
        }
    };
    coroutine.getattr(intern!(py, "cr_frame"))
}

/// What an operation awaits: the first of the functions inside of it, or what it waits for.
pub fn inner<'py>(
    operation: usize,
    within: &[Within<'py>],
    awaited: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = awaited.py();
    let mut functions = Vec::with_capacity(within.len());
    for within in within {
        if let Some(function) = within.function()? {
            functions.push((function, &within.first));
        }
    }
    if functions.is_empty() {
        return Ok(awaited);
    }
    let known = LOOKS.with(py, |looks| {
        let inner = looks.get(&operation)?.inner.as_ref()?;
        Some(inner.bind(py).clone())
    });
    if let Some(known) = known
        && still_holds(&known, &functions, &awaited)?
    {
        return Ok(known.into_any());
    }
    let mut next = awaited;
    let mut made = None;
    for (function, first) in functions.iter().rev() {
        let shadow = Shadow::of(function, |index| (index == 0).then(|| (*first).clone()))?;
        let next_one = next.unbind();
        let inner = Bound::new(
            py,
            Inner {
                shadow,
                next: next_one,
            },
        )?;
        next = inner.clone().into_any();
        made = Some(inner);
    }
    let made = made.map(Bound::unbind);
    let old = LOOKS.with(py, |looks| {
        std::mem::replace(&mut looks.entry(operation).or_default().inner, made)
    });
    drop(old.map(|old| old.into_bound(py)));
    Ok(next)
}

/// Whether what was made before is of the same functions, and of what is awaited now.
fn still_holds<'py>(
    known: &Bound<'py, Inner>,
    functions: &[(Bound<'py, PyAny>, &Bound<'py, PyAny>)],
    awaited: &Bound<'py, PyAny>,
) -> PyResult<bool> {
    let py = awaited.py();
    let mut at = known.clone().into_any();
    for (function, _) in functions {
        let Ok(inner) = at.cast::<Inner>() else {
            return Ok(false);
        };
        if !inner.get().shadow.is_of(function)? {
            return Ok(false);
        }
        let next = inner.get().next.bind(py).clone();
        at = next;
    }
    Ok(at.is(awaited))
}

/// Lets go of what was made for an operation. An exception that is under way stays.
#[cold]
pub fn forget(py: Python<'_>, operation: usize) {
    if let Some(looks) = LOOKS.with(py, |looks| looks.remove(&operation)) {
        drop(looks.own);
        drop(looks.inner.map(|inner| inner.into_bound(py)));
    }
}

/// Tells what was made for an operation to the collector, until it returns something else than nought.
#[cold]
pub fn traverse(operation: usize, visit: impl Fn(*mut ffi::PyObject) -> i32) -> i32 {
    LOOKS
        .try_with(|looks| {
            let Some(looks) = looks.get(&operation) else {
                return 0;
            };
            let own = looks.own.as_ref().and_then(|own| own.0.as_ref());
            let own = own.map(Py::as_ptr);
            let inner = looks.inner.as_ref().map(Py::as_ptr);
            for object in [own, inner].into_iter().flatten() {
                let result = visit(object);
                if result != 0 {
                    return result;
                }
            }
            0
        })
        .unwrap_or(0)
}
