//! The sentences above the picture: what went wrong, and whether it was mended, from the trace alone.

use std::collections::BTreeSet;

use smpcall_machine::EventKind;

use super::activity::{Activity, Fate, Mark, Message, Span, SpanKind};
use super::units::{count, duration};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Something was lost or stands still.
    Bad,
    /// Something was lost and mended.
    Mended,
    /// Nothing went wrong.
    Good,
}

/// One sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// When it happened, or was noticed; nanoseconds.
    pub(crate) time: u64,
    pub(crate) text: String,
}

/// At most this many sentences; what is more is counted in the last one.
const MOST: usize = 5;

/// The ends of interrupt that took the in-service bit of a handler which had not written them, and what came of it.
fn stray_ends(activity: &Activity) -> Option<(u64, String)> {
    let of_kind = |kind| activity.marks.iter().filter(move |mark| mark.kind == kind && mark.argument != 0);
    let first = of_kind(EventKind::EndOfInterrupt).next()?;
    let (number, let_in) =
        (of_kind(EventKind::EndOfInterrupt).count(), of_kind(EventKind::InterruptTaken).count());
    let when = duration(first.time.saturating_sub(activity.first));
    let text = format!(
        "{} of interrupt cleared what belonged to a handler that ran on, and let {} in: first on CPU {} at {when}, vector \
         {:#04x}.",
        if number == 1 { "1 stray end".into() } else { format!("{number} stray ends") },
        count(let_in, "interrupt"),
        first.cpu,
        first.argument
    );
    Some((first.time, text))
}

/// What the trace shows.
pub(crate) fn findings(activity: &Activity) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |severity, time, text| findings.push(Finding { severity, time, text });
    // Of these CPUs a finding says that they wait, or why they stand still.
    let mut told = BTreeSet::new();
    let mut losses = 0;
    if let Some((time, text)) = stray_ends(activity) {
        add(Severity::Bad, time, text);
    }
    for message in &activity.messages {
        if matches!(message.fate, Fate::Lost(_) | Fate::Rejected(_)) {
            let severity = if message.mended.is_some() { Severity::Mended } else { Severity::Bad };
            losses += 1;
            // What is only counted in the end needs no text: there may be very many.
            let text = if losses <= MOST { loss(activity, message) } else { String::new() };
            add(severity, message.begin(), text);
            told.insert(message.from);
        }
    }
    let at = |time: u64| duration(time.saturating_sub(activity.first));
    for mark in &activity.marks {
        let (cpu, when) = (mark.cpu, at(mark.time));
        let text = match mark.kind {
            EventKind::Wedged => format!("CPU {cpu} is wedged, interrupts off, from {when}."),
            EventKind::SoftLockup => {
                format!("Soft lockup on CPU {cpu} at {when}: no progress for {}.", duration(mark.argument))
            }
            EventKind::DumpStarted => {
                let stopped = activity.spans.iter().filter(|span| span.kind == SpanKind::Stopped);
                match stopped.count() {
                    0 => format!("CPU {cpu} starts a crash dump at {when}."),
                    number => {
                        format!("CPU {cpu} starts a crash dump at {when} and stops {}.", count(number, "CPU"))
                    }
                }
            }
            EventKind::CallWithdrawn => withdrawal(activity, mark, &when),
            EventKind::CrashStopped => {
                let others = count(mark.argument.saturating_sub(1) as usize, "other");
                format!("CPU {cpu} has crashed, and has stopped {others} at {when}; {} missing.", mark.detail)
            }
            _ => continue,
        };
        add(Severity::Bad, mark.time, text);
    }
    for span in activity.spans.iter().filter(|span| span.end.is_none() && !told.contains(&span.cpu)) {
        if let SpanKind::Wait { target, .. } = &span.kind {
            let whom = target.map_or_else(String::new, |cpu| format!(" for CPU {cpu}"));
            let length = duration(activity.last - span.begin);
            add(
                Severity::Bad,
                activity.last,
                format!("CPU {} has waited{whom} for {length} when the trace ends.", span.cpu),
            );
        }
    }
    if findings.is_empty() {
        let text = format!("No IPI was lost and nobody is left waiting. {}", tally(activity));
        return vec![Finding { severity: Severity::Good, time: activity.last, text }];
    }
    if findings.len() > MOST {
        let rest = findings.split_off(MOST - 1);
        let severity = if rest.iter().any(|finding| finding.severity == Severity::Bad) {
            Severity::Bad
        } else {
            Severity::Mended
        };
        let time = rest.iter().map(|finding| finding.time).min().unwrap_or(activity.last);
        findings.push(Finding {
            severity,
            time,
            text: format!("And {} more.", count(rest.len(), "such finding")),
        });
    }
    findings
}

