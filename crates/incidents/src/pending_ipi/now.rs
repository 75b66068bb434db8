//! Incident 5 as now: the same machine and the same module, with a hand-over that drains what is pending.
//!
//! A second machine has a capture kernel that uses one CPU, as its documentation advised then: it is shown beside the first.

use core::time::Duration;

use smpcall::CrashStop;
use smpcall::vmcore::Role;
use smpcall_diagnosis::{PendingAtCrash, diagnose};
use smpcall_local_apic::{Drained, Vectors};
use smpcall_machine::{Cpu, Instant};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::{CpuReport, SimMachine, Trace, World};

use super::capture::{self, Capture};
use super::dump::{self, Dump};
use super::scene::{self, CALL_FUNCTION};
use super::{Cast, NO_OTHER_CPU, TIME_LIMIT, human, listed, view};
use crate::incident::{ReplayError, Setup, When};
use crate::laws::{CallBooks, Law, Laws, TargetBooks};
use crate::replay::{Outcome, Replay};

/// How much later than its limit a crash stop may be over: what comes before and after the wait. (Ours.)
const STOP_LATENESS: Duration = Duration::from_millis(1);

/// What became of one machine.
pub(super) struct Course {
    pub(super) cast: Cast,
    /// The crashed CPU as it left the first kernel, and after the drain, by the machine itself.
    pub(super) at_crash: Option<CpuReport>,
    after_drain: Option<CpuReport>,
    pub(super) drained: Option<Drained>,
    pub(super) drain_took: Duration,
    /// What the inert gates have counted.
    pub(super) gates: Vec<(u8, u64)>,
    not_in_service: u64,
    handlers_at: Option<Instant>,
    smp_init_at: Option<Instant>,
    /// The interrupts that the crashed CPU took in the capture kernel.
    taken: Vec<(Instant, u8)>,
    pub(super) started: Vec<Cpu>,
    pub(super) silent: usize,
    pub(super) answered: usize,
    calls: CallBooks,
    /// What was read back from the disk, if the capture kernel says that it has written all of it.
    pub(super) dump: Result<Dump, String>,
    pub(super) boot_cpu_inits: u64,
    ipis: Ipis,
}

impl Course {
    /// The interrupts between the installation of real handlers and the start of other CPUs. Nobody has sent any yet, so they
    /// are the old kernel's.
    fn old_interrupts(&self) -> impl Iterator<Item = u8> + '_ {
        let early = |at: Instant| {
            self.handlers_at.is_some_and(|begin| at >= begin) && self.smp_init_at.is_none_or(|end| at < end)
        };
        self.taken.iter().filter(move |&&(at, _)| early(at)).map(|&(_, vector)| vector)
    }

    /// Whether the machine is in the state that was reported: the first interrupt that a handler of the capture kernel took is
    /// the old kernel's call-function IPI, before other CPUs are started, and the kernel came to no end.
    fn is_reported_state(&self) -> bool {
        self.old_interrupts().next() == Some(CALL_FUNCTION) && self.dump.is_err()
    }

    /// Whether the capture kernel has got rid of all that it found, before it had handlers.
    fn is_drained(&self) -> bool {
        let left = |report: &CpuReport| !report.requested.is_empty() || !report.in_service.is_empty();
        let Some(begin) = self.handlers_at else { return false };
        let by_gates = self.taken.iter().filter(|(at, _)| *at < begin).count() as u64;
        self.drained.is_some_and(|drained| drained.is_quiet())
            && self.after_drain.as_ref().is_some_and(|report| !left(report))
            && by_gates == self.gates.iter().map(|(_, count)| count).sum::<u64>()
            && self.not_in_service == 0
    }

    /// Nothing old has entered the capture kernel, no INIT went to the boot CPU, and the dump says what there was.
    fn holds_l8(&self) -> bool {
        self.is_drained()
            && self.old_interrupts().next().is_none()
            && self.boot_cpu_inits == 0
            && self.dump_tells_the_truth()
    }

    /// What the dump says was pending and in service is what the machine had there.
    fn dump_tells_the_truth(&self) -> bool {
        let (Ok(dump), Some(at_crash)) = (&self.dump, &self.at_crash) else { return false };
        dump.pending.is_some_and(|pending| {
            let same =
                |words: [u32; 8], found: &[u8]| Vectors::from_words(words).iter().eq(found.iter().copied());
            pending.cpu == self.cast.crasher.number()
                && same(pending.requested, &at_crash.requested)
                && same(pending.in_service, &at_crash.in_service)
        })
    }

    /// One CPU has won, each that ran has saved itself, and it was in time.
    fn holds_l7(&self) -> bool {
        let Ok(dump) = &self.dump else { return false };
        let mut winners = dump.stopped.iter().filter(|(stopped, _)| stopped.role == Role::Winner);
        let limit = (SimMachine::STOP_LIMIT + STOP_LATENESS).as_nanos() as u64;
        winners.next().is_some_and(|(winner, _)| winner.cpu == self.cast.crasher.number())
            && winners.next().is_none()
            && dump.stopped.len() == self.cast.running()
            && dump.missing.is_empty()
            && dump.summary.is_some_and(|summary| summary.waited <= limit)
    }

    fn laws(&self) -> Laws {
        let laws = if self.started.is_empty() { Laws::NOT_APPLICABLE } else { self.calls.judge() };
        let each_answered = self.answered == self.started.len() && self.silent == 0;
        let l1 = laws.get(Law::L1) == crate::laws::Judgement::Held;
        let calls = (!self.started.is_empty()).then_some((Law::L1, l1 && each_answered));
        laws.with(calls).with([(Law::L7, self.holds_l7()), (Law::L8, self.holds_l8())])
    }
}

