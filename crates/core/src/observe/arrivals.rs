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
    /// A ring, whose marks have the numbers from `first` to before `end`.
    marks: [Mark; KEPT],
    first: usize,
    end: usize,
    /// The count of the last mark that there was.
    last: u64,
    /// The last mark grows until its count is so large; then there is another one.
    full: u64,
    /// A mark is for so many entries at least.
    stride: u64,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            marks: [Mark::default(); KEPT],
            first: 0,
            end: 0,
            last: 0,
            full: 0,
            stride: 0,
        }
    }
}

impl Arrivals {
    #[inline(always)]
    fn slot(&mut self, number: usize) -> &mut Mark {
        &mut self.marks[number % KEPT]
    }

    /// By now `count` entries have come, those that have left again included.
    #[inline]
    pub fn mark(&mut self, count: u64, now: u64) {
        if count <= self.last {
            return;
        }
        if self.last >= self.full {
            if self.end.wrapping_sub(self.first) == KEPT {
                self.thin();
            }
            self.full = self.last + self.stride;
            self.end = self.end.wrapping_add(1);
        }
        *self.slot(self.end.wrapping_sub(1)) = Mark { count, at: now };
        self.last = count;
    }

    /// How many had come by the last mark.
    #[inline(always)]
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.last
    }

    /// Half as exact: of two neighbours the later one stays, whose count covers both.
    #[cold]
    fn thin(&mut self) {
        let first = self.slot(self.first).count;
        self.stride = (self.last - first) / (KEPT as u64 / 2);
        for index in 0..KEPT / 2 {
            *self.slot(self.first.wrapping_add(index)) =
                *self.slot(self.first.wrapping_add(2 * index + 1));
        }
        self.end = self.first.wrapping_add(KEPT / 2);
    }

    /// When the entry with this number, which leaves, had come; None: after the last mark. Numbers rise.
    #[inline]
    pub fn leaves(&mut self, number: u64) -> Option<u64> {
        while self.first != self.end {
            let first = *self.slot(self.first);
            if first.count > number {
                return Some(first.at);
            }
            self.first = self.first.wrapping_add(1);
        }
        (self.stride, self.full) = (0, 0);
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
            assert!(arrivals.end - arrivals.first <= KEPT);
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
