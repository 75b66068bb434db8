//! A call or post lies with an offline CPU (report 001): it will never look, and later senders may trust the queue.

use super::Case;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    if case.target.online? || case.unclaimed().next().is_none() {
        return None;
    }
    let mut verdict = case.verdict(VerdictKind::OfflineQueue, Confidence::Certain);
    verdict.evidence.push(case.fact(format!("CPU {}", case.target.cpu), "offline", "online mask"));
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::samples::{machine, running_call, waiting_call, waits_for_cpu_0};
    use crate::verdict::{Confidence, VerdictKind};

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
}
