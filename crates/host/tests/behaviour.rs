//! What a machine of host threads does, in both forms of delivery.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread;
use std::time::Duration;

use smpcall::machine::Ipi;
use smpcall::{CallError, Cpu, Deferred, InterruptsOff, Machine, Post, TargetState};
use smpcall_host::{Calls, Config, Host, Idle, halt, poll_interrupts, watch};

const LONG: Duration = Duration::from_secs(20);
const ZERO: Cpu = Cpu::new(0);
const ONE: Cpu = Cpu::new(1);

/// Two CPUs, interrupted by signals where there are any.
fn by_signals() -> Config {
    // SAFETY: no closure that a test sends to a machine of this form allocates, frees, locks or panics, except to fail.
    if Config::has_signals() { unsafe { Config::new(2).by_signals() } } else { Config::new(2) }
}

/// Both forms, with both kinds of idle CPUs.
fn every_form(test: impl Fn(Config)) {
    for idle in [Idle::Halt, Idle::Poll] {
        test(Config::new(2).idle(idle));
        test(by_signals().idle(idle));
    }
}

/// Runs `program` on CPU 0; CPU 1 is idle.
fn on_zero<T: Send>(config: Config, program: impl Fn() -> T + Sync) -> smpcall_host::Run<Option<T>> {
    config.run(|cpu| (cpu == ZERO).then(&program))
}

#[test]
fn a_call_reaches_an_idle_cpu_and_brings_back_its_result() {
    every_form(|config| {
        let run = on_zero(config, || {
            let mut ran_on = None;
            let sum = Calls::within(LONG).call(ONE, || {
                ran_on = Some((Host::current_cpu(), Host::interrupts_enabled()));
                20 + 22
            });
            (sum, ran_on)
        });
        assert_eq!(run.results, [Some((Ok(42), Some((ONE, false)))), None]);
        assert_eq!(run.total(|counters| &counters.calls_run), 1);
    });
}

#[test]
fn a_polling_idle_cpu_is_not_rung_and_a_halted_one_is() {
    every_form(|config| {
        for idle in [Idle::Halt, Idle::Poll] {
            // Late enough for CPU 1 to be idle, if a processor is free.
            let program = || {
                thread::sleep(Duration::from_millis(10));
                Calls::within(LONG).call(ONE, || ())
            };
            let is_rung = |_| on_zero(config.clone().idle(idle), program).interrupts[0].rings_sent != 0;
            match idle {
                Idle::Halt => assert!(is_rung(0), "{config:?}"),
                Idle::Poll => assert!(!(0..50).all(is_rung), "{config:?}"),
            }
        }
    });
}

