//! Panicking closures: the caller is told, the target goes on panicking, and nothing of anybody else's is lost.
//!
//! Closures unwind without the panic hook (`resume_unwind`), so that passing tests print nothing.

#![allow(clippy::result_large_err, reason = "sets of up to 4,096 CPUs")]

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use smpcall::{CallError, Deferred, ManyError, ManyFailures, Post};
use smpcall_machine::{Deadline, InterruptsOff, Woken};
use smpcall_simulator::{SimCpuSet, SimMachine, program};
use support::{Calls, Flag, Machine, counted, cpu, quiet, run, set, us, world};

fn unwind() -> ! {
    resume_unwind(Box::new("a closure unwinds"))
}

/// Polls this CPU's mailbox with interrupts off - and says so with `ready` - until `flag` reaches `value` or something
/// served unwinds; returns whether that happened. Interrupts are on again afterwards.
fn poll_until_unwound(ready: &Flag, flag: &Flag, value: u64) -> bool {
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let mut guard = InterruptsOff::new();
        ready.raise();
        let woken = Calls::poll_until(&mut guard, flag.when(value), Deadline::NEVER);
        assert_eq!(woken, Woken::Met(0));
    }))
    .is_err();
    assert!(SimMachine::interrupts_enabled());
    unwound
}

/// The mailbox of the running CPU is as it should be: quiet, unattended, not in use.
fn is_in_order() {
    let mut guard = InterruptsOff::new();
    assert!(Calls::may_halt(&mut guard), "quiet");
    // Panics if a pass was under way, or the door attended.
    Calls::close(&mut guard);
    Calls::open();
}

fn panicked(result: Result<(), ManyError<SimMachine>>) -> SimCpuSet {
    match result {
        Err(ManyError::Failed(ManyFailures { offline, timed_out, panicked, .. })) => {
            assert!(offline.is_empty() && timed_out.is_empty());
            panicked
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_caller_is_told_and_the_target_goes_on_panicking() {
    let (ready, done) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        ready.reached(1);
        assert_eq!(Calls::for_ever().call(cpu(1), || unwind()), Err::<(), _>(CallError::Panicked));
        ready.reached(2);
        assert_eq!(Calls::for_ever().call_static(cpu(1), || unwind()), Err(CallError::Panicked));
        ready.reached(3);
        let any = Calls::for_ever().call_any(&set([1]), || unwind());
        assert_eq!(any, Err::<(_, ()), _>(CallError::Panicked));
        done.reached(1);
        let before = icr_and_rings();
        assert_eq!(Calls::for_ever().call(cpu(1), || 4), Ok(4));
        assert_eq!(icr_and_rings(), (before.0 + 1, before.1 + 1), "a quiet mailbox is rung");
    });
    world.spawn(cpu(1), || {
        for _ in 0..3 {
            assert!(poll_until_unwound(&ready, &done, u64::MAX), "the target unwinds too");
            is_in_order();
        }
        done.raise();
    });
    run(&mut world);
}

fn icr_and_rings() -> (u64, u64) {
    (support::icr_writes(), counted(|counters| counters.rings_sent.get()))
}

/// CPU 1 polls, so that nobody rings it; it finds calls of CPUs 0, 2 and the last one in one pass, and the first of them
/// unwinds. On machines with leaf words (from 49 CPUs up) the last one is in another word.
fn the_rest_of_the_pass_survives(cpus: u32) {
    let sources = [0, 2, cpus - 1];
    let (polls, inside, ended, ran) = (Flag::new(), Flag::new(), Flag::new(), AtomicU64::new(0));
    POSTS_RUN.set(0);
    let mut world = world(&quiet(cpus as usize));
    for source in sources {
        let (inside, ended, ran) = (&inside, &ended, &ran);
        world.spawn(cpu(source), move || {
            inside.reached(1);
            let result = Calls::for_ever().call(cpu(1), || {
                if source == 0 {
                    unwind();
                }
                ran.fetch_add(1, Relaxed);
            });
            assert_eq!(result.is_err(), source == 0);
            ended.raise();
        });
    }
    world.spawn(cpu(3), || {
        polls.reached(1);
        program::advance(us(10));
        Calls::for_ever()
            .call(cpu(1), || {
                inside.raise();
                program::advance(us(30));
            })
            .expect("CPU 1 polls");
    });
    world.spawn(cpu(1), || {
        assert!(poll_until_unwound(&polls, &ended, u64::MAX));
        // With interrupts on again the CPU has rung itself: nobody else would.
        ended.reached(3);
        Calls::post::<Errand>(cpu(1), Box::new(Post::new(Errand))).expect("the own CPU");
        program::advance(us(20));
        is_in_order();
    });
    run(&mut world);
    assert_eq!((ran.load(Relaxed), POSTS_RUN.get()), (2, 1));
    let repeated = world.mailbox_counters(|counters| counters.rings_repeated.get());
    assert_eq!(repeated, 0, "nobody had to find out by waiting");
    assert_eq!(world.counters().icr_writes, 2, "for what was left, and for the post");
}

thread_local! {
    static POSTS_RUN: core::cell::Cell<u32> = const { core::cell::Cell::new(0) };
}

struct Errand;

impl Deferred<SimMachine> for Errand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        POSTS_RUN.set(POSTS_RUN.get() + 1);
    }
}

