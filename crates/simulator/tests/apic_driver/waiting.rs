//! Waiting for the controller.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smpcall_local_apic::{ApicId, DISPATCH_BOUND, Interrupt, PATIENT_BOUND, Register, Routing, Sent, Vector};
use smpcall_machine::{Cpu, Instant, Machine, SendError};
use smpcall_simulator::apic::{ApicModel, IcrFault, Message};

use crate::bus::*;

#[test]
fn an_idle_xapic_costs_one_register_read_and_no_clock_read() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    driver.send_one(&tables, Cpu::new(2), Interrupt::Nmi).unwrap();
    assert_eq!(bus(|bus| (bus.register_reads, bus.clock_reads, bus.writes.len())), (1, 0, 2));
}

#[test]
fn an_x2apic_is_never_read_and_its_one_write_leaves_interrupts_alone() {
    let (driver, tables) = machine(Routing::X2ApicCluster, 0..4);
    driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(RING)).unwrap();
    assert_eq!(bus(|bus| (bus.register_reads, bus.clock_reads)), (0, 0));
    assert_eq!(bus(|bus| bus.writes.clone()), [(Register::ICR_LOW, 0x4_0000_48fb, true)]);
}

#[test]
fn the_two_words_of_an_xapic_are_written_with_interrupts_disabled_and_the_high_one_first() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    for enabled in [true, false] {
        bus(|bus| {
            bus.interrupts_enabled = enabled;
            bus.forget();
        });
        driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(RING)).unwrap();
        let words = [(Register::ICR_HIGH, 0x0200_0000, false), (Register::ICR_LOW, 0x40fb, false)];
        assert_eq!(bus(|bus| bus.writes.clone()), words);
        assert_eq!(OneThread::interrupts_enabled(), enabled);
    }
}

#[test]
fn a_busy_xapic_is_waited_for_and_nothing_is_written_twice() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    bus(|bus| bus.apics[0].set_dispatch_time(Duration::from_micros(15)));
    for round in 0..2 {
        let result = driver.send_one(&tables, Cpu::new(1), Interrupt::Fixed(RING));
        assert_eq!(result, Ok(sent(1)));
        assert_eq!(bus(|bus| bus.now), round * 15_000);
    }
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::from([(1, 2)]));
    assert!(OneThread::interrupts_enabled());
}

#[test]
fn a_stuck_command_is_written_again_and_then_ours_goes_out() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    driver.send_one(&tables, Cpu::new(1), Interrupt::Fixed(RING)).unwrap();
    fault_cpu_0(IcrFault::StuckUntilRewritten);
    let result = driver.send_one(&tables, Cpu::new(2), Interrupt::Nmi);
    assert_eq!(result, Ok(Sent { commands: 1, rewritten: 1 }));
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::from([(1, 2), (2, 1)]));
}

/// CPU 0 sends a ring to CPU 1 while its command to CPU 3 may still stand in the way, with an NMI before register access
/// number `position`. What did each CPU receive? `None` if there are fewer accesses. `retries`: how many commands are
/// written while the controller is busy.
fn interrupted_at(position: u32, prepare: fn(&mut ApicModel), retries: u32) -> Option<[BTreeSet<u8>; 4]> {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    bus(|bus| prepare(&mut bus.apics[0]));
    let before = Interrupt::Fixed(Vector::new(0xa0).unwrap());
    driver.send_one(&tables, Cpu::new(3), before).unwrap();
    bus(|bus| {
        if bus.apics[0].icr_idle_at() <= Instant::from_nanos(bus.now) {
            bus.apics[0].set_icr_fault(Some(IcrFault::StuckUntilRewritten));
        }
        bus.nmi_after = Some(position);
    });
    driver.send_one(&tables, Cpu::new(1), Interrupt::Fixed(RING)).unwrap();
    let vectors = |messages: &Vec<Message>| messages.iter().map(|message| message.vector).collect();
    bus(|bus| {
        assert_eq!([1, 2].map(|cpu| bus.received[cpu].len()), [1, usize::from(bus.nmi_after.is_none())]);
        assert!(bus.written_while_busy <= retries, "NMI before access {position}");
        bus.nmi_after.is_none().then(|| [0, 1, 2, 3].map(|cpu| vectors(&bus.received[cpu])))
    })
}

#[test]
fn an_nmi_handler_that_sends_tears_no_command_that_waits_for_a_busy_or_a_stuck_controller() {
    let slow: fn(&mut ApicModel) = |apic| apic.set_dispatch_time(Duration::from_micros(2));
    let stuck: fn(&mut ApicModel) = |_| {};
    for (prepare, retries, accesses) in [(slow, 0, 40..60), (stuck, 1, 400..450)] {
        let mut position = 0;
        while let Some(received) = interrupted_at(position, prepare, retries) {
            let expected =
                [&[][..], &[0xfb], &[0xe0], &[0xa0]].map(|vectors| vectors.iter().copied().collect());
            assert_eq!(received, expected, "NMI before access {position}");
            position += 1;
        }
        assert!(accesses.contains(&position), "{position} accesses");
    }
}

#[test]
fn a_stuck_init_is_not_written_again() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    driver.send_init(ApicId(1)).unwrap();
    fault_cpu_0(IcrFault::StuckUntilRewritten);
    let result = driver.send_one(&tables, Cpu::new(2), Interrupt::Fixed(RING));
    assert_eq!(result, Err(SendError::ControllerBusy));
    assert_eq!(bus(|bus| bus.receivers()), once_each([1]));
}

