//! What a diagnosis says, as a document: for scripts as JSON, for people as text ([`Report::text`]) and as a picture
//! ([`picture`](crate::picture)).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Diagnosis;
use crate::evidence::{CallState, CpuEvidence, Frame, MachineEvidence, Task};
use crate::frames;
use crate::graph::WaitGraph;
use crate::verdict::{Verdict, VerdictKind};

/// A diagnosis with what it is about. JSON: `{source: {kind, kernel, cpus, ..}, verdicts, graph, cpus, seconds}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was read.
    pub source: About,
    /// What is wrong, the surest and gravest first.
    pub verdicts: Vec<Verdict>,
    /// Who waits for whom.
    pub graph: WaitGraph,
    /// Every CPU that is known of, in ascending order.
    pub cpus: Vec<CpuRow>,
    /// How long reading and concluding took.
    pub seconds: f64,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct About {
    /// What kind of source: `log`, `elf`, `kdump-compressed`, `qmp`, `kcore`, `simulator`.
    pub kind: String,
    /// The kernel's release, if known.
    pub kernel: Option<String>,
    /// How many CPUs are known of.
    pub cpus: usize,
    /// The hypervisor below, if known.
    pub hypervisor: Option<String>,
    /// What changed while it was read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub moving: Vec<String>,
    /// What could not be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<String>,
}

/// What part a CPU has in the verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// It holds the others up.
    Culprit,
    /// It does not answer.
    Stuck,
    /// It waits for one that does not answer.
    Waiter,
    /// None.
    None,
}

/// One CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuRow {
    /// Its number.
    pub cpu: u32,
    /// What part it has in the verdicts.
    pub part: Part,
    /// Whether it is online, if known.
    pub online: Option<bool>,
    /// Whether its interrupts are enabled, if known.
    pub interrupts_enabled: Option<bool>,
    /// Whether it idles, if known.
    pub idle: Option<bool>,
    /// Whether it runs a user program, if known.
    pub user_mode: Option<bool>,
    /// The task that it runs.
    pub task: Option<Task>,
    /// Where it is.
    pub function: Option<String>,
    /// What keeps it there, if that is known.
    pub reason: Option<String>,
    /// For whom it waits.
    pub waits_for: Vec<u32>,
    /// How many calls and posts to it are not finished; unknown unless its queue was read.
    pub queued: Option<usize>,
    /// The vectors that are pending at its local APIC, if known.
    pub pending: Option<Vec<u8>>,
    /// The vectors that are in service at its local APIC, if known.
    pub in_service: Option<Vec<u8>>,
    /// Its back trace, innermost frame first.
    pub stack: Vec<Frame>,
    /// Why that ends early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_ended: Option<String>,
}

impl Report {
    /// Concludes from evidence and puts it all together. `kind` is that of the source, `seconds` what reading took.
    pub fn new(kind: &str, evidence: &MachineEvidence, seconds: f64) -> Self {
        let Diagnosis { verdicts, graph } = crate::diagnose(evidence);
        let evidence = evidence.completed();
        let calls = evidence.resolved_calls();
        let mut queued: BTreeMap<u32, usize> = BTreeMap::new();
        for call in calls.iter().filter(|call| call.state != CallState::Finished) {
            *queued.entry(call.target).or_default() += 1;
        }
        let row = |cpu: &CpuEvidence| {
            let known = evidence.queues_complete.then_some(0);
            row(cpu, part_of(cpu.cpu, &verdicts, &graph), &graph, queued.get(&cpu.cpu).copied().or(known))
        };
        Self {
            source: About {
                kind: kind.into(),
                kernel: evidence.kernel.clone(),
                cpus: evidence.cpus.len(),
                hypervisor: evidence.hypervisor.clone(),
                moving: evidence.moving.clone(),
                gaps: evidence.gaps.clone(),
            },
            cpus: evidence.cpus.iter().map(row).collect(),
            verdicts,
            graph,
            seconds,
        }
    }

