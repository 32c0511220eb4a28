//! How busy a loop was of late: exponentially weighted averages over 1, 10 and 60 seconds.

use std::sync::atomic::{AtomicU64, Ordering, fence};

const SECOND: u64 = 1_000_000_000;

/// The time constants, in nanoseconds.
const SPANS: [u64; 3] = [SECOND, 10 * SECOND, 60 * SECOND];

/// The averages are brought up to date this often at most.
const INTERVAL: u64 = SECOND / 20;

/// Fractions of the time, 0 to 1, in which the loop did not wait.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// When it was computed, and how long the loop had been busy by then.
    at: u64,
    busy: u64,
    /// Over the last second, ten seconds and minute.
    pub over: [f64; 3],
}

impl Load {
    /// A loop that starts to be watched.
    fn new(at: u64, busy: u64) -> Self {
        Self {
            at,
            busy,
            over: [0.0; 3],
        }
    }

    /// What it is at `now`, if the loop has been busy for `busy` nanoseconds in all.
    #[must_use]
    pub fn until(self, now: u64, busy: u64) -> Self {
        let elapsed = now.saturating_sub(self.at);
        if elapsed == 0 {
            return self;
        }
        let fraction = (busy.saturating_sub(self.busy) as f64 / elapsed as f64).min(1.0);
        let mut over = self.over;
        for (average, span) in over.iter_mut().zip(SPANS) {
            let kept = (-(elapsed as f64) / span as f64).exp();
            *average = *average * kept + fraction * (1.0 - kept);
        }
        Self {
            at: now,
            busy,
            over,
        }
    }
}

/// A [`Load`] that one thread writes and any thread reads whole.
#[derive(Debug, Default)]
pub struct Averages {
    /// Odd while the words below are being written.
    version: AtomicU64,
    words: [AtomicU64; 5],
}

impl Averages {
    /// Brings the averages up to date if it is time, and says whether it was. By one thread only.
    #[inline]
    pub fn update(&self, now: u64, busy: u64) -> bool {
        let at = self.words[0].load(Ordering::Relaxed);
        let is_time = now.saturating_sub(at) >= INTERVAL;
        if is_time {
            self.advance(at, now, busy);
        }
        is_time
    }

    #[cold]
    fn advance(&self, at: u64, now: u64, busy: u64) {
        self.store(match at {
            0 => Load::new(now, busy),
            _ => self.load().until(now, busy),
        });
    }

    fn load(&self) -> Load {
        let [at, busy, over @ ..] = &self.words;
        Load {
            at: at.load(Ordering::Relaxed),
            busy: busy.load(Ordering::Relaxed),
            over: over
                .each_ref()
                .map(|word| f64::from_bits(word.load(Ordering::Relaxed))),
        }
    }

    fn store(&self, load: Load) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version | 1, Ordering::Relaxed);
        // Whoever sees one of the new words sees the odd version too.
        fence(Ordering::Release);
        let words = [load.at, load.busy]
            .into_iter()
            .chain(load.over.map(f64::to_bits));
        for (word, value) in self.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        // Whoever sees the even version sees all of them.
        self.version
            .store((version | 1).wrapping_add(1), Ordering::Release);
    }

    /// The averages as they were brought up to date last, from any thread.
    #[must_use]
    pub fn read(&self) -> Load {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let load = self.load();
            fence(Ordering::Acquire);
            // A writer is done within some nanoseconds, unless its thread has lost the processor.
            if before & 1 == 0 && self.version.load(Ordering::Relaxed) == before {
                return load;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Averages, Load, SECOND};

    #[test]
    fn half_busy_is_half() {
        let mut load = Load::new(1, 0);
        for tick in 1..=6_000_u64 {
            load = load.until(1 + tick * SECOND / 10, tick * SECOND / 20);
        }
        for average in load.over {
            assert!((average - 0.5).abs() < 0.001, "{average}");
        }
    }

    #[test]
    fn the_short_average_forgets_first() {
        let busy = Load::new(1, 0).until(1 + 600 * SECOND, 600 * SECOND);
        let after = busy.until(1 + 603 * SECOND, 600 * SECOND);
        assert!(after.over[0] < 0.06 && after.over[1] > 0.7 && after.over[2] > 0.94);
    }

    #[test]
    fn one_long_interval_is_many_short_ones() {
        let start = Load::new(1, 0);
        let once = start.until(1 + SECOND, SECOND / 4);
        let mut often = start;
        for tick in 1..=100 {
            often = often.until(1 + tick * SECOND / 100, tick * SECOND / 400);
        }
        assert!((once.over[1] - often.over[1]).abs() < 1e-9);
    }

    #[test]
    fn readers_never_see_halves() {
        let averages = Averages::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..20_000_u64 {
                    averages.update(n * SECOND, n * SECOND);
                }
            });
            for _ in 0..20_000 {
                let load = averages.read();
                assert_eq!(load.at, load.busy);
            }
        });
    }
}
