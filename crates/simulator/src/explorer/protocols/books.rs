//! What the programs of the protocols write down, and whether it adds up.

use core::sync::atomic::Ordering;
use core::time::Duration;

use smpcall::{CallError, Caller, Cpu, Deferred, InterruptsOff, ManyError, Post, PostRefusal, Posted};
use smpcall_machine::{Deadline, Machine as _, Word, wait};

use crate::explorer::note::Note;
use crate::explorer::scenario::Scenario;
use crate::explorer::system::Violation;
use crate::kernel::Calls;
use crate::{SimCpuSet, SimMachine, SimMemory};

/// No deadline.
pub(super) const FOR_EVER: Option<Duration> = None;
/// Before the first look at the ring.
pub(super) const SHORT: Option<Duration> = Some(Duration::from_micros(100));

/// What the caller of a call was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Run,
    NotRun,
    LeftClaimed,
    Died,
}

impl Told {
    fn of(note: &Note) -> Self {
        [Self::Nothing, Self::Run, Self::NotRun, Self::LeftClaimed, Self::Died][note.get() as usize]
    }
}

/// What can be wrong in the middle of an execution.
#[derive(Clone, Copy)]
pub(super) enum Wrong {
    InterruptsEnabled = 1,
    OnAnotherCpu,
    NotVisible,
    RefusedForNothing,
    OutOfOrder,
    Misdiagnosed,
    NotBusy,
    OnlineAfterAll,
    NotAsTold,
}

impl Wrong {
    fn violation(number: u64) -> Option<Violation> {
        let (law, what) = match number {
            0 => return None,
            1 => ("L1", "a closure ran with interrupts enabled"),
            2 => ("L1", "a closure ran on the wrong CPU"),
            3 => ("L1", "the closure's writes or its result did not reach the caller"),
            4 => ("L1", "a post was refused for no reason"),
            5 => ("L1", "a call was run before a post that its CPU had made earlier"),
            6 => ("L3", "the diagnosis of a given-up call is not what the target was in"),
            8 => ("L5", "a CPU that was taken down accepts calls"),
            9 => ("L5", "a CPU is not where the operation that brought it there said"),
            _ => ("L3", "a caller without a free call level was not told so"),
        };
        Some(Violation::new(law, what))
    }
}

/// How many calls the books have room for.
const ENTRIES: usize = 8;

/// How often each call ran and what its caller was told, entered by either side; and the same of posts.
pub(super) struct Books {
    runs: [Note; ENTRIES],
    told: [Note; ENTRIES],
    posts_queued: Note,
    posts_run: Note,
    /// The posters, one bit each, whose posts were accepted, and whose work a run has found.
    work_accepted: Note,
    work_found: Note,
    wrong: Note,
    /// What posters leave for the run: one bit each.
    work: Word<SimMemory>,
    /// How often closures have run.
    effects: Word<SimMemory>,
    /// What programs say to each other.
    pub(super) said: [Word<SimMemory>; 2],
}

