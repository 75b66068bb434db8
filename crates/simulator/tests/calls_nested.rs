//! Calls from inside served closures: down to the last call level, past it, and back.

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{CallError, Caller, LEVELS};
use smpcall_machine::{Deadline, InterruptsOff};
use smpcall_simulator::{SimMachine, program};
use support::{Calls, Cpu, Flag, Machine, cpu, ms, quiet, run, set, us, world};

/// A call from the running CPU, whose interrupts are off, to the other one of CPUs 0 and 1; its closure does the same,
/// and so on until it fails. Returns how many closures ran inside of each other, and what ended it.
fn ping_pong(caller: fn() -> Caller<'static, SimMachine>) -> (u32, CallError) {
    let other = cpu(1 - SimMachine::current_cpu().number());
    let mut guard = InterruptsOff::new();
    match caller().with_interrupts_off(&mut guard).call(other, || ping_pong(caller)) {
        Ok((depth, error)) => (depth + 1, error),
        Err(error) => (0, error),
    }
}

fn ping_pong_ends_busy(caller: fn() -> Caller<'static, SimMachine>, at_least: Duration, at_most: Duration) {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        for _ in 0..3 {
            let started = SimMachine::now();
            // Each of the two CPUs has LEVELS calls under way when the next one finds no level.
            assert_eq!(ping_pong(caller), (2 * LEVELS as u32, CallError::Busy));
            let took = SimMachine::now().since(started);
            assert!((at_least..at_most).contains(&took), "{took:?}");
        }
        // The levels are free again, on both CPUs.
        for _ in 0..=LEVELS {
            let nested = Calls::for_ever().call(cpu(1), || {
                let mut guard = InterruptsOff::new();
                Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(0), || 5)
            });
            assert_eq!(nested, Ok(Ok(5)));
        }
    });
    run(&mut world);
}

#[test]
fn past_the_last_level_a_call_with_a_deadline_is_told_busy_at_its_deadline() {
    ping_pong_ends_busy(|| Calls::within(ms(2)), ms(2), ms(3));
}

#[test]
fn past_the_last_level_a_call_for_ever_is_told_busy_after_the_level_wait() {
    let level_wait = <SimMachine as smpcall::Kernel>::LEVEL_WAIT;
    ping_pong_ends_busy(Calls::for_ever, level_wait, level_wait + ms(1));
}

/// CPU 0 has used up its levels (four callees that go on for long) and waits for one, polling; a closure that it serves
/// meanwhile calls too: it could only dig the stack deeper.
#[test]
fn a_second_caller_without_a_level_that_runs_inside_of_the_first_is_busy_at_once() {
    let (first_waits, second) = (Flag::new(), AtomicU64::new(u64::MAX));
    let mut world = world(&quiet(7));
    world.spawn(cpu(0), || {
        // Four calls inside of each other: CPUs 1 to 4 call back while they run, the fourth makes the rest happen.
        nest(1, &|| {
            let mut guard = InterruptsOff::new();
            first_waits.raise();
            let started = SimMachine::now();
            let fifth = Calls::within(us(400)).with_interrupts_off(&mut guard).call(cpu(6), || ());
            assert_eq!(fifth, Err(CallError::Busy), "no level became free");
            assert!(SimMachine::now().since(started) >= us(400), "and it waited for one until its deadline");
        });
    });
    world.spawn(cpu(5), || {
        first_waits.reached(1);
        program::advance(us(50));
        let inner = Calls::for_ever().call(cpu(0), || {
            let started = SimMachine::now();
            let mut guard = InterruptsOff::new();
            let result = Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(6), || ());
            second.store(SimMachine::now().since(started).as_nanos() as u64, Relaxed);
            result
        });
        assert_eq!(inner, Ok(Err(CallError::Busy)));
    });
    run(&mut world);
    assert!(second.load(Relaxed) < 10_000, "at once: {} ns", second.load(Relaxed));
}

/// Uses up the call levels of CPU 0: it calls CPU `target`, whose closure calls CPU 0 back, and so on; `last` runs on
/// CPU 0 when all levels are in use.
fn nest(target: u32, last: &(dyn Fn() + Sync)) {
    if target as usize > LEVELS {
        return last();
    }
    let mut guard = InterruptsOff::new();
    let result = Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(target), || {
        let mut guard = InterruptsOff::new();
        Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(0), || nest(target + 1, last))
    });
    assert_eq!(result, Ok(Ok(())));
}

#[test]
fn a_caller_with_interrupts_on_waits_for_a_level_and_gets_it() {
    let mut world = world(&quiet(6));
    world.spawn(cpu(0), || {
        for target in 1..=LEVELS as u32 {
            let left = Calls::within(us(50)).call_static(cpu(target), || program::advance(us(700)));
            assert!(matches!(left, Err(CallError::Unfinished(_))), "{left:?}");
        }
        let started = SimMachine::now();
        assert_eq!(Calls::within(us(100)).call(cpu(5), || ()), Err(CallError::Busy));
        assert!(SimMachine::now().since(started) >= us(100));
        assert_eq!(Calls::for_ever().call(cpu(5), || 1), Ok(1), "a level became free");
        assert!(SimMachine::now().since(started) >= us(300), "when the first callee ended");
    });
    run(&mut world);
}

