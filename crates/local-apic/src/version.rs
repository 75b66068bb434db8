//! The version register, and the priorities. Sources: SDM, "Local APIC Version Register" and "Task and Processor Priorities".

use smpcall_machine::Machine;

use crate::{Access, LocalApic, Mode, Register};

/// What the version register says. SDM, "Local APIC Version Register".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub u32);

impl Version {
    /// The version: `0x0x` for an 82489DX, `0x10` and up for integrated ones.
    pub const fn number(self) -> u8 {
        self.0 as u8
    }

    /// Whether it is part of its processor, and so takes start-up messages; an 82489DX does not.
    pub const fn is_integrated(self) -> bool {
        self.number() >= 0x10
    }

    /// How many entries the local vector table has, 1..=256.
    pub const fn entries(self) -> u32 {
        (self.0 >> 16 & 0xff) + 1
    }

    /// Whether it can be told not to broadcast the ends of level-triggered interrupts.
    /// See [`Spurious::no_eoi_broadcast`](crate::Spurious::no_eoi_broadcast).
    pub const fn suppresses_eoi_broadcasts(self) -> bool {
        self.0 & 1 << 24 != 0
    }
}

/// A priority: vectors of a class not above it are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u8);

impl Priority {
    /// Nothing is held back.
    pub const LOWEST: Self = Self(0);

    /// The class, 0..=15: sixteen vectors each.
    pub const fn class(self) -> u8 {
        self.0 >> 4
    }

    /// Whether a vector is held back by it.
    pub const fn holds_back(self, vector: u8) -> bool {
        vector >> 4 <= self.class()
    }
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// What kind of APIC this is. Any context.
    pub fn version(&self) -> Version {
        Version(self.access.read(Register::VERSION))
    }

    /// The task priority (TPR), which the kernel sets. Any context. In 64-bit mode CR8 is its class.
    pub fn task_priority(&self) -> Priority {
        Priority(self.access.read(Register::TASK_PRIORITY) as u8)
    }

    /// Sets the task priority. What was held back may be taken at once.
    pub fn set_task_priority(&self, priority: Priority) {
        self.access.write(Register::TASK_PRIORITY, priority.0.into());
    }

    /// The processor priority (PPR): the higher of the task priority and the class of what is in service. Any context.
    pub fn processor_priority(&self) -> Priority {
        Priority(self.access.read(Register::PROCESSOR_PRIORITY) as u8)
    }

    /// The arbitration priority (APR); none on x2APIC, meaningless since the Pentium 4. SDM, "Arbitration Priority".
    pub fn arbitration_priority(&self) -> Option<Priority> {
        match self.access.mode() {
            Mode::XApic => Some(Priority(self.access.read(Register::ARBITRATION_PRIORITY) as u8)),
            Mode::X2Apic => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, driver};

    #[test]
    fn the_version_is_read_as_the_manual_has_it() {
        let version = Version(0x0106_0015);
        assert_eq!((version.number(), version.entries()), (0x15, 7));
        assert!(version.is_integrated() && version.suppresses_eoi_broadcasts());
        assert!(!Version(0x0003_0001).is_integrated());
        assert!(!Version(0x0006_0014).suppresses_eoi_broadcasts());
    }

    #[test]
    fn a_priority_holds_back_its_class_and_those_below() {
        let priority = Priority(0x41);
        assert!(priority.holds_back(0x4f) && priority.holds_back(0x31) && !priority.holds_back(0x50));
        assert!(!Priority::LOWEST.holds_back(0x10));
    }

    #[test]
    fn an_x2apic_has_no_arbitration_priority_and_is_not_asked() {
        let recorder = Recorder::new(Mode::X2Apic);
        assert_eq!(driver(&recorder).arbitration_priority(), None);
        assert!(recorder.reads.borrow().is_empty());
    }
}
