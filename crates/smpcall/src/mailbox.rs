//! The mailbox of a CPU, and all mailboxes of a machine.
//!
//! Memory per ordered pair of CPUs is bits: a leaf bit per source, and claim and panic bits per call level for
//! calls to many. On machines of up to 48 CPUs the group bits of the door are the sources and there are no
//! leaves.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use crate::door::{GROUPS, group_bit};
use crate::slot::{LEVELS, Slot, number_bits};
use crate::{Counters, Cpu, EventRing, EventSlot, Kernel, Plain, Pointer, Word, post};
use smpcall_machine::{Counter, CpuSetStorage, Event, EventKind, Instant, Machine};

/// Keeps what senders write, what the owner writes and what waiters read on lines of their own.
#[repr(align(64))]
pub(crate) struct Line<T>(pub(crate) T);

/// What one CPU shares with the others, apart from the bits per pair.
pub struct Mailbox<K: Kernel> {
    /// Who wants something: see [`door`](crate::door).
    pub(crate) door: Line<Word<K>>,
    /// Newest post first; see [`post`](crate::post).
    pub(crate) posts: Line<Pointer<K, post::Link<K>>>,
    /// The state words of the outgoing slots: one line, because targets look at all of them.
    pub(crate) states: Line<[Word<K>; LEVELS]>,
    pub(crate) slots: [Slot<K>; LEVELS],
    /// How many calls this CPU has queued. The owner's, with interrupts off.
    pub(crate) calls_queued: Plain<K, u64>,
    /// Levels whose caller left a claimed `'static` call behind: free once they are finished.
    pub(crate) left_behind: Word<K>,
    /// When a ring to this CPU was last repeated: waiters share one back-off.
    pub(crate) rung_again_at: Word<K>,
    /// Posts taken from the list and not run yet, oldest first. The owner's, with interrupts off.
    pub(crate) backlog: Pointer<K, post::Link<K>>,
    /// Set by a CPU that wants to know whether this one is alive.
    pub(crate) probe_wanted: Word<K>,
    /// Whether this CPU has declared that it can take an NMI.
    pub(crate) takes_nmi: Word<K>,
    pub(crate) own: Line<Own>,
}

/// Written by the owner only, read by anyone, part of no protocol.
#[derive(Default)]
pub(crate) struct Own {
    pub(crate) counters: Counters,
    /// Whose closure runs: the caller's number + 1, [`POST_RUNS`](Own::POST_RUNS) for a post, 0 for none.
    pub(crate) running: Counter,
    /// Serve passes under way, nested ones included.
    pub(crate) depth: Counter,
    /// The source that the next pass begins with.
    pub(crate) next_source: Counter,
    /// A caller with interrupts off waits for a call level on this CPU.
    pub(crate) starving: Counter,
    /// The last answer to a probe: instruction pointer and [`INTERRUPTS_ENABLED`](Own::INTERRUPTS_ENABLED).
    pub(crate) probe_answer: Counter,
    pub(crate) probe_answers: Counter,
    /// The passes of this CPU when the backstop looked last. Written by the backstop CPU.
    pub(crate) passes_at_backstop: Counter,
    /// The number of the next event in this CPU's event ring.
    pub(crate) next_event: Counter,
}

impl Own {
    pub(crate) const POST_RUNS: u64 = u64::MAX;
    /// Instruction pointers of kernels are canonical: bit 63 repeats bit 62 and is free for this.
    pub(crate) const INTERRUPTS_ENABLED: u64 = 1 << 63;
}

impl<K: Kernel> Mailbox<K> {
    /// A closed, empty mailbox.
    pub const NEW: Self = Self {
        door: Line(Word::<K>::new(0)),
        posts: Line(Pointer::<K, _>::new(post::closed())),
        states: Line([const { Word::<K>::new(0) }; LEVELS]),
        slots: [const { Slot::<K>::NEW }; LEVELS],
        calls_queued: Plain::<K, _>::new(0),
        left_behind: Word::<K>::new(0),
        rung_again_at: Word::<K>::new(0),
        backlog: Pointer::<K, _>::new(core::ptr::null_mut()),
        probe_wanted: Word::<K>::new(0),
        takes_nmi: Word::<K>::new(0),
        own: Line(Own::NEW),
    };

    /// Takes the number of the next call of this CPU.
    ///
    /// # Safety
    /// Called by the owner with interrupts disabled, not in an NMI handler.
    #[inline(always)]
    pub(crate) unsafe fn next_call(&self) -> u64 {
        // SAFETY: no other CPU accesses it, and no handler can come in between, says the caller.
        unsafe {
            let number = self.calls_queued.read();
            self.calls_queued.write(number.wrapping_add(1));
            number_bits(number)
        }
    }

