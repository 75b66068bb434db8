//! Measuring a child process: wall time, peak memory, and an end to it when it takes too long.

use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a child process took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Wall time, seconds.
    pub(crate) seconds: f64,
    /// Processor time, seconds: what other work on the machine does not lengthen.
    pub(crate) cpu_seconds: f64,
    /// Peak resident memory, KiB.
    pub(crate) peak_kib: u64,
}

/// The end of a child process.
pub(crate) struct Limited {
    /// Its standard output; none if it was ended because of the limit.
    pub(crate) output: Option<String>,
    pub(crate) cost: Cost,
}

/// How often a child is looked at, so that its time is measured to about this.
const LOOK: Duration = Duration::from_millis(1);

/// Runs a command to its end, and at the longest for `limit`.
///
/// # Errors
/// If it cannot be started, or its output cannot be read.
pub(crate) fn run_limited(command: &mut Command, limit: Duration) -> io::Result<Limited> {
    // A file and not a pipe: nobody has to read while the child runs.
    let mut output = unnamed_file()?;
    let start = Instant::now();
    // Not waited for by the standard library: only `wait4` tells the child's peak memory.
    let mut child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(Stdio::null()).spawn()?;
    let process = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut within_limit = true;
    let usage = loop {
        if let Some(usage) = ended(process)? {
            break usage;
        }
        if within_limit && start.elapsed() > limit {
            within_limit = false;
            child.kill()?;
        }
        std::thread::sleep(LOOK);
    };
    let cost = Cost {
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_kib: usage.ru_maxrss.try_into().unwrap_or(0),
    };
    let mut text = String::new();
    output.seek(SeekFrom::Start(0))?;
    output.read_to_string(&mut text)?;
    let output = within_limit.then_some(text);
    Ok(Limited { output, cost })
}

fn seconds(time: libc::timeval) -> f64 {
    let whole = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    (Duration::from_secs(whole) + Duration::from_micros(micros)).as_secs_f64()
}

/// What a child used, if it has ended.
fn ended(process: libc::pid_t) -> io::Result<Option<libc::rusage>> {
    let mut status = 0;
    // SAFETY: all zero bytes are a valid `rusage`, a struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables of the types that the call writes.
    let found = unsafe { libc::wait4(process, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match found {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(usage)),
    }
}

/// A file that nobody else can open and that goes away when it is closed.
fn unnamed_file() -> io::Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a C string; the call has no other requirements.
    let descriptor = unsafe { libc::memfd_create(c"output".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { std::fs::File::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_within_its_limit_gives_its_output_and_cost() {
        let limited = run_limited(Command::new("echo").arg("well"), Duration::from_secs(10)).unwrap();
        assert_eq!(limited.output.as_deref(), Some("well\n"));
        assert!(limited.cost.peak_kib > 0 && limited.cost.cpu_seconds < limited.cost.seconds + 1.0);
    }

    #[test]
    fn a_command_beyond_its_limit_is_ended() {
        let limited = run_limited(Command::new("sleep").arg("60"), Duration::from_millis(20)).unwrap();
        assert!(limited.output.is_none() && limited.cost.seconds < 10.0);
    }
}
