//! The scenarios: each a few CPUs that call, post, give up or go offline, and what must then be true.
//!
//! CPU 0 is the target, run by loom's first thread; CPUs 1 and 2 call it. Plain data goes there and back with each call,
//! so that a missing ordering shows as a race.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use smpcall::{CallError, Cpu, CrossCall, Deferred, InterruptsOff, Kernel, Machine, Post, Posted};
use smpcall_machine::{Plain, Word};

use crate::exploration::{Bound, Scenario, note};
use crate::machine::{Threads, become_cpu, deliver, idle, let_time_pass, lose_rings, name_of, start};
use crate::memory::LoomMemory;

const TARGET: Cpu = Cpu::new(0);
/// Shorter than a kernel's first back-off: the deadline is the first thing that expires.
const SHORT: Duration = Duration::from_micros(100);

/// Written by a caller before its call, by the closure, and read by the caller afterwards.
static DATA: [Plain<LoomMemory, u64>; 4] = [const { Plain::new(0) }; 4];
/// How often the closure of a caller has run, as told between CPUs by nothing but the protocol.
static RUNS: [Plain<LoomMemory, u64>; 4] = [const { Plain::new(0) }; 4];
/// How many CPUs other than the target are not at their end. Relaxed: it orders nothing.
static OTHERS: Word<LoomMemory> = Word::new(0);
/// How many posts were accepted.
static ACCEPTED: Word<LoomMemory> = Word::new(0);
/// What posters have to say. Relaxed: the post is what orders it.
static NEWS: [Word<LoomMemory>; 4] = [const { Word::new(0) }; 4];

std::thread_local! {
    /// What the posts that ran have read of the news. The target's.
    static READ: Cell<[u64; 4]> = const { Cell::new([0; 4]) };
}

fn reset<const CPUS: usize>()
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    // SAFETY: the last execution is over.
    unsafe { Threads::<CPUS>::mailboxes().reset() };
    READ.set([0; 4]);
}

fn name<const CPUS: usize>(location: *const ()) -> String
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    let of_mailboxes = Threads::<CPUS>::mailboxes().name_of(location).map(|name| name.to_string());
    of_mailboxes.or_else(|| name_of(location)).unwrap_or_else(|| {
        let news = NEWS.iter().position(|word| word.location() == location);
        let node = core::ptr::from_ref(&POST).addr()..core::ptr::from_ref(&POST).addr() + size_of_val(&POST);
        match news {
            Some(cpu) => format!("news[{cpu}]"),
            None if node.contains(&location.addr()) => "node".to_owned(),
            None if location == OTHERS.location() => "others".to_owned(),
            None => "accepted".to_owned(),
        }
    })
}

/// Opens the mailboxes of the CPUs that will run, ends as CPU 0.
fn boot<const CPUS: usize>(others: u64)
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    for cpu in (0..=others).rev() {
        become_cpu(cpu as u32, false);
        CrossCall::<Threads<CPUS>>::open();
        // SAFETY: no other thread exists.
        unsafe {
            DATA[cpu as usize].write(0);
            RUNS[cpu as usize].write(0);
        }
    }
    become_cpu(0, true);
    OTHERS.store(others, Relaxed);
}

fn me<const CPUS: usize>() -> usize
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    Threads::<CPUS>::current_cpu().index()
}

/// What a closure does for its caller: sees what the caller wrote, and answers.
fn answer(caller: usize) -> u64 {
    // SAFETY: the caller waits: nobody else uses its data.
    unsafe {
        assert_eq!(DATA[caller].read(), 1, "what the caller wrote is visible to the closure");
        DATA[caller].write(2);
        RUNS[caller].write(RUNS[caller].read() + 1);
    }
    caller as u64
}

fn ask(caller: usize) {
    // SAFETY: no call of this CPU is under way.
    unsafe { DATA[caller].write(1) };
}

fn check_answered(caller: usize, answer: Result<u64, CallError>, runs: u64) {
    assert!(matches!(answer, Ok(value) if value == caller as u64), "not answered: {answer:?}");
    // SAFETY: the call is over.
    let (data, found) = unsafe { (DATA[caller].read(), RUNS[caller].read()) };
    assert_eq!((data, found), (2, runs), "run once, and visible to the caller");
    note("run");
}

