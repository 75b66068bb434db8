//! Faults as data: what goes wrong in a run, said before it begins.
//!
//! The text form is a list separated by commas; each fault is a name and `key=value` fields, separated by
//! colons:
//!
//! | fault | fields | effect |
//! |---|---|---|
//! | `drop` | `n=N` or `p=P`, filter | the N-th matching message is lost, or each with probability P |
//! | `delay` | `by=TIME`, `p=P` (1), filter | a matching message arrives later |
//! | `duplicate` | `p=P` (1), filter | a matching message arrives twice |
//! | `wedge` | `cpu=C`, `at=TIME`, `for=TIME` (for ever) | interrupts off and no step, from the first moment at which a task runs with interrupts on; NMIs are still taken |
//! | `stop` | `cpu=C`, `at=TIME`, `for=TIME` (for ever) | no step at all, in no handler either, as if the hypervisor had forgotten it |
//! | `nmi-wedge` | `cpu=C`, `at=TIME` (0), `for=TIME` (for ever) | no step in the first NMI handler that it enters from then on |
//! | `pause` | `at=TIME`, `for=TIME`, `clock-stops` | no CPU makes a step; their clocks go on, unless told to stop |
//! | `clock-stops` | `cpu=C`, `at=TIME`, `for=TIME` (for ever) | the CPU's clock stands still, and goes on from there |
//! | `icr-busy` | `cpu=C`, `at=TIME`, `for=TIME` (for ever) | the delivery status says "pending", and nothing is sent (xAPIC) |
//! | `spurious` | `cpu=C`, `at=TIME` | the CPU takes a spurious interrupt: nothing is in service |
//! | `lose-tick` | `n=N` or `p=P`, `cpu=C` (all) | the N-th tick is lost, or each with probability P |
//! | `delay-tick` | `by=TIME`, `p=P` (1), `cpu=C` (all) | a tick comes late; the ones after it when they should |
//! | `no-tick` | `cpu=C` | the CPU's timer never ticks |
//!
//! A filter is any of `vector=V`, `from=C`, `to=C`, `nmi` (only NMIs). Without `vector` and `nmi` it matches
//! every message; NMIs have no vector. Numbers are decimal or `0x` hexadecimal, times need a unit: `ns`, `us`,
//! `ms` or `s`. In every state the APIC of a wedged CPU goes on accepting.
//!
//! Faults of one CPU may overlap. It makes a step when none of them keeps it from it: each `pause`, `stop`, `wedge` and
//! `nmi-wedge` lasts as long as it says, whatever the others do, and pauses, or stops of one clock, that overlap are one that
//! lasts until the later end; so with `icr-busy`. NMIs are taken when all that holds the CPU is a `wedge`. Each `nmi-wedge`
//! is for one NMI handler. An INIT ends a `wedge` and an `nmi-wedge`, which are software, and neither a `stop` nor a `pause`.
//! Two that are `wedge` or `stop`, of one CPU at one time, are refused.
//!
//! Example: `drop:n=3:vector=0xfb:from=5,wedge:cpu=2:at=1ms:for=500us`.

use core::fmt;
use core::time::Duration;

use smpcall_machine::{Cpu, Instant};

mod parse;

pub use parse::{ParseFaultError, parse};

/// Which interrupt messages a fault concerns. A field that is `None` matches all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Filter {
    /// Only those with this delivery.
    pub kind: Option<MessageKind>,
    /// Only those from this CPU.
    pub from: Option<Cpu>,
    /// Only those to this CPU.
    pub to: Option<Cpu>,
}

/// What an interrupt message delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// An interrupt with this vector.
    Vector(u8),
    /// An NMI.
    Nmi,
}

impl Filter {
    /// Whether it matches such a message. `kind` is `None` for messages that are neither (INIT, start-up).
    pub fn matches(&self, kind: Option<MessageKind>, from: Cpu, to: Cpu) -> bool {
        self.kind.is_none_or(|wanted| kind == Some(wanted))
            && self.from.is_none_or(|wanted| from == wanted)
            && self.to.is_none_or(|wanted| to == wanted)
    }

