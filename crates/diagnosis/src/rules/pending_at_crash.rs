//! Interrupts were pending or in service when a kernel crashed, and the capture kernel did not get rid of them before it
//! had handlers (report 004).
//!
//! Nobody waits because of it, so it is no case of a CPU that others wait for. What was taken by inert gates and what was
//! ended can do nothing any more and is no finding.

use crate::evidence::{MachineEvidence, PendingAtCrash};
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

pub(super) fn recognise(evidence: &MachineEvidence, held: &PendingAtCrash) -> Option<Verdict> {
    let PendingAtCrash { cpu, requested, in_service, drained, taken, function } = held;
    let nothing = requested.is_empty() && in_service.is_empty();
    if nothing || *drained == Some(true) && taken.is_none() {
        return None;
    }
    let fact = |what: String, value: String, place: &str| {
        Fact::new(what, value, format!("{}: {place}", evidence.origin))
    };
    let mut facts = vec![
        fact(format!("IRR of CPU {cpu} at the crash"), listed(requested), "local APIC"),
        fact(format!("ISR of CPU {cpu} at the crash"), listed(in_service), "local APIC"),
    ];
    if let Some(vector) = taken {
        facts.push(fact(
            "first of them that a handler of the capture kernel took".into(),
            format!("{vector:#04x}"),
            "trace",
        ));
    }
    Some(Verdict {
        kind: VerdictKind::PendingAtCrash,
        cpu: Some(*cpu),
        culprit: None,
        waiters: vec![],
        function: function.clone(),
        confidence: if taken.is_some() || *drained == Some(false) {
            Confidence::Certain
        } else {
            Confidence::Possible
        },
        evidence: facts,
        missing: if taken.is_none() && drained.is_none() {
            vec!["what the capture kernel did with them before it had handlers".into()]
        } else {
            vec![]
        },
    })
}

fn listed(vectors: &[u8]) -> String {
    let vectors: Vec<String> = vectors.iter().map(|vector| format!("{vector:#04x}")).collect();
    if vectors.is_empty() { "empty".into() } else { vectors.join(" ") }
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::PendingAtCrash;
    use crate::samples::machine;
    use crate::verdict::{Confidence, Verdict, VerdictKind};

    /// The verdict on a machine whose CPU 0 held the call-function vector at its crash.
    fn verdict(change: impl FnOnce(&mut PendingAtCrash)) -> Verdict {
        let mut evidence = machine(2);
        let mut held = PendingAtCrash { requested: vec![0x31, 0xfb], ..PendingAtCrash::default() };
        change(&mut held);
        evidence.pending_at_crash.push(held);
        diagnose(&evidence).verdicts.remove(0)
    }

    #[test]
    fn what_comes_to_a_handler_of_the_capture_kernel_is_certain() {
        let found = verdict(|held| {
            (held.drained, held.taken) = (Some(false), Some(0xfb));
            held.function = Some("smp_call_function_interrupt".into());
        });
        assert_eq!((found.kind, found.cpu), (VerdictKind::PendingAtCrash, Some(0)));
        assert_eq!(found.confidence, Confidence::Certain);
        assert_eq!(found.evidence[0].value, "0x31 0xfb");
        assert_eq!(found.evidence[1].value, "empty");
        assert_eq!(found.function.as_deref(), Some("smp_call_function_interrupt"));
    }

    #[test]
    fn a_vector_in_service_that_was_not_ended_is_certain_too() {
        let found = verdict(|held| {
            (held.requested, held.in_service, held.drained) = (vec![], vec![0xa9], Some(false));
        });
        assert_eq!((found.kind, found.confidence), (VerdictKind::PendingAtCrash, Confidence::Certain));
    }

    #[test]
    fn if_nothing_is_known_of_the_capture_kernel_it_is_possible_and_says_what_is_missing() {
        let found = verdict(|_| {});
        assert_eq!((found.kind, found.confidence), (VerdictKind::PendingAtCrash, Confidence::Possible));
        assert_eq!(found.missing.len(), 1);
    }

    #[test]
    fn what_was_drained_and_what_was_not_there_is_no_finding() {
        assert_eq!(verdict(|held| held.drained = Some(true)).kind, VerdictKind::Healthy);
        let nothing = |held: &mut PendingAtCrash| (held.requested, held.drained) = (vec![], Some(false));
        assert_eq!(verdict(nothing).kind, VerdictKind::Healthy);
    }
}
