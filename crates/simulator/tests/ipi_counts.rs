//! Interrupts per operation, counted: a ring only into a quiet mailbox, and as few commands to the interrupt controller
//! as the routing allows.

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::cell::Cell;

use smpcall_local_apic::Routing;
use smpcall_machine::{Deadline, InterruptsOff, Woken};
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, RING_VECTOR, SimMachine, World, program};
use support::{
    Calls, Flag, Machine, POSTS_RUN, counted, cpu, icr_writes, post_to, quiet, run, set, us, world,
};

thread_local! {
    static RESCHEDULED: Cell<u64> = const { Cell::new(0) };
}

/// How many commands the running CPU writes to its ICR while it does something.
fn commands_of<R>(what: impl FnOnce() -> R) -> u64 {
    let before = icr_writes();
    what();
    icr_writes() - before
}

#[test]
fn a_burst_of_posts_to_a_busy_cpu_sends_one_interrupt() {
    for burst in [1, 2, 1000] {
        POSTS_RUN.set(0);
        let (busy, posted) = (Flag::new(), Flag::new());
        let mut world = world(&quiet(2));
        world.spawn(cpu(1), || {
            let _off = InterruptsOff::<SimMachine>::new();
            busy.raise();
            posted.reached(1);
        });
        world.spawn(cpu(0), || {
            busy.reached(1);
            let commands = commands_of(|| (0..burst).for_each(|_| post_to(1)));
            assert_eq!(commands, 1, "a burst of {burst}");
            posted.raise();
            Calls::for_ever().call(cpu(1), || assert_eq!(POSTS_RUN.get(), burst)).expect("CPU 1 lives");
        });
        run(&mut world);
        assert_eq!(
            world.inspect(cpu(1)).counters.taken[RING_VECTOR as usize],
            1,
            "the call finds it at work"
        );
    }
}

/// Counts the commands of one call to many on an otherwise idle machine.
fn commands_of_call_to(config: &Config, targets: impl Fn(u32) -> bool) -> u64 {
    let counted = AtomicU64::new(0);
    let all = config.cpus as u32;
    let mut world = world(config);
    world.spawn(cpu(0), || {
        let targets = set((0..all).filter(|&number| targets(number)));
        let commands = commands_of(|| Calls::for_ever().call_many(&targets, |_| ()).expect("all are online"));
        counted.store(commands, Relaxed);
    });
    run(&mut world);
    let rings = world.mailbox_counters(|counters| counters.rings_sent.get());
    assert_eq!(rings, (1..all).filter(|&number| targets(number)).count() as u64, "each was rung once");
    assert_eq!(world.counters().ipis_sent, rings);
    counted.load(Relaxed)
}

fn machine(cpus: usize, routing: Routing) -> Config {
    let mut config = Config::new(cpus, routing, 1);
    config.tick = None;
    config
}

#[test]
fn a_call_to_many_writes_the_icr_once_in_flat_mode() {
    let config = machine(8, Routing::Flat);
    assert_eq!(commands_of_call_to(&config, |number| [2, 3, 7].contains(&number)), 1);
    assert_eq!(commands_of_call_to(&config, |number| [0, 5].contains(&number)), 1);
}

#[test]
fn a_call_to_many_writes_the_icr_once_per_target_in_physical_modes() {
    for routing in [Routing::Physical, Routing::X2ApicPhysical] {
        let config = machine(64, routing);
        assert_eq!(commands_of_call_to(&config, |number| number % 8 == 3), 8, "{routing}");
    }
}

#[test]
fn a_call_to_many_writes_the_icr_once_per_cluster_touched_in_cluster_mode() {
    // A cluster is 16 identifiers, and here the numbers are the identifiers.
    let config = machine(256, Routing::X2ApicCluster);
    assert_eq!(commands_of_call_to(&config, |number| [1, 2, 15].contains(&number)), 1);
    assert_eq!(commands_of_call_to(&config, |number| [15, 16, 17, 33, 255].contains(&number)), 4);
    assert_eq!(commands_of_call_to(&config, |number| number % 2 == 1), 16);
}

#[test]
fn a_call_to_all_others_writes_the_icr_once_by_shorthand() {
    let others = |number| number != 0;
    for (cpus, routing) in [
        (8, Routing::Flat),
        (64, Routing::Physical),
        (64, Routing::X2ApicPhysical),
        (256, Routing::X2ApicCluster),
    ] {
        assert_eq!(commands_of_call_to(&machine(cpus, routing), others), 1, "{routing}");
        assert_eq!(commands_of_call_to(&machine(cpus, routing), |_| true), 1, "{routing}, all");
    }
}

