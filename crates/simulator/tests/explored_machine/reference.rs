//! Small programs as data, and a reference that enumerates every interleaving of every operation: x86-TSO by store
//! buffers, data races by vector clocks. It knows nothing of the explorer.

use core::sync::atomic::Ordering::{self, AcqRel, Acquire, Release, SeqCst};
use std::collections::BTreeSet;

/// One operation of a litmus test. Places are numbers; the values that loads find are the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Load(usize, Ordering),
    Store(usize, u64, Ordering),
    Swap(usize, u64, Ordering),
    Read(usize),
    Write(usize),
    Raise(usize),
}

pub(crate) use Op::{Load, Raise, Read, Store, Swap, Write};

pub(crate) const WORDS: usize = 5;
pub(crate) const PIECES: usize = 2;

/// What each CPU runs, and what its interrupts run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Test {
    pub(crate) programs: Vec<Vec<Op>>,
    pub(crate) handlers: Vec<Vec<Op>>,
}

impl Test {
    pub(crate) fn new(programs: &[&[Op]]) -> Self {
        Self {
            programs: programs.iter().map(|ops| ops.to_vec()).collect(),
            handlers: vec![Vec::new(); programs.len()],
        }
    }

    pub(crate) fn with_handlers(programs: &[&[Op]], handlers: &[&[Op]]) -> Self {
        Self { handlers: handlers.iter().map(|ops| ops.to_vec()).collect(), ..Self::new(programs) }
    }

    /// The number of the first operation of a program or handler.
    pub(crate) fn first(&self, cpu: usize, handler: bool) -> usize {
        let all = |lists: &[Vec<Op>]| lists.iter().map(Vec::len).sum::<usize>();
        if handler { all(&self.programs) + all(&self.handlers[..cpu]) } else { all(&self.programs[..cpu]) }
    }

    pub(crate) fn ops(&self) -> usize {
        self.first(self.programs.len(), true)
    }
}

/// What was found by each operation, and what is left in each word.
pub(crate) type Outcome = Vec<u64>;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) outcomes: BTreeSet<Outcome>,
    pub(crate) race: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Reference {
    at: Vec<(usize, Option<usize>)>,
    raised: Vec<bool>,
    memory: Vec<u64>,
    buffers: Vec<Vec<(usize, u64, Vec<u32>)>>,
    found: Vec<u64>,
    clocks: Vec<Vec<u32>>,
    released: Vec<Vec<u32>>,
    written: Vec<Vec<u32>>,
    read: Vec<Vec<u32>>,
    raced: bool,
}

fn join(into: &mut [u32], other: &[u32]) {
    into.iter_mut().zip(other).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
}

pub(crate) fn acquires(order: Ordering) -> bool {
    matches!(order, Acquire | AcqRel | SeqCst)
}

pub(crate) fn releases(order: Ordering) -> bool {
    matches!(order, Release | AcqRel | SeqCst)
}

impl Reference {
    fn new(test: &Test) -> Self {
        let cpus = test.programs.len();
        Self {
            at: vec![(0, None); cpus],
            raised: vec![false; cpus],
            memory: vec![0; WORDS],
            buffers: vec![Vec::new(); cpus],
            found: vec![0; test.ops()],
            clocks: (0..cpus).map(|cpu| (0..cpus).map(|of| u32::from(of == cpu)).collect()).collect(),
            released: vec![vec![0; cpus]; WORDS],
            written: vec![vec![0; cpus]; PIECES],
            read: vec![vec![0; cpus]; PIECES],
            raced: false,
        }
    }

    fn knows(&self, cpu: usize, accesses: &[u32]) -> bool {
        accesses.iter().zip(&self.clocks[cpu]).all(|(access, known)| access <= known)
    }

    fn publish(&mut self, word: usize, clock: Option<&[u32]>, continues: bool) {
        if !continues {
            self.released[word].fill(0);
        }
        if let Some(clock) = clock {
            join(&mut self.released[word], clock);
        }
    }

