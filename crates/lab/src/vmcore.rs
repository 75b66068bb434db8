//! The vmcore: what it consists of, and its way to the disk.
//!
//! | in the file | what |
//! |---|---|
//! | 0.. | headers and notes, written last: a vmcore that was not finished is none |
//! | then | physical memory, all that the loader has said there is but for the capture kernel's own, one range after the other |
//!
//! Each range is a segment with the addresses of the direct map. The image is one more, of the same bytes, with those at
//! which it is linked: debuggers find its symbols there. The page at which other CPUs start is as it was at the crash.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smpcall::vmcore::{
    Counters, Events, HEADER_BYTES, NoteWriter, Notes, SEGMENT_BYTES, Segment, trace, vmcoreinfo, write_header,
};
use smpcall::{CrashNotes, Mailbox, Mailboxes};
use smpcall_machine::Event;

use crate::boot::{self, DIRECT_MAP, IMAGE_BASE, START_UP_PAGE};
use crate::capture::{self, check};
use crate::capture_load::{AtCrash, Parameters};
use crate::console::say;
use crate::disk::{Disk, DiskError, SECTOR};
use crate::machine::{self, CRASH_NOTES, Lab};
use crate::memory::{self, Region};

/// More counters than a CPU has.
const COUNTERS: usize = 64;
/// Headers and owners of notes.
const NOTE_HEADERS: usize = 256;
/// At the most so many bytes of notes has each CPU.
pub(crate) const NOTE_BYTES_PER_CPU: usize = CrashNotes::<Lab>::BYTES
    + trace::events_bytes(machine::EVENTS)
    + trace::counters_bytes(COUNTERS)
    + NOTE_HEADERS;
/// The text of the `VMCOREINFO` note is shorter.
const INFO_BYTES: usize = 4096;
/// More ranges than a machine has: the loader's, each of which may be in two parts, and the image.
const MOST: usize = 68;
const PAGE: u64 = 4096;
/// How often it is told how far it is.
const TOLD: u64 = 64;

/// The page at which other CPUs start, as it was at the crash: where it is kept.
static START_UP_PAGE_SAVED: AtomicU64 = AtomicU64::new(0);

/// Keeps the page at which other CPUs start, before it is written to.
pub(crate) fn save_start_up_page() {
    let kept = memory::allocate(PAGE as usize, PAGE as usize);
    let page = memory::direct::<u8>(u64::from(START_UP_PAGE) << 12);
    // SAFETY: both are pages of memory; nobody writes to the one, nobody else has the other.
    unsafe { kept.copy_from_nonoverlapping(page, PAGE as usize) };
    // Relaxed: one CPU does all of this.
    START_UP_PAGE_SAVED.store(memory::physical_of(kept), Relaxed);
}

/// A list in a room that is fixed.
struct List<T: Copy, const N: usize>([T; N], usize);

impl<T: Copy, const N: usize> List<T, N> {
    fn push(&mut self, value: T) {
        if let Some(place) = self.0.get_mut(self.1) {
            *place = value;
            self.1 += 1;
        }
    }

    fn values(&self) -> &[T] {
        &self.0[..self.1]
    }
}

/// The crashed kernel's memory, in whole sectors.
fn ranges(parameters: &Parameters) -> List<Region, MOST> {
    let mut ranges = List([Region { start: 0, end: 0 }; MOST], 0);
    let reserved = parameters.reserved;
    for &Region { start, end } in parameters.handed.ram() {
        let (start, end) = (start.next_multiple_of(SECTOR), end / SECTOR * SECTOR);
        for part in [
            Region { start, end: end.min(reserved.start) },
            Region { start: start.max(reserved.end), end },
        ] {
            if part.start < part.end {
                ranges.push(part);
            }
        }
    }
    ranges
}

/// Where the crashed kernel has what this kernel has at `own`: it is the same image.
fn crashed<T>(own: &'static T) -> &'static T {
    let linked = core::ptr::from_ref(own).addr() as u64 - IMAGE_BASE;
    // SAFETY: the crashed kernel's image is where it is linked, and nobody runs in it but CPUs that did not stop.
    unsafe { &*memory::direct::<T>(linked) }
}

/// Why there is no vmcore.
pub(crate) enum WriteError {
    Disk(DiskError),
    /// What describes it does not fit into the memory for that.
    Header(smpcall::vmcore::CoreError),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(f),
            Self::Header(error) => error.fmt(f),
        }
    }
}