#[test]
fn the_rest_of_the_pass_survives_a_panic_without_leaf_words() {
    the_rest_of_the_pass_survives(5);
}

#[test]
fn the_rest_of_the_pass_survives_a_panic_with_leaf_words() {
    the_rest_of_the_pass_survives(64);
    the_rest_of_the_pass_survives(200);
    the_rest_of_the_pass_survives(4096);
}

struct Unwinding;

impl Deferred<SimMachine> for Unwinding {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        unwind();
    }
}

#[test]
fn a_post_that_panics_takes_no_other_post_and_no_call_with_it() {
    POSTS_RUN.set(0);
    let posted = Flag::new();
    let mut world = world(&quiet(3));
    world.spawn(cpu(0), || {
        Calls::post::<Errand>(cpu(1), Box::new(Post::new(Errand))).expect("queued");
        Calls::post::<Unwinding>(cpu(1), Box::new(Post::new(Unwinding))).expect("queued");
        Calls::post::<Errand>(cpu(1), Box::new(Post::new(Errand))).expect("queued");
        posted.raise();
        Calls::for_ever()
            .call(cpu(1), || assert_eq!(POSTS_RUN.get(), 2, "posts come first"))
            .expect("it runs");
    });
    world.spawn(cpu(1), || {
        let never = Flag::new();
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let mut guard = InterruptsOff::new();
            posted.reached(1);
            program::advance(us(10));
            Calls::poll_until(&mut guard, never.when(1), Deadline::NEVER)
        }));
        assert!(unwound.is_err());
        program::advance(us(20));
        is_in_order();
    });
    run(&mut world);
    assert_eq!(POSTS_RUN.get(), 2);
}

/// CPUs 1 and 3 panic in the first call, nobody in the second, CPU 2 in the third.
#[test]
fn a_call_to_many_names_those_that_panicked_and_nobody_of_an_earlier_call() {
    let (ready, done) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(4));
    for target in 1..4 {
        let (ready, done) = (&ready, &done);
        world.spawn(cpu(target), move || {
            assert!(poll_until_unwound(ready, done, 1));
            is_in_order();
            assert!(!poll_until_unwound(ready, done, 1));
        });
    }
    world.spawn(cpu(0), || {
        let call = |panics: &[u32]| {
            Calls::for_ever().call_many(&set([1, 2, 3]), |cpu| {
                if panics.contains(&cpu.number()) {
                    unwind();
                }
            })
        };
        ready.reached(3);
        assert_eq!(panicked(call(&[1, 3])), set([1, 3]));
        ready.reached(5);
        assert_eq!(call(&[]).map_err(|error| error.to_string()), Ok(()));
        assert_eq!(panicked(call(&[2])), set([2]));
        ready.reached(6);
        done.raise();
    });
    run(&mut world);
}

/// As above, but the first call's own part unwinds too, so that nobody is told who panicked.
#[test]
fn a_call_to_many_that_unwinds_leaves_no_blame_behind() {
    let (ready, done) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(3));
    for target in [1, 2] {
        let (ready, done) = (&ready, &done);
        world.spawn(cpu(target), move || {
            assert!(poll_until_unwound(ready, done, 1));
            assert!(!poll_until_unwound(ready, done, 1));
        });
    }
    world.spawn(cpu(0), || {
        ready.reached(2);
        let call = |panics: &[u32]| {
            Calls::for_ever().call_many(&set([0, 1, 2]), |cpu| {
                if panics.contains(&cpu.number()) {
                    // The others first: what is not claimed when this CPU unwinds is withdrawn.
                    program::advance(if cpu.number() == 0 { us(20) } else { us(0) });
                    unwind();
                }
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(|| call(&[0, 1]).is_err())).is_err());
        ready.reached(3);
        assert_eq!(panicked(call(&[2])), set([2]));
        ready.reached(4);
        done.raise();
    });
    run(&mut world);
}

