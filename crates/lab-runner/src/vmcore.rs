//! The vmcore that a crash leaves on the disk: looked at as those do who read it, and copied out.
//!
//! Our own reader opens it, and every saved CPU must be at an instruction of the image that is in memory as it is in the
//! image's file. `readelf` and `gdb` must say the same, where they are installed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use smpcall_crashdump::{Dump, KernelMemory, Kind, VirtualMemory};
use smpcall_vmcore::{Record, Trace};

use crate::error::StartError;
use crate::report::{Check, Outcome};
use crate::vmcore_tools;

/// How much of the code at an instruction pointer is compared.
const COMPARED: usize = 16;

/// Checks what is on the disk, of a crash of `image` on a machine with so many CPUs. The disk is made as long as the vmcore.
pub(crate) fn check(disk: &Path, bytes: u64, cpus: u32, image: &Path) -> Vec<Check> {
    let seen = trim(disk, bytes).and_then(|()| look(disk, cpus, image));
    let own = check_of(
        "our_reader_accepts_the_vmcore",
        seen.as_ref().map(|seen| {
            let Seen { saved, missing, events, .. } = seen;
            format!("{bytes} bytes, registers of {saved} CPUs, {missing} without, {events} events")
        }),
    );
    let mut checks = vec![own];
    if let Ok(seen) = &seen {
        checks.push(tool_check("readelf_accepts_the_vmcore", vmcore_tools::readelf(disk, seen.saved)));
        checks.push(tool_check("gdb_accepts_the_vmcore", vmcore_tools::gdb(image, disk, &seen.functions)));
    }
    checks
}

fn check_of(name: &str, result: Result<String, &String>) -> Check {
    let (outcome, text) = match result {
        Ok(text) => (Outcome::Passed, text),
        Err(error) => (Outcome::Failed, error.clone()),
    };
    Check { name: name.into(), outcome, text }
}

fn tool_check(name: &str, result: Result<vmcore_tools::Verdict, String>) -> Check {
    match result {
        Ok(vmcore_tools::Verdict::NotInstalled(program)) => {
            let text = format!("{program} is not installed");
            Check { name: name.into(), outcome: Outcome::Skipped, text }
        }
        Ok(vmcore_tools::Verdict::Accepted(text)) => check_of(name, Ok(text)),
        Err(error) => check_of(name, Err(&error)),
    }
}

/// The disk is longer than what is on it.
fn trim(disk: &Path, bytes: u64) -> Result<(), String> {
    let trimmed = File::options().write(true).open(disk).and_then(|file| {
        if bytes > file.metadata()?.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than the disk"));
        }
        file.set_len(bytes)
    });
    trimmed.map_err(|error| error.to_string())
}

/// What a vmcore has in it.
struct Seen {
    /// The CPUs with registers.
    saved: usize,
    /// Those that are named without.
    missing: usize,
    /// Events of all CPUs.
    events: usize,
    /// The function in which each of the saved CPUs is, in the order of their notes.
    functions: Vec<String>,
}

fn look(vmcore: &Path, cpus: u32, image: &Path) -> Result<Seen, String> {
    let dump = Dump::open(vmcore).map_err(|error| error.to_string())?;
    if dump.kind() != Kind::Smpcall {
        return Err(format!("it is taken for another kind of dump: {:?}", dump.kind()));
    }
    if let Some(remark) = dump.remarks().first() {
        return Err(remark.clone());
    }
    let memory = KernelMemory::new(&dump).map_err(|error| error.to_string())?;
    let release = memory.vmcoreinfo().release();
    if release.is_none_or(|release| !release.starts_with("smpcall-lab-")) {
        return Err(format!("VMCOREINFO names the release {release:?}"));
    }
    let image = std::fs::read(image).map_err(|error| format!("{}: {error}", image.display()))?;
    let image = object::File::parse(&*image).map_err(|error| error.to_string())?;
    let functions = dump.cpus().iter().map(|cpu| place(&memory, &image, cpu.registers.rip));
    let functions = functions.collect::<Result<Vec<_>, _>>()?;
    let (saved, missing) = books(&dump, cpus)?;
    if functions.len() != saved {
        return Err(format!(
            "{} CPUs have registers, and {saved} say that they have saved them",
            functions.len()
        ));
    }
    let events = traces(&dump, cpus)?;
    Ok(Seen { saved, missing, events, functions })
}

