//! What can be asked for.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::Misuse;
use crate::suite::Suite;

/// The most CPUs that the image has room for.
pub const MAX_CPUS: u32 = 512;

/// The most CPUs in xAPIC mode: 255 is the broadcast (Intel SDM, volume 3, 12.6.2.1).
const MAX_XAPIC_CPUS: u32 = 255;

macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }, $hint:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$variant_doc])* $variant,)* }

        impl $type {
            /// As it is written.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $type {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($name => Ok(Self::$variant),)* _ => Err($hint) }
            }
        }
    };
}

named! {
    /// The mode of the local APICs.
    ApicMode {
        /// Registers in memory, identifiers of 8 bits.
        XApic = "xapic",
        /// Model-specific registers, identifiers of 32 bits.
        X2Apic = "x2apic",
    }, "there are xapic and x2apic"
}

named! {
    /// Which emulator.
    Machine {
        /// QEMU, machine q35.
        Qemu = "qemu",
        /// Bochs.
        Bochs = "bochs",
    }, "there are qemu and bochs"
}

named! {
    /// Who executes the guest's instructions.
    Accel {
        /// QEMU translates them.
        Tcg = "tcg",
        /// The host's processor.
        Kvm = "kvm",
    }, "there are tcg and kvm"
}

/// What to run, and on what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which suites; all but the benchmark if there is none.
    pub suites: Vec<Suite>,
    /// How many CPUs; 4 by default, for the benchmark 16.
    pub cpus: Option<u32>,
    /// The mode of the APICs; what the machine does best by default.
    pub apic: Option<ApicMode>,
    /// Which emulator.
    pub machine: Machine,
    /// Who executes instructions.
    pub accel: Accel,
    /// Let the clock count instructions: runs repeat exactly. The benchmark always does.
    pub icount: bool,
    /// From which all randomness comes.
    pub seed: u64,
    /// How many operations a suite makes; its own number by default.
    pub operations: Option<u64>,
    /// The probability with which the suites lose a ring in the send path, 0 to 1; their own by default.
    pub drop: Option<f64>,
    /// The image; found or built by default.
    pub image: Option<PathBuf>,
    /// Where to keep the vmcore that the crash leaves.
    pub vmcore: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            suites: vec![],
            cpus: None,
            apic: None,
            machine: Machine::Qemu,
            accel: Accel::Tcg,
            icount: false,
            seed: 1,
            operations: None,
            drop: None,
            image: None,
            vmcore: None,
        }
    }
}

impl Options {
    /// The suites to run, each once, in the order of [`Suite::ALL`].
    pub fn suites(&self) -> Vec<Suite> {
        let wanted = |suite: &Suite| {
            if self.suites.is_empty() { suite.runs_unasked() } else { self.suites.contains(suite) }
        };
        Suite::ALL.into_iter().filter(wanted).collect()
    }

    /// Whether the vmcore that is kept is the one that this suite leaves: the last that runs.
    pub(crate) fn keeps_vmcore_of(&self, suite: Suite) -> bool {
        self.suites().into_iter().rfind(|suite| suite.crashes()) == Some(suite)
    }

    /// How many CPUs the machine has.
    pub fn cpus(&self) -> u32 {
        self.cpus.unwrap_or(if self.suites.contains(&Suite::Bench) { 16 } else { 4 })
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// What does not go together, or is out of range.
    pub fn check(&self) -> Result<(), Misuse> {
        let cpus = self.cpus();
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(Misuse::Cpus(cpus));
        }
        if self.apic == Some(ApicMode::XApic) && cpus > MAX_XAPIC_CPUS {
            return Err(Misuse::XApicCpus(cpus));
        }
        if self.accel == Accel::Kvm && self.icount {
            return Err(Misuse::IcountNeedsTcg);
        }
        if self.accel == Accel::Kvm && cpus > MAX_XAPIC_CPUS {
            return Err(Misuse::KvmCpus(cpus));
        }
        if let Some(drop) = self.drop.filter(|drop| !(0.0..=1.0).contains(drop)) {
            return Err(Misuse::Drop(drop.to_string()));
        }
        if self.vmcore.is_some() && !self.suites().into_iter().any(Suite::crashes) {
            return Err(Misuse::VmcoreWithoutCrash);
        }
        Ok(())
    }

    /// The mode of the APICs on a machine that prefers one: above 255 CPUs there is no choice.
    pub(crate) fn mode(&self, preferred: ApicMode) -> ApicMode {
        let by_size = (self.cpus() > MAX_XAPIC_CPUS).then_some(ApicMode::X2Apic);
        self.apic.or(by_size).unwrap_or(preferred)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_names_every_suite_runs_but_the_benchmark() {
        let suites = Options::default().suites();
        assert!(suites.contains(&Suite::Conformance) && !suites.contains(&Suite::Bench));
        let named = Options { suites: vec![Suite::Posts, Suite::Calls, Suite::Posts], ..Options::default() };
        assert_eq!(named.suites(), [Suite::Calls, Suite::Posts], "each once");
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let check = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().err()
        };
        assert_eq!(check(|_| ()), None);
        assert_eq!(check(|o| o.cpus = Some(0)), Some(Misuse::Cpus(0)));
        assert_eq!(check(|o| o.cpus = Some(513)), Some(Misuse::Cpus(513)));
        let xapic = |cpus| Options { cpus: Some(cpus), apic: Some(ApicMode::XApic), ..Options::default() };
        assert_eq!(xapic(255).check(), Ok(()));
        assert_eq!(xapic(256).check(), Err(Misuse::XApicCpus(256)));
        assert_eq!(check(|o| (o.accel, o.icount) = (Accel::Kvm, true)), Some(Misuse::IcountNeedsTcg));
        assert_eq!(check(|o| (o.accel, o.cpus) = (Accel::Kvm, Some(288))), Some(Misuse::KvmCpus(288)));
        assert_eq!(check(|o| o.drop = Some(f64::NAN)), Some(Misuse::Drop("NaN".into())));
        assert_eq!(check(|o| o.vmcore = Some("f".into())), None, "all suites: the crash among them");
        assert_eq!(
            check(|o| (o.vmcore, o.suites) = (Some("f".into()), vec![Suite::Calls])),
            Some(Misuse::VmcoreWithoutCrash)
        );
    }

    #[test]
    fn above_255_cpus_the_mode_is_x2apic() {
        let many = Options { cpus: Some(288), ..Options::default() };
        assert_eq!(many.mode(ApicMode::XApic), ApicMode::X2Apic);
        assert_eq!(Options::default().mode(ApicMode::XApic), ApicMode::XApic);
    }
}
