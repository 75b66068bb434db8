use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::super::choice::Action;
use super::super::footprint::{Place, Use};
use super::super::report::Incomplete;
use super::super::system::Violation;
use super::super::toy::{Machine, Operation, Program, Shape, Toy};
use super::*;

/// All that can be reached, found without any reduction.
#[derive(Default)]
struct Reached {
    states: BTreeSet<u128>,
    endings: BTreeSet<u64>,
    ends: u64,
    transitions: u64,
    /// Where laws break: how far from the start at least.
    violations: BTreeMap<String, usize>,
}

impl Reached {
    /// Breadth first, each state once, reached by one of its shortest paths.
    fn by(toy: &mut impl System) -> Self {
        let mut reached = Self::default();
        let mut level = vec![Vec::new()];
        while !level.is_empty() {
            let mut next = Vec::new();
            for path in level {
                reached.visit(toy, &path, &mut next);
            }
            level = next;
        }
        reached
    }

    fn visit(&mut self, toy: &mut impl System, path: &[Choice], next: &mut Vec<Vec<Choice>>) {
        if let Err(violation) = replay(toy, path) {
            return self.violation(&violation, path);
        }
        let new = self.states.insert(toy.state_hash());
        let mut choices = Vec::new();
        if let Err(violation) = toy.choices(&mut choices) {
            return self.violation(&violation, path);
        }
        if !new {
            return;
        }
        if choices.is_empty() {
            self.ends += 1;
            match toy.end() {
                Ok(ending) => drop(self.endings.insert(ending)),
                Err(violation) => self.violation(&violation, path),
            }
        }
        self.transitions += choices.len() as u64;
        next.extend(choices.into_iter().map(|choice| [path, &[choice]].concat()));
    }

    fn violation(&mut self, violation: &Violation, path: &[Choice]) {
        self.violations.entry(violation.to_string()).or_insert(path.len());
    }
}

/// Follows a path from the start; each choice must be offered. Where it ends a law may be broken, and not before.
fn replay(toy: &mut impl System, path: &[Choice]) -> Result<(), Violation> {
    toy.restart();
    let mut choices = Vec::new();
    for (index, &choice) in path.iter().enumerate() {
        toy.choices(&mut choices).expect("the path goes on");
        assert!(choices.contains(&choice), "{choice} is not offered");
        if let Err(violation) = toy.perform(choice) {
            assert_eq!(index, path.len() - 1, "the path goes on");
            return Err(violation);
        }
    }
    Ok(())
}

fn everything(jobs: usize, sleep_sets: bool) -> Options {
    Options { jobs, sleep_sets, keep_going: true, ..Options::default() }
}

/// In another order than depth first, as it happens with many threads.
fn search_scattered<S: System>(number: u64, factory: impl Fn() -> S + Sync) -> Exploration {
    explore_with(Work::scattered(number), factory, &everything(1, true), &())
}

fn search(machine: &Machine, options: &Options) -> Exploration {
    explore(|| Toy::new(machine.clone()), options, &())
}

/// What does not depend on the order of the search.
fn result(exploration: &Exploration) -> (u64, u64, BTreeSet<u64>, bool) {
    let Exploration { states, classes, endings, found, .. } = exploration;
    assert_eq!(exploration.incomplete, None);
    (*states, *classes, endings.clone(), found.is_some())
}

fn agrees(seed: u64, shape: Shape, options: &Options) -> (Reached, Exploration) {
    let machine = Machine::random(seed, &shape);
    let mut toy = Toy::new(machine.clone());
    let reached = Reached::by(&mut toy);
    let exploration = search(&machine, options);
    let expected =
        (reached.states.len() as u64, reached.ends, reached.endings.clone(), !reached.violations.is_empty());
    assert_eq!(result(&exploration), expected, "seed {seed} {shape:?} {options:?}: {machine:#?}");
    if let Some(found) = &exploration.found {
        let known = reached.violations.get(&found.violation.to_string());
        assert!(known.is_some_and(|&shortest| shortest <= found.schedule.len()), "seed {seed}");
        let again = replay(&mut toy, &found.schedule).and_then(|()| {
            toy.choices(&mut Vec::new())?;
            toy.end().map(drop)
        });
        assert_eq!(again, Err(found.violation.clone()), "seed {seed}");
    }
    (reached, exploration)
}

