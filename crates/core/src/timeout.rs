//! How late a timer may be, and how long the loop may sleep.
//!
//! Selectors with millisecond timeouts turn a sleep of 0.5 ms into one of 1.1 ms (or, rounding the
//! other way, into none at all). Ours take nanoseconds, so the wait can be as short as the timer is;
//! but a loop that wakes for every single nanosecond deadline would never batch. A timer therefore has
//! a slack that grows with its delay, up to the millisecond that asyncio grants to all of them, and the
//! loop wakes at the points of the slack's grid: timers that are due close together share one wake-up,
//! and beyond the first 100 µs the lateness stays below a tenth of the delay. (Go's runtime rounds the
//! waits of its own `epoll_pwait2` in the same steps, golang/go#79872, but by the time that is left until
//! the next timer; with many timers that is never long.)

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;

/// No single wait is longer than a day: kernels differ in what they make of larger timeouts.
pub const MAX_WAIT_NS: u64 = 24 * 3600 * 1_000 * MILLI;

/// How late a timer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slack {
    /// Delays below 1 ms: 10 µs.
    Fine,
    /// Delays below 10 ms: 100 µs.
    Medium,
    /// Longer ones: 1 ms.
    Coarse,
}

impl Slack {
    pub const COUNT: usize = 3;
    pub const ALL: [Self; Self::COUNT] = [Self::Fine, Self::Medium, Self::Coarse];

    /// The slack of a timer with this delay, in nanoseconds.
    pub fn of(delay: u64) -> Self {
        match delay {
            d if d < MILLI => Self::Fine,
            d if d < 10 * MILLI => Self::Medium,
            _ => Self::Coarse,
        }
    }

    fn grid(self) -> u64 {
        match self {
            Self::Fine => 10 * MICRO,
            Self::Medium => 100 * MICRO,
            Self::Coarse => MILLI,
        }
    }

    /// When to be awake for a deadline: never before it, and less than one step of the grid after.
    #[inline]
    pub fn wake(self, deadline: u64) -> u64 {
        deadline
            .checked_next_multiple_of(self.grid())
            .unwrap_or(u64::MAX)
    }
}

/// The wait, in nanoseconds, until `wake`; zero if that has passed.
#[inline]
pub fn wait_ns(wake: u64, now: u64) -> u64 {
    wake.saturating_sub(now).min(MAX_WAIT_NS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn grids() {
        assert_eq!(Slack::of(500 * MICRO).wake(MILLI + 1), MILLI + 10 * MICRO);
        assert_eq!(Slack::of(MILLI).wake(5 * MILLI + 1), 5_100 * MICRO);
        assert_eq!(Slack::of(10 * MILLI).wake(10 * MILLI + 1), 11 * MILLI);
        assert_eq!(Slack::Coarse.wake(MILLI), MILLI);
        assert_eq!(Slack::Fine.wake(u64::MAX), u64::MAX);
    }

    #[test]
    fn waits() {
        assert_eq!(wait_ns(5, 5), 0);
        assert_eq!(wait_ns(4, 5), 0);
        assert_eq!(wait_ns(7, 5), 2);
        assert_eq!(wait_ns(u64::MAX, 0), MAX_WAIT_NS);
    }

    proptest! {
        #[test]
        fn never_early_and_less_than_a_tenth_late(delay in 1_u64..MAX_WAIT_NS, made in 0_u64..MAX_WAIT_NS) {
            let deadline = made + delay;
            let wake = Slack::of(delay).wake(deadline);
            prop_assert!(wake >= deadline);
            prop_assert!(wake - deadline <= (delay / 10).max(10 * MICRO));
        }
    }
}
