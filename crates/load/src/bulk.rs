//! The limit of a bulk transfer: a connection that receives a block and sends it back many times.

use std::io::{self, Read, Write};

use tideloop_sys::selector::{Interest, Selector};

use crate::serve::unless_blocked;
use crate::target::Stream;

pub struct Bulk {
    block: Vec<u8>,
    times: usize,
    received: usize,
    /// Bytes of the answer that the socket has not taken.
    left: usize,
    waits_to_write: bool,
}

impl Bulk {
    pub fn new(size: usize, times: usize) -> Self {
        Self {
            block: vec![0; size],
            times,
            received: 0,
            left: 0,
            waits_to_write: false,
        }
    }

    /// False once the peer has ended.
    pub fn go_on(
        &mut self,
        stream: &mut Stream,
        selector: &dyn Selector,
        key: u64,
    ) -> io::Result<bool> {
        let size = self.block.len();
        if self.left == 0 {
            match unless_blocked(stream.read(&mut self.block[self.received..]))? {
                None => return Ok(true),
                Some(0) => return Ok(false),
                Some(read) => self.received += read,
            }
            if self.received < size {
                return Ok(true);
            }
            self.received = 0;
            self.left = size * self.times;
        }
        while self.left > 0 {
            let at = (size - self.left % size) % size;
            match unless_blocked(stream.write(&self.block[at..]))? {
                Some(sent) => self.left -= sent,
                None => break,
            }
        }
        let waits = self.left > 0;
        if waits != self.waits_to_write {
            self.waits_to_write = waits;
            let interest = if waits {
                Interest::WRITE
            } else {
                Interest::READ
            };
            selector.modify(stream.raw(), key, interest)?;
        }
        Ok(true)
    }
}
