//! A report for somebody in a hurry: verdict, picture, CPUs, stacks that matter, evidence, what to look at next.

use core::fmt::Write;
use std::collections::BTreeMap;

use super::{details, headline, picture, ranges};
use crate::evidence::Frame;
use crate::report::{CpuRow, Part, Report};

/// So many CPUs are shown one by one; of the others it is said what they do.
const MOST_ROWS: usize = 16;
/// So many stacks are shown, and so many frames of each.
const MOST_STACKS: usize = 4;
const MOST_FRAMES: usize = 12;

impl Report {
    /// The whole report as plain text without colours, ending with a line break.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for verdict in &self.verdicts {
            // Writing to a `String` cannot fail, here and below.
            let _ = writeln!(out, "{}", headline(verdict));
        }
        if let Some(next) = self.verdicts.first().filter(|_| !self.is_healthy()) {
            let _ = writeln!(out, "NEXT {}", next.kind.next_step());
        }
        let picture = picture(&self.graph);
        if !picture.is_empty() {
            out.push_str("\nWho waits for whom:\n");
            for line in picture {
                let _ = writeln!(out, "  {line}");
            }
        }
        self.table(&mut out);
        self.stacks(&mut out);
        for verdict in &self.verdicts {
            let details = details(verdict);
            let without_next = details.lines().filter(|line| !line.starts_with("  next: "));
            let _ = writeln!(out, "\n{}", without_next.collect::<Vec<_>>().join("\n"));
        }
        self.about(&mut out);
        out
    }

    fn about(&self, out: &mut String) {
        let source = &self.source;
        let kernel = source.kernel.as_ref().map_or_else(String::new, |kernel| format!(", kernel {kernel}"));
        let below = source.hypervisor.as_ref().map_or_else(String::new, |name| format!(" under {name}"));
        let (kind, cpus, seconds) = (&source.kind, source.cpus, self.seconds);
        let _ = writeln!(out, "\nRead from: {kind}{kernel}{below}; CPUs known: {cpus}; took {seconds:.3} s");
        for moving in &source.moving {
            let _ = writeln!(out, "  moved while it was read: {moving}");
        }
        for gap in &source.gaps {
            let _ = writeln!(out, "  could not be read: {gap}");
        }
    }

    /// The CPUs that have a part first, then others as far as there is room.
    fn table(&self, out: &mut String) {
        // CPUs that look alike are one row.
        let mut alike: BTreeMap<(Part, [String; 6]), Vec<&CpuRow>> = BTreeMap::new();
        for row in self.cpus.iter().filter(|row| row.part != Part::None || is_known(row)) {
            alike.entry((row.part, cells(row))).or_default().push(row);
        }
        let mut groups: Vec<_> = alike.into_iter().collect();
        groups.sort_by_key(|((part, _), rows)| (*part, rows[0].cpu));
        groups.truncate(MOST_ROWS);
        groups.sort_by_key(|(_, rows)| rows[0].cpu);
        if groups.is_empty() {
            return;
        }
        let head =
            ["CPU", "part", "task", "interrupts", "calls", "waits for", "IRR", "where"].map(str::to_owned);
        let line = |((part, cells), rows): &((Part, [String; 6]), Vec<&CpuRow>)| {
            let cpus: Vec<u32> = rows.iter().map(|row| row.cpu).collect();
            let [interrupts, calls, waits, pending, task, place] = cells.clone();
            [ranges(&cpus), name_of(*part).to_owned(), task, interrupts, calls, waits, pending, place]
        };
        let rows: Vec<[String; 8]> = groups.iter().map(line).collect();
        let mut widths = head.each_ref().map(|cell| cell.chars().count());
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        // A column of which nothing is known tells nothing.
        let tells: Vec<bool> = (0..head.len()).map(|at| rows.iter().any(|row| row[at] != "-")).collect();
        out.push('\n');
        for row in core::iter::once(&head).chain(&rows) {
            let cells = row.iter().zip(widths).zip(&tells).filter(|(_, tells)| **tells);
            let line: Vec<String> = cells.map(|((cell, width), _)| format!("{cell:<width$}")).collect();
            let _ = writeln!(out, "  {}", line.join("  ").trim_end());
        }
        let is_shown = |cpu| groups.iter().any(|(_, rows)| rows.iter().any(|row| row.cpu == cpu));
        let mut kinds: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for row in self.cpus.iter().filter(|row| !is_shown(row.cpu)) {
            kinds.entry(activity(row)).or_default().push(row.cpu);
        }
        let mut kinds: Vec<(&str, Vec<u32>)> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, cpus)| cpus[0]);
        if !kinds.is_empty() {
            let kinds: Vec<String> =
                kinds.into_iter().map(|(kind, cpus)| format!("{} ({kind})", ranges(&cpus))).collect();
            let _ = writeln!(out, "  others: {}", kinds.join(", "));
        }
    }

    /// The stacks of those who hold the others up, then of those who wait.
    fn stacks(&self, out: &mut String) {
        let mut rows: Vec<&CpuRow> =
            self.cpus.iter().filter(|row| row.part != Part::None && !row.stack.is_empty()).collect();
        rows.sort_by_key(|row| (row.part, row.cpu));
        for row in rows.into_iter().take(MOST_STACKS) {
            let task = row.task.as_ref().map_or_else(String::new, |task| {
                let pid = task.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
                format!(" ({}{pid})", task.name)
            });
            let reason = row.reason.as_ref().map_or_else(String::new, |reason| format!(" {reason}"));
            let _ = writeln!(out, "\nCPU {}{task}{reason}:", row.cpu);
            // Guesses help only where there is nothing better.
            let any_sure = row.stack.iter().any(|frame| !frame.guess);
            let frames: Vec<&Frame> = row.stack.iter().filter(|frame| !any_sure || !frame.guess).collect();
            for (number, frame) in frames.iter().take(MOST_FRAMES).enumerate() {
                let _ = writeln!(out, "  #{number:<2} {frame}");
                if let Some(interrupted) = frame.interrupted {
                    let state = match interrupted.interrupts_enabled {
                        Some(true) => ", interrupts enabled",
                        Some(false) => ", interrupts disabled",
                        None => "",
                    };
                    let mode = if interrupted.user_mode == Some(true) { " in a user program" } else { "" };
                    let _ = writeln!(out, "  --- interrupted{mode}{state} ---");
                }
            }
            if let Some(more @ 1..) = frames.len().checked_sub(MOST_FRAMES) {
                let _ = writeln!(out, "  ... {more} more");
            }
            if let Some(why) = &row.stack_ended {
                let _ = writeln!(out, "  ({why})");
            }
        }
    }
}

