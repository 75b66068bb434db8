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
use crate::kernel::{self, Hooks};
use crate::machine::{self, SimMachine, TIMER_VECTOR};
use crate::operation::InterruptFrame;
use crate::processor::{Counters, CpuReport, Processor};
use crate::state::{Driver, Entered, Handler, Phase, State, Stop};
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

/// Builds the state of a machine, with all CPUs booted, before any program.
pub(crate) fn build(config: &Config, driver: Driver) -> Result<Box<State>, ConfigError> {
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
    let mut state = Box::new(State::new(config, driver, Interconnect::new(config), cpus.collect()));
    let pointer = &raw mut *state;
    let entered = Entered::new(pointer);
    for (cpu, id) in ids().enumerate() {
        // SAFETY: this thread owns the box and uses it through this pointer only until the end of the block; no CPU
        // runs, so the reference is the only one.
        unsafe { (*pointer).running = cpu };
        machine::boot(config.routing, Cpu::new(cpu as u32), id).map_err(|error| match error {
            smpcall_local_apic::EnableError::Routing(error) => ConfigError::Routing(error),
            smpcall_local_apic::EnableError::OtherIdentifier { .. } => {
                unreachable!("the table of identifiers is the one that the APICs were made from")
            }
        })?;
    }
    drop(entered);
    // Without a kernel that has other plans for it, a tick is only acknowledged.
    state.handlers[TIMER_VECTOR as usize] = Some(acknowledge);
    Ok(state)
}

fn acknowledge(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
}

/// A simulated machine. Programs may borrow what lives longer than `'p`.
///
/// Several can exist on one thread, one running at a time, and on several threads. Dropping one switches it off: what
/// is in progress on its CPUs is never finished, and no destructor of it runs.
pub struct World<'p> {
    /// Owned; a raw pointer because the coroutines share it.
    state: *mut State,
    cpus: Vec<Option<CpuCoroutine>>,
    programs: PhantomData<&'p mut &'p ()>,
}

