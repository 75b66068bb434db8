use super::*;
use crate::explorer::choice::Action;
use crate::explorer::scenario::MemoryModel;
use crate::explorer::schedule::{Outcome, Schedule};
use crate::explorer::story::{Deed, Line, Status};
use crate::explorer::{Bounds, protocols, small};

fn plan(engine: Engine, setup: Setup) -> Plan {
    Plan { engine, ..Plan::new(setup) }
}

/// Goes on from a schedule to the end of the execution: the first choice of this kind that is offered, or else the first
/// one.
fn to_the_end(protocol: &Protocol, setup: &Setup, rather: Action) -> Retold {
    let mut schedule = Schedule::default();
    loop {
        let retold = retell(protocol, setup, &schedule).expect("a machine").expect("it is offered");
        let Outcome::Open(offered) = &retold.outcome else { return retold };
        let preferred = offered.iter().find(|choice| choice.action == rather).or(offered.first());
        schedule.choices.extend(preferred);
    }
}

#[test]
fn what_an_engine_finds_is_made_short_and_breaks_the_same_law_on_a_machine_that_knows_nothing() {
    let mut found = 0;
    for memory in [MemoryModel::Sc, MemoryModel::Tso] {
        for engine in Engine::ALL {
            for protocol in protocols::all().into_iter().filter(|protocol| protocol.broken) {
                let setup = Setup { memory, ..Setup::new(protocol.bounds) };
                let most = if engine.is_exhaustive() { 3_000 } else { 300 };
                let limits = Limits { executions: Some(most), ..Limits::default() };
                let plan = Plan { limits, ..plan(engine, setup.clone()) };
                let (exploration, counterexample) =
                    explore_and_explain(&protocol, &plan, &()).expect("a machine");
                let Some(violation) = exploration.found else { continue };
                let case = format!("{protocol:?} {memory:?} {engine}");
                let counterexample = counterexample.unwrap_or_else(|| panic!("it comes again: {case}"));
                assert_eq!(counterexample.violation.law, violation.violation.law, "{case}");
                let schedule = counterexample.schedule.to_string().parse().expect("a schedule");
                let retold = retell(&protocol, &setup, &schedule).expect("a machine");
                let retold = retold.unwrap_or_else(|diverged| panic!("{case}: {diverged}"));
                assert_eq!(retold.outcome, Outcome::Violated(counterexample.violation), "{case}");
                // Not `assert_eq`: nobody reads two whole accounts.
                assert!(retold.account == counterexample.account, "another story: {case}");
                found += 1;
            }
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn the_account_has_a_line_for_every_decision_and_shows_what_interrupts_what() {
    let protocol = small::irq(1);
    let retold = to_the_end(&protocol, &Setup::new(protocol.bounds), Action::Interrupt);
    assert!(matches!(retold.outcome, Outcome::Ended(_)));
    let lines = &retold.account.lines;
    let returns = lines.iter().filter(|line| line.deed == Deed::Return).count();
    let entered: Vec<&Line> = lines.iter().filter(|line| matches!(line.deed, Deed::Enter { .. })).collect();
    assert_eq!(lines.len(), retold.account.schedule.choices.len() + returns);
    assert!(!entered.is_empty() && entered.len() == returns, "{entered:?}");
    for line in entered {
        let state = &line.after[usize::from(line.cpu)];
        assert_eq!((state.enabled, &state.in_service[..]), (false, &[0x40][..]));
    }
    let depth = |line: &Line| matches!(line.deed, Deed::EndOfInterrupt).then_some(line.depth);
    assert!(lines.iter().filter_map(depth).all(|depth| depth == 1));
    let end = lines.last().expect("a line");
    assert!(end.after.iter().all(|cpu| cpu.enabled && cpu.requested.is_empty()), "{end:?}");
    assert!(retold.account.ending.cpus.iter().all(|cpu| cpu.status == Status::Ended));
}

#[test]
fn stores_that_wait_in_a_buffer_reach_memory_in_a_line_of_their_own() {
    let protocol = small::ok(1);
    let setup = Setup { memory: MemoryModel::Tso, ..Setup::new(protocol.bounds) };
    let account = to_the_end(&protocol, &setup, Action::Step).account;
    let waiting = account.lines.iter().filter_map(|line| match &line.deed {
        Deed::Access { buffered: true, variable, new, .. } => Some((line.cpu, variable.clone(), *new)),
        _ => None,
    });
    let flushed = account.lines.iter().filter_map(|line| match &line.deed {
        Deed::Flush { variable, new, .. } => Some((line.cpu, variable.clone(), Some(*new))),
        _ => None,
    });
    let (mut waiting, mut flushed) = (waiting.collect::<Vec<_>>(), flushed.collect::<Vec<_>>());
    waiting.sort();
    flushed.sort();
    assert!(!waiting.is_empty());
    assert_eq!(waiting, flushed);
}

#[test]
fn who_hangs_is_said_with_what_it_waits_for() {
    let protocol = small::bug();
    let plan = plan(Engine::States, Setup::new(protocol.bounds));
    let (_, counterexample) = explore_and_explain(&protocol, &plan, &()).expect("a machine");
    let account = counterexample.expect("it is found").account;
    let waits: Vec<(&str, u64)> = account
        .ending
        .cpus
        .iter()
        .flat_map(|cpu| &cpu.waits_for)
        .map(|awaited| (awaited.variable.as_str(), awaited.value))
        .collect();
    assert_eq!(waits, [("locked[1]", 1), ("irr", 0)]);
    assert!(account.ending.evidence.is_empty());
    assert!(account.replay_line().starts_with("Replay: smpcall explore bug --replay '"));
}

#[test]
fn an_observer_ends_an_exploration_and_time_is_counted_over_all_rounds() {
    struct Impatient(std::sync::Mutex<Duration>);
    impl Observer for Impatient {
        fn progress(&self, progress: &Progress) {
            let mut last = self.0.lock().expect("not poisoned");
            assert!(progress.elapsed >= *last, "time goes on");
            *last = progress.elapsed;
        }

        fn stop(&self) -> bool {
            *self.0.lock().expect("not poisoned") > Duration::from_millis(50)
        }
    }
    let protocol = small::irq(4);
    let observer = Impatient(std::sync::Mutex::default());
    let exploration =
        explore(&protocol, &plan(Engine::Dpor, Setup::new(protocol.bounds)), &observer).expect("a machine");
    assert_eq!((exploration.incomplete, exploration.found), (Some(Incomplete::Stopped), None));
    assert!(exploration.classes > 0 && exploration.elapsed > Duration::from_millis(50));
}

#[test]
fn the_shards_of_an_exploration_add_up() {
    for (protocol, parts) in [(small::ok(3), 8), (small::irq(1), 3)] {
        let whole =
            explore(&protocol, &plan(Engine::Dpor, Setup::new(protocol.bounds)), &()).expect("a machine");
        assert!(whole.is_complete());
        let (mut classes, mut endings) = (0, std::collections::BTreeSet::new());
        for part in 0..parts {
            let plan = Plan { shard: Some((part, parts)), ..plan(Engine::Dpor, Setup::new(protocol.bounds)) };
            let shard = explore(&protocol, &plan, &()).expect("a machine");
            assert_eq!(shard.incomplete, Some(Incomplete::Shard));
            classes += shard.classes;
            endings.extend(shard.endings);
        }
        assert_eq!((classes, endings), (whole.classes, whole.endings), "{protocol:?}");
    }
}

#[test]
fn parts_that_there_are_not_are_refused() {
    let refused = |engine, shard| {
        let plan = Plan { shard: Some(shard), ..plan(engine, Setup::new(Bounds::default())) };
        explore(&small::ok(1), &plan, &()).expect_err("it is refused")
    };
    assert_eq!(refused(Engine::States, (0, 2)), ExploreError::ShardOfStates);
    assert_eq!(refused(Engine::Dpor, (2, 2)), ExploreError::NoSuchShard { shard: 2, of: 2 });
}

#[test]
fn names_of_engines_are_read_as_they_are_written() {
    for engine in Engine::ALL {
        assert_eq!(engine.name().parse(), Ok(engine));
    }
    assert_eq!("loom".parse::<Engine>(), Err(UnknownEngine));
}
