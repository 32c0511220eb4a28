//! Datagrams: whole, in order, with their addresses, by batches and one by one.
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use tideloop_sys::datagram::{self, Arrivals, BATCH, IP_ROOM, Name};
use tideloop_sys::socket::{self, Address, RawSource, Socket};

fn into_raw(socket: UdpSocket) -> RawSource {
    #[cfg(unix)]
    return std::os::fd::IntoRawFd::into_raw_fd(socket);
    #[cfg(windows)]
    return std::os::windows::io::IntoRawSocket::into_raw_socket(socket);
}

fn bound(host: &str) -> (Socket, SocketAddr) {
    let socket = UdpSocket::bind((host, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    // SAFETY: `into_raw` gives the ownership up.
    (unsafe { Socket::from_raw(into_raw(socket)) }, address)
}

fn told(address: SocketAddr) -> Address {
    match address {
        SocketAddr::V4(address) => Address::V4(address),
        SocketAddr::V6(address) => Address::V6(address),
    }
}

type Arrived = Vec<(Vec<u8>, Option<Address>)>;

/// Loopback needs a moment between send and receive on some systems.
fn receive(socket: &Socket, count: usize, one_by_one: bool) -> Arrived {
    let mut arrivals = Arrivals::default();
    let mut arrived = Arrived::new();
    while arrived.len() < count {
        let each = |bytes: &[u8], from| arrived.push((bytes.to_vec(), from));
        let found = match one_by_one {
            true => arrivals.receive_one_by_one(socket, IP_ROOM, each),
            false => arrivals.receive(socket, IP_ROOM, BATCH, each),
        };
        match found {
            Ok(found) => assert!((1..=BATCH).contains(&found)),
            Err(error) if socket::would_block(&error) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    arrived
}

fn round_trip(host: &str, one_by_one: bool) {
    let ((a, a_address), (b, b_address)) = (bound(host), bound(host));
    let to = Name::new(&told(b_address)).unwrap();
    let bytes: Vec<Vec<u8>> = (0..20).map(|n| vec![n; usize::from(n) * 100]).collect();
    let parcels: Vec<_> = bytes.iter().map(|b| (b.as_slice(), Some(&to))).collect();
    let mut sent = 0;
    while sent < parcels.len() {
        sent += match one_by_one {
            true => datagram::send_one_by_one(&a, &parcels[sent..]),
            false => datagram::send(&a, &parcels[sent..]),
        }
        .unwrap();
    }
    let arrived = receive(&b, bytes.len(), one_by_one);
    for (expected, (bytes, from)) in bytes.iter().zip(arrived) {
        assert_eq!(&bytes, expected, "the first is empty");
        assert_eq!(from, Some(told(a_address)));
    }
}

#[test]
fn datagrams_keep_their_borders_and_their_order() {
    round_trip("127.0.0.1", false);
    round_trip("127.0.0.1", true);
}

#[test]
fn so_they_do_over_ipv6() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return; // this machine has no IPv6
    }
    round_trip("::1", false);
    round_trip("::1", true);
}

#[test]
fn the_largest_datagram_arrives_whole() {
    let ((a, _), (b, address)) = (bound("127.0.0.1"), bound("127.0.0.1"));
    let largest = vec![7; 65_507];
    datagram::send_one(&a, &largest, Name::new(&told(address)).as_ref()).unwrap();
    assert_eq!(receive(&b, 1, false)[0].0, largest);
    let error = datagram::send_one(&a, &[0; 65_508], Name::new(&told(address)).as_ref());
    assert!(error.is_err(), "one byte too many");
}

#[test]
fn more_than_a_batch_takes_several_calls() {
    let ((a, _), (b, address)) = (bound("127.0.0.1"), bound("127.0.0.1"));
    let to = Name::new(&told(address)).unwrap();
    let numbers: Vec<[u8; 1]> = (0..100).map(|n| [n]).collect();
    for number in &numbers {
        datagram::send_one(&a, number, Some(&to)).unwrap();
    }
    let arrived = receive(&b, numbers.len(), false);
    assert!(
        arrived
            .iter()
            .map(|(bytes, _)| bytes.as_slice())
            .eq(numbers.iter().map(|n| &n[..]))
    );
}

#[test]
fn nothing_there_would_block() {
    let (a, _) = bound("127.0.0.1");
    let mut arrivals = Arrivals::default();
    let never = |_: &[u8], _: Option<Address>| unreachable!();
    let error: io::Error = arrivals.receive(&a, IP_ROOM, BATCH, never).unwrap_err();
    assert!(socket::would_block(&error));
}

#[test]
fn a_datagram_makes_readable_on_every_selector() {
    use tideloop_sys::selector::{self, Backend, Events, Interest};
    for backend in [Backend::Default, Backend::Portable] {
        let selector = selector::new(backend).unwrap();
        let ((a, _), (b, address)) = (bound("127.0.0.1"), bound("127.0.0.1"));
        let mut events = Events::default();
        selector.add(b.raw(), 7, Interest::READ).unwrap();
        selector.wait(&mut events, Some(0)).unwrap();
        assert!(events.is_empty());
        for _ in 0..2 {
            datagram::send_one(&a, b"", Name::new(&told(address)).as_ref()).unwrap();
        }
        for _ in 0..2 {
            selector.wait(&mut events, Some(20_000_000_000)).unwrap();
            assert!(events.get(0).is_some_and(|event| event.readable));
            let mut one = 0;
            let mut arrivals = Arrivals::default();
            while one == 0
                && arrivals
                    .receive_one_by_one(&b, IP_ROOM, |_, _| one += 1)
                    .is_err()
            {
                std::thread::yield_now();
            }
            if one == 2 {
                break;
            }
        }
        selector.remove(b.raw()).unwrap();
    }
}

#[test]
fn what_is_no_address_has_no_name() {
    assert!(Name::new(&Address::Other).is_none());
    assert!(Name::new(&Address::Unix(Vec::new())).is_none());
    assert!(
        Name::new(&Address::Unix(vec![b'x'; 200])).is_none(),
        "too long, or no UNIX sockets"
    );
    assert!(Name::new(&Address::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9))).is_some());
}

