//! A violation as its reader wants it: short, and in a form that replays anywhere.

use std::sync::atomic::{AtomicBool, Ordering};

use super::account::account;
use super::fresh::Fresh;
use super::unfold::unfold;
use crate::ConfigError;
use crate::explored::Learned;
use crate::explorer::machine::{ExploredMachine, Setup};
use crate::explorer::minimise::{self, Cost, Minimised, minimise};
use crate::explorer::report::Found;
use crate::explorer::scenario::Protocol;
use crate::explorer::schedule::{Diverged, Outcome, Schedule};
use crate::explorer::story::Account;
use crate::explorer::system::Violation;

/// A violation, minimised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The law, as this schedule breaks it.
    pub violation: Violation,
    /// The schedule, with a decision for every operation and with its checksum: for [`retell`].
    pub schedule: Schedule,
    /// What the schedule cost that the engine found.
    pub before: Cost,
    /// What this one costs, without operations that nobody else can notice.
    pub after: Cost,
    /// Whether it is proven that no schedule with at most as many faults breaks the law in fewer operations.
    pub shortest: bool,
    /// What happens in it.
    pub account: Account,
}

/// A schedule that was performed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retold {
    /// What came of it.
    pub outcome: Outcome,
    /// What happens in it. If no law is broken, it says so in the place of the law.
    pub account: Account,
}

/// The machine of a protocol on which every operation is a decision: what happens on it does not depend on what an
/// exploration has learned.
fn full_machine(protocol: &Protocol, setup: &Setup) -> Result<ExploredMachine, ConfigError> {
    ExploredMachine::new(protocol, &Setup { reduce: false, hashes: true, ..setup.clone() })
}

/// Performs a schedule of a [`Counterexample`]. `command` is the command that explores the same.
///
/// # Errors
/// If there cannot be such a machine; or, inside, if something else happens than when the schedule was written.
pub fn retell(
    protocol: &Protocol,
    setup: &Setup,
    schedule: &Schedule,
    command: &str,
) -> Result<Result<Retold, Diverged>, ConfigError> {
    let mut machine = full_machine(protocol, setup)?;
    let told = account(&mut machine, schedule, &title(protocol), command);
    Ok(told.map(|(replayed, account)| Retold { outcome: replayed.outcome, account }))
}

fn title(protocol: &Protocol) -> String {
    format!("{}: {}", protocol.name, protocol.about)
}

/// Makes a violation short. None: it does not come again, because what was learned since changes the schedule.
pub(super) fn explain(
    protocol: &Protocol,
    setup: &Setup,
    learned: &Learned,
    found: &Found,
    command: &str,
) -> Result<Option<Counterexample>, ConfigError> {
    // What the machines learn meanwhile makes what they were given of no use: each is asked once.
    let brief = || ExploredMachine::with_learned(protocol, setup, learned.clone());
    let mut full = full_machine(protocol, setup)?;
    let Some(whole) = unfold(&mut brief()?, &mut full, &found.schedule) else { return Ok(None) };
    let again = AtomicBool::new(false);
    let mut fresh = Fresh { machine: brief()?, again: &again };
    let options = minimise::Options::default();
    let minimised = minimise(&mut fresh, found, options).ok();
    // Relaxed: there is no other thread.
    let minimised = minimised.filter(|_| !again.load(Ordering::Relaxed));
    if let Some(minimised) = minimised
        && let Some(choices) = unfold(&mut brief()?, &mut full, &minimised.schedule.choices)
        && let Some(counterexample) = told(protocol, setup, command, Minimised { schedule: Schedule::new(choices), ..minimised })?
    {
        return Ok(Some(counterexample));
    }
    let whole = Found { violation: found.violation.clone(), schedule: whole };
    let minimised = minimise(&mut full, &whole, options).ok();
    minimised.map_or(Ok(None), |minimised| told(protocol, setup, command, minimised))
}

/// The counterexample, if its schedule breaks its law.
fn told(
    protocol: &Protocol,
    setup: &Setup,
    command: &str,
    minimised: Minimised,
) -> Result<Option<Counterexample>, ConfigError> {
    let Minimised { schedule, violation, before, after, shortest, .. } = minimised;
    let Ok(Retold { outcome, account }) = retell(protocol, setup, &schedule, command)? else { return Ok(None) };
    Ok(match outcome {
        Outcome::Violated(found) if found.law == violation.law => {
            let schedule = account.schedule.clone();
            Some(Counterexample { violation: found, schedule, before, after, shortest, account })
        }
        _ => None,
    })
}
