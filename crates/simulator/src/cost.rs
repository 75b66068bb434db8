//! What operations cost in virtual time.

use rand_core::Rng;
use rand_pcg::Pcg32;

/// A cost, raised by a random 0 to `jitter`.
#[inline]
pub(crate) fn jittered(generator: &mut Pcg32, cost: u64, jitter: u32) -> u64 {
    cost + ((u64::from(generator.next_u32()) * (u64::from(jitter) + 1)) >> 32)
}

/// The cost of each kind of operation, in nanoseconds of virtual time.
///
/// The defaults are round figures of the right order for an x86 server: parameters of a model, not
/// measurements of a machine. They give different interleavings room to happen; no conclusion about real
/// speed follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CostModel {
    /// A load, or a plain access.
    pub load: u64,
    /// A store.
    pub store: u64,
    /// An atomic read-modify-write.
    pub read_modify_write: u64,
    /// Disabling or enabling interrupts.
    pub interrupt_flag: u64,
    /// Reading the clock.
    pub clock: u64,
    /// Reading a register of the local APIC.
    pub apic_read: u64,
    /// Writing a register of the local APIC.
    pub apic_write: u64,
    /// From a write to a word until a CPU that waits for it sees the new value.
    pub transfer: u64,
    /// From an ICR write until the target's APIC accepts the message.
    pub ipi_latency: u64,
    /// From the ICR write until an xAPIC's delivery status says idle again.
    pub icr_dispatch: u64,
    /// From the decision to take an interrupt until its handler's first instruction.
    pub interrupt_entry: u64,
    /// Returning from a handler.
    pub interrupt_exit: u64,
    /// Leaving a halt, in addition to the interrupt entry.
    pub wake: u64,
    /// From the acceptance of a start-up message until the first instruction of the start-up program.
    pub start_up: u64,
    /// Each cost is raised by a random 0 to `jitter` nanoseconds; a latency by up to 16 times that.
    pub jitter: u32,
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            load: 4,
            store: 4,
            read_modify_write: 20,
            interrupt_flag: 4,
            clock: 8,
            apic_read: 40,
            apic_write: 60,
            transfer: 60,
            ipi_latency: 500,
            icr_dispatch: 300,
            interrupt_entry: 250,
            interrupt_exit: 100,
            wake: 500,
            start_up: 5_000,
            jitter: 7,
        }
    }
}
