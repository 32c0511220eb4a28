//! The measurement: warm up, connect, prove each connection, run the closed loop, hang up.
//!
//! What a server may rely on when it times itself (the lab does): in each of the two sessions, warm-up
//! and measured, all connections are made and have been answered once before the first counted request;
//! every request is answered before the first connection closes. (With a new connection for each request only the
//! number of connections means anything.) Before both HTTP has one more connection, with
//! one request, from which the answer is learned.
//!
//! Datagrams know no connections, so with `--udp` the measured session says itself where its window is: by a mark, a
//! datagram of one byte from a socket of its own, before the first counted request and another one after the
//! last answer. A mark is echoed like any datagram, and the client goes on only when it has come back, so
//! everything that is counted lies between the two marks, and nothing that is not.
//!
//! A datagram that is lost is not sent again: with one in flight on each socket nothing is lost on loopback unless a
//! buffer overflows or the server drops it, and both make the figure one of something else. Its socket waits, and after
//! `--stall` seconds in which no other was answered the measurement ends with an error that counts the lost.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tideloop_core::histogram::Histogram;

use crate::args::{Exchange, Options, Stop};
use crate::connection::{Connection, Progress};
use crate::datagrams::MARK;
use crate::http;
use crate::readiness::Readiness;
use crate::target::Stream;

const MAX_READ: usize = 256 * 1024;

#[derive(Debug)]
pub struct Measured {
    /// From the first request to the last answer.
    pub wall: Duration,
    /// Nanoseconds from sending a request to its last echoed byte.
    pub latency: Histogram,
}

pub fn run(options: &Options) -> io::Result<Measured> {
    let talk = Talk::about(options)?;
    if !options.warmup.is_zero() {
        session(options, &talk, Stop::After(options.warmup), false)?;
    }
    session(options, &talk, options.stop, options.target.is_datagram())
}

/// What every connection says and hears.
enum Talk {
    /// So many bytes of its own, and the same again, so many times.
    Echo(usize, usize),
    Http {
        request: Vec<u8>,
        answer: Arc<[u8]>,
    },
}

impl Talk {
    fn about(options: &Options) -> io::Result<Self> {
        match options.exchange {
            Exchange::Echo(size) => Ok(Self::Echo(size, 1)),
            Exchange::Bulk(size, times) => Ok(Self::Echo(size, times)),
            Exchange::Http(pipelined) => {
                let mut stream = options.target.connect_blocking(options.stall)?;
                Ok(Self::Http {
                    answer: Arc::from(http::learn(&mut stream)?.repeat(pipelined)),
                    request: http::REQUEST.repeat(pipelined),
                })
            }
        }
    }

    fn connection(&self, stream: Stream, index: usize) -> Connection {
        match self {
            Self::Echo(size, times) => Connection::echoing(stream, *size, *times, index as u64),
            Self::Http { request, answer } => {
                Connection::asking(stream, request.clone(), Arc::clone(answer))
            }
        }
    }

    /// Bytes of an answer.
    fn expected(&self) -> usize {
        match self {
            Self::Echo(size, times) => size.saturating_mul(*times),
            Self::Http { answer, .. } => answer.len(),
        }
    }
}

/// `marked`: says where its window is.
fn session(options: &Options, talk: &Talk, stop: Stop, marked: bool) -> io::Result<Measured> {
    let mut pool = Pool::connect(options, talk, options.connections)?;
    if !options.reconnect {
        pool.prove()?;
    }
    if marked {
        mark(options)?;
    }
    let measured = pool.measure(stop)?;
    if marked {
        mark(options)?;
    }
    Ok(measured)
}

/// Sends a mark and waits for its echo.
fn mark(options: &Options) -> io::Result<()> {
    Pool::connect(options, &Talk::Echo(MARK, 1), 1)?.prove()
}

struct Pool<'a> {
    options: &'a Options,
    talk: &'a Talk,
    connections: Vec<Connection>,
    readiness: Readiness,
    /// Which connections wait until they can send: those whose last send was short.
    writing: Vec<bool>,
    scratch: Vec<u8>,
    stall: Duration,
    /// Which connections wait until they may ask again, and from when; those that wait longest first.
    pausing: VecDeque<(Instant, usize)>,
}

impl<'a> Pool<'a> {
    fn connect(options: &'a Options, talk: &'a Talk, count: usize) -> io::Result<Self> {
        let mut connections = Vec::with_capacity(count);
        for index in 0..count {
            connections.push(talk.connection(open(options)?, index));
        }
        Ok(Self {
            readiness: Readiness::new(&connections)?,
            writing: vec![false; connections.len()],
            // One byte more than is asked for, so that an answer with a tail is noticed.
            scratch: vec![0; talk.expected().min(MAX_READ) + 1],
            stall: options.stall,
            pausing: VecDeque::new(),
            connections,
            options,
            talk,
        })
    }

