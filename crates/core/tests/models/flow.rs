//! Water marks against arithmetic that cannot overflow, and signals against asyncio's two rules.

use arbitrary::Arbitrary;
use tideloop_core::flow::{Flow, Signal};

#[derive(Debug, Arbitrary)]
enum Op {
    Limits(Option<i64>, Option<i64>),
    SmallLimits(Option<i8>, Option<i8>),
    Grown(usize),
    GrownLittle(u8),
    Shrunk(usize),
    ShrunkMuch(u8),
}

/// asyncio's `_FlowControlMixin`.
pub struct Marks {
    pub low: i128,
    pub high: i128,
    pub paused: bool,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            low: 16 * 1024,
            high: 64 * 1024,
            paused: false,
        }
    }
}

impl Marks {
    /// False if the marks contradict each other.
    pub fn set(&mut self, high: Option<i64>, low: Option<i64>) -> bool {
        let high = match (high, low) {
            (Some(high), _) => i128::from(high),
            // More than that can never be queued.
            (None, Some(low)) => (4 * i128::from(low)).min(i64::MAX.into()),
            (None, None) => 64 * 1024,
        };
        let low = low.map_or(high.div_euclid(4), i128::from);
        if low < 0 || high < low {
            return false;
        }
        (self.low, self.high) = (low, high);
        true
    }

    pub fn grown(&mut self, queued: usize) -> Signal {
        if queued as i128 <= self.high || self.paused {
            return Signal::Nothing;
        }
        self.paused = true;
        Signal::PauseWriting
    }

    pub fn shrunk(&mut self, queued: usize) -> Signal {
        if queued as i128 > self.low || !self.paused {
            return Signal::Nothing;
        }
        self.paused = false;
        Signal::ResumeWriting
    }
}

pub fn check(bytes: &[u8]) {
    let (mut flow, mut marks) = (Flow::default(), Marks::default());
    for op in super::operations(bytes) {
        match op {
            Op::Limits(high, low) => set(&mut flow, &mut marks, high, low),
            Op::SmallLimits(high, low) => {
                set(
                    &mut flow,
                    &mut marks,
                    high.map(i64::from),
                    low.map(i64::from),
                );
            }
            Op::Grown(queued) => assert_eq!(flow.grown(queued), marks.grown(queued)),
            Op::GrownLittle(queued) => {
                assert_eq!(flow.grown(queued.into()), marks.grown(queued.into()));
            }
            Op::Shrunk(queued) => assert_eq!(flow.shrunk(queued), marks.shrunk(queued)),
            Op::ShrunkMuch(queued) => {
                assert_eq!(flow.shrunk(queued.into()), marks.shrunk(queued.into()));
            }
        }
        assert_eq!(flow.is_paused(), marks.paused);
    }
}

fn set(flow: &mut Flow, marks: &mut Marks, high: Option<i64>, low: Option<i64>) {
    assert_eq!(flow.set_limits(high, low).is_ok(), marks.set(high, low));
    let (low, high) = flow.limits();
    assert_eq!((low as i128, high as i128), (marks.low, marks.high));
}
