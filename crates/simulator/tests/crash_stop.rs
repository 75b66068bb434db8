//! The crash stop (law L7): one winner, everybody who can saves, who cannot is named, within the limit.

mod support;

use core::time::Duration;
use std::cell::{Cell, RefCell};

use smpcall::vmcore::{Absence, PendingInterrupts, Role};
use smpcall::{CrashStop, InterruptsOff};
use smpcall_local_apic::Routing;
use smpcall_machine::{EventKind, Instant};
use smpcall_simulator::apic::IcrFault;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::stopping::{CrashOutcome, check_crash, crash, registers};
use smpcall_simulator::{Config, RunEnd, SimCpuSet, SimMachine, World, program, send_interrupt};
use support::{Calls, Machine, cpu, faulty, ms, quiet, set, us, work_with_interrupts_off};

const LIMIT: Duration = <SimMachine as CrashStop>::STOP_LIMIT;

thread_local! {
    /// What winners were told: the CPUs saved and missing, and whether they had crashed again.
    static ENDS: RefCell<Vec<(SimCpuSet, SimCpuSet, bool)>> = const { RefCell::new(Vec::new()) };
}

#[expect(clippy::needless_pass_by_value, reason = "what the hook is given")]
fn crashed(end: smpcall::Crash<SimMachine>) {
    ENDS.with_borrow_mut(|ends| ends.push((end.saved, end.missing, end.crashed_again)));
}

fn machine<'p>(config: &Config) -> World<'p> {
    ENDS.take();
    World::with_kernel(config, Hooks { crashed: Some(crashed), ..Hooks::default() }).expect("a machine")
}

/// Works for ever, with interrupts enabled.
fn works() {
    loop {
        program::advance(us(10));
    }
}

/// Runs until nothing can happen any more, or for three times the limit of a crash stop.
fn run_out(world: &mut World<'_>) {
    let end = world.run_on(Instant::default().plus(LIMIT * 3));
    assert_ne!(end, RunEnd::Stopped);
}

fn outcome(world: &World<'_>, able: &SimCpuSet) -> CrashOutcome {
    check_crash(world, able).expect("law L7 holds").expect("somebody has crashed")
}

fn missing(outcome: &CrashOutcome) -> Vec<(u32, Absence)> {
    outcome.missing.iter().map(|(cpu, why)| (cpu.number(), *why)).collect()
}

fn role_of(outcome: &CrashOutcome, number: u32) -> Role {
    outcome.saved.iter().find(|(stopped, _)| stopped.cpu == number).expect("it has saved").0.role
}

#[test]
fn a_crash_stops_all_others_wherever_they_are() {
    let mut world = machine(&quiet(4));
    world.spawn(cpu(0), || {
        program::advance(us(50));
        crash();
    });
    world.spawn(cpu(1), works);
    world.spawn(cpu(2), || work_with_interrupts_off(ms(5_000)));
    run_out(&mut world);
    // CPU 3 is idle.
    let outcome = outcome(&world, &set(0..4));
    assert_eq!(outcome.saved.len(), 4);
    assert_eq!((outcome.summary.winner, outcome.summary.nmis, outcome.missing.len()), (0, 3, 0));
    let enabled: Vec<bool> =
        outcome.saved.iter().map(|(_, registers)| registers.interrupts_enabled()).collect();
    assert_eq!(enabled, [true, true, false, true], "as it was on each CPU");
    let source = world.source_of(outcome.saved[0].1.rip).expect("the crash was somewhere");
    assert!(source.file().ends_with("crash_stop.rs"), "{source}");
    assert!(Duration::from_nanos(outcome.summary.waited) < us(50), "{} ns", outcome.summary.waited);
    assert_eq!(ENDS.take(), [(set(0..4), set([]), false)]);
    assert_eq!(world.counters().nmis_taken, 3);
}

#[test]
fn of_many_that_crash_at_once_one_wins_and_each_saves_where_it_crashed() {
    for seed in 0..50 {
        let config = Config { seed, ..quiet(8) };
        let mut world = machine(&config);
        for number in 0..6 {
            world.spawn(cpu(number), || {
                program::advance(us(10) + Duration::from_nanos(program::random(200)));
                crash();
            });
        }
        world.spawn(cpu(6), works);
        run_out(&mut world);
        let outcome = outcome(&world, &set(0..8));
        assert_eq!(ENDS.take().len(), 1, "seed {seed}");
        assert_eq!((outcome.saved.len(), outcome.missing.len()), (8, 0), "seed {seed}");
        assert_eq!(
            (role_of(&outcome, 6), role_of(&outcome, 7)),
            (Role::Stopped, Role::Stopped),
            "seed {seed}"
        );
    }
}

