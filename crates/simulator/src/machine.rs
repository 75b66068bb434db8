//! The simulated machine as the code that runs on it sees it.

use std::panic::Location;

use smpcall_local_apic::{
    Access, ApicId, Interrupt, LocalApic, Mode, Register, Routing, Sent, Topology, Vector,
};
use smpcall_machine::{Cpu, CpuMask, CpuSet, Event, Instant, Ipi, Machine, SendError};

use crate::apic::{Effect, Fault};
use crate::hash::absorb;
use crate::memory::SimMemory;
use crate::operation::{self, Operation};
use crate::state::{Driver, Phase, State, current, expect_current};

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
#[derive(Clone, Copy, Debug)]
pub struct SimTopology;

/// The driver of the running CPU's local APIC: the one that ships.
///
/// # Panics
/// Outside of a simulated CPU.
pub fn local_apic() -> LocalApic<SimMachine, SimAccess> {
    // SAFETY: one thread; no other reference into the state is alive while a program runs.
    let routing = unsafe { (*expect_current()).routing };
    LocalApic::new(SimAccess, routing)
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
    local_apic().send_one(&SimTopology, target, interrupt)
}

/// Sends any interrupt to a set of CPUs, through the driver.
///
/// # Errors
/// As for [`LocalApic::send_many`].
pub fn send_interrupt_to(targets: &CpuMask, interrupt: Interrupt) -> Result<Sent, SendError> {
    local_apic().send_many(&SimTopology, targets, interrupt)
}

// SAFETY: 1. A program never changes its CPU, and CPUs are numbered by their index. 2. Handlers run in
// `operation::begin` and its like only, and for maskable ones only if the flag is set; there is one thread, and the
// calls are opaque to the compiler. 3. A CPU's time only ever grows. 4. `nmi_depth` counts NMI handlers. 5. `SimMemory`
// runs the atomic operations it is given, on the host's memory.
unsafe impl Machine for SimMachine {
    type Memory = SimMemory;
    type CpuSet = SimCpuSet;

    const HAS_NMI: bool = true;

    fn current_cpu() -> Cpu {
        operation::running(expect_current())
    }

    #[track_caller]
    fn disable_interrupts() -> bool {
        let state = expect_current();
        // SAFETY: as in `local_apic`, and so everywhere below; no reference lives longer than its statement.
        let were_enabled = unsafe { (*state).cpu().interrupts_enabled };
        if were_enabled {
            perform(
                state,
                Operation::DisableInterrupts,
                |state| state.cost.interrupt_flag,
                Location::caller(),
            );
            // SAFETY: as above.
            unsafe { (*state).cpu().interrupts_enabled = false };
        }
        were_enabled
    }

    #[track_caller]
    fn restore_interrupts(were_enabled: bool) {
        let state = expect_current();
        // SAFETY: as above.
        if were_enabled && unsafe { !(*state).cpu().interrupts_enabled } {
            perform(
                state,
                Operation::EnableInterrupts,
                |state| state.cost.interrupt_flag,
                Location::caller(),
            );
            // SAFETY: as above.
            unsafe {
                (*state).cpu().interrupts_enabled = true;
                (*state).cpu().shadow = (*state).sti_shadow;
            }
        }
    }

    fn interrupts_enabled() -> bool {
        // SAFETY: as above.
        unsafe { (*expect_current()).cpu().interrupts_enabled }
    }

    fn in_nmi() -> bool {
        // SAFETY: as above.
        unsafe { (*expect_current()).cpu().nmi_depth > 0 }
    }

    #[track_caller]
    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError> {
        send_interrupt(target, interrupt(ipi)).map(drop)
    }

    #[track_caller]
    fn send_many(targets: &CpuMask, ipi: Ipi) -> Result<(), SendError> {
        send_interrupt_to(targets, interrupt(ipi)).map(drop)
    }

    fn now() -> Instant {
        let state = current();
        if state.is_null() {
            return Instant::default();
        }
        // SAFETY: as above.
        let machine = unsafe { &mut *state };
        let cost = machine.cost.clock;
        let reading = machine.phase == Phase::Running && machine.driver == Driver::Timed;
        let processor = machine.cpu();
        let now = processor.time;
        if reading {
            processor.time += cost;
        }
        Instant::from_nanos(now)
    }

