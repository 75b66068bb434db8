//! Nobody waits for longer than is normal. Waiting for one call after the other is no standstill either.

use crate::evidence::{CallEvidence, CallState, CpuEvidence, MachineEvidence};
use crate::rules::case::duration;
use crate::text::ranges;
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

pub(super) fn describe(evidence: &MachineEvidence, calls: &[CallEvidence]) -> Verdict {
    let unfinished = calls.iter().filter(|call| call.state != CallState::Finished).count();
    // A CPU of which only the number is known may hang as well as not.
    let is_known = |cpu: &CpuEvidence| *cpu != CpuEvidence::unknown(cpu.cpu);
    let known = !evidence.cpus.is_empty() && evidence.cpus.iter().all(is_known);
    let waiting = evidence.cpus.iter().filter(|cpu| cpu.wait.is_some()).count();
    let fact = |what: String, value: String| Fact::new(what, value, evidence.origin.clone());
    let mut facts = vec![
        fact("unfinished calls, none of them overdue".into(), unfinished.to_string()),
        fact("waiting CPUs, none of them for long".into(), waiting.to_string()),
    ];
    for (cpu, wait) in evidence.cpus.iter().filter_map(|cpu| Some((cpu.cpu, cpu.wait.as_ref()?))) {
        if wait.renewed == Some(true) {
            let value = "it waited for another call when it was looked at again";
            facts.push(fact(format!("CPU {cpu} is busy, not stuck"), value.into()));
        } else if let Some(most) = wait.nanos_at_most.filter(|_| wait.nanos.is_none()) {
            facts.push(fact(format!("wait of CPU {cpu}"), format!("not longer than {}", duration(most))));
        }
    }
    if let Some(panic) = &evidence.panic {
        let reason = panic.reason.as_deref().unwrap_or("reason unknown");
        let place = panic.cpu.map_or_else(String::new, |cpu| format!(" of CPU {cpu}"));
        facts.push(fact(format!("panic{place}, not explained by any call"), reason.into()));
    }
    let mut missing = Vec::new();
    if !known {
        let unknown: Vec<u32> =
            evidence.cpus.iter().filter(|cpu| !is_known(cpu)).map(|cpu| cpu.cpu).collect();
        missing.push(if unknown.is_empty() {
            "the state of any CPU".into()
        } else {
            format!("the state of CPUs {}", ranges(&unknown))
        });
    }
    if evidence.panic.is_some() && evidence.cpus.iter().all(|cpu| cpu.pending.is_none()) {
        missing.push("what the local APICs held at the crash: no dump has it, only a live machine".into());
    }
    missing.extend(evidence.gaps.iter().cloned());
    let complete = known && evidence.gaps.is_empty();
    Verdict {
        kind: VerdictKind::Healthy,
        cpu: None,
        culprit: None,
        waiters: vec![],
        function: None,
        confidence: if complete { Confidence::Certain } else { Confidence::Possible },
        evidence: facts,
        missing,
    }
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{CpuEvidence, MachineEvidence, Panic, WaitEvidence};
    use crate::samples::{machine, waiting_call};
    use crate::verdict::{Confidence, VerdictKind};

    /// CPU 1 waits for a call to CPU 0 of unknown age.
    fn busy(change: impl FnOnce(&mut WaitEvidence)) -> MachineEvidence {
        let mut evidence = machine(2);
        let mut wait = WaitEvidence { targets: vec![0], ..WaitEvidence::default() };
        change(&mut wait);
        let mut call = waiting_call(1, 0);
        (call.nanos, call.nanos_at_most) = (wait.nanos, wait.nanos_at_most);
        evidence.cpus[1].wait = Some(wait);
        evidence.calls.push(call);
        evidence
    }

    #[test]
    fn a_waiter_on_one_fresh_call_after_the_other_is_healthy() {
        let changes: [fn(&mut WaitEvidence); 2] =
            [|wait| wait.renewed = Some(true), |wait| wait.nanos_at_most = Some(10)];
        for change in changes {
            let diagnosis = diagnose(&busy(change));
            assert!(diagnosis.is_healthy(), "{:#?}", diagnosis.verdicts);
            assert_eq!(diagnosis.verdicts[0].evidence.len(), 3);
        }
    }

    #[test]
    fn a_waiter_of_which_nothing_of_the_kind_is_known_is_not() {
        assert!(!diagnose(&busy(|_| {})).is_healthy());
        assert!(!diagnose(&busy(|wait| wait.nanos_at_most = Some(5_000_000_000))).is_healthy());
    }

    #[test]
    fn what_could_not_be_read_makes_health_no_more_than_possible() {
        let mut evidence = machine(2);
        evidence.gaps.push("the queue of CPU 1: its page was left out of the dump".into());
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::Healthy, Confidence::Possible));
        assert_eq!(verdict.missing, evidence.gaps);
    }

    #[test]
    fn cpus_of_which_only_the_number_is_known_make_health_no_more_than_possible() {
        let mut evidence = machine(3);
        evidence.cpus[2] = CpuEvidence::unknown(2);
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::Healthy, Confidence::Possible));
        assert_eq!(verdict.missing, ["the state of CPUs 2"]);
    }

    #[test]
    fn a_panic_without_calls_is_mentioned() {
        let mut evidence = machine(1);
        evidence.panic = Some(Panic { cpu: Some(0), reason: Some("Attempted to kill init!".into()) });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert!(verdict.evidence.iter().any(|fact| fact.value.contains("kill init")), "{verdict:#?}");
    }
}
