//! Local sources, pins, level trigger, and the external controller.

use smpcall_local_apic::{DeliveryMode, Mode};
use smpcall_machine::Instant;

use super::super::{Effect, Features, Message};
use super::*;

const NOW: Instant = Instant::from_nanos(1000);

fn enabled(features: Features) -> ApicModel {
    let mut apic = ApicModel::with_features(3, Mode::XApic, features);
    apic.write(Register::SPURIOUS_VECTOR, 0x1ff, NOW).unwrap();
    apic
}

fn with_entry(register: Register, entry: u32) -> ApicModel {
    let mut apic = enabled(Features::CURRENT);
    apic.write(register, entry, NOW).unwrap();
    apic
}

fn read(apic: &mut ApicModel, register: Register) -> u32 {
    apic.read(register, NOW).unwrap()
}

fn end_of_interrupt(apic: &mut ApicModel) -> Effect {
    apic.write(Register::END_OF_INTERRUPT, 0, NOW).unwrap()
}

const ENTRIES: [(LocalSource, Register); 5] = [
    (LocalSource::Lint0, Register::LVT_LINT0),
    (LocalSource::Lint1, Register::LVT_LINT1),
    (LocalSource::Performance, Register::LVT_PERFORMANCE),
    (LocalSource::Thermal, Register::LVT_THERMAL),
    (LocalSource::CorrectedMachineCheck, Register::LVT_CMCI),
];

#[test]
fn a_local_source_is_delivered_as_its_entry_says() {
    for (source, register) in ENTRIES {
        let mut apic = with_entry(register, 0x41);
        assert_eq!(apic.raise_local(source), Acceptance::Accepted, "{source:?}");
        assert_eq!(apic.take(), Some(0x41));
        let mut apic = with_entry(register, 0x400);
        assert_eq!(apic.raise_local(source), Acceptance::Accepted, "{source:?}");
        assert!(apic.take_nmi());
        let mut apic = with_entry(register, 0x200);
        assert_eq!(apic.raise_local(source), Acceptance::Accepted, "{source:?}");
        assert_eq!(apic.smis(), 1);
        assert!(apic.is_quiet());
    }
}

#[test]
fn a_masked_entry_delivers_nothing_and_its_edge_is_lost() {
    for (source, register) in ENTRIES {
        let mut apic = with_entry(register, MASKED | 0x41);
        assert_eq!(apic.raise_local(source), Acceptance::Rejected(Rejection::Masked), "{source:?}");
        apic.write(register, 0x41, NOW).unwrap();
        assert!(apic.is_quiet(), "{source:?}");
    }
}

#[test]
fn only_the_pins_reset_the_cpu_or_ask_the_external_controller() {
    for (source, register) in ENTRIES {
        let is_pin = source.pin().is_some();
        let reserved = Acceptance::Rejected(Rejection::ReservedDeliveryMode);
        let mut apic = with_entry(register, 0x500);
        assert_eq!(apic.raise_local(source), if is_pin { Acceptance::Reset } else { reserved });
        assert_eq!(apic.is_waiting_for_start_up(), is_pin);
        let mut apic = with_entry(register, 0x700);
        assert_eq!(apic.raise_local(source), if is_pin { Acceptance::Accepted } else { reserved });
        assert_eq!(apic.ext_int_deliverable(), is_pin);
        for mode in [0x100, 0x300, 0x600] {
            assert_eq!(with_entry(register, mode).raise_local(source), reserved, "{mode:#x}");
        }
    }
}

#[test]
fn a_performance_interrupt_masks_its_entry() {
    let mut apic = with_entry(Register::LVT_PERFORMANCE, 0x400);
    apic.raise_local(LocalSource::Performance);
    assert_eq!(read(&mut apic, Register::LVT_PERFORMANCE), MASKED | 0x400);
    assert_eq!(apic.raise_local(LocalSource::Performance), Acceptance::Rejected(Rejection::Masked));
    let mut apic = with_entry(Register::LVT_THERMAL, 0x400);
    apic.raise_local(LocalSource::Thermal);
    assert_eq!(read(&mut apic, Register::LVT_THERMAL), 0x400, "the others stay as they are");
}

#[test]
fn an_asserted_pin_gives_one_edge() {
    let mut apic = with_entry(Register::LVT_LINT1, 0x400);
    assert_eq!(apic.raise_local(LocalSource::Lint1), Acceptance::Accepted);
    assert!(apic.take_nmi());
    apic.return_from_nmi();
    assert_eq!(apic.raise_local(LocalSource::Lint1), Acceptance::Merged);
    assert!(!apic.nmi_pending());
    apic.lower_local(LocalSource::Lint1);
    assert_eq!(apic.raise_local(LocalSource::Lint1), Acceptance::Accepted);
    assert!(apic.nmi_pending());
}

#[test]
fn an_illegal_vector_of_a_source_is_an_error() {
    let mut apic = with_entry(Register::LVT_THERMAL, 0x0f);
    apic.write(Register::ERROR_STATUS, 0, NOW).unwrap();
    assert_eq!(apic.raise_local(LocalSource::Thermal), Acceptance::Rejected(Rejection::IllegalVector));
    assert_eq!(apic.errors(), 1 << 6);
}

