//! Campaigns: machines of 2 to 256 CPUs under every kind of fault, with every call reconciled; and floods of callers.

mod support;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::cell::Cell;

use smpcall::{Deferred, Kernel, Post};
use smpcall_local_apic::Routing;
use smpcall_machine::{Deadline, Instant, InterruptsOff, Woken};
use smpcall_simulator::campaign::crashes::{self, Context};
use smpcall_simulator::campaign::{self, Options, Report, Workload, default_routing};
use smpcall_simulator::faults::{Probability, parse};
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{Config, SimMachine, World, program};
use support::{Calls, Flag, Machine, cpu, ms, quiet, run, us, world};

fn campaign_on(cpus: usize, calls: u64, drop: f64, faults: &str, seed: u64) -> Report {
    let faults = if faults.is_empty() { Vec::new() } else { parse(faults).expect("faults") };
    let drop = Probability::new(drop).expect("a probability");
    let workload = Workload::CALLS;
    let options = Options { cpus, routing: default_routing(cpus), calls, workload, drop, faults, seed };
    campaign::run(&options).expect("a machine")
}

/// A campaign in which nobody dies: every call ends, every post runs.
fn reconciles(cpus: usize, calls: u64, drop: f64, faults: &str) -> Report {
    let report = campaign_on(cpus, calls, drop, faults, 7 + cpus as u64);
    assert_eq!(report.unreconciled, 0, "{report:?}");
    assert_eq!((report.calls, report.orphaned), (calls, 0), "{report:?}");
    assert_eq!(report.completed + report.told, calls, "{report:?}");
    assert!(report.completed > calls / 2, "{report:?}");
    assert_eq!(report.posts.queued, report.posts.run, "{report:?}");
    assert!(report.posts.queued > 0, "{report:?}");
    if drop > 0.0 {
        assert!(report.ipis.lost > 0 && report.ipis.resent > 0, "{report:?}");
    }
    report
}

#[test]
fn without_faults_everything_reconciles() {
    for (cpus, calls) in [(2, 20_000), (16, 20_000), (64, 20_000), (256, 20_000)] {
        let report = reconciles(cpus, calls, 0.0, "");
        assert_eq!(report.ipis.lost, 0, "{report:?}");
    }
}

#[test]
fn with_one_ring_in_a_hundred_lost_everything_reconciles() {
    for (cpus, calls) in [(2, 20_000), (16, 40_000), (64, 20_000), (256, 20_000)] {
        reconciles(cpus, calls, 0.01, "");
    }
}

#[test]
fn with_every_second_ring_lost_everything_reconciles() {
    for (cpus, calls) in [(2, 20_000), (16, 20_000), (64, 20_000), (256, 10_000)] {
        reconciles(cpus, calls, 0.5, "");
    }
}

#[test]
fn late_and_duplicated_rings_reconcile() {
    for cpus in [2, 16, 64] {
        reconciles(cpus, 10_000, 0.0, "delay:by=300us:p=0.2");
        reconciles(cpus, 10_000, 0.01, "duplicate:p=0.5");
        reconciles(
            cpus,
            10_000,
            0.1,
            "delay:by=2ms:p=0.05:vector=0xfb,duplicate:p=0.1,delay:by=40us:p=0.5:to=1",
        );
    }
}

#[test]
fn cpus_that_are_away_for_a_time_reconcile() {
    for cpus in [2, 16, 64] {
        reconciles(cpus, 10_000, 0.01, "wedge:cpu=1:at=500us:for=3ms");
        reconciles(cpus, 10_000, 0.01, "stop:cpu=1:at=500us:for=3ms,stop:cpu=0:at=2ms:for=30ms");
        reconciles(cpus, 10_000, 0.0, "wedge:cpu=0:at=100us:for=100us,wedge:cpu=0:at=1ms:for=50ms");
    }
}

#[test]
fn cpus_without_ticks_reconcile() {
    reconciles(16, 20_000, 0.1, "no-tick:cpu=0,no-tick:cpu=1,no-tick:cpu=7,no-tick:cpu=15");
    reconciles(2, 10_000, 0.3, "no-tick:cpu=1");
}

