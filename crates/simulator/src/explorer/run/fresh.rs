//! What is learned about private words: on the way, and before.

use std::sync::atomic::{AtomicBool, Ordering};

use rand_core::Rng;
use rand_pcg::Pcg32;

use crate::explorer::choice::Choice;
use crate::explorer::footprint::{Footprint, Place};
use crate::explorer::machine::{BEGIN_AGAIN, ExploredMachine};
use crate::explorer::report::Found;
use crate::explorer::system::{Draw, System, Violation};

/// A machine that says aloud when its exploration has to begin again, whatever else the engine finds and keeps.
pub(super) struct Fresh<'a> {
    pub(super) machine: ExploredMachine,
    pub(super) again: &'a AtomicBool,
}

impl Fresh<'_> {
    #[cold]
    fn see(&self, violation: &Violation) {
        if violation.law == BEGIN_AGAIN {
            // Relaxed: only a wish to end the round.
            self.again.store(true, Ordering::Relaxed);
        }
    }
}

impl System for Fresh<'_> {
    fn restart(&mut self) {
        self.machine.restart();
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        self.machine.choices(choices)
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        self.machine.perform(choice).inspect_err(|violation| self.see(violation))
    }

    fn walk(&mut self, draw: &mut Draw<'_>) -> Result<(), Violation> {
        self.machine.walk(draw).inspect_err(|violation| self.see(violation))
    }

    #[inline(always)]
    fn perform_only(&mut self, choice: Choice) -> Result<(), Violation> {
        self.machine.perform_only(choice).inspect_err(|violation| self.see(violation))
    }

    fn replay(&mut self, choices: &mut dyn Iterator<Item = Choice>) -> Result<(), Violation> {
        self.machine.replay(choices).inspect_err(|violation| self.see(violation))
    }

    fn cpus(&self) -> u16 {
        self.machine.cpus()
    }

    fn withheld(&mut self, cpu: u16) -> Footprint {
        self.machine.withheld(cpu)
    }

    fn owed_to(&mut self, choice: Choice) -> Option<Place> {
        self.machine.owed_to(choice)
    }

    fn state_hash(&mut self) -> u128 {
        self.machine.state_hash()
    }

    fn end(&mut self) -> Result<u64, Violation> {
        self.machine.end()
    }

    fn digest(&mut self) -> u64 {
        self.machine.digest()
    }
}

/// The longest execution at random, in decisions: chance ends those that can end long before.
const LONGEST: u32 = 20_000;

/// Runs executions at random, always the same ones, on a machine that learns who touches which word and takes none for
/// private.
pub(super) fn learn(machine: &mut ExploredMachine, executions: u32) {
    let mut random = Pcg32::new(0, 0);
    let mut choices = Vec::new();
    for _ in 0..executions {
        machine.restart();
        for _ in 0..LONGEST {
            if machine.choices(&mut choices).is_err() || choices.is_empty() {
                break;
            }
            let choice = choices[random.next_u32() as usize % choices.len()];
            if machine.perform_only(choice).is_err() {
                break;
            }
        }
    }
}

/// Whether the same decisions lead to the same end when they are made again, after others: what outlives an execution
/// and was not shared with the scenario shows in that.
pub(super) fn check_repeats(machine: &mut ExploredMachine) -> Result<(), Found> {
    let first: Vec<_> = (0..REPEATED).map(|number| digests(machine, number)).collect();
    for (number, (schedule, before)) in (0..).zip(first) {
        let (_, after) = digests(machine, number);
        if before != after {
            let what = "the same decisions had another effect when they were made again: something that outlives an \
                        execution was not shared with the scenario (`Scenario::share`), or decides at random";
            return Err(Found { violation: Violation::new("scenario", what), schedule });
        }
    }
    Ok(())
}

/// So many executions are made twice, of at most so many decisions.
const REPEATED: u64 = 8;
const SHORT: usize = 500;

/// An execution at random: its decisions, and what happened in each.
fn digests(machine: &mut ExploredMachine, number: u64) -> (Vec<Choice>, Vec<u64>) {
    let mut random = Pcg32::new(number, 0);
    let (mut choices, mut schedule, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    machine.restart();
    while schedule.len() < SHORT && machine.choices(&mut choices).is_ok() && !choices.is_empty() {
        let choice = choices[random.next_u32() as usize % choices.len()];
        schedule.push(choice);
        if machine.perform_only(choice).is_err() {
            break;
        }
        digests.push(machine.digest());
    }
    (schedule, digests)
}
