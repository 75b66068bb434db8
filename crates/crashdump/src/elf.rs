//! ELF cores: of QEMU, of `/proc/vmcore`, of `makedumpfile -E`, of `/proc/kcore`, and our own.
//!
//! The table of segments may be in any order, and segments may overlap: a copy of `/proc/vmcore` has the kernel's text
//! twice. The first in the file's order is taken. With 65,535 segments and more their number is in the first section
//! header.
//!
//! | header | | segment | |
//! |---|---|---|---|
//! | 4, 5 | class, byte order | 0..4 | type |
//! | 16..18 | type | 8..16 | offset in the file |
//! | 18..20 | machine | 16..24 | virtual address |
//! | 32..40 | where the table of segments is | 24..32 | physical address |
//! | 40..48 | where the table of sections is | 32..40 | bytes in the file |
//! | 54..56 | size of a segment's entry | 40..48 | bytes in memory |
//! | 56..58 | how many segments | 48..56 | alignment |
//!
//! Source: System V gABI, "ELF Header" (`PN_XNUM`) and "Program Header".

use std::collections::BTreeSet;
use std::ops::Range;

use object::elf::{EM_X86_64, ET_CORE, ET_DYN, ET_EXEC, PT_LOAD, PT_NOTE};

use crate::fields::{Fields, damaged, read_part, read_vec};
use crate::memory::end;
use crate::notes::{self, Note};
use crate::storage::Storage;
use crate::translate::MappedSegment;
use crate::{Architecture, OpenError, PhysicalMemory, ReadError};

/// The number of segments in a header whose number of segments does not fit into it.
const PN_XNUM: u16 = 0xffff;

/// More segments are refused: their table alone would be 224 MiB.
const MAXIMUM_SEGMENTS: u64 = 1 << 22;

const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: u64 = 56;
const SECTION_BYTES: usize = 64;
/// Where a section header has the number that `PN_XNUM` stands for.
const SECTION_INFO: usize = 44;

/// The physical address of a segment that has none, in `/proc/kcore`.
const NO_ADDRESS: u64 = u64::MAX;

/// What an ELF core holds.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) architecture: Architecture,
    pub(crate) memory: ElfMemory,
    pub(crate) notes: Vec<Note>,
    /// Its segments with virtual addresses other than zero, in the file's order.
    pub(crate) mapped: Vec<MappedSegment>,
    pub(crate) remarks: Vec<String>,
}

/// The memory in an ELF core.
#[derive(Debug)]
pub(crate) struct ElfMemory {
    storage: Box<dyn Storage>,
    /// In order; no two have an address in common.
    pieces: Vec<Piece>,
}

/// Consecutive physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    begin: u64,
    end: u64,
    /// Where they are in the file; none if they were left out.
    offset: Option<u64>,
}

/// A segment of memory, as the table has it.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    offset: u64,
    address: u64,
    physical: u64,
    in_file: u64,
    in_memory: u64,
}

/// Reads the header, the table and the notes; nothing else.
pub(crate) fn open(storage: Box<dyn Storage>) -> Result<Core, OpenError> {
    let mut bytes = [0; HEADER_BYTES];
    read_part(&*storage, "ELF header", 0, &mut bytes)?;
    let header = header(&bytes)?;
    let kind = header.u16(16);
    if kind != ET_CORE.0 {
        let hint = if kind == ET_EXEC.0 || kind == ET_DYN.0 { ": a kernel image or a program" } else { "" };
        let what =
            format!("this is an ELF file of type {kind}, and no core (type 4){hint}; give the dump instead");
        return Err(OpenError::NotReadable { what });
    }
    let machine = header.u16(18);
    if header.big_endian && machine == EM_X86_64.0 {
        return Err(damaged("ELF header", 5, "x86-64 is not big-endian".into()));
    }
    let count = segment_count(&*storage, header)?;
    let mut core = Core {
        architecture: Architecture::from_elf(machine),
        memory: ElfMemory { storage: Box::new(Vec::new()), pieces: Vec::new() },
        notes: Vec::new(),
        mapped: Vec::new(),
        remarks: Vec::new(),
    };
    let segments = read_table(&*storage, header, count, &mut core)?;
    core.memory.pieces = disjoint(&segments);
    if let Some(end) = core.memory.pieces.iter().filter_map(Piece::end_in_file).max()
        && end > storage.length()
    {
        core.remarks.push(format!(
            "the file has {} bytes, and its memory should go on to {end}: it was cut off, and what is behind that is \
             not there",
            storage.length()
        ));
    }
    core.memory.storage = storage;
    Ok(core)
}

