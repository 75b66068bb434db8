//! An extract holds what was read, and reads like what it was made of.

#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]

mod support;

use std::io::Cursor;

use smpcall_crashdump::extract::{ExtractError, Extracted, Format, extract, extract_ranges};
use smpcall_crashdump::{Dump, KernelMemory, Kind, ReadError, VirtualMemory as _};
use support::{PAGE, Segment, elf, kernel, memory, notes, open, pattern, read, status};

const IMAGE: u64 = 0xffff_ffff_8000_0000;

fn written(dump: &Dump, format: Format) -> (Vec<u8>, Extracted) {
    let mut file = Cursor::new(Vec::new());
    let extracted = extract(dump, &mut file, format).expect("to memory");
    (file.into_inner(), extracted)
}

#[test]
fn it_holds_what_was_read_and_the_notes() {
    let dump = open(&elf(62, &kernel())).expect("a core");
    let memory = KernelMemory::new(&dump).expect("tables");
    assert_eq!(memory.read_u64(0xffff_8880_0000_0010), Ok(0x2000_0010));
    assert_eq!(memory.read_u64(IMAGE + 0xf_f000), Ok(0), "a page of zeros");
    assert_eq!(memory.read_u64(IMAGE + 0xf_e000), Ok(0), "and another one");
    for format in [Format::Kdump, Format::Elf] {
        let (file, extracted) = written(&dump, format);
        // Topmost table, two of each level below but one, the page, and two of zeros.
        assert_eq!((extracted.pages, extracted.zeros, extracted.notes), (9, 2, 3), "{format:?}");
        assert_eq!(extracted.bytes, file.len() as u64, "{format:?}");
        let small = open(&file).expect("a dump");
        assert_eq!(small.kind(), if format == Format::Elf { Kind::Elf } else { Kind::KdumpCompressed });
        assert_eq!((small.cpus(), small.vmcoreinfo()), (dump.cpus(), dump.vmcoreinfo()));
        assert!(small.remarks().is_empty(), "{:?}", small.remarks());
        let again = KernelMemory::new(&small).expect("the same tables");
        assert_eq!(again.read_u64(0xffff_8880_0000_0010), Ok(0x2000_0010));
        assert_eq!((again.read_u64(IMAGE + 0xf_f000), again.read_u64(IMAGE + 0xf_e000)), (Ok(0), Ok(0)));
        assert_eq!(small.touched(), dump.touched(), "nothing else was read for the same answers");
        let missing = again.read_u64(IMAGE + 0xf_d000).expect_err("nobody has read it");
        let excluded = matches!(missing, ReadError::Excluded { .. });
        assert_eq!(excluded, format == Format::Kdump, "{missing}");
        // And an extract of the extract is the extract. (Which pages the machine had is kept in pieces of 64.)
        let (again, _) = written(&small, format);
        assert_eq!(again.len(), file.len(), "{format:?}");
        let again = open(&again).expect("a dump");
        assert_eq!((again.memory().ranges(), again.notes()), (small.memory().ranges(), small.notes()));
        let third = KernelMemory::new(&again).expect("the same tables");
        assert_eq!(third.read_u64(0xffff_8880_0000_0010), Ok(0x2000_0010));
    }
    assert_eq!(Format::suited(&memory), Format::Kdump);
}

#[test]
fn vmcoreinfo_that_was_found_in_memory_becomes_a_note() {
    let mut segments = kernel();
    segments[0].bytes = notes(&[("CORE", 1, &status(5)), ("CORE", 3, b"sh -c secret"), ("LINUX", 7, b"x")]);
    let text = support::vmcoreinfo(false, "");
    segments[1].bytes[0x8000..0x8000 + text.len()].copy_from_slice(text.as_bytes());
    let dump = open(&elf(62, &segments)).expect("a core");
    let memory = KernelMemory::new(&dump).expect("tables");
    assert_eq!(memory.read_u64(0xffff_8880_0000_0010), Ok(0x2000_0010));
    let (file, extracted) = written(&dump, Format::Kdump);
    assert_eq!(extracted.notes, 2, "what a diagnosis does not read is not kept");
    let small = open(&file).expect("a dump");
    assert_eq!(small.vmcoreinfo(), Some(text.as_str()));
    assert!(!file.windows(6).any(|bytes| bytes == b"secret"));
}

