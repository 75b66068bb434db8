//! The laws of the shipping protocol, as named explorations.

use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::Ordering;
use core::time::Duration;

use smpcall::{CallError, Caller, Cpu, Deferred, ManyError, Post, PostRefusal, Posted};
use smpcall_machine::{Deadline, InterruptsOff, Machine as _, Word, wait};

use super::Protocol;
use crate::kernel::Calls;
use crate::stepped::Program;
use crate::{SimCpuSet, SimMachine, SimMemory, program};

/// All of them.
pub const ALL: &[Protocol] = &[
    protocol("call", "one call, interrupts on: run once, whatever ring is lost (L1, L2, L3)", 2, || {
        vec![calls(0, 1, FOR_EVER), idle()]
    }),
    protocol("call-polling", "one call with interrupts off (L1, L2, L6)", 2, || {
        vec![calls_off(0, 1, FOR_EVER), idle()]
    }),
    protocol("deadline", "one call whose deadline races with its claim (L1, L3, L4)", 2, || {
        vec![calls(0, 1, SHORT), idle()]
    }),
    protocol("deadline-static", "a deadline on a claimed call that borrows nothing (L4)", 2, || {
        vec![
            Box::new(|| {
                call_static(0, 1, SHORT);
                call(1, 1, FOR_EVER, false);
            }),
            idle(),
        ]
    }),
    protocol("reuse", "a given-up call, then another one from its slot to another CPU (L1, L4)", 3, || {
        vec![
            Box::new(|| {
                call(0, 1, SHORT, false);
                call(1, 2, FOR_EVER, false);
            }),
            idle(),
            idle(),
        ]
    }),
    protocol("mutual", "two CPUs call each other, interrupts on (L1, L2, L6)", 2, || {
        vec![calls(0, 1, FOR_EVER), calls(1, 0, FOR_EVER)]
    }),
    protocol("mutual-polling", "two CPUs call each other, interrupts off (L1, L2, L6)", 2, || {
        vec![calls_off(0, 1, FOR_EVER), calls_off(1, 0, FOR_EVER)]
    }),
    protocol("mutual-mixed", "two CPUs call each other, one with interrupts off (L1, L2, L6)", 2, || {
        vec![calls_off(0, 1, FOR_EVER), calls(1, 0, FOR_EVER)]
    }),
    protocol("mutual-deadline", "two CPUs call each other with deadlines (L1, L3, L4)", 2, || {
        vec![calls(0, 1, SHORT), calls_off(1, 0, SHORT)]
    }),
    protocol("two-callers", "two callers, one target: only the first rings (L1, L2)", 3, || {
        vec![calls(0, 2, FOR_EVER), calls(1, 2, FOR_EVER), idle()]
    }),
    protocol("cycle", "three CPUs call each other in a ring, interrupts off (L1, L6)", 3, || {
        vec![calls_off(0, 1, FOR_EVER), calls_off(1, 2, FOR_EVER), calls_off(2, 0, FOR_EVER)]
    }),
    protocol("nested", "a closure calls back (L1, L2, L6)", 2, || {
        vec![
            Box::new(|| {
                let nested = || call(1, 0, FOR_EVER, true);
                settle(
                    0,
                    Calls::for_ever().call(Cpu::new(1), || {
                        run(0);
                        nested();
                    }),
                );
            }),
            idle(),
        ]
    }),
    protocol("many", "a call to two (L1, L2)", 3, || vec![many(0, &[1, 2], FOR_EVER), idle(), idle()]),
    protocol("many-deadline", "a call to two whose deadline races with their claims (L1, L3, L4)", 3, || {
        vec![many(0, &[1, 2], SHORT), idle(), idle()]
    }),
    protocol("many-crossing", "a call to two crosses a call between them (L1, L2, L6)", 3, || {
        vec![many(0, &[1, 2], FOR_EVER), calls(2, 2, FOR_EVER), idle()]
    }),
    protocol("post", "two CPUs post the same node; a lost ring is found by the tick (L1, L2)", 3, || {
        vec![posts(0, 2), posts(1, 2), Box::new(ticks_afterwards)]
    }),
    protocol(
        "close",
        "a call to a CPU that goes offline: run or refused, and nothing is left (L1, L5)",
        2,
        || vec![calls(0, 1, FOR_EVER), closes()],
    ),
    protocol("close-posts", "two CPUs post the same node to one that goes offline (L1, L5)", 3, || {
        vec![posts(0, 2), posts(1, 2), closes()]
    }),
    protocol("close-post", "a post to a CPU that goes offline: run or refused (L1, L5)", 2, || {
        vec![posts(0, 1), closes()]
    }),
    protocol("close-deadline", "a deadline, a claim and a closing mailbox race (L1, L3, L4, L5)", 2, || {
        vec![calls(0, 1, SHORT), closes()]
    }),
    protocol(
        "close-stale",
        "the mark of a given-up call, a second call, and a closing mailbox (L1, L5)",
        2,
        || {
            vec![
                Box::new(|| {
                    call(0, 1, SHORT, false);
                    call(1, 1, FOR_EVER, false);
                }),
                closes(),
            ]
        },
    ),
    protocol("close-polling", "a call with interrupts off to a CPU that goes offline (L1, L5)", 2, || {
        vec![calls_off(0, 1, FOR_EVER), closes()]
    }),
    protocol("close-many", "a call to two, one of which goes offline (L1, L5)", 3, || {
        vec![many(0, &[1, 2], FOR_EVER), closes(), idle()]
    }),
    protocol("close-open", "a call to a CPU that goes offline and comes back (L1, L2, L5)", 2, || {
        vec![calls_and_says(0, 1), closes_and_opens()]
    }),
    protocol("close-open-post", "a post to a CPU that goes offline and comes back (L1, L5)", 2, || {
        vec![posts(0, 1), closes_and_opens()]
    }),
    protocol(
        "static-reuse",
        "a given-up call that borrows nothing, then another from its slot (L1, L4)",
        3,
        || {
            vec![
                Box::new(|| {
                    call_static(0, 1, SHORT);
                    call(1, 2, FOR_EVER, false);
                }),
                idle(),
                idle(),
            ]
        },
    ),
    protocol(
        "poll-until",
        "a call to a CPU that begins to poll and stops: nobody need ring twice (L1, L2, L6)",
        2,
        || vec![calls_and_says(0, 1), polls_until_said(0)],
    ),
    protocol("post-handler", "a closure posts to its caller (L1, L2)", 2, || {
        vec![
            Box::new(|| {
                settle(
                    0,
                    Calls::for_ever().call(Cpu::new(1), || {
                        run(0);
                        post(1, 0);
                    }),
                );
                program::forget_but(0);
                Calls::tick();
            }),
            idle(),
        ]
    }),
    protocol("many-mutual", "two calls to many cross, interrupts off (L1, L2, L6)", 2, || {
        vec![many_off(0, &[1]), many_off(1, &[0])]
    }),
    protocol("callers-deadline", "two callers with deadlines, one target (L1, L3, L4)", 3, || {
        vec![calls(0, 2, SHORT), calls(1, 2, SHORT), idle()]
    }),
];

