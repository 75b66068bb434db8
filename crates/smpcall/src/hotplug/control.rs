//! What bringing up, taking down and declaring dead have in common: who controls, until when, and the callbacks.

use core::sync::atomic::Ordering::{Acquire, Release};
use core::time::Duration;

use super::{Callback, DYING, FENCED, Hotplug, HotplugError, PARKED, PHASE, Refused, SETTLED, Stage};
use crate::door::OPEN;
use crate::global::{Exclusive, Reset};
use crate::{Cpu, CrossCall, Deadline, Instant, Life, Mailbox};
use smpcall_machine::{EventKind, Woken, wait};

/// The right to bring a CPU up or to take it down, and until when.
pub(super) struct Control<K: Hotplug> {
    pub(super) exclusive: Exclusive<K>,
    pub(super) cpu: Cpu,
    pub(super) theirs: &'static Mailbox<K>,
    pub(super) started: Instant,
    pub(super) limit: Duration,
    pub(super) deadline: Deadline,
}

impl<K: Hotplug> Control<K> {
    /// Task context, interrupts enabled, not inside of a served closure.
    pub(super) fn take(cpu: Cpu, limit: Duration) -> Result<Self, HotplugError> {
        let caller = CrossCall::<K>::within(limit);
        let exclusive = Exclusive::take(&caller)?;
        let theirs = exclusive.owner.boxes().get(cpu).ok_or(HotplugError::NoSuchCpu)?;
        Ok(Self { exclusive, cpu, theirs, started: caller.started, limit, deadline: caller.deadline })
    }

    pub(super) fn me(&self) -> Cpu {
        self.exclusive.owner.me
    }

    /// The life word of the CPU. Acquire: what it did before it got there is visible.
    pub(super) fn life(&self) -> u64 {
        self.theirs.life.load(Acquire)
    }

    pub(super) fn is_open(&self) -> bool {
        // Acquire: what the CPU did before it opened, or while it closed.
        self.theirs.door.0.load(Acquire) & OPEN != 0
    }

    /// Writes the life word where nobody else does. Release: what was done before is visible to the CPU that acts on it.
    pub(super) fn set_life(&self, life: u64) {
        self.theirs.life.store(life, Release);
        self.trace(life);
    }

    pub(super) fn trace(&self, life: u64) {
        let here = self.exclusive.owner;
        here.boxes().trace(
            here.me,
            EventKind::LifeChanged,
            Some(self.cpu),
            life as usize & PHASE as usize,
            0,
        );
    }

    /// Leaves a phase unless somebody else has. Returns whether it was this one.
    pub(super) fn withdraw(&self, from: u64, to: u64) -> bool {
        // Release: as above. Acquire on failure: what the CPU has done instead.
        let withdrawn = self.theirs.life.compare_exchange(from, to, Release, Acquire).is_ok();
        if withdrawn {
            self.trace(to);
        }
        withdrawn
    }

    /// Stops the CPU for good.
    #[track_caller]
    pub(super) fn fence(&self) -> Result<(), HotplugError> {
        let _reset = Reset::begin(self.exclusive.owner).ok_or(HotplugError::Crashing)?;
        K::fence(self.cpu).map_err(HotplugError::Fence)
    }

    /// Waits until the CPU has left a phase; false at the deadline. Interrupts are enabled: they serve the mailbox.
    #[track_caller]
    pub(super) fn has_left(&self, phase: u64, deadline: Deadline) -> bool {
        wait::<K>(&[self.theirs.life.differs(PHASE, phase)], deadline) != Woken::Deadline
    }

    /// Waits until the CPU, which is `DYING`, has parked.
    pub(super) fn await_parked(&self, deadline: Deadline) -> Result<(), HotplugError> {
        if self.has_left(DYING, deadline) { Ok(()) } else { Err(HotplugError::Unfinished(Life::Dying)) }
    }

    /// The CPU is parked or fenced, and nothing of it is left: takes `prepare` back, and settles.
    pub(super) fn bury(&self) {
        debug_assert!(matches!(self.life() & PHASE, PARKED | FENCED), "it runs no more");
        self.take_back_prepare(K::callbacks().len());
        self.set_life(SETTLED);
    }

    /// Takes back the `prepare` of the first callbacks.
    pub(super) fn take_back_prepare(&self, count: usize) {
        for callback in K::callbacks()[..count].iter().rev() {
            if let Some(dead) = callback.dead {
                dead(self.cpu);
            }
        }
    }

    /// Runs one part of the callbacks until one refuses: its index, and why.
    pub(super) fn run(
        &self,
        callbacks: impl Iterator<Item = (usize, &'static Callback)>,
        stage: Stage,
    ) -> Result<(), (usize, HotplugError)> {
        for (index, callback) in callbacks {
            let part = match stage {
                Stage::Prepare => callback.prepare,
                Stage::Starting => callback.starting,
                Stage::Online => callback.online,
                Stage::Offline => callback.offline,
            };
            if let Some(part) = part
                && let Err(refused) = part(self.cpu)
            {
                return Err((index, refused_by(callback, stage, refused)));
            }
        }
        Ok(())
    }
}

pub(super) fn refused_by(callback: &Callback, stage: Stage, refused: Refused) -> HotplugError {
    HotplugError::Callback { name: callback.name, stage, refused, taken_back: true }
}
