//! Finds the tables of kallsyms in the kernel's image when nothing says where they are: kernels before 6.0, and dumps
//! without VMCOREINFO.
//!
//! The table of tokens is found by its digits, which stand for themselves. Everything else lies around it in a fixed order,
//! and each table says how long it is or how long the next one is:
//!
//! * before Linux 6.4: offsets, base, number of symbols, names, markers, tokens, index of tokens (without
//!   `KALLSYMS_BASE_RELATIVE` addresses in place of offsets and base);
//! * since: number of symbols, names, markers, tokens, index of tokens, offsets, base (the base until 6.19).
//!
//! The markers say where every 256th name begins: 64-bit numbers before Linux 4.20, 32-bit ones since. In 6.2, in 6.3 and in
//! later releases of 6.1 there is one more table between markers and tokens: the order of the names, three bytes each.
//!
//! Source: Linux, `scripts/kallsyms.c`, `write_src` (facts only).

use std::cell::Cell;
use std::ops::Range;

use crate::kallsyms::{AddressTable, Kallsyms, KallsymsError, MOST_SYMBOLS, TOKENS, Tables, split_name};
use crate::virtual_memory::{VirtualMemory, number, number_u32};

/// How much is searched at once. Tables may lie across pieces, so each piece begins before the end of the last.
const PIECE: usize = 1 << 20;
/// What two pieces share: more than the digits need.
const OVERLAP: usize = 64;
/// How far before the tokens names can begin, in bytes: 16 MiB is some four times a distribution kernel's.
const NAMES_BEFORE: usize = 16 << 20;
/// Tables begin at multiples of 4 or 8; the next one begins at most this far behind the end of one.
const PADDING: usize = 8;
/// Codes of tokens are characters that stand for themselves where they are used: this is where the digits begin.
const FIRST_DIGIT: usize = b'0' as usize;
/// How many tables of each kind are looked at, if there are impostors.
const MOST_CANDIDATES: usize = 16;
/// How many names are looked at in all.
const NAMES_LOOKED_AT: usize = 1 << 26;

