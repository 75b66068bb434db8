//! ELF cores are read whatever the order, number and overlap of their segments, and refused by name if they cannot be.

#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]

mod support;

use smpcall_crashdump::{Architecture, KernelMemory, Kind, OpenError, ReadError};
use support::{Segment, elf, kernel, memory, notes, open, pattern, read, status};

#[test]
fn segments_may_be_in_any_order() {
    let file = elf(
        62,
        &[
            memory(0x20_0000, pattern(0x20_0000..0x20_2000)),
            memory(0x1000, pattern(0x1000..0x3000)),
            memory(0x20_2000, pattern(0x20_2000..0x20_3000)),
        ],
    );
    let dump = open(&file).expect("a core");
    assert_eq!((dump.kind(), dump.architecture()), (Kind::Elf, Architecture::X86_64));
    assert_eq!(dump.memory().ranges(), [0x1000..0x3000, 0x20_0000..0x20_3000]);
    assert_eq!(read(&dump, 0x20_1ffa, 12), Ok(pattern(0x20_1ffa..0x20_2006)), "across two segments");
    assert_eq!(read(&dump, 0x20_0000, 0x3000), Ok(pattern(0x20_0000..0x20_3000)), "in bulk");
    assert_eq!(read(&dump, 0x2ff8, 16), Err(ReadError::Absent { address: 0x3000 }));
    assert_eq!(read(&dump, 0, 8), Err(ReadError::Absent { address: 0 }));
    assert_eq!(read(&dump, 0x10_0000, 1), Err(ReadError::Absent { address: 0x10_0000 }));
}

#[test]
fn of_segments_that_overlap_the_first_is_taken() {
    let file = elf(
        62,
        &[
            memory(0x4000, vec![1; 0x2000]),
            memory(0x2000, vec![2; 0x6000]),
            memory(0x3000, vec![3; 0x1_0000]),
        ],
    );
    let dump = open(&file).expect("a core");
    assert_eq!(dump.memory().ranges(), [0x2000..0x1_3000]);
    for (address, byte) in
        [(0x2000, 2), (0x3fff, 2), (0x4000, 1), (0x5fff, 1), (0x6000, 2), (0x7fff, 2), (0x8000, 3)]
    {
        assert_eq!(read(&dump, address, 1), Ok(vec![byte]), "{address:#x}");
    }
    let all = read(&dump, 0x2000, 0x1_1000).expect("all is there");
    let expected = [vec![2; 0x2000], vec![1; 0x2000], vec![2; 0x2000], vec![3; 0xb000]].concat();
    assert!(all == expected);
}

#[test]
fn what_was_left_out_is_told_from_what_never_was() {
    let filtered = Segment { left_out: 0x3000, ..memory(0x1_0000, pattern(0x1_0000..0x1_1000)) };
    let again = memory(0x1_2000, pattern(0x1_2000..0x1_3000));
    let dump = open(&elf(62, &[filtered, again])).expect("a core");
    assert_eq!(read(&dump, 0x1_0ff8, 8), Ok(pattern(0x1_0ff8..0x1_1000)));
    assert_eq!(read(&dump, 0x1_1000, 8), Err(ReadError::Excluded { address: 0x1_1000 }));
    assert_eq!(read(&dump, 0x1_2000, 8), Ok(pattern(0x1_2000..0x1_2008)), "another segment has it");
    assert_eq!(read(&dump, 0x1_3000, 8), Err(ReadError::Excluded { address: 0x1_3000 }));
    assert_eq!(read(&dump, 0x1_4000, 8), Err(ReadError::Absent { address: 0x1_4000 }));
    assert_eq!(dump.memory().ranges(), [0x1_0000..0x1_1000, 0x1_2000..0x1_3000]);
    assert_eq!(dump.memory().existing(), [0x1_0000..0x1_4000]);
}

#[test]
fn a_core_may_have_more_segments_than_its_header_can_say() {
    // Every other page, so that none of them are one.
    let segments: Vec<_> =
        (0..0x1_0010u64).rev().map(|page| memory(page * 0x2000, vec![page as u8; 0x10])).collect();
    let file = elf(62, &segments);
    assert_eq!(file[56..58], [0xff, 0xff]);
    let dump = open(&file).expect("a core");
    assert_eq!(dump.memory().ranges().len(), segments.len());
    assert_eq!(read(&dump, 0x1_0009 * 0x2000, 2), Ok(vec![9, 9]));
    assert_eq!(read(&dump, 3 * 0x2000 + 0xf, 1), Ok(vec![3]));

    let mut none = file.clone();
    none[40..48].fill(0);
    let error = open(&none).expect_err("no section header");
    assert!(error.to_string().contains("section header"), "{error}");
    let mut absurd = file;
    absurd[64 + 44..64 + 48].fill(0xff);
    assert!(matches!(open(&absurd), Err(OpenError::Damaged { offset: 64, .. })));
}

