//! What the P6 family does otherwise.

use smpcall_local_apic::{DeliveryMode, Mode, Register};
use smpcall_machine::Instant;

use super::*;
use crate::apic::{Acceptance, ApicModel, Effect, Message};

const NOW: Instant = Instant::from_nanos(1000);

fn p6(id: u32) -> ApicModel {
    let mut apic = ApicModel::with_features(id, Mode::XApic, Features::P6);
    apic.write(Register::SPURIOUS_VECTOR, 0x1ff, NOW).unwrap();
    apic
}

fn read(apic: &mut ApicModel, register: Register) -> u32 {
    apic.read(register, NOW).unwrap()
}

fn end_of_interrupt(apic: &mut ApicModel) {
    apic.write(Register::END_OF_INTERRUPT, 0, NOW).unwrap();
}

fn accept(apic: &mut ApicModel, vector: u8) -> Acceptance {
    apic.accept(Message::fixed(vector))
}

#[test]
fn a_priority_class_has_room_for_two() {
    let mut apic = p6(0);
    assert_eq!(accept(&mut apic, 0x41), Acceptance::Accepted);
    assert_eq!(accept(&mut apic, 0x42), Acceptance::Accepted);
    assert_eq!(accept(&mut apic, 0x43), Acceptance::Retry);
    assert_eq!(accept(&mut apic, 0x41), Acceptance::Retry, "the pending ones too");
    assert_eq!(accept(&mut apic, 0x51), Acceptance::Accepted, "another class has room of its own");
    assert!(!apic.irr().contains(0x43));
    apic.take();
    end_of_interrupt(&mut apic);
    assert_eq!(apic.take(), Some(0x42));
    assert_eq!(accept(&mut apic, 0x43), Acceptance::Retry, "one in service, one pending");
    end_of_interrupt(&mut apic);
    assert_eq!(accept(&mut apic, 0x43), Acceptance::Accepted);
}

#[test]
fn one_vector_is_queued_twice_pending_and_in_service() {
    let mut apic = p6(0);
    accept(&mut apic, 0x41);
    assert_eq!(accept(&mut apic, 0x41), Acceptance::Merged);
    apic.take();
    assert_eq!(accept(&mut apic, 0x41), Acceptance::Accepted);
    assert_eq!(accept(&mut apic, 0x41), Acceptance::Retry, "where others merge");
}

#[test]
fn since_the_pentium_4_there_is_room_for_every_vector() {
    let mut apic = ApicModel::new(0, Mode::XApic);
    apic.write(Register::SPURIOUS_VECTOR, 0x1ff, NOW).unwrap();
    for vector in 16..=255 {
        assert_eq!(accept(&mut apic, vector), Acceptance::Accepted);
    }
}

#[test]
fn nmi_init_and_start_up_need_no_room() {
    let mut apic = p6(0);
    accept(&mut apic, 0x41);
    accept(&mut apic, 0x42);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Nmi, 0x43)), Acceptance::Accepted);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Init, 0)), Acceptance::Reset);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 0x43)), Acceptance::Started { page: 0x43 });
}

#[test]
fn a_sender_that_is_retried_is_busy_until_its_message_is_accepted() {
    let (mut sender, mut receiver) = (p6(0), p6(1));
    accept(&mut receiver, 0x41);
    accept(&mut receiver, 0x42);
    sender.write(Register::ICR_HIGH, 1 << 24, NOW).unwrap();
    let Ok(Effect::Dispatch(command)) = sender.write(Register::ICR_LOW, 0x4043, NOW) else {
        panic!("nothing was sent")
    };
    // A bus that offers it every 100 ns; after the third offer the receiver has served an interrupt.
    let at = |nanos: u64| Instant::from_nanos(1000 + nanos);
    for offer in 0..3 {
        assert_eq!(receiver.accept(command.message()), Acceptance::Retry);
        sender.offered_again_at(at(100 * (offer + 1)));
        for nanos in [100 * offer, 100 * offer + 100] {
            assert_eq!(sender.read(Register::ICR_LOW, at(nanos)), Ok(0x5043), "busy at {nanos}");
        }
    }
    receiver.take();
    end_of_interrupt(&mut receiver);
    assert_eq!(receiver.accept(command.message()), Acceptance::Accepted);
    assert_eq!(sender.icr_idle_at(), at(301));
    assert_eq!(sender.read(Register::ICR_LOW, at(301)), Ok(0x4043));
    assert!(receiver.irr().contains(0x43));
}

#[test]
fn the_arbitration_priority_follows_the_formula_of_the_manual() {
    let mut apic = p6(0);
    let priority = |apic: &mut ApicModel| read(apic, Register::ARBITRATION_PRIORITY);
    apic.write(Register::TASK_PRIORITY, 0x53, NOW).unwrap();
    assert_eq!(priority(&mut apic), 0x53, "the task priority, with its low bits, if nothing is above");
    accept(&mut apic, 0x71);
    assert_eq!(priority(&mut apic), 0x70, "what is requested");
    apic.take();
    assert_eq!(priority(&mut apic), 0x50, "5 and 7 bit by bit");
    accept(&mut apic, 0x61);
    assert_eq!(priority(&mut apic), 0x60);
}

#[test]
fn the_focus_processor_wins_the_arbitration_unless_it_does_not_look() {
    let (idle, mut focus) = (p6(1), p6(2));
    accept(&mut focus, 0x71);
    assert!(focus.arbitration_order(0x71) < idle.arbitration_order(0x71));
    assert!(focus.arbitration_order(0x72) > idle.arbitration_order(0x72), "of another vector it is not");
    focus.take();
    assert!(focus.arbitration_order(0x71) < idle.arbitration_order(0x71), "in service counts as well");
    focus.write(Register::SPURIOUS_VECTOR, 0x3ff, NOW).unwrap();
    focus.write(Register::TASK_PRIORITY, 0x80, NOW).unwrap();
    assert!(focus.arbitration_order(0x71) > idle.arbitration_order(0x71));
}

#[test]
fn messages_that_nobody_accepts_are_errors() {
    let mut apic = p6(0);
    apic.write(Register::LVT_ERROR, 0xfe, NOW).unwrap();
    apic.note_send_accept_error();
    apic.note_receive_accept_error();
    assert_eq!(apic.take(), Some(0xfe));
    apic.write(Register::ERROR_STATUS, 0, NOW).unwrap();
    assert_eq!(read(&mut apic, Register::ERROR_STATUS), 0b1100);
    let mut apic = ApicModel::new(0, Mode::XApic);
    apic.note_send_accept_error();
    apic.note_receive_accept_error();
    assert_eq!(apic.errors(), 0, "nothing since the Pentium 4");
}

#[test]
fn the_low_bits_of_the_spurious_vector_are_ones() {
    let mut apic = p6(0);
    apic.write(Register::SPURIOUS_VECTOR, 0x1e0, NOW).unwrap();
    assert_eq!(read(&mut apic, Register::SPURIOUS_VECTOR), 0x1ef);
}

#[test]
fn a_written_identifier_is_the_one_that_is_addressed_until_power_up() {
    let mut apic = p6(1);
    apic.write(Register::ID, 7 << 24, NOW).unwrap();
    assert_eq!(read(&mut apic, Register::ID), 7 << 24);
    apic.accept(Message::edge(DeliveryMode::Init, 0));
    assert_eq!(read(&mut apic, Register::ID), 7 << 24, "an INIT keeps it");
}

#[test]
#[should_panic(expected = "no x2APIC mode")]
fn there_is_no_x2apic_of_the_p6_family() {
    ApicModel::with_features(0, Mode::X2Apic, Features::P6);
}
