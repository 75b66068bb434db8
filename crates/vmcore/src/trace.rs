//! Notes with what each CPU has traced and counted, owner `SMPTRACE`: a dump shows them without its kernel's symbols.
//!
//! Every descriptor begins with a 32-bit version, 1, and the number of a CPU (32 bits), little-endian:
//!
//! | type | note | then |
//! |---|---|---|
//! | 0x53540001 | [`Events`]: its last events, the oldest first | how many were ever written (64), then events of 32 bytes each |
//! | 0x53540002 | [`Counters`] | counters of 32 bytes each: a name of 24 bytes, padded with zeros, and a value (64) |
//!
//! The format of an event is that of whoever traces. Debuggers look at types and not at owners, and know none of these.

use core::fmt;

use crate::fields::{Reader, Writer};
use crate::{Note, NoteWriter, NotesFull};

/// The owner of these notes.
pub const OWNER: &str = "SMPTRACE";
/// The size of an event.
pub const EVENT_BYTES: usize = 32;
/// The longest name of a counter that is not cut.
pub const NAME_BYTES: usize = 24;

const VERSION: u32 = 1;
const EVENTS: u32 = 0x5354_0001;
const COUNTERS: u32 = 0x5354_0002;
const EVENTS_BEGIN: usize = 16;
const COUNTERS_BEGIN: usize = 8;
const COUNTER_BYTES: usize = NAME_BYTES + 8;

/// How large a descriptor with so many events is, in bytes.
pub const fn events_bytes(events: usize) -> usize {
    EVENTS_BEGIN + events * EVENT_BYTES
}

/// How large a descriptor with so many counters is, in bytes.
pub const fn counters_bytes(counters: usize) -> usize {
    COUNTERS_BEGIN + counters * COUNTER_BYTES
}

/// The last events of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events<'a> {
    /// Which CPU.
    pub cpu: u32,
    /// How many events it has ever written.
    pub written: u64,
    bytes: &'a [u8],
}

impl<'a> Events<'a> {
    /// Each event, the oldest first.
    pub fn events(&self) -> impl Iterator<Item = &'a [u8; EVENT_BYTES]> + use<'a> {
        self.bytes.as_chunks().0.iter()
    }

    /// Writes the note, made in `scratch`: what does not fit there is left out, the newest first.
    ///
    /// # Errors
    /// If the note does not fit.
    pub fn write(
        notes: &mut NoteWriter<'_>,
        scratch: &mut [u8],
        cpu: u32,
        written: u64,
        events: impl Iterator<Item = [u8; EVENT_BYTES]>,
    ) -> Result<(), NotesFull> {
        let Some((head, rest)) = scratch.split_at_mut_checked(EVENTS_BEGIN) else {
            return Err(NotesFull { needed: EVENTS_BEGIN, left: scratch.len() });
        };
        let mut writer = Writer(head);
        writer.u32(VERSION);
        writer.u32(cpu);
        writer.u64(written);
        let count =
            rest.as_chunks_mut().0.iter_mut().zip(events).map(|(place, event)| *place = event).count();
        notes.push(OWNER, EVENTS, &scratch[..events_bytes(count)])
    }
}

/// The counters of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters<'a> {
    /// Which CPU.
    pub cpu: u32,
    bytes: &'a [u8],
}

impl<'a> Counters<'a> {
    /// Name and value of each; the name is empty if it is no text.
    pub fn counters(&self) -> impl Iterator<Item = (&'a str, u64)> + use<'a> {
        self.bytes.chunks_exact(COUNTER_BYTES).map(|counter| {
            let (name, value) = counter.split_at(NAME_BYTES);
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES);
            (core::str::from_utf8(&name[..end]).unwrap_or(""), Reader(value).u64())
        })
    }

    /// Writes the note, made in `scratch`: counters that do not fit there are left out.
    ///
    /// # Errors
    /// If the note does not fit.
    pub fn write<'n>(
        notes: &mut NoteWriter<'_>,
        scratch: &mut [u8],
        cpu: u32,
        counters: impl Iterator<Item = (&'n str, u64)>,
    ) -> Result<(), NotesFull> {
        let Some((head, rest)) = scratch.split_at_mut_checked(COUNTERS_BEGIN) else {
            return Err(NotesFull { needed: COUNTERS_BEGIN, left: scratch.len() });
        };
        let mut writer = Writer(head);
        writer.u32(VERSION);
        writer.u32(cpu);
        let mut count = 0;
        for (place, (name, value)) in rest.chunks_exact_mut(COUNTER_BYTES).zip(counters) {
            let (text, number) = place.split_at_mut(NAME_BYTES);
            text.fill(0);
            let length = name.len().min(NAME_BYTES);
            text[..length].copy_from_slice(&name.as_bytes()[..length]);
            Writer(number).u64(value);
            count += 1;
        }
        notes.push(OWNER, COUNTERS, &scratch[..counters_bytes(count)])
    }
}

