//! Who waits for which descriptor.
//!
//! A registration is either a pair of Python callbacks (add_reader, add_writer) or one native owner
//! (a transport, a listener). The registry gives out keys that die with their registration, so that
//! an event which was found before a descriptor was closed cannot reach whoever opens its number
//! next. A descriptor is in the selector exactly while somebody wants something of it.
//!
//! Whatever is removed is returned, to be dropped by the caller outside of the cell.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyWeakrefReference;
use pyo3::{PyTraverseError, PyVisit, intern};
use tideloop_core::registry::{Key, Registry};
use tideloop_sys::datagram::Arrivals;
use tideloop_sys::fork;
use tideloop_sys::selector::{self, Backend, Event, Events, Interest, Selector};
use tideloop_sys::socket::RawSource;

use crate::datagram::DatagramTransport;
use crate::errors::os_error;
use crate::ffi::call::closed_error;
use crate::ffi::cell::LoopCell;
use crate::ffi::prefetch;
use crate::listener::Listener;
use crate::transport::StreamTransport;

/// Which of the two callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Reader,
    Writer,
}

/// Who waits for one side of a descriptor.
#[derive(Default)]
pub enum Slot {
    #[default]
    Nobody,
    /// A handle, which is run whenever the side is ready.
    Callback(Py<PyAny>),
    /// A future of an operation, which is ended once. The selector goes on watching afterwards, until
    /// something comes that nobody waits for: an operation that follows finds the watch as it was.
    Once(Py<PyAny>),
}

impl Slot {
    fn object(&self) -> Option<&Py<PyAny>> {
        match self {
            Self::Nobody => None,
            Self::Callback(object) | Self::Once(object) => Some(object),
        }
    }

    fn is_nobody(&self) -> bool {
        matches!(self, Self::Nobody)
    }
}

/// Who is told.
pub enum Target {
    Callbacks {
        reader: Slot,
        writer: Slot,
        /// A weak reference to the socket that operations have waited for: a watch that nobody uses may be
        /// that of a descriptor which was closed since, and whose number is another's now.
        socket: Option<Py<PyAny>>,
        /// What the user registered, if not a number: kept open as long as we watch it.
        file: Option<Py<PyAny>>,
    },
    Stream(Py<StreamTransport>),
    Datagram(Py<DatagramTransport>),
    Listener(Py<Listener>),
}

struct Registration {
    source: RawSource,
    interest: Interest,
    target: Target,
    /// It is in [`Inner::doubtful`].
    doubtful: bool,
}

impl Registration {
    fn slot(&mut self, side: Side) -> Option<&mut Slot> {
        match (&mut self.target, side) {
            (Target::Callbacks { reader, .. }, Side::Reader) => Some(reader),
            (Target::Callbacks { writer, .. }, Side::Writer) => Some(writer),
            _ => None,
        }
    }

    fn is_idle(&self) -> bool {
        match &self.target {
            Target::Callbacks { reader, writer, .. } => reader.is_nobody() && writer.is_nobody(),
            _ => false,
        }
    }

    fn has_callback(&self) -> bool {
        match &self.target {
            Target::Callbacks { reader, writer, .. } => {
                matches!(reader, Slot::Callback(_)) || matches!(writer, Slot::Callback(_))
            }
            _ => false,
        }
    }

    fn take_file(&mut self) -> Option<Py<PyAny>> {
        match &mut self.target {
            Target::Callbacks { file, .. } => file.take(),
            _ => None,
        }
    }

    /// Takes note of the socket that operations wait for; returns the one before.
    fn recognise(&mut self, socket: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        match &mut self.target {
            Target::Callbacks { socket: known, .. } => std::mem::replace(known, socket),
            _ => socket,
        }
    }

    /// Keeps what the user has registered, if nothing is kept yet; else hands it back.
    fn keep(&mut self, new: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        match &mut self.target {
            Target::Callbacks {
                file: file @ None, ..
            } => {
                *file = new;
                None
            }
            _ => new,
        }
    }
}

struct Inner {
    /// None once the loop is closed.
    selector: Option<Arc<dyn Selector>>,
    generation: u32,
    backend: Backend,
    registry: Registry<Registration>,
    keys: HashMap<RawSource, Key>,
    /// Watches that were relied on without asking the system, since the loop slept last.
    doubtful: Vec<Key>,
    /// Polls of a loop that did not sleep since they were asked about.
    unasked: u32,
    /// Whether a watch could not be removed: if its file lives on (a duplicate, a child's), nobody can remove it,
    /// and it goes on to report.
    lost: bool,
    /// Events since then that were nobody's.
    strays: u32,
    /// Whether somebody else waits on the selector's descriptor, which must stay what it is.
    pinned: bool,
}

