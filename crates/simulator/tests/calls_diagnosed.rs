//! Who does not answer in time is diagnosed: offline, busy, interrupts disabled, not taking, no sign of life; and whom
//! the deadline finds running the closure is reported as overdue.

mod support;

use core::time::Duration;
use std::cell::{Cell, RefCell};

use smpcall::{Deferred, Diagnosis, Post, TargetState};
use smpcall_machine::Instant;
use smpcall_simulator::kernel::Hooks;
use smpcall_simulator::{SimMachine, World, program};
use support::{Calls, Cpu, Machine, counted, cpu, faulty, ms, quiet, run, set, timed_out, took, us, world};

thread_local! {
    static OVERDUE: RefCell<Vec<(Instant, Option<Cpu>, Diagnosis)>> = const { RefCell::new(Vec::new()) };
}

/// What CPU 0 is told about CPU 1 under these faults after waiting for `limit`.
fn diagnosis_under(faults: &str, limit: Duration) -> Diagnosis {
    let told = Cell::new(None);
    let mut world = world(&faulty(4, faults));
    world.spawn(cpu(1), || program::advance(ms(50)));
    world.spawn(cpu(0), || {
        program::advance(us(10));
        let (time, result) = took(|| Calls::within(limit).call(cpu(1), || ()));
        let diagnosis = timed_out(result);
        assert!((limit..limit + us(20)).contains(&time), "{time:?}");
        // Counted from the queueing, a little later than the deadline.
        assert!((limit.saturating_sub(us(1))..limit + us(20)).contains(&diagnosis.waited), "{diagnosis}");
        told.set(Some(diagnosis));
    });
    run_to(&mut world, 40);
    told.get().expect("it was told")
}

/// Runs a machine of which some CPUs never come to an end.
fn run_to(world: &mut World<'_>, millis: u64) {
    world.run(Instant::from_nanos(millis * 1_000_000));
}

#[test]
fn a_cpu_that_keeps_interrupts_disabled_is_diagnosed_as_such() {
    let diagnosis = diagnosis_under("wedge:cpu=1:at=1us", ms(10));
    assert!(matches!(diagnosis.target, TargetState::InterruptsDisabled { .. }), "{diagnosis}");
    assert!(diagnosis.rings_repeated >= 3, "{diagnosis}");
}

#[test]
fn a_cpu_that_makes_no_step_shows_no_sign_of_life() {
    assert_eq!(diagnosis_under("stop:cpu=1:at=1us", ms(10)).target, TargetState::NoSignOfLife);
}

#[test]
fn a_cpu_that_no_ring_reaches_is_diagnosed_as_alive() {
    let diagnosis = diagnosis_under("drop:p=1:vector=0xfb", ms(10));
    assert!(matches!(diagnosis.target, TargetState::NotTaken { .. }), "{diagnosis}");
    // Looks after 0.25, 0.75, 1.75, 3.75 and 7.75 ms.
    assert_eq!(diagnosis.rings_repeated, 5);
}

#[test]
fn a_deadline_that_leaves_no_time_for_a_probe_says_so() {
    let diagnosis = diagnosis_under("stop:cpu=1:at=1us", us(100));
    assert_eq!(diagnosis, Diagnosis { target: TargetState::NotProbed, rings_repeated: 0, ..diagnosis });
}

#[test]
fn the_last_look_before_the_deadline_probes() {
    // The looks come after 250 and 750 us; the second is the last one before the deadline.
    assert_eq!(diagnosis_under("stop:cpu=1:at=1us", us(1_000)).target, TargetState::NoSignOfLife);
    assert_eq!(diagnosis_under("stop:cpu=1:at=1us", us(600)).target, TargetState::NoSignOfLife);
}

#[test]
fn a_call_to_many_diagnoses_the_first_that_timed_out() {
    let mut world = world(&faulty(4, "stop:cpu=1:at=1us,stop:cpu=3:at=1us"));
    world.spawn(cpu(0), || {
        program::advance(us(10));
        let result = Calls::within(ms(10)).call_many(&set([1, 2, 3]), |_| ());
        let Err(smpcall::ManyError::Failed(failures)) = result else { panic!("{result:?}") };
        assert_eq!(failures.timed_out, set([1, 3]));
        assert!(failures.offline.is_empty() && failures.panicked.is_empty());
        let (first, diagnosis) = failures.diagnosis.expect("a diagnosis");
        assert_eq!((first, diagnosis.target), (cpu(1), TargetState::NoSignOfLife));
        assert_eq!(counted(|counters| counters.calls_withdrawn.get()), 2);
    });
    run_to(&mut world, 40);
    assert!(world.inspect(cpu(0)).ended);
}

