//! Which connections can go on: epoll on Linux, `poll` elsewhere. Level-triggered in both, so a caller
//! may stop reading whenever it likes and is told again.

use std::io;
use std::time::Duration;

use rustix::event::Timespec;

use crate::connection::Connection;

pub use system::Readiness;

/// Its integers differ between systems; what does not fit is as good as for ever.
fn timespec(timeout: Duration) -> Timespec {
    Timespec::try_from(timeout).unwrap_or(Timespec {
        tv_sec: i32::MAX.into(),
        tv_nsec: 0,
    })
}

/// A signal that interrupts the wait is an early return without events, not an error.
fn interrupted<T>(result: rustix::io::Result<T>, nothing: T) -> io::Result<T> {
    match result {
        Err(rustix::io::Errno::INTR) => Ok(nothing),
        other => other.map_err(io::Error::from),
    }
}

#[cfg(target_os = "linux")]
mod system {
    use super::{Connection, Duration, interrupted, io, timespec};
    use rustix::event::epoll;

    pub struct Readiness {
        epoll: rustix::fd::OwnedFd,
        events: Vec<epoll::Event>,
    }

    impl Readiness {
        /// Watches every connection for reading.
        pub fn new(connections: &[Connection]) -> io::Result<Self> {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            for (index, connection) in connections.iter().enumerate() {
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(&epoll, connection.stream(), data, epoll::EventFlags::IN)?;
            }
            let events = Vec::with_capacity(connections.len().clamp(1, 1024));
            Ok(Self { epoll, events })
        }

        /// Says whether connection `index` also waits until it can send.
        pub fn watch_writing(
            &mut self,
            index: usize,
            connection: &Connection,
            on: bool,
        ) -> io::Result<()> {
            let data = epoll::EventData::new_u64(index as u64);
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, on);
            Ok(epoll::modify(
                &self.epoll,
                connection.stream(),
                data,
                flags,
            )?)
        }

        /// Appends the indices of the connections that can go on.
        pub fn wait(
            &mut self,
            _connections: &[Connection],
            timeout: Duration,
            ready: &mut Vec<usize>,
        ) -> io::Result<()> {
            self.events.clear();
            let room = rustix::buffer::spare_capacity(&mut self.events);
            interrupted(epoll::wait(&self.epoll, room, Some(&timespec(timeout))), 0)?;
            ready.extend(self.events.iter().map(|event| event.data.u64() as usize));
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Connection, Duration, interrupted, io, timespec};
    use rustix::event::{PollFd, PollFlags, poll};

    pub struct Readiness {
        writing: Vec<bool>,
    }

    impl Readiness {
        pub fn new(connections: &[Connection]) -> io::Result<Self> {
            let writing = vec![false; connections.len()];
            Ok(Self { writing })
        }

        pub fn watch_writing(
            &mut self,
            index: usize,
            _connection: &Connection,
            on: bool,
        ) -> io::Result<()> {
            self.writing[index] = on;
            Ok(())
        }

        pub fn wait(
            &mut self,
            connections: &[Connection],
            timeout: Duration,
            ready: &mut Vec<usize>,
        ) -> io::Result<()> {
            let mut fds: Vec<_> = connections
                .iter()
                .zip(&self.writing)
                .map(|(connection, writing)| {
                    let mut flags = PollFlags::IN;
                    flags.set(PollFlags::OUT, *writing);
                    PollFd::new(connection.stream(), flags)
                })
                .collect();
            interrupted(poll(&mut fds, Some(&timespec(timeout))), 0)?;
            let answered = fds.iter().enumerate();
            ready.extend(
                answered
                    .filter(|(_, fd)| !fd.revents().is_empty())
                    .map(|(index, _)| index),
            );
            Ok(())
        }
    }
}
