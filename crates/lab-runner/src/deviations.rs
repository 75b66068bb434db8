//! What is known of emulators that do not do as the manual says, by version.
//!
//! The suite `conformance` says of each check whether the local APIC did as the manual says, on whatever it ran. What this
//! table lists is expected to fail; anything else that fails is news. On a version that was looked at, what no longer
//! deviates is news too: the table is wrong. On other versions that is only said.

use crate::emulator::Version;
use crate::options::ApicMode;
use crate::report::{Check, Outcome, RUN};

/// One deviation.
pub(crate) struct Deviation {
    /// The check that fails.
    pub(crate) check: &'static str,
    /// What the emulator does instead.
    pub(crate) what: &'static str,
    /// In which mode; both if none is given.
    pub(crate) mode: Option<ApicMode>,
    /// From this version on.
    pub(crate) since: Version,
    /// Before this version.
    pub(crate) before: Version,
}

/// Versions that this table was measured on: the first two numbers.
const MEASURED: [(u32, u32); 2] = [(7, 2), (10, 0)];

const OLDEST: Version = Version::new(0, 0, 0);
const NEWEST: Version = Version::new(u32::MAX, 0, 0);
/// The version in which the emulation was reworked for x2APIC. (Between it and 7.2 nothing was measured.)
const REWORKED: Version = Version::new(9, 0, 0);

/// One of all versions that were looked at.
const fn always(check: &'static str, mode: Option<ApicMode>, what: &'static str) -> Deviation {
    Deviation { check, what, mode, since: OLDEST, before: NEWEST }
}

/// One that is gone since the emulation was reworked.
const fn once(check: &'static str, mode: Option<ApicMode>, what: &'static str) -> Deviation {
    Deviation { check, what, mode, since: OLDEST, before: REWORKED }
}

const XAPIC: Option<ApicMode> = Some(ApicMode::XApic);
const X2APIC: Option<ApicMode> = Some(ApicMode::X2Apic);

/// What QEMU is known to do under TCG. Seen on 7.2.22 (xAPIC) and on 10.0.2 (both modes).
pub(crate) const QEMU: &[Deviation] = &[
    always("the_delivery_status_is_hardwares", XAPIC, "the bit is kept as software writes it"),
    always(
        "the_error_status_is_latched_by_a_write_and_cleared_by_the_next",
        XAPIC,
        "errors are seen at once, and never cleared",
    ),
    always(
        "an_illegal_vector_is_dropped",
        None,
        "an interrupt with a vector below 16 is delivered, as the exception of that number",
    ),
    always("an_illegal_vector_is_noted_in_the_error_status", XAPIC, "it is taken for a legal one"),
    always(
        "an_apic_that_is_disabled_by_software_accepts_nothing",
        None,
        "a fixed interrupt is accepted, and taken when the APIC is enabled again",
    ),
    always(
        "it_goes_to_the_one_with_the_lowest_processor_priority",
        XAPIC,
        "lowest priority is always the first CPU that is addressed",
    ),
    always("on_x2apic_it_is_reserved_and_goes_to_nobody", X2APIC, "lowest priority is delivered"),
    always(
        "a_self_shorthand_is_for_interrupts_only",
        None,
        "an NMI by the shorthand for oneself is delivered",
    ),
    always("the_icr_reads_back_all_vectors_and_modes", X2APIC, "the destination is not read back"),
    always(
        "reserved_bits_of_an_x2apic_icr_fault_and_the_former_status_bit_does_not",
        X2APIC,
        "reserved bits are ignored",
    ),
    always(
        "a_later_period_goes_on_to_zero_as_one_shot_too",
        None,
        "a timer that becomes one-shot after its first period stops at once",
    ),
    always(
        "a_timer_that_has_ended_is_not_started_by_a_change_of_mode",
        None,
        "a one-shot timer that has ended begins again when it becomes periodic",
    ),
    // Before the rework it does not come back at all.
    always(
        "a_hardware_disabled_apic_is_not_there_and_comes_back_as_new",
        None,
        "its registers are not those of a reset",
    ),
    once("reserved_bits_of_the_base_register_fault", None, "nothing that is written to it faults"),
    once("the_cluster_broadcast_is_taken_by_all_once", XAPIC, "in the cluster model all ones reaches nobody"),
];

