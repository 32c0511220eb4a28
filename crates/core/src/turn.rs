//! When a turn may go without asking the selector.
//!
//! A poll costs a system call (115 ns where a whole callback costs 100), so a loop that is busy with
//! callbacks gains much by not polling in every turn (tokio's idea). It must not gain it from
//! latency: while work is ready at most [`MAX_SKIPPED`] turns *and* at most [`MAX_SKIPPED_NS`] pass
//! between two polls, and a turn with nothing ready always polls, because then only timers or I/O
//! can make progress.

/// Turns in a row that may go without a poll.
pub const MAX_SKIPPED: u32 = 61;

/// Nanoseconds after a poll during which turns may go without one.
pub const MAX_SKIPPED_NS: u64 = 50_000;

/// Decides, turn by turn, whether to poll.
#[derive(Debug, Default)]
pub struct PollPolicy {
    skipped: u32,
    last_poll: u64,
}

impl PollPolicy {
    /// Whether this turn may skip its poll although work is ready; counts the skip if so.
    #[inline]
    #[must_use]
    pub fn skip(&mut self, now: u64) -> bool {
        let skip = self.may_skip(now);
        self.skipped += u32::from(skip);
        skip
    }

    /// Whether a turn may skip its poll now; counts nothing.
    #[inline]
    #[must_use]
    pub fn may_skip(&self, now: u64) -> bool {
        self.skipped < MAX_SKIPPED && now.saturating_sub(self.last_poll) < MAX_SKIPPED_NS
    }

    /// Says that the selector was asked at `now`.
    #[inline]
    pub fn polled(&mut self, now: u64) {
        self.skipped = 0;
        self.last_poll = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_bounded() {
        let mut policy = PollPolicy::default();
        policy.polled(1_000);
        let skipped = (0..1_000).take_while(|_| policy.skip(1_001)).count();
        assert_eq!(skipped, 61);
        policy.polled(1_002);
        assert!(policy.skip(1_003));
    }

    #[test]
    fn time_is_bounded() {
        let mut policy = PollPolicy::default();
        policy.polled(1_000);
        assert!(policy.skip(1_000 + MAX_SKIPPED_NS - 1));
        assert!(!policy.skip(1_000 + MAX_SKIPPED_NS));
    }
}