#[test]
fn all_states_and_endings_of_random_toys_are_found_and_transitions_are_saved() {
    let (mut all, mut tried) = (0, 0);
    let big = Shape { min_cpus: 3, max_cpus: 4, operations: 12 };
    for seed in 0..1_500 {
        let shape = if seed % 20 == 0 { big } else { Shape::default() };
        let (reached, exploration) = agrees(seed, shape, &everything(1, true));
        all += reached.transitions;
        tried += exploration.transitions;
    }
    assert!(tried * 4 < all * 3, "{tried} of {all} transitions");
}

#[test]
fn without_sleep_sets_every_transition_is_tried_once() {
    for seed in 0..300 {
        let (reached, exploration) = agrees(seed, Shape::default(), &everything(1, false));
        assert_eq!(exploration.transitions, reached.transitions, "seed {seed}");
    }
}

#[test]
fn threads_find_the_same_states_and_endings_as_one() {
    let big = Shape { min_cpus: 3, max_cpus: 4, operations: 14 };
    for seed in 0..100 {
        let machine = Machine::random(seed, &big);
        let alone = search(&machine, &everything(1, true));
        for jobs in [2, 5] {
            assert_eq!(result(&search(&machine, &everything(jobs, true))), result(&alone), "seed {seed}");
        }
    }
}

/// CPUs that go round in circles: what one does depends on where it stands and on shared words alone, so that the same
/// states come again. Toys never return to a state: they remember what they have read.
#[derive(Clone)]
struct Circles {
    /// For each CPU and place: the word it touches, what it does with it, and where it goes on.
    programs: Vec<Vec<(u8, Deed, [u8; 2])>>,
    at: Vec<u8>,
    words: [u8; 3],
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Writes this value.
    Store(u8),
    /// Goes on at the second place if the word has this value.
    Branch(u8),
    /// Waits for this value.
    Await(u8),
}

impl Circles {
    fn random(seed: u64) -> Self {
        let mut drawn = 0;
        let mut draw = |bound: u64| {
            drawn += 1;
            (crate::hash::pair(seed, drawn) as u64 % bound) as u8
        };
        let places = 2 + u64::from(draw(3));
        let mut place = || {
            let deed = match draw(3) {
                0 => Deed::Store(draw(2)),
                1 => Deed::Branch(draw(2)),
                _ => Deed::Await(draw(2)),
            };
            (draw(3), deed, [draw(places), draw(places)])
        };
        let programs = (0..4).map(|_| (0..places).map(|_| place()).collect()).collect();
        Self { programs, at: vec![0; 4], words: [0; 3] }
    }
}

impl System for Circles {
    fn restart(&mut self) {
        self.at.fill(0);
        self.words = [0; 3];
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        choices.clear();
        for (cpu, &at) in self.at.iter().enumerate() {
            let (word, deed, _) = self.programs[cpu][at as usize];
            if !matches!(deed, Deed::Await(value) if value != self.words[word as usize]) {
                choices.push(Choice::step(cpu as u16));
            }
        }
        Ok(())
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        assert_eq!(choice.action, Action::Step);
        let cpu = choice.cpu as usize;
        let (word, deed, next) = self.programs[cpu][self.at[cpu] as usize];
        let value = &mut self.words[word as usize];
        let branch = matches!(deed, Deed::Branch(other) if other == *value);
        self.at[cpu] = next[usize::from(branch)];
        let how = if let Deed::Store(new) = deed {
            *value = new;
            Use::Write
        } else {
            Use::Read
        };
        let mut footprint = Footprint::NOTHING;
        footprint.add(Place(word.into()), how);
        Ok(footprint)
    }

    fn cpus(&self) -> u16 {
        4
    }

    fn state_hash(&mut self) -> u128 {
        self.at.iter().chain(&self.words).fold(0, |hash, &byte| hash << 8 | u128::from(byte))
    }

    fn end(&mut self) -> Result<u64, Violation> {
        Ok(self.state_hash() as u64)
    }
}

