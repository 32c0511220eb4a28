//! Anonymous pipes whose ends never block and that a selector can watch.
//!
//! On UNIX an end is a descriptor, and the system tells when it is ready. Windows can only say that an
//! operation has finished, so there an end always has one under way: the reader reads ahead into a buffer
//! of its own, the writer takes bytes over and writes them out of one. What the selector watches is the
//! event that the system sets at the end of the operation; it stays set until the next one begins, so that
//! readiness is level-triggered there too.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::io;

use crate::selector::{Interest, Selector};

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

/// Makes a pipe; neither end is inherited by child processes.
pub fn pair() -> io::Result<(Reader, Writer)> {
    let (reader, writer) = system::pair()?;
    Ok((Reader(reader), Writer(writer)))
}

/// The end to read from.
#[derive(Debug)]
pub struct Reader(system::Reader);

impl Reader {
    /// Reads what is there, at most as much as fits; zero bytes mean that all writers are gone. Fails
    /// with `WouldBlock` while nothing is there.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    /// Has the selector report `key` as readable while there is something to read, or the end.
    pub fn watch(&self, selector: &dyn Selector, key: u64) -> io::Result<()> {
        selector.add_handle(self.0.handle(), key, Interest::READ)
    }

    pub fn unwatch(&self, selector: &dyn Selector) -> io::Result<()> {
        selector.remove_handle(self.0.handle())
    }
}

/// The end to write to.
#[derive(Debug)]
pub struct Writer(system::Writer);

impl Writer {
    /// Writes as much as the pipe takes; fails with `WouldBlock` while it takes nothing, and with
    /// `BrokenPipe` once all readers are gone.
    ///
    /// On Windows an error may be that of the bytes before, and bytes that the system has not taken yet
    /// are lost if the writer is dropped before [`Writer::flush`] says that they went.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// Whether the system has all bytes; `WouldBlock` as long as it has not.
    pub fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    /// Has the selector report `key` as writable while the pipe takes bytes, or all readers are gone.
    pub fn watch(&self, selector: &dyn Selector, key: u64) -> io::Result<()> {
        selector.add_handle(self.0.handle(), key, Interest::WRITE)
    }

    pub fn unwatch(&self, selector: &dyn Selector) -> io::Result<()> {
        selector.remove_handle(self.0.handle())
    }
}