impl<'p> World<'p> {
    /// A machine whose CPUs are booted and idle.
    ///
    /// # Errors
    /// If there cannot be such a machine.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut state = build(config, Driver::Timed)?;
        state.schedule_events();
        for cpu in 0..config.cpus {
            state.queue.set(cpu as u32, 0);
        }
        let cpus = (0..config.cpus).map(|_| None).collect();
        Ok(Self { state: Box::into_raw(state), cpus, programs: PhantomData })
    }

    /// A machine whose CPUs are booted, idle and online: they have mailboxes, and handlers that serve them.
    ///
    /// # Errors
    /// If there cannot be such a machine.
    pub fn with_kernel(config: &Config, hooks: Hooks) -> Result<Self, ConfigError> {
        let mut world = Self::new(config)?;
        let ticks = |cpu: &Cpu| !config.faults.contains(&Fault::NoTick { cpu: *cpu });
        let backstop = (0..config.cpus as u32).map(Cpu::new).find(ticks).unwrap_or(Cpu::new(0));
        kernel::install(world.state_mut(), backstop, hooks);
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
        self.state().kernel.as_ref().map(|kernel| kernel.mailboxes())
    }

    fn state(&self) -> &State {
        // SAFETY: `new` made it from a box, which is freed by `drop`; `run`, which holds the only exclusive borrow of
        // `self`, does not call this, so no CPU runs while the reference is alive.
        unsafe { &*self.state }
    }

    fn state_mut(&mut self) -> &mut State {
        // SAFETY: as in `state`.
        unsafe { &mut *self.state }
    }

    /// Sets the handler of a vector. The timer's acknowledges and does nothing else until it is set.
    ///
    /// A vector that comes in without a handler makes [`run`](Self::run) panic.
    pub fn set_handler(&mut self, vector: u8, handler: Handler) {
        self.state_mut().handlers[vector as usize] = Some(handler);
    }

    /// Sets the handler of NMIs.
    pub fn set_nmi_handler(&mut self, handler: Handler) {
        self.state_mut().nmi_handler = Some(handler);
    }

    /// Gives a CPU its program. It starts with interrupts enabled.
    ///
    /// # Panics
    /// If there is no such CPU, it has a program, or the machine has run already.
    pub fn spawn(&mut self, cpu: Cpu, program: impl FnOnce() + 'p) {
        let slot = &mut self.cpus[cpu.index()];
        assert!(slot.is_none(), "{cpu} has a program, or the machine has run");
        // SAFETY: the state lives until `drop`, which drops the coroutines first; what the program borrows outlives
        // `'p`, and with it `self`.
        *slot = Some(unsafe { CpuCoroutine::new(self.state, cpu.index(), Some(program)) });
        self.state_mut().programs += 1;
    }

    /// Runs until all programs have ended, until `limit` at the latest. May be called again to go on.
    ///
    /// # Panics
    /// If a program or handler panics; the message names the CPU.
    pub fn run(&mut self, limit: Instant) -> RunEnd {
        if self.state().programs == 0 {
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
        for (cpu, slot) in self.cpus.iter_mut().enumerate() {
            // SAFETY: as in `spawn`.
            slot.get_or_insert_with(|| unsafe { CpuCoroutine::new(self.state, cpu, None::<fn()>) });
        }
        let state = self.state;
        let _entered = Entered::new(state);
        // SAFETY: one thread; this reference ends with the block, before any CPU runs. So each below.
        unsafe {
            let end = (*state).interconnect.end_slot();
            (*state).queue.set(end, limit.as_nanos());
        }
        loop {
            // SAFETY: as above.
            let machine = unsafe { &mut *state };
            match machine.stop.take() {
                None => {}
                Some(Stop::ProgramsEnded) if !until_ended => {}
                Some(Stop::ProgramsEnded) => return RunEnd::ProgramsEnded,
                Some(Stop::Asked) => return RunEnd::Stopped,
                Some(Stop::Panicked { cpu, payload }) => propagate(cpu, payload),
            }
            let end = machine.interconnect.end_slot();
            let Some((time, slot)) = machine.queue.pop() else { return RunEnd::Stuck };
            if slot == end {
                // Nothing but the end of the run is left, and that is at the end of time: nothing can happen.
                let stuck = machine.queue.first().is_none();
                return if stuck { RunEnd::Stuck } else { RunEnd::TimeLimit };
            }
            let cpu = slot as usize;
            if cpu >= self.cpus.len() {
                machine.happen(slot, time);
                continue;
            }
            machine.running = cpu;
            machine.phase = Phase::Running;
            machine.cpu().time = machine.cpu().time.max(time);
            if let Some(coroutine) = &mut self.cpus[cpu] {
                coroutine.resume();
            }
            // SAFETY: as above.
            unsafe { (*state).phase = Phase::Direct };
        }
    }

    /// How many CPUs it has.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// The latest of the CPUs' clocks.
    pub fn time(&self) -> Instant {
        Instant::from_nanos(self.state().cpus.iter().map(|cpu| cpu.time).max().unwrap_or(0))
    }

    /// What can be seen of a CPU.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn inspect(&self, cpu: Cpu) -> CpuReport {
        self.state().report(cpu.index())
    }

    /// What all CPUs counted, added up.
    pub fn counters(&self) -> Counters {
        self.state().counters()
    }

    /// What was recorded so far; empty if the configuration does not ask for it.
    pub fn trace(&self) -> Trace {
        self.state().trace()
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

impl Drop for World<'_> {
    fn drop(&mut self) {
        for (cpu, coroutine) in self.cpus.iter_mut().enumerate() {
            // SAFETY: as in `state`; the reference ends here.
            let idle = unsafe { (&(*self.state).cpus)[cpu].is_idle() };
            if let Some(coroutine) = coroutine {
                coroutine.switch_off(idle);
            }
        }
        // SAFETY: made by `Box::into_raw` in `new`; no coroutine is left that could use it.
        drop(unsafe { Box::from_raw(self.state) });
    }
}
