//! Shared memory: who waits for which word, and what all of it hashes to.

use core::sync::atomic::Ordering;
use std::panic::Location;

use corosensei::Yielder;
use rustc_hash::FxHashMap;
use smpcall_machine::{Access, Conditions, Deadline, Machine, Memory, Woken, spin, spin_at_most};

use crate::explored::{Explored, drains};
use crate::mutant::{self, Fault};
use crate::operation::{Operation, begin, offer, pending_then};
use crate::processor::{Processor, Source};
use crate::state::{Driver, Phase, Shared, State, current};
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
        Access::CompareExchange(expected, value, _) => found == expected && value != found,
    }
}

// SAFETY: there is one thread, and the order in which the CPUs get to their accesses is an interleaving. In virtual time
// every access is performed where it stands; stepped, `before` performs it and answers with what it found. So every
// result is one of a sequentially consistent execution. With store buffers it answers with what x86-TSO allows: an own
// store that is still in the buffer, else what is in memory; buffered stores reach memory in order. (A mutant breaks
// this on purpose: that is what it is for.) `wait` reports a condition that it has just evaluated as true.
unsafe impl Memory for SimMemory {
    #[inline]
    fn before(location: *const (), access: Access, order: Ordering) -> Option<u64> {
        let state = current()?;
        let source = Location::caller();
        let address = location.addr();
        let next = state.with(|machine| match (machine.phase, machine.driver) {
            (Phase::Direct, _) => Next::Answered(None),
            (Phase::Running, Driver::Stepped) => machine.next_access(address, access, order, source),
            (Phase::Evaluating, Driver::Stepped) => Next::Answered(machine.look(address, access)),
            (Phase::Evaluating, Driver::Timed) => {
                machine.cpu().watched.push(address);
                Next::Answered(None)
            }
            (Phase::Running, Driver::Timed) => Next::Timed(match access {
                Access::Load | Access::PlainRead(_) | Access::PlainWrite(_) => machine.cost.load,
                Access::Store(_) => machine.cost.store,
                _ => machine.cost.read_modify_write,
            }),
        });
        match next {
            Next::Answered(answer) => answer,
            Next::Timed(cost) => {
                begin(state, Operation::Access { location: address, access, order }, cost, source);
                None
            }
            Next::Pending(slot, yielder) => {
                // SAFETY: `next_access` has taken it from the running CPU.
                unsafe {
                    pending_then(state, yielder, |machine| machine.access(slot, access, order, false, source))
                }
            }
            Next::Mutant(fault) => access_mutant(state, fault, address, access, order, source),
        }
    }

    #[inline]
    fn after(location: *const (), access: Access, found: u64) {
        let Some(state) = current() else { return };
        state.with(|machine| {
            if machine.phase == Phase::Running && machine.driver == Driver::Timed && changed(access, found) {
                machine.wake_watchers(location.addr());
            }
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

    fn wait_at_most<M: Machine<Memory = Self>>(
        conditions: &impl Conditions,
        deadline: Deadline,
        looks: u64,
    ) -> Woken {
        match current() {
            Some(state) if state.with(|machine| machine.phase) == Phase::Running => {
                waiting::wait_at_most(state, conditions, deadline, looks, Location::caller())
            }
            _ => spin_at_most::<M>(conditions, deadline, looks),
        }
    }
}

/// What comes next for an access.
enum Next {
    /// It is done already: the answer.
    Answered(Option<u64>),
    /// It takes this long.
    Timed(u64),
    /// It is pending: its controller decides when it is done. The location's number, and how the CPU suspends itself.
    Pending(u32, *const Yielder<(), ()>),
    /// It is not done as it stands there.
    Mutant(Fault),
}

impl State {
    /// Stepped: an access of the running CPU. At once, if nobody else can notice it.
    #[inline(always)]
    fn next_access(&mut self, address: usize, access: Access, order: Ordering, source: Source) -> Next {
        if let Some(fault) = self.explored.mutant.as_ref().and_then(|mutant| mutant.at_place(source)) {
            return Next::Mutant(fault);
        }
        let running = self.running;
        let processor = &mut self.cpus[running];
        let (slot, local) = approach(&mut self.explored, processor, running, address, access, order);
        if local {
            return Next::Answered(self.access_at_once(slot, access, order, true, source));
        }
        if self.explored.walk.is_some() && self.goes_straight_on() {
            return Next::Answered(self.access_at_once(slot, access, order, false, source));
        }
        let processor = &mut self.cpus[running];
        processor.pending = Some((Operation::Access { location: address, access, order }, source));
        Next::Pending(slot, processor.yielder)
    }
}

/// Stepped: a CPU is about to access an address: the location's number, and whether nobody notices.
#[inline(always)]
fn approach(
    explored: &mut Explored,
    processor: &mut Processor,
    cpu: usize,
    address: usize,
    access: Access,
    order: Ordering,
) -> (u32, bool) {
    let (slot, mut local) = explored.touch(processor, cpu, address, access);
    let buffers = explored.options.buffers;
    processor.counters.operations += 1;
    if local {
        processor.at_once += 1;
        // A locked instruction waits for the store buffer.
        let waits = buffers && !processor.store_buffer.is_empty() && drains(access, order);
        local = processor.at_once < AT_ONCE && !waits;
    }
    if !local {
        processor.at_once = 0;
        // What does not last is never buffered: its stores wait too.
        let stays = || explored.places.all[slot as usize].lasting;
        processor.drains =
            buffers && (drains(access, order) || matches!(access, Access::Store(_)) && !stays());
    }
    (slot, local)
}

/// Brings the running CPU to an access: the location's number, and whether it was done at once.
fn come_to(state: Shared, address: usize, access: Access, order: Ordering, source: Source) -> (u32, bool) {
    let (slot, local) = state.with(|machine| {
        let running = machine.running;
        approach(&mut machine.explored, &mut machine.cpus[running], running, address, access, order)
    });
    if !local {
        offer(state, Operation::Access { location: address, access, order }, source);
    }
    (slot, local)
}

/// Nobody does more than this at once: who loops for ever shall be seen to.
const AT_ONCE: u32 = 1_000;

/// An access with a deliberate fault in it. It is performed here, on the host's memory too: what the code asks for is not
/// what happens.
#[cold]
fn access_mutant(
    state: Shared,
    fault: Fault,
    address: usize,
    access: Access,
    order: Ordering,
    source: Source,
) -> Option<u64> {
    let (parts, order) = mutant::parts(fault, access, order);
    let mut found = None;
    for part in parts {
        // What a part that is not atomic writes follows from what the one before has found.
        let part = match (part, found) {
            (mutant::Part::Access(access), _) => access,
            (mutant::Part::WriteResult, Some(found)) => match crate::explored::written(access, found) {
                Some(value) => Access::Store(value),
                None => continue,
            },
            (mutant::Part::WriteResult, None) => continue,
        };
        let (slot, local) = come_to(state, address, part, order, source);
        // Plain data is accessed by the code itself.
        let answer = state.with(|machine| machine.access(slot, part, order, local, source))?;
        found.get_or_insert(answer);
    }
    Some(mutant::answer(fault, access, found.unwrap_or(0)))
}