    fn flush(&mut self, cpu: usize) {
        let (word, value, clock) = self.buffers[cpu].remove(0);
        self.memory[word] = value;
        self.publish(word, Some(&clock), false);
    }

    /// The CPU's next operation, and its number.
    fn next(&self, test: &Test, cpu: usize) -> Option<(Op, usize)> {
        let (program, handler) = self.at[cpu];
        let (list, at) = match handler {
            Some(at) => (&test.handlers[cpu], at),
            None => (&test.programs[cpu], program),
        };
        list.get(at).map(|&op| (op, test.first(cpu, handler.is_some()) + at))
    }

    fn perform(&mut self, test: &Test, cpu: usize, tso: bool) -> bool {
        let Some((op, number)) = self.next(test, cpu) else { return false };
        let drains = matches!(op, Swap(..) | Store(_, _, SeqCst));
        if drains && !self.buffers[cpu].is_empty() {
            return false;
        }
        match op {
            Load(word, order) => {
                let own = self.buffers[cpu].iter().rev().find(|store| store.0 == word).map(|store| store.1);
                self.found[number] = own.unwrap_or(self.memory[word]);
                if acquires(order) && own.is_none() {
                    let released = self.released[word].clone();
                    join(&mut self.clocks[cpu], &released);
                }
            }
            Store(word, value, order) => {
                let clock = if releases(order) { self.clocks[cpu].clone() } else { vec![0; self.at.len()] };
                self.buffers[cpu].push((word, value, clock));
                self.clocks[cpu][cpu] += 1;
                if !tso || order == SeqCst {
                    self.flush(cpu);
                }
            }
            Swap(word, value, order) => {
                self.found[number] = core::mem::replace(&mut self.memory[word], value);
                if acquires(order) {
                    let released = self.released[word].clone();
                    join(&mut self.clocks[cpu], &released);
                }
                let clock = releases(order).then(|| self.clocks[cpu].clone());
                self.publish(word, clock.as_deref(), true);
                self.clocks[cpu][cpu] += 1;
            }
            Read(piece) => {
                self.raced |= !self.knows(cpu, &self.written[piece]);
                self.read[piece][cpu] = self.clocks[cpu][cpu];
            }
            Write(piece) => {
                self.raced |= !self.knows(cpu, &self.written[piece]) || !self.knows(cpu, &self.read[piece]);
                self.written[piece][cpu] = self.clocks[cpu][cpu];
            }
            Raise(target) => self.raised[target] = true,
        }
        match &mut self.at[cpu] {
            (_, Some(at)) | (at, None) => *at += 1,
        }
        if self.at[cpu].1 == Some(test.handlers[cpu].len()) {
            self.at[cpu].1 = None;
        }
        true
    }

    pub(crate) fn all(test: &Test, tso: bool) -> Seen {
        let mut seen = Seen { outcomes: BTreeSet::new(), race: false };
        let mut visited = BTreeSet::new();
        let mut left = vec![Self::new(test)];
        while let Some(state) = left.pop() {
            if state.raced {
                seen.race = true;
                continue;
            }
            if !visited.insert(state.clone()) {
                continue;
            }
            let before = left.len();
            for cpu in 0..state.at.len() {
                if state.raised[cpu] && state.at[cpu].1.is_none() {
                    let mut next = state.clone();
                    next.raised[cpu] = false;
                    next.at[cpu].1 = (!test.handlers[cpu].is_empty()).then_some(0);
                    left.push(next);
                }
                if !state.buffers[cpu].is_empty() {
                    let mut next = state.clone();
                    next.flush(cpu);
                    left.push(next);
                }
                let mut next = state.clone();
                if next.perform(test, cpu, tso) {
                    left.push(next);
                }
            }
            if left.len() == before {
                seen.outcomes.insert([state.found, state.memory].concat());
            }
        }
        seen
    }
}
