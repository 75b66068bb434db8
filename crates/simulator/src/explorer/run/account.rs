//! What happened in one execution, told by the machine as it happens.
//!
//! On the machine on which every operation is a decision: so a decision is a line, or an interrupt that is taken, or an
//! operation and the return that it leads to.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::VecDeque;

use smpcall_local_apic::Register;
use smpcall_machine::{Access, Awaited as Condition, Cpu};

use crate::explored::{Told, place};
use crate::explorer::choice::{Action, Choice};
use crate::explorer::footprint::Footprint;
use crate::explorer::machine::ExploredMachine;
use crate::explorer::schedule::{Diverged, Outcome, Replayed, Schedule, replay_with};
use crate::explorer::story::{Account, Awaited, CpuEnd, Deed, Ending, InterruptState, Line, Status, Writers};
use crate::explorer::system::Violation;
use crate::operation::{Operation, is_local};
use crate::places::is_private;

/// Replays a schedule and tells what happens. The account of an execution that breaks no law says so in the place of the
/// law. On a machine that has done nothing yet, so that the same schedule gives the same account.
pub(super) fn account(
    machine: &mut ExploredMachine,
    schedule: &Schedule,
    title: &str,
    command: &str,
) -> Result<(Replayed, Account), Diverged> {
    machine.stepper.with(|machine| machine.explored.told = Some(Vec::new()));
    let mut teller = Teller::default();
    let choices = &schedule.choices;
    let replayed = replay_with(machine, schedule, |machine, position| {
        teller.after(machine);
        if position == 0 {
            teller.begin(machine);
        }
        teller.before(machine, choices[position]);
    })?;
    teller.after(machine);
    if choices.is_empty() {
        teller.begin(machine);
    }
    // A decision that breaks a law itself has touched everything, and so has time that passes.
    let breaks = replayed.footprints.last().is_some_and(Footprint::is_everything)
        && choices.last().is_some_and(|last| last.action != Action::TimePasses);
    let (violation, breaks) = match &replayed.outcome {
        Outcome::Violated(violation) => (violation.clone(), breaks),
        outcome => (Violation::new("none", outcome.to_string()), false),
    };
    teller.mark_private(machine);
    let evidence = teller.lines.len().checked_sub(1).filter(|_| breaks).into_iter().collect();
    let cpus = machine.each_cpu().map(|cpu| teller.end_of(machine, cpu)).collect();
    machine.stepper.with(|machine| machine.explored.told = None);
    let account = Account {
        title: title.to_owned(),
        start: teller.start,
        lines: teller.lines,
        ending: Ending { violation, evidence, cpus },
        schedule: Schedule { digest: Some(replayed.digest), ..schedule.clone() },
        command: command.to_owned(),
    };
    Ok((replayed, account))
}

/// What is known before a decision, and not afterwards.
struct Before {
    choice: Choice,
    depth: u32,
    source: String,
    watched: Vec<usize>,
    targets: Vec<u16>,
    /// The name of the word that a flush is about, and what was there.
    flushed: Option<(String, Option<u64>)>,
}

#[derive(Default)]
struct Teller {
    start: Vec<InterruptState>,
    lines: Vec<Line>,
    before: Option<Before>,
    /// How much of the machine's tale has become lines.
    told: usize,
    /// The stores in each CPU's store buffer: where, and what.
    buffers: Vec<VecDeque<(usize, u64)>>,
    /// The lines that access words, and where.
    accesses: Vec<(usize, usize)>,
    /// Words that nobody has named, in the order in which they are met.
    nameless: Vec<usize>,
}

impl Teller {
    fn begin(&mut self, machine: &ExploredMachine) {
        self.start = states(machine);
        self.buffers = vec![VecDeque::new(); self.start.len()];
    }

    fn before(&mut self, machine: &mut ExploredMachine, choice: Choice) {
        let cpu = Cpu::new(choice.cpu.into());
        let pending = machine.stepper.pending(cpu);
        let flush = self.buffers[usize::from(choice.cpu)].front().copied();
        let flushed = flush.filter(|_| choice.action == Action::Flush).map(|(address, _)| {
            // SAFETY: what waits in a store buffer is for a word of the scenario, which outlives its executions.
            let old = unsafe { read(address) };
            (self.name(machine, address), plain_value(machine, old))
        });
        let targets = match pending.operation {
            Operation::Request { cpu, .. } => vec![cpu.number() as u16],
            _ => machine.stepper.targets(cpu).into_iter().map(|cpu| cpu.number() as u16).collect(),
        };
        self.before = Some(Before {
            choice,
            depth: machine.stepper.handler_depth(cpu),
            // The idle loop is nowhere in particular.
            source: if pending.operation == Operation::Ended { String::new() } else { place(pending.source) },
            watched: machine.stepper.watched(cpu),
            targets,
            flushed,
        });
    }