    /// Whether everything that `other` matches is matched by this one too.
    fn covers(&self, other: &Self) -> bool {
        (self.kind.is_none() || self.kind == other.kind)
            && (self.from.is_none() || self.from == other.from)
            && (self.to.is_none() || self.to == other.to)
    }
}

/// A probability, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Probability(f64);

impl Probability {
    /// Always.
    pub const ONE: Self = Self(1.0);

    /// The probability `value`, if it is one.
    pub fn new(value: f64) -> Option<Self> {
        (0.0..=1.0).contains(&value).then_some(Self(value))
    }

    /// As a number, 0 to 1.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// As a threshold: a uniform 32-bit number is below it with this probability.
    #[allow(clippy::cast_sign_loss, reason = "between 0 and 1 by construction")]
    pub(crate) const fn threshold(self) -> u64 {
        (self.0 * 4_294_967_296.0) as u64
    }
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The `nth` matching message, counted from 1, is lost.
    DropNth {
        /// Which one.
        nth: u64,
        /// Of which messages.
        filter: Filter,
    },
    /// Each matching message is lost with this probability.
    Drop {
        /// How probably.
        probability: Probability,
        /// Which messages.
        filter: Filter,
    },
    /// A matching message arrives later.
    Delay {
        /// How probably.
        probability: Probability,
        /// By how much.
        by: Duration,
        /// Which messages.
        filter: Filter,
    },
    /// A matching message arrives twice; the second time one latency later.
    Duplicate {
        /// How probably.
        probability: Probability,
        /// Which messages.
        filter: Filter,
    },
    /// A CPU makes no step for a time. Its APIC goes on accepting.
    Wedge {
        /// Which CPU.
        cpu: Cpu,
        /// From when.
        at: Instant,
        /// For how long; `None` means for ever.
        duration: Option<Duration>,
        /// Whether it takes NMIs meanwhile (it spins with interrupts disabled), or not even those.
        takes_nmis: bool,
    },
    /// A CPU makes no further step in the first NMI handler that it enters from a moment on.
    WedgeInNmi {
        /// Which CPU.
        cpu: Cpu,
        /// From when.
        at: Instant,
        /// For how long; `None` means for ever.
        duration: Option<Duration>,
    },
    /// No CPU makes a step for a time, as if the hypervisor had forgotten them all. Their APICs go on accepting.
    Pause {
        /// From when.
        at: Instant,
        /// For how long.
        duration: Duration,
        /// Whether the CPUs' clocks stand still meanwhile. Else they jump.
        clock_stops: bool,
    },
    /// A CPU's clock stands still, and goes on from where it stood. Its timer, its ticks and all else go on.
    ClockStops {
        /// Which CPU.
        cpu: Cpu,
        /// From when.
        at: Instant,
        /// For how long; `None` means for ever.
        duration: Option<Duration>,
    },
    /// The delivery status of a CPU's ICR says "pending" and what is written is not sent. No effect in x2APIC mode.
    IcrBusy {
        /// Which CPU.
        cpu: Cpu,
        /// From when.
        at: Instant,
        /// For how long; `None` means for ever.
        duration: Option<Duration>,
    },
    /// A CPU takes a spurious interrupt as soon as its interrupts are enabled.
    Spurious {
        /// Which CPU.
        cpu: Cpu,
        /// From when.
        at: Instant,
    },
    /// Ticks are lost.
    LoseTick {
        /// Which one of those concerned, counted from 1; `None`: each with the probability.
        nth: Option<u64>,
        /// How probably, without a number.
        probability: Probability,
        /// Whose; `None`: everybody's.
        cpu: Option<Cpu>,
    },
    /// Ticks come late; the ones after them when they should.
    DelayTick {
        /// How probably.
        probability: Probability,
        /// By how much.
        by: Duration,
        /// Whose; `None`: everybody's.
        cpu: Option<Cpu>,
    },
    /// A CPU's timer never ticks.
    NoTick {
        /// Which CPU.
        cpu: Cpu,
    },
}

impl Fault {
    /// The CPU that this fault stops for ever.
    pub fn dead_cpu(&self) -> Option<Cpu> {
        match *self {
            Self::Wedge { cpu, duration: None, .. } => Some(cpu),
            _ => None,
        }
    }
}

