//! Which incidents there are, what can be chosen about a replay, and why one is refused.

use core::fmt;
use core::str::FromStr;

use serde::{Serialize, Serializer};
use smpcall_local_apic::Routing;
use smpcall_simulator::ConfigError;

use crate::replay::Replay;
use crate::{lost_call, offline_queue, pending_ipi, stray_eoi, stuck_icr};

/// An incident that was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Incident {
    /// 2009, Linux 2.6.23 on 16 CPUs: one of fifteen call-function IPIs never arrives (report 000).
    LostCall,
    /// 2013, Linux 3.0 on s390: a CPU goes offline with a request queued, and is not rung when it is back (report 001).
    OfflineQueue,
    /// 2007, Linux 2.6 for i386 and x86-64: a crash waits for ever for the ICR, and there is no dump (report 002).
    StuckIcr,
    /// 2015, Linux before 4.0-rc1, x2APIC clusters: an end of interrupt that belongs to nothing (report 003).
    StrayEoi,
    /// 2005, Linux 2.6 for i386: the capture kernel takes an IPI that was pending at the crash (report 004).
    PendingIpi,
}

/// What has to be known of an incident to run it.
pub(crate) struct Definition {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// CPUs of the reported machine; if the report does not say, ours.
    pub(crate) reported_cpus: usize,
    /// The smallest machine on which it can happen, in CPUs, and what they are needed for.
    pub(crate) least_cpus: (usize, &'static str),
    /// The largest machine, whatever the routing.
    pub(crate) max_cpus: fn(When) -> usize,
    /// How the kernel of the day would have addressed so many CPUs.
    pub(crate) routing: fn(usize) -> Routing,
    /// Whether it can be replayed with a fault; if not, why.
    pub(crate) refuses: fn(Fault, When) -> Option<&'static str>,
    pub(crate) then: fn(&Setup) -> Result<Replay, ReplayError>,
    pub(crate) now: fn(&Setup) -> Result<Replay, ReplayError>,
}

impl Incident {
    /// All of them, in the order of their reports.
    pub const ALL: [Self; 5] =
        [Self::LostCall, Self::OfflineQueue, Self::StuckIcr, Self::StrayEoi, Self::PendingIpi];

    pub(crate) const fn definition(self) -> &'static Definition {
        match self {
            Self::LostCall => &lost_call::DEFINITION,
            Self::OfflineQueue => &offline_queue::DEFINITION,
            Self::StuckIcr => &stuck_icr::DEFINITION,
            Self::StrayEoi => &stray_eoi::DEFINITION,
            Self::PendingIpi => &pending_ipi::DEFINITION,
        }
    }

    /// Its name on command lines and in JSON.
    pub const fn name(self) -> &'static str {
        self.definition().name
    }

    /// What was reported, in one line.
    pub const fn title(self) -> &'static str {
        self.definition().title
    }

    /// How many CPUs the reported machine had.
    pub const fn reported_cpus(self) -> usize {
        self.definition().reported_cpus
    }

    /// The largest machine it can be replayed on, in CPUs, whatever the routing.
    pub fn max_cpus(self, when: When) -> usize {
        (self.definition().max_cpus)(when)
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Incident {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FromStr for Incident {
    type Err = UnknownIncident;

    fn from_str(name: &str) -> Result<Self, UnknownIncident> {
        Self::ALL.into_iter().find(|incident| incident.name() == name).ok_or(UnknownIncident)
    }
}

/// No incident has that name. Printing it lists those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownIncident;

impl fmt::Display for UnknownIncident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Incident::ALL.map(Incident::name).join(", ");
        write!(f, "no such incident; known: {names}")
    }
}

impl core::error::Error for UnknownIncident {}

/// With which algorithm an incident is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// That of the day.
    Then,
    /// `smpcall`.
    Now,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Then => "then",
            Self::Now => "now",
        })
    }
}

