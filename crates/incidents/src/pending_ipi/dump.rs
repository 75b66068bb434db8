//! The dump: an ELF core of notes, as the capture kernel writes it, and read back as whoever diagnoses it does.

use smpcall::vmcore::prstatus::{CORE, NT_PRSTATUS};
use smpcall::vmcore::{
    Core, CpuMissing, CpuStopped, CrashSummary, HEADER_BYTES, NoteWriter, PendingInterrupts, PrStatus,
    Record, Registers, SEGMENT_BYTES, Segment, VmCoreInfo, note_bytes, vmcoreinfo, write_header,
};

/// What the `VMCOREINFO` note says of the kernel that crashed.
const ABOUT: &str = "OSRELEASE=smpcall-simulator\n";

/// The core: the notes of the CPUs as they lie in memory, and what is known of the kernel. The machine has no memory of
/// its own that could be in it.
pub(super) fn build(notes_of_cpus: &[u8]) -> Vec<u8> {
    let headers = HEADER_BYTES + 2 * SEGMENT_BYTES;
    let mut about = vec![0; note_bytes(vmcoreinfo::OWNER, ABOUT.len())];
    let mut file = vec![0; headers];
    let segment =
        |at: usize, bytes: usize| Segment { offset: at as u64, bytes: bytes as u64, ..Segment::default() };
    let segments =
        [segment(headers, notes_of_cpus.len()), segment(headers + notes_of_cpus.len(), about.len())];
    // Both have the room that was computed for them.
    write_header(&mut file, &segments, &[]).expect("two segments fit");
    NoteWriter::new(&mut about).push(vmcoreinfo::OWNER, 0, ABOUT.as_bytes()).expect("one note fits");
    file.extend(notes_of_cpus);
    file.extend(about);
    file
}

/// What a dump says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Dump {
    /// The file's size, in bytes.
    pub(super) bytes: usize,
    /// How many notes it has.
    pub(super) notes: usize,
    pub(super) release: Option<String>,
    /// Each CPU that saved itself, with its registers.
    pub(super) stopped: Vec<(CpuStopped, Registers)>,
    pub(super) missing: Vec<CpuMissing>,
    pub(super) summary: Option<CrashSummary>,
    pub(super) pending: Option<PendingInterrupts>,
}

/// Reads it.
///
/// # Errors
/// What cannot be read, in words.
pub(super) fn read(file: &[u8]) -> Result<Dump, String> {
    let core = Core::parse(file).map_err(|error| error.to_string())?;
    let mut dump = Dump { bytes: file.len(), ..Dump::default() };
    // A CPU's registers come before what it says of itself.
    let mut registers = None;
    for note in core.notes() {
        let note = note.map_err(|error| error.to_string())?;
        dump.notes += 1;
        if note.owner == CORE.as_bytes() && note.kind == NT_PRSTATUS {
            registers = PrStatus::from_bytes(note.descriptor).map(|status| status.registers);
        } else if note.owner == vmcoreinfo::OWNER.as_bytes() {
            dump.release = VmCoreInfo::new(note.descriptor).release().map(str::to_owned);
        } else if let Some(record) = Record::read(&note) {
            match record.map_err(|error| error.to_string())? {
                Record::Stopped(stopped) => {
                    let registers = registers.take();
                    let registers =
                        registers.ok_or_else(|| format!("CPU {} has no NT_PRSTATUS", stopped.cpu))?;
                    dump.stopped.push((stopped, registers));
                }
                Record::Missing(missing) => dump.missing.push(missing),
                Record::Summary(summary) => dump.summary = Some(summary),
                Record::Pending(pending) => dump.pending = Some(pending),
            }
        }
    }
    Ok(dump)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smpcall::vmcore::Role;

    #[test]
    fn what_was_noted_is_read_back() {
        let mut notes = vec![0; 1024];
        let mut writer = NoteWriter::new(&mut notes);
        let registers = Registers { rip: 7, ..Registers::NONE };
        writer.push(CORE, NT_PRSTATUS, &PrStatus { pid: 0, registers }.to_bytes()).expect("fits");
        let stopped = CpuStopped { cpu: 3, role: Role::Winner, in_nmi: false, time: 9 };
        let pending = PendingInterrupts { cpu: 3, requested: [1; 8], ..PendingInterrupts::default() };
        Record::Stopped(stopped).write(&mut writer).expect("fits");
        Record::Pending(pending).write(&mut writer).expect("fits");
        let dump = read(&build(&notes)).expect("a core");
        assert_eq!((dump.stopped.as_slice(), dump.pending), (&[(stopped, registers)][..], Some(pending)));
        assert_eq!((dump.notes, dump.release.as_deref()), (4, Some("smpcall-simulator")));
        assert_eq!((dump.summary, dump.missing.len()), (None, 0));
    }

    #[test]
    fn what_is_cut_off_is_told() {
        let file = build(&[0; 64]);
        assert!(read(&file[..file.len() - 1]).expect_err("incomplete").contains("beyond the end"));
        assert!(read(&[]).is_err());
    }
}
