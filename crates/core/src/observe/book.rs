//! Level 1: what each task, and each coroutine function, did with its time.
//!
//! A [`Book`] has a record of each live task, and counts of each function that stay when its tasks have gone. It is
//! written by the loop's thread and read with the loop's state, so it needs neither atomics nor a lock of its own. A record is
//! a line of the processor's cache, in one vector that is used again: there is no allocation for a task, and of its record a
//! step touches one line.
//!
//! Only what cannot be derived is kept. A task is *busy* while a step of it runs, *scheduled* while it is ready and waits behind
//! others, and *idle* for the rest of its age.

/// Functions that are told apart; the rest share number 0.
pub const FUNCTIONS: u16 = 4096;

/// A record's place, never 0, so that a field of a task can say that there is none.
pub type Place = std::num::NonZeroU32;

/// How a task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Ok,
    Failed,
    Cancelled,
    /// It was destroyed before its end.
    Dropped,
}

/// A task. Times are nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(align(64))]
pub struct Record {
    /// Whatever the caller knows the task by; 0: this place is free.
    pub key: usize,
    /// Different for each task of the process. Of a free place: the next free one.
    pub id: u64,
    /// The task that made it; 0: none.
    pub parent: u64,
    pub created: u64,
    pub busy: u64,
    pub scheduled: u64,
    pub longest: u64,
    pub steps: u32,
    pub function: u16,
    /// Where it was made, as the caller numbers such places; 0: not known.
    pub site: u16,
}

/// A coroutine function, over all of its tasks that have ended, and those that live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Function {
    pub live: u64,
    pub created: u64,
    pub ok: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub steps: u64,
    pub busy: u64,
    pub scheduled: u64,
    /// Their ages together, at their ends or now.
    pub lived: u64,
    pub longest: u64,
}

/// What a task has used of the time, and the longest of its steps.
#[derive(Debug, Clone, Copy)]
struct Spent {
    steps: u32,
    busy: u64,
    scheduled: u64,
    longest: u64,
}

/// The records of a loop.
#[derive(Debug, Default)]
pub struct Book {
    records: Vec<Record>,
    /// The first free place, numbered from 1; 0: none.
    free: u32,
    live: usize,
    /// Of the tasks that have ended; how many were created is derived.
    functions: Vec<Function>,
}

impl Book {
    /// A task begins, made by the one at `parent`; None: there are more tasks than numbers.
    #[inline]
    pub fn begin(
        &mut self,
        key: usize,
        id: u64,
        parent: Option<Place>,
        (function, site): (u16, u16),
        now: u64,
    ) -> Option<Place> {
        let parent = parent.map_or(0, |place| self.id(place));
        let place = match self.records.get_mut((self.free as usize).wrapping_sub(1)) {
            Some(slot) => {
                let place = self.free;
                self.free = slot.id as u32;
                // Field by field: a record that is made first and then moved is read back in other parts than it was written
                // in, for which the processor waits.
                slot.key = key;
                slot.id = id;
                slot.parent = parent;
                slot.created = now;
                slot.busy = 0;
                slot.scheduled = 0;
                slot.longest = 0;
                slot.steps = 0;
                slot.function = function;
                slot.site = site;
                place
            }
            None => self.extend(Record {
                key,
                id,
                parent,
                created: now,
                function,
                site,
                ..Record::default()
            })?,
        };
        self.live += 1;
        Place::new(place)
    }

    #[cold]
    fn extend(&mut self, record: Record) -> Option<u32> {
        let place = u32::try_from(self.records.len()).ok()?.checked_add(1)?;
        self.records.push(record);
        Some(place)
    }

    #[inline]
    fn id(&self, place: Place) -> u64 {
        self.at(place).map_or(0, |record| record.id)
    }

    /// What is at this place, if it is not free.
    #[inline]
    #[must_use]
    pub fn at(&self, place: Place) -> Option<&Record> {
        self.records
            .get(place.get() as usize - 1)
            .filter(|record| record.key != 0)
    }

    #[inline]
    fn function_mut(&mut self, function: u16) -> Option<&mut Function> {
        let index = function as usize;
        if index >= self.functions.len() {
            if function >= FUNCTIONS {
                return None;
            }
            self.functions.resize(index + 1, Function::default());
        }
        self.functions.get_mut(index)
    }

    #[inline]
    fn slot(&mut self, place: Place) -> Option<&mut Record> {
        self.records
            .get_mut(place.get() as usize - 1)
            .filter(|record| record.key != 0)
    }

