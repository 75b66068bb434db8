//! A short schedule that breaks the same law as a long one.
//!
//! What short means: [`Cost`], compared field by field. First come faults, because a reader first asks whether
//! the hardware misbehaved; then operations; then context switches. An execution that hangs has to run until nobody can
//! move, so there the number of operations counts that it takes to get everybody stuck.
//!
//! How: decisions are dropped (faults first, then runs of decisions, then single ones; what is not offered any more is
//! skipped, and the rest of the execution is finished by stepping); shorter schedules are searched breadth first, behind
//! ever shorter prefixes of the best one, in the end from the start (`search`), which proves that there is none if it
//! comes to its end; and decisions that can be exchanged are, so that runs of one CPU become long (`merge`).
//!
//! Only the short name of the law has to stay the same: a schedule that breaks it in another way is as good.

use core::fmt;

use super::choice::{Action, Choice};
use super::footprint::Footprint;
use super::report::Found;
use super::schedule::{Diverged, Outcome, Schedule, replay};
use super::system::{System, Violation};

mod drop;
mod merge;
#[cfg(test)]
pub(super) mod samples;
mod search;
#[cfg(test)]
mod tests;

/// What a schedule asks of its reader. Less is better, field by field in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Messages lost, deadlines that expired although somebody could move, CPUs wedged, ticks.
    pub faults: u32,
    /// Decisions in all: operations, interrupts taken, stores that reach memory, time that passes.
    pub operations: u32,
    /// How often the next decision is another CPU's than the one before.
    pub switches: u32,
}

impl Cost {
    /// What this schedule costs.
    pub fn of(choices: &[Choice]) -> Self {
        let mut cost = Self::default();
        let mut last = None;
        for choice in choices {
            cost = cost.and(last.replace(choice.cpu), *choice);
        }
        cost
    }

    /// One decision more, after one of the CPU `last`.
    fn and(self, last: Option<u16>, choice: Choice) -> Self {
        Self {
            faults: self.faults + faults(choice),
            operations: self.operations + 1,
            switches: self.switches + u32::from(last.is_some_and(|last| last != choice.cpu)),
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |number| if number == 1 { "" } else { "s" };
        let Self { faults, operations, switches } = *self;
        write!(f, "{operations} operation{}, ", many(operations))?;
        write!(f, "{switches} context switch{}, ", if switches == 1 { "" } else { "es" })?;
        write!(f, "{faults} fault{}", many(faults))
    }
}

/// How many faults a decision contains: one for each message lost.
fn faults(choice: Choice) -> u32 {
    match choice.action {
        Action::Lose(targets) => targets.count_ones(),
        Action::Expire | Action::Wedge | Action::Tick => 1,
        Action::Step | Action::Interrupt | Action::Nmi | Action::TimePasses | Action::Flush => 0,
    }
}

/// How much work a minimisation may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// At most this many executions, most of them cut short.
    pub executions: u64,
}

impl Default for Options {
    /// A fifth of a second or so on the machines that are explored.
    fn default() -> Self {
        Self { executions: 100_000 }
    }
}

/// A short schedule that breaks a law, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minimised {
    /// The schedule, with its checksum.
    pub schedule: Schedule,
    /// The law, as this schedule breaks it.
    pub violation: Violation,
    /// What the schedule cost that was to be minimised.
    pub before: Cost,
    /// What this one costs.
    pub after: Cost,
    /// Whether it is proven that no schedule with at most as many faults breaks the law in fewer operations.
    pub shortest: bool,
    /// How many executions it took.
    pub executions: u64,
}

