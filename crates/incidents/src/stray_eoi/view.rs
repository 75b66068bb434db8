//! What somebody at the machine has in hand: the interrupt table, and what a look at the in-service register before each end
//! of interrupt finds, as the reporter's test patch took. Beside it what sending costs. Only what the model really has.

use core::fmt::Write;
use core::time::Duration;

use smpcall_local_apic::Routing;
use smpcall_machine::{Event, EventKind, Instant};
use smpcall_simulator::{ConfigError, CpuReport, RING_VECTOR, TIMER_VECTOR};

use super::board::{DISK_VECTOR, EDGES, TIMER_VECTOR as LEGACY_TIMER_VECTOR};
use super::ends::Ends;
use super::sending::{self, Cost, RESCHEDULE_VECTOR};
use super::tasks::Books;
use super::then::{Seen, count, millis};
use crate::incident::{Fault, Setup};

/// What an APIC of the P6 family does.
const OFFERED_AGAIN: &str =
    "times the I/O APIC's bus offered an interrupt again: the APIC held two of its class already";

/// CPUs with a column of their own.
const COLUMNS: usize = 8;

/// As then.
pub(super) fn then(seen: &Seen<'_>) -> String {
    let mut out = String::new();
    interrupts(&mut out, seen.reports, RESCHEDULE_VECTOR, "rescheduling interrupts");
    let Ends { own, of_nothing, too_late, cut_short, early } = seen.ends;
    // Writing to a `String` cannot fail, here and below.
    let _ = writeln!(
        out,
        "\nLocal-APIC EOIs, told apart by a look at the in-service register, as by the reporter's test patch (counts ours):"
    );
    let mut line = |count: u64, what: &str| {
        let _ = writeln!(out, "{count:>8}  {what}");
    };
    line(*own, "by the handler of the vector in service");
    line(*of_nothing, "by irq 0 with nothing in service: no effect");
    line(cut_short.len() as u64, "by irq 0 with another vector in service, whose bit it cleared");
    line(*too_late, "by the handlers of those, when they were done: nothing was in service any more");
    line(early.len() as u64, "interrupts nested in such a handler that its bit would have held back");
    line(seen.lost, "vectors lost");
    let again = super::offered_again(seen.reports);
    if again > 0 {
        line(again, OFFERED_AGAIN);
    }
    if let Some(early) = early.first() {
        out.push_str("\nThe first time:\n");
        let cut = cut_short.iter().rev().find(|cut| cut.cpu == early.cpu && cut.time <= early.time);
        let taken = cut.and_then(|cut| {
            seen.events.iter().rev().find(|event| {
                let inside = event.kind == EventKind::InterruptTaken && event.detail == u32::from(cut.vector);
                inside && event.cpu == cut.cpu && event.time <= cut.time
            })
        });
        let mut at = |time: Instant, what: String| {
            let time = Duration::from_nanos(time.as_nanos());
            let _ = writeln!(out, "  {:>10}  {}  {what}", millis(time), early.cpu);
        };
        if let (Some(cut), Some(taken)) = (cut, taken) {
            at(
                taken.time,
                format!("{:#04x} (ide_intr) is taken and in service; it enables interrupts", cut.vector),
            );
            at(
                cut.time,
                format!(
                    "irq 0 (ExtINT, {:#04x}) writes an EOI: {:#04x} is in service no longer",
                    cut.by, cut.vector
                ),
            );
        }
        at(early.time, format!("{:#04x} is taken inside ide_intr", early.vector));
    }
    let _ = writeln!(
        out,
        "\nLongest time from waking a task until it ran: {} ({} of {} waited for a tick; ours)",
        millis(seen.tasks.longest_stall),
        seen.tasks.found_late,
        seen.tasks.woken,
    );
    out.push_str("\nOne IPI to one CPU on this routing (ours: the report has no figures):\n");
    let _ = writeln!(out, "  {:<38}{}", "", COST_HEADER);
    row(&mut out, "mask path", seen.costs.mask_then);
    row(&mut out, "one operation", seen.costs.single);
    out
}

