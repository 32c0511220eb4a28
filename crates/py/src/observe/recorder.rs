//! The flight recorder, level 2 (`EventLoop(observe="trace")`): what a loop did of late, event by event, for Perfetto.
//!
//! **Who may touch what.** A [`Recorder`] is behind the loop's `Arc<Observed>`. Its ring (`tideloop_core::observe::ring`) is
//! written by the thread that runs the loop and read by any thread, without a lock and without the GIL: who asks for a trace
//! while the loop is blocked gets it, with the step that blocks at its end. Its labels have a lock, which the loop takes only
//! when code runs that it has not met in this run, and never while it calls Python: the text is made before.
//! The [`Scribe`] is a run's part, on the stack of the loop's thread. It owns a reference to each code object that has a
//! label, and to the class of each builtin method, since it knows them by their addresses; when the run ends they are let go of,
//! with the GIL held.
//!
//! **What an event costs.** A look at a table for the label, and two stores. An event says what runs from its time on; that is over
//! when the next one begins, so a step needs one event, whose time is that of the last step's end, which level 1 has read, and another
//! one behind it. A task is known by the number that its record at level 1 has, no other task of the process ever, and its label by
//! that of its function. No name is made, and no table is kept of tasks.
//!
//! **Who became ready when** is not noted at that time, on the way into the ring, but behind the step, when level 1 has found out
//! how long the task had waited: its time is that at which what ran then was over, so the trace knows by whom as well. A
//! task that is made is noted at the beginning of the step that makes it.
//!
//! **Garbage collections** are told of by the interpreter, in the thread in which they happen. Each thread knows whose events are
//! recorded in it ([`CURRENT`]): so there is still one writer to a ring, whoever collects or makes tasks wherever.
//!
//! **What is not in it.** Steps of asyncio's own tasks are callbacks. Of callbacks it is not said when they became ready.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyType;
use tideloop_core::observe::chrome::{Chrome, Label};
use tideloop_core::observe::ring::{ENDED, Event, Kind, LABELS, Ring};
use tideloop_sys::clock;

use super::Observed;
use super::who::Who;
use crate::ffi::origin::{self, Method, Origin};

/// Events kept: 1 MiB.
const EVENTS: usize = 1 << 16;

/// Labels kept; what comes later has none.
const MOST: usize = 4_096;
const _: () = assert!(MOST < LABELS as usize);

/// Entries of the tables of labels that were used last.
const RECENT: usize = 256;
const RECENT_METHODS: usize = 32;

/// What a loop that is traced has recorded.
pub struct Recorder {
    ring: Ring,
    labels: Mutex<Labels>,
}

struct Labels {
    list: Vec<Label>,
    numbers: HashMap<Label, u32>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            ring: Ring::new(EVENTS),
            labels: Mutex::new(Labels {
                // The number 0: not known.
                list: vec![Label {
                    what: "?".to_owned(),
                    ..Label::default()
                }],
                numbers: HashMap::new(),
            }),
        }
    }
}

impl Recorder {
    /// Adds an event. In the thread that runs the loop only.
    #[inline(always)]
    pub fn note(&self, at: u64, kind: Kind, id: u64, label: u32) {
        self.ring.push(Event {
            at,
            kind,
            id,
            label,
        });
    }

    /// Adds an event within what is recorded as running.
    fn note_within(&self, kind: Kind, id: u64) {
        self.note(self.ring.last_at(), kind, id, 0);
    }

    fn labels(&self) -> Vec<Label> {
        let labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        labels.list.clone()
    }

    fn number(&self, label: Label) -> u32 {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&number) = labels.numbers.get(&label) {
            return number;
        }
        if labels.list.len() == MOST {
            return 0;
        }
        let number = labels.list.len() as u32;
        labels.list.push(label.clone());
        labels.numbers.insert(label, number);
        number
    }
}

