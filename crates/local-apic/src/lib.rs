//! A driver for the local APIC: xAPIC and x2APIC behind one register-access trait.
//!
//! It knows registers, the Interrupt Command Register, routing, how long to wait for the controller, and which
//! interrupts are to be acknowledged. It knows no cross-CPU calls: those meet it in a machine.
//!
//! * [`Register`], [`Mode`], [`ApicId`], [`Vector`]: the terms of the manuals.
//! * [`Access`]: how registers are reached; [`Mmio`] and `Msr` (on x86-64) are the real ones.
//! * [`Icr`]: the Interrupt Command Register, encoded and decoded.
//! * [`Routing`], [`Topology`]: how CPUs are addressed.
//! * [`LocalApic`]: enabling, sending, end of interrupt.
//! * [`InService`]: the right to write one end of interrupt.
//!
//! Sources are cited by section title, because the numbers of the chapters moved between editions: "SDM" is the
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, chapter "Advanced Programmable
//! Interrupt Controller (APIC)"; "MP specification" is Intel's `MultiProcessor` Specification 1.4; report 002 is the
//! kdump patch series of 2007 that bounded the wait for the Interrupt Command Register.
#![no_std]

mod access;
mod driver;
mod icr;
mod idle;
mod in_service;
mod register;
mod routing;
mod send;

#[cfg(target_arch = "x86_64")]
pub use access::Msr;
pub use access::{Access, Mmio};
pub use driver::{EnableError, LocalApic};
pub use icr::{
    DeliveryMode, DestinationMode, DestinationTooWide, Icr, Level, ReservedDeliveryMode, Shorthand, Trigger,
};
pub use idle::{DISPATCH_BOUND, PATIENT_BOUND};
pub use in_service::InService;
pub use register::{ApicId, Mode, Register, Vector};
pub use routing::{Routing, RoutingError, Topology, UnknownRouting};
pub use send::{Interrupt, Sent};
