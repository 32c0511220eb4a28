//! What a cache keeps and for how long. Keys and values are somebody else's: an entry carries an item of type `T`.
//!
//! An entry goes through three states. It is *fresh* until its time to live is over; then, where the user wants that,
//! it is *stale* for a while, which means that it may be handed out while a new one is being fetched; then it is
//! *gone*. It is gone, too, once nobody has asked for it for its idle time, however fresh it is. What is to leave for
//! want of room is decided by [`s3fifo`].
//!
//! What is gone finds nothing at once, but lies about until somebody comes across it. Nobody may ever do so, so
//! each new entry pays for two: it takes up to two out whose time is over, in the order in which it was over. Thus
//! a cache without a limit whose entries live for a minute holds a minute's entries, twice at most, and needs no timer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::registry::Key;

pub mod s3fifo;

use s3fifo::S3Fifo;

/// Never.
pub const NEVER: i64 = i64::MAX;

/// So many entries whose time is over are taken out when one is added.
const SWEPT_PER_ENTRY: usize = 2;

/// So many deadlines are looked at for each entry that may be taken out; those of entries that were used are put back.
const LOOKS_PER_SWEPT: usize = 8;

/// So few deadlines are never sifted for those of entries that have left.
const FEW_DEADLINES: usize = 64;

/// Until when an entry is good, in nanoseconds of the clock that `now` is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// From then on it is stale.
    pub fresh_until: i64,
    /// From then on it is gone.
    pub gone_at: i64,
    /// It is gone when it was not asked for so long.
    pub idle: i64,
}

impl Lifetime {
    /// For ever.
    pub const UNLIMITED: Self = Self {
        fresh_until: NEVER,
        gone_at: NEVER,
        idle: NEVER,
    };

    /// Fresh for `ttl` from `now`, stale for `stale` after that, gone when `idle` has passed without a question.
    pub fn from(now: i64, ttl: i64, stale: i64, idle: i64) -> Self {
        let fresh_until = now.saturating_add(ttl);
        Self {
            fresh_until,
            gone_at: fresh_until.saturating_add(stale),
            idle,
        }
    }
}

/// How an entry is found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a, T> {
    Fresh(&'a T),
    /// Good enough to be handed out while a new one is being fetched.
    Stale(&'a T),
    /// Its time is over, or it was driven out; if it was still there, here it is.
    Gone(Option<T>),
}

/// How many entries have left, and why.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Departures {
    /// For want of room.
    pub evicted: u64,
    /// Because their time was over.
    pub expired: u64,
}

#[derive(Debug)]
struct Kept<T> {
    item: T,
    lifetime: Lifetime,
    used: i64,
}

impl<T> Kept<T> {
    fn gone_at(&self) -> i64 {
        let idle = self.used.saturating_add(self.lifetime.idle);
        self.lifetime.gone_at.min(idle)
    }
}

/// Entries with items of type `T`.
#[derive(Debug)]
pub struct Cache<T> {
    policy: S3Fifo<Kept<T>>,
    /// When each entry is gone that ever is; an entry that was used since is found too early and put back.
    deadlines: BinaryHeap<Reverse<(i64, u64)>>,
    /// Reused, so that driving one out allocates nothing.
    driven_out: Vec<Kept<T>>,
    departures: Departures,
}

impl<T> Cache<T> {
    /// An empty cache for entries that weigh so much together; `u64::MAX` is no limit.
    pub fn new(capacity: u64) -> Self {
        Self {
            policy: S3Fifo::new(capacity),
            deadlines: BinaryHeap::new(),
            driven_out: Vec::new(),
            departures: Departures::default(),
        }
    }

    /// How many entries there are, those included whose time is over and that nobody has come across yet.
    pub fn len(&self) -> usize {
        self.policy.len()
    }

    pub fn is_empty(&self) -> bool {
        self.policy.is_empty()
    }

    pub fn weight(&self) -> u64 {
        self.policy.weight()
    }

    pub fn capacity(&self) -> u64 {
        self.policy.capacity()
    }

    pub fn departures(&self) -> Departures {
        self.departures
    }

    /// Adds an entry. What leaves because of it, or because its time is over, is appended to `out`; the item comes
    /// back if it weighs more than the whole cache may.
    pub fn store(
        &mut self,
        item: T,
        hash: u64,
        weight: u64,
        lifetime: Lifetime,
        now: i64,
        out: &mut Vec<T>,
    ) -> Result<Key, T> {
        self.sweep(now, SWEPT_PER_ENTRY, out);
        let kept = Kept {
            item,
            lifetime,
            used: now,
        };
        let gone_at = kept.gone_at();
        let key = match self.policy.insert(kept, hash, weight, &mut self.driven_out) {
            Ok(key) => key,
            Err(kept) => return Err(kept.item),
        };
        self.count_driven_out(out);
        if gone_at != NEVER {
            self.deadlines.push(Reverse((gone_at, key.to_u64())));
            self.forget();
        }
        Ok(key)
    }

