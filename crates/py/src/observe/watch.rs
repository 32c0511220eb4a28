//! A run's own part of observing: the clock, the meter, and the meter's readers.

use std::sync::Arc;

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;
use tideloop_core::observe::book::{End, Pace, Place};
use tideloop_core::observe::ring::{ID_BITS, Kind};
use tideloop_core::observe::{Meter, Timed};
use tideloop_sys::clock::{self, CoarseClock};

use super::blocks;
use super::recorder::Scribe;
use super::slowest::Slow;
use super::tasks;
use super::watchdog::{self, Block, Watched};
use super::who::{Described, Who};
use super::{Instrument, Observed, level};
use crate::event_loop::LoopCore;
use crate::ffi::{site, task};

/// What an event's number can say: a time of some eighteen minutes.
const ID_MAX: u64 = (1 << ID_BITS) - 1;

/// The clock of a run's turns, and what observes them.
pub struct Watch {
    pub coarse: CoarseClock,
    meter: Meter,
    observed: Option<Arc<Observed>>,
    watched: Option<Arc<Watched>>,
    scribe: Option<Scribe>,
    /// Level 1: every step is timed, for the record of its task, which is at this place.
    pace: Pace,
    place: Option<Place>,
}

impl Watch {
    /// A run of this loop begins.
    pub fn new(core: &LoopCore) -> Self {
        let observed = core.observed().cloned();
        let mut watch = Self {
            coarse: CoarseClock::default(),
            meter: Meter::new(observed.is_some()),
            watched: observed.as_ref().and_then(watchdog::enters),
            scribe: observed.as_ref().and_then(Scribe::new),
            pace: Pace::default(),
            place: None,
            observed,
        };
        if let Some(observed) = &watch.observed {
            observed.known.starts();
            let now = watch.real();
            watch.note_shared(|meter, shared| meter.starts(shared, now));
        }
        watch
    }

    /// The real clock, by which the other one is set.
    #[inline]
    pub fn real(&mut self) -> u64 {
        let now = clock::monotonic_ns();
        self.coarse.set(now);
        now
    }

    /// About the time, between two turns: for free if a step was just timed.
    #[inline]
    pub fn now<const LEVEL: u8>(&self) -> u64 {
        if LEVEL >= level::TASKS {
            // Nothing has run since.
            self.pace.last().unwrap_or_else(|| self.coarse.now())
        } else {
            self.meter.fresh().unwrap_or_else(|| self.coarse.now())
        }
    }

    #[inline]
    fn note_shared<R: Default>(&mut self, note: impl FnOnce(&mut Meter, &Instrument) -> R) -> R {
        match &self.observed {
            Some(observed) => note(&mut self.meter, &observed.instrument),
            None => R::default(),
        }
    }

    /// A step of the ring begins: whether it will be timed, so that it has to be kept to be asked who it was.
    #[inline(always)]
    pub fn is_due(&mut self) -> bool {
        self.meter.begins()
    }

    /// Level 1: a task of ours is about to take a step.
    #[inline(always)]
    pub fn begins(&mut self, core: &LoopCore, task: &Bound<'_, PyAny>) {
        self.enters(core, task::place_of_entry(task));
    }

    /// Level 1: a callback is about to be called, which may be the step of a task of asyncio's own, or of ours by way of a
    /// handle.
    #[inline(always)]
    pub fn begins_callback(&mut self, core: &LoopCore, callback: Option<&Bound<'_, PyAny>>) {
        if let Some(callback) = callback
            && let Some(task) = site::receiver(callback)
            && let Some(register) = core.register()
        {
            let py = callback.py();
            let place = task::place_of(&task)
                .or_else(|| register.place_of_stock(py, task.as_ptr() as usize));
            self.enters(core, place);
        }
    }

    /// Level 1: what runs from now on is timed.
    #[inline(always)]
    fn resumes(&mut self) -> u64 {
        match self.pace.last() {
            Some(last) => last,
            None => {
                let now = self.coarse.now();
                self.pace.resumes(now);
                now
            }
        }
    }

    #[inline(always)]
    fn enters(&mut self, core: &LoopCore, place: Option<Place>) {
        self.resumes();
        self.place = place;
        if let Some(register) = core.register() {
            register.runs(place);
        }
    }

