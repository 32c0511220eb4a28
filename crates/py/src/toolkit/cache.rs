//! Cache and what `@cached` makes: what is kept, and the call that finds it.
//!
//! [`Cache`] decides what stays and for how long; a Python dict finds an entry by its key. A hit is found here: the
//! operation that `await fetch(key)` makes ends in its first step, without a future, a task or a line of Python. All else,
//! a miss, a value that has gone stale, an error that is remembered, is `python/tideloop/caching.py`'s, whose coroutine the
//! operation becomes.
//!
//! **The index and the entries** are two things, since looking a key up may run any code (`__eq__`), and no code may run
//! while the entries are borrowed. So the index may name an entry that is no more, which finds nothing and is a miss, and an
//! entry may have lost its name, in which case it leaves like any other. A name is taken off the index when its entry
//! has left, if it still leads nowhere then. Two threads may give one key to two entries; the second takes the name from
//! the first, and that entry with it. For as long as every key is plain (`str`, `int`, tuples of these, …), whose
//! comparison is the interpreter's own, a look-up runs no code at all, and the first step may make it.
//!
//! **What was invalidated while it was being loaded** must not be stored. A load has a [`Warrant`] for that, which an
//! invalidation withdraws before it removes the entry. The entry is added in the same borrow in which the warrant is
//! looked at; it gets its name after that, and the warrant is looked at once more. So whichever comes first, the entry is not
//! there after the invalidation.
//!
//! Usable from several loops and threads at once; their clocks are to be the same one, as those of real loops are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyWeakrefReference,
};
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::cache::{Cache, Found, Lifetime, NEVER};
use tideloop_core::registry::Key;
use tideloop_sys::clock;

use crate::ffi::cell::LoopCell;
use crate::ffi::function::{self, Coroutine};
use crate::ffi::operation::{AtOnce, Frame, Input, Step};
use crate::ffi::park;
use crate::ffi::roll::Place;

/// How many tuples within tuples a key may be to be plain.
const DEEP: u32 = 4;

/// What an entry's object is to those who ask for the key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Value,
    /// A weak reference to the value.
    Weak,
    /// An exception to be raised.
    Failure,
}

struct Item {
    key: Py<PyAny>,
    object: Py<PyAny>,
    kind: Kind,
}

impl Item {
    /// Drops it now; a `Py` that is dropped outside of a call of PyO3's may live on for a while.
    fn discard(self, py: Python<'_>) {
        drop(self.key.into_bound(py));
        drop(self.object.into_bound(py));
    }
}

/// The right of one load to store what it has found.
#[pyclass(frozen, module = "tideloop._tideloop")]
#[derive(Default)]
pub struct Warrant {
    withdrawn: AtomicBool,
}

#[pymethods]
impl Warrant {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Nothing is stored with it from now on.
    fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Relaxed);
    }

    #[getter]
    fn withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Relaxed)
    }
}

/// The native half of `tideloop.Cache`.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct CacheCore {
    /// Key to the number of its entry.
    index: Py<PyDict>,
    entries: LoopCell<Cache<Item>>,
    /// Whether any entry's time is limited: if not, nobody needs to know what time it is.
    timed: AtomicBool,
    /// Whether a key is in the index whose comparison may run code.
    odd: AtomicBool,
    hits: AtomicU64,
    enlisted: Place,
}

/// Whether to hash and to compare an object runs no Python code, as long as what it is compared with is plain, too.
fn is_plain(key: &Bound<'_, PyAny>, depth: u32) -> bool {
    if key.is_exact_instance_of::<PyString>() || key.is_exact_instance_of::<PyInt>() {
        return true;
    }
    if let Ok(parts) = key.cast_exact::<PyTuple>() {
        return depth > 0 && parts.iter_borrowed().all(|part| is_plain(&part, depth - 1));
    }
    key.is_none()
        || key.is_exact_instance_of::<PyBool>()
        || key.is_exact_instance_of::<PyBytes>()
        || key.is_exact_instance_of::<PyFloat>()
        // Such as what separates names from values in the key of a call.
        || key.is_exact_instance_of::<PyAny>()
}

/// Nanoseconds of some seconds; none is for ever.
fn ns(seconds: Option<f64>) -> i64 {
    seconds.map_or(NEVER, |seconds| (seconds * 1e9).round() as i64)
}

