//! An access of a running CPU to a shared word: what it touches, what it teaches and is taught, where its store goes.

use core::sync::atomic::{AtomicU64, Ordering};

use smpcall_machine::Access;

use super::Explored;
use crate::explorer::footprint::Use;
use crate::hash::absorb;
use crate::places::{CONTEXT_CPUS, Context, Places, context_bit};
use crate::processor::{Processor, Source};
use crate::races::{Known, Races};
use crate::state::State;

/// A store that has not reached memory.
pub(crate) struct Buffered {
    slot: u32,
    value: u64,
    /// What is known to whoever acquires it.
    pub(super) known: Known,
}

/// How many stores a store buffer holds; hardware has more, but programs that are explored are short.
const BUFFERED: usize = 8;

/// What an atomic access leaves in a word in which it finds `found`; none if it writes nothing.
pub(crate) const fn written(access: Access, found: u64) -> Option<u64> {
    match access {
        Access::Load | Access::PlainRead(_) | Access::PlainWrite(_) => None,
        Access::Store(value) | Access::Swap(value) => Some(value),
        Access::FetchOr(bits) => Some(found | bits),
        Access::FetchAnd(bits) => Some(found & bits),
        Access::FetchAdd(value) => Some(found.wrapping_add(value)),
        Access::CompareExchange(expected, value, _) => {
            if found == expected {
                Some(value)
            } else {
                None
            }
        }
    }
}

const fn acquires(order: Ordering) -> bool {
    matches!(order, Ordering::Acquire | Ordering::AcqRel | Ordering::SeqCst)
}

const fn releases(order: Ordering) -> bool {
    matches!(order, Ordering::Release | Ordering::AcqRel | Ordering::SeqCst)
}

/// Whether the access waits on x86 until the store buffer is empty: a locked instruction (a sequentially consistent
/// store is an exchange).
pub(crate) const fn drains(access: Access, order: Ordering) -> bool {
    match access {
        Access::Load | Access::PlainRead(_) | Access::PlainWrite(_) => false,
        Access::Store(_) => matches!(order, Ordering::SeqCst),
        _ => true,
    }
}

impl Processor {
    /// The kind of context that it executes.
    pub(crate) fn context(&self) -> Context {
        match self.handler_depth {
            0 => Context::Program,
            1 if self.nmi_depth > 0 => Context::Nmi,
            1 => Context::Handler,
            _ => Context::Nested,
        }
    }

    /// What its own store buffer holds for a location.
    fn buffered(&self, slot: u32) -> Option<u64> {
        self.store_buffer.iter().rev().find(|store| store.slot == slot).map(|store| store.value)
    }

    /// What is in its store buffer, and what it knows of accesses, for the hash of its state.
    pub(crate) fn memory_hash(&self, cpu: usize, places: &Places, races: &Races) -> u128 {
        let mut hash = self.known.hash(1 << 40 | cpu as u64, races);
        if !self.store_buffer.is_empty() {
            // The hashes of CPUs are added: whose buffer it is has to be in it.
            hash = absorb(hash, cpu as u64);
        }
        for store in &self.store_buffer {
            let name = places.all[store.slot as usize].name;
            hash = absorb(absorb(hash, name), places.canonical(store.value)) ^ store.known.hash(name, races);
        }
        hash
    }

    /// Whether the pending operation has to wait until a store has left the buffer.
    pub(crate) fn is_held_by_buffer(&self) -> bool {
        match self.store_buffer.len() {
            0 => false,
            BUFFERED.. => true,
            _ => self.drains,
        }
    }
}

impl Explored {
    /// A CPU is about to access an address: the location's number, and whether it is done at once.
    #[inline(always)]
    pub(crate) fn touch(
        &mut self,
        processor: &Processor,
        cpu: usize,
        address: usize,
        access: Access,
    ) -> (u32, bool) {
        let context = context_bit(cpu, processor.context());
        let plain = matches!(access, Access::PlainRead(_) | Access::PlainWrite(_));
        let slot = self.places.slot(address);
        let location = &self.places.all[slot as usize];
        let (known, private) = (location.contexts & context != 0, location.private);
        if !known || cpu >= CONTEXT_CPUS - 1 {
            return (slot, self.touch_first(slot, cpu, context, plain, processor.interrupts_enabled));
        }
        if plain {
            return (slot, self.is_plain_local(cpu, processor.interrupts_enabled));
        }
        (slot, private && self.options.local)
    }
}

impl State {
    /// The running CPU is about to access an address: the location's number, and whether it is done at once.
    #[inline]
    pub(crate) fn touch(&mut self, address: usize, access: Access) -> (u32, bool) {
        let running = self.running;
        self.explored.touch(&self.cpus[running], running, address, access)
    }

    /// As [`access`](Self::access), where the CPU comes to it.
    #[inline(never)]
    pub(crate) fn access_at_once(
        &mut self,
        slot: u32,
        access: Access,
        order: Ordering,
        local: bool,
        source: Source,
    ) -> Option<u64> {
        self.access(slot, access, order, local, source)
    }

