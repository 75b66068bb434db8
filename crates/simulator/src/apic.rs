//! The simulated local APIC: a pure state machine, to the letter of the vendor manuals.
//!
//! It knows one APIC: its registers, what it accepts, what it offers to its CPU. It knows neither CPUs nor
//! schedules nor other APICs; time is passed in. A write that sends something returns a [`Command`], and
//! whoever plays the bus asks each APIC whether it [is addressed](ApicModel::is_addressed_by) and hands it the
//! [`Message`]. Whoever plays the clock asks [when the timer fires](ApicModel::timer_fires_at); whoever plays the
//! board drives [the pins](ApicModel::raise_local).
//!
//! Sources: Intel SDM, volume 3A, chapter "Advanced Programmable Interrupt Controller (APIC)", cited by
//! section title; AMD APM, volume 2, where it says more. Where both leave a choice, this model chooses:
//!
//! * While software-disabled, pending interrupts are held and not offered to the CPU until it is enabled again
//!   (QEMU does the same; Bochs and KVM offer them).
//! * An NMI that arrives in wait-for-SIPI state stays latched and is taken right after start-up.
//! * An INIT clears the error status, the NMI latch and the blocking of NMIs.
//! * An ICR write whose combination of fields the manual calls invalid, or whose delivery mode is reserved, sends
//!   nothing. Lowest priority is reserved on x2APIC, and noted as a redirectable IPI in the error status.
//! * A write of the ICR while a dispatch is in progress is accepted and extends it; the earlier message is
//!   already under way.
//! * A lowest-priority message goes to the one with the lowest processor priority of those addressed that would
//!   accept it, and among equals to the lowest identifier: no identifier rotates.
//! * A write of a local-vector-table entry with a vector below 16 and fixed delivery, masked or not, sets "received
//!   illegal vector" in the error status (the SDM allows it).
//! * Logical destination 0xff is the broadcast in xAPIC mode, and reaches also an APIC whose logical-destination
//!   register is zero. Cluster 15 of the cluster model is nobody's: the manual has clusters 0 to 14.
//! * An APIC in xAPIC mode that a sender in x2APIC mode addresses sees the low eight bits of the destination.
//! * The former delivery-status bit is ignored in x2APIC writes; the other reserved bits fault.
//! * What is pending, in service and programmed is lost when the APIC is disabled by its base register. Its page is
//!   answered by nobody then: reads give ones.
//! * The timer counts nanoseconds of the model's clock, divided as configured; the time-stamp counter is that clock.
//!   A change of the divisor lets it go on from the count that it has.
//!
//! Not modelled: the remote-read register (zero, as on everything since the Pentium 4), arbitration identifiers, the
//! electrical polarity of the pins (asserted is asserted), and what firmware does in an SMI.

mod acceptance;
mod addressing;
mod base;
mod fault;
mod features;
mod local;
mod message;
mod priority;
mod registers;
mod timer;
mod vectors;

use core::hash::{Hash, Hasher};
use core::time::Duration;

use smpcall_local_apic::{ApicId, Mode};
use smpcall_machine::Instant;

use timer::Timer;

pub use base::{GlobalState, PHYSICAL_ADDRESS_BITS};
pub use fault::{BaseFault, Fault, FaultCause};
pub use features::{Features, Generation};
pub use local::LocalSource;
pub use message::{Acceptance, Command, Effect, Message, Rejection};
pub use priority::Acknowledged;
pub use vectors::Vectors;

/// How the delivery-status bit of the ICR misbehaves. No effect in x2APIC mode, which has no such bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcrFault {
    /// It is stuck at "pending" until then; what is written meanwhile is not sent.
    StuckUntil(Instant),
    /// It is stuck at "pending" until the low word is written again; that command is sent.
    StuckUntilRewritten,
}

/// One local APIC.
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Clone, Debug)]
pub struct ApicModel {
    id: ApicId,
    /// xAPIC mode also while disabled by the base register.
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
    /// Local sources whose interrupt found no room, by their place in the local vector table.
    held: u8,
    timer: Timer,
    nmi_pending: bool,
    nmi_in_progress: bool,
    waiting_for_start_up: bool,
    /// A message of an I/O APIC asks for an interrupt of the external controller.
    ext_int: bool,
    /// Whether the pins LINT0 and LINT1 are asserted.
    pins: [bool; 2],
    /// What hardware gave it: 32 bits, of which xAPIC mode has the low eight.
    initial_id: u32,
    features: Features,
    /// Cleared only by the base register.
    globally_enabled: bool,
    /// Whether this is the boot CPU's.
    bootstrap: bool,
    /// Where the base register puts the page of registers.
    base_address: u64,
    smis: u64,
}

