//! Letters to somebody who looks only when called: the first of a burst calls, the others join it.
//!
//! A burst is open from its first letter until it is closed, by whoever was called or by whoever could not call. A letter
//! joins the open burst of its address, or opens one. Both happen under one lock, so a letter is in exactly one
//! burst, and that burst is closed after it has joined: none is left behind, and none is handed over twice.
//!
//! Addresses are whatever tells receivers apart as long as a burst is open.

use std::collections::BTreeMap;

use crate::sync::{Arc, Mutex, locked};

/// The letters of one burst.
#[derive(Debug)]
pub struct Burst<L> {
    address: usize,
    letters: Arc<Mutex<Vec<L>>>,
}

impl<L> Burst<L> {
    /// How many letters have joined so far.
    pub fn len(&self) -> usize {
        locked(&self.letters).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at the letters, unless somebody else is there: for the garbage collector, which must not wait.
    #[cfg(not(all(test, loom)))]
    pub fn try_each<E>(&self, each: impl FnMut(&L) -> Result<(), E>) -> Result<(), E> {
        match self.letters.try_lock() {
            Ok(letters) => letters.iter().try_for_each(each),
            Err(_) => Ok(()),
        }
    }
}

/// The bursts that are open, by their addresses.
#[derive(Debug)]
pub struct Bursts<L> {
    open: Mutex<BTreeMap<usize, Arc<Mutex<Vec<L>>>>>,
}

impl<L> Bursts<L> {
    #[cfg(not(all(test, loom)))]
    pub const fn new() -> Self {
        Self {
            open: Mutex::new(BTreeMap::new()),
        }
    }

    #[cfg(all(test, loom))]
    pub fn new() -> Self {
        Self {
            open: Mutex::new(BTreeMap::new()),
        }
    }

    /// Adds a letter. If it opens a burst: that one, about which the caller has to call.
    #[must_use = "somebody has to be called"]
    pub fn post(&self, address: usize, letter: L) -> Option<Burst<L>> {
        let mut open = locked(&self.open);
        if let Some(letters) = open.get(&address) {
            locked(letters).push(letter);
            return None;
        }
        let letters = Arc::new(Mutex::new(vec![letter]));
        open.insert(address, letters.clone());
        Some(Burst { address, letters })
    }

    /// No letter joins any more; hands over those that did, once.
    #[must_use = "letters are told or lost, not dropped"]
    pub fn close(&self, burst: &Burst<L>) -> Vec<L> {
        let mut open = locked(&self.open);
        if open
            .get(&burst.address)
            .is_some_and(|letters| Arc::ptr_eq(letters, &burst.letters))
        {
            open.remove(&burst.address);
        }
        std::mem::take(&mut *locked(&burst.letters))
    }
}

impl<L> Default for Bursts<L> {
    fn default() -> Self {
        Self::new()
    }
}
