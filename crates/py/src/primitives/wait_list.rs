//! The waiters of one primitive, and the loop that a primitive is bound to.
//!
//! asyncio keeps its waiters in a `collections.deque` of futures that programs can see, as `_waiters`,
//! `_getters` and `_putters`. Ours are in [`Waiters`] until somebody looks: then they move to such a
//! deque and stay there while it is in use, so that what the program does to it has its effect.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};
use tideloop_core::waiters::{Ticket, Waiters};

use crate::ffi::call;
use crate::ffi::cell::LoopCell;
use crate::ffi::park;

enum Places {
    Native(Waiters<Py<PyAny>>),
    /// In a deque that a program has got hold of.
    Shown(Py<PyAny>),
}

/// Futures, in the order in which their owners came.
pub struct WaitList {
    places: LoopCell<Places>,
}

impl Default for WaitList {
    fn default() -> Self {
        Self {
            places: LoopCell::new(Places::Native(Waiters::default())),
        }
    }
}

/// One waiter that was looked at.
enum Seen<'py> {
    Nobody,
    Somebody(Bound<'py, PyAny>),
    /// The list is in a deque.
    Elsewhere(Bound<'py, PyAny>),
}

impl WaitList {
    fn shown<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.places.with(py, |places| match places {
            Places::Native(_) => None,
            Places::Shown(deque) => Some(deque.bind(py).clone()),
        })
    }

    /// Queues a future behind all others.
    pub fn push(&self, future: &Bound<'_, PyAny>) -> PyResult<Ticket> {
        let py = future.py();
        let ticket = self.places.with(py, |places| match places {
            Places::Native(waiters) => Some(waiters.push(future.clone().unbind())),
            Places::Shown(_) => None,
        });
        if let Some(ticket) = ticket {
            return Ok(ticket);
        }
        if let Some(deque) = self.shown(py) {
            call::method1(&deque, intern!(py, "append"), future)?;
        }
        Ok(Ticket::from_u64(u64::MAX))
    }

    /// Takes a waiter out, if it is still there.
    pub fn remove(&self, ticket: Ticket, future: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = future.py();
        let (removed, deque) = self.places.with(py, |places| match places {
            Places::Native(waiters) => (waiters.remove(ticket), None),
            Places::Shown(deque) => (None, Some(deque.clone_ref(py))),
        });
        drop(removed.map(|removed| removed.into_bound(py)));
        let Some(deque) = deque.map(|deque| deque.into_bound(py)) else {
            return Ok(());
        };
        match call::method1(&deque, intern!(py, "remove"), future) {
            Err(error) if !error.is_instance_of::<PyValueError>(py) => return Err(error),
            Err(error) => call::discard(py, error),
            Ok(_) => {}
        }
        drop(deque);
        self.take_back(py);
        Ok(())
    }

    /// Returns to the native list once the deque is empty and nobody else has it.
    fn take_back(&self, py: Python<'_>) {
        let alone = self.places.with(py, |places| match places {
            Places::Shown(deque) => call::is_only_reference(py, deque),
            Places::Native(_) => false,
        });
        if alone && self.is_empty(py).is_ok_and(|empty| empty) {
            self.clear(py);
        }
    }

    /// Whether certainly nobody waits: without Python, so false if the list is in a deque.
    #[inline(always)]
    pub fn is_vacant(&self, py: Python<'_>) -> bool {
        self.places.with(
            py,
            |places| matches!(places, Places::Native(waiters) if waiters.is_empty()),
        )
    }

    pub fn is_empty(&self, py: Python<'_>) -> PyResult<bool> {
        let empty = self.places.with(py, |places| match places {
            Places::Native(waiters) => Some(waiters.is_empty()),
            Places::Shown(_) => None,
        });
        match (empty, self.shown(py)) {
            (Some(empty), _) => Ok(empty),
            (None, Some(deque)) => Ok(deque.len()? == 0),
            (None, None) => Ok(true),
        }
    }

    pub fn len(&self, py: Python<'_>) -> PyResult<usize> {
        let len = self.places.with(py, |places| match places {
            Places::Native(waiters) => Some(waiters.len()),
            Places::Shown(_) => None,
        });
        match (len, self.shown(py)) {
            (Some(len), _) => Ok(len),
            (None, Some(deque)) => deque.len(),
            (None, None) => Ok(0),
        }
    }

    /// Takes out waiters until one was woken; what `Queue._wakeup_next` does.
    #[inline]
    pub fn wake_next(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_vacant(py) {
            Ok(())
        } else {
            self.wake_one(py)
        }
    }

    fn wake_one(&self, py: Python<'_>) -> PyResult<()> {
        let none = py.None().into_bound(py);
        while let Some(future) = self.pop(py)? {
            if park::resolve(&future, &none)? {
                break;
            }
        }
        Ok(())
    }

    /// Wakes everybody and forgets them; what `Queue.shutdown` does.
    pub fn wake_all(&self, py: Python<'_>) -> PyResult<()> {
        let none = py.None().into_bound(py);
        while let Some(future) = self.pop(py)? {
            park::resolve(&future, &none)?;
        }
        Ok(())
    }

    fn pop<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let seen = self.places.with(py, |places| match places {
            Places::Native(waiters) => match waiters.pop() {
                Some(future) => Seen::Somebody(future.into_bound(py)),
                None => Seen::Nobody,
            },
            Places::Shown(deque) => Seen::Elsewhere(deque.bind(py).clone()),
        });
        match seen {
            Seen::Nobody => Ok(None),
            Seen::Somebody(future) => Ok(Some(future)),
            Seen::Elsewhere(deque) if deque.len()? == 0 => Ok(None),
            Seen::Elsewhere(deque) => call::method0(&deque, intern!(py, "popleft")).map(Some),
        }
    }

    /// Tells the first waiter that is not done; it keeps its place. False if there is none.
    pub fn notify(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        loop {
            let seen = self.places.with(py, |places| match places {
                Places::Native(waiters) => match waiters.notify() {
                    Some(future) => Seen::Somebody(future.bind(py).clone()),
                    None => Seen::Nobody,
                },
                Places::Shown(deque) => Seen::Elsewhere(deque.bind(py).clone()),
            });
            match seen {
                Seen::Nobody => return Ok(false),
                Seen::Somebody(future) => {
                    if park::resolve(&future, value)? {
                        return Ok(true);
                    }
                }
                Seen::Elsewhere(deque) => {
                    for future in deque.try_iter()? {
                        if park::resolve(&future?, value)? {
                            return Ok(true);
                        }
                    }
                    return Ok(false);
                }
            }
        }
    }

    /// Tells every waiter that is not done; they keep their places.
    pub fn notify_all(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        while self.notify(py, value)? {}
        Ok(())
    }

    /// Tells the first waiter, unless it is done; what `Lock._wake_up_first` does.
    pub fn notify_first(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        match self.at(py, None) {
            Seen::Nobody => {}
            Seen::Somebody(future) => {
                park::resolve(&future, value)?;
            }
            Seen::Elsewhere(deque) => {
                if let Some(future) = deque.try_iter()?.next() {
                    park::resolve(&future?, value)?;
                }
            }
        }
        Ok(())
    }

    /// Whether anybody waits whose future is not cancelled.
    #[inline]
    pub fn has_live(&self, py: Python<'_>) -> PyResult<bool> {
        if self.is_vacant(py) {
            Ok(false)
        } else {
            self.find_live(py)
        }
    }

    fn find_live(&self, py: Python<'_>) -> PyResult<bool> {
        let mut ticket = None;
        loop {
            match self.at(py, ticket) {
                Seen::Nobody => return Ok(false),
                Seen::Somebody(future) => {
                    if !park::is_cancelled(&future)? {
                        return Ok(true);
                    }
                }
                Seen::Elsewhere(deque) => {
                    for future in deque.try_iter()? {
                        if !park::is_cancelled(&future?)? {
                            return Ok(true);
                        }
                    }
                    return Ok(false);
                }
            }
            let next = self.places.with(py, |places| match places {
                Places::Native(waiters) => match ticket {
                    None => waiters.front(),
                    Some(ticket) => waiters.after(ticket),
                },
                Places::Shown(_) => None,
            });
            if next.is_none() {
                return Ok(false);
            }
            ticket = next;
        }
    }

    /// The waiter behind a place, or the first one.
    fn at<'py>(&self, py: Python<'py>, behind: Option<Ticket>) -> Seen<'py> {
        self.places.with(py, |places| match places {
            Places::Native(waiters) => {
                let ticket = match behind {
                    None => waiters.front(),
                    Some(behind) => waiters.after(behind),
                };
                match ticket.and_then(|ticket| waiters.get(ticket)) {
                    Some(future) => Seen::Somebody(future.bind(py).clone()),
                    None => Seen::Nobody,
                }
            }
            Places::Shown(deque) => Seen::Elsewhere(deque.bind(py).clone()),
        })
    }

    /// The waiters as the deque that asyncio's class would show.
    pub fn show<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(deque) = self.shown(py) {
            return Ok(deque);
        }
        let deque = new_deque(py)?;
        let futures = self.places.with(py, |places| match places {
            Places::Native(waiters) => {
                let futures = waiters.take_all();
                *places = Places::Shown(deque.clone().unbind());
                futures
            }
            Places::Shown(_) => Vec::new(),
        });
        for future in futures {
            call::method1(&deque, intern!(py, "append"), future.bind(py))?;
        }
        Ok(deque)
    }

    /// Uses a container that a program has put in its place.
    pub fn set(&self, container: &Bound<'_, PyAny>) {
        let py = container.py();
        let new = if container.is_none() {
            Places::Native(Waiters::default())
        } else {
            Places::Shown(container.clone().unbind())
        };
        let old = self
            .places
            .with(py, |places| std::mem::replace(places, new));
        match old {
            Places::Native(mut waiters) => {
                for future in waiters.take_all() {
                    drop(future.into_bound(py));
                }
            }
            Places::Shown(deque) => drop(deque.into_bound(py)),
        }
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.places
            .try_with(|places| match places {
                Places::Native(waiters) => waiters.iter().try_for_each(|future| visit.call(future)),
                Places::Shown(deque) => visit.call(&*deque),
            })
            .unwrap_or(Ok(()))
    }

    /// For the garbage collector.
    pub fn clear(&self, py: Python<'_>) {
        self.set(&py.None().into_bound(py));
    }
}

