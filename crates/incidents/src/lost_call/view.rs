//! What somebody at the machine has in hand: the caller's stack in the layout of report 000, the counts of the calls,
//! and one line for each CPU. Only what the model really has.

use core::fmt::Write;

use smpcall_simulator::{Activity, CpuReport, RING_VECTOR, Source, TIMER_VECTOR};

use super::Cast;
use super::then::{Counts, Dump};
use crate::evidence::split_frames;

/// As then: the caller's stack, the counts in the dump, the interrupt table.
pub(super) fn then(cast: Cast, reports: &[CpuReport], dump: Option<Dump>) -> String {
    let mut out = String::from("(The model has no PIDs, tasks, registers or addresses: none are shown.)\n\n");
    stack(&mut out, &reports[cast.caller.index()]);
    if let Some(dump) = dump {
        let others = cast.cpus - 1;
        let mut line = |name: &str, counts: Counts, what: &str| {
            let Counts { started, finished } = counts;
            // Writing to a `String` cannot fail, here and below.
            let _ = writeln!(out, "{name:<16} started {started}, finished {finished} of {others}  ({what})");
        };
        line("saved_call_data:", dump.saved_call_data, "the call that hangs");
        line("call_data:", dump.call_data, "the dump's, to freeze the others");
        out.push('\n');
    }
    interrupts(&mut out, reports);
    out.push_str("(CAL counts vector 0xfb. 2.6.23 did not show it in /proc/interrupts: the reporter had no such column.)\n");
    out
}

/// As now: the interrupt table, and what the mailboxes have counted.
pub(super) fn now(reports: &[CpuReport], counted: &[(&'static str, u64)]) -> String {
    let mut out = String::from("counters of smpcall, all CPUs (those that are 0 left out; times in ns):\n");
    for (name, value) in counted.iter().filter(|(_, value)| *value > 0) {
        let _ = writeln!(out, "  {name:<16} {value:>10}");
    }
    out.push('\n');
    interrupts(&mut out, reports);
    out
}

/// The frames of a CPU, innermost first; those of a handler above those that it interrupted.
fn stack(out: &mut String, report: &CpuReport) {
    let (task, handler) = split_frames(&report.frames);
    if task.is_empty() && handler.is_empty() {
        return;
    }
    let _ = writeln!(out, "CPU: {}", report.cpu.number());
    let mut number = 0;
    let mut line = |out: &mut String, text: &str| {
        let _ = writeln!(out, "{:>3} {text}", format!("#{number}"));
        number += 1;
    };
    for frame in handler.iter().rev() {
        line(out, frame);
    }
    let mut task = task.iter().rev();
    if !handler.is_empty() {
        out.push_str("--- <IRQ stack> ---\n");
        // A maskable interrupt was taken here, so they were enabled.
        let innermost = task.next().copied().unwrap_or("a task without named frames");
        line(out, &format!("[exception at: {innermost}, interrupts enabled]"));
        if let Some(wait) = report.waits.first() {
            let waited = report.time.since(wait.since).as_secs_f64();
            let _ = writeln!(out, "      waits at {} for {waited:.3} s", place(wait.source));
        }
    }
    for frame in task {
        line(out, frame);
    }
    out.push('\n');
}

/// One line for each CPU: interrupts taken, the interrupt flag, and where it waits.
fn interrupts(out: &mut String, reports: &[CpuReport]) {
    let _ = writeln!(out, "{:>7}  {:>6}  {:>7}  {:<3}  where", "", "CAL", "LOC", "IF");
    for report in reports {
        let taken = |vector: u8| report.counters.taken[vector as usize];
        let flag = if report.interrupts_enabled { "on" } else { "off" };
        let _ = writeln!(
            out,
            "{:>7}  {:>6}  {:>7}  {flag:<3}  {}",
            format!("CPU {}", report.cpu.number()),
            taken(RING_VECTOR),
            taken(TIMER_VECTOR),
            whereabouts(report),
        );
    }
}

fn whereabouts(report: &CpuReport) -> String {
    let frame = report.frames.last().copied().unwrap_or("idle");
    let wait = report.waits.last();
    match report.activity {
        _ if report.wedged => format!("{frame}: does not move"),
        Activity::Waiting => match wait {
            Some(wait) => format!("{frame}: waits at {}", place(wait.source)),
            None => format!("{frame}: waits"),
        },
        Activity::Halted => format!("{frame}: halted until an interrupt"),
        Activity::Working | Activity::Running => match wait {
            Some(wait) => format!("{frame}: runs; interrupted a wait at {}", place(wait.source)),
            None => format!("{frame}: runs"),
        },
    }
}

/// A place in the source, from the crate's own folder on.
fn place(source: Source) -> String {
    let file = source.file().rsplit_once("src/").map_or(source.file(), |(_, file)| file);
    format!("{file}:{}", source.line())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::{Fault, Incident, Setup, When};
    use smpcall_local_apic::Routing;
    use smpcall_machine::Cpu;
    use smpcall_simulator::{Config, World};

    fn reports() -> (Cast, Vec<CpuReport>) {
        let setup = Setup {
            incident: Incident::LostCall,
            when: When::Then,
            cpus: 3,
            routing: Routing::Flat,
            seed: 1,
            fault: Fault::Reported,
        };
        let world = World::new(&Config::new(3, Routing::Flat, 1)).expect("a machine");
        (Cast::of(&setup), (0..3).map(|cpu| world.inspect(Cpu::new(cpu))).collect())
    }

    #[test]
    fn the_handler_stands_above_the_stack_it_interrupted_and_numbers_go_on() {
        let (_, mut reports) = reports();
        reports[2].frames = vec!["outer", "inner", "apic_timer_interrupt", "try_dump"];
        let mut out = String::new();
        stack(&mut out, &reports[2]);
        let expected = "CPU: 2\n #0 try_dump\n #1 apic_timer_interrupt\n--- <IRQ stack> ---\n \
                        #2 [exception at: inner, interrupts enabled]\n #3 outer\n\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn what_the_model_has_not_is_not_shown() {
        let (cast, reports) = reports();
        let view = then(cast, &reports, None);
        assert!(!view.contains("call_data:") && !view.contains("IRQ stack"), "{view}");
        let dump = Dump {
            saved_call_data: Counts { started: 1, finished: 1 },
            call_data: Counts { started: 2, finished: 2 },
        };
        let view = then(cast, &reports, Some(dump));
        assert!(view.contains("saved_call_data: started 1, finished 1 of 2"), "{view}");
    }

    #[test]
    fn every_cpu_has_its_line_and_a_wedged_one_says_so() {
        let (_, mut reports) = reports();
        reports[1].wedged = true;
        reports[1].interrupts_enabled = false;
        reports[1].counters.taken[RING_VECTOR as usize] = 7;
        reports[2].activity = Activity::Halted;
        let mut out = String::new();
        interrupts(&mut out, &reports);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[2], "  CPU 1       7        0  off  idle: does not move");
        assert_eq!(lines[3], "  CPU 2       0        0  on   idle: halted until an interrupt");
    }
}
