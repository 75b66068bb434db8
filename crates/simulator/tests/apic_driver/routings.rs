//! The routings one by one: the send paths of report 002, clusters, and what does not fit.

use smpcall_local_apic::{
    Access, ApicId, DeliveryMode, EnableError, Interrupt, LogicalModel, Mode, Register, Routing,
    RoutingError, SetCost,
};
use smpcall_machine::{Cpu, SendError};
use smpcall_simulator::apic::{ApicModel, Message};

use crate::bus::*;

#[test]
fn the_send_paths_of_report_002_take_the_commands_that_it_counts() {
    for (name, commands) in [
        ("mach-default", 1),
        ("bigsmp", 7),
        ("es7000", 7),
        ("numaq", 7),
        ("summit", 7),
        ("flat", 1),
        ("cluster", 7),
        ("physflat", 7),
        ("x2apic-cluster", 1),
        ("x2apic-phys", 7),
        // Ours: CPUs 1 to 3, and 4 to 7.
        ("xapic-cluster", 2),
    ] {
        let (driver, tables) = machine(name.parse().expect("a routing"), 0..8);
        let others = set(1..8);
        assert_eq!(driver.send_many(&tables, &others, Interrupt::Nmi), Ok(sent(commands)), "{name}");
        assert_eq!(bus(|bus| bus.receivers()), once_each(1..8), "{name}");
    }
}

#[test]
fn sixty_cpus_are_fifteen_clusters_of_four_whatever_their_identifiers() {
    let ids = (0..60).map(|cpu| (cpu * 37) % 251);
    for (routing, commands) in [(Routing::XApicCluster, 15), (Routing::NumaQ, 59), (Routing::Summit, 59)] {
        let (driver, tables) = machine(routing, ids.clone());
        let result = driver.send_many(&tables, &set(1..60), Interrupt::Fixed(RING));
        assert_eq!(result, Ok(sent(commands)), "{routing}");
        assert_eq!(bus(|bus| bus.receivers()), once_each(1..60), "{routing}");
        assert_eq!(bus(|bus| bus.apics[59].read(Register::DESTINATION_FORMAT, now())), Ok(0x0fff_ffff));
        assert_eq!(bus(|bus| bus.apics[59].read(Register::LOGICAL_DESTINATION, now())), Ok(0xe800_0000));
    }
}

fn now() -> smpcall_machine::Instant {
    smpcall_machine::Instant::default()
}

#[test]
fn a_cpu_without_a_logical_identifier_is_refused_and_not_sent_to() {
    for (routing, first_beyond) in
        [(Routing::MachDefault, 8), (Routing::Summit, 60), (Routing::XApicCluster, 60)]
    {
        let (driver, mut tables) = machine(routing, [0, 1, 2]);
        let refused = driver.enable(Cpu::new(first_beyond), ApicId(0), SPURIOUS);
        let expected = RoutingError::TooManyCpus { routing, cpus: first_beyond + 1 };
        assert_eq!(refused, Err(EnableError::Routing(expected)));
        assert!(bus(|bus| bus.writes.is_empty()));
        tables.ids.resize(first_beyond as usize + 1, ApicId(2));
        let result = driver.send_one(&tables, Cpu::new(first_beyond), Interrupt::Fixed(RING));
        assert_eq!(result, Err(SendError::Unreachable), "{routing}");
        let result = driver.send_many(&tables, &set([1, first_beyond]), Interrupt::Fixed(RING));
        assert_eq!(result, Err(SendError::Unreachable), "{routing}");
        assert_eq!(bus(|bus| bus.receivers()), once_each([1]), "{routing}");
    }
}

#[test]
fn identifiers_beyond_eight_bits_are_refused_in_xapic_mode() {
    for routing in Routing::ALL.into_iter().filter(|routing| routing.max_id() == ApicId(0xfe)) {
        let (driver, mut tables) = machine(routing, [0, 1]);
        for id in [0xff, 0x100, 0x101] {
            assert!(routing.check(routing.mode(), [ApicId(id)]).is_err(), "{routing} {id:#x}");
            tables.ids[1] = ApicId(id);
            // Cut off to 8 bits, 0x101 would be CPU 1's own, and 0xff is everybody.
            let result = driver.send_one(&tables, Cpu::new(1), Interrupt::Fixed(RING));
            assert_eq!(result, Err(SendError::Unreachable), "{routing} {id:#x}");
            assert_eq!(driver.send_init(ApicId(id)), Err(SendError::Unreachable));
        }
        assert!(bus(|bus| bus.received.iter().all(Vec::is_empty)));
    }
}

