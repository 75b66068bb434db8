//! The rules, in the order in which they are asked; the first that recognises a case gives its verdict.
//!
//! A case is one CPU that others have been waiting for. Circles are looked for first, because none of their members
//! is to blame alone; a CPU that cannot serve because it waits itself is no case of its own: the chain goes on.

mod case;
mod cpu_dead;
mod interrupts_off;
mod ipi_lost;
mod long_handler;
mod mutual_wait;
mod offline_queue;
mod pending_at_crash;
mod stray_eoi;
mod stuck_icr;
mod undetermined;

use std::collections::{BTreeMap, BTreeSet};

pub use case::Case;

use crate::evidence::{CallEvidence, CallState, MachineEvidence};
use crate::graph::WaitGraph;
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

/// A rule: recognises one kind of standstill, or says nothing.
pub type Rule = fn(&Case<'_>) -> Option<Verdict>;

/// All rules about one CPU, in order. If none speaks, the case is undetermined.
pub const RULES: [Rule; 5] = [
    offline_queue::recognise,
    cpu_dead::recognise,
    long_handler::recognise,
    interrupts_off::recognise,
    ipi_lost::recognise,
];

/// Applies all rules. The surest verdicts come first, then the gravest.
pub fn apply(evidence: &MachineEvidence, calls: &[CallEvidence], graph: &WaitGraph) -> Vec<Verdict> {
    let cases = cases(evidence, calls, graph);
    let mut verdicts = Vec::new();
    let mut explained: BTreeSet<u32> = BTreeSet::new();
    for cycle in graph.cycles() {
        if let Some(verdict) = mutual_wait::recognise(evidence, graph, &cycle, &cases) {
            explained.extend(&cycle);
            verdicts.push(verdict);
        }
    }
    for case in cases.iter().filter(|case| !explained.contains(&case.target.cpu)) {
        if !case.waits_itself() {
            let verdict = RULES.iter().find_map(|rule| rule(case));
            verdicts.push(verdict.unwrap_or_else(|| undetermined::describe(case)));
        }
    }
    verdicts.extend(uncounted(evidence, calls));
    verdicts.extend(evidence.stray_ends.iter().map(|stray| stray_eoi::describe(evidence, stray)));
    verdicts.extend(evidence.busy_controllers.iter().filter_map(|busy| stuck_icr::recognise(evidence, busy)));
    verdicts.extend(
        evidence.pending_at_crash.iter().filter_map(|held| pending_at_crash::recognise(evidence, held)),
    );
    if verdicts.is_empty() {
        verdicts.push(healthy(evidence, calls));
    }
    verdicts.sort_by_key(|verdict| (core::cmp::Reverse(verdict.confidence), verdict.kind, verdict.cpu));
    verdicts
}

/// The CPUs that are waited for longer than is normal, and offline ones with anything left in their mailbox.
fn cases<'a>(
    evidence: &'a MachineEvidence,
    calls: &'a [CallEvidence],
    graph: &'a WaitGraph,
) -> Vec<Case<'a>> {
    let mut by_target: BTreeMap<u32, Vec<&CallEvidence>> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.state != CallState::Finished) {
        by_target.entry(call.target).or_default().push(call);
    }
    let is_case = |target: u32, calls: &[&CallEvidence]| {
        let offline = evidence.cpu(target).is_some_and(|cpu| cpu.online == Some(false));
        offline || calls.iter().any(|call| evidence.is_overdue(call.nanos))
    };
    let overdue = by_target.iter().filter(|(target, calls)| is_case(**target, calls));
    let mut targets: BTreeSet<u32> = overdue.map(|(&target, _)| target).collect();
    // With a known call to the target, it is that call's time which counts, not the wait's.
    let known: BTreeSet<(Option<u32>, u32)> = calls.iter().map(|call| (call.caller, call.target)).collect();
    for cpu in &evidence.cpus {
        if cpu.wait.as_ref().is_some_and(|wait| evidence.is_overdue(wait.nanos)) {
            targets.extend(
                graph.targets_of(cpu.cpu).filter(|&target| !known.contains(&(Some(cpu.cpu), target))),
            );
        }
    }
    let case = |target| Case::new(evidence, by_target.remove(&target).unwrap_or_default(), graph, target);
    targets.into_iter().map(case).collect()
}

