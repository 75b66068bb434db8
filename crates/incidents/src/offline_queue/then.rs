//! Incident 2 as then: calls to one CPU, `stop_machine` and CPU hotplug of Linux 3.0, re-created from what is known of them.
//!
//! A sender puts its call into the target's queue, and sends an interrupt if the queue was empty: if not, whoever made it not
//! empty has sent one. A CPU that goes offline forgets the interrupt and keeps the queue, so that from then on nobody sends
//! one.

mod blk;
mod cpu;
mod smp;
mod stop_machine;

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::cell::Cell;

use smpcall_diagnosis::{CallEvidence, MachineEvidence, diagnose};
use smpcall_machine::{Cpu, Deadline, Event, EventKind, Word};
use smpcall_simulator::{CpuReport, RING_VECTOR, SimMemory, Trace, World, program};

use super::disk::{self, Book, End};
use super::{Cast, MAX_CPUS_THEN, TIME_LIMIT, view, wait_for_the_moment};
use crate::evidence;
use crate::incident::{ReplayError, Setup, When};
use crate::laws::{Law, Laws};
use crate::replay::{Outcome, Replay};
use blk::Softirqs;
use smp::{CallSingleData, CallSingleQueue};
use stop_machine::StopMachine;

pub(super) use smp::Func;

/// The innermost frame of who waits for a call, as in the report.
const WAITS_IN: &str = "generic_exec_single";

/// The global and per-CPU variables of the kernel.
struct Kernel {
    cpu_online_mask: Word<SimMemory>,
    /// Nonzero: the CPU that went is dead.
    cpu_dead: Word<SimMemory>,
    call_single_queue: [CallSingleQueue; MAX_CPUS_THEN],
    softirqs: [Softirqs; MAX_CPUS_THEN],
    stop_machine: StopMachine,
    /// The disk's requests, and the CPU that made them all.
    requests: [CallSingleData; disk::REQUESTS],
    requests_of: Cell<Cpu>,
}

thread_local! {
    // Global to the machine that this thread simulates.
    static KERNEL: Kernel = const {
        Kernel {
            cpu_online_mask: Word::new(0),
            cpu_dead: Word::new(0),
            call_single_queue: [const { CallSingleQueue::new() }; MAX_CPUS_THEN],
            softirqs: [const { Softirqs::new() }; MAX_CPUS_THEN],
            stop_machine: StopMachine::new(),
            requests: [const { CallSingleData::new() }; disk::REQUESTS],
            requests_of: Cell::new(Cpu::new(0)),
        }
    };
}

impl Kernel {
    /// As at boot. Outside of the machine.
    fn reset(&self, cast: Cast) {
        // The ordering does not matter: no CPU runs. So wherever a replay looks at a machine that stands still.
        self.cpu_online_mask.store(u64::MAX >> (u64::BITS as usize - cast.cpus), Relaxed);
        self.cpu_dead.store(0, Relaxed);
        self.call_single_queue.iter().for_each(CallSingleQueue::reset);
        self.softirqs.iter().for_each(Softirqs::reset);
        self.stop_machine.reset();
        self.requests.iter().for_each(CallSingleData::reset);
        self.requests_of.set(cast.target);
    }
}

/// What is left when a run is over.
pub(super) struct Remains {
    pub(super) reports: Vec<CpuReport>,
    pub(super) books: Vec<Book>,
    /// `cpu_online_mask`.
    pub(super) online: u64,
    /// What lies in the target's queue, oldest first.
    pub(super) queue: Vec<Func>,
    /// Whether the CPU was brought up and all requests ended.
    came_back: bool,
}

impl Remains {
    pub(super) fn queued(&self, func: Func) -> usize {
        self.queue.iter().filter(|&&queued| queued == func).count()
    }
}

/// Whether the machine is in the state that was reported: the target is online with interrupts enabled, 108 requests and the
/// notifier's call lie in its queue, no interrupt that would make it look is pending, and the controller is in the wait for
/// that call, which has no deadline.
fn is_reported_state(cast: Cast, remains: &Remains) -> bool {
    let (controller, target) =
        (&remains.reports[cast.controller.index()], &remains.reports[cast.target.index()]);
    let waits = controller.waits.first().is_some_and(|wait| wait.deadline == Deadline::NEVER);
    remains.online & 1 << cast.target.number() != 0
        && super::is_not_rung(target)
        && remains.queued(Func::TriggerSoftirq) == disk::REPORTED
        && remains.queued(Func::IucvDeclareCpu) == 1
        && controller.frames.contains(&WAITS_IN)
        && waits
}

