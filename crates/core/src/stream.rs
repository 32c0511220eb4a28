//! One stream connection: reading, writing, half-close, close and abort, as a pure state machine.
//!
//! TCP, UNIX sockets and pipes share it. The driver owns descriptor and bytes; it reports what
//! happened (a write of so many bytes, so many sent, end of file) and does what the returned step
//! says. Three independent axes make up the state:
//!
//! * **reading**: `Waiting` (connection_made has not run yet), `Flowing`, `Paused`, `Ended` (the peer
//!   will send no more).
//! * **writing**: `Open`, `Finishing` (write_eof was called, queued bytes go first), `Shut`.
//! * **life**: `Open`, `Closing` (no more reading; queued bytes still go out, and what is written
//!   meanwhile joins them, as in asyncio), `Lost` (connection_lost is due or done; writes are dropped).
//!
//! Bytes that are written within a callback are **held**: they are queued, but wait for the callback's end
//! instead of the socket, and [`Stream::release`] lets them go. Nothing is held beside bytes that wait for
//! the socket, nor more than [`MAX_HELD`] or the high-water mark: what a protocol is told of flow control is
//! what it would be told if each write were sent at once. The driver releases before whatever could tell
//! the difference.
//!
//! What the selector should watch is derived from the state ([`Stream::wants_read`],
//! [`Stream::wants_write`]) and never stored: after each step the driver brings its registration in
//! line with it. A descriptor that wants neither must be taken out of the selector altogether, since
//! a hang-up is reported even to those who asked for nothing.
//!
//! `Finish` is returned exactly once in a connection's life, so connection_lost is called exactly once.

use crate::flow::{BadLimits, Flow, Signal};
use crate::hold::Hold;

/// The most that is held back, bytes: beyond that a system call is small beside what it carries.
pub const MAX_HELD: usize = 64 * 1024;

/// Dropped writes before the driver starts to warn, as in asyncio.
const WARN_AFTER_DROPPED: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Waiting,
    WaitingPaused,
    Flowing,
    Paused,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    Open,
    Finishing,
    Shut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    Closing,
    Lost,
}

/// What to do with bytes that the protocol writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum WriteStep {
    /// Refuse: write_eof was called before.
    AfterEof,
    /// Nothing to write.
    Nothing,
    /// The connection is gone: drop the bytes, and warn once there have been several.
    Dropped { warn: bool },
    /// Nothing waits for the socket: try to send at once, behind what was held until now, then
    /// [`Stream::sent`] what was held and is gone, and [`Stream::queued`] what is left of these.
    SendNow,
    /// Keep it behind what is held. `first`: nothing was, so [`Stream::release`] must come in the end.
    Hold { first: bool },
    /// Earlier bytes are queued: [`Stream::queued`] all of it, or the order would be lost.
    Queue,
}

/// What follows a send, once the protocol has been told of its [`Signal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// Bytes are queued, or nothing was waiting for the end of them.
    Nothing,
    /// All is sent and write_eof was called: shut the write side down.
    ShutdownWrite,
    /// All is sent and the connection was closing: connection_lost(None).
    Finish,
}

/// What write_eof leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum EofStep {
    Nothing,
    ShutdownWrite,
}

/// What close or abort leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum CloseStep {
    /// Already closing, or queued bytes go first.
    Nothing,
    /// Schedule connection_lost.
    Finish,
}

/// The state of one stream connection.
#[derive(Debug)]
pub struct Stream {
    reading: Reading,
    writing: Writing,
    life: Life,
    queued: usize,
    /// All that is queued is held back.
    hold: Hold,
    dropped: u32,
    flow: Flow,
    /// The protocol is being told to go on, and may write more before that call returns.
    telling: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            reading: Reading::Waiting,
            writing: Writing::Open,
            life: Life::Open,
            queued: 0,
            hold: Hold::default(),
            dropped: 0,
            flow: Flow::default(),
            telling: false,
        }
    }
}

impl Stream {
    /// connection_made has run: reading may begin, unless the protocol paused it there.
    pub fn start(&mut self) {
        self.reading = match self.reading {
            Reading::Waiting => Reading::Flowing,
            Reading::WaitingPaused => Reading::Paused,
            other => other,
        };
    }

