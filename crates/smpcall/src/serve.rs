//! A serve pass: takes everything that a mailbox holds, and runs it. Interrupts are off throughout; no lock exists.
//!
//! A pass swaps the door once, so it is bounded by what was there then: the posts, and at most one call a slot of
//! each source. A source's posts run before its later calls. Sources are served in ascending order, beginning where
//! the last pass ended by its budget. What a pass does not get to - its budget is spent, or a closure panics - is
//! marked again. A closure may itself call and wait; that wait makes passes of its own, nested in this one. Before, it gives
//! back what this one has taken and not come to: otherwise the wait would not serve it, and if the wait's end depended on
//! it - a rendezvous waits for all - neither would come.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::attend::Attended;
use crate::door::{ALL_GROUPS, ATTENDED, FIRST_GROUP, GROUPS, MARKS, OPEN, POSTS, RESCHEDULE, group_bit};
use crate::lists::UnderWay;
use crate::mailbox::Own;
use crate::slot::{CLAIMED, DONE, EMPTY, LEVELS, MANY, PANICKED, TargetBits, in_phase, is_queued_for, phase};
use crate::{Cpu, Kernel, Mailbox, Mailboxes, Word};
use smpcall_machine::EventKind;

/// The own CPU, while it cannot change: interrupts are off.
pub(crate) struct Here<K: Kernel> {
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
        Some(Self { me, mine: K::mailboxes().get(me)? })
    }

    /// All mailboxes: not a field, so that this is two registers wide.
    #[inline(always)]
    #[expect(clippy::unused_self, reason = "who is here knows where the mailboxes are, and asks it")]
    pub(crate) fn boxes(&self) -> &'static Mailboxes<K> {
        K::mailboxes()
    }

    /// Passes under way on this CPU.
    pub(crate) fn depth(&self) -> u64 {
        self.own().depth.get()
    }

    fn own(&self) -> &'static Own {
        &self.mine.own.0
    }

    /// Serves the mailbox until it is quiet or the budget is spent. Returns whether there was anything.
    #[inline(always)]
    pub(crate) fn serve(self) -> bool {
        let door = self.door_to_serve();
        door != 0 && self.serve_marked(door)
    }

    /// The same, all in line: for the handler of rings.
    #[inline(always)]
    pub(crate) fn serve_in_line(self) {
        let door = self.door_to_serve();
        if door != 0 {
            self.serve_marked_in_line(door);
        }
    }

    /// The door, if there is something to be served; or else zero.
    #[inline(always)]
    pub(crate) fn door_to_serve(self) -> u64 {
        const { assert!(K::BUDGET > 0, "an interrupt that may run nothing serves nobody") }
        // Relaxed: only this CPU opens, closes and attends; a mark that is just being set comes with a ring.
        let door = self.mine.door.0.load(Relaxed);
        // Closed: this is a late interrupt, and a swap would open the door again.
        if door & OPEN != 0 && door & MARKS != 0 { door } else { 0 }
    }

    #[inline(never)]
    pub(crate) fn serve_marked(self, door: u64) -> bool {
        self.serve_marked_in_line(door)
    }

    #[inline(always)]
    fn serve_marked_in_line(self, door: u64) -> bool {
        if K::in_nmi() {
            // It may have interrupted a pass.
            return false;
        }
        if door & ATTENDED != 0 {
            // Nested in a wait or a pass, which looks again by itself.
            self.pass(K::BUDGET);
        } else {
            let attended = Attended::by_pass(self);
            // SeqCst: see `mark`.
            let taken = self.mine.door.0.swap(OPEN | ATTENDED, SeqCst) & MARKS;
            attended.leave(self.run_taken(taken, K::BUDGET));
        }
        true
    }

    /// One pass of a CPU that looks again by itself. Returns what is left of the budget, as all of these do.
    #[inline(always)]
    pub(crate) fn pass(self, budget: u32) -> u32 {
        // Relaxed: see `serve`.
        let door = self.mine.door.0.load(Relaxed);
        if door & OPEN != 0 && door & MARKS != 0 {
            self.take(door & (OPEN | ATTENDED), budget)
        } else {
            budget
        }
    }

    /// Takes all marks, leaving the door in this state, and runs what they stand for.
    #[inline(always)]
    fn take(self, leave: u64, budget: u32) -> u32 {
        // SeqCst: see `mark`.
        let taken = self.mine.door.0.swap(leave, SeqCst) & MARKS;
        self.run_marked(taken, budget)
    }

    /// Runs what the marks stand for. The door has been swapped.
    #[inline(never)]
    pub(crate) fn run_marked(self, taken: u64, budget: u32) -> u32 {
        self.run_taken(taken, budget)
    }

    /// The same, in line: for the handler of rings. What is rare is not in line, so that the rest stays in registers.
    #[inline(always)]
    fn run_taken(self, taken: u64, before: u32) -> u32 {
        let own = self.own();
        self.mine.counters().passes.add(1);
        let depth = Depth::enter(own);
        let mut turn = Turn { budget: before, untold: taken };
        // With what passes around this one have left, if any.
        let mut groups = own.taken.get() | taken & ALL_GROUPS;

        // A nested pass runs what the outer one took from the list: posts come before later calls.
        if taken & !ALL_GROUPS != 0 || self.mine.oldest_post().is_some() {
            own.taken.set(groups);
            turn = self.run_kinds(taken & !ALL_GROUPS, turn);
            groups = own.taken.get();
        }
        // The first source in line, the others not: mostly there is one.
        if let Some(source) = self.next_source(groups) {
            let remaining = Remaining { here: self, kinds: 0, current: Some(source) };
            turn = self.run_calls_of(source, turn);
            core::mem::forget(remaining);
            if turn.budget == 0 {
                self.end_early(source);
            } else if self.has_sources() {
                turn = self.run_other_sources(turn);
            }
        }
        if turn.untold != 0 {
            // Nothing was run: their calls were withdrawn, or an earlier pass has run them.
            self.trace_at(K::now(), EventKind::MarksTaken, None, 0, turn.untold);
        }
        drop(depth);
        // A pass costs too: marks whose calls were withdrawn must not keep an interrupt busy for ever.
        if turn.budget == before { before.saturating_sub(1) } else { turn.budget }
    }

    /// The budget is spent, after the calls of this source.
    #[cold]
    fn end_early(self, source: Cpu) {
        self.own().next_source.set(u64::from(source.number()) + 1);
        self.give_back();
    }

    /// Does what marks that are no sources ask for, and runs the backlog.
    #[inline(never)]
    fn run_kinds(self, kinds: u64, mut turn: Turn) -> Turn {
        let mut remaining = Remaining { here: self, kinds, current: None };
        if remaining.kinds & RESCHEDULE != 0 {
            remaining.kinds &= !RESCHEDULE;
            self.mine.counters().reschedules_taken.add(1);
            self.trace_at(K::now(), EventKind::Rescheduled, None, 0, turn.tell());
            K::reschedule();
        }
        if remaining.kinds & POSTS != 0 {
            self.mine.take_posts();
        }
        if self.mine.oldest_post().is_some() {
            remaining.kinds |= POSTS;
            turn = self.run_posts(turn);
        }
        core::mem::forget(remaining);
        turn
    }

    #[inline(never)]
    fn run_other_sources(self, mut turn: Turn) -> Turn {
        while let Some(source) = self.next_source(self.own().taken.get()) {
            let remaining = Remaining { here: self, kinds: 0, current: Some(source) };
            if let Some(theirs) = self.boxes().get(source) {
                for level in 0..LEVELS {
                    turn = self.run_level_of(source, theirs, level, turn);
                }
            }
            core::mem::forget(remaining);
            if turn.budget == 0 {
                self.end_early(source);
                break;
            }
        }
        turn
    }

    /// Runs the backlog, all of it: what comes meanwhile goes on the list.
    #[inline(never)]
    fn run_posts(self, mut turn: Turn) -> Turn {
        while let Some(link) = self.mine.oldest_post() {
            turn.budget = turn.budget.saturating_sub(1);
            // SAFETY: the link is in this CPU's backlog, so it is a queued post that nobody else takes.
            if unsafe { crate::post::is_work(link) } {
                // SAFETY: interrupts are off.
                unsafe { self.mine.list_work() };
                continue;
            }
            // SAFETY: it is the oldest of the backlog, and interrupts are off.
            let taken = unsafe { self.mine.begin(link, self.me, Mailbox::drop_oldest_post) };
            self.trace_at(K::now(), EventKind::PostRun, None, 0, turn.tell());
            self.mine.counters().posts_run.add(1);
            let _running = Running::note(self.own(), Own::POST_RUNS);
            let _under_way = UnderWay(self.own());
            taken.run();
        }
        turn
    }

    /// Before a call is claimed: runs the posts that its source may have made before it, and that came after this pass
    /// took the list. The call was seen with acquire ordering, so they are on the list now.
    #[inline(always)]
    fn run_earlier_posts(self, turn: Turn) -> Turn {
        if self.mine.has_posts() || self.mine.oldest_post().is_some() {
            self.take_and_run_posts(turn)
        } else {
            turn
        }
    }

    #[inline(never)]
    fn take_and_run_posts(self, turn: Turn) -> Turn {
        self.mine.take_posts();
        self.run_posts(turn)
    }

    /// Claims and runs the calls that `source` has for this CPU.
    #[inline(always)]
    fn run_calls_of(self, source: Cpu, mut turn: Turn) -> Turn {
        const { assert!(LEVELS == 4, "each level is looked at") }
        let Some(theirs) = self.boxes().get(source) else { return turn };
        // The first level in line: nearly all calls are made from it. No loop, which would cost more than what it does.
        let seen = Self::look(theirs, 0);
        if seen != EMPTY {
            turn = self.run_first(source, theirs, seen, turn);
        }
        turn = self.run_level_of(source, theirs, 1, turn);
        turn = self.run_level_of(source, theirs, 2, turn);
        self.run_level_of(source, theirs, 3, turn)
    }

    /// What a source has in a slot.
    #[inline(always)]
    fn look(theirs: &Mailbox<K>, level: usize) -> u64 {
        let state = &theirs.states.0[level];
        // Acquire: for the posts before it. (The swap that took the mark has made the state visible.)
        state.load(Acquire)
    }

    /// Claims and runs what `source` has in its first slot, if it is for this CPU: as [`run_seen`](Self::run_seen), which
    /// goes on if the slot has changed meanwhile.
    #[inline(always)]
    fn run_first(self, source: Cpu, theirs: &Mailbox<K>, seen: u64, turn: Turn) -> Turn {
        if is_queued_for(seen, self.me) {
            match self.try_call_of(source, theirs, 0, seen, turn) {
                (turn, None) => turn,
                (turn, Some(another)) => self.run_seen(source, theirs, 0, another, turn),
            }
        } else if phase(seen) == MANY {
            self.run_call_to_many_of(source, theirs, 0, seen, turn)
        } else {
            turn
        }
    }

    /// Looks at one level of a source, and claims and runs what it has there.
    #[inline(always)]
    fn run_level_of(self, source: Cpu, theirs: &Mailbox<K>, level: usize, turn: Turn) -> Turn {
        let seen = Self::look(theirs, level);
        if seen == EMPTY { turn } else { self.run_seen(source, theirs, level, seen, turn) }
    }

    /// Claims and runs what `source` has in this slot, if it is for this CPU.
    #[inline(never)]
    fn run_seen(self, source: Cpu, theirs: &Mailbox<K>, level: usize, mut seen: u64, mut turn: Turn) -> Turn {
        while is_queued_for(seen, self.me) {
            match self.try_call_of(source, theirs, level, seen, turn) {
                (turn, None) => return turn,
                (left, Some(another)) => (turn, seen) = (left, another),
            }
        }
        if phase(seen) == MANY { self.run_call_to_many_of(source, theirs, level, seen, turn) } else { turn }
    }

    /// Claims and runs a call for this CPU. The state of the slot if it is not that of this call any more.
    #[inline(always)]
    fn try_call_of(
        self,
        source: Cpu,
        theirs: &Mailbox<K>,
        level: usize,
        seen: u64,
        mut turn: Turn,
    ) -> (Turn, Option<u64>) {
        turn = self.run_earlier_posts(turn);
        let state = &theirs.states.0[level];
        // Acquire: the payload is read after this and not before. This step decides against the
        // caller's withdrawal. On failure for the posts before the call that is there now.
        match state.compare_exchange(seen, in_phase(seen, CLAIMED), Acquire, Acquire) {
            Ok(_) => (self.run_call(source, theirs, level, Completion::One(state), turn), None),
            Err(found) => (turn, Some(found)),
        }
    }

    /// Claims and runs the call to many that `source` has in this slot, if this CPU is one of them.
    #[inline(always)]
    fn run_call_to_many_of(
        self,
        source: Cpu,
        theirs: &Mailbox<K>,
        level: usize,
        seen: u64,
        turn: Turn,
    ) -> Turn {
        match self.try_call_to_many_of(source, theirs, level, seen, turn) {
            (turn, None) => turn,
            (turn, Some(another)) => self.look_at_many_again(source, theirs, level, another, turn),
        }
    }

    #[cold]
    fn look_at_many_again(
        self,
        source: Cpu,
        theirs: &Mailbox<K>,
        level: usize,
        mut seen: u64,
        mut turn: Turn,
    ) -> Turn {
        loop {
            match self.try_call_to_many_of(source, theirs, level, seen, turn) {
                (turn, None) => return turn,
                (left, Some(another)) => (turn, seen) = (left, another),
            }
        }
    }

    /// The state of the slot if it has another call to many than the one that was looked at.
    #[inline(always)]
    fn try_call_to_many_of(
        self,
        source: Cpu,
        theirs: &Mailbox<K>,
        level: usize,
        seen: u64,
        mut turn: Turn,
    ) -> (Turn, Option<u64>) {
        let bits = TargetBits::of(self.me);
        let claim = bits.low;
        let Some(word) = self.boxes().target_word_of(source, level, bits.word) else { return (turn, None) };
        // The load spares those who are no target a write. Acquire: for the posts before the call.
        if word.load(Acquire) & claim == 0 {
            return (turn, None);
        }
        turn = self.run_earlier_posts(turn);
        // Acquire: as for a call to one; and the state below is that of the claimed call, or of a later one.
        if word.fetch_and(!claim, Acquire) & claim == 0 {
            return (turn, None);
        }
        // Relaxed: the claimed call's, because the bit was set after it, and it stays until the call is finished.
        let claimed = theirs.states.0[level].load(Relaxed);
        if claimed == seen {
            return (self.run_call(source, theirs, level, Completion::OfMany { word, bits }, turn), None);
        }
        // Another call than the one that was looked at: the posts before it come first. Release: as by its caller.
        word.fetch_or(claim, Release);
        (turn, Some(claimed))
    }

    #[inline(always)]
    fn run_call(
        self,
        source: Cpu,
        theirs: &Mailbox<K>,
        level: usize,
        completion: Completion<'_, K>,
        mut turn: Turn,
    ) -> Turn {
        self.trace_at(K::now(), EventKind::CallClaimed, Some(source), level, turn.tell());
        self.mine.counters().calls_run.add(1);
        // SAFETY: this CPU has claimed the call, with acquire ordering; the owner wrote the payload before it
        // queued the call and does not write it again before the completion below.
        let payload = unsafe { theirs.slots[level].payload.read_in_place() };
        let running = Running::note(self.own(), u64::from(source.number()) + 1);
        let finish = Finish { here: self, source, level, completion };
        // SAFETY: a queued call has a function. It and the luggage belong together, and the claim makes this the only run
        // on this CPU. The frame behind the luggage lives until the completion (law L4).
        unsafe { payload.run.unwrap_unchecked()(&payload.luggage, self.me) };
        finish.end(EventKind::CallRun);
        core::mem::forget(finish);
        drop(running);
        turn.budget = turn.budget.saturating_sub(1);
        turn
    }
}