/// Replays it.
pub(crate) fn then(setup: &Setup) -> Result<Replay, ReplayError> {
    let cast = Cast::of(setup);
    let came_back = Cell::new(false);
    let mut world = World::new(&super::config(setup))?;
    KERNEL.with(|kernel| kernel.reset(cast));
    disk::reset(cast.cpus);
    world.set_handler(RING_VECTOR, smp::call_function_single_interrupt);
    world.set_handler(disk::VECTOR, blk::do_IRQ);
    world.on_start_up(|_, _| KERNEL.with(|kernel| cpu::start_secondary(kernel, cast)));
    for cpu in cast.all().filter(|&cpu| cpu != cast.controller) {
        world.spawn(cpu, move || KERNEL.with(|kernel| stop_machine::cpu_idle(kernel, cast)));
    }
    world.spawn(cast.controller, || {
        wait_for_the_moment();
        disk::finish_first_early(cast);
        KERNEL.with(|kernel| cpu::sysc_noemu(kernel, cast, false));
        disk::play_while_offline(cast);
        KERNEL.with(|kernel| cpu::sysc_noemu(kernel, cast, true));
        disk::await_ends(disk::REQUESTS, Deadline::NEVER);
        came_back.set(true);
        program::stop();
    });
    world.run(TIME_LIMIT);

    let remains = KERNEL.with(|kernel| Remains {
        reports: super::reports(&world),
        books: disk::books(),
        online: kernel.cpu_online_mask.load(Relaxed),
        queue: kernel.call_single_queue[cast.target.index()].functions(),
        came_back: came_back.get(),
    });
    let replay = told(setup, cast, &world, &remains);
    // What leads to the controller's stack goes before it does.
    KERNEL.with(|kernel| kernel.reset(cast));
    // SAFETY: 1. Nothing that is used from here on refers to those stacks: the queues are empty again, `told` has copied what
    // it tells, and the machine is not run any more. 2. What lives there are named frames, a call and copies of numbers:
    // nobody relies on their being dropped.
    unsafe { world.forget_programs() };
    Ok(replay)
}

fn told(setup: &Setup, cast: Cast, world: &World<'_>, remains: &Remains) -> Replay {
    let outcome = if is_reported_state(cast, remains) { Outcome::Lost } else { Outcome::Held };
    let trace = world.trace();
    let resent = evidence::rings_repeated(&trace.events, |event| begins_call(&trace, event));
    let ipis = super::ipis(&remains.reports, &trace.events, resent);
    let evidence = evidence(cast, remains, &trace.events);
    Replay {
        incident: setup.incident,
        when: When::Then,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome,
        reason: None,
        laws: judge(remains, ipis.lost),
        ipis,
        diagnosis: diagnose(&evidence),
        view: view::then(cast, remains),
        summary: summary(cast, remains, &trace.events),
        trace,
    }
}

/// Whether with this a call begins: all are sent from a frame of their own.
fn begins_call(trace: &Trace, event: &Event) -> bool {
    let name = || usize::try_from(event.argument).ok().and_then(|number| trace.frame_names.get(number));
    event.kind == EventKind::FrameEntered && name().is_some_and(|name| name == WAITS_IN)
}

/// A request or call is accounted for if it has ended, once. What went offline with the CPU is what lies there from before.
fn judge(remains: &Remains, rings_lost: u64) -> Laws {
    let once = remains.books.iter().all(|book| book.ends == 1);
    let none_left = !remains.books[0].is_hanging();
    let laws =
        Laws::NOT_APPLICABLE.with([(Law::L1, once), (Law::L3, remains.came_back), (Law::L5, none_left)]);
    if rings_lost == 0 { laws } else { laws.with([(Law::L2, once)]) }
}

/// The machine at the end: who waits for what, and what lies in the queue.
fn evidence(cast: Cast, remains: &Remains, events: &[Event]) -> MachineEvidence {
    let mut evidence = evidence::of_machine(&remains.reports, events, None);
    for (cpu, online) in evidence.cpus.iter_mut().zip(0..) {
        cpu.online = Some(remains.online & 1 << online != 0);
    }
    let controller = &remains.reports[cast.controller.index()];
    evidence.calls =
        super::hanging_requests(cast, &remains.books, controller.time, Func::TriggerSoftirq.name());
    if let (Some(wait), 1..) = (controller.waits.first(), remains.queued(Func::IucvDeclareCpu)) {
        evidence.calls.push(CallEvidence {
            function: Some(Func::IucvDeclareCpu.name().into()),
            marked: Some(true),
            // For an earlier one, as its caller believes.
            rung: Some(true),
            nanos: Some(controller.time.since(wait.since).as_nanos() as u64),
            ..CallEvidence::queued(cast.controller.number(), cast.target.number())
        });
    }
    evidence
}

