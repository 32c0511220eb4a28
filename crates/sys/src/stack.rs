//! How much room the stack of the calling thread has left.
//!
//! A program decides how large the stacks of its threads are (`threading.stack_size()` takes 32 KiB and more), and how
//! deeply objects of ours are nested in each other. Counting levels, as the interpreter does before 3.14, therefore bounds
//! nothing; where the stack ends does.

use std::cell::Cell;

/// What is left to whoever is told that there is little room, to raise an error, to run a finalizer, to return: a quarter of
/// the stack, and no more than this.
const RESERVE: usize = 64 * 1024;

#[derive(Clone, Copy)]
struct Stack {
    /// The lowest address that may be used.
    end: usize,
    /// Below this there is little room.
    floor: usize,
}

/// Nobody has asked yet.
const UNKNOWN: Stack = Stack {
    end: 0,
    floor: usize::MAX,
};

thread_local! {
    static STACK: Cell<Stack> = const { Cell::new(UNKNOWN) };
}

/// Whether little room is left. Never, where the system does not say how large a stack is.
#[inline]
pub fn is_low() -> bool {
    let here = here();
    here < STACK.get().floor && is_low_at(here)
}

/// An address on the stack, near its present end.
#[inline(always)]
fn here() -> usize {
    let marker = 0_u8;
    std::hint::black_box(&raw const marker).addr()
}

#[cold]
#[inline(never)]
fn is_low_at(here: usize) -> bool {
    let mut stack = STACK.get();
    if stack.floor == usize::MAX {
        stack = bounds().map_or(Stack { end: 0, floor: 0 }, |(end, size)| Stack {
            end,
            floor: end + (size / 4).min(RESERVE),
        });
        STACK.set(stack);
    }
    // Below the end it is another stack, that somebody has given to a piece of this thread's work.
    (stack.end..stack.floor).contains(&here)
}

/// The lowest address of this thread's stack, and its size; None where the system does not say, or says only what of it is
/// in use (musl, of the first thread).
#[cfg(target_os = "linux")]
fn bounds() -> Option<(usize, usize)> {
    use std::mem::MaybeUninit;
    use std::ptr::null_mut;

    if cfg!(target_env = "musl") && crate::thread::Thread::current().is_main() {
        return None;
    }
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut end, mut size) = (null_mut(), 0);
    // SAFETY: the attributes are filled by the first call, if it succeeds, and only then read and destroyed.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &mut end, &mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (found == 0).then(|| (end.addr(), size))
    }
}

#[cfg(target_vendor = "apple")]
fn bounds() -> Option<(usize, usize)> {
    // SAFETY: both only read what is known of the calling thread.
    let (top, size) = unsafe {
        let this = libc::pthread_self();
        (
            libc::pthread_get_stackaddr_np(this).addr(),
            libc::pthread_get_stacksize_np(this),
        )
    };
    Some((top.checked_sub(size)?, size))
}

#[cfg(windows)]
fn bounds() -> Option<(usize, usize)> {
    use windows_sys::Win32::System::Threading::GetCurrentThreadStackLimits;

    let (mut end, mut top) = (0, 0);
    // SAFETY: writes two numbers.
    unsafe { GetCurrentThreadStackLimits(&mut end, &mut top) };
    Some((end, top.checked_sub(end)?))
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple", windows)))]
fn bounds() -> Option<(usize, usize)> {
    None
}

#[cfg(all(test, any(target_os = "linux", target_vendor = "apple", windows)))]
mod tests {
    use super::{RESERVE, bounds, here, is_low};

    /// How many bytes are used until there is little room.
    #[inline(never)]
    fn descend(top: usize) -> usize {
        let ballast = std::hint::black_box([0_u8; 512]);
        if is_low() {
            return top - here();
        }
        descend(top) + usize::from(ballast[0])
    }

    /// What a thread uses until there is little room, and how large its stack is: that of an earlier one, maybe, which was
    /// larger. None where the system does not say.
    fn used_by_a_thread_of(size: usize) -> Option<(usize, usize)> {
        let thread = std::thread::Builder::new().stack_size(size);
        let used = thread.spawn(|| bounds().map(|(_, size)| (descend(here()), size)));
        used.ok()?.join().ok()?
    }

    #[test]
    fn a_thread_begins_with_room() {
        assert!(!is_low());
    }

    #[test]
    fn a_stack_is_low_before_its_end() {
        for size in [64, 128, 512, 4096].map(|kib| kib * 1024) {
            let Some((used, size)) = used_by_a_thread_of(size) else {
                assert!(bounds().is_none(), "a thread has failed");
                return;
            };
            let reserve = (size / 4).min(RESERVE);
            assert!(used <= size - reserve + 4096, "{used} of {size}");
            assert!(used >= size / 2 - 8192, "{used} of {size}");
        }
    }

    #[test]
    fn a_thread_is_on_its_stack() {
        if let Some((end, size)) = bounds() {
            assert!((end..end + size).contains(&here()));
        }
    }
}
