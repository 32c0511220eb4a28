//! A histogram that one thread fills and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::histogram::{Histogram, SLOTS, slot_of};

/// Adds to a counter whose only writer is the calling thread.
#[inline]
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// As [`Histogram`], of atomic counters: 4 KiB, in one allocation.
#[derive(Debug)]
pub struct SharedHistogram {
    slots: Box<[AtomicU64]>,
    zeros: AtomicU64,
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for SharedHistogram {
    fn default() -> Self {
        Self {
            slots: std::iter::repeat_with(AtomicU64::default)
                .take(SLOTS)
                .collect(),
            zeros: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl SharedHistogram {
    /// Counts a value `times` times. By one thread only.
    #[inline]
    pub fn add(&self, value: u64, times: u64) {
        match slot_of(value).and_then(|slot| self.slots.get(slot)) {
            Some(slot) => add(slot, times),
            None => add(&self.zeros, times),
        }
        add(&self.sum, value.wrapping_mul(times));
        if value > self.max.load(Relaxed) {
            self.max.store(value, Relaxed);
        }
    }

    /// What was counted so far, from any thread. Its smallest value is the lower bound of its bucket.
    #[must_use]
    pub fn read(&self) -> Histogram {
        let max = self.max.load(Relaxed);
        let sum = self.sum.load(Relaxed);
        let slots = self.slots.iter().map(|slot| slot.load(Relaxed));
        Histogram::of_counts(slots, self.zeros.load(Relaxed), sum, max)
    }
}

#[cfg(test)]
mod tests {
    use super::SharedHistogram;
    use crate::histogram::Histogram;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_what_a_clock_has_shown_are_within_5_percent() {
        // Real durations, of work that takes from nothing to a tenth of a millisecond: what they are does not matter.
        let mut recorded: Vec<u64> = (0..20_000_u64)
            .map(|number| {
                let began = std::time::Instant::now();
                let work = (number * number) % 97 * (number % 7);
                std::hint::black_box((0..work).fold(0, |sum, n| sum ^ std::hint::black_box(n)));
                began.elapsed().as_nanos() as u64
            })
            .collect();
        let shared = SharedHistogram::default();
        recorded.iter().for_each(|&took| shared.add(took, 1));
        recorded.sort_unstable();
        let histogram = shared.read();
        for per_mille in [1, 10, 100, 250, 500, 750, 900, 950, 990, 999, 1_000] {
            let q = per_mille as f64 / 1_000.0;
            let rank = (q * recorded.len() as f64).ceil() as usize;
            let exact = recorded[rank - 1] as f64;
            let read = histogram.quantile(q).unwrap() as f64;
            assert!(
                (read - exact).abs() <= exact * 0.05,
                "{q}: {read} for {exact}"
            );
        }
    }

    proptest! {
        #[test]
        fn reads_what_an_ordinary_one_would_have(values in prop::collection::vec(0_u64..1 << 40, 0..100)) {
            let (shared, mut plain) = (SharedHistogram::default(), Histogram::new());
            for value in values {
                shared.add(value, 3);
                (0..3).for_each(|_| plain.record(value));
            }
            let read = shared.read();
            prop_assert_eq!(read.buckets().collect::<Vec<_>>(), plain.buckets().collect::<Vec<_>>());
            prop_assert_eq!((read.count(), read.zeros(), read.sum()), (plain.count(), plain.zeros(), plain.sum()));
            prop_assert_eq!(read.max(), plain.max());
            for q in [0.5, 0.9, 0.99] {
                let (ours, theirs) = (read.quantile(q).unwrap_or(0), plain.quantile(q).unwrap_or(0));
                prop_assert!(ours.abs_diff(theirs) as f64 <= theirs as f64 * 0.0443 + 0.5);
            }
        }
    }
}
