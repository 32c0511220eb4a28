//! What threads share, under a model checker: `make loom`.
//!
//! loom runs each of these again and again, with every order in which the threads can take their locks (with at most
//! [`PREEMPTIONS`] switches that nobody had to make), and finds whoever waits for ever. [`Parking`] and [`Bursts`] are the
//! very ones that the extension uses; around the cores stand the same few lines as there, a lock, and
//! telling outside of it.

use std::time::Duration;

use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::bursts::{Burst, Bursts};
use crate::channel::{Channel, Received, Refusal, Side};
use crate::limits::{Limits, Need, Taken};
use crate::parking::Parking;
use crate::rate::{Costs, Rates, Window};
use crate::sync::locked;
use crate::waiters::Ticket;

const PREEMPTIONS: usize = 3;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // LOOM_MAX_PREEMPTIONS says otherwise.
    builder.preemption_bound = builder.preemption_bound.or(Some(PREEMPTIONS));
    builder.check(body);
}

fn for_ever() -> Duration {
    Duration::MAX
}

type Core = Mutex<Channel<u32, Arc<Parking>>>;

/// As in the extension: one at a time, and outside of the lock.
fn tell_all(core: &Core) {
    loop {
        let next = locked(core).next_to_tell();
        match next {
            Some((_, _, parking)) => parking.wake(),
            None => return,
        }
    }
}

fn send(core: &Core, item: u32) -> Result<(), u32> {
    let mut told = None;
    loop {
        let parking = {
            let mut channel = locked(core);
            let sent = match told {
                Some(ticket) => channel.send_when_told(ticket, item),
                None => channel.send(item),
            };
            match sent {
                Ok(()) => break,
                Err(Refusal::Closed(item)) => return Err(item),
                Err(Refusal::Full(_)) => {}
            }
            let parking = Arc::new(Parking::default());
            told = Some(channel.wait(Side::Send, parking.clone()));
            parking
        };
        tell_all(core);
        parking.wait(for_ever());
    }
    tell_all(core);
    Ok(())
}

fn receive(core: &Core) -> Option<u32> {
    let mut told = None;
    loop {
        let parking = {
            let mut channel = locked(core);
            let received = match told {
                Some(ticket) => channel.receive_when_told(ticket),
                None => channel.receive(),
            };
            match received {
                Received::Item(item) => {
                    drop(channel);
                    tell_all(core);
                    return Some(item);
                }
                Received::Ended => {
                    drop(channel);
                    tell_all(core);
                    return None;
                }
                Received::Empty => {}
            }
            let parking = Arc::new(Parking::default());
            told = Some(channel.wait(Side::Receive, parking.clone()));
            parking
        };
        tell_all(core);
        parking.wait(for_ever());
    }
}

fn close(core: &Core, side: Side) -> usize {
    let lost = locked(core).close(side).len();
    tell_all(core);
    lost
}

#[test]
fn who_is_told_before_it_waits_does_not_wait() {
    model(|| {
        let parking = Arc::new(Parking::default());
        let other = parking.clone();
        let teller = thread::spawn(move || other.wake());
        assert!(parking.wait(for_ever()));
        teller.join().unwrap();
    });
}

#[test]
fn a_channel_of_one_item_hands_over_all_in_order() {
    model(|| {
        let core = Arc::new(Core::new(Channel::new(1)));
        let other = core.clone();
        let sender = thread::spawn(move || {
            for item in 1..4 {
                assert_eq!(send(&other, item), Ok(()));
            }
            close(&other, Side::Send);
        });
        assert_eq!(
            [(); 4].map(|()| receive(&core)),
            [Some(1), Some(2), Some(3), None]
        );
        sender.join().unwrap();
    });
}

#[test]
fn two_receivers_get_each_item_once() {
    model(|| {
        let core = Arc::new(Core::new(Channel::new(1)));
        let receivers = [(); 2].map(|()| {
            let core = core.clone();
            thread::spawn(move || receive(&core))
        });
        assert_eq!(send(&core, 1), Ok(()));
        assert_eq!(send(&core, 2), Ok(()));
        let mut got = receivers.map(|receiver| receiver.join().unwrap());
        got.sort_unstable();
        assert_eq!(got, [Some(1), Some(2)]);
    });
}