#[test]
fn without_shorthands_a_call_to_all_others_costs_what_the_routing_costs() {
    for (cpus, routing, commands) in [
        (8, Routing::Flat, 1),
        (64, Routing::Physical, 63),
        (64, Routing::X2ApicPhysical, 63),
        (256, Routing::X2ApicCluster, 16),
    ] {
        let mut config = machine(cpus, routing);
        config.shorthands = false;
        assert_eq!(commands_of_call_to(&config, |number| number != 0), commands, "{routing}");
    }
}

#[test]
fn a_call_to_many_rings_only_those_that_are_quiet() {
    let (polling, done) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(8));
    world.spawn(cpu(3), || {
        let mut guard = InterruptsOff::new();
        polling.raise();
        Calls::poll_until(&mut guard, done.when(1), Deadline::NEVER);
    });
    world.spawn(cpu(0), || {
        polling.reached(1);
        program::advance(us(10));
        assert_eq!(commands_of(|| Calls::for_ever().call_many(&set([3]), |_| ()).expect("it polls")), 0);
        assert_eq!(commands_of(|| Calls::for_ever().call_many(&set([3, 4]), |_| ()).expect("one polls")), 1);
        assert_eq!(counted(|counters| counters.rings_sent.get()), 1);
        done.raise();
    });
    run(&mut world);
}

#[test]
fn a_cpu_that_polls_is_not_rung_and_serves_at_once() {
    POSTS_RUN.set(0);
    let (polling, done) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(3));
    world.spawn(cpu(1), || {
        let mut guard = InterruptsOff::new();
        polling.raise();
        let woken = Calls::poll_until(&mut guard, done.when(1), Deadline::NEVER);
        assert_eq!(woken, Woken::Met(0));
        assert_eq!(counted(|counters| counters.reschedules_taken.get()), 1);
        drop(guard);
        polling.raise();
    });
    world.spawn(cpu(0), || {
        polling.reached(1);
        program::advance(us(10));
        let commands = commands_of(|| {
            for _ in 0..5 {
                assert_eq!(Calls::for_ever().call(cpu(1), SimMachine::current_cpu), Ok(cpu(1)));
            }
            post_to(1);
            Calls::reschedule(cpu(1)).expect("it is online");
            Calls::for_ever().call(cpu(1), || assert_eq!(POSTS_RUN.get(), 1)).expect("it polls");
        });
        assert_eq!(commands, 0);
        done.raise();
        polling.reached(2);
        program::advance(us(10));
        assert_eq!(commands_of(|| Calls::for_ever().call(cpu(1), || ())), 1, "it polls no more");
    });
    run(&mut world);
    assert_eq!(world.inspect(cpu(1)).counters.taken[RING_VECTOR as usize], 1);
}

#[test]
fn a_cpu_that_waits_for_calls_with_interrupts_off_is_not_rung_and_serves_meanwhile() {
    for many in [false, true] {
        let (waits, over) = (Flag::new(), Flag::new());
        let mut world = world(&quiet(4));
        world.spawn(cpu(1), || {
            let mut guard = InterruptsOff::new();
            waits.raise();
            let caller = Calls::for_ever().with_interrupts_off(&mut guard);
            if many {
                caller.call_many(&set([2, 3]), |_| program::advance(us(100))).expect("they live");
            } else {
                caller.call(cpu(2), || program::advance(us(100))).expect("CPU 2 lives");
            }
            over.raise();
        });
        world.spawn(cpu(0), || {
            waits.reached(1);
            program::advance(us(10));
            let commands = commands_of(|| Calls::for_ever().call(cpu(1), || assert_eq!(over.get(), 0)));
            assert_eq!((commands, over.get()), (0, 0), "served long before its own call has run");
        });
        run(&mut world);
    }
}

#[test]
fn a_cpu_inside_a_pass_is_not_rung_and_looks_again() {
    POSTS_RUN.set(0);
    let inside = Flag::new();
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || {
        Calls::for_ever()
            .call(cpu(1), || {
                inside.raise();
                program::advance(us(30));
            })
            .expect("CPU 1 lives");
    });
    for number in [2, 3] {
        let inside = &inside;
        world.spawn(cpu(number), move || {
            inside.reached(1);
            let commands = commands_of(|| {
                post_to(1);
                Calls::for_ever().call(cpu(1), || ()).expect("CPU 1 lives");
            });
            assert_eq!(commands, 0);
        });
    }
    run(&mut world);
    assert_eq!(POSTS_RUN.get(), 2);
    assert_eq!(world.inspect(cpu(1)).counters.taken[RING_VECTOR as usize], 1);
}

