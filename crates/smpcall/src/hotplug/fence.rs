//! Declaring a CPU dead: fencing it, and settling what it leaves behind.
//!
//! What a CPU that stopped between any two instructions leaves, and what becomes of it:
//!
//! | what | what becomes of it |
//! |---|---|
//! | calls for it, unclaimed | refused: their callers are told `Offline` |
//! | calls for it, claimed | their callers are told [`TargetDied`](crate::CallError::TargetDied); they may have run in part |
//! | posts and work for it, not begun | handed to [`Deferred::abandoned`](crate::Deferred::abandoned) here |
//! | its own calls, unclaimed | withdrawn |
//! | its own calls, claimed | waited for: they touch the stacks of its tasks; those it had left behind end by themselves |
//! | a mark that it had set and not rung for | every other CPU is rung, and told to look for posts |
//! | posts that it was just moving from one of its lists to another | likewise: see [`lists`](crate::lists) |
//! | a shared post that it was just pushing | not on a list, it stays *contended* for ever: only the dead CPU knew it |
//! | what it had begun to run | lost with it, like everything that its tasks held; of posts, counted as `posts_torn` |
//! | rings, probes, back traces and lockups of it that others remember | forgotten by its next life, as it begins |
//!
//! From when the CPU is asked until its mailbox is closed interrupts are disabled on the controller, and it serves nobody (law L6
//! has this limit, too): a closure that it served, or a handler that interrupted it, could wait for the very CPU that only the
//! controller can fence, and would keep both for ever. Who waits for the controller meanwhile waits for at most the limit, and
//! what the fence takes.
//!
//! | what the dead CPU controlled | what becomes of it |
//! |---|---|
//! | the right to change the set of CPUs | is gone with it: nobody knows which callback it was in the middle of. It cannot be declared dead; a crash stop is left |
//! | a rendezvous before its run stage | the others give up at its deadline |
//! | a rendezvous in its run stage | see the caveats of [`rendezvous`](crate::rendezvous): nobody can be declared dead there |
//!
//! A list never stands half changed by a push: a node is on it or not, by one compare-exchange, and who pushes touches
//! nothing else of the list. The node's own state is written before and after.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::time::Duration;

use super::control::Control;
use super::{ALIVE, DYING, FENCED, Hotplug, HotplugError, LATE, Life, PARKED, PHASE, SETTLED, STARTING};
use crate::door::{OPEN, POSTS};
use crate::mark::Marked;
use crate::serve::Here;
use crate::slot::{CLAIMED, DIED, EMPTY, FINISHED, LEVELS, LOW_BITS, QUEUED, REFUSED, TARGETS_PER_WORD};
use crate::slot::{TargetBits, is_for, phase};
use crate::{Cpu, CrossCall, Deadline, InterruptsOff, Mailbox};
use smpcall_machine::{CpuSetStorage, Ipi, Woken, wait};

impl<K: Hotplug> CrossCall<K> {
    /// Gives up a CPU that no longer answers: makes sure that it does not, by fencing it, and settles what it has left
    /// behind. When this has returned `Ok` it is offline, and can be brought up again.
    ///
    /// First it is asked, by NMI if it takes NMIs and by a ring if not, for up to the limit: a CPU that answers is not
    /// dead. Interrupts are disabled here meanwhile and while it is fenced, and nobody is served: choose the limit accordingly.
    /// Nor is one that goes on by itself on its way up or down, where it can be neither called nor takes NMIs.
    /// `offline` and `dying` callbacks are not run; `dead` is.
    ///
    /// From a task that stays on its CPU, with interrupts enabled. Waits, beyond the limit for the answer, for as long
    /// again until other CPUs have finished the calls that the dead one had made.
    ///
    /// # Errors
    /// [`HotplugError`]. After [`Fence`](HotplugError::Fence) nothing was touched. After
    /// [`Unfinished`](HotplugError::Unfinished) it is fenced, but some closure that a task of it had sent still runs: call
    /// it again.
    ///
    /// # Safety
    /// 1. What the CPU was in the middle of stays there: whatever its closures and tasks had locked or borrowed mutably,
    ///    from callers on other CPUs too, is used afterwards only by code that copes with any state of it.
    /// 2. No task that began a call on that CPU has migrated in the middle of it (calls are made with preemption
    ///    disabled): its slot is given to others.
    pub unsafe fn declare_dead(cpu: Cpu, limit: Duration) -> Result<(), HotplugError> {
        let control = Control::<K>::take(cpu, limit)?;
        if cpu == control.me() {
            return Err(HotplugError::OneSelf);
        }
        if cpu == K::boot_cpu() {
            return Err(HotplugError::BootCpu);
        }
        control.declare_dead()
    }
}

