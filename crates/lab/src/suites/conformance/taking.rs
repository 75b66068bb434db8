//! What becomes of interrupts and NMIs that have arrived.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use core::time::Duration;

use smpcall_local_apic::{DeliveryMode, Icr, Interrupt, Register, Spurious};
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, wait};

use super::{
    COUNTED, Check, Findings, ILLEGAL, ILLEGAL_VECTOR, LIMIT, LOWER, ORDER, RESENDS, TAKEN, check, command,
    id_of, is_pending, is_set, on, read, said, send, sent, settle, write, xapic,
};
use crate::apic::{self, SPURIOUS};
use crate::clock::{LabWord, delay};
use crate::machine::{BOOT_CPU, Calls, Lab};

pub(super) const CHECKS: &[Check] = &[
    check("interrupts_of_one_vector_merge_while_it_is_pending", 1, merge),
    check("the_higher_vector_is_taken_first", 1, priority),
    check("one_that_comes_while_it_is_in_service_is_taken_once_more", 1, in_service),
    check("an_end_of_interrupt_with_nothing_in_service_changes_nothing", 1, stray_end),
    check("what_is_pending_when_the_apic_is_disabled_by_software_is_held", 1, held),
    check("an_apic_that_is_disabled_by_software_accepts_nothing", 2, disabled),
    check("init_clears_what_is_pending", 2, init),
    check("an_illegal_vector_is_dropped", 1, illegal_vector),
    xapic("an_illegal_vector_is_noted_in_the_error_status", 1, illegal_vector_noted),
    check("an_nmi_that_arrives_in_the_handler_of_another_is_taken_after_it", 2, nmi_in_nmi),
    check("ten_nmis_in_the_handler_collapse_to_one_pending", 1, ten_nmis),
];

fn send_lower() {
    command(Icr::physical(DeliveryMode::Fixed, LOWER, id_of(BOOT_CPU)));
}

/// On the boot CPU: closes interrupts for what is done, then lets them in.
fn with_interrupts_off(what: impl FnOnce()) {
    let guard = InterruptsOff::<Lab>::new();
    what();
    drop(guard);
}

/// SDM, "Interrupt Acceptance for Fixed Interrupts": one bit for a vector.
fn merge(findings: &mut Findings) {
    let mut pending = false;
    let three = || {
        with_interrupts_off(|| {
            for _ in 0..3 {
                send(BOOT_CPU);
            }
            pending = is_pending(COUNTED);
        });
    };
    sent(findings, "sent three times", three, |cpu| u64::from(cpu == BOOT_CPU));
    findings.that(pending, format_args!("not pending while interrupts are disabled"));
}

/// SDM, "Interrupt, Task, and Processor Priority".
fn priority(findings: &mut Findings) {
    ORDER.store(0, Relaxed);
    with_interrupts_off(|| {
        send_lower();
        send(BOOT_CPU);
    });
    settle(findings);
    let order = u64::from(COUNTED) << 8 | u64::from(LOWER);
    findings.same("taken in this order", ORDER.load(Relaxed), order);
}

/// SDM, "Interrupt Acceptance for Fixed Interrupts": one in service and one pending.
fn in_service(findings: &mut Findings) {
    RESENDS.store(3, Relaxed);
    let twice = |cpu| if cpu == BOOT_CPU { 2 } else { 0 };
    sent(findings, "sent three more times in its handler", || send(BOOT_CPU), twice);
}

/// Report 003: nothing to end, nothing ended.
fn stray_end(findings: &mut Findings) {
    let (mut pending, mut serviced) = (false, true);
    let stray = || {
        with_interrupts_off(|| {
            send(BOOT_CPU);
            write(Register::END_OF_INTERRUPT, 0);
            pending = is_pending(COUNTED);
            serviced = is_set(Register::in_service, COUNTED);
        });
    };
    sent(findings, "what is pending", stray, |cpu| u64::from(cpu == BOOT_CPU));
    findings.that(pending && !serviced, format_args!("it ends what is only pending"));
}

fn enable(enabled: bool) {
    let spurious = Spurious { enabled, ..Spurious::enabled(SPURIOUS) };
    write(Register::SPURIOUS_VECTOR, spurious.encode());
}

/// SDM, "Local APIC State After It Has Been Software Disabled": pending interrupts are held.
fn held(findings: &mut Findings) {
    let disable_and_enable = || {
        with_interrupts_off(|| {
            send(BOOT_CPU);
            enable(false);
        });
        // Whether it is taken here or below is the CPU's affair.
        delay(Duration::from_micros(100));
        with_interrupts_off(|| enable(true));
    };
    sent(findings, "pending when it was disabled", disable_and_enable, |cpu| u64::from(cpu == BOOT_CPU));
}

