//! kdump-compressed dumps, of makedumpfile and of QEMU.
//!
//! In blocks, each of the size of a page: the header; the sub-header; two bitmaps of one size, a bit for each page of
//! the machine; a descriptor of 24 bytes for each page in the second bitmap, in order; pages.
//!
//! | header | | sub-header (from version) | |
//! |---|---|---|---|
//! | 0..8 | "KDUMP   " | 0..8 | `phys_base` (1) |
//! | 8..12 | version | 8..12, 12..16 | dump level (1), whether split (2) |
//! | 12..402 | `utsname`: six names of 65 bytes | 16..24, 24..32 | first page, page behind the last (2) |
//! | 424..428 | status | 32..40, 40..48 | offset and size of VMCOREINFO (3) |
//! | 428..432 | size of a block | 48..56, 56..64 | offset and size of the notes (4) |
//! | 432..436 | blocks of the sub-header | 80..88, 88..96 | pages as above, 64 bits (6) |
//! | 436..440 | blocks of both bitmaps | 96..104 | number of pages of the machine (6) |
//! | 440..444 | number of pages of the machine | | |
//!
//! A descriptor: offset of the page in the file (64 bits), its size there, its flags (32 bits each), the kernel's flags
//! of the page (64). Many descriptors may have one offset: the page of zeros is stored once. Source: makedumpfile,
//! `IMPLEMENTATION`, `diskdump_mod.h` (facts only).

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use smpcall_vmcore::{PrStatus, prstatus};

use crate::compression::{Decompressor, Method};
use crate::fields::{Fields, damaged, read_part, read_vec};
use crate::memory::by_pieces;
use crate::notes::{self, Note};
use crate::storage::Storage;
use crate::{Architecture, OpenError, PhysicalMemory, ReadError};

/// How such a file begins.
pub(crate) const SIGNATURE: &[u8; 8] = b"KDUMP   ";

const HEADER_BYTES: usize = 464;
const SUB_HEADER_BYTES: usize = 104;
const DESCRIPTOR_BYTES: u64 = 24;

/// Status: the dump was not written to its end; descriptors of pages that are missing have offset 0.
const INCOMPLETE: u32 = 0x8;

/// The versions whose fields are known. Later ones add to them.
const LAST_VERSION: u32 = 6;

/// The number of descriptors before each so many bytes of the second bitmap is kept.
const STRIDE: u64 = 512;

/// What a kdump-compressed dump holds.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) architecture: Architecture,
    pub(crate) memory: KdumpMemory,
    pub(crate) notes: Vec<Note>,
    pub(crate) vmcoreinfo: Option<String>,
    pub(crate) phys_base: i64,
    pub(crate) remarks: Vec<String>,
}

/// The memory in a kdump-compressed dump.
#[derive(Debug)]
pub(crate) struct KdumpMemory {
    storage: Box<dyn Storage>,
    layout: Layout,
    /// How many pages are in the second bitmap before each stride of it.
    before: Vec<u64>,
    scratch: Mutex<Scratch>,
}

/// Where the parts are.
#[derive(Clone, Copy, Debug)]
struct Layout {
    block: u64,
    /// How many pages the machine has: bits in each bitmap.
    pages: u64,
    /// The first bitmap: which pages the machine has.
    existing: u64,
    /// The second bitmap: which pages are in the dump.
    dumped: u64,
    descriptors: u64,
    incomplete: bool,
}

#[derive(Debug, Default)]
struct Scratch {
    decompressor: Decompressor,
    stored: Vec<u8>,
    page: Vec<u8>,
}

/// Reads the headers, the notes and the second bitmap.
pub(crate) fn open(storage: Box<dyn Storage>) -> Result<Core, OpenError> {
    let mut bytes = [0; HEADER_BYTES];
    read_part(&*storage, "kdump header", 0, &mut bytes)?;
    let header = Fields::little(&bytes);
    // A version is a small number in the byte order of its machine.
    if header.u32(8) > 0xffff {
        let what = format!(
            "this is a kdump-compressed dump of a big-endian machine ({}); only those of little-endian ones can be read",
            Architecture::from_name(machine(&bytes))
        );
        return Err(OpenError::NotReadable { what });
    }
    let version = header.u32(8);
    let block = u64::from(header.u32(428));
    if !block.is_power_of_two() || !(4096..=65536).contains(&block) {
        return Err(damaged("kdump header", 428, format!("blocks of {block} bytes are no pages")));
    }
    let mut sub = [0; SUB_HEADER_BYTES];
    read_part(&*storage, "kdump sub-header", block, &mut sub)?;
    let sub = Fields::little(&sub);
    refuse_split(version, sub)?;
    let layout = layout(&*storage, version, header, sub)?;
    let mut remarks = Vec::new();
    if version > LAST_VERSION {
        remarks.push(format!(
            "the dump's header has version {version}; only what is known of version 6 is read"
        ));
    }
    if layout.incomplete {
        remarks.push("the dump says of itself that it was not written to its end: pages are missing".into());
    }
    let mut notes = Vec::new();
    let mut part = |from: u32, name, at, most| {
        let (offset, bytes) = (sub.u64(at), sub.u64(at + 8));
        if version < from || offset == 0 || bytes == 0 {
            return None;
        }
        read_vec(&*storage, name, offset, bytes, most).map_err(|error| remarks.push(error.to_string())).ok()
    };
    let text = part(3, "VMCOREINFO", 32, 1 << 20).map(|bytes| notes::text(&bytes));
    if let Some(bytes) = part(4, "notes", 48, notes::MAXIMUM_BYTES) {
        notes::append(&mut notes, &bytes, 4, &mut remarks);
    }
    let vmcoreinfo = text.filter(|text| !text.is_empty()).or_else(|| notes::vmcoreinfo(&notes));
    let before = count(&*storage, layout)?;
    Ok(Core {
        architecture: architecture(machine(&bytes), &notes),
        memory: KdumpMemory { storage, layout, before, scratch: Mutex::default() },
        notes,
        vmcoreinfo,
        phys_base: sub.u64(0).cast_signed(),
        remarks,
    })
}

