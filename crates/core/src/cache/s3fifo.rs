//! Which entry goes when there are too many: S3-FIFO, three first-in-first-out queues.
//!
//! New entries go through a *small* queue, a tenth of the capacity. One that is asked for again before it has come
//! to the end moves to the *main* queue, where it stays as long as it is asked for; one that is not leaves after a
//! short while, so that a scan over a million keys drives nothing out that is in use. The hashes of those that left
//! that way are remembered in a *ghost* queue: whoever comes back while his is there was driven out too early and
//! goes to the main queue at once. A hit counts, up to three, and moves nothing: it costs one comparison and at most one
//! store.
//!
//! Source: Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023. One
//! difference: there an entry moves to the main queue when it was asked for *twice* again; here once is
//! enough. In caches of a few entries, whose small queue holds one or two, the entry that has just been asked for would
//! be the first to go otherwise, which surprises whoever knows LRU. On larger ones the two are level: of 200,000
//! questions for 100,000 keys (Zipf, exponent 1) hit 18.4 % with once and 18.5 % with twice if there is room for 10
//! entries, 57.2 and 57.1 % with room for 1,000, 73.9 and 73.3 % with room for 10,000 (LRU: 6.3, 48.2, 71.2 %).
//!
//! Weights instead of numbers: every entry has one, and the capacity is their sum.
//!
//! An entry can be removed at any time. Its place in the queue stays behind as a key that finds nothing and is passed
//! over; once more than half of a queue is of that kind it is made anew, so that removal costs the same everywhere.

use std::collections::{HashMap, VecDeque};

use crate::registry::{Key, Registry};

/// A hit beyond this number is not counted.
const MOST_HITS: u8 = 3;

/// The small queue has this part of the capacity.
const SMALL_PART: u64 = 10;

/// A queue so short is not worth making anew.
const WORTH_SWEEPING: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Small,
    Main,
}

#[derive(Debug)]
struct Entry<T> {
    item: T,
    hash: u64,
    weight: u64,
    hits: u8,
    place: Place,
}

/// A queue of keys, some of which may find nothing any more.
#[derive(Debug, Default)]
struct Queue {
    keys: VecDeque<Key>,
    /// How many of the keys find something, and what these weigh.
    live: usize,
    weight: u64,
}

impl Queue {
    fn push(&mut self, key: Key, weight: u64) {
        self.keys.push_back(key);
        self.live += 1;
        self.weight += weight;
    }

    fn leave(&mut self, weight: u64) {
        self.live -= 1;
        self.weight -= weight;
    }

    fn forget<T>(&mut self, entries: &Registry<Entry<T>>) {
        if self.keys.len() > WORTH_SWEEPING && self.keys.len() > 2 * self.live {
            self.keys.retain(|&key| entries.entry(key).is_some());
        }
    }
}

/// Hashes of those that left the small queue, oldest first.
#[derive(Debug, Default)]
struct Ghosts {
    order: VecDeque<(u64, u64)>,
    /// When each of them came: what stands in `order` with another number has come back since.
    since: HashMap<u64, u64>,
    serial: u64,
}

impl Ghosts {
    fn remember(&mut self, hash: u64, most: usize) {
        self.serial += 1;
        self.since.insert(hash, self.serial);
        self.order.push_back((hash, self.serial));
        while self.since.len() > most || self.order.len() > 2 * most + WORTH_SWEEPING {
            let Some((hash, serial)) = self.order.pop_front() else {
                return;
            };
            if self.since.get(&hash) == Some(&serial) {
                self.since.remove(&hash);
            }
        }
    }

    /// Whether it was there; it is not any more.
    fn take(&mut self, hash: u64) -> bool {
        !self.since.is_empty() && self.since.remove(&hash).is_some()
    }
}

/// Entries of type `T` of a limited sum of weights.
#[derive(Debug)]
pub struct S3Fifo<T> {
    entries: Registry<Entry<T>>,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
    capacity: u64,
}

