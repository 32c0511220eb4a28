//! One connection of the closed loop: at most one request in flight, every byte of the answer compared.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::target::Stream;

#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    request: Vec<u8>,
    /// What comes back; None: the request itself.
    answer: Option<Arc<[u8]>>,
    /// How often it comes back.
    times: usize,
    serial: u64,
    sent: usize,
    received: usize,
    /// When the request in flight began; `None` between requests.
    began: Option<Instant>,
}

/// How far a call got.
#[derive(Debug, PartialEq)]
#[must_use]
pub enum Progress {
    /// Waits for the server; `wants_write` when the socket took only part of the request.
    Pending { wants_write: bool },
    /// The request in flight was answered in full, this long after it began.
    Done(Duration),
}

impl Connection {
    /// `seed` makes the payloads of two connections differ, so that crossed answers are noticed.
    pub fn echoing(stream: Stream, size: usize, times: usize, seed: u64) -> Self {
        Self {
            times,
            ..Self::new(stream, noise(size, seed), None)
        }
    }

    /// Sends the same request each time, and gets the same answer.
    pub fn asking(stream: Stream, request: Vec<u8>, answer: Arc<[u8]>) -> Self {
        Self::new(stream, request, Some(answer))
    }

    fn new(stream: Stream, request: Vec<u8>, answer: Option<Arc<[u8]>>) -> Self {
        Self {
            stream,
            request,
            answer,
            times: 1,
            serial: 0,
            sent: 0,
            received: 0,
            began: None,
        }
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Begins the next request and sends what the socket takes.
    pub fn begin(&mut self) -> io::Result<Progress> {
        debug_assert!(self.began.is_none(), "one request in flight");
        if self.answer.is_none() {
            self.serial += 1;
            // The serial number at the front tells this answer from the previous one.
            let stamp = self.serial.to_le_bytes();
            let room = stamp.len().min(self.request.len());
            self.request[..room].copy_from_slice(&stamp[..room]);
        }
        self.sent = 0;
        self.received = 0;
        self.began = Some(Instant::now());
        self.send()
    }

    /// Goes on with the request in flight: sends what is left, reads what is there.
    pub fn resume(&mut self, scratch: &mut [u8]) -> io::Result<Progress> {
        let Some(began) = self.began else {
            return self.unexpected(scratch);
        };
        let pending = self.send()?;
        let read = match self.stream.read(scratch) {
            Ok(0) if !self.stream.is_datagram() => {
                return Err(problem("the server closed the connection"));
            }
            Ok(read) => read,
            Err(error) if is_retry(&error) => return Ok(pending),
            Err(error) => return Err(error),
        };
        let piece = self.answer.as_ref().map_or(self.request.len(), |a| a.len());
        let whole = read == piece || !self.stream.is_datagram();
        if !whole || !self.fits(&scratch[..read]) {
            return Err(problem(match self.answer {
                Some(_) => "the server answered otherwise than the first time",
                None => "the server echoed other bytes than it was sent",
            }));
        }
        self.received += read;
        if self.received < piece * self.times {
            return Ok(pending);
        }
        self.began = None;
        Ok(Progress::Done(began.elapsed()))
    }

    /// Whether this is how the answer goes on.
    fn fits(&self, mut got: &[u8]) -> bool {
        let piece = match &self.answer {
            Some(answer) => &answer[..],
            None => &self.request[..self.sent],
        };
        // What has been sent in part can have been sent back in part only.
        let whole = self.sent == self.request.len();
        if self.received + got.len() > piece.len() * if whole { self.times } else { 1 } {
            return false;
        }
        let mut at = self.received % piece.len();
        while !got.is_empty() {
            let (now, later) = got.split_at(got.len().min(piece.len() - at));
            if now != &piece[at..at + now.len()] {
                return false;
            }
            (got, at) = (later, 0);
        }
        true
    }

    fn send(&mut self) -> io::Result<Progress> {
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(0) => return Err(problem("the socket takes no bytes")),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let wants_write = self.sent < self.request.len() || self.stream.is_sending();
        Ok(Progress::Pending { wants_write })
    }

    /// Readable with nothing asked: the server hung up or talks out of turn.
    fn unexpected(&mut self, scratch: &mut [u8]) -> io::Result<Progress> {
        match self.stream.read(scratch) {
            Ok(0) if !self.stream.is_datagram() => Err(problem("the server closed the connection")),
            Ok(_) => Err(problem("the server sent bytes that nobody asked for")),
            Err(error) if is_retry(&error) => Ok(Progress::Pending { wants_write: false }),
            Err(error) => Err(error),
        }
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn problem(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// Reproducible bytes without a pattern that a shifted answer could match (splitmix64).
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::noise;

    #[test]
    fn noise_has_its_size_and_depends_on_its_seed() {
        for size in [1, 7, 8, 1024] {
            assert_eq!(noise(size, 1).len(), size);
        }
        assert_eq!(noise(64, 3), noise(64, 3));
        assert_ne!(noise(64, 3), noise(64, 4));
    }
}
