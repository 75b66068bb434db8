//! Numbers at fixed places of a header, in either byte order.

use crate::OpenError;
use crate::storage::Storage;

/// A header's bytes, whose length was checked when they were read: numbers beyond it are zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) big_endian: bool,
}

impl<'a> Fields<'a> {
    pub(crate) const fn little(bytes: &'a [u8]) -> Self {
        Self { bytes, big_endian: false }
    }

    fn number<const N: usize>(&self, at: usize) -> u64 {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).unwrap_or(&[0; N]);
        let push = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        if self.big_endian { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) }
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        self.number::<2>(at) as u16
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        self.number::<4>(at) as u32
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        self.number::<8>(at)
    }
}

/// Reads a part of a file that the rest depends on.
pub(crate) fn read_part(
    storage: &dyn Storage,
    part: &'static str,
    offset: u64,
    into: &mut [u8],
) -> Result<(), OpenError> {
    let read = storage.read_at(offset, into).map_err(|error| damaged(part, offset, error.to_string()))?;
    if read == into.len() {
        return Ok(());
    }
    let end = offset.saturating_add(into.len() as u64);
    Err(OpenError::CutOff { part, offset, end, length: storage.length() })
}

/// Reads a part of a file whose length the file itself gives. Nothing is allocated for what is not there.
pub(crate) fn read_vec(
    storage: &dyn Storage,
    part: &'static str,
    offset: u64,
    bytes: u64,
    at_most: u64,
) -> Result<Vec<u8>, OpenError> {
    if bytes > at_most {
        return Err(damaged(
            part,
            offset,
            format!("{bytes} bytes are more than the {at_most} that it can have"),
        ));
    }
    let length = storage.length();
    let end = offset.saturating_add(bytes);
    if end > length {
        return Err(OpenError::CutOff { part, offset, end, length });
    }
    let mut into = vec![0; bytes as usize];
    read_part(storage, part, offset, &mut into)?;
    Ok(into)
}

pub(crate) fn damaged(part: &'static str, offset: u64, what: String) -> OpenError {
    OpenError::Damaged { part, offset, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_both_orders() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let little = Fields::little(&bytes);
        assert_eq!(
            (little.u16(1), little.u32(1), little.u64(1)),
            (0x0302, 0x0504_0302, 0x0908_0706_0504_0302)
        );
        let big = Fields { big_endian: true, ..little };
        assert_eq!((big.u16(1), big.u32(1), big.u64(1)), (0x0203, 0x0203_0405, 0x0203_0405_0607_0809));
        assert_eq!((little.u64(2), big.u16(8), big.u16(usize::MAX)), (0, 0, 0));
    }

    #[test]
    fn nothing_is_allocated_for_what_is_not_there() {
        let storage = vec![7u8; 100];
        assert_eq!(read_vec(&storage, "part", 90, 10, 10).expect("is there"), [7; 10]);
        let error = read_vec(&storage, "part", 90, 1 << 50, u64::MAX).expect_err("is not there");
        assert!(matches!(error, OpenError::CutOff { offset: 90, length: 100, .. }), "{error}");
        let error = read_vec(&storage, "part", 90, 11, 10).expect_err("too long");
        assert!(matches!(error, OpenError::Damaged { offset: 90, .. }), "{error}");
    }
}
