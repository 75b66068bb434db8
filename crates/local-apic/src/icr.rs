//! The Interrupt Command Register: its fields, to and from the 64 bits that are written.
//!
//! Source: SDM, "Interrupt Command Register (ICR)" and, for x2APIC, "ICR Operation in x2APIC Mode".

use core::fmt;

use crate::Mode;

/// What kind of message is sent. Source: SDM, "Interrupt Command Register (ICR)", delivery mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeliveryMode {
    /// An ordinary interrupt with the given vector.
    Fixed = 0b000,
    /// To one of the addressed, the one of lowest priority. Model-specific, and reserved on x2APIC: to be avoided.
    LowestPriority = 0b001,
    /// A system-management interrupt. The vector must be zero.
    Smi = 0b010,
    /// A non-maskable interrupt. The vector is ignored.
    Nmi = 0b100,
    /// INIT: resets the addressed. The vector must be zero.
    Init = 0b101,
    /// Start-up (SIPI): the vector is the page at which the addressed starts to execute.
    StartUp = 0b110,
}

impl DeliveryMode {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 6] =
        [Self::Fixed, Self::LowestPriority, Self::Smi, Self::Nmi, Self::Init, Self::StartUp];

    /// Whether the vector is that of an interrupt: then 0..=15 are illegal.
    pub const fn has_interrupt_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// A delivery mode that the manual reserves in the ICR: 3 (once remote read) or 7 (`ExtINT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservedDeliveryMode(pub u8);

impl fmt::Display for ReservedDeliveryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delivery mode {} is reserved in the interrupt command register", self.0)
    }
}

impl core::error::Error for ReservedDeliveryMode {}

impl TryFrom<u8> for DeliveryMode {
    type Error = ReservedDeliveryMode;

    fn try_from(code: u8) -> Result<Self, ReservedDeliveryMode> {
        Self::ALL.into_iter().find(|&mode| mode as u8 == code).ok_or(ReservedDeliveryMode(code))
    }
}

/// What the destination field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationMode {
    /// One APIC identifier, or all.
    Physical = 0,
    /// A set of logical identifiers.
    Logical = 1,
}

/// The level of a level-triggered message. Only INIT ever had a use for de-assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// De-assert. Ignored by everything since the Pentium 4.
    Deassert = 0,
    /// Assert.
    Assert = 1,
}

/// The trigger mode of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Edge.
    Edge = 0,
    /// Level.
    Level = 1,
}

/// A destination that needs no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shorthand {
    /// None: the destination field counts.
    None = 0,
    /// The sender itself. For fixed interrupts only.
    SelfOnly = 1,
    /// All, the sender included. For fixed interrupts only.
    All = 2,
    /// All but the sender.
    AllButSelf = 3,
}

/// The content of the Interrupt Command Register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Icr {
    /// The vector; for [`DeliveryMode::StartUp`] the page number of the entry point.
    pub vector: u8,
    /// What kind of message.
    pub delivery_mode: DeliveryMode,
    /// What [`destination`](Self::destination) means. Ignored with a shorthand.
    pub destination_mode: DestinationMode,
    /// Delivery status, read-only: whether the message has not been dispatched yet. Always false on x2APIC,
    /// which has no such bit. [`encode`](Self::encode) leaves it out.
    pub send_pending: bool,
    /// The level. Assert, except in the historical INIT de-assertion.
    pub level: Level,
    /// The trigger mode.
    pub trigger: Trigger,
    /// A destination that needs no address.
    pub shorthand: Shorthand,
    /// Whom for: 8 bits in xAPIC mode, 32 in x2APIC mode. Ignored with a shorthand.
    pub destination: u32,
}

/// The destination does not fit into the 8 bits that xAPIC mode has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DestinationTooWide(pub u32);

impl fmt::Display for DestinationTooWide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "destination {:#x} does not fit into the 8 bits of an xAPIC", self.0)
    }
}

impl core::error::Error for DestinationTooWide {}

const VECTOR: u64 = 0xff;
const DELIVERY_MODE_SHIFT: u32 = 8;
const LOGICAL: u64 = 1 << 11;
const SEND_PENDING: u64 = 1 << 12;
const ASSERT: u64 = 1 << 14;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const SHORTHAND_SHIFT: u32 = 18;