/// CPU 0 waits, with interrupts off, for CPU 1, which is running its closure; meanwhile CPU 0 serves a closure that
/// unwinds. The frame on CPU 0's stack must outlive what CPU 1 does with it (law L4).
#[test]
fn unwinding_out_of_a_wait_first_waits_for_the_claimed_call() {
    let (claimed, finished) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(3));
    world.spawn(cpu(0), || {
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let mut guard = InterruptsOff::new();
            let mut on_the_stack = 0u64;
            let result = Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(1), || {
                claimed.raise();
                program::advance(us(300));
                on_the_stack = 1;
                finished.raise();
            });
            unreachable!("{result:?} {on_the_stack}");
        }));
        assert!(unwound.is_err());
        assert_eq!(finished.get(), 1, "the frame is gone, and CPU 1 has finished with it");
        is_in_order();
        assert_eq!(Calls::for_ever().call(cpu(1), || 6), Ok(6));
    });
    world.spawn(cpu(2), || {
        claimed.reached(1);
        assert_eq!(Calls::for_ever().call(cpu(0), || unwind()), Err::<(), _>(CallError::Panicked));
        assert_eq!(finished.get(), 0, "its caller is told at once");
    });
    run(&mut world);
}

#[test]
fn unwinding_out_of_a_wait_withdraws_the_unclaimed_call() {
    let (waits, unwound) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(3));
    world.spawn(cpu(1), || {
        let _off = InterruptsOff::<SimMachine>::new();
        waits.raise();
        unwound.reached(1);
    });
    world.spawn(cpu(0), || {
        waits.reached(1);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut guard = InterruptsOff::new();
            let caller = Calls::for_ever().with_interrupts_off(&mut guard);
            caller.call(cpu(1), || unreachable!("it was withdrawn"))
        }));
        assert!(result.is_err());
        is_in_order();
        unwound.raise();
        assert_eq!(Calls::for_ever().call(cpu(1), || 6), Ok(6), "from the same level, to the same CPU");
    });
    world.spawn(cpu(2), || {
        waits.reached(1);
        program::advance(us(20));
        assert_eq!(Calls::for_ever().call(cpu(0), || unwind()), Err::<(), _>(CallError::Panicked));
    });
    run(&mut world);
}

/// As above for a call to many, of which CPU 1 has claimed its part and CPU 3 has not.
#[test]
fn unwinding_out_of_a_call_to_many_withdraws_what_is_unclaimed_and_waits_for_the_rest() {
    let (ready, claimed, finished, unwound) = (Flag::new(), Flag::new(), Flag::new(), Flag::new());
    let mut world = world(&quiet(4));
    world.spawn(cpu(3), || {
        let _off = InterruptsOff::<SimMachine>::new();
        ready.raise();
        unwound.reached(1);
    });
    world.spawn(cpu(0), || {
        ready.reached(1);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut guard = InterruptsOff::new();
            let caller = Calls::for_ever().with_interrupts_off(&mut guard);
            let result = caller.call_many(&set([1, 3]), |cpu| {
                assert_eq!(cpu.number(), 1, "withdrawn from CPU 3");
                claimed.raise();
                program::advance(us(300));
                finished.raise();
            });
            unreachable!("{result:?}");
        }));
        assert!(result.is_err());
        assert_eq!(finished.get(), 1);
        is_in_order();
        unwound.raise();
        Calls::for_ever().call_many(&set([1, 3]), |_| ()).expect("the level is free and clean");
    });
    world.spawn(cpu(2), || {
        claimed.reached(1);
        assert_eq!(Calls::for_ever().call(cpu(0), || unwind()), Err::<(), _>(CallError::Panicked));
    });
    run(&mut world);
}

/// The part of a call to many that runs on the caller's own CPU unwinds while the others run theirs.
#[test]
fn unwinding_in_the_own_part_of_a_call_to_many_waits_for_the_others() {
    let finished = Flag::new();
    let mut world = world(&quiet(3));
    world.spawn(cpu(0), || {
        let result = catch_unwind(AssertUnwindSafe(|| {
            Calls::for_ever()
                .call_all(|cpu| {
                    if cpu.number() == 0 {
                        program::advance(us(20));
                        unwind();
                    }
                    program::advance(us(200));
                    finished.raise();
                })
                .map_err(|error| error.to_string())
        }));
        assert!(result.is_err());
        assert_eq!(finished.get(), 2);
        assert!(SimMachine::interrupts_enabled());
        is_in_order();
    });
    run(&mut world);
}

#[test]
fn closing_from_inside_a_closure_that_a_wait_serves_panics_and_leaves_the_mailbox_open() {
    let ready = Flag::new();
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        ready.reached(1);
        let closing = Calls::for_ever().call(cpu(1), || Calls::close(&mut InterruptsOff::new()));
        assert_eq!(closing, Err(CallError::Panicked));
        assert_eq!(Calls::for_ever().call(cpu(1), || 2), Ok(2));
    });
    world.spawn(cpu(1), || {
        assert!(poll_until_unwound(&ready, &Flag::new(), 1));
        assert!(Calls::is_online(cpu(1)));
    });
    run(&mut world);
}
