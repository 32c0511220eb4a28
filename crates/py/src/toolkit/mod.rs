//! The toolkit's primitives: limits, queues, channels and what else programs coordinate themselves with.
//!
//! Unlike asyncio's, a primitive here may be used from several loops and threads at once. Its state is a
//! pure core of `tideloop-core` behind a short lock; who waits for it is parked in a [`waiter::Waiter`].
//!
//! **Rule.** No Python is called, and no Python object dropped, while such a lock is held: what a core
//! removes is handed out first.

pub mod adaptive;
pub mod arrival;
pub mod cache;
pub mod channel;
pub mod checkpoint;
pub mod graph;
pub mod group;
pub mod limiter;
pub mod rate;
pub mod task_handle;
pub mod waiter;

use crate::ffi::function::Entry;

/// Every native function of the toolkit by its name.
pub static ENTRIES: &[Entry] = &[
    Entry::coroutine::<limiter::Acquire>("Limiter.acquire"),
    Entry::coroutine::<limiter::Enter>("Limiter.__aenter__"),
    Entry::coroutine::<limiter::Exit>("Limiter.__aexit__"),
    Entry::method::<limiter::Release>("Limiter.release"),
    Entry::method::<limiter::TryAcquire>("Limiter.try_acquire"),
    Entry::coroutine::<limiter::EnterClaim>("Claim.__aenter__"),
    Entry::coroutine::<limiter::ExitClaim>("Claim.__aexit__"),
    Entry::coroutine::<channel::tasks::Send>("Sender.send"),
    Entry::coroutine::<channel::tasks::Receive<channel::tasks::Refuse>>("Receiver.recv"),
    Entry::coroutine::<channel::tasks::Receive<channel::tasks::Stop>>("Receiver.__anext__"),
    Entry::method::<channel::threads::TrySend>("Sender.try_send"),
    Entry::method::<channel::threads::TryReceive>("Receiver.try_recv"),
    Entry::method::<channel::threads::BlockingSend>("Sender.blocking_send"),
    Entry::method::<channel::threads::BlockingReceive>("Receiver.blocking_recv"),
    Entry::coroutine::<graph::Carry>("GraphRun._carry"),
    Entry::coroutine::<cache::Get>("Cache.get"),
    Entry::coroutine::<cache::Call>("Cached.__call__"),
    Entry::coroutine::<rate::Acquire>("RateLimiter.acquire"),
    Entry::coroutine::<rate::Enter>("RateLimiter.__aenter__"),
    Entry::coroutine::<rate::Exit>("RateLimiter.__aexit__"),
    Entry::coroutine::<rate::EnterClaim>("RateClaim.__aenter__"),
];
