//! The capture kernel before it runs: loaded at boot into memory that nobody else uses, and entered after a crash.
//!
//! It is this same image once more, as the loader has handed it over as a module. The copy's page tables lead the addresses
//! at which the image is linked to the copy, so that the jump is one write to `cr3`: the next instruction is the copy's.
//! Everything else of physical memory is seen where it was.
//!
//! | in the reserved memory | what |
//! |---|---|
//! | 0.. | the image, with what is zero at first |
//! | then | a page table, and [`Parameters`]: summed up at boot, and looked at again before the jump |
//! | then | [`AtCrash`]: written by the CPU that crashes |
//! | then | the stack that it begins on, and memory to allocate from |

use core::cell::UnsafeCell;
use core::fmt;

use object::LittleEndian as LE;
use object::elf::{FileHeader64, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::pod;
use smpcall_local_apic::{ApicId, ApicRecord, Mode, Routing};

use crate::crash::Expectation;
use crate::memory::{self, Handed, Region};
use crate::{apic, boot, cpu, machine};

/// What is known at boot, for the capture kernel.
pub(crate) struct Parameters {
    /// What the loader has handed over.
    pub(crate) handed: Handed,
    /// All that is the capture kernel's.
    pub(crate) reserved: Region,
    /// What it allocates from.
    pub(crate) free: Region,
    /// How much higher than it is linked it is in physical memory.
    pub(crate) offset: u64,
    /// The APIC of the CPU that the machine was started with.
    pub(crate) boot_apic: ApicId,
    /// The mode that all APICs are in.
    pub(crate) mode: Mode,
    /// How CPUs are addressed.
    pub(crate) routing: Routing,
    /// How many CPUs the crashed kernel has had.
    pub(crate) cpus: usize,
    /// What the winner of the crash has to say.
    pub(crate) at_crash: *const AtCrash,
}

/// What the winner of the crash has to say.
pub(crate) struct AtCrash {
    /// Its number in the crashed kernel.
    pub(crate) winner: u32,
    /// Its APIC, before anything of it was changed.
    pub(crate) record: ApicRecord,
    /// What a suite expects of this.
    pub(crate) expectation: Expectation,
}

/// Why there is no capture kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LoadError {
    /// The loader has handed over no module.
    NoModule,
    /// The module is no image, or incomplete.
    NoImage(&'static str),
    /// It is another image than this.
    OtherImage,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModule => f.write_str("the loader has handed over no second copy of the image (-initrd)"),
            Self::NoImage(what) => write!(f, "the module is no image of this kernel: {what}"),
            Self::OtherImage => f.write_str("the module is an image of another build than this kernel"),
        }
    }
}

/// The capture kernel, ready.
struct Loaded {
    root: u64,
    stack: u64,
    parameters: *const Parameters,
    at_crash: *mut AtCrash,
    summed: Region,
    sum: u64,
}

struct Place(UnsafeCell<Result<Loaded, LoadError>>);
// SAFETY: written at boot, before other CPUs run, and read by the one CPU that wins a crash.
unsafe impl Sync for Place {}

static LOADED: Place = Place(UnsafeCell::new(Err(LoadError::NoModule)));

const PAGE: u64 = 4096;
const STACK_BYTES: u64 = 32 << 10;
/// What page tables map the image by.
const LARGE_PAGE: u64 = 2 << 20;

/// Loads it, if there is a module. By the boot CPU, which may allocate, with the APICs set up; before other CPUs run.
pub(crate) fn load() {
    // SAFETY: nobody else runs.
    unsafe { *LOADED.0.get() = try_load() }
}

/// Why there is none, if there is none.
pub(crate) fn why_none() -> Option<LoadError> {
    // SAFETY: see `Place`.
    unsafe { &*LOADED.0.get() }.as_ref().err().copied()
}

fn try_load() -> Result<Loaded, LoadError> {
    let module = memory::handed().module().ok_or(LoadError::NoModule)?;
    // SAFETY: the loader says that this is memory with the module in it, and nobody has allocated it: see `memory::set_up`.
    let file: &[u8] = unsafe {
        core::slice::from_raw_parts(memory::direct(module.start), (module.end - module.start) as usize)
    };
    let segments = segments(file)?;
    check_build(file, segments)?;

    let linked = boot::linked_range();
    let image = (linked.end - linked.start).next_multiple_of(PAGE);
    let mut bytes = image;
    let mut take = |size: u64| {
        let at = bytes;
        bytes += size.next_multiple_of(PAGE);
        at
    };
    let directory = take(PAGE);
    let parameters = take(size_of::<Parameters>() as u64);
    let at_crash = take(size_of::<AtCrash>() as u64);
    let stack = take(STACK_BYTES) + STACK_BYTES;
    let free = take(bytes_for(apic::count()));
    let start = memory::physical_of(memory::allocate(bytes as usize, LARGE_PAGE as usize));
    let offset = start - linked.start;

    for segment in segments.iter().filter(|segment| segment.p_type.get(LE) == PT_LOAD) {
        let physical = segment.p_paddr.get(LE);
        let data = bytes_of(file, segment).ok_or(LoadError::NoImage("a segment goes beyond its end"))?;
        if physical < linked.start || physical + data.len() as u64 > linked.end {
            return Err(LoadError::NoImage("a segment lies elsewhere"));
        }
        // SAFETY: the range was just allocated and is as large as the image.
        unsafe {
            memory::direct::<u8>(physical + offset).copy_from_nonoverlapping(data.as_ptr(), data.len());
        }
    }
    // SAFETY: it is the copy's memory; both addresses are multiples of 2 MiB; memory is allocated below 4 GiB.
    let root = unsafe { boot::write_tables_of_copy(offset, start + directory) };
    let parameters_at = memory::direct::<Parameters>(start + parameters);
    let at_crash_at = memory::direct::<AtCrash>(start + at_crash);
    // SAFETY: it was allocated for this, and has the size and alignment of a page or more.
    unsafe {
        parameters_at.write(Parameters {
            handed: memory::handed().clone(),
            reserved: Region { start, end: start + bytes },
            free: Region { start: start + free, end: start + bytes },
            offset,
            boot_apic: apic::boot_id(),
            mode: apic::mode(),
            routing: apic::routing(),
            cpus: apic::count(),
            at_crash: at_crash_at,
        });
    }
    let summed = Region { start, end: start + at_crash };
    Ok(Loaded {
        root,
        stack: memory::direct::<u8>(start + stack).addr() as u64,
        parameters: parameters_at,
        at_crash: at_crash_at,
        summed,
        sum: sum(summed),
    })
}