/// What the identification says of the rest.
fn header(bytes: &[u8]) -> Result<Fields<'_>, OpenError> {
    match bytes[4] {
        1 => {
            let what = "this is an ELF file of a 32-bit machine; only 64-bit cores can be read".into();
            return Err(OpenError::NotReadable { what });
        }
        2 => {}
        other => return Err(damaged("ELF header", 4, format!("class {other} is neither 1 nor 2"))),
    }
    match bytes[5] {
        1 => Ok(Fields { bytes, big_endian: false }),
        2 => Ok(Fields { bytes, big_endian: true }),
        other => Err(damaged("ELF header", 5, format!("byte order {other} is neither 1 nor 2"))),
    }
}

fn segment_count(storage: &dyn Storage, header: Fields<'_>) -> Result<u64, OpenError> {
    let (count, entry) = (header.u16(56), header.u16(54));
    if u64::from(entry) != ENTRY_BYTES && count != 0 {
        return Err(damaged("ELF header", 54, format!("a segment's entry has {entry} bytes instead of 56")));
    }
    if count != PN_XNUM {
        return Ok(count.into());
    }
    let sections = header.u64(40);
    if sections == 0 {
        let what = "it has more segments than the header can say, and no section header that says how many";
        return Err(damaged("ELF header", 40, what.into()));
    }
    let mut section = [0; SECTION_BYTES];
    read_part(storage, "first section header", sections, &mut section)?;
    let count = Fields { bytes: &section, ..header }.u32(SECTION_INFO).into();
    if count > MAXIMUM_SEGMENTS {
        let what = format!("{count} segments are more than the {MAXIMUM_SEGMENTS} that are read");
        return Err(damaged("first section header", sections, what));
    }
    Ok(count)
}

/// The segments of memory. Notes and mapped segments go into the core at once.
fn read_table(
    storage: &dyn Storage,
    header: Fields<'_>,
    count: u64,
    core: &mut Core,
) -> Result<Vec<Segment>, OpenError> {
    let offset = header.u64(32);
    let table =
        read_vec(storage, "table of segments", offset, count * ENTRY_BYTES, MAXIMUM_SEGMENTS * ENTRY_BYTES)?;
    let mut segments = Vec::new();
    for (at, bytes) in (offset..).step_by(ENTRY_BYTES as usize).zip(table.chunks_exact(ENTRY_BYTES as usize))
    {
        let entry = Fields { bytes, ..header };
        let segment = Segment {
            offset: entry.u64(8),
            address: entry.u64(16),
            physical: entry.u64(24),
            in_file: entry.u64(32),
            in_memory: entry.u64(40),
        };
        let kind = entry.u32(0);
        if kind == PT_NOTE.0 {
            read_notes(storage, segment, entry.u64(48), core);
        } else if kind == PT_LOAD.0 {
            let bytes = segment.in_file.max(segment.in_memory);
            let beyond = |begin: u64| begin.checked_add(bytes).is_none();
            if segment.physical != NO_ADDRESS && (beyond(segment.physical) || beyond(segment.offset)) {
                core.remarks.push(format!(
                    "the segment at offset {at:#x} is left out: {bytes} bytes from physical address {:#x} (offset \
                     {:#x}) go beyond the last address",
                    segment.physical, segment.offset
                ));
                continue;
            }
            if segment.address != 0 && segment.physical != NO_ADDRESS {
                let Segment { address, physical, in_file, .. } = segment;
                core.mapped.push(MappedSegment { address, physical, bytes: in_file });
            }
            segments.push(segment);
        }
    }
    segments.retain(|segment| segment.physical != NO_ADDRESS);
    Ok(segments)
}