    /// Whether nothing was found to be wrong.
    pub fn is_healthy(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.kind == VerdictKind::Healthy)
    }

    /// As one JSON document, indented, ending with a line break.
    pub fn json(&self) -> String {
        // No map with keys that are not text, no number that JSON has not: it cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// One CPU, if known.
    pub(crate) fn cpu(&self, cpu: u32) -> Option<&CpuRow> {
        self.cpus.iter().find(|row| row.cpu == cpu)
    }
}

fn part_of(cpu: u32, verdicts: &[Verdict], graph: &WaitGraph) -> Part {
    // Every member of a circle is waited for by another one.
    let in_circle = |verdict: &Verdict| {
        verdict.kind == VerdictKind::MutualWait
            && verdict.waiters.contains(&cpu)
            && graph
                .chain_from(cpu)
                .iter()
                .skip(1)
                .any(|&next| graph.targets_of(next).any(|target| target == cpu))
    };
    let of = |verdict: &Verdict| {
        if verdict.culprit == Some(cpu) {
            Part::Culprit
        } else if verdict.cpu == Some(cpu) || in_circle(verdict) {
            Part::Stuck
        } else if verdict.waiters.contains(&cpu) {
            Part::Waiter
        } else {
            Part::None
        }
    };
    verdicts.iter().map(of).min().unwrap_or(Part::None)
}

fn row(cpu: &CpuEvidence, part: Part, graph: &WaitGraph, queued: Option<usize>) -> CpuRow {
    let reason = frames::reason(&cpu.stack).filter(|reason| reason.role.is_some());
    CpuRow {
        cpu: cpu.cpu,
        part,
        online: cpu.online,
        interrupts_enabled: cpu.interrupts_enabled,
        idle: cpu.idle,
        user_mode: cpu.user_mode,
        task: cpu.task.clone(),
        function: cpu.function.clone(),
        reason: reason.map(|reason| reason.sentence()),
        waits_for: graph.targets_of(cpu.cpu).collect(),
        queued,
        pending: cpu.pending.clone(),
        in_service: cpu.in_service.clone(),
        stack: cpu.stack.clone(),
        stack_ended: cpu.stack_ended.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{machine, waits_for_cpu_0};

    #[test]
    fn the_document_has_the_keys_that_scripts_rely_on() {
        let report = Report::new("log", &waits_for_cpu_0(|_| {}), 0.25);
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
        let keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["cpus", "graph", "seconds", "source", "verdicts"]);
        assert_eq!((&json["source"]["kind"], &json["source"]["cpus"]), (&"log".into(), &2.into()));
        assert_eq!(json["verdicts"][0]["kind"], "ipi-lost");
        assert!(json["graph"]["nodes"].is_array() && json["graph"]["edges"].is_array());
        assert_eq!(
            (&json["cpus"][1]["part"], &json["cpus"][1]["waits_for"][0]),
            (&"waiter".into(), &0.into())
        );
        assert_eq!(json["seconds"], 0.25);
    }

    #[test]
    fn every_cpu_has_its_part() {
        let report = Report::new("log", &waits_for_cpu_0(|cpu| cpu.interrupts_enabled = Some(false)), 0.0);
        assert_eq!(report.cpus.iter().map(|row| row.part).collect::<Vec<_>>(), [Part::Culprit, Part::Waiter]);
        assert!(!report.is_healthy());
        let report = Report::new("log", &machine(2), 0.0);
        assert!(report.is_healthy() && report.cpus.iter().all(|row| row.part == Part::None));
    }

    #[test]
    fn an_unread_queue_is_not_empty() {
        let mut evidence = machine(1);
        assert_eq!(Report::new("log", &evidence, 0.0).cpus[0].queued, None);
        evidence.queues_complete = true;
        assert_eq!(Report::new("elf", &evidence, 0.0).cpus[0].queued, Some(0));
    }
}