/// How far a pass is: two registers, handed on from step to step.
#[derive(Clone, Copy)]
struct Turn {
    /// What it may still run.
    budget: u32,
    /// The marks that it has taken, until an event has told them: its first one does, whatever it is.
    untold: u64,
}

impl Turn {
    #[inline(always)]
    fn tell(&mut self) -> u64 {
        core::mem::take(&mut self.untold)
    }
}

/// How the target says that it has run a call: its last touch of anything of the caller's.
enum Completion<'a, K: Kernel> {
    One(&'a Word<K>),
    OfMany { word: &'a Word<K>, bits: TargetBits },
}

/// Completes the call. Dropped, the closure is being unwound.
struct Finish<'a, K: Kernel> {
    here: Here<K>,
    source: Cpu,
    level: usize,
    completion: Completion<'a, K>,
}

impl<K: Kernel> Finish<'_, K> {
    #[inline(always)]
    fn end(&self, how: EventKind) {
        let panicked = how == EventKind::CallPanicked;
        self.here.trace_at(K::now(), how, Some(self.source), self.level, 0);
        // Release: the closure's writes, its result among them, are visible to the caller who sees this.
        match self.completion {
            Completion::One(state) => state.store(if panicked { PANICKED } else { DONE }, Release),
            Completion::OfMany { word, bits } => {
                if panicked {
                    self.here.boxes().note_outcome(self.source, self.level, bits.word, bits.low);
                }
                word.fetch_and(!bits.high, Release);
            }
        }
    }
}

