//! What the engine promises beside soundness, for which there is the oracle.

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::explorer::choice::Choice;
use crate::explorer::report::Progress;
use crate::explorer::toy::{Machine, Operation, Program, Toy};

fn machine(programs: &[&[Operation]]) -> Machine {
    let programs = programs.iter().map(|base| Program { base: base.to_vec(), ..Program::default() });
    Machine { programs: programs.collect(), words: 3, drops: 0, expiries: 0, store_buffers: false }
}

/// Far more classes than any test explores.
fn endless() -> Machine {
    machine(&[&[Operation::Increment(0); 12][..]; 4])
}

fn counts(machine: &Machine, reduction: Reduction) -> (u64, u64) {
    let options = Options { reduction, keep_going: true, ..Options::default() };
    let exploration = explore(|| Toy::new(machine.clone()), &options, &());
    assert!(exploration.is_complete());
    (exploration.executions, exploration.classes)
}

#[test]
fn what_does_not_conflict_is_tried_in_one_order() {
    let apart = machine(&[&[Operation::Store(0, 1); 3], &[Operation::Store(1, 1); 3]]);
    assert_eq!(counts(&apart, Reduction::Naive), (20, 1));
    assert_eq!(counts(&apart, Reduction::Reduced), (1, 1));
    let same = machine(&[&[Operation::Store(0, 1); 3], &[Operation::Store(0, 2); 3]]);
    assert_eq!(counts(&same, Reduction::Naive), (20, 20));
    assert_eq!(counts(&same, Reduction::Reduced), (20, 20));
}

#[test]
fn an_interrupt_is_taken_before_and_after_each_operation_and_the_raise_tried_once() {
    let mut interrupted = machine(&[&[Operation::Store(0, 1); 3], &[Operation::Interrupt(0)]]);
    interrupted.programs[0].handler = vec![Operation::Load(0)];
    assert_eq!(counts(&interrupted, Reduction::Naive).1, 4);
    assert_eq!(counts(&interrupted, Reduction::Reduced).1, 4);
}

#[test]
fn a_wait_is_not_tried_before_the_only_write_that_can_end_it() {
    let wait = Operation::Await { any: [Some((0, 1)), None], deadline: false };
    let waiting = machine(&[&[Operation::Store(1, 1), wait], &[Operation::Store(0, 1)]]);
    assert_eq!(counts(&waiting, Reduction::Reduced), (1, 1));
}

#[test]
fn the_first_violation_ends_the_exploration_and_its_schedule_leads_there() {
    let forbidden = machine(&[&[Operation::Store(0, 1)], &[Operation::Load(1), Operation::Forbid(0, 0)]]);
    let exploration = explore(|| Toy::new(forbidden.clone()), &Options::default(), &());
    assert_eq!(exploration.incomplete, Some(Incomplete::Violation));
    let found = exploration.found.expect("it is broken when CPU 1 is first");
    let (&last, above) = found.schedule.split_last().expect("a schedule");
    let mut toy = Toy::new(forbidden);
    for &choice in above {
        toy.perform(choice).expect("nothing is broken yet");
    }
    assert_eq!(toy.perform(last), Err(found.violation));
    assert_eq!(last, Choice::step(1));
}

#[test]
fn limits_are_kept() {
    let explore = |limits| explore(|| Toy::new(endless()), &Options { limits, ..Options::default() }, &());
    let exploration = explore(Limits { executions: Some(100), ..Limits::default() });
    assert_eq!((exploration.executions, exploration.incomplete), (100, Some(Incomplete::Limit)));
    let exploration = explore(Limits { states: Some(100), ..Limits::default() });
    assert_eq!((exploration.classes, exploration.incomplete), (100, Some(Incomplete::Limit)));
    for limits in [
        Limits { time: Some(Duration::from_millis(1)), ..Limits::default() },
        Limits { memory: Some(1), ..Limits::default() },
    ] {
        assert_eq!(explore(limits).incomplete, Some(Incomplete::Limit), "{limits:?}");
    }
}

#[derive(Default)]
struct Stopper(Mutex<Vec<Progress>>);

impl Observer for Stopper {
    fn progress(&self, progress: &Progress) {
        self.0.lock().expect("nobody panics").push(*progress);
    }

    fn stop(&self) -> bool {
        self.0.lock().expect("nobody panics").len() >= 3
    }
}

#[test]
fn an_observer_sees_progress_and_stops_all_threads() {
    for jobs in [1, 2] {
        let stopper = Stopper::default();
        let exploration = explore(|| Toy::new(endless()), &Options { jobs, ..Options::default() }, &stopper);
        assert_eq!(exploration.incomplete, Some(Incomplete::Stopped));
        let seen = stopper.0.into_inner().expect("nobody panics");
        assert!(seen.len() >= 3);
        assert!(seen.is_sorted_by_key(|progress| progress.executions) || jobs > 1);
        let done: Vec<f64> = seen.iter().filter_map(|progress| progress.done).collect();
        assert!(done.iter().all(|done| (0.0..0.5).contains(done)), "{done:?}");
    }
}

#[test]
#[should_panic(expected = "at most 16 CPUs")]
fn more_cpus_than_clocks_have_room_for_are_refused() {
    let many = machine(&[&[][..]; 17]);
    explore(|| Toy::new(many.clone()), &Options::default(), &());
}
