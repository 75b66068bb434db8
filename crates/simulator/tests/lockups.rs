//! Lockups are found by the clock and by ticks together, reported once, and their end is told; a pause of the whole
//! machine is none.

mod support;

use core::time::Duration;
use std::cell::RefCell;

use smpcall::vmcore::Registers;
use smpcall::{Answer, BackTraceError, InterruptsOff, Lockup, LockupKind, Lockups, TargetState};
use smpcall_machine::Instant;
use smpcall_simulator::faults::parse;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::stopping::{LockupHooks, check_crash};
use smpcall_simulator::{Config, RunEnd, SimMachine, World, program};
use support::{Calls, Cpu, Flag, Machine, cpu, ms, set, us};

const TICK: Duration = <SimMachine as Lockups>::TICK;
const SOFT: Duration = <SimMachine as Lockups>::SOFT_LIMIT;
const HARD: Duration = <SimMachine as Lockups>::HARD_LIMIT;

/// What the kernel was told, with the time.
#[expect(clippy::large_enum_variant, reason = "a handful of them in a test")]
#[derive(Clone, Copy, Debug)]
enum Told {
    Found(Lockup),
    Ended(Cpu, LockupKind, Duration),
    BackTrace { of: Cpu, asker: Cpu, interrupts_enabled: bool },
}

thread_local! {
    static TOLD: RefCell<Vec<(Instant, Told)>> = const { RefCell::new(Vec::new()) };
}

#[expect(clippy::large_types_passed_by_value, reason = "it is stored")]
fn tell(told: Told) {
    TOLD.with_borrow_mut(|all| all.push((SimMachine::now(), told)));
}

fn found(lockup: &Lockup) -> Answer {
    tell(Told::Found(*lockup));
    Answer::GoOn
}

fn ended(culprit: Cpu, kind: LockupKind, lasted: Duration) {
    tell(Told::Ended(culprit, kind, lasted));
}

fn back_trace(asker: Cpu, registers: &Registers) {
    let interrupts_enabled = registers.interrupts_enabled();
    tell(Told::BackTrace { of: SimMachine::current_cpu(), asker, interrupts_enabled });
}

const HOOKS: LockupHooks =
    LockupHooks { found: Some(found), ended: Some(ended), back_trace: Some(back_trace) };

fn hooks() -> Hooks {
    Hooks { lockups: Some(HOOKS), ..Hooks::default() }
}

/// A machine with ticks that looks for lockups.
fn machine<'p>(cpus: usize, faults: &str, hooks: Hooks) -> World<'p> {
    TOLD.take();
    let mut config = Config::new(cpus, smpcall_local_apic::Routing::Flat, 1);
    assert_eq!(config.tick, Some(TICK));
    config.faults = parse(faults).expect("faults");
    World::with_kernel(&config, hooks).expect("a machine")
}

fn run_for(world: &mut World<'_>, duration: Duration) {
    let end = world.run(Instant::default().plus(duration));
    assert!(matches!(end, RunEnd::TimeLimit | RunEnd::ProgramsEnded), "{end:?}");
}