    /// Whether the selector should watch for readability.
    #[inline]
    pub fn wants_read(&self) -> bool {
        self.life == Life::Open && self.reading == Reading::Flowing
    }

    /// Whether the selector should watch for writability.
    #[inline]
    pub fn wants_write(&self) -> bool {
        self.queued > 0 && !self.hold.is_on()
    }

    /// What `transport.is_reading()` says.
    pub fn is_reading(&self) -> bool {
        self.life == Life::Open && !matches!(self.reading, Reading::Paused | Reading::WaitingPaused)
    }

    pub fn is_closing(&self) -> bool {
        self.life != Life::Open
    }

    pub fn is_lost(&self) -> bool {
        self.life == Life::Lost
    }

    /// Bytes that wait to be sent, held ones among them.
    pub fn queued_bytes(&self) -> usize {
        self.queued
    }

    /// False if there is nothing to pause.
    pub fn pause_reading(&mut self) -> bool {
        let paused = match self.reading {
            _ if self.life != Life::Open => return false,
            Reading::Waiting => Reading::WaitingPaused,
            Reading::Flowing => Reading::Paused,
            _ => return false,
        };
        self.reading = paused;
        true
    }

    /// False if there is nothing to resume.
    pub fn resume_reading(&mut self) -> bool {
        let resumed = match self.reading {
            _ if self.life != Life::Open => return false,
            Reading::WaitingPaused => Reading::Waiting,
            Reading::Paused => Reading::Flowing,
            _ => return false,
        };
        self.reading = resumed;
        true
    }

    /// The peer has sent its last byte.
    pub fn peer_eof(&mut self) {
        self.reading = Reading::Ended;
    }

    /// The protocol writes `len` bytes, at a time (nanoseconds on the driver's clock) if they may be held
    /// until the callback ends.
    #[inline]
    pub fn write(&mut self, len: usize, hold: Option<u64>) -> WriteStep {
        if self.writing != Writing::Open {
            return WriteStep::AfterEof;
        }
        if len == 0 {
            return WriteStep::Nothing;
        }
        if self.life == Life::Lost {
            self.dropped = self.dropped.saturating_add(1);
            return WriteStep::Dropped {
                warn: self.dropped >= WARN_AFTER_DROPPED,
            };
        }
        if self.wants_write() {
            return WriteStep::Queue;
        }
        let (_, high) = self.flow.limits();
        match hold {
            Some(now) if self.queued + len <= MAX_HELD.min(high) && !self.hold.is_due(now) => {
                let first = !self.hold.is_on();
                self.hold.begin(now);
                self.queued += len;
                WriteStep::Hold { first }
            }
            _ => {
                self.hold.end();
                WriteStep::SendNow
            }
        }
    }

    /// What is held is to be sent now: whether there is any.
    #[inline]
    pub fn release(&mut self) -> bool {
        self.hold.end()
    }

    /// Whether bytes are held.
    #[inline]
    pub fn is_holding(&self) -> bool {
        self.hold.is_on()
    }

    /// Whether the end of what is queued is awaited: by close or write_eof.
    #[inline]
    pub fn awaits_drain(&self) -> bool {
        self.life == Life::Closing
            || (self.life == Life::Open && self.writing == Writing::Finishing)
    }

    /// `len` more bytes wait for the socket.
    pub fn queued(&mut self, len: usize) -> Signal {
        self.queued += len;
        self.flow.grown(self.queued)
    }

    /// `len` of the queued bytes went out. The protocol gets its signal first, since it may write
    /// more; then [`Stream::drained`] says what follows. A lost connection has nothing to go on with.
    pub fn sent(&mut self, len: usize) -> Signal {
        self.queued = self.queued.saturating_sub(len);
        if self.life == Life::Lost {
            return Signal::Nothing;
        }
        self.flow.shrunk(self.queued)
    }

    /// The protocol is told of what was sent: what it writes now is the connection's, also if the buffer is empty
    /// again in between. Ends by [`Stream::told`].
    pub fn tells(&mut self) {
        self.telling = true;
    }

    /// The protocol was told; [`Stream::drained`] says what follows.
    pub fn told(&mut self) {
        self.telling = false;
    }

