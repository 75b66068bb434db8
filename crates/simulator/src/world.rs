//! The simulated multiprocessor in virtual time: a discrete-event simulator.

use core::marker::PhantomData;
use std::any::Any;

use smpcall::{CrashNotes, Mailboxes};
use smpcall_local_apic::DeliveryMode;
use smpcall_machine::{Cpu, Instant};

use crate::apic::{ApicModel, Message};
use crate::config::{Config, ConfigError};
use crate::coroutine::CpuCoroutine;
use crate::faults::Fault;
use crate::image::{Image, ImageId, StartUp, acknowledge};
use crate::interconnect::Interconnect;
use crate::kernel::{self, Hooks};
use crate::machine::{self, SPURIOUS_VECTOR, SimMachine, TIMER_VECTOR};
use crate::processor::{Anew, AnyStale, Counters, CpuReport, Processor, Source};
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
    let any_stale = AnyStale::default();
    let cpus = ids().enumerate().map(|(cpu, id)| {
        let mut apic = ApicModel::with_features(id.0, mode, config.apic_features);
        if driver == Driver::Timed {
            apic.set_dispatch_time(core::time::Duration::from_nanos(config.cost.icr_dispatch));
        }
        if config.not_started.contains(&Cpu::new(cpu as u32)) {
            apic.accept(Message::edge(DeliveryMode::Init, 0));
        }
        Processor::new(cpu, config.seed, apic, any_stale.clone())
    });
    let state = State::new(config, driver, Interconnect::new(config), cpus.collect());
    // SAFETY: promised by the caller.
    let state = unsafe { Owner::new(state) };
    let _entered = Entered::new(state.shared());
    for (cpu, id) in ids().enumerate() {
        if config.not_started.contains(&Cpu::new(cpu as u32)) {
            continue;
        }
        state.with(|machine| machine.running = cpu);
        machine::boot(config.routing, Cpu::new(cpu as u32), id).map_err(|error| match error {
            smpcall_local_apic::EnableError::Routing(error) => ConfigError::Routing(error),
            smpcall_local_apic::EnableError::OtherIdentifier { .. } => {
                unreachable!("the table of identifiers is the one that the APICs were made from")
            }
        })?;
    }
    // Without a kernel that has other plans for it, a tick is only acknowledged.
    state.with(|machine| {
        machine.images[0].handlers[TIMER_VECTOR as usize] = Some(acknowledge);
        // There is nothing to be ended.
        machine.images[0].handlers[SPURIOUS_VECTOR as usize] = Some(drop);
        machine.stop_clocks(&config.faults);
    });
    Ok(state)
}

