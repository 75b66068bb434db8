//! The conformance list, part 3: what kvm-unit-tests' `x86/apic.c` checks of the timer, one test per line of its list. The
//! driver starts it and reads it, on a machine whose CPU takes every interrupt at once.

mod conformance;

use core::time::Duration;
use std::cell::RefCell;

use conformance::{config, cpu, run};
use smpcall_local_apic::{
    Access, DeadlineRegister, LocalSource, LocalVector, Mode, Register, Routing, TimerDivide, TimerMode,
    Vector,
};
use smpcall_machine::{Instant, Machine};
use smpcall_simulator::apic::ApicModel;
use smpcall_simulator::{SimAccess, SimMachine, World, local_apic, program};

const VECTOR: Vector = match Vector::new(0xee) {
    Some(vector) => vector,
    None => panic!("it is legal"),
};
/// In counts, which are nanoseconds when they are divided by one.
const INITIAL: u32 = 0x9_9999;

thread_local! {
    /// When the timer's interrupts were taken.
    static TAKEN: RefCell<Vec<Instant>> = const { RefCell::new(Vec::new()) };
}

/// Runs a test on a CPU of a machine, on xAPIC and x2APIC.
fn on_cpu(test: impl Fn()) {
    for routing in [Routing::Flat, Routing::X2ApicPhysical] {
        TAKEN.take();
        let mut world = World::new(&config(1, routing)).expect("a machine");
        world.set_handler(VECTOR.number(), |mut frame| {
            TAKEN.with_borrow_mut(|taken| taken.push(SimMachine::now()));
            frame.end_of_interrupt();
        });
        world.spawn(cpu(0), &test);
        run(&mut world);
    }
}

fn taken() -> usize {
    TAKEN.with_borrow(Vec::len)
}

fn pass(nanos: u32) {
    program::advance(Duration::from_nanos(nanos.into()));
}

/// Starts it with this count; when the count was written.
fn start(mode: TimerMode, count: u32) -> Instant {
    local_apic().start_timer(mode, TimerDivide::By1, count, VECTOR).expect("there is a timer");
    SimMachine::now()
}

/// Changes the mode and nothing else.
fn set_mode(timer_mode: TimerMode) {
    let entry = LocalVector { timer_mode, ..LocalVector::fixed(VECTOR) };
    local_apic().set_local_vector(LocalSource::Timer, entry).expect("there is a timer");
}

fn count() -> u32 {
    local_apic().timer_count()
}

/// Looks until the count is at most half; it falls meanwhile.
fn run_to_half() {
    let mut last = u32::MAX;
    loop {
        let count = count();
        assert!(count < last, "{count} after {last}");
        if count <= INITIAL / 2 {
            return;
        }
        last = count;
    }
}

/// Looks until the count is zero or has begun anew.
fn run_to_end() -> u32 {
    let mut last = count();
    loop {
        let count = count();
        if count == 0 || count > last {
            return count;
        }
        last = count;
    }
}

/// `test_apic_timer_one_shot`.
#[test]
fn one_shot_interrupts_once_and_not_before_its_interval() {
    const INTERVAL: u32 = 0x1_0000;
    on_cpu(|| {
        let started = start(TimerMode::OneShot, INTERVAL);
        pass(INTERVAL - 100);
        assert_eq!(taken(), 0);
        pass(1000);
        let times = TAKEN.with_borrow(Vec::clone);
        let [at] = times[..] else { panic!("{times:?}") };
        let due = started.plus(Duration::from_nanos(INTERVAL.into()));
        assert!(at >= due && at.since(due) < Duration::from_micros(1), "{at:?}, due at {due:?}");
        pass(10 * INTERVAL);
        assert_eq!(taken(), 1);
    });
}

/// `test_apic_change_mode`: "TMICT value reset".
#[test]
fn a_change_of_mode_leaves_the_initial_count() {
    on_cpu(|| {
        start(TimerMode::OneShot, INITIAL);
        set_mode(TimerMode::Periodic);
        assert_eq!(SimAccess.read(Register::TIMER_INITIAL_COUNT), INITIAL);
        local_apic().stop_timer();
    });
}

/// `test_apic_change_mode`: one-shot counts to zero.
#[test]
fn one_shot_counts_down_to_zero() {
    on_cpu(|| {
        start(TimerMode::OneShot, INITIAL);
        assert_ne!(count(), 0);
        run_to_half();
        assert_eq!(run_to_end(), 0);
        assert_eq!(count(), 0);
    });
}

/// `test_apic_change_mode`: from one-shot to periodic in the middle, the count goes on and then begins anew.
#[test]
fn from_one_shot_to_periodic_the_count_goes_on_and_wraps() {
    on_cpu(|| {
        start(TimerMode::OneShot, INITIAL);
        run_to_half();
        set_mode(TimerMode::Periodic);
        let count = count();
        assert!(count != 0 && count < INITIAL / 2, "{count:#x}");
        assert!(run_to_end() > INITIAL / 2);
        // It may have come while the register was read.
        pass(1000);
        assert_eq!(taken(), 1);
        local_apic().stop_timer();
    });
}

/// `test_apic_change_mode`: from periodic to one-shot in the middle, the count goes on to zero and stays there.
#[test]
fn from_periodic_to_one_shot_the_count_goes_on_to_zero() {
    on_cpu(|| {
        start(TimerMode::Periodic, INITIAL);
        assert!(run_to_end() > INITIAL / 2);
        run_to_half();
        set_mode(TimerMode::OneShot);
        assert!(count() < INITIAL / 2);
        assert_eq!(run_to_end(), 0);
        pass(2 * INITIAL);
        assert_eq!((count(), taken()), (0, 2));
    });
}

/// `test_apic_change_mode`: a one-shot timer that has ended stays at zero in periodic mode.
#[test]
fn a_timer_that_has_ended_is_not_started_by_a_change_of_mode() {
    on_cpu(|| {
        start(TimerMode::OneShot, INITIAL);
        pass(2 * INITIAL);
        set_mode(TimerMode::Periodic);
        pass(2 * INITIAL);
        assert_eq!((count(), taken()), (0, 1));
    });
}

/// `test_tsc_deadline_timer`: a deadline that is now interrupts once.
#[test]
fn a_tsc_deadline_of_now_interrupts_once() {
    on_cpu(|| {
        let apic = local_apic();
        apic.set_deadline_timer(VECTOR).expect("there is a timer");
        apic.access().write_tsc_deadline(SimMachine::now().as_nanos());
        pass(1000);
        assert_eq!(taken(), 1);
        pass(1_000_000);
        assert_eq!(taken(), 1, "no second time");
    });
}

/// `test_tsc_deadline_timer`: the register is clear afterwards. On the bare model: no driver reads it.
#[test]
fn a_tsc_deadline_that_has_come_clears_itself() {
    let now = Instant::from_nanos(1000);
    let mut apic = ApicModel::new(0, Mode::XApic);
    apic.write(Register::SPURIOUS_VECTOR, 0x1ff, now).expect("it can be written");
    apic.write(Register::LVT_TIMER, 1 << 18 | u32::from(VECTOR.number()), now).expect("it can be written");
    apic.write_tsc_deadline(now.as_nanos(), now);
    assert_eq!((apic.take(), apic.read_tsc_deadline()), (Some(VECTOR.number()), 0));
}
