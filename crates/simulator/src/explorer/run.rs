//! Exploring a protocol: which engine, on which machine, how far.

use core::fmt;
use core::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::machine::{BEGIN_AGAIN, ExploredMachine, Setup};
use super::report::{Exploration, Incomplete, Limits, Observer, Progress};
use super::scenario::Protocol;
use super::{dpor, pct, random, states};
use crate::ConfigError;
use crate::explored::Learned;

mod account;
mod counterexample;
mod fresh;
#[cfg(test)]
mod tests;
mod unfold;

pub use counterexample::{Counterexample, Retold, retell};
use fresh::Fresh;

/// Which schedules are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// All of them, but for those that differ in the order of what commutes only: exact numbers of classes.
    Dpor,
    /// All of them, and no state twice.
    #[default]
    States,
    /// As they come: each decision is drawn at random.
    Random,
    /// As they come, by random priorities that change now and then: better at bugs that need a few rare things.
    Pct,
}

impl Engine {
    /// All engines.
    pub const ALL: [Self; 4] = [Self::Dpor, Self::States, Self::Random, Self::Pct];

    /// Whether it can see everything.
    pub const fn is_exhaustive(self) -> bool {
        matches!(self, Self::Dpor | Self::States)
    }

    /// Its name: `dpor`, `states`, `random`, `pct`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dpor => "dpor",
            Self::States => "states",
            Self::Random => "random",
            Self::Pct => "pct",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that names no engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownEngine;

impl fmt::Display for UnknownEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there are ")?;
        for (index, engine) in Engine::ALL.into_iter().enumerate() {
            write!(f, "{}{engine}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownEngine {}

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        Self::ALL.into_iter().find(|engine| engine.name() == name).ok_or(UnknownEngine)
    }
}

/// An exploration to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// On which machine.
    pub setup: Setup,
    /// How.
    pub engine: Engine,
    /// How far.
    pub limits: Limits,
    /// On how many threads.
    pub jobs: usize,
    /// Only one part of so many, counted from 0: not for [`Engine::States`].
    ///
    /// If each part is complete but for the others, then the sum of their classes is that of the whole, and the
    /// union of their endings is that of the whole.
    pub shard: Option<(usize, usize)>,
    /// Whether to go on after a violation.
    pub keep_going: bool,
    /// Which executions the random engines draw.
    pub seed: u64,
}

impl Plan {
    /// By the states engine, on one thread, to the first violation.
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            engine: Engine::default(),
            limits: Limits::default(),
            jobs: 1,
            shard: None,
            keep_going: false,
            seed: 1,
        }
    }
}

/// Why nothing was explored.
#[derive(Clone, Debug, PartialEq)]
pub enum ExploreError {
    /// There cannot be such a machine.
    Machine(ConfigError),
    /// The machine has more CPUs than the engine takes.
    TooManyCpus {
        /// The engine.
        engine: Engine,
        /// The machine's CPUs.
        cpus: usize,
        /// The most that it takes.
        most: usize,
    },
    /// There is no such part: parts of `of` are counted from 0 to `of - 1`.
    NoSuchShard {
        /// The part.
        shard: usize,
        /// How many there are.
        of: usize,
    },
    /// What the parts of an exploration by states have seen cannot be added up.
    ShardOfStates,
    /// A word was taken for private by all parts, and is not: the results of the parts cannot be added up.
    ShardsDisagree,
}

impl fmt::Display for ExploreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(error) => error.fmt(f),
            Self::TooManyCpus { engine, cpus, most } => {
                write!(f, "the engine {engine} takes {most} CPUs at the most, and the machine has {cpus}")
            }
            Self::NoSuchShard { shard, of } => {
                write!(f, "there is no shard {shard} of {of}, counted from 0")
            }
            Self::ShardOfStates => f.write_str(
                "the engine states cannot be sharded: the same states are reached in several shards, so that what the \
                 shards find cannot be added up",
            ),
            Self::ShardsDisagree => f.write_str(
                "a word that was taken for private is shared, and other shards may not know: the results of all shards \
                 of this exploration are worth nothing; explore each shard without doing at once what is private",
            ),
        }
    }
}

impl core::error::Error for ExploreError {}

impl From<ConfigError> for ExploreError {
    fn from(error: ConfigError) -> Self {
        Self::Machine(error)
    }
}

/// How many executions at random the shards of an exploration learn from which words are private, before they divide
/// the work. All learn the same.
const LESSONS: u32 = 10_000;

/// Explores a protocol.
///
/// When a word that was taken for private turns out to be shared, the exploration begins again. Counts are those of the
/// last round. Time, its limit and, for the exhaustive engines, the limit on executions are over all rounds.
///
/// # Errors
/// If there cannot be such a machine, or no such shard.
pub fn explore(
    protocol: &Protocol,
    plan: &Plan,
    observer: &dyn Observer,
) -> Result<Exploration, ExploreError> {
    rounds(protocol, plan, observer, &Learned::default())
}

/// As [`explore`]; and the violation, if one is found, as its reader wants it. None with a violation: it does not come on
/// the machine on which [every operation is a decision](Setup::reduce). (The exploration was stopped while it had to begin
/// again, and the schedule belongs to what it knew before; or what was done at once should not have been.)
///
/// # Errors
/// As [`explore`].
pub fn explore_and_explain(
    protocol: &Protocol,
    plan: &Plan,
    observer: &dyn Observer,
) -> Result<(Exploration, Option<Counterexample>), ExploreError> {
    let learned = Learned::default();
    let exploration = rounds(protocol, plan, observer, &learned)?;
    let counterexample = match &exploration.found {
        Some(found) => counterexample::explain(protocol, &plan.setup, &learned, found)?,
        None => None,
    };
    Ok((exploration, counterexample))
}

