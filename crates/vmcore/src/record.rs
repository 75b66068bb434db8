//! Our own notes, owner `SMPCALL`: what a crash stop knows of each CPU, and which interrupts were pending.
//!
//! Every descriptor begins with a 32-bit version, 1, and has a fixed size, little-endian:
//!
//! | type | record | bytes |
//! |---|---|---|
//! | 0x53430001 | [`CpuStopped`]: written by each CPU that saved itself, beside its `NT_PRSTATUS` | version, CPU, role, in NMI handler (0, 1), time (64) |
//! | 0x53430002 | [`CpuMissing`]: written by the winner, for each CPU that did not | version, CPU, why, other CPU (`u32::MAX`: none), instruction pointer (64) |
//! | 0x53430003 | [`CrashSummary`]: written by the winner | version, winner, expected, saved, NMIs sent, crashes inside it, time (64), nanoseconds waited (64) |
//! | 0x53430004 | [`PendingInterrupts`]: written by the winner's driver | version, CPU, IRR, ISR, TMR (eight words of 32 bits each), ESR, 4 bytes zero |
//!
//! The record says which CPU it is about: the position of a note among the others says nothing when some CPU has
//! saved nothing. Debuggers know notes of cores by their types and do not look at their owners: the numbers are none of theirs.

use core::fmt;

use crate::fields::{Reader, Writer};
use crate::{Note, NoteWriter, NotesFull};

/// The owner of these notes.
pub const OWNER: &str = "SMPCALL";

/// The type of a note with [`CpuStopped`].
pub const STOPPED: u32 = 0x5343_0001;
/// The type of a note with [`CpuMissing`].
pub const MISSING: u32 = 0x5343_0002;
/// The type of a note with [`CrashSummary`].
pub const SUMMARY: u32 = 0x5343_0003;
/// The type of a note with [`PendingInterrupts`].
pub const PENDING: u32 = 0x5343_0004;

const VERSION: u32 = 1;
const NO_CPU: u32 = u32::MAX;

/// How a CPU came to save itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// It won the election: this CPU leads the crash stop.
    Winner = 0,
    /// The winner's NMI stopped it.
    Stopped = 1,
    /// It crashed too, and lost the election.
    Loser = 2,
}

/// Why a CPU has not saved itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Absence {
    /// It was offline: not asked.
    Offline,
    /// It has never declared that it can take an NMI: not asked.
    TakesNoNmi,
    /// It was running a closure of this CPU, or a post, and did not answer.
    Busy {
        /// Whose closure; none for a post.
        caller: Option<u32>,
    },
    /// Its last sign of life was the answer to a probe, at this instruction, with interrupts disabled.
    InterruptsDisabled {
        /// The instruction pointer of then.
        at: u64,
    },
    /// Its last sign of life was the answer to a probe, at this instruction, with interrupts enabled.
    InterruptsEnabled {
        /// The instruction pointer of then.
        at: u64,
    },
    /// It did not answer, and nothing else is known of it.
    NoSignOfLife,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline => f.write_str("it was offline"),
            Self::TakesNoNmi => f.write_str("it has not declared that it can take an NMI"),
            Self::Busy { caller: Some(caller) } => {
                write!(f, "it was running a closure of CPU {caller} and has not saved its registers")
            }
            Self::Busy { caller: None } => {
                f.write_str("it was running a post and has not saved its registers")
            }
            Self::InterruptsDisabled { at } => {
                write!(f, "it has not saved its registers; last seen with interrupts disabled at {at:#x}")
            }
            Self::InterruptsEnabled { at } => {
                write!(f, "it has not saved its registers; last seen with interrupts enabled at {at:#x}")
            }
            Self::NoSignOfLife => {
                f.write_str("it has not saved its registers, and nothing else is known of it")
            }
        }
    }
}

/// A CPU has saved its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuStopped {
    /// Which CPU.
    pub cpu: u32,
    /// How it came to.
    pub role: Role,
    /// Whether it was in an NMI handler already when it crashed.
    pub in_nmi: bool,
    /// When, in nanoseconds of the machine's clock.
    pub time: u64,
}

/// A CPU has not saved its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMissing {
    /// Which CPU.
    pub cpu: u32,
    /// Why not, as far as the winner knows.
    pub why: Absence,
}

/// How the crash stop went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashSummary {
    /// The CPU that won the election.
    pub winner: u32,
    /// How many CPUs were sent an NMI, or had crashed by themselves.
    pub expected: u32,
    /// How many of them have saved themselves.
    pub saved: u32,
    /// How many NMIs were sent.
    pub nmis: u32,
    /// Whether the winner crashed again inside its crash stop (1), or not (0).
    pub crashed_again: u32,
    /// When it began, in nanoseconds of the machine's clock.
    pub time: u64,
    /// How long the winner waited for the others, in nanoseconds of its own clock (which may stand still).
    pub waited: u64,
}

