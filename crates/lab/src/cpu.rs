//! What each CPU has of its own: the record that its `gs` base leads to, its segments and its stacks.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, CpuidResult};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use smpcall_machine::{Counter, Cpu, Hardware, Word};
use x86_64::VirtAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::registers::segmentation::{CS, DS, ES, FS, GS, SS, Segment, SegmentSelector};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use crate::memory;

/// As many CPUs as the image has room for. What is not a record of a CPU is sized by the machine, at boot.
pub(crate) const MAX_CPUS: usize = 512;

/// Interrupt stacks, by their number in the task-state segment less one.
pub(crate) const NMI_STACK: usize = 0;
/// That of double faults and machine checks.
pub(crate) const FAULT_STACK: usize = 1;

const TASK_STACK_BYTES: usize = 64 << 10;
const INTERRUPT_STACK_BYTES: usize = 16 << 10;

/// What [`give_stacks`] takes for a CPU.
pub(crate) const STACK_BYTES: usize = TASK_STACK_BYTES + 2 * INTERRUPT_STACK_BYTES;

/// What a CPU has of its own.
#[repr(C, align(128))]
pub(crate) struct PerCpu {
    /// Its number: the first field, read through `gs`.
    number: AtomicU32,
    /// How many NMI handlers (and the like) are under way.
    nmi_depth: AtomicU32,
    /// Start-up messages that have brought it into the kernel.
    pub(crate) arrivals: Word<Hardware>,
    /// Whether it has been in the kernel since the machine was started: written once, read by those who route by shorthand.
    pub(crate) taken: Taken,
    segments: UnsafeCell<Segments>,
    /// The lowest and the first address beyond its task stack.
    stack: [AtomicU64; 2],
}

/// How often a CPU's handlers were entered.
#[derive(Default)]
pub(crate) struct Taken {
    /// Rings.
    pub(crate) rings: Counter,
    /// Ticks.
    pub(crate) ticks: Counter,
    /// The device that a suite plays.
    pub(crate) device: Counter,
    /// NMIs.
    pub(crate) nmis: Counter,
    /// NMIs that nobody had a reason for.
    pub(crate) unexplained_nmis: Counter,
    /// Spurious interrupts.
    pub(crate) spurious: Counter,
    /// Vectors without a handler.
    pub(crate) unexpected: Counter,
}

struct Segments {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

// SAFETY: the segments are written by their own CPU, while it starts and nothing refers to them; the rest is atomic.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    const NEW: Self = Self {
        number: AtomicU32::new(0),
        nmi_depth: AtomicU32::new(0),
        arrivals: Word::<Hardware>::new(0),
        taken: Taken {
            rings: Counter::new(0),
            ticks: Counter::new(0),
            device: Counter::new(0),
            nmis: Counter::new(0),
            unexplained_nmis: Counter::new(0),
            spurious: Counter::new(0),
            unexpected: Counter::new(0),
        },
        segments: UnsafeCell::new(Segments {
            gdt: GlobalDescriptorTable::new(),
            tss: TaskStateSegment::new(),
        }),
        stack: [const { AtomicU64::new(0) }; 2],
    };

    /// The task stack: its lowest address and the first beyond it. Zero before it has one.
    pub(crate) fn stack(&self) -> core::ops::Range<u64> {
        // Relaxed: written before the CPU is started.
        self.stack[0].load(Relaxed)..self.stack[1].load(Relaxed)
    }
}

static PER_CPU: [PerCpu; MAX_CPUS] = [const { PerCpu::NEW }; MAX_CPUS];

/// Where each CPU's task stack ends; zero: it has none. Read by the start-up code.
#[unsafe(no_mangle)]
static STACK_TOPS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The record of a CPU.
///
/// # Panics
/// If the image has no room for a CPU of that number.
#[inline(always)]
pub(crate) fn per_cpu(cpu: Cpu) -> &'static PerCpu {
    &PER_CPU[cpu.index()]
}

/// The record of the running CPU.
#[inline(always)]
pub(crate) fn this() -> &'static PerCpu {
    per_cpu(current())
}

/// The number of the running CPU. Its tasks never leave it, so this may be read once and used for ever.
#[inline(always)]
pub(crate) fn current() -> Cpu {
    let number: u32;
    // SAFETY: `gs` leads to the record of this CPU since its first instructions in Rust, and the number never changes.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) number, const offset_of!(PerCpu, number),
            options(pure, readonly, nostack, preserves_flags));
    }
    Cpu::new(number)
}