/// Whether anything is known of it at all.
fn is_known(row: &CpuRow) -> bool {
    row.function.is_some() || row.idle.is_some() || row.interrupts_enabled.is_some() || row.pending.is_some()
}

fn activity(row: &CpuRow) -> &'static str {
    match row {
        CpuRow { online: Some(false), .. } => "offline",
        CpuRow { part: Part::Waiter, .. } => "waiting too",
        CpuRow { part: Part::Culprit | Part::Stuck, .. } => "stuck too",
        CpuRow { idle: Some(true), .. } => "idle",
        CpuRow { user_mode: Some(true), .. } => "in user programs",
        row if is_known(row) => "busy",
        _ => "nothing known",
    }
}

fn name_of(part: Part) -> &'static str {
    match part {
        Part::Culprit => "culprit",
        Part::Stuck => "stuck",
        Part::Waiter => "waiter",
        Part::None => "-",
    }
}

/// Interrupts, calls, waits, IRR, task, place.
fn cells(row: &CpuRow) -> [String; 6] {
    let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into());
    let interrupts = match (row.online, row.interrupts_enabled) {
        (Some(false), _) => Some("offline"),
        (_, Some(true)) => Some("on"),
        (_, Some(false)) => Some("OFF"),
        _ => None,
    };
    let place = match row {
        CpuRow { idle: Some(true), .. } => Some("idle".to_owned()),
        CpuRow { user_mode: Some(true), .. } => Some("user program".to_owned()),
        _ => row.function.clone(),
    };
    // The tasks of one group differ in what stands behind the slash.
    let task = row.task.as_ref().map(|task| match task.name.rsplit_once('/') {
        Some((name, cpu)) if cpu.parse() == Ok(row.cpu) => format!("{name}/*"),
        _ => task.name.clone(),
    });
    [
        or_dash(interrupts.map(str::to_owned)),
        or_dash(row.queued.map(|queued| queued.to_string())),
        or_dash((!row.waits_for.is_empty()).then(|| format!("CPU {}", ranges(&row.waits_for)))),
        or_dash(row.pending.as_ref().map(|pending| {
            let vectors: Vec<String> = pending.iter().map(u8::to_string).collect();
            if vectors.is_empty() { "none".into() } else { vectors.join(" ") }
        })),
        or_dash(task),
        or_dash(place),
    ]
}

#[cfg(test)]
mod tests {
    use crate::evidence::{Frame, MachineEvidence, Task, WaitEvidence};
    use crate::report::Report;
    use crate::samples::{machine, waiting_call, waits_for_cpu_0};

    fn interrupts_off() -> MachineEvidence {
        let mut evidence = waits_for_cpu_0(|cpu| {
            cpu.interrupts_enabled = Some(false);
            cpu.stack =
                ["native_queued_spin_lock_slowpath", "_raw_spin_lock_irqsave", "eth_poll", "net_rx_action"]
                    .map(Frame::of)
                    .into();
            cpu.task = Some(Task { name: "ksoftirqd/0".into(), pid: Some(16) });
        });
        evidence.cpus[1].wait = Some(WaitEvidence { targets: vec![0], ..WaitEvidence::default() });
        evidence.kernel = Some("6.1.0".into());
        evidence
    }

    #[test]
    fn a_report_reads_like_this() {
        let report = Report::new("elf", &interrupts_off(), 0.0123);
        insta::assert_snapshot!(report.text());
    }

    #[test]
    fn many_cpus_are_summed_up() {
        let mut evidence = machine(64);
        evidence.calls = (1..40).map(|cpu| waiting_call(cpu, 0)).collect();
        for cpu in &mut evidence.cpus[40..60] {
            cpu.idle = Some(true);
        }
        let text = Report::new("elf", &evidence, 0.0).text();
        assert!(text.contains("\n  1-39   waiter"), "{text}");
        assert!(text.contains("\n  40-59  -"), "{text}");
        for (number, cpu) in evidence.cpus.iter_mut().enumerate() {
            (cpu.function, cpu.idle) = (Some(format!("function_{number}")), Some((40..60).contains(&number)));
        }
        let text = Report::new("elf", &evidence, 0.0).text();
        assert!(text.contains("  others: 16-39 (waiting too), 40-59 (idle), 60-63 (busy)"), "{text}");
    }

    #[test]
    fn a_healthy_machine_is_told_so_in_a_few_lines() {
        let text = Report::new("log", &machine(1), 0.0).text();
        assert!(text.starts_with("VERDICT healthy (certain)"), "{text}");
        assert!(!text.contains("NEXT"), "{text}");
    }
}
