//! Who owns a connection's descriptor.
//!
//! Exactly one object does, because only one may close it. A connection that we accepted is ours: the
//! Python socket that `get_extra_info("socket")` shows is a view, detached before we close. A
//! connection whose Python socket was handed to us stays that socket's: applications go on using the
//! object (asyncio lets them), so we close it by `sock.close()`. But then the application may close it
//! under us, and the system may give its number to another connection; so before each system call we
//! ask the socket whether the number is still its own ([`is_still`]). The same holds for a view once it is
//! shown: who closes it has closed our descriptor, and who detaches it has taken it over.
//!
//! A socket that nobody else knows need not be asked. The loop makes most of them itself and lets go of them when the
//! transport has begun; from then on ours is the only reference (and that of what `get_extra_info("socket")` would
//! show). Whoever has none, strong or weak, can get one only by that way, which the transport notes, or from the garbage
//! collector (`gc.get_objects()`). Who has closed or detached it then has done so to the object, whose first field says so:
//! that is looked at before each call ([`Owner::is_certain`]).

use std::io;
use std::mem::ManuallyDrop;

use pyo3::sync::PyOnceLock;
use pyo3::{ffi, intern, prelude::*};
use tideloop_sys::socket::{self, RawSource, Socket};

use super::call;
use super::cell::LoopCell;
use crate::reactor::source_from;

/// A connected socket and the one object that closes it.
pub struct Owner {
    socket: ManuallyDrop<Socket>,
    /// The Python socket that owns the descriptor; None: we do.
    python: Option<Py<PyAny>>,
    /// It had its descriptor when nobody else knew it.
    alone: bool,
}

impl Owner {
    /// A socket of our own.
    pub fn native(socket: Socket) -> Self {
        Self {
            socket: ManuallyDrop::new(socket),
            python: None,
            alone: false,
        }
    }

    /// A Python socket, which stays the owner.
    pub fn python(sock: &Bound<'_, PyAny>) -> PyResult<Self> {
        let source = source_from(&call::method0(sock, intern!(sock.py(), "fileno"))?)?;
        // SAFETY: the value is never dropped as long as `python` is set, so this does not close it.
        let socket = ManuallyDrop::new(unsafe { Socket::from_raw(source) });
        Ok(Self {
            socket,
            python: Some(sock.clone().unbind()),
            alone: false,
        })
    }

    #[inline]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether nobody else can have closed the descriptor.
    #[inline]
    pub fn is_native(&self) -> bool {
        self.python.is_none()
    }

    /// Whether nobody else can have closed the descriptor. `shown`: the program may have got the Python socket from us.
    #[inline]
    pub fn is_certain(&self, shown: bool) -> bool {
        match &self.python {
            None => true,
            Some(sock) => self.alone && !shown && told(sock) == self.socket.raw(),
        }
    }

    /// The Python socket has its descriptor, and is [known](is_known) to nobody else.
    pub fn trust(&mut self) {
        // Which field that is, is seen by what it has.
        self.alone = self
            .python
            .as_ref()
            .is_some_and(|sock| told(sock) == self.socket.raw());
    }

    /// The Python socket, to be asked by [`is_still`], if one owns the descriptor.
    #[inline]
    pub fn python_socket(&self, py: Python<'_>) -> Option<(Py<PyAny>, RawSource)> {
        self.python
            .as_ref()
            .map(|sock| (sock.clone_ref(py), self.socket.raw()))
    }

    /// Whether somebody besides us, and the view that we have shown, knows the Python socket, and may use it behind
    /// our back.
    #[inline]
    pub fn is_shared(&self, _py: Python<'_>, shown: bool) -> bool {
        // SAFETY: a live object, and the GIL is held.
        self.python.as_ref().is_some_and(|sock| unsafe {
            pyo3::ffi::Py_REFCNT(sock.as_ptr()) > 1 + isize::from(shown)
        })
    }

    /// Closes the descriptor, once, by its owner.
    pub fn close(mut self, py: Python<'_>) -> PyResult<()> {
        match self.python.take() {
            Some(sock) => {
                std::mem::forget(self);
                call::method0(sock.bind(py), intern!(py, "close")).map(drop)
            }
            None => {
                // SAFETY: `self` is consumed and has no other way to drop the socket.
                unsafe { ManuallyDrop::drop(&mut self.socket) };
                std::mem::forget(self);
                Ok(())
            }
        }
    }
}

/// What a transport keeps in its cell, as far as its descriptor goes.
pub trait Owns {
    /// References to the Python socket that nobody can use behind our back.
    const REFERENCES: isize;

    /// The owner, until it has closed, and whether the program was shown the Python socket.
    fn owner(&mut self) -> (Option<&mut Owner>, bool);
}

