//! Calls that their caller leaves behind, the levels they keep meanwhile, and mailboxes that start again.

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use smpcall::{CallError, Deferred, LEVELS, Post, TargetState};
use smpcall_machine::InterruptsOff;
use smpcall_simulator::{SimMachine, program};
use support::{Calls, Flag, counted, cpu, ms, quiet, run, set, us, world};

/// Counts how often it is dropped.
struct Parcel(Arc<AtomicU64>);

impl Drop for Parcel {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_claimed_static_call_may_be_left_and_still_runs_once() {
    let dropped = Arc::new(AtomicU64::new(0));
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        let parcel = Parcel(Arc::clone(&dropped));
        let left = Calls::within(us(50)).call_static(cpu(1), move || {
            program::advance(us(200));
            drop(parcel);
        });
        let Err(CallError::Unfinished(diagnosis)) = left else { panic!("{left:?}") };
        assert_eq!(diagnosis.target, TargetState::Busy { caller: Some(cpu(0)) });
        assert_eq!(dropped.load(Relaxed), 0, "it is the target's now");
        program::advance(us(200));
        assert_eq!(dropped.load(Relaxed), 1);
    });
    run(&mut world);
}

#[test]
fn what_never_runs_is_dropped_by_its_caller() {
    let dropped = Arc::new(AtomicU64::new(0));
    let (wedged, over) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(3));
    world.spawn(cpu(1), || {
        let _off = InterruptsOff::<SimMachine>::new();
        wedged.raise();
        over.reached(1);
    });
    world.spawn(cpu(0), || {
        wedged.reached(1);
        let parcel = || Parcel(Arc::clone(&dropped));
        let (first, second, third, fourth) = (parcel(), parcel(), parcel(), parcel());
        let timed_out = Calls::within(us(50)).call_static(cpu(1), move || drop(first));
        assert!(matches!(timed_out, Err(CallError::TimedOut(_))), "{timed_out:?}");
        assert_eq!(dropped.load(Relaxed), 1);
        assert_eq!(Calls::for_ever().call_static(cpu(9), move || drop(second)), Err(CallError::NoSuchCpu));
        assert_eq!(dropped.load(Relaxed), 2);
        let timed_out = Calls::within(us(50)).call(cpu(1), move || drop(third));
        assert!(timed_out.is_err());
        assert_eq!(dropped.load(Relaxed), 3);
        over.raise();
        Calls::for_ever().call_static(cpu(2), move || drop(fourth)).expect("CPU 2 lives");
        assert_eq!(dropped.load(Relaxed), 4, "by the target, once");
        program::advance(us(50));
        assert_eq!(dropped.load(Relaxed), 4);
    });
    run(&mut world);
}

/// All levels of CPU 0 are left behind, again and again: each is free when its callee has finished, not before.
#[test]
fn a_level_that_was_left_behind_is_reclaimed_when_its_callee_has_finished() {
    let ran = Arc::new(AtomicU64::new(0));
    let mut world = world(&quiet(6));
    world.spawn(cpu(0), || {
        for round in 1..=5 {
            for target in 1..=LEVELS as u32 {
                let ran = Arc::clone(&ran);
                let left = Calls::within(us(20)).call_static(cpu(target), move || {
                    program::advance(us(300));
                    ran.fetch_add(1, Relaxed);
                });
                assert!(matches!(left, Err(CallError::Unfinished(_))), "round {round}: {left:?}");
            }
            assert_eq!(Calls::within(us(20)).call(cpu(5), || ()), Err(CallError::Busy), "round {round}");
            let mut guard = InterruptsOff::new();
            let off = Calls::within(us(20)).with_interrupts_off(&mut guard).call(cpu(5), || ());
            assert_eq!(off, Err(CallError::Busy));
            drop(guard);
            program::advance(us(500));
            assert_eq!(ran.load(Relaxed), round * LEVELS as u64);
        }
        assert_eq!(
            Calls::for_ever().call_many(&set(1..6), |_| ()).map_err(|error| error.to_string()),
            Ok(())
        );
    });
    run(&mut world);
}

/// While CPU 0 waits for a level with interrupts off, it serves.
#[test]
fn a_caller_that_waits_for_a_level_with_interrupts_off_serves_meanwhile() {
    let waits = Flag::new();
    let mut world = world(&quiet(6));
    world.spawn(cpu(0), || {
        for target in 1..=LEVELS as u32 {
            let left = Calls::within(us(20)).call_static(cpu(target), || program::advance(us(500)));
            assert!(left.is_err());
        }
        let mut guard = InterruptsOff::new();
        waits.raise();
        let result = Calls::within(ms(5)).with_interrupts_off(&mut guard).call(cpu(5), || 1);
        assert_eq!(result, Ok(1));
    });
    world.spawn(cpu(5), || {
        waits.reached(1);
        program::advance(us(20));
        assert_eq!(
            Calls::within(us(50)).call(cpu(0), || 2),
            Ok(2),
            "served long before a level becomes free"
        );
    });
    run(&mut world);
}

struct Errand;

impl Deferred<SimMachine> for Errand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        panic!("it was forgotten with the mailbox it was in");
    }
}

/// The machine is switched off with calls, posts and marks under way. Its mailboxes are used by the next machine of
/// this size on this thread, whose CPUs know nothing of it.
#[test]
fn mailboxes_that_were_reset_know_nothing_of_before() {
    const CPUS: usize = 64;
    for _ in 0..2 {
        let mut first = world(&quiet(CPUS));
        for target in [1, 63] {
            first.spawn(cpu(target), || {
                let _off = InterruptsOff::<SimMachine>::new();
                Flag::new().reached(1);
            });
        }
        first.spawn(cpu(0), || {
            program::advance(us(1));
            Calls::post::<Errand>(cpu(1), Box::new(Post::new(Errand))).expect("queued");
            let _ = Calls::for_ever().call_many(&set([1, 2, 63]), |_| ());
        });
        first.run(smpcall_machine::Instant::from_nanos(2_000_000));
        let mailboxes = first.mailboxes().expect("it has a kernel");
        let sum = |first: &smpcall_simulator::World<'_>| {
            first.mailbox_counters(|counters| counters.iter().map(|(_, value)| value).sum())
        };
        assert!(sum(&first) > 0 && mailboxes.event_ring(cpu(0)).written() > 0);
        // SAFETY: no CPU of the machine runs any more; it is dropped next.
        unsafe { mailboxes.reset() };
        assert_eq!((sum(&first), mailboxes.event_ring(cpu(0)).written()), (0, 0));
        drop(first);

        let mut second = world(&quiet(CPUS));
        second.spawn(cpu(0), || {
            for _ in 0..=LEVELS {
                Calls::for_ever().call_all(|_| ()).expect("everybody is there");
                assert_eq!(Calls::for_ever().call(cpu(1), || 1), Ok(1));
            }
            assert_eq!(counted(|counters| counters.rings_repeated.get()), 0);
        });
        run(&mut second);
    }
}
