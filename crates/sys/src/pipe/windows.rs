//! Windows: a named pipe of one instance, with overlapped operations.
//!
//! Anonymous pipes of the system's own know no overlapped operations. The name is taken by nobody else:
//! it holds the process's number and a counter, and the system refuses a second first instance.
//!
//! The system writes to an operation's buffer and state until the operation has ended, whatever becomes of
//! us; so both live in one box that is only freed when [`Operation`] has seen the end.

use std::cell::UnsafeCell;
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use windows_sys::Win32::Foundation::{
    ERROR_BROKEN_PIPE, ERROR_IO_INCOMPLETE, ERROR_IO_PENDING, ERROR_NO_DATA, GENERIC_WRITE, HANDLE,
    INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, OPEN_EXISTING,
    PIPE_ACCESS_INBOUND, ReadFile, WriteFile,
};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Pipes::{CreateNamedPipeW, PIPE_REJECT_REMOTE_CLIENTS, PIPE_WAIT};
use windows_sys::Win32::System::Threading::{CreateEventW, SetEvent};

use crate::selector::RawHandle;

/// Bytes per operation, and in the system's buffer.
const BUFFER: usize = 64 * 1024;

pub fn pair() -> io::Result<(Reader, Writer)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!(r"\\.\pipe\tideloop-{}-{number}", std::process::id());
    let name: Vec<u16> = name.encode_utf16().chain([0]).collect();
    // SAFETY: the name ends with a zero and outlives the call; no security attributes are given, so the
    // handle is not inherited.
    let reader = owned(unsafe {
        CreateNamedPipeW(
            name.as_ptr(),
            PIPE_ACCESS_INBOUND | FILE_FLAG_FIRST_PIPE_INSTANCE | FILE_FLAG_OVERLAPPED,
            PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS,
            1,
            BUFFER as u32,
            BUFFER as u32,
            0,
            ptr::null(),
        )
    })?;
    // SAFETY: as above; a client that opens the only instance is connected at once.
    let writer = owned(unsafe {
        CreateFileW(
            name.as_ptr(),
            GENERIC_WRITE,
            0,
            ptr::null(),
            OPEN_EXISTING,
            FILE_FLAG_OVERLAPPED,
            ptr::null_mut(),
        )
    })?;
    let mut reader = Reader {
        operation: Operation::new(reader)?,
        ready: 0..0,
        ended: None,
    };
    reader.read_ahead();
    let writer = Writer {
        operation: Operation::new(writer)?,
    };
    writer.operation.set_event()?;
    Ok((reader, writer))
}

