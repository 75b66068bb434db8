//! The local vector table, and the interrupts of local sources.
//!
//! SDM, "Local Vector Table" and "Local Interrupt Acceptance".

use smpcall_local_apic::{Register, Trigger};

use super::{Acceptance, ApicModel, Generation, Rejection};

/// The mask bit of an entry.
pub(super) const MASKED: u32 = 1 << 16;
const VECTOR: u32 = 0xff;
/// The delivery mode of an entry; zero is "fixed", the only one of those that have no such field.
const DELIVERY: u32 = 0x700;
/// Delivery status: the interrupt has found no room. Read-only.
const SEND_PENDING: u32 = 1 << 12;
const POLARITY: u32 = 1 << 13;
/// Remote IRR: a level-triggered interrupt was accepted and not ended. Read-only.
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL_TRIGGERED: u32 = 1 << 15;
const TIMER_MODE: u32 = 0b11 << 17;
pub(super) const TIMER_MODE_SHIFT: u32 = 17;

// Places in the table.
pub(super) const TIMER: usize = 1;
const PERFORMANCE: usize = 3;
const LINT0: usize = 4;
const LINT1: usize = 5;
pub(super) const ERROR: usize = 6;

/// A local source of interrupts that something outside of the APIC drives. The timer and errors are inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalSource {
    /// The pin LINT0, mostly wired to the external controller (8259).
    Lint0,
    /// The pin LINT1, mostly wired to NMI.
    Lint1,
    /// A performance counter overflows.
    Performance,
    /// The thermal sensor trips.
    Thermal,
    /// Corrected machine checks reach their threshold.
    CorrectedMachineCheck,
}

impl LocalSource {
    const fn place(self) -> usize {
        match self {
            Self::CorrectedMachineCheck => 0,
            Self::Thermal => 2,
            Self::Performance => PERFORMANCE,
            Self::Lint0 => LINT0,
            Self::Lint1 => LINT1,
        }
    }

    const fn pin(self) -> Option<usize> {
        match self {
            Self::Lint0 => Some(0),
            Self::Lint1 => Some(1),
            _ => None,
        }
    }
}

impl ApicModel {
    /// The place of a register in the local vector table, and the bits of it that can be written. None if it is no
    /// entry that this generation has.
    pub(super) fn entry_of(&self, register: Register) -> Option<(usize, u32)> {
        const PIN: u32 = POLARITY | LEVEL_TRIGGERED;
        let p6 = self.features.generation == Generation::P6;
        let timer_mode = if self.features.tsc_deadline { TIMER_MODE } else { 1 << TIMER_MODE_SHIFT };
        Some(match register {
            Register::LVT_CMCI if !p6 => (0, VECTOR | DELIVERY | MASKED),
            Register::LVT_TIMER => (TIMER, VECTOR | MASKED | timer_mode),
            Register::LVT_THERMAL if !p6 => (2, VECTOR | DELIVERY | MASKED),
            Register::LVT_PERFORMANCE => (PERFORMANCE, VECTOR | DELIVERY | MASKED),
            Register::LVT_LINT0 => (LINT0, VECTOR | DELIVERY | PIN | MASKED),
            Register::LVT_LINT1 => (LINT1, VECTOR | DELIVERY | PIN | MASKED),
            Register::LVT_ERROR => (ERROR, VECTOR | MASKED),
            _ => return None,
        })
    }

    /// The bits of an entry that are read-only: ignored when written, also on x2APIC.
    pub(super) const ENTRY_READ_ONLY: u32 = SEND_PENDING | REMOTE_IRR;

    pub(super) const fn read_entry(&self, place: usize) -> u32 {
        let pending = if self.held & 1 << place != 0 { SEND_PENDING } else { 0 };
        self.lvt[place] | pending
    }

    /// Writes an entry, whose timer events are [settled](Self::settle_timer). `value` has writable bits only.
    pub(super) fn write_entry(&mut self, place: usize, value: u32) {
        let before = self.lvt[place];
        let mask = if self.is_enabled() { 0 } else { MASKED };
        self.lvt[place] = value | mask | before & REMOTE_IRR;
        if place == TIMER {
            self.timer_mode_was(before >> TIMER_MODE_SHIFT);
        }
        if value & DELIVERY == 0 && (value as u8) < 16 {
            self.raise_error(super::registers::RECEIVED_ILLEGAL_VECTOR);
        }
        if place == LINT0 {
            self.offer_level();
        }
    }

    pub(super) fn mask_entries(&mut self) {
        self.lvt.iter_mut().for_each(|entry| *entry |= MASKED);
    }

