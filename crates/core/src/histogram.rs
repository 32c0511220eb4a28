//! Latency histogram with base-2 exponential buckets, eight to an octave.
//!
//! A bucket is `(2^(i/8), 2^((i+1)/8)]`: neighbouring bounds differ by 9 %, so a value read back is at
//! most 4.4 % away from the one recorded, over the whole range of `u64`, in 4 KiB and without a branch
//! that depends on the data but one. Two histograms add bucket by bucket, which is the only right way
//! to merge percentiles of several runs.
//!
//! Layout: OpenTelemetry's exponential histogram at scale 3 (OpenTelemetry Metrics Data Model,
//! "ExponentialHistogram"), which is the Prometheus native histogram with schema 3; export to either
//! is lossless. Both include the upper bound in a bucket and keep zero apart, and so does this.
#![forbid(unsafe_code)]

/// Buckets per factor of two.
pub const PER_OCTAVE: usize = 8;

/// One bucket for the value 1 (index -1), then eight for each octave of `u64`.
pub(crate) const SLOTS: usize = 1 + 64 * PER_OCTAVE;

/// `ceil(2^(63 + k/8))` for k in 0..8: where the buckets of an octave begin, for a value shifted until
/// its top bit is bit 63. The first one's bound is the value itself, of the bucket below.
const SPLITS: [u64; PER_OCTAVE] = [
    (1 << 63) + 1,
    0x8b95_c1e3_ea8b_d6e7,
    0x9837_f051_8db8_a970,
    0xa5fe_d6a9_b151_38eb,
    0xb504_f333_f9de_6485,
    0xc567_2a11_5506_dade,
    0xd744_fcca_d69d_6af5,
    0xeac0_c6e7_dd24_392f,
];

/// Sixteenths of an octave, none of which has more than one split in it: how many there are before, and the last value in front of
/// that one, or the last that there is.
const CELLS: [(u8, u64); 16] = {
    let mut cells = [(0, u64::MAX); 16];
    let mut cell = 0;
    while cell < cells.len() {
        let first = (1 << 63) + ((cell as u64) << 59);
        let (mut before, mut split) = (0, 0);
        while split < PER_OCTAVE {
            if SPLITS[split] < first {
                before += 1;
            } else if SPLITS[split] - first < 1 << 59 {
                cells[cell].1 = SPLITS[split] - 1;
            }
            split += 1;
        }
        cells[cell].0 = before;
        cell += 1;
    }
    cells
};

/// Counts of `u64` values (any unit; the load client records nanoseconds).
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    slots: Box<[u64; SLOTS]>,
    zeros: u64,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            slots: Box::new([0; SLOTS]),
            zeros: 0,
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("min", &self.min())
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What counters kept elsewhere amount to: the smallest value is then the lower bound of its bucket, and the
    /// count that of the slots.
    pub(crate) fn of_counts(
        counts: impl Iterator<Item = u64>,
        zeros: u64,
        sum: u64,
        max: u64,
    ) -> Self {
        let mut found = Self {
            zeros,
            count: zeros,
            sum: sum.into(),
            max,
            ..Self::default()
        };
        for (index, (slot, count)) in found.slots.iter_mut().zip(counts).enumerate() {
            *slot = count;
            found.count += count;
            if count > 0 && found.min == u64::MAX {
                found.min = (((index as f64 - 1.0) / PER_OCTAVE as f64).exp2() as u64).max(1);
            }
        }
        if zeros > 0 {
            found.min = 0;
        }
        found
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        match slot_of(value) {
            None => self.zeros += 1,
            Some(slot) => self.slots[slot] += 1,
        }
        self.count += 1;
        self.sum += u128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Adds everything that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.slots.iter_mut().zip(other.slots.iter()) {
            *mine += theirs;
        }
        self.zeros += other.zeros;
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many values were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The exact sum of the recorded values.
    #[must_use]
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The smallest recorded value, exact.
    #[must_use]
    pub fn min(&self) -> Option<u64> {
        (self.count > 0).then_some(self.min)
    }

    /// The largest recorded value, exact.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        (self.count > 0).then_some(self.max)
    }

    /// The value below or at which the fraction `q` of the recorded values lies (nearest rank), within
    /// 4.4 %. `q` is clamped to 0..=1. `None` when nothing was recorded.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let q = if q.is_nan() { 1.0 } else { q.clamp(0.0, 1.0) };
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        if rank == self.count {
            return Some(self.max);
        }
        let mut seen = self.zeros;
        if seen >= rank {
            return Some(0);
        }
        for (slot, &n) in self.slots.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Some(middle(slot).clamp(self.min, self.max));
            }
        }
        Some(self.max)
    }

    /// The buckets that are not empty, in rising order: `(index, count)`. A bucket holds the values in
    /// `(2^(index/8), 2^((index+1)/8)]`; zeros are not among them, see [`Histogram::zeros`].
    pub fn buckets(&self) -> impl Iterator<Item = (i32, u64)> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(slot, n)| (slot as i32 - 1, *n))
    }

    /// How often zero was recorded.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.zeros
    }
}

