//! Taking a CPU down: the controller's side, and the dying CPU's.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use super::control::Control;
use super::{ASKED, DYING, Hotplug, HotplugError, PARKED, PHASE, SETTLED, Stage, UP};
use crate::door::ATTENDED;
use crate::serve::Here;
use crate::{CallError, Cpu, CrossCall, Deadline, Diagnosis, InterruptsOff};

impl<K: Hotplug> CrossCall<K> {
    /// Takes a CPU down. When this has returned `Ok` it is parked, its mailbox is closed and empty, and nothing is
    /// accepted for it until it is brought up again (law L5): what it had accepted was run there, returned to its
    /// caller, or - deferred work that it had not come to - handed to
    /// [`Deferred::abandoned`](crate::Deferred::abandoned) here.
    ///
    /// From a task that stays on its CPU (preemption disabled, or bound to it), with interrupts enabled. The limit is for
    /// the CPU to become idle and to go; callbacks last as long as they last.
    ///
    /// # Errors
    /// [`HotplugError`]. After [`Unfinished`](HotplugError::Unfinished) call it again.
    pub fn cpu_down(cpu: Cpu, limit: Duration) -> Result<(), HotplugError> {
        let control = Control::<K>::take(cpu, limit)?;
        if cpu == control.me() {
            return Err(HotplugError::OneSelf);
        }
        if cpu == K::boot_cpu() && !K::BOOT_CPU_MAY_GO {
            return Err(HotplugError::BootCpu);
        }
        if !K::mailboxes().cpus().any(|other| other != cpu && Self::is_online(other)) {
            return Err(HotplugError::LastOnline);
        }
        control.bring_down()
    }

    /// From the idle loop, with interrupts disabled since [`may_halt`](Self::may_halt) was asked, and before the halt: if
    /// this CPU was asked to go offline, it goes, and this does not return. (In this order the question is not
    /// overslept: whatever `may_halt` has served was asked before, and what comes after it wakes the CPU.)
    ///
    /// Runs the `dying` callbacks, then closes and empties the mailbox as its last act, and parks. From inside of a
    /// served closure, a wait of this CPU with interrupts off, or an NMI handler it does nothing.
    pub fn die_if_asked(guard: &mut InterruptsOff<K>) {
        let _ = guard;
        let mut pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.die_if_asked(&mut pinned);
        }
    }

    /// What an idle loop does before it halts, in one: [`may_halt`](Self::may_halt), and if so
    /// [`die_if_asked`](Self::die_if_asked) and a note of [progress](crate::Lockups). Under the conditions of these.
    #[inline]
    pub fn before_halt(guard: &mut InterruptsOff<K>) -> bool {
        let _ = guard;
        let mut pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return true };
        let may_halt = here.may_halt();
        if may_halt {
            here.die_if_asked(&mut pinned);
            here.mine.own.0.watch.progress.add(1);
        }
        may_halt
    }
}

impl<K: Hotplug> Here<K> {
    #[inline(always)]
    fn die_if_asked(self, pinned: &mut InterruptsOff<K>) {
        // Relaxed: the exchange decides.
        if self.mine.life.load(Relaxed) == ASKED {
            self.die(pinned);
        }
    }

    #[cold]
    fn die(self, pinned: &mut InterruptsOff<K>) {
        let here = self;
        let life = &here.mine.life;
        // Relaxed: the own door.
        let attended = here.mine.door.0.load(Relaxed) & ATTENDED != 0;
        if K::in_nmi() || here.depth() != 0 || attended {
            return;
        }
        // This step decides against the controller's withdrawal. Acquire: what `offline` did is visible.
        if life.compare_exchange(ASKED, DYING, Acquire, Relaxed).is_err() {
            return;
        }
        here.trace_life(DYING);
        for callback in K::callbacks().iter().rev() {
            if let Some(dying) = callback.dying {
                dying(here.me);
            }
        }
        CrossCall::<K>::close(pinned);
        CrossCall::<K>::declare_nmi(false);
        here.trace_life(PARKED);
        // Release: this is the last access of this CPU, and all of them happen before the controller goes on.
        life.store(PARKED, Release);
        K::park();
    }
}

impl<K: Hotplug> Control<K> {
    fn bring_down(&self) -> Result<(), HotplugError> {
        match self.life() & PHASE {
            SETTLED if !self.is_open() => Err(HotplugError::AlreadyOffline),
            SETTLED => self.go_offline(),
            // Its `online` callbacks have not run.
            UP => self.take_down(UP, self.deadline),
            // A callback of a former controller panicked.
            ASKED => self.take_down(SETTLED, self.deadline),
            DYING => {
                self.await_parked(self.deadline)?;
                self.bury_parked();
                Ok(())
            }
            PARKED => {
                self.bury_parked();
                Ok(())
            }
            _ => Err(HotplugError::Unfinished(self.theirs.life())),
        }
    }

    fn go_offline(&self) -> Result<(), HotplugError> {
        let callbacks = K::callbacks();
        let result = self.run(callbacks.iter().enumerate().rev(), Stage::Offline);
        let (first_done, error) = match result {
            Err((refusing, error)) => (refusing + 1, error),
            Ok(()) => match self.take_down(SETTLED, self.deadline) {
                Err(error @ HotplugError::TimedOut(_)) => (0, error),
                result => return result,
            },
        };
        for callback in &callbacks[first_done..] {
            if let Some(online) = callback.online {
                // It takes back what was moved away. What it returns has nobody to be told to who could do more.
                let _ = online(self.cpu);
            }
        }
        Err(error)
    }

    /// Asks the CPU to go and waits until it is parked and buried. At the deadline, if it has not begun to go, the question
    /// is withdrawn, and it is in this phase again.
    pub(super) fn take_down(&self, withdrawn: u64, deadline: Deadline) -> Result<(), HotplugError> {
        self.set_life(ASKED);
        // A call, so that a lost ring is repeated, and the CPU leaves its halt. It may go before it comes.
        let kicked = CrossCall::<K>::until(deadline).call(self.cpu, || ());
        if !self.has_left(ASKED, deadline) && self.withdraw(ASKED, withdrawn) {
            return Err(HotplugError::TimedOut(match kicked {
                Err(CallError::TimedOut(diagnosis)) => diagnosis,
                // It serves calls, but does not come to its idle loop.
                _ => Diagnosis {
                    target: self.exclusive.owner.boxes().state_of(self.cpu, None),
                    rings_repeated: 0,
                    waited: K::now().since(self.started),
                },
            }));
        }
        self.await_parked(deadline)?;
        self.bury_parked();
        Ok(())
    }

    /// The CPU has parked itself.
    pub(super) fn bury_parked(&self) {
        // Work that was raised on it and that it had not come to. SAFETY: it is parked, and the acquire load that said so
        // orders all its accesses before this. Whoever controls it is alone. Its list is closed.
        unsafe { crate::lists::abandon_posts::<K>(self.cpu) };
        self.bury();
    }
}
