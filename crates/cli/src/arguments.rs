//! The arguments of the command.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use smpcall_diagnosis::source::Format;
use smpcall_incidents::{Fault, Incident, When};
use smpcall_lab_runner::{Accel, ApicMode, Machine, Suite};
use smpcall_local_apic::Routing;
use smpcall_simulator::campaign::Workload;
use smpcall_simulator::explorer::schedule::Schedule;
use smpcall_simulator::explorer::{Engine, MemoryModel};
use smpcall_simulator::faults::Probability;

/// Cross-CPU calls that cannot get lost: replay the incidents in which they did, try to lose one today, and explore every
/// schedule on which one could get lost.
#[derive(Debug, Parser)]
#[command(name = "smpcall", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Print results and errors only
    #[arg(long, global = true)]
    pub(crate) quiet: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Replay reported incidents: with the algorithm of the day, and with smpcall
    Replay(Replay),
    /// Run random calls under random faults and account for every one
    Campaign(Campaign),
    /// Explore every schedule of a protocol on a small machine: its laws hold, or here is how one breaks
    #[command(after_help = EXPLORE_HELP)]
    Explore(Box<Explore>),
    /// Run the lab kernel - the same code on a real machine, emulated - and its suites
    #[command(after_help = LAB_HELP)]
    Lab(Lab),
    /// Say which CPU never took which call, who waits for whom, and why: from a crash dump, a hung guest or a log
    #[command(after_help = DIAGNOSE_HELP)]
    Diagnose(Diagnose),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Which incidents; all of them if none is named
    #[arg(value_name = "INCIDENT")]
    pub(crate) incidents: Vec<Incident>,

    /// Only with the algorithm of the day
    #[arg(long, conflicts_with = "now")]
    pub(crate) then: bool,

    /// Only with smpcall
    #[arg(long)]
    pub(crate) now: bool,

    /// How many CPUs; the incident's own number by default
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<usize>,

    /// How CPUs are addressed: flat, physflat, x2apic-phys, x2apic-cluster, xapic-cluster, or as kernels of report 002
    /// did: mach-default, bigsmp, es7000, numaq, summit, cluster; what the reported kernel used by default
    #[arg(long, value_name = "NAME")]
    pub(crate) routing: Option<Routing>,

    /// From which all randomness comes
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,

    /// What goes wrong: reported, none, or what one incident has beside it: dead-target (lost-call, with --now),
    /// transient and until-rewritten (stuck-icr), old-apic (stray-eoi), another-cpu (pending-ipi)
    #[arg(long, value_name = "NAME", default_value = Fault::Reported.name())]
    pub(crate) fault: Fault,

    /// Print one JSON document and nothing else
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw what happened, as SVG; with two replays two files, named -then and -now
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) timeline: Option<PathBuf>,

    /// Write all that happened for Perfetto: open it in ui.perfetto.dev; files are named as with --timeline
    #[arg(long, value_name = "FILE.pftrace")]
    pub(crate) trace: Option<PathBuf>,
}

