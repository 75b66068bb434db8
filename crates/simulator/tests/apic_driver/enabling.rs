//! Enabling, end of interrupt.

use smpcall_local_apic::{
    ApicId, EnableError, InService, Interrupt, LocalApic, Mode, Register, Routing, RoutingError,
};
use smpcall_machine::{Cpu, Instant};
use smpcall_simulator::apic::{ApicModel, Message};

use crate::bus::*;

#[test]
fn enabling_programs_the_flat_model_and_accepts_interrupts() {
    let (_, _) = machine(Routing::Flat, [4, 0, 1, 7]);
    bus(|bus| {
        assert!(bus.apics.iter().all(ApicModel::is_enabled));
        for (cpu, apic) in bus.apics.iter_mut().enumerate() {
            let now = Instant::default();
            assert_eq!(apic.read(Register::LOGICAL_DESTINATION, now), Ok(1 << (24 + cpu)));
            assert_eq!(apic.read(Register::DESTINATION_FORMAT, now), Ok(0xffff_ffff));
            assert_eq!(apic.read(Register::SPURIOUS_VECTOR, now), Ok(0x1ff));
        }
    });
}

#[test]
fn enabling_clears_old_errors_and_what_held_interrupts_back_and_keeps_what_is_pending() {
    let (driver, _) = machine(Routing::Physical, [0]);
    let now = Instant::default();
    bus(|bus| {
        let apic = &mut bus.apics[0];
        apic.accept(Message::fixed(0x40));
        apic.accept(Message::fixed(1));
        apic.write(Register::TASK_PRIORITY, 0xf0, now).unwrap();
        apic.write(Register::SPURIOUS_VECTOR, 0xff, now).unwrap();
    });
    driver.enable(Cpu::new(0), ApicId(0), SPURIOUS).unwrap();
    bus(|bus| {
        let apic = &mut bus.apics[0];
        assert_eq!((apic.errors(), apic.read(Register::ERROR_STATUS, now)), (0, Ok(0)));
        assert_eq!(apic.deliverable(), Some(0x40));
    });
}

#[test]
fn an_apic_that_does_not_fit_is_not_touched() {
    let (_, _) = machine(Routing::Physical, [5]);
    let refuse = |routing, mode, cpu, expected| {
        let driver: Driver = LocalApic::new(Registers(mode), routing);
        let error = driver.enable(Cpu::new(cpu), ApicId(expected), SPURIOUS).unwrap_err();
        assert!(bus(|bus| bus.writes.is_empty()));
        error
    };
    let (flat, x2) = (Routing::Flat, Routing::X2ApicPhysical);
    assert_eq!(
        refuse(x2, Mode::XApic, 0, 5),
        EnableError::Routing(RoutingError::WrongMode { routing: x2, mode: Mode::XApic })
    );
    assert_eq!(
        refuse(flat, Mode::XApic, 8, 5),
        EnableError::Routing(RoutingError::TooManyCpus { routing: flat, cpus: 9 })
    );
    let other = refuse(Routing::Physical, Mode::XApic, 0, 6);
    assert_eq!(other.to_string(), "CPU 0 has APIC 0x5 where the tables of the kernel say APIC 0x6");
}

#[test]
fn the_end_of_interrupt_of_a_token_lets_the_vector_be_taken_again() {
    for routing in Routing::ALL {
        let (driver, tables) = machine(routing, 0..2);
        for _ in 0..2 {
            driver.send_one(&tables, Cpu::new(0), Interrupt::Fixed(RING)).unwrap();
            assert_eq!(bus(|bus| bus.apics[0].take()), Some(0xfb));
            // SAFETY: the vector was taken from this APIC just now, once.
            let token = unsafe { InService::entered(RING) };
            assert_eq!(token.vector(), RING);
            driver.end_of_interrupt(token);
            assert!(bus(|bus| bus.apics[0].isr().is_empty()));
        }
        assert_eq!(bus(|bus| bus.writes.last().copied()), Some((Register::END_OF_INTERRUPT, 0, true)));
    }
}
