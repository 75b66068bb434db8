//! `smpcall campaign`: runs campaigns and prints their books.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;
use smpcall_local_apic::Routing;
use smpcall_simulator::campaign::{self, Options, Report};
use smpcall_simulator::faults;

use crate::Finding;
use crate::arguments;
use crate::failure::Failure;
use crate::terminal::{self, Terminal, Tone};

/// The books of one run are in memory: a few bytes for each call.
const MAX_CALLS: u64 = 100_000_000;

/// Runs them and prints the sum. Something is found if a call is not accounted for.
pub(crate) fn run(wanted: &arguments::Campaign, terminal: &Terminal) -> Result<Finding, Failure> {
    let mut options = options(wanted)?;
    let begun = Instant::now();
    let until = wanted.minutes.map(|minutes| begun + Duration::from_secs_f64(minutes * 60.0));
    let mut sum = Report::default();
    let mut runs = 0u64;
    loop {
        sum.add(&campaign::run(&options).map_err(Failure::usage)?);
        runs += 1;
        if until.is_none_or(|until| Instant::now() >= until) {
            break;
        }
        terminal.progress(&format!(
            "{} s, {runs} campaigns, {} calls, {} unreconciled",
            begun.elapsed().as_secs(),
            sum.calls,
            sum.unreconciled
        ));
        options.seed = options.seed.wrapping_add(1);
    }
    terminal.progress("");
    let document = Document::new(&sum, &options, wanted.seed, runs, begun.elapsed());
    let result = if wanted.json { document.json() } else { document.prose(terminal) };
    terminal::print(&result)?;
    Ok(if sum.unreconciled == 0 { Finding::Nothing } else { Finding::Something })
}

fn options(wanted: &arguments::Campaign) -> Result<Options, Failure> {
    let cpus = wanted.cpus;
    if cpus < 2 {
        return Err(Failure::usage(format!(
            "a campaign needs at least 2 CPUs that can call each other, not {cpus}"
        )));
    }
    if wanted.calls == 0 || wanted.calls > MAX_CALLS {
        return Err(Failure::usage(format!(
            "a campaign has 1 to {MAX_CALLS} calls, not {}: for longer ones use --minutes",
            wanted.calls
        )));
    }
    let faults = match wanted.faults.trim() {
        "" => vec![],
        list => faults::parse(list).map_err(Failure::usage)?,
    };
    let routing = wanted.routing.unwrap_or_else(|| campaign::default_routing(cpus));
    Ok(Options { cpus, routing, calls: wanted.calls, drop: wanted.drop, faults, seed: wanted.seed })
}

#[derive(Serialize)]
struct Ipis {
    sent: u64,
    taken: u64,
    lost: u64,
    resent: u64,
}

/// What is printed. The names and their order are what scripts rely on.
#[derive(Serialize)]
struct Document {
    calls: u64,
    completed: u64,
    told: u64,
    unreconciled: u64,
    ipis: Ipis,
    faults: Vec<String>,
    seed: u64,
    seconds: f64,
    cpus: usize,
    routing: &'static str,
    drop: f64,
    runs: u64,
    overdue: u64,
    orphaned: u64,
    posts: u64,
    posts_merged: u64,
    posts_run: u64,
    virtual_seconds: f64,
}

impl Document {
    fn new(sum: &Report, options: &Options, first_seed: u64, runs: u64, elapsed: Duration) -> Self {
        let routing: Routing = options.routing;
        let campaign::Ipis { sent, taken, lost, resent } = sum.ipis;
        Self {
            calls: sum.calls,
            completed: sum.completed,
            told: sum.told,
            unreconciled: sum.unreconciled,
            ipis: Ipis { sent, taken, lost, resent },
            faults: options.faults.iter().map(ToString::to_string).collect(),
            seed: first_seed,
            seconds: elapsed.as_secs_f64(),
            cpus: options.cpus,
            routing: routing.name(),
            drop: options.drop.get(),
            runs,
            overdue: sum.overdue,
            orphaned: sum.orphaned,
            posts: sum.posts,
            posts_merged: sum.posts_merged,
            posts_run: sum.posts_run,
            virtual_seconds: sum.virtual_time.as_secs_f64(),
        }
    }

    fn json(&self) -> String {
        // No map with keys that are not text, no number that JSON has not: it cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    fn prose(&self, terminal: &Terminal) -> String {
        let verdict = if self.unreconciled == 0 {
            format!(
                "{}: every call was completed or its caller told",
                terminal.tinted("RECONCILED", Tone::Good)
            )
        } else {
            format!("{} {}", self.unreconciled, terminal.tinted("UNRECONCILED", Tone::Bad))
        };
        let mut out = format!("campaign: {verdict}\n");
        let faults = if self.faults.is_empty() { "none".into() } else { self.faults.join(",") };
        let seeds = match self.runs {
            1 => format!("seed {}", self.seed),
            runs => format!("seeds {} to {}", self.seed, self.seed.wrapping_add(runs - 1)),
        };
        let mut line = |label: &str, text: &str| {
            // Writing to a `String` cannot fail.
            let _ = writeln!(out, "  {label:<8}  {text}");
        };
        line("machine", &format!("{} CPUs, routing {}, {seeds}", self.cpus, self.routing));
        line("faults", &format!("each IPI lost with probability {}; others: {faults}", self.drop));
        line(
            "calls",
            &format!(
                "{} made: {} completed, {} told, {} unreconciled ({} overdue at a dead CPU, {} callers died)",
                self.calls, self.completed, self.told, self.unreconciled, self.overdue, self.orphaned
            ),
        );
        line(
            "posts",
            &format!("{} queued, {} merged, {} run", self.posts, self.posts_merged, self.posts_run),
        );
        let Ipis { sent, taken, lost, resent } = self.ipis;
        line("IPIs", &format!("{sent} sent, {taken} taken, {lost} lost, {resent} sent again"));
        line("time", &format!("{:.1} s for {:.3} s of virtual time", self.seconds, self.virtual_seconds));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smpcall_simulator::faults::Probability;

    #[test]
    fn what_is_not_accounted_for_is_said_first() {
        let options = Options {
            cpus: 2,
            routing: Routing::Flat,
            calls: 9,
            drop: Probability::ONE,
            faults: vec![],
            seed: 4,
        };
        let report = Report { calls: 9, completed: 6, unreconciled: 3, ..Report::default() };
        let text = Document::new(&report, &options, 3, 2, Duration::from_secs(1)).prose(&Terminal::new(true));
        assert!(text.starts_with("campaign: 3 UNRECONCILED\n"), "{text}");
        assert!(text.contains("seeds 3 to 4"), "{text}");
    }
}
