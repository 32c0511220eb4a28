//! A connection against asyncio's own bookkeeping: three booleans, a count and a queue length.

use arbitrary::Arbitrary;
use tideloop_core::flow::Signal;
use tideloop_core::hold::HOLD_NS;
use tideloop_core::stream::{CloseStep, Drained, EofStep, MAX_HELD, Stream, WriteStep};

use super::flow::Marks;

#[derive(Debug, Arbitrary)]
enum Op {
    Start,
    /// So many bytes are written, of which the system takes some if it is asked, with what was held.
    Write(u16, u16),
    /// As before, by a callback that may hold them, after so many microseconds.
    WriteInCallback(u16, u16, u8),
    /// The callback ends, and the system takes some of what was held.
    CallbackEnds(u16),
    /// The system takes up to so many bytes of what is queued.
    Writable(u32),
    /// The system says that it would take more, and nothing is queued (any more).
    WritableForNothing,
    /// The system refuses: the connection is lost.
    SendFails,
    Readable(Read),
    Eof,
    Close,
    Abort,
    Pause,
    Resume,
    Limits(Option<u16>, Option<u16>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Read {
    Data,
    End,
    Error,
}

/// What asyncio's `_SelectorSocketTransport` keeps about a connection.
#[derive(Default)]
struct Transport {
    started: bool,
    paused: bool,
    ended: bool,
    closing: bool,
    lost: bool,
    dropped: u32,
    eof: bool,
    shut: bool,
    queued: usize,
    /// Bytes that asyncio would have sent already, and when the first of them was written.
    held: Option<u64>,
    now: u64,
    marks: Marks,
}

impl Transport {
    fn reads(&self) -> bool {
        self.started && !self.paused && !self.ended && !self.closing
    }

    fn lose(&mut self) -> CloseStep {
        let step = if self.lost {
            CloseStep::Nothing
        } else {
            CloseStep::Finish
        };
        (self.closing, self.lost) = (true, true);
        if step == CloseStep::Finish {
            self.queued = 0;
            self.held = None;
        }
        step
    }

    fn drained(&mut self) -> Drained {
        if self.queued > 0 || self.lost {
            Drained::Nothing
        } else if self.closing {
            self.lost = true;
            Drained::Finish
        } else if self.eof && !self.shut {
            self.shut = true;
            Drained::ShutdownWrite
        } else {
            Drained::Nothing
        }
    }
}

/// How often what may happen once did.
#[derive(Default)]
struct Ends {
    finished: u32,
    shut: u32,
}

pub fn check(bytes: &[u8]) {
    let (mut stream, mut model) = (Stream::default(), Transport::default());
    let mut ends = Ends::default();
    for op in super::operations(bytes) {
        step(&mut stream, &mut model, &mut ends, op);
        assert_eq!(stream.wants_read(), model.reads());
        assert_eq!(
            stream.wants_write(),
            model.queued > 0 && model.held.is_none()
        );
        assert_eq!(stream.is_holding(), model.held.is_some());
        assert!(model.held.is_none() || model.queued <= MAX_HELD.min(stream.limits().1));
        assert_eq!(stream.queued_bytes(), model.queued);
        assert_eq!(stream.is_closing(), model.closing);
        assert_eq!(stream.is_lost(), model.lost);
        assert_eq!(stream.is_reading(), !model.closing && !model.paused);
        assert_eq!(stream.is_write_paused(), model.marks.paused);
        assert!(ends.finished <= 1 && ends.shut <= 1);
        assert_eq!(ends.finished == 1, model.lost);
    }
}

fn step(stream: &mut Stream, model: &mut Transport, ends: &mut Ends, op: Op) {
    match op {
        Op::Start => {
            stream.start();
            model.started = true;
        }
        Op::Write(len, taken) => write(stream, model, ends, len.into(), taken.into(), None),
        Op::WriteInCallback(len, taken, later) => {
            model.now += u64::from(later) * 1000;
            let now = Some(model.now);
            write(stream, model, ends, len.into(), taken.into(), now);
        }
        Op::CallbackEnds(taken) => release(stream, model, ends, taken.into()),
        Op::Writable(taken) => {
            if stream.wants_write() {
                send(stream, model, ends, (taken as usize).min(model.queued));
            }
        }
        Op::WritableForNothing => {
            if !stream.wants_write() {
                // Readable and writable came together, and reading has ended the connection, or
                // nothing was queued to begin with.
                send(stream, model, ends, 0);
            }
        }
        Op::SendFails => {
            if stream.wants_write() {
                abort(stream, model, ends);
            }
        }
        Op::Readable(read) => {
            if stream.wants_read() {
                match read {
                    Read::Data => {}
                    Read::End => {
                        stream.peer_eof();
                        model.ended = true;
                    }
                    Read::Error => abort(stream, model, ends),
                }
            }
        }
        Op::Eof => {
            let expected = if model.closing || model.eof || model.queued > 0 {
                EofStep::Nothing
            } else {
                model.shut = true;
                EofStep::ShutdownWrite
            };
            model.eof |= !model.closing;
            assert_eq!(stream.write_eof(), expected);
            ends.shut += u32::from(expected == EofStep::ShutdownWrite);
        }
        Op::Close => {
            let expected = if model.closing || model.queued > 0 {
                CloseStep::Nothing
            } else {
                model.lost = true;
                CloseStep::Finish
            };
            model.closing = true;
            assert_eq!(stream.close(), expected);
            ends.finished += u32::from(expected == CloseStep::Finish);
        }
        Op::Abort => abort(stream, model, ends),
        Op::Pause => {
            // asyncio pauses after the end as well; there is nothing to pause then.
            let expected = !model.closing && !model.paused && !model.ended;
            model.paused |= expected;
            assert_eq!(stream.pause_reading(), expected);
        }
        Op::Resume => {
            let expected = !model.closing && model.paused;
            model.paused &= !expected;
            assert_eq!(stream.resume_reading(), expected);
        }
        Op::Limits(high, low) => {
            // The driver lets go first, of what would be counted otherwise.
            release(stream, model, ends, usize::MAX);
            let (high, low) = (high.map(i64::from), low.map(i64::from));
            let signal = stream.set_limits(high, low).ok();
            let expected = model
                .marks
                .set(high, low)
                .then(|| model.marks.grown(model.queued));
            assert_eq!(signal, expected);
        }
    }
}

fn write(
    stream: &mut Stream,
    model: &mut Transport,
    ends: &mut Ends,
    len: usize,
    taken: usize,
    now: Option<u64>,
) {
    let step = stream.write(len, now);
    if model.eof {
        assert_eq!(step, WriteStep::AfterEof);
    } else if len == 0 {
        assert_eq!(step, WriteStep::Nothing);
    } else if model.lost {
        model.dropped += 1;
        let warn = model.dropped >= 5;
        assert_eq!(step, WriteStep::Dropped { warn });
    } else if model.queued > 0 && model.held.is_none() {
        assert_eq!(step, WriteStep::Queue);
        queue(stream, model, len);
    } else if now.is_some_and(|now| {
        let fits = model.queued + len <= MAX_HELD.min(stream.limits().1);
        fits && model.held.is_none_or(|since| now - since <= HOLD_NS)
    }) {
        let first = model.held.is_none();
        assert_eq!(step, WriteStep::Hold { first });
        model.held = model.held.or(now);
        model.queued += len;
    } else {
        assert_eq!(step, WriteStep::SendNow);
        model.held = None;
        // What was held comes first.
        let (before, taken) = (model.queued, taken.min(model.queued + len));
        sent(stream, model, before.min(taken));
        if taken < before + len {
            queue(stream, model, before + len - taken.max(before));
        } else {
            drained(stream, model, ends);
        }
    }
}

fn queue(stream: &mut Stream, model: &mut Transport, len: usize) {
    model.queued += len;
    assert_eq!(stream.queued(len), model.marks.grown(model.queued));
}

fn release(stream: &mut Stream, model: &mut Transport, ends: &mut Ends, taken: usize) {
    assert_eq!(stream.release(), model.held.is_some());
    if model.held.take().is_some() {
        send(stream, model, ends, taken.min(model.queued));
    }
}

fn send(stream: &mut Stream, model: &mut Transport, ends: &mut Ends, len: usize) {
    sent(stream, model, len);
    drained(stream, model, ends);
}

fn sent(stream: &mut Stream, model: &mut Transport, len: usize) {
    model.queued -= len;
    let expected = if model.lost {
        Signal::Nothing
    } else {
        model.marks.shrunk(model.queued)
    };
    assert_eq!(stream.sent(len), expected);
}

fn drained(stream: &mut Stream, model: &mut Transport, ends: &mut Ends) {
    let expected = model.drained();
    assert_eq!(stream.drained(), expected);
    ends.finished += u32::from(expected == Drained::Finish);
    ends.shut += u32::from(expected == Drained::ShutdownWrite);
}

fn abort(stream: &mut Stream, model: &mut Transport, ends: &mut Ends) {
    let expected = model.lose();
    assert_eq!(stream.abort(), expected);
    ends.finished += u32::from(expected == CloseStep::Finish);
}