/// One of these notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace<'a> {
    /// What a CPU has traced.
    Events(Events<'a>),
    /// What it has counted.
    Counters(Counters<'a>),
}

/// A note of this owner that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// No note has this type.
    UnknownType(u32),
    /// The version is another one.
    UnknownVersion(u32),
    /// It has so many bytes, which no number of events or counters takes.
    WrongSize(usize),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(kind) => write!(f, "no {OWNER} note has the type {kind:#x}"),
            Self::UnknownVersion(version) => {
                write!(f, "a {OWNER} note has version {version}; this program knows version {VERSION}")
            }
            Self::WrongSize(bytes) => write!(f, "a {OWNER} note has {bytes} bytes, which is no size of one"),
        }
    }
}

impl core::error::Error for TraceError {}

impl<'a> Trace<'a> {
    /// Reads a note; none if it is another owner's.
    ///
    /// # Errors
    /// If it is ours and cannot be understood.
    pub fn read(note: &Note<'a>) -> Option<Result<Self, TraceError>> {
        (note.owner == OWNER.as_bytes()).then(|| Self::decode(note.kind, note.descriptor))
    }

    fn decode(kind: u32, descriptor: &'a [u8]) -> Result<Self, TraceError> {
        let (begin, each) = match kind {
            EVENTS => (EVENTS_BEGIN, EVENT_BYTES),
            COUNTERS => (COUNTERS_BEGIN, COUNTER_BYTES),
            other => return Err(TraceError::UnknownType(other)),
        };
        let wrong = TraceError::WrongSize(descriptor.len());
        let (head, rest) = descriptor.split_at_checked(begin).ok_or(wrong)?;
        let mut reader = Reader(head);
        let (version, cpu) = (reader.u32(), reader.u32());
        if version != VERSION {
            return Err(TraceError::UnknownVersion(version));
        }
        if !rest.len().is_multiple_of(each) {
            return Err(wrong);
        }
        Ok(match kind {
            EVENTS => Self::Events(Events { cpu, written: reader.u64(), bytes: rest }),
            _ => Self::Counters(Counters { cpu, bytes: rest }),
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Notes;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn only(memory: &[u8]) -> Note<'_> {
        Notes::new(memory).next().expect("a note").expect("readable")
    }

    proptest! {
        #[test]
        fn events_survive_their_encoding(
            cpu: u32, written: u64, events in prop::collection::vec(any::<[u8; EVENT_BYTES]>(), 0..20)
        ) {
            let (mut memory, mut scratch) = ([0; 1024], [0; events_bytes(20)]);
            let mut writer = NoteWriter::new(&mut memory);
            Events::write(&mut writer, &mut scratch, cpu, written, events.iter().copied()).expect("fits");
            let Some(Ok(Trace::Events(read))) = Trace::read(&only(&memory)) else { panic!("events") };
            prop_assert_eq!((read.cpu, read.written), (cpu, written));
            prop_assert_eq!(read.events().copied().collect::<Vec<_>>(), events);
        }

        #[test]
        fn counters_survive_their_encoding(
            cpu: u32, counters in prop::collection::vec(("[a-z_]{1,24}", any::<u64>()), 0..20)
        ) {
            let (mut memory, mut scratch) = ([0; 1024], [0; counters_bytes(20)]);
            let mut writer = NoteWriter::new(&mut memory);
            let given = counters.iter().map(|(name, value)| (name.as_str(), *value));
            Counters::write(&mut writer, &mut scratch, cpu, given.clone()).expect("fits");
            let Some(Ok(Trace::Counters(read))) = Trace::read(&only(&memory)) else { panic!("counters") };
            prop_assert_eq!(read.cpu, cpu);
            prop_assert_eq!(read.counters().collect::<Vec<_>>(), given.collect::<Vec<_>>());
        }

        #[test]
        fn any_descriptor_is_read_or_refused(
            kind in EVENTS - 1..COUNTERS + 2, version in 0u32..3, body in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut descriptor = Vec::from(version.to_le_bytes());
            descriptor.extend(body);
            let note = Note { owner: OWNER.as_bytes(), kind, descriptor: &descriptor };
            match Trace::read(&note).expect("ours") {
                Ok(Trace::Events(events)) => prop_assert_eq!(events_bytes(events.events().count()), descriptor.len()),
                Ok(Trace::Counters(counters)) => {
                    prop_assert_eq!(counters_bytes(counters.counters().count()), descriptor.len());
                }
                Err(_) => {}
            }
        }
    }

    #[test]
    fn what_does_not_fit_into_the_scratch_is_left_out() {
        let (mut memory, mut scratch) = ([0; 1024], [0; events_bytes(2) + 31]);
        let mut writer = NoteWriter::new(&mut memory);
        let events = (0..5).map(|number| [number; EVENT_BYTES]);
        Events::write(&mut writer, &mut scratch, 1, 5, events.clone()).expect("fits");
        let Some(Ok(Trace::Events(read))) = Trace::read(&only(&memory)) else { panic!("events") };
        assert_eq!((read.events().count(), read.written), (2, 5));
        let error = Events::write(&mut NoteWriter::new(&mut []), &mut [0; 15], 1, 5, events);
        assert_eq!(error, Err(NotesFull { needed: 16, left: 15 }));
    }

    #[test]
    fn the_note_of_another_owner_is_none_of_ours() {
        assert_eq!(Trace::read(&Note { owner: b"CORE", kind: EVENTS, descriptor: &[] }), None);
    }
}
