//! The local vector table: what an APIC does with the interrupts of its own CPU.
//!
//! Source: SDM, "Local Vector Table" and "Valid Interrupt Vectors".

use core::fmt;

use smpcall_machine::Machine;

use crate::{Access, LocalApic, Register, TimerMode, Trigger, Vector, Version};

/// A source of local interrupts: an entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalSource {
    /// Errors of the APIC itself.
    Error,
    /// The timer.
    Timer,
    /// Pin LINT0: usually the 8259's.
    Lint0,
    /// Pin LINT1: usually the NMI's.
    Lint1,
    /// Performance counters.
    Performance,
    /// The thermal sensor.
    Thermal,
    /// Corrected machine checks.
    Cmci,
}

impl LocalSource {
    /// All of them; errors first, because masking others may cause one.
    pub const ALL: [Self; 7] =
        [Self::Error, Self::Timer, Self::Lint0, Self::Lint1, Self::Performance, Self::Thermal, Self::Cmci];

    /// Its register.
    pub const fn register(self) -> Register {
        match self {
            Self::Error => Register::LVT_ERROR,
            Self::Timer => Register::LVT_TIMER,
            Self::Lint0 => Register::LVT_LINT0,
            Self::Lint1 => Register::LVT_LINT1,
            Self::Performance => Register::LVT_PERFORMANCE,
            Self::Thermal => Register::LVT_THERMAL,
            Self::Cmci => Register::LVT_CMCI,
        }
    }

    /// Whether an APIC of this version has it. On x2APIC, access to one that is not there faults.
    pub const fn exists(self, version: Version) -> bool {
        let entries_before = match self {
            Self::Timer | Self::Lint0 | Self::Lint1 => 0,
            Self::Error => 3,
            Self::Performance => 4,
            Self::Thermal => 5,
            Self::Cmci => 6,
        };
        version.entries() > entries_before
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timer => "timer",
            Self::Lint0 => "LINT0",
            Self::Lint1 => "LINT1",
            Self::Performance => "performance",
            Self::Thermal => "thermal",
            Self::Cmci => "CMCI",
        }
    }

    const fn is_pin(self) -> bool {
        matches!(self, Self::Lint0 | Self::Lint1)
    }

    /// Whether its entry says how it is delivered; otherwise it is an ordinary interrupt.
    const fn has_delivery(self) -> bool {
        !matches!(self, Self::Error | Self::Timer)
    }
}

impl fmt::Display for LocalSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the CPU is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LocalDelivery {
    /// An ordinary interrupt with the entry's vector.
    Fixed = 0b000,
    /// A system-management interrupt.
    Smi = 0b010,
    /// A non-maskable interrupt.
    Nmi = 0b100,
    /// INIT: pins only.
    Init = 0b101,
    /// An interrupt whose vector an 8259 gives: pins only, and of one CPU of the machine only. It is never in service at the
    /// APIC and ignores the processor priority.
    ExtInt = 0b111,
}

/// The level at which a pin is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Polarity {
    /// High.
    ActiveHigh = 0,
    /// Low.
    ActiveLow = 1,
}

/// An entry of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalVector {
    /// The vector; ignored unless the delivery is fixed. 0..=15 are illegal.
    pub vector: u8,
    /// What the CPU is given.
    pub delivery: LocalDelivery,
    /// Whether it is held back. An APIC that is disabled by software keeps all of them masked.
    pub masked: bool,
    /// Pins only.
    pub polarity: Polarity,
    /// Pins and fixed delivery only: others are edge-triggered, `ExtINT` by level, whatever stands here. LINT1: edge.
    pub trigger: Trigger,
    /// Timer only.
    pub timer_mode: TimerMode,
    /// Read-only: whether one was sent to the CPU and not accepted yet.
    pub send_pending: bool,
    /// Read-only, level-triggered pins only: accepted, and its end not written yet.
    pub remote_irr: bool,
}

impl LocalVector {
    /// As after power-up and INIT: held back.
    pub const MASKED: Self = Self {
        vector: 0,
        delivery: LocalDelivery::Fixed,
        masked: true,
        polarity: Polarity::ActiveHigh,
        trigger: Trigger::Edge,
        timer_mode: TimerMode::OneShot,
        send_pending: false,
        remote_irr: false,
    };

