//! Marking a mailbox, and ringing its owner if nobody else does.
//!
//! A mark is a bit: idempotent, and it stays in place when the call behind it is withdrawn. All accesses here
//! and the two swaps of a [pass](crate::serve) are sequentially consistent, which on x86 costs nothing and is more than
//! they need; acquire and release, of which none can be spared, are enough:
//!
//! * Flat: the caller stores its slot's state and then ors the door; the target swaps the door and then loads
//!   the state. The or always writes, so the swap that takes the bit synchronises with it.
//! * With leaves: the caller ors the leaf and then *loads* the door, and goes away when the group bit is
//!   there; the target swaps the door and then swaps the leaf. Both accesses to the leaf are read-modify-writes,
//!   so one of them reads what the other has left. If that is the or, it acquires what the swap has released: then the
//!   load finds the door as that pass has left it, or later, and a group bit there is one that a later pass takes.
//!   (Explored with loom, which also loses a call without the or's acquire or the swap's release.)

use core::sync::atomic::Ordering::SeqCst;

use crate::door::{ATTENDED, OPEN, group_bit};
use crate::serve::Here;
use crate::{Cpu, CpuMask, Kernel, Mailbox, Mailboxes};
use smpcall_machine::{Deadline, EventKind, Instant, Ipi, Woken, wait};

/// What a mark met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    /// A quiet mailbox: whoever marked it must ring.
    Quiet,
    /// A mailbox that somebody has rung for, or whose owner looks by itself.
    Noticed,
    /// A closed door: the slot's state decides whether the call was run in time.
    Closed,
}

impl Marked {
    #[inline(always)]
    fn from_door(door: u64) -> Self {
        if door == OPEN {
            Self::Quiet
        } else if door & OPEN == 0 {
            Self::Closed
        } else {
            Self::Noticed
        }
    }
}

impl<K: Kernel> Mailboxes<K> {
    /// Marks `source` in the mailbox of `target`. Interrupts are off, and stay off until the ring is sent: an
    /// interrupt in between would strand everybody who relies on this ring.
    #[inline(always)]
    pub(crate) fn mark(&self, target: Cpu, mailbox: &Mailbox<K>, source: Cpu) -> Marked {
        if self.is_flat() {
            mailbox.mark_kind(group_bit(source.index()))
        } else {
            self.mark_leaf(target, mailbox, source)
        }
    }

    /// The same on machines with leaves.
    #[inline(never)]
    fn mark_leaf(&self, target: Cpu, mailbox: &Mailbox<K>, source: Cpu) -> Marked {
        let place = self.mark_place(target, source);
        if let Some((leaf, bit)) = place.leaf {
            leaf.fetch_or(bit, SeqCst);
            let door = mailbox.door.0.load(SeqCst);
            if door & place.group != 0 {
                return Marked::from_door(door);
            }
        }
        mailbox.mark_kind(place.group)
    }

    /// Whether the mark of `source` still stands in the mailbox of `target` and its owner does not look by
    /// itself: only then is a ring unanswered.
    pub(crate) fn is_unanswered(&self, target: Cpu, mailbox: &Mailbox<K>, source: Cpu) -> bool {
        let place = self.mark_place(target, source);
        if let Some((leaf, bit)) = place.leaf
            && leaf.load(SeqCst) & bit == 0
        {
            return false;
        }
        mailbox.door.0.load(SeqCst) & (place.group | ATTENDED | OPEN) == place.group | OPEN
    }

    /// Waits until the mark of `source` was taken from the mailbox of `target`, or the mailbox is closed; false at the deadline.
    /// Nobody but this context marks for `source` meanwhile.
    #[track_caller]
    pub(crate) fn await_taken(
        &self,
        target: Cpu,
        mailbox: &Mailbox<K>,
        source: Cpu,
        deadline: Deadline,
    ) -> bool {
        let place = self.mark_place(target, source);
        let door = &mailbox.door.0;
        let taken = match place.leaf {
            Some((leaf, bit)) => leaf.equals(bit, 0),
            None => door.equals(place.group, 0),
        };
        wait::<K>(&[taken, door.equals(OPEN, 0)], deadline) != Woken::Deadline
    }

    pub(crate) fn note_ring(
        &self,
        me: Cpu,
        target: Option<Cpu>,
        sent: Result<(), smpcall_machine::SendError>,
    ) {
        if sent.is_err() {
            if let Some(mine) = self.get(me) {
                mine.counters().rings_failed.add(1);
            }
            self.trace(me, EventKind::RingFailed, target, 0, 0);
        }
    }
}

impl<K: Kernel> Mailbox<K> {
    /// Sets a bit of the door.
    #[inline(always)]
    pub(crate) fn mark_kind(&self, bit: u64) -> Marked {
        Marked::from_door(self.door.0.fetch_or(bit, SeqCst))
    }
}

impl<K: Kernel> Here<K> {
    /// Rings one CPU. A send that fails counts as a lost ring: whoever waits rings again.
    #[inline]
    pub(crate) fn ring(self, target: Cpu) {
        self.ring_at(K::now(), target);
    }

    /// As [`ring`](Self::ring), at a time that was just read.
    #[inline(always)]
    pub(crate) fn ring_at(self, time: Instant, target: Cpu) {
        self.trace_at(time, EventKind::Rung, Some(target), 0, 1);
        self.mine.counters().rings_sent.add(1);
        if let failed @ Err(_) = K::send(target, Ipi::Ring) {
            self.boxes().note_ring(self.me, Some(target), failed);
        }
    }

    /// Rings several CPUs, at a time that was just read.
    pub(crate) fn ring_many_at(self, time: Instant, targets: &CpuMask, count: u64) {
        self.trace_at(time, EventKind::Rung, None, 0, count);
        self.mine.counters().rings_sent.add(count);
        if let failed @ Err(_) = K::send_many(targets, Ipi::Ring) {
            self.boxes().note_ring(self.me, None, failed);
        }
    }
}
