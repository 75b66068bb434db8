use proptest::prelude::*;

use crate::orc::{FrameKind, Layout, OrcEntry, OrcTable, Register};
use crate::release::KernelRelease;
use crate::virtual_memory::Extents;

const LAYOUTS: [Layout; 4] =
    [Layout::TwoBitType, Layout::SignalBit, Layout::ThreeBitType, Layout::Renumbered];

fn bytes(sp_offset: i16, bp_offset: i16, flags: u16) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (at, word) in [sp_offset.cast_unsigned(), bp_offset.cast_unsigned(), flags].into_iter().enumerate() {
        bytes[2 * at..2 * at + 2].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The same frame in each layout: a function that has pushed its caller's frame pointer.
#[test]
fn a_frame_is_the_same_in_every_layout() {
    let wanted = OrcEntry {
        sp_offset: 48,
        bp_offset: -16,
        sp: Register::Sp,
        bp: Register::PreviousSp,
        kind: FrameKind::Call,
        interrupted: false,
    };
    // Registers: the stack pointer was 5 and is 3, that of the caller was 1 and is 8. Types: a call was 0 and is 2.
    let flags = [0x015, 0x015, 0x215, 0x283];
    for (layout, flags) in LAYOUTS.into_iter().zip(flags) {
        assert_eq!(layout.decode(bytes(48, -16, flags)), wanted, "{layout:?}");
    }
}

#[test]
fn saved_registers_and_ends_are_told_in_every_layout() {
    // A whole set of registers, at the stack pointer; interrupted.
    let registers = [0x105, 0x505, 0xb05, 0xb03];
    // What the processor pushed.
    let frame = [0x205, 0x605, 0xc05, 0xc03];
    let end = [0x400, 0x800, 0x100, 0x100];
    for (index, layout) in LAYOUTS.into_iter().enumerate() {
        let decode = |flags| layout.decode(bytes(0, 0, flags));
        let kind = |flags: [u16; 4]| (decode(flags[index]).kind, decode(flags[index]).interrupted);
        assert_eq!(kind(registers), (FrameKind::Registers, true), "{layout:?}");
        assert_eq!(kind(frame), (FrameKind::InterruptFrame, true), "{layout:?}");
        assert_eq!(kind(end), (FrameKind::EndOfStack, false), "{layout:?}");
        assert_eq!(decode(0).kind, FrameKind::Undefined, "{layout:?}");
        assert_eq!(decode(registers[index]).sp, Register::Sp, "{layout:?}");
    }
}

#[test]
fn all_registers_have_their_numbers() {
    use Register::{Ax, Bp, BpIndirect, Di, Dx, PreviousSp, R10, R13, Sp, SpIndirect, Undefined, Unknown};
    let of = |layout: Layout| (0..16).map(|number| layout.decode(bytes(0, 0, number)).sp).collect::<Vec<_>>();
    let unknown = [Unknown; 5];
    let before = [Undefined, PreviousSp, Dx, Di, Bp, Sp, R10, R13, BpIndirect, SpIndirect, Ax];
    let since = [Undefined, Ax, Dx, Sp, Bp, Di, R10, R13, PreviousSp, SpIndirect, BpIndirect];
    assert_eq!(of(Layout::ThreeBitType), [&before[..], &unknown].concat());
    assert_eq!(of(Layout::Renumbered), [&since[..], &unknown].concat());
}

#[test]
fn the_layout_goes_by_the_hash_and_else_by_the_release() {
    let of = |release: &str| Layout::of(None, &KernelRelease::new(release));
    assert_eq!(of("4.14.0"), Layout::TwoBitType);
    assert_eq!(of("6.2.16"), Layout::TwoBitType);
    assert_eq!(of("6.3.1"), Layout::SignalBit);
    assert_eq!(of("6.4.0"), Layout::ThreeBitType);
    assert_eq!(of("7.0.5"), Layout::ThreeBitType);
    assert_eq!(of("7.1.0"), Layout::Renumbered);
    assert_eq!(of("5.14.0-503.el9.x86_64"), Layout::TwoBitType);
    assert_eq!(of("5.14.0-570.12.1.el9_6.x86_64"), Layout::ThreeBitType);
    let hash = [
        0xfe, 0x5d, 0x32, 0xbf, 0x58, 0x1b, 0xd6, 0x3b, 0x2c, 0xa9, 0xa5, 0xc6, 0x5b, 0xa5, 0xa6, 0x25, 0xea,
        0xb3, 0xfe, 0x24,
    ];
    let by_hash = |hash: &[u8]| Layout::of(Some(hash), &KernelRelease::new("6.2.0"));
    assert_eq!(by_hash(&hash), Layout::ThreeBitType);
    assert_eq!(by_hash(&hash[..19]), Layout::TwoBitType, "no known hash");
}

/// Entries for addresses 0x1000, 0x1010 and so on, each with its index as the offset.
fn table(count: u32) -> (Extents, OrcTable) {
    const IPS: u64 = 0xffff_ffff_8300_0000;
    const ENTRIES: u64 = 0xffff_ffff_8320_0000;
    let ips = (0..count).flat_map(|index| {
        let place = IPS + 4 * u64::from(index);
        (CODE + 16 * u64::from(index)).wrapping_sub(place).to_le_bytes()[..4].to_vec()
    });
    let entries = (0..count).flat_map(|index| bytes(index as i16, 0, 0x215));
    let memory = Extents(vec![(IPS, ips.collect()), (ENTRIES, entries.collect())]);
    (memory, OrcTable { ips: IPS, entries: ENTRIES, count })
}

const CODE: u64 = 0xffff_ffff_8100_1000;

#[test]
fn an_address_has_the_entry_before_it() {
    for count in [1, 2, 16, 17, 100, 1000] {
        let (memory, table) = table(count);
        let find = |address| {
            let entry = table.find(&memory, address).expect("the tables are there");
            entry.map(|entry| Layout::ThreeBitType.decode(entry).sp_offset)
        };
        assert_eq!(find(CODE - 1), None);
        for index in 0..count {
            let at = CODE + 16 * u64::from(index);
            assert_eq!(find(at), Some(index as i16), "{count}");
            assert_eq!(find(at + 15), Some(index as i16));
        }
        assert_eq!(find(u64::MAX), Some(count as i16 - 1));
    }
}

#[test]
fn tables_that_cannot_be_read_are_an_error() {
    let (memory, mut table) = table(100);
    table.count = 1 << 24;
    assert!(table.find(&memory, CODE + 50).is_err());
    table.count = 0;
    assert_eq!(table.find(&memory, CODE), Ok(None));
}

proptest! {
    #[test]
    fn any_entry_is_decoded(entry: [u8; 6]) {
        for layout in LAYOUTS {
            let _ = layout.decode(entry);
        }
    }

    #[test]
    fn any_table_is_bisected(ips: Vec<u8>, address: u64, count: u32) {
        let memory = Extents(vec![(0x1000, ips), (0x10_0000, vec![0; 6000])]);
        let _ = OrcTable { ips: 0x1000, entries: 0x10_0000, count }.find(&memory, address);
    }
}
