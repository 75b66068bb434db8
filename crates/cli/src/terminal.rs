//! Standard output and standard error: who reads them, and what they can show.

use std::env;
use std::io::{self, IsTerminal, Write};

use crate::failure::Failure;

/// How a word is shown where colours are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// As it should not be.
    Bad,
}

/// Where results and notes go.
pub(crate) struct Terminal {
    quiet: bool,
    coloured: bool,
    progress: bool,
}

impl Terminal {
    /// Notes and progress are left out if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        let colours_wanted = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            quiet,
            coloured: colours_wanted && io::stdout().is_terminal(),
            progress: !quiet && io::stderr().is_terminal(),
        }
    }

    /// A word of a result in colour, if standard output shows colours.
    pub(crate) fn tinted(&self, word: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
        };
        if self.coloured { format!("\x1b[1;{code}m{word}\x1b[0m") } else { word.to_owned() }
    }

    /// A remark that is no result.
    pub(crate) fn note(&self, remark: &str) {
        if !self.quiet {
            complain_plainly(remark);
        }
    }

    /// Whether somebody watches progress.
    pub(crate) const fn shows_progress(&self) -> bool {
        self.progress
    }

    /// Replaces the line of progress, if somebody watches.
    pub(crate) fn progress(&self, line: &str) {
        if self.progress {
            let mut err = io::stderr().lock();
            let _ = write!(err, "\r\x1b[K{line}").and_then(|()| err.flush());
        }
    }
}

/// Prints the whole result. A reader that has left is no failure.
pub(crate) fn print(result: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(result.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::standard_output(&error)),
        _ => Ok(()),
    }
}

/// Says on standard error why the command failed.
pub(crate) fn complain(sentence: &str) {
    complain_plainly(&format!("smpcall: {sentence}"));
}

fn complain_plainly(line: &str) {
    // If standard error cannot be written, there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Breaks a paragraph into lines of at most `width` characters, a longer word alone on its line.
pub(crate) fn wrapped(paragraph: &str, width: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            used = 0;
        }
        if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_never_longer_than_wanted() {
        assert_eq!(wrapped("one two three four", 9), "one two\nthree\nfour");
        assert_eq!(wrapped("a extraordinary b", 5), "a\nextraordinary\nb");
        assert_eq!(wrapped("", 5), "");
    }

    #[test]
    fn colour_is_only_where_it_is_shown() {
        let terminal = |coloured| Terminal { quiet: false, coloured, progress: false };
        assert_eq!(terminal(false).tinted("LOST", Tone::Bad), "LOST");
        assert_eq!(terminal(true).tinted("LOST", Tone::Bad), "\x1b[1;31mLOST\x1b[0m");
    }
}
