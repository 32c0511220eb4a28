//! Level 1: what each task does with its time (`EventLoop(observe="tasks")`).
//!
//! **Who writes.** The loop's thread: a task of ours is noted when it is made and has the number of its record in itself
//! ([`task::place_of`]); a task of asyncio's own is looked up by its address, since nothing of ours is in it. The
//! record is freed by the step that ends the task, or by its destruction. Records are behind the loop's cell and refer to no
//! Python object; whoever reads them ([`records`]) brings the tasks.
//!
//! **What is kept alive**: code objects, whose addresses tell functions and the places where tasks are made apart, up to
//! [`FUNCTIONS`] and [`SITES`] of them. They refer to constants, so nothing of this takes part in cycles.
//!
//! **What a task costs** is mostly what is looked up of it: its function and its place. Tasks are made in loops, mostly, so the last
//! one's are compared first ([`Latest`]: three addresses); what else was met lately is known by addresses in tables of a fixed size
//! ([`Recent`]). Their keys are kept alive by the ones above, so that it takes neither a reference nor a hash. Nothing but
//! the record is written when a task is made, and when it steps.
//!
//! **Time** is that of the loop's coarse clock: one read per entry of the ready ring, the end of one being the start of
//! the next, and of the next turn. What runs, and since when, is outside of the cell: two plain stores for each step.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCode, PyString};
use tideloop_core::observe::book::{Book, End, FUNCTIONS, Place};
use tideloop_sys::clock;

use super::recorder;
use crate::event_loop::LoopCore;
use crate::ffi::cell::LoopCell;
use crate::ffi::classes::classes;
#[cfg(Py_3_13)]
use crate::ffi::frames;
use crate::ffi::{call, native, origin, park, site, task};

/// Places in the program that are told apart.
const SITES: u16 = 4096;

/// Codes of which is known whether they are a program's.
const CODES: usize = 4096;

/// Addresses are good keys, once their low bits have been spread.
#[derive(Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    #[inline]
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    #[inline]
    fn write_i32(&mut self, word: i32) {
        self.write_u64(word as u64);
    }
}

type Table<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;

/// What was looked up last of one kind, by a key whose object is kept: a number, at a place that the key says.
struct Recent<K, V>([(K, V); RECENT]);

/// Entries of such a table.
const RECENT: usize = 64;

impl<K: Copy + Default, V: Copy + Default> Default for Recent<K, V> {
    fn default() -> Self {
        Self([(K::default(), V::default()); RECENT])
    }
}

impl<K: Copy + PartialEq, V: Copy> Recent<K, V> {
    /// Objects are aligned to 16 bytes at least.
    #[inline(always)]
    fn slot(&mut self, address: usize) -> &mut (K, V) {
        &mut self.0[(address >> 5) % RECENT]
    }

    #[cfg(Py_3_13)]
    #[inline(always)]
    fn get(&mut self, address: usize, key: K) -> Option<V> {
        let (known, value) = *self.slot(address);
        (known == key).then_some(value)
    }
}

/// What the task that was made last is known by, while the functions and places are kept that it names.
#[cfg(Py_3_13)]
#[derive(Default, Clone, Copy)]
struct Latest {
    key: usize,
    /// The code that was passed over, if one was.
    passed: usize,
    at: (usize, i32),
    found: (u16, u16),
}

/// What a loop keeps of its tasks.
#[derive(Default)]
pub struct Register {
    /// The place of the task whose step runs; 0: none.
    running: AtomicU32,
    /// The end of the last step; 0: the loop does not run.
    now: AtomicU64,
    kept: LoopCell<Kept>,
}

/// The part of it that is more than a number.
#[derive(Default)]
struct Kept {
    book: Book,
    #[cfg(Py_3_13)]
    latest: Latest,
    functions: Table<usize, u16>,
    function_keys: Vec<Py<PyAny>>,
    sites: Table<(usize, i32), u16>,
    site_codes: Vec<(Py<PyAny>, i32)>,
    /// Whether a code is asyncio's or ours, so that its caller made the task.
    passed: Table<usize, bool>,
    passed_codes: Vec<Py<PyAny>>,
    /// asyncio's own tasks, by address.
    stock: Table<usize, Place>,
    recent_functions: Recent<usize, u16>,
    recent_sites: Recent<(usize, i32), u16>,
    recent_passed: Recent<usize, bool>,
    /// Where frames are found without objects, once it was asked; 0: not known.
    #[cfg(Py_3_13)]
    frames: usize,
    /// The last number of a task, and the last one that is free for it.
    id: u64,
    last_id: u64,
}

