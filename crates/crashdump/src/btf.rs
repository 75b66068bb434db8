//! BTF: the compact description of its types that a kernel carries in its memory, and each of its modules too.
//!
//! A header, types one after the other (numbered from 1 in that order, each as long as its kind says), and their strings.
//! A module's BTF is *split*: its numbers and the offsets of its strings go on where those of its base end.
//!
//! Read once from front to back, which takes about a millisecond: where each type begins, and a hash of the name of each
//! structure, union, enumeration and typedef. No string is looked at more than that.
//!
//! Source: Linux, `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h` (facts only).

use std::hash::Hasher;
use std::sync::Arc;

use rustc_hash::FxHasher;

use crate::types::{Graph, Member, Shape, TypeId, TypesError};
use crate::virtual_memory::{number, number_u32};

/// The first two bytes.
const MAGIC: u64 = 0xeb9f;
/// No kernel has more types. A distribution kernel has about 100,000.
const MOST_TYPES: usize = 1 << 22;
/// Every type begins with name, info, and size or type: 32 bits each.
const TYPE_BYTES: usize = 12;

/// Kinds of types, by their numbers.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const POINTER: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FORWARD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNCTION: u32 = 12;
    pub(super) const FUNCTION_PROTOTYPE: u32 = 13;
    pub(super) const VARIABLE: u32 = 14;
    pub(super) const DATA_SECTION: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECLARATION_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The first three words of a type, taken apart.
#[derive(Clone, Copy)]
struct Header {
    name: u32,
    kind: u32,
    /// How many members, enumerators, variables.
    length: usize,
    /// Of a structure: its members say how many bits they have. Of an enumeration: it has a sign.
    flag: bool,
    /// A size or a type, by its kind.
    value: u32,
}

impl Header {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let info = number_u32(bytes, at + 4)?;
        Some(Self {
            name: number_u32(bytes, at)?,
            // Kind has 5 bits and length 16; the bits between are zero, and being given to both.
            kind: info >> 24 & 0x7f,
            length: (info & 0xff_ffff) as usize,
            flag: info >> 31 != 0,
            value: number_u32(bytes, at + 8)?,
        })
    }

    /// How many bytes the type has in all; none if its kind is not known.
    fn bytes(self) -> Option<usize> {
        let more = match self.kind {
            kind::INT | kind::VARIABLE | kind::DECLARATION_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATA_SECTION | kind::ENUM64 => 12 * self.length,
            kind::ENUM | kind::FUNCTION_PROTOTYPE => 8 * self.length,
            kind::POINTER | kind::FORWARD..=kind::FUNCTION | kind::FLOAT | kind::TYPE_TAG => 0,
            _ => return None,
        };
        Some(TYPE_BYTES + more)
    }

    fn is_named_type(self) -> bool {
        let kinds = [
            kind::STRUCT,
            kind::UNION,
            kind::ENUM,
            kind::ENUM64,
            kind::TYPEDEF,
            kind::INT,
            kind::DATA_SECTION,
        ];
        self.name != 0 && kinds.contains(&self.kind)
    }
}

/// Types of a kernel or of a module.
#[derive(Clone, Debug)]
pub struct Btf {
    base: Option<Arc<Btf>>,
    /// Numbers and string offsets of its own begin here.
    first_id: u32,
    first_string: u32,
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type begins in `types`.
    begins: Vec<u32>,
    /// Hashes of the names of named types, and their indices in `begins`.
    hashes: Vec<u32>,
    named: Vec<u32>,
    /// The first kind that was not known: types from there on are not there.
    unknown_kind: Option<u32>,
}

