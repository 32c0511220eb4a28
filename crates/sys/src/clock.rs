//! The monotonic clock.

/// Nanoseconds of the system's monotonic clock.
///
/// On Linux this is `CLOCK_MONOTONIC`, the clock behind Python's `time.monotonic()`, so both count
/// from the same origin. Elsewhere the origin is the first call, and only differences mean anything.
#[cfg(target_os = "linux")]
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec to write to. The call cannot fail: Linux always has this
    // clock, and the pointer is good.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(not(target_os = "linux"))]
pub fn monotonic_ns() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;

    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// What the threads of this process have used of the processor.
#[cfg(unix)]
pub fn process_cpu() -> std::time::Duration {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `used` is a valid timespec to write to. The clock is there wherever POSIX's timers are.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut used) };
    std::time::Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

/// What the threads of this process have used of the processor.
#[cfg(windows)]
pub fn process_cpu() -> std::time::Duration {
    use windows_sys::Win32::Foundation::FILETIME;
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessTimes};

    const NONE: FILETIME = FILETIME {
        dwLowDateTime: 0,
        dwHighDateTime: 0,
    };
    let (mut made, mut ended, mut kernel, mut user) = (NONE, NONE, NONE, NONE);
    // SAFETY: four valid times to write to; the handle is this process's own and is not closed.
    unsafe {
        GetProcessTimes(
            GetCurrentProcess(),
            &mut made,
            &mut ended,
            &mut kernel,
            &mut user,
        )
    };
    let ticks =
        |time: FILETIME| u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime);
    // In units of 100 ns.
    std::time::Duration::from_nanos((ticks(kernel) + ticks(user)) * 100)
}

/// A clock for bounds that need not be exact, such as how long a busy loop goes without a poll: the
/// processor's counter, which costs a third of a clock read, held against the real clock at each poll.
///
/// It may be off by what the counter's rate drifts between two settings; never use it for deadlines. Without such a
/// counter, or with one whose rate changes, it is the real clock.
#[derive(Debug, Default)]
pub struct CoarseClock {
    #[cfg(target_arch = "x86_64")]
    last: (u64, u64),
    #[cfg(target_arch = "x86_64")]
    /// In fractions of 2^32, as whole numbers are multiplied in a third of the time of others; 0: not known.
    ns_per_tick: u64,
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has this instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Whether the counter runs at one rate in all states of the processor, as it says itself.
#[cfg(target_arch = "x86_64")]
fn is_steady() -> bool {
    use std::arch::x86_64::__cpuid;
    use std::sync::OnceLock;

    const ADVANCED_POWER: u32 = 0x8000_0007;
    const INVARIANT_COUNTER: u32 = 1 << 8;
    static STEADY: OnceLock<bool> = OnceLock::new();
    *STEADY.get_or_init(|| {
        // SAFETY: every x86-64 processor has this instruction; the first call says which others make sense.
        #[allow(unused_unsafe)]
        unsafe {
            __cpuid(0x8000_0000).eax >= ADVANCED_POWER
                && __cpuid(ADVANCED_POWER).edx & INVARIANT_COUNTER != 0
        }
    })
}

/// The counter's rate, which is measured once per process: how many nanoseconds a tick takes, in fractions of 2^32; 0: it is not
/// known yet, or there is no steady one.
#[cfg(target_arch = "x86_64")]
mod rate {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::{is_steady, monotonic_ns, ticks};

    /// How long it is measured, at least and, as the clock may have stood still meanwhile, at most.
    const LEAST_NS: u64 = 1_000_000;
    const MOST_NS: u64 = 10_000_000_000;

    static RATE: AtomicU64 = AtomicU64::new(0);
    static FIRST: Mutex<Option<(u64, u64)>> = Mutex::new(None);

    /// Both clocks at one moment: of a few attempts the one in between which the least has come.
    fn both() -> (u64, u64) {
        let attempts = (0..4).map(|_| {
            let before = ticks();
            let now = monotonic_ns();
            let between = ticks().wrapping_sub(before);
            (between, (now, before.wrapping_add(between / 2)))
        });
        attempts.min().map_or((0, 0), |(_, both)| both)
    }

    /// Measures it, if it was not.
    #[cold]
    pub fn ns_per_tick(now: u64) -> u64 {
        let known = RATE.load(Relaxed);
        if known != 0 || !is_steady() {
            return known;
        }
        // Whoever finds it taken, a child of a fork perhaps for good, does without.
        let Ok(mut first) = FIRST.try_lock() else {
            return 0;
        };
        match *first {
            Some((at, _)) if now.saturating_sub(at) < LEAST_NS => {}
            Some((at, since)) if now - at < MOST_NS => {
                let (now, ticks) = both();
                let elapsed = u128::from(now.saturating_sub(at)) << 32;
                if let Some(rate) = elapsed.checked_div(ticks.saturating_sub(since).into()) {
                    RATE.store(u64::try_from(rate).unwrap_or(0), Relaxed);
                }
            }
            _ => *first = Some(both()),
        }
        RATE.load(Relaxed)
    }
}

impl CoarseClock {
    /// The real clock is to be asked this often, so that the two do not part.
    #[cfg(target_arch = "x86_64")]
    const MAX_AGE_NS: u64 = 1_000_000;

    /// Whether it is time, at `now`, to say what the real clock shows.
    #[inline]
    pub fn is_old(&self, now: u64) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.ns_per_tick == 0 || now.saturating_sub(self.last.0) >= Self::MAX_AGE_NS;
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = now;
            false
        }
    }

    /// Says what the real clock shows.
    #[inline]
    pub fn set(&mut self, now: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            self.last = (now, ticks());
            if self.ns_per_tick == 0 {
                self.ns_per_tick = rate::ns_per_tick(now);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = now;
    }

    /// About what the real clock shows.
    #[inline]
    pub fn now(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        if self.ns_per_tick > 0 {
            let (ns, at) = self.last;
            // A counter that went back (a suspend, another machine) says nothing until it is set again.
            if let Some(ticks) = ticks().checked_sub(at) {
                return ns + ((u128::from(ticks) * u128::from(self.ns_per_tick)) >> 32) as u64;
            }
        }
        monotonic_ns()
    }
}

#[cfg(test)]
mod tests {
    use super::{CoarseClock, monotonic_ns};

    #[test]
    fn the_coarse_clock_does_not_run_backwards_between_settings() {
        let mut coarse = CoarseClock::default();
        let started = monotonic_ns();
        while monotonic_ns() - started < 3_000_000 {
            coarse.set(monotonic_ns());
            let first = coarse.now();
            assert!(coarse.now() >= first);
        }
    }

    #[cfg(unix)]
    #[test]
    fn work_uses_the_processor() {
        let before = super::process_cpu();
        while super::process_cpu() == before {}
        assert!(super::process_cpu() > before);
    }

    #[test]
    fn never_goes_back() {
        let mut last = monotonic_ns();
        for _ in 0..1_000 {
            let now = monotonic_ns();
            assert!(now >= last);
            last = now;
        }
    }
}
