//! What a stepped machine keeps for explorers, and what an access to shared memory is there: what it touches, what it
//! teaches, whether it races, where its store goes.

use core::sync::atomic::{AtomicU64, Ordering};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use rustc_hash::FxHashMap;
use smpcall_machine::{Access, Cpu};

use crate::explorer::footprint::{Footprint, Use};
use crate::explorer::system::Violation;
use crate::hash::{absorb, pair};
use crate::operation::Operation;
use crate::places::{CONTEXT_CPUS, Context, Location, NO_RECORD, Places, context_bit, irr_place, is_private};
use crate::processor::{Processor, Source};
use crate::races::{Known, Race, Races};
use crate::state::State;

/// What a stepped machine keeps track of.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent choices")]
pub(crate) struct Options {
    /// Hashes of states.
    pub(crate) hash: bool,
    /// Data races.
    pub(crate) races: bool,
    /// Stores go through a buffer: x86-TSO.
    pub(crate) buffers: bool,
    /// What nobody else can notice is done at once.
    pub(crate) local: bool,
}

/// Facts, by location, that machines of an exploration learn together; and those of them that are believed in this round.
#[derive(Clone, Default)]
pub(crate) struct Learned {
    facts: Arc<Mutex<FxHashMap<u64, u64>>>,
    believed: Arc<FxHashMap<u64, u64>>,
}

/// No locations' names: which of the CPUs that are not told apart touches anything, which CPUs have taken interrupts, and
/// which NMIs; each as a bit (those of one remainder together).
const HIGH_CPUS: u64 = u64::MAX;
const INTERRUPTED: u64 = u64::MAX - 1;
const TAKES_NMIS: u64 = u64::MAX - 2;

impl Learned {
    /// For the machines of a new round: everything that was learned is believed, and nothing else before the next one.
    pub(crate) fn freeze(&self) -> Self {
        let facts = self.facts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self { facts: self.facts.clone(), believed: Arc::new(facts.clone()) }
    }

    /// Adds to a fact; all that is known of it now.
    fn add(&self, name: u64, bits: u64) -> u64 {
        let mut facts = self.facts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = facts.entry(name).or_default();
        *known |= bits;
        *known
    }

    /// Whether at most one of the CPUs that share a number has touched anything.
    pub(crate) fn tells_cpus_apart(&self) -> bool {
        self.of(HIGH_CPUS).count_ones() <= 1
    }

    fn of(&self, name: u64) -> u64 {
        self.believed.get(&name).copied().unwrap_or(0)
    }
}

/// A store that has not reached memory.
pub(crate) struct Buffered {
    slot: u32,
    value: u64,
    /// What is known to whoever acquires it.
    known: Known,
}

/// How many stores a store buffer holds; hardware has more, but programs that are explored are short.
const BUFFERED: usize = 8;

/// An operation as it happened, for people.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) cpu: Cpu,
    pub(crate) operation: Operation,
    pub(crate) source: Source,
    /// What was found in memory, and what was left there; for what accesses memory.
    pub(crate) old: Option<u64>,
    pub(crate) new: Option<u64>,
    /// How deep in handlers.
    pub(crate) depth: u32,
    /// Whether interrupts were enabled when it began.
    pub(crate) interrupts_enabled: bool,
    /// It was done at once.
    pub(crate) local: bool,
}

/// The piece of plain data that was written first: where, and its bytes among the saved ones.
struct SavedPlain {
    slot: u32,
    start: usize,
    bytes: usize,
}