/// Nobody but the dead one's callers may lose anything, and those whose call it had claimed are told so for ever.
#[test]
fn cpus_that_die_take_only_their_own_calls_with_them() {
    for faults in ["wedge:cpu=1:at=1ms", "stop:cpu=1:at=1ms", "wedge:cpu=1:at=1ms,stop:cpu=3:at=2ms"] {
        for (cpus, drop) in [(16, 0.0), (16, 0.05), (64, 0.01)] {
            let report = campaign_on(cpus, 20_000, drop, faults, 5);
            assert_eq!(report.unreconciled, 0, "{faults}: {report:?}");
            let dead = faults.split(',').count() as u64;
            // A CPU has at most its levels' worth of calls under way, each to all others at the most.
            assert!(report.orphaned <= dead * 4 * cpus as u64, "{faults}: {report:?}");
            assert_eq!(report.calls, report.completed + report.told, "{faults}: {report:?}");
            assert!(report.calls > 1_000, "{faults}: {report:?}");
            assert!(report.told > 0, "callers of the dead are told: {report:?}");
        }
    }
}

#[test]
fn every_routing_reconciles() {
    for routing in Routing::ALL {
        let report = campaign::run(&Options {
            cpus: 8,
            routing,
            calls: 10_000,
            workload: Workload::MIXED,
            drop: Probability::new(0.05).expect("a probability"),
            faults: Vec::new(),
            seed: 11,
        })
        .expect("a machine");
        assert_eq!((report.unreconciled, report.calls), (0, 10_000), "{routing}: {report:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_campaign_and_another_one_another() {
    let report = |seed| campaign_on(16, 5_000, 0.1, "delay:by=100us:p=0.1", seed);
    assert_eq!(report(1), report(1));
    assert_ne!(report(1), report(2));
}

/// All kinds of faults, in one list. The clock of one CPU stands still for a time, and no CPU is dead for ever.
const ALL_FAULTS: &str = "delay:by=200us:p=0.02,duplicate:p=0.02,wedge:cpu=3:at=10ms:for=5ms,stop:cpu=5:at=20ms:for=8ms,\
    nmi-wedge:cpu=7:at=5ms:for=3ms,pause:at=30ms:for=4ms,pause:at=50ms:for=2ms:clock-stops,\
    clock-stops:cpu=6:at=40ms:for=6ms,icr-busy:cpu=4:at=15ms:for=3ms,spurious:cpu=2:at=12ms,lose-tick:p=0.05,\
    delay-tick:by=1ms:p=0.05,no-tick:cpu=8";

fn everything(workload: &str, faults: &str, seed: u64) -> Report {
    let report = campaign::run(&Options {
        cpus: 16,
        routing: Routing::Physical,
        calls: 60_000,
        workload: workload.parse().expect("a workload"),
        drop: Probability::new(0.01).expect("a probability"),
        faults: parse(faults).expect("faults"),
        seed,
    })
    .expect("a machine");
    assert_eq!(report.unreconciled, 0, "seed {seed}: {report:?}");
    for errands in [report.posts, report.work] {
        assert_eq!(errands.queued, errands.run + errands.abandoned + errands.lost, "seed {seed}: {report:?}");
    }
    report
}

#[test]
fn cpus_that_come_and_go_and_stop_for_each_other_under_all_faults_reconcile() {
    let mut sum = Report::default();
    for seed in 0..10 {
        let report = everything("calls,posts,work,hotplug,rendezvous", ALL_FAULTS, seed);
        assert_eq!((report.calls, report.orphaned), (60_000, 0), "seed {seed}: {report:?}");
        assert_eq!((report.posts.lost, report.work.lost), (0, 0), "seed {seed}: {report:?}");
        sum.add(&report);
    }
    let (hotplug, rendezvous) = (sum.hotplug, sum.rendezvous);
    assert!(hotplug.ups > 5 && hotplug.downs > 5 && hotplug.refused > 5, "{sum:?}");
    assert!(rendezvous.run > 50 && rendezvous.backed_out > 0 && rendezvous.refused > 0, "{sum:?}");
    assert!(sum.work.run > 1_000 && sum.posts.refused > 0, "{sum:?}");
}

#[test]
fn cpus_that_are_fenced_wherever_they_are_take_only_their_own_calls_with_them() {
    let mut sum = Report::default();
    for seed in 0..20 {
        let report = everything("all", "", seed);
        assert_eq!(report.calls + report.orphaned, 60_000, "seed {seed}: {report:?}");
        sum.add(&report);
    }
    assert!(sum.hotplug.fenced > 5, "{sum:?}");
    assert!(sum.orphaned > 0, "some were fenced in the middle of a call: {sum:?}");
    // A call to many has a target on each CPU, and a CPU has four levels.
    assert!(sum.orphaned <= sum.hotplug.fenced * 4 * 16, "{sum:?}");
}

#[test]
fn a_campaign_with_dead_cpus_that_are_declared_dead_ends() {
    for seed in 0..5 {
        everything("all", "stop:cpu=9:at=5ms,nmi-wedge:cpu=4:at=2ms", seed);
    }
}

#[test]
fn a_workload_says_what_it_is_in_the_words_that_make_it() {
    for workload in [Workload::CALLS, Workload::MIXED, Workload::ALL] {
        assert_eq!(workload.to_string().parse(), Ok(workload));
    }
    assert_eq!("all".parse(), Ok(Workload::ALL));
    for (text, words) in [("", "not ``"), ("calls,naps", "not `naps`"), ("posts,work", "needs calls")] {
        let error = text.parse::<Workload>().expect_err("is refused").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn crashes_from_every_context_of_a_campaign_end_within_their_bound_with_every_cpu_named() {
    for (cpus, routing, runs) in
        [(16, Routing::X2ApicCluster, 400), (8, Routing::Flat, 400), (2, Routing::Flat, 100)]
    {
        let drop = Probability::new(0.01).expect("a probability");
        let options =
            Options { cpus, routing, calls: 0, workload: Workload::ALL, drop, faults: Vec::new(), seed: 1 };
        let sum = crashes::run(&options, runs, |_| ()).expect("a machine");
        assert_eq!((sum.broken, &sum.first_broken, sum.runs), (0, &None, runs), "{sum:?}");
        assert_eq!(sum.saved + sum.missing + sum.offline, runs * cpus as u64, "{sum:?}");
        assert_eq!(sum.contexts.values().sum::<u64>(), runs);
        if cpus > 2 {
            let of = |context| sum.contexts.get(&context).copied().unwrap_or(0);
            for context in [Context::Nmi, Context::Task, Context::Closure, Context::Post, Context::Work] {
                assert!(of(context) > 0, "{context:?}: {sum:?}");
            }
            for context in [Context::Interrupt, Context::Rendezvous, Context::Offline, Context::Starting] {
                assert!(of(context) > 0, "{context:?}: {sum:?}");
            }
            assert!(sum.lost > 0 && sum.missing > 0 && sum.offline > 0, "{sum:?}");
        }
        assert_eq!(
            sum,
            crashes::run(&options, runs, |_| ()).expect("a machine"),
            "the same seed, the same crashes"
        );
    }
}

struct Errand;

impl Deferred<SimMachine> for Errand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        program::advance(us(1));
    }
}

/// Calls and posts of all CPUs under faults, recorded to the last event.
fn traced(seed: u64) -> Vec<u8> {
    let mut config = Config::new(16, Routing::X2ApicCluster, seed);
    config.faults = parse("drop:p=0.1,duplicate:p=0.1,wedge:cpu=3:at=100us:for=400us").expect("faults");
    config.trace = true;
    let mut world = World::with_kernel(&config, Hooks::default()).expect("a machine");
    for me in 0..16 {
        world.spawn(cpu(me), || {
            for _ in 0..20 {
                let target = cpu(program::random(16) as u32);
                let limit = us(100 + program::random(2_000));
                let _ = Calls::within(limit).call(target, || program::advance(us(program::random(5))));
                let _ = Calls::within(limit).call_others(|_| ());
                let mut guard = InterruptsOff::new();
                let _ = Calls::within(limit).with_interrupts_off(&mut guard).call(target, || ());
                Calls::post::<Errand>(target, Box::new(Post::new(Errand))).expect("queued");
            }
        });
    }
    run(&mut world);
    world.trace().to_bytes()
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    let first = traced(1);
    assert!(first.len() > 100_000, "{} bytes", first.len());
    assert!(first == traced(1), "the traces differ");
    assert!(first != traced(2));
}

/// What a flood costs CPU 0, which calls CPU 1 a few times while 14 others call it as fast as they can.
#[derive(Debug)]
struct Flooded {
    /// The longest time from a ring until CPU 0 had seen that its call had run.
    wait: Duration,
    /// The longest call, from its beginning until it returned.
    call: Duration,
    /// The most closures of others that ran in one call.
    served: u64,
}

/// The closure that CPU 0 calls works for `work`, those of the flood for 1 us.
fn under_flood(interrupts_off: bool, work: Duration) -> Flooded {
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let (longest, most) = (Cell::new(Duration::ZERO), Cell::new(0));
    let mut world = world(&quiet(16));
    for caller in 2..16 {
        let (over, served) = (&over, &served);
        world.spawn(cpu(caller), move || {
            while !over.load(Relaxed) {
                let flood = || {
                    served.fetch_add(1, Relaxed);
                    program::advance(us(1));
                };
                Calls::for_ever().call(cpu(0), flood).expect("CPU 0 lives");
            }
        });
    }
    world.spawn(cpu(0), || {
        for _ in 0..10 {
            program::advance(us(50));
            let mut guard = interrupts_off.then(InterruptsOff::new);
            let (started, before) = (SimMachine::now(), served.load(Relaxed));
            let work = || program::advance(work);
            match &mut guard {
                Some(guard) => Calls::for_ever().with_interrupts_off(guard).call(cpu(1), work),
                None => Calls::for_ever().call(cpu(1), work),
            }
            .expect("CPU 1 lives");
            longest.set(longest.get().max(SimMachine::now().since(started)));
            most.set(most.get().max(served.load(Relaxed) - before));
        }
        over.store(true, Relaxed);
    });
    run(&mut world);
    let mailboxes = world.mailboxes().expect("it has a kernel");
    let longest_wait = mailboxes.get(cpu(0)).map_or(0, |mailbox| mailbox.counters().longest_wait.get());
    assert!(most.get() > 0, "the flood reached it");
    Flooded { wait: Duration::from_nanos(longest_wait), call: longest.get(), served: most.get() }
}

const BUDGET: u64 = <SimMachine as Kernel>::BUDGET as u64;
/// What a closure of the flood costs at the most, with all that is around it: generously.
const EACH: Duration = us(2);

#[test]
fn a_waiter_with_interrupts_off_sees_after_every_pass_of_a_flood_that_its_call_has_run() {
    let flooded = under_flood(true, us(2));
    // The pass that is under way when the call has run, and at the most one before: 14 closures each.
    assert!(flooded.wait < us(2) + EACH * 2 * 14, "{flooded:?}");
    // It returns at once then; what has come in since is the next interrupt's.
    assert!(flooded.call < us(2) + EACH * 2 * 14 && flooded.served <= 2 * 14, "{flooded:?}");
}

#[test]
fn a_flood_holds_a_caller_with_interrupts_on_up_for_one_budget_at_the_most() {
    let work = us(600);
    let flooded = under_flood(false, work);
    // The last pass may go over the budget, by 14 closures.
    assert!(flooded.served <= BUDGET + 2 * 14, "{flooded:?}");
    assert!(flooded.call < work + EACH * (BUDGET as u32 + 2 * 14), "{flooded:?}");
}

/// A flood of posts that never ends, by a CPU whose posts post themselves again.
#[test]
fn posts_that_post_themselves_again_starve_neither_waiter_nor_caller() {
    struct Again;
    impl Deferred<SimMachine> for Again {
        type Handle = Box<Post<SimMachine, Self>>;
        fn run(handle: Self::Handle) {
            Calls::post::<Self>(SimMachine::current_cpu(), handle).expect("queued again");
        }
    }
    let mut config = quiet(3);
    config.tick = Some(ms(4));
    let never = Flag::new();
    let mut world = world(&config);
    world.spawn(cpu(1), || {
        for _ in 0..3 {
            Calls::post::<Again>(cpu(1), Box::new(Post::new(Again))).expect("queued");
        }
        // The mailbox is never quiet: the deadline ends this all the same.
        let mut guard = InterruptsOff::new();
        let started = SimMachine::now();
        let woken = Calls::poll_until(&mut guard, never.when(1), Deadline::within::<SimMachine>(us(100)));
        assert_eq!(woken, Woken::Deadline);
        assert!(SimMachine::now().since(started) < us(100) + EACH * BUDGET as u32);
        drop(guard);
        // Interrupted by the flood, this goes on all the same.
        program::advance(us(100));
        assert_eq!(Calls::for_ever().call(cpu(2), || 2), Ok(2));
        let mut guard = InterruptsOff::new();
        assert_eq!(Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(2), || 3), Ok(3));
    });
    world.spawn(cpu(0), || {
        program::advance(us(50));
        assert_eq!(Calls::for_ever().call(cpu(1), || 1), Ok(1));
    });
    world.run(Instant::from_nanos(1_000_000_000));
    assert!((0..3).all(|number| world.inspect(cpu(number)).ended), "{:?}", world.time());
    assert!(world.mailbox_counters(|counters| counters.budgets_spent.get()) > 0);
}

/// Three budgets of posts, and a caller behind them.
#[test]
fn a_burst_of_posts_is_run_in_order_and_before_a_later_call() {
    struct Numbered(u64);
    thread_local! { static NEXT: Cell<u64> = const { Cell::new(0) }; }
    impl Deferred<SimMachine> for Numbered {
        type Handle = Box<Post<SimMachine, Self>>;
        fn run(handle: Self::Handle) {
            assert_eq!(handle.value().0, NEXT.replace(handle.value().0 + 1));
        }
    }
    NEXT.set(0);
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        for number in 0..3 * BUDGET {
            Calls::post::<Numbered>(cpu(1), Box::new(Post::new(Numbered(number)))).expect("queued");
        }
        Calls::for_ever().call(cpu(1), || assert_eq!(NEXT.get(), 3 * BUDGET)).expect("CPU 1 lives");
    });
    world.spawn(cpu(1), || {
        let _off = InterruptsOff::<SimMachine>::new();
        program::advance(ms(20));
    });
    run(&mut world);
    assert_eq!(NEXT.get(), 3 * BUDGET);
}

/// Flooding sources have the lowest numbers; those with higher ones are served all the same.
#[test]
fn a_flood_starves_no_other_source() {
    let (over, longest) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut world = world(&quiet(64));
    for caller in 1..32 {
        let over = &over;
        world.spawn(cpu(caller), move || {
            while !over.load(Relaxed) {
                Calls::for_ever().call(cpu(0), || program::advance(us(1))).expect("CPU 0 lives");
            }
        });
    }
    world.spawn(cpu(63), || {
        for _ in 0..30 {
            program::advance(us(100));
            let started = SimMachine::now();
            Calls::for_ever().call(cpu(0), || ()).expect("CPU 0 lives");
            longest.fetch_max(SimMachine::now().since(started).as_nanos() as u64, Relaxed);
        }
        over.store(true, Relaxed);
    });
    run(&mut world);
    // Two rounds over 31 sources; and once in a budget the CPU turns away until somebody's back-off has passed.
    let back_off = 2 * <SimMachine as Kernel>::FIRST_BACKOFF;
    let longest = Duration::from_nanos(longest.load(Relaxed));
    assert!(longest < EACH * 2 * 31 + back_off, "{longest:?}");
}
