//! Executions drawn at random: numbered, reproducible one by one, shared out to shards and threads.
//!
//! What the random engines have in common. An engine says how choices are drawn ([`Scheduler`]); the numbers that it
//! draws with depend on the seed and on the number of the execution, and on nothing else.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::choice::Choice;
use super::report::{Exploration, Found, Incomplete, Limits, Observer, Progress};
use super::system::{Bits, System, Violation};
use super::watch::{StopOnPanic, Watch};

/// Which executions are drawn, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Chooses the executions. The same seed draws the same ones.
    pub seed: u64,
    /// Where it gives up. The limit of executions counts those of all shards: executions 0 to n - 1 are drawn. The
    /// limit of states counts executions that were not cut.
    pub limits: Limits,
    /// Only one part of so many, counted from 0: execution k belongs to part k modulo their number. Executions,
    /// transitions and classes of all parts add up to those of the whole, and their endings are those of the whole.
    pub shard: Option<(usize, usize)>,
    /// How many threads draw, each on a system of its own. At least one.
    pub jobs: usize,
    /// A violation does not end the exploration. Without it the one of the execution with the lowest number is
    /// reported; with it, the one with the shortest schedule.
    pub keep_going: bool,
    /// An execution is cut when it has made so many decisions and could go on. Such executions count as executions,
    /// and not as classes: the difference is their number.
    pub steps: u32,
}

impl Default for Options {
    /// One thread, no limit but 10,000 decisions per execution.
    fn default() -> Self {
        Self { seed: 0, limits: Limits::default(), shard: None, jobs: 1, keep_going: false, steps: 10_000 }
    }
}

/// Draws the choices of an execution.
pub(super) trait Scheduler: Clone + Send + Sync {
    /// An execution begins, with a generator of its own.
    fn begin(&mut self, generator: Generator);

    /// One of the choices offered; there is at least one.
    fn choose(&mut self, offered: &[Choice]) -> Choice;

    /// The same where a step of each of these CPUs is offered, and nothing else; `offered` is room to work in.
    #[inline]
    fn choose_step(&mut self, cpus: Bits, offered: &mut Vec<Choice>) -> Choice {
        offered.clear();
        offered.extend(cpus.map(Choice::step));
        self.choose(offered)
    }
}

/// Pseudo-random numbers: `SplitMix64` (G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators,
/// 2014).
#[derive(Clone, Copy, Debug)]
pub(super) struct Generator(u64);

impl Generator {
    /// The generator of an execution.
    pub(super) fn new(seed: u64, execution: u64) -> Self {
        // Mixed twice, so that neither neighbouring seeds nor neighbouring executions walk through the same numbers.
        let mut seeds = Self(seed);
        let mut executions = Self(seeds.next() ^ execution);
        Self(executions.next())
    }

    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, each with the same probability but for a part of 2 to the power of -32.
    #[inline]
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    /// One of these; there is at least one.
    #[inline]
    pub(super) fn pick(&mut self, from: &[Choice]) -> Choice {
        from[self.below(from.len() as u32) as usize]
    }
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing was left to happen: the fingerprint.
    Ended(u64),
    /// It had made as many decisions as it may.
    Cut,
    /// A law was broken.
    Broken(Violation),
}

/// One execution from start to end. `schedule` is cleared, and then tells its decisions; `offered` is room to work in.
pub(super) fn execute(
    system: &mut impl System,
    scheduler: &mut impl Scheduler,
    steps: u32,
    schedule: &mut Vec<Choice>,
    offered: &mut Vec<Choice>,
) -> End {
    schedule.clear();
    system.restart();
    loop {
        let walked = system.walk(&mut |cpus| {
            if schedule.len() >= steps as usize {
                return None;
            }
            let choice = scheduler.choose_step(cpus, offered);
            schedule.push(choice);
            Some(choice.cpu)
        });
        if let Err(violation) = walked.and_then(|()| system.choices(offered)) {
            return End::Broken(violation);
        }
        if offered.is_empty() {
            return system.end().map_or_else(End::Broken, End::Ended);
        }
        if schedule.len() >= steps as usize {
            return End::Cut;
        }
        let choice = scheduler.choose(offered);
        schedule.push(choice);
        if let Err(violation) = system.perform_only(choice) {
            return End::Broken(violation);
        }
    }
}

/// Draws executions until a limit, a stop, or a violation.
pub(super) fn explore<S: System>(
    factory: impl Fn() -> S + Sync,
    scheduler: &impl Scheduler,
    options: &Options,
    observer: &dyn Observer,
) -> Exploration {
    let shared = Shared::new(options, observer);
    std::thread::scope(|scope| {
        for _ in 1..options.jobs {
            let (shared, factory) = (&shared, &factory);
            scope.spawn(move || shared.draw(factory(), scheduler.clone()));
        }
        shared.draw(factory(), scheduler.clone());
    });
    let found = shared.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let total = shared.total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (reason, shortest, elapsed) = shared.watch.into_outcome();
    let ended_by_violation = found.is_some().then_some(Incomplete::Violation);
    Exploration {
        executions: total.executions,
        classes: total.ends,
        states: 0,
        transitions: total.transitions,
        endings: total.endings,
        incomplete: reason.or(ended_by_violation).or(Some(Incomplete::Random)),
        found: found.map(|(_, found)| found).or(shortest),
        memory: 0,
        elapsed,
    }
}

