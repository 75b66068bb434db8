//! A file, read as far as it says that it goes.

use smpcall_crashdump::{Dump, KernelMemory, VirtualMemory as _};

/// Opens the bytes as a dump, and reads what there is.
pub fn read(bytes: &[u8]) {
    let Ok(dump) = Dump::read(Box::new(bytes.to_vec())) else { return };
    let _ = (dump.cpus().len(), dump.records().count(), dump.memory().existing().len());
    let mut page = [0; 4096];
    let ranges = dump.memory().ranges();
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for range in ranges.iter().take(64) {
        for address in [range.start, range.start.wrapping_add(4096), range.end - 1, range.end.wrapping_sub(4096)] {
            let _ = dump.memory().read_physical(address, &mut page);
        }
    }
    let Ok(memory) = KernelMemory::new(&dump) else { return };
    for address in [0xffff_ffff_8000_0000, 0xffff_8880_0000_0ff8, 0xffff_ffff_8100_0000] {
        let _ = (memory.read_u64(address), memory.read_string(address, 200), memory.read_bytes(address, 20_000));
    }
}
