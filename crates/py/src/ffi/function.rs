//! Function: a native function or method that looks like the Python function it stands for.
//!
//! Programs look at asyncio's functions: `inspect.iscoroutinefunction(queue.get)`, signatures in
//! frameworks that inject arguments, documentation. A Function therefore has a *template*, the Python
//! function that it replaces, and answers all such questions with the template's answers. The template
//! also serves what the native body does not: calls on a receiver of another class, calls on a subclass
//! that overrides what the body would do directly, and the wording of errors about arguments.
//!
//! What a Function does is one of [`ENTRIES`](crate::primitives::ENTRIES), made from types that
//! implement [`Coroutine`] or [`Method`]. The type of the receiver is checked here, once per call,
//! so that the bodies get it with its type.

use std::cell::Cell;
use std::os::raw::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::{PyLookupError, PyTypeError};
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use pyo3::{Borrowed, PyTypeInfo};

use super::cell::LoopCell;
use super::guard;
use super::operation::{self, AtOnce, Frame, Input, Step};
use super::shadows::Within;

/// Arguments kept by an operation: the receiver and two more. There may be one for each task that sleeps.
pub const KEPT: usize = 3;
/// Parameters that any of the functions has at most.
const MOST: usize = 4;

/// The body of a coroutine function: a state machine that is advanced by `await`.
pub trait Coroutine {
    /// The class of the first argument; `PyAny` for a function that is no method.
    type Receiver: PyTypeInfo;

    /// Whether even instances of the very class, not of a subclass, can be diverted.
    const ASK_ALWAYS: bool = false;

    /// Whether keyword-only parameters are served as well, behind the positional ones.
    const KEYWORDS: bool = false;

    /// How many arguments the body looks at, the receiver among them; `__aexit__` mostly looks at no other.
    const KEEPS: usize = KEPT;

    /// Whether the arguments from the last kept one on, if they are given, share its place: see
    /// [`Frame::unpack`].
    const PACKS: bool = false;

    /// Whether the template serves this receiver.
    fn diverted(_receiver: &Bound<'_, Self::Receiver>) -> bool {
        false
    }

    /// Does the whole work at once, if it needs neither Python nor waiting nor an error; else nothing.
    #[inline(always)]
    fn at_once<'py>(
        _receiver: &Bound<'py, Self::Receiver>,
        _frame: &Frame<'_, 'py>,
    ) -> AtOnce<'py> {
        AtOnce::No
    }

    /// Takes the next step.
    fn advance<'py>(
        receiver: &Bound<'py, Self::Receiver>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>>;

    /// In which functions the template would be waiting now, outermost first; asked when somebody looks at the
    /// frames of an operation that waits.
    fn inside<'py>(
        _receiver: &Bound<'py, Self::Receiver>,
        _frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        Ok(Vec::new())
    }
}

/// The body of a plain method or function.
pub trait Method {
    /// The class of the first argument; `PyAny` for a function that is no method.
    type Receiver: PyTypeInfo;

    /// Whether even instances of the very class, not of a subclass, can be diverted.
    const ASK_ALWAYS: bool = false;

    /// Whether keyword-only parameters are served as well, behind the positional ones.
    const KEYWORDS: bool = false;

    /// Whether the template serves this receiver.
    fn diverted(_receiver: &Bound<'_, Self::Receiver>) -> bool {
        false
    }

    /// Does it. `rest` is what was given behind the receiver; parameters that were not given are absent.
    fn call<'py>(
        receiver: &Bound<'py, Self::Receiver>,
        rest: &Rest<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>>;
}

/// The body of a function that takes any number of positional arguments and one keyword.
pub trait Variadic {
    /// The keyword.
    const KEYWORD: &'static str;

    /// Does it, or leaves it to the template by returning nothing.
    fn call<'py>(
        py: Python<'py>,
        values: &[Borrowed<'_, 'py, PyAny>],
        keyword: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>>;
}

/// The arguments behind the first one.
pub struct Rest<'a, 'py> {
    py: Python<'py>,
    values: &'a [*mut PyObject],
}

impl<'py> Rest<'_, 'py> {
    /// The argument at an index, if it was given.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Bound<'py, PyAny>> {
        let value = *self.values.get(index)?;
        // SAFETY: null or a reference that the caller keeps alive during the call.
        unsafe { Bound::from_borrowed_ptr_or_opt(self.py, value) }
    }
}

type Advance = for<'a, 'b, 'c, 'py> unsafe fn(
    &'a Bound<'py, PyAny>,
    &'b Frame<'c, 'py>,
    Input,
) -> PyResult<Step<'py>>;
type Try =
    for<'a, 'b, 'c, 'py> unsafe fn(&'a Bound<'py, PyAny>, &'b Frame<'c, 'py>) -> *mut PyObject;
type Inside = for<'a, 'b, 'c, 'py> unsafe fn(
    &'a Bound<'py, PyAny>,
    &'b Frame<'c, 'py>,
) -> PyResult<Vec<Within<'py>>>;
type Call = for<'a, 'b, 'c, 'py> unsafe fn(
    &'a Bound<'py, PyAny>,
    &'b Rest<'c, 'py>,
) -> PyResult<Bound<'py, PyAny>>;
type Many = for<'a, 'b, 'py> fn(
    Python<'py>,
    &'a [Borrowed<'a, 'py, PyAny>],
    Option<&'b Bound<'py, PyAny>>,
) -> PyResult<Option<Bound<'py, PyAny>>>;
type Diverted = for<'a, 'py> unsafe fn(&'a Bound<'py, PyAny>) -> bool;

