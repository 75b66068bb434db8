//! The engine that remembers states: depth first, and no state is explored twice.
//!
//! A state is reached by replaying the decisions that lead there, from the start: what runs on the machine can neither
//! be copied nor taken back. So an execution is continued as far as it leads to new states, and the next one begins at
//! the deepest decision that has an alternative. A second machine parked on the way would save nothing: it can be
//! continued once, and then somebody has to bring the next one there.
//!
//! # Sleep sets
//! After a choice was explored at a node, it is asleep in the explorations of the choices after it, until something
//! happens that it does not commute with: the other order leads to the same states. With a table of states this needs
//! care, because a state that was explored with some choices asleep may be reached again without them. The table
//! keeps, per state, what was asleep on every visit; a visitor explores what was always asleep and is not for it, and
//! goes on with the choices asleep that are so for both (P. Godefroid, Partial-Order Methods for the Verification of
//! Concurrent Systems, 1996). All states are visited; transitions are saved, and each of these would cost a
//! replay.
//!
//! # Why the order of the visits does not matter
//! Every transition from a state to another is tried once, with a sleep set that holds only choices of that state which
//! were tried earlier in the same visit, are tried in a later one, or never. That puts the choices of each state into an
//! order: never tried, then visits from the last to the first, then as tried. Sleep sets without a table that use
//! these orders find all states: of the ways to reach a state by exchanging what commutes, the least in these orders
//! never runs into a choice that is asleep. And what is asleep there includes what is asleep here. So the threads
//! need not agree on who explores what, as long as each promise that the table was given is kept.

use core::ops::Range;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::choice::Choice;
use super::footprint::Footprint;
use super::report::{Exploration, Limits, Observer, Progress};
use super::seen::{Seen, Visit};
use super::system::System;
use super::watch::{StopOnPanic, Watch};

mod work;

use work::{Asleep, Unit, Work};

/// How a search through all states is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where it gives up. It is noticed after about a thousand decisions of a thread.
    pub limits: Limits,
    /// How many threads search, each on a system of its own. At least one.
    pub jobs: usize,
    /// A violation does not end the search. Without it the first one does.
    pub keep_going: bool,
    /// Whether to save transitions by sleep sets. Turned off to check the footprints: the states and endings must be the
    /// same.
    pub sleep_sets: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: Limits::default(), jobs: 1, keep_going: false, sleep_sets: true }
    }
}

/// Searches all states of a system, to the first violation or to the end.
///
/// `states` and `endings` of a complete search depend on the system alone, `classes` is the number of different states
/// in which executions end. Of several violations that were found the one with the shortest schedule is reported, and of
/// these the first in order; with more than one thread, which are found before the search ends is a matter of timing.
///
/// Only the first 32 choices of a state can be asleep; that costs transitions, not states.
///
/// # Panics
/// If the system breaks the contract of [`System`]: if it offers other choices in the same state, or takes away a choice
/// without a conflict of footprints.
pub fn explore<S: System>(
    factory: impl Fn() -> S + Sync,
    options: &Options,
    observer: &dyn Observer,
) -> Exploration {
    explore_with(Work::new(options.jobs), factory, options, observer)
}

fn explore_with<S: System>(
    work: Work,
    factory: impl Fn() -> S + Sync,
    options: &Options,
    observer: &dyn Observer,
) -> Exploration {
    let shared = Shared {
        seen: Seen::new(),
        work,
        watch: Watch::new(options.limits, options.keep_going, observer),
        sleep_sets: options.sleep_sets,
        tally: Tally::default(),
        endings: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for number in 1..options.jobs {
            let (shared, factory) = (&shared, &factory);
            scope.spawn(move || Worker::new(shared, factory(), number).run());
        }
        Worker::new(&shared, factory(), 0).run();
    });
    let memory = shared.seen.bytes();
    let tally = shared.tally;
    let (incomplete, found, elapsed) = shared.watch.into_outcome();
    Exploration {
        executions: tally.executions.into_inner(),
        classes: tally.ends.into_inner(),
        states: tally.states.into_inner(),
        transitions: tally.transitions.into_inner(),
        endings: shared.endings.into_inner().unwrap_or_else(PoisonError::into_inner),
        incomplete,
        found,
        memory,
        elapsed,
    }
}