/// One thread that goes depth first would find all states even if it never awoke a choice on a revisit, as long as no
/// state comes again. Many threads would not.
#[test]
fn the_order_of_the_search_does_not_matter() {
    let big = Shape { min_cpus: 3, max_cpus: 4, operations: 12 };
    for seed in 0..60 {
        let machine = Machine::random(seed, &big);
        let expected = result(&search(&machine, &everything(1, true)));
        for number in 0..4 {
            let scattered = search_scattered(number, || Toy::new(machine.clone()));
            assert_eq!(result(&scattered), expected, "seed {seed}, order {number}");
        }
    }
}

/// Three CPUs that do one thing each. The first one chooses what, and the last one sees whether it has.
#[derive(Clone, Default)]
struct Fan([u16; 3]);

impl Fan {
    const WIDTH: u16 = 35;
}

impl System for Fan {
    fn restart(&mut self) {
        self.0 = [0; 3];
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        choices.clear();
        if self.0[0] == 0 {
            choices.extend((1..=Self::WIDTH).map(|what| Choice::new(0, Action::Lose(what))));
        }
        choices.extend((1..3).filter(|&cpu| self.0[cpu as usize] == 0).map(Choice::step));
        Ok(())
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        self.0[choice.cpu as usize] = match choice {
            Choice { action: Action::Lose(what), .. } => what,
            Choice { cpu: 2, .. } if self.0[0] != 0 => 2,
            _ => 1,
        };
        let mut footprint = Footprint::NOTHING;
        if choice.cpu != 1 {
            footprint.add(Place(0), Use::Write);
        }
        Ok(footprint)
    }

    fn cpus(&self) -> u16 {
        3
    }

    fn state_hash(&mut self) -> u128 {
        self.0.iter().fold(0, |hash, &done| hash << 16 | u128::from(done))
    }

    fn end(&mut self) -> Result<u64, Violation> {
        Ok(self.0[0].into())
    }
}

#[test]
fn choices_that_no_bit_stands_for_are_explored_too() {
    let exploration = explore(Fan::default, &everything(1, true), &());
    let width = u64::from(Fan::WIDTH);
    assert_eq!((exploration.states, exploration.classes), (2 * (2 + 3 * width), 2 * width));
    assert_eq!(exploration.endings, (1..=width).collect());
}

/// Where states come again, an exploration that a sleeping choice relies on may itself have been cut short.
#[test]
fn systems_that_go_round_in_circles_are_searched_completely() {
    let (mut all, mut tried) = (0, 0);
    for seed in 0..1_000 {
        let circles = Circles::random(seed);
        let reached = Reached::by(&mut circles.clone());
        let exploration = explore(|| circles.clone(), &everything(1 + (seed % 2) as usize, true), &());
        let expected = (reached.states.len() as u64, reached.ends, reached.endings, false);
        assert_eq!(result(&exploration), expected, "seed {seed}");
        for number in 0..4 {
            let scattered = search_scattered(number, || circles.clone());
            assert_eq!(result(&scattered), expected, "seed {seed}, order {number}");
        }
        all += reached.transitions;
        tried += exploration.transitions;
    }
    assert!(tried * 4 < all * 3, "{tried} of {all} transitions");
}

/// CPUs that each count in a word of their own, and then in a shared one.
fn counters(cpus: u8, each: usize) -> Machine {
    let program = |cpu: u8| {
        let mut base = vec![Operation::Increment(cpu + 1); each];
        base.push(Operation::Increment(0));
        Program { base, ..Program::default() }
    };
    Machine {
        programs: (0..cpus).map(program).collect(),
        words: cpus + 1,
        drops: 0,
        expiries: 0,
        store_buffers: false,
    }
}

#[test]
fn independent_choices_cost_one_transition_per_state() {
    let exploration = search(&counters(1, 5), &everything(1, true));
    assert_eq!((exploration.states, exploration.transitions, exploration.executions), (7, 6, 1));
    // Two CPUs that have nothing in common: a grid of states, each of which is entered once.
    let mut machine = counters(2, 9);
    for program in &mut machine.programs {
        program.base.pop();
    }
    let exploration = search(&machine, &everything(1, true));
    assert_eq!((exploration.states, exploration.transitions), (100, 99));
}

