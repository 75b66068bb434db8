//! The machine in virtual time: interrupts, waits, halts, faults, determinism, with small hand-written protocols.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use core::time::Duration;
use std::cell::{Cell, RefCell};

use smpcall_local_apic::{Interrupt, Routing, Vector};
use smpcall_machine::{
    Cpu, Deadline, EventKind, Instant, InterruptsOff, Ipi, Machine, Predicate, Woken, Word, wait,
};
use smpcall_simulator::faults;
use smpcall_simulator::{
    Activity, Config, ConfigError, Handler, InterruptFrame, RING_VECTOR, RunEnd, SimMachine, SimMemory,
    TIMER_VECTOR, Trace, World, program, send_interrupt,
};

const SECOND: Instant = Instant::from_nanos(1_000_000_000);

thread_local! {
    /// What handlers saw, in order.
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn log(entry: impl Into<String>) {
    LOG.with_borrow_mut(|log| log.push(entry.into()));
}

fn logged() -> Vec<String> {
    LOG.take()
}

/// A mailbox per CPU: the smallest protocol that shows a lost ring.
struct Mailbox {
    request: Word<SimMemory>,
    done: Word<SimMemory>,
}

static MAILBOXES: [Mailbox; 256] = [const { Mailbox { request: Word::new(0), done: Word::new(0) } }; 256];

fn serve(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    let mailbox = &MAILBOXES[SimMachine::current_cpu().index()];
    let request = mailbox.request.swap(0, AcqRel);
    if request != 0 {
        mailbox.done.fetch_add(1, Release);
    }
}

/// Calls `target` and waits for its answer, without ringing again.
fn call(target: Cpu, deadline: Deadline) -> Woken {
    let mailbox = &MAILBOXES[target.index()];
    let before = mailbox.done.load(Relaxed);
    if mailbox.request.swap(1, AcqRel) == 0 {
        SimMachine::send(target, Ipi::Ring).expect("the ring goes out");
    }
    wait::<SimMachine>(&[mailbox.done.differs(u64::MAX, before)], deadline)
}

fn forget_calls() {
    for mailbox in &MAILBOXES {
        mailbox.request.store(0, Relaxed);
        mailbox.done.store(0, Relaxed);
    }
}

/// The static mailboxes are shared by the tests of this file, which run on several threads.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    forget_calls();
    logged();
    guard
}

/// Every CPU calls its neighbour `calls` times.
fn ring_around(config: &Config, calls: usize) -> (RunEnd, Trace, smpcall_simulator::Counters) {
    forget_calls();
    let mut world = World::new(config).expect("a machine");
    world.set_handler(RING_VECTOR, serve);
    for cpu in 0..config.cpus {
        world.spawn(Cpu::new(cpu as u32), move || {
            let _frame = program::frame("ring_around");
            for _ in 0..calls {
                let target = Cpu::new(((cpu + 1) % config.cpus) as u32);
                call(target, Deadline::within::<SimMachine>(Duration::from_millis(1)));
                program::advance(Duration::from_nanos(program::random(2000)));
            }
        });
    }
    let end = world.run(SECOND);
    (end, world.trace(), world.counters())
}

fn config(cpus: usize, seed: u64) -> Config {
    Config { trace: true, ..Config::new(cpus, Routing::X2ApicCluster, seed) }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let _alone = alone();
    let bytes = |seed| {
        let faults = faults::parse("drop:p=0.1,delay:by=3us:p=0.2,duplicate:p=0.1").expect("faults");
        let (end, trace, _) = ring_around(&Config { faults, ..config(8, seed) }, 20);
        assert_eq!(end, RunEnd::ProgramsEnded);
        trace.to_bytes()
    };
    let first = bytes(1);
    assert_ne!(first, bytes(2), "another seed, another interleaving");
    assert_eq!(first, bytes(1), "also after another world ran on this thread");
    assert!(first.len() > 10_000, "something happened: {} bytes", first.len());
}

