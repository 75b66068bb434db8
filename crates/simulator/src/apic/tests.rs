//! One test per rule of the manuals, and random sequences against a smaller model.

use super::*;
use proptest::prelude::*;
use smpcall_local_apic::{Level, Shorthand};
use std::collections::BTreeSet;
use std::hash::DefaultHasher;

const NOW: Instant = Instant::from_nanos(1000);
const BROADCAST_X2APIC: u32 = u32::MAX;

fn apic(id: u32, mode: Mode) -> ApicModel {
    let mut apic = ApicModel::new(id, mode);
    apic.write(Register::SPURIOUS_VECTOR, 0x1ff, NOW).unwrap();
    apic
}

fn xapic() -> ApicModel {
    apic(3, Mode::XApic)
}

fn x2apic() -> ApicModel {
    apic(0x23, Mode::X2Apic)
}

fn write(apic: &mut ApicModel, register: Register, value: u32) -> Effect {
    apic.write(register, value, NOW).unwrap()
}

fn read(apic: &mut ApicModel, register: Register) -> u32 {
    apic.read(register, NOW).unwrap()
}

fn end_of_interrupt(apic: &mut ApicModel) -> Option<u8> {
    match write(apic, Register::END_OF_INTERRUPT, 0) {
        Effect::EndOfInterrupt(vector) => vector,
        other => panic!("an end of interrupt caused {other:?}"),
    }
}

/// What the error-status register says after the write that makes it readable.
fn error_status(apic: &mut ApicModel) -> u32 {
    write(apic, Register::ERROR_STATUS, 0);
    read(apic, Register::ERROR_STATUS)
}

fn cause(result: Result<impl fmt::Debug, Fault>) -> FaultCause {
    result.unwrap_err().cause
}

fn addressed(apic: &ApicModel, icr: Icr) -> bool {
    apic.is_addressed_by(&Command { icr, mode: apic.mode() }, false)
}

// Acceptance and priority.

#[test]
fn a_second_interrupt_to_a_pending_vector_merges() {
    let mut apic = xapic();
    assert_eq!(apic.accept(Message::fixed(0xfb)), Acceptance::Accepted);
    assert_eq!(apic.accept(Message::fixed(0xfb)), Acceptance::Merged);
    assert_eq!(apic.take(), Some(0xfb));
    assert_eq!(apic.take(), None);
}

#[test]
fn an_interrupt_to_a_vector_in_service_waits_for_its_end_and_is_taken_once_more() {
    let mut apic = xapic();
    apic.accept(Message::fixed(0xfb));
    apic.take();
    assert_eq!(apic.accept(Message::fixed(0xfb)), Acceptance::Accepted);
    assert_eq!(apic.accept(Message::fixed(0xfb)), Acceptance::Merged);
    assert_eq!(apic.take(), None);
    assert_eq!(end_of_interrupt(&mut apic), Some(0xfb));
    assert_eq!(apic.take(), Some(0xfb));
    assert_eq!(end_of_interrupt(&mut apic), Some(0xfb));
    assert_eq!(apic.take(), None);
}

#[test]
fn the_highest_vector_is_taken_first_and_a_higher_class_interrupts_a_lower_one() {
    let mut apic = xapic();
    apic.accept(Message::fixed(0x41));
    apic.accept(Message::fixed(0x51));
    assert_eq!(apic.take(), Some(0x51));
    apic.accept(Message::fixed(0x5f));
    assert_eq!(apic.take(), None, "the same class does not nest");
    apic.accept(Message::fixed(0x60));
    assert_eq!(apic.take(), Some(0x60));
    assert_eq!(apic.isr().iter().collect::<Vec<_>>(), [0x51, 0x60]);
    assert_eq!(end_of_interrupt(&mut apic), Some(0x60), "the highest in service ends first");
    assert_eq!(end_of_interrupt(&mut apic), Some(0x51));
}

#[test]
fn the_processor_priority_is_the_higher_of_task_priority_and_service() {
    let mut apic = xapic();
    write(&mut apic, Register::TASK_PRIORITY, 0x53);
    assert_eq!(read(&mut apic, Register::PROCESSOR_PRIORITY), 0x53);
    apic.accept(Message::fixed(0x5f));
    assert_eq!(apic.deliverable(), None);
    apic.accept(Message::fixed(0x61));
    assert_eq!(apic.take(), Some(0x61));
    assert_eq!(read(&mut apic, Register::PROCESSOR_PRIORITY), 0x60, "the class, without the low bits");
    // Equal classes: the task priority counts, with its low bits.
    write(&mut apic, Register::TASK_PRIORITY, 0x65);
    assert_eq!(read(&mut apic, Register::PROCESSOR_PRIORITY), 0x65);
}