#[test]
fn a_violation_ends_the_search_and_its_schedule_leads_there() {
    let mut machine = counters(3, 3);
    machine.programs[2].base.push(Operation::Forbid(0, 3));
    let exploration = search(&machine, &Options::default());
    assert_eq!(exploration.incomplete, Some(Incomplete::Violation));
    let found = exploration.found.unwrap();
    assert_eq!(replay(&mut Toy::new(machine), &found.schedule), Err(found.violation));
    assert_eq!(found.schedule.len(), 13);
}

#[test]
fn limits_end_the_search_with_what_was_seen() {
    let machine = counters(4, 20);
    let limited = |limits| search(&machine, &Options { limits, ..Options::default() });
    let by_states = limited(Limits { states: Some(5_000), ..Limits::default() });
    assert_eq!(by_states.incomplete, Some(Incomplete::Limit));
    assert!((5_000..6_200).contains(&by_states.states), "{}", by_states.states);
    let by_executions = limited(Limits { executions: Some(300), ..Limits::default() });
    assert_eq!(by_executions.incomplete, Some(Incomplete::Limit));
    assert!((300..400).contains(&by_executions.executions), "{}", by_executions.executions);
    let by_memory = limited(Limits { memory: Some(1 << 20), ..Limits::default() });
    assert_eq!(by_memory.incomplete, Some(Incomplete::Limit));
    assert!((1 << 20..1_100_000).contains(&by_memory.memory), "{}", by_memory.memory);
    let by_time = limited(Limits { time: Some(Duration::from_millis(20)), ..Limits::default() });
    assert_eq!(by_time.incomplete, Some(Incomplete::Limit));
    assert!(by_time.elapsed < Duration::from_secs(1), "{:?}", by_time.elapsed);
}

/// Stops at the second call, and notes what it was told.
#[derive(Default)]
struct Stopper {
    told: Mutex<Vec<Progress>>,
    stopped: AtomicBool,
}

impl Observer for Stopper {
    fn progress(&self, progress: &Progress) {
        self.told.lock().unwrap().push(*progress);
    }

    fn stop(&self) -> bool {
        let enough = self.told.lock().unwrap().len() >= 2;
        self.stopped.store(enough, Ordering::Relaxed);
        enough
    }
}

#[test]
fn the_observer_is_told_ten_times_a_second_and_can_stop_it() {
    for jobs in [1, 2] {
        let stopper = Stopper::default();
        let begin = Instant::now();
        let machine = counters(5, 30);
        let options = Options { jobs, ..Options::default() };
        let exploration = explore(|| Toy::new(machine.clone()), &options, &stopper);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!(exploration.incomplete, Some(Incomplete::Stopped));
        let told = stopper.told.into_inner().unwrap();
        assert!(told.len() >= 2);
        assert!(told[1].elapsed >= told[0].elapsed + Duration::from_millis(95));
        assert!(told[1].states > told[0].states && told[1].executions <= exploration.executions);
        assert!(told[1].memory > 0 && told[1].done.is_some_and(|done| (0.0..1.0).contains(&done)));
    }
}

#[test]
#[should_panic(expected = "taken away without a conflict")]
fn a_footprint_that_says_too_little_is_noticed() {
    /// A toy that says that nothing touches anything.
    struct Liar(Toy);
    impl System for Liar {
        fn restart(&mut self) {
            self.0.restart();
        }
        fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
            self.0.choices(choices)
        }
        fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
            self.0.perform(choice).map(|_| Footprint::NOTHING)
        }
        fn cpus(&self) -> u16 {
            self.0.cpus()
        }
        fn state_hash(&mut self) -> u128 {
            self.0.state_hash()
        }
        fn end(&mut self) -> Result<u64, Violation> {
            self.0.end()
        }
    }
    let mut machine = counters(2, 1);
    machine.programs[0].base = vec![Operation::Await { any: [Some((1, 0)), None], deadline: false }];
    machine.programs[1].base = vec![Operation::Store(1, 7)];
    explore(|| Liar(Toy::new(machine.clone())), &Options::default(), &());
}
