//! The life of a machine: its CPUs start together, run their programs, serve until all programs have ended, and leave
//! together.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::thread;
use std::time::{Duration, Instant};

use smpcall::machine::{Counter, Hardware, Woken, Word, wait};
use smpcall::{Counters, Cpu, Deadline, InterruptsOff};

use crate::config::Delivery;
use crate::context::{Context, Panic, Processor};
use crate::pool::Lease;
use crate::{Calls, Config, Host, Idle, InterruptCounts, halt, signals};

/// How long an idle CPU halts at most before it looks at its mailbox.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Set in `Shared::online` if a thread could not be started.
const ABANDONED: u64 = 1 << 32;

/// What the CPUs of one machine share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) processors: Box<[Processor]>,
    pub(crate) lease: Lease,
    pub(crate) started: Instant,
    /// Whether the host has fewer processors than this machine.
    pub(crate) is_crowded: bool,
    /// How many mailboxes are open, and `ABANDONED`.
    online: Word<Hardware>,
    /// How many programs have not ended.
    running: Word<Hardware>,
    /// How many CPUs may still send.
    serving: Word<Hardware>,
}

/// What is left of a machine that has run.
#[derive(Debug)]
#[must_use = "results and counters; panics have been passed on already"]
pub struct Run<T> {
    /// What the programs returned, by CPU number.
    pub results: Vec<T>,
    /// The interrupts of each CPU, by its number.
    pub interrupts: Vec<InterruptCounts>,
    /// From the start of the machine to its end.
    pub lasted: Duration,
    mailboxes: Leased,
}

/// Keeps the counters until the report is dropped.
struct Leased(Lease);

impl std::fmt::Debug for Leased {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.counters()).finish()
    }
}

impl Leased {
    fn counters(&self) -> impl Iterator<Item = &Counters> {
        let mailboxes = self.0.mailboxes();
        mailboxes.cpus().filter_map(move |cpu| mailboxes.get(cpu)).map(smpcall::Mailbox::counters)
    }
}

impl<T> Run<T> {
    /// What the protocol counted on each CPU, by its number.
    pub fn counters(&self) -> impl Iterator<Item = &Counters> {
        self.mailboxes.counters()
    }

    /// The sum of one of the protocol's counters over all CPUs: `run.total(|c| &c.calls_run)`.
    pub fn total(&self, counter: impl Fn(&Counters) -> &Counter) -> u64 {
        self.counters().map(|counters| counter(counters).get()).sum()
    }

    /// The sums of the machine's counts over all CPUs.
    pub fn all_interrupts(&self) -> InterruptCounts {
        self.interrupts.iter().fold(InterruptCounts::default(), |sum, &counts| sum + counts)
    }
}

