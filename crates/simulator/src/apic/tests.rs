//! One test per rule of the manuals: acceptance, errors, disabling, resets, and the hash of the state.

mod addressing;
mod commands;
mod random;

use super::*;
use core::fmt;
use smpcall_local_apic::{DeliveryMode, Icr, Level, Register, Shorthand, Trigger};
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
        apic.arbitration_order(0x51)
    };
    assert!(with(4, 0x20) < with(3, 0x30));
    assert!(with(3, 0x20) < with(4, 0x20));
    let disabled = ApicModel::new(1, Mode::XApic).arbitration_order(0x51);
    assert!(with(4, 0xff) < disabled);
    let mut in_service = apic(1, Mode::XApic);
    in_service.accept(Message::fixed(0x51));
    in_service.take();
    assert!(with(4, 0x40) < in_service.arbitration_order(0x40));
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

// Interrupts that disappear.

#[test]
fn an_interrupt_that_disappears_before_it_is_acknowledged_is_spurious_and_not_in_service() {
    let disappear: [fn(&mut ApicModel); 3] = [
        |apic| {
            write(apic, Register::TASK_PRIORITY, 0x40);
        },
        |apic| {
            write(apic, Register::SPURIOUS_VECTOR, 0xfd);
        },
        |apic| {
            apic.write_base(0xfee0_0000).unwrap();
        },
    ];
    for (disappear, vector) in disappear.into_iter().zip([0xfe, 0xfd, 0xff]) {
        let mut apic = xapic();
        write(&mut apic, Register::SPURIOUS_VECTOR, 0x1fe);
        apic.accept(Message::fixed(0x41));
        assert_eq!(apic.deliverable(), Some(0x41));
        disappear(&mut apic);
        assert_eq!(apic.acknowledge(), Acknowledged::Spurious(vector));
        assert!(apic.isr().is_empty());
    }
    let mut apic = xapic();
    apic.accept(Message::fixed(0x41));
    assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x41));
    assert!(apic.isr().contains(0x41));
}

#[test]
fn a_spurious_interrupt_leaves_the_pending_one_where_it_is() {
    let mut apic = xapic();
    apic.accept(Message::fixed(0x41));
    write(&mut apic, Register::TASK_PRIORITY, 0x40);
    assert_eq!(apic.acknowledge(), Acknowledged::Spurious(0xff));
    write(&mut apic, Register::TASK_PRIORITY, 0);
    assert_eq!(apic.acknowledge(), Acknowledged::Vector(0x41));
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
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Init, 0)), Acceptance::Reset);
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
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), Acceptance::Started { page: 8 });
    assert!(apic.take_nmi());
}

#[test]
fn a_start_up_message_to_a_running_cpu_is_ignored() {
    let mut apic = xapic();
    let refused = Acceptance::Rejected(Rejection::NotWaitingForStartUp);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), refused);
    apic.accept(Message::edge(DeliveryMode::Init, 0));
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), Acceptance::Started { page: 8 });
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), refused, "the second of two");
}

#[test]
fn disabled_by_software_it_takes_what_needs_no_vector() {
    let mut apic = xapic();
    write(&mut apic, Register::SPURIOUS_VECTOR, 0xff);
    for mode in [DeliveryMode::Fixed, DeliveryMode::LowestPriority] {
        let refused = Acceptance::Rejected(Rejection::SoftwareDisabled);
        assert_eq!(apic.accept(Message::edge(mode, 0x40)), refused);
    }
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Smi, 0)), Acceptance::Accepted);
    assert_eq!(apic.smis(), 1);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Nmi, 0)), Acceptance::Accepted);
    assert!(apic.take_nmi());
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Init, 0)), Acceptance::Reset);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), Acceptance::Started { page: 8 });
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

    let changes: [fn(&mut ApicModel); 15] = [
        |apic| apic.offered_again_at(Instant::from_nanos(1200)),
        |apic| apic.set_bootstrap(true),
        |apic| {
            apic.raise_local(LocalSource::Lint0);
        },
        |apic| {
            apic.raise_local(LocalSource::Lint1);
        },
        |apic| {
            apic.accept_ext_int();
        },
        |apic| apic.write_base(0xfee0_0000).unwrap(),
        |apic| apic.write_base(0xfed4_0800).unwrap(),
        |apic| {
            write(apic, Register::TIMER_INITIAL_COUNT, 99);
        },
        |apic| {
            write(apic, Register::LVT_TIMER, 1 << 18 | 0x40);
            apic.write_tsc_deadline(5000, NOW);
        },
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
