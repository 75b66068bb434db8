//! kdump-compressed dumps of every version are read, flattened or not, and what is missing is told by why it is.

#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]

mod support;

use smpcall_crashdump::{Architecture, Kind, OpenError, ReadError};
use support::{Kdump, PAGE, Stored, flatten, notes, open, pattern, read, status, zlib};

fn page(number: u64) -> Vec<u8> {
    pattern(number * PAGE as u64..(number + 1) * PAGE as u64)
}

/// Pages of which some are missing, for each of the reasons.
fn pages(count: u64) -> Vec<Stored> {
    (0..count)
        .map(|number| match number % 7 {
            2 => Stored::Absent,
            4 => Stored::Excluded,
            5 => Stored::Page(0, page(number)),
            _ => Stored::Page(1, zlib(&page(number))),
        })
        .collect()
}

#[test]
fn every_version_is_read() {
    let note = notes(&[("CORE", 1, &status(0x1234)), ("VMCOREINFO", 0, b"OSRELEASE=6.1.0\n")]);
    for version in 0..=7 {
        let vmcoreinfo = if version == 3 { b"OSRELEASE=6.1.0\n".to_vec() } else { Vec::new() };
        let kdump = Kdump { version, vmcoreinfo, notes: note.clone(), pages: pages(100), ..Kdump::default() };
        let dump = open(&kdump.to_bytes()).expect("a dump");
        assert_eq!((dump.kind(), dump.architecture()), (Kind::KdumpCompressed, Architecture::X86_64));
        assert_eq!(dump.cpus().len(), usize::from(version >= 4), "{version}");
        assert_eq!(dump.vmcoreinfo().is_some(), version >= 3, "{version}");
        assert_eq!(dump.remarks().len(), usize::from(version == 7), "{version}: {:?}", dump.remarks());
        for number in [0, 1, 5, 6, 99] {
            assert_eq!(read(&dump, number * PAGE as u64, PAGE), Ok(page(number)), "{version}: {number}");
        }
    }
}

#[test]
fn pages_are_found_by_counting_bits_wherever_they_are() {
    // More than one stride of the bitmap, and more than one block.
    let count = 8 * PAGE as u64 + 5000;
    let there = [0, 1, 63, 64, 4095, 4096, 4097, 8 * PAGE as u64 - 1, 8 * PAGE as u64, count - 1];
    let stored =
        |number| if there.contains(&number) { Stored::Page(1, zlib(&page(number))) } else { Stored::Absent };
    let kdump = Kdump { pages: (0..count).map(stored).collect(), ..Kdump::default() };
    let dump = open(&kdump.to_bytes()).expect("a dump");
    for number in 0..count + 10 {
        let address = number * PAGE as u64;
        let expected = if there.contains(&number) {
            Ok(page(number)[8..16].to_vec())
        } else {
            Err(ReadError::Absent { address: address + 8 })
        };
        assert_eq!(read(&dump, address + 8, 8), expected, "{number}");
    }
    let ranges = dump.memory().ranges();
    assert!(there.iter().all(|page| ranges.iter().any(|range| range.contains(&(page * PAGE as u64)))));
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
    assert_eq!(ranges.last().map(|range| range.end), Some(count * PAGE as u64));
}

#[test]
fn what_is_missing_is_told_by_why_it_is() {
    let mut pages = pages(10);
    pages[3] = Stored::Lost;
    pages[6] = Stored::Page(0x40, page(6));
    pages[8] = Stored::Page(1, page(8)[..100].to_vec());
    let file = Kdump { status: 9, pages, ..Kdump::default() }.to_bytes();
    let dump = open(&file).expect("a dump");
    let at = |number: u64| read(&dump, number * PAGE as u64, 8);
    let address = |number: u64| number * PAGE as u64;
    assert_eq!(at(2), Err(ReadError::Absent { address: address(2) }));
    assert_eq!(at(3), Err(ReadError::Lost { address: address(3) }));
    assert_eq!(at(4), Err(ReadError::Excluded { address: address(4) }));
    assert!(matches!(at(6), Err(ReadError::Damaged { what: "its method of compression is not known", .. })));
    assert!(matches!(at(8), Err(ReadError::Damaged { .. })), "{:?}", at(8));
    assert_eq!(at(10), Err(ReadError::Absent { address: address(10) }));
    assert_eq!(dump.remarks().len(), 1, "{:?}", dump.remarks());

    // Pages behind the end of an incomplete dump are lost; of one that does not say so, cut off.
    for (status, lost) in [(9, true), (1, false)] {
        let file = Kdump { status, pages: self::pages(9), ..Kdump::default() }.to_bytes();
        let dump = open(&file[..file.len() - 10]).expect("most of a dump");
        let error = read(&dump, address(8), 8).expect_err("its end is missing");
        assert_eq!(matches!(error, ReadError::Lost { .. }), lost, "{error}");
        assert_eq!(matches!(error, ReadError::CutOff { .. }), !lost, "{error}");
        assert!(read(&dump, address(6), PAGE) == Ok(page(6)));
    }
}

