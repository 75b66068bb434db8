//! The command `smpcall`: reads arguments, runs what they ask for, prints what came of it.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 as expected, nothing wrong; 1
//! something was found; 2 usage; 3 an input cannot be read, a machine cannot be started, or an output cannot be written.

mod arguments;
mod campaign;
mod diagnose;
mod explore;
mod failure;
mod files;
mod interrupt;
mod lab;
mod manual;
mod replay;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::Failure;
use terminal::Terminal;

/// Whether what was run came out as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Nothing,
    Something,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => return Failure::from(&error).report(),
        Err(help) => {
            // Help or version, asked for. If nobody reads it, nobody misses it.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let terminal = Terminal::new(arguments.quiet);
    let result = match arguments.command {
        Command::Replay(wanted) => replay::run(&wanted, &terminal),
        Command::Campaign(wanted) => campaign::run(&wanted, &terminal),
        Command::Explore(wanted) => explore::run(&wanted, &terminal),
        Command::Lab(wanted) => lab::run(&wanted, &terminal),
        Command::Diagnose(wanted) => diagnose::run(&wanted, &terminal),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man => manual::page(),
    };
    match result {
        Ok(Finding::Nothing) => ExitCode::SUCCESS,
        Ok(Finding::Something) => ExitCode::from(1),
        Err(failure) => failure.report(),
    }
}
