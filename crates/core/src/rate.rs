//! So much per time: the generic cell rate algorithm (GCRA), for several windows at once, and who waits for it.
//!
//! Source: ITU-T I.371, annex A (virtual scheduling). A window has an *interval*, the time that one unit costs, and
//! a *burst*, how many units may come at once. It is one number, the *theoretical arrival time* (TAT): when all
//! that was admitted so far would be paid for. A cost `c` is admitted at `t` if `max(TAT, t) + c * interval` is at
//! most `burst * interval` ahead of `t`, and that becomes the new TAT. So in every span of time of length `d` at
//! most `burst + d / interval` units are admitted, whatever comes when. Nothing is counted and nothing expires.
//!
//! **Waiting.** Nobody who waits has a slot; the first in line is admitted when the windows allow it, then the
//! next. So who leaves the line costs those behind it nothing, and they come earlier. One timer, for the first,
//! is enough ([`Rates::next`]). When more than one waits, and a window has burst to spare, that timer may be late by
//! [`BATCH`] or a hundredth of what the first has waited, and at most [`MAX_BATCH`]: several are then admitted by one
//! wake-up, and nothing is lost, since what was not used in time is what the burst is for.
//!
//! **Giving back.** A cost that turns out smaller ([`Rates::settle`]) lowers the TAT. Not by more than it would be
//! lower if the cost had been smaller from the beginning: where the window was full in between, it would have been
//! full anyway, and that part is gone. Each charge therefore notes how far the TAT was ahead when it came; the least of
//! these since a charge is what can be given back of it.
//!
//! **Clocks.** Time is nanoseconds of whoever calls. One that goes back by less than [`JUMP_NS`] (loops that read
//! the clock at different moments) stands still until it has caught up. After a longer jump back the windows
//! move with it: nobody waits longer for it. A jump forward is time that has passed.
//!
//! What leaves is handed out: a waiter (`W`) is never dropped here.

use std::collections::VecDeque;

use crate::ranks::Ranks;
use crate::waiters::{Ticket, Waiters};

/// How late several waiters may be admitted together.
pub const BATCH: i64 = 1_000_000;

/// The same if they have waited for long.
pub const MAX_BATCH: i64 = 10_000_000;

/// From how far back on a clock counts as set back.
pub const JUMP_NS: i64 = 1_000_000_000;

/// The longest time that a burst may take to be paid for: ten years.
pub const MAX_SPAN: f64 = 315_576_000.0;

/// TATs are kept in 2^-32 ns: an interval need not be a whole number of nanoseconds.
const FRACTION: u32 = 32;

/// So many notes of how far ahead the TAT was; beyond, two become one.
const NOTES: usize = 64;

type Fine = i128;

const fn fine(ns: i64) -> Fine {
    (ns as Fine) << FRACTION
}

/// In nanoseconds, rounded up.
fn coarse(time: Fine) -> i64 {
    let ns = (time + ((1 << FRACTION) - 1)) >> FRACTION;
    ns.clamp(i64::MIN as Fine, i64::MAX as Fine) as i64
}

/// One rate.
#[derive(Debug, Clone)]
pub struct Window {
    interval: Fine,
    burst: u64,
    tat: Fine,
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

    fn price(&self, cost: u64) -> Fine {
        self.interval.saturating_mul(Fine::from(cost))
    }

    /// When a cost of at most the burst may be admitted, given the TAT.
    fn earliest(&self, tat: Fine, cost: u64) -> Fine {
        tat + self.price(cost) - self.price(self.burst)
    }

    fn charge(&mut self, number: u64, cost: u64, at: i64) {
        if cost == 0 {
            return;
        }
        let at = fine(at);
        self.note(number, (self.tat - at).max(0));
        self.tat = self.tat.max(at) + self.price(cost);
    }

