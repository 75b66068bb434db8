//! What cannot be called is refused at once, by name, with nothing sent and nothing run.

mod support;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::cell::RefCell;

use smpcall::{CallError, Deferred, ManyError, ManyFailures, Post, PostRefusal, Posted};
use smpcall_machine::{CpuSet, Deadline, Instant, InterruptsOff, Ipi};
use smpcall_simulator::{SimMachine, program};
use support::{Calls, Cpu, Flag, Machine, counted, cpu, icr_writes, ms, quiet, run, set, us, world};

/// A post that counts its runs, for each CPU of the machine.
struct Errand(AtomicU64);

impl Deferred<SimMachine> for Errand {
    type Handle = &'static Post<SimMachine, Self>;

    fn run(post: Self::Handle) {
        post.value().0.fetch_add(1 << (8 * SimMachine::current_cpu().number()), Relaxed);
    }
}

fn errand() -> &'static Post<SimMachine, Errand> {
    Box::leak(Box::new(Post::new(Errand(AtomicU64::new(0)))))
}

fn failures(error: ManyError<SimMachine>) -> ManyFailures<SimMachine> {
    match error {
        ManyError::Failed(failures) => failures,
        ManyError::NotSent(error) => panic!("nothing was sent: {error}"),
    }
}

fn not_sent(result: Result<(), ManyError<SimMachine>>) -> CallError {
    match result {
        Err(ManyError::NotSent(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn refusal<H>(result: Result<Posted, smpcall::PostError<H>>) -> PostRefusal {
    result.map_err(|error| error.reason).expect_err("the post is refused")
}

/// CPU 2 closes its mailbox and opens it again; CPU 0 calls it in between and afterwards.
#[test]
fn an_offline_cpu_is_refused_by_every_kind_of_call_and_works_again_when_it_is_back() {
    let (closed, refused, open) = (Flag::new(), Flag::new(), Flag::new());
    let (ran, post) = (AtomicU64::new(0), errand());
    let mut world = world(&quiet(3));
    world.spawn(cpu(0), || {
        closed.reached(1);
        let runs = |cpu: Cpu| {
            ran.fetch_add(1 << (8 * cpu.number()), Relaxed);
        };
        let before = icr_writes();
        assert!(!Calls::is_online(cpu(2)));
        assert_eq!(Calls::for_ever().call(cpu(2), || runs(cpu(2))), Err(CallError::Offline));
        assert_eq!(Calls::for_ever().call_static(cpu(2), || ()), Err(CallError::Offline));
        assert_eq!(Calls::for_ever().call_any(&set([2]), || runs(cpu(2))), Err(CallError::Offline));
        assert_eq!(refusal(Calls::post::<Errand>(cpu(2), post)), PostRefusal::Offline);
        assert_eq!(Calls::reschedule(cpu(2)), Err(CallError::Offline));
        let failed = failures(Calls::for_ever().call_many(&set([2]), runs).expect_err("offline"));
        assert_eq!(failed.offline, set([2]));
        assert_eq!(icr_writes(), before, "nothing is sent to a CPU that is offline");
        assert_eq!(ran.load(Relaxed), 0);

        let failed =
            failures(Calls::for_ever().call_many(&set([0, 1, 2]), runs).expect_err("one is offline"));
        assert_eq!(failed.offline, set([2]));
        assert!(failed.timed_out.is_empty() && failed.panicked.is_empty() && failed.diagnosis.is_none());
        assert_eq!(ran.load(Relaxed), 0x00_01_01, "it ran on the others, once");
        assert_eq!(Calls::for_ever().call_any(&set([2, 1]), || ()).map(|(cpu, ())| cpu), Ok(cpu(1)));
        Calls::for_ever().call_others(runs).expect("whoever is offline is not meant by `others`");
        assert_eq!(ran.load(Relaxed), 0x00_02_01);
        Calls::for_ever().call_if(|_| true, runs).expect("nor asked by `call_if`");
        assert_eq!(ran.load(Relaxed), 0x00_03_02);
        refused.raise();

        open.reached(1);
        assert_eq!(Calls::for_ever().call(cpu(2), || 7), Ok(7));
        assert_eq!(
            Calls::post::<Errand>(cpu(2), post).ok(),
            Some(Posted::Queued),
            "the handle came back idle"
        );
        Calls::for_ever().call(cpu(2), || ()).expect("runs after the post");
        assert_eq!(post.value().0.load(Relaxed), 1 << 16);
    });
    world.spawn(cpu(2), || {
        Calls::close(&mut InterruptsOff::new());
        closed.raise();
        refused.reached(1);
        Calls::open();
        open.raise();
    });
    run(&mut world);
}

#[test]
fn a_call_to_any_goes_on_to_the_first_that_is_online() {
    let closed = Flag::new();
    let mut world = world(&quiet(5));
    for number in [1, 2] {
        let closed = &closed;
        world.spawn(cpu(number), || {
            Calls::close(&mut InterruptsOff::new());
            closed.raise();
        });
    }
    world.spawn(cpu(0), || {
        closed.reached(2);
        let ran_on = Calls::for_ever().call_any(&set([1, 2, 3, 4]), SimMachine::current_cpu);
        assert_eq!(ran_on, Ok((cpu(3), cpu(3))));
        assert_eq!(Calls::for_ever().call_any(&set([1, 2]), || ()), Err(CallError::Offline));
        assert_eq!(counted(|counters| counters.calls_refused.get()), 4);
    });
    run(&mut world);
}

#[test]
fn a_cpu_that_does_not_exist_is_refused_by_every_kind_of_call() {
    let ran = AtomicU64::new(0);
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        let nobody = cpu(2);
        let before = icr_writes();
        assert_eq!(Calls::for_ever().call(nobody, || ()), Err(CallError::NoSuchCpu));
        assert_eq!(Calls::for_ever().call_static(nobody, || ()), Err(CallError::NoSuchCpu));
        assert_eq!(Calls::for_ever().call_any(&set([2, 9]), || ()), Err(CallError::NoSuchCpu));
        assert_eq!(refusal(Calls::post::<Errand>(nobody, errand())), PostRefusal::NoSuchCpu);
        assert_eq!(Calls::reschedule(nobody), Err(CallError::NoSuchCpu));
        assert!(!Calls::is_online(nobody));
        assert_eq!(icr_writes(), before);
        let result = Calls::for_ever().call_many(&set([1, 2]), |_| {
            ran.fetch_add(1, Relaxed);
        });
        assert_eq!(failures(result.expect_err("CPU 2 does not exist")).offline, set([2]));
        assert_eq!(ran.load(Relaxed), 1, "CPU 1 exists");
    });
    run(&mut world);
}

#[test]
fn a_set_with_a_cpu_that_no_set_of_failures_could_name_is_refused_whole() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        let beyond: CpuSet<128> = [cpu(1), cpu(5000)].into_iter().collect();
        let result = Calls::for_ever().call_many(&beyond, |_| panic!("runs nowhere"));
        assert_eq!(not_sent(result), CallError::NoSuchCpu);
    });
    run(&mut world);
}