/// `None` for zero. A power of two is the upper bound of its bucket, hence one slot lower than its
/// neighbour above.
#[inline]
pub(crate) fn slot_of(value: u64) -> Option<usize> {
    let octave = value.checked_ilog2()? as usize;
    let top = value << (63 - octave);
    let (before, last) = CELLS[(top >> 59) as usize & 15];
    Some(octave * PER_OCTAVE + usize::from(before) + usize::from(top > last))
}

/// The geometric middle of a slot: equally far, as a ratio, from both bounds.
fn middle(slot: usize) -> u64 {
    ((slot as f64 - 0.5) / PER_OCTAVE as f64).exp2().round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        for value in values {
            histogram.record(value);
        }
        histogram
    }

    fn index(value: u64) -> i32 {
        of([value]).buckets().next().unwrap().0
    }

    #[test]
    fn nothing_recorded_has_no_quantile() {
        let empty = Histogram::new();
        assert_eq!(empty.quantile(0.5), None);
        assert_eq!((empty.min(), empty.max(), empty.count()), (None, None, 0));
    }

    #[test]
    fn a_power_of_two_is_the_upper_bound_of_its_bucket() {
        assert_eq!(index(1), -1);
        assert_eq!(index(2), 7);
        assert_eq!(index(3), 12); // 2^(12/8) = 2.83 < 3 <= 2^(13/8) = 3.08
        for octave in 1..64 {
            let power = 1_u64 << octave;
            assert_eq!(index(power), octave * 8 - 1, "2^{octave}");
            // Below 2^4 an octave holds fewer integers than buckets.
            if octave >= 4 {
                assert_eq!(index(power + 1), octave * 8, "2^{octave} + 1");
            }
        }
        assert_eq!(index(u64::MAX), 64 * 8 - 1);
    }

    #[test]
    fn an_octave_has_its_buckets_and_no_cell_hides_one() {
        for (bucket, &split) in (63 * 8..).zip(&SPLITS) {
            assert_eq!((index(split - 1), index(split)), (bucket - 1, bucket));
        }
        let splits = CELLS.iter().filter(|(_, last)| *last != u64::MAX);
        assert_eq!(splits.count(), PER_OCTAVE);
    }

    #[test]
    fn zero_is_kept_apart() {
        let histogram = of([0, 0, 5]);
        assert_eq!(histogram.zeros(), 2);
        assert_eq!(histogram.quantile(0.5), Some(0));
        assert_eq!(histogram.quantile(1.0), Some(5));
    }

    #[test]
    fn quantiles_of_a_known_row() {
        let histogram = of(1..=1000);
        for (q, exact) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let got = histogram.quantile(q).unwrap() as f64;
            assert!(
                (got / exact - 1.0).abs() < 0.045,
                "q {q}: {got} for {exact}"
            );
        }
        assert_eq!(histogram.quantile(1.0), Some(1000));
        assert_eq!(histogram.quantile(0.0), Some(1));
        assert_eq!(histogram.sum(), 500_500);
    }

    proptest! {
        #[test]
        fn a_value_lies_within_the_bounds_of_its_bucket(value in 1_u64..(1 << 52)) {
            let low = (f64::from(index(value)) / 8.0).exp2();
            let high = (f64::from(index(value) + 1) / 8.0).exp2();
            let value = value as f64;
            prop_assert!(value > low * (1.0 - 1e-12) && value <= high * (1.0 + 1e-12));
        }

        #[test]
        fn a_quantile_is_within_4_4_percent(mut values in prop::collection::vec(1_u64..1 << 50, 1..200), q in 0.0..=1.0) {
            let got = of(values.iter().copied()).quantile(q).unwrap() as f64;
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let exact = values[rank - 1] as f64;
            // Half a unit more: small values round to integers.
            prop_assert!((got - exact).abs() <= exact * 0.0443 + 0.5, "{} for {}", got, exact);
        }

        #[test]
        fn merging_equals_recording_everything_in_one(a in prop::collection::vec(any::<u64>(), 0..50), b in prop::collection::vec(any::<u64>(), 0..50)) {
            let mut merged = of(a.iter().copied());
            merged.merge(&of(b.iter().copied()));
            prop_assert_eq!(merged, of(a.into_iter().chain(b)));
        }
    }
}
