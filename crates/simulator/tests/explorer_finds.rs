//! The explorer finds bugs: small protocols with a known mistake, beside the same ones without it. And it misses no
//! ending that an exploration without state hashing reaches.

mod support;

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use smpcall_local_apic::Routing;
use smpcall_machine::{Deadline, InterruptsOff, Ipi, Woken, Word, wait};
use smpcall_simulator::explorer::{Bounds, Choice, Exploration, Protocol, explore, explore_on, protocols};
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, Program, RING_VECTOR, SimMachine, SimMemory, Stepper, program};
use support::{Cpu, Machine, cpu};

/// The shared words of the protocol at hand, and what its programs note.
struct Shared {
    words: [Word<SimMemory>; 8],
    notes: [Cell<u64>; 4],
}

fn shared() -> &'static Shared {
    thread_local! {
        static SHARED: &'static Shared = Box::leak(Box::new(Shared {
            words: [const { Word::new(0) }; 8],
            notes: [const { Cell::new(0) }; 4],
        }));
    }
    SHARED.with(|&shared| shared)
}

/// The words all zero but for these.
fn reset_to(words: &[(usize, u64)]) {
    let shared = shared();
    shared.words.iter().for_each(|word| word.store(0, Relaxed));
    shared.notes.iter().for_each(|note| note.set(0));
    for &(word, value) in words {
        shared.words[word].store(value, Relaxed);
    }
}

fn word(index: usize) -> &'static Word<SimMemory> {
    &shared().words[index]
}

fn notes() -> [u64; 4] {
    core::array::from_fn(|note| shared().notes[note].get())
}

fn note(index: usize, value: u64) {
    shared().notes[index].set(value);
}

fn await_word(index: usize, value: u64) {
    wait::<SimMachine>(&[word(index).equals(!0, value)], Deadline::NEVER);
}

fn fingerprint() -> u64 {
    notes().iter().fold(0, |sum, note| sum << 8 | note)
}

fn protocol(
    name: &'static str,
    cpus: usize,
    programs: fn() -> Vec<Program<'static>>,
    reset: fn(),
    check: fn() -> Result<(), String>,
) -> Protocol {
    Protocol { name, about: "a test's", cpus, programs, prompt: false, reset, fingerprint, check }
}

fn explored(protocol: &Protocol, drops: u32, expiries: u32) -> Exploration {
    explore(protocol, Bounds { drops, expiries, ..Bounds::default() }).expect("a machine")
}

/// The mistake is found, with a schedule that says what happened; without the mistake nothing is.
fn finds(wrong: &Protocol, right: &Protocol, expiries: u32, what: &str) {
    let found = explored(wrong, 0, expiries);
    let violation = found.violation.expect("the mistake is found");
    assert!(violation.what.contains(what), "{}", violation.what);
    assert!(!violation.schedule.is_empty());
    assert_eq!(violation.schedule.len(), violation.operations.len());
    assert!(!found.complete, "it ends at the first violation");

    let right = explored(right, 0, expiries);
    assert!(right.violation.is_none(), "{:#?}", right.violation);
    assert!(right.complete && right.complete_executions > 1);
}

// The offline queue: a CPU that comes back forgets the ring for what was queued while it was away, and later
// callers see a list that is not empty and do not ring.
const HEAD: usize = 0;
const IRR: usize = 1;
const ONLINE: usize = 2;
const NEXT: [usize; 2] = [3, 4];
const LOCKED: [usize; 2] = [5, 6];

fn queue_and_ring(call: usize) {
    let mut old = word(HEAD).load(Acquire);
    loop {
        word(NEXT[call]).store(old, Relaxed);
        match word(HEAD).compare_exchange(old, call as u64 + 1, AcqRel, Acquire) {
            Ok(_) => break,
            Err(found) => old = found,
        }
    }
    if old == 0 {
        word(IRR).store(1, Release);
    }
}

fn drain_queue() {
    let mut head = word(HEAD).swap(0, AcqRel);
    while head != 0 {
        let call = head as usize - 1;
        head = word(NEXT[call]).load(Relaxed);
        word(LOCKED[call]).store(0, Release);
    }
}

fn offline_queue(drains: bool) -> Vec<Program<'static>> {
    vec![
        Box::new(|| {
            if word(ONLINE).load(Acquire) != 0 {
                queue_and_ring(0);
            }
        }),
        Box::new(|| {
            await_word(ONLINE, 1);
            queue_and_ring(1);
            await_word(LOCKED[1], 0);
        }),
        Box::new(move || {
            word(ONLINE).store(0, Release);
            word(IRR).store(0, Release);
            word(ONLINE).store(1, Release);
            if drains {
                drain_queue();
            }
            while word(LOCKED[1]).load(Acquire) != 0 {
                await_word(IRR, 1);
                word(IRR).store(0, Release);
                drain_queue();
            }
        }),
    ]
}