#[test]
fn an_end_of_interrupt_with_nothing_in_service_is_harmless() {
    let mut apic = xapic();
    apic.accept(Message::fixed(0x40));
    assert_eq!(end_of_interrupt(&mut apic), None);
    assert_eq!(apic.take(), Some(0x40));
}

#[test]
fn a_stale_in_service_bit_blocks_its_class_and_all_below() {
    let mut apic = xapic();
    apic.accept(Message::fixed(0x81));
    apic.take();
    apic.accept(Message::fixed(0x8f));
    apic.accept(Message::fixed(0x31));
    assert_eq!(apic.deliverable(), None);
    end_of_interrupt(&mut apic);
    assert_eq!(apic.deliverable(), Some(0x8f));
}

#[test]
fn the_trigger_mode_of_the_last_accepted_interrupt_is_remembered() {
    let mut apic = xapic();
    apic.accept(Message { trigger: Trigger::Level, ..Message::fixed(0x47) });
    assert_eq!(read(&mut apic, Register::trigger_mode(2)), 1 << 7);
    apic.accept(Message::fixed(0x47));
    assert_eq!(read(&mut apic, Register::trigger_mode(2)), 0);
}

#[test]
fn request_and_service_bits_are_read_from_eight_words_each() {
    let mut apic = xapic();
    apic.accept(Message::fixed(0xff));
    assert_eq!(read(&mut apic, Register::interrupt_request(7)), 1 << 31);
    apic.take();
    apic.accept(Message::fixed(0x20));
    assert_eq!(read(&mut apic, Register::in_service(7)), 1 << 31);
    assert_eq!(read(&mut apic, Register::interrupt_request(7)), 0);
    assert_eq!(read(&mut apic, Register::interrupt_request(1)), 1);
}

// Illegal vectors and the error status.

#[test]
fn an_illegal_fixed_vector_in_the_local_vector_table_is_an_error_masked_or_not() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        for entry in [0x0f, LVT_MASKED] {
            let mut apic = apic(3, mode);
            write(&mut apic, Register::LVT_LINT0, entry);
            assert_eq!(error_status(&mut apic), 1 << 6, "{entry:#x}");
        }
        let mut apic = apic(3, mode);
        write(&mut apic, Register::LVT_LINT0, 0x10);
        // An NMI has no vector.
        write(&mut apic, Register::LVT_LINT1, 0x400);
        assert_eq!(error_status(&mut apic), 0);
    }
}

#[test]
fn the_broadcast_as_logical_destination_reaches_also_who_has_no_logical_identifier() {
    let apic = xapic();
    assert!(addressed(&apic, Icr::logical(DeliveryMode::Fixed, 0x40, 0xff)));
    assert!(!addressed(&apic, Icr::logical(DeliveryMode::Fixed, 0x40, 0xfe)));
}

#[test]
fn arbitration_is_by_priority_then_identifier_and_last_come_those_that_would_not_accept() {
    let with = |id, priority| {
        let mut apic = apic(id, Mode::XApic);
        write(&mut apic, Register::TASK_PRIORITY, priority);
        apic.arbitration_order()
    };
    assert!(with(4, 0x20) < with(3, 0x30));
    assert!(with(3, 0x20) < with(4, 0x20));
    let disabled = ApicModel::new(1, Mode::XApic).arbitration_order();
    assert!(with(4, 0xff) < disabled);
    let mut in_service = apic(1, Mode::XApic);
    in_service.accept(Message::fixed(0x51));
    in_service.take();
    assert!(with(4, 0x40) < in_service.arbitration_order());
}

#[test]
fn an_illegal_vector_is_neither_sent_nor_received() {
    let mut apic = xapic();
    let effect = write(&mut apic, Register::ICR_LOW, 0x400f);
    assert_eq!(effect, Effect::None);
    assert_eq!(error_status(&mut apic), 1 << 5);
    assert_eq!(apic.accept(Message::fixed(15)), Acceptance::Rejected(Rejection::IllegalVector));
    assert_eq!(error_status(&mut apic), 1 << 6);
}

