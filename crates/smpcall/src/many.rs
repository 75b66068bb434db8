//! Calls to many CPUs: one slot, one claim bit per target, one count.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use crate::attend::Attended;
use crate::ladder::Ladder;
use crate::mark::Marked;
use crate::serve::Here;
use crate::slot::{COUNT, EMPTY, Luggage, MANY, Payload};
use crate::{
    CallError, Caller, Cpu, CpuMask, CrossCall, Deadline, Instant, InterruptsOff, Kernel, ManyError,
    ManyFailures, Word,
};
use smpcall_machine::{CpuSetStorage, EventKind, Woken};

/// # Safety
/// The luggage holds the address of an `F` that is alive.
unsafe fn run_shared<F: Fn(Cpu) + Sync>(luggage: &Luggage, cpu: Cpu) {
    // SAFETY: promised by the caller; `F: Sync`, so that several CPUs may use it at once.
    unsafe { (*luggage.as_ptr().cast::<*const F>().read())(cpu) }
}

/// A slice of results of which each target writes its own element.
struct Results<R>(*mut Option<R>);

// SAFETY: the elements are written by different CPUs, each by one, and read after the call has ended.
unsafe impl<R: Send> Sync for Results<R> {}

impl<R> Results<R> {
    /// # Safety
    /// `cpu` is below the length of the slice, and nobody else uses its element.
    unsafe fn put(&self, cpu: Cpu, result: R) {
        // SAFETY: promised by the caller.
        unsafe { *self.0.add(cpu.index()) = Some(result) }
    }
}

impl<K: Kernel> Caller<'_, K> {
    /// Runs `closure` exactly once on each CPU of `targets`, this one included if it is a member, and returns when it
    /// has run everywhere. The closure may borrow; it is given the number of the CPU it runs on. An empty set
    /// is no error.
    ///
    /// At the deadline, the call is withdrawn from those that have not claimed it; for those that have the wait
    /// goes on (law L4).
    ///
    /// # Errors
    /// [`ManyError`], with the CPUs on which it did not run. CPUs that are offline or do not exist are among
    /// them; on all others it did run.
    pub fn call_many<F: Fn(Cpu) + Sync>(self, targets: &CpuMask, closure: F) -> Result<(), ManyError<K>> {
        let mut set = K::CpuSet::EMPTY;
        let mut absent = K::CpuSet::EMPTY;
        for cpu in targets {
            if cpu.index() < K::mailboxes().cpu_count() {
                set.insert(cpu);
            } else if cpu.index() < K::CpuSet::CAPACITY {
                absent.insert(cpu);
            } else {
                // Not even the set of failures could name it.
                return Err(ManyError::NotSent(CallError::NoSuchCpu));
            }
        }
        self.send_many(|_| set.clone(), absent, &closure)
    }

    /// Runs `closure` on all CPUs that are online at this moment, except this one. As [`call_many`](Caller::call_many).
    ///
    /// # Errors
    /// As for [`call_many`](Caller::call_many).
    pub fn call_others<F: Fn(Cpu) + Sync>(self, closure: F) -> Result<(), ManyError<K>> {
        self.send_many(|me| online::<K>(|cpu| cpu != me), K::CpuSet::EMPTY, &closure)
    }

    /// Runs `closure` on all CPUs that are online at this moment, this one included. As
    /// [`call_many`](Caller::call_many).
    ///
    /// # Errors
    /// As for [`call_many`](Caller::call_many).
    pub fn call_all<F: Fn(Cpu) + Sync>(self, closure: F) -> Result<(), ManyError<K>> {
        self.send_many(|_| online::<K>(|_| true), K::CpuSet::EMPTY, &closure)
    }

    /// Runs `closure` on those online CPUs for which `predicate`, asked here and now, is true. As
    /// [`call_many`](Caller::call_many).
    ///
    /// # Errors
    /// As for [`call_many`](Caller::call_many).
    pub fn call_if<P: Fn(Cpu) -> bool, F: Fn(Cpu) + Sync>(
        self,
        predicate: P,
        closure: F,
    ) -> Result<(), ManyError<K>> {
        self.send_many(|_| online::<K>(&predicate), K::CpuSet::EMPTY, &closure)
    }

    /// As [`call_many`](Caller::call_many), and stores what the closure returns on CPU n into `results[n]`. Where it did not
    /// run, `results[n]` is left as it was.
    ///
    /// # Errors
    /// As for [`call_many`](Caller::call_many). [`CallError::NoRoomForResult`] if the slice is too short: nothing was sent.
    pub fn call_many_into<R: Send, F: Fn(Cpu) -> R + Sync>(
        self,
        targets: &CpuMask,
        results: &mut [Option<R>],
        closure: F,
    ) -> Result<(), ManyError<K>> {
        if targets.iter().any(|cpu| cpu.index() >= results.len()) {
            return Err(ManyError::NotSent(CallError::NoRoomForResult));
        }
        let results = Results(results.as_mut_ptr());
        let results = &results;
        // SAFETY: all targets are below the length, checked above; each runs the closure once (law L1), and
        // `results` is borrowed until all of them have.
        self.call_many(targets, move |cpu| unsafe { results.put(cpu, closure(cpu)) })
    }

    fn send_many<F: Fn(Cpu) + Sync>(
        &self,
        targets: impl Fn(Cpu) -> K::CpuSet,
        absent: K::CpuSet,
        closure: &F,
    ) -> Result<(), ManyError<K>> {
        let (mut pinned, mut here) = self.pin().map_err(ManyError::NotSent)?;
        let (mut set, level) = loop {
            let set = targets(here.me);
            let others = set.len() - usize::from(set.contains(here.me));
            if others == 0 {
                break (set, None);
            }
            self.check_deadline().map_err(ManyError::NotSent)?;
            if let Some(level) = here.mine.free_level() {
                break (set, Some(level));
            }
            (pinned, here) = self.wait_for_level(pinned, here).map_err(ManyError::NotSent)?;
        };
        let run_here = set.remove(here.me);

        let mut failures = ManyFailures {
            offline: absent,
            timed_out: K::CpuSet::EMPTY,
            panicked: K::CpuSet::EMPTY,
            diagnosis: None,
        };
        let mut pending = level.map(|level| {
            let mut luggage = Luggage::uninit();
            // SAFETY: luggage has room for a pointer at its start and is aligned for one.
            unsafe { luggage.as_mut_ptr().cast::<*const F>().write(closure) };
            let mut pending = PendingMany { here, level, rung_at: self.started, settled: false };
            pending.queue(&set, Payload { run: Some(run_shared::<F>), luggage }, &mut failures);
            pending
        });
        if run_here {
            here.mine.counters().calls_local.add(1);
            closure(here.me);
        }
        if let Some(pending) = &mut pending {
            if self.interrupts_off {
                pending.wait(self, &mut failures);
            } else {
                drop(pinned);
                pending.wait(self, &mut failures);
            }
        }
        let ManyFailures { offline, timed_out, panicked, .. } = &failures;
        if offline.is_empty() && timed_out.is_empty() && panicked.is_empty() {
            Ok(())
        } else {
            Err(ManyError::Failed(failures))
        }
    }
}

