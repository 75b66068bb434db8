//! From evidence to a verdict: which CPU never took which call, who waits for whom, and why.
//!
//! Evidence first, verdict second, confidence always, and what is missing to be surer.
//!
//! * [`evidence`]: what is known about a machine, whatever it was read from. Everything may be unknown.
//! * [`graph`]: who waits for whom. A cycle is a deadlock; a chain ends at the culprit.
//! * [`rules`]: each a small unit that recognises one way in which cross-CPU calls come to a standstill.
//! * [`verdict`]: what is concluded, how surely and from what.
//! * [`text`]: the same for people.
//!
//! This crate knows no machine, no simulator and no dump format: readers of those fill in a [`MachineEvidence`].

pub mod evidence;
pub mod graph;
pub mod rules;
#[cfg(test)]
mod samples;
pub mod text;
pub mod verdict;

use serde::Serialize;

pub use evidence::{
    BusyController, CallEvidence, CallState, CountedCall, CpuEvidence, MachineEvidence, PendingAtCrash,
    Running, StrayEnd, WaitEvidence,
};
pub use graph::{Edge, Node, WaitGraph};
pub use verdict::{Confidence, Fact, Verdict, VerdictKind};

/// The outcome of a diagnosis: at least one verdict, the gravest ones first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// What is wrong, or that nothing is.
    pub verdicts: Vec<Verdict>,
    /// Who waits for whom.
    pub graph: WaitGraph,
}

impl Diagnosis {
    /// Whether nothing was found to be wrong.
    pub fn is_healthy(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.kind == VerdictKind::Healthy)
    }
}

/// Concludes from evidence what is wrong. The same evidence gives the same diagnosis.
pub fn diagnose(evidence: &MachineEvidence) -> Diagnosis {
    let calls = evidence.resolved_calls();
    let graph = WaitGraph::new(evidence, &calls);
    let verdicts = rules::apply(evidence, &calls, &graph);
    Diagnosis { verdicts, graph }
}
