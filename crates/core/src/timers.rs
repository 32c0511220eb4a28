//! Timers: deadlines in nanoseconds, fired in order of deadline, then of insertion.
//!
//! **Lanes.** A timer may fire a little late, the later the longer it waits: its [`Slack`]. Timers with the
//! same slack share a lane, and the loop sleeps until the earliest end of a lane's grid
//! ([`Timers::next_wake`]), so that a thousand timers of some 20 ms wake it twenty times, while one of
//! 0.5 ms among them is still on time. Which timers are due, and in which order they fire, does not
//! depend on lanes.
//!
//! **FIFO and heap.** Most programs give most timers one of a few delays, so within a lane deadlines
//! mostly arrive sorted. Such a deadline is appended to a plain FIFO in O(1); only one that is earlier
//! than the newest in the FIFO goes to the heap beside it. Taking thousands of entries out of a heap one by
//! one costs more than sorting them does, so a heap that is not small beside the FIFO is sorted into it when
//! its turn comes, unless that would keep the loop for long. Every entry carries a sequence number, so that
//! two timers with one deadline fire in the order in which they were made (asyncio's heap does not
//! promise that; uvloop does, and programs have come to rely on it).
//!
//! Cancelling is lazy: the owner marks its own payload stale and calls [`Timers::note_cancelled`];
//! stale entries are passed over when they come up and swept out once they are more than half.
//!
//! Deadlines are whole nanoseconds rounded *up* ([`deadline_ns`]), and an entry is due when `now` has
//! reached its deadline, never before: a sleep is never shorter than asked.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use crate::timeout::Slack;

/// Below this many cancelled entries a sweep is not worth its walk.
const SWEEP_MIN: usize = 64;

/// Below this many entries a heap is as good as a sorted run.
const SORT_MIN: usize = if cfg!(test) { 4 } else { 64 };

/// Above this many entries a lane is not sorted, which would take longer than a millisecond.
const SORT_MAX: usize = 1 << 15;

#[derive(Debug)]
struct Entry<T> {
    deadline: u64,
    seq: u64,
    item: T,
}

impl<T> Entry<T> {
    /// By deadline, then by age, in one number: comparing it takes no branch.
    fn rank(&self) -> u128 {
        u128::from(self.deadline) << 64 | u128::from(self.seq)
    }
}

// Reversed: `BinaryHeap` is a max-heap and the earliest entry must be on top.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.rank().cmp(&self.rank())
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl<T> Eq for Entry<T> {}

/// The timers of one slack.
#[derive(Debug)]
struct Lane<T> {
    fifo: VecDeque<Entry<T>>,
    heap: BinaryHeap<Entry<T>>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            fifo: VecDeque::new(),
            heap: BinaryHeap::new(),
        }
    }
}

impl<T> Lane<T> {
    fn insert(&mut self, entry: Entry<T>) {
        match self.fifo.back() {
            Some(last) if entry.deadline < last.deadline => self.heap.push(entry),
            _ => self.fifo.push_back(entry),
        }
    }

    fn first_is_in_fifo(&self) -> bool {
        match (self.fifo.front(), self.heap.peek()) {
            (Some(a), Some(b)) => a.rank() < b.rank(),
            (front, _) => front.is_some(),
        }
    }

    fn first(&self) -> Option<&Entry<T>> {
        if self.first_is_in_fifo() {
            self.fifo.front()
        } else {
            self.heap.peek()
        }
    }

    fn pop(&mut self) -> Option<Entry<T>> {
        if self.first_is_in_fifo() {
            self.fifo.pop_front()
        } else if self.is_worth_sorting() {
            self.sort();
            self.fifo.pop_front()
        } else {
            self.heap.pop()
        }
    }

    /// Whether the heap is at least as long as the FIFO, so that each entry is moved once or twice in its life.
    fn is_worth_sorting(&self) -> bool {
        let late = self.heap.len();
        late >= SORT_MIN.max(self.fifo.len()) && self.len() <= SORT_MAX
    }

    /// Moves what is in the heap to its places in the FIFO.
    #[cold]
    fn sort(&mut self) {
        let mut late = std::mem::take(&mut self.heap).into_vec();
        late.sort_unstable_by_key(Entry::rank);
        if self.fifo.is_empty() {
            self.fifo = late.into();
            return;
        }
        self.fifo.extend(late);
        // Two sorted runs: finding that and merging them is what a stable sort does best.
        self.fifo.make_contiguous().sort_by_key(Entry::rank);
    }

