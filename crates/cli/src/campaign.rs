//! `smpcall campaign`: runs campaigns and prints their books.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;
use smpcall_local_apic::Routing;
use smpcall_simulator::campaign::crashes::{self, Crashes};
use smpcall_simulator::campaign::{self, Errands, Options, Report};
use smpcall_simulator::faults;

use crate::Finding;
use crate::arguments;
use crate::failure::Failure;
use crate::terminal::{self, Terminal, Tone};

/// The books of one run are in memory: a few bytes for each call.
const MAX_CALLS: u64 = 100_000_000;

/// What was run.
#[derive(Default)]
struct Sum {
    report: Report,
    runs: u64,
    crashes: Option<Crashes>,
    elapsed: Duration,
}

impl Sum {
    fn is_right(&self) -> bool {
        self.report.unreconciled == 0 && self.crashes.as_ref().is_none_or(|crashes| crashes.broken == 0)
    }
}

/// Runs them and prints the sum. Something is found if a call is not accounted for, or a crash broke its law.
pub(crate) fn run(wanted: &arguments::Campaign, terminal: &Terminal) -> Result<Finding, Failure> {
    let mut options = options(wanted)?;
    let begun = Instant::now();
    let until = wanted.minutes.map(|minutes| begun + Duration::from_secs_f64(minutes * 60.0));
    let mut sum = Sum::default();
    while options.calls > 0 {
        sum.report.add(&campaign::run(&options).map_err(Failure::usage)?);
        sum.runs += 1;
        if until.is_none_or(|until| Instant::now() >= until) {
            break;
        }
        terminal.progress(&format!(
            "{} s, {} campaigns, {} calls, {} unreconciled",
            begun.elapsed().as_secs(),
            sum.runs,
            sum.report.calls,
            sum.report.unreconciled
        ));
        options.seed = options.seed.wrapping_add(1);
    }
    options.seed = wanted.seed;
    if wanted.crashes > 0 {
        let progress = |sum: &Crashes| {
            if sum.runs.is_multiple_of(100) {
                let seconds = begun.elapsed().as_secs();
                terminal.progress(&format!("{seconds} s, {} crashes, {} broken", sum.runs, sum.broken));
            }
        };
        sum.crashes = Some(crashes::run(&options, wanted.crashes, progress).map_err(Failure::usage)?);
    }
    terminal.progress("");
    sum.elapsed = begun.elapsed();
    let document = Document::new(&sum, &options);
    let result = if wanted.json { document.json() } else { document.prose(terminal) };
    terminal::print(&result)?;
    Ok(if sum.is_right() { Finding::Nothing } else { Finding::Something })
}