/// What goes wrong in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Fault {
    /// What was reported.
    #[default]
    Reported,
    /// The CPU that the reported fault concerns is really dead: it spins with interrupts disabled, and answers NMIs
    /// only, until its caller has given up. Then it wakes, and must not run what was given up (law L4). With [`When::Now`] only: the kernels of the day had no answer to it.
    DeadTarget,
    /// What was reported, on local APICs of the P6 family, which hold two interrupts of a priority class and have the others
    /// offered again. With [`StrayEoi`](Incident::StrayEoi) only: its report half remembers them. Not applicable to routings in
    /// x2APIC mode, which they have not.
    OldApic,
    /// What was reported, for a time: it heals by itself. *Then* does not end in the reported state. [`Incident::StuckIcr`]
    /// only.
    Transient,
    /// What was reported, until the command that is stuck is written again, which the kernels of the day never did.
    /// [`Incident::StuckIcr`] only.
    UntilRewritten,
    /// What was reported, but the first kernel runs on all CPUs, and another one than the boot CPU crashes.
    /// [`Incident::PendingIpi`] only.
    AnotherCpu,
    /// Nothing. *Then* does not end in the reported state.
    None,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Reported,
        Self::DeadTarget,
        Self::OldApic,
        Self::Transient,
        Self::UntilRewritten,
        Self::AnotherCpu,
        Self::None,
    ];

    /// Its name on command lines and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::DeadTarget => "dead-target",
            Self::OldApic => "old-apic",
            Self::Transient => "transient",
            Self::UntilRewritten => "until-rewritten",
            Self::AnotherCpu => "another-cpu",
            Self::None => "none",
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Self, UnknownFault> {
        Self::ALL.into_iter().find(|fault| fault.name() == name).ok_or(UnknownFault)
    }
}

/// No fault of a replay has that name. Printing it lists those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFault;

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no such fault; known: {}", Fault::ALL.map(Fault::name).join(", "))
    }
}

impl core::error::Error for UnknownFault {}

/// What can be chosen about a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many CPUs. `None`: as many as were reported, or as the routing reaches if that is fewer.
    pub cpus: Option<usize>,
    /// How they are addressed. `None`: as the reported kernel would have.
    pub routing: Option<Routing>,
    /// From which all randomness comes. Everything else equal, it decides every event.
    pub seed: u64,
    /// What goes wrong.
    pub fault: Fault,
}

impl Default for Options {
    fn default() -> Self {
        Self { cpus: None, routing: None, seed: 1, fault: Fault::Reported }
    }
}

/// A machine that a replay runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) incident: Incident,
    pub(crate) when: When,
    pub(crate) cpus: usize,
    pub(crate) routing: Routing,
    pub(crate) seed: u64,
    pub(crate) fault: Fault,
}

impl Options {
    /// What is not chosen is filled in, and what does not fit is refused.
    pub(crate) fn setup(&self, incident: Incident, when: When) -> Result<Setup, ReplayError> {
        let definition = incident.definition();
        let routing = self
            .routing
            .unwrap_or_else(|| (definition.routing)(self.cpus.unwrap_or(definition.reported_cpus)));
        let reach = routing.max_cpus() as usize;
        let cpus = self.cpus.unwrap_or_else(|| definition.reported_cpus.min(reach));
        let (least, reason) = definition.least_cpus;
        if cpus < least {
            return Err(ReplayError::TooFewCpus { incident, cpus, least, reason });
        }
        if cpus > reach {
            return Err(ReplayError::BeyondRouting { routing, cpus, reach });
        }
        let limit = incident.max_cpus(when);
        if cpus > limit {
            return Err(ReplayError::TooManyCpus { incident, when, cpus, limit });
        }
        let refused = match self.fault {
            Fault::OldApic if incident != Incident::StrayEoi => {
                Some("how many interrupts such an APIC holds makes no difference to it")
            }
            Fault::Transient | Fault::UntilRewritten if incident != Incident::StuckIcr => {
                Some("it is one of the ICR's delivery status, which plays no part in it")
            }
            Fault::AnotherCpu if incident != Incident::PendingIpi => {
                Some("it makes no difference to it which CPU is the boot CPU")
            }
            fault => (definition.refuses)(fault, when),
        };
        if let Some(reason) = refused {
            return Err(ReplayError::OtherFault { incident, when, fault: self.fault, reason });
        }
        Ok(Setup { incident, when, cpus, routing, seed: self.seed, fault: self.fault })
    }
}