#[test]
fn a_queue_that_is_not_drained_when_its_cpu_comes_back_hangs() {
    let reset: fn() = || reset_to(&[(ONLINE, 1), (LOCKED[0], 1), (LOCKED[1], 1)]);
    let with = |programs| protocol("offline-queue", 3, programs, reset, || Ok(()));
    finds(&with(|| offline_queue(false)), &with(|| offline_queue(true)), 0, "hangs");
}

// A lost wake-up: the interrupt that says "look" comes between the look and the halt.
fn sleeper(interrupts_off: bool) -> Vec<Program<'static>> {
    vec![
        Box::new(|| {
            word(0).store(1, Release);
            SimMachine::send(cpu(1), Ipi::Ring).expect("a ring");
        }),
        Box::new(move || {
            let off = interrupts_off.then(InterruptsOff::<SimMachine>::new);
            if word(0).load(Acquire) == 0 {
                program::halt();
            }
            drop(off);
        }),
    ]
}

#[test]
fn a_wake_up_between_the_look_and_the_halt_is_lost() {
    let with = |programs| protocol("wake-up", 2, programs, || reset_to(&[]), || Ok(()));
    finds(&with(|| sleeper(false)), &with(|| sleeper(true)), 0, "hangs");
}

#[test]
fn a_ring_that_may_be_lost_and_is_not_repeated_hangs() {
    let right = protocol("wake-up", 2, || sleeper(true), || reset_to(&[]), || Ok(()));
    let violation = explored(&right, 1, 0).violation.expect("nobody repeats the ring");
    assert!(
        violation.schedule.contains(&Choice::StepLosing(cpu(0), [cpu(1)].into_iter().collect())),
        "{:?}",
        violation.schedule
    );
    assert!(violation.operations.iter().any(|operation| operation.contains("the message to 1 is lost")));
}

// Two CPUs ask each other and wait, with interrupts off.
const ASKED: [usize; 2] = [0, 1];
const ANSWERED: [usize; 2] = [2, 3];

fn mutual_wait(me: usize, serves: bool) -> Program<'static> {
    Box::new(move || {
        let _off = InterruptsOff::<SimMachine>::new();
        word(ASKED[1 - me]).store(1, Release);
        let answer = || {
            await_word(ASKED[me], 1);
            word(ANSWERED[1 - me]).store(1, Release);
        };
        if serves {
            let answered = word(ANSWERED[me]).equals(!0, 1);
            match wait::<SimMachine>(&[answered, word(ASKED[me]).equals(!0, 1)], Deadline::NEVER) {
                // The other one will be served all the same.
                Woken::Met(0) => return answer(),
                _ => answer(),
            }
            await_word(ANSWERED[me], 1);
        } else {
            await_word(ANSWERED[me], 1);
            answer();
        }
    })
}

#[test]
fn two_cpus_that_wait_for_each_other_without_serving_hang() {
    let with = |programs| protocol("mutual-wait", 2, programs, || reset_to(&[]), || Ok(()));
    finds(
        &with(|| vec![mutual_wait(0, false), mutual_wait(1, false)]),
        &with(|| vec![mutual_wait(0, true), mutual_wait(1, true)]),
        0,
        "hangs",
    );
}

// A claim against a withdrawal at the deadline: 0 free, 1 queued, 2 claimed, 3 done.
fn claim(atomic: bool) -> Vec<Program<'static>> {
    vec![
        Box::new(|| {
            word(0).store(1, Release);
            let deadline = Deadline::within::<SimMachine>(Duration::from_micros(10));
            let done = word(0).equals(!0, 3);
            let withdrawn = wait::<SimMachine>(&[done], deadline) == Woken::Deadline
                && word(0).compare_exchange(1, 0, AcqRel, Acquire).is_ok();
            if !withdrawn {
                await_word(0, 3);
            }
            note(0, if withdrawn { 1 } else { 2 });
        }),
        Box::new(move || {
            let claimed = if atomic {
                word(0).compare_exchange(1, 2, AcqRel, Acquire).is_ok()
            } else {
                let queued = word(0).load(Acquire) == 1;
                if queued {
                    word(0).store(2, Release);
                }
                queued
            };
            if claimed {
                note(1, 1);
                word(0).store(3, Release);
            } else {
                note(1, 2);
                // Too early or too late: who is too early looks again, for ever if need be.
                let deadline = Deadline::within::<SimMachine>(Duration::from_micros(20));
                let queued = word(0).equals(!0, 1);
                if wait::<SimMachine>(&[queued], deadline) == Woken::Met(0)
                    && word(0).compare_exchange(1, 2, AcqRel, Acquire).is_ok()
                {
                    note(1, 1);
                    word(0).store(3, Release);
                }
            }
        }),
    ]
}