#[test]
fn a_core_that_was_cut_off_is_read_as_far_as_it_goes() {
    let file = elf(62, &kernel());
    let whole = open(&file).expect("a core");
    assert!(whole.remarks().is_empty(), "{:?}", whole.remarks());
    let cut = open(&file[..file.len() - 0x800]).expect("most of a core");
    assert!(cut.remarks().iter().any(|remark| remark.contains("cut off")), "{:?}", cut.remarks());
    assert_eq!(read(&cut, 0x2000_0000, 0x800), Ok(pattern(0x2000_0000..0x2000_0800)));
    let offset = file.len() as u64 - 0x800;
    assert_eq!(
        read(&cut, 0x2000_0900, 8),
        Err(ReadError::CutOff { address: 0x2000_0900, offset: offset + 0x100 })
    );
    let error = open(&file[..100]).expect_err("the table is missing");
    assert!(matches!(error, OpenError::CutOff { part: "table of segments", length: 100, .. }), "{error}");
}

#[test]
fn notes_are_read_and_registers_found_in_them() {
    let dump = open(&elf(62, &kernel())).expect("a core");
    let rips: Vec<u64> = dump.cpus().iter().map(|cpu| cpu.registers.rip).collect();
    assert_eq!(rips, [0xffff_ffff_8000_1234, 0x1234]);
    assert_eq!(dump.cpus()[0].pid, Some(7));
    assert!(dump.vmcoreinfo().is_some_and(|text| text.starts_with("OSRELEASE=6.1.0\n")));
    assert_eq!(dump.notes().len(), 3);
}

#[test]
fn notes_that_cannot_be_read_do_not_keep_memory_from_being_read() {
    let mut note = notes(&[("CORE", 1, &status(1)), ("CORE", 1, &status(2))]);
    note[356 + 4..][..4].fill(0x7f);
    let segments = [Segment { notes: true, bytes: note, ..Segment::default() }, memory(0, vec![5; 0x1000])];
    let dump = open(&elf(62, &segments)).expect("a core");
    assert_eq!((dump.cpus().len(), dump.remarks().len()), (1, 1));
    assert_eq!(read(&dump, 0, 1), Ok(vec![5]));
}

#[test]
fn our_own_vmcores_are_told_from_others() {
    let mut note = [0; 256];
    let mut writer = smpcall_vmcore::NoteWriter::new(&mut note);
    let summary = smpcall_vmcore::CrashSummary { winner: 3, ..Default::default() };
    smpcall_vmcore::Record::Summary(summary).write(&mut writer).expect("fits");
    let segments = [Segment { notes: true, bytes: note.to_vec(), ..Segment::default() }];
    let dump = open(&elf(62, &segments)).expect("a core");
    assert_eq!(dump.kind(), Kind::Smpcall);
    assert_eq!(dump.records().collect::<Vec<_>>(), [smpcall_vmcore::Record::Summary(summary)]);
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let good = elf(62, &kernel());
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        open(&file).expect_err("refused").to_string()
    };
    for (error, says) in [
        (with(4, &[1]), "32-bit"),
        (with(4, &[9]), "class 9"),
        (with(5, &[3]), "byte order 3"),
        (with(5, &[2]), "no core"),
        (with(16, &[2, 0]), "kernel image"),
        (with(16, &[1, 0]), "type 1"),
        (with(54, &[32, 0]), "32 bytes instead of 56"),
        (with(0, b"KDUMP   "), "blocks"),
        (with(0, b"DISKDUMP"), "diskdump"),
        (with(0, b"QEVM"), "dump-guest-memory"),
        (with(0, &[0x1f, 0x8b]), "gzip -d"),
        (with(0, b"\0\0\0\0"), "no crash dump: it begins with 00 00 00 00 02"),
        (open(&[]).expect_err("refused").to_string(), "it is empty"),
    ] {
        assert!(error.contains(says), "{error} ({says})");
    }
}

#[test]
fn other_architectures_are_opened_and_their_page_tables_refused() {
    for (machine, name) in [(183, "arm64"), (22, "s390x"), (243, "ELF machine 243")] {
        let dump = open(&elf(machine, &kernel())).expect("a core");
        assert_eq!(read(&dump, 0x2000_0000, 8), Ok(pattern(0x2000_0000..0x2000_0008)));
        let error = KernelMemory::new(&dump).expect_err("no page tables of x86-64").to_string();
        assert!(error.contains(name) && error.contains("only those of x86-64"), "{error}");
    }
}
