//! Charges, waiting, giving back, clocks; and that no window ever lets more through than promised.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000_000;

fn rates(windows: &[(f64, f64, u64)]) -> Rates<u32> {
    let windows = windows
        .iter()
        .map(|&(limit, per, burst)| Window::new(limit, per, burst).unwrap());
    let mut rates = Rates::new(windows.collect());
    rates.observe(0);
    rates
}

fn admit_all(rates: &mut Rates<u32>) -> Vec<u32> {
    std::iter::from_fn(|| rates.admit().map(|(_, waiter)| waiter)).collect()
}

#[test]
fn a_burst_and_then_the_rate() {
    let mut rates = rates(&[(10.0, 1.0, 3)]);
    let cost = Costs::One(1);
    assert!((0..3).all(|_| rates.try_take(&cost).is_some()));
    assert_eq!(rates.try_take(&cost), None);
    for n in 0..3 {
        rates.push(cost.clone(), 0, n);
    }
    assert_eq!(admit_all(&mut rates), []);
    // The timer is late by as much as lets it admit more than one.
    assert_eq!(rates.next(), Some(SECOND / 10 + BATCH));
    rates.observe(SECOND / 10 - 1);
    assert_eq!(admit_all(&mut rates), []);
    rates.observe(SECOND / 10);
    assert_eq!(admit_all(&mut rates), [0]);
    rates.observe(3 * SECOND / 10);
    assert_eq!(admit_all(&mut rates), [1, 2]);
    assert_eq!(rates.tally().waited_ns, 7 * 100_000_000);
}

#[test]
fn intervals_that_are_no_whole_nanoseconds_do_not_drift() {
    let mut rates = rates(&[(3.0, 1.0, 2)]);
    let mut at = 0;
    for n in 0..3_000_000u32 {
        rates.push(Costs::One(1), 0, n);
        at = rates.next().unwrap().max(at);
        rates.observe(at);
        assert_eq!(
            rates
                .admit()
                .map(|(ticket, _)| rates.take(ticket).is_some()),
            Some(true)
        );
    }
    let ideal = 2_999_998 * SECOND / 3;
    assert!((ideal..ideal + 1000).contains(&at), "{at}");
}

#[test]
fn the_narrowest_window_decides() {
    let mut rates = rates(&[(10.0, 1.0, 10), (12.0, 60.0, 12)]);
    let both: Costs = [1, 1].into_iter().collect();
    for _ in 0..10 {
        assert!(rates.try_take(&both).is_some());
    }
    rates.push(both.clone(), 0, 0);
    assert_eq!(rates.next(), Some(SECOND / 10));
    rates.observe(SECOND);
    assert_eq!(admit_all(&mut rates), [0]);
    assert!(rates.try_take(&both).is_some());
    assert_eq!(rates.try_take(&both), None);
    // A request that costs nothing in the empty window does not wait for it.
    assert!(rates.try_take(&[1, 0].into_iter().collect()).is_some());
    rates.push(both, 0, 1);
    assert_eq!(rates.next(), Some(5 * SECOND));
}

#[test]
fn heavy_ones_are_not_passed_and_who_leaves_pulls_the_rest_forward() {
    let mut rates = rates(&[(10.0, 1.0, 10)]);
    assert!(rates.try_take(&Costs::One(10)).is_some());
    let heavy = rates.push(Costs::One(10), 0, 0);
    for n in 1..4 {
        rates.push(Costs::One(1), 0, n);
    }
    let urgent = rates.push(Costs::One(2), 5, 9);
    assert_eq!(rates.next(), Some(SECOND / 5 + 2 * BATCH));
    assert_eq!(rates.leave(urgent), Left::Waiting(9));
    assert_eq!(rates.leave(urgent), Left::Nothing);
    assert_eq!(rates.next(), Some(SECOND));
    rates.observe(SECOND / 2);
    assert_eq!(admit_all(&mut rates), []);
    assert_eq!(rates.leave(heavy), Left::Waiting(0));
    assert_eq!(admit_all(&mut rates), [1, 2, 3]);
}

