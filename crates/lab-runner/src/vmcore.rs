//! The vmcore that a crash leaves on the disk.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use object::LittleEndian;
use object::elf::{ET_CORE, FileHeader64, NT_PRSTATUS, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::error::StartError;
use crate::report::{Check, Outcome};

/// The most that is read of a vmcore to look at it: its headers and notes come first.
const BEGINNING: u64 = 4 << 20;

/// Checks what is on the disk: an ELF core with memory in it, and the registers of every CPU that the machine has.
pub(crate) fn check(disk: &Path, bytes: u64, cpus: u32) -> Vec<Check> {
    let (outcome, text) = match look(disk, bytes) {
        Ok(seen) if seen.loads == 0 => (Outcome::Failed, "there is no memory in it".to_owned()),
        // A CPU that did not answer the stop has no registers in it.
        Ok(seen) if seen.registers == 0 || seen.registers > cpus as usize => {
            (Outcome::Failed, format!("it has registers of {} CPUs, of {cpus}", seen.registers))
        }
        Ok(Seen { loads, registers }) => (
            Outcome::Passed,
            format!("{bytes} bytes, {loads} ranges of memory, registers of {registers} CPUs"),
        ),
        Err(error) => (Outcome::Failed, error.to_string()),
    };
    vec![Check { name: "the_vmcore_is_an_elf_core".into(), outcome, text }]
}

/// What a vmcore has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    loads: usize,
    registers: usize,
}

fn look(disk: &Path, bytes: u64) -> io::Result<Seen> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let file = File::open(disk)?;
    if bytes > file.metadata()?.len() {
        return Err(wrong("it is longer than the disk"));
    }
    let mut beginning = vec![];
    file.take(bytes.min(BEGINNING)).read_to_end(&mut beginning)?;
    seen(&beginning).ok_or_else(|| wrong("it is no ELF core, or its notes are damaged"))
}

fn seen(beginning: &[u8]) -> Option<Seen> {
    let header = FileHeader64::<LittleEndian>::parse(beginning).ok()?;
    let endian = header.endian().ok()?;
    if header.e_type(endian) != ET_CORE {
        return None;
    }
    let mut seen = Seen { loads: 0, registers: 0 };
    for segment in header.program_headers(endian, beginning).ok()? {
        match segment.p_type(endian) {
            PT_LOAD => seen.loads += 1,
            PT_NOTE => {
                let mut notes = segment.notes(endian, beginning).ok()??;
                while let Some(note) = notes.next().ok()? {
                    seen.registers +=
                        usize::from(note.name() == b"CORE" && note.n_type(endian) == NT_PRSTATUS);
                }
            }
            _ => {}
        }
    }
    Some(seen)
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
        assert_eq!(check(&disk, 512, 4)[0].outcome, Outcome::Failed);
        assert!(check(&disk, 513, 4)[0].text.contains("longer than the disk"));
        let kept = directory.path().join("kept");
        assert!(keep(&disk, 513, &kept).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 1, "only the disk");
        keep(&disk, 100, &kept).expect("is kept");
        assert_eq!(std::fs::read(&kept).expect("readable"), [7; 100]);
    }
}
