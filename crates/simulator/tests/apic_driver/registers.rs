//! The registers one by one: what the driver writes, the model understands.

use std::cell::RefCell;

use smpcall_local_apic::{
    Access, ApicBase, ApicState, BaseRegister, Errors, LocalDelivery, LocalSource, LocalVector, Mode,
    Priority, Register, Routing, TimerDivide, TimerMode, Vector,
};
use smpcall_machine::Instant;
use smpcall_simulator::apic::{ApicModel, Features, Message};

use crate::bus::*;

const BOTH: [Routing; 2] = [Routing::Physical, Routing::X2ApicPhysical];
const TIMER: Vector = Vector::new(0xef).unwrap();

#[test]
fn everything_can_be_read_in_both_modes_without_an_error() {
    for routing in BOTH {
        let (driver, _) = machine(routing, [3]);
        let record = driver.record();
        assert_eq!((record.id.0, record.mode), (3, routing.mode()));
        assert!(record.is_quiet() && record.spurious.enabled && record.errors.is_empty());
        assert_eq!(record.version.entries(), 7);
        assert!(record.local_vectors.iter().all(Option::is_some));
        assert_eq!(driver.arbitration_priority().is_some(), routing.mode() == Mode::XApic);
        assert_eq!((driver.timer_count(), driver.timer_divide()), (0, TimerDivide::By2));
        assert_eq!(driver.take_errors(), Errors::NONE, "{routing}");
    }
}

#[test]
fn an_older_apic_is_asked_for_no_entry_that_it_does_not_have() {
    let (driver, _) = machine(Routing::Physical, [3]);
    bus(|bus| bus.apics[0] = ApicModel::with_features(3, Mode::XApic, Features::P6));
    let record = driver.record();
    assert_eq!(record.local_vectors.iter().flatten().count(), 5);
    driver.mask_all_local_vectors();
    assert_eq!(driver.take_errors(), Errors::NONE);
}

#[test]
fn entries_of_the_local_vector_table_are_kept_and_masked_without_an_error() {
    for routing in BOTH {
        let (driver, _) = machine(routing, [3]);
        let nmi = LocalVector::without_vector(LocalDelivery::Nmi);
        let fixed = LocalVector::fixed(TIMER);
        for source in LocalSource::ALL {
            let entry = if source == LocalSource::Lint1 { nmi } else { fixed };
            driver.set_local_vector(source, entry).unwrap();
            assert_eq!(driver.local_vector(source), Ok(entry), "{source}");
        }
        driver.connect_pic().unwrap();
        let delivery = driver.local_vector(LocalSource::Lint0).unwrap().delivery;
        assert_eq!(delivery, LocalDelivery::ExtInt);
        driver.mask_all_local_vectors();
        driver.mask_all_local_vectors();
        for source in LocalSource::ALL {
            assert!(driver.local_vector(source).unwrap().masked, "{source}");
        }
        assert_eq!(driver.take_errors(), Errors::NONE, "{routing}");
    }
}

#[test]
fn errors_are_told_once() {
    let (driver, _) = machine(Routing::Physical, [0]);
    driver.access().write(Register::ICR_LOW, 0x4_4003);
    bus(|bus| bus.apics[0].accept(Message::fixed(3)));
    let errors = driver.take_errors();
    assert!(errors.contains(Errors::SEND_ILLEGAL_VECTOR));
    assert!(errors.contains(Errors::RECEIVE_ILLEGAL_VECTOR));
    assert_eq!(driver.take_errors(), Errors::NONE);
}