/// Every CPU calls every other one, whose closures call all of them again.
#[test]
fn everybody_calls_everybody_from_inside_of_calls() {
    const CPUS: u32 = 6;
    let (ran, busy) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut world = world(&quiet(CPUS as usize));
    for me in 0..CPUS {
        let (ran, busy) = (&ran, &busy);
        world.spawn(cpu(me), move || {
            for _ in 0..20 {
                Calls::for_ever()
                    .call_others(|_| {
                        let mut guard = InterruptsOff::new();
                        let next = cpu((SimMachine::current_cpu().number() + 1) % CPUS);
                        let caller = Calls::within(us(200)).with_interrupts_off(&mut guard);
                        match caller.call(next, || ran.fetch_add(1, Relaxed)) {
                            Ok(_) => {}
                            Err(CallError::Busy | CallError::TimedOut(_)) => {
                                busy.fetch_add(1, Relaxed);
                            }
                            Err(error) => panic!("{error}"),
                        }
                    })
                    .expect("a call for ever to CPUs that live");
            }
        });
    }
    run(&mut world);
    let (ran, busy) = (ran.load(Relaxed), busy.load(Relaxed));
    assert_eq!(
        ran + busy,
        u64::from(CPUS * (CPUS - 1) * 20),
        "each inner call ran once or its caller was told"
    );
    assert!(ran > busy, "{ran} ran, {busy} did not");
}

/// The wait of a caller is interrupted, and its handler calls too: three levels of context on one CPU.
#[test]
fn a_handler_that_interrupts_a_waiting_caller_can_call() {
    let ran = AtomicU64::new(0);
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || {
        let result = Calls::for_ever().call(cpu(1), || {
            program::advance(us(50));
            9
        });
        assert_eq!((result, ran.load(Relaxed)), (Ok(9), 1));
    });
    world.spawn(cpu(2), || {
        program::advance(us(10));
        Calls::for_ever()
            .call(cpu(0), || {
                let mut guard = InterruptsOff::new();
                let caller = Calls::for_ever().with_interrupts_off(&mut guard);
                caller
                    .call_many(&set([0, 2, 3]), |cpu: Cpu| {
                        ran.fetch_add(u64::from(cpu == support::cpu(3)), Relaxed);
                    })
                    .map_err(|error| error.to_string())
            })
            .expect("CPU 0 takes it while it waits")
            .expect("and calls others from there");
    });
    run(&mut world);
}

/// The same slot is used again while the mark of the call that was withdrawn still stands.
#[test]
fn a_slot_that_is_used_again_after_a_withdrawal_runs_nothing_on_the_first_target() {
    let (wedged, given_up) = (Flag::new(), Flag::new());
    let ran_on = AtomicU64::new(0);
    let runs = || {
        ran_on.fetch_add(1 << (8 * SimMachine::current_cpu().number()), Relaxed);
    };
    let mut world = world(&quiet(3));
    world.spawn(cpu(1), || {
        let guard = InterruptsOff::<SimMachine>::new();
        wedged.raise();
        given_up.reached(1);
        drop(guard);
        program::advance(us(50));
    });
    world.spawn(cpu(0), || {
        wedged.reached(1);
        let result = Calls::within(us(50)).call(cpu(1), runs);
        assert!(matches!(result, Err(CallError::TimedOut(_))), "{result:?}");
        let result = Calls::within(us(50)).call_many(&set([1, 2]), |_| runs());
        assert!(result.is_err());
        let mut guard = InterruptsOff::new();
        Calls::for_ever()
            .with_interrupts_off(&mut guard)
            .call(cpu(2), || {
                // Now CPU 1 serves the stale mark, while level 0 of CPU 0 holds this call to CPU 2.
                given_up.raise();
                program::advance(us(30));
                runs();
            })
            .expect("CPU 2 lives");
    });
    run(&mut world);
    assert_eq!(ran_on.load(Relaxed), 0x02_00_00, "twice on CPU 2, never on CPU 1");
}

#[test]
fn a_call_that_borrows_outlasts_its_deadline_until_its_closure_has_run() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        let mut written = 0;
        let started = SimMachine::now();
        let result = Calls::until(Deadline::at(started.plus(us(30)))).call(cpu(1), || {
            program::advance(us(400));
            written = 1;
            SimMachine::current_cpu()
        });
        assert_eq!((result, written), (Ok(cpu(1)), 1));
        assert!(SimMachine::now().since(started) >= us(400));
        // At the deadline, and one FIRST_BACKOFF of 250 us later.
        assert_eq!(support::counted(|counters| counters.calls_overdue.get()), 2);
    });
    run(&mut world);
}
