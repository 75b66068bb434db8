//! ELF notes: a header of three 32-bit words (sizes of name and descriptor, type), the owner's name with a zero byte,
//! and the descriptor, each padded to 4 bytes.
//!
//! Source: System V gABI, "Note Section". Linux pads to 4 in 64-bit cores too, and ends a CPU's notes with an all-zero
//! header;
//! areas that hold nothing yet are zero. So the reader takes zeros before a note for padding.

use core::fmt;

use object::LittleEndian as LE;
use object::elf::{NoteHeader64, NoteType};
use object::endian::U32;
use object::pod;

/// Names and descriptors begin at multiples of this.
const ALIGNMENT: usize = 4;

/// The size of a note's header.
pub const NOTE_HEADER_BYTES: usize = size_of::<NoteHeader64<LE>>();

/// How many bytes a note takes: `owner` without its zero byte, and a descriptor of `descriptor` bytes.
pub const fn note_bytes(owner: &str, descriptor: usize) -> usize {
    NOTE_HEADER_BYTES + (owner.len() + 1).next_multiple_of(ALIGNMENT) + descriptor.next_multiple_of(ALIGNMENT)
}

/// One note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    /// Who defines the type, without the zero byte: `CORE`, `VMCOREINFO`, `SMPCALL`.
    pub owner: &'a [u8],
    /// What it is, as its owner counts.
    pub kind: u32,
    /// The rest.
    pub descriptor: &'a [u8],
}

/// The bytes at an offset are no note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoteError {
    /// Where the note begins, from the start of what was read.
    pub offset: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for NoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the note at offset {:#x} cannot be read: {}", self.offset, self.what)
    }
}

impl core::error::Error for NoteError {}

/// The notes in some bytes: an iterator. Ends at the first that cannot be read, because nothing says where the next
/// one begins.
#[derive(Clone, Debug)]
pub struct Notes<'a> {
    bytes: &'a [u8],
    /// Where the next note begins.
    offset: usize,
    /// Of a segment that says so; 4 or 8.
    alignment: usize,
}

impl<'a> Notes<'a> {
    /// The notes in these bytes, padded to 4 as Linux does.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0, alignment: ALIGNMENT }
    }

    /// The notes of a segment with this alignment: 8 is taken at its word, everything else is 4.
    pub const fn aligned(bytes: &'a [u8], alignment: u64) -> Self {
        Self { bytes, offset: 0, alignment: if alignment == 8 { 8 } else { ALIGNMENT } }
    }

    fn part(&self, begin: usize, bytes: u32) -> Option<&'a [u8]> {
        self.bytes.get(begin..)?.get(..bytes as usize)
    }

    fn read(&mut self) -> Result<Note<'a>, NoteError> {
        let begin = self.offset;
        let error = |what| NoteError { offset: begin, what };
        // The bytes of headers have no alignment that could be relied on.
        let rest = self.bytes.get(begin..).unwrap_or(&[]);
        let (header, _) = pod::from_bytes::<NoteHeader64<LE>>(rest)
            .map_err(|()| error("its header goes beyond the end"))?;
        let (name, descriptor) = (header.n_namesz.get(LE), header.n_descsz.get(LE));
        let name_at = begin + NOTE_HEADER_BYTES;
        let owner = self.part(name_at, name).ok_or_else(|| error("its name goes beyond the end"))?;
        let descriptor_at = name_at + (name as usize).next_multiple_of(self.alignment);
        let found = self
            .part(descriptor_at, descriptor)
            .ok_or_else(|| error("its descriptor goes beyond the end"))?;
        self.offset = descriptor_at + found.len().next_multiple_of(self.alignment);
        let end = owner.iter().position(|&byte| byte == 0).unwrap_or(owner.len());
        Ok(Note { owner: &owner[..end], kind: header.n_type.get(LE).0, descriptor: found })
    }
}

impl<'a> Iterator for Notes<'a> {
    type Item = Result<Note<'a>, NoteError>;

    fn next(&mut self) -> Option<Self::Item> {
        // A note begins with the size of its owner's name, which is not zero: what has no owner has no meaning.
        loop {
            let rest = self.bytes.get(self.offset..).filter(|rest| !rest.is_empty())?;
            if rest.iter().take(ALIGNMENT).any(|&byte| byte != 0) {
                break;
            }
            self.offset += ALIGNMENT;
        }
        let note = self.read();
        if note.is_err() {
            self.offset = self.bytes.len();
        }
        Some(note)
    }
}

/// The memory for notes is full. Nothing of the note was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotesFull {
    /// How many bytes the note takes.
    pub needed: usize,
    /// How many were left.
    pub left: usize,
}

impl fmt::Display for NotesFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a note of {} bytes does not fit into the {} that are left", self.needed, self.left)
    }
}

impl core::error::Error for NotesFull {}

/// Writes notes one behind the other into memory that is zero.
#[derive(Debug)]
pub struct NoteWriter<'a> {
    memory: &'a mut [u8],
    written: usize,
}

impl<'a> NoteWriter<'a> {
    /// Into this memory, from its start.
    pub const fn new(memory: &'a mut [u8]) -> Self {
        Self { memory, written: 0 }
    }

