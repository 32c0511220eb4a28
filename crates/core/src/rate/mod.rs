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
//! these since a charge is what can be given back of it. What a cost turned out to be *more* is a charge of its own, made
//! when that was said ([`Added`]); if it turns out to be less after all, that one goes first.
//!
//! **Clocks.** Time is nanoseconds of whoever calls. One that goes back by less than [`JUMP_NS`] (loops that read
//! the clock at different moments) stands still until it has caught up. After a longer jump back the windows
//! move with it: nobody waits longer for it. A jump forward is time that has passed.
//!
//! What leaves is handed out: a waiter (`W`) is never dropped here.

mod costs;
mod window;

#[cfg(test)]
mod tests;

pub use costs::Costs;
pub use window::{MAX_SPAN, Window};

use crate::ranks::Ranks;
use crate::waiters::{Ticket, Waiters};
use window::{Fine, coarse, fine};

/// How late several waiters may be admitted together.
pub const BATCH: i64 = 1_000_000;

/// The same if they have waited for long.
pub const MAX_BATCH: i64 = 10_000_000;

/// From how far back on a clock counts as set back.
pub const JUMP_NS: i64 = 1_000_000_000;

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

/// What [`Rates::settle`] has added to a charge: to which window, by the charge of which number, and how much.
#[derive(Debug, Clone, Default)]
pub struct Added(Vec<(usize, u64, u64)>);

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
            .position(|(window, cost)| *cost > window.burst())
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

    /// Gives a part of a charge back in one window: what came last goes first.
    fn lower(&mut self, number: u64, added: &mut Added, index: usize, mut cost: u64) {
        let Some(window) = self.windows.get_mut(index) else {
            return;
        };
        for (of, later, amount) in added.0.iter_mut().rev() {
            if *of == index {
                let part = cost.min(*amount);
                window.refund(*later, part);
                *amount -= part;
                cost -= part;
            }
        }
        added.0.retain(|(_, _, amount)| *amount > 0);
        window.refund(number, cost);
    }

    /// Gives a whole charge back.
    pub fn cancel(&mut self, number: u64, added: &mut Added, costs: &Costs) {
        for (index, cost) in costs.as_slice().iter().enumerate() {
            self.lower(number, added, index, *cost);
        }
        self.tally.admitted -= 1;
    }

    /// Corrects a charge in one window, once its real cost is known. What was too little is owed: it is paid for
    /// before the next is admitted, also beyond the burst.
    pub fn settle(
        &mut self,
        number: u64,
        added: &mut Added,
        index: usize,
        charged: u64,
        real: u64,
    ) {
        if real <= charged {
            self.lower(number, added, index, charged - real);
            return;
        }
        self.charges += 1;
        if let Some(window) = self.windows.get_mut(index) {
            window.charge(self.charges, real - charged, self.now);
            added.0.push((index, self.charges, real - charged));
        }
    }

    /// Somebody else's limit was hit: nobody is admitted for so long, and nothing is saved up by then.
    pub fn penalise(&mut self, ns: i64) {
        let until = self.now.saturating_add(ns);
        self.blocked = self.blocked.max(until);
        self.charges += 1;
        let number = self.charges;
        for window in &mut self.windows {
            let floor = fine(until) + window.price(window.burst() - 1);
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
