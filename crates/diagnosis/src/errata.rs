//! Processors, and the published errata by which one may lose an interrupt or the wake-up that replaces one.
//!
//! An erratum is a possible cause and never a verdict: that a processor has it does not say that it struck.

use core::fmt;

use serde::Serialize;

/// A processor, as CPUID and `/proc/cpuinfo` name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuModel {
    /// `GenuineIntel`, `AuthenticAMD`, `HygonGenuine`.
    pub vendor: String,
    /// The family, extended family added.
    pub family: u32,
    /// The model, extended model included.
    pub model: u32,
    /// The stepping.
    pub stepping: Option<u32>,
    /// The name, for people.
    pub name: Option<String>,
}

/// Under which circumstances an erratum can be the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circumstance {
    /// The processor is the host of a virtual machine, whose interrupts it delivers itself. What a guest sees as its own
    /// processor is what its host chose to show, so this is a hint where to look on the host.
    HostOfGuest,
    /// The target sleeps in MWAIT and is woken by a store, without an IPI.
    IdlePolling,
}

/// A published erratum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erratum {
    /// Its number, with whose it is.
    pub name: &'static str,
    /// What goes wrong.
    pub effect: &'static str,
    /// When.
    pub circumstance: Circumstance,
    /// Where it is described.
    pub source: &'static str,
    vendor: &'static str,
    family: u32,
    /// Empty: all of the family.
    models: &'static [u32],
}

/// All that are known here. Each concerns lost or late wake-ups of another CPU; no erratum is published by which a
/// Xeon X7350, the processor of report 000, would lose a fixed IPI.
pub const ERRATA: [Erratum; 5] = [
    Erratum {
        name: "AMD 1235",
        effect: "a sender may not notice that its target virtual CPU no longer runs, so that nobody wakes it for the IPI",
        circumstance: Circumstance::HostOfGuest,
        source: "Linux commit 8de4a1c8164e, arch/x86/kvm/svm/avic.c",
        vendor: "AuthenticAMD",
        family: 0x17,
        models: &[],
    },
    Erratum {
        name: "AMD 1235 (Hygon)",
        effect: "a sender may not notice that its target virtual CPU no longer runs, so that nobody wakes it for the IPI",
        circumstance: Circumstance::HostOfGuest,
        source: "Linux, arch/x86/kvm/svm/avic.c (2026): the family is derived from Zen 1",
        vendor: "HygonGenuine",
        family: 0x18,
        models: &[],
    },
    Erratum {
        name: "Intel AAI65",
        effect: "MONITOR may miss a store unless the line is flushed before, so that a sleeping CPU is not woken by it",
        circumstance: Circumstance::IdlePolling,
        source: "Linux, X86_BUG_CLFLUSH_MONITOR in arch/x86/kernel/cpu/intel.c",
        vendor: "GenuineIntel",
        family: 6,
        models: &[29, 46, 47],
    },
    Erratum {
        name: "Intel APL30",
        effect: "a store to the monitored line may not wake a CPU from MWAIT",
        circumstance: Circumstance::IdlePolling,
        source: "Linux, X86_BUG_MONITOR in arch/x86/kernel/cpu/intel.c",
        vendor: "GenuineIntel",
        family: 6,
        models: &[0x5c],
    },
    Erratum {
        name: "Intel LNL (MONITOR)",
        effect: "a store to the monitored line may not wake a CPU from MWAIT",
        circumstance: Circumstance::IdlePolling,
        source: "Linux, X86_BUG_MONITOR in arch/x86/kernel/cpu/intel.c: Lunar Lake M",
        vendor: "GenuineIntel",
        family: 6,
        models: &[0xbd],
    },
];

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} family {:#x} model {:#x}", self.vendor, self.family, self.model)
    }
}

impl CpuModel {
    /// The errata of this processor.
    pub fn errata(&self) -> impl Iterator<Item = &'static Erratum> + '_ {
        ERRATA.iter().filter(|erratum| {
            erratum.vendor == self.vendor
                && erratum.family == self.family
                && (erratum.models.is_empty() || erratum.models.contains(&self.model))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(vendor: &str, family: u32, model: u32) -> Vec<&'static str> {
        let model = CpuModel { vendor: vendor.into(), family, model, ..CpuModel::default() };
        model.errata().map(|erratum| erratum.name).collect()
    }

    #[test]
    fn a_processor_has_the_errata_of_its_family_and_model_and_no_others() {
        assert_eq!(names("AuthenticAMD", 0x17, 0x31), ["AMD 1235"]);
        assert_eq!(names("AuthenticAMD", 0x19, 0x01), [""; 0]);
        assert_eq!(names("HygonGenuine", 0x18, 0), ["AMD 1235 (Hygon)"]);
        assert_eq!(names("GenuineIntel", 6, 46), ["Intel AAI65"]);
        assert_eq!(names("GenuineIntel", 6, 0x5c), ["Intel APL30"]);
        assert_eq!(names("GenuineIntel", 0x17, 0x31), [""; 0]);
    }

    #[test]
    fn no_erratum_is_known_of_the_processor_of_2009() {
        assert_eq!(names("GenuineIntel", 6, 15), [""; 0]);
    }

    #[test]
    fn every_erratum_names_its_source() {
        assert!(ERRATA.iter().all(|erratum| erratum.source.contains("Linux") && !erratum.effect.is_empty()));
    }
}
