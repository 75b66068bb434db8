//! The seam between cross-CPU protocols and the machine they run on.
//!
//! Everything in `smpcall` and `smpcall-local-apic` is generic over [`Machine`]. A kernel implements it once
//! for a zero-sized type; the simulated machine and the explorer implement it to see every shared access of
//! the code that ships. This crate knows CPUs, time, shared words and how to wait. It knows neither calls nor
//! interrupt controllers.
//!
//! * [`Cpu`], [`CpuSet`], [`CpuMask`]: CPU numbers and sets of them.
//! * [`Instant`], [`Deadline`]: the machine's monotonic clock, in nanoseconds.
//! * [`Memory`]: how shared words are accessed; [`Hardware`] is `core::sync::atomic` and nothing else.
//! * [`Word`], [`Pointer`], [`Plain`]: what is accessed; [`Counter`]: what is only counted.
//! * [`wait`]: the one wait of the whole project.
//! * [`InterruptsOff`]: the proof that interrupts are disabled on this CPU.
//! * [`Event`]: the fixed binary format of everything that is traced.
#![no_std]

mod counter;
mod cpu;
mod cpu_set;
mod event;
mod interrupts;
mod memory;
mod time;
mod wait;
mod word;

pub use counter::Counter;
pub use cpu::Cpu;
pub use cpu_set::{CpuMask, CpuSet, CpuSetStorage, Iter};
pub use event::{Event, EventKind, UnknownEventKind};
pub use interrupts::InterruptsOff;
pub use memory::{Access, Hardware, Memory};
pub use time::{Deadline, Instant};
pub use wait::{Awaited, Conditions, Predicate, When, Woken, spin, spin_at_most, wait, wait_at_most};
pub use word::{Plain, Pointer, Word};

/// What an inter-processor interrupt is for. The machine maps it to a vector or a delivery mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ipi {
    /// "Look at your mailbox": an ordinary, maskable interrupt whose handler serves the mailbox.
    Ring,
    /// "Are you alive, and where?": a non-maskable interrupt.
    Probe,
}

/// Why an inter-processor interrupt was not sent. The caller treats it as a lost one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendError {
    /// The interrupt controller did not become ready for another command within its bound.
    ControllerBusy,
    /// The target has no address at the interrupt controller (no such CPU, or beyond what the mode can address).
    Unreachable,
    /// The machine has no interrupt of this kind.
    Unsupported,
}

impl core::fmt::Display for SendError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::ControllerBusy => "the interrupt controller stayed busy beyond its bound",
            Self::Unreachable => "the interrupt controller cannot address the target CPU",
            Self::Unsupported => "the machine has no interrupt of this kind",
        })
    }
}

impl core::error::Error for SendError {}

/// A multiprocessor, as seen by the code that runs on it.
///
/// A kernel implements this for a zero-sized type. All functions are associated functions: they speak of the
/// CPU they are called on. None may allocate, block or take a lock that an interrupt handler also takes.
///
/// # Safety
/// The protocols rely on each of these, and are unsound without:
///
/// 1. While interrupts are disabled, [`current_cpu`](Machine::current_cpu) returns the same number on every
///    call, and no two CPUs ever have the same number.
/// 2. Between [`disable_interrupts`](Machine::disable_interrupts) and the matching
///    [`restore_interrupts`](Machine::restore_interrupts) no maskable interrupt handler and no other task
///    runs on this CPU. Both are compiler barriers.
/// 3. [`now`](Machine::now) never goes backwards on one CPU. (Clocks of different CPUs should agree to well below a
///    millisecond: a deadline may be checked on another CPU than it was made on. Nothing unsound follows if not.)
/// 4. [`in_nmi`](Machine::in_nmi) is true in everything that may have interrupted a section with interrupts
///    disabled (NMI and machine-check handlers).
/// 5. [`Memory`](Machine::Memory) gives real atomic operations on normal, cache-coherent memory.
pub unsafe trait Machine: Sized + 'static {
    /// How shared memory is accessed: [`Hardware`], unless the machine is a simulated one.
    type Memory: Memory;

    /// A set of CPUs that is large enough for this machine: `CpuSet<WORDS>`, 64 CPUs a word.
    type CpuSet: CpuSetStorage;

    /// Whether CPUs of this machine can be sent an NMI ([`Ipi::Probe`]).
    const HAS_NMI: bool;

    /// The CPU this code runs on. Meaningful only while pinned: with interrupts (or preemption) disabled.
    fn current_cpu() -> Cpu;

    /// Disables maskable interrupts on this CPU; returns whether they were enabled before.
    #[must_use = "the former state is needed to restore it"]
    fn disable_interrupts() -> bool;

    /// Enables interrupts again if `were_enabled`; otherwise does nothing.
    fn restore_interrupts(were_enabled: bool);

    /// Whether maskable interrupts are enabled on this CPU.
    fn interrupts_enabled() -> bool;

    /// Whether this code runs in an NMI handler, or in anything else that interrupts disabled sections.
    fn in_nmi() -> bool;

    /// Sends one interrupt to one CPU, which may be this one.
    ///
    /// The caller's earlier stores must be visible to the target before it can take the interrupt (on x2APIC
    /// this needs a fence before the MSR write). Bounded: never waits without a limit for the controller.
    ///
    /// # Errors
    /// [`SendError`] if the interrupt was not handed to the interrupt controller.
    fn send(target: Cpu, ipi: Ipi) -> Result<(), SendError>;

    /// Sends one interrupt to each CPU of `targets`, with as few commands as the machine's routing allows.
    /// Ordering and bound as for [`send`](Machine::send).
    ///
    /// # Errors
    /// [`SendError`] if it was not handed over for at least one of them; the others were sent to.
    fn send_many(targets: &CpuMask, ipi: Ipi) -> Result<(), SendError> {
        let mut result = Ok(());
        for target in targets {
            result = Self::send(target, ipi).and(result);
        }
        result
    }

    /// The monotonic clock.
    fn now() -> Instant;

    /// The instruction that tells the CPU it is waiting (`pause`, `yield`).
    fn pause() {
        core::hint::spin_loop();
    }

    /// Sees every traced event as it is written. For machines that want one trace for all CPUs.
    fn observe(event: &Event) {
        let _ = event;
    }
}