fn applies(deviation: &Deviation, version: Version, mode: ApicMode) -> bool {
    deviation.since <= version && version < deviation.before && deviation.mode.is_none_or(|its| its == mode)
}

/// Judges checks by the table; returns what is worth saying besides.
pub(crate) fn judge(
    checks: &mut [Check],
    table: &[Deviation],
    version: Version,
    mode: ApicMode,
) -> Vec<String> {
    let mut notes = vec![];
    let measured = MEASURED.contains(&(version.major, version.minor));
    for check in checks {
        let known = table.iter().find(|known| known.check == check.name && applies(known, version, mode));
        match (known, check.outcome) {
            (Some(known), Outcome::Failed) => {
                check.outcome = Outcome::KnownDeviation;
                check.text = format!("{}: {}", known.what, check.text);
            }
            (Some(known), Outcome::Passed) => {
                let text = format!("QEMU {version} was known to deviate and does not: {}", known.what);
                notes.push(format!("{}: {text}", check.name));
                if measured {
                    check.outcome = Outcome::Failed;
                    check.text = text;
                }
            }
            (None, Outcome::Failed) if check.name != RUN => {
                check.text.push_str(" (a deviation that is not known)");
            }
            _ => {}
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Deviation] = &[Deviation {
        check: "a_thing_holds",
        what: "it does not",
        mode: Some(ApicMode::XApic),
        since: Version::new(7, 0, 0),
        before: Version::new(10, 1, 0),
    }];

    fn judged(outcome: Outcome, version: Version, mode: ApicMode) -> (Outcome, usize) {
        let mut checks = [Check { name: "a_thing_holds".into(), outcome, text: "seen".into() }];
        let notes = judge(&mut checks, TABLE, version, mode);
        (checks[0].outcome, notes.len())
    }

    #[test]
    fn a_known_deviation_is_expected_where_it_is_known() {
        let known = (Outcome::KnownDeviation, 0);
        assert_eq!(judged(Outcome::Failed, Version::new(7, 2, 19), ApicMode::XApic), known);
        assert_eq!(judged(Outcome::Failed, Version::new(10, 0, 2), ApicMode::XApic), known);
        let news = (Outcome::Failed, 0);
        assert_eq!(judged(Outcome::Failed, Version::new(6, 9, 0), ApicMode::XApic), news);
        assert_eq!(judged(Outcome::Failed, Version::new(10, 1, 0), ApicMode::XApic), news);
        assert_eq!(judged(Outcome::Failed, Version::new(7, 2, 19), ApicMode::X2Apic), news);
    }

    #[test]
    fn a_deviation_that_has_vanished_is_said_and_where_it_was_measured_it_fails() {
        assert_eq!(judged(Outcome::Passed, Version::new(7, 2, 19), ApicMode::XApic), (Outcome::Failed, 1));
        assert_eq!(judged(Outcome::Passed, Version::new(9, 2, 0), ApicMode::XApic), (Outcome::Passed, 1));
        assert_eq!(judged(Outcome::Passed, Version::new(11, 0, 0), ApicMode::XApic), (Outcome::Passed, 0));
        assert_eq!(judged(Outcome::Skipped, Version::new(7, 2, 19), ApicMode::XApic), (Outcome::Skipped, 0));
    }

    #[test]
    fn the_table_names_each_deviation_once_for_a_version_and_mode() {
        for (at, one) in QEMU.iter().enumerate() {
            assert!(one.since < one.before, "{}", one.check);
            for other in &QEMU[at + 1..] {
                let apart = one.before <= other.since || other.before <= one.since;
                let modes_apart = one.mode.is_some() && other.mode.is_some() && one.mode != other.mode;
                assert!(one.check != other.check || apart || modes_apart, "{}", one.check);
            }
        }
    }
}
