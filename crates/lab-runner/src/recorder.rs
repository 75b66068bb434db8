//! Hears what one run of the image says, and judges it when it has ended.
//!
//! Nothing is taken for granted: a run has passed only if the image came up as asked, ran the suite to its end, counted as
//! many checks as arrived here, and left with the code that says so.

use std::collections::VecDeque;

use crate::line::{self, CONTRACT, Lab, Line, Verdict};
use crate::options::ApicMode;
use crate::report::{Check, Details, Outcome, RUN};
use crate::suite::Suite;

/// How many lines of the console are kept to be shown.
const CONSOLE: usize = 20;

/// More lines for machines than any suite prints: a guest that repeats itself is not listened to for ever.
const MOST: u64 = 1_000_000;

/// How QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// By a signal.
    Killed,
    /// It was ended from here, for this reason.
    GivenUp(String),
}

/// What the image wants from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Freeze this CPU.
    Freeze(u32),
    /// Thaw it.
    Thaw,
}

/// What was heard so far.
pub(crate) struct Recorder {
    suite: Suite,
    cpus: u32,
    apic: ApicMode,
    lab: Option<Lab>,
    begun: bool,
    ended: bool,
    captured: bool,
    over: Option<(u64, u64, u64)>,
    progress: Option<(String, u64)>,
    lines: u64,
    /// How often something new was said.
    news: u64,
    problems: Vec<String>,
    details: Details,
    console: VecDeque<String>,
}

impl Recorder {
    pub(crate) fn new(suite: Suite, cpus: u32, apic: ApicMode, seed: u64) -> Self {
        Self {
            suite,
            cpus,
            apic,
            lab: None,
            begun: false,
            ended: false,
            captured: false,
            over: None,
            progress: None,
            lines: 0,
            news: 0,
            problems: vec![],
            details: Details { seed, ..Details::default() },
            console: VecDeque::new(),
        }
    }

    /// Hears a line.
    pub(crate) fn hear(&mut self, text: &str) -> Option<Wish> {
        let parsed = line::parse(text);
        // How far it came is shown elsewhere.
        if !matches!(parsed, Some(Ok(Line::Progress { .. }))) {
            if self.console.len() == CONSOLE {
                self.console.pop_front();
            }
            self.console.push_back(text.to_owned());
        }
        match parsed? {
            Ok(line) => self.understand(line),
            Err(error) => {
                self.problem(format!("{error}: {text}"));
                None
            }
        }
    }

    fn understand(&mut self, line: Line<'_>) -> Option<Wish> {
        self.lines += 1;
        // What repeats itself is no news.
        let old = matches!(&line, Line::Progress { name, done, .. }
            if self.progress.as_ref().is_some_and(|(last, so_far)| last == name && done <= so_far));
        if !old && self.lines <= MOST {
            self.news += 1;
        }
        match line {
            Line::Lab(lab) => self.comes_up(lab),
            _ if self.lab.is_none() => {
                self.problem("it speaks before it says what it is".to_owned());
                None
            }
            Line::Begin(name) if name == self.suite.name() && !self.begun => {
                self.begun = true;
                None
            }
            Line::End(name) if name == self.suite.name() && self.begun && !self.ended => {
                self.ended = true;
                None
            }
            Line::Begin(name) | Line::End(name) => {
                self.problem(format!("the suite {name} begins or ends where it should not"));
                None
            }
            Line::Progress { name, done, .. } => {
                self.progress = Some((name.to_owned(), done));
                None
            }
            Line::Count { name, value } => {
                // Of a suite in parts, each of which counts: the sum.
                let sum = self.details.counts.entry(name.to_owned()).or_default();
                *sum = sum.saturating_add(value);
                None
            }
            Line::Check(verdict, name, text) => {
                let outcome = match verdict {
                    Verdict::Pass => Outcome::Passed,
                    Verdict::Fail => Outcome::Failed,
                    Verdict::Skip => Outcome::Skipped,
                };
                self.details.checks.push(Check { name: name.to_owned(), outcome, text: text.to_owned() });
                None
            }
            Line::Freeze(cpu) => Some(Wish::Freeze(cpu)),
            Line::Thaw => Some(Wish::Thaw),
            Line::Capture => {
                self.captured = true;
                None
            }
            Line::Vmcore(bytes) => {
                self.details.vmcore = Some(bytes);
                None
            }
            Line::Over { passed, failed, skipped } => {
                if self.over.replace((passed, failed, skipped)).is_some() {
                    self.problem("it ends twice".to_owned());
                }
                None
            }
        }
    }

