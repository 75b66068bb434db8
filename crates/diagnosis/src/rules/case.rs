//! A case: one CPU that others wait for, with what is known about it and about the calls that lie with it.

use crate::errata::{Circumstance, Erratum};
use crate::evidence::{CallEvidence, CallState, CpuEvidence, LockEvidence, MachineEvidence};
use crate::frames::{self, Reason};
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
        self.graph.waits_for_a_call(self.target.cpu) && self.cannot_serve() == Some(true)
    }

    /// Whether what it does now keeps it from taking a new call.
    pub fn cannot_serve(&self) -> Option<bool> {
        if self.target.polls == Some(true) {
            return Some(false);
        }
        if self.claimed().next().is_some() {
            return Some(true);
        }
        // An idle CPU is woken by an interrupt even if it sleeps with interrupts disabled.
        self.target.interrupts_enabled.map(|enabled| !enabled && self.target.idle != Some(true))
    }

    /// Whether the target is known to have answered, or not to have answered, when it was asked to: by an NMI, for instance
    /// the one by which a crash saves registers.
    pub fn answered(&self) -> Option<bool> {
        let crashed = self.evidence.panic.is_some();
        let missing = self.target.registers_saved == Some(false) && crashed;
        self.target.answered_probe.or(missing.then_some(false))
    }

    /// Whether the target has taken a timer interrupt since the first call that lies with it was made. It has then also
    /// taken whatever of higher priority was pending, and rings are of the highest class on Linux.
    pub fn took_a_tick_since(&self) -> Option<bool> {
        const HIGHEST_CLASS: u8 = 0xf0;
        let call = self.unclaimed().filter_map(|call| call.nanos).max()?;
        let tick = self.target.since_tick_nanos?;
        self.evidence.ring_vector.filter(|&vector| vector >= HIGHEST_CLASS).map(|_| tick < call)
    }

    /// Whether its interrupts are disabled for this moment only: it took a tick after the call was made, and not long ago.
    pub fn is_deaf_for_a_moment(&self) -> bool {
        let recent = self.target.since_tick_nanos.is_some_and(|nanos| nanos < self.evidence.patience_nanos);
        recent && self.took_a_tick_since() == Some(true)
    }

    /// The back trace says what keeps it where it is.
    pub fn reason(&self) -> Option<Reason<'_>> {
        frames::reason(&self.target.stack)
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
            confidence: confidence.min(self.surest()),
            evidence: self.call_facts(),
            missing: Vec::new(),
        }
    }

    /// How sure a verdict can be at most: calls whose target is inferred allow no more.
    pub fn surest(&self) -> Confidence {
        if self.holder_is_inferred() {
            return Confidence::Likely.min(self.surest_of_calls());
        }
        self.surest_of_calls()
    }

    /// Whether it waits for a lock whose holder is inferred.
    fn holder_is_inferred(&self) -> bool {
        let mine = |lock: &&LockEvidence| lock.waiters.contains(&self.target.cpu);
        self.evidence.locks.iter().filter(mine).any(|lock| lock.inferred.is_some())
    }

    fn surest_of_calls(&self) -> Confidence {
        match self.calls.iter().map(|call| call.candidates).min().unwrap_or(0) {
            0 => Confidence::Certain,
            1 => Confidence::Likely,
            _ => Confidence::Possible,
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
        if let Some(reason) = self.reason().filter(|reason| reason.role.is_some()) {
            facts.push(self.fact(format!("CPU {cpu}"), reason.sentence(), "stack"));
        }
        if let Some(task) = &self.target.task {
            let pid = task.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
            facts.push(self.fact(format!("task of CPU {cpu}"), format!("{}{pid}", task.name), "scheduler"));
        }
        if self.target.user_mode == Some(true) {
            facts.push(self.fact(format!("mode of CPU {cpu}"), "user", "registers"));
        }
        if self.target.idle == Some(true) {
            facts.push(self.fact(format!("CPU {cpu} is"), "idle", "stack"));
        }
        if let Some(nanos) = self.target.since_tick_nanos {
            facts.push(self.fact(format!("last timer interrupt of CPU {cpu}"), ago(nanos), "clock"));
        }
        for lock in self.evidence.locks.iter().filter(|lock| lock.waiters.contains(&cpu)) {
            let holder =
                lock.holder.map_or_else(|| "an unknown CPU".into(), |holder| format!("CPU {holder}"));
            let how = lock.inferred.as_ref().map_or_else(String::new, |how| format!(" ({how})"));
            let fact = self.fact(
                format!("lock {} that CPU {cpu} waits for", lock.name),
                format!("held by {holder}{how}"),
                "locks",
            );
            facts.push(Fact { address: lock.address, ..fact });
        }
        for stall in self.evidence.stalls.iter().filter(|stall| stall.cpu == cpu) {
            let length = stall.nanos.map_or_else(String::new, |nanos| format!(" for {}", duration(nanos)));
            facts.push(self.fact(
                format!("{} of CPU {cpu}", stall.detector),
                format!("reported{length}"),
                "kernel",
            ));
        }
        facts.extend(self.target.facts.iter().cloned());
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
            let fact = self.fact(what, format!("{state}{age}{inferred}"), "mailbox");
            facts.push(match &call.descriptor {
                Some(descriptor) => {
                    let value = format!("{}, {}", fact.value, descriptor.home);
                    Fact { value, ..fact }.at(descriptor.address)
                }
                None => fact,
            });
            facts.extend(self.later_facts(call));
        }
        if let Some(more @ 1..) = self.calls.len().checked_sub(MOST) {
            let what = format!("further unfinished calls and posts to CPU {}", self.target.cpu);
            facts.push(self.fact(what, more.to_string(), "mailbox"));
        }
        facts
    }
}

