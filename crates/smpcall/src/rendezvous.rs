//! A rendezvous: all online CPUs stop, some of them run a closure, and all go on (what Linux calls `stop_machine`).
//!
//! For what no CPU may be in the middle of: patching code that all run, changing how memory is mapped or typed. One CPU,
//! the controller, brings the others in with a call to many, whose closure follows the machine's stage word:
//!
//! | stage | what a CPU does that has reached it | ends when |
//! |---|---|---|
//! | `PREPARE` | waits with interrupts disabled and serves its mailbox by polling (law L6), because others may need it before they can come | all have reached it |
//! | `INTERRUPTS_OFF` | serves nobody any more: calls and posts to it pend | all have reached it |
//! | `RUN` | runs the closure, if it is one of those that do, and waits | all that run it have run it |
//! | `EXIT` | goes on with what it was interrupted in, and serves what has come meanwhile | - |
//! | `ABORT` | as `EXIT`; nobody has run the closure and nobody will | - |
//!
//! The controller moves the stage forward; anybody moves it to `ABORT` at the deadline. Each step is a compare-exchange on
//! the one word, so that exactly one of them decides whether the closure runs, and a controller that stands still does not keep the
//! others (law L3). From `RUN` on the wait has no deadline but reports, because the closure borrows (law L4). Each CPU writes the stage that it has reached into a word of its
//! own, so that the late ones have names. Both words hold the number of the rendezvous, so nobody needs to clear them.
//!
//! # Caveats
//! * A CPU that dies before `RUN` makes the others give up at the deadline. The controller returns when all that had come have
//!   left, so a dead one among them keeps it, with reports, until another CPU has declared that one dead. The same holds of
//!   one that dies later and does not run the closure.
//!   The controller, too, can be declared dead if it dies before `RUN`.
//! * A CPU that dies from `RUN` on - the controller, or one that runs the closure - ends the machine: all CPUs stay where
//!   they are, with interrupts disabled, and only a crash stop, asked for in an NMI handler, goes on. Fencing cannot help here.
//!   All CPUs that could declare that one dead stand in this rendezvous; and to let them go would break its promise: the closure
//!   is what no CPU may be in the middle of, and the dead one stays in the middle of it for ever.
//!
//! A rendezvous and hotplug exclude each other (`Exclusive`), and a CPU that is still coming or going after that was given up
//! is told, so the CPUs that are online do not change.

use core::fmt;
use core::sync::atomic::Ordering::{Relaxed, Release};

use crate::attend::Attended;
use crate::global::Exclusive;
use crate::ladder::Ladder;
use crate::many::{Failures, PendingMany, online, run_shared};
use crate::serve::Here;
use crate::slot::{Luggage, Payload};
use crate::{
    CallError, Caller, Cpu, CpuMask, Deadline, Diagnosis, ExclusiveError, Kernel, Machine, Mailbox, Word,
};
use smpcall_machine::{CpuSetStorage, EventKind, When, Woken, wait};

/// The stage in its word, below the number of the rendezvous.
const STAGE: u64 = 0xff;
const PREPARE: u64 = 1;
const INTERRUPTS_OFF: u64 = 2;
const RUN: u64 = 3;
const EXIT: u64 = 4;
const ABORT: u64 = 5;

/// How far a rendezvous had come that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Not all CPUs had come.
    Prepare,
    /// All had come; not all had ceased to serve.
    InterruptsOff,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::InterruptsOff => "interrupts off",
        })
    }
}

/// Why a rendezvous did not take place, or not everywhere. Except for [`Panicked`](RendezvousError::Panicked) the closure
/// was not run on any CPU, and never will be.
pub enum RendezvousError<M: Machine> {
    /// It did not begin: hotplug or another rendezvous was under way, or this context cannot wait.
    Excluded(ExclusiveError),
    /// It did not begin: there was no call level, or the deadline had passed.
    NotSent(CallError),
    /// These CPUs, which were to run the closure, are offline or do not exist.
    Offline(M::CpuSet),
    /// This CPU is going offline or coming online by itself: hotplug was [given up](crate::HotplugError::Unfinished) at its
    /// deadline, and is to be finished first.
    Changing(Cpu),
    /// At the deadline these CPUs had not reached this stage; all others have gone on. If it is the controller, it was the
    /// one that stood still.
    Late {
        /// The stage.
        stage: Stage,
        /// The CPUs.
        late: M::CpuSet,
        /// What is known of one of them, the one that was waited for.
        diagnosis: Option<(Cpu, Diagnosis)>,
    },
    /// The closure panicked on these CPUs, and ran on all others. (Or what such a CPU served while it waited for the others
    /// panicked: then the closure did not run there.)
    Panicked(M::CpuSet),
}