impl ApicModel {
    /// An APIC after power-up: disabled by software, and not waiting for a start-up message (the boot CPU's; for
    /// another one's, hand it an INIT). Dispatch takes no time.
    ///
    /// # Panics
    /// If `id` means "all" in this mode or is too large for it.
    pub fn new(id: u32, mode: Mode) -> Self {
        Self::with_features(id, mode, Features::CURRENT)
    }

    /// As [`new`](Self::new), of another implementation.
    ///
    /// # Panics
    /// As for [`new`](Self::new); or if this generation has no such mode.
    pub fn with_features(id: u32, mode: Mode, features: Features) -> Self {
        assert!(id < mode.broadcast(), "{mode} cannot have the identifier {id:#x}");
        let has_mode = mode == Mode::XApic || features.generation != Generation::P6;
        assert!(has_mode, "the P6 family has no x2APIC mode");
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
            lvt: [local::MASKED; 7],
            held: 0,
            timer: Timer::default(),
            nmi_pending: false,
            nmi_in_progress: false,
            waiting_for_start_up: false,
            ext_int: false,
            pins: [false; 2],
            initial_id: id,
            features,
            globally_enabled: true,
            bootstrap: false,
            base_address: base::DEFAULT_ADDRESS,
            smis: 0,
        }
    }

    /// In what it differs from others.
    pub const fn features(&self) -> Features {
        self.features
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

    /// As [`set_icr_fault`](Self::set_icr_fault); if it is stuck until a moment already, until the later one.
    pub(crate) fn extend_icr_fault(&mut self, fault: IcrFault) {
        self.icr_fault = Some(match (self.icr_fault, fault) {
            (Some(IcrFault::StuckUntil(end)), IcrFault::StuckUntil(other)) => {
                IcrFault::StuckUntil(end.max(other))
            }
            _ => fault,
        });
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

    /// The bus tells the sender that its last command found no room at a receiver ([`Acceptance::Retry`]) and will be
    /// offered again at `at`: until after then the delivery status says "pending" (xAPIC only). To be told anew each time;
    /// when the message is accepted there is nothing to tell. SDM, "Interrupt Command Register (ICR)", delivery status.
    pub fn offered_again_at(&mut self, at: Instant) {
        self.icr_busy_until = self.icr_busy_until.max(at.plus(Duration::from_nanos(1)));
    }

    /// The bus tells the sender that nothing of it is [offered again](Self::offered_again_at) any more: the delivery status says
    /// "idle" from `at` on.
    pub fn offered_no_more(&mut self, at: Instant) {
        self.icr_busy_until = self.icr_busy_until.min(at);
    }

    /// Whether an edge at this pin is an INIT. SDM, "Local Vector Table", delivery mode.
    pub fn is_init_pin(&self, source: LocalSource) -> bool {
        self.globally_enabled && self.delivers_init(source)
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

    /// How many system-management interrupts it has accepted. Statistics: nothing depends on it.
    pub const fn smis(&self) -> u64 {
        self.smis
    }

    /// Feeds everything that its future depends on into `state`. Two APICs that are fed the same things behave
    /// the same from `now` on: a moment in the past counts as no moment at all, one in the future as how far it is.
    pub fn hash_state(&self, state: &mut impl Hasher, now: Instant) {
        let fault = self.icr_fault.map(|fault| match fault {
            IcrFault::StuckUntil(end) => (0, end.since(now)),
            IcrFault::StuckUntilRewritten => (1, Duration::ZERO),
        });
        let identity = (self.id, self.mode, self.dispatch_time, self.initial_id, self.base_address);
        let addressing = (self.task_priority, self.logical_destination, self.destination_format);
        let vectors = (&self.irr, &self.isr, &self.tmr, self.spurious_vector, &self.lvt);
        let sending = (self.icr, self.icr_busy_until.since(now), fault, self.errors, self.readable_errors);
        let cpu = [
            self.nmi_pending,
            self.nmi_in_progress,
            self.waiting_for_start_up,
            self.ext_int,
            self.pins[0],
            self.pins[1],
            self.globally_enabled,
            self.bootstrap,
            self.features.eoi_suppression,
            self.features.writable_id,
            self.features.tsc_deadline,
            self.features.generation == Generation::P6,
        ];
        let cpu = cpu.into_iter().fold(u32::from(self.held), |bits, bit| bits << 1 | u32::from(bit));
        (identity, addressing, vectors, sending, cpu).hash(state);
        self.hash_timer(state, now);
    }
}

#[cfg(test)]
mod tests;
