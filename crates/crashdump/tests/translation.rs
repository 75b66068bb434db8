//! Virtual addresses are translated as the processor does it, whatever the tables hold.

mod support;

use smpcall_crashdump::translate::{PageTables, Translation};
use smpcall_crashdump::{Dump, KernelMemory, Level, OpenError, ReadError, VirtualMemory as _};
use support::{PAGE, Segment, Tables, elf, kernel, memory, notes, open, pattern, vmcoreinfo};

const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// A dump with these tables at its start, and more memory.
fn dump(tables: Tables, info: &str, more: &[Segment]) -> Dump {
    let note = notes(&[("VMCOREINFO", 0, info.as_bytes())]);
    let first = [Segment { notes: true, bytes: note, ..Segment::default() }, memory(0, tables.bytes)];
    open(&elf(62, &[&first, more].concat())).expect("a core")
}

#[test]
fn pages_of_each_size_are_translated_with_four_levels_and_five() {
    for (levels, five) in [(4, false), (5, true)] {
        let mut tables = Tables::new(0x2_0000);
        let high = if five { 0xff12_3456_4000_0000u64 } else { 0xffff_c123_4000_0000 };
        tables.map(levels, IMAGE, 0, 21);
        tables.map(levels, high, 0x1_4000_0000, 30);
        tables.map(levels, high + (1 << 30), 0x60_0000, 21);
        tables.map(levels, high + (1 << 30) + 0x20_1000, 0x1_2345_6000, 12);
        let dump = dump(tables, &vmcoreinfo(five, ""), &[memory(0x60_0000, pattern(0x60_0000..0x60_4000))]);
        let kernel = KernelMemory::new(&dump).expect("tables");
        assert_eq!(kernel.translate(IMAGE + 0x1f_ffff), Ok(0x1f_ffff));
        assert_eq!(kernel.translate(high + 0x3fff_ffff), Ok(0x1_7fff_ffff));
        assert_eq!(kernel.translate(high + (1 << 30) + 0x1234), Ok(0x60_1234));
        assert_eq!(kernel.translate(high + (1 << 30) + 0x20_1abc), Ok(0x1_2345_6abc));
        let bytes = kernel.read_bytes(high + (1 << 30) + 8, 0x3000);
        assert_eq!(bytes, Ok(pattern(0x60_0008..0x60_3008)));
        let missing = kernel.translate(high + (1 << 30) + 0x20_2000);
        assert!(
            matches!(missing, Err(ReadError::NotMapped { level: Level::TableEntry, entry: 0, .. })),
            "{missing:?}"
        );
        let missing = kernel.translate(high + (2 << 30));
        assert!(
            matches!(missing, Err(ReadError::NotMapped { level: Level::PointerEntry, .. })),
            "{missing:?}"
        );
    }
}

#[test]
fn addresses_that_are_none_are_refused() {
    let dump = open(&elf(62, &kernel())).expect("a core");
    let kernel = KernelMemory::new(&dump).expect("tables");
    for address in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 0x1234_5678_9abc_def0] {
        assert_eq!(kernel.translate(address), Err(ReadError::NotCanonical { address }));
    }
    assert!(matches!(kernel.translate(0), Err(ReadError::NotMapped { level: Level::Pml4Entry, .. })));
    let wraps = kernel.read_bytes(u64::MAX - 3, 8);
    assert!(wraps.is_err(), "{wraps:?}");
    assert_eq!(
        kernel.read_bytes(IMAGE, 65 << 20).map_err(|error| matches!(error, ReadError::TooLong { .. })),
        Err(true)
    );
    assert_eq!(kernel.read_string(0xffff_8880_0000_0fff, 100).as_deref(), Ok("x"), "ends with its page");
}

#[test]
fn the_bit_of_encryption_is_no_part_of_an_address() {
    let mut tables = Tables::new(0x1_0000);
    tables.mask = 1 << 47;
    tables.map(4, IMAGE, 0, 21);
    let info = vmcoreinfo(false, "NUMBER(sme_mask)=140737488355328\n");
    let dump = dump(tables, &info, &[]);
    let kernel = KernelMemory::new(&dump).expect("tables");
    assert_eq!(kernel.translate(IMAGE + 0x1234), Ok(0x1234));
}

#[test]
fn tables_that_refer_to_themselves_end_like_others() {
    let mut tables = Tables::new(0x1_0000);
    tables.map(4, IMAGE, 0, 21);
    // The topmost table is its own entry 300: what it maps there are page tables.
    tables.put(Tables::ROOT + 300 * 8, Tables::ROOT | 0x63);
    let dump = dump(tables, &vmcoreinfo(false, ""), &[]);
    let kernel = KernelMemory::new(&dump).expect("tables");
    let itself = 0xffff_0000_0000_0000 | 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12;
    assert_eq!(kernel.translate(itself + 0x18), Ok(Tables::ROOT + 0x18));
    assert_eq!(kernel.read_u64(itself + 300 * 8), Ok(Tables::ROOT | 0x63));
}

