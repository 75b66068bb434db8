//! The routings: how CPUs are addressed, what a set of them costs, and which machines that fits.

use core::fmt;
use core::str::FromStr;

use smpcall_machine::Cpu;

use crate::{ApicId, LogicalModel, Mode, RoutingError, Topology};

/// How interrupts are addressed to CPUs.
///
/// The first five are ours. The others are the send paths of report 002 by the names of their day: what
/// they address and how many commands a set takes is theirs, everything else about sending is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Routing {
    /// xAPIC, logical destinations of the flat model: one bit per CPU, so one write reaches any set of the CPUs 0..=7.
    /// Also x86-64's `flat` of report 002. SDM, "Flat Model".
    Flat,
    /// xAPIC, physical destinations: one write per CPU, identifiers 0..=254. Also x86-64's `physflat` of report 002.
    /// SDM, "Physical Destination Mode".
    Physical,
    /// x2APIC, physical destinations: one write per CPU. SDM, "Physical Destination Mode".
    X2ApicPhysical,
    /// x2APIC, logical destinations: one write per cluster of 16 identifiers.
    /// SDM, "Logical Destination Mode in x2APIC Mode".
    X2ApicCluster,
    /// xAPIC, logical destinations of the cluster model: one write per cluster of four CPUs by number, so up to 60 CPUs.
    /// SDM, "Cluster Model".
    XApicCluster,
    /// i386 `mach-default`: logical flat, one write for a set.
    MachDefault,
    /// i386 `bigsmp`: physical, one write per CPU.
    BigSmp,
    /// i386 `es7000` (without clusters, its default): physical, one write per CPU.
    Es7000,
    /// i386 `numaq`: logical clusters of four, one write per CPU.
    NumaQ,
    /// i386 `summit`: logical clusters of four, one write per CPU.
    Summit,
    /// x86-64 `cluster`: logical clusters, in which the fourth CPU and all after it share a bit; and physical
    /// destinations, one write per CPU, for which that does not matter.
    Cluster,
}

/// What the destination of a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addressing {
    /// An identifier. SDM, "Physical Destination Mode".
    Physical,
    /// Bits of an xAPIC in the flat model. SDM, "Flat Model".
    Flat,
    /// A cluster and bits of an xAPIC in the cluster model. SDM, "Cluster Model".
    Cluster,
    /// A cluster and bits of an x2APIC. SDM, "Logical Destination Mode in x2APIC Mode".
    X2ApicCluster,
}

impl Addressing {
    /// Whether destinations are logical ones.
    pub const fn is_logical(self) -> bool {
        !matches!(self, Self::Physical)
    }
}

/// How many commands a set of CPUs takes, if it is not everybody else by shorthand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetCost {
    /// One. Two for all CPUs that the flat model has bits for, while one command would reach CPUs that were never started:
    /// see [`Topology::shorthand_reach`].
    One,
    /// One for each cluster that has a member.
    PerCluster,
    /// One for each member.
    PerCpu,
}

/// All there is to know about a routing.
#[derive(Clone, Copy)]
struct Facts {
    name: &'static str,
    mode: Mode,
    addressing: Addressing,
    set_cost: SetCost,
    /// What an xAPIC is programmed with; nothing if nobody addresses it that way.
    model: Option<LogicalModel>,
    max_id: u32,
    max_cpus: u32,
}

/// The highest identifier of an xAPIC; the next one means "all".
const MAX_XAPIC_ID: u32 = Mode::XApic.broadcast() - 1;

const FLAT: Facts = Facts {
    name: "flat",
    mode: Mode::XApic,
    addressing: Addressing::Flat,
    set_cost: SetCost::One,
    model: Some(LogicalModel::Flat),
    max_id: MAX_XAPIC_ID,
    max_cpus: Routing::MAX_FLAT_CPUS,
};

const PHYSICAL: Facts = Facts {
    name: "physflat",
    mode: Mode::XApic,
    addressing: Addressing::Physical,
    set_cost: SetCost::PerCpu,
    model: None,
    max_id: MAX_XAPIC_ID,
    max_cpus: MAX_XAPIC_ID + 1,
};

