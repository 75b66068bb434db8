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
//! | `DONE`, `PANICKED` | `EMPTY` | owner | store |
//! | `EMPTY` | `MANY` | owner | payload, count, state, then claim bits, then marks |
//! | claim bit 1 | 0, claimed | target | fetch-and; later count - 1: its last touch |
//! | claim bit 1 | 0, withdrawn | owner | fetch-and, then count - 1 |
//! | `MANY`, count 0 | `EMPTY` | owner | store |

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
/// A call to many: the claim bits and the count say how far it is.
pub(crate) const MANY: u64 = 3;
/// It was run.
pub(crate) const DONE: u64 = FINISHED;
/// Its closure panicked.
pub(crate) const PANICKED: u64 = FINISHED | 1;
/// The bit that `DONE` and `PANICKED` share.
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

/// The phase of a state word.
#[inline(always)]
pub(crate) const fn phase(state: u64) -> u64 {
    state & 0xff
}

/// The count of a call to many: this many targets are not finished.
pub(crate) const COUNT: u64 = 0xffff_ffff;
/// Set in the count when a closure panicked on some target.
pub(crate) const SOME_PANICKED: u64 = 1 << 32;

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

/// The parts of a slot besides its state word and claim bits.
pub(crate) struct Slot<K: Kernel> {
    /// Written by the owner while `EMPTY`; read by targets after their claim.
    pub(crate) payload: Plain<K, Payload>,
    /// For calls to many: targets that are not finished, and [`SOME_PANICKED`].
    pub(crate) count: Word<K>,
}

impl<K: Kernel> Slot<K> {
    pub(crate) const NEW: Self = Self {
        payload: Plain::<K, _>::new(Payload { run: None, luggage: MaybeUninit::uninit() }),
        count: Word::<K>::new(0),
    };
}