    /// One uncounted round trip on each connection: the server has accepted them all.
    fn prove(&mut self) -> io::Result<()> {
        let mut left = self.connections.len() as u64;
        self.exchange(&mut || take(&mut left), &mut |_| {})
    }

    fn measure(&mut self, stop: Stop) -> io::Result<Measured> {
        let mut latency = Histogram::new();
        let start = Instant::now();
        let mut note =
            |taken: Duration| latency.record(u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX));
        match stop {
            Stop::After(limit) => self.exchange(&mut || start.elapsed() < limit, &mut note)?,
            Stop::Requests(mut left) => self.exchange(&mut || take(&mut left), &mut note)?,
        }
        let wall = start.elapsed();
        Ok(Measured { wall, latency })
    }

    /// Keeps one request in flight on every connection while `may_begin`, and returns when the last is
    /// answered.
    fn exchange(
        &mut self,
        may_begin: &mut dyn FnMut() -> bool,
        note: &mut dyn FnMut(Duration),
    ) -> io::Result<()> {
        let mut in_flight = 0_usize;
        for index in 0..self.connections.len() {
            if !may_begin() {
                break;
            }
            in_flight += 1;
            let progress = self.connections[index].begin()?;
            self.follow(index, &progress)?;
        }
        let mut ready = Vec::with_capacity(self.connections.len());
        while in_flight > 0 || !self.pausing.is_empty() {
            let patience = match self.pausing.front() {
                Some((due, _)) => due.saturating_duration_since(Instant::now()),
                None => self.stall,
            };
            self.readiness.wait(patience, &mut ready)?;
            let rested = self.rested();
            if ready.is_empty() && rested.is_empty() && patience == self.stall {
                let seconds = self.stall.as_secs_f64();
                let mut what = format!("no answer from the server for {seconds} s");
                if self.options.target.is_datagram() {
                    what += &format!(
                        "; {in_flight} datagrams are lost, perhaps because so many at once do not fit into its buffer"
                    );
                }
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            for index in ready.drain(..) {
                let mut progress = self.connections[index].resume(&mut self.scratch)?;
                if let Progress::Done(taken) = progress {
                    note(taken);
                    if !self.options.pause.is_zero() {
                        in_flight -= 1;
                        let due = Instant::now() + self.options.pause;
                        self.pausing.push_back((due, index));
                    } else if may_begin() {
                        progress = self.again(index)?;
                    } else {
                        in_flight -= 1;
                    }
                }
                self.follow(index, &progress)?;
            }
            for index in rested {
                if may_begin() {
                    in_flight += 1;
                    let progress = self.again(index)?;
                    self.follow(index, &progress)?;
                }
            }
        }
        Ok(())
    }

    /// The connections whose pause is over.
    fn rested(&mut self) -> Vec<usize> {
        let now = Instant::now();
        let over = self.pausing.partition_point(|(due, _)| *due <= now);
        self.pausing.drain(..over).map(|(_, index)| index).collect()
    }

    /// Begins another request on a connection whose last one has been answered.
    fn again(&mut self, index: usize) -> io::Result<Progress> {
        if self.options.reconnect {
            self.reconnect(index)?;
        }
        self.connections[index].begin()
    }

    /// Hangs up and calls again.
    fn reconnect(&mut self, index: usize) -> io::Result<()> {
        self.readiness.forget(&self.connections[index])?;
        self.connections[index] = self.talk.connection(open(self.options)?, index);
        self.writing[index] = false;
        self.readiness.watch(index, &self.connections[index])
    }

    fn follow(&mut self, index: usize, progress: &Progress) -> io::Result<()> {
        let wants = *progress == Progress::Pending { wants_write: true };
        if self.writing[index] != wants {
            self.writing[index] = wants;
            self.readiness
                .watch_writing(index, &self.connections[index], wants)?;
        }
        Ok(())
    }
}

fn open(options: &Options) -> io::Result<Stream> {
    options.target.connect(options.tls).map_err(|error| {
        let target = &options.target;
        io::Error::new(error.kind(), format!("no connection to {target}: {error}"))
    })
}