#[test]
fn tables_that_lead_nowhere_say_where() {
    let mut tables = Tables::new(0x1_0000);
    tables.map(4, IMAGE, 0, 21);
    tables.put(Tables::ROOT + 300 * 8, 0x7777_0000 | 1);
    let dump = dump(tables, &vmcoreinfo(false, ""), &[]);
    let kernel = KernelMemory::new(&dump).expect("tables");
    let address = 0xffff_0000_0000_0000 | 300 << 39;
    let error = kernel.translate(address).expect_err("no memory there");
    let source = Box::new(ReadError::Absent { address: 0x7777_0000 });
    assert_eq!(error, ReadError::Table { address, level: Level::PointerEntry, source });
}

#[test]
fn a_root_that_does_not_map_itself_is_none() {
    let tables = Tables::new(0x1_0000);
    let dump = dump(tables, &vmcoreinfo(false, ""), &[]);
    let error = KernelMemory::new(&dump).expect_err("empty tables").to_string();
    assert!(error.contains("swapper_pg_dir is at 0xffffffff80001000, physical address 0x1000"), "{error}");
}

/// QEMU's note of a CPU with these page tables.
fn qemu(cr3: u64, cr4: u64) -> Vec<u8> {
    let mut note = vec![0; 440];
    note[416..424].copy_from_slice(&cr3.to_le_bytes());
    note[424..432].copy_from_slice(&cr4.to_le_bytes());
    note
}

#[test]
fn without_vmcoreinfo_the_tables_are_those_of_a_cpu() {
    // Kernel's and user's table beside each other: with page-table isolation the user's has bit 12 set.
    let mut tables = Tables::new(0x2_0000);
    tables.map(4, IMAGE, 0, 21);
    tables.map(4, IMAGE + (2 << 20), 0x20_0000, 21);
    let kernel_root = tables.bytes[0x1000..0x2000].to_vec();
    tables.bytes[0x1_0000..0x1_1000].copy_from_slice(&kernel_root);
    let user = [qemu(0, 0), qemu(0x1_1000 | 0x801, 0)];
    let other = [qemu(0x1_0000, 0), qemu(0x1_1000 | 0x801, 0)];
    for notes_of in [user, other] {
        let note = notes(&[("QEMU", 0, &notes_of[0]), ("QEMU", 0, &notes_of[1])]);
        let first =
            [Segment { notes: true, bytes: note, ..Segment::default() }, memory(0, tables.bytes.clone())];
        let dump = open(&elf(62, &first)).expect("a core");
        assert_eq!(dump.vmcoreinfo(), None);
        let kernel = KernelMemory::new(&dump).expect("tables");
        let Translation::X86_64(PageTables { root, .. }) = *kernel.translation() else {
            panic!("page tables")
        };
        assert_eq!((root, kernel.translate(IMAGE + (2 << 20) + 5)), (0x1_0000, Ok(0x20_0005)));
    }
    // And if bit 12 is a part of the address, it stays.
    tables.bytes.copy_within(0x1_0000..0x1_1000, 0x1_3000);
    tables.bytes[0x1_2000..0x1_3000].fill(0);
    let note = notes(&[("QEMU", 0, &qemu(0x1_3000, 0))]);
    let first = [Segment { notes: true, bytes: note, ..Segment::default() }, memory(0, tables.bytes)];
    let dump = open(&elf(62, &first)).expect("a core");
    let kernel = KernelMemory::new(&dump).expect("tables");
    assert!(matches!(kernel.translation(), Translation::X86_64(PageTables { root: 0x1_3000, .. })));
}

#[test]
fn without_page_tables_segments_say_where_things_are() {
    let bytes = pattern(0x10_0000..0x10_2000);
    let segment = Segment { address: 0xffff_8000_0010_0000, ..memory(0x10_0000, bytes) };
    let dump = open(&elf(62, &[segment])).expect("a core");
    let kernel = KernelMemory::new(&dump).expect("addresses");
    assert_eq!(kernel.read_bytes(0xffff_8000_0010_0ffc, 8), Ok(pattern(0x10_0ffc..0x10_1004)));
    let address = 0xffff_8000_0010_2000;
    assert_eq!(kernel.translate(address), Err(ReadError::NoSegment { address }));
    let dump = open(&elf(62, &[memory(0, vec![0; PAGE])])).expect("a core");
    assert!(matches!(KernelMemory::new(&dump), Err(OpenError::NoPageTables)));
}

#[test]
fn vmcoreinfo_is_found_in_memory_if_no_note_has_it() {
    let mut tables = Tables::new(0x1_0000);
    tables.map(4, IMAGE, 0, 21);
    let info = vmcoreinfo(false, "");
    tables.bytes[0x8000..0x8000 + info.len()].copy_from_slice(info.as_bytes());
    let dump = open(&elf(62, &[memory(0, tables.bytes)])).expect("a core");
    assert_eq!(dump.vmcoreinfo(), Some(info.as_str()));
    assert!(KernelMemory::new(&dump).is_ok());
}
