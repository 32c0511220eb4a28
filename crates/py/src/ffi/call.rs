//! Calls into Python on hot paths: vectorcall, inside a given context, without tuples.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple, PyType};

use super::park;
use crate::event_loop::LoopCore;

/// A copy of the current context.
pub fn copy_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: returns a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }
}

/// Runs `f` inside a context.
pub fn in_context<'py, R>(
    context: &Bound<'py, PyAny>,
    f: impl FnOnce(Python<'py>) -> PyResult<R>,
) -> PyResult<R> {
    let py = context.py();
    // SAFETY: `context` is a context object; PyContext_Enter checks that and fails cleanly.
    if unsafe { ffi::PyContext_Enter(context.as_ptr()) } < 0 {
        return Err(PyErr::fetch(py));
    }
    let result = f(py);
    // SAFETY: entered above. No exception is set: `f` has turned it into its result.
    if unsafe { ffi::PyContext_Exit(context.as_ptr()) } < 0 {
        return Err(PyErr::fetch(py));
    }
    result
}

/// `object.name()`.
pub fn method0<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    let arguments = [object.as_ptr()];
    // SAFETY: `arguments` holds one borrowed reference that outlives the call.
    unsafe {
        Bound::from_owned_ptr_or_err(
            object.py(),
            ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                arguments.as_ptr(),
                1,
                std::ptr::null_mut(),
            ),
        )
    }
}

/// `function(*arguments)`, the last ones by these keywords.
#[inline]
pub fn vector<'py>(
    function: &Bound<'py, PyAny>,
    arguments: &[Bound<'py, PyAny>],
    keywords: Option<&Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyAny>> {
    let names = keywords.map_or(std::ptr::null_mut(), |names| names.as_ptr());
    let named = keywords.map_or(0, PyTupleMethods::len);
    // SAFETY: a Bound is a pointer to its object, and there are as many as is said; the keywords name the last ones.
    unsafe {
        Bound::from_owned_ptr_or_err(
            function.py(),
            ffi::PyObject_Vectorcall(
                function.as_ptr(),
                arguments.as_ptr().cast(),
                arguments.len() - named,
                names,
            ),
        )
    }
}

/// `object.name(argument)`.
#[inline]
pub fn method1<'py>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let arguments = [object.as_ptr(), argument.as_ptr()];
    // SAFETY: `arguments` holds two borrowed references that outlive the call.
    unsafe {
        Bound::from_owned_ptr_or_err(
            object.py(),
            ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                arguments.as_ptr(),
                2,
                std::ptr::null_mut(),
            ),
        )
    }
}

/// `object.name(*arguments)`, for up to six arguments.
#[inline]
pub fn method<'py, const N: usize>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    arguments: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    const { assert!(N <= 6, "six arguments fit") };
    let mut array = [std::ptr::null_mut(); 7];
    array[0] = object.as_ptr();
    for (slot, argument) in array[1..].iter_mut().zip(arguments) {
        *slot = argument.as_ptr();
    }
    // SAFETY: the array holds borrowed references that outlive the call.
    unsafe {
        Bound::from_owned_ptr_or_err(
            object.py(),
            ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                array.as_ptr(),
                N + 1,
                std::ptr::null_mut(),
            ),
        )
    }
}

/// The exception that the running code is handling: `sys.exception()`.
pub fn handled(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    // SAFETY: returns a new reference, or null without an exception set.
    unsafe { Bound::from_owned_ptr_or_opt(py, ffi::PyErr_GetHandledException()) }
}

/// How many blocks are open in which callbacks must keep the context that they are scheduled in.
static CONTEXTS_KEPT: AtomicUsize = AtomicUsize::new(0);

