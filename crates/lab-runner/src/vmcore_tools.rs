//! What the tools of others say of a vmcore.

use std::io;
use std::path::Path;
use std::process::{Command, Output};

/// What a tool says of a vmcore that it accepts.
pub(crate) enum Verdict {
    /// This.
    Accepted(String),
    /// Nothing: it is not there.
    NotInstalled(&'static str),
}

/// Runs a tool; none if it is not installed. What it says in its own way about what is wrong is an error.
fn run(program: &'static str, command: &mut Command) -> Result<Option<Output>, String> {
    // No translations, and no questions to servers.
    let output = command.env("LC_ALL", "C").env_remove("DEBUGINFOD_URLS").output();
    match output {
        Ok(output) if output.status.success() => Ok(Some(output)),
        Ok(output) => Err(format!(
            "{program} ends with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{program} cannot be run: {error}")),
    }
}

/// Whether `readelf` reads all notes, and finds registers of so many CPUs.
pub(crate) fn readelf(vmcore: &Path, saved: usize) -> Result<Verdict, String> {
    let Some(output) = run("readelf", Command::new("readelf").args(["-W", "-n", "-l"]).arg(vmcore))? else {
        return Ok(Verdict::NotInstalled("readelf"));
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    if !complaints.trim().is_empty() {
        return Err(format!("readelf says: {}", complaints.trim()));
    }
    registers_in(&String::from_utf8_lossy(&output.stdout), saved).map(Verdict::Accepted)
}

fn registers_in(text: &str, saved: usize) -> Result<String, String> {
    let registers =
        text.lines().filter(|line| line.contains(" CORE ") && line.contains("NT_PRSTATUS")).count();
    if registers == saved {
        Ok(format!("{registers} notes with registers"))
    } else {
        Err(format!("readelf finds registers of {registers} CPUs, and {saved} were saved"))
    }
}

/// Whether `gdb` has a thread for each CPU and finds each in the same function of the image as we do.
pub(crate) fn gdb(image: &Path, vmcore: &Path, functions: &[String]) -> Result<Verdict, String> {
    let mut command = Command::new("gdb");
    command.args([
        "-nx",
        "-batch",
        "-iex",
        "set debuginfod enabled off",
        "-iex",
        "set print asm-demangle off",
    ]);
    command.args(["-ex", "info threads", "-ex", "thread apply all -ascending -q info symbol $pc"]);
    let Some(output) = run("gdb", command.arg(image).arg(vmcore))? else {
        return Ok(Verdict::NotInstalled("gdb"));
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    if let Some(warning) = complaints.lines().find(|line| line.contains("warning:")) {
        return Err(format!("gdb says: {warning}"));
    }
    threads_in(&String::from_utf8_lossy(&output.stdout), functions).map(Verdict::Accepted)
}

fn threads_in(text: &str, functions: &[String]) -> Result<String, String> {
    let threads = text.lines().filter(|line| is_thread(line)).count();
    let symbols: Vec<&str> =
        text.lines().filter_map(|line| line.split_once(" in section .text").map(|(at, _)| at)).collect();
    if threads != functions.len() || symbols.len() != functions.len() {
        return Err(format!(
            "gdb has {threads} threads, {} of them at a symbol, and {} CPUs were saved",
            symbols.len(),
            functions.len()
        ));
    }
    Ok(format!("{threads} threads, each in a function of the image: {}", symbols.join(", ")))
}

/// A line of `info threads`: a number, behind a star if it is the current thread, and what the core calls it.
fn is_thread(line: &str) -> bool {
    let line = line.trim_start_matches(['*', ' ']);
    line.split_once(' ').is_some_and(|(number, rest)| {
        number.parse::<u32>().is_ok() && rest.trim_start().starts_with(['L', 'p', 'T'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_counted_by_their_owner() {
        let text = "  CORE     0x150 NT_PRSTATUS (prstatus structure)\n  SMPCALL  0x18 NT_PRSTATUS\n";
        assert!(registers_in(text, 1).is_ok());
        assert!(registers_in(text, 2).is_err());
        assert!(registers_in("", 1).is_err());
    }

    #[test]
    fn every_thread_must_be_at_a_symbol() {
        let text = "  Id   Target Id         Frame \n* 1    LWP 1      0x1 in f ()\n  2    LWP 3      g () at a.rs:3\n\
            f + 1 in section .text\ng in section .text of /image\n";
        let functions = ["f".to_owned(), "g".to_owned()];
        assert!(threads_in(text, &functions).is_ok_and(|said| said.contains("f + 1, g")));
        assert!(threads_in(text, &functions[..1]).is_err());
        assert!(threads_in(&text.replace("g in section", "No symbol"), &functions).is_err());
    }
}
