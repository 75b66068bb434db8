//! Every transition of the base register, and what each keeps.

use smpcall_local_apic::{DeliveryMode, Icr, Register};
use smpcall_machine::Instant;

use super::super::{Acceptance, Command, Effect, Features, LocalSource, Message, Rejection};
use super::*;

const NOW: Instant = Instant::from_nanos(1000);
const XAPIC: GlobalState = GlobalState::Enabled(Mode::XApic);
const X2APIC: GlobalState = GlobalState::Enabled(Mode::X2Apic);

/// The bits of the base register that ask for a state.
fn bits(state: GlobalState) -> u64 {
    match state {
        GlobalState::Disabled => 0,
        GlobalState::Enabled(Mode::XApic) => ENABLED,
        GlobalState::Enabled(Mode::X2Apic) => ENABLED | EXTENDED,
    }
}

/// An APIC that was brought into this state, and enabled by software if there is one.
fn apic(state: GlobalState) -> ApicModel {
    let mut apic = ApicModel::new(3, Mode::XApic);
    if state == GlobalState::Disabled {
        apic.write_base(DEFAULT_ADDRESS).unwrap();
    } else {
        apic.write_base(DEFAULT_ADDRESS | bits(state)).unwrap();
        apic.write(Register::SPURIOUS_VECTOR, 0x1ff, NOW).unwrap();
    }
    assert_eq!(apic.global_state(), state);
    apic
}

#[test]
fn the_legal_transitions_are_made_and_the_others_fault() {
    for from in [GlobalState::Disabled, XAPIC, X2APIC] {
        for to in [GlobalState::Disabled, XAPIC, X2APIC] {
            let mut apic = apic(from);
            let result = apic.write_base(DEFAULT_ADDRESS | bits(to));
            let illegal = matches!((from, to), (GlobalState::Disabled, X2APIC) | (X2APIC, XAPIC));
            if illegal {
                assert_eq!(result, Err(BaseFault::IllegalTransition { from, to: Some(to) }));
            } else {
                assert_eq!(result, Ok(()), "{from} to {to}");
            }
            assert_eq!(apic.global_state(), if illegal { from } else { to });
            assert_eq!(apic.base(), DEFAULT_ADDRESS | bits(if illegal { from } else { to }));
        }
        let result = apic(from).write_base(DEFAULT_ADDRESS | EXTENDED);
        assert_eq!(result, Err(BaseFault::IllegalTransition { from, to: None }));
    }
}

#[test]
fn faults_say_what_was_asked_for() {
    let error = apic(X2APIC).write_base(DEFAULT_ADDRESS | ENABLED).unwrap_err();
    let text = "general-protection exception at the APIC base register: no transition leads from x2APIC mode to \
                xAPIC mode";
    assert_eq!(error.to_string(), text);
    let error = apic(GlobalState::Disabled).write_base(EXTENDED).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("from the disabled state, x2APIC mode was asked for without enabling the APIC")
    );
}

#[test]
fn reserved_bits_fault_and_change_nothing() {
    for bit in [0, 1, 7, 9, PHYSICAL_ADDRESS_BITS, 63] {
        let mut apic = apic(XAPIC);
        assert_eq!(apic.write_base(0x1000 | 1 << bit), Err(BaseFault::ReservedBits(1 << bit)));
        assert_eq!(apic.base(), DEFAULT_ADDRESS | ENABLED);
    }
}

#[test]
fn the_page_moves_where_it_is_told_to() {
    let mut apic = apic(XAPIC);
    apic.accept(Message::fixed(0x40));
    apic.write_base(0xfed4_0000 | ENABLED | BOOTSTRAP).unwrap();
    assert_eq!(apic.base(), 0xfed4_0000 | ENABLED | BOOTSTRAP);
    assert_eq!(apic.deliverable(), Some(0x40), "nothing else changes");
}

#[test]
fn from_xapic_to_x2apic_mode_everything_is_kept_but_the_identifiers() {
    let mut apic =
        ApicModel::with_features(3, Mode::XApic, Features { writable_id: true, ..Features::CURRENT });
    for (register, value) in [
        (Register::SPURIOUS_VECTOR, 0x1ff),
        (Register::ID, 9 << 24),
        (Register::LOGICAL_DESTINATION, 0x8000_0000),
        (Register::TASK_PRIORITY, 0x20),
        (Register::LVT_ERROR, 0xfe),
        (Register::TIMER_INITIAL_COUNT, 77),
        (Register::ICR_HIGH, 0x0500_0000),
    ] {
        apic.write(register, value, NOW).unwrap();
    }
    apic.accept(Message::fixed(0x51));
    apic.take();
    apic.accept(Message::fixed(0x61));
    apic.write_base(DEFAULT_ADDRESS | ENABLED | EXTENDED).unwrap();
    for (register, value) in [
        (Register::ID, 3),
        (Register::LOGICAL_DESTINATION, 1 << 3),
        (Register::SPURIOUS_VECTOR, 0x1ff),
        (Register::TASK_PRIORITY, 0x20),
        (Register::LVT_ERROR, 0xfe),
        (Register::TIMER_INITIAL_COUNT, 77),
    ] {
        assert_eq!(apic.read(register, NOW), Ok(value), "{register:?}");
    }
    assert_eq!(apic.read_icr(NOW) >> 32, 0);
    assert!(apic.isr().contains(0x51) && apic.irr().contains(0x61));
}

