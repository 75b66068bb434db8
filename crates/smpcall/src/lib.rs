//! Cross-CPU calls that cannot get lost.
//!
//! A call from one CPU to another is either run exactly once, or its caller is told why not, within a bounded
//! time, whatever the interrupt hardware, the target CPU or the caller's own deadline does. (One exception: a
//! target that has begun a closure that borrows is waited for, with reports: law L4.) `no_std`, no heap,
//! no locks; a kernel implements [`Machine`] and [`Kernel`] for a zero-sized type and uses [`CrossCall`].
//!
//! The walk of a call, from the caller's closure to the target's handler and back:
//!
//! 1. [`Caller::call`] puts the closure into a frame on its own stack, the frame's address into one of its
//!    CPU's four [slots](slot), and stores `QUEUED(target)` into the slot's state.
//! 2. It [marks](mark) itself in the target's mailbox, and *rings* (sends the interrupt) only if the mailbox was quiet.
//! 3. The target's interrupt handler, or its own wait if it is waiting itself, makes a [serve pass](serve):
//!    takes all marks with one swap, and for each marked source claims the slots that name this CPU, runs the
//!    closure and stores `DONE`.
//! 4. The caller [waits](machine::wait()) for `DONE`, with its deadline, serving its own mailbox meanwhile. While the mark
//!    stands unanswered it [climbs a ladder](ladder): serve, ring again, probe by NMI, give up with a [`Diagnosis`].
//!
//! # The laws
//! L1 exactly once or told; L2 a lost ring loses no call; L3 every wait ends; L4 a given-up wait frees nothing
//! the target can still touch; L6 waiting CPUs serve. ARCHITECTURE.md has them in full, with the argument and
//! the check for each.
//!
//! # Order
//! Calls and posts of one source to one target start in program order; posts are first-in first-out per
//! target, and run before later calls of their source. Between sources there is no order. What the caller
//! wrote before a call or post is visible to the closure; what the closure wrote is visible to the caller after
//! the call.
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;

mod attend;
mod call;
mod caller;
mod counters;
mod crash;
mod crash_notes;
mod cross_call;
mod door;
mod error;
mod event_ring;
mod global;
mod hotplug;
#[cfg(test)]
#[path = "../tests/support/idle.rs"]
mod idle;
pub mod ladder;
mod lists;
mod lockup;
mod mailbox;
mod many;
pub mod mark;
mod open;
mod pending;
mod post;
mod probe;
pub mod rendezvous;
pub mod serve;
pub mod slot;
mod storage;
mod word_name;
pub mod work;

pub use call::INLINE_WORDS;
pub use caller::Caller;
pub use counters::Counters;
pub use crash::{Crash, CrashStop};
pub use crash_notes::CrashNotes;
pub use cross_call::CrossCall;
pub use error::{
    CallError, Diagnosis, ExclusiveError, ManyError, ManyFailures, PostError, PostRefusal, TargetState,
};
pub use event_ring::{EventRing, EventSlot};
pub use hotplug::{Callback, FenceError, Hotplug, HotplugError, Life, Refused, Stage};
pub use lockup::{Answer, BackTraceError, Lockup, LockupKind, Lockups};
pub use mailbox::{Mailbox, Mailboxes};
pub use post::{Deferred, Handover, Post, Posted};
pub use rendezvous::RendezvousError;
pub use slot::LEVELS;
pub use smpcall_machine as machine;
pub use smpcall_machine::{Cpu, CpuMask, CpuSet, Deadline, Instant, InterruptsOff, Machine};
pub use smpcall_vmcore as vmcore;
pub use storage::{Storage, leaf_words, target_words};
pub use word_name::WordName;

use core::time::Duration;

/// Where a kernel's mailboxes are, how patient it is, and what it wants to be told.
///
/// One per kernel, for the same zero-sized type as [`Machine`]; the constants have sensible defaults.
///
/// # Safety
/// 1. [`mailboxes`](Kernel::mailboxes) returns the same mailboxes at every call, which no other kernel type uses.
/// 2. [`CrossCall::handle_ring`] and [`CrossCall::tick`] are called from interrupt handlers only, which have
///    interrupted code that had interrupts enabled: they run closures of others, and what an [`InterruptsOff`] guard
///    protects is not in use then.
pub unsafe trait Kernel: Machine {
    /// The mailboxes of all CPUs: the same ones at every call.
    fn mailboxes() -> &'static Mailboxes<Self>;

    /// How long a caller waits before it looks whether its ring was answered; each further look comes twice
    /// as late, up to [`LONGEST_BACKOFF`](Kernel::LONGEST_BACKOFF). Longer than an interrupt takes to arrive
    /// and its handler to begin, or rings are repeated in vain.
    const FIRST_BACKOFF: Duration = Duration::from_micros(250);

    /// The longest time between two looks.
    const LONGEST_BACKOFF: Duration = Duration::from_millis(8);

    /// After how many unanswered repetitions of a ring the target is probed by NMI.
    const PROBE_AFTER: u32 = 3;

    /// After how many closures and posts an interrupt returns although its mailbox is not empty, so that a flood
    /// starves nobody. At least 1; a pass always runs the posts that it found and the calls of one source, and the
    /// next pass goes on with the next source. What is left waits for its callers' back-off or the tick, and so do
    /// calls made meanwhile: a limit that ordinary work reaches is too low. A CPU that waits with interrupts disabled
    /// looks at what it waits for after every pass.
    const BUDGET: u32 = 8192;

    /// How long a caller without a deadline waits for a call level; see [`CallError::Busy`].
    const LEVEL_WAIT: Duration = Duration::from_secs(1);

    /// A reschedule request was taken on this CPU. Called with interrupts disabled.
    fn reschedule() {}

    /// A deadline has passed, but the target is running the closure, which borrows: the wait goes on (law L4).
    /// Called on the waiting CPU, in the context of the call, at the deadline and then with doubling intervals. The
    /// target is none for a call to many if it is not known which of them it is.
    fn overdue(target: Option<Cpu>, diagnosis: &Diagnosis) {
        let _ = (target, diagnosis);
    }
}

/// Shared words of a kernel's machine.
pub(crate) type Word<K> = machine::Word<<K as Machine>::Memory>;
/// Shared pointers of a kernel's machine.
pub(crate) type Pointer<K, T> = machine::Pointer<<K as Machine>::Memory, T>;
/// Plain data of a kernel's machine, guarded by words.
pub(crate) type Plain<K, T> = machine::Plain<<K as Machine>::Memory, T>;