    fn len(&self) -> usize {
        self.fifo.len() + self.heap.len()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.fifo
            .iter()
            .chain(self.heap.iter())
            .map(|entry| &entry.item)
    }

    fn into_entries(self) -> impl Iterator<Item = Entry<T>> {
        self.fifo.into_iter().chain(self.heap)
    }
}

/// A set of timers with payloads of type `T`.
#[derive(Debug)]
pub struct Timers<T> {
    lanes: [Lane<T>; Slack::COUNT],
    seq: u64,
    cancelled: usize,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            lanes: std::array::from_fn(|_| Lane::default()),
            seq: 0,
            cancelled: 0,
        }
    }
}

impl<T> Timers<T> {
    /// Adds a timer that is due once the clock has reached `deadline`.
    pub fn insert(&mut self, deadline: u64, slack: Slack, item: T) {
        let seq = self.seq;
        self.seq += 1;
        self.lanes[slack as usize].insert(Entry {
            deadline,
            seq,
            item,
        });
    }

    /// When the loop has to be awake for the next timer, stale or not; it may find several due then.
    #[inline]
    pub fn next_wake(&self) -> Option<u64> {
        Slack::ALL
            .iter()
            .zip(&self.lanes)
            .filter_map(|(slack, lane)| Some(slack.wake(lane.first()?.deadline)))
            .min()
    }

    /// The deadline of the next timer, stale or not.
    pub fn next_deadline(&self) -> Option<u64> {
        let firsts = self.lanes.iter().filter_map(Lane::first);
        firsts.map(|entry| entry.deadline).min()
    }

    /// Takes the earliest timer whose deadline `now` has reached, and says how late it is. The caller passes over
    /// stale ones, telling [`Timers::forget_cancelled`].
    pub fn pop_due(&mut self, now: u64) -> Option<(u64, T)> {
        self.pop_first_if(|entry| entry.deadline <= now)
            .map(|entry| (now - entry.deadline, entry.item))
    }

    /// What comes up after so many others, in each lane, as far as that is known: a hint what to fetch from memory.
    #[inline]
    pub fn after(&self, others: usize) -> impl Iterator<Item = &T> {
        let lanes = self.lanes.iter();
        lanes.filter_map(move |lane| Some(&lane.fifo.get(others)?.item))
    }

    /// Takes the earliest timer of a lane if it is stale, due or not, so that a cancelled timer does not
    /// wake the loop for nothing.
    pub fn pop_stale(&mut self, stale: impl Fn(&T) -> bool) -> Option<T> {
        if self.cancelled == 0 {
            return None;
        }
        let lane = self
            .lanes
            .iter_mut()
            .find(|lane| lane.first().is_some_and(|entry| stale(&entry.item)))?;
        let entry = lane.pop()?;
        self.forget_cancelled();
        Some(entry.item)
    }

    fn pop_first_if(&mut self, wanted: impl Fn(&Entry<T>) -> bool) -> Option<Entry<T>> {
        let mut best: Option<(usize, u128)> = None;
        for (index, lane) in self.lanes.iter().enumerate() {
            if let Some(first) = lane.first()
                && best.is_none_or(|(_, rank)| first.rank() < rank)
                && wanted(first)
            {
                best = Some((index, first.rank()));
            }
        }
        self.lanes[best?.0].pop()
    }

    /// Takes the newest timer of a lane's FIFO if it is stale: a timer that guards a call is mostly
    /// cancelled before another one is made, and need not wait for a sweep.
    pub fn pop_newest_stale(&mut self, stale: impl Fn(&T) -> bool) -> Option<T> {
        for lane in &mut self.lanes {
            if lane.fifo.back().is_some_and(|entry| stale(&entry.item)) {
                return lane.fifo.pop_back().map(|entry| entry.item);
            }
        }
        None
    }

    /// Says that one entry has become stale. True means that a [`Timers::sweep`] is worth it now.
    #[must_use]
    pub fn note_cancelled(&mut self) -> bool {
        self.cancelled += 1;
        self.cancelled >= SWEEP_MIN && self.cancelled * 2 > self.len()
    }

    /// Says that one stale entry was taken out with [`Timers::pop_due`].
    pub fn forget_cancelled(&mut self) {
        self.cancelled = self.cancelled.saturating_sub(1);
    }

