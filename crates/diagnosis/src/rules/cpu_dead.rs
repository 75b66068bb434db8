//! The CPU did not answer an NMI, which no disabled interrupt explains.

use super::Case;
use super::case::ago;
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    if case.answered()? {
        return None;
    }
    let cpu = case.target.cpu;
    let mut verdict = case.verdict(VerdictKind::CpuDead, Confidence::Likely);
    verdict.culprit = Some(cpu);
    verdict.function.clone_from(&case.target.function);
    verdict.evidence.push(case.fact(format!("NMI to CPU {cpu}"), "not answered", "probe"));
    match case.target.since_progress_nanos {
        Some(nanos) => {
            verdict.evidence.push(case.fact(format!("CPU {cpu} last made progress"), ago(nanos), "trace"));
        }
        None => verdict.missing.push(format!("when CPU {cpu} last made progress")),
    }
    if case.evidence.panic.is_some() && case.target.online.is_none() {
        verdict.missing.push(format!("whether CPU {cpu} was online at the crash"));
    }
    verdict.missing.push(format!("whether CPU {cpu} is scheduled (hypervisor) or stopped (hardware)"));
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::samples::waits_for_cpu_0;
    use crate::verdict::VerdictKind;

    #[test]
    fn a_cpu_that_does_not_answer_an_nmi_is_dead_even_if_its_interrupts_are_off() {
        let evidence = waits_for_cpu_0(|cpu| {
            cpu.answered_probe = Some(false);
            cpu.interrupts_enabled = Some(false);
        });
        let verdict = &diagnose(&evidence).verdicts[0];
        assert_eq!((verdict.kind, verdict.culprit), (VerdictKind::CpuDead, Some(0)));
        assert_eq!(verdict.missing.len(), 2);
    }

    #[test]
    fn a_cpu_that_was_never_probed_is_not_called_dead() {
        for answered in [None, Some(true)] {
            let evidence = waits_for_cpu_0(|cpu| cpu.answered_probe = answered);
            assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::CpuDead);
        }
    }
}
