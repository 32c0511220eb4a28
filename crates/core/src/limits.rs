//! Permits of one or several resources, and who waits for them.
//!
//! A request wants a number of permits of one or more resources, all at once or none. It is granted when no
//! request that goes before it wants any of the same resources, and all its permits are free. "Before" is the
//! same order for all: priority, then arrival. So
//!
//! * nobody is overtaken on a resource that it waits for: a heavy request does not starve behind light ones,
//!   and a release serves the first, not the fastest;
//! * requests for different resources do not wait for each other;
//! * there is no deadlock: the first of all requests is first on each of its resources, and those who hold
//!   permits by this do not wait for others meanwhile.
//!
//! Each resource has a queue of its own. A request is in that of every resource it wants, and is granted when it
//! stands first in each of them. What may allow a grant (permits that come home, a new first in a queue) marks
//! the resource; [`Limits::grant`] looks at the first of each marked resource only. Every operation therefore
//! costs the same however many wait (times the resources of the request; a priority costs its logarithm).
//!
//! A waiter (`W`) leaves by exactly one way, and its ticket stays good until its owner has come for the
//! outcome ([`Limits::take`]) or given up ([`Limits::leave`]): until then the permits that it was granted are in use.

use std::collections::VecDeque;

use crate::histogram::Histogram;
use crate::ranks::Ranks;
use crate::waiters::{Ticket, Waiters};

/// So many permits of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The number of the resource.
    pub resource: usize,
    pub weight: u64,
}

/// Why a request is refused at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Closed,
    /// More permits than the resource has.
    TooHeavy(Need),
    /// As many wait as may wait.
    Full,
}

/// More permits were given back than are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surplus {
    pub need: Need,
    pub held: u64,
}

/// What a waiter that was told finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Its permits; it holds them from now on.
    Granted,
    Expired,
    Closed,
    /// The resource has shrunk below what the request wants.
    TooHeavy(Need),
    /// Nothing: not told yet, or the grant was taken back because the waiter could not be told.
    Nothing,
}

/// What happened so far.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// Requests that got their permits, at once or later.
    pub granted: u64,
    /// Those of them that had to wait.
    pub waited: u64,
    /// Waiters that gave up, before or after they were granted their permits.
    pub cancelled: u64,
    pub expired: u64,
    /// Requests that were refused, also by closing or shrinking.
    pub refused: u64,
    /// How long those waited who got their permits, in nanoseconds of their own clocks.
    pub waits: Option<Box<Histogram>>,
}

#[derive(Debug)]
struct Resource {
    capacity: u64,
    in_use: u64,
    /// The part of it that was granted to waiters which have not come for it yet.
    promised: u64,
    /// No queued request wants more than this.
    heaviest: u64,
    queue: Ranks<Ticket>,
    marked: bool,
}

impl Resource {
    #[inline]
    fn has(&self, weight: u64) -> bool {
        weight <= self.capacity.saturating_sub(self.in_use)
    }
}

#[derive(Debug)]
enum State<W> {
    /// In the queues.
    Waiting(W),
    Granted,
    Expired,
    Closed,
    TooHeavy(Need),
}

/// One part of a request, and its ticket in the queue of the resource.
#[derive(Debug, Clone, Copy)]
struct Part {
    need: Need,
    place: Ticket,
}

/// Mostly there is one.
#[derive(Debug)]
enum Parts {
    One([Part; 1]),
    Many(Box<[Part]>),
}

impl Parts {
    fn as_slice(&self) -> &[Part] {
        match self {
            Self::One(part) => part,
            Self::Many(parts) => parts,
        }
    }
}

#[derive(Debug)]
struct Request<W> {
    parts: Parts,
    since: u64,
    state: State<W>,
}

/// Permits, and who waits for them.
#[derive(Debug)]
pub struct Limits<W> {
    resources: Vec<Resource>,
    /// In order of arrival; those that were told are detached.
    requests: Waiters<Request<W>>,
    /// Resources whose first waiter is to be looked at.
    marked: Vec<usize>,
    /// Waiters that were refused and not told yet.
    refused: VecDeque<(Ticket, W)>,
    queue_limit: usize,
    closed: bool,
    tally: Tally,
    looks: u64,
}

