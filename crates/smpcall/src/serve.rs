//! A serve pass: takes everything that a mailbox holds, and runs it. Interrupts are off throughout; no lock exists.
//!
//! A pass swaps the door once, so it is bounded by what was marked then: at most one call a slot of each
//! source, and the posts, which the budget bounds. Posts run before calls, so that a source's posts run before
//! its later calls. What a pass does not get to - its budget is spent, or a closure panics - is marked again.
//! A closure may itself call and wait; that wait makes passes of its own, nested in this one.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::attend::Attended;
use crate::door::{ALL_GROUPS, ATTENDED, FIRST_GROUP, MARKS, OPEN, POSTS, RESCHEDULE, group_bit};
use crate::mailbox::Own;
use crate::slot::{CLAIMED, DONE, LEVELS, MANY, PANICKED, QUEUED, SOME_PANICKED, phase, state_for};
use crate::{Cpu, Kernel, Mailbox, Mailboxes, Word};
use smpcall_machine::EventKind;

/// The own CPU, while it cannot change: interrupts are off.
pub(crate) struct Here<K: Kernel> {
    pub(crate) boxes: &'static Mailboxes<K>,
    pub(crate) me: Cpu,
    pub(crate) mine: &'static Mailbox<K>,
}

impl<K: Kernel> Clone for Here<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: Kernel> Copy for Here<K> {}

impl<K: Kernel> Here<K> {
    /// None if this CPU has no mailbox.
    #[inline(always)]
    pub(crate) fn new(me: Cpu) -> Option<Self> {
        let boxes = K::mailboxes();
        Some(Self { boxes, me, mine: boxes.get(me)? })
    }

