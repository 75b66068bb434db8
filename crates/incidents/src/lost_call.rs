//! Incident 1 (report 000, 2009): the call-function IPI that one of fifteen CPUs never got.
//!
//! What both replays share: the machine, who calls, and which message is lost. The reported kernel is 2.6.23 for
//! x86-64; CPU 5 of 16 calls all others, as the last frames of its stack say, to drop their cached buffers.

mod now;
mod soft_lockup;
mod then;
mod view;

use core::time::Duration;

use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, Instant, Machine};
use smpcall_simulator::faults::{Fault, Filter, MessageKind};
use smpcall_simulator::{Config, MAX_CPUS, RING_VECTOR, SimMachine, World, program};

use crate::incident::{self, Definition, Setup, When};

/// The incident.
pub(crate) const DEFINITION: Definition = Definition {
    name: "lost-call",
    title: "one of fifteen call-function IPIs is lost (2009, Linux 2.6.23, 16 CPUs)",
    reported_cpus: 16,
    least_cpus: (2, "one to call and one to be called"),
    max_cpus: |when| match when {
        When::Then => MAX_CPUS_THEN,
        When::Now => MAX_CPUS,
    },
    routing,
    refuses: |fault, when| {
        (fault == incident::Fault::DeadTarget && when == When::Then)
            .then_some("its kernel had no answer to it, and hangs in its dump (choose --now)")
    },
    then: then::then,
    now: now::now,
};

/// The CPU that called, if there is one of that number.
const REPORTED_CALLER: usize = 5;
/// The largest `NR_CPUS` that 2.6.23 could be configured with on x86-64.
const MAX_CPUS_THEN: usize = 255;

/// The timer of a kernel with HZ=100, the least that 2.6.23 offers. (Ours: the report does not say which it had.)
const TICK: Duration = Duration::from_millis(10);
/// A dead target is dead from this time on, which is before anybody calls. (Ours.)
const DEAD_FROM: Instant = Instant::from_nanos(100_000);
/// A dead target is dead for so long: when it wakes, its caller has given up. (Ours.)
const DEAD_FOR: Duration = now::LIMIT.saturating_add(Duration::from_millis(10));
/// The first call is made at a random time within a millisecond after this. (Ours.)
const QUIET_START: Duration = Duration::from_millis(1);

/// How a kernel of 2007 would have addressed that many CPUs: logical flat as far as it reaches, then physical flat;
/// beyond that, x2APIC.
fn routing(cpus: usize) -> Routing {
    let fits = |routing: &Routing| cpus <= routing.max_cpus() as usize;
    [Routing::Flat, Routing::Physical].into_iter().find(fits).unwrap_or(Routing::X2ApicPhysical)
}

/// The CPUs of one replay.
#[derive(Clone, Copy)]
struct Cast {
    cpus: usize,
    caller: Cpu,
    /// The one that the fault concerns.
    victim: Cpu,
}

impl Cast {
    fn of(setup: &Setup) -> Self {
        let caller = REPORTED_CALLER.min(setup.cpus - 1);
        let others = setup.cpus as u64 - 1;
        let victim = (mixed(setup.seed) % others) as usize;
        // The caller is no candidate: those from its number on move up by one.
        let victim = if victim < caller { victim } else { victim + 1 };
        Self { cpus: setup.cpus, caller: Cpu::new(caller as u32), victim: Cpu::new(victim as u32) }
    }

    fn all(self) -> impl Iterator<Item = Cpu> {
        (0..self.cpus as u32).map(Cpu::new)
    }

    fn others(self) -> impl Iterator<Item = Cpu> {
        self.all().filter(move |&cpu| cpu != self.caller)
    }

    /// The machine, with its fault.
    fn config(self, setup: &Setup) -> Config {
        let mut config = Config::new(setup.cpus, setup.routing, setup.seed);
        config.tick = Some(TICK);
        config.trace = true;
        config.faults = match setup.fault {
            incident::Fault::Reported => {
                let kind = Some(MessageKind::Vector(RING_VECTOR));
                let filter = Filter { kind, from: Some(self.caller), to: Some(self.victim) };
                vec![Fault::DropNth { nth: 1, filter }]
            }
            incident::Fault::DeadTarget => {
                vec![Fault::Wedge {
                    cpu: self.victim,
                    at: DEAD_FROM,
                    duration: Some(DEAD_FOR),
                    takes_nmis: true,
                }]
            }
            _ => vec![],
        };
        config
    }

    /// Gives every CPU but the caller something to do: a little work, then idle until the next interrupt.
    fn occupy_others(self, world: &mut World<'_>) {
        for cpu in self.others() {
            world.spawn(cpu, || {
                let _frame = program::frame("cpu_idle");
                loop {
                    // The watchdog thread runs whenever the scheduler does.
                    soft_lockup::touch();
                    program::advance(Duration::from_nanos(program::random(200_000)));
                    program::halt();
                }
            });
        }
    }
}

/// Lets a random time pass, so that the call does not come at the same instant for every seed.
fn wait_for_the_moment() {
    program::advance(QUIET_START + Duration::from_nanos(program::random(1_000_000)));
}

/// A number that seeds next to each other do not share the low bits of (the finaliser of `SplitMix64`).
const fn mixed(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// A time as people say it: with one digit after the point, in seconds from one second on, else in microseconds.
fn human(duration: Duration) -> String {
    if duration >= Duration::from_secs(1) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{:.1} us", duration.as_secs_f64() * 1e6)
    }
}

/// The number of the CPU that this runs on.
fn this_cpu() -> Cpu {
    SimMachine::current_cpu()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident};
    use std::collections::BTreeSet;

    fn cast(cpus: usize, seed: u64) -> Cast {
        let (incident, when) = (Incident::LostCall, When::Then);
        Cast::of(&Setup { incident, when, cpus, routing: Routing::Physical, seed, fault: Fault::Reported })
    }

    #[test]
    fn cpu_5_calls_or_the_last_one_of_a_smaller_machine() {
        assert_eq!([2, 5, 6, 16].map(|cpus| cast(cpus, 1).caller.number()), [1, 4, 5, 5]);
    }

    #[test]
    fn times_are_in_seconds_or_microseconds() {
        assert_eq!(human(Duration::from_nanos(252_140)), "252.1 us");
        assert_eq!(human(Duration::from_nanos(15_000_000_200)), "15.0 s");
    }

    #[test]
    fn every_cpu_but_the_caller_can_be_the_victim() {
        let victims: BTreeSet<u32> = (0..200).map(|seed| cast(16, seed).victim.number()).collect();
        let expected: BTreeSet<u32> = (0..16).filter(|&cpu| cpu != 5).collect();
        assert_eq!(victims, expected);
        assert_eq!(cast(2, 7).victim, Cpu::new(0));
    }
}
