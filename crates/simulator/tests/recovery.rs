//! Recovery: what is lost is found and repeated about once, what is answered is not repeated, and who does not answer
//! is diagnosed. All waits, all posts.

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{Kernel, Post};
use smpcall_local_apic::Routing;
use smpcall_machine::{Deadline, EventKind, Instant, InterruptsOff};
use smpcall_simulator::campaign::{self, Options, Workload, default_routing};
use smpcall_simulator::faults::{Probability, parse};
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, SimMachine, World, program};
use support::{
    Calls, Cpu, Errand, Flag, Machine, POSTS_RUN, counted, cpu, faulty, ms, post_to, quiet, run, set,
    timed_out, took, us, world,
};

const FIRST_BACKOFF: Duration = <SimMachine as Kernel>::FIRST_BACKOFF;
const LONGEST_BACKOFF: Duration = <SimMachine as Kernel>::LONGEST_BACKOFF;

fn resent(world: &World<'_>) -> u64 {
    world.mailbox_counters(|counters| counters.rings_repeated.get())
}

#[test]
fn with_no_faults_two_hundred_thousand_calls_repeat_no_ring() {
    for cpus in [2, 16] {
        let report = campaign::run(&Options {
            cpus,
            routing: default_routing(cpus),
            calls: 100_000,
            workload: Workload::CALLS,
            drop: Probability::new(0.0).expect("a probability"),
            faults: Vec::new(),
            seed: 3,
        })
        .expect("a machine");
        assert_eq!((report.ipis.resent, report.ipis.lost, report.unreconciled), (0, 0, 0), "{cpus} CPUs");
        assert_eq!(report.calls, 100_000);
    }
}

/// One CPU calls another; the first, third and fourth ring are lost.
#[test]
fn each_lost_ring_that_somebody_waits_for_is_repeated_once() {
    let mut world = world(&faulty(2, "drop:n=1,drop:n=3,drop:n=4"));
    world.spawn(cpu(0), || {
        let (time, result) = took(|| Calls::for_ever().call(cpu(1), || 1));
        assert_eq!(result, Ok(1));
        assert!((FIRST_BACKOFF..FIRST_BACKOFF + us(20)).contains(&time), "after one back-off: {time:?}");
        assert_eq!(counted(|counters| counters.rings_repeated.get()), 1);
        // The second one loses its ring and the first repetition.
        let (time, result) = took(|| Calls::for_ever().call(cpu(1), || 2));
        assert_eq!(result, Ok(2));
        assert!((3 * FIRST_BACKOFF..3 * FIRST_BACKOFF + us(20)).contains(&time), "the second look: {time:?}");
        assert_eq!(counted(|counters| counters.rings_repeated.get()), 3);
        let (time, _) = took(|| Calls::for_ever().call(cpu(1), || 3));
        assert!(time < us(20), "not lost: {time:?}");
    });
    run(&mut world);
    assert_eq!(world.counters().ipis_lost, 3);
    assert_eq!(resent(&world), 3);
}

/// Random losses, and calls that wait: about as many rings are repeated as were lost.
#[test]
fn as_many_rings_are_repeated_as_were_lost() {
    let config = faulty(8, "drop:p=0.1:vector=0xfb");
    let mut world = world(&config);
    for caller in 0..8 {
        world.spawn(cpu(caller), move || {
            for call in 0..500 {
                let target = cpu((caller + 1 + call % 7) % 8);
                Calls::for_ever().call(target, || ()).expect("everybody lives");
            }
        });
    }
    run(&mut world);
    let (lost, resent) = (world.counters().ipis_lost, resent(&world));
    assert!(lost > 100, "{lost}");
    // A lost ring is not repeated if a later sender rings because a pass has emptied the mailbox meanwhile: a CPU that
    // itself waits with interrupts on takes whatever comes. It never takes more than one repetition for one loss.
    assert!(resent <= lost && resent >= lost / 2, "{lost} lost, {resent} repeated");
}

