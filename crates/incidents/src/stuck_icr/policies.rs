//! The solutions of report 002 beside what was there and what ships: what each costs, measured on the model.
//!
//! An ordinary send to one CPU by an idle controller is what everybody pays. An NMI to all others by a controller that never
//! becomes idle is what a crash pays.

use core::time::Duration;
use std::cell::Cell;

use smpcall_local_apic::{Access, IcrPolicy, Interrupt, LocalApic, Register, Routing, Sender, Vector};
use smpcall_machine::{Cpu, CpuMask, Event, Instant, Ipi, Machine, SendError};
use smpcall_simulator::apic::IcrFault;
use smpcall_simulator::{
    Config, ConfigError, CostModel, InterruptFrame, RING_VECTOR, RunEnd, SimAccess, SimCpuSet, SimMachine,
    SimMemory, SimTopology, World, program,
};

const RING: Interrupt = match Vector::new(RING_VECTOR) {
    Some(vector) => Interrupt::Fixed(vector),
    None => panic!("an ordinary vector"),
};

/// What a send took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Registers of the local APIC that were read.
    pub(super) register_reads: u32,
    /// Readings of the clock, without those of the loop of a delay.
    pub(super) clock_reads: u32,
    /// Time of the model.
    pub(super) time: Duration,
}

/// What a policy costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Costs {
    pub(super) policy: IcrPolicy,
    /// An ordinary interrupt to one CPU, with an idle controller.
    pub(super) ordinary: Cost,
    /// An NMI to all others of the crash path, with a controller that stays busy: how long until it is given up; none if it
    /// never is. With one command for all.
    pub(super) stuck_mask: Option<Duration>,
    /// The same, with a command for each CPU.
    pub(super) stuck_each: Option<Duration>,
}

thread_local! {
    static READS: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// The simulated machine, whose readings of the clock are counted.
enum CountedClock {}

// SAFETY: everything is done by `SimMachine`, which keeps the promises.
unsafe impl Machine for CountedClock {
    type Memory = SimMemory;
    type CpuSet = SimCpuSet;

    const HAS_NMI: bool = SimMachine::HAS_NMI;

    fn current_cpu() -> Cpu {
        SimMachine::current_cpu()
    }

    #[track_caller]
    fn disable_interrupts() -> bool {
        SimMachine::disable_interrupts()
    }

    #[track_caller]
    fn restore_interrupts(were_enabled: bool) {
        SimMachine::restore_interrupts(were_enabled);
    }

    fn interrupts_enabled() -> bool {
        SimMachine::interrupts_enabled()
    }

    fn in_nmi() -> bool {
        SimMachine::in_nmi()
    }

    #[track_caller]
    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        SimMachine::send(target, ipi)
    }

    #[track_caller]
    fn send_many(targets: &CpuMask, ipi: Ipi) -> Result<(), SendError> {
        SimMachine::send_many(targets, ipi)
    }

    fn now() -> Instant {
        let (registers, clock) = READS.get();
        READS.set((registers, clock + 1));
        SimMachine::now()
    }

    fn observe(event: &Event) {
        SimMachine::observe(event);
    }
}

/// The registers of the running CPU, whose reads are counted.
struct CountedReads;

impl Access for CountedReads {
    fn mode(&self) -> smpcall_local_apic::Mode {
        SimAccess.mode()
    }

    #[track_caller]
    fn read(&self, register: Register) -> u32 {
        let (registers, clock) = READS.get();
        READS.set((registers + 1, clock));
        SimAccess.read(register)
    }

    #[track_caller]
    fn write(&self, register: Register, value: u32) {
        SimAccess.write(register, value);
    }

    #[track_caller]
    fn write_icr(&self, value: u64) {
        SimAccess.write_icr(value);
    }
}

/// Runs something on CPU 0 of a machine on which nothing else happens, without jitter; says what it took, or nothing if it
/// never came to an end.
fn measured(
    routing: Routing,
    cpus: usize,
    run: impl Fn(&LocalApic<CountedClock, CountedReads>),
    prepare: impl Fn(),
) -> Result<Option<Cost>, ConfigError> {
    let mut config = Config::new(cpus, routing, 1);
    (config.tick, config.cost.jitter, config.shorthands) = (None, 0, false);
    let clock = Duration::from_nanos(config.cost.clock);
    let cost = Cell::new(None);
    let mut world = World::new(&config)?;
    world.set_handler(RING_VECTOR, |mut frame: InterruptFrame| frame.end_of_interrupt());
    world.set_nmi_handler(drop);
    world.spawn(Cpu::new(0), || {
        prepare();
        READS.take();
        let began = SimMachine::now();
        run(&LocalApic::new(CountedReads, routing));
        let time = SimMachine::now().since(began).saturating_sub(clock);
        let (register_reads, clock_reads) = READS.take();
        cost.set(Some(Cost { register_reads, clock_reads, time }));
    });
    let end = world.run(Instant::from_nanos(u64::MAX / 2));
    debug_assert_eq!(end == RunEnd::Stuck, cost.get().is_none());
    // SAFETY: the program that waits for ever has lent nothing to anybody, and nothing there relies on being dropped.
    unsafe { world.forget_programs() };
    drop(world);
    Ok(cost.get())
}

