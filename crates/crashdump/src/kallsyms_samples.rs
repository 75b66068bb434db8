//! Symbol tables for tests: built as a kernel's build builds them, in each layout and encoding.

use std::fmt::Write as _;

use smpcall_vmcore::VmCoreInfo;

use crate::kallsyms::{AddressTable, Encoding, Tables};
use crate::virtual_memory::Extents;

/// Where the sample's image begins; `_stext` is there.
pub(crate) const STEXT: u64 = 0xffff_ffff_8100_0000;
/// Where its tables begin.
pub(crate) const TABLES: u64 = 0xffff_ffff_8200_0000;

/// In which order the tables lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before Linux 4.20: 64-bit markers.
    WideMarkers,
    /// Before Linux 6.4.
    AddressesFirst,
    /// Linux 6.2 and 6.3, and later releases of 6.1: the order of the names behind the markers.
    Ordered,
    /// Since Linux 6.4.
    AddressesLast,
}

/// A sample: memory that holds the tables, and where they are.
pub(crate) struct Sample {
    pub(crate) memory: Extents,
    pub(crate) tables: Tables,
    pub(crate) vmcoreinfo: String,
}

impl Sample {
    pub(crate) fn info(&self) -> VmCoreInfo<'_> {
        VmCoreInfo::new(self.vmcoreinfo.as_bytes())
    }
}

/// Symbols in the order of their addresses: per-CPU ones, code, and one with a very long name.
pub(crate) fn symbols(per_cpu: bool) -> Vec<(u64, char, String)> {
    let mut all = Vec::new();
    if per_cpu {
        all.push((0, 'A', "__per_cpu_start".into()));
        all.push((0x32b00, 'A', "call_single_queue".into()));
    }
    all.push((STEXT, 'T', "_stext".into()));
    all.push((STEXT, 'T', "_text".into()));
    for number in 0..700_u64 {
        all.push((STEXT + 0x1000 + number * 0x40, 't', format!("function_{number}")));
    }
    all.push((STEXT + 0x20_0000, 't', format!("long_{}", "x".repeat(300))));
    all.push((STEXT + 0x20_0100, 't', "same".into()));
    all.push((STEXT + 0x20_0180, 't', "same".into()));
    all.push((STEXT + 0x30_0000, 'D', "_end".into()));
    all
}

