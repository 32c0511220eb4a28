//! Every other system, and Linux when asked: the `polling` crate.
//!
//! kqueue on macOS and the BSDs, IOCP with AFD on Windows, epoll on Linux. `polling` watches in
//! oneshot mode unless told otherwise; we ask for level mode, which all three have.

use std::io;
use std::time::Duration;

use polling::{PollMode, Poller};

use super::{Event, Events, Interest, Scratch, Selector};
use crate::socket::{RawSource, borrow};

/// A `polling::Poller` in level mode.
#[derive(Debug)]
pub struct Portable {
    poller: Poller,
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
        Ok(Self { poller })
    }
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
