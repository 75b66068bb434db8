use proptest::prelude::*;

use crate::kallsyms::{AddressTable, Encoding, Kallsyms, KallsymsError, Tables};
use crate::kallsyms_samples::{Order, STEXT, Sample, TABLES, build, symbols};
use crate::kallsyms_scan;
use crate::virtual_memory::Extents;

const ENCODINGS: [Encoding; 4] = [
    Encoding::Absolute,
    Encoding::BaseRelative { base: 0 },
    Encoding::AbsolutePerCpu { base: 0 },
    Encoding::PlaceRelative { place: 0 },
];
const ORDERS: [Order; 4] = [Order::WideMarkers, Order::AddressesFirst, Order::Ordered, Order::AddressesLast];

fn combinations() -> impl Iterator<Item = (Order, Encoding, Sample)> {
    ORDERS.into_iter().flat_map(|order| ENCODINGS.map(|encoding| (order, encoding, build(order, encoding))))
}

fn assert_whole(found: &Kallsyms, encoding: Encoding) {
    let wanted = symbols(matches!(encoding, Encoding::AbsolutePerCpu { .. }));
    assert_eq!(std::mem::discriminant(&found.encoding()), std::mem::discriminant(&encoding));
    assert_eq!(found.len(), wanted.len());
    for (index, (address, kind, name)) in wanted.iter().enumerate() {
        assert_eq!(found.name(index), Some((*kind, name.clone())), "{encoding:?}");
        assert_eq!(found.address(index), *address, "{name} in {encoding:?}");
        let first = wanted.iter().find(|(_, _, other)| other == name).expect("it is there");
        assert_eq!(found.address_of(name), Some(first.0), "{name}");
    }
}

#[test]
fn every_encoding_in_every_order_is_read_by_its_keys() {
    for (_, encoding, sample) in combinations() {
        let tables = Tables::from_vmcoreinfo(&sample.memory, sample.info());
        assert_eq!(tables, Ok(Some(sample.tables)));
        let found = Kallsyms::load(&sample.memory, &sample.tables, Some(STEXT)).expect("tables");
        assert_whole(&found, encoding);
    }
}

#[test]
fn every_encoding_is_told_even_without_knowing_an_address() {
    for (order, encoding, sample) in combinations() {
        let found = Kallsyms::load(&sample.memory, &sample.tables, None)
            .unwrap_or_else(|error| panic!("{order:?} {encoding:?}: {error}"));
        assert_whole(&found, encoding);
    }
}

#[test]
fn the_tables_are_found_in_the_image_where_kernels_have_them() {
    for (order, encoding, sample) in combinations() {
        // Place-relative offsets are newer than that order.
        if order != Order::AddressesLast && matches!(encoding, Encoding::PlaceRelative { .. }) {
            continue;
        }
        // Absolute addresses are behind the index in no kernel that lacks the keys.
        if order == Order::AddressesLast && encoding == Encoding::Absolute {
            continue;
        }
        let range = STEXT..TABLES + 0x10_0000;
        let found = kallsyms_scan::find(&sample.memory, &sample.memory, range, Some(STEXT))
            .unwrap_or_else(|error| panic!("{order:?} {encoding:?}: {error}"));
        assert_whole(&found, encoding);
    }
}

#[test]
fn without_tables_the_search_says_where_it_looked() {
    let memory = Extents(vec![(STEXT, vec![0x90; 0x4000])]);
    let error = kallsyms_scan::find(&memory, &memory, STEXT..STEXT + 0x10_0000, None).expect_err("no tables");
    assert_eq!(error, KallsymsError::NotFound { from: STEXT, to: STEXT + 0x10_0000 });
}

#[test]
fn an_address_belongs_to_the_symbol_before_it() {
    let sample = build(Order::AddressesFirst, Encoding::AbsolutePerCpu { base: 0 });
    let found = Kallsyms::load(&sample.memory, &sample.tables, Some(STEXT)).expect("tables");
    let at = |address| found.at(address).map(|symbol| (symbol.name, address - symbol.address, symbol.size));
    assert_eq!(at(STEXT + 0x1000 + 0x40 * 7 + 0x12), Some(("function_7".into(), 0x12, 0x40)));
    assert_eq!(at(STEXT + 1), Some(("_stext".into(), 1, 0x1000)), "the first of two names for one address");
    assert_eq!(at(STEXT + 0x20_0100), Some(("same".into(), 0, 0x80)));
    assert_eq!(at(STEXT - 1), None, "below the first");
    assert_eq!(at(STEXT + 0x30_0000), Some(("_end".into(), 0, 0)));
    assert_eq!(at(STEXT + 0x30_0001), None, "above the last");
    assert_eq!(found.at(0x32b00), None, "an offset of per-CPU data is no address");
    assert_eq!(found.address_of("call_single_queue"), Some(0x32b00));
}

#[test]
fn all_symbols_of_one_name_are_found() {
    let sample = build(Order::AddressesLast, Encoding::PlaceRelative { place: 0 });
    let found = Kallsyms::load(&sample.memory, &sample.tables, Some(STEXT)).expect("tables");
    assert_eq!(found.all("same").collect::<Vec<_>>(), [STEXT + 0x20_0100, STEXT + 0x20_0180]);
    assert_eq!(found.all("function_").count(), 0, "a beginning is not the name");
    assert_eq!(found.address_of(""), None);
}

#[test]
fn a_wrong_stext_is_an_encoding_that_is_not_known() {
    let sample = build(Order::AddressesFirst, Encoding::BaseRelative { base: 0 });
    let error =
        Kallsyms::load(&sample.memory, &sample.tables, Some(1)).map(|_| ()).expect_err("wrong address");
    assert_eq!(error, KallsymsError::UnknownEncoding { stext: 1 });
}

#[test]
fn tables_that_end_too_early_are_errors() {
    let sample = build(Order::AddressesFirst, Encoding::BaseRelative { base: 0 });
    let mut tables = sample.tables;
    tables.count = 100_000;
    assert!(Kallsyms::load(&sample.memory, &tables, Some(STEXT)).is_err());
    tables.count = u32::MAX;
    assert!(matches!(
        Kallsyms::load(&sample.memory, &tables, Some(STEXT)),
        Err(KallsymsError::Damaged { table: "number of symbols", .. })
    ));
    let mut tables = sample.tables;
    tables.addresses = AddressTable::Absolute(0x1000);
    assert!(matches!(
        Kallsyms::load(&sample.memory, &tables, Some(STEXT)),
        Err(KallsymsError::Missing { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever bytes are flipped, in whatever layout: an error or symbols that can be asked, never a panic.
    #[test]
    fn damaged_tables_are_errors_or_symbols(
        order in 0..4_usize,
        encoding in 0..4_usize,
        damage in prop::collection::vec((0..40_000_usize, any::<u8>()), 1..30),
        names in "[a-z_]{0,10}",
        address: u64,
    ) {
        let mut sample = build(ORDERS[order], ENCODINGS[encoding]);
        let image = &mut sample.memory.0[0].1;
        for (at, byte) in damage {
            let at = at % image.len();
            image[at] = byte;
        }
        let loaded = Kallsyms::load(&sample.memory, &sample.tables, Some(STEXT));
        let found = kallsyms_scan::find(&sample.memory, &sample.memory, TABLES..TABLES + 0x10_0000, None);
        for symbols in loaded.into_iter().chain(found) {
            let _ = (symbols.address_of(&names), symbols.at(address), symbols.at(address | 1 << 63));
            for index in 0..symbols.len() {
                let _ = (symbols.name(index), symbols.address(index));
            }
        }
    }
}
