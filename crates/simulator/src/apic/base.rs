//! The APIC base register (`IA32_APIC_BASE`, MSR `0x1b`): whether there is an APIC, in which mode, and where.
//!
//! SDM, "Local APIC Status and Location", "Enabling or Disabling the Local APIC" and "x2APIC State Transitions".

use core::fmt;

use smpcall_local_apic::{ApicId, Mode};

use super::{ApicModel, BaseFault, Generation};

pub(super) const DEFAULT_ADDRESS: u64 = 0xfee0_0000;

/// The width of physical addresses: bits of the base address from here up are reserved. The architecture's maximum.
pub const PHYSICAL_ADDRESS_BITS: u32 = 52;

const BOOTSTRAP: u64 = 1 << 8;
const EXTENDED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;
const ADDRESS: u64 = (1 << PHYSICAL_ADDRESS_BITS) - (1 << 12);

/// What the base register makes of an APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GlobalState {
    /// There is none: the pins LINT0 and LINT1 are INTR and NMI of the CPU.
    Disabled,
    /// It is enabled in this mode.
    Enabled(Mode),
}

impl fmt::Display for GlobalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("the disabled state"),
            Self::Enabled(mode) => write!(f, "{mode} mode"),
        }
    }
}

impl ApicModel {
    /// Makes it the boot CPU's, or another's: an INIT lets the boot CPU begin anew instead of waiting for a start-up message.
    /// Not the boot CPU's, unless this is called. SDM, "MP Initialization Protocol Algorithm for MP Systems".
    pub const fn set_bootstrap(&mut self, bootstrap: bool) {
        self.bootstrap = bootstrap;
    }

    /// Whether there is an APIC, and in which mode.
    pub const fn global_state(&self) -> GlobalState {
        if self.globally_enabled { GlobalState::Enabled(self.mode) } else { GlobalState::Disabled }
    }

    /// Reads the base register.
    pub fn base(&self) -> u64 {
        let bits = match self.global_state() {
            GlobalState::Disabled => 0,
            GlobalState::Enabled(Mode::XApic) => ENABLED,
            GlobalState::Enabled(Mode::X2Apic) => ENABLED | EXTENDED,
        };
        self.base_address | bits | if self.bootstrap { BOOTSTRAP } else { 0 }
    }

    /// Writes the base register.
    ///
    /// * From xAPIC to x2APIC mode everything stays, but the identifier is the one that hardware gave, the logical
    ///   one follows from it, and the upper half of the ICR is zero.
    /// * A disabled APIC forgets all but its identifier; what the CPU has latched of an NMI stays. Enabled again
    ///   it is as after power-up. The P6 family cannot enable it again: the write is ignored but for the address.
    ///
    /// # Errors
    /// If no such transition exists, or reserved bits are set. In the P6 family the bit of x2APIC mode is one of them.
    pub fn write_base(&mut self, value: u64) -> Result<(), BaseFault> {
        let p6 = self.features.generation == Generation::P6;
        let reserved = value & !(BOOTSTRAP | ENABLED | ADDRESS | if p6 { 0 } else { EXTENDED });
        if reserved != 0 {
            return Err(BaseFault::ReservedBits(reserved));
        }
        let from = self.global_state();
        let to = match (value & ENABLED != 0, value & EXTENDED != 0) {
            (false, false) => GlobalState::Disabled,
            (true, false) => GlobalState::Enabled(Mode::XApic),
            (true, true) => GlobalState::Enabled(Mode::X2Apic),
            (false, true) => return Err(BaseFault::IllegalTransition { from, to: None }),
        };
        match (from, to) {
            (GlobalState::Disabled, GlobalState::Enabled(Mode::X2Apic))
            | (GlobalState::Enabled(Mode::X2Apic), GlobalState::Enabled(Mode::XApic)) => {
                return Err(BaseFault::IllegalTransition { from, to: Some(to) });
            }
            (GlobalState::Enabled(_), GlobalState::Disabled) => self.disable(),
            (GlobalState::Disabled, GlobalState::Enabled(Mode::XApic)) => self.globally_enabled = !p6,
            (GlobalState::Enabled(Mode::XApic), GlobalState::Enabled(Mode::X2Apic)) => self.extend(),
            _ => {}
        }
        self.bootstrap = value & BOOTSTRAP != 0;
        self.base_address = value & ADDRESS;
        Ok(())
    }

    fn disable(&mut self) {
        let cpu = (self.nmi_pending, self.nmi_in_progress, self.waiting_for_start_up);
        self.mode = Mode::XApic;
        self.reset();
        self.id = ApicId(self.initial_id & 0xff);
        self.globally_enabled = false;
        (self.nmi_pending, self.nmi_in_progress, self.waiting_for_start_up) = cpu;
    }

    fn extend(&mut self) {
        self.mode = Mode::X2Apic;
        self.id = ApicId(self.initial_id);
        self.icr &= 0xffff_ffff;
    }
}

#[cfg(test)]
mod tests;
