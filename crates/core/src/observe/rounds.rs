//! When the watchdog looks at a loop: as rarely as it can without missing the moment at which a step begins to block.
//!
//! To be woken is nearly all that the watchdog costs (some 35 µs, most of them the kernel's). Whoever sleeps for a threshold at most
//! finds each step that lasts for one, before it has, and sleeps until that moment: ten times a second, with a threshold of 0.1 s,
//! whether the loop is busy or idle.
//!
//! What blocks a loop is better known if it was seen before, too: so there is a look when a step has run for half of the threshold, if
//! the loop has had steps on their way there of late. Of a loop that is not known for that it is worth no wake-ups of their own.

/// For how long each step of a loop is looked at when it has run for half of the threshold, after one was met that had run for a third
/// of it; in nanoseconds.
const WARY: u64 = 10_000_000_000;

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// The step that began then has run for so long that it is looked at closely.
    Look(u64),
    /// Nothing, until then.
    Until(u64),
}

/// What there is to do at `now` about a loop whose step `began` at that time (None: nothing runs). Until `wary` its steps may well be
/// long.
#[must_use]
pub fn round(began: Option<u64>, now: u64, threshold: u64, wary: &mut u64) -> Round {
    let Some(began) = began else {
        return Round::Until(now.saturating_add(threshold));
    };
    let ran = now.saturating_sub(began);
    if ran >= threshold / 3 {
        *wary = now.saturating_add(WARY);
    }
    if ran >= threshold / 2 {
        return Round::Look(began);
    }
    let after = if now < *wary {
        threshold / 2
    } else {
        threshold
    };
    Round::Until(began.saturating_add(after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const THRESHOLD: u64 = 100 * MS;

    /// The wake-ups of a watchdog over steps with so much idle time in front of them, and the times of its looks at each step, counted
    /// from when that began.
    fn watch(steps: &[(u64, u64)], first: u64) -> (u64, Vec<Vec<u64>>) {
        let mut looks = vec![Vec::new(); steps.len()];
        let (mut wary, mut wakes, mut now) = (0, 0, first);
        let mut ended = 0;
        for (&(idle, took), looks) in steps.iter().zip(&mut looks) {
            let began = ended + idle;
            ended = began + took;
            while now < ended {
                wakes += 1;
                now = match round((now >= began).then_some(began), now, THRESHOLD, &mut wary) {
                    Round::Until(until) => until.min(now + THRESHOLD),
                    Round::Look(_) => {
                        looks.push(now - began);
                        // As the watchdog does: at the threshold, and then every 50 ms.
                        match now - began < THRESHOLD {
                            true => began + THRESHOLD,
                            false => now + 50 * MS,
                        }
                    }
                };
            }
        }
        (wakes, looks)
    }

    proptest! {
        #[test]
        fn each_block_is_looked_at_when_it_has_become_one(
            steps in prop::collection::vec((0..250 * MS, 1..300 * MS), 1..60),
            first in 0..THRESHOLD,
        ) {
            let (_, looks) = watch(&steps, first);
            for (&(_, took), looks) in steps.iter().zip(&looks) {
                prop_assert_eq!(took > THRESHOLD, looks.contains(&THRESHOLD), "{} {:?}", took, looks);
                prop_assert!(looks.iter().all(|&at| at >= THRESHOLD / 2));
            }
        }
    }

    #[test]
    fn a_loop_that_does_not_block_wakes_it_ten_times_a_second() {
        for (idle, took) in [(0, MS / 10), (7 * MS, MS), (0, 20 * MS), (3_000 * MS, MS)] {
            let count = 60_000 * MS / (idle + took);
            let steps = vec![(idle, took); count as usize];
            let (wakes, looks) = watch(&steps, 0);
            assert!((450..=602).contains(&wakes), "{took}: {wakes} in a minute");
            assert!(looks.iter().all(Vec::is_empty));
        }
    }

    #[test]
    fn who_blocks_is_seen_earlier_the_next_time() {
        let steps = vec![(3 * MS, 130 * MS); 40];
        let (_, looks) = watch(&steps, 0);
        let early = |looks: &&Vec<u64>| looks.first() == Some(&(THRESHOLD / 2));
        assert!(looks.iter().filter(early).count() >= 38);
        // A minute later that is forgotten.
        let mut wary = 0;
        assert_eq!(
            round(Some(0), THRESHOLD, THRESHOLD, &mut wary),
            Round::Look(0)
        );
        let later = 60_000 * MS;
        let next = round(Some(later), later, THRESHOLD, &mut wary);
        assert_eq!(next, Round::Until(later + THRESHOLD));
    }
}
