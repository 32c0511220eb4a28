//! The algorithms against backends in simulated time.
//!
//! A backend has so many servers, and operations take a log-normal time; beyond the servers they queue, and beyond some
//! number in flight each of them gets slower, as of threads that fight for locks and memory. Its clients always have more
//! to do, unless a load says otherwise.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::aimd::Aimd;
use super::gradient2::Gradient2;
use super::vegas::Vegas;
use super::{Adaptive, Algorithm, Outcome};

const SECOND: i64 = 1_000_000_000;
const MILLI: i64 = 1_000_000;

/// Random numbers that are the same every time (splitmix64).
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[derive(Debug, Clone, Copy)]
struct Backend {
    servers: usize,
    /// Mean nanoseconds of an operation.
    service: f64,
    /// The standard deviation of the logarithm.
    noise: f64,
    /// In flight beyond so many times the servers each gets slower, in proportion.
    thrash: f64,
    /// Operations that queue beyond these are refused at once.
    room: usize,
    /// Nanoseconds that clients wait for; who is in the queue for longer gives up.
    patience: i64,
}

const PLAIN: Backend = Backend {
    servers: 20,
    service: 5e6,
    noise: 0.4,
    thrash: 3.0,
    room: usize::MAX,
    patience: i64::MAX,
};

/// The limit in a simulation.
enum Limit {
    Static(u64),
    Adaptive(Box<Adaptive>),
}

impl Limit {
    fn of(algorithm: Algorithm, initial: u64) -> Self {
        Self::Adaptive(Box::new(Adaptive::new(algorithm, 1, 1000, initial, 0)))
    }

    fn allowed(&self) -> u64 {
        match self {
            Self::Static(limit) => *limit,
            Self::Adaptive(adaptive) => adaptive.allowed(),
        }
    }
}

/// A backend, a limit in front of it, and clients.
struct Simulation {
    now: i64,
    backend: Backend,
    limit: Limit,
    dice: Dice,
    serial: u64,
    ends: BinaryHeap<Reverse<(i64, u64)>>,
    /// Of those that run: when they began in front of the backend.
    began: HashMap<u64, i64>,
    queue: VecDeque<i64>,
    running: usize,
    /// How many operations the clients would have in flight.
    load: u64,
    done: u64,
    refused: u64,
}

impl Simulation {
    fn new(backend: Backend, limit: Limit, seed: u64) -> Self {
        Self {
            now: 0,
            backend,
            limit,
            dice: Dice(seed),
            serial: 0,
            ends: BinaryHeap::new(),
            began: HashMap::new(),
            queue: VecDeque::new(),
            running: 0,
            load: u64::MAX,
            done: 0,
            refused: 0,
        }
    }

    fn in_flight(&self) -> u64 {
        (self.running + self.queue.len()) as u64
    }

    fn serve(&mut self) {
        while self.running < self.backend.servers
            && let Some(began) = self.queue.pop_front()
        {
            let sigma = self.backend.noise;
            let noise = (sigma * self.dice.normal() - sigma * sigma / 2.0).exp();
            let crowd =
                self.in_flight() as f64 / (self.backend.thrash * self.backend.servers as f64);
            let service = self.backend.service * noise * crowd.max(1.0);
            self.running += 1;
            self.serial += 1;
            self.ends
                .push(Reverse((self.now + service as i64, self.serial)));
            self.began.insert(self.serial, began);
        }
    }

    fn admit(&mut self) {
        let mut refusals = 0;
        while self.in_flight() < self.limit.allowed().min(self.load) {
            if self.queue.len() >= self.backend.room && self.running >= self.backend.servers {
                self.ended(self.now, Outcome::Drop);
                self.refused += 1;
                refusals += 1;
                // The client comes again a little later.
                if refusals > 3 {
                    break;
                }
                continue;
            }
            self.queue.push_back(self.now);
            self.serve();
        }
    }

    fn ended(&mut self, began: i64, outcome: Outcome) {
        let in_flight = self.in_flight() + 1;
        if let Limit::Adaptive(adaptive) = &mut self.limit {
            adaptive.ended(began, self.now, in_flight, outcome);
        }
    }

    /// Runs for so long, and returns the operations per second.
    fn run(&mut self, duration: i64) -> f64 {
        let (until, before) = (self.now + duration, self.done);
        self.admit();
        while let Some(Reverse((at, serial))) = self.ends.pop() {
            if at > until {
                self.ends.push(Reverse((at, serial)));
                break;
            }
            self.now = at;
            self.running -= 1;
            self.done += 1;
            while let Some(began) = self.queue.front().copied()
                && at - began > self.backend.patience
            {
                self.queue.pop_front();
                self.ended(began, Outcome::Drop);
            }
            if let Some(began) = self.began.remove(&serial) {
                self.ended(began, Outcome::Ok);
            }
            self.serve();
            self.admit();
        }
        self.now = until;
        (self.done - before) as f64 / (duration as f64 / SECOND as f64)
    }

