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
//! **What a task costs** is mostly what is looked up of it: its function and its place. What was met lately is known by addresses,
//! in tables of a fixed size ([`Recent`]) whose keys are kept alive by the ones above, so that it takes neither a reference
//! nor a hash. Nothing but the record is written when a task is made, and when it steps.
//!
//! **Time** is that of the loop's coarse clock: one read per entry of the ready ring, the end of one being the start of
//! the next.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCode, PyString};
use tideloop_core::observe::book::{Book, End, FUNCTIONS, Place};
use tideloop_sys::clock;

use super::recorder;
use crate::event_loop::LoopCore;
use crate::ffi::classes::classes;
#[cfg(Py_3_13)]
use crate::ffi::frames;
use crate::ffi::{call, origin, park, site, task};

/// Places in the program that are told apart.
const SITES: usize = 4096;

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

/// What a loop keeps of its tasks.
#[derive(Default)]
pub struct Register {
    pub book: Book,
    /// The end of the last step.
    pub now: u64,
    functions: Table<usize, u32>,
    function_keys: Vec<Py<PyAny>>,
    sites: Table<(usize, i32), u32>,
    site_codes: Vec<(Py<PyAny>, i32)>,
    /// Whether a code is asyncio's or ours, so that its caller made the task.
    passed: Table<usize, bool>,
    passed_codes: Vec<Py<PyAny>>,
    /// asyncio's own tasks, by address.
    stock: Table<usize, Place>,
    recent_functions: Recent<usize, u32>,
    recent_sites: Recent<(usize, i32), u32>,
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
    /// The number of a function; the key comes back if it is not kept.
    #[inline]
    fn function(&mut self, key: Bound<'_, PyAny>) -> u32 {
        let address = key.as_ptr() as usize;
        if let Some(&number) = self.functions.get(&address) {
            *self.recent_functions.slot(address) = (address, number);
            // Kept by the table, so this drops no last reference.
            return number;
        }
        if self.function_keys.len() + 1 >= FUNCTIONS {
            return 0;
        }
        let number = self.function_keys.len() as u32 + 1;
        self.functions.insert(key.as_ptr() as usize, number);
        self.function_keys.push(key.unbind());
        number
    }

    #[inline]
    fn begin(&mut self, task: &Bound<'_, PyAny>, (function, site): (u32, u32)) -> Option<Place> {
        let now = match self.now {
            0 => clock::monotonic_ns(),
            now => now,
        };
        let (id, address) = (self.next_id(), task.as_ptr() as usize);
        self.book.begin(address, id, function, site, now)
    }

    fn site(&mut self, at: &site::Site<'_>) -> u32 {
        let key = (at.code.as_ptr() as usize, at.instruction);
        if let Some(&number) = self.sites.get(&key) {
            *self.recent_sites.slot(key.0 ^ key.1 as usize) = (key, number);
            return number;
        }
        if self.site_codes.len() >= SITES {
            return 0;
        }
        self.site_codes
            .push((at.code.clone().unbind(), at.instruction));
        let number = self.site_codes.len() as u32;
        self.sites.insert(key, number);
        number
    }

    /// The loop runs no longer: no step has ended, and none is a parent.
    pub fn rests(&mut self) {
        self.now = 0;
        self.book.running = None;
    }

    #[inline]
    fn next_id(&mut self) -> u64 {
        if self.id == self.last_id {
            self.id = IDS.fetch_add(IDS_AT_ONCE, Ordering::Relaxed);
            self.last_id = self.id + IDS_AT_ONCE;
        }
        self.id += 1;
        self.id
    }

    /// The number of the function with this key, and of the place that runs, if both were met lately.
    #[cfg(Py_3_13)]
    #[inline]
    fn known(&mut self, py: Python<'_>, key: usize) -> Option<(u32, u32)> {
        let function = self.recent_functions.get(key, key)?;
        if self.frames == 0 {
            return None;
        }
        let none = py.None().as_ptr() as usize;
        for frame in frames::running(py, self.frames).take(site::DEPTH) {
            let code = frame.address();
            if code == 0 || code == none {
                // One of the interpreter's own, between C and Python.
                continue;
            }
            if !self.recent_passed.get(code, code)? {
                let at = (code, frame.instruction());
                let site = self.recent_sites.get(code ^ at.1 as usize, at)?;
                return Some((function, site));
            }
        }
        None
    }

    /// Before 3.13 a place costs an object, and this is not worth its while.
    #[cfg(not(Py_3_13))]
    fn known(&mut self, _py: Python<'_>, _key: usize) -> Option<(u32, u32)> {
        None
    }

    /// The number of the task that was made last; 0: none was.
    pub fn last(&self) -> u64 {
        self.id
    }

