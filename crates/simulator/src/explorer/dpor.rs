//! The exhaustive engine that tells executions apart by happens-before: depth first, without a table of states.
//!
//! Executions with the same decisions on each CPU and the same order of all decisions whose
//! [footprints](super::footprint::Footprint) conflict are one *class*: they end in the same state. [`Reduction::Reduced`]
//! executes each class to its end exactly once; beside that there may be executions that are cut short because all
//! that is left has been seen elsewhere (it is *asleep*). The method is source-set partial-order reduction with sleep
//! sets (Abdulla, Aronis, Jonsson, Sagonas, JACM 2017), extended by interrupts, blocked CPUs and budgets:
//! `dpor/races.rs` says how. All that one CPU is offered at a node are alternatives: once the CPU is scheduled there, all of
//! them are explored.
//!
//! A law that breaks in [`perform`](super::system::System::perform) ends the execution; that last decision counts as one that
//! conflicts with everything. A law that breaks in [`choices`](super::system::System::choices) must be about states in
//! which nobody can move (or else it must be broken in every order of independent decisions): reduction does not visit
//! all states.
//!
//! For [shards](Options::shard) and [jobs](Options::jobs) the top of the tree is expanded to many [units](Options::shard),
//! of which each is explored for itself.

use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use super::report::{Exploration, Found, Incomplete, Limits, Observer};
use super::system::System;

mod frontier;
mod index;
mod path;
mod races;
mod search;
#[cfg(test)]
mod tests;
mod watch;

use frontier::Unit;
use search::Search;
use watch::Watch;

/// The most CPUs that this engine takes.
pub const MAX_CPUS: usize = 16;

/// How much this engine spares itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Every interleaving.
    Naive,
    /// No two complete executions of one class, but every node is expanded fully: many are cut short.
    SleepSets,
    /// Only what races show to be needed.
    #[default]
    Reduced,
}

/// What to explore, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How much to leave out.
    pub reduction: Reduction,
    /// When to give up.
    pub limits: Limits,
    /// How many threads; 0 counts as 1.
    pub jobs: usize,
    /// Only this part of so many, counted from 0: `(3, 64)` is the fourth of 64. Classes and endings of all parts
    /// together are those of the whole, and no class is in two parts (but for [`Reduction::Naive`], whose parts overlap).
    pub shard: Option<(usize, usize)>,
    /// Whether to go on after a violation.
    pub keep_going: bool,
}

/// What a test compares: every class and every violation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// A hash of each class.
    pub classes: BTreeSet<u128>,
    /// Each different violation, as text.
    pub violations: BTreeSet<String>,
}

/// Explores a system. `factory` makes one for each thread.
///
/// With one job and no shards it is depth first from the start. Otherwise units are explored in some order, and their
/// results are put together in the order of the units: what is found does not depend on timing, unless a
/// [limit](Limits) or the [observer](Observer::stop) ends it. (The number of executions that are cut short is another one then.)
///
/// # Panics
/// If the system has more than [`MAX_CPUS`] CPUs, or if the shard is not below the number of shards.
pub fn explore<S: System>(
    factory: impl Fn() -> S + Sync,
    options: &Options,
    observer: &dyn Observer,
) -> Exploration {
    run(&factory, options, observer, false).0
}

/// As [`explore`]; and remembers each class and each violation.
///
/// # Panics
/// As [`explore`].
pub fn explore_and_collect<S: System>(
    factory: impl Fn() -> S + Sync,
    options: &Options,
    observer: &dyn Observer,
) -> (Exploration, Collected) {
    let (exploration, tally) = run(&factory, options, observer, true);
    let collected = Collected { classes: tally.hashes.into_iter().collect(), violations: tally.violations };
    (exploration, collected)
}

/// What was counted in a unit, or in several.
#[derive(Default)]
struct Tally {
    executions: u64,
    classes: u64,
    transitions: u64,
    endings: BTreeSet<u64>,
    found: Option<Found>,
    /// The classes, if they are collected. Never iterated where the order could show.
    hashes: FxHashSet<u128>,
    violations: BTreeSet<String>,
    /// Whether the unit was explored to its end (or to its first violation).
    finished: bool,
}

impl Tally {
    fn absorb(&mut self, other: Self) {
        self.executions += other.executions;
        self.classes += other.classes;
        self.transitions += other.transitions;
        self.endings.extend(other.endings);
        self.hashes.extend(other.hashes);
        self.violations.extend(other.violations);
        self.found = self.found.take().or(other.found);
        self.finished &= other.finished;
    }
}

fn run<S: System>(
    factory: &(impl Fn() -> S + Sync),
    options: &Options,
    observer: &dyn Observer,
    collect: bool,
) -> (Exploration, Tally) {
    let jobs = options.jobs.max(1);
    let mut system = factory();
    let cpus = usize::from(system.cpus());
    assert!(cpus <= MAX_CPUS, "this engine explores at most {MAX_CPUS} CPUs, and here are {cpus}");
    let (shard, shards) = options.shard.unwrap_or((0, 1));
    assert!(shard < shards, "there is no shard {shard} of {shards}");
    let units = if jobs == 1 && options.shard.is_none() {
        vec![Unit::default()]
    } else {
        let wanted = frontier::UNITS_PER_SHARD * options.shard.map_or(jobs, |_| shards);
        frontier::expand(&mut system, options.reduction, wanted)
            .into_iter()
            .skip(shard)
            .step_by(shards)
            .collect()
    };
    let watch = Watch::new(observer, options.limits, units.len(), jobs);
    let work = |system: S, job: usize| {
        let mut search = Search::new(system, options, collect, &watch, job);
        while let Some(unit) = watch.take() {
            watch.hand_in(unit, search.explore(unit, &units[unit]), !options.keep_going);
        }
    };
    std::thread::scope(|scope| {
        for job in 1..jobs {
            let work = &work;
            scope.spawn(move || work(factory(), job));
        }
        work(system, 0);
    });
    let mut total = Tally { finished: true, ..Tally::default() };
    let ended_by = watch.ended_by();
    let (elapsed, memory) = (watch.elapsed(), watch.memory());
    let mut violated = false;
    for tally in watch.into_tallies() {
        total.absorb(tally.unwrap_or_default());
        violated = total.found.is_some() && !options.keep_going;
        if violated {
            break;
        }
    }
    let incomplete = if violated {
        Some(Incomplete::Violation)
    } else if total.finished {
        (shards > 1).then_some(Incomplete::Shard)
    } else {
        ended_by
    };
    let classes =
        if options.reduction == Reduction::Naive { total.hashes.len() as u64 } else { total.classes };
    let exploration = Exploration {
        executions: total.executions,
        classes,
        states: 0,
        transitions: total.transitions,
        endings: core::mem::take(&mut total.endings),
        incomplete,
        found: total.found.take(),
        memory,
        elapsed,
    };
    (exploration, total)
}
