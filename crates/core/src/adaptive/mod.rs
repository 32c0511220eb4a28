//! How much to allow at once, learnt from how long things take: a limit that follows what is behind it.
//!
//! An [`Adaptive`] is told when each operation began and ended and gives out a new limit now and then. It collects
//! operations in windows, keeps a *baseline*, the time an operation takes when nothing queues, and asks its
//! [`Algorithm`] what the limit should be. What all algorithms share is here, since their known failures in the
//! field come from these parts and not from their formulas:
//!
//! * **Noise.** A decision is made of the mean of a window of at least [`WINDOW_NS`] and some operations, less
//!   its standard error, and not of single operations (Envoy #9038: over-reaction to noise).
//! * **What began before.** A window counts operations that began under what is allowed now. Those that began under
//!   another limit waited in its queue (Envoy #11579: they poisoned the baseline, which ratcheted up).
//! * **Drift.** A mean over the past contains the queue that the limit itself has made, so a limit that is
//!   compared with it creeps up under overload (Uber's Cinnamon, figure 6; concurrency-limits' Gradient2). Every
//!   [`PROBE_EVERY`] windows one is run with [`PROBE`] of the limit, and the baseline is learnt from these. From other
//!   windows only if they are much faster: the fastest of many noisy means says little.
//! * **A wrong start.** Far above the capacity everything queues, a probe, too, and what is allowed is learnt about once per
//!   time that a queue takes: seconds. So as little as possible is asked of it. The first window changes nothing: its
//!   operations came before most of the queue, so their mean is the best baseline there is, and the next window, of
//!   operations that began under the same limit, already shows the queue. While windows cut the limit there is no probe
//!   (it would learn the queue as the baseline), up to [`CUTS`] of them, and what is several times too much is cut to a
//!   quarter at once. A probe shows that it was queued in that it is faster in proportion to its limit; then the limit becomes that
//!   of the probe, and another one follows, until it does not. This compares only with a window that was settled, whose
//!   operations found the queue as the limit makes it. As long as probes still move the baseline, the next one comes soon.
//! * **Drops that go on.** Those of operations that began under a limit that was just cut show that the cut was too small:
//!   the next ones are twice as large, up to half. In the same way a limit of 50 times the capacity is left in
//!   some windows, and drops now and then cost a tenth.
//! * **No recovery.** Operations that have become slower by themselves are no queue. Every larger cut is a probe, too: if they
//!   do not become faster for it, it is taken back, and they are the baseline. Else a baseline that no longer holds is
//!   replaced in two probes, whatever the minimum is (Envoy #10647, #38338).
//! * **Idleness.** A window in which the limit was not reached says nothing about it, so it does not grow in it.
//! * **What says nothing.** Cancelled operations are told as ignored, and change nothing.
//!
//! Sources: Netflix concurrency-limits (Vegas, Gradient2, AIMD), Brakmo and Peterson 1995 (TCP Vegas), Chiu and Jain
//! 1989 (AIMD), Cardwell et al. 2016 (BBR: probing for the baseline in the same way).

pub mod aimd;
pub mod gradient2;
pub mod vegas;

#[cfg(test)]
mod simulation;

use aimd::Aimd;
use gradient2::Gradient2;
use vegas::Vegas;

/// A window is at least so long.
pub const WINDOW_NS: i64 = 100_000_000;

/// A window has at least so many operations, or [`FEW_SAMPLES`] if the limit is small.
pub const WINDOW_SAMPLES: u64 = 20;

pub const FEW_SAMPLES: u64 = 10;

/// A window that is faster than so much of the baseline changes it, also if it is no probe.
const MUCH_FASTER: f64 = 0.7;

/// One window in so many is run with less than the limit.
pub const PROBE_EVERY: u32 = 10;

/// The part of the limit that such a window is run with.
pub const PROBE: f64 = 0.75;

/// A probe that takes less than this part of the window before it was queued as that was.
const STILL_QUEUED: f64 = 0.79;

/// Windows in a row that may cut the limit because of a queue before a probe is due all the same.
const CUTS: u32 = 8;

/// Windows until the next probe while the baseline is not sure.
const PROBE_SOON: u32 = 2;

