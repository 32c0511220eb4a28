//! One datagram endpoint: what waits to be sent, what waits to be delivered, close and abort, as a pure
//! state machine.
//!
//! UDP and UNIX datagram sockets share it. The driver owns the descriptor; it reports what happened (so
//! many datagrams sent, one arrived) and does what the returned step says. Datagrams are opaque here:
//! `Out` is one on its way out, with its address, and `In` one that has arrived.
//!
//! Unlike a stream an endpoint has no end of file and no half-close. A datagram is sent whole or not at
//! all, may be empty, and one that fails is lost without harm to the next. Two axes make up the state:
//!
//! * **reading**: `Waiting` (connection_made has not run yet), `Flowing`, `Paused`. Datagrams are
//!   received in batches, so when the protocol pauses in the middle of one, the rest is held here; while
//!   any are held nothing more is received, or the order would be lost.
//! * **life**: `Open`, `Closing` (nothing is delivered any more; queued datagrams still go out), `Lost`
//!   (connection_lost is due or done).
//!
//! `Finish` is returned exactly once in an endpoint's life, so connection_lost is called exactly once.
//! Whatever is removed is handed back to the driver, which drops it.

use std::collections::VecDeque;

use crate::flow::{BadLimits, Flow, Signal};

/// The dropped datagram from which on the driver warns, as in asyncio.
const WARN_FROM_DROPPED: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Waiting,
    WaitingPaused,
    Flowing,
    Paused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    Closing,
    Lost,
}

/// What to do with a datagram that the protocol sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum SendStep {
    /// Nothing is queued: try to send at once, and [`Endpoint::queue`] it if the socket is full.
    SendNow,
    /// Others are queued: [`Endpoint::queue`] it, or the order would be lost.
    Queue,
    /// The endpoint is closed but still has its socket: send it now or never. asyncio does so for
    /// endpoints without a fixed peer.
    NowOrNever,
    /// The endpoint is gone: drop it, and warn once there have been several.
    Dropped { warn: bool },
}

/// What follows once queued datagrams went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// Some are queued still, or nothing was waiting for the end of them.
    Nothing,
    /// All are sent and the endpoint was closing: connection_lost(None).
    Finish,
}

/// What close or abort leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum CloseStep {
    /// Already closing, or queued datagrams go first.
    Nothing,
    /// Schedule connection_lost.
    Finish,
}

/// What resume_reading leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Resumed {
    /// There was nothing to resume.
    Nothing,
    /// The socket is read again.
    Reading,
    /// Datagrams are held: they come first, in a turn of their own.
    Held,
}

/// A queue of datagrams that were never sent, and those that were never delivered.
pub type Leftover<Out, In> = (VecDeque<Queued<Out>>, VecDeque<In>);

/// A datagram that waits to be sent, and its share of the write buffer in bytes.
#[derive(Debug)]
pub struct Queued<Out> {
    pub datagram: Out,
    cost: usize,
}

/// The state of one datagram endpoint.
#[derive(Debug)]
pub struct Endpoint<Out, In> {
    reading: Reading,
    life: Life,
    /// Whether all datagrams go to one peer, given at the start.
    has_peer: bool,
    /// What each queued datagram counts besides its own bytes.
    header: usize,
    queue: VecDeque<Queued<Out>>,
    queued: usize,
    arrived: VecDeque<In>,
    dropped: u32,
    flow: Flow,
}