// Not derived: that would demand the same of the machine.
impl<M: Machine> fmt::Debug for RendezvousError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded(error) => f.debug_tuple("Excluded").field(error).finish(),
            Self::NotSent(error) => f.debug_tuple("NotSent").field(error).finish(),
            Self::Offline(cpus) => f.debug_tuple("Offline").field(cpus).finish(),
            Self::Changing(cpu) => f.debug_tuple("Changing").field(cpu).finish(),
            Self::Late { stage, late, diagnosis } => f
                .debug_struct("Late")
                .field("stage", stage)
                .field("late", late)
                .field("diagnosis", diagnosis)
                .finish(),
            Self::Panicked(cpus) => f.debug_tuple("Panicked").field(cpus).finish(),
        }
    }
}

impl<M: Machine> fmt::Display for RendezvousError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded(error) => write!(f, "the rendezvous did not begin: {error}"),
            Self::NotSent(error) => write!(f, "the rendezvous did not begin: {error}"),
            Self::Offline(cpus) => write!(f, "these CPUs were to take part and are offline: {}", &**cpus),
            Self::Changing(cpu) => {
                write!(f, "{cpu} is coming or going: finish that first, by cpu_up or cpu_down again")
            }
            Self::Late { stage, late, diagnosis } => {
                write!(f, "the rendezvous was given up; late for its stage {stage}: {}", &**late)?;
                match diagnosis {
                    Some((cpu, diagnosis)) => write!(f, "; {cpu}: {diagnosis}"),
                    None => Ok(()),
                }
            }
            Self::Panicked(cpus) => write!(f, "the closure of the rendezvous panicked on {}", &**cpus),
        }
    }
}

impl<M: Machine> core::error::Error for RendezvousError<M> {}

impl<K: Kernel> Caller<'_, K> {
    /// Stops all online CPUs, runs `closure` once on each of `cpus` (this one, if it is a member), at the same time, and lets
    /// all go on. No CPU takes an interrupt or serves a call from before the first closure begins until after the
    /// last one has ended; NMIs excepted.
    ///
    /// The deadline is for all CPUs to come and to stop: at the latest then everybody goes on, and
    /// nothing was run. Until they are complete, those that have come have interrupts disabled, this one too, and serve calls by
    /// polling: so it bounds how long interrupts are disabled by this, the closure's own time excepted.
    ///
    /// The closure runs with interrupts disabled. It must not wait for another CPU: calls made in it are refused
    /// ([`CallError::InRendezvous`]); posts are accepted, and run afterwards. What was written before is visible to
    /// it; what it writes is visible to all CPUs afterwards.
    ///
    /// From task context, with interrupts enabled, or disabled and with
    /// [`with_interrupts_off`](Caller::with_interrupts_off). The CPU that calls does not change until it returns.
    ///
    /// # Errors
    /// [`RendezvousError`].
    pub fn rendezvous<F: Fn(Cpu) + Sync>(self, cpus: &CpuMask, closure: F) -> Result<(), RendezvousError<K>> {
        self.check_deadline().map_err(RendezvousError::NotSent)?;
        let exclusive = Exclusive::take(&self).map_err(RendezvousError::Excluded)?;
        self.polling(self.deadline).meet(exclusive, cpus, &closure)
    }

    fn meet<F: Fn(Cpu) + Sync>(
        &self,
        exclusive: Exclusive<K>,
        cpus: &CpuMask,
        closure: &F,
    ) -> Result<(), RendezvousError<K>> {
        let (mut pinned, mut here) = self.pin().map_err(RendezvousError::NotSent)?;
        let level = loop {
            match here.mine.free_level() {
                Some(level) => break level,
                None => {
                    (pinned, here) = self.wait_for_level(pinned, here).map_err(RendezvousError::NotSent)?;
                }
            }
        };
        // Acquire, in `life`: whoever is seen to have come has opened its mailbox before.
        let is_changing = |cpu: &Cpu| here.boxes().get(*cpu).is_some_and(Mailbox::is_changing);
        if let Some(cpu) = here.boxes().cpus().find(is_changing) {
            return Err(RendezvousError::Changing(cpu));
        }
        let others = online::<K>(|cpu| cpu != here.me);
        let mut offline = K::CpuSet::EMPTY;
        for cpu in cpus.iter().filter(|&cpu| cpu != here.me && !others.contains(cpu)) {
            if cpu.index() >= K::CpuSet::CAPACITY {
                return Err(RendezvousError::NotSent(CallError::NoSuchCpu));
            }
            offline.insert(cpu);
        }
        if !offline.is_empty() {
            return Err(RendezvousError::Offline(offline));
        }

        let word = &here.boxes().global().stage;
        // Relaxed: the last rendezvous is over, and its controller has handed on `Exclusive`.
        let number = (word.load(Relaxed) & !STAGE).wrapping_add(STAGE + 1);
        let meeting = Meeting { number, runners: cpus, deadline: self.deadline, closure, word };
        // Relaxed: published with the call.
        word.store(number | PREPARE, Relaxed);

        let take_part = |cpu| meeting.take_part(cpu);
        let luggage = luggage_of(&take_part);
        let payload = payload_for(&take_part, luggage);
        let mut failures = Failures::none();
        let mut pending = PendingMany::new(here, level, self.started);
        // From here on, unwinding first lets everybody go, and then waits until they have gone.
        let mut control = Control { here, meeting: &meeting, others: &others, stage: PREPARE };
        let attended = Attended::begin(here);
        pending.queue(&others, payload, &mut failures);
        let run = control.gather(&mut pending, self, &mut failures);
        if run.is_ok() {
            control.run(self);
        }
        drop(control);
        // Nobody needs the others' patience any more: a CPU that does not leave may have to be declared dead, and only then
        // does the wait below end.
        drop(exclusive);
        // Nothing is unclaimed any more; the deadline says only when reports begin of somebody who does not go.
        let patience = self.polling(Deadline::within::<K>(K::LONGEST_BACKOFF));
        pending.wait(&patience, &mut failures);
        drop(attended);
        let counters = here.mine.counters();
        let counter = if run.is_ok() { &counters.rendezvous } else { &counters.rendezvous_given_up };
        counter.add(1);
        drop(pinned);
        run?;
        match failures.0 {
            Some(failures) if !failures.panicked.is_empty() => {
                Err(RendezvousError::Panicked(failures.panicked))
            }
            _ => Ok(()),
        }
    }
}