#[test]
fn fifteen_waiters_for_one_lost_ring_repeat_it_about_once() {
    let busy = Flag::new();
    let mut world = world(&faulty(16, "drop:n=1"));
    world.spawn(cpu(0), || {
        let _off = InterruptsOff::<SimMachine>::new();
        busy.raise();
        program::advance(us(30));
    });
    for caller in 1..16 {
        let busy = &busy;
        world.spawn(cpu(caller), move || {
            busy.reached(1);
            Calls::for_ever().call(cpu(0), || ()).expect("CPU 0 lives");
        });
    }
    run(&mut world);
    assert_eq!(world.counters().ipis_lost, 1);
    // They look within one microsecond of each other, and share the back-off; two may pass the check at once.
    assert!((1..=2).contains(&resent(&world)), "{} repetitions", resent(&world));
}

/// The target's back-off is shared however long the waiters wait for it.
#[test]
fn waiters_for_a_cpu_that_is_away_share_its_back_off() {
    let mut world = world(&faulty(16, "stop:cpu=0:at=1us:for=50ms"));
    for caller in 1..16 {
        world.spawn(cpu(caller), move || {
            program::advance(us(5 + 17 * u64::from(caller)));
            Calls::for_ever().call(cpu(0), || ()).expect("CPU 0 comes back");
        });
    }
    run(&mut world);
    // Each alone looks after 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 23.75, 31.75... ms: nine times in 50 ms. Together they
    // are allowed one repetition in 0.25 ms.
    let resent = resent(&world);
    assert!((9..15 * 9).contains(&resent), "{resent} repetitions");
    assert!(resent <= 50_000 / 250, "{resent} repetitions");
}

#[test]
fn a_ring_that_is_late_by_less_than_the_back_off_is_not_repeated() {
    let mut world = world(&faulty(4, "delay:by=200us:vector=0xfb"));
    for caller in 0..3 {
        world.spawn(cpu(caller), || {
            for _ in 0..20 {
                Calls::for_ever().call(cpu(3), || ()).expect("CPU 3 lives");
            }
        });
    }
    run(&mut world);
    assert_eq!(resent(&world), 0);
}

/// The repeated one overtakes the late one, which then finds nothing: the call is not run again.
#[test]
fn a_ring_that_is_later_than_that_is_repeated_and_harmless() {
    let ran = AtomicU64::new(0);
    let mut world = world(&faulty(2, "delay:by=400us:vector=0xfb"));
    world.spawn(cpu(0), || {
        for round in 1..=10 {
            Calls::for_ever().call(cpu(1), || ran.fetch_add(1, Relaxed)).expect("CPU 1 lives");
            program::advance(ms(1));
            assert_eq!(ran.load(Relaxed), round);
        }
    });
    run(&mut world);
    assert_eq!(resent(&world), 10);
}

#[test]
fn a_duplicated_ring_runs_nothing_twice() {
    let (ran, many) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut world = world(&faulty(4, "duplicate:vector=0xfb"));
    world.spawn(cpu(0), || {
        for _ in 0..50 {
            Calls::for_ever().call(cpu(1), || ran.fetch_add(1, Relaxed)).expect("CPU 1 lives");
            Calls::for_ever()
                .call_others(|_| {
                    many.fetch_add(1, Relaxed);
                })
                .expect("everybody lives");
        }
        program::advance(us(50));
    });
    run(&mut world);
    assert_eq!((ran.load(Relaxed), many.load(Relaxed)), (50, 150));
    assert_eq!(resent(&world), 0);
}

#[test]
fn a_lost_ring_of_a_call_to_many_is_repeated_for_those_that_need_it() {
    let mut world = world(&faulty(8, "drop:n=1:to=3,drop:n=1:to=5"));
    world.spawn(cpu(0), || {
        let mut results = [None; 8];
        Calls::for_ever().call_many_into(&set(1..8), &mut results, |cpu| cpu).expect("everybody lives");
        assert!((1..8).all(|number| results[number as usize] == Some(cpu(number))));
        assert_eq!(counted(|counters| counters.rings_repeated.get()), 2);
        let repeated: Vec<Option<Cpu>> = SimMachine::mailboxes()
            .event_ring(cpu(0))
            .events()
            .filter(|event| event.kind == EventKind::RungAgain)
            .map(|event| event.other)
            .collect();
        assert_eq!(repeated, [Some(cpu(3)), Some(cpu(5))]);
    });
    run(&mut world);
}

