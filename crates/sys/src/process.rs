//! The end of a process, as something that a selector can wait for.
//!
//! Each system has a thing that is about one process and cannot be mistaken for the next one of its
//! number: a pidfd on Linux, a handle on Windows. kqueue takes the number itself, and the caller must not
//! have collected the process before. Collecting it (`waitpid`) stays the caller's.

use std::io;

#[cfg(target_os = "linux")]
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
#[cfg(windows)]
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};

#[cfg(not(all(unix, not(target_os = "linux"))))]
use crate::selector::RawHandle;

/// A process that may end.
#[derive(Debug)]
pub struct Process {
    #[cfg(target_os = "linux")]
    descriptor: OwnedFd,
    #[cfg(windows)]
    handle: OwnedHandle,
    #[cfg(all(unix, not(target_os = "linux")))]
    pid: std::num::NonZeroI32,
}

#[cfg(target_os = "linux")]
impl Process {
    /// A process by its number: a child of ours that nobody has collected yet.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked before it is owned.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system call has just returned this descriptor, so it is open and only ours.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
        Ok(Self { descriptor })
    }

    /// Readable once the process has ended.
    pub(crate) fn handle(&self) -> RawHandle {
        self.descriptor.as_raw_fd()
    }
}

#[cfg(windows)]
impl Process {
    /// A process by its number.
    pub fn open(pid: u32) -> io::Result<Self> {
        use windows_sys::Win32::System::Threading::{
            OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE,
        };
        // SAFETY: takes no pointers; the result is checked before it is owned.
        let handle = unsafe {
            OpenProcess(
                PROCESS_SYNCHRONIZE | PROCESS_QUERY_LIMITED_INFORMATION,
                0,
                pid,
            )
        };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the system has just returned this handle, so it is open and only ours.
        let handle = unsafe { OwnedHandle::from_raw_handle(handle) };
        Ok(Self { handle })
    }

    /// Signalled once the process has ended.
    pub(crate) fn handle(&self) -> RawHandle {
        self.handle.as_raw_handle()
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
impl Process {
    /// A process by its number: a child of ours that nobody has collected yet.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(std::num::NonZeroI32::new);
        match pid {
            Some(pid) => Ok(Self { pid }),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    pub(crate) fn pid(&self) -> std::num::NonZeroI32 {
        self.pid
    }
}
