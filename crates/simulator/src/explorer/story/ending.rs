//! The last paragraph: who waits for what, and why nobody will wake it.

use super::words::{cpus, value, vector, wrap};
use super::{Account, Awaited, CpuEnd, Deed, InterruptState, Status, Writers};

pub(super) fn text(account: &Account, width: usize) -> String {
    let mut text = String::new();
    let cpus = &account.ending.cpus;
    let waits = |cpu: &CpuEnd| matches!(cpu.status, Status::Waits | Status::Halts);
    let stuck = cpus.iter().any(waits) && !cpus.iter().any(|cpu| cpu.status == Status::Runs);
    wrap(&mut text, width, "", "", if stuck { "In the end nobody can move:" } else { "In the end:" });
    for (cpu, end) in (0..).zip(cpus) {
        wrap(&mut text, width, "  ", "    ", &stands(account, cpu, end));
    }
    let mut reasons = losses(account);
    if stuck {
        reasons.extend(circle(account));
        reasons.extend(sleepers(account));
    }
    if !reasons.is_empty() {
        wrap(&mut text, width, "", "", if stuck { "Why nobody is woken:" } else { "On the way:" });
    }
    for reason in reasons {
        wrap(&mut text, width, "  ", "    ", &reason);
    }
    text
}

fn states(account: &Account) -> &[InterruptState] {
    account.lines.last().map_or(&account.start, |line| &line.after)
}

/// Where one CPU stands, what it waits for, and whether an interrupt can reach it.
fn stands(account: &Account, cpu: u16, end: &CpuEnd) -> String {
    let at = if end.source.is_empty() { String::new() } else { format!(" at {}", end.source) };
    let mut sentence = match end.status {
        Status::Runs => return format!("CPU {cpu} can go on{at}."),
        Status::Wedged => {
            return format!("CPU {cpu} is wedged{at}: it makes no step and takes no interrupt.");
        }
        Status::Waits => format!("CPU {cpu} waits{at}{}.", waits_for(account, &end.waits_for)),
        Status::Halts => format!("CPU {cpu} is halted{at}."),
        Status::Ended => format!("CPU {cpu} has ended its program."),
    };
    if let Some(state) = states(account).get(usize::from(cpu)) {
        sentence.push(' ');
        sentence.push_str(&interrupts(state));
    }
    sentence
}

/// ` for done[0] = 0, which is 1 (row 3 of CPU 2 wrote it); only CPU 1 can write it`.
fn waits_for(account: &Account, awaited: &[Awaited]) -> String {
    let conditions = awaited.iter().map(|awaited| {
        let Awaited { variable, condition, value: now, writers } = awaited;
        let last = account.lines.iter().enumerate().rev().find(|(_, line)| line.deed.writes(variable));
        let last = match last {
            Some((index, line)) => format!("since row {} of CPU {}", index + 1, line.cpu),
            None => "as at the start".into(),
        };
        let writers = match writers {
            Writers::Unknown => String::new(),
            Writers::Nobody => "; nobody is left who would write it".into(),
            Writers::Cpus(writers) => format!("; only {} can write it", cpus(writers)),
        };
        format!("{variable} {condition}, but it is {} {last}{writers}", value(*now))
    });
    let conditions: Vec<String> = conditions.collect();
    if conditions.is_empty() { String::new() } else { format!(" for {}", conditions.join("; or for ")) }
}

/// Whether an interrupt can reach a CPU in this state.
fn interrupts(state: &InterruptState) -> String {
    let InterruptState { enabled, requested, in_service, nmi } = state;
    let list =
        |vectors: &[u8]| vectors.iter().map(|&number| vector(Some(number))).collect::<Vec<_>>().join(" and ");
    // The upper half of a vector is its priority (Intel SDM volume 3, section on the local APIC's task priority).
    let held_back = |&&request: &&u8| in_service.iter().any(|&serviced| serviced >> 4 >= request >> 4);
    let blocking = requested.iter().all(|request| held_back(&request));
    let mut sentence = match (enabled, requested.is_empty()) {
        (true, true) => "Its interrupts are enabled, and none is pending.".to_owned(),
        (false, true) => "Its interrupts are disabled, and none is pending.".to_owned(),
        (false, false) => {
            format!("{} is pending in its IRR, but its interrupts are disabled.", list(requested))
        }
        (true, false) if blocking => format!(
            "{} is pending in its IRR, but {} is still in service: no end of interrupt was written.",
            list(requested),
            list(in_service)
        ),
        (true, false) => {
            format!("Its interrupts are enabled, and {} is pending in its IRR.", list(requested))
        }
    };
    if *nmi {
        sentence.push_str(" An NMI is latched.");
    }
    sentence
}