/// What the threads share.
struct Shared<'a> {
    seen: Seen,
    work: Work,
    watch: Watch<'a>,
    sleep_sets: bool,
    tally: Tally,
    endings: Mutex<BTreeSet<u64>>,
}

/// Counts of all threads, brought up to date now and then.
#[derive(Default)]
struct Tally {
    executions: AtomicU64,
    ends: AtomicU64,
    states: AtomicU64,
    transitions: AtomicU64,
}

/// A state on the path, and what is left to be done there.
struct Node {
    /// The choice that the path takes.
    taken: Choice,
    /// What that touched; none as long as it was not performed without a violation.
    touched: Option<Footprint>,
    /// Where its untried choices begin on the stack of these, the next one last.
    untried: usize,
    /// Where those that are asleep begin on theirs.
    asleep: usize,
    /// How many choices are tried here altogether.
    branches: u32,
}

struct Worker<'a, 'b, S> {
    shared: &'a Shared<'b>,
    system: S,
    number: usize,
    /// What leads to the first node.
    prefix: Vec<Choice>,
    /// The part of the work that the current unit is.
    weight: f64,
    path: Vec<Node>,
    untried: Vec<Choice>,
    asleep: Vec<Asleep>,
    /// What the current state offers.
    offered: Vec<Choice>,
    endings: BTreeSet<u64>,
    ends: u64,
    states: u64,
    transitions: u64,
    executions: u64,
    /// How many decisions were made since the clock was looked at, replays included.
    unwatched: usize,
}

/// After so many decisions the clock is looked at, and the counts of all threads are brought up to date.
const DECISIONS_PER_LOOK: usize = 1000;

/// How many choices of a state the table's mask has a bit for.
const MASK_BITS: usize = 32;

impl<'a, 'b, S: System> Worker<'a, 'b, S> {
    fn new(shared: &'a Shared<'b>, system: S, number: usize) -> Self {
        Self {
            shared,
            system,
            number,
            prefix: Vec::new(),
            weight: 0.0,
            path: Vec::new(),
            untried: Vec::new(),
            asleep: Vec::new(),
            offered: Vec::new(),
            endings: BTreeSet::new(),
            ends: 0,
            states: 0,
            transitions: 0,
            executions: 0,
            unwatched: 0,
        }
    }

    fn run(mut self) {
        let _guard = StopOnPanic(&self.shared.watch);
        while let Some(unit) = self.shared.work.take(self.number, &self.shared.watch) {
            self.search(unit);
            self.shared.work.finish(self.number);
        }
        self.look();
        // Only this is written under the lock, in one piece.
        let mut endings = self.shared.endings.lock().unwrap_or_else(PoisonError::into_inner);
        endings.append(&mut self.endings);
    }

    /// Explores what a unit of work holds, but for what is given away.
    fn search(&mut self, unit: Unit) {
        self.untried.clear();
        self.asleep.clear();
        self.path.clear();
        self.weight = unit.weight;
        self.prefix = unit.prefix;
        if unit.untried.is_empty() {
            self.system.restart();
            self.arrive(0);
        } else {
            self.untried = unit.untried;
            self.asleep = unit.asleep;
            self.push(0, 0);
            self.replay();
        }
        loop {
            self.descend();
            self.executions += 1;
            self.unwatched += self.path.len();
            if self.unwatched >= DECISIONS_PER_LOOK {
                self.look();
            }
            if self.shared.watch.is_stopped() {
                return;
            }
            if self.shared.work.is_wanted() {
                self.give();
            }
            if !self.backtrack() {
                return;
            }
            self.replay();
        }
    }

    /// Makes the current state a node, whose untried choices and those asleep were put on the stacks, and takes the
    /// first choice.
    fn push(&mut self, untried: usize, asleep: usize) {
        let branches = (self.untried.len() - untried) as u32;
        let taken = self.untried.pop().expect("a node has something to try");
        self.path.push(Node { taken, touched: None, untried, asleep, branches });
    }

