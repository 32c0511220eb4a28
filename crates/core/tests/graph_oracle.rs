//! Graphs against an oracle that knows nothing but the rules, and looks at all nodes for every question.

mod random;

use random::Random;
use tideloop_core::graph::{Cycle, Joined, Plan, Progress, Refused, State};

/// Random graphs, each of at most `MOST` nodes at first.
const GRAPHS: u64 = 10_000;
const MOST: u64 = 20;

/// The rules, written down a second time.
#[derive(Debug, Default)]
struct Oracle {
    dependencies: Vec<Vec<u32>>,
    weights: Vec<f64>,
    priorities: Vec<i32>,
    /// What a node's rank goes by: the lengths of the ways when the run was begun, its weight if it came later.
    longest: Vec<f64>,
    states: Vec<State>,
}

impl Oracle {
    fn add(&mut self, dependencies: Vec<u32>, weight: f64, priority: i32) {
        self.dependencies.push(dependencies);
        self.weights.push(weight);
        self.priorities.push(priority);
        self.longest.push(weight);
        self.states.push(State::Waiting);
    }

    fn nodes(&self) -> std::ops::Range<u32> {
        0..self.states.len() as u32
    }

    fn depends_on(&self, node: u32, other: u32) -> bool {
        self.dependencies[node as usize]
            .iter()
            .any(|&from| from == other || self.depends_on(from, other))
    }

    fn longest_from(&self, node: u32) -> f64 {
        let behind = self
            .nodes()
            .filter(|&next| self.dependencies[next as usize].contains(&node))
            .map(|next| self.longest_from(next))
            .fold(0.0, f64::max);
        self.weights[node as usize] + behind
    }

    /// Skips what cannot run any more, however far behind.
    fn settle(&mut self) {
        while let Some(node) = self.nodes().find(|&node| {
            self.states[node as usize] == State::Waiting
                && self.dependencies[node as usize].iter().any(|&from| {
                    matches!(self.states[from as usize], State::Failed | State::Skipped)
                })
        }) {
            self.states[node as usize] = State::Skipped;
        }
    }

    fn next(&self) -> Option<u32> {
        let ready = self.nodes().filter(|&node| {
            self.states[node as usize] == State::Waiting
                && self.dependencies[node as usize]
                    .iter()
                    .all(|&from| self.states[from as usize] == State::Done)
        });
        ready.reduce(|a, b| {
            let (of_a, of_b) = (
                (self.priorities[a as usize], self.longest[a as usize]),
                (self.priorities[b as usize], self.longest[b as usize]),
            );
            if of_b > of_a { b } else { a }
        })
    }
}

/// What the machine says, in the oracle's words: it does not tell ready nodes from others that wait.
fn state(progress: &Progress, node: u32) -> State {
    match progress.state(node) {
        State::Ready => State::Waiting,
        other => other,
    }
}

fn compare(progress: &Progress, oracle: &Oracle, seed: u64) {
    for node in oracle.nodes() {
        let (is, should) = (state(progress, node), oracle.states[node as usize]);
        assert_eq!(is, should, "seed {seed}, node {node}");
    }
}

