//! Operations and interrupt states in the words of the table, and wrapping of text.

use core::fmt::Write;
use core::sync::atomic::Ordering;

use smpcall_machine::Access;

use super::{Deed, InterruptState, Line};

/// A value: decimal where that is the same as hexadecimal.
pub(super) fn value(value: u64) -> String {
    if value < 10 { value.to_string() } else { format!("{value:#x}") }
}

/// `0xf0`, or `NMI`.
pub(super) fn vector(vector: Option<u8>) -> String {
    vector.map_or_else(|| "NMI".into(), |vector| format!("{vector:#04x}"))
}

/// `CPU 1`, `CPUs 1 and 3`, `CPUs 0, 1 and 3`.
pub(super) fn cpus(cpus: &[u16]) -> String {
    let numbers: Vec<String> = cpus.iter().map(u16::to_string).collect();
    match numbers.split_last() {
        None => "no CPU".into(),
        Some((only, [])) => format!("CPU {only}"),
        Some((last, others)) => format!("CPUs {} and {last}", others.join(", ")),
    }
}

fn ordering(order: Ordering) -> &'static str {
    match order {
        Ordering::Relaxed => ".rlx",
        Ordering::Acquire => ".acq",
        Ordering::Release => ".rel",
        Ordering::AcqRel => ".acqrel",
        _ => ".sc",
    }
}

/// The parts of a line between which a cell may be broken.
pub(super) fn line(line: &Line) -> Vec<String> {
    let mut parts = headline(line);
    let place = (!line.source.is_empty()).then(|| line.source.clone());
    match (&line.deed, place) {
        (_, None) | (Deed::Return, _) => {}
        (Deed::Enter { .. }, Some(place)) => {
            parts[0].push_str(" at");
            parts.insert(1, place);
        }
        (_, Some(place)) => parts.insert(0, place),
    }
    parts
}

/// The same without its place in the source.
pub(super) fn headline(line: &Line) -> Vec<String> {
    let mut parts = match &line.deed {
        Deed::Enter { vector: None } => vec!["NMI".into()],
        Deed::Enter { vector: number } => vec![format!("interrupt {}", vector(*number))],
        Deed::Return => vec!["returns".into()],
        deed => self::deed(deed),
    };
    parts.extend(line.note.clone());
    parts
}

fn deed(deed: &Deed) -> Vec<String> {
    match deed {
        Deed::Access { access, variable, old, new, order, buffered } => {
            let verb = match access {
                Access::Load => "load",
                Access::Store(_) => "store",
                Access::Swap(_) => "swap",
                Access::FetchOr(_) => "or",
                Access::FetchAnd(_) => "and",
                Access::FetchAdd(_) => "add",
                Access::CompareExchange(..) => "cmpxchg",
                Access::PlainRead(_) => "read",
                Access::PlainWrite(_) => "write",
            };
            let failed = match access {
                Access::CompareExchange(expected, _, failure) if old.is_some_and(|old| old != *expected) => {
                    Some((expected, failure))
                }
                _ => None,
            };
            let order = failed.map_or(*order, |(_, failure)| order.map(|_| *failure));
            let verb = format!("{verb}{}", order.map_or("", ordering));
            let change = match (old, new) {
                (Some(found), _) if failed.is_some() => {
                    let expected = failed.map_or(0, |(expected, _)| *expected);
                    format!("is {}, not {}", value(*found), value(expected))
                }
                (_, Some(new)) if *buffered => format!(":= {} (store buffer)", value(*new)),
                (Some(old), Some(new)) if access.writes() => format!("{} -> {}", value(*old), value(*new)),
                (None, Some(new)) if access.writes() => format!(":= {}", value(*new)),
                (Some(found), _) | (None, Some(found)) => format!("= {}", value(*found)),
                (None, None) => String::new(),
            };
            [verb, variable.clone(), change].into_iter().filter(|part| !part.is_empty()).collect()
        }
        Deed::Flush { variable, old, new } => {
            let change = match old {
                Some(old) => format!("{} -> {}", value(*old), value(*new)),
                None => format!(":= {}", value(*new)),
            };
            vec!["flush".into(), variable.clone(), change]
        }
        Deed::Woken { variable, condition } => vec!["wait ends:".into(), format!("{variable} {condition}")],
        Deed::Expired => vec!["wait ends:".into(), "deadline".into()],
        Deed::Interrupts { enabled } => vec![if *enabled { "sti" } else { "cli" }.into()],
        Deed::Send { vector: number, targets, lost } => {
            let mut parts = vec![format!("send {}", vector(*number)), format!("to {}", cpus(targets))];
            if lost == targets {
                parts.push("LOST".into());
            } else if !lost.is_empty() {
                parts.push(format!("LOST for {}", cpus(lost)));
            }
            parts
        }
        Deed::EndOfInterrupt => vec!["EOI".into()],
        Deed::Enter { .. } | Deed::Return => Vec::new(),
        Deed::Halt => vec!["sti; hlt".into()],
        Deed::Tick => vec!["timer ticks".into()],
        Deed::Wedge => vec!["WEDGED: makes no step from now on".into()],
        Deed::Other(words) => vec![words.clone()],
    }
}

