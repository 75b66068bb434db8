//! Deliberate faults in the code that ships: the explorer kills every one.

#[path = "mutants/calling.rs"]
mod calling;
#[path = "mutants/code.rs"]
mod code;
#[path = "mutants/kill.rs"]
mod kill;
#[path = "mutants/named.rs"]
mod named;
#[path = "mutants/purpose.rs"]
mod purpose;
#[path = "mutants/survey.rs"]
mod survey;

use std::time::Duration;

use smpcall_simulator::explorer::report::Limits;
use smpcall_simulator::explorer::{MemoryModel, Plan, Setup, explore};

use kill::{Fate, in_own_process, on_two_threads};

/// The process of one named mutant.
#[test]
#[ignore = "run by another test, with the number of a mutant"]
fn one_mutant() {
    let Ok(number) = std::env::var(kill::VARIABLE) else { return };
    let named = &named::ALL[number.parse::<usize>().expect("a number")];
    let protocol = purpose::by_name(named.by).expect("there is such a protocol");
    let mutant = named.mutant();
    let limits = Limits { time: Some(PATIENCE), ..Limits::default() };
    let (killed, complete) = kill::attempt(&protocol, named.memory, &mutant, limits);
    let incomplete = if complete { Vec::new() } else { vec![named.by.to_owned()] };
    let survived = || Fate::Survived { reached: mutant.reached(), incomplete };
    println!("{}", killed.unwrap_or_else(survived).line());
}

/// How long the explorer may look for a mutant.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn every_deliberate_fault_breaks_a_law() {
    let numbers: Vec<usize> = (0..named::ALL.len()).collect();
    let fates =
        on_two_threads(&numbers, |number| in_own_process("one_mutant", &number.to_string(), 3 * PATIENCE));
    println!(
        "{:24} {:22} {:50} {:26} law        operations, of all",
        "at", "fault", "which means", "killed by"
    );
    let (mut lengths, mut all_lengths, mut alive) = (Vec::new(), Vec::new(), Vec::new());
    let mut of_calls = Vec::new();
    for (named, fate) in named::ALL.iter().zip(fates) {
        let (place, fault, what) = (named.place(), named.fault.to_string(), named.what);
        print!("{place:24} {fault:22} {what:50} ");
        match fate {
            Fate::Killed { by, law, operations, all_operations, shortest, .. } => {
                let least = if shortest { "" } else { " or fewer" };
                println!("{by:26} {law:10} {operations}{least}, {all_operations}");
                lengths.push(operations);
                of_calls.extend(named.is_of_calls().then_some(operations));
                all_lengths.push(all_operations);
            }
            other => {
                println!("{other:?}");
                alive.push(format!("{place} {fault}: {what}: {other:?}"));
            }
        }
    }
    assert!(alive.is_empty(), "not killed: {alive:#?}");
    let [median, median_of_all, median_of_calls] = [lengths, all_lengths, of_calls].map(|mut lengths| {
        lengths.sort_unstable();
        lengths[lengths.len() / 2]
    });
    println!(
        "{} mutants, all killed. Median of the operations: {median} ({median_of_calls} for calls, posts and the driver); \
         {median_of_all} with those that nobody else can notice",
        named::ALL.len()
    );
    assert!(named::ALL.len() >= 130, "a list that shrinks");
    assert!(median_of_calls <= 15, "counterexamples that nobody reads");
    // A rendezvous takes some fifty of them, and to die and be declared dead some hundred.
    assert!(median <= 20, "counterexamples that nobody reads");
}

/// The process of one site of the survey.
#[test]
#[ignore = "run by `survey` with the number of a site"]
fn one_site() {
    let Ok(number) = std::env::var(kill::VARIABLE) else { return };
    let sites = survey::sites();
    let site = &sites[number.parse::<usize>().expect("a number")];
    println!("{}", survey::explore(site).line());
}

/// `cargo test --release -p smpcall-simulator --test mutants -- --ignored --nocapture every_fault`
#[test]
#[ignore = "takes long: run it by hand after changes of the protocol"]
fn every_fault_of_every_operation() {
    let sites = survey::sites();
    let numbers: Vec<usize> = (0..sites.len()).collect();
    let wanted = std::env::var("SMPCALL_SITES").unwrap_or_default();
    let numbers: Vec<usize> =
        numbers.into_iter().filter(|&number| sites[number].file.contains(&wanted)).collect();
    on_two_threads(&numbers, |&number| {
        let fate = in_own_process("one_site", &number.to_string(), Duration::from_secs(300));
        println!("{number} {}", survey::report(&sites[number], &fate));
    });
}

#[test]
fn without_a_fault_the_protocols_for_the_purpose_hold() {
    for protocol in purpose::all() {
        for memory in [MemoryModel::Sc, MemoryModel::Tso] {
            let mut setup = Setup::new(protocol.bounds);
            setup.memory = memory;
            let exploration = explore(&protocol, &Plan::new(setup), &()).expect("a machine");
            println!(
                "{} {memory:?}: {} states, {:?}",
                protocol.name, exploration.states, exploration.elapsed
            );
            assert_eq!(exploration.found, None, "{} {memory:?}", protocol.name);
            assert!(exploration.is_complete(), "{} {memory:?}", protocol.name);
        }
    }
}

#[test]
fn a_post_runs_before_a_call_that_takes_the_place_of_a_given_up_one() {
    let protocol = calling::stale_claim_post();
    let exploration = explore(&protocol, &Plan::new(Setup::new(protocol.bounds)), &()).expect("a machine");
    assert_eq!(exploration.found, None);
}