/// FNV-1a, so that a trace can be named by a number here.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The number changes with the cost model, the order of random draws and the driver; it does not change with the
/// build, the process or the machine.
#[test]
fn the_trace_of_a_seed_is_the_same_in_every_build() {
    let _alone = alone();
    let faults = faults::parse("drop:p=0.1,delay:by=3us:p=0.2,duplicate:p=0.1,wedge:cpu=2:at=30us:for=1ms");
    let config = Config { faults: faults.expect("faults"), ..config(8, 7) };
    let bytes = ring_around(&config, 20).1.to_bytes();
    assert_eq!(digest(&bytes), 8_984_857_427_890_241_210);
}

#[test]
fn each_routing_carries_calls() {
    let _alone = alone();
    for routing in Routing::ALL {
        let (end, _, counters) = ring_around(&Config { trace: false, ..Config::new(8, routing, 5) }, 10);
        assert_eq!(end, RunEnd::ProgramsEnded, "{routing}");
        assert_eq!(counters.icr_writes, counters.ipis_sent);
        assert_eq!(counters.taken[RING_VECTOR as usize], counters.ipis_accepted, "{routing}");
        assert_eq!(counters.ipis_sent, counters.ipis_accepted + counters.ipis_merged, "{routing}");
    }
}

/// Runs one machine with these programs on CPUs 0, 1, ...
fn run(
    config: &Config,
    handlers: &[(u8, Handler)],
    programs: Vec<Box<dyn FnOnce() + '_>>,
) -> (RunEnd, Trace) {
    let mut world = World::new(config).expect("a machine");
    for &(vector, handler) in handlers {
        world.set_handler(vector, handler);
    }
    for (cpu, program) in programs.into_iter().enumerate() {
        world.spawn(Cpu::new(cpu as u32), program);
    }
    let end = world.run(SECOND);
    (end, world.trace())
}

fn quiet(cpus: usize) -> Config {
    Config { tick: None, ..config(cpus, 1) }
}

fn count(trace: &Trace, kind: EventKind) -> usize {
    trace.events.iter().filter(|event| event.kind == kind).count()
}

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn fixed(vector: u8) -> Interrupt {
    Interrupt::Fixed(Vector::new(vector).expect("a legal vector"))
}

#[test]
fn a_wait_ends_at_its_deadline_and_not_before() {
    let _alone = alone();
    let word = Word::<SimMemory>::new(0);
    let program = || {
        let deadline = Deadline::within::<SimMachine>(micros(7));
        assert_eq!(wait::<SimMachine>(&[word.equals(1, 1)], deadline), Woken::Deadline);
        let late = SimMachine::now().since(deadline.instant().expect("it has one"));
        assert!(deadline.has_passed(SimMachine::now()) && late < micros(1), "{late:?}");
    };
    assert_eq!(run(&quiet(1), &[], vec![Box::new(program)]).0, RunEnd::ProgramsEnded);
}

#[test]
fn a_condition_that_holds_is_reported_even_after_the_deadline() {
    let _alone = alone();
    let word = Word::<SimMemory>::new(1);
    let program = || {
        program::advance(micros(1));
        let woken =
            wait::<SimMachine>(&[word.equals(1, 0), word.equals(1, 1)], Deadline::at(Instant::default()));
        assert_eq!(woken, Woken::Met(1));
        let woken = wait::<SimMachine>(&[word.equals(1, 0)], Deadline::at(Instant::default()));
        assert_eq!(woken, Woken::Deadline);
    };
    assert_eq!(run(&quiet(1), &[], vec![Box::new(program)]).0, RunEnd::ProgramsEnded);
}

#[test]
fn a_wait_takes_interrupts_if_they_are_enabled_and_only_then() {
    static SEEN: Word<SimMemory> = Word::new(0);
    let _alone = alone();
    for enabled in [true, false] {
        SEEN.store(0, Relaxed);
        let waiter = || {
            let _off = (!enabled).then(InterruptsOff::<SimMachine>::new);
            let woken = wait::<SimMachine>(&[SEEN.equals(1, 1)], Deadline::within::<SimMachine>(micros(50)));
            assert_eq!(woken, if enabled { Woken::Met(0) } else { Woken::Deadline });
        };
        let ringer = || SimMachine::send(Cpu::new(0), Ipi::Ring).expect("sent");
        let handler = |mut frame: InterruptFrame| {
            SEEN.store(1, Release);
            frame.end_of_interrupt();
        };
        let (end, _) = run(&quiet(2), &[(RING_VECTOR, handler)], vec![Box::new(waiter), Box::new(ringer)]);
        assert_eq!(end, RunEnd::ProgramsEnded);
    }
}

