use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::super::choice::Action;
use super::super::footprint::Footprint;
use super::super::toy::{Machine, Shape, Toy};
use super::super::{pct, random, states};
use super::*;

/// Two CPUs: the first one counts for ever, the second one offers a few things to do once.
#[derive(Clone, Default)]
struct Counter {
    count: u32,
    done: u16,
}

impl System for Counter {
    fn restart(&mut self) {
        *self = Self::default();
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        choices.clear();
        choices.push(Choice::step(0));
        if self.done == 0 {
            choices.extend((1..=4).map(|what| Choice::new(1, Action::Lose(what))));
        }
        Ok(())
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        match choice.action {
            Action::Lose(what) => self.done = what,
            _ => self.count += 1,
        }
        Ok(Footprint::NOTHING)
    }

    fn cpus(&self) -> u16 {
        2
    }

    fn state_hash(&mut self) -> u128 {
        u128::from(self.count) << 16 | u128::from(self.done)
    }

    fn end(&mut self) -> Result<u64, Violation> {
        unreachable!("it counts for ever")
    }
}

fn drawn(seed: u64, executions: u64) -> Options {
    let limits = Limits { executions: Some(executions), ..Limits::default() };
    Options { seed, limits, keep_going: true, ..Options::default() }
}

/// Both engines.
fn explorations(machine: &Machine, options: &Options) -> [Exploration; 2] {
    let factory = || Toy::new(machine.clone());
    let pct = pct::Options { sampling: *options, ..pct::Options::default() };
    [random::explore(factory, options, &()), pct::explore(factory, &pct, &())]
}

/// What shards add up to.
fn sum(shards: &[Exploration]) -> (u64, u64, u64, BTreeSet<u64>) {
    let sum_of = |what: fn(&Exploration) -> u64| shards.iter().map(what).sum();
    let endings = shards.iter().flat_map(|shard| shard.endings.iter().copied()).collect();
    (
        sum_of(|shard| shard.executions),
        sum_of(|shard| shard.classes),
        sum_of(|shard| shard.transitions),
        endings,
    )
}

#[test]
fn what_is_found_is_there_and_small_toys_are_seen_whole() {
    let (mut all, mut seen) = (0, 0);
    for seed in 0..300 {
        let machine = Machine::random(seed, &Shape::default());
        let options = states::Options { keep_going: true, ..states::Options::default() };
        let expected = states::explore(|| Toy::new(machine.clone()), &options, &());
        for exploration in explorations(&machine, &drawn(seed, 1000)) {
            assert_eq!((exploration.executions, exploration.classes), (1000, 1000), "seed {seed}");
            assert_eq!(exploration.incomplete, Some(Incomplete::Random));
            assert!(exploration.endings.is_subset(&expected.endings), "seed {seed}");
            assert!(expected.found.is_some() || exploration.found.is_none(), "seed {seed}");
            all += expected.endings.len();
            seen += exploration.endings.len();
        }
    }
    assert!(seen * 10 > all * 8, "{seen} of {all} endings");
}

#[test]
fn shards_and_threads_draw_the_same_executions_as_one() {
    for seed in 0..30 {
        let machine = Machine::random(seed, &Shape::default());
        let whole = explorations(&machine, &drawn(seed, 500));
        for shards in [1, 2, 7] {
            let parts: Vec<_> = (0..shards)
                .map(|shard| Options {
                    shard: Some((shard, shards)),
                    jobs: 1 + shard % 3,
                    ..drawn(seed, 500)
                })
                .map(|options| explorations(&machine, &options))
                .collect();
            for engine in 0..2 {
                let parts: Vec<_> = parts.iter().map(|part| part[engine].clone()).collect();
                assert_eq!(sum(&parts), sum(&[whole[engine].clone()]), "seed {seed}, {shards} shards");
                let shortest =
                    parts.iter().filter_map(|part| part.found.as_ref()).map(|found| found.schedule.len());
                assert_eq!(shortest.min(), whole[engine].found.as_ref().map(|found| found.schedule.len()));
            }
        }
    }
}

