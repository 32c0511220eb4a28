//! How many datagrams to ask the system for at once.
//!
//! A call that takes many costs more than one that takes a single datagram, and saves calls only if many are
//! there. What came last says what will come: a full batch asks for a larger one, a single datagram for the
//! cheaper call. That one cannot tell whether more were there, so every so often two are asked for.

/// So many single ones are taken before two are asked for.
const SINGLES: u32 = 16;

/// What an endpoint expects.
#[derive(Debug)]
pub struct Batch {
    ask: usize,
    /// How many were taken one by one since two were asked for.
    alone: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self { ask: 2, alone: 0 }
    }
}

impl Batch {
    /// How many to ask for: at least 1 and at most `most`.
    pub fn ask(&self, most: usize) -> usize {
        self.ask.clamp(1, most.max(1))
    }

    /// So many have come where so many were asked for.
    pub fn found(&mut self, asked: usize, found: usize) {
        self.ask = match (asked, found) {
            (1, _) => {
                self.alone += 1;
                1 + usize::from(self.alone.is_multiple_of(SINGLES))
            }
            (asked, found) if found >= asked => asked.saturating_mul(4),
            (_, 0 | 1) => 1,
            (_, found) => found + 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, SINGLES};

    /// What is asked for when so many wait each time.
    fn asked(batch: &mut Batch, waiting: usize) -> usize {
        let ask = batch.ask(32);
        batch.found(ask, waiting.min(ask));
        ask
    }

    #[test]
    fn a_crowd_is_taken_in_large_batches() {
        let mut batch = Batch::default();
        let asks: Vec<_> = (0..5).map(|_| asked(&mut batch, 1000)).collect();
        assert_eq!(asks, [2, 8, 32, 32, 32]);
        assert_eq!(asked(&mut batch, 5), 32);
        assert_eq!(asked(&mut batch, 5), 6);
    }

    #[test]
    fn single_ones_are_taken_alone_but_for_a_look_now_and_then() {
        let mut batch = Batch::default();
        let asks: Vec<_> = (0..1000).map(|_| asked(&mut batch, 1)).collect();
        let looks = asks.iter().filter(|&&ask| ask == 2).count();
        assert!(asks.iter().all(|&ask| ask <= 2));
        assert_eq!(looks, 1000_usize.div_ceil(SINGLES as usize + 1));
    }

    #[test]
    fn a_crowd_after_single_ones_is_noticed() {
        let mut batch = Batch::default();
        for _ in 0..100 {
            assert!(asked(&mut batch, 1) <= 2);
        }
        let calls = (0..).take_while(|_| asked(&mut batch, 1000) < 32).count();
        assert!(calls <= SINGLES as usize + 2, "{calls}");
    }

    #[test]
    fn what_is_asked_for_is_within_bounds() {
        let mut batch = Batch::default();
        for found in [0, 1, 2, 7, usize::MAX] {
            batch.found(batch.ask(32), found);
            assert!((1..=32).contains(&batch.ask(32)));
            assert_eq!(batch.ask(0), 1);
        }
    }
}