/// A run's part of recording; see the module.
pub struct Scribe {
    observed: Arc<Observed>,
    recent: Box<[(usize, u32); RECENT]>,
    numbers: HashMap<usize, (u32, Py<PyAny>)>,
    /// Of builtins that are bound to objects, with the classes of these: their names would be made for each call.
    recent_methods: Box<[(Method, u32); RECENT_METHODS]>,
    methods: HashMap<Method, (u32, Py<PyType>)>,
    /// Of the functions of tasks, by the number that these have in the loop; 0: not known.
    of_functions: Vec<u32>,
    /// Which task has taken the last step; 0: none that has a record.
    current: u64,
    /// Whose events were recorded in this thread before.
    before: Option<Arc<Observed>>,
}

thread_local! {
    /// The loop that runs in this thread, if it is traced.
    static CURRENT: RefCell<Option<Arc<Observed>>> = const { RefCell::new(None) };
}

fn set_current(observed: Option<Arc<Observed>>) -> Option<Arc<Observed>> {
    CURRENT
        .try_with(|current| current.replace(observed))
        .unwrap_or_default()
}

/// A task of this loop is made, with this number.
pub fn spawns(observed: &Arc<Observed>, id: u64) {
    if let Some(recorder) = &observed.recorder {
        let is_here = |current: &RefCell<Option<Arc<Observed>>>| {
            let current = current.borrow();
            current
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, observed))
        };
        if CURRENT.try_with(is_here).unwrap_or(false) {
            recorder.note_within(Kind::Spawn, id);
        }
    }
}

/// The garbage collector begins to work in this thread, or is done.
pub fn collects(begins: bool) {
    let kind = if begins {
        Kind::Collect
    } else {
        Kind::Collected
    };
    let note = |current: &RefCell<Option<Arc<Observed>>>| {
        if let Some(observed) = &*current.borrow()
            && let Some(recorder) = &observed.recorder
        {
            recorder.note(clock::monotonic_ns(), kind, 0, 0);
        }
    };
    // A thread that ends has no loop.
    CURRENT.try_with(note).unwrap_or_default();
}

impl Drop for Scribe {
    fn drop(&mut self) {
        drop(set_current(self.before.take()));
    }
}

impl Scribe {
    /// None: this loop is not traced.
    pub fn new(observed: &Arc<Observed>) -> Option<Self> {
        observed.recorder.as_ref()?;
        Some(Self {
            observed: Arc::clone(observed),
            recent: Box::new([(0, 0); RECENT]),
            numbers: HashMap::new(),
            recent_methods: Box::new([(Method::default(), 0); RECENT_METHODS]),
            methods: HashMap::new(),
            of_functions: Vec::new(),
            current: 0,
            before: set_current(Some(Arc::clone(observed))),
        })
    }

    #[inline(always)]
    pub fn note(&self, at: u64, kind: Kind, id: u64, label: u32) {
        if let Some(recorder) = &self.observed.recorder {
            recorder.note(at, kind, id, label);
        }
    }

    /// A task of ours takes a step from now on: the number of this one, and that of its function.
    #[inline]
    pub fn step(&mut self, at: u64, (id, function): (u64, u16), task: &Bound<'_, PyAny>) {
        let label = match self.of_functions.get(usize::from(function)) {
            Some(&label) if label != 0 => label,
            _ => self.label_of(function, task),
        };
        self.current = id;
        self.note(at, Kind::Step, id, label);
    }

    #[cold]
    fn label_of(&mut self, function: u16, task: &Bound<'_, PyAny>) -> u32 {
        let Some(origin) = origin::of_task(task) else {
            return 0;
        };
        let label = self.label(origin, &Who::Task(task));
        // The number 0 is of all that are not told apart.
        if function != 0 {
            let index = usize::from(function);
            if self.of_functions.len() <= index {
                self.of_functions.resize(index + 1, 0);
            }
            self.of_functions[index] = label;
        }
        label
    }

    /// A callback is called from now on.
    #[inline]
    pub fn call(&mut self, at: u64, callback: Option<&Bound<'_, PyAny>>) {
        let label = callback.map_or(0, |callback| match origin::in_partial(callback) {
            Some(called) => self.label_of_callable(&called),
            None => self.label_of_callable(callback),
        });
        self.note(at, Kind::Call, 0, label);
    }

    #[inline]
    fn label_of_callable(&mut self, callable: &Bound<'_, PyAny>) -> u32 {
        match origin::method_of_builtin(callable) {
            Some((method, class)) => self.label_of_method(method, class, callable),
            None => self.label_of_origin(callable),
        }
    }

