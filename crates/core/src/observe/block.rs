//! What was seen of a step that blocks its loop, and why it does.

/// What the kernel says of a thread, all in nanoseconds since some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    pub at: u64,
    pub ran: u64,
    /// Ready to run, and not on a processor.
    pub waited: u64,
    /// How often it was put on a processor.
    pub slices: u64,
    /// It runs or would, if it had a processor.
    pub runnable: bool,
    pub in_lock: bool,
    /// The garbage collector was at work in it.
    pub in_gc: bool,
}

/// Why a loop was blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Python,
    /// On the processor, and not in the interpreter's loop.
    C,
    /// On the processor, nobody knows in which of the two.
    Cpu,
    GilWait,
    /// Off the processor: in a system call, which waits, or for a lock.
    Syscall,
    Gc,
    /// Ready to run, and not run.
    CpuStarved,
    Unknown,
}

impl Cause {
    pub const ALL: [Self; 8] = [
        Self::Python,
        Self::C,
        Self::Cpu,
        Self::GilWait,
        Self::Syscall,
        Self::Gc,
        Self::CpuStarved,
        Self::Unknown,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::C => "c",
            Self::Cpu => "cpu",
            Self::GilWait => "gil_wait",
            Self::Syscall => "syscall",
            Self::Gc => "gc",
            Self::CpuStarved => "cpu_starved",
            Self::Unknown => "unknown",
        }
    }

    /// Why, from what was seen.
    ///
    /// The time between the first look and the last is divided: the thread ran, it was ready and had no processor, or it slept.
    /// What was seen stands for the whole step. It is *starved* if it would not have blocked its loop with a processor of its
    /// own: without its waiting for one, which has to be a quarter at least, it would have taken less than the threshold.
    /// So a step that computes for longer than that is told with what it does, however busy the machine is, unless
    /// it waited nine times as long as it did anything.
    ///
    /// Otherwise the collector is at work where it was seen in most looks; who ran longer than it slept is in Python or C; and
    /// the others slept. Who waits for the GIL sleeps in a lock and asks for it every few milliseconds (CPython's switch interval,
    /// 5 ms), so it is put on a processor often; who waits for anything else is not.
    #[must_use]
    pub fn of(seen: &Evidence<'_>) -> Self {
        let looks = seen.looks;
        let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
            return Self::Unknown;
        };
        let until = seen.end.as_ref().unwrap_or(last);
        let elapsed = until.at.saturating_sub(first.at);
        if elapsed == 0 {
            return Self::Unknown;
        }
        let ran = until.ran.saturating_sub(first.ran).min(elapsed);
        let counted = until.waited.saturating_sub(first.waited);
        let waited = match seen.end {
            // The kernel counts a wait when it is over: who was never found asleep was ready whenever it did not run.
            None if looks.iter().all(|look| look.runnable) => elapsed - ran,
            _ => counted.min(elapsed - ran),
        };
        if is_starved(seen, waited, elapsed) {
            return Self::CpuStarved;
        }
        let in_gc = looks.iter().filter(|look| look.in_gc).count();
        if in_gc * 2 > looks.len() {
            return Self::Gc;
        }
        let slept = elapsed - ran - waited;
        if ran >= slept {
            return match seen.interprets {
                Some(true) => Self::Python,
                Some(false) => Self::C,
                None => Self::Cpu,
            };
        }
        let slices = until.slices.saturating_sub(first.slices);
        // Each stack that it is made to write, every 50 ms, wakes it as well, once or, if it is interrupted, twice.
        const OFTEN: u64 = 12_000_000;
        if last.in_lock && slices * OFTEN > elapsed {
            return Self::GilWait;
        }
        Self::Syscall
    }
}

/// What is known of a step that blocks its loop, or has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// Looks at its thread by another one, the oldest first.
    pub looks: &'a [Look],
    /// That of the thread itself, when the step had ended: all of its waiting is counted in it.
    pub end: Option<Look>,
    /// How long it took, or has taken until now, and from where on that blocks; in nanoseconds.
    pub took: u64,
    pub threshold: u64,
    /// Whether the interpreter's loop was at work; None: nobody could know.
    pub interprets: Option<bool>,
}

/// Whether a step that waited for a processor so long, of what was seen of it, blocks its loop for that reason.
fn is_starved(seen: &Evidence<'_>, waited: u64, elapsed: u64) -> bool {
    let share = waited as f64 / elapsed as f64;
    let otherwise = seen.took as f64 * (1.0 - share);
    share >= 0.9 || (share >= 0.25 && otherwise < seen.threshold as f64)
}

/// One line of a stack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    pub file: String,
    pub line: u32,
    pub function: String,
}

/// The frames of a stack as CPython's `faulthandler` writes it, the innermost first: `  File "x.py", line 1 in f`.
#[must_use]
pub fn frames(text: &str) -> Vec<Frame> {
    text.lines().filter_map(frame).collect()
}

