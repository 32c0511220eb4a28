//! Waiting for the end of a callback that another thread is running.
//!
//! Since Python 3.14 cancelling a handle of call_soon_threadsafe from another thread waits until its
//! callback has ended, if it has begun. Whether it is running is written in the handle, under the GIL.
//! The waiting thread reads that and the count of ended callbacks under the GIL, lets go of the GIL, and
//! waits for the count to change; the runner raises it after it has cleared the handle's flag. A change
//! between reading and waiting is seen by the count, so no end is missed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use pyo3::Python;

/// One loop's meeting point.
#[derive(Debug, Default)]
pub struct Handoff {
    /// A token of the thread that runs the loop; 0: none.
    runner: AtomicUsize,
    waiting: AtomicUsize,
    ended: Mutex<u64>,
    changed: Condvar,
}

/// Unlike that of any other living thread.
fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}

impl Handoff {
    /// This thread runs the loop from now on, or no thread does.
    pub fn set_runner(&self, running: bool) {
        let token = if running { this_thread() } else { 0 };
        self.runner.store(token, Ordering::Relaxed);
    }

    /// Whether this thread runs the loop.
    pub fn is_runner(&self) -> bool {
        self.runner.load(Ordering::Relaxed) == this_thread()
    }

    /// A thread-safe handle's callback has ended.
    pub fn finished(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            *self.ended.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            self.changed.notify_all();
        }
    }

    /// Waits without the GIL until some callback has ended.
    pub fn wait(&self, py: Python<'_>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let before = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        py.detach(|| {
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            while *ended == before {
                ended = self
                    .changed
                    .wait(ended)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        });
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
