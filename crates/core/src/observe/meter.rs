//! The writer of an [`Instrument`]: it decides which steps are timed, and books the time between two reads.

use super::arrivals::Arrivals;
use super::instrument::Instrument;

/// Fewest very short steps that are timed together, followed by one that is timed on its own; up to 82 more by chance,
/// so that tasks which take turns are not always met at the same one.
const GAP: u32 = 64;

/// Fewer steps are timed together if they are not so short, so that they take about so long, in nanoseconds, and at
/// most half of what makes a step long.
const SPAN: u64 = 48_000;

/// As long as that are deliveries at most whose end is found by a read, of a loop whose steps of the ring are each timed.
const SPAN_OUTSIDE: u64 = 96_000;

/// Steps that have to be short on average before most are no longer timed.
const WINDOW: u32 = 32;

/// Short, in nanoseconds: steps of the ring, among which the delays of others are looked up, and deliveries to protocols,
/// for which nobody waits there.
const SHORT: u64 = 2_000;
const SHORT_OUTSIDE: u64 = 12_000;

/// From here on a step is reported on its own, in nanoseconds.
const LONG: u64 = 200_000;

/// Steps that are timed one by one after a long one that could not be told from its neighbours: one for each
/// microsecond that it took, up to so many, of those that the run may still spend.
const CAREFUL: u32 = 4_096;

/// One of so many steps, over a longer time, may be timed with care in vain. On a busy machine it is mostly another
/// process that has made a step long, and nothing is found; what has found a long step is not counted.
const IN_VAIN: u32 = 32;

/// What may be saved up for that, in parts of a step so timed.
const CREDIT: u32 = 2 * CAREFUL * IN_VAIN;

/// Gaps in a row whose steps were not short, after which each step is timed again.
const STRIKES: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Each,
    Gap,
    Sample,
}

/// Deliveries to protocols of a loop whose steps of the ring are each timed: where they are short they need not be.
#[derive(Debug, Default)]
struct Deliveries {
    /// Whether they are.
    are_short: bool,
    /// Those of the window, and what they took.
    window: (u32, u64),
    strikes: u32,
}

/// All that a step or a delivery needs that is not timed, in one line of the processor's cache: what they do leaves little of it.
#[derive(Debug)]
#[repr(align(64))]
struct Next {
    pace: Pace,
    /// Steps until the clock is read; never 0 between steps.
    left: u32,
    /// The same when it was read last.
    open: u32,
    /// Deliveries to protocols since the last read: steps that were not in the ring.
    outside: u32,
    /// Of a loop whose steps of the ring are each timed: so many more deliveries go together; the one behind them is timed on its
    /// own. 0: the next one is.
    ahead: u32,
    /// Of these, since the last read, and how many there are at most.
    loose: u32,
    span: u32,
}

/// What a read of the clock has told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub enum Timed {
    /// The step that has ended took so many nanoseconds.
    Step(u64),
    /// So many steps took so long, of which one was long.
    Among(u64, u32),
    /// Nothing to speak of.
    #[default]
    Short,
}

/// One run's writer. It is told of each step ([`Meter::tick`]), of each read of the clock, and of polls and waits.
#[derive(Debug)]
pub struct Meter {
    next: Next,
    on: bool,
    /// The last read.
    last: u64,
    /// Entries that have left the ready ring, but for those since the last read.
    left_ring: u64,
    arrivals: Arrivals,
    deliveries: Deliveries,
    /// Steps of the window, and what they took.
    window: (u32, u64),
    careful: u32,
    /// What may yet be timed with care, and how many steps were allowed when that has begun last.
    credit: u32,
    granted: u32,
    /// Whether a step of the window, or of the gap and its sample, was in the ring.
    ringed: bool,
    /// What a step of the last gap took.
    typical: u64,
    /// Steps of the gap that the histograms have not seen: the sample will stand for them.
    owed: u64,
    /// The same of those that were in the ring, whose delays a sample from the ring will stand for.
    owed_delays: u64,
    chance: u64,
    strikes: u32,
}