impl Btf {
    /// From its bytes; of a module together with that of the kernel.
    ///
    /// # Errors
    ///
    /// They are no BTF, or end before it does.
    pub fn new(bytes: &[u8], base: Option<Arc<Self>>) -> Result<Self, TypesError> {
        let damaged = |offset, what| TypesError::Damaged { offset, what };
        let word = |offset| number_u32(bytes, offset).map(|word| word as usize);
        if number(bytes, 0, 2) != Some(MAGIC) {
            return Err(damaged(0, "it does not begin with eb9f"));
        }
        if bytes.get(2) != Some(&1) {
            return Err(damaged(2, "its version is not 1"));
        }
        let section = |at: usize, what| {
            let (Some(header), Some(offset), Some(length)) = (word(4), word(at), word(at + 4)) else {
                return Err(damaged(at, "its header goes beyond the end"));
            };
            let part = header.checked_add(offset).and_then(|begin| bytes.get(begin..)?.get(..length));
            part.ok_or_else(|| damaged(at, what))
        };
        let types = section(8, "its types go beyond the end")?.to_vec();
        let strings = section(16, "its strings go beyond the end")?.to_vec();
        let (first_id, first_string) =
            base.as_ref().map_or((1, 0), |base| (base.end_id(), base.end_string()));
        let mut btf = Self {
            base,
            first_id,
            first_string,
            types,
            strings,
            begins: Vec::new(),
            hashes: Vec::new(),
            named: Vec::new(),
            unknown_kind: None,
        };
        btf.index()?;
        Ok(btf)
    }

    fn end_id(&self) -> u32 {
        self.first_id.saturating_add(self.begins.len() as u32)
    }

    fn end_string(&self) -> u32 {
        self.first_string.saturating_add(self.strings.len() as u32)
    }

    fn index(&mut self) -> Result<(), TypesError> {
        let mut at = 0;
        while at < self.types.len() {
            let damaged = |what| TypesError::Damaged { offset: at, what };
            let header = Header::read(&self.types, at)
                .ok_or_else(|| damaged("a type goes beyond the end of its section"))?;
            let Some(bytes) = header.bytes() else {
                self.unknown_kind = Some(header.kind);
                return Ok(());
            };
            if self.types.len() - at < bytes {
                return Err(damaged("a type goes beyond the end of its section"));
            }
            if self.begins.len() >= MOST_TYPES {
                return Err(damaged("there are more types than any kernel has"));
            }
            if header.is_named_type() {
                let hash = hash(self.string(header.name));
                self.hashes.push(hash);
                self.named.push(self.begins.len() as u32);
            }
            self.begins.push(at as u32);
            at += bytes;
        }
        Ok(())
    }

    /// How many types there are, those of its base not counted.
    pub fn len(&self) -> usize {
        self.begins.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }

    /// The number of a kind of types that is not known here, if there is one: types behind it could not be read.
    pub const fn unknown_kind(&self) -> Option<u32> {
        self.unknown_kind
    }

    /// The bytes of a string; none of it if the offset is beyond all strings.
    fn string(&self, offset: u32) -> &[u8] {
        match (offset.checked_sub(self.first_string), &self.base) {
            (Some(own), _) => {
                let rest = self.strings.get(own as usize..).unwrap_or(&[]);
                &rest[..rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len())]
            }
            (None, Some(base)) => base.string(offset),
            (None, None) => &[],
        }
    }

    /// Where a type is: the BTF that has it, its offset there, and its header.
    fn locate(&self, id: TypeId) -> Option<(&Self, usize, Header)> {
        match (id.checked_sub(self.first_id), &self.base) {
            (Some(index), _) => {
                let at = *self.begins.get(index as usize)? as usize;
                Some((self, at, Header::read(&self.types, at)?))
            }
            (None, Some(base)) => base.locate(id),
            (None, None) => None,
        }
    }

    /// The word number `word` of the entry `index` behind a type's header, where entries have so many words.
    fn word(&self, at: usize, words: usize, index: usize, word: usize) -> Option<u32> {
        number_u32(&self.types, at + TYPE_BYTES + 4 * (words * index + word))
    }

    /// Named types of one of these kinds, own ones first.
    fn find_kind(&self, name: &str, kinds: &[u32]) -> Option<TypeId> {
        let wanted = hash(name.as_bytes());
        let same_hash = self.hashes.iter().zip(&self.named).filter(|&(&hash, _)| hash == wanted);
        let own = same_hash.map(|(_, &index)| self.first_id.saturating_add(index)).find(|&id| {
            self.locate(id).is_some_and(|(_, _, header)| {
                kinds.contains(&header.kind) && self.string(header.name) == name.as_bytes()
            })
        });
        own.or_else(|| self.base.as_ref()?.find_kind(name, kinds))
    }
}