/// Has [`schedule`] copy contexts as asyncio does, until as many blocks were left as were entered.
pub fn keep_contexts(enter: bool) {
    if enter {
        CONTEXTS_KEPT.fetch_add(1, Ordering::Relaxed);
    } else {
        CONTEXTS_KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `event_loop.name(*arguments)`; on a loop of ours in a context of this thread that is there for nothing else.
///
/// For callbacks that only touch futures and tasks, whose own callbacks bring their contexts along: a
/// copy of the current context for each of them would be the larger part of their cost.
pub fn schedule<'py, const N: usize>(
    event_loop: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    arguments: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let shares = CONTEXTS_KEPT.load(Ordering::Relaxed) == 0
        && event_loop
            .cast::<LoopCore>()
            .is_ok_and(|core| core.get().has_own_timers(py, event_loop));
    if !shares {
        // Any other loop, or an override, may not know the keyword here, and asyncio does not use it either.
        return method(event_loop, name, arguments);
    }
    method_in_shared_context(event_loop, name, arguments, own_context(py)?)
}

/// `future.add_done_callback(callback)`, the callback to run in a context that is there for nothing else.
pub fn add_done_callback<'py>(
    future: &Bound<'py, PyAny>,
    callback: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let py = future.py();
    let context = own_context(py)?;
    if park::add_first_callback(future, callback, &context) {
        return Ok(());
    }
    let name = intern!(py, "add_done_callback");
    method_in_shared_context(future, name, [callback], context).map(drop)
}

/// `object.name(*arguments, context=context)`.
fn method_in_shared_context<'py, const N: usize>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    arguments: [&Bound<'py, PyAny>; N],
    context: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    const { assert!(N <= 5, "five arguments and the context fit") };
    static KEYWORDS: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let py = object.py();
    let keywords = KEYWORDS.get_or_try_init(py, || -> PyResult<Py<PyTuple>> {
        Ok(PyTuple::new(py, ["context"])?.unbind())
    })?;
    let mut array = [std::ptr::null_mut(); 7];
    array[0] = object.as_ptr();
    for (slot, argument) in array[1..].iter_mut().zip(arguments) {
        *slot = argument.as_ptr();
    }
    array[N + 1] = context.as_ptr();
    // SAFETY: the array holds borrowed references that outlive the call; the last one is the keyword's.
    unsafe {
        Bound::from_owned_ptr_or_err(
            py,
            ffi::PyObject_VectorcallMethod(name.as_ptr(), array.as_ptr(), N + 1, keywords.as_ptr()),
        )
    }
}

/// The context for a callback that only touches futures and tasks: [`own_context`], or a copy of the current
/// one while it must be kept.
pub fn callback_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    if CONTEXTS_KEPT.load(Ordering::Relaxed) == 0 {
        own_context(py)
    } else {
        copy_context(py)
    }
}

/// The context of this thread for callbacks that only touch futures and tasks.
fn own_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    thread_local! {
        // Of this thread, since a context can only be entered once at a time.
        static CONTEXT: OnceCell<Py<PyAny>> = const { OnceCell::new() };
    }
    CONTEXT.with(|context| {
        if let Some(context) = context.get() {
            return Ok(context.bind(py).clone());
        }
        // SAFETY: returns a new reference, or null with an exception set.
        let new = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_New())? };
        Ok(context.get_or_init(|| new.unbind()).bind(py).clone())
    })
}

/// A new instance of a class that derives from `native`, a class of ours whose `__new__` takes any arguments,
/// without its `__init__`. None: the class is constructed in another way than `native`.
pub fn bare_instance<'py>(
    class: &Bound<'py, PyType>,
    native: &Bound<'py, PyType>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: live types, whose slots only the interpreter writes, with the GIL held.
    unsafe {
        let (kind, known) = (class.as_type_ptr(), native.as_type_ptr());
        let address = |slot: Option<ffi::newfunc>| slot.map(|slot| slot as *const ());
        let starts = |slot: Option<ffi::initproc>| slot.map(|slot| slot as *const ());
        let alike = address((*kind).tp_new) == address((*known).tp_new)
            && starts((*kind).tp_init) == starts((*known).tp_init);
        let (true, Some(new)) = (alike, (*kind).tp_new) else {
            return Ok(None);
        };
        let nothing = PyTuple::empty(class.py());
        let object = new(kind, nothing.as_ptr(), std::ptr::null_mut());
        Bound::from_owned_ptr_or_err(class.py(), object).map(Some)
    }
}