    fn observe(event: &Event) {
        let state = current();
        // SAFETY: as above.
        if !state.is_null() && unsafe { (*state).recording } {
            // SAFETY: as above.
            unsafe { (*state).events.push(*event) };
        }
    }
}

/// Brings the CPU to an operation that is not an access to memory, and learns that it got there.
fn perform(state: *mut State, operation: Operation, cost: impl Fn(&State) -> u64, source: crate::Source) {
    // SAFETY: as in `local_apic`; no reference lives across `begin`.
    let (phase, cost) = unsafe { ((*state).phase, cost(&*state)) };
    if phase == Phase::Running {
        operation::begin(state, operation, cost, source);
        learn(state, 0);
    }
}

/// Stepped: what a CPU has learned becomes part of its history.
fn learn(state: *mut State, value: u64) {
    // SAFETY: as in `local_apic`.
    let machine = unsafe { &mut *state };
    if machine.driver == Driver::Stepped && machine.phase == Phase::Running {
        let processor = machine.cpu();
        processor.history = absorb(processor.history, value);
    }
}

fn carry_out(state: *mut State, result: Result<Effect, Fault>) {
    match result {
        // SAFETY: as in `local_apic`.
        Ok(effect) => unsafe { (*state).carry_out(effect) },
        Err(fault) => panic!("{fault}"),
    }
}

impl Access for SimAccess {
    fn mode(&self) -> Mode {
        // SAFETY: as in `local_apic`.
        unsafe { (*expect_current()).routing.mode() }
    }

    #[track_caller]
    fn read(&self, register: Register) -> u32 {
        let state = expect_current();
        // SAFETY: as in `local_apic`.
        if unsafe { (*state).phase } == Phase::Evaluating {
            // SAFETY: as in `local_apic`.
            unsafe { (*state).register_read = true };
        }
        let source = Location::caller();
        perform(state, Operation::ReadRegister(register), |state| state.cost.apic_read, source);
        // SAFETY: as in `local_apic`.
        let machine = unsafe { &mut *state };
        let processor = machine.cpu();
        let value = processor.apic.read(register, Instant::from_nanos(processor.time));
        match value {
            Ok(value) => {
                learn(state, value.into());
                value
            }
            Err(fault) => panic!("{fault}"),
        }
    }

    #[track_caller]
    fn write(&self, register: Register, value: u32) {
        let state = expect_current();
        let operation = Operation::WriteRegister(register, value);
        perform(state, operation, |state| state.cost.apic_write, Location::caller());
        // SAFETY: as in `local_apic`; the reference ends before the effect.
        let result = unsafe {
            let processor = (*state).cpu();
            processor.apic.write(register, value, Instant::from_nanos(processor.time))
        };
        carry_out(state, result);
    }

    #[track_caller]
    fn write_icr(&self, value: u64) {
        let state = expect_current();
        perform(state, Operation::WriteIcr(value), |state| state.cost.apic_write, Location::caller());
        // SAFETY: as in `write`.
        let result = unsafe {
            let processor = (*state).cpu();
            processor.apic.write_icr(value, Instant::from_nanos(processor.time))
        };
        carry_out(state, result);
    }
}

impl Topology for SimTopology {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        // SAFETY: as in `local_apic`.
        let machine = unsafe { &*expect_current() };
        machine.apic_ids.get(cpu.index()).copied()
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        // SAFETY: as in `local_apic`.
        let cpu = unsafe { (*expect_current()).interconnect.cpu_of(id) };
        cpu.map(|cpu| Cpu::new(cpu as u32))
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        // SAFETY: as in `local_apic`; the set is in a box of its own and never changes while the machine exists,
        // which it does for as long as code runs on it.
        unsafe { (*core::ptr::addr_of!((*expect_current()).shorthand_reach)).as_deref().map(|set| &**set) }
    }
}

/// What each CPU does when it starts: prepares its APIC, through the driver.
///
/// # Errors
/// If the routing does not fit this CPU.
pub(crate) fn boot(routing: Routing, cpu: Cpu, id: ApicId) -> Result<(), smpcall_local_apic::EnableError> {
    LocalApic::<SimMachine, SimAccess>::new(SimAccess, routing).enable(cpu, id, vector(SPURIOUS_VECTOR))
}
