//! Toys: small random programs as a [`System`], to check the engines against each other.
//!
//! No coroutines and no real code, only what makes reduction hard: words that are read, written, exchanged and waited
//! for (any of two conditions, with or without a deadline); interrupts and NMIs that are raised, disabled, lost and
//! taken between any two operations; store buffers; budgets for lost messages and expired waits; time that passes; operations
//! that touch everything; and laws that break on the way.

use core::mem::replace;

use super::choice::{Action, Choice};
use super::footprint::{Footprint, Place, Use};
use super::system::{System, Violation};
use crate::hash::absorb;

mod random;

pub use random::Shape;

/// A shared word, by its number.
pub type Word = u8;

/// What a wait waits for: that this word has this value.
pub type Condition = (Word, u8);

/// One operation of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads a word.
    Load(Word),
    /// Writes a value to a word.
    Store(Word, u8),
    /// Adds one to a word, and learns what it was.
    Increment(Word),
    /// Replaces the first value by the second one. If the word has another value, the next operation is skipped.
    Exchange(Word, u8, u8),
    /// Waits until one of the conditions holds.
    Await {
        /// What it waits for: one or both.
        any: [Option<Condition>; 2],
        /// Whether it may end without.
        deadline: bool,
    },
    /// Requests an interrupt of this CPU.
    Interrupt(u16),
    /// Requests an NMI of this CPU.
    Nmi(u16),
    /// Disables interrupts.
    Disable,
    /// Enables them.
    Enable,
    /// Changes the first word, and says that it touched everything.
    Everything,
    /// Breaks a law if this word has this value.
    Forbid(Word, u8),
}

/// What one CPU does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// What it does by itself. It starts with interrupts enabled.
    pub base: Vec<Operation>,
    /// What it does in an interrupt.
    pub handler: Vec<Operation>,
    /// What it does in an NMI.
    pub nmi: Vec<Operation>,
}

/// A machine of such CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its CPUs.
    pub programs: Vec<Program>,
    /// How many words they share, all of them zero at first.
    pub words: u8,
    /// How many messages may be lost.
    pub drops: u8,
    /// How many waits may end by their deadline although somebody could move.
    pub expiries: u8,
    /// Whether stores go through a store buffer.
    pub store_buffers: bool,
}

/// Where a CPU executes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Base,
    Handler,
    Nmi,
}

#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a CPU, independent of each other")]
struct CpuState {
    /// The next operation in each context.
    next: [u8; 3],
    in_handler: bool,
    in_nmi: bool,
    interrupts_enabled: bool,
    interrupt_requested: bool,
    nmi_requested: bool,
    /// Whether these were requested before they were written for the last time.
    requested_before: [bool; 2],
    buffer: Vec<(Word, u8)>,
    /// All that it has learned, as a hash.
    learned: u128,
}

impl CpuState {
    fn new() -> Self {
        Self {
            next: [0; 3],
            in_handler: false,
            in_nmi: false,
            interrupts_enabled: true,
            interrupt_requested: false,
            nmi_requested: false,
            requested_before: [false; 2],
            buffer: Vec::new(),
            learned: 0,
        }
    }

    fn restart(&mut self) {
        let mut buffer = core::mem::take(&mut self.buffer);
        buffer.clear();
        *self = Self { buffer, ..Self::new() };
    }

    fn context(&self) -> Context {
        if self.in_nmi {
            Context::Nmi
        } else if self.in_handler {
            Context::Handler
        } else {
            Context::Base
        }
    }

    fn would_take_interrupt(&self) -> bool {
        self.interrupts_enabled && !self.in_handler && !self.in_nmi
    }

    fn learn(&mut self, value: impl Into<u64>) {
        self.learned = absorb(self.learned, value.into());
    }
}

/// A toy in some state.
pub struct Toy {
    machine: Machine,
    cpus: Vec<CpuState>,
    words: Vec<u8>,
    /// What the words were before they were written for the last time.
    words_before: Vec<u8>,
    drops: u8,
    expiries: u8,
}

