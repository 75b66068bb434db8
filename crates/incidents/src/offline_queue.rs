//! Incident 2 (report 001, 2013): a CPU goes offline with a request in its queue, and nobody rings it when it is back.
//!
//! What both replays share: the machine, who takes whom down, and the disk whose interrupt comes at the wrong moment. The
//! reported kernel is a 3.0 for s390; CPU 1 takes CPU 3 down and brings it up again, as a stress test of hotplug does, while
//! the machine does a lot of I/O.

mod disk;
mod now;
mod then;
mod view;

use core::time::Duration;
use std::collections::BTreeMap;

use smpcall_diagnosis::CallEvidence;
use smpcall_local_apic::{Routing, StartUpDelays};
use smpcall_machine::{Cpu, Event, Instant, Machine};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::{Config, CpuReport, MAX_CPUS, RING_VECTOR, SimMachine, World, program};

use crate::evidence;
use crate::incident::{self, Definition, Setup, When};

/// The incident.
pub(crate) const DEFINITION: Definition = Definition {
    name: "offline-queue",
    title: "a CPU goes offline with a request queued, and is not rung when it is back (2013, Linux 3.0, s390)",
    // The report names CPUs 1 and 3, and does not say how many there are. (Ours.)
    reported_cpus: 4,
    least_cpus: (2, "one that goes offline and one that takes it down"),
    max_cpus: |when| match when {
        When::Then => MAX_CPUS_THEN,
        When::Now => MAX_CPUS,
    },
    routing,
    refuses: |fault, _| match fault {
        incident::Fault::Reported | incident::Fault::None => None,
        incident::Fault::DeadTarget => {
            Some("it is about a CPU that goes offline by itself, which a dead one does not")
        }
        _ => Some("it has none but the reported one, and none"),
    },
    then: then::then,
    now: now::now,
};

/// The CPU that goes and comes, if there is one of that number.
const REPORTED_TARGET: usize = 3;
/// The CPU that takes it down and brings it up, if there are enough.
const REPORTED_CONTROLLER: usize = 1;
/// The largest `NR_CPUS` that 3.0 could be configured with on s390.
const MAX_CPUS_THEN: usize = 64;

/// The timer of a kernel with HZ=100, as on s390.
const TICK: Duration = Duration::from_millis(10);
/// The machine is left alone for so long before the CPU is taken down, and up to a millisecond longer. (Ours.)
const QUIET_START: Duration = Duration::from_millis(1);
/// What a bottom half does with a request before it hands it to the CPU that made it. (Ours.)
const BOTTOM_HALF: Duration = Duration::from_micros(5);
/// What that CPU does with it. (Ours.)
const COMPLETION: Duration = Duration::from_micros(1);
/// The run is over by then, whatever becomes of it: somebody who waits then has done so for more than a second. (Ours.)
const TIME_LIMIT: Instant = Instant::from_nanos(2_000_000_000);

/// A signal processor order names one CPU by its address: that is a physical destination.
fn routing(cpus: usize) -> Routing {
    if cpus <= Routing::Physical.max_cpus() as usize { Routing::Physical } else { Routing::X2ApicPhysical }
}

/// The CPUs of one replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cast {
    cpus: usize,
    /// The one that takes the other down.
    controller: Cpu,
    /// The one that goes and comes: never the boot CPU.
    target: Cpu,
    /// Whether the disk's interrupt comes at the reported moment.
    fault: bool,
}

impl Cast {
    fn of(setup: &Setup) -> Self {
        let controller = if setup.cpus > 2 { REPORTED_CONTROLLER } else { 0 };
        let target = REPORTED_TARGET.min(setup.cpus - 1);
        Self {
            cpus: setup.cpus,
            controller: Cpu::new(controller as u32),
            target: Cpu::new(target as u32),
            fault: setup.fault != incident::Fault::None,
        }
    }

    fn all(self) -> impl Iterator<Item = Cpu> {
        (0..self.cpus as u32).map(Cpu::new)
    }

    /// All but the target: they take the disk's interrupts.
    fn others(self) -> impl Iterator<Item = Cpu> + Clone {
        (0..self.cpus as u32).map(Cpu::new).filter(move |&cpu| cpu != self.target)
    }
}

/// The machine. Its one fault is when the disk interrupts, which is not the machine's.
fn config(setup: &Setup) -> Config {
    let mut config = Config::new(setup.cpus, setup.routing, setup.seed);
    // A CPU of that day is not up at once: what is sent to it meanwhile is lost.
    config.start_up_delays = StartUpDelays::SPECIFIED;
    config.tick = Some(TICK);
    config.trace = true;
    config
}

