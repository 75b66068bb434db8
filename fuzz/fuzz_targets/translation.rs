//! Memory with page tables, and addresses: what is found lies in a page, and is what walking again finds.
#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use smpcall_crashdump::translate::PageTables;
use smpcall_crashdump::{PhysicalMemory, ReadError};

#[derive(Debug)]
struct Bytes(Vec<u8>);

impl PhysicalMemory for Bytes {
    fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let absent = ReadError::Absent { address };
        let begin = usize::try_from(address).map_err(|_| absent.clone())?;
        let part = self.0.get(begin..).and_then(|rest| rest.get(..into.len())).ok_or(absent)?;
        into.copy_from_slice(part);
        Ok(())
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        vec![0..self.0.len() as u64]
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((head, tables)) = bytes.split_first_chunk::<40>() else { return };
    let word = |at: usize| u64::from_le_bytes(*head[8 * at..].first_chunk().expect("40 bytes"));
    // Small memories: entries are made to lead into them.
    let mut memory = tables.to_vec();
    memory.resize(tables.len().clamp(1, 1 << 16).next_multiple_of(4096), 0);
    let pages = (memory.len() / 4096) as u64;
    for entry in memory.chunks_exact_mut(8) {
        let value = u64::from_le_bytes(entry.try_into().expect("8 bytes"));
        let inside = value & 0xfff | (value >> 12) % pages << 12 | value & 1 << 47;
        entry.copy_from_slice(&inside.to_le_bytes());
    }
    let memory = Bytes(memory);
    let encryption = if word(0) & 2 != 0 { 1 << 47 } else { 0 };
    let tables = PageTables { root: word(1) % pages * 4096, five_levels: word(0) & 1 != 0, encryption };
    for address in [word(2), word(3), word(4)] {
        // Of any address, one that is a kernel's.
        for address in [address, address | 0xffff_8000_0000_0000] {
            let Ok(mapping) = tables.walk(&memory, address) else { continue };
            assert!(mapping.addresses.contains(&address) || address == u64::MAX);
            assert_eq!(mapping.physical % 4096, 0);
            let first = tables.walk(&memory, mapping.addresses.start);
            assert_eq!(first.as_ref(), Ok(&mapping));
        }
    }
});