#[test]
fn an_empty_set_is_no_error_for_many_and_one_for_any() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        Calls::for_ever().call_many(&set([]), |_| panic!("runs nowhere")).expect("nothing to do");
        Calls::for_ever().call_if(|_| false, |_| panic!("runs nowhere")).expect("nothing to do");
        assert_eq!(Calls::for_ever().call_any(&set([]), || ()), Err(CallError::NoSuchCpu));
        assert_eq!(icr_writes(), 0);
    });
    run(&mut world);
}

#[test]
fn the_own_cpu_runs_the_closure_at_once_with_interrupts_off_and_without_a_ring() {
    let post = errand();
    let mut world = world(&quiet(3));
    world.spawn(cpu(1), || {
        let here = || {
            assert!(!SimMachine::interrupts_enabled());
            SimMachine::current_cpu()
        };
        assert_eq!(Calls::for_ever().call(cpu(1), here), Ok(cpu(1)));
        assert_eq!(Calls::within(Duration::ZERO).call(cpu(1), here), Ok(cpu(1)), "it need not wait");
        assert_eq!(
            Calls::for_ever().call_any(&set([0, 1, 2]), here),
            Ok((cpu(1), cpu(1))),
            "it is preferred"
        );
        let ran = AtomicU64::new(0);
        Calls::for_ever()
            .call_static(cpu(1), move || assert_eq!(SimMachine::current_cpu(), cpu(1)))
            .expect("runs here");
        Calls::for_ever()
            .call_many(&set([1]), |cpu| {
                assert_eq!(here(), cpu);
                ran.fetch_add(1, Relaxed);
            })
            .expect("runs here");
        assert_eq!(ran.load(Relaxed), 1);
        assert_eq!(icr_writes(), 0);
        assert_eq!(counted(|counters| counters.calls_local.get()), 5);
        assert!(SimMachine::interrupts_enabled());

        // A post does not run inside of `post`: it rings its own CPU.
        let off = InterruptsOff::<SimMachine>::new();
        assert_eq!(Calls::post::<Errand>(cpu(1), post).ok(), Some(Posted::Queued));
        assert_eq!(post.value().0.load(Relaxed), 0);
        drop(off);
        program::advance(us(20));
        assert_eq!(post.value().0.load(Relaxed), 1 << 8);
    });
    run(&mut world);
}

