//! Receiving: batches of datagrams, delivered one by one.

use pyo3::intern;
use pyo3::prelude::*;
use tideloop_sys::datagram::{BATCH, IP_ROOM, UNIX_ROOM};
use tideloop_sys::socket::{Address, would_block};

use super::{DatagramTransport, Incoming};
use crate::address::{self, Family};
use crate::errors::{ends_the_loop, os_error};
use crate::event_loop::LoopCore;
use crate::ffi::call;

impl DatagramTransport {
    pub(super) fn on_readable(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let core = this.core.get();
        let room = match this.family {
            Family::Unix => UNIX_ROOM,
            Family::Inet | Family::Inet6 => IP_ROOM,
        };
        let mut surplus = Vec::new();
        let received = core.reactor().arrivals(py, |arrivals| {
            this.with(py, |state| {
                let Some(owner) = state.socket.as_ref() else {
                    return Ok(0);
                };
                if !state.machine.wants_read() {
                    return Ok(0);
                }
                let ask = state.batch.ask(BATCH);
                let machine = &mut state.machine;
                let found = arrivals.receive(owner.socket(), room, ask, |bytes, from| {
                    let (bytes, unused) = core.bytes(py, bytes);
                    surplus.extend(unused);
                    let bytes = bytes.unbind();
                    machine.arrived(Incoming { bytes, from });
                })?;
                state.batch.found(ask, found);
                Ok(found)
            })
        });
        for unused in surplus {
            drop(unused.into_bound(py));
        }
        match received {
            Ok(0) => Ok(()),
            Ok(_) => Self::deliver_arrived(slf),
            Err(error) if would_block(&error) => Ok(()),
            Err(error) => Self::tell_error(slf, os_error(error)),
        }
    }

    /// Hands the protocol what has arrived, as long as it takes it. What it sends meanwhile leaves
    /// together.
    pub(super) fn deliver_arrived(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        this.with(py, |state| state.corked.begin());
        let told = Self::deliver_each(slf);
        this.with(py, |state| state.corked.end());
        let sent = Self::uncork(slf);
        this.update_interest(py)?;
        told.and(sent)
    }

    fn deliver_each(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let now = || this.core.get().held().now(py);
        while let Some((Incoming { bytes, from }, Some(protocol), held)) = this.with(py, |state| {
            let next = state.machine.next_arrived()?;
            let protocol = state.protocol.as_ref().map(|p| p.clone_ref(py));
            Some((next, protocol, state.corked.is_due(now)))
        }) {
            if held {
                Self::uncork(slf)?;
            }
            let protocol = protocol.into_bound(py);
            let told = this.origin(py, from).and_then(|from| {
                let name = intern!(py, "datagram_received");
                call::method(&protocol, name, [bytes.bind(py).as_any(), &from])
            });
            match told {
                Ok(_) => {}
                Err(error) if ends_the_loop(py, &error) => {
                    // What is left comes when the loop runs again.
                    if this.with(py, |state| state.machine.has_deliverable()) {
                        Self::schedule_held(slf)?;
                    }
                    return Err(error);
                }
                Err(error) => {
                    let message = "Exception in callback protocol.datagram_received()";
                    Self::report(slf, error, message)?;
                }
            }
        }
        Ok(())
    }

    /// Where a datagram came from, as Python's sockets say it: None if the sender has no name.
    fn origin<'py>(&self, py: Python<'py>, from: Option<Address>) -> PyResult<Bound<'py, PyAny>> {
        let none = py.None().into_bound(py);
        let Some(from) = from else {
            return Ok(none);
        };
        if let Some(told) = self.with(py, |state| state.origins.find(py, &from)) {
            return Ok(told.into_bound(py));
        }
        let Some(told) = address::to_python(py, &from)? else {
            return Ok(none);
        };
        let kept = told.clone().unbind();
        drop(self.with(py, |state| state.origins.remember(from, kept)));
        Ok(told)
    }

    /// Tells the protocol that a datagram was lost. Its own exceptions go to the exception handler.
    pub(super) fn tell_error(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        match Self::error_received(slf, error) {
            Err(raised) if !ends_the_loop(py, &raised) => Self::report(
                slf,
                raised,
                "Exception in callback protocol.error_received()",
            ),
            other => other,
        }
    }

    pub(super) fn error_received(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        let Some(protocol) = slf.get().protocol(py) else {
            return Ok(());
        };
        let error = error.into_value(py).into_bound(py).into_any();
        call::method1(&protocol, intern!(py, "error_received"), &error).map(drop)
    }

    pub(super) fn schedule_held(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let held = slf.getattr(intern!(py, "_deliver_held"))?;
        let none = py.None().into_bound(py);
        let context = this.context.bind(py).clone();
        LoopCore::schedule(this.core(py), &held, &none, context)
    }
}
