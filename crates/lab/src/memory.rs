//! Physical memory as the loader tells of it: what there is, and an allocator that only gives.

use core::cell::UnsafeCell;
use core::ops::Range;

use crate::boot::{self, DIRECT_MAP};

/// A range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// The first byte.
    pub(crate) start: u64,
    /// The first byte that is not part of it.
    pub(crate) end: u64,
}

/// What the loader has handed over. Source: Xen, "x86/HVM direct boot ABI".
#[derive(Clone)]
pub(crate) struct Handed {
    /// Physical address of the ACPI root pointer; zero if there is none.
    pub(crate) rsdp: u64,
    /// The command line, cut off at this many bytes.
    command_line: ([u8; COMMAND_LINE_BYTES], usize),
    ram: ([Region; MAX_REGIONS], usize),
    module: Option<Region>,
}

const COMMAND_LINE_BYTES: usize = 1024;
const MAX_REGIONS: usize = 32;
const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
/// The identity map and the direct map of the boot page tables end here.
const BOOT_MAP_END: u64 = 4 << 30;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct Module {
    address: u64,
    bytes: u64,
    command_line: u64,
    reserved: u64,
}

#[repr(C)]
struct MapEntry {
    address: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// Where a physical address is seen.
pub(crate) const fn direct<T>(physical: u64) -> *mut T {
    (DIRECT_MAP + physical) as *mut T
}

/// The physical address of what the direct map shows there.
pub(crate) fn physical_of<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64 - DIRECT_MAP
}

impl Handed {
    /// Reads what the loader has left at a physical address.
    ///
    /// # Safety
    /// `start_info` is what `ebx` was at the PVH entry, and the memory that it names was not used since.
    pub(crate) unsafe fn read(start_info: u64) -> Option<Self> {
        // SAFETY: the loader has put one there, says the caller; the magic number is looked at first.
        let info = unsafe { direct::<StartInfo>(start_info).read_unaligned() };
        if info.magic != MAGIC || info.version == 0 {
            return None;
        }
        let mut handed = Self {
            rsdp: info.rsdp,
            command_line: ([0; COMMAND_LINE_BYTES], 0),
            ram: ([Region { start: 0, end: 0 }; MAX_REGIONS], 0),
            module: None,
        };
        for index in 0..u64::from(info.memory_map_entries) {
            // SAFETY: the loader says that there are so many.
            let entry = unsafe { direct::<MapEntry>(info.memory_map + index * 24).read_unaligned() };
            if entry.kind == RAM && handed.ram.1 < MAX_REGIONS {
                handed.ram.0[handed.ram.1] =
                    Region { start: entry.address, end: entry.address.saturating_add(entry.bytes) };
                handed.ram.1 += 1;
            }
        }
        if info.modules > 0 {
            // SAFETY: as above.
            let module = unsafe { direct::<Module>(info.module_list).read_unaligned() };
            handed.module =
                Some(Region { start: module.address, end: module.address.saturating_add(module.bytes) });
        }
        if info.command_line != 0 {
            let (text, length) = &mut handed.command_line;
            for (at, byte) in text.iter_mut().enumerate() {
                // SAFETY: the text ends with a zero, at which this stops.
                *byte = unsafe { direct::<u8>(info.command_line + at as u64).read() };
                if *byte == 0 {
                    break;
                }
                *length = at + 1;
            }
        }
        Some(handed)
    }

    /// The command line; empty if it is no text.
    pub(crate) fn command_line(&self) -> &str {
        core::str::from_utf8(&self.command_line.0[..self.command_line.1]).unwrap_or("")
    }

    /// All memory.
    pub(crate) fn ram(&self) -> &[Region] {
        &self.ram.0[..self.ram.1]
    }

    /// The first module that came with the image.
    pub(crate) fn module(&self) -> Option<Region> {
        self.module
    }
}

struct Global<T>(UnsafeCell<T>);

// SAFETY: what is in it is changed by the boot CPU only, while it runs alone: see `allocate` and `set_up`.
unsafe impl<T> Sync for Global<T> {}

static HANDED: Global<Option<Handed>> = Global(UnsafeCell::new(None));
static FREE: Global<Range<u64>> = Global(UnsafeCell::new(0..0));

/// What the loader has handed over.
///
/// # Panics
/// Before [`set_up`].
pub(crate) fn handed() -> &'static Handed {
    // SAFETY: written once, by `set_up`, before anybody asks.
    unsafe { &*HANDED.0.get() }.as_ref().expect("the memory is set up first")
}

/// Takes over what the loader has left, maps all memory, and chooses where [`allocate`] takes from. Says what is wrong if that
/// is nothing to go on with.
///
/// # Safety
/// As for [`Handed::read`]; once, by the boot CPU, before other CPUs run.
pub(crate) unsafe fn set_up(start_info: u64) -> Result<(), &'static str> {
    // SAFETY: promised by the caller.
    let handed = unsafe { Handed::read(start_info) }.ok_or("the loader has left no start info of PVH")?;
    // SAFETY: nobody else runs.
    let handed = unsafe { &*(*HANDED.0.get()).insert(handed) };
    let free = largest_gap(handed).ok_or("there is no memory beside the image")?;
    // SAFETY: as above.
    unsafe { *FREE.0.get() = free.start..free.end };
    for region in handed.ram() {
        map_direct(region.end);
    }
    Ok(())
}