// Level trigger on LINT0.

const LEVEL: u32 = LEVEL_TRIGGERED | 0x41;

#[test]
fn a_level_is_accepted_once_until_its_end_and_again_while_the_pin_is_asserted() {
    let mut apic = with_entry(Register::LVT_LINT0, LEVEL);
    assert_eq!(apic.raise_local(LocalSource::Lint0), Acceptance::Accepted);
    assert_eq!(read(&mut apic, Register::LVT_LINT0), REMOTE_IRR | LEVEL);
    assert!(apic.tmr().contains(0x41));
    assert_eq!(apic.take(), Some(0x41));
    assert_eq!(apic.irr().iter().count(), 0, "not while it is in service");
    assert_eq!(end_of_interrupt(&mut apic), Effect::BroadcastEndOfInterrupt(0x41));
    assert_eq!(apic.take(), Some(0x41), "still asserted");
    apic.lower_local(LocalSource::Lint0);
    end_of_interrupt(&mut apic);
    assert_eq!(read(&mut apic, Register::LVT_LINT0), LEVEL);
    assert!(apic.is_quiet());
}

#[test]
fn a_masked_level_is_accepted_when_it_is_unmasked() {
    let mut apic = with_entry(Register::LVT_LINT0, MASKED | LEVEL);
    apic.raise_local(LocalSource::Lint0);
    assert!(apic.is_quiet());
    apic.write(Register::LVT_LINT0, LEVEL, NOW).unwrap();
    assert_eq!(apic.take(), Some(0x41));
}

#[test]
fn writing_an_entry_leaves_its_read_only_bits() {
    let mut apic = with_entry(Register::LVT_LINT0, LEVEL);
    apic.raise_local(LocalSource::Lint0);
    apic.write(Register::LVT_LINT0, MASKED | LEVEL, NOW).unwrap();
    assert_eq!(read(&mut apic, Register::LVT_LINT0), MASKED | REMOTE_IRR | LEVEL);
    let mut apic = with_entry(Register::LVT_LINT0, REMOTE_IRR | SEND_PENDING | LEVEL);
    assert_eq!(read(&mut apic, Register::LVT_LINT0), LEVEL);
}

#[test]
fn lint1_has_no_level_trigger() {
    let mut apic = with_entry(Register::LVT_LINT1, LEVEL);
    apic.raise_local(LocalSource::Lint1);
    apic.take();
    assert_eq!(end_of_interrupt(&mut apic), Effect::EndOfInterrupt(Some(0x41)));
    assert!(apic.is_quiet());
}

// The end of level-triggered interrupts.

#[test]
fn the_end_of_a_level_triggered_vector_is_broadcast_and_of_an_edge_is_not() {
    let mut apic = enabled(Features::CURRENT);
    apic.accept(Message { trigger: Trigger::Level, ..Message::fixed(0x61) });
    apic.accept(Message::fixed(0x51));
    apic.take();
    assert_eq!(end_of_interrupt(&mut apic), Effect::BroadcastEndOfInterrupt(0x61));
    apic.take();
    assert_eq!(end_of_interrupt(&mut apic), Effect::EndOfInterrupt(Some(0x51)));
    assert_eq!(end_of_interrupt(&mut apic), Effect::EndOfInterrupt(None));
}

#[test]
fn broadcasts_are_suppressed_where_the_version_says_so_and_software_asks() {
    for (supported, asked, broadcast) in [(true, true, false), (true, false, true), (false, true, true)] {
        let mut apic = enabled(Features { eoi_suppression: supported, ..Features::CURRENT });
        assert_eq!(read(&mut apic, Register::VERSION) >> 24 & 1 != 0, supported);
        let value = 0x1ff | if asked { 1 << 12 } else { 0 };
        apic.write(Register::SPURIOUS_VECTOR, value, NOW).unwrap();
        assert_eq!(read(&mut apic, Register::SPURIOUS_VECTOR) == value, supported || !asked);
        apic.accept(Message { trigger: Trigger::Level, ..Message::fixed(0x61) });
        apic.take();
        let effect = end_of_interrupt(&mut apic);
        assert_eq!(effect == Effect::BroadcastEndOfInterrupt(0x61), broadcast, "{supported} {asked}");
    }
}

// The external controller.

#[test]
fn an_external_interrupt_ignores_the_processor_priority_and_is_never_in_service() {
    let mut apic = with_entry(Register::LVT_LINT0, 0x700);
    apic.write(Register::TASK_PRIORITY, 0xff, NOW).unwrap();
    apic.raise_local(LocalSource::Lint0);
    assert_eq!(apic.deliverable(), None);
    assert!(apic.take_ext_int());
    assert!(apic.take_ext_int(), "until the controller lowers its line");
    apic.lower_local(LocalSource::Lint0);
    assert!(!apic.take_ext_int());
    assert!(apic.isr().is_empty());
    assert_eq!(end_of_interrupt(&mut apic), Effect::EndOfInterrupt(None));
}

