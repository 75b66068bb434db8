//! A kernel's virtual memory, as its readers see it: bytes at an address, or an error. Everything that turns memory into
//! knowledge reads through this, so it can be tested and fuzzed without a dump.

use crate::ReadError;

/// No single read is larger, whatever a foreign length says: 64 MiB.
pub const LARGEST_READ: usize = 64 << 20;

/// Memory by virtual address. Reads change nothing.
pub trait VirtualMemory {
    /// Fills `into` from consecutive addresses.
    ///
    /// # Errors
    ///
    /// Some of the bytes are not mapped, or the source has not got them. What `into` holds then is not said.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError>;

    /// A little-endian number of one byte to eight.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); also if `bytes` is none of 1 to 8.
    fn read_number(&self, address: u64, bytes: usize) -> Result<u64, ReadError> {
        let mut number = [0; 8];
        let Some(part) = number.get_mut(..bytes).filter(|part| !part.is_empty()) else {
            return Err(too_long(address, bytes, 8));
        };
        self.read(address, part)?;
        Ok(u64::from_le_bytes(number))
    }

    /// One byte.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_u8(&self, address: u64) -> Result<u8, ReadError> {
        Ok(self.read_number(address, 1)? as u8)
    }

    /// Two bytes.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_u16(&self, address: u64) -> Result<u16, ReadError> {
        Ok(self.read_number(address, 2)? as u16)
    }

    /// Four bytes.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_u32(&self, address: u64) -> Result<u32, ReadError> {
        Ok(self.read_number(address, 4)? as u32)
    }

    /// Eight bytes.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_u64(&self, address: u64) -> Result<u64, ReadError> {
        self.read_number(address, 8)
    }

    /// That many bytes.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); and if it is more than [`LARGEST_READ`].
    fn read_bytes(&self, address: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        if length > LARGEST_READ {
            return Err(too_long(address, length, LARGEST_READ));
        }
        let mut bytes = vec![0; length];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// What can be read from here on, at most that many bytes: it ends before the first page that cannot be read.
    fn read_available(&self, address: u64, at_most: usize) -> Vec<u8> {
        const PAGE: usize = 4096;
        let at_most = at_most.min(LARGEST_READ);
        let mut bytes = vec![0; at_most];
        if self.read(address, &mut bytes).is_ok() {
            return bytes;
        }
        let mut have = 0;
        while have < at_most {
            let Some(at) = address.checked_add(have as u64) else { break };
            let step = (PAGE - (at as usize % PAGE)).min(at_most - have);
            if self.read(at, &mut bytes[have..have + step]).is_err() {
                break;
            }
            have += step;
        }
        bytes.truncate(have);
        bytes
    }

    /// Text up to its zero byte, or up to `at_most` bytes. Bytes that are no text are replaced.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), if not even the first byte is there.
    fn read_string(&self, address: u64, at_most: usize) -> Result<String, ReadError> {
        // In small pieces: names are short, and the page behind them may not be there.
        const PIECE: usize = 64;
        let mut text = Vec::new();
        while text.len() < at_most {
            let at = address.wrapping_add(text.len() as u64);
            let piece = self.read_available(at, PIECE.min(at_most - text.len()));
            if piece.is_empty() {
                if text.is_empty() {
                    self.read_u8(at)?;
                }
                break;
            }
            if let Some(end) = piece.iter().position(|&byte| byte == 0) {
                text.extend_from_slice(&piece[..end]);
                break;
            }
            text.extend_from_slice(&piece);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn too_long(address: u64, length: usize, limit: usize) -> ReadError {
    ReadError::TooLong { address, length: length as u64, limit: limit as u64 }
}

impl<M: VirtualMemory + ?Sized> VirtualMemory for &M {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        (**self).read(address, into)
    }
}

/// Pieces of memory that somebody holds: an extent is an address and the bytes from there on. For tests, fuzz targets and
/// memory that was read before.
#[derive(Clone, Debug, Default)]
pub struct Extents(pub Vec<(u64, Vec<u8>)>);

impl Extents {
    /// The bytes of one extent from an address on.
    fn from(&self, address: u64) -> Option<&[u8]> {
        self.0.iter().find_map(|(begin, bytes)| {
            let offset = usize::try_from(address.checked_sub(*begin)?).ok()?;
            bytes.get(offset..).filter(|rest| !rest.is_empty())
        })
    }
}

impl VirtualMemory for Extents {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < into.len() {
            let at = address.wrapping_add(done as u64);
            let from = self.from(at).ok_or(ReadError::NoSegment { address: at })?;
            let step = from.len().min(into.len() - done);
            into[done..done + step].copy_from_slice(&from[..step]);
            done += step;
        }
        Ok(())
    }

    /// To the byte: extents need not end where pages do.
    fn read_available(&self, address: u64, at_most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < at_most {
            let Some(from) = self.from(address.wrapping_add(bytes.len() as u64)) else { break };
            bytes.extend_from_slice(&from[..from.len().min(at_most - bytes.len())]);
        }
        bytes
    }
}

/// A little-endian number in the first one to eight of these bytes; none if there are fewer.
pub(crate) fn number(bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
    let part = bytes.get(offset..)?.get(..size)?;
    let mut number = [0; 8];
    number.get_mut(..size)?.copy_from_slice(part);
    Some(u64::from_le_bytes(number))
}

/// The 64-bit number that a signed 32-bit one stands for: to be added, with wrapping, to what it is relative to.
pub(crate) const fn sign_extended(number: u32) -> u64 {
    (number.cast_signed() as i64).cast_unsigned()
}

/// Four of these bytes as a number; none beyond their end.
pub(crate) fn number_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    number(bytes, offset, 4).map(|number| number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Extents {
        Extents(vec![(0x1000, b"hello\0worl".to_vec()), (0x100a, b"d".to_vec()), (0x2000, vec![1, 2, 3, 4])])
    }

    #[test]
    fn numbers_are_little_endian_and_extents_that_touch_are_one() {
        let memory = memory();
        assert_eq!(memory.read_u32(0x2000).ok(), Some(0x0403_0201));
        assert_eq!(memory.read_u16(0x2001).ok(), Some(0x0302));
        assert_eq!(memory.read_bytes(0x1006, 5).ok().as_deref(), Some(&b"world"[..]));
        assert!(memory.read_u64(0x2000).is_err(), "four bytes are not eight");
        assert!(memory.read_number(0x2000, 9).is_err());
        assert!(memory.read_number(0x2000, 0).is_err());
    }

    #[test]
    fn text_ends_with_its_zero_its_limit_or_its_memory() {
        let memory = memory();
        assert_eq!(memory.read_string(0x1000, 100).ok().as_deref(), Some("hello"));
        assert_eq!(memory.read_string(0x1000, 3).ok().as_deref(), Some("hel"));
        assert!(memory.read_string(0x3000, 3).is_err());
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_anything_is_allocated() {
        assert!(memory().read_bytes(0x1000, usize::MAX).is_err());
        assert!(memory().read_available(0x5000, 10).is_empty());
    }
}