/// What is different in a CPU's interrupt state, each part with its new value.
pub(super) fn changes(before: &InterruptState, after: &InterruptState) -> Vec<String> {
    let set = |vectors: &[u8]| {
        let numbers: Vec<String> = vectors.iter().map(|&number| vector(Some(number))).collect();
        numbers.join(" ")
    };
    let mut changes = Vec::new();
    if before.enabled != after.enabled {
        changes.push(format!("IF={}", u8::from(after.enabled)));
    }
    if before.requested != after.requested {
        changes.push(format!("IRR={{{}}}", set(&after.requested)));
    }
    if before.in_service != after.in_service {
        changes.push(format!("ISR={{{}}}", set(&after.in_service)));
    }
    if before.nmi != after.nmi {
        changes.push(format!("NMI={}", u8::from(after.nmi)));
    }
    changes
}

/// Appends a sentence in lines of at most `width` columns, the first one after `first`, the others after `others`.
pub(super) fn wrap(text: &mut String, width: usize, first: &str, others: &str, sentence: &str) {
    let words: Vec<String> = sentence.split_whitespace().map(str::to_owned).collect();
    let lines = fill(&words, width.saturating_sub(first.len()), width.saturating_sub(others.len()));
    for (index, line) in lines.iter().enumerate() {
        let indent = if index == 0 { first } else { others };
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{indent}{line}");
    }
}

/// Puts parts into lines: the first line has room for `first` characters, the others for `others`. A part that has no
/// room in a line of its own is broken at its blanks, and cut with an ellipsis only where it has none.
pub(super) fn fill(parts: &[String], first: usize, others: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut pending: Vec<String> = parts.iter().rev().cloned().collect();
    while let Some(part) = pending.pop() {
        let room = if lines.is_empty() { first } else { others }.max(4);
        let (used, length) = (line.chars().count(), part.chars().count());
        if used > 0 && used + 1 + length <= room {
            line.push(' ');
            line.push_str(&part);
        } else if used > 0 {
            lines.push(core::mem::take(&mut line));
            pending.push(part);
        } else if length <= room {
            line = part;
        } else if let Some((head, tail)) = split(&part, room) {
            pending.push(tail);
            pending.push(head);
        } else {
            let kept: String = part.chars().take(room - 3).collect();
            line = format!("{kept}...");
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// Breaks a part at its last blank within `room` characters, or else at its first one.
fn split(part: &str, room: usize) -> Option<(String, String)> {
    let within = part.char_indices().nth(room).map_or(part.len(), |(index, _)| index);
    let at = part[..within].rfind(' ').or_else(|| part.find(' '))?;
    Some((part[..at].to_owned(), part[at + 1..].to_owned()))
}