#[test]
fn the_violation_with_the_lowest_number_is_reported_whatever_the_threads_do() {
    let mut found = 0;
    for seed in 0..150 {
        let machine = Machine::random(seed, &Shape { operations: 12, ..Shape::default() });
        let options = Options { keep_going: false, ..drawn(seed, 300) };
        let alone = explorations(&machine, &options);
        let together = explorations(&machine, &Options { jobs: 3, ..options });
        for (alone, together) in alone.iter().zip(&together) {
            assert_eq!(together.found, alone.found, "seed {seed}");
            let expected = if alone.found.is_some() { Incomplete::Violation } else { Incomplete::Random };
            assert_eq!(alone.incomplete, Some(expected));
            found += usize::from(alone.found.is_some() && alone.executions > 1);
        }
    }
    assert!(found > 20, "{found} explorations found something, and not at once");
}

#[test]
fn a_violation_lets_the_executions_before_it_be_drawn_and_those_after_it_not() {
    #[derive(Clone)]
    struct First;
    impl Scheduler for First {
        fn begin(&mut self, _: Generator) {}
        fn choose(&mut self, offered: &[Choice]) -> Choice {
            offered[0]
        }
    }
    let options = Options { keep_going: false, steps: 5, ..drawn(0, 1000) };
    let shared = Shared::new(&options, &());
    for number in [90, 70, 80] {
        shared.found(number, Violation::new("number", number.to_string()), &[]);
    }
    shared.draw(Counter::default(), First);
    assert_eq!(shared.total.into_inner().unwrap().executions, 71);
    let (number, found) = shared.found.into_inner().unwrap().unwrap();
    assert_eq!((number, found.violation.what.as_str()), (70, "70"));
}

#[test]
fn executions_that_do_not_end_are_cut_and_counted() {
    let exploration = random::explore(Counter::default, &Options { steps: 50, ..drawn(1, 200) }, &());
    assert_eq!((exploration.executions, exploration.classes), (200, 0));
    assert_eq!(exploration.transitions, 200 * 50);
}

#[test]
fn every_choice_is_drawn_equally_often() {
    let mut generator = Generator::new(7, 7);
    let offered: Vec<_> = (0..10).map(Choice::step).collect();
    let mut counts = [0_i32; 10];
    for _ in 0..100_000 {
        counts[generator.pick(&offered).cpu as usize] += 1;
    }
    // Ten standard deviations are 950.
    assert!(counts.iter().all(|count| (count - 10_000).abs() < 950), "{counts:?}");
    let firsts: BTreeSet<_> =
        (0..100).flat_map(|seed| (0..100).map(move |number| Generator::new(seed, number).next())).collect();
    assert_eq!(firsts.len(), 10_000);
}

#[test]
fn limits_and_the_observer_end_it() {
    struct Stopper(AtomicUsize);
    impl Observer for Stopper {
        fn progress(&self, progress: &Progress) {
            assert!(progress.done.is_none(), "nobody knows");
        }
        fn stop(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed) >= 1
        }
    }
    let limited = |limits| random::explore(Counter::default, &Options { limits, ..Options::default() }, &());
    let by_time = limited(Limits { time: Some(Duration::from_millis(20)), ..Limits::default() });
    assert_eq!(by_time.incomplete, Some(Incomplete::Limit));
    assert!(by_time.elapsed < Duration::from_secs(1), "{:?}", by_time.elapsed);
    let stopper = Stopper(AtomicUsize::new(0));
    let end = random::explore(Counter::default, &Options { jobs: 2, ..Options::default() }, &stopper);
    assert_eq!(end.incomplete, Some(Incomplete::Stopped));
    assert!(end.elapsed < Duration::from_secs(2), "{:?}", end.elapsed);
    assert!(stopper.0.into_inner() >= 2);
    let none = limited(Limits { executions: Some(0), ..Limits::default() });
    assert_eq!((none.executions, none.incomplete), (0, Some(Incomplete::Random)));
}