    /// A step of the task at this place has ended `now`. It took so long, for which it had waited so long behind others;
    /// `end`: it was the last one.
    #[inline]
    pub fn stepped(
        &mut self,
        place: Place,
        (took, waited): (u64, u64),
        end: Option<End>,
        now: u64,
    ) {
        let Some(record) = self.slot(place) else {
            return;
        };
        let spent = Spent {
            steps: record.steps.saturating_add(1),
            busy: record.busy + took,
            scheduled: record.scheduled + waited,
            longest: record.longest.max(took),
        };
        match end {
            None => {
                record.steps = spent.steps;
                record.busy = spent.busy;
                record.scheduled = spent.scheduled;
                record.longest = spent.longest;
            }
            // It is not written what would be read at once.
            Some(end) => self.leaves(place, spent, end, now),
        }
    }

    /// The task has ended `now`, and its place is free.
    pub fn end(&mut self, place: Place, end: End, now: u64) {
        let Some(record) = self.slot(place) else {
            return;
        };
        let spent = Spent {
            steps: record.steps,
            busy: record.busy,
            scheduled: record.scheduled,
            longest: record.longest,
        };
        self.leaves(place, spent, end, now);
    }

    /// The task at this place, which has spent so much in all, has ended.
    #[inline(always)]
    fn leaves(&mut self, place: Place, spent: Spent, end: End, now: u64) {
        let free = self.free;
        let Some(record) = self.slot(place) else {
            return;
        };
        record.key = 0;
        record.id = free.into();
        let lived = now.saturating_sub(record.created);
        let function = record.function;
        self.free = place.get();
        self.live -= 1;
        if let Some(counts) = self.function_mut(function) {
            match end {
                End::Ok => counts.ok += 1,
                End::Failed => counts.failed += 1,
                End::Cancelled | End::Dropped => counts.cancelled += 1,
            }
            counts.steps += u64::from(spent.steps);
            counts.busy += spent.busy;
            counts.scheduled += spent.scheduled;
            counts.lived += lived;
            counts.longest = counts.longest.max(spent.longest);
        }
    }

    /// What is known of the task at this place, if it has this key.
    #[must_use]
    pub fn get(&self, place: Place, key: usize) -> Option<&Record> {
        self.records
            .get(place.get() as usize - 1)
            .filter(|record| record.key == key)
    }

    /// The live tasks.
    pub fn records(&self) -> impl Iterator<Item = (Place, &Record)> {
        (1..).zip(&self.records).filter_map(|(place, record)| {
            (record.key != 0)
                .then(|| Place::new(place).map(|place| (place, record)))
                .flatten()
        })
    }

    /// How many live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The functions by number, with the times of those of their tasks that live `now`.
    #[must_use]
    pub fn functions(&self, now: u64) -> Vec<Function> {
        let mut functions = self.functions.clone();
        for counts in &mut functions {
            counts.created = counts.ok + counts.failed + counts.cancelled;
        }
        for (_, record) in self.records() {
            let index = record.function as usize;
            if index >= functions.len() && record.function < FUNCTIONS {
                functions.resize(index + 1, Function::default());
            }
            if let Some(counts) = functions.get_mut(index) {
                counts.live += 1;
                counts.created += 1;
                counts.steps += u64::from(record.steps);
                counts.busy += record.busy;
                counts.scheduled += record.scheduled;
                counts.lived += now.saturating_sub(record.created);
                counts.longest = counts.longest.max(record.longest);
            }
        }
        functions
    }
}

/// The clock and the order of a run's steps: how long each took, and how long what took it had waited.
#[derive(Debug, Default)]
pub struct Pace {
    arrivals: super::Arrivals,
    /// Entries that have left the ready ring.
    left: u64,
    last: u64,
    /// Entries have left since that were not timed.
    stale: bool,
}

