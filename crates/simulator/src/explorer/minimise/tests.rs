use rand_core::Rng;
use rand_pcg::Pcg32;

use super::super::toy::{Machine, Operation, Program, Shape, Toy};
use super::samples::Offline;
use super::*;

fn found(text: &str, law: &str) -> Found {
    let schedule: Schedule = text.parse().expect("a schedule");
    Found { violation: Violation::new(law, "as found"), schedule: schedule.choices }
}

/// The violation that random decisions lead to, if they do.
fn at_random<S: System>(system: &mut S, random: &mut Pcg32) -> Option<Found> {
    let (mut schedule, mut offered) = (Vec::new(), Vec::new());
    system.restart();
    loop {
        if let Err(violation) = system.choices(&mut offered) {
            return Some(Found { violation, schedule });
        }
        if offered.is_empty() {
            return system.end().err().map(|violation| Found { violation, schedule });
        }
        let choice = offered[random.next_u32() as usize % offered.len()];
        schedule.push(choice);
        if let Err(violation) = system.perform(choice) {
            return Some(Found { violation, schedule });
        }
    }
}

/// What is promised of every result.
fn check<S: System>(system: &mut S, found: &Found, options: Options) -> Minimised {
    let minimised = minimise(system, found, options).expect("it was found");
    assert_eq!(minimised.violation.law, found.violation.law);
    assert_eq!(minimised.before, Cost::of(&found.schedule));
    assert_eq!(minimised.after, Cost::of(&minimised.schedule.choices));
    assert!(minimised.after <= minimised.before, "{minimised:?}");
    assert!(minimised.executions <= options.executions.max(2) + 2, "{minimised:?}");
    let replayed = replay(system, &minimised.schedule).expect("it is offered");
    assert_eq!(replayed.outcome, Outcome::Violated(minimised.violation.clone()));
    minimised
}

#[test]
fn costs_count_faults_then_operations_then_switches() {
    let schedule: Schedule = "0*2 1!3 0i 1x 1t 0k 0w 1f".parse().expect("a schedule");
    let cost = Cost::of(&schedule.choices);
    assert_eq!(cost, Cost { faults: 5, operations: 9, switches: 5 });
    assert_eq!(cost.to_string(), "9 operations, 5 context switches, 5 faults");
    assert!(Cost { faults: 0, operations: 9, switches: 9 } < Cost { faults: 1, operations: 1, switches: 1 });
    assert!(Cost { faults: 0, operations: 2, switches: 9 } < Cost { faults: 0, operations: 3, switches: 1 });
}

#[test]
fn every_way_into_the_offline_queue_incident_becomes_the_same_ten_operations() {
    let mut random = Pcg32::new(1, 1);
    let mut system = Offline::new(false, 0);
    let mut longest = 0;
    for _ in 0..200 {
        let Some(found) = at_random(&mut system, &mut random) else { continue };
        longest = longest.max(found.schedule.len());
        let before = system.decisions;
        let minimised = check(&mut system, &found, Options::default());
        assert_eq!(
            minimised.after,
            Cost { faults: 0, operations: 10, switches: 3 },
            "{}",
            minimised.schedule
        );
        assert!(minimised.shortest);
        // At 100 ns each, which is much: 4 ms.
        assert!(system.decisions - before < 40_000, "{}", system.decisions - before);
    }
    assert!(longest > 13, "{longest}");
}

#[test]
fn faults_that_are_not_needed_are_dropped_and_those_that_are_stay() {
    let mut random = Pcg32::new(2, 1);
    for (drains, most, needed) in [(false, 1, 0), (true, 2, 1)] {
        let mut system = Offline::new(drains, 2);
        let mut lost = 0;
        for _ in 0..200 {
            let Some(found) = at_random(&mut system, &mut random) else { continue };
            lost = lost.max(Cost::of(&found.schedule).faults);
            assert_eq!(check(&mut system, &found, Options::default()).after.faults, needed);
        }
        assert_eq!(lost, most);
    }
}

#[test]
fn a_small_budget_is_kept_and_what_was_found_until_then_counts() {
    let mut random = Pcg32::new(3, 1);
    let mut system = Offline::new(false, 1);
    let mut costs = Vec::new();
    for executions in [0, 1, 10, 100, 1000, 10_000] {
        let found = core::iter::repeat_with(|| at_random(&mut system, &mut random)).flatten().next();
        costs.push(check(&mut system, &found.expect("some are found"), Options { executions }));
    }
    assert!(costs[..3].iter().all(|minimised| !minimised.shortest));
    assert_eq!(costs[0].before, costs[0].after);
    assert!(costs[3].after < costs[3].before);
    assert!(costs[5].shortest);
}