#[derive(Clone, Copy)]
enum Body {
    Coroutine(Advance, Try, Inside),
    Method(Call),
    Variadic(&'static str, Many),
}

/// One native function, before it has a template.
pub struct Entry {
    name: &'static str,
    receiver: fn(Python<'_>) -> *mut ffi::PyTypeObject,
    diverted: Diverted,
    ask_always: bool,
    keywords: bool,
    keeps: usize,
    packs: bool,
    /// Whether it is a callback of futures that [`super::told`] calls directly.
    told: bool,
    body: Body,
}

impl Entry {
    /// A coroutine function.
    pub const fn coroutine<C: Coroutine>(name: &'static str) -> Self {
        Self {
            name,
            receiver: C::Receiver::type_object_raw,
            diverted: coroutine_diverted::<C>,
            ask_always: C::ASK_ALWAYS,
            keywords: C::KEYWORDS,
            keeps: C::KEEPS,
            packs: C::PACKS,
            told: false,
            body: Body::Coroutine(advance::<C>, at_once::<C>, inside::<C>),
        }
    }

    /// A function of any number of arguments.
    pub const fn variadic<V: Variadic>(name: &'static str) -> Self {
        Self {
            name,
            receiver: PyAny::type_object_raw,
            diverted: never,
            ask_always: false,
            keywords: false,
            keeps: KEPT,
            packs: false,
            told: false,
            body: Body::Variadic(V::KEYWORD, |py, values, keyword| {
                V::call(py, values, keyword)
            }),
        }
    }

    /// A plain method or function.
    pub const fn method<M: Method>(name: &'static str) -> Self {
        Self {
            name,
            receiver: M::Receiver::type_object_raw,
            diverted: method_diverted::<M>,
            ask_always: M::ASK_ALWAYS,
            keywords: M::KEYWORDS,
            keeps: KEPT,
            packs: false,
            told: false,
            body: Body::Method(call::<M>),
        }
    }

    /// A plain method that futures call when they are done, to whom neither the context nor the task that
    /// it is called in matters unless the future has failed.
    pub const fn told<M: Method>(name: &'static str) -> Self {
        Self {
            told: true,
            ..Self::method::<M>(name)
        }
    }
}

/// # Safety
///
/// None is needed; the signature is that of the others.
unsafe fn never(_: &Bound<'_, PyAny>) -> bool {
    false
}

/// # Safety
///
/// Here and in the next four: the receiver is an instance of the body's class, which [`fitting`] has
/// checked, or which an operation has kept since then.
unsafe fn coroutine_diverted<C: Coroutine>(receiver: &Bound<'_, PyAny>) -> bool {
    // SAFETY: as above.
    C::diverted(unsafe { receiver.cast_unchecked() })
}

/// A panic, which would be a bug of ours, means that nothing was done. It is caught here, where the compiler knows the body
/// and mostly that there is none.
///
/// # Safety
///
/// See [`coroutine_diverted`].
unsafe fn at_once<'py, C: Coroutine>(
    receiver: &Bound<'py, PyAny>,
    frame: &Frame<'_, 'py>,
) -> *mut PyObject {
    // SAFETY: as above. The value is handed over as a new reference.
    unsafe {
        let receiver = receiver.cast_unchecked();
        let done = catch_unwind(AssertUnwindSafe(|| C::at_once(receiver, frame)));
        match done.unwrap_or(AtOnce::No) {
            AtOnce::No => null_mut(),
            // Immortal since 3.12.
            #[cfg(Py_3_12)]
            AtOnce::Finish => ffi::Py_None(),
            #[cfg(not(Py_3_12))]
            AtOnce::Finish => ffi::Py_NewRef(ffi::Py_None()),
            AtOnce::Return(value) => value.into_ptr(),
        }
    }
}

/// # Safety
///
/// See [`coroutine_diverted`].
unsafe fn advance<'py, C: Coroutine>(
    receiver: &Bound<'py, PyAny>,
    frame: &Frame<'_, 'py>,
    input: Input,
) -> PyResult<Step<'py>> {
    // SAFETY: as above.
    C::advance(unsafe { receiver.cast_unchecked() }, frame, input)
}

/// # Safety
///
/// See [`coroutine_diverted`].
unsafe fn inside<'py, C: Coroutine>(
    receiver: &Bound<'py, PyAny>,
    frame: &Frame<'_, 'py>,
) -> PyResult<Vec<Within<'py>>> {
    // SAFETY: as above.
    C::inside(unsafe { receiver.cast_unchecked() }, frame)
}

/// # Safety
///
/// See [`coroutine_diverted`].
unsafe fn method_diverted<M: Method>(receiver: &Bound<'_, PyAny>) -> bool {
    // SAFETY: as above.
    M::diverted(unsafe { receiver.cast_unchecked() })
}

/// # Safety
///
/// See [`coroutine_diverted`].
unsafe fn call<'py, M: Method>(
    receiver: &Bound<'py, PyAny>,
    rest: &Rest<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as above.
    M::call(unsafe { receiver.cast_unchecked() }, rest)
}

