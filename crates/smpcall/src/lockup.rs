//! Lockups: task level that makes no progress (soft), and a CPU whose tick has stopped (hard).
//!
//! Both are looked for in the timer interrupt, and both need that a limit has passed *by the clock and by the CPU's own
//! ticks*. The clock alone would raise an alarm whenever the whole machine was paused - by a hypervisor, a debugger, a
//! firmware - because it goes on meanwhile; ticks alone, when they come late and then at once.
//!
//! * **Soft**: every CPU looks at itself. [`CrossCall::progress`] is called by task level, [`CrossCall::check_lockups`] by
//!   the tick.
//! * **Hard**: every CPU looks after another one, its buddy: the next that is online and [watched](CrossCall::watch_ticks).
//!   A buddy that is locked up is left to itself once it was reported, and the next one is looked after too, so that CPUs
//!   that lock up side by side are all found, one limit after the other. The culprit is sent an NMI, in whose handler it
//!   walks its own stack.
//!
//! An episode is reported once, and its end is told. All of it is statistics: no law depends on it. What it costs is a
//! counter for task level, and for a tick a few loads.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use crate::door::OPEN;
use crate::serve::Here;
use crate::{Cpu, CrossCall, Deadline, Instant, InterruptsOff, Kernel, TargetState};
use smpcall_machine::{Counter, EventKind, Ipi, SendError, Woken, wait_at_most};
use smpcall_vmcore::Registers;

/// How often an asker looks whether its back trace was taken, at most: its clock may stand still.
const BACK_TRACE_LOOKS: u64 = 1 << 20;

/// What a kernel adds to have lockups found.
pub trait Lockups: Kernel {
    /// The time between two ticks of a CPU.
    const TICK: Duration;

    /// After how long without progress of task level a CPU is said to be locked up softly.
    const SOFT_LIMIT: Duration = Duration::from_secs(20);

    /// After how long without a tick a CPU is said to be locked up hard.
    const HARD_LIMIT: Duration = Duration::from_secs(10);

    /// How long the reporter of a hard lockup waits for the culprit's back trace, with interrupts disabled.
    const BACK_TRACE_LIMIT: Duration = Duration::from_millis(10);

    /// A CPU is locked up. Called from the tick: of the CPU itself, or of the one that looks after it. Once an episode.
    fn locked_up(lockup: &Lockup) -> Answer;

    /// What was reported has ended, after this long. Called from the culprit's first tick after that.
    fn lockup_ended(culprit: Cpu, kind: LockupKind, lasted: Duration) {
        let _ = (culprit, kind, lasted);
    }

    /// `asker` wants to know where this CPU is: it was here. Called in the NMI handler, which has interrupted anything at
    /// all: the stack is walked within bounds, no lock is taken.
    fn back_trace(asker: Cpu, registers: &Registers);
}

/// What stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockupKind {
    /// Task level: ticks come.
    Soft,
    /// The ticks.
    Hard,
}

/// What is known of a lockup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lockup {
    /// What stands still.
    pub kind: LockupKind,
    /// Where.
    pub culprit: Cpu,
    /// Who has found it: the culprit itself, if it is a soft one.
    pub finder: Cpu,
    /// For how long, by the finder's clock.
    pub lasted: Duration,
    /// For how many of the finder's ticks.
    pub ticks: u64,
    /// What is known of the culprit: what it runs; and if it is a hard one, whether it has taken an NMI and where.
    pub state: TargetState,
    /// What the tick has interrupted, if it is a soft one; of a hard one, [`Lockups::back_trace`] tells, on the culprit.
    pub registers: Option<Registers>,
    /// The back trace of a hard one was taken when this was made.
    pub back_trace_taken: bool,
}

/// What a kernel makes of a lockup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[must_use = "a crash stop may be asked for"]
pub enum Answer {
    /// Reported: go on.
    #[default]
    GoOn,
    /// The caller of [`CrossCall::check_lockups`] is to crash the machine.
    CrashStop,
}

