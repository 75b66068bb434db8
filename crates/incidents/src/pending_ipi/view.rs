//! What somebody at the machine has in hand. The report has no console output: as then this shows the stack at which the
//! capture kernel stopped, and what the local APIC held; as now, what was read back from the dump.

use core::fmt::Write;
use core::time::Duration;

use smpcall::vmcore::Role;
use smpcall_local_apic::{Drained, Vectors};
use smpcall_simulator::CpuReport;

use super::capture::WINDOW;
use super::dump::Dump;
use super::now::Course;
use super::scene::{CALL_FUNCTION, TIMER};
use super::then::{FIRST_EXTERNAL_VECTOR, Remains, TIMER_PERIODS};
use super::{Cast, human, listed};
use crate::evidence::split_frames;

/// As then.
pub(super) fn then(cast: Cast, remains: &Remains, with_a_look: Option<&Remains>) -> String {
    let mut out = String::from("(The model has no PIDs, tasks, registers or addresses: none are shown.)\n\n");
    if let Some(vector) = remains.oops {
        // Writing to a `String` cannot fail, here and below.
        let _ = writeln!(
            out,
            "Capture kernel on {}: page fault in the handler of vector {vector:#04x}: call_data is null",
            cast.crasher
        );
        stack(&mut out, &remains.at_the_end);
    } else if remains.dumped {
        let _ = writeln!(out, "Capture kernel on {}: up, its first call returned", cast.crasher);
    }
    if let Some(at_crash) = &remains.at_crash {
        out.push_str("\nlocal APIC of the crashed CPU      IRR                  ISR\n");
        apic(&mut out, "as it left the first kernel", at_crash);
        apic(&mut out, "where the capture kernel is", &remains.at_the_end);
        if cast.leaves_pending {
            out.push_str("  (0xfb is the report's; the others, and the one in service, are ours.)\n");
        }
    }
    if let Some(look) = with_a_look {
        out.push_str("\nAnother machine (ours), on which the handler looks at call_data first, the report's first solution:\n");
        for &vector in &look.misrouted {
            let line = vector - FIRST_EXTERNAL_VECTOR;
            let _ = writeln!(out, "  vector {vector:#04x} comes to the gate of interrupt {line}: unexpected");
        }
        let _ = writeln!(
            out,
            "  the timer, vector {:#04x}: {} of {TIMER_PERIODS} ticks taken; IRR {}, ISR {}",
            TIMER.vector,
            look.timer_ticks,
            listed(look.at_the_end.requested.iter().copied()),
            listed(look.at_the_end.in_service.iter().copied()),
        );
    }
    out
}

fn apic(out: &mut String, when: &str, report: &CpuReport) {
    let (requested, in_service) =
        (listed(report.requested.iter().copied()), listed(report.in_service.iter().copied()));
    let _ = writeln!(out, "  {when:<32} {requested:<20} {in_service}");
}

/// The frames of a CPU, innermost first; those of a handler above those that it interrupted.
fn stack(out: &mut String, report: &CpuReport) {
    let (task, handler) = split_frames(&report.frames);
    let mut number = 0;
    let mut lines = |out: &mut String, frames: &[&str]| {
        for frame in frames.iter().rev() {
            let _ = writeln!(out, "{:>3} {frame}", format!("#{number}"));
            number += 1;
        }
    };
    lines(out, handler);
    if !handler.is_empty() {
        out.push_str("--- <interrupt> ---\n");
    }
    lines(out, task);
}

/// As now: the dump, what the drain did, and the capture kernel; beside it one with one CPU.
pub(super) fn now(course: &Course, alone: Option<&Course>) -> String {
    let mut out = String::new();
    match &course.dump {
        Ok(dump) => show_dump(&mut out, dump),
        Err(error) => {
            let _ = writeln!(out, "No dump: {error}");
        }
    }
    if let Some(drained) = course.drained {
        show_drain(&mut out, course, &drained);
    }
    out.push_str("\ncapture kernel     CPU  others started  answered  INITs to CPU 0  notes in dump  old vectors left\n");
    row(&mut out, "with all CPUs", course);
    if let Some(alone) = alone {
        row(&mut out, "with one CPU", alone);
    }
    out
}

