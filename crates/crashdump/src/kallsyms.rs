//! kallsyms: the symbol table that a kernel carries for its own back traces.
//!
//! The names are compressed: each is a length and as many bytes, each byte stands for a token of a table of 256. The first
//! character is the symbol's type, as `nm` prints it. The addresses are a table of their own, in the order of addresses.
//! How they are encoded has changed four times ([`Encoding`]); nothing in memory says which it is, so each is tried on
//! `_stext`, whose address is known from elsewhere.
//!
//! A name is found by its hash. Hashes of all names are made once, without expanding any: the hash of a text that is put
//! together follows from the hashes of its parts. An address is found by bisection.
//!
//! Source: Linux, `kernel/kallsyms.c`, `scripts/kallsyms.c` and `kernel/vmcore_info.c` (facts only).

use std::cmp::Ordering;

use smpcall_vmcore::VmCoreInfo;

use crate::ReadError;
use crate::virtual_memory::{VirtualMemory, number, sign_extended};

/// No kernel has more symbols. A full distribution kernel has about 250,000.
pub(crate) const MOST_SYMBOLS: u32 = 1 << 22;
/// No kernel's compressed names are longer, in bytes.
const MOST_NAMES: usize = 64 << 20;
/// How many tokens there are: one for each value of a byte.
pub(crate) const TOKENS: usize = 256;
/// No token table is longer, in bytes: its index has 16 bits.
const MOST_TOKENS: usize = 1 << 16;
/// How many hashes are compared at once.
const CHUNK: usize = 64;
/// The first address of the kernel's half, on x86-64. Below are per-CPU offsets, while they were counted from zero.
const KERNEL_HALF: u64 = 1 << 63;

/// How the addresses of the symbols are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 64-bit addresses. Before Linux 6.11, without `KALLSYMS_BASE_RELATIVE`.
    Absolute,
    /// Unsigned 32-bit offsets from a base. Linux 4.6 to 6.19.
    BaseRelative {
        /// What they are relative to.
        base: u64,
    },
    /// Signed 32-bit: what is not negative is an absolute value (a per-CPU offset), the rest is negated and counted from
    /// the base less one. Linux 4.6 to 6.14, with `KALLSYMS_ABSOLUTE_PERCPU`, as on x86-64.
    AbsolutePerCpu {
        /// What they are relative to.
        base: u64,
    },
    /// Signed 32-bit offsets from where each of them is. Since Linux 7.0.
    PlaceRelative {
        /// Where the first is.
        place: u64,
    },
}

impl Encoding {
    /// The size of one entry, in bytes.
    const fn width(self) -> usize {
        match self {
            Self::Absolute => 8,
            _ => 4,
        }
    }

    /// The address that the entry of the symbol `index` stands for.
    const fn decode(self, index: usize, entry: u64) -> u64 {
        // Of a 32-bit entry: bit 31 is the sign.
        let signed = sign_extended(entry as u32);
        match self {
            Self::Absolute => entry,
            Self::BaseRelative { base } => base.wrapping_add(entry),
            Self::AbsolutePerCpu { .. } if signed == entry => entry,
            Self::AbsolutePerCpu { base } => base.wrapping_sub(1).wrapping_sub(signed),
            Self::PlaceRelative { place } => place.wrapping_add(4 * index as u64).wrapping_add(signed),
        }
    }
}

/// Where the table of addresses is, before it is known how it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressTable {
    /// 64-bit addresses.
    Absolute(u64),
    /// 32-bit offsets, and where their base is; without it they are relative to their places.
    Offsets {
        /// Where the offsets are.
        offsets: u64,
        /// Where the base is.
        base: Option<u64>,
    },
}

/// Where the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// `kallsyms_names`.
    pub names: u64,
    /// How many symbols there are.
    pub count: u32,
    /// `kallsyms_token_table`.
    pub token_table: u64,
    /// `kallsyms_token_index`.
    pub token_index: u64,
    /// `kallsyms_addresses`, or `kallsyms_offsets` and `kallsyms_relative_base`.
    pub addresses: AddressTable,
}

