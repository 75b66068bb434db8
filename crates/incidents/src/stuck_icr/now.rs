//! Incident 3 as now: the same machine and the same fault, with the crash stop of `smpcall` over the driver that ships.
//!
//! The driver's wait for the ICR is bounded: patience for an NMI, the stuck command once more, then an error. The crash stop
//! repeats its NMI, by rounds that share its limit, and goes on whatever becomes of them.

use core::time::Duration;
use std::cell::RefCell;
use std::collections::BTreeMap;

use smpcall::vmcore::Absence;
use smpcall::{Crash, CrashStop};
use smpcall_diagnosis::{BusyController, MachineEvidence, diagnose};
use smpcall_machine::{Cpu, Event, EventKind, Instant, Machine};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::stopping::{check_crash, crash};
use smpcall_simulator::{CpuReport, SimCpuSet, SimMachine, Trace, World, program};

use super::{Cast, TIME_LIMIT, cannot_happen, human, ranges, reports, then, view};
use crate::evidence::{self, Waiter};
use crate::incident::{ReplayError, Setup, When};
use crate::laws::{Law, Laws};
use crate::replay::{Outcome, Replay};

/// How long a crash stop may last, by `STOP_LIMIT`, and what comes around its waits. (Ours.)
const LIMIT: Duration = SimMachine::STOP_LIMIT.saturating_add(Duration::from_millis(1));

/// The crash stop has ended, and the machine at that moment.
pub(super) struct Ended {
    at: Instant,
    pub(super) saved: Vec<Cpu>,
    /// Who is missing, and what is known of them.
    pub(super) missing: Vec<(Cpu, Absence)>,
    pub(super) reports: Vec<CpuReport>,
}

#[cfg(test)]
impl Ended {
    /// One that ended a second after the start of the clock, with nothing to see on its CPUs.
    pub(super) fn for_test(saved: Vec<Cpu>, missing: Vec<(Cpu, Absence)>) -> Self {
        Self { at: Instant::from_nanos(1_000_000_000), saved, missing, reports: vec![] }
    }
}

/// What the trace says of the crash stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Course {
    /// When it began.
    pub(super) began: Option<Instant>,
    /// Rounds in which an NMI was to be sent to those that had not saved.
    pub(super) rounds: u64,
    /// Rounds of these in which the controller did not take it for all.
    pub(super) refused: u64,
    /// NMIs that left for a target, the rewritten command's included.
    pub(super) sent: u64,
    /// Of these, the ones to a CPU that one was sent to before.
    pub(super) repeated: u64,
}