#[test]
fn a_higher_vector_interrupts_a_handler_that_allows_it_and_a_lower_one_waits() {
    fn handler(mut frame: InterruptFrame) {
        let vector = frame.vector.expect("no NMI");
        log(format!("+{vector:x}"));
        if vector == 0x50 {
            send_interrupt(Cpu::new(0), fixed(0x40)).expect("sent");
            send_interrupt(Cpu::new(0), fixed(0x60)).expect("sent");
            program::advance(micros(20));
            log("enable");
            SimMachine::restore_interrupts(true);
            program::advance(micros(20));
        }
        log(format!("-{vector:x}"));
        frame.end_of_interrupt();
    }
    let _alone = alone();
    let program = || {
        send_interrupt(Cpu::new(0), fixed(0x50)).expect("sent");
        program::advance(micros(100));
    };
    let handlers = [0x40, 0x50, 0x60].map(|vector| (vector, handler as Handler));
    run(&quiet(1), &handlers, vec![Box::new(program)]);
    assert_eq!(logged(), ["+50", "enable", "+60", "-60", "-50", "+40", "-40"]);
}

#[test]
fn a_vector_that_is_not_ended_blocks_itself_and_all_below() {
    let _alone = alone();
    let handler = |frame: InterruptFrame| log(format!("{:x}", frame.vector.expect("no NMI")));
    let program = || {
        for vector in [0x50, 0x50, 0x40, 0x60] {
            send_interrupt(Cpu::new(0), fixed(vector)).expect("sent");
            program::advance(micros(10));
        }
        let report = program::inspect(Cpu::new(0));
        assert_eq!((report.requested, report.in_service), (vec![0x40, 0x50], vec![0x50, 0x60]));
    };
    let handlers = [0x40, 0x50, 0x60].map(|vector| (vector, handler as Handler));
    run(&quiet(1), &handlers, vec![Box::new(program)]);
    assert_eq!(logged(), ["50", "60"]);
}

#[test]
fn an_nmi_is_taken_with_interrupts_disabled() {
    let _alone = alone();
    let mut world = World::new(&quiet(2)).expect("a machine");
    world.set_nmi_handler(|frame| {
        assert!(SimMachine::in_nmi() && !frame.interrupts_were_enabled);
        log(format!("nmi {}", SimMachine::current_cpu()));
    });
    world.spawn(Cpu::new(0), || {
        let off = InterruptsOff::<SimMachine>::new();
        program::advance(micros(10));
        assert!(!SimMachine::in_nmi());
        drop(off);
    });
    world.spawn(Cpu::new(1), || SimMachine::send(Cpu::new(0), Ipi::Probe).expect("sent"));
    assert_eq!(world.run(SECOND), RunEnd::ProgramsEnded);
    assert_eq!(logged(), ["nmi CPU 0"]);
}

#[test]
fn local_work_takes_as_much_longer_as_its_interrupts_took() {
    let _alone = alone();
    let elapsed = Cell::new(Duration::ZERO);
    let program = || {
        let start = SimMachine::now();
        program::advance(Duration::from_millis(40));
        elapsed.set(SimMachine::now().since(start));
    };
    let handler = |mut frame: InterruptFrame| {
        program::advance(micros(100));
        frame.end_of_interrupt();
    };
    run(&config(1, 1), &[(TIMER_VECTOR, handler)], vec![Box::new(program)]);
    let ticks = micros(100) * 10;
    let expected = Duration::from_millis(40) + ticks;
    assert!(elapsed.get() > expected && elapsed.get() < expected + micros(20), "{:?}", elapsed.get());
}

