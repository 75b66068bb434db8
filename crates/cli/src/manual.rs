//! The completion scripts and the manual page, made from the definition of the arguments.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Finding;
use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::terminal;

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: Shell) -> Result<Finding, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "smpcall", &mut script);
    terminal::print(&String::from_utf8_lossy(&script))?;
    Ok(Finding::Nothing)
}

/// Prints the manual page: that of the command, then those of its subcommands.
pub(crate) fn page() -> Result<Finding, Failure> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    let subcommands: Vec<_> = command.get_subcommands().cloned().collect();
    for command in std::iter::once(command).chain(subcommands) {
        let name = command.get_bin_name().unwrap_or("smpcall").replace(' ', "-");
        // Writing to a vector cannot fail.
        let _ = clap_mangen::Man::new(command).title(name).render(&mut page);
    }
    terminal::print(&String::from_utf8_lossy(&page))?;
    Ok(Finding::Nothing)
}