/// An xAPIC that takes 1.5 ms to dispatch a command: the driver gives up after some microseconds, and the protocol
/// counts that as a lost ring.
#[test]
fn a_ring_that_the_controller_does_not_take_counts_as_lost_and_is_repeated() {
    let mut config = Config::new(3, Routing::Physical, 1);
    config.tick = None;
    config.cost.icr_dispatch = 1_500_000;
    let mut world = world(&config);
    world.spawn(cpu(0), || {
        Calls::for_ever().call(cpu(1), || ()).expect("the first command is taken");
        let (time, result) = took(|| Calls::for_ever().call(cpu(2), || 2));
        assert_eq!(result, Ok(2));
        // Each try writes the stuck command once more, and the probe after the third is a command too: looks at 0.25,
        // 0.75, 1.75, 3.75 and 7.75 ms may all find the controller busy, the one at 15.75 ms does not.
        assert!((us(1_500)..2 * LONGEST_BACKOFF).contains(&time), "{time:?}");
        assert!(counted(|counters| counters.rings_failed.get()) >= 3);
        let kinds: Vec<EventKind> = kinds_of(cpu(0));
        let rung = kinds.iter().rposition(|&kind| kind == EventKind::Rung).expect("it rang");
        assert_eq!(kinds[rung + 1], EventKind::RingFailed);
    });
    run(&mut world);
}

fn kinds_of(cpu: Cpu) -> Vec<EventKind> {
    SimMachine::mailboxes().event_ring(cpu).events().map(|event| event.kind).collect()
}

/// Runs a machine of which some CPUs never come to an end.
fn run_to(world: &mut World<'_>, millis: u64) {
    world.run(Instant::from_nanos(millis * 1_000_000));
}

/// The ring of a post is lost, and nobody waits for it.
fn post_without_ring(faults: &str) -> (World<'static>, Instant) {
    POSTS_RUN.set(0);
    let mut config = Config::new(2, default_routing(2), 1);
    config.faults = parse(faults).expect("faults");
    let mut world = World::with_kernel(&config, Hooks::default()).expect("a machine");
    world.spawn(cpu(0), || {
        post_to(1);
        program::advance(us(50));
        assert_eq!(POSTS_RUN.get(), 0, "its ring is lost");
    });
    run(&mut world);
    let end = world.time();
    (world, end)
}

const TICK: Duration = ms(4);

#[test]
fn the_tick_finds_a_post_whose_ring_was_lost() {
    let (mut world, sent) = post_without_ring("drop:n=1:vector=0xfb");
    world.run_on(sent.plus(2 * TICK));
    assert_eq!(POSTS_RUN.get(), 1);
    assert_eq!(world.counters().ipis_sent, 1, "and rings nobody for it");
}

#[test]
fn the_backstop_rings_a_tickless_cpu_that_has_a_post() {
    let (mut world, sent) = post_without_ring("drop:n=1:vector=0xfb,no-tick:cpu=1");
    // The first tick of the backstop CPU sees the mark, the next one that it still stands.
    world.run_on(sent.plus(3 * TICK));
    assert_eq!(POSTS_RUN.get(), 1);
    assert_eq!(resent(&world), 1);
    assert_eq!(world.mailbox_counters(|counters| counters.rings_sent.get()), 1);
    world.run_on(sent.plus(20 * TICK));
    assert_eq!(resent(&world), 1, "an empty mailbox is left alone");
}

#[test]
fn the_backstop_rings_again_if_its_ring_is_lost_too() {
    let (mut world, sent) = post_without_ring("drop:n=1:vector=0xfb,drop:n=2:vector=0xfb,no-tick:cpu=1");
    world.run_on(sent.plus(20 * TICK));
    assert_eq!((POSTS_RUN.get(), resent(&world)), (1, 2));
}

