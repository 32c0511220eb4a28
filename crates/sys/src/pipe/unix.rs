//! UNIX: descriptors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::selector::RawHandle;

#[derive(Debug)]
pub struct Reader(File);

#[derive(Debug)]
pub struct Writer(File);

pub fn pair() -> io::Result<(Reader, Writer)> {
    let mut ends = [-1; 2];
    // SAFETY: there is room for two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call has just returned these descriptors, so they are open and only ours.
    let [reader, writer] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    for end in [&reader, &writer] {
        prepare(end)?;
    }
    Ok((Reader(reader.into()), Writer(writer.into())))
}

/// Non-blocking, and closed in children that run another program.
fn prepare(end: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open; these commands take and return numbers.
    let done = unsafe {
        let flags = libc::fcntl(end.as_raw_fd(), libc::F_GETFL);
        flags >= 0
            && libc::fcntl(end.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) >= 0
            && libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) >= 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Reader {
    pub fn handle(&self) -> RawHandle {
        self.0.as_raw_fd()
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Writer {
    pub fn handle(&self) -> RawHandle {
        self.0.as_raw_fd()
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
