//! Which connections can go on: the project's own selector, with a connection's index as its key.

use std::io;
use std::time::Duration;

use tideloop_sys::selector::{self, Backend, Events, Interest, Selector};

use crate::connection::Connection;

pub struct Readiness {
    selector: Box<dyn Selector>,
    events: Events,
}

impl Readiness {
    /// Watches every connection for reading.
    pub fn new(connections: &[Connection]) -> io::Result<Self> {
        let readiness = Self {
            selector: selector::new(Backend::Default)?,
            events: Events::default(),
        };
        for (index, connection) in connections.iter().enumerate() {
            readiness.watch(index, connection)?;
        }
        Ok(readiness)
    }

    /// Watches connection `index` for reading.
    pub fn watch(&self, index: usize, connection: &Connection) -> io::Result<()> {
        self.selector
            .add(connection.stream().raw(), index as u64, Interest::READ)
    }

    /// Watches a connection no longer.
    pub fn forget(&self, connection: &Connection) -> io::Result<()> {
        self.selector.remove(connection.stream().raw())
    }

    /// Says whether connection `index` also waits until it can send.
    pub fn watch_writing(
        &mut self,
        index: usize,
        connection: &Connection,
        on: bool,
    ) -> io::Result<()> {
        let interest = Interest {
            read: true,
            write: on,
        };
        self.selector
            .modify(connection.stream().raw(), index as u64, interest)
    }

    /// Appends the indices of the connections that can go on.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        let nanoseconds = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.selector.wait(&mut self.events, Some(nanoseconds))?;
        ready.extend(self.events.iter().map(|event| event.key as usize));
        Ok(())
    }
}