/// The last numbers that loops have taken for their tasks: so many at a time. They are different for each task of the process,
/// and never 0.
static IDS: AtomicU64 = AtomicU64::new(0);
const IDS_AT_ONCE: u64 = 4096;

impl Register {
    /// The task at this place takes a step from now on; None: something else runs.
    #[inline(always)]
    pub fn runs(&self, place: Option<Place>) {
        self.running.store(place.map_or(0, Place::get), Relaxed);
    }

    /// A task that is made from now on was made at this time.
    #[inline(always)]
    pub fn passes(&self, now: u64) {
        self.now.store(now, Relaxed);
    }

    /// The loop runs no longer: no step has ended, and none is a parent.
    pub fn rests(&self) {
        self.passes(0);
        self.runs(None);
    }

    /// A step of the task at this place has taken and waited so long; `end`: it was its last one.
    #[inline(always)]
    pub fn stepped(&self, py: Python<'_>, place: Place, took: u64, waited: u64, end: Option<End>) {
        let now = self.time();
        self.kept.with(py, |kept| {
            kept.book.stepped(place, (took, waited), end, now)
        });
    }

    /// The task at this place has ended otherwise than with a step of the ring.
    pub fn ended(&self, py: Python<'_>, place: Place, end: End) {
        let now = self.time();
        self.kept.with(py, |kept| kept.book.end(place, end, now));
    }

    /// The number of the task that was made last; 0: none was.
    pub fn last(&self, py: Python<'_>) -> u64 {
        self.kept.with(py, |kept| kept.id)
    }

    /// The number of the task at this place, and that of its function.
    #[inline(always)]
    pub fn whose(&self, py: Python<'_>, place: Place) -> Option<(u64, u16)> {
        self.kept.with(py, |kept| {
            kept.book
                .at(place)
                .map(|record| (record.id, record.function))
        })
    }

    /// The record of a task of asyncio's own.
    #[inline]
    pub fn place_of_stock(&self, py: Python<'_>, address: usize) -> Option<Place> {
        self.kept.with(py, |kept| match kept.stock.is_empty() {
            true => None,
            false => kept.stock.get(&address).copied(),
        })
    }

    /// The task that makes another one now, and the time.
    #[inline(always)]
    fn moment(&self) -> (Option<Place>, u64) {
        (Place::new(self.running.load(Relaxed)), self.time())
    }

    /// When the last step has ended, or the time if the loop does not run.
    #[inline(always)]
    fn time(&self) -> u64 {
        match self.now.load(Relaxed) {
            0 => clock::monotonic_ns(),
            now => now,
        }
    }
}

impl Kept {
    /// The number of a function; 0: it is not kept.
    fn function(&mut self, key: &Bound<'_, PyAny>) -> u16 {
        let address = key.as_ptr() as usize;
        if let Some(&number) = self.functions.get(&address) {
            *self.recent_functions.slot(address) = (address, number);
            return number;
        }
        let number = self.function_keys.len() as u16 + 1;
        if number >= FUNCTIONS {
            return 0;
        }
        self.functions.insert(address, number);
        self.function_keys.push(key.clone().unbind());
        number
    }

    #[inline]
    fn begin(
        &mut self,
        task: &Bound<'_, PyAny>,
        found: (u16, u16),
        (parent, now): (Option<Place>, u64),
    ) -> Option<Place> {
        let id = self.next_id();
        self.book
            .begin(task.as_ptr() as usize, id, parent, found, now)
    }

    fn site(&mut self, at: &site::Site<'_>) -> u16 {
        let key = (at.code.as_ptr() as usize, at.instruction);
        if let Some(&number) = self.sites.get(&key) {
            *self.recent_sites.slot(key.0 ^ key.1 as usize) = (key, number);
            return number;
        }
        let number = self.site_codes.len() as u16 + 1;
        if number > SITES {
            return 0;
        }
        self.site_codes
            .push((at.code.clone().unbind(), at.instruction));
        self.sites.insert(key, number);
        number
    }

