//! The proof that interrupts are disabled on this CPU.

use core::marker::PhantomData;

use crate::{Cpu, Machine};

/// While this exists, maskable interrupts are disabled on the CPU that made it, and the CPU cannot change.
///
/// Nests: the outermost one enables them again, if they were enabled. Neither `Send` nor `Sync`. To be
/// dropped in reverse order of creation; leaking one leaves interrupts disabled.
#[must_use = "interrupts are enabled again when this is dropped"]
pub struct InterruptsOff<M: Machine> {
    were_enabled: bool,
    this_cpu_only: PhantomData<(*mut (), M)>,
}

impl<M: Machine> InterruptsOff<M> {
    /// Disables interrupts. Any context.
    #[inline(always)]
    #[track_caller]
    pub fn new() -> Self {
        Self { were_enabled: M::disable_interrupts(), this_cpu_only: PhantomData }
    }

    /// The CPU that interrupts are disabled on.
    #[inline(always)]
    pub fn cpu(&self) -> Cpu {
        M::current_cpu()
    }

    /// Whether interrupts were enabled before.
    #[inline(always)]
    pub fn were_enabled(&self) -> bool {
        self.were_enabled
    }
}

impl<M: Machine> Default for InterruptsOff<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Machine> Drop for InterruptsOff<M> {
    #[inline(always)]
    fn drop(&mut self) {
        M::restore_interrupts(self.were_enabled);
    }
}
