//! The rules, in the order in which they are asked; the first that recognises a case gives its verdict.
//!
//! A case is one CPU that others have been waiting for. Circles are looked for first, because none of their members
//! is to blame alone; a CPU that cannot serve because it waits itself is no case of its own: the chain goes on.

pub(crate) mod case;
mod cpu_dead;
mod healthy;
mod interrupts_off;
mod ipi_lost;
mod long_handler;
mod mutual_wait;
mod offline_queue;
mod pending_at_crash;
mod stalled;
mod stray_eoi;
mod stuck_icr;
mod undetermined;
mod vcpu_not_running;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};

pub use case::Case;

use crate::evidence::{CallEvidence, CallState, CpuEvidence, MachineEvidence, StallEvidence, WaitEvidence};
use crate::graph::WaitGraph;
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

/// A rule: recognises one kind of standstill, or says nothing.
pub type Rule = fn(&Case<'_>) -> Option<Verdict>;

/// All rules about one CPU, in order. If none speaks, the case is undetermined.
pub const RULES: [Rule; 6] = [
    offline_queue::recognise,
    vcpu_not_running::recognise,
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
    verdicts.extend(waits_for_nobody_known(evidence, calls, graph));
    verdicts.extend(evidence.stray_ends.iter().map(|stray| stray_eoi::describe(evidence, stray)));
    verdicts.extend(evidence.busy_controllers.iter().filter_map(|busy| stuck_icr::recognise(evidence, busy)));
    verdicts.extend(
        evidence.pending_at_crash.iter().filter_map(|held| pending_at_crash::recognise(evidence, held)),
    );
    let unexplained = unexplained_stalls(evidence, graph, &verdicts);
    verdicts.extend(unexplained);
    if verdicts.is_empty() {
        verdicts.push(healthy::describe(evidence, calls));
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
        offline || calls.iter().any(|call| evidence.is_call_overdue(call))
    };
    let overdue = by_target.iter().filter(|(target, calls)| is_case(**target, calls));
    let mut targets: BTreeSet<u32> = overdue.map(|(&target, _)| target).collect();
    // With a known call to the target, it is that call's time which counts, not the wait's.
    let known: BTreeSet<(Option<u32>, u32)> = calls.iter().map(|call| (call.caller, call.target)).collect();
    for cpu in &evidence.cpus {
        if cpu.wait.as_ref().is_some_and(|wait| evidence.is_wait_overdue(wait)) {
            targets.extend(
                graph.targets_of(cpu.cpu).filter(|&target| !known.contains(&(Some(cpu.cpu), target))),
            );
        }
    }
    let case = |target| Case::new(evidence, by_target.remove(&target).unwrap_or_default(), graph, target);
    targets.into_iter().map(case).collect()
}

/// CPUs that have waited for too long, of which nothing says for whom.
fn waits_for_nobody_known(
    evidence: &MachineEvidence,
    calls: &[CallEvidence],
    graph: &WaitGraph,
) -> Option<Verdict> {
    let is_open = |cpu: u32| {
        let named = calls.iter().any(|call| call.waited && call.caller == Some(cpu));
        !named && !evidence.counted_calls.iter().any(|counted| counted.caller == cpu)
    };
    let waits = |cpu: &&CpuEvidence| {
        let overdue = |wait: &WaitEvidence| wait.targets.is_empty() && evidence.is_wait_overdue(wait);
        cpu.wait.as_ref().is_some_and(overdue) && is_open(cpu.cpu)
    };
    let case = |cpu: &CpuEvidence| Case::new(evidence, vec![], graph, cpu.cpu);
    let waiting: Vec<Case<'_>> = evidence.cpus.iter().filter(waits).map(case).collect();
    waiting::describe(&waiting)
}

/// One verdict for each CPU that the kernel has found stuck and of which no verdict speaks, not even as of a waiter.
fn unexplained_stalls(evidence: &MachineEvidence, graph: &WaitGraph, verdicts: &[Verdict]) -> Vec<Verdict> {
    let spoken_of = |cpu: u32| {
        verdicts.iter().any(|verdict| {
            verdict.cpu == Some(cpu) || verdict.culprit == Some(cpu) || verdict.waiters.contains(&cpu)
        })
    };
    let mut stalls: BTreeMap<u32, Vec<&StallEvidence>> = BTreeMap::new();
    for stall in evidence.stalls.iter().filter(|stall| !spoken_of(stall.cpu)) {
        stalls.entry(stall.cpu).or_default().push(stall);
    }
    let describe = |(cpu, stalls): (u32, Vec<&StallEvidence>)| {
        stalled::describe(&Case::new(evidence, vec![], graph, cpu), &stalls)
    };
    stalls.into_iter().map(describe).collect()
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
