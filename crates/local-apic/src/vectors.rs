//! A set of the 256 vectors, and the three registers of 256 bits that are one: IRR, ISR and TMR.
//!
//! Source: SDM, "Interrupt Acceptance for Fixed Interrupts".

use core::fmt;

use smpcall_machine::Machine;

use crate::{Access, LocalApic, Register};

/// A set of interrupt vectors, 0..=255.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Vectors([u32; 8]);

impl Vectors {
    /// No vectors.
    pub const EMPTY: Self = Self([0; 8]);

    /// The set that these eight words of a register say, vectors 0..=31 first.
    pub const fn from_words(words: [u32; 8]) -> Self {
        Self(words)
    }

    /// The words of a register, vectors 0..=31 first.
    pub const fn words(&self) -> [u32; 8] {
        self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    /// How many there are, 0..=256.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether `vector` is a member.
    pub const fn contains(&self, vector: u8) -> bool {
        self.0[vector as usize / 32] & 1 << (vector % 32) != 0
    }

    /// Adds `vector`.
    pub const fn insert(&mut self, vector: u8) {
        self.0[vector as usize / 32] |= 1 << (vector % 32);
    }

    /// The highest member: the one that the APIC offers or ends first.
    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word as u32 * 32 + self.0[word].ilog2()) as u8)
    }

    /// The members, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=255).filter(|&vector| self.contains(vector))
    }
}

/// As a list: `0x31,0xfb`; the empty set as `none`.
impl fmt::Display for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, vector) in self.iter().enumerate() {
            write!(f, "{}{vector:#04x}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// The vectors that were accepted and not taken yet (IRR). Eight reads, and not at one instant: a vector that is accepted
    /// meanwhile may be missing. Any context.
    pub fn requests(&self) -> Vectors {
        self.scan(Register::interrupt_request)
    }

    /// The vectors that were taken and not ended yet (ISR). As [`requests`](Self::requests); exact with interrupts disabled.
    pub fn in_service(&self) -> Vectors {
        self.scan(Register::in_service)
    }

    /// The vectors whose last accepted interrupt was level-triggered (TMR), and whose end is broadcast to the I/O APICs.
    /// As [`requests`](Self::requests).
    pub fn level_triggered(&self) -> Vectors {
        self.scan(Register::trigger_mode)
    }

    /// Whether a vector is in service: one read. Any context.
    pub fn is_in_service(&self, vector: u8) -> bool {
        self.access.read(Register::in_service(usize::from(vector) / 32)) & 1 << (vector % 32) != 0
    }

    fn scan(&self, register: impl Fn(usize) -> Register) -> Vectors {
        Vectors(core::array::from_fn(|index| self.access.read(register(index))))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Mode;
    use crate::testing::{Recorder, driver};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::string::ToString;

    #[test]
    fn the_registers_are_scanned_into_a_set() {
        let recorder = Recorder::new(Mode::X2Apic);
        recorder.set(Register::interrupt_request(7), 1 << 27);
        recorder.set(Register::in_service(1), 1 << 17);
        recorder.set(Register::trigger_mode(0), 1 << 31);
        let driver = driver(&recorder);
        assert_eq!(driver.requests().to_string(), "0xfb");
        assert_eq!(driver.in_service().to_string(), "0x31");
        assert_eq!(driver.level_triggered().to_string(), "0x1f");
        assert!(driver.is_in_service(0x31) && !driver.is_in_service(0x32));
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_set(members in prop::collection::btree_set(any::<u8>(), 0..=40)) {
            let mut vectors = Vectors::EMPTY;
            for &vector in &members {
                vectors.insert(vector);
            }
            prop_assert_eq!(vectors.iter().collect::<BTreeSet<_>>(), members.clone());
            prop_assert_eq!(vectors.len() as usize, members.len());
            prop_assert_eq!(vectors.highest(), members.last().copied());
            prop_assert_eq!(vectors.is_empty(), members.is_empty());
            prop_assert_eq!(Vectors::from_words(vectors.words()), vectors);
        }
    }
}