#[test]
fn a_claim_that_is_not_atomic_runs_what_was_withdrawn() {
    let check: fn() -> Result<(), String> = || match notes() {
        [1, 2, ..] | [2, 1, ..] => Ok(()),
        other => Err(format!("run and withdrawn, or neither: {other:?}")),
    };
    let with = |programs| protocol("claim", 2, programs, || reset_to(&[]), check);
    finds(&with(|| claim(false)), &with(|| claim(true)), 1, "run and withdrawn");
}

#[test]
fn only_an_expiry_that_the_bounds_permit_is_tried() {
    let check: fn() -> Result<(), String> = || Ok(());
    let with = |programs| protocol("claim", 2, programs, || reset_to(&[]), check);
    let [none, one] = [0, 1].map(|expiries| explored(&with(|| claim(true)), 0, expiries));
    assert!(none.complete && one.complete);
    assert!(none.states < one.states, "{} and {}", none.states, one.states);
}

#[test]
fn an_exploration_that_is_cut_short_says_so() {
    let offline =
        protocol("offline-queue", 3, || offline_queue(true), || reset_to(&[(ONLINE, 1)]), || Ok(()));
    let cut = explore(&offline, Bounds { drops: 0, expiries: 0, states: 20 }).expect("a machine");
    assert!(!cut.complete && cut.violation.is_none() && cut.states >= 20);
}

thread_local! {
    /// The notes at each end that was reached.
    static ENDS: RefCell<BTreeSet<[u64; 4]>> = const { RefCell::new(BTreeSet::new()) };
}

#[allow(clippy::unnecessary_wraps, reason = "the type of a check")]
fn collect_end() -> Result<(), String> {
    ENDS.with_borrow_mut(|ends| ends.insert(notes()));
    Ok(())
}

/// All endings of a protocol by trying every choice at every point, without looking at states: the number of schedules,
/// and the notes at their ends.
fn naive(protocol: &Protocol) -> (u64, BTreeSet<[u64; 4]>) {
    let config = Config::new(protocol.cpus, Routing::Flat, 0);
    let mut stepper =
        Stepper::with_kernel(&config, (protocol.programs)(), Hooks::default()).expect("a machine");
    (protocol.reset)();
    stepper.start();
    let (mut schedules, mut ends) = (0, BTreeSet::new());
    // For each point of the current schedule: what is still to be tried there, and what was tried last.
    let mut path: Vec<Vec<(Cpu, bool)>> = Vec::new();
    loop {
        for depth in 0.. {
            if depth == path.len() {
                let mut choices = Vec::new();
                for cpu in (0..protocol.cpus as u32).map(Cpu::new) {
                    if stepper.deliverable(cpu).is_some() {
                        choices.push((cpu, true));
                    }
                    if stepper.is_enabled(cpu) {
                        choices.push((cpu, false));
                    }
                }
                if choices.is_empty() {
                    break;
                }
                path.push(choices);
            }
            match path[depth].last() {
                Some(&(cpu, true)) => stepper.take_interrupt(cpu),
                Some(&(cpu, false)) => stepper.step(cpu),
                None => unreachable!("exhausted points are removed below"),
            }
        }
        schedules += 1;
        assert!((0..protocol.cpus as u32).all(|number| stepper.has_ended(cpu(number))));
        ends.insert(notes());
        while let Some(choices) = path.last_mut() {
            choices.pop();
            if !choices.is_empty() {
                break;
            }
            path.pop();
        }
        if path.is_empty() {
            return (schedules, ends);
        }
        (protocol.reset)();
        // SAFETY: the programs own nothing that needs dropping, and `reset` puts back what they share.
        unsafe { stepper.restart() };
    }
}

fn agrees_with_naive(protocol: &Protocol, at_least: usize) {
    ENDS.take();
    let hashed = explored(protocol, 0, 0);
    assert!(hashed.complete && hashed.violation.is_none());
    let hashed_ends = ENDS.take();
    let (schedules, ends) = naive(protocol);
    assert_eq!(hashed_ends, ends);
    assert!(ends.len() >= at_least, "{ends:?}");
    assert!(schedules > hashed.executions, "{schedules} schedules in {} executions", hashed.executions);
}

