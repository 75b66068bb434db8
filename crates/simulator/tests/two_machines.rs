//! The scenarios that the lab kernel runs too, from the same source: the same outcome, and the same number of rings.

#[path = "../../lab/src/suites/agree/scenarios.rs"]
mod scenarios;
mod support;

use std::cell::Cell;
use std::rc::Rc;

use smpcall_machine::InterruptsOff;
use smpcall_simulator::{SimMachine, program};
use support::{Calls, Flag, Machine, cpu, quiet, run, world};

/// As the lab's idle loop: it halts, and goes offline if it is asked to.
fn idle(over: &Flag) {
    while over.get() == 0 {
        let mut guard = InterruptsOff::<SimMachine>::new();
        if Calls::may_halt(&mut guard) {
            Calls::die_if_asked(&mut guard);
            program::halt();
        }
    }
}

/// Runs it on CPU 0 of a machine whose other CPUs halt, and says how many rings it took.
fn rings_of(scenario: &scenarios::Scenario, cpus: usize) -> u64 {
    let (over, rings) = (Rc::new(Flag::new()), Cell::new(0));
    let mut world = world(&quiet(cpus));
    let of_started = Rc::clone(&over);
    world.on_start_up(move |_, _| {
        program::enable_local_apic().expect("the routing fits");
        let mut guard = InterruptsOff::<SimMachine>::new();
        Calls::start_here(&mut guard);
        drop(guard);
        SimMachine::restore_interrupts(true);
        idle(&of_started);
    });
    for number in 1..cpus as u32 {
        let over = Rc::clone(&over);
        world.spawn(cpu(number), move || idle(&over));
    }
    world.spawn(cpu(0), || {
        scenarios::settle::<SimMachine>();
        assert_eq!(scenarios::cpus::<SimMachine>(), cpus as u64);
        let before = scenarios::rings::<SimMachine>();
        assert!((scenario.run)(), "{} on {cpus} CPUs", scenario.name);
        rings.set(scenarios::rings::<SimMachine>() - before);
        over.raise();
        Calls::for_ever().call_others(|_| ()).expect("all are online");
    });
    run(&mut world);
    drop(world);
    rings.get()
}

#[test]
fn each_scenario_comes_to_what_it_does_on_the_lab_kernel_with_as_many_rings() {
    for cpus in [4, 16, 64] {
        for scenario in scenarios::all::<SimMachine>() {
            let rings = rings_of(&scenario, cpus);
            if let Some(wanted) = scenario.rings {
                assert_eq!(rings, wanted(cpus as u64), "{} on {cpus} CPUs", scenario.name);
            }
        }
    }
}
