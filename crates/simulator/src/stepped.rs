//! The simulated multiprocessor operation by operation: every CPU stops before each one, and a controller (an
//! explorer, a test) says what happens next.

use core::hash::{Hash, Hasher};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use std::any::Any;

use smpcall::Mailboxes;
use smpcall_machine::{Awaited, Cpu, Instant};

use crate::apic::Effect;
use crate::config::{Config, ConfigError};
use crate::coroutine::CpuCoroutine;
use crate::explorer::footprint::Place;
use crate::hash::{StateHasher, absorb};
use crate::kernel::{self, Hooks};
use crate::machine::SimMachine;
use crate::operation::Operation;
use crate::places::Places;
use crate::processor::{AnyStale, Counters, CpuReport, Order, Processor, Source};
use crate::races::Races;
use crate::state::{Driver, Entered, Handler, Owner, Phase, State, Stop};
use crate::trace::Trace;
use crate::waiting::{Looked, evaluate};
use crate::world::{build, propagate};

mod lives;

use lives::{Lives, StartUpProgram};

/// A program that can be run again and again.
pub type Program<'p> = Box<dyn Fn() + 'p>;

/// What a CPU is about to do, and where that stands in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The operation.
    pub operation: Operation,
    /// Its place.
    pub source: Source,
}

/// What a CPU can do next: a set of these.
#[derive(Clone, Copy, Default)]
pub(crate) struct Offer(u8);

impl Offer {
    pub(crate) const NMI: u8 = 1;
    pub(crate) const INTERRUPT: u8 = 2;
    pub(crate) const FLUSH: u8 = 4;
    pub(crate) const STEP: u8 = 8;
    /// The step sends a message.
    pub(crate) const SENDS: u8 = 16;
    /// It waits, and not for ever.
    pub(crate) const DEADLINE: u8 = 32;
    /// Its program has ended, and it is in no handler.
    pub(crate) const ENDED: u8 = 64;
    /// Whether it can step is not known before the conditions of its wait are looked at.
    const UNKNOWN: u8 = 128;

    /// Whether any of these is among them.
    #[inline]
    pub(crate) fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }

    /// Nothing but a step, or nothing at all, that is not a matter of time.
    #[inline]
    fn is_simple(self) -> bool {
        !self.has(Self::NMI | Self::INTERRUPT | Self::FLUSH | Self::SENDS)
    }
}

/// What each CPU can do next, and of all of them together what is asked for at every decision.
pub(crate) struct Offers {
    of: Vec<Offer>,
    /// Who can step, and who can do something that is not [simple](Offer::is_simple): bit n stands for CPU n. Not of machines
    /// of more than 64 CPUs.
    steps: u64,
    others: u64,
}

impl Offers {
    /// Those of a machine with so many CPUs, none of which can do anything yet.
    pub(crate) fn new(cpus: usize) -> Self {
        Self { of: vec![Offer::default(); cpus], steps: 0, others: 0 }
    }

    #[inline]
    pub(crate) fn of(&self, cpu: usize) -> Offer {
        self.of[cpu]
    }

    /// If nobody can do anything but steps, that is not a matter of time: the CPUs that can make one. None also if there are
    /// too many CPUs.
    #[inline]
    pub(crate) fn only_steps(&self) -> Option<u64> {
        (self.others == 0 && self.of.len() <= 64).then_some(self.steps)
    }

    #[inline(always)]
    fn set(&mut self, cpu: usize, offer: Offer) {
        self.of[cpu] = offer;
        let bit = 1_u64.checked_shl(cpu as u32).unwrap_or(0);
        self.steps = if offer.has(Offer::STEP) { self.steps | bit } else { self.steps & !bit };
        self.others = if offer.is_simple() { self.others & !bit } else { self.others | bit };
    }
}

/// A machine whose controller decides every step.
///
/// There is no virtual time, no latency and there are no ticks: a message is accepted in the step that sends it. Each CPU
/// has a clock that moves only when a wait ends by its deadline. The faults of the configuration apply to messages;
/// wedges and ticks are the controller's to leave out or not.
///
/// After an operation a CPU runs on to the next one, so everything in between belongs to the step.
pub struct Stepper<'p> {
    /// Each CPU as it was after boot.
    booted: Vec<crate::apic::ApicModel>,
    coroutines: Vec<CpuCoroutine>,
    /// Not moved while a coroutine that runs one exists.
    programs: Vec<Program<'p>>,
    /// Not changed once it is set.
    start_up: Option<StartUpProgram<'p>>,
    lives: Lives,
    apic_hashes: Vec<u128>,
    any_stale: AnyStale,
    /// Dropped after the coroutines, which use it.
    state: Owner,
}

