//! What a row of the table is, and the list of all rows. To add a tool: a function, and a line in [`ALL`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::case::{Case, Target};
use crate::measure::Cost;
use crate::{loom_rows, shuttle_rows, smpcall_rows, spin_rows, stateright_rows};

/// How much was explored.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Explored {
    Executions(u64),
    States(u64),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Everything was explored and nothing found.
    Ok,
    /// Nothing was found with this many pre-emptions; more were not tried.
    OkWithin(usize),
    /// A sample of so many seconds found nothing.
    Sampled(f64),
    /// A violation, in the tool's own words.
    Found(String),
    /// The limit, in seconds, came first.
    Unfinished(f64),
    /// The tool is not installed, or failed.
    Missing(String),
}

/// What a row's function returns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) explored: Explored,
    pub(crate) outcome: Outcome,
    /// What it cost, where that is not what the exploring process cost.
    pub(crate) cost: Option<Cost>,
}

impl Report {
    /// Of a tool that explores in its own process.
    pub(crate) fn new(explored: Explored, outcome: Outcome) -> Self {
        Self { explored, outcome, cost: None }
    }
}

/// A tool in one of its modes.
pub(crate) struct Row {
    pub(crate) tool: &'static str,
    pub(crate) mode: &'static str,
    /// Which cases it can do at all.
    pub(crate) can_do: fn(&Case) -> bool,
    /// Explores a case within a time limit. Runs in a process of its own, on which time and memory are measured.
    pub(crate) explore: fn(Case, Duration) -> Report,
}

/// All rows, in the order of the table.
pub(crate) const ALL: &[Row] = &[
    row("smpcall", "dpor", any, smpcall_rows::dpor),
    row("smpcall", "states", any, smpcall_rows::states),
    row("smpcall", "random", any, smpcall_rows::random),
    row("smpcall", "random, races", any, smpcall_rows::random_races),
    row("smpcall", "PCT", any, smpcall_rows::pct),
    row("loom", "spin", of_threads, loom_rows::spin),
    row("loom", "spin, 2 pre-emptions", of_threads, loom_rows::spin_bounded),
    row("loom", "spin, pruned", of_threads, loom_rows::pruned),
    row("loom", "park", of_threads, loom_rows::park),
    row("loom", "park, 2 pre-emptions", of_threads, loom_rows::park_bounded),
    row("shuttle", "depth first", of_threads, shuttle_rows::depth_first),
    row("shuttle", "random", of_threads, shuttle_rows::random),
    row("shuttle", "PCT", of_threads, shuttle_rows::pct),
    row("stateright", "breadth first", any, stateright_rows::breadth_first),
    row("stateright", "depth first", any, stateright_rows::depth_first),
    row("SPIN", "full", any, spin_rows::full),
    row("SPIN", "reduced", of_threads, spin_rows::reduced),
];

const fn row(
    tool: &'static str,
    mode: &'static str,
    can_do: fn(&Case) -> bool,
    explore: fn(Case, Duration) -> Report,
) -> Row {
    Row { tool, mode, can_do, explore }
}

fn any(_: &Case) -> bool {
    true
}

/// Without interrupts that pre-empt their own CPU, and within loom's five threads.
fn of_threads(case: &Case) -> bool {
    case.target != Target::IsInterrupted
}

/// Runs something that panics when it finds a violation; returns the first line of the message.
pub(crate) fn caught(explore: impl FnOnce()) -> Result<(), String> {
    std::panic::set_hook(Box::new(|_| ()));
    let result = catch_unwind(AssertUnwindSafe(explore));
    let _ = std::panic::take_hook();
    result.map_err(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        message.lines().next().unwrap_or_default().to_owned()
    })
}