impl Replay {
    /// The algorithms to replay with.
    pub(crate) fn whens(&self) -> &'static [When] {
        match (self.then, self.now) {
            (true, _) => &[When::Then],
            (_, true) => &[When::Now],
            _ => &[When::Then, When::Now],
        }
    }

    /// The incidents to replay, each once.
    pub(crate) fn incidents(&self) -> Vec<Incident> {
        let named = |incident: &Incident| self.incidents.is_empty() || self.incidents.contains(incident);
        Incident::ALL.into_iter().filter(named).collect()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Campaign {
    /// How many CPUs
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) cpus: usize,

    /// How many calls; one to many CPUs counts once for each
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) calls: u64,

    /// What the CPUs do: calls, posts, work (deferred), hotplug, rendezvous, and fencing, which declares CPUs dead that live
    /// and so orphans the calls that they make; or all
    #[arg(long, value_name = "LIST", default_value_t = Workload::MIXED)]
    pub(crate) workload: Workload,

    /// Afterwards, so many short runs that each crash at a random instant; with --calls 0 only these
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) crashes: u64,

    /// The probability with which each interrupt is lost, 0 to 1
    #[arg(long, value_name = "P", allow_negative_numbers = true, default_value = "0.01", value_parser = probability)]
    pub(crate) drop: Probability,

    /// What else goes wrong, as in `delay:by=3us:p=0.1,wedge:cpu=2:at=1ms:for=500us`
    #[arg(long, value_name = "LIST", default_value = "")]
    pub(crate) faults: String,

    /// How CPUs are addressed: flat, physflat, x2apic-phys, x2apic-cluster, xapic-cluster, or as kernels of report 002
    /// did: mach-default, bigsmp, es7000, numaq, summit, cluster; flat up to 8 CPUs by default, then x2apic-cluster
    #[arg(long, value_name = "NAME")]
    pub(crate) routing: Option<Routing>,

    /// From which all randomness comes
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Go on with the following seeds for this many minutes
    #[arg(long, value_name = "M", value_parser = minutes)]
    pub(crate) minutes: Option<f64>,

    /// Print one JSON document and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

const DIAGNOSE_HELP: &str = "\
SOURCE is one of
  FILE           a crash dump: an ELF vmcore, kdump-compressed (makedumpfile, QEMU), also flattened
  FILE           a log: of a console, dmesg or journalctl, or what `crash` printed (bt -a), or QEMU's `info lapic`
  FILE           a trace of the simulated machine (smpcall replay --trace)
  -              a log on standard input
  qmp:SOCKET     a hung QEMU guest, read in place through its monitor; it is neither written to nor paused
  /proc/kcore    the running kernel

No debuginfo package is needed. Nothing is ever written to a source.

The machine hangs right now:
  on QEMU/KVM    smpcall diagnose qmp:/path/to/monitor.sock
  on hardware    let it panic with kdump (SysRq c), then  smpcall diagnose /var/crash/.../vmcore
  no dump        SysRq l (all back traces) or  crash> bt -a , save the console, then  smpcall diagnose console.log
It has come back:
  journalctl -k -b -1 | smpcall diagnose -

Read the first line: the verdict, how sure it is, and whom it concerns. `missing` says what would make it surer.
Exit codes: 0 nothing waits for longer than is normal, 1 something was found, 2 usage, 3 SOURCE cannot be read.";

#[derive(Debug, Args)]
pub(crate) struct Diagnose {
    /// What to read: a crash dump, a log, - for standard input, qmp:SOCKET, /proc/kcore
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,

    /// What SOURCE is: auto (told by its contents), log, dump, trace
    #[arg(long, value_name = "NAME", default_value_t = Format::Auto)]
    pub(crate) format: Format,

    /// Print one JSON document and nothing else
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the kernel's log that the dump contains, and nothing else
    #[arg(long, conflicts_with_all = ["json", "timeline"])]
    pub(crate) dmesg: bool,

    /// Draw who waits for whom, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) timeline: Option<PathBuf>,

    /// Write a small dump that holds only what the diagnosis has read and gives the same verdict: for a bug report
    #[arg(long, value_name = "SMALL.vmcore", conflicts_with = "dmesg")]
    pub(crate) extract: Option<PathBuf>,

    /// The kernel's own vmlinux, for kernels that do not describe their types (BTF) or symbols themselves
    #[arg(long, value_name = "FILE")]
    pub(crate) vmlinux: Option<PathBuf>,
}

const EXPLORE_HELP: &str = "Without a protocol, the protocols are listed. Ctrl-C ends an exploration with what was \
    covered until then.\n\nShards: if every shard I of N says that nothing but the other shards is missing (`incomplete` is \
    `shard`), then the sum of their `classes` and the union of their `endings` are those of the whole.";

/// What `--replay` excludes: whatever only a search has.
const SEARCH: [&str; 10] = [
    "engine",
    "jobs",
    "shard",
    "seed",
    "executions",
    "states",
    "minutes",
    "memory_limit",
    "keep_going",
    "no_hints",
];

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "independent options")]
pub(crate) struct Explore {
    /// Which protocol; without a name they are listed
    #[arg(value_name = "PROTOCOL", conflicts_with = "all")]
    pub(crate) protocol: Option<String>,