impl Toy {
    /// This machine, at its start.
    pub fn new(machine: Machine) -> Self {
        let cpus = machine.programs.iter().map(|_| CpuState::new()).collect();
        let words = vec![0; machine.words.max(1).into()];
        let words_before = words.clone();
        let mut toy = Self { machine, cpus, words, words_before, drops: 0, expiries: 0 };
        toy.restart();
        toy
    }

    fn word_place(word: Word) -> Place {
        Place(word.into())
    }

    fn interrupt_place(&self, cpu: u16) -> Place {
        Place((self.words.len() + cpu as usize) as u32)
    }

    fn nmi_place(&self, cpu: u16) -> Place {
        Place((self.words.len() + self.cpus.len() + cpu as usize) as u32)
    }

    fn drops_place(&self) -> Place {
        Place((self.words.len() + 2 * self.cpus.len()) as u32)
    }

    fn expiries_place(&self) -> Place {
        Place((self.words.len() + 2 * self.cpus.len() + 1) as u32)
    }

    fn operations(&self, cpu: usize, context: Context) -> &[Operation] {
        let program = &self.machine.programs[cpu];
        match context {
            Context::Base => &program.base,
            Context::Handler => &program.handler,
            Context::Nmi => &program.nmi,
        }
    }

    fn next_operation(&self, cpu: usize) -> Option<Operation> {
        let state = &self.cpus[cpu];
        let context = state.context();
        self.operations(cpu, context).get(state.next[context as usize] as usize).copied()
    }

    /// What the CPU sees in a word, and whether it sees its own store there that nobody else sees yet.
    fn seen(&self, cpu: usize, word: Word) -> (u8, bool) {
        let buffered = self.cpus[cpu].buffer.iter().rev().find(|store| store.0 == word);
        buffered.map_or((self.words[word as usize], false), |store| (store.1, true))
    }

    fn holds(&self, cpu: usize, any: [Option<Condition>; 2]) -> bool {
        any.into_iter().flatten().any(|(word, value)| self.seen(cpu, word).0 == value)
    }

    fn read(&self, cpu: usize, word: Word, footprint: &mut Footprint) -> u8 {
        let (value, own) = self.seen(cpu, word);
        if !own {
            footprint.add(Self::word_place(word), Use::Read);
        }
        value
    }

    fn write(&mut self, word: Word, value: u8, footprint: &mut Footprint) {
        footprint.add(Self::word_place(word), Use::Write);
        self.words_before[word as usize] = replace(&mut self.words[word as usize], value);
    }

    fn can_step(&self, cpu: usize) -> bool {
        match self.next_operation(cpu) {
            None => false,
            Some(Operation::Await { any, .. }) => self.holds(cpu, any),
            Some(Operation::Increment(_) | Operation::Exchange(..) | Operation::Everything) => {
                self.cpus[cpu].buffer.is_empty()
            }
            Some(_) => true,
        }
    }

    fn sends(&self, cpu: usize) -> bool {
        matches!(self.next_operation(cpu), Some(Operation::Interrupt(_) | Operation::Nmi(_)))
    }

    /// Whether it stands at a wait that has a deadline and whose conditions do not hold.
    fn can_expire(&self, cpu: usize) -> bool {
        matches!(self.next_operation(cpu), Some(Operation::Await { any, deadline: true }) if !self.holds(cpu, any))
    }

    /// Goes on to the operation after the next `count` ones, and out of what ends with them.
    fn advance(&mut self, cpu: usize, count: u8) {
        let context = self.cpus[cpu].context();
        let length = self.operations(cpu, context).len();
        let state = &mut self.cpus[cpu];
        let next = &mut state.next[context as usize];
        *next = next.saturating_add(count);
        if *next as usize >= length {
            match context {
                Context::Base => {}
                Context::Handler => state.in_handler = false,
                Context::Nmi => state.in_nmi = false,
            }
        }
    }

    fn enter(&mut self, cpu: usize, context: Context) {
        self.cpus[cpu].next[context as usize] = 0;
        if context == Context::Nmi {
            self.cpus[cpu].in_nmi = true;
        } else {
            self.cpus[cpu].in_handler = true;
        }
        self.cpus[cpu].learn(context as u8);
        self.advance(cpu, 0);
    }

