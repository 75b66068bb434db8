//! The hand-over from a crashed kernel to a capture kernel (law L8): report 004, and what else can be left behind.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use smpcall_local_apic::{
    Drained, InertGates, LocalSource, LocalVector, Register, Routing, Trigger, Vector, Vectors,
};
use smpcall_machine::{Cpu, Instant, InterruptsOff, Machine};
use smpcall_simulator::apic::Message;
use smpcall_simulator::{Config, InterruptFrame, RunEnd, SimMachine, World, local_apic, program};

use crate::bus::*;

const BOTH: [Routing; 2] = [Routing::Flat, Routing::X2ApicCluster];
const WINDOW: Duration = Duration::from_millis(1);
const TIMER: Vector = Vector::new(0xef).unwrap();

fn level(vector: u8) -> Message {
    Message { trigger: Trigger::Level, ..Message::fixed(vector) }
}

fn vectors(members: &[u8]) -> Vectors {
    let mut vectors = Vectors::EMPTY;
    for &member in members {
        vectors.insert(member);
    }
    vectors
}

/// The crashed kernel's CPU, with interrupts disabled and the given state; and its gates, of which none was entered.
fn crashed(routing: Routing, in_service: &[Message], pending: &[Message]) -> (Driver, Rc<InertGates>) {
    let (driver, _) = machine(routing, [0]);
    let gates = Rc::new(InertGates::new());
    bus(|bus| {
        bus.interrupts_enabled = false;
        for &message in in_service {
            bus.apics[0].accept(message);
            assert_eq!(bus.apics[0].take(), Some(message.vector));
        }
        for &message in pending {
            bus.apics[0].accept(message);
        }
        bus.gates = Some(gates.clone());
    });
    (driver, gates)
}

fn drain(driver: &Driver, gates: &InertGates) -> Drained {
    let mut interrupts_off = InterruptsOff::<OneThread>::new();
    // SAFETY: the machine's gates are these, and nothing runs that was interrupted.
    unsafe { driver.drain(gates, &mut interrupts_off, SPURIOUS, WINDOW) }
}

#[test]
fn what_was_pending_is_counted_and_nothing_old_is_left() {
    for routing in BOTH {
        // Report 004: the call vector is pending. And more, one of them in service.
        let (driver, gates) = crashed(
            routing,
            &[Message::fixed(0x41)],
            &[Message::fixed(0xfb), Message::fixed(0x31), Message::fixed(0x42)],
        );
        let record = driver.record();
        assert_eq!(record.requests, vectors(&[0x31, 0x42, 0xfb]));
        assert_eq!(record.in_service, vectors(&[0x41]));
        let drained = drain(&driver, &gates);
        assert!(drained.is_quiet(), "{routing}: {drained:?}");
        assert_eq!((drained.ended, drained.broadcast), (vectors(&[0x41]), Vectors::EMPTY));
        assert!(gates.entered().eq([(0x31, 1), (0x42, 1), (0xfb, 1)]), "{routing}");
        assert_eq!(gates.not_in_service(), 0);
        assert!(driver.record().is_quiet());
        assert!(!OneThread::interrupts_enabled());
        assert!(bus(|bus| bus.now) < 1_000_000, "the window closes when nothing is pending");
    }
}

#[test]
fn requests_do_not_move_while_interrupts_are_disabled() {
    // Why draining opens them at all: no end of interrupt and no loop clears a request.
    let (driver, _) = crashed(Routing::Flat, &[], &[Message::fixed(0xfb)]);
    for _ in 0..256 {
        smpcall_local_apic::Access::write(driver.access(), Register::END_OF_INTERRUPT, 0);
    }
    assert!(driver.requests().contains(0xfb));
}