#[test]
fn the_error_status_changes_by_being_written_only() {
    let mut apic = xapic();
    apic.accept(Message::fixed(1));
    assert_eq!(read(&mut apic, Register::ERROR_STATUS), 0, "not yet made readable");
    assert_eq!(error_status(&mut apic), 1 << 6);
    assert_eq!(read(&mut apic, Register::ERROR_STATUS), 1 << 6, "reading clears nothing");
    assert_eq!(error_status(&mut apic), 0);
}

#[test]
fn the_error_interrupt_is_raised_once_until_the_status_is_written() {
    let mut apic = xapic();
    write(&mut apic, Register::LVT_ERROR, 0xfe);
    apic.accept(Message::fixed(1));
    assert_eq!(apic.take(), Some(0xfe));
    end_of_interrupt(&mut apic);
    apic.accept(Message::fixed(2));
    assert_eq!(apic.take(), None);
    write(&mut apic, Register::ERROR_STATUS, 0);
    apic.accept(Message::fixed(3));
    assert_eq!(apic.take(), Some(0xfe));
}

#[test]
fn a_start_up_or_nmi_command_may_have_any_vector_field() {
    let mut apic = xapic();
    for low in [0x4402, 0x4601] {
        assert!(matches!(write(&mut apic, Register::ICR_LOW, low), Effect::Dispatch(_)));
    }
    assert_eq!(error_status(&mut apic), 0);
}

// Software disable, INIT, start-up, NMI.

#[test]
fn after_power_up_the_apic_is_disabled_and_accepts_no_fixed_interrupt() {
    let mut apic = ApicModel::new(0, Mode::XApic);
    assert_eq!(read(&mut apic, Register::SPURIOUS_VECTOR), 0xff);
    assert_eq!(apic.accept(Message::fixed(0x40)), Acceptance::Rejected(Rejection::SoftwareDisabled));
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Nmi, 0)), Acceptance::Accepted);
    assert!(
        matches!(write(&mut apic, Register::ICR_LOW, 0xc_4040), Effect::Dispatch(_)),
        "it may still send"
    );
}

#[test]
fn disabling_holds_what_is_pending_and_masks_the_local_vector_table() {
    let mut apic = xapic();
    write(&mut apic, Register::LVT_TIMER, 0x40);
    apic.accept(Message::fixed(0x50));
    write(&mut apic, Register::SPURIOUS_VECTOR, 0xff);
    assert_eq!(apic.deliverable(), None);
    assert!(apic.irr().contains(0x50));
    assert_eq!(read(&mut apic, Register::LVT_TIMER), LVT_MASKED | 0x40);
    write(&mut apic, Register::LVT_TIMER, 0x41);
    assert_eq!(read(&mut apic, Register::LVT_TIMER), LVT_MASKED | 0x41, "the mask cannot be cleared");
    write(&mut apic, Register::SPURIOUS_VECTOR, 0x1ff);
    assert_eq!(apic.take(), Some(0x50));
    assert_eq!(read(&mut apic, Register::LVT_TIMER), LVT_MASKED | 0x41, "enabling unmasks nothing");
}

#[test]
fn init_clears_all_but_the_identifier_and_waits_for_start_up() {
    let mut apic = xapic();
    write(&mut apic, Register::LOGICAL_DESTINATION, 0x0800_0000);
    write(&mut apic, Register::TASK_PRIORITY, 0x20);
    write(&mut apic, Register::ICR_LOW, 0x40fb);
    apic.accept(Message::fixed(0x51));
    apic.take();
    apic.accept(Message::fixed(0x61));
    apic.accept(Message::edge(DeliveryMode::Nmi, 0));
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Init, 0)), Acceptance::Accepted);
    assert!(apic.is_quiet());
    assert!(apic.is_waiting_for_start_up());
    assert_eq!(apic.id(), ApicId(3));
    for (register, value) in [
        (Register::ID, 3 << 24),
        (Register::LOGICAL_DESTINATION, 0),
        (Register::DESTINATION_FORMAT, 0xffff_ffff),
        (Register::TASK_PRIORITY, 0),
        (Register::ICR_LOW, 0),
        (Register::SPURIOUS_VECTOR, 0xff),
        (Register::LVT_ERROR, LVT_MASKED),
    ] {
        assert_eq!(read(&mut apic, register), value, "{register:?}");
    }
}

