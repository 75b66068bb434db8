//! The I/O APIC: as much of it as a crash needs, and a kernel to set up an entry.
//!
//! Source: Intel 82093AA I/O Advanced Programmable Interrupt Controller, data sheet: "Memory Mapped Registers for Accessing
//! IOAPIC Registers", "IOAPIC Registers".

use core::fmt;

use crate::{DestinationMode, Polarity, Trigger};

/// Access to one I/O APIC: a register is selected, then read or written through a window.
///
/// The two steps are not to be interrupted by anybody else who uses this I/O APIC.
pub trait IoApicAccess {
    /// Selects a register (IOREGSEL).
    fn select(&self, register: u8);

    /// Reads the selected register (IOWIN).
    fn read(&self) -> u32;

    /// Writes the selected register (IOWIN).
    fn write(&self, value: u32);
}

/// The registers of an I/O APIC in memory.
#[derive(Clone, Copy, Debug)]
pub struct IoApicMmio {
    base: *mut u32,
}

impl IoApicMmio {
    /// The I/O APIC whose registers are mapped at `base`.
    ///
    /// # Safety
    /// `base` is the register page of an I/O APIC, mapped uncacheable, for as long as this is used.
    pub const unsafe fn new(base: *mut u32) -> Self {
        Self { base }
    }
}

impl IoApicAccess for IoApicMmio {
    fn select(&self, register: u8) {
        // SAFETY: `new`'s caller promised that the page is mapped; IOREGSEL is at its begin.
        unsafe { self.base.write_volatile(register.into()) }
    }

    fn read(&self) -> u32 {
        // SAFETY: as in `select`; IOWIN is 16 bytes later.
        unsafe { self.base.wrapping_byte_add(0x10).read_volatile() }
    }

    fn write(&self, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.base.wrapping_byte_add(0x10).write_volatile(value) }
    }
}

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const REDIRECTION_TABLE: u8 = 0x10;

const DELIVERY_SHIFT: u32 = 8;
const LOGICAL: u64 = 1 << 11;
const SEND_PENDING: u64 = 1 << 12;
const ACTIVE_LOW: u64 = 1 << 13;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;

/// How an I/O APIC sends what comes in at a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IoDelivery {
    /// An ordinary interrupt.
    Fixed = 0b000,
    /// To the one of lowest priority.
    LowestPriority = 0b001,
    /// A system-management interrupt.
    Smi = 0b010,
    /// A non-maskable interrupt.
    Nmi = 0b100,
    /// INIT.
    Init = 0b101,
    /// As `ExtINT`: the vector comes from an 8259.
    ExtInt = 0b111,
}

/// An entry of the redirection table. Data sheet, "I/O Redirection Table Registers".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Redirection {
    /// The vector, 16..=254.
    pub vector: u8,
    /// How it is sent.
    pub delivery: IoDelivery,
    /// What the destination means.
    pub destination_mode: DestinationMode,
    /// Whom for.
    pub destination: u8,
    /// At which level the pin is active.
    pub polarity: Polarity,
    /// How the pin asks.
    pub trigger: Trigger,
    /// Whether it is held back.
    pub masked: bool,
    /// Read-only: whether a message was not accepted yet.
    pub send_pending: bool,
    /// Read-only, level-triggered only: a local APIC has accepted it, and its end was not broadcast yet. Nothing more is sent
    /// until then, whether the entry is masked or not.
    pub remote_irr: bool,
}

impl Redirection {
    /// The bits to write. Read-only bits are zero.
    pub const fn encode(self) -> u64 {
        self.vector as u64
            | (self.delivery as u64) << DELIVERY_SHIFT
            | if matches!(self.destination_mode, DestinationMode::Logical) { LOGICAL } else { 0 }
            | if matches!(self.polarity, Polarity::ActiveLow) { ACTIVE_LOW } else { 0 }
            | if matches!(self.trigger, Trigger::Level) { LEVEL } else { 0 }
            | if self.masked { MASKED } else { 0 }
            | (self.destination as u64) << DESTINATION_SHIFT
    }