fn check_not_run(caller: usize) {
    // SAFETY: the call is over.
    let (data, runs) = unsafe { (DATA[caller].read(), RUNS[caller].read()) };
    assert_eq!((data, runs), (1, 0), "not run");
    note("told");
}

fn call_target<const CPUS: usize>()
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    let caller = me::<CPUS>();
    ask(caller);
    check_answered(caller, CrossCall::<Threads<CPUS>>::for_ever().call(TARGET, || answer(caller)), 1);
}

/// Takes interrupts until this CPU has run so many calls.
fn serve<const CPUS: usize>(calls: u64)
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    let run = || {
        let mailbox = Threads::<CPUS>::mailboxes().get(Threads::<CPUS>::current_cpu());
        mailbox.map_or(0, |mailbox| mailbox.counters().calls_run.get())
    };
    while run() < calls {
        idle::<CPUS>(&OTHERS);
    }
}

/// Takes interrupts until the others are at their end.
fn serve_until_others_end() {
    while idle::<3>(&OTHERS) {}
}

fn at_end() {
    OTHERS.fetch_sub(1, Relaxed);
}

type Calls = CrossCall<Threads<3>>;

fn one_call() {
    boot::<3>(1);
    let caller = start(1, false, call_target::<3>);
    serve::<3>(1);
    caller.join().expect("a panic ends the execution before");
}

fn slot_reuse() {
    boot::<3>(1);
    let caller = start(1, false, || {
        for runs in 1..=2 {
            ask(1);
            check_answered(1, Calls::for_ever().call(TARGET, || answer(1)), runs);
        }
    });
    serve::<3>(2);
    caller.join().expect("a panic ends the execution before");
}

fn two_callers<const CPUS: usize>()
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    boot::<CPUS>(2);
    let callers = [1, 2].map(|cpu| start(cpu, false, call_target::<CPUS>));
    serve::<CPUS>(2);
    for caller in callers {
        caller.join().expect("a panic ends the execution before");
    }
}

fn mutual_calls() {
    fn call_with_interrupts_off(caller: usize) {
        ask(caller);
        let other = Cpu::new(1 - caller as u32);
        let mut guard = InterruptsOff::<Threads<3>>::new();
        let calls = Calls::for_ever().with_interrupts_off(&mut guard);
        check_answered(caller, calls.call(other, || answer(caller)), 1);
    }
    boot::<3>(1);
    let other = start(1, true, || {
        call_with_interrupts_off(1);
        serve::<3>(1);
    });
    call_with_interrupts_off(0);
    serve::<3>(1);
    other.join().expect("a panic ends the execution before");
}

fn call_against_deadline() {
    boot::<3>(1);
    let time = let_time_pass(1);
    let caller = start(1, false, || {
        ask(1);
        match Calls::within(SHORT).call(TARGET, || answer(1)) {
            Err(CallError::TimedOut(_)) => check_not_run(1),
            result => check_answered(1, result, 1),
        }
        at_end();
    });
    serve_until_others_end();
    for thread in [time, caller] {
        thread.join().expect("a panic ends the execution before");
    }
}

fn lost_ring<const CPUS: usize>()
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    boot::<CPUS>(1);
    lose_rings(1);
    let time = let_time_pass(1);
    let caller = start(1, false, call_target::<CPUS>);
    serve::<CPUS>(1);
    for thread in [time, caller] {
        thread.join().expect("a panic ends the execution before");
    }
}

struct Errand;

impl Deferred<Threads<3>> for Errand {
    type Handle = &'static Post<Threads<3>, Self>;

    fn run(_: Self::Handle) {
        let mut read = READ.get();
        for (read, news) in read.iter_mut().zip(&NEWS) {
            *read = (*read).max(news.load(Relaxed));
        }
        READ.set(read);
    }
}

static POST: Post<Threads<3>, Errand> = Post::new(Errand);

