//! A CPU that dies while it controls others - hotplug, a rendezvous - and one that is called while it is declared dead.

#![allow(clippy::result_large_err, reason = "sets of up to 4,096 CPUs")]

mod support;

use core::cell::Cell;

use smpcall::{CallError, ExclusiveError, Hotplug as _, HotplugError, Life, RendezvousError};
use smpcall_machine::InterruptsOff;
use smpcall_simulator::faults::parse;
use smpcall_simulator::{Config, SimMachine, program};
use support::{Calls, Flag, cpu, ms, quiet, run, set, took, us, world};

fn declare_dead(number: u32) -> Result<(), HotplugError> {
    // SAFETY: what it ran borrows flags, and no task migrates.
    unsafe { Calls::declare_dead(cpu(number), ms(2)) }
}

#[test]
fn who_declares_a_dead_controller_dead_has_its_right_and_goes_on_with_what_it_had_begun() {
    let over = Flag::new();
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || over.reached(1));
    world.spawn(cpu(1), || {
        let _ = Calls::cpu_down(cpu(3), ms(15));
        unreachable!("it dies before its deadline");
    });
    world.spawn(cpu(2), || {
        program::advance(ms(1));
        assert_eq!(Calls::life(cpu(3)), Some(Life::Asked));
        SimMachine::fence(cpu(1)).expect("it is not the boot CPU");
        let held = Err(HotplugError::Exclusive(ExclusiveError::HeldBy(cpu(1))));
        assert_eq!(Calls::cpu_down(cpu(3), ms(1)), held);
        assert_eq!(declare_dead(1), Ok(()));
        assert_eq!(Calls::life(cpu(1)), Some(Life::Offline));
        assert_eq!(Calls::cpu_down(cpu(3), ms(40)), Ok(()));
        assert_eq!(Calls::life(cpu(3)), Some(Life::Offline));
        over.raise();
    });
    world.spawn(cpu(3), || {
        // Not idle until all that has happened.
        program::advance(ms(30));
        loop {
            let mut guard = InterruptsOff::new();
            if Calls::may_halt(&mut guard) {
                Calls::die_if_asked(&mut guard);
            }
            drop(guard);
            program::advance(us(10));
        }
    });
    run(&mut world);
}

#[test]
fn a_controller_that_answers_keeps_its_right() {
    let over = Flag::new();
    let mut world = world(&quiet(4));
    world.spawn(cpu(1), || {
        let result = Calls::cpu_down(cpu(3), ms(5));
        assert!(matches!(result, Err(HotplugError::TimedOut(_))), "{result:?}");
        // Nobody has it any more.
        assert!(Calls::within(ms(5)).rendezvous(&set([1]), |_| ()).is_ok());
        over.raise();
    });
    world.spawn(cpu(2), || {
        program::advance(ms(1));
        assert_eq!(declare_dead(1), Err(HotplugError::IsAlive));
        let held = Err(HotplugError::Exclusive(ExclusiveError::HeldBy(cpu(1))));
        assert_eq!(Calls::cpu_up(cpu(3), us(10)), held, "it still has it");
        over.reached(1);
    });
    // Serves, but is never idle.
    world.spawn(cpu(3), || over.reached(1));
    run(&mut world);
}

#[test]
fn a_controller_that_dies_before_the_run_is_declared_dead_and_all_can_meet_again() {
    let over = Flag::new();
    let mut world = world(&quiet(4));
    world.spawn(cpu(1), || {
        let _ = Calls::within(ms(5)).rendezvous(&set([0, 1]), |_| unreachable!("one is late"));
        unreachable!("it dies before its deadline");
    });
    world.spawn(cpu(2), || {
        let off = InterruptsOff::<SimMachine>::new();
        program::advance(ms(1));
        // The others have come, and wait for this one. That takes 10 ms: they give up meanwhile.
        SimMachine::fence(cpu(1)).expect("it is not the boot CPU");
        drop(off);
        let result = Calls::within(ms(1)).rendezvous(&set([2]), |_| ());
        let held =
            matches!(result, Err(RendezvousError::Excluded(ExclusiveError::HeldBy(by))) if by == cpu(1));
        assert!(held, "{result:?}");
        assert_eq!(declare_dead(1), Ok(()));
        let ran = Flag::new();
        let result = Calls::within(ms(5)).rendezvous(&set([0, 2, 3]), |_| ran.raise());
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(ran.get(), 3);
        over.raise();
    });
    for other in [0, 3] {
        world.spawn(cpu(other), || over.reached(1));
    }
    run(&mut world);
}

/// Without: the closure runs on top of its controller, and waits for what only the controller can do.
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
