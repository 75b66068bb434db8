//! A CPU waits for a call, and nothing says for whom: neither a descriptor nor a CPU that could not take one.

use super::Case;
use super::case::duration;
use crate::evidence::CpuEvidence;
use crate::text::ranges;
use crate::verdict::{Confidence, Verdict, VerdictKind};

/// So many of those who wait are described one by one.
const MOST: usize = 3;

/// One verdict for all who wait like that: they may well wait for the same CPU. There is at least one.
pub(super) fn describe(waiters: &[Case<'_>]) -> Option<Verdict> {
    let first = waiters.first()?;
    let mut verdict = first.verdict(VerdictKind::Undetermined, Confidence::Possible);
    verdict.cpu = None;
    for (case, behind) in waiters.iter().map(|case| (case, case.graph.waiters_of(case.target.cpu))) {
        for cpu in core::iter::once(case.target.cpu).chain(behind) {
            if !verdict.waiters.contains(&cpu) {
                verdict.waiters.push(cpu);
            }
        }
    }
    verdict.waiters.sort_unstable();
    verdict.function = first.target.wait.as_ref().and_then(|wait| wait.function.clone());
    for case in waiters.iter().take(MOST) {
        let cpu = case.target.cpu;
        if let Some(wait) = &case.target.wait {
            let function = wait.function.as_deref().unwrap_or("an unknown function");
            let length = wait.nanos.map_or_else(String::new, |nanos| format!(", for {}", duration(nanos)));
            verdict.evidence.push(case.fact(
                format!("CPU {cpu} waits in"),
                format!("{function}{length}"),
                "stack",
            ));
        }
        verdict.evidence.extend(case.cpu_facts());
    }
    if let Some(more @ 1..) = waiters.len().checked_sub(MOST) {
        verdict.evidence.push(first.fact("further CPUs that wait like that", more.to_string(), "stack"));
    }
    let waits = |cpu: u32| waiters.iter().any(|case| case.target.cpu == cpu);
    let others = || first.evidence.cpus.iter().filter(|other| !waits(other.cpu));
    for other in others().filter(|other| other.idle != Some(true)) {
        if let Some(function) = &other.function {
            let enabled = match other.interrupts_enabled {
                Some(true) => ", interrupts enabled",
                Some(false) => ", interrupts disabled",
                None => "",
            };
            let what = format!("CPU {} was seen in", other.cpu);
            verdict.evidence.push(first.fact(what, format!("{function}{enabled}"), "stack"));
        }
    }
    let is_silent = |other: &&CpuEvidence| other.function.is_none() && other.interrupts_enabled.is_none();
    let silent: Vec<u32> = others().filter(is_silent).map(|other| other.cpu).collect();
    if !silent.is_empty() {
        verdict.evidence.push(first.fact("CPUs of which nothing was heard", ranges(&silent), "stack"));
    }
    verdict.evidence.extend(first.erratum_facts());
    let cpus = ranges(&waiters.iter().map(|case| case.target.cpu).collect::<Vec<_>>());
    verdict.missing.push(format!(
        "for which CPU CPU {cpus} waits: the descriptor of the call, or which targets have run it"
    ));
    if !silent.is_empty() || first.evidence.cpus.len() <= waiters.len() {
        verdict.missing.push("where the other CPUs run: their back traces and flags".into());
    }
    verdict.missing.push(format!("IRR of the targets (is {} pending?)", first.vector()));
    Some(verdict)
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{Detector, MachineEvidence, StallEvidence, WaitEvidence};
    use crate::samples::machine;
    use crate::verdict::{Confidence, VerdictKind};

    /// CPU 2 waits for somebody.
    fn waits_for_somebody() -> MachineEvidence {
        let mut evidence = machine(3);
        let function = Some("smp_call_function_many_cond".into());
        evidence.cpus[2].wait = Some(WaitEvidence { function, ..WaitEvidence::default() });
        evidence
    }

    #[test]
    fn a_wait_for_nobody_in_particular_is_undetermined_and_says_what_would_tell() {
        let verdicts = diagnose(&waits_for_somebody()).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!((verdicts[0].kind, verdicts[0].cpu), (VerdictKind::Undetermined, None));
        assert_eq!(verdicts[0].waiters, [2]);
        assert_eq!(verdicts[0].function.as_deref(), Some("smp_call_function_many_cond"));
        assert!(verdicts[0].missing[0].contains("for which CPU"));
    }

    #[test]
    fn all_who_wait_like_that_are_one_verdict_which_names_the_cpus_that_say_nothing() {
        let mut evidence = machine(16);
        for cpu in &mut evidence.cpus[2..] {
            cpu.wait = Some(WaitEvidence::default());
        }
        for cpu in &mut evidence.cpus[..2] {
            cpu.interrupts_enabled = None;
        }
        let verdicts = diagnose(&evidence).verdicts;
        assert_eq!(verdicts.len(), 1, "{verdicts:#?}");
        assert_eq!(verdicts[0].waiters, (2..16).collect::<Vec<_>>());
        let silent = verdicts[0].evidence.iter().find(|fact| fact.what.contains("nothing was heard"));
        assert_eq!(silent.map(|fact| fact.value.as_str()), Some("0-1"));
    }

    #[test]
    fn the_only_cpu_that_could_not_take_a_call_is_likely_the_one_and_of_two_each_is_possible() {
        let mut evidence = waits_for_somebody();
        evidence.cpus[0].interrupts_enabled = Some(false);
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::InterruptsOff, Confidence::Possible));
        evidence.stalls.push(StallEvidence { cpu: 0, detector: Detector::HardLockup, nanos: None });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::InterruptsOff, Confidence::Likely));
        assert_eq!((verdict.cpu, verdict.waiters), (Some(0), vec![2]));
        evidence.cpus[1].interrupts_enabled = Some(false);
        let verdicts = diagnose(&evidence).verdicts;
        assert_eq!(verdicts.len(), 2);
        assert!(verdicts.iter().all(|verdict| verdict.confidence == Confidence::Possible), "{verdicts:#?}");
    }

    #[test]
    fn an_idle_cpu_is_not_suspected_and_an_unseen_one_makes_it_less_sure() {
        let mut evidence = waits_for_somebody();
        (evidence.cpus[0].interrupts_enabled, evidence.cpus[0].idle) = (Some(false), Some(true));
        assert_eq!(diagnose(&evidence).verdicts[0].cpu, None);
        let mut evidence = waits_for_somebody();
        evidence.cpus[0].interrupts_enabled = Some(false);
        evidence.cpus[1].interrupts_enabled = None;
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.cpu, verdict.confidence), (Some(0), Confidence::Possible));
    }

    #[test]
    fn a_short_wait_is_none() {
        let mut evidence = waits_for_somebody();
        evidence.cpus[2].wait.as_mut().expect("waits").nanos = Some(5);
        assert!(diagnose(&evidence).is_healthy());
    }
}
