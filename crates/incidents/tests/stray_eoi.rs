//! Incident 4: as then another handler's in-service bit is cleared and no vector lost, as now only what is in service is ended,
//! on machines of many sizes and for many seeds.

use smpcall_diagnosis::VerdictKind;
use smpcall_incidents::{Fault, Incident, Judgement, Law, Options, Outcome, Replay, When, replay};
use smpcall_local_apic::Routing;
use smpcall_machine::EventKind;

const HELD: Judgement = Judgement::Held;
const NONE: Judgement = Judgement::NotApplicable;

/// irq 0, the slower devices and the disk.
const LEGACY_TIMER: u32 = 0x30;
const SLOW: [u32; 3] = [0x31, 0x34, 0x3c];
const DISK: u32 = 0x41;

fn run(when: When, options: &Options) -> Replay {
    replay(Incident::StrayEoi, when, options).expect("the options fit")
}

/// A few machines with each routing, each with a few seeds.
fn machines() -> impl Iterator<Item = Options> {
    let small = [2, 3, 8].into_iter().flat_map(|cpus| Routing::ALL.map(|routing| (cpus, routing)));
    let large = [17, 64].into_iter().flat_map(|cpus| {
        [Routing::Physical, Routing::X2ApicPhysical, Routing::X2ApicCluster].map(|routing| (cpus, routing))
    });
    small.chain(large).flat_map(|(cpus, routing)| {
        (1..=3).map(move |seed| Options {
            cpus: Some(cpus),
            routing: Some(routing),
            seed,
            ..Options::default()
        })
    })
}

fn count(replay: &Replay, kind: EventKind, detail: u32) -> usize {
    replay.trace.events.iter().filter(|event| event.kind == kind && event.detail == detail).count()
}

#[test]
fn as_then_a_running_handlers_bit_is_cleared_on_every_machine_and_no_vector_is_lost() {
    for options in machines() {
        let replay = run(When::Then, &options);
        assert_eq!(replay.outcome, Outcome::Lost, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected());
        assert!(replay.summary.contains("Vectors lost: 0."), "{options:?}: {}", replay.summary);
        let verdict = &replay.diagnosis.verdicts[0];
        assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::StrayEoi, Some(0)), "{options:?}");
        assert_eq!(verdict.function.as_deref(), Some("apic_ack_edge"));
        // Every interrupt that was sent and not lost was taken, or one that was pending was taken for it.
        assert!(replay.ipis.taken + replay.ipis.lost <= replay.ipis.sent);
        assert_eq!(replay.laws.get(Law::L2), HELD, "{options:?}: {}", replay.summary);
    }
}

#[test]
fn as_then_most_stray_ends_find_nothing_in_service_and_do_nothing() {
    for seed in 1..=10 {
        let replay = run(When::Then, &Options { seed, ..Options::default() });
        let events = &replay.trace.events;
        // After the end of interrupt of nothing by irq 0's handler, nothing that is in service is another than before.
        let of_nothing = count(&replay, EventKind::EndOfInterrupt, 0);
        let ext_ints = count(&replay, EventKind::InterruptTaken, LEGACY_TIMER);
        assert!(of_nothing * 2 > ext_ints && ext_ints > 100, "{of_nothing} of {ext_ints}");
        assert_eq!(count(&replay, EventKind::EndOfInterrupt, LEGACY_TIMER), 0, "it is never in service");
        assert!(events.iter().all(|event| event.kind != EventKind::IpiRejected));
    }
}

#[test]
fn as_now_the_same_machines_end_only_what_is_in_service_and_no_task_stalls_for_more_than_a_tick() {
    for options in machines() {
        let replay = run(When::Now, &options);
        assert_eq!(replay.outcome, Outcome::Held, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected(), "{options:?}: {} {:?}", replay.summary, replay.laws);
        let laws = [Law::L1, Law::L2, Law::L3].map(|law| replay.laws.get(law));
        assert_eq!(laws, [HELD; 3], "{options:?}: {}", replay.summary);
        assert!(replay.diagnosis.is_healthy(), "{options:?}");
        assert!(replay.ipis.lost > 10, "{options:?}");
        assert_eq!(count(&replay, EventKind::EndOfInterrupt, 0), 0, "{options:?}");
        // Whoever is taken is ended once, except for the ExtINT.
        for vector in SLOW.into_iter().chain([DISK]) {
            let taken = count(&replay, EventKind::InterruptTaken, vector);
            assert_eq!(taken, count(&replay, EventKind::EndOfInterrupt, vector), "{options:?}");
            assert!(taken > 50, "{options:?}");
        }
        assert!(count(&replay, EventKind::InterruptTaken, LEGACY_TIMER) > 100, "{options:?}");
        assert_eq!(count(&replay, EventKind::EndOfInterrupt, LEGACY_TIMER), 0, "{options:?}");
    }
}