const CLUSTER: Facts = Facts {
    name: "xapic-cluster",
    mode: Mode::XApic,
    addressing: Addressing::Cluster,
    set_cost: SetCost::PerCluster,
    model: Some(LogicalModel::Cluster),
    max_id: MAX_XAPIC_ID,
    max_cpus: Routing::MAX_CLUSTER_CPUS,
};

/// In the order of [`Routing::ALL`]. A constant and no static: kernels whose routing is a constant then send without looking
/// anything up.
const FACTS: [Facts; Routing::ALL.len()] = [
    FLAT,
    PHYSICAL,
    Facts {
        name: "x2apic-phys",
        mode: Mode::X2Apic,
        max_id: Mode::X2Apic.broadcast() - 1,
        max_cpus: u32::MAX,
        ..PHYSICAL
    },
    Facts {
        name: "x2apic-cluster",
        mode: Mode::X2Apic,
        addressing: Addressing::X2ApicCluster,
        set_cost: SetCost::PerCluster,
        model: None,
        max_id: MAX_X2APIC_CLUSTER_ID,
        max_cpus: MAX_X2APIC_CLUSTER_ID + 1,
    },
    CLUSTER,
    Facts { name: "mach-default", ..FLAT },
    Facts { name: "bigsmp", ..PHYSICAL },
    Facts { name: "es7000", ..PHYSICAL },
    Facts { name: "numaq", set_cost: SetCost::PerCpu, ..CLUSTER },
    Facts { name: "summit", set_cost: SetCost::PerCpu, ..CLUSTER },
    Facts { name: "cluster", model: Some(LogicalModel::SharedCluster), ..PHYSICAL },
];

/// A logical x2APIC identifier has 16 bits for the cluster, and with cluster `0xffff` a full set would read as "all":
/// that cluster is left out.
const MAX_X2APIC_CLUSTER_ID: u32 = 0xf_ffef;

