//! Explores the named protocols (all, if none is named): `explore [PROTOCOL...] [dpor|states|random|pct] [tso] [drops=N]
//! [expiries=N] [executions=N] [seconds=N] [norace] [nohash] [nohints] [noreduce]`. A line each. The command
//! `smpcall explore` does more.

use smpcall_simulator::explorer::{Engine, MemoryModel, Plan, Setup, explore, protocols};

fn main() {
    let mut names = Vec::new();
    let (mut drops, mut expiries) = (None, None);
    let mut plan = Plan::new(Setup::new(smpcall_simulator::explorer::Bounds::default()));
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "dpor" => plan.engine = Engine::Dpor,
            "states" => plan.engine = Engine::States,
            "random" => plan.engine = Engine::Random,
            "pct" => plan.engine = Engine::Pct,
            "tso" => plan.setup.memory = MemoryModel::Tso,
            "norace" => plan.setup.races = false,
            "nohints" => plan.setup.believe_hints = false,
            "noreduce" => plan.setup.reduce = false,
            "nohash" => plan.setup.hashes = false,
            other => match other.split_once('=') {
                Some(("drops", n)) => drops = n.parse().ok(),
                Some(("expiries", n)) => expiries = n.parse().ok(),
                Some(("executions", n)) => plan.limits.executions = n.parse().ok(),
                Some(("seconds", n)) => plan.limits.time = n.parse().ok().map(std::time::Duration::from_secs),
                _ => names.push(other.to_owned()),
            },
        }
    }
    let chosen = if names.is_empty() {
        protocols::all()
    } else {
        names.iter().map(|name| protocols::by_name(name).expect("there is such a protocol")).collect()
    };
    for protocol in chosen {
        plan.setup.bounds = protocol.bounds;
        plan.setup.bounds.drops = drops.unwrap_or(protocol.bounds.drops);
        plan.setup.bounds.expiries = expiries.unwrap_or(protocol.bounds.expiries);
        let report = explore(&protocol, &plan, &()).expect("a machine");
        println!(
            "{:16} {:?} {:?}: {} states, {} classes, {} executions, {} transitions, {} endings, {} KiB, {:.2?}{}",
            protocol.name,
            plan.engine,
            plan.setup.bounds,
            report.states,
            report.classes,
            report.executions,
            report.transitions,
            report.endings.len(),
            report.memory / 1024,
            report.elapsed,
            report.incomplete.map_or(String::new(), |why| format!(", incomplete: {why:?}")),
        );
        if let Some(found) = report.found {
            println!("    {}", found.violation);
            println!("    {}", found.schedule.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        }
    }
}
