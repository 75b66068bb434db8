//! What somebody at the machine has in hand: the stack of the CPU that crashes, where the others are, and whether there is a
//! dump. Beside it the solutions of the report with their costs. Only what the model really has.

use core::fmt::Write;
use core::time::Duration;

use smpcall_local_apic::IcrPolicy;
use smpcall_machine::Instant;
use smpcall_simulator::{ConfigError, CpuReport, Source};

use super::now::{Course, Ended, took};
use super::policies::{self, Costs};
use super::{Cast, human, is_locked_up, ranges};
use crate::incident::Setup;

/// As then.
pub(super) fn then(
    setup: &Setup,
    cast: Cast,
    at: Instant,
    reports: &[CpuReport],
    dump_started: bool,
) -> Result<String, ConfigError> {
    let mut out = String::from("(The model has no PIDs, tasks, registers or addresses: none are shown.)\n\n");
    stack(&mut out, &reports[cast.crasher.index()], at);
    cpus(&mut out, reports);
    out.push_str(if dump_started {
        "\nThe capture kernel was booted.\n"
    } else {
        "\nNo dump: the capture kernel was not booted.\n"
    });
    table(&mut out, setup.cpus)?;
    Ok(out)
}

/// As now.
pub(super) fn now(
    setup: &Setup,
    cast: Cast,
    ended: Option<&Ended>,
    course: Course,
    at_the_end: &[CpuReport],
) -> Result<String, ConfigError> {
    let mut out = String::new();
    if let Some(ended) = ended {
        crash_stop(&mut out, cast, ended, course);
    }
    cpus(&mut out, ended.map_or(at_the_end, |ended| &ended.reports));
    table(&mut out, setup.cpus)?;
    Ok(out)
}

fn crash_stop(out: &mut String, cast: Cast, ended: &Ended, course: Course) {
    // Writing to a `String` cannot fail, here and below.
    let _ = writeln!(out, "Crash stop of {}:", cast.crasher);
    let _ = writeln!(
        out,
        "  NMIs     {} rounds, {} of them refused by the busy controller; {} sent, {} of these again",
        course.rounds, course.refused, course.sent, course.repeated
    );
    let _ = writeln!(out, "  saved    {}", ranges(ended.saved.iter().copied()));
    // One line for all of whom the same is known.
    let mut reasons: Vec<String> = ended.missing.iter().map(|(_, why)| why.to_string()).collect();
    reasons.dedup();
    for reason in reasons {
        let these = ended.missing.iter().filter(|(_, why)| why.to_string() == reason).map(|&(cpu, _)| cpu);
        let _ = writeln!(out, "  missing  {}: {reason}", ranges(these));
    }
    if let Some(took) = took(ended, course) {
        let _ = writeln!(out, "  took     {}, then the capture kernel was booted", human(took));
    }
    out.push('\n');
}

/// The frames of a CPU, innermost first, with the wait it is in.
fn stack(out: &mut String, report: &CpuReport, at: Instant) {
    let _ = writeln!(out, "{}", report.cpu);
    for (number, frame) in report.frames.iter().rev().enumerate() {
        let _ = writeln!(out, "{:>3} {frame}", format!("#{number}"));
    }
    if let Some(wait) = report.waits.last() {
        let end = if wait.deadline.is_never() { "no deadline" } else { "with a deadline" };
        let _ =
            writeln!(out, "      waits at {} for {}, {end}", place(wait.source), human(at.since(wait.since)));
    }
    out.push('\n');
}

/// One line for each CPU: NMIs taken, the interrupt flag, the delivery status, and where it is.
fn cpus(out: &mut String, reports: &[CpuReport]) {
    let _ = writeln!(out, "{:>7}  {:>4}  {:<3}  {:<7}  where", "", "NMI", "IF", "ICR");
    for report in reports {
        let flag = if report.interrupts_enabled { "on" } else { "off" };
        let status = if report.send_pending { "pending" } else { "idle" };
        let nmis = report.counters.nmis_taken;
        let place = whereabouts(report);
        let name = format!("CPU {}", report.cpu.number());
        let _ = writeln!(out, "{name:>7}  {nmis:>4}  {flag:<3}  {status:<7}  {place}");
    }
}

fn whereabouts(report: &CpuReport) -> String {
    let frame = report.frames.last().copied().unwrap_or("idle");
    if is_locked_up(report) {
        return "in its NMI handler, does not move".into();
    }
    if report.parked {
        return "saved its registers and is parked".into();
    }
    match report.waits.last() {
        Some(wait) => format!("{frame}: waits at {}", place(wait.source)),
        None => frame.into(),
    }
}

/// A place in the source, from the crate's own folder on.
fn place(source: Source) -> String {
    let file = source.file().rsplit_once("src/").map_or(source.file(), |(_, file)| file);
    format!("{file}:{}", source.line())
}

