//! The mailbox of a CPU, and all mailboxes of a machine.
//!
//! Memory per ordered pair of CPUs is bits: a leaf bit per source, and four bits per call level for calls
//! to many. On machines of up to 48 CPUs the group bits of the door are the sources and there are no
//! leaves.

use core::sync::atomic::Ordering::Relaxed;

use crate::door::{GROUPS, group_bit};
use crate::global::Global;
use crate::lockup::Watch;
use crate::serve::Here;
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
    /// Posts that are just being moved from the list to the backlog: the newest. As the next three, the owner's, with
    /// interrupts off: see [`lists`](crate::lists).
    pub(crate) taken: Pointer<K, post::Link<K>>,
    /// Posts taken from the list and not run yet: the oldest.
    pub(crate) backlog: Pointer<K, post::Link<K>>,
    /// The post that is just taken from the backlog or from the work, to be run.
    pub(crate) beginning: Pointer<K, post::Link<K>>,
    /// Deferred work that was listed and not run yet: the newest, which points to the oldest.
    pub(crate) work: Pointer<K, post::Link<K>>,
    /// The stage of a rendezvous that this CPU has reached: see [`rendezvous`](crate::rendezvous). 0: it takes part in none.
    pub(crate) stage_reached: Word<K>,
    /// Set by a CPU that wants to know whether this one is alive.
    pub(crate) probe_wanted: Word<K>,
    /// Whether this CPU has declared that it can take an NMI.
    pub(crate) takes_nmi: Word<K>,
    /// Where this CPU is on its way up or down: 0 if it is on neither.
    pub(crate) life: Word<K>,
    /// Which steps of a crash stop this CPU has begun: see [`crash`](crate::crash). The owner's, in all its contexts.
    pub(crate) crash_steps: Word<K>,
    /// Whether this CPU has saved itself after a crash.
    pub(crate) crash_saved: Word<K>,
    /// Who wants a back trace of this CPU: its number + 1, or 0.
    pub(crate) back_trace_wanted: Word<K>,
    /// Since when this CPU is said to be locked up hard, in nanoseconds; 0 if it is not.
    pub(crate) hard_locked_up: Word<K>,
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
    /// Marks that were taken from the door and not come to yet: group bits. See [`serve`](crate::serve).
    pub(crate) taken: Counter,
    /// The leaf word in work, its position + 1, or 0; and the marks left of it.
    pub(crate) taken_leaf: Counter,
    pub(crate) taken_of_leaf: Counter,
    /// A caller with interrupts off waits for a call level on this CPU.
    pub(crate) starving: Counter,
    /// Posts and deferred work that have begun and not ended, nested ones included.
    pub(crate) posts_under_way: Counter,
    /// This CPU runs its deferred work.
    pub(crate) working: Counter,
    /// This CPU is in a stage of a rendezvous in which it serves nobody.
    pub(crate) stopped: Counter,
    /// The last answer to a probe: instruction pointer and [`INTERRUPTS_ENABLED`](Own::INTERRUPTS_ENABLED).
    pub(crate) probe_answer: Counter,
    pub(crate) probe_answers: Counter,
    /// The passes of this CPU when the backstop looked last. Written by the backstop CPU.
    pub(crate) passes_at_backstop: Counter,
    /// The bytes of all events that this CPU has written: see [`EventRing`].
    pub(crate) events_bytes: Counter,
    /// What this CPU knows of its own progress, and of another CPU's ticks.
    pub(crate) watch: Watch,
}

impl Own {
    pub(crate) const POST_RUNS: u64 = u64::MAX;
    /// Instruction pointers of kernels are canonical: bit 63 repeats bit 62 and is free for this.
    pub(crate) const INTERRUPTS_ENABLED: u64 = 1 << 63;

    /// Its CPU was fenced: nothing of what it was in the middle of goes on.
    pub(crate) fn forget_contexts(&self) {
        for counter in [
            &self.running,
            &self.depth,
            &self.starving,
            &self.posts_under_way,
            &self.working,
            &self.stopped,
            &self.taken,
            &self.taken_leaf,
            &self.taken_of_leaf,
        ] {
            counter.set(0);
        }
    }
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
        taken: Pointer::<K, _>::new(core::ptr::null_mut()),
        backlog: Pointer::<K, _>::new(core::ptr::null_mut()),
        beginning: Pointer::<K, _>::new(core::ptr::null_mut()),
        work: Pointer::<K, _>::new(core::ptr::null_mut()),
        stage_reached: Word::<K>::new(0),
        probe_wanted: Word::<K>::new(0),
        takes_nmi: Word::<K>::new(0),
        life: Word::<K>::new(0),
        crash_steps: Word::<K>::new(0),
        crash_saved: Word::<K>::new(0),
        back_trace_wanted: Word::<K>::new(0),
        hard_locked_up: Word::<K>::new(0),
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