    /// What is there under this key, which counts as a question for it.
    #[inline]
    pub fn ask(&mut self, key: Key, now: i64) -> Found<'_, T> {
        match self.policy.get(key) {
            Some(kept) if now < kept.gone_at() => {}
            Some(_) => {
                self.departures.expired += 1;
                return Found::Gone(self.remove(key));
            }
            None => return Found::Gone(None),
        }
        match self.policy.hit(key) {
            Some(kept) => {
                kept.used = now;
                if now < kept.lifetime.fresh_until {
                    Found::Fresh(&kept.item)
                } else {
                    Found::Stale(&kept.item)
                }
            }
            None => Found::Gone(None),
        }
    }

    /// What is there under this key if it is fresh, which counts as a question for it. Nothing happens else: for those
    /// who ask first whether there is anything to be done.
    #[inline]
    pub fn fresh(&mut self, key: Key, now: i64) -> Option<&T> {
        let kept = self.policy.get(key)?;
        if now >= kept.lifetime.fresh_until || now >= kept.gone_at() {
            return None;
        }
        let kept = self.policy.hit(key)?;
        kept.used = now;
        Some(&kept.item)
    }

    /// Whether anything is under this key, be its time over or not.
    pub fn contains(&self, key: Key) -> bool {
        self.policy.get(key).is_some()
    }

    /// What is there under this key and has not gone; nobody has asked for it by that.
    pub fn peek(&self, key: Key, now: i64) -> Option<&T> {
        self.policy
            .get(key)
            .filter(|kept| now < kept.gone_at())
            .map(|kept| &kept.item)
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.policy.remove(key).map(|kept| kept.item)
    }

    /// Takes out at most so many entries whose time is over, of the few that it looks at.
    pub fn sweep(&mut self, now: i64, most: usize, out: &mut Vec<T>) {
        let (mut taken, mut looks) = (0, 0);
        while taken < most
            && looks < LOOKS_PER_SWEPT * most
            && let Some(&Reverse((deadline, bits))) = self.deadlines.peek()
            && deadline <= now
        {
            self.deadlines.pop();
            looks += 1;
            let key = Key::from_u64(bits);
            let Some(kept) = self.policy.get(key) else {
                continue;
            };
            let gone_at = kept.gone_at();
            if gone_at > now {
                self.deadlines.push(Reverse((gone_at, bits)));
                continue;
            }
            if let Some(kept) = self.policy.remove(key) {
                self.departures.expired += 1;
                out.push(kept.item);
                taken += 1;
            }
        }
    }

    /// Changes how much the entries may weigh together.
    pub fn resize(&mut self, capacity: u64, out: &mut Vec<T>) {
        self.policy.resize(capacity, &mut self.driven_out);
        self.count_driven_out(out);
    }

    /// Empties the cache.
    pub fn take_all(&mut self) -> Vec<T> {
        self.deadlines.clear();
        self.policy
            .take_all()
            .into_iter()
            .map(|kept| kept.item)
            .collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.policy.iter().map(|kept| &kept.item)
    }

    fn count_driven_out(&mut self, out: &mut Vec<T>) {
        self.departures.evicted += self.driven_out.len() as u64;
        out.extend(self.driven_out.drain(..).map(|kept| kept.item));
    }

    /// Drops the deadlines of entries that have left, once these are the most.
    fn forget(&mut self) {
        if self.deadlines.len() > FEW_DEADLINES && self.deadlines.len() > 2 * self.policy.len() {
            let policy = &self.policy;
            self.deadlines
                .retain(|&Reverse((_, bits))| policy.get(Key::from_u64(bits)).is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn cache_of(capacity: u64) -> (Cache<u64>, Vec<u64>) {
        (Cache::new(capacity), Vec::new())
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let (mut cache, mut out) = cache_of(10);
        let lifetime = Lifetime::from(0, 10 * SECOND, 5 * SECOND, NEVER);
        let key = cache.store(7, 7, 1, lifetime, 0, &mut out).unwrap();
        assert_eq!(cache.ask(key, 10 * SECOND - 1), Found::Fresh(&7));
        assert_eq!(cache.ask(key, 10 * SECOND), Found::Stale(&7));
        assert_eq!(cache.ask(key, 15 * SECOND - 1), Found::Stale(&7));
        assert_eq!(cache.peek(key, 15 * SECOND - 1), Some(&7));
        assert_eq!(cache.peek(key, 15 * SECOND), None);
        assert_eq!(cache.ask(key, 15 * SECOND), Found::Gone(Some(7)));
        assert_eq!(cache.ask(key, 15 * SECOND), Found::Gone(None));
        assert_eq!(cache.departures().expired, 1);
        assert!(cache.is_empty());
    }

    #[test]
    fn only_what_is_fresh_is_found_as_such() {
        let (mut cache, mut out) = cache_of(10);
        let lifetime = Lifetime::from(0, 10 * SECOND, 5 * SECOND, 4 * SECOND);
        let key = cache.store(7, 7, 1, lifetime, 0, &mut out).unwrap();
        assert_eq!(cache.fresh(key, 3 * SECOND), Some(&7));
        assert_eq!(cache.fresh(key, 6 * SECOND), Some(&7), "it was asked for");
        assert_eq!(cache.fresh(key, 10 * SECOND), None, "stale");
        assert_eq!(cache.peek(key, 9 * SECOND), Some(&7));
        assert_eq!(cache.fresh(key, 12 * SECOND), None, "idle");
        assert!(cache.contains(key), "nobody has come across it");
        assert_eq!(cache.ask(key, 12 * SECOND), Found::Gone(Some(7)));
        assert!(!cache.contains(key));
        assert_eq!(cache.fresh(key, 0), None);
    }

    #[test]
    fn who_is_asked_for_does_not_idle() {
        let (mut cache, mut out) = cache_of(10);
        let lifetime = Lifetime::from(0, 100 * SECOND, 0, 3 * SECOND);
        let asked = cache.store(1, 1, 1, lifetime, 0, &mut out).unwrap();
        let idle = cache.store(2, 2, 1, lifetime, 0, &mut out).unwrap();
        for second in 1..50 {
            assert_eq!(cache.ask(asked, second * SECOND), Found::Fresh(&1));
        }
        // Looking at it is not asking for it.
        assert_eq!(cache.peek(idle, 2 * SECOND), Some(&2));
        cache.sweep(49 * SECOND, 10, &mut out);
        assert_eq!(out, [2]);
        assert_eq!(cache.ask(idle, 49 * SECOND), Found::Gone(None));
        assert_eq!(cache.ask(asked, 52 * SECOND), Found::Gone(Some(1)));
    }

    #[test]
    fn entries_whose_time_is_over_leave_though_nobody_asks() {
        let (mut cache, mut out) = cache_of(u64::MAX);
        for number in 0..100_000u64 {
            // A thousand per second, each for one second.
            let now = number as i64 * (SECOND / 1_000);
            let lifetime = Lifetime::from(now, SECOND, 0, NEVER);
            cache
                .store(number, number, 1, lifetime, now, &mut out)
                .unwrap();
            assert!(cache.len() <= 1_001, "{} at {number}", cache.len());
        }
        assert_eq!(out.len() + cache.len(), 100_000);
        assert!(cache.deadlines.len() <= 2 * cache.len() + FEW_DEADLINES);
    }

    #[test]
    fn those_that_were_used_hold_no_store_up() {
        let (mut cache, mut out) = cache_of(u64::MAX);
        let lifetime = Lifetime::from(0, NEVER, 0, 2 * SECOND);
        let keys: Vec<_> = (0..1_000)
            .map(|number| cache.store(number, number, 1, lifetime, 0, &mut out))
            .collect();
        for key in keys {
            assert!(cache.fresh(key.unwrap(), SECOND).is_some());
        }
        cache
            .store(0, 0, 1, lifetime, 2 * SECOND, &mut out)
            .unwrap();
        let put_back = |&&Reverse((deadline, _)): &&Reverse<(i64, u64)>| deadline == 3 * SECOND;
        let looks = cache.deadlines.iter().filter(put_back).count();
        assert_eq!(looks, LOOKS_PER_SWEPT * SWEPT_PER_ENTRY);
        // The others have their turn all the same.
        for number in 0..1_000 {
            cache
                .store(number, number, 1, lifetime, 3 * SECOND, &mut out)
                .unwrap();
        }
        assert_eq!((out.len(), cache.len()), (1_000, 1_001));
    }

    #[test]
    fn deadlines_of_those_who_left_do_not_pile_up() {
        let (mut cache, mut out) = cache_of(u64::MAX);
        for number in 0..100_000u64 {
            let lifetime = Lifetime::from(0, 1_000 * SECOND, 0, NEVER);
            let key = cache
                .store(number, number, 1, lifetime, 0, &mut out)
                .unwrap();
            assert_eq!(cache.remove(key), Some(number));
        }
        assert!(cache.deadlines.len() <= FEW_DEADLINES + 1);
    }

    #[test]
    fn what_was_driven_out_is_handed_over_and_counted() {
        let (mut cache, mut out) = cache_of(2);
        let mut keys = Vec::new();
        for number in 0..5 {
            let key = cache.store(number, number, 1, Lifetime::UNLIMITED, 0, &mut out);
            keys.push(key.unwrap());
        }
        assert_eq!(out, [0, 1, 2]);
        assert_eq!(cache.ask(keys[0], 0), Found::Gone(None));
        let evicted = cache.departures().evicted;
        assert_eq!((cache.len(), evicted), (2, 3));
        assert_eq!(
            cache.store(9, 9, 3, Lifetime::UNLIMITED, 0, &mut out),
            Err(9)
        );
        cache.resize(1, &mut out);
        assert_eq!(out, [0, 1, 2, 3]);
        let mut rest = cache.take_all();
        rest.sort_unstable();
        assert_eq!(rest, [4]);
        assert!(cache.is_empty());
    }

    #[test]
    fn the_end_of_time_is_no_overflow() {
        let lifetime = Lifetime::from(NEVER - 5, NEVER, NEVER, NEVER);
        assert_eq!(lifetime, Lifetime::UNLIMITED);
    }
}