impl<K: Hotplug> Control<K> {
    fn declare_dead(&self) -> Result<(), HotplugError> {
        let life = self.life() & PHASE;
        match life {
            SETTLED if !self.is_open() => return Err(HotplugError::AlreadyOffline),
            PARKED => {
                self.bury_parked();
                return Ok(());
            }
            FENCED => self.settle_calls_for_it(),
            _ => {
                // Nothing runs on top of this that could wait for that CPU.
                let alone = InterruptsOff::<K>::new();
                if self.answers() {
                    return Err(HotplugError::IsAlive);
                }
                self.fence()?;
                self.set_life(FENCED);
                self.settle_calls_for_it();
                drop(alone);
            }
        }
        self.settle_its_calls(Deadline::within::<K>(self.limit))?;
        // SAFETY: it is fenced, and its accesses happen before the return of the fence. Whoever controls it is alone. Its
        // list is closed by this very step.
        unsafe { crate::lists::abandon_posts::<K>(self.cpu) };
        self.ring_the_others();
        self.forget_contexts();
        if life == LATE {
            // Its `prepare` was taken back when it did not come.
            self.set_life(SETTLED);
        } else {
            self.bury();
        }
        Ok(())
    }

    /// Whether the CPU answers before the deadline. Serves nobody.
    fn answers(&self) -> bool {
        // Relaxed: a flag that says nothing about other data.
        if !K::HAS_NMI || self.theirs.takes_nmi.load(Relaxed) == 0 {
            let phase = self.life() & PHASE;
            if matches!(phase, STARTING | ALIVE | DYING) && !self.is_open() {
                // Nobody can call it. It is alive if it goes on.
                return self.has_left(phase, self.deadline);
            }
            return self.takes_a_mark();
        }
        // The first NMI may be lost.
        for until in [self.half(), self.deadline] {
            // Whoever else has asked is answered by the same answer. Relaxed: the answer takes it away, and orders nothing.
            self.theirs.probe_wanted.store(K::now().as_nanos().max(1), Relaxed);
            let sent = K::send(self.cpu, Ipi::Probe);
            let pinned = InterruptsOff::<K>::new();
            self.exclusive.owner.boxes().note_ring(pinned.cpu(), Some(self.cpu), sent);
            drop(pinned);
            if wait::<K>(&[self.theirs.probe_wanted.equals(!0, 0)], until) != Woken::Deadline {
                return true;
            }
        }
        false
    }

    fn half(&self) -> Deadline {
        Deadline::at(self.started.plus(self.limit / 2))
    }

    /// Whether the CPU takes this CPU's mark from its mailbox, behind which there is no call, before the deadline.
    fn takes_a_mark(&self) -> bool {
        let here = self.exclusive.owner;
        let (Here { me, .. }, boxes) = (here, here.boxes());
        if boxes.mark(self.cpu, self.theirs, me) == Marked::Closed {
            return false;
        }
        let is_taken = |until| boxes.await_taken(self.cpu, self.theirs, me, until);
        here.ring(self.cpu);
        // It may be lost; but not before a ring is late.
        if self.limit / 2 > K::FIRST_BACKOFF {
            if is_taken(self.half()) {
                return true;
            }
            here.ring(self.cpu);
        }
        is_taken(self.deadline)
    }

    /// Closes the mailbox and ends every call that is in it.
    fn settle_calls_for_it(&self) {
        let boxes = self.exclusive.owner.boxes();
        // SeqCst, both: accesses of `mark`. Whoever was marked before has queued its call where the loop below sees it;
        // who comes later finds the door closed and withdraws.
        self.theirs.door.0.swap(0, SeqCst);
        for leaf in boxes.all_leaves_of(self.cpu) {
            leaf.swap(0, SeqCst);
        }
        for source in boxes.cpus() {
            let Some(caller) = boxes.get(source) else { continue };
            for level in 0..LEVELS {
                self.settle_call_to_one(caller, level);
                self.settle_call_to_many(source, level);
            }
        }
    }

