//! Logical identifiers of an xAPIC: what its logical-destination and destination-format registers hold.
//!
//! Source: SDM, "Logical Destination Mode", "Flat Model" and "Cluster Model". All APICs of a machine must agree on the model.
//! An x2APIC derives its identifier: [`ApicId::x2apic_logical`].

use smpcall_machine::Cpu;

use crate::{ApicId, Routing};

/// How an xAPIC reads logical destinations, and which identifier each CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogicalModel {
    /// Eight bits, one for each CPU by number.
    Flat,
    /// A cluster of four CPUs by number in bits 7..4, one bit for each of them below. The numbers are the kernel's, so
    /// clusters are full and unique whatever the identifiers.
    Cluster,
    /// The cluster is the upper half of the identifier, and all but the first three of a cluster share its last bit: two CPUs
    /// may have one logical identifier. Of use only to those who do not send to it (report 002, x86-64 `cluster`).
    SharedCluster,
}

impl LogicalModel {
    /// The content of the destination-format register. Bits 27..0 are reserved and one.
    pub const fn format(self) -> u32 {
        match self {
            Self::Flat => 0xffff_ffff,
            Self::Cluster | Self::SharedCluster => 0x0fff_ffff,
        }
    }

    /// Whether one command can reach the APICs with both of these logical identifiers.
    pub(crate) const fn shares_command(self, one: u32, other: u32) -> bool {
        match self {
            Self::Flat => true,
            Self::Cluster | Self::SharedCluster => one >> 4 == other >> 4,
        }
    }

    /// The logical identifier of a CPU, as it stands in bits 31..24 of the logical-destination register; none if the model
    /// has none for that CPU.
    pub const fn logical_id(self, cpu: Cpu, id: ApicId) -> Option<u8> {
        let number = cpu.number();
        match self {
            Self::Flat if number < Routing::MAX_FLAT_CPUS => Some(1 << number),
            Self::Cluster if number < Routing::MAX_CLUSTER_CPUS => {
                Some((number / 4 * 16) as u8 | 1 << (number % 4))
            }
            Self::SharedCluster if id.0 <= 0xff => {
                let member = if id.0 & 0xf < 3 { id.0 & 0xf } else { 3 };
                Some(id.0 as u8 & 0xf0 | 1 << member)
            }
            Self::Flat | Self::Cluster | Self::SharedCluster => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(model: LogicalModel, cpu: u32, id: u32) -> Option<u8> {
        model.logical_id(Cpu::new(cpu), ApicId(id))
    }

    #[test]
    fn flat_has_a_bit_for_each_of_eight_cpus() {
        assert_eq!(id(LogicalModel::Flat, 0, 9), Some(0x01));
        assert_eq!(id(LogicalModel::Flat, 7, 9), Some(0x80));
        assert_eq!(id(LogicalModel::Flat, 8, 9), None);
    }

    #[test]
    fn clusters_have_four_cpus_and_there_are_fifteen_of_them() {
        assert_eq!(id(LogicalModel::Cluster, 0, 9), Some(0x01));
        assert_eq!(id(LogicalModel::Cluster, 6, 9), Some(0x14));
        assert_eq!(id(LogicalModel::Cluster, 59, 9), Some(0xe8));
        assert_eq!(id(LogicalModel::Cluster, 60, 9), None);
    }

    #[test]
    fn clusters_that_are_shared_have_two_cpus_with_one_identifier() {
        assert_eq!(id(LogicalModel::SharedCluster, 70, 0x22), Some(0x24));
        assert_eq!(id(LogicalModel::SharedCluster, 71, 0x23), Some(0x28));
        assert_eq!(id(LogicalModel::SharedCluster, 72, 0x24), Some(0x28));
        assert_eq!(id(LogicalModel::SharedCluster, 72, 0x100), None);
    }
}
