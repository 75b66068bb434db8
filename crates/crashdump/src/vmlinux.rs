//! A kernel's `vmlinux` with debugging information: symbols and types for kernels that do not carry them.
//!
//! The file has hundreds of megabytes, of which nearly everything is the description of types, once for each source file. It
//! is read in pieces: one source file's description (a *unit*) after the other, only as far as a name is not yet known. Kept are
//! the places of named types, the strings, and the abbreviations.
//!
//! Source: DWARF 5, sections 2, 3.1, 5 and 7; `gimli` decodes it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugInfo, DebugInfoOffset, DebuggingInformationEntry, DwAt,
    DwTag, EndianSlice, LittleEndian, UnitHeader, UnitOffset,
};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, ReadCache, SymbolKind, SymbolSection};
use rustc_hash::FxHashMap;

use crate::symbols::FileSymbols;
use crate::types::{Graph, Member, Shape, TypeId, Types};

/// No unit is larger, in bytes; the largest have some megabytes.
const LARGEST_UNIT: usize = 256 << 20;
/// No section of strings or abbreviations is.
const LARGEST_SECTION: u64 = 1 << 30;
/// Units that are kept decoded: those that refer to types of one another come together.
const UNITS_KEPT: usize = 4;

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = DebuggingInformationEntry<Slice<'a>>;

/// Why a `vmlinux` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    /// The operating system refused.
    #[error("{} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} cannot be used as a vmlinux: {what}", path.display())]
    NotVmlinux {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// It is another kernel's.
    #[error(
        "{} is of another kernel: its build ID is {file}, that of the kernel in the dump {kernel}; find the debugging \
         package of exactly this kernel",
        path.display()
    )]
    OtherKernel {
        /// The file.
        path: PathBuf,
        /// Of the file, in hexadecimal.
        file: String,
        /// Of the kernel.
        kernel: String,
    },
}

/// Where a section is in the file.
#[derive(Clone, Copy, Debug, Default)]
struct Section {
    offset: u64,
    size: u64,
}

/// A `vmlinux`, opened.
#[derive(Debug)]
pub struct Vmlinux {
    path: PathBuf,
    build_id: Option<String>,
    symbols: Vec<(u64, char, Box<str>)>,
    dwarf: Dwarf,
}

impl Vmlinux {
    /// Reads its symbols, and where its debugging information is.
    ///
    /// # Errors
    ///
    /// It cannot be read, is no ELF file of x86-64, or its debugging information is compressed or missing.
    pub fn open(path: &Path) -> Result<Self, VmlinuxError> {
        let in_file = |source| VmlinuxError::File { path: path.to_owned(), source };
        let not = |what: String| VmlinuxError::NotVmlinux { path: path.to_owned(), what };
        let file = File::open(path).map_err(in_file)?;
        let cache = ReadCache::new(file.try_clone().map_err(in_file)?);
        let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(|error| not(error.to_string()))?;
        let section = |name: &str| -> Result<Option<Section>, VmlinuxError> {
            let Some(section) = elf.section_by_name(name) else { return Ok(None) };
            let compressed = section.compressed_file_range().map_err(|error| not(error.to_string()))?;
            if compressed.format != object::CompressionFormat::None {
                return Err(not(format!(
                    "its section {name} is compressed; objcopy --decompress-debug-sections makes a file that can be used"
                )));
            }
            let (offset, size) = section.file_range().unwrap_or_default();
            Ok(Some(Section { offset, size }))
        };
        let needed = |name: &str| {
            section(name)?.ok_or_else(|| {
                not(format!(
                    "it has no section {name}: it was built without debugging information, or was stripped"
                ))
            })
        };
        let whole = |part: Section| {
            let size = usize::try_from(part.size.min(LARGEST_SECTION)).unwrap_or(0);
            let mut bytes = vec![0; size];
            file.read_exact_at(&mut bytes, part.offset).map_err(in_file)?;
            Ok(bytes)
        };
        let symbols = elf
            .symbols()
            .filter(|symbol| symbol.is_definition() || symbol.section() == SymbolSection::Absolute)
            .filter(|symbol| !matches!(symbol.kind(), SymbolKind::File | SymbolKind::Section))
            .filter_map(|symbol| {
                let kind = if symbol.kind() == SymbolKind::Text { 't' } else { 'd' };
                Some((symbol.address(), kind, Box::from(symbol.name().ok().filter(|name| !name.is_empty())?)))
            })
            .collect();
        let hexadecimal =
            |id: &[u8]| id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let build_id = elf.build_id().ok().flatten().map(hexadecimal);
        let dwarf = Dwarf {
            info: needed(".debug_info")?,
            abbreviations: whole(needed(".debug_abbrev")?)?,
            strings: section(".debug_str")?.map(whole).transpose()?.unwrap_or_default(),
            line_strings: section(".debug_line_str")?.map(whole).transpose()?.unwrap_or_default(),
            file,
            found: Mutex::default(),
        };
        drop(elf);
        Ok(Self { path: path.to_owned(), build_id, symbols, dwarf })
    }