fn owned(handle: HANDLE) -> io::Result<OwnedHandle> {
    if handle.is_null() || handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system has just returned this handle, so it is open and only ours.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// What the system may write to while an operation is under way.
struct Shared {
    overlapped: OVERLAPPED,
    bytes: [u8; BUFFER],
}

/// One end of a pipe with at most one operation under way on it.
struct Operation {
    pipe: OwnedHandle,
    event: OwnedHandle,
    shared: Box<UnsafeCell<Shared>>,
    under_way: bool,
}

// SAFETY: the handles may be used from any thread, and the shared part is only touched through `&mut self`
// or, while an operation is under way, by the system.
unsafe impl Send for Operation {}
// SAFETY: as above; nothing is done with it through `&self` but to look at the handles.
unsafe impl Sync for Operation {}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operation")
            .field("pipe", &self.pipe)
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

impl Operation {
    fn new(pipe: OwnedHandle) -> io::Result<Self> {
        // SAFETY: no attributes, no name; set by hand, not set at first.
        let event = owned(unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) })?;
        let shared = Shared {
            // SAFETY: all zeroes are an operation that has not begun.
            overlapped: unsafe { std::mem::zeroed() },
            bytes: [0; BUFFER],
        };
        Ok(Self {
            pipe,
            event,
            shared: Box::new(UnsafeCell::new(shared)),
            under_way: false,
        })
    }

    fn set_event(&self) -> io::Result<()> {
        // SAFETY: the event is ours and open.
        match unsafe { SetEvent(self.event.as_raw_handle()) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// The buffer, while nothing is under way.
    fn bytes(&mut self) -> Option<&mut [u8; BUFFER]> {
        if self.under_way {
            return None;
        }
        Some(&mut self.shared.get_mut().bytes)
    }

    /// Begins an operation on the buffer's first `len` bytes. Its end is told by the event, also if that
    /// was at once.
    fn begin(&mut self, len: usize, write: bool) -> io::Result<()> {
        debug_assert!(!self.under_way && len <= BUFFER);
        let shared = self.shared.get();
        // SAFETY: nothing is under way, so the shared part is ours alone until the call; from then on the
        // system has it, in a box that does not move, until `end` has seen the end.
        let begun = unsafe {
            (*shared).overlapped = std::mem::zeroed();
            (*shared).overlapped.hEvent = self.event.as_raw_handle();
            let overlapped = &raw mut (*shared).overlapped;
            let bytes = (&raw mut (*shared).bytes).cast::<u8>();
            let pipe = self.pipe.as_raw_handle();
            match write {
                true => WriteFile(pipe, bytes, len as u32, ptr::null_mut(), overlapped),
                false => ReadFile(pipe, bytes, len as u32, ptr::null_mut(), overlapped),
            }
        };
        if begun == 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(ERROR_IO_PENDING as i32) {
                // Nothing was begun, so the event says that there is something to be learnt.
                self.set_event()?;
                return Err(error);
            }
        }
        self.under_way = true;
        Ok(())
    }

    /// How many bytes the operation has moved; `WouldBlock` if it has not ended and we do not wait.
    fn end(&mut self, wait: bool) -> io::Result<usize> {
        let mut moved = 0;
        // SAFETY: an operation is under way, with this handle and this state.
        let ended = unsafe {
            GetOverlappedResult(
                self.pipe.as_raw_handle(),
                &raw const (*self.shared.get()).overlapped,
                &mut moved,
                i32::from(wait),
            )
        };
        if ended == 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(ERROR_IO_INCOMPLETE as i32) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.under_way = false;
            return Err(error);
        }
        self.under_way = false;
        Ok(moved as usize)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.under_way {
            // SAFETY: the pipe is open, and the operation is its own.
            unsafe { CancelIoEx(self.pipe.as_raw_handle(), ptr::null()) };
            // Cancelled or finished, it must have ended before its memory is freed.
            self.end(true).ok();
        }
    }
}

/// Whether an error says that nobody is at the other end.
fn is_broken(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(|code| code as u32);
    matches!(code, Some(ERROR_BROKEN_PIPE | ERROR_NO_DATA))
}

#[derive(Debug)]
pub struct Reader {
    operation: Operation,
    /// What was read ahead and not yet asked for.
    ready: std::ops::Range<usize>,
    /// How reading ended: None for the end of the data.
    ended: Option<Option<io::Error>>,
}

impl Reader {
    pub fn handle(&self) -> RawHandle {
        self.operation.event.as_raw_handle()
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() && self.operation.under_way {
            match self.operation.end(false) {
                Ok(len) => self.ready = 0..len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => self.end(error),
            }
        }
        if let Some(error) = &mut self.ended {
            return error.take().map_or(Ok(0), Err);
        }
        let len = self.ready.len().min(buffer.len());
        let start = self.ready.start;
        if let Some(bytes) = self.operation.bytes() {
            buffer[..len].copy_from_slice(&bytes[start..start + len]);
        }
        self.ready.start += len;
        if self.ready.is_empty() {
            self.read_ahead();
        }
        Ok(len)
    }

    fn read_ahead(&mut self) {
        if let Err(error) = self.operation.begin(BUFFER, false) {
            self.end(error);
        }
    }

    fn end(&mut self, error: io::Error) {
        self.ended = Some((!is_broken(&error)).then_some(error));
    }
}

#[derive(Debug)]
pub struct Writer {
    operation: Operation,
}

impl Writer {
    pub fn handle(&self) -> RawHandle {
        self.operation.event.as_raw_handle()
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let len = bytes.len().min(BUFFER);
        if let Some(buffer) = self.operation.bytes() {
            buffer[..len].copy_from_slice(&bytes[..len]);
        }
        self.operation.begin(len, true).map_err(broken)?;
        Ok(len)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        if self.operation.under_way {
            self.operation.end(false).map_err(broken)?;
        }
        Ok(())
    }
}

/// The system has two codes for a pipe without a reader, of which Rust knows one.
fn broken(error: io::Error) -> io::Error {
    if is_broken(&error) {
        return io::ErrorKind::BrokenPipe.into();
    }
    error
}
