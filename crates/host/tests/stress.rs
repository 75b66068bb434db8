//! The protocol under real concurrency: rings lost, interrupts in the middle of it, deadlines that meet claims; and every
//! call and post reconciled. The simulator and the explorer run on one thread; this is where the orderings meet a
//! processor that reorders.
//!
//! Each test lasts a second; `SMPCALL_STRESS_SECONDS` and `SMPCALL_STRESS_SEED` change that. `--nocapture` shows the figures.

use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use smpcall::machine::{CpuSetStorage, Ipi};
use smpcall::{
    CallError, Caller, Cpu, CpuSet, Deferred, InterruptsOff, Machine, ManyError, Post, PostRefusal, Posted,
};
use smpcall_host::{Calls, Config, Host, Idle, Run, watch};

const CPUS: usize = if cfg!(miri) { 3 } else { 4 };

/// Operations of each CPU at least; under Miri at most.
const FEWEST_ROUNDS: u64 = if cfg!(miri) { 8 } else { 1_000 };

/// Nothing takes so long: who waits to the end of it waits for something that was lost.
const LONG: Duration = Duration::from_secs(20);

/// A post that is made from everywhere, and shows whether what was written before is visible when it runs.
struct Errand {
    runs: AtomicU64,
    /// By poster: the number of its last attempt to post.
    written: [AtomicU64; CPUS],
    /// By poster: the highest number that a run has seen.
    seen: [AtomicU64; CPUS],
}

impl Deferred<Host> for Errand {
    type Handle = &'static Post<Host, Self>;

    fn run(post: Self::Handle) {
        let errand = post.value();
        errand.runs.fetch_add(1, Relaxed);
        for (written, seen) in errand.written.iter().zip(&errand.seen) {
            // The next run may begin elsewhere before this one has ended.
            seen.fetch_max(written.load(Relaxed), Relaxed);
        }
    }
}

static POSTS: [Post<Host, Errand>; CPUS] = [const {
    Post::new(Errand {
        runs: AtomicU64::new(0),
        written: [const { AtomicU64::new(0) }; CPUS],
        seen: [const { AtomicU64::new(0) }; CPUS],
    })
}; CPUS];

/// Posts made by NMI handlers, and how many of them were queued.
static NMI_POSTS: [Post<Host, Errand>; CPUS] = [const {
    Post::new(Errand {
        runs: AtomicU64::new(0),
        written: [const { AtomicU64::new(0) }; CPUS],
        seen: [const { AtomicU64::new(0) }; CPUS],
    })
}; CPUS];
static NMI_TURN: AtomicU64 = AtomicU64::new(0);
static NMI_QUEUED: AtomicU64 = AtomicU64::new(0);

/// Runs of the closures of `call_static`.
static STATIC_RUNS: AtomicU64 = AtomicU64::new(0);

fn post_from_nmi() {
    let turn = NMI_TURN.fetch_add(1, Relaxed) as usize;
    let target = Cpu::new((turn / CPUS % CPUS) as u32);
    if let Ok(Posted::Queued) = Calls::post::<Errand>(target, &NMI_POSTS[turn % CPUS]) {
        NMI_QUEUED.fetch_add(1, Relaxed);
    }
}

/// What one CPU has done, entered by the callers.
#[derive(Clone, Copy, Debug, Default)]
struct Books {
    /// Calls that have run.
    ran: u64,
    /// Calls that were withdrawn at their deadline.
    withdrawn: u64,
    /// Calls that were refused before anything was sent.
    not_sent: u64,
    /// Calls of `call_static`: run, or claimed and left behind.
    statics: u64,
    /// Posts that were queued.
    posts: u64,
    /// By post: the number of the last attempt that was accepted.
    accepted: [u64; CPUS],
}

