//! The base register: states of an APIC, and what it has forgotten when it comes back.

use core::sync::atomic::Ordering::Relaxed;

use smpcall_local_apic::{Mode, Register};
use smpcall_machine::{Cpu, InterruptsOff};

use super::{Check, Findings, LOST, NO_APIC, check, on, others, read, write, write_msr};
use crate::apic;
use crate::machine::{BOOT_CPU, Lab};

pub(super) const CHECKS: &[Check] = &[
    check("reserved_bits_of_the_base_register_fault", 2, reserved_bits),
    check("a_hardware_disabled_apic_is_not_there_and_comes_back_as_new", 2, comes_back_as_new),
    check("every_transition_of_the_base_register_is_made_or_faults", 2, transitions),
];

const BASE: u32 = 0x1b;
const ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const DISABLED: u64 = 0;
const XAPIC: u64 = ENABLE;
const BOTH: u64 = ENABLE | X2APIC;

fn read_base() -> u64 {
    use smpcall_local_apic::{ApicMsrs, BaseRegister};
    // SAFETY: this is a kernel; it is only read through this.
    unsafe { ApicMsrs::new() }.read_base()
}

fn has_x2apic() -> bool {
    core::arch::x86_64::__cpuid(1).ecx & 1 << 21 != 0
}

/// A CPU on which nothing depends: the last.
fn victim() -> Cpu {
    others().last().unwrap_or(BOOT_CPU)
}

/// Writes a state of the base register - the two bits. Whether it is taken.
///
/// # Safety
/// On a CPU that takes no interrupt meanwhile, and whose APIC is enabled anew afterwards.
unsafe fn base_to(bits: u64) -> bool {
    let others = read_base() & !BOTH;
    // SAFETY: promised by the caller.
    unsafe { write_msr(BASE, others | bits) }
}

/// Does something on the victim, with its interrupts and then its APIC off, and looks whether it has its APIC back in the
/// mode of all the others.
fn without_apic<R: Send + Default>(findings: &mut Findings, what: impl FnOnce() -> R + Send) -> Option<R> {
    let victim = victim();
    if LOST.load(Relaxed) != 0 {
        findings.skip("the APIC that was disabled cannot be enabled again");
        return None;
    }
    NO_APIC.store(victim.number() + 1, Relaxed);
    let (result, back) = on(findings, victim, || {
        let result = what();
        // Here, and not by `restore`: QEMU 10 raises a fault if an interrupt is pending and no APIC gives its vector.
        let guard = InterruptsOff::<Lab>::new();
        let _ = apic::enable_here(&guard);
        drop(guard);
        let mode = if apic::mode() == Mode::X2Apic { BOTH } else { XAPIC };
        (result, read_base() & BOTH == mode)
    });
    if back {
        NO_APIC.store(0, Relaxed);
    } else {
        LOST.store(victim.number() + 1, Relaxed);
        findings.that(false, format_args!("the APIC cannot be enabled again"));
    }
    Some(result)
}

/// From disabled to the mode of all the others.
///
/// # Safety
/// As for [`base_to`].
unsafe fn come_back() {
    // SAFETY: promised by the caller.
    let to = |bits| unsafe { base_to(bits) };
    to(XAPIC);
    if apic::mode() == Mode::X2Apic {
        to(BOTH);
    }
}

/// `x86/apic.c`, `test_apic_disable` and `test_enable_x2apic`: SDM, figure "Local x2APIC State Transitions".
fn transitions(findings: &mut Findings) {
    // What is written, one after the other from xAPIC mode, and whether that is taken: with x2APIC and without.
    const WAY: &[(u64, bool, bool)] = &[
        (X2APIC, false, false),
        (XAPIC, true, true),
        (DISABLED, true, true),
        (BOTH, false, false),
        (X2APIC, false, false),
        (DISABLED, true, true),
        (XAPIC, true, true),
        (BOTH, true, false),
    ];
    /// The same from x2APIC mode, which only a CPU that has it is in.
    const WAY_BACK: &[(u64, bool, bool)] =
        &[(XAPIC, false, false), (X2APIC, false, false), (BOTH, true, true), (DISABLED, true, true)];
    let wrong = without_apic(findings, || {
        let has = has_x2apic();
        // SAFETY: `restore` enables the APIC anew; no interrupt is taken here.
        let to = |bits| unsafe { base_to(bits) };
        to(DISABLED);
        to(XAPIC);
        let way_back: &[_] = if has { WAY_BACK } else { &[] };
        let mut wrong = None;
        for (step, &(bits, taken_with, taken_without)) in WAY.iter().chain(way_back).enumerate() {
            let taken = to(bits);
            if taken != (if has { taken_with } else { taken_without }) {
                wrong = wrong.or(Some((step, bits >> 10, taken)));
            }
        }
        to(DISABLED);
        // SAFETY: as above.
        unsafe { come_back() };
        wrong
    });
    if let Some(Some((step, bits, taken))) = wrong {
        let what = if taken { "is taken" } else { "faults" };
        findings.that(false, format_args!("step {step}, to {bits:#b} (enable, x2APIC): {what}"));
    }
}

/// SDM, "Local APIC Status and Location": the base register.
fn reserved_bits(findings: &mut Findings) {
    let taken = on(findings, victim(), || {
        let base = read_base();
        let mut taken = 0;
        for bit in [0, 7, 9, 63] {
            // SAFETY: `restore` enables the APIC anew; it stays where it is.
            if unsafe { write_msr(BASE, base | 1 << bit) } {
                taken |= 1_u64 << bit;
            }
            // SAFETY: as above.
            unsafe { write_msr(BASE, base) };
        }
        taken
    });
    findings.same("reserved bits that are taken", taken, 0);
}

/// `x86/apic.c`, `test_apic_disable`: SDM, "Enabling or Disabling the Local APIC".
fn comes_back_as_new(findings: &mut Findings) {
    const SPURIOUS_AT_RESET: u32 = 0xff;
    const MASKED: u32 = 1 << 16;
    let seen = without_apic(findings, || {
        write(Register::TASK_PRIORITY, 0x20);
        // SAFETY: `restore` enables the APIC anew; no interrupt is taken here.
        unsafe { base_to(DISABLED) };
        let there = core::arch::x86_64::__cpuid(1).edx & 1 << 9 != 0;
        // SAFETY: as above.
        unsafe { come_back() };
        let registers = [Register::SPURIOUS_VECTOR, Register::LVT_TIMER, Register::TASK_PRIORITY].map(read);
        (there, registers)
    });
    let Some((there, [spurious, timer, priority])) = seen.filter(|_| findings.held) else { return };
    findings.that(!there, format_args!("CPUID still says that there is one"));
    findings.same("the spurious-vector register", spurious.into(), SPURIOUS_AT_RESET.into());
    findings.same("the timer's entry, masked", (timer & MASKED).into(), MASKED.into());
    findings.same("the task priority", priority.into(), 0);
}
