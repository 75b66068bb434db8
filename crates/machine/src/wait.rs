//! The one wait of the whole project. A raw spin loop anywhere else is a defect (law L3).

use core::sync::atomic::Ordering;

use crate::{Deadline, Machine, Memory, Word};

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The condition with this index held.
    Met(usize),
    /// The deadline passed, or the looks of a counted wait were used up, and no condition held at that time.
    Deadline,
}

/// A few conditions, of which a wait needs one.
///
/// Evaluating must be free of side effects and may read any number of shared words, each at most once: a
/// simulated machine evaluates it again only when one of the words that it has read has changed.
pub trait Conditions {
    /// The index of the first condition that holds.
    fn first_met(&self) -> Option<usize>;

    /// Tells what is waited for, as far as it is words: for people who look at a machine that hangs.
    fn describe(&self, see: &mut dyn FnMut(Awaited)) {
        let _ = see;
    }

    /// If it is one condition on one word, read once: what that asks for. A simulated machine then decides the wait by the
    /// values that are written to the word, and evaluates nothing.
    fn only(&self) -> Option<Awaited> {
        None
    }
}

/// What a condition on one word asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// Where the word is.
    pub location: *const (),
    /// The bits of it that count.
    pub mask: u64,
    /// What these bits are compared with.
    pub value: u64,
    /// Whether they have to be equal to it, or anything else.
    pub equal: bool,
}

impl Awaited {
    /// Whether a word with this value is what is waited for.
    #[inline]
    pub const fn holds(&self, value: u64) -> bool {
        (value & self.mask == self.value) == self.equal
    }
}

/// The condition that some bits of one word have, or do not have, a value.
pub struct When<'a, M> {
    word: &'a Word<M>,
    mask: u64,
    value: u64,
    equal: bool,
}

impl<M> Clone for When<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for When<'_, M> {}

impl<'a, M: Memory> When<'a, M> {
    pub(crate) const fn new(word: &'a Word<M>, mask: u64, value: u64, equal: bool) -> Self {
        Self { word, mask, value, equal }
    }

    #[inline(always)]
    #[track_caller]
    fn holds(&self) -> bool {
        (self.word.load(Ordering::Acquire) & self.mask == self.value) == self.equal
    }

    fn awaited(&self) -> Awaited {
        Awaited { location: self.word.location(), mask: self.mask, value: self.value, equal: self.equal }
    }
}

impl<M: Memory, const N: usize> Conditions for [When<'_, M>; N] {
    #[inline(always)]
    #[track_caller]
    fn first_met(&self) -> Option<usize> {
        self.iter().position(|condition| condition.holds())
    }

    fn describe(&self, see: &mut dyn FnMut(Awaited)) {
        for condition in self {
            see(condition.awaited());
        }
    }

    fn only(&self) -> Option<Awaited> {
        let [condition] = self.as_slice() else { return None };
        Some(condition.awaited())
    }
}

/// A condition that is no word of memory: a device register, say. Simulated machines evaluate it at every
/// instant at which the register may have changed.
pub struct Predicate<F>(pub F);

impl<F: Fn() -> bool> Conditions for Predicate<F> {
    #[inline(always)]
    fn first_met(&self) -> Option<usize> {
        (self.0)().then_some(0)
    }
}

/// Waits until one of `conditions` holds, and at the longest until `deadline`.
///
/// Interrupts are taken meanwhile if they are enabled. What another CPU wrote before it made the condition
/// true is visible afterwards (acquire). The deadline is checked after the conditions, so that a condition
/// that holds is reported even if the deadline has passed too. May be called from every context; from NMI
/// context only with a deadline.
#[inline(always)]
#[track_caller]
pub fn wait<M: Machine>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
    M::Memory::wait::<M>(conditions, deadline)
}