/// All of it.
pub(crate) struct Explored {
    pub(crate) options: Options,
    /// The difference of all shared memory to what it was at the start.
    pub(crate) hash: u128,
    /// Which accesses to plain data are known through which word.
    pub(crate) known_hash: u128,
    /// What the decision under way has touched.
    pub(crate) footprint: Footprint,
    pub(crate) places: Places,
    pub(crate) races: Races,
    pub(crate) learned: Learned,
    /// What was learned contradicts what was done before: the exploration has to begin again.
    pub(crate) contradicted: bool,
    pub(crate) violation: Option<Violation>,
    pub(crate) told: Option<Vec<Told>>,
    pub(crate) mutant: Option<crate::mutant::Mutant>,
    dirty: Vec<u32>,
    first_values: Vec<(u32, u64)>,
    saved_plain: Vec<SavedPlain>,
    saved_bytes: Vec<MaybeUninit<u8>>,
    /// CPUs that have taken interrupts, and NMIs, in any execution: one bit each.
    interrupted: u64,
    takes_nmis: u64,
    /// CPUs that are in a wait, one bit each (those beyond 63 share the last).
    pub(crate) waiting: u64,
}

impl Explored {
    pub(crate) fn new(cpus: usize) -> Self {
        Self {
            options: Options { hash: true, races: false, buffers: false, local: false },
            hash: 0,
            known_hash: 0,
            footprint: Footprint::NOTHING,
            places: Places::default(),
            races: Races::new(cpus),
            learned: Learned::default(),
            contradicted: false,
            violation: None,
            told: None,
            mutant: None,
            dirty: Vec::new(),
            first_values: Vec::new(),
            saved_plain: Vec::new(),
            saved_bytes: Vec::new(),
            interrupted: 0,
            takes_nmis: 0,
            waiting: 0,
        }
    }

    /// Puts back all lasting memory, and forgets the execution.
    ///
    /// # Safety
    /// All declared memory is still there, and nobody uses it meanwhile.
    pub(crate) unsafe fn restart(&mut self) {
        let places = &mut self.places.all;
        for &(slot, value) in &self.first_values {
            let address = places[slot as usize].address as *const AtomicU64;
            // SAFETY: an atomic word of the declared memory, says the caller.
            unsafe { (*address).store(value, Ordering::Relaxed) };
        }
        for saved in &self.saved_plain {
            let bytes = &self.saved_bytes[saved.start..saved.start + saved.bytes];
            let address = places[saved.slot as usize].address as *mut MaybeUninit<u8>;
            // SAFETY: plain data of this size in the declared memory, says the caller; it is `Copy`.
            unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), saved.bytes) };
        }
        for &slot in &self.dirty {
            let location = &mut places[slot as usize];
            location.dirty = false;
            location.logged = false;
            location.writer = 0;
            location.known = Known::NOTHING;
        }
        self.first_values.clear();
        self.saved_plain.clear();
        self.saved_bytes.clear();
        self.dirty.clear();
        self.hash = 0;
        self.known_hash = 0;
        self.races.restart();
        self.violation = None;
        self.waiting = 0;
        if let Some(told) = &mut self.told {
            told.clear();
        }
    }

    fn make_dirty(&mut self, slot: u32) -> &mut Location {
        let location = &mut self.places.all[slot as usize];
        if !location.dirty {
            location.dirty = true;
            self.dirty.push(slot);
        }
        location
    }

    /// Before the word is written for the first time in this execution.
    fn log(&mut self, slot: u32, found: u64) {
        let location = self.make_dirty(slot);
        if location.lasting && !location.logged {
            location.logged = true;
            self.first_values.push((slot, found));
        }
    }

    /// A word of the scenario that is no operation got another value.
    pub(crate) fn note(&mut self, address: usize, old: u64, new: u64) {
        let slot = self.places.slot(address);
        self.log(slot, old);
        let name = self.places.all[slot as usize].name;
        self.hash ^= pair(name, old) ^ pair(name, new);
    }

    /// This context touches a location: whether nobody else can notice it.
    #[inline]
    pub(crate) fn touch(&mut self, slot: u32, context: u64, plain: bool, interruptible: bool) -> bool {
        let location = &self.places.all[slot as usize];
        if location.contexts & context == 0 {
            self.meet(slot, context, plain);
        }
        // Plain data: a handler that comes in between could publish what was not written yet.
        self.options.local && if plain { !interruptible } else { self.places.all[slot as usize].private }
    }

    /// A context touches a location that it did not touch before. What is believed of it holds for the whole round.
    #[cold]
    fn meet(&mut self, slot: u32, context: u64, plain: bool) {
        let location = &mut self.places.all[slot as usize];
        if location.contexts == 0 {
            // A foreign location has another name in each round: nothing could be learned of it.
            location.private = !location.is_foreign() && is_private(self.learned.of(location.name));
        }
        location.contexts |= context;
        let together = self.learned.add(location.name, location.contexts);
        self.contradicted |= self.options.local && !plain && location.private && !is_private(together);
    }

    /// Several CPUs that are not told apart touch something: then nothing is private.
    #[cold]
    fn meet_high_cpu(&mut self, cpu: usize) {
        let several = self.learned.add(HIGH_CPUS, 1 << (cpu % 64)).count_ones() > 1;
        self.contradicted |= self.options.local && several;
    }

    /// A CPU takes an interrupt, or an NMI, for the first time: what was done at once could have been interrupted.
    #[inline]
    pub(crate) fn meet_interrupt(&mut self, cpu: usize, nmi: bool) {
        let known = if nmi { self.takes_nmis } else { self.interrupted };
        let bit = 1 << (cpu % 64);
        if known & bit == 0 {
            self.learned.add(if nmi { TAKES_NMIS } else { INTERRUPTED }, bit);
            self.contradicted |= self.options.local;
        }
    }

    /// What is believed in this round.
    pub(crate) fn believe(&mut self, learned: Learned) {
        self.interrupted = learned.of(INTERRUPTED);
        self.takes_nmis = learned.of(TAKES_NMIS);
        self.learned = learned;
    }

    /// Whether some interrupt has come to this CPU, and could come now.
    #[inline]
    fn is_interruptible(&self, cpu: usize, enabled: bool) -> bool {
        let known = if enabled { self.interrupted | self.takes_nmis } else { self.takes_nmis };
        known & 1 << (cpu % 64) != 0
    }

    fn tell(&mut self, told: Told) {
        if let Some(tale) = &mut self.told {
            tale.push(told);
        }
    }
}

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