#[test]
fn a_halted_cpu_wakes_for_an_interrupt_and_does_not_miss_one_that_is_pending() {
    let _alone = alone();
    let sleeper = || {
        let _ = SimMachine::disable_interrupts();
        program::advance(micros(10));
        assert_eq!(program::inspect(Cpu::new(0)).requested, [RING_VECTOR]);
        program::halt();
        assert!(SimMachine::interrupts_enabled());
        program::halt();
    };
    let ringer = || {
        for _ in 0..2 {
            SimMachine::send(Cpu::new(0), Ipi::Ring).expect("sent");
            program::advance(micros(100));
        }
    };
    let (end, trace) = run(&quiet(2), &[(RING_VECTOR, serve)], vec![Box::new(sleeper), Box::new(ringer)]);
    assert_eq!(end, RunEnd::ProgramsEnded);
    assert_eq!(count(&trace, EventKind::Resumed), 2);
}

#[test]
fn a_second_ring_merges_with_one_that_is_pending() {
    let _alone = alone();
    let deaf = || {
        let _off = InterruptsOff::<SimMachine>::new();
        program::advance(micros(50));
    };
    let ringer = || {
        for _ in 0..3 {
            SimMachine::send(Cpu::new(0), Ipi::Ring).expect("sent");
        }
    };
    let mut world = World::new(&quiet(2)).expect("a machine");
    world.set_handler(RING_VECTOR, serve);
    world.spawn(Cpu::new(0), deaf);
    world.spawn(Cpu::new(1), ringer);
    world.run(SECOND);
    world.run_on(SECOND);
    let counters = world.inspect(Cpu::new(0)).counters;
    assert_eq!((counters.ipis_accepted, counters.ipis_merged), (1, 2));
    assert_eq!(counters.taken[RING_VECTOR as usize], 1);
}

#[test]
fn a_busy_icr_is_waited_for_until_it_is_idle() {
    let _alone = alone();
    let config = Config { tick: None, trace: true, ..Config::new(2, Routing::Physical, 1) };
    let ringer = || {
        let start = SimMachine::now();
        for _ in 0..10 {
            SimMachine::send(Cpu::new(1), Ipi::Ring).expect("sent");
        }
        let took = SimMachine::now().since(start);
        assert!(took >= Duration::from_nanos(9 * 300), "nine times it was busy: {took:?}");
        assert!(took < micros(10), "and nobody waited for longer than that: {took:?}");
    };
    let (end, trace) = run(&config, &[(RING_VECTOR, serve)], vec![Box::new(ringer)]);
    assert_eq!(end, RunEnd::ProgramsEnded);
    assert_eq!(count(&trace, EventKind::IcrWritten), 10);
}

/// Runs one call of CPU 0 to CPU 1 under these faults; `None` if the caller timed out.
fn one_call(list: &str) -> (Option<Duration>, Trace) {
    forget_calls();
    let faults = faults::parse(list).expect("faults");
    let config = Config { faults, ..quiet(3) };
    let took = Cell::new(None);
    let caller = || {
        program::advance(micros(5));
        let start = SimMachine::now();
        if call(Cpu::new(1), Deadline::within::<SimMachine>(micros(200))) != Woken::Deadline {
            took.set(Some(SimMachine::now().since(start)));
        }
        program::advance(micros(100));
    };
    let (_, trace) = run(&config, &[(RING_VECTOR, serve)], vec![Box::new(caller)]);
    (took.get(), trace)
}

#[test]
fn without_faults_a_call_takes_a_few_microseconds() {
    let _alone = alone();
    let (took, trace) = one_call("");
    assert!(took.is_some_and(|took| took < micros(5)), "{took:?}");
    assert_eq!(count(&trace, EventKind::IpiLost), 0);
}

#[test]
fn a_dropped_message_is_lost_and_the_trace_says_which() {
    let _alone = alone();
    let (took, trace) = one_call("drop:n=1:vector=0xfb:to=1");
    assert_eq!(took, None);
    let lost: Vec<_> = trace.events.iter().filter(|event| event.kind == EventKind::IpiLost).collect();
    let [lost] = lost[..] else { panic!("one message is lost, not {}", lost.len()) };
    assert_eq!((lost.cpu, lost.other, lost.detail), (Cpu::new(0), Some(Cpu::new(1)), u32::from(RING_VECTOR)));
    assert_eq!(count(&trace, EventKind::IpiAccepted), 0);
}

