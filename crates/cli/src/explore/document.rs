//! What an exploration has found, for scripts and for people.

use std::fmt::Write;

use serde::Serialize;
use smpcall_simulator::explorer::report::{Exploration, Incomplete};
use smpcall_simulator::explorer::run::Counterexample;
use smpcall_simulator::explorer::{Engine, MemoryModel, Plan, Protocol};

use super::progress::{bytes, short};
use crate::terminal::{Terminal, Tone};

/// The name of a memory model.
pub(super) const fn memory_name(memory: MemoryModel) -> &'static str {
    match memory {
        MemoryModel::Sc => "sc",
        MemoryModel::Tso => "tso",
    }
}

/// A law that is broken. The names and their order are what scripts rely on, here and below.
#[derive(Serialize)]
pub(super) struct Broken {
    law: String,
    schedule: String,
    operations: u32,
    cpus: usize,
    what: String,
    switches: u32,
    faults: u32,
    shortest: bool,
    replay: String,
    account: Vec<String>,
}

/// What is printed.
#[derive(Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub(super) struct Document {
    protocol: String,
    engine: &'static str,
    memory: &'static str,
    complete: bool,
    executions: u64,
    classes: u64,
    states: u64,
    violations: Vec<Broken>,
    seconds: f64,
    cpus: usize,
    incomplete: Option<&'static str>,
    transitions: u64,
    endings: Vec<String>,
    memory_bytes: u64,
    drops: u32,
    expiries: u32,
    ticks: u32,
    wedges: u32,
    hints: bool,
    local: bool,
    jobs: usize,
    shard: Option<String>,
    seed: u64,
    broken_on_purpose: bool,
    #[serde(skip)]
    about: String,
    #[serde(skip)]
    story: Option<String>,
}

impl Document {
    pub(super) fn new(
        protocol: &Protocol,
        plan: &Plan,
        exploration: &Exploration,
        told: Option<&Counterexample>,
    ) -> Self {
        let setup = &plan.setup;
        let story = told.map(|told| told.account.text(&super::LAYOUT));
        let broken = |told: &Counterexample| {
            let Counterexample { violation, schedule, after, shortest, account, .. } = told;
            Broken {
                law: violation.law.clone(),
                schedule: schedule.to_string(),
                operations: after.operations,
                cpus: protocol.cpus,
                what: violation.what.clone(),
                switches: after.switches,
                faults: after.faults,
                shortest: *shortest,
                replay: account.replay_line().trim_start_matches("Replay: ").to_owned(),
                account: account.operations(),
            }
        };
        // What cannot be told is found all the same.
        let untold = exploration.found.as_ref().filter(|_| told.is_none()).map(|found| Broken {
            law: found.violation.law.clone(),
            schedule: String::new(),
            operations: found.schedule.len() as u32,
            cpus: protocol.cpus,
            what: found.violation.what.clone(),
            switches: 0,
            faults: 0,
            shortest: false,
            replay: String::new(),
            account: vec![],
        });
        Self {
            protocol: protocol.name.clone(),
            engine: plan.engine.name(),
            memory: memory_name(setup.memory),
            complete: exploration.is_complete(),
            executions: exploration.executions,
            classes: exploration.classes,
            states: exploration.states,
            violations: told.map(broken).into_iter().chain(untold).collect(),
            seconds: exploration.elapsed.as_secs_f64(),
            cpus: protocol.cpus,
            incomplete: exploration.incomplete.map(reason),
            transitions: exploration.transitions,
            endings: exploration.endings.iter().map(|ending| format!("{ending:016x}")).collect(),
            memory_bytes: exploration.memory,
            drops: setup.bounds.drops,
            expiries: setup.bounds.expiries,
            ticks: setup.bounds.ticks,
            wedges: setup.bounds.wedges,
            hints: setup.believe_hints,
            local: setup.reduce,
            jobs: plan.jobs,
            shard: plan.shard.map(|(shard, of)| format!("{}/{of}", shard + 1)),
            seed: plan.seed,
            broken_on_purpose: protocol.broken,
            about: protocol.about.clone(),
            story,
        }
    }

    /// Whether a law is broken.
    pub(super) fn found(&self) -> bool {
        !self.violations.is_empty()
    }

    /// Whether it came out as the protocol is known to.
    pub(super) fn is_as_expected(&self) -> bool {
        self.found() == self.broken_on_purpose
    }

    pub(super) fn json(&self) -> String {
        json(self)
    }

    /// The verdict: a word, how it is shown, and what it means.
    fn verdict(&self) -> (&'static str, Tone, String) {
        match (self.violations.first(), self.incomplete) {
            (Some(broken), _) => ("BROKEN", Tone::Bad, format!("{}: {}", broken.law, broken.what)),
            (None, None) => ("HELD", Tone::Good, "no law is broken on any schedule".into()),
            (None, Some("shard")) => {
                ("HELD SO FAR", Tone::Good, "no law is broken in this shard; the others have the rest".into())
            }
            (None, Some(why)) => {
                ("INCOMPLETE", Tone::Bad, format!("no law is broken in what was explored ({})", words(why)))
            }
        }
    }