#[test]
fn what_was_kept_for_one_who_goes_away_is_for_the_next() {
    model(|| {
        let core = Arc::new(Core::new(Channel::new(1)));
        let impatient = core.clone();
        let leaver = thread::spawn(move || {
            // Its time is up as soon as it waits, whether it was told or not.
            let ticket = {
                let mut channel = locked(&impatient);
                match channel.receive() {
                    Received::Item(_) => return true,
                    _ => channel.wait(Side::Receive, Arc::new(Parking::default())),
                }
            };
            tell_all(&impatient);
            drop(locked(&impatient).leave(Side::Receive, ticket));
            tell_all(&impatient);
            false
        });
        let sending = core.clone();
        let sender = thread::spawn(move || {
            assert_eq!(send(&sending, 1), Ok(()));
            close(&sending, Side::Send);
        });
        let got = receive(&core);
        let taken = leaver.join().unwrap();
        sender.join().unwrap();
        assert_eq!(got.is_some(), !taken);
    });
}

#[test]
fn a_sender_learns_that_nobody_receives_any_more() {
    model(|| {
        let core = Arc::new(Core::new(Channel::new(1)));
        let other = core.clone();
        let sender = thread::spawn(move || {
            (1..4)
                .take_while(|item| send(&other, *item).is_ok())
                .count()
        });
        let got = usize::from(receive(&core).is_some());
        let lost = close(&core, Side::Receive);
        let sent = sender.join().unwrap();
        // Each item that was sent was received or handed back.
        assert_eq!(sent, got + lost);
        assert!(sent < 3);
    });
}

// --- permits ---------------------------------------------------------------------------------------

type Permits = Mutex<Limits<Arc<Parking>>>;

const ONE: [Need; 1] = [Need {
    resource: 0,
    weight: 1,
}];

fn grant_all(permits: &Permits) {
    loop {
        let next = locked(permits).grant();
        match next {
            Some((_, parking)) => parking.wake(),
            None => return,
        }
    }
}

enum Entered {
    Inside,
    Waiting(Ticket, Arc<Parking>),
    /// It is closed.
    Refused,
}

fn enter(permits: &Permits) -> Entered {
    let mut limits = locked(permits);
    if limits.try_acquire(&ONE) {
        return Entered::Inside;
    }
    if limits.refusal(&ONE).is_some() {
        return Entered::Refused;
    }
    let parking = Arc::new(Parking::default());
    Entered::Waiting(limits.push(&ONE, 0, 0, parking.clone()), parking)
}

fn leave(permits: &Permits) {
    assert_eq!(locked(permits).release(&ONE), Ok(()));
    grant_all(permits);
}

fn visit(permits: &Permits, inside: &Mutex<u32>) {
    if let Entered::Waiting(ticket, parking) = enter(permits) {
        parking.wait(for_ever());
        assert!(matches!(locked(permits).take(ticket, 0), Taken::Granted));
    }
    {
        let mut inside = locked(inside);
        *inside += 1;
        assert_eq!(*inside, 1, "more than one permit");
    }
    *locked(inside) -= 1;
    leave(permits);
}

fn at_rest(permits: &Permits) {
    let limits = locked(permits);
    assert_eq!((limits.usage(0), limits.waiting()), ((1, 0), 0));
}

#[test]
fn one_permit_is_held_by_one_thread() {
    model(|| {
        let shared = Arc::new((Permits::new(Limits::new([1], usize::MAX)), Mutex::new(0)));
        let others = [(); 2].map(|()| {
            let shared = shared.clone();
            thread::spawn(move || visit(&shared.0, &shared.1))
        });
        visit(&shared.0, &shared.1);
        for other in others {
            other.join().unwrap();
        }
        at_rest(&shared.0);
    });
}

#[test]
fn a_grant_to_one_who_is_cancelled_goes_on_to_the_next() {
    model(|| {
        let shared = Arc::new((Permits::new(Limits::new([1], usize::MAX)), Mutex::new(0)));
        let cancelled = shared.clone();
        let leaver = thread::spawn(move || {
            match enter(&cancelled.0) {
                Entered::Inside => leave(&cancelled.0),
                Entered::Waiting(ticket, _) => {
                    // Granted by now, or not.
                    drop(locked(&cancelled.0).leave(ticket));
                    grant_all(&cancelled.0);
                }
                Entered::Refused => {}
            }
        });
        let other = shared.clone();
        let visitor = thread::spawn(move || visit(&other.0, &other.1));
        visit(&shared.0, &shared.1);
        leaver.join().unwrap();
        visitor.join().unwrap();
        at_rest(&shared.0);
    });
}

