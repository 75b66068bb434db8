//! The registers as software sees them: what reads return, what writes do, what faults.

use smpcall_local_apic::{ApicId, DeliveryMode, Icr, Level, Mode, Register, Shorthand, Trigger};
use smpcall_machine::Instant;

use super::timer::DIVIDE_BITS;
use super::{ApicModel, Command, Effect, Fault, FaultCause, Generation, IcrFault};

pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;
/// No search for a focus processor.
const NO_FOCUS: u32 = 1 << 9;
/// No broadcasts at the end of level-triggered interrupts.
const NO_BROADCAST: u32 = 1 << 12;
/// Vector, software enable, focus checking.
const SPURIOUS_VECTOR_BITS: u32 = 0xff | SOFTWARE_ENABLE | NO_FOCUS;
/// The bits of the spurious vector that are ones whatever is written, in the P6 family.
const SPURIOUS_VECTOR_ONES: u32 = 0xf;

/// Version 0x14 (an integrated APIC), seven entries in the local vector table. SDM, "Local APIC Version Register".
const VERSION: u32 = 0x14 | 6 << 16;
/// An integrated APIC with five entries.
const P6_VERSION: u32 = 0x11 | 4 << 16;
/// Broadcasts of an end of interrupt can be suppressed.
const SUPPRESSES: u32 = 1 << 24;

/// SDM, "Error Handling": the bits of the error-status register.
pub(super) const SEND_ACCEPT: u32 = 1 << 2;
pub(super) const RECEIVE_ACCEPT: u32 = 1 << 3;
const REDIRECTABLE: u32 = 1 << 4;
pub(super) const SENT_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(super) const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;

/// The writable bits of the ICR's low word; the status bit is read-only.
const ICR_LOW_BITS: u64 = 0x000c_cfff;
const ICR_DELIVERY_STATUS: u64 = Icr::SEND_PENDING as u64;

/// A register, sorted by what accessing it does.
#[derive(Clone, Copy)]
enum Kind {
    Id,
    Version,
    TaskPriority,
    /// In the map, but supported only by the P6 family; not on x2APIC.
    ArbitrationPriority,
    /// In the map, but not supported by anything since the Pentium 4; not on x2APIC.
    RemoteRead,
    ProcessorPriority,
    EndOfInterrupt,
    LogicalDestination,
    DestinationFormat,
    SpuriousVector,
    InService(usize),
    TriggerMode(usize),
    InterruptRequest(usize),
    ErrorStatus,
    IcrLow,
    IcrHigh,
    Entry {
        place: usize,
        writable: u32,
    },
    TimerInitialCount,
    TimerCurrentCount,
    TimerDivide,
    SelfIpi,
    Reserved,
}

/// SDM, "Local APIC Register Address Map" and "x2APIC Register Address Space".
fn kind(register: Register, apic: &ApicModel) -> Kind {
    let index = register.offset() % 0x80 / 0x10;
    let kind = match register {
        Register::ID => Kind::Id,
        Register::VERSION => Kind::Version,
        Register::TASK_PRIORITY => Kind::TaskPriority,
        Register::ARBITRATION_PRIORITY => Kind::ArbitrationPriority,
        Register::REMOTE_READ => Kind::RemoteRead,
        Register::PROCESSOR_PRIORITY => Kind::ProcessorPriority,
        Register::END_OF_INTERRUPT => Kind::EndOfInterrupt,
        Register::LOGICAL_DESTINATION => Kind::LogicalDestination,
        Register::DESTINATION_FORMAT => Kind::DestinationFormat,
        Register::SPURIOUS_VECTOR => Kind::SpuriousVector,
        Register::ERROR_STATUS => Kind::ErrorStatus,
        Register::ICR_LOW => Kind::IcrLow,
        Register::ICR_HIGH => Kind::IcrHigh,
        Register::TIMER_INITIAL_COUNT => Kind::TimerInitialCount,
        Register::TIMER_CURRENT_COUNT => Kind::TimerCurrentCount,
        Register::TIMER_DIVIDE => Kind::TimerDivide,
        Register::SELF_IPI => Kind::SelfIpi,
        _ => match register.offset() {
            0x100..=0x170 => Kind::InService(index),
            0x180..=0x1f0 => Kind::TriggerMode(index),
            0x200..=0x270 => Kind::InterruptRequest(index),
            _ => apic
                .entry_of(register)
                .map_or(Kind::Reserved, |(place, writable)| Kind::Entry { place, writable }),
        },
    };
    match (kind, apic.mode) {
        (Kind::SelfIpi, Mode::XApic)
        | (
            Kind::ArbitrationPriority | Kind::RemoteRead | Kind::DestinationFormat | Kind::IcrHigh,
            Mode::X2Apic,
        ) => Kind::Reserved,
        _ => kind,
    }
}

