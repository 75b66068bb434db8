//! The modules of a kernel: where each is in memory, its symbols, and how its stack frames are unwound.
//!
//! The list is read when the kernel is opened: one read a module. Symbols of a module are read when an address in it is
//! first asked for.
//!
//! Layouts: `module.mem[]` since Linux 6.4, `module.core_layout` since 4.5, `module.module_core` before. Source: Linux,
//! `include/linux/module.h` and `kernel/module/kallsyms.c` (facts only).

use std::ops::Range;
use std::sync::OnceLock;

use crate::ReadError;
use crate::location::Location;
use crate::orc::OrcTable;
use crate::symbols::Symbols;
use crate::types::{Field, Types};
use crate::virtual_memory::{VirtualMemory, number};

/// No machine has more modules. A full distribution kernel offers some 4,000.
pub(crate) const MOST_MODULES: usize = 16_384;
/// No `struct module` is larger, in bytes; it has about 1,300.
const LARGEST_MODULE: u64 = 64 << 10;
/// No module has more symbols. `amdgpu` has some 40,000.
const MOST_SYMBOLS: u64 = 1 << 20;
/// No name of a symbol is longer: Linux' `KSYM_NAME_LEN`.
const LONGEST_NAME: usize = 512;
/// The size of an `Elf64_Sym`.
const ELF_SYMBOL: usize = 24;

/// One module.
#[derive(Debug)]
pub struct Module {
    address: u64,
    name: String,
    /// Its parts in memory, none empty.
    parts: Vec<Range<u64>>,
    orc: Option<OrcTable>,
    kallsyms: Option<Symtab>,
    symbols: OnceLock<Vec<ModuleSymbol>>,
}

/// Where a module's symbols are.
#[derive(Clone, Copy, Debug)]
struct Symtab {
    symbols: u64,
    count: u64,
    strings: u64,
}

#[derive(Clone, Copy, Debug)]
struct ModuleSymbol {
    address: u64,
    name: u32,
}

impl Module {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address ranges that it has: code first.
    pub fn parts(&self) -> &[Range<u64>] {
        &self.parts
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: u64) -> bool {
        self.parts.iter().any(|part| part.contains(&address))
    }

    pub(crate) const fn orc(&self) -> Option<OrcTable> {
        self.orc
    }

    /// The address of its `struct module`.
    pub const fn address(&self) -> u64 {
        self.address
    }

    fn symbols(&self, memory: &dyn VirtualMemory) -> &[ModuleSymbol] {
        self.symbols.get_or_init(|| {
            let Some(symtab) = self.kallsyms.filter(|symtab| symtab.count <= MOST_SYMBOLS) else {
                return Vec::new();
            };
            let bytes = memory.read_available(symtab.symbols, symtab.count as usize * ELF_SYMBOL);
            let mut symbols: Vec<ModuleSymbol> = bytes
                .chunks_exact(ELF_SYMBOL)
                .filter_map(|symbol| {
                    let name = number(symbol, 0, 4)? as u32;
                    let section = number(symbol, 6, 2)?;
                    let address = number(symbol, 8, 8)?;
                    // Undefined ones are of other modules; without a name they are sections.
                    (name != 0 && section != 0 && self.contains(address))
                        .then_some(ModuleSymbol { address, name })
                })
                .collect();
            symbols.sort_by_key(|symbol| symbol.address);
            symbols
        })
    }

    /// What is at an address of this module.
    pub fn at(&self, memory: &dyn VirtualMemory, address: u64) -> Option<Location> {
        let part = self.parts.iter().find(|part| part.contains(&address))?;
        let symbols = self.symbols(memory);
        let after = symbols.partition_point(|symbol| symbol.address <= address);
        let located = |symbol: &ModuleSymbol, name| {
            let next = symbols.get(symbols.partition_point(|other| other.address <= symbol.address));
            let end = next.map_or(part.end, |next| next.address.min(part.end));
            Location {
                name,
                offset: address - symbol.address,
                size: end.saturating_sub(symbol.address),
                module: Some(self.name.clone()),
            }
        };
        // Several may begin at one address: marks of sections and of code that tools look for have names that begin so.
        let candidates = symbols[..after].iter().rev().take_while(|symbol| part.contains(&symbol.address));
        let named = candidates.filter_map(|symbol| Some((symbol, self.symbol_name(memory, *symbol)?)));
        let (symbol, name) =
            named.take(64).find(|(_, name)| !name.is_empty() && !name.starts_with(['$', '.']))?;
        Some(located(symbol, name))
    }

    fn symbol_name(&self, memory: &dyn VirtualMemory, symbol: ModuleSymbol) -> Option<String> {
        let strings = self.kallsyms?.strings;
        memory.read_string(strings.checked_add(symbol.name.into())?, LONGEST_NAME).ok()
    }

    /// The address of a symbol of this module.
    pub fn address_of(&self, memory: &dyn VirtualMemory, name: &str) -> Option<u64> {
        let symbols = self.symbols(memory);
        let longest = symbols.iter().map(|symbol| symbol.name).max()? as usize;
        let strings = memory.read_available(self.kallsyms?.strings, longest + LONGEST_NAME);
        let found = symbols.iter().find(|symbol| {
            let rest =
                strings.get(symbol.name as usize..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
            rest.is_some_and(|rest| rest.first() == Some(&0))
        })?;
        Some(found.address)
    }
}

/// The modules, by address.
#[derive(Debug, Default)]
pub struct Modules {
    modules: Vec<Module>,
    problem: Option<ModulesError>,
}

/// Why modules are missing from the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModulesError {
    /// Nothing says where the list is, or how a module is laid out.
    #[error(
        "the kernel's modules are not known, because {0} is not: addresses in modules stay without names"
    )]
    Unknown(&'static str),
    /// The list breaks off.
    #[error("the list of modules breaks off after {after} of them: {source}")]
    BrokenOff {
        /// How many there were.
        after: usize,
        /// What could not be read.
        source: ReadError,
    },
    /// The list does not come back to its head.
    #[error("the list of modules does not end after {0} of them")]
    Endless(usize),
}

