//! Writes a dump of a part of memory: the pages that somebody has read, and the notes.
//!
//! Two forms. kdump-compressed is small: pages are compressed, the page of zeros is stored once, and what was left out
//! is told from what never was. ELF is for readers that know nothing else.
//!
//! What is kept of the notes are registers (`NT_PRSTATUS`, QEMU's), `VMCOREINFO` and our own: what a diagnosis reads.
//! Command lines of processes, which `/proc/kcore` notes too, are not.

use std::io::{self, Seek, Write};
use std::ops::Range;

use smpcall_vmcore::{NoteWriter, note_bytes, prstatus, record, vmcoreinfo};

use crate::memory::PAGE_BYTES;
use crate::notes::Note;
use crate::translate::Translation;
use crate::{Architecture, Dump, KernelMemory, PhysicalMemory, ReadError, registers, write_elf, write_kdump};

/// The form in which an extract is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// kdump-compressed, by zlib.
    Kdump,
    /// An ELF core.
    Elf,
}

impl Format {
    /// The form in which nothing is lost: ELF if the virtual addresses of the segments are all that there is to
    /// translate by, kdump-compressed otherwise.
    pub fn suited(memory: &KernelMemory<'_>) -> Self {
        match memory.translation() {
            Translation::Segments(_) => Self::Elf,
            Translation::X86_64(_) => Self::Kdump,
        }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// How many pages of 4 KiB.
    pub pages: u64,
    /// How many of them hold nothing but zeros.
    pub zeros: u64,
    /// How many notes.
    pub notes: u64,
    /// How long the file is.
    pub bytes: u64,
}

/// Why an extract could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// Only those of x86-64 can be written.
    #[error("an extract of a dump of {0} cannot be written yet, only of x86-64")]
    OtherArchitecture(Architecture),
    /// A page that could be read before.
    #[error("a page that was read before cannot be read again: {0}")]
    Read(#[from] ReadError),
    /// The operating system refused.
    #[error("the extract cannot be written: {0}")]
    Write(#[from] io::Error),
    /// An ELF core of so many pieces cannot be written.
    #[error("an ELF core of {0} pieces of memory cannot be written; take the kdump-compressed form")]
    TooManyPieces(usize),
}

/// Writes the pages of `dump` that were read [so far](Dump::touched), and its notes.
///
/// Of a source that lives, the pages are written as they were read, not as they are now.
/// `to` must not be the file that `dump` is read from: it is read again while this is written.
///
/// # Errors
/// If writing fails; what is in `to` then is no dump.
pub fn extract(dump: &Dump, to: impl Write + Seek, format: Format) -> Result<Extracted, ExtractError> {
    extract_ranges(dump, &dump.touched(), to, format)
}

/// Writes these ranges, in whole pages; they are in order and do not overlap.
///
/// # Errors
/// As [`extract`].
pub fn extract_ranges(
    dump: &Dump,
    ranges: &[Range<u64>],
    to: impl Write + Seek,
    format: Format,
) -> Result<Extracted, ExtractError> {
    if dump.architecture() != Architecture::X86_64 {
        return Err(ExtractError::OtherArchitecture(dump.architecture()));
    }
    let notes = kept_notes(dump);
    let mut written = match format {
        Format::Kdump => write_kdump::write(dump, ranges, &notes, to)?,
        Format::Elf => write_elf::write(dump, ranges, &notes, to)?,
    };
    written.notes = notes.len() as u64;
    Ok(written)
}

/// The notes that a diagnosis reads; `VMCOREINFO` also if it was found in memory.
fn kept_notes(dump: &Dump) -> Vec<Note> {
    let is_registers = |note: &Note| note.owner == prstatus::CORE && note.kind == prstatus::NT_PRSTATUS;
    let mut notes: Vec<Note> = dump
        .notes()
        .iter()
        .filter(|note| is_registers(note) || note.owner == registers::QEMU || note.owner == record::OWNER)
        .cloned()
        .collect();
    if let Some(text) = dump.vmcoreinfo() {
        notes.push(Note { owner: vmcoreinfo::OWNER.into(), kind: 0, descriptor: text.as_bytes().to_vec() });
    }
    notes
}

/// The notes as bytes.
pub(crate) fn note_section(notes: &[Note]) -> Vec<u8> {
    let mut bytes = vec![0; notes.iter().map(|note| note_bytes(&note.owner, note.descriptor.len())).sum()];
    let mut writer = NoteWriter::new(&mut bytes);
    for note in notes {
        writer.push(&note.owner, note.kind, &note.descriptor).expect("there is room for exactly these");
    }
    bytes
}

/// The page at an address. What is not there of a page that is there in part is zero.
pub(crate) fn read_page(
    dump: &Dump,
    address: u64,
    page: &mut [u8; PAGE_BYTES as usize],
) -> Result<(), ReadError> {
    let memory: &dyn PhysicalMemory = if dump.kind().lives() { dump.memory() } else { dump.source() };
    let Err(error) = memory.read_physical(address, page) else { return Ok(()) };
    page.fill(0);
    let mut found = false;
    for range in memory.ranges() {
        let (begin, end) = (range.start.max(address), range.end.min(address.saturating_add(PAGE_BYTES)));
        if begin < end {
            let part = &mut page[(begin - address) as usize..(end - address) as usize];
            memory.read_physical(begin, part)?;
            found = true;
        }
    }
    if found { Ok(()) } else { Err(error) }
}
