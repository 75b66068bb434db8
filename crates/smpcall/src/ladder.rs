//! The recovery ladder: what a waiter does while its call is not run.
//!
//! 1. It serves its own mailbox (law L6).
//! 2. If its mark stands unanswered, it rings again - unless another waiter has, within the last back-off - and
//!    looks again after twice the time.
//! 3. After [`Kernel::PROBE_AFTER`] repetitions, or at the last look before the deadline, it sends an NMI to
//!    learn whether the target is alive, where, and whether its interrupts are disabled.
//! 4. At the deadline it withdraws the call, if the target has not claimed it, and returns the diagnosis.

use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use crate::door::OPEN;
use crate::serve::Here;
use crate::{
    Caller, Cpu, CpuMask, Deadline, Diagnosis, Instant, InterruptsOff, Kernel, Mailbox, Mailboxes,
    TargetState,
};
use smpcall_machine::{CpuSetStorage, EventKind, Ipi};

/// How far a waiter has climbed, and when it looks next.
pub(crate) struct Ladder {
    started: Instant,
    /// The caller's; after it has passed on a claimed call, when to report next.
    deadline: Deadline,
    patience: Duration,
    interval: Duration,
    next_look: Instant,
    repeated: u32,
    probed: Option<Probed>,
}

/// An NMI probe that was sent, and the target's count of answers before it.
#[derive(Clone, Copy)]
pub(crate) struct Probed {
    pub(crate) target: Cpu,
    pub(crate) answers_before: u64,
}

impl Ladder {
    #[inline(always)]
    pub(crate) fn new<K: Kernel>(caller: &Caller<'_, K>, rung_at: Instant) -> Self {
        Self {
            started: rung_at,
            deadline: caller.deadline,
            patience: Duration::ZERO,
            interval: K::FIRST_BACKOFF,
            next_look: rung_at.plus(K::FIRST_BACKOFF),
            repeated: 0,
            probed: None,
        }
    }

    /// When the wait is to be interrupted for the next step.
    #[inline(always)]
    pub(crate) fn next_step(&self) -> Deadline {
        self.deadline.min(Deadline::at(self.next_look))
    }

    /// The deadline; after it has passed on a claimed call, when to report next.
    pub(crate) fn next_report(&self) -> Deadline {
        self.deadline
    }

