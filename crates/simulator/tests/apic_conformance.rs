//! The conformance list, part 1: what kvm-unit-tests' `x86/apic.c` checks of sending and of NMIs, one test per line of
//! its list, on the simulated machine and through the driver where that is possible. (Modes and identifiers:
//! `apic_conformance_base.rs`; the timer: `apic_conformance_timer.rs`.)

mod conformance;

use core::sync::atomic::Ordering::{Acquire, Release};
use std::cell::{Cell, RefCell};

use conformance::{COUNTED, command, config, counted, cpu, machines, once, run, takers, us, world};
use smpcall_local_apic::{Access, DeliveryMode, Icr, Interrupt, Mode, Register, Routing, Shorthand};
use smpcall_machine::{Deadline, InterruptsOff, Machine, Word, wait};
use smpcall_simulator::{
    Config, InterruptFrame, Program, SimAccess, SimCpuSet, SimMachine, SimMemory, Stepper, World, program,
    send_interrupt, send_interrupt_to,
};

fn set(cpus: impl IntoIterator<Item = u32>) -> SimCpuSet {
    cpus.into_iter().map(cpu).collect()
}

fn send(target: u32) {
    send_interrupt(cpu(target), counted()).expect("idle");
}

/// Who takes what CPU 0 sends.
fn sent(config: &Config, send: impl Fn()) -> std::collections::BTreeMap<u32, u64> {
    let mut world = world(config);
    world.spawn(cpu(0), &send);
    run(&mut world);
    takers(&world)
}

/// `x86/apic.c`, `test_lapic_existence`.
#[test]
fn the_version_is_that_of_an_integrated_apic() {
    for config in machines(1) {
        let version = Cell::new(0);
        let mut world = world(&config);
        world.spawn(cpu(0), || version.set(SimAccess.read(Register::VERSION)));
        run(&mut world);
        assert!((0x10..=0x15).contains(&(version.get() & 0xff)), "{:#x}", version.get());
    }
}

/// `x86/apic.c`, `test_self_ipi`: by the driver, the shorthand, the own identifier, and the register of x2APIC.
#[test]
fn a_self_ipi_is_taken_exactly_once() {
    let mut ways: Vec<fn()> = vec![
        || send(0),
        || command(Icr::shorthand(DeliveryMode::Fixed, COUNTED, Shorthand::SelfOnly)),
        || command(Icr::physical(DeliveryMode::Fixed, COUNTED, 0)),
    ];
    for config in machines(4) {
        if config.routing.mode() == Mode::X2Apic {
            ways.push(|| SimAccess.write(Register::SELF_IPI, COUNTED.into()));
        }
        for (way, send) in ways.iter().enumerate() {
            assert_eq!(sent(&config, send), once([0]), "{}, way {way}", config.routing);
        }
        ways.truncate(3);
    }
}

/// `x86/apic.c`, `test_physical_broadcast`, by address.
#[test]
fn the_physical_broadcast_is_taken_by_all_once() {
    for config in machines(8) {
        let broadcast = config.routing.mode().broadcast();
        let taken = sent(&config, || command(Icr::physical(DeliveryMode::Fixed, COUNTED, broadcast)));
        assert_eq!(taken, once(0..8), "{}", config.routing);
    }
}

/// `x86/apic.c`, `test_physical_broadcast`, by shorthand; and all but self.
#[test]
fn shorthands_reach_all_or_all_the_others() {
    for config in machines(8) {
        let by =
            |shorthand| sent(&config, || command(Icr::shorthand(DeliveryMode::Fixed, COUNTED, shorthand)));
        assert_eq!(by(Shorthand::All), once(0..8), "{}", config.routing);
        assert_eq!(by(Shorthand::AllButSelf), once(1..8), "{}", config.routing);
    }
}

/// The same through the driver, which takes a shorthand if all present CPUs were started.
#[test]
fn the_driver_reaches_all_the_others_with_one_command() {
    for config in machines(8) {
        let mut world = world(&config);
        world.spawn(cpu(0), || {
            let sent = send_interrupt_to(&set(1..8), counted()).expect("idle");
            assert_eq!(sent.commands, 1);
        });
        run(&mut world);
        assert_eq!(takers(&world), once(1..8), "{}", config.routing);
        assert_eq!(world.counters().icr_writes, 1);
    }
}

/// Programs the logical identifier of the running CPU.
fn set_logical(format: u32, id: u32) {
    SimAccess.write(Register::DESTINATION_FORMAT, format);
    SimAccess.write(Register::LOGICAL_DESTINATION, id << 24);
}

/// Who takes what CPU 0 sends to `destination`, each CPU having one of these logical identifiers.
fn logical(format: u32, ids: &'static [u32], destination: u32) -> std::collections::BTreeMap<u32, u64> {
    let mut world = world(&config(ids.len(), Routing::Physical));
    for (number, &id) in ids.iter().enumerate() {
        world.spawn(cpu(number as u32), move || {
            set_logical(format, id);
            program::advance(us(10));
            if number == 0 {
                command(Icr::logical(DeliveryMode::Fixed, COUNTED, destination));
            }
        });
    }
    run(&mut world);
    takers(&world)
}