/// Why there are no symbols.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KallsymsError {
    /// A table cannot be read.
    #[error("the kernel's symbols cannot be read, because its {table} is missing: {source}")]
    Missing {
        /// Which table.
        table: &'static str,
        /// Why.
        source: ReadError,
    },
    /// A table holds what no kernel puts there.
    #[error("the kernel's symbols cannot be read: its {table} at {address:#x} {what}")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// Where it is.
        address: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// No way of reading the addresses gives `_stext` the address that it has.
    #[error(
        "the addresses of the kernel's symbols are written in a way that is not known here: no known one makes _stext \
         {stext:#x}"
    )]
    UnknownEncoding {
        /// The address of `_stext`.
        stext: u64,
    },
    /// VMCOREINFO does not say where the tables are, and they were not found in the kernel's memory.
    #[error(
        "the kernel's symbols were not found: VMCOREINFO does not say where they are, and the kernel's image does not \
         hold them where it was searched ({from:#x} to {to:#x}); the kernel may lack CONFIG_KALLSYMS, or the dump \
         these pages"
    )]
    NotFound {
        /// The first address that was searched.
        from: u64,
        /// The address after the last.
        to: u64,
    },
}

impl Tables {
    /// From VMCOREINFO, which has them since Linux 6.0. None if a key is missing or the count cannot be read.
    ///
    /// # Errors
    ///
    /// The keys are there, and the number of symbols is not.
    pub fn from_vmcoreinfo(
        memory: &dyn VirtualMemory,
        info: VmCoreInfo<'_>,
    ) -> Result<Option<Self>, KallsymsError> {
        let key = |name: &str| info.symbol(&format!("kallsyms_{name}"));
        let offsets = |offsets| AddressTable::Offsets { offsets, base: key("relative_base") };
        let addresses = key("offsets").map(offsets).or_else(|| key("addresses").map(AddressTable::Absolute));
        let (Some(names), Some(count), Some(token_table), Some(token_index), Some(addresses)) =
            (key("names"), key("num_syms"), key("token_table"), key("token_index"), addresses)
        else {
            return Ok(None);
        };
        let count = memory.read_u32(count).map_err(missing("number of symbols (kallsyms_num_syms)"))?;
        Ok(Some(Self { names, count, token_table, token_index, addresses }))
    }
}

/// The tokens of which names are made.
#[derive(Clone, Debug)]
struct Tokens {
    text: Vec<u8>,
    of: [Token; TOKENS],
}

#[derive(Clone, Copy, Debug)]
struct Token {
    begin: u16,
    length: u16,
    hash: Hash,
    /// Of the token without its first character, which is the type of the symbol where it comes first.
    tail: Hash,
}

impl Token {
    const EMPTY: Self = Self { begin: 0, length: 0, hash: Hash::EMPTY, tail: Hash::EMPTY };
}

impl Tokens {
    fn new(text: Vec<u8>, index: &[u8]) -> Self {
        let mut of = [Token::EMPTY; TOKENS];
        for (token, begin) in of.iter_mut().zip(index.chunks_exact(2)) {
            let begin = u16::from_le_bytes([begin[0], begin[1]]);
            let rest = text.get(usize::from(begin)..).unwrap_or(&[]);
            let bytes = &rest[..rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len())];
            *token = Token {
                begin,
                length: bytes.len() as u16,
                hash: Hash::of(bytes),
                tail: Hash::of(bytes.get(1..).unwrap_or(&[])),
            };
        }
        Self { text, of }
    }

    fn bytes(&self, code: u8) -> &[u8] {
        let token = self.of[usize::from(code)];
        self.text
            .get(usize::from(token.begin)..)
            .and_then(|rest| rest.get(..usize::from(token.length)))
            .unwrap_or(&[])
    }

    /// The characters of a compressed name, the type first.
    fn expand<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
        name.iter().flat_map(|&code| self.bytes(code)).copied()
    }
}

/// A polynomial over the bytes of a text: that of two texts put together follows from theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hash {
    value: u32,
    /// The factor to the power of the length.
    power: u32,
}

impl Hash {
    /// Odd, so that no power of it is zero; with bits all over. That of FNV.
    const FACTOR: u32 = 0x0100_0193;
    const EMPTY: Self = Self { value: 0, power: 1 };

    fn of(bytes: &[u8]) -> Self {
        bytes
            .iter()
            .fold(Self::EMPTY, |hash, &byte| hash.and(Self { value: u32::from(byte), power: Self::FACTOR }))
    }

    const fn and(self, next: Self) -> Self {
        Self {
            value: self.value.wrapping_mul(next.power).wrapping_add(next.value),
            power: self.power.wrapping_mul(next.power),
        }
    }
}

/// The symbols of the kernel's image.
#[derive(Clone, Debug)]
pub struct Kallsyms {
    /// Compressed.
    names: Vec<u8>,
    /// Where each name begins: at its length.
    begins: Vec<u32>,
    /// Of the names without their types.
    hashes: Vec<u32>,
    tokens: Tokens,
    /// The table of addresses as it is in memory.
    entries: Vec<u8>,
    encoding: Encoding,
}

