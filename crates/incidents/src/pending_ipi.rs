//! Incident 5 (report 004, 2005): an IPI that was pending at the crash, and that the capture kernel takes.
//!
//! What both replays share: the machine, who crashes, and what is pending then. The reported kernels are SMP kernels for i386
//! of October 2005, the first of them booted with `maxcpus=1`. A module disables interrupts, sends its own CPU the
//! call-function vector, and panics. An IRR bit goes only when the CPU takes the interrupt; nothing on the way into the
//! capture kernel takes it, and no INIT clears it.

mod capture;
mod dump;
mod now;
mod scene;
mod then;
mod view;

use core::time::Duration;

use smpcall_diagnosis::{MachineEvidence, PendingAtCrash};
use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, Event, EventKind, Instant};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::{Config, CpuReport, MAX_CPUS, RING_VECTOR, World};

use crate::evidence;
use crate::incident::{Definition, Fault, Setup, When};

/// The incident.
pub(crate) const DEFINITION: Definition = Definition {
    name: "pending-ipi",
    title: "the capture kernel takes an IPI that was pending at the crash (2005, Linux 2.6, Pentium 4)",
    // The report says "a Pentium 4 box": one with both its threads. (Ours.)
    reported_cpus: 2,
    least_cpus: (1, "one that crashes"),
    max_cpus: |when| match when {
        When::Then => MAX_CPUS_THEN,
        When::Now => MAX_CPUS,
    },
    routing,
    refuses: |fault, _| match fault {
        Fault::Reported | Fault::AnotherCpu | Fault::None => None,
        _ => Some("it has the reported one, another-cpu, and none"),
    },
    then: then::then,
    now: now::now,
};

/// The largest `NR_CPUS` of i386.
const MAX_CPUS_THEN: usize = 255;
/// Why there is nothing to replay.
const NO_OTHER_CPU: &str =
    "the machine has one CPU, the boot CPU: no other one can crash (choose --cpus 2 or more)";

/// The crash comes at a random time within a millisecond after this. (Ours.)
const QUIET_START: Duration = Duration::from_millis(1);
/// What `panic` takes to print its message; the IPI arrives meanwhile. (Ours.)
const PRINTING: Duration = Duration::from_micros(50);
/// The run is over by then, whatever becomes of it: a kernel that starts 4,096 CPUs waits 10 ms for each. (Ours.)
const TIME_LIMIT: Instant = Instant::from_nanos(120_000_000_000);
/// Where the code of started CPUs begins: a page of the first megabyte. (Ours.)
const START_UP_PAGE: u8 = 8;

/// How an i386 kernel of 2005 addressed that many CPUs; beyond that, x2APIC.
fn routing(cpus: usize) -> Routing {
    let fits = |routing: &Routing| cpus <= routing.max_cpus() as usize;
    [Routing::MachDefault, Routing::BigSmp].into_iter().find(fits).unwrap_or(Routing::X2ApicPhysical)
}

/// The CPUs of one replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cast {
    cpus: usize,
    crasher: Cpu,
    /// Whether the first kernel runs on all CPUs, instead of with `maxcpus=1`.
    others_run: bool,
    /// Whether anything is pending at the crash.
    leaves_pending: bool,
}

impl Cast {
    /// None if there is nobody for a part.
    fn of(setup: &Setup) -> Option<Self> {
        let others_run = setup.fault == Fault::AnotherCpu;
        let crasher = if others_run {
            // An entry of an I/O APIC can name these.
            let candidates = setup.cpus.min(MAX_CPUS_THEN).checked_sub(1).filter(|&others| others > 0)?;
            1 + setup.seed % candidates as u64
        } else {
            0
        };
        Some(Self {
            cpus: setup.cpus,
            crasher: Cpu::new(crasher as u32),
            others_run,
            leaves_pending: setup.fault != Fault::None,
        })
    }

    fn all(self) -> impl Iterator<Item = Cpu> {
        (0..self.cpus as u32).map(Cpu::new)
    }

    fn others(self) -> impl Iterator<Item = Cpu> {
        self.all().filter(move |&cpu| cpu != self.crasher)
    }

    /// How many CPUs the first kernel runs on.
    const fn running(self) -> usize {
        if self.others_run { self.cpus } else { 1 }
    }

