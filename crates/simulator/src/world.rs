//! The simulated multiprocessor in virtual time: a discrete-event simulator.

use core::marker::PhantomData;
use std::any::Any;

use smpcall::Mailboxes;
use smpcall_machine::{Cpu, Instant};

use crate::apic::ApicModel;
use crate::config::{Config, ConfigError};
use crate::coroutine::CpuCoroutine;
use crate::faults::Fault;
use crate::interconnect::Interconnect;
use crate::interrupt::InterruptFrame;
use crate::kernel::{self, Hooks};
use crate::machine::{self, SimMachine, TIMER_VECTOR};
use crate::processor::{Counters, CpuReport, Processor};
use crate::state::{Driver, Entered, Handler, Owner, Phase, State, Stop};
use crate::trace::Trace;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// All programs have ended.
    ProgramsEnded,
    /// The limit of virtual time is reached.
    TimeLimit,
    /// A program called [`stop`](crate::program::stop).
    Stopped,
    /// Nothing can ever happen again, and not all programs have ended: every CPU waits without a deadline, is halted
    /// or wedged for ever, and no message is on its way. Needs a machine without ticks.
    Stuck,
}

/// Builds a machine, with all CPUs booted, before any program.
///
/// # Safety
/// As for [`Owner::new`].
pub(crate) unsafe fn build(config: &Config, driver: Driver) -> Result<Owner, ConfigError> {
    config.check()?;
    let mode = config.routing.mode();
    let ids = || (0..config.cpus).map(|cpu| config.apic_id(cpu));
    config.routing.check(mode, ids())?;
    let cpus = ids().enumerate().map(|(cpu, id)| {
        let mut apic = ApicModel::new(id.0, mode);
        if driver == Driver::Timed {
            apic.set_dispatch_time(core::time::Duration::from_nanos(config.cost.icr_dispatch));
        }
        Processor::new(cpu, config.seed, apic)
    });
    let state = State::new(config, driver, Interconnect::new(config), cpus.collect());
    // SAFETY: promised by the caller.
    let state = unsafe { Owner::new(state) };
    let _entered = Entered::new(state.shared());
    for (cpu, id) in ids().enumerate() {
        state.with(|machine| machine.running = cpu);
        machine::boot(config.routing, Cpu::new(cpu as u32), id).map_err(|error| match error {
            smpcall_local_apic::EnableError::Routing(error) => ConfigError::Routing(error),
            smpcall_local_apic::EnableError::OtherIdentifier { .. } => {
                unreachable!("the table of identifiers is the one that the APICs were made from")
            }
        })?;
    }
    // Without a kernel that has other plans for it, a tick is only acknowledged.
    state.with(|machine| machine.handlers[TIMER_VECTOR as usize] = Some(acknowledge));
    Ok(state)
}

fn acknowledge(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
}

/// A simulated machine. Programs may borrow what lives longer than `'p`.
///
/// Several can exist on one thread, one running at a time, and on several threads.
///
/// Dropping one switches it off: what is in progress on its CPUs is never finished, and no destructor of it runs. What
/// a program then [must not own](Self::spawn) is said there. The stack of a CPU in the middle of something is kept for
/// ever, because nobody knows who refers to it: 256 KiB of address space and two mappings, of which Linux allows
/// 65530 per process. Who drops many such machines [gives up](Self::forget_programs) those stacks.
///
/// A CPU that is suspended while it unwinds (a destructor performed an operation) never ends its panic:
/// [`std::thread::panicking`] is true on this thread from the panic on, for other CPUs and machines too, and stays so
/// when the machine is dropped.
pub struct World<'p> {
    cpus: Vec<Option<CpuCoroutine>>,
    /// Dropped after the coroutines, which use it.
    state: Owner,
    /// The caller of `forget_programs` has made its promise.
    forgettable: bool,
    programs: PhantomData<&'p mut &'p ()>,
}