impl<T> S3Fifo<T> {
    /// Nothing in it yet; `u64::MAX` is no limit.
    pub fn new(capacity: u64) -> Self {
        Self {
            entries: Registry::default(),
            small: Queue::default(),
            main: Queue::default(),
            ghosts: Ghosts::default(),
            capacity,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn weight(&self) -> u64 {
        self.small.weight + self.main.weight
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Adds an item; those that it drives out are appended to `out`. `hash` stands for the item's key.
    ///
    /// An item heavier than the capacity is handed back: it would drive out all the others, and itself in the end.
    pub fn insert(&mut self, item: T, hash: u64, weight: u64, out: &mut Vec<T>) -> Result<Key, T> {
        if weight > self.capacity {
            return Err(item);
        }
        self.make_room(weight, out);
        let place = if self.ghosts.take(hash) {
            Place::Main
        } else {
            Place::Small
        };
        let key = self.entries.insert(Entry {
            item,
            hash,
            weight,
            hits: 0,
            place,
        });
        self.queue(place).push(key, weight);
        Ok(key)
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        self.entries.entry(key).map(|entry| &entry.item)
    }

    /// The item, which was asked for.
    #[inline]
    pub fn hit(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.entry_mut(key)?;
        if entry.hits < MOST_HITS {
            entry.hits += 1;
        }
        Some(&mut entry.item)
    }

    /// Takes an item out, whose hash is forgotten, too.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.remove(key)?;
        let queue = match entry.place {
            Place::Small => &mut self.small,
            Place::Main => &mut self.main,
        };
        queue.leave(entry.weight);
        queue.forget(&self.entries);
        Some(entry.item)
    }

    /// Changes the capacity; those that have no place any more are appended to `out`.
    pub fn resize(&mut self, capacity: u64, out: &mut Vec<T>) {
        self.capacity = capacity;
        self.make_room(0, out);
    }

    /// Empties it.
    pub fn take_all(&mut self) -> Vec<T> {
        self.small = Queue::default();
        self.main = Queue::default();
        self.ghosts = Ghosts::default();
        self.entries
            .take_all()
            .into_iter()
            .map(|entry| entry.item)
            .collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|entry| &entry.item)
    }

    fn queue(&mut self, place: Place) -> &mut Queue {
        match place {
            Place::Small => &mut self.small,
            Place::Main => &mut self.main,
        }
    }

    /// Drives entries out until one of this weight has a place.
    fn make_room(&mut self, weight: u64, out: &mut Vec<T>) {
        // A weight is at most the capacity, so this ends: every round moves an entry on, counts a hit of it down or
        // takes one out.
        while self.weight() > self.capacity - weight.min(self.capacity) && !self.is_empty() {
            let small = self.small.weight > self.capacity / SMALL_PART || self.main.live == 0;
            let from = if small { Place::Small } else { Place::Main };
            let Some(key) = self.queue(from).keys.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.entry_mut(key) else {
                continue;
            };
            let weight = entry.weight;
            if entry.hits > 0 {
                entry.hits = match from {
                    Place::Small => 0,
                    Place::Main => entry.hits - 1,
                };
                entry.place = Place::Main;
                self.queue(from).leave(weight);
                self.main.push(key, weight);
                continue;
            }
            self.queue(from).leave(weight);
            if let Some(entry) = self.entries.remove(key) {
                if from == Place::Small {
                    let most = self.entries.len().max(1);
                    self.ghosts.remember(entry.hash, most);
                }
                out.push(entry.item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of numbers, as a user of the policy keeps it.
    struct Cache {
        policy: S3Fifo<u64>,
        keys: HashMap<u64, Key>,
        out: Vec<u64>,
    }

    impl Cache {
        fn new(capacity: u64) -> Self {
            Self {
                policy: S3Fifo::new(capacity),
                keys: HashMap::new(),
                out: Vec::new(),
            }
        }

        /// Whether it was there; it is now.
        fn ask(&mut self, number: u64) -> bool {
            if let Some(&key) = self.keys.get(&number) {
                assert_eq!(self.policy.hit(key).copied(), Some(number));
                return true;
            }
            let key = self.policy.insert(number, number, 1, &mut self.out);
            self.keys.insert(number, key.unwrap());
            for gone in self.out.drain(..) {
                assert!(self.keys.remove(&gone).is_some(), "{gone} left twice");
            }
            assert_eq!(self.policy.len(), self.keys.len());
            assert!(self.policy.weight() <= self.policy.capacity());
            false
        }
    }

    /// The least recently used leaves: what everybody compares with.
    struct Lru {
        capacity: usize,
        used: HashMap<u64, u64>,
        order: std::collections::BTreeMap<u64, u64>,
        clock: u64,
    }

    impl Lru {
        fn ask(&mut self, number: u64) -> bool {
            self.clock += 1;
            let before = self.used.insert(number, self.clock);
            self.order.insert(self.clock, number);
            if let Some(before) = before {
                self.order.remove(&before);
                return true;
            }
            if self.used.len() > self.capacity
                && let Some((_, oldest)) = self.order.pop_first()
            {
                self.used.remove(&oldest);
            }
            false
        }
    }

    struct Draws(u64);

    impl Draws {
        fn next(&mut self) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 33
        }

        /// A number below `most`, the small ones far more often: Zipf with exponent 1, by its inverse.
        fn skewed(&mut self, most: u64) -> u64 {
            let part = self.next() as f64 / (1u64 << 31) as f64;
            ((most as f64).powf(part) - 1.0) as u64
        }
    }

    fn hit_ratios(capacity: u64, trace: impl Iterator<Item = u64>) -> (f64, f64) {
        let mut ours = Cache::new(capacity);
        let mut lru = Lru {
            capacity: capacity as usize,
            used: HashMap::new(),
            order: Default::default(),
            clock: 0,
        };
        let (mut asked, mut hits, mut lru_hits) = (0, 0, 0);
        for number in trace {
            asked += 1;
            hits += u32::from(ours.ask(number));
            lru_hits += u32::from(lru.ask(number));
        }
        let part = |hits| f64::from(hits) / f64::from(asked);
        (part(hits), part(lru_hits))
    }

    #[test]
    fn a_skewed_trace_hits_more_often_than_with_lru() {
        for capacity in [10, 100, 1_000] {
            let mut draws = Draws(capacity);
            let trace: Vec<u64> = (0..200_000).map(|_| draws.skewed(100_000)).collect();
            let (ours, lru) = hit_ratios(capacity, trace.into_iter());
            assert!(ours > lru, "{capacity}: {ours} against {lru}");
        }
    }

    #[test]
    fn a_scan_drives_nothing_out_that_is_in_use() {
        let mut cache = Cache::new(100);
        for _ in 0..3 {
            for number in 0..80 {
                cache.ask(number);
            }
        }
        // The 80 are in use; now a million others pass by, and each of the 80 is asked for once on the way.
        let (mut hits, mut asked) = (0, 0);
        for scanned in 0..100_000u64 {
            cache.ask(1_000 + scanned);
            if scanned % 100 == 0 {
                asked += 1;
                hits += u32::from(cache.ask(scanned / 100 % 80));
            }
        }
        assert!(hits * 10 > asked * 9, "{hits} of {asked}");
    }

    #[test]
    fn in_a_small_cache_the_one_that_was_asked_for_stays() {
        let mut cache = Cache::new(2);
        cache.ask(1);
        cache.ask(2);
        assert!(cache.ask(1));
        cache.ask(3);
        assert!(cache.ask(1), "2 should have left");
    }

    #[test]
    fn who_comes_back_soon_goes_to_the_main_queue() {
        let mut cache = Cache::new(20);
        for number in 0..21 {
            cache.ask(number);
        }
        assert!(!cache.keys.contains_key(&0));
        cache.ask(0);
        for number in 100..200 {
            cache.ask(number);
        }
        assert!(cache.ask(0), "a scan drove it out");
    }

    #[test]
    fn weights_are_what_is_limited() {
        let mut policy = S3Fifo::new(10);
        let mut out = Vec::new();
        assert_eq!(policy.insert("heavy", 1, 11, &mut out), Err("heavy"));
        policy.insert("four", 2, 4, &mut out).unwrap();
        policy.insert("five", 3, 5, &mut out).unwrap();
        assert!(out.is_empty());
        policy.insert("ten", 4, 10, &mut out).unwrap();
        assert_eq!(out, ["four", "five"]);
        assert_eq!((policy.len(), policy.weight()), (1, 10));
        policy.resize(9, &mut out);
        assert_eq!(out, ["four", "five", "ten"]);
        assert_eq!((policy.len(), policy.weight()), (0, 0));
    }

    #[test]
    fn removal_leaves_nothing_behind() {
        let mut policy = S3Fifo::new(u64::MAX);
        let mut out = Vec::new();
        for round in 0..100_000u64 {
            let key = policy.insert(round, round, 1, &mut out).unwrap();
            assert_eq!(policy.remove(key), Some(round));
            assert_eq!(policy.remove(key), None);
            assert_eq!(policy.hit(key), None);
        }
        assert!(out.is_empty());
        assert!(policy.small.keys.len() <= WORTH_SWEEPING + 1);
        assert_eq!(policy.weight(), 0);
    }

    #[test]
    fn ghosts_are_as_many_as_entries_at_most() {
        let mut cache = Cache::new(50);
        for number in 0..100_000 {
            cache.ask(number);
        }
        let ghosts = &cache.policy.ghosts;
        assert!(ghosts.since.len() <= 50);
        assert!(ghosts.order.len() <= 2 * 50 + WORTH_SWEEPING);
    }

    #[test]
    fn random_programs_keep_the_books() {
        for seed in 0..200 {
            let mut draws = Draws(seed);
            let mut policy: S3Fifo<u64> = S3Fifo::new(1 + draws.next() % 40);
            let mut held: HashMap<u64, (Key, u64)> = HashMap::new();
            let mut out = Vec::new();
            for number in 0..2_000 {
                match draws.next() % 8 {
                    0..4 => {
                        let weight = 1 + draws.next() % 6;
                        match policy.insert(number, draws.next() % 100, weight, &mut out) {
                            Ok(key) => {
                                held.insert(number, (key, weight));
                            }
                            Err(item) => assert_eq!(item, number),
                        }
                    }
                    4..6 => {
                        if let Some((&number, &(key, _))) = held.iter().next() {
                            assert_eq!(policy.hit(key), Some(&mut { number }));
                        }
                    }
                    6 => {
                        if let Some((&number, &(key, _))) = held.iter().next() {
                            assert_eq!(policy.remove(key), Some(number));
                            held.remove(&number);
                        }
                    }
                    _ => policy.resize(1 + draws.next() % 40, &mut out),
                }
                for gone in out.drain(..) {
                    assert!(held.remove(&gone).is_some());
                }
                let weight: u64 = held.values().map(|&(_, weight)| weight).sum();
                assert_eq!((policy.len(), policy.weight()), (held.len(), weight));
                assert!(weight <= policy.capacity());
            }
        }
    }
}