impl Books {
    /// Enters the result of a call; returns whether it has run.
    fn enter<R>(&mut self, result: &Result<R, CallError>, limit: Duration) -> bool {
        match result {
            Ok(_) => self.ran += 1,
            Err(CallError::TimedOut(diagnosis)) => {
                assert!(limit < LONG, "a call was lost: {diagnosis}");
                self.withdrawn += 1;
            }
            Err(CallError::DeadlinePassed) => {
                assert!(limit < LONG);
                self.not_sent += 1;
            }
            // A nested caller that finds another one waiting for a level.
            Err(CallError::Busy) => self.not_sent += 1,
            Err(error) => panic!("{error}"),
        }
        result.is_ok()
    }
}

struct Worker {
    me: usize,
    random: Cell<u64>,
    books: Books,
}

impl Worker {
    /// A number below `limit` (splitmix64, by Vigna).
    fn random(&self, limit: u64) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % limit
    }

    fn a_cpu(&self) -> Cpu {
        Cpu::new(self.random(CPUS as u64) as u32)
    }

    /// Often so short that the deadline meets the claim, else long enough for everything.
    fn a_limit(&self) -> Duration {
        match self.random(4) {
            0 => Duration::from_nanos(self.random(5_000)),
            1 => Duration::from_nanos(self.random(100_000)),
            _ => LONG,
        }
    }

    fn one_operation(&mut self) {
        match self.random(16) {
            0..5 => self.call(false),
            5 | 6 => self.call(true),
            7 | 8 => self.nested_call(),
            9 => self.call_many(false),
            10 => self.call_many(true),
            11 => self.call_static(),
            12 | 13 => self.post(),
            14 => Host::send(self.a_cpu(), Ipi::Ring).unwrap_or_default(),
            _ => Host::send(self.a_cpu(), Ipi::Probe).unwrap_or_default(),
        }
    }

    /// A call whose closure reads and writes plain data of the caller's stack: a lost ordering shows in it.
    fn call(&mut self, interrupts_off: bool) {
        let (target, limit) = (self.a_cpu(), self.a_limit());
        let secret = self.random(1 << 31);
        let mut data = [secret; 8];
        let closure = || {
            let sum: u64 = data.iter().sum();
            data.fill(!secret);
            sum
        };
        let result = with(limit, interrupts_off, |caller| caller.call(target, closure));
        if self.books.enter(&result, limit) {
            assert_eq!(
                (result.ok(), data),
                (Some(secret * 8), [!secret; 8]),
                "run once, all writes both ways"
            );
        } else {
            assert_eq!(data, [secret; 8], "told that it has not run");
        }
    }

    /// A call whose closure calls on, with interrupts disabled as closures are, possibly back to this CPU.
    fn nested_call(&mut self) {
        let (target, third) = (self.a_cpu(), self.a_cpu());
        let (limit, inner_limit) = (self.a_limit(), self.a_limit());
        let mut data = [0_u64; 2];
        let result = Calls::within(limit).call(target, || {
            data[0] += 1;
            let innermost = || data[1] += 1;
            with(inner_limit, true, |caller| caller.call(third, innermost))
        });
        let outer_ran = self.books.enter(&result, limit);
        let inner_ran = result.is_ok_and(|inner| self.books.enter(&inner, inner_limit));
        assert_eq!(data, [u64::from(outer_ran), u64::from(inner_ran)]);
    }

    fn call_many(&mut self, interrupts_off: bool) {
        let mut set = <CpuSet<1> as CpuSetStorage>::EMPTY;
        for _ in 0..=self.random(CPUS as u64) {
            set.insert(self.a_cpu());
        }
        let runs = [const { AtomicU64::new(0) }; CPUS];
        let limit = self.a_limit();
        let count_run = |cpu: Cpu| {
            runs[cpu.index()].fetch_add(1, Relaxed);
        };
        let result = with(limit, interrupts_off, |caller| caller.call_many(&set, count_run));
        assert!(limit < LONG || result.is_ok(), "a call was lost: {result:?}");
        for (cpu, runs) in (0..).map(Cpu::new).zip(&runs) {
            let (withdrawn, not_sent) = match &result {
                Ok(()) => (false, false),
                Err(ManyError::NotSent(_)) => (false, set.contains(cpu)),
                Err(ManyError::Failed(failures)) => (failures.timed_out.contains(cpu), false),
            };
            let ran = set.contains(cpu) && !withdrawn && !not_sent;
            assert_eq!(runs.load(Relaxed), u64::from(ran), "{cpu} of {set:?}: {result:?}");
            self.books.ran += u64::from(ran);
            self.books.withdrawn += u64::from(withdrawn);
            self.books.not_sent += u64::from(not_sent);
        }
    }

    /// A call that may be left behind when the target has claimed it.
    fn call_static(&mut self) {
        let (target, limit) = (self.a_cpu(), self.a_limit());
        let result = Calls::within(limit).call_static(target, || {
            STATIC_RUNS.fetch_add(1, Relaxed);
        });
        if let Err(CallError::Unfinished(_)) = result {
            assert!(limit < LONG);
            self.books.ran += 1;
            self.books.statics += 1;
        } else if self.books.enter(&result, limit) {
            self.books.statics += 1;
        }
    }

    fn post(&mut self) {
        let index = self.random(CPUS as u64) as usize;
        let number = &POSTS[index].value().written[self.me];
        let attempt = number.load(Relaxed) + 1;
        number.store(attempt, Relaxed);
        match Calls::post::<Errand>(self.a_cpu(), &POSTS[index]) {
            Ok(Posted::Queued) => self.books.posts += 1,
            Ok(Posted::Merged) => {}
            Err(error) => {
                let refused = matches!(error.reason, PostRefusal::QueuedOn(_) | PostRefusal::Contended);
                assert!(refused, "{error:?}");
                return;
            }
        }
        self.books.accepted[index] = attempt;
    }
}

