//! What an engine explores: anything that can be restarted and offers decisions.

use core::fmt;

use super::choice::Choice;
use super::footprint::{Footprint, Place};

/// What is wrong: a law that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The law, by its short name: `L1`, `race`, `hang`, or what the protocol calls it.
    pub law: String,
    /// What is wrong, in a sentence.
    pub what: String,
}

impl Violation {
    /// This law is broken, in this way.
    pub fn new(law: impl Into<String>, what: impl Into<String>) -> Self {
        Self { law: law.into(), what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

/// The law that is no law: what the exploration rests on has turned out false, and it has to begin again.
pub(crate) const BEGIN_AGAIN: &str = "begin again";

/// A set of the first 64 CPUs, one bit each; iterated in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(pub u64);

impl Bits {
    /// How many there are.
    #[inline]
    pub const fn size(&self) -> u32 {
        self.0.count_ones()
    }
}

impl Iterator for Bits {
    type Item = u16;

    #[inline]
    fn next(&mut self) -> Option<u16> {
        let first = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (first < 64).then_some(first as u16)
    }
}

/// Draws one of these CPUs; or none, to be asked no more.
pub type Draw<'a> = dyn FnMut(Bits) -> Option<u16> + 'a;

/// Something with a finite number of choices at each moment. Engines know nothing else of a machine.
///
/// Deterministic: the same choices lead to the same state, with the same choices, footprints and hashes, in every
/// execution, on every thread and in every process.
///
/// The contract that reduction rests on: if `a` and `b` are choices of different CPUs, both offered now, and their
/// footprints do not conflict, then after `a` the choice `b` is still offered and has the same footprint, the same holds the
/// other way round, and both orders lead to the same state. All choices of one CPU exclude or follow each other.
/// If `b` is offered only after `a`, they conflict. The one exception is [`TimePasses`](super::choice::Action::TimePasses), which touches
/// everything and comes and goes as others can move or not; what else is offered must not depend on that.
pub trait System {
    /// Begins anew.
    fn restart(&mut self);

    /// Everything that can happen now, into `choices` (which is cleared first), in an order that depends on the state
    /// alone. None: this is the end of the execution.
    ///
    /// # Errors
    /// The state itself breaks a law: nobody will ever move, or only because time passes where nobody should need it.
    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation>;

    /// Makes plain steps, for as long as nothing else is offered: shows `draw` the CPUs that can make one, at least one, and
    /// lets the one step that it names, and so on. Ends where something else is offered, or nothing, or `draw` names none.
    ///
    /// For who draws at random: it needs no list of choices then. Doing nothing is always right: the choices tell the rest.
    ///
    /// # Errors
    /// As [`perform`](Self::perform).
    fn walk(&mut self, draw: &mut Draw<'_>) -> Result<(), Violation> {
        let _ = draw;
        Ok(())
    }

    /// Makes a choice, one of those offered, and says what that touched. Who replays knows what is offered, and does not
    /// ask for the [`choices`](Self::choices) in between.
    ///
    /// # Errors
    /// What happened breaks a law. The execution ends with that.
    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation>;

    /// As [`perform`](Self::perform), for who does not want to know what it touched: who draws at random, or replays.
    ///
    /// # Errors
    /// As [`perform`](Self::perform).
    fn perform_only(&mut self, choice: Choice) -> Result<(), Violation> {
        self.perform(choice).map(|_| ())
    }

    /// Makes these choices one after the other, as [`perform_only`](Self::perform_only): they were made before, from the same
    /// start.
    ///
    /// # Errors
    /// The first one of `perform_only`; all choices are made nevertheless.
    fn replay(&mut self, choices: &mut dyn Iterator<Item = Choice>) -> Result<(), Violation> {
        let mut replayed = Ok(());
        for choice in choices {
            replayed = replayed.and(self.perform_only(choice));
        }
        replayed
    }

    /// How many CPUs it has. Choices name CPUs below this.
    fn cpus(&self) -> u16;

    /// What decides whether this CPU would be offered more, where it stands, than it is offered now: the words that a
    /// blocked wait looks at, what is left of a budget that is used up (as a write), its interrupt requests if it would
    /// take one and none is there. Nothing, if it is offered all that it ever could be here.
    ///
    /// Reduction looks here for what another CPU's decision, had it come later or earlier, would have made possible. Too
    /// much in it costs executions that are cut short; too little loses schedules. So the default is everything.
    fn withheld(&mut self, cpu: u16) -> Footprint {
        let _ = cpu;
        Footprint::EVERYTHING
    }

    /// A choice that is offered now: the place to whose last change it owes that, if there is one. With the value that the
    /// place had before anybody wrote to it for the last time, and all else as it is, it would not be offered.
    ///
    /// It spares executions that are cut short. None is always right.
    fn owed_to(&mut self, choice: Choice) -> Option<Place> {
        let _ = choice;
        None
    }

    /// A hash of everything that the future depends on. Different states have different hashes but for a chance of about
    /// 2 to the power of -128 per pair.
    fn state_hash(&mut self) -> u128;

    /// At the end of an execution: a fingerprint of how it ended.
    ///
    /// # Errors
    /// It ended in a way that breaks a law.
    fn end(&mut self) -> Result<u64, Violation>;

    /// After a decision that broke no law: a number for what happened in it, beside its footprint, that is the same in
    /// every process, on the same code: the operations in their order, the values that were found. Replays use it to
    /// notice that the code has changed.
    fn digest(&mut self) -> u64 {
        0
    }
}
