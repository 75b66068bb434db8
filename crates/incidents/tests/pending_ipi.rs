//! Incident 5: as then the capture kernel stops at the old kernel's IPI, as now it drains first and writes a dump that says what
//! was pending, on machines of many sizes and for many seeds.

use smpcall_diagnosis::VerdictKind;
use smpcall_incidents::{Fault, Incident, Judgement, Law, Options, Outcome, Replay, When, replay};
use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, Event, EventKind};

const HELD: Judgement = Judgement::Held;
const BROKEN: Judgement = Judgement::Broken;
const NONE: Judgement = Judgement::NotApplicable;

/// What was pending and in service at the crash: the module's IPI, three devices, and the device whose handler crashed.
const PENDING: [u32; 4] = [0x31, 0x99, 0xb9, 0xfb];
const IN_SERVICE: u32 = 0xa9;

fn run(when: When, options: &Options) -> Replay {
    replay(Incident::PendingIpi, when, options).expect("the options fit")
}

/// A few machines with each routing, each with a few seeds, crashing on the boot CPU and on another one.
fn machines() -> impl Iterator<Item = Options> {
    let small = [1, 2, 3, 8].into_iter().flat_map(|cpus| Routing::ALL.map(|routing| (cpus, routing)));
    let large = [16, 33, 64].into_iter().flat_map(|cpus| {
        [Routing::Physical, Routing::X2ApicPhysical, Routing::X2ApicCluster].map(|routing| (cpus, routing))
    });
    let faults = |(cpus, routing)| {
        let faults = [Fault::Reported, Fault::AnotherCpu].into_iter().take(if cpus == 1 { 1 } else { 2 });
        faults.map(move |fault| (cpus, routing, fault))
    };
    small.chain(large).flat_map(faults).flat_map(|(cpus, routing, fault)| {
        let seeds = if cpus <= 8 { 1..=4 } else { 1..=2 };
        seeds.map(move |seed| Options { cpus: Some(cpus), routing: Some(routing), seed, fault })
    })
}

/// What happened on the crashed CPU from the jump into the capture kernel on.
fn captured(replay: &Replay) -> (Cpu, &[Event]) {
    let events = &replay.trace.events;
    let booted = events.iter().position(|event| event.kind == EventKind::ImageBooted).expect("it was booted");
    (events[booted].cpu, &events[booted..])
}

fn details(cpu: Cpu, events: &[Event], kind: EventKind) -> Vec<u32> {
    let of_cpu = events.iter().filter(|event| event.kind == kind && event.cpu == cpu);
    of_cpu.map(|event| event.detail).collect()
}

fn count(replay: &Replay, kind: EventKind) -> usize {
    replay.trace.events.iter().filter(|event| event.kind == kind).count()
}

#[test]
fn as_then_the_capture_kernels_first_interrupt_is_the_old_ipi_and_its_last() {
    for options in machines() {
        let replay = run(When::Then, &options);
        assert_eq!(replay.outcome, Outcome::Lost, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected());
        assert_eq!(replay.laws.get(Law::L8), BROKEN, "{options:?}");
        let (cpu, events) = captured(&replay);
        assert_eq!(details(cpu, events, EventKind::InterruptTaken), [0xfb], "{options:?}");
        assert!(details(cpu, events, EventKind::EndOfInterrupt).is_empty(), "{options:?}");
        let verdict = &replay.diagnosis.verdicts[0];
        let found = (verdict.kind, verdict.cpu);
        assert_eq!(found, (VerdictKind::PendingAtCrash, Some(cpu.number())), "{options:?}");
        assert_eq!(verdict.function.as_deref(), Some("smp_call_function_interrupt"));
        assert_eq!((replay.ipis.sent, replay.ipis.taken, replay.ipis.lost), (1, 1, 0), "{options:?}");
        assert_eq!(count(&replay, EventKind::DumpStarted), 0, "{options:?}");
    }
}

