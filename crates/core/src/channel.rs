//! A bounded channel: items in order, who waits to send, who waits to receive, and who is next.
//!
//! **Telling instead of handing over.** An item moves from the channel to a receiver, or from a sender into
//! the channel, only while that receiver or sender runs and asks for it. Somebody who waits is *told*: one
//! item (or one place) is kept for whoever was told, who takes it when it runs. So nothing is ever in
//! somebody's hands that may not run again: one who was told and goes away instead, by cancellation, by a
//! time limit, with its loop, leaves the item at the head and the place free, and the next one is told. A
//! cancelled send has not sent and a cancelled receive has not taken anything, with no way back to define.
//!
//! **Nobody is overtaken.** Whoever was told keeps its place in the line until it runs, and a newcomer sends
//! or receives only if there is no line: else it stands behind the others, also if there is room, or an item,
//! for all of them. So items of one loop's tasks go in in the order in which their sends began, and who asked
//! first gets the first one. While there is anything to tell, [`Channel::next_to_tell`] says whom; after it
//! has said nobody, whoever waits untold cannot go on.
//!
//! **The end.** Senders and receivers are counted. When the last sender has closed and no send that was
//! waiting then is left, the channel *ends*: what is in it can still be received. When the last receiver
//! has closed nobody can send any more; what is in it is handed to the caller to be dropped.
//!
//! Waiters are of a type `W`, which is handed out when it is told; waking it is the caller's business, outside of
//! whatever lock it holds.

use std::collections::VecDeque;

use crate::waiters::{Ticket, Waiters};

/// One side's line. A place is empty once its waiter was told, and is held until the waiter comes.
#[derive(Debug)]
struct Line<W> {
    waiters: Waiters<Option<W>>,
    /// How many of them were told.
    told: usize,
}

impl<W> Line<W> {
    fn new() -> Self {
        Self {
            waiters: Waiters::default(),
            told: 0,
        }
    }

    /// Whoever held the place leaves. Hands over the waiter if it was not told; `None` for a void ticket.
    fn leave(&mut self, ticket: Ticket) -> Option<Option<W>> {
        let waiter = self.waiters.remove(ticket)?;
        self.told -= usize::from(waiter.is_none());
        Some(waiter)
    }

    fn untold(&self) -> usize {
        self.waiters.len() - self.told
    }

    fn tell(&mut self) -> Option<(Ticket, W)> {
        let (ticket, waiter) = self.waiters.notify_mut()?;
        self.told += 1;
        waiter.take().map(|waiter| (ticket, waiter))
    }

    fn is_told(&self, ticket: Ticket) -> bool {
        self.waiters.get(ticket).is_some_and(Option::is_none)
    }

    fn forget_told(&mut self) {
        while let Some(ticket) = self.waiters.front()
            && self.is_told(ticket)
        {
            self.leave(ticket);
        }
    }
}

/// Why a send does not go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal<T> {
    /// There is no room, or others wait to send; the item is handed back.
    Full(T),
    /// Nobody is left to receive; the item is handed back.
    Closed(T),
}

/// What receiving comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<T> {
    Item(T),
    /// There is no item, or others wait for it.
    Empty,
    /// There is none, and there will be none.
    Ended,
}

/// Which line somebody stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Send,
    Receive,
}

/// What happened so far and what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    pub len: usize,
    /// The most items that were ever in the channel at once.
    pub peak: usize,
    pub sent: u64,
    pub received: u64,
    pub senders: usize,
    pub receivers: usize,
    pub waiting_senders: usize,
    pub waiting_receivers: usize,
}

#[derive(Debug)]
pub struct Channel<T, W> {
    items: VecDeque<T>,
    capacity: usize,
    sending: Line<W>,
    receiving: Line<W>,
    senders: usize,
    receivers: usize,
    sent: u64,
    discarded: u64,
    peak: usize,
}

impl<T, W> Channel<T, W> {
    /// A channel for so many items (`usize::MAX`: any number), with one sender and one receiver.
    pub fn new(capacity: usize) -> Self {
        Self {
            items: VecDeque::new(),
            capacity,
            sending: Line::new(),
            receiving: Line::new(),
            senders: 1,
            receivers: 1,
            sent: 0,
            discarded: 0,
            peak: 0,
        }
    }

    fn room(&self) -> usize {
        self.capacity - self.items.len()
    }

    /// Whether no more items will come.
    pub fn is_ended(&self) -> bool {
        self.senders == 0 && self.sending.waiters.is_empty()
    }

    pub fn is_abandoned(&self) -> bool {
        self.receivers == 0
    }

    fn store(&mut self, item: T) {
        self.items.push_back(item);
        self.sent += 1;
        self.peak = self.peak.max(self.items.len());
    }

