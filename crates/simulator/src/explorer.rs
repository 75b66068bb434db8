//! The first explorer: every schedule of the shipping code on a small machine, depth first.
//!
//! At every state it tries each CPU's next operation, each interrupt that a CPU would take, and each fault that
//! the [`Bounds`] still permit: an interrupt message lost, a wait ended by its deadline. States that were seen
//! before are not entered again: a state is the 128-bit hash of shared memory, APICs, flags and of everything that
//! each CPU has learned ([`Stepper::state_hash`]), with what is left of the bounds. Beside that there is one
//! reduction: an operation after which the CPU has the same choices and more, and that nobody else notices, is
//! executed at once (enabling interrupts, writing an end of interrupt, reading the own APIC).
//!
//! Time passes when nobody can move: then the wait with the earliest deadline ends. If that happens again and
//! again, or there is no such wait, the machine hangs: that is a violation, not a time-out.
//!
//! A state is reached by replaying its schedule from the start. The memory model is sequential consistency.

use core::fmt;
use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;
use smpcall_local_apic::{Register, Routing};
use smpcall_machine::Cpu;

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
    /// The programs; a fresh set for each exploration.
    pub programs: fn() -> Vec<Program<'static>>,
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
    /// It executes it, and the message that it sends is lost for this target.
    StepLosing(Cpu, Cpu),
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
            Self::StepLosing(cpu, target) => write!(f, "{}!{}", cpu.number(), target.number()),
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
    config.handlers_forget = true;
    explore_on(&config, protocol, bounds)
}

/// As [`explore`], on a machine of the caller's.
///
/// # Errors
/// If there cannot be such a machine.
pub fn explore_on(config: &Config, protocol: &Protocol, bounds: Bounds) -> Result<Exploration, ConfigError> {
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
            Choice::StepLosing(..) => self.drops -= 1,
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
                return self.at_end();
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
        let left = u128::from(budget.drops) << 64 | u128::from(budget.expiries) << 32;
        let kept = u128::from((self.protocol.fingerprint)()) << 96;
        self.stepper.state_hash() ^ (left ^ kept | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
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
                    choices.extend(targets.into_iter().map(|target| Choice::StepLosing(cpu, target)));
                }
                choices.push(Choice::Step(cpu));
            }
        }
        if choices.is_empty() {
            let earliest = self
                .cpus()
                .filter_map(|cpu| Some((self.stepper.deadline(cpu)?, cpu)))
                .min_by_key(|&(deadline, cpu)| (deadline, cpu));
            choices.extend(earliest.map(|(_, cpu)| Choice::TimePasses(cpu)));
        } else if budget.expiries > 0 {
            for cpu in self.cpus() {
                if self.stepper.deadline(cpu).is_some() && !self.stepper.is_enabled(cpu) {
                    choices.push(Choice::Expire(cpu));
                }
            }
        }
        choices
    }

    fn perform(&mut self, choice: Choice) {
        match choice {
            Choice::Step(cpu) => self.stepper.step(cpu),
            Choice::StepLosing(cpu, target) => self.stepper.step_losing(cpu, &[target]),
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
            Choice::Step(cpu) => (cpu, ""),
            Choice::StepLosing(cpu, _) => (cpu, ", and the message is lost"),
            Choice::Interrupt(cpu) => return format!("{cpu}: takes an interrupt"),
            Choice::Nmi(cpu) => return format!("{cpu}: takes an NMI"),
            Choice::Expire(cpu) | Choice::TimePasses(cpu) => (cpu, ": the deadline comes"),
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

/// Whether the operation can be executed at once; see the module's description.
fn is_local(operation: Operation) -> bool {
    match operation {
        Operation::EnableInterrupts | Operation::ReadRegister(_) => true,
        Operation::WriteRegister(register, _) => {
            register == Register::END_OF_INTERRUPT || register == Register::ICR_HIGH
        }
        _ => false,
    }
}