impl<W> Limits<W> {
    /// Resources with these numbers of permits; at most `queue_limit` requests wait.
    pub fn new(capacities: impl IntoIterator<Item = u64>, queue_limit: usize) -> Self {
        let resource = |capacity| Resource {
            capacity,
            in_use: 0,
            promised: 0,
            heaviest: 0,
            queue: Ranks::default(),
            marked: false,
        };
        Self {
            resources: capacities.into_iter().map(resource).collect(),
            requests: Waiters::default(),
            marked: Vec::new(),
            refused: VecDeque::new(),
            queue_limit,
            closed: false,
            tally: Tally::default(),
            looks: 0,
        }
    }

    /// Takes permits if nobody waits for any of these resources and all are free.
    #[inline]
    pub fn try_acquire(&mut self, needs: &[Need]) -> bool {
        let free = |need: &Need| {
            self.resources
                .get(need.resource)
                .is_some_and(|resource| resource.queue.is_empty() && resource.has(need.weight))
        };
        if self.closed || !needs.iter().all(free) {
            return false;
        }
        for need in needs {
            self.resources[need.resource].in_use += need.weight;
        }
        self.tally.granted += 1;
        true
    }

    /// The same for the first resource alone.
    #[inline]
    pub fn try_acquire_one(&mut self, weight: u64) -> bool {
        match self.resources.first_mut() {
            Some(resource) if !self.closed && resource.queue.is_empty() && resource.has(weight) => {
                resource.in_use += weight;
                self.tally.granted += 1;
                true
            }
            _ => false,
        }
    }

    /// Gives permits of the first resource back if nobody waits and as many are held; whether it did.
    #[inline]
    pub fn release_one_at_rest(&mut self, weight: u64) -> bool {
        if self.has_work() {
            return false;
        }
        match self.resources.first_mut() {
            Some(resource) if weight <= resource.in_use - resource.promised => {
                resource.in_use -= weight;
                true
            }
            _ => false,
        }
    }

    /// Why a request cannot be made, if so. The needs name each resource once.
    pub fn refusal(&mut self, needs: &[Need]) -> Option<Refusal> {
        let refusal = self.reason(needs);
        self.tally.refused += u64::from(refusal.is_some());
        refusal
    }

    fn reason(&self, needs: &[Need]) -> Option<Refusal> {
        if self.closed {
            return Some(Refusal::Closed);
        }
        if let Some(need) = needs.iter().find(|need| {
            self.resources
                .get(need.resource)
                .is_none_or(|resource| need.weight > resource.capacity)
        }) {
            return Some(Refusal::TooHeavy(*need));
        }
        let waits = needs.iter().any(|need| {
            let resource = &self.resources[need.resource];
            !resource.queue.is_empty() || !resource.has(need.weight)
        });
        (waits && self.requests.len() >= self.queue_limit).then_some(Refusal::Full)
    }

    /// Queues a request that was neither granted at once nor refused. `now` is the waiter's own clock, in
    /// nanoseconds. With a priority above others' it may be the next to be granted.
    pub fn push(&mut self, needs: &[Need], priority: i64, now: u64, waiter: W) -> Ticket {
        let ticket = self.requests.push(Request {
            parts: Parts::Many(Box::default()),
            since: now,
            state: State::Waiting(waiter),
        });
        let (resources, marked) = (&mut self.resources, &mut self.marked);
        let mut part = |need: &Need| {
            let resource = &mut resources[need.resource];
            if resource.queue.is_empty() {
                resource.heaviest = 0;
            }
            resource.heaviest = resource.heaviest.max(need.weight);
            let place = resource.queue.push(priority, ticket);
            if resource
                .queue
                .first()
                .is_some_and(|(first, _)| first == place)
            {
                // By its priority it may go before others who wait for permits that it does not need.
                mark(resources, marked, need.resource);
            }
            Part { need: *need, place }
        };
        let parts = match needs {
            [need] => Parts::One([part(need)]),
            needs => Parts::Many(needs.iter().map(part).collect()),
        };
        if let Some(request) = self.requests.get_mut(ticket) {
            request.parts = parts;
        }
        ticket
    }

    /// The next waiter to be told, and its ticket: it was granted its permits, or refused.
    pub fn grant(&mut self) -> Option<(Ticket, W)> {
        if let Some(refused) = self.refused.pop_front() {
            return Some(refused);
        }
        while let Some(&number) = self.marked.last() {
            self.looks += 1;
            match self.first_to_go(number) {
                Some(ticket) => return self.promise(ticket),
                None => {
                    self.marked.pop();
                    self.resources[number].marked = false;
                }
            }
        }
        None
    }