#[test]
fn a_stray_end_of_interrupt_ends_what_it_does_not_belong_to() {
    // Report 003: the handler of an ExtINT writes one while another handler is interrupted.
    let mut apic = with_entry(Register::LVT_LINT0, 0x700);
    apic.accept(Message::fixed(0x51));
    apic.take();
    apic.raise_local(LocalSource::Lint0);
    assert!(apic.take_ext_int());
    assert_eq!(end_of_interrupt(&mut apic), Effect::EndOfInterrupt(Some(0x51)));
}

#[test]
fn masking_disabling_and_waiting_hold_the_external_controller_back() {
    let mut apic = with_entry(Register::LVT_LINT0, 0x700);
    apic.raise_local(LocalSource::Lint0);
    let disabled = {
        let mut apic = apic.clone();
        apic.write(Register::SPURIOUS_VECTOR, 0xff, NOW).unwrap();
        apic
    };
    assert!(!disabled.ext_int_deliverable(), "a software-disabled APIC masks its entries");
    apic.accept(Message::edge(DeliveryMode::Init, 0));
    assert!(!apic.ext_int_deliverable());
}

#[test]
fn an_external_interrupt_by_message_is_taken_once() {
    let mut apic = enabled(Features::CURRENT);
    assert_eq!(apic.accept_ext_int(), Acceptance::Accepted);
    assert_eq!(apic.accept_ext_int(), Acceptance::Merged);
    assert!(apic.take_ext_int());
    assert!(!apic.take_ext_int());
    apic.write(Register::SPURIOUS_VECTOR, 0xff, NOW).unwrap();
    assert_eq!(apic.accept_ext_int(), Acceptance::Rejected(Rejection::SoftwareDisabled));
    apic.accept(Message::edge(DeliveryMode::Init, 0));
    assert_eq!(apic.accept_ext_int(), Acceptance::Rejected(Rejection::WaitingForStartUp));
}

#[test]
fn without_an_apic_the_pins_are_the_cpus_own() {
    let mut apic = enabled(Features::CURRENT);
    apic.write_base(0xfee0_0000).unwrap();
    assert_eq!(apic.raise_local(LocalSource::Lint0), Acceptance::Accepted);
    assert!(apic.take_ext_int());
    assert_eq!(apic.raise_local(LocalSource::Lint1), Acceptance::Accepted);
    assert!(apic.take_nmi());
    let gone = Acceptance::Rejected(Rejection::HardwareDisabled);
    assert_eq!(apic.raise_local(LocalSource::Thermal), gone);
    assert_eq!(apic.accept_ext_int(), gone);
}

// The P6 family.

#[test]
fn a_local_interrupt_without_room_is_held_at_its_source_until_there_is() {
    let mut apic = enabled(Features::P6);
    apic.write(Register::LVT_LINT1, 0x43, NOW).unwrap();
    apic.accept(Message::fixed(0x41));
    apic.accept(Message::fixed(0x42));
    assert_eq!(apic.raise_local(LocalSource::Lint1), Acceptance::Retry);
    assert_eq!(read(&mut apic, Register::LVT_LINT1), SEND_PENDING | 0x43);
    assert!(!apic.is_quiet());
    assert_eq!(apic.take(), Some(0x42));
    assert!(!apic.irr().contains(0x43), "what is in service takes room too");
    end_of_interrupt(&mut apic);
    assert_eq!(read(&mut apic, Register::LVT_LINT1), 0x43);
    assert_eq!(apic.take(), Some(0x43));
}

#[test]
fn a_level_without_room_that_has_gone_is_forgotten() {
    for gone in [false, true] {
        let mut apic = enabled(Features::P6);
        apic.write(Register::LVT_LINT0, LEVEL, NOW).unwrap();
        apic.accept(Message::fixed(0x42));
        apic.accept(Message::fixed(0x43));
        assert_eq!(apic.raise_local(LocalSource::Lint0), Acceptance::Retry);
        if gone {
            apic.lower_local(LocalSource::Lint0);
        }
        apic.take();
        end_of_interrupt(&mut apic);
        assert_eq!(apic.irr().contains(0x41), !gone);
        assert_eq!(read(&mut apic, Register::LVT_LINT0), LEVEL | if gone { 0 } else { REMOTE_IRR });
    }
}

#[test]
fn the_p6_family_has_five_entries() {
    let mut apic = enabled(Features::P6);
    assert_eq!(read(&mut apic, Register::VERSION), 0x0004_0011);
    for register in [Register::LVT_CMCI, Register::LVT_THERMAL] {
        apic.write(Register::ERROR_STATUS, 0, NOW).unwrap();
        apic.write(register, 0x41, NOW).unwrap();
        assert_eq!(apic.errors(), 1 << 7, "{register:?}");
    }
    assert_eq!(apic.raise_local(LocalSource::Thermal), Acceptance::Rejected(Rejection::Masked));
}