#[test]
fn a_cpu_that_is_busy_is_diagnosed_with_whose_call_it_runs() {
    let mut world = world(&quiet(4));
    world.spawn(cpu(2), || {
        Calls::for_ever().call(cpu(1), || program::advance(ms(20))).expect("CPU 1 lives");
    });
    world.spawn(cpu(0), || {
        program::advance(us(20));
        let diagnosis = timed_out(Calls::within(ms(5)).call(cpu(1), || ()));
        assert_eq!(diagnosis.target, TargetState::Busy { caller: Some(cpu(2)) });
        assert_eq!(diagnosis.rings_repeated, 0, "it is in a pass, and will look by itself");
    });
    run(&mut world);
}

struct LongErrand;

impl Deferred<SimMachine> for LongErrand {
    type Handle = Box<Post<SimMachine, Self>>;

    fn run(_: Self::Handle) {
        program::advance(ms(20));
    }
}

#[test]
fn a_cpu_that_is_busy_in_a_post_is_diagnosed_as_such() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        Calls::post::<LongErrand>(cpu(1), Box::new(Post::new(LongErrand))).expect("queued");
        program::advance(us(20));
        let diagnosis = timed_out(Calls::within(ms(5)).call(cpu(1), || ()));
        assert_eq!(diagnosis.target, TargetState::Busy { caller: None });
    });
    run(&mut world);
}

#[test]
fn a_cpu_that_does_not_take_nmis_is_not_probed() {
    let mut world = world(&faulty(2, "stop:cpu=1:at=50us"));
    world.spawn(cpu(1), || Calls::declare_nmi(false));
    world.spawn(cpu(0), || {
        program::advance(us(100));
        let diagnosis = timed_out(Calls::within(ms(20)).call(cpu(1), || ()));
        assert_eq!(diagnosis.target, TargetState::NotProbed);
        assert_eq!(counted(|counters| counters.probes_sent.get()), 0);
    });
    run_to(&mut world, 40);
    assert!(world.inspect(cpu(0)).ended);
}

#[test]
fn an_nmi_that_is_no_probe_is_not_answered() {
    thread_local! { static ANSWERED: RefCell<Vec<bool>> = const { RefCell::new(Vec::new()) }; }
    ANSWERED.take();
    let mut world = world(&faulty(2, "drop:n=1,drop:n=2,drop:n=3,drop:n=4"));
    world.set_nmi_handler(|_| ANSWERED.with_borrow_mut(|list| list.push(Calls::handle_nmi(1, true))));
    world.spawn(cpu(0), || {
        // Three repetitions without an answer, and the fourth look probes.
        Calls::for_ever().call(cpu(1), || ()).expect("CPU 1 lives");
        SimMachine::send(cpu(1), smpcall_machine::Ipi::Probe).expect("an NMI");
        program::advance(us(20));
    });
    run(&mut world);
    assert_eq!(ANSWERED.take(), [true, false]);
    assert_eq!(world.mailbox_counters(|counters| counters.probes_answered.get()), 1);
}

fn note_overdue(target: Option<Cpu>, diagnosis: &Diagnosis) {
    OVERDUE.with_borrow_mut(|list| list.push((SimMachine::now(), target, *diagnosis)));
}

fn overdue_intervals(call: impl Fn()) -> Vec<u64> {
    OVERDUE.take();
    let hooks = Hooks { overdue: Some(note_overdue), ..Hooks::default() };
    let started = Cell::new(Instant::default());
    let mut world = World::with_kernel(&quiet(3), hooks).expect("a machine");
    world.spawn(cpu(0), || {
        started.set(SimMachine::now());
        call();
    });
    run(&mut world);
    let mut last = started.get();
    OVERDUE
        .take()
        .into_iter()
        .map(|(time, target, diagnosis)| {
            assert_eq!(target, Some(cpu(1)));
            assert_eq!(diagnosis.target, TargetState::Busy { caller: Some(cpu(0)) });
            let interval = time.since(last);
            last = time;
            // To the nearest tenth of a millisecond.
            (interval.as_micros() as u64 + 50) / 100
        })
        .collect()
}

#[test]
fn an_overdue_call_is_reported_at_its_deadline_and_with_doubling_intervals() {
    let one = overdue_intervals(|| {
        let result = Calls::within(ms(1)).call(cpu(1), || program::advance(ms(20)));
        assert_eq!(result, Ok(()), "and the wait goes on to the end");
    });
    // At 1, 2, 4, 8 and 16 ms.
    assert_eq!(one, [10, 10, 20, 40, 80]);
    let many = overdue_intervals(|| {
        Calls::within(ms(1))
            .call_many(&set([1, 2]), |target| program::advance(ms(20 * u64::from(target == cpu(1)))))
            .expect("and the wait goes on to the end");
    });
    assert_eq!(many, [10, 10, 20, 40, 80]);
}
