//! The interrupt command register, and what differs between the modes: one test per rule.

use super::*;

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

#[test]
fn a_lowest_priority_command_on_x2apic_is_an_error() {
    let mut apic = x2apic();
    assert_eq!(apic.write_icr(0x1_0000_4140, NOW), Ok(Effect::None));
    assert_eq!(error_status(&mut apic), 1 << 4);
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