fn check(protocol: &Protocol, plan: &Plan) -> Result<(), ExploreError> {
    if let Some((shard, of)) = plan.shard {
        if plan.engine == Engine::States {
            return Err(ExploreError::ShardOfStates);
        }
        if shard >= of {
            return Err(ExploreError::NoSuchShard { shard, of });
        }
    }
    if plan.engine == Engine::Dpor && protocol.cpus > dpor::MAX_CPUS {
        return Err(ExploreError::TooManyCpus {
            engine: plan.engine,
            cpus: protocol.cpus,
            most: dpor::MAX_CPUS,
        });
    }
    Ok(())
}

/// Explores until nothing has to be unlearned.
fn rounds(
    protocol: &Protocol,
    plan: &Plan,
    observer: &dyn Observer,
    learned: &Learned,
) -> Result<Exploration, ExploreError> {
    check(protocol, plan)?;
    let start = Instant::now();
    // Whether there can be such a machine is known before there are threads.
    let unreduced = Setup { reduce: false, hashes: true, ..plan.setup.clone() };
    let mut machine = ExploredMachine::with_learned(protocol, &unreduced, learned.clone())?;
    if plan.shard.is_some() && plan.setup.reduce {
        fresh::learn(&mut machine, LESSONS);
    }
    if let Err(found) = fresh::check_repeats(&mut machine) {
        return Ok(Exploration {
            incomplete: Some(Incomplete::Violation),
            found: Some(found),
            elapsed: start.elapsed(),
            ..Exploration::default()
        });
    }
    drop(machine);
    let mut executions = 0;
    loop {
        let again = AtomicBool::new(false);
        let watcher = Watcher { observer, again: &again, before: start.elapsed() };
        let limits = Limits {
            time: plan.limits.time.map(|limit| limit.saturating_sub(start.elapsed())),
            executions: plan.limits.executions.map(|limit| (limit - executions).max(1)),
            ..plan.limits
        };
        let mut exploration = round(protocol, &Plan { limits, ..plan.clone() }, &watcher, learned, &again);
        exploration.elapsed = start.elapsed();
        // Relaxed: the threads that set it have ended.
        if !again.load(Ordering::Relaxed) {
            return Ok(exploration);
        }
        if plan.engine.is_exhaustive() {
            if plan.shard.is_some() {
                return Err(ExploreError::ShardsDisagree);
            }
            let most = plan.limits.executions.unwrap_or(u64::MAX);
            executions = most.min(executions + exploration.executions);
        }
        let spent = plan.limits.executions.is_some_and(|limit| executions >= limit)
            || plan.limits.time.is_some_and(|limit| start.elapsed() >= limit);
        let stopped = observer.stop();
        if spent || stopped {
            // What breaks a law breaks it on any machine; but not everything was seen.
            exploration.found = exploration.found.filter(|found| found.violation.law != BEGIN_AGAIN);
            exploration.incomplete = Some(if stopped { Incomplete::Stopped } else { Incomplete::Limit });
            return Ok(exploration);
        }
    }
}

fn round(
    protocol: &Protocol,
    plan: &Plan,
    watcher: &Watcher<'_>,
    learned: &Learned,
    again: &AtomicBool,
) -> Exploration {
    let learned = &learned.freeze();
    // Who draws at random tells no states apart.
    let hashes = plan.setup.hashes && plan.engine.is_exhaustive();
    let setup = &Setup { hashes, ..plan.setup.clone() };
    let factory = || {
        let machine = ExploredMachine::with_learned(protocol, setup, learned.clone());
        Fresh { machine: machine.expect("there was such a machine a moment ago"), again }
    };
    let &Plan { limits, jobs, shard, keep_going, .. } = plan;
    match plan.engine {
        Engine::Dpor => {
            let options = dpor::Options { limits, jobs, shard, keep_going, ..dpor::Options::default() };
            dpor::explore(factory, &options, watcher)
        }
        Engine::States => {
            let options = states::Options { limits, jobs, keep_going, ..states::Options::default() };
            states::explore(factory, &options, watcher)
        }
        Engine::Random => random::explore(factory, &sampling(plan), watcher),
        Engine::Pct => {
            let options = pct::Options { sampling: sampling(plan), ..pct::Options::default() };
            pct::explore(factory, &options, watcher)
        }
    }
}

fn sampling(plan: &Plan) -> random::Options {
    let &Plan { seed, limits, shard, jobs, keep_going, .. } = plan;
    random::Options { seed, limits, shard, jobs, keep_going, ..random::Options::default() }
}

/// Passes on what an observer is told and wants, over all rounds, and ends a round that has to begin again.
struct Watcher<'a> {
    observer: &'a dyn Observer,
    again: &'a AtomicBool,
    /// What the rounds before took.
    before: Duration,
}

impl Observer for Watcher<'_> {
    fn progress(&self, progress: &Progress) {
        self.observer.progress(&Progress { elapsed: self.before + progress.elapsed, ..*progress });
    }

    fn stop(&self) -> bool {
        // Relaxed: only a wish; the round's own threads are joined before its results are used.
        self.again.load(Ordering::Relaxed) || self.observer.stop()
    }
}