    /// Whether it is the file of a kernel whose build ID is known, in hexadecimal.
    ///
    /// # Errors
    ///
    /// It is that of another.
    pub fn check_build_id(&self, kernel: &str) -> Result<(), VmlinuxError> {
        match &self.build_id {
            Some(file) if !file.eq_ignore_ascii_case(kernel) => Err(VmlinuxError::OtherKernel {
                path: self.path.clone(),
                file: file.clone(),
                kernel: kernel.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// The address at which a symbol was linked.
    pub fn linked_address(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|(_, _, found)| &**found == name).map(|&(address, ..)| address)
    }

    /// Its symbols, moved as far as the kernel was; and its types.
    pub(crate) fn into_parts(self, slide: u64) -> (FileSymbols, Types) {
        (FileSymbols::new(self.symbols, slide), Types::new(Arc::new(self.dwarf)))
    }
}

/// Types by DWARF. The number of a type is the offset of its entry in `.debug_info`.
#[derive(Debug)]
struct Dwarf {
    file: File,
    info: Section,
    abbreviations: Vec<u8>,
    strings: Vec<u8>,
    line_strings: Vec<u8>,
    found: Mutex<Found>,
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Found {
    /// Where the next unit begins.
    next: u64,
    /// Where the units begin that were read.
    begins: Vec<u64>,
    /// Structures and unions, and typedefs and enumerations, by name.
    aggregates: FxHashMap<Box<[u8]>, TypeId>,
    others: FxHashMap<Box<[u8]>, TypeId>,
    enumerators: FxHashMap<Box<[u8]>, i64>,
    kept: Vec<Arc<Unit>>,
}

/// The bytes of a unit, and its abbreviations.
#[derive(Debug)]
struct Unit {
    begin: u64,
    bytes: Vec<u8>,
    abbreviations: Abbreviations,
}

impl Unit {
    fn header(&self) -> Option<UnitHeader<Slice<'_>>> {
        DebugInfo::new(&self.bytes, LittleEndian).units().next().ok().flatten()
    }
}

impl Dwarf {
    /// The unit that begins at an offset.
    fn read_unit(&self, begin: u64) -> Option<Unit> {
        let left = self.info.size.checked_sub(begin)?;
        let at = self.info.offset.checked_add(begin)?;
        let mut head = [0; 4];
        self.file.read_exact_at(&mut head, at).ok()?;
        // The 64-bit form, whose length is escaped, is made by no compiler for a kernel.
        let length = u32::from_le_bytes(head) as usize + 4;
        if length as u64 > left || length > LARGEST_UNIT {
            return None;
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        let info = DebugInfo::new(&bytes, LittleEndian);
        let header = info.units().next().ok().flatten()?;
        let abbreviations =
            header.abbreviations(&DebugAbbrev::new(&self.abbreviations, LittleEndian)).ok()?;
        Some(Unit { begin, bytes, abbreviations })
    }

    /// The unit that an entry is in, of those that were read.
    fn unit_of(&self, id: TypeId) -> Option<Arc<Unit>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = match found.begins.partition_point(|&begin| begin <= id.into()) {
            0 => return None,
            after => found.begins[after - 1],
        };
        if let Some(unit) = found.kept.iter().find(|unit| unit.begin == begin) {
            return Some(Arc::clone(unit));
        }
        let unit = Arc::new(self.read_unit(begin)?);
        if found.kept.len() >= UNITS_KEPT {
            found.kept.remove(0);
        }
        found.kept.push(Arc::clone(&unit));
        Some(unit)
    }

    /// Calls with the entry of a type, its unit, and that unit's header.
    fn with<T>(
        &self,
        id: TypeId,
        each: impl FnOnce(&Unit, &UnitHeader<Slice<'_>>, &Entry<'_>) -> Option<T>,
    ) -> Option<T> {
        let unit = self.unit_of(id)?;
        let header = unit.header()?;
        let offset = UnitOffset(usize::try_from(u64::from(id).checked_sub(unit.begin)?).ok()?);
        let entry = header.entry(&unit.abbreviations, offset).ok()?;
        each(&unit, &header, &entry)
    }

    fn name<'a>(&'a self, entry: &Entry<'a>) -> Option<&'a [u8]> {
        let string = |section: &'a [u8], offset: usize| {
            let rest = section.get(offset..)?;
            Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
        };
        match entry.attr_value(gimli::DW_AT_name)? {
            AttributeValue::String(text) => Some(text.slice()),
            AttributeValue::DebugStrRef(offset) => string(&self.strings, offset.0),
            AttributeValue::DebugLineStrRef(offset) => string(&self.line_strings, offset.0),
            _ => None,
        }
    }

    /// Reads units until one has what is looked for, or there are no more.
    fn search<T>(&self, get: impl Fn(&Found) -> Option<T>) -> Option<T> {
        loop {
            let next = {
                let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(value) = get(&found) {
                    return Some(value);
                }
                found.next
            };
            let unit = self.read_unit(next)?;
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.next = next + unit.bytes.len() as u64;
            found.begins.push(next);
            self.index(&unit, &mut found);
        }
    }

    /// Notes the named types of a unit. What cannot be decoded ends it.
    fn index(&self, unit: &Unit, found: &mut Found) -> Option<()> {
        let header = unit.header()?;
        let mut entries = header.entries(&unit.abbreviations);
        while let Ok(Some(entry)) = entries.next_dfs() {
            let tag = entry.tag();
            let place = u32::try_from(unit.begin + entry.offset().0 as u64).ok()?;
            if tag == gimli::DW_TAG_enumerator {
                if let (Some(name), Some(value)) =
                    (self.name(entry), constant(entry, gimli::DW_AT_const_value))
                {
                    found.enumerators.entry(name.into()).or_insert(value.cast_signed());
                }
                continue;
            }
            let aggregate = [gimli::DW_TAG_structure_type, gimli::DW_TAG_union_type].contains(&tag);
            let other = [gimli::DW_TAG_typedef, gimli::DW_TAG_enumeration_type, gimli::DW_TAG_base_type]
                .contains(&tag);
            if !(aggregate || other) || entry.attr_value(gimli::DW_AT_declaration).is_some() {
                continue;
            }
            let Some(name) = self.name(entry) else { continue };
            let names = if aggregate { &mut found.aggregates } else { &mut found.others };
            names.entry(name.into()).or_insert(place);
        }
        Some(())
    }
}

fn constant(entry: &Entry<'_>, attribute: DwAt) -> Option<u64> {
    match entry.attr_value(attribute)? {
        AttributeValue::Sdata(value) => Some(value.cast_unsigned()),
        value => value.udata_value(),
    }
}

/// The type that an entry refers to, by its offset in `.debug_info`.
fn type_of(unit: &Unit, entry: &Entry<'_>) -> Option<TypeId> {
    let offset = match entry.attr_value(gimli::DW_AT_type)? {
        AttributeValue::UnitRef(UnitOffset(offset)) => unit.begin.checked_add(offset as u64)?,
        AttributeValue::DebugInfoRef(DebugInfoOffset(offset)) => offset as u64,
        _ => return None,
    };
    u32::try_from(offset).ok()
}

fn is_alias(tag: DwTag) -> bool {
    [
        gimli::DW_TAG_typedef,
        gimli::DW_TAG_const_type,
        gimli::DW_TAG_volatile_type,
        gimli::DW_TAG_restrict_type,
        gimli::DW_TAG_atomic_type,
    ]
    .contains(&tag)
}

impl Graph for Dwarf {
    fn find(&self, name: &str, aggregate: bool) -> Option<TypeId> {
        self.search(|found| {
            let names = if aggregate { &found.aggregates } else { &found.others };
            names.get(name.as_bytes()).copied()
        })
    }

    fn shape(&self, id: TypeId) -> Shape {
        let shape = self.with(id, |unit, header, entry| {
            let size = constant(entry, gimli::DW_AT_byte_size).unwrap_or(0);
            Some(match entry.tag() {
                gimli::DW_TAG_base_type => {
                    let signed = [gimli::DW_ATE_signed, gimli::DW_ATE_signed_char, gimli::DW_ATE_float]
                        .map(AttributeValue::Encoding);
                    let encoding = entry.attr_value(gimli::DW_AT_encoding);
                    Shape::Scalar {
                        size,
                        signed: encoding.is_some_and(|encoding| signed.contains(&encoding)),
                    }
                }
                gimli::DW_TAG_enumeration_type => Shape::Scalar { size, signed: false },
                gimli::DW_TAG_pointer_type => Shape::Pointer(type_of(unit, entry).unwrap_or(0)),
                gimli::DW_TAG_structure_type | gimli::DW_TAG_union_type => {
                    if entry.attr_value(gimli::DW_AT_declaration).is_some() {
                        return None;
                    }
                    Shape::Structure { size }
                }
                gimli::DW_TAG_array_type => {
                    let count = elements(unit, header, entry).unwrap_or(0);
                    Shape::Array { element: type_of(unit, entry)?, count }
                }
                tag if is_alias(tag) => type_of(unit, entry).map_or(Shape::Sizeless, Shape::Alias),
                _ => Shape::Sizeless,
            })
        });
        shape.unwrap_or(Shape::Sizeless)
    }

    fn members(&self, id: TypeId, each: &mut dyn FnMut(Member<'_>) -> bool) -> bool {
        let found = self.with(id, |unit, header, structure| {
            let mut entries = header.entries_at_offset(&unit.abbreviations, structure.offset()).ok()?;
            entries.next_dfs().ok()??;
            while let Ok(Some(entry)) = entries.next_dfs() {
                match entry.depth() {
                    ..=0 => break,
                    1 => {}
                    _ => continue,
                }
                if entry.tag() != gimli::DW_TAG_member {
                    continue;
                }
                let Some(of) = type_of(unit, entry) else { continue };
                let name = self.name(entry).and_then(|name| str::from_utf8(name).ok()).unwrap_or("");
                let bits = constant(entry, gimli::DW_AT_bit_size).unwrap_or(0);
                let byte = constant(entry, gimli::DW_AT_data_member_location).unwrap_or(0);
                let bit_offset = match constant(entry, gimli::DW_AT_data_bit_offset) {
                    Some(offset) => offset,
                    // Before DWARF 4, counted from the upper end of the number that holds it.
                    None => byte.saturating_mul(8).saturating_add(old_bit_offset(entry, bits)),
                };
                if each(Member { name, of, bit_offset, bits }) {
                    return Some(());
                }
            }
            None
        });
        found.is_some()
    }

    fn enumerator(&self, name: &str) -> Option<i64> {
        self.search(|found| found.enumerators.get(name.as_bytes()).copied())
    }

    fn per_cpu_variable(&self, _: &str) -> Option<u64> {
        // The file's symbols have them.
        None
    }
}

/// Of a bit field as DWARF 2 and 3 describe it: how far its lowest bit is from that of the number that holds it.
fn old_bit_offset(entry: &Entry<'_>, bits: u64) -> u64 {
    let offset = constant(entry, gimli::DW_AT_bit_offset).filter(|_| bits != 0);
    let holder = constant(entry, gimli::DW_AT_byte_size).unwrap_or(4);
    offset.map_or(0, |offset| holder.saturating_mul(8).saturating_sub(offset).saturating_sub(bits))
}

/// How many elements an array has, in all its dimensions.
fn elements(unit: &Unit, header: &UnitHeader<Slice<'_>>, array: &Entry<'_>) -> Option<u64> {
    let mut entries = header.entries_at_offset(&unit.abbreviations, array.offset()).ok()?;
    entries.next_dfs().ok()??;
    let mut count = None;
    while let Ok(Some(entry)) = entries.next_dfs() {
        if entry.depth() <= 0 {
            break;
        }
        if entry.tag() == gimli::DW_TAG_subrange_type {
            let of = constant(entry, gimli::DW_AT_count)
                .or_else(|| constant(entry, gimli::DW_AT_upper_bound)?.checked_add(1))
                .unwrap_or(0);
            count = Some(count.unwrap_or(1_u64).saturating_mul(of));
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// A structure that the debugging information of this very test describes.
    #[repr(C)]
    #[derive(Debug, Default)]
    struct DescribedByItsOwnProgram {
        first: u8,
        second: [u32; 3],
        inner: InnerOfDescribed,
        pointer: Option<&'static u8>,
        signed: i16,
    }

    #[repr(C)]
    #[derive(Debug, Default)]
    struct InnerOfDescribed {
        a: u64,
        b: u16,
    }

    #[test]
    fn structures_are_found_in_a_programs_debugging_information() {
        // Used, so that it is described.
        let value = std::hint::black_box(DescribedByItsOwnProgram::default());
        assert_eq!((value.first, value.second, value.inner.b, value.signed), (0, [0; 3], 0, 0));
        assert!(value.pointer.is_none() && value.inner.a == 0);
        let path = std::env::current_exe().expect("a test has a path");
        let program = match Vmlinux::open(&path) {
            Ok(program) => program,
            Err(error @ VmlinuxError::NotVmlinux { .. }) => {
                println!("skipped: this test was built without debugging information ({error})");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let main = program.linked_address("main").expect("a program has one");
        let (symbols, types) = program.into_parts(0);
        assert!(main > 0);
        drop(symbols);
        let offset = |path| types.offset("DescribedByItsOwnProgram", path);
        assert_eq!(offset("first"), Some(0));
        assert_eq!(offset("second[2]"), Some(offset_of!(DescribedByItsOwnProgram, second) as u64 + 8));
        assert_eq!(offset("inner.b"), Some(offset_of!(DescribedByItsOwnProgram, inner.b) as u64));
        assert_eq!(offset("nothing"), None);
        let field = types.field("DescribedByItsOwnProgram", "signed").expect("it is there");
        assert_eq!((field.size, field.signed), (2, true));
        let second = types.field("DescribedByItsOwnProgram", "second").expect("it is there");
        assert_eq!((second.size, second.count), (12, Some(3)));
        assert_eq!(
            types.size_of("DescribedByItsOwnProgram"),
            Some(size_of::<DescribedByItsOwnProgram>() as u64)
        );
        assert_eq!(types.size_of("NoSuchStructureAnywhere"), None);
    }

    #[test]
    fn what_is_no_vmlinux_says_why() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), b"\x7fELF nothing").expect("written");
        assert!(matches!(Vmlinux::open(file.path()), Err(VmlinuxError::NotVmlinux { .. })));
        assert!(matches!(Vmlinux::open(Path::new("/nonexistent/vmlinux")), Err(VmlinuxError::File { .. })));
    }
}