/// The solutions of the report, what was there, and ours.
fn table(out: &mut String, cpus: usize) -> Result<(), ConfigError> {
    let all = policies::measure(cpus)?;
    let mask_cpus = policies::mask_cpus(cpus);
    out.push_str("\nHow to wait for the ICR: the report's solutions beside ours (measured on the model, without jitter):\n");
    let _ = writeln!(
        out,
        "  {:<39}{:<35}NMI to all others, stuck ICR: given up after",
        "", "ordinary send, idle ICR"
    );
    let _ = writeln!(
        out,
        "  {:<39}{:<12}{:<13}{:<10}{:<22}one each ({cpus} CPUs)",
        "",
        "reg. reads",
        "clock reads",
        "time",
        format!("one command ({mask_cpus} CPUs)")
    );
    for costs in &all {
        row(out, costs);
    }
    let [then, a, ..] = &all;
    let _ = writeln!(
        out,
        "Why A was not wanted: its udelay(100) comes before its first read, so every send pays {} instead of {}.\n\
         B-1 and B-2 spare ordinary sends, and pay it for each command of a crash whose controller is idle.",
        human(a.ordinary.time),
        human(then.ordinary.time),
    );
    Ok(())
}

fn row(out: &mut String, costs: &Costs) {
    let what = match costs.policy {
        IcrPolicy::Unbounded => "no bound",
        IcrPolicy::BoundedEverywhere => "1000 x 100 us everywhere",
        IcrPolicy::SeparateSenders => "the same, separate senders",
        IcrPolicy::BoundedForNmi => "the same, if it is an NMI",
        IcrPolicy::Ours => "20 us, NMIs 100 ms once, a retry",
    };
    let given_up = |after: Option<Duration>| after.map_or("never".into(), human);
    let ordinary = costs.ordinary;
    let _ = writeln!(
        out,
        "  {:<5}{what:<34}{:>10}  {:>11}  {:<10}{:<22}{}",
        costs.policy.name(),
        ordinary.register_reads,
        ordinary.clock_reads,
        human(ordinary.time),
        given_up(costs.stuck_mask),
        given_up(costs.stuck_each),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stuck_icr::reports;
    use smpcall_local_apic::Routing;
    use smpcall_machine::{Cpu, Deadline};
    use smpcall_simulator::{Config, WaitReport, World};
    use std::panic::Location;

    fn three() -> Vec<CpuReport> {
        reports(&World::new(&Config::new(3, Routing::Flat, 1)).expect("a machine"))
    }

    #[test]
    fn the_stack_shows_the_wait_and_that_it_has_no_end() {
        let mut report = three().swap_remove(1);
        report.frames = vec!["panic", "apic_wait_icr_idle"];
        let since = Instant::from_nanos(1_000);
        report.waits.push(WaitReport { source: Location::caller(), since, deadline: Deadline::NEVER });
        let mut out = String::new();
        stack(&mut out, &report, Instant::from_nanos(2_000_001_000));
        assert!(
            out.starts_with("CPU 1\n #0 apic_wait_icr_idle\n #1 panic\n      waits at stuck_icr/view.rs:"),
            "{out}"
        );
        assert!(out.ends_with(" for 2.00 s, no deadline\n\n"), "{out}");
    }

    #[test]
    fn who_is_locked_up_and_who_is_parked_have_each_their_words() {
        let mut reports = three();
        (reports[0].in_nmi, reports[0].wedged, reports[0].interrupts_enabled) = (true, true, false);
        reports[1].parked = true;
        reports[2].send_pending = true;
        let mut out = String::new();
        cpus(&mut out, &reports);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[1], "  CPU 0     0  off  idle     in its NMI handler, does not move");
        assert_eq!(lines[2], "  CPU 1     0  on   idle     saved its registers and is parked");
        assert_eq!(lines[3], "  CPU 2     0  on   pending  idle");
    }

    #[test]
    fn missing_cpus_are_named_with_what_is_known_of_them() {
        use smpcall::vmcore::Absence;
        let missing = [0, 2, 3]
            .map(Cpu::new)
            .map(|cpu| (cpu, if cpu.number() == 3 { Absence::TakesNoNmi } else { Absence::NoSignOfLife }));
        let ended = Ended::for_test(vec![Cpu::new(1)], missing.to_vec());
        let course = Course { began: Some(Instant::default()), rounds: 4, refused: 4, sent: 0, repeated: 0 };
        let (cpus, crasher) = (4, Cpu::new(1));
        let mut out = String::new();
        crash_stop(&mut out, Cast { cpus, crasher, fault: crate::incident::Fault::Reported }, &ended, course);
        assert!(out.contains("  saved    1\n  missing  0,2: it has not saved its registers, and nothing else is known of it\n"), "{out}");
        assert!(out.contains("  missing  3: it has not declared that it can take an NMI\n"), "{out}");
    }
}
