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
    if call.ring_taken == Some(true) || case.unclaimed().all(|call| call.candidates > 0) {
        // It came, whatever was made of it; or that there is a call to this CPU at all is only inferred.
        return None;
    }
    let counts_short = match target.rings_missing(vector) {
        Some(missing) => Some(missing > 0),
        // Without the IRR a pending ring is short as well, without the merged ones those are.
        None => target.rings_not_taken().map(|short| short > target.rings_merged.unwrap_or(0)),
    };
    let counts_short = counts_short.or(call.ring_taken.map(|taken| !taken));
    let ticked = case.took_a_tick_since() == Some(true);
    if counts_short == Some(false) {
        // Every ring arrived: that the call lies there all the same is something else.
        return None;
    }
    let absent = pending == Some(false) && in_service == Some(false);
    // Who sleeps with interrupts disabled is woken by one all the same; who has ticked since enables them from time to time.
    let able = target
        .interrupts_enabled
        .map(|enabled| enabled || target.idle == Some(true) || case.is_deaf_for_a_moment());
    let confidence = match able {
        Some(true) if absent && call.rung == Some(true) => {
            // A call that is only known from counts needs all of them.
            let sure =
                call.inferred.is_none() || target.rings_missing(vector).is_some_and(|missing| missing > 0);
            if sure { Confidence::Certain } else { Confidence::Likely }
        }
        Some(true) if absent || ticked || counts_short == Some(true) => Confidence::Likely,
        None if absent => Confidence::Likely,
        Some(true) => Confidence::Possible,
        Some(false) | None => return None,
    };
    // An idle CPU may have been left without a ring on purpose: it polls, and then it is its waking that was lost.
    let idle = target.idle == Some(true) && target.polls.is_none() && call.rung != Some(true);
    let confidence = if idle { confidence.min(Confidence::Likely) } else { confidence };
    let mut verdict = case.verdict(VerdictKind::IpiLost, confidence);
    verdict.evidence.extend(case.cpu_facts());
    verdict.evidence.extend(case.apic_facts());
    verdict.evidence.extend(case.count_facts());
    if call.rung == Some(true) {
        verdict.evidence.push(case.fact(format!("ring to CPU {cpu}"), "sent", "mailbox"));
    }
    if ticked {
        let what = format!("{} at CPU {cpu}", case.vector());
        let value = "not pending: a timer interrupt, of lower priority, was taken since the call was made";
        verdict.evidence.push(case.fact(what, value, "clock"));
    }
    verdict.evidence.extend(case.erratum_facts());
    let unknown = [
        (target.interrupts_enabled.is_none(), format!("whether interrupts of CPU {cpu} are enabled")),
        (pending.is_none() && !ticked, format!("IRR of CPU {cpu} (is {} pending?)", case.vector())),
        (in_service.is_none(), format!("ISR of CPU {cpu} (is {} in service?)", case.vector())),
        (call.rung.is_none(), format!("whether a ring was sent to CPU {cpu}")),
        (counts_short.is_none(), format!("how many rings were sent to CPU {cpu} and how many it took")),
        (
            case.evidence.hypervisor.is_some() && target.preempted.is_none(),
            format!("whether the hypervisor has run CPU {cpu} all the time"),
        ),
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
    fn a_timer_interrupt_since_the_call_stands_for_an_unknown_irr() {
        let mut evidence = waits_for_cpu_0(|cpu| {
            (cpu.pending, cpu.in_service, cpu.rings_taken) = (None, None, None);
            cpu.since_tick_nanos = Some(4_000_000);
        });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::IpiLost, Confidence::Likely));
        evidence.cpus[0].since_tick_nanos = Some(11_000_000_000);
        assert_eq!(diagnose(&evidence).verdicts[0].confidence, Confidence::Possible);
    }

    #[test]
    fn interrupts_that_are_disabled_for_a_moment_explain_nothing() {
        let mut evidence = waits_for_cpu_0(|cpu| {
            (cpu.pending, cpu.in_service, cpu.rings_taken) = (None, None, None);
            (cpu.interrupts_enabled, cpu.since_tick_nanos) = (Some(false), Some(500_000));
        });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::IpiLost, Confidence::Likely));
        evidence.cpus[0].since_tick_nanos = Some(evidence.patience_nanos);
        assert_eq!(diagnose(&evidence).verdicts[0].kind, VerdictKind::InterruptsOff);
    }

    #[test]
    fn a_call_that_may_have_been_made_just_now_is_no_finding() {
        let mut evidence = waits_for_cpu_0(|_| {});
        (evidence.calls[0].nanos, evidence.calls[0].perhaps_fresh) = (None, true);
        assert!(diagnose(&evidence).is_healthy());
    }

    #[test]
    fn an_idle_cpu_may_have_been_left_to_poll_and_the_hypervisor_is_asked_about_first() {
        let mut evidence = waits_for_cpu_0(|cpu| (cpu.idle, cpu.polls) = (Some(true), None));
        evidence.calls[0].rung = None;
        evidence.hypervisor = Some("KVM".into());
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::IpiLost, Confidence::Likely));
        assert!(verdict.missing.iter().any(|missing| missing.contains("polls its mailbox")));
        assert!(verdict.missing.iter().any(|missing| missing.contains("hypervisor")));
    }

    #[test]
    fn the_events_of_a_call_say_whether_its_ring_came() {
        let mut evidence =
            waits_for_cpu_0(|cpu| (cpu.pending, cpu.in_service, cpu.rings_taken) = (None, None, None));
        evidence.calls[0].ring_taken = Some(false);
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::IpiLost, Confidence::Likely));
        evidence.calls[0].ring_taken = Some(true);
        assert_eq!(diagnose(&evidence).verdicts[0].kind, VerdictKind::Undetermined);
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