#[test]
fn as_now_the_same_machines_drain_come_up_call_and_write_the_dump() {
    for options in machines() {
        let replay = run(When::Now, &options);
        assert_eq!(replay.outcome, Outcome::Held, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected(), "{options:?}: {} {:?}", replay.summary, replay.laws);
        let cpus = options.cpus.expect("given");
        let calls = if replay.summary.contains("started 0 of") { NONE } else { HELD };
        let laws = [Law::L1, Law::L3, Law::L7, Law::L8].map(|law| replay.laws.get(law));
        assert_eq!(laws, [calls, calls, HELD, HELD], "{options:?}: {}", replay.summary);
        assert!(replay.diagnosis.is_healthy(), "{options:?}");

        let (cpu, events) = captured(&replay);
        // What was in service is ended; then the gates take and end the rest, the highest first.
        let taken = details(cpu, events, EventKind::InterruptTaken);
        let highest_first: Vec<u32> = PENDING.into_iter().rev().collect();
        assert_eq!(taken[..4], highest_first, "{options:?}");
        let ended = details(cpu, events, EventKind::EndOfInterrupt);
        assert_eq!((ended[0], &ended[1..5]), (IN_SERVICE, highest_first.as_slice()), "{options:?}");
        // After that it takes its own disk's interrupts only.
        assert!(
            taken.len() > 4 && taken[4..].iter().all(|&vector| vector == 0x41),
            "{options:?}: {taken:x?}"
        );

        // The others were started, and the boot CPU never.
        let another = options.fault == Fault::AnotherCpu;
        let started = cpus - if another { 2 } else { 1 };
        let start_ups = || events.iter().filter(|event| event.kind == EventKind::StartedUp);
        assert_eq!(start_ups().count(), started, "{options:?}");
        assert!(start_ups().all(|event| event.cpu != Cpu::new(0)), "{options:?}");
        assert_eq!(count(&replay, EventKind::BootCpuSentInit), 0, "{options:?}");
        assert_eq!(count(&replay, EventKind::DumpStarted), 1, "{options:?}");
        assert_eq!(cpu == Cpu::new(0), !another, "{options:?}");
    }
}

#[test]
fn the_dump_says_what_was_pending_and_in_service() {
    let view = run(When::Now, &Options::default()).view;
    let line = |name: &str| view.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    assert_eq!(line("IRR "), Some("0x31 0x99 0xb9 0xfb"), "{view}");
    assert_eq!(line("ISR "), Some("0xa9"), "{view}");
    assert_eq!(line("TMR "), Some("0xa9 0xb9"), "{view}");
    assert_eq!(line("ended "), Some("0xa9"), "{view}");
    assert_eq!(line("remained "), Some("pending none, in service none"), "{view}");
    assert!(view.contains("NT_PRSTATUS  CPU 0    crashed, interrupts off"), "{view}");
}

#[test]
fn every_cpu_that_ran_is_in_the_dump() {
    let replay = run(When::Now, &Options { cpus: Some(8), fault: Fault::AnotherCpu, ..Options::default() });
    assert!(replay.view.contains("8 of 8 CPUs saved, 7 NMIs"), "{}", replay.view);
    for cpu in 0..8 {
        assert!(replay.view.contains(&format!("NT_PRSTATUS  CPU {cpu} ")), "{}", replay.view);
    }
    assert_eq!(replay.view.matches("stopped by NMI").count(), 7);
    assert!(replay.summary.contains("The boot CPU was left parked and sent no INIT"), "{}", replay.summary);
    assert_eq!(count(&replay, EventKind::CrashSaved), 8);
}

#[test]
fn a_capture_kernel_with_one_cpu_is_shown_beside() {
    let replay = run(When::Now, &Options::default());
    assert!(replay.summary.contains("A capture kernel with one CPU did the same."), "{}", replay.summary);
    let row = replay.view.lines().find(|line| line.trim().starts_with("with one CPU")).expect("a row");
    let columns: Vec<&str> = row.split_whitespace().skip(3).collect();
    assert_eq!(columns[..4], ["0", "0", "0", "0"], "{row}");
    let alone = run(When::Now, &Options { cpus: Some(1), ..Options::default() });
    assert!(alone.is_as_expected() && !alone.view.contains("with one CPU"), "{}", alone.view);
}

#[test]
fn as_then_the_reports_first_solution_leaves_misrouted_interrupts_and_a_timer_that_is_held_back() {
    for seed in 1..=5 {
        let view = run(When::Then, &Options { seed, ..Options::default() }).view;
        assert!(view.contains("vector 0xb9 comes to the gate of interrupt 153: unexpected"), "{view}");
        assert!(view.contains("0 of 10 ticks taken; IRR 0x31 0x99, ISR 0xa9"), "{view}");
    }
}