#[test]
fn where_segments_say_where_things_are_they_go_on_saying_it() {
    let first =
        Segment { address: 0xffff_8000_0010_0000, ..memory(0x10_0000, pattern(0x10_0000..0x10_4000)) };
    let second =
        Segment { address: 0xffff_8000_0050_0000, ..memory(0x10_4000, pattern(0x10_4000..0x10_5800)) };
    let dump = open(&elf(62, &[first, second])).expect("a core");
    let memory = KernelMemory::new(&dump).expect("addresses");
    assert_eq!(memory.read_u64(0xffff_8000_0010_3ff8), Ok(0x10_3ff8));
    assert_eq!(memory.read_u64(0xffff_8000_0050_17f8), Ok(0x10_57f8), "of a page that is there in part");
    assert_eq!(memory.read_u64(0xffff_8000_0050_0000), Ok(0x10_4000));
    assert_eq!(Format::suited(&memory), Format::Elf);
    let (file, extracted) = written(&dump, Format::Elf);
    assert_eq!(extracted.pages, 3);
    let small = open(&file).expect("a core");
    let memory = KernelMemory::new(&small).expect("addresses");
    assert_eq!(memory.read_u64(0xffff_8000_0010_3ff8), Ok(0x10_3ff8));
    assert_eq!(memory.read_u64(0xffff_8000_0050_17f8), Ok(0x10_57f8));
    assert_eq!(memory.read_u64(0xffff_8000_0050_0000), Ok(0x10_4000));
    assert!(memory.read_u64(0xffff_8000_0010_2ff0).is_err());
}

#[test]
fn pages_that_do_not_get_smaller_are_stored_as_they_are() {
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    let bytes: Vec<u8> = (0..4 * PAGE).map(|_| noise()).collect();
    let dump = open(&elf(62, &[memory(0x7_0000_0000, bytes.clone())])).expect("a core");
    let ranges = [0x7_0000_0000..0x7_0000_1000, 0x7_0000_2000..0x7_0000_4000];
    for format in [Format::Kdump, Format::Elf] {
        let mut file = Cursor::new(Vec::new());
        let extracted = extract_ranges(&dump, &ranges, &mut file, format).expect("to memory");
        assert_eq!(extracted.pages, 3);
        let small = open(&file.into_inner()).expect("a dump");
        assert!(read(&small, 0x7_0000_2000, 2 * PAGE) == Ok(bytes[2 * PAGE..].to_vec()), "{format:?}");
        assert!(read(&small, 0x7_0000_0000, PAGE) == Ok(bytes[..PAGE].to_vec()), "{format:?}");
        assert!(read(&small, 0x7_0000_1000, 1).is_err(), "{format:?}");
    }
}

#[test]
fn what_cannot_be_written_is_told() {
    let many: Vec<_> = (0..0x1_0000u64).map(|page| memory(page * 0x2000, vec![1; PAGE])).collect();
    let dump = open(&elf(62, &many)).expect("a core");
    let result = extract_ranges(&dump, &dump.memory().ranges(), Cursor::new(Vec::new()), Format::Elf);
    assert!(matches!(result, Err(ExtractError::TooManyPieces(0x1_0001))), "{result:?}");
    let dump = open(&elf(183, &kernel())).expect("a core");
    let result = extract(&dump, Cursor::new(Vec::new()), Format::Kdump);
    assert!(result.is_err_and(|error| error.to_string().contains("arm64")));
}
