//! The engine that draws each choice at random, all that are offered with the same probability.
//!
//! For machines that are too big for the others. It knows nothing of what it has seen, so it costs next to nothing per
//! decision, and it never knows whether it has seen everything. Rare places behind many decisions are hard for it: see
//! [`pct`](super::pct).

use super::choice::Choice;
use super::report::{Exploration, Observer};
use super::sampling::{self, Generator, Scheduler};
use super::system::{Bits, System};

pub use super::sampling::Options;

/// Draws executions to the first violation, or to a limit, or until it is stopped: one of these there should be.
///
/// `classes` is the number of executions that were not [cut](Options::steps): they came to an end, or broke a law. The
/// same one may have been drawn more than once.
///
/// # Panics
/// If the shard is not below the number of shards.
pub fn explore<S: System>(
    factory: impl Fn() -> S + Sync,
    options: &Options,
    observer: &dyn Observer,
) -> Exploration {
    sampling::explore(factory, &Uniform(Generator::new(0, 0)), options, observer)
}

#[derive(Clone)]
struct Uniform(Generator);

impl Scheduler for Uniform {
    fn begin(&mut self, generator: Generator) {
        self.0 = generator;
    }

    #[inline]
    fn choose(&mut self, offered: &[Choice]) -> Choice {
        // No number is drawn where there is no choice.
        if let [only] = offered { *only } else { self.0.pick(offered) }
    }

    #[inline]
    fn choose_step(&mut self, mut cpus: Bits, _: &mut Vec<Choice>) -> Choice {
        let count = cpus.size();
        if count > 1 {
            for _ in 0..self.0.below(count) {
                cpus.next();
            }
        }
        Choice::step(cpus.next().unwrap_or_default())
    }
}