fn options(wanted: &arguments::Campaign) -> Result<Options, Failure> {
    let cpus = wanted.cpus;
    if cpus < 2 {
        return Err(Failure::usage(format!(
            "a campaign needs at least 2 CPUs that can call each other, not {cpus}"
        )));
    }
    if wanted.calls == 0 && wanted.crashes == 0 || wanted.calls > MAX_CALLS {
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
    Ok(Options {
        cpus,
        routing,
        calls: wanted.calls,
        workload: wanted.workload,
        drop: wanted.drop,
        faults,
        seed: wanted.seed,
    })
}

#[derive(Serialize)]
struct Ipis {
    sent: u64,
    taken: u64,
    lost: u64,
    resent: u64,
}

/// Of deferred work.
#[derive(Clone, Copy, Serialize)]
struct Work {
    queued: u64,
    run: u64,
    abandoned: u64,
    refused: u64,
    lost: u64,
}

impl From<Errands> for Work {
    fn from(errands: Errands) -> Self {
        let Errands { queued, run, abandoned, refused, lost, .. } = errands;
        Self { queued, run, abandoned, refused, lost }
    }
}

#[derive(Clone, Copy, Serialize)]
struct Hotplug {
    ups: u64,
    downs: u64,
    fenced: u64,
    refused: u64,
    unfinished: u64,
}

#[derive(Clone, Copy, Serialize)]
struct Rendezvous {
    run: u64,
    backed_out: u64,
    refused: u64,
}

#[derive(Serialize)]
struct Crashed {
    runs: u64,
    saved: u64,
    missing: u64,
    offline: u64,
    lost: u64,
    again: u64,
    stopped: u64,
    injected: BTreeMap<&'static str, u64>,
    longest: f64,
    broken: u64,
    contexts: BTreeMap<&'static str, u64>,
    first_broken: Option<Broken>,
}

#[derive(Serialize)]
struct Broken {
    seed: u64,
    what: String,
}

impl From<&Crashes> for Crashed {
    fn from(crashes: &Crashes) -> Self {
        let first_broken = crashes.first_broken.clone();
        Self {
            runs: crashes.runs,
            saved: crashes.saved,
            missing: crashes.missing,
            offline: crashes.offline,
            lost: crashes.lost,
            again: crashes.again,
            stopped: crashes.stopped,
            injected: crashes.injected.iter().map(|(kept, runs)| (kept.name(), *runs)).collect(),
            longest: crashes.longest.as_secs_f64(),
            broken: crashes.broken,
            contexts: crashes.contexts.iter().map(|(context, runs)| (context.name(), *runs)).collect(),
            first_broken: first_broken.map(|(seed, what)| Broken { seed, what }),
        }
    }
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
    workload: String,
    operations: u64,
    posts_abandoned: u64,
    posts_refused: u64,
    posts_lost: u64,
    work: Work,
    hotplug: Hotplug,
    rendezvous: Rendezvous,
    crashes: Option<Crashed>,
}

impl Document {
    fn new(all: &Sum, options: &Options) -> Self {
        let sum = &all.report;
        let routing: Routing = options.routing;
        let campaign::Ipis { sent, taken, lost, resent } = sum.ipis;
        let campaign::Hotplug { ups, downs, fenced, refused, unfinished } = sum.hotplug;
        let campaign::Rendezvous { run, backed_out, refused: not_begun } = sum.rendezvous;
        Self {
            calls: sum.calls,
            completed: sum.completed,
            told: sum.told,
            unreconciled: sum.unreconciled,
            ipis: Ipis { sent, taken, lost, resent },
            faults: options.faults.iter().map(ToString::to_string).collect(),
            seed: options.seed,
            seconds: all.elapsed.as_secs_f64(),
            cpus: options.cpus,
            routing: routing.name(),
            drop: options.drop.get(),
            runs: all.runs,
            overdue: sum.overdue,
            orphaned: sum.orphaned,
            posts: sum.posts.queued,
            posts_merged: sum.posts.merged,
            posts_run: sum.posts.run,
            virtual_seconds: sum.virtual_time.as_secs_f64(),
            workload: options.workload.to_string(),
            operations: sum.operations(),
            posts_abandoned: sum.posts.abandoned,
            posts_refused: sum.posts.refused,
            posts_lost: sum.posts.lost,
            work: sum.work.into(),
            hotplug: Hotplug { ups, downs, fenced, refused, unfinished },
            rendezvous: Rendezvous { run, backed_out, refused: not_begun },
            crashes: all.crashes.as_ref().map(Crashed::from),
        }
    }

    fn json(&self) -> String {
        // No map with keys that are not text, no number that JSON has not: it cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    fn prose(&self, terminal: &Terminal) -> String {
        let broken = self.crashes.as_ref().and_then(|crashes| crashes.first_broken.as_ref());
        let verdict = if self.unreconciled > 0 {
            format!("{} {}", self.unreconciled, terminal.tinted("UNRECONCILED", Tone::Bad))
        } else if let Some(Broken { seed, what }) = broken {
            format!(
                "{} a crash: {what} (--calls 0 --crashes 1 --seed {seed})",
                terminal.tinted("BROKEN", Tone::Bad)
            )
        } else {
            format!(
                "{}: every call was completed or its caller told",
                terminal.tinted("RECONCILED", Tone::Good)
            )
        };
        let mut out = format!("campaign: {verdict}\n");
        let faults = if self.faults.is_empty() { "none".into() } else { self.faults.join(",") };
        let seeds = match self.runs {
            0 | 1 => format!("seed {}", self.seed),
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
            &format!(
                "{} queued, {} merged, {} run, {} handed over, {} refused, {} lost with a dead CPU",
                self.posts,
                self.posts_merged,
                self.posts_run,
                self.posts_abandoned,
                self.posts_refused,
                self.posts_lost
            ),
        );
        let Work { queued, run, abandoned, refused, lost } = self.work;
        line(
            "work",
            &format!("{queued} deferred, {run} run, {abandoned} handed over, {refused} refused, {lost} lost"),
        );
        let Hotplug { ups, downs, fenced, refused, unfinished } = self.hotplug;
        line(
            "hotplug",
            &format!(
                "{ups} up, {downs} down, {fenced} fenced, {refused} refused, {unfinished} left unfinished"
            ),
        );
        let Rendezvous { run, backed_out, refused } = self.rendezvous;
        line("meetings", &format!("{run} rendezvous, {backed_out} backed out, {refused} not begun"));
        let Ipis { sent, taken, lost, resent } = self.ipis;
        line("IPIs", &format!("{sent} sent, {taken} taken, {lost} lost, {resent} sent again"));
        if let Some(crashes) = &self.crashes {
            let Crashed { runs, saved, missing, offline, lost, longest, broken, .. } = crashes;
            line(
                "crashes",
                &format!(
                    "{runs} runs, {broken} broken: {saved} CPUs saved ({lost} had crashed too), {missing} named missing, \
                     {offline} offline; the longest took {longest:.3} s"
                ),
            );
        }
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
            workload: campaign::Workload::CALLS,
            drop: Probability::ONE,
            faults: vec![],
            seed: 3,
        };
        let report = Report { calls: 9, completed: 6, unreconciled: 3, ..Report::default() };
        let sum = Sum { report, runs: 2, ..Sum::default() };
        let text = Document::new(&sum, &options).prose(&Terminal::new(true));
        assert!(text.starts_with("campaign: 3 UNRECONCILED\n"), "{text}");
        assert!(text.contains("seeds 3 to 4"), "{text}");
    }
}