#[repr(C)]
pub struct FunctionObject {
    head: PyObject,
    weakrefs: *mut PyObject,
    vectorcall: Option<ffi::vectorcallfunc>,
    template: *mut PyObject,
    name: *mut PyObject,
    qualname: *mut PyObject,
    entry: &'static Entry,
    /// From the entry, at hand.
    at_once: Option<Try>,
    diverted: Diverted,
    ask_always: bool,
    /// An operation that has ended, to be filled again.
    last: Cell<*mut PyObject>,
    /// Whether it keeps operations: until the collector finds that it is garbage.
    keeps: Cell<bool>,
    /// The operation that was handed out last, if the collector does not know it yet; borrowed.
    unseen: Cell<*mut PyObject>,
    /// The native class of the receiver.
    receiver: *mut ffi::PyTypeObject,
    /// The Python class that the function was defined in: that of most receivers.
    owner: *mut ffi::PyTypeObject,
    /// Parameters: how many must be given, how many can be given by position, and how many there are.
    least: u8,
    positional: u8,
    most: u8,
    /// Of an operation's arguments; none if they are to be packed.
    keeps_plainly: u8,
    /// Of those of a call with all positional parameters; none if the receiver must be asked, too.
    keeps_at_once: u8,
}

impl FunctionObject {
    /// Advances an operation that this function has made.
    ///
    /// # Safety
    ///
    /// `receiver` is the first argument of the call that made the operation.
    #[inline(always)]
    pub unsafe fn advance<'py>(
        &self,
        receiver: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match self.entry.body {
            // SAFETY: the caller vouches for the receiver.
            Body::Coroutine(advance, ..) => unsafe { advance(receiver, frame, input) },
            _ => Err(PyTypeError::new_err("not a coroutine function")),
        }
    }

    /// The functions that an operation which this function has made would be waiting in.
    ///
    /// # Safety
    ///
    /// `receiver` is the first argument of the call that made the operation, or what its body has put there.
    pub unsafe fn inside<'py>(
        &self,
        receiver: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> PyResult<Vec<Within<'py>>> {
        match self.entry.body {
            // SAFETY: the caller vouches for the receiver.
            Body::Coroutine(_, _, inside) => unsafe { inside(receiver, frame) },
            _ => Ok(Vec::new()),
        }
    }

    /// Tries to do all the work of an operation that this function has made: its value as a new reference.
    /// Null: nothing was done.
    ///
    /// # Safety
    ///
    /// `receiver` is the first argument of the call that made the operation.
    #[inline(always)]
    pub unsafe fn at_once<'py>(
        &self,
        receiver: &Bound<'py, PyAny>,
        frame: &Frame<'_, 'py>,
    ) -> *mut PyObject {
        match self.at_once {
            // SAFETY: the caller vouches for the receiver.
            Some(at_once) => unsafe { at_once(receiver, frame) },
            None => null_mut(),
        }
    }

    /// Whether the native body serves a receiver.
    ///
    /// # Safety
    ///
    /// A live object.
    #[inline(always)]
    unsafe fn serves(&self, py: Python<'_>, receiver: *mut PyObject) -> bool {
        // SAFETY: as above; its class is checked before it is taken for one of ours.
        unsafe {
            let kind = ffi::Py_TYPE(receiver);
            if kind == self.owner && !self.ask_always {
                return true;
            }
            let fits = kind == self.owner
                || kind == self.receiver
                || self.receiver == &raw mut ffi::PyBaseObject_Type
                || ffi::PyType_IsSubtype(kind, self.receiver) != 0;
            fits && !(self.diverted)(&Bound::from_borrowed_ptr(py, receiver))
        }
    }

    /// Hands over the operation that was kept, or null.
    #[inline(always)]
    pub fn take_last(&self) -> *mut PyObject {
        self.last.replace(null_mut())
    }

    /// The operation that is kept, or null.
    #[inline(always)]
    pub fn last(&self) -> *mut PyObject {
        self.last.get()
    }

    /// Whether there is room for an operation that has ended.
    #[inline(always)]
    pub fn wants_last(&self) -> bool {
        self.last.get().is_null() && self.keeps.get()
    }

    /// Keeps an operation that has ended, unseen by the collector; the reference is handed over.
    ///
    /// # Safety
    ///
    /// A live operation of this function, which [wants](Self::wants_last) it.
    #[inline(always)]
    pub unsafe fn keep_last(&self, operation: *mut PyObject) {
        if self.unseen.get() == operation {
            self.unseen.set(null_mut());
        } else {
            // SAFETY: a live object of a type with garbage collection.
            unsafe { ffi::PyObject_GC_UnTrack(operation.cast()) };
        }
        self.last.set(operation);
    }

    /// An operation that was kept is handed out again.
    ///
    /// # Safety
    ///
    /// A live operation of this function that the collector does not know.
    #[inline(always)]
    pub unsafe fn hand_out(&self, operation: *mut PyObject) {
        if !self.unseen.get().is_null() {
            // SAFETY: the one before, which has not ended yet.
            unsafe { self.show_unseen() };
        }
        self.unseen.set(operation);
    }

    /// Lets the collector know this operation, if it does not yet.
    ///
    /// # Safety
    ///
    /// A live operation of this function.
    #[inline(always)]
    pub unsafe fn show(&self, operation: *mut PyObject) {
        if self.unseen.get() == operation {
            // SAFETY: that one.
            unsafe { self.show_unseen() };
        }
    }

    /// Lets the collector know the operation that was handed out last, if it does not yet.
    ///
    /// # Safety
    ///
    /// The GIL is held. What is unseen is alive: it leaves the field when it dies.
    #[cold]
    pub unsafe fn show_unseen(&self) {
        let operation = self.unseen.replace(null_mut());
        // SAFETY: passed on to the caller.
        unsafe {
            if !operation.is_null() && ffi::PyObject_GC_IsTracked(operation) == 0 {
                ffi::PyObject_GC_Track(operation.cast());
            }
        }
    }

    pub fn name(&self) -> *mut PyObject {
        self.name
    }

    pub fn qualname(&self) -> *mut PyObject {
        self.qualname
    }

    pub fn template(&self) -> *mut PyObject {
        self.template
    }
}