/// Counts a ring that the running CPU has taken.
#[inline(always)]
pub(crate) fn count_ring() {
    // SAFETY: as in `current`; only this CPU writes its counters.
    unsafe {
        asm!("inc qword ptr gs:[{}]", const offset_of!(PerCpu, taken) + offset_of!(Taken, rings), options(nostack));
    }
}

/// Whether this is an NMI handler, or what else interrupts sections with interrupts disabled.
#[inline(always)]
pub(crate) fn in_nmi() -> bool {
    let depth: u32;
    // SAFETY: as in `current`; the field changes by handlers that put it back.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) depth, const offset_of!(PerCpu, nmi_depth),
            options(readonly, nostack, preserves_flags));
    }
    depth != 0
}

/// What the CPU says of itself. SDM volume 2, CPUID.
pub(crate) fn cpuid(leaf: u32) -> CpuidResult {
    // Safe to call in newer versions of Rust.
    #[allow(unused_unsafe)]
    // SAFETY: every 64-bit CPU has the instruction.
    unsafe {
        __cpuid(leaf)
    }
}

/// While this lives, the CPU is in an NMI handler.
pub(crate) struct InNmi(());

impl InNmi {
    /// The handler begins.
    pub(crate) fn begin() -> Self {
        // Relaxed, and no atomic step: only this CPU's handlers write it, and each puts it back.
        let depth = &this().nmi_depth;
        depth.store(depth.load(Relaxed) + 1, Relaxed);
        Self(())
    }
}

impl Drop for InNmi {
    fn drop(&mut self) {
        let depth = &this().nmi_depth;
        depth.store(depth.load(Relaxed) - 1, Relaxed);
    }
}

/// The running CPU's record is found from now on. The first thing that a CPU does in Rust.
///
/// # Safety
/// This CPU is the one with that number, and no other CPU is.
pub(crate) unsafe fn adopt_record(cpu: Cpu) {
    let record = per_cpu(cpu);
    // Relaxed: this CPU's own.
    record.number.store(cpu.number(), Relaxed);
    record.nmi_depth.store(0, Relaxed);
    GsBase::write(VirtAddr::from_ptr(record));
}

/// Gives a CPU its stacks. Before it is started, by the boot CPU.
pub(crate) fn give_stacks(cpu: Cpu) {
    let record = per_cpu(cpu);
    let stack = memory::allocate(TASK_STACK_BYTES, 4096);
    let (low, high) = (stack as u64, stack as u64 + TASK_STACK_BYTES as u64);
    // Relaxed: the CPU is started afterwards.
    record.stack[0].store(low, Relaxed);
    record.stack[1].store(high, Relaxed);
    STACK_TOPS[cpu.index()].store(high, Relaxed);
    // SAFETY: the CPU does not run yet, or is this one and has not loaded its segments.
    let segments = unsafe { &mut *record.segments.get() };
    for stack in [NMI_STACK, FAULT_STACK] {
        let low = memory::allocate(INTERRUPT_STACK_BYTES, 4096) as u64;
        segments.tss.interrupt_stack_table[stack] = VirtAddr::new(low + INTERRUPT_STACK_BYTES as u64);
    }
}

/// Loads the running CPU's segments and the interrupt table. Needs its record and its stacks. Interrupts are disabled.
pub(crate) fn load_tables() {
    load_segments();
    crate::interrupts::load_table();
}

/// Loads the running CPU's segments. As [`load_tables`].
pub(crate) fn load_segments() {
    // SAFETY: only this CPU uses its segments, and from the old ones nothing is used any more: it may have run before, and
    // a busy task-state segment could not be loaded again, so that the descriptors are made anew.
    let segments = unsafe { &mut *this().segments.get() };
    segments.gdt = GlobalDescriptorTable::new();
    let code = segments.gdt.append(Descriptor::kernel_code_segment());
    let data = segments.gdt.append(Descriptor::kernel_data_segment());
    // SAFETY: the segment is part of a static.
    let tss = segments.gdt.append(unsafe { Descriptor::tss_segment_unchecked(&raw const segments.tss) });
    let base = GsBase::read();
    // SAFETY: the table is in a static and holds these descriptors; `gs` gets its base back.
    unsafe {
        segments.gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        for set in [DS::set_reg, ES::set_reg, FS::set_reg, GS::set_reg] {
            set(SegmentSelector::NULL);
        }
        GsBase::write(base);
        load_tss(tss);
    }
}
