//! From virtual addresses to physical ones.
//!
//! Tables are read one entry at a level, never more often than there are levels, so tables that refer to themselves or
//! to garbage end like all others. Source: SDM volume 3A, chapter 5 "Paging".

use std::ops::Range;

use crate::error::Level;
use crate::{PhysicalMemory, ReadError};

/// How a source's virtual addresses are translated. Other architectures take their places here.
#[derive(Clone, Debug)]
pub enum Translation {
    /// By the page tables of x86-64.
    X86_64(PageTables),
    /// By the virtual addresses of the dump's segments: for kernels that say nothing of their page tables.
    Segments(Vec<MappedSegment>),
}

/// A page, or any other piece of virtual memory, that is in one piece in physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The virtual addresses.
    pub addresses: Range<u64>,
    /// The physical address of the first.
    pub physical: u64,
}

/// A segment with a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedSegment {
    /// The virtual address of its first byte.
    pub address: u64,
    /// The physical address of its first byte.
    pub physical: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

impl Translation {
    /// The mapping that an address is in.
    ///
    /// # Errors
    /// If nothing is mapped there, or a table cannot be read.
    pub fn find(&self, memory: &dyn PhysicalMemory, address: u64) -> Result<Mapping, ReadError> {
        match self {
            Self::X86_64(tables) => tables.walk(memory, address),
            Self::Segments(segments) => segments
                .iter()
                .find(|segment| address.wrapping_sub(segment.address) < segment.bytes)
                .map(|segment| Mapping {
                    addresses: segment.address..segment.address.saturating_add(segment.bytes),
                    physical: segment.physical,
                })
                .ok_or(ReadError::NoSegment { address }),
        }
    }
}

/// Page tables of x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTables {
    /// The physical address of the topmost table.
    pub root: u64,
    /// Whether they have five levels, and not four.
    pub five_levels: bool,
    /// The bit of an entry that says that its page is encrypted, and is no part of its address; zero if there is none.
    pub encryption: u64,
}

const PRESENT: u64 = 1;
/// An entry of a page directory or a page-directory-pointer table that maps a page itself.
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry hold an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// From the topmost level of five: how far an address is shifted for its index.
const LEVELS: [(Level, u32); 5] = [
    (Level::Pml5Entry, 48),
    (Level::Pml4Entry, 39),
    (Level::PointerEntry, 30),
    (Level::DirectoryEntry, 21),
    (Level::TableEntry, 12),
];

impl PageTables {
    /// How many bits of an address are translated.
    const fn bits(&self) -> u32 {
        if self.five_levels { 57 } else { 48 }
    }

    fn levels(&self) -> &'static [(Level, u32)] {
        &LEVELS[usize::from(!self.five_levels)..]
    }

    /// The page that an address is in.
    ///
    /// # Errors
    /// If the address is none of this machine, is not mapped, or a table on the way cannot be read.
    pub fn walk(&self, memory: &dyn PhysicalMemory, address: u64) -> Result<Mapping, ReadError> {
        let unused = 64 - self.bits();
        if (address << unused).cast_signed() >> unused != address.cast_signed() {
            return Err(ReadError::NotCanonical { address });
        }
        let mut table = self.root & ADDRESS & !self.encryption;
        for &(level, shift) in self.levels() {
            let at = table + ((address >> shift) & 511) * 8;
            let mut bytes = [0; 8];
            memory.read_physical(at, &mut bytes).map_err(|source| ReadError::Table {
                address,
                level,
                source: Box::new(source),
            })?;
            let entry = u64::from_le_bytes(bytes);
            if entry & PRESENT == 0 {
                return Err(ReadError::NotMapped { address, level, entry });
            }
            let next = entry & ADDRESS & !self.encryption;
            let maps = match level {
                Level::TableEntry => true,
                Level::DirectoryEntry | Level::PointerEntry => entry & LARGE != 0,
                Level::Pml4Entry | Level::Pml5Entry => false,
            };
            if maps {
                let inside = (1 << shift) - 1;
                let begin = address & !inside;
                // The last page ends where no number can say so: nobody needs its last byte.
                return Ok(Mapping {
                    addresses: begin..begin.saturating_add(inside + 1),
                    physical: next & !inside,
                });
            }
            table = next;
        }
        // The last level always maps.
        Err(ReadError::NotMapped { address, level: Level::TableEntry, entry: 0 })
    }
}
