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
use pyo3::{PyTraverseError, PyVisit, intern};
use tideloop_core::registry::{Key, Registry};
use tideloop_sys::fork;
use tideloop_sys::selector::{self, Backend, Event, Events, Interest, Selector};
use tideloop_sys::socket::RawSource;

use crate::errors::os_error;
use crate::ffi::call::closed_error;
use crate::ffi::cell::LoopCell;
use crate::listener::Listener;
use crate::transport::StreamTransport;

/// Which of the two callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Reader,
    Writer,
}

/// Who is told.
pub enum Target {
    Callbacks {
        reader: Option<Py<PyAny>>,
        writer: Option<Py<PyAny>>,
        /// What the user registered, if not a number: kept open as long as we watch it.
        file: Option<Py<PyAny>>,
    },
    Stream(Py<StreamTransport>),
    Listener(Py<Listener>),
}

struct Registration {
    source: RawSource,
    interest: Interest,
    target: Target,
}

struct Inner {
    /// None once the loop is closed.
    selector: Option<Arc<dyn Selector>>,
    generation: u32,
    backend: Backend,
    registry: Registry<Registration>,
    keys: HashMap<RawSource, Key>,
}

/// What to do about one event.
pub enum Delivery {
    Nothing,
    Callbacks(Option<Py<PyAny>>, Option<Py<PyAny>>),
    Stream(Py<StreamTransport>),
    Listener(Py<Listener>),
}

