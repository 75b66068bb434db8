//! The engine that draws priorities instead of choices: probabilistic concurrency testing.
//!
//! A bug of depth d needs d decisions in the right order, however long the execution is. Each actor gets a random
//! priority, and who has the highest one acts, as long as it can; at d - 1 random places, the change points, that one
//! falls below all others. With n actors and executions of k decisions, an execution finds a bug of depth d with a
//! probability of at least
//! 1 in n k^(d-1) (S. Burckhardt et al., A Randomized Scheduler with Probabilistic Guarantees of
//! Finding Bugs, ASPLOS 2010). Drawing each choice evenly has no such bound: it hardly ever holds one CPU back for long.
//!
//! # Actors
//! Each CPU is several actors with priorities of their own: its steps, its interrupts, its NMIs, its store buffer. An
//! interrupt whose priority is above that of its CPU's steps is taken as soon as it can be; one below waits
//! until the CPU has nothing else to do, or until a change point lets the CPU's steps fall: then it is taken right there.
//! So an interrupt between two certain operations costs one change point. Time that passes when nobody can move is
//! no decision between actors: one of the CPUs is drawn.
//!
//! # Rare events
//! Lost messages, expired waits, ticks and wedges would be drowned by all others if they were actors, or would happen
//! at once and always. They happen at change points only. A change point is not a number of decisions but of
//! opportunities of its kind: the n-th message that is sent is lost, or the n-th time that a wait could expire it does.
//! Each kind of event that the system offers at all takes an equal share of the change points, beside the change of
//! priorities. So if there are e kinds beside that one, and m messages of one target are sent in an execution, then at depth 2
//! each of them is lost in one of (e + 1) m executions on average, however many decisions there are between.
//!
//! How many opportunities there are is learned from a few pilot executions without change points, which depend on the
//! seed alone: all shards and threads learn the same.

use super::choice::{Action, Choice};
use super::report::{Exploration, Observer};
use super::sampling::{self, Generator, Scheduler};
use super::system::System;

/// Which executions are drawn, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which, and how many.
    pub sampling: sampling::Options,
    /// The depth of the bugs that are looked for, at least 1. An execution has one change point less than this.
    pub depth: u32,
}

impl Default for Options {
    /// Bugs that need three decisions in the right order: a lost message or an interrupt, and one more change.
    fn default() -> Self {
        Self { sampling: sampling::Options::default(), depth: 3 }
    }
}

/// Draws executions to the first violation, or to a limit, or until it is stopped: one of these there should be.
///
/// `classes` is the number of executions that were not [cut](sampling::Options::steps), as in
/// [`random`](super::random::explore). Pilot executions are not counted, and what they find is not reported.
///
/// # Panics
/// If the depth is zero, or the shard is not below the number of shards.
pub fn explore<S: System>(
    factory: impl Fn() -> S + Sync,
    options: &Options,
    observer: &dyn Observer,
) -> Exploration {
    assert!(options.depth > 0, "no bug has depth 0");
    let lengths = learn(&mut factory(), &options.sampling);
    let scheduler = Pct::new(options.depth - 1, lengths);
    sampling::explore(factory, &scheduler, &options.sampling, observer)
}

/// So many executions are made to learn how many opportunities there are.
const PILOTS: u64 = 16;

/// How many opportunities of each kind an execution has at most, as far as the pilots tell.
fn learn(system: &mut impl System, options: &sampling::Options) -> [u32; KINDS] {
    let mut most = [0; KINDS];
    let (mut schedule, mut offered) = (Vec::new(), Vec::new());
    for pilot in 0..PILOTS {
        let mut priorities = Pct::new(0, [0; KINDS]);
        // Numbers from the other end: no pilot is the same as an execution that counts.
        priorities.begin(Generator::new(options.seed, u64::MAX - pilot));
        sampling::execute(system, &mut priorities, options.steps, &mut schedule, &mut offered);
        for (most, met) in most.iter_mut().zip(priorities.met) {
            *most = met.max(*most);
        }
    }
    most
}

/// What can happen at a change point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The actor with the highest priority falls below all others. Each decision between actors is an opportunity.
    Fall,
    /// The message that is about to be sent is lost for some targets. Each message is an opportunity.
    Loss,
    /// A wait expires. Each decision while one could is an opportunity, here and for what follows.
    Expiry,
    /// A timer ticks.
    Tick,
    /// A CPU wedges.
    Wedge,
}

const KINDS: usize = 5;

impl Kind {
    const ALL: [Self; KINDS] = [Self::Fall, Self::Loss, Self::Expiry, Self::Tick, Self::Wedge];
    /// What is no alternative to a step of the same CPU: it has opportunities of its own.
    const BY_ITSELF: [Self; 3] = [Self::Expiry, Self::Tick, Self::Wedge];

    fn of(action: Action) -> Option<Self> {
        match action {
            Action::Step | Action::Interrupt | Action::Nmi | Action::Flush | Action::TimePasses => None,
            Action::Lose(_) => Some(Self::Loss),
            Action::Expire => Some(Self::Expiry),
            Action::Tick => Some(Self::Tick),
            Action::Wedge => Some(Self::Wedge),
        }
    }
}

