//! Incident 2: as then a CPU comes back to a queue that nobody rings for, as now every request and call is accounted for, on
//! machines of many sizes and for many seeds.

use smpcall_diagnosis::{Confidence, VerdictKind};
use smpcall_incidents::{Fault, Incident, Judgement, Law, Options, Outcome, Replay, When, replay};
use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, Event, EventKind};

const HELD: Judgement = Judgement::Held;
const BROKEN: Judgement = Judgement::Broken;
const NONE: Judgement = Judgement::NotApplicable;

fn run(when: When, options: &Options) -> Replay {
    replay(Incident::OfflineQueue, when, options).expect("the options fit")
}

/// A few machines with each routing, each with a few seeds.
fn machines() -> impl Iterator<Item = Options> {
    let small = [2, 3, 4, 8].into_iter().flat_map(|cpus| Routing::ALL.map(|routing| (cpus, routing)));
    let large = [17, 64].into_iter().flat_map(|cpus| {
        [Routing::Physical, Routing::X2ApicPhysical, Routing::X2ApicCluster].map(|routing| (cpus, routing))
    });
    small.chain(large).flat_map(|(cpus, routing)| {
        let seeds = if cpus <= 8 { 1..=4 } else { 1..=2 };
        seeds.map(move |seed| Options {
            cpus: Some(cpus),
            routing: Some(routing),
            seed,
            ..Options::default()
        })
    })
}

/// The CPU that goes and comes.
fn target(options: &Options) -> u32 {
    (options.cpus.unwrap_or(4) as u32 - 1).min(3)
}

fn laws(replay: &Replay) -> [Judgement; 5] {
    [Law::L1, Law::L2, Law::L3, Law::L5, Law::L6].map(|law| replay.laws.get(law))
}

fn times(replay: &Replay, is: impl Fn(&Event) -> bool) -> usize {
    replay.trace.events.iter().filter(|event| is(event)).count()
}

/// Rings that were sent to a CPU after it was started again.
fn rings_since_start(replay: &Replay, cpu: u32) -> usize {
    let started = replay.trace.events.iter().find(|event| event.kind == EventKind::StartedUp);
    let started = started.expect("it was started again").time;
    times(replay, |event| {
        let ring = event.kind == EventKind::IpiSent && event.detail == 0xfb;
        ring && event.other == Some(Cpu::new(cpu)) && event.time >= started
    })
}

#[test]
fn as_then_108_requests_and_the_notifiers_call_hang_on_every_machine() {
    for options in machines() {
        let replay = run(When::Then, &options);
        assert_eq!(replay.outcome, Outcome::Lost, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected());
        assert_eq!(laws(&replay), [BROKEN, BROKEN, BROKEN, BROKEN, NONE], "{options:?}");
        assert_eq!((replay.ipis.lost, replay.ipis.resent), (1, 0), "{options:?}");
        assert_eq!(rings_since_start(&replay, target(&options)), 0, "{options:?}");
        assert!(
            replay.view.contains("     108  trigger_softirq\n       1  iucv_declare_cpu\n"),
            "{}",
            replay.view
        );
        let verdict = &replay.diagnosis.verdicts[0];
        let expected = (VerdictKind::OfflineQueue, Some(target(&options)), Confidence::Certain);
        assert_eq!((verdict.kind, verdict.cpu, verdict.confidence), expected, "{options:?}");
        assert_eq!(verdict.waiters[0], u32::from(options.cpus != Some(2)), "{options:?}");
        assert_eq!(replay.diagnosis.verdicts.len(), 1, "{options:?}");
    }
}

#[test]
fn as_then_the_interrupt_was_sent_and_a_reset_has_forgotten_it() {
    for seed in 1..=10 {
        let replay = run(When::Then, &Options { seed, ..Options::default() });
        let at = |is: &dyn Fn(&Event) -> bool| replay.trace.events.iter().position(is).expect("it happened");
        let to_3 = |event: &Event, kind| event.kind == kind && event.cpu == Cpu::new(3);
        let reset = at(&|event| to_3(event, EventKind::Reset));
        let accepted = replay.trace.events[..reset].iter().rposition(|event| {
            to_3(event, EventKind::IpiAccepted) && event.detail == 0xfb && event.other == Some(Cpu::new(1))
        });
        let accepted = accepted.expect("CPU 1 had sent one");
        let taken = replay.trace.events[accepted..]
            .iter()
            .any(|event| to_3(event, EventKind::InterruptTaken) && event.detail == 0xfb);
        assert!(!taken, "seed {seed}");
    }
}

