//! In what implementations of the local APIC differ.

/// Where the manuals tell processors apart. One APIC's does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Features {
    /// Which family's rules apply.
    pub generation: Generation,
    /// Whether software can suppress the broadcast of an end of interrupt (bit 24 of the version register, bit 12 of
    /// the spurious-vector register). SDM, "Signaling Interrupt Servicing Completion".
    pub eoi_suppression: bool,
    /// Whether the identifier can be written in xAPIC mode, which is model-specific.
    /// SDM, "Local APIC ID Register".
    pub writable_id: bool,
    /// Whether the timer has a TSC-deadline mode. SDM, "TSC-Deadline Mode".
    pub tsc_deadline: bool,
}

/// The generations that the manual tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// The P6 family, with a bus of its own for interrupt messages.
    ///
    /// * It holds two interrupts per priority class, pending and in service taken together, and has the bus offer
    ///   others again. SDM, "Interrupt Acceptance for Fixed Interrupts" and "Interrupt Handling with the P6 Family
    ///   and Pentium Processors"; report 003 half remembers it.
    /// * Lowest-priority messages are arbitrated for by the arbitration-priority register, and a focus processor is
    ///   preferred. SDM, "Lowest Priority Delivery Mode".
    /// * The error status knows messages that nobody accepted. SDM, "Error Handling".
    /// * Five entries in the local vector table: no thermal sensor, no corrected machine checks; no x2APIC mode.
    P6,
    /// Since the Pentium 4: messages come over the system bus.
    Pentium4,
}

impl Features {
    /// A processor of today.
    pub const CURRENT: Self = Self {
        generation: Generation::Pentium4,
        eoi_suppression: false,
        writable_id: false,
        tsc_deadline: true,
    };

    /// A processor of the P6 family.
    pub const P6: Self =
        Self { generation: Generation::P6, eoi_suppression: false, writable_id: true, tsc_deadline: false };
}

impl Default for Features {
    fn default() -> Self {
        Self::CURRENT
    }
}

#[cfg(test)]
mod tests;