impl Config {
    /// Runs `program` on every CPU, each a thread of its own, and returns when all have ended.
    ///
    /// All mailboxes are open before any program begins. A CPU whose program has ended goes on serving until all
    /// have ended; then each closes its mailbox. Programs may borrow from the caller. May be called from any
    /// number of threads at a time.
    ///
    /// # Panics
    /// If delivery by signals was asked for and is not available here, or a thread cannot be started. After the machine
    /// has ended, goes on with the panic of a program, or of a closure or post that was served (of the lowest CPU).
    pub fn run<T: Send>(self, program: impl Fn(Cpu) -> T + Sync) -> Run<T> {
        if self.delivery == Delivery::Signals {
            assert!(Self::has_signals(), "this system cannot deliver interrupts by signals");
            signals::install();
        }
        let cpus = self.cpus;
        let shared = Shared {
            processors: (0..cpus).map(|_| Processor::default()).collect(),
            lease: Lease::new(cpus),
            started: Instant::now(),
            is_crowded: thread::available_parallelism().is_ok_and(|processors| processors.get() < cpus),
            online: Word::<Hardware>::new(0),
            running: Word::<Hardware>::new(cpus as u64),
            serving: Word::<Hardware>::new(cpus as u64),
            config: self,
        };
        let results: Vec<Option<Result<T, Panic>>> = thread::scope(|scope| {
            let (shared, program) = (&shared, &program);
            let threads: Vec<_> = (0..cpus)
                .map(|number| {
                    let cpu = Cpu::new(number as u32);
                    let spawned = thread::Builder::new()
                        .name(cpu.to_string())
                        .spawn_scoped(scope, move || shared.be(cpu, program));
                    if spawned.is_err() {
                        // Release: nothing depends on it; those who wait read with acquire.
                        shared.online.fetch_or(ABANDONED, Release);
                        shared.serving.fetch_sub(1, Release);
                    }
                    spawned
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.ok()?.join().unwrap_or_else(|panic| Some(Err(panic))))
                .collect()
        });
        let lasted = shared.started.elapsed();
        let mut ended = Vec::with_capacity(cpus);
        for result in results {
            match result.expect("the host can start a thread for every CPU") {
                Ok(result) => ended.push(result),
                Err(panic) => resume_unwind(panic),
            }
        }
        if let Some(panic) = shared.processors.iter().find_map(Processor::take_panic) {
            resume_unwind(panic);
        }
        let interrupts = shared.processors.iter().map(|processor| processor.tallies.snapshot()).collect();
        Run { results: ended, interrupts, lasted, mailboxes: Leased(shared.lease) }
    }
}

impl Shared {
    /// A CPU's life. None if the machine was abandoned before its program began.
    fn be<T>(&self, cpu: Cpu, program: &impl Fn(Cpu) -> T) -> Option<Result<T, Panic>> {
        let context = Context { machine: self, cpu, processor: &self.processors[cpu.index()] };
        let entered = context.enter();
        Calls::declare_nmi(true);
        Calls::open();
        // Release: whoever sees all online sees their doors open and their addresses set.
        self.online.fetch_add(1, Release);
        let all_online = self.online.equals(!0, self.processors.len() as u64);
        let abandoned = self.online.differs(ABANDONED, 0);
        let woken = wait::<Host>(&[all_online, abandoned], Deadline::NEVER);
        let result = (woken == Woken::Met(0)).then(|| {
            let result = catch_unwind(AssertUnwindSafe(|| program(cpu)));
            self.end_program();
            // What is served may panic; the others still need this CPU.
            while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.idle())) {
                context.processor.keep_panic(panic);
            }
            result
        });
        if let Err(panic) = catch_unwind(AssertUnwindSafe(close)) {
            context.processor.keep_panic(panic);
        }
        context.be_silent();
        self.leave();
        drop(entered);
        result
    }

    /// The program of this CPU has ended; the last one tells everybody.
    fn end_program(&self) {
        // Acquire and release: the last one to end has seen what the programs before it did.
        if self.running.fetch_sub(1, AcqRel) == 1 {
            self.processors.iter().for_each(Processor::wake);
        }
    }

    /// Serves until all programs have ended.
    fn idle(&self) {
        let all_ended = self.running.equals(!0, 0);
        match self.config.idle {
            Idle::Poll => {
                let mut guard = InterruptsOff::new();
                Calls::poll_until(&mut guard, all_ended, Deadline::NEVER);
            }
            // Acquire: see `end_program`.
            Idle::Halt => {
                while self.running.load(Acquire) != 0 {
                    let mut guard = InterruptsOff::new();
                    if Calls::may_halt(&mut guard) && self.running.load(Acquire) != 0 {
                        halt(guard);
                    }
                }
            }
        }
    }

    /// Waits until nobody sends any more: afterwards the thread may end.
    fn leave(&self) {
        // Release, and acquire in the wait: what this CPU has sent was sent before any thread ends.
        self.serving.fetch_sub(1, Release);
        wait::<Host>(&[self.serving.equals(!0, 0)], Deadline::NEVER);
    }
}

/// Closes the mailbox of this CPU, and runs what it has accepted.
fn close() {
    let mut guard = InterruptsOff::new();
    Calls::close(&mut guard);
}