thread_local! {
    static SEEN_IN_NMI: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static NMI_POST: &'static Post<SimMachine, Errand> = errand();
}

/// Tries everything from NMI context, on the CPU that took the NMI: to CPU 0.
fn nmi_that_calls(_: smpcall_simulator::InterruptFrame) {
    let mut guard = InterruptsOff::new();
    let from_nmi = [
        Calls::for_ever().call(cpu(0), || ()).err(),
        Calls::for_ever().call(SimMachine::current_cpu(), || ()).err(),
        Calls::for_ever().call_static(cpu(0), || ()).err(),
        Calls::for_ever().call_any(&set([0]), || ()).err(),
        Some(not_sent(Calls::for_ever().call_many(&set([0]), |_| ()))),
        Some(not_sent(Calls::for_ever().call_all(|_| ()))),
        Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(0), || ()).err(),
    ];
    assert_eq!(from_nmi, [Some(CallError::FromNmi); 7]);
    let posted = Calls::post::<Errand>(cpu(0), NMI_POST.with(|&post| post));
    let asked = Calls::reschedule(cpu(0));
    SEEN_IN_NMI.with_borrow_mut(|seen| seen.push(format!("{:?} {asked:?}", posted.ok())));
}

/// Also while the interrupted program is inside of a call with interrupts off.
#[test]
fn an_nmi_handler_cannot_call_but_can_post_and_ask_to_reschedule() {
    SEEN_IN_NMI.take();
    let post = NMI_POST.with(|&post| post);
    let sent = Flag::new();
    let mut world = world(&quiet(2));
    world.set_nmi_handler(nmi_that_calls);
    world.spawn(cpu(1), || {
        let mut guard = InterruptsOff::new();
        let result = Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(0), || {
            SimMachine::send(cpu(1), Ipi::Probe).expect("an NMI goes out");
            program::advance(us(20));
            3
        });
        assert_eq!(result, Ok(3), "the call that the NMI interrupted is not disturbed");
        sent.raise();
    });
    world.spawn(cpu(0), || {
        sent.reached(1);
        program::advance(us(20));
        assert_eq!(post.value().0.load(Relaxed), 1);
        assert_eq!(counted(|counters| counters.reschedules_taken.get()), 1);
    });
    run(&mut world);
    assert_eq!(SEEN_IN_NMI.take(), ["Some(Queued) Ok(())"]);
}

#[test]
fn with_interrupts_off_a_call_needs_the_guard() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        let mut guard = InterruptsOff::<SimMachine>::new();
        let before = icr_writes();
        assert_eq!(Calls::for_ever().call(cpu(1), || ()), Err(CallError::InterruptsOff));
        assert_eq!(Calls::for_ever().call(cpu(0), || ()), Err(CallError::InterruptsOff));
        assert_eq!(Calls::for_ever().call_static(cpu(1), || ()), Err(CallError::InterruptsOff));
        assert_eq!(Calls::for_ever().call_any(&set([1]), || ()), Err(CallError::InterruptsOff));
        assert_eq!(not_sent(Calls::for_ever().call_many(&set([1]), |_| ())), CallError::InterruptsOff);
        assert_eq!(not_sent(Calls::for_ever().call_others(|_| ())), CallError::InterruptsOff);
        assert_eq!(icr_writes(), before);
        assert_eq!(Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(1), || 5), Ok(5));
        assert!(!SimMachine::interrupts_enabled(), "they are off until the guard goes");
        drop(guard);
        // Closures run with interrupts disabled, so the same holds inside of them.
        let inner = Calls::for_ever().call(cpu(1), || Calls::for_ever().call(cpu(0), || ()));
        assert_eq!(inner, Ok(Err(CallError::InterruptsOff)));
    });
    run(&mut world);
}