impl CacheCore {
    /// The time, as far as any entry needs it.
    fn now(&self, py: Python<'_>) -> PyResult<i64> {
        if !self.timed.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let event_loop = park::current_loop(py)?;
        if event_loop.is_none() {
            return Ok(clock::monotonic_ns() as i64);
        }
        park::time_ns(&event_loop)
    }

    /// What the index says.
    #[inline]
    fn place(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<Key>> {
        match self.index.bind(key.py()).get_item(key)? {
            Some(bits) => Ok(Some(Key::from_u64(bits.extract()?))),
            None => Ok(None),
        }
    }

    /// The fresh value of a key, if there is one.
    #[inline]
    fn fresh<'py>(
        &self,
        py: Python<'py>,
        place: Option<Key>,
        now: i64,
    ) -> Option<Bound<'py, PyAny>> {
        let place = place?;
        let (object, kind) = self.entries.with(py, |entries| {
            let item = entries.fresh(place, now)?;
            (item.kind != Kind::Failure).then(|| (item.object.clone_ref(py), item.kind))
        })?;
        let value = strong(object.into_bound(py), kind)?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(value)
    }

    /// [`fresh`](Self::fresh) if that takes no Python.
    #[inline]
    fn at_hand<'py>(&self, key: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        let py = key.py();
        if self.odd.load(Ordering::Relaxed) || !is_plain(key, DEEP) {
            return None;
        }
        let now = match self.timed.load(Ordering::Relaxed) {
            false => 0,
            true => park::time_at_hand(py)?,
        };
        self.fresh(py, self.place(key).ok()?, now)
    }

    /// Takes the name of an entry that has left off the index, unless it leads somewhere.
    fn forget(&self, key: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = key.py();
        let live = |place| self.entries.with(py, |entries| entries.contains(place));
        while let Some(place) = self.place(key)?
            && !live(place)
        {
            // While the key's `__eq__` ran, another thread may have taken the name off, or given it to another entry.
            if let Some(taken) = self.unname(key)?
                && live(taken)
            {
                self.name(key, taken)?;
            }
        }
        Ok(())
    }

    /// Takes a name off the index, whatever it leads to; that is what it led to.
    fn unname(&self, key: &Bound<'_, PyAny>) -> PyResult<Option<Key>> {
        let py = key.py();
        let index = self.index.bind(py);
        let bits = index.call_method1(intern!(py, "pop"), (key, py.None()))?;
        let bits: Option<u64> = bits.extract()?;
        Ok(bits.map(Key::from_u64))
    }

    /// Has the name of an entry lead to it. One name is taken off by one thread only, which sees to what it led to.
    fn name(&self, key: &Bound<'_, PyAny>, place: Key) -> PyResult<()> {
        let (py, bits) = (key.py(), place.to_u64());
        let index = self.index.bind(py);
        if !self.odd.load(Ordering::Relaxed) {
            return index.set_item(key, bits);
        }
        let setdefault = intern!(py, "setdefault");
        while index
            .call_method1(setdefault, (key, bits))?
            .extract::<u64>()?
            != bits
        {
            if let Some(other) = self.unname(key)?
                && let Some(item) = self.entries.with(py, |entries| entries.remove(other))
            {
                item.discard(py);
            }
        }
        Ok(())
    }

    /// What becomes of those that have left.
    fn see_off(&self, py: Python<'_>, items: Vec<Item>) -> PyResult<()> {
        let mut result = Ok(());
        for item in items {
            result = result.and(self.forget(item.key.bind(py)));
            item.discard(py);
        }
        result
    }

    fn remove(&self, py: Python<'_>, place: Key) -> PyResult<bool> {
        let item = self.entries.with(py, |entries| entries.remove(place));
        let found = item.is_some();
        self.see_off(py, item.into_iter().collect())?;
        Ok(found)
    }
}

/// The value that an entry stands for; none if it is no more.
#[inline]
fn strong<'py>(object: Bound<'py, PyAny>, kind: Kind) -> Option<Bound<'py, PyAny>> {
    match kind {
        Kind::Weak => object.cast::<PyWeakrefReference>().ok()?.upgrade(),
        _ => Some(object),
    }
}

#[pymethods]
impl CacheCore {
    /// `capacity` limits the sum of the weights.
    #[new]
    #[pyo3(signature = (capacity))]
    fn new(py: Python<'_>, capacity: Option<u64>) -> Self {
        Self {
            index: PyDict::new(py).unbind(),
            entries: LoopCell::new(Cache::new(capacity.unwrap_or(u64::MAX))),
            timed: AtomicBool::new(false),
            odd: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            enlisted: Place::default(),
        }
    }