/// What a local APIC held when its CPU crashed: vector `v` is bit `v % 32` of word `v / 32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingInterrupts {
    /// Which CPU.
    pub cpu: u32,
    /// Interrupt request register: accepted, and not yet taken.
    pub requested: [u32; 8],
    /// In-service register: taken, and not ended.
    pub in_service: [u32; 8],
    /// Trigger mode register: level-triggered.
    pub level_triggered: [u32; 8],
    /// Error status register.
    pub errors: u32,
}

/// One of our notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A CPU has saved itself.
    Stopped(CpuStopped),
    /// A CPU has not.
    Missing(CpuMissing),
    /// How the crash stop went.
    Summary(CrashSummary),
    /// What was pending.
    Pending(PendingInterrupts),
}

/// A note of ours that this version does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// No record has this type.
    UnknownType(u32),
    /// The descriptor has another size than its type.
    WrongSize {
        /// The type.
        kind: u32,
        /// How many bytes there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// It was written by a version that lays it out differently.
    UnknownVersion(u32),
    /// A field has a value without meaning.
    Meaningless {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(kind) => write!(f, "no {OWNER} note has the type {kind:#x}"),
            Self::WrongSize { kind, found, expected } => {
                write!(f, "a {OWNER} note of type {kind:#x} has {found} bytes and should have {expected}")
            }
            Self::UnknownVersion(version) => {
                write!(f, "a {OWNER} note has version {version}; this program knows version {VERSION}")
            }
            Self::Meaningless { field, value } => {
                write!(f, "the field `{field}` of a {OWNER} note has the value {value}, which means nothing")
            }
        }
    }
}

impl core::error::Error for RecordError {}

impl Record {
    /// The largest descriptor.
    pub const LONGEST: usize = 112;

    /// The type of the note.
    pub const fn kind(&self) -> u32 {
        match self {
            Self::Stopped(_) => STOPPED,
            Self::Missing(_) => MISSING,
            Self::Summary(_) => SUMMARY,
            Self::Pending(_) => PENDING,
        }
    }

    /// The size of a descriptor of this type; none if there is no such type.
    pub const fn bytes_of(kind: u32) -> Option<usize> {
        match kind {
            STOPPED | MISSING => Some(24),
            SUMMARY => Some(40),
            PENDING => Some(112),
            _ => None,
        }
    }

