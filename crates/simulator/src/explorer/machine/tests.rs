use std::time::Duration;

use super::*;
use crate::explorer::report::{Exploration, Limits};
use crate::explorer::{dpor, pct, protocols, random};

/// A machine that is asked for neither walks nor replays: every decision is chosen from a list, and made by itself.
struct ByLists(ExploredMachine);

impl System for ByLists {
    fn restart(&mut self) {
        self.0.restart();
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        self.0.choices(choices)
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        self.0.perform(choice)
    }

    fn perform_only(&mut self, choice: Choice) -> Result<(), Violation> {
        self.0.perform_only(choice)
    }

    fn cpus(&self) -> u16 {
        self.0.cpus()
    }

    fn withheld(&mut self, cpu: u16) -> Footprint {
        self.0.withheld(cpu)
    }

    fn owed_to(&mut self, choice: Choice) -> Option<Place> {
        self.0.owed_to(choice)
    }

    fn state_hash(&mut self) -> u128 {
        self.0.state_hash()
    }

    fn end(&mut self) -> Result<u64, Violation> {
        self.0.end()
    }
}

/// Waits, interrupts, NMIs, lost messages, early deadlines; what hangs, and what breaks a law.
const NAMES: [&str; 7] = ["ok3", "irq2", "bug", "reuse", "close-stale", "deadline-static", "crash-election"];

/// How an exploration is made of machines that `factory` makes.
trait Explore {
    fn explore<S: System>(&self, factory: impl Fn() -> S + Sync) -> Exploration;
}

impl Explore for random::Options {
    fn explore<S: System>(&self, factory: impl Fn() -> S + Sync) -> Exploration {
        random::explore(factory, self, &())
    }
}

impl Explore for pct::Options {
    fn explore<S: System>(&self, factory: impl Fn() -> S + Sync) -> Exploration {
        pct::explore(factory, self, &())
    }
}

impl Explore for dpor::Options {
    fn explore<S: System>(&self, factory: impl Fn() -> S + Sync) -> Exploration {
        dpor::explore(factory, self, &())
    }
}

/// Makes the same exploration by walks and replays, and by lists: the same is found.
fn by_walks_and_by_lists(how: &impl Explore) {
    for name in NAMES {
        let protocol = protocols::by_name(name).expect("there is such a protocol");
        for (memory, reduce, hashes) in [
            (MemoryModel::Sc, true, false),
            (MemoryModel::Sc, false, true),
            (MemoryModel::Tso, true, true),
            (MemoryModel::Tso, false, false),
        ] {
            let setup = Setup { memory, hashes, reduce, ..Setup::new(protocol.bounds) };
            let machine = || {
                let learned = lessons(&protocol, &setup);
                ExploredMachine::with_learned(&protocol, &setup, learned).expect("a machine")
            };
            let walked = facts(how.explore(machine));
            assert!(walked.transitions > 0, "{name}, {setup:?}");
            assert_eq!(walked, facts(how.explore(|| ByLists(machine()))), "{name}, {setup:?}");
        }
    }
}

/// Who touches which word, as far as a few executions show: always the same. (Who knows nothing takes all words for private,
/// and has to begin again at once.)
fn lessons(protocol: &Protocol, setup: &Setup) -> Learned {
    let learned = Learned::default();
    let setup = Setup { reduce: false, ..setup.clone() };
    let machine = || ExploredMachine::with_learned(protocol, &setup, learned.clone()).expect("a machine");
    random::explore(
        machine,
        &random::Options { limits: LIMITS, keep_going: true, ..Default::default() },
        &(),
    );
    learned.freeze()
}

/// All but how long it took.
fn facts(exploration: Exploration) -> Exploration {
    Exploration { elapsed: Duration::ZERO, memory: 0, ..exploration }
}

const LIMITS: Limits = Limits { executions: Some(200), states: None, time: None, memory: None };

#[test]
fn a_walk_draws_what_lists_would_have_drawn() {
    let options = random::Options { limits: LIMITS, keep_going: true, ..random::Options::default() };
    // Also where executions are cut in the middle of a walk.
    for options in [options, random::Options { steps: 25, ..options }] {
        by_walks_and_by_lists(&options);
        by_walks_and_by_lists(&pct::Options { sampling: options, ..pct::Options::default() });
    }
}

/// Builds with debug assertions replay decision by decision, to see that they have the same effect again.
#[test]
fn a_replay_does_what_its_decisions_do_one_by_one() {
    by_walks_and_by_lists(&dpor::Options { limits: LIMITS, keep_going: true, ..dpor::Options::default() });
}

#[test]
fn the_cpus_of_a_set_have_a_number_and_come_in_ascending_order() {
    let cpus = [0, 3, 62, 63];
    let set = Bits(cpus.iter().fold(0, |set, cpu| set | 1 << cpu));
    assert_eq!(set.size(), 4);
    assert!(set.eq(cpus));
    assert_eq!(Bits(0).next(), None);
}
