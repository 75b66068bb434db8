//! Attending the door: while a CPU is in a pass, or waits with interrupts off, it looks at its door by itself
//! before it turns away, and nobody needs to ring it.
//!
//! All of it happens on one word, whose modifications have one order for everybody, so that no ordering
//! beyond that is needed: a mark is either set before the step that ends the attendance, which sees it (a handler
//! then goes on serving, a waiter rings its own CPU), or after it, and then its setter sees an unattended door and
//! rings.

use core::sync::atomic::Ordering::Relaxed;

use crate::door::{ATTENDED, MARKS, OPEN};
use crate::serve::Here;
use crate::{Deadline, Kernel};
use smpcall_machine::{EventKind, When, Woken, wait};

/// The door of this CPU is attended until this is dropped.
///
/// A wait drops it as soon as it has what it waited for: what has come in since its last look is left to an interrupt
/// of its own, so that no flood keeps the waiter. A handler [leaves](Attended::leave) it.
pub(crate) struct Attended<K: Kernel> {
    here: Here<K>,
    /// Whether it was this that began the attendance: nested ones leave it to the outermost.
    outermost: bool,
}

impl<K: Kernel> Here<K> {
    /// Waits until the condition holds, or `until`; if it is to poll (interrupts are off), also until this CPU's mailbox
    /// is marked, and makes a pass then: `Met(1)`.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn wait_serving(&self, condition: When<'_, K::Memory>, poll: bool, until: Deadline) -> Woken {
        // Relaxed: only this CPU opens and closes its door. A closed one has nothing to serve.
        if poll && self.mine.door.0.load(Relaxed) & OPEN != 0 {
            let woken = wait::<K>(&[condition, self.mine.door.0.differs(MARKS, 0)], until);
            if woken == Woken::Met(1) {
                self.pass(K::BUDGET);
            }
            woken
        } else {
            wait::<K>(&[condition], until)
        }
    }
}

impl<K: Kernel> Here<K> {
    /// The one step that ends an attendance if no mark is set.
    #[inline(always)]
    fn end_attendance_if_quiet(&self) -> bool {
        self.mine.door.0.compare_exchange(OPEN | ATTENDED, OPEN, Relaxed, Relaxed).is_ok()
    }
}

impl<K: Kernel> Attended<K> {
    /// Begins to attend the door; nothing happens if it is closed, or attended already.
    pub(crate) fn begin(here: Here<K>) -> Self {
        let door = here.mine.door.0.load(Relaxed);
        if here.depth() != 0 && door & OPEN != 0 {
            // Inside of a pass. (That of a CPU that has closed its door cannot be given anything back.)
            here.give_back();
        }
        let outermost = door & (OPEN | ATTENDED) == OPEN;
        if outermost {
            here.mine.door.0.fetch_or(ATTENDED, Relaxed);
        }
        Self { here, outermost }
    }

    /// Takes responsibility for the attendance that the swap of the coming pass begins.
    #[inline(always)]
    pub(crate) fn by_pass(here: Here<K>) -> Self {
        Self { here, outermost: true }
    }

    /// Ends it when no mark is set; serves those that are, within the budget.
    #[inline(always)]
    pub(crate) fn leave(self, budget: u32) {
        let (here, outermost) = (self.here, self.outermost);
        // What follows is attended by itself.
        core::mem::forget(self);
        if outermost && !here.end_attendance_if_quiet() {
            Self { here, outermost }.go_on(budget);
        }
    }

    /// Something came in meanwhile.
    #[inline(never)]
    fn go_on(mut self, mut budget: u32) {
        while self.outermost {
            if budget == 0 {
                // No ring for what is left: this CPU would take it before it executes another instruction of
                // what was interrupted, and a flood would starve it. Callers who wait ring again after
                // their back-off, the tick finds posts: until then, whatever was interrupted goes on.
                self.outermost = false;
                self.here.mine.door.0.fetch_and(!ATTENDED, Relaxed);
                self.here.mine.counters().budgets_spent.add(1);
                self.here.boxes().trace(self.here.me, EventKind::BudgetSpent, None, 0, 0);
            } else {
                budget = self.here.pass(budget);
                self.outermost = !self.here.end_attendance_if_quiet();
            }
        }
    }
}

impl<K: Kernel> Drop for Attended<K> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.outermost {
            self.end();
        }
    }
}

impl<K: Kernel> Attended<K> {
    /// The waiter has what it wants, or a closure panics. Marks that stand were not rung for: this CPU rings itself.
    fn end(&mut self) {
        let door = self.here.mine.door.0.fetch_and(!ATTENDED, Relaxed);
        // Deferred work that it has listed is run by the exit of an interrupt.
        if door & OPEN != 0 && (door & MARKS != 0 || self.here.mine.has_work()) {
            self.here.ring(self.here.me);
        }
    }
}