    fn comes_up(&mut self, lab: Lab) -> Option<Wish> {
        let Lab { version, cpus, ref apic, .. } = lab;
        if version != CONTRACT {
            self.problem(format!(
                "the image keeps version {version} of the contract, this command version {CONTRACT}: build both from the same source"
            ));
        }
        // The capture kernel says so too, of the CPUs that it has got up again.
        if self.lab.is_some() && !self.captured {
            self.problem("it comes up twice".to_owned());
        } else if self.lab.is_none() && cpus != self.cpus {
            self.problem(format!("{cpus} of {} CPUs came up", self.cpus));
        }
        if apic != self.apic.name() {
            self.problem(format!("its APICs are in mode {apic} and not {}", self.apic));
        }
        self.lab.get_or_insert(lab);
        None
    }

    /// What is wrong with the run and no check says.
    fn problem(&mut self, what: String) {
        // One is enough to fail; a guest that prints rubbish for ever is not remembered for ever.
        if self.problems.len() < CONSOLE {
            self.problems.push(what);
        }
    }

    /// How often it has said something new: as long as this grows, it gets on.
    pub(crate) fn news(&self) -> u64 {
        self.news
    }

    /// Whether the image has come up at all.
    pub(crate) fn has_come_up(&self) -> bool {
        self.lab.is_some()
    }

    /// Judges the run.
    pub(crate) fn finish(mut self, exit: &Exit) -> Details {
        let failed = self.count(Outcome::Failed);
        if let Some(problem) = exit_problem(exit, failed) {
            self.problem(problem);
        }
        if *exit == Exit::Status(PASSED) || *exit == Exit::Status(FAILED) {
            self.check_books();
        }
        let checks = &mut self.details.checks;
        let as_checks = self.problems.into_iter();
        checks.extend(as_checks.map(|text| Check { name: RUN.into(), outcome: Outcome::Failed, text }));
        self.details.console = self.console.into();
        self.details
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.details.checks.iter().filter(|check| check.outcome == outcome).count() as u64
    }

    /// Whether all that was said has arrived, and all that was to be said was.
    fn check_books(&mut self) {
        let counted =
            (self.count(Outcome::Passed), self.count(Outcome::Failed), self.count(Outcome::Skipped));
        match self.over {
            Some(said) if said != counted => {
                let (passed, failed, skipped) = said;
                self.problem(format!(
                    "it counts {passed} checks that held, {failed} that did not and {skipped} skipped; {}, {} and {} arrived",
                    counted.0, counted.1, counted.2
                ));
            }
            // After a crash the books are the capture kernel's: it says how long the vmcore is, or what kept it.
            None if self.suite.crashes() && (self.details.vmcore.is_some() || counted.1 > 0) => {}
            None => self.problem("it left without saying that it was over".to_owned()),
            Some(_) => {}
        }
        let crashed = self.suite.crashes() && self.captured;
        if !self.begun {
            self.problem(format!("the image never began the suite {}", self.suite));
        } else if !self.ended && !crashed {
            self.problem(format!("the suite {} did not come to its end", self.suite));
        }
        if self.suite.crashes() && self.details.vmcore.is_none() && counted.1 == 0 {
            self.problem("it left no vmcore".to_owned());
        }
        if counted == (0, 0, 0) && !crashed && self.details.counts.is_empty() {
            self.problem("nothing was checked".to_owned());
        }
    }
}

/// What is wrong with how it ended, `failed` checks having failed.
fn exit_problem(exit: &Exit, failed: u64) -> Option<String> {
    match exit {
        Exit::Status(PASSED) if failed > 0 => {
            Some(format!("it says that all held, and {failed} checks failed"))
        }
        Exit::Status(FAILED) if failed == 0 => Some("it says that a check failed, and none did".into()),
        Exit::Status(PASSED | FAILED) => None,
        Exit::Status(CRASHED) => Some("the kernel crashed, and no capture kernel saved anything".into()),
        Exit::Status(0) => Some("the machine was reset: a triple fault, or the kernel wanted it".into()),
        Exit::Status(status) => Some(format!("the emulator ended with status {status}")),
        Exit::Killed => Some("the emulator was killed".into()),
        Exit::GivenUp(why) => Some(why.clone()),
    }
}