impl<Out, In> Endpoint<Out, In> {
    /// has_peer: all datagrams go to one peer. header: bytes that a queued datagram counts besides its
    /// own, so that a queue of empty ones is not free.
    pub fn new(has_peer: bool, header: usize) -> Self {
        Self {
            reading: Reading::Waiting,
            life: Life::Open,
            has_peer,
            header,
            queue: VecDeque::new(),
            queued: 0,
            arrived: VecDeque::new(),
            dropped: 0,
            flow: Flow::default(),
        }
    }

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
        self.delivers() && self.arrived.is_empty()
    }

    /// Whether the selector should watch for writability.
    #[inline]
    pub fn wants_write(&self) -> bool {
        !self.queue.is_empty()
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

    fn delivers(&self) -> bool {
        self.life == Life::Open && self.reading == Reading::Flowing
    }

    // --- receiving ------------------------------------------------------------------------------

    /// A datagram was received, while [`Endpoint::wants_read`] or in the same batch as one that was.
    #[inline]
    pub fn arrived(&mut self, datagram: In) {
        self.arrived.push_back(datagram);
    }

    /// The next datagram to deliver, if the protocol takes any.
    #[inline]
    pub fn next_arrived(&mut self) -> Option<In> {
        if !self.delivers() {
            return None;
        }
        self.arrived.pop_front()
    }

    /// Whether datagrams wait that the protocol would take.
    pub fn has_deliverable(&self) -> bool {
        self.delivers() && !self.arrived.is_empty()
    }

    /// False if there is nothing to pause.
    pub fn pause_reading(&mut self) -> bool {
        self.reading = match self.reading {
            _ if self.life != Life::Open => return false,
            Reading::Waiting => Reading::WaitingPaused,
            Reading::Flowing => Reading::Paused,
            _ => return false,
        };
        true
    }

    pub fn resume_reading(&mut self) -> Resumed {
        self.reading = match self.reading {
            _ if self.life != Life::Open => return Resumed::Nothing,
            Reading::WaitingPaused => Reading::Waiting,
            Reading::Paused => Reading::Flowing,
            _ => return Resumed::Nothing,
        };
        if self.has_deliverable() {
            return Resumed::Held;
        }
        Resumed::Reading
    }

    // --- sending --------------------------------------------------------------------------------

    /// The protocol sends a datagram.
    #[inline]
    pub fn send(&mut self) -> SendStep {
        if self.life == Life::Lost {
            if !self.has_peer {
                return SendStep::NowOrNever;
            }
            return self.drop_one();
        }
        if self.queue.is_empty() {
            SendStep::SendNow
        } else {
            SendStep::Queue
        }
    }

    /// The endpoint has no socket any more: a datagram is dropped.
    pub fn drop_one(&mut self) -> SendStep {
        self.dropped = self.dropped.saturating_add(1);
        SendStep::Dropped {
            warn: self.dropped >= WARN_FROM_DROPPED,
        }
    }

    /// A datagram of `len` bytes waits to be sent.
    pub fn queue(&mut self, datagram: Out, len: usize) -> Signal {
        let cost = len + self.header;
        self.queue.push_back(Queued { datagram, cost });
        self.queued += cost;
        self.flow.grown(self.queued)
    }

    /// What waits to be sent, in order.
    pub fn waiting(&self) -> impl Iterator<Item = &Out> {
        self.queue.iter().map(|queued| &queued.datagram)
    }

    /// The first `count` waiting datagrams went out, or failed. The protocol gets its [`Signal`] and
    /// whatever errors there were first, since it may send more; then [`Endpoint::drained`] says what
    /// follows.
    #[must_use = "the caller drops them"]
    pub fn sent(&mut self, count: usize) -> VecDeque<Queued<Out>> {
        let rest = self.queue.split_off(count.min(self.queue.len()));
        let sent = std::mem::replace(&mut self.queue, rest);
        self.queued -= sent.iter().map(|queued| queued.cost).sum::<usize>();
        sent
    }

    /// What to tell the protocol after [`Endpoint::sent`].
    pub fn relieved(&mut self) -> Signal {
        self.flow.shrunk(self.queued)
    }

    pub fn drained(&mut self) -> Drained {
        if self.queue.is_empty() && self.life == Life::Closing {
            self.life = Life::Lost;
            return Drained::Finish;
        }
        Drained::Nothing
    }

    /// Bytes that wait to be sent, headers included.
    pub fn queued_bytes(&self) -> usize {
        self.queued
    }

    // --- the end --------------------------------------------------------------------------------

    /// Ends the endpoint once queued datagrams are sent.
    pub fn close(&mut self) -> CloseStep {
        if self.life != Life::Open {
            return CloseStep::Nothing;
        }
        if !self.queue.is_empty() {
            self.life = Life::Closing;
            return CloseStep::Nothing;
        }
        self.life = Life::Lost;
        CloseStep::Finish
    }

    /// Ends the endpoint at once.
    pub fn abort(&mut self) -> CloseStep {
        if self.life == Life::Lost {
            return CloseStep::Nothing;
        }
        self.life = Life::Lost;
        CloseStep::Finish
    }

    /// What nobody will send or deliver: everything once the endpoint is lost, what has arrived once it
    /// is closing, nothing before.
    #[must_use = "the caller drops them"]
    pub fn leftover(&mut self) -> Leftover<Out, In> {
        let mut left = Leftover::default();
        if self.life == Life::Lost {
            left.0 = std::mem::take(&mut self.queue);
            self.queued = 0;
        }
        if self.life != Life::Open {
            left.1 = std::mem::take(&mut self.arrived);
        }
        left
    }

    // --- flow control ---------------------------------------------------------------------------

    /// New water marks; the signal says on which side of them the endpoint now is.
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

    fn started(has_peer: bool) -> Endpoint<u32, u32> {
        let mut endpoint = Endpoint::new(has_peer, 8);
        endpoint.start();
        endpoint
    }

    #[test]
    fn nothing_is_received_before_connection_made() {
        let mut endpoint = Endpoint::<u32, u32>::new(false, 0);
        assert!(!endpoint.wants_read() && endpoint.is_reading());
        assert!(endpoint.pause_reading() && !endpoint.pause_reading());
        endpoint.start();
        assert!(!endpoint.wants_read(), "paused in connection_made");
        assert_eq!(endpoint.resume_reading(), Resumed::Reading);
        assert_eq!(endpoint.resume_reading(), Resumed::Nothing);
        assert!(endpoint.wants_read());
    }

    #[test]
    fn the_rest_of_a_batch_is_held_while_paused() {
        let mut endpoint = started(false);
        (0..3).for_each(|n| endpoint.arrived(n));
        assert_eq!(endpoint.next_arrived(), Some(0));
        assert!(endpoint.pause_reading());
        assert_eq!(endpoint.next_arrived(), None);
        assert_eq!(endpoint.resume_reading(), Resumed::Held);
        assert!(!endpoint.wants_read(), "what is held comes first");
        assert_eq!(endpoint.next_arrived(), Some(1));
        assert_eq!(endpoint.next_arrived(), Some(2));
        assert!(endpoint.wants_read());
    }

    #[test]
    fn nothing_is_delivered_after_close() {
        let mut endpoint = started(false);
        (0..3).for_each(|n| endpoint.arrived(n));
        assert_eq!(endpoint.next_arrived(), Some(0));
        assert_eq!(endpoint.close(), CloseStep::Finish);
        assert_eq!(endpoint.next_arrived(), None);
        assert_eq!(endpoint.leftover().1, [1, 2]);
    }

    #[test]
    fn close_lets_queued_datagrams_go_first() {
        let mut endpoint = started(true);
        assert_eq!(endpoint.send(), SendStep::SendNow);
        assert_eq!(endpoint.queue(7, 0), Signal::Nothing);
        assert_eq!(endpoint.queued_bytes(), 8, "an empty one counts too");
        assert_eq!(endpoint.close(), CloseStep::Nothing);
        assert!(endpoint.is_closing() && !endpoint.is_lost());
        assert_eq!(endpoint.send(), SendStep::Queue, "as in asyncio");
        assert!(endpoint.leftover().0.is_empty());
        assert_eq!(endpoint.sent(1).len(), 1);
        assert_eq!(endpoint.drained(), Drained::Finish);
        assert_eq!(endpoint.drained(), Drained::Nothing);
        assert_eq!(endpoint.abort(), CloseStep::Nothing);
    }

    #[test]
    fn abort_leaves_the_queue_to_be_dropped() {
        let mut endpoint = started(true);
        let _ = endpoint.queue(1, 100);
        assert_eq!(endpoint.close(), CloseStep::Nothing);
        assert_eq!(endpoint.abort(), CloseStep::Finish);
        assert_eq!(endpoint.leftover().0.len(), 1);
        assert_eq!(endpoint.queued_bytes(), 0);
        assert!(!endpoint.wants_write());
        assert_eq!(endpoint.drained(), Drained::Nothing);
    }

    #[test]
    fn dropped_datagrams_warn_from_the_fifth_on() {
        let mut endpoint = started(true);
        assert_eq!(endpoint.close(), CloseStep::Finish);
        let warned: Vec<bool> = (0..7)
            .map(|_| endpoint.send() == SendStep::Dropped { warn: true })
            .collect();
        assert_eq!(warned, [false, false, false, false, true, true, true]);
        let mut open = started(false);
        assert_eq!(open.close(), CloseStep::Finish);
        assert_eq!(open.send(), SendStep::NowOrNever);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Send(usize),
        Flush(usize),
        Arrive(u8),
        Deliver,
        Pause,
        Resume,
        Close,
        Abort,
        Limits(i64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0_usize..70_000).prop_map(Op::Send),
            4 => (0_usize..5).prop_map(Op::Flush),
            3 => (1_u8..6).prop_map(Op::Arrive),
            6 => Just(Op::Deliver),
            1 => Just(Op::Pause),
            1 => Just(Op::Resume),
            1 => Just(Op::Close),
            1 => Just(Op::Abort),
            1 => (0_i64..100_000).prop_map(Op::Limits),
        ]
    }

    proptest! {
        /// Datagrams go out once and in order or are handed back; what arrives is delivered once and in
        /// order or handed back; the end comes once and is final; signals alternate.
        #[test]
        fn any_order_of_calls_keeps_the_promises(
            has_peer: bool,
            header in 0_usize..9,
            ops in proptest::collection::vec(op(), 0..120),
        ) {
            let mut endpoint = Endpoint::<u32, u32>::new(has_peer, header);
            endpoint.start();
            let (mut outgoing, mut queued) = (0_u32, VecDeque::<(u32, usize)>::new());
            let (mut incoming, mut expected) = (0_u32, 0_u32);
            let (mut finished, mut paused) = (0, false);
            let mut signal = |signal: Signal| match signal {
                Signal::PauseWriting => { assert!(!paused); paused = true; }
                Signal::ResumeWriting => { assert!(paused); paused = false; }
                Signal::Nothing => {}
            };
            for op in ops {
                match op {
                    Op::Send(len) => match endpoint.send() {
                        SendStep::SendNow | SendStep::Queue => {
                            prop_assert!(!endpoint.is_lost());
                            signal(endpoint.queue(outgoing, len));
                            queued.push_back((outgoing, len + header));
                            outgoing += 1;
                        }
                        SendStep::NowOrNever => prop_assert!(endpoint.is_lost() && !has_peer),
                        SendStep::Dropped { .. } => prop_assert!(endpoint.is_lost() && has_peer),
                    },
                    Op::Flush(count) => {
                        let offered: Vec<u32> = endpoint.waiting().copied().collect();
                        prop_assert!(offered.iter().eq(queued.iter().map(|(number, _)| number)));
                        for gone in endpoint.sent(count) {
                            prop_assert_eq!(Some(gone.datagram), queued.pop_front().map(|(number, _)| number));
                        }
                        signal(endpoint.relieved());
                        if endpoint.drained() == Drained::Finish { finished += 1 }
                    }
                    Op::Arrive(count) => if endpoint.wants_read() {
                        for _ in 0..count { endpoint.arrived(incoming); incoming += 1; }
                    },
                    Op::Deliver => {
                        let may = endpoint.has_deliverable();
                        let next = endpoint.next_arrived();
                        prop_assert_eq!(next.is_some(), may);
                        if let Some(number) = next {
                            prop_assert!(!endpoint.is_closing() && endpoint.is_reading());
                            prop_assert_eq!(number, expected);
                            expected += 1;
                        }
                    }
                    Op::Pause => { endpoint.pause_reading(); }
                    Op::Resume => match endpoint.resume_reading() {
                        Resumed::Held => prop_assert!(expected < incoming),
                        Resumed::Reading => prop_assert!(endpoint.wants_read()),
                        Resumed::Nothing => {}
                    },
                    Op::Close => if endpoint.close() == CloseStep::Finish { finished += 1 },
                    Op::Abort => if endpoint.abort() == CloseStep::Finish { finished += 1 },
                    Op::Limits(high) => signal(endpoint.set_limits(Some(high), None).unwrap()),
                }
                let (unsent, undelivered) = endpoint.leftover();
                if !unsent.is_empty() {
                    prop_assert!(endpoint.is_lost());
                    prop_assert!(unsent.iter().map(|left| left.datagram).eq(queued.drain(..).map(|(number, _)| number)));
                }
                if !undelivered.is_empty() {
                    prop_assert!(endpoint.is_closing());
                    prop_assert!(undelivered.into_iter().eq(expected..incoming));
                    expected = incoming;
                }
                prop_assert_eq!(endpoint.queued_bytes(), queued.iter().map(|(_, cost)| cost).sum::<usize>());
                prop_assert_eq!(endpoint.wants_write(), !queued.is_empty());
                prop_assert!(finished <= 1);
                prop_assert_eq!(endpoint.is_lost(), finished == 1);
                prop_assert!(!(endpoint.is_closing() && endpoint.wants_read()));
                prop_assert_eq!(endpoint.has_deliverable(), endpoint.is_reading() && expected < incoming);
            }
        }
    }
}
