//! Calls to many CPUs: one slot, and for each target a bit that says who may still claim it and one that says who has not
//! finished.

use core::ops::Deref;
use core::sync::atomic::Ordering::{Relaxed, Release};

use crate::attend::Attended;
use crate::ladder::Ladder;
use crate::mark::Marked;
use crate::serve::Here;
use crate::slot::{EMPTY, LOW_BITS, Luggage, MANY, Payload, TARGETS_PER_WORD, TargetBits};
use crate::{
    CallError, Caller, Cpu, CpuMask, CrossCall, Deadline, Instant, InterruptsOff, Kernel, ManyError,
    ManyFailures, Word,
};
use smpcall_machine::{CpuSetStorage, EventKind, Woken};

/// # Safety
/// The luggage holds the address of an `F` that is alive.
pub(crate) unsafe fn run_shared<F: Fn(Cpu) + Sync>(luggage: &Luggage, cpu: Cpu) {
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

    /// Makes an element none that may be half written: it is not dropped.
    ///
    /// # Safety
    /// As for [`put`](Self::put).
    unsafe fn forget(&self, cpu: Cpu) {
        // SAFETY: promised by the caller.
        unsafe { self.0.add(cpu.index()).write(None) }
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
        if targets.reaches(K::mailboxes().cpu_count()) {
            self.call_many_with_absent(targets, &closure)
        } else {
            self.send_many(|_| targets, Failures::none(), &closure)
        }
    }

    /// The same for a set with CPUs that do not exist.
    #[cold]
    fn call_many_with_absent<F: Fn(Cpu) + Sync>(
        self,
        targets: &CpuMask,
        closure: &F,
    ) -> Result<(), ManyError<K>> {
        let mut set = K::CpuSet::EMPTY;
        let mut failures = Failures::<K>::none();
        for cpu in targets {
            if cpu.index() < K::mailboxes().cpu_count() {
                set.insert(cpu);
            } else if cpu.index() < K::CpuSet::CAPACITY {
                failures.note().offline.insert(cpu);
            } else {
                // Not even the set of failures could name it.
                return Err(ManyError::NotSent(CallError::NoSuchCpu));
            }
        }
        self.send_many(|_| &*set, failures, closure)
    }

    /// Runs `closure` on all CPUs that are online at this moment, except this one. As [`call_many`](Caller::call_many).
    ///
    /// # Errors
    /// As for [`call_many`](Caller::call_many).
    pub fn call_others<F: Fn(Cpu) + Sync>(self, closure: F) -> Result<(), ManyError<K>> {
        self.send_many(|me| online::<K>(|cpu| cpu != me), Failures::none(), &closure)
    }

    /// Runs `closure` on all CPUs that are online at this moment, this one included. As
    /// [`call_many`](Caller::call_many).
    ///
    /// # Errors
    /// As for [`call_many`](Caller::call_many).
    pub fn call_all<F: Fn(Cpu) + Sync>(self, closure: F) -> Result<(), ManyError<K>> {
        self.send_many(|_| online::<K>(|_| true), Failures::none(), &closure)
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
        self.send_many(|_| online::<K>(&predicate), Failures::none(), &closure)
    }

    /// As [`call_many`](Caller::call_many), and stores what the closure returns on CPU n into `results[n]`. Where it did not
    /// run, `results[n]` is left as it was; where the CPU died, it is none.
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
        let result = self.call_many(targets, move |cpu| unsafe { results.put(cpu, closure(cpu)) });
        if let Err(ManyError::Failed(failures)) = &result {
            for cpu in &*failures.died {
                // SAFETY: it is below the length, and no CPU uses it any more.
                unsafe { results.forget(cpu) };
            }
        }
        result
    }

    /// All members of the sets exist.
    fn send_many<T: Deref<Target = CpuMask>, F: Fn(Cpu) + Sync>(
        &self,
        targets: impl Fn(Cpu) -> T,
        mut failures: Failures<K>,
        closure: &F,
    ) -> Result<(), ManyError<K>> {
        let (mut pinned, mut here) = self.pin().map_err(ManyError::NotSent)?;
        let (set, level) = loop {
            let set = targets(here.me);
            if !has_others(set.up_to(here.boxes().cpu_count()), here.me) {
                break (set, None);
            }
            self.check_deadline().map_err(ManyError::NotSent)?;
            if let Some(level) = here.mine.free_level() {
                break (set, Some(level));
            }
            (pinned, here) = self.wait_for_level(pinned, here).map_err(ManyError::NotSent)?;
        };
        let set = set.up_to(here.boxes().cpu_count());

        let mut pending = level.map(|level| {
            let mut luggage = Luggage::uninit();
            // SAFETY: luggage has room for a pointer at its start and is aligned for one.
            unsafe { luggage.as_mut_ptr().cast::<*const F>().write(closure) };
            let mut pending = PendingMany::new(here, level, self.started);
            pending.queue(set, Payload { run: Some(run_shared::<F>), luggage }, &mut failures);
            pending
        });
        if set.contains(here.me) {
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
        failures.0.map_or(Ok(()), |failures| Err(ManyError::Failed(failures)))
    }
}