    /// The record of a task of asyncio's own.
    #[inline]
    pub fn place_of_stock(&self, address: usize) -> Option<Place> {
        self.stock.get(&address).copied()
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
    let known = register.with(py, |register| {
        let passed = *register.passed.get(&address)?;
        *register.recent_passed.slot(address) = (address, passed);
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
    register.with(py, |register| {
        if register.passed_codes.len() < CODES {
            register.passed_codes.push(code.clone().unbind());
            register.passed.insert(address, passed);
        }
    });
    passed
}

/// A task of a loop that counts is made: its record.
pub fn begins(core: &LoopCore, task: &Bound<'_, PyAny>, coro: &Bound<'_, PyAny>) -> Option<Place> {
    let py = task.py();
    let register = core.register()?;
    let key = key_of(coro);
    if let Some(observed) = core.observed() {
        recorder::spawns(observed, task);
    }
    let place = register.with(py, |register| {
        let known = register.known(py, key.as_ptr() as usize)?;
        register.begin(task, known)
    });
    place.or_else(|| begins_somewhere(core, task, key))
}

/// As [`begins`], of a function or at a place that was not met lately.
#[cold]
fn begins_somewhere(
    core: &LoopCore,
    task: &Bound<'_, PyAny>,
    key: Bound<'_, PyAny>,
) -> Option<Place> {
    let py = task.py();
    let register = core.register()?;
    let at = site::innermost(py, |code| is_passed(core, code));
    let kept = key.clone();
    #[cfg(Py_3_13)]
    let frames = frames::field(py).unwrap_or(0);
    let place = register.with(py, |register| {
        #[cfg(Py_3_13)]
        {
            register.frames = frames;
        }
        let function = register.function(key);
        let site = at.as_ref().map_or(0, |at| register.site(at));
        register.begin(task, (function, site))
    });
    drop(kept);
    place
}

/// As [`begins`], of a task of asyncio's own, unless it has ended in the meantime.
pub fn begins_stock(core: &LoopCore, task: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = task.py();
    // What a factory makes need not be a task, and not one whose steps can be told from other callbacks.
    if !task.is_instance(classes(py)?.stock_task.bind(py))?
        || park::is_done(task)?
        || task::place_of(task).is_some()
    {
        return Ok(());
    }
    let coro = task.call_method0(intern!(py, "get_coro"))?;
    if let (Some(place), Some(register)) = (begins(core, task, &coro), core.register()) {
        let address = task.as_ptr() as usize;
        register.with(py, |register| {
            // One that was destroyed before its end has left the address to this one.
            if let Some(before) = register.stock.insert(address, place) {
                register.book.end(before, End::Dropped);
            }
        });
    }
    Ok(())
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
    let end = if task.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
        End::Cancelled
    } else if task.getattr(intern!(py, "_exception"))?.is_none() {
        End::Ok
    } else {
        End::Failed
    };
    if let Some(register) = core.register() {
        let address = task.as_ptr() as usize;
        register.with(py, |register| {
            register.stock.remove(&address);
            register.book.end(place, end);
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
    register.with(py, |register| {
        let Register { stock, book, .. } = register;
        if stock.is_empty() {
            return;
        }
        let here: std::collections::HashSet<usize> =
            tasks.iter().map(|task| task.as_ptr() as usize).collect();
        stock.retain(|address, place| {
            // One that is ending is not among them, and its record is not yet done with.
            let lives = here.contains(address)
                || book.running == Some(*place)
                || book
                    .get(*place, *address)
                    .is_some_and(|record| record.id > up_to);
            if !lives {
                book.end(*place, End::Dropped);
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
        register.with(py, |register| {
            let place = native.or_else(|| register.place_of_stock(address))?;
            Some(register.book.get(place, address)?.id)
        })
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
            register.with(py, |register| {
                let place = native.or_else(|| register.place_of_stock(address))?;
                let record = *register.book.get(place, address)?;
                let site = (record.site as usize)
                    .checked_sub(1)
                    .and_then(|index| register.site_codes.get(index))
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
type Counts<'py> = (Option<Bound<'py, PyAny>>, [u64; 8]);

/// The coroutine functions and what their tasks did.
pub fn functions<'py>(core: &LoopCore, py: Python<'py>) -> Vec<Counts<'py>> {
    let Some(register) = core.register() else {
        return Vec::new();
    };
    register.with(py, |register| {
        let counts = register.book.functions();
        let rows = counts.iter().enumerate().map(|(number, function)| {
            let key = number
                .checked_sub(1)
                .and_then(|index| register.function_keys.get(index))
                .map(|key| key.bind(py).clone());
            let row = [
                function.live,
                function.created,
                function.ok,
                function.failed,
                function.cancelled,
                function.busy,
                function.scheduled,
                function.longest,
            ];
            (key, row)
        });
        rows.filter(|(_, row)| row[1] > 0).collect()
    })
}
