//! Write flow control: when a protocol is told to pause and to go on.
//!
//! A protocol that writes faster than the peer reads is told `pause_writing` once more than the high
//! mark is queued, and `resume_writing` once no more than the low mark is. Each is said exactly once
//! per crossing.

use std::fmt;

/// asyncio's default high-water mark, bytes.
const DEFAULT_HIGH: usize = 64 * 1024;

/// High- and low-water marks, and on which side of them the protocol was last told to be.
#[derive(Debug, Clone)]
pub struct Flow {
    high: usize,
    low: usize,
    paused: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            high: DEFAULT_HIGH,
            low: DEFAULT_HIGH / 4,
            paused: false,
        }
    }
}

/// What the protocol has to be told, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Signal {
    Nothing,
    PauseWriting,
    ResumeWriting,
}

/// Marks that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadLimits {
    pub high: i64,
    pub low: i64,
}

impl fmt::Display for BadLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { high, low } = self;
        write!(f, "high ({high}) must be >= low ({low}) must be >= 0")
    }
}

impl Flow {
    /// Sets the marks with asyncio's defaults: a missing low is a quarter of high, a missing high
    /// four times low, and 64 KiB where both are missing.
    pub fn set_limits(&mut self, high: Option<i64>, low: Option<i64>) -> Result<(), BadLimits> {
        let high = match (high, low) {
            (Some(high), _) => high,
            (None, Some(low)) => low.saturating_mul(4),
            (None, None) => DEFAULT_HIGH as i64,
        };
        let low = low.unwrap_or(high.div_euclid(4));
        if !(high >= low && low >= 0) {
            return Err(BadLimits { high, low });
        }
        self.high = high as usize;
        self.low = low as usize;
        Ok(())
    }

    /// (low, high), bytes.
    pub fn limits(&self) -> (usize, usize) {
        (self.low, self.high)
    }

    /// Whether the protocol was last told to pause.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What to tell the protocol now that `queued` bytes wait after a write.
    pub fn grown(&mut self, queued: usize) -> Signal {
        if queued > self.high && !self.paused {
            self.paused = true;
            return Signal::PauseWriting;
        }
        Signal::Nothing
    }

    /// What to tell the protocol now that `queued` bytes are left after a send.
    pub fn shrunk(&mut self, queued: usize) -> Signal {
        if self.paused && queued <= self.low {
            self.paused = false;
            return Signal::ResumeWriting;
        }
        Signal::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_default_as_asyncio_does() {
        let mut flow = Flow::default();
        assert_eq!(flow.limits(), (16 * 1024, 64 * 1024));
        for (high, low, expected) in [
            (Some(1024), None, (256, 1024)),
            (None, Some(100), (100, 400)),
            (None, None, (16 * 1024, 64 * 1024)),
            (Some(0), None, (0, 0)),
            (Some(7), Some(7), (7, 7)),
        ] {
            flow.set_limits(high, low).unwrap();
            assert_eq!(flow.limits(), expected);
        }
    }

    #[test]
    fn contradictions_are_named_and_change_nothing() {
        let mut flow = Flow::default();
        let error = flow.set_limits(Some(5), Some(10)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "high (5) must be >= low (10) must be >= 0"
        );
        assert!(flow.set_limits(Some(-1), None).is_err());
        assert!(flow.set_limits(None, Some(-1)).is_err());
        assert_eq!(flow.limits(), (16 * 1024, 64 * 1024));
    }

    #[test]
    fn each_crossing_is_said_once() {
        let mut flow = Flow::default();
        flow.set_limits(Some(10), Some(5)).unwrap();
        assert_eq!(flow.grown(10), Signal::Nothing, "at the mark is not above");
        assert_eq!(flow.grown(11), Signal::PauseWriting);
        assert_eq!(flow.grown(12), Signal::Nothing);
        assert_eq!(flow.shrunk(6), Signal::Nothing);
        assert_eq!(flow.shrunk(5), Signal::ResumeWriting);
        assert_eq!(flow.shrunk(0), Signal::Nothing);
    }
}
