//! The first explorer: every schedule of the shipping code on a small machine, depth first.
//!
//! At every state it tries each CPU's next operation, each interrupt that a CPU would take, and each fault that
//! the [`Bounds`] still permit: interrupt messages lost, a wait ended by its deadline. States that were seen
//! before are not entered again: a state is the 128-bit hash of shared memory, APICs, flags, of where each CPU stands
//! and of everything that it has learned ([`Stepper::state_hash`]), of what the protocol keeps outside, and of what is
//! left of the bounds. Beside that there is one reduction: an operation after which the CPU has the same choices and
//! more, and that nobody else notices, is executed at once (enabling interrupts, writing an end of interrupt, reading
//! the own APIC's identifier or ICR).
//!
//! Time passes when nobody can move: then the wait with the earliest deadline ends. If that happens again and
//! again, or there is no such wait, the machine hangs: that is a violation, not a time-out. And if nothing was lost
//! and no deadline was forced, nobody in a [prompt](Protocol::prompt) protocol may have to wait for time at all: a ring
//! is missing then, and only the recovery ladder hides it (law L2: the count of interrupts is part of the law).
//!
//! A state is reached by replaying its schedule from the start.
//!
//! What it does not see: memory models weaker than sequential consistency (so not that a merge of posts must
//! publish); messages that are late or come twice, because a message is accepted in the step that sends it; what
//! happens between two operations of one CPU, which is one step; endless loops of states, which end as "seen before";
//! and decisions that code takes by statistics, which are not part of the state.

use core::fmt;
use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;
use smpcall_local_apic::{Register, Routing};
use smpcall_machine::{Cpu, CpuSet};

use crate::hash::absorb;
use crate::kernel::Hooks;
use crate::operation::Operation;
use crate::stepped::{Program, Stepper};
use crate::{Config, ConfigError};

pub mod protocols;

/// Something to be explored: a program for each CPU, and what must hold when nothing is left to happen.
pub struct Protocol {
    /// Its name.
    pub name: &'static str,
    /// What it is about: the laws, in words.
    pub about: &'static str,
    /// How many CPUs.
    pub cpus: usize,
    /// The programs; a fresh set for each exploration. Executions are cut short: a program must own nothing across an
    /// operation that relies on being dropped (scoped threads, guards of things outside of the machine; heap memory leaks).
    pub programs: fn() -> Vec<Program<'static>>,
    /// Whether nobody should have to wait for time to pass as long as nothing is lost and no deadline is forced.
    pub prompt: bool,
    /// Puts back what the programs keep outside of shared memory, before each execution.
    pub reset: fn(),
    /// A fingerprint of what the programs keep outside of shared memory: part of the state.
    pub fingerprint: fn() -> u64,
    /// After all programs have ended and all interrupts were taken: what is wrong, if anything.
    pub check: fn() -> Result<(), String>,
}

/// How far an exploration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// At most this many interrupt messages are lost.
    pub drops: u32,
    /// At most this many waits end by their deadline although somebody could still move.
    pub expiries: u32,
    /// Gives up after this many states.
    pub states: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { drops: 1, expiries: 1, states: 20_000_000 }
    }
}

/// One decision of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The CPU executes its next operation.
    Step(Cpu),
    /// It executes it, and the message that it sends is lost for these targets.
    StepLosing(Cpu, CpuSet<1>),
    /// It takes an interrupt first.
    Interrupt(Cpu),
    /// It takes an NMI first.
    Nmi(Cpu),
    /// Its wait ends by its deadline, although somebody else could move.
    Expire(Cpu),
    /// Nobody can move: time passes until its deadline.
    TimePasses(Cpu),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(cpu) => write!(f, "{}", cpu.number()),
            Self::StepLosing(cpu, targets) => write!(f, "{}!{}", cpu.number(), &**targets),
            Self::Interrupt(cpu) => write!(f, "{}i", cpu.number()),
            Self::Nmi(cpu) => write!(f, "{}n", cpu.number()),
            Self::Expire(cpu) => write!(f, "{}x", cpu.number()),
            Self::TimePasses(cpu) => write!(f, "{}t", cpu.number()),
        }
    }
}

