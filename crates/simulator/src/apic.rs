//! The simulated local APIC: a pure state machine, to the letter of the vendor manuals.
//!
//! It knows one APIC: its registers, what it accepts, what it offers to its CPU. It knows neither CPUs nor
//! schedules nor other APICs; time is passed in. A write that sends something returns a [`Command`], and
//! whoever plays the bus asks each APIC whether it [is addressed](ApicModel::is_addressed_by) and hands it the
//! [`Message`].
//!
//! Sources: Intel SDM, volume 3A, chapter "Advanced Programmable Interrupt Controller (APIC)", cited by
//! section title; AMD APM, volume 2, where it says more. Where both leave a choice, this model chooses:
//!
//! * While software-disabled, pending interrupts are held and not offered to the CPU until it is enabled again
//!   (QEMU does the same; Bochs and KVM offer them).
//! * An NMI that arrives in wait-for-SIPI state stays latched and is taken right after start-up.
//! * An INIT clears the error status, the NMI latch and the blocking of NMIs.
//! * An ICR write whose combination of fields the manual calls invalid, or whose delivery mode is reserved, sends
//!   nothing. Lowest priority is reserved on x2APIC.
//! * A write of the ICR while a dispatch is in progress is accepted and extends it; the earlier message is
//!   already under way.
//! * A lowest-priority message goes to the one with the lowest processor priority of those addressed that would
//!   accept it, and among equals to the lowest identifier. There is no focus processor (as since the Pentium 4).
//! * A write of a local-vector-table entry with a vector below 16 and fixed delivery, masked or not, sets "received
//!   illegal vector" in the error status (the SDM allows it).
//! * Logical destination 0xff is the broadcast in xAPIC mode, and reaches also an APIC whose logical-destination
//!   register is zero.
//! * The former delivery-status bit is ignored in x2APIC writes; the other reserved bits fault.
//!
//! Not modelled: the timer's counting (ticks are the machine's; the count registers hold what was written, the
//! current count is zero), `ExtINT`, the pins, the arbitration and remote-read registers (zero, as on everything since
//! the Pentium 4), changes of mode, EOI broadcasts to I/O APICs.

mod acceptance;
mod registers;
mod vectors;

use core::fmt;
use core::hash::{Hash, Hasher};
use core::time::Duration;

use smpcall_local_apic::{ApicId, DeliveryMode, Icr, Mode, Register, Trigger};
use smpcall_machine::Instant;

pub use vectors::Vectors;

/// What a register write caused outside the APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A message goes out.
    Dispatch(Command),
    /// An end of interrupt: the vector whose in-service bit it cleared, if any was in service.
    EndOfInterrupt(Option<u8>),
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
    /// It is pending now (or, for INIT and start-up, was carried out).
    Accepted,
    /// One like it was pending already: the two are one.
    Merged,
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
}

/// A register access that raises a general-protection exception, which only x2APIC mode does (and an MSR
/// access in xAPIC mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Which register.
    pub register: Register,
    /// Why.
    pub cause: FaultCause,
}

/// Why a register access raises a general-protection exception.
/// Source: SDM, "x2APIC Register Address Space" and "Reserved Bit Checking".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultCause {
    /// No such register in this mode.
    NoSuchRegister,
    /// It cannot be written.
    ReadOnly,
    /// It cannot be read.
    WriteOnly,
    /// Reserved bits were set: these.
    ReservedBits(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "general-protection exception at MSR {:#x}: ", self.register.msr())?;
        match self.cause {
            FaultCause::NoSuchRegister => f.write_str("no such register in this mode"),
            FaultCause::ReadOnly => f.write_str("it is read-only"),
            FaultCause::WriteOnly => f.write_str("it is write-only"),
            FaultCause::ReservedBits(bits) => write!(f, "reserved bits {bits:#x} were set"),
        }
    }
}

impl core::error::Error for Fault {}

/// How the delivery-status bit of the ICR misbehaves. No effect in x2APIC mode, which has no such bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcrFault {
    /// It is stuck at "pending" until then; what is written meanwhile is not sent.
    StuckUntil(Instant),
    /// It is stuck at "pending" until the low word is written again; that command is sent.
    StuckUntilRewritten,
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct ApicModel {
    id: ApicId,
    mode: Mode,
    task_priority: u8,
    /// Bits 31..24 of the logical-destination register. xAPIC only.
    logical_destination: u8,
    /// Bits 31..28 of the destination-format register. xAPIC only.
    destination_format: u8,
    spurious_vector: u32,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    icr: u64,
    /// Until when the delivery status says "pending".
    icr_busy_until: Instant,
    icr_fault: Option<IcrFault>,
    /// How long the delivery status says "pending" after a write.
    dispatch_time: Duration,
    /// Errors since the last write of the error-status register, which makes them readable.
    errors: u32,
    readable_errors: u32,
    lvt: [u32; 7],
    timer_initial_count: u32,
    timer_divide: u32,
    nmi_pending: bool,
    nmi_in_progress: bool,
    waiting_for_start_up: bool,
}

