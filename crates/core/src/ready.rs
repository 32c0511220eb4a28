//! The ready ring: what runs next, first in, first out.
//!
//! One turn runs exactly what was ready when the turn began ([`Ready::begin_turn`]); whatever a
//! callback adds runs in the next turn. That is asyncio's order, and programs depend on it.

use std::collections::VecDeque;

/// A FIFO of entries of type `T`.
#[derive(Debug)]
pub struct Ready<T> {
    entries: VecDeque<T>,
}

impl<T> Default for Ready<T> {
    fn default() -> Self {
        Self {
            entries: VecDeque::with_capacity(64),
        }
    }
}

impl<T> Ready<T> {
    /// Appends an entry behind all others.
    #[inline]
    pub fn push(&mut self, entry: T) {
        self.entries.push_back(entry);
    }

    /// How many entries the turn that starts now has to run.
    #[inline]
    pub fn begin_turn(&self) -> usize {
        self.entries.len()
    }

    /// Takes the oldest entry.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.entries.pop_front()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter()
    }

    /// Empties the ring and hands over what was in it, oldest first.
    pub fn take_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.entries).into()
    }
}

#[cfg(test)]
mod tests {
    use super::Ready;

    #[test]
    fn a_turn_runs_what_was_there_when_it_began() {
        let mut ready = Ready::default();
        for n in 0..3 {
            ready.push(n);
        }
        let mut seen = Vec::new();
        for _ in 0..ready.begin_turn() {
            let n = ready.pop().unwrap();
            seen.push(n);
            ready.push(n + 10);
        }
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(ready.take_all(), [10, 11, 12]);
        assert!(ready.is_empty());
    }
}
