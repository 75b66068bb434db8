//! Incident 1 as now: the same machine and the same fault, with `smpcall` in the place of `smp_call_function`.

use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::cell::RefCell;
use std::collections::BTreeSet;

use smpcall::{Diagnosis, ManyError, TargetState};
use smpcall_diagnosis::{CallEvidence, MachineEvidence, diagnose};
use smpcall_machine::{Cpu, Event, EventKind, Instant, Machine, Word};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::kernel::{Calls, Hooks};
use smpcall_simulator::{CpuReport, RING_VECTOR, SimMachine, SimMemory, Trace, World, program};

use super::{Cast, DEAD_FOR, DEAD_FROM, human, soft_lockup, view, wait_for_the_moment};
use crate::evidence::{self, Waiter};
use crate::incident::{Incident, ReplayError, Setup, When};
use crate::laws::{CallBooks, TargetBooks};
use crate::replay::{Outcome, Replay};

/// How long the caller is ready to wait: longer than the soft-lockup check, so that both can be seen with a dead
/// target. (Ours.)
pub(super) const LIMIT: Duration = Duration::from_secs(15);

/// The run is over by then, whatever becomes of it. (Ours.)
const TIME_LIMIT: Instant = Instant::from_nanos(2 * LIMIT.as_nanos() as u64);

/// The machine runs on for this long after the call: a ring may still be on its way, and a call that was given up
/// must not run any more. (Ours.)
const SETTLING: Duration = Duration::from_millis(5);

