//! What registers keep and refuse.

use smpcall_local_apic::{DeliveryMode, Icr, Mode, Register};
use smpcall_machine::InterruptsOff;

use super::{
    COUNTED, Check, Findings, absent, check, command, command_bits, read, read_icr, write, write_msr, x2apic,
    xapic,
};
use crate::apic;
use crate::machine::Lab;

pub(super) const CHECKS: &[Check] = &[
    check("the_version_is_that_of_an_integrated_apic", 1, version),
    check("the_icr_reads_back_all_vectors_and_modes", 1, icr_reads_back),
    x2apic("reserved_bits_of_an_x2apic_icr_fault_and_the_former_status_bit_does_not", 1, reserved_icr_bits),
    xapic("the_delivery_status_is_hardwares", 1, delivery_status),
    xapic("the_error_status_is_latched_by_a_write_and_cleared_by_the_next", 1, error_status),
];

/// SDM, "Local APIC Version Register": 10H to 15H.
fn version(findings: &mut Findings) {
    let version = read(Register::VERSION) & 0xff;
    findings.that((0x10..=0x15).contains(&version), format_args!("version {version:#x}"));
}

/// KVM's `xapic_state_test`: sent to nobody.
fn icr_reads_back(findings: &mut Findings) {
    let Some(absent) = absent(findings) else { return };
    let modes = [
        DeliveryMode::Fixed,
        DeliveryMode::Smi,
        DeliveryMode::Nmi,
        DeliveryMode::Init,
        DeliveryMode::StartUp,
    ];
    for delivery in modes {
        for vector in 16..=255 {
            // "The vector must be zero": SDM, of these two.
            let zero = matches!(delivery, DeliveryMode::Smi | DeliveryMode::Init);
            let icr = Icr::physical(delivery, if zero { 0 } else { vector }, absent);
            let written = icr.encode(apic::mode()).unwrap_or_default();
            let guard = InterruptsOff::<Lab>::new();
            command_bits(written);
            let found = read_icr() & !u64::from(Icr::SEND_PENDING);
            drop(guard);
            findings.same("written and read back", found, written);
        }
    }
}

/// KVM's `xapic_state_test`. SDM, "ICR Operation in x2APIC Mode": reserved bits fault.
fn reserved_icr_bits(findings: &mut Findings) {
    const ICR: u32 = Register::ICR_LOW.msr();
    let Some(absent) = absent(findings) else { return };
    let harmless =
        Icr::physical(DeliveryMode::Fixed, COUNTED, absent).encode(Mode::X2Apic).unwrap_or_default();
    let former = u64::from(Icr::SEND_PENDING);
    for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| Icr::reserved(Mode::X2Apic) & bit != 0) {
        // SAFETY: the message goes to nobody.
        let taken = unsafe { write_msr(ICR, harmless | bit) };
        let wanted = bit == former;
        findings.that(
            taken == wanted,
            format_args!("bit {} {}", bit.trailing_zeros(), if taken { "is taken" } else { "faults" }),
        );
    }
}

/// SDM, "Interrupt Command Register": the delivery status is read-only.
fn delivery_status(findings: &mut Findings) {
    let Some(absent) = absent(findings) else { return };
    let harmless = Icr::physical(DeliveryMode::Fixed, COUNTED, absent);
    let bits = harmless.encode(Mode::XApic).unwrap_or_default();
    command_bits(bits | u64::from(Icr::SEND_PENDING));
    let kept = read(Register::ICR_LOW) & Icr::SEND_PENDING != 0;
    // Nothing clears it where it is kept.
    command(harmless);
    findings.that(!kept, format_args!("it is kept as it was written"));
}

/// SDM, "Error Handling".
fn error_status(findings: &mut Findings) {
    const ILLEGAL_REGISTER: u64 = 1 << 7;
    let _guard = InterruptsOff::<Lab>::new();
    let errors = || u64::from(read(Register::ERROR_STATUS));
    let latch = || write(Register::ERROR_STATUS, 0);
    latch();
    latch();
    findings.same("before any error", errors(), 0);
    // No register has this number.
    if let Some(nowhere) = Register::at(0x040) {
        read(nowhere);
    }
    findings.same("before it is latched", errors(), 0);
    latch();
    findings.same("latched", errors(), ILLEGAL_REGISTER);
    latch();
    findings.same("latched again", errors(), 0);
}
