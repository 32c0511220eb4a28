//! A priority queue that is first in, first out among equals, whose comparisons somebody else makes.
//!
//! Comparing two Python objects runs any code, also code that uses the very queue. So the heap never
//! compares: a change is *planned* by a [`Rise`] or a [`Sink`], which say what has to be compared next and
//! are told the answer, and made in one step once the plan is complete. A comparison that raises leaves
//! the heap as it was; a heap that has changed since the plan was begun refuses it ([`Changed`]).
//!
//! Each item carries a number. Of two items neither of which is less than the other the one with the
//! lower number comes first; since the numbers say which way round to ask, that costs the same one
//! comparison per step as an unstable heap.

/// The heap is no longer the one that the plan was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed;

#[derive(Debug)]
struct Entry<T> {
    item: T,
    number: i64,
}

/// Items of type `T`; the first one is at the root.
#[derive(Debug)]
pub struct StableHeap<T> {
    entries: Vec<Entry<T>>,
    /// Number of the next item that comes behind its equals.
    next: i64,
    /// Number of the next item that comes before its equals.
    before: i64,
    changes: u64,
}

/// A plan to add an item: where it goes.
#[derive(Debug)]
pub struct Rise {
    at: usize,
    returned: bool,
    changes: u64,
}

/// A plan to take the first item: where the last one goes.
#[derive(Debug)]
pub struct Sink {
    at: usize,
    falling: bool,
    changes: u64,
    /// What the question that was asked last is about.
    asked: Asked,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Nothing,
    /// Of two children, given that the answer is yes; the other one.
    Children(usize, usize),
    /// Whether the last item goes above this place, if the answer is this.
    Above(usize, bool),
}

impl<T> Default for StableHeap<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            next: 0,
            before: -1,
            changes: 0,
        }
    }
}

impl<T> StableHeap<T> {
    #[inline]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, place: usize) -> Option<&T> {
        self.entries.get(place).map(|entry| &entry.item)
    }

    /// The items in the order of their places: that of a list which is kept by `heapq`.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|entry| &entry.item)
    }

    /// Empties the heap.
    pub fn take_all(&mut self) -> Vec<T> {
        self.changes += 1;
        std::mem::take(&mut self.entries)
            .into_iter()
            .map(|entry| entry.item)
            .collect()
    }

    /// Begins to add an item: behind its equals, or before them if it was taken out and comes back.
    pub fn rise(&self, returned: bool) -> Rise {
        Rise {
            at: self.entries.len(),
            returned,
            changes: self.changes,
        }
    }

    /// Adds an item where its plan says. Hands it back if the heap has changed.
    pub fn insert(&mut self, rise: Rise, item: T) -> Result<(), T> {
        if rise.changes != self.changes {
            return Err(item);
        }
        self.changes += 1;
        let number = if rise.returned {
            self.before -= 1;
            self.before + 1
        } else {
            self.next += 1;
            self.next - 1
        };
        let mut at = self.entries.len();
        self.entries.push(Entry { item, number });
        while at > rise.at {
            let parent = (at - 1) / 2;
            self.entries.swap(at, parent);
            at = parent;
        }
        Ok(())
    }

    /// Begins to take the first item out; nothing if there is none.
    pub fn sink(&self) -> Option<Sink> {
        (!self.is_empty()).then_some(Sink {
            at: 0,
            falling: true,
            changes: self.changes,
            asked: Asked::Nothing,
        })
    }

    /// Takes the first item out.
    pub fn remove(&mut self, sink: &Sink) -> Result<T, Changed> {
        if sink.changes != self.changes {
            return Err(Changed);
        }
        let mut moved = self.entries.pop().ok_or(Changed)?;
        self.changes += 1;
        if self.entries.is_empty() {
            return Ok(moved.item);
        }
        let mut at = sink.at;
        loop {
            // In bounds: the plan was made for these entries.
            std::mem::swap(&mut moved, &mut self.entries[at]);
            if at == 0 {
                return Ok(moved.item);
            }
            at = (at - 1) / 2;
        }
    }
}

impl Rise {
    /// The places to compare the item with, from the bottom up; `None` at the top.
    pub fn parent(&self) -> Option<usize> {
        (self.at > 0).then(|| (self.at - 1) / 2)
    }

    /// Which way round to ask: false for `item < parent`, true for `parent < item`.
    pub fn asks_the_parent(&self) -> bool {
        self.returned
    }

    /// Takes the answer. False: the item stays where it is.
    pub fn answer(&mut self, less: bool) -> bool {
        let climbs = less != self.returned;
        if climbs {
            self.at = self.parent().unwrap_or(0);
        }
        climbs
    }
}