impl State {
    /// The running CPU is about to access an address: the location's number, and whether it is done at once.
    #[inline]
    pub(crate) fn touch(&mut self, address: usize, access: Access) -> (u32, bool) {
        let running = self.running;
        let processor = &self.cpus[running];
        let context = context_bit(running, processor.context());
        let plain = matches!(access, Access::PlainRead(_) | Access::PlainWrite(_));
        let slot = self.explored.places.slot(address);
        if running >= CONTEXT_CPUS - 1 {
            self.explored.meet_high_cpu(running);
        }
        let interruptible = self.explored.is_interruptible(running, processor.interrupts_enabled);
        let local = self.explored.touch(slot, context, plain, interruptible);
        (slot, local)
    }

    /// The running CPU accesses a location, now. What it finds in a word; plain data is left to the caller.
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
            _ => self.access_word(slot, access, order, local, source),
        }
    }

    fn access_word(
        &mut self,
        slot: u32,
        access: Access,
        order: Ordering,
        local: bool,
        source: Source,
    ) -> Option<u64> {
        let running = self.running;
        let buffers = self.explored.options.buffers;
        if buffers && !local {
            if let Access::Store(value) = access
                && order != Ordering::SeqCst
                && self.explored.places.all[slot as usize].lasting
            {
                let processor = &mut self.cpus[running];
                let known = if releases(order) { processor.known } else { Known::NOTHING };
                processor.store_buffer.push_back(Buffered { slot, value, known });
                self.learn_access(access, 0);
                self.tell_access(slot, access, order, None, None, local, source);
                return Some(0);
            }
            if let Access::Load = access
                && let Some(value) = self.cpus[running].buffered(slot)
            {
                self.learn_access(access, value);
                self.tell_access(slot, access, order, Some(value), None, local, source);
                return Some(value);
            }
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
        Some(found)
    }

    /// The running CPU's conditions look at a word: what it sees there if that is not what is in memory.
    pub(crate) fn look(&mut self, address: usize, access: Access) -> Option<u64> {
        let (slot, _) = self.touch(address, access);
        let processor = self.cpu();
        processor.watched.push(address);
        processor.buffered(slot)
    }

    /// A word in memory changes.
    fn change(&mut self, slot: u32, found: u64, written: u64) {
        let explored = &mut self.explored;
        explored.log(slot, found);
        explored.places.all[slot as usize].before = found;
        if found == written {
            return;
        }
        let location = &explored.places.all[slot as usize];
        let (name, address) = (location.name, location.address);
        if explored.options.hash {
            let [before, after] = [found, written].map(|value| explored.places.canonical(value));
            explored.hash ^= pair(name, before) ^ pair(name, after);
        }
        if explored.waiting != 0 {
            for processor in &mut self.cpus {
                if processor.met.is_some() && processor.watched.contains(&address) {
                    processor.met = None;
                    processor.stale = true;
                }
            }
        }
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

    fn access_plain(&mut self, slot: u32, access: Access, local: bool, source: Source) {
        let running = self.running;
        let writes = matches!(access, Access::PlainWrite(_));
        if !local {
            let how = if writes { Use::Write } else { Use::Read };
            self.explored.footprint.add(self.explored.places.all[slot as usize].place, how);
        }
        if let Access::PlainWrite(bytes) = access {
            self.save_plain(slot, bytes);
        }
        if self.explored.options.races {
            self.check_race(slot, writes, source);
        }
        if self.explored.options.hash {
            let history = self.cpus[running].history;
            let location = self.explored.make_dirty(slot);
            if writes {
                // What it writes follows from what the writer has learned so far.
                let written = absorb(history, running as u64);
                let fold = |value: u128| pair(location.name, value as u64 ^ (value >> 64) as u64);
                let before = if location.writer == 0 { 0 } else { fold(location.writer) };
                let change = before ^ fold(written);
                location.writer = written;
                self.explored.hash ^= change;
                self.learn_access(access, 0);
            } else {
                let writer = location.writer;
                self.cpus[running].history = absorb(history, (writer >> 64) as u64);
                self.learn_access(access, writer as u64);
            }
        }
        self.tell_access(slot, access, Ordering::Relaxed, None, None, local, source);
    }

    fn save_plain(&mut self, slot: u32, bytes: usize) {
        let explored = &mut self.explored;
        let location = explored.make_dirty(slot);
        if !location.lasting || location.logged {
            return;
        }
        location.logged = true;
        let address = location.address as *const MaybeUninit<u8>;
        let start = explored.saved_bytes.len();
        // SAFETY: plain data of this size is there, says `Memory`, and nobody accesses it at the same time: there is one
        // thread. Bytes that are not initialised are not looked at.
        let old = unsafe { core::slice::from_raw_parts(address, bytes) };
        explored.saved_bytes.extend_from_slice(old);
        explored.saved_plain.push(SavedPlain { slot, start, bytes });
    }

    fn check_race(&mut self, slot: u32, writes: bool, source: Source) {
        let running = self.running;
        let explored = &mut self.explored;
        let mut first = explored.places.all[slot as usize].record;
        if first == NO_RECORD {
            let Some(given) = explored.races.give(explored.places.all[slot as usize].name) else {
                explored.violation.get_or_insert_with(|| {
                    Violation::new("race", "more plain data is accessed than races are looked for in: explore a smaller protocol")
                });
                return;
            };
            first = given;
            explored.places.all[slot as usize].record = first;
        }
        let knows = self.cpus[running].known;
        let (record, race) = if writes {
            (first, explored.races.write(first, running, &knows, source))
        } else {
            explored.races.read(first, running, &knows, source)
        };
        // Nobody knows of this access yet.
        let hashing = explored.options.hash;
        for at in 0..explored.dirty.len() {
            let location = &mut explored.places.all[explored.dirty[at] as usize];
            if location.known.is_nothing() {
                continue;
            }
            let before = location.known;
            explored.races.forget(&mut location.known, record, writes);
            if hashing && before != location.known {
                explored.known_hash ^= before.hash(location.name, &explored.races)
                    ^ location.known.hash(location.name, &explored.races);
            }
        }
        for processor in &mut self.cpus {
            processor.hashed = None;
            explored.races.forget(&mut processor.known, record, writes);
            for store in &mut processor.store_buffer {
                explored.races.forget(&mut store.known, record, writes);
            }
        }
        Races::learn(&mut self.cpus[running].known, record);
        if let Some(race) = race {
            let text = self.describe_race(slot, writes, source, race);
            self.explored.violation.get_or_insert_with(|| Violation::new("race", text));
        }
    }

    fn describe_race(&self, slot: u32, writes: bool, source: Source, race: Race) -> String {
        let does = |writes| if writes { "writes" } else { "reads" };
        let other =
            if race.cpu == usize::MAX { "another CPU".to_owned() } else { format!("CPU {}", race.cpu) };
        let kernel = self.kernel.as_ref().and_then(|kernel| {
            let address = self.explored.places.all[slot as usize].address;
            kernel.mailboxes().name_of(core::ptr::without_provenance(address))
        });
        let name = kernel.map_or("plain data".to_owned(), |name| name.to_string());
        format!(
            "CPU {} {} {name} ({}), which {other} {} before ({}), and no release that was acquired orders the two",
            self.running,
            does(writes),
            place(source),
            if race.wrote { "wrote" } else { "read" },
            place(race.source),
        )
    }

    /// What the running CPU has found becomes part of its history.
    fn learn_access(&mut self, access: Access, found: u64) {
        let hash = self.explored.options.hash;
        let value = match access {
            // A store learns nothing, but is a step.
            Access::Store(_) => 0,
            _ if hash => self.explored.places.canonical(found),
            _ => found,
        };
        let processor = &mut self.cpus[self.running];
        processor.found = found;
        if hash {
            processor.history = absorb(processor.history, value);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the facts of one access")]
    #[inline]
    fn tell_access(
        &mut self,
        slot: u32,
        access: Access,
        order: Ordering,
        old: Option<u64>,
        new: Option<u64>,
        local: bool,
        source: Source,
    ) {
        if self.explored.told.is_some() {
            let location = self.explored.places.all[slot as usize].address;
            self.tell(Operation::Access { location, access, order }, old, new, local, source);
        }
    }

    /// Writes down what the running CPU does, if somebody wants to know.
    pub(crate) fn tell(
        &mut self,
        operation: Operation,
        old: Option<u64>,
        new: Option<u64>,
        local: bool,
        source: Source,
    ) {
        if self.explored.told.is_none() {
            return;
        }
        let cpu = Cpu::new(self.running as u32);
        let processor = self.cpu();
        let (depth, interrupts_enabled) = (processor.handler_depth, processor.interrupts_enabled);
        self.explored.tell(Told { cpu, operation, source, old, new, depth, interrupts_enabled, local });
    }

    /// The decision under way reads the request register of a CPU's APIC.
    pub(crate) fn touch_irr(&mut self, cpu: usize, how: Use) {
        self.explored.footprint.add(irr_place(cpu), how);
    }
}

/// The file's own name and the line.
pub(crate) fn place(source: Source) -> String {
    let file = source.file();
    let name = file.rsplit('/').next().unwrap_or(file);
    format!("{name}:{}", source.line())
}
