//! The life of a CPU in virtual time: not started, started, reset whatever it does, parked.

mod support;

use core::cell::{Cell, RefCell};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use smpcall::CallError;
use smpcall_local_apic::{Routing, Topology};
use smpcall_machine::{Deadline, EventKind, Instant, InterruptsOff, Ipi, Woken, Word, wait};
use smpcall_simulator::faults::parse;
use smpcall_simulator::kernel::{Hooks, come_online};
use smpcall_simulator::{
    Config, ConfigError, RunEnd, SimMachine, SimMemory, SimTopology, World, local_apic, program,
};
use support::{Calls, Machine, cpu, ms, quiet, run, us, world};

type SimWord = Word<SimMemory>;

/// INIT and a start-up message, with the manual's wait between them.
fn start(target: u32) {
    reset(target);
    program::advance(ms(10));
    let id = SimTopology::current().apic_id(cpu(target)).expect("it has an APIC");
    local_apic().send_start_up(id, 8).expect("sent");
}

fn reset(target: u32) {
    let id = SimTopology::current().apic_id(cpu(target)).expect("it has an APIC");
    local_apic().send_init(id).expect("sent");
}

fn wait_for(word: &SimWord, value: u64) {
    assert_eq!(
        wait::<SimMachine>(&[word.equals(u64::MAX, value)], Deadline::within::<SimMachine>(ms(20))),
        Woken::Met(0)
    );
}

/// What a kernel's start-up code does: afterwards the CPU takes calls.
fn go_online() {
    program::enable_local_apic().expect("the routing fits");
    come_online();
    SimMachine::restore_interrupts(true);
}

#[test]
fn a_cpu_that_was_not_started_starts_when_it_is_told_to_and_takes_calls() {
    for routing in [Routing::Flat, Routing::Physical, Routing::X2ApicPhysical, Routing::X2ApicCluster] {
        let config = Config {
            not_started: vec![cpu(1), cpu(2)],
            tick: None,
            trace: true,
            ..Config::new(3, routing, 1)
        };
        let up = SimWord::new(0);
        let mut world = world(&config);
        world.on_start_up(|cpu, page| {
            assert_eq!((cpu.number(), page), (1, 8));
            assert_eq!(SimMachine::current_cpu(), cpu);
            assert!(!SimMachine::interrupts_enabled(), "as after a reset");
            go_online();
            up.store(1, Release);
        });
        world.spawn(cpu(0), || {
            assert!(
                program::is_started(cpu(0)) && !program::is_started(cpu(1)) && !program::is_started(cpu(9))
            );
            assert!(SimTopology::current().shorthand_reach().is_none(), "not all were started");
            let refused = Calls::within(us(50)).call(cpu(1), || ());
            assert!(matches!(refused, Err(CallError::Offline)), "{refused:?}");
            start(1);
            wait_for(&up, 1);
            assert!(program::is_started(cpu(1)));
            let ran_on = Calls::within(ms(1)).call(cpu(1), SimMachine::current_cpu);
            assert_eq!(ran_on, Ok(cpu(1)));
        });
        run(&mut world);
        let report = world.inspect(cpu(1));
        assert!(report.ended && !report.parked && !report.waits_for_start_up && report.interrupts_enabled);
        assert_eq!((report.counters.resets, report.counters.start_ups), (1, 1));
        assert!(world.inspect(cpu(2)).waits_for_start_up, "nobody started it");
        assert!(world.trace().events.iter().any(|event| {
            event.kind == EventKind::StartedUp
                && event.cpu == cpu(1)
                && event.other == Some(cpu(0))
                && event.detail == 8
        }));
    }
}

#[test]
fn a_start_up_message_to_a_cpu_that_does_not_wait_for_one_changes_nothing() {
    let starts = Cell::new(0);
    let mut world = world(&quiet(2));
    world.on_start_up(|_, _| starts.set(starts.get() + 1));
    world.spawn(cpu(0), || {
        let id = SimTopology::current().apic_id(cpu(1)).expect("it has an APIC");
        // Without an INIT before.
        local_apic().send_start_up(id, 8).expect("sent");
        program::advance(ms(1));
        assert_eq!(Calls::within(ms(1)).call(cpu(1), || 7), Ok(7));
        start(1);
        // The second one of INIT-SIPI-SIPI.
        program::advance(us(200));
        local_apic().send_start_up(id, 9).expect("sent");
        program::advance(ms(1));
    });
    run(&mut world);
    assert_eq!(starts.get(), 1);
    let report = world.inspect(cpu(1));
    assert_eq!((report.counters.start_ups, report.counters.ipis_rejected), (1, 2));
    assert!(report.parked, "its start-up program returned with interrupts disabled");
}

