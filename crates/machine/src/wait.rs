//! The one wait of the whole project. A raw spin loop anywhere else is a defect (law L3).

use core::sync::atomic::Ordering;

use crate::{Deadline, Machine, Memory, Word};

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The condition with this index held.
    Met(usize),
    /// The deadline passed and no condition held at that time.
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
}

impl<M: Memory, const N: usize> Conditions for [When<'_, M>; N] {
    #[inline(always)]
    #[track_caller]
    fn first_met(&self) -> Option<usize> {
        self.iter().position(|condition| condition.holds())
    }

    fn describe(&self, see: &mut dyn FnMut(Awaited)) {
        for &When { word, mask, value, equal } in self {
            see(Awaited { location: word.location(), mask, value, equal });
        }
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

/// The wait of real machines: a loop with the pause hint. Called by [`Memory`] implementations only.
#[inline]
pub fn spin<M: Machine>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
    loop {
        if let Some(index) = conditions.first_met() {
            return Woken::Met(index);
        }
        if !deadline.is_never() && deadline.has_passed(M::now()) {
            return Woken::Deadline;
        }
        M::pause();
    }
}
