//! A schedule with a decision for every operation, from one on a machine that does at once what nobody can notice.
//!
//! What is done at once depends on what an exploration has learned about private words. A schedule that people keep must
//! not: so it is written for the machine on which every operation is a decision.

use std::collections::VecDeque;

use crate::explorer::choice::{Action, Choice};
use crate::explorer::machine::ExploredMachine;
use crate::explorer::system::System;

/// Performs `schedule` on `brief`, the machine that it was written for, and step by step the same on `full`. None: they
/// cannot be brought together.
pub(super) fn unfold(
    brief: &mut ExploredMachine,
    full: &mut ExploredMachine,
    schedule: &[Choice],
) -> Option<Vec<Choice>> {
    brief.stepper.with(|machine| machine.explored.told = Some(Vec::new()));
    brief.restart();
    full.restart();
    let cpus = usize::from(full.cpus());
    let mut unfolding = Unfolding {
        full,
        unfolded: Vec::new(),
        offered: Vec::new(),
        buffers: vec![VecDeque::new(); cpus],
        over: false,
    };
    unfolding.catch_up(brief, 0)?;
    for &choice in schedule {
        let mut offered = Vec::new();
        if brief.choices(&mut offered).is_err() || !offered.contains(&choice) {
            return None;
        }
        let told = told(brief);
        // The violation, if it breaks a law, is seen on the other machine too.
        let _ = brief.perform_only(choice);
        unfolding.make(choice, false)?;
        unfolding.catch_up(brief, told)?;
    }
    unfolding.drain();
    Some(unfolding.unfolded)
}

fn told(machine: &ExploredMachine) -> usize {
    machine.stepper.with(|machine| machine.explored.told.as_ref().map_or(0, Vec::len))
}

struct Unfolding<'a> {
    full: &'a mut ExploredMachine,
    unfolded: Vec<Choice>,
    offered: Vec<Choice>,
    /// For each store in a CPU's store buffer, whether the other machine did it at once.
    buffers: Vec<VecDeque<bool>>,
    /// A law is broken: nothing more happens.
    over: bool,
}

impl Unfolding<'_> {
    /// Performs what the other machine did at once since its tale had this length.
    fn catch_up(&mut self, brief: &ExploredMachine, from: usize) -> Option<()> {
        let at_once: Vec<u16> = brief.stepper.with(|machine| {
            let tale = machine.explored.told.as_deref().unwrap_or_default();
            let at_once = tale[from..].iter().filter(|told| told.local);
            at_once.map(|told| told.cpu.number() as u16).collect()
        });
        at_once.into_iter().try_for_each(|cpu| self.make(Choice::step(cpu), true))
    }

    /// Makes a decision. `at_once`: the other machine made none here.
    fn make(&mut self, choice: Choice, at_once: bool) -> Option<()> {
        if self.over {
            return Some(());
        }
        let cpu = usize::from(choice.cpu);
        if self.full.choices(&mut self.offered).is_err() || !self.offered.contains(&choice) {
            return None;
        }
        let before = self.buffered(cpu);
        self.unfolded.push(choice);
        self.over = self.full.perform_only(choice).is_err();
        if choice.action == Action::Flush {
            self.buffers[cpu].pop_front();
        } else if self.buffered(cpu) > before {
            self.buffers[cpu].push_back(at_once);
        }
        // What is private waits for nobody on the other machine: it is in memory at once.
        if self.buffers[cpu].front() == Some(&true) {
            return self.make(Choice::new(choice.cpu, Action::Flush), true);
        }
        Some(())
    }

    fn buffered(&self, cpu: usize) -> usize {
        self.full.stepper.with(|machine| machine.cpus[cpu].store_buffer.len())
    }

    /// At the end of an execution nothing is left in store buffers.
    fn drain(&mut self) {
        while !self.over && self.full.choices(&mut self.offered).is_ok() {
            let flush = self.offered.iter().copied().find(|choice| choice.action == Action::Flush);
            let all = self.offered.iter().all(|choice| choice.action == Action::Flush);
            match flush.filter(|_| all) {
                Some(flush) => {
                    self.unfolded.push(flush);
                    self.over = self.full.perform_only(flush).is_err();
                }
                None => break,
            }
        }
    }
}