const LVT_MASKED: u32 = 1 << 16;

#[test]
fn waiting_for_start_up_drops_fixed_interrupts_and_blocks_nmis() {
    let mut apic = xapic();
    apic.accept(Message::edge(DeliveryMode::Init, 0));
    let waiting = Acceptance::Rejected(Rejection::WaitingForStartUp);
    assert_eq!(apic.accept(Message::fixed(0x40)), waiting);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Smi, 0)), waiting);
    apic.accept(Message::edge(DeliveryMode::Nmi, 0));
    assert!(!apic.nmi_deliverable());
    assert!(!apic.take_nmi());
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), Acceptance::Accepted);
    assert!(apic.take_nmi());
}

#[test]
fn a_start_up_message_to_a_running_cpu_is_ignored() {
    let mut apic = xapic();
    let refused = Acceptance::Rejected(Rejection::NotWaitingForStartUp);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), refused);
    apic.accept(Message::edge(DeliveryMode::Init, 0));
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), Acceptance::Accepted);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), refused, "the second of two");
}

#[test]
fn one_nmi_is_latched_while_another_is_in_progress() {
    let nmi = Message::edge(DeliveryMode::Nmi, 0);
    let mut apic = xapic();
    assert_eq!(apic.accept(nmi), Acceptance::Accepted);
    assert!(apic.take_nmi());
    assert_eq!(apic.accept(nmi), Acceptance::Accepted);
    assert_eq!(apic.accept(nmi), Acceptance::Merged);
    assert!(!apic.take_nmi());
    apic.return_from_nmi();
    assert!(apic.take_nmi());
    apic.return_from_nmi();
    assert!(!apic.take_nmi());
}

#[test]
fn an_nmi_ignores_the_processor_priority_and_is_never_in_service() {
    let mut apic = xapic();
    write(&mut apic, Register::TASK_PRIORITY, 0xff);
    apic.accept(Message::edge(DeliveryMode::Nmi, 2));
    assert!(apic.take_nmi());
    assert!(apic.isr().is_empty());
    assert_eq!(end_of_interrupt(&mut apic), None);
}

// Addressing.

#[test]
fn physical_destinations_are_one_identifier_or_all() {
    let physical = |destination| Icr::physical(DeliveryMode::Fixed, 0x40, destination);
    let apic = xapic();
    assert!(addressed(&apic, physical(3)));
    assert!(!addressed(&apic, physical(2)));
    assert!(addressed(&apic, physical(0xff)));
    let apic = x2apic();
    assert!(addressed(&apic, physical(0x23)));
    assert!(!addressed(&apic, physical(0xff)), "an ordinary identifier in x2APIC mode");
    assert!(addressed(&apic, physical(BROADCAST_X2APIC)));
}

#[test]
fn the_flat_model_has_one_bit_for_each_apic() {
    let logical = |destination| Icr::logical(DeliveryMode::Fixed, 0x40, destination);
    let mut apic = xapic();
    assert!(!addressed(&apic, logical(0x08)), "no logical identifier was given");
    write(&mut apic, Register::LOGICAL_DESTINATION, 0x0800_0000);
    assert!(addressed(&apic, logical(0x08)));
    assert!(addressed(&apic, logical(0x0c)));
    assert!(!addressed(&apic, logical(0xf7)));
    assert!(addressed(&apic, logical(0xff)));
}

#[test]
fn the_cluster_model_has_a_cluster_and_four_bits() {
    let logical = |destination| Icr::logical(DeliveryMode::Fixed, 0x40, destination);
    let mut apic = xapic();
    write(&mut apic, Register::DESTINATION_FORMAT, 0);
    write(&mut apic, Register::LOGICAL_DESTINATION, 0x2400_0000);
    assert!(addressed(&apic, logical(0x24)));
    assert!(addressed(&apic, logical(0x2f)));
    assert!(!addressed(&apic, logical(0x2b)));
    assert!(!addressed(&apic, logical(0x14)));
    assert!(addressed(&apic, logical(0xff)), "broadcast");
    assert!(addressed(&apic, logical(0xf4)), "all clusters");
    assert!(!addressed(&apic, logical(0xf2)));
}

