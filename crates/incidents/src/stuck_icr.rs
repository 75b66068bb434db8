//! Incident 3 (report 002, 2007): a crash that waits for ever for the ICR, and no dump.
//!
//! What both replays share: the machine, who crashes, and what goes wrong before. The report is about kernels of 2007, for
//! i386 and x86-64 with all their send paths. The other CPUs are locked up in their NMI handlers, and the delivery status of
//! the CPU that crashes never clears.

mod now;
mod policies;
mod then;
mod view;

use core::time::Duration;

use smpcall_local_apic::{Interrupt, Mode, Routing};
use smpcall_machine::{Cpu, Instant, Machine};
use smpcall_simulator::apic::IcrFault;
use smpcall_simulator::faults::Fault;
use smpcall_simulator::{
    Config, CpuReport, MAX_CPUS, SimCpuSet, SimMachine, World, program, send_interrupt_to,
};

use crate::incident::{self, Definition, Setup};

/// The incident.
pub(crate) const DEFINITION: Definition = Definition {
    name: "stuck-icr",
    title: "a crash waits for ever for the ICR and takes no dump (2007, Linux 2.6, i386 and x86-64)",
    // The report does not say. As many as all of its send paths reach. (Ours.)
    reported_cpus: 8,
    least_cpus: (2, "one that crashes and one to be stopped"),
    max_cpus: |_| MAX_CPUS,
    routing,
    refuses: |fault, _| match fault {
        incident::Fault::Reported
        | incident::Fault::Transient
        | incident::Fault::UntilRewritten
        | incident::Fault::None => None,
        _ => Some("it has the reported one, transient, until-rewritten, and none"),
    },
    then: then::then,
    now: now::now,
};

/// Why there is nothing to replay on x2APIC.
const NO_DELIVERY_STATUS: &str = "on x2APIC the ICR has no delivery-status bit: a command is one write, and there is \
                                  nothing that a sender could wait for";

/// The timer of a kernel with HZ=250. (Ours: the report does not say which it had.)
const TICK: Duration = Duration::from_millis(4);
/// The crash comes at a random time within a millisecond after this. (Ours.)
const QUIET_START: Duration = Duration::from_millis(1);
/// Until all others have taken the NMI that locks them up: longer than it takes to send one to each and for a halted CPU to
/// take it. (Ours.)
const REACTION: Duration = Duration::from_micros(50);
/// How long a fault lasts that heals by itself: less than what any bounded solution waits. (Ours.)
const HEALS_AFTER: Duration = Duration::from_millis(50);
/// The run is over by then, whatever becomes of it: more than any bounded solution would have taken on the reported
/// machine, and the second that a crash waits for the others. (Ours.)
const TIME_LIMIT: Instant = Instant::from_nanos(3_000_000_000);

/// How the kernels of the report addressed that many CPUs on x86-64; beyond that, x2APIC.
fn routing(cpus: usize) -> Routing {
    let fits = |routing: &Routing| cpus <= routing.max_cpus() as usize;
    [Routing::Flat, Routing::Physical].into_iter().find(fits).unwrap_or(Routing::X2ApicPhysical)
}

/// The CPUs of one replay.
#[derive(Clone, Copy)]
struct Cast {
    cpus: usize,
    crasher: Cpu,
    fault: incident::Fault,
}

impl Cast {
    fn of(setup: &Setup) -> Self {
        let crasher = Cpu::new((setup.seed % setup.cpus as u64) as u32);
        Self { cpus: setup.cpus, crasher, fault: setup.fault }
    }

    fn all(self) -> impl Iterator<Item = Cpu> {
        (0..self.cpus as u32).map(Cpu::new)
    }

    fn others(self) -> impl Iterator<Item = Cpu> {
        self.all().filter(move |&cpu| cpu != self.crasher)
    }

    /// Whether the others come out of their NMI handlers at some time.
    fn others_come_back(self) -> bool {
        matches!(self.fault, incident::Fault::None | incident::Fault::Transient)
    }

    /// The machine, with those of its faults that can be said before it runs: each other CPU is locked up in its first NMI
    /// handler.
    fn config(self, setup: &Setup) -> Config {
        let mut config = Config::new(setup.cpus, setup.routing, setup.seed);
        config.tick = Some(TICK);
        config.trace = true;
        // As the kernels of the report did on machines whose CPUs can come and go.
        config.shorthands = false;
        if self.fault != incident::Fault::None {
            let duration = self.others_come_back().then_some(HEALS_AFTER);
            let wedge = |cpu| Fault::WedgeInNmi { cpu, at: Instant::default(), duration };
            config.faults.extend(self.others().map(wedge));
        }
        config
    }

    /// Gives every CPU but the one that crashes something to do.
    fn occupy_others(self, world: &mut World<'_>) {
        for cpu in self.others() {
            world.spawn(cpu, || {
                let _frame = program::frame("cpu_idle");
                loop {
                    program::advance(Duration::from_nanos(program::random(200_000)));
                    program::halt();
                }
            });
        }
    }

