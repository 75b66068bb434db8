//! Deferred work: posts that run after the interrupt that found them, with interrupts enabled.
//!
//! What a block or network driver does when a request is complete takes too long for an interrupt, and belongs to
//! the CPU that made the request. It posts its request there ([`Deferred::IS_WORK`](crate::Deferred::IS_WORK)): the pass that
//! takes the post moves it to its CPU's own list of work, and the exit of that interrupt, the tick's, or the idle loop
//! runs it. Everything up to the move is a post's: refused by name if the CPU is offline, merged if it is queued
//! already, found by the tick if the ring was lost, in order for each CPU.
//!
//! | between | by | what makes sure that it is run |
//! |---|---|---|
//! | posted, not yet taken | ring, tick, idle entry, backstop | the door's mark, as for every post |
//! | listed, not yet run | the exit of the interrupt that listed it, or of any other; `run_work` of the idle loop | who polls with interrupts off and lists work rings itself; [`may_halt`](crate::CrossCall::may_halt) says no |
//! | begun | - | it is its kernel's own |
//!
//! Across hotplug: a CPU that goes down runs what it has listed before, and closes its mailbox; what came in between
//! stays listed, and is [abandoned](crate::Deferred::abandoned) to the CPU that has taken it down, as is that of a dead one.
//!
//! The list and whether somebody runs it are the CPU's own, changed with interrupts disabled only: so no atomic step is
//! needed, and no order beyond that of one CPU.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Relaxed, Release};

use crate::lists::UnderWay;
use crate::mailbox::Own;
use crate::post::Link;
use crate::serve::Here;
use crate::{CrossCall, InterruptsOff, Kernel, Mailbox};
use smpcall_machine::EventKind;

impl<K: Kernel> CrossCall<K> {
    /// Runs the deferred work of this CPU, with interrupts enabled, until none is left, or
    /// [`BUDGET`](Kernel::BUDGET) pieces of it. Returns whether it ran any. For idle loops and a kernel's own worker:
    /// in task context, with preemption disabled (the work belongs to this CPU) and interrupts enabled; with interrupts
    /// disabled, and from deferred work itself, it does nothing.
    pub fn run_work() -> bool {
        let pinned = InterruptsOff::<K>::new();
        pinned.were_enabled() && Here::<K>::new(pinned.cpu()).is_some_and(|here| here.run_work())
    }

    /// The last act of every handler of a maskable interrupt: runs deferred work as [`run_work`](Self::run_work) does,
    /// with interrupts enabled, and returns with interrupts disabled. Whether it ran any.
    ///
    /// Only at the end of a handler that has interrupted code with interrupts enabled (the second promise of
    /// [`Kernel`]), with preemption disabled, after the end of interrupt was signalled: what interrupts the work
    /// meanwhile returns from here at once, so that handlers nest only as deep as the kernel's vectors do.
    pub fn exit_interrupt() -> bool {
        let pinned = InterruptsOff::<K>::new();
        Here::<K>::new(pinned.cpu()).is_some_and(|here| here.run_work())
    }

    /// Whether deferred work of this CPU is listed and has not begun: after a spent budget, say.
    pub fn has_work() -> bool {
        let pinned = InterruptsOff::<K>::new();
        Here::<K>::new(pinned.cpu()).is_some_and(|here| here.mine.has_work())
    }
}

impl<K: Kernel> Here<K> {
    /// Interrupts are off before and after, and enabled while work runs.
    #[inline]
    pub(crate) fn run_work(&self) -> bool {
        if !self.mine.has_work() || K::in_nmi() {
            return false;
        }
        self.run_listed_work()
    }

