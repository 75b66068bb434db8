//! The conformance list, part 2: what kvm-unit-tests' `x86/apic.c` checks of modes, identifiers and the base register, one
//! test per line of its list. On the bare model: no program of the simulated machine writes the base register.

use smpcall_local_apic::{DeliveryMode, Icr, Mode, Register};
use smpcall_machine::Instant;
use smpcall_simulator::apic::{
    Acceptance, ApicModel, BaseFault, Command, Effect, FaultCause, Features, GlobalState, Message,
    PHYSICAL_ADDRESS_BITS,
};

const NOW: Instant = Instant::from_nanos(1000);
const PAGE: u64 = 0xfee0_0000;
const ENABLED: u64 = 1 << 11;
const EXTENDED: u64 = 1 << 10;

fn read(apic: &mut ApicModel, register: Register) -> u32 {
    apic.read(register, NOW).expect("it can be read")
}

fn write(apic: &mut ApicModel, register: Register, value: u32) -> Effect {
    apic.write(register, value, NOW).expect("it can be written")
}

/// `x86/apic.c`, `test_apic_disable`.
#[test]
fn a_hardware_disabled_apic_is_not_there_and_comes_back_as_new() {
    for mode in [Mode::XApic, Mode::X2Apic] {
        let mut apic = ApicModel::new(1, mode);
        let version = read(&mut apic, Register::VERSION);
        write(&mut apic, Register::TASK_PRIORITY, 0x50);
        apic.write_base(PAGE).expect("legal");
        assert_eq!(apic.base(), PAGE);
        for offset in (0..0x400).step_by(16) {
            let register = Register::at(offset).expect("aligned");
            write(&mut apic, register, 0);
            assert_eq!(read(&mut apic, register), u32::MAX, "{register:?}");
        }
        apic.write_base(PAGE | ENABLED).expect("legal");
        assert_eq!(apic.base(), PAGE | ENABLED, "in xAPIC mode");
        assert_eq!(read(&mut apic, Register::VERSION), version);
        assert_eq!(read(&mut apic, Register::TASK_PRIORITY), 0);
    }
}

/// `x86/apic.c`, `test_enable_x2apic`: each attempt in its order, and what becomes of it.
#[test]
fn every_transition_of_the_base_register_is_made_or_faults() {
    let mut apic = ApicModel::new(1, Mode::X2Apic);
    let states = [
        ("x2APIC to invalid", EXTENDED, false),
        ("x2APIC to xAPIC", ENABLED, false),
        ("x2APIC to disabled", 0, true),
        ("disabled to invalid", EXTENDED, false),
        ("disabled to x2APIC", ENABLED | EXTENDED, false),
        ("disabled to disabled", 0, true),
        ("disabled to xAPIC", ENABLED, true),
        ("xAPIC to invalid", EXTENDED, false),
        ("xAPIC to xAPIC", ENABLED, true),
        ("xAPIC to x2APIC", ENABLED | EXTENDED, true),
        ("x2APIC to x2APIC", ENABLED | EXTENDED, true),
    ];
    for (transition, bits, legal) in states {
        let before = apic.base();
        let result = apic.write_base(PAGE | bits);
        assert_eq!(result.is_ok(), legal, "{transition}: {result:?}");
        assert_eq!(apic.base(), if legal { PAGE | bits } else { before }, "{transition}");
    }
    let mut without = ApicModel::with_features(1, Mode::XApic, Features::P6);
    let result = without.write_base(PAGE | ENABLED | EXTENDED);
    assert_eq!(result, Err(BaseFault::ReservedBits(EXTENDED)), "x2APIC mode, not supported");
}