impl ApicModel {
    /// An APIC after power-up: disabled by software, and not waiting for a start-up message (the boot CPU's; for
    /// another one's, hand it an INIT). Dispatch takes no time.
    ///
    /// # Panics
    /// If `id` means "all" in this mode or is too large for it.
    pub fn new(id: u32, mode: Mode) -> Self {
        assert!(id < mode.broadcast(), "{mode} cannot have the identifier {id:#x}");
        Self {
            id: ApicId(id),
            mode,
            task_priority: 0,
            logical_destination: 0,
            destination_format: 0xf,
            spurious_vector: 0xff,
            irr: Vectors::EMPTY,
            isr: Vectors::EMPTY,
            tmr: Vectors::EMPTY,
            icr: 0,
            icr_busy_until: Instant::default(),
            icr_fault: None,
            dispatch_time: Duration::ZERO,
            errors: 0,
            readable_errors: 0,
            lvt: [registers::LVT_MASKED; 7],
            timer_initial_count: 0,
            timer_divide: 0,
            nmi_pending: false,
            nmi_in_progress: false,
            waiting_for_start_up: false,
        }
    }

    /// Its identifier.
    pub const fn id(&self) -> ApicId {
        self.id
    }

    /// Its mode.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// How long the delivery status says "pending" after a write of the ICR (xAPIC only). The `MultiProcessor`
    /// Specification, B-3, expects 20 microseconds at the most.
    pub fn set_dispatch_time(&mut self, time: Duration) {
        self.dispatch_time = time;
    }

    /// Makes the delivery status misbehave from now on; `None` heals it.
    pub fn set_icr_fault(&mut self, fault: Option<IcrFault>) {
        self.icr_fault = fault;
    }

    /// When the delivery status will say "idle", if nothing else is written before. The far end of the clock if it
    /// never will by itself; in the past if it does already. In x2APIC mode the start of the clock.
    pub fn icr_idle_at(&self) -> Instant {
        match (self.mode, self.icr_fault) {
            (Mode::X2Apic, _) => Instant::default(),
            (Mode::XApic, None) => self.icr_busy_until,
            (Mode::XApic, Some(IcrFault::StuckUntil(end))) => end.max(self.icr_busy_until),
            (Mode::XApic, Some(IcrFault::StuckUntilRewritten)) => Instant::from_nanos(u64::MAX),
        }
    }

    /// Whether it is enabled by software. SDM, "Spurious Interrupt", bit 8 of the register.
    pub const fn is_enabled(&self) -> bool {
        self.spurious_vector & registers::SOFTWARE_ENABLE != 0
    }

    /// Whether the CPU waits for a start-up message.
    pub const fn is_waiting_for_start_up(&self) -> bool {
        self.waiting_for_start_up
    }

    /// The pending vectors: interrupt requests that were accepted and not yet taken.
    pub const fn irr(&self) -> &Vectors {
        &self.irr
    }

    /// The vectors in service: taken and not yet ended.
    pub const fn isr(&self) -> &Vectors {
        &self.isr
    }

    /// The vectors whose last accepted interrupt was level-triggered.
    pub const fn tmr(&self) -> &Vectors {
        &self.tmr
    }

    /// The errors since the last write of the error-status register, with the bits of that register.
    pub const fn errors(&self) -> u32 {
        self.errors
    }

    /// Feeds everything that its future depends on into `state`. Two APICs that are fed the same things behave
    /// the same from `now` on: a moment in the past counts as no moment at all, one in the future as how far it is.
    pub fn hash_state(&self, state: &mut impl Hasher, now: Instant) {
        let fault = self.icr_fault.map(|fault| match fault {
            IcrFault::StuckUntil(end) => (0, end.since(now)),
            IcrFault::StuckUntilRewritten => (1, Duration::ZERO),
        });
        let identity = (self.id, self.mode, self.dispatch_time, self.timer_initial_count, self.timer_divide);
        let addressing = (self.task_priority, self.logical_destination, self.destination_format);
        let vectors = (&self.irr, &self.isr, &self.tmr, self.spurious_vector, &self.lvt);
        let sending = (self.icr, self.icr_busy_until.since(now), fault, self.errors, self.readable_errors);
        let cpu = (self.nmi_pending, self.nmi_in_progress, self.waiting_for_start_up);
        (identity, addressing, vectors, sending, cpu).hash(state);
    }
}

#[cfg(test)]
mod tests;
