use std::sync::Arc;

use proptest::prelude::*;

use crate::btf::Btf;
use crate::btf_samples::{
    ARRAY, Builder, CONST, DATA_SECTION, DECLARATION_TAG, ENUM, ENUM64, FLOAT, FORWARD, FUNCTION, POINTER,
    PROTOTYPE, STRUCT, TYPE_TAG, TYPEDEF, UNION, VARIABLE,
};
use crate::types::{Bits, Field, Types, TypesError};

/// Some of the types of a call: with aliases, anonymous members, arrays and bit fields.
fn sample() -> Builder {
    let mut btf = Builder::new();
    let int = btf.int("int", 4, true);
    let u32 = btf.int("unsigned int", 4, false);
    let u64 = btf.int("long unsigned int", 8, false);
    let pointer = btf.add("", POINTER, 0, false, 0, &[]);
    let list = btf.aggregate("llist_node", STRUCT, 8, false, &[("next", pointer, 0)]);
    let flags = btf.aggregate("", UNION, 4, false, &[("u_flags", u32, 0), ("a_flags", int, 0)]);
    let halves = btf.aggregate("", STRUCT, 4, true, &[("src", u32, 16 << 24), ("dst", u32, 16 << 24 | 16)]);
    let node = btf.aggregate(
        "__call_single_node",
        STRUCT,
        16,
        false,
        &[("llist", list, 0), ("", flags, 64), ("", halves, 96)],
    );
    let call = btf.aggregate(
        "__call_single_data",
        STRUCT,
        32,
        false,
        &[("node", node, 0), ("func", pointer, 128), ("info", pointer, 192)],
    );
    let alias = btf.add("call_single_data_t", TYPEDEF, 0, false, call, &[]);
    let fixed = btf.add("", CONST, 0, false, alias, &[]);
    let three = btf.add("", ARRAY, 0, false, 0, &[fixed, u64, 3]);
    let open = btf.add("", ARRAY, 0, false, 0, &[u32, u64, 0]);
    btf.aggregate(
        "many",
        STRUCT,
        104,
        false,
        &[("count", int, 0), ("calls", three, 64), ("rest", open, 832)],
    );
    btf
}

#[test]
fn members_are_found_by_their_path() {
    let types = sample().types();
    let field = |structure, path| types.field(structure, path);
    let plain = |offset, size| Some(Field { offset, size, bits: None, signed: false, count: None });
    assert_eq!(field("__call_single_data", "func"), plain(16, 8));
    assert_eq!(field("__call_single_data", "node.llist.next"), plain(0, 8));
    assert_eq!(
        field("call_single_data_t", "node.u_flags"),
        plain(8, 4),
        "through typedef and anonymous union"
    );
    assert_eq!(field("many", "calls[2].info"), plain(8 + 2 * 32 + 24, 8));
    assert_eq!(field("many", "count").map(|field| field.signed), Some(true));
    let calls = field("many", "calls").expect("an array");
    assert_eq!((calls.size, calls.count, calls.element_size()), (96, Some(3), 32));
    assert_eq!(types.size_of("__call_single_data"), Some(32));
    assert_eq!(types.size_of("call_single_data_t"), Some(32));
    assert_eq!(types.size_of("int"), Some(4));
}

#[test]
fn bit_fields_say_which_bits_they_are() {
    let types = sample().types();
    let dst = types.field("__call_single_data", "node.dst").expect("a bit field");
    assert_eq!((dst.offset, dst.size, dst.bits), (14, 2, Some(Bits { shift: 0, width: 16 })));
    let mut bytes = vec![0; 32];
    bytes[12..16].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
    assert_eq!(dst.value(&bytes), Some(0x5678));
    assert_eq!(dst.value(&bytes[..15]), None);

    let mut btf = Builder::new();
    let u64 = btf.int("u64", 8, false);
    btf.aggregate(
        "odd",
        STRUCT,
        8,
        true,
        &[("a", u64, 3 << 24), ("b", u64, 7 << 24 | 3), ("c", u64, 33 << 24 | 0xa)],
    );
    let types = btf.types();
    let value = |path| types.field("odd", path)?.value(&0x1234_5678_9abc_def5_u64.to_le_bytes());
    assert_eq!(value("a"), Some(0x1234_5678_9abc_def5 & 7));
    assert_eq!(value("b"), Some(0x1234_5678_9abc_def5 >> 3 & 0x7f));
    assert_eq!(value("c"), Some(0x1234_5678_9abc_def5 >> 10 & ((1 << 33) - 1)));
}

#[test]
fn what_is_not_there_is_none() {
    let types = sample().types();
    for (structure, path) in [
        ("nothing", "a"),
        ("many", "nothing"),
        ("many", ""),
        ("many", "calls[3].info"),
        ("many", "calls[2"),
        ("many", "calls[-1]"),
        ("many", "count[0]"),
        ("many", "count.deeper"),
        ("int", "a"),
    ] {
        assert_eq!(types.field(structure, path), None, "{structure}.{path}");
    }
    assert_eq!(types.offset("many", "rest[5]"), Some(104 + 20), "an open array has any element");
    assert_eq!(types.size_of("nothing"), None);
}

#[test]
fn a_forward_declaration_does_not_hide_the_structure() {
    let mut btf = Builder::new();
    btf.add("task_struct", FORWARD, 0, false, 0, &[]);
    btf.add("task_struct", TYPEDEF, 0, false, 0, &[]);
    let int = btf.int("int", 4, true);
    btf.aggregate("task_struct", STRUCT, 8, false, &[("pid", int, 32)]);
    assert_eq!(btf.types().offset("task_struct", "pid"), Some(4));
}

