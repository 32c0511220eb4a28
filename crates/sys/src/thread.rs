//! A thread as another one sees it: to be sent a signal, and asked what it does.

use std::io;

/// What the kernel says of a thread. All times are nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// How long it has run, and how long it was ready to run and did not, on a processor.
    pub ran: u64,
    pub waited: u64,
    /// How often it was put on a processor.
    pub slices: u64,
    /// The system call that it is in; None: in none, or not known.
    pub call: Option<u32>,
    /// It runs or would, if it had a processor: the time that it has waited for one grows only when it gets it.
    pub runnable: bool,
}

/// Where a signal to a thread is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Sent, and not handled yet.
    pub pending: bool,
    /// Not to be handled now: the thread says so, or is handling it.
    pub blocked: bool,
}

/// A thread of this process. Whoever signals one vouches for that it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    #[cfg(unix)]
    handle: libc::pthread_t,
    #[cfg(target_os = "linux")]
    id: libc::pid_t,
}

impl Thread {
    /// The calling one.
    #[cfg(unix)]
    pub fn current() -> Self {
        Self {
            // SAFETY: always succeeds.
            handle: unsafe { libc::pthread_self() },
            #[cfg(target_os = "linux")]
            // SAFETY: always succeeds.
            id: unsafe { libc::gettid() },
        }
    }

    /// The calling one.
    #[cfg(not(unix))]
    pub fn current() -> Self {
        Self {}
    }

    /// Whether it is the first thread of the process.
    #[cfg(target_os = "linux")]
    pub fn is_main(&self) -> bool {
        // SAFETY: always succeeds.
        self.id == unsafe { libc::getpid() }
    }