/// Polls of a loop that does not sleep after which it asks about what it relied on.
const UNASKED: u32 = 64;

/// Events that are nobody's after which the selector is made anew. One whose registration was removed in the
/// same batch is nothing special; a watch that was lost reports in every poll.
const STRAYS: u32 = 1_000;

/// What remove_callback() has taken out.
#[derive(Default)]
#[must_use = "it may own Python objects, which are dropped outside of the cell"]
pub struct Removed {
    /// Whether somebody waited.
    pub waited: bool,
    pub objects: Vec<Py<PyAny>>,
}

/// What to do about one event.
pub enum Delivery {
    Nothing,
    Callbacks(Slot, Slot),
    Stream(Py<StreamTransport>),
    Datagram(Py<DatagramTransport>),
    Listener(Py<Listener>),
}

/// A loop's registrations and its selector.
pub struct Reactor {
    inner: LoopCell<Inner>,
    arrivals: LoopCell<Arrivals>,
}

impl Reactor {
    pub fn new(backend: Backend) -> io::Result<Self> {
        Ok(Self {
            inner: LoopCell::new(Inner {
                selector: Some(Arc::from(selector::new(backend)?)),
                generation: fork::generation(),
                backend,
                registry: Registry::default(),
                keys: HashMap::new(),
                doubtful: Vec::new(),
                unasked: 0,
                lost: false,
                strays: 0,
                pinned: false,
            }),
            arrivals: LoopCell::new(Arrivals::default()),
        })
    }

    /// The selector, to wait on outside of the cell.
    pub fn selector(&self, py: Python<'_>) -> PyResult<Arc<dyn Selector>> {
        self.inner
            .with(py, |inner| inner.selector().cloned())
            .map_err(Failure::into_error)
    }

    /// From now on the selector is never made anew.
    pub fn pin(&self, py: Python<'_>) {
        self.inner.with(py, |inner| inner.pinned = true);
    }

