//! Deferred work on machines in virtual time: in order, once, with interrupts enabled, after the interrupt; never on an
//! offline CPU, and never lost with one.

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::cell::RefCell;

use smpcall::{Deferred, Kernel, Post, PostRefusal};
use smpcall_machine::{Deadline, Instant, InterruptsOff};
use smpcall_simulator::{InterruptFrame, RING_VECTOR, RunEnd, SimMachine, TIMER_VECTOR, World, program};
use support::{Calls, Flag, Machine, counted, cpu, faulty, ms, quiet, run, took, us};

thread_local! {
    /// Number and CPU of each request that was done, in order.
    static DONE: RefCell<Vec<(u64, u32)>> = const { RefCell::new(Vec::new()) };
}

/// A request of a device whose completion is raised on the CPU that made it.
struct Request {
    number: u64,
    /// How long its completion takes, in microseconds.
    time: u64,
}

impl Deferred<SimMachine> for Request {
    type Handle = Box<Post<SimMachine, Self>>;
    const IS_WORK: bool = true;

    fn run(request: Self::Handle) {
        assert!(SimMachine::interrupts_enabled());
        program::advance(us(request.value().time));
        let me = SimMachine::current_cpu().number();
        DONE.with_borrow_mut(|done| done.push((request.value().number, me)));
    }
}

#[allow(clippy::unnecessary_box_returns, reason = "a box is what is posted")]
fn request(number: u64, time: u64) -> Box<Post<SimMachine, Request>> {
    Box::new(Post::new(Request { number, time }))
}

fn done() -> Vec<(u64, u32)> {
    DONE.take()
}

fn handle_ring(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    Calls::handle_ring();
    Calls::exit_interrupt();
}

fn handle_tick(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    Calls::tick();
    Calls::exit_interrupt();
}

/// A machine whose handlers run deferred work.
fn working<'p>(config: &smpcall_simulator::Config) -> World<'p> {
    let mut world = support::world(config);
    world.set_handler(RING_VECTOR, handle_ring);
    world.set_handler(TIMER_VECTOR, handle_tick);
    world
}

#[test]
fn a_hundred_and_eight_requests_are_done_in_order_with_interrupts_enabled() {
    let mut world = working(&quiet(2));
    world.spawn(cpu(0), || {
        for number in 0..108 {
            Calls::post::<Request>(cpu(1), request(number, 1)).expect("online");
        }
    });
    world.spawn(cpu(1), || program::advance(ms(1)));
    run(&mut world);
    assert_eq!(done(), (0..108).map(|number| (number, 1)).collect::<Vec<_>>());
    assert_eq!(world.mailbox_counters(|counters| counters.work_run.get()), 108);
    assert_eq!(world.mailbox_counters(|counters| counters.posts_run.get()), 0);
    assert_eq!(world.mailbox_counters(|counters| counters.posts_sent.get()), 108);
}

#[test]
fn a_call_is_served_while_work_runs_and_more_work_waits_for_its_turn() {
    let mut world = working(&quiet(2));
    world.spawn(cpu(0), || {
        Calls::post::<Request>(cpu(1), request(1, 500)).expect("online");
        program::advance(us(50));
        Calls::post::<Request>(cpu(1), request(2, 1)).expect("online");
        let (time, result) = took(|| Calls::for_ever().call(cpu(1), SimMachine::now));
        assert!(result.is_ok() && time < us(20), "interrupts are enabled: {time:?}");
        assert!(
            DONE.with_borrow(Vec::is_empty),
            "the first is not done, and the second does not interrupt it"
        );
    });
    world.spawn(cpu(1), || program::advance(ms(2)));
    run(&mut world);
    assert_eq!(done(), [(1, 1), (2, 1)]);
}

#[test]
fn a_tick_finds_work_whose_ring_was_lost() {
    let mut config = faulty(2, "drop:n=1:vector=0xfb");
    config.tick = Some(ms(1));
    let mut world = working(&config);
    world.spawn(cpu(0), || {
        Calls::post::<Request>(cpu(1), request(1, 1)).expect("online");
        program::advance(ms(3));
    });
    world.run(Instant::from_nanos(3_000_000));
    assert_eq!(done(), [(1, 1)]);
    assert_eq!(world.counters().ipis_lost, 1);
}

