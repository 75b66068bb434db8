//! Incident 3: as then a crash is for ever in its wait for the ICR, as now it goes on within its limit, on every send path of
//! the report, on machines of many sizes and for many seeds.

use smpcall_diagnosis::{Confidence, VerdictKind};
use smpcall_incidents::{Fault, Incident, Judgement, Law, Options, Outcome, Replay, When, replay};
use smpcall_local_apic::{Mode, Routing};
use smpcall_machine::EventKind;

const HELD: Judgement = Judgement::Held;
const BROKEN: Judgement = Judgement::Broken;
const NONE: Judgement = Judgement::NotApplicable;

/// The send paths of the report.
const OF_THE_REPORT: [Routing; 8] = [
    Routing::MachDefault,
    Routing::BigSmp,
    Routing::Es7000,
    Routing::NumaQ,
    Routing::Summit,
    Routing::Flat,
    Routing::Cluster,
    Routing::Physical,
];

fn run(when: When, options: &Options) -> Replay {
    replay(Incident::StuckIcr, when, options).expect("the options fit")
}

/// Machines of some sizes with each of these routings that fits them, each with a few seeds.
fn machines(routings: &[Routing], fault: Fault) -> impl Iterator<Item = Options> {
    let sizes =
        [2, 3, 8, 17, 60].into_iter().flat_map(|cpus| routings.iter().map(move |&routing| (cpus, routing)));
    let fitting = sizes.filter(|(cpus, routing)| *cpus <= routing.max_cpus() as usize);
    fitting.flat_map(move |(cpus, routing)| {
        let seeds = if cpus <= 8 { 1..=4 } else { 1..=1 };
        seeds.map(move |seed| Options { cpus: Some(cpus), routing: Some(routing), seed, fault })
    })
}

fn laws(replay: &Replay) -> [Judgement; 3] {
    [Law::L1, Law::L3, Law::L7].map(|law| replay.laws.get(law))
}

fn count(replay: &Replay, kind: EventKind) -> usize {
    replay.trace.events.iter().filter(|event| event.kind == kind).count()
}

/// The CPU that crashes.
fn crasher(options: &Options) -> u32 {
    (options.seed % options.cpus.expect("given") as u64) as u32
}

#[test]
fn as_then_the_crash_is_for_ever_in_the_wait_on_every_send_path_of_the_report() {
    for fault in [Fault::Reported, Fault::UntilRewritten] {
        for options in machines(&OF_THE_REPORT, fault) {
            let replay = run(When::Then, &options);
            assert_eq!(replay.outcome, Outcome::Lost, "{options:?}: {}", replay.summary);
            assert!(replay.is_as_expected());
            assert_eq!(laws(&replay), [NONE, BROKEN, BROKEN], "{options:?}");
            assert_eq!(count(&replay, EventKind::DumpStarted), 0, "{options:?}");
            // Those that lock up the others, and none by the crash.
            let others = options.cpus.expect("given") as u64 - 1;
            assert_eq!(
                (replay.ipis.sent, replay.ipis.taken, replay.ipis.lost),
                (others, others, 0),
                "{options:?}"
            );
            let verdict = &replay.diagnosis.verdicts[0];
            assert_eq!(
                (verdict.kind, verdict.confidence),
                (VerdictKind::StuckIcr, Confidence::Certain),
                "{options:?}"
            );
            assert_eq!(
                (verdict.cpu, verdict.waiters.as_slice()),
                (Some(crasher(&options)), &[crasher(&options)][..])
            );
            assert_eq!(replay.diagnosis.verdicts.len(), 1, "{options:?}");
        }
    }
}

#[test]
fn as_now_the_crash_goes_on_and_names_everybody_on_every_xapic_routing() {
    let xapic: Vec<Routing> =
        Routing::ALL.into_iter().filter(|routing| routing.mode() == Mode::XApic).collect();
    for options in machines(&xapic, Fault::Reported) {
        let replay = run(When::Now, &options);
        assert_eq!(replay.outcome, Outcome::Held, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected(), "{options:?}: {}\n{}", replay.summary, replay.view);
        assert_eq!(laws(&replay), [NONE, HELD, HELD], "{options:?}");
        assert_eq!(count(&replay, EventKind::DumpStarted), 1, "{options:?}");
        let others = options.cpus.expect("given") - 1;
        assert_eq!(count(&replay, EventKind::CrashMissing), others, "{options:?}");
        assert_eq!(
            (count(&replay, EventKind::StopSent), count(&replay, EventKind::RingFailed)),
            (4, 4),
            "{options:?}"
        );
        assert_eq!((replay.ipis.sent, replay.ipis.resent), (others as u64, 0), "{options:?}");
        let verdict = &replay.diagnosis.verdicts[0];
        assert_eq!(
            (verdict.kind, verdict.cpu),
            (VerdictKind::StuckIcr, Some(crasher(&options))),
            "{options:?}"
        );
        assert!(verdict.waiters.is_empty(), "nobody waits for it any more");
    }
}