    /// The first waiter for a resource, if it can have all that it wants.
    fn first_to_go(&self, number: usize) -> Option<Ticket> {
        let (_, &ticket) = self.resources.get(number)?.queue.first()?;
        let request = self.requests.get(ticket)?;
        let goes = request.parts.as_slice().iter().all(|part| {
            let resource = &self.resources[part.need.resource];
            resource.has(part.need.weight)
                && resource
                    .queue
                    .first()
                    .is_some_and(|(place, _)| place == part.place)
        });
        goes.then_some(ticket)
    }

    /// Gives the permits to a waiter.
    fn promise(&mut self, ticket: Ticket) -> Option<(Ticket, W)> {
        let request = self.requests.get(ticket)?;
        for part in request.parts.as_slice() {
            let resource = &mut self.resources[part.need.resource];
            resource.in_use += part.need.weight;
            resource.promised += part.need.weight;
        }
        let waiter = self.unqueue(ticket, State::Granted)?;
        Some((ticket, waiter))
    }

    /// Takes a waiter out of all queues; its place keeps what became of it.
    fn unqueue(&mut self, ticket: Ticket, state: State<W>) -> Option<W> {
        if !matches!(self.requests.get(ticket)?.state, State::Waiting(_)) {
            return None;
        }
        let request = self.requests.detach(ticket)?;
        let was = std::mem::replace(&mut request.state, state);
        for part in request.parts.as_slice() {
            self.resources[part.need.resource].queue.remove(part.place);
            mark(&mut self.resources, &mut self.marked, part.need.resource);
        }
        match was {
            State::Waiting(waiter) => Some(waiter),
            _ => None,
        }
    }

    /// What a waiter was told of. Its ticket is void afterwards, unless there is nothing yet.
    pub fn take(&mut self, ticket: Ticket, now: u64) -> Taken {
        let Some(request) = self.requests.get(ticket) else {
            return Taken::Nothing;
        };
        if matches!(request.state, State::Waiting(_)) {
            return Taken::Nothing;
        }
        let Some(request) = self.requests.remove(ticket) else {
            return Taken::Nothing;
        };
        match request.state {
            State::Waiting(_) => Taken::Nothing,
            State::Granted => {
                for part in request.parts.as_slice() {
                    self.resources[part.need.resource].promised -= part.need.weight;
                }
                self.tally.granted += 1;
                self.tally.waited += 1;
                let waits = self.tally.waits.get_or_insert_default();
                waits.record(now.saturating_sub(request.since));
                Taken::Granted
            }
            State::Expired => Taken::Expired,
            State::Closed => Taken::Closed,
            State::TooHeavy(need) => Taken::TooHeavy(need),
        }
    }