/// Why a CPU did not take its back trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackTraceError {
    /// There is no CPU with this number.
    NoSuchCpu,
    /// The machine has no NMI, or the CPU has not declared that it takes them.
    TakesNoNmi,
    /// The NMI was not sent.
    NotSent(SendError),
    /// It did not take the NMI in time. It may still do so.
    NotTaken,
}

impl core::fmt::Display for BackTraceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoSuchCpu => f.write_str("there is no such CPU"),
            Self::TakesNoNmi => f.write_str("the CPU takes no NMI"),
            Self::NotSent(error) => write!(f, "the NMI was not sent: {error}"),
            Self::NotTaken => f.write_str("the CPU did not take the NMI in time"),
        }
    }
}

impl core::error::Error for BackTraceError {}

/// What a CPU knows of its own progress, and of its buddy's. Written by that CPU only.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Raised by task level.
    pub(crate) progress: Counter,
    /// Ticks of this CPU that have looked.
    ticks: Counter,
    /// Whether others look after this CPU's ticks.
    watched: Counter,
    /// The progress that was seen last, and when it was new; not begun if `ticks` is 0 there.
    seen_progress: Counter,
    still_since: Stamp,
    /// It was reported that there is none.
    reported: Counter,
    /// The buddy's number + 1, its ticks that were seen last, and when they were new.
    buddy: Counter,
    buddy_ticks: Counter,
    buddy_since: Stamp,
}

/// A moment by the clock, in nanoseconds, and by the own ticks.
#[derive(Debug, Default)]
struct Stamp {
    time: Counter,
    ticks: Counter,
}

/// A moment.
#[derive(Clone, Copy)]
struct Moment {
    time: Instant,
    ticks: u64,
}

impl Stamp {
    const NEW: Self = Self { time: Counter::new(0), ticks: Counter::new(0) };

    fn set(&self, at: Moment) {
        self.time.set(at.time.as_nanos());
        self.ticks.set(at.ticks);
    }

    /// How long ago that was, by both.
    fn until(&self, now: Moment) -> (Duration, u64) {
        let time = now.time.since(Instant::from_nanos(self.time.get()));
        (time, now.ticks.saturating_sub(self.ticks.get()))
    }
}

impl Watch {
    pub(crate) const NEW: Self = Self {
        progress: Counter::new(0),
        ticks: Counter::new(0),
        watched: Counter::new(0),
        seen_progress: Counter::new(0),
        still_since: Stamp::NEW,
        reported: Counter::new(0),
        buddy: Counter::new(0),
        buddy_ticks: Counter::new(0),
        buddy_since: Stamp::NEW,
    };

    /// All its counters: for machines that start again in the same memory.
    pub(crate) fn clear(&self) {
        for counter in [
            &self.progress,
            &self.ticks,
            &self.watched,
            &self.seen_progress,
            &self.still_since.time,
            &self.still_since.ticks,
            &self.reported,
            &self.buddy,
            &self.buddy_ticks,
            &self.buddy_since.time,
            &self.buddy_since.ticks,
        ] {
            counter.set(0);
        }
    }
}