    /// How many bytes were written.
    pub const fn written(&self) -> usize {
        self.written
    }

    /// Appends a note.
    ///
    /// # Errors
    /// If it does not fit: nothing was written.
    pub fn push(&mut self, owner: &str, kind: u32, descriptor: &[u8]) -> Result<(), NotesFull> {
        let needed = note_bytes(owner, descriptor.len());
        let free = self.memory.get_mut(self.written..).unwrap_or(&mut []);
        let left = free.len();
        let (Some(note), Ok(bytes)) = (free.get_mut(..needed), u32::try_from(descriptor.len())) else {
            return Err(NotesFull { needed, left });
        };
        let header = NoteHeader64::<LE> {
            n_namesz: U32::new(LE, owner.len() as u32 + 1),
            n_descsz: U32::new(LE, bytes),
            n_type: U32::new(LE, NoteType(kind)),
        };
        note.fill(0);
        let (head, body) = note.split_at_mut(NOTE_HEADER_BYTES);
        head.copy_from_slice(pod::bytes_of(&header));
        let (name, rest) = body.split_at_mut((owner.len() + 1).next_multiple_of(ALIGNMENT));
        name[..owner.len()].copy_from_slice(owner.as_bytes());
        rest[..descriptor.len()].copy_from_slice(descriptor);
        self.written += needed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn a_note_is_laid_out_as_the_abi_says() {
        let mut memory = [0; 32];
        let mut writer = NoteWriter::new(&mut memory);
        writer.push("CORE", 1, &[0xaa, 0xbb, 0xcc]).expect("fits");
        assert_eq!(writer.written(), note_bytes("CORE", 3));
        let expected =
            [5, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, b'C', b'O', b'R', b'E', 0, 0, 0, 0, 0xaa, 0xbb, 0xcc];
        assert_eq!(memory[..23], expected);
        assert_eq!(memory[23..], [0; 9]);
    }

    #[test]
    fn what_does_not_fit_is_not_begun() {
        let mut memory = [0; 27];
        let error = NoteWriter::new(&mut memory).push("CORE", 1, &[1; 8]).expect_err("28 bytes");
        assert_eq!(error, NotesFull { needed: 28, left: 27 });
        assert_eq!(memory, [0; 27]);
    }

    #[test]
    fn zeros_between_notes_are_padding() {
        let mut memory = [0; 200];
        let mut writer = NoteWriter::new(&mut memory[24..]);
        writer.push("A", 1, &[1]).expect("fits");
        let end = 24 + writer.written() + 52;
        NoteWriter::new(&mut memory[end..]).push("B", 2, &[]).expect("fits");
        let notes: Vec<_> = Notes::new(&memory).map(|note| note.map(|note| note.kind)).collect();
        assert_eq!(notes, [Ok(1), Ok(2)]);
        assert_eq!(Notes::new(&[0; 7]).count(), 0);
    }

    #[test]
    fn a_note_that_goes_beyond_the_end_is_told_with_its_offset() {
        let mut memory = [0; 60];
        let mut writer = NoteWriter::new(&mut memory);
        writer.push("CORE", 1, &[1; 8]).expect("fits");
        writer.push("CORE", 7, &[2; 8]).expect("fits");
        let mut notes = Notes::new(&memory[..50]);
        assert_eq!(notes.next().map(|note| note.map(|note| note.kind)), Some(Ok(1)));
        let error = NoteError { offset: 28, what: "its descriptor goes beyond the end" };
        assert_eq!(notes.next(), Some(Err(error)));
        assert_eq!(notes.next(), None);
    }

    proptest! {
        #[test]
        fn notes_survive_their_encoding(
            notes in prop::collection::vec(("[A-Z]{1,9}", 1u32.., prop::collection::vec(any::<u8>(), 0..70)), 0..8)
        ) {
            let mut memory = std::vec![0; 1024];
            let mut writer = NoteWriter::new(&mut memory);
            for (owner, kind, descriptor) in &notes {
                writer.push(owner, *kind, descriptor).expect("fits");
            }
            let read: Vec<_> = Notes::new(&memory).map(|note| note.expect("readable")).collect();
            prop_assert_eq!(read.len(), notes.len());
            for (read, (owner, kind, descriptor)) in read.iter().zip(&notes) {
                prop_assert_eq!(read.owner, owner.as_bytes());
                prop_assert_eq!(read.kind, *kind);
                prop_assert_eq!(read.descriptor, descriptor.as_slice());
            }
        }

        #[test]
        fn any_bytes_are_read_to_an_end(
            mut bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 2 => 0u8..20, 1 => any::<u8>()], 0..300)
        ) {
            let count = Notes::new(&bytes).count();
            prop_assert!(count <= bytes.len() / NOTE_HEADER_BYTES + 1);
            prop_assert!(Notes::aligned(&bytes, 8).count() <= bytes.len() / NOTE_HEADER_BYTES + 1);
            bytes.truncate(bytes.len() / 2);
            let _ = Notes::new(&bytes).count();
        }
    }
}
