//! The flattened form of a dump: what makedumpfile and QEMU write into a pipe, where they cannot go back.
//!
//! Big-endian. A header of 4,096 bytes: "makedumpfile" padded to 16 bytes, type 1, version 1 (64 bits each); then
//! records: an offset and a size (64 bits each, signed) and that many bytes, which belong at that offset of the dump.
//! An offset of -1 ends them. A later record replaces what an earlier one wrote. Source: makedumpfile,
//! `IMPLEMENTATION` (facts only).
//!
//! The dump is never put together: an index over the records makes it readable where it is.

use std::io;

use crate::OpenError;
use crate::fields::{Fields, damaged, read_part};
use crate::storage::Storage;

/// How a file in this form begins.
pub(crate) const SIGNATURE: &[u8] = b"makedumpfile";

const HEADER_BYTES: u64 = 4096;
const RECORD_BYTES: usize = 16;

/// More records are refused: their index alone would be 192 MiB. QEMU and makedumpfile write one for each 16 KiB and
/// more, so that many are at least 128 GiB.
const MAXIMUM_RECORDS: usize = 1 << 23;

/// A dump in flattened form, read as if it were not.
#[derive(Debug)]
pub(crate) struct Flattened {
    storage: Box<dyn Storage>,
    /// In the order of the dump; no two have a byte in common.
    records: Vec<Record>,
    length: u64,
}

/// Where some bytes of the dump are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    offset: u64,
    bytes: u64,
    at: u64,
}

impl Record {
    const fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

impl Flattened {
    /// Reads the heads of all records. What is wrong with their end is remarked on.
    pub(crate) fn open(storage: Box<dyn Storage>, remarks: &mut Vec<String>) -> Result<Self, OpenError> {
        let mut header = [0; 32];
        read_part(&*storage, "header of the flattened form", 0, &mut header)?;
        let header = Fields { bytes: &header, big_endian: true };
        let (kind, version) = (header.u64(16), header.u64(24));
        if (kind, version) != (1, 1) {
            let what = format!("type {kind}, version {version}; only type 1, version 1 is known");
            return Err(damaged("header of the flattened form", 16, what));
        }
        let mut records: Vec<Record> = Vec::new();
        let mut at = HEADER_BYTES;
        loop {
            let mut head = [0; RECORD_BYTES];
            let read = storage
                .read_at(at, &mut head)
                .map_err(|error| damaged("flattened form", at, error.to_string()))?;
            if read < RECORD_BYTES {
                remarks.push(format!(
                    "the flattened dump ends at {:#x} without the mark of its end: it was cut off",
                    storage.length()
                ));
                break;
            }
            let head = Fields { bytes: &head, big_endian: true };
            let (offset, bytes) = (head.u64(0), head.u64(8));
            if offset == u64::MAX {
                break;
            }
            let signed = |number| i64::try_from(number).is_ok();
            if !signed(offset) || !signed(bytes) || !signed(offset.saturating_add(bytes)) {
                let what = format!("a record of {bytes:#x} bytes for offset {offset:#x} cannot be");
                return Err(damaged("flattened form", at, what));
            }
            let begin = at + RECORD_BYTES as u64;
            let there = bytes.min(storage.length().saturating_sub(begin));
            if records.len() == MAXIMUM_RECORDS {
                let what = format!("more than the {MAXIMUM_RECORDS} records that are read");
                return Err(damaged("flattened form", at, what));
            }
            records.push(Record { offset, bytes: there, at: begin });
            at = begin.saturating_add(bytes);
        }
        records.retain(|record| record.bytes > 0);
        let records = in_order(records);
        let length = records.last().map_or(0, Record::end);
        Ok(Self { storage, records, length })
    }
}

/// The records in the order of the dump, cut where a later one replaces them.
fn in_order(mut records: Vec<Record>) -> Vec<Record> {
    let in_order = |records: &[Record]| records.windows(2).all(|pair| pair[0].end() <= pair[1].offset);
    if in_order(&records) {
        return records;
    }
    // Stable: of those for one offset the later stays behind.
    let mut sorted = records.clone();
    sorted.sort_by_key(|record| record.offset);
    if in_order(&sorted) {
        return sorted;
    }
    // Some overlap. From the last written to the first, each takes what is still free.
    let mut free = FreeBytes::default();
    sorted.clear();
    while let Some(record) = records.pop() {
        free.take(record, &mut sorted);
    }
    sorted.sort_by_key(|record| record.offset);
    sorted
}

/// Which bytes of the dump are taken: the ends of ranges, by where they begin.
#[derive(Default)]
struct FreeBytes {
    taken: std::collections::BTreeMap<u64, u64>,
}

impl FreeBytes {
    /// Takes the bytes of a record that nobody has taken, and keeps them as records of their own.
    fn take(&mut self, record: Record, kept: &mut Vec<Record>) {
        let (mut from, end) = (record.offset, record.end());
        let (mut begin, mut last) = (from, end);
        // What begins before the record and reaches into it (or touches it), then what begins inside of it.
        let first = self.taken.range(..from).next_back().map(|(&begin, &end)| (begin, end));
        let first = first.filter(|&(_, end)| end >= from);
        let inside: Vec<(u64, u64)> =
            self.taken.range(from..=end).map(|(&begin, &end)| (begin, end)).collect();
        for (taken, taken_end) in first.into_iter().chain(inside) {
            if taken > from {
                kept.push(record.part(from, taken));
            }
            from = from.max(taken_end);
            (begin, last) = (begin.min(taken), last.max(taken_end));
            self.taken.remove(&taken);
        }
        if from < end {
            kept.push(record.part(from, end));
        }
        // Ranges that touch are joined, so that each is looked at once.
        self.taken.insert(begin, last);
    }
}

impl Record {
    fn part(&self, from: u64, to: u64) -> Self {
        Self { offset: from, bytes: to - from, at: self.at + (from - self.offset) }
    }
}

impl Storage for Flattened {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let wanted =
            usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        let mut done = 0;
        let mut next = self.records.partition_point(|record| record.end() <= offset);
        while done < wanted {
            let at = offset + done as u64;
            let rest = &mut into[done..wanted];
            // The dump's length is the end of its last record, so there always is one.
            let Some(record) = self.records.get(next) else { break };
            if record.offset > at {
                // Nobody has written these: zeros, as in a file with a hole.
                let hole = usize::try_from(record.offset - at).unwrap_or(usize::MAX).min(rest.len());
                rest[..hole].fill(0);
                done += hole;
                continue;
            }
            let bytes = usize::try_from(record.end() - at).unwrap_or(usize::MAX).min(rest.len());
            let read = self.storage.read_at(record.at + (at - record.offset), &mut rest[..bytes])?;
            done += read;
            if read < bytes {
                break;
            }
            next += 1;
        }
        Ok(done)
    }

