//! Who receives what, for how many commands.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use smpcall_local_apic::{ApicId, Interrupt, Routing, SetCost};
use smpcall_machine::{Cpu, SendError};
use smpcall_simulator::apic::Message;

use crate::bus::*;

#[test]
fn one_cpu_takes_one_command_on_every_routing_and_only_it_receives() {
    for routing in Routing::ALL {
        let cpus = routing.max_cpus().min(300);
        let (driver, tables) = machine(routing, 0..cpus);
        for target in 0..cpus {
            bus(Bus::forget);
            let result = driver.send_one(&tables, Cpu::new(target), Interrupt::Fixed(RING));
            assert_eq!(result, Ok(sent(1)), "{routing}");
            assert_eq!(bus(|bus| bus.receivers()), once_each([target]), "{routing}");
            assert_eq!(bus(|bus| bus.received[target as usize][0]), Message::fixed(0xfb));
            assert_eq!(bus(|bus| bus.icr_writes()), 1);
        }
    }
}

#[test]
fn nmis_are_sent_like_everything_else() {
    for routing in Routing::ALL {
        let (driver, tables) = machine(routing, 0..8);
        driver.send_one(&tables, Cpu::new(5), Interrupt::Nmi).unwrap();
        driver.send_many(&tables, &set([1, 7]), Interrupt::Nmi).unwrap();
        let latched: Vec<u32> =
            bus(|bus| (0..8).filter(|&cpu| bus.apics[cpu as usize].nmi_pending()).collect());
        assert_eq!(latched, [1, 5, 7], "{routing}");
        assert!(bus(|bus| bus.apics.iter().all(|apic| apic.irr().is_empty())));
    }
}

#[test]
fn sixteen_cpus_are_two_commands_in_two_clusters_and_four_thousand_are_256() {
    let (driver, tables) = machine(Routing::X2ApicCluster, 8..24);
    assert_eq!(driver.send_many(&tables, &set(1..16), Interrupt::Fixed(RING)), Ok(sent(2)));
    let (driver, tables) = machine(Routing::X2ApicCluster, 0..4096);
    assert_eq!(driver.send_many(&tables, &set(1..4096), Interrupt::Fixed(RING)), Ok(sent(256)));
    assert_eq!(bus(|bus| bus.receivers()), once_each(1..4096));
}

#[test]
fn clusters_are_merged_whatever_the_order_of_identifiers() {
    // Neighbours in number are in different clusters: cluster `n % 256`, the worst order there is.
    let ids = (0..4096u32).map(|cpu| ((cpu % 256) << 4) | (cpu / 256));
    let (driver, tables) = machine(Routing::X2ApicCluster, ids);
    assert_eq!(driver.send_many(&tables, &set(1..4096), Interrupt::Fixed(RING)), Ok(sent(256)));
    assert_eq!(bus(|bus| bus.receivers()), once_each(1..4096));
}

#[test]
fn merging_clusters_asks_sixteen_questions_for_each_cluster_if_identifiers_follow_cpu_numbers() {
    let (driver, tables) = machine(Routing::X2ApicCluster, 0..4096);
    driver.send_many(&tables, &set(1..4096), Interrupt::Fixed(RING)).unwrap();
    assert_eq!(tables.questions.get(), 256 * 16);
}

#[test]
fn everybody_but_me_is_one_command_if_shorthands_are_allowed() {
    for routing in Routing::ALL {
        let cpus = routing.max_cpus().min(300);
        let (driver, mut tables) = machine(routing, 0..cpus);
        tables.reach = Some(set(0..cpus));
        for me in [0, cpus - 1] {
            bus(|bus| {
                bus.current = me as usize;
                bus.forget();
            });
            let others = || (0..cpus).filter(|&cpu| cpu != me);
            assert_eq!(driver.send_many(&tables, &set(others()), Interrupt::Fixed(RING)), Ok(sent(1)));
            assert_eq!(bus(|bus| bus.receivers()), once_each(others()), "{routing}");
            assert_eq!(bus(|bus| shorthand(bus.writes.last().unwrap().1)), 3, "{routing}");
        }
    }
}

#[test]
fn no_shorthand_is_used_while_a_present_cpu_has_not_been_started() {
    let (driver, mut tables) = machine(Routing::Physical, 0..8);
    tables.reach = None;
    assert_eq!(driver.send_many(&tables, &set(1..8), Interrupt::Nmi), Ok(sent(7)));
    assert!(bus(|bus| bus.writes.iter().all(|&(_, value, _)| shorthand(value) == 0)));
}

#[test]
fn no_shorthand_is_used_for_any_other_set() {
    let (driver, mut tables) = machine(Routing::Physical, 0..8);
    tables.reach = Some(set(0..8));
    for targets in [set(0..8), set(1..7), set(2..8), set([0, 2, 3, 4, 5, 6, 7])] {
        bus(Bus::forget);
        let expected = sent(targets.len() as u32);
        assert_eq!(driver.send_many(&tables, &targets, Interrupt::Fixed(RING)), Ok(expected));
        assert_eq!(bus(|bus| bus.receivers()), once_each(targets.iter().map(Cpu::number)));
    }
}

