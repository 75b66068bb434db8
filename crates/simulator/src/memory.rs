//! Shared memory: who waits for which word, and what all of it hashes to.

use core::sync::atomic::{AtomicU64, Ordering};
use std::panic::Location;

use rustc_hash::FxHashMap;
use smpcall_machine::{Access, Conditions, Deadline, Machine, Memory, Woken, spin};

use crate::hash::{absorb, pair};
use crate::operation::{self, Operation};
use crate::state::{Driver, Phase, State, current};

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

// SAFETY: `access` runs `perform` exactly once, on the one thread that all CPUs of a machine share, and returns
// what it returned; the order in which the CPUs get to their accesses is an interleaving, so every result is one
// of a sequentially consistent execution. `wait` reports a condition that it has just evaluated as true.
unsafe impl Memory for SimMemory {
    #[inline]
    fn access(location: *const (), access: Access, order: Ordering, perform: impl FnOnce() -> u64) -> u64 {
        let state = current();
        if state.is_null() {
            return perform();
        }
        let address = location.addr();
        // SAFETY: one thread, and no reference into the state is alive while a program runs.
        match unsafe { (*state).phase } {
            Phase::Direct => perform(),
            Phase::Evaluating => {
                // SAFETY: as above; the reference ends here.
                unsafe { (*state).cpu().watched.push(address) };
                perform()
            }
            Phase::Running => {
                // SAFETY: as above; the reference ends here.
                let (cost, stepped) = unsafe {
                    let costs = &(*state).cost;
                    let cost = match access {
                        Access::Load | Access::PlainRead(_) | Access::PlainWrite(_) => costs.load,
                        Access::Store(_) => costs.store,
                        _ => costs.read_modify_write,
                    };
                    (cost, (*state).driver == Driver::Stepped)
                };
                let pending = Operation::Access { location: address, access, order };
                operation::begin(state, pending, cost, Location::caller());
                if stepped {
                    let before = match access {
                        // SAFETY: an atomic store is to a live, aligned 8-byte atomic, says `Memory`.
                        Access::Store(_) => unsafe {
                            (*location.cast::<AtomicU64>()).load(Ordering::Relaxed)
                        },
                        _ => 0,
                    };
                    let found = perform();
                    let found_or_before = if matches!(access, Access::Store(_)) { before } else { found };
                    // SAFETY: as above; the reference ends here.
                    unsafe { (*state).learn(address, access, found_or_before) };
                    found
                } else {
                    let found = perform();
                    if changed(access, found) {
                        // SAFETY: as above; the reference ends here.
                        unsafe { (*state).wake_watchers(address) };
                    }
                    found
                }
            }
        }
    }

    fn wait<M: Machine<Memory = Self>>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
        let state = current();
        // SAFETY: as in `access`.
        if state.is_null() || unsafe { (*state).phase } != Phase::Running {
            // Nobody else runs: what does not hold now never will.
            return spin::<M>(conditions, deadline);
        }
        operation::wait(state, conditions, deadline, Location::caller())
    }
}
