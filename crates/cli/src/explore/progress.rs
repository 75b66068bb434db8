//! What people see while an exploration runs, and how they end it.

use std::fmt::Write;
use std::time::Duration;

use smpcall_simulator::explorer::report::{Observer, Progress};

use crate::interrupt::Interrupt;
use crate::terminal::Terminal;

/// Shows how far an exploration is, and ends it when somebody wants that.
pub(super) struct Watch<'a> {
    pub(super) name: &'a str,
    pub(super) terminal: &'a Terminal,
    pub(super) interrupt: &'a Interrupt,
}

impl Observer for Watch<'_> {
    fn progress(&self, progress: &Progress) {
        self.terminal.progress(&line(self.name, progress));
    }

    fn stop(&self) -> bool {
        self.interrupt.came()
    }
}

/// How far it is, in less than 80 characters.
fn line(name: &str, progress: &Progress) -> String {
    let (count, unit) =
        if progress.states > 0 { (progress.states, "states") } else { (progress.classes, "classes") };
    let seconds = progress.elapsed.as_secs_f64();
    let nanos = progress.elapsed.as_nanos().max(1);
    let rate = u64::try_from(u128::from(count) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
    let (count, rate, elapsed) = (short(count), short(rate), time(progress.elapsed));
    let mut line = format!("{name}: {count} {unit}, {rate}/s, {}, {elapsed}", bytes(progress.memory));
    // Before the first percent it is no estimate.
    if let Some(done) = progress.done.filter(|done| *done >= 0.01 && *done <= 1.0) {
        let left = Duration::try_from_secs_f64(seconds * (1.0 - done) / done).unwrap_or(Duration::MAX);
        // Writing to a `String` cannot fail.
        let _ = write!(line, ", about {:.0} % done, {} left", done * 100.0, time(left));
    }
    line
}

/// A number in three digits or so.
pub(super) fn short(number: u64) -> String {
    let units = [("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)];
    match units.into_iter().find(|(_, size)| number >= *size) {
        None => number.to_string(),
        Some((unit, size)) if number < 10 * size => {
            let tenths = number / (size / 10);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        Some((unit, size)) => format!("{} {unit}", number / size),
    }
}

/// A size in three digits or so.
pub(super) fn bytes(number: u64) -> String {
    let short = short(number);
    let space = if number < 1_000 { " " } else { "" };
    format!("{short}{space}B")
}

/// A time as people say it.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_much_how_fast_and_how_long_still() {
        let progress = Progress {
            executions: 9,
            classes: 9,
            states: 12_345_678,
            memory: 310_000_000,
            elapsed: Duration::from_secs(30),
            done: Some(0.25),
        };
        assert_eq!(
            line("irq4", &progress),
            "irq4: 12 M states, 411 k/s, 310 MB, 30 s, about 25 % done, 90 s left"
        );
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let elapsed = Duration::from_secs(7);
        let progress = Progress { classes: 7, done: Some(0.0), elapsed, ..Progress::default() };
        assert_eq!(line("ok3", &progress), "ok3: 7 classes, 1/s, 0 B, 7 s");
    }

    #[test]
    fn long_times_are_rounded() {
        let said = |seconds| time(Duration::from_secs(seconds));
        assert_eq!(
            [said(119), said(121), said(7_300), said(1_000_000)],
            ["119 s", "2 min", "2 h", "11 days"]
        );
    }
}