/// Calls with a limit, with interrupts as they are or disabled.
fn with<R>(limit: Duration, interrupts_off: bool, call: impl FnOnce(Caller<'_, Host>) -> R) -> R {
    if interrupts_off {
        let mut guard = InterruptsOff::new();
        call(Calls::within(limit).with_interrupts_off(&mut guard))
    } else {
        call(Calls::within(limit))
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a whole number, not {text}")))
}

/// Ends the process if the test does not end: a thread that hangs keeps the others for ever.
fn with_watchdog<R>(limit: Duration, test: impl FnOnce() -> R) -> R {
    let (end, ended) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("the machine does not come to an end");
            std::process::abort();
        }
    });
    let result = test();
    drop(end);
    watchdog.join().expect("it only waits");
    result
}

/// Runs the mixture on one machine, and reconciles what the callers were told with what has run and with the counters.
fn reconcile(name: &str, config: Config) -> Run<Books> {
    // The posts are static; and two cores are few.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = number_from("SMPCALL_STRESS_SECONDS").unwrap_or(1);
    let seed = number_from("SMPCALL_STRESS_SEED").unwrap_or(1);
    for post in POSTS.iter().chain(&NMI_POSTS) {
        let errand = post.value();
        let numbers = errand.written.iter().chain(&errand.seen).chain([&errand.runs]);
        numbers.for_each(|number| number.store(0, SeqCst));
    }
    NMI_QUEUED.store(0, SeqCst);
    STATIC_RUNS.store(0, SeqCst);

    let duration = Duration::from_secs(seconds);
    let operations = AtomicU64::new(0);
    let run = with_watchdog(duration + LONG * 6, || {
        config.seed(seed).run(|cpu| {
            let random = Cell::new(seed ^ u64::from(cpu.number()) << 40);
            let mut worker = Worker { me: cpu.index(), random, books: Books::default() };
            let start = Instant::now();
            let mut rounds = 0;
            // Miri's clock is not the wall's. Elsewhere enough for the counts below to mean something on a loaded machine.
            while rounds < FEWEST_ROUNDS || !cfg!(miri) && start.elapsed() < duration {
                watch(|| worker.one_operation());
                Calls::poll();
                rounds += 1;
            }
            operations.fetch_add(rounds, Relaxed);
            worker.books
        })
    });

    let sum = |of: fn(&Books) -> u64| run.results.iter().map(of).sum::<u64>();
    assert_eq!(sum(|books| books.statics), STATIC_RUNS.load(SeqCst), "{name}: static closures");
    let runs = |posts: &[Post<Host, Errand>]| posts.iter().map(|post| post.value().runs.load(SeqCst)).sum();
    assert_eq!(sum(|books| books.posts), runs(&POSTS), "{name}: posts");
    assert_eq!(NMI_QUEUED.load(SeqCst), runs(&NMI_POSTS), "{name}: posts from NMI handlers");
    for (index, post) in POSTS.iter().enumerate() {
        for (poster, books) in run.results.iter().enumerate() {
            let newest = post.value().seen[poster].load(SeqCst);
            assert!(
                newest >= books.accepted[index],
                "{name}: post {index} has not seen what CPU {poster} wrote"
            );
        }
    }
    let (calls_run, withdrawn) = (run.total(|c| &c.calls_run), run.total(|c| &c.calls_withdrawn));
    assert_eq!(sum(|books| books.ran), calls_run + run.total(|c| &c.calls_local), "{name}: calls that ran");
    assert_eq!(sum(|books| books.withdrawn), withdrawn, "{name}: calls that were told to have timed out");
    assert_eq!(
        run.total(|c| &c.calls_sent),
        calls_run + withdrawn,
        "{name}: what was sent was run or withdrawn"
    );
    assert_eq!(run.total(|c| &c.posts_sent), run.total(|c| &c.posts_run), "{name}: posts");

    let counts = run.all_interrupts();
    assert!(counts.rings_taken <= counts.rings_sent - counts.rings_lost);
    let (ran, posts) = (sum(|books| books.ran), sum(|books| books.posts) + NMI_QUEUED.load(SeqCst));
    println!(
        "{name}: {} operations in {:.2} s; {ran} calls ran ({}/s), {withdrawn} withdrawn, {} not sent, {posts} posts; \
         {} rings repeated, {} budgets spent; {counts:?}",
        operations.load(Relaxed),
        run.lasted.as_secs_f64(),
        u128::from(ran) * 1_000_000 / run.lasted.as_micros().max(1),
        sum(|books| books.not_sent),
        run.total(|c| &c.rings_repeated),
        run.total(|c| &c.budgets_spent),
    );
    run
}

