//! Who calls, until when, and from which context.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::attend::Attended;
use crate::door::{MARKS, OPEN};
use crate::serve::Here;
use crate::slot::{EMPTY, FINISHED, LEVELS};
use crate::{CallError, Deadline, Instant, InterruptsOff, Kernel, Mailbox};
use smpcall_machine::{Woken, wait};

/// A deadline and a context, for one call: made by [`CrossCall::within`](crate::CrossCall::within),
/// [`until`](crate::CrossCall::until) and [`for_ever`](crate::CrossCall::for_ever).
///
/// Calls are made from task context or from an interrupt handler, with interrupts enabled; with interrupts
/// disabled only after [`with_interrupts_off`](Caller::with_interrupts_off); never from an NMI handler. The
/// closures run on their targets with interrupts disabled, and so does one for the own CPU.
///
/// A task that is preempted while it waits keeps its call level. So call with preemption disabled, or accept that
/// others of this CPU wait for a level meanwhile. A call to many keeps a few sets of CPUs on the stack, half a
/// kilobyte each on a machine of 4,096 CPUs.
#[must_use = "a caller does nothing until it calls"]
pub struct Caller<'off, K: Kernel> {
    pub(crate) started: Instant,
    pub(crate) deadline: Deadline,
    pub(crate) interrupts_off: bool,
    guard: PhantomData<&'off mut InterruptsOff<K>>,
}

impl<K: Kernel> Caller<'static, K> {
    pub(crate) fn new(started: Instant, deadline: Deadline) -> Self {
        Self { started, deadline, interrupts_off: false, guard: PhantomData }
    }

    /// Calls with interrupts disabled. While it waits, this CPU polls its mailbox and runs the closures of
    /// others; borrowing the guard ensures that nothing that this guard protects is in use meanwhile. (What is
    /// protected by another guard around it is the caller's to think of.)
    pub fn with_interrupts_off(self, guard: &mut InterruptsOff<K>) -> Caller<'_, K> {
        let _ = guard;
        Caller { started: self.started, deadline: self.deadline, interrupts_off: true, guard: PhantomData }
    }
}

impl<K: Kernel> Caller<'_, K> {
    /// A caller that polls, until this deadline: for what disables interrupts by itself.
    pub(crate) fn polling(&self, deadline: Deadline) -> Caller<'static, K> {
        Caller { started: self.started, deadline, interrupts_off: true, guard: PhantomData }
    }

    /// Pins the caller to its CPU, if its context allows calls.
    #[inline(always)]
    pub(crate) fn pin(&self) -> Result<(InterruptsOff<K>, Here<K>), CallError> {
        if K::in_nmi() {
            return Err(CallError::FromNmi);
        }
        let pinned = InterruptsOff::new();
        if !self.interrupts_off && !pinned.were_enabled() {
            return Err(CallError::InterruptsOff);
        }
        let here = Here::new(pinned.cpu()).ok_or(CallError::NoSuchCpu)?;
        if self.interrupts_off && here.mine.own.0.stopped.get() != 0 {
            // Nobody serves: it would wait until its deadline, and the machine with it.
            return Err(CallError::InRendezvous);
        }
        Ok((pinned, here))
    }

    /// Whether the deadline had passed when the caller was made: then nothing is sent.
    #[inline(always)]
    pub(crate) fn check_deadline(&self) -> Result<(), CallError> {
        if self.deadline.has_passed(self.started) { Err(CallError::DeadlinePassed) } else { Ok(()) }
    }

    /// Waits for a free call level of this CPU, serving meanwhile. Another CPU may be "this one" afterwards.
    #[cold]
    pub(crate) fn wait_for_level(
        &self,
        pinned: InterruptsOff<K>,
        here: Here<K>,
    ) -> Result<(InterruptsOff<K>, Here<K>), CallError> {
        let limit = match self.deadline {
            Deadline::NEVER => Deadline::at(self.started.plus(K::LEVEL_WAIT)),
            deadline => deadline,
        };
        if self.interrupts_off {
            let own = &here.mine.own.0;
            if own.starving.get() != 0 {
                // This one runs inside a closure that the other one serves: it could only dig deeper.
                return Err(CallError::Busy);
            }
            let starving = Starving::begin(here);
            let attended = Attended::begin(here);
            let free = here.mine.wait_until_level_is_free(here, true, limit);
            drop(attended);
            drop(starving);
            return if free { Ok((pinned, here)) } else { Err(CallError::Busy) };
        }
        drop(pinned);
        if !here.mine.wait_until_level_is_free(here, false, limit) {
            return Err(CallError::Busy);
        }
        self.pin()
    }
}

impl<K: Kernel> Mailbox<K> {
    /// A level that no call uses. On the own CPU, with interrupts off: nobody else takes it.
    #[inline(always)]
    pub(crate) fn free_level(&self) -> Option<usize> {
        // Acquire: the slot's last owner may have freed it on another CPU, and its payload is written next.
        let free = (0..LEVELS).find(|&level| self.states.0[level].load(Acquire) == EMPTY);
        if free.is_some() { free } else { self.reclaim_level() }
    }

    /// A level whose `'static` call was left behind and has finished since.
    #[cold]
    fn reclaim_level(&self) -> Option<usize> {
        // Acquire: the caller who left a call behind has looked at its slot for the last time.
        let left = self.left_behind.load(Acquire);
        (0..LEVELS).find(|&level| {
            let finished = left & 1 << level != 0 && self.states.0[level].load(Acquire) & FINISHED != 0;
            if finished {
                self.left_behind.fetch_and(!(1 << level), Relaxed);
                self.states.0[level].store(EMPTY, Relaxed);
            }
            finished
        })
    }

    fn wait_until_level_is_free(&self, here: Here<K>, poll: bool, limit: Deadline) -> bool {
        let poll = poll && here.mine.door.0.load(Relaxed) & OPEN != 0;
        loop {
            // Acquire: see `reclaim_level`.
            let left = self.left_behind.load(Acquire);
            let free = |level: usize| {
                let state = &self.states.0[level];
                if left & 1 << level == 0 {
                    state.equals(!0, EMPTY)
                } else {
                    state.equals(FINISHED, FINISHED)
                }
            };
            let another_left = self.left_behind.differs(!0, left);
            let woken = if poll {
                let marked = here.mine.door.0.differs(MARKS, 0);
                wait::<K>(&[free(0), free(1), free(2), free(3), another_left, marked], limit)
            } else {
                wait::<K>(&[free(0), free(1), free(2), free(3), another_left], limit)
            };
            match woken {
                Woken::Met(level) if level < LEVELS => return true,
                Woken::Met(LEVELS) => {}
                Woken::Met(_) => drop(here.pass(K::BUDGET)),
                Woken::Deadline => return false,
            }
            if limit.has_passed(K::now()) {
                return false;
            }
        }
    }
}

/// A caller with interrupts off waits for a level of this CPU, until this is dropped.
struct Starving<K: Kernel>(Here<K>);

impl<K: Kernel> Starving<K> {
    fn begin(here: Here<K>) -> Self {
        here.mine.own.0.starving.set(1);
        Self(here)
    }
}

impl<K: Kernel> Drop for Starving<K> {
    fn drop(&mut self) {
        self.0.mine.own.0.starving.set(0);
    }
}
