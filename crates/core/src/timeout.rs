//! How long the loop may sleep before the next timer.
//!
//! Selectors with millisecond timeouts turn a sleep of 0.5 ms into one of 1.1 ms (or, rounding the
//! other way, into none at all). Ours take nanoseconds, so the wait can be as short as the timer is;
//! but a loop that wakes for every single nanosecond deadline would never batch. The wait is
//! therefore rounded *up* to a bucket that grows with it, as Go's runtime does for its own
//! `epoll_pwait2` (golang/go#79872): timers that are due close together share one wake-up, and the
//! rounding stays below a tenth of the wait beyond the first 100 µs.

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;

/// No single wait is longer than a day: kernels differ in what they make of larger timeouts.
pub const MAX_WAIT_NS: u64 = 24 * 3600 * 1_000 * MILLI;

/// The bucket that a wait of `remaining` nanoseconds is rounded up to.
fn bucket(remaining: u64) -> u64 {
    match remaining {
        r if r < MILLI => 10 * MICRO,
        r if r < 10 * MILLI => 100 * MICRO,
        _ => MILLI,
    }
}

/// The wait, in nanoseconds, for a timer that is due in `deadline - now`; zero if it is due.
#[inline]
pub fn wait_ns(deadline: u64, now: u64) -> u64 {
    let remaining = deadline.saturating_sub(now);
    if remaining >= MAX_WAIT_NS {
        return MAX_WAIT_NS;
    }
    remaining.next_multiple_of(bucket(remaining))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets() {
        assert_eq!(wait_ns(5, 5), 0);
        assert_eq!(wait_ns(4, 5), 0);
        assert_eq!(wait_ns(1, 0), 10 * MICRO);
        assert_eq!(wait_ns(500 * MICRO, 0), 500 * MICRO);
        assert_eq!(wait_ns(501 * MICRO, 0), 510 * MICRO);
        assert_eq!(wait_ns(MILLI + 1, 0), 1_100 * MICRO);
        assert_eq!(wait_ns(10 * MILLI + 1, 0), 11 * MILLI);
        assert_eq!(wait_ns(u64::MAX, 0), MAX_WAIT_NS);
    }

    proptest! {
        #[test]
        fn never_early_and_never_more_than_a_bucket_late(deadline in any::<u64>(), now in any::<u64>()) {
            let remaining = deadline.saturating_sub(now);
            let wait = wait_ns(deadline, now);
            if remaining < MAX_WAIT_NS {
                prop_assert!(wait >= remaining);
                prop_assert!(wait - remaining < bucket(remaining));
            } else {
                prop_assert_eq!(wait, MAX_WAIT_NS);
            }
        }
    }
}