impl ApicModel {
    /// Reads a register at `now`. In x2APIC mode the ICR's low 32 bits; [`read_icr`](Self::read_icr) has all.
    ///
    /// In xAPIC mode a reserved register reads as zero and is noted as an error, and a write-only one reads as zero.
    /// Disabled by the base register, all read as ones: nobody answers.
    ///
    /// # Errors
    /// In x2APIC mode, if the register is reserved or write-only.
    pub fn read(&mut self, register: Register, now: Instant) -> Result<u32, Fault> {
        if !self.globally_enabled {
            return Ok(u32::MAX);
        }
        Ok(match kind(register, self) {
            Kind::Id => match self.mode {
                Mode::XApic => self.id.0 << 24,
                Mode::X2Apic => self.id.0,
            },
            Kind::Version => self.version(),
            Kind::TaskPriority => u32::from(self.task_priority),
            Kind::ProcessorPriority => u32::from(self.processor_priority()),
            Kind::LogicalDestination => match self.mode {
                Mode::XApic => u32::from(self.logical_destination) << 24,
                Mode::X2Apic => self.id.x2apic_logical(),
            },
            Kind::DestinationFormat => u32::from(self.destination_format) << 28 | 0x0fff_ffff,
            Kind::SpuriousVector => self.spurious_vector,
            Kind::InService(index) => self.isr.word(index),
            Kind::TriggerMode(index) => self.tmr.word(index),
            Kind::InterruptRequest(index) => self.irr.word(index),
            Kind::ErrorStatus => self.readable_errors,
            Kind::IcrLow => self.read_icr(now) as u32,
            Kind::IcrHigh => (self.icr >> 32) as u32,
            Kind::Entry { place, .. } => self.read_entry(place),
            Kind::TimerInitialCount => self.timer.initial_count,
            Kind::TimerCurrentCount => self.current_count(now),
            Kind::TimerDivide => self.timer.divide,
            Kind::ArbitrationPriority if self.features.generation == Generation::P6 => {
                u32::from(self.arbitration_priority())
            }
            Kind::ArbitrationPriority | Kind::RemoteRead => 0,
            Kind::EndOfInterrupt | Kind::SelfIpi => self.illegal(register, FaultCause::WriteOnly)?,
            Kind::Reserved => self.illegal(register, FaultCause::NoSuchRegister)?,
        })
    }

    /// Reads all 64 bits of the ICR at `now`, in either mode.
    pub fn read_icr(&self, now: Instant) -> u64 {
        let pending = self.mode == Mode::XApic && now < self.icr_idle_at();
        self.icr | if pending { ICR_DELIVERY_STATUS } else { 0 }
    }