impl<K: Lockups> CrossCall<K> {
    /// Task level has made progress: called by the scheduler at every switch, by the idle loop, by a task that knows that it
    /// takes long. Not from interrupt handlers.
    #[inline]
    pub fn progress() {
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            here.mine.own.0.watch.progress.add(1);
        }
    }

    /// This CPU's ticks come from now on, or stop: because it goes idle without ticks, or offline. Nobody looks after
    /// the ticks of a CPU that has never said so. What stood still before does not count.
    pub fn watch_ticks(come: bool) {
        let pinned = InterruptsOff::<K>::new();
        if let Some(here) = Here::<K>::new(pinned.cpu()) {
            let watch = &here.mine.own.0.watch;
            watch.still_since.ticks.set(0);
            watch.buddy.set(0);
            watch.watched.set(u64::from(come));
        }
    }

    /// From every tick of every CPU, with what it has interrupted: looks for lockups, reports them by
    /// [`Lockups::locked_up`] and returns the gravest answer. Takes up to [`BACK_TRACE_LIMIT`](Lockups::BACK_TRACE_LIMIT)
    /// when it reports a hard one.
    pub fn check_lockups(registers: &Registers) -> Answer {
        let pinned = InterruptsOff::<K>::new();
        let Some(here) = Here::<K>::new(pinned.cpu()) else { return Answer::GoOn };
        let watch = &here.mine.own.0.watch;
        watch.ticks.add(1);
        let now = Moment { time: K::now(), ticks: watch.ticks.get() };
        here.end_hard_lockup(now);
        let soft = here.check_progress(now, registers);
        let hard = here.check_buddy(now);
        if soft == Answer::CrashStop { soft } else { hard }
    }

    /// The NMI handler's part: walks this CPU's stack for whoever has asked. Returns whether somebody had.
    pub fn handle_back_trace(registers: &Registers) -> bool {
        let Some(here) = Here::<K>::new(K::current_cpu()) else { return false };
        let wanted = &here.mine.back_trace_wanted;
        // Relaxed: it names who has asked, nothing more.
        let asker = wanted.load(Relaxed);
        if asker == 0 {
            return false;
        }
        K::back_trace(Cpu::new(asker as u32 - 1), registers);
        here.boxes().trace(here.me, EventKind::BackTraceTaken, None, 0, registers.rip);
        // Release: what the hook has written, to whoever waits for it. If another CPU has asked meanwhile, this was its too.
        wanted.store(0, Release);
        true
    }

    /// Asks `target` for its back trace by NMI and waits for it, at most this long. Any context but NMI.
    ///
    /// # Errors
    /// [`BackTraceError`]: it was not taken, or not in time.
    pub fn back_trace_of(target: Cpu, limit: Duration) -> Result<(), BackTraceError> {
        let pinned = InterruptsOff::<K>::new();
        let here = Here::<K>::new(pinned.cpu()).ok_or(BackTraceError::NoSuchCpu)?;
        here.ask_for_back_trace(target, limit)
    }
}

impl<K: Lockups> Here<K> {
    /// A limit in ticks, rounded up.
    const fn ticks_in(limit: Duration) -> u64 {
        limit.as_nanos().div_ceil(K::TICK.as_nanos()) as u64
    }

    /// This CPU ticks: if it was said not to, that is over.
    fn end_hard_lockup(&self, now: Moment) {
        // Relaxed: a time, and nothing that goes with it.
        let since = self.mine.hard_locked_up.load(Relaxed);
        if since == 0 {
            return;
        }
        // Stored before the ticks are seen to move: who looks after this CPU begins anew.
        self.mine.hard_locked_up.store(0, Relaxed);
        self.tell_end(LockupKind::Hard, now.time.since(Instant::from_nanos(since)));
    }

    fn tell_end(&self, kind: LockupKind, lasted: Duration) {
        self.boxes().trace(self.me, EventKind::LockupEnded, None, kind as usize, lasted.as_nanos() as u64);
        K::lockup_ended(self.me, kind, lasted);
    }

    /// Soft: does task level of this CPU stand still?
    fn check_progress(&self, now: Moment, registers: &Registers) -> Answer {
        let watch = &self.mine.own.0.watch;
        let progress = watch.progress.get();
        let (time, ticks) = watch.still_since.until(now);
        if watch.still_since.ticks.get() == 0 || watch.seen_progress.get() != progress {
            if watch.reported.get() != 0 {
                watch.reported.set(0);
                self.tell_end(LockupKind::Soft, time);
            }
            watch.seen_progress.set(progress);
            watch.still_since.set(now);
            return Answer::GoOn;
        }
        if watch.reported.get() != 0 || time < K::SOFT_LIMIT || ticks < Self::ticks_in(K::SOFT_LIMIT) {
            return Answer::GoOn;
        }
        watch.reported.set(1);
        self.report(&Lockup {
            kind: LockupKind::Soft,
            culprit: self.me,
            finder: self.me,
            lasted: time,
            ticks,
            state: self.boxes().state_of(self.me, None),
            registers: Some(*registers),
            back_trace_taken: false,
        })
    }