    fn length(&self) -> u64 {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flattened(records: &[(u64, Vec<u8>)], ended: bool) -> Vec<u8> {
        let mut file = vec![0; HEADER_BYTES as usize];
        file[..SIGNATURE.len()].copy_from_slice(SIGNATURE);
        (file[23], file[31]) = (1, 1);
        let mut put = |offset: u64, size: u64, bytes: &[u8]| {
            file.extend_from_slice(&offset.to_be_bytes());
            file.extend_from_slice(&size.to_be_bytes());
            file.extend_from_slice(bytes);
        };
        for (offset, bytes) in records {
            put(*offset, bytes.len() as u64, bytes);
        }
        if ended {
            put(u64::MAX, u64::MAX, &[]);
        }
        file
    }

    fn read(storage: &dyn Storage, offset: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0xee; bytes];
        let read = storage.read_at(offset, &mut into).expect("memory can be read");
        into.truncate(read);
        into
    }

    #[test]
    fn records_in_any_order_are_one_file_with_holes() {
        let file = flattened(&[(20, vec![3; 5]), (0, vec![1; 10]), (10, vec![2; 2])], true);
        let mut remarks = Vec::new();
        let dump = Flattened::open(Box::new(file), &mut remarks).expect("in this form");
        assert!(remarks.is_empty());
        assert_eq!(dump.length(), 25);
        assert_eq!(read(&dump, 8, 14), [1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3]);
        assert_eq!(read(&dump, 24, 10), [3]);
        assert!(read(&dump, 25, 10).is_empty());
        assert!(read(&dump, u64::MAX, 10).is_empty());
    }

    #[test]
    fn a_file_that_was_cut_off_is_read_as_far_as_it_goes() {
        let whole = flattened(&[(0, vec![1; 10]), (10, vec![2; 10])], false);
        let mut remarks = Vec::new();
        let dump =
            Flattened::open(Box::new(whole[..whole.len() - 4].to_vec()), &mut remarks).expect("readable");
        assert_eq!(remarks.len(), 1, "{remarks:?}");
        assert_eq!(read(&dump, 0, 100), [[1; 10].as_slice(), &[2; 6]].concat());
    }

    #[test]
    fn another_type_and_absurd_records_are_refused() {
        let mut file = flattened(&[], true);
        file[31] = 2;
        let error = Flattened::open(Box::new(file), &mut Vec::new()).expect_err("version 2");
        assert!(error.to_string().contains("version 2"), "{error}");
        let mut file = flattened(&[(0, vec![1; 10])], true);
        file[4096 + 8] = 0x80;
        let error = Flattened::open(Box::new(file), &mut Vec::new()).expect_err("a negative size");
        assert!(matches!(error, OpenError::Damaged { offset: 4096, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn it_reads_like_the_file_that_was_put_together(
            records in prop::collection::vec((0u64..200, 0usize..60), 0..20),
            reads in prop::collection::vec((0u64..300, 0usize..100), 1..10)
        ) {
            let records: Vec<_> =
                records.into_iter().zip(1u8..).map(|((offset, bytes), fill)| (offset, vec![fill; bytes])).collect();
            let mut together = Vec::new();
            for (offset, bytes) in records.iter().filter(|(_, bytes)| !bytes.is_empty()) {
                let offset = *offset as usize;
                together.resize(together.len().max(offset + bytes.len()), 0);
                together[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            let dump = Flattened::open(Box::new(flattened(&records, true)), &mut Vec::new()).expect("in this form");
            prop_assert_eq!(dump.length(), together.length());
            for (offset, bytes) in reads {
                prop_assert_eq!(read(&dump, offset, bytes), read(&together, offset, bytes));
            }
        }

        #[test]
        fn damaged_files_are_read_to_an_end(
            damage in prop::collection::vec((0usize..4300, any::<u8>()), 0..20), length in 0usize..4300
        ) {
            let mut file = flattened(&[(0, vec![1; 60]), (100, vec![2; 20]), (30, vec![3; 80])], true);
            for (at, byte) in damage {
                if let Some(place) = file.get_mut(at) { *place = byte; }
            }
            file.truncate(length);
            if let Ok(dump) = Flattened::open(Box::new(file), &mut Vec::new()) {
                prop_assert!(read(&dump, 0, 500).len() <= 500);
                prop_assert!(read(&dump, dump.length().saturating_sub(10), 500).len() <= 10);
            }
        }
    }
}
