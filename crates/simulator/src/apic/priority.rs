//! What the APIC offers to its CPU: which vector, whether an NMI, whether the external controller.

use super::{ApicModel, Vectors};

/// What the CPU was given for the interrupt that was signalled to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acknowledged {
    /// This vector, which is in service now.
    Vector(u8),
    /// The spurious vector: the interrupt had disappeared. Nothing is in service, so its handler writes no end of
    /// interrupt.
    Spurious(u8),
}

impl ApicModel {
    /// The processor priority (PPR): the higher of the task priority and the class of what is in service.
    /// SDM, "Task and Processor Priorities".
    pub fn processor_priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.task_priority >> 4 >= in_service >> 4 { self.task_priority } else { in_service & 0xf0 }
    }

    /// The arbitration priority (APR), by the formula of the manual, "and" included.
    /// SDM, "Lowest Priority Delivery Mode". P6 family only.
    pub(super) fn arbitration_priority(&self) -> u8 {
        let [requested, in_service] = [&self.irr, &self.isr].map(|set| set.highest().unwrap_or(0) >> 4);
        let task = self.task_priority >> 4;
        if task >= requested && task > in_service {
            self.task_priority
        } else {
            (task & in_service).max(requested) << 4
        }
    }

    /// The vector that the CPU would take if its interrupts are enabled: the highest pending one, if its class is
    /// above the processor priority's.
    pub fn deliverable(&self) -> Option<u8> {
        // Disabled by the base register, it is disabled by software too.
        if !self.is_enabled() || self.waiting_for_start_up {
            return None;
        }
        self.irr.highest().filter(|vector| vector >> 4 > self.processor_priority() >> 4)
    }

    /// The CPU takes the [deliverable](Self::deliverable) vector: it is no longer pending but in service.
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(vector)
    }

    /// The CPU, which saw an interrupt signalled some time ago, asks for its vector. If none is
    /// [deliverable](Self::deliverable) any more - the task priority was raised, or the APIC disabled, in between -
    /// it is given the spurious one. SDM, "Spurious Interrupt".
    pub fn acknowledge(&mut self) -> Acknowledged {
        self.take().map_or(Acknowledged::Spurious(self.spurious_vector as u8), Acknowledged::Vector)
    }

    /// Whether the CPU would take an NMI now, whatever its interrupt flag says.
    /// SDM, "Handling Multiple NMIs": one at a time, one more latched.
    pub const fn nmi_deliverable(&self) -> bool {
        self.nmi_pending && !self.nmi_in_progress && !self.waiting_for_start_up
    }

    /// Whether an NMI is latched.
    pub const fn nmi_pending(&self) -> bool {
        self.nmi_pending
    }

    /// Whether NMIs are blocked: one was taken, and no IRET was executed since.
    pub const fn nmi_in_progress(&self) -> bool {
        self.nmi_in_progress
    }

    /// The CPU takes the NMI, if one is [deliverable](Self::nmi_deliverable); returns whether it did. Others are
    /// blocked from now on.
    pub const fn take_nmi(&mut self) -> bool {
        let taken = self.nmi_deliverable();
        if taken {
            self.nmi_pending = false;
            self.nmi_in_progress = true;
        }
        taken
    }

    /// The CPU executes an IRET, be it of the NMI handler or of an exception inside it: NMIs are unblocked.
    pub const fn return_from_nmi(&mut self) {
        self.nmi_in_progress = false;
    }

    /// Whether nothing is pending or in service, and no NMI is latched.
    pub fn is_quiet(&self) -> bool {
        self.irr == Vectors::EMPTY && self.isr == Vectors::EMPTY && !self.nmi_pending && self.held == 0
    }
}