impl<'p> Stepper<'p> {
    /// A machine with one program per CPU; CPUs beyond the programs are idle. Set the handlers, then
    /// [`start`](Self::start) it.
    ///
    /// # Errors
    /// If there cannot be such a machine.
    ///
    /// # Panics
    /// If there are more programs than CPUs.
    pub fn new(config: &Config, programs: Vec<Program<'p>>) -> Result<Self, ConfigError> {
        assert!(programs.len() <= config.cpus, "more programs than CPUs");
        // SAFETY: only this machine's coroutines use the state, and they are dropped before it.
        let state = unsafe { build(config, Driver::Stepped) }?;
        let booted = state.with(|machine| machine.cpus.iter().map(|cpu| cpu.apic.clone()).collect());
        Ok(Self {
            booted,
            coroutines: Vec::new(),
            programs,
            start_up: None,
            lives: Lives::default(),
            apic_hashes: Vec::new(),
            any_stale: state.with(|machine| machine.cpus[0].any_stale()),
            state,
        })
    }

    /// As [`new`](Self::new), with a kernel: the CPUs are online, they have mailboxes and handlers that serve them.
    /// [`restart`](Self::restart) puts the mailboxes back.
    ///
    /// # Errors
    /// If there cannot be such a machine.
    ///
    /// # Panics
    /// If there are more programs than CPUs.
    pub fn with_kernel(
        config: &Config,
        programs: Vec<Program<'p>>,
        hooks: Hooks,
    ) -> Result<Self, ConfigError> {
        let stepper = Self::new(config, programs)?;
        kernel::install(stepper.state.shared(), Cpu::new(0), hooks);
        stepper.state.with(|machine| {
            let kernel = machine.images[0].kernel.clone().expect("it was just installed");
            for (base, bytes) in kernel.mailboxes().memory() {
                machine.explored.places.add_range(base.addr(), bytes);
            }
            let notes = kernel.crash_notes();
            machine.explored.places.add_range(notes.as_ptr().addr(), size_of_val(notes));
        });
        Ok(stepper)
    }

    /// Declares memory that lives as long as the machine: [`restart`](Self::restart) puts back what its words and plain
    /// data were, and its words have the same name in every execution.
    pub(crate) fn declare(&mut self, base: *const (), bytes: usize) {
        self.state.with(|machine| machine.explored.places.add_range(base.addr(), bytes));
    }

    /// Uses the state of the machine.
    #[inline(always)]
    pub(crate) fn with<R>(&self, use_it: impl FnOnce(&mut State) -> R) -> R {
        self.state.with(use_it)
    }

    /// The mailboxes, if the machine has a kernel. Not to be used after the machine is dropped: they are empty then.
    pub fn mailboxes(&self) -> Option<&Mailboxes<SimMachine>> {
        self.state.with(|machine| machine.images[0].kernel.as_ref().map(|kernel| kernel.mailboxes()))
    }

    /// Uses the state of one CPU.
    fn with_cpu<R>(&self, cpu: Cpu, use_it: impl FnOnce(&mut Processor) -> R) -> R {
        self.state.with(|machine| use_it(&mut machine.cpus[cpu.index()]))
    }

    /// Sets the handler of a vector. It runs on the CPU that takes the interrupt, and ends it.
    pub fn set_handler(&mut self, vector: u8, handler: Handler) {
        self.state.with(|machine| machine.images[0].handlers[vector as usize] = Some(handler));
    }

    /// Sets the handler of NMIs.
    pub fn set_nmi_handler(&mut self, handler: Handler) {
        self.state.with(|machine| machine.images[0].nmi_handler = Some(handler));
    }

    /// Runs each CPU up to its first operation.
    ///
    /// # Panics
    /// If it was started before, or a program panics.
    pub fn start(&mut self) {
        self.begin();
        self.propagate();
    }

