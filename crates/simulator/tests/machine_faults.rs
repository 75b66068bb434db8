//! Faults of CPUs, clocks and ticks in virtual time.

mod support;

use core::cell::Cell;
use core::time::Duration;

use smpcall_local_apic::Routing;
use smpcall_machine::{
    Deadline, EventKind, Instant, InterruptsOff, Ipi, SendError, Woken, Word, wait, wait_at_most,
};
use smpcall_simulator::faults::parse;
use smpcall_simulator::{
    Config, RunEnd, SPURIOUS_VECTOR, SimMachine, SimMemory, TIMER_VECTOR, World, program,
};
use support::{Calls, Machine, cpu, ms, quiet, run, us, world};

type SimWord = Word<SimMemory>;

fn with(faults: &str, config: Config) -> Config {
    Config { faults: parse(faults).expect("faults"), ..config }
}

#[test]
fn a_cpu_that_is_wedged_in_its_nmi_handler_makes_no_step_and_takes_nothing() {
    for (faults, comes_back) in [("nmi-wedge:cpu=1:for=1ms", true), ("nmi-wedge:cpu=1:at=50us", false)] {
        let returned = Cell::new(false);
        let mut world = World::new(&with(faults, quiet(2))).expect("a machine");
        world.set_nmi_handler(|_| program::advance(us(1)));
        world.spawn(cpu(1), || {
            program::advance(us(200));
            returned.set(true);
        });
        world.spawn(cpu(0), || {
            program::advance(us(100));
            SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
            program::advance(us(50));
            let report = program::inspect(cpu(1));
            assert!(report.in_nmi && report.wedged, "{faults}");
            SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
        });
        let end = world.run(Instant::from_nanos(10_000_000));
        assert_eq!((end == RunEnd::ProgramsEnded, returned.get()), (comes_back, comes_back), "{faults}");
        let nmis = world.inspect(cpu(1)).counters.nmis_taken;
        assert_eq!(nmis, if comes_back { 2 } else { 1 }, "one is latched: {faults}");
    }
}

/// Works for 10 us, a hundred times, and says what the longest gap on its clock was.
fn longest_gap(config: &Config) -> Duration {
    let longest = Cell::new(Duration::ZERO);
    let mut world = World::new(config).expect("a machine");
    for number in 0..2 {
        let longest = &longest;
        world.spawn(cpu(number), move || {
            for _ in 0..100 {
                let before = SimMachine::now();
                program::advance(us(10));
                longest.set(longest.get().max(SimMachine::now().since(before)));
            }
        });
    }
    run(&mut world);
    longest.get()
}

#[test]
fn a_pause_of_the_whole_machine_is_seen_on_the_clocks_only_if_they_go_on() {
    let gap = |faults| longest_gap(&with(faults, quiet(2)));
    assert!(gap("") < us(11));
    let jumps = gap("pause:at=500us:for=20ms");
    assert!(jumps >= ms(20) && jumps < ms(20) + us(11), "{jumps:?}");
    assert!(gap("pause:at=500us:for=20ms:clock-stops") < us(11));
}

#[test]
fn a_call_that_waits_through_a_pause_is_answered_after_it() {
    let config = with("pause:at=100us:for=5ms:clock-stops", quiet(2));
    let mut world = world(&config);
    world.spawn(cpu(0), || {
        for _ in 0..1000 {
            assert_eq!(
                Calls::within(us(50)).call(cpu(1), || 7),
                Ok(7),
                "no deadline passes while clocks stand still"
            );
        }
    });
    run(&mut world);
    assert!(world.time() > Instant::from_nanos(5_100_000));
}

#[test]
fn a_wait_on_a_clock_that_stands_still_ends_by_what_it_counts() {
    let never = SimWord::new(0);
    let took = Cell::new((Duration::ZERO, 0));
    let mut world = World::new(&with("clock-stops:cpu=1:at=100us", quiet(2))).expect("a machine");
    world.spawn(cpu(1), || {
        program::advance(us(200));
        let before = SimMachine::now();
        assert_eq!(before, Instant::from_nanos(100_000));
        let real = program::inspect(cpu(1)).time;
        let deadline = Deadline::within::<SimMachine>(us(10));
        assert_eq!(wait_at_most::<SimMachine>(&[never.equals(1, 1)], deadline, 1000), Woken::Deadline);
        let passed = program::inspect(cpu(1)).time.since(real);
        took.set((passed, SimMachine::now().since(before).as_nanos()));
    });
    world.spawn(cpu(0), || {
        program::advance(us(300));
        assert!(SimMachine::now() >= Instant::from_nanos(300_000), "its own clock goes on");
    });
    run(&mut world);
    let (passed, shown) = took.get();
    assert_eq!(shown, 0);
    assert!(passed > us(10) && passed < ms(1), "{passed:?}");
}

