//! The search: executes, goes back to the deepest node where something is left to be tried, replays, and goes on.

use super::super::system::{BEGIN_AGAIN, System, Violation};
use super::frontier::Unit;
use super::path::{Path, Sleeper};
use super::races::Observed;
use super::watch::Watch;
use super::{Options, Reduction, Tally};
use crate::explorer::choice::Choice;
use crate::explorer::footprint::Footprint;
use crate::explorer::report::Found;

/// The clock is looked at after so many decisions: a few tens of microseconds on a machine, less on a toy.
const DECISIONS_BETWEEN_POLLS: u32 = 1024;

/// An execution with more decisions than this never ends, as far as this engine can tell.
const MAX_DECISIONS: usize = u16::MAX as usize;

/// How an execution ended.
enum Ending {
    Complete(u64),
    Violation(Violation),
    /// All that is left was or will be explored elsewhere.
    Asleep,
    /// Somebody ends the exploration.
    Interrupted,
}

pub(super) struct Search<'a, S> {
    system: S,
    cpus: u16,
    reduction: Reduction,
    keep_going: bool,
    /// Whether the hashes of classes are wanted, and whether they and the violations are to be remembered.
    with_classes: bool,
    collect: bool,
    watch: &'a Watch<'a>,
    job: usize,
    unit: usize,
    /// The depth of the unit's root.
    floor: usize,
    path: Path,
    offers: Vec<Choice>,
    decisions_until_poll: u32,
    /// Saves looking it up again and again.
    last_ending: Option<u64>,
    tally: Tally,
}

impl<'a, S: System> Search<'a, S> {
    pub(super) fn new(system: S, options: &Options, collect: bool, watch: &'a Watch<'a>, job: usize) -> Self {
        let reduction = options.reduction;
        Self {
            cpus: system.cpus(),
            system,
            reduction,
            keep_going: options.keep_going,
            with_classes: collect || reduction == Reduction::Naive,
            collect,
            watch,
            job,
            unit: 0,
            floor: 0,
            path: Path::default(),
            offers: Vec::new(),
            decisions_until_poll: DECISIONS_BETWEEN_POLLS,
            last_ending: None,
            tally: Tally::default(),
        }
    }

    pub(super) fn explore(&mut self, number: usize, unit: &Unit) -> Tally {
        self.unit = number;
        self.floor = unit.prefix.len();
        self.path.clear();
        self.last_ending = None;
        let mut ending = self.begin(unit);
        loop {
            let interrupted = matches!(ending, Ending::Interrupted);
            let stops = match &ending {
                Ending::Violation(violation) => !self.keep_going || violation.law == BEGIN_AGAIN,
                _ => false,
            };
            self.note(ending);
            if interrupted || self.watch.is_over(number) {
                break;
            }
            let next = loop {
                if !self.path.retreat(self.floor) {
                    break None;
                }
                if let Some(choice) = self.path.next_choice() {
                    break Some(choice);
                }
            };
            self.tally.finished = next.is_none() || stops;
            match next {
                Some(choice) if !self.tally.finished => ending = self.replay_and_execute(choice),
                _ => break,
            }
        }
        core::mem::take(&mut self.tally)
    }

    /// Goes to the unit's root, and on from there to an end.
    fn begin(&mut self, unit: &Unit) -> Ending {
        self.system.restart();
        for &choice in &unit.prefix {
            self.path.add_node(&[], false);
            if let Err(violation) = self.perform(choice) {
                self.path.add_node(&[], false);
                return Ending::Violation(violation);
            }
        }
        self.execute(&unit.sleepers)
    }

    fn replay_and_execute(&mut self, choice: Choice) -> Ending {
        self.system.restart();
        if cfg!(debug_assertions) {
            for (position, event) in self.path.events.iter().enumerate() {
                assert_eq!(
                    self.system.perform(event.choice).as_ref(),
                    Ok(&event.touched.footprint),
                    "decision {position}, {}, does something else when it is replayed",
                    event.choice
                );
            }
        } else {
            // It broke no law before.
            let _ = self.system.replay(&mut self.path.events.iter().map(|event| event.choice));
        }
        if self.is_interrupted(self.path.events.len() as u32) {
            return Ending::Interrupted;
        }
        match self.perform(choice) {
            Ok(()) => self.execute(&[]),
            Err(violation) => self.violated(violation),
        }
    }

