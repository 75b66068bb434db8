//! Explorers side by side on the small protocol (see [`case`]): one command prints the table.
//!
//! A violation reported of a case that has none is printed as a false alarm.
//!
//! `cargo run --release -- [NAME]... [--limit SECONDS] [--json]`, names being cases (`ok3`) and tools (`loom`). Each row is
//! explored in a process of its own, whose wall time and peak memory are the row's; one core each, one row at a time.

mod case;
mod loom_rows;
mod measure;
mod protocol;
mod row;
mod shuttle_rows;
mod smpcall_rows;
mod spin_rows;
mod stateright_rows;

use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::measure::{Cost, run_limited};
use crate::row::{Explored, Outcome, Report, Row};

/// Explorers side by side on one small protocol.
#[derive(Parser)]
struct Arguments {
    /// Cases (ok2, ok3, ok4, irq2, irq3, irq4, bug, fix) and tools (loom, shuttle, stateright, SPIN): all if none is named.
    names: Vec<String>,
    /// Seconds for each row.
    #[arg(long, default_value_t = 10.0)]
    limit: f64,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Explore the row of this number and the case of this name in this process: how the table runs its rows.
    #[arg(long, num_args = 2, value_names = ["ROW", "CASE"], hide = true)]
    explore: Option<Vec<String>>,
}

/// A row of the table, measured.
#[derive(Serialize)]
struct Measured {
    tool: &'static str,
    mode: &'static str,
    case: &'static str,
    explored: Explored,
    /// Per second of processor time; zero if that was too short to tell.
    per_second: f64,
    #[serde(flatten)]
    cost: Cost,
    outcome: Outcome,
    /// Whether a violation was reported of a case that has none.
    false_alarm: bool,
}

