//! One test for each defect of the protocol that a review or a campaign has found and that was mended.

mod support;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use smpcall::{CallError, Deferred, ManyError, Post, TargetState};
use smpcall_local_apic::Interrupt;
use smpcall_machine::{Deadline, Instant, InterruptsOff, Woken};
use smpcall_simulator::faults::{self, Fault};
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{SimMachine, World, program, send_interrupt};
use support::{Calls, Flag, Machine, cpu, ms, quiet, run, set, us, work_with_interrupts_off, world};

/// A source had two calls for the target: one from a task, one from an interrupt of that task. The first one's closure
/// panicked, and the mark that both shared was gone with it: nobody ran the second, and nobody rang for it.
#[test]
fn a_panicking_closure_does_not_lose_the_calls_of_its_source_from_other_levels() {
    static TICKS: AtomicU32 = AtomicU32::new(0);
    static SECOND: AtomicBool = AtomicBool::new(false);
    let mut config = quiet(2);
    config.tick = Some(ms(1));
    config.faults = vec![Fault::NoTick { cpu: cpu(1) }];
    let tick = |_: &smpcall_simulator::InterruptFrame| {
        if SimMachine::current_cpu() == cpu(0) && TICKS.fetch_add(1, Relaxed) == 0 {
            let mut guard = InterruptsOff::new();
            let caller = Calls::within(ms(50)).with_interrupts_off(&mut guard);
            SECOND.store(caller.call(cpu(1), || 7) == Ok(7), Relaxed);
        }
    };
    let done = Flag::new();
    let mut world =
        World::with_kernel(&config, Hooks { tick: Some(tick), ..Hooks::default() }).expect("a machine");
    world.spawn(cpu(0), || {
        let first = Calls::for_ever().call(cpu(1), || resume_unwind(Box::new("a closure unwinds")));
        assert_eq!(first, Err::<(), _>(CallError::Panicked));
        assert!(SECOND.load(Relaxed), "the call of the interrupt handler");
        done.raise();
    });
    world.spawn(cpu(1), || {
        // Not before both calls are there.
        work_with_interrupts_off(ms(2));
        let unwound = catch_unwind(AssertUnwindSafe(|| done.reached(1))).is_err();
        assert!(unwound);
        done.reached(1);
    });
    run(&mut world);
}

struct Note(AtomicU64);

impl Deferred<SimMachine> for Note {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(handle: Self::Handle) {
        handle.value().0.fetch_add(1, Relaxed);
    }
}

/// On machines with leaves, a pass that was running the calls of one leaf took a call of the next leaf that had come in
/// meanwhile, but not the post that its source had made before.
#[test]
fn a_call_never_overtakes_an_earlier_post_of_its_source() {
    static POST: Post<SimMachine, Note> = Post::new(Note(AtomicU64::new(0)));
    let running = Flag::new();
    let mut world = world(&quiet(128));
    world.spawn(cpu(0), || work_with_interrupts_off(us(50)));
    for caller in [1, 64] {
        let running = &running;
        world.spawn(cpu(caller), move || {
            let closure = || {
                if caller == 1 {
                    running.raise();
                    program::advance(us(50));
                }
            };
            Calls::for_ever().call(cpu(0), closure).expect("run");
        });
    }
    world.spawn(cpu(65), || {
        running.reached(1);
        Calls::post::<Note>(cpu(0), &POST).expect("queued");
        let posts_run = Calls::for_ever().call(cpu(0), || POST.value().0.load(Relaxed));
        assert_eq!(posts_run, Ok(1), "the post runs first");
    });
    run(&mut world);
}

/// Serving from an NMI handler ran closures in the middle of a pass, or popped a post that the interrupted code was
/// just popping.
#[test]
fn nothing_is_served_from_an_nmi_handler() {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let queued = Flag::new();
    let mut world = world(&quiet(2));
    world.set_nmi_handler(|_| {
        let mut guard = InterruptsOff::new();
        assert!(!Calls::poll() && !Calls::poll_with(&mut guard));
        Calls::tick();
        Calls::handle_ring();
        assert!(!Calls::may_halt(&mut guard), "the mailbox is not quiet");
        assert!(catch_unwind(|| Calls::close(&mut InterruptsOff::new())).is_err());
        TRIED.fetch_add(1, Relaxed);
    });
    world.spawn(cpu(0), || {
        let called = Calls::for_ever().call(cpu(1), SimMachine::in_nmi);
        assert_eq!(called, Ok(false));
        queued.raise();
    });
    world.spawn(cpu(1), || {
        let guard = InterruptsOff::<SimMachine>::new();
        program::advance(us(20));
        std::panic::set_hook(Box::new(|_| {}));
        send_interrupt(cpu(1), Interrupt::Nmi).expect("sent");
        program::advance(us(20));
        let _ = std::panic::take_hook();
        assert_eq!(TRIED.load(Relaxed), 1);
        drop(guard);
        queued.reached(1);
    });
    run(&mut world);
}

/// Guards can be dropped in any order; the one that was passed in was not the one that kept interrupts off.
#[test]
fn closures_run_with_interrupts_off_whichever_guard_is_left() {
    let (ready, done) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        ready.reached(1);
        assert_eq!(Calls::for_ever().call(cpu(1), SimMachine::interrupts_enabled), Ok(false));
        done.raise();
    });
    world.spawn(cpu(1), || {
        let outer = InterruptsOff::<SimMachine>::new();
        let mut inner = InterruptsOff::new();
        drop(outer);
        ready.raise();
        assert_eq!(Calls::poll_until(&mut inner, done.when(1), Deadline::NEVER), Woken::Met(0));
    });
    run(&mut world);
}