impl Routing {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Flat,
        Self::Physical,
        Self::X2ApicPhysical,
        Self::X2ApicCluster,
        Self::XApicCluster,
        Self::MachDefault,
        Self::BigSmp,
        Self::Es7000,
        Self::NumaQ,
        Self::Summit,
        Self::Cluster,
    ];

    /// How many CPUs the flat model has bits for.
    pub const MAX_FLAT_CPUS: u32 = 8;

    /// How many CPUs the cluster model of an xAPIC has bits for: clusters 0..=14 of four. Cluster 15 means "all".
    pub const MAX_CLUSTER_CPUS: u32 = 15 * 4;

    #[inline(always)]
    const fn facts(self) -> Facts {
        FACTS[self as usize]
    }

    /// Its name on command lines and in reports.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// The mode it needs.
    #[inline]
    pub const fn mode(self) -> Mode {
        self.facts().mode
    }

    /// What its destinations are.
    #[inline]
    pub const fn addressing(self) -> Addressing {
        self.facts().addressing
    }

    /// How many commands a set of CPUs takes.
    #[inline]
    pub const fn set_cost(self) -> SetCost {
        self.facts().set_cost
    }

    /// What each xAPIC is programmed with, if anything: an x2APIC derives its logical identifier.
    #[inline]
    pub const fn model(self) -> Option<LogicalModel> {
        self.facts().model
    }

    /// The highest identifier that it can send to. Logical xAPIC routings use identifiers for INIT and start-up messages
    /// only. All ones mean "all" and are nobody's.
    #[inline]
    pub const fn max_id(self) -> ApicId {
        ApicId(self.facts().max_id)
    }

    /// How many CPUs a machine can have if its identifiers count from zero without gaps.
    pub const fn max_cpus(self) -> u32 {
        self.facts().max_cpus
    }

    /// Whether a machine with these APICs, in this mode, can be addressed: one identifier per CPU, in any order and with
    /// any gaps. That no two CPUs have the same one is for [`check_tables`](Self::check_tables) to see.
    ///
    /// # Errors
    /// The first fact that stands against it.
    pub fn check(self, mode: Mode, ids: impl IntoIterator<Item = ApicId>) -> Result<(), RoutingError> {
        if mode != self.mode() {
            return Err(RoutingError::WrongMode { routing: self, mode });
        }
        let mut cpus = 0u32;
        for id in ids {
            self.check_id(id)?;
            cpus = cpus.saturating_add(1);
        }
        self.check_count(cpus)
    }

    /// Whether these tables, of a machine whose CPUs have numbers below `cpus`, can be sent by: what
    /// [`check`](Self::check) asks, and that each identifier leads back to its CPU. Numbers without an APIC are left out.
    ///
    /// Two CPUs with one identifier would get each other's interrupts, and one of them none; so does a broken table.
    /// To be called once, before the first send. Time proportional to `cpus`.
    ///
    /// # Errors
    /// The first fact that stands against it.
    pub fn check_tables(self, mode: Mode, tables: &impl Topology, cpus: u32) -> Result<(), RoutingError> {
        self.check(mode, [])?;
        for cpu in (0..cpus).map(Cpu::new) {
            let Some(id) = tables.apic_id(cpu) else { continue };
            self.check_id(id)?;
            self.check_count(self.numbers_needed(cpu))?;
            match tables.cpu(id) {
                Some(found) if found == cpu => {}
                Some(other) if tables.apic_id(other) == Some(id) => {
                    return Err(RoutingError::SameId { id, cpus: [other, cpu] });
                }
                found => return Err(RoutingError::NotInverse { id, cpu, found }),
            }
        }
        Ok(())
    }

    const fn check_id(self, id: ApicId) -> Result<(), RoutingError> {
        if id.0 > self.max_id().0 { Err(RoutingError::IdTooLarge { routing: self, id }) } else { Ok(()) }
    }

    const fn check_count(self, cpus: u32) -> Result<(), RoutingError> {
        if cpus > self.max_cpus() { Err(RoutingError::TooManyCpus { routing: self, cpus }) } else { Ok(()) }
    }

    /// How many CPUs a machine with this one needs addresses for, as far as addresses go by number.
    pub(crate) const fn numbers_needed(self, cpu: Cpu) -> u32 {
        match self.addressing() {
            Addressing::Flat | Addressing::Cluster => cpu.number().saturating_add(1),
            Addressing::Physical | Addressing::X2ApicCluster => 1,
        }
    }

    /// Whether this CPU has an address, as far as addresses go by number.
    pub(crate) fn check_number(self, cpu: Cpu) -> Result<(), RoutingError> {
        self.check_count(self.numbers_needed(cpu))
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No routing has that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRouting;

impl fmt::Display for UnknownRouting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such routing; there are")?;
        for (index, routing) in Routing::ALL.into_iter().enumerate() {
            write!(f, "{} {routing}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownRouting {}

impl FromStr for Routing {
    type Err = UnknownRouting;

    fn from_str(name: &str) -> Result<Self, UnknownRouting> {
        Self::ALL.into_iter().find(|routing| routing.name() == name).ok_or(UnknownRouting)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::testing::Tables;
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn a_routing_is_known_by_its_name() {
        for (index, routing) in Routing::ALL.into_iter().enumerate() {
            assert_eq!(routing as usize, index, "the tables go by position");
            assert_eq!(routing.name().parse(), Ok(routing));
        }
        let error = "vsmp".parse::<Routing>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "no such routing; there are flat, physflat, x2apic-phys, x2apic-cluster, xapic-cluster, mach-default, \
             bigsmp, es7000, numaq, summit, cluster"
        );
    }

    #[test]
    fn a_routing_that_does_not_fit_is_refused_with_the_facts() {
        let ids = |count| (0..count).map(ApicId);
        assert_eq!(Routing::Flat.check(Mode::XApic, ids(8)), Ok(()));
        let error = Routing::Flat.check(Mode::XApic, ids(9)).unwrap_err();
        assert_eq!(error, RoutingError::TooManyCpus { routing: Routing::Flat, cpus: 9 });
        assert_eq!(error.to_string(), "routing flat reaches 8 CPUs at the most, not 9");

        assert_eq!(Routing::Physical.check(Mode::XApic, ids(255)), Ok(()));
        let error = Routing::Physical.check(Mode::XApic, ids(256)).unwrap_err();
        assert_eq!(error, RoutingError::IdTooLarge { routing: Routing::Physical, id: ApicId(255) });
        assert_eq!(error.to_string(), "routing physflat reaches up to APIC 0xfe, not APIC 0xff");

        let error = Routing::X2ApicCluster.check(Mode::XApic, ids(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "routing x2apic-cluster needs an APIC in x2APIC mode, and it is in xAPIC mode"
        );
    }

    #[test]
    fn each_routing_takes_as_many_cpus_as_it_says_and_not_one_more() {
        for routing in Routing::ALL.into_iter().filter(|routing| routing.mode() == Mode::XApic) {
            let check = |cpus| routing.check(Mode::XApic, (0..cpus).map(ApicId));
            assert_eq!(check(routing.max_cpus()), Ok(()), "{routing}");
            assert!(check(routing.max_cpus() + 1).is_err(), "{routing}");
        }
    }

    #[test]
    fn the_send_paths_of_report_002_cost_what_it_says() {
        let with = |cost| -> Vec<&str> {
            let routings = Routing::ALL.into_iter().filter(|routing| routing.set_cost() == cost);
            routings.map(Routing::name).collect()
        };
        assert_eq!(with(SetCost::One), ["flat", "mach-default"]);
        assert_eq!(with(SetCost::PerCluster), ["x2apic-cluster", "xapic-cluster"]);
        let per_cpu = ["physflat", "x2apic-phys", "bigsmp", "es7000", "numaq", "summit", "cluster"];
        assert_eq!(with(SetCost::PerCpu), per_cpu);
    }

    #[test]
    fn clusters_that_would_alias_or_read_as_broadcast_are_refused() {
        let check = |id| Routing::X2ApicCluster.check(Mode::X2Apic, [ApicId(id)]);
        assert_eq!(check(0xf_ffef), Ok(()));
        assert!(check(0xf_fff0).is_err());
        assert!(check(0x10_0000).is_err());
        assert_eq!(Routing::X2ApicPhysical.check(Mode::X2Apic, [ApicId(0x10_0000)]), Ok(()));
        assert!(Routing::X2ApicPhysical.check(Mode::X2Apic, [ApicId(u32::MAX)]).is_err());
    }

    #[test]
    fn clusters_with_holes_are_fine() {
        let ids = [0x00, 0x03, 0x71, 0xf0, 0x10, 0xfe];
        for routing in Routing::ALL {
            assert_eq!(routing.check_tables(routing.mode(), &Tables::of(&ids), 6), Ok(()), "{routing}");
        }
    }

    #[test]
    fn two_cpus_with_one_identifier_are_refused() {
        for routing in Routing::ALL {
            let error = routing.check_tables(routing.mode(), &Tables::of(&[4, 9, 2, 9]), 4).unwrap_err();
            let cpus = [Cpu::new(3), Cpu::new(1)];
            assert_eq!(error, RoutingError::SameId { id: ApicId(9), cpus }, "{routing}");
            assert_eq!(error.to_string(), "CPU 3 and CPU 1 have the same identifier, that of APIC 0x9");
        }
    }

    #[test]
    fn an_identifier_that_leads_elsewhere_is_refused() {
        let mut tables = Tables::of(&[4, 9]);
        tables.cpus.remove(&9);
        let error = Routing::Physical.check_tables(Mode::XApic, &tables, 2).unwrap_err();
        assert_eq!(error.to_string(), "CPU 1 has APIC 0x9, and the tables of the kernel say that of no CPU");
        tables.cpus.insert(9, Cpu::new(0));
        let error = Routing::Physical.check_tables(Mode::XApic, &tables, 2).unwrap_err();
        assert_eq!(error.to_string(), "CPU 1 has APIC 0x9, and the tables of the kernel say that of CPU 0");
    }

    #[test]
    fn a_number_beyond_the_addresses_is_refused_however_few_cpus_there_are() {
        let mut tables = Tables::of(&[0]);
        tables.ids.resize(61, None);
        tables.ids[60] = Some(ApicId(1));
        tables.cpus.insert(1, Cpu::new(60));
        let check = |routing: Routing| routing.check_tables(routing.mode(), &tables, 61);
        let error = check(Routing::Summit).unwrap_err();
        assert_eq!(error.to_string(), "routing summit reaches 60 CPUs at the most, not 61");
        assert!(check(Routing::Flat).is_err());
        assert_eq!(check(Routing::Cluster), Ok(()));
    }
}