    /// Explore every protocol, a line for each
    #[arg(long, conflicts_with_all = ["cpus", "shard", "replay", "timeline"])]
    pub(crate) all: bool,

    /// How many CPUs, where the protocol leaves that open
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<usize>,

    #[arg(long, value_name = "NAME", help = engine_help())]
    pub(crate) engine: Option<Engine>,

    /// How stores reach memory: sc (sequential consistency) or tso (through a store buffer, as on x86)
    #[arg(long, value_name = "MODEL", default_value = "sc", value_parser = memory_model)]
    pub(crate) memory: MemoryModel,

    /// At most so many interrupt messages are lost; the protocol's own number by default, as for the next three
    #[arg(long, value_name = "N", value_parser = budget())]
    pub(crate) drops: Option<u32>,

    /// At most so many waits end by their deadline although somebody could still move
    #[arg(long, value_name = "N", value_parser = budget())]
    pub(crate) expiries: Option<u32>,

    /// At most so many timer ticks come
    #[arg(long, value_name = "N", value_parser = budget())]
    pub(crate) ticks: Option<u32>,

    /// At most so many CPUs make no further step
    #[arg(long, value_name = "N", value_parser = budget())]
    pub(crate) wedges: Option<u32>,

    /// On how many threads. What a complete exploration counts does not depend on it; which of several violations is found
    /// first may
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = jobs)]
    pub(crate) jobs: usize,

    /// Only the I-th of N parts, I from 1 to N: for many machines
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub(crate) shard: Option<Shard>,

    /// From which all randomness comes
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Give up after so many executions; 100,000 by default with random and pct, unless --minutes is given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) executions: Option<u64>,

    /// Give up after so many states (or, where states are not told apart, classes)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) states: Option<u64>,

    /// Give up after so many minutes
    #[arg(long, value_name = "M", value_parser = minutes)]
    pub(crate) minutes: Option<f64>,

    /// Give up when tables take so many bytes, as in 900M or 2G
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) memory_limit: Option<u64>,

    /// Go on after a violation; the shortest is shown
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Do not believe what programs say they have forgotten: a cross-check, with more states
    #[arg(long)]
    pub(crate) no_hints: bool,

    /// Make a decision of every operation, also of those that nobody else can notice: a cross-check
    #[arg(long)]
    pub(crate) no_local: bool,

    /// Replay this schedule, and nothing else
    #[arg(long, value_name = "SCHEDULE", conflicts_with_all = SEARCH, requires = "protocol")]
    pub(crate) replay: Option<Schedule>,

    /// Draw what was found, as SVG
    #[arg(long, value_name = "FILE.svg", requires = "protocol")]
    pub(crate) timeline: Option<PathBuf>,

    /// Print one JSON document and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

const LAB_HELP: &str = "QEMU is looked for in PATH, or is the program that SMPCALL_QEMU names. Each suite is a boot of its own. \
    What this version of QEMU cannot do is skipped, with the reason, and has not passed.";

#[derive(Debug, Args)]
pub(crate) struct Lab {
    #[arg(value_name = "SUITE", help = suites_help())]
    pub(crate) suites: Vec<Suite>,

    /// How many CPUs, 1 to 512; 4 by default, for bench 16
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,

    /// The mode of the local APICs: xapic or x2apic; x2apic by default where the machine has it
    #[arg(long, value_name = "MODE")]
    pub(crate) apic: Option<ApicMode>,

    /// Which emulator: qemu or bochs
    #[arg(long, value_name = "NAME", default_value_t = Machine::Qemu)]
    pub(crate) machine: Machine,

    /// Who executes the guest's instructions: tcg (QEMU itself) or kvm
    #[arg(long, value_name = "NAME", default_value_t = Accel::Tcg)]
    pub(crate) accel: Accel,

    /// Let the guest's clock count instructions: runs repeat exactly
    #[arg(long)]
    pub(crate) icount: bool,