impl Pace {
    /// When the last step has ended, or the turn has begun, if nothing has run since that was not timed.
    #[inline(always)]
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        (!self.stale && self.last != 0).then_some(self.last)
    }

    /// What runs next begins at `now`, since what has run before it was not timed.
    #[inline]
    pub fn resumes(&mut self, now: u64) {
        self.last = now;
        self.stale = false;
    }

    /// An entry that is nobody's has left, with `waiting` entries in the ring behind it: whether it need not be timed, since it
    /// has made nothing ready. Its time is nobody's, either.
    #[inline]
    #[must_use]
    pub fn passes(&mut self, waiting: usize) -> bool {
        let nothing_came = self.left + 1 + waiting as u64 <= self.arrivals.counted();
        if nothing_came {
            self.left += 1;
            self.stale = true;
        }
        nothing_came
    }

    /// A turn begins at `now` with `waiting` entries in the ring.
    #[inline]
    pub fn turns(&mut self, now: u64, waiting: usize) {
        self.resumes(now);
        self.arrivals.mark(self.left + waiting as u64, now);
    }

    /// A step has ended at `now`, which leaves `waiting` entries in the ring: how long it took and had waited.
    #[inline]
    pub fn steps(&mut self, now: u64, waiting: usize) -> (u64, u64) {
        let began = std::mem::replace(&mut self.last, now);
        self.stale = false;
        let came = self.arrivals.leaves(self.left).unwrap_or(began);
        self.left += 1;
        self.arrivals.mark(self.left + waiting as u64, now);
        (now.saturating_sub(began), began.saturating_sub(came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_record_is_small() {
        assert_eq!(size_of::<Record>(), 64);
    }

    #[test]
    fn a_task_is_the_child_of_the_one_that_runs() {
        let mut book = Book::default();
        let first = book.begin(1, 10, None, (1, 0), 0).unwrap();
        let second = book.begin(2, 11, Some(first), (1, 0), 5).unwrap();
        book.end(first, End::Ok, 5);
        let third = book.begin(3, 12, Some(second), (1, 0), 6).unwrap();
        let parent = |place, key| book.get(place, key).unwrap().parent;
        assert_eq!((parent(second, 2), parent(third, 3)), (10, 11));
        // The first one's place was free.
        assert_eq!((third, book.get(first, 1)), (first, None));
    }

    #[test]
    fn steps_and_waits_are_told_apart() {
        let mut pace = Pace::default();
        // Three are ready at 100; the first one's step schedules a fourth.
        pace.turns(100, 3);
        assert_eq!(pace.steps(110, 3), (10, 0));
        assert_eq!(pace.steps(130, 2), (20, 10));
        pace.turns(150, 2);
        assert_eq!(pace.steps(151, 1), (1, 50));
        assert_eq!(pace.steps(161, 0), (10, 41));
    }

    #[test]
    fn entries_that_are_nobodys_are_timed_if_they_make_something_ready() {
        let mut pace = Pace::default();
        pace.turns(100, 4);
        assert!(pace.passes(3));
        assert_eq!(pace.last(), None);
        pace.resumes(150);
        // What ran before is not its time, but has kept it waiting.
        assert_eq!(pace.steps(160, 2), (10, 50));
        assert!(pace.passes(1));
        assert!(!pace.passes(1));
        assert_eq!(pace.steps(190, 1), (30, 60));
        assert_eq!(pace.last(), Some(190));
        assert_eq!(pace.steps(195, 0), (5, 0));
    }

    #[test]
    fn functions_beyond_the_last_number_are_not_counted() {
        let mut book = Book::default();
        let place = book.begin(1, 1, None, (u16::MAX, 0), 0).unwrap();
        book.end(place, End::Ok, 1);
        assert!(book.is_empty() && book.functions(1).is_empty());
    }

    proptest! {
        /// The book against a plain map of what was done.
        #[test]
        fn places_are_used_again_and_nothing_is_lost(ops in prop::collection::vec((0_u8..4, 0_usize..8, 1_u64..1000), 0..300)) {
            let mut book = Book::default();
            let mut plain: HashMap<usize, (Place, u64, u64)> = HashMap::new();
            let mut order = Vec::new();
            let (mut busy, mut ended, mut next) = (0, 0, 1);
            let (mut stepped, mut lived, mut began) = (0, 0, HashMap::new());
            for (op, which, time) in ops {
                let known = order.get(which % order.len().max(1)).copied();
                match (op, known) {
                    (0, _) | (_, None) => {
                        let place = book.begin(next, next as u64, None, (3, 0), time).unwrap();
                        plain.insert(next, (place, 0, 0));
                        began.insert(next, time);
                        order.push(next);
                        next += 1;
                    }
                    (1 | 2, Some(key)) => {
                        let entry = plain.get_mut(&key).unwrap();
                        book.stepped(entry.0, (time, 2 * time), None, time);
                        stepped += 1;
                        entry.1 += time;
                        entry.2 += 1;
                        busy += time;
                    }
                    (_, Some(key)) => {
                        book.end(plain.remove(&key).unwrap().0, End::Ok, 1000 + time);
                        lived += 1000 + time - began[&key];
                        order.retain(|&other| other != key);
                        ended += 1;
                    }
                }
                prop_assert_eq!(book.len(), plain.len());
            }
            for (&key, &(place, took, steps)) in &plain {
                let record = book.get(place, key).unwrap();
                prop_assert_eq!((record.busy, record.scheduled, u64::from(record.steps)), (took, 2 * took, steps));
            }
            let count = book.records().count();
            prop_assert_eq!(count, plain.len());
            if next > 1 {
                let function = book.functions(2000)[3];
                lived += plain.keys().map(|key| 2000 - began[key]).sum::<u64>();
                prop_assert_eq!((function.steps, function.lived), (stepped, lived));
                prop_assert_eq!((function.busy, function.ok, function.live), (busy, ended, plain.len() as u64));
            }
        }
    }
}
