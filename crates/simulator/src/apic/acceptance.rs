//! What the APIC is addressed by, what it accepts, and what it offers to its CPU.

use smpcall_local_apic::{DeliveryMode, DestinationMode, Mode, Shorthand, Trigger};

use super::{Acceptance, ApicModel, Command, Message, Rejection, Vectors, registers};

impl ApicModel {
    /// Whether the command is meant for this APIC. Whether it accepts the message is another question.
    ///
    /// SDM, "Determining IPI Destination" and "Logical Destination Mode in x2APIC Mode".
    pub fn is_addressed_by(&self, command: &Command, sender_is_self: bool) -> bool {
        let destination = command.icr.destination;
        match command.icr.shorthand {
            Shorthand::SelfOnly => sender_is_self,
            Shorthand::All => true,
            Shorthand::AllButSelf => !sender_is_self,
            Shorthand::None if destination == command.mode.broadcast() => true,
            Shorthand::None => match command.icr.destination_mode {
                DestinationMode::Physical => destination == self.id.0,
                DestinationMode::Logical => self.has_logical_destination(destination),
            },
        }
    }

    fn has_logical_destination(&self, destination: u32) -> bool {
        match self.mode {
            Mode::X2Apic => {
                let own = self.id.x2apic_logical();
                own >> 16 == destination >> 16 && own & destination & 0xffff != 0
            }
            Mode::XApic => {
                let own = u32::from(self.logical_destination);
                match self.destination_format {
                    // The flat model: one bit for each of eight APICs.
                    0b1111 => own & destination != 0,
                    // The cluster model: cluster 15 is all clusters; four bits within one.
                    0b0000 => {
                        let cluster = destination >> 4;
                        (cluster == 0xf || cluster == own >> 4) && own & destination & 0xf != 0
                    }
                    // Other values of the format register are undefined: nobody is addressed.
                    _ => false,
                }
            }
        }
    }

    /// Its place in the arbitration for a lowest-priority message that it and others are addressed by: the lowest one
    /// gets it. By processor priority, and by identifier among equals; those that would not accept it come last.
    ///
    /// SDM, "Lowest Priority Delivery Mode".
    pub fn arbitration_order(&self) -> impl Ord + use<> {
        (!self.is_enabled() || self.waiting_for_start_up, self.processor_priority(), self.id)
    }

    /// A message arrives.
    ///
    /// SDM, "Interrupt Acceptance for Fixed Interrupts", "Local APIC State After It Has Been Software Disabled" and
    /// "Local APIC State After It Receives an INIT Reset (Wait-for-SIPI State)".
    pub fn accept(&mut self, message: Message) -> Acceptance {
        match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept_fixed(message.vector, message.trigger)
            }
            DeliveryMode::Nmi if self.nmi_pending => Acceptance::Merged,
            DeliveryMode::Nmi => {
                self.nmi_pending = true;
                Acceptance::Accepted
            }
            // Firmware serves it, unseen by what is simulated here.
            DeliveryMode::Smi if self.waiting_for_start_up => {
                Acceptance::Rejected(Rejection::WaitingForStartUp)
            }
            DeliveryMode::Smi => Acceptance::Accepted,
            DeliveryMode::Init => {
                self.reset();
                Acceptance::Accepted
            }
            DeliveryMode::StartUp if self.waiting_for_start_up => {
                self.waiting_for_start_up = false;
                Acceptance::Accepted
            }
            DeliveryMode::StartUp => Acceptance::Rejected(Rejection::NotWaitingForStartUp),
        }
    }

    fn accept_fixed(&mut self, vector: u8, trigger: Trigger) -> Acceptance {
        if self.waiting_for_start_up {
            return Acceptance::Rejected(Rejection::WaitingForStartUp);
        }
        if !self.is_enabled() {
            return Acceptance::Rejected(Rejection::SoftwareDisabled);
        }
        if vector < 16 {
            self.raise_error(registers::RECEIVED_ILLEGAL_VECTOR);
            return Acceptance::Rejected(Rejection::IllegalVector);
        }
        match trigger {
            Trigger::Edge => self.tmr.remove(vector),
            Trigger::Level => {
                self.tmr.insert(vector);
            }
        }
        if self.irr.insert(vector) { Acceptance::Accepted } else { Acceptance::Merged }
    }

    /// Notes an error, and raises the error interrupt if this is the first since the status was last written.
    /// SDM, "Error Handling".
    pub(super) fn raise_error(&mut self, bit: u32) {
        let armed = self.errors == 0;
        self.errors |= bit;
        let entry = self.lvt[registers::LVT_ERROR_INDEX];
        if armed && entry & registers::LVT_MASKED == 0 {
            self.accept_fixed(entry as u8, Trigger::Edge);
        }
    }

    /// What an INIT does: all as after power-up, except for the identifier (and the mode).
    fn reset(&mut self) {
        *self = Self {
            waiting_for_start_up: true,
            dispatch_time: self.dispatch_time,
            icr_fault: self.icr_fault,
            ..Self::new(self.id.0, self.mode)
        };
    }

    /// The processor priority (PPR): the higher of the task priority and the class of what is in service.
    /// SDM, "Task and Processor Priorities".
    pub fn processor_priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.task_priority >> 4 >= in_service >> 4 { self.task_priority } else { in_service & 0xf0 }
    }

    /// The vector that the CPU would take if its interrupts are enabled: the highest pending one, if its class is
    /// above the processor priority's.
    pub fn deliverable(&self) -> Option<u8> {
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

    /// Ends the highest vector in service. SDM, "Signaling Interrupt Servicing Completion".
    pub(super) fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        Some(vector)
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
        self.irr == Vectors::EMPTY && self.isr == Vectors::EMPTY && !self.nmi_pending
    }
}