    /// Makes a choice at the last node.
    fn perform(&mut self, choice: Choice) -> Result<(), Violation> {
        let seen = self.reduction == Reduction::Reduced && self.path.events.len() >= self.floor;
        let observed = seen.then(|| Observed {
            withheld: self.system.withheld(choice.cpu),
            owed_to: self.system.owed_to(choice),
            floor: self.floor,
        });
        let performed = self.system.perform(choice);
        let footprint = *performed.as_ref().unwrap_or(&Footprint::EVERYTHING);
        if self.path.events.len() >= self.floor {
            self.tally.transitions += 1;
        }
        self.path.execute(choice, footprint, observed, self.with_classes);
        performed.map(|_| ())
    }
    /// Goes on after the last event to an end. `sleepers` sleep at the first node, beside what sleeps on.
    fn execute(&mut self, mut sleepers: &[Sleeper]) -> Ending {
        loop {
            let looked = self.system.choices(&mut self.offers);
            if looked.is_err() {
                self.offers.clear();
            }
            self.path.add_node(&self.offers, self.reduction != Reduction::Naive);
            self.path.inherit(core::mem::take(&mut sleepers));
            debug_assert!(
                looked.is_err() || self.path.lost_sleeper().is_none(),
                "after {:?}, {:?} is not offered any more, and their footprints do not conflict",
                self.path.events.last().map(|event| event.choice.to_string()),
                self.path.lost_sleeper().map(|sleeper| sleeper.choice.to_string())
            );
            if self.reduction == Reduction::Reduced {
                self.path.schedule_what_vanished();
            }
            self.path.schedule_first(self.reduction);
            let next = self.path.next_choice();
            let Some(choice) = next.filter(|_| looked.is_ok()) else {
                self.find_races_of_blocked(System::withheld);
                return match looked {
                    Err(violation) => Ending::Violation(violation),
                    Ok(()) if !self.offers.is_empty() => Ending::Asleep,
                    Ok(()) => self.system.end().map_or_else(Ending::Violation, Ending::Complete),
                };
            };
            if self.path.events.len() >= MAX_DECISIONS {
                let what = format!("an execution has not ended after {MAX_DECISIONS} decisions");
                return Ending::Violation(Violation::new("hang", what));
            }
            if self.is_interrupted(1) {
                return Ending::Interrupted;
            }
            if let Err(violation) = self.perform(choice) {
                return self.violated(violation);
            }
        }
    }

    /// The last event has broken a law, and the execution ends with it.
    fn violated(&mut self, violation: Violation) -> Ending {
        self.path.add_node(&[], false);
        // It conflicts with everything that could have happened instead, and nobody knows what that is.
        self.find_races_of_blocked(|_, _| Footprint::EVERYTHING);
        Ending::Violation(violation)
    }

    fn find_races_of_blocked(&mut self, withheld: impl Fn(&mut S, u16) -> Footprint) {
        if self.reduction == Reduction::Reduced {
            for cpu in 0..self.cpus {
                let withheld = withheld(&mut self.system, cpu);
                self.path.find_races_of_blocked(cpu, withheld, self.floor);
            }
        }
    }

    fn note(&mut self, ending: Ending) {
        let violation = match ending {
            Ending::Interrupted => return,
            Ending::Asleep => {
                self.tally.executions += 1;
                return self.watch.count(false);
            }
            Ending::Complete(fingerprint) => {
                if self.last_ending != Some(fingerprint) {
                    self.last_ending = Some(fingerprint);
                    self.tally.endings.insert(fingerprint);
                }
                None
            }
            Ending::Violation(violation) => Some(violation),
        };
        self.tally.executions += 1;
        self.tally.classes += 1;
        let new = !self.with_classes
            || self.tally.hashes.insert(self.path.events.last().map_or(0, |event| event.class));
        self.watch.count(new);
        if let Some(violation) = violation {
            if self.collect {
                self.tally.violations.insert(violation.to_string());
            }
            let path = &self.path;
            self.tally.found.get_or_insert_with(|| Found {
                violation,
                schedule: path.events.iter().map(|event| event.choice).collect(),
            });
        }
    }

    /// Looks at the clock after this many decisions more, if it is time; says whether the search is over.
    fn is_interrupted(&mut self, decisions: u32) -> bool {
        let Some(left) = self.decisions_until_poll.checked_sub(decisions) else {
            self.decisions_until_poll = DECISIONS_BETWEEN_POLLS;
            let hashes = self.tally.hashes.capacity() * (size_of::<u128>() + 1);
            let path = &self.path;
            self.watch.poll(self.job, path.bytes() + hashes, || path.done(self.floor));
            return self.watch.is_over(self.unit);
        };
        self.decisions_until_poll = left;
        false
    }
}