/// Every CPU is named once: as one that has saved itself, or as one that has not, or it was offline; and there are a winner
/// and what was pending there.
fn books(dump: &Dump, cpus: u32) -> Result<(usize, usize), String> {
    let (mut saved, mut missing) = (BTreeSet::new(), BTreeSet::new());
    let (mut summaries, mut pending) = (vec![], vec![]);
    for record in dump.records() {
        let (fresh, cpu) = match record {
            Record::Stopped(stopped) => (saved.insert(stopped.cpu), stopped.cpu),
            Record::Missing(named) => (missing.insert(named.cpu), named.cpu),
            Record::Summary(summary) => {
                summaries.push(summary);
                continue;
            }
            Record::Pending(interrupts) => {
                pending.push(interrupts.cpu);
                continue;
            }
        };
        if !fresh || cpu >= cpus {
            return Err(format!("CPU {cpu} is named twice, or is none of the {cpus} of this machine"));
        }
    }
    let &[summary] = &*summaries else { return Err(format!("{} CPUs have won the crash", summaries.len())) };
    if pending != [summary.winner] {
        return Err(format!("what was pending is noted for {pending:?}, and CPU {} has won", summary.winner));
    }
    // Somebody may save itself after it was found missing.
    if saved.len() < summary.saved as usize || saved.len() + missing.len() < summary.expected as usize {
        return Err(format!(
            "{} CPUs have saved and {} have not, and the winner has counted {} of {}",
            saved.len(),
            missing.len(),
            summary.saved,
            summary.expected
        ));
    }
    Ok((saved.len(), missing.difference(&saved).count()))
}

/// Every CPU has its events and its counters; returns how many events there are.
fn traces(dump: &Dump, cpus: u32) -> Result<usize, String> {
    let (mut events, mut traced, mut counted) = (0, BTreeSet::new(), BTreeSet::new());
    for note in dump.notes() {
        let note = smpcall_vmcore::Note {
            owner: note.owner.as_bytes(),
            kind: note.kind,
            descriptor: &note.descriptor,
        };
        match Trace::read(&note) {
            None => {}
            Some(Ok(Trace::Events(ring))) => {
                events += ring.events().count();
                traced.insert(ring.cpu);
            }
            Some(Ok(Trace::Counters(counters))) => {
                counted.insert(counters.cpu);
            }
            Some(Err(error)) => return Err(error.to_string()),
        }
    }
    if traced != counted || traced.len() != cpus as usize {
        return Err(format!("events of {} CPUs and counters of {}, of {cpus}", traced.len(), counted.len()));
    }
    Ok(events)
}

/// The symbol of the image that an instruction pointer is in; its code must be in memory what it is in the image. What is
/// written in assembly has labels without a size: then it is the last one before.
fn place(memory: &KernelMemory<'_>, image: &object::File<'_>, at: u64) -> Result<String, String> {
    let text = image.section_by_name(".text").ok_or("the image has no code")?;
    let into = at.checked_sub(text.address()).map_or(usize::MAX, |into| into as usize);
    let code = text.data().map_err(|error| error.to_string())?;
    let code = code.get(into..).ok_or_else(|| format!("a CPU is at {at:#x}, where the image has no code"))?;
    let code = &code[..code.len().min(COMPARED)];
    let mut found = [0; COMPARED];
    memory.read(at, &mut found[..code.len()]).map_err(|error| error.to_string())?;
    if found[..code.len()] != *code {
        return Err(format!("the code at {at:#x} is not what it is in the image"));
    }
    let before = image.symbols().filter(|symbol| {
        symbol.section_index() == Some(text.index())
            && matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown)
            && symbol.address() <= at
    });
    let symbol = before.max_by_key(ObjectSymbol::address);
    let symbol = symbol.filter(|symbol| symbol.size() == 0 || at < symbol.address() + symbol.size());
    let symbol = symbol.ok_or_else(|| format!("no symbol of the image is at {at:#x}"))?;
    Ok(symbol.name().map_err(|error| error.to_string())?.to_owned())
}

/// Copies it out of the disk: completely or not at all.
pub(crate) fn keep(disk: &Path, bytes: u64, path: &Path) -> Result<(), StartError> {
    copy(disk, bytes, path).map_err(|error| StartError::Vmcore { path: path.to_owned(), error })
}

fn copy(disk: &Path, bytes: u64, path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".smpcall-").tempfile_in(directory)?;
    let copied = io::copy(&mut File::open(disk)?.take(bytes), &mut file)?;
    if copied != bytes {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the disk is shorter than the vmcore"));
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_core_is_refused_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = directory.path().join("disk");
        std::fs::write(&disk, [7; 512]).expect("is written");
        let image = directory.path().join("image");
        assert_eq!(check(&disk, 512, 4, &image)[0].outcome, Outcome::Failed);
        assert!(check(&disk, 513, 4, &image)[0].text.contains("longer than the disk"));
        let kept = directory.path().join("kept");
        assert!(keep(&disk, 513, &kept).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 1, "only the disk");
        keep(&disk, 100, &kept).expect("is kept");
        assert_eq!(std::fs::read(&kept).expect("readable"), [7; 100]);
    }
}
