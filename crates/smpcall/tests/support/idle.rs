//! A machine on which no code runs, for tests that need a type and no more.

use smpcall_machine::{Cpu, CpuSet, Hardware, Instant, Ipi, Machine, SendError};

/// The machine.
pub(crate) struct Idle;

// SAFETY: no code runs on it, so that nothing can break a promise.
unsafe impl Machine for Idle {
    type Memory = Hardware;
    type CpuSet = CpuSet<64>;
    const HAS_NMI: bool = false;

    fn current_cpu() -> Cpu {
        Cpu::new(0)
    }

    fn disable_interrupts() -> bool {
        false
    }

    fn restore_interrupts(_: bool) {}

    fn interrupts_enabled() -> bool {
        false
    }

    fn in_nmi() -> bool {
        false
    }

    fn send(_: Cpu, _: Ipi) -> Result<(), SendError> {
        Err(SendError::Unsupported)
    }

    fn now() -> Instant {
        Instant::default()
    }
}
