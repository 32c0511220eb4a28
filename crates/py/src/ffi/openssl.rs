//! OpenSSL, called directly on the session and the two memory buffers of a Python `SSLObject`.
//!
//! **What this saves.** Each of `_ssl`'s methods gives the GIL up and takes it again, `read()` makes a bytes object
//! for each record, and the end of what can be read is an exception with a text. None of this is TLS.
//!
//! **Which library.** There may be several copies of OpenSSL in a process, and a session belongs to the one that made
//! it. We ask the loader for the functions that `_ssl`'s own shared object sees: a handle of that very file, which is
//! loaded already ([`NO_LOAD`](loader)), searches it and what it depends on. The loader searches the global scope
//! first when it binds `_ssl`'s calls; a function that is found there must therefore be the same one. The version that
//! this library tells must be the one that `_ssl` tells. If `_ssl` is not a file of its own, or anything differs,
//! there is no direct way, and Python's methods are called as before.
//!
//! **Which memory.** `_SSLSocket`, `MemoryBIO` and `SSLContext` keep their OpenSSL objects in fields of private
//! layout, which is the same in CPython 3.11 to 3.15: `{Socket, SSL *, context, …}`, `{BIO *, …}`, `{SSL_CTX *, …}`
//! behind the head of the object. [`Session::of`] reads addresses there and believes them only if everything that
//! can be compared without following one agrees: exact types, sizes of their instances, no socket, and behind the
//! session's address that of the context object that Python names. Then OpenSSL itself is asked: the session's
//! buffers and context must be those of the three Python objects. This is done for each connection.
//!
//! **Who keeps it alive.** A session frees its OpenSSL object when the Python object dies, never before; the same holds
//! of the buffers. [`Session`] owns references to the three Python objects, and can be used only while it lives.
//!
//! **Who else may touch it.** OpenSSL's objects are not made for two threads at once. `_ssl`'s methods give the GIL up
//! while they are inside of OpenSSL (some versions hold a lock of the object meanwhile), so holding the GIL does
//! not keep such a method of another thread out. Nobody else having the object does: `tideloop.loop.tls` drives a
//! connection directly only if no code of the program has been given its `SSLObject` (an SNI callback or a message
//! callback gets it), and goes over to Python's methods for good before `get_extra_info("ssl_object")` shows it. All
//! state is OpenSSL's, in the session and the buffers, so that this can happen between any two calls. The GIL is held
//! throughout a call, so that nobody who finds the object in another way (the collector's list of objects) can call a
//! method meanwhile; what such a program may not do is call one in another thread that has begun before.
//!
//! **What OpenSSL may call.** With the handshake over and TLS 1.3, none of `_ssl`'s callbacks: there is no
//! renegotiation, and message callbacks are excluded. Were one called all the same, it would find the GIL held by its
//! own thread, which `PyGILState_Ensure` allows, and no borrow of ours, since the functions here run outside of any cell.
//!
//! **Errors.** Only two outcomes are dealt with here, success and "more has to come first". After anything else the
//! thread's error queue is left as it is and the caller calls Python's method, which meets the same state again and
//! says what it always says.

use std::ffi::{CStr, CString, c_int, c_ulong, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyType};

use super::buffer;

const WANT_READ: c_int = 2;
const TLS_1_3: c_int = 0x0304;

/// Bytes of data in the largest record of TLS.
const RECORD: usize = 16 * 1024;

type Pointer = *mut c_void;