    /// An ordinary, edge-triggered interrupt.
    pub const fn fixed(vector: Vector) -> Self {
        Self { vector: vector.number(), masked: false, ..Self::MASKED }
    }

    /// Anything that needs no vector.
    pub const fn without_vector(delivery: LocalDelivery) -> Self {
        Self { delivery, masked: false, ..Self::MASKED }
    }

    /// The bits to write as this source's entry. Read-only bits are zero.
    ///
    /// # Errors
    /// If the source cannot do that.
    pub const fn encode(self, source: LocalSource) -> Result<u32, LocalVectorError> {
        let delivery_fits = match self.delivery {
            LocalDelivery::Fixed => true,
            LocalDelivery::Smi | LocalDelivery::Nmi => source.has_delivery(),
            LocalDelivery::Init | LocalDelivery::ExtInt => source.is_pin(),
        };
        if !delivery_fits {
            return Err(LocalVectorError::Delivery(source, self.delivery));
        }
        if matches!(self.delivery, LocalDelivery::Fixed) && self.vector < 16 && !self.masked {
            return Err(LocalVectorError::IllegalVector(source, self.vector));
        }
        if !matches!(source, LocalSource::Timer) && !matches!(self.timer_mode, TimerMode::OneShot) {
            return Err(LocalVectorError::NoTimer(source));
        }
        let level = matches!(self.trigger, Trigger::Level);
        let low = matches!(self.polarity, Polarity::ActiveLow);
        let no_level = !matches!(source, LocalSource::Lint0);
        if (level && no_level) || (low && !source.is_pin()) {
            return Err(LocalVectorError::NoPin(source));
        }
        Ok(self.vector as u32
            | (self.delivery as u32) << DELIVERY_SHIFT
            | if low { ACTIVE_LOW } else { 0 }
            | if level { LEVEL } else { 0 }
            | if self.masked { MASKED } else { 0 }
            | (self.timer_mode as u32) << TIMER_MODE_SHIFT)
    }

    /// What the bits of this source's entry mean. Bits that it does not have are ignored.
    ///
    /// # Errors
    /// If the delivery or the timer mode is a reserved one.
    pub const fn decode(bits: u32, source: LocalSource) -> Result<Self, LocalVectorError> {
        let reserved = Err(LocalVectorError::Reserved(source, bits));
        let delivery = match (source.has_delivery(), bits >> DELIVERY_SHIFT & 0b111) {
            (false, _) | (true, 0b000) => LocalDelivery::Fixed,
            (true, 0b010) => LocalDelivery::Smi,
            (true, 0b100) => LocalDelivery::Nmi,
            (true, 0b101) if source.is_pin() => LocalDelivery::Init,
            (true, 0b111) if source.is_pin() => LocalDelivery::ExtInt,
            (true, _) => return reserved,
        };
        let timer_mode = match (matches!(source, LocalSource::Timer), bits >> TIMER_MODE_SHIFT & 0b11) {
            (false, _) | (true, 0b00) => TimerMode::OneShot,
            (true, 0b01) => TimerMode::Periodic,
            (true, 0b10) => TimerMode::TscDeadline,
            (true, _) => return reserved,
        };
        let pin = source.is_pin();
        Ok(Self {
            vector: bits as u8,
            delivery,
            masked: bits & MASKED != 0,
            polarity: if pin && bits & ACTIVE_LOW != 0 { Polarity::ActiveLow } else { Polarity::ActiveHigh },
            trigger: if pin && bits & LEVEL != 0 { Trigger::Level } else { Trigger::Edge },
            timer_mode,
            send_pending: bits & SEND_PENDING != 0,
            remote_irr: pin && bits & REMOTE_IRR != 0,
        })
    }
}

const DELIVERY_SHIFT: u32 = 8;
const SEND_PENDING: u32 = 1 << 12;
const ACTIVE_LOW: u32 = 1 << 13;
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const TIMER_MODE_SHIFT: u32 = 17;

