//! The ELF core file: a header, a table of segments, notes, and memory.
//!
//! Written for a kernel's memory: the segments are physical ranges with the addresses at which the kernel had them
//! mapped. Read with bounds on everything: offsets and counts in a file are whoever's who wrote it.
//!
//! Source: System V gABI, "ELF Header" and "Program Header".

use core::fmt;

use object::LittleEndian as LE;
use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, ELFOSABI_NONE, EM_X86_64, ET_CORE, EV_CURRENT, FileHeader64, Ident,
    PF_R, PF_W, PF_X, PN_XNUM, PT_LOAD, PT_NOTE, ProgramFlags, ProgramHeader64, SectionHeader64,
};
use object::endian::{U16, U32, U64};
use object::pod;

use crate::{NoteError, Notes};

/// The size of the file's header.
pub const HEADER_BYTES: usize = size_of::<FileHeader64<LE>>();

/// The size of an entry in the table of segments.
pub const SEGMENT_BYTES: usize = size_of::<ProgramHeader64<LE>>();

/// A range of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// How many bytes it has in the file.
    pub bytes: u64,
    /// The physical address of its first byte.
    pub physical: u64,
    /// The virtual address of its first byte; zero if it had none.
    pub address: u64,
    /// How many bytes it had in memory: more than in the file, if the rest was left out.
    pub memory: u64,
}

/// Writes the header and the table: notes first, then memory. Returns how many bytes that took; what the segments
/// say is up to the caller.
///
/// # Errors
/// [`CoreError::TooManySegments`] from 65,535 on; [`CoreError::HeaderTooLong`] if the memory does not hold it.
pub fn write_header(memory: &mut [u8], notes: &[Segment], ranges: &[Segment]) -> Result<usize, CoreError> {
    let count = notes.len() + ranges.len();
    let phnum = u16::try_from(count).ok().filter(|&count| count != u16::MAX);
    let phnum = phnum.ok_or(CoreError::TooManySegments(count))?;
    let needed = HEADER_BYTES + count * SEGMENT_BYTES;
    let given = memory.len();
    let header = memory.get_mut(..needed).ok_or(CoreError::HeaderTooLong { needed, given })?;
    let file = FileHeader64::<LE> {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, ET_CORE),
        e_machine: U16::new(LE, EM_X86_64),
        e_version: U32::new(LE, EV_CURRENT.0.into()),
        e_entry: U64::new(LE, 0),
        e_phoff: U64::new(LE, HEADER_BYTES as u64),
        e_shoff: U64::new(LE, 0),
        e_flags: U32::new(LE, object::elf::FileFlags(0)),
        e_ehsize: U16::new(LE, HEADER_BYTES as u16),
        e_phentsize: U16::new(LE, SEGMENT_BYTES as u16),
        e_phnum: U16::new(LE, phnum),
        e_shentsize: U16::new(LE, 0),
        e_shnum: U16::new(LE, 0),
        e_shstrndx: U16::new(LE, object::elf::SymbolSection(0)),
    };
    let (head, table) = header.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(pod::bytes_of(&file));
    let kinds = core::iter::repeat_n(PT_NOTE, notes.len()).chain(core::iter::repeat_n(PT_LOAD, ranges.len()));
    for ((entry, segment), kind) in
        table.chunks_exact_mut(SEGMENT_BYTES).zip(notes.iter().chain(ranges)).zip(kinds)
    {
        let flags = if kind == PT_LOAD { PF_R.0 | PF_W.0 | PF_X.0 } else { 0 };
        let program = ProgramHeader64::<LE> {
            p_type: U32::new(LE, kind),
            p_flags: U32::new(LE, ProgramFlags(flags)),
            p_offset: U64::new(LE, segment.offset),
            p_vaddr: U64::new(LE, segment.address),
            p_paddr: U64::new(LE, segment.physical),
            p_filesz: U64::new(LE, segment.bytes),
            p_memsz: U64::new(LE, segment.memory),
            p_align: U64::new(LE, if kind == PT_NOTE { 4 } else { 0 }),
        };
        entry.copy_from_slice(pod::bytes_of(&program));
    }
    Ok(needed)
}

/// Why bytes are no ELF core of x86-64, or one cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreError {
    /// The file does not begin with a 64-bit little-endian ELF header.
    NotElf64,
    /// It is an ELF file, but no core: this is its type.
    NotACore(u16),
    /// It is a core of another machine: this is its number.
    OtherMachine(u16),
    /// The table of segments cannot be read.
    BadTable(&'static str),
    /// The notes begin or end beyond the end of the file.
    NotesBeyondEnd {
        /// Where they begin.
        offset: u64,
        /// How many bytes they should have.
        bytes: u64,
        /// How many the file has.
        file: usize,
    },
    /// A note cannot be read.
    BadNote(NoteError),
    /// A core has at most 65,534 segments here.
    TooManySegments(usize),
    /// The memory for the header is too small.
    HeaderTooLong {
        /// How many bytes it takes.
        needed: usize,
        /// How many there are.
        given: usize,
    },
}

