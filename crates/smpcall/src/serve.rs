//! A serve pass: takes everything that a mailbox holds, and runs it. Interrupts are off throughout; no lock exists.
//!
//! A pass swaps the door once, so it is bounded by what was there then: the posts, and at most one call a slot of
//! each source. A source's posts run before its later calls. Sources are served in ascending order, beginning where
//! the last pass ended by its budget. What a pass does not get to - its budget is spent, or a closure panics - is
//! marked again. A closure may itself call and wait; that wait makes passes of its own, nested in this one.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::attend::Attended;
use crate::door::{ALL_GROUPS, ATTENDED, FIRST_GROUP, GROUPS, MARKS, OPEN, POSTS, RESCHEDULE, group_bit};
use crate::lists::UnderWay;
use crate::mailbox::Own;
use crate::slot::{CLAIMED, DONE, LEVELS, MANY, PANICKED, TargetBits, in_phase, is_queued_for, phase};
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

    /// Passes under way on this CPU.
    pub(crate) fn depth(&self) -> u64 {
        self.own().depth.get()
    }

    fn own(&self) -> &'static Own {
        &self.mine.own.0
    }

    /// Serves the mailbox until it is quiet or the budget is spent. Returns whether there was anything.
    #[inline]
    pub(crate) fn serve(&self) -> bool {
        const { assert!(K::BUDGET > 0, "an interrupt that may run nothing serves nobody") }
        if K::in_nmi() {
            // It may have interrupted a pass.
            return false;
        }
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
        self.mine.counters().passes.add(1);
        self.boxes.trace(self.me, EventKind::MarksTaken, None, 0, taken);
        let depth = Depth::enter(self.own());
        let before = *budget;
        let mut remaining = Remaining {
            here: *self,
            kinds: taken & !ALL_GROUPS,
            groups: taken & ALL_GROUPS,
            first: self.own().next_source.get() as usize,
            leaf: None,
            current: None,
        };

        if remaining.kinds & RESCHEDULE != 0 {
            remaining.kinds &= !RESCHEDULE;
            self.mine.counters().reschedules_taken.add(1);
            self.boxes.trace(self.me, EventKind::Rescheduled, None, 0, 0);
            K::reschedule();
        }
        if remaining.kinds & POSTS != 0 {
            self.mine.take_posts();
        }
        // A nested pass runs what the outer one took from the list: posts come before later calls.
        remaining.kinds |= POSTS;
        self.run_posts(budget);
        remaining.kinds = 0;

        while let Some(source) = remaining.next_source() {
            remaining.current = Some(source);
            self.run_calls_of(source, budget);
            remaining.current = None;
            if *budget == 0 {
                self.own().next_source.set(u64::from(source.number()) + 1);
                break;
            }
        }
        drop(remaining);
        if *budget == before {
            // A pass costs too: marks whose calls were withdrawn must not keep an interrupt busy for ever.
            *budget = budget.saturating_sub(1);
        }
        drop(depth);
    }

    /// Runs the backlog, all of it: what comes meanwhile goes on the list.
    fn run_posts(&self, budget: &mut u32) {
        while let Some(link) = self.mine.oldest_post() {
            *budget = budget.saturating_sub(1);
            // SAFETY: the link is in this CPU's backlog, so it is a queued post that nobody else takes.
            if unsafe { crate::post::is_work(link) } {
                // SAFETY: interrupts are off.
                unsafe { self.mine.list_work() };
                continue;
            }
            // SAFETY: it is the oldest of the backlog, and interrupts are off.
            let taken = unsafe { self.mine.begin(link, self.me, Mailbox::drop_oldest_post) };
            self.boxes.trace(self.me, EventKind::PostRun, None, 0, 0);
            self.mine.counters().posts_run.add(1);
            let _running = Running::note(self.own(), Own::POST_RUNS);
            let _under_way = UnderWay(self.own());
            taken.run();
        }
    }

    /// Before a call is claimed: runs the posts that its source may have made before it, and that came after this pass
    /// took the list. The call was seen with acquire ordering, so they are on the list now.
    fn run_earlier_posts(&self, budget: &mut u32) {
        if self.mine.has_posts() {
            self.mine.take_posts();
        }
        self.run_posts(budget);
    }

    /// Claims and runs the calls that `source` has for this CPU.
    fn run_calls_of(&self, source: Cpu, budget: &mut u32) {
        let Some(theirs) = self.boxes.get(source) else { return };
        for level in 0..LEVELS {
            let state = &theirs.states.0[level];
            // Acquire: for the posts before it. (The swap that took the mark has made the state visible.)
            let mut seen = state.load(Acquire);
            while is_queued_for(seen, self.me) {
                self.run_earlier_posts(budget);
                // Acquire: the payload is read after this and not before. This step decides against the
                // caller's withdrawal. On failure for the posts before the call that is there now.
                match state.compare_exchange(seen, in_phase(seen, CLAIMED), Acquire, Acquire) {
                    Ok(_) => {
                        *budget = budget.saturating_sub(1);
                        self.run_call(source, level, Completion::One(state));
                        break;
                    }
                    Err(found) => seen = found,
                }
            }
            if phase(seen) == MANY {
                self.run_call_to_many_of(source, theirs, level, seen, budget);
            }
        }
    }

    /// Claims and runs the call to many that `source` has in this slot, if this CPU is one of them.
    fn run_call_to_many_of(
        &self,
        source: Cpu,
        theirs: &Mailbox<K>,
        level: usize,
        mut seen: u64,
        budget: &mut u32,
    ) {
        let bits = TargetBits::of(self.me);
        let claim = bits.low;
        let word = &self.boxes.targets_of(source, level)[bits.word];
        // The load spares those who are no target a write. Acquire: for the posts before the call.
        while word.load(Acquire) & claim != 0 {
            self.run_earlier_posts(budget);
            // Acquire: as for a call to one; and the state below is that of the claimed call, or of a later one.
            if word.fetch_and(!claim, Acquire) & claim == 0 {
                return;
            }
            // Relaxed: the claimed call's, because the bit was set after it, and it stays until the call is finished.
            let claimed = theirs.states.0[level].load(Relaxed);
            if claimed == seen {
                *budget = budget.saturating_sub(1);
                self.run_call(source, level, Completion::OfMany { word, bits });
                return;
            }
            // Another call than the one that was looked at: the posts before it come first. Release: as by its caller.
            word.fetch_or(claim, Release);
            seen = claimed;
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
        // SAFETY: a queued call has a function. It and the luggage belong together, and the claim makes this the only run
        // on this CPU. The frame behind the luggage lives until the completion (law L4).
        unsafe { payload.run.unwrap_unchecked()(&payload.luggage, self.me) };
        finish.panicked = false;
        drop(finish);
        drop(running);
    }
}

