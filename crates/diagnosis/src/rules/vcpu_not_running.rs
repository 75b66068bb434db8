//! The hypervisor does not run the virtual CPU: it says so, or the CPU answers nothing and there is a hypervisor.
//!
//! Asked before everything that looks at the CPU itself: a CPU that is not run loses no interrupt and disables none.

use super::Case;
use super::case::{ago, duration};
use crate::verdict::{Confidence, Verdict, VerdictKind};

pub(super) fn recognise(case: &Case<'_>) -> Option<Verdict> {
    let (cpu, target) = (case.target.cpu, &case.target);
    let preempted = target.preempted == Some(true);
    // A machine that is paused as a whole says so of every CPU.
    let others_run =
        case.evidence.cpus.iter().any(|other| other.cpu != cpu && other.preempted == Some(false));
    let silent = case.answered() == Some(false);
    // Who answers no NMI and serves later was not run for a while. On hardware that would be its firmware's doing.
    let came_back = case.calls.iter().any(|call| call.ended.is_some());
    let confidence = match (preempted && others_run, silent, case.evidence.hypervisor.is_some()) {
        (true, true, _) => Confidence::Certain,
        (true, false, _) | (false, true, true) => Confidence::Likely,
        (false, true, false) if came_back => Confidence::Possible,
        _ => return None,
    };
    let mut verdict = case.verdict(VerdictKind::VcpuNotRunning, confidence);
    verdict.culprit = Some(cpu);
    verdict.function.clone_from(&target.function);
    if let Some(preempted) = target.preempted {
        let value = if preempted { "taken away by the hypervisor" } else { "running" };
        verdict.evidence.push(case.fact(format!("virtual CPU {cpu}"), value, "steal time"));
    }
    if let Some(hypervisor) = &case.evidence.hypervisor {
        verdict.evidence.push(case.fact("hypervisor", hypervisor.clone(), "kernel"));
    }
    if case.answered() == Some(false) {
        verdict.evidence.push(case.fact(format!("NMI to CPU {cpu}"), "not answered", "probe"));
    }
    if let Some(nanos) = target.stolen_nanos {
        verdict.evidence.push(case.fact(
            format!("time stolen from CPU {cpu}"),
            duration(nanos),
            "steal time",
        ));
    }
    if let Some(nanos) = target.since_progress_nanos {
        verdict.evidence.push(case.fact(format!("CPU {cpu} last made progress"), ago(nanos), "trace"));
    }
    verdict.evidence.extend(case.erratum_facts());
    if case.evidence.hypervisor.is_none() {
        let what = "whether there is a hypervisor; if there is none, whether firmware takes CPUs away (SMIs)";
        verdict.missing.push(what.into());
    }
    verdict
        .missing
        .push(format!("what the hypervisor says of virtual CPU {cpu}: its thread, and when it last ran"));
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::errata::CpuModel;
    use crate::evidence::Ended;
    use crate::samples::waits_for_cpu_0;
    use crate::verdict::{Confidence, VerdictKind};

    #[test]
    fn a_cpu_that_the_hypervisor_has_taken_away_while_another_runs_is_not_running() {
        let mut evidence = waits_for_cpu_0(|cpu| cpu.preempted = Some(true));
        evidence.cpus[1].preempted = Some(false);
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::VcpuNotRunning, Confidence::Likely));
        evidence.cpus[0].answered_probe = Some(false);
        evidence.hypervisor = Some("KVM".into());
        assert_eq!(diagnose(&evidence).verdicts[0].confidence, Confidence::Certain);
    }

    #[test]
    fn a_silent_cpu_under_a_hypervisor_is_not_called_dead_and_an_erratum_is_a_possible_cause() {
        let mut evidence = waits_for_cpu_0(|cpu| cpu.answered_probe = Some(false));
        evidence.hypervisor = Some("KVM".into());
        evidence.cpu_model = Some(CpuModel {
            vendor: "AuthenticAMD".into(),
            family: 0x17,
            model: 0x31,
            ..CpuModel::default()
        });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::VcpuNotRunning, Confidence::Likely));
        assert!(verdict.evidence.iter().any(|fact| fact.value.starts_with("AMD 1235")), "{verdict:#?}");
    }

    #[test]
    fn a_silent_cpu_that_came_back_was_not_run_for_a_while() {
        let mut evidence = waits_for_cpu_0(|cpu| cpu.answered_probe = Some(false));
        evidence.calls[0].ended = Some(Ended { after_nanos: None, rung_again: true });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::VcpuNotRunning, Confidence::Possible));
    }

    #[test]
    fn a_machine_that_is_paused_as_a_whole_says_nothing_and_hardware_has_no_virtual_cpus() {
        let mut evidence = waits_for_cpu_0(|cpu| cpu.preempted = Some(true));
        evidence.cpus[1].preempted = Some(true);
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::VcpuNotRunning);
        let evidence = waits_for_cpu_0(|cpu| cpu.answered_probe = Some(false));
        assert_ne!(diagnose(&evidence).verdicts[0].kind, VerdictKind::VcpuNotRunning);
    }
}
