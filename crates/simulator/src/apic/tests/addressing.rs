//! Whom a command is for: one test per rule.

use super::*;

#[test]
fn physical_destinations_are_one_identifier_or_all() {
    let physical = |destination| Icr::physical(DeliveryMode::Fixed, 0x40, destination);
    let apic = xapic();
    assert!(addressed(&apic, physical(3)));
    assert!(!addressed(&apic, physical(2)));
    assert!(addressed(&apic, physical(0xff)));
    let apic = x2apic();
    assert!(addressed(&apic, physical(0x23)));
    assert!(!addressed(&apic, physical(0xff)), "an ordinary identifier in x2APIC mode");
    assert!(addressed(&apic, physical(BROADCAST_X2APIC)));
}

#[test]
fn the_flat_model_has_one_bit_for_each_apic() {
    let logical = |destination| Icr::logical(DeliveryMode::Fixed, 0x40, destination);
    let mut apic = xapic();
    assert!(!addressed(&apic, logical(0x08)), "no logical identifier was given");
    write(&mut apic, Register::LOGICAL_DESTINATION, 0x0800_0000);
    assert!(addressed(&apic, logical(0x08)));
    assert!(addressed(&apic, logical(0x0c)));
    assert!(!addressed(&apic, logical(0xf7)));
    assert!(addressed(&apic, logical(0xff)));
}

#[test]
fn the_cluster_model_has_a_cluster_and_four_bits() {
    let logical = |destination| Icr::logical(DeliveryMode::Fixed, 0x40, destination);
    let mut apic = xapic();
    write(&mut apic, Register::DESTINATION_FORMAT, 0);
    write(&mut apic, Register::LOGICAL_DESTINATION, 0x2400_0000);
    assert!(addressed(&apic, logical(0x24)));
    assert!(addressed(&apic, logical(0x2f)));
    assert!(!addressed(&apic, logical(0x2b)));
    assert!(!addressed(&apic, logical(0x14)));
    assert!(addressed(&apic, logical(0xff)), "broadcast");
    assert!(!addressed(&apic, logical(0xf4)), "there is no cluster 15");
    write(&mut apic, Register::LOGICAL_DESTINATION, 0xf400_0000);
    assert!(!addressed(&apic, logical(0xf4)), "nor anybody in it");
}

#[test]
fn an_x2apic_derives_its_logical_identifier() {
    let logical = |destination| Icr::logical(DeliveryMode::Fixed, 0x40, destination);
    let mut apic = x2apic();
    assert_eq!(read(&mut apic, Register::LOGICAL_DESTINATION), 0x0002_0008);
    assert!(addressed(&apic, logical(0x0002_0008)));
    assert!(addressed(&apic, logical(0x0002_ffff)));
    assert!(!addressed(&apic, logical(0x0002_fff7)));
    assert!(!addressed(&apic, logical(0x0001_0008)));
    assert!(addressed(&apic, logical(BROADCAST_X2APIC)));
}

#[test]
fn shorthands_need_no_address() {
    let addressed = |shorthand, sender_is_self| {
        let icr = Icr::shorthand(DeliveryMode::Fixed, 0x40, shorthand);
        xapic().is_addressed_by(&Command { icr, mode: Mode::XApic }, sender_is_self)
    };
    assert!(addressed(Shorthand::SelfOnly, true) && !addressed(Shorthand::SelfOnly, false));
    assert!(addressed(Shorthand::All, true) && addressed(Shorthand::All, false));
    assert!(!addressed(Shorthand::AllButSelf, true) && addressed(Shorthand::AllButSelf, false));
}

#[test]
fn an_alias_is_addressed_like_the_original() {
    let physical = Icr::physical(DeliveryMode::Fixed, 0x40, 5);
    let features = Features { writable_id: true, ..Features::CURRENT };
    let mut apics = [3, 4].map(|id| ApicModel::with_features(id, Mode::XApic, features));
    for apic in &mut apics {
        write(apic, Register::ID, 5 << 24);
        write(apic, Register::LOGICAL_DESTINATION, 0x1400_0000);
        assert!(addressed(apic, physical));
        for format in [0, u32::MAX] {
            write(apic, Register::DESTINATION_FORMAT, format);
            assert!(addressed(apic, Icr::logical(DeliveryMode::Fixed, 0x40, 0x14)));
        }
    }
}

#[test]
fn an_xapic_sees_eight_bits_of_a_wide_destination() {
    let apic = xapic();
    let from_x2apic = |destination| {
        let icr = Icr::physical(DeliveryMode::Fixed, 0x40, destination);
        apic.is_addressed_by(&Command { icr, mode: Mode::X2Apic }, false)
    };
    assert!(from_x2apic(3) && from_x2apic(0x103) && from_x2apic(BROADCAST_X2APIC));
    assert!(!from_x2apic(4));
}