    /// Goes on with the next choice of the deepest node that has one. False: there is none.
    fn backtrack(&mut self) -> bool {
        while let Some(node) = self.path.last_mut() {
            if self.untried.len() > node.untried {
                if let Some(touched) = node.touched.take() {
                    self.asleep.push(Asleep { choice: node.taken, touched });
                }
                node.taken = self.untried.pop().expect("it has one");
                return true;
            }
            self.asleep.truncate(node.asleep);
            self.path.pop();
        }
        false
    }

    /// Brings the system to the deepest node.
    fn replay(&mut self) {
        self.system.restart();
        let above = self.path.split_last().map_or(&[][..], |(_, above)| above);
        for &choice in self.prefix.iter().chain(above.iter().map(|node| &node.taken)) {
            if let Err(violation) = self.system.perform_only(choice) {
                panic!("an execution went another way than before: {choice} now breaks a law. {violation}");
            }
        }
        self.unwatched += self.prefix.len() + self.path.len();
    }

    /// Takes the choice of the deepest node, and so on, until nothing new is ahead.
    fn descend(&mut self) {
        while let Some(node) = self.path.last_mut() {
            let choice = node.taken;
            self.transitions += 1;
            let touched = match self.system.perform(choice) {
                Ok(touched) => touched,
                Err(violation) => return self.shared.watch.found(violation, self.schedule()),
            };
            node.touched = Some(touched);
            let start = self.asleep.len();
            if self.shared.sleep_sets {
                for index in node.asleep..start {
                    let asleep = &self.asleep[index];
                    if asleep.choice.cpu != choice.cpu && !asleep.touched.conflicts(&touched) {
                        self.asleep.push(*asleep);
                    }
                }
            }
            if !self.arrive(start) {
                self.asleep.truncate(start);
                return;
            }
        }
    }

    /// The system is in a state, and what is asleep there is on its stack from `start`. Makes it a node if there is
    /// something to explore.
    fn arrive(&mut self, start: usize) -> bool {
        let hash = self.system.state_hash();
        let mut visit = None;
        if self.asleep.len() == start {
            visit = Some(self.shared.seen.visit(hash, 0));
        } else if self.shared.seen.is_explored(hash) {
            return false;
        }
        if matches!(visit, Some(Visit::Again { awake: 0, .. })) {
            return false;
        }
        let offered = self.system.choices(&mut self.offered);
        let asleep = if offered.is_ok() { self.mask(start) } else { 0 };
        let visit = visit.unwrap_or_else(|| self.shared.seen.visit(hash, asleep));
        self.states += u64::from(visit == Visit::New);
        if let Err(violation) = offered {
            self.shared.watch.found(violation, self.schedule());
            return false;
        }
        if self.offered.is_empty() {
            if visit == Visit::New {
                self.end();
            }
            return false;
        }
        let (explored, asleep) = match visit {
            Visit::New => (!asleep, asleep),
            Visit::Again { awake, asleep } => (awake, asleep),
        };
        // What no bit stands for is never asleep, so the first visit explores it.
        let beyond = visit == Visit::New;
        let untried = self.untried.len();
        for (bit, &choice) in self.offered.iter().enumerate().rev() {
            let is_explored = if bit < MASK_BITS { explored >> bit & 1 != 0 } else { beyond };
            if is_explored {
                self.untried.push(choice);
            }
        }
        if self.untried.len() == untried {
            return false;
        }
        if matches!(visit, Visit::Again { .. }) {
            self.keep_asleep(start, asleep);
        }
        self.push(untried, start);
        true
    }

    /// The bits of what is asleep on its stack from `start`, which loses what no bit stands for.
    fn mask(&mut self, start: usize) -> u32 {
        let mut mask = 0;
        let mut index = start;
        while let Some(asleep) = self.asleep.get(index) {
            let bit = bit(&self.offered, asleep.choice).unwrap_or_else(|| {
                panic!("{} was taken away without a conflict of footprints", asleep.choice)
            });
            if bit < MASK_BITS {
                mask |= 1 << bit;
                index += 1;
            } else {
                self.asleep.swap_remove(index);
            }
        }
        mask
    }