/// The messages and requests that were lost on the way.
fn losses(account: &Account) -> Vec<String> {
    let mut losses = Vec::new();
    let mut before = &account.start;
    for (index, line) in account.lines.iter().enumerate() {
        let row = index + 1;
        if let Deed::Send { vector: sent, lost, .. } = &line.deed {
            for &target in lost {
                let again = account.lines.iter().enumerate().skip(row).find(|(_, later)| {
                    matches!(&later.deed, Deed::Send { vector, targets, lost }
                        if vector == sent && targets.contains(&target) && !lost.contains(&target))
                });
                let again = match again {
                    Some((again, _)) => format!("row {} sends it again", again + 1),
                    None => "nobody sends it again".into(),
                };
                losses.push(format!("Row {row}: {} to CPU {target} is lost, and {again}.", vector(*sent)));
            }
        }
        for (cpu, (old, new)) in (0..).zip(before.iter().zip(&line.after)) {
            for request in old.requested.iter().filter(|request| !new.requested.contains(request)) {
                if line.cpu != cpu || line.deed != (Deed::Enter { vector: Some(*request) }) {
                    let request = vector(Some(*request));
                    losses.push(format!(
                        "Row {row} drops {request} from the IRR of CPU {cpu} before it is taken."
                    ));
                }
            }
        }
        before = &line.after;
    }
    losses
}

/// CPUs that only an interrupt would move, if somebody waits for them or if they are not at the end of their program; and
/// wedged ones that somebody waits for.
fn sleepers(account: &Account) -> Vec<String> {
    let ends = &account.ending.cpus;
    let awaited = |cpu: u16| {
        let awaited = ends.iter().flat_map(|end| &end.waits_for);
        awaited
            .into_iter()
            .any(|awaited| matches!(&awaited.writers, Writers::Cpus(cpus) if cpus.contains(&cpu)))
    };
    let sleepers = (0..).zip(ends).filter_map(|(cpu, end)| {
        let state = states(account).get(usize::from(cpu))?;
        let why = match (state.enabled, &state.requested[..]) {
            (_, []) => "none is pending",
            (false, _) => "its interrupts are disabled",
            (true, _) => "none can be taken",
        };
        match end.status {
            Status::Wedged if awaited(cpu) => {
                Some(format!("CPU {cpu} is wedged and writes nothing any more."))
            }
            Status::Halts => Some(format!("Only an interrupt would move CPU {cpu}, and {why}.")),
            Status::Ended if awaited(cpu) => {
                Some(format!("Only an interrupt would move CPU {cpu}, and {why}."))
            }
            _ => None,
        }
    });
    sleepers.collect()
}

/// CPUs of which each waits for the next one only, and the last one for the first.
fn circle(account: &Account) -> Option<String> {
    let waits_for = |cpu: u16| match &account.ending.cpus.get(usize::from(cpu))?.waits_for[..] {
        [Awaited { writers: Writers::Cpus(writers), .. }] => match writers[..] {
            [only] => Some(only),
            _ => None,
        },
        _ => None,
    };
    let all = account.ending.cpus.len() as u16;
    (0..all).find_map(|first| {
        let chain = core::iter::successors(Some(first), |&cpu| waits_for(cpu));
        let mut chain: Vec<u16> = chain.take(usize::from(all) + 1).collect();
        let length = chain[1..].iter().position(|&cpu| cpu == first)? + 1;
        chain.truncate(length);
        match chain[..] {
            [only] => Some(format!("CPU {only} waits for itself.")),
            [one, other] => Some(format!("CPU {one} and CPU {other} wait for each other.")),
            _ => {
                let names: Vec<String> = chain.iter().map(|cpu| format!("CPU {cpu}")).collect();
                Some(format!("They wait in a circle: {}, CPU {first}.", names.join(", ")))
            }
        }
    })
}
