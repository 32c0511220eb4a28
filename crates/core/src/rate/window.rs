//! One rate: its theoretical arrival time, charges and what can be given back of them.
//!
//! The head of [`super`] says what that time is; here is its arithmetic.

use std::collections::VecDeque;

/// The longest time that a burst may take to be paid for: ten years.
pub const MAX_SPAN: f64 = 315_576_000.0;

/// TATs are kept in 2^-32 ns: an interval need not be a whole number of nanoseconds.
const FRACTION: u32 = 32;

/// So many notes of how far ahead the TAT was; beyond, two become one.
const NOTES: usize = 64;

pub(super) type Fine = i128;

pub(super) const fn fine(ns: i64) -> Fine {
    (ns as Fine) << FRACTION
}

/// In nanoseconds, rounded up.
pub(super) fn coarse(time: Fine) -> i64 {
    let ns = (time + ((1 << FRACTION) - 1)) >> FRACTION;
    ns.clamp(i64::MIN as Fine, i64::MAX as Fine) as i64
}

/// One rate.
#[derive(Debug, Clone)]
pub struct Window {
    interval: Fine,
    burst: u64,
    pub(super) tat: Fine,
    /// By the numbers of charges: how far the TAT was ahead when each came; less and less towards the front. One that was
    /// as far ahead as a later one does not matter.
    ahead: VecDeque<(u64, Fine)>,
}

impl Window {
    /// `limit` units per `per` seconds, `burst` of them at once. `None` if that is no rate that can be kept:
    /// all must be positive, and a burst be paid for in [`MAX_SPAN`] seconds.
    pub fn new(limit: f64, per: f64, burst: u64) -> Option<Self> {
        let seconds = per / limit;
        let sound = limit > 0.0 && per > 0.0 && seconds > 0.0 && burst > 0;
        if !sound || seconds * burst as f64 > MAX_SPAN {
            return None;
        }
        // Rounded up, so that the rate is never exceeded.
        let interval = (seconds * 1e9 * (1u64 << FRACTION) as f64).ceil() as Fine;
        Some(Self {
            interval,
            burst,
            tat: Fine::MIN / 4,
            ahead: VecDeque::new(),
        })
    }

    pub fn burst(&self) -> u64 {
        self.burst
    }

    pub(super) fn price(&self, cost: u64) -> Fine {
        self.interval.saturating_mul(Fine::from(cost))
    }

    /// When a cost of at most the burst may be admitted, given the TAT.
    pub(super) fn earliest(&self, tat: Fine, cost: u64) -> Fine {
        tat + self.price(cost) - self.price(self.burst)
    }

    pub(super) fn charge(&mut self, number: u64, cost: u64, at: i64) {
        if cost == 0 {
            return;
        }
        let at = fine(at);
        self.note(number, (self.tat - at).max(0));
        self.tat = self.tat.max(at) + self.price(cost);
    }

    pub(super) fn note(&mut self, number: u64, ahead: Fine) {
        while self.ahead.back().is_some_and(|last| last.1 >= ahead) {
            self.ahead.pop_back();
        }
        self.ahead.push_back((number, ahead));
        if self.ahead.len() > NOTES
            && let Some((_, least)) = self.ahead.pop_front()
            && let Some(next) = self.ahead.front_mut()
        {
            // The next one now speaks for both.
            next.1 = least;
        }
    }

    /// Gives a part of a charge back, as far as it is not gone.
    pub(super) fn refund(&mut self, number: u64, cost: u64) {
        let mut first = self.ahead.partition_point(|note| note.0 <= number);
        let least = self.ahead.get(first).map(|(_, ahead)| *ahead);
        let back = self.price(cost).min(least.unwrap_or(Fine::MAX));
        self.tat -= back;
        // Those that came since would have been so much less ahead.
        for note in self.ahead.iter_mut().skip(first) {
            note.1 -= back;
        }
        let Some(least) = least else {
            return;
        };
        // Earlier ones that were ahead by more than these are now do not matter any more.
        while first > 0
            && self
                .ahead
                .get(first - 1)
                .is_some_and(|(_, ahead)| *ahead >= least - back)
        {
            first -= 1;
            self.ahead.remove(first);
        }
    }

    /// Units that could be admitted at once.
    pub fn available(&self, now: i64) -> u64 {
        let debt = (self.tat - fine(now)).max(0);
        let left = self.price(self.burst) - debt;
        u64::try_from(left / self.interval).unwrap_or(0)
    }
}