const FLAT: u32 = u32::MAX;
const CLUSTER: u32 = 0x0fff_ffff;

/// `x86/apic.c`, `test_logical_ipi_xapic`, flat: one target and two.
#[test]
fn the_flat_model_reaches_one_target_and_two() {
    let ids = &[0x01, 0x02, 0x04, 0x08, 0x10];
    for target in 0..5 {
        assert_eq!(logical(FLAT, ids, ids[target]), once([target as u32]));
    }
    assert_eq!(logical(FLAT, ids, 0x05), once([0, 2]));
    assert_eq!(logical(FLAT, ids, 0xe0), once([]), "nobody's bits");
    assert_eq!(logical(FLAT, ids, 0xff), once(0..5));
}

/// `x86/apic.c`, `test_logical_ipi_xapic`, cluster: one target and two, clusters apart.
#[test]
fn the_cluster_model_reaches_one_target_and_two_of_a_cluster() {
    let ids = &[0x01, 0x02, 0x04, 0x11, 0x12, 0xe8];
    for target in 0..6 {
        assert_eq!(logical(CLUSTER, ids, ids[target]), once([target as u32]));
    }
    assert_eq!(logical(CLUSTER, ids, 0x06), once([1, 2]));
    assert_eq!(logical(CLUSTER, ids, 0x13), once([3, 4]));
    assert_eq!(logical(CLUSTER, ids, 0x23), once([]), "an empty cluster");
    assert_eq!(logical(CLUSTER, ids, 0xff), once(0..6));
}

/// The same through the driver, on every routing: one target, and two of 8 CPUs, with exact counts.
#[test]
fn the_driver_reaches_one_target_and_two_on_every_routing() {
    for config in machines(8) {
        let to = |targets: &'static [u32]| {
            sent(&config, || {
                send_interrupt_to(&set(targets.iter().copied()), counted()).expect("idle");
            })
        };
        for targets in [&[3][..], &[3, 6], &[0, 7], &[1, 2]] {
            assert_eq!(to(targets), once(targets.iter().copied()), "{}", config.routing);
        }
    }
}

/// `x86/apic.c`, aliased logical identifiers (`test_aliased_xapic_physical_ipi` has the physical ones).
#[test]
fn aliased_logical_identifiers_all_accept() {
    assert_eq!(logical(FLAT, &[0x01, 0x02, 0x02, 0x04], 0x02), once([1, 2]));
    assert_eq!(logical(CLUSTER, &[0x01, 0x12, 0x12, 0x14], 0x12), once([1, 2]));
}

// NMIs.

thread_local! {
    /// NMIs that were taken since the test looked last.
    static NMIS: Cell<u64> = const { Cell::new(0) };
    /// Where NMIs interrupted the program: lines of this file.
    static INTERRUPTED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

fn send_nmi(target: u32) {
    send_interrupt(cpu(target), Interrupt::Nmi).expect("idle");
}

#[allow(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn note_where(frame: InterruptFrame) {
    INTERRUPTED.with_borrow_mut(|lines| lines.push(frame.source.line()));
}

/// `x86/apic.c`, `test_sti_nmi`: NMIs come all over a loop that enables interrupts, but never before the operation that
/// follows. SDM, volume 2, STI: it inhibits NMIs on the boundary after it.
#[test]
fn no_nmi_comes_in_the_shadow_of_sti() {
    INTERRUPTED.take();
    let mut config = config(2, Routing::Physical);
    config.sti_shadow = true;
    let (store, over) = (Word::<SimMemory>::new(0), Word::<SimMemory>::new(0));
    let shadowed = Cell::new(0);
    let mut world = World::new(&config).expect("a machine");
    world.set_nmi_handler(note_where);
    world.spawn(cpu(1), || {
        while over.load(Acquire) == 0 {
            drop(InterruptsOff::<SimMachine>::new());
            // What follows the STI: never interrupted. What follows that: often.
            shadowed.set(line!() + 1);
            store.store(1, Release);
            store.store(2, Release);
        }
    });
    world.spawn(cpu(0), || {
        for _ in 0..3000 {
            send_nmi(1);
            program::advance(us(2));
        }
        over.store(1, Release);
    });
    run(&mut world);
    let lines = INTERRUPTED.take();
    assert_eq!(lines.len(), 3000);
    let at = |line| lines.iter().filter(|&&interrupted| interrupted == line).count();
    assert_eq!(at(shadowed.get()), 0);
    assert!(at(shadowed.get() + 1) > 50, "{} elsewhere", at(shadowed.get() + 1));
}

fn count_nmi(_: InterruptFrame) {
    NMIS.set(NMIS.get() + 1);
}

