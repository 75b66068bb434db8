//! Suite `frozen`: a virtual CPU that is stopped from outside, between any two instructions, as a hypervisor does that has
//! no processor left for it. The program that runs the image stops it and lets it go on; both are asked for with a line and
//! confirmed with a byte.
//!
//! Twice: while the victim halts, so that nobody claims what is for it, and while it runs a closure.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use core::time::Duration;

use smpcall::{CallError, Deferred, Post, TargetState};
use smpcall_machine::{Cpu, Deadline, Machine, Predicate, Woken, wait, wait_at_most};

use super::Run;
use crate::apic;
use crate::clock::{LabWord, delay};
use crate::console::{received, say};
use crate::machine::{BOOT_CPU, Calls, Cpus, Lab};
use crate::tasks::{self, Step};

/// How long a caller waits for the victim.
const SHORT: Duration = Duration::from_millis(50);
/// How long anything may take that is to happen.
const LIMIT: Duration = Duration::from_secs(20);
/// Calls of each kind to the frozen CPU.
const ROUNDS: u64 = 5;

/// Closures that ran on the victim although their caller was told that they never will.
static WITHDRAWN_RAN: AtomicU64 = AtomicU64::new(0);
/// What the victim has done for the caller that waits for ever.
static PATIENT_RAN: AtomicU64 = AtomicU64::new(0);
static POSTS_RUN: AtomicU64 = AtomicU64::new(0);
/// How far the closure is that runs when its CPU is frozen: it has begun, it may end.
static CLOSURE: LabWord = LabWord::new(0);
const BEGUN: u64 = 1;
const MAY_END: u64 = 2;
const ENDED: u64 = 3;

struct Note;

impl Deferred<Lab> for Note {
    type Handle = &'static Post<Lab, Self>;

    fn run(_: Self::Handle) {
        // Relaxed: a count.
        POSTS_RUN.fetch_add(1, Relaxed);
    }
}

static POSTS: [Post<Lab, Note>; ROUNDS as usize] = [const { Post::new(Note) }; ROUNDS as usize];

pub(super) fn run(run: &mut Run) {
    if !run.has_cpus("frozen", 3) {
        return;
    }
    if halted(run) {
        busy(run);
    }
}

fn victim() -> Cpu {
    Cpu::new(apic::count() as u32 - 1)
}

/// The CPU that waits for the victim without a deadline.
const PATIENT: Cpu = Cpu::new(1);

/// Has the victim stopped, or let go on. Whether that was confirmed.
fn outside(run: &mut Run, wish: core::fmt::Arguments<'_>, confirmation: u8) -> bool {
    say!("@ {wish}");
    let confirmed = Predicate(|| received() == Some(confirmation));
    // The clock stands still while the machine is stopped; looks are not counted.
    let done = wait_at_most::<Lab>(&confirmed, Deadline::within::<Lab>(LIMIT), u64::MAX) != Woken::Deadline;
    if !done {
        run.check("the_machine_is_broken_from_outside", false, format_args!("nobody answers to: {wish}"));
    }
    done
}

fn freeze(run: &mut Run) -> bool {
    outside(run, format_args!("freeze {}", victim().number()), b'f')
}

fn thaw(run: &mut Run) -> bool {
    outside(run, format_args!("thaw"), b't')
}

fn call_patiently(_: Cpu) -> Step {
    let ran = Calls::for_ever().call(victim(), || PATIENT_RAN.fetch_add(1, Relaxed));
    // Once, and its result is here.
    if ran == Ok(0) {
        PATIENT_RAN.fetch_add(1, Relaxed);
    }
    Step::Done
}

/// What is withdrawn from the frozen CPU.
fn withdrawn() {
    WITHDRAWN_RAN.fetch_add(1, Relaxed);
}

/// What a caller is told of the frozen CPU, if it is told by its deadline.
fn told_of(result: Result<(), CallError>) -> Option<TargetState> {
    match result {
        Err(CallError::TimedOut(diagnosis)) => Some(diagnosis.target),
        _ => None,
    }
}