/// A scheduler that makes progress, for ever.
fn schedules() {
    Calls::watch_ticks(true);
    loop {
        Calls::progress();
        program::advance(ms(10));
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_machine_that_makes_progress_raises_no_alarm() {
    let mut world = machine(3, "", hooks());
    (0..3).for_each(|number| world.spawn(cpu(number), schedules));
    run_for(&mut world, seconds(70));
    assert_eq!(TOLD.take().len(), 0);
}

#[test]
fn a_soft_lockup_is_reported_once_and_its_end_is_told() {
    let mut world = machine(2, "", hooks());
    world.spawn(cpu(0), schedules);
    world.spawn(cpu(1), || {
        Calls::watch_ticks(true);
        Calls::progress();
        // Kernel code goes round in circles with interrupts enabled, for two limits.
        program::advance(SOFT * 2 + seconds(5));
        schedules();
    });
    run_for(&mut world, seconds(100));
    let told = TOLD.take();
    let [(at, Told::Found(lockup)), (_, Told::Ended(who, kind, lasted))] = told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((lockup.kind, lockup.culprit, lockup.finder), (LockupKind::Soft, cpu(1), cpu(1)));
    assert!((SOFT..SOFT + TICK * 3).contains(&at.since(Instant::default())), "{at:?}");
    assert!(lockup.registers.is_some_and(|registers| registers.interrupts_enabled()));
    assert_eq!((who, kind), (cpu(1), LockupKind::Soft));
    // Progress is seen at the tick after it.
    let expected = SOFT * 2 + seconds(5);
    assert!((expected.saturating_sub(TICK)..expected + TICK).contains(&lasted), "{lasted:?}");
}

#[test]
fn a_hard_lockup_is_reported_once_by_the_buddy_with_a_back_trace_and_its_end_is_told() {
    let mut world = machine(3, "", hooks());
    world.spawn(cpu(0), schedules);
    world.spawn(cpu(1), || {
        Calls::watch_ticks(true);
        program::advance(seconds(1));
        // A driver spins with interrupts disabled.
        let off = InterruptsOff::<SimMachine>::new();
        program::advance(HARD * 3);
        drop(off);
        schedules();
    });
    world.spawn(cpu(2), schedules);
    run_for(&mut world, seconds(45));
    let told = TOLD.take();
    let hard: Vec<_> = (told.iter())
        .filter(|(_, told)| !matches!(told, Told::Found(Lockup { kind: LockupKind::Soft, .. })))
        .map(|(_, told)| *told)
        .collect();
    let [
        Told::BackTrace { of, asker, interrupts_enabled },
        Told::Found(lockup),
        Told::Ended(who, LockupKind::Hard, lasted),
        ..,
    ] = hard[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((of, asker, interrupts_enabled), (cpu(1), cpu(0), false));
    assert_eq!((lockup.kind, lockup.culprit, lockup.finder), (LockupKind::Hard, cpu(1), cpu(0)));
    assert!((HARD..HARD + TICK * 3).contains(&lockup.lasted), "{:?}", lockup.lasted);
    assert!(lockup.back_trace_taken && matches!(lockup.state, TargetState::InterruptsDisabled { .. }));
    assert_eq!(who, cpu(1));
    assert!((HARD * 3..HARD * 3 + TICK * 3).contains(&lasted), "{lasted:?}");
    let reports =
        told.iter().filter(|(_, told)| matches!(told, Told::Found(Lockup { kind: LockupKind::Hard, .. })));
    assert_eq!(reports.count(), 1, "{told:?}");
}

#[test]
fn cpus_that_lock_up_side_by_side_are_found_one_after_the_other() {
    // They do not even take NMIs.
    let mut world = machine(4, "stop:cpu=1:at=1s,stop:cpu=2:at=1s", hooks());
    (0..4).for_each(|number| world.spawn(cpu(number), schedules));
    run_for(&mut world, seconds(30));
    let told = TOLD.take();
    let [(first_at, Told::Found(first)), (second_at, Told::Found(second))] = told[..] else {
        panic!("{told:?}")
    };
    assert_eq!([first.culprit, second.culprit], [cpu(1), cpu(2)]);
    assert_eq!([first.finder, second.finder], [cpu(0), cpu(0)]);
    assert!(first_at.since(Instant::default()) < seconds(1) + HARD + ms(20), "{first_at:?}");
    assert!(second_at.since(first_at) < HARD + ms(20), "{second_at:?}");
    assert_eq!([first.state, second.state], [TargetState::NoSignOfLife; 2]);
    assert!(!first.back_trace_taken && !second.back_trace_taken);
}

/// What a hypervisor does that stops the machine: with clocks that go on meanwhile, and with clocks that do not; and what
/// it does if it stops one CPU after the other.
#[test]
fn a_pause_of_the_whole_machine_raises_no_alarm() {
    let one_by_one = "stop:cpu=0:at=5s:for=90s,stop:cpu=1:at=5s:for=90s,stop:cpu=2:at=5s:for=90s";
    for pause in ["pause:at=5s:for=90s", "pause:at=5s:for=90s:clock-stops", one_by_one] {
        let mut world = machine(3, pause, hooks());
        (0..3).for_each(|number| world.spawn(cpu(number), schedules));
        run_for(&mut world, seconds(160));
        assert_eq!(TOLD.take().len(), 0, "{pause}");
    }
}

#[test]
fn late_and_lost_ticks_raise_no_alarm_and_make_a_report_later() {
    let faults = "lose-tick:p=0.5,delay-tick:by=3ms:p=0.3";
    let mut world = machine(3, faults, hooks());
    (0..3).for_each(|number| world.spawn(cpu(number), schedules));
    run_for(&mut world, seconds(70));
    assert_eq!(TOLD.take().len(), 0);

    let mut world = machine(2, faults, hooks());
    world.spawn(cpu(0), schedules);
    world.spawn(cpu(1), || {
        Calls::watch_ticks(true);
        program::advance(seconds(1_000));
    });
    run_for(&mut world, SOFT * 3);
    let told = TOLD.take();
    let [(at, Told::Found(lockup))] = told[..] else { panic!("{told:?}") };
    assert_eq!((lockup.kind, lockup.culprit), (LockupKind::Soft, cpu(1)));
    // As many ticks as the limit has come in twice the time.
    let at = at.since(Instant::default());
    assert!(((SOFT * 2).saturating_sub(seconds(2))..SOFT * 2 + seconds(2)).contains(&at), "{at:?}");
}

#[test]
fn a_pause_in_the_middle_of_a_lockup_hides_none() {
    let pause = "stop:cpu=0:at=5s:for=90s,stop:cpu=1:at=5s:for=90s";
    let mut world = machine(2, pause, hooks());
    world.spawn(cpu(0), schedules);
    world.spawn(cpu(1), || {
        Calls::watch_ticks(true);
        program::advance(seconds(1_000));
    });
    run_for(&mut world, seconds(130));
    let told = TOLD.take();
    let [(at, Told::Found(lockup))] = told[..] else { panic!("{told:?}") };
    // 5 s before the pause, and the rest of the ticks after it.
    assert_eq!((lockup.kind, lockup.culprit), (LockupKind::Soft, cpu(1)));
    assert!((seconds(89) + SOFT..seconds(96) + SOFT).contains(&at.since(Instant::default())), "{at:?}");
}

#[test]
fn a_cpu_without_ticks_is_looked_after_only_if_it_says_that_they_come() {
    for (says, alarms) in [(false, 0), (true, 1)] {
        let mut world = machine(3, "no-tick:cpu=1", hooks());
        world.spawn(cpu(0), schedules);
        world.spawn(cpu(1), move || {
            Calls::watch_ticks(says);
            program::advance(seconds(1_000));
        });
        world.spawn(cpu(2), schedules);
        run_for(&mut world, seconds(30));
        let told = TOLD.take();
        let reports = told.iter().filter(|(_, told)| matches!(told, Told::Found(_))).count();
        assert_eq!(reports, alarms, "{told:?}");
    }
}

#[test]
fn a_cpu_that_goes_offline_hands_its_buddy_on() {
    let mut world = machine(3, "stop:cpu=2:at=3s", hooks());
    world.spawn(cpu(0), schedules);
    world.spawn(cpu(1), || {
        Calls::watch_ticks(true);
        program::advance(seconds(1));
        Calls::watch_ticks(false);
        let mut off = InterruptsOff::new();
        Calls::close(&mut off);
        Calls::declare_nmi(false);
        program::park();
    });
    world.spawn(cpu(2), schedules);
    run_for(&mut world, seconds(30));
    let told = TOLD.take();
    let [(_, Told::Found(lockup))] = told[..] else { panic!("{told:?}") };
    assert_eq!((lockup.culprit, lockup.finder), (cpu(2), cpu(0)));
}

#[test]
fn an_idle_cpu_that_stops_its_tick_and_comes_back_raises_no_alarm() {
    let mut world = machine(2, "", hooks());
    world.spawn(cpu(0), schedules);
    world.spawn(cpu(1), || {
        Calls::watch_ticks(true);
        Calls::progress();
        program::advance(SOFT.saturating_sub(seconds(2)));
        // Its ticks do not count while it says so: here they come all the same, and task level is idle.
        Calls::watch_ticks(false);
        Calls::watch_ticks(true);
        program::advance(SOFT.saturating_sub(seconds(2)));
        schedules();
    });
    run_for(&mut world, seconds(50));
    assert_eq!(TOLD.take().len(), 0);
}

#[test]
fn a_report_may_ask_for_a_crash_stop() {
    let crashes = |lockup: &Lockup| {
        tell(Told::Found(*lockup));
        Answer::CrashStop
    };
    let lockups = LockupHooks { found: Some(crashes), ..HOOKS };
    let mut world = machine(3, "", Hooks { lockups: Some(lockups), ..Hooks::default() });
    world.spawn(cpu(0), schedules);
    world.spawn(cpu(1), || {
        Calls::watch_ticks(true);
        let _off = InterruptsOff::<SimMachine>::new();
        program::advance(seconds(1_000));
    });
    world.spawn(cpu(2), schedules);
    run_for(&mut world, seconds(20));
    let outcome = check_crash(&world, &set(0..3)).expect("law L7 holds").expect("it has crashed");
    assert_eq!((outcome.summary.winner, outcome.saved.len()), (0, 3));
    assert!(!outcome.saved[1].1.interrupts_enabled(), "the culprit");
}

#[test]
fn a_back_trace_is_taken_of_a_cpu_with_interrupts_off_and_refused_by_name() {
    let busy = Flag::new();
    let mut world = machine(4, "stop:cpu=2:at=1us", hooks());
    world.spawn(cpu(0), || {
        busy.reached(1);
        assert_eq!(Calls::back_trace_of(cpu(1), ms(1)), Ok(()));
        assert_eq!(Calls::back_trace_of(cpu(2), ms(1)), Err(BackTraceError::NotTaken));
        assert_eq!(Calls::back_trace_of(cpu(3), ms(1)), Err(BackTraceError::TakesNoNmi));
        assert_eq!(Calls::back_trace_of(cpu(4), ms(1)), Err(BackTraceError::NoSuchCpu));
    });
    world.spawn(cpu(1), || {
        let _off = InterruptsOff::<SimMachine>::new();
        busy.raise();
        program::advance(us(500));
    });
    world.spawn(cpu(3), || Calls::declare_nmi(false));
    run_for(&mut world, seconds(1));
    let told = TOLD.take();
    let [(_, Told::BackTrace { of, asker, interrupts_enabled: false })] = told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((of, asker), (cpu(1), cpu(0)));
}
