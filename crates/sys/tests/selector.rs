//! The selector contract, on every backend of this system.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use tideloop_sys::clock::monotonic_ns;
use tideloop_sys::selector::{self, Backend, Events, Interest, Selector};
use tideloop_sys::socket::RawSource;

const MILLI: u64 = 1_000_000;
/// Long enough that only a lost event can reach it.
const FOREVER: Option<u64> = Some(20_000 * MILLI);

fn backends() -> Vec<Arc<dyn Selector>> {
    [Backend::Default, Backend::Portable]
        .into_iter()
        .map(|backend| Arc::from(selector::new(backend).unwrap()))
        .collect()
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    a.set_nonblocking(true).unwrap();
    b.set_nonblocking(true).unwrap();
    (a, b)
}

fn raw(stream: &TcpStream) -> RawSource {
    #[cfg(unix)]
    return std::os::fd::AsRawFd::as_raw_fd(stream);
    #[cfg(windows)]
    return std::os::windows::io::AsRawSocket::as_raw_socket(stream);
}

fn wait(selector: &dyn Selector, timeout: Option<u64>) -> Vec<(u64, bool, bool)> {
    let mut events = Events::default();
    selector.wait(&mut events, timeout).unwrap();
    events
        .iter()
        .map(|event| (event.key, event.readable, event.writable))
        .collect()
}

#[test]
fn readiness_is_level_triggered_and_only_what_was_asked() {
    for selector in backends() {
        let (mut a, mut b) = pair();
        selector.add(raw(&a), 7, Interest::READ).unwrap();
        assert_eq!(wait(&*selector, Some(0)), [], "{}", selector.name());

        b.write_all(b"x").unwrap();
        assert_eq!(wait(&*selector, FOREVER), [(7, true, false)]);
        assert_eq!(wait(&*selector, FOREVER), [(7, true, false)], "again");

        let mut byte = [0; 1];
        a.read_exact(&mut byte).unwrap();
        assert_eq!(wait(&*selector, Some(0)), []);

        selector.modify(raw(&a), 8, Interest::WRITE).unwrap();
        assert_eq!(wait(&*selector, FOREVER), [(8, false, true)]);
        selector
            .modify(
                raw(&a),
                9,
                Interest {
                    read: true,
                    write: true,
                },
            )
            .unwrap();
        b.write_all(b"y").unwrap();
        loop {
            match wait(&*selector, FOREVER).as_slice() {
                [(9, true, true)] => break,
                [(9, false, true)] => {}
                other => panic!("{}: {other:?}", selector.name()),
            }
        }
        selector.remove(raw(&a)).unwrap();
        assert_eq!(wait(&*selector, Some(0)), []);
    }
}

#[test]
fn a_closed_peer_makes_readable() {
    for selector in backends() {
        let (a, b) = pair();
        selector.add(raw(&a), 1, Interest::READ).unwrap();
        drop(b);
        let found = wait(&*selector, FOREVER);
        assert!(matches!(found.as_slice(), [(1, true, _)]), "{found:?}");
        selector.remove(raw(&a)).unwrap();
    }
}

#[test]
fn timeouts_are_never_early() {
    for selector in backends() {
        for timeout in [0, MILLI / 10, MILLI / 2, 3 * MILLI] {
            let before = monotonic_ns();
            assert_eq!(wait(&*selector, Some(timeout)), []);
            let waited = monotonic_ns() - before;
            assert!(
                waited >= timeout,
                "{}: {waited} < {timeout}",
                selector.name()
            );
        }
    }
}

#[test]
fn a_wake_up_is_not_lost() {
    for selector in backends() {
        // Before the wait, several at once: the wait ends, and the next one does not.
        selector.wake().unwrap();
        selector.wake().unwrap();
        assert_eq!(wait(&*selector, FOREVER), []);
        let before = monotonic_ns();
        assert_eq!(wait(&*selector, Some(MILLI)), []);
        assert!(monotonic_ns() - before >= MILLI);

        // During the wait, from another thread.
        let other = Arc::clone(&selector);
        let waker = std::thread::spawn(move || other.wake().unwrap());
        assert_eq!(wait(&*selector, FOREVER), []);
        waker.join().unwrap();
    }
}

#[test]
fn mistakes_are_errors() {
    for selector in backends() {
        let (a, _b) = pair();
        selector.add(raw(&a), 1, Interest::READ).unwrap();
        assert!(selector.add(raw(&a), 2, Interest::READ).is_err());
        selector.remove(raw(&a)).unwrap();
        assert!(selector.modify(raw(&a), 1, Interest::READ).is_err());
    }
}

#[test]
fn a_selectors_descriptor_is_readable_exactly_when_a_wait_would_find_something() {
    for inner in backends() {
        let Some(descriptor) = inner.descriptor() else {
            continue;
        };
        let outer = selector::new(Backend::Default).unwrap();
        outer.add(descriptor, 1, Interest::READ).unwrap();
        assert_eq!(wait(&*outer, Some(0)), []);

        inner.wake().unwrap();
        assert_eq!(wait(&*outer, FOREVER), [(1, true, false)]);
        assert_eq!(wait(&*inner, Some(0)), []);
        assert_eq!(wait(&*outer, Some(0)), [], "the wake-up is used up");

        let (mut a, mut b) = pair();
        inner.add(raw(&a), 7, Interest::READ).unwrap();
        b.write_all(b"x").unwrap();
        assert_eq!(wait(&*outer, FOREVER), [(1, true, false)]);
        assert_eq!(wait(&*inner, Some(0)), [(7, true, false)]);
        a.read_exact(&mut [0; 1]).unwrap();
        assert_eq!(wait(&*outer, Some(0)), []);
        outer.remove(descriptor).unwrap();
    }
}