    fn report(&self, lockup: &Lockup) -> Answer {
        let lasted = lockup.lasted.as_nanos() as u64;
        self.mine.counters().lockups_found.add(1);
        self.boxes().trace(
            self.me,
            EventKind::LockupFound,
            Some(lockup.culprit),
            lockup.kind as usize,
            lasted,
        );
        K::locked_up(lockup)
    }

    /// The next CPU whose ticks should come and of which nobody has said that they do not.
    fn buddy(&self) -> Option<Cpu> {
        let cpus = self.boxes().cpu_count() as u32;
        (1..cpus).map(|ahead| Cpu::new((self.me.number() + ahead) % cpus)).find(|&cpu| {
            self.boxes().get(cpu).is_some_and(|theirs| {
                // Relaxed: a CPU that has just come or gone is looked after one tick earlier or later.
                theirs.own.0.watch.watched.get() != 0
                    && theirs.hard_locked_up.load(Relaxed) == 0
                    && theirs.door.0.load(Relaxed) & OPEN != 0
            })
        })
    }

    /// Hard: do the buddy's ticks stand still?
    fn check_buddy(&self, now: Moment) -> Answer {
        let watch = &self.mine.own.0.watch;
        let Some(buddy) = self.buddy() else {
            watch.buddy.set(0);
            return Answer::GoOn;
        };
        let Some(theirs) = self.boxes().get(buddy) else { return Answer::GoOn };
        let number = u64::from(buddy.number()) + 1;
        let theirs_now = theirs.own.0.watch.ticks.get();
        if watch.buddy.get() != number || watch.buddy_ticks.get() != theirs_now {
            watch.buddy.set(number);
            watch.buddy_ticks.set(theirs_now);
            watch.buddy_since.set(now);
            return Answer::GoOn;
        }
        let (time, ticks) = watch.buddy_since.until(now);
        if time < K::HARD_LIMIT || ticks < Self::ticks_in(K::HARD_LIMIT) {
            return Answer::GoOn;
        }
        let since = watch.buddy_since.time.get().max(1);
        // Relaxed: decides who reports, of those that have found the same.
        if theirs.hard_locked_up.compare_exchange(0, since, Relaxed, Relaxed).is_err() {
            return Answer::GoOn;
        }
        let probed = self.boxes().probe(self.me, buddy, theirs);
        let back_trace_taken = self.ask_for_back_trace(buddy, K::BACK_TRACE_LIMIT).is_ok();
        self.report(&Lockup {
            kind: LockupKind::Hard,
            culprit: buddy,
            finder: self.me,
            lasted: time,
            ticks,
            state: self.boxes().state_of(buddy, probed),
            registers: None,
            back_trace_taken,
        })
    }

    fn ask_for_back_trace(&self, target: Cpu, limit: Duration) -> Result<(), BackTraceError> {
        let theirs = self.boxes().get(target).ok_or(BackTraceError::NoSuchCpu)?;
        // Acquire: the handler that was set up before is in place.
        if !K::HAS_NMI || theirs.takes_nmi.load(Acquire) == 0 {
            return Err(BackTraceError::TakesNoNmi);
        }
        // Relaxed: it names who asks. If another CPU has asked, one back trace will do for both.
        theirs.back_trace_wanted.store(u64::from(self.me.number()) + 1, Relaxed);
        self.boxes().trace(self.me, EventKind::BackTraceSent, Some(target), 0, 0);
        K::send(target, Ipi::Probe).map_err(BackTraceError::NotSent)?;
        let taken = theirs.back_trace_wanted.equals(!0, 0);
        match wait_at_most::<K>(&[taken], Deadline::within::<K>(limit), BACK_TRACE_LOOKS) {
            Woken::Met(_) => Ok(()),
            Woken::Deadline => Err(BackTraceError::NotTaken),
        }
    }
}
