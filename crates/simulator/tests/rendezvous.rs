//! Rendezvous on machines in virtual time: all CPUs stop or nothing is run, late CPUs are named and cost nobody more than the
//! deadline, and a controller that stands still keeps nobody.

#![allow(clippy::result_large_err, reason = "sets of up to 4,096 CPUs")]

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use smpcall::rendezvous::Stage;
use smpcall::{CallError, Deferred, Diagnosis, ExclusiveError, Kernel, Post, RendezvousError, TargetState};
use smpcall_machine::{InterruptsOff, Woken};
use smpcall_simulator::campaign::default_routing;
use smpcall_simulator::faults::parse;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, SimCpuSet, SimMachine, World, program};
use support::{
    Calls, Cpu, Flag, Machine, counted, cpu, faulty, ms, quiet, run, set, took, us, work_with_interrupts_off,
    world,
};

type Result = core::result::Result<(), RendezvousError<SimMachine>>;

/// What is known of CPUs while a closure of a rendezvous runs.
struct Floor {
    /// CPUs that are in the middle of something, with interrupts disabled.
    busy: AtomicU64,
    /// Closures under way, and the most there ever were.
    running: AtomicU64,
    most: AtomicU64,
    ran: AtomicU64,
}

impl Floor {
    const fn new() -> Self {
        Self {
            busy: AtomicU64::new(0),
            running: AtomicU64::new(0),
            most: AtomicU64::new(0),
            ran: AtomicU64::new(0),
        }
    }

    /// Something that no closure may come into the middle of.
    fn works(&self, time: Duration) {
        let off = InterruptsOff::<SimMachine>::new();
        assert_eq!(self.running.load(Relaxed), 0, "{} is not stopped", off.cpu());
        self.busy.fetch_add(1, Relaxed);
        program::advance(time);
        self.busy.fetch_sub(1, Relaxed);
        assert_eq!(self.running.load(Relaxed), 0, "{} was not stopped", off.cpu());
    }

    /// The closure.
    fn runs(&self, time: Duration) {
        assert!(!SimMachine::interrupts_enabled());
        let running = self.running.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(running, Relaxed);
        assert_eq!(self.busy.load(Relaxed), 0, "a CPU is in the middle of something");
        program::advance(time);
        assert_eq!(self.busy.load(Relaxed), 0, "a CPU is in the middle of something");
        self.running.fetch_sub(1, Relaxed);
        self.ran.fetch_add(1, Relaxed);
    }
}

