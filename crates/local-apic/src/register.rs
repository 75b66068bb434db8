//! The register map, the two modes, and the numbers that the manuals give names to.
//!
//! Source: SDM, "Local APIC Register Address Map" and "x2APIC Register Address Space".

use core::fmt;

/// The identifier of a local APIC: 8 bits in xAPIC mode, 32 bits in x2APIC mode. Never a CPU number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ApicId(pub u32);

impl ApicId {
    /// The cluster that x2APIC hardware puts this APIC into: 16 consecutive identifiers each.
    /// Source: SDM, "Deriving Logical x2APIC ID from the Local x2APIC ID".
    pub const fn cluster(self) -> u32 {
        self.0 >> 4
    }

    /// The logical x2APIC identifier that hardware derives: the cluster in bits 31..16, one bit of 15..0.
    /// Clusters beyond `0xffff` alias, which [`Routing::check`](crate::Routing::check) refuses.
    pub const fn x2apic_logical(self) -> u32 {
        self.cluster() << 16 | 1 << (self.0 & 15)
    }
}

impl fmt::Display for ApicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "APIC {:#x}", self.0)
    }
}

/// How a local APIC is operated. Source: SDM, "Extended XAPIC (x2APIC)".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Registers in a page of memory, 8-bit identifiers, an ICR of two words with a delivery-status bit.
    XApic,
    /// Registers as MSRs, 32-bit identifiers, an ICR written at once and never busy.
    X2Apic,
}

impl Mode {
    /// The destination that means every APIC, in both destination modes.
    /// Source: SDM, "Physical Destination Mode" and "Logical Destination Mode in x2APIC Mode".
    pub const fn broadcast(self) -> u32 {
        match self {
            Self::XApic => 0xff,
            Self::X2Apic => 0xffff_ffff,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::XApic => "xAPIC",
            Self::X2Apic => "x2APIC",
        })
    }
}

/// The vector of a fixed interrupt: 16..=255. The local APIC refuses to send or accept 0..=15.
/// Source: SDM, "Valid Interrupt Vectors".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Vector(u8);

impl Vector {
    /// The vector with this number, unless the APIC reserves it (0..=15).
    pub const fn new(number: u8) -> Option<Self> {
        if number < 16 { None } else { Some(Self(number)) }
    }

    /// Its number, 16..=255.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A register of the local APIC, named by its offset in the xAPIC page.
///
/// Any multiple of 16 below `0x400` can be named, reserved ones included: a model must answer those too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Register(u16);

impl Register {
    /// Local APIC ID. xAPIC: in bits 31..24. SDM, "Local APIC ID Register".
    pub const ID: Self = Self(0x020);
    /// Version. SDM, "Local APIC Version Register".
    pub const VERSION: Self = Self(0x030);
    /// Task priority (TPR). SDM, "Task and Processor Priorities".
    pub const TASK_PRIORITY: Self = Self(0x080);
    /// Arbitration priority; not on x2APIC. SDM, "Arbitration Priority".
    pub const ARBITRATION_PRIORITY: Self = Self(0x090);
    /// Processor priority (PPR), read-only. SDM, "Task and Processor Priorities".
    pub const PROCESSOR_PRIORITY: Self = Self(0x0a0);
    /// End of interrupt (EOI), write-only. SDM, "Signaling Interrupt Servicing Completion".
    pub const END_OF_INTERRUPT: Self = Self(0x0b0);
    /// Remote read; not on x2APIC. SDM, "Local APIC Register Address Map".
    pub const REMOTE_READ: Self = Self(0x0c0);
    /// Logical destination (LDR); read-only on x2APIC. SDM, "Logical Destination Mode".
    pub const LOGICAL_DESTINATION: Self = Self(0x0d0);
    /// Destination format (DFR); not on x2APIC. SDM, "Logical Destination Mode".
    pub const DESTINATION_FORMAT: Self = Self(0x0e0);
    /// Spurious interrupt vector (SVR), with the software enable. SDM, "Spurious Interrupt".
    pub const SPURIOUS_VECTOR: Self = Self(0x0f0);
    /// Error status (ESR): written before it is read. SDM, "Error Handling".
    pub const ERROR_STATUS: Self = Self(0x280);
    /// Local vector table, corrected machine checks. SDM, "Local Vector Table".
    pub const LVT_CMCI: Self = Self(0x2f0);
    /// Interrupt command (ICR), low word; on x2APIC all 64 bits. SDM, "Interrupt Command Register (ICR)".
    pub const ICR_LOW: Self = Self(0x300);
    /// Interrupt command, high word; not on x2APIC.
    pub const ICR_HIGH: Self = Self(0x310);
    /// Local vector table, timer.
    pub const LVT_TIMER: Self = Self(0x320);
    /// Local vector table, thermal sensor.
    pub const LVT_THERMAL: Self = Self(0x330);
    /// Local vector table, performance counters.
    pub const LVT_PERFORMANCE: Self = Self(0x340);
    /// Local vector table, pin LINT0.
    pub const LVT_LINT0: Self = Self(0x350);
    /// Local vector table, pin LINT1.
    pub const LVT_LINT1: Self = Self(0x360);
    /// Local vector table, APIC errors.
    pub const LVT_ERROR: Self = Self(0x370);
    /// Timer, initial count. SDM, "APIC Timer".
    pub const TIMER_INITIAL_COUNT: Self = Self(0x380);
    /// Timer, current count, read-only.
    pub const TIMER_CURRENT_COUNT: Self = Self(0x390);
    /// Timer, divide configuration.
    pub const TIMER_DIVIDE: Self = Self(0x3e0);
    /// Self IPI, write-only; x2APIC only. SDM, "SELF IPI Register".
    pub const SELF_IPI: Self = Self(0x3f0);

