//! The CPU has taken a call, or is in the handler of rings, and does not come to an end.

use super::Case;
use super::case::duration;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    let cpu = case.target.cpu;
    let overdue = |nanos| case.evidence.is_overdue(nanos);
    let claimed = case.claimed().find(|call| overdue(call.nanos));
    let running = case.target.running.as_ref().filter(|running| overdue(running.nanos));
    let in_handler = case.target.is_in_service(case.evidence.ring_vector) == Some(true);
    let confidence = match (claimed, running) {
        (Some(_), Some(_)) => Confidence::Certain,
        (Some(_), None) | (None, Some(_)) => Confidence::Likely,
        // Only the local APIC says so, which a forgotten EOI would explain as well.
        (None, None) if in_handler => Confidence::Possible,
        (None, None) => return None,
    };
    let mut verdict = case.verdict(VerdictKind::LongHandler, confidence);
    verdict.culprit = Some(cpu);
    let running_function = running.and_then(|running| running.function.clone());
    let claimed_function = claimed.and_then(|call| call.function.clone());
    verdict.function = running_function.or(claimed_function).or_else(|| case.target.function.clone());
    if let Some(running) = running {
        let what = format!("CPU {cpu} runs");
        let whose = running.caller.map_or_else(String::new, |caller| format!(" for CPU {caller}"));
        let length = running.nanos.map_or_else(String::new, |nanos| format!(", for {}", duration(nanos)));
        let function = running.function.as_deref().unwrap_or("an unknown function");
        verdict.evidence.push(case.fact(what, format!("{function}{whose}{length}"), "stack"));
    }
    verdict.evidence.extend(case.cpu_facts());
    verdict.evidence.extend(case.apic_facts());
    if verdict.function.is_none() {
        verdict.missing.push(format!("the stack of CPU {cpu}"));
    }
    if claimed.is_none() {
        verdict.missing.push(format!("which call CPU {cpu} has taken"));
    }
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::samples::{RING, machine, running_call, runs_call_of_cpu_1, waiting_call, waits_for_cpu_0};
    use crate::verdict::{Confidence, VerdictKind};

    #[test]
    fn a_call_that_was_taken_and_does_not_end_names_its_function() {
        let verdict = diagnose(&runs_call_of_cpu_1()).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::LongHandler, Confidence::Certain));
        assert_eq!(verdict.function.as_deref(), Some("slow_console"));
        assert_eq!((verdict.culprit, verdict.waiters), (Some(0), vec![1]));
    }

    #[test]
    fn without_a_stack_it_is_likely_and_an_in_service_bit_alone_makes_it_possible() {
        let mut evidence = machine(2);
        evidence.calls.push(running_call(1, 0));
        assert_eq!(diagnose(&evidence).verdicts[0].confidence, Confidence::Likely);
        let evidence = waits_for_cpu_0(|cpu| cpu.in_service = Some(vec![RING]));
        let verdict = &diagnose(&evidence).verdicts[0];
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::LongHandler, Confidence::Possible));
    }

    #[test]
    fn a_call_that_was_just_taken_is_normal() {
        let mut evidence = machine(2);
        let mut call = running_call(1, 0);
        call.nanos = Some(10);
        evidence.calls.push(call);
        assert!(diagnose(&evidence).is_healthy());
        evidence.calls.push(waiting_call(1, 0));
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::LongHandler);
    }
}