impl<'p> World<'p> {
    /// A machine whose CPUs are booted and idle.
    ///
    /// # Errors
    /// If there cannot be such a machine.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        // SAFETY: only this machine's coroutines use the state, and they are dropped before it.
        let state = unsafe { build(config, Driver::Timed) }?;
        state.with(|machine| {
            machine.schedule_events();
            for cpu in 0..config.cpus {
                machine.queue.set(cpu as u32, 0);
            }
        });
        let cpus = (0..config.cpus).map(|_| None).collect();
        Ok(Self { cpus, state, forgettable: false, programs: PhantomData })
    }

    /// A machine whose CPUs are booted, idle and online: they have mailboxes, and handlers that serve them.
    ///
    /// # Errors
    /// If there cannot be such a machine.
    pub fn with_kernel(config: &Config, hooks: Hooks) -> Result<Self, ConfigError> {
        let world = Self::new(config)?;
        let ticks = |cpu: &Cpu| !config.faults.contains(&Fault::NoTick { cpu: *cpu });
        let backstop = (0..config.cpus as u32).map(Cpu::new).find(ticks).unwrap_or(Cpu::new(0));
        kernel::install(world.state.shared(), backstop, hooks);
        Ok(world)
    }

    /// The sum over all CPUs of something that their mailboxes count; 0 without a kernel.
    pub fn mailbox_counters(&self, counter: impl Fn(&smpcall::Counters) -> u64) -> u64 {
        self.mailboxes().map_or(0, |mailboxes| {
            mailboxes
                .cpus()
                .filter_map(|cpu| mailboxes.get(cpu))
                .map(|mailbox| counter(mailbox.counters()))
                .sum()
        })
    }

    /// The mailboxes, if the machine has a kernel. Not to be used after the machine is dropped: they are empty then.
    pub fn mailboxes(&self) -> Option<&Mailboxes<SimMachine>> {
        self.state.with(|machine| machine.kernel.as_ref().map(|kernel| kernel.mailboxes()))
    }

    /// Sets the handler of a vector. The timer's acknowledges and does nothing else until it is set.
    ///
    /// A vector that comes in without a handler makes [`run`](Self::run) panic.
    pub fn set_handler(&mut self, vector: u8, handler: Handler) {
        self.state.with(|machine| machine.handlers[vector as usize] = Some(handler));
    }

    /// Sets the handler of NMIs.
    pub fn set_nmi_handler(&mut self, handler: Handler) {
        self.state.with(|machine| machine.nmi_handler = Some(handler));
    }

    /// Gives a CPU its program. It starts with interrupts enabled.
    ///
    /// It may never be finished: the machine can be dropped at each of its operations, and its destructors do not run
    /// then. So across an operation it must not own anything whose destructor somebody outside of the machine relies
    /// on: no scoped threads ([`std::thread::scope`]; they would outlive what they borrow), no guard of a lock that
    /// others take. Memory that it owns leaks.
    ///
    /// # Panics
    /// If there is no such CPU, it has a program, or the machine has run already.
    pub fn spawn(&mut self, cpu: Cpu, program: impl FnOnce() + 'p) {
        let slot = &mut self.cpus[cpu.index()];
        assert!(slot.is_none(), "{cpu} has a program, or the machine has run");
        // SAFETY: the state is dropped after the coroutines; what the program borrows outlives `'p`, and with it `self`.
        *slot = Some(unsafe { CpuCoroutine::new(self.state.shared(), cpu.index(), Some(program)) });
        self.state.with(|machine| machine.programs += 1);
    }

    /// Lets dropping this machine take the stacks away from programs that are not finished, for the next machine:
    /// without, they are kept for ever. Changes nothing before that; the machine may go on running.
    ///
    /// # Safety
    /// From when the machine is dropped, nothing that is used refers to what lives on the CPUs' stacks, and nothing
    /// there relies on being dropped. (Heap memory owned there leaks.)
    pub unsafe fn forget_programs(&mut self) {
        self.forgettable = true;
    }

    /// Runs until all programs have ended, until `limit` at the latest. May be called again to go on.
    ///
    /// # Panics
    /// If a program or handler panics; the message names the CPU.
    pub fn run(&mut self, limit: Instant) -> RunEnd {
        if self.state.with(|machine| machine.programs == 0) {
            return RunEnd::ProgramsEnded;
        }
        self.run_events(limit, true)
    }

    /// Runs until `limit` whether or not programs are left: lets interrupts arrive that are on their way.
    ///
    /// # Panics
    /// As for [`run`](Self::run).
    pub fn run_on(&mut self, limit: Instant) -> RunEnd {
        self.run_events(limit, false)
    }

    fn run_events(&mut self, limit: Instant, until_ended: bool) -> RunEnd {
        let state = self.state.shared();
        for (cpu, slot) in self.cpus.iter_mut().enumerate() {
            // SAFETY: as in `spawn`.
            slot.get_or_insert_with(|| unsafe { CpuCoroutine::new(state, cpu, None::<fn()>) });
        }
        let _entered = Entered::new(state);
        state.with(|machine| machine.queue.set(machine.interconnect.end_slot(), limit.as_nanos()));
        loop {
            match state.with(|machine| machine.next_turn(until_ended)) {
                Turn::Cpu(cpu) => {
                    if let Some(coroutine) = &mut self.cpus[cpu] {
                        coroutine.resume();
                    }
                    state.with(|machine| machine.phase = Phase::Direct);
                }
                Turn::End(end) => return end,
                Turn::Panic { cpu, payload } => propagate(cpu, payload),
            }
        }
    }

    /// How many CPUs it has.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// The latest of the CPUs' clocks.
    pub fn time(&self) -> Instant {
        let latest = self.state.with(|machine| machine.cpus.iter().map(|cpu| cpu.time).max());
        Instant::from_nanos(latest.unwrap_or(0))
    }

    /// What can be seen of a CPU.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn inspect(&self, cpu: Cpu) -> CpuReport {
        self.state.with(|machine| machine.report(cpu.index()))
    }

    /// What all CPUs counted, added up.
    pub fn counters(&self) -> Counters {
        self.state.with(|machine| machine.counters())
    }

    /// What was recorded so far; empty if the configuration does not ask for it.
    pub fn trace(&self) -> Trace {
        self.state.with(|machine| machine.trace())
    }
}