    /// Enters the roll for `tideloop.observe.gauges()`.
    fn _enlist(slf: &Bound<'_, Self>) {
        slf.get().enlisted.enlist(slf.as_any());
    }

    /// What there is under a key, and in which state: "fresh", "stale", "failed" or, with None, "gone".
    fn _ask<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<(&'static str, Bound<'py, PyAny>)> {
        let py = key.py();
        let none = || py.None().into_bound(py);
        let Some(place) = self.place(key)? else {
            return Ok(("gone", none()));
        };
        let now = self.now(py)?;
        let found = self.entries.with(py, |entries| {
            let (state, item) = match entries.ask(place, now) {
                Found::Fresh(item) => ("fresh", item),
                Found::Stale(item) => ("stale", item),
                Found::Gone(item) => return Err(item),
            };
            Ok((state, item.object.clone_ref(py), item.kind))
        });
        let (state, object, kind) = match found {
            Ok(found) => found,
            Err(item) => {
                self.see_off(py, item.into_iter().collect())?;
                return Ok(("gone", none()));
            }
        };
        let object = object.into_bound(py);
        match kind {
            // Stale failures are of no use to anybody.
            Kind::Failure if state == "stale" => Ok(("gone", none())),
            Kind::Failure => Ok(("failed", object)),
            kind => match strong(object, kind) {
                Some(value) => {
                    self.hits.fetch_add(1, Ordering::Relaxed);
                    Ok((state, value))
                }
                None => {
                    self.remove(py, place)?;
                    Ok(("gone", none()))
                }
            },
        }
    }

    /// The value of a key that is fresh or stale, in a tuple; None without one. That is no question for it.
    fn _peek<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        let py = key.py();
        let Some(place) = self.place(key)? else {
            return Ok(None);
        };
        let now = self.now(py)?;
        let found = self.entries.with(py, |entries| {
            let item = entries.peek(place, now)?;
            (item.kind != Kind::Failure).then(|| (item.object.clone_ref(py), item.kind))
        });
        Ok(found
            .and_then(|(object, kind)| strong(object.into_bound(py), kind))
            .map(|value| (value,)))
    }

    /// Store a "value", a "weak" reference to one or a "failure", unless the warrant was withdrawn. Whether it was
    /// stored. What was there under the key is no more, in any case but that.
    ///
    /// `ttl`, `stale` and `idle` are seconds; None is for ever, but of `stale`: never.
    #[pyo3(signature = (key, object, kind, weight, ttl, stale, idle, warrant))]
    #[allow(
        clippy::too_many_arguments,
        reason = "one entry in full, for one caller"
    )]
    fn _store<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        object: &Bound<'py, PyAny>,
        kind: &str,
        weight: u64,
        ttl: Option<f64>,
        stale: Option<f64>,
        idle: Option<f64>,
        warrant: Option<&Bound<'py, Warrant>>,
    ) -> PyResult<bool> {
        let py = key.py();
        let kind = match kind {
            "value" => Kind::Value,
            "weak" => Kind::Weak,
            "failure" => Kind::Failure,
            other => {
                return Err(PyValueError::new_err(format!(
                    "kind is {other:?}; expected 'value', 'weak' or 'failure'"
                )));
            }
        };
        let hash = key.hash()? as u64;
        if ttl.is_some() || idle.is_some() {
            self.timed.store(true, Ordering::Relaxed);
        }
        if !is_plain(key, DEEP) {
            self.odd.store(true, Ordering::Relaxed);
        }
        let now = self.now(py)?;
        let lifetime = Lifetime::from(now, ns(ttl), ns(stale.or(Some(0.0))), ns(idle));
        let before = self.place(key)?;
        let item = Item {
            key: key.clone().unbind(),
            object: object.clone().unbind(),
            kind,
        };
        let withdrawn = || warrant.is_some_and(|warrant| warrant.get().withdrawn());
        let mut out = Vec::new();
        let stored = self.entries.with(py, |entries| {
            if withdrawn() {
                out.push(item);
                return None;
            }
            out.extend(before.and_then(|before| entries.remove(before)));
            match entries.store(item, hash, weight, lifetime, now, &mut out) {
                Ok(place) => Some(place),
                Err(item) => {
                    out.push(item);
                    None
                }
            }
        });
        let named = match stored {
            Some(place) => self.name(key, place),
            None => Ok(()),
        };
        self.see_off(py, out)?;
        named?;
        if stored.is_some_and(|place| !self.entries.with(py, |entries| entries.contains(place))) {
            // It has left before it had its name.
            self.forget(key)?;
        }
        if let Some(place) = stored
            && withdrawn()
        {
            self.remove(py, place)?;
            return Ok(false);
        }
        Ok(stored.is_some())
    }

    /// Remove the entry of a key; of one whose object is `object`, if that is given. Whether there was one.
    #[pyo3(signature = (key, object=None))]
    fn _drop<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        object: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<bool> {
        let py = key.py();
        let Some(place) = self.place(key)? else {
            return Ok(false);
        };
        let other = object.is_some_and(|object| {
            self.entries.with(py, |entries| {
                let item = entries.peek(place, i64::MIN);
                !item.is_some_and(|item| item.object.is(object))
            })
        });
        if other {
            return Ok(false);
        }
        self.remove(py, place)
    }

    /// Remove all entries; how many there were.
    fn _clear(&self, py: Python<'_>) -> PyResult<usize> {
        let items = self.entries.with(py, Cache::take_all);
        let count = items.len();
        self.see_off(py, items)?;
        Ok(count)
    }

    fn _resize(&self, py: Python<'_>, capacity: Option<u64>) -> PyResult<()> {
        let mut out = Vec::new();
        self.entries.with(py, |entries| {
            entries.resize(capacity.unwrap_or(u64::MAX), &mut out)
        });
        self.see_off(py, out)
    }

    /// The keys, those included whose time is over and that nobody has come across yet.
    fn _keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.index.bind(py).keys().iter())
    }

    /// Entries, their weight, hits, and how many entries have left for want of room and because their time was over.
    fn _look(&self, py: Python<'_>) -> (usize, u64, u64, u64, u64) {
        let hits = self.hits.load(Ordering::Relaxed);
        self.entries.with(py, |entries| {
            let left = entries.departures();
            (
                entries.len(),
                entries.weight(),
                hits,
                left.evicted,
                left.expired,
            )
        })
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        self.entries.with(py, |entries| entries.len())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.index)?;
        self.entries
            .try_with(|entries| {
                entries.iter().try_for_each(|item| {
                    visit.call(&item.key)?;
                    visit.call(&item.object)
                })
            })
            .unwrap_or(Ok(()))
    }

    fn __clear__(&self, py: Python<'_>) {
        let items = self.entries.with(py, Cache::take_all);
        for item in items {
            item.discard(py);
        }
        self.index.bind(py).clear();
    }
}

