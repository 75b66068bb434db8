//! Shared memory: who waits for which word, and what all of it hashes to.

use core::sync::atomic::{AtomicU64, Ordering};
use std::panic::Location;

use rustc_hash::FxHashMap;
use smpcall_machine::{Access, Conditions, Deadline, Machine, Memory, Woken, spin};

use crate::hash::{absorb, pair};
use crate::operation::{Operation, begin};
use crate::state::{Driver, Phase, State, current};
use crate::waiting;

/// The memory of simulated machines: every access is an operation of the CPU that makes it.
///
/// Code that runs on no simulated CPU (a test that prepares or checks) accesses it directly.
#[derive(Clone, Copy, Debug)]
pub enum SimMemory {}

/// Looked up by address only, never iterated: the order of addresses cannot show.
#[derive(Default)]
pub(crate) struct SharedMemory {
    /// The CPUs that wait for a word, in the order in which they began.
    watchers: FxHashMap<usize, Vec<usize>>,
    /// How many watched words fall into each class of addresses: most words have no watcher, and this says so at
    /// once.
    watched_classes: Classes,
    /// Storage of lists that are not in use.
    spare: Vec<Vec<usize>>,
    /// Stepped: what the store that is being performed overwrites.
    stored_over: u64,
    /// Stepped: the difference of all words to what they were at the start.
    pub(crate) hash: u128,
    /// Stepped: what each piece of plain data was last written by.
    plain: FxHashMap<usize, u128>,
}

struct Classes([u16; 256]);

impl Default for Classes {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl Classes {
    fn class(&mut self, location: usize) -> &mut u16 {
        &mut self.0[(location >> 3 ^ location >> 11) & 0xff]
    }
}

impl SharedMemory {
    pub(crate) fn clear(&mut self) {
        self.watchers.clear();
        self.watched_classes = Classes::default();
        self.hash = 0;
        self.plain.clear();
    }
}

impl State {
    /// The running CPU waits for the words that its conditions have read.
    pub(crate) fn watch(&mut self) {
        let running = self.running;
        let memory = &mut self.memory;
        for &location in &self.cpus[running].watched {
            *memory.watched_classes.class(location) += 1;
            memory
                .watchers
                .entry(location)
                .or_insert_with(|| memory.spare.pop().unwrap_or_default())
                .push(running);
        }
    }

    /// It does not any more.
    pub(crate) fn unwatch(&mut self) {
        let running = self.running;
        let memory = &mut self.memory;
        for location in &self.cpus[running].watched {
            *memory.watched_classes.class(*location) -= 1;
            let Some(watchers) = memory.watchers.get_mut(location) else { continue };
            if let Some(at) = watchers.iter().position(|&cpu| cpu == running) {
                watchers.remove(at);
            }
            if watchers.is_empty() {
                memory.spare.extend(memory.watchers.remove(location));
            }
        }
    }

    /// The running CPU has written a word: who waits for it looks at it again.
    #[inline]
    fn wake_watchers(&mut self, location: usize) {
        if *self.memory.watched_classes.class(location) == 0 {
            return;
        }
        let Some(watchers) = self.memory.watchers.get_mut(&location) else { return };
        let watchers = core::mem::take(watchers);
        let time = self.cpu().time + self.cost.transfer;
        let jitter = self.cost.jitter;
        for &cpu in &watchers {
            let time = self.cpus[cpu].jittered(time, jitter);
            self.wake(cpu, time);
        }
        self.memory.watchers.insert(location, watchers);
    }

