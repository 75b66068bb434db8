//! The arguments of the command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use smpcall_incidents::{Fault, Incident, When};
use smpcall_local_apic::Routing;
use smpcall_simulator::faults::Probability;

/// Cross-CPU calls that cannot get lost: replay the incidents in which they did, and try to lose one today.
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

    /// How CPUs are addressed: flat, physflat, x2apic-phys or x2apic-cluster; what the reported kernel used by default
    #[arg(long, value_name = "NAME")]
    pub(crate) routing: Option<Routing>,

    /// From which all randomness comes
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,

    /// What goes wrong: reported, dead-target (with --now only) or none
    #[arg(long, value_name = "NAME", default_value = Fault::Reported.name())]
    pub(crate) fault: Fault,

    /// Print one JSON document and nothing else
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw what happened, as SVG; with two replays two files, named -then and -now
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) timeline: Option<PathBuf>,
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

    /// The probability with which each interrupt is lost, 0 to 1
    #[arg(long, value_name = "P", allow_negative_numbers = true, default_value = "0.01", value_parser = probability)]
    pub(crate) drop: Probability,

    /// What else goes wrong, as in `delay:by=3us:p=0.1,wedge:cpu=2:at=1ms:for=500us`
    #[arg(long, value_name = "LIST", default_value = "")]
    pub(crate) faults: String,

    /// How CPUs are addressed: flat, physflat, x2apic-phys or x2apic-cluster; flat up to 8 CPUs by default, then
    /// x2apic-cluster
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
    fn an_incident_named_twice_is_replayed_once() {
        let arguments = Arguments::try_parse_from(["smpcall", "replay", "lost-call", "lost-call", "--now"]);
        let Command::Replay(replay) = arguments.expect("parses").command else { panic!("a replay") };
        assert_eq!(replay.incidents(), [Incident::LostCall]);
        assert_eq!(replay.whens(), [When::Now]);
    }
}