#[test]
fn a_drop_that_matches_another_message_changes_nothing() {
    let _alone = alone();
    for list in
        ["drop:n=2", "drop:n=1:to=2", "drop:n=1:from=1", "drop:n=1:vector=0xfa", "drop:n=1:nmi", "drop:p=0"]
    {
        assert!(one_call(list).0.is_some(), "{list}");
    }
    assert_eq!(one_call("drop:p=1").0, None);
}

#[test]
fn drops_happen_about_as_often_as_they_should() {
    let _alone = alone();
    let faults = faults::parse("drop:p=0.25:from=0").expect("faults");
    let config = Config { faults, trace: false, ..quiet(2) };
    let mut world = World::new(&config).expect("a machine");
    world.set_handler(RING_VECTOR, serve);
    world.spawn(Cpu::new(0), || {
        for _ in 0..4000 {
            SimMachine::send(Cpu::new(1), Ipi::Ring).expect("sent");
        }
    });
    world.run(SECOND);
    let lost = world.counters().ipis_lost;
    // A binomial with mean 1000 and standard deviation 27.
    assert!((850..1150).contains(&lost), "{lost}");
}

#[test]
fn a_delayed_message_arrives_late() {
    let _alone = alone();
    let took = one_call("delay:by=50us").0.expect("it arrives");
    assert!(took > micros(50) && took < micros(55), "{took:?}");
}

#[test]
fn a_duplicated_message_interrupts_twice_or_merges() {
    let _alone = alone();
    let (took, trace) = one_call("duplicate");
    assert!(took.is_some());
    assert_eq!(count(&trace, EventKind::IpiSent), 1);
    assert_eq!(count(&trace, EventKind::IpiAccepted) + count(&trace, EventKind::IpiMerged), 2);
}

#[test]
fn a_wedged_cpu_makes_no_step_until_it_is_released_and_then_takes_what_is_pending() {
    let _alone = alone();
    let took = one_call("wedge:cpu=1:at=1us:for=100us").0.expect("in the end");
    assert!(took > micros(90) && took < micros(105), "{took:?}");
    let (took, trace) = one_call("stop:cpu=1:at=1us");
    assert_eq!(took, None);
    assert_eq!(count(&trace, EventKind::IpiAccepted), 1, "its APIC goes on accepting");
    assert_eq!(count(&trace, EventKind::Wedged), 1);
}

#[test]
fn a_wedged_cpu_takes_nmis_and_a_stopped_one_does_not() {
    let _alone = alone();
    for (list, nmis) in [("wedge:cpu=0:at=2us", 1), ("stop:cpu=0:at=2us", 0)] {
        let faults = faults::parse(list).expect("faults");
        let steps = Cell::new(0);
        let steps = &steps;
        let mut world = World::new(&Config { faults, ..quiet(2) }).expect("a machine");
        world.set_nmi_handler(|_| program::advance(micros(3)));
        world.spawn(Cpu::new(0), move || {
            loop {
                program::advance(micros(1));
                steps.set(steps.get() + 1);
            }
        });
        world.spawn(Cpu::new(1), || {
            program::advance(micros(10));
            SimMachine::send(Cpu::new(0), Ipi::Probe).expect("sent");
            program::advance(micros(10));
            program::stop();
        });
        assert_eq!(world.run(SECOND), RunEnd::Stopped);
        let report = world.inspect(Cpu::new(0));
        assert!(report.wedged && !report.interrupts_enabled);
        assert_eq!(report.counters.nmis_taken, nmis, "{list}");
        assert!(steps.get() <= 2, "it made no step");
    }
}

#[test]
fn ticks_come_on_every_cpu_but_the_one_that_misses_them() {
    let _alone = alone();
    let faults = faults::parse("no-tick:cpu=1").expect("faults");
    let mut world = World::new(&Config { faults, ..config(3, 1) }).expect("a machine");
    world.run_on(Instant::from_nanos(42_000_000));
    let ticks = [0, 1, 2].map(|cpu| world.inspect(Cpu::new(cpu)).counters.taken[TIMER_VECTOR as usize]);
    assert_eq!(ticks, [10, 0, 9]);
}