/// Fails if somebody has closed the descriptor: its number may be another socket's by now.
#[inline]
pub fn check<S: Owns>(py: Python<'_>, state: &LoopCell<S>) -> io::Result<()> {
    let certain = state.with(py, |state| match state.owner() {
        (Some(owner), shown) => owner.is_certain(shown),
        (None, _) => true,
    });
    match certain {
        true => Ok(()),
        false => ask(py, state),
    }
}

#[cold]
fn ask<S: Owns>(py: Python<'_>, state: &LoopCell<S>) -> io::Result<()> {
    let asked = state.with(py, |state| state.owner().0?.python_socket(py));
    let Some((sock, source)) = asked else {
        return Ok(());
    };
    let sock = sock.into_bound(py);
    if !is_still(&sock, source) {
        return Err(socket::closed_underneath());
    }
    // This reference is one more.
    if !is_known(&sock, S::REFERENCES + 1) {
        state.with(py, |state| {
            if let (Some(owner), false) = state.owner() {
                owner.trust();
            }
        });
    }
    Ok(())
}

impl Owner {
    /// Lets go of a descriptor that somebody else has closed or taken over.
    pub fn give_up(mut self, py: Python<'_>) {
        let python = self.python.take();
        std::mem::forget(self);
        drop(python.map(|sock| sock.into_bound(py)));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.python.is_none() {
            // SAFETY: not dropped before: `close` forgets the value after it has.
            unsafe { ManuallyDrop::drop(&mut self.socket) };
        }
    }
}

/// A Python socket that shows a descriptor which it does not own.
pub struct View {
    sock: Py<PyAny>,
    /// Its field tells the descriptor, as was seen.
    tells: bool,
}

impl View {
    /// A Python socket that was made for this descriptor.
    pub fn new(sock: Bound<'_, PyAny>, source: RawSource) -> Self {
        let plain = is_plain(&sock);
        let sock = sock.unbind();
        Self {
            tells: plain && told(&sock) == source,
            sock,
        }
    }

    #[inline]
    pub fn socket(&self) -> &Py<PyAny> {
        &self.sock
    }

    pub fn into_socket(self, py: Python<'_>) -> Bound<'_, PyAny> {
        self.sock.into_bound(py)
    }

    /// Whether it is seen to have this descriptor still; if not, it is to be [asked](is_still).
    #[inline]
    pub fn is_certain(&self, source: RawSource) -> bool {
        self.tells && told(&self.sock) == source
    }
}

/// The descriptor in a socket of exactly the class `socket.socket`: its first field, which is no descriptor any more once it
/// is closed or detached.
#[inline]
fn told(sock: &Py<PyAny>) -> RawSource {
    // SAFETY: `is_plain` has seen its class, whose instances have more than a descriptor behind their head; the object
    // is alive, and the GIL is held by whoever has the transport.
    unsafe { sock.as_ptr().add(1).cast::<RawSource>().read() }
}

/// Whether a Python socket still has the descriptor that it had.
#[inline]
pub fn is_still(sock: &Bound<'_, PyAny>, source: RawSource) -> bool {
    call::method0(sock, intern!(sock.py(), "fileno")).is_ok_and(|number| {
        number
            .extract::<RawSource>()
            .is_ok_and(|number| number == source)
    })
}

/// Whether somebody may do something with a Python socket who has got it elsewhere than from us. `references`: how many
/// there are that we know of, the caller's among them.
pub fn is_known(sock: &Bound<'_, PyAny>, references: isize) -> bool {
    // SAFETY: a live object, and the GIL is held.
    let count = unsafe { ffi::Py_REFCNT(sock.as_ptr()) };
    // The methods of a class of the program's own may know other ways.
    !is_plain(sock) || count > references || is_known_weakly(sock)
}

/// Whether a Python socket is of the class `socket.socket` itself.
fn is_plain(sock: &Bound<'_, PyAny>) -> bool {
    static CLASS: PyOnceLock<Option<Py<PyAny>>> = PyOnceLock::new();
    let py = sock.py();
    let class = CLASS.get_or_init(py, || {
        let module = py.import(intern!(py, "socket")).ok()?;
        Some(module.getattr(intern!(py, "socket")).ok()?.unbind())
    });
    class
        .as_ref()
        .is_some_and(|class| sock.get_type().is(class.bind(py)))
}

/// Whether there are weak references to an object.
fn is_known_weakly(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object, and the GIL is held. Where its type says that the list of weak references is, at whatever
    // side of the object's beginning, there is a pointer to the first one, or null.
    unsafe {
        let offset = (*ffi::Py_TYPE(object.as_ptr())).tp_weaklistoffset;
        let place = object.as_ptr().byte_offset(offset);
        offset != 0 && !(*place.cast::<*mut ffi::PyObject>()).is_null()
    }
}