/// The name of the machine: the fifth of the names.
fn machine(header: &[u8]) -> &[u8] {
    let name = &header[12 + 4 * 65..12 + 5 * 65];
    &name[..name.iter().position(|&byte| byte == 0).unwrap_or(name.len())]
}

/// QEMU calls every machine "Unknown", and then the size of the saved registers tells: of little-endian ones.
fn architecture(machine: &[u8], notes: &[Note]) -> Architecture {
    const PRSTATUS_OF_ARM64: usize = 392;
    if machine != b"Unknown" {
        return Architecture::from_name(machine);
    }
    let saved = notes.iter().find(|note| note.owner == prstatus::CORE && note.kind == prstatus::NT_PRSTATUS);
    match saved.map(|note| note.descriptor.len()) {
        Some(PrStatus::BYTES) => Architecture::X86_64,
        Some(PRSTATUS_OF_ARM64) => Architecture::Arm64,
        _ => Architecture::from_name(machine),
    }
}

fn refuse_split(version: u32, sub: Fields<'_>) -> Result<(), OpenError> {
    if version < 2 || sub.u32(12) == 0 {
        return Ok(());
    }
    let at = if version >= 6 { 80 } else { 16 };
    let what = format!(
        "this is one part of a dump that makedumpfile --split has written in several: pages {:#x} to {:#x}; join \
         them with makedumpfile --reassemble",
        sub.u64(at),
        sub.u64(at + 8)
    );
    Err(OpenError::NotReadable { what })
}

fn layout(
    storage: &dyn Storage,
    version: u32,
    header: Fields<'_>,
    sub: Fields<'_>,
) -> Result<Layout, OpenError> {
    let block = u64::from(header.u32(428));
    let (sub_blocks, bitmap_blocks) = (u64::from(header.u32(432)), u64::from(header.u32(436)));
    let pages = match sub.u64(96) {
        pages if version >= 6 && pages != 0 => pages,
        _ => header.u32(440).into(),
    };
    // Of 32-bit numbers of blocks of at most 64 KiB: no sum overflows.
    let existing = (1 + sub_blocks) * block;
    let dumped = existing + bitmap_blocks * block / 2;
    let descriptors = existing + bitmap_blocks * block;
    if pages.div_ceil(8) > dumped - existing {
        let what = format!(
            "it says {pages} pages, and {bitmap_blocks} blocks for two bitmaps, which are not enough"
        );
        return Err(damaged("kdump header", 436, what));
    }
    let length = storage.length();
    if descriptors > length {
        return Err(OpenError::CutOff { part: "bitmaps", offset: existing, end: descriptors, length });
    }
    let incomplete = header.u32(424) & INCOMPLETE != 0;
    Ok(Layout { block, pages, existing, dumped, descriptors, incomplete })
}

/// How many pages are in the second bitmap before each stride of it.
fn count(storage: &dyn Storage, layout: Layout) -> Result<Vec<u64>, OpenError> {
    let mut before = Vec::with_capacity((layout.pages.div_ceil(8) / STRIDE) as usize + 1);
    let mut total = 0;
    each_stride(storage, layout, layout.dumped, |_, bytes| {
        before.push(total);
        total += bytes.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
    })?;
    Ok(before)
}

/// Calls `each` with every stride of a bitmap, and the number of the page of its first bit.
fn each_stride(
    storage: &dyn Storage,
    layout: Layout,
    bitmap: u64,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), OpenError> {
    let bytes = layout.pages.div_ceil(8);
    let mut buffer = vec![0; (64 << 10).min(bytes as usize)];
    let mut at = 0;
    while at < bytes {
        let part = &mut buffer[..(bytes - at).min(64 << 10) as usize];
        read_part(storage, "bitmap", bitmap + at, part)?;
        for (stride, page) in part.chunks(STRIDE as usize).zip((at * 8..).step_by(STRIDE as usize * 8)) {
            each(page, stride);
        }
        at += part.len() as u64;
    }
    Ok(())
}

