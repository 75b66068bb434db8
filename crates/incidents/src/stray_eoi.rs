//! Incident 4 (report 003, 2015): an end of interrupt that belongs to nothing, and a mask for one CPU.
//!
//! What both replays share: the machine, its devices, its tasks, and which messages are lost. The reported kernel is the
//! one before 4.0-rc1 for x86-64, on a machine with x2APIC clusters. Interrupt 0, the legacy timer's, comes from the 8259s
//! as an `ExtINT`, which the local APIC never has in service.

mod board;
mod ends;
mod now;
mod sending;
mod tasks;
mod then;
mod view;

use core::time::Duration;

use smpcall_local_apic::{Mode, Routing};
use smpcall_machine::{Cpu, Event, Instant, Machine};
use smpcall_simulator::apic::Features;
use smpcall_simulator::faults::{Fault, Filter, MessageKind, Probability};
use smpcall_simulator::{Config, CpuReport, MAX_CPUS, SimMachine, World, program};

use crate::incident::{self, Definition, Setup};
use crate::replay::Outcome;
use ends::Ends;

/// The incident.
pub(crate) const DEFINITION: Definition = Definition {
    name: "stray-eoi",
    title: "an ExtINT is ended at the local APIC; IPIs to one CPU go by mask (2015, Linux before 4.0-rc1, x2APIC)",
    // The report does not say. (Ours.)
    reported_cpus: 8,
    least_cpus: (2, "one that takes the legacy timer's interrupt and one that wakes it"),
    max_cpus: |_| MAX_CPUS,
    routing: |_| Routing::X2ApicCluster,
    refuses: |fault, _| match fault {
        incident::Fault::DeadTarget => Some("nobody waits for a dead CPU in it"),
        _ => None,
    },
    then: then::then,
    now: now::now,
};

/// The CPU that takes the interrupts of the devices.
const DEVICES_TO: Cpu = Cpu::new(0);
/// The CPU whose program plays the devices, beside waking tasks.
const PLAYS_DEVICES: Cpu = Cpu::new(1);

/// The local timer of a kernel with HZ=250. (Ours: the report does not say which it had.)
const TICK: Duration = Duration::from_millis(4);
/// How late a tick may be taken: handlers with interrupts disabled come before it. (Ours.)
const TICK_LATENESS: Duration = Duration::from_micros(50);
/// How many tasks are woken, by all CPUs together: the report saw thousands of reschedule interrupts. (Ours.)
const WAKES: usize = 4096;
/// In about this time. (Ours.)
const RUN_TIME: Duration = Duration::from_millis(200);
/// How many of the interrupts that say so are lost. (Ours.)
const LOSS: f64 = 0.02;
/// The run is over by then, whatever becomes of it. (Ours.)
const TIME_LIMIT: Instant = Instant::from_nanos(5_000_000_000);

/// The machine, with its faults. `vector` is that of reschedule interrupts.
fn config(setup: &Setup, vector: u8) -> Config {
    let mut config = Config::new(setup.cpus, setup.routing, setup.seed);
    config.tick = Some(TICK);
    config.trace = true;
    if setup.fault == incident::Fault::OldApic {
        config.apic_features = Features::P6;
    }
    if setup.fault != incident::Fault::None
        && let Some(probability) = Probability::new(LOSS)
    {
        let filter = Filter { kind: Some(MessageKind::Vector(vector)), from: None, to: None };
        config.faults.push(Fault::Drop { probability, filter });
    }
    config
}

/// Why it cannot be replayed on this machine, if so.
fn not_applicable(setup: &Setup) -> Option<&'static str> {
    let no_such_mode = setup.fault == incident::Fault::OldApic && setup.routing.mode() == Mode::X2Apic;
    no_such_mode.then_some(
        "Local APICs of the P6 family have no x2APIC mode: choose a routing in xAPIC mode, such as flat.",
    )
}

/// What every CPU's task does: it works, and now and then wakes a task on another CPU by `wake`, which is told how often it
/// was called before.
fn work_and_wake(cpus: usize, wake: impl Fn(Cpu, u64)) {
    let me = SimMachine::current_cpu();
    let wakes = (WAKES / cpus).max(1) as u64;
    let pause = || Duration::from_nanos(program::random(2 * RUN_TIME.as_nanos() as u64 / wakes));
    // By then every CPU has ticked: the first ticks are spread over a period.
    program::advance(2 * TICK);
    let mut devices = (me == PLAYS_DEVICES).then(board::Devices::new);
    for done in 0..wakes {
        let next = SimMachine::now().plus(pause());
        if let Some(devices) = &mut devices {
            devices.play_until(next);
        }
        program::advance(next.since(SimMachine::now()));
        let other = program::random(cpus as u64 - 1) as usize;
        let other = if other < me.index() { other } else { other + 1 };
        wake(Cpu::new(other as u32), done);
    }
}

/// Runs all programs to their ends, and on until the tasks whose interrupt was lost were found.
fn run(world: &mut World<'_>) {
    world.run(TIME_LIMIT);
    world.run_on(world.time().plus(2 * TICK));
}

/// The reported state: some handler's end of interrupt has cleared another handler's in-service bit, and an interrupt that
/// this bit would have held back was taken while the other handler ran. And no vector was lost, which is as much part of
/// the report.
fn is_reported_state(ends: &Ends, lost_vectors: u64) -> bool {
    !ends.cut_short.is_empty() && !ends.early.is_empty() && lost_vectors == 0
}

const fn outcome(reported_state: bool) -> Outcome {
    if reported_state { Outcome::Lost } else { Outcome::Held }
}

/// Vectors that an APIC or a device has asked for and no handler has seen: those of devices, and those of messages that
/// neither a fault has lost, nor have merged, nor are pending.
fn lost_vectors(reports: &[CpuReport], vector: u8) -> u64 {
    let sum = |count: fn(&CpuReport) -> u64| -> u64 { reports.iter().map(count).sum() };
    let arrived = sum(|cpu| cpu.counters.ipis_sent - cpu.counters.ipis_lost);
    let taken: u64 = reports.iter().map(|cpu| cpu.counters.taken[vector as usize]).sum();
    let pending = reports.iter().filter(|cpu| cpu.requested.contains(&vector)).count() as u64;
    let missing = arrived.saturating_sub(taken + sum(|cpu| cpu.counters.ipis_merged) + pending);
    missing + board::requests_not_handled()
}

/// How often a device's interrupt found no room at its CPU and was offered again.
fn offered_again(reports: &[CpuReport]) -> u64 {
    reports.iter().map(|cpu| cpu.counters.devices_retried).sum()
}

/// What the ends of interrupt in a trace say, if irq 0 came as the fault says.
fn ends(setup: &Setup, events: &[Event]) -> Ends {
    let ext_int = (setup.fault != incident::Fault::None).then_some(board::TIMER_VECTOR);
    Ends::of(events, ext_int)
}

/// All CPUs as they are.
fn reports(world: &World<'_>) -> Vec<CpuReport> {
    (0..world.cpus() as u32).map(|cpu| world.inspect(Cpu::new(cpu))).collect()
}