impl Meter {
    /// A meter that reads the clock, or one that never does.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self {
            next: Next {
                pace: Pace::Each,
                left: 1,
                open: 1,
                outside: 0,
                ahead: 0,
                loose: 0,
                span: 0,
            },
            on,
            last: 0,
            left_ring: 0,
            arrivals: Arrivals::default(),
            deliveries: Deliveries::default(),
            window: (0, 0),
            careful: 0,
            credit: CREDIT,
            granted: 0,
            ringed: false,
            typical: 0,
            owed: 0,
            owed_delays: 0,
            chance: 1,
            strikes: 0,
        }
    }

    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// A step of the ready ring begins: whether the clock has to be read behind it, for [`Meter::read`]. Only of a meter
    /// that is on.
    #[inline(always)]
    #[must_use]
    pub fn begins(&mut self) -> bool {
        self.next.left = self.next.left.wrapping_sub(1);
        self.next.left == 0
    }

    /// Of a step that [has begun](Meter::begins): what that has said.
    #[inline(always)]
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.next.left == 0
    }

    /// What was found for one descriptor was delivered, to a protocol (`called`) or the ring: whether the clock has to be
    /// read, for [`Meter::delivered`].
    #[inline(always)]
    #[must_use]
    pub fn delivers(&mut self, called: bool) -> bool {
        if self.next.pace == Pace::Each {
            let next = &mut self.next;
            if !called || next.ahead == 0 {
                return true;
            }
            next.loose += 1;
            next.ahead -= 1;
            return next.ahead == 0 || next.loose >= next.span;
        }
        if called {
            self.next.outside += 1;
            return self.begins();
        }
        false
    }

    /// All that a poll has found was delivered: whether the clock has to be read, for [`Meter::delivered`], since what was
    /// delivered last was not timed and what comes next will be.
    #[inline(always)]
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.next.loose != 0
    }

    /// The end of the last step, if that was timed on its own: as good as the time.
    #[inline]
    #[must_use]
    pub fn fresh(&self) -> Option<u64> {
        (self.on && self.next.pace == Pace::Each && self.last != 0).then_some(self.last)
    }

    /// The last read, if the clock is read at all.
    #[inline]
    #[must_use]
    pub fn last_read(&self) -> Option<u64> {
        self.on.then_some(self.last)
    }

    /// The clock shows `now` behind a step of the ring, in which `waiting` entries are left.
    pub fn read(&mut self, shared: &Instrument, now: u64, waiting: usize) -> Timed {
        let timed = self.book(shared, now, true);
        self.arrivals.mark(self.left_ring + waiting as u64, now);
        timed
    }

    /// Books what was timed until `now`; its last step was of the ring or a delivery.
    fn book(&mut self, shared: &Instrument, now: u64, of_ring: bool) -> Timed {
        let (began, took) = self.advance(shared, now);
        match self.next.pace {
            Pace::Each => self.each(shared, began, took, of_ring),
            Pace::Gap => self.gap(shared, took),
            Pace::Sample => self.sample(shared, began, took, of_ring),
        }
    }

    #[inline]
    fn advance(&mut self, shared: &Instrument, now: u64) -> (u64, u64) {
        let began = std::mem::replace(&mut self.last, now);
        shared.runs_since(now);
        (began, now.saturating_sub(began))
    }

    /// Books how long the entry that has begun to run at `began` had waited.
    #[inline]
    fn delay(&mut self, shared: &Instrument, began: u64, weight: u64) {
        let came = self.arrivals.leaves(self.left_ring).unwrap_or(began);
        shared.ready_delays.add(began.saturating_sub(came), weight);
    }

    #[inline]
    fn each(&mut self, shared: &Instrument, began: u64, took: u64, of_ring: bool) -> Timed {
        shared.add_steps(1, took);
        self.next.left = 1;
        self.careful = self.careful.saturating_sub(1);
        if of_ring {
            shared.steps.add(took, 1);
            self.delay(shared, began, 1);
            self.left_ring += 1;
            self.ringed = true;
        } else {
            self.stand(shared, took);
            self.deliver_together(took);
        }
        self.window = (self.window.0 + 1, self.window.1.saturating_add(took));
        if self.window.0 == WINDOW {
            if self.window.1 < self.limit() * u64::from(WINDOW) && self.careful == 0 {
                self.typical = self.window.1 / u64::from(WINDOW);
                self.begin_gap();
            }
            self.window = (0, 0);
        }
        if took >= LONG && self.careful > 0 {
            // It was worth while, and goes on.
            self.careful = self.careful.max(Self::care(took));
            let granted = std::mem::take(&mut self.granted);
            self.earn(granted * IN_VAIN);
        }
        Self::told(took)
    }

    /// Counts a step for those that were timed together before it, unless it is a long one.
    fn stand(&mut self, shared: &Instrument, took: u64) {
        if took < LONG {
            shared.steps.add(took, 1 + std::mem::take(&mut self.owed));
        } else {
            shared.steps.add(took, 1);
            self.settle(shared);
        }
    }

    /// A delivery that was timed on its own took so long: how many of the next ones go together.
    fn deliver_together(&mut self, took: u64) {
        let deliveries = &mut self.deliveries;
        let typical = if deliveries.are_short {
            self.typical
        } else {
            let (count, total) = deliveries.window;
            deliveries.window = (count + 1, total.saturating_add(took));
            if deliveries.window.0 < WINDOW {
                return;
            }
            deliveries.window.1 / u64::from(WINDOW)
        };
        deliveries.window = (0, 0);
        deliveries.strikes = match typical < SHORT_OUTSIDE {
            true => 0,
            false => deliveries.strikes + 1,
        };
        let strikes = if deliveries.are_short { STRIKES } else { 1 };
        deliveries.are_short = deliveries.strikes < strikes && self.careful == 0;
        if deliveries.are_short {
            self.typical = typical;
            // Until a group is closed the watchdog takes it for one step.
            self.next.span = Self::fewest(SPAN_OUTSIDE, typical).min(16);
            self.next.ahead = self.draw(GAP);
        }
    }

    /// Books deliveries that were timed together.
    fn close(&mut self, shared: &Instrument, now: u64) -> Timed {
        let (_, took) = self.advance(shared, now);
        let count = std::mem::take(&mut self.next.loose);
        let timed = self.together(shared, took, count);
        if self.typical >= SHORT_OUTSIDE {
            // Not what it was: the next one is timed, so that this is found out.
            self.next.ahead = 0;
        }
        timed
    }

    /// Steps to be timed with care after one that took so long.
    fn care(took: u64) -> u32 {
        (took / 1_000).min(CAREFUL.into()) as u32
    }

    #[inline]
    fn earn(&mut self, credit: u32) {
        self.credit = (self.credit + credit).min(CREDIT);
    }

    /// What is short, of steps some of which were in the ring.
    #[inline]
    fn limit(&mut self) -> u64 {
        match std::mem::take(&mut self.ringed) {
            true => SHORT,
            false => SHORT_OUTSIDE,
        }
    }

    /// Books what was timed together, all of a gap or its part before a poll, and says how to go on.
    fn gap(&mut self, shared: &Instrument, took: u64) -> Timed {
        let count = self.next.open - self.next.left;
        if count == 0 {
            shared.add_internal(took);
            return Timed::Short;
        }
        let of_ring = u64::from(count - std::mem::take(&mut self.next.outside));
        self.left_ring += of_ring;
        self.owed_delays += of_ring;
        self.ringed |= of_ring != 0;
        self.next.open = self.next.left;
        let timed = self.together(shared, took, count);
        if timed == Timed::Short && self.next.left == 0 {
            self.next.pace = Pace::Sample;
            self.set(1);
        }
        timed
    }

    /// Books so many steps that were timed together.
    fn together(&mut self, shared: &Instrument, took: u64, count: u32) -> Timed {
        let others = u64::from(count);
        self.earn(count);
        shared.add_steps(others, took);
        if took < LONG {
            self.owed += others;
            self.typical = took / others;
            return Timed::Short;
        }
        shared.steps.add(took, 1);
        self.owed += others - 1;
        self.settle(shared);
        // All or nothing: a bit of care each time would never find what comes in longer intervals.
        let wanted = Self::care(took);
        self.granted = match self.credit.checked_sub(wanted * IN_VAIN) {
            Some(credit) => {
                self.credit = credit;
                wanted
            }
            None => 0,
        };
        self.careful = self.granted;
        self.at_each_step();
        Timed::Among(took, count)
    }

    /// Books a step that stands for those of the gap before it, unless it is a long one.
    fn sample(&mut self, shared: &Instrument, began: u64, took: u64, of_ring: bool) -> Timed {
        shared.add_steps(1, took);
        self.next.outside = 0;
        if of_ring {
            let weight = 1 + std::mem::take(&mut self.owed_delays);
            self.delay(shared, began, weight);
            self.left_ring += 1;
            self.ringed = true;
        }
        self.stand(shared, took);
        self.strikes = match self.typical < self.limit() {
            true => 0,
            false => self.strikes + 1,
        };
        if self.strikes < STRIKES {
            self.begin_gap();
        } else {
            self.at_each_step();
        }
        Self::told(took)
    }

    /// Counts the steps that no sample has stood for as what they took on average.
    fn settle(&mut self, shared: &Instrument) {
        if self.owed > 0 {
            shared
                .steps
                .add(self.typical, std::mem::take(&mut self.owed));
        }
    }

    #[inline]
    fn told(took: u64) -> Timed {
        match took {
            0..LONG => Timed::Short,
            _ => Timed::Step(took),
        }
    }

    #[inline]
    fn set(&mut self, left: u32) {
        self.next.left = left;
        self.next.open = left;
    }

    /// How many steps of that length take so long. At least one: of none the end would never be found.
    #[inline]
    fn fewest(span: u64, typical: u64) -> u32 {
        (span / typical.max(1)).clamp(1, GAP.into()) as u32
    }

    /// So many, and up to 31 parts in 24 more by chance.
    #[inline]
    fn draw(&mut self, fewest: u32) -> u32 {
        // Knuth's MMIX generator; its upper bits are good enough for this.
        self.chance = self
            .chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        fewest + (self.chance >> 59) as u32 * fewest / 24
    }

    #[inline]
    fn begin_gap(&mut self) {
        self.next.pace = Pace::Gap;
        self.deliveries = Deliveries::default();
        self.next.ahead = 0;
        let count = self.draw(Self::fewest(SPAN, self.typical));
        self.set(count);
    }

    fn at_each_step(&mut self) {
        self.ringed = false;
        self.next.pace = Pace::Each;
        self.deliveries = Deliveries::default();
        self.next.ahead = 0;
        self.strikes = 0;
        self.set(1);
        self.window = (0, 0);
    }

    /// The loop runs from `now` on.
    pub fn starts(&mut self, shared: &Instrument, now: u64) {
        if self.on {
            self.last = now;
            shared.runs_since(now);
        }
    }

    /// The clock shows `now` before a poll: what is timed together is booked so far.
    pub fn pauses(&mut self, shared: &Instrument, now: u64) -> Timed {
        if !self.on {
            return Timed::Short;
        }
        if self.is_open() {
            // The run is over, as a delivery has ended it.
            let timed = self.close(shared, now);
            shared.runs_nothing();
            return timed;
        }
        let (_, took) = self.advance(shared, now);
        shared.runs_nothing();
        if self.next.pace == Pace::Gap {
            return self.gap(shared, took);
        }
        shared.add_internal(took);
        Timed::Short
    }

    /// The run is over.
    pub fn ends(&mut self, shared: &Instrument, now: u64) -> Timed {
        let timed = self.pauses(shared, now);
        self.settle(shared);
        timed
    }

    /// The loop waits from `now` on.
    pub fn waits(&mut self, shared: &Instrument, now: u64) {
        if self.on {
            shared.add_internal(now.saturating_sub(self.last));
            self.last = now;
            shared.waits_since(now);
        }
    }

    /// The loop has waited until `now`. It may wait for the GIL from here on, which is not idling.
    pub fn woke(&mut self, shared: &Instrument, now: u64) {
        if self.on {
            let (_, took) = self.advance(shared, now);
            shared.add_idle(took);
        }
    }

    /// The selector was asked; what it has found is delivered from `now` on, behind `waiting` entries of the ring.
    /// How long the loop was busy with it, and whether it is time for the gauges, which a loop that waits has anyway.
    pub fn polled(&mut self, shared: &Instrument, now: u64, waiting: usize) -> (u64, bool) {
        if !self.on {
            return (0, false);
        }
        let (_, took) = self.advance(shared, now);
        shared.add_internal(took);
        self.arrivals.mark(self.left_ring + waiting as u64, now);
        (took, shared.polled(now))
    }

    /// What was found for one descriptor was delivered by `now`, to a protocol (`called`) or the ring; or
    /// [all](Meter::is_open) was.
    pub fn delivered(&mut self, shared: &Instrument, now: u64, called: bool) -> Timed {
        if self.is_open() {
            return self.close(shared, now);
        }
        if called {
            return self.book(shared, now, false);
        }
        let (_, took) = self.advance(shared, now);
        shared.add_internal(took);
        Timed::Short
    }

    /// All was delivered and the timers that are due have joined the ring, in which `waiting` entries are now.
    #[inline]
    pub fn turns(&mut self, now: u64, waiting: usize) {
        if self.on {
            self.arrivals.mark(self.left_ring + waiting as u64, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop whose steps take what is said, run one turn after the other.
    struct Bench {
        meter: Meter,
        shared: Instrument,
        now: u64,
        reads: u64,
    }

    impl Bench {
        fn new() -> Self {
            let mut bench = Self {
                meter: Meter::new(true),
                shared: Instrument::default(),
                now: 1_000_000,
                reads: 0,
            };
            bench.meter.starts(&bench.shared, bench.now);
            bench
        }

        fn step(&mut self, took: u64, waiting: usize) -> Timed {
            self.now += took;
            if !self.meter.begins() {
                return Timed::Short;
            }
            self.reads += 1;
            self.meter.read(&self.shared, self.now, waiting)
        }
    }

    #[test]
    fn long_steps_are_all_timed() {
        let mut bench = Bench::new();
        for n in 0..1_000 {
            assert_eq!(bench.step(200_000 + n, 0), Timed::Step(200_000 + n));
        }
        assert_eq!(bench.reads, 1_000);
        assert_eq!(bench.shared.steps.read().count(), 1_000);
        assert_eq!(bench.shared.counts().0, 1_000);
    }

    #[test]
    fn short_steps_are_read_twice_in_a_hundred_and_counted_all() {
        let mut bench = Bench::new();
        for n in 0..160_032_u64 {
            assert_eq!(bench.step(200 + n * 7 % 50, 3), Timed::Short);
        }
        assert!((2_700..3_400).contains(&bench.reads), "{}", bench.reads);
        let _ = bench.meter.ends(&bench.shared, bench.now);
        let steps = bench.shared.steps.read();
        assert_eq!(steps.count(), 160_032);
        let median = steps.quantile(0.5).unwrap() as f64;
        assert!((median / 224.0 - 1.0).abs() < 0.05, "{median}");
        assert_eq!(
            bench.shared.spent(bench.now).callbacks,
            bench.now - 1_000_000
        );
    }

    #[test]
    fn steps_between_polls_are_all_in_the_histogram_soon() {
        // The last part of a gap may be one step of middling length, of which its span holds none: that gap would never end.
        let mut bench = Bench::new();
        let mut seed = 1_u64;
        for step in 0..100_000 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let took = if seed >> 60 == 0 { 120_000 } else { 300 };
            let _ = bench.step(took, 0);
            let _ = bench.meter.pauses(&bench.shared, bench.now);
            let _ = bench.meter.polled(&bench.shared, bench.now, 0);
            let missing = step + 1 - bench.shared.steps.read().count();
            assert!(missing <= 147, "{missing} after {step}");
        }
    }

    #[test]
    fn a_sample_shows_what_is_rare_and_short() {
        // One in ten takes 5 µs: a quantile that averages of gaps would not show.
        let mut bench = Bench::new();
        let mut seed = 1_u64;
        for _ in 0..400_000 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let took = if seed >> 60 == 0 { 5_000 } else { 300 };
            let _ = bench.step(took, 0);
        }
        let steps = bench.shared.steps.read();
        let (p90, p97) = (steps.quantile(0.9).unwrap(), steps.quantile(0.97).unwrap());
        assert!((290..=313).contains(&p90), "{p90}");
        assert!((4_780..=5_000).contains(&p97), "{p97}");
    }

    #[test]
    fn a_long_step_among_short_ones_is_found_and_named_when_it_comes_again() {
        let mut bench = Bench::new();
        for _ in 0..1_000 {
            assert_eq!(bench.step(200, 0), Timed::Short);
        }
        let mut found = bench.step(30_000_000, 0);
        while found == Timed::Short {
            found = bench.step(200, 0);
        }
        assert!(
            matches!(found, Timed::Among(took, 64..=146) if took >= 30_000_000)
                || found == Timed::Step(30_000_000)
        );
        assert_eq!(bench.step(20_000_000, 0), Timed::Step(20_000_000));
        assert_eq!(bench.step(200, 0), Timed::Short);
        assert_eq!(bench.step(10_000_000, 0), Timed::Step(10_000_000));
    }

    #[test]
    fn deliveries_are_sampled_and_a_long_one_is_found() {
        let mut bench = Bench::new();
        let mut reads = 0;
        for n in 0..64_000_u64 {
            bench.now += 5_000 + n * 7 % 500;
            if bench.meter.delivers(true) {
                reads += 1;
                let timed = bench.meter.delivered(&bench.shared, bench.now, true);
                assert_eq!(timed, Timed::Short);
            }
        }
        assert!((8_000..16_000).contains(&reads), "{reads}");
        bench.now += 250_000;
        let mut found = Timed::Short;
        while found == Timed::Short {
            if bench.meter.delivers(true) {
                found = bench.meter.delivered(&bench.shared, bench.now, true);
            }
        }
        assert!(
            matches!(found, Timed::Among(250_000..400_000, 9..=19))
                || matches!(found, Timed::Step(250_000..260_000)),
            "{found:?}"
        );
        // Steps of the ring that are as long are timed one by one.
        for _ in 0..200 {
            let _ = bench.step(5_000, 3);
        }
        bench.reads = 0;
        for _ in 0..1_000 {
            let _ = bench.step(5_000, 3);
        }
        assert_eq!(bench.reads, 1_000);
        let _ = bench.meter.ends(&bench.shared, bench.now);
        let steps = bench.shared.steps.read();
        assert_eq!(steps.count(), bench.shared.counts().0);
        let median = steps.quantile(0.5).unwrap() as f64;
        assert!((median / 5_250.0 - 1.0).abs() < 0.05, "{median}");
    }

    #[test]
    fn deliveries_go_together_where_steps_of_the_ring_do_not() {
        let mut bench = Bench::new();
        let deliver = |bench: &mut Bench, took: u64| {
            bench.now += took;
            if !bench.meter.delivers(true) {
                return Timed::Short;
            }
            bench.reads += 1;
            bench.meter.delivered(&bench.shared, bench.now, true)
        };
        let round = |bench: &mut Bench, took: u64| {
            for n in 0..10 {
                assert_eq!(deliver(bench, took + n * 10), Timed::Short);
            }
            if bench.meter.is_open() {
                bench.reads += 1;
                let timed = bench.meter.delivered(&bench.shared, bench.now, false);
                assert_eq!(timed, Timed::Short);
            }
            // The step is timed by itself: nothing of the deliveries is in it.
            assert_eq!(bench.step(60_000, 0), Timed::Short);
            let _ = bench.meter.pauses(&bench.shared, bench.now);
            bench.now += 1_000;
            let _ = bench.meter.polled(&bench.shared, bench.now, 0);
        };
        for _ in 0..100 {
            round(&mut bench, 5_000);
        }
        bench.reads = 0;
        for _ in 0..900 {
            round(&mut bench, 5_000);
        }
        // One for the step, one for the deliveries, and two of a hundred of these.
        assert!((1_900..2_100).contains(&bench.reads), "{}", bench.reads);
        let steps = bench.shared.steps.read();
        assert!(steps.count().abs_diff(11_000) < 147, "{}", steps.count());
        assert_eq!(bench.shared.counts().0, 11_000);
        let (p50, p95) = (steps.quantile(0.5).unwrap(), steps.quantile(0.95).unwrap());
        assert!((4_800..=5_300).contains(&p50), "{p50}");
        assert!((57_400..=62_700).contains(&p95), "{p95}");
        let spent = bench.shared.spent(bench.now);
        assert_eq!(spent.internal, 1_000_000);
        // A long one is found, and by name when it comes again; long ones are each timed.
        let mut found = deliver(&mut bench, 300_000);
        while found == Timed::Short {
            found = deliver(&mut bench, 5_000);
        }
        assert!(
            matches!(found, Timed::Among(300_000..500_000, _)) || found == Timed::Step(300_000),
            "{found:?}"
        );
        let _ = bench.step(60_000, 0);
        for _ in 0..400 {
            let _ = deliver(&mut bench, 30_000);
            let _ = bench.step(60_000, 0);
        }
        assert_eq!(deliver(&mut bench, 250_000), Timed::Step(250_000));
        // What a delivery has ended is booked.
        for _ in 0..300 {
            let _ = deliver(&mut bench, 5_000);
        }
        let _ = bench.meter.ends(&bench.shared, bench.now);
        let steps = bench.shared.steps.read();
        assert_eq!(steps.count(), bench.shared.counts().0);
        assert_eq!(bench.shared.began(), None);
    }

    #[test]
    fn care_in_vain_is_bounded_and_what_finds_something_is_not() {
        // A process that takes the processor now and then makes a step long, never the same one.
        let mut bench = Bench::new();
        for _ in 0..50 {
            for _ in 0..10_000 {
                let _ = bench.step(200, 0);
            }
            let _ = bench.step(4_000_000, 0);
        }
        // Of 500,000: what could be saved up, one of 32, and the two of each gap.
        assert!(bench.reads < 500_000 / 10, "{}", bench.reads);
        // Something that blocks again and again is found by name, nearly always.
        let mut named = 0;
        for _ in 0..400 {
            for _ in 0..2_000 {
                let _ = bench.step(200, 0);
            }
            named += u32::from(bench.step(4_000_000, 0) == Timed::Step(4_000_000));
        }
        assert!(named > 300, "{named}");
    }

    #[test]
    fn a_poll_and_a_wait_are_no_steps() {
        let mut bench = Bench::new();
        for _ in 0..WINDOW + 7 {
            let _ = bench.step(100, 0);
        }
        assert_eq!(bench.meter.ends(&bench.shared, bench.now), Timed::Short);
        assert_eq!(bench.shared.began(), None);
        bench.meter.waits(&bench.shared, bench.now + 10);
        bench.meter.woke(&bench.shared, bench.now + 500_010);
        let _ = bench.meter.polled(&bench.shared, bench.now + 500_020, 0);
        assert_eq!(bench.shared.began(), Some(bench.now + 500_020));
        let spent = bench.shared.spent(bench.now + 500_020);
        assert_eq!(
            (spent.callbacks, spent.internal, spent.idle),
            (3_900, 20, 500_000)
        );
        assert_eq!(bench.shared.counts(), (39, 1));
        assert_eq!(bench.shared.steps.read().count(), 39);
    }

    #[test]
    fn delays_are_those_of_waiting_behind_others() {
        let mut bench = Bench::new();
        // Ten entries are there; each takes 2 µs, and puts another one behind the others.
        bench.meter.turns(bench.now, 10);
        for _ in 0..500 {
            let _ = bench.step(2_000, 10);
        }
        let delays = bench.shared.ready_delays.read();
        assert_eq!(delays.count(), 500);
        let median = delays.quantile(0.5).unwrap() as f64;
        // From the end of the step that has scheduled it: nine others.
        assert!((median / 18_000.0 - 1.0).abs() < 0.05, "{median}");
    }

    #[test]
    fn delays_of_short_steps_are_found_in_a_long_ring() {
        let mut bench = Bench::new();
        bench.meter.turns(bench.now, 1_000);
        for _ in 0..100_000 {
            let _ = bench.step(200, 1_000);
        }
        let delays = bench.shared.ready_delays.read();
        let median = delays.quantile(0.5).unwrap() as f64;
        assert!((median / 200_000.0 - 1.0).abs() < 0.08, "{median}");
        assert!(delays.count().abs_diff(100_000) < 600, "{}", delays.count());
    }

    #[test]
    fn polls_between_short_steps_change_no_quantile() {
        let mut bench = Bench::new();
        for n in 0..100_000_u64 {
            let _ = bench.step(if n % 4 == 0 { 600 } else { 200 }, 0);
            if n % 5 == 0 {
                let _ = bench.meter.pauses(&bench.shared, bench.now);
                bench.now += 3_000;
                let _ = bench.meter.polled(&bench.shared, bench.now, 0);
            }
        }
        let _ = bench.meter.ends(&bench.shared, bench.now);
        let steps = bench.shared.steps.read();
        assert_eq!(steps.count(), 100_000);
        let (p70, p80) = (steps.quantile(0.70).unwrap(), steps.quantile(0.80).unwrap());
        assert!(
            (190..=210).contains(&p70) && (570..=630).contains(&p80),
            "{p70} {p80}"
        );
        assert_eq!(bench.shared.spent(bench.now).internal, 60_000_000);
    }

    #[test]
    fn off_reads_nothing() {
        let mut meter = Meter::new(false);
        meter.turns(1, 1);
        assert_eq!(meter.fresh(), None);
    }
}
