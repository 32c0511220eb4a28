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

    /// From looks at the thread, oldest first, and whether the interpreter's loop has been seen at work meanwhile
    /// (None: nobody could know).
    ///
    /// The collector is where it was seen in most looks. Otherwise the time between the first look and the last is
    /// divided: mostly ready but not running is starved (a thread that never was found asleep was ready whenever it did
    /// not run: the kernel counts its waiting only when that is over); mostly running is Python or C; else the thread slept. Who waits
    /// for the GIL sleeps in a lock and asks for it every few milliseconds (CPython's switch interval, 5 ms), so it
    /// is put on a processor often; who waits for anything else is not.
    #[must_use]
    pub fn of(looks: &[Look], interprets: Option<bool>) -> Self {
        let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
            return Self::Unknown;
        };
        let in_gc = looks.iter().filter(|look| look.in_gc).count();
        if in_gc * 2 > looks.len() {
            return Self::Gc;
        }
        let elapsed = last.at.saturating_sub(first.at);
        if elapsed == 0 {
            return Self::Unknown;
        }
        let ran = last.ran.saturating_sub(first.ran);
        let waited = match looks.iter().all(|look| look.runnable) {
            true => elapsed.saturating_sub(ran),
            false => last.waited.saturating_sub(first.waited),
        };
        if waited > ran && waited * 2 > elapsed {
            return Self::CpuStarved;
        }
        // Sleeping is what is neither.
        if (ran + waited) * 2 > elapsed {
            return match interprets {
                Some(true) => Self::Python,
                Some(false) => Self::C,
                None => Self::Cpu,
            };
        }
        let slices = last.slices.saturating_sub(first.slices);
        const OFTEN: u64 = 25_000_000;
        if last.in_lock && slices * OFTEN > elapsed {
            return Self::GilWait;
        }
        Self::Syscall
    }
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

    #[test]
    fn causes() {
        assert_eq!(
            Cause::of(&looks(95, 2, 3, false), Some(true)),
            Cause::Python
        );
        assert_eq!(Cause::of(&looks(95, 2, 3, false), Some(false)), Cause::C);
        assert_eq!(
            Cause::of(&looks(45, 50, 9, false), Some(true)),
            Cause::Python
        );
        assert_eq!(
            Cause::of(&looks(20, 78, 9, false), Some(true)),
            Cause::CpuStarved
        );
        assert_eq!(Cause::of(&looks(0, 0, 1, false), None), Cause::Syscall);
        assert_eq!(Cause::of(&looks(0, 0, 1, true), None), Cause::Syscall);
        assert_eq!(Cause::of(&looks(1, 1, 20, true), None), Cause::GilWait);
        assert_eq!(Cause::of(&[], None), Cause::Unknown);
        // Not put on a processor even once, so that nothing of its waiting was counted.
        let mut starved = looks(0, 0, 0, false);
        starved.iter_mut().for_each(|look| look.runnable = true);
        assert_eq!(Cause::of(&starved, None), Cause::CpuStarved);
        starved[1].ran = 90 * MS;
        assert_eq!(Cause::of(&starved, Some(true)), Cause::Python);
        assert_eq!(Cause::of(&starved, Some(false)), Cause::C);
        let mut gc = looks(95, 2, 3, false);
        gc.iter_mut().for_each(|look| look.in_gc = true);
        assert_eq!(Cause::of(&gc, Some(false)), Cause::Gc);
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