/// This word of a set, without this CPU.
#[inline(always)]
fn without(me: Cpu, position: usize, word: u64) -> u64 {
    if me.index() / 64 == position { word & !(1 << (me.number() % 64)) } else { word }
}

/// Whether somebody else is a member.
#[inline(always)]
fn has_others(set: &CpuMask, me: Cpu) -> bool {
    set.words().iter().enumerate().any(|(position, &word)| without(me, position, word) != 0)
}

/// Who of the targets did not end well: nothing, as long as all did. (These are several sets of CPUs.)
pub(crate) struct Failures<K: Kernel>(pub(crate) Option<ManyFailures<K>>);

impl<K: Kernel> Failures<K> {
    /// Nobody.
    #[inline(always)]
    pub(crate) fn none() -> Self {
        const { assert!(TARGETS_PER_WORD * 2 == u64::BITS, "a word of a set of CPUs is two words of targets") }
        Self(None)
    }

    /// Somebody did not, and is entered here.
    #[cold]
    pub(crate) fn note(&mut self) -> &mut ManyFailures<K> {
        self.0.get_or_insert_with(|| ManyFailures {
            offline: K::CpuSet::EMPTY,
            timed_out: K::CpuSet::EMPTY,
            panicked: K::CpuSet::EMPTY,
            died: K::CpuSet::EMPTY,
            diagnosis: None,
        })
    }

    /// Whether this one was offline.
    pub(crate) fn is_offline(&self, cpu: Cpu) -> bool {
        self.0.as_ref().is_some_and(|failures| failures.offline.contains(cpu))
    }
}

/// The CPUs whose bits are set among the lower halves of the target word with this index.
fn cpus_of(index: usize, mut bits: u64) -> impl Iterator<Item = Cpu> {
    core::iter::from_fn(move || {
        let lowest = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(Cpu::new(index as u32 * TARGETS_PER_WORD + lowest))
    })
}

/// The online CPUs that `wanted` accepts.
pub(crate) fn online<K: Kernel>(wanted: impl Fn(Cpu) -> bool) -> K::CpuSet {
    let mut set = K::CpuSet::EMPTY;
    for cpu in K::mailboxes().cpus().filter(|&cpu| CrossCall::<K>::is_online(cpu) && wanted(cpu)) {
        set.insert(cpu);
    }
    set
}

/// A call to many that is under way. Dropping it unsettled (a closure panics) withdraws what is unclaimed and waits for
/// the rest, serving meanwhile: a second panic there aborts.
pub(crate) struct PendingMany<K: Kernel> {
    here: Here<K>,
    pub(crate) level: usize,
    /// When the last ring was sent: from then on answers are due.
    pub(crate) rung_at: Instant,
    /// The target words that are not known to be zero: those of the slot from the first to before the last.
    first: usize,
    last: usize,
    settled: bool,
}

impl<K: Kernel> PendingMany<K> {
    /// A call from a free level of this CPU, not queued yet.
    pub(crate) fn new(here: Here<K>, level: usize, started: Instant) -> Self {
        Self { here, level, rung_at: started, first: 0, last: 0, settled: false }
    }