    #[inline]
    fn next_id(&mut self) -> u64 {
        if self.id == self.last_id {
            self.id = IDS.fetch_add(IDS_AT_ONCE, Relaxed);
            self.last_id = self.id + IDS_AT_ONCE;
        }
        self.id += 1;
        self.id
    }

    /// The number of the function with this key, and of the place that runs, if both were met lately.
    #[cfg(Py_3_13)]
    #[inline]
    fn known(&mut self, py: Python<'_>, key: usize) -> Option<(u16, u16)> {
        if self.frames == 0 {
            return None;
        }
        let latest = &self.latest;
        if latest.key == key {
            let mut frames = frames::running(py, self.frames);
            let mut frame = frames.next()?;
            if frame.address() == latest.passed {
                frame = frames.next()?;
            }
            if frame.address() == latest.at.0 && frame.instruction() == latest.at.1 {
                return Some(latest.found);
            }
        }
        self.known_before(py, key)
    }

    /// As [`Kept::known`], of another task than the last one.
    #[cfg(Py_3_13)]
    #[inline(never)]
    fn known_before(&mut self, py: Python<'_>, key: usize) -> Option<(u16, u16)> {
        let function = self.recent_functions.get(key, key)?;
        let none = py.None().as_ptr() as usize;
        let mut passed = 0;
        for frame in frames::running(py, self.frames).take(site::DEPTH) {
            let code = frame.address();
            if code == 0 || code == none {
                // One of the interpreter's own, between C and Python.
                continue;
            }
            if self.recent_passed.get(code, code)? {
                passed = code;
                continue;
            }
            let at = (code, frame.instruction());
            let site = self.recent_sites.get(code ^ at.1 as usize, at)?;
            self.latest = Latest {
                key,
                passed,
                at,
                found: (function, site),
            };
            return Some((function, site));
        }
        None
    }

    /// Before 3.13 a place costs an object, and this is not worth its while.
    #[cfg(not(Py_3_13))]
    fn known(&mut self, _py: Python<'_>, _key: usize) -> Option<(u16, u16)> {
        None
    }
}

/// What tells the function of a coroutine apart: its code, or its qualified name, or its class.
fn key_of<'py>(coro: &Bound<'py, PyAny>) -> Bound<'py, PyAny> {
    let py = coro.py();
    if call::is_exact_coroutine(coro)
        && let Some(code) = origin::code_of_coroutine(coro)
    {
        return code.into_bound();
    }
    if let Ok(code) = coro.getattr(intern!(py, "gi_code"))
        && code.is_instance_of::<PyCode>()
    {
        return code;
    }
    let name = coro.getattr(intern!(py, "__qualname__"));
    match name.as_ref().map(|name| name.extract::<&str>()) {
        // One object for all strings that are equal.
        Ok(Ok(name)) => PyString::intern(py, name).into_any(),
        // Not the class: it may refer to the loop, which refers to what it keeps of its tasks unseen by the collector.
        _ => match coro.get_type().qualname() {
            Ok(name) => PyString::intern(py, &name.to_string_lossy()).into_any(),
            Err(_) => py.None().into_bound(py),
        },
    }
}

/// Whether a code is asyncio's or tideloop's own.
fn is_passed(core: &LoopCore, code: &Bound<'_, PyAny>) -> bool {
    let py = code.py();
    let Some(register) = core.register() else {
        return false;
    };
    let address = code.as_ptr() as usize;
    let known = register.kept.with(py, |kept| {
        let passed = *kept.passed.get(&address)?;
        *kept.recent_passed.slot(address) = (address, passed);
        Some(passed)
    });
    if let Some(known) = known {
        return known;
    }
    let ask = || -> PyResult<bool> {
        let file = code.getattr(intern!(py, "co_filename"))?;
        py.import(intern!(py, "tideloop.observe.tasks"))?
            .call_method1(intern!(py, "is_internal"), (file,))?
            .is_truthy()
    };
    let passed = ask().unwrap_or(false);
    register.kept.with(py, |kept| {
        if kept.passed_codes.len() < CODES {
            kept.passed_codes.push(code.clone().unbind());
            kept.passed.insert(address, passed);
        }
    });
    passed
}