/// Why a list of faults is refused.
#[derive(Clone, Debug, PartialEq)]
pub enum FaultError {
    /// A fault names a CPU that the machine does not have.
    NoSuchCpu {
        /// The CPU.
        cpu: Cpu,
        /// How many CPUs there are.
        cpus: usize,
    },
    /// Messages are counted from 1.
    NthIsZero,
    /// Vectors below 16 cannot be sent.
    IllegalVector(u8),
    /// The same fault stands twice in the list.
    Twice(Fault),
    /// Two wedges of one CPU overlap.
    WedgesOverlap(Cpu),
    /// A wedge that lasts no time.
    EmptyWedge(Cpu),
    /// Another fault that lasts no time.
    NoTime(Fault),
    /// The first fault loses every message that the second one is about.
    NeverReached(Fault, Fault),
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchCpu { cpu, cpus } => {
                write!(f, "a fault names {cpu}, but the machine has CPUs 0 to {}", cpus.saturating_sub(1))
            }
            Self::NthIsZero => f.write_str("messages are counted from 1: n=0 drops none"),
            Self::IllegalVector(vector) => {
                write!(f, "vector {vector:#04x} cannot be sent: vectors below 0x10 are illegal")
            }
            Self::Twice(fault) => write!(f, "the fault `{fault}` is listed twice"),
            Self::WedgesOverlap(cpu) => write!(f, "two wedges of {cpu} overlap"),
            Self::NoTime(fault) => write!(f, "`{fault}` lasts no time"),
            Self::EmptyWedge(cpu) => write!(f, "the wedge of {cpu} lasts no time"),
            Self::NeverReached(first, second) => {
                write!(f, "`{first}` loses every message that `{second}` is about")
            }
        }
    }
}

impl core::error::Error for FaultError {}

impl Fault {
    const fn filter(&self) -> Option<&Filter> {
        match self {
            Self::DropNth { filter, .. }
            | Self::Drop { filter, .. }
            | Self::Delay { filter, .. }
            | Self::Duplicate { filter, .. } => Some(filter),
            _ => None,
        }
    }

    fn check(&self, cpus: usize) -> Result<(), FaultError> {
        let exists = |cpu: Option<Cpu>| match cpu {
            Some(cpu) if cpu.index() >= cpus => Err(FaultError::NoSuchCpu { cpu, cpus }),
            _ => Ok(()),
        };
        if let Some(filter) = self.filter() {
            exists(filter.from)?;
            exists(filter.to)?;
            if let Some(MessageKind::Vector(vector @ 0..16)) = filter.kind {
                return Err(FaultError::IllegalVector(vector));
            }
        }
        match *self {
            Self::DropNth { nth: 0, .. } | Self::LoseTick { nth: Some(0), .. } => Err(FaultError::NthIsZero),
            Self::Wedge { cpu, duration: Some(Duration::ZERO), .. } => Err(FaultError::EmptyWedge(cpu)),
            Self::WedgeInNmi { duration: Some(Duration::ZERO), .. }
            | Self::Pause { duration: Duration::ZERO, .. }
            | Self::ClockStops { duration: Some(Duration::ZERO), .. }
            | Self::IcrBusy { duration: Some(Duration::ZERO), .. }
            | Self::DelayTick { by: Duration::ZERO, .. } => Err(FaultError::NoTime(*self)),
            Self::Wedge { cpu, .. }
            | Self::NoTick { cpu }
            | Self::WedgeInNmi { cpu, .. }
            | Self::ClockStops { cpu, .. }
            | Self::IcrBusy { cpu, .. }
            | Self::Spurious { cpu, .. } => exists(Some(cpu)),
            Self::LoseTick { cpu, .. } | Self::DelayTick { cpu, .. } => exists(cpu),
            Self::DropNth { .. }
            | Self::Drop { .. }
            | Self::Delay { .. }
            | Self::Duplicate { .. }
            | Self::Pause { .. } => Ok(()),
        }
    }
}