#[test]
fn enumerators_of_both_sizes_are_found_with_or_without_a_name() {
    let mut btf = Builder::new();
    let [zero, minus] = ["CSD_ZERO", "CSD_MINUS"].map(|name| btf.string(name));
    btf.add("", ENUM, 2, true, 4, &[zero, 0, minus, u32::MAX]);
    let large = btf.string("LARGE");
    btf.add("sizes", ENUM64, 1, false, 8, &[large, 1, 2]);
    let types = btf.types();
    assert_eq!(types.enumerator("CSD_MINUS"), Some(-1));
    assert_eq!(types.enumerator("LARGE"), Some(0x2_0000_0001));
    assert_eq!(types.enumerator("CSD_"), None);
    assert_eq!(types.size_of("sizes"), Some(8));
}

#[test]
fn per_cpu_variables_are_in_their_section() {
    let mut btf = sample();
    let variable = btf.add("call_single_queue", VARIABLE, 0, false, 5, &[1]);
    let other = btf.add("runqueues", VARIABLE, 0, false, 5, &[1]);
    btf.add(".data..percpu", DATA_SECTION, 2, false, 0x40000, &[other, 0x100, 8, variable, 0x32b00, 8]);
    let types = btf.types();
    assert_eq!(types.per_cpu_variable("call_single_queue"), Some(0x32b00));
    assert_eq!(types.per_cpu_variable("irq_stat"), None);
    assert_eq!(sample().types().per_cpu_variable("call_single_queue"), None, "no section");
}

#[test]
fn every_kind_is_as_long_as_it_says() {
    let mut btf = Builder::new();
    btf.add("f", FLOAT, 0, false, 8, &[]);
    btf.add("p", PROTOTYPE, 2, false, 1, &[0, 1, 0, 1]);
    btf.add("f", FUNCTION, 1, false, 2, &[]);
    btf.add("t", DECLARATION_TAG, 0, false, 1, &[0]);
    btf.add("t", TYPE_TAG, 0, false, 1, &[]);
    let int = btf.int("int", 4, true);
    btf.aggregate("last", STRUCT, 4, false, &[("it", int, 0)]);
    assert_eq!(btf.types().offset("last", "it"), Some(0));
}

#[test]
fn an_unknown_kind_ends_the_types_and_those_before_it_stay() {
    let mut btf = sample();
    btf.add("new", 42, 0, false, 0, &[1, 2, 3]);
    let whole = Btf::new(&btf.bytes(), None).expect("those before are there");
    assert_eq!(whole.unknown_kind(), Some(42));
    assert_eq!(Types::from(Arc::new(whole)).size_of("many"), Some(104));
}

#[test]
fn a_modules_types_go_on_where_the_kernels_end() {
    let base = sample();
    let mut module = Builder::split(&base);
    // Type 9 of the base is `__call_single_data`.
    module.aggregate("troubled", STRUCT, 48, false, &[("call", 9, 64)]);
    let kernel = Arc::new(Btf::new(&base.bytes(), None).expect("as built"));
    let split = Types::from(Arc::new(Btf::new(&module.bytes(), Some(kernel)).expect("as built")));
    assert_eq!(split.offset("troubled", "call.info"), Some(32));
    assert_eq!(split.size_of("many"), Some(104), "the base's types are there too");
}

#[test]
fn types_that_contain_themselves_end() {
    let mut btf = Builder::new();
    btf.add("loop", TYPEDEF, 0, false, 1, &[]);
    btf.aggregate("inside", STRUCT, 8, false, &[("", 2, 0), ("array", 3, 0)]);
    btf.add("", ARRAY, 0, false, 0, &[3, 1, 2]);
    let types = btf.types();
    assert_eq!(types.size_of("loop"), None);
    assert_eq!(types.offset("inside", "nothing"), None);
    assert_eq!(types.field("inside", "array").map(|field| field.size), Some(0));
}

#[test]
fn what_is_no_btf_says_where_it_is_wrong() {
    let good = sample().bytes();
    let error = |bytes: &[u8]| Btf::new(bytes, None).map(|_| ()).expect_err("damaged");
    assert_eq!(error(&[]), TypesError::Damaged { offset: 0, what: "it does not begin with eb9f" });
    let mut version = good.clone();
    version[2] = 9;
    assert_eq!(error(&version), TypesError::Damaged { offset: 2, what: "its version is not 1" });
    assert!(matches!(error(&good[..40]), TypesError::Damaged { offset: 8, .. }));
    let mut cut = good.clone();
    // The length of the types: one word less, so that the last is not whole.
    cut[12..16]
        .copy_from_slice(&(u32::from_le_bytes([good[12], good[13], good[14], good[15]]) - 4).to_le_bytes());
    assert!(matches!(error(&cut), TypesError::Damaged { .. }));
}

proptest! {
    /// Whatever is flipped: an error, or types that can be asked, soon.
    #[test]
    fn damaged_types_are_errors_or_types(
        damage in prop::collection::vec((0..2000_usize, any::<u8>()), 0..40),
        path in "[a-z_.\\[\\]0-9]{0,20}",
    ) {
        let mut bytes = sample().bytes();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(btf) = Btf::new(&bytes, None) {
            let types = Types::from(Arc::new(btf));
            for name in ["many", "__call_single_data", "int", "__call_single_node"] {
                let _ = (types.size_of(name), types.field(name, &path), types.field(name, "calls[1].node.dst"));
                if let Some(field) = types.field(name, "node.dst") {
                    let _ = (field.value(&bytes), field.element_size());
                }
            }
            let _ = (types.enumerator(&path), types.per_cpu_variable(&path));
        }
    }

    #[test]
    fn any_bytes_are_types_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut whole = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        whole.extend_from_slice(&bytes);
        let _ = Btf::new(&whole, None);
    }
}