#[test]
fn priorities_hold_back_and_let_go() {
    let (driver, _) = machine(Routing::X2ApicPhysical, [0]);
    driver.set_task_priority(Priority(0x40));
    bus(|bus| bus.apics[0].accept(Message::fixed(0x45)));
    assert_eq!((driver.task_priority(), driver.processor_priority()), (Priority(0x40), Priority(0x40)));
    assert_eq!(bus(|bus| bus.apics[0].deliverable()), None);
    assert!(driver.processor_priority().holds_back(0x45) && driver.requests().contains(0x45));
    driver.set_task_priority(Priority::LOWEST);
    assert_eq!(bus(|bus| bus.apics[0].take()), Some(0x45));
    assert_eq!(driver.processor_priority().class(), 4);
    assert!(driver.is_in_service(0x45) && driver.in_service().highest() == Some(0x45));
}

#[test]
fn software_disabled_withholds_and_enabling_lets_go() {
    let (driver, _) = machine(Routing::Physical, [0]);
    driver.set_local_vector(LocalSource::Timer, LocalVector::fixed(TIMER)).unwrap();
    driver.disable_by_software();
    assert!(!driver.spurious().enabled && driver.spurious().vector == SPURIOUS.number());
    assert!(driver.local_vector(LocalSource::Timer).unwrap().masked);
    assert!(bus(|bus| !bus.apics[0].is_enabled()));
    let spurious = smpcall_local_apic::Spurious::enabled(SPURIOUS);
    driver.set_spurious(spurious);
    assert!(bus(|bus| bus.apics[0].is_enabled()));
    assert!(driver.local_vector(LocalSource::Timer).unwrap().masked);
}

#[test]
fn the_timer_fires_when_the_driver_set_it_to() {
    for (divide, count) in [(TimerDivide::By1, 5000), (TimerDivide::By16, 100)] {
        let (driver, _) = machine(Routing::Physical, [0]);
        driver.start_timer(TimerMode::OneShot, divide, count, TIMER).unwrap();
        assert_eq!((driver.timer_count(), driver.timer_divide()), (count, divide));
        let due = Instant::from_nanos(u64::from(count * divide.divisor()));
        assert_eq!(bus(|bus| bus.apics[0].timer_fires_at()), Some(due));
        bus(|bus| {
            bus.now = due.as_nanos();
            bus.apics[0].fire_timer(due);
        });
        assert!(driver.requests().contains(TIMER.number()));
        assert_eq!(bus(|bus| bus.apics[0].timer_fires_at()), None);
        driver.start_timer(TimerMode::Periodic, divide, count, TIMER).unwrap();
        assert!(bus(|bus| bus.apics[0].timer_fires_at()).is_some());
        driver.stop_timer();
        assert_eq!(bus(|bus| bus.apics[0].timer_fires_at()), None);
    }
}

struct Base(RefCell<ApicModel>);

impl BaseRegister for Base {
    fn read_base(&self) -> u64 {
        self.0.borrow().base()
    }

    fn write_base(&self, value: u64) {
        self.0.borrow_mut().write_base(value).expect("the driver allows no write that faults");
    }
}

#[test]
fn the_driver_allows_just_the_transitions_that_do_not_fault() {
    let states = [ApicState::Disabled, ApicState::Enabled(Mode::XApic), ApicState::Enabled(Mode::X2Apic)];
    let mut legal = 0;
    for ways in [&[][..], &states[..1], &states[2..]] {
        for to in states {
            let base = Base(RefCell::new(ApicModel::new(3, Mode::XApic)));
            for &way in ways {
                ApicBase::switch(&base, way).expect("from xAPIC mode all is legal");
            }
            let from = ApicBase::read(&base);
            if ApicBase::switch(&base, to).is_ok() {
                assert_eq!(ApicBase::read(&base).state(), Some(to));
                legal += 1;
            } else {
                // What it would have written, had it been allowed: the bits of that state.
                let bits = match to {
                    ApicState::Disabled => 0,
                    ApicState::Enabled(Mode::XApic) => 0x800,
                    ApicState::Enabled(Mode::X2Apic) => 0xc00,
                };
                let value = from.0 & !0xc00 | bits;
                assert!(base.0.borrow_mut().write_base(value).is_err(), "{:?} to {to}", from.state());
            }
        }
    }
    assert_eq!(legal, 7);
}
