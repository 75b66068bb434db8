//! What a diagnosis concludes: the kind, whom it concerns, how sure it is, from which facts, and what is missing.

use core::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is wrong with a machine. The names are what scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictKind {
    /// CPUs wait for each other in a circle.
    MutualWait,
    /// A call or post lies with an offline CPU, which will never look; or with one that was offline meanwhile, and the
    /// interrupt for it is forgotten.
    OfflineQueue,
    /// The CPU answers nothing, not even an NMI.
    CpuDead,
    /// The hypervisor does not run the virtual CPU.
    VcpuNotRunning,
    /// The interrupt controller never became ready to send.
    StuckIcr,
    /// The IPI that announces the call was sent and never arrived.
    IpiLost,
    /// The CPU runs with interrupts disabled.
    InterruptsOff,
    /// The CPU has been in an earlier call or interrupt handler for too long.
    LongHandler,
    /// Interrupts were pending or in service when the kernel crashed.
    PendingAtCrash,
    /// A handler ended an interrupt that was not its own.
    StrayEoi,
    /// Somebody waits, and the evidence does not say why.
    Undetermined,
    /// Nothing is wrong.
    Healthy,
}

impl VerdictKind {
    /// All kinds, the gravest first.
    pub const ALL: [Self; 12] = [
        Self::MutualWait,
        Self::OfflineQueue,
        Self::CpuDead,
        Self::VcpuNotRunning,
        Self::StuckIcr,
        Self::IpiLost,
        Self::InterruptsOff,
        Self::LongHandler,
        Self::PendingAtCrash,
        Self::StrayEoi,
        Self::Undetermined,
        Self::Healthy,
    ];

    /// The name that JSON and people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MutualWait => "mutual-wait",
            Self::OfflineQueue => "offline-queue",
            Self::CpuDead => "cpu-dead",
            Self::VcpuNotRunning => "vcpu-not-running",
            Self::StuckIcr => "stuck-icr",
            Self::IpiLost => "ipi-lost",
            Self::InterruptsOff => "interrupts-off",
            Self::LongHandler => "long-handler",
            Self::PendingAtCrash => "pending-at-crash",
            Self::StrayEoi => "stray-eoi",
            Self::Undetermined => "undetermined",
            Self::Healthy => "healthy",
        }
    }

    /// What to look at next.
    pub const fn next_step(self) -> &'static str {
        match self {
            Self::MutualWait => {
                "Find out why these CPUs call each other while they cannot serve: the functions they wait in."
            }
            Self::OfflineQueue => {
                "Find the sender: it passed its online check before the CPU went down. The queue must be closed and \
                 emptied by the dying CPU itself."
            }
            Self::CpuDead => {
                "Ask the hypervisor whether it runs this CPU; on hardware look for machine checks."
            }
            Self::VcpuNotRunning => "Look at the hypervisor: host load, a paused thread, a lost wake-up.",
            Self::StuckIcr => {
                "Look at the interrupt controller of the sender, and at CPUs stuck in NMI handlers."
            }
            Self::IpiLost => {
                "Send the IPI again: if the call then runs, only the interrupt was lost. Then suspect what carries \
                 it: hypervisor, interrupt remapping, processor errata."
            }
            Self::InterruptsOff => {
                "Look at where this CPU runs, and for what disabled its interrupts: a lock, a console."
            }
            Self::LongHandler => "Look at the function it is in: it holds up everybody who waits.",
            Self::PendingAtCrash => {
                "End or take these interrupts before handlers are installed in the capture kernel."
            }
            Self::StrayEoi => {
                "End only what the local APIC has put in service: not an ExtINT, not a spurious interrupt, and none twice."
            }
            Self::Undetermined => "Collect what is missing, above all the state of the target's local APIC.",
            Self::Healthy => "Nothing.",
        }
    }
}

impl fmt::Display for VerdictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// The evidence allows it and does not exclude something else.
    Possible,
    /// The evidence points to it; what would prove it is unknown.
    Likely,
    /// The evidence leaves nothing else.
    Certain,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        })
    }
}

