//! What an exploration is told, tells on its way, and has found.

use std::collections::BTreeSet;
use std::time::Duration;

use super::choice::Choice;
use super::system::Violation;

/// Where an exploration gives up. All it has seen until then counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// After this many executions.
    pub executions: Option<u64>,
    /// After this many states (or, without a table of states, classes).
    pub states: Option<u64>,
    /// After this long.
    pub time: Option<Duration>,
    /// When its tables take this many bytes.
    pub memory: Option<u64>,
}

/// How far an exploration is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Executions so far, those cut short included.
    pub executions: u64,
    /// Happens-before classes so far (executions that came to an end, where reduction is exact).
    pub classes: u64,
    /// Different states so far.
    pub states: u64,
    /// Bytes that its tables take.
    pub memory: u64,
    /// How long it has taken so far.
    pub elapsed: Duration,
    /// The part of the work that is done, from 0 to 1, as far as the shape of the tree so far tells; none if unknown.
    pub done: Option<f64>,
}

/// Who watches an exploration, and may end it. Called about ten times a second, from any of its threads.
pub trait Observer: Sync {
    /// This is how far it is.
    fn progress(&self, progress: &Progress) {
        let _ = progress;
    }

    /// Whether it shall stop, with what it has seen until now.
    fn stop(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Observer for () {}

/// Why an exploration did not see everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// It came to one of its [`Limits`].
    Limit,
    /// It was [stopped](Observer::stop).
    Stopped,
    /// It found a violation, and was to end with the first.
    Violation,
    /// It was one shard of several, and the others have the rest.
    Shard,
    /// It draws schedules at random and never knows.
    Random,
}

/// A schedule that breaks a law.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The law.
    pub violation: Violation,
    /// The decisions that lead there, from the start.
    pub schedule: Vec<Choice>,
}

/// What an exploration found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exploration {
    /// Executions, those cut short (by a state seen before, or because all that is left is asleep) included.
    pub executions: u64,
    /// Executions that came to an end. Where the engine reduces exactly: the number of happens-before classes.
    pub classes: u64,
    /// Different states; 0 for engines that do not tell states apart.
    pub states: u64,
    /// Decisions made, those of replayed prefixes not included.
    pub transitions: u64,
    /// The different fingerprints of ends: of what an execution leaves in shared memory. From the random engines, which
    /// tell no states apart, plain data and what lives on stacks is not in them: they are no others' fingerprints.
    pub endings: BTreeSet<u64>,
    /// None: everything was seen.
    pub incomplete: Option<Incomplete>,
    /// The first violation.
    pub found: Option<Found>,
    /// Bytes that tables took at most.
    pub memory: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Exploration {
    /// Whether everything was seen that the bounds allow.
    pub fn is_complete(&self) -> bool {
        self.incomplete.is_none()
    }
}