/// The native half of what `@tideloop.cached` makes of a function.
#[pyclass(frozen, subclass, weakref, module = "tideloop._tideloop")]
pub struct CachedCore {
    cache: Py<CacheCore>,
    wrapped: Py<PyAny>,
    /// The native coroutine function that is called with the key, in the stead of this.
    native: Py<PyAny>,
    /// What makes the key of the arguments, if it is not all of them.
    key: Option<Py<PyAny>>,
}

/// Separates the keywords from what comes before them in the key of a call.
fn mark(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static MARK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let made = MARK.get_or_try_init(py, || py.get_type::<PyAny>().call0().map(Bound::unbind))?;
    Ok(made.bind(py))
}

/// The key of a call: the argument itself if there is one, of a class whose values equal no tuple, else all of them.
#[inline]
fn key_of<'py>(
    arguments: &Bound<'py, PyTuple>,
    keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = arguments.py();
    let keywords = keywords.filter(|keywords| !keywords.is_empty());
    let Some(keywords) = keywords else {
        if arguments.len() == 1 {
            let only = arguments.get_item(0)?;
            if only.is_exact_instance_of::<PyString>() || only.is_exact_instance_of::<PyInt>() {
                return Ok(only);
            }
        }
        return Ok(arguments.clone().into_any());
    };
    let named = keywords.items();
    // By name; no two are the same, so no values are compared.
    named.sort()?;
    let mut parts: Vec<_> = arguments.iter().collect();
    parts.push(mark(py)?.clone());
    for pair in named.iter() {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair.extract()?;
        parts.extend([name, value]);
    }
    Ok(PyTuple::new(py, parts)?.into_any())
}

