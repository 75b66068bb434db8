//! The laws on the layout of big machines, where marks are leaf bits behind a group bit: explored on a machine of 50
//! CPUs, of which only the first two or three do anything.

use smpcall_local_apic::Routing;
use smpcall_simulator::explorer::{Bounds, Plan, Setup, explore, protocols};

/// Explores a protocol on the big machine; everything within the bounds must be seen, and no law broken.
fn holds(name: &str, bounds: Bounds, at_least: u64) {
    let mut protocol = protocols::by_name(name).expect("a protocol of this name");
    protocol.cpus = 50;
    protocol.routing = Routing::Physical;
    let exploration = explore(&protocol, &Plan::new(Setup::new(bounds)), &()).expect("a machine");
    assert!(exploration.found.is_none(), "{:#?}", exploration.found);
    assert!(exploration.is_complete(), "cut short after {} states", exploration.states);
    println!("{name}: {} states, {:?}", exploration.states, exploration.elapsed);
    assert!(exploration.states >= at_least, "only {} states", exploration.states);
}

const ONE_OF_EACH: Bounds = Bounds { drops: 1, expiries: 1, ticks: 0, wedges: 0 };
const ONE_DROP: Bounds = Bounds { drops: 1, expiries: 0, ticks: 0, wedges: 0 };

#[test]
fn one_call() {
    holds("call", ONE_OF_EACH, 150);
}

#[test]
fn a_deadline_against_the_claim() {
    holds("deadline", ONE_OF_EACH, 80);
}

#[test]
fn two_callers_of_one_target() {
    holds("two-callers", ONE_DROP, 5_000);
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
    holds("close", ONE_OF_EACH, 1_000);
}