#[test]
fn a_clock_that_stood_still_goes_on_from_there_and_deadlines_with_it() {
    let never = SimWord::new(0);
    let mut world = World::new(&with("clock-stops:cpu=0:at=10us:for=100us", quiet(1))).expect("a machine");
    world.spawn(cpu(0), || {
        let woken = wait::<SimMachine>(&[never.equals(1, 1)], Deadline::at(Instant::from_nanos(30_000)));
        assert_eq!(woken, Woken::Deadline);
        let (shown, real) = (SimMachine::now(), program::inspect(cpu(0)).time);
        assert!(shown >= Instant::from_nanos(30_000) && shown < Instant::from_nanos(31_000), "{shown:?}");
        assert!(real >= Instant::from_nanos(130_000) && real < Instant::from_nanos(131_000), "{real:?}");
    });
    run(&mut world);
}

#[test]
fn a_spurious_interrupt_puts_nothing_in_service() {
    thread_local! {
        static TAKEN: Cell<u32> = const { Cell::new(0) };
    }
    let mut world = World::new(&with("spurious:cpu=0:at=10us", quiet(1))).expect("a machine");
    world.set_handler(SPURIOUS_VECTOR, |frame| {
        TAKEN.set(TAKEN.get() + 1);
        assert_eq!(frame.vector, Some(SPURIOUS_VECTOR));
        assert!(program::inspect(cpu(0)).in_service.is_empty());
    });
    world.spawn(cpu(0), || {
        let off = InterruptsOff::<SimMachine>::new();
        program::advance(us(20));
        assert_eq!(TAKEN.get(), 0);
        drop(off);
        program::advance(us(20));
        assert_eq!(TAKEN.get(), 1);
    });
    run(&mut world);
}

#[test]
fn a_spurious_interrupt_without_a_handler_of_its_own_does_no_harm() {
    let mut world = world(&with("spurious:cpu=1:at=10us", quiet(2)));
    world.spawn(cpu(0), || {
        program::advance(us(20));
        assert_eq!(Calls::within(ms(1)).call(cpu(1), || 7), Ok(7));
    });
    run(&mut world);
    assert_eq!(world.inspect(cpu(1)).counters.taken[SPURIOUS_VECTOR as usize], 1);
}

/// When CPU 0 took its ticks within 24 ms, in microseconds; they are due every 4 ms.
fn ticks(faults: &str) -> Vec<u64> {
    let config = Config { trace: true, ..with(faults, Config::new(1, Routing::Flat, 3)) };
    let mut world = World::new(&config).expect("a machine");
    world.spawn(cpu(0), || program::advance(us(23_900)));
    run(&mut world);
    let taken = |event: &&smpcall_machine::Event| {
        event.kind == EventKind::InterruptTaken && event.detail == TIMER_VECTOR.into()
    };
    world.trace().events.iter().filter(taken).map(|event| event.time.as_nanos() / 1000).collect()
}

#[test]
fn ticks_are_lost_and_late_as_told_and_the_others_come_when_they_should() {
    let on_time = ticks("");
    let millis = |ticks: &[u64]| ticks.iter().map(|micros| (micros + 50) / 1000).collect::<Vec<_>>();
    assert_eq!(millis(&on_time), [4, 8, 12, 16, 20]);
    assert_eq!(millis(&ticks("lose-tick:n=2")), [4, 12, 16, 20]);
    assert_eq!(millis(&ticks("lose-tick:p=1")), []);
    assert_eq!(millis(&ticks("lose-tick:n=2:cpu=0,delay-tick:by=1ms")), [5, 13, 17, 21]);
    assert_eq!(millis(&ticks("delay-tick:by=1ms:cpu=0")), [5, 9, 13, 17, 21]);
}

#[test]
fn a_busy_icr_as_a_fault_refuses_what_is_sent_and_heals() {
    let config = with(
        "icr-busy:cpu=0:at=10us:for=200us",
        Config { tick: None, ..Config::new(2, Routing::Physical, 1) },
    );
    let mut world = world(&config);
    world.spawn(cpu(0), || {
        SimMachine::send(cpu(1), Ipi::Ring).expect("sent");
        program::advance(us(20));
        assert_eq!(SimMachine::send(cpu(1), Ipi::Ring), Err(SendError::ControllerBusy));
        program::advance(us(200));
        SimMachine::send(cpu(1), Ipi::Ring).expect("sent");
    });
    run(&mut world);
}