    pub fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.selector(py)?.wake().map_err(os_error)
    }

    /// Lends what datagrams are received into.
    pub fn arrivals<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Arrivals) -> R) -> R {
        self.arrivals.with(py, f)
    }

    /// How many descriptors are registered.
    pub fn len(&self, py: Python<'_>) -> usize {
        self.inner.with(py, |inner| inner.registry.len())
    }

    /// How many of them are transports'.
    pub fn transports(&self, py: Python<'_>) -> usize {
        self.inner.with(py, |inner| {
            let targets = inner.registry.iter().map(|entry| &entry.target);
            targets
                .filter(|target| matches!(target, Target::Stream(_) | Target::Datagram(_)))
                .count()
        })
    }

    /// Sets one callback of a descriptor and returns the one it replaces.
    pub fn set_callback(
        &self,
        py: Python<'_>,
        source: RawSource,
        side: Side,
        waiting: Slot,
        file: Option<Py<PyAny>>,
    ) -> PyResult<Slot> {
        let (result, surplus, left) = self.inner.with(py, |inner| {
            if let Err(failure) = inner.selector() {
                return (Err(failure), file, None);
            }
            // A watch that was left over may be that of another file.
            let (key, left) = inner.callbacks_anew(source);
            let surplus = match inner.registry.entry_mut(key) {
                Some(entry) => entry.keep(file),
                None => file,
            };
            let result = inner.set_callback(py, key, side, waiting);
            (result, surplus, left)
        });
        drop(left);
        drop(surplus.map(|file| file.into_bound(py)));
        self.replaced(py, source, result)
    }

    /// Lets a future wait, once, for a side of a Python socket with this descriptor, and returns whom it
    /// replaces. `again`: it was woken for nothing. Raises RuntimeError if a transport uses the descriptor.
    pub fn set_waiter<'py>(
        &self,
        sock: &Bound<'py, PyAny>,
        source: RawSource,
        side: Side,
        future: &Bound<'py, PyAny>,
        again: bool,
    ) -> PyResult<Slot> {
        let py = sock.py();
        let known = self.inner.with(py, |inner| {
            let key = inner.keys.get(&source)?;
            match &inner.registry.entry(*key)?.target {
                Target::Callbacks {
                    socket: Some(socket),
                    ..
                } => Some(socket.bind(py).clone()),
                _ => None,
            }
        });
        let same = known.is_some_and(|known| {
            known
                .cast::<PyWeakrefReference>()
                .is_ok_and(|known| known.upgrade().is_some_and(|known| known.is(sock)))
        });
        // A socket that cannot be referred to weakly is not recognised, and watched anew each time.
        let reference = match same {
            true => None,
            false => PyWeakrefReference::new(sock).ok(),
        };
        let waiting = Slot::Once(future.clone().unbind());
        let (result, old, left) = self.inner.with(py, |inner| {
            if let Err(failure) = inner.selector() {
                return (Err(failure), None, None);
            }
            let (key, left) = match same {
                true => (inner.callbacks(source), None),
                false => inner.callbacks_anew(source),
            };
            let old = match inner.registry.entry_mut(key) {
                Some(entry) if !same => {
                    entry.recognise(reference.map(|new| new.into_any().unbind()))
                }
                _ => None,
            };
            let watched = inner.is_watched(key, side);
            let mut result = inner.set_callback(py, key, side, waiting);
            if watched && same && !again {
                inner.doubt(key);
            } else if watched
                && result.is_ok()
                && let Err(failure) = inner.watch_again(key)
            {
                // The caller still holds the future that is taken out again.
                let entry = inner.entry_of(source);
                if let Some(slot) = entry.and_then(|entry| entry.slot(side)) {
                    *slot = Slot::Nobody;
                }
                result = Err(failure);
            }
            (result, old, left)
        });
        drop(left);
        drop(old.map(|old| old.into_bound(py)));
        self.replaced(py, source, result)
    }

    /// Whether a loop that does not sleep should ask now.
    pub fn is_overdue(&self, py: Python<'_>) -> bool {
        self.inner.with(py, |inner| {
            if inner.doubtful.is_empty() {
                return false;
            }
            inner.unasked += 1;
            inner.unasked >= UNASKED
        })
    }

    /// Asks the system about the watches that were relied on: `os.dup2()` may have put another file in the place
    /// of the one that is watched. Called before the loop sleeps, and by a
    /// loop that does not sleep now and then. Returns who
    /// is to find out for himself, since the descriptor cannot be watched.
    pub fn confirm(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        self.inner.with(py, |inner| {
            inner.unasked = 0;
            let mut unwatched = Vec::new();
            while let Some(key) = inner.doubtful.pop() {
                let Some(entry) = inner.registry.entry_mut(key) else {
                    continue;
                };
                entry.doubtful = false;
                let source = entry.source;
                if entry.is_idle() || inner.watch_again(key).is_ok() {
                    continue;
                }
                let target = inner.entry_of(source).map(|entry| &mut entry.target);
                let Some(Target::Callbacks { reader, writer, .. }) = target else {
                    continue;
                };
                for slot in [reader, writer] {
                    if let Slot::Once(_) = slot
                        && let Slot::Once(future) = std::mem::take(slot)
                    {
                        unwatched.push(future);
                    }
                }
            }
            unwatched
        })
    }

    /// No longer watches a side, unless somebody waits for it.
    pub fn end_watch(&self, py: Python<'_>, source: RawSource, side: Side) -> Removed {
        self.inner.with(py, |inner| {
            match inner.entry_of(source).and_then(|entry| entry.slot(side)) {
                Some(Slot::Nobody) => inner.remove_callback(source, side),
                _ => Removed::default(),
            }
        })
    }

    /// Takes a future out again that waits for nothing any more. The watch stays.
    pub fn remove_waiter(
        &self,
        py: Python<'_>,
        source: Option<RawSource>,
        side: Side,
        future: &Bound<'_, PyAny>,
    ) {
        let removed = self.inner.with(py, |inner| {
            let Inner { registry, keys, .. } = inner;
            let entry = match source {
                Some(source) => keys.get(&source).and_then(|&key| registry.entry_mut(key)),
                None => None,
            };
            let slot = entry?.slot(side)?;
            match slot {
                Slot::Once(waiting) if waiting.is(future) => Some(std::mem::take(slot)),
                _ => None,
            }
        });
        if let Some(Slot::Once(future)) = removed {
            drop(future.into_bound(py));
        }
    }

    fn replaced(
        &self,
        py: Python<'_>,
        source: RawSource,
        result: Result<Slot, Failure>,
    ) -> PyResult<Slot> {
        match result {
            Ok(replaced) => Ok(replaced),
            Err(Failure::InUse(owner)) => {
                let owner = owner.into_bound(py);
                Err(PyRuntimeError::new_err(format!(
                    "File descriptor {source} is used by transport {}",
                    owner.repr()?
                )))
            }
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// Removes whoever waits for a side of a descriptor. What comes back is to be dropped.
    pub fn remove_callback(&self, py: Python<'_>, source: RawSource, side: Side) -> Removed {
        self.inner
            .with(py, |inner| inner.remove_callback(source, side))
    }

    /// The descriptor under which a file object was registered, if it can no longer tell itself.
    pub fn source_of(&self, py: Python<'_>, wanted: &Bound<'_, PyAny>) -> Option<RawSource> {
        self.inner.with(py, |inner| {
            inner.registry.iter().find_map(|entry| match &entry.target {
                Target::Callbacks {
                    file: Some(file), ..
                } if file.is(wanted) => Some(entry.source),
                _ => None,
            })
        })
    }

    /// What is watched on a descriptor.
    pub fn interest_of(&self, py: Python<'_>, source: RawSource) -> Interest {
        self.inner.with(py, |inner| {
            let key = inner.keys.get(&source);
            let entry = key.and_then(|&key| inner.registry.entry(key));
            entry.map_or(Interest::NONE, |entry| entry.interest)
        })
    }

    /// The transport that owns a descriptor, if one does.
    pub fn transport_of(&self, py: Python<'_>, source: RawSource) -> Option<Py<PyAny>> {
        self.inner.with(py, |inner| {
            let key = inner.keys.get(&source)?;
            match &inner.registry.entry(*key)?.target {
                Target::Stream(transport) => Some(transport.clone_ref(py).into_any()),
                Target::Datagram(transport) => Some(transport.clone_ref(py).into_any()),
                _ => None,
            }
        })
    }

    /// Whether anything is registered for a key.
    pub fn is_registered(&self, py: Python<'_>, key: Key) -> bool {
        self.inner
            .with(py, |inner| inner.registry.entry(key).is_some())
    }

    /// Registers a native owner, which wants nothing yet.
    pub fn register(&self, py: Python<'_>, source: RawSource, target: Target) -> PyResult<Key> {
        let (result, stale) = self.inner.with(py, |inner| {
            if let Err(failure) = inner.selector() {
                return (Err(failure), None);
            }
            // A descriptor of this number that is still registered was closed behind our back.
            let stale = inner.keys.get(&source).copied();
            let stale = stale.and_then(|key| inner.unregister(key));
            (Ok(inner.insert(source, target)), stale)
        });
        drop(stale);
        result.map_err(Failure::into_error)
    }

    /// Says what a native owner wants from now on.
    pub fn set_interest(&self, py: Python<'_>, key: Key, interest: Interest) -> PyResult<()> {
        self.inner
            .with(py, |inner| inner.set_interest(key, interest))
            .map_err(Failure::into_error)
    }

    /// Ends a registration. The caller drops what comes back.
    #[must_use = "it may own Python objects, which are dropped outside of the cell"]
    pub fn unregister(&self, py: Python<'_>, key: Key) -> Option<Target> {
        self.inner.with(py, |inner| inner.unregister(key))
    }

    /// The events that come next: has the processor fetch what their deliveries begin with.
    #[inline]
    pub fn expect(&self, py: Python<'_>, next: Option<Event>, after: Option<Event>) {
        let Some(next) = next else {
            return;
        };
        self.inner.with(py, |inner| {
            if let Some(after) = after
                && let Some(place) = inner.registry.place(Key::from_u64(after.key))
            {
                prefetch::place(place);
            }
            let entry = inner.registry.entry(Key::from_u64(next.key));
            if let Some(Target::Stream(transport)) = entry.map(|entry| &entry.target) {
                prefetch::object(transport);
            }
        });
    }

    /// Whom an event is for.
    #[inline]
    pub fn deliver(&self, py: Python<'_>, event: Event) -> Delivery {
        self.inner.with(py, |inner| {
            let Some(entry) = inner.registry.entry(Key::from_u64(event.key)) else {
                inner.stray();
                return Delivery::Nothing;
            };
            match &entry.target {
                Target::Stream(transport) => Delivery::Stream(transport.clone_ref(py)),
                Target::Datagram(transport) => Delivery::Datagram(transport.clone_ref(py)),
                Target::Listener(listener) => Delivery::Listener(listener.clone_ref(py)),
                Target::Callbacks { .. } => inner.due(py, event),
            }
        })
    }

    /// Closes the selector and returns everything that was registered.
    #[must_use = "it owns Python objects, which are dropped outside of the cell"]
    pub fn close(&self, py: Python<'_>) -> Vec<Target> {
        let (selector, targets) = self.inner.with(py, |inner| {
            inner.keys.clear();
            let entries = inner.registry.take_all();
            (inner.selector.take(), entries)
        });
        drop(selector);
        targets.into_iter().map(|entry| entry.target).collect()
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let visited = self.inner.try_with(|inner| {
            for entry in inner.registry.iter() {
                match &entry.target {
                    Target::Callbacks {
                        reader,
                        writer,
                        socket,
                        file,
                    } => {
                        visit.call(reader.object())?;
                        visit.call(writer.object())?;
                        visit.call(socket)?;
                        visit.call(file)?;
                    }
                    Target::Stream(transport) => visit.call(transport)?,
                    Target::Datagram(transport) => visit.call(transport)?,
                    Target::Listener(listener) => visit.call(listener)?,
                }
            }
            Ok(())
        });
        visited.unwrap_or(Ok(()))
    }
}

enum Failure {
    Closed,
    InUse(Py<PyAny>),
    System(io::Error),
}

impl Failure {
    fn into_error(self) -> PyErr {
        match self {
            Self::Closed => closed_error(),
            Self::InUse(_) => PyRuntimeError::new_err("file descriptor is used by a transport"),
            Self::System(error) => os_error(error),
        }
    }
}

impl Inner {
    /// The selector of this process: in a forked child, a new one with all registrations.
    fn selector(&mut self) -> Result<&Arc<dyn Selector>, Failure> {
        let generation = fork::generation();
        if self.selector.is_some() && generation != self.generation {
            self.renew()?;
        }
        self.selector.as_ref().ok_or(Failure::Closed)
    }

    /// Makes a new selector with all registrations.
    fn renew(&mut self) -> Result<(), Failure> {
        let fresh = selector::new(self.backend).map_err(Failure::System)?;
        for (&source, &key) in &self.keys {
            if let Some(entry) = self.registry.entry(key)
                && !entry.interest.is_none()
            {
                // A descriptor that was closed meanwhile is simply not watched.
                fresh.add(source, key.to_u64(), entry.interest).ok();
            }
        }
        self.selector = Some(Arc::from(fresh));
        self.generation = fork::generation();
        self.lost = false;
        self.strays = 0;
        Ok(())
    }

    /// An event is nobody's: perhaps of a watch that cannot be removed any more.
    fn stray(&mut self) {
        if !self.lost || self.pinned {
            return;
        }
        self.strays += 1;
        if self.strays > STRAYS {
            // Without room for another selector it stays as it is, until the next time.
            self.strays = 0;
            self.renew().ok();
        }
    }

    fn insert(&mut self, source: RawSource, target: Target) -> Key {
        let key = self.registry.insert(Registration {
            source,
            interest: Interest::NONE,
            target,
            doubtful: false,
        });
        self.keys.insert(source, key);
        key
    }

    /// The registration of a descriptor's callbacks, or of its owner.
    fn callbacks(&mut self, source: RawSource) -> Key {
        match self.keys.get(&source) {
            Some(&key) => key,
            None => self.insert(
                source,
                Target::Callbacks {
                    reader: Slot::Nobody,
                    writer: Slot::Nobody,
                    socket: None,
                    file: None,
                },
            ),
        }
    }

    /// As [`Inner::callbacks`], but a watch that nobody uses is removed first, and returned.
    fn callbacks_anew(&mut self, source: RawSource) -> (Key, Option<Target>) {
        let left = self.keys.get(&source).copied().filter(|&key| {
            let entry = self.registry.entry(key);
            entry.is_some_and(|entry| entry.is_idle() && !entry.interest.is_none())
        });
        let left = left.and_then(|key| self.unregister(key));
        (self.callbacks(source), left)
    }

    /// Whether a side is watched, be it for somebody or for nobody.
    fn is_watched(&self, key: Key, side: Side) -> bool {
        self.registry.entry(key).is_some_and(|entry| match side {
            Side::Reader => entry.interest.read,
            Side::Writer => entry.interest.write,
        })
    }

    fn entry_of(&mut self, source: RawSource) -> Option<&mut Registration> {
        let key = self.keys.get(&source)?;
        self.registry.entry_mut(*key)
    }

    /// A watch is relied on that was not asked about.
    fn doubt(&mut self, key: Key) {
        if let Some(entry) = self.registry.entry_mut(key)
            && !entry.doubtful
        {
            entry.doubtful = true;
            self.doubtful.push(key);
        }
        if self.doubtful.len() > 64 + 2 * self.registry.len() {
            // Most of them have ended, on a loop that does not sleep.
            let Self {
                doubtful, registry, ..
            } = self;
            doubtful.retain(|&key| registry.entry(key).is_some());
        }
    }

    /// Tells the selector again what it should know: the descriptor may be another one by now. What still comes
    /// of that one is nobody's then.
    fn watch_again(&mut self, key: Key) -> Result<(), Failure> {
        let selector = Arc::clone(self.selector()?);
        let Some(entry) = self.registry.entry(key) else {
            return Ok(());
        };
        let (source, interest) = (entry.source, entry.interest);
        match selector.modify(source, key.to_u64(), interest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(Failure::System),
        }
        let Some(entry) = self.registry.remove(key) else {
            return Ok(());
        };
        self.lost = true;
        let key = self.registry.insert(Registration {
            doubtful: false,
            ..entry
        });
        self.keys.insert(source, key);
        selector
            .add(source, key.to_u64(), interest)
            .map_err(Failure::System)
    }

    /// Whom an event on callbacks is for. A side that nobody waits for is no longer watched.
    fn due(&mut self, py: Python<'_>, event: Event) -> Delivery {
        let key = Key::from_u64(event.key);
        let Some(entry) = self.registry.entry_mut(key) else {
            return Delivery::Nothing;
        };
        let before = entry.interest;
        if before.is_none() {
            self.stray();
            return Delivery::Nothing;
        }
        let mut interest = before;
        let Target::Callbacks { reader, writer, .. } = &mut entry.target else {
            return Delivery::Nothing;
        };
        let take = |ready: bool, slot: &mut Slot, watched: &mut bool| match slot {
            _ if !ready => Slot::Nobody,
            Slot::Nobody => {
                *watched = false;
                Slot::Nobody
            }
            Slot::Callback(handle) => Slot::Callback(handle.clone_ref(py)),
            Slot::Once(_) => std::mem::take(slot),
        };
        let due = Delivery::Callbacks(
            take(event.readable, reader, &mut interest.read),
            take(event.writable, writer, &mut interest.write),
        );
        if interest != before {
            // Fails only if the descriptor was closed meanwhile, and then it is watched no more.
            self.set_interest(key, interest).ok();
        }
        due
    }

    fn set_callback(
        &mut self,
        py: Python<'_>,
        key: Key,
        side: Side,
        waiting: Slot,
    ) -> Result<Slot, Failure> {
        let watched = self.is_watched(key, side);
        let Some(entry) = self.registry.entry_mut(key) else {
            return Err(Failure::Closed);
        };
        let source = entry.source;
        let mut interest = entry.interest;
        match side {
            Side::Reader => interest.read = true,
            Side::Writer => interest.write = true,
        }
        let owner = match &entry.target {
            Target::Callbacks { .. } => None,
            Target::Stream(owner) => Some(owner.clone_ref(py).into_any()),
            Target::Datagram(owner) => Some(owner.clone_ref(py).into_any()),
            Target::Listener(owner) => Some(owner.clone_ref(py).into_any()),
        };
        if let Some(owner) = owner {
            return Err(Failure::InUse(owner));
        }
        let callback = matches!(waiting, Slot::Callback(_));
        let replaced = match entry.slot(side) {
            Some(slot) => std::mem::replace(slot, waiting),
            None => return Err(Failure::Closed),
        };
        // A watch that was left over may be that of a descriptor which is closed.
        let changed = if callback && watched && !matches!(replaced, Slot::Callback(_)) {
            self.watch_again(key)
        } else {
            self.set_interest(key, interest)
        };
        if let Err(failure) = changed {
            // Nothing half-done stays behind: a callback that cannot be called is not registered. The caller
            // still holds what was made for this call.
            let key = self.keys.get(&source).copied().unwrap_or(key);
            let idle = self.registry.entry_mut(key).is_some_and(|entry| {
                if let Some(slot) = entry.slot(side) {
                    *slot = Slot::Nobody;
                }
                entry.is_idle()
            });
            if idle {
                // Callbacks hold nothing now but perhaps the file, which the caller holds too, and a weak reference.
                drop(self.unregister(key));
            }
            return Err(failure);
        }
        Ok(replaced)
    }

    fn remove_callback(&mut self, source: RawSource, side: Side) -> Removed {
        let mut removed = Removed::default();
        let Some(&key) = self.keys.get(&source) else {
            return removed;
        };
        let Some(entry) = self.registry.entry_mut(key) else {
            return removed;
        };
        let mut interest = entry.interest;
        match side {
            Side::Reader => interest.read = false,
            Side::Writer => interest.write = false,
        }
        match entry.slot(side).map(std::mem::take) {
            Some(waiting) => {
                removed.waited = !waiting.is_nobody();
                if let Slot::Callback(object) | Slot::Once(object) = waiting {
                    removed.objects.push(object);
                }
                // What the user registered is kept for callbacks only.
                if !entry.has_callback() {
                    removed.objects.extend(entry.take_file());
                }
                if entry.is_idle() {
                    if let Some(Target::Callbacks { socket, .. }) = self.unregister(key) {
                        removed.objects.extend(socket);
                    }
                } else if self.set_interest(key, interest).is_err() {
                    // The descriptor was closed before its callbacks were removed: nothing to watch.
                }
            }
            None if side == Side::Reader && matches!(entry.target, Target::Listener(_)) => {
                removed.waited = true;
                if let Some(Target::Listener(listener)) = self.unregister(key) {
                    removed.objects.push(listener.into_any());
                }
            }
            None => {}
        }
        removed
    }

    fn set_interest(&mut self, key: Key, interest: Interest) -> Result<(), Failure> {
        match self.registry.entry(key) {
            Some(entry) if entry.interest != interest => {}
            _ => return Ok(()),
        }
        let selector = Arc::clone(self.selector()?);
        let Some(entry) = self.registry.entry_mut(key) else {
            return Ok(());
        };
        let (source, bits) = (entry.source, key.to_u64());
        let changed = if interest.is_none() {
            // Fails only if the descriptor is closed already, and then it is watched no more. Its
            // number may be another's by now, which is not in the selector: whoever registers it
            // ends this registration first.
            self.lost |= selector.remove(source).is_err();
            Ok(())
        } else if entry.interest.is_none() {
            selector.add(source, bits, interest)
        } else {
            match selector.modify(source, bits, interest) {
                // The number was closed and opened again since: the selector has forgotten it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    selector.add(source, bits, interest)
                }
                other => other,
            }
        };
        changed.map_err(Failure::System)?;
        entry.interest = interest;
        Ok(())
    }

    fn unregister(&mut self, key: Key) -> Option<Target> {
        let entry = self.registry.remove(key)?;
        if self.keys.get(&entry.source) == Some(&key) {
            self.keys.remove(&entry.source);
        }
        if !entry.interest.is_none()
            && let Ok(selector) = self.selector().cloned()
        {
            // Fails only if the descriptor is closed already, and then it is watched no more, unless another
            // descriptor keeps its file.
            self.lost |= selector.remove(entry.source).is_err();
        }
        Some(entry.target)
    }
}

/// The descriptor of what a user passes: a number, or an object with fileno().
pub fn source_from(file: &Bound<'_, PyAny>) -> PyResult<RawSource> {
    let py = file.py();
    let number: i64 = match file.extract() {
        Ok(number) => number,
        Err(_) => file
            .call_method0(intern!(py, "fileno"))
            .and_then(|number| number.extract())
            .map_err(|_| match file.repr() {
                Ok(repr) => PyValueError::new_err(format!("Invalid file object: {repr}")),
                Err(error) => error,
            })?,
    };
    if number < 0 {
        return Err(PyValueError::new_err(format!(
            "Invalid file descriptor: {number}"
        )));
    }
    RawSource::try_from(number)
        .map_err(|_| PyValueError::new_err(format!("Invalid file descriptor: {number}")))
}

/// Room for what one poll finds.
pub type Batch = Events;
