//! Physical memory of a machine, as far as a source has it.

use std::fmt;
use std::ops::Range;

use crate::ReadError;

/// The size of a page, in bytes: the unit in which memory is in a dump or is not.
pub const PAGE_BYTES: u64 = 4096;

/// Physical memory. Reads never change the source.
pub trait PhysicalMemory: fmt::Debug + Send + Sync {
    /// Fills `into` from consecutive physical addresses: any length, across pages.
    ///
    /// # Errors
    /// If any byte of it cannot be read; what `into` then holds means nothing.
    fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError>;

    /// The physical addresses that the source says it has, in order, for scans. A range may have holes: whoever scans
    /// steps over the pages that cannot be read.
    fn ranges(&self) -> Vec<Range<u64>>;

    /// The physical addresses that the machine had, as far as the source says: with those that were left out.
    fn existing(&self) -> Vec<Range<u64>> {
        self.ranges()
    }
}

/// The address of the byte after `length` bytes from `address`.
pub(crate) fn end(address: u64, length: usize) -> Result<u64, ReadError> {
    address.checked_add(length as u64).ok_or(ReadError::Wraps { address, length: length as u64 })
}

/// Splits a range into pieces that do not cross a multiple of `unit` (a power of two). Calls `each` with the address
/// of each piece and its bytes, until one fails.
pub(crate) fn by_pieces(
    address: u64,
    into: &mut [u8],
    unit: u64,
    mut each: impl FnMut(u64, &mut [u8]) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    end(address, into.len())?;
    let (mut at, mut rest) = (address, into);
    while !rest.is_empty() {
        let left = unit - (at & (unit - 1));
        let (piece, tail) = rest.split_at_mut((left as usize).min(rest.len()));
        each(at, piece)?;
        at = at.wrapping_add(piece.len() as u64);
        rest = tail;
    }
    Ok(())
}
