//! CPUs wait for each other in a circle, and none of them can serve the others meanwhile.

use super::Case;
use crate::evidence::MachineEvidence;
use crate::graph::WaitGraph;
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

/// Recognises one circle of `graph`. A member that could serve breaks it: then its ring is lost, or nothing is.
pub(super) fn recognise(
    evidence: &MachineEvidence,
    graph: &WaitGraph,
    cycle: &[u32],
    cases: &[Case<'_>],
) -> Option<Verdict> {
    let mut confidence = Confidence::Certain;
    let mut facts = Vec::new();
    let mut missing = Vec::new();
    let mut function = None;
    for &cpu in cycle {
        // A member that is not overdue is no case, and a circle with it may still resolve.
        let called = cycle
            .iter()
            .any(|&from| graph.targets_of(from).any(|to| to == cpu) && !graph.is_for_lock(from, cpu));
        let lock_only;
        let case = if called {
            cases.iter().find(|case| case.target.cpu == cpu)?
        } else {
            // Others of the circle wait for its lock only: whether it could serve does not matter.
            lock_only = Case::new(evidence, vec![], graph, cpu);
            &lock_only
        };
        confidence = confidence.min(case.surest());
        match case.cannot_serve() {
            _ if !called => {}
            Some(true) => {}
            Some(false) => return None,
            None => {
                confidence = confidence.min(Confidence::Likely);
                missing.push(format!("whether interrupts of CPU {cpu} are enabled"));
            }
        }
        let targets = graph.targets_of(cpu).filter(|target| cycle.contains(target));
        let name = |target: u32| {
            let lock = if graph.is_for_lock(cpu, target) { " (a lock)" } else { "" };
            format!("CPU {target}{lock}")
        };
        let targets: Vec<String> = targets.map(name).collect();
        let place = case.target.wait.as_ref().and_then(|wait| wait.function.clone());
        let place = place.or_else(|| case.target.function.clone());
        let value = place.as_ref().map_or_else(String::new, |name| format!(", in {name}"));
        let value = format!("{}{value}", targets.join(", "));
        facts.push(Fact::new(format!("CPU {cpu} waits for"), value, format!("{}: calls", evidence.origin)));
        facts.extend(case.cpu_facts().into_iter().filter(|fact| fact.what.starts_with("interrupts")));
        function = function.or(place);
    }
    let &lowest = cycle.first()?;
    let outside = graph.waiters_of(lowest).into_iter().filter(|waiter| !cycle.contains(waiter));
    Some(Verdict {
        kind: VerdictKind::MutualWait,
        cpu: Some(lowest),
        culprit: None,
        waiters: cycle[1..].iter().copied().chain(outside).collect(),
        function,
        confidence,
        evidence: facts,
        missing,
    })
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{LockEvidence, MachineEvidence, WaitEvidence};
    use crate::samples::{RING, machine, running_call, waiting_call};
    use crate::verdict::{Confidence, VerdictKind};

    /// CPUs 0 and 1 call each other, CPU 2 calls CPU 0.
    fn circle(enabled: Option<bool>) -> MachineEvidence {
        let mut evidence = machine(3);
        for (cpu, target) in [(0, 1), (1, 0)] {
            evidence.cpus[cpu].interrupts_enabled = enabled;
            evidence.cpus[cpu].pending = Some(vec![RING]);
            let function = Some("smp_call_function_single".into());
            evidence.cpus[cpu].wait =
                Some(WaitEvidence { targets: vec![target], function, ..WaitEvidence::default() });
        }
        evidence.calls = vec![waiting_call(0, 1), waiting_call(1, 0), waiting_call(2, 0)];
        evidence
    }

    #[test]
    fn two_cpus_that_call_each_other_with_interrupts_off_get_one_verdict_for_both() {
        let verdicts = diagnose(&circle(Some(false))).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        let verdict = &verdicts[0];
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::MutualWait, Confidence::Certain));
        assert_eq!((verdict.cpu, &verdict.waiters), (Some(0), &vec![1, 2]));
        assert_eq!(verdict.function.as_deref(), Some("smp_call_function_single"));
    }

    #[test]
    fn a_circle_through_a_lock_is_one_although_its_holder_could_serve() {
        // CPU 0 has the lock and calls CPU 1, which spins on it with interrupts off.
        let mut evidence = machine(2);
        evidence.cpus[1].interrupts_enabled = Some(false);
        evidence.calls.push(waiting_call(0, 1));
        let lock =
            LockEvidence { name: "dcache".into(), waiters: vec![1], holder: Some(0), ..Default::default() };
        evidence.locks.push(lock);
        let verdicts = diagnose(&evidence).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!(
            (verdicts[0].kind, verdicts[0].confidence),
            (VerdictKind::MutualWait, Confidence::Certain)
        );
        // If CPU 1 takes interrupts while it spins, it serves, and there is no circle.
        evidence.cpus[1].interrupts_enabled = Some(true);
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::MutualWait);
    }

    #[test]
    fn a_circle_of_calls_inside_of_calls_is_one_even_with_interrupts_on() {
        let mut evidence = machine(2);
        evidence.calls = vec![running_call(0, 1), running_call(1, 0)];
        assert_eq!(diagnose(&evidence).verdicts[0].kind, VerdictKind::MutualWait);
    }

    #[test]
    fn with_unknown_interrupts_it_is_likely_and_a_member_that_serves_breaks_it() {
        let verdict = &diagnose(&circle(None)).verdicts[0];
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::MutualWait, Confidence::Likely));
        assert_eq!(verdict.missing.len(), 2);
        let mut evidence = circle(Some(false));
        evidence.cpus[1].polls = Some(true);
        assert!(diagnose(&evidence).verdicts.iter().all(|verdict| verdict.kind != VerdictKind::MutualWait));
        let verdicts = diagnose(&circle(Some(true))).verdicts;
        assert!(verdicts.iter().all(|verdict| verdict.kind != VerdictKind::MutualWait));
    }
}