impl Books {
    pub(super) fn new(scenario: &mut Scenario) -> &'static Self {
        let books = scenario.share(Self {
            runs: [const { Note::new(0) }; ENTRIES],
            told: [const { Note::new(0) }; ENTRIES],
            posts_queued: Note::new(0),
            posts_run: Note::new(0),
            work_accepted: Note::new(0),
            work_found: Note::new(0),
            wrong: Note::new(0),
            work: Word::new(0),
            effects: Word::new(0),
            said: [const { Word::new(0) }; 2],
        });
        for (word, name) in [
            (&books.work, "work"),
            (&books.effects, "effects"),
            (&books.said[0], "said[0]"),
            (&books.said[1], "said[1]"),
        ] {
            scenario.name(word.location(), name);
        }
        scenario.check(|| books.check());
        books
    }

    /// As the check at the end, where a CPU may have made no further step at any point: who did was told nothing, and what
    /// it had claimed has not run.
    pub(super) fn check_with_wedges(&self) -> Result<(), Violation> {
        for (entry, (runs, told)) in self.runs.iter().zip(&self.told).enumerate() {
            let (runs, told) = (runs.get(), Told::of(told));
            let fits = match told {
                Told::Nothing | Told::LeftClaimed | Told::Died => runs <= 1,
                Told::NotRun => runs == 0,
                Told::Run => runs == 1,
            };
            if !fits {
                let what = format!("call {entry} ran {runs} times, and its caller was told {told:?}");
                return Err(Violation::new("L1", what));
            }
        }
        Ok(())
    }

    /// Whether nothing was found wrong on the way.
    pub(super) fn check_progress(&self) -> Result<(), Violation> {
        Wrong::violation(self.wrong.get()).map_or(Ok(()), Err)
    }

    pub(super) fn check(&self) -> Result<(), Violation> {
        self.check_progress()?;
        for (entry, (runs, told)) in self.runs.iter().zip(&self.told).enumerate() {
            let (runs, told) = (runs.get(), Told::of(told));
            let fits = match told {
                // Nobody was told: it was not made, or made by a closure that did not run.
                Told::Nothing | Told::NotRun => runs == 0,
                Told::Run | Told::LeftClaimed => runs == 1,
                // Its target was fenced, anywhere in it.
                Told::Died => runs <= 1,
            };
            if !fits {
                let what = format!("call {entry} ran {runs} times, and its caller was told {told:?}");
                return Err(Violation::new("L1", what));
            }
        }
        let (queued, run) = (self.posts_queued.get(), self.posts_run.get());
        if queued != run {
            return Err(Violation::new("L1", format!("{queued} posts were queued, {run} were run")));
        }
        let lost = self.work_accepted.get() & !self.work_found.get();
        if lost == 0 {
            Ok(())
        } else {
            let what = format!("posts were accepted, and no run came after them: {lost:#b}");
            Err(Violation::new("L1", what))
        }
    }

    pub(super) fn wrong(&self, wrong: Wrong) {
        self.wrong.set(wrong as u64);
    }

    /// The closure of a call runs. It touches shared memory before it takes effect: what happens between two operations of
    /// a CPU is one step, and an effect in the step of the claim would hide that completion and effect are in the wrong
    /// order.
    pub(super) fn run(&self, entry: usize) {
        self.effects.fetch_add(1, Ordering::Relaxed);
        self.runs[entry].add(1);
        if SimMachine::interrupts_enabled() {
            self.wrong(Wrong::InterruptsEnabled);
        }
    }

    fn tell(&self, entry: usize, told: Told) {
        self.told[entry].set(told as u64);
    }

    #[allow(clippy::needless_pass_by_value, reason = "takes what a call returns")]
    pub(super) fn settle<R>(&self, entry: usize, result: Result<R, CallError>) {
        let told = match result {
            Ok(_) => Told::Run,
            Err(CallError::Unfinished(_)) => Told::LeftClaimed,
            Err(CallError::TargetDied) => Told::Died,
            Err(_) => Told::NotRun,
        };
        self.tell(entry, told);
    }

    /// A call, entered in the books: its closure borrows from the caller, writes there and returns something.
    pub(super) fn call(&self, entry: usize, target: u32, limit: Option<Duration>, interrupts_off: bool) {
        let caller = limit.map_or_else(Calls::for_ever, Calls::within);
        let target = Cpu::new(target);
        let mut written = 0;
        let closure = || {
            self.run(entry);
            if SimMachine::current_cpu() != target {
                self.wrong(Wrong::OnAnotherCpu);
            }
            written = entry + 1;
            entry
        };
        let result = if interrupts_off {
            let mut guard = InterruptsOff::new();
            caller.with_interrupts_off(&mut guard).call(target, closure)
        } else {
            caller.call(target, closure)
        };
        let expected = if result.is_ok() { entry + 1 } else { 0 };
        let whole = result != Err(CallError::TargetDied);
        if whole && written != expected || result.is_ok_and(|returned| returned != entry) {
            self.wrong(Wrong::NotVisible);
        }
        self.settle(entry, result);
    }

    /// How often the closure of a call has run.
    pub(super) fn has_run(&self, entry: usize) -> u64 {
        self.runs[entry].get()
    }

    /// A call that had no reason not to run has run.
    pub(super) fn must_have_run(&self, entry: usize) {
        if Told::of(&self.told[entry]) != Told::Run {
            self.wrong(Wrong::NotAsTold);
        }
    }

    /// A call that borrows nothing.
    pub(super) fn call_static(&'static self, entry: usize, target: u32, limit: Option<Duration>) {
        let caller = limit.map_or_else(Calls::for_ever, Calls::within);
        self.settle(entry, caller.call_static(Cpu::new(target), move || self.run(entry)));
    }

    /// A call to many: entry + n for the n-th target.
    pub(super) fn call_many(&self, entry: usize, targets: &[u32], caller: Caller<'_, SimMachine>) {
        let set: SimCpuSet = targets.iter().copied().map(Cpu::new).collect();
        let position = |cpu: Cpu| targets.iter().position(|&target| target == cpu.number());
        let result = caller.call_many(&set, |cpu| match position(cpu) {
            Some(position) if cpu == SimMachine::current_cpu() => self.run(entry + position),
            _ => self.wrong(Wrong::OnAnotherCpu),
        });
        for (position, &target) in targets.iter().enumerate() {
            let target = Cpu::new(target);
            let told = match &result {
                Ok(()) => Told::Run,
                Err(ManyError::NotSent(_)) => Told::NotRun,
                Err(ManyError::Failed(failures)) => {
                    let not_run = failures.timed_out.contains(target) || failures.offline.contains(target);
                    match failures.died.contains(target) {
                        true => Told::Died,
                        false if not_run => Told::NotRun,
                        false => Told::Run,
                    }
                }
            };
            self.tell(entry + position, told);
        }
    }

    /// Leaves some work for the errand, and posts it.
    pub(super) fn post(&self, poster: usize, target: u32, errand: &'static Post<SimMachine, Errand>) {
        let work = 1 << poster;
        self.work.fetch_or(work, Ordering::Release);
        let result = Calls::post::<Errand>(Cpu::new(target), errand);
        if result.is_ok() {
            self.work_accepted.add(work);
        }
        match result {
            Ok(Posted::Queued) => self.posts_queued.add(1),
            Ok(Posted::Merged) => {}
            Err(error) => {
                if !matches!(error.reason, PostRefusal::Offline | PostRefusal::Contended) {
                    self.wrong(Wrong::RefusedForNothing);
                }
            }
        }
    }
}