fn frame(line: &str) -> Option<Frame> {
    let rest = line.strip_prefix("  File ")?;
    // The name of a file may hold anything; what follows it does not.
    let (file, rest) = rest.rsplit_once(", line ")?;
    let (number, function) = rest.split_once(" in ")?;
    Some(Frame {
        file: file.trim_matches('"').to_owned(),
        line: number.parse().unwrap_or(0),
        function: function.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn looks(ran: u64, waited: u64, slices: u64, in_lock: bool) -> [Look; 2] {
        let last = Look {
            at: 100 * MS,
            ran: ran * MS,
            waited: waited * MS,
            slices,
            runnable: false,
            in_lock,
            in_gc: false,
        };
        [Look::default(), last]
    }

    /// The cause of a step of 200 ms, of which 100 were looked at, with a threshold of 100 ms.
    fn cause(looks: &[Look], interprets: Option<bool>) -> Cause {
        Cause::of(&Evidence {
            looks,
            end: None,
            took: 200 * MS,
            threshold: 100 * MS,
            interprets,
        })
    }

    #[test]
    fn causes() {
        assert_eq!(cause(&looks(95, 2, 3, false), Some(true)), Cause::Python);
        assert_eq!(cause(&looks(95, 2, 3, false), Some(false)), Cause::C);
        assert_eq!(cause(&looks(95, 2, 3, false), None), Cause::Cpu);
        assert_eq!(cause(&looks(0, 0, 1, false), None), Cause::Syscall);
        assert_eq!(cause(&looks(0, 0, 1, true), None), Cause::Syscall);
        assert_eq!(cause(&looks(1, 1, 20, true), None), Cause::GilWait);
        assert_eq!(cause(&looks(1, 1, 6, true), None), Cause::Syscall);
        assert_eq!(cause(&[], None), Cause::Unknown);
        assert_eq!(cause(&looks(95, 2, 3, false)[..1], None), Cause::Unknown);
        let mut gc = looks(95, 2, 3, false);
        gc.iter_mut().for_each(|look| look.in_gc = true);
        assert_eq!(cause(&gc, Some(false)), Cause::Gc);
    }

    #[test]
    fn a_step_is_starved_if_it_would_not_have_blocked_with_a_processor_of_its_own() {
        // Half of 200 ms is 100 ms of work, which blocks by itself.
        assert_eq!(cause(&looks(50, 50, 9, false), Some(true)), Cause::Python);
        assert_eq!(
            cause(&looks(48, 52, 9, false), Some(true)),
            Cause::CpuStarved
        );
        // A sleep of some 90 ms would have been none of our business.
        assert_eq!(cause(&looks(0, 55, 9, false), None), Cause::CpuStarved);
        assert_eq!(cause(&looks(0, 45, 9, false), None), Cause::Syscall);
        let took = |looks: &[Look], took: u64| {
            let interprets = Some(true);
            let (took, threshold) = (took * MS, 100 * MS);
            Cause::of(&Evidence {
                looks,
                end: None,
                took,
                threshold,
                interprets,
            })
        };
        // Almost nothing but work, and only just too long.
        assert_eq!(took(&looks(80, 20, 9, false), 105), Cause::Python);
        assert_eq!(took(&looks(70, 30, 9, false), 105), Cause::CpuStarved);
        // What takes ten times as long as it has to is starved, however long that is.
        assert_eq!(took(&looks(12, 88, 9, false), 5_000), Cause::Python);
        assert_eq!(took(&looks(9, 91, 9, false), 5_000), Cause::CpuStarved);
        // A collection, too, needs a processor.
        let mut gc = looks(9, 91, 3, false);
        gc.iter_mut().for_each(|look| look.in_gc = true);
        assert_eq!(cause(&gc, Some(false)), Cause::CpuStarved);
    }

    #[test]
    fn a_wait_for_a_processor_that_lasts_is_not_counted_yet() {
        // Not put on a processor even once.
        let mut starved = looks(0, 0, 0, false);
        assert_eq!(cause(&starved, None), Cause::Syscall);
        starved.iter_mut().for_each(|look| look.runnable = true);
        assert_eq!(cause(&starved, None), Cause::CpuStarved);
        starved[1].ran = 90 * MS;
        assert_eq!(cause(&starved, Some(true)), Cause::Python);
        assert_eq!(cause(&starved, Some(false)), Cause::C);
    }

    #[test]
    fn the_thread_itself_knows_all_of_its_waiting() {
        let looks = looks(1, 1, 2, false);
        let end = |ran: u64, waited: u64| Look {
            at: 200 * MS,
            ran: ran * MS,
            waited: waited * MS,
            runnable: true,
            ..Look::default()
        };
        let cause = |end: Look| {
            Cause::of(&Evidence {
                looks: &looks,
                end: Some(end),
                took: 200 * MS,
                threshold: 100 * MS,
                interprets: Some(true),
            })
        };
        assert_eq!(cause(end(2, 198)), Cause::CpuStarved);
        assert_eq!(cause(end(2, 3)), Cause::Syscall);
        assert_eq!(cause(end(190, 3)), Cause::Python);
        // A wait that had begun before the first look is counted whole.
        assert_eq!(cause(end(150, 300)), Cause::Python);
    }

    #[test]
    fn stacks_are_read() {
        let text = "Stack (most recent call first):\n  File \"/a, line 3 in b/c.py\", line 12 in match\n  \
                    File \"<string>\", line ??? in <module>\n  ...\n";
        assert_eq!(
            frames(text),
            [
                Frame {
                    file: "/a, line 3 in b/c.py".into(),
                    line: 12,
                    function: "match".into()
                },
                Frame {
                    file: "<string>".into(),
                    line: 0,
                    function: "<module>".into()
                },
            ]
        );
    }
}