impl<K: Kernel> Drop for Finish<'_, K> {
    fn drop(&mut self) {
        self.end(EventKind::CallPanicked);
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

/// What a step of a pass has taken besides marks of sources: marked again, as these are, if it is unwound.
struct Remaining<K: Kernel> {
    here: Here<K>,
    kinds: u64,
    /// The source whose calls are being run: another of its levels may not have been looked at.
    current: Option<Cpu>,
}

/// Takes the first set bit at or above `first`, or else the lowest.
#[inline]
fn take_bit(bits: &mut u64, first: u32) -> u32 {
    let above = *bits & (!0 << first);
    let bit = if above == 0 { bits.trailing_zeros() } else { above.trailing_zeros() };
    *bits &= !(1 << bit);
    bit
}

impl<K: Kernel> Here<K> {
    /// Takes the next source from the marks that passes of this CPU have taken (its group bits are these), beginning with
    /// the one at which the last pass was ended; the others follow in ascending order, and around.
    #[inline(always)]
    fn next_source(self, mut groups: u64) -> Option<Cpu> {
        if !self.boxes().is_flat() {
            return self.next_source_of_leaves(groups);
        }
        if groups == 0 {
            return None;
        }
        let group = if groups.is_power_of_two() {
            core::mem::take(&mut groups).trailing_zeros()
        } else {
            self.first_of(&mut groups)
        };
        self.own().taken.set(groups);
        Some(Cpu::new(group - FIRST_GROUP))
    }

    /// Takes the group bit whose turn it is.
    #[inline(never)]
    fn first_of(self, groups: &mut u64) -> u32 {
        take_bit(groups, FIRST_GROUP + (self.own().next_source.get() % GROUPS as u64) as u32)
    }

    /// Whether marks of sources are left that passes of this CPU have taken.
    #[inline(always)]
    fn has_sources(self) -> bool {
        let own = self.own();
        own.taken.get() | own.taken_leaf.get() != 0
    }

    #[inline(never)]
    fn next_source_of_leaves(self, groups: u64) -> Option<Cpu> {
        let own = self.own();
        own.taken.set(groups);
        let leaves = self.boxes().all_leaves_of(self.me);
        let first = own.next_source.get() as usize;
        // Swapped even if a word looks empty: a load could miss a mark whose sender saw the group bit.
        let take_leaf = |index: usize| {
            own.taken_leaf.set(index as u64 + 1);
            own.taken_of_leaf.set(leaves[index].swap(0, SeqCst));
        };
        loop {
            if let Some(index) = (own.taken_leaf.get() as usize).checked_sub(1) {
                let mut marks = own.taken_of_leaf.get();
                if marks != 0 {
                    let bit = take_bit(&mut marks, (first % 64) as u32);
                    own.taken_of_leaf.set(marks);
                    return Some(Cpu::new(index as u32 * 64 + bit));
                }
                if self.boxes().is_last_of_group(index) {
                    own.taken_leaf.set(0);
                } else {
                    take_leaf(index + 1);
                }
                continue;
            }
            let mut groups = own.taken.get();
            if groups == 0 {
                return None;
            }
            let from = self.boxes().group_of(first) % GROUPS;
            let group = take_bit(&mut groups, FIRST_GROUP + from as u32) - FIRST_GROUP;
            own.taken.set(groups);
            take_leaf(self.boxes().first_leaf_of(group as usize));
        }
    }

    /// Gives back what passes of this CPU have taken and not come to: it is marked again. When a pass ends early; and before
    /// a closure waits, because what is taken is seen by no other pass, and whoever waits has to serve all (law L6).
    #[inline(always)]
    pub(crate) fn give_back(self) {
        if self.has_sources() {
            self.give_back_marks();
        }
    }

    #[cold]
    fn give_back_marks(self) {
        let own = self.own();
        let mut groups = own.taken.get();
        if let Some(index) = (own.taken_leaf.get() as usize).checked_sub(1) {
            // Before the group bit, as every mark. Later words of the group have not been swapped: their marks stand.
            self.boxes().all_leaves_of(self.me)[index].fetch_or(own.taken_of_leaf.get(), SeqCst);
            groups |= group_bit(self.boxes().group_of(index * 64));
            own.taken_leaf.set(0);
            own.taken_of_leaf.set(0);
        }
        if groups != 0 {
            own.taken.set(0);
            self.mine.door.0.fetch_or(groups, SeqCst);
        }
    }
}

impl<K: Kernel> Drop for Remaining<K> {
    #[inline(always)]
    fn drop(&mut self) {
        self.here.give_back();
        if self.kinds != 0 {
            self.here.mine.door.0.fetch_or(self.kinds, SeqCst);
        }
        if let Some(source) = self.current {
            // A closure panics. Whoever comes to serve next is told by the end of the attendance.
            self.here.boxes().mark(self.here.me, self.here.mine, source);
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