impl Books {
    /// Waits until what was left for the errand is taken.
    #[track_caller]
    pub(super) fn await_run(&self) {
        wait::<SimMachine>(&[self.work.equals(!0, 0)], Deadline::NEVER);
    }

    /// Whether a run has found any work.
    pub(super) fn has_found_work(&self) -> bool {
        self.work_found.get() != 0
    }

    /// Waits until that program has spoken.
    #[track_caller]
    pub(super) fn await_word_of(&self, who: usize) {
        wait::<SimMachine>(&[self.said[who].equals(!0, 1)], Deadline::NEVER);
    }

    /// Speaks.
    #[track_caller]
    pub(super) fn say(&self, who: usize) {
        self.said[who].store(1, Ordering::Release);
    }

    /// After a post and a call to the same CPU: the post has run.
    pub(super) fn in_order(&self) {
        if self.posts_queued.get() != self.posts_run.get() {
            self.wrong(Wrong::OutOfOrder);
        }
    }
}

/// What is posted: it looks for the work that its posters have left.
pub(super) struct Errand(&'static Books);

impl Errand {
    pub(super) fn new(scenario: &mut Scenario, books: &'static Books) -> &'static Post<SimMachine, Self> {
        scenario.share(Post::new(Self(books)))
    }
}

impl Deferred<SimMachine> for Errand {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(handle: Self::Handle) {
        let books = handle.value().0;
        let work = books.work.swap(0, Ordering::Acquire);
        books.posts_run.add(1);
        let found = books.work_found.get();
        books.work_found.set(found | work);
    }
}