    /// As [`start`](Self::start); a panic of a program is left to be [taken](Self::take_panic).
    pub(crate) fn begin(&mut self) {
        assert!(self.coroutines.is_empty(), "started before: use `restart`");
        for cpu in 0..self.booted.len() {
            let program = self.program(cpu);
            // SAFETY: the state and the programs are dropped after the coroutines.
            let coroutine = unsafe { CpuCoroutine::new(self.state.shared(), cpu, program) };
            self.state.with(|machine| machine.explored.places.stacks.push(coroutine.stack_range()));
            self.coroutines.push(coroutine);
        }
        self.run_to_first_operations();
    }

    /// Begins anew, with the machine as after boot and each CPU at its first operation. Shared memory other than the
    /// kernel's is the caller's to put back first.
    ///
    /// # Safety
    /// What was in progress is forgotten, without running destructors: nothing that is used later may refer to what
    /// lives on the CPUs' stacks, and nothing there may rely on being dropped. (Heap memory owned there leaks.)
    pub unsafe fn restart(&mut self) {
        // SAFETY: passed on to the caller.
        unsafe { self.begin_again() };
        self.propagate();
    }

    /// A panic of a program goes on here.
    fn propagate(&mut self) {
        if let Some((cpu, payload)) = self.take_panic() {
            propagate(cpu, payload);
        }
    }

    /// As [`restart`](Self::restart); a panic of a program is left to be [taken](Self::take_panic).
    ///
    /// # Safety
    /// As for [`restart`](Self::restart).
    pub(crate) unsafe fn begin_again(&mut self) {
        self.forget_lives();
        let state = self.state.shared();
        let kernel = state.with(|machine| {
            machine.boot_cpu_inits = 0;
            machine.devices = crate::devices::Devices::default();
            for (cpu, (processor, booted)) in machine.cpus.iter_mut().zip(&self.booted).enumerate() {
                processor.reset(cpu, machine.seed, booted);
            }
            machine.beginning = machine.cpus.iter().filter(|cpu| cpu.anew.is_some()).count();
            machine.reset_interconnect();
            // SAFETY: what was declared lasts, and nothing runs.
            unsafe { machine.explored.restart() };
            machine.events.clear();
            machine.stop = None;
            machine.images[0].kernel.clone()
        });
        if let Some(kernel) = kernel {
            // The mailboxes' words were put back as they were after boot.
            kernel.forget_statistics();
        }
        for cpu in 0..self.coroutines.len() {
            let program = self.program(cpu);
            // SAFETY: the caller promises what this needs; for the rest see `start`.
            unsafe { self.coroutines[cpu].restart(state, cpu, program) };
        }
        self.run_to_first_operations();
    }

    fn program(&self, cpu: usize) -> Option<impl FnOnce() + use<'p>> {
        let program: *const (dyn Fn() + 'p) = &raw const **self.programs.get(cpu)?;
        // SAFETY: the box lives in `self.programs`, which is never changed and outlives the coroutines.
        Some(move || unsafe { (*program)() })
    }

    fn run_to_first_operations(&mut self) {
        self.state.with(|machine| machine.programs = self.programs.len());
        for cpu in 0..self.coroutines.len() {
            let started = self.state.with(|machine| {
                machine.cpus[cpu].counted = cpu < self.programs.len();
                machine.cpus[cpu].anew.is_none()
            });
            if started {
                self.go_on(cpu, None);
            }
        }
    }

    /// Lets a CPU do as ordered, and on to its next operation.
    pub(crate) fn go_on(&mut self, cpu: usize, order: Option<Order>) {
        self.switch_to(cpu, order);
    }

    /// As [`go_on`](Self::go_on), in place: for the one who does nothing else.
    ///
    /// Whether the machine is [in trouble](State::is_in_trouble).
    #[inline(always)]
    pub(crate) fn switch_to(&mut self, cpu: usize, order: Option<Order>) -> bool {
        let state = self.state.shared();
        let anew = state.with(|machine| {
            machine.cpus[cpu].order = order;
            machine.running = cpu;
            machine.phase = Phase::Running;
            machine.explored.footprint.clear();
            machine.cpus[cpu].anew.is_some()
        });
        if anew {
            self.begin_life(cpu);
        }
        let entered = Entered::new(state);
        self.coroutines[cpu].resume();
        drop(entered);
        state.with(|machine| {
            machine.phase = Phase::Direct;
            let processor = &mut machine.cpus[cpu];
            processor.hashed = None;
            if !processor.only_steps_on() {
                processor.set_stale();
            }
            machine.is_in_trouble()
        })
    }

