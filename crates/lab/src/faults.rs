//! Faults in the send path: rings that are swallowed, as if an interrupt controller had lost them.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use smpcall_machine::{Cpu, CpuMask};

use crate::machine::Cpus;
use crate::random;

/// Whether any fault is set: what a send pays for the others is one look at this.
static ON: AtomicBool = AtomicBool::new(false);
/// How many of a million rings are swallowed.
static PER_MILLION: AtomicU32 = AtomicU32::new(0);
/// The CPU, plus 1, to which all rings are swallowed; 0: none.
static DEAF: AtomicU32 = AtomicU32::new(0);
/// How many rings are still to be swallowed on the way to the deaf CPU.
static DEAF_FOR: AtomicU64 = AtomicU64::new(0);
/// How many rings were swallowed.
static SWALLOWED: AtomicU64 = AtomicU64::new(0);

/// Sets faults: so many of a million rings, whomever they are for, and the next so many to one CPU.
pub(crate) fn set(per_million: u32, deaf: Option<(Cpu, u64)>) {
    // Relaxed throughout: a ring that is just being sent may be swallowed or not.
    PER_MILLION.store(per_million, Relaxed);
    DEAF_FOR.store(deaf.map_or(0, |deaf| deaf.1), Relaxed);
    DEAF.store(deaf.map_or(0, |deaf| deaf.0.number() + 1), Relaxed);
    ON.store(per_million > 0 || deaf.is_some(), Relaxed);
}

/// Whether any fault is set.
#[inline(always)]
pub(crate) fn are_on() -> bool {
    ON.load(Relaxed)
}

/// How many rings were swallowed since the machine was started.
pub(crate) fn swallowed() -> u64 {
    SWALLOWED.load(Relaxed)
}

/// Whether a ring that is about to be sent to this CPU gets lost.
#[inline(always)]
pub(crate) fn swallows(target: Cpu) -> bool {
    are_on() && decide(target)
}

#[cold]
fn decide(target: Cpu) -> bool {
    let deaf = DEAF.load(Relaxed) == target.number() + 1
        && DEAF_FOR.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
    let swallowed = deaf || random::below(1_000_000) < u64::from(PER_MILLION.load(Relaxed));
    if swallowed {
        SWALLOWED.fetch_add(1, Relaxed);
    }
    swallowed
}

/// Those of the targets whose ring is not swallowed.
pub(crate) fn spared(targets: &CpuMask) -> Cpus {
    targets.iter().filter(|&target| !swallows(target)).collect()
}
