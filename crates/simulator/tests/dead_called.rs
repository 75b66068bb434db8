//! A CPU that is called while it is declared dead.

#![allow(clippy::result_large_err, reason = "sets of up to 4,096 CPUs")]

mod support;

use core::cell::Cell;

use smpcall::{CallError, HotplugError};
use smpcall_machine::InterruptsOff;
use smpcall_simulator::faults::parse;
use smpcall_simulator::{Config, program};
use support::{Calls, cpu, ms, quiet, run, took, us, world};

fn declare_dead(number: u32) -> Result<(), HotplugError> {
    // SAFETY: what it ran borrows flags, and no task migrates.
    unsafe { Calls::declare_dead(cpu(number), ms(2)) }
}

#[test]
fn who_calls_the_victim_from_a_closure_of_its_controller_is_told_when_it_is_dead() {
    let told = Cell::new(None);
    let config = Config { faults: parse("stop:cpu=1:at=100us").expect("faults"), ..quiet(3) };
    let mut world = world(&config);
    world.spawn(cpu(0), || {
        program::advance(us(200));
        let (time, result) = took(|| declare_dead(1));
        assert_eq!(result, Ok(()));
        // As long as the CPU is asked, and the 10 ms of the fence.
        assert!(time < ms(13), "{time:?}");
    });
    world.spawn(cpu(2), || {
        program::advance(us(300));
        let inner = Calls::for_ever().call(cpu(0), || {
            let mut guard = InterruptsOff::new();
            Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(1), || ())
        });
        told.set(Some(inner));
    });
    run(&mut world);
    assert_eq!(told.get(), Some(Ok(Err(CallError::Offline))));
}
