//! From evidence to a verdict: which CPU never took which call, who waits for whom, and why.
//!
//! Evidence first, verdict second, confidence always, and what is missing to be surer.
//!
//! * [`evidence`]: what is known about a machine, whatever it was read from. Everything may be unknown.
//! * [`errata`]: processors that are known to lose interrupts.
//! * [`frames`]: what a back trace tells.
//! * [`graph`]: who waits for whom. A cycle is a deadlock; a chain ends at the culprit.
//! * [`logs`]: evidence from console logs; [`simulation`]: from traces of the simulated machine.
//! * [`rules`]: each a small unit that recognises one way in which cross-CPU calls come to a standstill.
//! * [`verdict`]: what is concluded, how surely and from what.
//! * [`report`]: all of it as one document; [`text`] and [`picture`]: the same for people.
//!
//! * [`source`]: finds out what a source is and reads it; [`dump`]: evidence from dumps and live machines.
//!
//! Rules know no machine, no simulator and no dump format: readers of those fill in a [`MachineEvidence`].

pub mod dump;
pub mod errata;
pub mod evidence;
pub mod frames;
pub mod graph;
pub mod linux;
pub mod logs;
pub mod picture;
pub mod report;
pub mod rules;
#[cfg(test)]
mod samples;
pub mod simulation;
pub mod source;
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
    let evidence = &evidence.completed();
    let calls = evidence.resolved_calls();
    let graph = WaitGraph::new(evidence, &calls);
    let verdicts = rules::apply(evidence, &calls, &graph);
    Diagnosis { verdicts, graph }
}
