//! The laws on the layout of big machines, where marks are leaf bits behind a group bit: explored on a machine of 50
//! CPUs, of which only the first two or three do anything.

use smpcall_local_apic::Routing;
use smpcall_simulator::Config;
use smpcall_simulator::explorer::{Bounds, explore_on, protocols};

/// Explores a protocol on the big machine; everything within the bounds must be seen, and no law broken.
fn holds(name: &str, bounds: Bounds, at_least: usize) {
    let protocol = protocols::by_name(name).expect("a protocol of this name");
    let mut config = Config::new(50, Routing::Physical, 0);
    config.believe_hints = true;
    let exploration = explore_on(&config, protocol, bounds).expect("a machine");
    assert!(exploration.violation.is_none(), "{:#?}", exploration.violation);
    assert!(exploration.complete, "cut short after {} states", exploration.states);
    assert!(exploration.states >= at_least, "only {} states", exploration.states);
}

const ONE_OF_EACH: Bounds = Bounds { drops: 1, expiries: 1, states: 5_000_000 };
const ONE_DROP: Bounds = Bounds { drops: 1, expiries: 0, states: 5_000_000 };

#[test]
fn one_call() {
    holds("call", ONE_OF_EACH, 700);
}

#[test]
fn a_deadline_against_the_claim() {
    holds("deadline", ONE_OF_EACH, 300);
}

#[test]
fn two_callers_of_one_target() {
    holds("two-callers", ONE_DROP, 6_000);
}

#[test]
fn two_cpus_call_each_other_polling() {
    holds("mutual-polling", ONE_DROP, 10_000);
}

#[test]
fn a_call_to_two() {
    holds("many", ONE_DROP, 1_000);
}

#[test]
fn a_call_against_close() {
    holds("close", ONE_OF_EACH, 2_000);
}