/// A task of a loop that counts is made: its record.
#[inline]
pub fn begins(core: &LoopCore, task: &Bound<'_, PyAny>, coro: &Bound<'_, PyAny>) -> Option<Place> {
    let py = task.py();
    let register = core.register()?;
    let key = key_of(coro);
    let place = register.kept.with(py, |kept| {
        let found = kept.known(py, key.as_ptr() as usize)?;
        kept.begin(task, found, register.moment())
    });
    let place = place.or_else(|| begins_somewhere(core, task, &key))?;
    if let Some(observed) = core.observed()
        && observed.recorder.is_some()
        && let Some((id, _)) = register.whose(py, place)
    {
        recorder::spawns(observed, id);
    }
    Some(place)
}

/// As [`begins`], of a function or at a place that was not met lately.
#[cold]
fn begins_somewhere(
    core: &LoopCore,
    task: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
) -> Option<Place> {
    let py = task.py();
    let register = core.register()?;
    let at = site::innermost(py, |code| is_passed(core, code));
    #[cfg(Py_3_13)]
    let frames = frames::field(py).unwrap_or(0);
    register.kept.with(py, |kept| {
        #[cfg(Py_3_13)]
        {
            kept.frames = frames;
        }
        let function = kept.function(key);
        let site = at.as_ref().map_or(0, |at| kept.site(at));
        kept.begin(task, (function, site), register.moment())
    })
}

/// As [`begins`], of a task of asyncio's own that was made of this. If it has ended by now, in a first step that was eager, that is
/// counted as well: how.
pub fn begins_stock(
    core: &LoopCore,
    task: &Bound<'_, PyAny>,
    coro: &Bound<'_, PyAny>,
) -> PyResult<Option<End>> {
    let py = task.py();
    // What a factory makes need not be a task, and not one whose steps can be told from other callbacks.
    if !task.is_instance(classes(py)?.stock_task.bind(py))?
        || native::ready(py).is_some_and(|native| native.is_task(task.as_ptr()))
    {
        return Ok(None);
    }
    let is_done = park::is_done(task)?;
    // Of those that have ended before, which a factory may have kept, nothing is counted.
    if is_done && !task.call_method0(intern!(py, "get_coro"))?.is_none() {
        return Ok(None);
    }
    let (Some(place), Some(register)) = (begins(core, task, coro), core.register()) else {
        return Ok(None);
    };
    if is_done {
        let end = end_of(task)?;
        register.ended(py, place, end);
        return Ok(Some(end));
    }
    let (address, now) = (task.as_ptr() as usize, register.time());
    register.kept.with(py, |kept| {
        // One that was destroyed before its end has left the address to this one.
        if let Some(before) = kept.stock.insert(address, place) {
            kept.book.end(before, End::Dropped, now);
        }
    });
    Ok(None)
}

/// How a task has ended.
fn end_of(task: &Bound<'_, PyAny>) -> PyResult<End> {
    let py = task.py();
    if task.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
        return Ok(End::Cancelled);
    }
    Ok(match task.getattr(intern!(py, "_exception"))?.is_none() {
        true => End::Ok,
        false => End::Failed,
    })
}

/// A step that a handle has called has ended: how the task has, if it has, and its record with it.
pub fn handle_stepped(
    core: &LoopCore,
    place: Place,
    task: &Bound<'_, PyAny>,
) -> PyResult<Option<End>> {
    let py = task.py();
    if !park::is_done(task)? {
        return Ok(None);
    }
    let end = end_of(task)?;
    if let Some(register) = core.register() {
        let (address, now) = (task.as_ptr() as usize, register.time());
        register.kept.with(py, |kept| {
            kept.stock.remove(&address);
            kept.book.end(place, end, now);
        });
    }
    if task::place_of(task).is_some() {
        task::take_ended(task);
    }
    Ok(Some(end))
}