impl Sink {
    /// The two places of which has to be told next whether the first one's item is less than the
    /// second one's; `None` once the plan is complete, or the heap has changed.
    pub fn question<T>(&mut self, heap: &StableHeap<T>) -> Option<(usize, usize)> {
        if self.changes != heap.changes {
            return None;
        }
        let last = heap.entries.len() - 1;
        while self.falling {
            let (left, right) = (2 * self.at + 1, 2 * self.at + 2);
            if left >= last {
                self.falling = false;
            } else if right >= last {
                self.at = left;
            } else {
                // The younger one has to be less to come first.
                let left_is_older = heap.entries[left].number < heap.entries[right].number;
                let (younger, older) = if left_is_older {
                    (right, left)
                } else {
                    (left, right)
                };
                self.asked = Asked::Children(younger, older);
                return Some((younger, older));
            }
        }
        if self.at == 0 {
            return None;
        }
        let above = (self.at - 1) / 2;
        // What is here moves up one place as the root goes, unless the last item belongs above it.
        let rival = self.at;
        let last_is_older = heap.entries[last].number < heap.entries[rival].number;
        self.asked = Asked::Above(above, !last_is_older);
        Some(if last_is_older {
            (rival, last)
        } else {
            (last, rival)
        })
    }

    /// Takes the answer. False: the plan is complete.
    pub fn answer(&mut self, less: bool) -> bool {
        match self.asked {
            Asked::Nothing => false,
            Asked::Children(younger, older) => {
                self.at = if less { younger } else { older };
                true
            }
            Asked::Above(above, when) => {
                if less == when {
                    self.at = above;
                    true
                } else {
                    false
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Changed, StableHeap};

    /// An item that is compared by its first part only.
    type Item = (u8, u32);

    fn push(heap: &mut StableHeap<Item>, item: Item, returned: bool) {
        let mut rise = heap.rise(returned);
        while let Some(parent) = rise.parent() {
            let parent = *heap.get(parent).unwrap();
            let less = if rise.asks_the_parent() {
                parent.0 < item.0
            } else {
                item.0 < parent.0
            };
            if !rise.answer(less) {
                break;
            }
        }
        heap.insert(rise, item).unwrap();
    }

    fn pop(heap: &mut StableHeap<Item>) -> (Option<Item>, usize) {
        let Some(mut sink) = heap.sink() else {
            return (None, 0);
        };
        let mut asked = 0;
        while let Some((a, b)) = sink.question(heap) {
            asked += 1;
            let less = heap.get(a).unwrap().0 < heap.get(b).unwrap().0;
            if !sink.answer(less) {
                break;
            }
        }
        (Some(heap.remove(&sink).unwrap()), asked)
    }

    #[test]
    fn a_changed_heap_refuses_plans() {
        let mut heap = StableHeap::default();
        push(&mut heap, (1, 0), false);
        let (rise, sink) = (heap.rise(false), heap.sink().unwrap());
        push(&mut heap, (0, 1), false);
        assert_eq!(heap.insert(rise, (2, 2)), Err((2, 2)));
        assert_eq!(heap.remove(&sink), Err(Changed));
        assert_eq!(heap.len(), 2);
        assert_eq!(heap.take_all(), [(0, 1), (1, 0)]);
        assert!(heap.sink().is_none());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        Pop,
        PopAndReturn(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..6).prop_map(Step::Push),
            2 => Just(Step::Pop),
            1 => (1u8..5).prop_map(Step::PopAndReturn),
        ]
    }

    proptest! {
        // Against a list that is kept sorted: equals come out in the order in which they came, what was
        // returned before them, and a removal asks no more than a heap has to.
        #[test]
        fn behaves_as_a_sorted_list(steps in prop::collection::vec(step(), 0..300)) {
            let mut heap = StableHeap::default();
            let mut model: Vec<Item> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(priority) => {
                        let item = (priority, number as u32);
                        push(&mut heap, item, false);
                        let at = model.partition_point(|other| other.0 <= priority);
                        model.insert(at, item);
                    }
                    Step::Pop => {
                        let expected = (!model.is_empty()).then(|| model.remove(0));
                        let height = (heap.len().max(1) as f64).log2().ceil() as usize;
                        let (item, asked) = pop(&mut heap);
                        prop_assert_eq!(item, expected);
                        prop_assert!(asked <= 2 * height + 1);
                    }
                    Step::PopAndReturn(count) => {
                        let taken: Vec<_> = (0..count).map_while(|_| pop(&mut heap).0).collect();
                        prop_assert_eq!(&taken, &model[..taken.len()]);
                        for item in taken.into_iter().rev() {
                            push(&mut heap, item, true);
                        }
                    }
                }
                prop_assert_eq!(heap.len(), model.len());
            }
            while let (Some(item), _) = pop(&mut heap) {
                prop_assert_eq!(item, model.remove(0));
            }
            prop_assert!(model.is_empty());
        }
    }
}