    /// A local source interrupts: a pin becomes asserted, or an event happens. What follows is up to the source's
    /// entry in the local vector table.
    ///
    /// A pin stays asserted until it is [lowered](Self::lower_local). Only two things look at its level:
    /// LINT0 with fixed delivery and level trigger, and `ExtINT`; all others are edges, so a pin that is asserted
    /// already, or whose entry is masked, gives nothing. An interrupt of the performance counters masks its entry.
    ///
    /// While the APIC is disabled by its base register, LINT0 is the CPU's interrupt pin and LINT1 its NMI pin.
    pub fn raise_local(&mut self, source: LocalSource) -> Acceptance {
        if let Some(pin) = source.pin()
            && core::mem::replace(&mut self.pins[pin], true)
        {
            return Acceptance::Merged;
        }
        if !self.globally_enabled {
            return match source {
                LocalSource::Lint0 => Acceptance::Accepted,
                LocalSource::Lint1 => self.accept_nmi(),
                _ => Acceptance::Rejected(Rejection::HardwareDisabled),
            };
        }
        let place = source.place();
        let entry = self.lvt[place];
        if entry & MASKED != 0 {
            return Acceptance::Rejected(Rejection::Masked);
        }
        if source == LocalSource::Performance {
            self.lvt[place] |= MASKED;
        }
        let is_pin = source.pin().is_some();
        match (entry & DELIVERY) >> 8 {
            0b000 if self.is_level(place) => self.offer_level().unwrap_or(Acceptance::Merged),
            0b000 => self.deliver_fixed(place, Trigger::Edge),
            0b010 => self.accept_smi(),
            0b100 => self.accept_nmi(),
            0b101 if is_pin => {
                self.reset();
                Acceptance::Reset
            }
            // The line itself is what is looked at.
            0b111 if is_pin => Acceptance::Accepted,
            _ => Acceptance::Rejected(Rejection::ReservedDeliveryMode),
        }
    }

    /// Whether this is a pin whose entry is open and says INIT.
    pub(super) fn delivers_init(&self, source: LocalSource) -> bool {
        source.pin().is_some() && self.lvt[source.place()] & (MASKED | DELIVERY) == 0b101 << 8
    }

    /// A pin is no longer asserted. Nothing for the other sources, which are events.
    pub fn lower_local(&mut self, source: LocalSource) {
        if let Some(pin) = source.pin() {
            self.pins[pin] = false;
        }
    }

    /// Whether the CPU would ask the external controller for a vector, if its interrupts are enabled. The
    /// processor priority does not matter. SDM, "Local Vector Table", delivery mode `ExtINT`.
    pub fn ext_int_deliverable(&self) -> bool {
        let wants =
            |pin: usize, place: usize| self.pins[pin] && self.lvt[place] & (MASKED | DELIVERY) == 0b111 << 8;
        let virtual_wire = !self.globally_enabled && self.pins[0];
        !self.waiting_for_start_up && (self.ext_int || virtual_wire || wants(0, LINT0) || wants(1, LINT1))
    }

    /// The CPU takes the [deliverable](Self::ext_int_deliverable) interrupt of the external controller; returns whether
    /// there is one. The controller supplies the vector, and lowers its line itself. Nothing gets in service here.
    pub fn take_ext_int(&mut self) -> bool {
        let taken = self.ext_int_deliverable();
        if taken {
            self.ext_int = false;
        }
        taken
    }

    /// Fixed delivery of an entry. Without room it is held at its source.
    pub(super) fn deliver_fixed(&mut self, place: usize, trigger: Trigger) -> Acceptance {
        let acceptance = self.accept_fixed(self.lvt[place] as u8, trigger);
        if acceptance == Acceptance::Retry {
            self.held |= 1 << place;
        } else {
            self.held &= !(1 << place);
        }
        acceptance
    }

    /// There may be room now for what is held at its source.
    pub(super) fn deliver_held(&mut self) {
        for place in 0..self.lvt.len() {
            if self.held & 1 << place != 0 {
                if self.is_level(place) {
                    self.held &= !(1 << place);
                    self.offer_level();
                } else {
                    self.deliver_fixed(place, Trigger::Edge);
                }
            }
        }
    }

    /// Whether an entry's interrupts are level-triggered: LINT0 with fixed delivery only.
    const fn is_level(&self, place: usize) -> bool {
        place == LINT0 && self.lvt[place] & (DELIVERY | LEVEL_TRIGGERED) == LEVEL_TRIGGERED
    }

    /// LINT0 is accepted if its level asks for it: once until the end of the interrupt.
    fn offer_level(&mut self) -> Option<Acceptance> {
        let entry = self.lvt[LINT0];
        if !self.is_level(LINT0) || !self.pins[0] || entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        let acceptance = self.deliver_fixed(LINT0, Trigger::Level);
        if matches!(acceptance, Acceptance::Accepted | Acceptance::Merged) {
            self.lvt[LINT0] |= REMOTE_IRR;
        }
        Some(acceptance)
    }

    /// A level-triggered interrupt with this vector has ended: if LINT0 is still asserted, the next one begins.
    pub(super) fn end_level(&mut self, vector: u8) {
        if self.lvt[LINT0] & (REMOTE_IRR | VECTOR) == REMOTE_IRR | u32::from(vector) {
            self.lvt[LINT0] &= !REMOTE_IRR;
            self.offer_level();
        }
    }
}

#[cfg(test)]
mod tests;