fn luggage_of<F>(closure: &F) -> Luggage {
    let mut luggage = Luggage::uninit();
    // SAFETY: luggage has room for a pointer at its start and is aligned for one.
    unsafe { luggage.as_mut_ptr().cast::<*const F>().write(closure) };
    luggage
}

/// The type of the closure has no name.
fn payload_for<F: Fn(Cpu) + Sync>(_: &F, luggage: Luggage) -> Payload {
    Payload { run: Some(run_shared::<F>), luggage }
}

/// What all that take part share. On the controller's stack: the call to many keeps it there.
struct Meeting<'a, K: Kernel, F> {
    /// The number of the rendezvous, above the stage.
    number: u64,
    runners: &'a CpuMask,
    deadline: Deadline,
    closure: &'a F,
    /// The stage word of the machine.
    word: &'static Word<K>,
}

impl<K: Kernel, F: Fn(Cpu) + Sync> Meeting<'_, K, F> {
    /// What each CPU but the controller does, as the closure of a call: with interrupts disabled.
    fn take_part(&self, cpu: Cpu) {
        let Some(here) = Here::<K>::new(cpu) else { return };
        let mut part = Part { here, meeting: self, reached: 0 };
        if part.follow() && self.runners.contains(cpu) {
            (self.closure)(cpu);
        }
        // The rest of it is in its drop: whatever panics, nobody waits for this CPU in vain.
    }
}

/// A CPU that takes part, and does not control.
struct Part<'a, K: Kernel, F: Fn(Cpu) + Sync> {
    here: Here<K>,
    meeting: &'a Meeting<'a, K, F>,
    /// The last stage that it has reached.
    reached: u64,
}

