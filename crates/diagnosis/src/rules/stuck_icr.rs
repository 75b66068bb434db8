//! The interrupt controller of a CPU never became ready to send (report 002).
//!
//! A dispatch takes 20 us at the most under normal conditions (MP specification, B-3). Solution B of the report gives up after
//! a hundred milliseconds: what has lasted that long will not end by itself.

use super::case::ago;
use crate::evidence::{BusyController, MachineEvidence};
use crate::text::ranges;
use crate::verdict::{Confidence, Fact, Verdict, VerdictKind};

/// How long a dispatch takes at the most under normal conditions.
const DISPATCH_NANOS: u64 = 20_000;
/// After this long nothing else is to be expected.
const STUCK_NANOS: u64 = 100_000_000;

pub(super) fn recognise(evidence: &MachineEvidence, busy: &BusyController) -> Option<Verdict> {
    let BusyController { cpu, nanos, still_waits, function, in_nmi_handlers } = busy;
    let confidence = match nanos {
        Some(nanos) if *nanos <= DISPATCH_NANOS => return None,
        Some(nanos) if *nanos >= STUCK_NANOS => Confidence::Certain,
        Some(_) => Confidence::Likely,
        None => Confidence::Possible,
    };
    let fact = |what: String, value: String, where_: &str| {
        Fact::new(what, value, format!("{}: {where_}", evidence.origin))
    };
    let since = nanos.map_or_else(String::new, |nanos| format!(", first seen {}", ago(nanos)));
    let wait = if *still_waits { "it is still in it" } else { "it has given up" };
    let named = function.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let mut facts = vec![
        fact(format!("delivery status of CPU {cpu}"), format!("pending{since}"), "local APIC"),
        fact(format!("wait of CPU {cpu} for it{named}"), wait.into(), "stack"),
    ];
    let mut missing = Vec::new();
    if in_nmi_handlers.is_empty() {
        missing.push("whether the targets of its last command are in their NMI handlers".into());
    } else {
        let cpus = ranges(in_nmi_handlers);
        facts.push(fact("CPUs that do not come out of their NMI handlers".into(), cpus, "registers"));
    }
    if nanos.is_none() {
        missing.push(format!("for how long the delivery status of CPU {cpu} has been pending"));
    }
    Some(Verdict {
        kind: VerdictKind::StuckIcr,
        cpu: Some(*cpu),
        culprit: None,
        waiters: if *still_waits { vec![*cpu] } else { vec![] },
        function: function.clone(),
        confidence,
        evidence: facts,
        missing,
    })
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::BusyController;
    use crate::samples::machine;
    use crate::verdict::{Confidence, Verdict, VerdictKind};

    fn verdict(nanos: Option<u64>, in_nmi_handlers: &[u32]) -> Verdict {
        let mut evidence = machine(3);
        evidence.busy_controllers.push(BusyController {
            cpu: 1,
            nanos,
            still_waits: true,
            function: Some("apic_wait_icr_idle".into()),
            in_nmi_handlers: in_nmi_handlers.to_vec(),
        });
        diagnose(&evidence).verdicts.swap_remove(0)
    }

    #[test]
    fn a_controller_that_is_pending_for_longer_than_any_bounded_wait_is_stuck() {
        let verdict = verdict(Some(2_000_000_000), &[0, 2]);
        assert_eq!((verdict.kind, verdict.confidence), (VerdictKind::StuckIcr, Confidence::Certain));
        assert_eq!((verdict.cpu, verdict.culprit, verdict.waiters), (Some(1), None, vec![1]));
        assert_eq!(verdict.evidence[2].value, "0,2");
        assert_eq!(verdict.missing, [""; 0]);
    }

    #[test]
    fn what_is_not_known_makes_it_less_sure() {
        let likely = verdict(Some(20_001), &[]);
        assert_eq!((likely.kind, likely.confidence), (VerdictKind::StuckIcr, Confidence::Likely));
        assert_eq!(likely.missing.len(), 1);
        let possible = verdict(None, &[]);
        assert_eq!((possible.confidence, possible.missing.len()), (Confidence::Possible, 2));
    }

    #[test]
    fn a_command_that_is_being_dispatched_is_no_finding() {
        assert_eq!(verdict(Some(20_000), &[0, 2]).kind, VerdictKind::Healthy);
    }
}