/// Resets CPU 1 while it runs `victim`, 100 us after the start.
fn reset_during(faults: &str, victim: impl Fn()) -> (RunEnd, bool) {
    let finished = Cell::new(false);
    let started = Cell::new(0);
    let config = Config { faults: parse(faults).expect("faults"), ..quiet(2) };
    let end = {
        let mut world = world(&config);
        world.set_nmi_handler(|_| {
            loop {
                program::advance(us(10));
            }
        });
        world.on_start_up(|_, _| {
            assert!(!SimMachine::in_nmi() && !SimMachine::interrupts_enabled());
            let report = program::inspect(cpu(1));
            assert!(report.requested.is_empty() && report.in_service.is_empty(), "INIT clears them");
            assert!(report.frames.is_empty() && report.waits.is_empty() && !report.wedged);
            started.set(started.get() + 1);
            go_online();
        });
        world.spawn(cpu(1), || {
            let _frame = program::frame("victim");
            victim();
            finished.set(true);
        });
        world.spawn(cpu(0), || {
            program::advance(us(100));
            SimMachine::send(cpu(1), Ipi::Ring).expect("sent");
            program::advance(us(10));
            start(1);
            program::advance(ms(1));
            assert_eq!(started.get(), 1);
            assert_eq!(Calls::within(ms(1)).call(cpu(1), || 7), Ok(7));
        });
        world.run(Instant::from_nanos(1_000_000_000))
    };
    (end, finished.get())
}

#[test]
fn init_resets_a_cpu_whatever_it_does() {
    static NEVER: SimWord = SimWord::new(0);
    let off = || core::mem::forget(InterruptsOff::<SimMachine>::new());
    let cases: [(&str, &str, &dyn Fn()); 7] = [
        ("works", "", &|| program::advance(ms(100))),
        ("works with interrupts disabled", "", &|| {
            off();
            program::advance(ms(100));
        }),
        ("waits", "", &|| {
            let _ = wait::<SimMachine>(&[NEVER.equals(1, 1)], Deadline::NEVER);
        }),
        ("is halted", "", &|| {
            loop {
                program::halt();
            }
        }),
        ("is parked", "", &|| program::park()),
        ("is in its NMI handler", "", &|| {
            SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
            program::advance(ms(100));
        }),
        ("is wedged for ever", "wedge:cpu=1:at=10us", &|| program::advance(ms(100))),
    ];
    for (what, faults, victim) in cases {
        assert_eq!(reset_during(faults, victim), (RunEnd::ProgramsEnded, false), "{what}");
    }
}

#[test]
fn a_cpu_that_the_hypervisor_does_not_run_starts_when_it_runs_it_again() {
    let config = Config { faults: parse("stop:cpu=1:at=10us:for=30ms").expect("faults"), ..quiet(2) };
    let began = Cell::new(Instant::default());
    let mut world = world(&config);
    world.on_start_up(|_, _| began.set(SimMachine::now()));
    world.spawn(cpu(1), || program::advance(ms(100)));
    world.spawn(cpu(0), || {
        program::advance(us(100));
        start(1);
        program::advance(ms(50));
    });
    run(&mut world);
    assert!(began.get() >= Instant::from_nanos(30_010_000), "{:?}", began.get());
}

#[test]
fn what_waited_for_a_word_is_not_woken_after_its_reset() {
    let flag = SimWord::new(0);
    let woken = Cell::new(false);
    let mut world = world(&quiet(2));
    world.on_start_up(|_, _| ());
    world.spawn(cpu(1), || {
        let _ = wait::<SimMachine>(&[flag.equals(1, 1)], Deadline::NEVER);
        woken.set(true);
    });
    world.spawn(cpu(0), || {
        program::advance(us(10));
        reset(1);
        program::advance(us(10));
        flag.store(1, Release);
        start(1);
        flag.store(0, Release);
        flag.store(1, Release);
        program::advance(ms(1));
    });
    run(&mut world);
    assert!(!woken.get());
}

#[test]
fn a_cpu_can_reset_itself() {
    let started = Cell::new(false);
    let mut world = world(&quiet(2));
    world.on_start_up(|_, _| started.set(true));
    world.spawn(cpu(1), || {
        reset(1);
        program::advance(ms(50));
        unreachable!("it was reset");
    });
    world.spawn(cpu(0), || {
        program::advance(ms(1));
        assert!(!program::is_started(cpu(1)));
        let id = SimTopology::current().apic_id(cpu(1)).expect("it has an APIC");
        local_apic().send_start_up(id, 1).expect("sent");
        program::advance(ms(1));
    });
    run(&mut world);
    assert!(started.get());
}