    fn adaptive(&self) -> &Adaptive {
        match &self.limit {
            Limit::Adaptive(adaptive) => adaptive,
            Limit::Static(_) => unreachable!("the limit is a static one"),
        }
    }
}

/// The throughput of the best static limit.
fn best(backend: Backend) -> f64 {
    [0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0]
        .into_iter()
        .map(|part| {
            let limit = (backend.servers as f64 * part).round().max(1.0) as u64;
            Simulation::new(backend, Limit::Static(limit), 7).run(6 * SECOND)
        })
        .fold(0.0, f64::max)
}

const GRADIENT2: fn() -> Algorithm = || Algorithm::Gradient2(Gradient2::default());
const VEGAS: fn() -> Algorithm = || Algorithm::Vegas(Vegas::default());
const AIMD: fn() -> Algorithm = || Algorithm::Aimd(Aimd::default());

/// Settles in 10 s, and then is at least so good in each of the next four spans of 5 s.
fn follows(name: &str, simulation: &mut Simulation, share: f64) {
    let best = best(simulation.backend);
    simulation.run(10 * SECOND);
    let mut spans = Vec::new();
    for _ in 0..4 {
        spans.push((simulation.run(5 * SECOND) / best * 1000.0).round() / 1000.0);
    }
    let limit = simulation.adaptive().limit();
    println!("{name}: limit {limit:.1}, shares of the best {spans:?}");
    assert!(
        spans.iter().all(|got| *got >= share),
        "{name}: limit {limit:.1}, {spans:?} of {best:.0}/s"
    );
}

fn steps(name: &str, algorithm: fn() -> Algorithm, thrash: f64) {
    for seed in 1..3 {
        let backend = Backend { thrash, ..PLAIN };
        let mut simulation = Simulation::new(backend, Limit::of(algorithm(), 10), seed);
        follows(&format!("{name} {thrash} start"), &mut simulation, 0.9);
        simulation.backend.servers = 60;
        follows(
            &format!("{name} {thrash} three times the servers"),
            &mut simulation,
            0.9,
        );
        simulation.backend.servers = 10;
        follows(
            &format!("{name} {thrash} a sixth of them"),
            &mut simulation,
            0.9,
        );
        simulation.backend.service = 2e7;
        follows(
            &format!("{name} {thrash} four times as slow"),
            &mut simulation,
            0.9,
        );
        simulation.backend = backend;
        follows(
            &format!("{name} {thrash} as at first"),
            &mut simulation,
            0.9,
        );
    }
}

#[test]
fn gradient2_follows_a_stepped_noisy_backend() {
    for thrash in [3.0, 1.5, 1.0] {
        steps("Gradient2", GRADIENT2, thrash);
    }
}

#[test]
fn vegas_follows_a_stepped_noisy_backend() {
    for thrash in [3.0, 1.5, 1.0] {
        steps("Vegas", VEGAS, thrash);
    }
}

/// From 10 servers to 40 in 15 s, by one each half second, and back at once; again and again. Operations per second.
fn saw(simulation: &mut Simulation, teeth: usize) -> f64 {
    let mut sum = 0.0;
    for _ in 0..teeth {
        for step in 0..30 {
            simulation.backend.servers = 10 + step;
            sum += simulation.run(SECOND / 2);
        }
    }
    sum / (30 * teeth) as f64
}

#[test]
fn gradient2_and_vegas_follow_a_saw() {
    for thrash in [3.0, 1.5] {
        let backend = Backend { thrash, ..PLAIN };
        let best = [16, 20, 24, 28, 32, 40]
            .into_iter()
            .map(|limit| saw(&mut Simulation::new(backend, Limit::Static(limit), 7), 1))
            .fold(0.0, f64::max);
        for (name, algorithm) in [("Gradient2", GRADIENT2), ("Vegas", VEGAS)] {
            let mut simulation = Simulation::new(backend, Limit::of(algorithm(), 10), 1);
            saw(&mut simulation, 1);
            let share = saw(&mut simulation, 3) / best;
            println!("{name}, a saw, thrash {thrash}: share {share:.3}");
            assert!(share >= 0.9, "{name}, thrash {thrash}: {share:.3}");
        }
    }
}

