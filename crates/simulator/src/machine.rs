//! The simulated machine as the code that runs on it sees it.

use std::panic::Location;
use std::rc::Rc;

use smpcall_local_apic::{
    Access, ApicId, DeadlineRegister, Interrupt, LocalApic, Mode, Register, Routing, Sent, Topology, Vector,
};
use smpcall_machine::{Cpu, CpuMask, CpuSet, Event, Instant, Ipi, Machine, SendError};

use crate::apic::{ApicModel, Effect, Fault};
use crate::cost::CostModel;
use crate::explorer::footprint::Use;
use crate::hash::absorb;
use crate::memory::SimMemory;
use crate::mutant::Fault as Mutation;
use crate::operation::{Operation, begin, give_up_if_abandoned};
use crate::processor::Source;
use crate::state::{Driver, Phase, Shared, State, current, expect_current};

/// The vector of rings (report 000: the call-function vector of its kernel).
pub const RING_VECTOR: u8 = 0xfb;
/// The vector of the timer tick.
pub const TIMER_VECTOR: u8 = 0xef;
/// The spurious-interrupt vector.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// A set of CPUs of a simulated machine, with room for [`MAX_CPUS`](crate::MAX_CPUS).
pub type SimCpuSet = CpuSet<{ crate::MAX_CPUS / 64 }>;

/// The machine that this thread simulates.
///
/// All functions speak of the simulated CPU that runs, and panic outside of one.
#[derive(Clone, Copy, Debug)]
pub enum SimMachine {}

/// The registers of the running CPU's local APIC.
#[derive(Clone, Copy, Debug)]
pub struct SimAccess;

/// The APIC identifiers of the running machine.
#[derive(Clone, Debug)]
pub struct SimTopology {
    shorthand_reach: Option<Rc<SimCpuSet>>,
}

impl SimTopology {
    /// Those of the machine that this thread simulates.
    ///
    /// # Panics
    /// Outside of a simulated CPU.
    pub fn current() -> Self {
        expect_current().with(|machine| {
            // A CPU that waits to be started is reached too: by an NMI, say, that it then takes when it is.
            let all_started = machine.beginning == 0;
            Self { shorthand_reach: machine.shorthand_reach.clone().filter(|_| all_started) }
        })
    }
}

/// The driver of the running CPU's local APIC: the one that ships.
///
/// # Panics
/// Outside of a simulated CPU.
pub fn local_apic() -> LocalApic<SimMachine, SimAccess> {
    LocalApic::new(SimAccess, expect_current().with(|machine| machine.routing))
}

const fn vector(number: u8) -> Vector {
    match Vector::new(number) {
        Some(vector) => vector,
        None => panic!("vectors below 16 are illegal"),
    }
}

/// What a request becomes on this machine.
const fn interrupt(ipi: Ipi) -> Interrupt {
    match ipi {
        Ipi::Ring => Interrupt::Fixed(vector(RING_VECTOR)),
        Ipi::Probe => Interrupt::Nmi,
    }
}

/// Sends any interrupt to one CPU, through the driver.
///
/// # Errors
/// As for [`LocalApic::send_one`].
pub fn send_interrupt(target: Cpu, interrupt: Interrupt) -> Result<Sent, SendError> {
    local_apic().send_one(&SimTopology::current(), target, interrupt)
}

/// Sends any interrupt to a set of CPUs, through the driver.
///
/// # Errors
/// As for [`LocalApic::send_many`].
pub fn send_interrupt_to(targets: &CpuMask, interrupt: Interrupt) -> Result<Sent, SendError> {
    local_apic().send_many(&SimTopology::current(), targets, interrupt)
}

// SAFETY: 1. A program never changes its CPU, and CPUs are numbered by their index. 2. Handlers run in
// `operation` and `waiting` only, and for maskable ones only if the flag is set; there is one thread, and the
// calls are opaque to the compiler. 3. A CPU's time only ever grows. 4. `nmi_depth` counts NMI handlers. 5. `SimMemory`
// runs the atomic operations it is given, on the host's memory.
unsafe impl Machine for SimMachine {
    type Memory = SimMemory;
    type CpuSet = SimCpuSet;