    /// Level 1: as [`Watch::stepped`], of every step.
    #[inline(never)]
    pub fn stepped_each(&mut self, core: &Bound<'_, LoopCore>, who: &Who<'_, '_>) -> PyResult<()> {
        let now = self.coarse.now();
        let waiting = core.get().queue(core.py(), |queue| queue.ready.len());
        let to_tell = self.book(core, now, waiting, who);
        if self.meter.is_due() {
            self.read(core, now, waiting, who);
        }
        match to_tell {
            None => Ok(()),
            Some((place, end)) => tell(core, place, end, who),
        }
    }

    /// Level 1: the step of this task ends the run; what has ended with it is booked all the same.
    #[cold]
    pub fn broken(&mut self, core: &Bound<'_, LoopCore>, task: &Bound<'_, PyAny>) {
        let now = self.coarse.now();
        if let (Some(register), Some(place)) = (core.get().register(), self.place.take()) {
            let (took, waited) = self.pace.steps(now, 0);
            let end = task::take_ended(task);
            if let Some(scribe) = &self.scribe {
                scribe.ready(now.saturating_sub(took + waited), end.is_some());
            }
            register.stepped(core.py(), place, took, waited, end);
        }
    }

    /// Level 1: an entry of the ring has run with which the loop tells somebody of an end, or wakes a sleeper. If nothing is
    /// ready by that, a thousand of them in a row are not timed each.
    #[inline]
    pub fn told_each(&mut self, core: &Bound<'_, LoopCore>) -> PyResult<()> {
        let waiting = core.get().queue(core.py(), |queue| queue.ready.len());
        if self.meter.is_due() || !self.pace.passes(waiting) {
            return self.stepped_each(core, &Who::Callback(None));
        }
        Ok(())
    }

    /// Books the step that has ended for its task; what is left to [`tell`] of it.
    #[inline(always)]
    fn book(
        &mut self,
        core: &Bound<'_, LoopCore>,
        now: u64,
        waiting: usize,
        who: &Who<'_, '_>,
    ) -> Option<(Place, Option<End>)> {
        let register = core.get().register()?;
        let (took, waited) = self.pace.steps(now, waiting);
        let place = self.place.take();
        let end = match (place, who) {
            (Some(_), Who::Task(task)) => task::take_ended(task),
            _ => None,
        };
        if let (Some(scribe), Who::Task(_)) = (&self.scribe, who) {
            scribe.ready(now.saturating_sub(took + waited), end.is_some());
        }
        register.passes(now);
        let place = place?;
        register.runs(None);
        register.stepped(core.py(), place, took, waited, end);
        let is_told = end == Some(End::Failed) || matches!(who, Who::Callback(_));
        is_told.then_some((place, end))
    }

    /// Level 2: a task of ours, which [has begun](Watch::begins), is about to take a step.
    #[inline]
    pub fn traces_step(&mut self, core: &LoopCore, task: &Bound<'_, PyAny>) {
        let Some(scribe) = &mut self.scribe else {
            return;
        };
        let whose = match (self.place, core.register()) {
            (Some(place), Some(register)) => register.whose(task.py(), place),
            _ => None,
        };
        let at = self.pace.last().unwrap_or_default();
        scribe.step(at, whose.unwrap_or_default(), task);
    }

    /// Level 2: a callback is about to be called.
    #[inline]
    pub fn traces_call(&mut self, callback: Option<&Bound<'_, PyAny>>) {
        let at = self.resumes();
        if let Some(scribe) = &mut self.scribe {
            scribe.call(at, callback);
        }
    }

    /// Level 2: the loop itself runs an entry of the ring, which goes on with the one before if that was not timed.
    #[inline]
    pub fn traces_entry(&self) {
        if let (Some(scribe), Some(at)) = (&self.scribe, self.pace.last()) {
            scribe.note(at, Kind::Poll, 0, 0);
        }
    }

    /// Level 2: the loop itself does this from now on.
    #[inline]
    pub fn traces(&self, kind: Kind) {
        if let Some(scribe) = &self.scribe {
            scribe.note(self.coarse.now(), kind, 0, 0);
        }
    }

    /// A step that [is timed](Watch::is_due) has ended, and what it has written has left.
    #[cold]
    pub fn stepped(&mut self, core: &Bound<'_, LoopCore>, who: &Who<'_, '_>) {
        let now = self.coarse.now();
        let waiting = core.get().queue(core.py(), |queue| queue.ready.len());
        self.read(core, now, waiting, who);
    }

