//! What keeps the command from doing what it was asked to: one sentence, one exit code.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Why nothing was done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The arguments make no sense: exit code 2.
    Usage(String),
    /// Something could not be written: exit code 3.
    Output(String),
    /// What was asked for cannot be started: exit code 3.
    Start(String),
    /// Something cannot be read: exit code 3.
    Input(String),
}

impl Failure {
    /// The arguments make no sense together.
    pub(crate) fn usage(problem: impl Display) -> Self {
        Self::Usage(problem.to_string())
    }

    /// A file could not be written.
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        let (reason, hint) = match error.kind() {
            io::ErrorKind::NotFound => ("its directory does not exist", "create it first"),
            io::ErrorKind::NotADirectory => ("a part of its path is no directory", "choose another place"),
            io::ErrorKind::PermissionDenied => ("permission denied", "choose a place that you may write to"),
            io::ErrorKind::ReadOnlyFilesystem => ("the file system is read-only", "choose another place"),
            io::ErrorKind::IsADirectory => ("it is a directory", "give the name of a file"),
            io::ErrorKind::StorageFull => ("no space is left", "make room or choose another place"),
            _ => (&*reason(error), "choose another place"),
        };
        Self::Output(format!("cannot write {}: {reason}; {hint}", path.display()))
    }

    /// Standard output could not be written.
    pub(crate) fn standard_output(error: &io::Error) -> Self {
        let reason = reason(error);
        Self::Output(format!(
            "cannot write the result to standard output: {reason}; send it to another place"
        ))
    }

    /// A source cannot be read.
    pub(crate) fn source(problem: impl Display) -> Self {
        Self::Input(problem.to_string())
    }

    /// Ctrl-C would not end it cleanly.
    pub(crate) fn signals(error: &io::Error) -> Self {
        let reason = reason(error);
        Self::Start(format!("cannot watch for Ctrl-C: {reason}; lift the limits on this process"))
    }

    /// Says it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        let (sentence, code) = match self {
            Self::Usage(sentence) => (sentence, 2),
            Self::Output(sentence) | Self::Start(sentence) | Self::Input(sentence) => (sentence, 3),
        };
        crate::terminal::complain(&sentence);
        ExitCode::from(code)
    }
}

/// What the system says, without the number of the error.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

impl From<&clap::Error> for Failure {
    /// The paragraphs of the message that say something about this very problem, in one line.
    fn from(error: &clap::Error) -> Self {
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return Self::Usage("no command is given; `smpcall --help` lists them".into());
        }
        let text = error.render().to_string();
        let general = |paragraph: &&str| {
            !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information")
        };
        let words = text.split("\n\n").filter(general).flat_map(str::split_whitespace);
        let line = words.collect::<Vec<_>>().join(" ");
        let line = line.strip_prefix("error: ").unwrap_or(&line).replace(" tip: ", "; ");
        Self::Usage(format!("{line}; `--help` says more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use clap::Parser;

    fn usage(arguments: &[&str]) -> String {
        match Failure::from(&Arguments::try_parse_from(arguments).expect_err("is refused")) {
            Failure::Usage(sentence) => sentence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_clap_says_becomes_one_line() {
        assert_eq!(
            usage(&["smpcall", "replay", "lost-cal"]),
            "invalid value 'lost-cal' for '[INCIDENT]...': no such incident; known: lost-call, offline-queue, stuck-icr, stray-eoi, pending-ipi; `--help` says more"
        );
        assert_eq!(
            usage(&["smpcall", "replay", "--then", "--now"]),
            "the argument '--then' cannot be used with '--now'; `--help` says more"
        );
        assert_eq!(usage(&["smpcall"]), "no command is given; `smpcall --help` lists them");
        assert!(usage(&["smpcall", "replay", "--sed", "1"]).contains("'--seed'"), "the tip is kept");
    }

    #[test]
    fn the_reason_is_given_in_words_and_with_what_to_do() {
        let sentence = |code| match Failure::file(Path::new("a/b.svg"), &io::Error::from_raw_os_error(code)) {
            Failure::Output(sentence) => sentence,
            other => panic!("{other:?}"),
        };
        assert_eq!(sentence(2), "cannot write a/b.svg: its directory does not exist; create it first");
        // Too many open files: a reason that only the system has words for.
        assert_eq!(sentence(24), "cannot write a/b.svg: too many open files; choose another place");
    }
}
