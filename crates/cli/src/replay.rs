//! `smpcall replay`: runs the replays that were asked for and prints them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use smpcall_diagnosis::text;
use smpcall_incidents::{Judgement, Options, Outcome, Replay, When, replay};

use crate::Finding;
use crate::arguments;
use crate::failure::Failure;
use crate::files;
use crate::terminal::{self, Terminal, Tone, wrapped};

/// The width of paragraphs, in characters.
const WIDTH: usize = 100;

/// Runs and prints them. Something is found if one did not come out as it should.
pub(crate) fn run(wanted: &arguments::Replay, terminal: &Terminal) -> Result<Finding, Failure> {
    let options =
        Options { cpus: wanted.cpus, routing: wanted.routing, seed: wanted.seed, fault: wanted.fault };
    if wanted.timeline.is_some() && wanted.timeline == wanted.trace {
        return Err(Failure::usage("--timeline and --trace name the same file; give each its own"));
    }
    for path in wanted.timeline.iter().chain(&wanted.trace) {
        files::check_name(path)?;
    }
    let mut replays = Vec::new();
    for incident in wanted.incidents() {
        for &when in wanted.whens() {
            replays.push(replay(incident, when, &options).map_err(Failure::usage)?);
        }
    }
    write_files(wanted, &replays, terminal)?;
    let result = if wanted.json { json(&replays) } else { prose(&replays, terminal) };
    terminal::print(&result)?;
    let expected = replays.iter().all(Replay::is_as_expected);
    Ok(if expected { Finding::Nothing } else { Finding::Something })
}

/// Writes the pictures and traces that were asked for, and says which.
fn write_files(wanted: &arguments::Replay, replays: &[Replay], terminal: &Terminal) -> Result<(), Failure> {
    let several =
        |differs: fn(&Replay, &Replay) -> bool| replays.windows(2).any(|pair| differs(&pair[0], &pair[1]));
    let several_incidents = several(|one, other| one.incident != other.incident);
    let several_whens = several(|one, other| one.when != other.when);
    let name = |path: &Path, replay: &Replay| -> PathBuf {
        let mut suffix = String::new();
        if several_incidents {
            suffix = format!("-{}", replay.incident);
        }
        if several_whens {
            // Writing to a `String` cannot fail, here and below.
            let _ = write!(suffix, "-{}", replay.when);
        }
        if suffix.is_empty() { path.to_owned() } else { files::with_suffix(path, &suffix) }
    };
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for replay in replays {
        files.extend(wanted.timeline.iter().map(|path| (name(path, replay), replay.timeline().into_bytes())));
        files.extend(wanted.trace.iter().map(|path| (name(path, replay), replay.perfetto())));
    }
    let names: Vec<PathBuf> = files.iter().map(|(name, _)| name.clone()).collect();
    files::write_all(files)?;
    for name in names {
        terminal.note(&format!("wrote {}", name.display()));
    }
    Ok(())
}

fn json(replays: &[Replay]) -> String {
    // No map with keys that are not text, no number that JSON has not: it cannot fail.
    serde_json::to_string_pretty(replays).unwrap_or_default() + "\n"
}

fn prose(replays: &[Replay], terminal: &Terminal) -> String {
    let parts: Vec<String> = replays.iter().map(|replay| one(replay, terminal)).collect();
    parts.join(&format!("\n{}\n\n", "=".repeat(WIDTH)))
}

fn one(replay: &Replay, terminal: &Terminal) -> String {
    if let Some(reason) = replay.reason {
        let (incident, when, title) = (replay.incident, replay.when, replay.incident.title());
        return format!("{incident}, {when}: n/a\n  incident  {title}\n\n{}\n", wrapped(reason, WIDTH));
    }
    let tone = if replay.is_as_expected() { Tone::Good } else { Tone::Bad };
    let (word, meaning) = match (replay.when, replay.outcome) {
        (When::Then, Outcome::Lost) => ("LOST", "as it was reported"),
        (When::Then, Outcome::Held) => ("NOT LOST", "it did not end in the reported state"),
        (When::Now, Outcome::Held) if replay.laws.hold() => ("HELD", "no law was broken"),
        (When::Now, Outcome::Held) => ("BROKEN", "a law was broken, though not as it was reported"),
        (When::Now, Outcome::Lost) => ("LOST", "it ended in the reported state"),
        (_, Outcome::NotApplicable) => ("N/A", "it cannot happen on such a machine"),
    };
    let laws = replay.laws.iter().filter(|(_, judgement)| *judgement != Judgement::NotApplicable);
    let ipis = replay.ipis;
    let mut out = String::new();
    let _ = writeln!(out, "{}, {}: {}, {meaning}", replay.incident, replay.when, terminal.tinted(word, tone));
    let _ = writeln!(out, "  incident  {}", replay.incident.title());
    let _ = writeln!(
        out,
        "  machine   {} CPUs, routing {}, seed {}, fault {}",
        replay.cpus,
        replay.routing,
        replay.seed,
        replay.fault.name()
    );
    let _ = writeln!(
        out,
        "  IPIs      {} sent, {} taken, {} lost, {} sent again",
        ipis.sent, ipis.taken, ipis.lost, ipis.resent
    );
    for (index, (law, judgement)) in laws.enumerate() {
        let label = if index == 0 { "laws" } else { "" };
        let judgement = terminal.tinted(
            &judgement.to_string(),
            if judgement == Judgement::Held { Tone::Good } else { Tone::Bad },
        );
        let _ = writeln!(out, "  {label:<8}  {} {judgement}: {}", law.name(), law.title());
    }
    let (view, view_title) = (
        &replay.view,
        match replay.when {
            When::Then => "What the reporter had in hand",
            When::Now => "What the machine shows",
        },
    );
    let _ = write!(
        out,
        "\n{}\n\n--- {view_title} ---\n\n{view}\n--- Diagnosis ---\n\n{}",
        wrapped(&replay.summary, WIDTH),
        text::render(&replay.diagnosis)
    );
    out
}