    /// Writes a register at `now`. In x2APIC mode the ICR's upper half is written as zero; see
    /// [`write_icr`](Self::write_icr).
    ///
    /// In xAPIC mode a write to a reserved register is noted as an error, one to a read-only register or bit is ignored.
    /// Disabled by the base register, every write is: nobody listens.
    ///
    /// # Errors
    /// In x2APIC mode, if the register is reserved or read-only, or a reserved bit is set.
    pub fn write(&mut self, register: Register, value: u32, now: Instant) -> Result<Effect, Fault> {
        if !self.globally_enabled {
            return Ok(Effect::None);
        }
        match kind(register, self) {
            Kind::Id if self.mode == Mode::XApic && self.features.writable_id => {
                self.id = ApicId(value >> 24);
            }
            Kind::TaskPriority => {
                self.allow(register, value, 0xff)?;
                self.task_priority = value as u8;
            }
            Kind::EndOfInterrupt => {
                self.allow(register, value, 0)?;
                return Ok(self.end_of_interrupt());
            }
            Kind::LogicalDestination if self.mode == Mode::XApic => {
                self.logical_destination = (value >> 24) as u8;
            }
            Kind::DestinationFormat => self.destination_format = (value >> 28) as u8,
            Kind::SpuriousVector => {
                let suppress = if self.features.eoi_suppression { NO_BROADCAST } else { 0 };
                self.allow(register, value, SPURIOUS_VECTOR_BITS | suppress)?;
                self.settle_timer(now);
                let p6 = self.features.generation == Generation::P6;
                let ones = if p6 { SPURIOUS_VECTOR_ONES } else { 0 };
                self.spurious_vector = value & (SPURIOUS_VECTOR_BITS | suppress) | ones;
                if !self.is_enabled() {
                    self.mask_entries();
                }
            }
            Kind::ErrorStatus => {
                self.allow(register, value, 0)?;
                self.readable_errors = core::mem::take(&mut self.errors);
            }
            Kind::IcrLow => {
                let high = if self.mode == Mode::XApic { self.icr >> 32 << 32 } else { 0 };
                return self.command(high | u64::from(value), now);
            }
            Kind::IcrHigh => self.icr = u64::from(value & 0xff00_0000) << 32 | self.icr & 0xffff_ffff,
            Kind::Entry { place, writable } => {
                self.allow(register, value, writable | Self::ENTRY_READ_ONLY)?;
                self.settle_timer(now);
                self.write_entry(place, value & writable);
            }
            Kind::TimerInitialCount => self.write_initial_count(value, now),
            Kind::TimerDivide => {
                self.allow(register, value, DIVIDE_BITS)?;
                self.write_divide(value & DIVIDE_BITS, now);
            }
            Kind::SelfIpi => {
                self.allow(register, value, 0xff)?;
                let icr = Icr::shorthand(DeliveryMode::Fixed, value as u8, Shorthand::SelfOnly);
                return Ok(self.dispatch(icr));
            }
            Kind::Id
            | Kind::Version
            | Kind::ArbitrationPriority
            | Kind::RemoteRead
            | Kind::ProcessorPriority
            | Kind::LogicalDestination
            | Kind::InService(_)
            | Kind::TriggerMode(_)
            | Kind::InterruptRequest(_)
            | Kind::TimerCurrentCount => {
                if self.mode == Mode::X2Apic {
                    return Err(Fault { register, cause: FaultCause::ReadOnly });
                }
            }
            Kind::Reserved => {
                self.illegal(register, FaultCause::NoSuchRegister)?;
            }
        }
        Ok(Effect::None)
    }

    /// Writes all 64 bits of the ICR, as x2APIC does.
    ///
    /// # Errors
    /// In xAPIC mode, in which there is no such MSR; or if a reserved bit is set.
    pub fn write_icr(&mut self, value: u64, now: Instant) -> Result<Effect, Fault> {
        match self.mode {
            Mode::XApic => Err(Fault { register: Register::ICR_LOW, cause: FaultCause::NoSuchRegister }),
            Mode::X2Apic => self.command(value, now),
        }
    }

