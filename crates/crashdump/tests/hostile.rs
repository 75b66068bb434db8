//! Bytes that nobody has written are read to an end: an error, or memory; never a panic, a hang, or memory without
//! bound.

mod support;

use proptest::prelude::*;
use smpcall_crashdump::{KernelMemory, VirtualMemory as _};
use support::{Kdump, PAGE, Stored, elf, flatten, kernel, notes, open, pattern, status, vmcoreinfo, zlib};

/// Reads what there is to read.
fn read_all(file: &[u8]) {
    let Ok(dump) = open(file) else { return };
    let _ = (dump.notes().len(), dump.cpus().len(), dump.records().count(), dump.remarks().len());
    let mut page = [0; PAGE];
    let ranges = dump.memory().ranges();
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:x?}");
    for range in ranges.iter().take(100) {
        assert!(range.start < range.end);
        for address in [
            range.start,
            range.start.saturating_add(5),
            range.end - 1,
            range.end,
            range.end.wrapping_sub(PAGE as u64),
        ] {
            let _ = dump.memory().read_physical(address, &mut page);
            let _ = dump.source().read_physical(address, &mut page[..9]);
        }
    }
    let Ok(memory) = KernelMemory::new(&dump) else { return };
    for address in [0, 0xffff_ffff_8000_0ff8, 0xffff_8880_0000_0000, u64::MAX - 7, 0xffff_ffff_8010_0000] {
        let _ = (
            memory.read_u64(address),
            memory.read_bytes(address, 3 * PAGE),
            memory.read_string(address, 5000),
        );
    }
}

fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    let byte = prop_oneof![Just(0u8), Just(0xff), Just(0x7f), Just(0x80), any::<u8>()];
    prop::collection::vec((any::<prop::sample::Index>(), byte), 1..12)
}

/// Damages mostly what is near the start, where the headers are, and cuts.
fn damaged(
    mut file: Vec<u8>,
    damage: &[(prop::sample::Index, u8)],
    headers: usize,
    cut: Option<prop::sample::Index>,
) -> Vec<u8> {
    let length = file.len();
    for (number, (at, byte)) in damage.iter().enumerate() {
        let within = if number % 4 == 3 { length } else { headers.min(length) };
        file[at.index(within)] = *byte;
    }
    if let Some(cut) = cut {
        file.truncate(cut.index(length + 1));
    }
    file
}

fn small_kdump() -> Vec<u8> {
    let mut tables = support::Tables::new(0x8000);
    tables.map(4, 0xffff_ffff_8000_0000, 0, 21);
    let pages = (0..12u64).map(|number| match number {
        9 => Stored::Excluded,
        10 => Stored::Lost,
        0..=7 => Stored::Page(1, zlib(&tables.bytes[number as usize * PAGE..][..PAGE])),
        _ => Stored::Page(0, pattern(number * PAGE as u64..(number + 1) * PAGE as u64)),
    });
    Kdump {
        vmcoreinfo: vmcoreinfo(false, "").into_bytes(),
        notes: notes(&[("CORE", 1, &status(1)), ("CORE", 1, &status(2))]),
        pages: pages.collect(),
        ..Kdump::default()
    }
    .to_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_elf_cores(damage in damage(), cut: Option<prop::sample::Index>) {
        let mut segments = kernel();
        segments[1].bytes.truncate(0x8000);
        read_all(&damaged(elf(62, &segments), &damage, 0x600, cut));
    }

    #[test]
    fn damaged_kdump_compressed_dumps(damage in damage(), cut: Option<prop::sample::Index>) {
        read_all(&damaged(small_kdump(), &damage, 0x4400, cut));
    }

    #[test]
    fn damaged_flattened_dumps(damage in damage(), cut: Option<prop::sample::Index>, record in 50usize..9000) {
        read_all(&damaged(flatten(&small_kdump(), record), &damage, 0x3000, cut));
    }

    #[test]
    fn damaged_page_tables(words in prop::collection::vec((0u64..0x1000, 0u64..0x10, 0u64..0x1000), 1..200)) {
        // Entries that mostly lead to other tables, or to themselves, with any flags.
        let mut tables = support::Tables::new(0x8000);
        tables.map(4, 0xffff_ffff_8000_0000, 0, 21);
        for (at, page, flags) in words {
            tables.put(at * 8 % 0x7ff8, page << 12 | flags);
        }
        let mut segments = kernel();
        segments[1].bytes = tables.bytes;
        read_all(&elf(62, &segments));
    }

    #[test]
    fn bytes_that_begin_like_a_dump(which in 0usize..3, bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        let begins: [&[u8]; 3] = [b"\x7fELF\x02\x01\x01", b"KDUMP   \x06\0\0\0", b"makedumpfile\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01"];
        read_all(&[begins[which], &bytes].concat());
    }
}