#[test]
fn parts_of_split_dumps_and_other_machines_are_refused_by_name() {
    let split = Kdump { split: true, pages: pages(10), ..Kdump::default() };
    let error = open(&split.to_bytes()).expect_err("a part").to_string();
    assert!(error.contains("--reassemble"), "{error}");
    assert!(open(&Kdump { version: 1, ..split }.to_bytes()).is_ok(), "version 1 cannot be split");
    let mut big = Kdump { machine: "s390x", pages: pages(10), ..Kdump::default() }.to_bytes();
    big[8..12].copy_from_slice(&6u32.to_be_bytes());
    let error = open(&big).expect_err("another byte order").to_string();
    assert!(error.contains("s390x"), "{error}");
    let arm =
        open(&Kdump { machine: "aarch64", pages: pages(10), ..Kdump::default() }.to_bytes()).expect("opens");
    assert_eq!(arm.architecture(), Architecture::Arm64);
}

#[test]
fn qemu_does_not_say_which_machine_it_is() {
    let kdump = |bytes: usize| {
        let notes = notes(&[("CORE", 1, &vec![0; bytes])]);
        let kdump = Kdump { machine: "Unknown", notes, pages: pages(10), ..Kdump::default() };
        open(&kdump.to_bytes()).expect("opens").architecture()
    };
    assert_eq!((kdump(336), kdump(392)), (Architecture::X86_64, Architecture::Arm64));
    assert_eq!(kdump(100).to_string(), "machine \"Unknown\"");
}

#[test]
fn flattened_dumps_read_like_others() {
    let kdump =
        Kdump { notes: notes(&[("CORE", 1, &status(5))]), pages: pages(100), ..Kdump::default() }.to_bytes();
    let elf = support::elf(62, &support::kernel());
    for (file, record) in [(&kdump, 100), (&kdump, 16384), (&elf, 1000)] {
        let plain = open(file).expect("a dump");
        let flat = open(&flatten(file, record)).expect("the same");
        assert!(flat.is_flattened() && !plain.is_flattened());
        assert_eq!((flat.kind(), flat.cpus(), flat.remarks()), (plain.kind(), plain.cpus(), plain.remarks()));
        for number in 0..100 {
            let address = number * PAGE as u64;
            assert_eq!(read(&flat, address, PAGE), read(&plain, address, PAGE), "{number}");
        }
    }
}

#[test]
fn absurd_headers_are_refused_before_memory_is_taken_for_them() {
    let good = Kdump { pages: pages(100), ..Kdump::default() }.to_bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        open(&file)
    };
    let refused = |result: Result<_, OpenError>| result.map(|_| ()).expect_err("refused").to_string();
    assert!(refused(with(428, &[0, 0, 0, 0])).contains("blocks of 0 bytes"));
    assert!(refused(with(428, &[1, 16, 0, 0])).contains("are no pages"));
    assert!(refused(with(436, &[0xff; 4])).contains("bitmaps"));
    assert!(refused(with(PAGE + 96, &[0xff; 8])).contains("are not enough"));
    assert!(refused(with(432, &[0xff; 4])).contains("cut off"));
    assert!(refused(open(&good[..300])).contains("kdump header"));
    assert!(refused(open(&good[..5000])).contains("bitmaps"));
    // Notes that cannot be there are remarked on; memory can be read.
    let dump = with(PAGE + 48, &[0xff; 16]).expect("opens");
    assert_eq!((dump.remarks().len(), read(&dump, 0, 8).is_ok()), (1, true));
}
