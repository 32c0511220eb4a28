//! Prometheus' text format, version 0.0.4 ("Exposition formats" of its documentation).

use std::fmt::Write;

use crate::histogram::{Histogram, PER_OCTAVE};

/// The bounds of the buckets that are written: powers of two, from 1.02 µs to 68.7 s. Each is a bound of the
/// histogram's own buckets, eight of which come together in one, so that the counts are exact.
const OCTAVES: std::ops::RangeInclusive<i32> = 10..=36;

/// A text that grows.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// The labels of a sample.
pub type Labels<'a> = [(&'a str, &'a str)];

impl Exposition {
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    /// What follows are samples of this metric. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n").ok();
    }

    pub fn sample(&mut self, name: &str, labels: &Labels<'_>, value: f64) {
        self.line(name, labels, None, value);
    }

    /// A histogram of nanoseconds, as one of seconds.
    pub fn histogram(&mut self, name: &str, labels: &Labels<'_>, histogram: &Histogram) {
        let mut buckets = histogram.buckets().peekable();
        let mut seen = histogram.zeros();
        let row = format!("{name}_bucket");
        for octave in OCTAVES {
            while let Some((_, count)) =
                buckets.next_if(|&(index, _)| index < octave * PER_OCTAVE as i32)
            {
                seen += count;
            }
            let bound = (f64::from(octave).exp2() / 1e9).to_string();
            self.line(&row, labels, Some(&bound), seen as f64);
        }
        self.line(&row, labels, Some("+Inf"), histogram.count() as f64);
        self.sample(&format!("{name}_sum"), labels, histogram.sum() as f64 / 1e9);
        self.sample(&format!("{name}_count"), labels, histogram.count() as f64);
    }

    fn line(&mut self, name: &str, labels: &Labels<'_>, bound: Option<&str>, value: f64) {
        self.text.push_str(name);
        let bound = bound.map(|bound| ("le", bound));
        let mut before = '{';
        for (label, text) in labels.iter().copied().chain(bound) {
            self.text.push(before);
            self.text.push_str(label);
            self.text.push_str("=\"");
            for letter in text.chars() {
                match letter {
                    '"' => self.text.push_str("\\\""),
                    '\\' => self.text.push_str("\\\\"),
                    '\n' => self.text.push_str("\\n"),
                    letter => self.text.push(letter),
                }
            }
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        writeln!(self.text, " {value}").ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_and_their_labels() {
        let mut out = Exposition::default();
        out.family("steps_total", "counter", "Steps.");
        out.sample("steps_total", &[], 3.0);
        out.sample("steps_total", &[("loop", "1"), ("name", "a\"\\\nb")], 0.5);
        assert_eq!(
            out.into_text(),
            "# HELP steps_total Steps.\n# TYPE steps_total counter\nsteps_total 3\n\
             steps_total{loop=\"1\",name=\"a\\\"\\\\\\nb\"} 0.5\n"
        );
    }

    #[test]
    fn a_histogram_counts_up() {
        let mut histogram = Histogram::new();
        for value in [0, 1024, 1025, 2_000_000_000, u64::MAX] {
            histogram.record(value);
        }
        let mut out = Exposition::default();
        out.histogram("x", &[("loop", "1")], &histogram);
        let text = out.into_text();
        let at = |bound: &str| {
            let start = format!("x_bucket{{loop=\"1\",le=\"{bound}\"}} ");
            let line = text.lines().find(|line| line.starts_with(&start));
            line.map(|line| line[start.len()..].to_owned())
        };
        // A bucket includes its bound.
        assert_eq!(at("0.000001024").as_deref(), Some("2"));
        assert_eq!(at("0.000002048").as_deref(), Some("3"));
        assert_eq!(at("1.073741824").as_deref(), Some("3"));
        assert_eq!(at("2.147483648").as_deref(), Some("4"));
        assert_eq!(at("68.719476736").as_deref(), Some("4"));
        assert_eq!(at("+Inf").as_deref(), Some("5"));
        assert!(text.ends_with("x_count{loop=\"1\"} 5\n"));
    }
}