fn polled() -> Config {
    Config::new(CPUS).lose_one_ring_in(16).on_nmi(post_from_nmi)
}

/// None where there are no signals.
fn by_signals() -> Option<Config> {
    // SAFETY: the closures and posts of this test add to numbers and call on; they do not allocate, lock or print, and panic
    // only if the protocol is broken.
    Config::has_signals().then(|| unsafe { polled().by_signals() })
}

#[test]
fn every_call_and_post_is_reconciled_when_interrupts_are_polled() {
    let run = reconcile("polled", polled());
    let counts = run.all_interrupts();
    assert!(cfg!(miri) || counts.rings_lost > 0 && counts.nmis_taken > 0, "{counts:?}");
}

#[test]
fn every_call_and_post_is_reconciled_when_interrupts_are_polled_and_none_is_lost() {
    let run = reconcile("polled, lossless", polled().lose_one_ring_in(0).idle(Idle::Poll));
    assert_eq!(run.all_interrupts().rings_lost, 0);
}

#[test]
fn every_call_and_post_is_reconciled_when_signals_interrupt_the_protocol() {
    let Some(config) = by_signals() else { return };
    let counts = reconcile("signals", config).all_interrupts();
    assert!(counts.rings_lost > 0, "{counts:?}");
    // The point of it: handlers ran inside the protocol, signals hit its sections with interrupts disabled, and NMIs both.
    assert!(counts.taken_inside > 0 && counts.deferred_inside > 0 && counts.nmis_inside > 0, "{counts:?}");
    assert!(counts.taken_inside > counts.taken_in_pause, "not only in the pauses of waits: {counts:?}");
}

#[test]
fn every_call_and_post_is_reconciled_when_half_of_the_signals_are_lost() {
    if let Some(config) = by_signals() {
        let run = reconcile("signals, half of them lost", config.lose_one_ring_in(2));
        assert!(run.total(|counters| &counters.rings_repeated) > 0);
    }
}
