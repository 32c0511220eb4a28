//! Listening sockets that this crate's user owns, and who knocks.

use std::io;

use socket2::{Domain, SockAddr, Type};

use crate::socket::{self, RawSource, Socket};

/// A listening, non-blocking socket; dropping it closes the descriptor.
#[derive(Debug)]
pub struct Listening(Socket);

/// As many may wait to be accepted.
const BACKLOG: i32 = 64;

impl Listening {
    /// A copy of somebody else's listening socket, which stays theirs.
    ///
    /// # Errors
    ///
    /// What the system says: it is not open, or no more may be.
    #[cfg(unix)]
    pub fn copied(descriptor: RawSource) -> io::Result<Self> {
        let file = crate::thread::file_of(descriptor)?;
        let socket = socket2::Socket::from(std::os::fd::OwnedFd::from(file));
        socket.set_nonblocking(true)?;
        Ok(Self(Socket::from(socket)))
    }

    /// There are none.
    ///
    /// # Errors
    ///
    /// Always.
    #[cfg(not(unix))]
    pub fn copied(_descriptor: RawSource) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// A port of 127.0.0.1; 0: any that is free. Returns its number, too.
    ///
    /// # Errors
    ///
    /// What the system says: it is taken, or not allowed.
    pub fn on_loopback(port: u16) -> io::Result<(Self, u16)> {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // So that a program that is started again gets the port that it had. On Windows this would share it.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        socket.bind(&SockAddr::from(address))?;
        socket.listen(BACKLOG)?;
        let bound = socket.local_addr()?.as_socket().map(|bound| bound.port());
        Ok((Self(Socket::from(socket)), bound.unwrap_or(port)))
    }

    /// A connection, non-blocking and not inherited by other programs.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nobody knocks, or what the system says.
    pub fn accept(&self) -> io::Result<Socket> {
        // SAFETY: the socket is ours and lives as long as we do.
        unsafe { socket::accept(self.0.raw()) }
    }

    pub fn raw(&self) -> RawSource {
        self.0.raw()
    }
}

/// Whether the other end of a UNIX socket was opened by our own user, or by root.
#[cfg(unix)]
pub fn is_trusted(socket: &Socket) -> bool {
    // SAFETY: always succeeds.
    let own = unsafe { libc::geteuid() };
    user_of(socket).is_ok_and(|user| user == own || user == 0)
}

/// Nobody is.
#[cfg(not(unix))]
pub fn is_trusted(_socket: &Socket) -> bool {
    false
}

#[cfg(target_os = "linux")]
fn user_of(socket: &Socket) -> io::Result<libc::uid_t> {
    let mut found = libc::ucred {
        pid: 0,
        uid: libc::uid_t::MAX,
        gid: libc::gid_t::MAX,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the socket is open while it is borrowed; what is written to has the size that is given.
    let done = unsafe {
        libc::getsockopt(
            socket.raw(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut size,
        )
    };
    match done {
        0 => Ok(found.uid),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn user_of(socket: &Socket) -> io::Result<libc::uid_t> {
    let (mut user, mut group) = (libc::uid_t::MAX, libc::gid_t::MAX);
    // SAFETY: the socket is open while it is borrowed; there are two numbers to write to.
    match unsafe { libc::getpeereid(socket.raw(), &raw mut user, &raw mut group) } {
        0 => Ok(user),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    #[test]
    fn a_port_of_its_own_takes_connections() {
        let (listening, port) = Listening::on_loopback(0).unwrap();
        assert!(socket::would_block(&listening.accept().unwrap_err()));
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = std::iter::repeat_with(|| listening.accept()).find_map(Result::ok);
        let accepted = accepted.unwrap();
        assert_eq!(accepted.send(b"hello").unwrap(), 5);
        drop(accepted);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(Listening::on_loopback(port).is_err(), "it is taken");
    }

    #[cfg(unix)]
    #[test]
    fn our_own_other_end_is_trusted() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let one = socket2::Socket::from(std::os::fd::OwnedFd::from(one));
        assert!(is_trusted(&Socket::from(one)));
    }
}