/// A schedule that breaks a law.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What is wrong.
    pub what: String,
    /// The decisions that lead there.
    pub schedule: Vec<Choice>,
    /// The same, with what each CPU did.
    pub operations: Vec<String>,
}

/// What an exploration found.
#[derive(Clone, Debug)]
pub struct Exploration {
    /// Different states.
    pub states: usize,
    /// Executions, most of them cut short at a state that was seen before.
    pub executions: u64,
    /// Executions that came to an end.
    pub complete_executions: u64,
    /// The different fingerprints of the protocol at the ends.
    pub endings: BTreeSet<u64>,
    /// Whether all that the bounds allow was seen: neither cut by their limit of states nor by a violation.
    pub complete: bool,
    /// The first violation.
    pub violation: Option<Violation>,
}

/// Time may pass this often in one execution before the machine is said to hang.
const PATIENCE: u32 = 40;

/// Explores a protocol within bounds, to the first violation.
///
/// # Errors
/// If there cannot be such a machine.
pub fn explore(protocol: &Protocol, bounds: Bounds) -> Result<Exploration, ConfigError> {
    let mut config = Config::new(protocol.cpus, Routing::Flat, 0);
    config.believe_hints = true;
    explore_on(&config, protocol, bounds)
}

/// As [`explore`], on a machine of the caller's. Faults are the explorer's to choose.
///
/// # Errors
/// If there cannot be such a machine.
///
/// # Panics
/// If the configuration has faults of its own: how far their counters are is not part of a state.
pub fn explore_on(config: &Config, protocol: &Protocol, bounds: Bounds) -> Result<Exploration, ConfigError> {
    assert!(config.faults.is_empty(), "an explored machine has no faults of its own");
    let mut stepper = Stepper::with_kernel(config, (protocol.programs)(), Hooks::default())?;
    (protocol.reset)();
    stepper.start();
    let mut search = Search {
        stepper,
        protocol,
        bounds,
        seen: HashSet::default(),
        path: Vec::new(),
        report: Exploration {
            states: 0,
            executions: 0,
            complete_executions: 0,
            endings: BTreeSet::new(),
            complete: false,
            violation: None,
        },
    };
    search.run();
    Ok(search.report)
}

/// A state on the current path, and what is still to be tried there.
struct Node {
    untried: Vec<Choice>,
    taken: Choice,
}

/// What is left of the bounds, and how often only time has passed.
#[derive(Clone, Copy)]
struct Budget {
    drops: u32,
    expiries: u32,
    idle: u32,
}

impl Budget {
    fn spend(&mut self, choice: Choice) {
        match choice {
            Choice::StepLosing(_, targets) => self.drops -= targets.len() as u32,
            Choice::Expire(_) => self.expiries -= 1,
            Choice::TimePasses(_) => self.idle += 1,
            _ => {}
        }
    }
}

struct Search<'a> {
    stepper: Stepper<'static>,
    protocol: &'a Protocol,
    bounds: Bounds,
    seen: HashSet<u128, BuildHasherDefault<FxHasher>>,
    path: Vec<Node>,
    report: Exploration,
}