    const HAS_NMI: bool = true;

    fn current_cpu() -> Cpu {
        Cpu::new(expect_current().with(|machine| machine.running) as u32)
    }

    #[track_caller]
    fn disable_interrupts() -> bool {
        let state = expect_current();
        let were_enabled = Self::interrupts_enabled();
        if were_enabled && mutation(state, Location::caller()) != Some(Mutation::NotDisabled) {
            perform(state, Operation::DisableInterrupts, |cost| cost.interrupt_flag, Location::caller());
            state.with(|machine| machine.cpu().interrupts_enabled = false);
        }
        were_enabled
    }

    #[track_caller]
    fn restore_interrupts(were_enabled: bool) {
        let state = expect_current();
        if were_enabled && !Self::interrupts_enabled() {
            perform(state, Operation::EnableInterrupts, |cost| cost.interrupt_flag, Location::caller());
            state.with(|machine| {
                machine.cpu().interrupts_enabled = true;
                machine.cpu().shadow = machine.sti_shadow;
            });
        }
    }

    fn interrupts_enabled() -> bool {
        expect_current().with(|machine| machine.cpu().interrupts_enabled)
    }

    fn in_nmi() -> bool {
        expect_current().with(|machine| machine.cpu().nmi_depth > 0)
    }

    #[track_caller]
    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        let send = || send_interrupt(target, interrupt(ipi)).map(drop);
        with_mutation(Location::caller(), send)
    }

    #[track_caller]
    fn send_many(targets: &CpuMask, ipi: Ipi) -> Result<(), SendError> {
        let send = || send_interrupt_to(targets, interrupt(ipi)).map(drop);
        with_mutation(Location::caller(), send)
    }

    fn now() -> Instant {
        let Some(state) = current() else { return Instant::default() };
        state.with(|machine| {
            let reading = machine.phase == Phase::Running && machine.driver == Driver::Timed;
            let cost = if reading { machine.cost.clock } else { 0 };
            let processor = machine.cpu();
            let now = processor.clock.reading(processor.time);
            processor.time += cost;
            Instant::from_nanos(now)
        })
    }

    fn observe(event: &Event) {
        if let Some(state) = current() {
            state.with(|machine| {
                if machine.recording {
                    machine.events.push(*event);
                }
            });
        }
    }
}

/// The deliberate fault at this place of the source, if there is one.
fn mutation(state: Shared, source: Source) -> Option<Mutation> {
    state.with(|machine| machine.explored.mutant.as_ref()?.at_place(source))
}

/// Sends, unless a deliberate fault at this place says otherwise.
fn with_mutation(source: Source, send: impl Fn() -> Result<(), SendError>) -> Result<(), SendError> {
    match mutation(expect_current(), source) {
        Some(Mutation::NotSent) => Ok(()),
        Some(Mutation::SentTwice) => send().and(send()),
        _ => send(),
    }
}

/// Brings the CPU to an operation that is not an access to memory.
fn perform(state: Shared, operation: Operation, cost: impl Fn(&CostModel) -> u64, source: Source) {
    let (phase, cost) = state.with(|machine| (machine.phase, cost(&machine.cost)));
    if phase == Phase::Running {
        begin(state, operation, cost, source);
        state.with(|machine| machine.learn_value(0));
    }
}

/// See [`program::request_interrupt`](crate::program::request_interrupt).
pub(crate) fn request_interrupt(cpu: Cpu, vector: u8, source: Source) {
    let state = expect_current();
    perform(state, Operation::Request { cpu, vector }, |cost| cost.apic_write, source);
    state.with(|machine| machine.request(cpu.index(), vector));
}

impl State {
    /// Stepped: what the running CPU has learned becomes part of its history.
    fn learn_value(&mut self, value: u64) {
        if self.driver == Driver::Stepped && self.phase == Phase::Running {
            let processor = self.cpu();
            processor.history = absorb(processor.history, value);
        }
    }
}

