//! The locks of this crate: the standard library's, and loom's where a model checker runs them (`make loom`).

#[cfg(not(all(test, loom)))]
pub use std::sync::{Arc, Condvar, Mutex};

#[cfg(all(test, loom))]
pub use loom::sync::{Arc, Condvar, Mutex};

use std::sync::PoisonError;
use std::time::Duration;

#[cfg(not(all(test, loom)))]
pub use std::sync::MutexGuard;

#[cfg(all(test, loom))]
pub use loom::sync::MutexGuard;

/// Locks, also after a panic elsewhere: what is behind our locks is consistent at every instruction that
/// can panic.
#[inline]
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the flag is set, at most so long, and says whether it is.
#[cfg(not(all(test, loom)))]
pub fn wait_for(changed: &Condvar, flag: MutexGuard<'_, bool>, limit: Duration) -> bool {
    let waited = changed.wait_timeout_while(flag, limit, |flag| !*flag);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}

/// The same in a model, which has no time: nothing but the flag ends it.
#[cfg(all(test, loom))]
pub fn wait_for(changed: &Condvar, mut flag: MutexGuard<'_, bool>, _limit: Duration) -> bool {
    while !*flag {
        flag = changed.wait(flag).unwrap_or_else(PoisonError::into_inner);
    }
    true
}
