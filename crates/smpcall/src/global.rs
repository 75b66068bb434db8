//! What the whole machine shares, and not two of its CPUs: who may change the set of CPUs, or stop all of them.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::attend::Attended;
use crate::serve::Here;
use crate::{CallError, Caller, Cpu, ExclusiveError, Kernel, Word};
use smpcall_machine::{Woken, wait};

/// The machine's own words, beside those of its CPUs. All zero at first.
pub(crate) struct Global<K: Kernel> {
    /// Who holds [`Exclusive`]: its CPU's number + 1, or 0. In the upper half likewise its [heir](Exclusive::take_from).
    pub(crate) exclusive: Word<K>,
    /// The stage of the rendezvous that is under way, or 0.
    pub(crate) stage: Word<K>,
    /// The winner of a crash stop: its CPU's number + 1; or 0; or a [`Reset`] that nobody wins during.
    pub(crate) crash: Word<K>,
}

/// The half of the exclusive word that names the owner; the heir is in the other one.
const OWNER: u64 = 0xffff_ffff;
const HEIR_SHIFT: u32 = 32;

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
    /// None if a CPU has crashed: then nobody is to be reset any more. If it was `target`, the CPU that is to be reset, that
    /// was just resetting another one, that is over.
    pub(crate) fn begin(here: Here<K>, target: Cpu) -> Option<Self> {
        let (crash, held) = (&here.boxes.global().crash, RESET | u64::from(here.me.number()));
        let left = RESET | u64::from(target.number());
        // Relaxed: the word alone decides who comes first, and the reset makes itself visible.
        let is_mine = |before| crash.compare_exchange(before, held, Relaxed, Relaxed).is_ok();
        (is_mine(0) || is_mine(left)).then_some(Self { crash, held })
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
/// * A CPU that dies while it holds it takes it along: from then on hotplug, rendezvous and declaring others dead end with
///   [`ExclusiveError::HeldBy`] and its number, until that one is declared dead. Calls and posts go on. If its heir dies, too,
///   before it has stopped it, both are beyond that, and a crash stop is left.
/// * Who holds it serves while it waits (but not while it declares a CPU dead). A closure that it serves, or a handler that
///   interrupts it, and that waits without a deadline for a CPU that has died, keeps it, and it keeps the right, so that nobody
///   can declare that CPU dead: what closures and handlers call has a deadline.
pub(crate) struct Exclusive<K: Kernel> {
    /// The CPU that took it.
    pub(crate) owner: Here<K>,
}

impl<K: Kernel> Exclusive<K> {
    /// Waits until nobody has it, in the context and until the deadline of `caller`.
    pub(crate) fn take(caller: &Caller<'_, K>) -> Result<Self, ExclusiveError> {
        Self::take_from(caller, None)
    }

    /// Likewise; and if `dying` has it, which is to be declared dead, this CPU becomes its heir. Only one CPU can. Until it has
    /// stopped that CPU for good, and then [inherited](Self::inherit) the right, it has the right to do that, and no other.
    pub(crate) fn take_from(caller: &Caller<'_, K>, dying: Option<Cpu>) -> Result<Self, ExclusiveError> {
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
            let word = &here.boxes.global().exclusive;
            let mine = u64::from(here.me.number()) + 1;
            // Acquire: what the last owner did is done.
            let Err(owner) = word.compare_exchange(0, mine, Acquire, Relaxed) else {
                return Ok(Self { owner: here });
            };
            let is_dying = |cpu: Cpu| cpu != here.me && owner == u64::from(cpu.number()) + 1;
            if dying.is_some_and(is_dying) {
                // Relaxed: nothing of what the owner does is relied on before it has stopped.
                match word.compare_exchange(owner, owner | mine << HEIR_SHIFT, Relaxed, Relaxed) {
                    Ok(_) => return Ok(Self { owner: here }),
                    Err(_) => continue,
                }
            }
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
                return Err(ExclusiveError::HeldBy(Cpu::new((owner & OWNER) as u32 - 1)));
            }
        }
    }

    /// The CPU that this one has declared dead has stopped: if it had the right, this one has it now.
    pub(crate) fn inherit(&self) {
        let (word, mine) = (&self.owner.boxes.global().exclusive, u64::from(self.owner.me.number()) + 1);
        // Relaxed, both: the heir is the only one left who writes it, and the fence has made visible what the owner did.
        if word.load(Relaxed) != mine {
            word.store(mine, Relaxed);
        }
    }
}

impl<K: Kernel> Drop for Exclusive<K> {
    fn drop(&mut self) {
        let (word, mine) = (&self.owner.boxes.global().exclusive, u64::from(self.owner.me.number()) + 1);
        // Relaxed: the exchange decides.
        let mut seen = word.load(Relaxed);
        loop {
            let (owner, heir) = (seen & OWNER, seen >> HEIR_SHIFT);
            // An owner leaves it to its heir, if it has one; an heir whose owner lives leaves it to that one.
            let next = if owner == mine { heir } else { owner };
            // Release: to the next owner, all that this one did.
            match word.compare_exchange(seen, next, Release, Relaxed) {
                Ok(_) => return,
                Err(found) => seen = found,
            }
        }
    }
}
