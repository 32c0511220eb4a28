//! Timers against a list that is searched from end to end, when the loop has to be awake for them, and
//! deadlines against the seconds they stand for.

use std::collections::HashSet;

use arbitrary::Arbitrary;
use tideloop_core::timeout::Slack;
use tideloop_core::timers::{Timers, deadline_ns};

#[derive(Debug, Arbitrary)]
enum Op {
    /// A timer in so many nanoseconds.
    Soon(u8),
    /// A timer in so many microseconds.
    Later(u16),
    At(u64),
    /// Timers with one delay, as most programs make them.
    Many(u8),
    Cancel(u16),
    /// The newest is the one that is cancelled most often.
    CancelNewest(u8),
    Advance(u8),
    AdvanceMicros(u16),
    Jump(u64),
    /// Sleeps as the loop does.
    Sleep,
    SkipStale,
    Sweep,
    TakeAll,
    Seconds(f64),
}

#[derive(Default)]
struct Model {
    now: u64,
    made: usize,
    /// Those that are to fire.
    live: Vec<Timer>,
    cancelled: HashSet<usize>,
    /// Cancelled ones that the machine still holds.
    stale: HashSet<usize>,
}

#[derive(Clone, Copy)]
struct Timer {
    deadline: u64,
    number: usize,
    slack: Slack,
}

impl Timer {
    fn wake(&self) -> u64 {
        self.slack.wake(self.deadline)
    }
}

pub fn check(bytes: &[u8]) {
    let (mut timers, mut model) = (Timers::default(), Model::default());
    for op in super::operations(bytes) {
        match op {
            Op::Soon(delay) => insert(&mut timers, &mut model, delay.into()),
            Op::Later(delay) => insert(&mut timers, &mut model, u64::from(delay) * 1_000),
            Op::At(deadline) => {
                let delay = deadline.saturating_sub(model.now);
                insert(&mut timers, &mut model, delay);
            }
            Op::Many(count) => {
                for _ in 0..count {
                    insert(&mut timers, &mut model, 100);
                }
            }
            Op::Cancel(number) => cancel(&mut timers, &mut model, number.into()),
            Op::CancelNewest(count) => {
                for number in (0..model.made).rev().take(count.into()) {
                    cancel(&mut timers, &mut model, number);
                }
            }
            Op::Advance(by) => {
                model.now = model.now.saturating_add(by.into());
                fire(&mut timers, &mut model);
            }
            Op::AdvanceMicros(by) => {
                model.now = model.now.saturating_add(u64::from(by) * 1_000);
                fire(&mut timers, &mut model);
            }
            Op::Sleep => {
                if let Some(wake) = timers.next_wake() {
                    model.now = model.now.max(wake);
                    fire(&mut timers, &mut model);
                }
            }
            Op::Jump(to) => {
                model.now = model.now.max(to);
                fire(&mut timers, &mut model);
            }
            Op::SkipStale => {
                while let Some(number) = timers.pop_stale(|number| model.cancelled.contains(number))
                {
                    assert!(model.stale.remove(&number));
                }
                // Whoever the loop wakes for now is to fire.
                assert_eq!(timers.next_wake(), model.live.iter().map(Timer::wake).min());
            }
            Op::Sweep => sweep(&mut timers, &mut model),
            Op::TakeAll => {
                let mut taken = timers.take_all();
                let mut expected: Vec<usize> =
                    model.live.drain(..).map(|timer| timer.number).collect();
                expected.extend(model.stale.drain());
                taken.sort_unstable();
                expected.sort_unstable();
                assert_eq!(taken, expected);
            }
            Op::Seconds(seconds) => deadlines(seconds),
        }
        assert_eq!(timers.len(), model.live.len() + model.stale.len());
        assert_eq!(timers.is_empty(), timers.iter().next().is_none());
        // Nobody is overslept.
        let wake = timers.next_wake().unwrap_or(u64::MAX);
        assert!(model.live.iter().all(|timer| wake <= timer.wake()));
    }
}

fn insert(timers: &mut Timers<usize>, model: &mut Model, delay: u64) {
    let deadline = model.now.saturating_add(delay);
    let slack = Slack::of(delay);
    timers.insert(deadline, slack, model.made);
    model.live.push(Timer {
        deadline,
        number: model.made,
        slack,
    });
    model.made += 1;
}

fn cancel(timers: &mut Timers<usize>, model: &mut Model, number: usize) {
    let Some(at) = model.live.iter().position(|timer| timer.number == number) else {
        return;
    };
    model.live.remove(at);
    model.cancelled.insert(number);
    model.stale.insert(number);
    // As the loop does: at once if it is among the newest, or else when sweeping is worth it.
    if let Some(number) = timers.pop_newest_stale(|number| model.cancelled.contains(number)) {
        assert!(model.stale.remove(&number));
        return;
    }
    if timers.note_cancelled() {
        sweep(timers, model);
    }
    // Cancelled timers do not outnumber the others by much: memory follows what is alive.
    assert!(model.stale.len() <= 64.max(model.live.len()) + 1);
}

fn sweep(timers: &mut Timers<usize>, model: &mut Model) {
    let mut swept = timers.sweep(|number| model.cancelled.contains(number));
    let mut expected: Vec<usize> = model.stale.drain().collect();
    swept.sort_unstable();
    expected.sort_unstable();
    assert_eq!(swept, expected);
}

fn fire(timers: &mut Timers<usize>, model: &mut Model) {
    let mut fired = Vec::new();
    while let Some((_, number)) = timers.pop_due(model.now) {
        if model.stale.remove(&number) {
            timers.forget_cancelled();
        } else {
            fired.push(number);
        }
    }
    model
        .live
        .sort_unstable_by_key(|timer| (timer.deadline, timer.number));
    let due = model
        .live
        .partition_point(|timer| timer.deadline <= model.now);
    let expected: Vec<usize> = model.live.drain(..due).map(|timer| timer.number).collect();
    assert_eq!(fired, expected);
}

/// A deadline in nanoseconds is never before its seconds, as the loop's clock tells them.
fn deadlines(seconds: f64) {
    let deadline = deadline_ns(seconds);
    if seconds.is_nan() || seconds <= 0.0 {
        assert_eq!(deadline, 0);
    } else if deadline == u64::MAX {
        assert!(seconds * 1e9 >= u64::MAX as f64);
    } else {
        let told = deadline as f64 / 1e9;
        assert!(told >= seconds, "{seconds} is told as {told}");
        // Late by a nanosecond, and by what a float of this size cannot tell.
        let late = told - seconds;
        assert!(
            late <= 1.000_001e-9 + 4.0 * f64::EPSILON * seconds,
            "{late} late at {seconds}"
        );
    }
}
