//! The types of a kernel: where a member is in its structure, and how large things are.
//!
//! They come from BTF in the kernel's own memory ([`Btf`]), or from the debugging information of its `vmlinux`. Both
//! describe the same graph of types (`Graph`), so a path such as `node.llist.next` is followed in one place.

use std::fmt;
use std::sync::Arc;

use crate::btf::Btf;

/// How deep anonymous members and aliases may be nested, before the types are taken for damaged.
const DEEPEST: usize = 32;

/// A type, by its number in one graph.
pub(crate) type TypeId = u32;

/// What a type is, as far as offsets and sizes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A number, an enumeration, a boolean: so many bytes.
    Scalar { size: u64, signed: bool },
    /// A pointer.
    Pointer(TypeId),
    /// So many elements.
    Array { element: TypeId, count: u64 },
    /// A structure or union of so many bytes.
    Structure { size: u64 },
    /// Another name for a type, or a qualifier.
    Alias(TypeId),
    /// Anything without a size: functions, incomplete structures, nothing at all.
    Sizeless,
}

/// One member of a structure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    /// Empty if it has none: then its own members count as the structure's.
    pub(crate) name: &'a str,
    pub(crate) of: TypeId,
    /// From the start of the structure.
    pub(crate) bit_offset: u64,
    /// Of a bit field: how many bits. Otherwise 0.
    pub(crate) bits: u64,
}

/// A graph of types.
pub(crate) trait Graph: fmt::Debug + Send + Sync {
    /// The structure or union (`aggregate`), or else the typedef or enumeration of this name.
    fn find(&self, name: &str, aggregate: bool) -> Option<TypeId>;
    fn shape(&self, id: TypeId) -> Shape;
    /// Calls `each` with the members of a structure, in order, until it returns true. Returns whether it did.
    fn members(&self, id: TypeId, each: &mut dyn FnMut(Member<'_>) -> bool) -> bool;
    fn enumerator(&self, name: &str) -> Option<i64>;
    /// The number that stands for a variable of this name in the per-CPU section.
    fn per_cpu_variable(&self, name: &str) -> Option<u64>;
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// From the start of the structure, in bytes.
    pub offset: u64,
    /// In bytes; of a bit field that of the bytes that hold it, from `offset` on.
    pub size: u64,
    /// Of a bit field: which bits of those bytes, taken as a little-endian number.
    pub bits: Option<Bits>,
    /// Whether it is a number with a sign.
    pub signed: bool,
    /// Of an array: how many elements.
    pub count: Option<u64>,
}

/// Which bits of a number a bit field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// The lowest.
    pub shift: u32,
    /// How many.
    pub width: u32,
}

impl Field {
    /// The value of this member, from the bytes of the whole structure. None if they end before it, or it is larger than
    /// a number.
    pub fn value(&self, structure: &[u8]) -> Option<u64> {
        let offset = usize::try_from(self.offset).ok()?;
        let size = usize::try_from(self.size).ok().filter(|&size| size > 0)?;
        let number = crate::virtual_memory::number(structure, offset, size)?;
        Some(match self.bits {
            None => number,
            Some(Bits { shift, width }) => {
                let mask = 1_u64.checked_shl(width).map_or(u64::MAX, |above| above - 1);
                number.checked_shr(shift).unwrap_or(0) & mask
            }
        })
    }

