//! Leaving decisions out that the violation does not need: delta debugging, with knowledge of what decisions are.

use super::super::choice::{Action, Choice};
use super::super::system::System;
use super::{Minimiser, Tail, faults};

/// The handler of an interrupt that is dropped is looked for among this many decisions after it.
const LONGEST_HANDLER: usize = 16;

impl<S: System> Minimiser<'_, S> {
    /// Drops decisions until nothing more can be dropped, or the budget is used up.
    pub(super) fn drop_decisions(&mut self) {
        loop {
            let before = self.best.cost;
            self.drop_faults();
            self.drop_cpus();
            self.drop_chunks();
            self.drop_interrupts();
            self.cut();
            if self.best.cost == before || self.exhausted() {
                return;
            }
        }
    }

    /// The best execution with one position replaced or left out.
    fn with(&mut self, position: usize, replacement: Option<Choice>) -> bool {
        let choices = self.best.choices.clone();
        let changed = choices
            .iter()
            .enumerate()
            .filter_map(|(index, &choice)| if index == position { replacement } else { Some(choice) });
        self.attempt(changed, Tail::Last)
    }

    /// Keeps those of the decisions of the best execution for which `keep` holds, given their position.
    fn keeping(&mut self, keep: impl Fn(usize, Choice) -> bool, tail: Tail) -> bool {
        let choices = self.best.choices.clone();
        let kept = choices.iter().enumerate().filter(|&(index, &choice)| keep(index, choice));
        self.attempt(kept.map(|(_, &choice)| choice), tail)
    }

    fn drop_faults(&mut self) {
        let mut position = 0;
        while position < self.best.choices.len() && self.best.cost.faults > 0 {
            let choice = self.best.choices[position];
            let better = match choice.action {
                _ if faults(choice) == 0 => false,
                Action::Lose(targets) => {
                    let fewer = (0..16).map(|bit| targets & !(1 << bit)).filter(|&rest| rest != targets);
                    let fewer = fewer.map(|rest| if rest == 0 { Action::Step } else { Action::Lose(rest) });
                    let mut actions = core::iter::once(Action::Step).chain(fewer);
                    actions.any(|action| self.with(position, Some(Choice::new(choice.cpu, action))))
                        || self.with(position, None)
                }
                _ => self.with(position, None),
            };
            // Whatever stands there now is looked at again.
            position += usize::from(!better);
        }
    }

    /// Leaves a CPU out from some point on; from the start first.
    fn drop_cpus(&mut self) {
        let mut cpus: Vec<u16> = self.best.choices.iter().map(|choice| choice.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        for cpu in cpus {
            let mut from = 0;
            while from < self.best.choices.len() {
                let there = self.best.choices[from].cpu == cpu;
                if there && self.keeping(|index, choice| index < from || choice.cpu != cpu, Tail::Last) {
                    break;
                }
                from += 1;
            }
        }
    }

    /// Leaves runs of decisions out, long ones first.
    fn drop_chunks(&mut self) {
        let mut size = self.best.choices.len() / 2;
        while size > 0 {
            let mut from = 0;
            while from < self.best.choices.len() {
                let outside = |index: usize, _| !(from..from + size).contains(&index);
                let better =
                    self.keeping(outside, Tail::Last) || size == 1 && self.keeping(outside, Tail::Rather(0));
                if !better {
                    from += size;
                }
            }
            size /= 2;
        }
    }

    /// Leaves an interrupt out with its handler, wherever that ends.
    fn drop_interrupts(&mut self) {
        let mut position = 0;
        while position < self.best.choices.len() {
            let Choice { cpu, action } = self.best.choices[position];
            let interrupt = matches!(action, Action::Interrupt | Action::Nmi);
            let better = interrupt
                && (0..=LONGEST_HANDLER).any(|length| {
                    let after = self.best.choices.iter().enumerate().skip(position + 1);
                    let handler = after.filter(|(_, choice)| choice.cpu == cpu).take(length);
                    let dropped: Vec<usize> = handler.map(|(index, _)| index).collect();
                    self.keeping(|index, _| index != position && !dropped.contains(&index), Tail::Last)
                });
            position += usize::from(!better);
        }
    }

    /// Keeps a prefix only, and lets one CPU after the other run from there.
    fn cut(&mut self) {
        let most = self.best.choices.iter().map(|choice| choice.cpu).max().unwrap_or(0);
        let mut length = 0;
        while length < self.best.choices.len() {
            let better = (0..=most).any(|cpu| self.keeping(|index, _| index < length, Tail::Rather(cpu)));
            length += usize::from(!better);
        }
    }
}