#[test]
fn a_machine_in_which_nothing_can_happen_is_stuck() {
    let _alone = alone();
    let flag = Word::<SimMemory>::new(0);
    let program = || {
        let _frame = program::frame("outer");
        let _frame = program::frame("inner");
        wait::<SimMachine>(&[flag.equals(1, 1)], Deadline::NEVER);
    };
    let mut world = World::new(&quiet(2)).expect("a machine");
    world.spawn(Cpu::new(1), program);
    assert_eq!(world.run(SECOND), RunEnd::Stuck);
    let report = world.inspect(Cpu::new(1));
    assert_eq!(report.frames, ["outer", "inner"]);
    assert_eq!(report.activity, Activity::Waiting);
    assert_eq!(report.waits.len(), 1);
    assert!(report.waits[0].source.file().ends_with("timed.rs"));
    assert!(report.waits[0].deadline.is_never() && report.interrupts_enabled);
    assert_eq!(world.inspect(Cpu::new(0)).activity, Activity::Halted);
}

#[test]
fn a_run_ends_at_its_limit_and_can_be_continued() {
    let _alone = alone();
    let mut world = World::new(&config(1, 1)).expect("a machine");
    world.spawn(Cpu::new(0), || program::advance(Duration::from_millis(30)));
    let limit = Instant::from_nanos(10_000_000);
    assert_eq!(world.run(limit), RunEnd::TimeLimit);
    assert!(world.time() <= limit);
    assert_eq!(world.run(SECOND), RunEnd::ProgramsEnded);
    assert!(world.time() >= Instant::from_nanos(30_000_000));
}

#[test]
#[should_panic(expected = "CPU 1 panicked: the closure broke")]
fn a_panic_comes_out_of_the_run_with_the_name_of_the_cpu() {
    let mut world = World::new(&quiet(2)).expect("a machine");
    world.spawn(Cpu::new(0), || program::advance(micros(100)));
    world.spawn(Cpu::new(1), || panic!("the closure {}", "broke"));
    world.run(SECOND);
}

#[test]
#[should_panic(expected = "only a program or a handler can let time pass")]
fn conditions_cannot_let_time_pass() {
    let mut world = World::new(&quiet(1)).expect("a machine");
    world.spawn(Cpu::new(0), || {
        wait::<SimMachine>(
            &Predicate(|| {
                program::halt();
                true
            }),
            Deadline::NEVER,
        );
    });
    world.run(SECOND);
}

#[test]
#[should_panic(expected = "there is no handler for it")]
fn an_interrupt_without_a_handler_is_a_bug_of_the_program() {
    let mut world = World::new(&quiet(1)).expect("a machine");
    world.spawn(Cpu::new(0), || {
        send_interrupt(Cpu::new(0), fixed(0x44)).expect("sent");
        program::advance(micros(10));
    });
    world.run(SECOND);
}

#[test]
fn a_handler_that_panics_leaves_the_cpu_as_it_was_for_who_catches_it() {
    let _alone = alone();
    let program = || {
        let caught = std::panic::catch_unwind(|| {
            SimMachine::send(Cpu::new(0), Ipi::Ring).expect("sent");
            program::advance(micros(10));
        });
        assert!(caught.is_err());
        assert!(SimMachine::interrupts_enabled());
        assert!(program::inspect(Cpu::new(0)).in_service.is_empty());
    };
    let handler = |mut frame: InterruptFrame| {
        frame.end_of_interrupt();
        panic!("in the handler");
    };
    assert_eq!(run(&quiet(1), &[(RING_VECTOR, handler)], vec![Box::new(program)]).0, RunEnd::ProgramsEnded);
}

#[test]
fn a_machine_can_be_dropped_whatever_its_cpus_are_doing() {
    struct Loud<'a>(&'a Cell<bool>);
    impl Drop for Loud<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let _alone = alone();
    let dropped = Cell::new(false);
    let flag = Word::<SimMemory>::new(0);
    let mut world = World::new(&quiet(3)).expect("a machine");
    world.spawn(Cpu::new(0), || {
        let _loud = Loud(&dropped);
        wait::<SimMachine>(&[flag.equals(1, 1)], Deadline::NEVER);
    });
    world.spawn(Cpu::new(1), || {});
    assert_eq!(world.run(SECOND), RunEnd::Stuck);
    drop(world);
    assert!(!dropped.get(), "a machine that is switched off runs no destructors");
    let owner = Loud(&dropped);
    let mut world = World::new(&quiet(1)).expect("a machine");
    world.spawn(Cpu::new(0), move || drop(owner));
    drop(world);
    assert!(dropped.get(), "but a program that never began is dropped");
}