fn late(result: Result) -> (Stage, SimCpuSet, Option<(Cpu, Diagnosis)>) {
    match result {
        Err(RendezvousError::Late { stage, late, diagnosis }) => (stage, late, diagnosis),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_cpus_stop_while_those_that_were_named_run_it() {
    for cpus in [1, 2, 16, 64] {
        let floor = Floor::new();
        let ran: Vec<AtomicU64> = (0..cpus).map(|_| AtomicU64::new(0)).collect();
        let runners: Vec<u32> = (0..cpus).filter(|cpu| cpu % 2 == 0).collect();
        let mut world = world(&quiet(cpus as usize));
        for other in 1..cpus {
            let floor = &floor;
            world.spawn(cpu(other), move || {
                for _ in 0..50 {
                    floor.works(us(3));
                    program::advance(us(2));
                }
            });
        }
        world.spawn(cpu(0), || {
            program::advance(us(50));
            let (time, result) = took(|| {
                Calls::within(ms(1)).rendezvous(&set(runners.iter().copied()), |cpu| {
                    assert_eq!(cpu, SimMachine::current_cpu());
                    ran[cpu.index()].fetch_add(1, Relaxed);
                    floor.runs(us(20));
                })
            });
            assert!(result.is_ok(), "{result:?}");
            assert!(time < us(200), "{cpus} CPUs: {time:?}");
            assert!(SimMachine::interrupts_enabled());
            assert_eq!(counted(|counters| counters.rendezvous.get()), 1);
        });
        run(&mut world);
        let ran: Vec<u64> = ran.iter().map(|ran| ran.load(Relaxed)).collect();
        assert_eq!(ran, (0..cpus).map(|cpu| u64::from(cpu % 2 == 0)).collect::<Vec<_>>());
        assert_eq!(floor.most.load(Relaxed), runners.len() as u64, "at the same time");
    }
}

/// Two controllers, calls, and CPUs that are in the middle of something; rings and more are lost, and some CPUs stand still
/// for a while. Whatever a controller is told is so, within its deadline and what stands still.
#[test]
fn all_or_nothing_under_faults_and_many_seeds() {
    let (mut took_place, mut given_up) = (0, 0);
    for seed in 0..60 {
        let mut config = Config::new(8, default_routing(8), seed);
        let stop = format!("drop:p=0.2,stop:cpu={}:at={}us:for=3ms", seed % 8, 300 + 37 * seed);
        config.faults = parse(&stop).expect("faults");
        let floor = Floor::new();
        let (good, bad) = (Cell::new(0), Cell::new(0));
        let mut world = World::with_kernel(&config, Hooks::default()).expect("a machine");
        for controller in [0, 5] {
            let (floor, good, bad) = (&floor, &good, &bad);
            world.spawn(cpu(controller), move || {
                for _ in 0..6 {
                    program::advance(us(program::random(300)));
                    let runners = if program::random(2) == 0 { set(0..8) } else { set([controller, 3]) };
                    let limit = us(200 + program::random(3_000));
                    let before = floor.ran.load(Relaxed);
                    let mut mine = 0;
                    let counted = AtomicU64::new(0);
                    let (time, result) = took(|| {
                        Calls::within(limit).rendezvous(&runners, |_| {
                            counted.fetch_add(1, Relaxed);
                            floor.runs(us(5));
                        })
                    });
                    mine += counted.load(Relaxed);
                    let expected = if result.is_ok() { runners.len() as u64 } else { 0 };
                    assert_eq!(mine, expected, "seed {seed}: {result:?}");
                    assert!(floor.ran.load(Relaxed) >= before + mine);
                    assert!(time < limit + ms(4), "seed {seed}: {time:?} of {limit:?}: {result:?}");
                    match result {
                        Ok(()) => good.set(good.get() + 1),
                        Err(RendezvousError::Late { ref late, .. }) => {
                            assert!(!late.is_empty());
                            bad.set(bad.get() + 1);
                        }
                        Err(RendezvousError::Excluded(ExclusiveError::HeldBy(_))) => bad.set(bad.get() + 1),
                        Err(error) => panic!("seed {seed}: {error}"),
                    }
                }
            });
        }
        for other in [1, 2, 3, 4, 6, 7] {
            let floor = &floor;
            world.spawn(cpu(other), move || {
                for _ in 0..40 {
                    floor.works(us(program::random(20)));
                    let target = cpu(program::random(8) as u32);
                    Calls::for_ever().call(target, || ()).expect("everybody lives");
                }
            });
        }
        run(&mut world);
        took_place += good.get();
        given_up += bad.get();
    }
    println!("{took_place} took place, {given_up} were given up");
    assert!(took_place > 300 && given_up > 20, "{took_place} took place, {given_up} were given up");
}

#[test]
fn a_late_cpu_is_named_with_what_it_is_in_and_everybody_goes_on_in_time() {
    let ran = AtomicU64::new(0);
    let mut world = world(&quiet(4));
    world.spawn(cpu(3), || {
        work_with_interrupts_off(ms(50));
        // Its call was withdrawn: it is not even interrupted.
        assert_eq!(counted(|counters| counters.calls_run.get()), 0);
    });
    for other in [1, 2] {
        world.spawn(cpu(other), || {
            let (time, ()) = took(|| program::advance(us(100)));
            assert!((ms(10)..ms(11)).contains(&time), "stopped until the deadline: {time:?}");
        });
    }
    world.spawn(cpu(0), || {
        program::advance(us(10));
        let (time, result) = took(|| {
            Calls::within(ms(10)).rendezvous(&set(0..4), |_| {
                ran.fetch_add(1, Relaxed);
            })
        });
        assert!((ms(10)..ms(10) + us(50)).contains(&time), "{time:?}");
        let message = result.as_ref().map_err(ToString::to_string).expect_err("one is late");
        assert!(
            message.contains("late for its stage prepare: ") && message.contains("interrupts disabled"),
            "{message}"
        );
        let (stage, late, diagnosis) = late(result);
        assert_eq!((stage, late), (Stage::Prepare, set([3])));
        let (target, diagnosis) = diagnosis.expect("it was probed");
        assert_eq!(target, cpu(3));
        assert!(matches!(diagnosis.target, TargetState::InterruptsDisabled { .. }), "{diagnosis}");
        assert_eq!(counted(|counters| counters.rendezvous_given_up.get()), 1);
        // The machine is in order.
        program::advance(ms(60));
        Calls::within(ms(1))
            .rendezvous(&set(0..4), |_| {
                ran.fetch_add(1, Relaxed);
            })
            .expect("all come");
    });
    run(&mut world);
    assert_eq!(ran.load(Relaxed), 4, "the second one only");
}

/// A CPU comes while it serves a long closure: it is late for the stage in which nobody serves any more.
#[test]
fn a_cpu_that_serves_too_long_is_late_for_the_next_stage() {
    let ran = AtomicU64::new(0);
    let mut world = world(&quiet(4));
    world.spawn(cpu(2), || {
        // It comes when CPUs 0 and 1 are in: until then CPU 1 serves the call of CPU 3.
        work_with_interrupts_off(us(300));
    });
    world.spawn(cpu(3), || {
        let mut guard = InterruptsOff::new();
        program::advance(us(100));
        let caller = Calls::for_ever().with_interrupts_off(&mut guard);
        caller.call(cpu(1), || program::advance(ms(20))).expect("CPU 1 serves");
    });
    world.spawn(cpu(0), || {
        program::advance(us(10));
        let result = Calls::within(ms(5)).rendezvous(&set(0..4), |_| {
            ran.fetch_add(1, Relaxed);
        });
        let (stage, late, diagnosis) = late(result);
        assert_eq!((stage, late), (Stage::InterruptsOff, set([1])));
        let (_, diagnosis) = diagnosis.expect("it was waited for");
        assert_eq!(diagnosis.target, TargetState::Busy { caller: Some(cpu(3)) });
    });
    run(&mut world);
    assert_eq!(ran.load(Relaxed), 0);
}

/// A hypervisor does not run the controller for 50 ms while it waits for a late CPU.
#[test]
fn a_controller_that_stands_still_keeps_nobody_longer_than_the_deadline() {
    let ran = AtomicU64::new(0);
    let mut world = world(&faulty(4, "stop:cpu=0:at=1ms:for=50ms"));
    world.spawn(cpu(3), || work_with_interrupts_off(ms(2)));
    for other in [1, 2] {
        world.spawn(cpu(other), || {
            let (time, ()) = took(|| program::advance(us(100)));
            assert!((ms(5)..ms(6)).contains(&time), "{time:?}");
        });
    }
    world.spawn(cpu(0), || {
        program::advance(us(10));
        let result = Calls::within(ms(5)).rendezvous(&set(0..4), |_| {
            ran.fetch_add(1, Relaxed);
        });
        let (stage, late, _) = late(result);
        // Everybody else was there.
        assert_eq!((stage, late), (Stage::Prepare, set([0])));
    });
    run(&mut world);
    assert_eq!(ran.load(Relaxed), 0);
}

#[test]
fn lost_rings_are_repeated_and_answered_ones_are_not() {
    let mut world = world(&faulty(16, "drop:n=1:to=3,drop:n=1:to=7"));
    world.spawn(cpu(0), || {
        let (time, result) = took(|| Calls::within(ms(5)).rendezvous(&set([0]), |_| ()));
        assert!(result.is_ok(), "{result:?}");
        let backoff = <SimMachine as Kernel>::FIRST_BACKOFF;
        assert!((backoff..backoff + us(50)).contains(&time), "one back-off: {time:?}");
        assert_eq!(counted(|counters| counters.rings_repeated.get()), 2);
    });
    run(&mut world);
}

#[test]
fn contexts_that_cannot_wait_are_refused() {
    let mut world = world(&quiet(3));
    world.spawn(cpu(2), || {
        Calls::close(&mut InterruptsOff::new());
    });
    world.spawn(cpu(0), || {
        program::advance(us(10));
        let ran = AtomicU64::new(0);
        let meets = |cpus: &SimCpuSet| {
            Calls::within(ms(1)).rendezvous(cpus, |_| {
                ran.fetch_add(1, Relaxed);
            })
        };
        let excluded = |result: Result| match result {
            Err(RendezvousError::Excluded(error)) => error,
            other => panic!("{other:?}"),
        };
        // From inside of a closure that is served, whatever it says about interrupts.
        let inside = Calls::for_ever()
            .call(cpu(1), || {
                let mut guard = InterruptsOff::new();
                let caller = Calls::within(ms(1)).with_interrupts_off(&mut guard);
                excluded(caller.rendezvous(&set([0]), |_| ()))
            })
            .expect("CPU 1 lives");
        assert_eq!(inside, ExclusiveError::InsideServed);
        // With interrupts off, and no guard.
        let off = InterruptsOff::<SimMachine>::new();
        assert_eq!(excluded(meets(&set([0]))), ExclusiveError::InterruptsOff);
        drop(off);
        // Too late, offline, or no CPU at all.
        let past = Calls::within(Duration::ZERO).rendezvous(&set([0]), |_| ());
        assert!(matches!(past, Err(RendezvousError::NotSent(CallError::DeadlinePassed))), "{past:?}");
        for (cpus, offline) in [(set(0..3), set([2])), (set([0, 1, 9]), set([9]))] {
            match meets(&cpus) {
                Err(RendezvousError::Offline(found)) => assert_eq!(found, offline),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(ran.load(Relaxed), 0);
        // From inside of a rendezvous; and calls are refused there too.
        Calls::within(ms(1))
            .rendezvous(&set([0, 1]), |_| {
                let mut guard = InterruptsOff::new();
                let caller = Calls::within(ms(1)).with_interrupts_off(&mut guard);
                assert_eq!(excluded(caller.rendezvous(&set([0]), |_| ())), ExclusiveError::InsideServed);
                let caller = Calls::for_ever().with_interrupts_off(&mut guard);
                let other = cpu(1 - SimMachine::current_cpu().number());
                assert_eq!(caller.call(other, || ()), Err(CallError::InRendezvous));
            })
            .expect("CPU 1 comes");
    });
    run(&mut world);
}

#[test]
fn whoever_waits_for_another_rendezvous_takes_part_in_it() {
    let ran = AtomicU64::new(0);
    let mut world = world(&quiet(3));
    for controller in 0..3 {
        let ran = &ran;
        world.spawn(cpu(controller), move || {
            for round in 0..20 {
                let mut guard = (round % 2 == 0).then(InterruptsOff::new);
                let caller = Calls::within(ms(2));
                let caller = match &mut guard {
                    Some(guard) => caller.with_interrupts_off(guard),
                    None => caller,
                };
                let result = caller.rendezvous(&set(0..3), |_| {
                    ran.fetch_add(1, Relaxed);
                });
                assert!(result.is_ok(), "{result:?}");
            }
        });
    }
    run(&mut world);
    assert_eq!(ran.load(Relaxed), 3 * 20 * 3);
}

/// A post that says on which CPU it runs, and finds out whether all are stopped.
struct Afterwards(&'static AtomicU64);

impl Deferred<SimMachine> for Afterwards {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(post: Self::Handle) {
        post.value().0.fetch_add(1, Relaxed);
    }
}

#[test]
fn what_it_posts_runs_afterwards_without_a_further_ring() {
    let posts: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || {
        Calls::within(ms(1))
            .rendezvous(&set([0, 2]), |_| {
                for target in 0..4 {
                    Calls::post::<Afterwards>(cpu(target), Box::new(Post::new(Afterwards(posts))))
                        .expect("online");
                }
                program::advance(us(30));
                assert_eq!(posts.load(Relaxed), 0, "nobody serves");
            })
            .expect("all come");
        // The others run theirs when they have left.
        program::advance(us(30));
    });
    run(&mut world);
    assert_eq!(posts.load(Relaxed), 8);
    assert_eq!(world.mailbox_counters(|counters| counters.rings_sent.get()), 3, "those of the rendezvous");
}

#[test]
fn a_closure_that_panics_keeps_nobody_and_its_cpu_is_named() {
    let (ready, ran) = (Flag::new(), AtomicU64::new(0));
    let over = Flag::new();
    let mut world = world(&quiet(4));
    world.spawn(cpu(2), || {
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let mut guard = InterruptsOff::new();
            ready.raise();
            let woken = Calls::poll_until(&mut guard, over.when(1), smpcall_machine::Deadline::NEVER);
            assert_eq!(woken, Woken::Met(0));
        }));
        assert!(unwound.is_err(), "it goes on panicking");
        assert!(SimMachine::interrupts_enabled());
    });
    world.spawn(cpu(0), || {
        ready.reached(1);
        let closure = |panics: Cpu| {
            let ran = &ran;
            move |cpu| {
                program::advance(us(5));
                if cpu == panics {
                    resume_unwind(Box::new("a closure unwinds"));
                }
                program::advance(us(20));
                ran.fetch_add(1, Relaxed);
            }
        };
        match Calls::within(ms(1)).rendezvous(&set(0..4), closure(cpu(2))) {
            Err(RendezvousError::Panicked(cpus)) => assert_eq!(cpus, set([2])),
            other => panic!("{other:?}"),
        }
        assert_eq!(ran.load(Relaxed), 3);
        // The controller's own: everybody goes on, and it goes on panicking.
        let unwound =
            catch_unwind(AssertUnwindSafe(|| Calls::within(ms(1)).rendezvous(&set(0..4), closure(cpu(0)))));
        assert!(unwound.is_err());
        assert!(SimMachine::interrupts_enabled());
        assert_eq!(ran.load(Relaxed), 6);
        let third = Calls::within(ms(1)).rendezvous(&set(0..4), closure(cpu(9)));
        assert!(third.is_ok(), "the machine is in order: {third:?}");
        over.raise();
    });
    run(&mut world);
    assert_eq!(ran.load(Relaxed), 10);
}

thread_local! {
    static OVERDUE: RefCell<Vec<(Option<Cpu>, Duration)>> = const { RefCell::new(Vec::new()) };
}

#[test]
fn a_closure_that_lasts_is_reported_and_waited_for() {
    let hooks = Hooks {
        overdue: Some(|target, diagnosis| {
            OVERDUE.with_borrow_mut(|seen| seen.push((target, diagnosis.waited)));
        }),
        ..Hooks::default()
    };
    let mut world = World::with_kernel(&quiet(4), hooks).expect("a machine");
    world.spawn(cpu(0), || {
        let (time, result) = took(|| {
            Calls::within(ms(1)).rendezvous(&set([1, 3]), |cpu| {
                program::advance(if cpu.number() == 3 { ms(10) } else { us(10) });
            })
        });
        assert!(result.is_ok(), "{result:?}");
        assert!((ms(10)..ms(11)).contains(&time), "{time:?}");
    });
    run(&mut world);
    let seen = OVERDUE.take();
    assert!(seen.len() >= 3 && seen.len() < 8, "with doubling intervals: {seen:?}");
    assert!(seen.iter().all(|(target, _)| *target == Some(cpu(3))), "{seen:?}");
}

#[test]
fn two_hundred_and_fifty_six_cpus_stop() {
    let floor = Floor::new();
    let mut config = quiet(256);
    config.faults = parse("drop:p=0.05:vector=0xfb").expect("faults");
    let mut world = world(&config);
    for other in 1..256 {
        let floor = &floor;
        world.spawn(cpu(other), move || {
            for _ in 0..10 {
                floor.works(us(program::random(30)));
                program::advance(us(program::random(30)));
            }
        });
    }
    world.spawn(cpu(0), || {
        for _ in 0..3 {
            let (time, result) =
                took(|| Calls::within(ms(20)).rendezvous(&set(0..256), |_| floor.runs(us(10))));
            assert!(result.is_ok(), "{result:?}");
            assert!(time < ms(5), "{time:?}");
        }
    });
    run(&mut world);
    assert_eq!(floor.ran.load(Relaxed), 3 * 256);
    assert_eq!(floor.most.load(Relaxed), 256);
}
