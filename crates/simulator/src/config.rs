//! What a simulated machine is built from, and why it can be refused.

use core::time::Duration;

use rustc_hash::FxHashMap;
use smpcall_local_apic::{ApicId, Mode, Routing, RoutingError, StartUpDelays, Topology};
use smpcall_machine::{Cpu, CpuMask};

use crate::apic::{Features, Generation};
use crate::cost::CostModel;
use crate::faults::{self, Fault, FaultError};

/// The largest machine, in CPUs.
pub const MAX_CPUS: usize = 4096;

/// The CPU that firmware starts, and that INIT must never be sent to.
pub(crate) const BOOT_CPU: usize = 0;

/// A machine to be built.
#[allow(clippy::struct_excessive_bools, reason = "independent choices")]
#[derive(Clone, Debug)]
pub struct Config {
    /// How many CPUs: 1 to [`MAX_CPUS`].
    pub cpus: usize,
    /// How they are addressed; this decides between xAPIC and x2APIC.
    pub routing: Routing,
    /// The identifier of each CPU's local APIC. `None`: the CPU's number.
    pub apic_ids: Option<Vec<ApicId>>,
    /// What the local APICs are like. Those of the P6 family have no x2APIC mode, and refuse a third interrupt of a class,
    /// which the bus then offers again until there is room.
    pub apic_features: Features,
    /// The CPUs that are present but were not started: they wait for a start-up message. Never CPU 0, the boot CPU.
    pub not_started: Vec<Cpu>,
    /// How long a CPU that starts another one waits after the INIT. [`Config::new`] has what CPUs need that have an x2APIC,
    /// if the routing is for one, and what the specification of 1997 asks for otherwise.
    pub start_up_delays: StartUpDelays,
    /// From which all randomness comes: same configuration, same programs, same seed, same run.
    pub seed: u64,
    /// What operations cost.
    pub cost: CostModel,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// The period of each CPU's timer tick; `None` for a machine without ticks.
    pub tick: Option<Duration>,
    /// Whether a message to everybody else may be sent by shorthand.
    pub shorthands: bool,
    /// Whether events are recorded.
    pub trace: bool,
    /// Whether no interrupt, NMIs included, is taken between enabling interrupts and the next operation.
    /// SDM, volume 2, STI.
    ///
    /// Hardware shadows one instruction, and an operation is rarely the very next one: with this on, possible
    /// interleavings are missing. A wait is many instructions: it is not shadowed on a stepped machine. `halt` is `sti; hlt` in one operation and needs no shadow.
    pub sti_shadow: bool,
    /// Stepped machines: whether hints are believed that make fewer states differ. A finished handler leaves the history
    /// of the CPU that it interrupted unchanged (right if handlers pass on what they learn through shared words only),
    /// and [`forget_but`](crate::program::forget_but) forgets. A wrong hint hides states: cross-check without.
    pub believe_hints: bool,
}

impl Config {
    /// A fault-free machine of this size and routing, with a tick every 4 ms of virtual time.
    pub fn new(cpus: usize, routing: Routing, seed: u64) -> Self {
        Self {
            cpus,
            routing,
            apic_ids: None,
            apic_features: Features::CURRENT,
            not_started: Vec::new(),
            start_up_delays: match routing.mode() {
                Mode::X2Apic => StartUpDelays::CURRENT,
                Mode::XApic => StartUpDelays::SPECIFIED,
            },
            seed,
            cost: CostModel::default(),
            faults: Vec::new(),
            tick: Some(Duration::from_millis(4)),
            shorthands: true,
            trace: false,
            sti_shadow: false,
            believe_hints: false,
        }
    }

    /// The identifier of a CPU's APIC.
    pub(crate) fn apic_id(&self, cpu: usize) -> ApicId {
        self.apic_ids.as_ref().map_or(ApicId(cpu as u32), |ids| ids[cpu])
    }