/// Searches a range of kernel addresses, most likely the kernel's image, and reads the symbols. `stext` is the address of
/// `_stext`, if it is known. `searched` is the same memory: searching goes through all of the range, which whoever keeps or
/// notes what was read need not do with it; what was found is read from `memory`.
///
/// # Errors
///
/// There are none in this range that can be read.
pub fn find(
    memory: &dyn VirtualMemory,
    searched: &dyn VirtualMemory,
    range: Range<u64>,
    stext: Option<u64>,
) -> Result<Kallsyms, KallsymsError> {
    let mut first_error = None;
    for digits in digits(searched, range.clone()).take(MOST_CANDIDATES) {
        let Some(tokens) = TokensAt::around(searched, digits) else { continue };
        let before = Before::read(searched, tokens.table);
        // Lazily: the right one is nearly always the first.
        let candidates = before.names().take(MOST_CANDIDATES).flat_map(|names| names.tables(&tokens));
        for (count_at, tables) in candidates {
            match Kallsyms::load(memory, &tables, stext) {
                Ok(symbols) => {
                    // All that leads here, so that it leads here again in an extract of what was read.
                    let index = tokens.index + 2 * TOKENS as u64;
                    _ = memory.read_available(count_at, (index - count_at) as usize);
                    return Ok(symbols);
                }
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
    }
    Err(first_error.unwrap_or(KallsymsError::NotFound { from: range.start, to: range.end }))
}

/// Addresses of `"0\0" "1\0" ... "9\0"`.
fn digits(memory: &dyn VirtualMemory, range: Range<u64>) -> impl Iterator<Item = u64> {
    let pattern: Vec<u8> = (b'0'..=b'9').flat_map(|digit| [digit, 0]).collect();
    let mut at = range.start;
    let mut found: Vec<u64> = Vec::new();
    std::iter::from_fn(move || {
        while found.is_empty() && at < range.end {
            let next_page = (at | 4095).checked_add(1)?;
            if memory.read_u8(at).is_err() {
                at = next_page;
                continue;
            }
            let piece = memory.read_available(at, PIECE.min((range.end - at) as usize));
            found.extend(positions(&piece, &pattern).into_iter().map(|offset| at + offset as u64));
            found.reverse();
            // The last piece, or one that ends before a page which is not there, needs no look across its end.
            let step = if piece.len() == PIECE { PIECE - OVERLAP } else { piece.len() };
            at = at.checked_add(step as u64)?.max(next_page);
        }
        found.pop()
    })
}

/// Where the pattern of digits is in these bytes.
fn positions(bytes: &[u8], pattern: &[u8]) -> Vec<usize> {
    /// Asked at once whether 7 and 8 are in it two bytes apart, without a branch for each byte.
    const CHUNK: usize = 64;
    const SEVEN: usize = 14;
    let mut found = Vec::new();
    let behind = bytes.get(2..).unwrap_or(&[]);
    for (index, (these, those)) in bytes.chunks(CHUNK).zip(behind.chunks(CHUNK)).enumerate() {
        let both = |(&this, &that): (&u8, &u8)| u8::from(this == b'7') & u8::from(that == b'8');
        if these.iter().zip(those).map(both).fold(0, |any, both| any | both) != 0 {
            let sevens = these.iter().enumerate().filter(|&(_, &byte)| byte == b'7');
            let begins = sevens.filter_map(|(at, _)| (CHUNK * index + at).checked_sub(SEVEN));
            found.extend(begins.filter(|&begin| bytes[begin..].starts_with(pattern)));
        }
    }
    found
}

/// Where tokens and their index are.
struct TokensAt {
    table: u64,
    index: u64,
}

impl TokensAt {
    /// The table of tokens that has its digits there; none if there is no index behind it that agrees.
    fn around(memory: &dyn VirtualMemory, digits: u64) -> Option<Self> {
        // Tokens before the digits are 48, each with its zero byte, most of them a few characters long.
        const BEFORE: usize = 4096;
        const AFTER: usize = 16 << 10;
        let from = digits.checked_sub(BEFORE as u64)?;
        let bytes = memory.read_available(from, BEFORE + AFTER);
        // Tables begin at multiples of 4, so the 48th zero byte back, if the one before the table is one.
        let begin =
            (0..BEFORE).rev().filter(|&at| from.wrapping_add(at as u64).is_multiple_of(4)).find(|&at| {
                bytes.get(at..BEFORE).is_some_and(|part| {
                    part.last() == Some(&0) && part.split(|&byte| byte == 0).count() == FIRST_DIGIT + 1
                }) && index_after(&bytes, at).is_some()
            })?;
        let index = index_after(&bytes, begin)?;
        Some(Self { table: from + begin as u64, index: from + index as u64 })
    }
}

/// The offset of the index of the tokens that begin at an offset; none if it does not agree with them.
fn index_after(bytes: &[u8], begin: usize) -> Option<usize> {
    let mut index = [0_u8; 2 * TOKENS];
    let mut at = begin;
    for entry in index.chunks_exact_mut(2) {
        entry.copy_from_slice(&u16::try_from(at - begin).ok()?.to_le_bytes());
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0)? + 1;
    }
    (at..=at + PADDING).find(|&at| bytes.get(at..at + index.len()) == Some(&index[..]))
}

/// What lies right before an address, back to `from` or to a page that cannot be read.
fn read_before(memory: &dyn VirtualMemory, from: u64, to: u64) -> Vec<u8> {
    let mut pieces = Vec::new();
    let mut at = to;
    // Large steps first: the last of them goes beyond what can be read, so what is left goes by pages.
    for step in [256 << 10, 4096] {
        while at > from {
            let begin = ((at - 1) & !(step - 1)).max(from);
            let Ok(piece) = memory.read_bytes(begin, (at - begin) as usize) else { break };
            pieces.push(piece);
            at = begin;
        }
    }
    pieces.reverse();
    pieces.concat()
}

/// What lies before the tokens.
struct Before {
    bytes: Vec<u8>,
    /// How many names may still be looked at, so that memory which resembles tables everywhere costs no more than a second.
    budget: Cell<usize>,
    /// The address behind the bytes: where the tokens begin.
    end: u64,
}

/// Addresses of the number of symbols and of the names, and the number.
#[derive(Clone, Copy, Debug)]
struct Names {
    count_at: u64,
    begin: u64,
    count: u32,
}

impl Names {
    /// Every way in which the other tables can lie around the tokens, and where the number of symbols is.
    fn tables(self, tokens: &TokensAt) -> [(u64, Tables); 4] {
        let Self { count_at, begin: names, count } = self;
        let bytes = |width: u64| u64::from(count) * width;
        let offsets = |offsets, base| AddressTable::Offsets { offsets, base: Some(base) };
        // Since 6.4: behind the index. The base, if there is one, is behind the offsets.
        let after = (tokens.index + 2 * TOKENS as u64).next_multiple_of(4);
        let behind = |at: u64| offsets(at, (at + bytes(4)).next_multiple_of(8));
        // Before 6.4: before the number of symbols.
        let base = count_at.saturating_sub(8);
        let before = offsets(base.saturating_sub(bytes(4).next_multiple_of(8)), base);
        let absolute = AddressTable::Absolute(count_at.saturating_sub(bytes(8)));
        [behind(after), behind(after.next_multiple_of(8)), before, absolute].map(|addresses| {
            let (token_table, token_index) = (tokens.table, tokens.index);
            (count_at, Tables { names, count, token_table, token_index, addresses })
        })
    }
}

impl Before {
    fn read(memory: &dyn VirtualMemory, end: u64) -> Self {
        let from = end.saturating_sub(NAMES_BEFORE as u64);
        Self { bytes: read_before(memory, from, end), budget: Cell::new(NAMES_LOOKED_AT), end }
    }

    /// Everything that can be a number of symbols with the names behind it, the last first. For each number it follows where
    /// the markers must be if it is one; nearly all fall with the first marker, which is zero, or with the last, which must
    /// reach almost to the end of the names.
    fn names(&self) -> impl Iterator<Item = Names> {
        let begin = self.end - self.bytes.len() as u64;
        let first = (begin.next_multiple_of(4) - begin) as usize;
        let counts = (first..self.bytes.len()).step_by(4).rev().filter_map(|at| {
            let count = number_u32(&self.bytes, at).filter(|count| (257..=MOST_SYMBOLS).contains(count))?;
            Some((at, count))
        });
        counts.flat_map(move |(at, count)| {
            // The number has 32 bits since Linux 4.20, and tables begin at multiples of 4 or 8.
            let wide = number_u32(&self.bytes, at + 4) == Some(0);
            let names = [Some(at + 4), wide.then_some(at + 8)].into_iter().flatten();
            let fits = names.filter(move |&names| self.fits(names, count as usize));
            fits.map(move |names| Names { count_at: begin + at as u64, begin: begin + names as u64, count })
        })
    }

    fn fits(&self, names: usize, count: usize) -> bool {
        // Width of a marker, and of what there is for each name between markers and tokens.
        [(4, 0), (4, 3), (8, 0)].into_iter().any(|(width, each)| {
            [4, 8].into_iter().any(|alignment| self.fits_with(names, count, width, each, alignment).is_some())
        })
    }

    fn fits_with(&self, names: usize, count: usize, width: usize, each: usize, alignment: u64) -> Option<()> {
        let begin = self.end - self.bytes.len() as u64;
        // Each table ends where the next one begins, but for padding; so it begins at most its length before that.
        let before = |end: u64, length: usize| {
            let at = end.checked_sub(length as u64)?;
            Some(at - at % alignment)
        };
        let order = before(self.end, each * count)?;
        let markers =
            usize::try_from(before(order, width * count.div_ceil(256))?.checked_sub(begin)?).ok()?;
        let marker =
            |index: usize| usize::try_from(number(&self.bytes, markers + index * width, width)?).ok();
        let last = names.checked_add(marker((count - 1) / 256)?)?;
        // Behind the last marker are at most 256 names, of at most 512 bytes.
        let near = marker(0)? == 0 && last < markers && markers - last <= 256 * 512;
        if !near {
            return None;
        }
        let agrees = |index: usize, at: usize| !index.is_multiple_of(256) || marker(index / 256) == Some(at);
        let end = self.walk(&self.bytes[names..markers], count, agrees)?;
        (markers - names - end <= PADDING).then_some(())
    }

    /// The offset behind `count` names, if `agrees` with index and offset of each.
    fn walk(&self, names: &[u8], count: usize, agrees: impl Fn(usize, usize) -> bool) -> Option<usize> {
        (0..count).try_fold(0, |at, index| {
            self.budget.set(self.budget.get().checked_sub(1)?);
            if agrees(index, at) { Some(split_name(names, at)?.1) } else { None }
        })
    }
}
