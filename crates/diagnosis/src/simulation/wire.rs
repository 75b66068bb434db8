//! Protobuf on the wire, as much of it as traces need: fields with their numbers. Foreign bytes: what makes no sense ends the
//! message.

use std::io::BufRead;

use super::TraceError;

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) kind: Kind<'a>,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// More bytes than there are.
    Cut,
}

/// The fields of a message, in order.
#[derive(Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn fixed(&mut self, bytes: usize) -> Option<u64> {
        let (head, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(head.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        let kind = match tag & 7 {
            0 => Kind::Number(self.varint()?),
            1 => Kind::Number(self.fixed(8)?),
            5 => Kind::Number(self.fixed(4)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                if let Some((head, rest)) = self.0.split_at_checked(length) {
                    self.0 = rest;
                    Kind::Bytes(head)
                } else {
                    self.0 = &[];
                    Kind::Cut
                }
            }
            _ => {
                self.0 = &[];
                return None;
            }
        };
        Some(Field { number: tag >> 3, kind })
    }
}

/// Reads a number and how many bytes it took; nothing at the end of the source.
pub(super) fn read_varint(source: &mut impl BufRead, offset: u64) -> Result<Option<(u64, u64)>, TraceError> {
    let mut value = 0;
    for (count, shift) in (1..).zip((0..64).step_by(7)) {
        let mut byte = [0];
        if source.read(&mut byte)? == 0 {
            let cut = TraceError::Damaged { offset, what: "it ends in a number" };
            return if count == 1 { Ok(None) } else { Err(cut) };
        }
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some((value, count)));
        }
    }
    Err(TraceError::Damaged { offset, what: "a number has more bytes than numbers have" })
}