/// The protocol with this name.
pub fn by_name(name: &str) -> Option<&'static Protocol> {
    ALL.iter().find(|protocol| protocol.name == name)
}

const fn protocol(
    name: &'static str,
    about: &'static str,
    cpus: usize,
    programs: fn() -> Vec<Program<'static>>,
) -> Protocol {
    Protocol { name, about, cpus, programs, prompt: true, reset, fingerprint, check }
}

/// No deadline.
const FOR_EVER: Option<Duration> = None;
/// Before the first look at the ring.
const SHORT: Option<Duration> = Some(Duration::from_micros(100));

/// What the caller of a call, or its poster, was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Run,
    NotRun,
    LeftClaimed,
}

/// How many calls the books have room for.
const ENTRIES: usize = 4;

/// How often each call ran and what its caller was told, entered by either side; and the same of posts.
#[derive(Default)]
struct Books {
    runs: [Cell<u32>; ENTRIES],
    told: [Cell<Told>; ENTRIES],
    posts_queued: Cell<u32>,
    posts_run: Cell<u32>,
    /// The posters, one bit each, whose posts were accepted, and whose work a run has found.
    work_accepted: Cell<u64>,
    work_found: Cell<u64>,
    wrong: Cell<Option<&'static str>>,
}

thread_local! {
    static BOOKS: Books = Books::default();
}

fn reset() {
    BOOKS.with(|books| {
        books.runs.iter().for_each(|run| run.set(0));
        books.told.iter().for_each(|told| told.set(Told::Nothing));
        books.posts_queued.set(0);
        books.posts_run.set(0);
        books.work_accepted.set(0);
        books.work_found.set(0);
        books.wrong.set(None);
    });
    shared().reset();
}

fn fingerprint() -> u64 {
    BOOKS.with(|books| {
        let runs = books.runs.iter().fold(0, |sum, runs| sum << 4 | u64::from(runs.get()));
        let told = books.told.iter().fold(0, |sum, told| sum << 4 | told.get() as u64);
        let posts = u64::from(books.posts_queued.get()) << 4 | u64::from(books.posts_run.get());
        let posts = posts << 8 | books.work_accepted.get() << 4 | books.work_found.get();
        runs << 48 | told << 32 | posts << 1 | u64::from(books.wrong.get().is_some())
    })
}