/// A dump whose notes cannot be read is still one whose memory can.
fn read_notes(storage: &dyn Storage, segment: Segment, alignment: u64, core: &mut Core) {
    let kept: usize = core.notes.iter().map(|note| note.descriptor.len()).sum();
    let at_most = notes::MAXIMUM_BYTES.saturating_sub(kept as u64);
    match read_vec(storage, "notes", segment.offset, segment.in_file, at_most) {
        Ok(bytes) => notes::append(&mut core.notes, &bytes, alignment, &mut core.remarks),
        Err(error) => core.remarks.push(error.to_string()),
    }
}

/// The segments as pieces in order, no two with an address in common. Of two with the same address the one with bytes
/// in the file is taken, and of two such the first in the file's order.
fn disjoint(segments: &[Segment]) -> Vec<Piece> {
    let mut wanted: Vec<Piece> = Vec::with_capacity(segments.len());
    let mut left_out = Vec::new();
    for &Segment { offset, physical, in_file, in_memory, .. } in segments {
        let middle = physical + in_file;
        if in_file > 0 {
            wanted.push(Piece { begin: physical, end: middle, offset: Some(offset) });
        }
        if in_memory > in_file {
            left_out.push(Piece { begin: middle, end: physical + in_memory, offset: None });
        }
    }
    wanted.append(&mut left_out);
    // Every place where a piece begins or ends, and between two of them the first of the pieces that are there.
    let mut edges: Vec<(u64, bool, usize)> = wanted
        .iter()
        .enumerate()
        .flat_map(|(rank, piece)| [(piece.begin, true, rank), (piece.end, false, rank)])
        .collect();
    edges.sort_unstable();
    let mut there: BTreeSet<usize> = BTreeSet::new();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut from = 0;
    for (at, begins, rank) in edges {
        if at > from
            && let Some(&first) = there.first()
        {
            push(&mut pieces, wanted[first].cut(from..at));
        }
        from = at;
        if begins {
            there.insert(rank);
        } else {
            there.remove(&rank);
        }
    }
    pieces
}

/// Appends a piece, to the last one if it only goes on.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = pieces.last_mut()
        && last.end == piece.begin
        && last.end_in_file() == piece.offset
    {
        last.end = piece.end;
        return;
    }
    pieces.push(piece);
}

impl Piece {
    /// The part of it in this range.
    fn cut(self, range: Range<u64>) -> Self {
        let offset = self.offset.map(|offset| offset + (range.start - self.begin));
        Self { begin: range.start, end: range.end, offset }
    }

    fn end_in_file(&self) -> Option<u64> {
        Some(self.offset? + (self.end - self.begin))
    }
}

impl PhysicalMemory for ElfMemory {
    fn read_physical(&self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        end(address, into.len())?;
        let (mut at, mut rest) = (address, into);
        let mut piece = self.pieces.partition_point(|piece| piece.end <= at);
        while !rest.is_empty() {
            let found = self.pieces.get(piece).filter(|piece| piece.begin <= at);
            let found = found.ok_or(ReadError::Absent { address: at })?;
            let offset = found.offset.ok_or(ReadError::Excluded { address: at })? + (at - found.begin);
            let bytes = usize::try_from(found.end - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, tail) = rest.split_at_mut(bytes);
            let read = self
                .storage
                .read_at(offset, part)
                .map_err(|error| ReadError::Failed { address: at, reason: error.to_string().into() })?;
            if read < bytes {
                let read = read as u64;
                return Err(ReadError::CutOff { address: at + read, offset: offset + read });
            }
            (at, rest, piece) = (at + bytes as u64, tail, piece + 1);
        }
        Ok(())
    }

    /// What is behind the end of the file is not there, whatever the table says.
    fn ranges(&self) -> Vec<Range<u64>> {
        let length = self.storage.length();
        joined(self.pieces.iter().filter_map(|piece| {
            let there = length.checked_sub(piece.offset?)?.min(piece.end - piece.begin);
            (there > 0).then(|| piece.begin..piece.begin + there)
        }))
    }

    fn existing(&self) -> Vec<Range<u64>> {
        joined(self.pieces.iter().map(|piece| piece.begin..piece.end))
    }
}

fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}