/// CPU 1 works all the time; CPU 0 sends it an NMI at each of these moments (in microseconds). When it took them.
fn nmis(faults: &str, at: &[u64]) -> Vec<u64> {
    let config = Config { trace: true, ..with(faults, quiet(2)) };
    let mut world = World::new(&config).expect("a machine");
    world.set_nmi_handler(|_| program::advance(us(5)));
    world.spawn(cpu(1), || program::advance(ms(1)));
    world.spawn(cpu(0), || {
        for &moment in at {
            program::advance(Instant::from_nanos(moment * 1000).since(SimMachine::now()));
            SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
        }
    });
    world.run(Instant::from_nanos(5_000_000));
    let taken = |event: &&smpcall_machine::Event| event.kind == EventKind::NmiTaken;
    world.trace().events.iter().filter(taken).map(|event| event.time.as_nanos() / 1000).collect()
}

/// The same, without the microsecond that a message is on its way.
fn nmis_at(faults: &str, at: &[u64], expected: &[u64]) {
    let taken = nmis(faults, at);
    let near = |(taken, expected): (&u64, &u64)| (*expected..=expected + 2).contains(taken);
    assert!(
        taken.len() == expected.len() && taken.iter().zip(expected).all(near),
        "{faults}: {taken:?}, not {expected:?}"
    );
}

#[test]
fn a_wedge_lets_nmis_in_and_a_stop_does_not_not_even_in_their_handlers() {
    nmis_at("", &[100, 200], &[100, 200]);
    nmis_at("wedge:cpu=1:at=50us", &[100, 200], &[100, 200]);
    nmis_at("stop:cpu=1:at=50us:for=300us", &[100, 200], &[350]);
    // One is in its handler when the stop begins, one is latched, one more merges with it.
    nmis_at("stop:cpu=1:at=103us:for=300us", &[100, 200, 250], &[100, 403]);
}

#[test]
fn an_nmi_that_comes_in_a_pause_is_taken_after_it_by_a_cpu_that_is_wedged_too() {
    nmis_at("wedge:cpu=1:at=50us,pause:at=60us:for=100us", &[40, 200], &[40, 200]);
    // CPU 0 is paused as well: its message is on its way when the pause begins.
    for wedge in ["", "wedge:cpu=1:at=50us,", "wedge:cpu=1:at=50us:for=80us,"] {
        nmis_at(&format!("{wedge}delay:by=50us:nmi,pause:at=120us:for=100us"), &[100], &[220]);
    }
}

#[test]
fn pauses_that_overlap_last_until_the_later_end() {
    for faults in [
        "pause:at=100us:for=300us,pause:at=200us:for=50us",
        "pause:at=200us:for=200us,pause:at=100us:for=150us",
    ] {
        let gap = longest_gap(&with(faults, quiet(2)));
        assert!(gap >= us(300) && gap < us(311), "{gap:?}");
    }
}

#[test]
fn a_wedge_in_an_nmi_handler_leaves_another_wedge_as_it_was() {
    // The wedge lasts until 500 us; the NMI's ends within it, and the task goes on at its end and no earlier.
    let ends = |faults: &str| {
        let ended = Cell::new(0);
        let mut world = World::new(&with(faults, quiet(2))).expect("a machine");
        world.set_nmi_handler(|_| ());
        world.spawn(cpu(1), || {
            program::advance(us(60));
            ended.set(SimMachine::now().as_nanos() / 1000);
        });
        world.spawn(cpu(0), || {
            program::advance(us(100));
            SimMachine::send(cpu(1), Ipi::Probe).expect("sent");
        });
        run(&mut world);
        assert_eq!(world.inspect(cpu(1)).counters.nmis_taken, 1, "{faults}");
        ended.get()
    };
    assert_eq!(ends("wedge:cpu=1:at=50us:for=450us") / 10, 50);
    assert_eq!(ends("wedge:cpu=1:at=50us:for=450us,nmi-wedge:cpu=1:for=100us") / 10, 50);
    assert_eq!(ends("wedge:cpu=1:at=50us:for=450us,nmi-wedge:cpu=1:for=600us") / 10, 70);
}

#[test]
fn icr_faults_that_overlap_last_until_the_later_end() {
    let faults = "icr-busy:cpu=0:at=10us:for=200us,icr-busy:cpu=0:at=50us:for=20us";
    let mut world = world(&with(faults, Config { tick: None, ..Config::new(2, Routing::Physical, 1) }));
    world.spawn(cpu(0), || {
        program::advance(us(100));
        assert!(program::inspect(cpu(0)).send_pending);
        program::advance(us(120));
        assert!(!program::inspect(cpu(0)).send_pending);
    });
    run(&mut world);
}