#[test]
fn an_x2apic_derives_its_logical_identifier() {
    let logical = |destination| Icr::logical(DeliveryMode::Fixed, 0x40, destination);
    let mut apic = x2apic();
    assert_eq!(read(&mut apic, Register::LOGICAL_DESTINATION), 0x0002_0008);
    assert!(addressed(&apic, logical(0x0002_0008)));
    assert!(addressed(&apic, logical(0x0002_ffff)));
    assert!(!addressed(&apic, logical(0x0002_fff7)));
    assert!(!addressed(&apic, logical(0x0001_0008)));
    assert!(addressed(&apic, logical(BROADCAST_X2APIC)));
}

#[test]
fn shorthands_need_no_address() {
    let addressed = |shorthand, sender_is_self| {
        let icr = Icr::shorthand(DeliveryMode::Fixed, 0x40, shorthand);
        xapic().is_addressed_by(&Command { icr, mode: Mode::XApic }, sender_is_self)
    };
    assert!(addressed(Shorthand::SelfOnly, true) && !addressed(Shorthand::SelfOnly, false));
    assert!(addressed(Shorthand::All, true) && addressed(Shorthand::All, false));
    assert!(!addressed(Shorthand::AllButSelf, true) && addressed(Shorthand::AllButSelf, false));
}

// The interrupt command register.

#[test]
fn the_low_word_sends_to_the_destination_in_the_high_one() {
    let mut apic = xapic();
    assert_eq!(write(&mut apic, Register::ICR_HIGH, 0x0500_0000), Effect::None);
    let icr = Icr::physical(DeliveryMode::Fixed, 0xfb, 5);
    let command = Command { icr, mode: Mode::XApic };
    assert_eq!(write(&mut apic, Register::ICR_LOW, 0x40fb), Effect::Dispatch(command));
    assert_eq!(command.message(), Message::fixed(0xfb));
    assert_eq!(read(&mut apic, Register::ICR_HIGH), 0x0500_0000);
    assert_eq!(read(&mut apic, Register::ICR_LOW), 0x40fb);
}

#[test]
fn the_delivery_status_says_pending_until_the_dispatch_is_over() {
    let at = |nanos| Instant::from_nanos(nanos);
    let mut apic = xapic();
    apic.set_dispatch_time(Duration::from_nanos(300));
    apic.write(Register::ICR_LOW, 0xc_40fb, at(1000)).unwrap();
    assert_eq!(apic.icr_idle_at(), at(1300));
    assert_eq!(apic.read(Register::ICR_LOW, at(1299)), Ok(0xc_50fb));
    assert_eq!(apic.read(Register::ICR_LOW, at(1300)), Ok(0xc_40fb));
}

#[test]
fn a_guest_cannot_write_the_delivery_status() {
    let mut apic = xapic();
    write(&mut apic, Register::ICR_LOW, 0xc_50fb);
    assert_eq!(read(&mut apic, Register::ICR_LOW), 0xc_40fb);
}

#[test]
fn a_stuck_delivery_status_swallows_commands_until_it_heals() {
    let at = |nanos| Instant::from_nanos(nanos);
    let mut apic = xapic();
    apic.set_icr_fault(Some(IcrFault::StuckUntil(at(5000))));
    assert_eq!(apic.write(Register::ICR_LOW, 0xc_40fb, at(1000)), Ok(Effect::None));
    assert_eq!(apic.read(Register::ICR_LOW, at(4999)), Ok(0xc_50fb));
    assert_eq!(apic.read(Register::ICR_LOW, at(5000)), Ok(0xc_40fb));
    assert!(matches!(apic.write(Register::ICR_LOW, 0xc_40fb, at(5000)), Ok(Effect::Dispatch(_))));
}

#[test]
fn a_delivery_status_stuck_until_rewritten_sends_what_is_written_again() {
    let mut apic = xapic();
    apic.set_icr_fault(Some(IcrFault::StuckUntilRewritten));
    assert_eq!(apic.icr_idle_at(), Instant::from_nanos(u64::MAX));
    assert!(matches!(write(&mut apic, Register::ICR_LOW, 0xc_40fb), Effect::Dispatch(_)));
    assert_eq!(read(&mut apic, Register::ICR_LOW), 0xc_40fb);
}

