//! Incident 1 as now: the same machine and the same fault, with `smpcall` in the place of `smp_call_function`.

use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::cell::RefCell;

use smpcall::{Diagnosis, ManyError, TargetState};
use smpcall_diagnosis::{CallEvidence, MachineEvidence, diagnose};
use smpcall_machine::{Cpu, EventKind, Instant, Machine, Word};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::kernel::{Calls, Hooks};
use smpcall_simulator::{CpuReport, RING_VECTOR, SimMachine, SimMemory, Trace, World, program};

use super::{Cast, human, soft_lockup, view, wait_for_the_moment};
use crate::evidence::{self, Waiter};
use crate::incident::{Incident, ReplayError, Setup, When};
use crate::laws::{CallBooks, TargetBooks};
use crate::replay::{Outcome, Replay};

/// How long the caller is ready to wait: longer than the soft-lockup check, so that both can be seen with a dead target.
const LIMIT: Duration = Duration::from_secs(15);

/// The run is over by then, whatever becomes of it.
const TIME_LIMIT: Instant = Instant::from_nanos(2 * LIMIT.as_nanos() as u64);

/// The machine runs on for this long after the call: a ring may still be on its way, and a call that was given up
/// must not run any more.
const SETTLING: Duration = Duration::from_millis(5);

/// What the caller was told, and the machine at that moment.
struct Answer {
    at: Instant,
    waited: Duration,
    timed_out: Vec<Cpu>,
    /// The first of those, and why.
    diagnosis: Option<(Cpu, Diagnosis)>,
    reports: Vec<CpuReport>,
}

/// From the timer interrupt of every CPU. A soft lockup is recorded and nothing else: a crash stop is for whoever
/// configures one, and this kernel does not.
fn tick(_: &smpcall_simulator::InterruptFrame) {
    soft_lockup::check();
}

/// The caller's stack, from the outermost frame that the report names; the call itself is ours.
fn del_gendisk(buffers_dropped: &[Word<SimMemory>]) -> Answer {
    let _del_gendisk = program::frame("del_gendisk");
    let _invalidate_partition = program::frame("invalidate_partition");
    let _invalidate_device = program::frame("__invalidate_device");
    let _invalidate_bdev = program::frame("invalidate_bdev");
    let called = SimMachine::now();
    let result = {
        let _call = program::frame("call_others");
        Calls::within(LIMIT).call_others(|cpu| {
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
    Answer { at, waited: at.since(called), timed_out, diagnosis, reports }
}

/// Replays it.
pub(crate) fn now(setup: &Setup) -> Result<Replay, ReplayError> {
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
        answer.replace(Some(del_gendisk(&buffers_dropped)));
        soft_lockup::touch();
        program::stop();
    });
    world.run(TIME_LIMIT);
    world.run_on(world.time().plus(SETTLING));

    let answer = answer.take();
    let runs: Vec<u64> = buffers_dropped.iter().map(|count| count.load(Relaxed)).collect();
    Ok(told(setup, cast, &world, answer.as_ref(), &runs))
}

fn told(setup: &Setup, cast: Cast, world: &World<'_>, answer: Option<&Answer>, runs: &[u64]) -> Replay {
    let counters = world.counters();
    let trace = world.trace();
    let rings_repeated = world.mailbox_counters(|counters| counters.rings_repeated.get());
    let was_told = |cpu: &Cpu| answer.is_some_and(|answer| answer.timed_out.contains(cpu));
    let books = CallBooks {
        targets: cast
            .others()
            .map(|cpu| TargetBooks { runs: runs[cpu.index()], told: was_told(&cpu) })
            .collect(),
        returned_after: answer.map(|answer| answer.waited),
        limit: Some(LIMIT),
        rings_lost: counters.ipis_lost,
        rings_repeated,
    };
    let laws = books.judge();
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
        // The reported state is a caller that nobody ever answers.
        outcome: if answer.is_some() && laws.hold() { Outcome::Held } else { Outcome::Lost },
        laws,
        ipis,
        diagnosis: diagnose(&evidence(cast, answer, &reports, &trace)),
        view: view::now(&reports, &counted(world)),
        summary: summary(cast, answer, ipis, &trace),
        trace,
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
    let Some((answer, (_, diagnosis))) = answer.and_then(|answer| Some((answer, answer.diagnosis?))) else {
        return evidence::of_machine(reports, &trace.events, None);
    };
    let until = trace.events.iter().position(|event| event.time > answer.at).unwrap_or(trace.events.len());
    let targets = answer.timed_out.iter().map(|cpu| cpu.number()).collect();
    let waiter = Waiter { cpu: cast.caller, targets, waited: answer.waited };
    let mut evidence = evidence::of_machine(&answer.reports, &trace.events[..until], Some(&waiter));
    for &target in &answer.timed_out {
        evidence.cpus[target.index()].answered_probe = match diagnosis.target {
            TargetState::InterruptsDisabled { .. } | TargetState::NotTaken { .. } => Some(true),
            TargetState::NoSignOfLife => Some(false),
            _ => None,
        };
        evidence.calls.push(CallEvidence {
            function: Some("invalidate_bdev".into()),
            rung: Some(true),
            nanos: Some(answer.waited.as_nanos() as u64),
            ..CallEvidence::queued(cast.caller.number(), target.number())
        });
    }
    evidence
}

fn summary(cast: Cast, answer: Option<&Answer>, ipis: Ipis, trace: &Trace) -> String {
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
            LIMIT.as_secs()
        ));
    }
    for event in trace.events.iter().filter(|event| event.kind == EventKind::SoftLockup) {
        let stalled = Duration::from_nanos(event.argument).as_secs_f64();
        add(format_args!(
            "Meanwhile the soft-lockup check reported {}, after {stalled:.1} s without progress; no crash stop is configured.",
            event.cpu
        ));
    }
    out
}
