//! When the entries of a FIFO came, told from how many had come at a few moments.

/// Marks kept at most; more of them would only be more exact.
const KEPT: usize = 64;

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// So many entries had come,
    count: u64,
    /// at this time.
    at: u64,
}

/// Entries are numbered in the order in which they come, from 0.
#[derive(Debug)]
pub struct Arrivals {
    /// A ring, from `first` on.
    marks: [Mark; KEPT],
    first: usize,
    len: usize,
    /// A mark is for so many entries at least.
    stride: u64,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            marks: [Mark::default(); KEPT],
            first: 0,
            len: 0,
            stride: 0,
        }
    }
}

impl Arrivals {
    #[inline(always)]
    fn slot(&mut self, index: usize) -> &mut Mark {
        &mut self.marks[self.first.wrapping_add(index) % KEPT]
    }

    /// By now `count` entries have come, those that have left again included.
    #[inline]
    pub fn mark(&mut self, count: u64, now: u64) {
        let len = self.len;
        if len > 0 {
            let last = self.slot(len - 1).count;
            if count <= last {
                return;
            }
            // The last mark grows until it is large enough.
            if self.stride > 0 && len > 1 && last - self.slot(len - 2).count < self.stride {
                *self.slot(len - 1) = Mark { count, at: now };
                return;
            }
            if len == KEPT {
                self.thin();
            }
        }
        let len = self.len;
        *self.slot(len) = Mark { count, at: now };
        self.len = len + 1;
    }

    /// Half as exact: of two neighbours the later one stays, whose count covers both.
    #[cold]
    fn thin(&mut self) {
        let first = self.slot(0).count;
        let last = self.slot(KEPT - 1).count;
        self.stride = (last - first) / (KEPT as u64 / 2);
        for index in 0..KEPT / 2 {
            *self.slot(index) = *self.slot(2 * index + 1);
        }
        self.len = KEPT / 2;
    }

    /// When the entry with this number, which leaves, had come; None: after the last mark. Numbers rise.
    #[inline]
    pub fn leaves(&mut self, number: u64) -> Option<u64> {
        while self.len > 0 {
            let first = *self.slot(0);
            if first.count > number {
                return Some(first.at);
            }
            self.first = self.first.wrapping_add(1);
            self.len -= 1;
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
            assert!(arrivals.len <= KEPT);
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
