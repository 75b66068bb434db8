//! A slot: where a CPU's outgoing call stands while it is under way. One slot per call level.
//!
//! The state word names the target, and the target reads the payload only after it has claimed the call. So a
//! stale mark that meets a reused slot runs nothing twice and nothing on the wrong CPU.
//!
//! It also holds the number of the call among those of its CPU, because a pass looks at a call, runs the posts that
//! were made before it, and then claims it: without a number it could claim the next call from the same slot, and
//! run it before a post that was made in between.
//!
//! | from | to | by | how |
//! |---|---|---|---|
//! | `EMPTY` | `QUEUED(t)` | owner | payload, then release store |
//! | `QUEUED(t)` | `CLAIMED(t)` | t | compare-exchange, acquire; payload read afterwards |
//! | `QUEUED(t)` | `EMPTY` | owner | compare-exchange (deadline, or door seen closed) |
//! | `CLAIMED(t)` | `DONE` or `PANICKED` | t | release store: t's last touch |
//! | `QUEUED(t)` | `REFUSED` | whoever has fenced t | compare-exchange |
//! | `CLAIMED(t)` | `DIED` | whoever has fenced t | compare-exchange |
//! | `DONE`, `PANICKED`, `DIED`, `REFUSED` | `EMPTY` | owner | store |
//! | `EMPTY` | `MANY` | owner | payload, state, then target words, then marks |
//! | target's bits 11 | 01, claimed | target | fetch-and |
//! | target's bits 11 | 00, withdrawn | owner | compare-exchange |
//! | target's bits 01 | 00, finished | target | outcome if it is a bad one, then fetch-and: its last touch |
//! | target's bits 11, 01 | 00, refused or died | whoever has fenced it | as the target would |
//! | `MANY`, all bits 0 | `EMPTY` | owner | store |
//!
//! # Targets of a call to many
//! Two bits each: its *claim* bit stands until the call is claimed, its *pending* bit until it is finished. Both are in
//! one word, 32 targets a word, so that one store publishes them and one step withdraws: then "pending, not claimable"
//! has one meaning at every moment, and whoever has fenced a CPU can tell what it had claimed. (In two words it would
//! also mean "about to be published" and "half withdrawn". A count of those that are not finished, which stood here
//! before, says nothing about who they are.) What is not ordinary about a target's end is said by two bits of
//! the same layout, its *outcome*, which nobody looks at unless the slot says that there is one.

use core::mem::MaybeUninit;

use crate::{Cpu, Kernel, Plain, Word};

/// Call levels of a CPU: how many of its calls can be under way at once - from a task, an interrupt handler,
/// a closure served meanwhile. When they are used up, callers wait for one.
pub const LEVELS: usize = 4;

/// The slot is free.
pub(crate) const EMPTY: u64 = 0;
/// A call for the target in the upper bits waits to be claimed.
pub(crate) const QUEUED: u64 = 1;
/// The target in the upper bits runs it.
pub(crate) const CLAIMED: u64 = 2;
/// A call to many: the target words say how far it is.
pub(crate) const MANY: u64 = 3;
/// It was run.
pub(crate) const DONE: u64 = FINISHED;
/// Its closure panicked.
pub(crate) const PANICKED: u64 = FINISHED | 1;
/// Its target was fenced after it had claimed it.
pub(crate) const DIED: u64 = FINISHED | 2;
/// Its target was fenced before it had claimed it.
pub(crate) const REFUSED: u64 = FINISHED | 3;
/// The bit that `DONE`, `PANICKED`, `DIED` and `REFUSED` share: nobody but the owner touches the slot any more.
pub(crate) const FINISHED: u64 = 4;

/// The state word of a phase that names its target.
#[inline(always)]
pub(crate) const fn state_for(phase: u64, target: Cpu) -> u64 {
    phase | (target.number() as u64) << 8
}

/// The number of a call in its state word: 24 bits. Between its look and its claim a pass would have to stand still for
/// 16 million calls of one CPU to mistake one for another.
#[inline(always)]
pub(crate) const fn number_bits(number: u64) -> u64 {
    number << 40
}

/// The same call's state in another phase.
#[inline(always)]
pub(crate) const fn in_phase(state: u64, phase: u64) -> u64 {
    state & !0xff | phase
}

/// Whether the state is that of a call that waits for this target's claim.
#[inline(always)]
pub(crate) const fn is_queued_for(state: u64, target: Cpu) -> bool {
    state & (number_bits(1) - 1) == state_for(QUEUED, target)
}

/// Whether the state, of a phase that names its target, names this one.
pub(crate) const fn is_for(state: u64, target: Cpu) -> bool {
    state & (number_bits(1) - 1) & !0xff == (target.number() as u64) << 8
}

/// The phase of a state word.
#[inline(always)]
pub(crate) const fn phase(state: u64) -> u64 {
    state & 0xff
}

/// Where the two bits of a target are, in target words and in outcome words.
#[derive(Clone, Copy)]
pub(crate) struct TargetBits {
    /// Which word of its set.
    pub(crate) word: usize,
    /// The target words: nobody has claimed the call for it. The outcome words: its closure panicked.
    pub(crate) low: u64,
    /// The target words: it is not finished. The outcome words: it was fenced.
    pub(crate) high: u64,
}

impl TargetBits {
    #[inline(always)]
    pub(crate) const fn of(target: Cpu) -> Self {
        let low = 1 << (target.number() % TARGETS_PER_WORD);
        Self { word: target.index() / TARGETS_PER_WORD as usize, low, high: low << TARGETS_PER_WORD }
    }
}

/// How many targets share a word.
pub(crate) const TARGETS_PER_WORD: u32 = 32;
/// The lower bits of all targets of a word.
pub(crate) const LOW_BITS: u64 = 0xffff_ffff;

/// Three words that travel with a call: the address of the caller's frame, or a small `'static` closure.
pub(crate) type Luggage = MaybeUninit<[usize; 3]>;

/// What to run. Copied out of the slot by the target after it has claimed the call.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    /// Runs the closure on the CPU that is named. The luggage is the target's own copy. None before the slot's
    /// first call: so an idle slot is all zeroes, and statics cost nothing.
    pub(crate) run: Option<unsafe fn(&Luggage, Cpu)>,
    pub(crate) luggage: Luggage,
}

/// The parts of a slot besides its state word, target words and outcome words.
pub(crate) struct Slot<K: Kernel> {
    /// Written by the owner while `EMPTY`; read by targets after their claim.
    pub(crate) payload: Plain<K, Payload>,
    /// For calls to many: not zero if some target's outcome is not ordinary. Set before that target's pending bit goes.
    pub(crate) has_outcomes: Word<K>,
}

impl<K: Kernel> Slot<K> {
    pub(crate) const NEW: Self = Self {
        payload: Plain::<K, _>::new(Payload { run: None, luggage: MaybeUninit::uninit() }),
        has_outcomes: Word::<K>::new(0),
    };
}