/// A builtin function of one argument, with an object as what it is bound to.
///
/// The definition is that of a METH_O function.
pub fn bound_function<'py>(
    definition: &'static Definition,
    bound_to: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let pointer = std::ptr::from_ref(&definition.0).cast_mut();
    // SAFETY: the definition is static and never written to; the object is alive.
    unsafe {
        Bound::from_owned_ptr_or_err(
            bound_to.py(),
            ffi::PyCFunction_NewEx(pointer, bound_to.as_ptr(), std::ptr::null_mut()),
        )
    }
}

/// What a builtin function is made of.
pub struct Definition(ffi::PyMethodDef);

// SAFETY: definitions are constant; CPython only reads them.
unsafe impl Sync for Definition {}

/// The body of a builtin function of one argument that is bound to a `Receiver`.
pub trait Callback {
    type Receiver: pyo3::PyClass;

    fn call<'py>(
        receiver: &Bound<'py, Self::Receiver>,
        argument: &Bound<'py, PyAny>,
    ) -> PyResult<()>;
}

impl Definition {
    pub const fn of<C: Callback>(name: &'static std::ffi::CStr) -> Self {
        Self(ffi::PyMethodDef {
            ml_name: name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer {
                PyCFunction: callback::<C>,
            },
            ml_flags: ffi::METH_O,
            ml_doc: std::ptr::null(),
        })
    }

    /// That of a callback of futures that [`super::told`] calls directly.
    pub const fn told<C: Callback>(name: &'static std::ffi::CStr) -> Self {
        let mut definition = Self::of::<C>(name);
        definition.0.ml_doc = TOLD.as_ptr();
        definition
    }
}

/// The documentation of such callbacks, by whose address they are known.
static TOLD: &std::ffi::CStr = c"Called with a future that is done.";

/// Whether an object is a builtin function made of a [`Definition::told`].
///
/// # Safety
///
/// A live object.
#[inline(always)]
pub unsafe fn is_told(callback: *mut ffi::PyObject) -> bool {
    // SAFETY: passed on to the caller; the class says that it is a builtin function, which has a definition.
    unsafe {
        ffi::Py_TYPE(callback) == &raw mut ffi::PyCFunction_Type
            && (*(*callback.cast::<ffi::PyCFunctionObject>()).m_ml).ml_doc == TOLD.as_ptr()
    }
}

unsafe extern "C" fn callback<C: Callback>(
    object: *mut ffi::PyObject,
    argument: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called by the interpreter with live objects; the class of the first one is checked.
    unsafe {
        super::guard(|py| {
            let receiver = Bound::from_borrowed_ptr(py, object);
            let argument = Bound::from_borrowed_ptr(py, argument);
            C::call(receiver.cast::<C::Receiver>()?, &argument)?;
            Ok(py.None().into_bound(py))
        })
    }
}

/// Drops an exception that was dealt with, now. Outside of PyO3's own calls it would otherwise keep
/// its dead until somebody makes one.
pub fn discard(py: Python<'_>, error: PyErr) {
    drop(error.into_value(py).into_bound(py));
}

/// Runs `f`, which may call Python, while an exception may be under way: in the destruction of an object.
pub fn undisturbed<R>(_py: Python<'_>, f: impl FnOnce() -> R) -> R {
    // SAFETY: the GIL is held, as the token shows; what is set aside is put back.
    unsafe {
        let under_way = set_aside();
        let result = f();
        put_back(under_way);
        result
    }
}

/// Whether an object is a coroutine of the interpreter's own.
pub fn is_exact_coroutine(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object.
    unsafe { ffi::PyCoro_CheckExact(object.as_ptr()) != 0 }
}

