//! The policies of report 002 beside ours: what they cost on the model, and what becomes of a stuck controller.

use std::cell::Cell;
use std::time::Duration;

use smpcall_local_apic::{IcrPolicy, Interrupt, Routing, Sender};
use smpcall_machine::{Cpu, Instant, SendError};
use smpcall_simulator::apic::IcrFault;
use smpcall_simulator::{Config, RunEnd, SimTopology, World, local_apic, program};

use crate::bus::*;

const KINDS: [(Sender, Interrupt); 4] = [
    (Sender::Ordinary, Interrupt::Fixed(RING)),
    (Sender::Ordinary, Interrupt::Nmi),
    (Sender::CrashPath, Interrupt::Fixed(RING)),
    (Sender::CrashPath, Interrupt::Nmi),
];

#[test]
fn ours_pays_one_read_for_an_idle_controller_and_solution_a_100_microseconds_before_that() {
    for policy in IcrPolicy::ALL {
        for (sender, interrupt) in KINDS {
            let (driver, tables) = machine(Routing::Physical, 0..4);
            let result = driver.under(policy, sender).send_one(&tables, Cpu::new(2), interrupt);
            assert_eq!(result, Ok(sent(1)));
            let (reads, clock_reads, time) = bus(|bus| (bus.register_reads, bus.clock_reads, bus.now));
            assert_eq!(reads, 1, "{policy} {sender:?} {interrupt:?}");
            let old_bound = policy != IcrPolicy::Ours && policy.is_bounded(sender, interrupt);
            assert_eq!(time, if old_bound { 100_000 } else { 0 }, "{policy} {sender:?} {interrupt:?}");
            assert_eq!(clock_reads > 0, old_bound, "{policy} {sender:?} {interrupt:?}");
        }
    }
}

#[test]
fn a_set_pays_for_each_command() {
    let time = |policy: IcrPolicy| {
        let (driver, tables) = machine(Routing::Physical, 0..8);
        let nmis = driver.under(policy, Sender::CrashPath).send_many(&tables, &set(1..8), Interrupt::Nmi);
        assert_eq!(nmis, Ok(sent(7)));
        Duration::from_nanos(bus(|bus| bus.now))
    };
    assert_eq!(time(IcrPolicy::Ours), Duration::ZERO);
    assert_eq!(time(IcrPolicy::Unbounded), Duration::ZERO);
    for old in [IcrPolicy::BoundedEverywhere, IcrPolicy::SeparateSenders, IcrPolicy::BoundedForNmi] {
        assert_eq!(time(old), Duration::from_micros(700), "{old}");
    }
}

#[test]
fn on_x2apic_all_policies_are_the_same() {
    for policy in IcrPolicy::ALL {
        for (sender, interrupt) in KINDS {
            let (driver, tables) = machine(Routing::X2ApicPhysical, 0..4);
            fault_cpu_0(STUCK);
            let result = driver.under(policy, sender).send_one(&tables, Cpu::new(2), interrupt);
            assert_eq!(result, Ok(sent(1)));
            assert_eq!(bus(|bus| (bus.register_reads, bus.clock_reads, bus.now)), (0, 0, 0));
        }
    }
}

#[test]
fn a_controller_that_heals_is_waited_for_by_the_old_policies() {
    for policy in IcrPolicy::ALL.into_iter().filter(|&policy| policy != IcrPolicy::Ours) {
        for (sender, interrupt) in KINDS {
            let (driver, tables) = machine(Routing::Physical, 0..4);
            fault_cpu_0(IcrFault::StuckUntil(Instant::from_nanos(50_000_000)));
            let result = driver.under(policy, sender).send_one(&tables, Cpu::new(2), interrupt);
            assert_eq!(result, Ok(sent(1)), "{policy} {sender:?} {interrupt:?}");
            assert!((50_000_000..50_200_000).contains(&bus(|bus| bus.now)), "{policy}");
            assert_eq!(bus(|bus| bus.receivers()), once_each([2]));
        }
    }
}

#[test]
fn a_bounded_policy_gives_up_on_a_controller_that_never_heals() {
    for policy in IcrPolicy::ALL {
        for (sender, interrupt) in
            KINDS.into_iter().filter(|&(sender, interrupt)| policy.is_bounded(sender, interrupt))
        {
            let (driver, tables) = machine(Routing::Physical, 0..4);
            fault_cpu_0(STUCK);
            let result = driver.under(policy, sender).send_one(&tables, Cpu::new(2), interrupt);
            assert_eq!(result, Err(SendError::ControllerBusy), "{policy} {sender:?} {interrupt:?}");
            assert!(bus(|bus| bus.now) <= 101_000_000, "{policy} {sender:?} {interrupt:?}");
            assert!(bus(|bus| bus.interrupts_enabled));
        }
    }
}

/// On the simulated machine: does a crashing CPU that sends an NMI by this policy get any further?
fn the_crash_goes_on(policy: IcrPolicy, sender: Sender) -> bool {
    let went_on = Cell::new(false);
    let mut config = Config::new(2, Routing::Flat, 1);
    config.tick = None;
    let mut world = World::new(&config).expect("a machine");
    world.spawn(Cpu::new(0), || {
        program::break_icr(Some(IcrFault::StuckUntil(Instant::from_nanos(u64::MAX))));
        let driver = local_apic();
        let result =
            driver.under(policy, sender).send_one(&SimTopology::current(), Cpu::new(1), Interrupt::Nmi);
        assert_eq!(result, Err(SendError::ControllerBusy));
        went_on.set(true);
    });
    let end = world.run(Instant::from_nanos(10_000_000_000));
    drop(world);
    assert_eq!(end, if went_on.get() { RunEnd::ProgramsEnded } else { RunEnd::Stuck }, "{policy}");
    went_on.get()
}

#[test]
fn a_crash_is_for_ever_in_the_wait_of_old_and_goes_on_by_each_solution() {
    assert!(!the_crash_goes_on(IcrPolicy::Unbounded, Sender::CrashPath));
    assert!(!the_crash_goes_on(IcrPolicy::SeparateSenders, Sender::Ordinary));
    for policy in IcrPolicy::ALL.into_iter().filter(|&policy| policy != IcrPolicy::Unbounded) {
        assert!(the_crash_goes_on(policy, Sender::CrashPath), "{policy}");
    }
}