impl fmt::Display for CoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf64 => f.write_str("the file does not begin with a 64-bit little-endian ELF header"),
            Self::NotACore(kind) => write!(f, "the file is an ELF file of type {kind}, and no core (type 4)"),
            Self::OtherMachine(machine) => {
                write!(f, "the core is one of machine {machine}; only x86-64 (62) can be read")
            }
            Self::BadTable(what) => write!(f, "the table of segments cannot be read: {what}"),
            Self::NotesBeyondEnd { offset, bytes, file } => write!(
                f,
                "the notes ({bytes} bytes at offset {offset:#x}) go beyond the end of the file ({file} bytes): it is \
                 incomplete"
            ),
            Self::BadNote(error) => write!(f, "{error}"),
            Self::TooManySegments(count) => {
                write!(f, "{count} segments are more than the 65,534 that a core can have")
            }
            Self::HeaderTooLong { needed, given } => {
                write!(f, "the header takes {needed} bytes, and there is room for {given}")
            }
        }
    }
}

impl core::error::Error for CoreError {}

/// An ELF core of an x86-64 machine.
#[derive(Clone, Copy, Debug)]
pub struct Core<'a> {
    file: &'a [u8],
    table: &'a [ProgramHeader64<LE>],
}

impl<'a> Core<'a> {
    /// The core in these bytes, which may be a mapped file: only the header and the table are read.
    ///
    /// # Errors
    /// If it is none. Segments may still go beyond the end of the file.
    pub fn parse(file: &'a [u8]) -> Result<Self, CoreError> {
        let (header, _) = pod::from_bytes::<FileHeader64<LE>>(file).map_err(|()| CoreError::NotElf64)?;
        let Ident { magic, class, data, version, .. } = header.e_ident;
        if magic != ELFMAG || class != ELFCLASS64 || data != ELFDATA2LSB || version != EV_CURRENT {
            return Err(CoreError::NotElf64);
        }
        match header.e_type.get(LE) {
            ET_CORE => {}
            other => return Err(CoreError::NotACore(other.0)),
        }
        match header.e_machine.get(LE) {
            EM_X86_64 => {}
            other => return Err(CoreError::OtherMachine(other.0)),
        }
        let table = table_of(file, header)
            .ok_or(CoreError::BadTable("it goes beyond the end, or its entries have another size"))?;
        Ok(Self { file, table })
    }

    fn of_kind(self, kind: object::elf::ProgramType) -> impl Iterator<Item = (Segment, u64)> {
        self.table.iter().filter(move |entry| entry.p_type.get(LE) == kind).map(|entry| {
            let segment = Segment {
                offset: entry.p_offset.get(LE),
                bytes: entry.p_filesz.get(LE),
                physical: entry.p_paddr.get(LE),
                address: entry.p_vaddr.get(LE),
                memory: entry.p_memsz.get(LE),
            };
            (segment, entry.p_align.get(LE))
        })
    }

    /// The segments of memory, in the file's order. They may go beyond its end.
    pub fn segments(self) -> impl Iterator<Item = Segment> + use<'a> {
        self.of_kind(PT_LOAD).map(|(segment, _)| segment)
    }

    /// The bytes of a segment; none if they go beyond the end of the file.
    pub fn bytes_of(self, segment: &Segment) -> Option<&'a [u8]> {
        self.file.get(usize::try_from(segment.offset).ok()?..)?.get(..usize::try_from(segment.bytes).ok()?)
    }

    /// The bytes at a physical address, up to the end of their segment; none if no segment in the file has it.
    pub fn at_physical(self, address: u64) -> Option<&'a [u8]> {
        self.segments().find_map(|segment| {
            let into = address.checked_sub(segment.physical).filter(|&into| into < segment.bytes)?;
            self.bytes_of(&segment)?.get(usize::try_from(into).ok()?..)
        })
    }

    /// All notes, of all segments of notes, in the file's order. A segment ends at the first that cannot be read.
    pub fn notes(self) -> impl Iterator<Item = Result<crate::Note<'a>, CoreError>> {
        self.of_kind(PT_NOTE).flat_map(move |(segment, alignment)| {
            let beyond = CoreError::NotesBeyondEnd {
                offset: segment.offset,
                bytes: segment.bytes,
                file: self.file.len(),
            };
            let bytes = self.bytes_of(&segment);
            let broken = bytes.is_none().then_some(Err(beyond));
            let notes = Notes::aligned(bytes.unwrap_or(&[]), alignment);
            broken.into_iter().chain(notes.map(|note| note.map_err(CoreError::BadNote)))
        })
    }
}

