//! Bringing a CPU up: the controller's side, and the new CPU's.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use super::control::{Control, refused_by};
use super::{
    ALIVE, FAILED, Hotplug, HotplugError, INDEX, INDEX_SHIFT, LATE, Life, PARKED, PHASE, REASON_SHIFT,
    Refused, SETTLED, STARTING, Stage, UP,
};
use crate::global::Reset;
use crate::serve::Here;
use crate::{Cpu, CrossCall, InterruptsOff, Mailbox};
use smpcall_machine::EventKind;

impl<K: Hotplug> CrossCall<K> {
    /// Brings a CPU up: prepares, starts it, waits until it serves calls, and runs its `online` callbacks.
    ///
    /// From a task that stays on its CPU (preemption disabled, or bound to it), with interrupts enabled. The limit
    /// is for the CPU to come and to open its mailbox; what [`start_cpu`](Hotplug::start_cpu) takes, and
    /// [`fence`](Hotplug::fence) after a start that came to nothing, is part of it (on x86 up to 10 ms each). The callbacks of
    /// the controller last as long as they last.
    ///
    /// # Errors
    /// [`HotplugError`]. After [`Unfinished`](HotplugError::Unfinished) call it again.
    pub fn cpu_up(cpu: Cpu, limit: Duration) -> Result<(), HotplugError> {
        Control::<K>::take(cpu, limit)?.bring_up()
    }

    /// The end of a new CPU's start-up code, with its handlers in place and interrupts disabled: runs its `starting`
    /// callbacks, declares that it takes NMIs, and opens its mailbox. From then on calls are served.
    ///
    /// Returns only on a CPU that is wanted. One that comes too late, or that nobody has started, parks.
    pub fn start_here(guard: &mut InterruptsOff<K>) {
        let _ = guard;
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { K::park() };
        let life = &here.mine.life;
        // This step decides against the controller's giving up. Acquire: what `prepare` did is visible.
        if life.compare_exchange(STARTING, ALIVE, Acquire, Relaxed).is_err() {
            // Nobody has to fence a CPU that has come late and parked. Release: this is its last access.
            if life.compare_exchange(LATE, SETTLED, Release, Relaxed).is_ok() {
                here.trace_life(SETTLED);
            }
            K::park();
        }
        here.trace_life(ALIVE);
        here.forget_former_life();
        let callbacks = K::callbacks();
        for (index, callback) in callbacks.iter().enumerate() {
            if let Some(starting) = callback.starting
                && let Err(Refused(reason)) = starting(here.me)
            {
                for callback in callbacks[..index].iter().rev() {
                    if let Some(dying) = callback.dying {
                        dying(here.me);
                    }
                }
                here.trace_life(FAILED);
                let failed = FAILED | (index as u64) << INDEX_SHIFT | u64::from(reason) << REASON_SHIFT;
                // Release: what was taken back is visible to the controller, which takes back the rest.
                life.store(failed, Release);
                K::park();
            }
        }
        Self::declare_nmi(true);
        if here.boxes().has_crashed() {
            // The winner may have found that this CPU takes no NMI (law L7).
            K::park();
        }
        Self::open();
        here.trace_life(UP);
        // Release: the controller's `online` callbacks see what `starting` did.
        life.store(UP, Release);
    }
}

impl<K: Hotplug> Here<K> {
    /// Nobody remembers a ring, a probe, a back trace or an alarm of its life before. By the CPU itself, because whoever
    /// still waits for one of them takes a zero for an answer as long as the CPU is dead; and before its `starting`
    /// callbacks, which may have its ticks watched.
    fn forget_former_life(&self) {
        let Mailbox { rung_again_at, probe_wanted, back_trace_wanted, hard_locked_up, .. } = self.mine;
        for word in [rung_again_at, probe_wanted, back_trace_wanted, hard_locked_up] {
            // Relaxed: the opening comes after it.
            word.store(0, Relaxed);
        }
        self.mine.own.0.watch.clear();
    }

    /// This CPU's own life goes on.
    pub(super) fn trace_life(&self, life: u64) {
        self.boxes().trace(self.me, EventKind::LifeChanged, None, life as usize, 0);
    }
}

impl<K: Hotplug> Control<K> {
    fn bring_up(&self) -> Result<(), HotplugError> {
        loop {
            match self.life() & PHASE {
                SETTLED if self.is_open() => return Err(HotplugError::AlreadyOnline),
                SETTLED if self.cpu == K::boot_cpu() => return Err(HotplugError::BootCpu),
                SETTLED => self.start()?,
                LATE => {
                    // It may come at any moment, and take this start for its own. It holds nothing.
                    self.fence()?;
                    self.set_life(SETTLED);
                }
                STARTING => self.await_coming()?,
                ALIVE => {
                    if !self.has_left(ALIVE, self.deadline) {
                        return Err(HotplugError::Unfinished(Life::Alive));
                    }
                }
                FAILED => return Err(self.take_back_start()),
                UP => return self.go_online(),
                PARKED => self.bury_parked(),
                _ => return Err(HotplugError::Unfinished(self.theirs.life())),
            }
        }
    }

    fn start(&self) -> Result<(), HotplugError> {
        if let Err((done, error)) = self.run(K::callbacks().iter().enumerate(), Stage::Prepare) {
            self.take_back_prepare(done);
            return Err(error);
        }
        self.set_life(STARTING);
        let started = match Reset::begin(self.exclusive.owner) {
            Some(_reset) => K::start_cpu(self.cpu).map_err(HotplugError::NotStarted),
            None => Err(HotplugError::Crashing),
        };
        match started {
            Err(error) if self.give_up() => Err(error),
            // If it has come it has come.
            _ => Ok(()),
        }
    }

    /// Waits until the CPU has come.
    fn await_coming(&self) -> Result<(), HotplugError> {
        if !self.has_left(STARTING, self.deadline) && self.give_up() {
            return Err(HotplugError::NotCome { waited: K::now().since(self.started) });
        }
        Ok(())
    }

    /// Gives up a CPU that has not come; false if it just has.
    fn give_up(&self) -> bool {
        let late = self.withdraw(STARTING, LATE);
        if late {
            self.take_back_prepare(K::callbacks().len());
        }
        late
    }

    /// The new CPU has parked, because one of its callbacks refused.
    fn take_back_start(&self) -> HotplugError {
        let life = self.life();
        let refused = Refused((life >> REASON_SHIFT) as u32);
        self.take_back_prepare(K::callbacks().len());
        self.set_life(SETTLED);
        let index = (life >> INDEX_SHIFT & INDEX) as usize;
        refused_by(&K::callbacks()[index], Stage::Starting, refused)
    }

    fn go_online(&self) -> Result<(), HotplugError> {
        let Err((done, mut error)) = self.run(K::callbacks().iter().enumerate(), Stage::Online) else {
            self.set_life(SETTLED);
            return Ok(());
        };
        for callback in K::callbacks()[..done].iter().rev() {
            if let Some(offline) = callback.offline {
                // It takes back: see `Callback::offline`.
                let _ = offline(self.cpu);
            }
        }
        // As long again, because the first limit may be up.
        if self.take_down(UP, smpcall_machine::Deadline::within::<K>(self.limit)).is_err()
            && let HotplugError::Callback { taken_back, .. } = &mut error
        {
            *taken_back = false;
        }
        Err(error)
    }
}