/// A loop's registrations and its selector.
pub struct Reactor {
    inner: LoopCell<Inner>,
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
            }),
        })
    }

    /// The selector, to wait on outside of the cell.
    pub fn selector(&self, py: Python<'_>) -> PyResult<Arc<dyn Selector>> {
        self.inner
            .with(py, |inner| inner.selector().cloned())
            .map_err(Failure::into_error)
    }

    pub fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.selector(py)?.wake().map_err(os_error)
    }

    /// How many descriptors are registered.
    pub fn len(&self, py: Python<'_>) -> usize {
        self.inner.with(py, |inner| inner.registry.len())
    }

    /// Sets one callback of a descriptor and returns the one it replaces.
    pub fn set_callback(
        &self,
        py: Python<'_>,
        source: RawSource,
        side: Side,
        handle: Py<PyAny>,
        file: Option<Py<PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let result = self.inner.with(py, |inner| {
            inner.selector()?;
            let key = match inner.keys.get(&source) {
                Some(&key) => key,
                None => inner.insert(
                    source,
                    Target::Callbacks {
                        reader: None,
                        writer: None,
                        file,
                    },
                ),
            };
            inner.set_callback(py, key, side, handle)
        });
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

    /// Removes one callback of a descriptor and returns it.
    pub fn remove_callback(
        &self,
        py: Python<'_>,
        source: RawSource,
        side: Side,
    ) -> Option<Vec<Py<PyAny>>> {
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
    pub fn transport_of(&self, py: Python<'_>, source: RawSource) -> Option<Py<StreamTransport>> {
        self.inner.with(py, |inner| {
            let key = inner.keys.get(&source)?;
            match &inner.registry.entry(*key)?.target {
                Target::Stream(transport) => Some(transport.clone_ref(py)),
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

    /// Whom an event is for.
    #[inline]
    pub fn deliver(&self, py: Python<'_>, event: Event) -> Delivery {
        self.inner.with(py, |inner| {
            let Some(entry) = inner.registry.entry(Key::from_u64(event.key)) else {
                return Delivery::Nothing;
            };
            match &entry.target {
                Target::Stream(transport) => Delivery::Stream(transport.clone_ref(py)),
                Target::Listener(listener) => Delivery::Listener(listener.clone_ref(py)),
                Target::Callbacks { reader, writer, .. } => {
                    let wanted = |ready: bool, side: &Option<Py<PyAny>>| {
                        side.as_ref()
                            .filter(|_| ready)
                            .map(|handle| handle.clone_ref(py))
                    };
                    Delivery::Callbacks(
                        wanted(event.readable, reader),
                        wanted(event.writable, writer),
                    )
                }
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
                        file,
                    } => {
                        visit.call(reader)?;
                        visit.call(writer)?;
                        visit.call(file)?;
                    }
                    Target::Stream(transport) => visit.call(transport)?,
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
            let fresh = selector::new(self.backend).map_err(Failure::System)?;
            for (&source, &key) in &self.keys {
                if let Some(entry) = self.registry.entry(key)
                    && !entry.interest.is_none()
                {
                    // A descriptor that the child has closed meanwhile is simply not watched.
                    fresh.add(source, key.to_u64(), entry.interest).ok();
                }
            }
            self.selector = Some(Arc::from(fresh));
            self.generation = generation;
        }
        self.selector.as_ref().ok_or(Failure::Closed)
    }

    fn insert(&mut self, source: RawSource, target: Target) -> Key {
        let key = self.registry.insert(Registration {
            source,
            interest: Interest::NONE,
            target,
        });
        self.keys.insert(source, key);
        key
    }

    fn set_callback(
        &mut self,
        py: Python<'_>,
        key: Key,
        side: Side,
        handle: Py<PyAny>,
    ) -> Result<Option<Py<PyAny>>, Failure> {
        let Some(entry) = self.registry.entry_mut(key) else {
            return Err(Failure::Closed);
        };
        let mut interest = entry.interest;
        let replaced = match &mut entry.target {
            Target::Callbacks { reader, writer, .. } => match side {
                Side::Reader => {
                    interest.read = true;
                    reader.replace(handle)
                }
                Side::Writer => {
                    interest.write = true;
                    writer.replace(handle)
                }
            },
            Target::Stream(owner) => {
                return Err(Failure::InUse(owner.clone_ref(py).into_any()));
            }
            Target::Listener(owner) => {
                return Err(Failure::InUse(owner.clone_ref(py).into_any()));
            }
        };
        if let Err(failure) = self.set_interest(key, interest) {
            // Nothing half-done stays behind: a callback that cannot be called is not registered.
            let failed =
                self.registry
                    .entry_mut(key)
                    .is_some_and(|entry| match &mut entry.target {
                        Target::Callbacks { reader, writer, .. } => {
                            let slot = match side {
                                Side::Reader => &mut *reader,
                                Side::Writer => &mut *writer,
                            };
                            // The handle was made for this call; the caller still holds it.
                            *slot = None;
                            reader.is_none() && writer.is_none()
                        }
                        _ => false,
                    });
            if failed {
                // Callbacks hold nothing now but perhaps the file, which the caller holds too.
                drop(self.unregister(key));
            }
            return Err(failure);
        }
        Ok(replaced)
    }

    fn remove_callback(&mut self, source: RawSource, side: Side) -> Option<Vec<Py<PyAny>>> {
        let key = *self.keys.get(&source)?;
        let entry = self.registry.entry_mut(key)?;
        let mut removed = Vec::new();
        match &mut entry.target {
            Target::Callbacks { reader, writer, .. } => {
                let mut interest = entry.interest;
                let slot = match side {
                    Side::Reader => {
                        interest.read = false;
                        reader
                    }
                    Side::Writer => {
                        interest.write = false;
                        writer
                    }
                };
                removed.push(slot.take()?);
                if interest.is_none() {
                    if let Some(Target::Callbacks {
                        file: Some(file), ..
                    }) = self.unregister(key)
                    {
                        removed.push(file);
                    }
                } else if self.set_interest(key, interest).is_err() {
                    // The descriptor was closed before its callbacks were removed: nothing to watch.
                }
                Some(removed)
            }
            Target::Listener(_) if side == Side::Reader => {
                if let Some(Target::Listener(listener)) = self.unregister(key) {
                    removed.push(listener.into_any());
                }
                Some(removed)
            }
            _ => None,
        }
    }

    fn set_interest(&mut self, key: Key, interest: Interest) -> Result<(), Failure> {
        let selector = Arc::clone(self.selector()?);
        let Some(entry) = self.registry.entry_mut(key) else {
            return Ok(());
        };
        if entry.interest == interest {
            return Ok(());
        }
        let (source, bits) = (entry.source, key.to_u64());
        let changed = if interest.is_none() {
            // Fails only if the descriptor is closed already, and then it is watched no more.
            selector.remove(source).ok();
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
            && let Ok(selector) = self.selector()
        {
            // Fails only if the descriptor is closed already, and then it is watched no more.
            selector.remove(entry.source).ok();
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