/// Whether a list of faults makes sense on a machine of this size.
///
/// # Errors
/// The first fault that names what does not exist, or the first two that contradict each other.
pub fn check(faults: &[Fault], cpus: usize) -> Result<(), FaultError> {
    for (index, fault) in faults.iter().enumerate() {
        fault.check(cpus)?;
        for earlier in &faults[..index] {
            if earlier == fault {
                return Err(FaultError::Twice(*fault));
            }
            if let (
                Fault::Wedge { cpu, at, duration, .. },
                Fault::Wedge { cpu: other, at: other_at, duration: other_duration, .. },
            ) = (earlier, fault)
            {
                let end = |at: &Instant, duration: &Option<Duration>| duration.map(|for_| at.plus(for_));
                let disjoint = end(at, duration).is_some_and(|end| end <= *other_at)
                    || end(other_at, other_duration).is_some_and(|end| end <= *at);
                if cpu == other && !disjoint {
                    return Err(FaultError::WedgesOverlap(*cpu));
                }
            }
        }
        if let Fault::Drop { probability: Probability::ONE, filter } = fault {
            let lost = |other: &&Fault| *other != fault && other.filter().is_some_and(|of| filter.covers(of));
            if let Some(unreached) = faults.iter().find(lost) {
                return Err(FaultError::NeverReached(*fault, *unreached));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let faults = parse::parse(text).expect("parses");
        check(&faults, 4).expect_err("is refused").to_string()
    }

    #[test]
    fn what_the_machine_does_not_have_is_refused() {
        assert_eq!(error("drop:n=1:to=4"), "a fault names CPU 4, but the machine has CPUs 0 to 3");
        assert_eq!(error("no-tick:cpu=9"), "a fault names CPU 9, but the machine has CPUs 0 to 3");
        for name in ["nmi-wedge", "clock-stops", "icr-busy", "spurious"] {
            let text = format!("{name}:cpu=4:at=1ns");
            assert_eq!(error(&text), "a fault names CPU 4, but the machine has CPUs 0 to 3");
        }
        assert_eq!(error("lose-tick:n=1:cpu=7"), "a fault names CPU 7, but the machine has CPUs 0 to 3");
        assert_eq!(error("drop:n=1:vector=15"), "vector 0x0f cannot be sent: vectors below 0x10 are illegal");
    }

    #[test]
    fn a_list_that_contradicts_itself_is_refused() {
        assert_eq!(error("drop:n=0"), "messages are counted from 1: n=0 drops none");
        assert_eq!(error("no-tick:cpu=1,no-tick:cpu=1"), "the fault `no-tick:cpu=1` is listed twice");
        assert_eq!(error("wedge:cpu=1:at=1ms,stop:cpu=1:at=2ms"), "two wedges of CPU 1 overlap");
        assert_eq!(error("wedge:cpu=1:at=1ms:for=0ns"), "the wedge of CPU 1 lasts no time");
        assert_eq!(error("pause:at=1ns:for=0ns"), "`pause:at=1ns:for=0ns` lasts no time");
        assert_eq!(error("lose-tick:n=0"), "messages are counted from 1: n=0 drops none");
        assert_eq!(
            error("delay:by=5us:vector=0xfb,drop:p=1"),
            "`drop:p=1` loses every message that `delay:by=5000ns:p=1:vector=0xfb` is about"
        );
    }

    #[test]
    fn wedges_that_follow_each_other_are_fine() {
        for list in [
            "wedge:cpu=1:at=1ms:for=1ms,wedge:cpu=1:at=2ms",
            "wedge:cpu=1:at=1ms,wedge:cpu=2:at=1ms",
            "drop:p=1:to=1,delay:by=1us:to=2",
        ] {
            assert_eq!(check(&parse::parse(list).expect("parses"), 4), Ok(()), "{list}");
        }
    }

    #[test]
    fn a_filter_matches_only_what_it_names() {
        let [a, b] = [Cpu::new(0), Cpu::new(1)];
        let filter = Filter { kind: Some(MessageKind::Vector(0xfb)), from: Some(a), to: None };
        assert!(filter.matches(Some(MessageKind::Vector(0xfb)), a, b));
        assert!(!filter.matches(Some(MessageKind::Vector(0xfb)), b, a));
        assert!(!filter.matches(Some(MessageKind::Nmi), a, b));
        assert!(!filter.matches(None, a, b));
        assert!(Filter::default().matches(None, a, b));
    }
}