#[test]
fn a_cpu_that_computes_is_interrupted_by_a_signal_and_not_by_a_polled_ring() {
    for (config, polls) in [(Config::new(2), true), (by_signals(), !Config::has_signals())] {
        let (called, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let run = config.run(|cpu| {
            if cpu == ZERO {
                while called.load(SeqCst) == 0 {
                    std::hint::spin_loop();
                }
                let result = Calls::within(LONG).call(ONE, || 1);
                done.store(1, SeqCst);
                return result;
            }
            called.store(1, SeqCst);
            let mut looks: u64 = 0;
            watch(|| {
                while done.load(SeqCst) == 0 {
                    std::hint::spin_loop();
                    looks += 1;
                    if polls && looks.is_multiple_of(16) {
                        poll_interrupts();
                    }
                }
            });
            Ok(looks)
        });
        assert_eq!(run.results[0], Ok(1));
        assert!(run.interrupts[1].rings_taken > 0, "{:?}", run.interrupts);
        assert_eq!(run.interrupts[1].taken_inside > 0, !polls, "{:?}", run.interrupts);
    }
}

#[test]
fn a_ring_that_comes_while_interrupts_are_disabled_is_taken_when_they_are_enabled() {
    every_form(|config| {
        let run = config.run(|cpu| {
            if cpu != ZERO {
                return true;
            }
            let guard = InterruptsOff::<Host>::new();
            Host::send(ZERO, Ipi::Ring).expect("it is there");
            thread::sleep(Duration::from_millis(2));
            let before = rings_taken();
            drop(guard);
            before == 0 && rings_taken() == 1
        });
        assert!(run.results[0], "{:?}", run.interrupts);
    });
}

/// Ring interrupts that the own CPU has taken.
fn rings_taken() -> u64 {
    let pinned = InterruptsOff::<Host>::new();
    let mailbox = <Host as smpcall::Kernel>::mailboxes().get(pinned.cpu()).expect("a CPU");
    mailbox.counters().rings_taken.get()
}

#[test]
fn a_halted_cpu_is_woken_by_a_ring_that_came_before() {
    every_form(|config| {
        let run = on_zero(config, || {
            let guard = InterruptsOff::<Host>::new();
            Host::send(ZERO, Ipi::Ring).expect("it is there");
            halt(guard);
            rings_taken()
        });
        assert_eq!(run.results[0], Some(1));
    });
}

#[test]
fn an_nmi_reaches_a_cpu_whether_its_interrupts_are_disabled_or_not() {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static AS_NMI: AtomicU64 = AtomicU64::new(0);
    let hook = || {
        AS_NMI.fetch_add(u64::from(Host::in_nmi() && !Host::interrupts_enabled()), SeqCst);
        TAKEN.fetch_add(1, SeqCst);
    };
    for disabled in [true, false] {
        every_form(|config| {
            TAKEN.store(0, SeqCst);
            AS_NMI.store(0, SeqCst);
            let run = config.on_nmi(hook).run(|cpu| {
                if cpu == ZERO {
                    return Host::send(ONE, Ipi::Probe).is_ok();
                }
                let _guard = disabled.then(InterruptsOff::<Host>::new);
                while TAKEN.load(SeqCst) == 0 {
                    Host::pause();
                }
                !Host::in_nmi() && Host::interrupts_enabled() != disabled
            });
            assert_eq!(run.results, [true, true]);
            assert_eq!((run.all_interrupts().nmis_taken, AS_NMI.load(SeqCst)), (1, 1));
        });
    }
}

#[test]
fn an_nmi_and_a_ring_that_pend_together_are_both_taken() {
    every_form(|config| {
        let run = config.run(|cpu| {
            if cpu == ZERO {
                let _guard = InterruptsOff::<Host>::new();
                for ipi in [Ipi::Probe, Ipi::Ring, Ipi::Probe] {
                    Host::send(ZERO, ipi).expect("it is there");
                }
            }
        });
        let counts = run.interrupts[0];
        // Polled NMIs merge; an NMI signal is taken before the send returns.
        assert!(counts.rings_taken == 1 && (1..=2).contains(&counts.nmis_taken), "{counts:?}");
    });
}

#[test]
fn a_caller_learns_by_nmi_that_its_target_has_interrupts_disabled() {
    every_form(|config| {
        let learned = AtomicU64::new(0);
        let run = config.run(|cpu| {
            if cpu == ONE {
                let _guard = InterruptsOff::<Host>::new();
                while learned.load(SeqCst) == 0 {
                    Host::pause();
                }
                return true;
            }
            // Miri's clock runs fast.
            let limit = Duration::from_millis(if cfg!(miri) { 300 } else { 20 });
            // Before its guard is there it takes the call; a processor that is busy elsewhere takes neither call nor NMI.
            let tells = |_| {
                let Err(CallError::TimedOut(diagnosis)) = Calls::within(limit).call(ONE, || ()) else {
                    return false;
                };
                matches!(diagnosis.target, TargetState::InterruptsDisabled { .. })
            };
            let result = (0..500).any(tells);
            learned.store(1, SeqCst);
            result
        });
        assert!(run.results[0], "{run:?}");
    });
}

#[test]
fn with_all_rings_lost_a_call_to_an_idle_cpu_still_completes() {
    every_form(|config| {
        let run = on_zero(config.lose_one_ring_in(1), || Calls::within(LONG).call(ONE, || 7));
        assert_eq!(run.results[0], Some(Ok(7)));
        let counts = run.all_interrupts();
        assert_eq!(counts.rings_sent, counts.rings_lost);
        assert_eq!(counts.rings_taken, 0);
    });
}

struct Errand;

static RUNS: AtomicU64 = AtomicU64::new(0);

impl Deferred<Host> for Errand {
    type Handle = Box<Post<Host, Self>>;

    fn run(_: Self::Handle) {
        RUNS.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_boxed_post_runs_once_although_its_ring_is_lost() {
    // Polled only: freeing a box is not async-signal-safe.
    RUNS.store(0, Relaxed);
    let run = on_zero(Config::new(2).lose_one_ring_in(1), || {
        Calls::post::<Errand>(ONE, Box::new(Post::new(Errand))).is_ok()
    });
    assert_eq!(run.results[0], Some(true));
    assert_eq!(RUNS.load(Relaxed), 1, "at the latest when its mailbox was closed");
}

#[test]
fn machines_run_beside_each_other_and_keep_their_calls_apart() {
    let machines = 4;
    let runs: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..machines)
            .map(|index| {
                scope.spawn(move || {
                    let config = if index % 2 == 0 { by_signals() } else { Config::new(2) };
                    on_zero(config, || {
                        (0..20).map(|_| Calls::within(LONG).call(ONE, || index)).collect::<Vec<_>>()
                    })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for (index, run) in runs.iter().enumerate() {
        assert_eq!(run.results[0].as_deref(), Some(&[Ok(index); 20][..]));
        assert_eq!(run.total(|counters| &counters.calls_run), 20);
    }
    drop(runs);
    let fresh = on_zero(Config::new(2), || ());
    assert_eq!(fresh.total(|counters| &counters.calls_run), 0, "memory that was used before is reset");
}

#[test]
fn a_program_that_panics_ends_the_machine_and_the_panic_goes_on() {
    every_form(|config| {
        let ended = AtomicU64::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            config.run(|cpu| {
                assert_ne!(cpu, ONE, "on purpose");
                // The other one still serves.
                let result = Calls::within(LONG).call(ONE, || ());
                ended.store(1 + u64::from(result.is_ok()), SeqCst);
            })
        }));
        assert!(result.is_err());
        assert_eq!(ended.load(SeqCst), 2);
    });
}

#[test]
fn a_closure_that_panics_is_told_to_its_caller_and_goes_on_at_the_end() {
    // Polled only: panicking allocates.
    for idle in [Idle::Halt, Idle::Poll] {
        let told = AtomicU64::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            on_zero(Config::new(2).idle(idle), || {
                let first = Calls::within(LONG).call(ONE, || panic!("on purpose"));
                let second = Calls::within(LONG).call(ONE, || 5);
                told.store(u64::from(first == Err::<(), _>(CallError::Panicked) && second == Ok(5)), SeqCst);
            })
        }));
        let panic = result.expect_err("the panic of the closure");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
        assert_eq!(told.load(SeqCst), 1);
    }
}

#[test]
fn the_largest_machine_calls_all() {
    let cpus = if cfg!(miri) { 8 } else { Config::MOST_CPUS };
    let visits = AtomicU64::new(0);
    let run = on_zero(Config::new(cpus), || {
        Calls::within(LONG)
            .call_all(|cpu| {
                visits.fetch_or(1 << cpu.number(), Relaxed);
            })
            .is_ok()
    });
    assert_eq!(run.results[0], Some(true));
    assert_eq!(visits.load(Relaxed), u64::MAX >> (64 - cpus));
}

#[test]
fn a_thread_that_is_no_cpu_cannot_call() {
    let result = catch_unwind(|| Calls::within(LONG).call(ONE, || ()));
    let panic = result.expect_err("it is told so");
    assert!(panic.downcast_ref::<String>().is_some_and(|text| text.contains("no CPU")) || panic.is::<&str>());
    // And polling does nothing.
    poll_interrupts();
}
