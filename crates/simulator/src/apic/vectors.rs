//! A set of the 256 interrupt vectors: what each of the registers IRR, ISR and TMR is.

use core::fmt;

/// A set of interrupt vectors.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vectors([u32; 8]);

impl Vectors {
    /// No vectors.
    pub const EMPTY: Self = Self([0; 8]);

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    /// Whether `vector` is a member.
    pub const fn contains(&self, vector: u8) -> bool {
        self.0[vector as usize / 32] & 1 << (vector % 32) != 0
    }

    /// The highest member.
    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word as u32 * 32 + self.0[word].ilog2()) as u8)
    }

    /// How many members the class has: 16 vectors, `16 * class` and up.
    pub(super) const fn count_of_class(&self, class: u8) -> u32 {
        (self.0[class as usize / 2] >> (class % 2 * 16) & 0xffff).count_ones()
    }

    /// The members, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=255).filter(|&vector| self.contains(vector))
    }

    /// Word `index` of the register: vectors `32 * index` and up.
    ///
    /// # Panics
    /// If `index` is not below 8.
    pub const fn word(&self, index: usize) -> u32 {
        self.0[index]
    }

    /// Adds `vector`; returns whether it was absent.
    pub(super) const fn insert(&mut self, vector: u8) -> bool {
        let absent = !self.contains(vector);
        self.0[vector as usize / 32] |= 1 << (vector % 32);
        absent
    }

    /// Removes `vector`.
    pub(super) const fn remove(&mut self, vector: u8) {
        self.0[vector as usize / 32] &= !(1 << (vector % 32));
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|vector| format!("{vector:#04x}"))).finish()
    }
}