/// Makes the native function of this name, with the looks of a Python function.
///
/// Raises LookupError for an unknown name, TypeError for a template with more parameters than there is
/// room for. Keywords beyond them are left to the template.
pub fn new<'py>(
    py: Python<'py>,
    entries: &[&'static [Entry]],
    name: &str,
    template: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let entry = entries
        .iter()
        .copied()
        .flatten()
        .find(|entry| entry.name == name)
        .ok_or_else(|| PyLookupError::new_err(format!("no native function {name:?}")))?;
    let code = template.getattr(intern!(py, "__code__"))?;
    let positional: usize = code.getattr(intern!(py, "co_argcount"))?.extract()?;
    let keywords: usize = code.getattr(intern!(py, "co_kwonlyargcount"))?.extract()?;
    let defaults = template.getattr(intern!(py, "__defaults__"))?;
    let defaults = if defaults.is_none() {
        0
    } else {
        defaults.len()?
    };
    let variadic = matches!(entry.body, Body::Variadic(..));
    let most = positional + if entry.keywords { keywords } else { 0 };
    if most > MOST || (positional == 0) != variadic {
        return Err(PyTypeError::new_err(format!(
            "{name}() has {positional} positional parameters of {most}; 1 to {MOST} can be native"
        )));
    }
    // SAFETY: the type is ours with FunctionObject's size; every field is written before anybody sees it.
    unsafe {
        let function = ffi::PyObject_GC_New::<FunctionObject>(kind(py)?.as_ptr().cast());
        if function.is_null() {
            return Err(PyErr::fetch(py));
        }
        (*function).weakrefs = null_mut();
        (*function).vectorcall = Some(match entry.body {
            Body::Coroutine(..) => call_coroutine,
            Body::Method(_) => call_method,
            Body::Variadic(..) => call_variadic,
        });
        (*function).template = template.clone().into_ptr();
        (*function).name = template.getattr_or_null(intern!(py, "__name__"));
        (*function).qualname = template.getattr_or_null(intern!(py, "__qualname__"));
        (&raw mut (*function).entry).write(entry);
        (*function).at_once = match entry.body {
            Body::Coroutine(_, at_once, _) => Some(at_once),
            _ => None,
        };
        (*function).diverted = entry.diverted;
        (*function).ask_always = entry.ask_always;
        (&raw mut (*function).last).write(Cell::new(null_mut()));
        (&raw mut (*function).keeps).write(Cell::new(true));
        (&raw mut (*function).unseen).write(Cell::new(null_mut()));
        (*function).receiver = (entry.receiver)(py);
        (*function).owner = null_mut();
        // Keyword-only parameters have defaults, as far as there are any in asyncio.
        (*function).least = positional.saturating_sub(defaults) as u8;
        (*function).positional = positional as u8;
        (*function).most = most as u8;
        (*function).keeps_plainly = if entry.packs { 0 } else { entry.keeps as u8 };
        (*function).keeps_at_once = match entry.ask_always {
            true => 0,
            false => (*function).keeps_plainly.min(positional as u8),
        };
        ffi::PyObject_GC_Track(function.cast());
        MAKERS.with(py, |makers| makers.0.push(function));
        let function = Bound::from_owned_ptr(py, function.cast());
        tell_of_collections(py)?;
        if entry.told {
            know_method_class(py, &function)?;
        }
        Ok(function)
    }
}

trait AttributeOrNull {
    /// The attribute as a new reference; null, without an exception, if there is none.
    fn getattr_or_null(&self, name: &Bound<'_, PyString>) -> *mut PyObject;
}

impl AttributeOrNull for Bound<'_, PyAny> {
    fn getattr_or_null(&self, name: &Bound<'_, PyString>) -> *mut PyObject {
        self.getattr(name).map_or(null_mut(), Bound::into_ptr)
    }
}

