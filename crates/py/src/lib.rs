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
mod errors;
mod event_loop;
mod ffi;
mod guest;
mod handoff;
mod held;
mod listener;
mod primitives;
mod reactor;
mod transport;
mod turn;

use pyo3::prelude::*;

#[pymodule]
mod _tideloop {
    use super::*;

    #[pymodule_export]
    use crate::datagram::DatagramTransport;
    #[pymodule_export]
    use crate::event_loop::LoopCore;
    #[pymodule_export]
    use crate::guest::{
        guest_begin, guest_descriptor, guest_end, guest_timeout, guest_turns, guest_wait,
    };
    #[pymodule_export]
    use crate::listener::Listener;
    #[pymodule_export]
    use crate::primitives::event::EventCore;
    #[pymodule_export]
    use crate::primitives::lock::LockCore;
    #[pymodule_export]
    use crate::primitives::queue::QueueCore;
    #[pymodule_export]
    use crate::primitives::semaphore::SemaphoreCore;
    #[pymodule_export]
    use crate::primitives::timeout::TimeoutCore;
    #[pymodule_export]
    use crate::transport::StreamTransport;

    /// The native function of this name, with the looks of the Python function that it stands for.
    #[pyfunction]
    fn function<'py>(name: &str, template: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        ffi::function::new(template.py(), primitives::ENTRIES, name, template)
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
        ffi::methods::install(&py.get_type::<LoopCore>())
    }
}