/// A probe that changes the baseline by more than this ratio has shown that it is not sure.
const UNSURE: f64 = 1.5;

/// The most that drops take from a limit in one window.
const MOST_OFF: f64 = 0.5;

/// What a window of operations came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The mean duration of an operation, in nanoseconds.
    pub mean: f64,
    /// The standard error of this mean.
    pub error: f64,
    /// The mean duration when nothing queues, as far as it is known.
    pub baseline: f64,
    /// Whether an operation failed as an overloaded backend lets it.
    pub dropped: bool,
    /// How many windows before this one ended so, too, although each of them had its limit cut.
    pub again: u32,
    /// Whether the limit was reached.
    pub used: bool,
}

impl Summary {
    /// What is left of a limit after drops: `backoff` of it, and twice as much goes in each further window, up to half.
    fn backed_off(&self, limit: f64, backoff: f64) -> f64 {
        let part = (1.0 - backoff) * f64::from(1u32 << self.again.min(8));
        limit * (1.0 - part.min(MOST_OFF)).min(backoff)
    }
}

/// What the limit should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Algorithm {
    Gradient2(Gradient2),
    Vegas(Vegas),
    Aimd(Aimd),
}

impl Algorithm {
    /// The limit after a window.
    fn next(&self, window: &Summary, limit: f64) -> f64 {
        match self {
            Self::Gradient2(algorithm) => algorithm.next(window, limit),
            Self::Vegas(algorithm) => algorithm.next(window, limit),
            Self::Aimd(algorithm) => algorithm.next(window, limit),
        }
    }

    /// Whether it compares with the baseline, so that this has to be learnt.
    fn has_baseline(&self) -> bool {
        !matches!(self, Self::Aimd(_))
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should, and how long it took counts.
    Ok,
    /// It failed as under overload: refused, timed out.
    Drop,
    /// How long it took says nothing: cancelled, or failed for another reason.
    Ignore,
}

/// Why the limit was changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Start,
    /// Operations took about as long as without a queue, and the limit was reached.
    Grew,
    /// Operations queued.
    Queued,
    Dropped,
    /// Nothing: the limit was not reached, or was right.
    Kept,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The first window.
    Start,
    /// So many windows until the next probe.
    Normal(u32),
    Probe,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    began: i64,
    sum: f64,
    squares: f64,
    /// The sum of the times from the last change of what is allowed to the beginnings of the operations.
    later: f64,
    count: u64,
    dropped: bool,
    /// Whether one was dropped that had begun under what is allowed now.
    dropped_again: bool,
    peak: u64,
}

