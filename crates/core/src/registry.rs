//! What is registered with the selector: a slab whose keys go stale when their entry is removed.
//!
//! The selector reports keys. Between the report and its delivery other callbacks run, and they may
//! close the descriptor and open another one with the same number: keyed by descriptor, the old
//! event would reach the new owner. A key therefore carries the generation of its slot, and a key of
//! an earlier generation finds nothing.

/// Names one registration for as long as it lives, and nothing afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    /// The key as one integer, for selectors that carry 64 bits.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub fn from_u64(bits: u64) -> Self {
        Self {
            slot: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<T>,
}

/// A slab of registrations of type `T`.
#[derive(Debug)]
pub struct Registry<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Registry<T> {
    pub fn insert(&mut self, entry: T) -> Key {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.slots.get_mut(slot as usize)
        {
            place.entry = Some(entry);
            return Key {
                slot,
                generation: place.generation,
            };
        }
        let slot = self.slots.len() as u32;
        self.slots.push(Slot {
            generation: 0,
            entry: Some(entry),
        });
        Key {
            slot,
            generation: 0,
        }
    }

    /// Where the registration of a key lies, if it does, without a look at it.
    #[inline]
    pub fn place(&self, key: Key) -> Option<&impl Sized> {
        self.slots.get(key.slot as usize)
    }

    #[inline]
    pub fn entry(&self, key: Key) -> Option<&T> {
        match self.slots.get(key.slot as usize) {
            Some(slot) if slot.generation == key.generation => slot.entry.as_ref(),
            _ => None,
        }
    }

    #[inline]
    pub fn entry_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.slots.get_mut(key.slot as usize) {
            Some(slot) if slot.generation == key.generation => slot.entry.as_mut(),
            _ => None,
        }
    }

    /// Removes a registration; its key finds nothing from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(entry)
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref())
    }

    /// Removes every registration and hands them over.
    pub fn take_all(&mut self) -> Vec<T> {
        self.free.clear();
        let mut taken = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(entry) = slot.entry.take() {
                slot.generation = slot.generation.wrapping_add(1);
                taken.push(entry);
            }
            self.free.push(index as u32);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_dies_with_its_entry() {
        let mut registry = Registry::default();
        let old = registry.insert("old");
        assert_eq!(registry.remove(old), Some("old"));
        let new = registry.insert("new");
        assert_eq!(new.slot, old.slot, "the slot is used again");
        assert_eq!(registry.entry(old), None);
        assert_eq!(registry.entry_mut(old), None);
        assert_eq!(registry.remove(old), None);
        assert_eq!(registry.entry(new), Some(&"new"));
        assert_eq!(Key::from_u64(new.to_u64()), new);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn taking_all_kills_every_key() {
        let mut registry = Registry::default();
        let keys: Vec<Key> = (0..4).map(|n| registry.insert(n)).collect();
        registry.remove(keys[1]);
        assert_eq!(registry.take_all(), [0, 2, 3]);
        assert!(registry.is_empty());
        for key in keys {
            assert_eq!(registry.entry(key), None);
        }
        for n in 0..4 {
            let key = registry.insert(n);
            assert_eq!(registry.entry(key), Some(&n));
        }
    }
}