pub fn new_deque(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static DEQUE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    DEQUE
        .get_or_try_init(py, || -> PyResult<Py<PyAny>> {
            Ok(py.import("collections")?.getattr("deque")?.unbind())
        })?
        .bind(py)
        .call0()
}

/// The loop that a primitive belongs to since somebody first waited for it.
pub struct BoundLoop {
    event_loop: LoopCell<Option<Py<PyAny>>>,
}

impl Default for BoundLoop {
    fn default() -> Self {
        Self {
            event_loop: LoopCell::new(None),
        }
    }
}

impl BoundLoop {
    /// The running loop, to which the owner is bound from now on.
    ///
    /// Raises RuntimeError if it is bound to another one.
    pub fn current<'py>(&self, owner: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = owner.py();
        let current = park::current_loop(py)?;
        let fits = self.event_loop.with(py, |bound| match bound {
            Some(bound) => bound.is(&current),
            None => {
                if !current.is_none() {
                    *bound = Some(current.clone().unbind());
                }
                true
            }
        });
        if fits {
            return Ok(current);
        }
        Err(PyRuntimeError::new_err(format!(
            "{} is bound to a different event loop",
            owner.repr()?
        )))
    }

    /// A future of the running loop, in which the caller queues.
    pub fn new_future<'py>(&self, owner: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        park::new_future(&self.current(owner)?)
    }

    pub fn get<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.event_loop
            .with(py, |bound| {
                bound.as_ref().map(|bound| bound.bind(py).clone())
            })
            .unwrap_or_else(|| py.None().into_bound(py))
    }

    pub fn set(&self, event_loop: &Bound<'_, PyAny>) {
        let py = event_loop.py();
        let new = (!event_loop.is_none()).then(|| event_loop.clone().unbind());
        let old = self
            .event_loop
            .with(py, |bound| std::mem::replace(bound, new));
        drop(old.map(|old| old.into_bound(py)));
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.event_loop
            .try_with(|bound| bound.as_ref().map_or(Ok(()), |bound| visit.call(bound)))
            .unwrap_or(Ok(()))
    }
}