#[test]
fn a_deadline_of_zero_or_in_the_past_sends_nothing() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        program::advance(us(5));
        let past = Deadline::at(Instant::from_nanos(1));
        let before = icr_writes();
        for caller in
            [|| Calls::within(Duration::ZERO), || Calls::until(Deadline::at(Instant::from_nanos(0)))]
        {
            assert_eq!(caller().call(cpu(1), || ()), Err(CallError::DeadlinePassed));
            assert_eq!(caller().call_static(cpu(1), || ()), Err(CallError::DeadlinePassed));
            assert_eq!(caller().call_any(&set([1]), || ()), Err(CallError::DeadlinePassed));
            assert_eq!(not_sent(caller().call_many(&set([0, 1]), |_| panic!())), CallError::DeadlinePassed);
        }
        let mut guard = InterruptsOff::new();
        let polled = Calls::until(past).with_interrupts_off(&mut guard).call(cpu(1), || ());
        assert_eq!(polled, Err(CallError::DeadlinePassed));
        drop(guard);
        assert_eq!(icr_writes(), before);
        assert_eq!(counted(|counters| counters.calls_sent.get()), 0);
        Calls::for_ever().call(cpu(1), || ()).expect("and nothing was left behind");
    });
    run(&mut world);
}

#[test]
fn results_that_have_no_room_for_a_target_are_refused_before_anything_is_sent() {
    let mut world = world(&quiet(4));
    world.spawn(cpu(0), || {
        let mut results = [None; 3];
        let result = Calls::for_ever().call_many_into(&set([1, 3]), &mut results, |cpu| cpu);
        assert_eq!(not_sent(result), CallError::NoRoomForResult);
        assert_eq!((results, icr_writes()), ([None; 3], 0));

        let mut results = [None; 4];
        Calls::for_ever().call_many_into(&set([0, 3]), &mut results, Cpu::number).expect("room enough");
        assert_eq!(results, [Some(0), None, None, Some(3)]);
    });
    run(&mut world);
}

#[test]
fn a_post_that_is_queued_merges_there_and_is_refused_elsewhere_by_name() {
    let post = errand();
    let (busy, posted) = (Flag::new(), Flag::new());
    let mut world = world(&quiet(3));
    world.spawn(cpu(1), || {
        let _off = InterruptsOff::<SimMachine>::new();
        busy.raise();
        posted.reached(1);
    });
    world.spawn(cpu(0), || {
        busy.reached(1);
        assert_eq!(Calls::post::<Errand>(cpu(1), post).ok(), Some(Posted::Queued));
        assert_eq!(Calls::post::<Errand>(cpu(1), post).ok(), Some(Posted::Merged));
        assert_eq!(refusal(Calls::post::<Errand>(cpu(2), post)), PostRefusal::QueuedOn(cpu(1)));
        posted.raise();
        program::advance(us(20));
        assert_eq!(post.value().0.load(Relaxed), 1 << 8, "one run for both");
        assert_eq!(Calls::post::<Errand>(cpu(2), post).ok(), Some(Posted::Queued), "it is idle again");
        program::advance(us(20));
        assert_eq!(post.value().0.load(Relaxed), 1 << 16 | 1 << 8);
    });
    run(&mut world);
}

#[test]
#[should_panic(expected = "a mailbox cannot be closed from inside a closure that it serves")]
fn closing_from_inside_a_served_closure_panics() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(0), || {
        let _ = Calls::within(ms(1)).call(cpu(1), || Calls::close(&mut InterruptsOff::new()));
        // The caller is told while the target is still unwinding.
        program::advance(us(50));
    });
    run(&mut world);
}

#[test]
fn an_offline_cpu_can_itself_call_with_interrupts_on_and_off() {
    let mut world = world(&quiet(2));
    world.spawn(cpu(1), || {
        let mut guard = InterruptsOff::new();
        Calls::close(&mut guard);
        Calls::close(&mut guard);
        assert_eq!(Calls::for_ever().with_interrupts_off(&mut guard).call(cpu(0), || 1), Ok(1));
        drop(guard);
        assert_eq!(Calls::for_ever().call(cpu(0), || 2), Ok(2));
        assert!(!Calls::poll() && Calls::may_halt(&mut InterruptsOff::new()));
        Calls::open();
        Calls::open();
        assert!(Calls::is_online(cpu(1)));
    });
    run(&mut world);
}