impl Search<'_> {
    fn run(&mut self) {
        loop {
            self.report.executions += 1;
            if let Err(what) = self.execute() {
                self.report.violation = Some(self.describe(what));
                break;
            }
            while self.path.last().is_some_and(|node| node.untried.is_empty()) {
                self.path.pop();
            }
            let Some(node) = self.path.last_mut() else {
                self.report.complete = true;
                break;
            };
            if self.seen.len() >= self.bounds.states {
                break;
            }
            if let Some(next) = node.untried.pop() {
                node.taken = next;
            }
            self.restart();
        }
        self.report.states = self.seen.len();
    }

    fn restart(&mut self) {
        (self.protocol.reset)();
        // SAFETY: the programs own nothing across their operations that relies on being dropped, and the mailboxes,
        // which could refer to their stacks, are emptied by this.
        unsafe { self.stepper.restart() };
    }

    fn budget(&self) -> Budget {
        Budget { drops: self.bounds.drops, expiries: self.bounds.expiries, idle: 0 }
    }

    /// Replays the path and goes on to a state that was seen before, or to the end.
    fn execute(&mut self) -> Result<(), String> {
        let mut budget = self.budget();
        for index in 0..self.path.len() {
            let choice = self.path[index].taken;
            self.run_local_operations();
            budget.spend(choice);
            self.perform(choice);
        }
        loop {
            self.run_local_operations();
            let mut choices = self.choices(budget);
            if choices.is_empty() {
                self.report.complete_executions += 1;
                self.report.endings.insert((self.protocol.fingerprint)());
                return self.at_end();
            }
            let untouched = budget.drops == self.bounds.drops && budget.expiries == self.bounds.expiries;
            if self.protocol.prompt && untouched && matches!(choices[..], [Choice::TimePasses(_), ..]) {
                let waiters = self.waiters();
                return Err(format!(
                    "nothing was lost, and yet nobody can move until time passes (L2). {waiters}"
                ));
            }
            if budget.idle > PATIENCE {
                return Err(format!("the machine hangs: only time passes. {}", self.waiters()));
            }
            let hash = self.hash(budget);
            if !self.seen.insert(hash) {
                return Ok(());
            }
            let Some(taken) = choices.pop() else { return Ok(()) };
            budget.spend(taken);
            self.path.push(Node { untried: choices, taken });
            self.perform(taken);
        }
    }

    fn hash(&mut self, budget: Budget) -> u128 {
        let left = u64::from(budget.drops) << 32 | u64::from(budget.expiries);
        absorb(absorb(self.stepper.state_hash(), left), (self.protocol.fingerprint)())
    }

    fn cpus(&self) -> impl Iterator<Item = Cpu> + use<> {
        (0..self.protocol.cpus as u32).map(Cpu::new)
    }

    /// Executes what takes no choice away from its CPU and is noticed by nobody else.
    fn run_local_operations(&mut self) {
        for cpu in self.cpus() {
            while is_local(self.stepper.pending(cpu).operation) {
                self.stepper.step(cpu);
            }
        }
    }

    fn choices(&mut self, budget: Budget) -> Vec<Choice> {
        let mut choices = Vec::new();
        for cpu in self.cpus() {
            if self.stepper.nmi_deliverable(cpu) {
                choices.push(Choice::Nmi(cpu));
            }
            if self.stepper.deliverable(cpu).is_some() {
                choices.push(Choice::Interrupt(cpu));
            }
            if self.stepper.is_enabled(cpu) {
                if budget.drops > 0 {
                    let targets = self.stepper.targets(cpu);
                    let losses = subsets(&targets, budget.drops);
                    choices.extend(losses.map(|losing| Choice::StepLosing(cpu, losing)));
                }
                choices.push(Choice::Step(cpu));
            }
        }
        let earliest = self.cpus().filter_map(|cpu| self.stepper.deadline(cpu)).min();
        let stuck = choices.is_empty();
        for cpu in self.cpus() {
            let Some(deadline) = self.stepper.deadline(cpu) else { continue };
            if stuck && Some(deadline) == earliest {
                choices.push(Choice::TimePasses(cpu));
            } else if budget.expiries > 0 && !self.stepper.is_enabled(cpu) {
                choices.push(Choice::Expire(cpu));
            }
        }
        choices
    }

    fn perform(&mut self, choice: Choice) {
        match choice {
            Choice::Step(cpu) => self.stepper.step(cpu),
            Choice::StepLosing(cpu, targets) => {
                let targets: Vec<Cpu> = targets.iter().collect();
                self.stepper.step_losing(cpu, &targets);
            }
            Choice::Interrupt(cpu) => self.stepper.take_interrupt(cpu),
            Choice::Nmi(cpu) => self.stepper.take_nmi(cpu),
            Choice::Expire(cpu) | Choice::TimePasses(cpu) => self.stepper.expire(cpu),
        }
    }

    /// Nothing can happen any more.
    fn at_end(&self) -> Result<(), String> {
        if self.cpus().all(|cpu| self.stepper.has_ended(cpu)) {
            (self.protocol.check)()
        } else {
            Err(format!("the machine hangs. {}", self.waiters()))
        }
    }

    /// Who has not ended, and where it stands.
    fn waiters(&self) -> String {
        let waiting = self.cpus().filter(|&cpu| !self.stepper.has_ended(cpu)).map(|cpu| {
            let pending = self.stepper.pending(cpu);
            let interrupts = self.stepper.inspect(cpu).interrupts_enabled;
            let interrupts = if interrupts { "on" } else { "off" };
            format!("{cpu} waits at {}, interrupts {interrupts}", place(pending.source))
        });
        waiting.collect::<Vec<_>>().join("; ")
    }

    /// Replays the current path and writes down what happens.
    fn describe(&mut self, what: String) -> Violation {
        let schedule: Vec<Choice> = self.path.iter().map(|node| node.taken).collect();
        self.restart();
        let mut operations = Vec::new();
        for &choice in &schedule {
            self.run_local_operations();
            operations.push(self.narrate(choice));
            self.perform(choice);
        }
        Violation { what, schedule, operations }
    }

    fn narrate(&self, choice: Choice) -> String {
        let (cpu, what) = match choice {
            Choice::Step(cpu) => (cpu, String::new()),
            Choice::StepLosing(cpu, targets) => (cpu, format!(", and the message to {} is lost", &*targets)),
            Choice::Interrupt(cpu) => return format!("{cpu}: takes an interrupt"),
            Choice::Nmi(cpu) => return format!("{cpu}: takes an NMI"),
            Choice::Expire(cpu) | Choice::TimePasses(cpu) => (cpu, ": the deadline comes".to_owned()),
        };
        let pending = self.stepper.pending(cpu);
        let operation = match pending.operation {
            Operation::Access { location, access, .. } => {
                let name = self
                    .stepper
                    .mailboxes()
                    .and_then(|mailboxes| mailboxes.name_of(core::ptr::without_provenance(location)));
                let name = name.map_or("a word of the program".to_owned(), |name| name.to_string());
                format!("{access:x?} {name}")
            }
            other => format!("{other:x?}"),
        };
        format!("{cpu}: {operation}{what} ({})", place(pending.source))
    }
}

/// The file's own name and the line.
fn place(source: crate::Source) -> String {
    let file = source.file();
    let name = file.rsplit('/').next().unwrap_or(file);
    format!("{name}:{}", source.line())
}

/// The non-empty subsets of at most `most` of these CPUs.
fn subsets(cpus: &[Cpu], most: u32) -> impl Iterator<Item = CpuSet<1>> {
    assert!(cpus.len() <= 16, "explored machines are small");
    (1_u32..1 << cpus.len()).filter(move |subset| subset.count_ones() <= most).map(|subset| {
        let members = cpus.iter().enumerate().filter(|(index, _)| subset & 1 << index != 0);
        members.map(|(_, &cpu)| cpu).collect()
    })
}

/// Whether the operation can be executed at once; see the module's description.
fn is_local(operation: Operation) -> bool {
    match operation {
        Operation::EnableInterrupts => true,
        // Others change what the request and service registers say, but not these.
        Operation::ReadRegister(register) => {
            register == Register::ICR_LOW || register == Register::ID || register == Register::VERSION
        }
        Operation::WriteRegister(register, _) => {
            register == Register::END_OF_INTERRUPT || register == Register::ICR_HIGH
        }
        _ => false,
    }
}
