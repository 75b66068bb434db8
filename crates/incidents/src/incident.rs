//! Which incidents there are, what can be chosen about a replay, and why one is refused.

use core::fmt;
use core::str::FromStr;

use serde::{Serialize, Serializer};
use smpcall_local_apic::Routing;
use smpcall_simulator::{ConfigError, MAX_CPUS};

use crate::lost_call;

/// An incident that was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Incident {
    /// 2009, Linux 2.6.23 on 16 CPUs: one of fifteen call-function IPIs never arrives (report 000).
    LostCall,
}

impl Incident {
    /// All of them, in the order of their reports.
    pub const ALL: [Self; 1] = [Self::LostCall];

    /// Its name on command lines and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LostCall => "lost-call",
        }
    }

    /// What was reported, in one line.
    pub const fn title(self) -> &'static str {
        match self {
            Self::LostCall => "one of fifteen call-function IPIs is lost (2009, Linux 2.6.23, 16 CPUs)",
        }
    }

    /// How many CPUs the reported machine had.
    pub const fn reported_cpus(self) -> usize {
        match self {
            Self::LostCall => lost_call::REPORTED_CPUS,
        }
    }

    /// The largest machine it can be replayed on, in CPUs, whatever the routing.
    pub const fn max_cpus(self, when: When) -> usize {
        match (self, when) {
            (Self::LostCall, When::Then) => lost_call::MAX_CPUS_THEN,
            (Self::LostCall, When::Now) => MAX_CPUS,
        }
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
    /// Nothing. *Then* does not end in the reported state.
    None,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reported, Self::DeadTarget, Self::None];

    /// Its name on command lines and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::DeadTarget => "dead-target",
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
    pub(crate) cpus: usize,
    pub(crate) routing: Routing,
    pub(crate) seed: u64,
    pub(crate) fault: Fault,
}

impl Options {
    /// What is not chosen is filled in, and what does not fit is refused.
    pub(crate) fn setup(&self, incident: Incident, when: When) -> Result<Setup, ReplayError> {
        let routing = self.routing.unwrap_or_else(|| match incident {
            Incident::LostCall => lost_call::routing(self.cpus.unwrap_or(incident.reported_cpus())),
        });
        let reach = routing.max_cpus() as usize;
        let cpus = self.cpus.unwrap_or_else(|| incident.reported_cpus().min(reach));
        if cpus < 2 {
            return Err(ReplayError::TooFewCpus { incident, cpus });
        }
        if cpus > reach {
            return Err(ReplayError::BeyondRouting { routing, cpus, reach });
        }
        let limit = incident.max_cpus(when);
        if cpus > limit {
            return Err(ReplayError::TooManyCpus { incident, when, cpus, limit });
        }
        if self.fault == Fault::DeadTarget && when == When::Then {
            return Err(ReplayError::DeadTargetThen);
        }
        Ok(Setup { cpus, routing, seed: self.seed, fault: self.fault })
    }
}

/// Why a replay is refused.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ReplayError {
    /// It takes another CPU to lose a call to.
    TooFewCpus {
        /// The incident.
        incident: Incident,
        /// How many CPUs were asked for.
        cpus: usize,
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
    /// [`Fault::DeadTarget`] with [`When::Then`].
    DeadTargetThen,
    /// The simulator refuses such a machine.
    Machine(ConfigError),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewCpus { incident, cpus } => {
                write!(f, "{incident} needs at least 2 CPUs, one to call and one to be called, not {cpus}")
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
            Self::DeadTargetThen => f.write_str(
                "a dead target can be replayed as now only (--now): the kernel of the day would hang in its dump",
            ),
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
        assert_eq!(error.to_string(), "no such incident; known: lost-call");
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
        assert_eq!(options.setup(Incident::LostCall, When::Then), Err(ReplayError::DeadTargetThen));
        assert!(options.setup(Incident::LostCall, When::Now).is_ok());
    }
}
