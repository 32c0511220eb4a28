//! Telling a forked child from its parent.
//!
//! A child inherits the parent's selector: the same kernel object, so that whatever the child
//! registers or removes, it does to its parent. Whoever owns such an object remembers the generation
//! in which it was made, and makes a new one when the generation has changed.

use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between the process that loaded this and the one we are in.
///
/// The handler that counts takes no lock and no GIL: it also runs in children of foreign forks.
#[cfg(unix)]
pub fn generation() -> u32 {
    use std::sync::Once;

    static INSTALL: Once = Once::new();

    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }

    INSTALL.call_once(|| {
        // SAFETY: the handler only touches an atomic, which is allowed in a forked child.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    GENERATION.load(Ordering::Relaxed)
}

/// Always the same where there is no fork.
#[cfg(not(unix))]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}