/// One piece of evidence that a verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub value: String,
    /// Where it was found.
    pub source: String,
    /// At which address, in a dump or a live machine. In JSON: hexadecimal, as text.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "hexadecimal",
        deserialize_with = "from_hexadecimal"
    )]
    pub address: Option<u64>,
    /// The symbol that the value stands for, if it is an address itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
}

impl Fact {
    /// A fact.
    pub fn new(what: impl Into<String>, value: impl Into<String>, source: impl Into<String>) -> Self {
        Self { what: what.into(), value: value.into(), source: source.into(), address: None, symbol: None }
    }

    /// The same, found at this address.
    #[must_use]
    pub fn at(self, address: u64) -> Self {
        Self { address: Some(address), ..self }
    }

    /// The same, whose value is the address of this symbol.
    #[must_use]
    pub fn meaning(self, symbol: impl Into<String>) -> Self {
        Self { symbol: Some(symbol.into()), ..self }
    }
}

/// An address for JSON, whose numbers have 53 bits.
#[allow(clippy::ref_option, reason = "serde hands it over like that")]
pub(crate) fn hexadecimal<S: Serializer>(address: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => hexadecimal_number(address, serializer),
        None => serializer.serialize_none(),
    }
}

/// The same for one that is always there.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like that")]
pub(crate) fn hexadecimal_number<S: Serializer>(address: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
}

fn from_hexadecimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.strip_prefix("0x").ok_or_else(|| D::Error::custom("an address begins with 0x"))?;
    u64::from_str_radix(digits, 16).map(Some).map_err(D::Error::custom)
}

/// What is concluded about one CPU, or about the whole machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What is wrong.
    pub kind: VerdictKind,
    /// The CPU that does not answer; in a circle its lowest member. `None` if no CPU can be named.
    pub cpu: Option<u32>,
    /// The CPU whose doing it is. `None` if it is no CPU's: a lost interrupt, a circle, a queue left behind.
    pub culprit: Option<u32>,
    /// Who waits for it: directly first, then through others. In a circle: its other members first.
    pub waiters: Vec<u32>,
    /// The function that was called, or that holds everybody up.
    pub function: Option<String>,
    /// How sure this is.
    pub confidence: Confidence,
    /// What it rests on.
    pub evidence: Vec<Fact>,
    /// What is unknown that would make it surer.
    pub missing: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_name_in_json_that_it_prints_and_the_list_is_in_order() {
        assert!(VerdictKind::ALL.is_sorted());
        let names = VerdictKind::ALL.map(|kind| serde_json::to_string(&kind).expect("a plain value"));
        let printed = VerdictKind::ALL.map(|kind| format!("\"{kind}\""));
        assert_eq!(names, printed);
        assert!(names.contains(&"\"ipi-lost\"".into()) && names.contains(&"\"vcpu-not-running\"".into()));
    }

    #[test]
    fn a_verdict_has_the_keys_that_scripts_rely_on_and_survives_json() {
        let verdict = Verdict {
            kind: VerdictKind::IpiLost,
            cpu: Some(11),
            culprit: None,
            waiters: vec![5],
            function: Some("flush".into()),
            confidence: Confidence::Certain,
            evidence: vec![
                Fact::new("IRR of CPU 11", "empty", "local APIC"),
                Fact::new("descriptor", "locked", "crash dump").at(0xffff_8881_0000_0010).meaning("csd_data"),
            ],
            missing: vec![],
        };
        let json = serde_json::to_value(&verdict).expect("serializable");
        let expected = serde_json::json!({
            "kind": "ipi-lost", "cpu": 11, "culprit": null, "waiters": [5], "function": "flush",
            "confidence": "certain",
            "evidence": [
                {"what": "IRR of CPU 11", "value": "empty", "source": "local APIC"},
                {"what": "descriptor", "value": "locked", "source": "crash dump",
                    "address": "0xffff888100000010", "symbol": "csd_data"},
            ],
            "missing": [],
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Verdict>(json).expect("deserializable"), verdict);
    }
}