impl<K: Kernel, F: Fn(Cpu) + Sync> Part<'_, K, F> {
    /// Follows the stages up to `RUN`. False if the rendezvous is given up.
    fn follow(&mut self) -> bool {
        let &Meeting { number, deadline, word, .. } = self.meeting;
        loop {
            // Relaxed: the wait below, and before the closure runs there was one, has acquired what the others did before they
            // reached the stage before.
            let seen = word.load(Relaxed);
            if seen & !STAGE != number {
                // This one is over, and the next is under way.
                return false;
            }
            let stage = seen & STAGE;
            if stage != PREPARE && stage != INTERRUPTS_OFF {
                return stage != ABORT;
            }
            self.reach(stage);
            let serves = stage == PREPARE;
            let late = match self.here.wait_serving(word.differs(!0, seen), serves, deadline) {
                Woken::Met(0) => false,
                // A flood of calls must not hide the deadline.
                Woken::Met(_) => deadline.has_passed(K::now()),
                Woken::Deadline => true,
            };
            if late {
                // Relaxed: nothing was done that anybody could see. This step decides against the controller's next one.
                let _ = word.compare_exchange(seen, number | ABORT, Relaxed, Relaxed);
            }
        }
    }

    fn reach(&mut self, stage: u64) {
        if self.reached == stage {
            return;
        }
        self.reached = stage;
        if stage == INTERRUPTS_OFF {
            self.here.mine.own.0.stopped.set(1);
        }
        // Release: what this CPU did before is visible to those that run the closure, and what its closure did to
        // those that go on.
        self.here.mine.stage_reached.store(self.meeting.number | stage, Release);
    }
}

impl<K: Kernel, F: Fn(Cpu) + Sync> Drop for Part<'_, K, F> {
    fn drop(&mut self) {
        // Follows them if it has not: what it served while it waited may have panicked.
        if self.follow() {
            if self.meeting.runners.contains(self.here.me) {
                self.reach(RUN);
            }
            // Whatever comes after it: the next rendezvous does not wait for those that leave this one.
            wait::<K>(&[self.meeting.word.differs(!0, self.meeting.number | RUN)], Deadline::NEVER);
        }
        self.here.mine.own.0.stopped.set(0);
    }
}

/// The controller's part. Dropping it lets everybody go.
struct Control<'a, K: Kernel, F: Fn(Cpu) + Sync> {
    here: Here<K>,
    meeting: &'a Meeting<'a, K, F>,
    others: &'a CpuMask,
    /// Where the stage word is; nobody else moves it but to `ABORT`.
    stage: u64,
}

