//! The registers as software sees them: what reads return, what writes do, what faults.

use smpcall_local_apic::{DeliveryMode, Icr, Level, Mode, Register, Shorthand, Trigger};
use smpcall_machine::Instant;

use super::{ApicModel, Command, Effect, Fault, FaultCause, IcrFault};

pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;
/// Vector, software enable, focus checking. The version register declares no suppression of EOI broadcasts.
const SPURIOUS_VECTOR_BITS: u32 = 0x3ff;

/// The mask bit of an entry of the local vector table.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// The delivery mode of an entry; zero is "fixed", the only one of those that have no such field.
const LVT_DELIVERY: u32 = 0x700;
/// Where [`lvt_entry`] puts the error entry.
pub(super) const LVT_ERROR_INDEX: usize = 6;
/// Delivery status (12) and remote IRR (14) of an entry: read-only, ignored when written.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// Version 0x14 (an integrated APIC), seven entries in the local vector table. SDM, "Local APIC Version Register".
const VERSION: u32 = 0x14 | 6 << 16;

/// SDM, "Error Handling": the bits of the error-status register.
pub(super) const SENT_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(super) const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;

/// The writable bits of the ICR's low word; the status bit is read-only.
const ICR_LOW_BITS: u64 = 0x000c_cfff;
const ICR_DELIVERY_STATUS: u64 = Icr::SEND_PENDING as u64;
const TIMER_DIVIDE_BITS: u32 = 0b1011;

/// A register, sorted by what accessing it does.
#[derive(Clone, Copy)]
enum Kind {
    Id,
    Version,
    TaskPriority,
    /// Present in the map but not supported by anything since the Pentium 4; not on x2APIC.
    Unsupported,
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
    Lvt(usize),
    TimerInitialCount,
    TimerCurrentCount,
    TimerDivide,
    SelfIpi,
    Reserved,
}

/// The index of an entry in the local vector table, and the bits of it that can be written.
fn lvt_entry(register: Register) -> Option<(usize, u32)> {
    const VECTOR: u32 = 0xff;
    const PIN: u32 = 1 << 13 | 1 << 15;
    Some(match register {
        Register::LVT_CMCI => (0, VECTOR | LVT_DELIVERY | LVT_MASKED),
        Register::LVT_TIMER => (1, VECTOR | LVT_MASKED | 0b11 << 17),
        Register::LVT_THERMAL => (2, VECTOR | LVT_DELIVERY | LVT_MASKED),
        Register::LVT_PERFORMANCE => (3, VECTOR | LVT_DELIVERY | LVT_MASKED),
        Register::LVT_LINT0 => (4, VECTOR | LVT_DELIVERY | PIN | LVT_MASKED),
        Register::LVT_LINT1 => (5, VECTOR | LVT_DELIVERY | PIN | LVT_MASKED),
        Register::LVT_ERROR => (LVT_ERROR_INDEX, VECTOR | LVT_MASKED),
        _ => return None,
    })
}

/// SDM, "Local APIC Register Address Map" and "x2APIC Register Address Space".
fn kind(register: Register, mode: Mode) -> Kind {
    let index = register.offset() % 0x80 / 0x10;
    let kind = match register {
        Register::ID => Kind::Id,
        Register::VERSION => Kind::Version,
        Register::TASK_PRIORITY => Kind::TaskPriority,
        Register::ARBITRATION_PRIORITY | Register::REMOTE_READ => Kind::Unsupported,
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
            _ => lvt_entry(register).map_or(Kind::Reserved, |(index, _)| Kind::Lvt(index)),
        },
    };
    match (kind, mode) {
        (Kind::SelfIpi, Mode::XApic)
        | (Kind::Unsupported | Kind::DestinationFormat | Kind::IcrHigh, Mode::X2Apic) => Kind::Reserved,
        _ => kind,
    }
}

