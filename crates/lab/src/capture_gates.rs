//! The gates of a capture kernel before it has handlers: each counts, ends what is in service, and returns (law L8).
//!
//! Exceptions keep their handler, which says what happened and leaves. NMIs are counted too: what sends them is the crashed
//! kernel's, and nothing here could answer. Interrupts may have the vectors of exceptions from 16 on: those that this kernel
//! cannot cause, and that come without an error code, are gates too.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smpcall_local_apic::InertGates;

use crate::{apic, interrupts};

/// What was taken. The CPU that captures is the only one that has these gates.
pub(crate) static GATES: InertGates = InertGates::new();
/// NMIs that were taken behind them.
static NMIS: AtomicU64 = AtomicU64::new(0);

const NMI: u64 = 2;
/// The lowest vector that an APIC accepts. SDM volume 3A, "Valid Interrupt Vectors".
const FIRST: usize = 16;
/// Exceptions from there on that come with an error code, and machine checks, which nothing but hardware causes.
const EXCEPTIONS: [usize; 5] = [17, 18, 21, 29, 30];

// One entry of 16 bytes for each vector from 16 on, and one for NMIs. None has an error code. Rust keeps the other registers.
global_asm!(
    r#"
    .section .text.interrupts, "ax", @progbits
    .balign 16
    .global inert_entries, inert_nmi_entry
inert_entries:
    .set vector, 16
    .rept 240
    .balign 16
    pushq $vector
    jmp inert_common
    .set vector, vector + 1
    .endr
    .balign 16
inert_nmi_entry:
    pushq $2
inert_common:
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq 72(%rsp), %rdi
    cld
    callq inert_gate_entered
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    addq $8, %rsp
    iretq
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static inert_entries: u8;
    static inert_nmi_entry: u8;
}

#[unsafe(no_mangle)]
extern "C" fn inert_gate_entered(vector: u64) {
    if vector == NMI {
        // Relaxed: this CPU's own.
        NMIS.fetch_add(1, Relaxed);
    } else {
        apic::end_if_in_service(&GATES, vector as u8);
    }
}

/// NMIs that were taken behind the gates.
pub(crate) fn nmis() -> u64 {
    NMIS.load(Relaxed)
}

/// The table of these gates.
struct Table(UnsafeCell<interrupts::Gates>);
// SAFETY: written and used by the CPU that captures, before others run.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new(interrupts::NO_GATES));

/// Closes the gates on the running CPU. With its segments loaded, before others run.
pub(crate) fn close() {
    // SAFETY: nobody else uses it.
    let table = unsafe { &mut *TABLE.0.get() };
    let entries = (&raw const inert_entries).addr() as u64;
    interrupts::fill(table, |vector| match vector {
        2 => Some((&raw const inert_nmi_entry).addr() as u64),
        FIRST.. if !EXCEPTIONS.contains(&vector) => Some(entries + 16 * (vector - FIRST) as u64),
        _ => None,
    });
    // SAFETY: the table is a static, and each of its gates leads to one of the entries above or to an exception's.
    unsafe { interrupts::load(TABLE.0.get()) }
}
