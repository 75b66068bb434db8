use proptest::prelude::*;

use crate::btf_samples::{ARRAY, Builder, POINTER, STRUCT};
use crate::modules::{Modules, ModulesError};
use crate::orc::OrcTable;
use crate::symbols::{FileSymbols, Symbols};
use crate::types::Types;
use crate::virtual_memory::Extents;

const HEAD: u64 = 0xffff_ffff_8300_0000;
/// Where two modules are: each with a `struct module` behind its code.
const FIRST: u64 = 0xffff_ffff_c000_0000;
const SECOND: u64 = 0xffff_ffff_c010_0000;
const STRUCTURE: u64 = 0x2000;

/// `struct module` of Linux 6.4 and later, or from 4.5 to 6.3; with only what is read.
fn types(memory_by_kind: bool) -> Types {
    let mut btf = Builder::new();
    let (u32, char) = (btf.int("u32", 4, false), btf.int("char", 1, true));
    let pointer = btf.add("", POINTER, 0, false, 0, &[]);
    let list = btf.aggregate("list_head", STRUCT, 16, false, &[("next", pointer, 0), ("prev", pointer, 64)]);
    let name = btf.add("", ARRAY, 0, false, 0, &[char, u32, 56]);
    let part = btf.aggregate("module_memory", STRUCT, 16, false, &[("base", pointer, 0), ("size", u32, 64)]);
    let parts = btf.add("", ARRAY, 0, false, 0, &[part, u32, 2]);
    let arch = btf.aggregate(
        "mod_arch_specific",
        STRUCT,
        24,
        false,
        &[("num_orcs", u32, 0), ("orc_unwind_ip", pointer, 64), ("orc_unwind", pointer, 128)],
    );
    let memory = if memory_by_kind { ("mem", parts, 8 * 80) } else { ("core_layout", part, 8 * 80) };
    btf.aggregate(
        "module",
        STRUCT,
        144,
        false,
        &[
            ("list", list, 64),
            ("name", name, 8 * 24),
            memory,
            ("kallsyms", pointer, 8 * 112),
            ("arch", arch, 8 * 120),
        ],
    );
    btf.aggregate(
        "mod_kallsyms",
        STRUCT,
        24,
        false,
        &[("symtab", pointer, 0), ("num_symtab", u32, 64), ("strtab", pointer, 128)],
    );
    btf.types()
}

fn symbols() -> Symbols {
    Symbols::new(None, Some(FileSymbols::new([(HEAD, 'd', "modules".into())], 0)))
}

struct Machine(Extents);

impl Machine {
    fn put(&mut self, address: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(address, &bytes);
    }

