//! The front door: everything a kernel calls, by one name, `type Calls = CrossCall<MyKernel>`.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;

use crate::attend::Attended;
use crate::door::{ATTENDED, MARKS, OPEN, RESCHEDULE};
use crate::mark::Marked;
use crate::post::{Deferred, Posted};
use crate::serve::Here;
use crate::{CallError, Caller, Cpu, Deadline, InterruptsOff, Kernel, LEVELS, PostError};
use smpcall_machine::{EventKind, Ipi, When, Woken, wait};

/// How deep passes may be nested before a poll declines: waits need a pass for each call level, and no more.
const DEEPEST_POLL: u64 = 2 * LEVELS as u64;

/// Cross-CPU calls of one kernel. Never made: `type Calls = CrossCall<MyKernel>;` and then `Calls::within(...)`.
pub struct CrossCall<K: Kernel> {
    kernel: PhantomData<fn() -> K>,
}

impl<K: Kernel> CrossCall<K> {
    /// A caller whose calls end within `limit` from now. See [`Caller`].
    #[inline(always)]
    pub fn within(limit: Duration) -> Caller<'static, K> {
        let now = K::now();
        Caller::new(now, Deadline::at(now.plus(limit)))
    }

    /// A caller whose calls end at `deadline`.
    #[inline(always)]
    pub fn until(deadline: Deadline) -> Caller<'static, K> {
        Caller::new(K::now(), deadline)
    }

    /// A caller whose calls wait for ever for a target that is online and never answers.
    #[inline(always)]
    pub fn for_ever() -> Caller<'static, K> {
        Caller::new(K::now(), Deadline::NEVER)
    }

    /// Queues a post on `target`, which may be this CPU, and does not wait. Any context, NMI included.
    ///
    /// What was written before is visible when it runs. Posts of one source to one target run in order. If it
    /// is queued there already and has not begun to run, the two become one.
    ///
    /// # Errors
    /// [`PostError`], which holds the handle: nothing was queued.
    pub fn post<T: Deferred<K>>(target: Cpu, handle: T::Handle) -> Result<Posted, PostError<T::Handle>> {
        crate::post::post::<K, T>(target, handle)
    }

    /// Asks `target` to call [`Kernel::reschedule`]; does not wait. Losing the interrupt costs a tick of the
    /// target, never a task: the request stays in its mailbox. Any context, NMI included.
    ///
    /// # Errors
    /// [`CallError::NoSuchCpu`], [`CallError::Offline`].
    pub fn reschedule(target: Cpu) -> Result<(), CallError> {
        let pinned = InterruptsOff::<K>::new();
        let here = Here::<K>::new(pinned.cpu()).ok_or(CallError::NoSuchCpu)?;
        let theirs = here.boxes().get(target).ok_or(CallError::NoSuchCpu)?;
        match theirs.mark_kind(RESCHEDULE) {
            Marked::Closed => return Err(CallError::Offline),
            Marked::Quiet => here.ring(target),
            Marked::Noticed => {}
        }
        Ok(())
    }

    /// Whether `cpu` accepts calls at this moment.
    pub fn is_online(cpu: Cpu) -> bool {
        // Relaxed: old by the time it is used, whatever the ordering.
        K::mailboxes().get(cpu).is_some_and(|mailbox| mailbox.door.0.load(Relaxed) & OPEN != 0)
    }

    /// The handler of [`Ipi::Ring`]. With interrupts disabled, before or after the end of interrupt is signalled: a
    /// ring that arrives meanwhile is either served here or pends.
    #[inline]
    pub fn handle_ring() {
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.mine.counters().rings_taken.add(1);
            here.serve();
        }
    }

    /// The whole handler of [`Ipi::Ring`] but for the end of interrupt: [`handle_ring`](Self::handle_ring) and
    /// [`exit_interrupt`](Self::exit_interrupt) in one. Under the conditions of both, after the end of interrupt.
    #[inline]
    pub fn ring_interrupt() {
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.mine.counters().rings_taken.add(1);
            here.serve_in_line();
            here.run_work();
        }
    }

    /// Serves this CPU's mailbox if it holds anything; returns whether it did. For a kernel's own spin loops, with
    /// interrupts enabled: with interrupts disabled it does nothing, see [`poll_with`](Self::poll_with). Closures run
    /// here, with interrupts disabled.
    pub fn poll() -> bool {
        let mut pinned = InterruptsOff::<K>::new();
        pinned.were_enabled() && Self::poll_with(&mut pinned)
    }

    /// As [`poll`](Self::poll), with interrupts disabled: nothing that the guard protects is in use meanwhile. Called
    /// from closures that are themselves served by polling, it nests only so deep and then returns false.
    pub fn poll_with(guard: &mut InterruptsOff<K>) -> bool {
        let _ = guard;
        // The guard may not be the one that keeps interrupts off: they can be dropped in any order.
        let pinned = InterruptsOff::<K>::new();
        Here::<K>::new(pinned.cpu()).is_some_and(|here| here.depth() < DEEPEST_POLL && here.serve())
    }

    /// From the timer interrupt of every CPU: finds posts and reschedule requests whose ring was lost.
    pub fn tick() {
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.serve();
        }
    }

    /// Before a CPU halts: serves the mailbox, and returns whether it is quiet and no deferred work is left. If so the
    /// CPU may enable interrupts and halt in one step (`sti; hlt`): who comes later rings. If not, it enables
    /// interrupts, [runs its work](Self::run_work), and comes back.
    pub fn may_halt(guard: &mut InterruptsOff<K>) -> bool {
        let _ = guard;
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return true };
        here.may_halt()
    }

    /// Waits by polling: serves this CPU's mailbox, which nobody rings meanwhile, until the condition holds or
    /// the deadline has passed. For polling idle loops and waits with interrupts disabled. In an NMI handler it only
    /// waits.
    pub fn poll_until(
        guard: &mut InterruptsOff<K>,
        condition: When<'_, K::Memory>,
        deadline: Deadline,
    ) -> Woken {
        let _ = guard;
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return wait::<K>(&[condition], deadline) };
        if K::in_nmi() {
            return wait::<K>(&[condition], deadline);
        }
        let attended = Attended::begin(here);
        let woken = loop {
            match here.wait_serving(condition, true, deadline) {
                Woken::Met(1) if !deadline.has_passed(K::now()) => {}
                Woken::Met(1) => break Woken::Deadline,
                woken => break woken,
            }
        };
        drop(attended);
        woken
    }

    /// From the tick of one CPU that is never tickless, on behalf of those that are: rings every CPU whose
    /// mailbox has stood marked and unserved since the last time. Returns how many were rung.
    pub fn backstop() -> usize {
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return 0 };
        let now = K::now();
        let mut rung = 0;
        for target in here.boxes().cpus() {
            let Some(theirs) = here.boxes().get(target) else { continue };
            let own = &theirs.own.0;
            let passes = own.counters.passes.get() + 1;
            // Relaxed: whoever is marked now and was not served stays so until the next look.
            let door = theirs.door.0.load(Relaxed);
            if door & (OPEN | ATTENDED) != OPEN || door & MARKS == 0 {
                if own.passes_at_backstop.get() != 0 {
                    own.passes_at_backstop.set(0);
                }
            } else if own.passes_at_backstop.get() != passes {
                own.passes_at_backstop.set(passes);
            } else if theirs.may_be_rung_again(now, K::LONGEST_BACKOFF * 2) {
                // No waiter has done it: their looks are at most a longest back-off apart.
                here.mine.counters().rings_repeated.add(1);
                here.boxes().trace(here.me, EventKind::RungAgain, Some(target), 0, 0);
                let sent = K::send(target, Ipi::Ring);
                here.boxes().note_ring(here.me, Some(target), sent);
                rung += 1;
            }
        }
        rung
    }

    /// The NMI handler's part: answers a probe, if there is one. Returns whether there was; an NMI for which
    /// nobody has a reason is the kernel's to explain. (If a probe stands unanswered for 10 ms, another CPU may send one
    /// more; when both NMIs are taken at last, the second finds nothing to answer.) Pass what the NMI interrupted.
    pub fn handle_nmi(instruction_pointer: u64, interrupts_enabled: bool) -> bool {
        let pinned = InterruptsOff::<K>::new();
        Here::<K>::new(pinned.cpu())
            .is_some_and(|here| here.answer_probe(instruction_pointer, interrupts_enabled))
    }
}

impl<K: Kernel> Here<K> {
    /// Serves; whether the mailbox is quiet then and no work is left.
    #[inline(always)]
    pub(crate) fn may_halt(self) -> bool {
        let door = self.door_to_serve();
        if door != 0 {
            self.serve_marked(door);
            if self.door_to_serve() != 0 {
                return false;
            }
        }
        // What has come after the last look rings.
        !self.mine.has_work()
    }
}
