//! A handler wrote an end of interrupt that was not its own: it cleared another handler's in-service bit (report 003).
//!
//! Nobody waits because of it, so it is no case of a CPU that others wait for. Ends with nothing in service do nothing and are
//! no finding.

use crate::evidence::{MachineEvidence, StrayEnd};
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

pub(super) fn describe(evidence: &MachineEvidence, stray: &StrayEnd) -> Verdict {
    let StrayEnd { cpu, by, vector, times, let_in, function } = stray;
    let source = format!("{}: trace", evidence.origin);
    let fact = |what: String, value: String| Fact::new(what, value, source.clone());
    Verdict {
        kind: VerdictKind::StrayEoi,
        cpu: Some(*cpu),
        culprit: Some(*cpu),
        waiters: vec![],
        function: function.clone(),
        confidence: Confidence::Certain,
        evidence: vec![
            fact(
                format!(
                    "ends of interrupt by the handler of {by:#04x} that cleared the in-service bit of {vector:#04x}"
                ),
                times.to_string(),
            ),
            fact(format!("interrupts taken that {vector:#04x} would have held back"), let_in.to_string()),
        ],
        missing: if function.is_none() {
            vec![format!("the function that handles {by:#04x}")]
        } else {
            vec![]
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::StrayEnd;
    use crate::samples::machine;
    use crate::verdict::{Confidence, VerdictKind};

    #[test]
    fn an_end_that_cleared_another_handlers_bit_is_a_finding_although_nobody_waits() {
        let mut evidence = machine(2);
        evidence.stray_ends.push(StrayEnd {
            cpu: 0,
            by: 0x30,
            vector: 0x41,
            times: 3,
            let_in: 1,
            function: Some("apic_ack_edge".into()),
        });
        let diagnosis = diagnose(&evidence);
        assert!(!diagnosis.is_healthy());
        let verdict = &diagnosis.verdicts[0];
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::StrayEoi, Confidence::Certain));
        assert_eq!((verdict.cpu, verdict.function.as_deref()), (Some(0), Some("apic_ack_edge")));
        assert!(
            verdict.evidence[0].what.contains("0x30") && verdict.evidence[0].value == "3",
            "{verdict:#?}"
        );
    }

    #[test]
    fn without_one_the_machine_is_healthy() {
        assert!(diagnose(&machine(2)).is_healthy());
    }
}
