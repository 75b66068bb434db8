//! The MSR that says where an APIC is and in which mode: `IA32_APIC_BASE`, and which changes of it are legal.
//!
//! Sources: SDM, "Local APIC Status and Location", "Detecting and Enabling x2APIC Mode" and "x2APIC State Transitions".

use core::fmt;

use crate::Mode;

/// Access to the MSR `IA32_APIC_BASE` (`0x1b`) of the running CPU.
pub trait BaseRegister {
    /// Reads it.
    fn read_base(&self) -> u64;

    /// Writes it. A change that [`ApicBase::change`] does not allow faults.
    fn write_base(&self, value: u64);
}

const BOOT_CPU: u64 = 1 << 8;
const X2APIC: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What the MSR says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApicBase(pub u64);

/// The states of a local APIC as the MSR has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApicState {
    /// Disabled: as if the CPU had none. Only a reset was sure to undo that once; since the Pentium 4 the MSR does.
    Disabled,
    /// Enabled in a mode.
    Enabled(Mode),
}

impl fmt::Display for ApicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("disabled"),
            Self::Enabled(mode) => mode.fmt(f),
        }
    }
}

/// A change of state that faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IllegalTransition {
    /// The state that the APIC is in; none for the combination of bits that no APIC can be in.
    pub from: Option<ApicState>,
    /// The state asked for.
    pub to: ApicState,
}

impl fmt::Display for IllegalTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (None, to) => {
                write!(f, "this APIC says it is disabled and in x2APIC mode: it cannot become {to}")
            }
            (Some(from), to) => {
                let between = if from == ApicState::Disabled {
                    ApicState::Enabled(Mode::XApic)
                } else {
                    ApicState::Disabled
                };
                write!(f, "an APIC that is {from} cannot become {to} at once: change it to {between} first")
            }
        }
    }
}

impl core::error::Error for IllegalTransition {}

impl ApicBase {
    /// Reads it.
    pub fn read(register: &impl BaseRegister) -> Self {
        Self(register.read_base())
    }

    /// The state; none for x2APIC without enable, which no APIC can be in.
    pub const fn state(self) -> Option<ApicState> {
        match (self.0 & ENABLE != 0, self.0 & X2APIC != 0) {
            (true, true) => Some(ApicState::Enabled(Mode::X2Apic)),
            (true, false) => Some(ApicState::Enabled(Mode::XApic)),
            (false, false) => Some(ApicState::Disabled),
            (false, true) => None,
        }
    }

    /// Whether this CPU is the boot CPU. It is never sent INIT when another one has crashed (law L8).
    pub const fn is_boot_cpu(self) -> bool {
        self.0 & BOOT_CPU != 0
    }

    /// The physical address of the page of registers in xAPIC mode.
    pub const fn address(self) -> u64 {
        self.0 & ADDRESS
    }

    /// What to write to get from here to another state. The address and the boot CPU's bit stay.
    ///
    /// What that does to the registers:
    ///
    /// * disabled to xAPIC, and anything to disabled: all are as after power-up;
    /// * xAPIC to x2APIC: all are kept, but for the logical-destination register, which hardware derives now, the identifier
    ///   if software had changed it, and the ICR's upper half.
    ///
    /// # Errors
    /// For disabled to x2APIC and for x2APIC to xAPIC, which fault.
    pub fn change(self, to: ApicState) -> Result<Self, IllegalTransition> {
        let from = self.state();
        let bits = match to {
            ApicState::Disabled => 0,
            ApicState::Enabled(Mode::XApic) => ENABLE,
            ApicState::Enabled(Mode::X2Apic) => ENABLE | X2APIC,
        };
        let legal = match (from, to) {
            (None, _)
            | (Some(ApicState::Disabled), ApicState::Enabled(Mode::X2Apic))
            | (Some(ApicState::Enabled(Mode::X2Apic)), ApicState::Enabled(Mode::XApic)) => false,
            (Some(_), _) => true,
        };
        if legal { Ok(Self(self.0 & !(ENABLE | X2APIC) | bits)) } else { Err(IllegalTransition { from, to }) }
    }

    /// Changes the state of the running CPU's APIC. Writes nothing if it is in that state already. With interrupts disabled,
    /// and before a driver for the new mode is used.
    ///
    /// # Errors
    /// See [`change`](Self::change). Nothing was written then.
    pub fn switch(register: &impl BaseRegister, to: ApicState) -> Result<(), IllegalTransition> {
        let now = Self::read(register);
        let next = now.change(to)?;
        if next != now {
            register.write_base(next.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::cell::Cell;
    use std::string::ToString;

    const DISABLED: ApicState = ApicState::Disabled;
    const XAPIC: ApicState = ApicState::Enabled(Mode::XApic);
    const X2: ApicState = ApicState::Enabled(Mode::X2Apic);
    const BOOT: u64 = 0xfee0_0900;

    struct Base {
        value: Cell<u64>,
        writes: Cell<u32>,
    }

    impl BaseRegister for Base {
        fn read_base(&self) -> u64 {
            self.value.get()
        }

        fn write_base(&self, value: u64) {
            self.value.set(value);
            self.writes.set(self.writes.get() + 1);
        }
    }

    #[test]
    fn the_register_is_read_as_the_manual_has_it() {
        let base = ApicBase(BOOT);
        assert_eq!((base.state(), base.is_boot_cpu(), base.address()), (Some(XAPIC), true, 0xfee0_0000));
        assert_eq!(ApicBase(0xfee0_0c00).state(), Some(X2));
        assert_eq!(ApicBase(0xfee0_0000).state(), Some(DISABLED));
        assert_eq!(ApicBase(0xfee0_0400).state(), None);
    }

    #[test]
    fn only_the_legal_transitions_are_written() {
        let states = [DISABLED, XAPIC, X2];
        let bits = |state| match state {
            DISABLED => 0xfee0_0100,
            XAPIC => 0xfee0_0900,
            _ => 0xfee0_0d00,
        };
        for from in states {
            for to in states {
                let base = Base { value: Cell::new(bits(from)), writes: Cell::new(0) };
                let illegal = [(DISABLED, X2), (X2, XAPIC)].contains(&(from, to));
                assert_eq!(ApicBase::switch(&base, to).is_err(), illegal, "{from} to {to}");
                assert_eq!(base.value.get(), bits(if illegal { from } else { to }));
                assert_eq!(base.writes.get(), u32::from(!illegal && from != to));
            }
        }
    }

    #[test]
    fn an_illegal_transition_says_the_way_round() {
        let error = ApicBase(0).change(X2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an APIC that is disabled cannot become x2APIC at once: change it to xAPIC first"
        );
        let error = ApicBase(0xc00).change(XAPIC).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an APIC that is x2APIC cannot become xAPIC at once: change it to disabled first"
        );
    }
}
