//! The suites that the image has, and what each needs from the machine.

use std::fmt;
use std::str::FromStr;

use crate::error::Misuse;

/// A suite. Each is a run of its own: one that crashes takes no other along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Random calls of every kind, reconciled.
    Calls,
    /// Posts and deferred work.
    Posts,
    /// CPUs that go and come under calls.
    Hotplug,
    /// Rendezvous.
    Rendezvous,
    /// CPUs that spin: soft and hard lockups.
    Lockup,
    /// Rings that are lost in the send path.
    Lost,
    /// A virtual CPU that is stopped from outside.
    Frozen,
    /// The emulator's local APICs against the manual.
    Conformance,
    /// What the simulated machine does too, with as many rings.
    Agree,
    /// Incident 1, `lost-call`.
    Incident1,
    /// Incident 2, `offline-queue`.
    Incident2,
    /// Incident 3, `stuck-icr`.
    Incident3,
    /// Incident 5, `pending-ipi`: a crash with interrupts pending, a capture kernel, a vmcore.
    Incident5,
    /// Crashes at random instants under load, each with a capture kernel and a vmcore.
    Crash,
    /// Guest instructions of calls and posts.
    Bench,
}

impl Suite {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 15] = [
        Self::Calls,
        Self::Posts,
        Self::Hotplug,
        Self::Rendezvous,
        Self::Lockup,
        Self::Lost,
        Self::Frozen,
        Self::Conformance,
        Self::Agree,
        Self::Incident1,
        Self::Incident2,
        Self::Incident3,
        Self::Incident5,
        Self::Crash,
        Self::Bench,
    ];

    /// As it is named on command lines and by the image.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Posts => "posts",
            Self::Hotplug => "hotplug",
            Self::Rendezvous => "rendezvous",
            Self::Lockup => "lockup",
            Self::Lost => "lost",
            Self::Frozen => "frozen",
            Self::Conformance => "conformance",
            Self::Agree => "agree",
            Self::Incident1 => "incident-1",
            Self::Incident2 => "incident-2",
            Self::Incident3 => "incident-3",
            Self::Incident5 => "incident-5",
            Self::Crash => "crash",
            Self::Bench => "bench",
        }
    }

    /// All names.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Whether it runs if no suite is named. Figures are nothing that passes everywhere.
    pub(crate) const fn runs_unasked(self) -> bool {
        !matches!(self, Self::Bench)
    }

    /// Whether the clock must count instructions: for figures, and where a busy host would make a target so late that it is
    /// rung again.
    pub(crate) const fn counts_instructions(self) -> bool {
        matches!(self, Self::Agree | Self::Bench)
    }

    /// Whether it needs the stub of a debugger.
    pub(crate) const fn freezes(self) -> bool {
        matches!(self, Self::Frozen)
    }

    /// Whether it leaves a vmcore, for which it needs a disk and a second copy of the image.
    pub(crate) const fn crashes(self) -> bool {
        matches!(self, Self::Incident5 | Self::Crash)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = Misuse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|suite| suite.name() == text);
        found.ok_or_else(|| Misuse::UnknownSuite { name: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_names_its_suite() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse(), Ok(suite));
        }
        let error = "calls ".parse::<Suite>().expect_err("is unknown");
        assert!(error.to_string().contains("known: calls, posts,"), "{error}");
    }
}
