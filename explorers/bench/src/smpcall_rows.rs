//! Our own explorer: real code, on its simulated machine.

use std::time::Duration;

use smpcall_simulator::explorer::report::{Incomplete, Limits};
use smpcall_simulator::explorer::{Engine, Plan, Protocol, Setup, explore, protocols};

use crate::case::Case;
use crate::row::{Explored, Outcome, Report};

fn protocol(case: &Case) -> Protocol {
    protocols::by_name(case.name).unwrap_or_else(|| panic!("the simulator has no protocol {}", case.name))
}

fn run(case: &Case, engine: Engine, limit: Duration, change: fn(&mut Setup)) -> Report {
    let protocol = protocol(case);
    let mut setup = Setup::new(protocol.bounds);
    change(&mut setup);
    let mut plan = Plan::new(setup);
    plan.engine = engine;
    plan.limits = Limits { time: Some(limit), ..Limits::default() };
    let exploration = explore(&protocol, &plan, &()).expect("a machine");
    let explored = match engine {
        Engine::States => Explored::States(exploration.states),
        _ => Explored::Executions(exploration.executions),
    };
    let seconds = exploration.elapsed.as_secs_f64();
    let outcome = match (exploration.found, exploration.incomplete) {
        (Some(found), _) => Outcome::Found(found.violation.to_string()),
        (None, None) => Outcome::Ok,
        (None, Some(Incomplete::Limit | Incomplete::Random)) if !engine.is_exhaustive() => {
            Outcome::Sampled(seconds)
        }
        (None, Some(_)) => Outcome::Unfinished(seconds),
    };
    Report::new(explored, outcome)
}

/// Partial-order reduction.
pub(crate) fn dpor(case: Case, limit: Duration) -> Report {
    run(&case, Engine::Dpor, limit, |_| {})
}

/// A table of states.
pub(crate) fn states(case: Case, limit: Duration) -> Report {
    run(&case, Engine::States, limit, |_| {})
}

/// Random schedules, and nothing but the laws looked for.
pub(crate) fn random(case: Case, limit: Duration) -> Report {
    run(&case, Engine::Random, limit, |setup| {
        setup.races = false;
        setup.hashes = false;
    })
}

/// Random schedules, with data races, and with what a replay needs to notice that the code has changed.
pub(crate) fn random_races(case: Case, limit: Duration) -> Report {
    run(&case, Engine::Random, limit, |_| {})
}

/// PCT.
pub(crate) fn pct(case: Case, limit: Duration) -> Report {
    run(&case, Engine::Pct, limit, |setup| {
        setup.races = false;
        setup.hashes = false;
    })
}