impl<K: Kernel, F: Fn(Cpu) + Sync> Control<'_, K, F> {
    /// The word in which `cpu` says what it has reached.
    fn reached_by(&self, cpu: Cpu) -> Option<&'static Word<K>> {
        self.here.boxes().get(cpu).map(|theirs| &theirs.stage_reached)
    }

    /// Brings everybody to where the closure can run. Otherwise it is given up, and nobody has run it.
    fn gather(
        &mut self,
        pending: &mut PendingMany<K>,
        caller: &Caller<'_, K>,
        failures: &mut Failures<K>,
    ) -> Result<(), RendezvousError<K>> {
        let mut ladder = Ladder::new(caller, pending.rung_at);
        let mut waited_for = self.await_all(&mut ladder, pending, failures);
        // They had come to no stage before they went offline, so they have run nothing.
        let mut offline = K::CpuSet::EMPTY;
        for cpu in
            self.others.iter().filter(|&cpu| failures.is_offline(cpu) && self.meeting.runners.contains(cpu))
        {
            offline.insert(cpu);
        }
        if offline.is_empty() && waited_for.is_ok() && self.move_on(INTERRUPTS_OFF) {
            waited_for = self.await_all(&mut ladder, pending, failures);
            if waited_for.is_ok() && self.move_on(RUN) {
                return Ok(());
            }
        }
        let late = self.late(failures);
        let now = K::now();
        let diagnosis = match waited_for {
            Err(cpu) if late.contains(cpu) => Some((cpu, ladder.diagnose(self.here.boxes(), cpu, now))),
            _ => None,
        };
        let stage = if self.stage == PREPARE { Stage::Prepare } else { Stage::InterruptsOff };
        self.let_go();
        let (Here { me, mine }, boxes) = (self.here, self.here.boxes());
        let withdrawn = pending.withdraw_all();
        for cpu in &*withdrawn {
            boxes.trace(me, EventKind::CallWithdrawn, Some(cpu), pending.level, 0);
        }
        mine.counters().calls_withdrawn.add(withdrawn.len() as u64);
        if !offline.is_empty() {
            return Err(RendezvousError::Offline(offline));
        }
        for cpu in &*late {
            boxes.trace(me, EventKind::RendezvousLate, Some(cpu), stage as usize + 1, 0);
        }
        Err(RendezvousError::Late { stage, late, diagnosis })
    }

    /// Waits until all others have reached the stage. At the deadline: the one that was waited for.
    fn await_all(
        &self,
        ladder: &mut Ladder,
        pending: &PendingMany<K>,
        failures: &mut Failures<K>,
    ) -> Result<(), Cpu> {
        let expected = self.meeting.number | self.stage;
        for cpu in self.others {
            let Some(word) = self.reached_by(cpu) else { continue };
            while !failures.is_offline(cpu) {
                let reached = word.equals(!0, expected);
                if self.stage != PREPARE {
                    // All have come: there is nothing to ring for, and nobody is served.
                    match wait::<K>(&[reached], self.meeting.deadline) {
                        Woken::Met(_) => break,
                        Woken::Deadline => return Err(cpu),
                    }
                }
                if let Woken::Met(0) = self.here.wait_serving(reached, true, ladder.next_step()) {
                    break;
                }
                let now = K::now();
                if ladder.has_ended(now) {
                    return Err(cpu);
                }
                if ladder.is_due(now) {
                    ladder.look::<K>(self.here.me, pending.unclaimed(), now, |here, closed| {
                        if pending.withdraw(closed) {
                            here.mine.counters().calls_refused.add(1);
                            failures.note().offline.insert(closed);
                        }
                    });
                }
            }
        }
        Ok(())
    }

    /// Those that have not reached the stage; this CPU if all have.
    fn late(&self, failures: &Failures<K>) -> K::CpuSet {
        let mut late = K::CpuSet::EMPTY;
        for cpu in self.others.iter().filter(|&cpu| !failures.is_offline(cpu)) {
            // Relaxed: for the report.
            let reached = self.reached_by(cpu).map(|word| word.load(Relaxed));
            if reached != Some(self.meeting.number | self.stage) {
                late.insert(cpu);
            }
        }
        if late.is_empty() {
            late.insert(self.here.me);
        }
        late
    }

    /// Moves the stage. False if somebody has given up before.
    fn move_on(&mut self, next: u64) -> bool {
        let number = self.meeting.number;
        // Release: what all CPUs did before, seen by the waits for them, is visible to whoever sees this. Relaxed: who gave
        // up has done nothing.
        let moved =
            self.meeting.word.compare_exchange(number | self.stage, number | next, Release, Relaxed).is_ok();
        if moved {
            self.stage = next;
            self.here.mine.own.0.stopped.set(1);
            self.here.boxes().trace(
                self.here.me,
                EventKind::RendezvousStage,
                None,
                next as usize,
                number >> 8,
            );
        }
        moved
    }

    /// Runs the closure here, if it is to run here, and waits for all that run it.
    fn run(&mut self, caller: &Caller<'_, K>) {
        let (Here { me, .. }, boxes) = (self.here, self.here.boxes());
        if self.meeting.runners.contains(me) {
            (self.meeting.closure)(me);
        }
        let mut ladder = Ladder::new(caller, K::now());
        self.await_runners(|cpu, reached| {
            while wait::<K>(&[reached], ladder.next_report()) == Woken::Deadline {
                // It runs the closure, which borrows: the wait goes on (law L4).
                ladder.go_on(boxes, me, Some(cpu), K::now());
            }
        });
        self.let_go();
    }

    fn await_runners(&self, mut wait_for: impl FnMut(Cpu, When<'_, K::Memory>)) {
        for cpu in self.others.iter().filter(|&cpu| self.meeting.runners.contains(cpu)) {
            if let Some(word) = self.reached_by(cpu) {
                wait_for(cpu, word.equals(!0, self.meeting.number | RUN));
            }
        }
    }

    /// Lets everybody go on: after the run, or without one.
    fn let_go(&mut self) {
        let last = match self.stage {
            RUN => EXIT,
            EXIT | ABORT => return,
            _ => ABORT,
        };
        self.stage = last;
        // Release: what the closures did, seen by the waits for them, is visible to all that go on.
        self.meeting.word.store(self.meeting.number | last, Release);
        let (Here { me, mine }, boxes) = (self.here, self.here.boxes());
        mine.own.0.stopped.set(0);
        boxes.trace(me, EventKind::RendezvousStage, None, last as usize, self.meeting.number >> 8);
    }
}

impl<K: Kernel, F: Fn(Cpu) + Sync> Drop for Control<'_, K, F> {
    /// There is something left to do if this unwinds: the closure panics here, or one that is served.
    fn drop(&mut self) {
        if self.stage == RUN {
            self.await_runners(|_, reached| {
                wait::<K>(&[reached], Deadline::NEVER);
            });
        }
        self.let_go();
    }
}