#[test]
fn aimd_follows_a_backend_that_refuses() {
    for seed in 1..3 {
        let backend = Backend { room: 10, ..PLAIN };
        let mut simulation = Simulation::new(
            backend,
            Limit::of(Algorithm::Aimd(Aimd::default()), 5),
            seed,
        );
        follows("AIMD start", &mut simulation, 0.9);
        simulation.backend.servers = 60;
        follows("AIMD three times the servers", &mut simulation, 0.9);
        simulation.backend.servers = 10;
        follows("AIMD a sixth of them", &mut simulation, 0.9);
    }
}

/// From 1, and from 20 and 50 times the capacity: in 10 s it is settled, although what was let in at first takes up to 4 s.
fn leaves_a_wrong_start(name: &str, backend: Backend, algorithm: fn() -> Algorithm) {
    let best = best(backend);
    for initial in [1, 400, 1000] {
        for seed in 1..4 {
            let mut simulation = Simulation::new(backend, Limit::of(algorithm(), initial), seed);
            simulation.run(10 * SECOND);
            let limit = simulation.adaptive().limit();
            let share = simulation.run(10 * SECOND) / best;
            println!("{name} from {initial}, seed {seed}: limit {limit:.1}, share {share:.3}");
            assert!(limit < 4.0 * backend.servers as f64, "{name}: {limit:.1}");
            assert!(
                share >= 0.9,
                "{name} from {initial}, seed {seed}: {share:.3}"
            );
        }
    }
}

const SEVERE: Backend = Backend {
    thrash: 1.5,
    ..PLAIN
};

const REFUSING: Backend = Backend { room: 10, ..PLAIN };

const IMPATIENT: Backend = Backend {
    patience: 15 * MILLI,
    ..PLAIN
};

#[test]
fn gradient2_leaves_a_wrong_start() {
    for backend in [PLAIN, SEVERE, REFUSING, IMPATIENT] {
        leaves_a_wrong_start("Gradient2", backend, GRADIENT2);
    }
}

#[test]
fn vegas_leaves_a_wrong_start() {
    for backend in [PLAIN, SEVERE, REFUSING, IMPATIENT] {
        leaves_a_wrong_start("Vegas", backend, VEGAS);
    }
}

#[test]
fn aimd_leaves_a_wrong_start() {
    for backend in [REFUSING, IMPATIENT] {
        leaves_a_wrong_start("AIMD", backend, AIMD);
    }
    leaves_a_wrong_start("AIMD, three times as long is too long", PLAIN, || {
        Algorithm::Aimd(Aimd {
            too_long: 3.0 * PLAIN.service,
            ..Aimd::default()
        })
    });
}

#[test]
fn most_of_the_capacity_may_go_at_once() {
    for (name, algorithm) in [("Gradient2", GRADIENT2), ("Vegas", VEGAS)] {
        for seed in 1..4 {
            let large = Backend {
                servers: 500,
                ..PLAIN
            };
            let mut simulation = Simulation::new(large, Limit::of(algorithm(), 500), seed);
            simulation.run(5 * SECOND);
            simulation.backend.servers = 20;
            follows(
                &format!("{name}, of 500 servers 20 are left"),
                &mut simulation,
                0.9,
            );
        }
    }
}

#[test]
fn long_operations_that_become_longer_are_learnt() {
    // Each window is about as long as an operation, so hardly one begins when what is allowed has lasted for long enough.
    for (name, algorithm) in [("Gradient2", GRADIENT2), ("Vegas", VEGAS)] {
        for seed in 1..4 {
            let backend = Backend {
                service: 5e9,
                ..PLAIN
            };
            let mut simulation = Simulation::new(backend, Limit::of(algorithm(), 20), seed);
            simulation.run(600 * SECOND);
            simulation.backend.service = 2e10;
            // In the time of 60 operations; taken for a queue they keep it down for a whole hour.
            simulation.run(1200 * SECOND);
            let share = simulation.run(3600 * SECOND);
            println!("{name}, operations of 20 s: share {share:.3}");
            assert!(share > 0.9, "{name}, seed {seed}: {share:.3}");
        }
    }
}

#[test]
fn drops_of_one_moment_are_not_taken_for_many() {
    // Operations time out for a second after a backend stood still: the limit is cut per window, and not more and more.
    let mut adaptive = Adaptive::new(AIMD(), 1, 1000, 100, 0);
    for n in 0..100 {
        adaptive.ended(0, 30 * SECOND + n * 10 * MILLI, 100, Outcome::Drop);
    }
    assert!(adaptive.limit() > 30.0, "{}", adaptive.limit());
    // These began under the limit as it is, window by window.
    let mut dropping = Adaptive::new(AIMD(), 1, 1000, 1000, 0);
    for n in 0..100 {
        dropping.ended(n * 10 * MILLI, n * 10 * MILLI, 100, Outcome::Drop);
    }
    assert!(dropping.limit() < 30.0, "{}", dropping.limit());
}