    /// On the CPU that is about to crash: all others get an NMI, and are in their handlers afterwards. By the fault they stay
    /// there, and the delivery status of that NMI's command does not clear.
    ///
    /// (Ours: the report does not say how the others got there, nor what the last command was.)
    fn comes_to_it(self) {
        program::advance(QUIET_START + Duration::from_nanos(program::random(1_000_000)));
        let others: SimCpuSet = self.others().collect();
        send_interrupt_to(&others, Interrupt::Nmi).expect("an idle controller takes commands");
        program::advance(REACTION);
        program::break_icr(match self.fault {
            incident::Fault::Reported => Some(IcrFault::StuckUntil(Instant::from_nanos(u64::MAX))),
            incident::Fault::Transient => Some(IcrFault::StuckUntil(SimMachine::now().plus(HEALS_AFTER))),
            incident::Fault::UntilRewritten => Some(IcrFault::StuckUntilRewritten),
            _ => None,
        });
    }

    /// The reported state: the CPU that crashes is in a wait that nothing but an idle controller ends, its delivery status is
    /// set, all others are in their NMI handlers and do not come out, and no dump was started.
    fn is_reported_state(self, reports: &[CpuReport], dump_started: bool) -> bool {
        let crasher = &reports[self.crasher.index()];
        let waits = crasher.waits.last().is_some_and(|wait| wait.deadline.is_never());
        !dump_started
            && waits
            && crasher.send_pending
            && self.others().all(|cpu| is_locked_up(&reports[cpu.index()]))
    }
}

/// Whether a CPU is in an NMI handler and makes no step.
fn is_locked_up(report: &CpuReport) -> bool {
    report.in_nmi && report.wedged
}

/// Whether it can happen on this routing at all; if not, why.
fn cannot_happen(routing: Routing) -> Option<&'static str> {
    (routing.mode() == Mode::X2Apic).then_some(NO_DELIVERY_STATUS)
}

/// All CPUs as they are.
fn reports(world: &World<'_>) -> Vec<CpuReport> {
    (0..world.cpus() as u32).map(|cpu| world.inspect(Cpu::new(cpu))).collect()
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

/// CPU numbers as ranges, ascending: `0-3,7`.
fn ranges(cpus: impl IntoIterator<Item = Cpu>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu.number() => *last += 1,
            _ => ranges.push((cpu.number(), cpu.number())),
        }
    }
    let text = |&(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Incident, When};
    use smpcall_machine::Deadline;
    use smpcall_simulator::WaitReport;
    use std::panic::Location;

    fn cast(cpus: usize, seed: u64, fault: incident::Fault) -> Cast {
        let (incident, when, routing) = (Incident::StuckIcr, When::Then, Routing::Physical);
        Cast::of(&Setup { incident, when, cpus, routing, seed, fault })
    }

    #[test]
    fn every_cpu_crashes_for_some_seed() {
        let mut crashers: Vec<u32> =
            (0..4).map(|seed| cast(4, seed, incident::Fault::Reported).crasher.number()).collect();
        crashers.sort_unstable();
        assert_eq!(crashers, [0, 1, 2, 3]);
    }

    #[test]
    fn times_and_numbers_are_said_as_people_say_them() {
        let times = [60, 100_060, 100_100_000, 1_000_200_000].map(|nanos| human(Duration::from_nanos(nanos)));
        assert_eq!(times, ["60 ns", "100.1 us", "100.1 ms", "1.00 s"]);
        assert_eq!(ranges([0, 1, 2, 4, 7, 8].map(Cpu::new)), "0-2,4,7-8");
    }

    #[test]
    fn the_reported_state_needs_each_of_its_parts() {
        let cast = cast(3, 0, incident::Fault::Reported);
        let world = World::new(&Config::new(3, Routing::Flat, 1)).expect("a machine");
        let mut good = reports(&world);
        let wait = |deadline| WaitReport { source: Location::caller(), since: Instant::default(), deadline };
        good[0].waits.push(wait(Deadline::NEVER));
        good[0].send_pending = true;
        for other in &mut good[1..] {
            (other.in_nmi, other.wedged) = (true, true);
        }
        assert!(cast.is_reported_state(&good, false));
        assert!(!cast.is_reported_state(&good, true), "a dump was started");
        let without = |change: fn(&mut Vec<CpuReport>)| {
            let mut reports = good.clone();
            change(&mut reports);
            cast.is_reported_state(&reports, false)
        };
        assert!(!without(|reports| reports[0].waits.clear()), "it waits for nothing");
        assert!(
            !without(|reports| reports[0].waits[0].deadline = Deadline::at(Instant::from_nanos(1))),
            "its wait ends"
        );
        assert!(!without(|reports| reports[0].send_pending = false), "the controller is idle");
        assert!(!without(|reports| reports[2].in_nmi = false), "one is in no NMI handler");
        assert!(!without(|reports| reports[1].wedged = false), "one comes out of it");
    }
}