    pub fn drained(&mut self) -> Drained {
        if self.queued > 0 || self.telling {
            return Drained::Nothing;
        }
        match (self.life, self.writing) {
            (Life::Closing, _) => {
                self.life = Life::Lost;
                Drained::Finish
            }
            (Life::Open, Writing::Finishing) => {
                self.writing = Writing::Shut;
                Drained::ShutdownWrite
            }
            _ => Drained::Nothing,
        }
    }

    /// The protocol will write no more.
    pub fn write_eof(&mut self) -> EofStep {
        if self.life != Life::Open || self.writing != Writing::Open {
            return EofStep::Nothing;
        }
        if self.queued > 0 {
            self.writing = Writing::Finishing;
            return EofStep::Nothing;
        }
        self.writing = Writing::Shut;
        EofStep::ShutdownWrite
    }

    /// Ends the connection once queued bytes are sent.
    pub fn close(&mut self) -> CloseStep {
        if self.life != Life::Open {
            return CloseStep::Nothing;
        }
        self.life = Life::Closing;
        if self.queued > 0 {
            return CloseStep::Nothing;
        }
        self.life = Life::Lost;
        CloseStep::Finish
    }

    /// Ends the connection at once; the driver drops what is queued.
    pub fn abort(&mut self) -> CloseStep {
        if self.life == Life::Lost {
            return CloseStep::Nothing;
        }
        self.queued = 0;
        self.hold.end();
        self.life = Life::Lost;
        CloseStep::Finish
    }

    /// New water marks; the signal says on which side of them the connection now is.
    pub fn set_limits(&mut self, high: Option<i64>, low: Option<i64>) -> Result<Signal, BadLimits> {
        self.flow.set_limits(high, low)?;
        Ok(self.flow.grown(self.queued))
    }

    /// Whether the protocol was last told to pause.
    pub fn is_write_paused(&self) -> bool {
        self.flow.is_paused()
    }