/// What is at an address: the symbol that begins there or before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// Its type, as `nm` prints it: `t` and `T` are code.
    pub kind: char,
    /// Where it begins.
    pub address: u64,
    /// How many bytes there are up to the next symbol; 0 if there is none.
    pub size: u64,
}

impl Kallsyms {
    /// Reads the tables. `stext` is the address of `_stext`, if it is known: it decides how addresses are encoded.
    ///
    /// # Errors
    ///
    /// A table cannot be read, or is none.
    pub fn load(
        memory: &dyn VirtualMemory,
        tables: &Tables,
        stext: Option<u64>,
    ) -> Result<Self, KallsymsError> {
        if tables.count == 0 || tables.count > MOST_SYMBOLS {
            return Err(KallsymsError::Damaged {
                table: "number of symbols",
                address: tables.names,
                what: "is zero, or larger than that of any kernel",
            });
        }
        let count = tables.count as usize;
        let index = memory
            .read_bytes(tables.token_index, 2 * TOKENS)
            .map_err(missing("index of tokens (kallsyms_token_index)"))?;
        // The last token begins at the last entry of the index; none is longer than a symbol's name.
        let text = (number(&index, 2 * (TOKENS - 1), 2).unwrap_or(0) as usize + 512).min(MOST_TOKENS);
        let tokens = Tokens::new(memory.read_available(tables.token_table, text), &index);
        let (names, begins) = read_names(memory, tables.names, count)?;
        let hashes = begins.iter().map(|&begin| hash_of(&tokens, name_at(&names, begin))).collect();
        let mut symbols =
            Self { names, begins, hashes, tokens, entries: Vec::new(), encoding: Encoding::Absolute };
        symbols.read_addresses(memory, tables.addresses, stext)?;
        Ok(symbols)
    }

    fn read_addresses(
        &mut self,
        memory: &dyn VirtualMemory,
        table: AddressTable,
        stext: Option<u64>,
    ) -> Result<(), KallsymsError> {
        let count = self.begins.len();
        let (address, candidates) = match table {
            AddressTable::Absolute(address) => (address, vec![Encoding::Absolute]),
            AddressTable::Offsets { offsets, base } => {
                let place = Encoding::PlaceRelative { place: offsets };
                let mut candidates = vec![];
                if let Some(base) = base {
                    let base = memory
                        .read_u64(base)
                        .map_err(missing("base of addresses (kallsyms_relative_base)"))?;
                    candidates.extend([Encoding::AbsolutePerCpu { base }, Encoding::BaseRelative { base }]);
                }
                candidates.push(place);
                (offsets, candidates)
            }
        };
        self.entries = memory
            .read_bytes(address, count * candidates[0].width())
            .map_err(missing("table of addresses (kallsyms_offsets or kallsyms_addresses)"))?;
        let of_stext = self.index_of("_stext").ok_or(KallsymsError::Damaged {
            table: "table of names",
            address,
            what: "does not hold _stext",
        })?;
        let fits = |encoding: &Encoding| {
            let decoded = encoding.decode(of_stext, self.entry(of_stext, encoding.width()));
            match stext {
                Some(stext) => decoded == stext,
                // The kernel's image lies in the last 2 GiB, and its text begins with a page.
                None => {
                    decoded >= 0xffff_ffff_8000_0000
                        && decoded.is_multiple_of(4096)
                        && self.ascends(*encoding)
                }
            }
        };
        self.encoding = *candidates
            .iter()
            .find(|encoding| fits(encoding))
            .ok_or(KallsymsError::UnknownEncoding { stext: stext.unwrap_or(0) })?;
        Ok(())
    }

    /// Whether the addresses come in their order, as far as a thousand samples show.
    fn ascends(&self, encoding: Encoding) -> bool {
        let step = (self.begins.len() / 1000).max(1);
        let values = (0..self.begins.len())
            .step_by(step)
            .map(|index| encoding.decode(index, self.entry(index, encoding.width())));
        values.is_sorted()
    }

    fn entry(&self, index: usize, width: usize) -> u64 {
        number(&self.entries, index * width, width).unwrap_or(0)
    }