/// Why an entry of the local vector table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalVectorError {
    /// This APIC has no such entry.
    NoSuchEntry(LocalSource),
    /// The source cannot be delivered like that.
    Delivery(LocalSource, LocalDelivery),
    /// A vector 0..=15.
    IllegalVector(LocalSource, u8),
    /// A timer mode for what is no timer.
    NoTimer(LocalSource),
    /// A level or polarity for what has no pin, or a level for LINT1, which takes edges only.
    NoPin(LocalSource),
    /// The bits that were read have a delivery or timer mode that is reserved.
    Reserved(LocalSource, u32),
}

impl fmt::Display for LocalVectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoSuchEntry(source) => {
                write!(f, "this APIC has no {source} entry in its local vector table")
            }
            Self::Delivery(source, delivery) => {
                write!(f, "the {source} entry of a local vector table cannot deliver {delivery:?}")
            }
            Self::IllegalVector(source, vector) => {
                write!(f, "vector {vector} for the {source} entry is illegal: choose 16 to 255")
            }
            Self::NoTimer(source) => write!(f, "the {source} entry has no timer mode"),
            Self::NoPin(source) => write!(f, "the {source} entry has no such level or polarity"),
            Self::Reserved(source, bits) => {
                write!(
                    f,
                    "the {source} entry holds {bits:#x}, of which the delivery or timer mode is reserved"
                )
            }
        }
    }
}