    /// (low, high), bytes.
    pub fn limits(&self) -> (usize, usize) {
        self.flow.limits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn started() -> Stream {
        let mut stream = Stream::default();
        stream.start();
        stream
    }

    #[test]
    fn nothing_is_read_before_connection_made() {
        let mut stream = Stream::default();
        assert!(!stream.wants_read());
        assert!(
            stream.is_reading(),
            "as asyncio answers inside connection_made"
        );
        assert!(stream.pause_reading());
        stream.start();
        assert!(!stream.wants_read(), "paused in connection_made");
        assert!(stream.resume_reading());
        assert!(stream.wants_read());
        assert!(!stream.resume_reading(), "the second resume does nothing");
    }

    #[test]
    fn close_lets_queued_bytes_go_first() {
        let mut stream = started();
        assert_eq!(stream.write(10, None), WriteStep::SendNow);
        assert_eq!(stream.queued(4), Signal::Nothing);
        assert_eq!(stream.close(), CloseStep::Nothing);
        assert!(stream.is_closing() && !stream.is_lost());
        assert!(!stream.wants_read() && stream.wants_write());
        assert_eq!(
            stream.write(3, Some(0)),
            WriteStep::Queue,
            "still accepted, as in asyncio"
        );
        let _ = stream.queued(3);
        let _ = stream.sent(4);
        assert_eq!(stream.drained(), Drained::Nothing);
        let _ = stream.sent(3);
        assert_eq!(stream.drained(), Drained::Finish);
        assert_eq!(stream.abort(), CloseStep::Nothing);
        assert_eq!(stream.write(1, None), WriteStep::Dropped { warn: false });
    }

    #[test]
    fn what_is_written_when_told_to_go_on_comes_before_the_end() {
        let mut stream = started();
        assert_eq!(stream.set_limits(Some(0), None), Ok(Signal::Nothing));
        assert_eq!(stream.queued(5), Signal::PauseWriting);
        assert_eq!(stream.close(), CloseStep::Nothing);
        assert_eq!(stream.sent(5), Signal::ResumeWriting);
        stream.tells();
        assert_eq!(stream.write(1, Some(0)), WriteStep::SendNow);
        assert_eq!(stream.drained(), Drained::Nothing, "there may be more");
        assert_eq!(stream.write(1, Some(0)), WriteStep::SendNow);
        stream.told();
        assert_eq!(stream.drained(), Drained::Finish);
    }

    #[test]
    fn abort_drops_queued_bytes() {
        let mut stream = started();
        let _ = stream.queued(100);
        assert_eq!(stream.close(), CloseStep::Nothing);
        assert_eq!(stream.abort(), CloseStep::Finish);
        assert_eq!(stream.queued_bytes(), 0);
        assert!(!stream.wants_write());
        assert_eq!(stream.drained(), Drained::Nothing);
    }

    #[test]
    fn a_lost_connection_is_not_told_to_go_on() {
        let mut stream = started();
        assert_eq!(stream.queued(100_000), Signal::PauseWriting);
        assert_eq!(stream.abort(), CloseStep::Finish);
        assert_eq!(
            stream.sent(0),
            Signal::Nothing,
            "writability that was found before"
        );
        assert_eq!(stream.drained(), Drained::Nothing);
    }

    #[test]
    fn half_close_waits_for_the_queue() {
        let mut stream = started();
        let _ = stream.queued(5);
        assert_eq!(stream.write_eof(), EofStep::Nothing);
        assert_eq!(stream.write(1, None), WriteStep::AfterEof);
        let _ = stream.sent(5);
        assert_eq!(stream.drained(), Drained::ShutdownWrite);
        assert!(stream.wants_read(), "the other direction lives on");
        assert_eq!(stream.write_eof(), EofStep::Nothing);

        let mut idle = started();
        assert_eq!(idle.write_eof(), EofStep::ShutdownWrite);
        assert_eq!(idle.close(), CloseStep::Finish);
    }

    #[test]
    fn dropped_writes_warn_from_the_fifth_on() {
        let mut stream = started();
        let _ = stream.abort();
        let warned: Vec<bool> = (0..6)
            .map(|_| stream.write(1, Some(0)) == WriteStep::Dropped { warn: true })
            .collect();
        assert_eq!(warned, [false, false, false, false, true, true]);
    }

    #[test]
    fn what_a_callback_writes_is_held_until_it_ends() {
        let mut stream = started();
        assert_eq!(stream.write(10, Some(0)), WriteStep::Hold { first: true });
        assert_eq!(stream.write(20, Some(5)), WriteStep::Hold { first: false });
        assert_eq!(stream.queued_bytes(), 30);
        assert!(!stream.wants_write(), "the socket is not asked for it");
        assert!(stream.release());
        assert!(stream.wants_write());
        assert_eq!(
            stream.write(1, Some(6)),
            WriteStep::Queue,
            "it is too late to hold anything behind what waits for the socket"
        );
        let _ = stream.queued(1);
        assert_eq!(stream.sent(31), Signal::Nothing);
        assert!(!stream.release());
    }

    #[test]
    fn what_is_held_leaves_with_a_large_or_a_late_write() {
        let mut stream = started();
        assert_eq!(stream.write(MAX_HELD + 1, Some(0)), WriteStep::SendNow);
        assert_eq!(stream.write(200, Some(0)), WriteStep::Hold { first: true });
        assert_eq!(stream.write(MAX_HELD, Some(0)), WriteStep::SendNow);
        let _ = stream.sent(200);
        assert_eq!(stream.write(1, Some(0)), WriteStep::Hold { first: true });
        assert_eq!(stream.write(1, Some(50_001)), WriteStep::SendNow);
        let _ = stream.sent(1);
        assert_eq!(stream.write(1, None), WriteStep::SendNow);
        assert_eq!(stream.queued_bytes(), 0);
    }

    #[test]
    fn no_more_is_held_than_the_high_water_mark() {
        let mut stream = started();
        assert_eq!(stream.set_limits(Some(100), None), Ok(Signal::Nothing));
        assert_eq!(stream.write(100, Some(0)), WriteStep::Hold { first: true });
        assert_eq!(stream.write(1, Some(0)), WriteStep::SendNow);
        let _ = stream.sent(100);
        assert_eq!(stream.set_limits(Some(0), None), Ok(Signal::Nothing));
        assert_eq!(
            stream.write(1, Some(0)),
            WriteStep::SendNow,
            "a protocol that wants to hear of every queued byte must not hear of held ones"
        );
    }

    #[test]
    fn a_close_and_an_abort_know_held_bytes() {
        let mut stream = started();
        assert_eq!(stream.write(5, Some(0)), WriteStep::Hold { first: true });
        assert_eq!(stream.close(), CloseStep::Nothing);
        assert!(stream.awaits_drain() && stream.release());
        let _ = stream.sent(5);
        assert_eq!(stream.drained(), Drained::Finish);

        let mut stream = started();
        assert_eq!(stream.write(5, Some(0)), WriteStep::Hold { first: true });
        assert_eq!(stream.abort(), CloseStep::Finish);
        assert!(!stream.release(), "there is nothing to send any more");
        assert_eq!(stream.queued_bytes(), 0);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Write(usize),
        Hold(usize, u64),
        Release,
        Send(usize),
        Eof,
        Close,
        Abort,
        Pause,
        Resume,
        PeerEof,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0_usize..100_000).prop_map(Op::Write),
            4 => (0_usize..100_000, 0_u64..100_000).prop_map(|(len, now)| Op::Hold(len, now)),
            2 => Just(Op::Release),
            4 => (1_usize..100_000).prop_map(Op::Send),
            1 => Just(Op::Eof),
            1 => Just(Op::Close),
            1 => Just(Op::Abort),
            1 => Just(Op::Pause),
            1 => Just(Op::Resume),
            1 => Just(Op::PeerEof),
        ]
    }

    proptest! {
        /// Bytes are conserved, the end comes once and is final, signals alternate.
        #[test]
        fn any_order_of_calls_keeps_the_promises(ops in proptest::collection::vec(op(), 0..80)) {
            let mut stream = started();
            let (mut finished, mut shut, mut queued) = (0, 0, 0_usize);
            let mut paused = false;
            let mut held = false;
            let mut signal = |signal: Signal| match signal {
                Signal::PauseWriting => { assert!(!paused); paused = true; }
                Signal::ResumeWriting => { assert!(paused); paused = false; }
                Signal::Nothing => {}
            };
            for op in ops {
                match op {
                    Op::Write(len) | Op::Hold(len, _) => match stream.write(len, match op {
                        Op::Hold(_, now) => Some(now),
                        _ => None,
                    }) {
                        WriteStep::SendNow | WriteStep::Queue => {
                            prop_assert!(shut == 0);
                            signal(stream.queued(len));
                            queued += len;
                            held = false;
                        }
                        WriteStep::Hold { first } => {
                            prop_assert_eq!(first, !held);
                            prop_assert!(shut == 0 && (held || queued == 0));
                            queued += len;
                            held = true;
                            prop_assert!(queued <= MAX_HELD);
                        }
                        WriteStep::Nothing => prop_assert_eq!(len, 0),
                        WriteStep::Dropped { .. } => prop_assert!(stream.is_lost()),
                        WriteStep::AfterEof => {}
                    },
                    Op::Send(len) if stream.wants_write() => {
                        let len = len.min(queued);
                        queued -= len;
                        signal(stream.sent(len));
                        match stream.drained() {
                            Drained::Finish => finished += 1,
                            Drained::ShutdownWrite => shut += 1,
                            Drained::Nothing => {}
                        }
                    }
                    Op::Send(_) => {}
                    Op::Release => {
                        prop_assert_eq!(stream.release(), held);
                        held = false;
                    }
                    Op::Eof => if stream.write_eof() == EofStep::ShutdownWrite { shut += 1 },
                    Op::Close => if stream.close() == CloseStep::Finish { finished += 1 },
                    Op::Abort => if stream.abort() == CloseStep::Finish { finished += 1; queued = 0; held = false },
                    Op::Pause => { stream.pause_reading(); }
                    Op::Resume => { stream.resume_reading(); }
                    Op::PeerEof => if stream.wants_read() { stream.peer_eof() },
                }
                prop_assert_eq!(stream.queued_bytes(), queued);
                prop_assert_eq!(stream.wants_write(), queued > 0 && !held);
                prop_assert_eq!(stream.is_holding(), held);
                prop_assert!(finished <= 1 && shut <= 1);
                prop_assert_eq!(stream.is_lost(), finished == 1);
                prop_assert!(!(stream.is_closing() && stream.wants_read()));
            }
        }
    }
}
