//! A call to one CPU that is under way: the wait for it, the race at its deadline, and the promise that nothing
//! the target can still touch is freed (law L4).

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::attend::Attended;
use crate::ladder::Ladder;
use crate::serve::Here;
use crate::slot::{CLAIMED, DIED, DONE, EMPTY, FINISHED, PANICKED, QUEUED, REFUSED, phase};
use crate::{CallError, Caller, Cpu, Deadline, Instant, InterruptsOff, Kernel, Word};
use smpcall_machine::{EventKind, Woken};

/// A queued call. Dropping it unsettled (a closure served meanwhile panics) withdraws it or waits for its end.
pub(crate) struct Pending<K: Kernel> {
    /// Where the call started: its slot is there, even if the waiter migrates.
    pub(crate) here: Here<K>,
    pub(crate) level: usize,
    pub(crate) target: Cpu,
    /// The state of its slot while it is queued.
    pub(crate) queued: u64,
    /// When it was rung for, or queued if somebody else had rung: from then on an answer is due.
    pub(crate) rung_at: Instant,
    pub(crate) settled: bool,
}

impl<K: Kernel> Pending<K> {
    fn state(&self) -> &'static Word<K> {
        &self.here.mine.states.0[self.level]
    }

    /// Tries to take the call back. The one step that decides against the target's claim.
    fn withdraw(&mut self, kind: EventKind) -> bool {
        // Release: the slot's next owner may be another context. Acquire on failure: the call may be finished.
        if self.state().compare_exchange(self.queued, EMPTY, Release, Acquire).is_err() {
            return false;
        }
        self.settle(kind);
        true
    }

    fn settle(&mut self, kind: EventKind) {
        self.settled = true;
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            let counters = here.mine.counters();
            match kind {
                EventKind::CallWithdrawn => counters.calls_withdrawn.add(1),
                EventKind::CallRefused => counters.calls_refused.add(1),
                _ => {}
            }
            here.boxes().trace(here.me, kind, Some(self.target), self.level, 0);
        }
    }

    /// The door was closed when the call was marked. The closing CPU may have found it all the same.
    #[cold]
    pub(crate) fn refused(mut self, caller: &Caller<'_, K>, may_leave: bool) -> Result<(), CallError> {
        if self.withdraw(EventKind::CallRefused) {
            return Err(CallError::Offline);
        }
        self.wait(caller, may_leave)
    }

    /// Waits until the call has run or is withdrawn, serving meanwhile.
    #[inline(always)]
    pub(crate) fn wait(mut self, caller: &Caller<'_, K>, may_leave: bool) -> Result<(), CallError> {
        let first_look = Deadline::at(self.rung_at.plus(K::FIRST_BACKOFF)).min(caller.deadline);
        if !caller.interrupts_off && self.wait_once(false, first_look) == Woken::Met(0) {
            let result = self.complete();
            // It is settled: nothing to drop, and so nothing that has to be in memory.
            core::mem::forget(self);
            return result;
        }
        self.wait_on_the_ladder(caller, may_leave)
    }

    /// The same for those who poll, and for those whose first look has come without an answer.
    #[inline(never)]
    fn wait_on_the_ladder(mut self, caller: &Caller<'_, K>, may_leave: bool) -> Result<(), CallError> {
        let mut ladder = Ladder::new(caller, self.rung_at);
        let attended = caller.interrupts_off.then(|| Attended::begin(self.here));
        let mut looks_now = !caller.interrupts_off;
        let result = loop {
            if !core::mem::take(&mut looks_now)
                && let Woken::Met(0) = self.wait_once(caller.interrupts_off, ladder.next_step())
            {
                break self.complete();
            }
            let now = K::now();
            if ladder.is_due(now)
                && let Some(result) = self.climb(&mut ladder, now, may_leave)
            {
                break result;
            }
        };
        drop(attended);
        result
    }

    #[inline(always)]
    fn wait_once(&self, poll: bool, until: Deadline) -> Woken {
        self.here.wait_serving(self.state().equals(FINISHED, FINISHED), poll, until)
    }

    #[inline(always)]
    fn complete(&mut self) -> Result<(), CallError> {
        let pinned = InterruptsOff::<K>::new();
        // Relaxed: the wait has read it with acquire, and it does not change any more.
        let outcome = self.state().load(Relaxed);
        // Release: the slot's next owner, possibly after a migration, writes the payload next.
        self.state().store(EMPTY, Release);
        self.settled = true;
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            let now = K::now();
            here.mine.counters().longest_wait.raise(now.since(self.rung_at).as_nanos() as u64);
            here.trace_at(now, EventKind::CallCompleted, Some(self.target), self.level, 0);
        }
        if outcome == DONE { Ok(()) } else { Err(Self::ended_badly(outcome)) }
    }

    /// What a caller is told whose call is finished but not done.
    #[cold]
    fn ended_badly(outcome: u64) -> CallError {
        debug_assert!(matches!(outcome, PANICKED | DIED | REFUSED), "only these end a call besides");
        match outcome {
            DIED => CallError::TargetDied,
            REFUSED => CallError::Offline,
            _ => CallError::Panicked,
        }
    }

    /// The next step of the ladder; the result if the wait ends with it.
    #[cold]
    fn climb(&mut self, ladder: &mut Ladder, now: Instant, may_leave: bool) -> Option<Result<(), CallError>> {
        if ladder.has_ended(now) {
            let diagnosis = ladder.diagnose(self.here.boxes(), self.target, now);
            if self.withdraw(EventKind::CallWithdrawn) {
                return Some(Err(CallError::TimedOut(diagnosis)));
            }
            if phase(self.state().load(Relaxed)) == CLAIMED {
                if may_leave {
                    return Some(Err(self.leave_behind(diagnosis)));
                }
                ladder.go_on(self.here.boxes(), self.here.me, Some(self.target), now);
            }
            return None;
        }
        let mut closed = false;
        // Relaxed: only a queued call can be unanswered; a claim that is just being made is seen next time.
        let queued = phase(self.state().load(Relaxed)) == QUEUED;
        let target = queued.then_some(self.target);
        ladder.look::<K>(self.here.me, target.into_iter(), now, |_, _| closed = true);
        (closed && self.withdraw(EventKind::CallRefused)).then_some(Err(CallError::Offline))
    }

    /// Leaves a claimed `'static` call: its level is free when the target has finished it.
    fn leave_behind(&mut self, diagnosis: crate::Diagnosis) -> CallError {
        // Release: whoever takes the level over, having read this, does so after this caller's last look at it.
        self.here.mine.left_behind.fetch_or(1 << self.level, Release);
        self.settle(EventKind::CallLeft);
        CallError::Unfinished(diagnosis)
    }
}

impl<K: Kernel> Drop for Pending<K> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.settled {
            self.settle_while_unwinding();
        }
    }
}

impl<K: Kernel> Pending<K> {
    /// The target may hold pointers into frames that are about to go.
    #[cold]
    fn settle_while_unwinding(&mut self) {
        if self.withdraw(EventKind::CallWithdrawn) {
            return;
        }
        let polls = !K::interrupts_enabled();
        while self.wait_once(polls, Deadline::NEVER) != Woken::Met(0) {}
        // What it has half taken or written would be dropped by the frames that go. Relaxed: see `complete`.
        assert!(self.state().load(Relaxed) != DIED, "a target died while its caller was unwinding");
        self.state().store(EMPTY, Release);
    }
}
