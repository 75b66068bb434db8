//! An I/O APIC with 24 pins.
//!
//! Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller, data sheet: "Registers", "I/O Redirection Table
//! Registers".

use core::fmt;

use smpcall_local_apic::{DeliveryMode, Trigger};

/// How many pins it has.
pub(crate) const PINS: usize = 24;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DELIVERY_STATUS: u64 = 1 << 12;
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;
/// Vector, delivery mode, destination mode, polarity, trigger, mask; the destination.
const WRITABLE: u64 = 0xff << 56 | 0x1_afff;

/// What it sends for a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) pin: usize,
    pub(crate) vector: u8,
    pub(crate) delivery: Delivery,
    pub(crate) logical: bool,
    pub(crate) destination: u8,
    pub(crate) trigger: Trigger,
}

/// The delivery mode of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// One that messages of local APICs have too; not a start-up message.
    Message(DeliveryMode),
    /// The target asks the 8259s for the vector.
    ExtInt,
}

impl Delivery {
    /// That of an entry; `None` if it is reserved: 3, and 6, which is a start-up message elsewhere.
    fn of(entry: u64) -> Option<Self> {
        match (entry >> 8) as u8 & 7 {
            7 => Some(Self::ExtInt),
            6 => None,
            code => DeliveryMode::try_from(code).ok().map(Self::Message),
        }
    }
}

/// An entry was opened whose delivery mode is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pin: usize,
    entry: u64,
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pin, entry } = self;
        let mode = entry >> 8 & 7;
        write!(
            f,
            "the I/O APIC's entry for pin {pin}, {entry:#x}, has the delivery mode {mode:#05b}, which is reserved"
        )
    }
}

/// The chip.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IoApicChip {
    selected: u8,
    entries: [u64; PINS],
    /// The pins that are asserted.
    asserted: u32,
}

impl Default for IoApicChip {
    fn default() -> Self {
        Self { selected: 0, entries: [MASKED; PINS], asserted: 0 }
    }
}

impl IoApicChip {
    /// Selects a register.
    pub(crate) const fn select(&mut self, register: u8) {
        self.selected = register;
    }

    /// Reads the selected register: identifier 0, version 0x11, the table.
    pub(crate) fn read(&self) -> u32 {
        match self.selected {
            1 => 0x11 | (PINS as u32 - 1) << 16,
            register @ 0x10..0x40 => {
                let entry = self.entries[usize::from(register - 0x10) / 2];
                if register & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }
            _ => 0,
        }
    }

    /// Writes the selected register; what has to be sent because of that. An error if it is an entry that is open and has a
    /// delivery mode that is reserved.
    pub(crate) fn write(&mut self, value: u32) -> Result<Option<Request>, Reserved> {
        let Some(pin) = self.selected.checked_sub(0x10).map(|place| usize::from(place) / 2) else {
            return Ok(None);
        };
        let Some(entry) = self.entries.get_mut(pin) else { return Ok(None) };
        let written = if self.selected & 1 == 0 {
            *entry & !0xffff_ffff | u64::from(value)
        } else {
            *entry & 0xffff_ffff | u64::from(value) << 32
        };
        if written & MASKED == 0 && Delivery::of(written).is_none() {
            return Err(Reserved { pin, entry: written & WRITABLE });
        }
        *entry = written & WRITABLE | *entry & READ_ONLY;
        if *entry & LEVEL == 0 {
            // An edge-triggered entry has none.
            *entry &= !REMOTE_IRR;
        }
        Ok(self.send_level(pin))
    }

    /// A pin is asserted or not; what has to be sent because of that. Nothing for a pin that is not there.
    pub(crate) fn set_pin(&mut self, pin: usize, asserted: bool) -> Option<Request> {
        let entry = *self.entries.get(pin)?;
        let bit = 1 << pin;
        let rises = asserted && self.asserted & bit == 0;
        if asserted {
            self.asserted |= bit;
        } else {
            self.asserted &= !bit;
        }
        if entry & LEVEL != 0 {
            self.send_level(pin)
        } else {
            // The edge of a masked pin is lost.
            if rises && entry & MASKED == 0 { Self::request(pin, entry) } else { None }
        }
    }

    /// A level-triggered pin interrupts while it is asserted, once until the end of the interrupt.
    fn send_level(&mut self, pin: usize) -> Option<Request> {
        let entry = &mut self.entries[pin];
        let due = self.asserted & 1 << pin != 0 && *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL;
        if !due {
            return None;
        }
        *entry |= REMOTE_IRR;
        Self::request(pin, *entry)
    }