    fn end_of(&self) -> Received<T> {
        if (self.is_ended() && self.items.is_empty()) || self.is_abandoned() {
            Received::Ended
        } else {
            Received::Empty
        }
    }

    /// Sends as a newcomer.
    #[inline]
    pub fn send(&mut self, item: T) -> Result<(), Refusal<T>> {
        if self.is_abandoned() {
            Err(Refusal::Closed(item))
        } else if self.sending.waiters.is_empty() && self.room() > 0 {
            self.store(item);
            Ok(())
        } else {
            Err(Refusal::Full(item))
        }
    }

    /// Receives as a newcomer.
    #[inline]
    pub fn receive(&mut self) -> Received<T> {
        if self.receiving.waiters.is_empty()
            && let Some(item) = self.items.pop_front()
        {
            return Received::Item(item);
        }
        self.end_of()
    }

    /// Stands in line.
    pub fn wait(&mut self, side: Side, waiter: W) -> Ticket {
        self.line(side).waiters.push(Some(waiter))
    }

    /// Sends for one who was told, which leaves the line. With a void ticket it sends as a newcomer.
    pub fn send_when_told(&mut self, ticket: Ticket, item: T) -> Result<(), Refusal<T>> {
        if self.sending.is_told(ticket) {
            self.sending.leave(ticket);
            if !self.is_abandoned() && self.room() > 0 {
                self.store(item);
                return Ok(());
            }
        }
        self.send(item)
    }

    /// Receives for one who was told, which leaves the line. With a void ticket it receives as a newcomer.
    pub fn receive_when_told(&mut self, ticket: Ticket) -> Received<T> {
        if self.receiving.is_told(ticket) {
            self.receiving.leave(ticket);
            if let Some(item) = self.items.pop_front() {
                return Received::Item(item);
            }
        }
        self.receive()
    }

    /// Leaves a line, and hands over the waiter if it was not told. What was kept for it is for the next
    /// one. Nothing happens if the ticket is void.
    pub fn leave(&mut self, side: Side, ticket: Ticket) -> Option<W> {
        self.line(side).leave(ticket).flatten()
    }

    /// Whether nobody waits but those who were told: then no step makes it anybody's turn.
    #[inline(always)]
    pub fn all_told(&self) -> bool {
        self.receiving.untold() == 0 && self.sending.untold() == 0
    }

    /// Who can go on now and was not told; it is told by this call. To be asked after every change, until
    /// there is nobody.
    pub fn next_to_tell(&mut self) -> Option<(Side, Ticket, W)> {
        if self.receiving.untold() > 0
            && (self.items.len() > self.receiving.told || !matches!(self.end_of(), Received::Empty))
        {
            let told = self.receiving.tell();
            return told.map(|(ticket, waiter)| (Side::Receive, ticket, waiter));
        }
        if self.sending.untold() > 0 && (self.room() > self.sending.told || self.is_abandoned()) {
            let told = self.sending.tell();
            return told.map(|(ticket, waiter)| (Side::Send, ticket, waiter));
        }
        None
    }

    /// Those who were told and have not come will never come, as in a forked child.
    pub fn forget_told(&mut self) {
        self.sending.forget_told();
        self.receiving.forget_told();
    }

    /// One more handle on a side.
    pub fn open(&mut self, side: Side) {
        match side {
            Side::Send => self.senders += 1,
            Side::Receive => self.receivers += 1,
        }
    }

    /// One handle less on a side. Hands over what nobody can receive any more.
    pub fn close(&mut self, side: Side) -> VecDeque<T> {
        match side {
            Side::Send => self.senders = self.senders.saturating_sub(1),
            Side::Receive => self.receivers = self.receivers.saturating_sub(1),
        }
        if self.is_abandoned() {
            self.discarded += self.items.len() as u64;
            std::mem::take(&mut self.items)
        } else {
            VecDeque::new()
        }
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }

    /// Those who wait and were not told.
    pub fn waiting(&self) -> impl Iterator<Item = &W> {
        let senders = self.sending.waiters.iter();
        senders.chain(self.receiving.waiters.iter()).flatten()
    }

    /// Takes out one who waits and was not told, for the garbage collector.
    pub fn dismiss(&mut self) -> Option<(Side, Ticket, W)> {
        let sender = self.sending.tell();
        sender
            .map(|(ticket, waiter)| (Side::Send, ticket, waiter))
            .or_else(|| {
                let receiver = self.receiving.tell();
                receiver.map(|(ticket, waiter)| (Side::Receive, ticket, waiter))
            })
    }