/// Where things are in a `struct module`.
struct Layout {
    size: u64,
    list: u64,
    name: Field,
    parts: Vec<(Field, Field)>,
    kallsyms: Option<(Field, SymtabLayout)>,
    orc: Option<[Field; 3]>,
}

/// Where things are in a `struct mod_kallsyms`.
struct SymtabLayout {
    size: u64,
    symtab: Field,
    count: Field,
    strings: Field,
}

impl Layout {
    fn of(types: &Types) -> Option<Self> {
        let field = |path: &str| types.field("module", path);
        let size = types.size_of("module").filter(|&size| size <= LARGEST_MODULE)?;
        let part = |base: &str, size: &str| Some((field(base)?, field(size)?));
        let parts = match field("mem").and_then(|mem| mem.count) {
            // Seven kinds of memory; the last three are freed when the module has been initialised.
            Some(count) => (0..count.min(64))
                .filter_map(|at| part(&format!("mem[{at}].base"), &format!("mem[{at}].size")))
                .collect(),
            None => part("core_layout.base", "core_layout.size")
                .or_else(|| part("module_core", "core_size"))
                .into_iter()
                .collect(),
        };
        let symbols = || {
            let field = |path| types.field("mod_kallsyms", path);
            let size = types.size_of("mod_kallsyms").filter(|&size| size <= 4096)?;
            Some(SymtabLayout {
                size,
                symtab: field("symtab")?,
                count: field("num_symtab")?,
                strings: field("strtab")?,
            })
        };
        Some(Self {
            size,
            list: field("list")?.offset,
            name: field("name")?,
            parts,
            kallsyms: field("kallsyms").and_then(|at| Some((at, symbols()?))),
            orc: (|| {
                Some([field("arch.orc_unwind_ip")?, field("arch.orc_unwind")?, field("arch.num_orcs")?])
            })(),
        })
    }

    fn module(&self, memory: &dyn VirtualMemory, address: u64, bytes: &[u8]) -> Module {
        let value = |field: &Field| field.value(bytes).unwrap_or(0);
        let range = |begin: u64, size: u64| {
            Some(begin..begin.checked_add(size)?).filter(|range| !range.is_empty() && begin != 0)
        };
        let name = usize::try_from(self.name.offset).ok().and_then(|offset| {
            let bytes = bytes.get(offset..)?.get(..self.name.size as usize)?;
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
        });
        let kallsyms = self.kallsyms.as_ref().and_then(|(at, symbols)| {
            let bytes = memory.read_bytes(value(at), symbols.size as usize).ok()?;
            let value = |field: &Field| field.value(&bytes);
            Some(Symtab {
                symbols: value(&symbols.symtab)?,
                count: value(&symbols.count)?,
                strings: value(&symbols.strings)?,
            })
        });
        Module {
            address,
            name: name.unwrap_or_default(),
            parts: self.parts.iter().filter_map(|(base, size)| range(value(base), value(size))).collect(),
            orc: self.orc.and_then(|[ips, entries, count]| {
                Some(OrcTable {
                    ips: value(&ips),
                    entries: value(&entries),
                    count: u32::try_from(value(&count)).ok()?,
                })
                .filter(|table| table.count > 0)
            }),
            kallsyms,
            symbols: OnceLock::new(),
        }
    }
}

impl Modules {
    /// Reads the list. What cannot be read is missing from it; see [`problem`](Self::problem).
    pub fn load(memory: &dyn VirtualMemory, symbols: &Symbols, types: Option<&Types>) -> Self {
        let none = |what| Self { modules: Vec::new(), problem: Some(ModulesError::Unknown(what)) };
        let Some(head) = symbols.address_of("modules") else {
            return none("the address of their list (`modules`)");
        };
        let Some(layout) = types.and_then(Layout::of) else {
            return none("how a `struct module` is laid out");
        };
        let mut modules = Vec::new();
        let mut problem = None;
        let mut next = memory.read_u64(head);
        loop {
            let entry = match next {
                Ok(entry) if entry == head => break,
                Ok(entry) => entry,
                Err(source) => {
                    problem = Some(ModulesError::BrokenOff { after: modules.len(), source });
                    break;
                }
            };
            if modules.len() >= MOST_MODULES {
                problem = Some(ModulesError::Endless(modules.len()));
                break;
            }
            let address = entry.wrapping_sub(layout.list);
            let bytes = memory.read_bytes(address, layout.size as usize);
            next = bytes.map(|bytes| {
                modules.push(layout.module(memory, address, &bytes));
                number(&bytes, layout.list as usize, 8).unwrap_or(head)
            });
        }
        Self { modules, problem }
    }

    /// All of them, in the order of the kernel's list: the youngest first.
    pub fn iter(&self) -> impl Iterator<Item = &Module> {
        self.modules.iter()
    }

    /// What is wrong with the list, if anything is.
    pub const fn problem(&self) -> Option<&ModulesError> {
        self.problem.as_ref()
    }

    /// The module in which an address is.
    pub fn at(&self, address: u64) -> Option<&Module> {
        self.modules.iter().find(|module| module.contains(address))
    }

    /// The module of this name.
    pub fn named(&self, name: &str) -> Option<&Module> {
        self.modules.iter().find(|module| module.name == name)
    }
}