/// `isa-debug-exit` turns a value into a status: twice the value, and one. All held.
const PASSED: i32 = 33;
/// A check failed.
const FAILED: i32 = 35;
/// The kernel crashed and could not be captured.
const CRASHED: i32 = 37;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UP: &str = "@ lab version=1 cpus=4 apic=xapic tsc_khz=1000000";

    fn finish(suite: Suite, lines: &[&str], exit: &Exit) -> Vec<String> {
        let mut recorder = Recorder::new(suite, 4, ApicMode::XApic, 1);
        for line in lines {
            recorder.hear(line);
        }
        let checks = recorder.finish(exit).checks;
        let failed = checks.into_iter().filter(|check| check.outcome == Outcome::Failed);
        failed.map(|check| format!("{}: {}", check.name, check.text)).collect()
    }

    fn calls(lines: &[&str], status: i32) -> Vec<String> {
        finish(Suite::Calls, lines, &Exit::Status(status))
    }

    #[test]
    fn a_run_that_is_complete_has_passed() {
        let lines = [
            "SeaBIOS",
            UP,
            "@ suite calls begin",
            "@ progress calls 1 2",
            "@ count calls_made 5",
            "@ pass all_is_well",
            "@ skip other no timer",
            "@ suite calls end",
            "@ end 1 0 1",
        ];
        assert_eq!(calls(&lines, PASSED), [""; 0]);
    }

    #[test]
    fn a_run_that_misses_anything_has_failed() {
        let whole = [UP, "@ suite calls begin", "@ pass a", "@ suite calls end", "@ end 1 0 0"];
        assert_eq!(calls(&whole, PASSED), [""; 0]);
        for missing in 0..whole.len() {
            let mut lines = whole.to_vec();
            lines.remove(missing);
            assert!(!calls(&lines, PASSED).is_empty(), "without {}", whole[missing]);
        }
        for status in [0, 1, FAILED, CRASHED, 3, -1] {
            assert_eq!(calls(&whole, status).len(), 1, "{status}");
        }
        assert_eq!(finish(Suite::Calls, &whole, &Exit::Killed).len(), 1);
        let given_up = Exit::GivenUp("no progress".into());
        assert_eq!(finish(Suite::Calls, &whole, &given_up), ["run: no progress"]);
    }

    #[test]
    fn a_failed_check_is_told_once_and_the_exit_must_agree() {
        let lines = [UP, "@ suite calls begin", "@ fail a 3 of 4", "@ suite calls end", "@ end 0 1 0"];
        assert_eq!(calls(&lines, FAILED), ["a: 3 of 4"]);
        assert_eq!(calls(&lines, PASSED).len(), 2);
    }

    #[test]
    fn the_machine_must_be_the_one_that_was_asked_for() {
        for wrong in [
            "@ lab version=2 cpus=4 apic=xapic",
            "@ lab version=1 cpus=3 apic=xapic",
            "@ lab version=1 cpus=4 apic=x2apic",
        ] {
            let lines = [wrong, "@ suite calls begin", "@ pass a", "@ suite calls end", "@ end 1 0 0"];
            assert_eq!(calls(&lines, PASSED).len(), 1, "{wrong}");
        }
        let twice = [UP, UP, "@ suite calls begin", "@ pass a", "@ suite calls end", "@ end 1 0 0"];
        assert_eq!(calls(&twice, PASSED).len(), 1);
    }

    #[test]
    fn a_crash_is_complete_with_its_vmcore() {
        let crash = |lines: &[&str], status| finish(Suite::Crash, lines, &Exit::Status(status));
        let lines = [UP, "@ suite crash begin", "@ capture begin", "@ progress vmcore 1 2", "@ vmcore 2"];
        assert_eq!(crash(&lines, PASSED), [""; 0]);
        assert_eq!(crash(&lines[..4], PASSED).len(), 2, "no end and no vmcore");
        assert_eq!(crash(&lines[..2], CRASHED).len(), 1);
        let failing = [UP, "@ suite crash begin", "@ capture begin", "@ fail vmcore the disk is full"];
        assert_eq!(crash(&failing, CRASHED).len(), 2);
    }

    #[test]
    fn only_what_is_new_is_news() {
        let mut recorder = Recorder::new(Suite::Calls, 4, ApicMode::XApic, 1);
        let mut news = |line| {
            let before = recorder.news();
            recorder.hear(line);
            recorder.news() > before
        };
        assert!(news(UP));
        assert!(news("@ progress calls 1 9"));
        assert!(!news("@ progress calls 1 9"));
        assert!(news("@ progress calls 2 9"));
        assert!(!news("text"));
        assert!(!news("@ garbage"));
    }

    #[test]
    fn what_is_counted_again_is_added() {
        let mut recorder = Recorder::new(Suite::Lost, 4, ApicMode::XApic, 1);
        for line in [
            UP,
            "@ count calls 3",
            "@ count calls 4",
            "@ count other 18446744073709551615",
            "@ count other 1",
        ] {
            recorder.hear(line);
        }
        let counts = recorder.finish(&Exit::Killed).counts;
        assert_eq!((counts["calls"], counts["other"]), (7, u64::MAX));
    }

    #[test]
    fn wishes_are_passed_on() {
        let mut recorder = Recorder::new(Suite::Frozen, 4, ApicMode::XApic, 1);
        recorder.hear(UP);
        assert_eq!(recorder.hear("@ freeze 3"), Some(Wish::Freeze(3)));
        assert_eq!(recorder.hear("@ thaw"), Some(Wish::Thaw));
    }

    proptest! {
        #[test]
        fn no_rubbish_passes(lines in proptest::collection::vec("(@ )?[a-z]{0,8}( [a-z0-9=]{0,8}){0,4}", 0..60)) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            prop_assert!(!calls(&lines, PASSED).is_empty());
        }
    }
}
