//! What the whole machine shares, and not two of its CPUs: who may change the set of CPUs, or stop all of them.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::attend::Attended;
use crate::serve::Here;
use crate::{CallError, Caller, Cpu, ExclusiveError, Kernel, Word};
use smpcall_machine::{Woken, wait};

/// The machine's own words, beside those of its CPUs. All zero at first.
pub(crate) struct Global<K: Kernel> {
    /// Who holds [`Exclusive`]: its CPU's number + 1, or 0.
    pub(crate) exclusive: Word<K>,
    /// The stage of the rendezvous that is under way, or 0.
    pub(crate) stage: Word<K>,
    /// The winner of a crash stop: its CPU's number + 1; or 0; or a [`Reset`] that nobody wins during.
    pub(crate) crash: Word<K>,
}

/// In the place of a winner: the CPU in the lower bits resets another one.
const RESET: u64 = 1 << 63;

/// The winner that a crash word names, if it names one.
#[inline]
pub(crate) const fn winner_in(crash: u64) -> Option<Cpu> {
    if crash == 0 || crash & RESET != 0 { None } else { Some(Cpu::new(crash as u32 - 1)) }
}

/// The CPU that resets another one, if this is what a crash word says.
pub(crate) const fn resetter_in(crash: u64) -> Option<Cpu> {
    if crash & RESET == 0 { None } else { Some(Cpu::new(crash as u32)) }
}

/// While this CPU resets another one, no crash stop is won: the winner could be the one that is reset, and would stop nobody
/// then. Whoever crashes meanwhile waits for the end of it, and not for long.
pub(crate) struct Reset<K: Kernel> {
    crash: &'static Word<K>,
    held: u64,
}

impl<K: Kernel> Reset<K> {
    /// None if a CPU has crashed: then nobody is to be reset any more.
    pub(crate) fn begin(here: Here<K>) -> Option<Self> {
        let (crash, held) = (&here.boxes().global().crash, RESET | u64::from(here.me.number()));
        // Relaxed: the word alone decides who comes first, and the reset makes itself visible.
        crash.compare_exchange(0, held, Relaxed, Relaxed).is_ok().then_some(Self { crash, held })
    }
}

impl<K: Kernel> Drop for Reset<K> {
    fn drop(&mut self) {
        // Fails if somebody has lost patience. Relaxed: as above.
        let _ = self.crash.compare_exchange(self.held, 0, Relaxed, Relaxed);
    }
}

impl<K: Kernel> Global<K> {
    pub(crate) const NEW: Self =
        Self { exclusive: Word::<K>::new(0), stage: Word::<K>::new(0), crash: Word::<K>::new(0) };

    /// All its words, each with its name.
    pub(crate) fn words(&self) -> [(&Word<K>, &'static str); 3] {
        [(&self.exclusive, "exclusive"), (&self.stage, "stage"), (&self.crash, "crash")]
    }
}

/// The right to change the set of CPUs, or to stop them for each other: one on the whole machine, until it is dropped.
///
/// It is taken by a wait that serves (law L6) and has a deadline (law L3). A crash stop does not ask for it.
///
/// # Caveats
/// A CPU that dies while it holds it takes it along: from then on hotplug, rendezvous and declaring dead, of this CPU too,
/// end with [`ExclusiveError::HeldBy`] and its number. Which callback it was in the middle of, nobody knows, so nobody takes
/// the right away from it; calls and posts go on. What is left is a crash stop.
pub(crate) struct Exclusive<K: Kernel> {
    /// The CPU that took it.
    pub(crate) owner: Here<K>,
}

impl<K: Kernel> Exclusive<K> {
    /// Waits until nobody has it, in the context and until the deadline of `caller`.
    pub(crate) fn take(caller: &Caller<'_, K>) -> Result<Self, ExclusiveError> {
        loop {
            let (pinned, here) = caller.pin().map_err(|error| match error {
                CallError::FromNmi => ExclusiveError::FromNmi,
                CallError::InterruptsOff => ExclusiveError::InterruptsOff,
                CallError::InRendezvous => ExclusiveError::InsideServed,
                _ => ExclusiveError::NoSuchCpu,
            })?;
            if here.depth() != 0 {
                // What the owner waits for may be this very closure.
                return Err(ExclusiveError::InsideServed);
            }
            let word = &here.boxes().global().exclusive;
            // Acquire: what the last owner did is done.
            let Err(owner) = word.compare_exchange(0, u64::from(here.me.number()) + 1, Acquire, Relaxed)
            else {
                return Ok(Self { owner: here });
            };
            let free = word.equals(!0, 0);
            let woken = if caller.interrupts_off {
                let attended = Attended::begin(here);
                let woken = here.wait_serving(free, true, caller.deadline);
                drop(attended);
                drop(pinned);
                woken
            } else {
                drop(pinned);
                wait::<K>(&[free], caller.deadline)
            };
            // A flood of calls must not hide the deadline.
            if woken == Woken::Deadline || woken == Woken::Met(1) && caller.deadline.has_passed(K::now()) {
                return Err(ExclusiveError::HeldBy(Cpu::new(owner as u32 - 1)));
            }
        }
    }
}

impl<K: Kernel> Drop for Exclusive<K> {
    fn drop(&mut self) {
        // Release: to the next owner, all that this one did.
        self.owner.boxes().global().exclusive.store(0, Release);
    }
}