    /// Its words that are no arrays, each with its name. All zero at first.
    pub(crate) fn words(&self) -> [(&Word<K>, &'static str); 11] {
        [
            (&self.door.0, "door"),
            (&self.left_behind, "left_behind"),
            (&self.rung_again_at, "rung_again_at"),
            (&self.probe_wanted, "probe_wanted"),
            (&self.takes_nmi, "takes_nmi"),
            (&self.life, "life"),
            (&self.crash_steps, "crash_steps"),
            (&self.crash_saved, "crash_saved"),
            (&self.back_trace_wanted, "back_trace_wanted"),
            (&self.hard_locked_up, "hard_locked_up"),
            (&self.stage_reached, "stage_reached"),
        ]
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
        taken: Counter::new(0),
        taken_leaf: Counter::new(0),
        taken_of_leaf: Counter::new(0),
        starving: Counter::new(0),
        posts_under_way: Counter::new(0),
        working: Counter::new(0),
        stopped: Counter::new(0),
        probe_answer: Counter::new(0),
        probe_answers: Counter::new(0),
        passes_at_backstop: Counter::new(0),
        events_bytes: Counter::new(0),
        watch: Watch::NEW,
    };
}

/// All mailboxes of a machine. Sized and owned by the kernel: see [`Storage`](crate::Storage) for statics,
/// [`Mailboxes::new`] for memory that a kernel has at start-up.
pub struct Mailboxes<K: Kernel> {
    cpus: &'static [Mailbox<K>],
    pub(crate) leaves: &'static [Word<K>],
    /// The target words and the outcome words of each level of each CPU.
    pub(crate) targets: &'static [Word<K>],
    events: &'static [EventSlot],
    global: Global<K>,
    pub(crate) leaf_words: usize,
    words_per_group: usize,
    pub(crate) target_words: usize,
    events_per_cpu: usize,
    /// The bytes of one event ring, and what leaves of a number of bytes the place in it.
    ring_bytes: usize,
    ring_mask: usize,
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
        let (leaves, targets) = words.split_at(cpus.len() * crate::leaf_words(cpus.len()));
        Self::from_parts(cpus, leaves, targets, events)
    }

    pub(crate) const fn from_parts(
        cpus: &'static [Mailbox<K>],
        leaves: &'static [Word<K>],
        targets: &'static [Word<K>],
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
        let target_words = crate::target_words(count);
        assert!(leaves.len() == count * leaf_words, "wrong number of leaf words");
        assert!(targets.len() == count * LEVELS * 2 * target_words, "wrong number of target words");
        Self {
            cpus,
            leaves,
            targets,
            events,
            global: Global::NEW,
            leaf_words,
            words_per_group: leaf_words.div_ceil(GROUPS),
            target_words,
            events_per_cpu,
            ring_bytes: events_per_cpu * EventSlot::BYTES as usize,
            ring_mask: (events_per_cpu * EventSlot::BYTES as usize).wrapping_sub(EventSlot::BYTES as usize),
        }
    }

    /// How many words [`Mailboxes::new`] needs for this many CPUs.
    pub const fn words_needed(cpus: usize) -> usize {
        cpus * (crate::leaf_words(cpus) + LEVELS * 2 * crate::target_words(cpus))
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
            mailbox.posts.0.store(post::closed(), Relaxed);
            for list in [&mailbox.taken, &mailbox.backlog, &mailbox.beginning, &mailbox.work] {
                list.store(core::ptr::null_mut(), Relaxed);
            }
            let slots = mailbox.slots.iter().map(|slot| &slot.has_outcomes);
            let others = mailbox.words().map(|(word, _)| word);
            for word in mailbox.states.0.iter().chain(slots).chain(others) {
                word.store(0, Relaxed);
            }
        }
        for (word, _) in self.global.words() {
            word.store(0, Relaxed);
        }
        for word in self.leaves.iter().chain(self.targets) {
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
        for slot in self.events {
            slot.clear();
        }
        for mailbox in self.cpus {
            let own = &mailbox.own.0;
            own.counters.clear();
            own.watch.clear();
            for counter in [
                &own.running,
                &own.depth,
                &own.next_source,
                &own.taken,
                &own.taken_leaf,
                &own.taken_of_leaf,
                &own.starving,
                &own.posts_under_way,
                &own.working,
                &own.stopped,
                &own.probe_answer,
                &own.probe_answers,
                &own.passes_at_backstop,
                &own.events_bytes,
            ] {
                counter.set(0);
            }
        }
    }

