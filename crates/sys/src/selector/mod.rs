//! Readiness: which descriptors can be read or written now.
//!
//! The contract that every backend keeps:
//!
//! * Level-triggered: a descriptor that stays ready is reported by every [`Selector::wait`].
//! * A key is reported only while it is registered, and only for what it asked for; errors and
//!   hang-ups count as both. A descriptor with no interest left must be removed.
//! * `wait` takes a timeout in nanoseconds and never returns early without an event or a wake-up,
//!   except when a signal arrives. Where the system knows only milliseconds it waits longer.
//! * [`Selector::wake`] may be called from any thread at any time, also before `wait`, and is not
//!   lost. Several wake-ups may come out as one. It is the only method meant for other threads; the
//!   others are merely harmless there.

#[cfg(target_os = "linux")]
mod epoll;
mod portable;

use std::fmt::Debug;
use std::io;

use crate::process::Process;
use crate::socket::RawSource;

/// What can be waited for and is no socket: a descriptor on UNIX; on Windows a handle that is signalled.
#[cfg(unix)]
pub type RawHandle = std::os::fd::RawFd;
#[cfg(windows)]
pub type RawHandle = std::os::windows::io::RawHandle;

#[cfg(target_os = "linux")]
pub use epoll::Epoll;
pub use portable::Portable;

/// What a registration waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };

    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// One registration that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub key: u64,
    pub readable: bool,
    pub writable: bool,
}

/// Where [`Selector::wait`] puts what it found; kept and reused by the caller.
#[derive(Debug, Default)]
pub struct Events {
    pub(crate) found: Vec<Event>,
    scratch: Scratch,
}

#[derive(Default)]
enum Scratch {
    #[default]
    None,
    #[cfg(target_os = "linux")]
    Epoll(Vec<libc::epoll_event>),
    Portable(polling::Events),
}

impl Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch")
    }
}

impl Events {
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.found.iter().copied()
    }

    pub fn get(&self, index: usize) -> Option<Event> {
        self.found.get(index).copied()
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn clear(&mut self) {
        self.found.clear();
    }
}

/// The readiness contract of this module.
pub trait Selector: Send + Sync + Debug {
    /// What the backend is called, for people.
    fn name(&self) -> &'static str;

    /// Watches a descriptor. The caller keeps it open until it is removed.
    fn add(&self, source: RawSource, key: u64, interest: Interest) -> io::Result<()>;

    /// Changes what a watched descriptor waits for.
    fn modify(&self, source: RawSource, key: u64, interest: Interest) -> io::Result<()>;

    /// Stops watching. Events already found are the caller's to pass over. Removing what is not
    /// watched is an error on some systems and nothing on others.
    fn remove(&self, source: RawSource) -> io::Result<()>;

    /// Watches a descriptor or handle that is no socket. The caller keeps it open until it is removed.
    fn add_handle(&self, handle: RawHandle, key: u64, interest: Interest) -> io::Result<()>;

    /// Stops watching a descriptor or handle that is no socket.
    fn remove_handle(&self, handle: RawHandle) -> io::Result<()>;

    /// Watches for the end of a process, which is reported as readable, at least once.
    fn add_process(&self, process: &Process, key: u64) -> io::Result<()>;

    /// Stops watching for the end of a process.
    fn remove_process(&self, process: &Process) -> io::Result<()>;

    /// Replaces `events` with what is ready, waiting for at most `timeout` nanoseconds (`None`: until
    /// something happens). A signal ends the wait with no events and no error.
    fn wait(&self, events: &mut Events, timeout: Option<u64>) -> io::Result<()>;

    /// Ends the wait that is under way, or else the next one.
    fn wake(&self) -> io::Result<()>;

    /// A descriptor that is readable whenever `wait` would return at once (timeouts apart), for another
    /// selector to watch; None where there is none. It belongs to the selector.
    fn descriptor(&self) -> Option<RawSource> {
        None
    }
}

/// Names a backend, as `TIDELOOP_SELECTOR` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The best one of this system.
    Default,
    /// The portable one, wherever we are.
    Portable,
}

/// Makes a selector.
pub fn new(backend: Backend) -> io::Result<Box<dyn Selector>> {
    match backend {
        #[cfg(target_os = "linux")]
        Backend::Default => Ok(Box::new(Epoll::new()?)),
        #[cfg(not(target_os = "linux"))]
        Backend::Default => Ok(Box::new(Portable::new()?)),
        Backend::Portable => Ok(Box::new(Portable::new()?)),
    }
}
