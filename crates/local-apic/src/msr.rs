//! Model-specific registers: the two instructions, the fence before them, and those that belong to an APIC in every mode.

use crate::{BaseRegister, DeadlineRegister};

/// Reads an MSR.
///
/// # Safety
/// The code runs with privilege level 0, and the MSR exists.
#[inline]
pub(crate) unsafe fn read(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: promised by the caller; reading has no effect on memory.
    unsafe {
        core::arch::asm!(
            "rdmsr",
            in("ecx") number,
            out("eax") low,
            out("edx") high,
            options(nostack, preserves_flags),
        );
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR. No `nomem`: the compiler moves no earlier store below it.
///
/// # Safety
/// The code runs with privilege level 0, the MSR exists, and the value changes nothing that the compiler relies on.
#[inline]
pub(crate) unsafe fn write(number: u32, value: u64) {
    // SAFETY: promised by the caller.
    unsafe {
        core::arch::asm!(
            "wrmsr",
            in("ecx") number,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags),
        );
    }
}

/// Makes earlier stores visible before a later MSR write that sends an interrupt: `mfence` completes the stores,
/// `lfence` keeps the write, which is no memory operation, from starting before. SDM, "MSR Access in x2APIC Mode".
#[inline]
pub(crate) fn fence() {
    // SAFETY: the two fences have no operands and no effect but ordering.
    unsafe { core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags)) }
}

/// The MSRs `IA32_APIC_BASE` and `IA32_TSC_DEADLINE` of the running CPU.
#[derive(Clone, Copy, Debug)]
pub struct ApicMsrs {
    constructed_by_new: (),
}

impl ApicMsrs {
    const BASE: u32 = 0x1b;
    const TSC_DEADLINE: u32 = 0x6e0;

    /// Those of the running CPU.
    ///
    /// # Safety
    /// 1. Wherever it is used, the code runs with privilege level 0, and the CPU has a local APIC.
    /// 2. [`write_tsc_deadline`](DeadlineRegister::write_tsc_deadline) is called only if the CPU has that mode of the timer.
    /// 3. The state of the APIC is changed only while nobody uses an [`Access`](crate::Access) to it for another mode.
    pub const unsafe fn new() -> Self {
        Self { constructed_by_new: () }
    }
}

impl BaseRegister for ApicMsrs {
    fn read_base(&self) -> u64 {
        let () = self.constructed_by_new;
        // SAFETY: 1 of `new`.
        unsafe { read(Self::BASE) }
    }

    fn write_base(&self, value: u64) {
        // SAFETY: 1 and 3 of `new`. The registers of an APIC are nothing that the compiler relies on.
        unsafe { write(Self::BASE, value) }
    }
}

impl DeadlineRegister for ApicMsrs {
    fn write_tsc_deadline(&self, value: u64) {
        fence();
        // SAFETY: 1 and 2 of `new`; the interrupt that follows is an ordinary one.
        unsafe { write(Self::TSC_DEADLINE, value) }
    }
}