#[test]
fn an_idle_loop_does_not_halt_over_work() {
    let mut world = working(&quiet(2));
    world.spawn(cpu(0), || {
        let mut guard = InterruptsOff::new();
        Calls::post::<Request>(cpu(0), request(1, 1)).expect("online");
        assert!(!Calls::may_halt(&mut guard), "the pass has listed it");
        assert!(Calls::has_work());
        assert!(!Calls::run_work(), "interrupts are off");
        drop(guard);
        // The ring to itself, which the first look has answered, runs it at its exit.
        program::advance(us(5));
        assert!(!Calls::has_work() && !Calls::run_work());
        assert!(Calls::may_halt(&mut InterruptsOff::new()));
        assert_eq!(counted(|counters| counters.work_run.get()), 1);
    });
    run(&mut world);
    assert_eq!(done(), [(1, 0)]);
}

/// A CPU that polls with interrupts off rings itself for the work that it has listed.
#[test]
fn work_that_a_waiter_with_interrupts_off_lists_runs_when_they_are_on() {
    let flag = Flag::new();
    let mut world = working(&quiet(2));
    world.spawn(cpu(0), || {
        let mut guard = InterruptsOff::new();
        Calls::poll_until(&mut guard, flag.when(1), Deadline::NEVER);
        assert!(DONE.with_borrow(Vec::is_empty));
        drop(guard);
        program::advance(us(5));
        assert_eq!(done(), [(1, 0)]);
    });
    world.spawn(cpu(1), || {
        program::advance(us(10));
        Calls::post::<Request>(cpu(0), request(1, 1)).expect("online");
        program::advance(us(10));
        flag.raise();
    });
    run(&mut world);
}

/// Raises itself again whenever it runs.
struct Restless(AtomicU64);

impl Deferred<SimMachine> for Restless {
    type Handle = &'static Post<SimMachine, Self>;
    const IS_WORK: bool = true;

    fn run(post: Self::Handle) {
        post.value().0.fetch_add(1, Relaxed);
        if post.value().0.load(Relaxed) < 20_000 {
            Calls::post::<Self>(SimMachine::current_cpu(), post).expect("online");
            // Its ring is taken, and lists it, before this ends.
            program::advance(us(5));
        }
    }
}

#[test]
fn work_that_raises_itself_keeps_no_interrupt_for_ever() {
    let post: &'static Post<SimMachine, Restless> =
        Box::leak(Box::new(Post::new(Restless(AtomicU64::new(0)))));
    let budget = u64::from(<SimMachine as Kernel>::BUDGET);
    let mut world = working(&quiet(2));
    world.spawn(cpu(1), || {
        while post.value().0.load(Relaxed) == 0 {
            program::advance(us(1));
        }
        // The first interrupt's exit has returned.
        assert_eq!(post.value().0.load(Relaxed), budget);
        assert!(Calls::has_work() || !Calls::may_halt(&mut InterruptsOff::new()));
        while Calls::run_work() {}
    });
    world.spawn(cpu(0), || {
        Calls::post::<Restless>(cpu(1), post).expect("online");
    });
    run(&mut world);
    assert_eq!(post.value().0.load(Relaxed), 20_000);
}

#[test]
fn refused_work_comes_back() {
    let mut world = working(&quiet(2));
    world.spawn(cpu(1), || {
        program::advance(us(5));
        let mut guard = InterruptsOff::new();
        Calls::close(&mut guard);
        drop(guard);
        // What was listed before is run here.
        Calls::run_work();
        assert!(!Calls::has_work());
    });
    world.spawn(cpu(0), || {
        Calls::post::<Request>(cpu(1), request(1, 1)).expect("online");
        program::advance(us(50));
        let error = Calls::post::<Request>(cpu(1), request(2, 1)).expect_err("offline");
        assert_eq!(error.reason, PostRefusal::Offline);
        assert_eq!(error.handle.into_value().number, 2);
        let error = Calls::post::<Request>(cpu(7), request(3, 1)).expect_err("no such CPU");
        assert_eq!(error.handle.value().number, 3);
    });
    assert_eq!(world.run(Instant::from_nanos(1_000_000)), RunEnd::ProgramsEnded);
    assert_eq!(done(), [(1, 1)]);
}