    /// Writes the note.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn write(&self, notes: &mut NoteWriter<'_>) -> Result<(), NotesFull> {
        let mut descriptor = [0; Self::LONGEST];
        self.encode(&mut Writer(&mut descriptor));
        let bytes = Self::bytes_of(self.kind()).unwrap_or(0);
        notes.push(OWNER, self.kind(), &descriptor[..bytes])
    }

    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u32(VERSION);
        match self {
            Self::Stopped(CpuStopped { cpu, role, in_nmi, time }) => {
                writer.u32(*cpu);
                writer.u32(*role as u32);
                writer.u32(u32::from(*in_nmi));
                writer.u64(*time);
            }
            Self::Missing(CpuMissing { cpu, why }) => {
                let (code, other, at) = match *why {
                    Absence::Offline => (1, NO_CPU, 0),
                    Absence::TakesNoNmi => (2, NO_CPU, 0),
                    Absence::Busy { caller } => (3, caller.unwrap_or(NO_CPU), 0),
                    Absence::InterruptsDisabled { at } => (4, NO_CPU, at),
                    Absence::InterruptsEnabled { at } => (5, NO_CPU, at),
                    Absence::NoSignOfLife => (6, NO_CPU, 0),
                };
                writer.u32(*cpu);
                writer.u32(code);
                writer.u32(other);
                writer.u64(at);
            }
            Self::Summary(summary) => {
                writer.u32(summary.winner);
                writer.u32(summary.expected);
                writer.u32(summary.saved);
                writer.u32(summary.nmis);
                writer.u32(summary.crashed_again);
                writer.u64(summary.time);
                writer.u64(summary.waited);
            }
            Self::Pending(pending) => {
                writer.u32(pending.cpu);
                for word in
                    pending.requested.iter().chain(&pending.in_service).chain(&pending.level_triggered)
                {
                    writer.u32(*word);
                }
                writer.u32(pending.errors);
            }
        }
    }

    /// Reads a note; none if it is another owner's.
    ///
    /// # Errors
    /// If it is ours and cannot be understood.
    pub fn read(note: &Note<'_>) -> Option<Result<Self, RecordError>> {
        (note.owner == OWNER.as_bytes()).then(|| Self::decode(note.kind, note.descriptor))
    }

    fn decode(kind: u32, descriptor: &[u8]) -> Result<Self, RecordError> {
        let expected = Self::bytes_of(kind).ok_or(RecordError::UnknownType(kind))?;
        if descriptor.len() != expected {
            return Err(RecordError::WrongSize { kind, found: descriptor.len(), expected });
        }
        let mut reader = Reader(descriptor);
        let version = reader.u32();
        if version != VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        let cpu = reader.u32();
        let mut eight = [0; 8];
        Ok(match kind {
            STOPPED => {
                let role = match reader.u32() {
                    0 => Role::Winner,
                    1 => Role::Stopped,
                    2 => Role::Loser,
                    value => return Err(RecordError::Meaningless { field: "role", value }),
                };
                let in_nmi = match reader.u32() {
                    value @ 0..=1 => value == 1,
                    value => return Err(RecordError::Meaningless { field: "in NMI handler", value }),
                };
                Self::Stopped(CpuStopped { cpu, role, in_nmi, time: reader.u64() })
            }
            MISSING => {
                let (code, other, at) = (reader.u32(), reader.u32(), reader.u64());
                let why = match code {
                    1 => Absence::Offline,
                    2 => Absence::TakesNoNmi,
                    3 => Absence::Busy { caller: (other != NO_CPU).then_some(other) },
                    4 => Absence::InterruptsDisabled { at },
                    5 => Absence::InterruptsEnabled { at },
                    6 => Absence::NoSignOfLife,
                    value => return Err(RecordError::Meaningless { field: "why", value }),
                };
                Self::Missing(CpuMissing { cpu, why })
            }
            SUMMARY => Self::Summary(CrashSummary {
                winner: cpu,
                expected: reader.u32(),
                saved: reader.u32(),
                nmis: reader.u32(),
                crashed_again: reader.u32(),
                time: reader.u64(),
                waited: reader.u64(),
            }),
            _ => {
                let mut words = || {
                    eight.fill_with(|| reader.u32());
                    eight
                };
                let (requested, in_service, level_triggered) = (words(), words(), words());
                let errors = reader.u32();
                Self::Pending(PendingInterrupts { cpu, requested, in_service, level_triggered, errors })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Notes;
    use proptest::prelude::*;

    fn absence() -> impl Strategy<Value = Absence> {
        prop_oneof![
            Just(Absence::Offline),
            Just(Absence::TakesNoNmi),
            Just(Absence::NoSignOfLife),
            prop::option::of(0..NO_CPU).prop_map(|caller| Absence::Busy { caller }),
            any::<u64>().prop_map(|at| Absence::InterruptsDisabled { at }),
            any::<u64>().prop_map(|at| Absence::InterruptsEnabled { at }),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        let role = prop::sample::select(&[Role::Winner, Role::Stopped, Role::Loser][..]);
        prop_oneof![
            (any::<u32>(), role, any::<bool>(), any::<u64>()).prop_map(|(cpu, role, in_nmi, time)| {
                Record::Stopped(CpuStopped { cpu, role, in_nmi, time })
            }),
            (any::<u32>(), absence()).prop_map(|(cpu, why)| Record::Missing(CpuMissing { cpu, why })),
            (any::<[u32; 5]>(), any::<[u64; 2]>()).prop_map(|(a, b)| {
                let [winner, expected, saved, nmis, crashed_again] = a;
                let [time, waited] = b;
                Record::Summary(CrashSummary { winner, expected, saved, nmis, crashed_again, time, waited })
            }),
            (any::<u32>(), any::<[[u32; 8]; 3]>(), any::<u32>()).prop_map(|(cpu, words, errors)| {
                let [requested, in_service, level_triggered] = words;
                Record::Pending(PendingInterrupts { cpu, requested, in_service, level_triggered, errors })
            }),
        ]
    }

    proptest! {
        #[test]
        fn records_survive_their_encoding(record in record()) {
            let mut memory = [0; 256];
            record.write(&mut NoteWriter::new(&mut memory)).expect("fits");
            let note = Notes::new(&memory).next().expect("a note").expect("readable");
            prop_assert_eq!(Record::read(&note), Some(Ok(record)));
        }

        #[test]
        fn any_descriptor_is_read_or_refused(
            kind in STOPPED - 1..PENDING + 2, version in 0u32..3, body in prop::collection::vec(any::<u8>(), 0..128)
        ) {
            let mut descriptor = std::vec::Vec::from(version.to_le_bytes());
            descriptor.extend(body);
            let size = Record::bytes_of(kind);
            let result = Record::decode(kind, &descriptor);
            prop_assert!(result.is_err() || size == Some(descriptor.len()) && version == VERSION);
            if let Some(size) = size {
                descriptor.resize(size, 1);
                let result = Record::decode(kind, &descriptor);
                prop_assert_eq!(matches!(result, Err(RecordError::UnknownVersion(_))), version != VERSION);
            }
        }
    }

    #[test]
    fn the_note_of_another_owner_is_none_of_ours() {
        let note = Note { owner: b"CORE", kind: 1, descriptor: &[] };
        assert_eq!(Record::read(&note), None);
    }

    #[test]
    fn the_layout_does_not_move() {
        let mut bytes = [0; Record::LONGEST];
        Record::Missing(CpuMissing { cpu: 3, why: Absence::InterruptsDisabled { at: 0xabc } })
            .encode(&mut Writer(&mut bytes));
        assert_eq!(
            bytes[..24],
            [1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 255, 255, 255, 255, 0xbc, 0x0a, 0, 0, 0, 0, 0, 0]
        );
    }
}