/// Of a task: its id, its parent's, when it was made, how long it was busy and scheduled, its longest step, how many
/// it took, and where it was made.
type Row = (u64, u64, u64, u64, u64, u64, u32, Option<(String, u32)>);

/// These are all tasks that there are of those up to this number ([`Register::last`]): what is kept of others of asyncio's own is
/// forgotten.
pub fn forget_others(core: &LoopCore, tasks: &[Bound<'_, PyAny>], up_to: u64, py: Python<'_>) {
    let Some(register) = core.register() else {
        return;
    };
    let (running, now) = register.moment();
    register.kept.with(py, |kept| {
        let Kept { stock, book, .. } = kept;
        if stock.is_empty() {
            return;
        }
        let here: std::collections::HashSet<usize> =
            tasks.iter().map(|task| task.as_ptr() as usize).collect();
        stock.retain(|address, place| {
            // One that is ending is not among them, and its record is not yet done with.
            let lives = here.contains(address)
                || running == Some(*place)
                || book
                    .get(*place, *address)
                    .is_some_and(|record| record.id > up_to);
            if !lives {
                book.end(*place, End::Dropped, now);
            }
            lives
        });
    });
}

/// The numbers of these tasks; None: nothing is known of one.
pub fn numbers(core: &LoopCore, tasks: &[Bound<'_, PyAny>], py: Python<'_>) -> Vec<Option<u64>> {
    let Some(register) = core.register() else {
        return Vec::new();
    };
    let numbers = tasks.iter().map(|task| {
        let address = task.as_ptr() as usize;
        let native = task::place_of(task);
        let place = native.or_else(|| register.place_of_stock(py, address))?;
        register
            .kept
            .with(py, |kept| Some(kept.book.get(place, address)?.id))
    });
    numbers.collect()
}

/// What is known of these tasks, and the time; None: nothing.
pub fn records(
    core: &LoopCore,
    tasks: &[Bound<'_, PyAny>],
    py: Python<'_>,
) -> (u64, Vec<Option<Row>>) {
    let Some(register) = core.register() else {
        return (0, Vec::new());
    };
    let now = clock::monotonic_ns();
    let found: Vec<_> = tasks
        .iter()
        .map(|task| {
            let address = task.as_ptr() as usize;
            let native = task::place_of(task);
            register.kept.with(py, |kept| {
                let place = native.or_else(|| kept.stock.get(&address).copied())?;
                let record = *kept.book.get(place, address)?;
                let site = (record.site as usize)
                    .checked_sub(1)
                    .and_then(|index| kept.site_codes.get(index))
                    .map(|(code, instruction)| (code.clone_ref(py), *instruction));
                Some((record, site))
            })
        })
        .collect();
    let rows = found.into_iter().map(|found| {
        let (record, site) = found?;
        let site = site.and_then(|(code, instruction)| {
            let code = code.into_bound(py);
            let file: String = code.getattr("co_filename").ok()?.extract().ok()?;
            Some((file, site::line(&code, instruction)))
        });
        Some((
            record.id,
            record.parent,
            record.created,
            record.busy,
            record.scheduled,
            record.longest,
            record.steps,
            site,
        ))
    });
    (now, rows.collect())
}

/// Of a function: what tells it apart, and its counts.
type Counts<'py> = (Option<Bound<'py, PyAny>>, [u64; 10]);

/// The coroutine functions and what their tasks did.
pub fn functions<'py>(core: &LoopCore, py: Python<'py>) -> Vec<Counts<'py>> {
    let Some(register) = core.register() else {
        return Vec::new();
    };
    let now = clock::monotonic_ns();
    register.kept.with(py, |kept| {
        let counts = kept.book.functions(now);
        let rows = counts.iter().enumerate().map(|(number, function)| {
            let key = number
                .checked_sub(1)
                .and_then(|index| kept.function_keys.get(index))
                .map(|key| key.bind(py).clone());
            let row = [
                function.live,
                function.created,
                function.ok,
                function.failed,
                function.cancelled,
                function.steps,
                function.busy,
                function.scheduled,
                function.lived,
                function.longest,
            ];
            (key, row)
        });
        rows.filter(|(_, row)| row[1] > 0).collect()
    })
}