    #[inline]
    fn read(&mut self, core: &Bound<'_, LoopCore>, now: u64, waiting: usize, who: &Who<'_, '_>) {
        let timed = self.note_shared(|meter, shared| meter.read(shared, now, waiting));
        self.report(core, timed, now, who);
    }

    #[inline]
    fn report(&self, core: &Bound<'_, LoopCore>, timed: Timed, now: u64, who: &Who<'_, '_>) {
        match timed {
            Timed::Short => {}
            Timed::Step(took) => self.describe(core, took, 1, now, who),
            Timed::Among(took, count) => self.describe(core, took, count, now, &Who::OneOf),
        }
    }

    #[cold]
    fn describe(
        &self,
        core: &Bound<'_, LoopCore>,
        took: u64,
        among: u32,
        now: u64,
        who: &Who<'_, '_>,
    ) {
        let Some(observed) = &self.observed else {
            return;
        };
        let watched = self.watched.as_ref().filter(|_| watchdog::is_block(took));
        let is_slow = observed.slowest.admits(took);
        if watched.is_none() && !is_slow {
            return;
        }
        let found = who.describe();
        if let Some(watched) = watched {
            if let Some(scribe) = &self.scribe {
                scribe.note(now, Kind::Block, took.min(ID_MAX), 0);
            }
            let block = watched
                .take(now.saturating_sub(took), took)
                .unwrap_or_default();
            let told = blocked(core, took, who, &found, &block);
            blocks::keep(observed, took, found.clone(), block);
            if let Err(error) = told {
                error.write_unraisable(core.py(), Some(core.as_any()));
            }
        }
        if !is_slow {
            return;
        }
        observed.slowest.add(Slow {
            took,
            ended: now,
            what: found.what,
            file: found.file,
            line: found.line,
            task: found.task,
            among,
        });
    }

    /// What ran until `now` is followed by a poll.
    #[inline]
    pub fn pauses(&mut self, core: &Bound<'_, LoopCore>, now: u64) {
        let timed = self.note_shared(|meter, shared| meter.pauses(shared, now));
        self.report(core, timed, now, &Who::OneOf);
    }

    /// The loop is about to wait.
    pub fn waits(&mut self, core: &Bound<'_, LoopCore>) {
        if self.meter.is_on() {
            self.gauge(core);
            let now = self.coarse.now();
            self.note_shared(|meter, shared| meter.waits(shared, now));
        }
    }

    #[cold]
    fn gauge(&self, core: &Bound<'_, LoopCore>) {
        if self.watched.is_some() {
            watchdog::keeps_watch();
        }
        if let Some(observed) = &self.observed {
            let (ready, timers, descriptors) = core.get().counts(core.py());
            observed.instrument.gauge(ready, timers, descriptors);
        }
    }

    /// The wait is over. Called without the GIL, which others may go on to hold: that is no idling.
    pub fn woke(&mut self) {
        if self.meter.is_on() {
            let now = self.real();
            self.note_shared(|meter, shared| meter.woke(shared, now));
        }
    }

    /// The selector was asked; what it has found is delivered from now on.
    #[inline]
    pub fn polled<const LEVEL: u8>(&mut self, core: &Bound<'_, LoopCore>) {
        if self.meter.is_on() {
            let now = self.coarse.now();
            if LEVEL >= level::TASKS {
                tell_time(core, now);
            }
            let waiting = core.get().queue(core.py(), |queue| queue.ready.len());
            let (took, gauge) =
                self.note_shared(|meter, shared| meter.polled(shared, now, waiting));
            if watchdog::is_block(took) {
                self.describe(core, took, 1, now, &Who::Loop);
            }
            if gauge {
                self.gauge(core);
            }
        }
    }

    /// What was found for one descriptor was delivered, to the protocol of a transport or to the ring.
    #[inline(always)]
    pub fn delivered(&mut self, core: &Bound<'_, LoopCore>, to: Option<&Bound<'_, PyAny>>) {
        if self.meter.delivers(to.is_some()) {
            self.delivered_timed(core, to);
        }
    }

    /// What a poll has found was delivered.
    #[inline(always)]
    pub fn delivered_all(&mut self, core: &Bound<'_, LoopCore>) {
        if self.meter.is_open() {
            self.delivered_timed(core, None);
        }
    }

