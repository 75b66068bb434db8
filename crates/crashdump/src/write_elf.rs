//! Writes an ELF core of a part of memory.

use std::io::{Seek, Write};
use std::ops::Range;

use smpcall_vmcore::{CoreError, HEADER_BYTES, SEGMENT_BYTES, Segment, write_header};

use crate::Dump;
use crate::extract::{ExtractError, Extracted, note_section, read_page};
use crate::memory::PAGE_BYTES;
use crate::notes::Note;

const PAGE: usize = PAGE_BYTES as usize;

/// Pages of zeros share this many pages of the file.
const ZEROS: u64 = 16;

/// Consecutive pages that are all of zeros, or all not.
struct Run {
    range: Range<u64>,
    zeros: bool,
}

/// Writes the pages in these ranges.
pub(crate) fn write(
    dump: &Dump,
    ranges: &[Range<u64>],
    notes: &[Note],
    mut to: impl Write + Seek,
) -> Result<Extracted, ExtractError> {
    let mut extracted = Extracted::default();
    let runs = runs(dump, ranges, &mut extracted)?;
    let section = note_section(notes);
    let table = (HEADER_BYTES + (1 + runs.len()) * SEGMENT_BYTES) as u64;
    let zeros_at = (table + section.len() as u64).next_multiple_of(PAGE_BYTES);
    let mut next = zeros_at + if extracted.zeros > 0 { ZEROS * PAGE_BYTES } else { 0 };
    let segments: Vec<Segment> = runs
        .iter()
        .map(|run| {
            let bytes = run.range.end - run.range.start;
            let offset = if run.zeros { zeros_at } else { next };
            next += if run.zeros { 0 } else { bytes };
            let physical = run.range.start;
            Segment { offset, bytes, physical, address: address_of(dump, physical), memory: bytes }
        })
        .collect();
    let first = Segment { offset: table, bytes: section.len() as u64, ..Segment::default() };
    let mut header = vec![0; zeros_at as usize];
    write_header(&mut header, &[first], &segments).map_err(|error| match error {
        CoreError::TooManySegments(count) => ExtractError::TooManyPieces(count),
        other => ExtractError::Write(std::io::Error::other(other.to_string())),
    })?;
    header[table as usize..][..section.len()].copy_from_slice(&section);
    to.write_all(&header)?;
    if extracted.zeros > 0 {
        to.write_all(&vec![0; ZEROS as usize * PAGE])?;
    }
    let mut page = [0; PAGE];
    for run in runs.iter().filter(|run| !run.zeros) {
        for address in run.range.clone().step_by(PAGE) {
            read_page(dump, address, &mut page)?;
            to.write_all(&page)?;
        }
    }
    to.flush()?;
    extracted.bytes = next;
    Ok(extracted)
}

/// The virtual address that the source's own segments have for a physical one; zero if none has.
fn address_of(dump: &Dump, physical: u64) -> u64 {
    dump.mapped()
        .iter()
        .find(|segment| physical.wrapping_sub(segment.physical) < segment.bytes)
        .map_or(0, |segment| segment.address + (physical - segment.physical))
}

/// The ranges, cut where pages of zeros begin and end, and where the source's segments do.
fn runs(dump: &Dump, ranges: &[Range<u64>], written: &mut Extracted) -> Result<Vec<Run>, ExtractError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut page = [0; PAGE];
    for range in ranges {
        let (begin, behind) = (range.start / PAGE_BYTES, range.end.div_ceil(PAGE_BYTES));
        for address in (begin..behind).map(|page| page * PAGE_BYTES) {
            read_page(dump, address, &mut page)?;
            let zeros = page.iter().all(|&byte| byte == 0);
            written.pages += 1;
            written.zeros += u64::from(zeros);
            let goes_on = |run: &Run| {
                let begin = address_of(dump, run.range.start);
                let expected = if begin == 0 { 0 } else { begin + (address - run.range.start) };
                let full = zeros && address - run.range.start == ZEROS * PAGE_BYTES;
                run.range.end == address
                    && run.zeros == zeros
                    && !full
                    && address_of(dump, address) == expected
            };
            match runs.last_mut().filter(|run| goes_on(run)) {
                Some(run) => run.range.end += PAGE_BYTES,
                None => runs.push(Run { range: address..address + PAGE_BYTES, zeros }),
            }
        }
    }
    Ok(runs)
}