/// `x86/apic.c`, `test_apic_id`.
#[test]
fn the_identifier_is_written_in_xapic_mode_only_and_hardware_gives_it_back() {
    for writable_id in [false, true] {
        let mut apic =
            ApicModel::with_features(5, Mode::XApic, Features { writable_id, ..Features::CURRENT });
        assert_eq!(read(&mut apic, Register::ID), 5 << 24);
        write(&mut apic, Register::ID, 6 << 24);
        assert_eq!(read(&mut apic, Register::ID) >> 24, if writable_id { 6 } else { 5 });
        apic.write_base(PAGE | ENABLED | EXTENDED).expect("legal");
        let fault = apic.write(Register::ID, 6 << 24, NOW).expect_err("read-only");
        assert_eq!(fault.cause, FaultCause::ReadOnly);
        assert_eq!(read(&mut apic, Register::ID), 5);
        apic.write_base(PAGE).expect("legal");
        apic.write_base(PAGE | ENABLED).expect("legal");
        assert_eq!(read(&mut apic, Register::ID), 5 << 24, "after a reset");
    }
}

/// `x86/apic.c`, `test_apicbase`: relocation, reserved address bits, reserved low bits.
#[test]
fn the_base_is_relocated_and_its_reserved_bits_fault() {
    let mut apic = ApicModel::new(1, Mode::XApic);
    apic.write_base(PAGE).expect("legal");
    let elsewhere = 0xfed4_0000 | 1 << 8 | ENABLED;
    apic.write_base(elsewhere).expect("legal");
    assert_eq!(apic.base(), elsewhere);
    assert_eq!(apic.global_state(), GlobalState::Enabled(Mode::XApic));
    for bit in [1 << PHYSICAL_ADDRESS_BITS, 1] {
        assert_eq!(apic.write_base(elsewhere | bit), Err(BaseFault::ReservedBits(bit)));
        assert_eq!(apic.base(), elsewhere);
    }
}

/// `x86/apic.c`, `test_aliased_xapic_physical_ipi`: a chain of IPIs through all the identifiers, two APICs having each at
/// a time.
#[test]
fn both_of_two_aliased_physical_identifiers_accept_through_the_whole_range() {
    let features = Features { writable_id: true, ..Features::CURRENT };
    let mut apics = [0, 1].map(|id| ApicModel::with_features(id, Mode::XApic, features));
    for apic in &mut apics {
        write(apic, Register::SPURIOUS_VECTOR, 0x1ff);
    }
    // 0xff is the broadcast.
    for id in 0..=0xff {
        for apic in &mut apics {
            write(apic, Register::ID, id << 24);
        }
        write(&mut apics[0], Register::ICR_HIGH, id << 24);
        let Effect::Dispatch(command) = write(&mut apics[0], Register::ICR_LOW, 0x40f1) else {
            panic!("nothing was sent to {id:#x}")
        };
        for (index, apic) in apics.iter_mut().enumerate() {
            assert!(apic.is_addressed_by(&command, index == 0), "{id:#x}");
            assert_eq!(apic.accept(command.message()), Acceptance::Accepted);
            assert_eq!(apic.take(), Some(0xf1));
            write(apic, Register::END_OF_INTERRUPT, 0);
        }
    }
}

/// The same for an identifier that xAPIC mode cuts off, which is how aliases come about on machines with more than 255
/// CPUs.
#[test]
fn an_identifier_that_xapic_mode_cuts_off_is_an_alias() {
    let mut wide = ApicModel::new(0x105, Mode::X2Apic);
    let icr = Icr::physical(DeliveryMode::Fixed, 0xf1, 5);
    let command = |mode| Command { icr, mode };
    assert!(!wide.is_addressed_by(&command(Mode::X2Apic), false));
    wide.write_base(PAGE).expect("legal");
    assert!(!wide.is_addressed_by(&command(Mode::XApic), false), "disabled");
    wide.write_base(PAGE | ENABLED).expect("legal");
    assert!(wide.is_addressed_by(&command(Mode::XApic), false));
    write(&mut wide, Register::SPURIOUS_VECTOR, 0x1ff);
    assert_eq!(wide.accept(Message::fixed(0xf1)), Acceptance::Accepted);
}