    /// The panic of a program, if one has panicked since this was asked last.
    pub(crate) fn take_panic(&mut self) -> Option<(usize, Box<dyn Any + Send>)> {
        match self.state.with(|machine| machine.stop.take()) {
            Some(Stop::Panicked { cpu, payload }) => Some((cpu, payload)),
            _ => None,
        }
    }

    /// Lets a CPU do as ordered, and on to its next operation. A panic of its program goes on here.
    fn resume(&mut self, cpu: usize, order: Option<Order>) {
        self.go_on(cpu, order);
        self.propagate();
    }

    /// How many CPUs it has.
    pub fn cpus(&self) -> usize {
        self.booted.len()
    }

    /// What the CPU is about to do.
    ///
    /// # Panics
    /// If there is no such CPU or the machine was not started.
    pub fn pending(&self, cpu: Cpu) -> Pending {
        let pending = self.with_cpu(cpu, |processor| processor.pending);
        let (operation, source) = pending.expect("the machine was started");
        Pending { operation, source }
    }

    /// Whether the pending operation can be executed. A wait only if one of its conditions holds; what is halted or
    /// ended never.
    pub fn is_enabled(&mut self, cpu: Cpu) -> bool {
        let state = self.state.shared();
        let waits = state.with(|machine| {
            let processor = &machine.cpus[cpu.index()];
            match processor.pending {
                Some((Operation::Wait { .. }, _)) => Err((processor.looked, processor.conditions)),
                Some((Operation::Halted | Operation::Ended | Operation::WaitForStartUp, _)) | None => {
                    Ok(false)
                }
                Some(_) => Ok(!processor.is_held_by_buffer()),
            }
        });
        let conditions = match waits {
            Ok(enabled) => return enabled,
            Err((Looked::Met(_), _)) => return true,
            Err((Looked::Blocked, _)) => return false,
            Err((Looked::Unknown, conditions)) => conditions,
        };
        // A mutant waits without conditions.
        let Some(conditions) = conditions else { return true };
        let _entered = Entered::new(state);
        // SAFETY: the CPU is suspended in the wait that borrows the conditions.
        let met = unsafe { evaluate(state, cpu.index(), conditions) };
        state.with(|machine| machine.has_looked(cpu.index(), met));
        met.is_some()
    }

    /// Brings what each CPU can do up to date; `always`: also if nothing says that it has changed.
    #[inline(always)]
    pub(crate) fn survey(&mut self, offers: &mut Offers, always: bool) {
        if always || self.any_stale.get() {
            self.survey_stale(offers, always);
        }
    }

    fn survey_stale(&mut self, offers: &mut Offers, always: bool) {
        self.any_stale.set(false);
        let mut unknown = false;
        self.state.with(|machine| {
            for (cpu, processor) in machine.cpus.iter_mut().enumerate() {
                if processor.take_stale() || always {
                    let offer = processor.describe();
                    processor.offered_step_only = offer.0 == Offer::STEP;
                    offers.set(cpu, offer);
                    unknown |= offer.has(Offer::UNKNOWN);
                }
            }
        });
        if unknown {
            self.look_at_conditions(offers);
        }
    }

    /// Whether who waits can step, where that is not known.
    fn look_at_conditions(&mut self, offers: &mut Offers) {
        for cpu in 0..offers.of.len() {
            let offer = offers.of(cpu);
            if offer.has(Offer::UNKNOWN) {
                let step = if self.is_enabled(Cpu::new(cpu as u32)) { Offer::STEP } else { 0 };
                offers.set(cpu, Offer(offer.0 & !Offer::UNKNOWN | step));
            }
        }
    }

    /// What a waiting CPU waits for, as far as it is words.
    pub(crate) fn awaited(&self, cpu: Cpu) -> Vec<Awaited> {
        let conditions = self.with_cpu(cpu, |processor| processor.conditions);
        let mut awaited = Vec::new();
        if let Some(conditions) = conditions {
            // SAFETY: the CPU is suspended in the wait that borrows the conditions.
            unsafe { conditions.describe(&mut |condition| awaited.push(condition)) };
        }
        awaited
    }