#[test]
fn what_was_admitted_to_somebody_who_left_is_given_back() {
    let mut rates = rates(&[(1.0, 1.0, 1)]);
    assert!(rates.try_take(&Costs::One(1)).is_some());
    let first = rates.push(Costs::One(1), 0, 0);
    let second = rates.push(Costs::One(1), 0, 1);
    rates.observe(SECOND);
    assert_eq!(rates.admit().map(|(ticket, _)| ticket), Some(first));
    assert!(rates.admit().is_none());
    assert_eq!(rates.leave(first), Left::GivenBack);
    assert_eq!(rates.admit().map(|(ticket, _)| ticket), Some(second));
    assert_eq!(rates.take(first), None);
    assert!(rates.take(second).is_some());
    assert_eq!(rates.tally().cancelled, 1);
    assert_eq!(rates.tally().admitted, 2);
}

#[test]
fn reservations_stand_behind_those_who_wait() {
    let mut rates = rates(&[(1.0, 1.0, 1)]);
    let cost = Costs::One(1);
    assert_eq!(rates.reserve(&cost, 0).0, 0);
    assert_eq!(rates.reserve(&cost, 0).0, SECOND);
    rates.push(cost.clone(), 0, 0);
    let (wait, booked) = rates.reserve(&cost, 0);
    assert_eq!(wait, 3 * SECOND);
    let (urgent, _) = rates.reserve(&cost, 1);
    assert_eq!(urgent, 2 * SECOND);
    rates.observe(2 * SECOND);
    assert_eq!(admit_all(&mut rates), []);
    rates.observe(3 * SECOND);
    assert_eq!(admit_all(&mut rates), [0]);
    rates.observe(4 * SECOND);
    assert_eq!(admit_all(&mut rates), []);
    assert!(rates.take(booked.unwrap_err()).is_some());
    assert!(rates.is_empty());
}

#[test]
fn what_cost_less_is_given_back_and_what_cost_more_is_owed() {
    let mut rates = rates(&[(100.0, 1.0, 1000)]);
    let call = rates.try_take(&Costs::One(800)).unwrap();
    let added = &mut Added::default();
    assert_eq!(rates.windows()[0].available(0), 200);
    rates.settle(call, added, 0, 800, 300);
    assert_eq!(rates.windows()[0].available(0), 700);
    rates.settle(call, added, 0, 300, 1500);
    assert_eq!(rates.windows()[0].available(0), 0);
    rates.push(Costs::One(1), 0, 0);
    assert_eq!(rates.next(), Some(501 * SECOND / 100));
}

#[test]
fn what_seemed_to_cost_more_and_did_not_is_given_back() {
    let mut rates = rates(&[(100.0, 1.0, 1000)]);
    let call = rates.try_take(&Costs::One(300)).unwrap();
    let added = &mut Added::default();
    rates.observe(SECOND);
    assert!(rates.try_take(&Costs::One(200)).is_some());
    rates.settle(call, added, 0, 300, 400);
    rates.settle(call, added, 0, 400, 1500);
    // 100 of the 300 have been paid for by time; 200 and 200 and 1200 are owed.
    assert_eq!(rates.windows()[0].available(SECOND), 0);
    rates.settle(call, added, 0, 1500, 350);
    assert_eq!(rates.windows()[0].available(SECOND), 550);
    rates.settle(call, added, 0, 350, 300);
    assert_eq!(rates.windows()[0].available(SECOND), 600);
    rates.settle(call, added, 0, 300, 900);
    rates.cancel(call, added, &Costs::One(900));
    assert_eq!(rates.windows()[0].available(SECOND), 800);
}

#[test]
fn what_was_given_back_counts_for_earlier_charges_too() {
    let mut rates = rates(&[(3.0, 1.0, 9)]);
    let first = rates.try_take(&Costs::One(4)).unwrap();
    rates.observe(333_333_335);
    let second = rates.try_take(&Costs::One(6)).unwrap();
    // At 7 intervals, which leaves 3 of what came before.
    assert_eq!(rates.reserve(&Costs::One(6), 0).0, 1_999_999_999);
    rates.settle(second, &mut Added::default(), 0, 6, 0);
    rates.settle(first, &mut Added::default(), 0, 4, 0);
    rates.push(Costs::One(4), 0, 0);
    assert!(rates.next() > Some(8 * SECOND / 3 - 3));
}