thread_local! {
    static NMI_CRASHES_ON: Cell<u32> = const { Cell::new(u32::MAX) };
}

#[test]
fn a_cpu_that_crashes_inside_its_nmi_handler_saves_itself_whether_it_wins_or_loses() {
    for wins in [true, false] {
        NMI_CRASHES_ON.set(1);
        let mut world = machine(&quiet(3));
        world.set_nmi_handler(|frame| {
            if NMI_CRASHES_ON.get() == SimMachine::current_cpu().number() {
                // Locked up in the handler for a time: further NMIs are blocked.
                program::advance(us(100));
                crash();
            }
            Calls::handle_stop(&registers(frame.source, frame.interrupts_were_enabled));
        });
        world.spawn(cpu(0), || {
            send_interrupt(cpu(1), smpcall_local_apic::Interrupt::Nmi).expect("sent");
            works();
        });
        if !wins {
            // Loses: CPU 2 crashes while CPU 1 is still in its handler.
            world.spawn(cpu(2), || {
                program::advance(us(50));
                crash();
            });
        }
        run_out(&mut world);
        let outcome = outcome(&world, &set(0..3));
        assert_eq!(outcome.summary.winner, if wins { 1 } else { 2 });
        let (first, _) = outcome.saved[1];
        assert_eq!((first.cpu, first.in_nmi), (1, true));
        assert_eq!(role_of(&outcome, 1), if wins { Role::Winner } else { Role::Loser });
        assert_eq!(outcome.missing.len(), 0);
    }
}

#[test]
fn a_cpu_that_makes_no_step_is_named_and_the_winner_goes_on_within_its_limit() {
    // Not scheduled by its hypervisor, and locked up inside of its NMI handler.
    for fault in ["stop:cpu=2:at=1us", "nmi-wedge:cpu=2:at=1us"] {
        let mut world = machine(&faulty(4, fault));
        world.spawn(cpu(0), || {
            program::advance(us(50));
            crash();
        });
        world.spawn(cpu(1), works);
        world.spawn(cpu(2), works);
        run_out(&mut world);
        let outcome = outcome(&world, &set([0, 1, 3]));
        assert_eq!(missing(&outcome), [(2, Absence::NoSignOfLife)], "{fault}");
        // Three NMIs in the first round, one in each of the others.
        assert_eq!(outcome.summary.nmis, 3 + <SimMachine as CrashStop>::STOP_ROUNDS - 1);
        let waited = Duration::from_nanos(outcome.summary.waited);
        assert!((LIMIT..LIMIT + us(100)).contains(&waited), "{fault}: {waited:?}");
        assert_eq!(ENDS.take(), [(set([0, 1, 3]), set([2]), false)]);
    }
}

/// CPU 0 crashes, and its delivery status never clears. Returns what it left, and when it had come to its end.
fn crash_with_a_busy_controller(faults: &str) -> (CrashOutcome, Duration) {
    thread_local! {
        static ENDED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }
    fn ended(_: smpcall::Crash<SimMachine>) {
        let report = program::inspect(SimMachine::current_cpu());
        ENDED.set(report.time.since(Instant::default()));
    }
    let mut config = faulty(4, faults);
    config.routing = Routing::Physical;
    let mut world =
        World::with_kernel(&config, Hooks { crashed: Some(ended), ..Hooks::default() }).expect("a machine");
    world.spawn(cpu(0), || {
        program::break_icr(Some(IcrFault::StuckUntil(Instant::from_nanos(u64::MAX))));
        crash();
    });
    assert_ne!(world.run_on(Instant::default().plus(LIMIT * 10)), RunEnd::Stopped);
    (outcome(&world, &set([0])), ENDED.take())
}

#[test]
fn a_busy_controller_takes_its_time_from_the_rounds_and_not_in_addition() {
    let (outcome, ended) = crash_with_a_busy_controller("");
    assert_eq!(missing(&outcome), [1, 2, 3].map(|number| (number, Absence::NoSignOfLife)));
    assert!((LIMIT..LIMIT + us(100)).contains(&ended), "{ended:?}");
}