    /// How the addresses are encoded.
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.begins.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }

    /// The address of the symbol `index`, in the order of addresses.
    pub fn address(&self, index: usize) -> u64 {
        self.encoding.decode(index, self.entry(index, self.encoding.width()))
    }

    /// Type and name of the symbol `index`; nothing beyond the last.
    pub fn name(&self, index: usize) -> Option<(char, String)> {
        let mut characters = self.tokens.expand(name_at(&self.names, *self.begins.get(index)?));
        let kind = char::from(characters.next().unwrap_or(b'?'));
        let name: Vec<u8> = characters.collect();
        Some((kind, String::from_utf8_lossy(&name).into_owned()))
    }

    /// The addresses of all symbols of this name, in order: static ones may share theirs.
    pub fn all(&self, name: &str) -> impl Iterator<Item = u64> {
        self.indices(name).map(|index| self.address(index))
    }

    /// The address of the symbol of this name; of the first, if there are several.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.index_of(name).map(|index| self.address(index))
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.indices(name).next()
    }

    fn indices(&self, name: &str) -> impl Iterator<Item = usize> {
        let wanted = Hash::of(name.as_bytes()).value;
        // A chunk is asked as a whole, without a branch for each hash: that becomes vector instructions, which is what makes
        // going through a hundred thousand of them quicker than an index would be.
        let chunks = self.hashes.chunks(CHUNK).enumerate();
        let with_it = chunks.filter(move |(_, chunk)| {
            chunk.iter().fold(0, |count, &hash| count + u32::from(hash == wanted)) != 0
        });
        let same_hash = with_it.flat_map(move |(at, chunk)| {
            let of_chunk = chunk.iter().enumerate().filter(move |&(_, &hash)| hash == wanted);
            of_chunk.map(move |(index, _)| CHUNK * at + index)
        });
        same_hash.filter(move |&index| {
            let begin = self.begins[index];
            self.tokens.expand(name_at(&self.names, begin)).skip(1).cmp(name.bytes()) == Ordering::Equal
        })
    }

    /// The symbol at an address of the kernel's half: the last that begins there or before; of several that begin at one
    /// address the first, as the kernel prints it. None below the first and above the last.
    pub fn at(&self, address: u64) -> Option<Symbol> {
        if address < KERNEL_HALF {
            return None;
        }
        let mut index = self.partition(|value| value <= address).checked_sub(1)?;
        let begin = self.address(index);
        if begin < KERNEL_HALF {
            return None;
        }
        let next = self.partition(|value| value <= begin);
        if next >= self.len() && address != begin {
            return None;
        }
        while index > 0 && self.address(index - 1) == begin {
            index -= 1;
        }
        let (kind, name) = self.name(index)?;
        let size = if next < self.len() { self.address(next).wrapping_sub(begin) } else { 0 };
        Some(Symbol { name, kind, address: begin, size })
    }

    /// How many symbols come before the first for whose address this does not hold.
    fn partition(&self, holds: impl Fn(u64) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if holds(self.address(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Reads names until there are `count`. Returns them, and where each begins.
fn read_names(
    memory: &dyn VirtualMemory,
    address: u64,
    count: usize,
) -> Result<(Vec<u8>, Vec<u32>), KallsymsError> {
    /// How much is read at once: nothing says how long the table is.
    const PIECE: usize = 256 << 10;
    let mut names = Vec::new();
    let mut begins = Vec::new();
    let mut at = 0;
    while begins.len() < count {
        if let Some((_, next)) = split_name(&names, at) {
            begins.push(at as u32);
            at = next;
            continue;
        }
        let from = address.wrapping_add(names.len() as u64);
        let piece = memory.read_available(from, PIECE);
        if piece.is_empty() {
            memory.read_u8(from).map_err(missing("table of names (kallsyms_names)"))?;
        }
        if piece.is_empty() || names.len() + piece.len() > MOST_NAMES {
            let what = "does not end where its number of symbols says";
            return Err(KallsymsError::Damaged { table: "table of names", address, what });
        }
        names.extend_from_slice(&piece);
    }
    names.truncate(at);
    Ok((names, begins))
}

/// The compressed name whose length is at an offset, and the offset after it. Since Linux 6.1 a length beyond 127 has two
/// bytes, the lower seven bits first; no compressed name of earlier kernels is that long.
pub(crate) fn split_name(names: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let low = usize::from(*names.get(at)?);
    let (length, begin) = match low {
        0..0x80 => (low, at + 1),
        _ => (low & 0x7f | usize::from(*names.get(at + 1)?) << 7, at + 2),
    };
    Some((names.get(begin..)?.get(..length)?, begin + length))
}

fn name_at(names: &[u8], begin: u32) -> &[u8] {
    split_name(names, begin as usize).map_or(&[], |(name, _)| name)
}

/// The hash of a name without its type.
fn hash_of(tokens: &Tokens, name: &[u8]) -> u32 {
    let Some((&first, rest)) = name.split_first() else { return 0 };
    let first = tokens.of[usize::from(first)].tail;
    rest.iter().fold(first, |hash, &code| hash.and(tokens.of[usize::from(code)].hash)).value
}

fn missing(table: &'static str) -> impl Fn(ReadError) -> KallsymsError {
    move |source| KallsymsError::Missing { table, source }
}
