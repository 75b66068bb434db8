//! Sets of CPUs: a fixed-size owner, [`CpuSet`], and the view that everything reads, [`CpuMask`].

use core::fmt;
use core::ops::{Deref, DerefMut};

use crate::Cpu;

/// A set of CPUs of any size, borrowed: to [`CpuSet`] what `str` is to `String`.
#[derive(PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct CpuMask {
    words: [u64],
}

impl CpuMask {
    #[inline(always)]
    fn from_words(words: &[u64]) -> &Self {
        // SAFETY: `CpuMask` is a transparent wrapper of `[u64]`, so the two references have the same layout,
        // metadata and validity.
        unsafe { &*(core::ptr::from_ref(words) as *const Self) }
    }

    fn from_words_mut(words: &mut [u64]) -> &mut Self {
        // SAFETY: as in `from_words`; the exclusive borrow is passed on.
        unsafe { &mut *(core::ptr::from_mut(words) as *mut Self) }
    }

    /// The set as words of 64 CPUs, lowest first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The same set as far as it goes on a machine of this many CPUs, rounded up to 64: what is looked at word by word is no
    /// longer than it needs to be. Members beyond are not seen.
    #[inline(always)]
    pub fn up_to(&self, cpus: usize) -> &Self {
        Self::from_words(&self.words[..cpus.div_ceil(64).min(self.words.len())])
    }

    /// Whether it has a member whose number is not below this.
    #[inline(always)]
    pub fn reaches(&self, cpus: usize) -> bool {
        let (whole, rest) = (cpus / 64, cpus % 64);
        self.words.get(whole).is_some_and(|word| word >> rest != 0)
            || self.words.iter().skip(whole + 1).any(|&word| word != 0)
    }

    /// How many CPUs the storage has room for; the largest member is smaller than this.
    pub fn capacity(&self) -> usize {
        self.words.len() * 64
    }

    /// Whether the set has no members.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether `cpu` is a member. A CPU beyond the capacity is not.
    pub fn contains(&self, cpu: Cpu) -> bool {
        self.words.get(cpu.index() / 64).is_some_and(|word| word & bit(cpu) != 0)
    }

    /// The member with the lowest number.
    pub fn first(&self) -> Option<Cpu> {
        self.iter().next()
    }

    /// The members, in ascending order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { words: &self.words, next_word: 0, bits: 0 }
    }

    /// Adds `cpu`; returns whether it was absent.
    ///
    /// # Panics
    /// If `cpu` is not below the capacity.
    pub fn insert(&mut self, cpu: Cpu) -> bool {
        let word = &mut self.words[cpu.index() / 64];
        let absent = *word & bit(cpu) == 0;
        *word |= bit(cpu);
        absent
    }

    /// Removes `cpu`; returns whether it was a member.
    pub fn remove(&mut self, cpu: Cpu) -> bool {
        let Some(word) = self.words.get_mut(cpu.index() / 64) else { return false };
        let present = *word & bit(cpu) != 0;
        *word &= !bit(cpu);
        present
    }

    /// Adds the members of a word of 64 CPUs, by its position.
    ///
    /// # Panics
    /// If the position is not below the capacity.
    #[inline(always)]
    pub fn insert_word(&mut self, position: usize, members: u64) {
        self.words[position] |= members;
    }

    /// Removes all members.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }
}

const fn bit(cpu: Cpu) -> u64 {
    1 << (cpu.number() % 64)
}

impl<'a> IntoIterator for &'a CpuMask {
    type Item = Cpu;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As ranges: `0-3,7`; the empty set as `none`.
impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut members = self.iter().map(Cpu::number).peekable();
        let mut separator = "";
        while let Some(first) = members.next() {
            let mut last = first;
            while let Some(next) = members.next_if_eq(&(last + 1)) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// The members of a [`CpuMask`] in ascending order.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    words: &'a [u64],
    next_word: usize,
    bits: u64,
}

impl Iterator for Iter<'_> {
    type Item = Cpu;

    fn next(&mut self) -> Option<Cpu> {
        while self.bits == 0 {
            self.bits = *self.words.get(self.next_word)?;
            self.next_word += 1;
        }
        let lowest = self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        Some(Cpu::new((self.next_word as u32 - 1) * 64 + lowest))
    }
}

/// A set of up to `64 * WORDS` CPUs, stored in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuSet<const WORDS: usize> {
    words: [u64; WORDS],
}

impl<const WORDS: usize> CpuSet<WORDS> {
    /// The empty set.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// The empty set.
    pub const fn new() -> Self {
        Self::EMPTY
    }
}

