//! Incident 1: as then it ends in the reported state, as now it holds, on machines of many sizes and for many seeds.

use smpcall_diagnosis::VerdictKind;
use smpcall_incidents::{Fault, Incident, Judgement, Law, Options, Outcome, Replay, When, replay};
use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, Event, EventKind};

const HELD: Judgement = Judgement::Held;
const BROKEN: Judgement = Judgement::Broken;
const NONE: Judgement = Judgement::NotApplicable;

fn run(when: When, options: &Options) -> Replay {
    replay(Incident::LostCall, when, options).expect("the options fit")
}

/// A few machines in each APIC mode, each with a few seeds.
fn machines() -> impl Iterator<Item = Options> {
    let small = [2, 3, 5, 8].into_iter().flat_map(|cpus| Routing::ALL.map(|routing| (cpus, routing)));
    let large = [16, 33, 64].into_iter().flat_map(|cpus| {
        [Routing::Physical, Routing::X2ApicPhysical, Routing::X2ApicCluster].map(|routing| (cpus, routing))
    });
    let seeds = |(cpus, routing): (usize, Routing)| {
        let seeds = if cpus <= 8 { 1..=6 } else { 1..=2 };
        seeds.map(move |seed| Options {
            cpus: Some(cpus),
            routing: Some(routing),
            seed,
            ..Options::default()
        })
    };
    small.chain(large).flat_map(seeds)
}

fn laws(replay: &Replay) -> [Judgement; 4] {
    [Law::L1, Law::L2, Law::L3, Law::L4].map(|law| replay.laws.get(law))
}

fn events(replay: &Replay, kind: EventKind) -> Vec<&Event> {
    replay.trace.events.iter().filter(|event| event.kind == kind).collect()
}

/// The CPU whose interrupt the fault lost.
fn victim(replay: &Replay) -> u32 {
    let lost = events(replay, EventKind::IpiLost);
    assert_eq!(lost.len(), 1);
    lost[0].other.expect("a message has a target").number()
}

#[test]
fn as_then_the_call_is_lost_on_every_machine_and_the_diagnosis_names_the_cpu() {
    for options in machines() {
        let replay = run(When::Then, &options);
        assert_eq!(replay.outcome, Outcome::Lost, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected());
        assert_eq!(laws(&replay), [BROKEN, BROKEN, BROKEN, NONE], "{options:?}");
        let others = options.cpus.expect("given") as u64 - 1;
        let ipis = replay.ipis;
        assert_eq!((ipis.sent, ipis.taken, ipis.lost, ipis.resent), (2 * others, 2 * others - 1, 1, 0));
        assert_eq!(events(&replay, EventKind::SoftLockup).len(), 1, "{options:?}");
        assert_eq!(events(&replay, EventKind::DumpStarted).len(), 1, "{options:?}");
        let verdict = &replay.diagnosis.verdicts[0];
        assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::IpiLost, Some(victim(&replay))), "{options:?}");
    }
}

#[test]
fn as_now_the_same_machines_hold_with_one_ring_sent_again() {
    for options in machines() {
        let replay = run(When::Now, &options);
        assert_eq!(replay.outcome, Outcome::Held, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected());
        assert_eq!(laws(&replay), [HELD, HELD, HELD, NONE], "{options:?}");
        let others = options.cpus.expect("given") as u64 - 1;
        let ipis = replay.ipis;
        assert_eq!(
            (ipis.sent, ipis.taken, ipis.lost, ipis.resent),
            (others + 1, others, 1, 1),
            "{options:?}"
        );
        let again = events(&replay, EventKind::RungAgain);
        assert_eq!(again[0].other.map(Cpu::number), Some(victim(&replay)), "{options:?}");
        assert_eq!(replay.diagnosis.verdicts[0].kind, VerdictKind::Healthy, "{options:?}");
    }
}

#[test]
fn then_and_now_lose_the_same_message() {
    let options = Options { seed: 11, ..Options::default() };
    assert_eq!(victim(&run(When::Then, &options)), victim(&run(When::Now, &options)));
}

#[test]
fn without_the_fault_then_is_not_lost() {
    for seed in 1..=5 {
        let options = Options { fault: Fault::None, seed, ..Options::default() };
        let replay = run(When::Then, &options);
        assert_eq!(replay.outcome, Outcome::Held);
        assert!(!replay.is_as_expected());
        assert_eq!(laws(&replay), [HELD, NONE, HELD, NONE]);
        assert_eq!((replay.ipis.sent, replay.ipis.taken, replay.ipis.lost), (15, 15, 0));
        assert!(replay.diagnosis.is_healthy());
        assert!(events(&replay, EventKind::SoftLockup).is_empty());
    }
}