impl KdumpMemory {
    fn bit(&self, bitmap: u64, page: u64, address: u64) -> Result<bool, ReadError> {
        let mut byte = [0];
        self.exactly(bitmap + page / 8, &mut byte, address)?;
        Ok(byte[0] >> (page % 8) & 1 != 0)
    }

    /// The number of the descriptor of a page; none if it is not in the dump.
    fn descriptor(&self, page: u64, address: u64) -> Result<Option<u64>, ReadError> {
        let stride = page / 8 / STRIDE;
        let mut bytes = [0; STRIDE as usize];
        let bytes = &mut bytes[..=(page / 8 % STRIDE) as usize];
        self.exactly(self.layout.dumped + stride * STRIDE, bytes, address)?;
        let Some((last, whole)) = bytes.split_last() else { return Ok(None) };
        let bit = page % 8;
        if last >> bit & 1 == 0 {
            return Ok(None);
        }
        let whole = whole.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        let below = (last & ((1 << bit) - 1)).count_ones();
        Ok(self.before.get(stride as usize).map(|before| before + whole + u64::from(below)))
    }

    fn exactly(&self, offset: u64, into: &mut [u8], address: u64) -> Result<(), ReadError> {
        match self.storage.read_at(offset, into) {
            Ok(read) if read == into.len() => Ok(()),
            Ok(read) => Err(ReadError::CutOff { address, offset: offset.saturating_add(read as u64) }),
            Err(error) => Err(ReadError::Failed { address, reason: error.to_string().into() }),
        }
    }

    /// Fills `into` from within one page.
    fn read_piece(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let Layout { block, pages, existing, .. } = self.layout;
        let page = address / block;
        if page >= pages {
            return Err(ReadError::Absent { address });
        }
        let Some(number) = self.descriptor(page, address)? else {
            let existed = self.bit(existing, page, address)?;
            return Err(if existed {
                ReadError::Excluded { address }
            } else {
                ReadError::Absent { address }
            });
        };
        let mut descriptor = [0; DESCRIPTOR_BYTES as usize];
        let at = self.layout.descriptors.saturating_add(number * DESCRIPTOR_BYTES);
        self.exactly(at, &mut descriptor, address).map_err(|error| self.lost(address, error))?;
        let descriptor = Fields::little(&descriptor);
        let (offset, bytes) = (descriptor.u64(0), descriptor.u32(8));
        if offset == 0 {
            return Err(ReadError::Lost { address });
        }
        let damaged = |what| ReadError::Damaged { address, offset: at, what };
        let method = Method::from_flags(descriptor.u32(12))
            .ok_or(damaged("its method of compression is not known"))?;
        // A page that does not get smaller is stored as it is.
        if u64::from(bytes) > block {
            return Err(damaged("what is stored of it is longer than a page"));
        }
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { decompressor, stored, page } = &mut *scratch;
        stored.resize(bytes as usize, 0);
        self.exactly(offset, stored, address).map_err(|error| self.lost(address, error))?;
        page.resize(block as usize, 0);
        let inside = (address % block) as usize;
        let wanted = inside + into.len();
        decompressor.page(method, stored, page, wanted).map_err(|what| ReadError::Damaged {
            address,
            offset,
            what,
        })?;
        into.copy_from_slice(&page[inside..wanted]);
        Ok(())
    }

    /// In a dump that says that it is incomplete, what is not in the file was not written.
    fn lost(&self, address: u64, error: ReadError) -> ReadError {
        match error {
            ReadError::CutOff { .. } if self.layout.incomplete => ReadError::Lost { address },
            other => other,
        }
    }
}

impl PhysicalMemory for KdumpMemory {
    fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        by_pieces(address, into, self.layout.block, |address, piece| self.read_piece(address, piece))
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        self.in_bitmap(self.layout.dumped)
    }

    fn existing(&self) -> Vec<Range<u64>> {
        self.in_bitmap(self.layout.existing)
    }
}

impl KdumpMemory {
    /// The ranges that have bits in a bitmap. In pieces of 64 pages: a filtered dump has hundreds of thousands of holes.
    fn in_bitmap(&self, bitmap: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let (block, pages) = (self.layout.block, self.layout.pages);
        // What cannot be read has no pages.
        let _ = each_stride(&*self.storage, self.layout, bitmap, |first, bytes| {
            for (page, word) in (first..).step_by(64).zip(bytes.chunks(8)) {
                if word.iter().all(|&byte| byte == 0) {
                    continue;
                }
                let (begin, end) = (page.saturating_mul(block), (page + 64).min(pages).saturating_mul(block));
                match ranges.last_mut() {
                    Some(last) if last.end == begin => last.end = end,
                    _ => ranges.push(begin..end),
                }
            }
        });
        ranges
    }
}
