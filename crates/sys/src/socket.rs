//! Owned, non-blocking sockets.
//!
//! A descriptor has exactly one owner: closing it twice would close whatever another thread has
//! opened under the same number in between, and send one connection's bytes to another. Whoever
//! builds a [`Socket`] from a raw descriptor gives the ownership up.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;

#[cfg(not(target_os = "linux"))]
use socket2::SockRef;

/// A descriptor's number: a file descriptor on UNIX, a SOCKET on Windows.
#[cfg(unix)]
pub type RawSource = std::os::fd::RawFd;
#[cfg(windows)]
pub type RawSource = std::os::windows::io::RawSocket;

/// Bytes to a peer that is gone are an error of the call, never a SIGPIPE.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(crate) const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(crate) const SEND_FLAGS: i32 = 0;

/// A socket that this value owns; dropping it closes the descriptor.
#[derive(Debug)]
pub struct Socket(socket2::Socket);

/// Takes over a socket, which has to be non-blocking.
impl From<socket2::Socket> for Socket {
    fn from(socket: socket2::Socket) -> Self {
        Self(socket)
    }
}

impl Socket {
    /// Takes ownership of a non-blocking socket.
    ///
    /// # Safety
    ///
    /// `raw` is an open socket, and nobody else will close it.
    pub unsafe fn from_raw(raw: RawSource) -> Self {
        // SAFETY: the caller hands over an open socket that is owned by nobody else.
        #[cfg(unix)]
        let socket = unsafe { <socket2::Socket as std::os::fd::FromRawFd>::from_raw_fd(raw) };
        // SAFETY: as above.
        #[cfg(windows)]
        let socket = unsafe {
            <socket2::Socket as std::os::windows::io::FromRawSocket>::from_raw_socket(raw)
        };
        Self(socket)
    }

    pub fn raw(&self) -> RawSource {
        raw_of(&self.0)
    }

    pub(crate) fn inner(&self) -> &socket2::Socket {
        &self.0
    }

    /// Receives into `buffer`; zero bytes mean that the peer will send no more.
    #[inline]
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Receives into memory that need not be initialized; the first so many bytes are, then.
    #[inline]
    pub fn recv_uninit(&self, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        self.0.recv(room)
    }

    #[inline]
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_with_flags(bytes, SEND_FLAGS)
    }

    pub fn send_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_vectored_with_flags(slices, SEND_FLAGS)
    }

    /// Tells the peer that no more bytes will come.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    /// Sends small writes at once (TCP_NODELAY); fails on sockets that are not TCP.
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.0.set_tcp_nodelay(true)
    }
}

