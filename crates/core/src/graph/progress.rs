//! One run of a plan.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::plan::{Cycle, Plan};

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Depends on nodes that have not ended.
    Waiting,
    /// May run; in the heap.
    Ready,
    Running,
    /// Has ended, or its value was given: what depends on it may run.
    Done,
    /// Has ended, and what depends on it may not run.
    Failed,
    /// Never runs: something that it depends on has failed, or was skipped.
    Skipped,
    /// Not asked for.
    LeftOut,
}

/// What an edge that is added while the plan runs comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// It is there; these were skipped because of it.
    Added(Vec<u32>),
    /// There was such an edge.
    Known,
}

/// Why an edge cannot be added while the plan runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Its second node has been started, has ended, or does not run at all.
    Late(State),
    Cycle(Cycle),
}

/// Who comes first is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: i32,
    /// The bits of the length of the longest way, which are in the order of such numbers, that is, none below 0.
    longest: u64,
    node: Reverse<u32>,
}

/// A plan that runs.
#[derive(Debug, Clone)]
pub struct Progress {
    plan: Plan,
    states: Vec<State>,
    /// How many dependencies of each node have not ended.
    missing: Vec<u32>,
    ready: BinaryHeap<Rank>,
}

impl Progress {
    /// Begins a run of a sealed plan. Nodes that are `given` count as done, those that are not `needed` do not run.
    pub fn new(plan: Plan, needed: Option<&[bool]>, given: &[u32]) -> Self {
        let count = plan.len() as usize;
        let mut states = vec![State::Waiting; count];
        if let Some(needed) = needed {
            for (state, needed) in states.iter_mut().zip(needed) {
                if !needed {
                    *state = State::LeftOut;
                }
            }
        }
        for &node in given {
            states[node as usize] = State::Done;
        }
        let missing: Vec<u32> = (0..plan.len())
            .map(|node| {
                let dependencies = plan.dependencies(node);
                if given.is_empty() {
                    return dependencies.len() as u32;
                }
                let missing = dependencies
                    .iter()
                    .filter(|&&from| states[from as usize] != State::Done);
                missing.count() as u32
            })
            .collect();
        let mut this = Self {
            plan,
            states,
            missing,
            ready: BinaryHeap::new(),
        };
        let first: Vec<Rank> = (0..this.plan.len())
            .filter(|&node| this.is_waiting_for_nothing(node))
            .map(|node| this.rank(node))
            .collect();
        for rank in &first {
            this.states[rank.node.0 as usize] = State::Ready;
        }
        this.ready = BinaryHeap::from(first);
        this
    }

    fn is_waiting_for_nothing(&self, node: u32) -> bool {
        self.states[node as usize] == State::Waiting && self.missing[node as usize] == 0
    }

    fn rank(&self, node: u32) -> Rank {
        Rank {
            priority: self.plan.priority(node),
            longest: self.plan.longest(node).to_bits(),
            node: Reverse(node),
        }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn state(&self, node: u32) -> State {
        self.states[node as usize]
    }

    /// How many nodes may run.
    #[inline]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Takes the node that is to run next.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        let node = self.ready.pop()?.node.0;
        self.states[node as usize] = State::Running;
        Some(node)
    }

    /// A node has ended so that what depends on it may run. Tells which nodes became ready.
    #[inline]
    pub fn done(&mut self, node: u32, mut became_ready: impl FnMut(u32)) {
        self.states[node as usize] = State::Done;
        let mut next = self.plan.first_edge(node);
        while let Some((to, edge)) = self.plan.edge(next) {
            next = edge;
            self.missing[to as usize] -= 1;
            if self.is_waiting_for_nothing(to) {
                self.states[to as usize] = State::Ready;
                let rank = self.rank(to);
                self.ready.push(rank);
                became_ready(to);
            }
        }
    }

    /// A node has ended so that what depends on it may not run. Returns all that is skipped because of it.
    #[must_use]
    pub fn failed(&mut self, node: u32) -> Vec<u32> {
        self.states[node as usize] = State::Failed;
        let mut skipped = Vec::new();
        self.skip_behind(node, &mut skipped);
        skipped
    }

    fn skip_behind(&mut self, node: u32, skipped: &mut Vec<u32>) {
        let begin = skipped.len();
        let mut from = node;
        let mut at = begin;
        loop {
            for to in self.plan.successors(from) {
                if self.states[to as usize] == State::Waiting {
                    self.states[to as usize] = State::Skipped;
                    skipped.push(to);
                }
            }
            match skipped.get(at) {
                Some(&next) => from = next,
                None => return,
            }
            at += 1;
        }
    }

    /// Skips all that has not been started.
    #[must_use]
    pub fn stop(&mut self) -> Vec<u32> {
        self.ready.clear();
        let mut skipped = Vec::new();
        for (node, state) in self.states.iter_mut().enumerate() {
            if matches!(state, State::Waiting | State::Ready) {
                *state = State::Skipped;
                skipped.push(node as u32);
            }
        }
        skipped
    }

    /// Adds a node while the plan runs; tells whether it may run at once. It is skipped if it depends on one that
    /// has failed, was skipped, or is left out.
    pub fn add(&mut self, dependencies: &[u32], weight: f64, priority: i32) -> (u32, State) {
        let node = self.plan.add(weight, priority);
        self.plan.link(node, dependencies.iter().copied());
        let mut missing = 0;
        let mut state = State::Waiting;
        for &from in self.plan.dependencies(node) {
            match self.states[from as usize] {
                State::Done => {}
                State::Waiting | State::Ready | State::Running => missing += 1,
                State::Failed | State::Skipped | State::LeftOut => state = State::Skipped,
            }
        }
        self.missing.push(missing);
        self.states.push(state);
        if self.is_waiting_for_nothing(node) {
            state = State::Ready;
            self.states[node as usize] = state;
            let rank = self.rank(node);
            self.ready.push(rank);
        }
        (node, state)
    }

    /// Adds an edge while the plan runs.
    ///
    /// # Errors
    ///
    /// If the second node is under way, or the edge would close a cycle.
    pub fn join(&mut self, from: u32, to: u32) -> Result<Joined, Refused> {
        if self.plan.dependencies(to).contains(&from) {
            return Ok(Joined::Known);
        }
        let state = self.states[to as usize];
        if !matches!(state, State::Waiting | State::Ready) {
            return Err(Refused::Late(state));
        }
        if let Some(path) = self.plan.path(to, from) {
            return Err(Refused::Cycle(Cycle(path)));
        }
        self.plan.join(from, to);
        match self.states[from as usize] {
            State::Done => {}
            State::Waiting | State::Ready | State::Running => {
                self.missing[to as usize] += 1;
                self.unready(to);
            }
            State::Failed | State::Skipped | State::LeftOut => {
                self.unready(to);
                self.states[to as usize] = State::Skipped;
                let mut skipped = vec![to];
                self.skip_behind(to, &mut skipped);
                return Ok(Joined::Added(skipped));
            }
        }
        Ok(Joined::Added(Vec::new()))
    }

    /// A node that was ready is not any more. Seldom: the heap is made anew.
    fn unready(&mut self, node: u32) {
        if self.states[node as usize] == State::Ready {
            self.states[node as usize] = State::Waiting;
            self.ready.retain(|rank| rank.node.0 != node);
        }
    }
}