/// The table of segments: without an offset there is none. System V gABI, "ELF Header", `e_phnum`.
fn table_of<'a>(file: &'a [u8], header: &FileHeader64<LE>) -> Option<&'a [ProgramHeader64<LE>]> {
    let from = |offset: u64| file.get(usize::try_from(offset).ok()?..);
    let offset = header.e_phoff.get(LE);
    if offset == 0 {
        return Some(&[]);
    }
    let entries = match header.e_phnum.get(LE) {
        // Too many for the header: the first section says how many.
        PN_XNUM => {
            let (section, _) = pod::from_bytes::<SectionHeader64<LE>>(from(header.e_shoff.get(LE))?).ok()?;
            section.sh_info.get(LE) as usize
        }
        entries => usize::from(entries),
    };
    if entries != 0 && usize::from(header.e_phentsize.get(LE)) != SEGMENT_BYTES {
        return None;
    }
    Some(pod::slice_from_bytes(from(offset)?, entries).ok()?.0)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::prstatus::{CORE, NT_PRSTATUS};
    use crate::{CpuStopped, NoteWriter, PrStatus, Record, Role};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// A core with the notes of two CPUs and two pieces of memory.
    fn sample() -> Vec<u8> {
        let mut file = vec![0; 4096 + 64];
        let table = HEADER_BYTES + 3 * SEGMENT_BYTES;
        let mut writer = NoteWriter::new(&mut file[table..4096]);
        for cpu in 0..2 {
            let mut status = PrStatus { pid: cpu, ..PrStatus::default() };
            status.registers.rip = 0x1000 + u64::from(cpu);
            writer.push(CORE, NT_PRSTATUS, &status.to_bytes()).expect("fits");
            let stopped = CpuStopped { cpu, role: Role::Stopped, in_nmi: false, time: 5 };
            Record::Stopped(stopped).write(&mut writer).expect("fits");
        }
        let notes = Segment { offset: table as u64, bytes: writer.written() as u64, ..Segment::default() };
        let memory = [0x10_0000, 0x20_0000].map(|physical| Segment {
            offset: 4096 + (physical >> 20) * 32 - 32,
            bytes: 32,
            physical,
            address: 0xffff_8880_0000_0000 + physical,
            memory: 32,
        });
        file[4096..].copy_from_slice(&core::array::from_fn::<u8, 64, _>(|at| at as u8));
        let written = write_header(&mut file, &[notes], &memory).expect("fits");
        assert_eq!(written, table);
        file
    }

    #[test]
    fn a_core_is_read_as_it_was_written() {
        let file = sample();
        let core = Core::parse(&file).expect("a core");
        let notes: Vec<_> = core.notes().map(|note| note.expect("readable")).collect();
        assert_eq!(notes.len(), 4);
        let status = PrStatus::from_bytes(notes[2].descriptor).expect("of x86-64");
        assert_eq!((status.pid, status.registers.rip), (1, 0x1001));
        let segments: Vec<_> = core.segments().collect();
        assert_eq!(segments.len(), 2);
        assert_eq!(segments[1].address, 0xffff_8880_0020_0000);
        assert_eq!(core.at_physical(0x20_0004), Some(&file[4096 + 36..]));
        assert_eq!(core.at_physical(0x20_0020), None);
        assert_eq!(core.at_physical(0), None);
    }

    #[test]
    fn sizes_are_those_of_the_abi() {
        assert_eq!((HEADER_BYTES, SEGMENT_BYTES), (64, 56));
    }

    #[test]
    fn an_incomplete_file_is_told_so() {
        let file = sample();
        let core = Core::parse(&file[..300]).expect("the table is there");
        let error = core.notes().next().expect("told").expect_err("cut off");
        assert_eq!(error, CoreError::NotesBeyondEnd { offset: 232, bytes: 800, file: 300 });
        assert!(matches!(Core::parse(&file[..100]), Err(CoreError::BadTable(_))));
        assert!(matches!(Core::parse(&file[..63]), Err(CoreError::NotElf64)));
    }

    #[test]
    fn what_is_no_core_of_x86_64_is_refused_by_name() {
        let mut file = sample();
        file[16] = 2;
        assert_eq!(Core::parse(&file).err(), Some(CoreError::NotACore(2)));
        file[16] = 4;
        file[18] = 183;
        assert_eq!(Core::parse(&file).err(), Some(CoreError::OtherMachine(183)));
        file[4] = 1;
        assert_eq!(Core::parse(&file).err(), Some(CoreError::NotElf64));
    }

    #[test]
    fn a_header_that_does_not_fit_is_refused() {
        let one = [Segment::default()];
        let error = write_header(&mut [0; 119], &one, &[]).expect_err("120 bytes");
        assert_eq!(error, CoreError::HeaderTooLong { needed: 120, given: 119 });
        let many = vec![Segment::default(); 65_535];
        assert_eq!(write_header(&mut [], &[], &many), Err(CoreError::TooManySegments(65_535)));
    }

    proptest! {
        #[test]
        fn a_damaged_core_is_read_to_an_end(
            damage in prop::collection::vec((0usize..1200, any::<u8>()), 1..20), length in 0usize..=4160
        ) {
            let mut file = sample();
            for (at, byte) in damage {
                file[at] = byte;
            }
            file.truncate(length);
            if let Ok(core) = Core::parse(&file) {
                let notes = core.notes().take(100_000).count();
                prop_assert!(notes < 100_000);
                for segment in core.segments() {
                    let _ = (core.bytes_of(&segment), core.at_physical(segment.physical));
                }
            }
        }
    }
}