#[test]
fn as_now_a_controller_that_heals_when_it_is_written_to_is_written_to_and_the_nmis_go_out() {
    let xapic: Vec<Routing> =
        Routing::ALL.into_iter().filter(|routing| routing.mode() == Mode::XApic).collect();
    for options in machines(&xapic, Fault::UntilRewritten) {
        let replay = run(When::Now, &options);
        assert_eq!(
            (replay.outcome, laws(&replay)),
            (Outcome::Held, [NONE, HELD, HELD]),
            "{options:?}: {}",
            replay.summary
        );
        // One to lock up each; the rewritten command reaches one of them or all; one in each round.
        let others = options.cpus.expect("given") as u64 - 1;
        let stop_nmis = replay.ipis.sent - others;
        assert!((4 * others + 1..=5 * others).contains(&stop_nmis), "{options:?}: {}", replay.summary);
        assert_eq!(replay.ipis.resent, stop_nmis - others, "{options:?}");
        assert_eq!(count(&replay, EventKind::RingFailed), 0, "{options:?}");
        let dead = replay.diagnosis.verdicts.iter().filter(|verdict| verdict.kind == VerdictKind::CpuDead);
        assert_eq!(dead.count() as u64, others, "{options:?}: {:?}", replay.diagnosis.verdicts);
    }
}

#[test]
fn a_controller_that_heals_by_itself_is_waited_for_then_and_now_and_all_are_saved() {
    for options in machines(&OF_THE_REPORT, Fault::Transient) {
        for when in [When::Then, When::Now] {
            let replay = run(when, &options);
            assert_eq!(
                (replay.outcome, laws(&replay)),
                (Outcome::Held, [NONE, HELD, HELD]),
                "{when} {options:?}: {}",
                replay.summary
            );
            let others = options.cpus.expect("given") - 1;
            let all_saved = format!("{others} of {others} others saved their registers");
            assert!(replay.summary.contains(&all_saved), "{when} {options:?}: {}", replay.summary);
            assert!(replay.diagnosis.is_healthy(), "{when} {options:?}: {:?}", replay.diagnosis.verdicts);
        }
    }
}

#[test]
fn without_the_fault_neither_is_lost_and_each_other_cpu_gets_one_nmi_to_stop_it() {
    for options in machines(&OF_THE_REPORT, Fault::None) {
        for when in [When::Then, When::Now] {
            let replay = run(when, &options);
            assert_eq!(
                (replay.outcome, laws(&replay)),
                (Outcome::Held, [NONE, HELD, HELD]),
                "{when} {options:?}: {}",
                replay.summary
            );
            let others = options.cpus.expect("given") as u64 - 1;
            assert_eq!(
                (replay.ipis.sent, replay.ipis.taken, replay.ipis.resent),
                (2 * others, 2 * others, 0),
                "{when} {options:?}"
            );
            assert_eq!(count(&replay, EventKind::DumpStarted), 1, "{when} {options:?}");
            assert!(replay.diagnosis.is_healthy(), "{when} {options:?}");
        }
        assert!(!run(When::Then, &options).is_as_expected());
    }
}

#[test]
fn the_largest_machines_of_an_xapic_are_lost_then_and_hold_now() {
    let options = Options { cpus: Some(255), ..Options::default() };
    let then = run(When::Then, &options);
    assert_eq!((then.routing, then.outcome), (Routing::Physical, Outcome::Lost), "{}", then.summary);
    let now = run(When::Now, &options);
    assert!(now.is_as_expected(), "{}", now.summary);
    assert_eq!(count(&now, EventKind::CrashMissing), 254);
}

