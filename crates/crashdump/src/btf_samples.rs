//! BTF for tests, put together type by type.

use std::sync::Arc;

use crate::btf::Btf;
use crate::types::Types;

/// Puts BTF together, type by type.
#[derive(Default)]
pub(crate) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    next: u32,
    first_string: u32,
}

pub(crate) const INT: u32 = 1;
pub(crate) const POINTER: u32 = 2;
pub(crate) const ARRAY: u32 = 3;
pub(crate) const STRUCT: u32 = 4;
pub(crate) const UNION: u32 = 5;
pub(crate) const ENUM: u32 = 6;
pub(crate) const FORWARD: u32 = 7;
pub(crate) const TYPEDEF: u32 = 8;
pub(crate) const CONST: u32 = 10;
pub(crate) const FUNCTION: u32 = 12;
pub(crate) const PROTOTYPE: u32 = 13;
pub(crate) const VARIABLE: u32 = 14;
pub(crate) const DATA_SECTION: u32 = 15;
pub(crate) const FLOAT: u32 = 16;
pub(crate) const DECLARATION_TAG: u32 = 17;
pub(crate) const TYPE_TAG: u32 = 18;
pub(crate) const ENUM64: u32 = 19;

impl Builder {
    pub(crate) fn new() -> Self {
        Self { strings: vec![0], next: 1, ..Self::default() }
    }

    /// That goes on where another ends.
    pub(crate) fn split(base: &Self) -> Self {
        let first_string = base.first_string + base.strings.len() as u32;
        Self { next: base.next, first_string, strings: vec![0], ..Self::default() }
    }

    pub(crate) fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.first_string + self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// Adds a type: its kind, its length, whether its flag is set, its size or type, and the words behind.
    pub(crate) fn add(
        &mut self,
        name: &str,
        kind: u32,
        length: usize,
        flag: bool,
        value: u32,
        words: &[u32],
    ) -> u32 {
        let name = self.string(name);
        let info = u32::from(flag) << 31 | kind << 24 | length as u32;
        for word in [name, info, value].iter().chain(words) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn int(&mut self, name: &str, size: u32, signed: bool) -> u32 {
        self.add(name, INT, 0, false, size, &[(u32::from(signed) << 24) | (8 * size)])
    }

    /// Members: name, type, offset in bits.
    pub(crate) fn aggregate(
        &mut self,
        name: &str,
        kind: u32,
        size: u32,
        flag: bool,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let words: Vec<u32> =
            members.iter().flat_map(|&(name, of, offset)| [self.string(name), of, offset]).collect();
        self.add(name, kind, members.len(), flag, size, &words)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header =
            [0x0001_eb9f, 24, 0, self.types.len() as u32, self.types.len() as u32, self.strings.len() as u32];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }

    pub(crate) fn types(&self) -> Types {
        Types::from(Arc::new(Btf::new(&self.bytes(), None).expect("as built")))
    }
}