impl core::error::Error for LocalVectorError {}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// Reads an entry. Any context.
    ///
    /// # Errors
    /// If this APIC does not have it, or it holds reserved bits.
    pub fn local_vector(&self, source: LocalSource) -> Result<LocalVector, LocalVectorError> {
        self.check_local(source)?;
        LocalVector::decode(self.access.read(source.register()), source)
    }

    /// Writes an entry. The APIC must be enabled by software, or the entry stays masked.
    ///
    /// # Errors
    /// If this APIC does not have it, or it cannot do that. Nothing was written then.
    pub fn set_local_vector(&self, source: LocalSource, entry: LocalVector) -> Result<(), LocalVectorError> {
        let bits = entry.encode(source)?;
        self.check_local(source)?;
        self.access.write(source.register(), bits);
        Ok(())
    }

    /// Gives LINT0 to the 8259s: what they send comes as `ExtINT`, with their vector. One CPU of a machine does that, usually
    /// the boot CPU. Such an interrupt is ended [at the 8259s](crate::Pic::end_of_interrupt) and not here (report 003).
    ///
    /// # Errors
    /// None on the APICs that are known: each has LINT0.
    pub fn connect_pic(&self) -> Result<(), LocalVectorError> {
        self.set_local_vector(LocalSource::Lint0, LocalVector::without_vector(LocalDelivery::ExtInt))
    }

    /// Holds back an entry, whatever it holds else. What it sent before stays pending.
    ///
    /// # Errors
    /// If this APIC does not have it.
    pub fn mask_local_vector(&self, source: LocalSource) -> Result<(), LocalVectorError> {
        self.check_local(source)?;
        let bits = self.access.read(source.register());
        // An entry that is masked already is left alone: writing one with vector zero, as after power-up, may count as an
        // error.
        if bits & MASKED == 0 {
            self.access.write(source.register(), bits & !(SEND_PENDING | REMOTE_IRR) | MASKED);
        }
        Ok(())
    }

    /// Holds back all local interrupts that this APIC has, errors first. Any context; of the crashing CPU, law L8.
    pub fn mask_all_local_vectors(&self) {
        let version = self.version();
        for source in LocalSource::ALL.into_iter().filter(|source| source.exists(version)) {
            // It exists.
            let _ = self.mask_local_vector(source);
        }
    }

    fn check_local(&self, source: LocalSource) -> Result<(), LocalVectorError> {
        if source.exists(self.version()) { Ok(()) } else { Err(LocalVectorError::NoSuchEntry(source)) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Mode;
    use crate::testing::{Recorder, driver};
    use proptest::prelude::*;
    use std::string::ToString;

    const VECTOR: Vector = Vector::new(0xef).unwrap();
    const SEVEN_ENTRIES: u32 = 0x0006_0014;
    const FOUR_ENTRIES: u32 = 0x0003_0010;

    #[test]
    fn known_entries_have_the_bits_of_the_manual() {
        let timer = LocalVector { timer_mode: TimerMode::Periodic, ..LocalVector::fixed(VECTOR) };
        assert_eq!(timer.encode(LocalSource::Timer), Ok(0x2_00ef));
        let nmi = LocalVector::without_vector(LocalDelivery::Nmi);
        assert_eq!(nmi.encode(LocalSource::Lint1), Ok(0x400));
        let pin = LocalVector {
            trigger: Trigger::Level,
            polarity: Polarity::ActiveLow,
            ..LocalVector::fixed(VECTOR)
        };
        assert_eq!(pin.encode(LocalSource::Lint0), Ok(0xa0ef));
        assert_eq!(LocalVector::MASKED.encode(LocalSource::Cmci), Ok(0x1_0000));
    }

    #[test]
    fn what_a_source_cannot_do_is_refused_in_one_sentence() {
        let refused = |entry: LocalVector, source: LocalSource| entry.encode(source).unwrap_err().to_string();
        let ext_int = LocalVector::without_vector(LocalDelivery::ExtInt);
        assert_eq!(
            refused(ext_int, LocalSource::Timer),
            "the timer entry of a local vector table cannot deliver ExtInt"
        );
        assert_eq!(refused(ext_int, LocalSource::Cmci).split(' ').nth(1), Some("CMCI"));
        let no_vector = LocalVector::without_vector(LocalDelivery::Fixed);
        assert_eq!(
            refused(no_vector, LocalSource::Error),
            "vector 0 for the error entry is illegal: choose 16 to 255"
        );
        let level = LocalVector { trigger: Trigger::Level, ..LocalVector::fixed(VECTOR) };
        assert_eq!(refused(level, LocalSource::Lint1), "the LINT1 entry has no such level or polarity");
        let periodic = LocalVector { timer_mode: TimerMode::Periodic, ..LocalVector::fixed(VECTOR) };
        assert_eq!(refused(periodic, LocalSource::Lint0), "the LINT0 entry has no timer mode");
    }

    #[test]
    fn an_entry_that_this_apic_lacks_is_neither_read_nor_written() {
        let recorder = Recorder::new(Mode::X2Apic);
        recorder.set(Register::VERSION, FOUR_ENTRIES);
        let driver = driver(&recorder);
        for source in [LocalSource::Performance, LocalSource::Thermal, LocalSource::Cmci] {
            let missing = LocalVectorError::NoSuchEntry(source);
            assert_eq!(driver.local_vector(source), Err(missing));
            assert_eq!(driver.set_local_vector(source, LocalVector::MASKED), Err(missing));
        }
        driver.mask_all_local_vectors();
        let reads = recorder.reads.borrow();
        assert!(!reads.contains(&Register::LVT_CMCI) && reads.contains(&Register::LVT_ERROR));
    }

    #[test]
    fn all_entries_are_masked_errors_first_and_keep_the_rest() {
        let recorder = Recorder::new(Mode::XApic);
        recorder.set(Register::VERSION, SEVEN_ENTRIES);
        for source in LocalSource::ALL {
            recorder.set(source.register(), 0x30ef);
        }
        recorder.set(Register::LVT_THERMAL, 0x1_0000);
        driver(&recorder).mask_all_local_vectors();
        let written = recorder.written();
        assert_eq!(written[0], (Register::LVT_ERROR, 0x1_20ef));
        assert_eq!(written.len(), 6, "the one that was masked is left alone");
        assert!(written.iter().all(|&(_, bits)| bits == 0x1_20ef));
    }

    #[test]
    fn the_8259s_are_connected_as_extint() {
        let recorder = Recorder::new(Mode::XApic);
        recorder.set(Register::VERSION, SEVEN_ENTRIES);
        driver(&recorder).connect_pic().unwrap();
        assert_eq!(recorder.written(), [(Register::LVT_LINT0, 0x700)]);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bits(bits: u32, source in prop::sample::select(&LocalSource::ALL[..])) {
            if let Ok(entry) = LocalVector::decode(bits, source)
                && let Ok(encoded) = entry.encode(source)
            {
                prop_assert_eq!(encoded & !bits, 0);
                prop_assert_eq!(LocalVector::decode(encoded, source).map(|again| again.encode(source)), Ok(Ok(encoded)));
            }
        }
    }
}