    /// A CPU whose wait could end now: the word to whose last change it owes that, if there is one.
    pub(crate) fn wait_is_owed_to(&mut self, cpu: Cpu) -> Option<Place> {
        let state = self.state.shared();
        if let Some(awaited) = self.with_cpu(cpu, |processor| processor.awaited) {
            return state.with(|machine| {
                let slot = machine.explored.places.slot(awaited.location.addr());
                let location = &machine.explored.places.all[slot as usize];
                let met = matches!(machine.cpus[cpu.index()].looked, Looked::Met(_));
                (met && location.logged && !awaited.holds(location.before)).then_some(location.place)
            });
        }
        let (conditions, addresses) = state.with(|machine| {
            let processor = &machine.cpus[cpu.index()];
            let waits = matches!(processor.pending, Some((Operation::Wait { .. }, _)))
                && matches!(processor.looked, Looked::Met(_));
            let conditions = processor.conditions.filter(|_| waits);
            conditions.map(|conditions| (conditions, processor.watched.clone()))
        })?;
        let owed_to = addresses.into_iter().find_map(|address| {
            let (place, before) = state.with(|machine| {
                let slot = machine.explored.places.slot(address);
                let location = &machine.explored.places.all[slot as usize];
                location.logged.then_some((location.place, location.before))
            })?;
            // SAFETY: a live atomic word: the wait's conditions read it.
            let word = unsafe { &*(address as *const AtomicU64) };
            let now = word.swap(before, Relaxed);
            let _entered = Entered::new(state);
            // SAFETY: the CPU is suspended in the wait that borrows the conditions.
            let met = unsafe { evaluate(state, cpu.index(), conditions) };
            word.store(now, Relaxed);
            (met.is_none() && !state.with(|machine| machine.register_read)).then_some(place)
        });
        state.with(|machine| machine.cpus[cpu.index()].looked = Looked::Unknown);
        self.is_enabled(cpu);
        owed_to
    }

    /// The addresses of the words that a waiting CPU's conditions read when they were evaluated last, by
    /// [`is_enabled`](Self::is_enabled) or by the wait itself.
    pub fn watched(&self, cpu: Cpu) -> Vec<usize> {
        self.with_cpu(cpu, |processor| processor.watched.clone())
    }

    /// The vector that the CPU would take now: its APIC offers it and its interrupts are enabled. The spurious vector stands
    /// for one that only the 8259s know (`ExtINT`).
    pub fn deliverable(&self, cpu: Cpu) -> Option<u8> {
        self.with_cpu(cpu, |processor| {
            let open = processor.interrupts_enabled && !processor.shadow && processor.vector_deliverable;
            // One that no local APIC has: the external controller is asked for its vector.
            if open { processor.apic.deliverable().or(Some(crate::SPURIOUS_VECTOR)) } else { None }
        })
    }

    /// Whether the CPU would take an NMI now.
    pub fn nmi_deliverable(&self, cpu: Cpu) -> bool {
        self.with_cpu(cpu, |processor| processor.nmi_deliverable && !processor.shadow)
    }

    /// Until when the CPU waits at the latest, if it waits with a deadline.
    pub fn deadline(&self, cpu: Cpu) -> Option<Instant> {
        match self.with_cpu(cpu, |processor| processor.pending) {
            Some((Operation::Wait { deadline }, _)) => deadline.instant(),
            _ => None,
        }
    }

    /// Whether the CPU's program has ended (or it has none).
    pub fn has_ended(&self, cpu: Cpu) -> bool {
        self.with_cpu(cpu, |processor| processor.ended)
    }

    /// How deep the CPU is in handlers.
    pub fn handler_depth(&self, cpu: Cpu) -> u32 {
        self.with_cpu(cpu, |processor| processor.handler_depth)
    }

    /// The CPU executes its pending operation, which is [enabled](Self::is_enabled).
    ///
    /// # Panics
    /// If a program panics; in debug builds also if the operation is not enabled.
    pub fn step(&mut self, cpu: Cpu) {
        debug_assert!(self.is_enabled(cpu), "the pending operation of {cpu} is not enabled");
        self.with_cpu(cpu, |processor| processor.found = 0);
        self.resume(cpu.index(), Some(Order::Step));
    }

    /// What the CPU's last [`step`](Self::step) found in the word that it accessed, also if it was a store; 0 if it
    /// was no atomic access.
    pub fn found(&self, cpu: Cpu) -> u64 {
        self.with_cpu(cpu, |processor| processor.found)
    }