#[test]
fn an_x2apic_is_never_busy_even_if_stuck() {
    let mut apic = x2apic();
    apic.set_dispatch_time(Duration::from_secs(1));
    apic.set_icr_fault(Some(IcrFault::StuckUntilRewritten));
    apic.write_icr(0x5_0000_40fb, NOW).unwrap();
    assert_eq!(apic.icr_idle_at(), Instant::default());
    assert_eq!(apic.read_icr(NOW), 0x5_0000_40fb);
}

#[test]
fn invalid_combinations_send_nothing() {
    let sends = |mode: Mode, icr: Icr| {
        let bits = icr.encode(mode).unwrap();
        let effect = match mode {
            Mode::XApic => xapic().write(Register::ICR_LOW, bits as u32, NOW),
            Mode::X2Apic => x2apic().write_icr(bits, NOW),
        };
        effect != Ok(Effect::None)
    };
    for mode in [Mode::XApic, Mode::X2Apic] {
        for delivery in DeliveryMode::ALL {
            let vector = 0x40;
            let fixed = delivery == DeliveryMode::Fixed;
            let exists = mode == Mode::XApic || delivery != DeliveryMode::LowestPriority;
            assert_eq!(sends(mode, Icr::physical(delivery, vector, 1)), exists);
            assert_eq!(sends(mode, Icr::shorthand(delivery, vector, Shorthand::AllButSelf)), exists);
            assert_eq!(sends(mode, Icr::shorthand(delivery, vector, Shorthand::SelfOnly)), fixed);
            assert_eq!(sends(mode, Icr::shorthand(delivery, vector, Shorthand::All)), fixed);
        }
        let init = Icr::physical(DeliveryMode::Init, 0, 1);
        assert!(!sends(mode, Icr { level: Level::Deassert, trigger: Trigger::Level, ..init }));
    }
    assert_eq!(write(&mut xapic(), Register::ICR_LOW, 0x4340), Effect::None, "a reserved delivery mode");
}

// What differs between the modes.

#[test]
fn an_x2apic_faults_on_what_it_does_not_have() {
    let mut apic = x2apic();
    for register in [
        Register::DESTINATION_FORMAT,
        Register::ICR_HIGH,
        Register::ARBITRATION_PRIORITY,
        Register::REMOTE_READ,
        Register::at(0).unwrap(),
        Register::at(0x3a0).unwrap(),
    ] {
        assert_eq!(cause(apic.read(register, NOW)), FaultCause::NoSuchRegister, "{register:?}");
        assert_eq!(cause(apic.write(register, 0, NOW)), FaultCause::NoSuchRegister, "{register:?}");
    }
    assert_eq!(error_status(&mut apic), 0, "faults are no APIC errors");
}

#[test]
fn an_x2apic_faults_on_the_wrong_direction() {
    let mut apic = x2apic();
    for register in [Register::END_OF_INTERRUPT, Register::SELF_IPI] {
        assert_eq!(cause(apic.read(register, NOW)), FaultCause::WriteOnly, "{register:?}");
    }
    for register in [
        Register::ID,
        Register::VERSION,
        Register::PROCESSOR_PRIORITY,
        Register::LOGICAL_DESTINATION,
        Register::in_service(0),
        Register::trigger_mode(0),
        Register::interrupt_request(0),
        Register::TIMER_CURRENT_COUNT,
    ] {
        assert_eq!(cause(apic.write(register, 0, NOW)), FaultCause::ReadOnly, "{register:?}");
    }
}

#[test]
fn an_x2apic_faults_on_reserved_bits_and_stays_as_it_was() {
    let mut apic = x2apic();
    apic.accept(Message::fixed(0x40));
    apic.take();
    for (register, bits) in [
        (Register::TASK_PRIORITY, 0x100),
        (Register::END_OF_INTERRUPT, 1),
        (Register::ERROR_STATUS, 1),
        (Register::SPURIOUS_VECTOR, 1 << 12),
        (Register::LVT_ERROR, 1 << 8),
        (Register::SELF_IPI, 0x100),
        (Register::TIMER_DIVIDE, 1 << 2),
    ] {
        let reserved = FaultCause::ReservedBits(u64::from(bits));
        assert_eq!(cause(apic.write(register, bits, NOW)), reserved, "{register:?}");
    }
    assert!(apic.isr().contains(0x40));
    for bit in [13, 16, 17, 20, 31] {
        let reserved = FaultCause::ReservedBits(1 << bit);
        assert_eq!(cause(apic.write_icr(0x4040 | 1 << bit, NOW)), reserved, "ICR bit {bit}");
    }
    assert_eq!(apic.read_icr(NOW), 0);
    assert!(
        matches!(apic.write_icr(0x5040, NOW), Ok(Effect::Dispatch(_))),
        "the former status bit is ignored"
    );
}