impl Case<'_> {
    /// What became of a call after it was found overdue.
    fn later_facts(&self, call: &CallEvidence) -> Vec<Fact> {
        let whose = call.caller.map_or_else(String::new, |caller| format!(" of CPU {caller}"));
        let mut facts = Vec::new();
        if let Some(times) = call.rung_again {
            let what = format!("IPI{whose} to CPU {} sent again", call.target);
            facts.push(self.fact(what, format!("{times} times"), "caller"));
        }
        if let Some(taken) = call.ring_taken {
            let value = if taken { "taken by the target" } else { "not taken by the target" };
            facts.push(self.fact(format!("ring for the call{whose}"), value, "events of the call"));
        }
        if let Some(ended) = call.ended {
            let after =
                ended.after_nanos.map_or_else(String::new, |nanos| format!(" after {}", duration(nanos)));
            let again = if ended.rung_again {
                "; the IPI had been sent again, which proves nothing by itself"
            } else {
                ""
            };
            facts.push(self.fact(format!("wait{whose}"), format!("ended later{after}{again}"), "caller"));
        }
        facts
    }

    /// Which published errata of the processor can be behind it: possible causes, no verdicts.
    pub fn erratum_facts(&self) -> Vec<Fact> {
        let Some(model) = &self.evidence.cpu_model else { return vec![] };
        let fits = |erratum: &&Erratum| match erratum.circumstance {
            Circumstance::HostOfGuest => self.evidence.hypervisor.is_some(),
            Circumstance::IdlePolling => self.target.idle == Some(true),
        };
        let name = model.name.clone().unwrap_or_else(|| model.to_string());
        let fitting: Vec<Fact> = model
            .errata()
            .filter(fits)
            .map(|erratum| {
                let value = format!("{}: {}", erratum.name, erratum.effect);
                Fact::new(format!("possible cause in {name}"), value, erratum.source)
            })
            .collect();
        if fitting.is_empty() {
            return vec![self.fact(
                format!("published errata of {name} that fit"),
                "none known here",
                "table of errata",
            )];
        }
        fitting
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
