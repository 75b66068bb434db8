//! The error-status register. Source: SDM, "Error Handling".

use core::fmt;

use smpcall_machine::Machine;

use crate::{Access, LocalApic, Register};

/// Errors that an APIC has noticed: any of eight.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Errors(u8);

impl Errors {
    /// None.
    pub const NONE: Self = Self(0);
    /// A message that it sent had a wrong checksum. P6 and Pentium only, as the next three.
    pub const SEND_CHECKSUM: Self = Self(1 << 0);
    /// A message that it received had a wrong checksum.
    pub const RECEIVE_CHECKSUM: Self = Self(1 << 1);
    /// A message that it sent was accepted by nobody.
    pub const SEND_ACCEPT: Self = Self(1 << 2);
    /// A message that it received was accepted by nobody, itself included.
    pub const RECEIVE_ACCEPT: Self = Self(1 << 3);
    /// It was to send a lowest-priority message and does not support them.
    pub const REDIRECTABLE_IPI: Self = Self(1 << 4);
    /// It was to send a vector 0..=15.
    pub const SEND_ILLEGAL_VECTOR: Self = Self(1 << 5);
    /// It received a vector 0..=15, from another APIC or from its own local vector table.
    pub const RECEIVE_ILLEGAL_VECTOR: Self = Self(1 << 6);
    /// A register that does not exist was accessed. xAPIC only: on x2APIC that faults.
    pub const ILLEGAL_REGISTER: Self = Self(1 << 7);

    const NAMES: [&str; 8] = [
        "send checksum",
        "receive checksum",
        "send accept",
        "receive accept",
        "redirectable IPI",
        "send illegal vector",
        "receive illegal vector",
        "illegal register",
    ];

    /// The errors that these bits of the register stand for.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits as u8)
    }

    /// The register's bits.
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are among them.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (bit, name) in Self::NAMES.into_iter().enumerate() {
            if self.0 & 1 << bit != 0 {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// The errors since the last time, which are forgotten with that, and the error interrupt is armed again.
    ///
    /// The register is written before it is read: the write makes readable what happened since the last one. With
    /// interrupts disabled, so that an error handler does not take them in between. Not on an 82489DX, which has no such
    /// register.
    pub fn take_errors(&self) -> Errors {
        self.access.write(Register::ERROR_STATUS, 0);
        Errors::from_bits(self.access.read(Register::ERROR_STATUS))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Mode;
    use crate::testing::{Recorder, driver};
    use std::string::ToString;

    #[test]
    fn errors_are_named() {
        let errors = Errors::from_bits(0x60);
        assert!(errors.contains(Errors::SEND_ILLEGAL_VECTOR) && !errors.contains(Errors::ILLEGAL_REGISTER));
        assert_eq!(errors.to_string(), "send illegal vector, receive illegal vector");
        assert_eq!(Errors::NONE.to_string(), "none");
        assert_eq!(Errors::from_bits(0xffff_ff80), Errors::ILLEGAL_REGISTER);
    }

    #[test]
    fn the_register_is_written_before_it_is_read() {
        let recorder = Recorder::new(Mode::X2Apic);
        recorder.set(Register::ERROR_STATUS, 0x80);
        // What was readable before belongs to the time before: the write replaces it.
        assert_eq!(driver(&recorder).take_errors(), Errors::NONE);
        assert_eq!(recorder.written(), [(Register::ERROR_STATUS, 0)]);
    }
}