    /// As [`step`](Self::step), for an operation that sends: the message is lost for each of `losing`.
    ///
    /// # Panics
    /// As for [`step`](Self::step).
    pub fn step_losing(&mut self, cpu: Cpu, losing: &[Cpu]) {
        let losing = losing.iter().map(|cpu| cpu.index()).collect();
        self.state.with(|machine| machine.interconnect.losing = losing);
        self.step(cpu);
        self.state.with(|machine| machine.interconnect.losing.clear());
    }

    /// A device, or the CPU's own timer, interrupts: its APIC accepts the vector. Taking it is another step.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn inject(&mut self, cpu: Cpu, vector: u8) {
        self.state.with(|machine| {
            let time = machine.cpus[cpu.index()].time;
            machine.interrupt_locally(cpu.index(), vector, time);
        });
    }

    /// The CPU takes its highest deliverable interrupt before its pending operation: its handler starts, up to its
    /// first operation.
    ///
    /// # Panics
    /// If none is [deliverable](Self::deliverable), or a program panics.
    pub fn take_interrupt(&mut self, cpu: Cpu) {
        assert!(self.deliverable(cpu).is_some(), "no interrupt is deliverable to {cpu}");
        self.resume(cpu.index(), Some(Order::Interrupt));
    }

    /// The CPU takes an NMI before its pending operation.
    ///
    /// # Panics
    /// If none is [deliverable](Self::nmi_deliverable), or a program panics.
    pub fn take_nmi(&mut self, cpu: Cpu) {
        assert!(self.nmi_deliverable(cpu), "no NMI is deliverable to {cpu}");
        self.resume(cpu.index(), Some(Order::Nmi));
    }

    /// The CPU's wait comes to its deadline, to which its clock moves. If a condition holds, that is what it reports.
    ///
    /// # Panics
    /// If it does not wait with a [deadline](Self::deadline), or a program panics.
    pub fn expire(&mut self, cpu: Cpu) {
        assert!(self.deadline(cpu).is_some(), "{cpu} does not wait with a deadline");
        self.resume(cpu.index(), Some(Order::Expire));
    }

    /// Whom the pending operation would send a message to, ascending; nobody if it sends none.
    pub fn targets(&mut self, cpu: Cpu) -> Vec<Cpu> {
        self.state.with(|machine| {
            let processor = &machine.cpus[cpu.index()];
            let now = Instant::from_nanos(processor.time);
            let result = match processor.pending {
                Some((Operation::WriteIcr(value), _)) => processor.apic.clone().write_icr(value, now),
                Some((Operation::WriteRegister(register, value), _)) => {
                    processor.apic.clone().write(register, value, now)
                }
                _ => return Vec::new(),
            };
            let Ok(Effect::Dispatch(command)) = result else { return Vec::new() };
            let mut targets = Vec::new();
            machine.targets(cpu.index(), &command, &mut targets);
            targets.into_iter().map(|target| Cpu::new(target as u32)).collect()
        })
    }

    /// A hash of the whole state: shared memory (its difference to that at the start), what each CPU has learned,
    /// flags, clocks and APICs. Equal states of one process have equal hashes; other ones' differ, but for a chance of
    /// about 2 to the power of -128 per pair.
    ///
    /// What a CPU knows is what its operations returned. A program that gets knowledge in another way, such as a Rust
    /// variable that another CPU wrote, must [say so](crate::program::learn).
    pub fn state_hash(&mut self) -> u128 {
        let apics = &mut self.apic_hashes;
        self.state.with(|machine| {
            apics.resize(machine.cpus.len(), 0);
            let mut hash = machine.explored.hash ^ machine.explored.known_hash;
            if machine.devices.used {
                let mut hasher = StateHasher::default();
                machine.devices.hash(&mut hasher);
                hash ^= hasher.0;
            }
            if !machine.interconnect.waiting.is_empty() {
                let mut hasher = StateHasher::default();
                machine.interconnect.waiting.iter().for_each(|flight| flight.hash_state(&mut hasher));
                hash ^= hasher.0;
            }
            let (places, races) = (&machine.explored.places, &machine.explored.races);
            for (cpu, processor) in machine.cpus.iter_mut().enumerate() {
                if core::mem::take(&mut processor.apic_changed) {
                    let mut hasher = StateHasher::default();
                    processor.apic.hash_state(&mut hasher, Instant::from_nanos(processor.time));
                    apics[cpu] = hasher.0;
                    processor.hashed = None;
                }
                let of_cpu = processor.hashed.unwrap_or_else(|| {
                    let steering = machine.images[0].kernel.as_ref().map(|kernel| kernel.steering(cpu));
                    processor.hash(cpu, apics[cpu], steering, places, races)
                });
                processor.hashed = Some(of_cpu);
                hash ^= of_cpu;
            }
            hash
        })
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

    /// What was recorded since the start; empty if the configuration does not ask for it.
    pub fn trace(&self) -> Trace {
        self.state.with(|machine| machine.trace())
    }
}