/// What the capture kernel allocates: stacks and mailboxes, notes, page tables, and what its disk needs.
fn bytes_for(cpus: usize) -> u64 {
    let ram_end = memory::handed().ram().iter().map(|region| region.end).max().unwrap_or(0);
    let page_tables = (ram_end >> 30) * PAGE;
    let each = cpu::STACK_BYTES + crate::vmcore::NOTE_BYTES_PER_CPU;
    (cpus * each + machine::mailbox_bytes(cpus)) as u64 + page_tables + (1 << 20)
}

type Program = ProgramHeader64<LE>;

fn segments(file: &[u8]) -> Result<&[Program], LoadError> {
    let (header, _) =
        pod::from_bytes::<FileHeader64<LE>>(file).map_err(|()| LoadError::NoImage("too short"))?;
    if header.e_ident.magic != object::elf::ELFMAG || header.e_ident.class != object::elf::ELFCLASS64 {
        return Err(LoadError::NoImage("no 64-bit ELF file"));
    }
    let table = file.get(header.e_phoff.get(LE) as usize..).unwrap_or(&[]);
    let (segments, _) = pod::slice_from_bytes(table, usize::from(header.e_phnum.get(LE)))
        .map_err(|()| LoadError::NoImage("its table of segments goes beyond its end"))?;
    Ok(segments)
}

fn bytes_of<'f>(file: &'f [u8], segment: &Program) -> Option<&'f [u8]> {
    file.get(segment.p_offset.get(LE) as usize..)?.get(..segment.p_filesz.get(LE) as usize)
}

/// The notes of an image have its build identifier in them: they must be those of this image.
fn check_build(file: &[u8], segments: &[Program]) -> Result<(), LoadError> {
    let notes = segments.iter().find(|segment| segment.p_type.get(LE) == PT_NOTE);
    let notes = notes.ok_or(LoadError::NoImage("it has no notes"))?;
    let theirs = bytes_of(file, notes).ok_or(LoadError::NoImage("its notes go beyond its end"))?;
    if theirs == boot::notes() { Ok(()) } else { Err(LoadError::OtherImage) }
}

/// A sum over memory that changes if a word of it does, wherever: FNV-1a by words. Whole pages.
fn sum(region: Region) -> u64 {
    (region.start..region.end).step_by(8).fold(0xcbf2_9ce4_8422_2325, |sum: u64, at| {
        // SAFETY: the memory is the capture kernel's; what a wild store does to it meanwhile is what this is for.
        (sum ^ unsafe { memory::direct::<u64>(at).read_volatile() }).wrapping_mul(0x100_0000_01b3)
    })
}

/// Leaves the crashed kernel. Returns only if there is no capture kernel to enter, and says why.
///
/// # Safety
/// By the winner of a crash stop, with interrupts disabled: nothing of this kernel goes on on this CPU.
pub(crate) unsafe fn enter(at_crash: AtCrash) -> &'static str {
    // SAFETY: see `Place`.
    let Ok(loaded) = (unsafe { &*LOADED.0.get() }) else { return "there is no capture kernel" };
    if sum(loaded.summed) != loaded.sum {
        return "the capture kernel was overwritten";
    }
    // SAFETY: the memory is the capture kernel's; it was allocated for this.
    unsafe { loaded.at_crash.write(at_crash) };
    // SAFETY: the tables show the copy's code where this code is, so that the second instruction is the copy's; the stack is
    // the capture kernel's alone. The operands are in registers that nothing in between writes.
    unsafe {
        core::arch::asm!(
            "mov cr3, {root}",
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {entry}",
            "ud2",
            root = in(reg) loaded.root,
            stack = in(reg) loaded.stack,
            in("rdi") loaded.parameters,
            entry = sym crate::capture::capture_entry,
            options(noreturn)
        );
    }
}
