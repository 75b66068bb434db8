//! A call or post lies with an offline CPU (report 001): it will never look. Or it lies with a CPU that was offline meanwhile:
//! the interrupt that was sent for it went with the reset, and later senders trust the queue and send none.

use super::Case;
use super::case::ago;
use crate::evidence::CallEvidence;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    if case.target.dying == Some(true) {
        return is_dying(case);
    }
    if case.target.online? { is_back(case) } else { is_offline(case) }
}

/// It is on its way down with calls in its queue: a race of the sender with hotplug. It may still look once more.
fn is_dying(case: &Case<'_>) -> Option<Verdict> {
    case.unclaimed().next()?;
    let cpu = case.target.cpu;
    let mut verdict = case.verdict(VerdictKind::OfflineQueue, Confidence::Likely);
    verdict.evidence.push(case.fact(format!("CPU {cpu}"), "going offline", "dying mask"));
    verdict.evidence.extend(case.cpu_facts());
    verdict.missing.push(format!("whether CPU {cpu} empties its queue before it is gone"));
    Some(verdict)
}

fn is_offline(case: &Case<'_>) -> Option<Verdict> {
    case.unclaimed().next()?;
    let mut verdict = case.verdict(VerdictKind::OfflineQueue, Confidence::Certain);
    verdict.evidence.push(case.fact(format!("CPU {}", case.target.cpu), "offline", "online mask"));
    Some(verdict)
}

/// It was started again, and what was made before lies there, although it could take it.
fn is_back(case: &Case<'_>) -> Option<Verdict> {
    let (cpu, target, vector) = (case.target.cpu, &case.target, case.evidence.ring_vector);
    let started = target.since_start_nanos?;
    let is_left = |call: &&CallEvidence| call.nanos.is_some_and(|nanos| nanos > started);
    let left = case.unclaimed().filter(is_left).count();
    let (pending, in_service) = (target.is_pending(vector), target.is_in_service(vector));
    let will_look = target.polls == Some(true) || pending == Some(true) || in_service == Some(true);
    if left == 0 || will_look || target.interrupts_enabled == Some(false) {
        return None;
    }
    let absent = pending == Some(false) && in_service == Some(false);
    let sure = absent && target.interrupts_enabled == Some(true);
    let confidence = if sure { Confidence::Certain } else { Confidence::Likely };
    let mut verdict = case.verdict(VerdictKind::OfflineQueue, confidence);
    verdict.evidence.push(case.fact(format!("CPU {cpu} was reset and started"), ago(started), "trace"));
    let what = format!("calls and posts to CPU {cpu} that are older and not taken");
    verdict.evidence.push(case.fact(what, left.to_string(), "mailbox"));
    verdict.evidence.extend(case.cpu_facts());
    verdict.evidence.extend(case.apic_facts());
    verdict.evidence.extend(case.count_facts());
    let unknown = [
        (target.interrupts_enabled.is_none(), format!("whether interrupts of CPU {cpu} are enabled")),
        (pending.is_none(), format!("IRR of CPU {cpu} (is {} pending?)", case.vector())),
        (in_service.is_none(), format!("ISR of CPU {cpu} (is {} in service?)", case.vector())),
    ];
    verdict.missing = unknown.into_iter().filter_map(|(unknown, what)| unknown.then_some(what)).collect();
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{CpuEvidence, MachineEvidence};
    use crate::samples::{RING, machine, running_call, waiting_call, waits_for_cpu_0};
    use crate::verdict::{Confidence, VerdictKind};

    #[test]
    fn a_call_to_a_cpu_on_its_way_down_is_a_race_with_hotplug_unless_its_queue_is_empty() {
        let mut evidence = waits_for_cpu_0(|cpu| cpu.dying = Some(true));
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::OfflineQueue, Confidence::Likely));
        evidence.calls = vec![running_call(1, 0)];
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::OfflineQueue);
    }

    #[test]
    fn posts_with_an_offline_cpu_are_found_although_nobody_waits_and_however_young() {
        let mut evidence = machine(2);
        evidence.cpus[0].online = Some(false);
        for _ in 0..108 {
            let mut post = waiting_call(1, 0);
            (post.waited, post.nanos) = (false, Some(1));
            evidence.calls.push(post);
        }
        let verdict = &diagnose(&evidence).verdicts[0];
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::OfflineQueue, Confidence::Certain));
        assert!(verdict.waiters.is_empty());
        assert!(verdict.evidence.iter().any(|fact| fact.value == "105"), "{verdict:#?}");
    }

    #[test]
    fn an_online_cpu_and_an_empty_mailbox_of_an_offline_one_are_no_case() {
        let evidence = waits_for_cpu_0(|_| {});
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::OfflineQueue);
        let mut evidence = machine(2);
        evidence.cpus[0].online = Some(false);
        assert!(diagnose(&evidence).is_healthy());
        evidence.calls.push(running_call(1, 0));
        assert_eq!(diagnose(&evidence).verdicts[0].kind, VerdictKind::LongHandler);
    }

    /// CPU 1 waits for CPU 0, which was started 5 s ago, behind a post that was made 10 s ago.
    fn came_back(change: impl FnOnce(&mut CpuEvidence)) -> MachineEvidence {
        let mut evidence = waits_for_cpu_0(|cpu| cpu.since_start_nanos = Some(5_000_000_000));
        let mut post = waiting_call(1, 0);
        (post.waited, post.caller) = (false, None);
        evidence.calls.insert(0, post);
        evidence.calls[1].nanos = Some(4_000_000_000);
        change(&mut evidence.cpus[0]);
        evidence
    }

    #[test]
    fn a_post_from_before_a_cpu_came_back_blocks_the_call_behind_it() {
        let verdict = diagnose(&came_back(|_| {})).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::OfflineQueue, Confidence::Certain));
        assert_eq!((verdict.cpu, verdict.waiters, verdict.culprit), (Some(0), vec![1], None));
        assert!(verdict.missing.is_empty(), "{:?}", verdict.missing);
        let unsure = diagnose(&came_back(|cpu| cpu.pending = None)).verdicts.remove(0);
        assert_eq!((unsure.kind, unsure.confidence), (VerdictKind::OfflineQueue, Confidence::Likely));
        assert_eq!(unsure.missing.len(), 1);
    }

    #[test]
    fn a_cpu_that_will_look_cannot_look_or_has_nothing_older_is_not_blamed_on_its_absence() {
        let cases: [fn(&mut CpuEvidence); 6] = [
            |cpu| cpu.since_start_nanos = None,
            |cpu| cpu.since_start_nanos = Some(20_000_000_000),
            |cpu| cpu.pending = Some(vec![RING]),
            |cpu| cpu.in_service = Some(vec![RING]),
            |cpu| cpu.polls = Some(true),
            |cpu| cpu.interrupts_enabled = Some(false),
        ];
        for change in cases {
            let verdict = diagnose(&came_back(change)).verdicts.remove(0);
            assert_ne!(verdict.kind, VerdictKind::OfflineQueue);
        }
    }
}
