//! The interrupt table, the way in and out of handlers, and what each handler does.
//!
//! The image is built without vector registers, so a handler saves the general ones and nothing else.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use smpcall::vmcore::Registers;
use smpcall_local_apic::InertGates;
use smpcall_machine::Machine;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::{Entry, HandlerFunc};

use crate::apic::{self, DEVICE, RING, SPURIOUS, TICK_VECTOR};
use crate::console::say;
use crate::cpu::{FAULT_STACK, InNmi, NMI_STACK, this};
use crate::machine::{Calls, Lab};
use crate::{back_trace, crash, hooks};

const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;
const PAGE_FAULT: u64 = 14;
const MACHINE_CHECK: u64 = 18;
/// The first vector that is no exception.
const FIRST_INTERRUPT: u64 = 32;

/// What the way into a handler has saved: the general registers, and what the CPU has pushed.
#[repr(C)]
pub(crate) struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) rip: u64,
    cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    ss: u64,
}

impl Frame {
    /// As crash notes and back traces have them.
    pub(crate) fn registers(&self) -> Registers {
        let &Self { r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, .. } = self;
        let &Self { rip, cs, rflags, rsp, ss, .. } = self;
        let gs_base = core::ptr::from_ref(this()).addr() as u64;
        Registers {
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            orig_rax: u64::MAX,
            rip,
            cs,
            rflags,
            rsp,
            ss,
            gs_base,
            ..Registers::NONE
        }
    }
}

// One entry of 16 bytes for each vector: the error code that the CPU has not pushed, and the vector.
global_asm!(
    r#"
    .section .text.interrupts, "ax", @progbits
    .balign 16
    .global interrupt_entries, ring_entry
interrupt_entries:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    pushq $0
    .endif
    pushq $vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    cld
    callq interrupt_entered
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    addq $16, %rsp
    iretq

    // Rings have a way of their own: what Rust keeps for its callers need not be saved. Nobody looks at a frame.
    .balign 16
ring_entry:
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    cld
    callq ring_entered
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    iretq
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static interrupt_entries: u8;
    static ring_entry: u8;
}

/// The gates of all vectors.
pub(crate) type Gates = [Entry<HandlerFunc>; 256];

/// A table that was not filled in.
pub(crate) const NO_GATES: Gates = [const { Entry::missing() }; 256];

/// A table of gates.
struct Table(UnsafeCell<Gates>);
// SAFETY: written by the boot CPU before other CPUs run.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new(NO_GATES));

/// Fills in the table. By the boot CPU, with its segments loaded, before any other CPU loads it.
fn set_up() {
    // SAFETY: nobody else uses it.
    let table = unsafe { &mut *TABLE.0.get() };
    fill(table, |vector| {
        (vector == usize::from(RING.number())).then(|| (&raw const ring_entry).addr() as u64)
    });
}

/// Fills in a table: with what `entry` has for a vector, else with the way into this file's handlers.
pub(crate) fn fill(table: &mut Gates, entry: impl Fn(usize) -> Option<u64>) {
    let entries = (&raw const interrupt_entries).addr() as u64;
    for (vector, gate) in table.iter_mut().enumerate() {
        let entry = entry(vector).unwrap_or(entries + 16 * vector as u64);
        let stack = match vector as u64 {
            NMI => Some(NMI_STACK),
            DOUBLE_FAULT | MACHINE_CHECK => Some(FAULT_STACK),
            _ => None,
        };
        // SAFETY: the entries are what handlers begin with, for the vectors with and without an error code, and the stacks
        // are in every CPU's task-state segment.
        unsafe {
            let options = gate.set_handler_addr(VirtAddr::new(entry));
            if let Some(stack) = stack {
                options.set_stack_index(stack as u16);
            }
        }
    }
}

/// Loads the table on the running CPU; the boot CPU fills it in first. With its segments loaded.
pub(crate) fn load_table() {
    if Lab::current_cpu() == crate::machine::BOOT_CPU {
        set_up();
    }
    // SAFETY: the table is a static, and each of its gates leads to a handler.
    unsafe { load(TABLE.0.get()) }
}