#[test]
fn the_empty_set_takes_no_command() {
    for routing in Routing::ALL {
        let (driver, mut tables) = machine(routing, [0]);
        // The only CPU there is: "everybody but me" is nobody.
        tables.reach = Some(set([0]));
        assert_eq!(driver.send_many(&tables, &set([]), Interrupt::Fixed(RING)), Ok(sent(0)));
        assert_eq!(bus(|bus| bus.icr_writes()), 0);
    }
}

#[test]
fn an_unreachable_cpu_is_an_error_and_the_others_are_sent_to() {
    for routing in Routing::ALL {
        let (driver, tables) = machine(routing, 0..6);
        let no_such_cpu = Cpu::new(6);
        let result = driver.send_one(&tables, no_such_cpu, Interrupt::Fixed(RING));
        assert_eq!(result, Err(SendError::Unreachable));
        let result = driver.send_many(&tables, &set([1, 4, 6, 70]), Interrupt::Fixed(RING));
        assert_eq!(result, Err(SendError::Unreachable), "{routing}");
        assert_eq!(bus(|bus| bus.receivers()), once_each([1, 4]), "{routing}");
    }
}

#[test]
fn an_identifier_that_means_all_is_unreachable_and_not_a_broadcast() {
    for routing in Routing::ALL {
        let (driver, mut tables) = machine(routing, 0..4);
        for id in [routing.mode().broadcast(), routing.max_id().0 + 1] {
            tables.ids[3] = ApicId(id);
            let result = driver.send_one(&tables, Cpu::new(3), Interrupt::Nmi);
            assert_eq!(result, Err(SendError::Unreachable), "{routing}");
            assert_eq!(driver.send_init(ApicId(id)), Err(SendError::Unreachable), "{routing}");
        }
        assert_eq!(bus(|bus| bus.icr_writes()), 0);
    }
}

#[test]
fn a_stopped_cpu_is_started_by_its_identifier_on_every_routing() {
    for routing in Routing::ALL {
        let (driver, _) = machine(routing, 0..8);
        driver.send_init(ApicId(6)).unwrap();
        let waiting = |cpu: usize| bus(|bus| bus.apics[cpu].is_waiting_for_start_up());
        assert_eq!((0..8).filter(|&cpu| waiting(cpu)).collect::<Vec<_>>(), [6], "{routing}");
        driver.send_start_up(ApicId(6), 0x9f).unwrap();
        assert!(!waiting(6));
        assert_eq!(bus(|bus| bus.received[6][1].vector), 0x9f);
        assert_eq!(bus(|bus| bus.receivers()), BTreeMap::from([(6, 2)]), "{routing}");
    }
}

/// A routing, the identifiers of its CPUs in some order, the targets, and whether shorthands are allowed.
fn sends() -> impl Strategy<Value = (Routing, Vec<u32>, BTreeSet<u32>, bool)> {
    prop::sample::select(&Routing::ALL[..]).prop_flat_map(|routing| {
        let cpus = routing.max_cpus().min(100) as usize;
        let ids = prop::sample::subsequence((0..255u32).collect::<Vec<_>>(), cpus).prop_shuffle();
        (Just(routing), ids, prop::collection::btree_set(0..cpus as u32, 0..=cpus), any::<bool>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_set_is_received_once_each_for_as_few_commands_as_the_routing_allows(
        (routing, ids, targets, shorthands) in sends()
    ) {
        let (driver, mut tables) = machine(routing, ids.iter().copied());
        tables.reach = shorthands.then(|| set(0..ids.len() as u32));
        let clusters: BTreeSet<u32> = targets.iter().map(|&cpu| ids[cpu as usize] / 16).collect();
        let all_but_me = targets.iter().copied().eq(1..ids.len() as u32);
        let numbers: BTreeSet<u32> = targets.iter().map(|cpu| cpu / 4).collect();
        let expected = match routing.set_cost() {
            _ if targets.is_empty() => 0,
            _ if shorthands && all_but_me => 1,
            // All eight bits would mean "all".
            SetCost::One => 1 + usize::from(targets.len() == 8 && !shorthands),
            SetCost::PerCluster if routing == Routing::XApicCluster => numbers.len(),
            SetCost::PerCluster => clusters.len(),
            SetCost::PerCpu => targets.len(),
        };
        let result = driver.send_many(&tables, &set(targets.iter().copied()), Interrupt::Fixed(RING));
        prop_assert_eq!(result, Ok(sent(expected as u32)));
        prop_assert_eq!(bus(|bus| bus.icr_writes()), expected);
        prop_assert_eq!(bus(|bus| bus.receivers()), once_each(targets));
    }
}
