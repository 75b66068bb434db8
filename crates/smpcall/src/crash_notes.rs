//! The memory that a crash stop writes: ELF notes for each CPU, ready to be the contents of a core's note segment.

use crate::{Kernel, Plain};
use smpcall_vmcore::prstatus::{CORE, NT_PRSTATUS};
use smpcall_vmcore::{
    CpuMissing, CpuStopped, CrashSummary, NoteWriter, PendingInterrupts, PrStatus, Record, note_bytes, record,
};

const fn record_bytes(kind: u32) -> usize {
    match Record::bytes_of(kind) {
        Some(bytes) => note_bytes(record::OWNER, bytes),
        None => 0,
    }
}

const STATUS: usize = note_bytes(CORE, PrStatus::BYTES);
const OWN: usize = STATUS + record_bytes(record::STOPPED);
/// What is missing, or the summary and what was pending.
const SUMMARY: usize = record_bytes(record::SUMMARY);
const VERDICT: usize = SUMMARY + record_bytes(record::PENDING);

/// What a CPU says of itself.
pub(crate) type OwnNotes = [u8; OWN];

/// The notes about one CPU: 592 bytes, all zero until it is stopped. An array of them is what a `PT_NOTE` segment of the
/// capture kernel's core refers to, whole: zeros between notes are padding.
///
/// First what the CPU itself has written: `NT_PRSTATUS` and [`CpuStopped`]. Then what the winner has: of a CPU that has
/// not saved, [`CpuMissing`]; of itself, [`CrashSummary`] and perhaps [`PendingInterrupts`]. A CPU that was reported
/// missing and stops after all writes its part while others may read it.
#[repr(C, align(8))]
pub struct CrashNotes<K: Kernel> {
    pub(crate) own: Plain<K, OwnNotes>,
    pub(crate) verdict: Plain<K, Verdict>,
}

impl<K: Kernel> CrashNotes<K> {
    /// Nothing is noted.
    pub const NEW: Self =
        Self { own: Plain::<K, _>::new([0; OWN]), verdict: Plain::<K, _>::new(Verdict([0; VERDICT])) };

    /// How many bytes they are.
    pub const BYTES: usize = OWN + VERDICT;

    /// A copy of the notes: what [`smpcall_vmcore::Notes`] reads.
    ///
    /// # Safety
    /// No CPU writes them meanwhile: the crash stop has ended, and this CPU saved itself or is for ever silent.
    pub unsafe fn copy(&self) -> [u8; OWN + VERDICT] {
        let mut bytes = [0; OWN + VERDICT];
        // SAFETY: the caller's promise.
        let (own, verdict) = unsafe { (self.own.read(), self.verdict.read()) };
        bytes[..OWN].copy_from_slice(&own);
        bytes[OWN..].copy_from_slice(&verdict.0);
        bytes
    }

    /// Makes the notes empty again, for machines that start again in the same memory.
    ///
    /// # Safety
    /// No CPU uses them.
    pub unsafe fn reset(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            self.own.write([0; OWN]);
            self.verdict.write(Verdict([0; VERDICT]));
        }
    }
}

/// What the winner says of a CPU.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Verdict([u8; VERDICT]);

impl Verdict {
    pub(crate) fn set_missing(&mut self, missing: CpuMissing) {
        write(&mut self.0, Record::Missing(missing));
    }

    pub(crate) fn set_summary(&mut self, summary: CrashSummary) {
        write(&mut self.0[..SUMMARY], Record::Summary(summary));
    }

    pub(crate) fn set_pending(&mut self, pending: PendingInterrupts) {
        write(&mut self.0[SUMMARY..], Record::Pending(pending));
    }
}

fn write(memory: &mut [u8], record: Record) {
    // The room for each is computed above from the same sizes; a test fills all of it.
    let _ = record.write(&mut NoteWriter::new(memory));
}

/// What a CPU says of itself.
pub(crate) fn own_notes(status: &PrStatus, stopped: CpuStopped) -> OwnNotes {
    let mut bytes = [0; OWN];
    let mut writer = NoteWriter::new(&mut bytes);
    // They fit: see `write`.
    let _ = writer.push(CORE, NT_PRSTATUS, &status.to_bytes());
    let _ = Record::Stopped(stopped).write(&mut writer);
    bytes
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use smpcall_vmcore::{Notes, Registers, Role};
    use std::vec::Vec;

    fn records(bytes: &[u8]) -> Vec<Record> {
        let notes = Notes::new(bytes).map(|note| note.expect("readable"));
        notes.filter_map(|note| Some(Record::read(&note)?.expect("understood"))).collect()
    }

    #[test]
    fn every_note_has_room() {
        let registers = Registers { rip: 7, ..Registers::NONE };
        let stopped = CpuStopped { cpu: 1, role: Role::Winner, in_nmi: true, time: 9 };
        let own = own_notes(&PrStatus { pid: 3, registers }, stopped);
        assert_eq!(records(&own), [Record::Stopped(stopped)]);
        let first = Notes::new(&own).next().expect("a note").expect("readable");
        assert_eq!((first.owner, first.kind), (CORE.as_bytes(), NT_PRSTATUS));
        assert_eq!(PrStatus::from_bytes(first.descriptor).map(|status| status.registers), Some(registers));

        let mut verdict = Verdict([0; VERDICT]);
        let (summary, pending) = (CrashSummary::default(), PendingInterrupts::default());
        verdict.set_pending(pending);
        verdict.set_summary(summary);
        assert_eq!(records(&verdict.0), [Record::Summary(summary), Record::Pending(pending)]);
    }

    #[test]
    fn notes_of_several_cpus_are_one_segment() {
        assert_eq!(OWN + VERDICT, 592);
        let mut verdict = Verdict([0; VERDICT]);
        let missing = CpuMissing { cpu: 4, why: smpcall_vmcore::Absence::NoSignOfLife };
        verdict.set_missing(missing);
        let mut segment = [0; 3 * (OWN + VERDICT)];
        segment[OWN + VERDICT + OWN..][..VERDICT].copy_from_slice(&verdict.0);
        assert_eq!(records(&segment), [Record::Missing(missing)]);
    }
}