/// As now.
pub(super) fn now(
    setup: &Setup,
    reports: &[CpuReport],
    ends: &Ends,
    tasks: Books,
    events: &[Event],
) -> Result<String, ConfigError> {
    let mut out = String::new();
    interrupts(&mut out, reports, RING_VECTOR, "rings of smpcall");
    let legacy = count(events, EventKind::InterruptTaken, LEGACY_TIMER_VECTOR);
    let at_apic = count(events, EventKind::EndOfInterrupt, LEGACY_TIMER_VECTOR);
    out.push('\n');
    let mut line = |count: u64, what: &str| {
        let _ = writeln!(out, "{count:>8}  {what}");
    };
    line(ends.own, "local-APIC EOIs, each by the handler of the vector in service");
    line(
        ends.of_nothing + ends.too_late + ends.cut_short.len() as u64,
        "local-APIC EOIs that belonged to nothing",
    );
    match setup.fault {
        Fault::None => line(at_apic as u64, "of irq 0, which the I/O APIC sends as an ordinary interrupt"),
        _ => line(
            (legacy - at_apic) as u64,
            "ExtINTs of irq 0, which have no in-service token: ended at the 8259 alone",
        ),
    }
    let again = super::offered_again(reports);
    if again > 0 {
        line(again, OFFERED_AGAIN);
    }
    let _ = writeln!(
        out,
        "\nLongest time from waking a task until it ran: {} ({} of {} waited for a tick, which is {})",
        millis(tasks.longest_stall),
        tasks.found_late,
        tasks.woken,
        millis(super::TICK),
    );
    let _ = writeln!(
        out,
        "\nOne IPI to one CPU, to CPU {} of {} (ours; times of the model, without jitter):",
        setup.cpus - 1,
        setup.cpus
    );
    let _ = writeln!(out, "  {:<38}{}", "", COST_HEADER);
    for routing in Routing::ALL.into_iter().filter(|routing| setup.cpus <= routing.max_cpus() as usize) {
        let costs = sending::measure(routing, setup.cpus)?;
        row(&mut out, &format!("{:<15} mask path then", routing.name()), costs.mask_then);
        row(&mut out, &format!("{:<15} set of one now", ""), costs.mask_now);
        row(&mut out, &format!("{:<15} one operation now", ""), costs.single);
    }
    out.push_str(
        "(Words are accesses to tables and masks in memory; a set on our stack is not among them.)\n",
    );
    Ok(out)
}

const COST_HEADER: &str = "reg. reads  writes  commands  words     ns";

fn row(out: &mut String, name: &str, cost: Cost) {
    let Cost { register_reads, register_writes, commands, words, nanos } = cost;
    let _ = writeln!(
        out,
        "  {name:<38}{register_reads:>10}  {register_writes:>6}  {commands:>8}  {words:>5}  {nanos:>5}"
    );
}

/// As `/proc/interrupts` shows them: a line for each vector.
fn interrupts(out: &mut String, reports: &[CpuReport], ipi: u8, ipi_name: &str) {
    let shown = reports.len().min(COLUMNS);
    let _ = write!(out, "{:>8}", "");
    for report in &reports[..shown] {
        let _ = write!(out, "{:>8}", format!("CPU{}", report.cpu.number()));
    }
    let _ = writeln!(out, "{}", if shown < reports.len() { "  others" } else { "" });
    let mut rows = vec![("0:".to_owned(), LEGACY_TIMER_VECTOR, "timer".to_owned())];
    rows.extend(
        EDGES.map(|(line, vector, name)| (format!("{line}:"), vector, format!("IO-APIC-edge    {name}"))),
    );
    rows.push(("19:".into(), DISK_VECTOR, "IO-APIC-fasteoi ide".into()));
    rows.push(("LOC:".into(), TIMER_VECTOR, "local timer interrupts".into()));
    rows.push(("RES:".into(), ipi, ipi_name.into()));
    for (name, vector, what) in rows {
        let taken = |report: &CpuReport| report.counters.taken[vector as usize];
        let _ = write!(out, "{name:>8}");
        for report in &reports[..shown] {
            let _ = write!(out, "{:>8}", taken(report));
        }
        if shown < reports.len() {
            let _ = write!(out, "{:>8}", reports[shown..].iter().map(taken).sum::<u64>());
        }
        let _ = writeln!(out, "  {what}");
    }
}
