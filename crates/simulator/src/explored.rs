//! What a stepped machine keeps for explorers: what is touched, what was learned of who touches what, what has to be put
//! back, what happened.
//!
//! `access.rs` is what an access to a word does with it, `plain.rs` an access to plain data.

use core::sync::atomic::{AtomicU64, Ordering};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use rustc_hash::FxHashMap;
use smpcall_machine::{Access, Cpu};

use crate::explorer::footprint::{Footprint, Use};
use crate::explorer::system::Violation;
use crate::hash::absorb;
use crate::operation::Operation;
use crate::places::{CONTEXT_CPUS, Location, Places, context_cpu, context_cpu_of, irr_place, is_private};
use crate::processor::Source;
use crate::races::{Known, Races};
use crate::state::{Phase, State};
use crate::walk::Walk;

mod access;
mod plain;

pub(crate) use access::{Buffered, drains, written};

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
/// Which CPUs are reset while they do something.
const RESET: u64 = u64::MAX - 3;

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
    pub(crate) walk: Option<Walk>,
    dirty: Vec<u32>,
    first_values: Vec<(u32, u64)>,
    saved_plain: Vec<SavedPlain>,
    saved_bytes: Vec<MaybeUninit<u8>>,
    /// CPUs that have taken interrupts, and NMIs, in any execution: one bit each.
    interrupted: u64,
    takes_nmis: u64,
    /// CPUs that are reset while they do something: how far they came shows in everything that they write.
    reset: u64,
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
            walk: None,
            dirty: Vec::new(),
            first_values: Vec::new(),
            saved_plain: Vec::new(),
            saved_bytes: Vec::new(),
            interrupted: 0,
            takes_nmis: 0,
            reset: 0,
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

    #[inline]
    fn make_dirty(&mut self, slot: u32) -> &mut Location {
        let location = &mut self.places.all[slot as usize];
        if !location.dirty {
            location.dirty = true;
            self.dirty.push(slot);
        }
        location
    }

    /// Before the word is written for the first time in this execution.
    #[inline]
    fn log(&mut self, slot: u32, found: u64) -> &mut Location {
        let location = &mut self.places.all[slot as usize];
        if !location.dirty {
            location.dirty = true;
            self.dirty.push(slot);
        }
        if location.lasting && !location.logged {
            location.logged = true;
            self.first_values.push((slot, found));
        }
        location
    }

    /// A word of the scenario that is no operation got another value.
    pub(crate) fn note(&mut self, address: usize, old: u64, new: u64) {
        let slot = self.places.slot(address);
        let key = self.log(slot, old).key;
        if self.options.hash {
            self.hash ^= absorb(key, old) ^ absorb(key, new);
        }
    }

    /// A fingerprint of what the execution has left in shared memory. If states are not hashed: in the words and notes that
    /// last, and not in plain data.
    pub(crate) fn ending(&self) -> u64 {
        let mut hash = self.hash;
        if !self.options.hash {
            for &(slot, first) in &self.first_values {
                let location = &self.places.all[slot as usize];
                // SAFETY: a word of the declared memory, which is still there, or a note's: both are atomic.
                let now = unsafe { &*(location.address as *const AtomicU64) }.load(Ordering::Relaxed);
                if now != first {
                    let value = |value| absorb(location.key, self.places.canonical(value));
                    hash ^= value(first) ^ value(now);
                }
            }
        }
        hash as u64 ^ (hash >> 64) as u64
    }

    /// A context may touch a location for the first time: whether nobody else can notice it.
    #[cold]
    fn touch_first(&mut self, slot: u32, cpu: usize, context: u64, plain: bool, enabled: bool) -> bool {
        if cpu >= CONTEXT_CPUS - 1 {
            self.meet_high_cpu(cpu);
        }
        if self.places.all[slot as usize].contexts & context == 0 {
            self.meet(slot, context, plain);
        }
        if plain {
            self.is_plain_local(cpu, enabled)
        } else {
            self.options.local && self.places.all[slot as usize].private
        }
    }

    /// A context touches a location that it did not touch before. What is believed of it holds for the whole round.
    #[cold]
    fn meet(&mut self, slot: u32, context: u64, plain: bool) {
        let location = &mut self.places.all[slot as usize];
        if location.contexts == 0 {
            // A foreign location has another name in each round: nothing could be learned of it.
            let cut_off = self.reset & 1 << context_cpu_of(context) != 0;
            location.private =
                !location.is_foreign() && !cut_off && is_private(self.learned.of(location.name));
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

    /// A CPU is reset in the middle of something: what was done at once could have been cut off.
    pub(crate) fn meet_reset(&mut self, cpu: usize) {
        let bit = 1 << context_cpu(cpu);
        if self.reset & bit == 0 {
            self.learned.add(RESET, bit);
            self.contradicted |= self.options.local;
        }
    }

    /// What is believed in this round.
    pub(crate) fn believe(&mut self, learned: Learned) {
        self.interrupted = learned.of(INTERRUPTED);
        self.takes_nmis = learned.of(TAKES_NMIS);
        self.reset = learned.of(RESET);
        self.learned = learned;
    }

    /// Whether an access to plain data is done at once: if races are looked for, its interleavings need not be. But a
    /// handler that comes in between could publish what was not written yet.
    #[inline]
    fn is_plain_local(&self, cpu: usize, enabled: bool) -> bool {
        let takes = if enabled { self.interrupted | self.takes_nmis } else { self.takes_nmis };
        let cut_off = self.reset & 1 << context_cpu(cpu) != 0;
        self.options.local && self.options.races && takes & 1 << (cpu % 64) == 0 && !cut_off
    }

    fn tell(&mut self, told: Told) {
        if let Some(tale) = &mut self.told {
            tale.push(told);
        }
    }
}

impl State {
    /// What the running CPU has found becomes part of its history.
    #[inline(always)]
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

    /// The decision under way uses the request register of a CPU's APIC. What conditions look at is used when their wait
    /// ends.
    pub(crate) fn touch_irr(&mut self, cpu: usize, how: Use) {
        if self.phase != Phase::Evaluating {
            self.explored.footprint.add(irr_place(cpu), how);
        }
    }
}

/// The file's own name and the line.
pub(crate) fn place(source: Source) -> String {
    let file = source.file();
    let name = file.rsplit('/').next().unwrap_or(file);
    format!("{name}:{}", source.line())
}