    /// What this CPU has counted.
    pub fn counters(&self) -> &Counters {
        &self.own.0.counters
    }
}

impl Own {
    pub(crate) const NEW: Self = Self {
        counters: Counters::NEW,
        running: Counter::new(0),
        depth: Counter::new(0),
        next_source: Counter::new(0),
        starving: Counter::new(0),
        probe_answer: Counter::new(0),
        probe_answers: Counter::new(0),
        passes_at_backstop: Counter::new(0),
        next_event: Counter::new(0),
    };
}

/// All mailboxes of a machine. Sized and owned by the kernel: see [`Storage`](crate::Storage) for statics,
/// [`Mailboxes::new`] for memory that a kernel has at start-up.
pub struct Mailboxes<K: Kernel> {
    cpus: &'static [Mailbox<K>],
    leaves: &'static [Word<K>],
    claims: &'static [Word<K>],
    events: &'static [EventSlot],
    leaf_words: usize,
    words_per_group: usize,
    set_words: usize,
    events_per_cpu: usize,
}

/// Where a source is marked in a target's mailbox.
#[derive(Clone, Copy)]
pub(crate) struct MarkPlace<'a, K: Kernel> {
    /// The leaf word and the source's bit in it; none on machines that need no leaves.
    pub(crate) leaf: Option<(&'a Word<K>, u64)>,
    /// The group bit in the door.
    pub(crate) group: u64,
}

impl<K: Kernel> Mailboxes<K> {
    /// Mailboxes in memory that the kernel hands in: one [`Mailbox`] a CPU, [`Mailboxes::words_needed`] zeroed
    /// words, and a power of two of event slots for each CPU (or none).
    ///
    /// # Panics
    /// If a slice has the wrong length.
    pub const fn new(
        cpus: &'static [Mailbox<K>],
        words: &'static [Word<K>],
        events: &'static [EventSlot],
    ) -> Self {
        assert!(!cpus.is_empty(), "a machine has at least one CPU");
        assert!(words.len() == Self::words_needed(cpus.len()), "wrong number of words");
        let (leaves, claims) = words.split_at(cpus.len() * crate::leaf_words(cpus.len()));
        Self::from_parts(cpus, leaves, claims, events)
    }

    pub(crate) const fn from_parts(
        cpus: &'static [Mailbox<K>],
        leaves: &'static [Word<K>],
        claims: &'static [Word<K>],
        events: &'static [EventSlot],
    ) -> Self {
        let count = cpus.len();
        let events_per_cpu = events.len() / count;
        assert!(events.len().is_multiple_of(count), "events must be the same number for each CPU");
        assert!(
            events_per_cpu == 0 || events_per_cpu.is_power_of_two(),
            "events per CPU must be a power of two"
        );
        assert!(events_per_cpu <= EventRing::LONGEST, "an event ring holds at most 16,384 events");
        assert!(
            count <= <K::CpuSet as CpuSetStorage>::CAPACITY,
            "the machine's CpuSet is too small for its CPUs"
        );
        let leaf_words = crate::leaf_words(count);
        let set_words = crate::set_words(count);
        assert!(leaves.len() == count * leaf_words, "wrong number of leaf words");
        assert!(claims.len() == count * LEVELS * 2 * set_words, "wrong number of claim words");
        Self {
            cpus,
            leaves,
            claims,
            events,
            leaf_words,
            words_per_group: leaf_words.div_ceil(GROUPS),
            set_words,
            events_per_cpu,
        }
    }

    /// How many words [`Mailboxes::new`] needs for this many CPUs.
    pub const fn words_needed(cpus: usize) -> usize {
        cpus * (crate::leaf_words(cpus) + LEVELS * 2 * crate::set_words(cpus))
    }

    /// All memory that this many CPUs need, in bytes, with this many events for each.
    pub const fn bytes_needed(cpus: usize, events_per_cpu: usize) -> usize {
        cpus * size_of::<Mailbox<K>>()
            + Self::words_needed(cpus) * size_of::<Word<K>>()
            + cpus * events_per_cpu * size_of::<EventSlot>()
    }