#[test]
fn an_xapic_notes_accesses_to_registers_it_does_not_have() {
    let mut apic = xapic();
    assert_eq!(apic.read(Register::SELF_IPI, NOW), Ok(0));
    assert_eq!(error_status(&mut apic), 1 << 7);
    assert_eq!(apic.write(Register::SELF_IPI, 0x40, NOW), Ok(Effect::None));
    assert_eq!(error_status(&mut apic), 1 << 7);
    assert_eq!(cause(apic.write_icr(0x4040, NOW)), FaultCause::NoSuchRegister);
}

#[test]
fn an_xapic_ignores_writes_to_what_is_read_only() {
    let mut apic = xapic();
    for register in [Register::ID, Register::VERSION, Register::in_service(7), Register::PROCESSOR_PRIORITY] {
        let before = read(&mut apic, register);
        assert_eq!(write(&mut apic, register, 0x5500_0000), Effect::None);
        assert_eq!(read(&mut apic, register), before, "{register:?}");
    }
    assert_eq!(error_status(&mut apic), 0);
}

#[test]
fn the_self_ipi_register_sends_a_fixed_interrupt_to_the_sender() {
    let mut apic = x2apic();
    let Effect::Dispatch(command) = write(&mut apic, Register::SELF_IPI, 0x40) else {
        panic!("nothing was sent")
    };
    assert!(apic.is_addressed_by(&command, true) && !apic.is_addressed_by(&command, false));
    assert_eq!(command.message(), Message::fixed(0x40));
    assert_eq!(write(&mut apic, Register::SELF_IPI, 0x0f), Effect::None);
    assert_eq!(error_status(&mut apic), 1 << 5);
}

#[test]
fn identifiers_are_eight_bits_at_the_top_or_thirty_two() {
    assert_eq!(read(&mut xapic(), Register::ID), 0x0300_0000);
    assert_eq!(read(&mut apic(0x1_0023, Mode::X2Apic), Register::ID), 0x1_0023);
}

#[test]
#[should_panic(expected = "xAPIC cannot have the identifier 0xff")]
fn nobody_has_the_broadcast_identifier() {
    ApicModel::new(0xff, Mode::XApic);
}

// The hash of the state.

fn hash(apic: &ApicModel, now: Instant) -> u64 {
    let mut hasher = DefaultHasher::new();
    apic.hash_state(&mut hasher, now);
    hasher.finish()
}

#[test]
fn the_hash_forgets_the_past_and_sees_everything_else() {
    let later = Instant::from_nanos(9000);
    let fresh = xapic();
    let mut apic = xapic();
    apic.set_dispatch_time(Duration::from_nanos(300));
    let idle = hash(&apic, NOW);
    assert_ne!(hash(&fresh, NOW), idle, "the dispatch time");
    write(&mut apic, Register::ICR_LOW, 0xc_40fb);
    let busy = hash(&apic, NOW);
    let over = hash(&apic, later);
    assert_ne!(busy, over);
    apic.write(Register::ICR_LOW, 0xc_40fb, later).unwrap();
    assert_eq!(hash(&apic, later), busy, "the same state at another time");
    assert_eq!(hash(&apic, Instant::from_nanos(99_000)), over);

    let changes: [fn(&mut ApicModel); 6] = [
        |apic| {
            apic.accept(Message::fixed(0x40));
        },
        |apic| {
            apic.accept(Message::fixed(0x40));
            apic.take();
        },
        |apic| {
            apic.accept(Message::edge(DeliveryMode::Nmi, 0));
        },
        |apic| {
            apic.accept(Message::fixed(1));
        },
        |apic| apic.set_icr_fault(Some(IcrFault::StuckUntilRewritten)),
        |apic| {
            write(apic, Register::TASK_PRIORITY, 0x10);
        },
    ];
    let mut seen = BTreeSet::from([hash(&fresh, NOW)]);
    for change in changes {
        let mut apic = fresh.clone();
        change(&mut apic);
        assert!(seen.insert(hash(&apic, NOW)));
    }
}

