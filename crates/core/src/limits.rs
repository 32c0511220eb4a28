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
    /// nanoseconds.
    pub fn push(&mut self, needs: &[Need], priority: i64, now: u64, waiter: W) -> Ticket {
        let ticket = self.requests.push(Request {
            parts: Parts::Many(Box::default()),
            since: now,
            state: State::Waiting(waiter),
        });
        let resources = &mut self.resources;
        let mut part = |need: &Need| {
            let resource = &mut resources[need.resource];
            if resource.queue.is_empty() {
                resource.heaviest = 0;
            }
            resource.heaviest = resource.heaviest.max(need.weight);
            Part {
                need: *need,
                place: resource.queue.push(priority, ticket),
            }
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
