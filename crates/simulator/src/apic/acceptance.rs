//! What the APIC accepts, and what it does when it is told that an interrupt has ended.

use smpcall_local_apic::{DeliveryMode, Trigger};

use super::{Acceptance, ApicModel, Effect, Generation, Message, Rejection, local, registers};

impl ApicModel {
    /// A message arrives.
    ///
    /// Disabled by software it takes INIT, NMI, SMI and start-up only, and keeps what is pending and in service;
    /// disabled by its base register it takes nothing. A start-up message counts only for a CPU that waits for one.
    ///
    /// SDM, "Interrupt Acceptance for Fixed Interrupts", "Local APIC State After It Has Been Software Disabled" and
    /// "Local APIC State After It Receives an INIT Reset (Wait-for-SIPI State)".
    pub fn accept(&mut self, message: Message) -> Acceptance {
        if !self.globally_enabled {
            return Acceptance::Rejected(Rejection::HardwareDisabled);
        }
        match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept_fixed(message.vector, message.trigger)
            }
            DeliveryMode::Nmi => self.accept_nmi(),
            DeliveryMode::Smi => self.accept_smi(),
            DeliveryMode::Init => {
                self.reset();
                Acceptance::Reset
            }
            DeliveryMode::StartUp if self.waiting_for_start_up => {
                self.waiting_for_start_up = false;
                Acceptance::Started { page: message.vector }
            }
            DeliveryMode::StartUp => Acceptance::Rejected(Rejection::NotWaitingForStartUp),
        }
    }

    /// One in progress, one latched: SDM, "Handling Multiple NMIs".
    pub(super) const fn accept_nmi(&mut self) -> Acceptance {
        if self.nmi_pending {
            return Acceptance::Merged;
        }
        self.nmi_pending = true;
        Acceptance::Accepted
    }

    /// Firmware serves it, unseen by what is simulated here.
    pub(super) const fn accept_smi(&mut self) -> Acceptance {
        if self.waiting_for_start_up {
            return Acceptance::Rejected(Rejection::WaitingForStartUp);
        }
        self.smis += 1;
        Acceptance::Accepted
    }

    /// A message with delivery mode `ExtINT` arrives, as an I/O APIC can send it: the CPU shall ask the external
    /// controller for a vector. SDM, "Local Vector Table", delivery mode; "Interrupt Handling with the Pentium 4
    /// and Intel Xeon Processors".
    pub const fn accept_ext_int(&mut self) -> Acceptance {
        if !self.globally_enabled {
            return Acceptance::Rejected(Rejection::HardwareDisabled);
        }
        if self.waiting_for_start_up {
            return Acceptance::Rejected(Rejection::WaitingForStartUp);
        }
        if !self.is_enabled() {
            return Acceptance::Rejected(Rejection::SoftwareDisabled);
        }
        if self.ext_int {
            return Acceptance::Merged;
        }
        self.ext_int = true;
        Acceptance::Accepted
    }

    pub(super) fn accept_fixed(&mut self, vector: u8, trigger: Trigger) -> Acceptance {
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
        if self.features.generation == Generation::P6 && !self.has_slot(vector) {
            return Acceptance::Retry;
        }
        match trigger {
            Trigger::Edge => self.tmr.remove(vector),
            Trigger::Level => {
                self.tmr.insert(vector);
            }
        }
        if self.irr.insert(vector) { Acceptance::Accepted } else { Acceptance::Merged }
    }

    /// Whether there is room for one more interrupt of this vector's class. [`Generation::P6`] says why.
    fn has_slot(&self, vector: u8) -> bool {
        self.irr.count_of_class(vector >> 4) + self.isr.count_of_class(vector >> 4) < 2
    }

    /// Notes an error, and raises the error interrupt if this is the first since the status was last written.
    /// SDM, "Error Handling".
    pub(super) fn raise_error(&mut self, bit: u32) {
        let armed = self.errors == 0;
        self.errors |= bit;
        if armed && self.lvt[local::ERROR] & local::MASKED == 0 {
            self.deliver_fixed(local::ERROR, Trigger::Edge);
        }
    }

    /// The bus says that no APIC accepted what this one sent: an error in the P6 family, nothing since.
    /// SDM, "Error Handling", send accept error.
    pub fn note_send_accept_error(&mut self) {
        self.note_bus_error(registers::SEND_ACCEPT);
    }

    /// The bus says that no APIC accepted a message, this one, which received it, among them: an error in the P6 family,
    /// nothing since. SDM, "Error Handling", receive accept error.
    pub fn note_receive_accept_error(&mut self) {
        self.note_bus_error(registers::RECEIVE_ACCEPT);
    }

    fn note_bus_error(&mut self, bit: u32) {
        if self.features.generation == Generation::P6 {
            self.raise_error(bit);
        }
    }

    /// What an INIT does: all as after power-up, except for the identifier, the mode and the base register. The boot
    /// CPU begins anew by itself, others wait for a start-up message.
    /// SDM, "Local APIC State After It Receives an INIT Reset (Wait-for-SIPI State)".
    pub(super) fn reset(&mut self) {
        let id = self.id;
        *self = Self {
            id,
            waiting_for_start_up: !self.bootstrap,
            dispatch_time: self.dispatch_time,
            icr_fault: self.icr_fault,
            pins: self.pins,
            bootstrap: self.bootstrap,
            base_address: self.base_address,
            smis: self.smis,
            initial_id: self.initial_id,
            ..Self::with_features(0, self.mode, self.features)
        };
    }

    /// Ends the highest vector in service. If its interrupt was level-triggered, the I/O APICs are told, unless
    /// software suppresses that. SDM, "Signaling Interrupt Servicing Completion".
    pub(super) fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::EndOfInterrupt(None) };
        self.isr.remove(vector);
        if self.held != 0 {
            self.deliver_held();
        }
        if !self.tmr.contains(vector) {
            return Effect::EndOfInterrupt(Some(vector));
        }
        self.end_level(vector);
        if self.suppresses_broadcasts() {
            return Effect::EndOfInterrupt(Some(vector));
        }
        Effect::BroadcastEndOfInterrupt(vector)
    }
}