fn check() -> Result<(), String> {
    BOOKS.with(|books| {
        if let Some(wrong) = books.wrong.get() {
            return Err(wrong.to_owned());
        }
        for (entry, (runs, told)) in books.runs.iter().zip(&books.told).enumerate() {
            let (runs, told) = (runs.get(), told.get());
            let fits = match told {
                // Nobody was told: it was not made, or made by a closure that did not run.
                Told::Nothing | Told::NotRun => runs == 0,
                Told::Run | Told::LeftClaimed => runs == 1,
            };
            if !fits {
                return Err(format!("call {entry} ran {runs} times, and its caller was told {told:?} (L1)"));
            }
        }
        let (queued, run) = (books.posts_queued.get(), books.posts_run.get());
        if queued != run {
            return Err(format!("{queued} posts were queued, {run} were run (L1)"));
        }
        let lost = books.work_accepted.get() & !books.work_found.get();
        if lost == 0 {
            Ok(())
        } else {
            Err(format!("posts were accepted, and no run came after them: {lost:#b} (L1)"))
        }
    })
}

fn wrong(what: &'static str) {
    BOOKS.with(|books| books.wrong.set(Some(what)));
}

/// The closure of a call runs. It touches shared memory before it takes effect: what happens between two operations of
/// a CPU is one step, and an effect in the step of the claim would hide that completion and effect are in the wrong order.
fn run(entry: usize) {
    shared().effects.fetch_add(1, Ordering::Relaxed);
    BOOKS.with(|books| books.runs[entry].set(books.runs[entry].get() + 1));
    if SimMachine::interrupts_enabled() {
        wrong("a closure ran with interrupts enabled");
    }
}

fn tell(entry: usize, told: Told) {
    BOOKS.with(|books| books.told[entry].set(told));
}

#[allow(clippy::needless_pass_by_value, reason = "takes what a call returns")]
fn settle<R>(entry: usize, result: Result<R, CallError>) {
    let told = match result {
        Ok(_) => Told::Run,
        Err(CallError::Unfinished(_)) => Told::LeftClaimed,
        Err(_) => Told::NotRun,
    };
    tell(entry, told);
}

/// Nothing to do: only interrupts.
fn idle() -> Program<'static> {
    Box::new(|| {})
}

fn calls(entry: usize, target: u32, limit: Option<Duration>) -> Program<'static> {
    Box::new(move || {
        call(entry, target, limit, false);
        program::forget_but(0);
    })
}

fn calls_off(entry: usize, target: u32, limit: Option<Duration>) -> Program<'static> {
    Box::new(move || {
        call(entry, target, limit, true);
        program::forget_but(0);
    })
}

