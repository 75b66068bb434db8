//! `smpcall explore --replay`: what happens in one schedule.

use std::fmt::Write;

use serde::Serialize;
use smpcall_simulator::explorer::run::{Retold, retell};
use smpcall_simulator::explorer::schedule::{Outcome, Schedule};
use smpcall_simulator::explorer::{Protocol, Setup};

use super::{LAYOUT, document};
use crate::Finding;
use crate::arguments;
use crate::failure::Failure;
use crate::files;
use crate::terminal::{self, Terminal, Tone};

/// What is printed. The names and their order are what scripts rely on.
#[derive(Serialize)]
struct Document {
    protocol: String,
    memory: &'static str,
    cpus: usize,
    outcome: &'static str,
    law: Option<String>,
    what: Option<String>,
    schedule: String,
    operations: usize,
    account: Vec<String>,
}

/// Replays the schedule and tells what happens. Something is found if a law is broken.
pub(super) fn run(
    wanted: &arguments::Explore,
    protocol: &Protocol,
    setup: &Setup,
    schedule: &Schedule,
    terminal: &Terminal,
) -> Result<Finding, Failure> {
    let retold = retell(protocol, setup, schedule).map_err(Failure::usage)?;
    let retold = retold.map_err(|diverged| {
        Failure::usage(format!("the schedule does not fit {}: {diverged}", protocol.name))
    })?;
    if let Some(path) = &wanted.timeline {
        files::write_all(vec![(path.clone(), retold.account.picture())])?;
        terminal.note(&format!("wrote {}", path.display()));
    }
    terminal::print(&if wanted.json { json(protocol, setup, &retold) } else { prose(&retold, terminal) })?;
    Ok(match retold.outcome {
        Outcome::Violated(_) => Finding::Something,
        Outcome::Ended(_) | Outcome::Open(_) => Finding::Nothing,
    })
}

fn json(protocol: &Protocol, setup: &Setup, retold: &Retold) -> String {
    let (outcome, violation) = match &retold.outcome {
        Outcome::Violated(violation) => ("violated", Some(violation)),
        Outcome::Ended(_) => ("ended", None),
        Outcome::Open(_) => ("open", None),
    };
    document::json(&Document {
        protocol: protocol.name.clone(),
        memory: document::memory_name(setup.memory),
        cpus: protocol.cpus,
        outcome,
        law: violation.map(|violation| violation.law.clone()),
        what: violation.map(|violation| violation.what.clone()),
        schedule: retold.account.schedule.to_string(),
        operations: retold.account.schedule.choices.len(),
        account: retold.account.operations(),
    })
}

fn prose(retold: &Retold, terminal: &Terminal) -> String {
    let account = &retold.account;
    let next = match &retold.outcome {
        Outcome::Violated(_) => return account.text(&LAYOUT),
        Outcome::Ended(_) => None,
        Outcome::Open(next) => Some(next),
    };
    let mut out = format!("{}\n\n{}\n", account.title, account.table(&LAYOUT));
    out += &account.ending_text(LAYOUT.width);
    let verdict = terminal.tinted("NO LAW IS BROKEN", Tone::Good);
    // Writing to a `String` cannot fail, here and below.
    match next {
        None => {
            let _ = writeln!(out, "\n{verdict}: the execution ends well.");
        }
        Some(next) => {
            let next: Vec<String> = next.iter().map(ToString::to_string).collect();
            let _ = writeln!(
                out,
                "\n{verdict} so far: the schedule ends before the execution. What can happen next: {}",
                next.join(" ")
            );
        }
    }
    let _ = writeln!(out, "{}", account.replay_line());
    out
}