#[test]
fn a_small_capacity_is_found_too() {
    for servers in [1, 2, 3] {
        for algorithm in [GRADIENT2, VEGAS] {
            let backend = Backend { servers, ..PLAIN };
            let mut simulation = Simulation::new(backend, Limit::of(algorithm(), 10), 3);
            follows(&format!("{servers} servers"), &mut simulation, 0.8);
        }
    }
}

/// 24 hours of operations of half a second, so that they are fewer, on 8 servers; the limit of every minute, by hour.
fn day(simulation: &mut Simulation) -> Vec<Vec<f64>> {
    simulation.run(60 * SECOND);
    let mut hours = Vec::new();
    for _ in 0..24 {
        let mut hour = Vec::new();
        for _ in 0..60 {
            simulation.run(60 * SECOND);
            hour.push(simulation.adaptive().limit());
        }
        hour.sort_by(f64::total_cmp);
        hours.push(hour);
    }
    hours
}

#[test]
fn a_day_leaves_it_where_it_was() {
    let backend = Backend {
        service: 5e8,
        servers: 8,
        ..PLAIN
    };
    let refusing = Backend { room: 4, ..backend };
    for (algorithm, backend) in [(GRADIENT2, backend), (VEGAS, backend), (AIMD, refusing)] {
        let mut simulation = Simulation::new(backend, Limit::of(algorithm(), 8), 5);
        let hours = day(&mut simulation);
        let medians: Vec<f64> = hours.iter().map(|hour| hour[30]).collect();
        println!("{medians:.1?}");
        assert!(
            medians.iter().all(|limit| (7.0..14.0).contains(limit)),
            "{medians:.1?}"
        );
        let far: usize = hours
            .iter()
            .flatten()
            .filter(|limit| !(6.0..16.0).contains(*limit))
            .count();
        assert!(far < 24, "{far} minutes of a day were far from it");
        if simulation.adaptive().algorithm.has_baseline() {
            let baseline = simulation.adaptive().baseline().unwrap();
            assert!((4e8..7e8).contains(&baseline), "{baseline}");
        }
    }
}

#[test]
fn little_traffic_does_not_raise_it() {
    for algorithm in [GRADIENT2, VEGAS] {
        let mut simulation = Simulation::new(PLAIN, Limit::of(algorithm(), 20), 5);
        simulation.load = 4;
        simulation.run(600 * SECOND);
        let limit = simulation.adaptive().limit();
        assert!((2.0..=20.0).contains(&limit), "{limit}");
        simulation.load = u64::MAX;
        follows("after little traffic", &mut simulation, 0.9);
    }
}

#[test]
fn a_probe_with_a_high_minimum_still_recovers() {
    // Envoy #38338: with a minimum far above the capacity the baseline was never learnt again.
    let adaptive = Adaptive::new(GRADIENT2(), 15, 1000, 20, 0);
    let mut simulation = Simulation::new(PLAIN, Limit::Adaptive(Box::new(adaptive)), 3);
    simulation.run(10 * SECOND);
    simulation.backend.servers = 4;
    simulation.run(30 * SECOND);
    assert_eq!(simulation.adaptive().limit(), 15.0);
    simulation.backend.servers = 20;
    follows("capacity is back", &mut simulation, 0.9);
}

#[test]
fn what_is_ignored_changes_nothing() {
    let mut adaptive = Adaptive::new(GRADIENT2(), 1, 100, 10, 0);
    let before = format!("{adaptive:?}");
    for n in 0..10_000 {
        assert!(!adaptive.ended(n * MILLI, n * MILLI + SECOND * 100, 10, Outcome::Ignore));
    }
    assert_eq!(format!("{adaptive:?}"), before);
}

#[test]
fn drops_alone_bring_it_down_to_the_minimum_and_not_below() {
    let mut adaptive = Adaptive::new(GRADIENT2(), 3, 100, 50, 0);
    for n in 0..1000 {
        adaptive.ended(n * MILLI * 10, n * MILLI * 10, 50, Outcome::Drop);
    }
    assert_eq!(adaptive.limit(), 3.0);
}

#[test]
fn a_clock_that_is_set_back_does_no_harm() {
    let mut adaptive = Adaptive::new(GRADIENT2(), 1, 100, 10, 0);
    for start in [1000 * SECOND, 0] {
        for n in 0..2000 {
            let began = start + n * MILLI;
            adaptive.ended(began, began + 5 * MILLI, 10, Outcome::Ok);
        }
    }
    assert!(adaptive.windows() > 20);
    assert!(
        adaptive
            .baseline()
            .is_some_and(|baseline| (4.9e6..5.1e6).contains(&baseline))
    );
}