#[test]
fn thousands_are_woken() {
    for when in [When::Then, When::Now] {
        let replay = run(when, &Options::default());
        assert!(replay.summary.contains(" tasks were woken"), "{}", replay.summary);
        assert!(replay.ipis.sent > 3000, "{}", replay.ipis.sent);
    }
}

#[test]
fn without_the_fault_irq_0_is_in_service_and_then_is_not_lost() {
    for seed in 1..=5 {
        for when in [When::Then, When::Now] {
            let replay = run(when, &Options { fault: Fault::None, seed, ..Options::default() });
            assert_eq!(replay.outcome, Outcome::Held, "{}", replay.summary);
            assert!(replay.diagnosis.is_healthy());
            let taken = count(&replay, EventKind::InterruptTaken, LEGACY_TIMER);
            assert!(taken > 100);
            assert_eq!(taken, count(&replay, EventKind::EndOfInterrupt, LEGACY_TIMER));
            assert_eq!(count(&replay, EventKind::EndOfInterrupt, 0), 0);
            assert_eq!((replay.ipis.lost, replay.ipis.resent), (0, 0));
            assert_eq!(replay.laws.get(Law::L2), NONE);
            assert_eq!(replay.is_as_expected(), when == When::Now);
        }
    }
}

#[test]
fn an_apic_that_holds_two_of_a_class_has_the_others_offered_again_and_loses_none() {
    for routing in [Routing::Flat, Routing::Physical, Routing::NumaQ] {
        for seed in 1..=3 {
            let options =
                Options { fault: Fault::OldApic, routing: Some(routing), seed, ..Options::default() };
            for (when, outcome) in [(When::Then, Outcome::Lost), (When::Now, Outcome::Held)] {
                let replay = run(when, &options);
                assert_eq!(replay.outcome, outcome, "{routing}: {}", replay.summary);
                assert!(replay.is_as_expected(), "{routing}: {}", replay.summary);
                assert!(replay.view.contains("offered an interrupt again"), "{}", replay.view);
                let lost = ["Vectors lost: 0.", "vectors lost: 0."];
                assert!(lost.iter().any(|none| replay.summary.contains(none)), "{}", replay.summary);
            }
        }
    }
    let today = run(When::Now, &Options { routing: Some(Routing::Flat), ..Options::default() });
    assert!(!today.view.contains("offered an interrupt again"), "{}", today.view);
}

#[test]
fn such_an_apic_has_no_x2apic_mode() {
    for when in [When::Then, When::Now] {
        let replay = run(when, &Options { fault: Fault::OldApic, ..Options::default() });
        assert_eq!(replay.outcome, Outcome::NotApplicable);
        assert!(replay.reason.is_some_and(|reason| reason.contains("xAPIC mode")));
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
fn the_costs_are_told_for_every_routing_that_fits() {
    let view = |cpus| run(When::Now, &Options { cpus: Some(cpus), ..Options::default() }).view;
    let (small, large) = (view(8), view(100));
    for routing in Routing::ALL {
        let line = format!("  {:<15} mask path then", routing.name());
        assert!(small.contains(&line), "{small}");
        assert_eq!(large.contains(&line), routing.max_cpus() >= 100, "{large}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = |options: Options| {
        replay(Incident::StrayEoi, When::Then, &options).expect_err("is refused").to_string()
    };
    let alone = error(Options { cpus: Some(1), ..Options::default() });
    assert!(alone.starts_with("stray-eoi needs at least 2 CPUs"), "{alone}");
    let dead = error(Options { fault: Fault::DeadTarget, ..Options::default() });
    assert!(dead.contains("cannot be replayed with fault dead-target"), "{dead}");
}

#[test]
fn the_picture_names_the_incident() {
    let picture = run(When::Then, &Options { cpus: Some(3), ..Options::default() }).timeline();
    assert!(picture.contains("stray-eoi, as then: lost"), "{picture:.400}");
}