fn some_of(random: &mut Random, count: u64, within: u64) -> Vec<u32> {
    (0..random.draw() % (count + 1))
        .map(|_| (random.draw() % within.max(1)) as u32)
        .filter(|_| within > 0)
        .collect()
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut oracle = Oracle::default();
    let count = 1 + random.draw() % MOST;
    for node in 0..count {
        // With duplicates, as they come.
        let before = some_of(&mut random, 3, node);
        let weight = (random.draw() % 4) as f64;
        oracle.add(before, weight, (random.draw() % 3) as i32 - 1);
    }
    let mut plan = Plan::default();
    for node in oracle.nodes() {
        plan.add(
            oracle.weights[node as usize],
            oracle.priorities[node as usize],
        );
    }
    for node in oracle.nodes() {
        plan.link(node, oracle.dependencies[node as usize].iter().copied());
    }
    assert_eq!(plan.seal(), Ok(()));
    oracle.longest = oracle
        .nodes()
        .map(|node| oracle.longest_from(node))
        .collect();
    for node in oracle.nodes() {
        assert_eq!(plan.longest(node), oracle.longest[node as usize]);
    }
    // Some values are given, or only what some targets need is run.
    let given: Vec<u32> = match random.draw() % 3 {
        0 => some_of(&mut random, 3, count),
        _ => Vec::new(),
    };
    let targets = random
        .draw()
        .is_multiple_of(3)
        .then(|| some_of(&mut random, 2, count));
    let needed = targets.map(|targets| {
        let needed = plan.needed(targets.iter().copied(), |node| given.contains(&node));
        for node in oracle.nodes() {
            let is_needed = targets
                .iter()
                .any(|&target| target == node || needs(&oracle, target, node, &given));
            assert_eq!(needed[node as usize], is_needed, "seed {seed}, node {node}");
            if !is_needed {
                oracle.states[node as usize] = State::LeftOut;
            }
        }
        needed
    });
    for &node in &given {
        oracle.states[node as usize] = State::Done;
    }
    let mut progress = Progress::new(plan, needed.as_deref(), &given);
    let mut running: Vec<u32> = Vec::new();
    loop {
        compare(&progress, &oracle, seed);
        match random.draw() % 8 {
            0 if !running.is_empty() && oracle.states.len() < 40 => {
                // A node that runs adds another one, and maybe an edge.
                let known: Vec<u32> = oracle
                    .nodes()
                    .filter(|&node| oracle.states[node as usize] != State::LeftOut)
                    .collect();
                let before: Vec<u32> = some_of(&mut random, 2, known.len() as u64)
                    .into_iter()
                    .map(|at| known[at as usize])
                    .collect();
                let weight = (random.draw() % 4) as f64;
                let (node, _) = progress.add(&before, weight, 0);
                assert_eq!(node, oracle.states.len() as u32);
                oracle.add(before, weight, 0);
                oracle.settle();
                let (from, to) = (
                    known[random.draw() as usize % known.len()],
                    known[random.draw() as usize % known.len()],
                );
                join(&mut progress, &mut oracle, from, to, seed);
            }
            1 | 2 if !running.is_empty() => {
                let node = running.swap_remove(random.draw() as usize % running.len());
                if random.draw().is_multiple_of(8) {
                    oracle.states[node as usize] = State::Failed;
                    let before: Vec<State> = oracle.states.clone();
                    oracle.settle();
                    let mut skipped = progress.failed(node);
                    skipped.sort_unstable();
                    let expected: Vec<u32> = oracle
                        .nodes()
                        .filter(|&node| oracle.states[node as usize] != before[node as usize])
                        .collect();
                    assert_eq!(skipped, expected, "seed {seed}");
                } else {
                    oracle.states[node as usize] = State::Done;
                    progress.done(node, |_| {});
                }
            }
            _ => {
                let next = oracle.next();
                assert_eq!(progress.take(), next, "seed {seed}");
                match next {
                    Some(node) => {
                        oracle.states[node as usize] = State::Running;
                        running.push(node);
                    }
                    None if running.is_empty() => break,
                    None => {}
                }
            }
        }
    }
    assert_eq!(progress.ready(), 0);
    assert!(
        oracle.states.iter().all(|state| *state != State::Waiting),
        "seed {seed}"
    );
}

fn needs(oracle: &Oracle, target: u32, node: u32, given: &[u32]) -> bool {
    !given.contains(&target)
        && oracle.dependencies[target as usize]
            .iter()
            .any(|&from| from == node || needs(oracle, from, node, given))
}

fn join(progress: &mut Progress, oracle: &mut Oracle, from: u32, to: u32, seed: u64) {
    let known = oracle.dependencies[to as usize].contains(&from);
    let late = oracle.states[to as usize] != State::Waiting;
    let cyclic = from == to || oracle.depends_on(from, to);
    match progress.join(from, to) {
        Ok(Joined::Known) => assert!(known, "seed {seed}"),
        Err(Refused::Late(_)) => assert!(!known && late, "seed {seed}"),
        Err(Refused::Cycle(Cycle(path))) => {
            assert!(!known && !late && cyclic, "seed {seed}");
            assert_eq!((path[0], path[path.len() - 1]), (to, from));
            for pair in path.windows(2) {
                assert!(oracle.dependencies[pair[1] as usize].contains(&pair[0]));
            }
        }
        Ok(Joined::Added(_)) => {
            assert!(!known && !late && !cyclic, "seed {seed}");
            oracle.dependencies[to as usize].push(from);
            oracle.settle();
        }
    }
}