impl Icr {
    /// The delivery-status bit of the low word, read-only; xAPIC only.
    pub const SEND_PENDING: u32 = SEND_PENDING as u32;

    /// The bits that the manual reserves: writes must leave them zero. In x2APIC mode setting one faults;
    /// the former delivery-status bit, which x2APIC lacks, counts as reserved for those who write.
    pub const fn reserved(mode: Mode) -> u64 {
        match mode {
            Mode::XApic => 0x00ff_ffff_fff3_2000,
            Mode::X2Apic => 0x0000_0000_fff3_3000,
        }
    }

    /// An edge-triggered message to one APIC, by identifier.
    pub const fn physical(delivery_mode: DeliveryMode, vector: u8, destination: u32) -> Self {
        Self {
            vector,
            delivery_mode,
            destination_mode: DestinationMode::Physical,
            send_pending: false,
            level: Level::Assert,
            trigger: Trigger::Edge,
            shorthand: Shorthand::None,
            destination,
        }
    }

    /// An edge-triggered message to a set of logical identifiers.
    pub const fn logical(delivery_mode: DeliveryMode, vector: u8, destination: u32) -> Self {
        Self {
            destination_mode: DestinationMode::Logical,
            ..Self::physical(delivery_mode, vector, destination)
        }
    }

    /// An edge-triggered message by shorthand.
    pub const fn shorthand(delivery_mode: DeliveryMode, vector: u8, shorthand: Shorthand) -> Self {
        Self { shorthand, ..Self::physical(delivery_mode, vector, 0) }
    }

    /// The 64 bits to write. Reserved and read-only bits are zero.
    ///
    /// # Errors
    /// In xAPIC mode if the destination has more than 8 bits: cut off, it would be another CPU's.
    pub const fn encode(self, mode: Mode) -> Result<u64, DestinationTooWide> {
        let destination = match mode {
            Mode::XApic if self.destination > 0xff => return Err(DestinationTooWide(self.destination)),
            Mode::XApic => (self.destination as u64) << 56,
            Mode::X2Apic => (self.destination as u64) << 32,
        };
        Ok(destination
            | self.vector as u64
            | (self.delivery_mode as u64) << DELIVERY_MODE_SHIFT
            | if matches!(self.destination_mode, DestinationMode::Logical) { LOGICAL } else { 0 }
            | if matches!(self.level, Level::Assert) { ASSERT } else { 0 }
            | if matches!(self.trigger, Trigger::Level) { LEVEL_TRIGGERED } else { 0 }
            | (self.shorthand as u64) << SHORTHAND_SHIFT)
    }

