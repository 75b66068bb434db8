//! Writes a kdump-compressed dump, version 6: what [`kdump`](crate::kdump) reads, and makedumpfile's and crash's readers.

use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;

use flate2::{Compress, Compression, FlushCompress, Status};
use smpcall_vmcore::{VmCoreInfo, vmcoreinfo};

use crate::Dump;
use crate::extract::{ExtractError, Extracted, note_section, read_page};
use crate::kdump::SIGNATURE;
use crate::memory::PAGE_BYTES;
use crate::notes::Note;

const PAGE: usize = PAGE_BYTES as usize;
const ZLIB: u32 = 0x1;
const DESCRIPTOR_BYTES: u64 = 24;

/// What the dump level says: that pages of every kind were left out.
const EVERY_KIND: u32 = 31;

/// Writes the pages in these ranges.
pub(crate) fn write(
    dump: &Dump,
    ranges: &[Range<u64>],
    notes: &[Note],
    mut to: impl Write + Seek,
) -> Result<Extracted, ExtractError> {
    let existing = dump.memory().existing();
    let last = existing.iter().chain(ranges).map(|range| range.end).max().unwrap_or(0);
    let pages = last.div_ceil(PAGE_BYTES);
    let notes_at = PAGE_BYTES + SUB_HEADER_BYTES as u64;
    let section = note_section(notes);
    let sub_blocks = (SUB_HEADER_BYTES as u64 + section.len() as u64).div_ceil(PAGE_BYTES);
    let bitmap_blocks = pages.div_ceil(8 * PAGE_BYTES);
    let existing_at = (1 + sub_blocks) * PAGE_BYTES;
    let dumped_at = existing_at + bitmap_blocks * PAGE_BYTES;
    let descriptors_at = dumped_at + bitmap_blocks * PAGE_BYTES;
    let count: u64 = ranges.iter().map(page_count).sum();

    let mut pages_out = Pages {
        next: descriptors_at + count * DESCRIPTOR_BYTES,
        zeros_at: None,
        zlib: Compress::new(Compression::best(), true),
        descriptors: Vec::new(),
    };
    let mut written = Extracted { pages: count, ..Extracted::default() };
    to.seek(SeekFrom::Start(pages_out.next))?;
    let mut page = [0; PAGE];
    for address in ranges.iter().flat_map(page_addresses) {
        read_page(dump, address, &mut page)?;
        written.zeros += u64::from(pages_out.put(&page, &mut to)?);
    }
    written.bytes = pages_out.next;
    to.seek(SeekFrom::Start(descriptors_at))?;
    to.write_all(&pages_out.descriptors)?;

    // Bitmaps of a large machine are nearly all zero: holes.
    put_bitmap(&mut to, existing_at, bitmap_blocks, &existing, ranges)?;
    put_bitmap(&mut to, dumped_at, bitmap_blocks, &[], ranges)?;

    to.seek(SeekFrom::Start(notes_at))?;
    to.write_all(&section)?;
    let sub = sub_header(dump, pages, notes, &section, notes_at);
    to.seek(SeekFrom::Start(PAGE_BYTES))?;
    to.write_all(&sub)?;
    to.seek(SeekFrom::Start(0))?;
    to.write_all(&header(dump, pages, count, (sub_blocks, 2 * bitmap_blocks)))?;
    to.flush()?;
    Ok(written)
}

const SUB_HEADER_BYTES: usize = 104;

fn page_count(range: &Range<u64>) -> u64 {
    range.end.div_ceil(PAGE_BYTES).saturating_sub(range.start / PAGE_BYTES)
}

fn page_addresses(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    (range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES)).map(|page| page * PAGE_BYTES)
}

/// The pages, as they are stored.
struct Pages {
    /// Where the next one goes.
    next: u64,
    /// Where the page of zeros is, once there is one.
    zeros_at: Option<(u64, u32, u32)>,
    zlib: Compress,
    descriptors: Vec<u8>,
}

impl Pages {
    /// Stores a page. Returns whether it is one of zeros.
    fn put(&mut self, page: &[u8; PAGE], to: &mut impl Write) -> Result<bool, ExtractError> {
        let zeros = page.iter().all(|&byte| byte == 0);
        let known = self.zeros_at.filter(|_| zeros);
        let (at, bytes, flags) = if let Some(stored) = known { stored } else { self.store(page, to)? };
        if zeros {
            self.zeros_at = Some((at, bytes, flags));
        }
        self.descriptors.extend_from_slice(&at.to_le_bytes());
        self.descriptors.extend_from_slice(&bytes.to_le_bytes());
        self.descriptors.extend_from_slice(&flags.to_le_bytes());
        self.descriptors.extend_from_slice(&[0; 8]);
        Ok(zeros)
    }

