//! The last blocks, for who asks from outside, the one that lasts included.
//!
//! A step that has ended was told of by its loop (the `watch` module) and is kept here with its names. Of one that lasts the
//! watchdog knows its stacks and its cause so far.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tideloop_core::observe::{Cause, Frame};
use tideloop_sys::clock;

use super::watchdog::{self, Block};
use super::who::Described;
use super::{Observed, dumps};

/// Blocks kept.
const KEPT: usize = 64;

/// A step that blocks its loop, or has.
pub struct Told {
    /// Its number among all blocks, by when they were seen first.
    pub id: u64,
    /// When it began, in seconds since 1970.
    pub at: f64,
    pub of_loop: u64,
    /// So far, in nanoseconds.
    pub took: u64,
    pub cause: Cause,
    pub ended: bool,
    /// Empty while it lasts.
    pub who: Described,
    pub stacks: Vec<Vec<Frame>>,
    /// How long it had lasted when the first of them was there, in nanoseconds.
    pub captured: Option<u64>,
}

#[derive(Default)]
struct Ended {
    last: VecDeque<Arc<Told>>,
    /// How many there were in all.
    count: u64,
}

static ENDED: Mutex<Ended> = Mutex::new(Ended {
    last: VecDeque::new(),
    count: 0,
});
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The number of the next block.
pub fn number() -> u64 {
    NUMBER.fetch_add(1, Relaxed) + 1
}

/// When what took so long until now has begun, in seconds since 1970.
fn began(took: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64()) - took as f64 / 1e9
}

/// A step has ended that has blocked its loop.
pub fn keep(observed: &Observed, took: u64, who: Described, block: Block) {
    let cause = block.cause(took);
    observed.known.was_blocked(cause, took);
    let id = block.number.unwrap_or_else(number);
    dumps::of_block(id);
    let told = Arc::new(Told {
        id,
        at: began(took),
        of_loop: observed.known.id,
        took,
        cause,
        ended: true,
        who,
        stacks: block.stacks,
        captured: block.captured,
    });
    let mut ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
    ended.count += 1;
    ended.last.push_back(told);
    while ended.last.len() > KEPT {
        ended.last.pop_front();
    }
}

/// What has ended after so many had, at most [`KEPT`], the oldest first; and how many have by now.
pub fn ended_after(seen: u64) -> (Vec<Arc<Told>>, u64) {
    let ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
    let new = usize::try_from(ended.count.saturating_sub(seen)).unwrap_or(usize::MAX);
    let skipped = ended.last.len().saturating_sub(new);
    let blocks = ended.last.iter().skip(skipped).cloned().collect();
    (blocks, ended.count)
}

/// The blocks that last.
pub fn lasting() -> Vec<Told> {
    let now = clock::monotonic_ns();
    let seen = watchdog::lasting();
    let blocks = seen.into_iter().filter_map(|(observed, block)| {
        let took = now.saturating_sub(block.began);
        Some(Told {
            id: block.number?,
            at: began(took),
            of_loop: observed.known.id,
            took,
            cause: block.cause(took),
            ended: false,
            who: Described::default(),
            stacks: block.stacks,
            captured: block.captured,
        })
    });
    blocks.collect()
}