    /// The machine. Its fault is what its programs do.
    fn config(self, setup: &Setup) -> Config {
        let mut config = Config::new(setup.cpus, setup.routing, setup.seed);
        // Nothing in this incident needs a tick, and one would be pending at some crashes and not at others.
        config.tick = None;
        config.trace = true;
        if !self.others_run {
            config.not_started = self.others().collect();
        }
        config
    }
}

/// The interrupts that a CPU takes from when it boots another kernel image on: each with its time.
fn taken_by_the_capture_kernel(cpu: Cpu, events: &[Event]) -> impl Iterator<Item = (Instant, u8)> {
    let booted = events.iter().position(|event| event.kind == EventKind::ImageBooted && event.cpu == cpu);
    let after = events.get(booted.unwrap_or(events.len())..).unwrap_or(&[]);
    let taken = after.iter().filter(move |event| event.kind == EventKind::InterruptTaken && event.cpu == cpu);
    taken.map(|event| (event.time, event.detail as u8))
}

/// The messages with the call-function vector.
fn ipis(world: &World<'_>, events: &[Event], resent: u64) -> Ipis {
    let counters = world.counters();
    Ipis {
        sent: events.iter().filter(|event| evidence::rung(event).is_some()).count() as u64,
        taken: counters.taken[RING_VECTOR as usize],
        lost: counters.ipis_lost,
        resent,
    }
}

/// All CPUs as they are.
fn reports(world: &World<'_>) -> Vec<CpuReport> {
    (0..world.cpus() as u32).map(|cpu| world.inspect(Cpu::new(cpu))).collect()
}

/// The machine after the run, and what was pending in between.
fn evidence(reports: &[CpuReport], events: &[Event], pending: Option<PendingAtCrash>) -> MachineEvidence {
    let mut evidence = evidence::of_machine(reports, events, None);
    for (cpu, report) in evidence.cpus.iter_mut().zip(reports) {
        cpu.online = Some(!report.waits_for_start_up && !report.parked);
    }
    evidence.pending_at_crash.extend(pending);
    evidence
}

/// Vectors as people read them: `0x31 0x99`; none as `none`.
fn listed(vectors: impl IntoIterator<Item = u8>) -> String {
    let vectors: Vec<String> = vectors.into_iter().map(|vector| format!("{vector:#04x}")).collect();
    if vectors.is_empty() { "none".into() } else { vectors.join(" ") }
}

/// A time as people say it.
fn human(duration: Duration) -> String {
    match duration.as_nanos() {
        nanos @ 0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} us", duration.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::Incident;
    use std::collections::BTreeSet;

    fn cast(cpus: usize, seed: u64, fault: Fault) -> Option<Cast> {
        let (incident, when) = (Incident::PendingIpi, When::Now);
        Cast::of(&Setup { incident, when, cpus, routing: Routing::BigSmp, seed, fault })
    }

    #[test]
    fn the_boot_cpu_crashes_alone_unless_another_one_is_to() {
        let alone = cast(4, 9, Fault::Reported).expect("one is enough");
        assert_eq!((alone.crasher, alone.running()), (Cpu::new(0), 1));
        let others: BTreeSet<u32> = (0..30)
            .map(|seed| cast(4, seed, Fault::AnotherCpu).expect("there are others").crasher.number())
            .collect();
        assert_eq!(others, BTreeSet::from([1, 2, 3]));
        assert_eq!(cast(1, 1, Fault::AnotherCpu), None);
    }

    #[test]
    fn only_what_the_crashed_cpu_takes_after_the_jump_counts() {
        let event = |kind, cpu, detail| Event {
            time: Instant::from_nanos(7),
            kind,
            cpu: Cpu::new(cpu),
            other: None,
            detail,
            argument: 0,
        };
        let taken = |cpu, vector| event(EventKind::InterruptTaken, cpu, vector);
        let events = [taken(1, 0xa9), event(EventKind::ImageBooted, 1, 0), taken(0, 0x40), taken(1, 0xfb)];
        let after = |cpu| taken_by_the_capture_kernel(Cpu::new(cpu), &events).collect::<Vec<_>>();
        assert_eq!(after(1), [(Instant::from_nanos(7), 0xfb)]);
        assert_eq!(after(0), []);
    }

    #[test]
    fn vectors_and_times_are_said_as_people_say_them() {
        assert_eq!((listed([]), listed([0x31, 0xfb])), ("none".into(), "0x31 0xfb".into()));
        assert_eq!(human(Duration::from_nanos(1_500)), "1.5 us");
    }
}