/// While the one target of a call to many that had claimed it ran somebody else's closure, the waiter found nobody to
/// report, left its deadline in the past, and spun outside of the wait.
#[test]
fn an_overdue_call_to_many_waits_between_its_reports() {
    static REPORTS: AtomicU32 = AtomicU32::new(0);
    let report = |_: Option<support::Cpu>, _: &smpcall::Diagnosis| {
        REPORTS.fetch_add(1, Relaxed);
    };
    let hooks = Hooks { overdue: Some(report), ..Hooks::default() };
    let (claimed, nested) = (Flag::new(), Flag::new());
    let mut world = World::with_kernel(&quiet(4), hooks).expect("a machine");
    world.spawn(cpu(0), || {
        let result = Calls::within(us(500)).call_many(&set([1]), |_| {
            // Waits for CPU 2, which has this CPU run a long closure meanwhile.
            claimed.raise();
            let mut guard = InterruptsOff::new();
            Calls::poll_until(&mut guard, nested.when(1), Deadline::NEVER);
        });
        assert!(result.is_ok(), "{result:?}");
    });
    world.spawn(cpu(2), || {
        claimed.reached(1);
        Calls::for_ever().call(cpu(1), || program::advance(ms(20))).expect("run");
        nested.raise();
    });
    run(&mut world);
    let reports = REPORTS.load(Relaxed);
    assert!((3..10).contains(&reports), "{reports} reports in 20 ms, at doubling intervals from 0.5 ms");
    let operations = world.inspect(cpu(0)).counters.operations;
    assert!(operations < 2_000, "{operations} operations: it spins");
}

/// Six waiters sent six NMIs to one CPU, of which it could explain one; and they sent them to a CPU that they saw running
/// a closure.
#[test]
fn waiters_share_a_probe_and_leave_a_busy_cpu_alone() {
    let mut config = quiet(8);
    config.faults = faults::parse("wedge:cpu=7:at=1us").expect("a fault");
    let mut world = world(&config);
    for caller in 0..6 {
        world.spawn(cpu(caller), || {
            program::advance(us(20));
            let told = Calls::within(ms(5)).call(cpu(7), || ());
            let Err(CallError::TimedOut(diagnosis)) = told else { panic!("{told:?}") };
            assert!(matches!(diagnosis.target, TargetState::InterruptsDisabled { .. }), "{diagnosis}");
        });
    }
    run(&mut world);
    assert_eq!(world.mailbox_counters(|counters| counters.probes_sent.get()), 1);
    assert_eq!(world.counters().nmis_taken, 1);

    let busy = Flag::new();
    let mut world = support::world(&quiet(3));
    world.spawn(cpu(0), || {
        let closure = || {
            busy.raise();
            program::advance(ms(20));
        };
        Calls::for_ever().call(cpu(2), closure).expect("run");
    });
    world.spawn(cpu(1), || {
        busy.reached(1);
        let told = Calls::within(ms(5)).call(cpu(2), || ());
        let Err(CallError::TimedOut(diagnosis)) = told else { panic!("{told:?}") };
        assert_eq!(diagnosis.target, TargetState::Busy { caller: Some(cpu(0)) });
    });
    run(&mut world);
    assert_eq!(world.counters().nmis_taken, 0);
}

/// CPUs that do not exist were counted against those that do; refused calls were not counted as sent.
#[test]
fn calls_sent_are_run_withdrawn_or_refused() {
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || {
        program::advance(us(20));
        let offline = Calls::for_ever().call(cpu(3), || ());
        assert_eq!(offline, Err(CallError::Offline));
        let many = Calls::for_ever().call_many(&set([1, 2, 3, 100]), |_| ());
        let Err(ManyError::Failed(failures)) = many else { panic!("{many:?}") };
        assert_eq!(failures.offline, set([3, 100]));
    });
    world.spawn(cpu(3), || Calls::close(&mut InterruptsOff::new()));
    run(&mut world);
    let sum = |counter: fn(&smpcall::Counters) -> u64| world.mailbox_counters(counter);
    let (sent, refused) = (sum(|c| c.calls_sent.get()), sum(|c| c.calls_refused.get()));
    assert_eq!(sent, sum(|c| c.calls_run.get()) + sum(|c| c.calls_withdrawn.get()) + refused);
    assert!(sent >= 2 && refused >= 1, "{sent} sent, {refused} refused");
}

/// A tick of the backstop rang a CPU that its waiters rang already.
#[test]
fn the_backstop_leaves_a_cpu_to_its_waiters() {
    let mut config = quiet(3);
    config.tick = Some(ms(1));
    config.faults = faults::parse("wedge:cpu=2:at=1us").expect("a fault");
    let mut world = world(&config);
    world.spawn(cpu(1), || {
        program::advance(us(20));
        assert!(Calls::within(ms(500)).call(cpu(2), || ()).is_err());
    });
    let end = world.run(Instant::from_nanos(2_000_000_000));
    assert_eq!(end, smpcall_simulator::RunEnd::ProgramsEnded);
    // 0.25, 0.75, ... 7.75 ms, and then every 8 ms.
    let repeated = world.mailbox_counters(|counters| counters.rings_repeated.get());
    assert!((60..70).contains(&repeated), "{repeated} rings repeated in 500 ms");
}