/// Takes over what the crashed kernel was handed, and allocates from nothing but `free`, a physical range.
///
/// # Safety
/// Nobody uses that range; once, by the CPU that captures, before others run.
pub(crate) unsafe fn adopt(handed: &Handed, free: Region) {
    // SAFETY: nobody else runs.
    unsafe {
        *HANDED.0.get() = Some(handed.clone());
        *FREE.0.get() = free.start..free.end;
    }
    for region in handed.ram() {
        map_direct(region.end);
    }
}

/// The largest range of memory below the end of the boot map, above 1 MiB, that neither the image nor a module is in.
fn largest_gap(handed: &Handed) -> Option<Region> {
    let image = boot::image_range();
    let module = handed.module().unwrap_or(Region { start: 0, end: 0 });
    let used = [Region { start: 0, end: 1 << 20 }, Region { start: image.start, end: image.end }, module];
    let mut best: Option<Region> = None;
    for region in handed.ram() {
        // Each gap begins where the region or something that is used ends.
        for start in used.iter().map(|used| used.end).chain([region.start]) {
            let start = start.next_multiple_of(4096);
            let end = used
                .iter()
                .filter(|used| used.end > start)
                .map(|used| used.start)
                .chain([region.end.min(BOOT_MAP_END)])
                .min()
                .unwrap_or(start);
            let inside = start >= region.start && start < end;
            if inside && best.is_none_or(|best| best.end - best.start < end - start) {
                best = Some(Region { start, end });
            }
        }
    }
    best
}

/// Extends the direct map to a physical address beyond that of the boot tables. Up to 64 TiB.
fn map_direct(end: u64) {
    // Present, writable, 2 MiB.
    map(BOOT_MAP_END, end, 0x83);
}

/// Has the direct map show the registers of a device. What is below 4 GiB is there from the beginning. By the boot CPU.
pub(crate) fn map_device(start: u64, end: u64) {
    // As above, and uncached.
    map(start.max(BOOT_MAP_END), end, 0x9b);
}

/// What the direct map can show, in GiB: 64 TiB.
const DIRECT_MAP_GIBS: u64 = 64 << 10;

fn map(start: u64, end: u64, bits: u64) {
    const GIB: u64 = 1 << 30;
    /// Present, writable; of a table's entry that refers to another table.
    const TABLE: u64 = 3;
    /// The table that an entry refers to; a new one if it refers to none.
    ///
    /// # Safety
    /// The entry is one of the direct map's, which nobody else writes.
    unsafe fn table(entry: *mut u64) -> (*mut u64, bool) {
        // SAFETY: promised by the caller; tables are allocated, or the boot tables.
        unsafe {
            let is_new = *entry == 0;
            if is_new {
                entry.write(physical_of(allocate_zeroed::<boot::Page>(1)[0].entries()) + TABLE);
            }
            (direct(*entry & !0xfff), is_new)
        }
    }
    for gib in start / GIB..end.div_ceil(GIB).min(DIRECT_MAP_GIBS) {
        // SAFETY: the entries are in the tables of the direct map, which nobody else writes; those that are in use stay.
        unsafe {
            let (gibs, _) = table(boot::BOOT_PML4.entries().add(273 + gib as usize / 512));
            let (pages, is_new) = table(gibs.add(gib as usize % 512));
            for page in (0..512).filter(|_| is_new) {
                pages.add(page as usize).write(gib * GIB + page * (2 << 20) + bits);
            }
        }
    }
}

/// Zeroed memory for ever, seen through the direct map and below 4 GiB of physical memory. By the boot CPU, while it boots.
///
/// # Panics
/// If there is not so much left: give the machine more.
pub(crate) fn allocate(bytes: usize, align: usize) -> *mut u8 {
    // SAFETY: only the boot CPU is here, and not from an interrupt handler.
    let free = unsafe { &mut *FREE.0.get() };
    let start = free.start.next_multiple_of(align as u64);
    let end = start + bytes as u64;
    assert!(end <= free.end, "{bytes} bytes of memory are missing: give the machine more");
    free.start = end;
    let memory = direct::<u8>(start);
    // SAFETY: it is memory that nobody uses.
    unsafe { memory.write_bytes(0, bytes) };
    memory
}

/// A slice of `length` values for ever, of which all bytes are zero.
///
/// # Safety
/// Zero bytes are a value of `T`. Otherwise as for [`allocate`].
pub(crate) unsafe fn allocate_zeroed<T>(length: usize) -> &'static [T] {
    let memory = allocate(length * size_of::<T>(), align_of::<T>().max(64));
    // SAFETY: zeroed memory of that size and alignment, for ever; zero is a value of it, says the caller.
    unsafe { core::slice::from_raw_parts(memory.cast(), length) }
}

/// The end of the memory in which a stack pointer is looked for that is on no task stack: interrupt stacks and that of the
/// boot CPU's first steps are not longer than this. Empty if it is not memory of the kernel at all.
pub(crate) fn stack_end_near(pointer: u64) -> u64 {
    const LONGEST: u64 = 4096;
    let image = boot::image_range();
    let in_image = pointer.checked_sub(boot::IMAGE_BASE).is_some_and(|at| image.contains(&at));
    let in_memory = pointer.checked_sub(DIRECT_MAP).is_some_and(|at| {
        handed().ram().iter().any(|region| (region.start..region.end.min(BOOT_MAP_END)).contains(&at))
    });
    if in_image || in_memory { (pointer + LONGEST) & !(LONGEST - 1) } else { pointer }
}
