//! The CPU runs with interrupts disabled, so that it cannot take the IPI; a pending vector proves that it came.

use super::Case;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    if case.target.interrupts_enabled? || case.target.polls == Some(true) {
        return None;
    }
    let cpu = case.target.cpu;
    let pending = case.target.is_pending(case.evidence.ring_vector);
    let confidence = if pending == Some(true) { Confidence::Certain } else { Confidence::Likely };
    let mut verdict = case.verdict(VerdictKind::InterruptsOff, confidence);
    verdict.culprit = Some(cpu);
    verdict.function.clone_from(&case.target.function);
    verdict.evidence.extend(case.cpu_facts());
    verdict.evidence.extend(case.apic_facts());
    match pending {
        Some(true) => {}
        Some(false) => {
            let what = format!("{} at CPU {cpu}", case.vector());
            verdict.evidence.push(case.fact(what, "not pending: the ring may be lost as well", "local APIC"));
        }
        None => verdict.missing.push(format!("IRR of CPU {cpu} (is {} pending?)", case.vector())),
    }
    if case.target.function.is_none() {
        verdict.missing.push(format!("where CPU {cpu} runs: its instruction pointer and stack"));
    }
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::samples::{RING, waits_for_cpu_0};
    use crate::verdict::{Confidence, VerdictKind};

    #[test]
    fn disabled_interrupts_and_a_pending_ring_are_certain_and_name_the_function() {
        let evidence = waits_for_cpu_0(|cpu| {
            cpu.interrupts_enabled = Some(false);
            cpu.pending = Some(vec![0x31, RING]);
            cpu.function = Some("serial_write".into());
        });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::InterruptsOff, Confidence::Certain));
        assert_eq!((verdict.culprit, verdict.function.as_deref()), (Some(0), Some("serial_write")));
        assert!(verdict.missing.is_empty(), "{:?}", verdict.missing);
    }

    #[test]
    fn without_the_irr_it_is_likely_and_the_irr_is_named_as_missing() {
        let evidence = waits_for_cpu_0(|cpu| (cpu.interrupts_enabled, cpu.pending) = (Some(false), None));
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::InterruptsOff, Confidence::Likely));
        assert!(verdict.missing[0].contains("IRR of CPU 0"));
    }

    #[test]
    fn enabled_or_unknown_interrupts_are_no_case_and_neither_is_a_cpu_that_polls() {
        for enabled in [Some(true), None] {
            let evidence = waits_for_cpu_0(|cpu| cpu.interrupts_enabled = enabled);
            assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::InterruptsOff);
        }
        let evidence = waits_for_cpu_0(|cpu| (cpu.interrupts_enabled, cpu.polls) = (Some(false), Some(true)));
        assert_eq!(diagnose(&evidence).verdicts[0].kind, VerdictKind::Undetermined);
    }
}