    fn own(&self) -> &'static Own {
        &self.mine.own.0
    }

    /// Serves the mailbox until it is quiet or the budget is spent. Returns whether there was anything.
    #[inline]
    pub(crate) fn serve(&self) -> bool {
        // Relaxed: only this CPU opens, closes and attends; a mark that is just being set comes with a ring.
        let door = self.mine.door.0.load(Relaxed);
        if door & OPEN == 0 || door & MARKS == 0 {
            // Closed: this is a late interrupt, and a swap would open the door again.
            return false;
        }
        if door & ATTENDED != 0 {
            // Nested in a wait or a pass, which looks again by itself.
            self.pass(&mut { K::BUDGET });
        } else {
            let mut budget = K::BUDGET;
            let attended = Attended::by_pass(*self);
            self.take(OPEN | ATTENDED, &mut budget);
            attended.leave(budget);
        }
        true
    }

    /// One pass of a CPU that looks again by itself.
    #[inline(always)]
    pub(crate) fn pass(&self, budget: &mut u32) {
        // Relaxed: see `serve`.
        let door = self.mine.door.0.load(Relaxed);
        if door & OPEN != 0 && door & MARKS != 0 {
            self.take(door & (OPEN | ATTENDED), budget);
        }
    }

    /// Takes all marks, leaving the door in this state, and runs what they stand for.
    #[inline(always)]
    fn take(&self, leave: u64, budget: &mut u32) {
        // SeqCst: see `mark`.
        let taken = self.mine.door.0.swap(leave, SeqCst) & MARKS;
        self.run_marked(taken, budget);
    }

    /// Runs what the marks stand for. The door has been swapped.
    #[inline(never)]
    pub(crate) fn run_marked(&self, taken: u64, budget: &mut u32) {
        // A pass costs too: marks whose calls were withdrawn must not keep an interrupt busy for ever.
        *budget = budget.saturating_sub(1);
        self.mine.counters().passes.add(1);
        self.boxes.trace(self.me, EventKind::MarksTaken, None, 0, taken);
        let mut remaining =
            Remaining { here: *self, kinds: taken & !ALL_GROUPS, groups: taken & ALL_GROUPS, leaf: None };
        let depth = Depth::enter(self.own());

        if remaining.kinds & RESCHEDULE != 0 {
            remaining.kinds &= !RESCHEDULE;
            self.mine.counters().reschedules_taken.add(1);
            self.boxes.trace(self.me, EventKind::Rescheduled, None, 0, 0);
            K::reschedule();
        }
        if remaining.kinds & POSTS != 0 {
            self.mine.take_posts();
        }
        // A nested pass drains what the outer one took from the list: posts come before later calls.
        if !self.run_posts(budget) {
            remaining.kinds |= POSTS;
            drop(remaining);
            drop(depth);
            return;
        }
        remaining.kinds = 0;

        while *budget > 0
            && let Some(source) = remaining.next_source()
        {
            self.run_calls_of(source, budget);
        }
        drop(remaining);
        drop(depth);
    }

    /// Runs the backlog. False if the budget ended it.
    fn run_posts(&self, budget: &mut u32) -> bool {
        while let Some(link) = self.mine.next_post() {
            if *budget == 0 {
                self.mine.put_back_post(link);
                return false;
            }
            *budget -= 1;
            self.boxes.trace(self.me, EventKind::PostRun, None, 0, 0);
            self.mine.counters().posts_run.add(1);
            let _running = Running::note(self.own(), Own::POST_RUNS);
            // SAFETY: the link was on this CPU's list, so it is a queued post that nobody else takes.
            unsafe { crate::post::run(link) };
        }
        true
    }

    /// Claims and runs the calls that `source` has for this CPU.
    fn run_calls_of(&self, source: Cpu, budget: &mut u32) {
        let Some(theirs) = self.boxes.get(source) else { return };
        for level in 0..LEVELS {
            let state = &theirs.states.0[level];
            // Relaxed: the swap that took the mark has made the state that was stored before it visible.
            let seen = state.load(Relaxed);
            if seen == state_for(QUEUED, self.me) {
                // Acquire: the payload is read after this and not before. This step decides against the
                // caller's withdrawal.
                let claimed = state_for(CLAIMED, self.me);
                if state.compare_exchange(seen, claimed, Acquire, Relaxed).is_ok() {
                    *budget = budget.saturating_sub(1);
                    self.run_call(source, level, Completion::One(state));
                }
            } else if phase(seen) == MANY {
                let word = &self.boxes.claims_of(source, level)[self.me.index() / 64];
                let bit = 1 << (self.me.number() % 64);
                // The load spares those who are no target a write. Acquire as above.
                if word.load(Relaxed) & bit != 0 && word.fetch_and(!bit, Acquire) & bit != 0 {
                    *budget = budget.saturating_sub(1);
                    let panicked = &self.boxes.panics_of(source, level)[self.me.index() / 64];
                    let count = &theirs.slots[level].count;
                    self.run_call(source, level, Completion::OfMany { count, panicked, bit });
                }
            }
        }
    }

    #[inline]
    fn run_call(&self, source: Cpu, level: usize, completion: Completion<'_, K>) {
        self.boxes.trace(self.me, EventKind::CallClaimed, Some(source), level, 0);
        self.mine.counters().calls_run.add(1);
        let Some(theirs) = self.boxes.get(source) else { return };
        // SAFETY: this CPU has claimed the call, with acquire ordering; the owner wrote the payload before it
        // queued the call and does not write it again before the completion below.
        let payload = unsafe { theirs.slots[level].payload.read() };
        let running = Running::note(self.own(), u64::from(source.number()) + 1);
        let mut finish = Finish { here: *self, source, level, completion, panicked: true };
        // SAFETY: the payload's function and luggage belong together, and the claim makes this the only run
        // on this CPU. The frame behind the luggage lives until the completion (law L4).
        unsafe { (payload.run)(&payload.luggage, self.me) };
        finish.panicked = false;
        drop(finish);
        drop(running);
    }
}

/// How the target says that it has run a call: its last touch of anything of the caller's.
enum Completion<'a, K: Kernel> {
    One(&'a Word<K>),
    OfMany { count: &'a Word<K>, panicked: &'a Word<K>, bit: u64 },
}

/// Completes the call when the closure has returned, or is being unwound.
struct Finish<'a, K: Kernel> {
    here: Here<K>,
    source: Cpu,
    level: usize,
    completion: Completion<'a, K>,
    panicked: bool,
}