#[test]
fn what_breaks_another_law_or_none_is_not_minimised() {
    let mut system = Offline::new(false, 0);
    let error =
        minimise(&mut system, &found("0 2 0*4 2*2 1*4 2", "L1"), Options::default()).expect_err("hang");
    assert!(
        error.to_string().starts_with("all decisions can be made, but `L1` is not what breaks: hang: nobody")
    );
    let error = minimise(&mut system, &found("0 2", "hang"), Options::default()).expect_err("too short");
    assert!(error.to_string().contains("`hang` is not what breaks: no law is broken so far"), "{error}");
}

#[test]
fn violations_of_random_programs_keep_their_law_get_no_worse_and_replay() {
    let shape = Shape { min_cpus: 2, max_cpus: 4, operations: 24 };
    let mut random = Pcg32::new(4, 1);
    let (mut minimised, mut shortest, mut before, mut after) = (0, 0, Cost::default(), Cost::default());
    for seed in 0..2000 {
        let mut toy = Toy::new(Machine::random(seed, &shape));
        let Some(found) = at_random(&mut toy, &mut random) else { continue };
        let result = check(&mut toy, &found, Options { executions: 3000 });
        minimised += 1;
        shortest += u32::from(result.shortest);
        for (sum, cost) in [(&mut before, result.before), (&mut after, result.after)] {
            sum.faults += cost.faults;
            sum.operations += cost.operations;
            sum.switches += cost.switches;
        }
    }
    assert!(minimised > 1000 && shortest > minimised / 2, "{minimised} {shortest}");
    assert!(after.switches < before.switches / 2 && after.faults < before.faults / 2, "{before}: {after}");
}

/// Whether some schedule breaks the law within these limits; by trying them all.
fn breaks_within(toy: &mut Toy, law: &str, limit: Cost, path: &mut Vec<Choice>, left: &mut u32) -> bool {
    *left = left.saturating_sub(1);
    toy.restart();
    let mut broken = path.iter().find_map(|&choice| toy.perform(choice).err());
    let mut offered = Vec::new();
    broken = broken.or_else(|| toy.choices(&mut offered).err());
    if broken.is_none() && offered.is_empty() {
        broken = toy.end().err();
    }
    if broken.is_some() || offered.is_empty() || *left == 0 {
        return broken.is_some_and(|violation| violation.law == law);
    }
    offered.into_iter().any(|choice| {
        path.push(choice);
        let cost = Cost::of(path);
        let within = cost.operations <= limit.operations && cost.faults <= limit.faults;
        let breaks = within && breaks_within(toy, law, limit, path, left);
        path.pop();
        breaks
    })
}

#[test]
fn what_is_called_the_shortest_is_the_shortest_of_all() {
    let mut random = Pcg32::new(5, 1);
    let mut proven = 0;
    for seed in 0..1000 {
        let mut toy = Toy::new(Machine::random(seed, &Shape::default()));
        let Some(found) = at_random(&mut toy, &mut random) else { continue };
        let result = check(&mut toy, &found, Options::default());
        let Some(fewer) = result.after.operations.checked_sub(1) else {
            assert!(result.shortest);
            continue;
        };
        let limit = Cost { operations: fewer, ..result.after };
        let mut left = 20_000;
        let shorter = breaks_within(&mut toy, &found.violation.law, limit, &mut Vec::new(), &mut left);
        if left > 0 {
            proven += 1;
            assert!(result.shortest && !shorter, "{seed}: {}", result.schedule);
        }
    }
    assert!(proven > 200, "{proven}");
}

#[test]
fn a_shorter_way_to_break_another_law_is_none() {
    let program = |base| Program { base, ..Program::default() };
    let never = Operation::Await { any: [Some((1, 5)), None], deadline: false };
    let machine = Machine {
        programs: vec![
            program(vec![Operation::Store(0, 1), Operation::Store(1, 1), never]),
            program(vec![Operation::Forbid(0, 1)]),
        ],
        words: 2,
        drops: 0,
        expiries: 0,
        store_buffers: false,
    };
    let mut toy = Toy::new(machine);
    // What is forbidden comes after two operations: `0 1`.
    let hang: Schedule = "1 0*2".parse().expect("a schedule");
    let replayed = replay(&mut toy, &hang).expect("it is offered");
    let Outcome::Violated(violation) = replayed.outcome else { panic!("nobody can move") };
    let minimised = check(&mut toy, &Found { violation, schedule: hang.choices.clone() }, Options::default());
    assert_eq!((minimised.schedule.choices, minimised.shortest), (hang.choices, true));
}