#[test]
fn each_nested_interrupt_is_ended_and_level_triggered_ends_are_broadcast() {
    let (driver, gates) =
        crashed(Routing::Flat, &[level(0x31), Message::fixed(0x41), level(0x91)], &[Message::fixed(0x35)]);
    let drained = drain(&driver, &gates);
    assert_eq!(drained.ended, vectors(&[0x31, 0x41, 0x91]));
    assert_eq!(drained.broadcast, vectors(&[0x31, 0x91]));
    assert_eq!(bus(|bus| bus.broadcasts.clone()), [0x91, 0x31]);
    assert!(drained.is_quiet() && gates.count(0x35) == 1);
}

#[test]
fn an_apic_that_held_back_lets_go() {
    for routing in BOTH {
        let (driver, gates) = crashed(routing, &[], &[Message::fixed(0x31)]);
        driver.set_task_priority(smpcall_local_apic::Priority(0xff));
        driver.disable_by_software();
        let drained = drain(&driver, &gates);
        assert!(drained.is_quiet() && gates.count(0x31) == 1, "{routing}: {drained:?}");
    }
}

#[test]
fn a_cpu_that_takes_nothing_keeps_its_window_and_says_what_remains() {
    let (driver, gates) = crashed(Routing::Flat, &[], &[Message::fixed(0x31)]);
    bus(|bus| bus.gates = None);
    let drained = drain(&driver, &gates);
    assert_eq!((drained.requests, drained.is_quiet()), (vectors(&[0x31]), false));
    assert_eq!(bus(|bus| bus.now), 1_000_000);
    assert_eq!(gates.total(), 0);
}

thread_local!(static GATES: RefCell<Rc<InertGates>> = RefCell::new(Rc::new(InertGates::new())));

/// An inert gate of the simulated machine. The frame's own right to an end of interrupt is left unused.
#[expect(clippy::needless_pass_by_value, reason = "a handler is given its frame")]
fn inert_gate(frame: InterruptFrame) {
    let gates = GATES.with_borrow(Rc::clone);
    gates.taken(&local_apic(), frame.vector.expect("no NMI"));
}

/// CPU 0 of the simulated machine crashes with interrupts pending, some sent by CPU 1, and drains them itself.
#[test]
fn the_simulated_machine_drains_what_was_sent_by_ipi_timer_and_device() {
    for (routing, seed) in BOTH.into_iter().flat_map(|routing| (1..=20).map(move |seed| (routing, seed))) {
        GATES.set(Rc::new(InertGates::new()));
        let mut config = Config::new(2, routing, seed);
        config.tick = None;
        let mut world = World::new(&config).expect("a machine");
        for vector in 16..=255 {
            world.set_handler(vector, inert_gate);
        }
        world.spawn(Cpu::new(0), || {
            let mut interrupts_off = InterruptsOff::<SimMachine>::new();
            let driver = local_apic();
            driver.set_local_vector(LocalSource::Timer, LocalVector::fixed(TIMER)).expect("a timer");
            driver.send_self(RING).expect("an idle controller");
            program::request_interrupt(Cpu::new(0), 0x31);
            program::advance(Duration::from_micros(100));
            let record = driver.record();
            assert_eq!(record.requests, vectors(&[0x31, 0xe0, 0xfb]));
            driver.mask_all_local_vectors();
            let gates = GATES.with_borrow(Rc::clone);
            // SAFETY: every vector has the inert gate, and nothing was in service.
            let drained = unsafe { driver.drain(&gates, &mut interrupts_off, SPURIOUS, WINDOW) };
            assert!(drained.is_quiet(), "{drained:?}");
            assert!(gates.entered().eq([(0x31, 1), (0xe0, 1), (0xfb, 1)]));
            assert_eq!(gates.not_in_service(), 0);
            assert!(!SimMachine::interrupts_enabled());
        });
        world.spawn(Cpu::new(1), || {
            program::advance(Duration::from_micros(5));
            smpcall_simulator::send_interrupt(Cpu::new(0), smpcall_local_apic::Interrupt::Fixed(FROM_NMI))
                .expect("an idle controller");
        });
        assert_eq!(world.run(Instant::from_nanos(1_000_000_000)), RunEnd::ProgramsEnded, "{routing}");
    }
}