impl Processor {
    /// Whether a step was all that it could do when that was looked at last, and is now. (No: it has to be looked at.)
    #[inline]
    fn only_steps_on(&self) -> bool {
        let simple =
            self.before_access_only_steps_on() && matches!(self.pending, Some((Operation::Access { .. }, _)));
        debug_assert!(!simple || self.describe().0 == Offer::STEP);
        simple
    }

    /// The same, of a CPU that has come to an access.
    #[inline]
    fn before_access_only_steps_on(&self) -> bool {
        self.offered_step_only
            && !self.vector_deliverable
            && !self.nmi_deliverable
            && self.store_buffer.is_empty()
    }

    /// Whether it, which has come to an access, and all others can do just what they could when that was looked at last, and
    /// it a step only.
    #[inline]
    pub(crate) fn can_only_step_on(&self) -> bool {
        self.before_access_only_steps_on() && !self.is_any_stale()
    }

    /// What it can do next.
    #[inline(always)]
    fn describe(&self) -> Offer {
        let interrupt = self.vector_deliverable && self.interrupts_enabled && !self.shadow;
        // Before its first instruction nothing interrupts it.
        let nmi = self.nmi_deliverable && !self.shadow && self.anew.is_none();
        let mut offer = (u8::from(nmi) * Offer::NMI)
            | (u8::from(interrupt) * Offer::INTERRUPT)
            | (u8::from(!self.store_buffer.is_empty()) * Offer::FLUSH)
            | (u8::from(self.is_done()) * Offer::ENDED);
        match &self.pending {
            Some((Operation::Wait { deadline }, _)) => {
                offer |= match self.looked {
                    Looked::Unknown => Offer::UNKNOWN,
                    Looked::Blocked => 0,
                    Looked::Met(_) => Offer::STEP,
                };
                if !deadline.is_never() {
                    offer |= Offer::DEADLINE;
                }
            }
            Some((Operation::Halted | Operation::Ended | Operation::WaitForStartUp, _)) | None => {}
            Some((operation, _)) => {
                if !self.is_held_by_buffer() {
                    offer |= Offer::STEP;
                }
                if operation.sends() {
                    offer |= Offer::SENDS;
                }
            }
        }
        Offer(offer)
    }

    /// A hash of all but the counters, given that of the APIC. Where it stands in its program follows from what it has
    /// learned only if it learns through operations; it also reads statistics and its clock. So the place counts too.
    fn hash(
        &self,
        cpu: usize,
        apic: u128,
        steering: Option<[u64; 6]>,
        places: &Places,
        races: &Races,
    ) -> u128 {
        let flags = u64::from(self.interrupts_enabled)
            | u64::from(self.shadow) << 1
            | u64::from(self.nmi_depth) << 2
            | u64::from(self.handler_depth) << 32;
        let parts = [flags, self.time, apic as u64, (apic >> 64) as u64, cpu as u64];
        let parts = parts.into_iter().chain(steering.into_iter().flatten());
        let mut hasher = StateHasher(parts.fold(self.history, absorb));
        if let Some((operation, source)) = self.pending {
            match operation {
                // The location enters by its name, and its operands as far as they are not addresses.
                Operation::Access { location, access, order } => {
                    hasher.write_u64(places.name_of(location));
                    core::mem::discriminant(&access).hash(&mut hasher);
                    order.hash(&mut hasher);
                }
                other => other.hash(&mut hasher),
            }
            hasher.write_usize(core::ptr::from_ref(source).addr());
        }
        hasher.0 ^ self.memory_hash(cpu, places, races)
    }
}

impl Drop for Stepper<'_> {
    fn drop(&mut self) {
        for (cpu, coroutine) in self.coroutines.iter_mut().enumerate() {
            coroutine.switch_off(self.state.with(|machine| machine.cpus[cpu].leaves_a_bare_stack()));
        }
    }
}