    /// What the 64 bits mean. Reserved bits are ignored.
    ///
    /// # Errors
    /// If the delivery mode is one of the two reserved ones.
    pub fn decode(value: u64, mode: Mode) -> Result<Self, ReservedDeliveryMode> {
        Ok(Self {
            vector: (value & VECTOR) as u8,
            delivery_mode: DeliveryMode::try_from((value >> DELIVERY_MODE_SHIFT & 0b111) as u8)?,
            destination_mode: if value & LOGICAL == 0 {
                DestinationMode::Physical
            } else {
                DestinationMode::Logical
            },
            send_pending: mode == Mode::XApic && value & SEND_PENDING != 0,
            level: if value & ASSERT == 0 { Level::Deassert } else { Level::Assert },
            trigger: if value & LEVEL_TRIGGERED == 0 { Trigger::Edge } else { Trigger::Level },
            shorthand: match value >> SHORTHAND_SHIFT & 0b11 {
                0 => Shorthand::None,
                1 => Shorthand::SelfOnly,
                2 => Shorthand::All,
                _ => Shorthand::AllButSelf,
            },
            destination: match mode {
                Mode::XApic => (value >> 56) as u32,
                Mode::X2Apic => (value >> 32) as u32,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn icr(mode: Mode) -> impl Strategy<Value = Icr> {
        let destination = match mode {
            Mode::XApic => 0..=0xffu32,
            Mode::X2Apic => 0..=u32::MAX,
        };
        (any::<u8>(), 0..6usize, any::<[bool; 3]>(), 0..4u8, destination).prop_map(
            |(vector, delivery_mode, [logical, assert, level], shorthand, destination)| Icr {
                vector,
                delivery_mode: DeliveryMode::ALL[delivery_mode],
                destination_mode: [DestinationMode::Physical, DestinationMode::Logical][usize::from(logical)],
                send_pending: false,
                level: [Level::Deassert, Level::Assert][usize::from(assert)],
                trigger: [Trigger::Edge, Trigger::Level][usize::from(level)],
                shorthand: [Shorthand::None, Shorthand::SelfOnly, Shorthand::All, Shorthand::AllButSelf]
                    [usize::from(shorthand)],
                destination,
            },
        )
    }

    fn mode() -> impl Strategy<Value = Mode> {
        prop_oneof![Just(Mode::XApic), Just(Mode::X2Apic)]
    }

    #[test]
    fn known_commands_have_the_bits_of_the_manual() {
        let bits = |icr: Icr, mode| icr.encode(mode).unwrap();
        let fixed = DeliveryMode::Fixed;
        assert_eq!(bits(Icr::physical(fixed, 0xfb, 5), Mode::XApic), 0x0500_0000_0000_40fb);
        assert_eq!(bits(Icr::logical(fixed, 0xfb, 0x3), Mode::XApic), 0x0300_0000_0000_48fb);
        assert_eq!(bits(Icr::logical(fixed, 0xfb, 0x2_8001), Mode::X2Apic), 0x0002_8001_0000_48fb);
        assert_eq!(bits(Icr::physical(DeliveryMode::Nmi, 2, 1), Mode::XApic), 0x0100_0000_0000_4402);
        assert_eq!(bits(Icr::physical(DeliveryMode::Init, 0, 1), Mode::XApic), 0x0100_0000_0000_4500);
        assert_eq!(bits(Icr::physical(DeliveryMode::StartUp, 8, 1), Mode::X2Apic), 0x0000_0001_0000_4608);
        let all_but_self = Icr::shorthand(fixed, 0xfb, Shorthand::AllButSelf);
        assert_eq!(bits(all_but_self, Mode::XApic), 0x0000_0000_000c_40fb);
    }

    #[test]
    fn reserved_delivery_modes_are_refused() {
        assert_eq!(Icr::decode(0x300, Mode::XApic), Err(ReservedDeliveryMode(3)));
        assert_eq!(Icr::decode(0x700, Mode::X2Apic), Err(ReservedDeliveryMode(7)));
    }

    #[test]
    fn a_destination_is_refused_rather_than_cut_off() {
        let icr = Icr::physical(DeliveryMode::Fixed, 0x40, 0x100);
        assert_eq!(icr.encode(Mode::XApic), Err(DestinationTooWide(0x100)));
        assert_eq!(icr.encode(Mode::X2Apic), Ok(0x100_0000_4040));
    }

    #[test]
    fn x2apic_has_no_delivery_status() {
        assert!(Icr::decode(SEND_PENDING, Mode::XApic).unwrap().send_pending);
        assert!(!Icr::decode(SEND_PENDING, Mode::X2Apic).unwrap().send_pending);
    }

    proptest! {
        #[test]
        fn a_command_survives_its_encoding_and_sets_no_reserved_bit(
            (mode, icr) in mode().prop_flat_map(|mode| (Just(mode), icr(mode)))
        ) {
            let bits = icr.encode(mode).unwrap();
            prop_assert_eq!(bits & Icr::reserved(mode), 0);
            prop_assert_eq!(Icr::decode(bits, mode), Ok(icr));
        }

        #[test]
        fn any_bits_decode_to_what_they_encode_to(value: u64, mode in mode()) {
            if let Ok(icr) = Icr::decode(value, mode) {
                let defined = value & !Icr::reserved(mode) & !(SEND_PENDING * u64::from(mode == Mode::XApic));
                prop_assert_eq!(icr.encode(mode), Ok(defined));
            }
        }
    }
}