/// An ordinary interrupt to one CPU, with an idle controller.
fn ordinary(policy: IcrPolicy) -> Result<Cost, ConfigError> {
    let send = |apic: &LocalApic<CountedClock, CountedReads>| {
        let sent = apic.under(policy, Sender::Ordinary).send_one(&SimTopology::current(), Cpu::new(1), RING);
        sent.expect("an idle controller takes commands");
    };
    let mut cost = measured(Routing::Physical, 2, send, || ())?.unwrap_or_default();
    if policy != IcrPolicy::Ours && !policy.is_bounded(Sender::Ordinary, RING) {
        // It reads the register in a wait, and what a wait of the model reads takes no time there.
        cost.time += Duration::from_nanos(CostModel::default().apic_read) * cost.register_reads;
    }
    Ok(cost)
}

/// An NMI to all others, with a controller that stays busy.
fn stuck(policy: IcrPolicy, routing: Routing, cpus: usize) -> Result<Option<Duration>, ConfigError> {
    let others: SimCpuSet = (1..cpus as u32).map(Cpu::new).collect();
    let send = |apic: &LocalApic<CountedClock, CountedReads>| {
        let crash_path = apic.under(policy, Sender::CrashPath);
        let sent = crash_path.send_many(&SimTopology::current(), &others, Interrupt::Nmi);
        debug_assert_eq!(sent, Err(SendError::ControllerBusy));
    };
    let prepare = || {
        // The command that is stuck.
        let stuck = smpcall_simulator::send_interrupt_to(&others, Interrupt::Nmi);
        stuck.expect("an idle controller takes commands");
        program::advance(Duration::from_micros(10));
        program::break_icr(Some(IcrFault::StuckUntil(Instant::from_nanos(u64::MAX))));
    };
    Ok(measured(routing, cpus, send, prepare)?.map(|cost| cost.time))
}

/// How many CPUs the machine has that [`Costs::stuck_mask`] is measured on: one command reaches no more.
pub(super) fn mask_cpus(cpus: usize) -> usize {
    cpus.min(Routing::MAX_FLAT_CPUS as usize)
}

/// Measures all policies: then, A, B-1, B-2, ours.
pub(super) fn measure(cpus: usize) -> Result<[Costs; 5], ConfigError> {
    use IcrPolicy::{BoundedEverywhere, BoundedForNmi, Ours, SeparateSenders, Unbounded};
    let policies = [Unbounded, BoundedEverywhere, SeparateSenders, BoundedForNmi, Ours];
    let none = Costs { policy: Ours, ordinary: Cost::default(), stuck_mask: None, stuck_each: None };
    let mut all = [none; 5];
    for (costs, policy) in all.iter_mut().zip(policies) {
        *costs = Costs {
            policy,
            ordinary: ordinary(policy)?,
            stuck_mask: stuck(policy, Routing::Flat, mask_cpus(cpus))?,
            stuck_each: stuck(policy, Routing::Physical, cpus)?,
        };
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKS: Duration = Duration::from_micros(100);

    #[test]
    fn ours_costs_an_ordinary_send_one_read_as_then_and_solution_a_100_microseconds_more() {
        let [then, a, b1, b2, ours] = measure(4).expect("machines").map(|costs| costs.ordinary);
        for cost in [then, b1, b2, ours] {
            assert_eq!((cost.register_reads, cost.clock_reads), (1, 0));
        }
        assert_eq!((a.register_reads, a.clock_reads), (1, 1));
        assert_eq!(ours.time, then.time);
        assert!(
            (TICKS..TICKS + Duration::from_micros(1)).contains(&a.time.saturating_sub(then.time)),
            "{a:?} {then:?}"
        );
    }

    #[test]
    fn a_stuck_controller_costs_the_old_bound_for_each_command_and_ours_once() {
        let [then, a, b1, b2, ours] = measure(4).expect("machines");
        assert_eq!((then.stuck_mask, then.stuck_each), (None, None));
        // A thousand and one delays of 100 us, for one command and for three.
        let bound = TICKS * 1001;
        for old in [a, b1, b2] {
            let (mask, each) = (old.stuck_mask.expect("bounded"), old.stuck_each.expect("bounded"));
            assert!((bound..bound + Duration::from_millis(1)).contains(&mask), "{old:?}");
            assert!((bound * 3..bound * 3 + Duration::from_millis(1)).contains(&each), "{old:?}");
        }
        let (mask, each) = (ours.stuck_mask.expect("bounded"), ours.stuck_each.expect("bounded"));
        let bound = Duration::from_millis(100);
        assert!((bound..bound + Duration::from_millis(1)).contains(&mask), "{ours:?}");
        assert!((mask..mask + Duration::from_micros(200)).contains(&each), "{ours:?}");
    }
}