    /// Stepped: brings the hashes up to date after an access that found `found`.
    fn learn(&mut self, location: usize, access: Access, found: u64) {
        let written = match access {
            Access::Load | Access::PlainRead(_) | Access::PlainWrite(_) => None,
            Access::Store(value) | Access::Swap(value) => Some(value),
            Access::FetchOr(bits) => Some(found | bits),
            Access::FetchAnd(bits) => Some(found & bits),
            Access::FetchAdd(value) => Some(found.wrapping_add(value)),
            Access::CompareExchange(expected, value) => (found == expected).then_some(value),
        };
        if let Some(written) = written {
            self.memory.hash ^= pair(location as u64, found) ^ pair(location as u64, written);
        }
        self.cpu().found = found;
        let learned = match access {
            // A store learns nothing, but is a step.
            Access::Store(_) => 0,
            Access::PlainRead(_) => {
                let writer = self.memory.plain.get(&location).copied().unwrap_or(0);
                let processor = self.cpu();
                processor.history = absorb(processor.history, (writer >> 64) as u64);
                writer as u64
            }
            Access::PlainWrite(_) => {
                // What it writes follows from what the writer has learned so far.
                let running = self.running as u64;
                let written = absorb(self.cpu().history, running);
                let before = self.memory.plain.insert(location, written);
                let fold = |value: u128| pair(location as u64, value as u64 ^ (value >> 64) as u64);
                self.memory.hash ^= before.map_or(0, fold) ^ fold(written);
                0
            }
            _ => found,
        };
        let processor = self.cpu();
        processor.history = absorb(processor.history, learned);
    }
}

/// Whether the access changed the word, given what it found.
const fn changed(access: Access, found: u64) -> bool {
    match access {
        Access::Load | Access::PlainRead(_) | Access::PlainWrite(_) => false,
        Access::Store(_) => true,
        Access::Swap(value) => value != found,
        Access::FetchOr(bits) => found | bits != found,
        Access::FetchAnd(bits) => found & bits != found,
        Access::FetchAdd(value) => value != 0,
        Access::CompareExchange(expected, value) => found == expected && value != found,
    }
}

// SAFETY: `before` answers for nothing: every access is performed, on the one thread that all CPUs of a machine
// share; the order in which the CPUs get to their accesses is an interleaving, so every result is one of a
// sequentially consistent execution. `wait` reports a condition that it has just evaluated as true.
unsafe impl Memory for SimMemory {
    #[inline]
    fn before(location: *const (), access: Access, order: Ordering) -> Option<u64> {
        let state = current()?;
        let address = location.addr();
        let (phase, driver, cost) = state.with(|machine| {
            let cost = match access {
                Access::Load | Access::PlainRead(_) | Access::PlainWrite(_) => machine.cost.load,
                Access::Store(_) => machine.cost.store,
                _ => machine.cost.read_modify_write,
            };
            if machine.phase == Phase::Evaluating {
                machine.cpu().watched.push(address);
            }
            (machine.phase, machine.driver, cost)
        });
        if phase == Phase::Running {
            let pending = Operation::Access { location: address, access, order };
            begin(state, pending, cost, Location::caller());
            if driver == Driver::Stepped && matches!(access, Access::Store(_)) {
                // SAFETY: an atomic store is to a live, aligned 8-byte atomic, says `Memory`.
                let over = unsafe { (*location.cast::<AtomicU64>()).load(Ordering::Relaxed) };
                state.with(|machine| machine.memory.stored_over = over);
            }
        }
        None
    }

    #[inline]
    fn after(location: *const (), access: Access, found: u64) {
        let Some(state) = current() else { return };
        let address = location.addr();
        state.with(|machine| match (machine.phase, machine.driver) {
            (Phase::Running, Driver::Stepped) => {
                let store = matches!(access, Access::Store(_));
                let found = if store { machine.memory.stored_over } else { found };
                machine.learn(address, access, found);
            }
            (Phase::Running, Driver::Timed) if changed(access, found) => machine.wake_watchers(address),
            _ => {}
        });
    }

    fn wait<M: Machine<Memory = Self>>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
        match current() {
            Some(state) if state.with(|machine| machine.phase) == Phase::Running => {
                waiting::wait(state, conditions, deadline, Location::caller())
            }
            // Nobody else runs: what does not hold now never will.
            _ => spin::<M>(conditions, deadline),
        }
    }
}