static KIND: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The class of native functions.
pub fn kind(py: Python<'_>) -> PyResult<&'static Py<PyType>> {
    KIND.get_or_try_init(py, || make_type(py))
}

// --- calls -------------------------------------------------------------------------------------

unsafe extern "C" fn call_coroutine(
    callable: *mut PyObject,
    array: *const *mut PyObject,
    flags: usize,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: the interpreter's vectorcall of a Function: `array` holds the arguments.
    unsafe {
        let function = callable.cast::<FunctionObject>();
        // The usual call: positional, on an instance of the very class, and the operation of the last one has
        // ended. It calls little, so it needs few registers.
        if names.is_null()
            && ffi::PyVectorcall_NARGS(flags) as usize == usize::from((*function).positional)
            && (*function).keeps_at_once != 0
            && ffi::Py_TYPE(*array) == (*function).owner
        {
            let kept = usize::from((*function).keeps_at_once);
            let operation = operation::refill(function, array, kept);
            if !operation.is_null() {
                return operation;
            }
        }
        call_coroutine_plainly(callable, array, flags, names)
    }
}

/// A call of a coroutine function that may need a new operation.
///
/// # Safety
///
/// A vectorcall of this function is under way.
#[inline(never)]
unsafe fn call_coroutine_plainly(
    callable: *mut PyObject,
    array: *const *mut PyObject,
    flags: usize,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: passed on to the caller.
    unsafe {
        let py = Python::assume_attached();
        let function = &*callable.cast::<FunctionObject>();
        let count = ffi::PyVectorcall_NARGS(flags) as usize;
        if names.is_null()
            && count >= usize::from(function.least)
            && count <= usize::from(function.positional)
            && function.keeps_plainly != 0
            && function.serves(py, *array)
        {
            let kept = count.min(usize::from(function.keeps_plainly));
            let kept = std::slice::from_raw_parts(array, kept);
            return operation::new(py, callable.cast(), kept);
        }
        call_coroutine_otherwise(callable, array, flags, names)
    }
}

/// Any other call of a coroutine function.
///
/// # Safety
///
/// A vectorcall of this function is under way.
#[inline(never)]
unsafe fn call_coroutine_otherwise(
    callable: *mut PyObject,
    array: *const *mut PyObject,
    flags: usize,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: passed on to the caller.
    unsafe {
        guard(|py| {
            let function = callable.cast::<FunctionObject>();
            let Some((values, count)) = fitting(py, &*function, array, flags, names)? else {
                return fall_back(py, callable, array, flags, names);
            };
            let entry = (*function).entry;
            if entry.packs && count >= KEPT {
                let rest = values[KEPT - 1..].iter().map(|&value| {
                    // Nobody passes the function itself: what was not given.
                    let value = if value.is_null() { callable } else { value };
                    Bound::from_borrowed_ptr(py, value)
                });
                let rest = PyTuple::new(py, rest.collect::<Vec<_>>())?;
                let mut kept = [null_mut(); KEPT];
                kept.copy_from_slice(&values[..KEPT]);
                kept[KEPT - 1] = rest.as_ptr();
                let made = operation::new(py, callable.cast(), &kept);
                return Bound::from_owned_ptr_or_err(py, made);
            }
            let kept = &values[..count.min(entry.keeps)];
            Bound::from_owned_ptr_or_err(py, operation::new(py, callable.cast(), kept))
        })
    }
}

unsafe extern "C" fn call_method(
    callable: *mut PyObject,
    array: *const *mut PyObject,
    flags: usize,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: as above.
    unsafe {
        guard(|py| {
            let function = &*callable.cast::<FunctionObject>();
            let Body::Method(call) = function.entry.body else {
                return fall_back(py, callable, array, flags, names);
            };
            let count = ffi::PyVectorcall_NARGS(flags) as usize;
            if names.is_null()
                && count == usize::from(function.positional)
                && function.serves(py, *array)
            {
                let values = std::slice::from_raw_parts(array.add(1), count - 1);
                return call(&Bound::from_borrowed_ptr(py, *array), &Rest { py, values });
            }
            let Some((values, count)) = fitting(py, function, array, flags, names)? else {
                return fall_back(py, callable, array, flags, names);
            };
            let values = &values[..count];
            let receiver = Bound::from_borrowed_ptr(py, values[0]);
            let values = &values[1..];
            call(&receiver, &Rest { py, values })
        })
    }
}

unsafe extern "C" fn call_variadic(
    callable: *mut PyObject,
    array: *const *mut PyObject,
    flags: usize,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: as above.
    unsafe {
        guard(|py| {
            let function = &*callable.cast::<FunctionObject>();
            let Body::Variadic(keyword, call) = function.entry.body else {
                return fall_back(py, callable, array, flags, names);
            };
            let count = ffi::PyVectorcall_NARGS(flags) as usize;
            let values: &[Borrowed<'_, '_, PyAny>] = if count == 0 {
                &[]
            } else {
                // A Borrowed is a pointer that is not null, as the interpreter's arguments are.
                std::slice::from_raw_parts(array.cast(), count)
            };
            let mut given = None;
            if !names.is_null() {
                let names = Bound::from_borrowed_ptr(py, names).cast_into_unchecked::<PyTuple>();
                if names.len() > 1 || (names.len() == 1 && !names.get_item(0)?.eq(keyword)?) {
                    return fall_back(py, callable, array, flags, names.as_ptr());
                }
                if names.len() == 1 {
                    given = Some(Bound::from_borrowed_ptr(py, *array.add(count)));
                }
            }
            match call(py, values, given.as_ref())? {
                Some(result) => Ok(result),
                None => fall_back(py, callable, array, flags, names),
            }
        })
    }
}

/// The arguments in the order of the parameters, if the native body serves this call.
///
/// # Safety
///
/// A vectorcall of this function is under way.
#[inline(always)]
unsafe fn fitting(
    py: Python<'_>,
    function: &FunctionObject,
    array: *const *mut PyObject,
    flags: usize,
    names: *mut PyObject,
) -> PyResult<Option<([*mut PyObject; MOST], usize)>> {
    // SAFETY: `array` holds `count` positional arguments and then the values of the keywords.
    unsafe {
        let count = ffi::PyVectorcall_NARGS(flags) as usize;
        let (least, most) = (usize::from(function.least), usize::from(function.most));
        let mut values = [null_mut(); MOST];
        if count > usize::from(function.positional) {
            return Ok(None);
        }
        ptr::copy_nonoverlapping(array, values.as_mut_ptr(), count);
        let mut filled = count;
        if !names.is_null() && ffi::PyTuple_GET_SIZE(names) > 0 {
            if !bind_keywords(py, function, array.add(count), names, &mut values, count)? {
                return Ok(None);
            }
            filled = most;
        }
        if values[..least].iter().any(|value| value.is_null()) {
            return Ok(None);
        }
        if !function.serves(py, values[0]) {
            return Ok(None);
        }
        Ok(Some((values, filled)))
    }
}

/// Puts keyword arguments in their places; false if one of them does not fit.
///
/// # Safety
///
/// `given` holds one live value for each of the names.
#[cold]
unsafe fn bind_keywords(
    py: Python<'_>,
    function: &FunctionObject,
    given: *const *mut PyObject,
    names: *mut PyObject,
    values: &mut [*mut PyObject; MOST],
    count: usize,
) -> PyResult<bool> {
    // SAFETY: a live function; the interpreter's tuple of names.
    unsafe {
        let template = Bound::from_borrowed_ptr(py, function.template);
        let names = Bound::from_borrowed_ptr(py, names).cast_into_unchecked::<PyTuple>();
        let parameters = template
            .getattr(intern!(py, "__code__"))?
            .getattr(intern!(py, "co_varnames"))?
            .cast_into::<PyTuple>()?;
        for (index, name) in names.iter().enumerate() {
            let mut place = None;
            for (at, parameter) in parameters
                .iter()
                .enumerate()
                .take(usize::from(function.most))
            {
                if parameter.eq(&name)? {
                    place = Some(at);
                }
            }
            match place {
                Some(place) if place >= count => values[place] = *given.add(index),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Calls the template: it serves the call, or says what is wrong with it.
///
/// # Safety
///
/// A vectorcall of this function is under way.
#[cold]
unsafe fn fall_back<'py>(
    py: Python<'py>,
    callable: *mut PyObject,
    array: *const *mut PyObject,
    flags: usize,
    names: *mut PyObject,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the arguments of the call under way, passed on.
    unsafe {
        let template = (*callable.cast::<FunctionObject>()).template;
        Bound::from_owned_ptr_or_err(py, ffi::PyObject_Vectorcall(template, array, flags, names))
    }
}

// --- the collector -------------------------------------------------------------------------------

/// The functions that there are. Those of them that make operations may have one that the collector does not know.
struct Makers(Vec<*mut FunctionObject>);

// SAFETY: the pointers are only touched through a LoopCell, so with the GIL held.
unsafe impl Send for Makers {}

static MAKERS: LoopCell<Makers> = LoopCell::new(Makers(Vec::new()));

/// What `gc.callbacks` has: before a collection begins, the collector is told of every operation there is.
#[pyfunction]
fn operations_are_collected(py: Python<'_>, phase: &str, _info: &Bound<'_, PyAny>) {
    if phase != "start" {
        return;
    }
    MAKERS.with(py, |makers| {
        for &maker in &makers.0 {
            // SAFETY: a function leaves the list when it dies.
            unsafe { (*maker).show_unseen() };
        }
    });
}

fn tell_of_collections(py: Python<'_>) -> PyResult<()> {
    static TOLD: PyOnceLock<()> = PyOnceLock::new();
    TOLD.get_or_try_init(py, || {
        let callback = wrap_pyfunction!(operations_are_collected, py)?;
        let callbacks = py
            .import(intern!(py, "gc"))?
            .getattr(intern!(py, "callbacks"))?;
        callbacks
            .call_method1(intern!(py, "append"), (callback,))
            .map(drop)
    })
    .map(drop)
}

// --- slots -------------------------------------------------------------------------------------

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: called once, when the last reference is gone.
    unsafe {
        ffi::PyObject_GC_UnTrack(object.cast());
        MAKERS.with(Python::assume_attached(), |makers| {
            makers.0.retain(|&maker| maker.cast() != object);
        });
        if !(*object.cast::<FunctionObject>()).weakrefs.is_null() {
            ffi::PyObject_ClearWeakRefs(object);
        }
        clear(object);
        let kind = ffi::Py_TYPE(object);
        ffi::PyObject_GC_Del(object.cast());
        ffi::Py_DECREF(kind.cast());
    }
}

unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    let function = object.cast::<FunctionObject>();
    // SAFETY: a live function; each reference is taken out before it is dropped. The template stays
    // until the end: operations ask for it. It is a module-level function, so no cycle needs it cleared.
    unsafe {
        (*function).keeps.set(false);
        ffi::Py_XDECREF((*function).take_last());
        if ffi::Py_REFCNT(object) == 0 {
            for field in [
                &raw mut (*function).template,
                &raw mut (*function).name,
                &raw mut (*function).qualname,
            ] {
                ffi::Py_XDECREF(ptr::replace(field, null_mut()));
            }
            let owner = ptr::replace(&raw mut (*function).owner, null_mut());
            ffi::Py_XDECREF(owner.cast());
        }
    }
    0
}

unsafe extern "C" fn traverse(
    object: *mut PyObject,
    visit: ffi::visitproc,
    argument: *mut c_void,
) -> c_int {
    let function = object.cast::<FunctionObject>();
    // SAFETY: a live function; `visit` is the collector's.
    unsafe {
        let fields = [
            ffi::Py_TYPE(object).cast(),
            (*function).template,
            (*function).owner.cast(),
            (*function).last.get(),
        ];
        for field in fields {
            if !field.is_null() {
                let result = visit(field, argument);
                if result != 0 {
                    return result;
                }
            }
        }
        // What is kept is a part of this object, unless somebody else has it, too.
        let last = (*function).last.get();
        if !last.is_null() && ffi::Py_REFCNT(last) == 1 {
            return operation::traverse(last, visit, argument);
        }
    }
    0
}

libpython! {
    /// Part of CPython's interface, but missing in PyO3's declarations.
    fn PyMethod_New(function: *mut PyObject, instance: *mut PyObject) -> *mut PyObject;
    /// As above. Borrowed.
    fn PyMethod_Function(method: *mut PyObject) -> *mut PyObject;
}

/// The class of bound methods, which is static; null until the first function of [`Entry::told`] is made.
static METHOD_CLASS: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(null_mut());

/// Learns the class of bound methods from one that is bound to `function`.
fn know_method_class(py: Python<'_>, function: &Bound<'_, PyAny>) -> PyResult<()> {
    // SAFETY: a live function; the method takes its own references.
    let method = unsafe {
        let method = PyMethod_New(function.as_ptr(), function.as_ptr());
        Bound::<PyAny>::from_owned_ptr_or_err(py, method)?
    };
    METHOD_CLASS.store(method.get_type_ptr(), Ordering::Relaxed);
    Ok(())
}

/// Whether an object is a native function.
pub fn is_native(object: &Bound<'_, PyAny>) -> bool {
    KIND.get(object.py())
        .is_some_and(|kind| ptr::eq(object.get_type_ptr(), kind.as_ptr().cast()))
}

/// Whether an object is a bound method of a function made by [`Entry::told`].
///
/// # Safety
///
/// A live object, and the GIL is held.
#[inline(always)]
pub unsafe fn is_told(py: Python<'_>, callback: *mut PyObject) -> bool {
    // SAFETY: as above. What a method is bound to and its function live as long as it does; the class of
    // the function is compared before it is taken for one of ours.
    unsafe {
        if ffi::Py_TYPE(callback) != METHOD_CLASS.load(Ordering::Relaxed) {
            return false;
        }
        let function = PyMethod_Function(callback);
        KIND.get(py)
            .is_some_and(|kind| ptr::eq(ffi::Py_TYPE(function), kind.as_ptr().cast()))
            && (*function.cast::<FunctionObject>()).entry.told
    }
}

/// A callable bound to an instance, as functions are when they are asked for as attributes.
pub fn bound_to<'py>(
    callable: &Bound<'py, PyAny>,
    instance: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: live objects, of which the method takes its own references.
    unsafe {
        let method = PyMethod_New(callable.as_ptr(), instance.as_ptr());
        Bound::from_owned_ptr_or_err(callable.py(), method)
    }
}

/// What a call of a native coroutine function with these arguments returns, whatever its parameters: for callables
/// that make the arguments out of those that they were called with.
///
/// Raises TypeError if `function` is no such function, or does not serve the first argument.
pub fn operation_of<'py>(
    function: &Bound<'py, PyAny>,
    kept: [&Bound<'py, PyAny>; KEPT],
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    let object = function.as_ptr().cast::<FunctionObject>();
    // SAFETY: its class is compared before it is taken for one of ours; the arguments are alive.
    unsafe {
        if !is_native(function)
            || !matches!((*object).entry.body, Body::Coroutine(..))
            || ffi::PyObject_TypeCheck(kept[0].as_ptr(), (*object).receiver) == 0
        {
            return Err(PyTypeError::new_err(format!(
                "{} is no native coroutine function of a {}",
                function.repr()?,
                kept[0].get_type().name()?
            )));
        }
        let kept = kept.map(|value| value.as_ptr());
        let made = operation::refill(object, kept.as_ptr(), KEPT);
        if !made.is_null() {
            return Ok(Bound::from_owned_ptr(py, made));
        }
        Bound::from_owned_ptr_or_err(py, operation::new(py, object, &kept))
    }
}

/// As a Python function does: bound to an instance, itself on a class.
unsafe extern "C" fn bind(
    function: *mut PyObject,
    instance: *mut PyObject,
    _owner: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: the interpreter's descriptor protocol; null stands for no instance.
    unsafe {
        if instance.is_null() || instance == ffi::Py_None() {
            return ffi::Py_NewRef(function);
        }
        PyMethod_New(function, instance)
    }
}

unsafe extern "C" fn getattr(object: *mut PyObject, name: *mut PyObject) -> *mut PyObject {
    // SAFETY: a live function and a str. The class of a heap type's instance has these two itself.
    unsafe {
        let py = Python::assume_attached();
        if name == intern!(py, "__module__").as_ptr() {
            return ffi::Py_NewRef(intern!(py, "tideloop").as_ptr());
        }
        if name == intern!(py, "__doc__").as_ptr() {
            return ffi::PyObject_GetAttr((*object.cast::<FunctionObject>()).template, name);
        }
        let found = ffi::PyObject_GenericGetAttr(object, name);
        if !found.is_null() || ffi::PyErr_ExceptionMatches(ffi::PyExc_AttributeError) == 0 {
            return found;
        }
        ffi::PyErr_Clear();
        ffi::PyObject_GetAttr((*object.cast::<FunctionObject>()).template, name)
    }
}

unsafe extern "C" fn repr(object: *mut PyObject) -> *mut PyObject {
    // SAFETY: a live function.
    unsafe {
        guard(|py| {
            let qualname =
                Bound::from_borrowed_ptr(py, (*object.cast::<FunctionObject>()).qualname);
            let text = format!("<function {} at {object:p}>", qualname.str()?);
            Ok(PyString::new(py, &text).into_any())
        })
    }
}

unsafe extern "C" fn class_of(_object: *mut PyObject, _: *mut c_void) -> *mut PyObject {
    // SAFETY: the type of Python functions is static.
    unsafe { ffi::Py_NewRef((&raw mut ffi::PyFunction_Type).cast()) }
}

unsafe extern "C" fn reduce(object: *mut PyObject, _: *mut PyObject) -> *mut PyObject {
    // SAFETY: a live function. As Python functions are pickled: by name.
    unsafe { ffi::Py_NewRef((*object.cast::<FunctionObject>()).qualname) }
}

unsafe extern "C" fn dictionary(object: *mut PyObject, _: *mut c_void) -> *mut PyObject {
    // SAFETY: a live function; what a wrapper copies from a function.
    unsafe {
        guard(|py| {
            let template =
                Bound::from_borrowed_ptr(py, (*object.cast::<FunctionObject>()).template);
            Ok(template
                .getattr(intern!(py, "__dict__"))?
                .cast_into::<PyDict>()?
                .copy()?
                .into_any())
        })
    }
}

/// Told by a new class that it has this function.
unsafe extern "C" fn set_name(object: *mut PyObject, arguments: *mut PyObject) -> *mut PyObject {
    let function = object.cast::<FunctionObject>();
    // SAFETY: a method of this type, with a tuple of the class and a name.
    unsafe {
        let owner = ffi::PyTuple_GetItem(arguments, 0);
        if owner.is_null() {
            return null_mut();
        }
        if (*function).owner.is_null()
            && ffi::PyType_Check(owner) != 0
            && ffi::PyType_IsSubtype(owner.cast(), (*function).receiver) != 0
        {
            (*function).owner = ffi::Py_NewRef(owner).cast();
        }
        ffi::Py_NewRef(ffi::Py_None())
    }
}

struct Methods([ffi::PyMethodDef; 3]);
struct Members([ffi::PyMemberDef; 3]);
struct Attributes([ffi::PyGetSetDef; 3]);

// SAFETY: the tables are constant; CPython only reads them.
unsafe impl Sync for Methods {}
// SAFETY: as above.
unsafe impl Sync for Members {}
// SAFETY: as above.
unsafe impl Sync for Attributes {}

static METHODS: Methods = Methods([
    ffi::PyMethodDef {
        ml_name: c"__reduce__".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: reduce,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: ptr::null(),
    },
    ffi::PyMethodDef {
        ml_name: c"__set_name__".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: set_name,
        },
        ml_flags: ffi::METH_VARARGS,
        ml_doc: ptr::null(),
    },
    ffi::PyMethodDef::zeroed(),
]);

