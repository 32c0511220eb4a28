//! What a loop did of late: a ring of 16-byte events that one thread writes and any thread reads, without a lock.
//!
//! **Who writes.** The loop's thread alone ([`Ring::push`]). An event goes into the slot `head % size`, and then `head` grows
//! by one; it never goes back, so an event's number says in which slot it is and whether that has been used again since.
//! **Who reads.** Any thread, at any time ([`Ring::read`]): it copies all slots, and then looks at `head` again. A slot
//! whose event may have begun to be replaced by then is left out, and only such a slot can have been read half old, half new.
//!
//! **Why that suffices.** Say the reader has copied a word of event `n`. The writer has stored `head = n` before it
//! went on to write event `n`, with a release fence in between; the reader has an acquire fence between its
//! copies and its second look at `head`. Having seen the word it then sees `head >= n`. So with `h` as its second look every
//! word that it has copied is of an event not younger than `h`, and the slots that events up to `h` use are those
//! of the events up to `h - size`: what is younger than these is whole. On x86-64 the fences are no instructions.
//!
//! The slots are words, and atomic, so a read that is thrown away is no undefined behaviour either.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// What happens from an event's time on, until the next one; or at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A task takes a step. `id` says which task, `label` what of.
    Step = 1,
    /// A callback runs.
    Call,
    /// A descriptor's data are delivered.
    Delivery,
    /// The loop asks the selector, does its bookkeeping.
    Poll,
    /// The loop waits.
    Wait,
    /// The loop does not run.
    Rest,
    /// At this time: a timer fired, `id` nanoseconds too late.
    Timer,
    /// At this time: a step has ended that blocked the loop for `id` nanoseconds.
    Block,
}

const KINDS: [Kind; 8] = [
    Kind::Step,
    Kind::Call,
    Kind::Delivery,
    Kind::Poll,
    Kind::Wait,
    Kind::Rest,
    Kind::Timer,
    Kind::Block,
];

/// Bits of an `id`, the upper part of an event's second word.
pub const ID_BITS: u32 = 40;
const LABEL_BITS: u32 = 64 - ID_BITS;

/// Labels there can be.
pub const LABELS: u32 = 1 << LABEL_BITS;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// In nanoseconds, of which 56 bits are kept: two years since the clock's origin.
    pub at: u64,
    pub kind: Kind,
    /// Of which [`ID_BITS`] are kept.
    pub id: u64,
    /// Below [`LABELS`].
    pub label: u32,
}

impl Event {
    #[inline(always)]
    fn pack(self) -> [u64; 2] {
        [
            self.at << 8 | self.kind as u64,
            self.id << LABEL_BITS | u64::from(self.label),
        ]
    }

    fn unpack([first, second]: [u64; 2]) -> Option<Self> {
        let number = (first & 0xff) as usize;
        Some(Self {
            at: first >> 8,
            kind: *KINDS.get(number.checked_sub(1)?)?,
            id: second >> LABEL_BITS,
            label: (second & u64::from(LABELS - 1)) as u32,
        })
    }
}

/// The last events; see the module.
#[derive(Debug)]
pub struct Ring {
    slots: Box<[[AtomicU64; 2]]>,
    /// Events so far.
    head: AtomicU64,
}

impl Ring {
    /// For the last so many events, rounded up to a power of two.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            slots: std::iter::repeat_with(Default::default)
                .take(size.next_power_of_two())
                .collect(),
            head: AtomicU64::new(0),
        }
    }

    /// Adds an event. By the loop's thread only.
    #[inline(always)]
    pub fn push(&self, event: Event) {
        let number = self.head.load(Ordering::Relaxed);
        let [first, second] = event.pack();
        if let Some(slot) = self.slots.get(number as usize & (self.slots.len() - 1)) {
            // Whoever sees a word of this event sees at least its number in `head`.
            fence(Ordering::Release);
            slot[0].store(first, Ordering::Relaxed);
            slot[1].store(second, Ordering::Relaxed);
            self.head.store(number + 1, Ordering::Release);
        }
    }

    /// The events that are whole, oldest first.
    #[must_use]
    pub fn read(&self) -> Vec<Event> {
        let size = self.slots.len() as u64;
        let end = self.head.load(Ordering::Acquire);
        let begin = end.saturating_sub(size);
        let words: Vec<[u64; 2]> = (begin..end)
            .filter_map(|number| self.slots.get((number % size) as usize))
            .map(|slot| slot.each_ref().map(|word| word.load(Ordering::Relaxed)))
            .collect();
        fence(Ordering::Acquire);
        // The event with this number may be on its way, and so be in the slot of an older one.
        let head = self.head.load(Ordering::Relaxed);
        let torn = (head + 1).saturating_sub(size).saturating_sub(begin) as usize;
        words
            .into_iter()
            .skip(torn)
            .filter_map(Event::unpack)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn event(number: u64) -> Event {
        Event {
            at: number,
            kind: KINDS[number as usize % KINDS.len()],
            id: number,
            label: number as u32 % LABELS,
        }
    }

    #[test]
    fn the_last_events_are_there_as_they_were() {
        let ring = Ring::new(8);
        assert_eq!(ring.read(), []);
        for number in 0..5 {
            ring.push(event(number));
        }
        assert_eq!(ring.read(), (0..5).map(event).collect::<Vec<_>>());
        for number in 5..100 {
            ring.push(event(number));
        }
        // One is left out, since the next event would be in its slot.
        assert_eq!(ring.read(), (93..100).map(event).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_reader_gets_is_whole_and_without_gaps() {
        let (ring, over) = (Ring::new(64), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..2_000_000 {
                    ring.push(event(number));
                }
                over.store(true, Ordering::Relaxed);
            });
            let mut seen = 0;
            while !over.load(Ordering::Relaxed) {
                let events = ring.read();
                for (each, next) in events.iter().zip(events.iter().skip(1)) {
                    assert_eq!(*each, event(each.at));
                    assert_eq!(next.at, each.at + 1);
                }
                let last = events.last().map_or(seen, |last| last.at);
                assert!(last >= seen);
                seen = last;
            }
        });
        assert_eq!(ring.read().len(), 63);
    }
}