#[test]
fn the_backstop_leaves_alone_who_serves_or_polls_or_is_offline() {
    let quiet_since = AtomicU64::new(0);
    let (polling, over) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(4));
    world.spawn(cpu(1), || {
        let mut guard = InterruptsOff::new();
        polling.raise();
        Calls::poll_until(&mut guard, over.when(1), Deadline::NEVER);
    });
    world.spawn(cpu(2), || Calls::close(&mut InterruptsOff::new()));
    world.spawn(cpu(0), || {
        polling.reached(1);
        for _ in 0..5 {
            Calls::for_ever().call(cpu(3), || ()).expect("CPU 3 lives");
            assert_eq!(Calls::backstop(), 0);
            quiet_since.fetch_add(1, Relaxed);
        }
        over.raise();
    });
    run(&mut world);
    assert_eq!(quiet_since.load(Relaxed), 5);
}

/// A CPU that is marked at every look, but has served in between, is alive.
#[test]
fn the_backstop_rings_only_what_stood_unserved_since_its_last_look() {
    POSTS_RUN.set(0);
    let (closed, marked, looked) = (Flag::new(), Flag::new(), Flag::new());
    let mut world = world(&quiet(2));
    world.spawn(cpu(1), || {
        let mut off = InterruptsOff::<SimMachine>::new();
        closed.raise();
        for round in 1..=4 {
            marked.reached(round);
            looked.reached(round);
            if round < 3 {
                assert!(Calls::may_halt(&mut off), "served");
            }
        }
    });
    world.spawn(cpu(0), || {
        closed.reached(1);
        let mut rung = Vec::new();
        for _ in 0..4 {
            post_to(1);
            marked.raise();
            program::advance(ms(20));
            rung.push(Calls::backstop());
            looked.raise();
            program::advance(us(10));
        }
        assert_eq!(rung, [0, 0, 0, 1], "it did not serve after the third");
    });
    run(&mut world);
}

#[test]
fn before_a_halt_the_mailbox_is_served_and_quiet() {
    POSTS_RUN.set(0);
    let (off, posted) = (Flag::new(), Flag::new());
    let mut world = world(&faulty(2, "drop:n=1"));
    world.spawn(cpu(1), || {
        let mut guard = InterruptsOff::new();
        assert!(Calls::may_halt(&mut guard), "there is nothing");
        off.raise();
        posted.reached(1);
        assert!(Calls::may_halt(&mut guard), "the post was served, though its ring is lost");
        assert_eq!(POSTS_RUN.get(), 1);
        assert!(!SimMachine::interrupts_enabled());
        off.raise();
        // Halts with interrupts enabled in one step, and is woken by a ring.
        program::halt();
        assert_eq!(POSTS_RUN.get(), 2);
        drop(guard);
    });
    world.spawn(cpu(0), || {
        off.reached(1);
        post_to(1);
        posted.raise();
        off.reached(2);
        program::advance(us(10));
        post_to(1);
    });
    run(&mut world);
    assert_eq!(world.counters().ipis_sent, 2, "a quiet mailbox is rung again");
}

#[test]
fn poll_serves_what_is_there_and_says_so() {
    POSTS_RUN.set(0);
    let mut world = world(&faulty(2, "drop:p=1"));
    let mut served = 0;
    world.spawn(cpu(0), || {
        assert!(!Calls::poll());
        post_to(0);
        assert!(Calls::poll());
        assert!(!Calls::poll());
        served = POSTS_RUN.get();
    });
    run(&mut world);
    drop(world);
    assert_eq!(served, 1);
}

#[test]
fn the_event_rings_tell_the_story_of_a_call_in_order() {
    use EventKind::{CallClaimed, CallCompleted, CallQueued, CallRun, MailboxOpened, Rung, RungAgain};
    let mut world = world(&faulty(2, "drop:n=1"));
    world.spawn(cpu(0), || Calls::for_ever().call(cpu(1), || ()).expect("CPU 1 lives"));
    run(&mut world);
    let mailboxes = world.mailboxes().expect("it has a kernel");
    let events = |number| mailboxes.event_ring(cpu(number)).events().collect::<Vec<_>>();
    let kinds = |number| events(number).iter().map(|event| event.kind).collect::<Vec<_>>();
    assert_eq!(kinds(0), [MailboxOpened, CallQueued, Rung, RungAgain, CallCompleted]);
    assert_eq!(kinds(1), [MailboxOpened, CallClaimed, CallRun]);
    for (number, other) in [(0, cpu(1)), (1, cpu(0))] {
        let events = events(number);
        assert!(events.windows(2).all(|pair| pair[0].time <= pair[1].time), "{events:?}");
        assert!(events.iter().all(|event| event.cpu == cpu(number)));
        let named = events.iter().filter_map(|event| event.other).collect::<Vec<_>>();
        assert!(!named.is_empty() && named.iter().all(|&named| named == other));
    }
    let [queued, completed] = [events(0)[1].time, events(0)[4].time];
    let [claimed, ran] = [events(1)[1].time, events(1)[2].time];
    assert!(queued < claimed && claimed <= ran && ran < completed);
}