/// The same: only INIT, NMI, SMI and start-up messages are accepted.
fn disabled(findings: &mut Findings) {
    let taken = &TAKEN[BOOT_CPU.index()];
    taken.store(0, Relaxed);
    with_interrupts_off(|| enable(false));
    // Nobody has to ring the boot CPU for that.
    on(findings, Cpu::new(1), || send(BOOT_CPU));
    with_interrupts_off(|| enable(true));
    settle(findings);
    findings.same("what came meanwhile and is taken afterwards", taken.load(Relaxed), 0);
}

/// SDM, "Local APIC State After an INIT Reset".
fn init(findings: &mut Findings) {
    let target = Cpu::new(apic::count() as u32 - 1);
    let taken = &TAKEN[target.index()];
    taken.store(0, Relaxed);
    if let Err(error) = Calls::cpu_down(target, LIMIT) {
        return findings.that(false, format_args!("{target} does not go offline: {error}"));
    }
    // It halts with interrupts disabled.
    send(target);
    if let Err(error) = Calls::cpu_up(target, LIMIT) {
        return findings.that(false, format_args!("{target} does not come online: {error}"));
    }
    settle(findings);
    findings.same("taken after INIT", taken.load(Relaxed), 0);
}

fn send_illegal() {
    command(Icr::physical(DeliveryMode::Fixed, ILLEGAL_VECTOR, id_of(BOOT_CPU)));
    delay(Duration::from_micros(100));
}

/// SDM, "Error Handling": vectors 0 to 15 are illegal, and not delivered.
fn illegal_vector(findings: &mut Findings) {
    ILLEGAL.store(0, Relaxed);
    send_illegal();
    let taken = ILLEGAL.load(Relaxed);
    findings.that(taken == 0, format_args!("vector {ILLEGAL_VECTOR} is delivered as an exception"));
}

/// The same: send illegal vector, or received illegal vector.
fn illegal_vector_noted(findings: &mut Findings) {
    const ILLEGAL_VECTORS: u32 = 0b11 << 5;
    let latch = || write(Register::ERROR_STATUS, 0);
    latch();
    latch();
    send_illegal();
    latch();
    let errors = read(Register::ERROR_STATUS);
    findings.that(errors & ILLEGAL_VECTORS != 0, format_args!("error status {errors:#x}"));
}

// NMIs, of the boot CPU.

/// How many it has taken.
static NMIS: LabWord = LabWord::new(0);
/// How many the next handler sends itself.
static NMIS_TO_SEND: AtomicU32 = AtomicU32::new(0);
/// Whether the next handler waits for another CPU to send one: it says so, and is told.
static MEETING: LabWord = LabWord::new(0);
const WANTED: u64 = 1;
const WAITING: u64 = 2;
const SENT: u64 = 3;

/// The hook of NMI handlers.
pub(super) fn nmi_entered() {
    if Lab::current_cpu() != BOOT_CPU {
        return;
    }
    // Relaxed, here and below: of this CPU alone.
    NMIS.fetch_add(1, Relaxed);
    for _ in 0..NMIS_TO_SEND.swap(0, Relaxed) {
        send_nmi(BOOT_CPU);
    }
    if MEETING.load(Relaxed) == WANTED {
        MEETING.store(WAITING, Relaxed);
        wait::<Lab>(&[MEETING.equals(!0, SENT)], Deadline::within::<Lab>(LIMIT));
    }
}

fn send_nmi(target: Cpu) {
    said(apic::send(target, Interrupt::Nmi));
}

/// How many NMIs the boot CPU takes when this is done.
pub(super) fn nmis_of(what: impl FnOnce()) -> u64 {
    NMIS.store(0, Relaxed);
    what();
    // The last is taken at the next instruction; an emulator's next turn.
    delay(Duration::from_millis(1));
    NMIS.load(Relaxed)
}

/// `x86/apic.c`, `test_multiple_nmi`: one's own, and another CPU's while its handler runs.
fn nmi_in_nmi(findings: &mut Findings) {
    let other = |_| {
        wait::<Lab>(&[MEETING.equals(!0, WAITING)], Deadline::within::<Lab>(LIMIT));
        send_nmi(BOOT_CPU);
        MEETING.store(SENT, Relaxed);
        crate::tasks::Step::Done
    };
    for _ in 0..100 {
        MEETING.store(WANTED, Relaxed);
        crate::tasks::give(Cpu::new(1), other);
        let taken = nmis_of(|| send_nmi(BOOT_CPU));
        crate::tasks::await_done(Cpu::new(1), Deadline::within::<Lab>(LIMIT));
        findings.same("NMIs taken", taken, 2);
    }
    MEETING.store(0, Relaxed);
}

/// `x86/apic.c`, `test_pending_nmi`.
fn ten_nmis(findings: &mut Findings) {
    for _ in 0..100 {
        NMIS_TO_SEND.store(10, Relaxed);
        findings.same("NMIs taken", nmis_of(|| send_nmi(BOOT_CPU)), 2);
    }
}
