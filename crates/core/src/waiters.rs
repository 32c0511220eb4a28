//! Who waits for something: first come, first served, and leaving costs the same from any place.
//!
//! Every synchronisation primitive keeps its waiters here, whatever a waiter is (`T`). A waiter can
//! leave in two ways. [`Waiters::pop`] takes it out when it is served. [`Waiters::notify`] only
//! passes it: the waiter is told, stays in its place until it has run and then removes itself by its
//! [`Ticket`]; so whoever comes in between sees that somebody is still before him and does not jump
//! the queue. Passing moves on and never goes back, so telling `n` waiters costs `n` steps however
//! many of them were told before. [`Waiters::detach`] is between the two: the waiter leaves the queue, but its
//! ticket stays good, so that what it was served can be kept in its place until it comes for it.

/// Absent link.
const NONE: u32 = u32::MAX;

/// A place in the queue. It is void once the waiter has left, also if the place is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    place: u32,
    serial: u32,
}

impl Ticket {
    /// The ticket as one integer, for those who store it in a raw object.
    pub fn to_u64(self) -> u64 {
        u64::from(self.serial) << 32 | u64::from(self.place)
    }

    pub fn from_u64(bits: u64) -> Self {
        Self {
            place: bits as u32,
            serial: (bits >> 32) as u32,
        }
    }
}

#[derive(Debug)]
struct Place<T> {
    waiter: Option<T>,
    serial: u32,
    /// Whether it is in the queue.
    queued: bool,
    previous: u32,
    next: u32,
}

/// A queue of waiters of type `T`.
#[derive(Debug)]
pub struct Waiters<T> {
    places: Vec<Place<T>>,
    /// Head of the chain of free places, linked by `next`.
    free: u32,
    first: u32,
    last: u32,
    /// The first waiter that `notify` has not passed yet.
    untold: u32,
    len: u32,
    /// Places of those who have left the queue and are still to come for what they were served.
    detached: u32,
    serial: u32,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: NONE,
            first: NONE,
            last: NONE,
            untold: NONE,
            len: 0,
            detached: 0,
            serial: 0,
        }
    }
}

impl<T> Waiters<T> {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Queues a waiter behind all others.
    pub fn push(&mut self, waiter: T) -> Ticket {
        self.insert(self.last, waiter)
    }

    /// Queues a waiter right behind another one, or in front of all; for queues that do not [`notify`].
    ///
    /// A void ticket stands for the end of the queue.
    ///
    /// [`notify`]: Waiters::notify
    pub fn push_behind(&mut self, before: Option<Ticket>, waiter: T) -> Ticket {
        let previous = match before {
            None => NONE,
            Some(ticket) if self.is_queued(ticket) => ticket.place,
            Some(_) => self.last,
        };
        self.insert(previous, waiter)
    }

    fn insert(&mut self, previous: u32, waiter: T) -> Ticket {
        let next = match self.places.get(previous as usize) {
            Some(previous) => previous.next,
            None => self.first,
        };
        self.serial = self.serial.wrapping_add(1);
        let place = Place {
            waiter: Some(waiter),
            serial: self.serial,
            queued: true,
            previous,
            next,
        };
        let index = self.free;
        let index = match self.places.get_mut(index as usize) {
            Some(free) => {
                self.free = free.next;
                *free = place;
                index
            }
            None => {
                self.places.push(place);
                (self.places.len() - 1) as u32
            }
        };
        match self.places.get_mut(previous as usize) {
            Some(previous) => previous.next = index,
            None => self.first = index,
        }
        match self.places.get_mut(next as usize) {
            Some(next) => next.previous = index,
            None => self.last = index,
        }
        if self.untold == next {
            self.untold = index;
        }
        self.len += 1;
        Ticket {
            place: index,
            serial: self.serial,
        }
    }