#[test]
fn cpus_that_share_a_logical_identifier_are_told_apart_by_physical_destinations() {
    let (driver, tables) = machine(Routing::Cluster, 0x20..0x26);
    assert_eq!(Routing::Cluster.model(), Some(LogicalModel::SharedCluster));
    for target in 0..6 {
        bus(Bus::forget);
        driver.send_one(&tables, Cpu::new(target), Interrupt::Fixed(RING)).unwrap();
        assert_eq!(bus(|bus| bus.receivers()), once_each([target]));
    }
    // What a logical destination would do: the fourth to the last of the cluster have one bit.
    bus(Bus::forget);
    let access = driver.access();
    access.write(Register::ICR_HIGH, 0x2800_0000);
    access.write(Register::ICR_LOW, 0x48fb);
    assert_eq!(bus(|bus| bus.receivers()), once_each(3..6));
}

#[test]
fn clusters_with_holes_take_one_command_each() {
    let ids = [0x00, 0x07, 0x0f, 0x31, 0xff0, 0xff3, 0x10];
    let (driver, tables) = machine(Routing::X2ApicCluster, ids);
    assert_eq!(driver.send_many(&tables, &set(1..7), Interrupt::Fixed(RING)), Ok(sent(4)));
    assert_eq!(bus(|bus| bus.receivers()), once_each(1..7));
    // Holes in the numbers: nobody of cluster 1, and one of cluster 2.
    let (driver, tables) = machine(Routing::XApicCluster, (0..12).map(|cpu| cpu * 16));
    assert_eq!(driver.send_many(&tables, &set([2, 3, 9]), Interrupt::Fixed(RING)), Ok(sent(2)));
    assert_eq!(bus(|bus| bus.receivers()), once_each([2, 3, 9]));
}

#[test]
fn all_bits_of_the_flat_model_do_not_reach_a_cpu_that_was_never_started() {
    for routing in [Routing::Flat, Routing::MachDefault] {
        let (driver, mut tables) = machine(routing, 0..8);
        bus(|bus| {
            let mut ninth = ApicModel::new(8, Mode::XApic);
            ninth.accept(Message::edge(DeliveryMode::Init, 0));
            bus.apics.push(ninth);
            bus.received.push(Vec::new());
        });
        assert_eq!(driver.send_many(&tables, &set(0..8), Interrupt::Nmi), Ok(sent(2)), "{routing}");
        assert_eq!(bus(|bus| bus.receivers()), once_each(0..8), "{routing}");
        assert!(bus(|bus| !bus.apics[8].nmi_pending()));
        // Where all were started, "all" is what is meant.
        bus(Bus::forget);
        tables.reach = Some(set(0..9));
        assert_eq!(driver.send_many(&tables, &set(0..8), Interrupt::Nmi), Ok(sent(1)), "{routing}");
    }
}

#[test]
fn one_cpu_by_the_code_for_sets_takes_one_command_and_more_questions() {
    for routing in Routing::ALL {
        let (driver, tables) = machine(routing, 0..8);
        let (target, ring) = (Cpu::new(5), Interrupt::Fixed(RING));
        assert_eq!(driver.send_one(&tables, target, ring), Ok(sent(1)));
        assert_eq!(tables.questions.replace(0), 0, "{routing}");
        assert_eq!(driver.send_one_as_set(&tables, target, ring), Ok(sent(1)));
        let questions = if routing == Routing::X2ApicCluster { 16 } else { 0 };
        assert_eq!(tables.questions.get(), questions, "{routing}");
        assert_eq!(bus(|bus| bus.received[5].len()), 2, "{routing}");
        let beyond = Cpu::new(64 * 64);
        assert_eq!(driver.send_one_as_set(&tables, beyond, ring), Err(SendError::Unreachable));
    }
}

#[test]
fn whoever_is_least_busy_gets_what_is_sent_to_any() {
    let (driver, tables) = machine(Routing::Flat, 0..8);
    bus(|bus| {
        for (cpu, apic) in bus.apics.iter_mut().enumerate() {
            let priority = if cpu == 6 { 0x20 } else { 0x30 };
            apic.write(Register::TASK_PRIORITY, priority, now()).unwrap();
        }
    });
    assert_eq!(driver.send_to_any(&tables, &set([1, 3, 6]), RING), Ok(sent(1)));
    assert_eq!(bus(|bus| bus.receivers()), once_each([6]));
    assert_eq!(Routing::Flat.set_cost(), SetCost::One);
}

#[test]
fn oneself_is_sent_to_in_both_modes() {
    for routing in [Routing::Flat, Routing::X2ApicPhysical] {
        let (driver, _) = machine(routing, 0..3);
        bus(|bus| bus.current = 1);
        assert_eq!(driver.send_self(RING), Ok(sent(1)));
        assert_eq!(bus(|bus| bus.receivers()), once_each([1]), "{routing}");
    }
}
