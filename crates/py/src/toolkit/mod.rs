//! The toolkit's primitives: limits, queues, channels and what else programs coordinate themselves with.
//!
//! Unlike asyncio's, a primitive here may be used from several loops and threads at once. Its state is a
//! pure core of `tideloop-core` behind a short lock; who waits for it is parked in a [`waiter::Waiter`].
//!
//! **Rule.** No Python is called, and no Python object dropped, while such a lock is held: what a core
//! removes is handed out first.

pub mod waiter;