impl ApicModel {
    /// Reads a register at `now`. In x2APIC mode the ICR's low 32 bits; [`read_icr`](Self::read_icr) has all.
    ///
    /// In xAPIC mode a reserved register reads as zero and is noted as an error, and a write-only one reads as zero.
    ///
    /// # Errors
    /// In x2APIC mode, if the register is reserved or write-only.
    pub fn read(&mut self, register: Register, now: Instant) -> Result<u32, Fault> {
        Ok(match kind(register, self.mode) {
            Kind::Id => match self.mode {
                Mode::XApic => self.id.0 << 24,
                Mode::X2Apic => self.id.0,
            },
            Kind::Version => VERSION,
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
            Kind::Lvt(index) => self.lvt[index],
            Kind::TimerInitialCount => self.timer_initial_count,
            Kind::TimerDivide => self.timer_divide,
            Kind::Unsupported | Kind::TimerCurrentCount => 0,
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
    ///
    /// # Errors
    /// In x2APIC mode, if the register is reserved or read-only, or a reserved bit is set.
    pub fn write(&mut self, register: Register, value: u32, now: Instant) -> Result<Effect, Fault> {
        match kind(register, self.mode) {
            Kind::TaskPriority => {
                self.allow(register, value, 0xff)?;
                self.task_priority = value as u8;
            }
            Kind::EndOfInterrupt => {
                self.allow(register, value, 0)?;
                return Ok(Effect::EndOfInterrupt(self.end_of_interrupt()));
            }
            Kind::LogicalDestination if self.mode == Mode::XApic => {
                self.logical_destination = (value >> 24) as u8;
            }
            Kind::DestinationFormat => self.destination_format = (value >> 28) as u8,
            Kind::SpuriousVector => {
                self.allow(register, value, SPURIOUS_VECTOR_BITS)?;
                self.spurious_vector = value & SPURIOUS_VECTOR_BITS;
                if !self.is_enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
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
            Kind::Lvt(index) => {
                let writable = lvt_entry(register).map_or(0, |(_, bits)| bits);
                self.allow(register, value, writable | LVT_READ_ONLY)?;
                self.lvt[index] = value & writable | if self.is_enabled() { 0 } else { LVT_MASKED };
                if self.lvt[index] & LVT_DELIVERY == 0 && (value as u8) < 16 {
                    self.raise_error(RECEIVED_ILLEGAL_VECTOR);
                }
            }
            Kind::TimerInitialCount => self.timer_initial_count = value,
            Kind::TimerDivide => {
                self.allow(register, value, TIMER_DIVIDE_BITS)?;
                self.timer_divide = value & TIMER_DIVIDE_BITS;
            }
            Kind::SelfIpi => {
                self.allow(register, value, 0xff)?;
                let icr = Icr::shorthand(DeliveryMode::Fixed, value as u8, Shorthand::SelfOnly);
                return Ok(self.dispatch(icr));
            }
            Kind::Id
            | Kind::Version
            | Kind::Unsupported
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
        if !is_valid(&icr, self.mode) {
            return Ok(Effect::None);
        }
        let effect = self.dispatch(icr);
        if matches!(effect, Effect::Dispatch(_)) && self.mode == Mode::XApic {
            self.icr_busy_until = self.icr_busy_until.max(now).plus(self.dispatch_time);
        }
        Ok(effect)
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
fn is_valid(icr: &Icr, mode: Mode) -> bool {
    let fixed = icr.delivery_mode == DeliveryMode::Fixed;
    let allowed_by_shorthand = match icr.shorthand {
        Shorthand::SelfOnly | Shorthand::All => fixed,
        Shorthand::None | Shorthand::AllButSelf => true,
    };
    let lowest_priority_exists = mode == Mode::XApic || icr.delivery_mode != DeliveryMode::LowestPriority;
    // INIT level de-assert: ignored since the Pentium 4.
    let deasserts_init = icr.delivery_mode == DeliveryMode::Init
        && icr.level == Level::Deassert
        && icr.trigger == Trigger::Level;
    allowed_by_shorthand && lowest_priority_exists && !deasserts_init
}