    /// Makes all mailboxes closed and empty, and all counters zero, as they were at first. Forgets what was in
    /// them. For machines that start again in the same memory: simulated ones, and capture kernels.
    ///
    /// # Safety
    /// No CPU uses the mailboxes, and no context that had a call or post in them will ever go on: what their
    /// targets still run would complete into slots that are given to others.
    pub unsafe fn reset(&self) {
        for mailbox in self.cpus {
            // SAFETY: no CPU uses the mailboxes, says the caller.
            unsafe { mailbox.calls_queued.write(0) };
            mailbox.door.0.store(0, Relaxed);
            mailbox.posts.0.store(post::closed(), Relaxed);
            mailbox.backlog.store(core::ptr::null_mut(), Relaxed);
            let slots = mailbox.slots.iter().map(|slot| &slot.count);
            let others =
                [&mailbox.left_behind, &mailbox.rung_again_at, &mailbox.probe_wanted, &mailbox.takes_nmi];
            for word in mailbox.states.0.iter().chain(slots).chain(others) {
                word.store(0, Relaxed);
            }
        }
        for word in self.leaves.iter().chain(self.claims) {
            word.store(0, Relaxed);
        }
        // SAFETY: the same promise.
        unsafe { self.forget_statistics() };
    }

    /// Makes all counters zero, and nothing else: what passes are under way too.
    ///
    /// # Safety
    /// As for [`reset`](Self::reset).
    pub unsafe fn forget_statistics(&self) {
        for mailbox in self.cpus {
            let own = &mailbox.own.0;
            own.counters.clear();
            for counter in [
                &own.running,
                &own.depth,
                &own.next_source,
                &own.starving,
                &own.probe_answer,
                &own.probe_answers,
                &own.passes_at_backstop,
                &own.next_event,
            ] {
                counter.set(0);
            }
        }
    }

    /// Statistics of a CPU that decide what it does next, or what others are told of it: part of the state of a machine
    /// that is explored. (What it runs, the source its next pass begins with, whether somebody waits for a level.)
    pub fn steering_statistics(&self, cpu: Cpu) -> [u64; 3] {
        let own = &self.cpus[cpu.index()].own.0;
        [own.running.get(), own.next_source.get(), own.starving.get()]
    }

    /// Where all of it is: address and bytes of each part that holds shared words.
    pub fn memory(&self) -> [(*const (), usize); 3] {
        fn part<T>(slice: &[T]) -> (*const (), usize) {
            (slice.as_ptr().cast(), size_of_val(slice))
        }
        [part(self.cpus), part(self.leaves), part(self.claims)]
    }