#[test]
fn ten_thousand_random_graphs_run_as_the_rules_say() {
    for seed in 0..GRAPHS {
        run(seed);
    }
}

#[test]
fn cycles_are_found_wherever_they_are_and_nowhere_else() {
    for seed in 0..GRAPHS {
        let mut random = Random(seed);
        let count = 1 + random.draw() % 12;
        let dependencies: Vec<Vec<u32>> =
            (0..count).map(|_| some_of(&mut random, 2, count)).collect();
        let mut plan = Plan::default();
        for _ in 0..count {
            plan.add(1.0, 0);
        }
        for (node, before) in dependencies.iter().enumerate() {
            plan.link(node as u32, before.iter().copied());
        }
        // A node is in a cycle if it can be reached from itself.
        let mut reaches = vec![vec![false; count as usize]; count as usize];
        for (node, before) in dependencies.iter().enumerate() {
            for &from in before {
                reaches[from as usize][node] = true;
            }
        }
        for middle in 0..count as usize {
            for from in 0..count as usize {
                for to in 0..count as usize {
                    reaches[from][to] |= reaches[from][middle] && reaches[middle][to];
                }
            }
        }
        let cyclic = (0..count as usize).any(|node| reaches[node][node]);
        match plan.seal() {
            Ok(()) => {
                assert!(!cyclic, "seed {seed}");
                let groups = plan.groups();
                assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), count as usize);
                for (at, group) in groups.iter().enumerate() {
                    for &node in group {
                        let level = |from: &u32| groups.iter().position(|it| it.contains(from));
                        let before = dependencies[node as usize].iter().filter_map(level).max();
                        assert_eq!(at, before.map_or(0, |level| level + 1), "seed {seed}");
                    }
                }
            }
            Err(Cycle(path)) => {
                assert!(cyclic, "seed {seed}");
                for (at, &node) in path.iter().enumerate() {
                    let before = path[(at + path.len() - 1) % path.len()];
                    assert!(
                        dependencies[node as usize].contains(&before),
                        "seed {seed}: {path:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn edges_that_are_added_twice_are_one() {
    let mut plan = Plan::default();
    let (a, b) = (plan.add(1.0, 0), plan.add(1.0, 0));
    plan.link(b, [a, a, a]);
    plan.seal().unwrap();
    assert_eq!((plan.edge_count(), plan.dependencies(b)), (1, &[a][..]));
    let mut progress = Progress::new(plan, None, &[]);
    assert_eq!(progress.take(), Some(a));
    let mut ready = Vec::new();
    progress.done(a, |node| ready.push(node));
    assert_eq!(ready, [b]);
}

#[test]
fn what_a_run_waited_for_is_the_chain_of_those_that_ended_last() {
    let mut plan = Plan::default();
    for _ in 0..5 {
        plan.add(1.0, 0);
    }
    plan.link(2, [0, 1]);
    plan.link(3, [1]);
    plan.link(4, [2, 3]);
    plan.seal().unwrap();
    let ends = [5, 3, 7, 9, 12];
    assert_eq!(plan.chain(|node| Some(ends[node as usize])), [1, 3, 4]);
    // A node that did not run ends the chain.
    assert_eq!(
        plan.chain(|node| (node > 1).then(|| ends[node as usize])),
        [3, 4]
    );
}

#[test]
fn stopping_skips_all_that_was_not_started() {
    let mut plan = Plan::default();
    for _ in 0..4 {
        plan.add(1.0, 0);
    }
    plan.link(2, [0]);
    plan.link(3, [2]);
    plan.seal().unwrap();
    let mut progress = Progress::new(plan, None, &[]);
    assert_eq!(progress.take(), Some(0));
    assert_eq!(progress.stop(), [1, 2, 3]);
    progress.done(0, |_| panic!("nothing becomes ready any more"));
    assert_eq!((progress.take(), progress.state(2)), (None, State::Skipped));
}
