//! What an APIC and the bus tell each other.

use smpcall_local_apic::{DeliveryMode, Icr, Mode, Trigger};

/// What a register write caused outside the APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A message goes out.
    Dispatch(Command),
    /// An end of interrupt: the vector whose in-service bit it cleared, if any was in service. Nothing goes out.
    EndOfInterrupt(Option<u8>),
    /// The end of this vector, whose interrupt was level-triggered: every I/O APIC is told.
    /// SDM, "Signaling Interrupt Servicing Completion".
    BroadcastEndOfInterrupt(u8),
}

/// What goes on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// The command as it was written.
    pub icr: Icr,
    /// The sender's mode: how wide the destination is, and what broadcast looks like.
    pub mode: Mode,
}

impl Command {
    /// What arrives at each of the addressed. Always edge-triggered: the local APIC overrides the trigger mode
    /// of what it sends. SDM, "Interrupt Command Register (ICR)", valid combinations.
    pub const fn message(&self) -> Message {
        Message { vector: self.icr.vector, delivery_mode: self.icr.delivery_mode, trigger: Trigger::Edge }
    }
}

/// What arrives at an APIC, from another APIC, an I/O APIC, or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The vector; for a start-up message the page of the entry point.
    pub vector: u8,
    /// What kind of message.
    pub delivery_mode: DeliveryMode,
    /// The trigger mode, which the trigger-mode register remembers.
    pub trigger: Trigger,
}

impl Message {
    /// An ordinary, edge-triggered interrupt.
    pub const fn fixed(vector: u8) -> Self {
        Self { vector, delivery_mode: DeliveryMode::Fixed, trigger: Trigger::Edge }
    }

    /// Any edge-triggered message.
    pub const fn edge(delivery_mode: DeliveryMode, vector: u8) -> Self {
        Self { vector, delivery_mode, trigger: Trigger::Edge }
    }
}

/// What became of a message that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acceptance {
    /// It is pending now; an SMI was counted.
    Accepted,
    /// One like it was pending already: the two are one.
    Merged,
    /// An INIT: the APIC was reset, and the CPU is to be.
    Reset,
    /// A start-up message to a CPU that waited for one: it starts to execute.
    Started {
        /// At the beginning of this page of 4 KiB, in real mode.
        page: u8,
    },
    /// There is no room for it now: the bus offers it again until there is. [`Generation::P6`](super::Generation::P6)
    /// only.
    Retry,
    /// It is lost.
    Rejected(Rejection),
}

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The APIC is disabled by software: it takes INIT, NMI, SMI and start-up only.
    SoftwareDisabled,
    /// The CPU waits for a start-up message.
    WaitingForStartUp,
    /// A start-up message to a CPU that does not wait for one.
    NotWaitingForStartUp,
    /// Vectors 0..=15 are illegal; the error status says so too.
    IllegalVector,
    /// The APIC is disabled by its base register, so that there is none on the bus.
    HardwareDisabled,
    /// The entry of the local vector table is masked.
    Masked,
    /// The entry of the local vector table has a delivery mode that is reserved, or not supported for this source.
    ReservedDeliveryMode,
}