/// Lets a random time pass, so that the CPU is not taken down at the same instant for every seed.
fn wait_for_the_moment() {
    program::advance(QUIET_START + Duration::from_nanos(program::random(1_000_000)));
}

/// The number of the CPU that this runs on.
fn this_cpu() -> Cpu {
    SimMachine::current_cpu()
}

/// All CPUs as they are.
fn reports(world: &World<'_>) -> Vec<CpuReport> {
    (0..world.cpus() as u32).map(|cpu| world.inspect(Cpu::new(cpu))).collect()
}

/// The inter-processor interrupts that announce calls. Lost are those that a CPU had accepted and never took: its reset has
/// cleared them.
fn ipis(reports: &[CpuReport], events: &[Event], resent: u64) -> Ipis {
    let mut sent_to: BTreeMap<Cpu, u64> = BTreeMap::new();
    for target in events.iter().filter_map(evidence::rung) {
        *sent_to.entry(target).or_default() += 1;
    }
    let lost = reports.iter().map(|report| {
        let pending = u64::from(report.requested.contains(&RING_VECTOR));
        let arrived = report.counters.taken[RING_VECTOR as usize] + report.counters.ipis_merged + pending;
        sent_to.get(&report.cpu).map_or(0, |sent| sent.saturating_sub(arrived))
    });
    Ipis {
        sent: sent_to.values().sum(),
        taken: reports.iter().map(|report| report.counters.taken[RING_VECTOR as usize]).sum(),
        lost: lost.sum(),
        resent,
    }
}

/// Whether a CPU can be rung and is not: it has its interrupts enabled, and no ring is pending or in service.
fn is_not_rung(report: &CpuReport) -> bool {
    evidence::task_has_interrupts_enabled(report)
        && !report.waits_for_start_up
        && !report.parked
        && !report.requested.contains(&RING_VECTOR)
        && !report.in_service.contains(&RING_VECTOR)
}

/// The requests that were handed to the target and have not ended, for the diagnosis.
fn hanging_requests(cast: Cast, books: &[disk::Book], now: Instant, function: &str) -> Vec<CallEvidence> {
    let hanging = books.iter().filter(|book| book.is_hanging());
    hanging
        .filter_map(|book| book.handed_over)
        .map(|(by, at)| CallEvidence {
            waited: false,
            function: Some(function.into()),
            marked: Some(true),
            rung: Some(true),
            nanos: Some(now.since(at).as_nanos() as u64),
            ..CallEvidence::queued(by.number(), cast.target.number())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident};

    fn cast(cpus: usize, fault: Fault) -> Cast {
        let (incident, when) = (Incident::OfflineQueue, When::Then);
        Cast::of(&Setup { incident, when, cpus, routing: Routing::Physical, seed: 1, fault })
    }

    #[test]
    fn cpu_1_takes_cpu_3_down_and_small_machines_make_do() {
        let numbers = |cpus| {
            let Cast { controller, target, .. } = cast(cpus, Fault::Reported);
            (controller.number(), target.number())
        };
        assert_eq!([2, 3, 4, 64].map(numbers), [(0, 1), (1, 2), (1, 3), (1, 3)]);
        assert!(cast(4, Fault::Reported).fault && !cast(4, Fault::None).fault);
        assert_eq!(cast(3, Fault::None).others().map(Cpu::number).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_ring_that_is_pending_is_not_lost_and_one_that_is_nowhere_is() {
        let world = World::new(&Config::new(2, Routing::Flat, 1)).expect("a machine");
        let mut reports = reports(&world);
        let sent = Event {
            time: Instant::default(),
            kind: smpcall_machine::EventKind::IpiSent,
            cpu: Cpu::new(0),
            other: Some(Cpu::new(1)),
            detail: RING_VECTOR.into(),
            argument: 0,
        };
        reports[1].requested = vec![RING_VECTOR];
        let two = [sent, sent];
        assert_eq!(ipis(&reports, &two[..1], 0), Ipis { sent: 1, taken: 0, lost: 0, resent: 0 });
        assert!(!is_not_rung(&reports[1]) && is_not_rung(&reports[0]));
        reports[1].requested.clear();
        assert_eq!(ipis(&reports, &two[..1], 0).lost, 1);
        reports[1].counters.taken[RING_VECTOR as usize] = 1;
        assert_eq!(ipis(&reports, &two, 3), Ipis { sent: 2, taken: 1, lost: 1, resent: 3 });
    }
}
