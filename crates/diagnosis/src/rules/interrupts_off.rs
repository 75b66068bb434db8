//! The CPU runs with interrupts disabled, so that it cannot take the IPI; a pending vector proves that it came.
//!
//! The frame that did it is named. Whoever holds the lock on which it spins is the culprit.

use super::Case;
use crate::evidence::Detector;
use crate::frames::Role;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    let hard = case
        .evidence
        .stalls
        .iter()
        .any(|stall| stall.cpu == case.target.cpu && stall.detector == Detector::HardLockup);
    // A hard lockup says it for the whole time, registers only for a moment.
    let disabled =
        case.target.interrupts_enabled == Some(false) || hard && case.target.interrupts_enabled.is_none();
    if !disabled || case.target.polls == Some(true) || case.target.idle == Some(true) {
        return None;
    }
    if case.is_deaf_for_a_moment() {
        return None;
    }
    let cpu = case.target.cpu;
    let pending = case.target.is_pending(case.evidence.ring_vector);
    let confidence = if pending == Some(true) { Confidence::Certain } else { Confidence::Likely };
    let mut verdict = case.verdict(VerdictKind::InterruptsOff, confidence);
    verdict.culprit = Some(case.graph.holder_behind(cpu).unwrap_or(cpu));
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
    let spins = case.reason().is_some_and(|reason| reason.role == Some(Role::SpinLock));
    if spins && case.graph.holder_behind(cpu).is_none() {
        verdict.missing.push(format!("who holds the lock on which CPU {cpu} spins"));
    }
    if case.target.function.is_none() {
        verdict.missing.push(format!("where CPU {cpu} runs: its instruction pointer and stack"));
    }
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{Detector, Frame, LockEvidence, StallEvidence};
    use crate::samples::{RING, waits_for_cpu_0, working};
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
    fn whoever_holds_the_lock_is_the_culprit_and_an_unknown_holder_is_missing() {
        let mut evidence = waits_for_cpu_0(|cpu| {
            cpu.interrupts_enabled = Some(false);
            cpu.stack = ["native_queued_spin_lock_slowpath", "_raw_spin_lock_irqsave", "eth_poll"]
                .map(Frame::of)
                .into();
        });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.culprit, verdict.function.as_deref()), (Some(0), Some("eth_poll")));
        assert!(verdict.missing.iter().any(|missing| missing.contains("who holds the lock")), "{verdict:#?}");
        evidence.cpus.push(working(2));
        evidence.locks.push(LockEvidence {
            name: "eth_lock".into(),
            waiters: vec![0],
            holder: Some(2),
            ..LockEvidence::default()
        });
        let verdicts = diagnose(&evidence).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!((verdicts[0].kind, verdicts[0].cpu), (VerdictKind::InterruptsOff, Some(0)));
        assert_eq!((verdicts[0].culprit, &verdicts[0].waiters), (Some(2), &vec![1]));
    }

    #[test]
    fn a_hard_lockup_says_so_without_registers() {
        let mut evidence = waits_for_cpu_0(|cpu| cpu.interrupts_enabled = None);
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::InterruptsOff);
        evidence.stalls.push(StallEvidence { cpu: 0, detector: Detector::HardLockup, nanos: None });
        assert_eq!(diagnose(&evidence).verdicts[0].kind, VerdictKind::InterruptsOff);
    }

    #[test]
    fn a_cpu_that_sleeps_with_interrupts_disabled_would_be_woken_by_one() {
        let evidence = waits_for_cpu_0(|cpu| (cpu.interrupts_enabled, cpu.idle) = (Some(false), Some(true)));
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::InterruptsOff);
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
