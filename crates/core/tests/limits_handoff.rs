//! The hand-off between a grant, a cancellation, a time limit, a resize and a close, in every order they can come in.
//!
//! In the extension each of these is one step under a lock, and steps of different threads and tasks interleave
//! as they like. So the actors here are lists of steps, and every interleaving of the lists is played from the
//! start. In the end nobody waits, nobody holds more than it took, and all permits are home.

#![allow(clippy::let_underscore_must_use)]

use std::collections::VecDeque;

use tideloop_core::limits::{Limits, Need, Taken};
use tideloop_core::waiters::Ticket;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// A visitor takes its permits or queues.
    Come(usize),
    /// It is thrown into, wherever it is: it gives up, or leaves its body.
    Cancel(usize),
    /// Its timer fires.
    Expire(usize),
    /// The holder that was there first leaves.
    Release,
    /// Some thread makes one grant and puts it on its way.
    Grant,
    /// The delivery on its way the longest arrives.
    Deliver,
    /// It is lost instead: its loop is closed.
    Lose,
    Resize(u64),
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Visitor {
    Away,
    Waiting(Ticket),
    /// Its future is done; it will run.
    Told(Ticket),
    Inside,
    Gone,
}

struct World {
    limits: Limits<usize>,
    weights: Vec<u64>,
    visitors: Vec<Visitor>,
    on_the_way: VecDeque<(Ticket, usize)>,
    capacity: u64,
    held: u64,
    holder: bool,
}

fn needs(weight: u64) -> [Need; 1] {
    [Need {
        resource: 0,
        weight,
    }]
}

impl World {
    /// One holder inside, of all permits.
    fn new(capacity: u64, weights: &[u64]) -> Self {
        let mut limits = Limits::new([capacity], usize::MAX);
        assert!(limits.try_acquire(&needs(capacity)));
        Self {
            limits,
            weights: weights.to_vec(),
            visitors: vec![Visitor::Away; weights.len()],
            on_the_way: VecDeque::new(),
            capacity,
            held: capacity,
            holder: true,
        }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Come(who) => {
                let wants = needs(self.weights[who]);
                self.visitors[who] = if self.limits.try_acquire(&wants) {
                    self.held += self.weights[who];
                    Visitor::Inside
                } else if self.limits.refusal(&wants).is_some() {
                    Visitor::Gone
                } else {
                    Visitor::Waiting(self.limits.push(&wants, 0, 0, who))
                };
            }
            Step::Cancel(who) => self.end(who),
            Step::Expire(who) => {
                if let Visitor::Waiting(ticket) = self.visitors[who]
                    && self.limits.expire(ticket).is_some()
                {
                    self.visitors[who] = Visitor::Told(ticket);
                }
            }
            Step::Release => {
                if self.holder {
                    self.holder = false;
                    self.held -= self.capacity;
                    assert_eq!(self.limits.release(&needs(self.capacity)), Ok(()));
                }
            }
            Step::Grant => self.on_the_way.extend(self.limits.grant()),
            Step::Deliver => {
                if let Some((ticket, who)) = self.on_the_way.pop_front()
                    && self.visitors[who] == Visitor::Waiting(ticket)
                {
                    self.visitors[who] = Visitor::Told(ticket);
                }
            }
            Step::Lose => {
                if let Some((ticket, _)) = self.on_the_way.pop_front() {
                    // The visitor stays as it is: nobody runs it any more.
                    assert_eq!(self.limits.leave(ticket), None);
                }
            }
            Step::Resize(capacity) => self.limits.resize(0, capacity),
            Step::Close => self.limits.close(),
        }
        assert!(
            self.held <= self.limits.usage(0).1,
            "permits are held that are not in use"
        );
    }

    fn end(&mut self, who: usize) {
        match self.visitors[who] {
            Visitor::Waiting(ticket) | Visitor::Told(ticket) => {
                self.limits.leave(ticket);
            }
            Visitor::Inside => {
                self.held -= self.weights[who];
                assert_eq!(self.limits.release(&needs(self.weights[who])), Ok(()));
            }
            Visitor::Away | Visitor::Gone => {}
        }
        self.visitors[who] = Visitor::Gone;
    }

    /// Those who were told run; they leave what they entered.
    fn run(&mut self) -> bool {
        let mut ran = false;
        for who in 0..self.visitors.len() {
            match self.visitors[who] {
                Visitor::Told(ticket) => {
                    ran = true;
                    match self.limits.take(ticket, 0) {
                        Taken::Granted => {
                            self.held += self.weights[who];
                            self.visitors[who] = Visitor::Inside;
                        }
                        _ => self.visitors[who] = Visitor::Gone,
                    }
                }
                Visitor::Inside => {
                    ran = true;
                    self.end(who);
                }
                _ => {}
            }
        }
        ran
    }

    /// Lets everything come to its end; `lost` are the visitors whose loop is closed.
    fn settle(mut self, lossy: bool) {
        self.play(Step::Release);
        loop {
            let mut moved = self.run();
            while let Some(granted) = self.limits.grant() {
                self.on_the_way.push_back(granted);
            }
            while !self.on_the_way.is_empty() {
                self.play(Step::Deliver);
                moved = true;
            }
            if !moved {
                break;
            }
        }
        for who in 0..self.visitors.len() {
            match self.visitors[who] {
                Visitor::Gone | Visitor::Away => {}
                // Told while it was lost: it ends by being destroyed.
                Visitor::Waiting(_) if lossy => self.end(who),
                state => panic!("visitor {who} waits for ever: {state:?}"),
            }
        }
        assert_eq!(self.limits.usage(0).1, 0, "permits are lost");
        assert_eq!(self.limits.waiting(), 0);
        assert_eq!(self.held, 0);
        assert!(self.limits.grant().is_none());
    }
}