impl<const WORDS: usize> Default for CpuSet<WORDS> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<const WORDS: usize> Deref for CpuSet<WORDS> {
    type Target = CpuMask;

    fn deref(&self) -> &CpuMask {
        CpuMask::from_words(&self.words)
    }
}

impl<const WORDS: usize> DerefMut for CpuSet<WORDS> {
    fn deref_mut(&mut self) -> &mut CpuMask {
        CpuMask::from_words_mut(&mut self.words)
    }
}

impl<const WORDS: usize> FromIterator<Cpu> for CpuSet<WORDS> {
    /// # Panics
    /// If a CPU is not below the capacity.
    fn from_iter<I: IntoIterator<Item = Cpu>>(cpus: I) -> Self {
        let mut set = Self::EMPTY;
        set.extend(cpus);
        set
    }
}

impl<const WORDS: usize> fmt::Debug for CpuSet<WORDS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl<const WORDS: usize> Extend<Cpu> for CpuSet<WORDS> {
    /// # Panics
    /// If a CPU is not below the capacity.
    fn extend<I: IntoIterator<Item = Cpu>>(&mut self, cpus: I) {
        for cpu in cpus {
            self.insert(cpu);
        }
    }
}

mod sealed {
    /// Protocols rely on a set not changing while it is borrowed: only this crate's sets are known to be like that.
    pub trait Sealed {}
    impl<const WORDS: usize> Sealed for super::CpuSet<WORDS> {}
}

/// A [`CpuSet`] of whatever size: what a machine chooses for itself. Implemented by [`CpuSet`] only.
pub trait CpuSetStorage:
    sealed::Sealed + Clone + DerefMut<Target = CpuMask> + fmt::Debug + Send + Sync + 'static
{
    /// The empty set.
    const EMPTY: Self;
    /// How many CPUs it has room for.
    const CAPACITY: usize;
}

impl<const WORDS: usize> CpuSetStorage for CpuSet<WORDS> {
    const EMPTY: Self = Self { words: [0; WORDS] };
    const CAPACITY: usize = 64 * WORDS;
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeSet, format, vec::Vec};

    #[test]
    fn a_set_prints_as_ranges() {
        let set: CpuSet<2> = [0, 1, 2, 3, 7, 64, 127].map(Cpu::new).into_iter().collect();
        assert_eq!(format!("{}", &*set), "0-3,7,64,127");
        assert_eq!(format!("{:?}", CpuSet::<1>::EMPTY), "none");
    }

    #[test]
    fn a_cpu_beyond_the_capacity_is_no_member_and_cannot_be_removed() {
        let mut set = CpuSet::<1>::new();
        assert!(!set.contains(Cpu::new(64)));
        assert!(!set.remove(Cpu::new(64)));
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn inserting_beyond_the_capacity_panics() {
        CpuSet::<1>::new().insert(Cpu::new(64));
    }

    #[test]
    fn a_part_of_a_set_ends_with_a_word_and_what_is_beyond_a_number_is_known() {
        let set: CpuSet<3> = [0, 63, 64, 130].map(Cpu::new).into_iter().collect();
        let seen = |cpus| set.up_to(cpus).iter().map(Cpu::number).collect::<Vec<_>>();
        assert_eq!((seen(0), seen(1), seen(64)), (std::vec![], std::vec![0, 63], std::vec![0, 63]));
        assert_eq!((seen(65), seen(1000)), (std::vec![0, 63, 64], std::vec![0, 63, 64, 130]));
        assert_eq!(
            [0, 64, 65, 130, 131, 192, 1000].map(|cpus| set.reaches(cpus)),
            [true, true, true, true, false, false, false]
        );
        let mut words = CpuSet::<2>::new();
        words.insert_word(1, 0b101);
        assert_eq!(words.iter().map(Cpu::number).collect::<Vec<_>>(), [64, 66]);
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_set_of_numbers(ops in prop::collection::vec((0u32..256, any::<bool>()), 0..200)) {
            let mut set = CpuSet::<4>::new();
            let mut model = BTreeSet::new();
            for (number, insert) in ops {
                let cpu = Cpu::new(number);
                if insert {
                    prop_assert_eq!(set.insert(cpu), model.insert(number));
                } else {
                    prop_assert_eq!(set.remove(cpu), model.remove(&number));
                }
                prop_assert_eq!(set.contains(cpu), insert);
            }
            prop_assert_eq!(set.len(), model.len());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            let members: Vec<u32> = set.iter().map(Cpu::number).collect();
            prop_assert_eq!(members, model.into_iter().collect::<Vec<_>>());
        }
    }
}