/// How the target says that it has run a call: its last touch of anything of the caller's.
enum Completion<'a, K: Kernel> {
    One(&'a Word<K>),
    OfMany { word: &'a Word<K>, bits: TargetBits },
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
            Completion::OfMany { word, bits } => {
                if self.panicked {
                    boxes.note_outcome(self.source, self.level, bits.word, bits.low);
                }
                word.fetch_and(!bits.high, Release);
            }
        }
    }
}

impl<K: Kernel> Mailboxes<K> {
    /// Notes that a target of a call to many has no ordinary end, by these bits of an outcome word. Its pending bit still
    /// stands: taking that away afterwards, with release ordering, publishes this.
    #[cold]
    pub(crate) fn note_outcome(&self, source: Cpu, level: usize, word: usize, bits: u64) {
        let Some(theirs) = self.get(source) else { return };
        // Relaxed: see above.
        self.outcomes_of(source, level)[word].fetch_or(bits, Relaxed);
        theirs.slots[level].has_outcomes.store(1, Relaxed);
    }
}

/// Marks that a pass has taken and not come to yet: marked again if it ends early.
struct Remaining<K: Kernel> {
    here: Here<K>,
    kinds: u64,
    groups: u64,
    /// The source to begin with, if it is among them; the others follow in ascending order, and around.
    first: usize,
    leaf: Option<Leaf<K>>,
    /// The source whose calls are being run: another of its levels may not have been looked at.
    current: Option<Cpu>,
}

/// The leaf word in work, and the next words of its group.
struct Leaf<K: Kernel> {
    words: &'static [Word<K>],
    index: usize,
    /// The bits left of the word.
    bits: u64,
    /// The source of the word's lowest bit.
    lowest: usize,
    group: u64,
}

/// Takes the first set bit at or above `first`, or else the lowest.
#[inline]
fn take_bit(bits: &mut u64, first: u32) -> u32 {
    let above = *bits & (!0 << first);
    let bit = if above == 0 { bits.trailing_zeros() } else { above.trailing_zeros() };
    *bits &= !(1 << bit);
    bit
}

impl<K: Kernel> Remaining<K> {
    /// The next marked source.
    #[inline]
    fn next_source(&mut self) -> Option<Cpu> {
        loop {
            if let Some(leaf) = &mut self.leaf {
                if leaf.bits != 0 {
                    let bit = take_bit(&mut leaf.bits, (self.first % 64) as u32);
                    return Some(Cpu::new(leaf.lowest as u32 + bit));
                }
                leaf.index += 1;
                leaf.lowest += 64;
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
            let first = self.here.boxes.group_of(self.first) % GROUPS;
            let group = (take_bit(&mut self.groups, FIRST_GROUP + first as u32) - FIRST_GROUP) as usize;
            if self.here.boxes.is_flat() {
                return Some(Cpu::new(group as u32));
            }
            let (words, lowest) = self.here.boxes.leaves_of(self.here.me, group);
            let bits = words.first().map_or(0, |word| word.swap(0, SeqCst));
            self.leaf = Some(Leaf { words, index: 0, bits, lowest, group: group_bit(group) });
        }
    }
}

impl<K: Kernel> Drop for Remaining<K> {
    #[inline]
    fn drop(&mut self) {
        let Here { boxes, me, mine } = self.here;
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
            mine.door.0.fetch_or(door, SeqCst);
        }
        if let Some(source) = self.current {
            // A closure panics. Whoever comes to serve next is told by the end of the attendance.
            boxes.mark(me, mine, source);
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