/// Plays every interleaving of the actors' steps; returns how many there are.
fn everywhere(capacity: u64, weights: &[u64], actors: &[&[Step]]) -> usize {
    fn extend(
        actors: &[&[Step]],
        at: &mut [usize],
        path: &mut Vec<Step>,
        play: &mut impl FnMut(&[Step]),
    ) {
        let mut ended = true;
        for actor in 0..actors.len() {
            if let Some(&step) = actors[actor].get(at[actor]) {
                ended = false;
                at[actor] += 1;
                path.push(step);
                extend(actors, at, path, play);
                path.pop();
                at[actor] -= 1;
            }
        }
        if ended {
            play(path);
        }
    }
    let lossy = actors.iter().any(|steps| steps.contains(&Step::Lose));
    let mut count = 0;
    let mut at = vec![0; actors.len()];
    extend(actors, &mut at, &mut Vec::new(), &mut |path| {
        count += 1;
        let mut world = World::new(capacity, weights);
        for &step in path {
            world.play(step);
        }
        world.settle(lossy);
    });
    count
}

#[test]
fn grant_and_cancel() {
    use Step::{Cancel, Come, Deliver, Grant, Release};
    let count = everywhere(
        1,
        &[1, 1],
        &[
            &[Come(0), Cancel(0)],
            &[Come(1), Cancel(1)],
            &[Release, Grant, Deliver],
            &[Grant, Deliver],
        ],
    );
    assert!(count > 2000, "{count}");
}

#[test]
fn grant_cancel_and_close() {
    use Step::{Cancel, Close, Come, Deliver, Grant, Release};
    everywhere(
        2,
        &[2, 1],
        &[
            &[Come(0), Cancel(0)],
            &[Come(1)],
            &[Release, Grant, Deliver],
            &[Close, Grant, Deliver],
        ],
    );
}

#[test]
fn grant_time_limit_and_cancel() {
    use Step::{Cancel, Come, Deliver, Expire, Grant, Release};
    everywhere(
        2,
        &[2, 1],
        &[
            &[Come(0), Expire(0)],
            &[Come(1), Cancel(1)],
            &[Cancel(0)],
            &[Release, Grant, Deliver],
        ],
    );
}

#[test]
fn grant_and_resize() {
    use Step::{Cancel, Come, Deliver, Grant, Release, Resize};
    everywhere(
        3,
        &[3, 1],
        &[
            &[Come(0), Cancel(0)],
            &[Come(1)],
            &[Release, Grant, Deliver],
            &[Resize(1), Grant, Resize(4)],
        ],
    );
}

#[test]
fn a_grant_that_is_lost_goes_to_the_next() {
    use Step::{Cancel, Come, Grant, Lose, Release};
    everywhere(
        1,
        &[1, 1, 1],
        &[
            &[Come(0), Come(1)],
            &[Come(2), Cancel(2)],
            &[Release, Grant, Lose],
        ],
    );
}