    /// Removes all stale entries and hands them over.
    pub fn sweep(&mut self, stale: impl Fn(&T) -> bool) -> Vec<T> {
        if self.cancelled == 0 {
            return Vec::new();
        }
        let mut removed = Vec::with_capacity(self.cancelled);
        let mut keep = |entry: Entry<T>| {
            if stale(&entry.item) {
                removed.push(entry.item);
                None
            } else {
                Some(entry)
            }
        };
        for lane in &mut self.lanes {
            lane.fifo = std::mem::take(&mut lane.fifo)
                .into_iter()
                .filter_map(&mut keep)
                .collect();
            lane.heap = std::mem::take(&mut lane.heap)
                .into_vec()
                .into_iter()
                .filter_map(&mut keep)
                .collect();
        }
        self.cancelled = 0;
        removed
    }

    /// Empties the set and hands everything over, in no particular order.
    pub fn take_all(&mut self) -> Vec<T> {
        self.cancelled = 0;
        std::mem::take(&mut self.lanes)
            .into_iter()
            .flat_map(Lane::into_entries)
            .map(|entry| entry.item)
            .collect()
    }

    /// How many entries there are, stale ones included.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(Lane::len).sum()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.lanes
            .iter()
            .all(|lane| lane.fifo.is_empty() && lane.heap.is_empty())
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.iter().flat_map(Lane::iter)
    }
}