    /// Takes a waiter out, also one that was detached; `None` if it has left already.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let place = self.places.get_mut(ticket.place as usize)?;
        if place.serial != ticket.serial {
            return None;
        }
        let waiter = place.waiter.take()?;
        if place.queued {
            self.unlink(ticket.place);
        } else {
            self.detached -= 1;
        }
        if let Some(place) = self.places.get_mut(ticket.place as usize) {
            place.next = self.free;
            self.free = ticket.place;
        }
        Some(waiter)
    }

    /// Takes a waiter out of the queue, but keeps its place until it is removed. `None` if it is not queued.
    pub fn detach(&mut self, ticket: Ticket) -> Option<&mut T> {
        if !self.is_queued(ticket) {
            return None;
        }
        self.unlink(ticket.place);
        self.detached += 1;
        self.get_mut(ticket)
    }

    /// Whether a waiter is still in the queue.
    pub fn is_queued(&self, ticket: Ticket) -> bool {
        self.places.get(ticket.place as usize).is_some_and(|place| {
            place.serial == ticket.serial && place.queued && place.waiter.is_some()
        })
    }

    /// How many were detached and are still to be removed.
    pub fn detached(&self) -> usize {
        self.detached as usize
    }

    /// Takes a place out of the chain.
    fn unlink(&mut self, index: u32) {
        let Some(place) = self.places.get_mut(index as usize) else {
            return;
        };
        place.queued = false;
        let (previous, next) = (place.previous, place.next);
        match self.places.get_mut(previous as usize) {
            Some(place) => place.next = next,
            None => self.first = next,
        }
        match self.places.get_mut(next as usize) {
            Some(place) => place.previous = previous,
            None => self.last = previous,
        }
        if self.untold == index {
            self.untold = next;
        }
        self.len -= 1;
    }

    /// Takes out the waiter that came first.
    pub fn pop(&mut self) -> Option<T> {
        let ticket = self.front()?;
        self.remove(ticket)
    }

    /// The ticket of the waiter that came first.
    pub fn front(&self) -> Option<Ticket> {
        self.ticket_at(self.first)
    }

    /// The ticket of the waiter that came next after another.
    pub fn after(&self, ticket: Ticket) -> Option<Ticket> {
        self.neighbour(ticket, |place| place.next)
    }

    /// The ticket of the waiter that came right before another.
    pub fn before(&self, ticket: Ticket) -> Option<Ticket> {
        self.neighbour(ticket, |place| place.previous)
    }

    fn neighbour(&self, ticket: Ticket, side: impl FnOnce(&Place<T>) -> u32) -> Option<Ticket> {
        if !self.is_queued(ticket) {
            return None;
        }
        self.ticket_at(side(self.places.get(ticket.place as usize)?))
    }

    /// The waiter in a place, unless it has left.
    pub fn get(&self, ticket: Ticket) -> Option<&T> {
        let place = self.places.get(ticket.place as usize)?;
        if place.serial == ticket.serial {
            place.waiter.as_ref()
        } else {
            None
        }
    }

    /// The waiter in a place, unless it has left.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        let place = self.places.get_mut(ticket.place as usize)?;
        if place.serial == ticket.serial {
            place.waiter.as_mut()
        } else {
            None
        }
    }

    /// The first waiter that was not passed yet, which is passed by this call; it keeps its place.
    pub fn notify(&mut self) -> Option<&T> {
        let place = self.places.get(self.untold as usize)?;
        self.untold = place.next;
        place.waiter.as_ref()
    }

    /// As [`notify`](Self::notify), with the ticket, for those who change what they pass.
    pub fn notify_mut(&mut self) -> Option<(Ticket, &mut T)> {
        let ticket = self.ticket_at(self.untold)?;
        let place = self.places.get_mut(ticket.place as usize)?;
        self.untold = place.next;
        place.waiter.as_mut().map(|waiter| (ticket, waiter))
    }

    /// The waiters in their order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut at = self.first;
        std::iter::from_fn(move || {
            let place = self.places.get(at as usize)?;
            at = place.next;
            place.waiter.as_ref()
        })
    }

    /// Empties the queue and hands over who was in it, in order. Their tickets become void.
    pub fn take_all(&mut self) -> Vec<T> {
        let mut all = Vec::with_capacity(self.len());
        while let Some(waiter) = self.pop() {
            all.push(waiter);
        }
        if self.detached == 0 {
            self.places = Vec::new();
            self.free = NONE;
        }
        all
    }

    /// The waiters in all places, those who were detached too, in no particular order.
    pub fn every(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.waiter.as_ref())
    }

    fn ticket_at(&self, index: u32) -> Option<Ticket> {
        let place = self.places.get(index as usize)?;
        Some(Ticket {
            place: index,
            serial: place.serial,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::{Ticket, Waiters};

    #[test]
    fn a_void_ticket_finds_nothing_when_its_place_is_used_again() {
        let mut waiters = Waiters::default();
        let first = waiters.push("a");
        assert_eq!(waiters.pop(), Some("a"));
        let second = waiters.push("b");
        assert_eq!(waiters.remove(first), None);
        assert_eq!(waiters.get(first), None);
        assert_eq!(waiters.get(second), Some(&"b"));
        assert_eq!(waiters.after(first), None);
        assert_eq!(waiters.take_all(), ["b"]);
        let third = waiters.push("c");
        assert_eq!(waiters.remove(second), None);
        assert_eq!(waiters.remove(Ticket::from_u64(third.to_u64())), Some("c"));
    }

    #[test]
    fn who_was_told_keeps_its_place() {
        let mut waiters = Waiters::default();
        let tickets: Vec<_> = (0..4).map(|n| waiters.push(n)).collect();
        assert_eq!(waiters.notify(), Some(&0));
        assert_eq!(waiters.notify(), Some(&1));
        assert_eq!(waiters.len(), 4);
        assert_eq!(waiters.remove(tickets[2]), Some(2));
        assert_eq!(waiters.notify(), Some(&3));
        assert_eq!(waiters.notify(), None);
        waiters.push(4);
        assert_eq!(waiters.notify(), Some(&4));
        assert_eq!(waiters.iter().copied().collect::<Vec<_>>(), [0, 1, 3, 4]);
    }

    #[test]
    fn a_detached_place_is_kept_until_it_is_removed() {
        let mut waiters = Waiters::default();
        let tickets: Vec<_> = (0..4).map(|n| waiters.push(n)).collect();
        assert_eq!(waiters.detach(tickets[1]), Some(&mut 1));
        assert_eq!(waiters.detach(tickets[1]), None);
        assert_eq!((waiters.len(), waiters.detached()), (3, 1));
        assert_eq!(waiters.iter().copied().collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(waiters.before(tickets[2]), Some(tickets[0]));
        assert_eq!(waiters.after(tickets[1]), None);
        let mut every: Vec<_> = waiters.every().copied().collect();
        every.sort_unstable();
        assert_eq!(every, [0, 1, 2, 3]);
        assert_eq!(waiters.take_all(), [0, 2, 3]);
        waiters.push(4);
        assert_eq!(waiters.get(tickets[1]), Some(&1));
        assert_eq!(waiters.remove(tickets[1]), Some(1));
        assert_eq!(waiters.remove(tickets[1]), None);
        assert_eq!((waiters.len(), waiters.detached()), (1, 0));
    }

    #[test]
    fn a_waiter_can_queue_in_the_middle() {
        let mut waiters = Waiters::default();
        let first = waiters.push("a");
        let last = waiters.push("d");
        let second = waiters.push_behind(Some(first), "b");
        waiters.push_behind(Some(second), "c");
        waiters.push_behind(None, "0");
        assert_eq!(waiters.remove(last), Some("d"));
        waiters.push_behind(Some(last), "e");
        waiters.push("f");
        assert_eq!(waiters.take_all(), ["0", "a", "b", "c", "e", "f"]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push,
        Pop,
        Notify,
        Remove(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Push),
            1 => Just(Step::Pop),
            2 => Just(Step::Notify),
            2 => any::<prop::sample::Index>().prop_map(Step::Remove),
        ]
    }

    proptest! {
        // Against a list that is searched: the order is that of arrival, nobody is lost, nobody is
        // told twice, and nobody is passed over.
        #[test]
        fn behaves_as_a_list(steps in prop::collection::vec(step(), 0..200)) {
            let mut waiters = Waiters::default();
            let mut model: VecDeque<(u32, Ticket, bool)> = VecDeque::new();
            let mut issued = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push => {
                        let ticket = waiters.push(number as u32);
                        model.push_back((number as u32, ticket, false));
                        issued.push(ticket);
                    }
                    Step::Pop => {
                        prop_assert_eq!(waiters.pop(), model.pop_front().map(|entry| entry.0));
                    }
                    Step::Notify => {
                        let expected = model.iter_mut().find(|entry| !entry.2).map(|entry| {
                            entry.2 = true;
                            entry.0
                        });
                        prop_assert_eq!(waiters.notify().copied(), expected);
                    }
                    Step::Remove(index) if !issued.is_empty() => {
                        let ticket = *index.get(&issued);
                        let at = model.iter().position(|entry| entry.1 == ticket);
                        let expected = at.and_then(|at| model.remove(at)).map(|entry| entry.0);
                        prop_assert_eq!(waiters.remove(ticket), expected);
                    }
                    Step::Remove(_) => {}
                }
                prop_assert_eq!(waiters.len(), model.len());
                let order: Vec<_> = model.iter().map(|entry| entry.0).collect();
                prop_assert_eq!(waiters.iter().copied().collect::<Vec<_>>(), order.clone());
                let mut walked = Vec::new();
                let mut at = waiters.front();
                while let Some(ticket) = at {
                    walked.extend(waiters.get(ticket).copied());
                    at = waiters.after(ticket);
                }
                prop_assert_eq!(walked, order);
            }
        }
    }
}