impl Graph for Btf {
    fn find(&self, name: &str, aggregate: bool) -> Option<TypeId> {
        if aggregate {
            self.find_kind(name, &[kind::STRUCT, kind::UNION])
        } else {
            self.find_kind(name, &[kind::TYPEDEF, kind::ENUM, kind::ENUM64, kind::INT])
        }
    }

    fn shape(&self, id: TypeId) -> Shape {
        let Some((btf, at, header)) = self.locate(id) else { return Shape::Sizeless };
        let size = u64::from(header.value);
        match header.kind {
            kind::INT => {
                // Bits 24 to 27 of the word behind it say how it is written: the lowest is the sign.
                let signed = btf.word(at, 1, 0, 0).unwrap_or(0) >> 24 & 1 != 0;
                Shape::Scalar { size, signed }
            }
            kind::ENUM | kind::ENUM64 => Shape::Scalar { size, signed: header.flag },
            kind::FLOAT => Shape::Scalar { size, signed: true },
            kind::POINTER => Shape::Pointer(header.value),
            kind::ARRAY => {
                let word = |word| btf.word(at, 3, 0, word);
                match (word(0), word(2)) {
                    (Some(element), Some(count)) => Shape::Array { element, count: count.into() },
                    _ => Shape::Sizeless,
                }
            }
            kind::STRUCT | kind::UNION => Shape::Structure { size },
            kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::TYPE_TAG
            | kind::VARIABLE => Shape::Alias(header.value),
            _ => Shape::Sizeless,
        }
    }

    fn members(&self, id: TypeId, each: &mut dyn FnMut(Member<'_>) -> bool) -> bool {
        let Some((btf, at, header)) = self.locate(id) else { return false };
        if header.kind != kind::STRUCT && header.kind != kind::UNION {
            return false;
        }
        (0..header.length).any(|index| {
            let word = |word| btf.word(at, 3, index, word);
            let (Some(name), Some(of), Some(offset)) = (word(0), word(1), word(2)) else { return false };
            // If the structure says so, the upper 8 bits are the width of a bit field.
            let (bits, offset) = if header.flag { (offset >> 24, offset & 0xff_ffff) } else { (0, offset) };
            let name = str::from_utf8(self.string(name)).unwrap_or("?");
            each(Member { name, of, bit_offset: offset.into(), bits: bits.into() })
        })
    }

    fn enumerator(&self, name: &str) -> Option<i64> {
        let own = self.named.iter().find_map(|&index| {
            let (_, at, header) = self.locate(self.first_id.saturating_add(index))?;
            self.enumerator_of(at, header, name)
        });
        // Many enumerations have no name, and are in no index.
        own.or_else(|| {
            self.begins.iter().find_map(|&at| {
                let at = at as usize;
                let header = Header::read(&self.types, at).filter(|header| header.name == 0)?;
                self.enumerator_of(at, header, name)
            })
        })
        .or_else(|| self.base.as_ref()?.enumerator(name))
    }

    fn per_cpu_variable(&self, name: &str) -> Option<u64> {
        let section = self.find_kind(".data..percpu", &[kind::DATA_SECTION])?;
        let (btf, at, header) = self.locate(section)?;
        (0..header.length).find_map(|index| {
            let (_, _, variable) = self.locate(btf.word(at, 3, index, 0)?)?;
            let offset = btf.word(at, 3, index, 1)?;
            (self.string(variable.name) == name.as_bytes()).then_some(offset.into())
        })
    }
}

impl Btf {
    fn enumerator_of(&self, at: usize, header: Header, name: &str) -> Option<i64> {
        let words = match header.kind {
            kind::ENUM => 2,
            kind::ENUM64 => 3,
            _ => return None,
        };
        let index = (0..header.length).find(|&index| {
            self.word(at, words, index, 0).is_some_and(|found| self.string(found) == name.as_bytes())
        })?;
        let low = self.word(at, words, index, 1)?;
        Some(match words {
            2 if header.flag => low.cast_signed().into(),
            2 => low.into(),
            _ => (u64::from(self.word(at, words, index, 2)?) << 32 | u64::from(low)).cast_signed(),
        })
    }
}

fn hash(bytes: &[u8]) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    // The upper half is the better one: it is made by multiplying.
    (hasher.finish() >> 32) as u32
}