#[test]
fn a_busy_controller_and_a_clock_that_stands_still_are_bounded_too() {
    let (outcome, ended) = crash_with_a_busy_controller("clock-stops:cpu=0:at=0ms");
    assert_eq!((outcome.missing.len(), outcome.summary.waited), (3, 0));
    // The looks of the crash stop's waits, and in each round those of the driver's.
    assert!((LIMIT..LIMIT * 5).contains(&ended), "{ended:?}");
}

#[test]
fn a_winner_whose_clock_stands_still_goes_on_when_its_looks_are_used_up() {
    let mut world = machine(&faulty(3, "clock-stops:cpu=0:at=10us,stop:cpu=2:at=1us"));
    world.spawn(cpu(0), || {
        program::advance(us(50));
        crash();
    });
    let end = world.run_on(Instant::default().plus(LIMIT * 3));
    assert_ne!(end, RunEnd::Stopped);
    let outcome = outcome(&world, &set(0..2));
    assert_eq!(missing(&outcome), [(2, Absence::NoSignOfLife)]);
    assert_eq!(outcome.summary.waited, 0, "by its clock");
    assert_eq!(
        outcome.summary.nmis,
        2 + <SimMachine as CrashStop>::STOP_ROUNDS - 1,
        "all rounds came to an end"
    );
    assert_eq!(ENDS.take(), [(set(0..2), set([2]), false)]);
}

#[test]
fn a_cpu_that_spins_with_interrupts_disabled_is_stopped() {
    let mut world = machine(&faulty(3, "wedge:cpu=2:at=1us"));
    world.spawn(cpu(0), || {
        program::advance(us(50));
        crash();
    });
    world.spawn(cpu(2), works);
    run_out(&mut world);
    let outcome = outcome(&world, &set(0..3));
    assert!(!outcome.saved[2].1.interrupts_enabled());
    assert_eq!(outcome.missing.len(), 0);
}

#[test]
fn a_lost_nmi_is_repeated_once_to_the_one_that_did_not_answer() {
    let mut world = machine(&faulty(4, "drop:n=2:nmi"));
    world.spawn(cpu(0), || {
        program::advance(us(50));
        crash();
    });
    run_out(&mut world);
    let outcome = outcome(&world, &set(0..4));
    assert_eq!(outcome.summary.nmis, 3 + 1);
    let round = LIMIT / <SimMachine as CrashStop>::STOP_ROUNDS;
    let waited = Duration::from_nanos(outcome.summary.waited);
    assert!((round..round + us(100)).contains(&waited), "{waited:?}");
}

#[test]
fn an_offline_cpu_is_neither_sent_an_nmi_nor_missing() {
    let mut world = machine(&quiet(3));
    world.spawn(cpu(0), || {
        program::advance(us(50));
        crash();
    });
    world.spawn(cpu(1), || {
        let mut off = InterruptsOff::new();
        Calls::close(&mut off);
        Calls::declare_nmi(false);
        program::park();
    });
    // Online, and its NMI handler is not in place.
    world.spawn(cpu(2), || {
        Calls::declare_nmi(false);
        works();
    });
    run_out(&mut world);
    let outcome = outcome(&world, &set([0]));
    assert_eq!(missing(&outcome), [(2, Absence::TakesNoNmi)]);
    assert_eq!((outcome.summary.nmis, world.counters().nmis_taken), (0, 0));
    assert!(Duration::from_nanos(outcome.summary.waited) < us(10), "nobody to wait for");
}

#[test]
fn a_cpu_that_runs_the_winners_closure_and_does_not_answer_is_named_as_busy_in_it() {
    let mut world = machine(&faulty(3, "stop:cpu=1:at=40us"));
    world.spawn(cpu(0), || {
        let called = Calls::within(us(50)).call_static(cpu(1), || program::advance(ms(10)));
        called.expect_err("it stands still");
        crash();
    });
    run_out(&mut world);
    assert_eq!(missing(&outcome(&world, &set([0, 2]))), [(1, Absence::Busy { caller: Some(0) })]);
}

#[test]
fn where_a_missing_cpu_was_last_seen_is_told() {
    // It answers a probe with interrupts off, and then nothing any more.
    let mut world = machine(&faulty(2, "stop:cpu=1:at=3ms"));
    world.spawn(cpu(0), || {
        Calls::within(ms(2)).call(cpu(1), || ()).expect_err("interrupts are off there");
        program::advance(ms(2));
        crash();
    });
    world.spawn(cpu(1), || work_with_interrupts_off(ms(100)));
    run_out(&mut world);
    let missing = missing(&outcome(&world, &set([0])));
    assert!(matches!(missing[..], [(1, Absence::InterruptsDisabled { at: 1.. })]), "{missing:?}");
}