    /// The running CPU accesses a location, now. What it finds in a word; plain data is left to the caller.
    #[inline(always)]
    pub(crate) fn access(
        &mut self,
        slot: u32,
        access: Access,
        order: Ordering,
        local: bool,
        source: Source,
    ) -> Option<u64> {
        match access {
            Access::PlainRead(_) | Access::PlainWrite(_) => {
                self.access_plain(slot, access, local, source);
                None
            }
            _ => Some(self.access_word(slot, access, order, local, source)),
        }
    }

    #[inline(always)]
    fn access_word(
        &mut self,
        slot: u32,
        access: Access,
        order: Ordering,
        local: bool,
        source: Source,
    ) -> u64 {
        if self.explored.options.buffers
            && !local
            && let Some(found) = self.access_buffer(slot, access, order, source)
        {
            return found;
        }
        let address = self.explored.places.all[slot as usize].address as *const AtomicU64;
        // SAFETY: an atomic access is to a live, aligned 8-byte atomic, says `Memory`.
        let word = unsafe { &*address };
        let found = word.load(Ordering::Relaxed);
        let written = written(access, found);
        if !local {
            let how = if written.is_some() { Use::Write } else { Use::Read };
            self.explored.footprint.add(self.explored.places.all[slot as usize].place, how);
        }
        if let Some(written) = written {
            self.change(slot, found, written);
        }
        if self.explored.options.races && !self.explored.races.is_idle() {
            let order = match access {
                Access::CompareExchange(_, _, failure) if written.is_none() => failure,
                _ => order,
            };
            self.synchronise(slot, access, order, written.is_some());
        }
        self.learn_access(access, found);
        self.tell_access(slot, access, order, Some(found), written, local, source);
        if let Some(written) = written {
            word.store(written, Ordering::Relaxed);
        }
        found
    }

    /// An access to the running CPU's store buffer instead of memory, if it is one.
    fn access_buffer(&mut self, slot: u32, access: Access, order: Ordering, source: Source) -> Option<u64> {
        let lasting = self.explored.places.all[slot as usize].lasting;
        let processor = self.cpu();
        match access {
            Access::Store(value) if order != Ordering::SeqCst && lasting => {
                let known = if releases(order) { processor.known } else { Known::NOTHING };
                processor.store_buffer.push_back(Buffered { slot, value, known });
                self.learn_access(access, 0);
                self.tell_access(slot, access, order, None, None, false, source);
                Some(0)
            }
            Access::Load => {
                let value = processor.buffered(slot)?;
                self.learn_access(access, value);
                self.tell_access(slot, access, order, Some(value), None, false, source);
                Some(value)
            }
            _ => None,
        }
    }

    /// The running CPU's conditions look at a word: what it sees there if that is not what is in memory.
    pub(crate) fn look(&mut self, address: usize, access: Access) -> Option<u64> {
        let (slot, _) = self.touch(address, access);
        let processor = self.cpu();
        processor.watched.push(address);
        processor.buffered(slot)
    }

    /// A word in memory changes.
    #[inline(always)]
    fn change(&mut self, slot: u32, found: u64, written: u64) {
        let explored = &mut self.explored;
        let location = explored.log(slot, found);
        location.before = found;
        if found == written {
            return;
        }
        let (key, address) = (location.key, location.address);
        if explored.options.hash {
            let before = explored.places.canonical(found);
            let after = explored.places.canonical(written);
            explored.hash ^= absorb(key, before) ^ absorb(key, after);
        }
        self.word_changes(address, written);
    }

    /// What the running CPU's access tells and is told.
    fn synchronise(&mut self, slot: u32, access: Access, order: Ordering, writes: bool) {
        let running = self.running;
        if acquires(order) && !matches!(access, Access::Store(_)) {
            self.acquire(running, slot);
        }
        if writes {
            let known = if releases(order) { self.cpus[running].known } else { Known::NOTHING };
            let continues = !matches!(access, Access::Store(_));
            self.publish(slot, &known, continues);
        }
    }

    pub(crate) fn acquire(&mut self, cpu: usize, slot: u32) {
        let location = &self.explored.places.all[slot as usize];
        self.cpus[cpu].known.add(&location.known);
    }

    /// A store reaches memory: what is known through the word, besides what was if it `continues` a release sequence.
    fn publish(&mut self, slot: u32, known: &Known, continues: bool) {
        let hashing = self.explored.options.hash;
        let location = self.explored.make_dirty(slot);
        let mut now = *known;
        if continues {
            now.add(&location.known);
        }
        if now != location.known {
            let (name, before) = (location.name, core::mem::replace(&mut location.known, now));
            if hashing {
                let races = &self.explored.races;
                self.explored.known_hash ^= before.hash(name, races) ^ now.hash(name, races);
            }
        }
    }

    /// The oldest store of a CPU reaches memory.
    pub(crate) fn flush(&mut self, cpu: usize) {
        let Some(Buffered { slot, value, known }) = self.cpus[cpu].store_buffer.pop_front() else { return };
        let location = &self.explored.places.all[slot as usize];
        let address = location.address as *const AtomicU64;
        self.explored.footprint.add(location.place, Use::Write);
        // SAFETY: only stores to memory that lives as long as the machine are buffered.
        let found = unsafe { (*address).swap(value, Ordering::Relaxed) };
        self.change(slot, found, value);
        if self.explored.options.races {
            self.publish(slot, &known, false);
        }
    }
}