    fn bytes(&mut self, address: u64, bytes: &[u8]) {
        let found =
            self.0.0.iter_mut().find(|(base, held)| (*base..*base + held.len() as u64).contains(&address));
        let (base, held) = found.expect("memory");
        let at = (address - *base) as usize;
        held[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A module at a base, and what comes after it in the list.
    fn module(&mut self, base: u64, name: &str, next: u64) {
        let at = base + STRUCTURE;
        self.put(at + 8, &[next]);
        self.bytes(at + 24, name.as_bytes());
        self.put(at + 80, &[base, 0x1000, base + 0x1000, 0x3000]);
        self.put(at + 112, &[base + 0x2200, 3, base + 0x2300, base + 0x2400]);
        self.put(base + 0x2200, &[base + 0x2240, 5, base + 0x2600]);
        // Symbols: none, `init` twice at one address with a mark before it, another, and one of the kernel.
        let symbols =
            [(0, 0, 0), (1, 1, base + 0x10), (8, 1, base + 0x10), (13, 1, base + 0x80), (19, 0, base + 0x20)];
        for (index, (name, section, value)) in symbols.into_iter().enumerate() {
            let at = base + 0x2240 + 24 * index as u64;
            self.put(at, &[name | section << 48, value, 0]);
        }
        self.bytes(base + 0x2600, b"\0.LC123\0init\0other\0printk\0");
    }
}

/// Two modules, the list of which goes round.
fn machine() -> Machine {
    let mut machine =
        Machine(Extents(vec![(HEAD, vec![0; 16]), (FIRST, vec![0; 0x4000]), (SECOND, vec![0; 0x4000])]));
    machine.put(HEAD, &[FIRST + STRUCTURE + 8]);
    machine.module(FIRST, "calltrouble", SECOND + STRUCTURE + 8);
    machine.module(SECOND, "xfs", HEAD);
    machine
}

#[test]
fn modules_are_listed_with_where_they_are() {
    for memory_by_kind in [true, false] {
        let Machine(memory) = machine();
        let types = types(memory_by_kind);
        let modules = Modules::load(&memory, &symbols(), Some(&types));
        assert_eq!(modules.problem(), None);
        assert_eq!(
            modules.iter().map(super::modules::Module::name).collect::<Vec<_>>(),
            ["calltrouble", "xfs"]
        );
        let first = modules.at(FIRST + 0x20).expect("its code");
        assert_eq!((first.name(), first.address()), ("calltrouble", FIRST + STRUCTURE));
        assert_eq!(first.parts().len(), if memory_by_kind { 2 } else { 1 });
        assert_eq!(modules.at(FIRST + 0x1008).is_some(), memory_by_kind, "its data");
        assert!(modules.at(FIRST - 1).is_none() && modules.named("ext4").is_none());
        let orc = OrcTable { ips: FIRST + 0x2300, entries: FIRST + 0x2400, count: 3 };
        assert_eq!(first.orc(), Some(orc));
    }
}

#[test]
fn addresses_in_modules_have_names() {
    let Machine(memory) = machine();
    let modules = Modules::load(&memory, &symbols(), Some(&types(true)));
    let at = |address| modules.at(address)?.at(&memory, address).map(|location| location.to_string());
    assert_eq!(at(FIRST + 0x12).as_deref(), Some("init+0x2/0x70 [calltrouble]"), "not the mark beside it");
    assert_eq!(at(SECOND + 0x80).as_deref(), Some("other+0x0/0xf80 [xfs]"), "up to the end of the code");
    assert_eq!(at(FIRST + 8), None, "before the first symbol");
    let xfs = modules.named("xfs").expect("it is listed");
    assert_eq!(xfs.address_of(&memory, "other"), Some(SECOND + 0x80));
    assert_eq!(xfs.address_of(&memory, "oth"), None);
    assert_eq!(xfs.address_of(&memory, "printk"), None, "that is the kernel's");
}

#[test]
fn a_list_that_breaks_off_or_never_ends_keeps_what_came_before() {
    let Machine(mut memory) = machine();
    memory.0.pop();
    let modules = Modules::load(&memory, &symbols(), Some(&types(true)));
    assert_eq!(modules.iter().count(), 1);
    assert!(matches!(modules.problem(), Some(ModulesError::BrokenOff { after: 1, .. })));
    let mut round = machine();
    round.put(SECOND + STRUCTURE + 8, &[FIRST + STRUCTURE + 8]);
    let modules = Modules::load(&round.0, &symbols(), Some(&types(true)));
    assert!(matches!(modules.problem(), Some(ModulesError::Endless(_))));
}

#[test]
fn without_types_or_symbols_the_list_says_what_it_misses() {
    let Machine(memory) = machine();
    let modules = Modules::load(&memory, &symbols(), None);
    assert!(matches!(modules.problem(), Some(ModulesError::Unknown(what)) if what.contains("struct module")));
    let modules = Modules::load(&memory, &Symbols::default(), Some(&types(true)));
    assert!(matches!(modules.problem(), Some(ModulesError::Unknown(what)) if what.contains("`modules`")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damaged_modules_can_be_asked(damage in prop::collection::vec((0..3_usize, 0..0x700_usize, any::<u8>()), 0..60)) {
        let Machine(mut memory) = machine();
        for (extent, at, byte) in damage {
            let bytes = &mut memory.0[extent].1;
            let at = if bytes.len() > 16 { STRUCTURE as usize + at } else { at % 16 };
            bytes[at] = byte;
        }
        let modules = Modules::load(&memory, &symbols(), Some(&types(true)));
        for module in modules.iter().take(4) {
            let _ = (module.at(&memory, FIRST + 0x12), module.address_of(&memory, "other"));
        }
    }
}
