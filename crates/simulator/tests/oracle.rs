//! The soundness oracle: exploring with reduction sees what exploring without it sees, on many random small programs and
//! on the machine that runs real code; and the parts of an exploration add up to the whole.

use std::collections::BTreeSet;

use smpcall_simulator::explorer::dpor::{self, Collected, Options, Reduction};
use smpcall_simulator::explorer::machine::{ExploredMachine, Setup};
use smpcall_simulator::explorer::report::{Exploration, Incomplete, Limits};
use smpcall_simulator::explorer::scenario::{Bounds, MemoryModel, Protocol};
use smpcall_simulator::explorer::system::System;
use smpcall_simulator::explorer::toy::{Machine, Shape, Toy};
use smpcall_simulator::explorer::{protocols, small, states};

/// How many toys the oracle tries. More take a number in the environment variable `ORACLE_TOYS`.
const TOYS: u64 = 2500;

/// Systems with more executions than this in the exploration that is trusted are left out: toys, and machines.
const MOST_EXECUTIONS: (u64, u64) = (5000, 1000);

fn toys() -> u64 {
    std::env::var("ORACLE_TOYS").ok().and_then(|count| count.parse().ok()).unwrap_or(TOYS)
}

fn options(reduction: Reduction) -> Options {
    Options { reduction, keep_going: true, ..Options::default() }
}

/// What the oracle has seen.
#[derive(Debug, Default)]
struct Totals {
    systems: u64,
    left_out: u64,
    interleavings: u64,
    sleep_set_executions: u64,
    reduced_executions: u64,
    classes: u64,
    violations: u64,
}

/// Explores with all of `reductions`, the first of which is trusted: the same classes, endings and violations, and no class
/// twice. The states engine comes to the same endings. Nothing, if the first has more than so many executions.
fn reconcile<S: System>(
    name: &str,
    factory: impl Fn() -> S + Sync,
    (reductions, most): (&[Reduction], u64),
    totals: &mut Totals,
) {
    let limits = Limits { executions: Some(most), ..Limits::default() };
    let trusted = Options { limits, ..options(reductions[0]) };
    let (whole, expected) = dpor::explore_and_collect(&factory, &trusted, &());
    if !whole.is_complete() {
        totals.left_out += 1;
        return;
    }
    assert_eq!(whole.classes, expected.classes.len() as u64, "{name}: a class was seen twice");
    totals.systems += 1;
    totals.classes += whole.classes;
    totals.violations += expected.violations.len() as u64;
    count(totals, reductions[0], &whole);
    for &reduction in &reductions[1..] {
        let (exploration, collected) = dpor::explore_and_collect(&factory, &options(reduction), &());
        assert!(exploration.is_complete(), "{name}, {reduction:?}");
        let lost = expected.classes.difference(&collected.classes).count();
        let invented = collected.classes.difference(&expected.classes).count();
        let of = expected.classes.len();
        assert_eq!((lost, invented), (0, 0), "{name}, {reduction:?}: (lost, invented) of {of} classes");
        assert_eq!(exploration.classes, whole.classes, "{name}, {reduction:?}: a class was seen twice");
        assert_eq!(exploration.endings, whole.endings, "{name}, {reduction:?}");
        assert_eq!(collected.violations, expected.violations, "{name}, {reduction:?}");
        count(totals, reduction, &exploration);
    }
    let by_states = states::Options { keep_going: true, ..states::Options::default() };
    let by_states = states::explore(&factory, &by_states, &());
    assert_eq!(by_states.endings, whole.endings, "{name}, states");
    assert_eq!(by_states.found.is_some(), whole.found.is_some(), "{name}, states");
}

fn count(totals: &mut Totals, reduction: Reduction, exploration: &Exploration) {
    match reduction {
        Reduction::Naive => totals.interleavings += exploration.executions,
        Reduction::SleepSets => totals.sleep_set_executions += exploration.executions,
        Reduction::Reduced => totals.reduced_executions += exploration.executions,
    }
}

#[test]
fn on_random_toys_reduction_sees_what_exploring_without_sees() {
    let mut totals = Totals::default();
    let all = [Reduction::Naive, Reduction::SleepSets, Reduction::Reduced];
    for seed in 0..toys() {
        let machine = Machine::random(seed, &Shape::default());
        let name = format!("toy {seed}: {machine:?}");
        reconcile(&name, || Toy::new(machine.clone()), (&all, MOST_EXECUTIONS.0), &mut totals);
    }
    println!("{totals:?}");
    assert!(totals.left_out * 5 < totals.systems, "{totals:?}");
    assert!(totals.classes > 5 * totals.systems, "{totals:?}");
    // No test of soundness, but of what the method is for: hardly anything is cut short.
    assert!(totals.reduced_executions * 10 < totals.classes * 11, "{totals:?}");
}