/// One machine, from the first kernel's boot to the end of the dump.
fn run(setup: &Setup, cast: Cast, smp: bool) -> Result<(Course, Vec<CpuReport>, Trace), ReplayError> {
    let mut world = World::with_kernel(&cast.config(setup), capture::hooks())?;
    let capture = Capture::load(&mut world, cast, smp);
    scene::first_kernel(&mut world, cast, capture::panic);
    world.run(TIME_LIMIT);
    let trace = world.trace();
    let course = course(&world, cast, &capture, &trace);
    let reports = super::reports(&world);
    capture::unload();
    // SAFETY: 1. Nothing that is used from here on refers to the programs' stacks: the mailboxes, which lead to calls there, are
    // emptied before another machine gets them; everything told is copied; the machine is not run any more. 2. What lives
    // there are named frames and reference-counted memory: nobody relies on their being dropped.
    unsafe { world.forget_programs() };
    Ok((course, reports, trace))
}

fn course(world: &World<'_>, cast: Cast, capture: &Capture, trace: &Trace) -> Course {
    let started = capture.started.take();
    let rings_repeated = world.mailboxes_of(capture.image).map_or(0, |mailboxes| {
        let counters = mailboxes.cpus().filter_map(|cpu| mailboxes.get(cpu));
        counters.map(|mailbox| mailbox.counters().rings_repeated.get()).sum()
    });
    let target = |&cpu: &Cpu| TargetBooks { runs: capture.runs_on(cpu), told: false, looked_since: false };
    let calls = CallBooks {
        targets: started.iter().map(target).collect(),
        returned_after: capture.returned_after.get(),
        limit: Some(capture::LIMIT),
        rings_lost: world.counters().ipis_lost,
        rings_repeated,
    };
    let written =
        if capture.finished.get() { Ok(capture.disk.take()) } else { Err("it was not written".to_owned()) };
    Course {
        cast,
        at_crash: capture.at_crash.take(),
        after_drain: capture.after_drain.take(),
        drained: capture.drained.get(),
        drain_took: capture.drain_took.get(),
        gates: capture.gates.entered().collect(),
        not_in_service: capture.gates.not_in_service(),
        handlers_at: capture.handlers_at.get(),
        smp_init_at: capture.smp_init_at.get(),
        taken: super::taken_by_the_capture_kernel(cast.crasher, &trace.events).collect(),
        started,
        silent: capture.silent.get(),
        answered: capture.answered.get(),
        calls,
        dump: written.and_then(|file| dump::read(&file)),
        boot_cpu_inits: world.boot_cpu_inits(),
        ipis: super::ipis(world, &trace.events, rings_repeated),
    }
}

/// Replays it.
pub(crate) fn now(setup: &Setup) -> Result<Replay, ReplayError> {
    let Some(cast) = Cast::of(setup) else { return Ok(Replay::not_applicable(setup, NO_OTHER_CPU)) };
    let (course, reports, trace) = run(setup, cast, true)?;
    let alone = if setup.cpus > 1 { Some(run(setup, cast, false)?.0) } else { None };
    let mut laws = course.laws();
    if let Some(alone) = &alone {
        laws = laws.with([
            (Law::L7, course.holds_l7() && alone.holds_l7()),
            (Law::L8, course.holds_l8() && alone.holds_l8()),
        ]);
    }
    let pending = course.at_crash.as_ref().map(|at_crash| PendingAtCrash {
        cpu: cast.crasher.number(),
        requested: at_crash.requested.clone(),
        in_service: at_crash.in_service.clone(),
        drained: Some(course.is_drained()),
        taken: course.old_interrupts().next(),
        function: None,
    });
    Ok(Replay {
        incident: setup.incident,
        when: When::Now,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome: if course.is_reported_state() { Outcome::Lost } else { Outcome::Held },
        reason: None,
        laws,
        ipis: course.ipis,
        diagnosis: diagnose(&super::evidence(&reports, &trace.events, pending)),
        view: view::now(&course, alone.as_ref()),
        summary: summary(&course, alone.as_ref()),
        trace,
    })
}

