//! The command line: words `key=value`.

use smpcall_local_apic::{Mode, Routing};

use crate::memory;

/// What the command line asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// The suites, separated by commas; empty: those that every run has.
    pub(crate) suites: &'static str,
    /// All randomness comes from it.
    pub(crate) seed: u64,
    /// How many operations each suite makes; none: as many as it likes.
    pub(crate) operations: Option<u64>,
    /// How many of a million rings are swallowed.
    pub(crate) dropped_per_million: u32,
    /// The mode of the APICs; none: as the firmware has left them.
    pub(crate) apic: Option<Mode>,
    /// How CPUs are addressed; none: by what fits the machine.
    pub(crate) routing: Option<Routing>,
    /// How to crash.
    pub(crate) crash: &'static str,
    /// The CPUs to bring up, at most.
    pub(crate) cpus: usize,
}

/// Reads the command line. What it does not understand is said, and left out.
pub(crate) fn read() -> Options {
    let mut options = Options {
        suites: "",
        seed: 1,
        operations: None,
        dropped_per_million: 0,
        apic: None,
        routing: None,
        crash: "",
        cpus: crate::cpu::MAX_CPUS,
    };
    for word in memory::handed().command_line().split_ascii_whitespace() {
        if !take(&mut options, word) {
            crate::console::say!("not understood, and left out: {word}");
        }
    }
    options
}

fn take(options: &mut Options, word: &'static str) -> bool {
    let Some((key, value)) = word.split_once('=') else { return false };
    match key {
        "suite" => options.suites = value,
        "seed" => return parsed(value, &mut options.seed),
        "operations" => {
            options.operations = value.parse().ok();
            return options.operations.is_some();
        }
        "drop" => match per_million(value) {
            Some(dropped) => options.dropped_per_million = dropped,
            None => return false,
        },
        "apic" => {
            options.apic = match value {
                "xapic" => Some(Mode::XApic),
                "x2apic" => Some(Mode::X2Apic),
                _ => return false,
            }
        }
        "routing" => {
            options.routing = value.parse().ok();
            return options.routing.is_some();
        }
        "crash" => options.crash = value,
        "cpus" => return parsed(value, &mut options.cpus),
        _ => return false,
    }
    true
}

fn parsed<T: core::str::FromStr>(value: &str, option: &mut T) -> bool {
    value.parse().map(|value| *option = value).is_ok()
}

/// A probability such as `0.01`, in millionths. Six digits after the point count.
fn per_million(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(core::iter::repeat(b'0')).take(6);
    let millionths = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    let all = whole.checked_mul(1_000_000)?.checked_add(millionths)?;
    (all <= 1_000_000).then_some(all)
}