/// Why a replay is refused.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ReplayError {
    /// Fewer CPUs than the incident has parts for.
    TooFewCpus {
        /// The incident.
        incident: Incident,
        /// How many CPUs were asked for.
        cpus: usize,
        /// How many it needs.
        least: usize,
        /// What for.
        reason: &'static str,
    },
    /// More CPUs than the routing can address.
    BeyondRouting {
        /// The routing.
        routing: Routing,
        /// How many CPUs were asked for.
        cpus: usize,
        /// How many it can address.
        reach: usize,
    },
    /// More CPUs than the replay's kernel has room for.
    TooManyCpus {
        /// The incident.
        incident: Incident,
        /// With which algorithm.
        when: When,
        /// How many CPUs were asked for.
        cpus: usize,
        /// How many it has room for.
        limit: usize,
    },
    /// A fault that this incident cannot be replayed with.
    OtherFault {
        /// The incident.
        incident: Incident,
        /// With which algorithm.
        when: When,
        /// The fault.
        fault: Fault,
        /// Why.
        reason: &'static str,
    },
    /// The simulator refuses such a machine.
    Machine(ConfigError),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewCpus { incident, cpus, least, reason } => {
                write!(f, "{incident} needs at least {least} CPUs, {reason}, not {cpus}")
            }
            Self::BeyondRouting { routing, cpus, reach } => write!(
                f,
                "routing {routing} reaches {reach} CPUs at the most, not {cpus}: choose another routing or fewer CPUs"
            ),
            Self::TooManyCpus { incident, when, cpus, limit } => {
                write!(
                    f,
                    "{incident} as {when} has room for {limit} CPUs at the most, not {cpus}: choose fewer"
                )
            }
            Self::OtherFault { incident, when, fault, reason } => {
                write!(f, "{incident} as {when} cannot be replayed with fault {}: {reason}", fault.name())
            }
            Self::Machine(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ReplayError {}

impl From<ConfigError> for ReplayError {
    fn from(error: ConfigError) -> Self {
        Self::Machine(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(cpus: Option<usize>, routing: Option<Routing>, when: When) -> Result<Setup, String> {
        let options = Options { cpus, routing, ..Options::default() };
        options.setup(Incident::LostCall, when).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_found_and_unknown_ones_list_the_known() {
        for incident in Incident::ALL {
            assert_eq!(incident.name().parse(), Ok(incident));
        }
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        let error = "lost-cal".parse::<Incident>().expect_err("is unknown");
        assert!(error.to_string().starts_with("no such incident; known: lost-call, "), "{error}");
    }

    #[test]
    fn the_default_machine_is_the_reported_one_as_far_as_the_routing_reaches() {
        let machine =
            |cpus, routing, when| setup(cpus, routing, when).map(|setup| (setup.cpus, setup.routing));
        assert_eq!(machine(None, None, When::Then), Ok((16, Routing::Physical)));
        assert_eq!(machine(None, Some(Routing::Flat), When::Now), Ok((8, Routing::Flat)));
        assert_eq!(machine(Some(8), None, When::Then), Ok((8, Routing::Flat)));
        assert_eq!(machine(Some(300), None, When::Now), Ok((300, Routing::X2ApicPhysical)));
    }

    #[test]
    fn machines_that_do_not_fit_are_refused_in_one_sentence() {
        for cpus in [0, 1] {
            let error = setup(Some(cpus), None, When::Now).expect_err("is refused");
            assert_eq!(
                error,
                format!("lost-call needs at least 2 CPUs, one to call and one to be called, not {cpus}")
            );
        }
        assert_eq!(
            setup(Some(9), Some(Routing::Flat), When::Then).expect_err("is refused"),
            "routing flat reaches 8 CPUs at the most, not 9: choose another routing or fewer CPUs"
        );
        assert_eq!(
            setup(Some(256), None, When::Then).expect_err("is refused"),
            "lost-call as then has room for 255 CPUs at the most, not 256: choose fewer"
        );
        assert!(
            setup(Some(4097), None, When::Now).expect_err("is refused").contains("4096 CPUs at the most")
        );
    }

    #[test]
    fn a_dead_target_is_for_now_only() {
        let options = Options { fault: Fault::DeadTarget, ..Options::default() };
        let error = options.setup(Incident::LostCall, When::Then).expect_err("is refused").to_string();
        assert_eq!(
            error,
            "lost-call as then cannot be replayed with fault dead-target: its kernel had no answer to it, and hangs \
             in its dump (choose --now)"
        );
        assert!(options.setup(Incident::LostCall, When::Now).is_ok());
    }
}