/// Hides an object from the garbage collector.
///
/// The caller vouches for that: `object` refers to nothing that could lead back to it, and is
/// [shown](show_to_collector) as soon as it does.
pub fn hide_from_collector(object: &Bound<'_, PyAny>) {
    // SAFETY: a live object of a collected type, as every class of ours that is hidden; it may be untracked at
    // any time with the GIL held, and its deallocator copes with that.
    unsafe { ffi::PyObject_GC_UnTrack(object.as_ptr().cast()) };
}

/// Shows an object to the garbage collector that may have been hidden from it.
pub fn show_to_collector(object: &Bound<'_, PyAny>) {
    // SAFETY: a live object of a collected type whose fields are in order, since it can be borrowed.
    unsafe {
        if ffi::PyObject_GC_IsTracked(object.as_ptr()) == 0 {
            ffi::PyObject_GC_Track(object.as_ptr().cast());
        }
    }
}

/// Whether an object may be part of a cycle.
pub fn is_collected(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object.
    unsafe { ffi::PyObject_IS_GC(object.as_ptr()) != 0 }
}

/// Whether a reference is the only one to its object.
pub fn is_only_reference(_py: Python<'_>, object: &Py<PyAny>) -> bool {
    // SAFETY: a live object, and the GIL is held.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) == 1 }
}

/// Delivers pending signals to their Python handlers, if this is the thread that runs them.
pub fn check_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}

/// What asyncio says of a loop that is closed.
pub fn closed_error() -> PyErr {
    PyRuntimeError::new_err("Event loop is closed")
}

/// Takes the exception that is set, with its traceback.
pub fn take_raised(py: Python<'_>) -> Bound<'_, PyAny> {
    // SAFETY: an exception is set, as callers have made sure; the references are owned.
    unsafe {
        #[cfg(Py_3_12)]
        return Bound::from_owned_ptr(py, ffi::PyErr_GetRaisedException());
        #[cfg(not(Py_3_12))]
        {
            let (mut class, mut value, mut traceback) = (
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            );
            ffi::PyErr_Fetch(&mut class, &mut value, &mut traceback);
            ffi::PyErr_NormalizeException(&mut class, &mut value, &mut traceback);
            if !traceback.is_null() {
                ffi::PyException_SetTraceback(value, traceback);
            }
            ffi::Py_XDECREF(class);
            ffi::Py_XDECREF(traceback);
            Bound::from_owned_ptr(py, value)
        }
    }
}

/// An exception that was under way, put aside while other code runs.
#[cfg(Py_3_12)]
pub type Aside = *mut ffi::PyObject;
#[cfg(not(Py_3_12))]
pub type Aside = [*mut ffi::PyObject; 3];

/// Takes the exception that is set, if any, so that other code can run.
///
/// # Safety
///
/// The GIL is held, and what is returned is put back.
pub unsafe fn set_aside() -> Aside {
    // SAFETY: passed on to the caller.
    unsafe {
        #[cfg(Py_3_12)]
        return ffi::PyErr_GetRaisedException();
        #[cfg(not(Py_3_12))]
        {
            let mut aside = [std::ptr::null_mut(); 3];
            let [class, value, traceback] = &mut aside;
            ffi::PyErr_Fetch(class, value, traceback);
            aside
        }
    }
}

/// Sets an exception again that was set aside.
///
/// # Safety
///
/// The GIL is held; `aside` comes from [`set_aside`] and is put back once.
pub unsafe fn put_back(aside: Aside) {
    // SAFETY: passed on to the caller.
    unsafe {
        #[cfg(Py_3_12)]
        ffi::PyErr_SetRaisedException(aside);
        #[cfg(not(Py_3_12))]
        {
            let [class, value, traceback] = aside;
            ffi::PyErr_Restore(class, value, traceback);
        }
    }
}