/// Declares the functions that are looked up, and how.
macro_rules! functions {
    ($($name:ident: $type:ty;)*) => {
        /// OpenSSL's functions, of the library that `_ssl` uses.
        #[allow(non_snake_case)]
        struct Functions {
            $($name: $type,)*
        }

        impl Functions {
            fn find(loader: &loader::Library) -> Result<Self, String> {
                Ok(Self {
                    $($name: {
                        const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => c"",
                        };
                        let found = loader.find(NAME)?;
                        // SAFETY: the address of OpenSSL's function of this name, whose type its headers declare.
                        unsafe { std::mem::transmute::<NonNull<c_void>, $type>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    BIO_ctrl_pending: unsafe extern "C" fn(Pointer) -> usize;
    BIO_read: unsafe extern "C" fn(Pointer, Pointer, c_int) -> c_int;
    BIO_write: unsafe extern "C" fn(Pointer, *const c_void, c_int) -> c_int;
    ERR_clear_error: unsafe extern "C" fn();
    OpenSSL_version_num: unsafe extern "C" fn() -> c_ulong;
    SSL_get_SSL_CTX: unsafe extern "C" fn(Pointer) -> Pointer;
    SSL_get_error: unsafe extern "C" fn(Pointer, c_int) -> c_int;
    SSL_get_rbio: unsafe extern "C" fn(Pointer) -> Pointer;
    SSL_get_wbio: unsafe extern "C" fn(Pointer) -> Pointer;
    SSL_pending: unsafe extern "C" fn(Pointer) -> c_int;
    SSL_read_ex: unsafe extern "C" fn(Pointer, Pointer, usize, *mut usize) -> c_int;
    SSL_version: unsafe extern "C" fn(Pointer) -> c_int;
    SSL_write_ex: unsafe extern "C" fn(Pointer, *const c_void, usize, *mut usize) -> c_int;
}

/// The library, and the types whose memory is known.
struct Known {
    functions: Functions,
    session: Py<PyType>,
    buffer: Py<PyType>,
    context: Py<PyType>,
}

/// Why there is no direct way on this interpreter, or what it needs.
fn known(py: Python<'_>) -> PyResult<&'static Result<Known, String>> {
    static KNOWN: PyOnceLock<Result<Known, String>> = PyOnceLock::new();
    KNOWN.get_or_try_init(py, || find(py))
}

fn find(py: Python<'_>) -> PyResult<Result<Known, String>> {
    if cfg!(any(not(target_os = "linux"), Py_GIL_DISABLED)) {
        return Ok(Err(
            "it is not written for this system or this build of Python".to_owned(),
        ));
    }
    if py.version_info() >= (3, 16) {
        return Ok(Err(
            "the layout of this Python's ssl objects is not known".to_owned()
        ));
    }
    let module = py.import("_ssl")?;
    let Ok(path) = module
        .getattr("__file__")
        .and_then(|path| path.extract::<String>())
    else {
        return Ok(Err("_ssl is not a shared object of its own".to_owned()));
    };
    let functions = CString::new(path)
        .map_err(|error| error.to_string())
        .and_then(|path| loader::Library::loaded(&path))
        .and_then(|library| Functions::find(&library));
    let functions = match functions {
        Ok(functions) => functions,
        Err(why) => return Ok(Err(why)),
    };
    let told: c_ulong = module.getattr("OPENSSL_VERSION_NUMBER")?.extract()?;
    // SAFETY: takes nothing and returns a number.
    let found = unsafe { (functions.OpenSSL_version_num)() };
    if found != told {
        return Ok(Err(format!(
            "_ssl uses OpenSSL {told:#x}, and {found:#x} was found"
        )));
    }
    let class = |name: &str| -> PyResult<Py<PyType>> {
        Ok(module.getattr(name)?.cast_into::<PyType>()?.unbind())
    };
    Ok(Ok(Known {
        functions,
        session: class("_SSLSocket")?,
        buffer: class("MemoryBIO")?,
        context: class("_SSLContext")?,
    }))
}

/// Why connections cannot be driven directly in this process; None if they can.
pub fn why_not(py: Python<'_>) -> PyResult<Option<String>> {
    Ok(known(py)?.as_ref().err().cloned())
}

/// One word of an object's memory, behind its head.
///
/// # Safety
///
/// The object has that many words.
unsafe fn word(object: &Bound<'_, PyAny>, index: usize) -> Pointer {
    let head = size_of::<ffi::PyObject>();
    // SAFETY: passed on to the caller; fields behind the head are aligned to words.
    unsafe { *object.as_ptr().byte_add(head).cast::<Pointer>().add(index) }
}

/// Words behind the head of an instance of this type.
fn words(class: &Bound<'_, PyType>) -> usize {
    // SAFETY: a live type.
    let size = unsafe { (*class.as_type_ptr()).tp_basicsize };
    (size as usize).saturating_sub(size_of::<ffi::PyObject>()) / size_of::<Pointer>()
}

fn plausible(address: Pointer) -> bool {
    !address.is_null() && address.addr().is_multiple_of(align_of::<Pointer>())
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub enum Outcome {
    /// All that could be done is done.
    Done,
    /// There is no room for all of it.
    Full,
    /// Python's method must say what it is.
    Unusual,
}

/// One TLS 1.3 connection after its handshake.
pub struct Session {
    known: &'static Known,
    ssl: NonNull<c_void>,
    incoming: NonNull<c_void>,
    outgoing: NonNull<c_void>,
    /// What owns these.
    owners: [Py<PyAny>; 3],
}

// SAFETY: the addresses are only used with the GIL held, as the `Python` tokens of the methods show.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

impl Session {
    /// That of a Python `_SSLSocket` over two `MemoryBIO`; None if it cannot be driven directly.
    pub fn of(
        session: &Bound<'_, PyAny>,
        incoming: &Bound<'_, PyAny>,
        outgoing: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Self>> {
        let py = session.py();
        let Ok(known) = known(py)? else {
            return Ok(None);
        };
        let context = session.getattr(intern!(py, "context"))?;
        let (socket, buffer, owner) = (
            known.session.bind(py),
            known.buffer.bind(py),
            known.context.bind(py),
        );
        let as_known = session.get_type().is(socket)
            && incoming.get_type().is(buffer)
            && outgoing.get_type().is(buffer)
            && context.is_instance(owner)?
            && (8..=12).contains(&words(socket))
            && words(buffer) == 2
            && words(owner) >= 2;
        if !as_known {
            return Ok(None);
        }
        // SAFETY: instances of these very types, with at least that many words.
        let (socket, ssl, behind, read, write, ctx) = unsafe {
            (
                word(session, 0),
                word(session, 1),
                word(session, 2),
                word(incoming, 0),
                word(outgoing, 0),
                word(&context, 0),
            )
        };
        let agrees = socket.is_null()
            && behind == context.as_ptr().cast()
            && [ssl, read, write, ctx].into_iter().all(plausible);
        if !agrees {
            return Ok(None);
        }
        let functions = &known.functions;
        // SAFETY: by everything that could be compared this is the session, and its Python object is alive.
        let confirmed = unsafe {
            (functions.SSL_get_rbio)(ssl) == read
                && (functions.SSL_get_wbio)(ssl) == write
                && (functions.SSL_get_SSL_CTX)(ssl) == ctx
                && (functions.SSL_version)(ssl) == TLS_1_3
        };
        let (Some(ssl), Some(read), Some(write)) =
            (NonNull::new(ssl), NonNull::new(read), NonNull::new(write))
        else {
            return Ok(None);
        };
        Ok(confirmed.then(|| Self {
            known,
            ssl,
            incoming: read,
            outgoing: write,
            owners: [session, incoming, outgoing].map(|object| object.clone().unbind()),
        }))
    }

    /// Puts what was received in front of the library.
    pub fn feed(&self, _py: Python<'_>, mut bytes: &[u8]) -> PyResult<()> {
        while !bytes.is_empty() {
            let len = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
            // SAFETY: a live buffer (see the head), and readable bytes.
            let taken = unsafe {
                (self.known.functions.BIO_write)(self.incoming.as_ptr(), bytes.as_ptr().cast(), len)
            };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => bytes = &bytes[taken..],
                _ => {
                    return Err(PyMemoryError::new_err(
                        "no memory for what a TLS connection has received",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Bytes that wait to be decrypted.
    pub fn waiting(&self, _py: Python<'_>) -> usize {
        // SAFETY: a live buffer.
        unsafe { (self.known.functions.BIO_ctrl_pending)(self.incoming.as_ptr()) }
    }

    /// Decrypts what has come, into bytes of its size. It may be more than there is room for, which is what came
    /// and a record.
    pub fn decrypt<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Outcome)> {
        let waiting = self.waiting(py);
        // A record that has come in part is in the library already.
        let room = if waiting < RECORD {
            waiting.max(1)
        } else {
            waiting + RECORD
        };
        let mut outcome = Outcome::Full;
        let filled = buffer::filled(py, room, |room| {
            let (filled, how) = self.read(py, room);
            outcome = how;
            Ok(filled)
        })?;
        match filled {
            Ok(bytes) => Ok((bytes.into_bound(py), outcome)),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, py: Python<'_>, room: &mut [MaybeUninit<u8>]) -> (usize, Outcome) {
        let functions = &self.known.functions;
        let mut filled = 0;
        // SAFETY: a live session and writable memory; nothing stale in the queue can be taken for its error.
        unsafe { (functions.ERR_clear_error)() };
        while filled < room.len() {
            let left = &mut room[filled..];
            let mut count = 0;
            // SAFETY: a live session; `left` is writable, and what is read of it is what was written.
            let done = unsafe {
                (functions.SSL_read_ex)(
                    self.ssl.as_ptr(),
                    left.as_mut_ptr().cast(),
                    left.len(),
                    &mut count,
                )
            };
            if done <= 0 {
                // SAFETY: the result of the call before, in the same thread.
                let error = unsafe { (functions.SSL_get_error)(self.ssl.as_ptr(), done) };
                return (
                    filled,
                    if error == WANT_READ {
                        Outcome::Done
                    } else {
                        Outcome::Unusual
                    },
                );
            }
            filled += count;
            // SAFETY: a live session. Without read-ahead nothing else of what came can be inside of it.
            if self.waiting(py) == 0 && unsafe { (functions.SSL_pending)(self.ssl.as_ptr()) } == 0 {
                return (filled, Outcome::Done);
            }
        }
        (filled, Outcome::Full)
    }

    /// Encrypts these; how many bytes were taken. Less than all of them: Python's method must say why.
    pub fn encrypt(&self, _py: Python<'_>, bytes: &[u8]) -> usize {
        let functions = &self.known.functions;
        let mut taken = 0;
        // SAFETY: touches only this thread's queue of errors.
        unsafe { (functions.ERR_clear_error)() };
        while taken < bytes.len() {
            let left = &bytes[taken..];
            let mut count = 0;
            // SAFETY: a live session, and readable bytes.
            let done = unsafe {
                (functions.SSL_write_ex)(
                    self.ssl.as_ptr(),
                    left.as_ptr().cast(),
                    left.len(),
                    &mut count,
                )
            };
            if done <= 0 || count == 0 {
                break;
            }
            taken += count;
        }
        taken
    }

    /// Takes what is to be sent; None if there is nothing.
    pub fn drain<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let functions = &self.known.functions;
        // SAFETY: a live buffer.
        let waiting = unsafe { (functions.BIO_ctrl_pending)(self.outgoing.as_ptr()) };
        if waiting == 0 {
            return Ok(None);
        }
        let room = waiting.min(c_int::MAX as usize);
        let filled = buffer::filled(py, room, |room| {
            // SAFETY: a live buffer and so much writable memory; at most INT_MAX, as above.
            let count = unsafe {
                (functions.BIO_read)(
                    self.outgoing.as_ptr(),
                    room.as_mut_ptr().cast(),
                    room.len() as c_int,
                )
            };
            Ok(usize::try_from(count).unwrap_or(0))
        })?;
        match filled {
            Ok(bytes) => Ok(Some(bytes.into_bound(py))),
            Err(error) => Err(error.into()),
        }
    }

    /// The Python objects that it keeps alive, for the collector.
    pub fn owners(&self) -> &[Py<PyAny>; 3] {
        &self.owners
    }
}

#[cfg(target_os = "linux")]
mod loader {
    //! The dynamic loader, asked for what is loaded already.

    use std::ffi::c_char;

    use super::*;

    const LAZY: c_int = 1;
    const NO_LOAD: c_int = 4;

    unsafe extern "C" {
        fn dlopen(path: *const c_char, flags: c_int) -> Pointer;
        fn dlsym(library: Pointer, name: *const c_char) -> Pointer;
    }

    /// A shared object that is loaded.
    pub struct Library(NonNull<c_void>);

    impl Library {
        /// The one of this path. It is never closed, so that what is found in it stays.
        pub fn loaded(path: &CStr) -> Result<Self, String> {
            // SAFETY: a path that ends with a zero; nothing is loaded, so no code runs.
            let handle = unsafe { dlopen(path.as_ptr(), LAZY | NO_LOAD) };
            NonNull::new(handle)
                .map(Self)
                .ok_or_else(|| format!("{path:?} is not loaded"))
        }

        /// The address of a function that this object calls by this name.
        pub fn find(&self, name: &CStr) -> Result<NonNull<c_void>, String> {
            // SAFETY: a handle that is open, a name that ends with a zero; null is the global scope.
            let (own, global) = unsafe {
                (
                    dlsym(self.0.as_ptr(), name.as_ptr()),
                    dlsym(std::ptr::null_mut(), name.as_ptr()),
                )
            };
            let own = NonNull::new(own).ok_or_else(|| format!("_ssl does not show {name:?}"))?;
            match global.is_null() || global == own.as_ptr() {
                true => Ok(own),
                false => Err(format!("there are two {name:?} in this process")),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod loader {
    //! No loader that we know.

    use super::*;

    pub struct Library;

    impl Library {
        pub fn loaded(_path: &CStr) -> Result<Self, String> {
            Err("it is not written for this system".to_owned())
        }

        pub fn find(&self, name: &CStr) -> Result<NonNull<c_void>, String> {
            Err(format!("{name:?} cannot be looked up on this system"))
        }
    }
}