#[test]
fn what_has_been_paid_for_by_time_is_not_given_back() {
    let mut rates = rates(&[(1.0, 1.0, 5)]);
    let early = rates.try_take(&Costs::One(5)).unwrap();
    rates.observe(4 * SECOND);
    assert!(rates.try_take(&Costs::One(1)).is_some());
    rates.settle(early, &mut Added::default(), 0, 5, 0);
    assert_eq!(rates.windows()[0].available(4 * SECOND), 4);
}

#[test]
fn a_penalty_ends_at_the_plain_rate() {
    let mut rates = rates(&[(10.0, 1.0, 5)]);
    rates.penalise(2 * SECOND);
    for n in 0..3 {
        rates.push(Costs::One(1), 0, n);
    }
    rates.observe(2 * SECOND - 1);
    assert_eq!(admit_all(&mut rates), []);
    rates.observe(2 * SECOND);
    assert_eq!(admit_all(&mut rates), [0]);
    rates.observe(2 * SECOND + SECOND / 10);
    assert_eq!(admit_all(&mut rates), [1]);
}

#[test]
fn a_clock_that_is_set_back_makes_nobody_wait_longer() {
    let mut rates = rates(&[(1.0, 1.0, 2)]);
    rates.observe(1000 * SECOND);
    assert!(rates.try_take(&Costs::One(2)).is_some());
    rates.push(Costs::One(1), 0, 0);
    assert_eq!(rates.next(), Some(1001 * SECOND));
    rates.observe(5 * SECOND);
    assert_eq!(rates.next(), Some(6 * SECOND));
    // A little back is another loop's way of reading it, and earns nothing.
    rates.observe(5 * SECOND - 1000);
    rates.observe(6 * SECOND - 1);
    assert!(rates.admit().is_none());
    rates.observe(6 * SECOND);
    assert_eq!(admit_all(&mut rates), [0]);
}

#[test]
fn rates_that_cannot_be_kept_are_none() {
    for (limit, per, burst) in [
        (0.0, 1.0, 1),
        (-1.0, 1.0, 1),
        (1.0, 0.0, 1),
        (f64::NAN, 1.0, 1),
        (f64::INFINITY, 1.0, 1),
        (1.0, f64::INFINITY, 1),
        (1.0, 1.0, 0),
        (1.0, 1.0, u64::MAX),
    ] {
        assert!(
            Window::new(limit, per, burst).is_none(),
            "{limit} {per} {burst}"
        );
    }
}