#[test]
fn without_the_fault_then_is_not_lost() {
    for cpus in [1, 2, 8] {
        for seed in 1..=3 {
            let options = Options { fault: Fault::None, cpus: Some(cpus), seed, ..Options::default() };
            let replay = run(When::Then, &options);
            assert_eq!(replay.outcome, Outcome::Held, "{}", replay.summary);
            assert!(!replay.is_as_expected());
            assert_eq!(replay.laws.get(Law::L8), NONE);
            assert!(replay.diagnosis.is_healthy());
            let others = cpus - 1;
            let ran = format!("first call ran on {others} of {others} others");
            assert!(replay.summary.contains(&ran), "{}", replay.summary);
            assert_eq!(replay.ipis.taken, others as u64);
            assert_eq!(count(&replay, EventKind::DumpStarted), 1);
        }
    }
}

#[test]
fn without_the_fault_now_finds_nothing_and_writes_the_dump_all_the_same() {
    let replay = run(When::Now, &Options { fault: Fault::None, ..Options::default() });
    assert!(replay.is_as_expected(), "{}", replay.summary);
    assert!(replay.view.contains("taken by gates   none"), "{}", replay.view);
    assert!(replay.summary.contains("crashed with nothing pending"), "{}", replay.summary);
}

#[test]
fn the_stack_is_that_of_the_first_interrupt_enable() {
    let replay = run(When::Then, &Options::default());
    let frames: Vec<&str> = replay
        .view
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix('#')?.split_once(' '))
        .map(|(_, frame)| frame)
        .collect();
    let expected =
        ["die", "do_page_fault", "smp_call_function_interrupt", "call_function_interrupt", "start_kernel"];
    assert_eq!(frames, expected);
}

#[test]
fn another_cpu_needs_another_cpu() {
    for when in [When::Then, When::Now] {
        let options = Options { fault: Fault::AnotherCpu, cpus: Some(1), ..Options::default() };
        let replay = run(when, &options);
        assert_eq!(replay.outcome, Outcome::NotApplicable);
        assert!(replay.reason.expect("a reason").contains("no other one can crash"));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = |when, options: Options| {
        replay(Incident::PendingIpi, when, &options).expect_err("is refused").to_string()
    };
    let dead = Options { fault: Fault::DeadTarget, ..Options::default() };
    assert!(error(When::Now, dead).contains("cannot be replayed with fault dead-target"));
    let large = Options { cpus: Some(256), ..Options::default() };
    assert!(error(When::Then, large).contains("255 CPUs at the most"));
    let elsewhere = Options { fault: Fault::AnotherCpu, ..Options::default() };
    let lost_call = replay(Incident::LostCall, When::Then, &elsewhere).expect_err("is refused").to_string();
    assert!(lost_call.contains("which CPU is the boot CPU"), "{lost_call}");
}

#[test]
fn a_machine_of_many_cpus_comes_up_too() {
    for fault in [Fault::Reported, Fault::AnotherCpu] {
        let replay = run(When::Now, &Options { cpus: Some(300), fault, ..Options::default() });
        assert!(replay.is_as_expected(), "{}", replay.summary);
    }
}

#[test]
fn equal_seeds_give_equal_events_and_others_do_not() {
    for when in [When::Then, When::Now] {
        let bytes = |seed| run(when, &Options { seed, ..Options::default() }).trace.to_bytes();
        let first = bytes(3);
        // Another machine on the same thread in between.
        assert_ne!(first, bytes(4), "{when}");
        assert_eq!(first, bytes(3), "{when}");
    }
}

#[test]
fn the_json_has_the_names_that_scripts_rely_on() {
    let replay = run(When::Now, &Options::default());
    let json = serde_json::to_value(&replay).expect("serializable");
    assert_eq!(json["incident"], "pending-ipi");
    assert_eq!((&json["cpus"], &json["routing"]), (&2.into(), &"mach-default".into()));
    assert_eq!((&json["outcome"], &json["laws"]["L8"]), (&"held".into(), &"held".into()));
    assert_eq!(json["events"], replay.trace.events.len());
}

#[test]
fn the_picture_names_the_incident() {
    let picture = run(When::Then, &Options::default()).timeline();
    assert!(picture.contains("pending-ipi, as then: lost"), "{picture:.400}");
}
