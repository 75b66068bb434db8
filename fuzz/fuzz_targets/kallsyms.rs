//! Symbol tables: by their keys, whose values are fuzzed too, and by searching for them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smpcall_crashdump::kallsyms::{AddressTable, Kallsyms, Tables};
use smpcall_crashdump::kallsyms_scan;
use smpcall_crashdump::virtual_memory::Extents;

const BASE: u64 = 0xffff_ffff_8200_0000;

/// Offsets of the tables (16 bits each), how they are encoded and how many symbols there are; the rest is the image.
fn tables(head: &[u8; 16]) -> Tables {
    let offset = |at: usize| BASE + u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let addresses = match head[12] % 3 {
        0 => AddressTable::Absolute(offset(6)),
        1 => AddressTable::Offsets { offsets: offset(6), base: Some(offset(8)) },
        _ => AddressTable::Offsets { offsets: offset(6), base: None },
    };
    let count = u32::from(u16::from_le_bytes([head[10], head[11]]));
    Tables { names: offset(0), count, token_table: offset(2), token_index: offset(4), addresses }
}

fn ask(symbols: &Kallsyms) {
    for index in (0..symbols.len()).take(64) {
        let address = symbols.address(index);
        let name = symbols.name(index);
        let _ = (symbols.at(address), symbols.at(address.wrapping_add(1)));
        if let Some((_, name)) = name {
            let _ = symbols.all(&name).count();
        }
    }
    let _ = (symbols.at(0), symbols.at(u64::MAX), symbols.address_of("_stext"), symbols.address_of(""));
}

fuzz_target!(|data: &[u8]| {
    let Some((head, image)) = data.split_first_chunk::<16>() else { return };
    let memory = Extents(vec![(BASE, image.to_vec())]);
    for stext in [None, Some(0xffff_ffff_8100_0000)] {
        if let Ok(symbols) = Kallsyms::load(&memory, &tables(head), stext) {
            ask(&symbols);
        }
    }
    if let Ok(symbols) = kallsyms_scan::find(&memory, &memory, BASE..BASE + image.len() as u64, None) {
        ask(&symbols);
    }
});
