//! Turns as the loop makes them: the ready ring, when a poll may be skipped, and how long one waits.

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use tideloop_core::ready::Ready;
use tideloop_core::timeout::{MAX_WAIT_NS, wait_ns};
use tideloop_core::turn::{MAX_SKIPPED, MAX_SKIPPED_NS, PollPolicy};

#[derive(Debug, Arbitrary)]
enum Op {
    Push(u8),
    /// A turn whose callbacks add so many each, after so many nanoseconds.
    Turn(u8, u16),
    /// The clock stands still, jumps, or goes back.
    Clock(u64),
    Wait(u64),
    Close,
}

pub fn check(bytes: &[u8]) {
    let mut ready: Ready<u32> = Ready::default();
    let mut model: VecDeque<u32> = VecDeque::new();
    let mut policy = PollPolicy::default();
    let (mut now, mut polled, mut skipped, mut made) = (0_u64, 0_u64, 0_u32, 0_u32);
    for op in super::operations(bytes) {
        match op {
            Op::Push(count) => {
                for _ in 0..count {
                    ready.push(made);
                    model.push_back(made);
                    made += 1;
                }
            }
            Op::Turn(adds, took) => {
                now = now.saturating_add(took.into());
                if !model.is_empty() && policy.skip(now) {
                    skipped += 1;
                    assert!(skipped <= MAX_SKIPPED);
                    assert!(now.saturating_sub(polled) < MAX_SKIPPED_NS);
                } else {
                    policy.polled(now);
                    (polled, skipped) = (now, 0);
                }
                let count = ready.begin_turn();
                assert_eq!(count, model.len());
                for _ in 0..count {
                    assert_eq!(ready.pop(), model.pop_front(), "oldest first");
                    // Half of them, so that the ring can run dry.
                    for _ in 0..adds % 2 * u8::from(made.is_multiple_of(2)) {
                        ready.push(made);
                        model.push_back(made);
                    }
                    made += 1;
                }
            }
            Op::Clock(to) => now = to,
            Op::Wait(wake) => {
                let wait = wait_ns(wake, now);
                assert_eq!(wait, wake.saturating_sub(now).min(MAX_WAIT_NS));
            }
            Op::Close => assert_eq!(ready.take_all(), Vec::from(std::mem::take(&mut model))),
        }
        assert_eq!(ready.len(), model.len());
        assert_eq!(ready.is_empty(), model.is_empty());
        assert!(ready.iter().eq(&model));
    }
}