fn call(entry: usize, target: u32, limit: Option<Duration>, interrupts_off: bool) {
    let caller = limit.map_or_else(Calls::for_ever, Calls::within);
    let target = Cpu::new(target);
    let mut written = 0;
    let closure = || {
        run(entry);
        if SimMachine::current_cpu() != target {
            wrong("a closure ran on the wrong CPU (L1)");
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
    if written != expected || result.is_ok_and(|returned| returned != entry) {
        wrong("the closure's writes or its result did not reach the caller (L1)");
    }
    settle(entry, result);
}

fn call_static(entry: usize, target: u32, limit: Option<Duration>) {
    let caller = limit.map_or_else(Calls::for_ever, Calls::within);
    settle(entry, caller.call_static(Cpu::new(target), move || run(entry)));
}

/// A call to many: entry + n for the n-th target.
fn many(entry: usize, targets: &'static [u32], limit: Option<Duration>) -> Program<'static> {
    Box::new(move || {
        let caller = limit.map_or_else(Calls::for_ever, Calls::within);
        call_many(entry, targets, caller);
    })
}

/// The same for ever with interrupts off.
fn many_off(entry: usize, targets: &'static [u32]) -> Program<'static> {
    Box::new(move || {
        let mut guard = InterruptsOff::new();
        call_many(entry, targets, Calls::for_ever().with_interrupts_off(&mut guard));
    })
}

fn call_many(entry: usize, targets: &'static [u32], caller: Caller<'_, SimMachine>) {
    let set: SimCpuSet = targets.iter().copied().map(Cpu::new).collect();
    let position = |cpu: Cpu| targets.iter().position(|&target| target == cpu.number());
    let result = caller.call_many(&set, |cpu| match position(cpu) {
        Some(position) if cpu == SimMachine::current_cpu() => run(entry + position),
        _ => wrong("a closure ran on the wrong CPU (L1)"),
    });
    for (position, &target) in targets.iter().enumerate() {
        let ran = match &result {
            Ok(()) => true,
            Err(ManyError::NotSent(_)) => false,
            Err(ManyError::Failed(failures)) => {
                let target = Cpu::new(target);
                !failures.timed_out.contains(target) && !failures.offline.contains(target)
            }
        };
        tell(entry + position, if ran { Told::Run } else { Told::NotRun });
    }
    program::forget_but(0);
}

/// The post of protocols `post` and `close-post`.
struct Errand;

impl Deferred<SimMachine> for Errand {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(_: Self::Handle) {
        let work = shared().work.swap(0, Ordering::Acquire);
        BOOKS.with(|books| {
            books.posts_run.set(books.posts_run.get() + 1);
            books.work_found.set(books.work_found.get() | work);
        });
    }
}

/// Leaves some work for the node of this thread, and posts it.
fn post(poster: usize, target: u32) {
    let work = 1 << poster;
    shared().work.fetch_or(work, Ordering::Release);
    let result = Calls::post::<Errand>(Cpu::new(target), shared().node());
    BOOKS.with(|books| {
        if result.is_ok() {
            books.work_accepted.set(books.work_accepted.get() | work);
        }
        match result {
            Ok(Posted::Queued) => books.posts_queued.set(books.posts_queued.get() + 1),
            Ok(Posted::Merged) => {}
            Err(error) => {
                if !matches!(error.reason, PostRefusal::Offline | PostRefusal::Contended) {
                    wrong("a post was refused for no reason");
                }
            }
        }
    });
}

/// Posts, and says so.
fn posts(poster: usize, target: u32) -> Program<'static> {
    Box::new(move || {
        post(poster, target);
        shared().said[poster].store(1, Ordering::Release);
        program::forget_but(0);
    })
}

/// Calls, and says so.
fn calls_and_says(entry: usize, target: u32) -> Program<'static> {
    Box::new(move || {
        call(entry, target, FOR_EVER, false);
        shared().said[entry].store(1, Ordering::Release);
    })
}

/// Polls with interrupts off until that is said, but not for ever: then interrupts are on again.
fn polls_until_said(entry: usize) -> Program<'static> {
    Box::new(move || {
        let mut guard = InterruptsOff::new();
        let deadline = Deadline::within::<SimMachine>(Duration::from_micros(100));
        Calls::poll_until(&mut guard, shared().said[entry].equals(!0, 1), deadline);
        drop(guard);
        program::forget_but(0);
    })
}

/// What the posting protocols share beside the mailboxes.
struct Shared {
    node: UnsafeCell<Post<SimMachine, Errand>>,
    said: [Word<SimMemory>; 2],
    /// What posters leave for the run: one bit each.
    work: Word<SimMemory>,
    /// How often closures have run.
    effects: Word<SimMemory>,
}

impl Shared {
    fn node(&'static self) -> &'static Post<SimMachine, Errand> {
        // SAFETY: only `reset` writes it, when no machine of this thread runs or will go on.
        unsafe { &*self.node.get() }
    }

    fn reset(&self) {
        // SAFETY: called before an execution begins: nobody refers to the node, and mailboxes are emptied too.
        unsafe { *self.node.get() = Post::new(Errand) };
        for word in self.said.iter().chain([&self.work, &self.effects]) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

fn shared() -> &'static Shared {
    thread_local! {
        static SHARED: &'static Shared = Box::leak(Box::new(Shared {
            node: UnsafeCell::new(Post::new(Errand)),
            said: [Word::new(0), Word::new(0)],
            work: Word::new(0),
            effects: Word::new(0),
        }));
    }
    SHARED.with(|&shared| shared)
}

/// When both posters have spoken, a tick: it finds what a lost ring has left.
fn ticks_afterwards() {
    for said in &shared().said {
        wait::<SimMachine>(&[said.equals(!0, 1)], Deadline::NEVER);
    }
    Calls::tick();
}

fn closes() -> Program<'static> {
    Box::new(|| {
        let mut guard = InterruptsOff::new();
        Calls::close(&mut guard);
    })
}

/// As [`closes`], and online again, with a tick: it finds posts whose ring was lost.
fn closes_and_opens() -> Program<'static> {
    Box::new(|| {
        let mut guard = InterruptsOff::new();
        Calls::close(&mut guard);
        Calls::open();
        drop(guard);
        wait::<SimMachine>(&[shared().said[0].equals(!0, 1)], Deadline::NEVER);
        Calls::tick();
    })
}