#[cfg(unix)]
mod unix {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixDatagram;

    use tideloop_sys::datagram::UNIX_ROOM;

    use super::*;

    fn owned(socket: UnixDatagram) -> Socket {
        socket.set_nonblocking(true).unwrap();
        // SAFETY: `into_raw_fd` gives the ownership up.
        unsafe { Socket::from_raw(socket.into_raw_fd()) }
    }

    #[test]
    fn who_has_no_name_is_nobody() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let (a, b) = (owned(a), owned(b));
        datagram::send_one(&a, b"hello", None).unwrap();
        assert_eq!(receive(&b, 1, false), [(b"hello".to_vec(), None)]);
        datagram::send_one(&a, b"again", None).unwrap();
        assert_eq!(receive(&b, 1, true), [(b"again".to_vec(), None)]);
    }

    #[test]
    fn a_full_peer_says_not_now_and_the_rest_waits() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let (a, b) = (owned(a), owned(b));
        let parcels = [(&b"x"[..], None); BATCH];
        let mut sent = 0;
        let error = loop {
            match datagram::send(&a, &parcels) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert!(socket::would_block(&error));
        assert_eq!(receive(&b, sent, false).len(), sent);
    }

    #[test]
    fn a_large_one_arrives_whole() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let (a, b) = (owned(a), owned(b));
        let large = vec![1; 100_000];
        if datagram::send_one(&a, &large, None).is_err() {
            return; // this system's buffers do not take it
        }
        let mut len = 0;
        let found = Arrivals::default().receive(&b, UNIX_ROOM, BATCH, |bytes, _| len = bytes.len());
        assert_eq!((found.unwrap(), len), (1, large.len()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn abstract_names_begin_with_a_zero() {
        use std::os::linux::net::SocketAddrExt;
        let text = format!("tideloop-datagram-{}", std::process::id());
        let bound = std::os::unix::net::SocketAddr::from_abstract_name(&text).unwrap();
        let b = owned(UnixDatagram::bind_addr(&bound).unwrap());
        let name = Address::Unix([b"\0", text.as_bytes()].concat());
        let a = owned(UnixDatagram::unbound().unwrap());
        datagram::send_one(&a, b"hello", Name::new(&name).as_ref()).unwrap();
        assert_eq!(receive(&b, 1, false)[0].0, b"hello");
        assert_eq!(b.local_address(), Some(name));
    }
}
