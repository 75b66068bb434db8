//! Where evidence comes from: finds out what a source is, reads it, and concludes.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;
use std::{fmt, str};

pub use smpcall_crashdump::extract::Extracted;
use smpcall_crashdump::extract::{self, ExtractError};
use smpcall_crashdump::kernel::{Kernel, KernelError};
use smpcall_crashdump::printk::LogError;
use smpcall_crashdump::vmlinux::Vmlinux;
use smpcall_crashdump::{Dump, Kind, OpenError};

use crate::dump;
use crate::evidence::MachineEvidence;
use crate::linux;
use crate::logs::Reader;
use crate::report::Report;
use crate::simulation::{self, TraceError};

/// So much of a source is looked at to find out what it is.
const LOOK: usize = 4096;

/// What a source is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Whatever its beginning says.
    #[default]
    Auto,
    /// A console log, or text of the tool `crash` or of QEMU's monitor.
    Log,
    /// A crash dump of any format.
    Dump,
    /// A trace of the simulated machine, as `smpcall replay --trace` writes it.
    Trace,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Log, Self::Dump, Self::Trace];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Log => "log",
            Self::Dump => "dump",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| format!("no such format; known: {known}"))
    }
}

/// Why a source cannot be read. Each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system does not let it be read.
    #[error("{name} cannot be read: {reason}")]
    Unreadable {
        /// Which.
        name: String,
        /// What the system says, and what to do.
        reason: String,
    },
    /// It is neither a dump nor a log.
    #[error(
        "{name} is neither a crash dump nor a trace nor a log of a kernel: no line of it has a form that kernels print; if it is one all \
         the same, name its --format"
    )]
    NotRecognised {
        /// Which.
        name: String,
    },
    /// There is nothing in it.
    #[error("{name} is empty")]
    Empty {
        /// Which.
        name: String,
    },
    /// A dump cannot be opened.
    #[error("{name}: {source}")]
    Dump {
        /// Which.
        name: String,
        /// Why.
        source: OpenError,
    },
    /// Its kernel cannot be read.
    #[error("{name}: {source}")]
    Kernel {
        /// Which.
        name: String,
        /// Why.
        source: Box<KernelError>,
    },
    /// Its log cannot be read.
    #[error("{name}: {source}")]
    Log {
        /// Which.
        name: String,
        /// Why.
        source: LogError,
    },
    /// A trace cannot be read.
    #[error("{name}: {source}")]
    Trace {
        /// Which.
        name: String,
        /// Why.
        source: TraceError,
    },
    /// No extract of it can be made.
    #[error("{name}: {source}")]
    Extract {
        /// Which.
        name: String,
        /// Why.
        source: ExtractError,
    },
    /// What was asked for needs a dump.
    #[error("{name} is no dump: {what} needs a crash dump or a live machine")]
    NeedsDump {
        /// Which.
        name: String,
        /// What was asked for.
        what: &'static str,
    },
}

/// A source that has been opened.
#[derive(Debug)]
pub struct Source {
    name: String,
    kind: &'static str,
    contents: Contents,
    vmlinux: Option<PathBuf>,
    opened: Instant,
}

#[derive(Debug)]
enum Contents {
    Dump(Box<Dump>),
    /// A log or a trace, read to its end.
    Read(Box<MachineEvidence>),
}