fn take(left: &mut u64) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    /// A server that answers each connection with what `talk` makes of it. Returns its port.
    fn server(talk: fn(TcpStream) -> io::Result<()>) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || talk(stream.unwrap()));
            }
        });
        port
    }

    fn echo(mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => stream.write_all(&buffer[..n])?,
            }
        }
    }

    /// The request, and then the request from behind.
    fn backwards(mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = [0; 1000];
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
        buffer.reverse();
        stream.write_all(&buffer)
    }

    fn flip(mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer)?;
        buffer[n - 1] ^= 1;
        stream.write_all(&buffer[..n])
    }

    fn options(port: u16, size: usize, requests: u64) -> Options {
        Options {
            target: Target::tcp("127.0.0.1", port).unwrap(),
            connections: 4,
            exchange: Exchange::Echo(size),
            reconnect: false,
            tls: false,
            stop: Stop::Requests(requests),
            warmup: Duration::from_millis(1),
            pause: Duration::ZERO,
            stall: Duration::from_secs(5),
            json: false,
        }
    }

    #[test]
    fn every_request_is_counted_once() {
        let measured = run(&options(server(echo), 100, 57)).unwrap();
        assert_eq!(measured.latency.count(), 57);
        assert!(measured.latency.max().unwrap() > 0);
    }

    #[test]
    fn each_request_may_have_a_connection_of_its_own() {
        let mut options = options(server(echo), 1, 57);
        options.reconnect = true;
        assert_eq!(run(&options).unwrap().latency.count(), 57);
    }

    #[test]
    fn a_pause_comes_between_an_answer_and_the_next_request() {
        let mut options = options(server(echo), 1, 13);
        options.pause = Duration::from_millis(2);
        let measured = run(&options).unwrap();
        assert_eq!(measured.latency.count(), 13);
        // Thirteen requests on four connections: three pauses at least on one of them.
        assert!(measured.wall >= 3 * options.pause, "{:?}", measured.wall);
    }

    #[test]
    fn a_bulk_transfer_is_compared_round_by_round() {
        let mut options = options(server(echo), 1000, 9);
        options.exchange = Exchange::Bulk(1000, 1);
        assert_eq!(run(&options).unwrap().latency.count(), 9);
        options.exchange = Exchange::Bulk(1000, 2);
        options.target = Target::tcp("127.0.0.1", server(backwards)).unwrap();
        let wrong = run(&options).unwrap_err();
        assert!(wrong.to_string().contains("other bytes"), "{wrong}");
    }

    #[test]
    fn a_request_larger_than_the_socket_buffers_goes_through() {
        let measured = run(&options(server(echo), 8 << 20, 6)).unwrap();
        assert_eq!(measured.latency.count(), 6);
    }

    #[cfg(unix)]
    #[test]
    fn a_unix_socket_is_a_target_too() {
        let path = std::env::temp_dir().join(format!("tideloop-load-{}.sock", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)
                });
            }
        });
        let mut options = options(1, 100, 20);
        options.target = Target::unix(path.to_str().unwrap()).unwrap();
        let measured = run(&options);
        std::fs::remove_file(path).unwrap();
        assert_eq!(measured.unwrap().latency.count(), 20);
    }

    #[test]
    fn a_wrong_byte_and_a_closed_connection_are_errors() {
        let wrong = run(&options(server(flip), 100, 5)).unwrap_err();
        assert!(wrong.to_string().contains("other bytes"), "{wrong}");
        let mut gone = run(&options(server(|_| Ok(())), 100, 5)).unwrap_err();
        if gone.kind() == io::ErrorKind::InvalidData {
            assert!(gone.to_string().contains("closed"), "{gone}");
            gone = io::ErrorKind::ConnectionReset.into();
        }
        let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(kinds.contains(&gone.kind()), "{gone}");
    }

    /// Answers as many requests as it finds in what it reads at once.
    fn answer(mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let n = stream.read(&mut buffer)?;
            let asked = n / http::REQUEST.len();
            if asked == 0 {
                return Ok(());
            }
            stream.write_all(&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".repeat(asked))?;
        }
    }

    #[test]
    fn http_requests_are_pipelined_and_counted_together() {
        let mut options = options(server(answer), 1, 9);
        options.exchange = Exchange::Http(16);
        assert_eq!(run(&options).unwrap().latency.count(), 9);
        options.target = Target::tcp("127.0.0.1", server(echo)).unwrap();
        let wrong = run(&options).unwrap_err();
        assert!(wrong.to_string().contains("status"), "{wrong}");
    }

    #[test]
    fn a_silent_server_is_given_up() {
        let mut options = options(
            server(|_stream| {
                loop {
                    std::thread::park()
                }
            }),
            10,
            1,
        );
        options.stall = Duration::from_millis(20);
        assert_eq!(run(&options).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