/// The numbers of the executions of a shard.
#[derive(Clone, Copy)]
struct Numbers {
    first: u64,
    step: u64,
    end: Option<u64>,
}

impl Numbers {
    /// The number of the shard's execution with this index.
    fn at(self, index: u64) -> Option<u64> {
        let number = index.checked_mul(self.step)?.checked_add(self.first)?;
        self.end.is_none_or(|end| number < end).then_some(number)
    }

    /// How many there are.
    fn count(self) -> Option<u64> {
        Some(self.end?.saturating_sub(self.first).div_ceil(self.step))
    }
}

/// A thread takes so many executions at once.
const BLOCK: u64 = 32;

/// After so many decisions the clock is looked at.
const DECISIONS_PER_LOOK: u64 = 5000;

struct Shared<'a> {
    options: Options,
    numbers: Numbers,
    /// The index of the next execution that nobody has taken.
    next: AtomicU64,
    /// The lowest number of an execution that ended the exploration by a violation.
    found_in: AtomicU64,
    found: Mutex<Option<(u64, Found)>>,
    watch: Watch<'a>,
    total: Mutex<Counts>,
    /// For the observer only, and for the limits.
    executions: AtomicU64,
    ends: AtomicU64,
}

#[derive(Default)]
struct Counts {
    executions: u64,
    ends: u64,
    transitions: u64,
    endings: BTreeSet<u64>,
    /// Saves looking it up again and again.
    last_ending: Option<u64>,
}

impl<'a> Shared<'a> {
    fn new(options: &Options, observer: &'a dyn Observer) -> Self {
        let (part, parts) = options.shard.unwrap_or((0, 1));
        assert!(part < parts, "there is no shard {part} of {parts}");
        // Executions are numbered over all shards: not for the watch to count.
        let limits = Limits { executions: None, ..options.limits };
        Self {
            options: *options,
            numbers: Numbers { first: part as u64, step: parts as u64, end: options.limits.executions },
            next: AtomicU64::new(0),
            found_in: AtomicU64::new(u64::MAX),
            found: Mutex::default(),
            watch: Watch::new(limits, options.keep_going, observer),
            total: Mutex::default(),
            executions: AtomicU64::new(0),
            ends: AtomicU64::new(0),
        }
    }

    /// What each thread does.
    fn draw<S: System>(&self, mut system: S, mut scheduler: impl Scheduler) {
        let _guard = StopOnPanic(&self.watch);
        let mut counts = Counts::default();
        let (mut schedule, mut offered) = (Vec::new(), Vec::new());
        let mut seen = (0, 0, 0);
        'blocks: while !self.watch.is_stopped() {
            // Relaxed: the numbers are all that it gives out.
            let block = self.next.fetch_add(BLOCK, Ordering::Relaxed);
            for index in block..block + BLOCK {
                let Some(number) = self.numbers.at(index) else { break 'blocks };
                // Relaxed: whoever sees it late draws executions in vain. What comes before is drawn in any case,
                // so that which violation is reported does not depend on timing.
                if number > self.found_in.load(Ordering::Relaxed) || self.watch.is_stopped() {
                    break 'blocks;
                }
                scheduler.begin(Generator::new(self.options.seed, number));
                let end =
                    execute(&mut system, &mut scheduler, self.options.steps, &mut schedule, &mut offered);
                counts.executions += 1;
                counts.transitions += schedule.len() as u64;
                counts.ends += u64::from(end != End::Cut);
                match end {
                    End::Ended(ending) => {
                        if counts.last_ending != Some(ending) {
                            counts.last_ending = Some(ending);
                            counts.endings.insert(ending);
                        }
                    }
                    End::Cut => {}
                    End::Broken(violation) => self.found(number, violation, &schedule),
                }
                // An execution of no decision takes time as well.
                if counts.transitions + counts.executions >= seen.2 + DECISIONS_PER_LOOK {
                    self.look(&counts, &mut seen);
                }
            }
        }
        self.look(&counts, &mut seen);
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        total.executions += counts.executions;
        total.ends += counts.ends;
        total.transitions += counts.transitions;
        total.endings.append(&mut counts.endings);
    }

    fn found(&self, number: u64, violation: Violation, schedule: &[Choice]) {
        if self.options.keep_going {
            return self.watch.found(violation, schedule.to_vec());
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.as_ref().is_none_or(|&(known, _)| number < known) {
            *found = Some((number, Found { violation, schedule: schedule.to_vec() }));
            // Relaxed: as where it is read.
            self.found_in.fetch_min(number, Ordering::Relaxed);
        }
    }

    /// Looks at the clock and at the limits. `seen`: the executions, ends and decisions at the last look.
    fn look(&self, counts: &Counts, seen: &mut (u64, u64, u64)) {
        let new = (counts.executions, counts.ends, counts.transitions + counts.executions);
        // Relaxed: statistics.
        let executions = self.executions.fetch_add(new.0 - seen.0, Ordering::Relaxed) + new.0 - seen.0;
        let ends = self.ends.fetch_add(new.1 - seen.1, Ordering::Relaxed) + new.1 - seen.1;
        *seen = new;
        self.watch.limit(executions, ends, 0);
        self.watch.look(|| Progress {
            executions,
            classes: ends,
            done: self.numbers.count().map(|count| ratio(executions, count)),
            ..Progress::default()
        });
    }
}

#[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
fn ratio(done: u64, all: u64) -> f64 {
    if all == 0 { 1.0 } else { done as f64 / all as f64 }
}

#[cfg(test)]
mod tests;