    fn execute(&mut self, cpu: usize, footprint: &mut Footprint) -> Result<(), Violation> {
        let Some(operation) = self.next_operation(cpu) else { return Ok(()) };
        let mut count = 1;
        match operation {
            Operation::Load(word) => {
                let value = self.read(cpu, word, footprint);
                self.cpus[cpu].learn(value);
            }
            Operation::Store(word, value) if self.machine.store_buffers => {
                self.cpus[cpu].buffer.push((word, value));
            }
            Operation::Store(word, value) => {
                self.write(word, value, footprint);
            }
            Operation::Increment(word) => {
                let value = self.words[word as usize];
                self.cpus[cpu].learn(value);
                self.write(word, value.wrapping_add(1), footprint);
            }
            Operation::Exchange(word, old, new) => {
                let value = self.words[word as usize];
                self.cpus[cpu].learn(value);
                if value == old {
                    self.write(word, new, footprint);
                } else {
                    count = 2;
                    footprint.add(Self::word_place(word), Use::Read);
                }
            }
            Operation::Await { any, .. } => {
                let mut which = 0_u8;
                for (index, (word, expected)) in any.into_iter().flatten().enumerate() {
                    which |= u8::from(self.read(cpu, word, footprint) == expected) << index;
                }
                self.cpus[cpu].learn(which);
            }
            Operation::Interrupt(target) => {
                footprint.add(self.interrupt_place(target), Use::Raise);
                let state = &mut self.cpus[target as usize];
                state.requested_before[0] = replace(&mut state.interrupt_requested, true);
            }
            Operation::Nmi(target) => {
                footprint.add(self.nmi_place(target), Use::Raise);
                let state = &mut self.cpus[target as usize];
                state.requested_before[1] = replace(&mut state.nmi_requested, true);
            }
            Operation::Disable => self.cpus[cpu].interrupts_enabled = false,
            Operation::Enable => self.cpus[cpu].interrupts_enabled = true,
            Operation::Everything => {
                *footprint = Footprint::EVERYTHING;
                self.words_before[0] = self.words[0];
                self.words[0] = self.words[0].wrapping_add(1);
            }
            Operation::Forbid(word, value) => {
                if self.read(cpu, word, footprint) == value {
                    return Err(Violation::new("forbidden", format!("CPU {cpu} saw {value} in word {word}")));
                }
            }
        }
        self.advance(cpu, count);
        Ok(())
    }

    /// Adds the words that the next operation waits for, as far as others can change what the CPU sees there.
    fn add_awaited(&self, cpu: usize, footprint: &mut Footprint) {
        if let Some(Operation::Await { any, .. }) = self.next_operation(cpu) {
            for (word, _) in any.into_iter().flatten() {
                self.read(cpu, word, footprint);
            }
        }
    }
}

impl System for Toy {
    fn restart(&mut self) {
        self.cpus.iter_mut().for_each(CpuState::restart);
        self.words.fill(0);
        self.words_before.fill(0);
        self.drops = self.machine.drops;
        self.expiries = self.machine.expiries;
    }

