//! How CPUs are addressed: the routings, their limits, and what the kernel must know about its APICs.

use core::fmt;
use core::str::FromStr;

use smpcall_machine::{Cpu, CpuMask};

use crate::{ApicId, Mode};

/// How interrupts are addressed to CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Routing {
    /// xAPIC, logical destinations of the flat model: one bit per CPU, so one write reaches any set of the CPUs 0..=7.
    /// SDM, "Flat Model".
    Flat,
    /// xAPIC, physical destinations: one write per CPU, identifiers 0..=254. SDM, "Physical Destination Mode".
    Physical,
    /// x2APIC, physical destinations: one write per CPU. SDM, "Physical Destination Mode".
    X2ApicPhysical,
    /// x2APIC, logical destinations: one write per cluster of 16 identifiers.
    /// SDM, "Logical Destination Mode in x2APIC Mode".
    X2ApicCluster,
}

impl Routing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Flat, Self::Physical, Self::X2ApicPhysical, Self::X2ApicCluster];

    /// Its name on command lines and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Physical => "physflat",
            Self::X2ApicPhysical => "x2apic-phys",
            Self::X2ApicCluster => "x2apic-cluster",
        }
    }

    /// The mode it needs.
    pub const fn mode(self) -> Mode {
        match self {
            Self::Flat | Self::Physical => Mode::XApic,
            Self::X2ApicPhysical | Self::X2ApicCluster => Mode::X2Apic,
        }
    }

    /// The highest identifier it can address. [`Flat`](Self::Flat) uses identifiers for INIT and start-up messages only.
    ///
    /// All ones mean "all" and are nobody's. A logical x2APIC identifier has 16 bits for the cluster, and with cluster
    /// `0xffff` a full set would read as "all": that cluster is left out.
    pub const fn max_id(self) -> ApicId {
        ApicId(match self {
            Self::Flat | Self::Physical => 0xfe,
            Self::X2ApicPhysical => 0xffff_fffe,
            Self::X2ApicCluster => 0xf_ffef,
        })
    }

    /// How many CPUs the flat model has bits for.
    pub const MAX_FLAT_CPUS: u32 = 8;

    /// How many CPUs a machine can have if its identifiers count from zero without gaps.
    pub const fn max_cpus(self) -> u32 {
        match self {
            Self::Flat => Self::MAX_FLAT_CPUS,
            _ => self.max_id().0.saturating_add(1),
        }
    }

    /// Whether a machine with these APICs, in this mode, can be addressed: one identifier per CPU, in any order.
    ///
    /// # Errors
    /// The first fact that stands against it.
    pub fn check(self, mode: Mode, ids: impl IntoIterator<Item = ApicId>) -> Result<(), RoutingError> {
        if mode != self.mode() {
            return Err(RoutingError::WrongMode { routing: self, mode });
        }
        let mut cpus = 0u32;
        for id in ids {
            if id > self.max_id() {
                return Err(RoutingError::IdTooLarge { routing: self, id });
            }
            cpus = cpus.saturating_add(1);
        }
        if cpus > self.max_cpus() {
            return Err(RoutingError::TooManyCpus { routing: self, cpus });
        }
        Ok(())
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

/// Why a routing does not fit a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoutingError {
    /// The APIC is in the other mode.
    WrongMode {
        /// The routing asked for.
        routing: Routing,
        /// The mode that the APIC is in.
        mode: Mode,
    },
    /// The routing cannot address that many CPUs, or not the CPU with that number.
    TooManyCpus {
        /// The routing asked for.
        routing: Routing,
        /// How many CPUs it would have to address.
        cpus: u32,
    },
    /// The routing cannot address this APIC.
    IdTooLarge {
        /// The routing asked for.
        routing: Routing,
        /// The identifier beyond its limit.
        id: ApicId,
    },
}

impl fmt::Display for RoutingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::WrongMode { routing, mode } => {
                write!(
                    f,
                    "routing {routing} needs an APIC in {} mode, and it is in {mode} mode",
                    routing.mode()
                )
            }
            Self::TooManyCpus { routing, cpus } => {
                write!(f, "routing {routing} reaches {} CPUs at the most, not {cpus}", routing.max_cpus())
            }
            Self::IdTooLarge { routing, id } => {
                write!(f, "routing {routing} reaches up to {}, not {id}", routing.max_id())
            }
        }
    }
}

impl core::error::Error for RoutingError {}

/// What the kernel knows about its CPUs' APICs. Queried on every send: constant time, no locks.
pub trait Topology {
    /// The APIC of a CPU; none if there is no such CPU.
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId>;

    /// The CPU of an APIC: the inverse of [`apic_id`](Self::apic_id). Used by [`Routing::X2ApicCluster`] to find the
    /// members of a cluster without searching; the others never ask.
    fn cpu(&self, id: ApicId) -> Option<Cpu>;

    /// The CPUs that a message to "all", from any one of them, reaches: all that have ever been started, the sender
    /// included. None as long as a present CPU has not been started, which must not be sent such a message (an NMI
    /// would find it without handlers), and if the kernel wants no shorthands.
    fn shorthand_reach(&self) -> Option<&CpuMask>;
}

impl<T: Topology + ?Sized> Topology for &T {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        (**self).apic_id(cpu)
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        (**self).cpu(id)
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        (**self).shorthand_reach()
    }
}

/// Whether `targets` is exactly `reach` without `me`. The two may have different capacities.
pub(crate) fn is_all_but(me: Cpu, targets: &CpuMask, reach: &CpuMask) -> bool {
    let (targets, reach) = (targets.words(), reach.words());
    (0..targets.len().max(reach.len())).all(|index| {
        let my_bit = if me.index() / 64 == index { 1 << (me.number() % 64) } else { 0 };
        let word = |words: &[u64]| words.get(index).copied().unwrap_or(0);
        word(targets) == word(reach) & !my_bit
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use smpcall_machine::CpuSet;
    use std::string::ToString;

    #[test]
    fn a_routing_is_known_by_its_name() {
        for routing in Routing::ALL {
            assert_eq!(routing.name().parse(), Ok(routing));
        }
        let error = "bigsmp".parse::<Routing>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "no such routing; there are flat, physflat, x2apic-phys, x2apic-cluster"
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
    fn clusters_that_would_alias_or_read_as_broadcast_are_refused() {
        let check = |id| Routing::X2ApicCluster.check(Mode::X2Apic, [ApicId(id)]);
        assert_eq!(check(0xf_ffef), Ok(()));
        assert!(check(0xf_fff0).is_err());
        assert!(check(0x10_0000).is_err());
        assert_eq!(Routing::X2ApicPhysical.check(Mode::X2Apic, [ApicId(0x10_0000)]), Ok(()));
        assert!(Routing::X2ApicPhysical.check(Mode::X2Apic, [ApicId(u32::MAX)]).is_err());
    }

    #[test]
    fn all_but_me_is_recognised_whatever_the_capacities() {
        let set = |cpus: &[u32]| cpus.iter().copied().map(Cpu::new).collect::<CpuSet<2>>();
        let reach = set(&[0, 1, 70]);
        let me = Cpu::new(1);
        assert!(is_all_but(me, &set(&[0, 70]), &reach));
        assert!(!is_all_but(me, &set(&[0]), &reach));
        assert!(!is_all_but(me, &set(&[0, 1, 70]), &reach));
        assert!(!is_all_but(me, &set(&[0, 2, 70]), &reach));
        let small: CpuSet<1> = [Cpu::new(0)].into_iter().collect();
        assert!(is_all_but(me, &small, &set(&[0, 1])));
        assert!(!is_all_but(me, &small, &reach));
    }
}
