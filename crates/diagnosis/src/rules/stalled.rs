//! The kernel says that a CPU is stuck, and no call is known that would explain it.
//!
//! A hard lockup is interrupts off whether anybody waits or not. The others are no matter of calls as far as the evidence goes:
//! a long list, a loop, a lock. That they look like a lost call at first is what this rule is for.

use super::Case;
use crate::evidence::{Detector, StallEvidence};
use crate::frames::Role;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn describe(case: &Case<'_>, stalls: &[&StallEvidence]) -> Verdict {
    let (cpu, target) = (case.target.cpu, &case.target);
    let hard = stalls.iter().any(|stall| stall.detector == Detector::HardLockup);
    let disabled = target.interrupts_enabled == Some(false);
    let (kind, confidence) = match (hard, disabled) {
        (true, true) => (VerdictKind::InterruptsOff, Confidence::Certain),
        (true, false) => (VerdictKind::InterruptsOff, Confidence::Likely),
        (false, _) => (VerdictKind::Undetermined, Confidence::Possible),
    };
    let mut verdict = case.verdict(kind, confidence);
    let holder = case.graph.holder_behind(cpu);
    verdict.culprit = (kind == VerdictKind::InterruptsOff).then_some(holder.unwrap_or(cpu));
    let spins = case.reason().is_some_and(|reason| reason.role == Some(Role::SpinLock));
    if spins && holder.is_none() {
        verdict.missing.push(format!("who holds the lock on which CPU {cpu} spins"));
    }
    verdict.function.clone_from(&target.function);
    verdict.evidence.extend(case.cpu_facts());
    if kind == VerdictKind::Undetermined {
        let value = "none is known: it looks busy with something of its own";
        verdict.evidence.push(case.fact(
            format!("call that CPU {cpu} is waited for, or waits for"),
            value,
            "calls",
        ));
    }
    if target.function.is_none() {
        verdict.missing.push(format!("where CPU {cpu} runs: its instruction pointer and stack"));
    }
    if hard && target.interrupts_enabled.is_none() {
        verdict.missing.push(format!("the flags of CPU {cpu} (are its interrupts disabled?)"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{Detector, MachineEvidence, StallEvidence};
    use crate::samples::{machine, waits_for_cpu_0};
    use crate::verdict::{Confidence, VerdictKind};

    fn stalled(detector: Detector) -> MachineEvidence {
        let mut evidence = machine(2);
        evidence.cpus[1].function = Some("remove_migration_pte".into());
        evidence.stalls.push(StallEvidence { cpu: 1, detector, nanos: Some(22_000_000_000) });
        evidence
    }

    #[test]
    fn a_soft_lockup_in_which_no_call_takes_part_is_not_called_a_lost_one() {
        let verdicts = diagnose(&stalled(Detector::SoftLockup)).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!((verdicts[0].kind, verdicts[0].cpu), (VerdictKind::Undetermined, Some(1)));
        assert_eq!(verdicts[0].function.as_deref(), Some("remove_migration_pte"));
    }

    #[test]
    fn a_hard_lockup_is_interrupts_off_even_if_nobody_waits() {
        let mut evidence = stalled(Detector::HardLockup);
        evidence.cpus[1].interrupts_enabled = Some(false);
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::InterruptsOff, Confidence::Certain));
        assert_eq!(verdict.culprit, Some(1));
    }

    #[test]
    fn a_stall_of_a_cpu_that_waits_is_explained_by_what_it_waits_for() {
        let mut evidence = waits_for_cpu_0(|_| {});
        evidence.stalls.push(StallEvidence { cpu: 1, detector: Detector::SoftLockup, nanos: None });
        let verdicts = diagnose(&evidence).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!(verdicts[0].kind, VerdictKind::IpiLost);
    }
}
