//! Running the command and looking at what it did.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::path::Path;
use std::process::{Command, Output};

/// What one run of the command did.
pub(crate) struct Run {
    /// Its exit code.
    pub(crate) code: i32,
    /// Its standard output.
    pub(crate) out: String,
    /// Its standard error.
    pub(crate) err: String,
}

/// The command, not yet run.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smpcall"));
    command.args(arguments);
    command
}

/// Runs the command.
pub(crate) fn smpcall(arguments: &[&str]) -> Run {
    seen(&command(arguments).output().expect("the command starts"))
}

/// Runs the command in a directory.
pub(crate) fn smpcall_in(directory: &Path, arguments: &[&str]) -> Run {
    seen(&command(arguments).current_dir(directory).output().expect("the command starts"))
}

/// What a command that has ended did.
pub(crate) fn seen(output: &Output) -> Run {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    Run {
        code: output.status.code().expect("it ended by itself"),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

impl Run {
    /// It failed with this exit code and one sentence on standard error that contains `words`, and printed no result.
    #[track_caller]
    pub(crate) fn is_refused(&self, code: i32, words: &str) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("smpcall: ") && self.err.contains(words), "{}", self.err);
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).expect("one JSON document and nothing else")
    }
}