    /// From which all randomness comes
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,

    /// How many operations each suite makes; its own number by default
    #[arg(long, value_name = "N")]
    pub(crate) operations: Option<u64>,

    /// The probability with which each ring is swallowed before it is sent, 0 to 1; the suites' own by default
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = probability)]
    pub(crate) drop: Option<Probability>,

    /// The image of the lab kernel; by default one beside this command, or built from the workspace
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,

    /// Keep the vmcore that the suite crash leaves
    #[arg(long, value_name = "FILE")]
    pub(crate) vmcore: Option<PathBuf>,

    /// Print one JSON document and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

fn suites_help() -> String {
    format!("Which suites: {}; all but bench if none is named", Suite::names())
}

/// One part of an exploration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Which, from 1.
    pub(crate) number: usize,
    /// Of how many.
    pub(crate) of: usize,
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

fn engine_help() -> String {
    let names = Engine::ALL.map(Engine::name).join(", ");
    format!("Which schedules are tried, and how: {names}; states by default, dpor for shards")
}

fn memory_model(text: &str) -> Result<MemoryModel, &'static str> {
    match text {
        "sc" => Ok(MemoryModel::Sc),
        "tso" => Ok(MemoryModel::Tso),
        _ => Err("there are sc and tso"),
    }
}

/// What the explorer counts in 16 bits.
fn budget() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=i64::from(u16::MAX))
}

fn jobs(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|jobs| (1..=1024).contains(jobs)).ok_or("there are 1 to 1024 threads")
}

fn shard(text: &str) -> Result<Shard, &'static str> {
    let parts = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
    match parts {
        Some((number, of)) if 1 <= number && number <= of => Ok(Shard { number, of }),
        _ => Err("a shard is I/N, with I from 1 to N"),
    }
}

fn bytes(text: &str) -> Result<u64, &'static str> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let number = digits.parse::<u64>().ok().filter(|number| *number > 0);
    let bytes = unit.zip(number).and_then(|(unit, number)| number.checked_mul(1 << unit));
    bytes.ok_or("a size is a number above 0, with K, M, G or T for powers of 1024")
}

fn probability(text: &str) -> Result<Probability, String> {
    let wrong = || "a probability is a number from 0 to 1".to_owned();
    text.parse().ok().and_then(Probability::new).ok_or_else(wrong)
}

fn minutes(text: &str) -> Result<f64, String> {
    // A year: whoever wants more can come back.
    const LIMIT: f64 = 366.0 * 24.0 * 60.0;
    let minutes = text.parse().ok().filter(|minutes: &f64| *minutes > 0.0 && *minutes <= LIMIT);
    minutes.ok_or_else(|| "minutes are a number above 0 and below a year".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn probabilities_and_minutes_outside_their_range_are_refused() {
        for wrong in ["-0.1", "1.1", "NaN", "inf", "", "one"] {
            assert!(probability(wrong).is_err(), "{wrong}");
        }
        assert_eq!(probability("1").map(Probability::get), Ok(1.0));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", ""] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(minutes("0.5"), Ok(0.5));
    }

    #[test]
    fn shards_are_counted_from_one() {
        assert_eq!(shard("3/64"), Ok(Shard { number: 3, of: 64 }));
        for wrong in ["0/8", "9/8", "1", "1/0", "a/b", "-1/2", "/", ""] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_the_units_that_people_use() {
        assert_eq!((bytes("17"), bytes("2k"), bytes("3G")), (Ok(17), Ok(2 << 10), Ok(3 << 30)));
        for wrong in ["0", "G", "", "1GB", "1.5G", "-1", "99999999999T"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_incident_named_twice_is_replayed_once() {
        let arguments = Arguments::try_parse_from(["smpcall", "replay", "lost-call", "lost-call", "--now"]);
        let Command::Replay(replay) = arguments.expect("parses").command else { panic!("a replay") };
        assert_eq!(replay.incidents(), [Incident::LostCall]);
        assert_eq!(replay.whens(), [When::Now]);
    }
}