    /// Whether the time for the next step has come.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next_step().has_passed(now)
    }

    /// Whether the deadline has passed.
    pub(crate) fn has_ended(&self, now: Instant) -> bool {
        self.deadline.has_passed(now)
    }

    /// The deadline passed, and the call of `source` is claimed, by `target` if that is known: reports, and goes on
    /// with twice the patience.
    pub(crate) fn go_on<K: Kernel>(
        &mut self,
        boxes: &Mailboxes<K>,
        source: Cpu,
        target: Option<Cpu>,
        now: Instant,
    ) {
        let running = TargetState::Busy { caller: Some(source) };
        let diagnosis = Diagnosis {
            target: target.map_or(running, |target| boxes.state_of(target, self.probed)),
            rings_repeated: self.repeated,
            waited: now.since(self.started),
        };
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.mine.counters().calls_overdue.add(1);
            here.boxes().trace(here.me, EventKind::CallOverdue, target, 0, 0);
        }
        drop(pinned);
        K::overdue(target, &diagnosis);
        self.patience = if self.patience.is_zero() {
            now.since(self.started).max(K::FIRST_BACKOFF)
        } else {
            self.patience.saturating_mul(2)
        };
        self.deadline = Deadline::at(now.plus(self.patience));
        self.next_look = now.plus(self.interval);
    }

    /// One step: `source` still waits for `targets`, whose calls may be unclaimed. Returns those found closed.
    pub(crate) fn look<K: Kernel>(
        &mut self,
        source: Cpu,
        targets: impl Iterator<Item = Cpu>,
        now: Instant,
        mut closed: impl FnMut(&Here<K>, Cpu),
    ) {
        let pinned = InterruptsOff::<K>::new();
        self.interval = self.interval.saturating_mul(2).min(K::LONGEST_BACKOFF);
        self.next_look = now.plus(self.interval);
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return };
        here.serve();

        let is_last = self.deadline.has_passed(self.next_look);
        let mut unanswered = <K::CpuSet as CpuSetStorage>::EMPTY;
        for target in targets {
            let Some(theirs) = here.boxes().get(target) else { continue };
            // Relaxed: a hint; the withdrawal that follows decides.
            if theirs.door.0.load(Relaxed) & OPEN == 0 {
                closed(&here, target);
                continue;
            }
            if here.boxes().is_unanswered(target, theirs, source)
                && theirs.may_be_rung_again(now, K::FIRST_BACKOFF)
            {
                unanswered.insert(target);
            }
            if self.probed.is_none() && (is_last || self.repeated >= K::PROBE_AFTER) {
                self.probed = here.boxes().probe(here.me, target, theirs);
            }
        }
        self.ring_again(here, &unanswered);
    }

    fn ring_again<K: Kernel>(&mut self, here: Here<K>, targets: &CpuMask) {
        let Some(first) = targets.first() else { return };
        self.repeated += 1;
        let mut count = 0;
        for target in targets {
            here.boxes().trace(here.me, EventKind::RungAgain, Some(target), self.repeated as usize, 0);
            count += 1;
        }
        here.mine.counters().rings_repeated.add(count);
        if count == 1 {
            here.boxes().note_ring(here.me, Some(first), K::send(first, Ipi::Ring));
        } else {
            here.boxes().note_ring(here.me, None, K::send_many(targets, Ipi::Ring));
        }
    }

    /// What is known of a target that has not run its call.
    pub(crate) fn diagnose<K: Kernel>(&self, boxes: &Mailboxes<K>, target: Cpu, now: Instant) -> Diagnosis {
        Diagnosis {
            target: boxes.state_of(target, self.probed),
            rings_repeated: self.repeated,
            waited: now.since(self.started),
        }
    }
}

impl<K: Kernel> Mailbox<K> {
    /// Whether this CPU is the one to repeat the ring: nobody else has within `quiet`.
    pub(crate) fn may_be_rung_again(&self, now: Instant, quiet: Duration) -> bool {
        // Relaxed: the word only spreads the rings out; whether a ring is due was seen in the door. Wrapping: a
        // time stamp from a CPU whose clock is ahead must not keep others from ringing.
        let last = self.rung_again_at.load(Relaxed);
        if last != 0 && now.as_nanos().wrapping_sub(last) < quiet.as_nanos() as u64 {
            return false;
        }
        let now = now.as_nanos().max(1);
        self.rung_again_at.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idle::Idle;

    crate::mailboxes! { static MAILBOXES: Idle = 1 CPUs, 0 events }

    // SAFETY: one static; no handler exists.
    unsafe impl Kernel for Idle {
        fn mailboxes() -> &'static Mailboxes<Self> {
            &MAILBOXES
        }
    }

    #[test]
    fn waiters_share_a_back_off_but_not_with_a_cpu_whose_clock_is_ahead() {
        let mailbox = Mailbox::<Idle>::NEW;
        let quiet = Duration::from_micros(250);
        let at = |micros: u64| Instant::from_nanos(micros * 1_000);
        assert!(mailbox.may_be_rung_again(at(1_000), quiet), "nobody has rung yet");
        assert!(!mailbox.may_be_rung_again(at(1_249), quiet), "somebody has, just now");
        assert!(mailbox.may_be_rung_again(at(1_250), quiet));
        // A CPU whose clock is ten seconds ahead rings; the others must not wait for their clocks to catch up.
        assert!(mailbox.may_be_rung_again(at(10_001_000), quiet));
        assert!(mailbox.may_be_rung_again(at(2_000), quiet));
        assert!(!mailbox.may_be_rung_again(at(2_100), quiet));
    }
}