    fn settle_call_to_one(&self, caller: &Mailbox<K>, level: usize) {
        let state = &caller.states.0[level];
        // Relaxed: the exchange decides.
        let seen = state.load(Relaxed);
        let end = match phase(seen) {
            QUEUED => REFUSED,
            CLAIMED => DIED,
            _ => return,
        };
        if is_for(seen, self.cpu) {
            // Release: what the dead CPU had written is visible to the caller. It fails if the caller has withdrawn.
            let _ = state.compare_exchange(seen, end, Release, Relaxed);
        }
    }

    fn settle_call_to_many(&self, source: Cpu, level: usize) {
        let boxes = self.exclusive.owner.boxes();
        let bits = TargetBits::of(self.cpu);
        let word = &boxes.targets_of(source, level)[bits.word];
        // Relaxed: the step below decides; this spares the others a write.
        if word.load(Relaxed) & bits.high == 0 {
            return;
        }
        // Claims what the dead CPU has not. Acquire: the outcome words are those of this call.
        let found = word.fetch_and(!bits.low, Acquire);
        if found & bits.high == 0 {
            return;
        }
        let outcome = if found & bits.low == 0 { bits.high } else { bits.low | bits.high };
        boxes.note_outcome(source, level, bits.word, outcome);
        // Release: the outcome, and what the dead CPU had written.
        word.fetch_and(!bits.high, Release);
    }

    /// Withdraws its own calls, and waits for those that others run.
    fn settle_its_calls(&self, deadline: Deadline) -> Result<(), HotplugError> {
        let boxes = self.exclusive.owner.boxes();
        // Relaxed: the CPU that wrote it is fenced.
        let left_behind = self.theirs.left_behind.load(Relaxed);
        for level in 0..LEVELS {
            let state = &self.theirs.states.0[level];
            let targets = boxes.targets_of(self.cpu, level);
            let mut seen = state.load(Relaxed);
            if phase(seen) == QUEUED {
                // Release: as by its caller. Relaxed on failure: it is claimed, and waited for.
                match state.compare_exchange(seen, EMPTY, Release, Relaxed) {
                    Ok(_) => continue,
                    Err(found) => seen = found,
                }
            }
            if seen == EMPTY || left_behind & 1 << level != 0 {
                // One that was left behind frees its level by itself.
                continue;
            }
            if phase(seen) == CLAIMED
                && wait::<K>(&[state.equals(FINISHED, FINISHED)], deadline) == Woken::Deadline
            {
                return Err(HotplugError::Unfinished(Life::Fenced));
            }
            for word in targets {
                let mut seen = word.load(Relaxed);
                while seen & LOW_BITS != 0 {
                    let withdrawn = seen & !(seen & LOW_BITS | (seen & LOW_BITS) << TARGETS_PER_WORD);
                    // Relaxed: as by its caller.
                    match word.compare_exchange(seen, withdrawn, Relaxed, Relaxed) {
                        Ok(_) => break,
                        Err(found) => seen = found,
                    }
                }
                if wait::<K>(&[word.equals(!0, 0)], deadline) == Woken::Deadline {
                    return Err(HotplugError::Unfinished(Life::Fenced));
                }
            }
            for outcome in boxes.outcomes_of(self.cpu, level) {
                outcome.store(0, Relaxed);
            }
            self.theirs.slots[level].has_outcomes.store(0, Relaxed);
            // Release: all that; the level's next owner begins with it.
            state.store(EMPTY, Release);
        }
        Ok(())
    }

    /// Everybody looks at their mailboxes: the dead CPU may have marked one and not rung for it, and others rely on it.
    fn ring_the_others(&self) {
        let boxes = self.exclusive.owner.boxes();
        let mut online = <K::CpuSet as CpuSetStorage>::EMPTY;
        for cpu in boxes.cpus() {
            // Relaxed: who opens now has no old marks.
            if let Some(mailbox) = boxes.get(cpu)
                && mailbox.door.0.load(Relaxed) & OPEN != 0
            {
                mailbox.mark_kind(POSTS);
                online.insert(cpu);
            }
        }
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.ring_many_at(K::now(), &online, online.len() as u64);
        }
    }

    /// Its contexts are gone, and what its words said of them.
    fn forget_contexts(&self) {
        let theirs = self.theirs;
        let torn = theirs.own.0.posts_under_way.get();
        self.exclusive.owner.mine.counters().posts_torn.add(torn);
        // Relaxed: published with its next life.
        theirs.takes_nmi.store(0, Relaxed);
        theirs.own.0.forget_contexts();
    }
}