    #[inline]
    fn label_of_origin(&mut self, callable: &Bound<'_, PyAny>) -> u32 {
        let origin = origin::of_callable(callable);
        self.label(origin, &Who::Callback(Some(callable)))
    }

    #[inline]
    fn label_of_method(
        &mut self,
        method: Method,
        class: Bound<'_, PyType>,
        callable: &Bound<'_, PyAny>,
    ) -> u32 {
        match self.recent_methods.get(method.spread() % RECENT_METHODS) {
            Some(&(found, label)) if found == method => label,
            _ => self.look_up_method(method, class, callable),
        }
    }

    #[cold]
    fn look_up_method(
        &mut self,
        method: Method,
        class: Bound<'_, PyType>,
        callable: &Bound<'_, PyAny>,
    ) -> u32 {
        let label = match self.methods.get(&method) {
            Some(&(label, _)) => label,
            None => {
                let label = self.label_of_origin(callable);
                if self.methods.len() >= MOST {
                    return label;
                }
                self.methods.insert(method, (label, class.unbind()));
                label
            }
        };
        if let Some(place) = self
            .recent_methods
            .get_mut(method.spread() % RECENT_METHODS)
        {
            *place = (method, label);
        }
        label
    }

    /// The task that has taken a step had been ready since then; whether it has ended with that.
    #[inline]
    pub fn ready(&self, came: u64, has_ended: bool) {
        if self.current != 0 {
            let label = if has_ended { ENDED } else { 0 };
            self.note(came, Kind::Ready, self.current, label);
        }
    }

    #[inline]
    fn label(&mut self, origin: Origin<'_>, who: &Who<'_, '_>) -> u32 {
        let key = origin.key();
        match self.recent.get((key >> 5) % RECENT) {
            Some(&(found, number)) if found == key => number,
            _ => self.look_up(key, origin, who),
        }
    }

    #[cold]
    fn look_up(&mut self, key: usize, origin: Origin<'_>, who: &Who<'_, '_>) -> u32 {
        let number = match self.numbers.get(&key) {
            Some(&(number, _)) => number,
            None if self.numbers.len() >= MOST => return 0,
            None => {
                let found = who.describe();
                let number = self.observed.recorder.as_ref().map_or(0, |recorder| {
                    recorder.number(Label {
                        what: found.what,
                        file: found.file,
                        // Where the function begins, and not where this task of it happens to be.
                        line: origin.line().unwrap_or(found.line),
                    })
                });
                self.numbers.insert(key, (number, origin.keep()));
                number
            }
        };
        if let Some(place) = self.recent.get_mut((key >> 5) % RECENT) {
            *place = (key, number);
        }
        number
    }
}

/// What these loops did in the last so many seconds (None: as far as it is known) as Chrome trace JSON; without the events of
/// those that are not traced. From any thread, without the GIL.
pub fn chrome_trace(loops: &[Arc<Observed>], seconds: Option<f64>) -> Vec<u8> {
    let now = clock::monotonic_ns();
    // Saturates: whoever asks for more than there is gets what there is.
    let since = seconds.map_or(0, |seconds| now.saturating_sub((seconds * 1e9) as u64));
    let mut chrome = Chrome::new(std::process::id(), "tideloop");
    for observed in loops {
        let Some(recorder) = &observed.recorder else {
            continue;
        };
        let name = match loops {
            [_] => "event loop".to_owned(),
            _ => format!(
                "event loop {} ({})",
                observed.known.id,
                observed.known.name()
            ),
        };
        let events = recorder.ring.read();
        let labels = recorder.labels();
        let is_in = |event: &Event| event.kind.lasts() && event.at >= since;
        let first = events.iter().position(is_in).unwrap_or(events.len());
        // What ran at that time has begun before.
        let (before, _) = events.split_at(first);
        let first = before.iter().rposition(|event| event.kind.lasts());
        let events = events.get(first.unwrap_or(0)..).unwrap_or_default();
        chrome.add(&name, events, &labels, now);
    }
    chrome.into_bytes()
}