    /// Empties it for the garbage collector.
    pub fn take_items(&mut self) -> VecDeque<T> {
        self.discarded += self.items.len() as u64;
        std::mem::take(&mut self.items)
    }

    pub fn stats(&self) -> Stats {
        Stats {
            len: self.items.len(),
            peak: self.peak,
            sent: self.sent,
            received: self.sent - self.discarded - self.items.len() as u64,
            senders: self.senders,
            receivers: self.receivers,
            waiting_senders: self.sending.waiters.len(),
            waiting_receivers: self.receiving.waiters.len(),
        }
    }

    fn line(&mut self, side: Side) -> &mut Line<W> {
        match side {
            Side::Send => &mut self.sending,
            Side::Receive => &mut self.receiving,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Channel, Received, Refusal, Side};
    use crate::waiters::Ticket;

    fn tell<T>(channel: &mut Channel<T, u32>) -> Vec<u32> {
        std::iter::from_fn(|| channel.next_to_tell())
            .map(|(_, _, waiter)| waiter)
            .collect()
    }

    #[test]
    fn what_is_kept_for_one_is_not_for_newcomers() {
        let mut channel = Channel::new(1);
        let first = channel.wait(Side::Receive, 1);
        let second = channel.wait(Side::Receive, 2);
        assert_eq!(channel.send("a"), Ok(()));
        assert_eq!(tell(&mut channel), [1]);
        assert_eq!(channel.receive(), Received::Empty);
        // The first one goes away: the item stays and is for the second one.
        assert_eq!(channel.leave(Side::Receive, first), None);
        assert_eq!(channel.leave(Side::Receive, first), None);
        assert_eq!(tell(&mut channel), [2]);
        assert_eq!(channel.receive_when_told(second), Received::Item("a"));
        assert_eq!(channel.receive(), Received::Empty);
    }

    #[test]
    fn a_told_sender_is_not_overtaken() {
        let mut channel = Channel::new(1);
        assert_eq!(channel.send("a"), Ok(()));
        let ticket = channel.wait(Side::Send, 7);
        assert_eq!(tell(&mut channel), []);
        assert_eq!(channel.receive(), Received::Item("a"));
        assert_eq!(tell(&mut channel), [7]);
        assert_eq!(channel.send("c"), Err(Refusal::Full("c")));
        assert_eq!(channel.send_when_told(ticket, "b"), Ok(()));
        assert_eq!(channel.receive(), Received::Item("b"));
        assert_eq!(channel.stats().received, 2);
    }

    #[test]
    fn what_was_kept_for_the_dead_is_for_the_living() {
        let mut channel = Channel::new(1);
        let dead = channel.wait(Side::Receive, 1);
        assert_eq!(channel.send("a"), Ok(()));
        assert_eq!(tell(&mut channel), [1]);
        channel.wait(Side::Receive, 2);
        channel.forget_told();
        assert_eq!(tell(&mut channel), [2]);
        assert_eq!(channel.receive_when_told(dead), Received::Empty);
        assert_eq!(channel.stats().waiting_receivers, 1);
    }

    #[test]
    fn the_end_comes_after_the_sends_that_were_waiting() {
        let mut channel = Channel::new(1);
        assert_eq!(channel.send("a"), Ok(()));
        let sender = channel.wait(Side::Send, 1);
        assert!(channel.close(Side::Send).is_empty());
        assert_eq!(channel.receive(), Received::Item("a"));
        assert_eq!(tell(&mut channel), [1]);
        let receiver = channel.wait(Side::Receive, 2);
        assert_eq!(tell(&mut channel), []);
        assert_eq!(channel.leave(Side::Send, sender), None);
        assert_eq!(tell(&mut channel), [2]);
        assert_eq!(channel.receive_when_told(receiver), Received::Ended);
    }

    #[test]
    fn without_receivers_nobody_sends() {
        let mut channel = Channel::new(1);
        assert_eq!(channel.send("a"), Ok(()));
        let sender = channel.wait(Side::Send, 1);
        assert_eq!(channel.close(Side::Receive), ["a"]);
        assert_eq!(tell(&mut channel), [1]);
        assert_eq!(
            channel.send_when_told(sender, "b"),
            Err(Refusal::Closed("b"))
        );
        assert_eq!(channel.send("c"), Err(Refusal::Closed("c")));
        assert_eq!(channel.stats().received, 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Send,
        Receive,
        /// One of those who were told runs.
        Run(prop::sample::Index),
        /// One of those who wait goes away.
        Leave(prop::sample::Index),
        Close(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            40 => Just(Step::Send),
            40 => Just(Step::Receive),
            40 => any::<prop::sample::Index>().prop_map(Step::Run),
            15 => any::<prop::sample::Index>().prop_map(Step::Leave),
            1 => any::<bool>().prop_map(Step::Close),
        ]
    }

    struct Waiting {
        name: u32,
        ticket: Ticket,
        side: Side,
        told: bool,
    }

    proptest! {
        // Against two lists, of items and of who waits: items come out in the order in which they went
        // in, each once; who is told comes first in line; nobody is told in vain; and nobody waits
        // untold who could go on.
        #[test]
        fn behaves_as_two_lists(
            capacity in 1usize..4,
            steps in prop::collection::vec(step(), 0..300),
        ) {
            let mut channel: Channel<u32, u32> = Channel::new(capacity);
            let mut items = std::collections::VecDeque::new();
            let mut line: Vec<Waiting> = Vec::new();
            let (mut sender, mut receiver) = (true, true);
            for (name, step) in steps.into_iter().enumerate() {
                let name = name as u32;
                let told = |line: &[Waiting], side| {
                    line.iter().filter(|waiting| waiting.told && waiting.side == side).count()
                };
                let waits =
                    |line: &[Waiting], side| line.iter().any(|waiting| waiting.side == side);
                match step {
                    Step::Send if sender => {
                        let outcome = channel.send(name);
                        if !receiver {
                            prop_assert_eq!(outcome, Err(Refusal::Closed(name)));
                        } else if items.len() < capacity && !waits(&line, Side::Send) {
                            prop_assert_eq!(outcome, Ok(()));
                            items.push_back(name);
                        } else {
                            prop_assert_eq!(outcome, Err(Refusal::Full(name)));
                            let ticket = channel.wait(Side::Send, name);
                            line.push(Waiting { name, ticket, side: Side::Send, told: false });
                        }
                    }
                    Step::Receive if receiver => {
                        let ended = items.is_empty()
                            && !sender
                            && !line.iter().any(|waiting| waiting.side == Side::Send);
                        let outcome = channel.receive();
                        if !items.is_empty() && !waits(&line, Side::Receive) {
                            prop_assert_eq!(Some(outcome), items.pop_front().map(Received::Item));
                        } else if ended {
                            prop_assert_eq!(outcome, Received::Ended);
                        } else {
                            prop_assert_eq!(outcome, Received::Empty);
                            let ticket = channel.wait(Side::Receive, name);
                            line.push(Waiting { name, ticket, side: Side::Receive, told: false });
                        }
                    }
                    Step::Run(index) => {
                        let told: Vec<_> = (0..line.len()).filter(|&at| line[at].told).collect();
                        if told.is_empty() {
                            continue;
                        }
                        let waiting = line.remove(*index.get(&told));
                        if waiting.side == Side::Send {
                            let outcome = channel.send_when_told(waiting.ticket, waiting.name);
                            if receiver {
                                prop_assert_eq!(outcome, Ok(()));
                                items.push_back(waiting.name);
                            } else {
                                prop_assert_eq!(outcome, Err(Refusal::Closed(waiting.name)));
                            }
                        } else {
                            let expected = items.pop_front().map(Received::Item);
                            prop_assert_eq!(
                                channel.receive_when_told(waiting.ticket),
                                expected.unwrap_or(Received::Ended)
                            );
                        }
                    }
                    Step::Leave(index) if !line.is_empty() => {
                        let waiting = line.remove(index.index(line.len()));
                        prop_assert_eq!(
                            channel.leave(waiting.side, waiting.ticket),
                            (!waiting.told).then_some(waiting.name)
                        );
                    }
                    Step::Close(true) if sender => {
                        sender = false;
                        prop_assert!(channel.close(Side::Send).is_empty());
                    }
                    Step::Close(false) if receiver => {
                        receiver = false;
                        prop_assert_eq!(channel.close(Side::Receive), std::mem::take(&mut items));
                    }
                    _ => {}
                }
                for name in tell(&mut channel) {
                    let at = line.iter().position(|waiting| waiting.name == name).unwrap();
                    prop_assert!(!line[at].told);
                    let side = line[at].side;
                    prop_assert!(
                        line[..at].iter().all(|before| before.told || before.side != side)
                    );
                    line[at].told = true;
                }
                let senders = line.iter().filter(|waiting| waiting.side == Side::Send).count();
                let over = !receiver || (!sender && senders == 0 && items.is_empty());
                for side in [Side::Send, Side::Receive] {
                    let waiting = line.iter().filter(|waiting| waiting.side == side).count();
                    let could = match side {
                        Side::Send if receiver => capacity - items.len(),
                        Side::Receive if !over => items.len(),
                        _ => usize::MAX,
                    };
                    prop_assert_eq!(told(&line, side), waiting.min(could));
                }
                prop_assert!(channel.items().eq(items.iter()));
            }
        }
    }
}