/// `x86/apic.c`, `test_multiple_nmi`: one's own and another CPU's at about the same time, 1,000 times. One is taken, the
/// other is latched meanwhile. Only if both arrive before the CPU has taken the first, within one operation, there is
/// one latch for both; the APIC counts these.
#[test]
fn two_concurrent_nmis_are_both_taken() {
    NMIS.take();
    let (round, done) = (Word::<SimMemory>::new(0), Word::<SimMemory>::new(0));
    let rounds = 1..=1000;
    let mut world = World::new(&config(2, Routing::Physical)).expect("a machine");
    world.set_nmi_handler(count_nmi);
    world.spawn(cpu(1), || {
        for number in rounds.clone() {
            wait::<SimMachine>(&[round.equals(!0, number)], Deadline::NEVER);
            send_nmi(0);
            done.store(number, Release);
        }
    });
    world.spawn(cpu(0), || {
        let mut merged = 0;
        for number in rounds.clone() {
            round.store(number, Release);
            send_nmi(0);
            program::advance(us(10));
            wait::<SimMachine>(&[done.equals(!0, number)], Deadline::NEVER);
            let merged_so_far = program::inspect(cpu(0)).counters.ipis_merged;
            assert_eq!(NMIS.take() + merged_so_far - merged, 2, "round {number}");
            merged = merged_so_far;
        }
    });
    run(&mut world);
    assert!(world.counters().ipis_merged < 20, "{} of 1,000", world.counters().ipis_merged);
}

/// The same, step by step: the second arrives while the first's handler runs, at each of its operations.
#[test]
fn an_nmi_that_arrives_in_the_handler_of_another_is_taken_after_it() {
    fn look_around(_: InterruptFrame) {
        NMIS.set(NMIS.get() + 1);
        // Operations, for NMIs to come before.
        for _ in 0..3 {
            SimAccess.read(Register::ID);
        }
    }
    for position in 0..=3 {
        NMIS.take();
        let programs: Vec<Program<'static>> = vec![
            Box::new(|| {
                SimAccess.read(Register::ID);
            }),
            Box::new(|| {
                command(Icr::physical(DeliveryMode::Nmi, 0, 0));
                command(Icr::physical(DeliveryMode::Nmi, 0, 0));
            }),
        ];
        let mut stepper = Stepper::new(&config(2, Routing::X2ApicPhysical), programs).expect("a machine");
        stepper.set_nmi_handler(look_around);
        stepper.start();
        stepper.step(cpu(1));
        stepper.take_nmi(cpu(0));
        for _ in 0..position {
            stepper.step(cpu(0));
        }
        let in_handler = stepper.handler_depth(cpu(0)) > 0;
        stepper.step(cpu(1));
        assert_eq!(stepper.nmi_deliverable(cpu(0)), !in_handler, "position {position}");
        while stepper.handler_depth(cpu(0)) > 0 {
            stepper.step(cpu(0));
        }
        stepper.take_nmi(cpu(0));
        while !stepper.has_ended(cpu(0)) {
            stepper.step(cpu(0));
        }
        assert_eq!(NMIS.take(), 2, "position {position}");
    }
}

/// The first NMI's handler sends ten.
fn send_ten(_: InterruptFrame) {
    NMIS.set(NMIS.get() + 1);
    if NMIS.get() == 1 {
        for _ in 0..10 {
            send_nmi(0);
        }
        // Until they have all arrived.
        program::advance(us(10));
        assert_eq!(NMIS.get(), 1, "an NMI interrupted the handler of another");
    }
}

/// `x86/apic.c`, `test_pending_nmi`, 1,000 times: ten NMIs to a CPU in its NMI handler are one.
#[test]
fn ten_nmis_in_the_handler_collapse_to_one_pending() {
    NMIS.take();
    let mut world = World::new(&config(1, Routing::Physical)).expect("a machine");
    world.set_nmi_handler(send_ten);
    world.spawn(cpu(0), || {
        for round in 0..1000 {
            send_nmi(0);
            program::advance(us(30));
            assert_eq!(NMIS.take(), 2, "round {round}");
        }
    });
    run(&mut world);
    assert_eq!(world.counters().ipis_merged, 9 * 1000);
}

/// `x86/vmexit.c`, `ping` and `ping_halted`: from the write to the handler's first instruction, in virtual time. A halted
/// CPU needs what waking it costs, and nothing more.
#[test]
fn a_halted_cpu_takes_an_ipi_later_by_the_time_to_wake() {
    thread_local!(static TAKEN_AT: Cell<u64> = const { Cell::new(0) });
    fn stamp(mut frame: InterruptFrame) {
        TAKEN_AT.set(SimMachine::now().as_nanos());
        frame.end_of_interrupt();
    }
    let mut config = config(2, Routing::X2ApicPhysical);
    config.cost.jitter = 0;
    let cost = config.cost;
    let latency = |halted: bool| {
        let sent_at = Cell::new(0);
        let mut world = World::new(&config).expect("a machine");
        world.set_handler(COUNTED, stamp);
        world.spawn(cpu(1), move || if halted { program::halt() } else { program::advance(us(100)) });
        world.spawn(cpu(0), || {
            program::advance(us(10));
            send_interrupt(cpu(1), counted()).expect("idle");
            sent_at.set(SimMachine::now().as_nanos());
        });
        run(&mut world);
        TAKEN_AT.get() - sent_at.get()
    };
    assert_eq!(latency(false), cost.ipi_latency + cost.interrupt_entry);
    assert_eq!(latency(true), latency(false) + cost.wake);
}