/// How long `send` waits in vain on a controller that never becomes idle.
fn waits_in_vain(send: impl FnOnce(&Driver, &Tables) -> Result<Sent, SendError>) -> Duration {
    let (driver, tables) = machine(Routing::Physical, 0..255);
    fault_cpu_0(STUCK);
    assert_eq!(send(&driver, &tables), Err(SendError::ControllerBusy));
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::new());
    assert!(OneThread::interrupts_enabled());
    // Each write was a retry; our own command was never written.
    assert!(bus(|bus| bus.writes.iter().all(|(register, ..)| *register == Register::ICR_LOW)));
    Duration::from_nanos(bus(|bus| bus.now))
}

/// A wait ends with the first look at the clock after its deadline.
const SLACK: Duration = Duration::from_nanos(PAUSE_NANOS);

#[test]
fn an_ordinary_interrupt_gives_up_within_the_tight_bound() {
    // The word in the way is all zero: vector 0, not worth a retry.
    let waited = waits_in_vain(|driver, tables| driver.send_one(tables, Cpu::new(1), Interrupt::Fixed(RING)));
    assert!(waited >= DISPATCH_BOUND && waited <= DISPATCH_BOUND + SLACK, "{waited:?}");
    let waited = waits_in_vain(|driver, tables| {
        // Something to retry.
        bus(|bus| bus.apics[0].write(Register::ICR_LOW, 0x4030, Instant::default())).unwrap();
        driver.send_one(tables, Cpu::new(1), Interrupt::Fixed(RING))
    });
    assert!(waited >= 2 * DISPATCH_BOUND && waited <= 2 * (DISPATCH_BOUND + SLACK), "{waited:?}");
}

#[test]
fn nmi_init_and_start_up_have_the_patience_of_report_002_and_no_more() {
    type Send = fn(&Driver, &Tables) -> Result<Sent, SendError>;
    let senders: [Send; 3] = [
        |driver, tables| driver.send_one(tables, Cpu::new(1), Interrupt::Nmi),
        |driver, _| driver.send_init(ApicId(1)),
        |driver, _| driver.send_start_up(ApicId(1), 8),
    ];
    assert_eq!(PATIENT_BOUND, 1000 * Duration::from_micros(100));
    for send in senders {
        let waited = waits_in_vain(send);
        let most = PATIENT_BOUND + 2 * DISPATCH_BOUND + 3 * SLACK;
        assert!(waited >= PATIENT_BOUND && waited <= most, "{waited:?}");
    }
}

#[test]
fn the_patience_for_nmis_is_not_multiplied_by_their_number() {
    let waited = waits_in_vain(|driver, tables| driver.send_many(tables, &set(1..255), Interrupt::Nmi));
    let most = PATIENT_BOUND + 254 * 2 * (DISPATCH_BOUND + SLACK) + SLACK;
    assert!(waited <= most, "{waited:?}");
}

#[test]
fn patience_that_was_used_up_piece_by_piece_is_used_up() {
    let (driver, tables) = machine(Routing::Physical, 0..8);
    bus(|bus| bus.apics[0].set_dispatch_time(Duration::from_millis(40)));
    let result = driver.send_many(&tables, &set(1..8), Interrupt::Nmi);
    assert_eq!(result, Err(SendError::ControllerBusy));
    let waited = Duration::from_nanos(bus(|bus| bus.now));
    assert!(waited >= PATIENT_BOUND && waited < PATIENT_BOUND + Duration::from_millis(1), "{waited:?}");
    // The third NMI is under way when patience ends; it is sent again, and merges, for each one given up.
    assert!(bus(|bus| [1, 2, 3].into_iter().eq(bus.receivers().into_keys())));
}

#[test]
fn a_handler_that_keeps_the_controller_busy_cannot_prolong_the_wait() {
    let (driver, tables) = machine(Routing::Physical, 0..4);
    bus(|bus| {
        bus.apics[0].set_dispatch_time(Duration::from_micros(10));
        bus.busy_handler = true;
        let (apic, now) = bus.model();
        apic.write(Register::ICR_LOW, 0x4_4030, now).unwrap();
    });
    // The handler queues dispatches for as long as interrupts are enabled: for all of the patience.
    let result = driver.send_one(&tables, Cpu::new(1), Interrupt::Nmi);
    assert_eq!(result, Err(SendError::ControllerBusy));
    let waited = Duration::from_nanos(bus(|bus| bus.now));
    assert!(waited <= PATIENT_BOUND + 2 * DISPATCH_BOUND + 3 * SLACK, "{waited:?}");
}

#[test]
fn one_busy_moment_does_not_stop_the_rest_of_a_set() {
    let (driver, tables) = machine(Routing::Physical, 0..8);
    fault_cpu_0(IcrFault::StuckUntil(Instant::from_nanos(50_000)));
    let result = driver.send_many(&tables, &set(1..8), Interrupt::Fixed(RING));
    assert_eq!(result, Err(SendError::ControllerBusy));
    // 20 microseconds each for the first two; the third was sent when the controller healed.
    assert_eq!(bus(|bus| bus.receivers()), once_each(3..8));
}