    #[inline(never)]
    fn run_listed_work(&self) -> bool {
        let Some(working) = Working::begin(&self.mine.own.0) else { return false };
        let mut budget = K::BUDGET;
        let mut ran = false;
        // Looked at with interrupts off each time, the last time included: what an interrupt has listed meanwhile, whose
        // exit has left it to this loop, is seen.
        while budget > 0
            && let Some(link) = self.mine.oldest_work()
        {
            // SAFETY: the link is the oldest of this CPU's list of work, and interrupts are off.
            let taken = unsafe { self.mine.begin(link, self.me, Mailbox::drop_oldest_work) };
            self.boxes().trace(self.me, EventKind::WorkRun, None, 0, 0);
            self.mine.counters().work_run.add(1);
            let enabled = InterruptsOn::<K>::new();
            let under_way = UnderWay(&self.mine.own.0);
            taken.run();
            drop(under_way);
            drop(enabled);
            (ran, budget) = (true, budget - 1);
        }
        drop(working);
        ran
    }
}

impl<K: Kernel> Mailbox<K> {
    /// Whether work is listed. On the own CPU.
    #[inline(always)]
    pub(crate) fn has_work(&self) -> bool {
        // Relaxed: the owner's own.
        !self.work.load(Relaxed).is_null()
    }

    /// Moves the oldest of the backlog, which is work, to the list of work: a ring whose newest link is named by `work`, and
    /// whose newest points to the oldest.
    ///
    /// # Safety
    /// Called by the owner with interrupts off, or by whoever owns what a CPU that runs no more has left.
    pub(crate) unsafe fn list_work(&self) {
        // Relaxed, here and below, unless it says otherwise: the owner's own. The stores have release ordering because they
        // must be made in this order: see `lists`.
        let Some(link) = NonNull::new(self.backlog.load(Relaxed)) else { return };
        // SAFETY: a post that is listed is alive.
        let node = unsafe { link.as_ref() };
        if let Some(newest) = NonNull::new(self.work.load(Relaxed)) {
            // SAFETY: as above.
            let newest = unsafe { newest.as_ref() };
            node.older.store(newest.older.load(Relaxed), Relaxed);
            newest.older.store(link.as_ptr(), Release);
        } else {
            node.older.store(link.as_ptr(), Relaxed);
        }
        self.work.store(link.as_ptr(), Release);
        self.drop_oldest_post();
    }

    /// The oldest work.
    pub(crate) fn oldest_work(&self) -> Option<NonNull<Link<K>>> {
        let newest = NonNull::new(self.work.load(Relaxed))?;
        // SAFETY: what is listed is alive.
        NonNull::new(unsafe { newest.as_ref() }.older.load(Relaxed))
    }

    /// Takes the oldest work from the list. By the owner with interrupts off, or as for [`list_work`](Self::list_work).
    pub(crate) fn drop_oldest_work(&self) {
        let newest = self.work.load(Relaxed);
        let (Some(link), Some(oldest)) = (NonNull::new(newest), self.oldest_work()) else { return };
        if oldest == link {
            self.work.store(core::ptr::null_mut(), Release);
        } else {
            // SAFETY: what is listed is alive, both.
            let (newest, oldest) = unsafe { (link.as_ref(), oldest.as_ref()) };
            newest.older.store(oldest.older.load(Relaxed), Release);
        }
    }
}

/// This CPU runs its work: whoever interrupts it leaves the list alone. Begun and dropped with interrupts off.
struct Working(&'static Own);

impl Working {
    fn begin(own: &'static Own) -> Option<Self> {
        if own.working.get() != 0 {
            return None;
        }
        own.working.set(1);
        Some(Self(own))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.set(0);
    }
}

/// Interrupts are enabled while this lives, and off before and after, by unwinding too.
struct InterruptsOn<K: Kernel>(core::marker::PhantomData<fn() -> K>);

impl<K: Kernel> InterruptsOn<K> {
    #[track_caller]
    fn new() -> Self {
        K::restore_interrupts(true);
        Self(core::marker::PhantomData)
    }
}

impl<K: Kernel> Drop for InterruptsOn<K> {
    fn drop(&mut self) {
        // What they were is known.
        let _ = K::disable_interrupts();
    }
}