    /// What the bits mean. Reserved bits are ignored.
    ///
    /// # Errors
    /// If the delivery is a reserved one.
    pub const fn decode(bits: u64) -> Result<Self, ReservedDelivery> {
        Ok(Self {
            vector: bits as u8,
            delivery: match bits >> DELIVERY_SHIFT & 0b111 {
                0b000 => IoDelivery::Fixed,
                0b001 => IoDelivery::LowestPriority,
                0b010 => IoDelivery::Smi,
                0b100 => IoDelivery::Nmi,
                0b101 => IoDelivery::Init,
                0b111 => IoDelivery::ExtInt,
                _ => return Err(ReservedDelivery(bits)),
            },
            destination_mode: if bits & LOGICAL == 0 {
                DestinationMode::Physical
            } else {
                DestinationMode::Logical
            },
            destination: (bits >> DESTINATION_SHIFT) as u8,
            polarity: if bits & ACTIVE_LOW == 0 { Polarity::ActiveHigh } else { Polarity::ActiveLow },
            trigger: if bits & LEVEL == 0 { Trigger::Edge } else { Trigger::Level },
            masked: bits & MASKED != 0,
            send_pending: bits & SEND_PENDING != 0,
            remote_irr: bits & REMOTE_IRR != 0,
        })
    }
}

/// An entry of the redirection table, these bits, has a reserved delivery: 3 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedDelivery(pub u64);

impl fmt::Display for ReservedDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the delivery mode of the redirection entry {:#x} is reserved", self.0)
    }
}

impl core::error::Error for ReservedDelivery {}

/// An I/O APIC has no such pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchPin {
    /// The pin.
    pub pin: u8,
    /// How many there are.
    pub pins: u8,
}

impl fmt::Display for NoSuchPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this I/O APIC has pins 0 to {}, and none with number {}", self.pins - 1, self.pin)
    }
}

impl core::error::Error for NoSuchPin {}

/// One I/O APIC. All functions: with interrupts disabled, and while no other CPU uses it, because the register is selected
/// in one step and accessed in another.
#[derive(Debug)]
pub struct IoApic<A> {
    access: A,
}

impl<A: IoApicAccess> IoApic<A> {
    /// The one that is reached like that.
    pub const fn new(access: A) -> Self {
        Self { access }
    }

    /// Its identifier, 0..=15.
    pub fn id(&self) -> u8 {
        (self.read(ID) >> 24 & 0xf) as u8
    }

    /// Its version.
    pub fn version(&self) -> u8 {
        self.read(VERSION) as u8
    }

    /// How many pins it has, 1..=120: as many as there are registers for.
    pub fn pins(&self) -> u8 {
        ((self.read(VERSION) >> 16 & 0xff) as u8).min(MOST_PINS - 1) + 1
    }

    /// The bits of a pin's entry.
    ///
    /// # Errors
    /// If there is no such pin.
    pub fn entry(&self, pin: u8) -> Result<u64, NoSuchPin> {
        let register = self.register(pin)?;
        Ok(u64::from(self.read(register + 1)) << 32 | u64::from(self.read(register)))
    }

    /// Replaces a pin's entry. It is masked meanwhile, so that nothing goes to a mixture of two destinations.
    ///
    /// # Errors
    /// If there is no such pin.
    pub fn set_entry(&self, pin: u8, entry: Redirection) -> Result<(), NoSuchPin> {
        let register = self.register(pin)?;
        let bits = entry.encode();
        self.write(register, bits as u32 | MASKED as u32);
        self.write(register + 1, (bits >> 32) as u32);
        self.write(register, bits as u32);
        Ok(())
    }

    /// Holds back all pins, but those whose interrupts are firmware's (SMI); says how many were open. What was sent before
    /// stays pending at the local APICs, and a level-triggered entry keeps its remote IRR until the end is broadcast.
    /// Law L8.
    pub fn mask_all(&self) -> u8 {
        let mut open = 0;
        for pin in 0..self.pins() {
            let register = REDIRECTION_TABLE + 2 * pin;
            let low = self.read(register);
            let firmware = low >> DELIVERY_SHIFT & 0b111 == IoDelivery::Smi as u32;
            if low & MASKED as u32 == 0 && !firmware {
                self.write(register, low & !((SEND_PENDING | REMOTE_IRR) as u32) | MASKED as u32);
                open += 1;
            }
        }
        open
    }