/// The online CPUs that `wanted` accepts.
fn online<K: Kernel>(wanted: impl Fn(Cpu) -> bool) -> K::CpuSet {
    let mut set = K::CpuSet::EMPTY;
    for cpu in K::mailboxes().cpus().filter(|&cpu| CrossCall::<K>::is_online(cpu) && wanted(cpu)) {
        set.insert(cpu);
    }
    set
}

/// A call to many that is under way. Dropping it unsettled (a closure panics) withdraws what is unclaimed and waits for
/// the rest, serving meanwhile: a second panic there aborts.
struct PendingMany<K: Kernel> {
    here: Here<K>,
    level: usize,
    /// When the last ring was sent: from then on answers are due.
    rung_at: Instant,
    settled: bool,
}

impl<K: Kernel> PendingMany<K> {
    fn count(&self) -> &'static Word<K> {
        &self.here.mine.slots[self.level].count
    }

    fn claims(&self) -> &'static [Word<K>] {
        self.here.boxes.claims_of(self.here.me, self.level)
    }

    /// Publishes the call, marks its targets and rings those that need it.
    fn queue(&mut self, targets: &K::CpuSet, payload: Payload, failures: &mut ManyFailures<K>) {
        let Here { boxes, me, mine } = self.here;
        let total = targets.len() as u64;
        // SAFETY: the level is free, and this CPU's to take while interrupts are off.
        unsafe { mine.slots[self.level].payload.write(payload) };
        // SAFETY: interrupts are off, and NMI handlers do not call.
        let number = unsafe { mine.next_call() };
        // Relaxed: published by the claim bits. The count comes first, because targets count down at once.
        self.count().store(total, Relaxed);
        mine.states.0[self.level].store(MANY | number, Relaxed);
        for (claims, &bits) in self.claims().iter().zip(targets.words()) {
            if bits != 0 {
                // Release: payload, count and closure are visible to the targets that clear their bits.
                claims.store(bits, Release);
            }
        }
        mine.counters().calls_sent.add(total);
        boxes.trace(me, EventKind::ManyQueued, None, self.level, total);

        let mut quiet = K::CpuSet::EMPTY;
        let mut rings = 0;
        let mut only = None;
        for target in &**targets {
            let Some(theirs) = boxes.get(target) else { continue };
            match boxes.mark(target, theirs, me) {
                Marked::Quiet => {
                    quiet.insert(target);
                    (rings, only) = (rings + 1, Some(target));
                }
                Marked::Noticed => {}
                // If the closing CPU has claimed it all the same, it is waited for like any other.
                Marked::Closed => {
                    if self.withdraw(target) {
                        mine.counters().calls_refused.add(1);
                        failures.offline.insert(target);
                    }
                }
            }
        }
        match only {
            Some(target) if rings == 1 => drop(boxes.ring(me, target)),
            Some(_) => boxes.ring_many(me, &quiet),
            None => {}
        }
        // Marking thousands takes a while: the back-off is measured from the end.
        self.rung_at = K::now();
    }

    /// Takes the call back from one target. False if it has claimed it.
    fn withdraw(&self, target: Cpu) -> bool {
        let bit = 1 << (target.number() % 64);
        // Relaxed: the bit alone decides, and nothing of the target's is read if it was still set.
        let unclaimed = self.claims()[target.index() / 64].fetch_and(!bit, Relaxed) & bit != 0;
        if unclaimed {
            // Relaxed: as above; the slot is freed by this CPU.
            self.count().fetch_sub(1, Relaxed);
        }
        unclaimed
    }

    /// Takes the call back from all that have not claimed it, and returns them.
    fn withdraw_all(&self) -> K::CpuSet {
        let mut unclaimed = K::CpuSet::EMPTY;
        for target in self.unclaimed() {
            if self.withdraw(target) {
                unclaimed.insert(target);
            }
        }
        unclaimed
    }

    /// The targets that have not claimed the call, at the time each word of the bits is looked at.
    fn unclaimed(&self) -> impl Iterator<Item = Cpu> + use<K> {
        let claims = self.claims();
        claims.iter().enumerate().flat_map(|(index, word)| {
            // Relaxed: a hint; claims and withdrawals decide by their own steps.
            let mut bits = word.load(Relaxed);
            core::iter::from_fn(move || {
                let lowest = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some(Cpu::new(index as u32 * 64 + lowest))
            })
        })
    }

    fn wait(&mut self, caller: &Caller<'_, K>, failures: &mut ManyFailures<K>) {
        let mut ladder = Ladder::new(caller, self.rung_at);
        let attended = caller.interrupts_off.then(|| Attended::begin(self.here));
        loop {
            if let Woken::Met(0) = self.wait_once(caller.interrupts_off, ladder.next_step()) {
                break;
            }
            let now = K::now();
            if ladder.is_due(now) {
                self.climb(&mut ladder, now, failures);
            }
        }
        self.complete(failures, ladder.waited(K::now()));
        drop(attended);
    }

    fn wait_once(&self, poll: bool, until: Deadline) -> Woken {
        self.here.wait_serving(self.count().equals(COUNT, 0), poll, until)
    }

    #[cold]
    fn climb(&mut self, ladder: &mut Ladder, now: Instant, failures: &mut ManyFailures<K>) {
        let Here { boxes, me: source, .. } = self.here;
        if !ladder.has_ended(now) {
            ladder.look::<K>(source, self.unclaimed(), now, |here, closed| {
                if self.withdraw(closed) {
                    here.mine.counters().calls_refused.add(1);
                    failures.offline.insert(closed);
                }
            });
            return;
        }
        let Some(first) = self.unclaimed().next() else {
            // All are claimed, and somebody still runs it (law L4).
            ladder.go_on(boxes, source, boxes.runner_of(source), now);
            return;
        };
        let diagnosis = ladder.diagnose(boxes, first, now);
        let unclaimed = self.withdraw_all();
        let pinned = InterruptsOff::<K>::new();
        for target in &*unclaimed {
            failures.timed_out.insert(target);
            boxes.trace(pinned.cpu(), EventKind::CallWithdrawn, Some(target), self.level, 0);
        }
        if unclaimed.contains(first) && failures.diagnosis.is_none() {
            failures.diagnosis = Some((first, diagnosis));
        }
        if let Some(mine) = boxes.get(pinned.cpu()) {
            mine.counters().calls_withdrawn.add(unclaimed.len() as u64);
        }
    }

    fn complete(&mut self, failures: &mut ManyFailures<K>, waited: Duration) {
        let pinned = InterruptsOff::<K>::new();
        // Relaxed: the wait has read it with acquire, and it does not change any more.
        if self.count().load(Relaxed) != 0 {
            let panics = self.here.boxes.panics_of(self.here.me, self.level);
            for (index, word) in panics.iter().enumerate() {
                let mut bits = word.swap(0, Acquire);
                while bits != 0 {
                    failures.panicked.insert(Cpu::new(index as u32 * 64 + bits.trailing_zeros()));
                    bits &= bits - 1;
                }
            }
        }
        self.settle();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.mine.counters().longest_wait.raise(waited.as_nanos() as u64);
            here.boxes.trace(here.me, EventKind::CallCompleted, None, self.level, 0);
        }
    }

    fn settle(&mut self) {
        self.settled = true;
        // Release: the slot's next owner, possibly after a migration, writes the payload next.
        self.here.mine.states.0[self.level].store(EMPTY, Release);
    }
}

impl<K: Kernel> Drop for PendingMany<K> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let withdrawn = self.withdraw_all().len() as u64;
        let pinned = InterruptsOff::<K>::new();
        if let Some(mine) = self.here.boxes.get(pinned.cpu()) {
            mine.counters().calls_withdrawn.add(withdrawn);
        }
        drop(pinned);
        let polls = !K::interrupts_enabled();
        while self.wait_once(polls, Deadline::NEVER) != Woken::Met(0) {}
        for word in self.here.boxes.panics_of(self.here.me, self.level) {
            word.store(0, Relaxed);
        }
        self.settle();
    }
}