#[test]
fn the_boot_cpu_survives_an_init_and_everybody_hears_of_it() {
    let config = Config { trace: true, ..quiet(2) };
    let ended = Cell::new(false);
    let mut world = world(&config);
    world.spawn(cpu(1), || reset(0));
    world.spawn(cpu(0), || {
        program::advance(us(100));
        ended.set(true);
    });
    run(&mut world);
    assert!(ended.get());
    assert_eq!(world.boot_cpu_inits(), 1);
    let told = world.trace().events.iter().filter(|event| event.kind == EventKind::BootCpuSentInit).count();
    assert_eq!(told, 1);
}

#[test]
fn a_parked_cpu_takes_nmis_and_no_interrupts_and_is_not_waited_for() {
    thread_local! {
        static SEEN: RefCell<Vec<bool>> = const { RefCell::new(Vec::new()) };
    }
    let mut world = world(&quiet(2));
    world.set_nmi_handler(|frame| {
        SEEN.with_borrow_mut(|seen| seen.push(frame.interrupts_were_enabled));
        assert!(!program::inspect(cpu(1)).parked, "it does something now");
    });
    world.spawn(cpu(1), || {
        Calls::close(&mut InterruptsOff::<SimMachine>::new());
        program::park();
    });
    world.spawn(cpu(0), || {
        program::advance(us(10));
        for _ in 0..2 {
            SimMachine::send(cpu(1), Ipi::Ring).expect("sent");
            SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
            program::advance(us(50));
            assert!(program::inspect(cpu(1)).parked, "it went on parking");
        }
    });
    run(&mut world);
    assert_eq!(SEEN.take(), [false, false]);
    let report = world.inspect(cpu(1));
    assert_eq!(
        (report.counters.taken[smpcall_simulator::RING_VECTOR as usize], report.counters.nmis_taken),
        (0, 2)
    );
    assert!(
        report.parked && !report.interrupts_enabled && report.requested == [smpcall_simulator::RING_VECTOR]
    );
}

#[test]
fn a_cpu_can_be_reset_and_started_again_and_again() {
    let starts = SimWord::new(0);
    let config = Config { not_started: vec![cpu(1)], ..quiet(2) };
    let mut world = world(&config);
    world.on_start_up(|_, _| {
        starts.fetch_add(1, Release);
        program::advance(us(1));
        program::park();
    });
    world.spawn(cpu(0), || {
        for round in 1..=1000 {
            start(1);
            wait_for(&starts, round);
        }
    });
    let end = world.run(Instant::from_nanos(100_000_000_000));
    assert_eq!(end, RunEnd::ProgramsEnded);
    assert_eq!(starts.load(Acquire), 1000);
    // SAFETY: nothing outside refers to the CPUs' stacks, and nothing there has a destructor that matters.
    unsafe { world.forget_programs() };
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_resets_too() {
    let bytes = |seed| {
        let config = Config {
            trace: true,
            not_started: vec![cpu(3)],
            faults: parse("delay:by=3us:p=0.2,duplicate:p=0.1").expect("faults"),
            ..Config::new(4, Routing::X2ApicCluster, seed)
        };
        let ups = SimWord::new(0);
        ups.store(0, Relaxed);
        let mut world = World::with_kernel(&config, Hooks::default()).expect("a machine");
        world.on_start_up(|_, _| {
            go_online();
            ups.fetch_add(1, Release);
        });
        world.spawn(cpu(0), || {
            for target in [3, 1, 3, 2] {
                let before = ups.load(Acquire);
                start(target);
                wait_for(&ups, before + 1);
                let _ = Calls::within(us(100)).call(cpu(target), || ());
            }
        });
        run(&mut world);
        world.trace().to_bytes()
    };
    let first = bytes(3);
    assert_eq!(first, bytes(3));
    assert_ne!(first, bytes(4));
}

#[test]
fn a_machine_whose_boot_cpu_is_not_started_is_refused() {
    let refused =
        |not_started: Vec<_>| World::new(&Config { not_started, ..quiet(2) }).err().expect("is refused");
    assert_eq!(refused(vec![cpu(0)]), ConfigError::BootCpuNotStarted);
    assert_eq!(refused(vec![cpu(2)]), ConfigError::NoSuchCpu { cpu: cpu(2), cpus: 2 });
    assert_eq!(refused(vec![cpu(1), cpu(1)]), ConfigError::NotStartedTwice(cpu(1)));
    assert_eq!(refused(vec![cpu(1), cpu(1)]).to_string(), "CPU 1 is named twice as not to be started");
}