    /// Writes a page, compressed if that makes it smaller. Returns where it is, its size there, and its flags.
    fn store(&mut self, page: &[u8; PAGE], to: &mut impl Write) -> Result<(u64, u32, u32), ExtractError> {
        let mut compressed = [0; PAGE];
        self.zlib.reset();
        let status = self.zlib.compress(page, &mut compressed, FlushCompress::Finish);
        // What does not get smaller does not end within a page.
        let smaller = matches!(status, Ok(Status::StreamEnd)) && self.zlib.total_out() < PAGE_BYTES;
        let (bytes, flags) =
            if smaller { (&compressed[..self.zlib.total_out() as usize], ZLIB) } else { (&page[..], 0) };
        to.write_all(bytes)?;
        let stored = (self.next, bytes.len() as u32, flags);
        self.next += bytes.len() as u64;
        Ok(stored)
    }
}

/// A bit for each page of the ranges. `more` is in `ranges`, or beside them.
fn put_bitmap(
    to: &mut (impl Write + Seek),
    at: u64,
    blocks: u64,
    ranges: &[Range<u64>],
    more: &[Range<u64>],
) -> Result<(), ExtractError> {
    const PAGES: u64 = 8 * PAGE_BYTES;
    for block in 0..blocks {
        let (first, behind) = (block * PAGES, (block + 1) * PAGES);
        let mut bits = [0u8; PAGE];
        for range in ranges.iter().chain(more) {
            let begin = (range.start / PAGE_BYTES).max(first);
            let end = range.end.div_ceil(PAGE_BYTES).min(behind);
            (begin..end).map(|page| page - first).for_each(|page| bits[page as usize / 8] |= 1 << (page % 8));
        }
        if bits.iter().any(|&byte| byte != 0) {
            to.seek(SeekFrom::Start(at + block * PAGE_BYTES))?;
            to.write_all(&bits)?;
        }
    }
    Ok(())
}

/// Numbers at their places.
struct Header(Vec<u8>);

impl Header {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&mut self, at: usize, value: u64) {
        // Beyond 32 bits only what has a field of 64 bits elsewhere.
        self.put(at, &u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

fn header(dump: &Dump, pages: u64, dumped: u64, (sub_blocks, bitmap_blocks): (u64, u64)) -> Vec<u8> {
    let mut header = Header(vec![0; 464]);
    header.put(0, SIGNATURE);
    header.u32(8, 6);
    let info = VmCoreInfo::new(dump.vmcoreinfo().unwrap_or_default().as_bytes());
    let release = info.release().unwrap_or_default();
    let names = [("Linux", 0), (release, 2), ("x86_64", 4)];
    for (name, place) in names {
        header.put(12 + 65 * place, &name.as_bytes()[..name.len().min(64)]);
    }
    let crash_time = info.get("CRASHTIME").and_then(|time| time.parse().ok()).unwrap_or(0);
    header.u64(408, crash_time);
    header.u32(424, ZLIB.into());
    header.u32(428, PAGE_BYTES);
    header.u32(432, sub_blocks);
    header.u32(436, bitmap_blocks);
    header.u32(440, pages);
    header.u32(444, pages);
    header.u32(452, dumped);
    header.u32(460, dump.cpus().len() as u64);
    header.0
}

fn sub_header(dump: &Dump, pages: u64, notes: &[Note], section: &[u8], at: u64) -> Vec<u8> {
    let mut header = Header(vec![0; SUB_HEADER_BYTES]);
    let info = VmCoreInfo::new(dump.vmcoreinfo().unwrap_or_default().as_bytes());
    let base = info.number("phys_base").or(dump.phys_base()).unwrap_or(0);
    header.put(0, &base.to_le_bytes());
    header.u32(8, EVERY_KIND.into());
    header.u64(24, pages);
    if let Some(text) = notes.last().filter(|note| note.owner == vmcoreinfo::OWNER) {
        // The text is the end of the last note.
        let padded = (text.descriptor.len() as u64).next_multiple_of(4);
        header.u64(32, at + section.len() as u64 - padded);
        header.u64(40, text.descriptor.len() as u64);
    }
    header.u64(48, at);
    header.u64(56, section.len() as u64);
    header.u64(88, pages);
    header.u64(96, pages);
    header.0
}