    /// Whether the machine can be built.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.cpus == 0 {
            return Err(ConfigError::NoCpus);
        }
        if self.cpus > MAX_CPUS {
            return Err(ConfigError::TooManyCpus(self.cpus));
        }
        if self.apic_features.generation == Generation::P6 && self.routing.mode() == Mode::X2Apic {
            return Err(ConfigError::NoX2Apic(self.routing));
        }
        if let Some(ids) = &self.apic_ids
            && ids.len() != self.cpus
        {
            return Err(ConfigError::WrongNumberOfApicIds { ids: ids.len(), cpus: self.cpus });
        }
        let ids = (0..self.cpus).map(|cpu| self.apic_id(cpu));
        self.routing.check(self.routing.mode(), ids)?;
        self.routing.check_tables(self.routing.mode(), &Tables::new(self), self.cpus as u32)?;
        for (index, &cpu) in self.not_started.iter().enumerate() {
            if cpu.index() >= self.cpus {
                return Err(ConfigError::NoSuchCpu { cpu, cpus: self.cpus });
            }
            if cpu.index() == BOOT_CPU {
                return Err(ConfigError::BootCpuNotStarted);
            }
            if self.not_started[..index].contains(&cpu) {
                return Err(ConfigError::NotStartedTwice(cpu));
            }
        }
        if self.tick.is_some_and(|period| period.as_nanos() < 1000) {
            return Err(ConfigError::TickTooShort);
        }
        faults::check(&self.faults, self.cpus)?;
        Ok(())
    }
}

/// The identifiers of a configuration, as the kernel of its machine will have them.
struct Tables<'a> {
    config: &'a Config,
    cpus: FxHashMap<ApicId, Cpu>,
}

impl<'a> Tables<'a> {
    fn new(config: &'a Config) -> Self {
        let cpus = (0..config.cpus).map(|cpu| (config.apic_id(cpu), Cpu::new(cpu as u32)));
        Self { config, cpus: cpus.collect() }
    }
}

impl Topology for Tables<'_> {
    fn apic_id(&self, cpu: Cpu) -> Option<ApicId> {
        (cpu.index() < self.config.cpus).then(|| self.config.apic_id(cpu.index()))
    }

    fn cpu(&self, id: ApicId) -> Option<Cpu> {
        self.cpus.get(&id).copied()
    }

    fn shorthand_reach(&self) -> Option<&CpuMask> {
        None
    }
}

/// Why a machine cannot be built.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A machine needs at least one CPU.
    NoCpus,
    /// More CPUs than [`MAX_CPUS`].
    TooManyCpus(usize),
    /// Not one APIC identifier per CPU.
    WrongNumberOfApicIds {
        /// How many identifiers there are.
        ids: usize,
        /// How many CPUs there are.
        cpus: usize,
    },
    /// A CPU that is not to be started does not exist.
    NoSuchCpu {
        /// The CPU.
        cpu: Cpu,
        /// How many CPUs there are.
        cpus: usize,
    },
    /// The boot CPU is among those that are not to be started.
    BootCpuNotStarted,
    /// A CPU is named twice among those that are not to be started.
    NotStartedTwice(Cpu),
    /// A routing in x2APIC mode, for local APICs of the P6 family.
    NoX2Apic(Routing),
    /// A tick period below one microsecond: the CPUs would do nothing but tick.
    TickTooShort,
    /// The routing does not fit the machine.
    Routing(RoutingError),
    /// The faults make no sense on this machine.
    Faults(FaultError),
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoCpus => f.write_str("a machine needs at least one CPU"),
            Self::TooManyCpus(cpus) => {
                write!(f, "{cpus} CPUs are too many: the simulator has up to {MAX_CPUS}")
            }
            Self::WrongNumberOfApicIds { ids, cpus } => {
                write!(f, "{ids} APIC identifiers were given for {cpus} CPUs")
            }
            Self::NoSuchCpu { cpu, cpus } => {
                write!(
                    f,
                    "{cpu} is not to be started, but the machine has CPUs 0 to {}",
                    cpus.saturating_sub(1)
                )
            }
            Self::BootCpuNotStarted => f.write_str("CPU 0 is the boot CPU: firmware always starts it"),
            Self::NotStartedTwice(cpu) => write!(f, "{cpu} is named twice as not to be started"),
            Self::NoX2Apic(routing) => {
                write!(
                    f,
                    "the local APICs of the P6 family have no x2APIC mode, which routing {routing} needs"
                )
            }
            Self::TickTooShort => f.write_str("a tick period below one microsecond leaves no time to run"),
            Self::Routing(error) => error.fmt(f),
            Self::Faults(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ConfigError {}

impl From<RoutingError> for ConfigError {
    fn from(error: RoutingError) -> Self {
        Self::Routing(error)
    }
}

impl From<FaultError> for ConfigError {
    fn from(error: FaultError) -> Self {
        Self::Faults(error)
    }
}
