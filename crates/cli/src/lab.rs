//! `smpcall lab`: runs the lab kernel's suites and prints what came of them.

use std::fmt::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use smpcall_lab_runner::line::Line;
use smpcall_lab_runner::report::{Check, Goal, Outcome, Report, SuiteReport};
use smpcall_lab_runner::{self as lab, Error, Options, Suite, Watch};

use crate::Finding;
use crate::arguments;
use crate::failure::Failure;
use crate::files;
use crate::interrupt::Interrupt;
use crate::terminal::{self, Terminal, Tone};

/// Runs them. Something is found if a check failed, or a run did not come to its end.
pub(crate) fn run(wanted: &arguments::Lab, terminal: &Terminal) -> Result<Finding, Failure> {
    if let Some(path) = &wanted.vmcore {
        files::check_name(path)?;
    }
    let options = Options {
        suites: wanted.suites.clone(),
        cpus: wanted.cpus,
        apic: wanted.apic,
        machine: wanted.machine,
        accel: wanted.accel,
        icount: wanted.icount,
        seed: wanted.seed,
        operations: wanted.operations,
        drop: wanted.drop.map(smpcall_simulator::faults::Probability::get),
        image: wanted.image.clone(),
        vmcore: wanted.vmcore.clone(),
    };
    let interrupt = Interrupt::watch().map_err(|error| Failure::signals(&error))?;
    let mut progress = Progress::new(terminal, &interrupt);
    let report = lab::run(&options, &mut progress);
    progress.bar.finish_and_clear();
    let report = report.map_err(|error| match error {
        Error::Misuse(error) => Failure::usage(error),
        Error::Start(error) => Failure::Start(error.to_string()),
    })?;
    terminal::print(&if wanted.json { json(&report) } else { prose(&report, terminal) })?;
    Ok(if report.is_right() { Finding::Nothing } else { Finding::Something })
}

/// Shows how far the run is, if somebody watches.
struct Progress<'t> {
    terminal: &'t Terminal,
    interrupt: &'t Interrupt,
    bar: ProgressBar,
}

impl<'t> Progress<'t> {
    fn new(terminal: &'t Terminal, interrupt: &'t Interrupt) -> Self {
        let target = if terminal.shows_progress() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        // No colours: NO_COLOR needs no care.
        let style = ProgressStyle::with_template("{prefix:<12} {wide_bar} {pos}/{len} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { terminal, interrupt, bar }
    }
}

impl Watch for Progress<'_> {
    fn note(&mut self, remark: &str) {
        self.terminal.note(remark);
    }

    fn begin(&mut self, suite: Suite) {
        self.bar.reset();
        self.bar.set_prefix(suite.name());
    }

    fn hear(&mut self, line: &Line<'_>) {
        if let Line::Progress { name, done, total } = line {
            self.bar.set_prefix((*name).to_owned());
            self.bar.set_length(*total);
            self.bar.set_position((*done).min(*total));
        }
    }

    fn end(&mut self, _: &SuiteReport) {
        self.bar.reset();
    }

    fn is_cancelled(&self) -> bool {
        self.interrupt.came()
    }
}

fn json(report: &Report) -> String {
    // No map with keys that are not text, no number that JSON has not: it cannot fail.
    serde_json::to_string_pretty(report).unwrap_or_default() + "\n"
}

fn prose(report: &Report, terminal: &Terminal) -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail, here and below.
    let _ = writeln!(out, "lab: {}", verdict(report, terminal));
    let Report { machine, version, cpus, apic, seconds, .. } = report;
    let _ = writeln!(out, "  machine   {machine} {version}, {cpus} CPUs, {apic}, {seconds:.1} s");
    let _ = writeln!(
        out,
        "\n  {:<12} {:>7} {:>7} {:>8} {:>9}",
        "suite", "passed", "failed", "skipped", "seconds"
    );
    for suite in &report.suites {
        let SuiteReport { name, passed, failed, skipped, details } = suite;
        let deviations = match suite.deviations() {
            0 => String::new(),
            some => format!("  {some} known deviations of this emulator among those that passed"),
        };
        let seconds = details.seconds;
        let _ = writeln!(out, "  {name:<12} {passed:>7} {failed:>7} {skipped:>8} {seconds:>9.1}{deviations}");
    }
    for suite in &report.suites {
        if !suite.details.goals.is_empty() {
            out.push_str(&goals(&suite.details.goals, terminal));
        }
    }
    for suite in &report.suites {
        out.push_str(&particulars(suite, terminal));
    }
    out
}

fn verdict(report: &Report, terminal: &Terminal) -> String {
    let sum = |of: fn(&SuiteReport) -> u64| report.suites.iter().map(of).sum::<u64>();
    let (passed, failed, skipped) =
        (sum(|suite| suite.passed), sum(|suite| suite.failed), sum(|suite| suite.skipped));
    let skipped_too = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    match (failed, passed) {
        (0, 0) => format!("{}: nothing was checked{skipped_too}", terminal.tinted("SKIPPED", Tone::Bad)),
        (0, _) => format!("{}: {passed} checks{skipped_too}", terminal.tinted("HELD", Tone::Good)),
        _ => format!(
            "{}: {failed} of {} checks{skipped_too}",
            terminal.tinted("FAILED", Tone::Bad),
            passed + failed
        ),
    }
}

