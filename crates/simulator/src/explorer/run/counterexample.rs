//! A violation as its reader wants it: short, and in a form that replays anywhere.

use core::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use super::account::account;
use super::fresh::Fresh;
use super::unfold::unfold;
use crate::ConfigError;
use crate::explored::Learned;
use crate::explorer::machine::{ExploredMachine, LONGEST, Setup};
use crate::explorer::minimise::{self, Cost, Minimised, minimise};
use crate::explorer::report::Found;
use crate::explorer::scenario::{MemoryModel, Protocol};
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

/// Performs a schedule of a [`Counterexample`].
///
/// # Errors
/// If there cannot be such a machine; or, inside, if something else happens than when the schedule was written.
pub fn retell(
    protocol: &Protocol,
    setup: &Setup,
    schedule: &Schedule,
) -> Result<Result<Retold, Diverged>, ConfigError> {
    let mut machine = full_machine(protocol, setup)?;
    let title = format!("{}: {}", protocol.name, protocol.about);
    let told = account(&mut machine, schedule, &title, &command(protocol, setup));
    Ok(told.map(|(replayed, account)| Retold { outcome: replayed.outcome, account }))
}

/// The command that explores this, up to the schedule of a replay: what a schedule depends on.
fn command(protocol: &Protocol, setup: &Setup) -> String {
    let mut command = format!("smpcall explore {}", protocol.name);
    if setup.memory == MemoryModel::Tso {
        command.push_str(" --memory tso");
    }
    let (bounds, own) = (setup.bounds, protocol.bounds);
    for (option, bound, own) in [
        ("drops", bounds.drops, own.drops),
        ("expiries", bounds.expiries, own.expiries),
        ("ticks", bounds.ticks, own.ticks),
        ("wedges", bounds.wedges, own.wedges),
    ] {
        // Also what is the protocol's own today.
        if bound != 0 || bound != own {
            // Writing to a `String` cannot fail.
            let _ = write!(command, " --{option} {bound}");
        }
    }
    command
}

/// Makes a violation short. None: it does not come again, because what was learned since changes the schedule; or it is that
/// an execution has no end.
pub(super) fn explain(
    protocol: &Protocol,
    setup: &Setup,
    learned: &Learned,
    found: &Found,
) -> Result<Option<Counterexample>, ConfigError> {
    if found.schedule.len() >= LONGEST as usize {
        // It has no end: a shorter one breaks no law, and nobody reads this one.
        return Ok(None);
    }
    // What the machines learn meanwhile makes what they were given of no use: each is asked once.
    let brief = || ExploredMachine::with_learned(protocol, setup, learned.freeze());
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
        && let Some(counterexample) =
            told(protocol, setup, Minimised { schedule: Schedule::new(choices), ..minimised })?
    {
        return Ok(Some(counterexample));
    }
    let whole = Found { violation: found.violation.clone(), schedule: whole };
    let minimised = minimise(&mut full, &whole, options).ok();
    minimised.map_or(Ok(None), |minimised| told(protocol, setup, minimised))
}

/// The counterexample, if its schedule breaks its law.
fn told(
    protocol: &Protocol,
    setup: &Setup,
    minimised: Minimised,
) -> Result<Option<Counterexample>, ConfigError> {
    let Minimised { schedule, violation, before, after, shortest, .. } = minimised;
    let Ok(Retold { outcome, account }) = retell(protocol, setup, &schedule)? else { return Ok(None) };
    Ok(match outcome {
        Outcome::Violated(found) if found.law == violation.law => {
            let schedule = account.schedule.clone();
            Some(Counterexample { violation: found, schedule, before, after, shortest, account })
        }
        _ => None,
    })
}
