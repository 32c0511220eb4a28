//! Owned sockets: bytes go through, ends are seen, refusals are told from errors.
#![allow(clippy::unwrap_used)]

use std::io::IoSlice;
use std::net::{TcpListener, TcpStream};

use tideloop_sys::socket::{self, RawSource, Socket};

fn into_raw(stream: TcpStream) -> RawSource {
    #[cfg(unix)]
    return std::os::fd::IntoRawFd::into_raw_fd(stream);
    #[cfg(windows)]
    return std::os::windows::io::IntoRawSocket::into_raw_socket(stream);
}

fn raw(listener: &TcpListener) -> RawSource {
    #[cfg(unix)]
    return std::os::fd::AsRawFd::as_raw_fd(listener);
    #[cfg(windows)]
    return std::os::windows::io::AsRawSocket::as_raw_socket(listener);
}

fn pair() -> (Socket, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    a.set_nonblocking(true).unwrap();
    // SAFETY: `into_raw` gives the ownership up; the listener is open during the call.
    unsafe {
        (
            Socket::from_raw(into_raw(a)),
            socket::accept(raw(&listener)).unwrap(),
        )
    }
}

/// Loopback needs a moment between send and recv on some systems.
fn recv(socket: &Socket, buffer: &mut [u8]) -> usize {
    loop {
        match socket.recv(buffer) {
            Err(error) if socket::would_block(&error) => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

#[test]
fn bytes_go_both_ways_and_end() {
    let (a, b) = pair();
    a.set_nodelay().unwrap();
    let mut buffer = [0; 16];
    assert!(socket::would_block(&b.recv(&mut buffer).unwrap_err()));
    assert_eq!(a.send(b"abc").unwrap(), 3);
    assert_eq!(recv(&b, &mut buffer), 3);
    assert_eq!(&buffer[..3], b"abc");
    let slices = [IoSlice::new(b"de"), IoSlice::new(b"f")];
    assert_eq!(b.send_vectored(&slices).unwrap(), 3);
    assert_eq!(recv(&a, &mut buffer), 3);
    assert_eq!(&buffer[..3], b"def");

    a.shutdown_write().unwrap();
    assert_eq!(recv(&b, &mut buffer), 0, "end of file");
    assert_eq!(b.send(b"!").unwrap(), 1, "the other half lives on");
    assert_eq!(recv(&a, &mut buffer), 1);
}

#[test]
fn sending_to_a_peer_that_is_gone_is_an_error_of_the_call() {
    let (a, b) = pair();
    drop(b);
    let error = loop {
        match a.send(b"x") {
            Ok(_) => {}
            Err(error) if socket::would_block(&error) => std::thread::yield_now(),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
        ),
        "{error}"
    );
}

#[test]
fn accepting_with_nobody_there_would_block() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    // SAFETY: the listener is open.
    let error = unsafe { socket::accept(raw(&listener)) }.unwrap_err();
    assert!(socket::would_block(&error));
}

#[test]
fn hosts_are_written_as_the_system_writes_them() {
    for (given, written) in [
        ("::", "::"),
        ("::1", "::1"),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
        ("::0102:0304", "::1.2.3.4"),
        ("::0001:0304", "::0.1.3.4"),
        ("fe80:0:0:0:1:0:0:2", "fe80::1:0:0:2"),
        ("1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
    ] {
        assert_eq!(socket::host_v6(&given.parse().unwrap()), written);
    }
}