#[test]
fn a_crash_inside_a_served_closure_is_like_any_other() {
    let mut world = machine(&quiet(3));
    world.spawn(cpu(0), || {
        let _ = Calls::for_ever().call_all(|_| {
            if SimMachine::current_cpu() == cpu(1) {
                crash();
            }
            program::advance(us(100));
        });
        unreachable!("it is stopped in its wait");
    });
    run_out(&mut world);
    let outcome = outcome(&world, &set(0..3));
    assert_eq!((outcome.summary.winner, outcome.missing.len()), (1, 0));
}

#[test]
fn a_winner_whose_way_out_crashes_tries_it_again_and_parks_in_the_end() {
    thread_local!(static ATTEMPTS: Cell<u32> = const { Cell::new(0) });
    let hook = |end: smpcall::Crash<SimMachine>| {
        crashed(end);
        ATTEMPTS.set(ATTEMPTS.get() + 1);
        crash();
    };
    ENDS.take();
    ATTEMPTS.set(0);
    let hooks = Hooks { crashed: Some(hook), ..Hooks::default() };
    let mut world = World::with_kernel(&quiet(3), hooks).expect("a machine");
    world.spawn(cpu(0), || crash());
    run_out(&mut world);
    assert_eq!(ATTEMPTS.get(), 8);
    let ends = ENDS.take();
    assert_eq!(ends[0], (set(0..3), set([]), false));
    assert!(ends[1..].iter().all(|end| *end == (set(0..3), set([]), true)), "{ends:?}");
    let outcome = outcome(&world, &set(0..3));
    assert_eq!((outcome.summary.crashed_again, role_of(&outcome, 0)), (1, Role::Winner));
    assert!(world.inspect(cpu(0)).parked);
    assert_eq!(world.counters().nmis_taken, 2, "nobody is stopped twice");
}

/// Every step of the winner crashes, at every moment: an NMI whose handler crashes comes in between.
#[test]
fn whichever_step_of_the_winner_crashes_the_others_are_stopped_and_the_notes_are_written() {
    let mut again = 0;
    for delay in (0..6_000).step_by(20) {
        let mut world = machine(&faulty(2, &format!("delay:by={}ns:to=0:nmi", delay + 1)));
        world.set_nmi_handler(|frame| {
            if !Calls::handle_stop(&registers(frame.source, frame.interrupts_were_enabled)) {
                crash();
            }
        });
        world.spawn(cpu(0), || {
            program::advance(us(1));
            crash();
        });
        world.spawn(cpu(1), || {
            send_interrupt(cpu(0), smpcall_local_apic::Interrupt::Nmi).expect("sent");
            works();
        });
        run_out(&mut world);
        let ends = ENDS.take();
        assert!(!ends.is_empty(), "{delay} ns");
        // The other CPU may have been stopped after the end of a second crash, which does not wait.
        assert!(world.inspect(cpu(1)).parked, "{delay} ns: CPU 1 goes on");
        let outcome = check_crash(&world, &set([])).expect("law L7 holds").expect("it has crashed");
        assert_eq!(outcome.saved.len(), 2, "{delay} ns: {outcome:?}");
        again += u32::from(ends.iter().any(|(.., again)| *again));
    }
    assert!((100..300).contains(&again), "{again} of 300");
}

#[test]
fn the_winner_crashes_again_while_it_waits_for_others() {
    // An NMI that was sent before the crash reaches the winner in its wait for a CPU that makes no step.
    let mut world = machine(&faulty(3, "stop:cpu=2:at=1us,delay:by=20ms:to=0:nmi"));
    // The handler is broken: it crashes whatever it is for.
    world.set_nmi_handler(|frame| {
        if !Calls::handle_stop(&registers(frame.source, frame.interrupts_were_enabled)) {
            crash();
        }
    });
    world.spawn(cpu(0), || {
        program::advance(us(50));
        crash();
    });
    world.spawn(cpu(1), || {
        send_interrupt(cpu(0), smpcall_local_apic::Interrupt::Nmi).expect("sent");
        works();
    });
    run_out(&mut world);
    let outcome = outcome(&world, &set([0, 1]));
    assert_eq!(missing(&outcome), [(2, Absence::NoSignOfLife)]);
    assert_eq!(outcome.summary.crashed_again, 1);
    assert_eq!(ENDS.take(), [(set([0, 1]), set([2]), true)], "one end, and it is the second crash's");
    let (winner, at) = outcome.saved[0];
    assert!(!winner.in_nmi && at.interrupts_enabled(), "the registers are those of the first crash");
    assert!(world.inspect(cpu(0)).parked && world.inspect(cpu(0)).in_nmi);
    assert!(world.time() < Instant::default().plus(LIMIT), "nobody is waited for any more");
}