fn show_dump(out: &mut String, dump: &Dump) {
    let release = dump.release.as_deref().unwrap_or("unknown");
    let _ = writeln!(
        out,
        "Read back from the dump ({} bytes, {} notes, kernel {release}):",
        dump.bytes, dump.notes
    );
    if let Some(summary) = &dump.summary {
        let _ = writeln!(
            out,
            "  crash of CPU {} at {:.3} ms: {} of {} CPUs saved, {} NMIs",
            summary.winner,
            Duration::from_nanos(summary.time).as_secs_f64() * 1e3,
            summary.saved,
            summary.expected,
            summary.nmis
        );
    }
    for (stopped, registers) in dump.stopped.iter().take(MOST_LINES) {
        let how = match stopped.role {
            Role::Winner => "crashed",
            Role::Stopped => "stopped by NMI",
            Role::Loser => "crashed too",
        };
        let flag = if registers.interrupts_enabled() { "on" } else { "off" };
        let _ = writeln!(out, "  NT_PRSTATUS  CPU {:<4} {how}, interrupts {flag}", stopped.cpu);
    }
    if let Some(more) = dump.stopped.len().checked_sub(MOST_LINES).filter(|&more| more > 0) {
        let _ = writeln!(out, "  NT_PRSTATUS  {more} more CPUs");
    }
    for missing in &dump.missing {
        let _ = writeln!(out, "  missing      CPU {:<4} {}", missing.cpu, missing.why);
    }
    if let Some(pending) = &dump.pending {
        let words = |words: [u32; 8]| listed(Vectors::from_words(words).iter());
        let _ = writeln!(out, "  local APIC of CPU {} at the crash", pending.cpu);
        let _ = writeln!(out, "    IRR        {}", words(pending.requested));
        let _ = writeln!(out, "    ISR        {}", words(pending.in_service));
        let _ = writeln!(out, "    TMR        {}", words(pending.level_triggered));
        let _ = writeln!(out, "    ESR        {:#x}", pending.errors);
    }
}

/// So many CPUs have a line of their own.
const MOST_LINES: usize = 16;

fn show_drain(out: &mut String, course: &Course, drained: &Drained) {
    let taken: Vec<String> =
        course.gates.iter().map(|(vector, count)| format!("{vector:#04x} x {count}")).collect();
    let taken = if taken.is_empty() { "none".to_owned() } else { taken.join(", ") };
    let ipi = if course.gates.iter().any(|&(vector, _)| vector == CALL_FUNCTION) {
        "  (the module's IPI among them)"
    } else {
        ""
    };
    let _ = writeln!(out, "\nDrain, {} of the {} that it may take:", human(course.drain_took), human(WINDOW));
    let _ = writeln!(out, "  ended            {}", listed(drained.ended.iter()));
    let _ = writeln!(out, "  taken by gates   {taken}{ipi}");
    let _ = writeln!(
        out,
        "  remained         pending {}, in service {}",
        listed(drained.requests.iter()),
        listed(drained.in_service.iter())
    );
}

fn row(out: &mut String, name: &str, course: &Course) {
    let left = course.drained.map_or(0, |drained| drained.requests.len() + drained.in_service.len());
    let notes = course.dump.as_ref().map_or_else(|_| "none".into(), |dump| dump.notes.to_string());
    let _ = writeln!(
        out,
        "  {name:<15}  {:>3}  {:>14}  {:>8}  {:>14}  {notes:>13}  {left:>16}",
        course.cast.crasher.number(),
        course.started.len(),
        course.answered,
        course.boot_cpu_inits,
    );
}
