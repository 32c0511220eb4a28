//! The limit: an echo server of a selector, a receive and a send, and nothing else; or one of bulk transfers. That of
//! datagrams is in `datagrams.rs`.
//!
//! What a server in Python costs above this is the loop's and the interpreter's. It prints its port, then, for
//! the lab, what it has used of the processor between the connection of a given number and the first one lost
//! after it: the window that the lab's servers measure.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::time::Duration;

use tideloop_sys::clock;
use tideloop_sys::selector::{self, Backend, Events, Interest, Selector};
use tideloop_sys::socket::RawSource;

use crate::args::{Exchange, Serve};
use crate::bulk::Bulk;
use crate::datagrams;
use crate::target::{Stream, Target};

const BUFFER: usize = 256 * 1024;
/// The listener's key; connections are numbered from 1.
const LISTENER: u64 = 0;
const GONE: [ErrorKind; 2] = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
/// How long it waits for anything to happen before it ends.
pub const PATIENCE: Duration = Duration::from_secs(60);

enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

impl Listener {
    /// None: a free port of the loopback address.
    fn open(place: Option<&Target>) -> io::Result<(Self, String)> {
        match place {
            None => Self::open(Some(&Target::Tcp((Ipv4Addr::LOCALHOST, 0).into()))),
            Some(Target::Tcp(address)) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let port = listener.local_addr()?.port();
                Ok((Self::Tcp(listener), port.to_string()))
            }
            Some(Target::Udp(_)) => Err(ErrorKind::Unsupported.into()),
            #[cfg(unix)]
            Some(Target::Unix(path)) => {
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok((Self::Unix(listener), path.display().to_string()))
            }
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(stream))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
        }
    }

    fn raw(&self) -> RawSource {
        #[cfg(unix)]
        {
            use std::os::fd::AsRawFd;
            match self {
                Self::Tcp(listener) => listener.as_raw_fd(),
                Self::Unix(listener) => listener.as_raw_fd(),
            }
        }
        #[cfg(windows)]
        {
            use std::os::windows::io::AsRawSocket;
            let Self::Tcp(listener) = self;
            listener.as_raw_socket()
        }
    }
}

/// Echoes until the measured connections are gone.
pub fn run(asked: &Serve) -> io::Result<()> {
    if let Some(Target::Udp(address)) = asked.place {
        return datagrams::run(address, asked.starts_at);
    }
    let (listener, name) = Listener::open(asked.place.as_ref())?;
    println!("{name}");
    let cpu = serve(&listener, asked.starts_at, asked.exchange)?;
    println!("{}", cpu.as_secs_f64());
    Ok(())
}

fn serve(listener: &Listener, starts_at: u64, exchange: Exchange) -> io::Result<Duration> {
    let selector = selector::new(Backend::Default)?;
    selector.add(listener.raw(), LISTENER, Interest::READ)?;
    let mut connections = HashMap::new();
    let mut events = Events::default();
    let mut buffer = vec![0; BUFFER];
    let (mut made, mut began) = (0_u64, None);
    loop {
        selector.wait(&mut events, Some(PATIENCE.as_nanos() as u64))?;
        if events.is_empty() {
            let text = format!("{made} of {starts_at} connections came and nothing more");
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        for event in events.iter() {
            if event.key == LISTENER {
                while let Some(stream) = unless_blocked(listener.accept())? {
                    made += 1;
                    selector.add(stream.raw(), made, Interest::READ)?;
                    connections.insert(made, Connection::new(stream, exchange));
                    if made == starts_at {
                        began = Some(clock::process_cpu());
                    }
                }
                continue;
            }
            let Some(connection) = connections.get_mut(&event.key) else {
                continue;
            };
            match connection.go_on(&*selector, event.key, &mut buffer) {
                Ok(true) => continue,
                Ok(false) => {}
                // A client that leaves with something unread.
                Err(error) if GONE.contains(&error.kind()) => {}
                Err(error) => return Err(error),
            }
            if let Some(began) = began {
                return Ok(clock::process_cpu().saturating_sub(began));
            }
            selector.remove(connection.stream.raw())?;
            connections.remove(&event.key);
        }
    }
}

struct Connection {
    stream: Stream,
    served: Served,
}

enum Served {
    Echo(Echo),
    Bulk(Bulk),
}

impl Connection {
    fn new(stream: Stream, exchange: Exchange) -> Self {
        let served = match exchange {
            Exchange::Bulk(size, times) => Served::Bulk(Bulk::new(size, times)),
            _ => Served::Echo(Echo::default()),
        };
        Self { stream, served }
    }

    /// False once the peer has ended.
    fn go_on(&mut self, selector: &dyn Selector, key: u64, buffer: &mut [u8]) -> io::Result<bool> {
        match &mut self.served {
            Served::Echo(echo) => echo.go_on(&mut self.stream, selector, key, buffer),
            Served::Bulk(bulk) => bulk.go_on(&mut self.stream, selector, key),
        }
    }
}

#[derive(Default)]
struct Echo {
    /// What the socket did not take.
    rest: Vec<u8>,
}

impl Echo {
    fn go_on(
        &mut self,
        stream: &mut Stream,
        selector: &dyn Selector,
        key: u64,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        if !self.rest.is_empty() {
            let sent = unless_blocked(stream.write(&self.rest))?.unwrap_or(0);
            self.rest.drain(..sent);
            if self.rest.is_empty() {
                selector.modify(stream.raw(), key, Interest::READ)?;
            }
            return Ok(true);
        }
        let Some(received) = unless_blocked(stream.read(buffer))? else {
            return Ok(true);
        };
        let sent = unless_blocked(stream.write(&buffer[..received]))?.unwrap_or(0);
        if sent < received {
            self.rest.extend_from_slice(&buffer[sent..received]);
            selector.modify(stream.raw(), key, Interest::WRITE)?;
        }
        Ok(received > 0)
    }
}

/// None: not now.
pub fn unless_blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Options, Stop};
    use crate::drive;

    #[test]
    fn it_echoes_and_ends_with_the_first_connection_that_does() {
        ends_with_its_client(Exchange::Echo(3 << 20));
    }

    #[test]
    fn it_sends_blocks_back_many_times() {
        ends_with_its_client(Exchange::Bulk(100_000, 70));
    }

    fn ends_with_its_client(exchange: Exchange) {
        let (listener, port) = Listener::open(None).unwrap();
        let server = std::thread::spawn(move || serve(&listener, 6, exchange));
        let options = Options {
            target: Target::tcp("127.0.0.1", port.parse().unwrap()).unwrap(),
            connections: 3,
            exchange,
            reconnect: false,
            stop: Stop::Requests(10),
            warmup: Duration::from_millis(1),
            pause: Duration::ZERO,
            stall: Duration::from_secs(5),
            json: false,
            tls: false,
        };
        let measured = drive::run(&options);
        assert!(server.join().unwrap().unwrap() > Duration::ZERO);
        assert_eq!(measured.unwrap().latency.count(), 10);
    }
}