fn tell_and_post<const CPU: usize>() {
    NEWS[CPU].store(1, Relaxed);
    let posted = Calls::post::<Errand>(TARGET, &POST);
    match posted {
        Ok(Posted::Queued) => note("queued"),
        Ok(Posted::Merged) => note("merged"),
        Err(error) => panic!("{error}"),
    }
    at_end();
}

fn posts_merge() {
    boot::<3>(2);
    let posters = [start(1, false, tell_and_post::<1>), start(2, false, tell_and_post::<2>)];
    serve_until_others_end();
    for poster in posters {
        poster.join().expect("a panic ends the execution before");
    }
    // The last ring is on its way at the latest.
    deliver::<3>();
    assert_eq!(
        READ.get()[1..3],
        [1, 1],
        "what a poster wrote is visible to the run that its post was merged into"
    );
}

fn post_before_call() {
    boot::<3>(1);
    let caller = start(1, false, || {
        NEWS[1].store(1, Relaxed);
        Calls::post::<Errand>(TARGET, &POST).expect("the target is online");
        let read = Calls::for_ever().call(TARGET, || READ.get()[1]);
        assert!(matches!(read, Ok(1)), "a post runs before a later call of its source: {read:?}");
        note("run");
    });
    serve::<3>(1);
    caller.join().expect("a panic ends the execution before");
}

fn call_against_close() {
    boot::<3>(1);
    let caller = start(1, false, || {
        ask(1);
        match Calls::for_ever().call(TARGET, || answer(1)) {
            Err(CallError::Offline) => check_not_run(1),
            result => check_answered(1, result, 1),
        }
        at_end();
    });
    let mut guard = InterruptsOff::<Threads<3>>::new();
    Calls::close(&mut guard);
    drop(guard);
    serve_until_others_end();
    caller.join().expect("a panic ends the execution before");
}

fn post_against_close() {
    boot::<3>(1);
    let poster = start(1, false, || {
        NEWS[1].store(1, Relaxed);
        match Calls::post::<Errand>(TARGET, &POST) {
            Ok(_) => {
                note("queued");
                ACCEPTED.store(1, Relaxed);
            }
            Err(error) => {
                note("refused");
                assert_eq!(error.reason, smpcall::PostRefusal::Offline);
            }
        }
    });
    let mut guard = InterruptsOff::<Threads<3>>::new();
    Calls::close(&mut guard);
    drop(guard);
    poster.join().expect("a panic ends the execution before");
    assert_eq!(READ.get()[1], ACCEPTED.load(Relaxed), "run if it was accepted, and only then");
}

const fn of<const CPUS: usize>(name: &'static str, about: &'static str, bound: Bound, run: fn()) -> Scenario
where
    Threads<CPUS>: Kernel<Memory = LoomMemory>,
{
    Scenario { name, about, bound, reset: reset::<CPUS>, names: self::name::<CPUS>, run }
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    of::<3>("call", "one call", Bound::None, one_call),
    of::<3>("slot-reuse", "two calls of one CPU, one after the other", Bound::None, slot_reuse),
    of::<3>("two-callers", "two CPUs call a third", Bound::None, two_callers::<3>),
    of::<3>("mutual", "two CPUs call each other, interrupts off", Bound::None, mutual_calls),
    of::<3>("deadline", "a call against its deadline", Bound::None, call_against_deadline),
    of::<3>("lost-ring", "a ring that is lost, and repeated", Bound::None, lost_ring::<3>),
    of::<3>("post-merge", "two CPUs post the same post", Bound::Preemptions(4), posts_merge),
    of::<3>("post-call", "a post and a later call", Bound::None, post_before_call),
    of::<3>("call-close", "a call against the close of its target", Bound::None, call_against_close),
    of::<3>("post-close", "a post against the close of its target", Bound::None, post_against_close),
    of::<49>("leaves-lost", "a ring that is lost, on a machine with leaves", Bound::None, lost_ring::<49>),
    of::<49>("leaves", "two CPUs of one group call a third", Bound::Preemptions(4), two_callers::<49>),
];

/// The scenario of this name.
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
