//! A case: one CPU that others wait for, with what is known about it and about the calls that lie with it.

use crate::evidence::{CallEvidence, CallState, CpuEvidence, MachineEvidence};
use crate::graph::WaitGraph;
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

/// What the rules look at.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// The whole machine.
    pub evidence: &'a MachineEvidence,
    /// The CPU that is waited for.
    pub target: CpuEvidence,
    /// The unfinished calls and posts to it.
    pub calls: Vec<&'a CallEvidence>,
    /// Who waits for whom.
    pub graph: &'a WaitGraph,
}

impl<'a> Case<'a> {
    /// The case of one CPU with its unfinished calls. If the evidence does not contain the CPU, everything about it
    /// is unknown.
    pub fn new(
        evidence: &'a MachineEvidence,
        calls: Vec<&'a CallEvidence>,
        graph: &'a WaitGraph,
        target: u32,
    ) -> Self {
        let target = evidence.cpu(target).cloned().unwrap_or_else(|| CpuEvidence::unknown(target));
        Self { evidence, target, calls, graph }
    }

    /// The calls that it has not taken.
    pub fn unclaimed(&self) -> impl Iterator<Item = &'a CallEvidence> + '_ {
        self.calls.iter().copied().filter(|call| call.state == CallState::Queued)
    }

    /// The calls that it has taken and not finished.
    pub fn claimed(&self) -> impl Iterator<Item = &'a CallEvidence> + '_ {
        self.calls.iter().copied().filter(|call| call.state == CallState::Claimed)
    }

    /// Whether it waits for another CPU in a way that keeps it from serving: inside a call, or with interrupts
    /// disabled and without looking at its mailbox.
    pub fn waits_itself(&self) -> bool {
        self.graph.waits(self.target.cpu) && self.cannot_serve() == Some(true)
    }

    /// Whether what it does now keeps it from taking a new call.
    pub fn cannot_serve(&self) -> Option<bool> {
        if self.target.polls == Some(true) {
            return Some(false);
        }
        if self.claimed().next().is_some() {
            return Some(true);
        }
        self.target.interrupts_enabled.map(|enabled| !enabled)
    }

    /// The vector of rings, written for people.
    pub fn vector(&self) -> String {
        self.evidence
            .ring_vector
            .map_or_else(|| "the ring vector".into(), |vector| format!("vector {vector:#04x}"))
    }

    /// A verdict about this CPU: with its waiters and the function of its first call, without facts.
    pub fn verdict(&self, kind: VerdictKind, confidence: Confidence) -> Verdict {
        Verdict {
            kind,
            cpu: Some(self.target.cpu),
            culprit: None,
            waiters: self.graph.waiters_of(self.target.cpu),
            function: self.calls.iter().find_map(|call| call.function.clone()),
            confidence,
            evidence: self.call_facts(),
            missing: Vec::new(),
        }
    }

    /// A fact from one part of the machine.
    pub fn fact(&self, what: impl Into<String>, value: impl Into<String>, part: &str) -> Fact {
        Fact::new(what, value, format!("{}: {part}", self.evidence.origin))
    }

    /// What the local APIC says about the ring vector; unknown registers say nothing.
    pub fn apic_facts(&self) -> Vec<Fact> {
        let cpu = self.target.cpu;
        let state = |name: &str, vectors: &Option<Vec<u8>>| {
            vectors.as_ref().map(|found| self.fact(format!("{name} of CPU {cpu}"), list(found), "local APIC"))
        };
        [state("IRR", &self.target.pending), state("ISR", &self.target.in_service)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Whether interrupts are enabled, and where it is, as far as known.
    pub fn cpu_facts(&self) -> Vec<Fact> {
        let cpu = self.target.cpu;
        let mut facts = Vec::new();
        if let Some(enabled) = self.target.interrupts_enabled {
            let value = if enabled { "enabled" } else { "disabled" };
            facts.push(self.fact(format!("interrupts of CPU {cpu}"), value, "registers"));
        }
        if let Some(function) = &self.target.function {
            facts.push(self.fact(format!("CPU {cpu} is in"), function.clone(), "stack"));
        }
        if let Some(nanos) = self.target.since_progress_nanos {
            facts.push(self.fact(format!("CPU {cpu} last made progress"), ago(nanos), "trace"));
        }
        facts
    }

    /// The counts of rings, as far as known.
    pub fn count_facts(&self) -> Vec<Fact> {
        let cpu = self.target.cpu;
        let counts = [
            ("sent to", self.target.rings_sent_to),
            ("merged at", self.target.rings_merged),
            ("taken by", self.target.rings_taken),
        ];
        let known = counts.into_iter().filter_map(|(what, count)| Some((what, count?)));
        known
            .map(|(what, count)| self.fact(format!("rings {what} CPU {cpu}"), count.to_string(), "counters"))
            .collect()
    }

    /// The calls that lie with this CPU: the first few one by one, the others as a number.
    fn call_facts(&self) -> Vec<Fact> {
        const MOST: usize = 3;
        let mut facts = Vec::new();
        for call in self.calls.iter().take(MOST) {
            let kind = if call.waited { "call" } else { "post" };
            let whose = call.caller.map_or_else(String::new, |caller| format!(" of CPU {caller}"));
            let state = if call.state == CallState::Claimed { "taken, not finished" } else { "not taken" };
            let age = call.nanos.map_or_else(String::new, |nanos| format!(", made {}", ago(nanos)));
            let inferred = call.inferred.as_ref().map_or_else(String::new, |how| format!(" ({how})"));
            let what = format!("{kind}{whose} to CPU {}", call.target);
            facts.push(self.fact(what, format!("{state}{age}{inferred}"), "mailbox"));
        }
        if let Some(more @ 1..) = self.calls.len().checked_sub(MOST) {
            let what = format!("further unfinished calls and posts to CPU {}", self.target.cpu);
            facts.push(self.fact(what, more.to_string(), "mailbox"));
        }
        facts
    }
}

/// Vectors, for people.
fn list(vectors: &[u8]) -> String {
    if vectors.is_empty() {
        return "empty".into();
    }
    let vectors: Vec<String> = vectors.iter().map(|vector| format!("{vector:#04x}")).collect();
    vectors.join(", ")
}

/// A duration up to now, for people.
pub(crate) fn ago(nanos: u64) -> String {
    format!("{} ago", duration(nanos))
}

/// A duration, for people: its two leading units' worth of digits.
pub(crate) fn duration(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{}.{:02} \u{b5}s", nanos / 1_000, nanos % 1_000 / 10),
        1_000_000..1_000_000_000 => format!("{}.{:02} ms", nanos / 1_000_000, nanos % 1_000_000 / 10_000),
        _ => format!("{}.{:02} s", nanos / 1_000_000_000, nanos % 1_000_000_000 / 10_000_000),
    }
}