    /// Not known.
    #[cfg(not(target_os = "linux"))]
    pub fn is_main(&self) -> bool {
        false
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// What the system says, if there is no such signal.
    ///
    /// # Safety
    ///
    /// The thread has not ended.
    #[cfg(unix)]
    pub unsafe fn signal(&self, number: i32) -> io::Result<()> {
        // SAFETY: passed on to the caller.
        match unsafe { libc::pthread_kill(self.handle, number) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// There are no signals.
    ///
    /// # Errors
    ///
    /// Always.
    ///
    /// # Safety
    ///
    /// None is needed.
    #[cfg(not(unix))]
    pub unsafe fn signal(&self, _number: i32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What the kernel says of it; None where it does not.
    #[cfg(target_os = "linux")]
    pub fn standing(&self) -> Option<Standing> {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/self/task/{}/{name}", self.id)).ok()
        };
        // Of a thread that runs the numbers are as old as the last tick, unless its clock is asked for.
        let mut used = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // The clock of a thread by its number, as the system makes it of that (CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED).
        // SAFETY: a timespec to write to; of a thread that is no more there is an error, which matters to nobody.
        unsafe { libc::clock_gettime((!self.id << 3) | 6, &raw mut used) };
        let times = read("schedstat")?;
        let mut times = times.split_whitespace().map(str::parse);
        let mut next = || times.next()?.ok();
        // "running", or the number of a call and its arguments.
        let call = read("syscall").unwrap_or_default();
        Some(Standing {
            ran: next()?,
            waited: next()?,
            slices: next()?,
            call: call
                .split_whitespace()
                .next()
                .and_then(|word| word.parse().ok()),
            runnable: call.starts_with("running"),
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn standing(&self) -> Option<Standing> {
        None
    }

    /// Where a signal to it is; None where the system does not say, and of what is no signal.
    #[cfg(target_os = "linux")]
    pub fn delivery(&self, number: i32) -> Option<Delivery> {
        let bit = u32::try_from(number.checked_sub(1)?).ok()?;
        let bit = 1_u64.checked_shl(bit)?;
        let text = std::fs::read_to_string(format!("/proc/self/task/{}/status", self.id)).ok()?;
        let has = |name: &str| {
            let mask = text.lines().find_map(|line| line.strip_prefix(name))?;
            let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
            Some(mask & bit != 0)
        };
        Some(Delivery {
            pending: has("SigPnd:")?,
            blocked: has("SigBlk:")?,
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn delivery(&self, _number: i32) -> Option<Delivery> {
        None
    }
}

/// The address of what handles a signal: 0 if nothing does, 1 if it is ignored; None if there is no such signal.
#[cfg(unix)]
pub fn handler_of(number: i32) -> Option<usize> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given, so that nothing changes; the old one is written to the place that is given.
    // A zeroed action is a valid one.
    unsafe {
        match libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) {
            0 => Some(action.assume_init().sa_sigaction),
            _ => None,
        }
    }
}

#[cfg(not(unix))]
pub fn handler_of(_number: i32) -> Option<usize> {
    None
}

/// Whether [`interrupted_at`] knows.
pub const TELLS_WHERE: bool = cfg!(all(
    any(target_os = "linux", target_os = "macos"),
    any(target_arch = "x86_64", target_arch = "aarch64")
));

/// The instruction at which a signal met this thread.
///
/// # Safety
///
/// In a handler that was set by [`replace_handler`]; `context` is its third argument.
#[must_use]
pub unsafe fn interrupted_at(context: *mut std::ffi::c_void) -> Option<usize> {
    // SAFETY: the kernel has given a context of this type.
    #[allow(unused_unsafe)]
    unsafe {
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        return Some(
            (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize]
                as usize,
        );
        #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
        return Some((*context.cast::<libc::ucontext_t>()).uc_mcontext.pc as usize);
        #[cfg(all(target_os = "macos", target_arch = "x86_64"))]
        return Some(
            (*(*context.cast::<libc::ucontext_t>()).uc_mcontext)
                .__ss
                .__rip as usize,
        );
        #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
        return Some(
            (*(*context.cast::<libc::ucontext_t>()).uc_mcontext)
                .__ss
                .__pc as usize,
        );
        #[allow(unreachable_code)]
        {
            let _ = context;
            None
        }
    }
}

/// The address of what this process has under a name.
#[cfg(unix)]
#[must_use]
pub fn symbol(name: &std::ffi::CStr) -> Option<usize> {
    // SAFETY: a name that ends; nothing is opened.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    Some(found as usize).filter(|&address| address != 0)
}

#[cfg(not(unix))]
#[must_use]
pub fn symbol(_name: &std::ffi::CStr) -> Option<usize> {
    None
}

/// Puts another handler in the place of this one, with its mask and its flags, `SA_SIGINFO` added; whether it was there.
///
/// # Safety
///
/// `handler` is the address of a function that may be called whenever that one may.
#[cfg(unix)]
pub unsafe fn replace_handler(number: i32, before: usize, handler: usize) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the old action is written to the place that is given, and given back with another handler, for which the caller
    // vouches. A zeroed action is a valid one.
    unsafe {
        if libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return false;
        }
        let mut action = action.assume_init();
        if action.sa_sigaction != before {
            return false;
        }
        action.sa_sigaction = handler;
        action.sa_flags |= libc::SA_SIGINFO;
        libc::sigaction(number, &raw const action, std::ptr::null_mut()) == 0
    }
}

/// There are no signals.
///
/// # Safety
///
/// None is needed.
#[cfg(not(unix))]
pub unsafe fn replace_handler(_number: i32, _before: usize, _handler: usize) -> bool {
    false
}

/// A file of our own for somebody else's descriptor.
///
/// # Errors
///
/// What the system says: it is not open, or no more may be.
#[cfg(unix)]
pub fn file_of(descriptor: i32) -> io::Result<std::fs::File> {
    use std::os::fd::{FromRawFd, OwnedFd};

    // SAFETY: takes a number, which need not be open.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) }.into())
}

/// There are no descriptors.
///
/// # Errors
///
/// Always.
#[cfg(not(unix))]
pub fn file_of(_descriptor: i32) -> io::Result<std::fs::File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a number of a system call is that of a wait on a lock.
pub fn is_lock_wait(call: u32) -> bool {
    #[cfg(target_os = "linux")]
    return call as libc::c_long == libc::SYS_futex;
    #[cfg(not(target_os = "linux"))]
    {
        let _ = call;
        false
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::{Delivery, Thread, handler_of, is_lock_wait};

    #[test]
    fn a_thread_that_works_has_run() {
        let this = Thread::current();
        let before = this.standing().unwrap();
        let spun = (0..30_000_000_u64).fold(0, |sum, n| sum ^ std::hint::black_box(n));
        std::hint::black_box(spun);
        assert!(this.standing().unwrap().ran > before.ran);
    }

    #[test]
    fn a_signal_that_is_blocked_stays_pending() {
        let number = libc::SIGRTMAX() - 3;
        let this = Thread::current();
        assert_eq!(this.delivery(number), Some(Delivery::default()));
        assert_eq!(this.delivery(0), None);
        assert_eq!(this.delivery(65), None);
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: a set on this stack, filled before it is used; the mask is this thread's own, which ends with the test. The
        // signal stays pending for as long.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), number);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            this.signal(number).unwrap();
        }
        let delivery = Delivery {
            pending: true,
            blocked: true,
        };
        assert_eq!(this.delivery(number), Some(delivery));
    }

    #[test]
    fn a_wait_for_a_lock_is_told_from_others() {
        assert!(is_lock_wait(libc::SYS_futex as u32));
        assert!(!is_lock_wait(libc::SYS_read as u32));
    }

    #[test]
    fn signals_without_a_handler_have_none() {
        assert_eq!(handler_of(libc::SIGURG), Some(libc::SIG_DFL));
        assert_eq!(handler_of(100_000), None);
    }
}
