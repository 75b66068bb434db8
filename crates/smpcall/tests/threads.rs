//! The protocol under real concurrency: threads as CPUs, some of their interrupts lost, every call and post reconciled.
//!
//! Interrupts are polled: a pending one is taken when interrupts are enabled again and at every pause of a wait, which
//! is enough to reach the handler from everywhere that it matters. The simulator and the explorer run on one thread; this
//! is where the orderings meet a processor that reorders.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant as StdInstant};

use smpcall::machine::{CpuSetStorage, Hardware, Ipi, SendError};
use smpcall::{
    CallError, Cpu, CpuSet, CrossCall, Deferred, Instant, InterruptsOff, Kernel, Machine, Mailboxes,
    ManyError, Post, mailboxes,
};

const CPUS: u32 = 4;
const ROUNDS: u64 = 200_000;

struct Threads;

type Calls = CrossCall<Threads>;

thread_local! {
    static CPU: Cell<u32> = const { Cell::new(0) };
    static INTERRUPTS_ENABLED: Cell<bool> = const { Cell::new(true) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

static PENDING: [AtomicBool; CPUS as usize] = [const { AtomicBool::new(false) }; CPUS as usize];
static LOST: AtomicU64 = AtomicU64::new(0);

/// A number below `limit` (splitmix64).
fn random(limit: u64) -> u64 {
    let state = RANDOM.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.set(state);
    let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % limit.max(1)
}

/// Takes the pending interrupt, if interrupts are enabled.
fn deliver() {
    let me = CPU.get() as usize;
    if INTERRUPTS_ENABLED.get() && PENDING[me].load(Relaxed) && PENDING[me].swap(false, SeqCst) {
        INTERRUPTS_ENABLED.set(false);
        Calls::handle_ring();
        INTERRUPTS_ENABLED.set(true);
    }
}

// SAFETY: 1. Each thread has a number of its own for life. 2. Handlers run in `deliver` only, and only while the flag is
// set; no other task runs on a thread. 3. `StdInstant` is monotonic. 4. There are no NMIs. 5. Real atomics.
unsafe impl Machine for Threads {
    type Memory = Hardware;
    type CpuSet = CpuSet<1>;
    const HAS_NMI: bool = false;

    fn current_cpu() -> Cpu {
        Cpu::new(CPU.get())
    }

    fn disable_interrupts() -> bool {
        INTERRUPTS_ENABLED.replace(false)
    }

    fn restore_interrupts(were_enabled: bool) {
        if were_enabled {
            INTERRUPTS_ENABLED.set(true);
            deliver();
        }
    }

    fn interrupts_enabled() -> bool {
        INTERRUPTS_ENABLED.get()
    }

    fn in_nmi() -> bool {
        false
    }

    fn send(target: Cpu, _: Ipi) -> Result<(), SendError> {
        if random(16) == 0 {
            LOST.fetch_add(1, Relaxed);
        } else {
            PENDING[target.index()].store(true, SeqCst);
        }
        Ok(())
    }

    fn now() -> Instant {
        static START: std::sync::OnceLock<StdInstant> = std::sync::OnceLock::new();
        Instant::from_nanos(START.get_or_init(StdInstant::now).elapsed().as_nanos() as u64 + 1)
    }

    fn pause() {
        deliver();
        // There may be fewer processors than threads.
        thread::yield_now();
    }
}

// SAFETY: one static; `handle_ring` is called from `deliver` while interrupts are enabled, `tick` from nowhere.
unsafe impl Kernel for Threads {
    const FIRST_BACKOFF: Duration = Duration::from_micros(50);

    fn mailboxes() -> &'static Mailboxes<Self> {
        &MAILBOXES
    }
}

mailboxes! { static MAILBOXES: Threads = 4 CPUs, 64 events }

struct Errand;

static POSTS_RUN: AtomicU64 = AtomicU64::new(0);

impl Deferred<Threads> for Errand {
    type Handle = &'static Post<Threads, Self>;

    fn run(_: Self::Handle) {
        POSTS_RUN.fetch_add(1, Relaxed);
    }
}

static POSTS: [Post<Threads, Errand>; CPUS as usize] = [const { Post::new(Errand) }; CPUS as usize];

/// What one CPU has done: calls that ran, calls that its callers were told have not, posts that were queued.
#[derive(Default)]
struct Books {
    ran: u64,
    told: u64,
    posts: u64,
}

/// Nothing takes so long: who waits to the end of it waits for something that was lost.
const LONG: Duration = Duration::from_secs(10);

/// Often so short that the deadline meets the claim, else long enough for everything.
fn a_limit() -> Duration {
    if random(2) == 0 { Duration::from_nanos(random(5_000)) } else { LONG }
}

/// A call whose closure reads and writes plain data of the caller's stack: a lost ordering shows in it.
fn call(target: Cpu, interrupts_off: bool, books: &mut Books) {
    let secret = random(u64::from(u32::MAX));
    let mut data = [secret; 8];
    let closure = || {
        let sum: u64 = data.iter().sum();
        data.fill(!secret);
        sum
    };
    let limit = a_limit();
    let result = if interrupts_off {
        let mut guard = InterruptsOff::new();
        Calls::within(limit).with_interrupts_off(&mut guard).call(target, closure)
    } else {
        Calls::within(limit).call(target, closure)
    };
    match result {
        Ok(sum) => {
            assert_eq!((sum, data), (secret * 8, [!secret; 8]), "run once, with all writes both ways");
            books.ran += 1;
        }
        Err(CallError::TimedOut(_) | CallError::DeadlinePassed) => {
            assert!(limit < LONG, "a call was lost");
            assert_eq!(data, [secret; 8], "told that it has not run");
            books.told += 1;
        }
        Err(error) => panic!("{error}"),
    }
}

fn call_many(books: &mut Books) {
    let mut set = <CpuSet<1> as CpuSetStorage>::EMPTY;
    for _ in 0..=random(3) {
        set.insert(Cpu::new(random(u64::from(CPUS)) as u32));
    }
    let runs = [const { AtomicU64::new(0) }; CPUS as usize];
    let limit = a_limit();
    let result = Calls::within(limit).call_many(&set, |cpu| {
        runs[cpu.index()].fetch_add(1, Relaxed);
    });
    assert!(limit < LONG || result.is_ok(), "a call was lost: {result:?}");
    for (cpu, runs) in (0..CPUS).map(Cpu::new).zip(&runs) {
        let expected = match &result {
            Ok(()) => set.contains(cpu),
            Err(ManyError::NotSent(_)) => false,
            Err(ManyError::Failed(failures)) => set.contains(cpu) && !failures.timed_out.contains(cpu),
        };
        assert_eq!(runs.load(Relaxed), u64::from(expected), "{cpu} of {set:?}: {result:?}");
        books.ran += u64::from(expected);
        books.told += u64::from(set.contains(cpu) && !expected);
    }
}

fn run(me: u32, still_busy: &AtomicU64) -> Books {
    CPU.set(me);
    RANDOM.set(u64::from(me) << 40);
    let mut books = Books::default();
    Calls::open();
    // All mailboxes are open before anybody calls.
    still_busy.fetch_add(1, SeqCst);
    while still_busy.load(SeqCst) < u64::from(CPUS) {
        Threads::pause();
    }
    for _ in 0..ROUNDS {
        let target = Cpu::new(random(u64::from(CPUS)) as u32);
        match random(8) {
            0..4 => call(target, false, &mut books),
            4 | 5 => call(target, true, &mut books),
            6 => call_many(&mut books),
            _ => {
                let post = &POSTS[random(u64::from(CPUS)) as usize];
                let posted = Calls::post::<Errand>(target, post);
                books.posts += u64::from(matches!(posted, Ok(smpcall::Posted::Queued)));
            }
        }
        Calls::poll();
    }
    // The others may still call.
    still_busy.fetch_add(1, SeqCst);
    while still_busy.load(SeqCst) < 2 * u64::from(CPUS) {
        Calls::poll();
        Threads::pause();
    }
    Calls::poll();
    books
}

#[test]
fn every_call_and_post_is_reconciled_between_real_threads() {
    let still_busy = AtomicU64::new(0);
    // A thread that fails, or that the protocol hangs, would keep the others for ever.
    thread::spawn(|| {
        thread::sleep(LONG * 6);
        eprintln!("the threads do not come to an end");
        std::process::abort();
    });
    let books: Vec<Books> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CPUS)
            .map(|me| {
                scope.spawn({
                    let busy = &still_busy;
                    move || run(me, busy)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no assertion of it failed")).collect()
    });
    let sum = |of: fn(&Books) -> u64| books.iter().map(of).sum::<u64>();
    assert_eq!(POSTS_RUN.load(Relaxed), sum(|books| books.posts));
    let (ran, told) = (sum(|books| books.ran), sum(|books| books.told));
    let counted = |counter: fn(&smpcall::Counters) -> u64| {
        MAILBOXES
            .cpus()
            .filter_map(|cpu| MAILBOXES.get(cpu))
            .map(|mailbox| counter(mailbox.counters()))
            .sum::<u64>()
    };
    let (sent, withdrawn) = (counted(|c| c.calls_sent.get()), counted(|c| c.calls_withdrawn.get()));
    assert_eq!(sent, counted(|c| c.calls_run.get()) + withdrawn, "what was sent was run or withdrawn");
    assert!(ran > ROUNDS && LOST.load(Relaxed) > 0, "{ran} ran, {told} told");
}