impl From<DiskError> for WriteError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Writes it, and returns how many bytes it has. On the boot CPU.
pub(crate) fn write(parameters: &Parameters, at_crash: &AtCrash) -> Result<u64, WriteError> {
    // SAFETY: this kernel has no other driver for anything on PCI.
    let mut disk = unsafe { Disk::find() }?;
    capture::step();
    let ranges = ranges(parameters);
    let table = HEADER_BYTES + (2 + ranges.values().len()) * SEGMENT_BYTES;
    let room = (table + parameters.cpus * NOTE_BYTES_PER_CPU + INFO_BYTES).next_multiple_of(PAGE as usize);
    // SAFETY: it was just allocated, for this alone.
    let head = unsafe { core::slice::from_raw_parts_mut(memory::allocate(room, PAGE as usize), room) };
    let notes = write_notes(&mut head[table..], parameters, at_crash);

    let mut segments = List([Segment::default(); MOST + 1], 0);
    let image = boot::linked_range();
    let mut offset = room as u64;
    for range in ranges.values() {
        let segment = Segment {
            offset,
            bytes: range.end - range.start,
            physical: range.start,
            address: DIRECT_MAP + range.start,
            memory: range.end - range.start,
        };
        segments.push(segment);
        if range.start <= image.start && image.end <= range.end {
            let bytes = image.end - image.start;
            segments.push(Segment {
                offset: offset + image.start - range.start,
                bytes,
                physical: image.start,
                address: IMAGE_BASE + image.start,
                memory: bytes,
            });
        }
        offset += segment.bytes;
    }
    let notes = Segment { offset: table as u64, bytes: notes as u64, ..Segment::default() };
    write_header(head, &[notes], segments.values()).map_err(WriteError::Header)?;
    if disk.bytes() < offset {
        return Err(DiskError::TooSmall { needed: offset, bytes: disk.bytes() }.into());
    }
    write_all(&mut disk, head, ranges.values(), offset)?;
    Ok(offset)
}

fn write_all(disk: &mut Disk, head: &[u8], ranges: &[Region], total: u64) -> Result<(), DiskError> {
    let (mut done, mut told) = (0, 0);
    let mut tell = |bytes: u64| {
        done += bytes;
        capture::step();
        if done * TOLD / total > told {
            told = done * TOLD / total;
            say!("@ progress vmcore {done} {total}");
        }
    };
    let head_at = boot::physical_address(head.as_ptr());
    // What an earlier vmcore has left must not be taken for the beginning of this one.
    let nothing = boot::physical_address(memory::allocate(SECTOR as usize, SECTOR as usize));
    // SAFETY: all of it is memory that the direct map shows, and only CPUs that did not stop still write to some of it.
    unsafe {
        disk.write(0, nothing, SECTOR, &mut |_| ())?;
        let mut offset = head.len() as u64;
        let start_up_page = u64::from(START_UP_PAGE) << 12;
        for range in ranges {
            disk.write(offset, range.start, range.end - range.start, &mut tell)?;
            if range.start <= start_up_page && start_up_page + PAGE <= range.end {
                let kept = START_UP_PAGE_SAVED.load(Relaxed);
                disk.write(offset + start_up_page - range.start, kept, PAGE, &mut |_| ())?;
            }
            offset += range.end - range.start;
        }
        disk.flush()?;
        disk.write(0, head_at, head.len() as u64, &mut tell)?;
        disk.flush()
    }
}

/// All notes, one behind the other. Returns how many bytes they take.
fn write_notes(memory: &mut [u8], parameters: &Parameters, at_crash: &AtCrash) -> usize {
    let mut writer = NoteWriter::new(memory);
    let notes = crashed(&CRASH_NOTES);
    let (mut all, mut refused) = (0, 0);
    for notes in notes.iter().take(parameters.cpus) {
        // SAFETY: the crash stop has ended. A CPU that saves itself later writes what is zero now: it may be torn, and is
        // refused then or said by the reader.
        let bytes = unsafe { notes.copy() };
        for note in Notes::new(&bytes) {
            all += 1;
            let Ok(note) = note else {
                refused += 1;
                continue;
            };
            let owner = core::str::from_utf8(note.owner).unwrap_or("");
            refused += u32::from(writer.push(owner, note.kind, note.descriptor).is_err());
        }
    }
    refused += write_traces(&mut writer, parameters);
    let mut text = Text { bytes: [0; INFO_BYTES - 64], length: 0 };
    // What does not fit is left out, and said.
    let told = write_info(&mut text, at_crash);
    refused += u32::from(told.is_err());
    refused += u32::from(writer.push(vmcoreinfo::OWNER, 0, &text.bytes[..text.length]).is_err());
    check("all_notes_were_kept", refused == 0 && all > 0, format_args!("{all} of the crash stop"));
    writer.written()
}