fn summary(cast: Cast, remains: &Remains, events: &[Event]) -> String {
    let Cast { controller, target, .. } = cast;
    let refused = remains.books.iter().filter(|book| matches!(book.end, Some((End::Refused, _)))).count();
    let at_home = remains.books.iter().filter(|book| matches!(book.end, Some((End::AtHome, _)))).count();
    let mut out = format!(
        "{controller} took {target} down by stop_machine and brought it up again. {refused} requests that were finished while \
         it was offline ended where the disk interrupted."
    );
    let mut add = |sentence: String| {
        out.push(' ');
        out.push_str(&sentence);
    };
    if remains.books[0].is_hanging() {
        add(format!(
            "As it went, {target} had disabled its interrupts and {controller} had not: a disk interrupt's bottom half there \
             still saw {target} online, and sent it a request that it never took."
        ));
    }
    let (requests, calls) = (remains.queued(Func::TriggerSoftirq), remains.queued(Func::IucvDeclareCpu));
    if requests > 0 {
        let since =
            events.iter().rev().find(|event| event.kind == EventKind::StartedUp && event.cpu == target);
        let rung = since.map_or(0, |since| {
            let later = events.iter().filter(|event| event.time >= since.time);
            later.filter_map(evidence::rung).filter(|&to| to == target).count()
        });
        add(format!(
            "Since {target} came back it was sent {rung} call interrupts, because its queue was never empty: {requests} \
             trigger_softirq requests lie there."
        ));
    }
    match remains.reports[cast.controller.index()].waits.first() {
        Some(wait) if calls > 0 => {
            let waited: Duration = remains.reports[cast.controller.index()].time.since(wait.since);
            add(format!(
                "The notifier's call lies among them, and {controller} has spun in it for {:.2} s, without a deadline.",
                waited.as_secs_f64()
            ));
        }
        _ if remains.came_back => {
            add(format!("The other {at_home} ended on {target}, and the notifier's call returned."));
        }
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident};
    use smpcall_local_apic::Routing;
    use smpcall_machine::Instant;
    use smpcall_simulator::{Config, WaitReport};

    fn reported_state() -> (Cast, Remains) {
        let (incident, when) = (Incident::OfflineQueue, When::Then);
        let setup =
            Setup { incident, when, cpus: 4, routing: Routing::Flat, seed: 1, fault: Fault::Reported };
        let world = World::new(&Config::new(4, Routing::Flat, 1)).expect("a machine");
        let mut reports = super::super::reports(&world);
        reports[1].frames = vec!["sysc_noemu", WAITS_IN];
        let (source, since) = (core::panic::Location::caller(), Instant::default());
        reports[1].waits.push(WaitReport { source, since, deadline: Deadline::NEVER });
        let mut queue = vec![Func::TriggerSoftirq; disk::REPORTED];
        queue.insert(1, Func::IucvDeclareCpu);
        let hanging = Book { handed_over: Some((Cpu::new(1), since)), ..Book::default() };
        let books = vec![hanging; disk::REQUESTS];
        (Cast::of(&setup), Remains { reports, books, online: 0b1111, queue, came_back: false })
    }

    #[test]
    fn each_part_of_the_reported_state_is_needed() {
        let (cast, remains) = reported_state();
        assert!(is_reported_state(cast, &remains));
        let changes: [fn(&mut Remains); 8] = [
            |remains| remains.online = 0b0111,
            |remains| remains.reports[3].interrupts_enabled = false,
            |remains| remains.reports[3].requested.push(RING_VECTOR),
            |remains| remains.reports[3].waits_for_start_up = true,
            |remains| remains.queue.truncate(disk::REPORTED),
            |remains| remains.queue[1] = Func::IucvRetrieveCpu,
            |remains| remains.reports[1].frames.truncate(1),
            |remains| remains.reports[1].waits[0].deadline = Deadline::at(Instant::from_nanos(5)),
        ];
        for change in changes {
            let (cast, mut remains) = reported_state();
            change(&mut remains);
            assert!(!is_reported_state(cast, &remains));
        }
    }

    #[test]
    fn what_hangs_breaks_the_laws_and_what_ended_keeps_them() {
        use crate::laws::Judgement::{Broken, Held, NotApplicable};
        let (_, mut remains) = reported_state();
        let judged = |remains: &Remains, lost| {
            let laws = judge(remains, lost);
            [Law::L1, Law::L2, Law::L3, Law::L5].map(|law| laws.get(law))
        };
        assert_eq!(judged(&remains, 1), [Broken; 4]);
        for book in &mut remains.books {
            (book.end, book.ends) = (Some((End::AtHome, Cpu::new(3))), 1);
        }
        remains.came_back = true;
        assert_eq!(judged(&remains, 1), [Held; 4]);
        assert_eq!(judged(&remains, 0), [Held, NotApplicable, Held, Held]);
        remains.books[7].ends = 2;
        assert_eq!(judged(&remains, 0), [Broken, NotApplicable, Held, Held]);
    }
}