    #[inline(never)]
    fn delivered_timed(&mut self, core: &Bound<'_, LoopCore>, to: Option<&Bound<'_, PyAny>>) {
        let now = self.coarse.now();
        let timed = self.note_shared(|meter, shared| meter.delivered(shared, now, to.is_some()));
        let who = to.map_or(Who::OneOf, Who::Transport);
        self.report(core, timed, now, &who);
    }

    /// The time after a poll: the real one if it matters, or once in a while.
    #[inline]
    pub fn after_poll(&mut self, matters: bool) -> u64 {
        match self.meter.last_read() {
            Some(last) if !matters && !self.coarse.is_old(last) => last,
            _ => self.real(),
        }
    }

    /// The ring has so many entries now.
    #[inline]
    pub fn turns<const LEVEL: u8>(
        &mut self,
        core: &Bound<'_, LoopCore>,
        now: u64,
        waiting: usize,
        has_polled: bool,
    ) {
        if LEVEL >= level::TASKS {
            // What was delivered may not have been timed, and is not the first step's.
            let began = match has_polled {
                true => self.coarse.now(),
                false => self.now::<LEVEL>(),
            };
            self.pace.turns(began, waiting);
            tell_time(core, began);
        }
        self.meter.turns(now, waiting);
    }

    /// A timer fired so late, in nanoseconds.
    #[inline]
    pub fn fired(&self, late: u64) {
        if let Some(scribe) = &self.scribe {
            // By the clock of the other events: `now` may be a virtual one.
            scribe.note(self.coarse.now(), Kind::Timer, late.min(ID_MAX), 0);
        }
        if let Some(observed) = &self.observed {
            observed.instrument.lateness.add(late, 1);
        }
    }
}

impl Drop for Watch {
    /// The run is over, however it has ended.
    fn drop(&mut self) {
        self.traces(Kind::Rest);
        if self.meter.is_on() {
            let now = clock::monotonic_ns();
            // Who was slow at the very end is not told: there is no turn left to tell it in.
            let _ended: Timed = self.note_shared(|meter, shared| meter.ends(shared, now));
        }
        if let Some(observed) = &self.observed {
            observed.known.stops();
        }
        if let Some(watched) = &self.watched {
            watchdog::leaves(watched);
        }
    }
}

/// What is left to do after a step: the end of a task of asyncio's own, and failures that somebody has to ask for.
#[cold]
fn tell(
    core: &Bound<'_, LoopCore>,
    place: Place,
    end: Option<End>,
    who: &Who<'_, '_>,
) -> PyResult<()> {
    let py = core.py();
    match told(core, place, end, who) {
        // A signal's handler has run meanwhile.
        Err(error)
            if error.is_instance_of::<PyKeyboardInterrupt>(py)
                || error.is_instance_of::<PySystemExit>(py) =>
        {
            Err(error)
        }
        Err(error) => {
            error.write_unraisable(py, Some(core.as_any()));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn told(
    core: &Bound<'_, LoopCore>,
    place: Place,
    end: Option<End>,
    who: &Who<'_, '_>,
) -> PyResult<()> {
    let failed = match who {
        Who::Task(task) => (end == Some(End::Failed)).then(|| (*task).clone()),
        Who::Callback(Some(callback)) => match site::receiver(callback) {
            Some(task) => {
                let end = tasks::handle_stepped(core.get(), place, &task)?;
                (end == Some(End::Failed)).then_some(task)
            }
            None => None,
        },
        _ => None,
    };
    match failed {
        Some(task) => core.call_method1("_task_failed", (task,)).map(drop),
        None => Ok(()),
    }
}

/// When a task that is made now was made.
fn tell_time(core: &Bound<'_, LoopCore>, now: u64) {
    if let Some(register) = core.get().register() {
        register.passes(now);
    }
}

/// Tells the Python half of a step that has blocked the loop; it schedules what is to be done about that.
fn blocked(
    core: &Bound<'_, LoopCore>,
    took: u64,
    who: &Who<'_, '_>,
    found: &Described,
    block: &Block,
) -> PyResult<()> {
    let stacks: Vec<Vec<(&str, u32, &str)>> = block
        .stacks
        .iter()
        .map(|frames| {
            let rows = frames.iter();
            rows.map(|frame| (frame.file.as_str(), frame.line, frame.function.as_str()))
                .collect()
        })
        .collect();
    let place = (&found.what, &found.file, found.line);
    let cause = block.cause(took).name();
    let event = (took, cause, who.task(), place, stacks, block.captured);
    core.call_method1("_blocked", event).map(drop)
}