    /// A waiter gives up, or cannot be told: whatever it was granted comes home. The ticket is void
    /// afterwards. The waiter is handed over if it was not told yet.
    pub fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let waiter = self.unqueue(ticket, State::Closed);
        let request = self.requests.remove(ticket)?;
        if matches!(request.state, State::Granted) {
            for part in request.parts.as_slice() {
                let resource = &mut self.resources[part.need.resource];
                resource.promised -= part.need.weight;
                resource.in_use -= part.need.weight;
                mark(&mut self.resources, &mut self.marked, part.need.resource);
            }
        }
        if waiter.is_some() || matches!(request.state, State::Granted) {
            self.tally.cancelled += 1;
        }
        waiter
    }

    /// A waiter's time is up; it is to be told, unless it was told something else before.
    pub fn expire(&mut self, ticket: Ticket) -> Option<W> {
        let waiter = self.unqueue(ticket, State::Expired)?;
        self.tally.expired += 1;
        Some(waiter)
    }

    /// Permits come home.
    #[inline]
    pub fn release(&mut self, needs: &[Need]) -> Result<(), Surplus> {
        for need in needs {
            let held = self
                .resources
                .get(need.resource)
                .map_or(0, |resource| resource.in_use - resource.promised);
            if need.weight > held {
                return Err(Surplus { need: *need, held });
            }
        }
        for need in needs {
            self.resources[need.resource].in_use -= need.weight;
            mark(&mut self.resources, &mut self.marked, need.resource);
        }
        Ok(())
    }

    /// Changes the number of permits. If there are fewer than before, those in use stay in use until they come
    /// home, and requests that want more than there are now are refused.
    pub fn resize(&mut self, number: usize, capacity: u64) {
        let Some(resource) = self.resources.get_mut(number) else {
            return;
        };
        resource.capacity = capacity;
        mark(&mut self.resources, &mut self.marked, number);
        let resource = &self.resources[number];
        if resource.queue.is_empty() || resource.heaviest <= capacity {
            return;
        }
        let wanted = |ticket: &Ticket| {
            let parts = self.requests.get(*ticket)?.parts.as_slice();
            let part = parts.iter().find(|part| part.need.resource == number)?;
            Some((*ticket, part.need))
        };
        let queued: Vec<_> = resource.queue.iter().filter_map(wanted).collect();
        let mut heaviest = 0;
        for (ticket, need) in queued {
            if need.weight <= capacity {
                heaviest = heaviest.max(need.weight);
            } else if let Some(waiter) = self.unqueue(ticket, State::TooHeavy(need)) {
                self.refused.push_back((ticket, waiter));
                self.tally.refused += 1;
            }
        }
        self.resources[number].heaviest = heaviest;
    }

    /// Nothing is granted any more, and all who wait are refused. Permits in use still come home.
    pub fn close(&mut self) {
        self.closed = true;
        while let Some(ticket) = self.requests.front() {
            let Some(waiter) = self.unqueue(ticket, State::Closed) else {
                return;
            };
            self.refused.push_back((ticket, waiter));
            self.tally.refused += 1;
        }
    }

    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether somebody might have to be told: cheap, and true rather too often than too rarely.
    #[inline]
    pub fn has_work(&self) -> bool {
        !self.requests.is_empty() || !self.refused.is_empty()
    }

    /// How many resources there are.
    pub fn resources(&self) -> usize {
        self.resources.len()
    }

    /// How many permits a resource has, and how many are in use, which after shrinking may be more.
    pub fn usage(&self, number: usize) -> (u64, u64) {
        self.resources
            .get(number)
            .map_or((0, 0), |resource| (resource.capacity, resource.in_use))
    }

    /// How many requests wait for a resource.
    pub fn waiting_for(&self, number: usize) -> usize {
        self.resources
            .get(number)
            .map_or(0, |resource| resource.queue.len())
    }

    /// How many requests wait.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.requests.len()
    }

    pub fn queue_limit(&self) -> usize {
        self.queue_limit
    }

    /// How many waiters [`Limits::grant`] has looked at so far: what waiting costs beside each operation itself.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Everybody who waits to be told, in no particular order.
    pub fn waiters(&self) -> impl Iterator<Item = &W> {
        let queued = self
            .requests
            .every()
            .filter_map(|request| match &request.state {
                State::Waiting(waiter) => Some(waiter),
                _ => None,
            });
        queued.chain(self.refused.iter().map(|(_, waiter)| waiter))
    }

    /// Forgets all who wait and hands them over: for the garbage collector, when nobody can come any more.
    pub fn take_waiters(&mut self) -> Vec<W> {
        self.close();
        self.refused.drain(..).map(|(_, waiter)| waiter).collect()
    }
}

