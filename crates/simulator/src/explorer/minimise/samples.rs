//! Systems to test with: the offline-queue incident on three CPUs, as a table of steps.
//!
//! A target goes offline, drops its pending interrupt and comes online again. One sender has looked before and pushes
//! into the closed queue; its interrupt is dropped with the others. The second sender finds the queue not empty,
//! does not ring, and waits for ever.

use super::super::choice::{Action, Choice};
use super::super::footprint::{Footprint, Place, Use};
use super::super::system::{System, Violation};

const HEAD: usize = 0;
const IRR: usize = 1;
const ONLINE: usize = 2;
const NEXT: usize = 3;
const LOCKED: usize = 5;
const PLACES: usize = 7;
/// What is left of the interrupts that may be lost.
const BUDGET: usize = PLACES;

/// Where a CPU stands, what it has loaded last, and the call that it found last.
#[derive(Clone, Copy, Default)]
struct At {
    step: u8,
    old: u8,
    found: u8,
}

const ENDED: u8 = 15;

/// CPU 0 calls without waiting if it finds the target online, CPU 1 waits for that and then for its call, CPU 2 is the
/// target.
pub(crate) struct Offline {
    /// Whether the target looks into its queue when it comes online: then nothing is wrong.
    pub(crate) drains: bool,
    /// How many interrupts may be lost.
    pub(crate) losses: u8,
    memory: [u8; PLACES + 1],
    cpus: [At; 3],
    touched: Footprint,
    /// How many executions there were, and decisions in all of them.
    pub(crate) executions: u64,
    pub(crate) decisions: u64,
}

impl Offline {
    pub(crate) fn new(drains: bool, losses: u8) -> Self {
        let (memory, cpus) = ([0; PLACES + 1], [At::default(); 3]);
        let mut system =
            Self { drains, losses, memory, cpus, touched: Footprint::NOTHING, executions: 0, decisions: 0 };
        system.restart();
        system
    }

    fn load(&mut self, place: usize) -> u8 {
        self.touched.add(Place(place as u32), Use::Read);
        self.memory[place]
    }

    fn store(&mut self, place: usize, value: u8) {
        self.touched.add(Place(place as u32), Use::Write);
        self.memory[place] = value;
    }

    /// One step of a sender of call `call`; steps 1 to 3 push, 4 rings.
    fn send(&mut self, call: usize, losing: bool) {
        let At { step, mut old, found } = self.cpus[call];
        let last = if call == 0 { ENDED } else { 5 };
        let next = match step {
            // The second sender waits for it, and finds it set.
            0 if self.load(ONLINE) == 0 => ENDED,
            0 => 1,
            1 => {
                old = self.load(HEAD);
                2
            }
            2 => {
                self.store(NEXT + call, old);
                3
            }
            3 => {
                let head = self.load(HEAD);
                if head == old {
                    self.store(HEAD, call as u8 + 1);
                    if old == 0 { 4 } else { last }
                } else {
                    old = head;
                    2
                }
            }
            4 => {
                if losing {
                    self.store(BUDGET, self.memory[BUDGET] - 1);
                } else {
                    self.store(IRR, 1);
                }
                last
            }
            _ => {
                self.load(LOCKED + 1);
                ENDED
            }
        };
        self.cpus[call] = At { step: next, old, found };
    }

    /// One step of the target.
    fn target(&mut self) {
        let At { step, mut old, mut found } = self.cpus[2];
        let next = match step {
            0 => {
                self.store(ONLINE, 0);
                1
            }
            1 => {
                self.store(IRR, 0);
                2
            }
            2 => {
                self.store(ONLINE, 1);
                if self.drains { 6 } else { 3 }
            }
            3 if self.load(LOCKED + 1) == 0 => ENDED,
            3 => 4,
            4 => {
                self.load(IRR);
                5
            }
            5 => {
                self.store(IRR, 0);
                6
            }
            6 => {
                old = self.load(HEAD);
                self.store(HEAD, 0);
                if old == 0 { 3 } else { 7 }
            }
            7 => {
                found = old;
                old = self.load(NEXT + found as usize - 1);
                8
            }
            _ => {
                self.store(LOCKED + found as usize - 1, 0);
                if old == 0 { 3 } else { 7 }
            }
        };
        self.cpus[2] = At { step: next, old, found };
    }

    fn can_step(&self, cpu: usize) -> bool {
        match (cpu, self.cpus[cpu].step) {
            (_, ENDED) => false,
            (1, 0) => self.memory[ONLINE] != 0,
            (1, 5) => self.memory[LOCKED + 1] == 0,
            (2, 4) => self.memory[IRR] != 0,
            _ => true,
        }
    }
}

impl System for Offline {
    fn cpus(&self) -> u16 {
        3
    }

    fn restart(&mut self) {
        self.executions += 1;
        self.memory = [0, 0, 1, 0, 0, 1, 1, self.losses];
        self.cpus = [At::default(); 3];
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        choices.clear();
        for cpu in 0..3 {
            if self.can_step(cpu) {
                choices.push(Choice::step(cpu as u16));
                if cpu < 2 && self.cpus[cpu].step == 4 && self.memory[BUDGET] > 0 {
                    choices.push(Choice::new(cpu as u16, Action::Lose(1)));
                }
            }
        }
        if choices.is_empty() && self.cpus.iter().any(|at| at.step != ENDED) {
            return Err(Violation::new("hang", "nobody can move"));
        }
        Ok(())
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        self.decisions += 1;
        self.touched = Footprint::NOTHING;
        match choice.cpu {
            2 => self.target(),
            call => self.send(call.into(), matches!(choice.action, Action::Lose(_))),
        }
        Ok(self.touched)
    }

    fn state_hash(&mut self) -> u128 {
        let cpus = self.cpus.iter().flat_map(|at| [at.step, at.old, at.found]);
        // Every value is less than 16.
        cpus.chain(self.memory).fold(0, |hash, value| hash << 4 | u128::from(value))
    }

    fn end(&mut self) -> Result<u64, Violation> {
        Ok(self.memory[LOCKED].into())
    }
}