    /// Writes down what the decision did.
    fn after(&mut self, machine: &mut ExploredMachine) {
        let Some(before) = self.before.take() else { return };
        let choice = before.choice;
        let told: Vec<Told> = machine.stepper.with(|machine| {
            let tale = machine.explored.told.as_deref().unwrap_or_default();
            tale[self.told..].to_vec()
        });
        self.told += told.len();
        let after = states(machine);
        let interrupts = matches!(choice.action, Action::Interrupt | Action::Nmi);
        let own = usize::from(choice.cpu);
        let mut depth = before.depth;
        if interrupts {
            let vector = after[own].in_service.iter().copied().max();
            let vector = vector.filter(|_| choice.action == Action::Interrupt);
            self.line(&before, depth, before.source.clone(), Deed::Enter { vector }, false, None, &after);
            depth += 1;
        }
        let returns = depth.saturating_sub(machine.stepper.handler_depth(Cpu::new(choice.cpu.into())));
        let mut silent = told.is_empty() && !interrupts;
        for told in told {
            let (deed, note) = self.deed(machine, &before, &told);
            if let Operation::Access { location, .. } = told.operation {
                self.accesses.push((self.lines.len(), location));
            }
            let local = is_quiet(told.operation);
            let enabled = match told.operation {
                Operation::EnableInterrupts | Operation::Halt => true,
                Operation::DisableInterrupts => false,
                _ => told.interrupts_enabled,
            };
            let mut states = after.clone();
            if returns > 0 {
                // The handler's return gives back what was interrupted.
                states[own].enabled = enabled;
            }
            self.line(&before, told.depth, place(told.source), deed, local, note, &states);
        }
        if let Some(deed) = self.machines_deed(machine, &before) {
            self.line(&before, depth, String::new(), deed, false, None, &after);
            silent = false;
        }
        if silent {
            let deed = Deed::Other("goes on".into());
            self.line(&before, depth, before.source.clone(), deed, false, None, &after);
        }
        for _ in 0..returns {
            depth -= 1;
            self.line(&before, depth, String::new(), Deed::Return, true, None, &after);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the facts of one line")]
    fn line(
        &mut self,
        before: &Before,
        depth: u32,
        source: String,
        deed: Deed,
        local: bool,
        note: Option<String>,
        after: &[InterruptState],
    ) {
        let depth = depth.min(u8::MAX.into()) as u8;
        let after = after.to_vec();
        self.lines.push(Line { cpu: before.choice.cpu, depth, source, deed, after, local, note });
    }

    /// What the hardware does without the program.
    fn machines_deed(&mut self, machine: &ExploredMachine, before: &Before) -> Option<Deed> {
        match before.choice.action {
            Action::Tick => Some(Deed::Tick),
            Action::Wedge => Some(Deed::Wedge),
            Action::Flush => {
                let (_, new) = self.buffers[usize::from(before.choice.cpu)].pop_front()?;
                let (variable, old) = before.flushed.clone()?;
                match plain_value(machine, new) {
                    Some(new) => Some(Deed::Flush { variable, old, new }),
                    None => Some(Deed::Other(format!("flush {variable} := a pointer"))),
                }
            }
            _ => None,
        }
    }

    fn deed(&mut self, machine: &ExploredMachine, before: &Before, told: &Told) -> (Deed, Option<String>) {
        let deed = match told.operation {
            Operation::Access { location, access, order } => {
                return self.access(machine, before, told, location, access, order);
            }
            Operation::Wait { .. } => match before.choice.action {
                Action::Expire | Action::TimePasses => Deed::Expired,
                _ => self.woken(machine, &before.watched),
            },
            Operation::DisableInterrupts => Deed::Interrupts { enabled: false },
            Operation::EnableInterrupts => Deed::Interrupts { enabled: true },
            Operation::WriteRegister(Register::END_OF_INTERRUPT, _) => Deed::EndOfInterrupt,
            Operation::WriteIcr(command) => send(before, command),
            Operation::WriteRegister(Register::ICR_LOW | Register::SELF_IPI, command) => {
                send(before, command.into())
            }
            Operation::Request { vector, .. } => {
                Deed::Send { vector: Some(vector), targets: before.targets.clone(), lost: vec![] }
            }
            Operation::ReadRegister(register) => {
                Deed::Other(format!("read APIC register {:#x}", register.offset()))
            }
            Operation::WriteRegister(register, value) => {
                Deed::Other(format!("write {value:#x} to APIC register {:#x}", register.offset()))
            }
            Operation::Halt | Operation::Halted => Deed::Halt,
            Operation::Fence => Deed::Other("fence".into()),
            Operation::StartUp { page } => Deed::Other(format!("starts up at page {page:#04x}")),
            Operation::Work { .. } | Operation::Ended | Operation::WaitForStartUp => {
                Deed::Other("goes on".into())
            }
        };
        (deed, None)
    }

    fn access(
        &mut self,
        machine: &ExploredMachine,
        before: &Before,
        told: &Told,
        location: usize,
        access: Access,
        order: Ordering,
    ) -> (Deed, Option<String>) {
        let plain = matches!(access, Access::PlainRead(_) | Access::PlainWrite(_));
        let buffer =
            machine.stepper.with(|machine| machine.cpus[usize::from(before.choice.cpu)].store_buffer.len());
        let own = &mut self.buffers[usize::from(before.choice.cpu)];
        let mut new = told.new;
        let mut buffered = false;
        if let Access::Store(value) = access
            && buffer > own.len()
        {
            own.push_back((location, value));
            (new, buffered) = (Some(value), true);
        }
        let variable = self.name(machine, location);
        let is_pointer =
            |value: Option<u64>| value.is_some_and(|value| plain_value(machine, value).is_none());
        let order = (!plain).then_some(order);
        if is_pointer(told.old) || is_pointer(new) {
            let mut word = |value| match plain_value(machine, value) {
                Some(value) => value.to_string(),
                None => format!("&{}", self.name(machine, value as usize)),
            };
            let note = match (told.old, new) {
                (Some(old), Some(new)) => format!("{} -> {}", word(old), word(new)),
                (None, Some(new)) => format!(":= {}", word(new)),
                (Some(old), None) => format!("= {}", word(old)),
                (None, None) => String::new(),
            };
            // The note says it all.
            return (Deed::Access { access, variable, old: None, new: None, order, buffered }, Some(note));
        }
        (Deed::Access { access, variable, old: told.old, new, order, buffered }, None)
    }

    /// A wait that ends because what it looks at is as it should be.
    fn woken(&mut self, machine: &ExploredMachine, watched: &[usize]) -> Deed {
        let mut found = self.found(machine, watched);
        match found.pop() {
            Some((variable, value)) if found.is_empty() => {
                Deed::Woken { variable, condition: format!("= {value}") }
            }
            Some(last) => {
                found.push(last);
                let words: Vec<String> =
                    found.into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
                Deed::Other(format!("wait ends: {}", words.join(", ")))
            }
            None => Deed::Other("wait ends".into()),
        }
    }

    /// The words that a wait looks at, by name, and their values.
    fn found(&mut self, machine: &ExploredMachine, watched: &[usize]) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        for &address in watched {
            // SAFETY: a wait that is suspended, or was until a moment ago, looks at this word: it is alive.
            let value = unsafe { read(address) };
            found.push((self.name(machine, address), value));
        }
        found
    }

    /// In the end it is known which words only one context of one CPU touches: what is done to them nobody else notices.
    fn mark_private(&mut self, machine: &ExploredMachine) {
        machine.stepper.with(|machine| {
            let places = &mut machine.explored.places;
            for &(line, location) in &self.accesses {
                let slot = places.slot(location);
                self.lines[line].local |= is_private(places.all[slot as usize].contexts);
            }
        });
    }

    /// What a CPU is about at the end.
    fn end_of(&mut self, machine: &mut ExploredMachine, cpu: Cpu) -> CpuEnd {
        let pending = machine.stepper.pending(cpu);
        let enabled = machine.stepper.is_enabled(cpu);
        let status = match pending.operation {
            _ if machine.is_wedged(cpu.number() as u16) => Status::Wedged,
            _ if machine.stepper.has_ended(cpu) && machine.stepper.handler_depth(cpu) == 0 => Status::Ended,
            Operation::Wait { .. } if !enabled => Status::Waits,
            Operation::Halted => Status::Halts,
            _ => Status::Runs,
        };
        let waits_for = if status == Status::Waits {
            let conditions = machine.stepper.awaited(cpu);
            let awaited = conditions.into_iter().map(|awaited| {
                // SAFETY: the wait is suspended and its conditions look at this word: it is alive.
                let value = unsafe { read(awaited.location.addr()) };
                let Condition { mask, value: wanted, equal, .. } = awaited;
                let relation = if equal { "=" } else { "!=" };
                let bits = if mask == !0 { String::new() } else { format!("& {mask:#x} ") };
                Awaited {
                    variable: self.name(machine, awaited.location.addr()),
                    condition: format!("{bits}{relation} {}", value_text(wanted)),
                    value,
                    writers: Writers::Unknown,
                }
            });
            awaited.collect()
        } else {
            vec![]
        };
        let source = if status == Status::Ended { String::new() } else { place(pending.source) };
        CpuEnd { status, source, waits_for }
    }

    /// What a word is called: as its scenario or the mailboxes say, or by where it is.
    fn name(&mut self, machine: &ExploredMachine, address: usize) -> String {
        if let Some(name) = machine.aftermath.name_of(address) {
            return name.to_owned();
        }
        let (mailbox, stack) = machine.stepper.with(|machine| {
            let name = machine.images[0]
                .kernel
                .as_ref()
                .and_then(|kernel| kernel.mailboxes().name_of(core::ptr::without_provenance(address)));
            let on = |&(low, high): &(usize, usize)| (low..high).contains(&address);
            let stack = machine.explored.places.stacks.iter().position(on);
            // Each life of a CPU has its own.
            (name.map(|name| name.to_string()), stack.map(|stack| stack % machine.cpus.len()))
        });
        if let Some(name) = mailbox {
            return name;
        }
        let number = self.nameless.iter().position(|&known| known == address).unwrap_or_else(|| {
            self.nameless.push(address);
            self.nameless.len() - 1
        });
        match stack {
            Some(cpu) => format!("local {number} of CPU {cpu}"),
            None => format!("word {number}"),
        }
    }
}

/// Whether no other CPU can notice it, whatever it is done to.
fn is_quiet(operation: Operation) -> bool {
    match operation {
        Operation::Access { access, .. } => matches!(access, Access::PlainRead(_) | Access::PlainWrite(_)),
        operation => is_local(operation),
    }
}

/// What is in a word of memory.
///
/// # Safety
/// There is a live word at this address.
unsafe fn read(address: usize) -> u64 {
    // Relaxed: nothing runs meanwhile.
    // SAFETY: a word is an aligned 8-byte atomic, and the caller says that it is alive.
    unsafe { (*(address as *const AtomicU64)).load(Ordering::Relaxed) }
}

/// A value that is no address.
fn plain_value(machine: &ExploredMachine, value: u64) -> Option<u64> {
    machine.stepper.with(|machine| (machine.explored.places.canonical(value) == value).then_some(value))
}

/// What a write of the ICR sends. Source: SDM, "Interrupt Command Register (ICR)".
fn send(before: &Before, command: u64) -> Deed {
    const DELIVERY_MODE: u64 = 0b111 << 8;
    const NMI: u64 = 0b100 << 8;
    let lost = match before.choice.action {
        Action::Lose(mask) => {
            let targets = before.targets.iter().enumerate();
            targets.filter(|(bit, _)| *bit < 16 && mask & 1 << bit != 0).map(|(_, &target)| target).collect()
        }
        _ => vec![],
    };
    let vector = (command & DELIVERY_MODE != NMI).then_some(command as u8);
    Deed::Send { vector, targets: before.targets.clone(), lost }
}

/// The interrupt state of all CPUs.
fn states(machine: &ExploredMachine) -> Vec<InterruptState> {
    machine.stepper.with(|machine| {
        let state = |cpu: &crate::processor::Processor| InterruptState {
            enabled: cpu.interrupts_enabled,
            requested: cpu.apic.irr().iter().collect(),
            in_service: cpu.apic.isr().iter().collect(),
            nmi: cpu.apic.nmi_pending(),
        };
        machine.cpus.iter().map(state).collect()
    })
}

/// Small numbers as people write them.
fn value_text(value: u64) -> String {
    if value < 10 { value.to_string() } else { format!("{value:#x}") }
}
