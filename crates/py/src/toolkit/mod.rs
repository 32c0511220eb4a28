//! The toolkit's primitives: limits, queues, channels and what else programs coordinate themselves with.
//!
//! Unlike asyncio's, a primitive here may be used from several loops and threads at once. Its state is a
//! pure core of `tideloop-core` behind a short lock; who waits for it is parked in a [`waiter::Waiter`].
//!
//! **Rule.** No Python is called, and no Python object dropped, while such a lock is held: what a core
//! removes is handed out first.

pub mod channel;
pub mod waiter;

use crate::ffi::function::Entry;

/// Every native function of the toolkit by its name.
pub static ENTRIES: &[Entry] = &[
    Entry::coroutine::<channel::Send>("Sender.send"),
    Entry::coroutine::<channel::Receive>("Receiver.recv"),
    Entry::coroutine::<channel::Next>("Receiver.__anext__"),
    Entry::method::<channel::TrySend>("Sender.try_send"),
    Entry::method::<channel::TryReceive>("Receiver.try_recv"),
    Entry::method::<channel::BlockingSend>("Sender.blocking_send"),
    Entry::method::<channel::BlockingReceive>("Receiver.blocking_recv"),
];
