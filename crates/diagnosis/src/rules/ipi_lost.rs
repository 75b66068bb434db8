//! The call was announced by an IPI that its target never got (report 000): it could take it and has not.

use super::Case;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    let (cpu, target, vector) = (case.target.cpu, &case.target, case.evidence.ring_vector);
    // A call that is not yet in the mailbox, or for which nothing was sent, has no ring to lose.
    let call = case.unclaimed().find(|call| call.marked != Some(false) && call.rung != Some(false))?;
    let (pending, in_service) = (target.is_pending(vector), target.is_in_service(vector));
    if target.polls == Some(true) || pending == Some(true) || in_service == Some(true) {
        return None;
    }
    let counts_short = match target.rings_missing(vector) {
        Some(missing) => Some(missing > 0),
        // Without the IRR a pending ring is short as well, without the merged ones those are.
        None => target.rings_not_taken().map(|short| short > target.rings_merged.unwrap_or(0)),
    };
    if counts_short == Some(false) {
        // Every ring arrived: that the call lies there all the same is something else.
        return None;
    }
    let absent = pending == Some(false) && in_service == Some(false);
    let confidence = match target.interrupts_enabled {
        Some(true) if absent && call.rung == Some(true) => {
            // A call that is only known from counts needs all of them.
            let sure =
                call.inferred.is_none() || target.rings_missing(vector).is_some_and(|missing| missing > 0);
            if sure { Confidence::Certain } else { Confidence::Likely }
        }
        Some(true) if absent || counts_short == Some(true) => Confidence::Likely,
        None if absent => Confidence::Likely,
        Some(true) => Confidence::Possible,
        Some(false) | None => return None,
    };
    let mut verdict = case.verdict(VerdictKind::IpiLost, confidence);
    verdict.evidence.extend(case.cpu_facts());
    verdict.evidence.extend(case.apic_facts());
    verdict.evidence.extend(case.count_facts());
    if call.rung == Some(true) {
        verdict.evidence.push(case.fact(format!("ring to CPU {cpu}"), "sent", "mailbox"));
    }
    let unknown = [
        (target.interrupts_enabled.is_none(), format!("whether interrupts of CPU {cpu} are enabled")),
        (pending.is_none(), format!("IRR of CPU {cpu} (is {} pending?)", case.vector())),
        (in_service.is_none(), format!("ISR of CPU {cpu} (is {} in service?)", case.vector())),
        (call.rung.is_none(), format!("whether a ring was sent to CPU {cpu}")),
        (counts_short.is_none(), format!("how many rings were sent to CPU {cpu} and how many it took")),
        (target.polls.is_none(), format!("whether CPU {cpu} polls its mailbox and is not rung")),
    ];
    verdict.missing = unknown.into_iter().filter_map(|(unknown, what)| unknown.then_some(what)).collect();
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose;
    use crate::evidence::CpuEvidence;
    use crate::graph::WaitGraph;
    use crate::samples::{RING, counted_call, machine, waiting_call, waits_for_cpu_0};

    #[test]
    fn the_call_of_2009_is_lost_at_cpu_11_for_certain_although_only_counts_were_kept() {
        let verdict = diagnose(&counted_call(16, 11)).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::IpiLost, Confidence::Certain));
        assert_eq!((verdict.cpu, verdict.culprit, verdict.waiters), (Some(11), None, vec![5]));
        assert!(verdict.missing.is_empty(), "{:?}", verdict.missing);
    }

    #[test]
    fn what_is_unknown_lowers_the_confidence_and_is_named() {
        let kind_with = |change: fn(&mut CpuEvidence)| {
            let verdict = diagnose(&waits_for_cpu_0(change)).verdicts.remove(0);
            (verdict.kind, verdict.confidence, verdict.missing.len())
        };
        let lost = VerdictKind::IpiLost;
        assert_eq!(kind_with(|_| {}), (lost, Confidence::Certain, 0));
        assert_eq!(kind_with(|cpu| cpu.interrupts_enabled = None), (lost, Confidence::Likely, 1));
        assert_eq!(kind_with(|cpu| cpu.pending = None), (lost, Confidence::Likely, 1));
        assert_eq!(kind_with(|cpu| cpu.rings_taken = None), (lost, Confidence::Certain, 1));
        let neither = |cpu: &mut CpuEvidence| (cpu.pending, cpu.rings_taken) = (None, None);
        assert_eq!(kind_with(neither), (lost, Confidence::Possible, 2));
        let unknown = |cpu: &mut CpuEvidence| *cpu = CpuEvidence::unknown(0);
        assert_eq!(kind_with(unknown).0, VerdictKind::Undetermined);
    }

    #[test]
    fn a_ring_that_is_pending_or_in_service_or_was_not_sent_or_not_needed_is_not_lost() {
        let cases: [fn(&mut CpuEvidence); 4] = [
            |cpu| cpu.pending = Some(vec![RING]),
            |cpu| cpu.in_service = Some(vec![RING]),
            |cpu| cpu.polls = Some(true),
            |cpu| cpu.interrupts_enabled = Some(false),
        ];
        for change in cases {
            // The rule itself: that an earlier one speaks first must not hide what this one would say.
            let evidence = waits_for_cpu_0(change);
            let graph = WaitGraph::new(&evidence, &evidence.calls);
            let case = Case::new(&evidence, evidence.calls.iter().collect(), &graph, 0);
            assert_eq!(recognise(&case), None);
        }
        for (marked, rung) in [(Some(false), None), (Some(true), Some(false))] {
            let mut evidence = machine(2);
            let mut call = waiting_call(1, 0);
            (call.marked, call.rung) = (marked, rung);
            evidence.calls.push(call);
            assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::IpiLost);
        }
    }
}
