//! Every other system, and Linux when asked: the `polling` crate.
//!
//! kqueue on macOS and the BSDs, IOCP with AFD on Windows, epoll on Linux. `polling` watches in
//! oneshot mode unless told otherwise; we ask for level mode, which all three have.

use std::io;
use std::mem::ManuallyDrop;
use std::time::Duration;

use polling::{PollMode, Poller};

use super::{Event, Events, Interest, RawHandle, Scratch, Selector};
use crate::fork;
use crate::process::Process;
use crate::socket::{RawSource, borrow};

/// A `polling::Poller` in level mode.
#[derive(Debug)]
pub struct Portable {
    poller: ManuallyDrop<Poller>,
    generation: u32,
}

impl Portable {
    pub fn new() -> io::Result<Self> {
        let poller = Poller::new()?;
        if !poller.supports_level() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this system's selector has no level-triggered mode",
            ));
        }
        Ok(Self {
            poller: ManuallyDrop::new(poller),
            generation: fork::generation(),
        })
    }
}

impl Drop for Portable {
    /// A poller takes its waker out of the system's selector before it closes both. In a forked child that
    /// selector is still the parent's, which could never be woken again: so the child lets go of it first.
    fn drop(&mut self) {
        if self.generation != fork::generation() && !let_go(&self.poller) {
            // Left as it is, with its descriptors: better a leak in the child than a parent that hangs.
            return;
        }
        // SAFETY: `self` is being dropped, so nobody uses the field afterwards.
        unsafe { ManuallyDrop::drop(&mut self.poller) };
    }
}

/// Puts an empty selector of this process in the place of an inherited one.
#[cfg(target_os = "linux")]
fn let_go(poller: &Poller) -> bool {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // SAFETY: takes no pointers; the descriptor is owned at once, if there is one. Both numbers that dup3
    // gets are open, and the second one stays the poller's.
    unsafe {
        let empty = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        if empty < 0 {
            return false;
        }
        let empty = OwnedFd::from_raw_fd(empty);
        libc::dup3(empty.as_raw_fd(), poller.as_raw_fd(), libc::O_CLOEXEC) >= 0
    }
}

/// A kqueue is not inherited: its number may be another descriptor's by now.
#[cfg(not(target_os = "linux"))]
fn let_go(_poller: &Poller) -> bool {
    false
}

impl Selector for Portable {
    fn name(&self) -> &'static str {
        "polling"
    }

    fn add(&self, source: RawSource, key: u64, interest: Interest) -> io::Result<()> {
        // SAFETY: the trait's contract makes the caller keep the descriptor open until it removes it.
        unsafe {
            self.poller
                .add_with_mode(source, event(key, interest), PollMode::Level)
        }
    }

    fn modify(&self, source: RawSource, key: u64, interest: Interest) -> io::Result<()> {
        // SAFETY: as above: a watched descriptor is open.
        let source = unsafe { borrow(source) };
        self.poller
            .modify_with_mode(source, event(key, interest), PollMode::Level)
    }

    fn remove(&self, source: RawSource) -> io::Result<()> {
        // SAFETY: as above: a watched descriptor is open.
        let source = unsafe { borrow(source) };
        self.poller.delete(source)
    }

    #[cfg(unix)]
    fn add_handle(&self, handle: RawHandle, key: u64, interest: Interest) -> io::Result<()> {
        self.add(handle, key, interest)
    }

    #[cfg(unix)]
    fn remove_handle(&self, handle: RawHandle) -> io::Result<()> {
        self.remove(handle)
    }

    #[cfg(windows)]
    fn add_handle(&self, handle: RawHandle, key: u64, interest: Interest) -> io::Result<()> {
        use polling::os::iocp::PollerIocpExt;
        // SAFETY: the trait's contract makes the caller keep the handle open until it removes it.
        unsafe {
            self.poller
                .add_waitable(handle, event(key, interest), PollMode::Level)
        }
    }

    #[cfg(windows)]
    fn remove_handle(&self, handle: RawHandle) -> io::Result<()> {
        use polling::os::iocp::PollerIocpExt;
        use std::os::windows::io::BorrowedHandle;
        // SAFETY: as above: a watched handle is open.
        let handle = unsafe { BorrowedHandle::borrow_raw(handle) };
        self.poller.remove_waitable(handle)
    }

    #[cfg(any(windows, target_os = "linux"))]
    fn add_process(&self, process: &Process, key: u64) -> io::Result<()> {
        self.add_handle(process.handle(), key, Interest::READ)
    }

    #[cfg(any(windows, target_os = "linux"))]
    fn remove_process(&self, process: &Process) -> io::Result<()> {
        self.remove_handle(process.handle())
    }

    #[cfg(not(any(windows, target_os = "linux")))]
    fn add_process(&self, process: &Process, key: u64) -> io::Result<()> {
        use polling::os::kqueue::PollerKqueueExt;
        self.poller
            .add_filter(exit_of(process), key as usize, PollMode::Oneshot)
    }

    #[cfg(not(any(windows, target_os = "linux")))]
    fn remove_process(&self, process: &Process) -> io::Result<()> {
        use polling::os::kqueue::PollerKqueueExt;
        self.poller.delete_filter(exit_of(process))
    }

    fn wait(&self, events: &mut Events, timeout: Option<u64>) -> io::Result<()> {
        if !matches!(events.scratch, Scratch::Portable(_)) {
            events.scratch = Scratch::Portable(polling::Events::new());
        }
        let Scratch::Portable(batch) = &mut events.scratch else {
            return Ok(());
        };
        events.found.clear();
        batch.clear();
        match self.poller.wait(batch, timeout.map(Duration::from_nanos)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        };
        events.found.extend(batch.iter().map(|event| {
            let broken = event.is_interrupt() || event.is_err() == Some(true);
            Event {
                key: event.key as u64,
                readable: event.readable || broken,
                writable: event.writable || broken,
            }
        }));
        Ok(())
    }

    fn wake(&self) -> io::Result<()> {
        self.poller.notify()
    }
}

fn event(key: u64, interest: Interest) -> polling::Event {
    polling::Event::new(key as usize, interest.read, interest.write)
}

#[cfg(not(any(windows, target_os = "linux")))]
fn exit_of(process: &Process) -> polling::os::kqueue::Process<'static> {
    use polling::os::kqueue::{Process, ProcessOps};
    // SAFETY: the number is that of a child that nobody has collected, by the contract of `Process::open`.
    unsafe { Process::from_pid(process.pid(), ProcessOps::Exit) }
}