#[test]
fn as_now_the_same_machines_account_for_each_request_and_the_call_returns() {
    for options in machines() {
        let replay = run(When::Now, &options);
        assert_eq!(replay.outcome, Outcome::Held, "{options:?}: {}", replay.summary);
        assert!(replay.is_as_expected(), "{options:?}: {}", replay.summary);
        assert_eq!(laws(&replay), [HELD; 5], "{options:?}: {}", replay.summary);
        // The ring for the one that was taken over went with the reset; nobody waited for it, so nobody has repeated it.
        assert_eq!((replay.ipis.lost, replay.ipis.resent), (1, 0), "{options:?}");
        assert!(rings_since_start(&replay, target(&options)) > 0, "{options:?}");
        let goes = format!(
            "112 requests: 107 ended on CPU {}; 1 accepted as it went, and taken over by",
            target(&options)
        );
        assert!(replay.summary.contains(&goes), "{options:?}: {}", replay.summary);
        assert!(
            replay.summary.contains("; 4 refused while it was offline,"),
            "{options:?}: {}",
            replay.summary
        );
        assert!(replay.summary.contains("; 0 unaccounted for."), "{options:?}: {}", replay.summary);
        let work = |kind| times(&replay, |event| event.kind == kind);
        assert_eq!((work(EventKind::WorkRun), work(EventKind::PostAbandoned)), (107, 1), "{options:?}");
        assert!(replay.diagnosis.is_healthy(), "{options:?}");
    }
}

#[test]
fn without_the_fault_both_hold() {
    for options in machines().step_by(3) {
        for when in [When::Then, When::Now] {
            let replay = run(when, &Options { fault: Fault::None, ..options });
            assert_eq!(replay.outcome, Outcome::Held, "{}", replay.summary);
            let sixth = if when == When::Now { HELD } else { NONE };
            // The ring that asks the CPU to go may find that it has gone: it has served its mailbox by itself.
            let asked_late = when == When::Now && replay.ipis.lost == 1;
            let second = if asked_late { HELD } else { NONE };
            assert_eq!(laws(&replay), [HELD, second, HELD, HELD, sixth], "{when}: {}", replay.summary);
            assert!(asked_late || replay.ipis.lost == 0, "{when}");
            assert!(replay.diagnosis.is_healthy(), "{when}");
        }
    }
}

#[test]
fn the_boot_cpu_is_never_sent_init() {
    for options in machines().step_by(3) {
        for when in [When::Then, When::Now] {
            let replay = run(when, &options);
            assert_eq!(times(&replay, |event| event.kind == EventKind::BootCpuSentInit), 0, "{options:?}");
            assert_eq!(times(&replay, |event| event.kind == EventKind::Reset), 1, "{options:?}");
        }
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
    let mut lines = replay.view.lines().map(str::trim);
    assert_eq!((lines.next(), lines.next()), (Some("(cpu 1)"), Some("generic_exec_single")));
    let frames: Vec<&str> =
        lines.map_while(|line| line.strip_prefix('#')?.split_once(' ')).map(|(_, frame)| frame).collect();
    let reported = [
        "smp_call_function_single",
        "iucv_cpu_notify",
        "notifier_call_chain",
        "__raw_notifier_call_chain",
        "_cpu_up",
        "cpu_up",
        "store_online",
        "sysfs_write_file",
        "vfs_write",
        "sys_write",
        "sysc_noemu",
    ];
    assert_eq!(frames, reported);
    assert!(
        replay.view.contains("INIT, which clears the IRR"),
        "what is not as reported is said: {}",
        replay.view
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = |when, options: Options| {
        replay(Incident::OfflineQueue, when, &options).expect_err("is refused").to_string()
    };
    let alone = error(When::Now, Options { cpus: Some(1), ..Options::default() });
    assert!(alone.starts_with("offline-queue needs at least 2 CPUs"), "{alone}");
    let large = error(When::Then, Options { cpus: Some(65), ..Options::default() });
    assert!(large.contains("has room for 64 CPUs at the most"), "{large}");
    for when in [When::Then, When::Now] {
        let dead = error(when, Options { fault: Fault::DeadTarget, ..Options::default() });
        assert!(dead.contains("cannot be replayed with fault dead-target"), "{dead}");
    }
}

/// Of the second replay nothing is left but what the first has left.
#[test]
fn as_now_is_not_lost_although_as_then_was_before_on_the_same_thread() {
    let options = Options::default();
    let alone = run(When::Now, &options).trace.to_bytes();
    run(When::Then, &options);
    assert_eq!(run(When::Now, &options).trace.to_bytes(), alone);
}

#[test]
fn a_machine_of_many_cpus_holds_too() {
    let replay = run(When::Now, &Options { cpus: Some(512), ..Options::default() });
    assert!(replay.is_as_expected() && replay.routing == Routing::X2ApicPhysical, "{}", replay.summary);
    assert_eq!(laws(&replay), [HELD; 5]);
}

#[test]
fn the_picture_names_the_incident() {
    let picture = run(When::Then, &Options::default()).timeline();
    assert!(picture.contains("offline-queue, as then: lost"), "{picture:.400}");
}