    /// A write of the ICR's low word, the one that sends. SDM, "Interrupt Command Register (ICR)".
    fn command(&mut self, value: u64, now: Instant) -> Result<Effect, Fault> {
        if self.mode == Mode::X2Apic {
            let reserved = value & Icr::reserved(Mode::X2Apic) & !ICR_DELIVERY_STATUS;
            if reserved != 0 {
                let cause = FaultCause::ReservedBits(reserved);
                return Err(Fault { register: Register::ICR_LOW, cause });
            }
        }
        self.icr = value & (0xffff_ffff << 32 | ICR_LOW_BITS);
        if self.mode == Mode::XApic {
            match self.icr_fault {
                Some(IcrFault::StuckUntil(end)) if now < end => return Ok(Effect::None),
                Some(IcrFault::StuckUntilRewritten) => self.icr_fault = None,
                _ => {}
            }
        }
        let Ok(icr) = Icr::decode(self.icr, self.mode) else { return Ok(Effect::None) };
        if icr.delivery_mode == DeliveryMode::LowestPriority && self.mode == Mode::X2Apic {
            self.raise_error(REDIRECTABLE);
            return Ok(Effect::None);
        }
        if !is_valid(&icr) {
            return Ok(Effect::None);
        }
        let effect = self.dispatch(icr);
        if matches!(effect, Effect::Dispatch(_)) && self.mode == Mode::XApic {
            self.icr_busy_until = self.icr_busy_until.max(now).plus(self.dispatch_time);
        }
        Ok(effect)
    }

    /// SDM, "Local APIC Version Register".
    fn version(&self) -> u32 {
        let version = match self.features.generation {
            Generation::P6 => P6_VERSION,
            Generation::Pentium4 => VERSION,
        };
        version | if self.features.eoi_suppression { SUPPRESSES } else { 0 }
    }

    pub(super) const fn checks_focus(&self) -> bool {
        self.spurious_vector & NO_FOCUS == 0
    }

    pub(super) const fn suppresses_broadcasts(&self) -> bool {
        self.spurious_vector & NO_BROADCAST != 0
    }

    fn dispatch(&mut self, icr: Icr) -> Effect {
        if icr.delivery_mode.has_interrupt_vector() && icr.vector < 16 {
            self.raise_error(SENT_ILLEGAL_VECTOR);
            return Effect::None;
        }
        Effect::Dispatch(Command { icr, mode: self.mode })
    }

    /// Faults in x2APIC mode; in xAPIC mode notes the error if there is no such register, and reads as zero.
    fn illegal(&mut self, register: Register, cause: FaultCause) -> Result<u32, Fault> {
        if self.mode == Mode::X2Apic {
            return Err(Fault { register, cause });
        }
        if cause == FaultCause::NoSuchRegister {
            self.raise_error(ILLEGAL_REGISTER);
        }
        Ok(0)
    }

    /// Faults in x2APIC mode if `value` has other bits than these.
    fn allow(&self, register: Register, value: u32, bits: u32) -> Result<(), Fault> {
        let reserved = value & !bits;
        if self.mode == Mode::X2Apic && reserved != 0 {
            return Err(Fault { register, cause: FaultCause::ReservedBits(u64::from(reserved)) });
        }
        Ok(())
    }
}

/// Whether the manual lists the combination as valid. SDM, "Interrupt Command Register (ICR)", valid combinations
/// for the Pentium 4 and later.
fn is_valid(icr: &Icr) -> bool {
    let fixed = icr.delivery_mode == DeliveryMode::Fixed;
    let allowed_by_shorthand = match icr.shorthand {
        Shorthand::SelfOnly | Shorthand::All => fixed,
        Shorthand::None | Shorthand::AllButSelf => true,
    };
    // INIT level de-assert: ignored since the Pentium 4.
    let deasserts_init = icr.delivery_mode == DeliveryMode::Init
        && icr.level == Level::Deassert
        && icr.trigger == Trigger::Level;
    allowed_by_shorthand && !deasserts_init
}