/// Accepts one connection on a listening socket, non-blocking and not inherited by child processes.
///
/// # Safety
///
/// `listener` is an open listening socket for the duration of the call.
#[cfg(target_os = "linux")]
pub unsafe fn accept(listener: RawSource) -> io::Result<Socket> {
    // SAFETY: null address pointers ask for no address; the flags are valid for accept4.
    let raw = unsafe {
        libc::accept4(
            listener,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: accept4 has just returned this descriptor, so it is open and only ours.
    Ok(unsafe { Socket::from_raw(raw) })
}

/// Accepts one connection on a listening socket, non-blocking and not inherited by child processes.
///
/// # Safety
///
/// `listener` is an open listening socket for the duration of the call.
#[cfg(not(target_os = "linux"))]
pub unsafe fn accept(listener: RawSource) -> io::Result<Socket> {
    // SAFETY: the caller keeps the listener open during the call.
    let listener = unsafe { borrow(listener) };
    let (socket, _) = SockRef::from(&listener).accept()?;
    socket.set_nonblocking(true)?;
    Ok(Socket(socket))
}

/// Whether [`recv_on`] and [`send_on`] work here: they do not wait, even on a blocking socket.
pub const DIRECT: bool = cfg!(unix);

/// Receives on a descriptor that somebody else owns, without waiting.
///
/// # Safety
///
/// `raw` is open during the call, or is refused by the system as not open.
#[cfg(unix)]
pub unsafe fn recv_on(raw: RawSource, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for writes of its length during the call.
    let len = unsafe {
        libc::recv(
            raw,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Sends on a descriptor that somebody else owns, without waiting.
///
/// # Safety
///
/// As [`recv_on`].
#[cfg(unix)]
pub unsafe fn send_on(raw: RawSource, bytes: &[u8]) -> io::Result<usize> {
    let flags = SEND_FLAGS | libc::MSG_DONTWAIT;
    // SAFETY: the bytes are valid for reads of their length during the call.
    let len = unsafe { libc::send(raw, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// # Safety
///
/// None is needed: it is not called where [`DIRECT`] is false.
#[cfg(not(unix))]
pub unsafe fn recv_on(_raw: RawSource, _buffer: &mut [u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// # Safety
///
/// As [`recv_on`].
#[cfg(not(unix))]
pub unsafe fn send_on(_raw: RawSource, _bytes: &[u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether addresses of this family, as Python numbers it, are those of IP.
pub fn is_ip_family(family: i32) -> bool {
    [socket2::Domain::IPV4, socket2::Domain::IPV6]
        .map(i32::from)
        .contains(&family)
}

/// Whether an error says "not now, later", not "no".
#[inline]
pub fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(unix)]
pub(crate) type Borrowed<'a> = std::os::fd::BorrowedFd<'a>;
#[cfg(windows)]
pub(crate) type Borrowed<'a> = std::os::windows::io::BorrowedSocket<'a>;

/// Borrows a descriptor for calls that want proof that it is open.
///
/// # Safety
///
/// The descriptor stays open for `'a`.
pub(crate) unsafe fn borrow<'a>(raw: RawSource) -> Borrowed<'a> {
    // SAFETY: passed on to the caller.
    unsafe {
        #[cfg(unix)]
        return Borrowed::borrow_raw(raw);
        #[cfg(windows)]
        return Borrowed::borrow_raw(raw);
    }
}

fn raw_of(socket: &socket2::Socket) -> RawSource {
    #[cfg(unix)]
    return std::os::fd::AsRawFd::as_raw_fd(socket);
    #[cfg(windows)]
    return std::os::windows::io::AsRawSocket::as_raw_socket(socket);
}

/// An address as far as it can be told without asking the system again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    V4(std::net::SocketAddrV4),
    /// Its flow information is in the machine's byte order, as Python gives and takes it.
    V6(std::net::SocketAddrV6),
    /// A UNIX path; empty if unnamed. The bytes of an abstract name begin with a zero.
    Unix(Vec<u8>),
    /// Another family: ask a Python socket.
    Other,
}

impl Socket {
    /// Our end's address, if there is one.
    pub fn local_address(&self) -> Option<Address> {
        self.0.local_addr().ok().map(|address| tell(&address))
    }

    /// The peer's address, if there is one.
    pub fn peer_address(&self) -> Option<Address> {
        self.0.peer_addr().ok().map(|address| tell(&address))
    }
}

pub(crate) fn tell(address: &socket2::SockAddr) -> Address {
    match address.as_socket() {
        Some(std::net::SocketAddr::V4(address)) => return Address::V4(address),
        Some(std::net::SocketAddr::V6(address)) => {
            return Address::V6(std::net::SocketAddrV6::new(
                *address.ip(),
                address.port(),
                u32::from_be(address.flowinfo()),
                address.scope_id(),
            ));
        }
        None => {}
    }
    #[cfg(unix)]
    if address.is_unix() {
        use std::os::unix::ffi::OsStrExt;
        if let Some(path) = address.as_pathname() {
            return Address::Unix(path.as_os_str().as_bytes().to_vec());
        }
        if let Some(name) = address.as_abstract_namespace() {
            return Address::Unix([b"\0", name].concat());
        }
        return Address::Unix(Vec::new());
    }
    Address::Other
}

/// An IPv6 address as `inet_ntop` writes it, and so Python: Rust differs where the last four bytes are an
/// IPv4 address in the deprecated form without `ffff`.
pub fn host_v6(ip: &std::net::Ipv6Addr) -> String {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            format!("::{a}.{b}.{c}.{d}")
        }
        _ => ip.to_string(),
    }
}

/// Whether an accept failed because the process or the system has run out of something.
pub fn out_of_resources(error: &io::Error) -> bool {
    #[cfg(unix)]
    let codes = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    // WSAEMFILE and WSAENOBUFS.
    #[cfg(windows)]
    let codes = [10024, 10055];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// Whether an accept failed for one connection only, which was gone or refused before it was ours: the
/// next one may be all right (accept(2): "treat them like EAGAIN by retrying").
pub fn concerns_one_connection(error: &io::Error) -> bool {
    #[cfg(unix)]
    let codes = [
        libc::EPERM,
        libc::EPROTO,
        libc::ENOPROTOOPT,
        libc::EOPNOTSUPP,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        #[cfg(target_os = "linux")]
        libc::ENONET,
    ];
    // WSAECONNRESET, WSAENETDOWN.
    #[cfg(windows)]
    let codes = [10054, 10050];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// What the system says of a descriptor that was closed: EBADF, or ENOTSOCK on Windows.
pub fn closed_underneath() -> io::Error {
    #[cfg(unix)]
    return io::Error::from_raw_os_error(libc::EBADF);
    // WSAENOTSOCK.
    #[cfg(windows)]
    return io::Error::from_raw_os_error(10038);
}