#[test]
fn a_disabled_apic_forgets_all_and_is_enabled_as_after_power_up() {
    for state in [XAPIC, X2APIC] {
        let mut apic = apic(state);
        apic.accept(Message::fixed(0x51));
        apic.take();
        apic.accept(Message::fixed(0x61));
        apic.write(Register::TASK_PRIORITY, 0x20, NOW).unwrap();
        apic.write_base(DEFAULT_ADDRESS).unwrap();
        assert!(apic.is_quiet());
        assert!(!apic.is_waiting_for_start_up(), "the CPU runs on");
        apic.write_base(DEFAULT_ADDRESS | ENABLED).unwrap();
        for (register, value) in [
            (Register::ID, 3 << 24),
            (Register::SPURIOUS_VECTOR, 0xff),
            (Register::TASK_PRIORITY, 0),
            (Register::DESTINATION_FORMAT, u32::MAX),
            (Register::LVT_LINT0, 1 << 16),
        ] {
            assert_eq!(apic.read(register, NOW), Ok(value), "{register:?}");
        }
    }
}

#[test]
fn a_disabled_apic_answers_neither_the_bus_nor_software() {
    let mut apic = apic(GlobalState::Disabled);
    assert_eq!(apic.read(Register::VERSION, NOW), Ok(u32::MAX));
    assert_eq!(apic.write(Register::SPURIOUS_VECTOR, 0x1ff, NOW), Ok(Effect::None));
    assert_eq!(apic.write(Register::ICR_LOW, 0xc_40fb, NOW), Ok(Effect::None));
    assert!(!apic.is_enabled());
    for icr in [
        Icr::physical(DeliveryMode::Nmi, 0, 3),
        Icr::shorthand(DeliveryMode::Init, 0, smpcall_local_apic::Shorthand::AllButSelf),
    ] {
        assert!(!apic.is_addressed_by(&Command { icr, mode: Mode::XApic }, false));
    }
    for mode in DeliveryMode::ALL {
        let gone = Acceptance::Rejected(Rejection::HardwareDisabled);
        assert_eq!(apic.accept(Message::edge(mode, 0x40)), gone, "{mode:?}");
    }
}

#[test]
fn what_the_cpu_has_latched_of_an_nmi_outlives_the_apic() {
    let mut apic = apic(XAPIC);
    apic.accept(Message::edge(DeliveryMode::Nmi, 0));
    apic.take_nmi();
    apic.accept(Message::edge(DeliveryMode::Nmi, 0));
    apic.write_base(DEFAULT_ADDRESS).unwrap();
    assert!(apic.nmi_in_progress() && apic.nmi_pending());
}

#[test]
fn an_init_keeps_mode_identifier_base_register_and_the_level_of_the_pins() {
    for state in [XAPIC, X2APIC] {
        let mut apic = apic(state);
        apic.write_base(0xfed4_0000 | bits(state)).unwrap();
        apic.raise_local(LocalSource::Lint0);
        let (base, id) = (apic.base(), apic.id());
        assert_eq!(apic.accept(Message::edge(DeliveryMode::Init, 0)), Acceptance::Reset);
        assert_eq!((apic.base(), apic.id(), apic.global_state()), (base, id, state));
        assert!(!apic.is_enabled() && apic.is_waiting_for_start_up());
        assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), Acceptance::Started { page: 8 });
        apic.write(Register::SPURIOUS_VECTOR, 0x1ff, NOW).unwrap();
        apic.write(Register::LVT_LINT0, 0x700, NOW).unwrap();
        assert!(apic.ext_int_deliverable(), "still asserted");
    }
}

#[test]
fn an_init_lets_the_boot_cpu_begin_anew_at_once() {
    let mut apic = apic(XAPIC);
    apic.set_bootstrap(true);
    assert_eq!(apic.base() & BOOTSTRAP, BOOTSTRAP);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::Init, 0)), Acceptance::Reset);
    assert!(!apic.is_waiting_for_start_up());
    let refused = Acceptance::Rejected(Rejection::NotWaitingForStartUp);
    assert_eq!(apic.accept(Message::edge(DeliveryMode::StartUp, 8)), refused);
}

#[test]
fn a_wide_identifier_has_eight_bits_in_xapic_mode() {
    let mut apic = ApicModel::new(0x1_0023, Mode::X2Apic);
    apic.write_base(DEFAULT_ADDRESS).unwrap();
    apic.write_base(DEFAULT_ADDRESS | ENABLED).unwrap();
    assert_eq!(apic.id(), ApicId(0x23));
    apic.write_base(DEFAULT_ADDRESS | ENABLED | EXTENDED).unwrap();
    assert_eq!(apic.id(), ApicId(0x1_0023));
}

#[test]
fn the_p6_family_has_no_x2apic_mode_and_is_not_enabled_again() {
    let mut apic = ApicModel::with_features(3, Mode::XApic, Features::P6);
    assert_eq!(apic.write_base(DEFAULT_ADDRESS | ENABLED | EXTENDED), Err(BaseFault::ReservedBits(EXTENDED)));
    apic.write_base(DEFAULT_ADDRESS).unwrap();
    apic.write_base(DEFAULT_ADDRESS | ENABLED).unwrap();
    assert_eq!(apic.global_state(), GlobalState::Disabled);
}
