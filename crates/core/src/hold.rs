//! How long bytes that could be sent are held back, so that they leave together with what follows.
//!
//! A system call costs more than most of what it carries, so what one callback sends leaves by one. That
//! must not cost latency: what is held leaves when the callback that is running ends, and in a callback that
//! goes on sending no later than with the first thing it sends after [`HOLD_NS`].

/// For how long a callback that goes on sending holds back, nanoseconds.
pub const HOLD_NS: u64 = 50_000;

/// Since when something is held back.
#[derive(Debug, Default, Clone, Copy)]
pub struct Hold {
    since: Option<u64>,
}

impl Hold {
    /// Something is held from `now` on, if nothing was before.
    #[inline]
    pub fn begin(&mut self, now: u64) {
        self.since.get_or_insert(now);
    }

    /// Nothing is held any more; whether something was.
    #[inline]
    pub fn end(&mut self) -> bool {
        self.since.take().is_some()
    }

    /// Whether something is held.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// Whether something is held that should have left by `now`.
    #[inline]
    pub fn is_due(&self, now: u64) -> bool {
        self.since
            .is_some_and(|since| now.saturating_sub(since) > HOLD_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_decides_when_it_is_due() {
        let mut hold = Hold::default();
        assert!(!hold.is_on() && !hold.is_due(u64::MAX));
        hold.begin(1_000);
        hold.begin(40_000);
        assert!(hold.is_on() && !hold.is_due(1_000 + HOLD_NS));
        assert!(hold.is_due(1_001 + HOLD_NS));
        assert!(!hold.is_due(0), "a clock that went back is no reason");
        assert!(hold.end());
        assert!(!hold.end() && !hold.is_due(u64::MAX));
    }
}
