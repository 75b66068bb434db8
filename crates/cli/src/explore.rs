//! `smpcall explore`: explores protocols and prints what was found.

use std::time::{Duration, Instant};

use smpcall_simulator::explorer::report::Limits;
use smpcall_simulator::explorer::run::{self, explore_and_explain};
use smpcall_simulator::explorer::story::Layout;
use smpcall_simulator::explorer::{Bounds, Engine, Plan, Protocol, Setup};

use crate::Finding;
use crate::arguments;
use crate::failure::Failure;
use crate::files;
use crate::interrupt::Interrupt;
use crate::terminal::{self, Terminal};

mod catalogue;
mod document;
mod progress;
mod replay;
mod silence;

use document::Document;
use progress::Watch;

/// How stories are laid out.
const LAYOUT: Layout = Layout { width: 110, fold: true };

/// So many executions are drawn at random if nobody says otherwise.
const EXECUTIONS: u64 = 100_000;

/// Lists, explores or replays. Something is found if a law is broken; for `--all`, if a protocol did not come out as it is
/// known to.
pub(crate) fn run(wanted: &arguments::Explore, terminal: &Terminal) -> Result<Finding, Failure> {
    if let Some(path) = &wanted.timeline {
        files::check_name(path)?;
    }
    let Some(name) = &wanted.protocol else {
        if wanted.all {
            return all(wanted, terminal);
        }
        terminal::print(&if wanted.json { catalogue::json() } else { catalogue::prose() })?;
        return Ok(Finding::Nothing);
    };
    let protocol = catalogue::find(name, wanted.cpus)?;
    let plan = plan(wanted, &protocol);
    if let Some(schedule) = &wanted.replay {
        return silence::without_messages(|| replay::run(wanted, &protocol, &plan.setup, schedule, terminal));
    }
    one(wanted, &protocol, &plan, terminal)
}

/// What was asked for, and the protocol's own bounds for the rest.
fn plan(wanted: &arguments::Explore, protocol: &Protocol) -> Plan {
    let own = protocol.bounds;
    let mut setup = Setup::new(Bounds {
        drops: wanted.drops.unwrap_or(own.drops),
        expiries: wanted.expiries.unwrap_or(own.expiries),
        ticks: wanted.ticks.unwrap_or(own.ticks),
        wedges: wanted.wedges.unwrap_or(own.wedges),
    });
    setup.memory = wanted.memory;
    setup.believe_hints = !wanted.no_hints;
    setup.reduce = !wanted.no_local;
    let engine = wanted.engine.unwrap_or(if wanted.shard.is_some() { Engine::Dpor } else { Engine::States });
    // Drawing at random has no end of its own.
    let enough = (!engine.is_exhaustive() && wanted.minutes.is_none()).then_some(EXECUTIONS);
    Plan {
        engine,
        limits: Limits {
            executions: wanted.executions.or(enough),
            states: wanted.states,
            time: wanted.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
            memory: wanted.memory_limit,
        },
        jobs: wanted.jobs,
        shard: wanted.shard.map(|shard| (shard.number - 1, shard.of)),
        keep_going: wanted.keep_going,
        seed: wanted.seed,
        ..Plan::new(setup)
    }
}

fn explore(
    protocol: &Protocol,
    plan: &Plan,
    watch: &Watch<'_>,
) -> Result<(Document, Option<String>), Failure> {
    let explored = silence::without_messages(|| explore_and_explain(protocol, plan, watch));
    watch.terminal.progress("");
    let (exploration, counterexample) = explored.map_err(|error| failure(&error))?;
    let picture = counterexample.as_ref().map(|counterexample| counterexample.account.picture());
    Ok((Document::new(protocol, plan, &exploration, counterexample.as_ref()), picture))
}

fn failure(error: &run::ExploreError) -> Failure {
    use run::ExploreError::{NoSuchShard, ShardOfStates, ShardsDisagree};
    let hint = match error {
        ShardOfStates => ": use --engine dpor, random or pct with --shard",
        ShardsDisagree => ": use --no-local with each --shard",
        NoSuchShard { .. } => ": a shard is I/N, with I from 1 to N",
        _ => "",
    };
    Failure::usage(format!("{error}{hint}"))
}

fn one(
    wanted: &arguments::Explore,
    protocol: &Protocol,
    plan: &Plan,
    terminal: &Terminal,
) -> Result<Finding, Failure> {
    let interrupt = Interrupt::watch().map_err(|error| Failure::signals(&error))?;
    let watch = Watch { name: &protocol.name, terminal, interrupt: &interrupt };
    let (document, picture) = explore(protocol, plan, &watch)?;
    if let Some(path) = &wanted.timeline {
        match picture {
            Some(picture) => {
                files::write_all(vec![(path.clone(), picture)])?;
                terminal.note(&format!("wrote {}", path.display()));
            }
            None => terminal.note(&format!("nothing was found: {} is not written", path.display())),
        }
    }
    terminal::print(&if wanted.json { document.json() } else { document.prose(terminal) })?;
    Ok(if document.found() { Finding::Something } else { Finding::Nothing })
}

/// Explores every protocol, one after the other, each within its limits.
fn all(wanted: &arguments::Explore, terminal: &Terminal) -> Result<Finding, Failure> {
    let interrupt = Interrupt::watch().map_err(|error| Failure::signals(&error))?;
    let begun = Instant::now();
    let mut documents = Vec::new();
    for protocol in smpcall_simulator::explorer::protocols::all() {
        if interrupt.came() {
            break;
        }
        let watch = Watch { name: &protocol.name, terminal, interrupt: &interrupt };
        let (document, _) = explore(&protocol, &plan(wanted, &protocol), &watch)?;
        if !wanted.json {
            terminal::print(&document.line(terminal))?;
        }
        documents.push(document);
    }
    let unexpected = documents.iter().filter(|document| !document.is_as_expected()).count();
    let stopped = interrupt.came();
    if wanted.json {
        terminal::print(&document::json(&documents))?;
    } else {
        let stopped = if stopped { "; it was stopped, and the others were not explored" } else { "" };
        terminal::print(&format!(
            "{} protocols in {:.1} s, {unexpected} not as they should be{stopped}\n",
            documents.len(),
            begun.elapsed().as_secs_f64()
        ))?;
    }
    // A bug that was not found because somebody had no patience is no finding.
    let missed =
        documents.iter().any(|document| !document.is_as_expected() && (document.found() || !stopped));
    Ok(if missed { Finding::Something } else { Finding::Nothing })
}