#[test]
fn closing_lets_everybody_go() {
    model(|| {
        let permits = Arc::new(Permits::new(Limits::new([1], usize::MAX)));
        assert!(matches!(enter(&permits), Entered::Inside));
        let other = permits.clone();
        let waiter = thread::spawn(move || {
            let (ticket, parking) = match enter(&other) {
                Entered::Inside => return leave(&other),
                Entered::Refused => return,
                Entered::Waiting(ticket, parking) => (ticket, parking),
            };
            parking.wait(for_ever());
            let taken = locked(&other).take(ticket, 0);
            if matches!(taken, Taken::Granted) {
                leave(&other);
            }
        });
        let closing = permits.clone();
        let closer = thread::spawn(move || {
            locked(&closing).close();
            grant_all(&closing);
        });
        leave(&permits);
        waiter.join().unwrap();
        closer.join().unwrap();
    });
}

// --- rates -----------------------------------------------------------------------------------------

#[test]
fn whoever_looks_admits_everybody_whose_time_has_come() {
    model(|| {
        let window = Window::new(1.0, 1.0, 1).unwrap();
        let mut rates: Rates<Arc<Parking>> = Rates::new(vec![window]);
        rates.observe(0);
        assert!(rates.try_take(&Costs::One(1)).is_some());
        let rates = Arc::new(Mutex::new(rates));
        let waiters = [(); 2].map(|()| {
            let parking = Arc::new(Parking::default());
            let ticket = locked(&rates).push(Costs::One(1), 0, parking.clone());
            (ticket, parking)
        });
        // Two loops' alarms ring at once, each with a clock of its own.
        let alarms = [1, 2].map(|second| {
            let rates = rates.clone();
            thread::spawn(move || {
                locked(&rates).observe(second * 1_000_000_000);
                loop {
                    let next = locked(&rates).admit();
                    match next {
                        Some((_, parking)) => parking.wake(),
                        None => return,
                    }
                }
            })
        });
        let (first, parking) = &waiters[0];
        parking.wait(for_ever());
        assert!(locked(&rates).take(*first).is_some());
        for alarm in alarms {
            alarm.join().unwrap();
        }
        let left = usize::from(locked(&rates).take(waiters[1].0).is_none());
        assert_eq!(locked(&rates).len(), left);
    });
}

// --- letters to a loop -----------------------------------------------------------------------------

/// A loop that runs what it is called about, until it closes.
#[derive(Default)]
struct Loop {
    called: Vec<Burst<u32>>,
    closed: bool,
}

#[derive(Default)]
struct Fate {
    told: Vec<u32>,
    lost: Vec<u32>,
    calls: usize,
}

struct Office {
    bursts: Bursts<u32>,
    event_loop: Mutex<Loop>,
    fate: Mutex<Fate>,
}

impl Office {
    fn post(&self, letter: u32) {
        let Some(burst) = self.bursts.post(7, letter) else {
            return;
        };
        let refused = {
            let mut event_loop = locked(&self.event_loop);
            if event_loop.closed {
                Some(burst)
            } else {
                event_loop.called.push(burst);
                None
            }
        };
        locked(&self.fate).calls += 1;
        if let Some(burst) = refused {
            let letters = self.bursts.close(&burst);
            locked(&self.fate).lost.extend(letters);
        }
    }

    fn turn(&self) {
        let called = std::mem::take(&mut locked(&self.event_loop).called);
        for burst in called {
            let letters = self.bursts.close(&burst);
            locked(&self.fate).told.extend(letters);
        }
    }

    fn shut(&self) {
        let called = {
            let mut event_loop = locked(&self.event_loop);
            event_loop.closed = true;
            std::mem::take(&mut event_loop.called)
        };
        for burst in called {
            let letters = self.bursts.close(&burst);
            locked(&self.fate).lost.extend(letters);
        }
    }
}

#[test]
fn each_letter_is_told_or_lost_once() {
    model(|| {
        let office = Arc::new(Office {
            bursts: Bursts::new(),
            event_loop: Mutex::default(),
            fate: Mutex::default(),
        });
        let posters = [[1, 2], [3, 4]].map(|letters| {
            let office = office.clone();
            thread::spawn(move || letters.map(|letter| office.post(letter)))
        });
        office.turn();
        office.shut();
        for poster in posters {
            poster.join().unwrap();
        }
        let fate = locked(&office.fate);
        let mut all: Vec<u32> = fate.told.iter().chain(&fate.lost).copied().collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4]);
        assert!(fate.calls <= 4);
    });
}