fn summary(course: &Course, alone: Option<&Course>) -> String {
    let crasher = course.cast.crasher;
    let (Some(at_crash), Some(drained)) = (&course.at_crash, course.drained) else {
        return format!("{crasher} was to crash, and did not come into the capture kernel.");
    };
    let taken: u64 = course.gates.iter().map(|(_, count)| count).sum();
    let left = if course.is_drained() { "nothing remained" } else { "not all of it was gone" };
    let found = if at_crash.requested.is_empty() && at_crash.in_service.is_empty() {
        format!("{crasher} crashed with nothing pending.")
    } else {
        format!(
            "{crasher} crashed with {} pending and {} in service. The capture kernel's inert gates took {taken} interrupts after {} \
             was ended, within {}; {left}.",
            listed(at_crash.requested.iter().copied()),
            listed(at_crash.in_service.iter().copied()),
            listed(drained.ended.iter()),
            human(course.drain_took),
        )
    };
    let boot_cpu = if crasher.number() == 0 { "" } else { " The boot CPU was left parked and sent no INIT." };
    let dump = match &course.dump {
        Ok(dump) if course.dump_tells_the_truth() => {
            format!("wrote a dump of {} notes, which says what was pending and in service", dump.notes)
        }
        Ok(dump) => format!(
            "wrote a dump of {} notes, which does not say what was pending and in service",
            dump.notes
        ),
        Err(error) => format!("left no dump: {error}"),
    };
    let beside = alone.map_or("", |alone| {
        if alone.dump_tells_the_truth() {
            " A capture kernel with one CPU did the same."
        } else {
            " A capture kernel with one CPU did not."
        }
    });
    format!(
        "{found} It then started {} of {} others, {} of which answered its calls, and {dump}.{boot_cpu}{beside}",
        course.started.len(),
        course.cast.cpus - 1,
        course.answered,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident};
    use crate::laws::Judgement;
    use smpcall_local_apic::Routing;

    fn course() -> Course {
        let (incident, when, routing) = (Incident::PendingIpi, When::Now, Routing::MachDefault);
        let setup = Setup { incident, when, cpus: 3, routing, seed: 1, fault: Fault::Reported };
        run(&setup, Cast::of(&setup).expect("three CPUs"), true).expect("a machine").0
    }

    fn judged(change: impl FnOnce(&mut Course)) -> [Judgement; 3] {
        let mut course = course();
        change(&mut course);
        [Law::L1, Law::L7, Law::L8].map(|law| course.laws().get(law))
    }

    #[test]
    fn each_broken_law_is_seen() {
        use Judgement::{Broken, Held};
        assert_eq!(judged(|_| {}), [Held; 3]);
        assert_eq!(judged(|course| course.answered -= 1), [Broken, Held, Held]);
        assert_eq!(judged(|course| course.silent = 1), [Broken, Held, Held]);
        assert_eq!(judged(|course| course.boot_cpu_inits = 1), [Held, Held, Broken]);
        assert_eq!(
            judged(|course| course.after_drain.as_mut().expect("it was").requested.push(0x31)),
            [Held, Held, Broken]
        );
        assert_eq!(judged(|course| course.gates[0].1 += 1), [Held, Held, Broken]);
        let early = |course: &mut Course| {
            let begin = course.handlers_at.expect("they were");
            course.taken.push((begin, CALL_FUNCTION));
        };
        assert_eq!(judged(early), [Held, Held, Broken]);
        let untrue = |course: &mut Course| course.at_crash.as_mut().expect("it crashed").in_service.clear();
        assert_eq!(judged(untrue), [Held, Held, Broken]);
        let missing = |course: &mut Course| course.dump.as_mut().expect("it was").stopped.clear();
        assert_eq!(judged(missing), [Held, Broken, Held]);
        assert_eq!(judged(|course| course.dump = Err("gone".into())), [Held, Broken, Broken]);
    }

    #[test]
    fn an_old_ipi_at_a_real_handler_without_a_dump_is_the_reported_state() {
        let mut course = course();
        assert!(!course.is_reported_state());
        course.taken.push((course.handlers_at.expect("they were"), CALL_FUNCTION));
        assert!(!course.is_reported_state(), "there is a dump");
        course.dump = Err("it was not written".into());
        assert!(course.is_reported_state());
    }
}