    fn cpus(&self) -> u16 {
        self.cpus.len() as u16
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        choices.clear();
        for (index, state) in self.cpus.iter().enumerate() {
            let cpu = index as u16;
            if self.can_step(index) {
                choices.push(Choice::step(cpu));
                if self.drops > 0 && self.sends(index) {
                    choices.push(Choice::new(cpu, Action::Lose(1)));
                }
            }
            if state.interrupt_requested && state.would_take_interrupt() {
                choices.push(Choice::new(cpu, Action::Interrupt));
            }
            if state.nmi_requested && !state.in_nmi {
                choices.push(Choice::new(cpu, Action::Nmi));
            }
            if !state.buffer.is_empty() {
                choices.push(Choice::new(cpu, Action::Flush));
            }
        }
        let stuck = choices.is_empty();
        for cpu in (0..self.cpus.len()).filter(|&cpu| self.can_expire(cpu)) {
            // Both, if nobody can move: that somebody can must not take the other one away.
            if stuck {
                choices.push(Choice::new(cpu as u16, Action::TimePasses));
            }
            if self.expiries > 0 {
                choices.push(Choice::new(cpu as u16, Action::Expire));
            }
        }
        Ok(())
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        let cpu = choice.cpu as usize;
        let mut footprint = Footprint::NOTHING;
        match choice.action {
            Action::Step => self.execute(cpu, &mut footprint)?,
            Action::Lose(_) => {
                footprint.add(self.drops_place(), Use::Write);
                self.drops -= 1;
                self.cpus[cpu].learn(u8::MAX);
                self.advance(cpu, 1);
            }
            Action::Interrupt => {
                footprint.add(self.interrupt_place(choice.cpu), Use::Write);
                self.cpus[cpu].requested_before[0] = replace(&mut self.cpus[cpu].interrupt_requested, false);
                self.enter(cpu, Context::Handler);
            }
            Action::Nmi => {
                footprint.add(self.nmi_place(choice.cpu), Use::Write);
                self.cpus[cpu].requested_before[1] = replace(&mut self.cpus[cpu].nmi_requested, false);
                self.enter(cpu, Context::Nmi);
            }
            Action::Expire => {
                self.add_awaited(cpu, &mut footprint);
                footprint.add(self.expiries_place(), Use::Write);
                self.expiries -= 1;
                self.cpus[cpu].learn(u8::MAX);
                self.advance(cpu, 1);
            }
            Action::TimePasses => {
                footprint = Footprint::EVERYTHING;
                self.cpus[cpu].learn(u8::MAX);
                self.advance(cpu, 1);
            }
            Action::Flush => {
                let (word, value) = self.cpus[cpu].buffer.remove(0);
                self.write(word, value, &mut footprint);
            }
            Action::Tick | Action::Wedge => unreachable!("never offered"),
        }
        Ok(footprint)
    }

    fn withheld(&mut self, cpu: u16) -> Footprint {
        let index = cpu as usize;
        let state = &self.cpus[index];
        let mut footprint = Footprint::NOTHING;
        if state.would_take_interrupt() && !state.interrupt_requested {
            footprint.add(self.interrupt_place(cpu), Use::Write);
        }
        if !state.in_nmi && !state.nmi_requested {
            footprint.add(self.nmi_place(cpu), Use::Write);
        }
        if self.sends(index) && self.drops == 0 && self.machine.drops > 0 {
            footprint.add(self.drops_place(), Use::Write);
        }
        if let Some(Operation::Await { any, deadline }) = self.next_operation(index) {
            if deadline || !self.holds(index, any) {
                self.add_awaited(index, &mut footprint);
            }
            if deadline && self.expiries == 0 && self.machine.expiries > 0 {
                footprint.add(self.expiries_place(), Use::Write);
            }
        }
        footprint
    }

    fn owed_to(&mut self, choice: Choice) -> Option<Place> {
        let cpu = choice.cpu as usize;
        let state = &self.cpus[cpu];
        match choice.action {
            Action::Interrupt => (!state.requested_before[0]).then(|| self.interrupt_place(choice.cpu)),
            Action::Nmi => (!state.requested_before[1]).then(|| self.nmi_place(choice.cpu)),
            Action::Step | Action::Expire => {
                let Some(Operation::Await { any, .. }) = self.next_operation(cpu) else { return None };
                let held = self.holds(cpu, any);
                let mut words = any.into_iter().flatten().map(|(word, _)| word);
                let word = words.find(|&word| {
                    let swap = |toy: &mut Self| {
                        core::mem::swap(&mut toy.words[word as usize], &mut toy.words_before[word as usize]);
                    };
                    swap(self);
                    let would_hold = self.holds(cpu, any);
                    swap(self);
                    would_hold != held
                })?;
                Some(Self::word_place(word))
            }
            _ => None,
        }
    }

    fn state_hash(&mut self) -> u128 {
        let mut hash = absorb(u128::from(self.drops), self.expiries.into());
        for &word in &self.words {
            hash = absorb(hash, word.into());
        }
        for state in &self.cpus {
            let flags = [
                state.in_handler,
                state.in_nmi,
                state.interrupts_enabled,
                state.interrupt_requested,
                state.nmi_requested,
            ];
            for flag in flags {
                hash = absorb(hash, flag.into());
            }
            for next in state.next {
                hash = absorb(hash, next.into());
            }
            for &(word, value) in &state.buffer {
                hash = absorb(hash, u64::from(word) << 8 | u64::from(value));
            }
            hash = absorb(hash, state.buffer.len() as u64);
            hash = absorb(absorb(hash, state.learned as u64), (state.learned >> 64) as u64);
        }
        hash
    }