/// What a row's process prints.
#[derive(Serialize, Deserialize)]
struct Explorer {
    report: Report,
    /// Seconds in the explorer itself, without starting the process.
    seconds: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.explore.as_deref() {
        Some([row, case]) => explore(row, case, arguments.limit),
        _ => print_table(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Explores one row in this process and prints what came of it.
fn explore(row: &str, case: &str, limit: f64) -> io::Result<()> {
    let row = row.parse().ok().and_then(|number: usize| row::ALL.get(number));
    let (Some(row), Some(case)) = (row, case::named(case)) else {
        return Err(io::Error::other("no such row or case"));
    };
    let start = std::time::Instant::now();
    let report = (row.explore)(case, Duration::from_secs_f64(limit));
    let explorer = Explorer { report, seconds: start.elapsed().as_secs_f64() };
    println!("{}", serde_json::to_string(&explorer)?);
    Ok(())
}

/// Measures and prints all rows that are asked for.
fn print_table(arguments: &Arguments) -> io::Result<()> {
    let is_named = |row: &Row, case: &Case| {
        let (tools, cases): (Vec<&String>, Vec<&String>) =
            arguments.names.iter().partition(|name| row::ALL.iter().any(|row| row.tool == *name));
        (tools.is_empty() || tools.iter().any(|tool| *tool == row.tool))
            && (cases.is_empty() || cases.iter().any(|name| *name == case.name))
    };
    if let Some(unknown) = arguments
        .names
        .iter()
        .find(|name| case::named(name).is_none() && row::ALL.iter().all(|row| row.tool != **name))
    {
        return Err(io::Error::other(format!("{unknown} is no case and no tool")));
    }
    let mut out = io::stdout().lock();
    if !arguments.json {
        writeln!(
            out,
            "| tool | mode | case | explored | per CPU second | time | CPU time | memory | result |"
        )?;
        writeln!(out, "|---|---|---|--:|--:|--:|--:|--:|---|")?;
    }
    for case in case::ALL {
        for (number, row) in row::ALL.iter().enumerate() {
            if !is_named(row, case) || !(row.can_do)(case) {
                continue;
            }
            let measured = measure(number, row, case, arguments.limit)?;
            if arguments.json {
                writeln!(out, "{}", serde_json::to_string(&measured)?)?;
            } else {
                writeln!(out, "{measured}")?;
            }
            out.flush()?;
        }
    }
    Ok(())
}

/// How much longer than its limit a row's process may take before it is ended: tools look at the clock now and then.
const GRACE: f64 = 10.0;

fn measure(number: usize, row: &Row, case: &Case, limit: f64) -> io::Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--explore", &number.to_string(), case.name]).args(["--limit", &limit.to_string()]);
    let limited = run_limited(&mut command, Duration::from_secs_f64(limit + GRACE))?;
    let explorer = limited.output.as_deref().and_then(|output| serde_json::from_str(output).ok());
    let (report, cost) = if let Some(Explorer { report, seconds }) = explorer {
        // Without starting the process: that is the same for all.
        let cost = report.cost.unwrap_or(Cost { seconds, ..limited.cost });
        (report, cost)
    } else {
        let outcome = match limited.output {
            Some(_) => Outcome::Missing("the process ended without a result".to_owned()),
            None => Outcome::Unfinished(limit + GRACE),
        };
        (Report::new(Explored::States(0), outcome), limited.cost)
    };
    let (Explored::Executions(count) | Explored::States(count)) = report.explored;
    // Of so little time, most is the start of the process.
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
    let per_second = if cost.cpu_seconds < 0.02 { 0.0 } else { count as f64 / cost.cpu_seconds };
    let Report { explored, outcome, .. } = report;
    let false_alarm = matches!(outcome, Outcome::Found(_)) && !case.is_faulty();
    Ok(Measured {
        false_alarm,
        tool: row.tool,
        mode: row.mode,
        case: case.name,
        explored,
        per_second,
        cost,
        outcome,
    })
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tool, mode, case, .. } = self;
        let explored = match self.explored {
            Explored::Executions(count) => format!("{count} executions"),
            Explored::States(count) => format!("{count} states"),
        };
        let rate = if self.per_second == 0.0 { "-".to_owned() } else { format!("{:.0}", self.per_second) };
        let shown = |seconds: f64| {
            if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
        };
        let (time, cpu_time) = (shown(self.cost.seconds), shown(self.cost.cpu_seconds));
        let memory = self.cost.peak_kib.div_ceil(1024);
        let outcome = match &self.outcome {
            Outcome::Ok => "ok".to_owned(),
            Outcome::OkWithin(preemptions) => format!("ok within {preemptions} pre-emptions"),
            Outcome::Sampled(seconds) => format!("nothing found in {seconds} s"),
            Outcome::Found(what) if self.false_alarm => format!("false alarm: {}", shortened(what)),
            Outcome::Found(what) => format!("found: {}", shortened(what)),
            Outcome::Unfinished(seconds) => format!("unfinished after {seconds} s"),
            Outcome::Missing(why) => format!("not run: {why}"),
        };
        write!(
            f,
            "| {tool} | {mode} | {case} | {explored} | {rate} | {time} | {cpu_time} | {memory} MiB | {outcome} |"
        )
    }
}

/// The tools' messages are long: up to the first end of a sentence.
fn shortened(message: &str) -> &str {
    let ends = [". ", "; "].iter().filter_map(|end| message.find(end));
    ends.min().map_or(message, |end| &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tools that finish agree on which cases are faulty.
    #[test]
    fn the_small_cases_have_the_result_that_they_are_named_for() {
        for name in ["ok2", "irq2", "bug", "fix"] {
            let case = case::named(name).expect("it is in the list");
            for explore in [stateright_rows::breadth_first, stateright_rows::depth_first] {
                let outcome = explore(case, Duration::from_secs(60)).outcome;
                assert_eq!(matches!(outcome, Outcome::Found(_)), case.is_faulty(), "{name}: {outcome:?}");
                assert!(matches!(outcome, Outcome::Found(_) | Outcome::Ok), "{name}: {outcome:?}");
            }
        }
    }

    #[test]
    fn shuttle_finds_the_lost_call_at_random() {
        let case = case::named("bug").expect("it is in the list");
        let outcome = shuttle_rows::random(case, Duration::from_secs(5)).outcome;
        assert!(matches!(outcome, Outcome::Found(_)), "{outcome:?}");
    }
}