impl Course {
    fn of(cast: Cast, events: &[Event]) -> Self {
        let mut course = Self::default();
        let mut targets: BTreeMap<Cpu, u64> = BTreeMap::new();
        for event in events.iter().filter(|event| event.cpu == cast.crasher) {
            match event.kind {
                EventKind::CrashWon => course.began = Some(event.time),
                _ if course.began.is_none() => {}
                EventKind::StopSent => course.rounds += 1,
                EventKind::RingFailed => course.refused += 1,
                EventKind::IpiSent => {
                    course.sent += 1;
                    if let Some(target) = event.other {
                        *targets.entry(target).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
        course.repeated = targets.values().map(|sent| sent - 1).sum();
        course
    }
}

thread_local! {
    // Of the machine that this thread simulates.
    static ENDED: RefCell<Option<Ended>> = const { RefCell::new(None) };
}

/// What the CPU that has crashed does when its crash stop has ended: it boots the capture kernel, of which this keeps that it
/// came to it. The machine stands still afterwards.
#[allow(clippy::needless_pass_by_value, reason = "a hook is given the crash")]
fn machine_kexec(crash: Crash<SimMachine>) {
    let _frame = program::frame("machine_kexec");
    let why = |cpu| Some((cpu, crash.why_missing(cpu)?));
    let ended = Ended {
        at: SimMachine::now(),
        saved: crash.saved.iter().collect(),
        missing: crash.missing.iter().filter_map(why).collect(),
        reports: (0..program::cpus() as u32).map(|cpu| program::inspect(Cpu::new(cpu))).collect(),
    };
    ENDED.replace(Some(ended));
    program::record(EventKind::DumpStarted, None, 0, 0);
    program::stop();
}

/// Replays it.
pub(crate) fn now(setup: &Setup) -> Result<Replay, ReplayError> {
    if let Some(reason) = cannot_happen(setup.routing) {
        return Ok(Replay::not_applicable(setup, reason));
    }
    let cast = Cast::of(setup);
    let hooks = Hooks { crashed: Some(machine_kexec), ..Hooks::default() };
    let mut world = World::with_kernel(&cast.config(setup), hooks)?;
    ENDED.take();
    cast.occupy_others(&mut world);
    world.spawn(cast.crasher, || {
        cast.comes_to_it();
        let _panic = program::frame("panic");
        crash();
    });
    world.run(TIME_LIMIT);
    let replay = told(setup, cast, &world, ENDED.take().as_ref());
    // SAFETY: 1. Nothing that is used from here on refers to the programs' stacks: the mailboxes are emptied before another
    // machine gets them, `told` has copied what it tells, and the machine is not run any more. 2. What lives there are named
    // frames and copies of numbers: nobody relies on their being dropped.
    unsafe { world.forget_programs() };
    replay
}

fn told(setup: &Setup, cast: Cast, world: &World<'_>, ended: Option<&Ended>) -> Result<Replay, ReplayError> {
    let trace = world.trace();
    let counters = world.counters();
    let course = Course::of(cast, &trace.events);
    let at_the_end = reports(world);
    let lost = cast.is_reported_state(&at_the_end, ended.is_some());
    Ok(Replay {
        incident: setup.incident,
        when: When::Now,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome: if lost { Outcome::Lost } else { Outcome::Held },
        reason: None,
        laws: judge(cast, world, ended, course),
        ipis: Ipis {
            sent: counters.ipis_sent,
            taken: counters.nmis_taken,
            lost: counters.ipis_lost,
            resent: course.repeated,
        },
        diagnosis: diagnose(&evidence(cast, ended, &at_the_end, course, &trace)),
        view: view::now(setup, cast, ended, course, &at_the_end)?,
        summary: summary(cast, ended, course),
        trace,
    })
}

/// How long the crash stop took.
pub(super) fn took(ended: &Ended, course: Course) -> Option<Duration> {
    Some(ended.at.since(course.began?))
}

fn judge(cast: Cast, world: &World<'_>, ended: Option<&Ended>, course: Course) -> Laws {
    let in_time = ended.and_then(|ended| took(ended, course)).is_some_and(|took| took <= LIMIT);
    // Those that can take an NMI, or come out of their handler: they must have saved.
    let able: SimCpuSet =
        if cast.others_come_back() { cast.all().collect() } else { [cast.crasher].into_iter().collect() };
    let complete = matches!(check_crash(world, &able), Ok(Some(_)));
    let all_named = ended.is_some_and(|ended| ended.saved.len() + ended.missing.len() == cast.cpus);
    Laws::NOT_APPLICABLE.with([(Law::L3, in_time), (Law::L7, in_time && complete && all_named)])
}

/// The machine when the crash stop ended; if it did not, at the end of the run.
fn evidence(
    cast: Cast,
    ended: Option<&Ended>,
    at_the_end: &[CpuReport],
    course: Course,
    trace: &Trace,
) -> MachineEvidence {
    let Some((ended, took)) = ended.and_then(|ended| Some((ended, took(ended, course)?))) else {
        return evidence::of_machine(at_the_end, &trace.events, None);
    };
    // Who got no NMI by this crash was not asked.
    let asked = course.refused < course.rounds;
    let targets = ended.missing.iter().map(|(cpu, _)| cpu.number()).collect();
    let waiter = Waiter { cpu: cast.crasher, targets, waited: took };
    let mut evidence = evidence::of_machine(&ended.reports, &trace.events, asked.then_some(&waiter));
    for &(cpu, _) in ended.missing.iter().filter(|_| asked) {
        evidence.cpus[cpu.index()].answered_probe = Some(false);
    }
    if ended.reports[cast.crasher.index()].send_pending {
        evidence.busy_controllers.push(BusyController {
            cpu: cast.crasher.number(),
            nanos: Some(pending_for(cast, ended, took, &trace.events).as_nanos() as u64),
            still_waits: false,
            function: Some("crash_stop".into()),
            in_nmi_handlers: then::locked_up(cast, &ended.reports).map(Cpu::number).collect(),
        });
    }
    evidence
}

/// For how long the delivery status was seen pending: since the crash, or since a later command that was dispatched.
fn pending_for(cast: Cast, ended: &Ended, took: Duration, events: &[Event]) -> Duration {
    let dispatched = |event: &&Event| event.cpu == cast.crasher && event.kind == EventKind::IcrWritten;
    let last = events.iter().rev().find(dispatched);
    last.map_or(took, |event| took.min(ended.at.since(event.time)))
}

fn summary(cast: Cast, ended: Option<&Ended>, course: Course) -> String {
    let (crasher, others) = (cast.crasher, cast.cpus - 1);
    let Some((ended, took)) = ended.and_then(|ended| Some((ended, took(ended, course)?))) else {
        return format!("{crasher} crashed, and its crash stop did not end within the run.");
    };
    let saved = ended.saved.iter().filter(|&&cpu| cpu != crasher).count();
    let nmis = match (course.rounds, course.refused) {
        (rounds, refused) if rounds == refused => {
            format!("The controller took none of its NMIs in {rounds} rounds, each of which was bounded.")
        }
        (rounds, 0) => format!(
            "{} NMIs went out in {rounds} {}.",
            course.sent,
            if rounds == 1 { "round" } else { "rounds" }
        ),
        (rounds, refused) => {
            format!(
                "{} NMIs went out; in {refused} of {rounds} rounds the controller did not take them all.",
                course.sent
            )
        }
    };
    let missing = match ended.missing.as_slice() {
        [] => String::new(),
        missing => format!(" CPUs {} are named as missing.", ranges(missing.iter().map(|&(cpu, _)| cpu))),
    };
    format!(
        "{crasher} crashed. {nmis} {saved} of {others} others saved their registers.{missing} The dump began {} after the \
         crash (the limit is {}).",
        human(took),
        human(SimMachine::STOP_LIMIT),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident};
    use smpcall_local_apic::Routing;

    #[test]
    fn only_what_the_crash_stop_sent_is_counted() {
        let (incident, when) = (Incident::StuckIcr, When::Now);
        let cast = Cast::of(&Setup {
            incident,
            when,
            cpus: 3,
            routing: Routing::Flat,
            seed: 0,
            fault: Fault::Reported,
        });
        let event = |kind, cpu, other: Option<u32>| Event {
            time: Instant::from_nanos(7),
            kind,
            cpu: Cpu::new(cpu),
            other: other.map(Cpu::new),
            detail: 0,
            argument: 0,
        };
        let events = [
            event(EventKind::IpiSent, 0, Some(1)),
            event(EventKind::CrashWon, 0, None),
            event(EventKind::StopSent, 0, None),
            event(EventKind::RingFailed, 0, None),
            event(EventKind::IpiSent, 2, Some(0)),
            event(EventKind::StopSent, 0, None),
            event(EventKind::IpiSent, 0, Some(1)),
            event(EventKind::IpiSent, 0, Some(2)),
            event(EventKind::IpiSent, 0, Some(1)),
        ];
        let began = Some(Instant::from_nanos(7));
        assert_eq!(Course::of(cast, &events), Course { began, rounds: 2, refused: 1, sent: 3, repeated: 1 });
    }
}