    pub(super) fn prose(&self, terminal: &Terminal) -> String {
        let (word, tone, meaning) = self.verdict();
        let mut out = format!("{}: {}, {meaning}\n", self.protocol, terminal.tinted(word, tone));
        let mut line = |label: &str, text: &str| {
            // Writing to a `String` cannot fail.
            let _ = writeln!(out, "  {label:<8}  {text}");
        };
        line("protocol", &self.about);
        if self.broken_on_purpose {
            line("", "broken on purpose: a violation is what it is known for");
        }
        line("machine", &format!("{} CPUs, memory {}; {}", self.cpus, self.memory, self.bounds()));
        line("explored", &self.explored());
        line("time", &format!("{:.3} s, tables of {}", self.seconds, bytes(self.memory_bytes)));
        match (&self.story, self.violations.first()) {
            (Some(story), Some(broken)) => {
                let shortest = if broken.shortest { ", and none with as few faults is shorter" } else { "" };
                line(
                    "short",
                    &format!(
                        "{} that others can notice, {}, {}{shortest}",
                        many(broken.operations, "operation", "operations"),
                        many(broken.switches, "context switch", "context switches"),
                        many(broken.faults, "fault", "faults"),
                    ),
                );
                let _ = write!(out, "\n{story}");
            }
            (None, Some(_)) => {
                line("schedule", "cannot be told operation by operation: explore again with --no-local");
            }
            _ => {}
        }
        out
    }

    fn bounds(&self) -> String {
        let bounds = [
            many(self.drops, "lost message", "lost messages"),
            many(self.expiries, "early deadline", "early deadlines"),
            many(self.ticks, "tick", "ticks"),
            many(self.wedges, "wedged CPU", "wedged CPUs"),
        ];
        let counts = [self.drops, self.expiries, self.ticks, self.wedges];
        let some: Vec<&str> = bounds
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(words, _)| words.as_str())
            .collect();
        if some.is_empty() { "nothing goes wrong".into() } else { format!("at most {}", some.join(", ")) }
    }

    fn explored(&self) -> String {
        let mut text = format!("by {}", self.engine);
        if let Some(shard) = &self.shard {
            let _ = write!(text, ", shard {shard}");
        }
        text.push_str(": ");
        if self.states > 0 {
            let _ = write!(text, "{}, ", many(self.states, "state", "states"));
        } else if self.engine == Engine::Dpor.name() {
            let _ = write!(text, "{}, ", many(self.classes, "class", "classes"));
        }
        let executions = many(self.executions, "execution", "executions");
        let endings = many(self.endings.len() as u64, "ending", "endings");
        let _ = write!(text, "{executions}, {endings}; ");
        match self.incomplete {
            None => text.push_str("complete"),
            Some(why) => {
                let _ = write!(text, "incomplete: {}", words(why));
            }
        }
        text
    }

    /// One line: for many protocols.
    pub(super) fn line(&self, terminal: &Terminal) -> String {
        let tone = if self.is_as_expected() { Tone::Good } else { Tone::Bad };
        let (word, _, _) = self.verdict();
        let (count, unit) = match self.states {
            0 if self.engine == Engine::Dpor.name() => (self.classes, "classes"),
            0 => (self.executions, "executions"),
            states => (states, "states"),
        };
        let mut line = format!(
            "{:<24}  {}{}  {:>6} {unit:<10}  {:>9.3} s",
            self.protocol,
            terminal.tinted(word, tone),
            " ".repeat(10_usize.saturating_sub(word.len())),
            short(count),
            self.seconds,
        );
        match (self.violations.first(), self.incomplete) {
            (Some(broken), _) => {
                let purpose = if self.broken_on_purpose { ", as it should be" } else { "" };
                let operations = many(broken.operations, "operation", "operations");
                let _ = write!(line, "  {} in {operations}{purpose}", broken.law);
            }
            (None, _) if self.broken_on_purpose => line.push_str("  its bug was not found"),
            (None, Some(why)) => {
                let _ = write!(line, "  {}", words(why));
            }
            (None, None) => {}
        }
        line.push('\n');
        line
    }
}

/// As one JSON document.
pub(super) fn json(document: &impl Serialize) -> String {
    // No map with keys that are not text, no number that JSON has not: it cannot fail.
    serde_json::to_string_pretty(document).unwrap_or_default() + "\n"
}

/// The word for why an exploration did not see everything.
fn reason(incomplete: Incomplete) -> &'static str {
    match incomplete {
        Incomplete::Limit => "limit",
        Incomplete::Stopped => "stopped",
        Incomplete::Violation => "violation",
        Incomplete::Shard => "shard",
        Incomplete::Random => "random",
    }
}

/// The same for people.
fn words(reason: &str) -> &'static str {
    match reason {
        "limit" => "it came to its limit",
        "stopped" => "it was stopped",
        "violation" => "it ended at the first violation",
        "shard" => "the other shards have the rest",
        _ => "schedules are drawn at random",
    }
}

fn many(count: impl Into<u64>, one: &str, several: &str) -> String {
    let count = count.into();
    format!("{count} {}", if count == 1 { one } else { several })
}