/// The victim halts: whatever is for it is unclaimed.
fn halted(run: &mut Run) -> bool {
    delay(Duration::from_millis(5));
    if !freeze(run) {
        return false;
    }
    run.progress("frozen", 1, 4);
    tasks::give(PATIENT, call_patiently);
    let told = (0..ROUNDS)
        .filter(|_| told_of(Calls::within(SHORT).call(victim(), withdrawn)).is_some())
        .count() as u64;
    run.check(
        "unclaimed_calls_are_told_by_their_deadline",
        told == ROUNDS,
        format_args!("{told} of {ROUNDS}"),
    );
    // A caller whom its own host keeps from running until its deadline has not probed. What it must not be told is anything
    // else.
    let mut states = (0..100).filter_map(|_| told_of(Calls::within(SHORT).call(victim(), withdrawn)));
    let state = states.find(|state| *state != TargetState::NotProbed);
    run.check(
        "the_diagnosis_says_no_sign_of_life",
        state == Some(TargetState::NoSignOfLife),
        format_args!("{state:?}: the probe is an NMI, which it does not take"),
    );
    let all: Cpus = apic::all().filter(|&cpu| cpu != BOOT_CPU).collect();
    let ran = AtomicU64::new(0);
    // It ends at its deadline, however many CPUs an emulator has to give a turn until then.
    let limit = SHORT * (4 + apic::count() as u32 / 4);
    let many = Calls::within(limit).call_many(&all, |cpu| {
        if cpu == victim() {
            withdrawn();
        } else {
            ran.fetch_add(1, Relaxed);
        }
    });
    let (ran, expected) = (ran.into_inner(), apic::count() as u64 - 2);
    run.check(
        "a_call_to_many_runs_on_all_the_others",
        many.is_err() && ran == expected,
        format_args!(
            "on {ran} of {expected}; the caller {}",
            if many.is_err() { "is told" } else { "is not told" }
        ),
    );
    let queued = POSTS.iter().filter(|post| Calls::post::<Note>(victim(), post).is_ok()).count();
    delay(SHORT);
    let (patient, posts) = (PATIENT_RAN.load(Relaxed), POSTS_RUN.load(Relaxed));
    run.check(
        "a_frozen_cpu_runs_nothing",
        patient == 0 && posts == 0,
        format_args!("{patient} calls, {posts} posts"),
    );
    if !thaw(run) {
        return false;
    }
    run.progress("frozen", 2, 4);
    let done = tasks::await_done(PATIENT, Deadline::within::<Lab>(LIMIT));
    let patient = PATIENT_RAN.load(Relaxed);
    run.check(
        "a_call_without_a_deadline_ends_after_the_thaw",
        done && patient == 2,
        format_args!("it ran and returned: {patient} of 2"),
    );
    let all_run = Predicate(|| POSTS_RUN.load(Relaxed) == queued as u64);
    wait_at_most::<Lab>(&all_run, Deadline::within::<Lab>(LIMIT), u64::MAX);
    let posts = POSTS_RUN.load(Relaxed);
    run.check(
        "posts_are_run_after_the_thaw",
        posts == queued as u64 && posts == ROUNDS,
        format_args!("{posts} of {queued}"),
    );
    recovered(run, "all_recovers_after_the_thaw");
    let ran = WITHDRAWN_RAN.load(Relaxed);
    run.check("what_was_withdrawn_never_runs", ran == 0, format_args!("{ran} ran"));
    true
}

/// Calls from everybody to the victim, and back.
fn recovered(run: &mut Run, name: &str) {
    let victim = victim();
    let mut held = 0;
    for cpu in apic::all() {
        let there = Calls::within(LIMIT).call(victim, Lab::current_cpu);
        let back = Calls::within(LIMIT).call(victim, move || Calls::reschedule(cpu).is_ok());
        held += usize::from(there == Ok(victim) && back == Ok(true));
    }
    let all = Calls::within(LIMIT).call_all(|_| {}).is_ok();
    run.check(
        name,
        held == apic::count() && all,
        format_args!("{held} of {} calls, and one to all", apic::count()),
    );
}

/// The closure that the victim is in when it is frozen. What it captures is on the stack of its caller, which waits therefore.
fn call_long(_: Cpu) -> Step {
    let mut result = 0;
    let called = Calls::within(SHORT).call(victim(), || {
        CLOSURE.store(BEGUN, Release);
        wait::<Lab>(&[CLOSURE.equals(!0, MAY_END)], Deadline::NEVER);
        result = 7;
    });
    if called.is_ok() && result == 7 {
        CLOSURE.store(ENDED, Release);
    }
    Step::Done
}

/// The victim runs a closure: it is claimed, and borrows, so its caller waits on after its deadline (law L4).
fn busy(run: &mut Run) {
    tasks::give(PATIENT, call_long);
    wait::<Lab>(&[CLOSURE.equals(!0, BEGUN)], Deadline::within::<Lab>(LIMIT));
    if !freeze(run) {
        return;
    }
    run.progress("frozen", 3, 4);
    CLOSURE.store(MAY_END, Release);
    let told = Calls::within(SHORT).call(victim(), withdrawn).is_err();
    // Longer than its deadline.
    delay(4 * SHORT);
    let stage = CLOSURE.load(Acquire);
    run.check(
        "a_claimed_call_waits_on_while_its_target_is_frozen",
        told && stage == MAY_END && !tasks::is_done(PATIENT),
        format_args!("stage {stage}; another caller {}", if told { "is told" } else { "is not told" }),
    );
    if !thaw(run) {
        return;
    }
    let done = tasks::await_done(PATIENT, Deadline::within::<Lab>(LIMIT));
    let stage = CLOSURE.load(Acquire);
    run.check("a_claimed_call_ends_after_the_thaw", done && stage == ENDED, format_args!("stage {stage}"));
    recovered(run, "all_recovers_after_the_second_thaw");
    let ran = WITHDRAWN_RAN.load(Relaxed);
    run.check("what_was_withdrawn_never_runs_afterwards", ran == 0, format_args!("{ran} ran"));
    run.progress("frozen", 4, 4);
}