/// Loads a table on the running CPU.
///
/// # Safety
/// It stays where it is, and each of its gates leads to a handler.
pub(crate) unsafe fn load(table: *const Gates) {
    let pointer =
        DescriptorTablePointer { limit: (size_of::<Gates>() - 1) as u16, base: VirtAddr::from_ptr(table) };
    // SAFETY: promised by the caller.
    unsafe { lidt(&pointer) }
}

/// The handler of rings.
#[unsafe(no_mangle)]
extern "C" fn ring_entered() {
    // SAFETY: this is the handler of that vector, which the APIC alone enters, and this is its only end.
    unsafe { apic::end_of_interrupt(RING) }
    crate::cpu::count_ring();
    Calls::ring_interrupt();
}

/// All other handlers. `frame` is what the way in has saved, and what the way out restores.
#[unsafe(no_mangle)]
extern "C" fn interrupt_entered(frame: &mut Frame) {
    const TICK_NUMBER: u64 = TICK_VECTOR.number() as u64;
    const DEVICE_NUMBER: u64 = DEVICE.number() as u64;
    const SPURIOUS_NUMBER: u64 = SPURIOUS.number() as u64;
    let taken = &this().taken;
    match frame.vector {
        NMI => nmi(frame),
        TICK_NUMBER => {
            // SAFETY: as in `ring_entered`.
            unsafe { apic::end_of_interrupt(TICK_VECTOR) }
            taken.ticks.add(1);
            tick(frame);
            Calls::exit_interrupt();
        }
        DEVICE_NUMBER => {
            // SAFETY: as in `ring_entered`.
            unsafe { apic::end_of_interrupt(DEVICE) }
            taken.device.add(1);
            hooks::device();
            Calls::exit_interrupt();
        }
        // Never in service: it has no end (report 003).
        SPURIOUS_NUMBER => taken.spurious.add(1),
        _ => without_handler(frame),
    }
}

/// A vector that this kernel has no handler for.
fn without_handler(frame: &mut Frame) {
    if hooks::entered(frame) {
        return;
    }
    match frame.vector {
        FIRST_INTERRUPT.. => unexpected(frame.vector as u8),
        _ => exception(frame),
    }
}

fn tick(frame: &Frame) {
    Calls::tick();
    if crate::tasks::is_backstop() {
        Calls::backstop();
    }
    if crate::capture::is_hung() {
        crash::crash(&frame.registers(), format_args!("the capture kernel gets nowhere"));
    }
    if Calls::check_lockups(&frame.registers()) == smpcall::Answer::CrashStop {
        crash::crash(&frame.registers(), format_args!("a CPU is locked up"));
    }
}

fn nmi(frame: &Frame) {
    let in_nmi = InNmi::begin();
    let registers = frame.registers();
    this().taken.nmis.add(1);
    // If somebody has crashed, this does not return.
    let stopped = Calls::handle_stop(&registers);
    // One NMI may have several reasons: those that came while one was pending are merged.
    let probed = Calls::handle_nmi(frame.rip, registers.interrupts_enabled());
    let asked = Calls::handle_back_trace(&registers);
    let expected = hooks::nmi();
    if !(stopped || probed || asked || expected) {
        this().taken.unexplained_nmis.add(1);
    }
    drop(in_nmi);
}

/// A vector that nobody uses: counted, and ended if it is in service.
fn unexpected(vector: u8) {
    static GATES: InertGates = InertGates::new();
    let taken = &this().taken;
    taken.unexpected.add(1);
    apic::end_if_in_service(&GATES, vector);
}

fn exception(frame: &Frame) -> ! {
    let interrupts_off = matches!(frame.vector, DOUBLE_FAULT | MACHINE_CHECK);
    let in_nmi = interrupts_off.then(InNmi::begin);
    let registers = frame.registers();
    let fault_address =
        if frame.vector == PAGE_FAULT { x86_64::registers::control::Cr2::read_raw() } else { 0 };
    say!(
        "exception {} (error {:#x}, address {fault_address:#x}) at {:#x}, stack {:#x}, on {}",
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        Lab::current_cpu()
    );
    back_trace::print(&registers);
    core::mem::forget(in_nmi);
    crash::crash(&registers, format_args!("exception {}", frame.vector))
}