/// What each CPU has traced and counted, from the crashed kernel's mailboxes. Returns how many notes could not be written.
fn write_traces(writer: &mut NoteWriter<'_>, parameters: &Parameters) -> u32 {
    let Some(mailboxes) = crashed_mailboxes(parameters) else {
        check("traces_are_there", false, format_args!("the crashed kernel's mailboxes are not where they should be"));
        return 0;
    };
    let room = trace::events_bytes(machine::EVENTS).max(trace::counters_bytes(COUNTERS));
    // SAFETY: it was just allocated, for this alone.
    let scratch = unsafe { core::slice::from_raw_parts_mut(memory::allocate(room, 64), room) };
    let (mut refused, mut events, mut cpus) = (0, 0, 0);
    for cpu in mailboxes.cpus() {
        let Some(mailbox) = mailboxes.get(cpu) else { continue };
        let ring = mailboxes.event_ring(cpu);
        let traced = ring.events().map(Event::to_bytes);
        let told = Events::write(writer, scratch, cpu.number(), ring.written(), traced);
        refused += u32::from(told.is_err());
        let told = Counters::write(writer, scratch, cpu.number(), mailbox.counters().iter());
        refused += u32::from(told.is_err());
        events += ring.events().count();
        cpus += 1;
    }
    check("traces_are_there", events >= cpus && refused == 0, format_args!("{events} events of {cpus} CPUs"));
    refused
}

/// The crashed kernel's mailboxes; none if it had made none, or if they are not within its memory.
fn crashed_mailboxes(parameters: &Parameters) -> Option<&'static Mailboxes<Lab>> {
    if !crashed(&machine::MAILBOXES_ARE_THERE).load(Relaxed) {
        return None;
    }
    // SAFETY: it had made them. What they refer to is looked at below, before it is used.
    let mailboxes = unsafe { (*crashed(&machine::MAILBOXES).0.get()).assume_init_ref() };
    let ranges = ranges(parameters);
    let [cpus, leaves, targets, _] = mailboxes.memory();
    let whole = cpus.1 == parameters.cpus * size_of::<Mailbox<Lab>>()
        && [cpus, leaves, targets].iter().all(|&(start, bytes)| {
            let start = (start.addr() as u64).wrapping_sub(DIRECT_MAP);
            let holds = |range: &Region| range.start <= start && start.saturating_add(bytes as u64) <= range.end;
            bytes == 0 || ranges.values().iter().any(holds)
        });
    whole.then_some(mailboxes)
}

/// Text in a room that is fixed.
struct Text {
    bytes: [u8; INFO_BYTES - 64],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let place = self.bytes.get_mut(self.length..self.length + text.len()).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

/// What readers of Linux' vmcores look for, as far as this kernel has it, and where its own tables are.
fn write_info(text: &mut Text, at_crash: &AtCrash) -> fmt::Result {
    writeln!(text, "OSRELEASE=smpcall-lab-{}", env!("CARGO_PKG_VERSION"))?;
    writeln!(text, "PAGESIZE={PAGE}")?;
    // The physical address of the image is its virtual one less the address of the mapping, and nothing else.
    writeln!(text, "NUMBER(phys_base)=0")?;
    writeln!(text, "NUMBER(pgtable_l5_enabled)=0")?;
    writeln!(text, "KERNELOFFSET=0")?;
    writeln!(text, "SYMBOL(_stext)={:x}", boot::linked_range().start + IMAGE_BASE)?;
    // Linux' name for the root of the kernel's page tables.
    writeln!(text, "SYMBOL(swapper_pg_dir)={:x}", (&raw const boot::BOOT_PML4).addr())?;
    writeln!(text, "SYMBOL(CRASH_NOTES)={:x}", (&raw const CRASH_NOTES).addr())?;
    writeln!(text, "CRASHED_CPU={}", at_crash.winner)
}