/// What the caller was told, and the machine at that moment.
struct Answer {
    at: Instant,
    waited: Duration,
    timed_out: Vec<Cpu>,
    /// The first of those, and why.
    diagnosis: Option<(Cpu, Diagnosis)>,
    reports: Vec<CpuReport>,
    /// See [`counted`].
    counted: Vec<(&'static str, u64)>,
}

/// From the timer interrupt of every CPU. A soft lockup is recorded and nothing else: a crash stop is for whoever
/// configures one, and this kernel does not.
fn tick(_: &smpcall_simulator::InterruptFrame) {
    soft_lockup::check();
}

/// The caller's stack, from the outermost frame that the report names; the call itself is ours.
fn del_gendisk(buffers_dropped: &[Word<SimMemory>], limit: Duration) -> Answer {
    let _del_gendisk = program::frame("del_gendisk");
    let _invalidate_partition = program::frame("invalidate_partition");
    let _invalidate_device = program::frame("__invalidate_device");
    let _invalidate_bdev = program::frame("invalidate_bdev");
    let called = SimMachine::now();
    let result = {
        let _call = program::frame("call_others");
        Calls::within(limit).call_others(|cpu| {
            // Relaxed: the call itself carries what its closures write to the caller.
            buffers_dropped[cpu.index()].fetch_add(1, Relaxed);
        })
    };
    let at = SimMachine::now();
    let (timed_out, diagnosis) = match result {
        Ok(()) => (vec![], None),
        Err(ManyError::Failed(failures)) => (failures.timed_out.iter().collect(), failures.diagnosis),
        Err(ManyError::NotSent(error)) => panic!("a task with interrupts enabled can call: {error}"),
    };
    let reports = (0..program::cpus() as u32).map(|cpu| program::inspect(Cpu::new(cpu))).collect();
    Answer { at, waited: at.since(called), timed_out, diagnosis, reports, counted: vec![] }
}

/// Whether the machine is in the state that was reported: the caller is in its wait with interrupts enabled, and all
/// targets but one ran the call, which lies unclaimed with that one.
fn is_reported_state(cast: Cast, caller: &CpuReport, events: &[Event], runs: &[u64]) -> bool {
    let unclaimed = unclaimed(cast, events);
    !caller.waits.is_empty()
        && evidence::task_has_interrupts_enabled(caller)
        && unclaimed.len() == 1
        && cast.others().all(|cpu| (runs[cpu.index()] == 0) == unclaimed.contains(&cpu))
}

/// The targets that the caller's call lies queued with: neither claimed there, nor withdrawn or refused.
fn unclaimed(cast: Cast, events: &[Event]) -> Vec<Cpu> {
    let settles = |event: &Event, target: Cpu| match event.kind {
        EventKind::CallClaimed => event.cpu == target && event.other == Some(cast.caller),
        EventKind::CallWithdrawn | EventKind::CallRefused => {
            event.cpu == cast.caller && event.other == Some(target)
        }
        _ => false,
    };
    let events = since_queued(cast, events);
    let queued = |target: &Cpu| !events.is_empty() && !events.iter().any(|event| settles(event, *target));
    cast.others().filter(queued).collect()
}

/// What happened from the call on; nothing if it was not made.
fn since_queued(cast: Cast, events: &[Event]) -> &[Event] {
    let queued = |event: &Event| event.kind == EventKind::ManyQueued && event.cpu == cast.caller;
    &events[events.iter().position(queued).unwrap_or(events.len())..]
}

/// Whether a target has looked into its mailbox after the caller took the call back from it.
fn looked_since_withdrawn(cast: Cast, target: Cpu, events: &[Event]) -> bool {
    let withdrawn = |event: &Event| {
        event.kind == EventKind::CallWithdrawn && event.cpu == cast.caller && event.other == Some(target)
    };
    let at = events.iter().position(withdrawn).unwrap_or(events.len());
    events[at..].iter().any(|event| event.kind == EventKind::MarksTaken && event.cpu == target)
}

/// Replays it.
pub(crate) fn now(setup: &Setup) -> Result<Replay, ReplayError> {
    replayed(setup, LIMIT, TIME_LIMIT)
}

/// Replays it with a caller that waits for `limit`, until `end` if it waits longer.
fn replayed(setup: &Setup, limit: Duration, end: Instant) -> Result<Replay, ReplayError> {
    let cast = Cast::of(setup);
    let buffers_dropped: Vec<Word<SimMemory>> = cast.all().map(|_| Word::new(0)).collect();
    let answer = RefCell::new(None);
    let hooks = Hooks { tick: Some(tick), ..Hooks::default() };
    let mut world = World::with_kernel(&cast.config(setup), hooks)?;
    soft_lockup::reset();
    cast.occupy_others(&mut world);
    world.spawn(cast.caller, || {
        wait_for_the_moment();
        soft_lockup::touch();
        answer.replace(Some(del_gendisk(&buffers_dropped, limit)));
        soft_lockup::touch();
        program::stop();
    });
    // Relaxed: the machine stands still whenever this is called.
    let runs = || -> Vec<u64> { buffers_dropped.iter().map(|count| count.load(Relaxed)).collect() };
    world.run(end);
    let lost = is_reported_state(cast, &world.inspect(cast.caller), &world.trace().events, &runs());
    let mut answer = answer.take();
    if let Some(answer) = &mut answer {
        answer.counted = counted(&world);
        let woken = if answer.timed_out.is_empty() { world.time() } else { DEAD_FROM.plus(DEAD_FOR) };
        world.run_on(world.time().max(woken).plus(SETTLING));
    }
    let outcome = if lost { Outcome::Lost } else { Outcome::Held };
    let replay = told(setup, cast, &world, outcome, limit, answer.as_ref(), &runs());
    // SAFETY: 1. Nothing that is used from here on refers to the programs' stacks: the mailboxes, which lead to the call
    // there, are emptied before another machine gets them; `told` has copied what it tells; the machine is not run any
    // more. 2. What lives there are named frames, a call and copies of numbers: nobody relies on their being dropped.
    unsafe { world.forget_programs() };
    Ok(replay)
}

fn told(
    setup: &Setup,
    cast: Cast,
    world: &World<'_>,
    outcome: Outcome,
    limit: Duration,
    answer: Option<&Answer>,
    runs: &[u64],
) -> Replay {
    let counters = world.counters();
    let trace = world.trace();
    let rings_repeated = world.mailbox_counters(|counters| counters.rings_repeated.get());
    let was_told = |cpu: &Cpu| answer.is_some_and(|answer| answer.timed_out.contains(cpu));
    let books = CallBooks {
        targets: cast
            .others()
            .map(|cpu| TargetBooks {
                runs: runs[cpu.index()],
                told: was_told(&cpu),
                looked_since: looked_since_withdrawn(cast, cpu, &trace.events),
            })
            .collect(),
        returned_after: answer.map(|answer| answer.waited),
        limit: Some(limit),
        rings_lost: counters.ipis_lost,
        rings_repeated,
    };
    let reports: Vec<CpuReport> = cast.all().map(|cpu| world.inspect(cpu)).collect();
    let ipis = Ipis {
        sent: counters.ipis_sent,
        taken: counters.taken[RING_VECTOR as usize],
        lost: counters.ipis_lost,
        resent: rings_repeated,
    };
    Replay {
        incident: Incident::LostCall,
        when: When::Now,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome,
        reason: None,
        laws: books.judge(),
        ipis,
        diagnosis: diagnose(&evidence(cast, answer, &reports, &trace)),
        view: seen(answer, &reports, world),
        summary: summary(cast, limit, answer, ipis, &trace),
        trace,
    }
}

/// Who was told that a target did not answer looks at the machine then; else there is nothing to see before the end.
fn seen(answer: Option<&Answer>, at_the_end: &[CpuReport], world: &World<'_>) -> String {
    match answer.filter(|answer| !answer.timed_out.is_empty()) {
        Some(answer) => view::now(&answer.reports, &answer.counted),
        None => view::now(at_the_end, &counted(world)),
    }
}

/// The sum over all CPUs of each counter of the protocol; of the longest waits the longest.
fn counted(world: &World<'_>) -> Vec<(&'static str, u64)> {
    let mut sums: Vec<(&'static str, u64)> = Vec::new();
    let Some(mailboxes) = world.mailboxes() else { return sums };
    for mailbox in mailboxes.cpus().filter_map(|cpu| mailboxes.get(cpu)) {
        for (index, (name, value)) in mailbox.counters().iter().enumerate() {
            match sums.get_mut(index) {
                Some(sum) if name == "longest_wait" => sum.1 = sum.1.max(value),
                Some(sum) => sum.1 += value,
                None => sums.push((name, value)),
            }
        }
    }
    sums
}

/// The machine when the caller was told that a target did not answer; if all did, the machine at the end.
fn evidence(cast: Cast, answer: Option<&Answer>, reports: &[CpuReport], trace: &Trace) -> MachineEvidence {
    let Some((answer, (diagnosed, diagnosis))) = answer.and_then(|answer| Some((answer, answer.diagnosis?)))
    else {
        return evidence::of_machine(reports, &trace.events, None);
    };
    let until = trace.events.iter().position(|event| event.time > answer.at).unwrap_or(trace.events.len());
    let targets = answer.timed_out.iter().map(|cpu| cpu.number()).collect();
    let waiter = Waiter { cpu: cast.caller, targets, waited: answer.waited };
    let mut evidence = evidence::of_machine(&answer.reports, &trace.events[..until], Some(&waiter));
    // One target alone was looked into; of the others nothing is known but that they did not answer.
    evidence.cpus[diagnosed.index()].answered_probe = match diagnosis.target {
        TargetState::InterruptsDisabled { .. } | TargetState::NotTaken { .. } => Some(true),
        TargetState::NoSignOfLife => Some(false),
        _ => None,
    };
    let rung: BTreeSet<Cpu> =
        since_queued(cast, &trace.events[..until]).iter().filter_map(evidence::rung).collect();
    // The closure has no name of its own: it is that of the function that called.
    let function = answer.reports[cast.caller.index()].frames.last().map(|&frame| frame.to_owned());
    for &target in &answer.timed_out {
        evidence.calls.push(CallEvidence {
            function: function.clone(),
            rung: Some(rung.contains(&target)),
            nanos: Some(answer.waited.as_nanos() as u64),
            ..CallEvidence::queued(cast.caller.number(), target.number())
        });
    }
    evidence
}

fn summary(cast: Cast, limit: Duration, answer: Option<&Answer>, ipis: Ipis, trace: &Trace) -> String {
    let (caller, others) = (cast.caller, cast.cpus - 1);
    let Some(answer) = answer else {
        return format!("{caller} called {others} others, and the call did not return within the run.");
    };
    let ran = others - answer.timed_out.len();
    let mut out = format!(
        "{caller} called {others} others; the call ran on {ran} and returned after {}. {} of {} rings lost, {} sent again.",
        human(answer.waited),
        ipis.lost,
        ipis.sent,
        ipis.resent
    );
    let mut add = |sentence: core::fmt::Arguments<'_>| {
        // Writing to a `String` cannot fail.
        let _ = write!(out, " {sentence}");
    };
    if let Some((target, diagnosis)) = &answer.diagnosis {
        let why = match diagnosis.target {
            TargetState::InterruptsDisabled { .. } => "it answers NMIs and has its interrupts disabled",
            TargetState::NotTaken { .. } => "it answers NMIs and does not take its rings",
            TargetState::NoSignOfLife => "it does not even answer an NMI",
            TargetState::Offline => "it is offline",
            TargetState::Busy { .. } => "it is busy in an earlier call",
            TargetState::NotProbed => "it did not answer",
        };
        add(format_args!(
            "The caller was told at its deadline of {} s that {target} did not run it: {why}.",
            limit.as_secs()
        ));
    }
    let lockups = || trace.events.iter().filter(|event| event.kind == EventKind::SoftLockup);
    let stalled = |event: &Event| Duration::from_nanos(event.argument).as_secs_f64();
    for event in lockups().filter(|event| event.time <= answer.at) {
        add(format_args!(
            "Meanwhile the soft-lockup check reported {}, after {:.1} s without progress; no crash stop is configured.",
            event.cpu,
            stalled(event)
        ));
    }
    for &target in answer.timed_out.iter().filter(|&&cpu| looked_since_withdrawn(cast, cpu, &trace.events)) {
        let ran = trace.events.iter().any(|event| event.kind == EventKind::CallRun && event.cpu == target);
        let what = if ran { "ran the call all the same" } else { "found nothing to run" };
        add(format_args!("{target} then woke, looked into its mailbox and {what}."));
    }
    for event in lockups().filter(|event| event.time > answer.at) {
        add(format_args!(
            "The soft-lockup check there reported its {:.1} s without progress.",
            stalled(event)
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::Fault;
    use crate::laws::{Judgement, Law};
    use smpcall_diagnosis::VerdictKind;
    use smpcall_local_apic::Routing;
    use smpcall_machine::Deadline;
    use smpcall_simulator::{Config, WaitReport};

    const CPUS: usize = 4;

    /// After the call, and while a dead target is dead.
    const IN_BETWEEN: Instant = Instant::from_nanos(1_000_000_000);

    fn setup(fault: Fault) -> Setup {
        Setup {
            incident: Incident::LostCall,
            when: When::Now,
            cpus: CPUS,
            routing: Routing::Flat,
            seed: 1,
            fault,
        }
    }

    fn event(kind: EventKind, cpu: u32, other: Option<u32>, detail: u32) -> Event {
        let (cpu, other) = (Cpu::new(cpu), other.map(Cpu::new));
        Event { time: Instant::default(), kind, cpu, other, detail, argument: 0 }
    }

    #[test]
    fn a_caller_still_in_its_wait_for_the_one_that_has_not_claimed_is_lost() {
        let an_hour = Duration::from_secs(3600);
        let replay = replayed(&setup(Fault::DeadTarget), an_hour, IN_BETWEEN).expect("a machine");
        assert_eq!(replay.outcome, Outcome::Lost);
        assert!(!replay.is_as_expected());
        assert_eq!([Law::L1, Law::L3].map(|law| replay.laws.get(law)), [Judgement::Broken; 2]);
    }

    #[test]
    fn a_run_that_is_over_before_the_call_is_not_lost_and_not_as_expected() {
        let replay = replayed(&setup(Fault::Reported), LIMIT, Instant::from_nanos(1000)).expect("a machine");
        assert_eq!(replay.outcome, Outcome::Held);
        assert!(!replay.laws.hold() && !replay.is_as_expected());
    }

    #[test]
    fn a_broken_law_shows_in_the_laws_and_not_in_the_outcome() {
        let mut replay = now(&setup(Fault::Reported)).expect("a machine");
        assert!(replay.is_as_expected());
        let twice = TargetBooks { runs: 2, told: false, looked_since: false };
        let books = CallBooks {
            targets: vec![twice],
            returned_after: Some(Duration::ZERO),
            limit: Some(LIMIT),
            rings_lost: 0,
            rings_repeated: 0,
        };
        replay.laws = books.judge();
        assert_eq!((replay.outcome, replay.is_as_expected()), (Outcome::Held, false));
    }

    #[test]
    fn the_reported_state_is_one_unclaimed_target_and_a_caller_in_its_wait() {
        let setup = setup(Fault::DeadTarget);
        let cast = Cast::of(&setup);
        assert_eq!(cast.caller, Cpu::new(3));
        let world = World::new(&Config::new(CPUS, Routing::Flat, 1)).expect("a machine");
        let mut caller = world.inspect(cast.caller);
        let claimed = |cpu| event(EventKind::CallClaimed, cpu, Some(3), 0);
        let mut events = vec![event(EventKind::ManyQueued, 3, None, 0), claimed(0), claimed(2)];
        let runs = [1, 0, 1, 0];
        assert!(!is_reported_state(cast, &caller, &events, &runs), "it does not wait");
        let (source, since) = (core::panic::Location::caller(), Instant::default());
        caller.waits.push(WaitReport { source, since, deadline: Deadline::NEVER });
        assert!(is_reported_state(cast, &caller, &events, &runs));
        assert!(!is_reported_state(cast, &caller, &events[..2], &[1, 0, 0, 0]), "two have not claimed it");
        assert!(!is_reported_state(cast, &caller, &[], &runs), "there is no call");
        events.push(event(EventKind::CallWithdrawn, 3, Some(1), 0));
        assert!(!is_reported_state(cast, &caller, &events, &runs), "it was given up");
    }

    /// A caller on CPU 3 that gave up CPUs 0 and 1, of which 1 was looked into, and only 0 was rung.
    fn two_timed_out() -> MachineEvidence {
        let cast = Cast::of(&setup(Fault::DeadTarget));
        let world = World::new(&Config::new(CPUS, Routing::Flat, 1)).expect("a machine");
        let reports: Vec<CpuReport> = cast.all().map(|cpu| world.inspect(cpu)).collect();
        let target = TargetState::NoSignOfLife;
        let diagnosis = Diagnosis { target, rings_repeated: 0, waited: LIMIT };
        let answer = Answer {
            at: Instant::default(),
            waited: LIMIT,
            timed_out: vec![Cpu::new(0), Cpu::new(1)],
            diagnosis: Some((Cpu::new(1), diagnosis)),
            reports: reports.clone(),
            counted: vec![],
        };
        let ring = |to| event(EventKind::IpiSent, 3, Some(to), RING_VECTOR.into());
        // What was rung before the call was not rung for it.
        let events = vec![ring(1), event(EventKind::ManyQueued, 3, None, 0), ring(0)];
        evidence(cast, Some(&answer), &reports, &Trace { events, ..Trace::default() })
    }

    #[test]
    fn only_the_target_that_was_looked_into_has_its_diagnosis() {
        let probed = two_timed_out().cpus.iter().map(|cpu| cpu.answered_probe).collect::<Vec<_>>();
        assert_eq!(probed, [None, Some(false), None, None]);
        let dead = diagnose(&two_timed_out()).verdicts;
        let dead = dead.iter().filter(|verdict| verdict.kind == VerdictKind::CpuDead);
        assert_eq!(dead.map(|verdict| verdict.cpu).collect::<Vec<_>>(), [Some(1)]);
    }

    #[test]
    fn a_target_counts_as_rung_if_a_ring_for_the_call_was_sent_to_it() {
        let calls = two_timed_out().calls;
        assert_eq!(
            calls.iter().map(|call| (call.target, call.rung)).collect::<Vec<_>>(),
            [(0, Some(true)), (1, Some(false))]
        );
    }
}
