//! Starting CPUs: what arrives, and when.

use std::collections::BTreeMap;

use smpcall_local_apic::{
    ApicId, DeliveryMode, Level, Routing, StartUp, StartUpDelays, StartUpError, StartUpStep,
};
use smpcall_machine::{Predicate, SendError};
use smpcall_simulator::apic::Message;

use crate::bus::*;

#[test]
fn a_cpu_is_reset_and_started_once_on_every_routing() {
    for routing in Routing::ALL {
        let (driver, _) = machine(routing, 0..8);
        let silent = Predicate(|| false);
        let result = driver.start_cpu(ApicId(6), 0x9a, StartUpDelays::SPECIFIED, &silent);
        assert_eq!(result, Ok(StartUp::NoSignOfLife { start_ups: 2 }), "{routing}");
        // The second start-up message finds a CPU that does not wait for one any more.
        let expected = [Message::edge(DeliveryMode::Init, 0), Message::edge(DeliveryMode::StartUp, 0x9a)];
        assert_eq!(bus(|bus| bus.received[6].clone()), expected, "{routing}");
        assert_eq!(bus(|bus| bus.receivers()), BTreeMap::from([(6, 2)]));
        assert_eq!(bus(|bus| bus.now), 10_400_000, "{routing}");
        assert!(bus(|bus| !bus.apics[6].is_waiting_for_start_up() && !bus.apics[6].is_enabled()));
    }
}

#[test]
fn a_sign_of_life_ends_the_sequence() {
    let (driver, _) = machine(Routing::X2ApicCluster, 0..2);
    let alive = Predicate(|| bus(|bus| !bus.received[1].is_empty() && bus.now >= 10_100_000));
    let result = driver.start_cpu(ApicId(1), 8, StartUpDelays::SPECIFIED, &alive);
    assert_eq!(result, Ok(StartUp::Alive { start_ups: 1 }));
    assert_eq!(bus(|bus| bus.now), 10_100_000);
}

#[test]
fn a_stuck_controller_is_named_with_the_step_that_it_stopped() {
    let (driver, _) = machine(Routing::Flat, 0..2);
    fault_cpu_0(STUCK);
    let silent = Predicate(|| false);
    let result = driver.start_cpu(ApicId(1), 8, StartUpDelays::SPECIFIED, &silent);
    let error = SendError::ControllerBusy;
    assert_eq!(result, Err(StartUpError::NotSent { step: StartUpStep::Init, error }));
    assert!(bus(|bus| bus.now) < 101_000_000);
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::new());
}

#[test]
fn the_end_of_an_init_is_ignored_by_what_is_newer_than_an_82489dx() {
    let (driver, _) = machine(Routing::Physical, 0..2);
    assert_eq!(driver.send_init_level(ApicId(1), Level::Deassert), Ok(sent(1)));
    assert_eq!(bus(|bus| bus.receivers()), BTreeMap::new());
    let (driver, _) = machine(Routing::X2ApicPhysical, 0..2);
    assert_eq!(driver.send_init_level(ApicId(1), Level::Deassert), Err(SendError::Unsupported));
}
