//! The limit of datagrams: an echo server of a selector, a receive and a send, and nothing else.
//!
//! What `serve.rs` is for connections. One socket serves all clients, and the window is between two marks, as the head
//! of `drive.rs` says.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use tideloop_sys::clock;
use tideloop_sys::selector::{self, Backend, Events, Interest, Selector};
use tideloop_sys::socket::RawSource;

use crate::serve::{PATIENCE, unless_blocked};

/// The size of a mark, in bytes; every request is larger.
pub const MARK: usize = 1;

/// The socket's key.
const SOCKET: u64 = 0;
/// Room for any datagram.
const BUFFER: usize = 64 * 1024;

/// Echoes until the mark that ends the window has been answered.
pub fn run(address: SocketAddr, starts_at: u64) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("{}", socket.local_addr()?.port());
    let cpu = serve(&socket, starts_at)?;
    println!("{}", cpu.as_secs_f64());
    Ok(())
}

fn serve(socket: &UdpSocket, starts_at: u64) -> io::Result<Duration> {
    socket.set_nonblocking(true)?;
    let selector = selector::new(Backend::Default)?;
    selector.add(raw(socket), SOCKET, Interest::READ)?;
    let mut events = Events::default();
    let mut buffer = vec![0; BUFFER];
    let (mut marks, mut began) = (0_u64, None);
    loop {
        selector.wait(&mut events, Some(PATIENCE.as_nanos() as u64))?;
        if events.is_empty() {
            let text = format!(
                "{marks} marks came, of {} expected, and nothing more",
                starts_at.saturating_add(1)
            );
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        while let Some((size, from)) = received(socket, &mut buffer)? {
            send(socket, &*selector, &buffer[..size], from)?;
            if size != MARK {
                continue;
            }
            marks += 1;
            match began {
                None if marks >= starts_at => began = Some(clock::process_cpu()),
                None => {}
                Some(began) => return Ok(clock::process_cpu().saturating_sub(began)),
            }
        }
    }
}

/// None if nothing waits.
fn received(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(buffer) {
        // Windows tells here that somebody who was answered has gone.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
        other => unless_blocked(other),
    }
}

/// Sends it, however long that takes.
fn send(
    socket: &UdpSocket,
    selector: &dyn Selector,
    bytes: &[u8],
    to: SocketAddr,
) -> io::Result<()> {
    while unless_blocked(socket.send_to(bytes, to))?.is_none() {
        selector.modify(raw(socket), SOCKET, Interest::WRITE)?;
        selector.wait(&mut Events::default(), Some(PATIENCE.as_nanos() as u64))?;
        selector.modify(raw(socket), SOCKET, Interest::READ)?;
    }
    Ok(())
}

fn raw(socket: &UdpSocket) -> RawSource {
    #[cfg(unix)]
    return std::os::fd::AsRawFd::as_raw_fd(socket);
    #[cfg(windows)]
    return std::os::windows::io::AsRawSocket::as_raw_socket(socket);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::args::{Exchange, Options, Stop};
    use crate::drive;
    use crate::target::Target;

    fn options(port: u16, size: usize) -> Options {
        Options {
            target: Target::udp("127.0.0.1", port).unwrap(),
            connections: 40,
            exchange: Exchange::Echo(size),
            reconnect: false,
            tls: false,
            stop: Stop::Requests(100),
            warmup: Duration::from_millis(1),
            pause: Duration::ZERO,
            stall: Duration::from_secs(5),
            json: false,
        }
    }

    /// What a server answers to a datagram.
    type Talk = fn(&[u8]) -> Vec<Vec<u8>>;

    /// A server that answers each datagram with what `talk` makes of it. Returns its port.
    fn server(talk: Talk) -> u16 {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                for answer in talk(&buffer[..len]) {
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        port
    }

    #[test]
    fn it_echoes_and_ends_with_the_mark_after_the_measured_part() {
        // Large ones of many sockets would not fit into the buffer of the server's.
        for (size, connections) in [(MARK + 1, 100), (512, 40), (65_507, 1)] {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            let server = std::thread::spawn(move || serve(&socket, 1));
            let mut options = options(port, size);
            options.connections = connections;
            let measured = drive::run(&options);
            assert_eq!(measured.unwrap().latency.count(), 100);
            assert!(server.join().unwrap().unwrap() > Duration::ZERO);
        }
    }

    #[test]
    fn only_what_is_measured_lies_between_the_marks() {
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        // Datagrams after each mark.
        static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let port = server(|bytes| {
            if bytes.len() == MARK {
                MARKS.fetch_add(1, Relaxed);
            } else {
                SEEN[MARKS.load(Relaxed)].fetch_add(1, Relaxed);
            }
            vec![bytes.to_vec()]
        });
        drive::run(&options(port, 100)).unwrap();
        assert_eq!(MARKS.load(Relaxed), 2);
        // The warm-up, and a proof of each socket in it and after it; and what is counted.
        assert!(SEEN[0].load(Relaxed) >= 2 * 40);
        assert_eq!(SEEN[1].load(Relaxed), 100);
        assert_eq!(SEEN[2].load(Relaxed), 0);
    }

    #[test]
    fn an_answer_in_pieces_or_of_other_bytes_is_wrong() {
        let wrong: [Talk; 5] = [
            |bytes| vec![bytes[..4].to_vec(), bytes[4..].to_vec()],
            |bytes| vec![[bytes, b"!"].concat()],
            |bytes| vec![bytes[1..].to_vec()],
            |_| vec![Vec::new()],
            |bytes| vec![bytes.iter().map(|byte| byte ^ 1).collect()],
        ];
        for talk in wrong {
            let error = drive::run(&options(server(talk), 10)).unwrap_err();
            assert!(error.to_string().contains("other bytes"), "{error}");
        }
    }

    #[test]
    fn a_lost_datagram_ends_the_measurement_and_is_counted() {
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let mut options = options(
            server(|bytes| match SEEN.fetch_add(1, Relaxed) {
                150 => Vec::new(),
                _ => vec![bytes.to_vec()],
            }),
            10,
        );
        options.warmup = Duration::ZERO;
        options.stall = Duration::from_millis(50);
        options.stop = Stop::Requests(200);
        let error = drive::run(&options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(
            error.to_string().contains("1 datagrams are lost"),
            "{error}"
        );
    }

    #[test]
    fn nobody_at_the_port_is_an_error() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let mut options = options(port, 10);
        options.stall = Duration::from_millis(50);
        let error = drive::run(&options).unwrap_err().kind();
        // Systems that say nothing about it leave the client waiting.
        let known = [
            ErrorKind::ConnectionRefused,
            ErrorKind::ConnectionReset,
            ErrorKind::TimedOut,
        ];
        assert!(known.contains(&error), "{error}");
    }
}