impl Source {
    /// Opens what `name` names: a file, `-` for standard input, `qmp:SOCKET` for the monitor of a QEMU guest.
    ///
    /// A log is read to its end here, since it may be a pipe; of a dump no more than its head.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn open(name: &str, format: Format) -> Result<Self, SourceError> {
        let opened = Instant::now();
        let of = |kind, contents| Self { name: name.to_owned(), kind, contents, vmlinux: None, opened };
        if let Some(socket) = name.strip_prefix("qmp:") {
            let dump = Dump::connect(Path::new(socket)).map_err(|source| of_dump(name, source))?;
            return Ok(of("qmp", Contents::Dump(Box::new(dump))));
        }
        if name == "-" {
            // A dump cannot be read from a pipe: it is read here and there.
            let evidence = read_log(name, io::stdin().lock(), format == Format::Log)?;
            return Ok(of("log", Contents::Read(Box::new(evidence))));
        }
        let path = PathBuf::from(name);
        let unreadable = |error: &io::Error| unreadable(name, error);
        let mut file = File::open(&path).map_err(|error| unreadable(&error))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(unreadable(&io::ErrorKind::IsADirectory.into()));
        }
        let mut head = Vec::with_capacity(LOOK);
        file.by_ref().take(LOOK as u64).read_to_end(&mut head).map_err(|error| unreadable(&error))?;
        if head.is_empty() && format != Format::Log {
            return Err(SourceError::Empty { name: name.into() });
        }
        let format = match format {
            Format::Auto if looks_like_a_dump(&head) => Format::Dump,
            Format::Auto if simulation::looks_like_a_trace(&head) => Format::Trace,
            other => other,
        };
        if format == Format::Trace {
            let whole = BufReader::new(head.as_slice().chain(file));
            let failed = |source| SourceError::Trace { name: name.into(), source };
            let evidence = simulation::read(whole).map_err(failed)?;
            return Ok(of("simulator", Contents::Read(Box::new(evidence))));
        }
        if format == Format::Dump {
            drop(file);
            let dump = Dump::open(&path).map_err(|source| of_dump(name, source))?;
            let kind = match dump.kind() {
                Kind::Elf => "elf",
                Kind::KdumpCompressed => "kdump-compressed",
                Kind::Kcore => "kcore",
                Kind::Monitor => "qmp",
                Kind::Smpcall => "smpcall",
            };
            return Ok(of(kind, Contents::Dump(Box::new(dump))));
        }
        let whole = BufReader::new(head.as_slice().chain(file));
        let evidence = read_log(name, whole, format == Format::Log)?;
        Ok(of("log", Contents::Read(Box::new(evidence))))
    }

    /// The same, with the file that its kernel was built as, for types and symbols that a dump does not carry itself.
    #[must_use]
    pub fn with_vmlinux(self, vmlinux: Option<PathBuf>) -> Self {
        Self { vmlinux, ..self }
    }

    /// What kind of source it is: `log`, `elf`, `kdump-compressed`, `kcore`, `qmp`, `smpcall`, `simulator`.
    pub const fn kind(&self) -> &'static str {
        self.kind
    }

    /// Concludes from all that it tells.
    ///
    /// # Errors
    /// If it is a dump whose kernel cannot be read.
    pub fn report(&self) -> Result<Report, SourceError> {
        let mut report = match &self.contents {
            Contents::Read(evidence) => Report::new(self.kind, evidence, 0.0),
            Contents::Dump(opened) if dump::is_own(opened) => {
                Report::new(self.kind, &dump::of_own_notes(opened), 0.0)
            }
            Contents::Dump(opened) => {
                let kernel = self.kernel(opened)?;
                Report::new(self.kind, &linux::evidence(opened, &kernel), 0.0)
            }
        };
        report.seconds = self.opened.elapsed().as_secs_f64();
        Ok(report)
    }

    /// The log that a dump contains, as `dmesg` would print it.
    ///
    /// # Errors
    /// If it is no dump, or its log cannot be read.
    pub fn dmesg(&self) -> Result<String, SourceError> {
        let Contents::Dump(opened) = &self.contents else {
            return Err(SourceError::NeedsDump { name: self.name.clone(), what: "--dmesg" });
        };
        let kernel = self.kernel(opened)?;
        let log = kernel.log().map_err(|source| SourceError::Log { name: self.name.clone(), source })?;
        let mut text = String::new();
        for record in &log.records {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{record}");
        }
        Ok(text)
    }

    /// A small dump that holds what was read of this one until now, and nothing else: after [`report`](Self::report) what the
    /// verdict rests on.
    ///
    /// # Errors
    /// If it is no dump, or cannot be written in that form.
    pub fn extract(&self) -> Result<(Vec<u8>, Extracted), SourceError> {
        let Contents::Dump(opened) = &self.contents else {
            return Err(SourceError::NeedsDump { name: self.name.clone(), what: "--extract" });
        };
        let form = if dump::is_own(opened) {
            extract::Format::Elf
        } else {
            extract::Format::suited(&self.kernel(opened)?.memory)
        };
        let mut bytes = Cursor::new(Vec::new());
        let failed = |source| SourceError::Extract { name: self.name.clone(), source };
        let extracted = extract::extract(opened, &mut bytes, form).map_err(failed)?;
        Ok((bytes.into_inner(), extracted))
    }

    fn kernel<'d>(&self, dump: &'d Dump) -> Result<Kernel<'d>, SourceError> {
        let failed = |source| SourceError::Kernel { name: self.name.clone(), source: Box::new(source) };
        match &self.vmlinux {
            None => Kernel::open(dump).map_err(failed),
            Some(path) => {
                let vmlinux = Vmlinux::open(path).map_err(|error| failed(error.into()))?;
                Kernel::open_with_vmlinux(dump, vmlinux).map_err(failed)
            }
        }
    }
}

