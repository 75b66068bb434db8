//! Accesses that raise a general-protection exception.

use core::fmt;

use smpcall_local_apic::Register;

use super::GlobalState;

/// A register access that raises a general-protection exception, which only x2APIC mode does (and an MSR
/// access in xAPIC mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Which register.
    pub register: Register,
    /// Why.
    pub cause: FaultCause,
}

/// Why a register access raises a general-protection exception.
/// Source: SDM, "x2APIC Register Address Space" and "Reserved Bit Checking".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultCause {
    /// No such register in this mode.
    NoSuchRegister,
    /// It cannot be written.
    ReadOnly,
    /// It cannot be read.
    WriteOnly,
    /// Reserved bits were set: these.
    ReservedBits(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "general-protection exception at MSR {:#x}: ", self.register.msr())?;
        match self.cause {
            FaultCause::NoSuchRegister => f.write_str("no such register in this mode"),
            FaultCause::ReadOnly => f.write_str("it is read-only"),
            FaultCause::WriteOnly => f.write_str("it is write-only"),
            FaultCause::ReservedBits(bits) => write!(f, "reserved bits {bits:#x} were set"),
        }
    }
}

impl core::error::Error for Fault {}

/// A write of the APIC base register (MSR `0x1b`) that raises a general-protection exception. Nothing was written.
/// Source: SDM, "x2APIC State Transitions" and "Relocating the Local APIC Registers".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BaseFault {
    /// There is no such transition.
    IllegalTransition {
        /// From this state.
        from: GlobalState,
        /// To this one; `None` is the invalid one, x2APIC mode without the APIC.
        to: Option<GlobalState>,
    },
    /// Reserved bits were set: these.
    ReservedBits(u64),
}

impl fmt::Display for BaseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("general-protection exception at the APIC base register: ")?;
        match self {
            Self::IllegalTransition { from, to: Some(to) } => {
                write!(f, "no transition leads from {from} to {to}")
            }
            Self::IllegalTransition { from, to: None } => {
                write!(f, "from {from}, x2APIC mode was asked for without enabling the APIC")
            }
            Self::ReservedBits(bits) => write!(f, "reserved bits {bits:#x} were set"),
        }
    }
}

impl core::error::Error for BaseFault {}