    /// A local APIC broadcasts the end of a vector; what has to be sent because pins are still asserted.
    pub(crate) fn end(&mut self, vector: u8) -> Vec<Request> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if *entry & (REMOTE_IRR | 0xff) == REMOTE_IRR | u64::from(vector) {
                *entry &= !REMOTE_IRR;
                again.extend(self.send_level(pin));
            }
        }
        again
    }

    /// No local APIC has accepted what was sent for a pin: if it is a level, it is sent again when something changes.
    pub(crate) const fn was_refused(&mut self, pin: usize) {
        self.entries[pin] &= !REMOTE_IRR;
    }

    /// None if the delivery mode is reserved, which an open entry's is not.
    fn request(pin: usize, entry: u64) -> Option<Request> {
        Some(Request {
            pin,
            vector: entry as u8,
            delivery: Delivery::of(entry)?,
            logical: entry & 1 << 11 != 0,
            destination: (entry >> 56) as u8,
            trigger: if entry & LEVEL != 0 { Trigger::Level } else { Trigger::Edge },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(chip: &mut IoApicChip, pin: u8, entry: u64) -> Option<Request> {
        chip.select(0x11 + 2 * pin);
        assert_eq!(chip.write((entry >> 32) as u32), Ok(None));
        chip.select(0x10 + 2 * pin);
        chip.write(entry as u32).expect("a delivery mode that there is")
    }

    fn low(chip: &mut IoApicChip, pin: u8) -> u64 {
        chip.select(0x10 + 2 * pin);
        chip.read().into()
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_the_pin_is_masked() {
        let mut chip = IoApicChip::default();
        assert_eq!(chip.set_pin(4, true), None, "masked");
        assert_eq!(set(&mut chip, 4, 0x44 | 3 << 56), None, "the edge is over");
        assert_eq!(chip.set_pin(4, true), None);
        chip.set_pin(4, false);
        let sent = chip.set_pin(4, true).expect("sent");
        assert_eq!(
            (sent.vector, sent.destination, sent.logical, sent.trigger),
            (0x44, 3, false, Trigger::Edge)
        );
        assert_eq!(chip.end(0x44), [], "nobody waits for the end of an edge");
    }

    #[test]
    fn a_level_is_sent_once_until_its_end_and_again_if_it_is_still_there() {
        let mut chip = IoApicChip::default();
        set(&mut chip, 9, 0x59 | LEVEL);
        assert!(chip.set_pin(9, true).is_some());
        assert_eq!(chip.set_pin(9, true), None);
        assert_ne!(low(&mut chip, 9) & REMOTE_IRR, 0);
        assert_eq!(chip.end(0x58), []);
        assert_eq!(chip.end(0x59).len(), 1, "still asserted");
        chip.set_pin(9, false);
        assert_eq!(chip.end(0x59), []);
        assert_eq!(low(&mut chip, 9) & REMOTE_IRR, 0);
    }

    #[test]
    fn a_level_that_was_masked_is_sent_when_the_mask_is_taken_away() {
        let mut chip = IoApicChip::default();
        set(&mut chip, 9, 0x59 | LEVEL | MASKED);
        assert_eq!(chip.set_pin(9, true), None);
        assert!(set(&mut chip, 9, 0x59 | LEVEL).is_some());
    }

    #[test]
    fn read_only_bits_are_kept_and_an_edge_has_no_remote_irr() {
        let mut chip = IoApicChip::default();
        set(&mut chip, 0, !MASKED);
        assert_eq!(low(&mut chip, 0) & DELIVERY_STATUS, 0);
        chip.set_pin(0, true);
        set(&mut chip, 0, 0x40 | LEVEL | MASKED);
        assert_ne!(low(&mut chip, 0) & REMOTE_IRR, 0, "kept");
        set(&mut chip, 0, 0x40);
        assert_eq!(low(&mut chip, 0) & REMOTE_IRR, 0);
    }

    #[test]
    fn a_pin_that_is_not_there_is_nobody() {
        let mut chip = IoApicChip::default();
        assert_eq!(chip.set_pin(24, true), None);
        chip.select(0x40);
        assert_eq!((chip.write(1), chip.read()), (Ok(None), 0));
    }

    #[test]
    fn an_open_entry_has_no_reserved_delivery_mode() {
        let mut chip = IoApicChip::default();
        for mode in [3, 6] {
            chip.select(0x14);
            let reserved = chip.write(0x40 | mode << 8).expect_err("it is reserved").to_string();
            assert_eq!(
                reserved,
                format!(
                    "the I/O APIC's entry for pin 2, {:#x}, has the delivery mode {mode:#05b}, which is reserved",
                    0x40 | mode << 8
                )
            );
            assert_eq!(low(&mut chip, 2), MASKED, "it is as it was");
            assert_eq!(
                set(&mut chip, 2, 0x40 | u64::from(mode) << 8 | MASKED),
                None,
                "masked it means nothing"
            );
            set(&mut chip, 2, MASKED);
        }
    }
}
