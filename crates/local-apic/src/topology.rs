//! What the kernel knows about its APICs, and why a routing does not fit them.

use core::fmt;

use smpcall_machine::{Cpu, CpuMask};

use crate::{ApicId, Mode, Routing};

/// What the kernel knows about its CPUs' APICs. Queried on every send: constant time, no locks.
///
/// No two CPUs have the same identifier: [`Routing::check_tables`] sees whether that is so.
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
    /// Two CPUs have one identifier.
    SameId {
        /// The identifier.
        id: ApicId,
        /// The two.
        cpus: [Cpu; 2],
    },
    /// The tables lead from a CPU to an identifier, and from there to another CPU or none.
    NotInverse {
        /// The identifier.
        id: ApicId,
        /// Whose it is.
        cpu: Cpu,
        /// Where it leads.
        found: Option<Cpu>,
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
            Self::SameId { id, cpus: [one, other] } => {
                write!(f, "{one} and {other} have the same identifier, that of {id}")
            }
            Self::NotInverse { id, cpu, found } => {
                write!(f, "{cpu} has {id}, and the tables of the kernel say that of ")?;
                match found {
                    Some(found) => found.fmt(f),
                    None => f.write_str("no CPU"),
                }
            }
        }
    }
}

impl core::error::Error for RoutingError {}

/// Whether `targets` is exactly `reach` without `me`. The two may have different capacities.
pub(crate) fn is_all_but(me: Cpu, targets: &CpuMask, reach: &CpuMask) -> bool {
    let (targets, reach) = (targets.words(), reach.words());
    let (mine, my_bit) = (me.index() / 64, 1 << (me.number() % 64));
    let (both, targets_beyond) = targets.split_at(targets.len().min(reach.len()));
    both.iter()
        .enumerate()
        .all(|(index, &word)| word == if index == mine { reach[index] & !my_bit } else { reach[index] })
        && targets_beyond.iter().all(|&word| word == 0)
        && (both.len()..reach.len())
            .all(|index| reach[index] & !(if index == mine { my_bit } else { 0 }) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smpcall_machine::CpuSet;

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
