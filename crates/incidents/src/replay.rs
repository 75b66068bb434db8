//! One replay: running it, and everything that is told about it afterwards.

use core::fmt;

use serde::{Serialize, Serializer};
use smpcall_diagnosis::{Diagnosis, Verdict, WaitGraph};
use smpcall_local_apic::Routing;
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::{Trace, perfetto, timeline};

use crate::incident::{Fault, Incident, Options, ReplayError, Setup, When};
use crate::laws::Laws;

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// In the reported state: the incident's predicate holds.
    Lost,
    /// Not in the reported state. Whether the laws were kept is another question: see [`Replay::laws`].
    Held,
    /// It cannot happen on such a machine: see [`Replay::reason`].
    #[serde(rename = "n/a")]
    NotApplicable,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::Held => "held",
            Self::NotApplicable => "n/a",
        })
    }
}

/// What became of a replay. Serialises to what `smpcall replay --json` prints for it.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Which incident.
    pub incident: Incident,
    /// With which algorithm.
    pub when: When,
    /// On how many CPUs.
    pub cpus: usize,
    /// How they were addressed.
    pub routing: Routing,
    /// From which all randomness came.
    pub seed: u64,
    /// What went wrong.
    pub fault: Fault,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it cannot happen, if so.
    pub reason: Option<&'static str>,
    /// Which laws were kept.
    pub laws: Laws,
    /// The inter-processor interrupts of the whole run.
    pub ipis: Ipis,
    /// What is wrong with the machine, and why, from the state in which it was found.
    pub diagnosis: Diagnosis,
    /// Everything that happened.
    pub trace: Trace,
    /// What somebody at the machine had in hand, as text of several lines.
    pub view: String,
    /// What happened, as one paragraph in one line.
    pub summary: String,
}

impl Replay {
    /// Whether it ended as it should: *then* in the reported state, *now* not in it and with no law broken.
    pub fn is_as_expected(&self) -> bool {
        match self.when {
            _ if self.outcome == Outcome::NotApplicable => true,
            When::Then => self.outcome == Outcome::Lost,
            When::Now => self.outcome == Outcome::Held && self.laws.hold(),
        }
    }

    /// A replay of what cannot happen on such a machine: nothing was run.
    pub(crate) fn not_applicable(setup: &Setup, reason: &'static str) -> Self {
        Self {
            incident: setup.incident,
            when: setup.when,
            cpus: setup.cpus,
            routing: setup.routing,
            seed: setup.seed,
            fault: setup.fault,
            outcome: Outcome::NotApplicable,
            reason: Some(reason),
            laws: Laws::NOT_APPLICABLE,
            ipis: Ipis::default(),
            diagnosis: Diagnosis { verdicts: vec![], graph: WaitGraph::default() },
            trace: Trace::default(),
            view: String::new(),
            summary: String::new(),
        }
    }

    /// The picture of what happened, as an SVG document.
    pub fn timeline(&self) -> String {
        let broken = self.when == When::Now && !self.laws.hold();
        let broken = if broken { ", and a law was broken" } else { "" };
        let title = format!("{}, as {}: {}{broken}", self.incident, self.when, self.outcome);
        let subtitle = format!("{}; diagnosis: {}", self.machine(), self.verdicts().join(", "));
        let input = timeline::Input {
            title: &title,
            subtitle: &subtitle,
            cpus: self.trace.cpus,
            events: &self.trace.events,
            frame_names: &self.trace.frame_names,
        };
        timeline::render(&input, &timeline::Options::default())
    }

    /// Everything that happened, as a file for Perfetto; the diagnosis is at its end. See [`perfetto`].
    pub fn perfetto(&self) -> Vec<u8> {
        let findings: Vec<String> =
            self.verdicts().into_iter().map(|verdict| format!("diagnosis: {verdict}")).collect();
        perfetto::encode(&perfetto::Input {
            process: &format!("smpcall {} {}", self.incident, self.when),
            description: &format!("{}.", self.machine()),
            cpus: self.trace.cpus,
            events: &self.trace.events,
            frame_names: &self.trace.frame_names,
            findings: &findings,
        })
    }

    /// On what it was run, in one line.
    fn machine(&self) -> String {
        let Self { cpus, routing, seed, fault, .. } = self;
        format!("{cpus} CPUs, routing {routing}, seed {seed}, fault {}", fault.name())
    }

    /// Each verdict of the diagnosis, with its CPU.
    fn verdicts(&self) -> Vec<String> {
        let verdicts = self.diagnosis.verdicts.iter().map(|verdict| match verdict.cpu {
            Some(cpu) => format!("{} at CPU {cpu}", verdict.kind.name()),
            None => verdict.kind.name().to_owned(),
        });
        verdicts.collect()
    }
}

/// The inter-processor interrupts of a run, as they stand in JSON.
#[derive(Serialize)]
struct IpiCounts {
    sent: u64,
    taken: u64,
    lost: u64,
    resent: u64,
}

/// The JSON of a replay: the names and their order are what scripts rely on.
#[derive(Serialize)]
struct Document<'a> {
    incident: Incident,
    when: When,
    cpus: usize,
    routing: &'static str,
    seed: u64,
    fault: Fault,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    laws: Laws,
    ipis: IpiCounts,
    diagnosis: &'a [Verdict],
    events: usize,
}

impl Serialize for Replay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Ipis { sent, taken, lost, resent } = self.ipis;
        Document {
            incident: self.incident,
            when: self.when,
            cpus: self.cpus,
            routing: self.routing.name(),
            seed: self.seed,
            fault: self.fault,
            outcome: self.outcome,
            reason: self.reason,
            laws: self.laws,
            ipis: IpiCounts { sent, taken, lost, resent },
            diagnosis: &self.diagnosis.verdicts,
            events: self.trace.events.len(),
        }
        .serialize(serializer)
    }
}

/// Replays an incident. Equal arguments give equal replays, to the last event.
///
/// # Errors
/// [`ReplayError`] if the options do not fit the incident.
pub fn replay(incident: Incident, when: When, options: &Options) -> Result<Replay, ReplayError> {
    let setup = options.setup(incident, when)?;
    match when {
        When::Then => (incident.definition().then)(&setup),
        When::Now => (incident.definition().now)(&setup),
    }
}