#[test]
fn a_call_that_is_given_up_is_a_story_too() {
    use EventKind::{CallQueued, CallWithdrawn, MailboxOpened, ProbeSent, Rung, RungAgain};
    let mut world = world(&faulty(2, "stop:cpu=1:at=1us"));
    world.spawn(cpu(0), || {
        program::advance(us(10));
        timed_out(Calls::within(us(700)).call(cpu(1), || ()));
        assert_eq!(kinds_of(cpu(0)), [MailboxOpened, CallQueued, Rung, ProbeSent, RungAgain, CallWithdrawn]);
    });
    run_to(&mut world, 10);
    assert!(world.inspect(cpu(0)).ended);
}

/// Everything that can become of a call, on a machine that loses rings; nobody dies.
#[test]
fn the_counters_add_up() {
    POSTS_RUN.set(0);
    let posts_queued = AtomicU64::new(0);
    let mut world = world(&faulty(8, "drop:p=0.2:vector=0xfb,wedge:cpu=2:at=3ms:for=5ms"));
    for me in 0..8 {
        let posts_queued = &posts_queued;
        world.spawn(cpu(me), move || {
            for round in 0..60 {
                let target = cpu(program::random(8) as u32);
                let limit = us(program::random(600));
                let _ = Calls::within(limit).call(target, || program::advance(us(3)));
                let _ = Calls::within(limit).call_static(target, || program::advance(us(3)));
                let _ = Calls::within(limit).call_many(&set(0..8), |_| ());
                let posted = Calls::post::<Errand>(target, Box::new(Post::new(Errand)));
                posts_queued.fetch_add(u64::from(posted.is_ok()), Relaxed);
                program::advance(us(program::random(100)));
                if round % 16 == me {
                    let mut guard = InterruptsOff::new();
                    Calls::close(&mut guard);
                    program::advance(us(20));
                    Calls::open();
                }
            }
        });
    }
    run(&mut world);
    let now = world.time();
    world.run_on(now.plus(ms(1)));
    let sum = |counter: fn(&smpcall::Counters) -> u64| world.mailbox_counters(counter);
    let [sent, ran] = [sum(|c| c.calls_sent.get()), sum(|c| c.calls_run.get())];
    let [withdrawn, refused] = [sum(|c| c.calls_withdrawn.get()), sum(|c| c.calls_refused.get())];
    assert!(ran > 1000 && withdrawn > 100 && refused > 10, "{ran} {withdrawn} {refused}");
    assert_eq!(sent, ran + withdrawn + refused, "{ran} ran, {withdrawn} were withdrawn, {refused} refused");

    assert_eq!(sum(|c| c.posts_sent.get()), posts_queued.load(Relaxed));
    assert_eq!(sum(|c| c.posts_run.get()), POSTS_RUN.get());
    let machine = world.counters();
    let [rings, repeated] = [sum(|c| c.rings_sent.get()), sum(|c| c.rings_repeated.get())];
    let probes = sum(|c| c.probes_sent.get());
    assert_eq!(machine.ipis_sent, rings + repeated + probes);
    assert_eq!(sum(|c| c.rings_taken.get()), machine.taken[smpcall_simulator::RING_VECTOR as usize]);
    // One answer does for two probers that ask at the same time.
    let answered = sum(|c| c.probes_answered.get());
    assert!(answered > 0 && answered <= machine.nmis_taken && machine.nmis_taken <= probes);
}
