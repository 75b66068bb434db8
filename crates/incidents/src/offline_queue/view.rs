//! What somebody at the machine has in hand: the stack of the CPU that spins and the queue of the one that came back, as report
//! 001 has them from its dump, and one line for each CPU. Only what the model really has.

use core::fmt::Write;

use smpcall_simulator::{Activity, CpuReport, RING_VECTOR, TIMER_VECTOR};

use super::disk::{self, End};
use super::{Cast, now, then};

/// CPUs with a line of their own, besides those of the incident.
const LINES: usize = 8;

/// What the reported machine had and this one has not.
const DIFFERENCES: &str = "\
(The reported machine is an s390. What this model, an x86, has in the places of its parts: task priority 255 for
external interrupts switched off in control register 0 of a CPU that goes; a halt with interrupts disabled for a stopped
CPU; INIT, which clears the IRR, for the initial CPU reset that forgets pending external calls; vector 0xfb for the call
signal. No addresses, no tasks and no dump: none are shown.)
";

/// As then.
pub(super) fn then(cast: Cast, remains: &then::Remains) -> String {
    let mut out = String::new();
    let controller = &remains.reports[cast.controller.index()];
    // Writing to a `String` cannot fail, here and below.
    if let Some((innermost, outer)) = controller.frames.split_last() {
        let _ = writeln!(out, "(cpu {})\n    {innermost}", cast.controller.number());
        for (number, frame) in outer.iter().rev().enumerate() {
            let _ = writeln!(out, "{:>3} {frame}", format!("#{number}"));
        }
        if let Some(wait) = controller.waits.first() {
            let waited = controller.time.since(wait.since).as_secs_f64();
            let _ = writeln!(out, "    has waited for {waited:.3} s, without a deadline");
        }
        out.push('\n');
    }
    let target = cast.target.number();
    let _ = writeln!(out, "call_single_queue of cpu {target}: {} entries", remains.queue.len());
    for func in [then::Func::TriggerSoftirq, then::Func::IucvDeclareCpu, then::Func::IucvRetrieveCpu] {
        let count = remains.queued(func);
        if count > 0 {
            let _ = writeln!(out, "{count:>8}  {}", func.name());
        }
    }
    let online = remains.online & 1 << target != 0;
    let _ = writeln!(out, "cpu {target} is {}\n", if online { "online" } else { "offline" });
    cpus(&mut out, cast, &remains.reports);
    out.push('\n');
    out.push_str(DIFFERENCES);
    out
}

/// As now.
pub(super) fn now(cast: Cast, remains: &now::Remains) -> String {
    let mut out = String::new();
    let target = cast.target.number();
    let _ = writeln!(out, "requests of cpu {target} that the disk finished: {}", remains.books.len());
    let mut line = |count: usize, what: &str| {
        let _ = writeln!(out, "{count:>8}  {what}");
    };
    line(remains.ended(End::AtHome), "run there, as deferred work");
    line(remains.ended(End::TakenOver), "accepted there as it went, and run by the CPU that took it down");
    line(remains.ended(End::Refused), "refused while it was offline, and run by the CPU that raised them");
    line(remains.books.iter().filter(|book| book.ends > 1).count(), "run more than once");
    line(remains.books.iter().filter(|book| book.ends == 0).count(), "neither run nor returned");
    let first = &remains.books[0];
    if let Some((end, on)) = first.end {
        let how = match end {
            End::AtHome => "run there",
            End::TakenOver => "accepted, and taken over",
            End::Refused => "refused",
        };
        let _ = writeln!(out, "The first one, finished {}: {how}, by {on}.", moment(cast));
    }
    let answers = &remains.answers;
    out.push('\n');
    let mut took = |what: &str, told: Option<(core::time::Duration, String)>| {
        let (time, result) = match told {
            Some((time, result)) => (format!("{:.1} us", time.as_secs_f64() * 1e6), result),
            None => ("-".into(), "did not end".into()),
        };
        let _ = writeln!(out, "{what:<44}{time:>12}  {result}");
    };
    took("cpu_down", answers.down.map(|told| result(&told)));
    took("call while it was offline", answers.call_while_offline.map(|told| result(&told)));
    took("cpu_up", answers.up.map(|told| result(&told)));
    took("the notifier's call as it came up", answers.notifier.map(|told| result(&told)));
    took("its own call to the CPU that brought it up", answers.back.map(|told| result(&told)));
    out.push('\n');
    cpus(&mut out, cast, &remains.reports);
    out
}

fn moment(cast: Cast) -> &'static str {
    if cast.fault { "as it went, with its interrupts disabled" } else { "before it went" }
}

fn result<E: core::fmt::Display>(told: &now::Told<E>) -> (core::time::Duration, String) {
    let text = match &told.result {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    (told.ended.since(told.began), text)
}

/// One line for each CPU: interrupts taken, the interrupt flag, what is pending, and where it is.
fn cpus(out: &mut String, cast: Cast, reports: &[CpuReport]) {
    let _ = writeln!(
        out,
        "{:>7}  {:>6}  {:>6}  {:>6}  {:<3}  {:<14}  where",
        "", "CAL", "LOC", "DISK", "IF", "IRR"
    );
    let is_shown = |report: &&CpuReport| {
        report.cpu.index() < LINES || report.cpu == cast.controller || report.cpu == cast.target
    };
    for report in reports.iter().filter(is_shown) {
        let taken = |vector: u8| report.counters.taken[vector as usize];
        let pending: Vec<String> = report.requested.iter().map(|vector| format!("{vector:#04x}")).collect();
        let _ = writeln!(
            out,
            "{:>7}  {:>6}  {:>6}  {:>6}  {:<3}  {:<14}  {}",
            format!("CPU {}", report.cpu.number()),
            taken(RING_VECTOR),
            taken(TIMER_VECTOR),
            taken(disk::VECTOR),
            if report.interrupts_enabled { "on" } else { "off" },
            if pending.is_empty() { "empty".to_owned() } else { pending.join(" ") },
            whereabouts(report),
        );
    }
    let hidden = reports.iter().filter(|report| !is_shown(report)).count();
    if hidden > 0 {
        let _ = writeln!(out, "         and {hidden} more");
    }
}

fn whereabouts(report: &CpuReport) -> String {
    let frame = report.frames.last().copied().unwrap_or("no named frame");
    match report.activity {
        _ if report.waits_for_start_up => "waits to be started".into(),
        _ if report.parked => "parked".into(),
        Activity::Waiting => format!("{frame}: waits"),
        Activity::Halted => format!("{frame}: halted until an interrupt"),
        Activity::Working | Activity::Running => format!("{frame}: runs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smpcall_local_apic::Routing;
    use smpcall_machine::Cpu;
    use smpcall_simulator::{Config, World};

    #[test]
    fn the_cpus_of_the_incident_are_shown_on_large_machines_too() {
        let world = World::new(&Config::new(12, Routing::Physical, 1)).expect("a machine");
        let mut reports = super::super::reports(&world);
        reports[11].requested = vec![0x41, 0xfb];
        reports[11].interrupts_enabled = false;
        reports[1].parked = true;
        let cast = Cast { cpus: 12, controller: Cpu::new(1), target: Cpu::new(11), fault: true };
        let mut out = String::new();
        cpus(&mut out, cast, &reports);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 1 + LINES + 1 + 1, "{out}");
        assert!(lines[2].ends_with("empty           parked"), "{out}");
        assert!(lines[9].contains("CPU 11") && lines[9].contains("off  0x41 0xfb"), "{out}");
        assert_eq!(lines[10].trim(), "and 3 more");
    }
}
