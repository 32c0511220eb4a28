//! A loop as the guest of another: turns that do not wait, and a wait that delivers nothing.
//!
//! The host calls [`guest_turns`] on its own thread. Between two calls somebody waits in its stead: a
//! thread in [`guest_wait`], or the host itself, on [`guest_descriptor`] and a timer of
//! [`guest_timeout`] seconds. The selector is level-triggered, so what the wait has seen is found
//! again by the turns that follow; only wake-ups are used up by it, and those have then done their work.
//!
//! In between the loop's phase is `Hosted`: whatever is scheduled then, by the host's own code
//! or by another thread, ends the wait. `tideloop.loop.hosting` is the Python half.

use pyo3::prelude::*;
use tideloop_core::timeout::{MAX_WAIT_NS, wait_ns};
use tideloop_sys::precision::PreciseTimers;
use tideloop_sys::socket::RawSource;

use crate::errors::os_error;
use crate::event_loop::{LoopCore, seconds_of};
use crate::ffi::future;
use crate::reactor::Batch;
use crate::turn;

/// Make a loop a guest. Raises RuntimeError if it is closed or running.
#[pyfunction]
#[pyo3(signature = (r#loop, /))]
pub fn guest_begin(r#loop: &Bound<'_, LoopCore>) -> PyResult<()> {
    future::know_loop_type(&r#loop.get_type());
    r#loop.get().begin_hosted()
}

/// Run turns without waiting, for as long as may pass without a poll; whether the loop was told to stop.
#[pyfunction]
#[pyo3(signature = (r#loop, /))]
pub fn guest_turns(r#loop: &Bound<'_, LoopCore>) -> PyResult<bool> {
    r#loop.get().hosted_turns(|| turn::run_ready(r#loop))
}

/// Seconds until the next call has something to do; None: not before something happens.
#[pyfunction]
#[pyo3(signature = (r#loop, /))]
pub fn guest_timeout(r#loop: &Bound<'_, LoopCore>) -> Option<f64> {
    turn::drop_stale(r#loop);
    let (busy, wake) = r#loop.get().queue(r#loop.py(), |queue| {
        (!queue.ready.is_empty(), queue.timers.next_wake())
    });
    if busy {
        return Some(0.0);
    }
    wake.map(|wake| seconds_of(wait_ns(wake, r#loop.get().clock().now())))
}

/// Wait without the GIL until something is ready, the loop is woken or so many seconds have passed.
///
/// For a thread of its own; a signal ends the wait as well. Raises RuntimeError if the loop is closed.
#[pyfunction]
#[pyo3(signature = (r#loop, timeout, /))]
pub fn guest_wait(r#loop: &Bound<'_, LoopCore>, timeout: Option<f64>) -> PyResult<()> {
    let py = r#loop.py();
    let selector = r#loop.get().reactor().selector(py)?;
    let timeout = timeout.map(|seconds| ((seconds * 1e9).ceil() as u64).min(MAX_WAIT_NS));
    py.detach(|| {
        let _precise = PreciseTimers::new();
        selector.wait(&mut Batch::default(), timeout)
    })
    .map_err(os_error)
}

/// The descriptor that is readable whenever a poll would find something; None if there is none.
#[pyfunction]
#[pyo3(signature = (r#loop, /))]
pub fn guest_descriptor(r#loop: &Bound<'_, LoopCore>) -> PyResult<Option<RawSource>> {
    let reactor = r#loop.get().reactor();
    reactor.pin(r#loop.py());
    Ok(reactor.selector(r#loop.py())?.descriptor())
}

/// Make a guest an ordinary loop again, which can be closed.
#[pyfunction]
#[pyo3(signature = (r#loop, /))]
pub fn guest_end(r#loop: &Bound<'_, LoopCore>) {
    LoopCore::end_hosted(r#loop);
}
