//! Deliberate faults in the code that ships: the explorer kills every one.

#[path = "mutants/code.rs"]
mod code;
#[path = "mutants/kill.rs"]
mod kill;
#[path = "mutants/purpose.rs"]
mod purpose;
#[path = "mutants/survey.rs"]
mod survey;

use std::time::Duration;

use kill::{Fate, in_own_process, on_two_threads};

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

#[allow(dead_code)]
fn unused(_: Fate) {}