/// Waits as [`wait`] does, and looks at the conditions at most `looks` times (at least once): for when the clock may be
/// what is broken. [`Woken::Deadline`] says that one of the two bounds was reached.
///
/// A look with its pause takes between some 10 ns and some 100 ns on x86-64 processors: the bound is as rough as that.
#[inline(always)]
#[track_caller]
pub fn wait_at_most<M: Machine>(conditions: &impl Conditions, deadline: Deadline, looks: u64) -> Woken {
    M::Memory::wait_at_most::<M>(conditions, deadline, looks)
}

/// The counted wait of real machines. Called by [`Memory`] implementations only.
#[inline]
pub fn spin_at_most<M: Machine>(conditions: &impl Conditions, deadline: Deadline, looks: u64) -> Woken {
    let mut left = looks.max(1);
    loop {
        if let Some(index) = conditions.first_met() {
            return Woken::Met(index);
        }
        left -= 1;
        if left == 0 || deadline.has_passed(M::now()) {
            return Woken::Deadline;
        }
        M::pause();
    }
}

/// The wait of real machines: a loop with the pause hint. Called by [`Memory`] implementations only.
///
/// The clock is looked at after the first pause: what is waited for mostly holds by then.
#[inline]
pub fn spin<M: Machine>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
    let mut paused = false;
    loop {
        if let Some(index) = conditions.first_met() {
            return Woken::Met(index);
        }
        if paused && !deadline.is_never() && deadline.has_passed(M::now()) {
            return Woken::Deadline;
        }
        M::pause();
        paused = true;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::{Cpu, CpuSet, Hardware, Instant, Ipi, SendError};
    use core::time::Duration;
    use std::cell::Cell;

    std::thread_local! {
        static CLOCK: Cell<u64> = const { Cell::new(0) };
        static PAUSES: Cell<u64> = const { Cell::new(0) };
        /// How far the clock moves with each reading of it.
        static STEP: Cell<u64> = const { Cell::new(0) };
    }

    /// A machine of one CPU per thread, whose clock may stand still.
    struct Clockwork;

    // SAFETY: each thread has a machine of its own, with one CPU and no handlers.
    unsafe impl Machine for Clockwork {
        type Memory = Hardware;
        type CpuSet = CpuSet<1>;
        const HAS_NMI: bool = false;

        fn current_cpu() -> Cpu {
            Cpu::new(0)
        }

        fn disable_interrupts() -> bool {
            false
        }

        fn restore_interrupts(_: bool) {}

        fn interrupts_enabled() -> bool {
            false
        }

        fn in_nmi() -> bool {
            false
        }

        fn send(_: Cpu, _: Ipi) -> Result<(), SendError> {
            Err(SendError::Unsupported)
        }

        fn now() -> Instant {
            CLOCK.set(CLOCK.get() + STEP.get());
            Instant::from_nanos(CLOCK.get())
        }

        fn pause() {
            PAUSES.set(PAUSES.get() + 1);
        }
    }

    fn counted(condition: bool, step: u64, looks: u64) -> (Woken, u64) {
        CLOCK.set(0);
        PAUSES.set(0);
        STEP.set(step);
        let deadline = Deadline::at(Instant::default().plus(Duration::from_nanos(10)));
        (wait_at_most::<Clockwork>(&Predicate(|| condition), deadline, looks), PAUSES.get())
    }

    #[test]
    fn a_counted_wait_ends_although_the_clock_stands_still() {
        assert_eq!(counted(false, 0, 1000), (Woken::Deadline, 999));
    }

    #[test]
    fn a_counted_wait_ends_at_its_deadline_if_that_comes_first() {
        assert_eq!(counted(false, 1, 1000), (Woken::Deadline, 9));
    }

    #[test]
    fn a_condition_that_holds_is_reported_even_if_nothing_may_be_waited_for() {
        assert_eq!(counted(true, 0, 0), (Woken::Met(0), 0));
        assert_eq!(counted(false, 0, 0), (Woken::Deadline, 0));
    }
}