/// A write to the APIC happens, and what it causes.
fn write(state: Shared, write: impl FnOnce(&mut ApicModel, Instant) -> Result<Effect, Fault>) {
    let result = state.with(|machine| {
        let processor = machine.cpu();
        let now = Instant::from_nanos(processor.time);
        write(&mut processor.apic, now).map(|effect| machine.carry_out(effect))
    });
    if let Err(fault) = result {
        panic!("{fault}");
    }
    // Stepped: the message was an INIT to this CPU itself.
    give_up_if_abandoned(state);
}

impl Access for SimAccess {
    fn mode(&self) -> Mode {
        expect_current().with(|machine| machine.routing.mode())
    }

    #[track_caller]
    fn read(&self, register: Register) -> u32 {
        let state = expect_current();
        let source = Location::caller();
        perform(state, Operation::ReadRegister(register), |cost| cost.apic_read, source);
        let value = state.with(|machine| {
            machine.register_read |= machine.phase == Phase::Evaluating;
            let processor = machine.cpu();
            let errors = processor.apic.errors();
            let value = processor.apic.read(register, Instant::from_nanos(processor.time));
            if processor.apic.errors() != errors {
                processor.refresh();
            }
            machine.learn_value(value.map_or(0, u64::from));
            let value = match machine.explored.mutant.as_ref().and_then(|mutant| mutant.at_place(source)) {
                Some(Mutation::RegisterReads(read)) => Ok(read),
                _ => value,
            };
            if !machine.is_local(Operation::ReadRegister(register)) {
                machine.touch_irr(machine.running, Use::Read);
            }
            value
        });
        value.unwrap_or_else(|fault| panic!("{fault}"))
    }

    #[track_caller]
    fn write(&self, register: Register, value: u32) {
        let state = expect_current();
        let operation = Operation::WriteRegister(register, value);
        let times = match mutation(state, Location::caller()) {
            Some(Mutation::RegisterNotWritten) => 0,
            Some(Mutation::RegisterWrittenTwice) => 2,
            _ => 1,
        };
        for _ in 0..times {
            perform(state, operation, |cost| cost.apic_write, Location::caller());
            state.with(|machine| {
                if !machine.is_local(operation) {
                    // What it accepts may be another thing from now on.
                    machine.touch_irr(machine.running, Use::Write);
                }
            });
            write(state, |apic, now| apic.write(register, value, now));
        }
    }

    #[track_caller]
    fn write_icr(&self, value: u64) {
        let state = expect_current();
        let source = Location::caller();
        let fault = mutation(state, source);
        if fault != Some(Mutation::NotFenced) && state.with(|machine| machine.explored.options.buffers) {
            // The fence that a driver of real MSRs executes first, because their writes do not wait for stores.
            perform(state, Operation::Fence, |_| 0, source);
        }
        if fault == Some(Mutation::RegisterNotWritten) {
            return;
        }
        perform(state, Operation::WriteIcr(value), |cost| cost.apic_write, source);
        write(state, |apic, now| apic.write_icr(value, now));
    }
}

impl DeadlineRegister for SimAccess {
    /// Not an operation: it happens with the one before.
    fn write_tsc_deadline(&self, value: u64) {
        expect_current().with(|machine| {
            let running = machine.running;
            let processor = machine.cpu();
            // The time-stamp counter counts nanoseconds.
            processor.apic.write_tsc_deadline(value, Instant::from_nanos(processor.time));
            processor.refresh();
            machine.schedule_timer(running);
        });
    }
}

impl Topology for SimTopology {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        expect_current().with(|machine| machine.apic_ids.get(cpu.index()).copied())
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        let cpu = expect_current().with(|machine| machine.interconnect.cpu_of(id))?;
        Some(Cpu::new(cpu as u32))
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        self.shorthand_reach.as_deref().map(|set| &**set)
    }
}

/// What each CPU does when it starts: prepares its APIC, through the driver.
///
/// # Errors
/// If the routing does not fit this CPU.
pub(crate) fn boot(routing: Routing, cpu: Cpu, id: ApicId) -> Result<(), smpcall_local_apic::EnableError> {
    LocalApic::<SimMachine, SimAccess>::new(SimAccess, routing).enable(cpu, id, vector(SPURIOUS_VECTOR))
}