impl Window {
    fn new(began: i64) -> Self {
        Self {
            began,
            sum: 0.0,
            squares: 0.0,
            later: 0.0,
            count: 0,
            dropped: false,
            dropped_again: false,
            peak: 0,
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Whether its operations began, on the average, when the queue of what is allowed had become what it is.
    fn is_settled(&self) -> bool {
        self.later >= self.sum
    }

    /// The standard error of the mean.
    fn error(&self) -> f64 {
        let count = self.count as f64;
        let variance = (self.squares - self.sum * self.sum / count) / (count - 1.0);
        if variance > 0.0 {
            (variance / count).sqrt()
        } else {
            0.0
        }
    }
}

/// A cut because of a queue, and what was there before it.
#[derive(Debug, Clone, Copy)]
struct Cut {
    limit: f64,
    allowed: u64,
    mean: f64,
}

impl Cut {
    /// Whether operations are not faster for it: all of the time would fall in proportion if it were the queue's.
    fn was_in_vain(&self, allowed: u64, mean: f64) -> bool {
        mean > self.mean * (allowed as f64 / self.allowed as f64).sqrt()
    }
}

/// A limit that follows what is behind it.
#[derive(Debug)]
pub struct Adaptive {
    algorithm: Algorithm,
    min: f64,
    max: f64,
    limit: f64,
    /// What is allowed now; less than the limit in a probe.
    allowed: u64,
    phase: Phase,
    window: Window,
    baseline: Option<f64>,
    /// The mean of the last window that was no probe, if what was allowed had lasted for long enough.
    before: Option<f64>,
    /// When what is allowed was changed last. Operations that began before waited in another queue.
    since: i64,
    /// Windows in a row that have cut the limit because of a queue.
    cuts: u32,
    /// The last cut that took much.
    cut: Option<Cut>,
    /// Whether what is allowed became less when it was changed last: then its queue is what it is from the first operation on.
    sunk: bool,
    /// Whether the last probe was slower than the baseline, and nothing was learnt from it.
    doubted: bool,
    /// Windows in a row with drops.
    drops: u32,
    reason: Reason,
    windows: u64,
}

impl Adaptive {
    /// A limit that begins with `initial` and stays from `min` to `max`.
    pub fn new(algorithm: Algorithm, min: u64, max: u64, initial: u64, now: i64) -> Self {
        let limit = initial.clamp(min, max);
        Self {
            algorithm,
            min: min as f64,
            max: max as f64,
            limit: limit as f64,
            allowed: limit,
            phase: Phase::Start,
            window: Window::new(now),
            baseline: None,
            before: None,
            since: now,
            cuts: 0,
            cut: None,
            sunk: false,
            doubted: false,
            drops: 0,
            reason: Reason::Start,
            windows: 0,
        }
    }

    /// How many operations are allowed at once.
    pub fn allowed(&self) -> u64 {
        self.allowed
    }

    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// Nanoseconds that an operation takes when nothing queues, as far as it is known.
    pub fn baseline(&self) -> Option<f64> {
        self.baseline
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How many windows have ended.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Whether a probe is under way.
    pub fn is_probing(&self) -> bool {
        self.phase == Phase::Probe
    }

    /// Takes note of an operation that has ended; `in_flight` is how many there were, it included. Whether what
    /// is allowed has changed.
    pub fn ended(&mut self, began: i64, now: i64, in_flight: u64, outcome: Outcome) -> bool {
        if outcome == Outcome::Ignore {
            return false;
        }
        // A clock that was set back: nothing in this window means anything.
        if now < self.window.began {
            self.window = Window::new(now);
            self.since = now;
        }
        self.window.peak = self.window.peak.max(in_flight);
        let counts = began >= self.since;
        if outcome == Outcome::Drop {
            self.window.dropped = true;
            self.window.dropped_again |= counts;
        } else if counts {
            let duration = (now - began) as f64;
            self.window.sum += duration;
            self.window.squares += duration * duration;
            self.window.later += (began - self.since) as f64;
            self.window.count += 1;
        }
        let enough = (2 * self.allowed).clamp(FEW_SAMPLES, WINDOW_SAMPLES);
        let long = now - self.window.began >= WINDOW_NS;
        // Drops are acted upon without waiting for operations that succeed.
        if !long || (self.window.count < enough && !self.window.dropped) {
            return false;
        }
        self.end_window(now)
    }

    fn end_window(&mut self, now: i64) -> bool {
        let window = std::mem::replace(&mut self.window, Window::new(now));
        self.windows += 1;
        match self.phase {
            Phase::Start => self.start(&window),
            Phase::Probe => self.end_probe(&window),
            Phase::Normal(left) => self.end_normal(&window, left),
        }
        self.allow(now)
    }

    /// Nothing is known but this, and its operations have met the shortest queue so far.
    fn start(&mut self, window: &Window) {
        let learns = self.algorithm.has_baseline();
        if learns {
            self.baseline = window.mean();
        }
        if window.dropped || !learns {
            self.decide(window);
        }
        self.phase = Phase::Normal(0);
    }

    fn end_normal(&mut self, window: &Window, left: u32) {
        let mean = window.mean();
        if let Some(mean) = mean
            && self
                .baseline
                .is_some_and(|baseline| mean < MUCH_FASTER * baseline)
        {
            self.learn(mean);
        }
        if let (Some(cut), Some(mean)) = (self.cut.take(), mean)
            && !window.dropped
            && mean - window.error() > self.baseline.unwrap_or(0.0)
            && cut.was_in_vain(self.allowed, mean - window.error())
        {
            self.baseline = Some(mean);
            self.limit = cut.limit;
            self.reason = Reason::Kept;
            self.before = None;
            self.phase = Phase::Normal(PROBE_SOON);
            return;
        }
        let limit = self.limit;
        self.before = mean.filter(|_| self.sunk || window.is_settled());
        self.decide(window);
        let left = if self.reason == Reason::Queued {
            self.cuts += 1;
            self.cut = self
                .before
                .filter(|_| self.limit <= PROBE * limit && self.algorithm.has_baseline())
                .map(|mean| Cut {
                    limit,
                    allowed: self.allowed,
                    mean,
                });
            // A baseline that is learnt now is learnt in a queue; but it may be wrong, too.
            if self.cuts > CUTS { 0 } else { left.max(1) }
        } else {
            self.cuts = 0;
            left
        };
        self.phase = match left.checked_sub(1) {
            Some(left) => Phase::Normal(left),
            None if self.algorithm.has_baseline() => Phase::Probe,
            None => Phase::Normal(PROBE_EVERY),
        };
    }

    fn end_probe(&mut self, window: &Window) {
        if window.dropped {
            // What is refused says so in a probe as well.
            self.cuts = 0;
            self.decide(window);
            self.phase = Phase::Normal(PROBE_SOON);
            return;
        }
        let queued = |mean: f64, before: f64| {
            window.peak >= self.allowed && mean + window.error() < STILL_QUEUED * before
        };
        let forced = std::mem::take(&mut self.cuts) > CUTS;
        match (window.mean(), self.before) {
            (Some(mean), Some(before)) if queued(mean, before) && self.allowed > 1 => {
                self.limit = (self.limit * PROBE).max(self.min);
                self.reason = Reason::Queued;
                self.baseline = Some(mean);
                self.before = Some(mean);
            }
            (Some(mean), before) => {
                let was = self.baseline.unwrap_or(mean);
                // Slower, and nothing to compare it with: that may be a queue. Not twice, and not after so many cuts.
                if before.is_some() || mean < was || forced || self.doubted {
                    self.learn(mean);
                    self.doubted = false;
                } else {
                    self.doubted = true;
                }
                let sure = before.is_some() && mean < UNSURE * was && was < UNSURE * mean;
                self.phase = Phase::Normal(if sure { PROBE_EVERY } else { PROBE_SOON });
            }
            (None, _) => self.phase = Phase::Normal(PROBE_SOON),
        }
    }

    /// The mean of a window without a queue, as far as one knows.
    fn learn(&mut self, mean: f64) {
        self.baseline = Some(match self.baseline {
            Some(baseline) => (baseline + mean) / 2.0,
            None => mean,
        });
    }

    fn decide(&mut self, window: &Window) {
        // Without operations that count there were only drops; without a baseline this window is it.
        let mean = window.mean().or(self.baseline).unwrap_or(0.0);
        let summary = Summary {
            mean,
            error: window.error(),
            baseline: self.baseline.unwrap_or(mean),
            dropped: window.dropped,
            again: if window.dropped_again { self.drops } else { 0 },
            used: window.peak as f64 >= 0.9 * self.allowed as f64,
        };
        self.drops = match window.dropped {
            true => self.drops + u32::from(window.dropped_again),
            false => 0,
        };
        let before = self.limit;
        let wanted = self.algorithm.next(&summary, before);
        // Not reached, it may be too low or not: nobody knows. Too high it may be all the same.
        let wanted = if summary.used {
            wanted
        } else {
            wanted.min(before)
        };
        self.limit = wanted.clamp(self.min, self.max);
        self.reason = if window.dropped {
            Reason::Dropped
        } else if self.limit > before {
            Reason::Grew
        } else if self.limit < before {
            Reason::Queued
        } else {
            Reason::Kept
        };
    }

    fn allow(&mut self, now: i64) -> bool {
        let part = if self.phase == Phase::Probe {
            PROBE
        } else {
            1.0
        };
        let before = self.allowed;
        self.allowed = (self.limit * part).floor().max(self.min.min(1.0)).max(1.0) as u64;
        if before == self.allowed {
            return false;
        }
        self.since = now;
        self.sunk = self.allowed < before;
        true
    }
}