// Random sequences against a smaller model: sets of numbers and the rules in one line each.

#[derive(Clone, Debug)]
enum Step {
    Accept(u8),
    Take,
    EndOfInterrupt,
    TaskPriority(u8),
    Nmi,
    TakeNmi,
    ReturnFromNmi,
}

fn step() -> impl Strategy<Value = Step> {
    // Few vectors, some of the same class, so that they meet.
    let vector = prop_oneof![Just(0x0f), Just(0x10), 0x30..0x34u8, 0x40..0x44u8, Just(0xfb), Just(0xff)];
    prop_oneof![
        4 => vector.prop_map(Step::Accept),
        3 => Just(Step::Take),
        3 => Just(Step::EndOfInterrupt),
        1 => any::<u8>().prop_map(Step::TaskPriority),
        1 => Just(Step::Nmi),
        1 => Just(Step::TakeNmi),
        1 => Just(Step::ReturnFromNmi),
    ]
}

proptest! {
    #[test]
    fn it_behaves_like_sets_of_vectors(steps in prop::collection::vec(step(), 0..200), x2 in any::<bool>()) {
        let mut apic = if x2 { x2apic() } else { xapic() };
        let (mut pending, mut in_service) = (BTreeSet::new(), BTreeSet::new());
        let mut task_priority = 0;
        let (mut nmi_latched, mut nmi_running) = (false, false);
        for step in steps {
            match step {
                Step::Accept(vector) => {
                    let expected = match vector {
                        0..16 => Acceptance::Rejected(Rejection::IllegalVector),
                        _ if pending.insert(vector) => Acceptance::Accepted,
                        _ => Acceptance::Merged,
                    };
                    prop_assert_eq!(apic.accept(Message::fixed(vector)), expected);
                }
                Step::Take => {
                    let barrier = in_service.last().map_or(0, |vector| vector >> 4).max(task_priority >> 4);
                    let expected = pending.last().copied().filter(|vector| vector >> 4 > barrier);
                    prop_assert_eq!(apic.deliverable(), expected);
                    prop_assert_eq!(apic.take(), expected);
                    if let Some(vector) = expected {
                        pending.remove(&vector);
                        prop_assert!(in_service.insert(vector), "{:#x} was in service twice", vector);
                    }
                }
                Step::EndOfInterrupt => prop_assert_eq!(end_of_interrupt(&mut apic), in_service.pop_last()),
                Step::TaskPriority(priority) => {
                    task_priority = priority;
                    write(&mut apic, Register::TASK_PRIORITY, u32::from(priority));
                }
                Step::Nmi => {
                    let merged = apic.accept(Message::edge(DeliveryMode::Nmi, 0)) == Acceptance::Merged;
                    prop_assert_eq!(merged, nmi_latched);
                    nmi_latched = true;
                }
                Step::TakeNmi => {
                    let taken = nmi_latched && !nmi_running;
                    prop_assert_eq!(apic.take_nmi(), taken);
                    if taken {
                        (nmi_latched, nmi_running) = (false, true);
                    }
                }
                Step::ReturnFromNmi => {
                    apic.return_from_nmi();
                    nmi_running = false;
                }
            }
            prop_assert!(apic.irr().iter().eq(pending.iter().copied()));
            prop_assert!(apic.isr().iter().eq(in_service.iter().copied()));
        }
    }

    #[test]
    fn no_access_panics_and_no_access_accepts_an_interrupt(
        accesses in prop::collection::vec((0..0x40u16, any::<Option<u32>>(), any::<u64>()), 0..100), x2 in any::<bool>()
    ) {
        let mut apic = if x2 { x2apic() } else { xapic() };
        for (index, value, time) in accesses {
            let register = Register::at(index * 16).unwrap();
            let now = Instant::from_nanos(time);
            // An unmasked error entry is the one local source of interrupts.
            match value {
                Some(value) if register != Register::LVT_ERROR => {
                    let effect = apic.write(register, value, now);
                    if let Ok(Effect::Dispatch(command)) = effect {
                        prop_assert!(!command.icr.delivery_mode.has_interrupt_vector() || command.icr.vector >= 16);
                    }
                }
                _ => {
                    let read = apic.read(register, now);
                    prop_assert_eq!(read, apic.read(register, now));
                }
            }
            prop_assert!(apic.is_quiet());
        }
    }
}
