//! How the registers are reached: one trait, and its two real implementations.

use core::sync::atomic::{Ordering, compiler_fence};

#[cfg(target_arch = "x86_64")]
use crate::msr;
use crate::{Mode, Register};

/// Access to the registers of the local APIC of the CPU that this code runs on.
///
/// In xAPIC mode every register is 32 bits wide. In x2APIC mode the ICR alone has 64 bits; it is written with
/// [`write_icr`](Self::write_icr) only.
///
/// Whoever implements it promises that a write which sends an interrupt (the ICR's low word, the whole ICR, the
/// self-IPI register) takes effect only after the caller's earlier stores are visible to other CPUs. In xAPIC
/// mode that is the store order of x86. In x2APIC mode it needs a fence, because writes of these MSRs serialise
/// nothing: SDM, "MSR Access in x2APIC Mode".
pub trait Access {
    /// The mode that the APIC is in.
    fn mode(&self) -> Mode;

    /// Reads a register. Reading the ICR's low word has no side effect.
    fn read(&self, register: Register) -> u32;

    /// Writes a register.
    fn write(&self, register: Register, value: u32);

    /// Reads the ICR, both halves. Provided for implementations that have nothing better: in x2APIC mode the upper half,
    /// the destination, is missing then.
    fn read_icr(&self) -> u64 {
        let high = match self.mode() {
            Mode::XApic => self.read(Register::ICR_HIGH),
            Mode::X2Apic => 0,
        };
        u64::from(high) << 32 | u64::from(self.read(Register::ICR_LOW))
    }

    /// Writes the ICR at once. x2APIC mode only: in xAPIC mode the driver writes its two words, the high one first.
    fn write_icr(&self, value: u64);
}

/// The registers of an APIC in xAPIC mode: a page of memory.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: *mut u32,
}

// SAFETY: the page is the running CPU's own on every CPU, so no register is shared through this address; the
// promise of `new` holds on all CPUs.
unsafe impl Send for Mmio {}
// SAFETY: as for `Send`; accesses are single volatile ones of 32 bits.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// The APIC whose page is mapped at `base`.
    ///
    /// # Safety
    /// 1. `base` is 4 KiB of local-APIC registers, mapped uncacheable and for ever, at the same address on each CPU
    ///    that uses this.
    /// 2. The APICs of those CPUs are in xAPIC mode while this is used.
    pub const unsafe fn new(base: *mut u32) -> Self {
        Self { base }
    }

    const fn address(self, register: Register) -> *mut u32 {
        self.base.wrapping_byte_add(register.offset())
    }
}

impl Access for Mmio {
    fn mode(&self) -> Mode {
        Mode::XApic
    }

    #[inline]
    fn read(&self, register: Register) -> u32 {
        // SAFETY: `new`'s caller promised that the page is mapped; every register's offset is aligned and inside it.
        unsafe { self.address(register).read_volatile() }
    }

    #[inline]
    fn write(&self, register: Register, value: u32) {
        // The CPU keeps earlier stores before one to uncacheable memory; this keeps the compiler from moving them.
        compiler_fence(Ordering::Release);
        // SAFETY: as in `read`.
        unsafe { self.address(register).write_volatile(value) }
    }

    /// # Panics
    /// Always: an xAPIC has no such register.
    fn write_icr(&self, value: u64) {
        panic!("the 64-bit ICR ({value:#x}) exists in x2APIC mode only");
    }
}

/// The registers of an APIC in x2APIC mode: MSRs.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Msr {
    constructed_by_new: (),
}

#[cfg(target_arch = "x86_64")]
impl Msr {
    /// The x2APIC of the running CPU.
    ///
    /// # Safety
    /// Wherever it is used, the code runs with privilege level 0 and the running CPU's APIC is in x2APIC mode.
    pub const unsafe fn new() -> Self {
        Self { constructed_by_new: () }
    }

    #[inline]
    fn read_msr(self, register: Register) -> u64 {
        let () = self.constructed_by_new;
        // SAFETY: `new`'s caller promised privilege and mode.
        unsafe { msr::read(register.msr()) }
    }

    #[inline]
    fn write_msr(self, register: Register, value: u64) {
        let () = self.constructed_by_new;
        // SAFETY: `new`'s caller promised privilege and mode. The registers of the local APIC neither change memory nor
        // anything else the compiler relies on; interrupts that follow are ordinary interrupts.
        unsafe { msr::write(register.msr(), value) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Access for Msr {
    fn mode(&self) -> Mode {
        Mode::X2Apic
    }

    #[inline]
    fn read(&self, register: Register) -> u32 {
        self.read_msr(register) as u32
    }

    fn read_icr(&self) -> u64 {
        self.read_msr(Register::ICR_LOW)
    }

    #[inline]
    fn write(&self, register: Register, value: u32) {
        if register == Register::SELF_IPI {
            msr::fence();
        }
        self.write_msr(register, u64::from(value));
    }

    #[inline]
    fn write_icr(&self, value: u64) {
        msr::fence();
        self.write_msr(Register::ICR_LOW, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_reached_at_their_offset() {
        let mut page = [0u32; 1024];
        // SAFETY: the page is memory of the right size that outlives its use and takes any 32-bit access.
        let mmio = unsafe { Mmio::new(page.as_mut_ptr()) };
        mmio.write(Register::ICR_LOW, 0x40fb);
        assert_eq!(mmio.read(Register::ICR_LOW), 0x40fb);
        assert_eq!(mmio.mode(), Mode::XApic);
        assert_eq!(page[0x300 / 4], 0x40fb);
        assert_eq!(page.iter().filter(|&&word| word != 0).count(), 1);
    }

    #[test]
    #[should_panic(expected = "x2APIC mode only")]
    fn an_xapic_has_no_icr_of_64_bits() {
        let mut page = [0u32; 1024];
        // SAFETY: as above.
        unsafe { Mmio::new(page.as_mut_ptr()) }.write_icr(1);
    }
}