    /// Wakes up what was not asleep on all visits.
    fn keep_asleep(&mut self, start: usize, mask: u32) {
        let mut index = start;
        while let Some(asleep) = self.asleep.get(index) {
            if bit(&self.offered, asleep.choice).is_some_and(|bit| mask >> bit & 1 != 0) {
                index += 1;
            } else {
                self.asleep.swap_remove(index);
            }
        }
    }

    /// Nothing is left to happen, and nobody was here before.
    fn end(&mut self) {
        self.ends += 1;
        match self.system.end() {
            Ok(ending) => {
                self.endings.insert(ending);
            }
            Err(violation) => self.shared.watch.found(violation, self.schedule()),
        }
    }

    /// The decisions from the start to here.
    fn schedule(&self) -> Vec<Choice> {
        self.prefix.iter().copied().chain(self.path.iter().map(|node| node.taken)).collect()
    }

    /// Gives the untried choices of the shallowest node that has some to a thread that has nothing to do.
    fn give(&mut self) {
        let mut weight = self.weight;
        for depth in 0..self.path.len() {
            let left = self.untried_at(depth);
            let node = &self.path[depth];
            if left.is_empty() {
                weight /= f64::from(node.branches);
                continue;
            }
            if !self.shared.work.is_short() {
                return;
            }
            let asleep_end = self.path.get(depth + 1).map_or(self.asleep.len(), |next| next.asleep);
            let mut asleep = self.asleep[node.asleep..asleep_end].to_vec();
            asleep.extend(node.touched.map(|touched| Asleep { choice: node.taken, touched }));
            let above = self.path[..depth].iter().map(|node| node.taken);
            let unit = Unit {
                prefix: self.prefix.iter().copied().chain(above).collect(),
                weight: weight * f64::from(left.len() as u32) / f64::from(node.branches),
                asleep,
                untried: self.untried.drain(left.clone()).collect(),
            };
            for below in &mut self.path[depth + 1..] {
                below.untried -= left.len();
            }
            self.shared.work.give(unit);
            return;
        }
    }

    /// Where the untried choices of the node at this depth are.
    fn untried_at(&self, depth: usize) -> Range<usize> {
        self.path[depth].untried..self.path.get(depth + 1).map_or(self.untried.len(), |next| next.untried)
    }

    /// Brings the shared counts up to date, and looks at the clock and the limits.
    fn look(&mut self) {
        self.unwatched = 0;
        let tally = &self.shared.tally;
        let executions = add(&tally.executions, &mut self.executions);
        let states = add(&tally.states, &mut self.states);
        let ends = add(&tally.ends, &mut self.ends);
        add(&tally.transitions, &mut self.transitions);
        let memory = self.shared.seen.bytes();
        let watch = &self.shared.watch;
        watch.limit(executions, states, memory);
        watch.look(|| {
            self.shared.work.set_left(self.number, self.left());
            let done = Some(self.shared.work.done());
            Progress { executions, classes: ends, states, memory, done, ..Progress::default() }
        });
    }

    /// The part of the work that is left of the current unit. Every branch of a node counts alike, so that this shrinks
    /// slowly in the beginning, when nearly everything is new.
    fn left(&self) -> f64 {
        let mut weight = self.weight;
        let mut left = 0.0;
        for (depth, node) in self.path.iter().enumerate() {
            weight /= f64::from(node.branches);
            left += weight * f64::from(self.untried_at(depth).len() as u32);
        }
        left
    }
}

/// The bit that stands for a choice.
fn bit(offered: &[Choice], choice: Choice) -> Option<usize> {
    offered.iter().position(|&other| other == choice)
}

/// Adds a thread's count to that of all, and begins anew. The new sum.
fn add(sum: &AtomicU64, count: &mut u64) -> u64 {
    let count = core::mem::take(count);
    // Relaxed: a statistic; the last word is read after the threads have ended.
    sum.fetch_add(count, Ordering::Relaxed) + count
}

#[cfg(test)]
mod tests;
