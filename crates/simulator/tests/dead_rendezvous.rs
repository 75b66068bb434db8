//! A CPU that dies in a rendezvous: where nobody needs it, it is declared dead, and keeps nobody.

#![allow(clippy::result_large_err, reason = "sets of up to 4,096 CPUs")]

mod support;

use core::cell::Cell;

use smpcall::rendezvous::Stage;
use smpcall::{Hotplug as _, RendezvousError};
use smpcall_machine::InterruptsOff;
use smpcall_simulator::{SimMachine, program};
use support::{Calls, Flag, cpu, ms, quiet, run, set, took, us, world};

/// CPU 1 dies, and CPU 2 declares it dead.
fn declare_dead() {
    // SAFETY: what it ran borrows flags, and no task migrates.
    assert_eq!(unsafe { Calls::declare_dead(cpu(1), ms(5)) }, Ok(()));
}

/// All stop once more.
fn meets_again(cpus: u32) {
    let ran = Flag::new();
    let result = Calls::within(ms(5)).rendezvous(&set((0..cpus).filter(|&cpu| cpu != 1)), |_| ran.raise());
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(ran.get(), u64::from(cpus) - 1);
}

#[test]
fn a_cpu_that_dies_before_the_run_is_declared_dead_and_the_controller_returns() {
    let (given_up, over) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || {
        let (time, result) =
            took(|| Calls::within(ms(5)).rendezvous(&set([1, 3]), |_| unreachable!("one is late")));
        let Err(RendezvousError::Late { stage: Stage::Prepare, late, .. }) = result else {
            panic!("{result:?}")
        };
        assert!(late.contains(cpu(2)));
        assert!(time < ms(40), "{time:?}");
        given_up.raise();
        over.reached(1);
        meets_again(4);
    });
    world.spawn(cpu(2), || {
        let off = InterruptsOff::<SimMachine>::new();
        program::advance(ms(1));
        // CPU 1 has come, and waits for this one. That takes 10 ms: the rendezvous is given up meanwhile.
        SimMachine::fence(cpu(1)).expect("it is not the boot CPU");
        assert_eq!(given_up.get(), 0, "the dead CPU keeps the controller");
        drop(off);
        declare_dead();
        over.raise();
    });
    run(&mut world);
}

#[test]
fn a_cpu_that_dies_in_the_run_of_others_is_declared_dead_and_the_controller_returns() {
    let (ran, over) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || {
        let result = Calls::within(ms(5)).rendezvous(&set([0]), |_| {
            SimMachine::fence(cpu(1)).expect("it is not the boot CPU");
            ran.raise();
        });
        assert!(result.is_ok(), "{result:?}");
        over.reached(1);
        meets_again(4);
    });
    world.spawn(cpu(2), || {
        ran.reached(1);
        declare_dead();
        over.raise();
    });
    run(&mut world);
}

/// Those who leave late do not disturb the next rendezvous, nor does it disturb them.
#[test]
fn rendezvous_follow_each_other_closely() {
    let met = Cell::new(0);
    for seed in 0..40 {
        let mut config = quiet(5);
        config.seed = seed;
        let count = Flag::new();
        let mut world = world(&config);
        for number in 0..5 {
            let (count, met) = (&count, &met);
            world.spawn(cpu(number), move || {
                for _ in 0..6 {
                    program::advance(us(program::random(20)));
                    let limit = us(20 + program::random(300));
                    let before = count.get();
                    let result =
                        Calls::within(limit).rendezvous(&set([number, (number + 2) % 5]), |_| count.raise());
                    match result {
                        Ok(()) => {
                            assert!(count.get() >= before + 2);
                            met.set(met.get() + 1);
                        }
                        Err(
                            RendezvousError::Late { .. }
                            | RendezvousError::Excluded(_)
                            | RendezvousError::NotSent(_),
                        ) => {}
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
            });
        }
        let before = met.get();
        run(&mut world);
        assert_eq!(count.get(), 2 * (met.get() - before), "seed {seed}: two ran each that took place");
    }
    assert!(met.get() > 100, "{} took place", met.get());
}