#[test]
fn what_was_pending_is_in_the_winners_notes() {
    let hook = |end: smpcall::Crash<SimMachine>| {
        let mut pending = PendingInterrupts { cpu: end.winner.number(), ..PendingInterrupts::default() };
        pending.requested[7] = 1 << 27;
        end.note_pending(pending);
        crashed(end);
    };
    ENDS.take();
    let mut world =
        World::with_kernel(&quiet(2), Hooks { crashed: Some(hook), ..Hooks::default() }).expect("a machine");
    world.spawn(cpu(1), || crash());
    run_out(&mut world);
    outcome(&world, &set(0..2));
    // SAFETY: the machine does not run.
    let bytes = unsafe { world.crash_notes()[1].copy() };
    let notes = smpcall::vmcore::Notes::new(&bytes).map(|note| note.expect("readable"));
    let records: Vec<_> = notes.filter_map(|note| smpcall::vmcore::Record::read(&note)).collect();
    let found = records.iter().any(|record| {
        matches!(record, Ok(smpcall::vmcore::Record::Pending(pending)) if pending.requested[7] == 1 << 27)
    });
    assert!(found, "{records:?}");
}

#[test]
fn without_a_crash_nothing_is_noted_and_an_nmi_stops_nobody() {
    let mut world = machine(&quiet(2));
    world.spawn(cpu(0), || {
        send_interrupt(cpu(1), smpcall_local_apic::Interrupt::Nmi).expect("sent");
        program::advance(us(50));
        assert_eq!(Calls::for_ever().call(cpu(1), || 5), Ok(5));
        assert!(!Calls::has_crashed());
    });
    run_out(&mut world);
    assert!(check_crash(&world, &set([])).expect("the law holds").is_none());
}

/// One to three CPUs crash at random instants while all call each other, some with interrupts off, and NMIs are lost.
#[test]
fn crashes_at_random_instants_of_a_machine_that_calls() {
    let (mut nmis_repeated, mut losers, mut saved_off) = (0, 0, 0);
    for seed in 0..300 {
        let mut config = faulty(6, "drop:p=0.1,delay:p=0.1:by=30us");
        config.seed = seed;
        config.trace = seed % 50 == 0;
        let mut world = machine(&config);
        for caller in 0..6 {
            world.spawn(cpu(caller), move || {
                let crashes = program::random(2) == 0 || caller == 0;
                let at = SimMachine::now().plus(us(20 + program::random(400)));
                loop {
                    if crashes && SimMachine::now() >= at {
                        crash();
                    }
                    let target = cpu((caller + 1 + program::random(5) as u32) % 6);
                    if program::random(3) == 0 {
                        let mut off = InterruptsOff::new();
                        let _ = Calls::within(us(100)).with_interrupts_off(&mut off).call(target, || ());
                    } else {
                        let _ = Calls::within(us(100)).call_others(|_| program::advance(us(2)));
                    }
                }
            });
        }
        run_out(&mut world);
        let outcome = check_crash(&world, &set([])).expect("law L7 holds").expect("CPU 0 crashes");
        // Each CPU is alive: an NMI that is lost is repeated, and four in a row are not lost that often.
        assert_eq!(outcome.saved.len() + outcome.missing.len(), 6, "seed {seed}");
        assert!(outcome.missing.len() <= 1, "seed {seed}: {:?}", outcome.missing);
        assert_eq!(ENDS.take().len(), 1, "seed {seed}");
        nmis_repeated += outcome.summary.nmis.saturating_sub(5);
        losers += outcome.saved.iter().filter(|(stopped, _)| stopped.role == Role::Loser).count();
        saved_off += outcome.saved.iter().filter(|(_, registers)| !registers.interrupts_enabled()).count();
        if config.trace {
            let won = world.trace().events.iter().filter(|event| event.kind == EventKind::CrashWon).count();
            assert_eq!(won, 1);
        }
    }
    assert!(nmis_repeated > 10 && losers > 50 && saved_off > 100, "{nmis_repeated} {losers} {saved_off}");
}