    /// Statistics of a CPU that decide what it does next, or what others are told of it: part of the state of a machine
    /// that is explored. (What it runs, the source its next pass begins with, whether somebody waits for a level, and what
    /// its passes have taken and not come to.)
    pub fn steering_statistics(&self, cpu: Cpu) -> [u64; 6] {
        let own = &self.cpus[cpu.index()].own.0;
        let taken = [&own.taken, &own.taken_leaf, &own.taken_of_leaf].map(Counter::get);
        [own.running.get(), own.next_source.get(), own.starving.get(), taken[0], taken[1], taken[2]]
    }

    /// Where all of it is: address and bytes of each part that holds shared words.
    pub fn memory(&self) -> [(*const (), usize); 4] {
        fn part<T>(slice: &[T]) -> (*const (), usize) {
            (slice.as_ptr().cast(), size_of_val(slice))
        }
        let global = (core::ptr::from_ref(&self.global).cast(), size_of::<Global<K>>());
        [part(self.cpus), part(self.leaves), part(self.targets), global]
    }

    /// What the whole machine shares.
    pub(crate) fn global(&self) -> &Global<K> {
        &self.global
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
        let mailbox = &self.cpus[cpu.index()];
        let slots = &self.events[cpu.index() * self.events_per_cpu..][..self.events_per_cpu];
        EventRing::new(slots, &mailbox.own.0.events_bytes)
    }

    /// Writes an event of this CPU to its ring; returns when that was. With interrupts off.
    #[inline(always)]
    pub(crate) fn trace(
        &self,
        cpu: Cpu,
        kind: EventKind,
        other: Option<Cpu>,
        detail: usize,
        argument: u64,
    ) -> Instant {
        let time = K::now();
        if let Some(mine) = self.get(cpu) {
            Here { me: cpu, mine }.trace_at(time, kind, other, detail, argument);
        }
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

    /// All leaf words of a target.
    pub(crate) fn all_leaves_of(&self, target: Cpu) -> &'static [Word<K>] {
        &self.leaves[target.index() * self.leaf_words..][..self.leaf_words]
    }

    /// The position of the first leaf word of a group.
    pub(crate) const fn first_leaf_of(&self, group: usize) -> usize {
        group * self.words_per_group
    }

    /// Whether the leaf word at this position is the last of its group.
    pub(crate) const fn is_last_of_group(&self, leaf: usize) -> bool {
        (leaf + 1).is_multiple_of(self.words_per_group) || leaf + 1 == self.leaf_words
    }

    /// The target words of a slot: see [`slot`](crate::slot).
    #[inline(always)]
    pub(crate) fn targets_of(&self, owner: Cpu, level: usize) -> &'static [Word<K>] {
        &self.targets[(owner.index() * LEVELS + level) * 2 * self.target_words..][..self.target_words]
    }

    /// One of them; none if there is no such word.
    #[inline(always)]
    pub(crate) fn target_word_of(&self, owner: Cpu, level: usize, word: usize) -> Option<&'static Word<K>> {
        if word >= self.target_words {
            return None;
        }
        self.targets.get((owner.index() * LEVELS + level) * 2 * self.target_words + word)
    }

    /// The outcome words of a slot.
    pub(crate) fn outcomes_of(&self, owner: Cpu, level: usize) -> &'static [Word<K>] {
        &self.targets[((owner.index() * LEVELS + level) * 2 + 1) * self.target_words..][..self.target_words]
    }
}

impl<K: Kernel> Here<K> {
    /// Writes an event of this CPU to its ring, as of a time that was just read: what happens in one go has one time.
    #[inline(always)]
    pub(crate) fn trace_at(
        &self,
        time: Instant,
        kind: EventKind,
        other: Option<Cpu>,
        detail: usize,
        argument: u64,
    ) {
        let event = Event { time, kind, cpu: self.me, other, detail: detail as u32, argument };
        let boxes = self.boxes();
        if boxes.ring_bytes != 0 {
            let written = self.mine.own.0.events_bytes.get();
            self.mine.own.0.events_bytes.set(written + EventSlot::BYTES);
            let place = self.me.index() * boxes.ring_bytes + (written as usize & boxes.ring_mask);
            // SAFETY: this CPU exists, because it has a mailbox, so that its ring is among the slots; the mask keeps the
            // place inside of it, and both are multiples of a slot: `from_parts`.
            unsafe { &*boxes.events.as_ptr().byte_add(place) }.write(event, written);
        }
        <K as Machine>::observe(&event);
    }
}