/// Something happens at the opportunity of this kind with this number, counted from 0.
#[derive(Clone, Copy)]
struct ChangePoint {
    kind: Kind,
    at: u32,
}

/// Actors per CPU.
const ACTORS: usize = 4;

/// Which of its CPU's actors acts; none for rare events, and when time passes.
fn actor(choice: Choice) -> Option<usize> {
    let which = match choice.action {
        Action::Step => 0,
        Action::Interrupt => 1,
        Action::Nmi => 2,
        Action::Flush => 3,
        _ => return None,
    };
    Some(choice.cpu as usize * ACTORS + which)
}

/// The scheduler.
#[derive(Clone)]
struct Pct {
    change_points: u32,
    lengths: [u32; KINDS],
    generator: Generator,
    /// By actor; 0 for those that have not acted yet.
    priorities: Vec<u64>,
    planned: Vec<ChangePoint>,
    /// How many opportunities there were of each kind.
    met: [u32; KINDS],
    candidates: Vec<Choice>,
}

/// Priorities that were drawn are above all those that actors fall to.
const DRAWN: u64 = 1 << 63;

impl Pct {
    fn new(change_points: u32, lengths: [u32; KINDS]) -> Self {
        Self {
            change_points,
            lengths,
            generator: Generator::new(0, 0),
            priorities: Vec::new(),
            planned: Vec::new(),
            met: [0; KINDS],
            candidates: Vec::new(),
        }
    }

    fn priority(&mut self, actor: usize) -> u64 {
        if actor >= self.priorities.len() {
            self.priorities.resize(actor + 1, 0);
        }
        let priority = &mut self.priorities[actor];
        if *priority == 0 {
            *priority = self.generator.next() | DRAWN;
        }
        *priority
    }

    /// The position among those offered of the actor with the highest priority.
    fn highest(&mut self, offered: &[Choice]) -> Option<usize> {
        let mut highest = None;
        for (position, &choice) in offered.iter().enumerate() {
            let Some(actor) = actor(choice) else { continue };
            let priority = self.priority(actor);
            if highest.is_none_or(|(known, _)| priority > known) {
                highest = Some((priority, position));
            }
        }
        highest.map(|(_, position)| position)
    }

    /// There is an opportunity of this kind: the change point that takes it.
    fn meet(&mut self, kind: Kind) -> Option<usize> {
        let at = self.met[kind as usize];
        self.met[kind as usize] += 1;
        self.planned.iter().position(|point| point.kind == kind && point.at == at)
    }

    /// No actor can act: time passes, by itself or by a tick. Otherwise a rare event is all that is left to happen.
    fn without_actors(&mut self, offered: &[Choice]) -> Choice {
        let passes = |choice: Choice| matches!(choice.action, Action::TimePasses | Action::Tick);
        if offered.iter().any(|&choice| passes(choice)) {
            self.draw(offered, passes)
        } else {
            self.generator.pick(offered)
        }
    }

    /// One of those offered that `fits`. There is one.
    fn draw(&mut self, offered: &[Choice], fits: impl Fn(Choice) -> bool) -> Choice {
        self.candidates.clear();
        self.candidates.extend(offered.iter().filter(|&&choice| fits(choice)));
        self.generator.pick(&self.candidates)
    }
}

impl Scheduler for Pct {
    fn begin(&mut self, generator: Generator) {
        self.generator = generator;
        self.priorities.fill(0);
        self.met = [0; KINDS];
        self.planned.clear();
        let mut kinds = Kind::ALL;
        let mut count = 0;
        for kind in Kind::ALL {
            if self.lengths[kind as usize] > 0 {
                kinds[count as usize] = kind;
                count += 1;
            }
        }
        if count > 0 {
            for _ in 0..self.change_points {
                let kind = kinds[self.generator.below(count) as usize];
                let at = self.generator.below(self.lengths[kind as usize]);
                self.planned.push(ChangePoint { kind, at });
            }
        }
    }

    fn choose(&mut self, offered: &[Choice]) -> Choice {
        for kind in Kind::BY_ITSELF {
            let fits = |choice: Choice| Kind::of(choice.action) == Some(kind);
            if offered.iter().any(|&choice| fits(choice)) && self.meet(kind).is_some() {
                return self.draw(offered, fits);
            }
        }
        let Some(mut chosen) = self.highest(offered) else {
            return self.without_actors(offered);
        };
        if let Some(point) = self.meet(Kind::Fall) {
            if let Some(actor) = actor(offered[chosen]) {
                // The original gives the n-th change point the n-th priority from below, and so does this.
                self.priorities[actor] = point as u64 + 1;
            }
            chosen = self.highest(offered).unwrap_or(chosen);
        }
        let chosen = offered[chosen];
        let loses = |choice: Choice| choice.cpu == chosen.cpu && Kind::of(choice.action) == Some(Kind::Loss);
        if chosen.action == Action::Step
            && offered.iter().any(|&choice| loses(choice))
            && self.meet(Kind::Loss).is_some()
        {
            return self.draw(offered, loses);
        }
        chosen
    }
}

#[cfg(test)]
mod tests;
