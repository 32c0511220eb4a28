//! Every other system, and Linux when asked: the `polling` crate.
//!
//! kqueue on macOS and the BSDs, IOCP with AFD on Windows, epoll on Linux. `polling` watches in
//! oneshot mode unless told otherwise; we ask for level mode, which all three have.

use std::io;
use std::mem::ManuallyDrop;
use std::time::Duration;

use polling::{PollMode, Poller};

use super::{Event, Events, Interest, Scratch, Selector};
use crate::fork;
use crate::socket::{RawSource, borrow};

/// A `polling::Poller` in level mode.
#[derive(Debug)]
pub struct Portable {
    poller: ManuallyDrop<Poller>,
    /// The process that made it: see `drop`.
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
    /// A forked child only leaves it: before it closes its descriptors, a `Poller` takes its own ones out of
    /// the kernel's object, which is the parent's too. The child keeps two or three descriptors for that.
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            // SAFETY: this is the only place that drops it, and a value is dropped once.
            unsafe { ManuallyDrop::drop(&mut self.poller) };
        }
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