/// Has [`Limits::grant`] look at the first waiter for a resource.
#[inline]
fn mark(resources: &mut [Resource], marked: &mut Vec<usize>, number: usize) {
    let resource = &mut resources[number];
    if !resource.marked && !resource.queue.is_empty() {
        resource.marked = true;
        marked.push(number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Limits, Need, Refusal, Surplus, Taken};
    use crate::waiters::Ticket;

    fn one(weight: u64) -> [Need; 1] {
        [Need {
            resource: 0,
            weight,
        }]
    }

    fn limiter(capacity: u64) -> Limits<u32> {
        Limits::new([capacity], usize::MAX)
    }

    /// Whom a round of grants tells, in order.
    fn told<W>(limits: &mut Limits<W>) -> Vec<W> {
        std::iter::from_fn(|| limits.grant().map(|(_, waiter)| waiter)).collect()
    }

    #[test]
    fn a_heavy_waiter_goes_before_later_light_ones() {
        let mut limits = limiter(10);
        assert!(limits.try_acquire(&one(1)));
        let heavy = limits.push(&one(10), 0, 0, 1);
        assert!(!limits.try_acquire(&one(1)));
        limits.push(&one(1), 0, 0, 2);
        assert_eq!(told(&mut limits), []);
        limits.release(&one(1)).unwrap();
        assert_eq!(told(&mut limits), [1]);
        assert_eq!(limits.take(heavy, 5), Taken::Granted);
        limits.release(&one(10)).unwrap();
        assert_eq!(told(&mut limits), [2]);
        assert_eq!(limits.tally().waits.as_deref().unwrap().max(), Some(5));
    }

    #[test]
    fn only_what_was_taken_can_be_released() {
        let mut limits = limiter(3);
        assert!(limits.try_acquire(&one(2)));
        let surplus = |weight, held| {
            Err(Surplus {
                need: one(weight)[0],
                held,
            })
        };
        assert_eq!(limits.release(&one(3)), surplus(3, 2));
        let ticket = limits.push(&one(3), 0, 0, 1);
        limits.release(&one(2)).unwrap();
        assert_eq!(told(&mut limits), [1]);
        // In use, but by somebody who does not know it yet.
        assert_eq!(limits.release(&one(1)), surplus(1, 0));
        assert_eq!(limits.take(ticket, 0), Taken::Granted);
        assert_eq!(limits.take(ticket, 0), Taken::Nothing);
        limits.release(&one(3)).unwrap();
        assert_eq!(limits.usage(0), (3, 0));
    }

    #[test]
    fn shrinking_refuses_who_could_never_be_served() {
        let mut limits = limiter(5);
        assert!(limits.try_acquire(&one(5)));
        let heavy = limits.push(&one(4), 0, 0, 4);
        let light = limits.push(&one(2), 0, 0, 2);
        limits.resize(0, 3);
        assert_eq!(told(&mut limits), [4]);
        assert_eq!(limits.take(heavy, 0), Taken::TooHeavy(one(4)[0]));
        assert_eq!(limits.refusal(&one(4)), Some(Refusal::TooHeavy(one(4)[0])));
        limits.release(&one(2)).unwrap();
        assert_eq!(told(&mut limits), []);
        limits.release(&one(2)).unwrap();
        assert_eq!(told(&mut limits), [2]);
        assert_eq!(limits.take(light, 0), Taken::Granted);
        assert_eq!(limits.usage(0), (3, 3));
    }

    #[test]
    fn the_queue_has_a_limit() {
        let mut limits: Limits<u32> = Limits::new([1], 1);
        assert_eq!(limits.refusal(&one(1)), None);
        assert!(limits.try_acquire(&one(1)));
        assert_eq!(limits.refusal(&one(1)), None);
        limits.push(&one(1), 0, 0, 1);
        assert_eq!(limits.refusal(&one(1)), Some(Refusal::Full));
        limits.close();
        assert_eq!(limits.refusal(&one(1)), Some(Refusal::Closed));
        assert_eq!(told(&mut limits), [1]);
        assert!(!limits.try_acquire(&one(1)));
    }

    #[test]
    fn resources_wait_for_each_other_only_where_they_must() {
        let needs = |wants: &[(usize, u64)]| -> Vec<Need> {
            let need = |&(resource, weight)| Need { resource, weight };
            wants.iter().map(need).collect()
        };
        let mut limits: Limits<&str> = Limits::new([1, 1, 1], usize::MAX);
        assert!(limits.try_acquire(&needs(&[(0, 1)])));
        limits.push(&needs(&[(0, 1), (1, 1)]), 0, 0, "both");
        // 1 is free, but somebody who came earlier wants it; nobody else wants 2.
        assert!(!limits.try_acquire(&needs(&[(1, 1)])));
        assert!(limits.try_acquire(&needs(&[(2, 1)])));
        limits.push(&needs(&[(1, 1), (2, 1)]), 0, 0, "later");
        limits.push(&needs(&[(0, 1)]), 1, 0, "urgent");
        assert_eq!(told(&mut limits), [""; 0]);
        limits.release(&needs(&[(0, 1)])).unwrap();
        assert_eq!(told(&mut limits), ["urgent"]);
    }

    #[test]
    fn leaving_costs_the_same_however_many_wait() {
        const MANY: u32 = 1_000_000;
        let mut limits = limiter(10);
        assert!(limits.try_acquire(&one(10)));
        let heavy = limits.push(&one(10), 0, 0, MANY);
        let tickets: Vec<_> = (0..MANY)
            .map(|number| limits.push(&one(1), 0, 0, number))
            .collect();
        let before = limits.looks();
        // From both ends and the middle, each with the round of grants that follows it.
        for at in 0..MANY as usize {
            let at = (at * 7919) % MANY as usize;
            assert!(limits.leave(tickets[at]).is_some());
            assert!(limits.grant().is_none());
        }
        assert!(limits.looks() - before <= u64::from(MANY));
        assert_eq!(limits.waiting(), 1);
        limits.release(&one(10)).unwrap();
        assert_eq!(told(&mut limits), [MANY]);
        assert_eq!(limits.take(heavy, 0), Taken::Granted);
    }

    #[test]
    fn a_grant_looks_at_one_waiter() {
        let mut limits = limiter(1);
        assert!(limits.try_acquire(&one(1)));
        let tickets: Vec<_> = (0..1000)
            .map(|number| limits.push(&one(1), 0, 0, number))
            .collect();
        let before = limits.looks();
        for ticket in tickets {
            limits.release(&one(1)).unwrap();
            assert_eq!(told(&mut limits).len(), 1);
            assert_eq!(limits.take(ticket, 0), Taken::Granted);
        }
        // The one that is granted, and the one behind it that is not.
        assert!(limits.looks() - before <= 2000);
    }

    // --- against a plain model ------------------------------------------------------------------

    #[derive(Debug, Clone)]
    enum Step {
        Come([u64; 3], i64),
        Cancel(prop::sample::Index),
        Expire(prop::sample::Index),
        Take(prop::sample::Index),
        Release(prop::sample::Index),
        Resize(usize, u64),
        Serve,
    }

    fn step() -> impl Strategy<Value = Step> {
        let weight = || prop_oneof![2 => Just(0u64), 2 => Just(1), 1 => 2u64..6];
        let index = any::<prop::sample::Index>;
        prop_oneof![
            6 => ([weight(), weight(), weight()], prop_oneof![4 => Just(0i64), 1 => -1i64..3])
                .prop_map(|(weights, priority)| Step::Come(weights, priority)),
            2 => index().prop_map(Step::Cancel),
            1 => index().prop_map(Step::Expire),
            3 => index().prop_map(Step::Take),
            4 => index().prop_map(Step::Release),
            1 => (0usize..3, 1u64..7).prop_map(|(number, capacity)| Step::Resize(number, capacity)),
            4 => Just(Step::Serve),
        ]
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fate {
        Waiting,
        /// Granted or refused; whether its permits are in use.
        Told(bool),
    }

    /// The same written down as plainly as can be: lists that are searched.
    struct Model {
        capacity: [u64; 3],
        in_use: [u64; 3],
        came: Vec<(Ticket, [u64; 3], i64, Fate)>,
        held: Vec<[u64; 3]>,
    }

    impl Model {
        fn wants_more_than_free(&self, weights: &[u64; 3]) -> bool {
            (0..3).any(|r| {
                weights[r] > self.capacity[r].saturating_sub(self.in_use[r]) && weights[r] > 0
            })
        }

        /// Whoever waits and is not behind anybody who wants one of the same resources.
        fn serve(&mut self) -> Vec<Ticket> {
            let mut order: Vec<usize> = (0..self.came.len()).collect();
            order.sort_by_key(|&at| -self.came[at].2);
            let mut wanted = [false; 3];
            let mut told = Vec::new();
            for at in order {
                let (ticket, weights, _, fate) = self.came[at];
                if fate != Fate::Waiting {
                    continue;
                }
                let behind = (0..3).any(|r| weights[r] > 0 && wanted[r]);
                if behind || self.wants_more_than_free(&weights) {
                    for r in 0..3 {
                        wanted[r] |= weights[r] > 0;
                    }
                    continue;
                }
                add(&mut self.in_use, &weights, 1);
                self.came[at].3 = Fate::Told(true);
                told.push(ticket);
            }
            told
        }
    }

    fn needs_of(weights: &[u64; 3]) -> Vec<Need> {
        let need = |resource| Need {
            resource,
            weight: weights[resource],
        };
        (0..3).map(need).filter(|need| need.weight > 0).collect()
    }

    fn add(to: &mut [u64; 3], weights: &[u64; 3], sign: i64) {
        for r in 0..3 {
            to[r] = to[r].wrapping_add_signed(sign * weights[r] as i64);
        }
    }

    proptest! {
        #[test]
        fn behaves_as_the_plain_model(steps in prop::collection::vec(step(), 0..150)) {
            let mut limits: Limits<usize> = Limits::new([3, 4, 5], usize::MAX);
            let mut model = Model { capacity: [3, 4, 5], in_use: [0; 3], came: Vec::new(), held: Vec::new() };
            for (number, step) in steps.into_iter().enumerate() {
                let pick = |index: prop::sample::Index, length: usize| (length > 0).then(|| index.index(length));
                match step {
                    Step::Come(weights, priority) => {
                        let needs = needs_of(&weights);
                        if needs.is_empty() {
                            continue;
                        }
                        let behind = model.came.iter().any(|(_, other, _, fate)| {
                            *fate == Fate::Waiting && (0..3).any(|r| other[r] > 0 && weights[r] > 0)
                        });
                        let free = !behind && !model.wants_more_than_free(&weights);
                        prop_assert_eq!(limits.try_acquire(&needs), free);
                        if free {
                            add(&mut model.in_use, &weights, 1);
                            model.held.push(weights);
                            continue;
                        }
                        let heavy = (0..3).any(|r| weights[r] > model.capacity[r]);
                        prop_assert_eq!(limits.refusal(&needs).is_some(), heavy);
                        if !heavy {
                            let ticket = limits.push(&needs, priority, 0, number);
                            model.came.push((ticket, weights, priority, Fate::Waiting));
                        }
                    }
                    Step::Cancel(index) => {
                        if let Some(at) = pick(index, model.came.len()) {
                            let (ticket, weights, _, fate) = model.came.remove(at);
                            prop_assert_eq!(limits.leave(ticket).is_some(), fate == Fate::Waiting);
                            prop_assert_eq!(limits.leave(ticket), None);
                            if fate == Fate::Told(true) {
                                add(&mut model.in_use, &weights, -1);
                            }
                        }
                    }
                    Step::Expire(index) => {
                        if let Some(at) = pick(index, model.came.len()) {
                            let (ticket, _, _, fate) = &mut model.came[at];
                            prop_assert_eq!(limits.expire(*ticket).is_some(), *fate == Fate::Waiting);
                            if *fate == Fate::Waiting {
                                *fate = Fate::Told(false);
                            }
                        }
                    }
                    Step::Take(index) => {
                        if let Some(at) = pick(index, model.came.len()) {
                            let (ticket, weights, _, fate) = model.came[at];
                            let taken = limits.take(ticket, 0);
                            match fate {
                                Fate::Waiting => prop_assert_eq!(taken, Taken::Nothing),
                                Fate::Told(granted) => {
                                    prop_assert_eq!(taken == Taken::Granted, granted);
                                    prop_assert!(taken != Taken::Nothing);
                                    model.came.remove(at);
                                    if granted {
                                        model.held.push(weights);
                                    }
                                }
                            }
                        }
                    }
                    Step::Release(index) => {
                        if let Some(at) = pick(index, model.held.len()) {
                            let weights = model.held.swap_remove(at);
                            prop_assert_eq!(limits.release(&needs_of(&weights)), Ok(()));
                            add(&mut model.in_use, &weights, -1);
                        }
                    }
                    Step::Resize(resource, capacity) => {
                        limits.resize(resource, capacity);
                        model.capacity[resource] = capacity;
                        for (_, weights, _, fate) in &mut model.came {
                            if *fate == Fate::Waiting && weights[resource] > capacity {
                                *fate = Fate::Told(false);
                            }
                        }
                    }
                    Step::Serve => {}
                }
                // Between any two steps everybody is served who can be.
                let granted = model.serve();
                let mut told = Vec::new();
                while let Some((ticket, _)) = limits.grant() {
                    told.push(ticket);
                }
                told.retain(|ticket| granted.contains(ticket) || !model.came.iter().any(|(other, _, _, fate)| {
                    other == ticket && *fate == Fate::Told(false)
                }));
                told.sort_by_key(|ticket| ticket.to_u64());
                let mut expected = granted.clone();
                expected.sort_by_key(|ticket| ticket.to_u64());
                prop_assert_eq!(told, expected);
                for resource in 0..3 {
                    prop_assert_eq!(limits.usage(resource), (model.capacity[resource], model.in_use[resource]));
                }
                prop_assert_eq!(
                    limits.waiting(),
                    model.came.iter().filter(|(_, _, _, fate)| *fate == Fate::Waiting).count()
                );
            }
        }
    }
}
