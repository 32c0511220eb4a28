//! A bell for one thread to wait for, which a signal rings as well, whatever the program's own threads do.
//!
//! **One bell per process.** A signal's handler knows nothing but statics, and may do next to nothing: it sets a flag and writes
//! a byte to a pipe. The pipe is never closed while its process lives, since a handler may be about to write to it in any
//! thread; a forked child makes another one. At most one byte is in it, so that writing never blocks.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A pipe, of which this process has both ends.
#[derive(Debug)]
pub struct Bell {
    reader: PipeReader,
    writer: PipeWriter,
}

static BELL: Mutex<Option<Arc<Bell>>> = Mutex::new(None);
/// It was rung, and nobody has heard it yet.
static RUNG: AtomicBool = AtomicBool::new(false);
static SIGNALLED: AtomicBool = AtomicBool::new(false);
/// Where the handler writes; -1: nowhere.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// The bell of this process.
///
/// # Errors
///
/// What the system says, if there can be no pipe.
pub fn bell() -> io::Result<Arc<Bell>> {
    let mut bell = BELL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bell) = &*bell {
        return Ok(Arc::clone(bell));
    }
    let (reader, writer) = io::pipe()?;
    #[cfg(unix)]
    {
        use std::os::fd::AsRawFd;
        DESCRIPTOR.store(writer.as_raw_fd(), Ordering::Relaxed);
    }
    let made = Arc::new(Bell { reader, writer });
    *bell = Some(Arc::clone(&made));
    Ok(made)
}

/// In a forked child, which has one thread: the bell is the parent's.
pub fn forked() {
    DESCRIPTOR.store(-1, Ordering::Relaxed);
    RUNG.store(false, Ordering::Relaxed);
    SIGNALLED.store(false, Ordering::Relaxed);
    // A thread that was left behind has it, and is not there to give it back: the child has no bell then.
    if let Ok(mut bell) = BELL.try_lock() {
        *bell = None;
    }
}

/// Whether a signal has come since this was asked last.
pub fn was_signalled() -> bool {
    SIGNALLED.swap(false, Ordering::Relaxed)
}

impl Bell {
    /// Wakes who waits for it, or will.
    pub fn ring(&self) {
        if !RUNG.swap(true, Ordering::AcqRel) {
            // The pipe is empty, and both ends are here: there is nothing that could go wrong.
            (&self.writer).write_all(&[0]).unwrap_or_default();
        }
    }

    /// Waits until it is rung, or was since the last wait.
    ///
    /// # Errors
    ///
    /// What the system says, if it cannot be read from.
    pub fn wait(&self) -> io::Result<()> {
        (&self.reader).read_exact(&mut [0])?;
        // A swap, to see what whoever has rung before had set.
        RUNG.swap(false, Ordering::AcqRel);
        Ok(())
    }
}

#[cfg(unix)]
extern "C" fn rings(_number: libc::c_int) {
    SIGNALLED.store(true, Ordering::Relaxed);
    let descriptor = DESCRIPTOR.load(Ordering::Relaxed);
    if descriptor >= 0 && !RUNG.swap(true, Ordering::AcqRel) {
        let byte = 0_u8;
        // SAFETY: one readable byte, to a pipe that stays open. It is empty, so the call succeeds and leaves errno as it was.
        unsafe { libc::write(descriptor, (&raw const byte).cast(), 1) };
    }
}

/// From now on this signal rings the bell.
///
/// # Errors
///
/// What the system says: there is no such signal, or it cannot be handled.
#[cfg(unix)]
pub fn rung_by(number: i32) -> io::Result<()> {
    handle(number, rings as *const () as libc::sighandler_t)
}

#[cfg(unix)]
fn handle(number: i32, handler: libc::sighandler_t) -> io::Result<()> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed action is a valid one, whose handler and flags are set; the handler only does what a handler
    // may. The old action is not asked for.
    let failed = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(number, action, std::ptr::null_mut())
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// There are no signals to be rung by.
///
/// # Errors
///
/// Always.
#[cfg(not(unix))]
pub fn rung_by(_number: i32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// This signal does again what it did before, unless somebody else handles it by now.
pub fn no_longer_rung_by(number: i32) {
    #[cfg(unix)]
    if crate::thread::handler_of(number) == Some(rings as *const () as usize) {
        // It could be handled, so it can be left alone.
        handle(number, libc::SIG_DFL).unwrap_or_default();
    }
    #[cfg(not(unix))]
    let _nothing = number;
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::thread::{Thread, handler_of};

    // One test: there is one bell.
    #[test]
    fn it_is_rung_by_hand_and_by_a_signal() {
        let number = libc::SIGUSR2;
        let bell = bell().unwrap();
        bell.ring();
        bell.ring();
        bell.wait().unwrap();
        assert!(!was_signalled());
        rung_by(number).unwrap();
        // SAFETY: this thread lives.
        unsafe { Thread::current().signal(number).unwrap() };
        bell.wait().unwrap();
        assert!(was_signalled());
        assert!(!was_signalled());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| bell.wait());
            bell.ring();
            waits.join().unwrap().unwrap();
        });
        no_longer_rung_by(number);
        assert_eq!(handler_of(number), Some(libc::SIG_DFL));
        assert!(rung_by(100_000).is_err());
        forked();
        let other = super::bell().unwrap();
        assert!(!Arc::ptr_eq(&bell, &other));
    }
}
