//! Somebody waits and no other rule knows why: says what is known, and what is missing.

use super::Case;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn describe(case: &Case<'_>) -> Verdict {
    let (cpu, target) = (case.target.cpu, &case.target);
    let mut verdict = case.verdict(VerdictKind::Undetermined, Confidence::Possible);
    verdict.evidence.extend(case.cpu_facts());
    verdict.evidence.extend(case.apic_facts());
    verdict.evidence.extend(case.count_facts());
    verdict.evidence.extend(case.erratum_facts());
    let unknown = [
        (case.calls.is_empty(), format!("which call CPU {cpu} is waited for")),
        (target.interrupts_enabled.is_none(), format!("whether interrupts of CPU {cpu} are enabled")),
        (
            case.evidence.hypervisor.is_some() && target.preempted.is_none(),
            format!("whether the hypervisor has run CPU {cpu} all the time"),
        ),
        (target.pending.is_none(), format!("IRR of CPU {cpu} (is {} pending?)", case.vector())),
        (target.in_service.is_none(), format!("ISR of CPU {cpu} (is {} in service?)", case.vector())),
        (target.function.is_none(), format!("where CPU {cpu} runs: its instruction pointer and stack")),
        (target.answered_probe.is_none(), format!("whether CPU {cpu} answers an NMI")),
    ];
    verdict.missing = unknown.into_iter().filter_map(|(unknown, what)| unknown.then_some(what)).collect();
    verdict
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{CpuEvidence, WaitEvidence};
    use crate::samples::{RING, machine, waits_for_cpu_0};
    use crate::verdict::VerdictKind;

    #[test]
    fn a_cpu_of_which_nothing_is_known_gets_a_list_of_what_is_missing() {
        let verdict = diagnose(&waits_for_cpu_0(|cpu| *cpu = CpuEvidence::unknown(0))).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::Undetermined, Some(0)));
        assert_eq!(verdict.missing.len(), 5, "{:?}", verdict.missing);
    }

    #[test]
    fn a_pending_ring_at_a_cpu_that_could_take_it_is_not_explained_away() {
        let verdict = diagnose(&waits_for_cpu_0(|cpu| cpu.pending = Some(vec![RING]))).verdicts.remove(0);
        assert_eq!(verdict.kind, VerdictKind::Undetermined);
        assert!(verdict.evidence.iter().any(|fact| fact.value == "0xfb"));
    }

    #[test]
    fn a_ring_that_was_taken_and_a_call_that_was_not_are_a_contradiction_and_not_a_loss() {
        let verdict =
            diagnose(&waits_for_cpu_0(|cpu| cpu.rings_taken = cpu.rings_sent_to)).verdicts.remove(0);
        assert_eq!(verdict.kind, VerdictKind::Undetermined);
    }

    #[test]
    fn a_wait_without_a_known_call_is_a_case_unless_it_is_short() {
        let mut evidence = machine(2);
        evidence.cpus[1].wait =
            Some(WaitEvidence { targets: vec![0], nanos: Some(5_000_000), ..WaitEvidence::default() });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.waiters), (VerdictKind::Undetermined, vec![1]));
        evidence.cpus[1].wait =
            Some(WaitEvidence { targets: vec![0], nanos: Some(5), ..WaitEvidence::default() });
        assert!(diagnose(&evidence).is_healthy());
    }
}