/// Counted calls that are overdue and whose missing targets could not be told.
fn uncounted(evidence: &MachineEvidence, calls: &[CallEvidence]) -> Vec<Verdict> {
    let is_resolved =
        |caller| calls.iter().any(|call| call.inferred.is_some() && call.caller == Some(caller));
    let open = evidence.counted_calls.iter().filter(|counted| {
        counted.finished < counted.targets.len()
            && evidence.is_overdue(counted.nanos)
            && !is_resolved(counted.caller)
    });
    open.map(|counted| Verdict {
        kind: VerdictKind::Undetermined,
        cpu: None,
        culprit: None,
        waiters: vec![counted.caller],
        function: counted.function.clone(),
        confidence: Confidence::Possible,
        evidence: vec![
            Fact::new("targets of the call", counted.targets.len().to_string(), evidence.origin.clone()),
            Fact::new("started", counted.started.to_string(), evidence.origin.clone()),
            Fact::new("finished", counted.finished.to_string(), evidence.origin.clone()),
        ],
        missing: vec!["for each target, how many rings were sent to it and how many it took".into()],
    })
    .collect()
}

fn healthy(evidence: &MachineEvidence, calls: &[CallEvidence]) -> Verdict {
    let unfinished = calls.iter().filter(|call| call.state != CallState::Finished).count();
    let known = !evidence.cpus.is_empty();
    let waiting = evidence.cpus.iter().filter(|cpu| cpu.wait.is_some()).count();
    Verdict {
        kind: VerdictKind::Healthy,
        cpu: None,
        culprit: None,
        waiters: vec![],
        function: None,
        confidence: if known { Confidence::Certain } else { Confidence::Possible },
        evidence: vec![
            Fact::new(
                "unfinished calls, none of them overdue",
                unfinished.to_string(),
                evidence.origin.clone(),
            ),
            Fact::new("waiting CPUs, none of them for long", waiting.to_string(), evidence.origin.clone()),
        ],
        missing: if known { vec![] } else { vec!["the state of any CPU".into()] },
    }
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::MachineEvidence;
    use crate::samples::{counted_call, machine, runs_call_of_cpu_1, waiting_call, waits_for_cpu_0};
    use crate::verdict::{Confidence, VerdictKind};

    #[test]
    fn a_machine_on_which_nobody_waits_for_long_is_healthy() {
        let mut evidence = machine(4);
        let mut call = waiting_call(0, 1);
        call.nanos = Some(evidence.patience_nanos - 1);
        evidence.calls.push(call);
        let diagnosis = diagnose(&evidence);
        assert!(diagnosis.is_healthy());
        assert_eq!(diagnosis.verdicts[0].confidence, Confidence::Certain);
    }

    #[test]
    fn one_overdue_call_is_not_healthy() {
        assert!(!diagnose(&waits_for_cpu_0(|_| {})).is_healthy());
    }

    #[test]
    fn without_any_evidence_health_is_no_more_than_possible() {
        let diagnosis = diagnose(&MachineEvidence::default());
        assert_eq!(diagnosis.verdicts[0].confidence, Confidence::Possible);
        assert!(!diagnosis.verdicts[0].missing.is_empty());
    }

    #[test]
    fn a_chain_gets_one_verdict_on_its_last_cpu_with_all_waiters() {
        let mut evidence = runs_call_of_cpu_1();
        evidence.cpus.push(crate::samples::working(2));
        evidence.cpus[1].interrupts_enabled = Some(false);
        evidence.calls.push(waiting_call(2, 1));
        let verdicts = diagnose(&evidence).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!((verdicts[0].kind, verdicts[0].cpu), (VerdictKind::LongHandler, Some(0)));
        assert_eq!(verdicts[0].waiters, [1, 2]);
    }

    #[test]
    fn a_counted_call_whose_missing_target_cannot_be_told_says_what_is_missing() {
        let mut evidence = counted_call(16, 11);
        evidence.cpus.iter_mut().for_each(|cpu| cpu.rings_taken = None);
        let verdicts = diagnose(&evidence).verdicts;
        assert_eq!((verdicts[0].kind, verdicts[0].cpu), (VerdictKind::Undetermined, None));
        assert_eq!(verdicts[0].waiters, [5]);
        assert_eq!(verdicts[0].missing.len(), 1);
    }

    #[test]
    fn the_same_evidence_gives_the_same_diagnosis() {
        assert_eq!(diagnose(&counted_call(16, 11)), diagnose(&counted_call(16, 11)));
    }
}