    fn targets(&self) -> &'static [Word<K>] {
        self.here.boxes().targets_of(self.here.me, self.level)
    }

    /// Publishes the call, marks its targets - all of the set but this CPU - and rings those that need it. All of them exist.
    pub(crate) fn queue(&mut self, targets: &CpuMask, payload: Payload, failures: &mut Failures<K>) {
        let (Here { me, mine }, boxes) = (self.here, self.here.boxes());
        // SAFETY: the level is free, and this CPU's to take while interrupts are off.
        unsafe { mine.slots[self.level].payload.write(payload) };
        // SAFETY: interrupts are off, and NMI handlers do not call.
        let number = unsafe { mine.next_call() };
        // Relaxed: published by the target words.
        mine.states.0[self.level].store(MANY | number, Relaxed);
        let mut total = 0;
        for (position, &word) in targets.words().iter().enumerate() {
            let word = without(me, position, word);
            if word == 0 {
                continue;
            }
            total += u64::from(word.count_ones());
            for (half, claims) in [word & LOW_BITS, word >> TARGETS_PER_WORD].into_iter().enumerate() {
                if claims != 0 {
                    let index = 2 * position + half;
                    if self.last == 0 {
                        self.first = index;
                    }
                    self.last = index + 1;
                    // Release: payload, state and closure are visible to the targets that claim it.
                    self.targets()[index].store(claims | claims << TARGETS_PER_WORD, Release);
                }
            }
        }
        mine.counters().calls_sent.add(total);
        self.here.trace_at(K::now(), EventKind::ManyQueued, None, self.level, total);

        let mut quiet = K::CpuSet::EMPTY;
        let mut rings = 0;
        let mut only = me;
        for (position, &word) in targets.words().iter().enumerate() {
            let mut left = without(me, position, word);
            let mut rung = 0;
            while left != 0 {
                let target = Cpu::new(position as u32 * 64 + left.trailing_zeros());
                let bit = left & left.wrapping_neg();
                left ^= bit;
                let Some(theirs) = boxes.get(target) else { continue };
                match boxes.mark(target, theirs, me) {
                    Marked::Quiet => {
                        rung |= bit;
                        (rings, only) = (rings + 1, target);
                    }
                    Marked::Noticed => {}
                    // If the closing CPU has claimed it all the same, it is waited for like any other.
                    Marked::Closed => self.refuse(target, failures),
                }
            }
            quiet.insert_word(position, rung);
        }
        // Marking thousands takes a while: the back-off is measured from the end.
        self.rung_at = K::now();
        match rings {
            0 => {}
            1 => self.here.ring_at(self.rung_at, only),
            _ => self.here.ring_many_at(self.rung_at, quiet.up_to(boxes.cpu_count()), rings),
        }
    }

    /// The door of a target was closed when the call was marked.
    #[cold]
    fn refuse(&self, target: Cpu, failures: &mut Failures<K>) {
        if self.withdraw(target) {
            self.here.mine.counters().calls_refused.add(1);
            failures.note().offline.insert(target);
        }
    }

    /// Takes the call back from one target. False if it has claimed it.
    pub(crate) fn withdraw(&self, target: Cpu) -> bool {
        let bits = TargetBits::of(target);
        self.withdraw_among(bits.word, bits.low) != 0
    }

    /// Takes the call back from those of a word, by their lower bits, that have not claimed it, and returns them.
    fn withdraw_among(&self, index: usize, among: u64) -> u64 {
        let word = &self.targets()[index];
        // Relaxed: a hint; the exchange decides.
        let mut seen = word.load(Relaxed);
        loop {
            let unclaimed = seen & among;
            if unclaimed == 0 {
                return 0;
            }
            // Both bits in one step: see `slot`. Relaxed: nothing is read of those who had not claimed it.
            let withdrawn = seen & !(unclaimed | unclaimed << TARGETS_PER_WORD);
            match word.compare_exchange(seen, withdrawn, Relaxed, Relaxed) {
                Ok(_) => return unclaimed,
                Err(found) => seen = found,
            }
        }
    }

    /// Takes the call back from all that have not claimed it, and returns them.
    pub(crate) fn withdraw_all(&self) -> K::CpuSet {
        let mut unclaimed = K::CpuSet::EMPTY;
        for index in self.first..self.last {
            for target in cpus_of(index, self.withdraw_among(index, LOW_BITS)) {
                unclaimed.insert(target);
            }
        }
        unclaimed
    }

    /// The targets that have not claimed the call, at the time each word of the bits is looked at.
    pub(crate) fn unclaimed(&self) -> impl Iterator<Item = Cpu> + use<K> {
        let words = self.targets().iter().enumerate().skip(self.first).take(self.last - self.first);
        // Relaxed: a hint; claims and withdrawals decide by their own steps.
        words.flat_map(|(index, word)| cpus_of(index, word.load(Relaxed) & LOW_BITS))
    }

    pub(crate) fn wait(&mut self, caller: &Caller<'_, K>, failures: &mut Failures<K>) {
        let first_look = Deadline::at(self.rung_at.plus(K::FIRST_BACKOFF)).min(caller.deadline);
        if caller.interrupts_off || !self.wait_once(false, first_look) {
            self.wait_on_the_ladder(caller, failures);
        } else {
            self.complete(failures);
        }
    }

    /// The same for those who poll, and for those whose first look has come without an answer.
    #[inline(never)]
    fn wait_on_the_ladder(&mut self, caller: &Caller<'_, K>, failures: &mut Failures<K>) {
        let mut ladder = Ladder::new(caller, self.rung_at);
        let attended = caller.interrupts_off.then(|| Attended::begin(self.here));
        let mut looks_now = !caller.interrupts_off;
        loop {
            if !core::mem::take(&mut looks_now) && self.wait_once(caller.interrupts_off, ladder.next_step()) {
                break;
            }
            let now = K::now();
            if ladder.is_due(now) {
                self.climb(&mut ladder, now, failures);
            }
        }
        self.complete(failures);
        drop(attended);
    }

    /// Waits for one target word after the other; returns whether all are finished.
    fn wait_once(&mut self, poll: bool, until: Deadline) -> bool {
        while self.first < self.last {
            let finished = self.targets()[self.first].equals(!0, 0);
            if self.here.wait_serving(finished, poll, until) != Woken::Met(0) {
                return false;
            }
            self.first += 1;
        }
        true
    }

    #[cold]
    fn climb(&mut self, ladder: &mut Ladder, now: Instant, failures: &mut Failures<K>) {
        let (Here { me: source, .. }, boxes) = (self.here, self.here.boxes());
        if !ladder.has_ended(now) {
            ladder.look::<K>(source, self.unclaimed(), now, |here, closed| {
                if self.withdraw(closed) {
                    here.mine.counters().calls_refused.add(1);
                    failures.note().offline.insert(closed);
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
            failures.note().timed_out.insert(target);
            boxes.trace(pinned.cpu(), EventKind::CallWithdrawn, Some(target), self.level, 0);
        }
        if unclaimed.contains(first) {
            failures.note().diagnosis.get_or_insert((first, diagnosis));
        }
        if let Some(mine) = boxes.get(pinned.cpu()) {
            mine.counters().calls_withdrawn.add(unclaimed.len() as u64);
        }
    }

    #[inline(always)]
    fn complete(&mut self, failures: &mut Failures<K>) {
        let pinned = InterruptsOff::<K>::new();
        self.take_outcomes(failures);
        self.settle();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            let now = K::now();
            here.mine.counters().longest_wait.raise(now.since(self.rung_at).as_nanos() as u64);
            here.trace_at(now, EventKind::CallCompleted, None, self.level, 0);
        }
    }

    /// Enters the targets whose end is no ordinary one, and forgets them for the next call from this slot.
    #[inline(always)]
    fn take_outcomes(&self, failures: &mut Failures<K>) {
        // Relaxed here and below: the wait has acquired all of it, and it does not change any more.
        if self.here.mine.slots[self.level].has_outcomes.load(Relaxed) != 0 {
            self.take_bad_outcomes(failures.note());
        }
    }

    #[cold]
    fn take_bad_outcomes(&self, failures: &mut ManyFailures<K>) {
        self.here.mine.slots[self.level].has_outcomes.store(0, Relaxed);
        let outcomes = self.here.boxes().outcomes_of(self.here.me, self.level);
        for (index, word) in outcomes.iter().enumerate() {
            let bits = word.load(Relaxed);
            if bits == 0 {
                continue;
            }
            word.store(0, Relaxed);
            let (low, high) = (bits & LOW_BITS, bits >> TARGETS_PER_WORD);
            for (set, bits) in [
                (&mut failures.panicked, low & !high),
                (&mut failures.died, high & !low),
                (&mut failures.offline, low & high),
            ] {
                for cpu in cpus_of(index, bits) {
                    set.insert(cpu);
                }
            }
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
        if let Some(mine) = self.here.boxes().get(pinned.cpu()) {
            mine.counters().calls_withdrawn.add(withdrawn);
        }
        drop(pinned);
        let polls = !K::interrupts_enabled();
        while !self.wait_once(polls, Deadline::NEVER) {}
        let mut failures = Failures::none();
        self.take_outcomes(&mut failures);
        // What it has half written would be dropped by the frames that go.
        assert!(
            failures.0.is_none_or(|failures| failures.died.is_empty()),
            "a target died while its caller was unwinding"
        );
        self.settle();
    }
}