    /// The size of one element, if it is an array; otherwise of all of it.
    pub fn element_size(&self) -> u64 {
        match self.count {
            Some(count @ 1..) => self.size / count,
            _ => self.size,
        }
    }
}

/// Why there are no types.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypesError {
    /// The kernel was built without.
    #[error(
        "the kernel has no description of its types (BTF): it was built without CONFIG_DEBUG_INFO_BTF; give the vmlinux \
         it was built from with --vmlinux"
    )]
    Absent,
    /// They cannot be read.
    #[error("the description of types (BTF) at {address:#x} cannot be read: {source}")]
    Missing {
        /// Where it is.
        address: u64,
        /// Why.
        source: crate::ReadError,
    },
    /// They are not what they should be.
    #[error("the description of types (BTF) cannot be used: at offset {offset:#x} {what}")]
    Damaged {
        /// From its start.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// The types of a kernel.
#[derive(Debug)]
pub struct Types {
    graph: Arc<dyn Graph>,
}

impl From<Arc<Btf>> for Types {
    fn from(btf: Arc<Btf>) -> Self {
        Self::new(btf)
    }
}

impl Types {
    pub(crate) fn new(graph: Arc<dyn Graph>) -> Self {
        Self { graph }
    }

    /// A member by its path: names with points between, each maybe with an index, as in `csd[2].node.llist.next`. The
    /// structure or union is looked for first, then a typedef of this name. Members of anonymous members are found too.
    pub fn field(&self, structure: &str, path: &str) -> Option<Field> {
        let graph = &*self.graph;
        let mut at = graph.find(structure, true).or_else(|| graph.find(structure, false))?;
        let mut bit_offset = 0;
        let mut bits = 0;
        for step in path.split('.') {
            let (name, index) = split_index(step)?;
            let member = find_member(graph, resolve(graph, at)?, name, 0)?;
            bit_offset += member.bit_offset;
            (at, bits) = (member.of, member.bits);
            if let Some(index) = index {
                let Shape::Array { element, count } = graph.shape(resolve(graph, at)?) else { return None };
                // An array of no elements is one whose length the structure does not know.
                if index >= count && count != 0 {
                    return None;
                }
                bit_offset = bit_offset
                    .checked_add(size_of(graph, element, 0)?.checked_mul(index)?.checked_mul(8)?)?;
                at = element;
            }
        }
        let shape = graph.shape(resolve(graph, at)?);
        let size = size_of(graph, at, 0).unwrap_or(0);
        let signed = matches!(shape, Shape::Scalar { signed: true, .. });
        let count = if let Shape::Array { count, .. } = shape { Some(count) } else { None };
        if bits == 0 {
            return Some(Field { offset: bit_offset / 8, size, bits: None, signed, count });
        }
        let shift = (bit_offset % 8) as u32;
        let width = u32::try_from(bits).ok().filter(|width| shift + width <= 64)?;
        let size = u64::from(shift + width).div_ceil(8);
        Some(Field { offset: bit_offset / 8, size, bits: Some(Bits { shift, width }), signed, count })
    }

    /// The offset of a member in bytes. See [`field`](Self::field).
    pub fn offset(&self, structure: &str, path: &str) -> Option<u64> {
        self.field(structure, path).map(|field| field.offset)
    }

    /// The size in bytes of a structure, union, typedef or enumeration.
    pub fn size_of(&self, name: &str) -> Option<u64> {
        let graph = &*self.graph;
        let id = graph.find(name, true).or_else(|| graph.find(name, false))?;
        size_of(graph, id, 0)
    }

    /// The value of an enumerator, of any enumeration.
    pub fn enumerator(&self, name: &str) -> Option<i64> {
        self.graph.enumerator(name)
    }

    /// The offset of a per-CPU variable in its section, if the types list it.
    pub fn per_cpu_variable(&self, name: &str) -> Option<u64> {
        self.graph.per_cpu_variable(name)
    }
}

/// `name[3]` as name and 3.
fn split_index(step: &str) -> Option<(&str, Option<u64>)> {
    match step.split_once('[') {
        None => Some((step, None)),
        Some((name, index)) => Some((name, Some(index.strip_suffix(']')?.parse().ok()?))),
    }
}

/// The type behind aliases.
fn resolve(graph: &dyn Graph, mut id: TypeId) -> Option<TypeId> {
    for _ in 0..DEEPEST {
        match graph.shape(id) {
            Shape::Alias(of) => id = of,
            _ => return Some(id),
        }
    }
    None
}

fn size_of(graph: &dyn Graph, id: TypeId, depth: usize) -> Option<u64> {
    match graph.shape(resolve(graph, id)?) {
        Shape::Scalar { size, .. } | Shape::Structure { size } => Some(size),
        Shape::Pointer(_) => Some(8),
        Shape::Array { element, count } if depth < DEEPEST => {
            size_of(graph, element, depth + 1)?.checked_mul(count)
        }
        _ => None,
    }
}

/// What is left of a member once its name has been found.
struct Found {
    of: TypeId,
    bit_offset: u64,
    bits: u64,
}

fn find_member(graph: &dyn Graph, structure: TypeId, name: &str, depth: usize) -> Option<Found> {
    let mut found = None;
    graph.members(structure, &mut |member| {
        if member.name == name {
            found = Some(Found { of: member.of, bit_offset: member.bit_offset, bits: member.bits });
        } else if member.name.is_empty() && depth < DEEPEST {
            found = resolve(graph, member.of)
                .filter(|&inner| matches!(graph.shape(inner), Shape::Structure { .. }))
                .and_then(|inner| find_member(graph, inner, name, depth + 1))
                .and_then(|inner| {
                    let bit_offset = inner.bit_offset.checked_add(member.bit_offset)?;
                    Some(Found { bit_offset, ..inner })
                });
        }
        found.is_some()
    });
    found
}
