//! A queue in which a higher priority goes first, and who came first among equals.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::waiters::{Ticket, Waiters};

/// Waiters of type `T` by priority. Entering costs the logarithm of the number of different priorities that
/// wait, leaving the same.
#[derive(Debug)]
pub struct Ranks<T> {
    waiters: Waiters<(i64, T)>,
    /// The last waiter of each priority.
    last: BTreeMap<Reverse<i64>, Ticket>,
}

impl<T> Default for Ranks<T> {
    fn default() -> Self {
        Self {
            waiters: Waiters::default(),
            last: BTreeMap::new(),
        }
    }
}

impl<T> Ranks<T> {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Queues a waiter behind those of its priority and above.
    pub fn push(&mut self, priority: i64, waiter: T) -> Ticket {
        let rank = Reverse(priority);
        let before = self.last.range(..=rank).next_back().map(|(_, last)| *last);
        let ticket = self.waiters.push_behind(before, (priority, waiter));
        self.last.insert(rank, ticket);
        ticket
    }

    /// Takes a waiter out; `None` if it has left already.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let before = self.waiters.before(ticket);
        let (priority, waiter) = self.waiters.remove(ticket)?;
        let rank = Reverse(priority);
        if self.last.get(&rank) == Some(&ticket) {
            match before.filter(|&before| {
                self.waiters
                    .get(before)
                    .is_some_and(|(other, _)| *other == priority)
            }) {
                Some(before) => self.last.insert(rank, before),
                None => self.last.remove(&rank),
            };
        }
        Some(waiter)
    }

    /// Who is first, and its ticket.
    #[inline]
    pub fn first(&self) -> Option<(Ticket, &T)> {
        let ticket = self.waiters.front()?;
        let (_, waiter) = self.waiters.get(ticket)?;
        Some((ticket, waiter))
    }

    /// The waiters in their order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiters.iter().map(|(_, waiter)| waiter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Ranks;

    proptest! {
        // Against a list that is sorted by priority, stably.
        #[test]
        fn behaves_as_a_sorted_list(
            steps in prop::collection::vec((any::<bool>(), -2i64..3, any::<prop::sample::Index>()), 0..120)
        ) {
            let mut ranks = Ranks::default();
            let mut model = Vec::new();
            for (number, (push, priority, index)) in steps.into_iter().enumerate() {
                if push || model.is_empty() {
                    let ticket = ranks.push(priority, number);
                    model.push((priority, number, ticket));
                    model.sort_by_key(|entry| (-entry.0, entry.1));
                } else {
                    let at = index.index(model.len());
                    let (_, number, ticket) = model.remove(at);
                    prop_assert_eq!(ranks.remove(ticket), Some(number));
                    prop_assert_eq!(ranks.remove(ticket), None);
                }
                prop_assert_eq!(ranks.len(), model.len());
                prop_assert_eq!(ranks.first().map(|(_, number)| *number), model.first().map(|entry| entry.1));
                let order: Vec<_> = model.iter().map(|entry| entry.1).collect();
                prop_assert_eq!(ranks.iter().copied().collect::<Vec<_>>(), order);
            }
        }
    }
}