/// Finds a short schedule that breaks the same law. The same input gives the same result.
///
/// # Errors
/// The schedule that was found does not break its law when it is performed.
pub fn minimise<S: System>(system: &mut S, found: &Found, options: Options) -> Result<Minimised, Diverged> {
    let replayed = replay(system, &Schedule::new(found.schedule.clone()))?;
    let violation = match replayed.outcome {
        Outcome::Violated(violation) if violation.law == found.violation.law => violation,
        outcome => return Err(Diverged::OtherOutcome { law: found.violation.law.clone(), outcome }),
    };
    let before = Cost::of(&found.schedule);
    let mut minimiser = Minimiser {
        best: Execution {
            choices: found.schedule.clone(),
            footprints: replayed.footprints,
            violation,
            cost: before,
        },
        trial: Trial::default(),
        system,
        executions: 1,
        most: options.executions,
    };
    minimiser.drop_decisions();
    let shortest = minimiser.search();
    minimiser.merge_runs();
    let Minimiser { best, system, executions, .. } = minimiser;
    let replayed = replay(system, &Schedule::new(best.choices.clone()))?;
    Ok(Minimised {
        schedule: Schedule { choices: best.choices, digest: Some(replayed.digest) },
        violation: best.violation,
        before,
        after: best.cost,
        shortest,
        executions: executions + 1,
    })
}

/// An execution that breaks the law.
struct Execution {
    choices: Vec<Choice>,
    footprints: Vec<Footprint>,
    violation: Violation,
    cost: Cost,
}

/// An execution that may become one; kept from one attempt to the next for its room.
#[derive(Default)]
struct Trial {
    choices: Vec<Choice>,
    footprints: Vec<Footprint>,
    offered: Vec<Choice>,
}

/// What happens after the last decision that was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// Nothing.
    Cut,
    /// Whoever ran last goes on as long as it can, then the CPU with the lowest number.
    Last,
    /// This CPU goes on as long as it can, then the CPU with the lowest number.
    Rather(u16),
}

struct Minimiser<'s, S> {
    system: &'s mut S,
    best: Execution,
    trial: Trial,
    executions: u64,
    most: u64,
}

impl<S: System> Minimiser<'_, S> {
    fn exhausted(&self) -> bool {
        self.executions >= self.most
    }

    /// Performs those of the decisions that are offered, and then the tail. If that breaks the law at less cost than
    /// the best execution, it becomes the best one.
    fn attempt(&mut self, wanted: impl Iterator<Item = Choice>, tail: Tail) -> bool {
        if self.exhausted() {
            return false;
        }
        self.executions += 1;
        let violation =
            self.perform(wanted, tail).filter(|violation| violation.law == self.best.violation.law);
        let Some(violation) = violation else { return false };
        let cost = Cost::of(&self.trial.choices);
        if cost >= self.best.cost {
            return false;
        }
        core::mem::swap(&mut self.best.choices, &mut self.trial.choices);
        core::mem::swap(&mut self.best.footprints, &mut self.trial.footprints);
        self.best.violation = violation;
        self.best.cost = cost;
        true
    }

    fn perform(&mut self, mut wanted: impl Iterator<Item = Choice>, tail: Tail) -> Option<Violation> {
        let Trial { choices, footprints, offered } = &mut self.trial;
        choices.clear();
        footprints.clear();
        self.system.restart();
        let (mut cost, mut last) = (Cost::default(), None);
        loop {
            if let Err(violation) = self.system.choices(offered) {
                return Some(violation);
            }
            if offered.is_empty() {
                return self.system.end().err();
            }
            let choice =
                wanted.find(|choice| offered.contains(choice)).or_else(|| go_on(offered, last, tail))?;
            cost = cost.and(last, choice);
            // Costs only grow.
            if cost >= self.best.cost {
                return None;
            }
            last = Some(choice.cpu);
            choices.push(choice);
            match self.system.perform(choice) {
                Ok(footprint) => footprints.push(footprint),
                Err(violation) => {
                    footprints.push(Footprint::EVERYTHING);
                    return Some(violation);
                }
            }
        }
    }
}

/// The next decision of a tail: no fault, and rather a step than anything else.
fn go_on(offered: &[Choice], last: Option<u16>, tail: Tail) -> Option<Choice> {
    let rather = match tail {
        Tail::Cut => return None,
        Tail::Last => last,
        Tail::Rather(cpu) => Some(cpu),
    };
    let harmless = offered.iter().filter(|&&choice| faults(choice) == 0);
    harmless
        .copied()
        .min_by_key(|choice| (Some(choice.cpu) != rather, choice.action != Action::Step, choice.cpu))
}