/// On machines with group bits for sources, and on those with leaf words.
#[test]
fn only_the_first_of_many_callers_into_a_quiet_mailbox_rings() {
    for cpus in [16, 64, 128] {
        let (busy, ran) = (Flag::new(), AtomicU64::new(0));
        let mut world = world(&quiet(cpus));
        world.spawn(cpu(1), || {
            let _off = InterruptsOff::<SimMachine>::new();
            busy.raise();
            program::advance(us(100));
        });
        for caller in (0..cpus as u32).filter(|&number| number != 1) {
            let (busy, ran) = (&busy, &ran);
            world.spawn(cpu(caller), move || {
                busy.reached(1);
                Calls::for_ever().call(cpu(1), || ran.fetch_add(1, Relaxed)).expect("CPU 1 lives");
            });
        }
        run(&mut world);
        assert_eq!(ran.load(Relaxed), cpus as u64 - 1);
        assert_eq!(world.counters().icr_writes, 1, "{cpus} CPUs");
        assert_eq!(world.mailbox_counters(|counters| counters.rings_sent.get()), 1);
    }
}

#[test]
fn reschedule_requests_coalesce() {
    RESCHEDULED.set(0);
    let busy = Flag::new();
    let hooks = Hooks { reschedule: Some(|| RESCHEDULED.set(RESCHEDULED.get() + 1)), ..Hooks::default() };
    let mut world = World::with_kernel(&quiet(2), hooks).expect("a machine");
    world.spawn(cpu(1), || {
        let _off = InterruptsOff::<SimMachine>::new();
        busy.raise();
        program::advance(us(50));
    });
    world.spawn(cpu(0), || {
        busy.reached(1);
        let commands = commands_of(|| (0..5).for_each(|_| Calls::reschedule(cpu(1)).expect("it is online")));
        assert_eq!(commands, 1);
        program::advance(us(100));
        assert_eq!(RESCHEDULED.get(), 1);
        assert_eq!(commands_of(|| Calls::reschedule(cpu(1)).expect("it is online")), 1, "a new request");
        program::advance(us(20));
        assert_eq!(RESCHEDULED.get(), 2);
        assert_eq!(
            commands_of(|| Calls::reschedule(cpu(0)).expect("it is online")),
            1,
            "the own CPU, by interrupt"
        );
        program::advance(us(20));
        assert_eq!(RESCHEDULED.get(), 3);
    });
    run(&mut world);
    assert_eq!(world.mailbox_counters(|counters| counters.reschedules_taken.get()), 3);
}

#[test]
fn a_call_to_one_cpu_writes_the_icr_once_on_every_routing() {
    for routing in Routing::ALL {
        let mut world = world(&machine(8, routing));
        world.spawn(cpu(0), || {
            for _ in 0..3 {
                program::advance(us(20));
                assert_eq!(commands_of(|| Calls::for_ever().call(cpu(5), || ()).expect("it is online")), 1);
            }
        });
        run(&mut world);
    }
}

/// Calls CPU 0; how many operations that costs it.
fn operations_of_one_call() -> u64 {
    let before = program::inspect(cpu(0)).counters.operations;
    Calls::for_ever().call(cpu(0), || ()).expect("CPU 0 lives");
    program::advance(us(20));
    program::inspect(cpu(0)).counters.operations - before
}

/// What a pass costs is what is marked then, not who has ever called.
#[test]
fn a_pass_looks_only_at_the_sources_that_are_marked() {
    const CPUS: u32 = 128;
    let (operations, called) = (Cell::new((0, 0)), Flag::new());
    let mut world = world(&quiet(CPUS as usize));
    world.spawn(cpu(127), || {
        let alone = operations_of_one_call();
        called.raise();
        called.reached(u64::from(CPUS) - 1);
        program::advance(us(50));
        operations.set((alone, operations_of_one_call()));
    });
    for caller in 1..127 {
        let called = &called;
        world.spawn(cpu(caller), move || {
            while called.get() == 0 {
                program::advance(us(10));
            }
            Calls::for_ever().call(cpu(0), || ()).expect("CPU 0 lives");
            called.raise();
        });
    }
    run(&mut world);
    let (alone, afterwards) = operations.get();
    assert!(alone > 10, "{alone}");
    assert_eq!(
        alone, afterwards,
        "operations of CPU 0 for one call, before and after 126 others have called"
    );
}
