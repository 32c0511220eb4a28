//! Timers as precise as the kernel can make them, while a loop runs.
//!
//! Linux may fire a thread's timers late by its "timer slack", 50 µs by default, to batch wake-ups. The
//! loop batches its own timers in buckets, so on top of that the slack only adds delay.

/// While this lives, the calling thread's timer slack is a microsecond; then it is what it was before.
#[derive(Debug)]
pub struct PreciseTimers {
    #[cfg(target_os = "linux")]
    before: Option<libc::c_ulong>,
}

impl PreciseTimers {
    #[cfg(target_os = "linux")]
    pub fn new() -> Self {
        const SLACK_NS: libc::c_ulong = 1_000;
        // SAFETY: PR_GET_TIMERSLACK takes no further arguments and returns the slack.
        let before = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) };
        let before = libc::c_ulong::try_from(before)
            .ok()
            .filter(|&before| before > SLACK_NS);
        if before.is_some() {
            set(SLACK_NS);
        }
        Self { before }
    }

    #[cfg(not(target_os = "linux"))]
    pub fn new() -> Self {
        Self {}
    }
}

impl Default for PreciseTimers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(target_os = "linux")]
impl Drop for PreciseTimers {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set(before);
        }
    }
}

#[cfg(target_os = "linux")]
fn set(nanoseconds: libc::c_ulong) {
    // SAFETY: PR_SET_TIMERSLACK takes a number and only concerns the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanoseconds) };
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::PreciseTimers;

    fn slack() -> i32 {
        // SAFETY: takes no further arguments.
        unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) }
    }

    #[test]
    fn the_slack_is_put_back() {
        let before = slack();
        {
            let _precise = PreciseTimers::new();
            assert!(slack() <= 1_000);
        }
        assert_eq!(slack(), before);
    }
}