#[test]
fn the_stack_of_a_cpu_that_was_switched_off_in_mid_program_is_not_used_again() {
    let _alone = alone();
    let flag = Word::<SimMemory>::new(0);
    let place_of_a_local = |ends: bool| {
        let place = Cell::new(0);
        let mut world = World::new(&quiet(1)).expect("a machine");
        world.spawn(Cpu::new(0), || {
            let local = 0u8;
            place.set(core::ptr::from_ref(&local).addr());
            let deadline = if ends { Deadline::at(Instant::default()) } else { Deadline::NEVER };
            wait::<SimMachine>(&[flag.equals(1, 1)], deadline);
        });
        world.run(SECOND);
        drop(world);
        place.get()
    };
    let first = place_of_a_local(true);
    assert_eq!(place_of_a_local(true), first, "an idle CPU's stack is used again");
    assert_eq!(place_of_a_local(false), first);
    assert_ne!(place_of_a_local(false), first, "this one may be referred to for ever");
}

#[test]
fn worlds_on_several_threads_do_not_disturb_each_other() {
    let trace = || {
        let program = || {
            for _ in 0..200 {
                program::advance(Duration::from_nanos(program::random(1000)));
                program::record(EventKind::PostRun, None, 0, program::random(100));
            }
        };
        run(&config(4, 9), &[], vec![Box::new(program), Box::new(program)]).1.to_bytes()
    };
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(trace)).collect();
    let here = trace();
    for thread in threads {
        assert_eq!(thread.join().expect("no panic"), here);
    }
}

#[test]
fn a_machine_that_cannot_be_is_refused_in_a_sentence() {
    let error = |config: Config| match World::new(&config) {
        Ok(_) => panic!("it was built"),
        Err(error) => error.to_string(),
    };
    let config = |cpus| Config::new(cpus, Routing::X2ApicCluster, 0);
    assert_eq!(error(config(0)), "a machine needs at least one CPU");
    assert_eq!(error(config(5000)), "5000 CPUs are too many: the simulator has up to 4096");
    let flat = Config { routing: Routing::Flat, ..config(9) };
    assert_eq!(error(flat), "routing flat reaches 8 CPUs at the most, not 9");
    let faults = faults::parse("no-tick:cpu=2").expect("parses");
    assert_eq!(error(Config { faults, ..config(2) }), "a fault names CPU 2, but the machine has CPUs 0 to 1");
    assert!(matches!(
        World::new(&Config { tick: Some(Duration::ZERO), ..config(2) }),
        Err(ConfigError::TickTooShort)
    ));
}

#[test]
fn the_largest_machine_runs() {
    let _alone = alone();
    let mut world = World::new(&Config::new(4096, Routing::X2ApicCluster, 1)).expect("a machine");
    world.set_handler(RING_VECTOR, |mut frame| frame.end_of_interrupt());
    world.spawn(Cpu::new(17), || {
        let mut all: smpcall_simulator::SimCpuSet = (0..4096).map(Cpu::new).collect();
        all.remove(Cpu::new(17));
        SimMachine::send_many(&all, Ipi::Ring).expect("sent");
        all.remove(Cpu::new(0));
        SimMachine::send_many(&all, Ipi::Ring).expect("sent");
    });
    assert_eq!(world.run(SECOND), RunEnd::ProgramsEnded);
    world.run_on(Instant::from_nanos(1_000_000));
    let counters = world.counters();
    assert_eq!(counters.icr_writes, 1 + 256, "once by shorthand, once per cluster");
    assert_eq!(counters.ipis_sent, 4095 + 4094);
    assert_eq!(counters.ipis_accepted + counters.ipis_merged, 4095 + 4094);
}
