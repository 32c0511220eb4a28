//! The Python extension: the only crate that knows CPython.
//!
//! It translates and nothing else: Python calls become inputs of the machines in `tideloop-core`,
//! their decisions become Python calls. What talks to CPython below PyO3 is fenced in [`ffi`].
//!
//! **The rule of re-entrancy.** Any Python call may run any code, and so may dropping the last
//! reference to a Python object: it may call back into this very loop or transport. State is
//! therefore only touched inside [`ffi::cell::LoopCell::with`], whose closures never call Python and
//! never drop Python objects: collect first, call out and drop later.

mod address;
mod datagram;
mod deadline;
mod errors;
mod event_loop;
mod ffi;
mod guest;
mod handoff;
mod held;
mod listener;
mod loop_clock;
mod observe;
mod primitives;
mod reactor;
mod sockets;
mod streams;
mod tls;
mod toolkit;
mod transport;
mod turn;

use pyo3::prelude::*;

#[pymodule]
mod _tideloop {
    use super::*;

    #[pymodule_export]
    use crate::datagram::DatagramTransport;
    #[pymodule_export]
    use crate::deadline::limit_waits;
    #[pymodule_export]
    use crate::event_loop::LoopCore;
    #[pymodule_export]
    use crate::ffi::roll::enlisted;
    #[pymodule_export]
    use crate::ffi::site::frames_are_found;
    #[pymodule_export]
    use crate::guest::{
        guest_begin, guest_descriptor, guest_end, guest_timeout, guest_turns, guest_wait,
    };
    #[pymodule_export]
    use crate::listener::Listener;
    #[pymodule_export]
    use crate::observe::dumps::{dumps_begin, dumps_forked, dumps_resume, dumps_stop};
    #[pymodule_export]
    use crate::observe::pulse::Pulse;
    #[pymodule_export]
    use crate::observe::serve::{
        serve_forked, serve_pause, serve_resume, serve_start, serve_stop, serve_url, serve_web,
    };
    #[pymodule_export]
    use crate::observe::watchdog::{
        signal_handler, watchdog_asks, watchdog_collects, watchdog_forked, watchdog_resume,
        watchdog_stop, watchdog_threshold,
    };
    #[pymodule_export]
    use crate::primitives::barrier::BarrierCore;
    #[pymodule_export]
    use crate::primitives::batches::{
        queue_counts, queue_give_back, queue_leave, queue_put_some, queue_stand, queue_take_some,
    };
    #[pymodule_export]
    use crate::primitives::condition::ConditionCore;
    #[pymodule_export]
    use crate::primitives::event::EventCore;
    #[pymodule_export]
    use crate::primitives::lock::LockCore;
    #[pymodule_export]
    use crate::primitives::queue::QueueCore;
    #[pymodule_export]
    use crate::primitives::semaphore::SemaphoreCore;
    #[pymodule_export]
    use crate::primitives::task_group::TaskGroupCore;
    #[pymodule_export]
    use crate::primitives::timeout::TimeoutCore;
    #[pymodule_export]
    use crate::streams::ReaderCore;
    #[pymodule_export]
    use crate::streams::writing::{FlowCore, WriterCore};
    #[pymodule_export]
    use crate::tls::{TlsCore, tls_not_direct};
    #[pymodule_export]
    use crate::toolkit::adaptive::AdaptiveCore;
    #[pymodule_export]
    use crate::toolkit::cache::{CacheCore, CachedCore, Warrant};
    #[pymodule_export]
    use crate::toolkit::channel::selecting::{channel_leave, channel_stand, channel_take};
    #[pymodule_export]
    use crate::toolkit::channel::{ChannelCore, ReceiverCore, SenderCore, open_channel};
    #[pymodule_export]
    use crate::toolkit::checkpoint::{Checkpoint, checkpoint};
    #[pymodule_export]
    use crate::toolkit::graph::{GraphPlan, GraphRunCore};
    #[pymodule_export]
    use crate::toolkit::group::GroupCore;
    #[pymodule_export]
    use crate::toolkit::limiter::{ClaimCore, LimitsCore};
    #[pymodule_export]
    use crate::toolkit::rate::{Charge, RateClaimCore, RatesCore};
    #[pymodule_export]
    use crate::toolkit::task_handle::TaskHandle;
    #[pymodule_export]
    use crate::transport::StreamTransport;

    /// The native function of this name, with the looks of the Python function that it stands for.
    #[pyfunction]
    fn function<'py>(name: &str, template: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let entries = [primitives::ENTRIES, toolkit::ENTRIES];
        ffi::function::new(template.py(), &entries, name, template)
    }

    /// How many operations and handles there are.
    #[cfg(feature = "refcheck")]
    #[pyfunction]
    fn live_natives() -> (i64, i64) {
        ffi::refcheck::live()
    }

    /// Ends the process: a reference check that fails.
    #[cfg(feature = "refcheck")]
    #[pyfunction]
    fn fail_a_reference_check(py: Python<'_>) -> PyResult<()> {
        ffi::refcheck::fail(py)
    }

    /// A block begins (true) or ends in which callbacks must keep the context that they are scheduled in.
    #[pyfunction]
    fn keep_contexts(enter: bool) {
        ffi::call::keep_contexts(enter);
    }

    /// Take the mark off a task by which it would be cancelled at its next await.
    #[pyfunction]
    fn forgive(task: &Bound<'_, PyAny>) -> PyResult<()> {
        ffi::park::forgive(task)
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        let types = ffi::handle::types(py)?;
        module.add("Handle", types.handle(py))?;
        module.add("TimerHandle", types.timer(py))?;
        if let Ok(native) = ffi::native::verdict(py)? {
            module.add("Future", native.future.bind(py))?;
            module.add("Task", native.task.bind(py))?;
        }
        ffi::roll::install(module)?;
        ffi::direct::install(py)?;
        ffi::methods::install(&py.get_type::<LoopCore>())
    }
}