fn loss(activity: &Activity, message: &Message) -> String {
    let Message { from, to, .. } = *message;
    let vector = message.what();
    let sent = duration(message.begin().saturating_sub(activity.first));
    let what = match message.fate {
        Fate::Rejected(_) => format!("IPI {vector}, CPU {from} to CPU {to}, was not accepted at {sent}"),
        _ => format!("IPI {vector}, CPU {from} to CPU {to}, was LOST at {sent}"),
    };
    let wait = longest_wait(activity, message);
    let wait = wait.map(|(span, nanos)| (span.end.is_some(), duration(nanos)));
    if let Some(repeated) = message.mended {
        let after = duration(repeated.saturating_sub(message.begin()));
        let waited = match wait {
            Some((true, nanos)) => format!(" CPU {from} waited {nanos} in all."),
            _ => String::new(),
        };
        return format!("{what}; the ring was repeated {after} later and taken.{waited}");
    }
    match wait {
        Some((over, nanos)) => {
            let still = if over { "waited" } else { "waits" };
            format!("{what}, and not sent again: CPU {from} {still} {nanos}.")
        }
        None => format!("{what}, and not sent again."),
    }
}

/// The longest of the sender's waits that a loss can be the cause of, and its nanoseconds: those that last after it and
/// begin before the next message on the same way.
fn longest_wait<'a>(activity: &'a Activity, message: &Message) -> Option<(&'a Span, u64)> {
    let lost = message.begin();
    let same_way =
        |next: &&Message| (next.from, next.to) == (message.from, message.to) && next.again.is_none();
    let later = activity.messages.iter().filter(same_way).map(Message::begin).filter(|&begin| begin > lost);
    let next = later.min().unwrap_or(u64::MAX);
    let waits = activity.spans.iter().filter(|span| {
        span.cpu == message.from
            && matches!(span.kind, SpanKind::Wait { target, .. } if target.is_none_or(|cpu| cpu == message.to))
            && span.end.is_none_or(|end| end > lost)
            && span.begin < next
    });
    waits.map(|span| (span, span.end.unwrap_or(activity.last) - span.begin)).max_by_key(|&(_, nanos)| nanos)
}

/// A call that was given up: what was tried before, and what is known of the target.
fn withdrawal(activity: &Activity, mark: &Mark, when: &str) -> String {
    let cpu = mark.cpu;
    let Some(target) = mark.other else {
        return format!("CPU {cpu} is told at {when} that its call timed out.");
    };
    let rings = activity.messages.iter().filter(|message| {
        (message.from, message.to) == (cpu, target) && message.again.is_some() && message.begin() <= mark.time
    });
    let tried = match rings.count() {
        0 => String::new(),
        number => format!("after {}, ", count(number, "repeated ring")),
    };
    let probed = activity.marks.iter().any(|probe| {
        probe.kind == EventKind::ProbeSent
            && (probe.cpu, probe.other) == (cpu, Some(target))
            && probe.time <= mark.time
    });
    let answered =
        activity.marks.iter().any(|answer| answer.kind == EventKind::ProbeAnswered && answer.cpu == target);
    let sign = match (probed, answered) {
        (false, _) => String::new(),
        (true, true) => format!("; CPU {target} had answered an NMI"),
        (true, false) => format!("; CPU {target} did not even answer an NMI"),
    };
    format!("CPU {cpu} is told at {when}, {tried}that its call to CPU {target} timed out{sign}.")
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