/// Goes on panicking outside of the machine, and says on which CPU it began.
pub(crate) fn propagate(cpu: usize, payload: Box<dyn Any + Send>) -> ! {
    let message = payload.downcast_ref::<String>().map(String::as_str);
    match message.or_else(|| payload.downcast_ref::<&str>().copied()) {
        Some(message) => panic!("CPU {cpu} panicked: {message}"),
        None => std::panic::resume_unwind(payload),
    }
}

/// What a run does next.
enum Turn {
    Cpu(usize),
    End(RunEnd),
    Panic { cpu: usize, payload: Box<dyn Any + Send> },
}

impl State {
    /// Lets everything happen that is not a CPU's, up to the next CPU's turn or the end of the run.
    fn next_turn(&mut self, until_ended: bool) -> Turn {
        match self.stop.take() {
            Some(Stop::ProgramsEnded) if until_ended => return Turn::End(RunEnd::ProgramsEnded),
            Some(Stop::Asked) => return Turn::End(RunEnd::Stopped),
            Some(Stop::Panicked { cpu, payload }) => return Turn::Panic { cpu, payload },
            Some(Stop::ProgramsEnded) | None => {}
        }
        let end = self.interconnect.end_slot();
        loop {
            let Some((time, slot)) = self.queue.pop() else { return Turn::End(RunEnd::Stuck) };
            if slot == end {
                // With nothing left in the queue there is nothing that could ever happen.
                let stuck = self.queue.first().is_none();
                return Turn::End(if stuck { RunEnd::Stuck } else { RunEnd::TimeLimit });
            }
            let cpu = slot as usize;
            if let Some(processor) = self.cpus.get_mut(cpu) {
                processor.time = processor.time.max(time);
                self.running = cpu;
                self.phase = Phase::Running;
                return Turn::Cpu(cpu);
            }
            self.happen(slot, time);
        }
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        for (cpu, coroutine) in self.cpus.iter_mut().enumerate() {
            let idle = self.state.with(|machine| machine.cpus[cpu].is_idle());
            let Some(coroutine) = coroutine else { continue };
            if self.forgettable {
                // SAFETY: the caller of `forget_programs` has promised it.
                unsafe { coroutine.forget() };
            } else {
                coroutine.switch_off(idle);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use std::cell::RefCell;
    use std::collections::HashSet;

    use smpcall_local_apic::Routing;

    use crate::program;

    const LIMIT: Instant = Instant::from_nanos(1_000_000);

    #[test]
    fn machines_whose_programs_are_forgotten_share_their_stacks() {
        let config = Config::new(255, Routing::X2ApicPhysical, 0);
        let stacks = RefCell::new(HashSet::new());
        // Their stacks together are more mappings than a process may have.
        for _ in 0..300 {
            let mut world = World::new(&config).expect("a machine");
            for cpu in 0..255 {
                let stacks = &stacks;
                world.spawn(Cpu::new(cpu), move || {
                    let local = 0u8;
                    stacks.borrow_mut().insert((&raw const local).addr());
                    loop {
                        program::halt();
                    }
                });
            }
            assert_eq!(world.run(Instant::from_nanos(10_000)), RunEnd::TimeLimit);
            // SAFETY: only the address of what lives on the stacks is known outside, and no destructor is needed.
            unsafe { world.forget_programs() };
        }
        assert_eq!(stacks.borrow().len(), 255);
    }

    #[test]
    fn a_forgotten_program_that_was_never_started_is_dropped() {
        let owned = std::rc::Rc::new(());
        let mut world = World::new(&Config::new(1, Routing::Flat, 0)).expect("a machine");
        let moved = owned.clone();
        world.spawn(Cpu::new(0), move || drop(moved));
        // SAFETY: nothing has run.
        unsafe { world.forget_programs() };
        drop(world);
        assert_eq!(std::rc::Rc::strong_count(&owned), 1);
    }

    #[test]
    fn a_machine_in_a_thread_local_is_dropped_when_its_thread_ends() {
        thread_local! {
            static WORLD: RefCell<Option<World<'static>>> = const { RefCell::new(None) };
        }
        let thread = std::thread::spawn(|| {
            // Used before the pool of stacks, and so dropped after it on some systems, before it on others.
            WORLD.set(None);
            let mut world = World::new(&Config::new(2, Routing::Flat, 0)).expect("a machine");
            world.spawn(Cpu::new(0), || program::advance(Duration::from_micros(1)));
            assert_eq!(world.run(LIMIT), RunEnd::ProgramsEnded);
            WORLD.set(Some(world));
        });
        thread.join().expect("the thread ends without a panic");
    }

    #[test]
    fn a_thread_goes_on_panicking_for_a_cpu_that_never_finishes_its_unwinding() {
        struct Slow;
        impl Drop for Slow {
            fn drop(&mut self) {
                program::advance(Duration::from_millis(10));
            }
        }
        let panicking = std::thread::spawn(|| {
            let mut world = World::new(&Config::new(1, Routing::Flat, 0)).expect("a machine");
            world.spawn(Cpu::new(0), || {
                let _slow = Slow;
                std::panic::resume_unwind(Box::new("not to be seen"));
            });
            assert_eq!(world.run(LIMIT), RunEnd::TimeLimit);
            drop(world);
            std::thread::panicking()
        });
        assert_eq!(panicking.join().ok(), Some(true));
    }
}
