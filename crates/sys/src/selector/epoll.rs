//! Linux: epoll, level-triggered, with `epoll_pwait2` for nanosecond timeouts. A wait that has no end, or none at all,
//! has no nanoseconds: `epoll_wait` does it, in two thirds of the time.
//!
//! Kernels before 5.11 and some containers lack `epoll_pwait2`. The first call that is refused turns
//! this selector to `epoll_wait` for good, with its milliseconds rounded up, so that a timer is late
//! by up to one of them but still never early.
//!
//! Wake-ups go through an eventfd that is registered like any other descriptor, under a key that no
//! [`tideloop_core::registry::Key`] has.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Event, Events, Interest, RawHandle, Scratch, Selector};
use crate::process::Process;
use crate::socket::RawSource;

/// The eventfd's key: no registry hands out its last slot of its last generation.
const WAKE: u64 = u64::MAX;

/// Events fetched per call; more stay in the kernel, which queues fairly.
const BATCH: usize = 256;

const READ: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
const WRITE: u32 = libc::EPOLLOUT as u32;
const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// An epoll instance with its waker.
#[derive(Debug)]
pub struct Epoll {
    epoll: OwnedFd,
    waker: OwnedFd,
    nanoseconds: AtomicBool,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked before it is owned.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        let waker = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let selector = Self {
            epoll,
            waker,
            nanoseconds: AtomicBool::new(true),
        };
        selector.add(selector.waker.as_raw_fd(), WAKE, Interest::READ)?;
        Ok(selector)
    }

    fn control(&self, operation: i32, source: RawSource, key: u64, flags: u32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: flags,
            u64: key,
        };
        // SAFETY: `event` is valid for the call; the kernel checks both descriptors.
        let result =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, source, &mut event) };
        check(result).map(drop)
    }

    fn wait_raw(&self, batch: &mut Vec<libc::epoll_event>, timeout: Option<u64>) -> io::Result<()> {
        batch.clear();
        let room = batch.capacity().min(BATCH) as i32;
        let is_timed = timeout.is_some_and(|ns| ns > 0);
        let found = if is_timed && self.nanoseconds.load(Ordering::Relaxed) {
            match self.pwait2(batch, room, timeout) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.nanoseconds.store(false, Ordering::Relaxed);
                    self.wait_ms(batch, room, timeout)
                }
                other => other,
            }
        } else {
            self.wait_ms(batch, room, timeout)
        };
        let found = match found {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        // SAFETY: the kernel has written `found` events, at most as many as there is room for.
        unsafe { batch.set_len(found) };
        Ok(())
    }

    fn pwait2(
        &self,
        batch: &mut Vec<libc::epoll_event>,
        room: i32,
        timeout: Option<u64>,
    ) -> io::Result<usize> {
        let timeout = timeout.map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |t| t as *const _);
        // SAFETY: `batch` has room for `room` events; the timeout is null or outlives the call; a
        // null signal mask asks for none.
        let result = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                batch.as_mut_ptr(),
                room,
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        check(result as i32)
    }

    fn wait_ms(
        &self,
        batch: &mut Vec<libc::epoll_event>,
        room: i32,
        timeout: Option<u64>,
    ) -> io::Result<usize> {
        let timeout = timeout.map_or(-1, |ns| {
            i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: `batch` has room for `room` events.
        let result =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), batch.as_mut_ptr(), room, timeout) };
        check(result)
    }

    fn reset_waker(&self) {
        let mut count = 0_u64;
        // SAFETY: an eventfd gives eight bytes, and there is room for them. It cannot block; if
        // another wait has emptied it in between, there is nothing to do.
        unsafe {
            libc::read(
                self.waker.as_raw_fd(),
                (&raw mut count).cast(),
                size_of::<u64>(),
            )
        };
    }
}

impl Selector for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn add(&self, source: RawSource, key: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, source, key, flags(interest))
    }

    fn modify(&self, source: RawSource, key: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, source, key, flags(interest))
    }

    fn remove(&self, source: RawSource) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, source, 0, 0)
    }

    fn add_handle(&self, handle: RawHandle, key: u64, interest: Interest) -> io::Result<()> {
        self.add(handle, key, interest)
    }

    fn remove_handle(&self, handle: RawHandle) -> io::Result<()> {
        self.remove(handle)
    }

    fn add_process(&self, process: &Process, key: u64) -> io::Result<()> {
        self.add(process.handle(), key, Interest::READ)
    }

    fn remove_process(&self, process: &Process) -> io::Result<()> {
        self.remove(process.handle())
    }

    fn wait(&self, events: &mut Events, timeout: Option<u64>) -> io::Result<()> {
        if !matches!(events.scratch, Scratch::Epoll(_)) {
            events.scratch = Scratch::Epoll(Vec::with_capacity(BATCH));
        }
        let Scratch::Epoll(batch) = &mut events.scratch else {
            return Ok(());
        };
        events.found.clear();
        self.wait_raw(batch, timeout)?;
        for event in batch.iter() {
            let (key, flags) = (event.u64, event.events);
            if key == WAKE {
                self.reset_waker();
                continue;
            }
            events.found.push(Event {
                key,
                readable: flags & (READ | BROKEN | libc::EPOLLPRI as u32) != 0,
                writable: flags & (WRITE | BROKEN) != 0,
            });
        }
        Ok(())
    }

    fn wake(&self) -> io::Result<()> {
        let one = 1_u64;
        // SAFETY: eight readable bytes, as an eventfd wants them.
        let written = unsafe {
            libc::write(
                self.waker.as_raw_fd(),
                (&raw const one).cast(),
                size_of::<u64>(),
            )
        };
        match check(written as i32) {
            // The counter is full: a wake-up is pending, which is all we want.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map(drop),
        }
    }

    fn descriptor(&self) -> Option<RawSource> {
        Some(self.epoll.as_raw_fd())
    }
}

fn flags(interest: Interest) -> u32 {
    let read = if interest.read {
        libc::EPOLLIN as u32
    } else {
        0
    };
    let write = if interest.write { WRITE } else { 0 };
    read | write
}

fn check(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn owned(result: i32) -> io::Result<OwnedFd> {
    check(result)?;
    // SAFETY: the system call has just returned this descriptor, so it is open and only ours.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}
