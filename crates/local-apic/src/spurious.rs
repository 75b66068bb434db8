//! The spurious-interrupt vector register: the software enable, and the vector of interrupts that disappear.
//!
//! Source: SDM, "Spurious Interrupt" and "Local APIC State After It Has Been Software Disabled".

use smpcall_machine::Machine;

use crate::{Access, LocalApic, Register, Vector};

const ENABLE: u32 = 1 << 8;
const NO_FOCUS_CHECK: u32 = 1 << 9;
const NO_EOI_BROADCAST: u32 = 1 << 12;

/// The content of the spurious-interrupt vector register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spurious {
    /// The vector whose handler is entered when an interrupt disappears while it is being taken. It is never in service.
    /// After power-up and INIT `0xff`. P6 and Pentium hard-wire its bits 3..0 to one.
    pub vector: u8,
    /// Whether the APIC is enabled by software. While it is not, all local interrupts are masked, and fixed messages
    /// are not accepted; INIT, NMI, SMI and start-up messages are. What is pending or in service is kept.
    pub enabled: bool,
    /// Whether focus-processor checking is off (for lowest-priority messages; the Pentium 4 and later have none).
    pub no_focus_check: bool,
    /// Whether the end of a level-triggered interrupt is not broadcast to the I/O APICs, which then have to be told
    /// themselves. Only where [`Version::suppresses_eoi_broadcasts`](crate::Version::suppresses_eoi_broadcasts).
    pub no_eoi_broadcast: bool,
}

impl Spurious {
    /// Enabled, with that vector, and nothing special.
    pub const fn enabled(vector: Vector) -> Self {
        Self { vector: vector.number(), enabled: true, no_focus_check: false, no_eoi_broadcast: false }
    }

    /// The register's bits.
    pub const fn encode(self) -> u32 {
        self.vector as u32
            | if self.enabled { ENABLE } else { 0 }
            | if self.no_focus_check { NO_FOCUS_CHECK } else { 0 }
            | if self.no_eoi_broadcast { NO_EOI_BROADCAST } else { 0 }
    }

    /// What the register's bits mean. Reserved bits are ignored.
    pub const fn decode(bits: u32) -> Self {
        Self {
            vector: bits as u8,
            enabled: bits & ENABLE != 0,
            no_focus_check: bits & NO_FOCUS_CHECK != 0,
            no_eoi_broadcast: bits & NO_EOI_BROADCAST != 0,
        }
    }
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// The content of the register. Any context.
    pub fn spurious(&self) -> Spurious {
        Spurious::decode(self.access.read(Register::SPURIOUS_VECTOR))
    }

    /// Replaces the content of the register. With interrupts disabled: an interrupt that is being taken meanwhile arrives
    /// at the old or the new vector.
    pub fn set_spurious(&self, spurious: Spurious) {
        self.access.write(Register::SPURIOUS_VECTOR, spurious.encode());
    }

    /// Disables this CPU's APIC by software; [`enable`](Self::enable) or [`set_spurious`](Self::set_spurious) enables it
    /// again. Masks all local interrupts, which stay masked then. With interrupts disabled.
    pub fn disable_by_software(&self) {
        self.set_spurious(Spurious { enabled: false, ..self.spurious() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;
    use crate::testing::{Recorder, driver};

    #[test]
    fn all_bits_of_the_register_survive() {
        for bits in (0..0x400).chain(0x1000..0x1400) {
            assert_eq!(Spurious::decode(bits).encode(), bits);
        }
    }

    #[test]
    fn disabling_keeps_the_vector() {
        let recorder = Recorder::new(Mode::X2Apic);
        recorder.set(Register::SPURIOUS_VECTOR, 0x11ef);
        driver(&recorder).disable_by_software();
        assert_eq!(recorder.written(), [(Register::SPURIOUS_VECTOR, 0x10ef)]);
    }
}