const fn member(name: &'static std::ffi::CStr, offset: usize) -> ffi::PyMemberDef {
    ffi::PyMemberDef {
        name: name.as_ptr(),
        type_code: ffi::Py_T_PYSSIZET,
        offset: offset as Py_ssize_t,
        flags: ffi::Py_READONLY,
        doc: ptr::null(),
    }
}

static MEMBERS: Members = Members([
    member(
        c"__weaklistoffset__",
        std::mem::offset_of!(FunctionObject, weakrefs),
    ),
    member(
        c"__vectorcalloffset__",
        std::mem::offset_of!(FunctionObject, vectorcall),
    ),
    ffi::PyMemberDef {
        name: ptr::null(),
        type_code: 0,
        offset: 0,
        flags: 0,
        doc: ptr::null(),
    },
]);

const fn attribute(name: &'static std::ffi::CStr, get: ffi::getter) -> ffi::PyGetSetDef {
    ffi::PyGetSetDef {
        name: name.as_ptr(),
        get: Some(get),
        set: None,
        doc: ptr::null(),
        closure: null_mut(),
    }
}

static ATTRIBUTES: Attributes = Attributes([
    attribute(c"__class__", class_of),
    attribute(c"__dict__", dictionary),
    ffi::PyGetSetDef {
        name: ptr::null(),
        get: None,
        set: None,
        doc: ptr::null(),
        closure: null_mut(),
    },
]);