#[derive(Debug, Clone)]
enum Step {
    Pass(i64),
    Take(u64, u64),
    Push(u64, u64, i64),
    Reserve(u64, u64),
    Leave(prop::sample::Index),
    Settle(prop::sample::Index, u64),
    Penalise(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let cost = || (0u64..4, 0u64..8);
    prop_oneof![
        6 => (0..SECOND).prop_map(Step::Pass),
        1 => (0..20 * SECOND).prop_map(Step::Pass),
        4 => cost().prop_map(|(a, b)| Step::Take(a, b)),
        6 => (cost(), -1i64..2).prop_map(|((a, b), p)| Step::Push(a, b, p)),
        2 => cost().prop_map(|(a, b)| Step::Reserve(a, b)),
        2 => any::<prop::sample::Index>().prop_map(Step::Leave),
        3 => (any::<prop::sample::Index>(), 0u64..4).prop_map(|(i, c)| Step::Settle(i, c)),
        1 => (0..3 * SECOND).prop_map(Step::Penalise),
    ]
}

/// A charge, or what was added to it later.
struct Event {
    at: i64,
    number: u64,
    costs: [u64; 2],
    admits: bool,
}

proptest! {
    // In no span of time that ends with an admission more than the burst and what the rate earns in it, whatever is taken,
    // waited for, reserved, given up and settled, up and down; and in line nobody is passed.
    #[test]
    fn never_more_than_promised(steps in prop::collection::vec(step(), 0..150)) {
        let bursts = [4u64, 9];
        let intervals = [SECOND / 7, SECOND / 3];
        let mut rates = rates(&[(7.0, 1.0, 4), (3.0, 1.0, 9)]);
        let mut now = 0;
        let mut events: Vec<Event> = Vec::new();
        // By the number of the charge: its costs, and what was added.
        let mut admitted: HashMap<u64, ([u64; 2], Added)> = HashMap::new();
        let mut numbers = Vec::new();
        let mut waiting: Vec<(i64, u32, Ticket, [u64; 2])> = Vec::new();
        let mut name = 0;
        for step in steps {
            match step {
                Step::Pass(ns) => now += ns,
                Step::Take(a, b) => {
                    if let Some(number) = rates.try_take(&[a, b].into_iter().collect()) {
                        prop_assert!(waiting.is_empty());
                        events.push(Event { at: now, number, costs: [a, b], admits: true });
                        admitted.insert(number, ([a, b], Added::default()));
                        numbers.push(number);
                    }
                }
                Step::Push(a, b, priority) => {
                    name += 1;
                    let ticket = rates.push([a, b].into_iter().collect(), priority, name);
                    waiting.push((-priority, name, ticket, [a, b]));
                    waiting.sort_by_key(|entry| (entry.0, entry.1));
                }
                Step::Reserve(a, b) if rates.is_empty() => {
                    let (wait, booked) = rates.reserve(&[a, b].into_iter().collect(), 0);
                    let number = booked.unwrap();
                    events.push(Event { at: now + wait, number, costs: [a, b], admits: true });
                }
                Step::Leave(index) if !waiting.is_empty() => {
                    let (_, name, ticket, _) = waiting.remove(index.index(waiting.len()));
                    prop_assert_eq!(rates.leave(ticket), Left::Waiting(name));
                }
                Step::Settle(index, real) if !numbers.is_empty() => {
                    let number = *index.get(&numbers);
                    let (costs, added) = admitted.get_mut(&number).unwrap();
                    for window in 0..2 {
                        let known = costs[window];
                        // A reservation of later was made without it.
                        if real > known && events.iter().any(|event| event.at > now) {
                            continue;
                        }
                        rates.settle(number, added, window, known, real);
                        costs[window] = real;
                        let mut less = known.saturating_sub(real);
                        for event in events.iter_mut().rev().filter(|event| event.number == number) {
                            let part = event.costs[window].min(less);
                            event.costs[window] -= part;
                            less -= part;
                        }
                        let mut costs = [0; 2];
                        costs[window] = real.saturating_sub(known);
                        events.push(Event { at: now, number, costs, admits: false });
                    }
                }
                Step::Penalise(ns) => rates.penalise(ns),
                _ => {}
            }
            rates.observe(now);
            while let Some((ticket, who)) = rates.admit() {
                let (_, first, expected, costs) = waiting.remove(0);
                prop_assert_eq!((who, ticket), (first, expected));
                let (number, _) = rates.take(ticket).unwrap();
                events.push(Event { at: now, number, costs, admits: true });
                admitted.insert(number, (costs, Added::default()));
                numbers.push(number);
            }
            prop_assert_eq!(rates.len(), waiting.len());
            if let Some(next) = rates.next() {
                prop_assert!(next > now);
            }
        }
        events.sort_by_key(|event| event.at);
        for window in 0..2 {
            for from in 0..events.len() {
                let mut sum = 0;
                for event in &events[from..] {
                    sum += event.costs[window];
                    if !event.admits || event.costs[window] == 0 {
                        continue;
                    }
                    let (begun, at) = (events[from].at, event.at);
                    let earned = (at - begun + 1) as f64 / intervals[window] as f64;
                    prop_assert!(
                        sum as f64 <= bursts[window] as f64 + earned + 1e-6,
                        "{sum} from {begun} to {at} in window {window}"
                    );
                }
            }
        }
    }

    // The line empties: the timer's time is always one at which somebody is admitted.
    #[test]
    fn the_timer_is_never_in_vain(costs in prop::collection::vec((0u64..4, 0u64..8), 1..40)) {
        let mut rates = rates(&[(7.0, 1.0, 4), (3.0, 1.0, 9)]);
        for (a, b) in &costs {
            rates.push([*a, *b].into_iter().collect(), 0, 0);
        }
        let mut timers = 0;
        admit_all(&mut rates);
        while let Some(next) = rates.next() {
            rates.observe(next);
            prop_assert!(!admit_all(&mut rates).is_empty());
            timers += 1;
        }
        prop_assert!(timers <= costs.len());
    }
}