    /// How many CPUs there are, online or not.
    pub const fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    /// The mailbox of a CPU; none if there is no such CPU.
    #[inline(always)]
    pub fn get(&self, cpu: Cpu) -> Option<&'static Mailbox<K>> {
        self.cpus.get(cpu.index())
    }

    /// The numbers of all CPUs.
    pub fn cpus(&self) -> impl Iterator<Item = Cpu> + use<K> {
        (0..self.cpus.len() as u32).map(Cpu::new)
    }

    /// The event ring of a CPU. Reading is possible from any context at any time.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn event_ring(&self, cpu: Cpu) -> EventRing<'static> {
        let slots = &self.events[cpu.index() * self.events_per_cpu..][..self.events_per_cpu];
        EventRing::new(slots, &self.cpus[cpu.index()].own.0.next_event)
    }

    /// Writes an event of this CPU to its ring; returns when that was. With interrupts off.
    #[inline]
    pub(crate) fn trace(
        &self,
        cpu: Cpu,
        kind: EventKind,
        other: Option<Cpu>,
        detail: usize,
        argument: u64,
    ) -> Instant {
        let time = K::now();
        let event = Event { time, kind, cpu, other, detail: detail as u32, argument };
        if self.events_per_cpu != 0 {
            self.event_ring(cpu).push(event);
        }
        <K as Machine>::observe(&event);
        time
    }

    /// Where `source` marks itself in the mailbox of `target`. Both exist.
    #[inline(always)]
    pub(crate) fn mark_place(&self, target: Cpu, source: Cpu) -> MarkPlace<'static, K> {
        if self.leaf_words == 0 {
            return MarkPlace { leaf: None, group: group_bit(source.index()) };
        }
        let word = source.index() / 64;
        let leaf = &self.leaves[target.index() * self.leaf_words + word];
        MarkPlace {
            leaf: Some((leaf, 1 << (source.number() % 64))),
            group: group_bit(self.group_of(source.index())),
        }
    }

    /// The group of a source, which may not exist.
    #[inline(always)]
    pub(crate) const fn group_of(&self, source: usize) -> usize {
        if self.leaf_words == 0 { source } else { source / 64 / self.words_per_group }
    }

    /// Whether the group bits are the sources.
    #[inline(always)]
    pub(crate) const fn is_flat(&self) -> bool {
        self.leaf_words == 0
    }

    /// The leaf words of one group of a target, and the number of the first source in them.
    #[inline(always)]
    pub(crate) fn leaves_of(&self, target: Cpu, group: usize) -> (&'static [Word<K>], usize) {
        let all = &self.leaves[target.index() * self.leaf_words..][..self.leaf_words];
        let first = group * self.words_per_group;
        let last = (first + self.words_per_group).min(self.leaf_words);
        (all.get(first..last).unwrap_or(&[]), first * 64)
    }

    /// The claim bits of a slot, one per target.
    #[inline(always)]
    pub(crate) fn claims_of(&self, owner: Cpu, level: usize) -> &'static [Word<K>] {
        &self.claims[(owner.index() * LEVELS + level) * 2 * self.set_words..][..self.set_words]
    }

    /// The panic bits of a slot, one per target.
    pub(crate) fn panics_of(&self, owner: Cpu, level: usize) -> &'static [Word<K>] {
        &self.claims[((owner.index() * LEVELS + level) * 2 + 1) * self.set_words..][..self.set_words]
    }

    /// What the word at `location` is, for traces; none if it is not part of the mailboxes.
    pub fn name_of(&self, location: *const ()) -> Option<WordName> {
        let address = location.addr();
        for cpu in self.cpus() {
            let mailbox = &self.cpus[cpu.index()];
            let of = |word: &Word<K>| word.location().addr() == address;
            let level = |name| Some(WordName { cpu, part: name });
            if of(&mailbox.door.0) {
                return level(Part::Door);
            } else if mailbox.posts.0.location().addr() == address {
                return level(Part::Posts);
            } else if mailbox.backlog.location().addr() == address {
                return level(Part::Backlog);
            } else if let Some(index) = mailbox.states.0.iter().position(of) {
                return level(Part::State(index));
            } else if let Some(index) = mailbox.slots.iter().position(|slot| of(&slot.count)) {
                return level(Part::Count(index));
            } else if let Some(index) =
                mailbox.slots.iter().position(|slot| slot.payload.location().addr() == address)
            {
                return level(Part::Payload(index));
            } else if of(&mailbox.left_behind) {
                return level(Part::LeftBehind);
            } else if of(&mailbox.rung_again_at) {
                return level(Part::RungAgainAt);
            } else if of(&mailbox.probe_wanted) {
                return level(Part::ProbeWanted);
            } else if of(&mailbox.takes_nmi) {
                return level(Part::TakesNmi);
            }
        }
        let position = |words: &[Word<K>]| words.iter().position(|w| w.location().addr() == address);
        if let Some(index) = position(self.leaves) {
            let cpu = Cpu::new((index / self.leaf_words) as u32);
            return Some(WordName { cpu, part: Part::Leaf(index % self.leaf_words) });
        }
        let index = position(self.claims)?;
        let set = index / self.set_words;
        let cpu = Cpu::new((set / 2 / LEVELS) as u32);
        let level = set / 2 % LEVELS;
        let part = if set.is_multiple_of(2) { Part::Claims(level) } else { Part::Panics(level) };
        Some(WordName { cpu, part })
    }
}

/// The name of a word of the mailboxes: `door[3]`, `state[0].1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordName {
    cpu: Cpu,
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Door,
    Posts,
    Backlog,
    State(usize),
    Count(usize),
    Payload(usize),
    Claims(usize),
    Panics(usize),
    Leaf(usize),
    LeftBehind,
    RungAgainAt,
    ProbeWanted,
    TakesNmi,
}

impl fmt::Display for WordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.cpu.number();
        match self.part {
            Part::Door => write!(f, "door[{cpu}]"),
            Part::Posts => write!(f, "posts[{cpu}]"),
            Part::Backlog => write!(f, "backlog[{cpu}]"),
            Part::State(level) => write!(f, "state[{cpu}].{level}"),
            Part::Count(level) => write!(f, "count[{cpu}].{level}"),
            Part::Payload(level) => write!(f, "payload[{cpu}].{level}"),
            Part::Claims(level) => write!(f, "claims[{cpu}].{level}"),
            Part::Panics(level) => write!(f, "panics[{cpu}].{level}"),
            Part::Leaf(word) => write!(f, "leaf[{cpu}].{word}"),
            Part::LeftBehind => write!(f, "left_behind[{cpu}]"),
            Part::RungAgainAt => write!(f, "rung_again_at[{cpu}]"),
            Part::ProbeWanted => write!(f, "probe_wanted[{cpu}]"),
            Part::TakesNmi => write!(f, "takes_nmi[{cpu}]"),
        }
    }
}