#[test]
fn without_the_fault_now_sends_nothing_again() {
    let replay = run(When::Now, &Options { fault: Fault::None, ..Options::default() });
    assert_eq!(replay.outcome, Outcome::Held);
    assert_eq!((replay.ipis.sent, replay.ipis.taken, replay.ipis.resent), (15, 15, 0));
}

#[test]
fn a_dead_target_is_diagnosed_by_the_deadline_and_a_soft_lockup_reported_and_nothing_crashes() {
    for seed in 1..=3 {
        let replay = run(When::Now, &Options { fault: Fault::DeadTarget, seed, ..Options::default() });
        assert_eq!(replay.outcome, Outcome::Held, "{}", replay.summary);
        assert_eq!(laws(&replay), [HELD, NONE, HELD, HELD]);
        let dead = events(&replay, EventKind::Wedged)[0].cpu.number();
        let verdict = &replay.diagnosis.verdicts[0];
        assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::InterruptsOff, Some(dead)));
        let lockups = events(&replay, EventKind::SoftLockup);
        // The caller while it waits; perhaps the dead one, if its tick comes before its idle loop as it wakes.
        let mut stalled = lockups.iter().map(|event| event.cpu.number());
        assert_eq!(stalled.next(), Some(5));
        assert!(stalled.all(|cpu| cpu == dead));
        assert!(events(&replay, EventKind::DumpStarted).is_empty());
        let told =
            format!("was told at its deadline of 15 s that CPU {dead} did not run it: it answers NMIs");
        assert!(replay.summary.contains(&told), "{}", replay.summary);
        let woke = format!("CPU {dead} then woke, looked into its mailbox and found nothing to run");
        assert!(replay.summary.contains(&woke), "{}", replay.summary);
        assert!(replay.view.contains("does not move"), "{}", replay.view);
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
fn the_stack_is_that_of_the_report() {
    let replay = run(When::Then, &Options::default());
    let frames: Vec<&str> = replay
        .view
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix('#')?.split_once(' '))
        .map(|(_, frame)| frame)
        .collect();
    let reported = [
        "start_disk_dump",
        "try_dump",
        "try_crashdump",
        "update_process_times",
        "smp_local_timer_interrupt",
        "smp_apic_timer_interrupt",
        "apic_timer_interrupt",
        "[exception at: __smp_call_function, interrupts enabled]",
        "smp_call_function",
        "on_each_cpu",
        "invalidate_bdev",
        "__invalidate_device",
        "invalidate_partition",
        "del_gendisk",
    ];
    assert_eq!(frames, reported);
    assert!(replay.view.contains("saved_call_data: started 14, finished 14 of 15"), "{}", replay.view);
    assert!(replay.view.contains("call_data:       started 15, finished 15 of 15"), "{}", replay.view);
}

#[test]
fn what_the_reporter_saw_does_not_name_the_missing_cpu() {
    let replay = run(When::Then, &Options::default());
    let missing = format!("CPU {} ", victim(&replay));
    let prose = format!("{} {}", replay.summary, replay.view.split("CAL").next().expect("a first part"));
    assert!(!prose.contains(&missing), "{prose}");
}

#[test]
fn the_json_has_the_names_that_scripts_rely_on() {
    let replay = run(When::Now, &Options::default());
    let json = serde_json::to_value(&replay).expect("serializable");
    assert_eq!(json["incident"], "lost-call");
    assert_eq!(json["when"], "now");
    assert_eq!(json["routing"], "physflat");
    assert_eq!(json["outcome"], "held");
    assert_eq!(json["laws"]["L2"], "held");
    assert_eq!(json["laws"]["L5"], "n/a");
    assert_eq!(json["ipis"], serde_json::json!({"sent": 16, "taken": 15, "lost": 1, "resent": 1}));
    assert_eq!(json["diagnosis"][0]["kind"], "healthy");
    assert_eq!(json["events"], replay.trace.events.len());
}

#[test]
fn the_picture_names_the_incident_and_is_the_same_each_time() {
    let options = Options { cpus: Some(4), ..Options::default() };
    let picture = run(When::Now, &options).timeline();
    assert!(picture.starts_with("<?xml") || picture.starts_with("<svg"), "{picture:.40}");
    assert!(picture.contains("lost-call, as now: held"));
    assert_eq!(picture, run(When::Now, &options).timeline());
}