fn reconcile_machine(protocol: &Protocol, bounds: Bounds, memory: MemoryModel, totals: &mut Totals) {
    // What is learned about private words on the way would make footprints change.
    let setup = Setup { memory, reduce: false, ..Setup::new(bounds) };
    let name = format!("{} on {memory:?} within {bounds:?}", protocol.name);
    // Shown if it fails.
    println!("{name}");
    let factory = || ExploredMachine::new(protocol, &setup).expect("a machine");
    let reductions = [Reduction::SleepSets, Reduction::Reduced];
    reconcile(&name, factory, (&reductions, MOST_EXECUTIONS.1), totals);
}

#[test]
fn on_the_machine_reduction_sees_what_exploring_without_sees() {
    let mut totals = Totals::default();
    // Lost messages, early deadlines, ticks, wedged CPUs.
    let faults =
        [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]];
    for protocol in [small::ok(1), small::ok(2), small::irq(1), small::bug(), small::fix()]
        .iter()
        .chain(&protocols::all())
    {
        for memory in [MemoryModel::Sc, MemoryModel::Tso] {
            for [drops, expiries, ticks, wedges] in faults {
                let bounds = Bounds { drops, expiries, ticks, wedges };
                reconcile_machine(protocol, bounds, memory, &mut totals);
            }
        }
    }
    println!("{totals:?}");
    assert!(totals.systems >= 10, "{totals:?}");
}

fn shard(factory: impl Fn() -> Toy + Sync, of: usize, shard: usize) -> (Exploration, Collected) {
    let options = Options { shard: Some((shard, of)), ..options(Reduction::Reduced) };
    dpor::explore_and_collect(factory, &options, &())
}

#[test]
fn shards_add_up_to_the_whole() {
    for seed in 0..toys() / 25 {
        let machine = Machine::random(seed, &Shape { operations: 8, ..Shape::default() });
        let factory = || Toy::new(machine.clone());
        let (whole, expected) = dpor::explore_and_collect(factory, &options(Reduction::Reduced), &());
        for of in [1, 2, 8] {
            let parts: Vec<_> = (0..of).map(|index| shard(factory, of, index)).collect();
            let union = |of: fn(&Collected) -> &BTreeSet<u128>| -> BTreeSet<u128> {
                parts.iter().flat_map(|(_, collected)| of(collected).iter().copied()).collect()
            };
            assert_eq!(union(|collected| &collected.classes), expected.classes, "toy {seed} in {of}");
            let classes: u64 = parts.iter().map(|(part, _)| part.classes).sum();
            assert_eq!(classes, whole.classes, "toy {seed} in {of}: a class is in two shards");
            let endings: BTreeSet<u64> = parts.iter().flat_map(|(part, _)| part.endings.clone()).collect();
            assert_eq!(endings, whole.endings, "toy {seed} in {of}");
            let violations = parts.iter().flat_map(|(_, collected)| collected.violations.clone());
            assert_eq!(violations.collect::<BTreeSet<_>>(), expected.violations, "toy {seed} in {of}");
            let incomplete = (of > 1).then_some(Incomplete::Shard);
            assert!(parts.iter().all(|(part, _)| part.incomplete == incomplete));
        }
    }
}

#[test]
fn threads_find_what_one_finds_whatever_their_timing() {
    for seed in 0..toys() / 25 {
        let machine = Machine::random(seed, &Shape { operations: 8, ..Shape::default() });
        let factory = || Toy::new(machine.clone());
        let alone = dpor::explore_and_collect(factory, &options(Reduction::Reduced), &());
        for jobs in [2, 3] {
            let together =
                dpor::explore_and_collect(factory, &Options { jobs, ..options(Reduction::Reduced) }, &());
            assert_eq!(together.1, alone.1, "toy {seed}");
            assert_eq!(together.0.classes, alone.0.classes, "toy {seed}");
            assert_eq!(together.0.endings, alone.0.endings, "toy {seed}");
        }
        // To the first violation.
        let first = || {
            let exploration = dpor::explore(factory, &Options { jobs: 2, ..Options::default() }, &());
            (exploration.found, exploration.executions, exploration.classes, exploration.incomplete)
        };
        assert_eq!(first(), first(), "toy {seed}");
        assert_eq!(first().0.is_some(), alone.0.found.is_some(), "toy {seed}");
    }
}