#[pymethods]
impl CachedCore {
    #[new]
    #[pyo3(signature = (cache, wrapped, native, key))]
    fn new(
        cache: Py<CacheCore>,
        wrapped: Py<PyAny>,
        native: Py<PyAny>,
        key: Option<Py<PyAny>>,
    ) -> Self {
        Self {
            cache,
            wrapped,
            native,
            key,
        }
    }

    #[pyo3(signature = (*args, **kwargs))]
    fn __call__<'py>(
        this: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = this.py();
        let key = match &this.get().key {
            Some(key) => key.bind(py).call(args, kwargs)?,
            None => key_of(args, kwargs)?,
        };
        let native = this.get().native.bind(py);
        let Some(kwargs) = kwargs.filter(|keywords| !keywords.is_empty()) else {
            return function::operation_of(native, [this.as_any(), &key, args.as_any()]);
        };
        let partial = py.import(intern!(py, "functools"))?;
        let mut parts = vec![this.get().wrapped.bind(py).clone()];
        parts.extend(args.iter());
        let parts = PyTuple::new(py, parts)?;
        let load = partial.call_method(intern!(py, "partial"), parts, Some(kwargs))?;
        function::operation_of(native, [this.as_any(), &key, &load])
    }

    /// The key of a call with these arguments.
    #[pyo3(signature = (*args, **kwargs))]
    fn key<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match &self.key {
            Some(key) => key.bind(args.py()).call(args, kwargs),
            None => key_of(args, kwargs),
        }
    }

    /// As a function's: bound to an instance, itself on a class.
    fn __get__<'py>(
        this: &Bound<'py, Self>,
        instance: &Bound<'py, PyAny>,
        _owner: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if instance.is_none() {
            return Ok(this.as_any().clone());
        }
        function::bound_to(this.as_any(), instance)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.cache)?;
        visit.call(&self.wrapped)?;
        visit.call(&self.native)?;
        visit.call(&self.key)
    }
}

/// The first step that could not end at once: a hit that took some Python, or all that is no hit.
fn find<'py>(
    owner: &Bound<'py, PyAny>,
    cache: &CacheCore,
    frame: &Frame<'_, 'py>,
) -> PyResult<Step<'py>> {
    let py = frame.py();
    let none = || py.None().into_bound(py);
    let key = frame.argument(1).unwrap_or_else(none);
    // What is wrong with a key is told by the coroutine.
    if let Ok(place @ Some(_)) = cache.place(&key)
        && let Some(value) = cache.fresh(py, place, cache.now(py)?)
    {
        return Ok(Step::Return(value));
    }
    let load = frame.argument(2).unwrap_or_else(none);
    let coroutine = owner.call_method1(intern!(py, "_fetch"), (key, load))?;
    Ok(Step::Become(coroutine, None))
}

/// Nothing else comes to an operation that has ended or become a coroutine.
fn after<'py>(input: Input) -> PyResult<Step<'py>> {
    match input {
        Input::Thrown(error) => Err(error),
        _ => Ok(Step::Finish),
    }
}

/// `await cache.get(key, load)`.
pub struct Get;

impl Coroutine for Get {
    type Receiver = CacheCore;

    #[inline(always)]
    fn at_once<'py>(owner: &Bound<'py, CacheCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        match frame.argument(1).and_then(|key| owner.get().at_hand(&key)) {
            Some(value) => AtOnce::Return(value),
            None => AtOnce::No,
        }
    }

    fn advance<'py>(
        owner: &Bound<'py, CacheCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        match input {
            Input::Start => find(owner.as_any(), owner.get(), frame),
            other => after(other),
        }
    }
}

/// `await fetch(...)` of a function under `@cached`.
pub struct Call;

impl Coroutine for Call {
    type Receiver = CachedCore;

    #[inline(always)]
    fn at_once<'py>(owner: &Bound<'py, CachedCore>, frame: &Frame<'_, 'py>) -> AtOnce<'py> {
        let cache = owner.get().cache.bind(frame.py());
        match frame.argument(1).and_then(|key| cache.get().at_hand(&key)) {
            Some(value) => AtOnce::Return(value),
            None => AtOnce::No,
        }
    }

    fn advance<'py>(
        owner: &Bound<'py, CachedCore>,
        frame: &Frame<'_, 'py>,
        input: Input,
    ) -> PyResult<Step<'py>> {
        let cache = owner.get().cache.bind(frame.py());
        match input {
            Input::Start => find(owner.as_any(), cache.get(), frame),
            other => after(other),
        }
    }
}