    fn note(&mut self, number: u64, ahead: Fine) {
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
    fn refund(&mut self, number: u64, cost: u64) {
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

/// What a request costs in each window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Costs {
    /// In the only window.
    One(u64),
    Many(Box<[u64]>),
}

impl Costs {
    pub fn as_slice(&self) -> &[u64] {
        match self {
            Self::One(cost) => std::slice::from_ref(cost),
            Self::Many(costs) => costs,
        }
    }
}

impl FromIterator<u64> for Costs {
    fn from_iter<I: IntoIterator<Item = u64>>(costs: I) -> Self {
        let costs: Box<[u64]> = costs.into_iter().collect();
        match *costs {
            [cost] => Self::One(cost),
            _ => Self::Many(costs),
        }
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were admitted, at once or later.
    pub admitted: u64,
    /// Those of them that waited.
    pub waited: u64,
    /// The nanoseconds that they waited, together.
    pub waited_ns: u64,
    /// Waiters that gave up.
    pub cancelled: u64,
    /// Requests that were refused by [`Rates::try_take`].
    pub refused: u64,
    pub penalties: u64,
}

#[derive(Debug)]
enum State<W> {
    Waiting(W),
    /// In line, with nobody to be told, who goes at the promised time whatever becomes of those before it.
    Reserved {
        /// Whether anybody still knows of it.
        known: bool,
        /// The promised time, by a clock that was never set back ([`Rates::back`]).
        at: i64,
    },
    /// Admitted by the charge of this number.
    Admitted(u64),
}

#[derive(Debug)]
struct Request<W> {
    priority: i64,
    /// Its own ticket in the line; void once it is not there any more.
    place: Ticket,
    costs: Costs,
    since: i64,
    state: State<W>,
}

/// What became of a request whose owner does not wait for it any more.
#[derive(Debug, PartialEq, Eq)]
pub enum Left<W> {
    /// It was in line, and is no more.
    Waiting(W),
    /// It was admitted, and its costs were given back.
    GivenBack,
    /// The ticket is void, or a reservation's.
    Nothing,
}

/// Windows, and who waits for them.
#[derive(Debug)]
pub struct Rates<W> {
    windows: Vec<Window>,
    requests: Waiters<Request<W>>,
    /// Who waits, by priority and arrival.
    line: Ranks<Ticket>,
    charges: u64,
    now: i64,
    /// By how much the clock has been set back so far.
    back: i64,
    /// Nobody is admitted before this.
    blocked: i64,
    tally: Tally,
}

impl<W> Rates<W> {
    pub fn new(windows: Vec<Window>) -> Self {
        Self {
            windows,
            requests: Waiters::default(),
            line: Ranks::default(),
            charges: 0,
            now: i64::MIN,
            back: 0,
            blocked: i64::MIN,
            tally: Tally::default(),
        }
    }

    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.line.len()
    }

    pub fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Says what the caller's clock shows; see the head on clocks.
    pub fn observe(&mut self, now: i64) {
        if now.saturating_add(JUMP_NS) < self.now {
            let back = fine(self.now) - fine(now);
            for window in &mut self.windows {
                window.tat -= back;
            }
            let back = self.now.saturating_sub(now);
            self.blocked = self.blocked.saturating_sub(back);
            self.back = self.back.saturating_add(back);
            self.now = now;
        }
        self.now = self.now.max(now);
    }

    /// The first window whose burst is less than the cost: such a request could never be admitted.
    pub fn too_heavy(&self, costs: &Costs) -> Option<usize> {
        let pairs = self.windows.iter().zip(costs.as_slice());
        pairs
            .clone()
            .position(|(window, cost)| *cost > window.burst)
    }

    /// When a request may be admitted if the windows have these TATs.
    fn earliest(&self, tats: impl Iterator<Item = Fine>, costs: &Costs) -> i64 {
        let windows = self.windows.iter().zip(tats).zip(costs.as_slice());
        windows
            .filter(|(_, cost)| **cost > 0)
            .map(|((window, tat), cost)| coarse(window.earliest(tat, *cost)))
            .max()
            .unwrap_or(i64::MIN)
            .max(self.blocked)
    }

    fn tats(&self) -> impl Iterator<Item = Fine> {
        self.windows.iter().map(|window| window.tat)
    }

    /// Charges all windows, and numbers the charge.
    fn charge(&mut self, costs: &Costs, at: i64) -> u64 {
        self.charges += 1;
        for (window, cost) in self.windows.iter_mut().zip(costs.as_slice()) {
            window.charge(self.charges, *cost, at);
        }
        self.tally.admitted += 1;
        self.charges
    }

    /// Admits a request at once, if nobody waits and the windows allow it; the number of its charge.
    pub fn try_take(&mut self, costs: &Costs) -> Option<u64> {
        if !self.line.is_empty() || self.earliest(self.tats(), costs) > self.now {
            return None;
        }
        Some(self.charge(costs, self.now))
    }

    /// Takes note that somebody did not want to wait.
    pub fn refuse(&mut self) {
        self.tally.refused += 1;
    }

    /// Puts a waiter in line, behind those of its priority and above. The costs are not too heavy.
    pub fn push(&mut self, costs: Costs, priority: i64, waiter: W) -> Ticket {
        self.join(costs, priority, State::Waiting(waiter))
    }

    fn join(&mut self, costs: Costs, priority: i64, state: State<W>) -> Ticket {
        let ticket = self.requests.push(Request {
            priority,
            place: Ticket::from_u64(u64::MAX),
            costs,
            since: self.now,
            state,
        });
        let place = self.line.push(priority, ticket);
        if let Some(request) = self.requests.get_mut(ticket) {
            request.place = place;
        }
        ticket
    }

    /// Promises a request its time: in how many nanoseconds it may go on. Behind all who wait with its priority
    /// or more, it stays in line and has a ticket; otherwise it is charged now.
    pub fn reserve(&mut self, costs: &Costs, priority: i64) -> (i64, Result<u64, Ticket>) {
        if self.line.is_empty() {
            let at = self.earliest(self.tats(), costs).max(self.now);
            return (at - self.now, Ok(self.charge(costs, at)));
        }
        let mut tats: Vec<Fine> = self.tats().collect();
        let mut at = self.now;
        let line = self
            .line
            .iter()
            .filter_map(|ticket| self.requests.get(*ticket));
        let before = line.take_while(|request| request.priority >= priority);
        for costs in before.map(|request| &request.costs).chain([costs]) {
            at = self.earliest(tats.iter().copied(), costs).max(at);
            for ((window, tat), cost) in self.windows.iter().zip(&mut tats).zip(costs.as_slice()) {
                if *cost > 0 {
                    *tat = (*tat).max(fine(at)) + window.price(*cost);
                }
            }
        }
        let ticket = self.join(
            costs.clone(),
            priority,
            State::Reserved {
                known: true,
                at: at.saturating_add(self.back),
            },
        );
        (at - self.now, Err(ticket))
    }

    /// The first in line: its place there, and its ticket.
    fn first(&self) -> Option<(Ticket, Ticket)> {
        self.line.first().map(|(place, ticket)| (place, *ticket))
    }

    /// When the first in line is to be admitted: the time of the one timer.
    pub fn next(&self) -> Option<i64> {
        let (_, ticket) = self.first()?;
        let Request { costs, since, .. } = self.requests.get(ticket)?;
        let at = self.earliest(self.tats(), costs);
        if self.line.len() == 1 {
            return Some(at);
        }
        // Being late costs nothing as long as no window fills up.
        let windows = self.windows.iter().zip(costs.as_slice());
        let full = windows
            .filter(|(_, cost)| **cost > 0)
            .map(|(window, _)| coarse(window.tat))
            .min();
        let spare = full.map_or(0, |full| full.saturating_sub(at.max(self.now)));
        let patience = at.saturating_sub(*since) / 100;
        Some(at.saturating_add(spare.clamp(0, patience.clamp(BATCH, MAX_BATCH))))
    }

    /// Admits the first in line, if it is time; hands the waiter out, to be told.
    pub fn admit(&mut self) -> Option<(Ticket, W)> {
        loop {
            let (place, ticket) = self.first()?;
            let request = self.requests.get(ticket)?;
            let due = self.earliest(self.tats(), &request.costs);
            if due > self.now {
                return None;
            }
            let at = match request.state {
                // Somebody before it has left, but its owner goes when it was told, not before.
                State::Reserved { at, .. } => due.max(at.saturating_sub(self.back)),
                _ => self.now,
            };
            let (costs, since) = (request.costs.clone(), request.since);
            self.line.remove(place);
            let number = self.charge(&costs, at);
            self.tally.waited += 1;
            self.tally.waited_ns += u64::try_from(self.now - since).unwrap_or(0);
            let request = self.requests.get_mut(ticket)?;
            match std::mem::replace(&mut request.state, State::Admitted(number)) {
                State::Waiting(waiter) => return Some((ticket, waiter)),
                State::Reserved { known: false, .. } => self.forget(ticket),
                _ => {}
            }
        }
    }

    /// A waiter that was told comes for its admission: the number of the charge. `None`: it was not admitted, or
    /// that was taken back.
    pub fn take(&mut self, ticket: Ticket) -> Option<(u64, Costs)> {
        match self.requests.get(ticket)?.state {
            State::Admitted(number) => {
                let request = self.requests.remove(ticket)?;
                Some((number, request.costs))
            }
            _ => None,
        }
    }

    /// A waiter gives up, or cannot be told: what it was admitted for is given back.
    #[must_use = "the waiter is dropped outside of the lock"]
    pub fn leave(&mut self, ticket: Ticket) -> Left<W> {
        let Some(request) = self.requests.remove(ticket) else {
            return Left::Nothing;
        };
        self.line.remove(request.place);
        match request.state {
            State::Waiting(waiter) => {
                self.tally.cancelled += 1;
                Left::Waiting(waiter)
            }
            State::Admitted(number) => {
                self.refund(number, &request.costs);
                self.tally.cancelled += 1;
                self.tally.admitted -= 1;
                self.tally.waited -= 1;
                Left::GivenBack
            }
            State::Reserved { .. } => Left::Nothing,
        }
    }

    /// Whoever reserved does not want to know about it any more; it keeps its place.
    pub fn forget(&mut self, ticket: Ticket) {
        let Some(request) = self.requests.get_mut(ticket) else {
            return;
        };
        match &mut request.state {
            State::Reserved { known, .. } => *known = false,
            State::Admitted(_) => drop(self.requests.remove(ticket)),
            State::Waiting(_) => {}
        }
    }

    fn refund(&mut self, number: u64, costs: &Costs) {
        for (window, cost) in self.windows.iter_mut().zip(costs.as_slice()) {
            window.refund(number, *cost);
        }
    }

    /// Gives a whole charge back.
    pub fn cancel(&mut self, number: u64, costs: &Costs) {
        self.refund(number, costs);
        self.tally.admitted -= 1;
    }

    /// Corrects a charge in one window, once its real cost is known. What was too little is owed: it is paid for
    /// before the next is admitted, also beyond the burst.
    pub fn settle(&mut self, number: u64, window: usize, charged: u64, real: u64) {
        let now = fine(self.now);
        self.charges += 1;
        let note = self.charges;
        let Some(window) = self.windows.get_mut(window) else {
            return;
        };
        if real < charged {
            window.refund(number, charged - real);
        } else {
            // Like a charge of its own: what is given back later must not reach behind it.
            window.note(note, (window.tat - now).max(0));
            window.tat = window.tat.max(now) + window.price(real - charged);
        }
    }

    /// Somebody else's limit was hit: nobody is admitted for so long, and nothing is saved up by then.
    pub fn penalise(&mut self, ns: i64) {
        let until = self.now.saturating_add(ns);
        self.blocked = self.blocked.max(until);
        self.charges += 1;
        let number = self.charges;
        for window in &mut self.windows {
            let floor = fine(until) + window.price(window.burst - 1);
            // What earlier charges give back does not shorten the penalty.
            window.note(number, (window.tat - floor).max(0));
            window.tat = window.tat.max(floor);
        }
        self.tally.penalties += 1;
    }

    /// Whether a new one would do the same.
    pub fn is_fresh(&self) -> bool {
        self.requests.is_empty()
            && self.blocked <= self.now
            && self
                .windows
                .iter()
                .all(|window| window.tat <= fine(self.now))
    }

    /// Those who wait, in no particular order.
    pub fn waiters(&self) -> impl Iterator<Item = &W> {
        self.requests
            .iter()
            .filter_map(|request| match &request.state {
                State::Waiting(waiter) => Some(waiter),
                _ => None,
            })
    }

    /// Empties the line, and hands over who waited.
    pub fn take_all(&mut self) -> Vec<W> {
        self.line = Ranks::default();
        let all = self.requests.take_all().into_iter();
        all.filter_map(|request| match request.state {
            State::Waiting(waiter) => Some(waiter),
            _ => None,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn rates(windows: &[(f64, f64, u64)]) -> Rates<u32> {
        let windows = windows
            .iter()
            .map(|&(limit, per, burst)| Window::new(limit, per, burst).unwrap());
        let mut rates = Rates::new(windows.collect());
        rates.observe(0);
        rates
    }

    fn admit_all(rates: &mut Rates<u32>) -> Vec<u32> {
        std::iter::from_fn(|| rates.admit().map(|(_, waiter)| waiter)).collect()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut rates = rates(&[(10.0, 1.0, 3)]);
        let cost = Costs::One(1);
        assert!((0..3).all(|_| rates.try_take(&cost).is_some()));
        assert_eq!(rates.try_take(&cost), None);
        for n in 0..3 {
            rates.push(cost.clone(), 0, n);
        }
        assert_eq!(admit_all(&mut rates), []);
        // The timer is late by as much as lets it admit more than one.
        assert_eq!(rates.next(), Some(SECOND / 10 + BATCH));
        rates.observe(SECOND / 10 - 1);
        assert_eq!(admit_all(&mut rates), []);
        rates.observe(SECOND / 10);
        assert_eq!(admit_all(&mut rates), [0]);
        rates.observe(3 * SECOND / 10);
        assert_eq!(admit_all(&mut rates), [1, 2]);
        assert_eq!(rates.tally().waited_ns, 7 * 100_000_000);
    }

    #[test]
    fn intervals_that_are_no_whole_nanoseconds_do_not_drift() {
        let mut rates = rates(&[(3.0, 1.0, 2)]);
        let mut at = 0;
        for n in 0..3_000_000u32 {
            rates.push(Costs::One(1), 0, n);
            at = rates.next().unwrap().max(at);
            rates.observe(at);
            assert_eq!(
                rates
                    .admit()
                    .map(|(ticket, _)| rates.take(ticket).is_some()),
                Some(true)
            );
        }
        let ideal = 2_999_998 * SECOND / 3;
        assert!((ideal..ideal + 1000).contains(&at), "{at}");
    }

    #[test]
    fn the_narrowest_window_decides() {
        let mut rates = rates(&[(10.0, 1.0, 10), (12.0, 60.0, 12)]);
        let both: Costs = [1, 1].into_iter().collect();
        for _ in 0..10 {
            assert!(rates.try_take(&both).is_some());
        }
        rates.push(both.clone(), 0, 0);
        assert_eq!(rates.next(), Some(SECOND / 10));
        rates.observe(SECOND);
        assert_eq!(admit_all(&mut rates), [0]);
        assert!(rates.try_take(&both).is_some());
        assert_eq!(rates.try_take(&both), None);
        // A request that costs nothing in the empty window does not wait for it.
        assert!(rates.try_take(&[1, 0].into_iter().collect()).is_some());
        rates.push(both, 0, 1);
        assert_eq!(rates.next(), Some(5 * SECOND));
    }

    #[test]
    fn heavy_ones_are_not_passed_and_who_leaves_pulls_the_rest_forward() {
        let mut rates = rates(&[(10.0, 1.0, 10)]);
        assert!(rates.try_take(&Costs::One(10)).is_some());
        let heavy = rates.push(Costs::One(10), 0, 0);
        for n in 1..4 {
            rates.push(Costs::One(1), 0, n);
        }
        let urgent = rates.push(Costs::One(2), 5, 9);
        assert_eq!(rates.next(), Some(SECOND / 5 + 2 * BATCH));
        assert_eq!(rates.leave(urgent), Left::Waiting(9));
        assert_eq!(rates.leave(urgent), Left::Nothing);
        assert_eq!(rates.next(), Some(SECOND));
        rates.observe(SECOND / 2);
        assert_eq!(admit_all(&mut rates), []);
        assert_eq!(rates.leave(heavy), Left::Waiting(0));
        assert_eq!(admit_all(&mut rates), [1, 2, 3]);
    }

    #[test]
    fn what_was_admitted_to_somebody_who_left_is_given_back() {
        let mut rates = rates(&[(1.0, 1.0, 1)]);
        assert!(rates.try_take(&Costs::One(1)).is_some());
        let first = rates.push(Costs::One(1), 0, 0);
        let second = rates.push(Costs::One(1), 0, 1);
        rates.observe(SECOND);
        assert_eq!(rates.admit().map(|(ticket, _)| ticket), Some(first));
        assert!(rates.admit().is_none());
        assert_eq!(rates.leave(first), Left::GivenBack);
        assert_eq!(rates.admit().map(|(ticket, _)| ticket), Some(second));
        assert_eq!(rates.take(first), None);
        assert!(rates.take(second).is_some());
        assert_eq!(rates.tally().cancelled, 1);
        assert_eq!(rates.tally().admitted, 2);
    }

    #[test]
    fn reservations_stand_behind_those_who_wait() {
        let mut rates = rates(&[(1.0, 1.0, 1)]);
        let cost = Costs::One(1);
        assert_eq!(rates.reserve(&cost, 0).0, 0);
        assert_eq!(rates.reserve(&cost, 0).0, SECOND);
        rates.push(cost.clone(), 0, 0);
        let (wait, booked) = rates.reserve(&cost, 0);
        assert_eq!(wait, 3 * SECOND);
        let (urgent, _) = rates.reserve(&cost, 1);
        assert_eq!(urgent, 2 * SECOND);
        rates.observe(2 * SECOND);
        assert_eq!(admit_all(&mut rates), []);
        rates.observe(3 * SECOND);
        assert_eq!(admit_all(&mut rates), [0]);
        rates.observe(4 * SECOND);
        assert_eq!(admit_all(&mut rates), []);
        assert!(rates.take(booked.unwrap_err()).is_some());
        assert!(rates.is_empty());
    }

    #[test]
    fn what_cost_less_is_given_back_and_what_cost_more_is_owed() {
        let mut rates = rates(&[(100.0, 1.0, 1000)]);
        let call = rates.try_take(&Costs::One(800)).unwrap();
        assert_eq!(rates.windows()[0].available(0), 200);
        rates.settle(call, 0, 800, 300);
        assert_eq!(rates.windows()[0].available(0), 700);
        rates.settle(call, 0, 300, 1500);
        assert_eq!(rates.windows()[0].available(0), 0);
        rates.push(Costs::One(1), 0, 0);
        assert_eq!(rates.next(), Some(501 * SECOND / 100));
    }

    #[test]
    fn what_was_given_back_counts_for_earlier_charges_too() {
        let mut rates = rates(&[(3.0, 1.0, 9)]);
        let first = rates.try_take(&Costs::One(4)).unwrap();
        rates.observe(333_333_335);
        let second = rates.try_take(&Costs::One(6)).unwrap();
        // At 7 intervals, which leaves 3 of what came before.
        assert_eq!(rates.reserve(&Costs::One(6), 0).0, 1_999_999_999);
        rates.settle(second, 0, 6, 0);
        rates.settle(first, 0, 4, 0);
        rates.push(Costs::One(4), 0, 0);
        assert!(rates.next() > Some(8 * SECOND / 3 - 3));
    }

    #[test]
    fn what_has_been_paid_for_by_time_is_not_given_back() {
        let mut rates = rates(&[(1.0, 1.0, 5)]);
        let early = rates.try_take(&Costs::One(5)).unwrap();
        rates.observe(4 * SECOND);
        assert!(rates.try_take(&Costs::One(1)).is_some());
        rates.settle(early, 0, 5, 0);
        assert_eq!(rates.windows()[0].available(4 * SECOND), 4);
    }

    #[test]
    fn a_penalty_ends_at_the_plain_rate() {
        let mut rates = rates(&[(10.0, 1.0, 5)]);
        rates.penalise(2 * SECOND);
        for n in 0..3 {
            rates.push(Costs::One(1), 0, n);
        }
        rates.observe(2 * SECOND - 1);
        assert_eq!(admit_all(&mut rates), []);
        rates.observe(2 * SECOND);
        assert_eq!(admit_all(&mut rates), [0]);
        rates.observe(2 * SECOND + SECOND / 10);
        assert_eq!(admit_all(&mut rates), [1]);
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nobody_wait_longer() {
        let mut rates = rates(&[(1.0, 1.0, 2)]);
        rates.observe(1000 * SECOND);
        assert!(rates.try_take(&Costs::One(2)).is_some());
        rates.push(Costs::One(1), 0, 0);
        assert_eq!(rates.next(), Some(1001 * SECOND));
        rates.observe(5 * SECOND);
        assert_eq!(rates.next(), Some(6 * SECOND));
        // A little back is another loop's way of reading it, and earns nothing.
        rates.observe(5 * SECOND - 1000);
        rates.observe(6 * SECOND - 1);
        assert!(rates.admit().is_none());
        rates.observe(6 * SECOND);
        assert_eq!(admit_all(&mut rates), [0]);
    }

    #[test]
    fn rates_that_cannot_be_kept_are_none() {
        for (limit, per, burst) in [
            (0.0, 1.0, 1),
            (-1.0, 1.0, 1),
            (1.0, 0.0, 1),
            (f64::NAN, 1.0, 1),
            (f64::INFINITY, 1.0, 1),
            (1.0, f64::INFINITY, 1),
            (1.0, 1.0, 0),
            (1.0, 1.0, u64::MAX),
        ] {
            assert!(
                Window::new(limit, per, burst).is_none(),
                "{limit} {per} {burst}"
            );
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(i64),
        Take(u64, u64),
        Push(u64, u64, i64),
        Reserve(u64, u64),
        Leave(prop::sample::Index),
        Settle(prop::sample::Index, u64),
        Penalise(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let cost = || (0u64..4, 0u64..8);
        prop_oneof![
            6 => (0..SECOND).prop_map(Step::Pass),
            1 => (0..20 * SECOND).prop_map(Step::Pass),
            4 => cost().prop_map(|(a, b)| Step::Take(a, b)),
            6 => (cost(), -1i64..2).prop_map(|((a, b), p)| Step::Push(a, b, p)),
            2 => cost().prop_map(|(a, b)| Step::Reserve(a, b)),
            2 => any::<prop::sample::Index>().prop_map(Step::Leave),
            3 => (any::<prop::sample::Index>(), 0u64..4).prop_map(|(i, c)| Step::Settle(i, c)),
            1 => (0..3 * SECOND).prop_map(Step::Penalise),
        ]
    }

    proptest! {
        // In no span of time more than the burst and what the rate earns in it, whatever is taken, waited for,
        // reserved, given up and settled; and in line nobody is passed.
        #[test]
        fn never_more_than_promised(steps in prop::collection::vec(step(), 0..150)) {
            let bursts = [4u64, 9];
            let intervals = [SECOND / 7, SECOND / 3];
            let mut rates = rates(&[(7.0, 1.0, 4), (3.0, 1.0, 9)]);
            let mut now = 0;
            // By the number of the charge: when, and the real costs.
            let mut admitted: HashMap<u64, (i64, [u64; 2])> = HashMap::new();
            let mut numbers = Vec::new();
            let mut waiting: Vec<(i64, u32, Ticket, [u64; 2])> = Vec::new();
            let mut name = 0;
            for step in steps {
                match step {
                    Step::Pass(ns) => now += ns,
                    Step::Take(a, b) => {
                        if let Some(number) = rates.try_take(&[a, b].into_iter().collect()) {
                            prop_assert!(waiting.is_empty());
                            admitted.insert(number, (now, [a, b]));
                            numbers.push(number);
                        }
                    }
                    Step::Push(a, b, priority) => {
                        name += 1;
                        let ticket = rates.push([a, b].into_iter().collect(), priority, name);
                        waiting.push((-priority, name, ticket, [a, b]));
                        waiting.sort_by_key(|entry| (entry.0, entry.1));
                    }
                    Step::Reserve(a, b) if rates.is_empty() => {
                        let (wait, booked) = rates.reserve(&[a, b].into_iter().collect(), 0);
                        admitted.insert(booked.unwrap(), (now + wait, [a, b]));
                    }
                    Step::Leave(index) if !waiting.is_empty() => {
                        let (_, name, ticket, _) = waiting.remove(index.index(waiting.len()));
                        prop_assert_eq!(rates.leave(ticket), Left::Waiting(name));
                    }
                    Step::Settle(index, real) if !numbers.is_empty() => {
                        let number = *index.get(&numbers);
                        let (_, costs) = admitted.get_mut(&number).unwrap();
                        if real < costs[0] {
                            rates.settle(number, 0, costs[0], real);
                            costs[0] = real;
                        }
                        if real < costs[1] {
                            rates.settle(number, 1, costs[1], real);
                            costs[1] = real;
                        }
                    }
                    Step::Penalise(ns) => rates.penalise(ns),
                    _ => {}
                }
                rates.observe(now);
                while let Some((ticket, who)) = rates.admit() {
                    let (_, first, expected, costs) = waiting.remove(0);
                    prop_assert_eq!((who, ticket), (first, expected));
                    let (number, _) = rates.take(ticket).unwrap();
                    admitted.insert(number, (now, costs));
                    numbers.push(number);
                }
                prop_assert_eq!(rates.len(), waiting.len());
                if let Some(next) = rates.next() {
                    prop_assert!(next > now);
                }
            }
            let mut all: Vec<_> = admitted.values().collect();
            all.sort();
            for window in 0..2 {
                for from in 0..all.len() {
                    let mut sum = 0;
                    for (at, costs) in &all[from..] {
                        sum += costs[window];
                        let earned = (at - all[from].0 + 1) as f64 / intervals[window] as f64;
                        prop_assert!(
                            sum as f64 <= bursts[window] as f64 + earned + 1e-6,
                            "{sum} from {} to {at} in window {window}", all[from].0
                        );
                    }
                }
            }
        }

        // The line empties: the timer's time is always one at which somebody is admitted.
        #[test]
        fn the_timer_is_never_in_vain(costs in prop::collection::vec((0u64..4, 0u64..8), 1..40)) {
            let mut rates = rates(&[(7.0, 1.0, 4), (3.0, 1.0, 9)]);
            for (a, b) in &costs {
                rates.push([*a, *b].into_iter().collect(), 0, 0);
            }
            let mut timers = 0;
            admit_all(&mut rates);
            while let Some(next) = rates.next() {
                rates.observe(next);
                prop_assert!(!admit_all(&mut rates).is_empty());
                timers += 1;
            }
            prop_assert!(timers <= costs.len());
        }
    }
}
