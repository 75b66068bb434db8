//! The vmcore: what it consists of, and its way to the disk.
//!
//! | in the file | what |
//! |---|---|
//! | 0.. | headers and notes, written last: one that was not finished is no vmcore |
//! | then | physical memory, all that the loader has said there is but for the capture kernel's own, one range after the other |
//!
//! Each range is a segment with the addresses of the direct map. The image is one more, of the same bytes, with those at
//! which it is linked: debuggers find its symbols there. The page at which other CPUs start is as it was at the crash.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smpcall::vmcore::{
    Counters, Events, HEADER_BYTES, NoteWriter, Notes, SEGMENT_BYTES, Segment, trace, vmcoreinfo,
    write_header,
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
        for part in
            [Region { start, end: end.min(reserved.start) }, Region { start: start.max(reserved.end), end }]
        {
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
    let (segments, total) = segments(ranges.values(), room as u64);
    if disk.bytes() < total {
        return Err(DiskError::TooSmall { needed: total, bytes: disk.bytes() }.into());
    }
    write_memory(&mut disk, head, ranges.values(), total)?;
    let notes = write_notes(&mut head[table..], parameters, at_crash);
    write_head(&mut disk, head, table, notes, segments.values())?;
    // This follows the crashed kernel's pointers: if that is the end of this kernel, there is a vmcore without it.
    let traces = write_traces(&mut head[table + notes..], parameters);
    write_head(&mut disk, head, table, notes + traces, segments.values())?;
    Ok(total)
}

/// The segments of memory, behind `head` bytes of headers and notes; and how long the file is.
fn segments(ranges: &[Region], head: u64) -> (List<Segment, { MOST + 1 }>, u64) {
    let mut segments = List([Segment::default(); MOST + 1], 0);
    let image = boot::linked_range();
    let mut offset = head;
    for range in ranges {
        let bytes = range.end - range.start;
        let address = DIRECT_MAP + range.start;
        segments.push(Segment { offset, bytes, physical: range.start, address, memory: bytes });
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
        offset += bytes;
    }
    (segments, offset)
}

/// Writes the crashed kernel's memory behind the head, of which nothing may be left of an earlier vmcore.
fn write_memory(disk: &mut Disk, head: &[u8], ranges: &[Region], total: u64) -> Result<(), DiskError> {
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
    let start_up_page = u64::from(START_UP_PAGE) << 12;
    // SAFETY: all of it is memory that the direct map shows, and only CPUs that did not stop still write to some of it.
    unsafe {
        // Still zero.
        disk.write(0, head_at, head.len() as u64, &mut tell)?;
        let mut offset = head.len() as u64;
        for range in ranges {
            disk.write(offset, range.start, range.end - range.start, &mut tell)?;
            if range.start <= start_up_page && start_up_page + PAGE <= range.end {
                let kept = START_UP_PAGE_SAVED.load(Relaxed);
                disk.write(offset + start_up_page - range.start, kept, PAGE, &mut |_| ())?;
            }
            offset += range.end - range.start;
        }
    }
    disk.flush()
}

/// Writes the head: `notes` bytes of notes are in it from `table` on.
fn write_head(
    disk: &mut Disk,
    head: &mut [u8],
    table: usize,
    notes: usize,
    segments: &[Segment],
) -> Result<(), WriteError> {
    let notes = Segment { offset: table as u64, bytes: notes as u64, ..Segment::default() };
    write_header(head, &[notes], segments).map_err(WriteError::Header)?;
    // SAFETY: the direct map shows it, and nobody writes to it meanwhile.
    unsafe { disk.write(0, boot::physical_address(head.as_ptr()), head.len() as u64, &mut |_| ())? };
    disk.flush()?;
    Ok(())
}

/// The notes of the crash stop, one behind the other, and `VMCOREINFO`. Returns how many bytes they take.
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
    let mut text = Text { bytes: [0; INFO_BYTES - 64], length: 0 };
    // What does not fit is left out, and said.
    let told = write_info(&mut text, at_crash);
    refused += u32::from(told.is_err());
    refused += u32::from(writer.push(vmcoreinfo::OWNER, 0, &text.bytes[..text.length]).is_err());
    check("all_notes_were_kept", refused == 0 && all > 0, format_args!("{all} of the crash stop"));
    writer.written()
}

/// What each CPU has traced and counted, from the crashed kernel's mailboxes. Returns how many bytes that takes.
fn write_traces(memory: &mut [u8], parameters: &Parameters) -> usize {
    let mut writer = NoteWriter::new(memory);
    let Some(mailboxes) = crashed_mailboxes(parameters) else {
        check(
            "traces_are_there",
            false,
            format_args!("the crashed kernel's mailboxes are not where they should be"),
        );
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
        let told = Events::write(&mut writer, scratch, cpu.number(), ring.written(), traced);
        refused += u32::from(told.is_err());
        let told = Counters::write(&mut writer, scratch, cpu.number(), mailbox.counters().iter());
        refused += u32::from(told.is_err());
        events += ring.events().count();
        cpus += 1;
    }
    check("traces_are_there", events >= cpus && refused == 0, format_args!("{events} events of {cpus} CPUs"));
    writer.written()
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
            let holds =
                |range: &Region| range.start <= start && start.saturating_add(bytes as u64) <= range.end;
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