fn of_dump(name: &str, source: OpenError) -> SourceError {
    SourceError::Dump { name: name.into(), source }
}

fn unreadable(name: &str, error: &io::Error) -> SourceError {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file; check its name".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied; run it as a user who may read it".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory; name a file in it".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
    };
    SourceError::Unreadable { name: name.into(), reason }
}

fn read_log(name: &str, source: impl BufRead, forced: bool) -> Result<MachineEvidence, SourceError> {
    let shown = if name == "-" { "standard input" } else { name };
    let reader = Reader::new().read_all(source).map_err(|error| unreadable(shown, &error))?;
    if reader.lines() == 0 {
        return Err(SourceError::Empty { name: shown.into() });
    }
    if !forced && !reader.looks_like_a_log() {
        return Err(SourceError::NotRecognised { name: shown.into() });
    }
    Ok(reader.evidence())
}

/// Whether a source begins like a dump. The formats are told apart by whoever opens it.
fn looks_like_a_dump(head: &[u8]) -> bool {
    const MAGICS: [&[u8]; 4] = [b"\x7fELF", b"KDUMP   ", b"DISKDUMP", b"makedumpfile"];
    MAGICS.iter().any(|magic| head.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(contents: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(contents).expect("is written");
        file
    }

    fn open(contents: &[u8], format: Format) -> Result<Source, SourceError> {
        let file = file(contents);
        Source::open(file.path().to_str().expect("a name"), format)
    }

    #[test]
    fn a_log_is_told_by_what_its_lines_say() {
        let log = b"[    1.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [a:1]\n";
        let report = open(log, Format::Auto).expect("a log").report().expect("concludes");
        assert_eq!((report.source.kind.as_str(), report.is_healthy()), ("log", false));
        let Err(SourceError::NotRecognised { .. }) = open(b"Dear all,\n", Format::Auto) else {
            panic!("no log")
        };
        let forced = open(b"Dear all,\n", Format::Log).expect("as asked for").report().expect("concludes");
        assert!(forced.is_healthy());
    }

    #[test]
    fn what_cannot_be_read_is_said_in_one_sentence() {
        let sentence = |result: Result<Source, SourceError>| result.expect_err("is refused").to_string();
        assert!(sentence(Source::open("/nowhere/x", Format::Auto)).contains("no such file"));
        assert!(sentence(Source::open("/", Format::Auto)).contains("directory"));
        assert!(sentence(open(b"", Format::Auto)).ends_with("is empty"));
        for (contents, format) in
            [(&b"\x7fELF"[..], Format::Auto), (b"KDUMP   x", Format::Auto), (b"text", Format::Dump)]
        {
            let sentence = sentence(open(contents, format));
            assert!(!sentence.contains('\n') && sentence.len() > 20, "{sentence}");
        }
    }

    #[test]
    fn a_log_has_no_log_of_its_own() {
        let source = open(b"[    1.000000] x\n", Format::Auto).expect("a log");
        assert!(source.dmesg().expect_err("is refused").to_string().contains("--dmesg"));
        assert!(source.extract().expect_err("is refused").to_string().contains("--extract"));
    }

    #[test]
    fn formats_have_the_names_that_they_are_asked_for_by() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        assert!("elf".parse::<Format>().is_err());
    }
}
