//! The rows of SPIN: a hand-written model, compiled to a verifier by the system's C compiler.
//!
//! Time includes neither making nor compiling the verifier; the table's time and memory of these rows are the verifier's.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::case::{Case, Target};
use crate::measure::{Limited, run_limited};
use crate::row::{Explored, Outcome, Report};

const MODEL: &str = include_str!("../models/small.pml");
/// A limit for the depth of the search, in steps: longer than any path of these cases.
const DEPTH: &str = "-m1000000";

/// Without partial-order reduction.
pub(crate) fn full(case: Case, limit: Duration) -> Report {
    verify(case, limit, &["-DNOREDUCE"])
}

/// With it. Not for interrupts: it is not sound for processes that exclude each other by `provided`.
pub(crate) fn reduced(case: Case, limit: Duration) -> Report {
    verify(case, limit, &[])
}

fn verify(case: Case, limit: Duration, compile_with: &[&str]) -> Report {
    let result = Directory::new().and_then(|directory| {
        let verifier = compile(case, directory.path(), compile_with)?;
        run_limited(Command::new(verifier).arg(DEPTH).current_dir(directory.path()), limit)
    });
    match result {
        Ok(Limited { output: Some(output), cost }) => Report { cost: Some(cost), ..read(&output) },
        Ok(Limited { output: None, cost }) => {
            let outcome = Outcome::Unfinished(limit.as_secs_f64());
            Report { explored: Explored::States(0), outcome, cost: Some(cost) }
        }
        Err(error) => Report::new(Explored::States(0), Outcome::Missing(format!("SPIN: {error}"))),
    }
}

fn compile(case: Case, directory: &Path, compile_with: &[&str]) -> io::Result<PathBuf> {
    std::fs::write(directory.join("small.pml"), MODEL)?;
    let target: &[&str] = match case.target {
        Target::Polls => &["-DPOLLS"],
        Target::IsInterrupted => &["-DIS_INTERRUPTED"],
        Target::GoesOffline { drains: false } => &["-DGOES_OFFLINE"],
        Target::GoesOffline { drains: true } => &["-DGOES_OFFLINE", "-DDRAINS"],
    };
    let senders = format!("-DSENDERS={}", case.senders);
    let mut spin = Command::new("spin");
    done(spin.arg(senders).args(target).args(["-a", "small.pml"]).current_dir(directory))?;
    let mut compiler = Command::new("cc");
    done(
        compiler
            .args(["-O2", "-w", "-DSAFETY", "-DMEMLIM=8000", "-o", "pan"])
            .args(compile_with)
            .arg("pan.c")
            .current_dir(directory),
    )?;
    Ok(directory.join("pan"))
}

fn done(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text =
        String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
    let program = command.get_program().to_string_lossy().into_owned();
    Err(io::Error::other(format!("{program} failed: {}", text.lines().next().unwrap_or_default())))
}

/// Reads the verifier's report.
fn read(output: &str) -> Report {
    let number_before = |label: &str| {
        output
            .lines()
            .find_map(|line| line.trim().strip_suffix(label)?.trim().parse::<f64>().ok())
            // Large numbers are printed like 2.04e+07.
            .map_or(0, |number| format!("{number:.0}").parse().unwrap_or(0))
    };
    let error = output.lines().find_map(|line| line.strip_prefix("pan:1: "));
    let outcome = match error {
        Some(error) => Outcome::Found(error.split(" (at").next().unwrap_or(error).to_owned()),
        None if output.contains("errors: 0") => Outcome::Ok,
        None => Outcome::Missing("SPIN's verifier came to no end".to_owned()),
    };
    Report::new(Explored::States(number_before(" states, stored")), outcome)
}

/// A directory that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("small-protocol-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left of it is the system's to clean.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_report_is_read() {
        let output = "pan:1: invalid end state (at depth 25)\n\nState-vector 52 byte, errors: 1\n      101 states, stored\n";
        let report = read(output);
        assert_eq!(report.outcome, Outcome::Found("invalid end state".to_owned()));
        assert!(matches!(report.explored, Explored::States(101)));
        assert!(matches!(read("pan: out of memory").outcome, Outcome::Missing(_)));
    }
}
