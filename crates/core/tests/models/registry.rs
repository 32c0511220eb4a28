//! Keys against a map of everything that was ever registered.

use std::collections::HashMap;

use arbitrary::Arbitrary;
use tideloop_core::registry::{Key, Registry};

#[derive(Debug, Arbitrary)]
enum Op {
    Insert,
    /// Of the keys that were ever given out.
    Remove(u16),
    Change(u16),
    /// A key that may never have been given out.
    Look(u64),
    TakeAll,
}

pub fn check(bytes: &[u8]) {
    let mut registry = Registry::default();
    let mut live: HashMap<Key, u32> = HashMap::new();
    let mut keys: Vec<Key> = Vec::new();
    let mut next = 0;
    for op in super::operations(bytes) {
        match op {
            Op::Insert => {
                let key = registry.insert(next);
                assert_eq!(Key::from_u64(key.to_u64()), key);
                assert_ne!(key.to_u64(), u64::MAX, "that one is the waker's");
                assert!(!keys.contains(&key), "a key names one registration only");
                live.insert(key, next);
                keys.push(key);
                next += 1;
            }
            Op::Remove(index) => {
                if let Some(key) = pick(&keys, index) {
                    assert_eq!(registry.remove(key), live.remove(&key));
                }
            }
            Op::Change(index) => {
                if let Some(key) = pick(&keys, index) {
                    let entry = registry.entry_mut(key);
                    assert_eq!(entry.as_deref(), live.get(&key));
                    if let Some(entry) = entry {
                        *entry = next;
                        live.insert(key, next);
                        next += 1;
                    }
                }
            }
            Op::Look(bits) => {
                let key = Key::from_u64(bits);
                assert_eq!(registry.entry(key), live.get(&key));
            }
            Op::TakeAll => {
                let mut taken = registry.take_all();
                let mut expected: Vec<u32> = live.drain().map(|(_, entry)| entry).collect();
                taken.sort_unstable();
                expected.sort_unstable();
                assert_eq!(taken, expected);
            }
        }
        assert_eq!(registry.len(), live.len());
        assert_eq!(registry.is_empty(), live.is_empty());
        for key in &keys {
            assert_eq!(registry.entry(*key), live.get(key));
        }
        let mut entries: Vec<u32> = registry.iter().copied().collect();
        let mut expected: Vec<u32> = live.values().copied().collect();
        entries.sort_unstable();
        expected.sort_unstable();
        assert_eq!(entries, expected);
    }
}

fn pick(keys: &[Key], index: u16) -> Option<Key> {
    keys.get(usize::from(index) % keys.len().max(1)).copied()
}