/// Builds the tables. `absolute_per_cpu` and so on are told by the encoding; its base or place is filled in here.
#[expect(clippy::too_many_lines, reason = "the tables of a kernel, one after the other")]
pub(crate) fn build(order: Order, encoding: Encoding) -> Sample {
    let symbols = symbols(matches!(encoding, Encoding::AbsolutePerCpu { .. }));
    let tokens: Vec<Vec<u8>> = (0..=255_u8)
        .map(|code| match code {
            b'!' => b"function_".to_vec(),
            b'#' => b"Tfun".to_vec(),
            b'$' => b"xxxxxxxx".to_vec(),
            // What no name uses is left empty, as the kernel's build does.
            b' '..=b'~' => vec![code],
            _ => vec![],
        })
        .collect();
    let mut names = Vec::new();
    let mut marker = Vec::new();
    for (index, (_, kind, name)) in symbols.iter().enumerate() {
        if index % 256 == 0 {
            marker.push(names.len() as u64);
        }
        let text = format!("{kind}{name}").replace("function_", "!");
        // Only as many as keep one name longer than 127 codes.
        let text = if name.len() < 100 { text.replace("xxxxxxxx", "$") } else { text };
        if text.len() > 127 {
            names.push(text.len() as u8 & 0x7f | 0x80);
            names.push((text.len() >> 7) as u8);
        } else {
            names.push(text.len() as u8);
        }
        names.extend_from_slice(text.as_bytes());
    }
    let token_table: Vec<u8> = tokens.iter().flat_map(|token| token.iter().copied().chain([0])).collect();
    let mut begin = 0;
    let token_index: Vec<u8> = tokens
        .iter()
        .flat_map(|token| {
            let here = begin;
            begin += token.len() as u16 + 1;
            here.to_le_bytes()
        })
        .collect();
    let width = if order == Order::WideMarkers { 8 } else { 4 };
    let markers: Vec<u8> = marker.iter().flat_map(|value| value.to_le_bytes()[..width].to_vec()).collect();

    let mut image = vec![0xcc_u8; 64];
    let mut at = |bytes: &[u8], alignment: usize| {
        image.resize(image.len().next_multiple_of(alignment), 0);
        let here = TABLES + image.len() as u64;
        image.extend_from_slice(bytes);
        here
    };
    let count = symbols.len() as u32;
    // The base is the lowest address that is not absolute.
    let base_value = STEXT;
    let encode = |place: u64| -> Vec<u8> {
        let entry = |(index, (value, ..)): (usize, &(u64, char, String))| -> Vec<u8> {
            let narrow = |value: u64| (value as u32).to_le_bytes().to_vec();
            match encoding {
                Encoding::Absolute => value.to_le_bytes().to_vec(),
                Encoding::BaseRelative { .. } => narrow(value - base_value),
                Encoding::AbsolutePerCpu { .. } if *value < 1 << 31 => narrow(*value),
                Encoding::AbsolutePerCpu { .. } => narrow(base_value.wrapping_sub(1).wrapping_sub(*value)),
                Encoding::PlaceRelative { .. } => narrow(value.wrapping_sub(place + 4 * index as u64)),
            }
        };
        symbols.iter().enumerate().flat_map(entry).collect()
    };
    let has_base = matches!(encoding, Encoding::BaseRelative { .. } | Encoding::AbsolutePerCpu { .. });
    let addresses = |at: &mut dyn FnMut(&[u8], usize) -> u64| {
        let place = at(&[], 8);
        let here = at(&encode(place), 1);
        if encoding == Encoding::Absolute {
            return AddressTable::Absolute(here);
        }
        let base = has_base.then(|| at(&base_value.to_le_bytes(), 8));
        AddressTable::Offsets { offsets: here, base }
    };
    let first = (order != Order::AddressesLast).then(|| addresses(&mut at));
    let num_syms = at(&count.to_le_bytes(), 8);
    let names = at(&names, 8);
    at(&markers, 8);
    if order == Order::Ordered {
        let order: Vec<u8> =
            (0..count).flat_map(|index| [(index >> 16) as u8, (index >> 8) as u8, index as u8]).collect();
        at(&order, 8);
    }
    let token_table = at(&token_table, 8);
    let token_index = at(&token_index, 8);
    let addresses = first.unwrap_or_else(|| addresses(&mut at));
    at(&[0; 64], 8);

    let mut vmcoreinfo = format!(
        "OSRELEASE=6.1.0\nSYMBOL(_stext)={STEXT:x}\nSYMBOL(kallsyms_names)={names:x}\n\
         SYMBOL(kallsyms_num_syms)={num_syms:x}\nSYMBOL(kallsyms_token_table)={token_table:x}\n\
         SYMBOL(kallsyms_token_index)={token_index:x}\n"
    );
    match addresses {
        AddressTable::Absolute(at) => {
            writeln!(vmcoreinfo, "SYMBOL(kallsyms_addresses)={at:x}").expect("a string takes all");
        }
        AddressTable::Offsets { offsets, base } => {
            writeln!(vmcoreinfo, "SYMBOL(kallsyms_offsets)={offsets:x}").expect("a string takes all");
            if let Some(base) = base {
                writeln!(vmcoreinfo, "SYMBOL(kallsyms_relative_base)={base:x}").expect("a string takes all");
            }
        }
    }
    let tables = Tables { names, count, token_table, token_index, addresses };
    Sample { memory: Extents(vec![(TABLES, image)]), tables, vmcoreinfo }
}
