//! A histogram against the sorted list of what it has recorded.

use arbitrary::Arbitrary;
use tideloop_core::histogram::Histogram;

#[derive(Debug, Arbitrary)]
enum Op {
    Record(u64),
    /// Most values are small.
    Small(u16),
    /// Powers of two, where buckets begin and end, and their neighbours.
    Edge(u8, i8),
    Quantile(f64),
    /// As the percentiles that people ask for.
    PerMille(u16),
    /// Adds a histogram of these.
    Merge(Vec<u64>),
}

pub fn check(bytes: &[u8]) {
    let mut histogram = Histogram::new();
    let mut values: Vec<u64> = Vec::new();
    for op in super::operations(bytes) {
        match op {
            Op::Record(value) => record(&mut histogram, &mut values, value),
            Op::Small(value) => record(&mut histogram, &mut values, value.into()),
            Op::Edge(octave, off) => {
                let edge = 1_u64 << (octave % 64);
                record(
                    &mut histogram,
                    &mut values,
                    edge.saturating_add_signed(off.into()),
                );
            }
            Op::Quantile(q) => quantile(&histogram, &mut values, q),
            Op::PerMille(q) => quantile(&histogram, &mut values, f64::from(q % 1001) / 1000.0),
            Op::Merge(more) => {
                let mut other = Histogram::new();
                for value in more {
                    record(&mut other, &mut values, value);
                }
                histogram.merge(&other);
            }
        }
        assert_eq!(histogram.count(), values.len() as u64);
        assert_eq!(histogram.min(), values.iter().min().copied());
        assert_eq!(histogram.max(), values.iter().max().copied());
    }
    let sum: u128 = values.iter().map(|value| u128::from(*value)).sum();
    assert_eq!(histogram.sum(), sum);
    let zeros = values.iter().filter(|value| **value == 0).count() as u64;
    assert_eq!(histogram.zeros(), zeros);
    let buckets: Vec<(i32, u64)> = histogram.buckets().collect();
    assert_eq!(
        buckets.iter().map(|bucket| bucket.1).sum::<u64>() + zeros,
        histogram.count()
    );
    assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
    for (index, count) in buckets {
        // Bounds as floats are off by a rounding; a value at one of them may be on either side.
        let (low, high) = (
            (f64::from(index) / 8.0).exp2(),
            (f64::from(index + 1) / 8.0).exp2(),
        );
        let within = |slack: f64| {
            let (low, high) = (low * (1.0 + slack), high * (1.0 - slack));
            let inside = |value: &&u64| **value as f64 > low && **value as f64 <= high;
            values.iter().filter(inside).count() as u64
        };
        assert!(
            within(1e-12) <= count && count <= within(-1e-12),
            "bucket {index}"
        );
    }
}

fn record(histogram: &mut Histogram, values: &mut Vec<u64>, value: u64) {
    histogram.record(value);
    values.push(value);
}

fn quantile(histogram: &Histogram, values: &mut [u64], q: f64) {
    let Some(told) = histogram.quantile(q) else {
        assert!(values.is_empty());
        return;
    };
    values.sort_unstable();
    let share = if q.is_nan() { 1.0 } else { q.clamp(0.0, 1.0) };
    let rank = ((share * values.len() as f64).ceil() as usize).clamp(1, values.len());
    let exact = values[rank - 1] as f64;
    let off = (told as f64 - exact).abs();
    assert!(
        off <= exact * 0.0443 + 0.5,
        "{told} for {exact}, the {q} quantile"
    );
}
