//! `smpcall diagnose`: reads a source, prints what is wrong with the machine that it is of.

use std::path::{Path, PathBuf};

use smpcall_diagnosis::picture;
use smpcall_diagnosis::report::Report;
use smpcall_diagnosis::source::{Extracted, Source, SourceError};

use crate::Finding;
use crate::arguments;
use crate::failure::Failure;
use crate::files;
use crate::terminal::{self, Terminal, Tone};

/// Reads and prints. Something is found if the verdict is not healthy.
pub(crate) fn run(wanted: &arguments::Diagnose, terminal: &Terminal) -> Result<Finding, Failure> {
    if wanted.timeline.is_some() && wanted.timeline == wanted.extract {
        return Err(Failure::usage("--timeline and --extract name the same file; give each its own"));
    }
    for path in wanted.timeline.iter().chain(&wanted.extract) {
        files::check_name(path)?;
    }
    let source = Source::open(&wanted.source, wanted.format).map_err(unreadable)?;
    let source = source.with_vmlinux(wanted.vmlinux.clone());
    if wanted.dmesg {
        terminal::print(&source.dmesg().map_err(unreadable)?)?;
        return Ok(Finding::Nothing);
    }
    let report = source.report().map_err(unreadable)?;
    let mut written: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    written.extend(wanted.timeline.iter().map(|path| (path.clone(), picture::svg(&report).into_bytes())));
    let mut notes: Vec<String> =
        wanted.timeline.iter().map(|path| format!("wrote {}", path.display())).collect();
    if let Some(path) = &wanted.extract {
        let (bytes, extracted) = source.extract().map_err(unreadable)?;
        notes.push(about_extract(path, &extracted));
        written.push((path.clone(), bytes));
    }
    files::write_all(written)?;
    for note in &notes {
        terminal.note(note);
    }
    let result = if wanted.json { report.json() } else { prose(&report, terminal) };
    terminal::print(&result)?;
    Ok(if report.is_healthy() { Finding::Nothing } else { Finding::Something })
}

/// What an extract contains, so that one can decide to share it.
fn about_extract(path: &Path, extracted: &Extracted) -> String {
    let (pages, bytes, notes) = (extracted.pages, extracted.bytes, extracted.notes);
    format!(
        "wrote {}: {bytes} bytes, {pages} pages of 4 KiB of kernel memory and {notes} notes: symbols, types, per-CPU data, page \
         tables, and the stacks and tasks of the CPUs, which may hold data of programs; no page cache and no program's memory \
         unless it shares a page with these",
        path.display()
    )
}

fn unreadable(error: SourceError) -> Failure {
    Failure::source(error)
}

/// The report with the kinds of its verdicts in colour.
fn prose(report: &Report, terminal: &Terminal) -> String {
    let tone = if report.is_healthy() { Tone::Good } else { Tone::Bad };
    let tinted = |line: &str| match line.strip_prefix("VERDICT ") {
        Some(rest) => {
            let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            format!("VERDICT {} {rest}\n", terminal.tinted(kind, tone))
        }
        None => format!("{line}\n"),
    };
    report.text().lines().map(tinted).collect()
}
