//! What came of it: checks, figures, and the verdict on each.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What came of everything that was asked for. The names and their order are what scripts rely on.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which emulator: `qemu`.
    pub machine: &'static str,
    /// Its version.
    pub version: String,
    /// How many CPUs it emulated.
    pub cpus: u32,
    /// The mode of their APICs: `xapic` or `x2apic`.
    pub apic: &'static str,
    /// Each suite, in the order in which they ran.
    pub suites: Vec<SuiteReport>,
    /// How long it took, in seconds of the host's clock.
    pub seconds: f64,
}

impl Report {
    /// Whether no check of any suite failed. What was skipped has not failed, and has not passed.
    pub fn is_right(&self) -> bool {
        self.suites.iter().all(|suite| suite.failed == 0)
    }
}

/// What came of one suite.
#[derive(Clone, Debug, Serialize)]
pub struct SuiteReport {
    /// Its name.
    pub name: &'static str,
    /// How many checks came out as they should: deviations that are known among them.
    pub passed: u64,
    /// How many did not; what went wrong with the run itself among them.
    pub failed: u64,
    /// How many were not made.
    pub skipped: u64,
    /// All the rest.
    pub details: Details,
}

/// What is known of a suite besides the sums.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Details {
    /// Each check.
    pub checks: Vec<Check>,
    /// The figures that it printed, by name.
    pub counts: BTreeMap<String, u64>,
    /// Figures beside what they should be, and beside Linux.
    pub goals: Vec<Goal>,
    /// What is worth knowing and is no check.
    pub notes: Vec<String>,
    /// If something failed, the last lines of the console.
    pub console: Vec<String>,
    /// The length of the vmcore that it left, in bytes.
    pub vmcore: Option<u64>,
    /// The seed to repeat it with.
    pub seed: u64,
    /// How long it took, in seconds of the host's clock.
    pub seconds: f64,
}

impl SuiteReport {
    /// Of these checks.
    pub(crate) fn new(name: &'static str, details: Details) -> Self {
        let count =
            |is: fn(Outcome) -> bool| details.checks.iter().filter(|check| is(check.outcome)).count() as u64;
        Self {
            name,
            passed: count(Outcome::is_as_expected),
            failed: count(|outcome| outcome == Outcome::Failed),
            skipped: count(|outcome| outcome == Outcome::Skipped),
            details,
        }
    }

    /// A suite that was not run.
    pub(crate) fn skipped(name: &'static str, reason: String) -> Self {
        let check = Check { name: RUN.into(), outcome: Outcome::Skipped, text: reason };
        Self::new(name, Details { checks: vec![check], ..Details::default() })
    }

    /// How many checks came out as this emulator is known to do them and not as the manual says.
    pub fn deviations(&self) -> usize {
        self.details.checks.iter().filter(|check| check.outcome == Outcome::KnownDeviation).count()
    }
}

/// The name of the check that the run itself is.
pub(crate) const RUN: &str = "run";

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name says what should hold.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// What was seen, or why it was not made.
    pub text: String,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not.
    Failed,
    /// It was not made.
    Skipped,
    /// It did not hold, as is known of this version of the emulator.
    KnownDeviation,
}

impl Outcome {
    const fn is_as_expected(self) -> bool {
        matches!(self, Self::Passed | Self::KnownDeviation)
    }

    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::KnownDeviation => "known-deviation",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A figure that should not be above another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Goal {
    /// The name of the figure.
    pub name: &'static str,
    /// What it counts.
    pub what: &'static str,
    /// What was measured, in guest instructions.
    pub measured: u64,
    /// What it should not be above.
    pub goal: u64,
    /// What Linux 6.12 needs in the same setting.
    pub linux: &'static str,
    /// Whether it is not above.
    pub held: bool,
}
