//! What a crashed x86-64 kernel leaves behind, byte by byte: written by the kernel that crashes and by the one that
//! captures it, read by whoever diagnoses. Both sides use this crate, so that a layout stands in one place.
//!
//! * [`note`]: ELF notes in memory that is handed in: a writer, and a reader of foreign bytes.
//! * [`prstatus`]: `NT_PRSTATUS`, one CPU's registers, as Linux lays it out and every tool reads it.
//! * [`record`]: our own notes: what a crash stop knows of each CPU, and which interrupts were pending.
//! * [`trace`]: what each CPU has traced and counted.
//! * [`vmcoreinfo`]: the text of the `VMCOREINFO` note.
//! * [`elf_core`]: the ELF core file: headers, segments, and the notes in it.
//!
//! Little-endian, 64-bit, no heap. Nothing here panics on bad input: every read has a bound, and says at which offset
//! it failed.
//!
//! Sources: System V gABI, "Program Header" and "Note Section"; Linux, `include/linux/elfcore.h` and
//! `arch/x86/include/asm/user_64.h` (facts only).
#![no_std]
#![forbid(unsafe_code)]

pub mod elf_core;
pub mod note;
pub mod prstatus;
pub mod record;
pub mod trace;
pub mod vmcoreinfo;

pub use elf_core::{Core, CoreError, HEADER_BYTES, SEGMENT_BYTES, Segment, write_header};
pub use note::{Note, NoteError, NoteWriter, Notes, NotesFull, note_bytes};
pub use prstatus::{PrStatus, Registers};
pub use record::{
    Absence, CpuMissing, CpuStopped, CrashSummary, PendingInterrupts, Record, RecordError, Role,
};
pub use trace::{Counters, Events, Trace, TraceError};
pub use vmcoreinfo::VmCoreInfo;

/// Little-endian numbers at a running offset of a record, and back. A record's size is checked before.
pub(crate) mod fields {
    /// Takes numbers from bytes; beyond their end everything is zero, so the length is to be checked before.
    pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

    impl Reader<'_> {
        fn take<const N: usize>(&mut self) -> [u8; N] {
            let Some((head, tail)) = self.0.split_first_chunk::<N>() else { return [0; N] };
            self.0 = tail;
            *head
        }

        pub(crate) fn u32(&mut self) -> u32 {
            u32::from_le_bytes(self.take())
        }

        pub(crate) fn u64(&mut self) -> u64 {
            u64::from_le_bytes(self.take())
        }

        pub(crate) fn skip(&mut self, bytes: usize) {
            self.0 = self.0.get(bytes..).unwrap_or(&[]);
        }
    }

    /// Puts numbers into bytes that are long enough: what does not fit is left out.
    pub(crate) struct Writer<'a>(pub(crate) &'a mut [u8]);

    impl Writer<'_> {
        fn put(&mut self, bytes: &[u8]) {
            let whole = core::mem::take(&mut self.0);
            let Some((head, tail)) = whole.split_at_mut_checked(bytes.len()) else { return };
            head.copy_from_slice(bytes);
            self.0 = tail;
        }

        pub(crate) fn u32(&mut self, value: u32) {
            self.put(&value.to_le_bytes());
        }

        pub(crate) fn u64(&mut self, value: u64) {
            self.put(&value.to_le_bytes());
        }

        pub(crate) fn zeros(&mut self, bytes: usize) {
            for _ in 0..bytes {
                self.put(&[0]);
            }
        }
    }
}