    /// The pins whose level-triggered interrupt was accepted and not ended, ascending.
    pub fn not_ended(&self) -> impl Iterator<Item = u8> + '_ {
        (0..self.pins()).filter(|pin| {
            let low = u64::from(self.read(REDIRECTION_TABLE + 2 * pin));
            low & LEVEL != 0 && low & REMOTE_IRR != 0
        })
    }

    fn register(&self, pin: u8) -> Result<u8, NoSuchPin> {
        let pins = self.pins();
        if pin < pins { Ok(REDIRECTION_TABLE + 2 * pin) } else { Err(NoSuchPin { pin, pins }) }
    }

    fn read(&self, register: u8) -> u32 {
        self.access.select(register);
        self.access.read()
    }

    fn write(&self, register: u8, value: u32) {
        self.access.select(register);
        self.access.write(value);
    }
}

/// Two registers each, from `0x10` to `0xff`.
const MOST_PINS: u8 = 120;

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::cell::{Cell, RefCell};
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec::Vec;

    struct Chip {
        selected: Cell<u8>,
        registers: RefCell<[u32; 256]>,
        writes: RefCell<Vec<(u8, u32)>>,
    }

    impl Chip {
        fn new(pins: u32) -> Self {
            let mut registers = [0; 256];
            registers[0] = 0x0200_0000;
            registers[1] = (pins - 1) << 16 | 0x11;
            Self { selected: Cell::new(0), registers: RefCell::new(registers), writes: RefCell::default() }
        }

        fn set(&self, register: u8, value: u32) {
            self.registers.borrow_mut()[usize::from(register)] = value;
        }
    }

    impl IoApicAccess for &Chip {
        fn select(&self, register: u8) {
            self.selected.set(register);
        }

        fn read(&self) -> u32 {
            self.registers.borrow()[usize::from(self.selected.get())]
        }

        fn write(&self, value: u32) {
            self.set(self.selected.get(), value);
            self.writes.borrow_mut().push((self.selected.get(), value));
        }
    }

    #[test]
    fn all_pins_are_masked_but_firmwares_and_keep_the_rest() {
        let chip = Chip::new(24);
        for pin in 0..24 {
            chip.set(0x10 + 2 * pin, 0x1_0000);
        }
        chip.set(0x10, 0xa031);
        chip.set(0x14, 0x0241);
        chip.set(0x3e, 0x0951);
        let io_apic = IoApic::new(&chip);
        assert_eq!((io_apic.id(), io_apic.version(), io_apic.pins()), (2, 0x11, 24));
        assert_eq!(io_apic.mask_all(), 2);
        assert_eq!(*chip.writes.borrow(), [(0x10, 0x1_a031), (0x3e, 0x1_0951)]);
    }

    #[test]
    fn an_entry_is_masked_while_it_is_replaced() {
        let chip = Chip::new(24);
        let entry =
            Redirection { destination: 7, trigger: Trigger::Level, ..Redirection::decode(0x31).unwrap() };
        let io_apic = IoApic::new(&chip);
        io_apic.set_entry(3, entry).unwrap();
        assert_eq!(*chip.writes.borrow(), [(0x16, 0x1_8031), (0x17, 0x0700_0000), (0x16, 0x8031)]);
        assert_eq!(io_apic.entry(3).map(Redirection::decode), Ok(Ok(entry)));
        let error = io_apic.set_entry(24, entry).unwrap_err();
        assert_eq!(error.to_string(), "this I/O APIC has pins 0 to 23, and none with number 24");
    }

    #[test]
    fn what_waits_for_its_end_is_found() {
        let chip = Chip::new(24);
        chip.set(0x12, 0xc031);
        chip.set(0x16, 0x4031);
        assert!(IoApic::new(&chip).not_ended().eq([1]));
    }

    #[test]
    fn a_chip_that_claims_more_pins_than_there_are_registers_is_not_believed() {
        let chip = Chip::new(256);
        assert_eq!(IoApic::new(&chip).pins(), 120);
        assert_eq!(IoApic::new(&chip).mask_all(), 120);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bits(bits: u64) {
            if let Ok(entry) = Redirection::decode(bits) {
                let read_only = SEND_PENDING | REMOTE_IRR;
                prop_assert_eq!(entry.encode(), bits & 0xff00_0000_0001_ffff & !read_only);
            } else {
                prop_assert!([3, 6].contains(&(bits >> 8 & 0b111)));
            }
        }
    }
}
