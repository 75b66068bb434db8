//! The sentences above the picture: what went wrong, and whether it was mended, from the trace alone.

use std::collections::BTreeSet;

use smpcall_machine::EventKind;

use super::activity::{Activity, Fate, Message, Span, SpanKind};
use super::units::{count, duration};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// Something was lost or stands still.
    Bad,
    /// Something was lost and mended.
    Mended,
    /// Nothing went wrong.
    Good,
}

/// One sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) text: String,
}

/// At most this many sentences; what is more is counted in the last one.
const MOST: usize = 5;

/// What the trace shows.
pub(super) fn findings(activity: &Activity) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Senders of lost IPIs: that they wait is said there.
    let mut told = BTreeSet::new();
    for message in &activity.messages {
        if matches!(message.fate, Fate::Lost(_) | Fate::Rejected(_)) {
            let severity = if message.mended.is_some() { Severity::Mended } else { Severity::Bad };
            // What is only counted in the end needs no text: there may be very many.
            let text = if findings.len() < MOST { loss(activity, message) } else { String::new() };
            findings.push(Finding { severity, text });
            told.insert(message.from);
        }
    }
    let at = |time: u64| duration(time.saturating_sub(activity.first));
    for mark in &activity.marks {
        let text = match mark.kind {
            EventKind::Wedged => {
                format!("CPU {} is wedged, interrupts off, from {}.", mark.cpu, at(mark.time))
            }
            EventKind::SoftLockup => format!(
                "Soft lockup on CPU {} at {}: no progress for {}.",
                mark.cpu,
                at(mark.time),
                duration(mark.argument)
            ),
            EventKind::DumpStarted => format!("CPU {} starts a crash dump at {}.", mark.cpu, at(mark.time)),
            EventKind::CallWithdrawn => {
                let target = mark.other.map_or_else(String::new, |other| format!(" to CPU {other}"));
                format!("CPU {} withdrew its call{target} at {}: it was told.", mark.cpu, at(mark.time))
            }
            _ => continue,
        };
        findings.push(Finding { severity: Severity::Bad, text });
    }
    for span in activity.spans.iter().filter(|span| span.end.is_none()) {
        if let SpanKind::Wait { target, .. } = &span.kind {
            if told.contains(&span.cpu) {
                continue;
            }
            let whom = target.map_or_else(String::new, |cpu| format!(" for CPU {cpu}"));
            let length = duration(activity.last - span.begin);
            let text = format!("CPU {} has waited{whom} for {length} when the trace ends.", span.cpu);
            findings.push(Finding { severity: Severity::Bad, text });
        }
    }
    if findings.is_empty() {
        let text = format!("No IPI was lost and nobody is left waiting. {}", tally(activity));
        return vec![Finding { severity: Severity::Good, text }];
    }
    if findings.len() > MOST {
        let rest = findings.split_off(MOST - 1);
        let severity = if rest.iter().any(|finding| finding.severity == Severity::Bad) {
            Severity::Bad
        } else {
            Severity::Mended
        };
        findings.push(Finding { severity, text: format!("And {} more.", count(rest.len(), "such finding")) });
    }
    findings
}

fn loss(activity: &Activity, message: &Message) -> String {
    let Message { from, to, vector, .. } = *message;
    let sent = duration(message.begin().saturating_sub(activity.first));
    let what = match message.fate {
        Fate::Rejected(_) => format!("IPI {vector:#04x}, CPU {from} to CPU {to}, was not accepted at {sent}"),
        _ => format!("IPI {vector:#04x}, CPU {from} to CPU {to}, was LOST at {sent}"),
    };
    if let Some(repeated) = message.mended {
        let after = duration(repeated.saturating_sub(message.begin()));
        return format!("{what}; the ring was repeated {after} later and taken.");
    }
    let Some(wait) = waiting_since(activity, message) else { return format!("{what}; it was not repeated.") };
    let lasted = duration(wait.end.unwrap_or(activity.last) - wait.begin);
    format!("{what}; it was not repeated, and CPU {from} waits {lasted}.")
}

/// The sender's wait that the loss of a message falls into, or the next one that it begins.
fn waiting_since<'a>(activity: &'a Activity, message: &Message) -> Option<&'a Span> {
    activity.spans.iter().find(|span| {
        span.cpu == message.from
            && matches!(span.kind, SpanKind::Wait { target, .. } if target.is_none_or(|cpu| cpu == message.to))
            && span.end.is_none_or(|end| end > message.begin())
    })
}

/// How many IPIs had which fate.
pub(super) fn tally(activity: &Activity) -> String {
    let number = |wanted: fn(&Fate) -> bool| activity.messages.iter().filter(|m| wanted(&m.fate)).count();
    let mut text = format!(
        "{}: {} accepted",
        count(activity.messages.len(), "IPI"),
        number(|fate| matches!(fate, Fate::Accepted(_)))
    );
    let rest = [
        (number(|fate| matches!(fate, Fate::Merged(_))), "merged with a pending one"),
        (number(|fate| matches!(fate, Fate::Lost(_))), "lost"),
        (number(|fate| matches!(fate, Fate::Rejected(_))), "rejected"),
        (number(|fate| matches!(fate, Fate::OnItsWay)), "on their way at the end"),
        (activity.messages.iter().filter(|message| message.again.is_some()).count(), "sent again"),
    ];
    for (number, what) in rest.into_iter().filter(|&(number, _)| number > 0) {
        text = format!("{text}, {number} {what}");
    }
    text + "."
}