impl<K: Kernel> Drop for Finish<'_, K> {
    #[inline(always)]
    fn drop(&mut self) {
        let Here { boxes, me, .. } = self.here;
        let kind = if self.panicked { EventKind::CallPanicked } else { EventKind::CallRun };
        boxes.trace(me, kind, Some(self.source), self.level, 0);
        // Release: the closure's writes, its result among them, are visible to the caller who sees this.
        match self.completion {
            Completion::One(state) => state.store(if self.panicked { PANICKED } else { DONE }, Release),
            Completion::OfMany { count, panicked, bit } if self.panicked => {
                panicked.fetch_or(bit, Relaxed);
                count.fetch_add(SOME_PANICKED - 1, Release);
            }
            Completion::OfMany { count, .. } => {
                count.fetch_sub(1, Release);
            }
        }
    }
}

/// Marks that a pass has taken and not come to yet: marked again if it ends early.
struct Remaining<K: Kernel> {
    here: Here<K>,
    kinds: u64,
    groups: u64,
    /// The leaf word in work: the word, the bits left, its first source; and the next words of its group.
    leaf: Option<Leaf<K>>,
}

struct Leaf<K: Kernel> {
    words: &'static [Word<K>],
    index: usize,
    bits: u64,
    first_source: usize,
    group: u64,
}

impl<K: Kernel> Remaining<K> {
    /// The next marked source, in ascending order.
    #[inline]
    fn next_source(&mut self) -> Option<Cpu> {
        loop {
            if let Some(leaf) = &mut self.leaf {
                if leaf.bits != 0 {
                    let source = leaf.first_source + leaf.bits.trailing_zeros() as usize;
                    leaf.bits &= leaf.bits - 1;
                    return Some(Cpu::new(source as u32));
                }
                leaf.index += 1;
                leaf.first_source += 64;
                match leaf.words.get(leaf.index) {
                    // Swapped even if it looks empty: a load could miss a mark whose sender saw the group bit.
                    Some(word) => leaf.bits = word.swap(0, SeqCst),
                    None => self.leaf = None,
                }
                continue;
            }
            if self.groups == 0 {
                return None;
            }
            let group = (self.groups.trailing_zeros() - FIRST_GROUP) as usize;
            self.groups &= !group_bit(group);
            if self.here.boxes.is_flat() {
                return Some(Cpu::new(group as u32));
            }
            let (words, first_source) = self.here.boxes.leaves_of(self.here.me, group);
            let bits = words.first().map_or(0, |word| word.swap(0, SeqCst));
            self.leaf = Some(Leaf { words, index: 0, bits, first_source, group: group_bit(group) });
        }
    }
}

impl<K: Kernel> Drop for Remaining<K> {
    #[inline]
    fn drop(&mut self) {
        let mut door = self.kinds | self.groups;
        if let Some(leaf) = &self.leaf {
            if leaf.bits != 0
                && let Some(word) = leaf.words.get(leaf.index)
            {
                word.fetch_or(leaf.bits, SeqCst);
            }
            // Later words of the group have not been swapped: their marks stand, the group bit must too.
            door |= leaf.group;
        }
        if door != 0 {
            self.here.mine.door.0.fetch_or(door, SeqCst);
        }
    }
}

/// Counts nested passes, so that nobody closes a mailbox from inside one.
struct Depth(&'static Own);

impl Depth {
    #[inline(always)]
    fn enter(own: &'static Own) -> Self {
        own.depth.add(1);
        Self(own)
    }
}

impl Drop for Depth {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.depth.set(self.0.depth.get() - 1);
    }
}

/// Notes what this CPU runs, for others' diagnoses.
struct Running {
    own: &'static Own,
    before: u64,
}

impl Running {
    #[inline(always)]
    fn note(own: &'static Own, what: u64) -> Self {
        let before = own.running.get();
        own.running.set(what);
        Self { own, before }
    }
}

impl Drop for Running {
    #[inline(always)]
    fn drop(&mut self) {
        self.own.running.set(self.before);
    }
}