/// What a CPU of an image begins with: where it was booted, and where it was started.
#[derive(Default)]
struct Begins<'p> {
    entry: Option<Box<dyn Fn() + 'p>>,
    start_up: Option<StartUp<'p>>,
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
    /// What CPUs were doing when they were reset or booted another image.
    abandoned: Vec<CpuCoroutine>,
    /// What CPUs begin with, by image. Never taken away while there are coroutines.
    begins: Vec<Begins<'p>>,
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
                if machine.cpus[cpu].anew.is_none() {
                    machine.queue.set(cpu as u32, 0);
                }
            }
        });
        let cpus = (0..config.cpus).map(|_| None).collect();
        let begins = vec![Begins::default()];
        Ok(Self { cpus, abandoned: Vec::new(), begins, state, forgettable: false, programs: PhantomData })
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

    /// The notes of a crash, one entry a CPU; none without a kernel. Not to be used after the machine is dropped.
    pub fn crash_notes(&self) -> &[CrashNotes<SimMachine>] {
        self.state
            .with(|machine| machine.images[0].kernel.as_ref().map_or(&[][..], |kernel| kernel.crash_notes()))
    }

    /// The mailboxes, if the machine has a kernel. Not to be used after the machine is dropped: they are empty then.
    pub fn mailboxes(&self) -> Option<&Mailboxes<SimMachine>> {
        self.mailboxes_of(ImageId::BUILT)
    }

    /// As [`mailboxes`](Self::mailboxes), those of another image.
    ///
    /// # Panics
    /// If the image is another machine's, which has more.
    pub fn mailboxes_of(&self, image: ImageId) -> Option<&Mailboxes<SimMachine>> {
        self.state.with(|machine| machine.images[image.0].kernel.as_ref().map(|kernel| kernel.mailboxes()))
    }

    /// Sets the handler of a vector. The timer's acknowledges and does nothing else until it is set.
    ///
    /// A vector that comes in without a handler makes [`run`](Self::run) panic.
    pub fn set_handler(&mut self, vector: u8, handler: Handler) {
        self.state.with(|machine| machine.images[0].handlers[vector as usize] = Some(handler));
    }

    /// Sets the handler of NMIs.
    pub fn set_nmi_handler(&mut self, handler: Handler) {
        self.state.with(|machine| machine.images[0].nmi_handler = Some(handler));
    }

    /// Gives a CPU its program. It starts with interrupts enabled.
    ///
    /// It may never be finished: the machine can be dropped at each of its operations, and its destructors do not run
    /// then. So across an operation it must not own anything whose destructor somebody outside of the machine relies
    /// on: no scoped threads ([`std::thread::scope`]; they would outlive what they borrow), no guard of a lock that
    /// others take. Memory that it owns leaks.
    ///
    /// A CPU that is reset by INIT never finishes its program either; the run does not wait for it any more.
    ///
    /// # Panics
    /// If there is no such CPU, it has a program, the machine has run already, or the CPU is one of those that are
    /// [not started](Config::not_started): these have a [start-up program](Self::on_start_up).
    pub fn spawn(&mut self, cpu: Cpu, program: impl FnOnce() + 'p) {
        let slot = &mut self.cpus[cpu.index()];
        assert!(slot.is_none(), "{cpu} has a program, or the machine has run");
        assert!(
            self.state.with(|machine| machine.cpus[cpu.index()].anew.is_none()),
            "{cpu} is not started: it begins with the start-up program (World::on_start_up)"
        );
        // SAFETY: the state is dropped after the coroutines; what the program borrows outlives `'p`, and with it `self`.
        *slot = Some(unsafe { CpuCoroutine::new(self.state.shared(), cpu.index(), Some(program)) });
        self.state.with(|machine| {
            machine.programs += 1;
            machine.cpus[cpu.index()].counted = true;
        });
    }

    /// What a CPU does that a start-up message has started: it is told which CPU it is and the page of the message.
    ///
    /// It begins on a fresh stack with interrupts disabled and its APIC as after a reset, disabled by software:
    /// [`enable_local_apic`](crate::program::enable_local_apic) is the first thing to do, and
    /// [`kernel::come_online`] makes it a CPU that others can call. When it returns, the CPU idles, if it has enabled
    /// interrupts; else it [parks](crate::program::park). The run does not wait for it to end.
    ///
    /// As with [`spawn`](Self::spawn), what it owns across an operation is never dropped if the CPU is reset or the
    /// machine dropped.
    ///
    /// # Panics
    /// If there is one already.
    pub fn on_start_up(&mut self, program: impl Fn(Cpu, u8) + 'p) {
        let start_up = &mut self.begins[ImageId::BUILT.0].start_up;
        assert!(start_up.is_none(), "the machine has a start-up program");
        *start_up = Some(Box::new(program));
    }

    /// Gives the machine another kernel image, which a program can [boot](crate::program::boot_kernel).
    pub fn add_image(&mut self, image: Image<'p>) -> ImageId {
        let id = self.state.with(|machine| machine.add_image(&image));
        self.begins.push(Begins { entry: image.entry, start_up: image.start_up });
        id
    }

    /// The place in the source that an [instruction pointer](crate::program::instruction_pointer) of this machine stands for.
    pub fn source_of(&self, instruction_pointer: u64) -> Option<Source> {
        self.state.with(|machine| machine.source_of(instruction_pointer))
    }

    /// How often the boot CPU, CPU 0, was sent an INIT, which would have restarted the machine (law L8).
    pub fn boot_cpu_inits(&self) -> u64 {
        self.state.with(|machine| machine.boot_cpu_inits)
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
            if state.with(|machine| machine.cpus[cpu].anew.is_some()) {
                continue;
            }
            // SAFETY: as in `spawn`.
            slot.get_or_insert_with(|| unsafe { CpuCoroutine::new(state, cpu, None::<fn()>) });
        }
        let _entered = Entered::new(state);
        state.with(|machine| machine.queue.set(machine.interconnect.end_slot(), limit.as_nanos()));
        loop {
            match state.with(|machine| machine.next_turn(until_ended)) {
                Turn::Cpu(cpu) => {
                    if state.with(|machine| machine.cpus[cpu].anew.is_some()) {
                        self.begin_anew(cpu);
                    }
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

    /// Gives a CPU that was reset, or that has booted an image, a fresh stack and what it does there.
    fn begin_anew(&mut self, cpu: usize) {
        let state = self.state.shared();
        let (anew, bare) = state.with(|machine| {
            let processor = &machine.cpus[cpu];
            (processor.anew, processor.leaves_a_bare_stack())
        });
        let (image, program): (usize, Box<dyn FnOnce() + 'p>) = match anew {
            Some(Anew::StartUp { image, page }) => {
                let start_up = self.begins[image].start_up.as_deref().map(core::ptr::from_ref);
                let start_up = start_up.unwrap_or_else(|| {
                    panic!("CPU {cpu} was sent a start-up message, and there is no start-up program")
                });
                // SAFETY: the box stays in `begins`, whose entries are never changed once they are set, and outlives the
                // coroutines.
                (image, Box::new(move || unsafe { (*start_up)(Cpu::new(cpu as u32), page) }))
            }
            Some(Anew::Boot { image }) => {
                let entry = self.begins[image].entry.as_deref().map(core::ptr::from_ref);
                let entry = entry.expect("only an added image is booted, and it has an entry");
                // SAFETY: as above.
                (image, Box::new(move || unsafe { (*entry)() }))
            }
            Some(Anew::WaitForStartUp) | None => return,
        };
        state.with(|machine| machine.begin_anew(cpu, image));
        if let Some(mut before) = self.cpus[cpu].take() {
            if bare {
                before.switch_off(true);
            } else {
                self.abandoned.push(before);
            }
        }
        // SAFETY: as in `spawn`.
        self.cpus[cpu] = Some(unsafe { CpuCoroutine::new(state, cpu, Some(program)) });
    }

    /// Sends a CPU an NMI from outside, at the time at which the last run ended: what an operator's button or a hypervisor's
    /// `inject-nmi` does. No fault concerns it.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn inject_nmi(&mut self, cpu: Cpu) {
        let _entered = Entered::new(self.state.shared());
        self.state.with(|machine| machine.inject_nmi(cpu.index()));
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
    /// The faults that concern clocks.
    fn stop_clocks(&mut self, faults: &[Fault]) {
        let until = |at: Instant, duration| at.plus(duration).as_nanos();
        for fault in faults {
            match *fault {
                Fault::ClockStops { cpu, at, duration } => {
                    let until = duration.map_or(u64::MAX, |duration| until(at, duration));
                    self.cpus[cpu.index()].clock.stop(at.as_nanos(), until);
                }
                Fault::Pause { at, duration, clock_stops: true } => {
                    for cpu in &mut self.cpus {
                        cpu.clock.stop(at.as_nanos(), until(at, duration));
                    }
                }
                _ => {}
            }
        }
    }

    /// Lets everything happen that is not a CPU's, up to the next CPU's turn or the end of the run.
    fn next_turn(&mut self, until_ended: bool) -> Turn {
        if self.stop.is_some()
            && let Some((time, slot)) = self.next.take()
        {
            // It may be a run's last turn.
            self.queue.set(slot, time);
        }
        match self.stop.take() {
            Some(Stop::ProgramsEnded) if until_ended => return Turn::End(RunEnd::ProgramsEnded),
            Some(Stop::Asked) => return Turn::End(RunEnd::Stopped),
            Some(Stop::Panicked { cpu, payload }) => return Turn::Panic { cpu, payload },
            Some(Stop::ProgramsEnded) | None => {}
        }
        let end = self.interconnect.end_slot();
        loop {
            let Some((time, slot)) = self.next.take().or_else(|| self.queue.pop()) else {
                return Turn::End(RunEnd::Stuck);
            };
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
        let abandoned = self.abandoned.iter_mut().map(|coroutine| (false, coroutine));
        let present = self.cpus.iter_mut().enumerate().filter_map(|(cpu, coroutine)| {
            let bare = self.state.with(|machine| machine.cpus[cpu].leaves_a_bare_stack());
            Some((bare, coroutine.as_mut()?))
        });
        for (bare, coroutine) in abandoned.chain(present) {
            if self.forgettable {
                // SAFETY: the caller of `forget_programs` has promised it.
                unsafe { coroutine.forget() };
            } else {
                coroutine.switch_off(bare);
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
