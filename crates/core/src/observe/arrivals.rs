//! When the entries of a FIFO came, told from how many had come at a few moments.

use std::collections::VecDeque;

/// Marks kept at most; more of them would only be more exact.
const KEPT: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Mark {
    /// So many entries had come,
    count: u64,
    /// at this time.
    at: u64,
}

/// Entries are numbered in the order in which they come, from 0.
#[derive(Debug, Default)]
pub struct Arrivals {
    marks: VecDeque<Mark>,
    /// A mark is for so many entries at least.
    stride: u64,
}

impl Arrivals {
    /// By now `count` entries have come, those that have left again included.
    #[inline]
    pub fn mark(&mut self, count: u64, now: u64) {
        let mut marks = self.marks.iter_mut();
        let (last, before) = (marks.next_back(), marks.next_back());
        match last {
            Some(last) if count <= last.count => return,
            // The last mark grows until it is large enough.
            Some(last) if before.is_some_and(|before| last.count - before.count < self.stride) => {
                *last = Mark { count, at: now };
                return;
            }
            _ => {}
        }
        if self.marks.len() == KEPT {
            self.thin();
        }
        self.marks.push_back(Mark { count, at: now });
    }

    /// Half as exact: of two neighbours the later one stays, whose count covers both.
    #[cold]
    fn thin(&mut self) {
        let first = self.marks.front().map_or(0, |mark| mark.count);
        let last = self.marks.back().map_or(0, |mark| mark.count);
        self.stride = (last - first) / (KEPT as u64 / 2);
        let mut index = 0;
        self.marks.retain(|_| {
            index += 1;
            index % 2 == 0
        });
    }

    /// When the entry with this number, which leaves, had come; None: after the last mark. Numbers rise.
    #[inline]
    pub fn leaves(&mut self, number: u64) -> Option<u64> {
        while let Some(first) = self.marks.front() {
            if first.count > number {
                return Some(first.at);
            }
            self.marks.pop_front();
        }
        self.stride = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrivals, KEPT};

    #[test]
    fn an_entry_came_when_the_count_passed_its_number() {
        let mut arrivals = Arrivals::default();
        arrivals.mark(3, 10);
        arrivals.mark(3, 11);
        arrivals.mark(5, 12);
        let came: Vec<_> = (0..6).map(|number| arrivals.leaves(number)).collect();
        assert_eq!(
            came,
            [Some(10), Some(10), Some(10), Some(12), Some(12), None]
        );
    }

    #[test]
    fn many_marks_become_fewer_and_never_too_early() {
        let mut arrivals = Arrivals::default();
        for count in 1..=1_000 {
            arrivals.mark(count, count);
            assert!(arrivals.marks.len() <= KEPT);
        }
        for number in 0..1_000 {
            let came = arrivals.leaves(number).unwrap();
            assert!(
                (number + 1..=number + 64).contains(&came),
                "{number}: {came}"
            );
        }
    }
}