    fn end(&mut self) -> Result<u64, Violation> {
        let waiting = (0..self.cpus.len()).filter(|&cpu| self.next_operation(cpu).is_some());
        let waiting: Vec<String> =
            waiting.map(|cpu| format!("CPU {cpu} at {}", self.cpus[cpu].next[0])).collect();
        if waiting.is_empty() {
            Ok(self.state_hash() as u64)
        } else {
            Err(Violation::new("hang", waiting.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy(programs: &[&[Operation]]) -> Toy {
        let programs = programs.iter().map(|base| Program { base: base.to_vec(), ..Program::default() });
        Toy::new(Machine {
            programs: programs.collect(),
            words: 2,
            drops: 0,
            expiries: 0,
            store_buffers: false,
        })
    }

    fn offered(toy: &mut Toy) -> Vec<String> {
        let mut choices = Vec::new();
        toy.choices(&mut choices).unwrap();
        choices.iter().map(ToString::to_string).collect()
    }

    fn perform(toy: &mut Toy, schedule: &str) {
        for choice in schedule.split(' ') {
            assert!(offered(toy).iter().any(|offer| offer == choice), "{choice} of {:?}", offered(toy));
            toy.perform(choice.parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_wait_offers_a_step_only_while_one_of_its_conditions_holds() {
        let wait = Operation::Await { any: [Some((0, 1)), Some((1, 1))], deadline: false };
        let mut toy = toy(&[&[wait], &[Operation::Store(1, 1), Operation::Store(1, 2)]]);
        assert_eq!(offered(&mut toy), ["1"]);
        perform(&mut toy, "1");
        assert_eq!(offered(&mut toy), ["0", "1"]);
        perform(&mut toy, "1");
        assert!(offered(&mut toy).is_empty());
        assert_eq!(toy.end().unwrap_err().law, "hang");
    }

    #[test]
    fn an_interrupt_is_taken_between_operations_while_enabled_and_the_handler_runs_to_its_end() {
        let base = [Operation::Disable, Operation::Enable, Operation::Load(0)];
        let mut toy = toy(&[&base, &[Operation::Interrupt(0)]]);
        toy.machine.programs[0].handler = vec![Operation::Store(0, 7)];
        perform(&mut toy, "0 1");
        assert_eq!(offered(&mut toy), ["0"], "interrupts are disabled");
        perform(&mut toy, "0");
        assert_eq!(offered(&mut toy), ["0", "0i"]);
        perform(&mut toy, "0i 0 0");
        assert!(toy.end().is_ok());
        assert_eq!(toy.words[0], 7);
    }

    #[test]
    fn a_buffered_store_is_seen_by_its_own_cpu_first() {
        let mut toy = toy(&[&[Operation::Store(0, 1), Operation::Load(0)], &[Operation::Load(0)]]);
        toy.machine.store_buffers = true;
        perform(&mut toy, "0");
        assert_eq!((toy.seen(0, 0).0, toy.seen(1, 0).0), (1, 0));
        perform(&mut toy, "0f");
        assert_eq!(toy.seen(1, 0).0, 1);
    }

    #[test]
    fn budgets_are_used_up_and_given_back_by_a_restart() {
        let wait = Operation::Await { any: [Some((0, 1)), None], deadline: true };
        let mut toy = toy(&[&[wait, wait], &[Operation::Interrupt(0), Operation::Interrupt(0)]]);
        toy.machine.drops = 1;
        toy.machine.expiries = 1;
        for _ in 0..2 {
            toy.restart();
            assert_eq!(offered(&mut toy), ["1", "1!1", "0x"]);
            perform(&mut toy, "0x 1!1");
            assert_eq!(offered(&mut toy), ["1"]);
            perform(&mut toy, "1 0i 0t");
            assert!(toy.end().is_ok());
        }
    }
}