#[test]
fn on_x2apic_it_cannot_happen_and_the_reason_is_told() {
    for routing in [Routing::X2ApicPhysical, Routing::X2ApicCluster] {
        for when in [When::Then, When::Now] {
            let replay = run(when, &Options { routing: Some(routing), ..Options::default() });
            assert_eq!((replay.outcome, replay.is_as_expected()), (Outcome::NotApplicable, true));
            assert!(
                replay.reason.is_some_and(|reason| reason.contains("no delivery-status bit")),
                "{:?}",
                replay.reason
            );
        }
    }
    assert_eq!(
        run(When::Now, &Options { cpus: Some(300), ..Options::default() }).outcome,
        Outcome::NotApplicable
    );
    // No kernel of the report sent like this; ours does.
    let clusters = Options { routing: Some(Routing::XApicCluster), ..Options::default() };
    assert_eq!(run(When::Then, &clusters).outcome, Outcome::NotApplicable);
    assert_eq!(run(When::Now, &clusters).outcome, Outcome::Held);
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = |options: &Options| {
        replay(Incident::StuckIcr, When::Then, options).expect_err("is refused").to_string()
    };
    let flat = Options { cpus: Some(9), routing: Some(Routing::MachDefault), ..Options::default() };
    assert!(error(&flat).contains("routing mach-default reaches 8 CPUs at the most"), "{}", error(&flat));
    let alone = Options { cpus: Some(1), ..Options::default() };
    assert!(error(&alone).contains("one that crashes and one to be stopped"), "{}", error(&alone));
    let dead = Options { fault: Fault::DeadTarget, ..Options::default() };
    assert!(error(&dead).contains("transient, until-rewritten"), "{}", error(&dead));
    for fault in [Fault::Transient, Fault::UntilRewritten] {
        let options = Options { fault, ..Options::default() };
        let elsewhere = replay(Incident::LostCall, When::Now, &options).expect_err("is refused").to_string();
        assert!(elsewhere.contains("delivery status"), "{elsewhere}");
    }
}

#[test]
fn the_stack_is_the_send_path_of_the_report() {
    let stack = |routing| {
        let replay = run(When::Then, &Options { routing: Some(routing), ..Options::default() });
        let frames =
            replay.view.lines().filter_map(|line| line.trim_start().strip_prefix('#')?.split_once(' '));
        frames.map(|(_, frame)| frame.to_owned()).collect::<Vec<_>>()
    };
    let above = ["nmi_shootdown_cpus", "machine_crash_shutdown", "crash_kexec", "panic"];
    for (routing, below) in [
        (Routing::MachDefault, &["send_IPI_mask_bitmask", "send_IPI_mask"][..]),
        (Routing::Summit, &["send_IPI_mask_sequence", "send_IPI_mask"]),
        (Routing::Flat, &["flat_send_IPI_mask", "flat_send_IPI_allbutself", "send_IPI_allbutself"]),
        (
            Routing::Physical,
            &[
                "send_IPI_mask_sequence",
                "physflat_send_IPI_mask",
                "physflat_send_IPI_allbutself",
                "send_IPI_allbutself",
            ],
        ),
    ] {
        let expected = [&["apic_wait_icr_idle"], below, &["smp_send_nmi_allbutself"], &above].concat();
        assert_eq!(stack(routing), expected, "{routing}");
    }
}

#[test]
fn the_table_has_all_policies_and_their_measured_costs() {
    for when in [When::Then, When::Now] {
        let view = run(when, &Options::default()).view;
        let row = |name: &str| -> Vec<String> {
            let line = view
                .lines()
                .find(|line| line.starts_with(&format!("  {name:<5}")))
                .unwrap_or_else(|| panic!("{name}: {view}"));
            line.split("  ").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        assert!(row("then").ends_with(&["never".into(), "never".into()]), "{view}");
        for old in ["a", "b-1", "b-2"] {
            assert!(row(old).ends_with(&["100.1 ms".into(), "701.0 ms".into()]), "{view}");
        }
        assert!(row("ours").ends_with(&["100.0 ms".into(), "100.3 ms".into()]), "{view}");
        assert!(row("a").iter().any(|part| part.starts_with("100.") && part.ends_with(" us")), "{view}");
        assert!(row("ours").iter().any(|part| part.ends_with(" ns")), "{view}");
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