    /// The register at this offset of the xAPIC page; none if it is not a multiple of 16 below `0x400`.
    pub const fn at(offset: u16) -> Option<Self> {
        if offset < 0x400 && offset.is_multiple_of(16) { Some(Self(offset)) } else { None }
    }

    /// Word `index` of the 256 in-service bits (ISR), 32 vectors each. SDM, "Interrupt Acceptance for Fixed
    /// Interrupts", as are the next two.
    ///
    /// # Panics
    /// If `index` is not below 8.
    pub const fn in_service(index: usize) -> Self {
        assert!(index < 8);
        Self(0x100 + 16 * index as u16)
    }

    /// Word `index` of the 256 trigger-mode bits (TMR).
    ///
    /// # Panics
    /// If `index` is not below 8.
    pub const fn trigger_mode(index: usize) -> Self {
        assert!(index < 8);
        Self(0x180 + 16 * index as u16)
    }

    /// Word `index` of the 256 interrupt-request bits (IRR).
    ///
    /// # Panics
    /// If `index` is not below 8.
    pub const fn interrupt_request(index: usize) -> Self {
        assert!(index < 8);
        Self(0x200 + 16 * index as u16)
    }

    /// Its offset in the xAPIC page, in bytes.
    pub const fn offset(self) -> usize {
        self.0 as usize
    }

    /// Its MSR in x2APIC mode: `0x800` and a sixteenth of the offset.
    pub const fn msr(self) -> u32 {
        0x800 + (self.0 / 16) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_numbers_of_the_manual() {
        assert_eq!(Register::ID.msr(), 0x802);
        assert_eq!(Register::END_OF_INTERRUPT.msr(), 0x80b);
        assert_eq!(Register::in_service(7).msr(), 0x817);
        assert_eq!(Register::trigger_mode(0).msr(), 0x818);
        assert_eq!(Register::interrupt_request(7).msr(), 0x827);
        assert_eq!(Register::ICR_LOW.msr(), 0x830);
        assert_eq!(Register::SELF_IPI.msr(), 0x83f);
        assert_eq!(Register::ICR_HIGH.offset(), 0x310);
    }

    #[test]
    fn only_aligned_offsets_of_the_register_space_name_a_register() {
        assert_eq!(Register::at(0x300), Some(Register::ICR_LOW));
        assert_eq!(Register::at(0x304), None);
        assert_eq!(Register::at(0x400), None);
    }

    #[test]
    fn vectors_below_sixteen_do_not_exist() {
        assert_eq!(Vector::new(15), None);
        assert_eq!(Vector::new(16).map(Vector::number), Some(16));
    }

    #[test]
    fn a_logical_x2apic_identifier_is_the_cluster_and_one_bit() {
        assert_eq!(ApicId(0).x2apic_logical(), 0x0000_0001);
        assert_eq!(ApicId(0x2f).x2apic_logical(), 0x0002_8000);
        assert_eq!(ApicId(0xfff).x2apic_logical(), 0x00ff_8000);
    }
}