fn make_type(py: Python<'_>) -> PyResult<Py<PyType>> {
    let slot = |slot: c_int, pfunc: *mut c_void| ffi::PyType_Slot { slot, pfunc };
    let mut slots = [
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_call, ffi::PyVectorcall_Call as *mut c_void),
        slot(ffi::Py_tp_descr_get, bind as *mut c_void),
        slot(ffi::Py_tp_getattro, getattr as *mut c_void),
        slot(ffi::Py_tp_repr, repr as *mut c_void),
        slot(ffi::Py_tp_methods, METHODS.0.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_members, MEMBERS.0.as_ptr() as *mut c_void),
        slot(ffi::Py_tp_getset, ATTRIBUTES.0.as_ptr() as *mut c_void),
        slot(0, null_mut()),
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"tideloop._tideloop.Function".as_ptr().cast::<c_char>(),
        basicsize: size_of::<FunctionObject>() as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_HAVE_VECTORCALL
            | ffi::Py_TPFLAGS_METHOD_DESCRIPTOR
            | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
            | ffi::Py_TPFLAGS_IMMUTABLETYPE) as u32,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec and what it points to outlive the call; name and tables are static.
    unsafe {
        let object = ffi::PyType_FromSpec(&mut spec);
        Ok(Bound::from_owned_ptr_or_err(py, object)?
            .cast_into_unchecked::<PyType>()
            .unbind())
    }
}
