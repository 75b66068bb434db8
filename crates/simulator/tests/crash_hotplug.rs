//! Crashes while a CPU comes up, goes down, or all stop for each other: nothing waits for a lock, and nobody goes on.

mod support;

use core::time::Duration;
use std::cell::Cell;

use smpcall::{Callback, InterruptsOff, Stage};
use smpcall_machine::Instant;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::stopping::{CrashOutcome, check_crash, crash};
use smpcall_simulator::{Config, SimCpuSet, SimMachine, World, program};
use support::{Calls, Machine, cpu, ms, quiet, set, us};

thread_local! {
    static CRASHES_IN: Cell<Option<Stage>> = const { Cell::new(None) };
}

#[expect(clippy::unnecessary_wraps, reason = "what callbacks return")]
fn may(stage: Stage) -> Result<(), smpcall::Refused> {
    if CRASHES_IN.get() == Some(stage) {
        crash();
    }
    Ok(())
}

static CALLBACKS: [Callback; 1] = [Callback {
    prepare: Some(|_| may(Stage::Prepare)),
    starting: Some(|_| may(Stage::Starting)),
    online: Some(|_| may(Stage::Online)),
    offline: Some(|_| may(Stage::Offline)),
    ..Callback::named("crashes")
}];

/// An idle loop of a CPU that may be taken down.
fn idle() {
    loop {
        let mut guard = InterruptsOff::new();
        Calls::die_if_asked(&mut guard);
        drop(guard);
        program::advance(us(1));
    }
}

/// CPU 0 brings up CPU 2, which was not started, and takes it down, again and again. CPU 1 does what it is given.
fn machine<'p>(seed: u64, other: impl FnOnce() + 'p) -> World<'p> {
    let config = Config { seed, not_started: vec![cpu(2)], ..quiet(3) };
    let hooks = Hooks { callbacks: &CALLBACKS, ..Hooks::default() };
    let mut world = World::with_kernel(&config, hooks).expect("a machine");
    world.on_start_up(|_, _| {
        program::enable_local_apic().expect("the routing fits");
        let mut guard = InterruptsOff::new();
        Calls::start_here(&mut guard);
        drop(guard);
        SimMachine::restore_interrupts(true);
        idle();
    });
    world.spawn(cpu(0), || {
        loop {
            let _ = Calls::cpu_up(cpu(2), ms(100));
            program::advance(us(5));
            let _ = Calls::cpu_down(cpu(2), ms(100));
        }
    });
    world.spawn(cpu(1), other);
    world
}

fn outcome(world: &World<'_>, able: &SimCpuSet) -> CrashOutcome {
    check_crash(world, able).expect("law L7 holds").expect("somebody has crashed")
}

/// CPU 2 is stopped, parked, or was never started.
fn stands_still(world: &World<'_>) -> bool {
    let report = world.inspect(cpu(2));
    report.parked || report.waits_for_start_up
}

#[test]
fn a_crash_inside_a_hotplug_callback_is_like_any_other() {
    for (stage, winner, saved) in [
        (Stage::Prepare, 0, set(0..2)),
        (Stage::Starting, 2, set(0..3)),
        (Stage::Online, 0, set(0..3)),
        (Stage::Offline, 0, set(0..3)),
    ] {
        CRASHES_IN.set(Some(stage));
        let mut world = machine(1, idle);
        world.run_on(Instant::default().plus(ms(100)));
        let outcome = outcome(&world, &saved);
        assert_eq!(outcome.summary.winner, winner, "{stage:?}");
        assert_eq!(outcome.saved.len(), saved.len(), "{stage:?}");
        assert!(outcome.missing.is_empty(), "{stage:?}: {:?}", outcome.missing);
        assert!(
            Duration::from_nanos(outcome.summary.waited) < us(50),
            "{stage:?}: nobody is waited for in vain"
        );
        assert!(stands_still(&world), "{stage:?}");
    }
}

#[test]
fn a_crash_while_a_cpu_comes_up_and_goes_down_leaves_nobody_running() {
    CRASHES_IN.set(None);
    let (mut saved, mut parked, mut waiting) = (0, 0, 0);
    for seed in 0..400 {
        let mut world = machine(seed, || {
            // The start-up message is sent 10 ms after the INIT.
            program::advance(us(9_995) + Duration::from_nanos(program::random(60_000)));
            crash();
        });
        world.run_on(Instant::default().plus(ms(1_500)));
        let outcome = outcome(&world, &set(0..2));
        assert!(stands_still(&world), "seed {seed}");
        let report = world.inspect(cpu(2));
        if outcome.saved.len() == 3 {
            saved += 1;
        } else if report.parked {
            parked += 1;
        } else {
            waiting += 1;
        }
    }
    // Nobody wins between the INIT and the start-up message: the one that is reset could be the winner.
    assert!(
        saved > 10 && parked > 10 && waiting == 0,
        "saved {saved}, parked {parked}, not started {waiting}"
    );
}