/// A deadline in seconds, as asyncio gives it, in nanoseconds, rounded up.
///
/// A clock that tells this many nanoseconds in float seconds (`ns / 1e9`) has reached `seconds` then.
///
/// Total: a negative or NaN deadline is long past (asyncio runs both at once), one beyond the range
/// (infinity included) never comes.
pub fn deadline_ns(seconds: f64) -> u64 {
    if seconds.is_nan() {
        return 0;
    }
    // `as` saturates: below zero is 0, beyond the range is u64::MAX.
    let deadline = (seconds * 1e9).ceil() as u64;
    if deadline as f64 / 1e9 < seconds {
        // The product was rounded down, to a whole number: the clock would read one float less.
        return (seconds.next_up() * 1e9).ceil() as u64;
    }
    deadline
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_deadlines_fire_in_order_of_insertion() {
        let mut timers = Timers::default();
        // 5 goes to the FIFO; the 3s and the later 5 meet in FIFO and heap.
        for (deadline, item) in [(5, 'a'), (3, 'b'), (5, 'c'), (3, 'd'), (4, 'e')] {
            timers.insert(deadline, Slack::Coarse, item);
        }
        let order: String = std::iter::from_fn(|| timers.pop_due(10))
            .map(|due| due.1)
            .collect();
        assert_eq!(order, "bdeac");
    }

    #[test]
    fn lanes_share_one_order() {
        let mut timers = Timers::default();
        let slacks = [Slack::Coarse, Slack::Fine, Slack::Medium, Slack::Fine];
        for (item, slack) in slacks.into_iter().enumerate() {
            timers.insert(7, slack, item);
        }
        timers.insert(6, Slack::Coarse, 9);
        let order: Vec<usize> = std::iter::from_fn(|| timers.pop_due(7))
            .map(|due| due.1)
            .collect();
        assert_eq!(order, [9, 0, 1, 2, 3]);
    }

    #[test]
    fn the_loop_wakes_for_the_lane_that_can_wait_least() {
        let mut timers = Timers::default();
        timers.insert(20_100_000, Slack::Coarse, ());
        assert_eq!(timers.next_wake(), Some(21_000_000));
        timers.insert(20_499_000, Slack::Fine, ());
        assert_eq!(timers.next_wake(), Some(20_500_000));
        assert_eq!(timers.next_deadline(), Some(20_100_000));
        assert_eq!(timers.pop_due(20_500_000), Some((400_000, ())));
        assert_eq!(
            timers.pop_due(20_500_000),
            Some((1_000, ())),
            "awake anyway: no need to wait for the grid"
        );
    }

    #[test]
    fn what_comes_later_is_known_as_far_as_it_is_sorted() {
        let mut timers = Timers::default();
        for (deadline, slack) in [
            (3, Slack::Fine),
            (4, Slack::Fine),
            (2, Slack::Fine),
            (9, Slack::Coarse),
        ] {
            timers.insert(deadline, slack, deadline);
        }
        assert_eq!(timers.after(0).collect::<Vec<_>>(), [&3, &9]);
        assert_eq!(timers.after(1).collect::<Vec<_>>(), [&4]);
        assert_eq!(timers.after(2).count(), 0);
    }

    #[test]
    fn nothing_fires_early() {
        let mut timers = Timers::default();
        timers.insert(100, Slack::Fine, ());
        assert_eq!(timers.pop_due(99), None);
        assert_eq!(timers.pop_due(100), Some((0, ())));
    }

    #[test]
    fn stale_heads_go_without_being_due() {
        let mut timers = Timers::default();
        timers.insert(1, Slack::Fine, 1);
        timers.insert(2, Slack::Medium, 2);
        assert_eq!(timers.pop_stale(|&n| n == 1), None, "none was cancelled");
        assert!(!timers.note_cancelled());
        assert_eq!(timers.pop_stale(|&n| n == 1), Some(1));
        assert_eq!(timers.pop_stale(|&n| n == 1), None);
        assert_eq!(timers.next_wake(), Some(100_000));
    }

    #[test]
    fn the_newest_goes_at_once() {
        let mut timers = Timers::default();
        timers.insert(1, Slack::Fine, 1);
        timers.insert(2, Slack::Fine, 2);
        assert_eq!(timers.pop_newest_stale(|&n| n == 1), None, "not the newest");
        assert_eq!(timers.pop_newest_stale(|&n| n == 2), Some(2));
        assert_eq!(timers.len(), 1);
    }

    #[test]
    fn sweeping_is_asked_for_when_more_than_half_is_stale() {
        let mut timers = Timers::default();
        for n in 0..200_u32 {
            timers.insert(u64::from(n), Slack::Fine, n);
        }
        let asked = (0..200).position(|_| timers.note_cancelled());
        assert_eq!(asked, Some(100), "the 101st of 200");
        let mut removed = timers.sweep(|&n| n <= 100);
        removed.sort_unstable();
        assert_eq!(removed, (0..=100).collect::<Vec<_>>());
        assert_eq!(timers.len(), 99);
    }

    #[test]
    fn deadlines_are_total_and_round_up() {
        assert_eq!(deadline_ns(f64::NAN), 0);
        assert_eq!(deadline_ns(-1.0), 0);
        assert_eq!(deadline_ns(f64::INFINITY), u64::MAX);
        assert_eq!(deadline_ns(1e300), u64::MAX);
        assert_eq!(deadline_ns(1.000_000_000_5), 1_000_000_001);
        let rounded_down = 5_730_136.509_943_780_5;
        assert!(deadline_ns(rounded_down) as f64 / 1e9 >= rounded_down);
        assert_eq!(deadline_ns(0.0), 0);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u64, Slack),
        Cancel(usize),
        Advance(u64),
        Sweep,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => (0_u64..50, proptest::sample::select(&Slack::ALL[..])).prop_map(|(delay, slack)| Op::Insert(delay, slack)),
            2 => (0_usize..200).prop_map(Op::Cancel),
            2 => (0_u64..20).prop_map(Op::Advance),
            1 => Just(Op::Sweep),
        ];
        proptest::collection::vec(op, 0..200)
    }

    proptest! {
        /// Against a sorted list: same timers, same order, nothing early, nothing lost.
        #[test]
        fn fires_like_a_sorted_list(ops in ops()) {
            let mut timers = Timers::default();
            let mut model: Vec<(u64, usize)> = Vec::new();
            let mut cancelled = std::collections::HashSet::new();
            let (mut now, mut made) = (0_u64, 0_usize);
            for op in ops {
                match op {
                    Op::Insert(delay, slack) => {
                        timers.insert(now + delay, slack, made);
                        model.push((now + delay, made));
                        made += 1;
                    }
                    Op::Cancel(n) => {
                        if let Some(at) = model.iter().position(|&(_, id)| id == n) {
                            model.remove(at);
                            cancelled.insert(n);
                            if timers.note_cancelled() {
                                for id in timers.sweep(|id| cancelled.contains(id)) {
                                    prop_assert!(cancelled.contains(&id));
                                }
                            }
                        }
                    }
                    Op::Sweep => {
                        for id in timers.sweep(|id| cancelled.contains(id)) {
                            prop_assert!(cancelled.contains(&id));
                        }
                        prop_assert_eq!(timers.len(), model.len());
                    }
                    Op::Advance(by) => {
                        now += by;
                        let mut fired = Vec::new();
                        while let Some((_, id)) = timers.pop_due(now) {
                            if cancelled.contains(&id) {
                                timers.forget_cancelled();
                            } else {
                                fired.push(id);
                            }
                        }
                        model.sort();
                        let due = model.partition_point(|&(deadline, _)| deadline <= now);
                        let expected: Vec<usize> = model.drain(..due).map(|(_, id)| id).collect();
                        prop_assert_eq!(fired, expected);
                    }
                }
            }
            let mut left: Vec<usize> = timers.take_all().into_iter().filter(|id| !cancelled.contains(id)).collect();
            let mut expected: Vec<usize> = model.into_iter().map(|(_, id)| id).collect();
            left.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(left, expected);
        }
    }
}