/// Figures beside what they should be.
fn goals(goals: &[Goal], terminal: &Terminal) -> String {
    let mut out = format!(
        "\n  {:<42} {:>8} {:>8}  {:<16}\n",
        "guest instructions of all CPUs", "measured", "at most", "Linux 6.12"
    );
    for Goal { what, measured, goal, linux, held, .. } in goals {
        let word =
            if *held { terminal.tinted("held", Tone::Good) } else { terminal.tinted("FAILED", Tone::Bad) };
        let (measured, goal) = (grouped(*measured), grouped(*goal));
        let _ = writeln!(out, "  {what:<42} {measured:>8} {goal:>8}  {linux:<16} {word}");
    }
    out
}

/// The number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What did not come out as it should, what was not made, and what is worth knowing.
fn particulars(suite: &SuiteReport, terminal: &Terminal) -> String {
    let mut out = String::new();
    let name = suite.name;
    for Check { name: check, outcome, text } in &suite.details.checks {
        let word = match outcome {
            Outcome::Passed => continue,
            Outcome::Failed => terminal.tinted("FAILED", Tone::Bad),
            Outcome::Skipped | Outcome::KnownDeviation => outcome.to_string(),
        };
        let _ = writeln!(out, "\n  {name}: {word}: {check}");
        if !text.is_empty() {
            for line in terminal::wrapped(text, 100).lines() {
                let _ = writeln!(out, "    {line}");
            }
        }
    }
    for note in &suite.details.notes {
        let _ = writeln!(out, "\n  {name}: {note}");
    }
    if !suite.details.console.is_empty() {
        let _ = writeln!(out, "\n  {name}: seed {}; the end of the console:", suite.details.seed);
        for line in &suite.details.console {
            let _ = writeln!(out, "    | {line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use smpcall_lab_runner::report::Details;

    fn suite(outcomes: &[Outcome], console: &[&str]) -> SuiteReport {
        let checks = outcomes.iter().enumerate();
        let checks =
            checks.map(|(at, &outcome)| Check { name: format!("check_{at}"), outcome, text: "why".into() });
        let count =
            |wanted: &[Outcome]| outcomes.iter().filter(|outcome| wanted.contains(outcome)).count() as u64;
        SuiteReport {
            name: "calls",
            passed: count(&[Outcome::Passed, Outcome::KnownDeviation]),
            failed: count(&[Outcome::Failed]),
            skipped: count(&[Outcome::Skipped]),
            details: Details {
                checks: checks.collect(),
                console: console.iter().map(|&line| line.into()).collect(),
                seed: 7,
                ..Details::default()
            },
        }
    }

    fn shown(suites: Vec<SuiteReport>) -> String {
        let report = Report {
            machine: "qemu",
            version: "10.0.2".into(),
            cpus: 4,
            apic: "x2apic",
            suites,
            seconds: 1.25,
        };
        prose(&report, &Terminal::new(true))
    }

    #[test]
    fn what_failed_is_shown_with_the_seed_and_the_console() {
        let text = shown(vec![suite(&[Outcome::Passed, Outcome::Failed], &["panicked at x"])]);
        assert!(text.starts_with("lab: FAILED: 1 of 2 checks\n"), "{text}");
        assert!(text.contains("calls: FAILED: check_1\n    why\n"), "{text}");
        assert!(text.contains("calls: seed 7; the end of the console:\n    | panicked at x\n"), "{text}");
    }

    #[test]
    fn what_was_skipped_has_not_passed() {
        let text = shown(vec![suite(&[Outcome::Skipped], &[])]);
        assert!(text.starts_with("lab: SKIPPED: nothing was checked, 1 skipped\n"), "{text}");
        assert!(text.contains("calls: skipped: check_0\n    why\n"), "{text}");
    }

    #[test]
    fn known_deviations_are_counted_and_named() {
        let text = shown(vec![suite(&[Outcome::Passed, Outcome::KnownDeviation], &[])]);
        assert!(text.starts_with("lab: HELD: 2 checks\n"), "{text}");
        assert!(text.contains("1 known deviations"), "{text}");
        assert!(text.contains("calls: known-deviation: check_1"), "{text}");
    }

    #[test]
    fn figures_stand_beside_their_goals() {
        let goal =
            Goal { name: "call_1", what: "a call", measured: 1434, goal: 400, linux: "1,434", held: false };
        let text = goals(&[goal], &Terminal::new(true));
        let line = text.lines().last().expect("a line");
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            ["a", "call", "1,434", "400", "1,434", "FAILED"]
        );
        assert_eq!(
            (grouped(0), grouped(999), grouped(1_000_000)),
            ("0".into(), "999".into(), "1,000,000".into())
        );
    }
}