#[test]
fn hashing_states_loses_no_ending_of_racing_words() {
    agrees_with_naive(&protocol("racing-words", 2, racing_words, || reset_to(&[]), collect_end), 6);
}

fn racing_words() -> Vec<Program<'static>> {
    let program = |me: usize| -> Program<'static> {
        Box::new(move || {
            let seen = word(1 - me).load(Acquire);
            word(me).store(1 + seen, Release);
            let sum = word(2).fetch_add(1 + me as u64, AcqRel);
            let last = word(1 - me).swap(4, AcqRel);
            note(me, seen << 6 | sum << 3 | last);
        })
    };
    vec![program(0), program(1)]
}

/// CPU 1 notes before which of its operations the ring was taken, and with what it read.
fn interrupted_reader() -> Vec<Program<'static>> {
    vec![
        Box::new(|| {
            word(0).store(1, Release);
            SimMachine::send(cpu(1), Ipi::Ring).expect("a ring");
            word(0).store(2, Release);
        }),
        Box::new(|| {
            for index in 0..2 {
                let seen = word(0).load(Acquire);
                let taken = program::inspect(cpu(1)).counters.taken[RING_VECTOR as usize];
                program::learn(taken);
                note(index, seen << 4 | taken);
            }
        }),
    ]
}

#[test]
fn hashing_states_loses_no_ending_of_an_interrupted_program() {
    agrees_with_naive(&protocol("interrupted", 2, interrupted_reader, || reset_to(&[]), collect_end), 8);
}

/// A ring that is forgotten, and not lost, is found even if somebody looks after a while: that is what `prompt` is for.
#[test]
fn a_forgotten_ring_that_only_the_deadline_makes_up_for_is_found() {
    let programs = || -> Vec<Program<'static>> {
        vec![
            Box::new(|| word(0).store(1, Release)),
            Box::new(|| {
                // Looks at another word, and at this one only when its time is up.
                let deadline = Deadline::within::<SimMachine>(Duration::from_micros(10));
                let woken = wait::<SimMachine>(&[word(1).equals(!0, 1)], deadline);
                assert_eq!(woken, Woken::Deadline);
                await_word(0, 1);
            }),
        ]
    };
    let mut forgotten = protocol("forgotten", 2, programs, || reset_to(&[]), || Ok(()));
    assert!(explored(&forgotten, 1, 1).violation.is_none(), "time heals it");
    forgotten.prompt = true;
    let violation = explored(&forgotten, 1, 1).violation.expect("nothing was lost, and time had to pass");
    assert!(violation.what.contains("until time passes"), "{}", violation.what);
}

/// All of what a protocol keeps outside of shared memory is part of the state, the upper half of its fingerprint too.
#[test]
fn states_that_differ_only_high_in_the_fingerprint_are_told_apart() {
    fn high() -> u64 {
        notes()[0] << 56
    }
    let programs = || -> Vec<Program<'static>> {
        // Which of the two stores comes first shows in the note alone.
        let first = |who: u64| {
            move || {
                word(0).store(1, Release);
                if notes()[0] == 0 {
                    note(0, who);
                }
                program::forget_but(0);
                word(1).store(1, Release);
            }
        };
        vec![Box::new(first(1)), Box::new(first(2))]
    };
    let check = || if notes()[0] == 1 { Err("CPU 0 was first".to_owned()) } else { Ok(()) };
    let mut order = protocol("order", 2, programs, || reset_to(&[]), check);
    order.fingerprint = high;
    assert!(explored(&order, 0, 0).violation.is_some(), "both orders are seen");
}

/// The hints that make explorations smaller lose no ending of the shipping protocols.
#[test]
fn hints_lose_no_ending() {
    let mut states = (0, 0);
    for name in [
        "call",
        "call-polling",
        "deadline",
        "deadline-static",
        "reuse",
        "nested",
        "many-deadline",
        "close-stale",
    ] {
        let protocol = protocols::by_name(name).expect("a protocol of this name");
        let bounds = Bounds { drops: 1, expiries: 1, ..Bounds::default() };
        let hinted = explore(protocol, bounds).expect("a machine");
        let plain = Config::new(protocol.cpus, Routing::Flat, 0);
        let unhinted = explore_on(&plain, protocol, bounds).expect("a machine");
        assert!(hinted.complete && unhinted.complete, "{name}");
        assert_eq!(hinted.endings, unhinted.endings, "{name}");
        states = (states.0 + hinted.states, states.1 + unhinted.states);
    }
    assert!(states.0 < states.1, "the hints hint at nothing: {states:?}");
}
