//! A driver for the local APIC: xAPIC and x2APIC behind one register-access trait.
//!
//! It knows registers, the Interrupt Command Register, routing, how long to wait for the controller, and which
//! interrupts are to be acknowledged. It knows no cross-CPU calls: those meet it in a machine.
//!
//! * [`Register`], [`Mode`], [`ApicId`], [`Vector`]: the terms of the manuals.
//! * [`Access`]: how registers are reached; [`Mmio`] and `Msr` (on x86-64) are the real ones.
//! * [`Icr`]: the Interrupt Command Register, encoded and decoded.
//! * [`Routing`], [`Topology`]: how CPUs are addressed; [`LogicalModel`]: what an xAPIC is programmed with for that.
//! * [`LocalApic`]: enabling, sending, starting CPUs, end of interrupt, and the registers one by one.
//! * [`IcrPolicy`]: how others have waited for the ICR, beside how this waits.
//! * [`InService`]: the right to write one end of interrupt.
//! * [`ApicRecord`], [`InertGates`], [`Drained`]: the hand-over to a capture kernel.
//! * [`ApicBase`]: the states of an APIC, and the changes between them that are legal.
//! * [`IoApic`], [`Pic`]: as much of the other controllers as that and `ExtINT` need.
//!
//! Sources are cited by section title, because the numbers of the chapters moved between editions: "SDM" is the
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, chapter "Advanced Programmable
//! Interrupt Controller (APIC)"; "MP specification" is Intel's `MultiProcessor` Specification 1.4; report 002 is the
//! kdump patch series of 2007 that bounded the wait for the Interrupt Command Register.
#![no_std]

mod access;
mod base;
mod driver;
mod errors;
mod hand_over;
mod icr;
mod idle;
mod in_service;
mod inert_gates;
mod io_apic;
mod local_vectors;
mod logical;
#[cfg(target_arch = "x86_64")]
mod msr;
mod pic;
mod policy;
mod register;
mod routing;
mod send;
mod shorthand;
mod spurious;
mod start_up;
#[cfg(test)]
mod testing;
mod timer;
mod topology;
mod vectors;
mod version;

#[cfg(target_arch = "x86_64")]
pub use access::Msr;
pub use access::{Access, Mmio};
pub use base::{ApicBase, ApicState, BaseRegister, IllegalTransition};
pub use driver::{EnableError, LocalApic};
pub use errors::Errors;
pub use hand_over::{ApicRecord, Drained};
pub use icr::{
    DeliveryMode, DestinationMode, DestinationTooWide, Icr, Level, ReservedDeliveryMode, Shorthand, Trigger,
};
pub use idle::{DISPATCH_BOUND, PATIENT_BOUND};
pub use in_service::InService;
pub use inert_gates::InertGates;
pub use io_apic::{IoApic, IoApicAccess, IoApicMmio, IoDelivery, NoSuchPin, Redirection, ReservedDelivery};
pub use local_vectors::{LocalDelivery, LocalSource, LocalVector, LocalVectorError, Polarity};
pub use logical::LogicalModel;
#[cfg(target_arch = "x86_64")]
pub use msr::ApicMsrs;
#[cfg(target_arch = "x86_64")]
pub use pic::Ports;
pub use pic::{Pic, PicInService, PortAccess};
pub use policy::{IcrPolicy, Sender, UnderPolicy, UnknownIcrPolicy};
pub use register::{ApicId, Mode, Register, Vector};
pub use routing::{Addressing, Routing, SetCost, UnknownRouting};
pub use send::{Interrupt, Prepared, Sent};
pub use spurious::Spurious;
pub use start_up::{StartUp, StartUpDelays, StartUpError, StartUpStep};
pub use timer::{DeadlineRegister, TimerDivide, TimerMode};
pub use topology::{RoutingError, Topology};
pub use vectors::Vectors;
pub use version::{Priority, Version};
